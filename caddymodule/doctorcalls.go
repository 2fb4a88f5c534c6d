package caddymodule

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/td-postback/gateway/postback"
)

// This file follows the calls of every legacy surface through the routes of a site: a
// matcher that was right for Postback alone keeps tags and apps away.

// callForm is a way in which legacy callers send records, as far as a matcher can tell
// it from others.
type callForm struct {
	surface string // of postback.SurfaceNames
	callers string // who sends so
	method  string
	path    string
	below   bool // names follow the path
}

// callForms has them all. The first one is that of most callers.
var callForms = []*callForm{
	{"postback", "servers and devices", http.MethodPost, "/postback/v3/event/", true},
	{"postback", "pixels", http.MethodGet, "/postback/v3/event/", true},
	{"js", "script tags", http.MethodGet, "/js/v3/event/", true},
	{"js", "pages and servers", http.MethodPost, "/js/v3/event/", true},
	{"js", "scripts", http.MethodPost, "/js/v3/event", false},
	{"mobile", "Android apps", http.MethodPost, "/android/v3/event", false},
	{"mobile", "iOS apps", http.MethodPost, "/ios/v3/event", false},
}

// String names a form, for findings.
func (c *callForm) String() string {
	if c.below {
		return fmt.Sprintf("%s (%s %sDATABASE/TABLE)", c.callers, c.method, c.path)
	}
	return fmt.Sprintf("%s (%s %s)", c.callers, c.method, c.path)
}

// sample is the path of a call before anything changes it.
func (c *callForm) sample() string {
	if c.below {
		return c.path + "db/table"
	}
	return c.path
}

// takes reports whether a matcher lets each call through.
func (c *callForm) takes(name string, matcher json.RawMessage) bool {
	switch name {
	case "path":
		return slices.ContainsFunc(texts(matcher), func(pattern string) bool {
			prefix, wide := strings.CutSuffix(strings.ToLower(pattern), "*")
			return wide && strings.HasPrefix(c.path, prefix) || !c.below && prefix == c.path
		})
	case "method":
		return slices.Contains(texts(matcher), c.method)
	case "not":
		var sets caddyhttp.RawMatcherSets
		return json.Unmarshal(matcher, &sets) == nil && len(sets) > 0 && !slices.ContainsFunc(sets, c.may)
	}
	return false
}

// may reports whether a set of matchers may let a call through.
func (c *callForm) may(set caddy.ModuleMap) bool {
	if matcher, ok := set["path"]; ok && !slices.ContainsFunc(texts(matcher), c.mayHave) {
		return false
	}
	if matcher, ok := set["method"]; ok && !c.takes("method", matcher) {
		return false
	}
	var not caddyhttp.RawMatcherSets
	return json.Unmarshal(set["not"], &not) != nil || len(not) == 0 || !c.covers(not, nil)
}

// mayHave reports whether a call may have a path of this pattern.
func (c *callForm) mayHave(pattern string) bool {
	pattern = strings.ToLower(pattern)
	i := strings.IndexAny(pattern, "*?[{%") // what stands for something else
	if i < 0 {
		return pattern == c.path || c.below && strings.HasPrefix(pattern, c.path)
	}
	literal := pattern[:i]
	return strings.HasPrefix(c.path, literal) || c.below && strings.HasPrefix(literal, c.path)
}

// covers reports whether what matches a call by later certainly matches it by
// earlier too. Without later, it reports whether earlier matches every call.
func (c *callForm) covers(earlier, later caddyhttp.RawMatcherSets) bool {
	return len(earlier) == 0 || slices.ContainsFunc(earlier, func(set caddy.ModuleMap) bool {
		for name, matcher := range set {
			if !c.takes(name, matcher) && (len(later) == 0 || !sameIn(later, name, matcher)) {
				return false
			}
		}
		return true
	})
}

// mayMatch reports whether one call may match both.
func (c *callForm) mayMatch(earlier, later caddyhttp.RawMatcherSets) bool {
	return len(earlier) == 0 || slices.ContainsFunc(earlier, func(set caddy.ModuleMap) bool {
		return c.may(set) && sharesHost(set, later)
	})
}

