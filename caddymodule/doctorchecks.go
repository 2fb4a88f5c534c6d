package caddymodule

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/dustin/go-humanize"

	"github.com/td-postback/gateway/postback"
)

// This file says what will bite in a configuration. Its functions are pure: what
// touches the machine or the network is in doctorprobe.go.

// severity orders findings, the worst first.
type severity int

const (
	losesRecords severity = iota
	showsKeys
	bites
	inOrder // looked at, and right
)

// finding is one thing that the doctor has to say.
type finding struct {
	severity severity
	what     string // is wrong, in plain words
	instead  string // what to write or do
}

// checkConfiguration says what will bite, in the order of the checks.
func checkConfiguration(e *examined) []finding {
	if len(e.blocks) == 0 {
		return []finding{{
			losesRecords,
			"There is no td_postback in this configuration: no record goes to Treasure Data.",
			e.advice("Write `td_postback us01`, with your region, into the site that your callers reach. Caddyfile.example is a whole configuration.",
				"Write {\"handler\": \"td_postback\", \"region\": \"us01\"}, with your region, into the route that your callers reach. The JSON is in docs/reference.md."),
		}}
	}
	var all []finding
	for _, check := range []func(*examined) []finding{
		checkShadows, checkCalls, checkPath, checkPassword, checkBodySize, checkOptions, checkRedirects, checkCatchAll, checkAuto, checkSpools, checkSpoolDir, checkMigrate, checkRollback, checkState, checkNext,
		checkHeaderSize, checkHandover, checkLogs, checkUpstream, checkGrace, checkTimeouts, checkUnreached, checkPlainHTTP, checkProxies,
	} {
		all = append(all, check(e)...)
	}
	return all
}

// places names the blocks of which is holds, or "".
func (e *examined) places(is func(*foundBlock) bool) string {
	var all []string
	for _, b := range e.blocks {
		if place := b.place(); is(b) && !slices.Contains(all, place) {
			all = append(all, place)
		}
	}
	return strings.Join(all, " and ")
}

// place is where a block stands, such as "a.example on :80".
func (b *foundBlock) place() string {
	hosts := "every host"
	if len(b.hosts) > 0 {
		hosts = strings.Join(b.hosts, ", ")
	}
	return hosts + " on " + strings.Join(b.server.Listen, ", ")
}

// checkShadows finds what answers before td_postback does.
func checkShadows(e *examined) (all []finding) {
	for _, name := range []string{"respond", "error", "metrics", "reverse_proxy", "file_server", "copy_response", consoleDirective, "handle"} {
		if places := e.places(func(b *foundBlock) bool { return b.shadow == name }); places != "" {
			all = append(all, finding{
				losesRecords,
				fmt.Sprintf("`%s` answers every call before td_postback sees it, at %s. Callers take that for success, and no record arrives.", name, places),
				fmt.Sprintf("Give `%s` a path of its own, such as `%s /healthz`, or put td_postback before it: into the first `handle` or `route` block of the site.", name, name),
			})
		}
	}
	return all
}

// checkOptions finds what Caddy refuses to start with.
func checkOptions(e *examined) (all []finding) {
	said := map[string]bool{}
	for _, b := range e.blocks {
		if b.problem == nil || said[b.problem.Error()] {
			continue
		}
		said[b.problem.Error()] = true
		all = append(all, finding{
			losesRecords,
			"The gateway does not start with this configuration: " + b.problem.Error() + ".",
			"Write what the message allows. All options are in docs/reference.md.",
		})
	}
	return all
}

// advice is what to write: in a Caddyfile, or else in JSON, where a place is
// apps.http.servers.NAME.max_header_bytes or the like.
func (e *examined) advice(caddyfile, inJSON string) string {
	if e.json {
		return inJSON
	}
	return caddyfile
}

