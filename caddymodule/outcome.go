package caddymodule

import (
	"net/http"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/td-postback/gateway/postback"
	"github.com/td-postback/gateway/upstream"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// This file tells the operator what became of each request, in the metrics and
// in Caddy's access log. What is worth a warning is in warnings.go.

// The results that are not the code of a refusal.
const (
	forwardedResult = "forwarded"  // v2 took the record
	cutResult       = "answer_cut" // v2's answer broke off when the caller had its head already
	preflightResult = "preflight"
	handedOffResult = "handed_off" // the next handler forwards
	spooledResult   = "spooled"    // the record is durable here, and delivered later
)

// outcome is what became of a request.
type outcome struct {
	postback.Destination
	surface     postback.Kind
	credentials postback.Credentials
	result      string // a result above, upstream_*xx, or the code of a refusal
	delivery    upstream.Trip
	arrival     time.Time // of the request; known only with a spool
}

// refuse answers a request with a refusal.
func (o *outcome) refuse(w http.ResponseWriter, r *http.Request, f *postback.Refusal) {
	o.result = f.Code
	refuse(w, r, f)
}

// finish counts a request and adds what became of it to its line in the access
// log. It runs also when the connection to the caller is aborted by a panic.
func (o *outcome) finish(r *http.Request) {
	if o.result == "" {
		o.result = cutResult
	}
	o.count()
	requestsInFlight.Dec()
	if server, ok := r.Context().Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server); !ok || server.Logs == nil {
		return
	}
	if extra, ok := r.Context().Value(caddyhttp.ExtraLogFieldsCtxKey).(*caddyhttp.ExtraLogFields); ok {
		logged := &loggedOutcome{*o, o.credentials.Account()}
		logged.credentials = postback.Credentials{Source: o.credentials.Source}
		extra.Set(zap.Object("td_postback", logged))
	}
}

// loggedOutcome is an outcome for the access log: with an account number, and
// no key.
type loggedOutcome struct {
	outcome
	account string
}

// MarshalLogObject writes the outcome for the access log.
func (o *loggedOutcome) MarshalLogObject(enc zapcore.ObjectEncoder) error {
	if o.Table != "" {
		enc.AddString("database", o.Database)
		enc.AddString("table", o.Table)
	}
	enc.AddString("surface", o.surface.String())
	enc.AddString("key", o.credentials.Source.String())
	if o.account != "" {
		enc.AddString("account", o.account)
	}
	enc.AddString("result", o.result)
	if o.delivery.Status > 0 {
		enc.AddInt("upstream_status", o.delivery.Status)
		enc.AddFloat64("upstream_duration", o.delivery.Duration.Seconds())
	}
	if o.delivery.Tries > 0 {
		enc.AddInt("retried", o.delivery.Tries-1)
	}
	return nil
}
