package caddymodule

import (
	"bytes"
	"encoding/json"
	"maps"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddytls"
)

// This file finds the td_postback blocks in a configuration that is only read,
// and what stands around each of them. Nothing is provisioned: the doctor must
// not open what the configuration names, such as log files.

// examined is a configuration as the doctor sees it.
type examined struct {
	json   bool // rather than a Caddyfile, for the advice
	closed bool // there is no admin endpoint
	http   caddyhttp.App
	logs   map[string]*caddy.CustomLog
	blocks []*foundBlock
	others []*foundBlock // the blocks again, as the calls of other forms come to them

	certificates caddytls.FileLoader // which Caddy loads at the start
}

// foundBlock is a td_postback handler and its surroundings.
type foundBlock struct {
	server   *caddyhttp.Server
	handler  *Handler  // with its defaults
	problem  error     // why Caddy would refuse it
	form     *callForm // of the calls that come here
	position           // where it stands
}

// position is how a request comes to a place in the routes.
type position struct {
	hosts      []string // of the site; none for every host
	narrowed   bool     // by a matcher other than of hosts
	shadow     string   // what answers every event before it comes here
	redirected bool     // some requests are sent to https before
	behind     []string // what else could answer, behind this place
	inside     bool     // of a site
	way                 // what events have come through
}

// examine reads a configuration in JSON.
func examine(config []byte) (*examined, error) {
	var all caddy.Config
	if err := json.Unmarshal(config, &all); err != nil {
		return nil, err
	}
	e := &examined{closed: all.Admin != nil && all.Admin.Disabled, logs: map[string]*caddy.CustomLog{}}
	if all.Logging != nil && all.Logging.Logs != nil {
		e.logs = all.Logging.Logs
	}
	if raw, ok := all.AppsRaw["http"]; ok {
		if err := json.Unmarshal(raw, &e.http); err != nil {
			return nil, err
		}
	}
	if raw, ok := all.AppsRaw["tls"]; ok {
		var app struct {
			Certificates struct {
				Files caddytls.FileLoader `json:"load_files"`
			}
		}
		if err := json.Unmarshal(raw, &app); err != nil {
			return nil, err
		}
		e.certificates = app.Certificates.Files
	}
	for _, name := range e.serverNames() {
		server := e.http.Servers[name]
		for _, form := range callForms {
			newWalk(e, server, form).routes(server.Routes, position{way: way{path: form.sample()}})
		}
	}
	return e, nil
}