// ways names the places where calls meet what is tells, and which calls, where they
// are not those of Postback.
func (e *examined) ways(is func(*foundBlock) bool) string {
	var all []string
	paths := map[string][]string{} // by place
	for _, b := range slices.Concat(e.blocks, e.others) {
		place := b.place()
		switch {
		case !is(b):
		case !slices.Contains(all, place):
			all = append(all, place)
			if b.form != callForms[0] {
				paths[place] = []string{b.form.path}
			}
		case paths[place] != nil && !slices.Contains(paths[place], b.form.path):
			paths[place] = append(paths[place], b.form.path)
		}
	}
	for i, place := range all {
		if paths[place] != nil {
			all[i] += " (calls to " + strings.Join(paths[place], ", ") + ")"
		}
	}
	return strings.Join(all, " and ")
}

// fate is what becomes of a call.
type fate uint8

const (
	unanswered fate = iota // nothing answers it
	arrives                // at a td_postback that serves it, or at what the doctor cannot judge
	refused                // its caller is told
	swallowed              // its caller takes it for taken
)

// fateIn is what certainly becomes of a call in these routes. later is what has
// matched it before.
func (w *walk) fateIn(routes caddyhttp.RouteList, later caddyhttp.RawMatcherSets) fate {
	taken := map[string]bool{}
	for _, route := range routes {
		if taken[route.Group] || !w.form.mayMatch(route.MatcherSetsRaw, later) {
			continue
		}
		is := w.fateOf(route.HandlersRaw)
		certain := w.form.covers(route.MatcherSetsRaw, later)
		switch {
		case is == arrives, certain && is != unanswered:
			return is
		case certain && route.Terminal:
			return unanswered
		case certain:
			taken[route.Group] = route.Group != ""
		}
	}
	return unanswered
}

// fateOf is the same for the handlers of a route.
func (w *walk) fateOf(handlers []json.RawMessage) fate {
	for _, raw := range handlers {
		is := unanswered
		switch name := handlerName(raw); {
		case name == directive:
			is = w.fateAt(raw)
		case name == "subroute", name == "invoke":
			routes, within := w.inner(raw)
			is = within.fateIn(routes, nil)
		case name == "rewrite" && w.rewritten(raw, w.form.sample()) != w.form.sample():
			is = arrives
		case passesOn[name], goesOn(raw):
		case name == "static_response":
			is = responds(raw)
		case name == "metrics":
			is = swallowed
		case name == "error", name == "file_server", name == consoleDirective:
			is = refused
		default:
			is = arrives
		}
		if is != unanswered {
			return is
		}
	}
	return unanswered
}

// fateAt is the same for a td_postback.
func (w *walk) fateAt(raw json.RawMessage) fate {
	h, _ := readBlock(raw) // what cannot be read fails the load
	switch {
	case slices.Contains(h.Surfaces, w.form.surface), h.Migrate != nil: // the rest goes to the legacy host
		return arrives
	case h.PassThru, h.Handoff:
		return unanswered
	default:
		return refused
	}
}

// responds is the same for a static response. A redirect is a finding of its own.
func responds(raw json.RawMessage) fate {
	var r caddyhttp.StaticResponse
	_ = json.Unmarshal(raw, &r)
	switch {
	case redirect(raw):
		return unanswered
	case !r.Abort && (r.StatusCode == "" || strings.HasPrefix(string(r.StatusCode), "2")):
		return swallowed
	default:
		return refused
	}
}

// site is what has the same hosts and addresses.
type site struct {
	place  string
	blocks []*foundBlock
}

// sites has those in which something comes to td_postback.
func (e *examined) sites() (all []*site) {
	by := map[string]*site{}
	for _, b := range e.blocks {
		place := b.place()
		if by[place] == nil {
			by[place] = &site{place: place}
			all = append(all, by[place])
		}
		by[place].blocks = append(by[place].blocks, b)
	}
	return slices.DeleteFunc(all, func(s *site) bool {
		return slices.ContainsFunc(s.blocks, func(b *foundBlock) bool { return b.shadow != "" || b.problem != nil })
	})
}

// has reports whether a block of the site is so.
func (s *site) has(is func(*Handler) bool) bool {
	return slices.ContainsFunc(s.blocks, func(b *foundBlock) bool { return is(b.handler) })
}

// serves reports whether td_postback serves a surface there.
func (s *site) serves(surface string) bool {
	return s.has(func(h *Handler) bool { return slices.Contains(h.Surfaces, surface) })
}