// inGlobals says to write lines into the global options.
func inGlobals(lines ...string) string {
	return "Write into the global options, at the top of the Caddyfile:\n\t{\n\t\t" + strings.Join(lines, "\n\t\t") + "\n\t}"
}

// inServers says to write lines into the options of servers.
func inServers(lines ...string) string {
	return inGlobals(slices.Concat([]string{"servers {"}, indented(lines), []string{"}"})...)
}

func indented(lines []string) []string {
	deeper := make([]string, len(lines))
	for i, line := range lines {
		deeper[i] = "\t" + line
	}
	return deeper
}

// httpPort is the port for plain HTTP.
func (e *examined) httpPort() uint {
	if e.http.HTTPPort > 0 {
		return uint(e.http.HTTPPort)
	}
	return caddyhttp.DefaultHTTPPort
}

// listensOn reports whether all of a server's addresses have this port, and
// whether any has.
func listensOn(server *caddyhttp.Server, port uint) (every, some bool) {
	every = true
	for _, listen := range server.Listen {
		address, err := caddy.ParseNetworkAddress(listen)
		if err == nil && address.StartPort <= port && port <= address.EndPort {
			some = true
		} else {
			every = false
		}
	}
	return every, some
}

// checkRedirects finds redirects from http to https: Caddy's own, and those that
// the configuration has.
func checkRedirects(e *examined) []finding {
	what := "%s are redirected to https. Microcontrollers follow no redirect, and a redirected POST loses its body: these records are lost."
	var all []finding
	if places := e.places(e.redirectedByCaddy); places != "" {
		all = append(all, finding{
			losesRecords,
			fmt.Sprintf(what, "Calls over http:// for "+places),
			e.advice(inGlobals("auto_https disable_redirects")+"\nand give the site both addresses:\n\thttp://HOST, https://HOST {",
				"Set apps.http.servers.NAME.automatic_https to {\"disable_redirects\": true}, and give the route to a server that listens on :80, too."),
		})
	}
	if places := e.ways(func(b *foundBlock) bool { return b.redirected }); places != "" {
		all = append(all, finding{
			losesRecords,
			fmt.Sprintf(what, "Calls (by a `redir` or `respond` before td_postback) at "+places),
			"Take the redirect away, or give it a matcher for paths that are no records: `@pages not path " + eventPaths + "`.",
		})
	}
	return all
}

// redirectedByCaddy reports whether Caddy itself sends a block's http:// callers
// to https, as its automatic HTTPS does unless a site of the same name has
// http:// itself.
func (e *examined) redirectedByCaddy(b *foundBlock) bool {
	if !e.hasTLS(b) || b.server.AutoHTTPS != nil && b.server.AutoHTTPS.DisableRedir {
		return false
	}
	return e.lacksPlain(b)
}

// hasTLS reports whether Caddy's automatic HTTPS is for the block's server.
func (e *examined) hasTLS(b *foundBlock) bool {
	plainOnly, _ := listensOn(b.server, e.httpPort())
	disabled := b.server.AutoHTTPS != nil && b.server.AutoHTTPS.Disabled
	return !plainOnly && !disabled && len(b.hosts)+len(b.server.TLSConnPolicies) > 0
}

// lacksPlain reports whether a host of a block has https and no plain HTTP.
func (e *examined) lacksPlain(b *foundBlock) bool {
	if len(b.hosts) == 0 {
		return !e.servesPlain("")
	}
	return slices.ContainsFunc(b.hosts, func(host string) bool {
		skipped := b.server.AutoHTTPS != nil && slices.Contains(b.server.AutoHTTPS.Skip, host)
		return !skipped && !e.servesPlain(host)
	})
}

