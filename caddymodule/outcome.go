package caddymodule

import (
	"net/http"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/td-postback/gateway/sandbox"
)

// This file tells the operator what became of each request: in the metrics, in
// Caddy's access log, and as warnings.

// surface is the kind of a legacy call.
type surface uint8

const (
	surfaceOther  surface = iota // a preflight, or a method that is refused
	surfacePost                  // a record in the body
	surfaceGet                   // a record in the query
	surfacePixel                 // the same, answered with an image
	surfaceBeacon                // a POST that has its record in the query: a ping, or no body
)

var surfaceNames = [...]string{"other", "post", "get", "pixel", "beacon"}

// String is the surface's name in metrics and logs.
func (s surface) String() string { return surfaceNames[s] }

// The results that are not the code of a refusal.
const (
	forwardedResult = "forwarded"  // v2 took the record
	cutResult       = "answer_cut" // v2's answer broke off when the caller had its head already
	preflightResult = "preflight"
	handedOffResult = "handed_off" // the next handler forwards
)

// outcome is what became of a request.
type outcome struct {
	destination
	surface     surface
	credentials credentials
	result      string // a result above, upstream_*xx, or the code of a refusal
	delivery    delivery
}

// refuse answers a request with a refusal.
func (o *outcome) refuse(w http.ResponseWriter, r *http.Request, f *refusal) {
	o.result = f.code
	refuse(w, r, f)
}

// finish counts a request and adds what became of it to its line in the access
// log. It runs also when the connection to the caller is aborted by a panic.
func (o *outcome) finish(r *http.Request) {
	requestsInFlight.Dec()
	if o.result == "" {
		o.result = cutResult
	}
	o.count()
	if server, ok := r.Context().Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server); !ok || server.Logs == nil {
		return
	}
	if extra, ok := r.Context().Value(caddyhttp.ExtraLogFieldsCtxKey).(*caddyhttp.ExtraLogFields); ok {
		logged := &loggedOutcome{*o, o.credentials.account()}
		logged.credentials = credentials{source: o.credentials.source}
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
	if o.table != "" {
		enc.AddString("database", o.database)
		enc.AddString("table", o.table)
	}
	enc.AddString("surface", o.surface.String())
	enc.AddString("key", o.credentials.source.String())
	if o.account != "" {
		enc.AddString("account", o.account)
	}
	enc.AddString("result", o.result)
	if o.delivery.status > 0 {
		enc.AddInt("upstream_status", o.delivery.status)
		enc.AddFloat64("upstream_duration", o.delivery.duration.Seconds())
	}
	if o.delivery.tries > 0 {
		enc.AddInt("retried", o.delivery.tries-1)
	}
	return nil
}

// account is the account number of the key that v2 uses, and nothing else of
// it: `1234/…`.
func (c *credentials) account() string {
	key := c.key()
	if key == "" {
		return ""
	}
	return sandbox.MaskKey(key)
}

// warnings wraps a logger so that each message is written once a minute:
// enough to see the trouble, and no flood when every request has it. How many
// there are is in the metrics.
func warnings(logger *zap.Logger) *zap.Logger {
	return logger.WithOptions(zap.WrapCore(func(core zapcore.Core) zapcore.Core {
		return zapcore.NewSamplerWithOptions(core, time.Minute, 1, 0)
	}))
}

// warnOfKey tells of what v2 would not complain about: a key that is probably
// wrong, and an Authorization that did not go along.
func (h *Handler) warnOfKey(r *http.Request, out *v2Request) {
	cred := &out.credentials
	if !usualKey(cred.key()) {
		if c := h.warn.Check(zap.WarnLevel, "write key of unusual form"); c != nil {
			c.Write(zap.String("account", cred.account()), zap.String("database", out.database), zap.String("table", out.table),
				zap.String("advice", "compare the caller's key with the one in Treasure Data, 1234/ and hexadecimal digits: v2 answers 200 to a wrong key and loses the record"))
		}
	}
	if len(r.Header["Authorization"]) > 0 && cred.authorization == "" {
		if c := h.warn.Check(zap.WarnLevel, "Authorization dropped beside a legacy key"); c != nil {
			c.Write(zap.String("database", out.database), zap.String("table", out.table),
				zap.String("advice", "nothing, if the caller sends it for something else; if it is meant for v2, remove td_write_key from the caller's URL and send Authorization: TD1"))
		}
	}
}

// warnOfRedirect tells of a td_redirect that is not followed. The record is
// sent all the same.
func (h *Handler) warnOfRedirect(out *v2Request) {
	if c := h.warn.Check(zap.WarnLevel, "redirect refused"); c != nil {
		c.Write(zap.String("database", out.database), zap.String("table", out.table),
			zap.String("advice", "if the target of td_redirect is yours, add its host to redirect_hosts"))
	}
}

// warnOfFailure tells of a record that v2 did not get, or not for certain.
func (h *Handler) warnOfFailure(refused *refusal, err error, way *route) {
	advice := "check v2's host in DNS, the way there, HTTPS_PROXY and tls_ca"
	switch refused {
	case errOverloaded:
		advice = "v2 is too slow for this load, or max_conns is too low"
	case errUpstreamTimeout, errBrokenOff:
		advice = "check v2's status and the network; callers that send again may send the record twice"
	}
	if c := h.warn.Check(zap.WarnLevel, "record not delivered"); c != nil {
		c.Write(zap.String("code", refused.code), zap.String("upstream", way.host), zap.Error(err), zap.String("advice", advice))
	}
}

// warnOfAnswer tells of an answer by which v2 asks for the record again later.
func (h *Handler) warnOfAnswer(status int, way *route) {
	if status < http.StatusInternalServerError && status != http.StatusTooManyRequests {
		return
	}
	if c := h.warn.Check(zap.WarnLevel, "Postback v2 did not take a record"); c != nil {
		c.Write(zap.Int("status", status), zap.String("upstream", way.host),
			zap.String("advice", "check v2's status; the callers have got this answer, and must send again what they do not want to lose"))
	}
}
