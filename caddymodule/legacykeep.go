package caddymodule

import (
	"errors"
	"net/http"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/td-postback/gateway/postback"
	"github.com/td-postback/gateway/spool"
	"github.com/td-postback/gateway/upstream"
)

// This file keeps the Postback records that the legacy host does not take now, in the
// form of v2, which it takes too, and delivers them. They have a queue of their own: none
// of them ever goes to v2. In either mode of the spool, the legacy host is asked first.

// isKeepable reports whether a call of the legacy lane has a record that may be kept: a
// Postback call with a key that the legacy host reads, which is none in Authorization.
// Other calls have answers of their own, which only the legacy host knows.
func (c *call) isKeepable() bool {
	switch c.Kind {
	case postback.Post, postback.Get, postback.Pixel, postback.Beacon:
		return c.badKey == nil && c.WriteKey != ""
	default:
		return false
	}
}

// errRecordTooLarge says that v2's form of a record, which is the one that is kept, would
// be larger than a record may be.
var errRecordTooLarge = errors.New("the record is too large to be kept")

// legacyCall is a call of the legacy lane whose record may be kept.
type legacyCall struct {
	call
	h      *Handler
	made   bool         // out is there, or cannot be
	unmade error        // why it cannot
	answer *queryAnswer // what the query asks for, if the record is kept
	unkept error        // why the record could not be kept; nil before that is tried
}

// relayOrKeep sends a call on to the legacy host, and keeps its record if the host does
// not take it now. If the host is down, or wants to be left alone by the record's account,
// the record is kept at once. If it cannot be kept, the caller hears what the host says.
func (h *Handler) relayOrKeep(c *call, q *upstream.Relayed) {
	k := &legacyCall{call: *c, h: h}
	defer k.giveBack(c)
	down := k.to.queue.IsOpen()
	switch {
	case down && k.keep():
	case k.to.queue.Allow(k.payer()): // a spool that takes nothing must not stop what the host takes
		countMaybeKept(k.unkept)
		k.relayFirst(q)
	case k.unkept == nil && k.keep():
	case errors.Is(k.unkept, errRecordTooLarge):
		k.relay(q)
	default:
		h.refuseUnkept(&k.call, k.unkept)
	}
}

// giveBack ends the work on a call.
func (k *legacyCall) giveBack(c *call) {
	if k.body != c.body && k.body != nil { // of a record from a query
		k.h.bodies.release(k.body)
	}
	k.body = c.body
	*c = k.call
}

// payer is whom the legacy host counts the record for. It does not read Authorization.
func (k *legacyCall) payer() string {
	counted := postback.Credentials{WriteKey: k.WriteKey}
	return counted.Payer()
}

// relay sends the call on, as one whose record is never kept.
func (k *legacyCall) relay(q *upstream.Relayed) {
	if err := k.to.Relay(k.w, k.r, q, &k.trip); err != nil {
		k.h.refuseUnrelayed(&k.call, err)
		return
	}
	k.result = upstreamResult(k.trip.Status)
}

// relayFirst sends the call on, as Allow has allowed, and keeps its record if the host
// does not take it now.
func (k *legacyCall) relayFirst(q *upstream.Relayed) {
	sent, told := time.Now(), false
	k.unkept = nil
	q.Instead = func() bool {
		result := resultOf(&k.trip, upstream.ErrWithheld)
		k.to.answered(k.payer(), sent, &result) // before the record is delivered at once
		told = true
		return k.keep()
	}
	err := k.to.Relay(k.w, k.r, q, &k.trip)
	result := resultOf(&k.trip, err)
	if !told {
		k.to.answered(k.payer(), sent, &result)
	}
	switch {
	case err == nil:
		k.result = upstreamResult(k.trip.Status)
		if k.unkept != nil && !errors.Is(k.unkept, errRecordTooLarge) {
			k.h.warnOfUnkept(&k.call, k.unkept)
		}
	case errors.Is(err, upstream.ErrWithheld) || k.unkept == nil && k.keep():
		warnOfKeptForLegacy(k.h.logger, &result, k.to.host, ownerOf(&k.call))
		if result.Ambiguous {
			spoolDuplicates.Inc()
		}
	case errors.Is(k.unkept, errRecordTooLarge):
		k.h.refuseUnrelayed(&k.call, err)
	default:
		k.h.refuseUnkept(&k.call, k.unkept)
	}
}

// keep makes the record durable and answers the caller as v2 would.
func (k *legacyCall) keep() bool {
	if !k.made {
		k.made, k.unmade = true, k.makeRecord()
	}
	if k.unkept = k.unmade; k.unkept != nil {
		return false
	}
	caller := k.w
	if k.answer != nil {
		k.w, k.asked = k.answer, k.answer
	}
	if k.unkept = k.h.keep(&k.call, false); k.unkept != nil {
		k.w, k.asked = caller, nil
		return false
	}
	if k.asked != nil {
		k.noteAsked()
		if k.asked.refused != nil {
			k.h.warnOfRedirect(&k.call)
		}
	}
	return true
}

// makeRecord makes the request by which the record is delivered later.
func (k *legacyCall) makeRecord() error {
	k.out = postback.Request{
		Host: k.to.host, Destination: k.Destination, Query: k.Query, Header: k.r.Header, Forwarded: k.out.Forwarded,
		Credentials: postback.Credentials{WriteKey: k.WriteKey, Source: k.Source},
	}
	if k.r.Method == http.MethodPost {
		k.h.useBody(&k.call)
	}
	if k.Kind == postback.Post {
		return nil
	}
	refused := k.h.useQuery(&k.call)
	k.answer, k.asked = k.asked, nil
	switch refused {
	case nil:
		return nil
	case postback.Overloaded:
		return errNoMemory
	default:
		return errRecordTooLarge
	}
}

// legacySender sends records that were kept for a legacy host, each in a request of its
// own.
type legacySender struct {
	*upstream.Client
	host string
}

// newLegacySender makes who delivers a legacy host's queue, if migrate has that host.
func (h *Handler) newLegacySender(queue string) (spool.Sender, error) {
	if h.legacy == nil {
		return nil, errNoLegacyHost
	}
	for _, to := range h.legacy.routes() {
		if to.queueName() != queue {
			continue
		}
		trust, err := h.trust()
		if err != nil {
			return nil, err
		}
		cfg := h.upstreamConfig(to.url, trust)
		cfg.Addr, cfg.MaxConns = h.Migrate.Resolve, maxDeliveries // as to v2
		client, err := upstream.New(cfg)
		if err != nil {
			return nil, err
		}
		return legacySender{client, to.host}, nil
	}
	return nil, errNoLegacyHost
}

var errNoLegacyHost = errors.New("migrate has no such legacy host")

// Send sends a record to the legacy host.
func (s legacySender) Send(data []byte) spool.Result {
	var t upstream.Trip
	result := resultOf(&t, s.Deliver(data, &t))
	switch {
	case result.NotTaken():
		warnOfKeptForLegacy(caddy.Log().Named(handlerID), &result, s.host, keptOwner(data))
	case result.Status >= http.StatusMultipleChoices:
		result.Account, result.Fingerprint = accountOf(data), keptFingerprint(data)
	}
	return result
}

// Part says no: the legacy host takes no batches.
func (s legacySender) Part(spool.Entry) (spool.Part, bool) { return spool.Part{}, false }

// SendBatch is not called, as no record is a part of a batch.
func (s legacySender) SendBatch(string, [][]byte) spool.BatchResult {
	return spool.BatchResult{Result: spool.Result{Err: errNoLegacyBatch}}
}

var errNoLegacyBatch = errors.New("the legacy host takes no batches")