// serverNames are the names of the servers, in a fixed order.
func (e *examined) serverNames() []string {
	names := make([]string, 0, len(e.http.Servers))
	for name, server := range e.http.Servers {
		if server != nil {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// walk goes through the routes of a server, as the calls of a form do.
type walk struct {
	*examined
	server *caddyhttp.Server
	form   *callForm
	named  map[string]*caddyhttp.Route // which may be invoked here
}

func newWalk(e *examined, server *caddyhttp.Server, form *callForm) *walk {
	return &walk{e, server, form, server.NamedRoutes}
}

// routes visits the routes that lead to a td_postback.
func (w *walk) routes(routes caddyhttp.RouteList, at position) {
	for i, route := range routes {
		if !w.holds(route.HandlersRaw) || w.form != callForms[0] && !w.form.mayMatch(route.MatcherSetsRaw, nil) {
			continue
		}
		here := at
		here.redirected = at.redirected || slices.ContainsFunc(routes[:i], func(earlier caddyhttp.Route) bool {
			return w.form.mayMatch(earlier.MatcherSetsRaw, route.MatcherSetsRaw) && w.redirects(earlier.HandlersRaw)
		})
		if at.shadow == "" {
			here.shadow = w.shadow(routes[:i], route)
		}
		if route.Terminal {
			here.behind = nil
		} else {
			here.behind = slices.Concat(w.namesBehind(routes[i+1:], route.Group), at.behind)
		}
		w.passRoutes(routes[:i], route, &here.way)
		here.narrow(route.MatcherSetsRaw, w.form)
		here.inside = true
		w.handlers(route.HandlersRaw, here)
	}
}

// shadow is what answers every event that would come through these routes to a
// later one, or "". A redirect is none: that is a finding of its own.
func (w *walk) shadow(routes caddyhttp.RouteList, later caddyhttp.Route) string {
	left := map[string]bool{} // groups of which some events take a route and go on
	for _, route := range routes {
		if left[route.Group] || !w.form.mayMatch(route.MatcherSetsRaw, later.MatcherSetsRaw) || w.redirects(route.HandlersRaw) {
			continue
		}
		by := w.answerer(route.HandlersRaw)
		sameGroup := route.Group != "" && route.Group == later.Group
		left[route.Group] = by == "" && route.Group != "" && !sameGroup
		switch {
		case !w.form.covers(route.MatcherSetsRaw, later.MatcherSetsRaw):
		case by != "":
			return by
		case (sameGroup || route.Terminal) && !w.holds(route.HandlersRaw):
			return "handle"
		}
	}
	return ""
}

// narrow notes the matchers that lead here.
func (at *position) narrow(sets caddyhttp.RawMatcherSets, form *callForm) {
	if !form.takesAll(sets) {
		at.path = "" // other calls come here
	}
	for _, set := range sets {
		for name := range set {
			at.narrowed = at.narrowed || name != "host"
		}
		if len(at.hosts) == 0 || !at.inside {
			at.hosts = append(slices.Clip(at.hosts), texts(set["host"])...)
		}
	}
}

// handlers visits the handlers of a route, in their order.
func (w *walk) handlers(handlers []json.RawMessage, at position) {
	for i, raw := range handlers {
		here := at
		here.behind = slices.Concat(names(handlers[i+1:]), at.behind)
		if handlerName(raw) == directive {
			w.found(raw, here)
		} else {
			routes, within := w.inner(raw)
			within.routes(routes, here)
		}
		if at.shadow == "" {
			at.shadow = w.answerer(handlers[i : i+1])
		}
		at.redirected = at.redirected || w.redirects(handlers[i:i+1])
		w.pass(handlers[i:i+1], &at.way)
	}
}

// found notes a td_postback handler.
func (w *walk) found(raw json.RawMessage, at position) {
	b := &foundBlock{server: w.server, form: w.form, position: at}
	b.handler, b.problem = readBlock(raw)
	if b.problem == nil {
		b.problem = b.handler.Validate()
	}
	switch {
	case w.form == callForms[0]:
		w.blocks = append(w.blocks, b)
	case slices.Contains(b.handler.Surfaces, w.form.surface):
		w.others = append(w.others, b)
	}
}

// readBlock reads the options of a td_postback handler, as strictly as Caddy would.
func readBlock(raw json.RawMessage) (h *Handler, err error) {
	h = new(Handler)
	var options map[string]json.RawMessage
	if err = json.Unmarshal(raw, &options); err == nil {
		delete(options, "handler")
		raw, _ = json.Marshal(options) // it was JSON before
		err = caddy.StrictUnmarshalJSON(raw, h)
	}
	h.applyDefaults()
	return h, err
}

// inner are the routes in a handler, and how to walk on in them: a named route is
// not invoked again within itself.
func (w *walk) inner(raw json.RawMessage) (caddyhttp.RouteList, *walk) {
	switch handlerName(raw) {
	case "subroute":
		var sub caddyhttp.Subroute
		if json.Unmarshal(raw, &sub) == nil {
			return sub.Routes, w
		}
	case "invoke":
		var invoke caddyhttp.Invoke
		if json.Unmarshal(raw, &invoke) == nil && w.named[invoke.Name] != nil {
			others := maps.Clone(w.named)
			delete(others, invoke.Name)
			return caddyhttp.RouteList{*w.named[invoke.Name]}, &walk{w.examined, w.server, w.form, others}
		}
	}
	return nil, w
}

// anyInner reports whether one of the routes in a handler is so.
func (w *walk) anyInner(raw json.RawMessage, is func(*walk, caddyhttp.Route) bool) bool {
	routes, within := w.inner(raw)
	return slices.ContainsFunc(routes, func(r caddyhttp.Route) bool { return is(within, r) })
}

// holds reports whether a td_postback is in these handlers.
func (w *walk) holds(handlers []json.RawMessage) bool {
	return slices.ContainsFunc(handlers, func(raw json.RawMessage) bool {
		return handlerName(raw) == directive ||
			w.anyInner(raw, func(w *walk, r caddyhttp.Route) bool { return w.holds(r.HandlersRaw) })
	})
}

// directives has the Caddyfile's names of handlers that answer every request.
var directives = map[string]string{
	"static_response": "respond", "error": "error", "metrics": "metrics",
	"reverse_proxy": "reverse_proxy", "file_server": "file_server", "copy_response": "copy_response",
	consoleDirective: consoleDirective,
}

// passesOn are the handlers that leave the answer to the next one.
var passesOn = map[string]bool{
	"": true, "acme_server": true, "authentication": true, "encode": true, "headers": true, "intercept": true,
	"log_append": true, "map": true, "push": true, "request_body": true, "rewrite": true, "templates": true,
	"timeouts": true, "tracing": true, "vars": true, "copy_response_headers": true,
}

// answerer is the first of these handlers that answers every event, as the
// Caddyfile calls it, or "".
func (w *walk) answerer(handlers []json.RawMessage) string {
	for _, raw := range handlers {
		if name := directives[handlerName(raw)]; name != "" && !goesOn(raw) {
			return name
		}
		routes, within := w.inner(raw)
		if name := within.shadow(routes, caddyhttp.Route{}); name != "" {
			return name
		}
	}
	return ""
}

// goesOn reports whether a handler of a kind that answers may leave a request to
// the next handler: a file server what it does not have, and a proxy what another
// server has allowed, as forward_auth does.
func goesOn(raw json.RawMessage) bool {
	var options struct {
		PassThru       bool              `json:"pass_thru"`
		HandleResponse []json.RawMessage `json:"handle_response"`
	}
	_ = json.Unmarshal(raw, &options) // one that cannot be read fails the load
	switch handlerName(raw) {
	case "file_server":
		return options.PassThru
	case "reverse_proxy":
		return len(options.HandleResponse) > 0
	}
	return false
}

// redirects reports whether handlers send requests to https.
func (w *walk) redirects(handlers []json.RawMessage) bool {
	return slices.ContainsFunc(handlers, func(raw json.RawMessage) bool {
		return redirect(raw) || w.anyInner(raw, func(w *walk, r caddyhttp.Route) bool { return w.redirects(r.HandlersRaw) })
	})
}

// redirect reports whether a handler is a redirect to https.
func redirect(raw json.RawMessage) bool {
	var r caddyhttp.StaticResponse
	return handlerName(raw) == "static_response" && json.Unmarshal(raw, &r) == nil &&
		strings.HasPrefix(string(r.StatusCode), "3") && strings.HasPrefix(r.Headers.Get("Location"), "https://")
}

// answersAll reports whether every request that comes to these routes gets an
// answer that is not Caddy's empty 200.
func (w *walk) answersAll(routes caddyhttp.RouteList) bool {
	return slices.ContainsFunc(routes, func(r caddyhttp.Route) bool {
		return everyPath(r.MatcherSetsRaw) && w.answersEach(r.HandlersRaw)
	})
}

// answersEach reports the same of the handlers of a route. A handler that the
// doctor does not know may answer.
func (w *walk) answersEach(handlers []json.RawMessage) bool {
	return slices.ContainsFunc(handlers, func(raw json.RawMessage) bool {
		switch name := handlerName(raw); name {
		case "subroute", "invoke":
			routes, within := w.inner(raw)
			return within.answersAll(routes)
		default:
			return !passesOn[name] && !goesOn(raw)
		}
	})
}

// namesBehind are the handlers of later routes. Of a group, only one route runs.
func (w *walk) namesBehind(later caddyhttp.RouteList, group string) (all []string) {
	for _, route := range later {
		if group == "" || route.Group != group {
			all = append(all, names(route.HandlersRaw)...)
		}
	}
	return all
}

// names are those of the handlers that may answer, as the Caddyfile calls them.
func names(handlers []json.RawMessage) (all []string) {
	for _, raw := range handlers {
		switch name := handlerName(raw); {
		case name == "subroute":
			all = append(all, "handle")
		case directives[name] != "":
			all = append(all, directives[name])
		case !passesOn[name]:
			all = append(all, name)
		}
	}
	return all
}

// handlerName is the module's name of a handler.
func handlerName(raw json.RawMessage) string {
	var head struct {
		Handler string `json:"handler"`
	}
	_ = json.Unmarshal(raw, &head) // or it has no name
	return head.Handler
}

// sameIn reports whether each of these sets has this matcher.
func sameIn(sets caddyhttp.RawMatcherSets, name string, matcher json.RawMessage) bool {
	return !slices.ContainsFunc(sets, func(set caddy.ModuleMap) bool { return !bytes.Equal(set[name], matcher) })
}

// sharesHost reports whether one request may match both, as far as hosts go.
func sharesHost(set caddy.ModuleMap, later caddyhttp.RawMatcherSets) bool {
	hosts := texts(set["host"])
	return len(hosts) == 0 || len(later) == 0 || slices.ContainsFunc(later, func(other caddy.ModuleMap) bool {
		others := texts(other["host"])
		return len(others) == 0 || slices.ContainsFunc(hosts, func(host string) bool { return slices.Contains(others, host) })
	})
}

// everyPath reports whether matchers let every request through.
func everyPath(sets caddyhttp.RawMatcherSets) bool {
	return len(sets) == 0 || slices.ContainsFunc(sets, func(set caddy.ModuleMap) bool {
		paths := texts(set["path"])
		return len(set) == 0 || len(set) == 1 && (slices.Contains(paths, "*") || slices.Contains(paths, "/*"))
	})
}

// texts reads an array of texts, and nothing else.
func texts(raw json.RawMessage) (values []string) {
	if json.Unmarshal(raw, &values) != nil {
		return nil
	}
	return values
}