// servesPlain reports whether a site of this name has plain HTTP. No name is
// that of the sites for every host.
func (e *examined) servesPlain(host string) bool {
	for _, server := range e.http.Servers {
		_, some := listensOn(server, e.httpPort())
		auto := server.AutoHTTPS
		if !some && (auto == nil || !auto.Disabled && !slices.Contains(auto.Skip, host)) {
			continue
		}
		if host == "" || slices.ContainsFunc(server.Routes, func(r caddyhttp.Route) bool {
			return slices.ContainsFunc(r.MatcherSetsRaw, func(set caddy.ModuleMap) bool { return slices.Contains(texts(set["host"]), host) })
		}) {
			return true
		}
	}
	return false
}

// lastRoute answers what no other route has answered, in JSON.
const lastRoute = `{"handle": [{"handler": "static_response", "status_code": 404}]}`

// checkCatchAll finds requests that get Caddy's empty 200.
func checkCatchAll(e *examined) (all []finding) {
	if places := e.places(func(b *foundBlock) bool { return !e.takesEveryHost(b.server) }); places != "" {
		all = append(all, finding{
			losesRecords,
			"A call for any other host gets Caddy's empty 200, which a caller takes for success; the record is lost. The servers without an answer for other hosts: " + places + ".",
			e.advice("Add a site for all other hosts, with the addresses of these servers:\n\thttp://, https:// {\n\t\trespond \"this host is not served here\" 404\n\t}",
				"Add to the end of apps.http.servers.NAME.routes:\n\t"+lastRoute),
		})
	}
	if places := e.places(func(b *foundBlock) bool { return !e.takesEveryPath(b.server) }); places != "" {
		all = append(all, finding{
			losesRecords,
			"A path that nothing in the site takes gets Caddy's empty 200, which a caller takes for success. The site is " + places + ".",
			e.advice("Let td_postback have all paths that nothing else takes, without a matcher (it answers 404 itself), or give each a block of its own (a `respond 404` beside td_postback would run before it):\n"+letThrough+"\n\thandle {\n\t\trespond 404\n\t}",
				"Let td_postback have all paths that nothing else takes, without a matcher (it answers 404 itself), or add behind its route:\n\t"+lastRoute),
		})
	}
	return all
}

// takesEveryHost reports whether a server has an answer for hosts that no site
// has.
func (e *examined) takesEveryHost(server *caddyhttp.Server) bool {
	w := newWalk(e, server, callForms[0])
	return slices.ContainsFunc(server.Routes, func(r caddyhttp.Route) bool {
		return everyPath(r.MatcherSetsRaw) && (w.holds(r.HandlersRaw) || w.answersEach(r.HandlersRaw))
	})
}

// takesEveryPath reports whether the sites of a server that have a td_postback
// answer every path.
func (e *examined) takesEveryPath(server *caddyhttp.Server) bool {
	w := newWalk(e, server, callForms[0])
	for i, r := range server.Routes {
		if w.holds(r.HandlersRaw) && !w.answersEach(r.HandlersRaw) && (r.Terminal || !w.answersAll(server.Routes[i+1:])) {
			return false
		}
	}
	return true
}

// checkAuto finds sites of which region auto knows no host.
func checkAuto(e *examined) []finding {
	places := e.places(func(b *foundBlock) bool {
		return b.handler.Region == postback.RegionAuto && len(b.hosts) > 0 && !slices.ContainsFunc(b.hosts, func(host string) bool {
			_, known := postback.RegionOf(host)
			return known || strings.Contains(host, "*")
		})
	})
	if places == "" {
		return nil
	}
	return []finding{{
		losesRecords,
		"`region auto` goes by the legacy host that callers use, and answers 421 to every call for another host, as at " + places + ".",
		"Write the region in place of auto, such as `td_postback us01`, or give the site the legacy hosts: docs/recipes.md.",
	}}
}

