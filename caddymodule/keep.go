package caddymodule

import (
	"errors"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/td-postback/gateway/postback"
	"github.com/td-postback/gateway/spool"
	"github.com/td-postback/gateway/upstream"
)

// This file is the request's way through a spool. What becomes of a kept record
// later is in keeper.go and the spool package.

// forwardOrKeep sends a record to v2, or keeps it for later if v2 does not take
// it now or need not be asked: when it is down, only records that are kept are
// sent to try it, since no caller waits for them.
func (h *Handler) forwardOrKeep(answer, w http.ResponseWriter, r *http.Request, out *postback.Request, way *route, o *outcome) {
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
	err := way.Forward(answer, r, out, &o.delivery)
	if err == nil {
		way.queue.Success()
		o.result = upstreamResult(o.delivery.Status)
		h.warnOfAnswer(o.delivery.Status, way)
		return
	}
	result := resultOf(&o.delivery, err)
	switch {
	case !errors.Is(err, upstream.ErrNoConn):
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

// resultOf says how sending a record went that has a spool.
func resultOf(t *upstream.Trip, err error) spool.Result {
	r := spool.Result{Status: t.Status, RetryAfter: t.RetryAfter}
	if err != nil && !r.NotTaken() {
		r.Status = 0 // an answer that broke off says nothing
	}
	switch r.Status {
	case 0:
		_, notProcessed := errors.AsType[upstream.NotProcessedError](err)
		r.Err, r.Ambiguous = err, !notProcessed && !errors.Is(err, upstream.ErrNoConn)
	case http.StatusInternalServerError, http.StatusBadGateway, http.StatusGatewayTimeout:
		r.Ambiguous = true // it may have failed only after it had stored the record
	}
	return r
}

// spoolTakes reports whether an answer is not for the caller, because the spool
// takes the record.
func spoolTakes(status int) bool { return spool.Result{Status: status}.NotTaken() }

// keep makes a record durable and answers the caller as v2 would. After an
// error nothing has been answered.
func (h *Handler) keep(answer http.ResponseWriter, r *http.Request, out *postback.Request, way *route, o *outcome) error {
	size := keptCopies*int64(out.Length()) + keptHead
	if !h.bodies.reserve(size) {
		h.warnOfMemoryLimit(postback.ErrOverloaded)
		return postback.ErrOverloaded
	}
	defer h.bodies.free(size)
	buf := keptBuffers.Get().(*[]byte)
	defer putKeptBuffer(buf)
	var timed postback.RecordTime
	*buf, timed = postback.AppendKept((*buf)[:0], out, o.arrival)
	err := way.queue.keep(spool.Record{Arrival: o.arrival, Data: *buf}, h.Spool.Mode == spoolAlways)
	if err != nil {
		return err
	}
	spoolTimes[timed].Inc()
	o.result = spooledResult
	o.delivery.Bytes = out.Length()
	h.handover.end(answer, r)
	taken(answer, r)
	return nil
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

// refuseUnkept tells a caller that its record is neither delivered nor kept.
func (h *Handler) refuseUnkept(w http.ResponseWriter, r *http.Request, err error, way *route, o *outcome) {
	refused, ok := errors.AsType[*postback.Refusal](err)
	switch {
	case ok:
	case errors.Is(err, spool.ErrFull):
		refused = postback.ErrSpoolFull
	default:
		refused = postback.ErrSpoolUnavailable
	}
	h.warnOfUnkept(refused, err, way)
	h.handover.end(w, r)
	o.refuse(w, r, refused)
}

// keptCopies is how many copies of a body there are at most until it is
// durable: one in one piece, one in the request, one in the commit.
const keptCopies = 3

// keptHead is about what the head of a kept request and its record time take.
const keptHead = 2 << 10

// maxKeptBuffer is the largest buffer for a kept request that is used again.
const maxKeptBuffer = 64 << 10

var keptBuffers = sync.Pool{New: func() any { return new([]byte) }}

func putKeptBuffer(buf *[]byte) {
	if cap(*buf) > maxKeptBuffer {
		return
	}
	clear(*buf) // it holds the write key
	keptBuffers.Put(buf)
}
