package caddymodule

import (
	"encoding/json"
	"slices"
	"sync"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
)

// This file finds handlers that stand before a td_postback and answer
// everything: the callers get an answer, often a 200, and no event is forwarded.

// swallows names, for each td_postback that no request can reach, the handler
// that answers before it, as a Caddyfile calls it. Routes may be raw, provisioned
// or both. It names only what is certain: a handler with a matcher may be meant.
func swallows(routes caddyhttp.RouteList) []string {
	var found []string
	search(routes, "", &found)
	return found
}

// search walks a list of routes in the order in which a request does. by is what
// has answered every request before, if anything. It returns what has answered
// every request at the end of the list.
func search(routes caddyhttp.RouteList, by string, found *[]string) string {
	leaves := map[string]bool{} // groups of which a request may take a route and go on
	taken := map[string]bool{}  // groups of which every request has taken a route
	for _, route := range routes {
		answered := by
		if answered == "" && taken[route.Group] {
			answered = "handle"
		}
		reached := answered == ""
		for _, handler := range handlersOf(route) {
			answered = handler.search(answered, found)
		}
		grouped := route.Group != ""
		switch {
		case !reached || leaves[route.Group]:
		case !matchesAll(route):
			leaves[route.Group] = grouped && answered == ""
		default:
			taken[route.Group] = grouped
			if by = answered; by == "" && route.Terminal {
				by = "terminal route"
			}
		}
	}
	return by
}

// shadowing is what of a handler decides whether anything behind it is reached.
type shadowing struct {
	Handler        string              `json:"handler"`
	Routes         caddyhttp.RouteList `json:"routes"`          // of a subroute
	PassThru       bool                `json:"pass_thru"`       // of a file server, or of ours
	HandleResponse []json.RawMessage   `json:"handle_response"` // of a proxy: it may go on, as forward_auth does
}

// search is the function of this name for one handler.
func (s *shadowing) search(by string, found *[]string) string {
	answers := ""
	switch s.Handler {
	case directive:
		if by != "" && by != directive {
			*found = append(*found, by)
		}
		if !s.PassThru {
			answers = directive // which loses nothing
		}
	case "subroute":
		answers = search(s.Routes, by, found)
	case "static_response":
		answers = "respond"
	case "error", "metrics", consoleDirective:
		answers = s.Handler
	case "file_server":
		if !s.PassThru {
			answers = s.Handler
		}
	case "reverse_proxy":
		if len(s.HandleResponse) == 0 {
			answers = s.Handler
		}
	}
	if by != "" {
		return by
	}
	return answers
}

// handlersOf reads a route's handlers, be they JSON still or modules.
func handlersOf(route caddyhttp.Route) []shadowing {
	var handlers []shadowing
	for _, raw := range route.HandlersRaw {
		var handler shadowing
		_ = json.Unmarshal(raw, &handler) // one that cannot be read fails the load elsewhere
		handlers = append(handlers, handler)
	}
	for _, module := range route.Handlers {
		switch module := module.(type) {
		case *Handler:
			handlers = append(handlers, shadowing{Handler: directive, PassThru: module.PassThru})
		case *caddyhttp.Subroute:
			handlers = append(handlers, shadowing{Handler: "subroute", Routes: module.Routes})
		case *caddyhttp.StaticResponse, *caddyhttp.StaticError, *Console:
			handlers = append(handlers, shadowing{Handler: caddy.GetModuleName(module)})
		}
	}
	return handlers
}

// matchesAll reports whether every request takes a route that it comes to.
func matchesAll(route caddyhttp.Route) bool {
	for _, set := range route.MatcherSetsRaw {
		var paths caddyhttp.MatchPath
		if len(set) == 1 && json.Unmarshal(set["path"], &paths) == nil && takesAll(paths) {
			return true
		}
	}
	for _, set := range route.MatcherSets {
		if paths, ok := onlyOf(set).(*caddyhttp.MatchPath); ok && takesAll(*paths) {
			return true
		}
	}
	return len(route.MatcherSetsRaw) == 0 && len(route.MatcherSets) == 0
}

// onlyOf is the matcher of a set that has no other.
func onlyOf(set caddyhttp.MatcherSet) any {
	if len(set) == 1 {
		return set[0]
	}
	return nil
}

func takesAll(paths caddyhttp.MatchPath) bool {
	return slices.Contains(paths, "*") || slices.Contains(paths, "/*")
}

// searched has the servers of which warnOfShadow has told.
var searched sync.Map // of *caddyhttp.Server

// warnOfShadow tells the operator that what stands before a td_postback of this
// server takes its requests.
func (h *Handler) warnOfShadow() {
	if h.server == nil {
		return
	}
	if _, looked := searched.LoadOrStore(h.server, nil); looked {
		return // the first td_postback of a server sees the others too
	}
	for _, by := range swallows(h.server.Routes) {
		h.logger.Warn("no event reaches td_postback: another handler of its site answers everything before it",
			zap.String("handler", by),
			zap.String("advice", "give that handler a matcher, such as a path, or put td_postback before it into a route block, or each into a handle block of its own"))
	}
}