// checkSpools finds blocks that disagree about the spool that they share.
func checkSpools(e *examined) (all []finding) {
	spools, said := map[string]*Spool{}, map[string]bool{}
	for _, b := range e.blocks {
		options := b.handler.Spool
		if options == nil || b.problem != nil {
			continue
		}
		place, err := options.place()
		if err != nil {
			continue // the working directory is gone: nothing starts here
		}
		if other := spools[place]; other != nil && !other.agrees(options) && !said[place] {
			said[place] = true
			all = append(all, finding{
				losesRecords,
				fmt.Sprintf("The gateway does not start: two td_postback blocks have the spool %s, with different options.", place),
				"Give both the same options (only `mode` may differ), or each a `dir` of its own. A snippet that both sites import keeps them alike.",
			})
		}
		spools[place] = options
	}
	return all
}

// checkSpoolDir finds spools whose place depends on where the gateway is started.
func checkSpoolDir(e *examined) (all []finding) {
	for _, b := range e.blocks {
		options := b.handler.Spool
		if b.problem != nil || options == nil || len(options.NATS) > 0 || filepath.IsAbs(options.Dir) {
			continue
		}
		f := finding{
			bites,
			fmt.Sprintf("The spool's directory %s is relative to where the gateway is started: started elsewhere, it does not find the records that it has kept.", options.Dir),
			"Write the whole path into `dir` of `spool`, such as `dir /var/lib/td-postback/spool`.",
		}
		if !slices.Contains(all, f) {
			all = append(all, f)
		}
	}
	return all
}

// noteKeys says which spools hold write keys that can be read: that is right on a
// disk that nobody else reads.
func noteKeys(e *examined) []finding {
	places := e.places(func(b *foundBlock) bool {
		return b.problem == nil && b.handler.Spool != nil && b.handler.Spool.KeyFile == ""
	})
	if places == "" {
		return nil
	}
	return []finding{{
		inOrder,
		"The spool is not encrypted, and its records hold write keys, at " + places + ". Whoever can read or copy its disk can read them.",
		"If others can, write `key_file` into `spool`: docs/spool.md.",
	}}
}

// noteOpen says which blocks let every key through, where others can reach them: that
// is right behind a firewall.
func noteOpen(e *examined) []finding {
	places := e.places(func(b *foundBlock) bool {
		return b.problem == nil && b.handler.Keys == nil && isPublic(b.server.Listen) && !staysHere(b.handler.Upstream)
	})
	if places == "" {
		return nil
	}
	return []finding{{
		inOrder,
		"Every write key may send to every database, at " + places + ". Whoever reaches the gateway can send events to any account through it, and v2 says 200 to wrong keys too.",
		"If others than your callers can reach it, or to find wrong keys, write `keys` into td_postback: docs/keys.md.",
	}}
}

// checkProxies finds servers that believe anybody about a client's address.
func checkProxies(e *examined) []finding {
	places := e.places(func(b *foundBlock) bool {
		var source struct{ Ranges []string }
		return json.Unmarshal(b.server.TrustedProxiesRaw, &source) == nil && slices.ContainsFunc(source.Ranges, tooWide)
	})
	if places == "" {
		return nil
	}
	return []finding{{
		bites,
		"`trusted_proxies` trusts a large part of the internet: anybody there may invent the client address that records and logs have, at " + places + ".",
		e.advice(inServers("trusted_proxies static 192.0.2.0/24")+"\nwith the addresses of your balancer, or take `trusted_proxies` out.",
			"Set the ranges of apps.http.servers.NAME.trusted_proxies to the addresses of your balancer, or take it out."),
	}}
}

// tooWide reports whether a network is larger than those that one owner has: the
// private ones end at 10.0.0.0/8 and fc00::/7.
func tooWide(network string) bool {
	prefix, err := netip.ParsePrefix(network)
	if err != nil {
		return false // it is one address, or fails the load
	}
	return prefix.Addr().Is4() && prefix.Bits() < 8 || prefix.Bits() < 7
}

