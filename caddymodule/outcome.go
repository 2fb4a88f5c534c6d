package caddymodule

import (
	"cmp"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/td-postback/gateway/migration"
	"github.com/td-postback/gateway/postback"
	"github.com/td-postback/gateway/upstream"
)

// This file tells the operator what became of each request, in the metrics and
// in Caddy's access log. What is worth a warning is in warnings.go.

// The results that are not the code of a refusal.
const (
	forwardedResult   = "forwarded"    // v2 took the record
	upstream3xxResult = "upstream_3xx" // v2 did not, and the caller got its answer
	upstream4xxResult = "upstream_4xx"
	upstream5xxResult = "upstream_5xx"
	cutResult         = "answer_cut" // v2's answer broke off when the caller had its head already
	noOutcomeResult   = "no_outcome" // the call ended before anything became of it: a fault of the gateway's
	preflightResult   = "preflight"
	handedOffResult   = "handed_off" // the next handler forwards
	spooledResult     = "spooled"    // the record is durable here, and delivered later

	// someRefusedResult: v2 took events of the call, or none, and refuses the others
	// for good, or would; their caller deletes them.
	someRefusedResult = "some_refused"
)

// ownResults has them all.
var ownResults = []string{
	forwardedResult, upstream3xxResult, upstream4xxResult, upstream5xxResult, cutResult, preflightResult, handedOffResult, spooledResult,
	someRefusedResult, noOutcomeResult,
}

// finish counts a call and adds what became of it to its line in the access
// log. It runs also when the connection to the caller is aborted by a panic.
func (c *call) finish() {
	c.result = c.endResult()
	c.count()
	c.tellConsole()
	c.settle()
	requestsInFlight.Dec()
	if server, ok := c.r.Context().Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server); !ok || server.Logs == nil {
		return
	}
	if extra, ok := c.r.Context().Value(caddyhttp.ExtraLogFieldsCtxKey).(*caddyhttp.ExtraLogFields); ok {
		extra.Set(zap.Object("td_postback", &outcome{
			steered: c.steered, lane: c.lane, to: c.Destination, kind: c.Kind, key: c.Source, account: c.Account(), events: c.events, result: c.result, trip: c.trip,
		}))
	}
}

// endResult is the result of a call that has ended, also by a panic.
func (c *call) endResult() string {
	if c.trip.Cut {
		return cutResult
	}
	return cmp.Or(c.result, noOutcomeResult)
}

// outcome is what became of a call, for the access log: with an account number
// and v2's words, and no key.
type outcome struct {
	steered bool // there are two lanes
	lane    migration.Lane
	to      postback.Destination
	kind    postback.Kind
	key     postback.KeySource
	account string
	events  int    // of a call with several
	result  string // a result above, upstream_*xx, or the code of a refusal
	trip    upstream.Trip
}

// MarshalLogObject writes the outcome for the access log.
func (o *outcome) MarshalLogObject(enc zapcore.ObjectEncoder) error {
	to := o.to.Shown()
	if to.Database != "" {
		enc.AddString("database", to.Database)
	}
	if to.Table != "" {
		enc.AddString("table", to.Table)
	}
	enc.AddString("surface", o.kind.String())
	enc.AddString("key", o.key.String())
	if o.account != "" {
		enc.AddString("account", o.account)
	}
	if (o.kind == postback.K || o.kind == postback.Mobile) && (o.lane == migration.V2 || o.events > 0) {
		enc.AddInt("events", o.events)
	}
	if o.steered {
		enc.AddString("lane", o.lane.String())
	}
	enc.AddString("result", o.result)
	if o.trip.Status > 0 {
		enc.AddInt("upstream_status", o.trip.Status)
		enc.AddFloat64("upstream_duration", o.trip.Duration.Seconds())
	}
	if o.trip.Words != "" {
		enc.AddString("upstream_words", o.trip.Words)
	}
	if o.trip.Tries > 0 {
		enc.AddInt("retried", o.trip.Tries-1)
	}
	return nil
}
