package caddymodule

import (
	"bytes"
	"cmp"
	"net/http"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/td-postback/gateway/migration"
	"github.com/td-postback/gateway/postback"
)

// This file counts calls in the report of callers, with what their owners should know
// before they go to v2 without the gateway.

// noted is what is noted of a call for the report.
type noted struct {
	findings migration.Findings
	refused  *postback.Refusal // the gateway's last
	atV2     *postback.Refusal // what it would be by v2's lane, of a call by the other
	done     bool              // note was called
	method   string
	query    string // as it came, with a key that may be in it
}

// tally counts a call in the report, if there is one, when it is known what became of
// it. Then its body goes back: an example is made of it.
func (h *Handler) tally(c *call) {
	if c.steered && !c.decided {
		h.label(c)
	}
	if h.report != nil && !c.isPreflight() {
		h.tellReport(c)
	}
	if c.ready && !h.Handoff {
		h.bodies.release(c.body)
	}
}

// isPreflight reports whether a call is no event.
func (c *call) isPreflight() bool {
	return c.result == preflightResult || c.audited && c.r.Method == http.MethodOptions && (c.noted.atV2 == nil || c.Foreign)
}

// tellReport counts a call in the report.
func (h *Handler) tellReport(c *call) {
	c.note()
	key := h.app.fingerprints.quickly(c.Key())
	client, _ := caddyhttp.GetVar(c.r.Context(), caddyhttp.ClientIPVarKey).(string)
	told := migration.Call{
		Time: c.answered(), Key: key.name, Database: c.Database, Table: c.Table, Surface: c.Kind.String(),
		UserAgent: first(c.r.Header["User-Agent"]), Origin: first(c.r.Header["Origin"]), Referer: first(c.r.Header["Referer"]), Client: client,
		Lane: c.lane, Undecided: !c.decided || c.Foreign, Result: c.endResult(), Findings: c.noted.findings | key.findings | c.resultFindings(), Events: c.events,
	}
	report := h.report.get()
	if report.Count(&told) {
		report.AddExample(&told, migration.Redact(c.noted.method, c.noted.query, c.exampleBody()))
	}
}

// answered is when v2's answer was there, or else now, when there is none. It saves a
// look at the clock, which costs a tenth of counting.
func (c *call) answered() time.Time {
	if c.trip.Answered.IsZero() {
		return time.Now()
	}
	return c.trip.Answered
}

// first is the first of a header's values. The header's name must be written as net/http
// writes it: Header.Get, which takes any, costs as much as the rest of a look-up.
func first(values []string) string {
	if len(values) == 0 {
		return ""
	}
	return values[0]
}

// exampleBody is what of a call's record its query does not say.
func (c *call) exampleBody() []byte {
	if !c.ready || c.out.FromQuery && !c.IsJS() {
		return nil
	}
	return c.out.Body
}

// recordTime is in the name of the column that says a record's time, td_record_time. The
// search looks for its first byte, and records have fewer _ than t.
var recordTime = []byte("_record_time")

// replacement is what stands in a record for what was no UTF-8.
var replacement = []byte("\ufffd")

// note notes what is changed in a call. It is called when the call's record is whole, and
// before the next handler gets what v2 is to get, or else when the call has been refused.
func (c *call) note() {
	if c.noted.done {
		return
	}
	c.noted.done = true
	c.noted.method, c.noted.query = c.r.Method, c.r.URL.RawQuery
	f := &c.noted.findings
	switch refused := cmp.Or(c.noted.atV2, c.noted.refused); {
	case refused == postback.NoGlobalID:
		f.Add(migration.JSSDK)
		return
	case (refused == postback.NotFound || c.Foreign) && c.Source == postback.KeyNone:
		return // a scanner's, or a check of the gateway's health: it means no record
	}
	*f |= kindFindings[c.Kind]
	note := func(finding migration.Finding, found bool) {
		if found {
			f.Add(finding)
		}
	}
	fromQuery := c.out.FromQuery || c.InQuery() || c.Kind == postback.JSONP
	note(migration.LegacyPath, c.steered && c.Foreign)
	note(migration.FromQuery, fromQuery)
	note(migration.KeyInURL, c.Source == postback.KeyParam)
	note(migration.AuthorizationDropped, c.Source != postback.KeyNone && c.Authorization == "" && len(c.r.Header["Authorization"]) > 0)
	note(migration.PlainHTTP, c.out.Forwarded.Proto == "http")
	note(migration.AnsweredWithRedirect, c.asked != nil && c.asked.location != "")
	if !c.ready {
		return
	}
	note(migration.BodyTypeMended, c.out.ContentType != "" && !fromQuery)
	note(migration.PathMended, !c.IsJS() && !postback.IsCanonical(c.r.URL.Path, c.Destination))
	note(migration.TimeIgnored, bytes.Contains(c.out.Body, recordTime) && c.out.TimeIgnored(time.Now()))
	note(migration.EncodingMended, fromQuery && bytes.Contains(c.out.Body, replacement) && !postback.IsUTF8Query(c.Query))
}

// kindFindings are those that all calls of a kind have.
var kindFindings = func() (of [len(postback.KindNames)]migration.Findings) {
	for kind, finding := range map[postback.Kind]migration.Finding{
		postback.Pixel: migration.AnsweredWithImage, postback.JSONP: migration.JSSDK, postback.JS: migration.JSSDK,
		postback.K: migration.SeveralEvents, postback.Mobile: migration.MobileSDK,
	} {
		of[kind].Add(finding)
	}
	return of
}()

// resultFindings are those that what became of a call is one of, or shows.
func (c *call) resultFindings() (found migration.Findings) {
	if c.noted.atV2 != nil && !c.Foreign { // nothing of what is foreign goes to v2
		if f, ok := migration.FindingOf(c.noted.atV2.Code); ok {
			found.Add(f)
		}
	}
	switch {
	case c.result == forwardedResult:
	case c.result == upstream4xxResult:
		if c.lane == migration.Legacy {
			found.Add(migration.LegacyRefused)
		} else if !spoolTakes(c.trip.Status) { // which would speak of v2, or of the account
			found.Add(migration.RefusedByV2)
		}
	case c.result == someRefusedResult:
		found.Add(migration.RefusedByV2)
	case c.noted.refused == postback.BodyCut: // its code says that of the record
		found.Add(migration.BodyCut)
	default:
		if f, ok := migration.FindingOf(c.result); ok {
			found.Add(f)
		}
	}
	return found
}