// checkNext finds handoff and pass_thru with nothing behind them.
func checkNext(e *examined) (all []finding) {
	if places := e.places(func(b *foundBlock) bool { return b.handler.Handoff && len(b.behind) == 0 }); places != "" {
		all = append(all, finding{
			losesRecords,
			"`handoff` leaves the forwarding to the next handler, and there is none, at " + places + ". No record arrives.",
			"Write `reverse_proxy https://us01.records.in.treasuredata.com` (your region's host) behind td_postback, or take `handoff` out: td_postback forwards by itself.",
		})
	}
	if places := e.places(func(b *foundBlock) bool { return b.handler.PassThru && b.handler.Migrate == nil && len(b.behind) == 0 }); places != "" {
		all = append(all, finding{
			bites,
			"`pass_thru` leaves other paths to the next handler, and there is none, at " + places + ".",
			"Take `pass_thru` out, so that other paths get a 404 that says what is wrong, or write the handler for them behind td_postback.",
		})
	}
	return all
}

// The sizes of heads between which a gateway is well off, in bytes.
const (
	caddyHeader   = 16 << 10 // Caddy's default
	generousLimit = 1 << 20  // the examples'
)

// checkHeaderSize finds a limit for URLs and headers that is too low or too high.
func checkHeaderSize(e *examined) (all []finding) {
	if places := e.places(func(b *foundBlock) bool { return b.server.MaxHeaderBytes <= caddyHeader }); places != "" {
		all = append(all, finding{
			losesRecords,
			"A URL and headers of more than 16 KiB together get 431, and the record is lost: pixels carry their record in the URL. This is so at " + places + ".",
			e.advice(inServers("max_header_size 1MiB"), "Set apps.http.servers.NAME.max_header_bytes to 1048576."),
		})
	}
	if places := e.places(func(b *foundBlock) bool { return b.server.MaxHeaderBytes > generousLimit }); places != "" {
		all = append(all, finding{
			bites,
			"Callers may send more than 1 MiB of URL and headers, and each costs that memory before td_postback can count it, at " + places + ".",
			e.advice(inServers("max_header_size 1MiB"), "Set apps.http.servers.NAME.max_header_bytes to 1048576."),
		})
	}
	return all
}

// hasHandover reports whether a server has td_handover.
func hasHandover(server *caddyhttp.Server) bool {
	return slices.ContainsFunc(server.ListenerWrappersRaw, func(raw json.RawMessage) bool {
		var head struct{ Wrapper string }
		return json.Unmarshal(raw, &head) == nil && head.Wrapper == "td_handover"
	})
}

// checkHandover finds reloads that fail requests.
func checkHandover(e *examined) (all []finding) {
	if places := e.places(func(b *foundBlock) bool { return !hasHandover(b.server) }); places != "" {
		all = append(all, finding{
			losesRecords,
			"Each reload and each stop fails the calls that are just coming in, at " + places + ". Legacy callers do not send them again.",
			e.advice(inServers("listener_wrappers {", "\ttd_handover", "}"),
				"Set apps.http.servers.NAME.listener_wrappers to [{\"wrapper\": \"td_handover\"}], or add it before the others.") + "\nThe rest is in docs/reloading.md.",
		})
	}
	if e.http.ShutdownDelay > 0 && e.places(func(b *foundBlock) bool { return hasHandover(b.server) }) != "" {
		all = append(all, finding{
			losesRecords,
			"`shutdown_delay` switches td_handover off, so that each reload and each stop fails calls.",
			e.advice("Take `shutdown_delay` out of the global options.", "Take apps.http.shutdown_delay out."),
		})
	}
	return all
}

