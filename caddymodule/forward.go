package caddymodule

import (
	"errors"
	"net/http"
	"sync"
	"time"

	"github.com/td-postback/gateway/postback"
	"github.com/td-postback/gateway/spool"
	"github.com/td-postback/gateway/upstream"
)

// This file sends a record to v2, keeps it for later, or hands it on, and decides
// what its caller gets then. What becomes of a kept record later is in package
// spool.

// forward forwards the record, or keeps it, or leaves it to the next handler.
func (h *Handler) forward(c *call) error {
	c.ready = true // tally releases the body
	if h.report != nil {
		c.note()
	}
	if h.Handoff {
		return h.handOff(c)
	}
	if conn := callerConnOf(c.r); conn != nil { // the body is read: see callerConn
		conn.unwatched.Store(true)
		defer conn.unwatched.Store(false)
	}
	if h.Spool != nil {
		h.forwardOrKeep(c)
	} else if err := c.to.Forward(c.w, c.r, &c.out, &c.trip); err != nil {
		h.refuseUndelivered(c, err)
	} else {
		h.noteAnswer(c)
	}
	return nil
}

// noteAnswer notes that v2's answer has gone to the caller.
func (h *Handler) noteAnswer(c *call) {
	c.result = upstreamResult(c.trip.Status)
	countRefusedKey(c.trip.Status, c.Key())
	h.warnOfAnswer(c)
}

// refuseUndelivered tells a caller that v2 did not get its record, or not for
// certain.
func (h *Handler) refuseUndelivered(c *call, err error) {
	_, notProcessed := errors.AsType[upstream.NotProcessedError](err)
	refused, advice := postback.UpstreamBrokenOff, "check v2's status and the network; callers that send again may send the record twice"
	switch {
	case errors.Is(err, upstream.ErrNoConn):
		refused, advice = noConnection, "v2 is too slow for this load, or max_conns is too low"
	case notProcessed:
		refused, advice = postback.UpstreamUnreachable, "check v2's host in DNS, the way there, HTTPS_PROXY and tls_ca"
	case upstream.IsTimeout(err):
		refused = postback.UpstreamTimeout
	}
	noteFailure(c.to.host, 0, err.Error())
	h.warn(&undeliveredWarning, c, refused, err, advice)
	h.refuse(c, refused)
}

// forwardOrKeep sends a record to v2, or keeps it for later if v2 does not take
// it now. If v2 is down, wants to be left alone by the record's account, or need
// not be asked, the record is kept at once: no caller waits for a kept record, so
// those try whether v2 takes them again.
func (h *Handler) forwardOrKeep(c *call) {
	down, unkept := c.to.queue.IsOpen(), errNotAsked
	if down || h.Spool.Mode == spoolAlways && !c.to.queue.Hesitates() {
		if unkept = h.keep(c, !down); unkept == nil {
			return
		}
	}
	account := c.out.Credentials.Payer()
	switch {
	case c.to.queue.Allow(account): // a spool that takes nothing must not stop what v2 takes
		countMaybeKept(unkept)
		h.forwardFirst(c, account)
	case errors.Is(unkept, errNotAsked):
		h.keepOrRefuse(c)
	default:
		h.refuseUnkept(c, unkept)
	}
}

// countMaybeKept counts a record that is sent although the spool may have kept it: it goes
// a second time then.
func countMaybeKept(unkept error) {
	if errors.Is(unkept, spool.ErrMaybeKept) {
		spoolDuplicates.Inc()
	}
}

// forwardFirst sends a record to v2, as Allow has allowed, and keeps it if v2 does
// not take it now.
func (h *Handler) forwardFirst(c *call, account string) {
	sent := time.Now()
	err := c.to.Forward(c.w, c.r, &c.out, &c.trip)
	result := resultOf(&c.trip, err)
	c.to.answered(account, sent, &result)
	if err == nil {
		h.noteAnswer(c)
		return
	}
	if !h.keepOrRefuse(c) {
		return
	}
	warnOfKept(h.logger, &result, c.to.host, ownerOf(c))
	if result.Ambiguous {
		spoolDuplicates.Inc()
	}
}

