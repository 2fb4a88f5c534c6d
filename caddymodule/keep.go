package caddymodule

import (
	"errors"
	"io"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/td-postback/gateway/spool"
)

// This file is the request's way through a spool. What becomes of a kept record
// later is in keeper.go and the spool package.

// forwardOrKeep sends a record to v2, or keeps it for later if v2 does not take
// it now or need not be asked: when it is down, only records that are kept are
// sent to try it, since no caller waits for them.
func (h *Handler) forwardOrKeep(answer, w http.ResponseWriter, r *http.Request, out *v2Request, way *route, o *outcome) {
	trying := way.queue.IsOpen()
	if h.Spool.Mode == spoolAlways || trying {
		err := h.keep(answer, r, out, way, o)
		if err == nil {
			return
		}
		if !way.queue.Allow() {
			h.refuseUnkept(w, r, err, way, o)
			return
		}
		// A spool that takes nothing must not stop what v2 takes.
	}
	sent := time.Now()
	err := way.forward(answer, r, out, &o.delivery)
	if err == nil {
		way.queue.Success()
		o.result = upstreamResult(o.delivery.status)
		h.warnOfAnswer(o.delivery.status, way)
		return
	}
	result := o.delivery.result(err)
	switch {
	case err != errOverloaded: //nolint:errorlint // nothing wraps it
		way.queue.Failure(sent, result.RetryAfter)
	case trying: // that says nothing of v2
		way.queue.Forgo()
	}
	if err := h.keep(answer, r, out, way, o); err != nil {
		h.refuseUnkept(w, r, err, way, o)
		return
	}
	warnOfKept(h.logger, &result, way.host)
	if result.Ambiguous {
		spoolDuplicates.Inc()
	}
}

// keep makes a record durable and answers the caller as v2 would. After an
// error nothing has been answered.
func (h *Handler) keep(answer http.ResponseWriter, r *http.Request, out *v2Request, way *route, o *outcome) error {
	size := keptCopies*int64(out.length()) + keptHead
	if !h.bodies.reserve(size) {
		h.warnOfMemoryLimit(errOverloaded)
		return errOverloaded
	}
	defer h.bodies.free(size)
	kept := keptRequests.Get().(*keptRequest)
	defer kept.put()
	timed := kept.compose(out, o.arrival)
	err := way.queue.keep(spool.Record{Arrival: o.arrival, Data: kept.data}, h.Spool.Mode == spoolAlways)
	if err != nil {
		return err
	}
	spoolTimes[timed].Inc()
	o.result = spooledResult
	o.delivery.bytes = out.length()
	h.handover.end(answer, r)
	taken(answer, r)
	return nil
}

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

// taken answers a caller as v2 does when it has taken a record.
func taken(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h["Content-Type"] = []string{"application/json"}
	h["Content-Length"] = []string{"2"}
	allowOrigin(h, r)
	w.WriteHeader(http.StatusOK)
	_, _ = io.WriteString(w, "{}")
}

var (
	errSpoolFull = &refusal{
		status: http.StatusServiceUnavailable, code: "spool_full", retryAfter: 30,
		message: "Postback v2 does not take records now, and the gateway has no room to keep more; send the record again later",
	}
	errSpoolUnavailable = &refusal{
		status: http.StatusServiceUnavailable, code: "spool_unavailable", retryAfter: 5,
		message: "Postback v2 does not take records now, and the gateway cannot keep them; send the record again later",
	}
)

// refuseUnkept tells a caller that its record is neither delivered nor kept.
func (h *Handler) refuseUnkept(w http.ResponseWriter, r *http.Request, err error, way *route, o *outcome) {
	refused, ok := errors.AsType[*refusal](err)
	switch {
	case ok:
	case errors.Is(err, spool.ErrFull):
		refused = errSpoolFull
	default:
		refused = errSpoolUnavailable
	}
	h.warnOfUnkept(refused, err, way)
	h.handover.end(w, r)
	o.refuse(w, r, refused)
}
