package caddymodule

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/td-postback/gateway/migration"
	"github.com/td-postback/gateway/postback"
	"github.com/td-postback/gateway/upstream"
)

// This file is the doctor's eye for the option migrate, and for the directories of the
// plan and of the report.

// legacyTargets are the URLs of the legacy hosts that a block sends to, or why Caddy would
// refuse the block.
func (b *foundBlock) legacyTargets() (all []string, err error) {
	h := b.handler
	if b.problem != nil {
		return nil, nil //nolint:nilerr // the options are wrong, which is said already
	}
	if h.Migrate == nil {
		return nil, nil
	}
	var hosts []string
	named := cmp.Or(h.Migrate.Legacy, postback.LegacyHosts[h.Region])
	switch {
	case named != "":
		hosts = []string{named}
	case h.Region == postback.RegionAuto:
		hosts = slices.Sorted(maps.Values(postback.LegacyHosts))
	default:
		return nil, errNoLegacy
	}
	for _, host := range hosts {
		u, err := h.Migrate.legacyURL(host)
		if err != nil {
			return nil, err
		}
		all = append(all, u.String())
	}
	return all, nil
}

// checkMigrate finds legacy hosts that are none, or not those of the v2 host, and what
// migrate leaves without effect.
func checkMigrate(e *examined) (all []finding) {
	say := func(f finding) {
		if !slices.Contains(all, f) {
			all = append(all, f)
		}
	}
	for _, b := range e.blocks {
		targets, err := b.legacyTargets()
		if err != nil {
			say(finding{losesRecords, "The gateway does not start with this configuration: " + err.Error() + ".", "Write what the message allows. All options are in docs/reference.md."})
		}
		if len(targets) == 0 || b.handler.Migrate.Legacy == "" {
			continue
		}
		legacy, _ := url.Parse(targets[0])
		region, known := postback.RegionOf(legacy.Host)
		switch {
		case !known:
			say(finding{
				bites,
				fmt.Sprintf("What the plan does not send to v2 goes to %s, and not to Treasure Data's legacy host.", b.handler.Migrate.Legacy),
				"Take `legacy` out of `migrate` when you have tried enough: then it goes to the region's legacy host.",
			})
		case b.handler.Region != "" && region != b.handler.Region:
			say(finding{
				losesRecords,
				fmt.Sprintf("`legacy` is the host of region %s, and `region` is %s: a caller's account is in one of them. v2 and the legacy host answer 200 to keys of the other, and drop the records.", region, b.handler.Region),
				fmt.Sprintf("Take `legacy` out of `migrate`, or write region `%s`. Give the callers of each region a site of its own.", region),
			})
		}
	}
	if places := e.places(func(b *foundBlock) bool { return b.problem == nil && b.handler.Migrate != nil && b.handler.PassThru }); places != "" {
		say(finding{
			bites,
			"`pass_thru` does nothing beside `migrate`: other paths go to the legacy host, and what stands behind td_postback never runs, at " + places + ".",
			"Take `pass_thru` out, and put what other paths need before td_postback, with a matcher or in a `handle` of its own.",
		})
	}
	return all
}

// checkRollback finds what keeps a rollback from traffic: nobody can give one, or it does
// not hold for a block.
func checkRollback(e *examined) (all []finding) {
	without := e.places(func(b *foundBlock) bool { return b.problem == nil && b.handler.Migrate == nil })
	if e.places(func(b *foundBlock) bool { return b.problem == nil && b.handler.Migrate != nil }) == "" {
		return nil
	}
	if e.closed {
		all = append(all, finding{
			bites,
			"There is no admin endpoint (`admin off`), and td-migrate asks there: nobody can move requests to v2, and nobody can roll back.",
			e.advice("Take `admin off` out of the global options, or write where the endpoint is to be: `admin unix//run/td-postback/admin.sock`.",
				"Take `disabled` out of `admin`, or write where the endpoint is to be: {\"listen\": \"unix//run/td-postback/admin.sock\"}."),
		})
	}
	if without != "" {
		all = append(all, finding{
			bites,
			fmt.Sprintf("The plan does not hold at %s, where td_postback has no `migrate`: what comes there goes to v2, also under a rollback.", without),
			"Write `migrate` into each td_postback whose callers the plan is for.",
		})
	}
	return all
}