// checkGrace finds a stop that waits for ever, or that cuts calls off.
func checkGrace(e *examined) []finding {
	grace := time.Duration(e.http.GracePeriod)
	if grace == 0 {
		return []finding{{
			bites,
			"A stop or reload has no end: one caller that does not read its answer keeps the old process or configuration alive.",
			e.advice(inGlobals("grace_period 40s"), "Set apps.http.grace_period to \"40s\"."),
		}}
	}
	var longest time.Duration
	for _, b := range e.blocks {
		longest = max(longest, time.Duration(b.handler.ResponseTimeout))
	}
	if grace < longest {
		enough := longest + 10*time.Second
		return []finding{{
			bites,
			fmt.Sprintf("`grace_period %s` is shorter than response_timeout (%s): a stop or reload cuts off calls that v2 is about to answer.", grace, longest),
			e.advice(inGlobals(fmt.Sprintf("grace_period %s", enough)), fmt.Sprintf("Set apps.http.grace_period to \"%s\"", enough)) + "\nand let systemd or the container wait longer than that.",
		}}
	}
	return nil
}

// checkTimeouts finds servers that wait for slow bodies for ever.
func checkTimeouts(e *examined) []finding {
	places := e.places(func(b *foundBlock) bool { return b.server.ReadTimeout == 0 })
	if places == "" {
		return nil
	}
	return []finding{{
		bites,
		"A caller may take for ever to send its body, and holds memory of `max_buffered` meanwhile, at " + places + ".",
		e.advice(inServers("timeouts {", "\tread_body 60s", "}"), "Set apps.http.servers.NAME.read_timeout to \"60s\"."),
	}}
}

// checkUpstream finds records that do not go to Treasure Data.
func checkUpstream(e *examined) (all []finding) {
	said := map[string]bool{}
	for _, b := range e.blocks {
		upstream := redactUser(b.handler.Upstream)
		if upstream == "" || b.handler.Handoff || b.problem != nil || said[upstream] {
			continue
		}
		said[upstream] = true
		all = append(all, finding{
			bites,
			fmt.Sprintf("Events go to %s, and not to Treasure Data.", upstream),
			"Take `upstream` out when you have tried enough: then they go to the region's host.",
		})
	}
	return all
}

// checkUnreached finds rules behind td_postback.
func checkUnreached(e *examined) (all []finding) {
	unreached := func(b *foundBlock) bool {
		return len(b.behind) > 0 && !b.narrowed && !b.handler.PassThru && !b.handler.Handoff
	}
	places := e.places(unreached)
	if places == "" {
		return nil
	}
	var behind []string
	for _, b := range e.blocks {
		if unreached(b) {
			behind = append(behind, b.behind...)
		}
	}
	slices.Sort(behind)
	return []finding{{
		bites,
		fmt.Sprintf("`%s` never runs: td_postback answers every path before it, at %s.", strings.Join(slices.Compact(behind), "` and `"), places),
		unreachedAdvice(slices.Compact(behind)),
	}}
}

// unreachedAdvice says what to do about handlers behind td_postback. Caddy sorts
// directives, so that their order in the file helps only in a `route` block.
func unreachedAdvice(behind []string) string {
	var second string
	if slices.Contains(behind, directive) {
		second = "Take one td_postback out: the first answers all that the second would. "
		if len(behind) == 1 {
			return strings.TrimSpace(second)
		}
	}
	return second + "If it is for paths that are no records, write `pass_thru` into td_postback. If it must run before, write both into a `route` block, which keeps their order, and td_postback last."
}

// checkPlainHTTP finds sites that have https only, without a redirect.
func checkPlainHTTP(e *examined) []finding {
	places := e.places(func(b *foundBlock) bool { return e.hasTLS(b) && e.lacksPlain(b) && !e.redirectedByCaddy(b) })
	if places == "" {
		return nil
	}
	return []finding{{
		bites,
		"Callers with http:// in their URL do not reach td_postback at " + places + ".",
		e.advice("Give the site both addresses:\n\thttp://HOST, https://HOST {", "Give the route to a server that listens on :80, too."),
	}}
}

// filteredFields are the fields of a log that may hold a write key, as the
// command's own log has them.
var filteredFields = func() []string {
	var encoder struct{ Fields map[string]json.RawMessage }
	if err := json.Unmarshal([]byte(keyFilter), &encoder); err != nil {
		panic(err) // it is a constant
	}
	return slices.Sorted(maps.Keys(encoder.Fields))
}()

