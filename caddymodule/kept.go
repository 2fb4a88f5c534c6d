package caddymodule

import (
	"slices"
	"sync"
	"time"
)

// keptCopies is how many copies of a body there are until it is durable: one
// with its time, one in the request, one in the commit.
const keptCopies = 3

// keptHead is about what the head of a kept request and its record time take.
const keptHead = 2 << 10

// keptRequest is a request that v2 gets later. It is used again, unless it has
// become large.
type keptRequest struct {
	body []byte
	data []byte // all of the request
}

const maxKeptRequest = 64 << 10

var keptRequests = sync.Pool{New: func() any { return new(keptRequest) }}

func (k *keptRequest) put() {
	if cap(k.data) > maxKeptRequest {
		return
	}
	clear(k.data) // it holds the write key
	keptRequests.Put(k)
}

// compose makes the bytes of the request. A record that does not say its time
// gets the one at which it arrived, unless that would make it too large, or
// something describes its bytes.
func (k *keptRequest) compose(out *v2Request, arrival time.Time) (timed recordTime) {
	later := *out
	later.body, later.more = out.body, nil
	later.forwarded.earlyData = false // by the time of delivery, the handshake is long complete
	if len(out.more) > 0 {
		later.body = slices.Concat(append([][]byte{out.body}, out.more...)...)
	}
	timed = timeNoObject
	if !out.describesBytes() && len(later.body)+maxTimeMember <= maxV2Body {
		k.body, timed = appendRecordTime(k.body[:0], later.body, arrival.Unix())
		later.body = k.body
	}
	k.data = later.appendHead(k.data[:0])
	k.data = append(k.data, later.body...)
	return timed
}