// answered notes how sending something went, as Allow has allowed.
func (to *route) answered(account string, sent time.Time, r *spool.Result) {
	if errors.Is(r.Err, upstream.ErrNoConn) { // that says nothing of v2
		to.queue.Forgo(account, sent)
	} else {
		to.queue.Answered(account, sent, *r)
	}
}

// keepOrRefuse makes a record durable, or tells its caller that it is not.
func (h *Handler) keepOrRefuse(c *call) (kept bool) {
	err := h.keep(c, false)
	if err != nil {
		h.refuseUnkept(c, err)
	}
	return err == nil
}

// resultOf says how sending a record went that has a spool.
func resultOf(t *upstream.Trip, err error) spool.Result {
	r := spool.Result{Status: t.Status, RetryAfter: t.RetryAfter, Words: t.Words}
	if err != nil && !r.NotTaken() {
		r.Status, r.Words = 0, "" // an answer that broke off says nothing
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
// error nothing has been answered. With judge, what v2 would surely refuse is not
// kept: its caller is to hear v2's verdict.
func (h *Handler) keep(c *call, judge bool) error {
	size := keptCopies * (int64(c.out.Length()) + c.head/headCopies + keptMore)
	if !h.bodies.reserve(size) {
		return errNoMemory
	}
	defer h.bodies.free(size)
	buf := keptBuffers.Get().(*[]byte)
	defer putKeptBuffer(buf)
	var timed postback.RecordTime
	*buf, timed = postback.AppendKept((*buf)[:0], &c.out, c.arrival)
	if judge && timed == postback.TimeNoObject && c.out.SurelyRefused() {
		return errNotAsked
	}
	err := c.to.queue.Put(spool.Record{Arrival: c.arrival, Data: *buf}, h.Spool.Mode == spoolAlways && !c.to.legacy)
	if err != nil {
		return err
	}
	spoolTimes[timed].Inc()
	c.result = spooledResult
	c.trip.Bytes = c.out.Length()
	h.taken(c)
	return nil
}

// errNotAsked says that v2 has to be asked before a record is kept, or events are.
var errNotAsked = errors.New("v2 has not been asked")

// errNoMemory says that a record cannot be kept since max_buffered is used up.
var errNoMemory = errors.New("max_buffered is used up")

// refuseUnkept tells a caller that its record is neither delivered nor kept.
func (h *Handler) refuseUnkept(c *call, err error) { h.refuse(c, h.warnOfUnkept(c, err)) }

// warnOfUnkept tells the operator of such a record. It returns why it is not kept. A
// caller of the legacy lane may have been answered already.
func (h *Handler) warnOfUnkept(c *call, err error) *postback.Refusal {
	refused, advice := postback.SpoolUnavailable, "see to the spool's disk or cluster"
	switch {
	case errors.Is(err, errNoMemory):
		refused = postback.Overloaded
		advice = "a record that is kept counts four times in max_buffered: raise it and with it GOMEMLIMIT"
	case errors.Is(err, spool.ErrFull) && c.to.legacy:
		refused = postback.SpoolFull
		advice = "the legacy host has been away for too long for max_size: raise it"
	case errors.Is(err, spool.ErrFull):
		refused = postback.SpoolFull
		advice = "v2 has been away for too long for max_size: raise it"
	}
	heard := "; the callers have got 503"
	if c.result != "" {
		heard = "; the callers have got the legacy host's answer"
	}
	h.warn(&unkeptWarning, c, refused, err, advice+heard)
	return refused
}

// keptCopies is how many copies of a record there are at most until it is
// durable: one in one piece, one in the request, one in the commit.
const keptCopies = 3

// keptMore is about what a kept request has beside what its caller sent: the
// fields that the gateway sets, and its record time.
const keptMore = 512

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