// checkLogs finds logs that show write keys.
func checkLogs(e *examined) (all []finding) {
	logs := maps.Clone(e.logs)
	if logs[caddy.DefaultLoggerName] == nil {
		logs[caddy.DefaultLoggerName] = new(caddy.CustomLog)
	}
	var open []string
	for _, name := range slices.Sorted(maps.Keys(logs)) {
		if log := logs[name]; log != nil && !discards(log) && slices.ContainsFunc(e.requestLoggers(), func(l string) bool { return accepts(log, l) }) {
			if missing := unfiltered(log.EncoderRaw); len(missing) > 0 {
				open = append(open, fmt.Sprintf("%q (%s)", name, strings.Join(missing, ", ")))
			}
		}
	}
	if len(open) > 0 {
		all = append(all, finding{
			showsKeys,
			"Write keys get into logs, where callers send them in the URL or a header. The logs, and the fields that show keys: " + strings.Join(open, "; ") + ".",
			e.filterAdvice(),
		})
	}
	if places := e.places(func(b *foundBlock) bool { return b.server.Logs != nil && b.server.Logs.ShouldLogCredentials }); places != "" {
		all = append(all, finding{
			showsKeys,
			"`log_credentials` writes Authorization headers into the log, and some callers have their key there, at " + places + ".",
			e.advice("Take `log_credentials` out of `servers` in the global options.", "Take apps.http.servers.NAME.logs.should_log_credentials out."),
		})
	}
	return all
}

// filterAdvice says how to write the filter.
func (e *examined) filterAdvice() string {
	if e.json {
		return "Give logging.logs.default, and each other log of requests, this encoder:\n\t\"encoder\": " + keyFilter
	}
	lines := make([]string, 0, len(filteredFields))
	for _, field := range filteredFields {
		lines = append(lines, "\t\t"+field+" td_key")
	}
	filter := slices.Concat([]string{"log default {", "\tformat filter {"}, lines, []string{"\t}", "}"})
	return inGlobals(filter...) + "\nand the same `format filter` into every `log` of a site."
}

// requestLoggers are the names under which requests to td_postback are logged.
func (e *examined) requestLoggers() []string {
	loggers := []string{"http.log.error"}
	for _, b := range e.blocks {
		if b.server.Logs == nil {
			continue
		}
		loggers = append(loggers, "http.log.access", "http.log.access."+b.server.Logs.DefaultLoggerName)
		for _, names := range b.server.Logs.LoggerNames {
			for _, name := range names {
				loggers = append(loggers, "http.log.access."+name, "http.log.error."+name)
			}
		}
	}
	return loggers
}

// discards reports whether a log goes nowhere.
func discards(log *caddy.CustomLog) bool {
	var writer struct{ Output string }
	return json.Unmarshal(log.WriterRaw, &writer) == nil && writer.Output == "discard"
}

// accepts reports whether a log has the entries of a logger: the longest
// namespace decides, as in Caddy.
func accepts(log *caddy.CustomLog, logger string) bool {
	longest := func(namespaces []string) (n int) {
		for _, namespace := range namespaces {
			if namespace == "*" || strings.HasPrefix(logger+".", namespace+".") {
				n = max(n, len(namespace))
			}
		}
		return n
	}
	included, excluded := longest(log.Include), longest(log.Exclude)
	return (len(log.Include) == 0 || included > 0) && (excluded == 0 || included > excluded)
}

// unfiltered are the fields that an encoder writes as they are.
func unfiltered(encoder json.RawMessage) (missing []string) {
	var options struct {
		Format string
		Fields map[string]struct{ Filter string }
		Wrap   json.RawMessage
	}
	_ = json.Unmarshal(encoder, &options) // or it filters nothing
	if options.Format == "append" {
		return unfiltered(options.Wrap)
	}
	for _, field := range filteredFields {
		parent, _, _ := strings.Cut(field, ">")
		if options.Format != "filter" || !hides[options.Fields[field].Filter] && options.Fields[parent].Filter != "delete" {
			missing = append(missing, field)
		}
	}
	return missing
}