// checkState finds blocks that disagree about the plan or the report that they share, and
// directories that depend on where the gateway is started.
func checkState(e *examined) (all []finding) {
	seen := map[string]any{} // the options, by what they are of
	disagrees := func(of string, options any, what string) {
		if other, known := seen[of]; known && other != options {
			f := finding{
				losesRecords,
				fmt.Sprintf("The gateway does not start: two td_postback blocks have `%s` with different options, and share one %s.", of, what),
				fmt.Sprintf("Give `%s` the same options in all blocks. A snippet that all sites import keeps them alike.", of),
			}
			if !slices.Contains(all, f) {
				all = append(all, f)
			}
		}
		seen[of] = options
	}
	for _, b := range e.blocks {
		if b.problem != nil {
			continue
		}
		if m := b.handler.Migrate; m != nil {
			disagrees("migrate", [3]string{m.Start, m.Stick, m.Dir}, "plan")
			if s := b.handler.Spool; s != nil && len(s.NATS) > 0 {
				disagrees("spool nats", strings.Join(s.NATS, " "), "plan")
			}
		}
		if b.handler.Report != nil {
			disagrees("report", *b.handler.Report, "report")
		}
	}
	for _, d := range stateDirs(e) {
		if !filepath.IsAbs(d.dir) {
			all = append(all, finding{
				bites,
				fmt.Sprintf("The directory %s of `%s` is relative to where the gateway is started: started elsewhere, it does not find the %s.", d.dir, d.option, d.what),
				fmt.Sprintf("Write the whole path into `dir` of `%s`, such as `dir /var/lib/td-postback/%s`.", d.option, d.what),
			})
		}
	}
	return all
}

// stateDir is a directory that keeps something for one gateway alone.
type stateDir struct{ option, what, dir, file, lost string }

// stateDirs are those of the plan and of the report.
func stateDirs(e *examined) (all []stateDir) {
	add := func(d stateDir) {
		if !slices.Contains(all, d) {
			all = append(all, d)
		}
	}
	for _, b := range e.blocks {
		if b.problem != nil {
			continue
		}
		if m := b.handler.Migrate; m != nil {
			add(stateDir{"migrate", "plan", m.Dir, planFile, "Nobody can move requests to v2, and a rollback ends with the process."})
		}
		if r := b.handler.Report; r != nil {
			add(stateDir{"report", "report", r.Dir, reportFile, "It ends with the process."})
		}
	}
	return all
}

// probeState finds directories that cannot be used, or that a gateway has that runs.
func probeState(e *examined) (all []finding) {
	for _, d := range stateDirs(e) {
		there := existing(d.dir)
		info, err := os.Stat(there)
		switch {
		case err != nil || !info.IsDir() || !mayWrite(there):
			all = append(all, finding{
				bites,
				fmt.Sprintf("The %s cannot be kept in %s: %s is no directory that this user may write to. %s", d.what, d.dir, there, d.lost),
				fmt.Sprintf("Give the directory to the gateway's user, or set `dir` in `%s`. The doctor looks as the user who runs it.", d.option),
			})
		case migration.InUse(filepath.Join(d.dir, d.file)):
			all = append(all, finding{
				inOrder,
				fmt.Sprintf("A gateway that runs has the %s in %s.", d.what, d.dir),
				fmt.Sprintf("If that is another one than this configuration is for, write a `dir` of its own into `%s`: of two gateways, only one can write there.", d.option),
			})
		}
	}
	return all
}