// missed are the calls to a site that do not come to td_postback, by what becomes of
// them. That nothing answers them is a finding of its own, or td_postback answers 404.
func (e *examined) missed(s *site) map[fate][]*callForm {
	first := s.blocks[0]
	silent := !e.takesEveryPath(first.server) || s.has(func(h *Handler) bool { return h.PassThru || h.Handoff })
	var hosts caddyhttp.RawMatcherSets
	if len(first.hosts) > 0 {
		list, _ := json.Marshal(first.hosts) // of texts
		hosts = caddyhttp.RawMatcherSets{{"host": list}}
	}
	missed := map[fate][]*callForm{}
	for _, form := range callForms {
		is := newWalk(e, first.server, form).fateIn(first.server.Routes, hosts)
		switch {
		case is == unanswered && !silent:
			is = swallowed
		case is == refused && !s.serves(form.surface):
			continue
		}
		missed[is] = append(missed[is], form)
	}
	return missed
}

// missing is what is found of calls that do not come to td_postback.
type missing struct {
	is       fate
	calls    string
	surfaces string // those of which all calls come
}

// checkCalls finds calls that a site keeps from td_postback.
func checkCalls(e *examined) (all []finding) {
	var found []missing
	places := map[missing][]string{}
	for _, s := range e.sites() {
		missed := e.missed(s)
		for _, is := range []fate{swallowed, refused} {
			if len(missed[is]) == 0 {
				continue
			}
			m := missing{is, namesOf(missed[is]), s.surfacesBut(slices.Concat(missed[swallowed], missed[refused]))}
			if places[m] == nil {
				found = append(found, m)
			}
			places[m] = append(places[m], s.place)
		}
	}
	for _, m := range found {
		all = append(all, e.findingOf(m, strings.Join(places[m], " and ")))
	}
	return all
}

// namesOf names calls.
func namesOf(forms []*callForm) string {
	names := make([]string, len(forms))
	for i, form := range forms {
		names[i] = form.String()
	}
	return strings.Join(names, ", ")
}

// surfacesBut are the surfaces that td_postback serves there, but for those of which
// all calls are missed; empty if there is none, or if of one only some are.
func (s *site) surfacesBut(missed []*callForm) string {
	var left []string
	for _, surface := range postback.SurfaceNames {
		switch n := countOf(missed, surface); {
		case n == 0 && s.serves(surface):
			left = append(left, surface)
		case n > 0 && n < countOf(callForms, surface):
			return ""
		}
	}
	return strings.Join(left, " ")
}

// countOf is how many of these forms a surface has.
func countOf(forms []*callForm, surface string) (n int) {
	for _, c := range forms {
		if c.surface == surface {
			n++
		}
	}
	return n
}

// findingOf is what the doctor says of calls that do not come to td_postback.
func (e *examined) findingOf(m missing, places string) finding {
	if m.is == swallowed {
		return finding{
			losesRecords,
			fmt.Sprintf("Something other than td_postback answers these calls with success, at %s: %s. Their records are lost, and nobody sees an error. Old Android apps then send all of their events again at once, without end.", places, m.calls),
			e.advice("Let them through to td_postback:\n"+letThrough+"\nor answer them with 404 before anything else does: `respond /android/v3/event* 404`, and the same for the others.",
				"Let them through to td_postback, or put a route with their path before the others, and in it:\n\t"+`{"handler": "static_response", "status_code": 404}`),
		}
	}
	none, option := "", ""
	if m.surfaces != "" {
		list, _ := json.Marshal(strings.Fields(m.surfaces)) // of texts
		none = "\nIf nobody sends them, say so in td_postback: `surfaces " + m.surfaces + "`."
		option = fmt.Sprintf(` If nobody sends them, say so in td_postback: "surfaces": %s.`, list)
	}
	return finding{
		bites,
		fmt.Sprintf("td_postback would serve these calls, but something else refuses them before, at %s: %s. Tags and scripts lose their records then, and apps the oldest of theirs.", places, m.calls),
		e.advice("Let them through to td_postback, by no matcher or by one for all of them:\n"+letThrough+none, "Let them through to td_postback, by no matcher or by one for all of their paths."+option),
	}
}

// letThrough lets all calls through to td_postback, in a Caddyfile.
const letThrough = "\t@events path " + eventPaths + "\n\thandle @events {\n\t\ttd_postback us01\n\t}"

// eventPaths are the paths of all calls, as a Caddyfile's matcher has them.
const eventPaths = "/postback/* /js/* /android/* /ios/*"