// hides are the filters after which no key is left in a field.
var hides = map[string]bool{"td_key": true, "delete": true, "replace": true, "hash": true}

// batchHeadroom is what the records of a queue take that wait for others to share
// their request, in bytes.
const batchHeadroom = 16 << 20

// checkMemory compares what the blocks may hold with Go's limit and with what
// the machine or container has.
func checkMemory(e *examined, limit, machine int64) []finding {
	var bodies int64
	queues := map[string]int64{} // what each holds: docs/install.md, "Capacity"
	for _, b := range e.blocks {
		bodies += b.handler.MaxBuffered
		if b.handler.Spool == nil {
			continue
		}
		holds := int64(minHeadroom)
		if b.handler.Spool.Batch > 0 {
			holds += batchHeadroom
		}
		legacy, _ := b.legacyTargets() // what is wrong is said already
		for _, target := range legacy {
			queues[target] = max(queues[target], minHeadroom)
		}
		for _, target := range b.targets() {
			queues[target] = max(queues[target], holds)
		}
	}
	need := bodies + minHeadroom
	for _, holds := range queues {
		need += holds
	}
	what := fmt.Sprintf("All td_postback blocks together may hold %s (`max_buffered` of each, %s for each queue of a spool and %s more with `batch`, and %s for the rest)",
		humanize.IBytes(uint64(need)), humanize.IBytes(minHeadroom), humanize.IBytes(batchHeadroom), humanize.IBytes(minHeadroom))
	switch {
	case need > machine:
		return []finding{{
			losesRecords,
			fmt.Sprintf("%s, but the machine or container has %s: the gateway is killed when it is busy.", what, humanize.IBytes(uint64(machine))), //nolint:gosec // G115: a size
			"Lower `max_buffered` in each block, or give the gateway more memory. A site with http:// and https:// has two blocks.",
		}}
	case need > limit:
		return []finding{{
			bites,
			fmt.Sprintf("%s, but Go's memory limit is %s: the gateway becomes slow when it is busy.", what, humanize.IBytes(uint64(limit))), //nolint:gosec // G115: a size
			fmt.Sprintf("Lower `max_buffered` in each block, or set GOMEMLIMIT=%dMiB in the gateway's environment. A site with http:// and https:// has two blocks.", need>>20),
		}}
	}
	return nil
}

// legacyKinds is how many kinds of connections to a legacy host there are, each with
// max_conns of its own: for events, for bodies above max_body, and for all else.
const legacyKinds = 3

// checkFiles compares how many files the gateway may have open with what it may
// use: for each call, a connection from the caller and one to v2 or the legacy host.
func checkFiles(e *examined, limit uint64) []finding {
	need := uint64(otherFiles)
	for _, b := range e.blocks {
		legacy, _ := b.legacyTargets() // what is wrong is said already
		v2, spooled := len(b.targets()), 0
		if b.handler.Spool != nil {
			spooled = maxDeliveries
		}
		need += uint64(2*b.handler.MaxConns*(v2+legacyKinds*len(legacy)) + spooled*(v2+len(legacy))) //nolint:gosec // G115: it is validated
	}
	if need <= limit {
		return nil
	}
	return []finding{{
		bites,
		fmt.Sprintf("The gateway may open %d files, but with all of `max_conns` in use it needs about %d. Beyond the limit it takes no caller.", limit, need),
		fmt.Sprintf("Raise the limit to %d (LimitNOFILE of a systemd unit, --ulimit nofile of a container), or lower `max_conns`.", max(65536, need)),
	}}
}

// otherFiles is about how many files are open beside connections.
const otherFiles = 100
