package caddymodule

import (
	"slices"
	"time"
)

// appendKept appends a request to dst in the form in which it is kept: as it
// goes over the connection later. A record that does not say its time gets the
// arrival, unless that would make it too large, or something describes its
// bytes.
func appendKept(dst []byte, q *v2Request, arrival time.Time) ([]byte, recordTime) {
	later := *q
	later.forwarded.earlyData = false // by the time of delivery, the handshake is long complete
	body := q.body
	if len(q.more) > 0 {
		body = slices.Concat(append([][]byte{q.body}, q.more...)...)
	}
	later.body, later.more = body, nil
	timed := timeNoObject
	if !q.describesBytes() && len(body)+maxTimeMember <= maxV2Body {
		var (
			room   [maxTimeMember]byte
			member []byte
			end    int
		)
		if member, end, timed = timeMember(room[:0], body, arrival.Unix()); timed == timeAdded {
			later.body, later.more = body[:end], [][]byte{member, body[end:]}
		}
	}
	dst = later.appendHead(dst)
	dst = append(dst, later.body...)
	for _, part := range later.more {
		dst = append(dst, part...)
	}
	return dst, timed
}
