package caddymodule

import (
	"context"
	"encoding/json"
	"net/http"
	"regexp"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/rewrite"

	"github.com/td-postback/gateway/postback"
)

// This file says what happens to every event on its way to a td_postback: what
// changes its path, asks its caller for a password, or limits its body.

// way is what every event has come through before a place in the routes.
type way struct {
	path     string // of an event, as it is here; "" if the doctor cannot tell
	password bool   // of which the caller is asked
	maxBody  int64  // that passes; 0 for any
}

// passRoutes notes what happens to events in these routes. later is where they go
// after that: what it does not take is of no concern. Of a group, only the first
// route runs.
func (w *walk) passRoutes(routes caddyhttp.RouteList, later caddyhttp.Route, at *way) {
	taken := map[string]bool{"": false}
	for _, route := range routes {
		sameGroup := route.Group != "" && route.Group == later.Group
		if route.Terminal || sameGroup || taken[route.Group] || !w.form.covers(route.MatcherSetsRaw, later.MatcherSetsRaw) {
			continue
		}
		taken[route.Group] = route.Group != ""
		w.pass(route.HandlersRaw, at)
	}
}

// pass notes what happens to events in these handlers.
func (w *walk) pass(handlers []json.RawMessage, at *way) {
	for _, raw := range handlers {
		var options struct {
			Providers map[string]json.RawMessage
			MaxSize   int64 `json:"max_size"`
		}
		_ = json.Unmarshal(raw, &options) // what cannot be read fails the load
		switch handlerName(raw) {
		case "authentication":
			at.password = at.password || options.Providers["http_basic"] != nil
		case "request_body":
			if options.MaxSize > 0 && (at.maxBody == 0 || options.MaxSize < at.maxBody) {
				at.maxBody = options.MaxSize
			}
		case "rewrite":
			at.path = w.rewritten(raw, at.path)
		default:
			routes, within := w.inner(raw)
			within.passRoutes(routes, caddyhttp.Route{}, at)
		}
	}
}

// otherPlaceholder begins a placeholder.
var otherPlaceholder = regexp.MustCompile(`\{[a-z$]`)

// rewritten is what a rewrite makes of an event's path; "" if that depends on
// more than the URL. Caddy's own code does it.
func (w *walk) rewritten(raw json.RawMessage, path string) string {
	known := strings.NewReplacer("{http.request.uri", "", "{http.request.orig_uri", "").Replace(string(raw))
	var change rewrite.Rewrite
	if path == "" || otherPlaceholder.MatchString(known) || json.Unmarshal(raw, &change) != nil || slices.Contains(change.PathRegexp, nil) {
		return ""
	}
	change.Query = nil // it leaves the path alone
	ctx, cancel := caddy.NewContext(caddy.Context{Context: context.Background()})
	defer cancel()
	r := sampleCall(path)
	if r == nil || change.Provision(ctx) != nil {
		return ""
	}
	replacer := caddy.NewReplacer()
	r = caddyhttp.PrepareRequest(r, replacer, nil, w.server)
	change.Rewrite(r, replacer)
	return r.URL.Path
}

// sampleCall is an event with this path, or nil if no request can have it.
func sampleCall(path string) *http.Request {
	r, err := http.NewRequest(http.MethodPost, "/", http.NoBody) //nolint:noctx // it is sent nowhere
	if err != nil {
		return nil
	}
	r.URL.Path, r.RequestURI = path, path
	r.Header.Set("X-TD-Write-Key", "1/a")
	return r
}

// takesAll reports whether matchers look at nothing but the host and let every call
// through.
func (c *callForm) takesAll(sets caddyhttp.RawMatcherSets) bool {
	for _, set := range sets {
		for name, matcher := range set {
			if name != "host" && !c.takes(name, matcher) {
				return false
			}
		}
	}
	return true
}

// checkPath finds events that lose their path on the way.
func checkPath(e *examined) []finding {
	places := e.ways(func(b *foundBlock) bool {
		r := sampleCall(b.path)
		if b.path == "" || r == nil {
			return false
		}
		_, refused := postback.ReadCall(r, postback.AllSurfaces)
		return refused != nil
	})
	if places == "" {
		return nil
	}
	return []finding{{
		losesRecords,
		"The path of events is changed before td_postback sees it (by `handle_path`, `uri` or `rewrite`), and is then no event's: every event is refused, at " + places + ".",
		"Leave the path as callers send it: `handle /postback/*` in place of `handle_path /postback/*`, and a path of its own for `uri` or `rewrite`, such as `uri /old/* strip_prefix /old`.",
	}}
}

// checkPassword finds callers that are asked for a password.
func checkPassword(e *examined) []finding {
	places := e.ways(func(b *foundBlock) bool { return b.password })
	if places == "" {
		return nil
	}
	return []finding{{
		losesRecords,
		"`basic_auth` asks every caller for a name and a password before td_postback sees the record, at " + places + ". Callers of the legacy host have none: they get 401, and their records are lost.",
		"Give `basic_auth` a path of its own, such as `basic_auth /admin/* {`.",
	}}
}

// checkBodySize finds bodies that td_postback would take and that do not come so
// far.
func checkBodySize(e *examined) (all []finding) {
	small := func(b *foundBlock) bool {
		return b.form.surface != "mobile" && b.maxBody > 0 && b.maxBody < b.handler.MaxBody
	}
	if places := e.ways(small); places != "" {
		all = append(all, finding{
			losesRecords,
			"`request_body` lets only smaller bodies through than td_postback takes (`max_body`), at " + places + ". A record between the two sizes gets 413 and is lost.",
			"Take `request_body` out, or give it a path of its own, such as `request_body /upload/* {`. The limit for records is `max_body` in td_postback.",
		})
	}
	tooSmallForApps := func(b *foundBlock) bool {
		told := slices.ContainsFunc(e.blocks, func(other *foundBlock) bool { return other.place() == b.place() && small(other) })
		return !told && b.form.surface == "mobile" && b.maxBody > 0 && b.maxBody < postback.MaxKeenBody
	}
	if places := e.ways(tooSmallForApps); places != "" {
		all = append(all, finding{
			bites,
			"`request_body` lets only smaller bodies through than apps send, at " + places + ". Old apps send all of their events at once, in up to 32 MiB. They get 413 then, and send the same again whenever they are used.",
			"Take `request_body` out, or set its `max_size` to 32MiB or more. If no app sends here, say so in td_postback: `surfaces postback js`.",
		})
	}
	return all
}