// probeLegacies asks each legacy host that the configuration sends to.
func probeLegacies(e *examined) (all []finding) {
	asked := map[string]bool{}
	for _, b := range e.blocks {
		targets, _ := b.legacyTargets() // what is wrong is said already
		for _, target := range targets {
			if by := target + " " + b.handler.Migrate.Resolve; !asked[by] {
				asked[by] = true
				all = append(all, probeLegacy(b.handler, target)...)
			}
		}
	}
	return all
}

// probeLegacy sends a record without a key, which nobody can store, by the way of real
// ones.
func probeLegacy(h *Handler, target string) []finding {
	client, err := clientFor(h, target, h.Migrate.Resolve)
	if err != nil || client == nil {
		return nil // which is said without asking
	}
	defer client.Close()
	host := client.URL.Host
	record := postback.Request{
		Host: host, Destination: postback.Destination{Database: "td_doctor", Table: "td_doctor"},
		ContentType: "application/json", Body: []byte("{}"),
	}
	answer, trip := keyless{header: http.Header{}}, upstream.Trip{}
	err = client.Forward(&answer, &http.Request{Header: http.Header{}}, &record, &trip)
	switch {
	case err != nil && leadsHere(dialHost(h.Migrate, client.URL), lookUp):
	case err != nil:
		f := unreachable(client.URL, err)
		f.instead = strings.ReplaceAll(f.instead, "`upstream`", "`legacy` and `resolve` in `migrate`")
		return []finding{f}
	case !isGateways(answer.body):
		return checkLegacyAnswer(host, answer.status)
	}
	return []finding{{
		losesRecords,
		fmt.Sprintf("In this network, the name of the legacy host %s leads to the gateway: what goes there comes back, and its caller gets 508.", host),
		"Ask a name server outside of this network where the legacy host is, and write that into `migrate`, such as `resolve 203.0.113.7:443`.",
	}}
}

// isGateways reports whether a gateway has answered a record without a key: itself, or
// when it has come back from the legacy host's name.
func isGateways(body []byte) bool {
	return bytes.Contains(body, []byte(postback.MissingKey.Code)) || bytes.Contains(body, []byte(postback.LoopDetected.Code))
}

// checkLegacyAnswer judges what the legacy host has said to a record without a key.
func checkLegacyAnswer(host string, status int) []finding {
	switch {
	case status >= 500 || status == http.StatusTooManyRequests || status == http.StatusRequestTimeout:
		return []finding{{bites, fmt.Sprintf("The legacy host %s answers %d now.", host, status), "Run the doctor again in a minute. If it stays so, ask Treasure Data."}}
	case status >= 400:
		return []finding{{severity: inOrder, what: fmt.Sprintf("The legacy host %s answers: %d to a record without a key.", host, status)}}
	default:
		return []finding{{
			bites,
			fmt.Sprintf("The legacy host %s answers %d to a record without a key: something else may be there.", host, status),
			"Correct `legacy` or `resolve` in `migrate`, or see to the proxy that answers in its place.",
		}}
	}
}

// dialHost is the name or address to which the gateway connects for a legacy host.
func dialHost(m *Migrate, legacy *url.URL) string {
	if host, _, err := net.SplitHostPort(m.Resolve); err == nil {
		return host
	}
	return legacy.Hostname()
}

// leadsHere reports whether a name, or an address, is this machine's. One that says so
// itself is meant: a stand-in.
func leadsHere(host string, lookUp func(string) []netip.Addr) bool {
	if isLoopback(host) {
		return false
	}
	own, _ := net.InterfaceAddrs()
	return slices.ContainsFunc(lookUp(host), func(address netip.Addr) bool {
		return address.IsLoopback() || slices.ContainsFunc(own, func(one net.Addr) bool {
			prefix, err := netip.ParsePrefix(one.String())
			return err == nil && prefix.Addr().Unmap() == address.Unmap()
		})
	})
}

// lookUpTime is how long the doctor waits for a name server.
const lookUpTime = 5 * time.Second

// lookUp asks where a name leads to.
func lookUp(host string) []netip.Addr {
	ctx, cancel := context.WithTimeout(context.Background(), lookUpTime)
	defer cancel()
	addresses, _ := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	return addresses
}
