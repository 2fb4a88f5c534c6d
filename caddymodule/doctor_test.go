package caddymodule

import (
	"bytes"
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	_ "github.com/caddyserver/caddy/v2/modules/caddyhttp/caddyauth"
	_ "github.com/caddyserver/caddy/v2/modules/caddyhttp/fileserver"
	_ "github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	_ "github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy/forwardauth"
	_ "github.com/caddyserver/caddy/v2/modules/metrics"

	"github.com/td-postback/gateway/postback"
	"github.com/td-postback/gateway/spool/cluster/natstest"
)

// filterFormat is the format of a log without write keys.
const filterFormat = "\t\tformat filter {\n\t\t\trequest td_key\n\t\t\tresp_headers td_key\n\t\t\turi td_key\n\t\t\tmethod td_key\n\t\t\theaders td_key\n\t\t\terror td_key\n\t\t}\n"

// healthy is a configuration with nothing to change. The tests spoil it.
const healthy = `{
	auto_https disable_redirects
	grace_period 40s
	servers {
		listener_wrappers {
			td_handover
		}
		max_header_size 1MiB
		timeouts {
			read_body 60s
		}
	}
	log default {
` + filterFormat + `	}
}

http://a.example, https://a.example {
	log {
` + filterFormat + `	}
	handle /healthz {
		respond "ok"
	}
	handle {
		td_postback us01
	}
}

http://, https:// {
	respond "nobody" 404
}
`

// passwordHash is one that basic_auth takes.
const passwordHash = "$2a$14$Zkx19XLiW6VYouLHR5NmfOFU0z2GTNmpkT/5qqR7hx4IjWJPDhjvG" //nolint:gosec // G101: of nobody

// examineText reads a Caddyfile.
func examineText(t testing.TB, text string) *examined {
	t.Helper()
	file := filepath.Join(t.TempDir(), "Caddyfile")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil { //nolint:gosec,nolintlint // G703: a test's own directory, which gosec finds or not by how others use it
		t.Fatal(err)
	}
	config, err := adapted(file, "caddyfile")
	if err != nil {
		t.Fatal(err)
	}
	e, err := examine(config)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// only checks that there is one finding, this one.
func only(t testing.TB, all []finding, want severity, texts ...string) {
	t.Helper()
	if len(all) != 1 || all[0].severity != want || all[0].instead == "" {
		t.Errorf("got %+v, want one finding of severity %d with %q", all, want, texts)
		return
	}
	for _, text := range texts {
		if !strings.Contains(all[0].what+"\n"+all[0].instead, text) {
			t.Errorf("%q is not in %+v", text, all[0])
		}
	}
}

// TestDoctorFindsEachFault spoils a configuration in one way at a time: there is
// exactly the finding for it.
func TestDoctorFindsEachFault(t *testing.T) {
	if all := checkConfiguration(examineText(t, healthy)); len(all) > 0 {
		t.Fatalf("healthy, but %+v", all)
	}
	const block, health = "\thandle {\n\t\ttd_postback us01\n\t}\n", "\thandle /healthz {\n\t\trespond \"ok\"\n\t}\n"
	const redirects = "\tauto_https disable_redirects\n"
	for name, test := range map[string]struct {
		replace  []string // old and new
		severity severity
		texts    []string
	}{
		"no td_postback":                   {[]string{"td_postback us01", "respond ok"}, losesRecords, []string{"no td_postback", "td_postback us01"}},
		"respond in front":                 {[]string{"\t\ttd_postback us01\n", "\t\troute {\n\t\trespond ok\n\t\ttd_postback us01\n\t\t}\n"}, losesRecords, []string{"`respond` answers every call", "a.example on :80"}},
		"metrics in front":                 {[]string{"\t\ttd_postback us01\n", "\t\troute {\n\t\tmetrics /*\n\t\ttd_postback us01\n\t\t}\n"}, losesRecords, []string{"`metrics` answers every call"}},
		"the console in front":             {[]string{"\t\ttd_postback us01\n", "\t\troute {\n\t\ttd_console\n\t\ttd_postback us01\n\t\t}\n"}, losesRecords, []string{"`td_console` answers every call"}},
		"a nested respond in front":        {[]string{"\t\ttd_postback us01\n", "\t\troute {\n\t\troute {\n\t\trespond ok\n\t\t}\n\t\ttd_postback us01\n\t\t}\n"}, losesRecords, []string{"`respond` answers every call"}},
		"respond for the events":           {[]string{"\t\ttd_postback us01\n", "\t\troute {\n\t\trespond /postback/* ok\n\t\ttd_postback us01\n\t\t}\n"}, losesRecords, []string{"`respond` answers every call"}},
		"an empty handle in front":         {[]string{block, "\thandle /* {\n\t}\n" + block}, losesRecords, []string{"`handle` answers every call"}},
		"handle_path":                      {[]string{block, "\thandle_path /postback/* {\n\t\ttd_postback us01\n\t}\n" + block}, losesRecords, []string{"every event is refused", "a.example on :80", "`handle /postback/*`"}},
		"Postback's path alone":            {[]string{block, "\thandle /postback/* {\n\t\ttd_postback us01\n\t}\n\thandle {\n\t\trespond 404\n\t}\n"}, bites, []string{"something else refuses them", "a.example on :80", "script tags (GET /js/v3/event/DATABASE/TABLE)", "scripts (POST /js/v3/event)", "Android apps (POST /android/v3/event), iOS apps", "@events path", "`surfaces postback`"}},
		"Postback's and tags' paths alone": {[]string{block, "\t@events path /postback/* /js/*\n\thandle @events {\n\t\ttd_postback us01\n\t}\n\thandle {\n\t\terror 404\n\t}\n"}, bites, []string{": Android apps (POST /android/v3/event), iOS apps (POST /ios/v3/event).", "`surfaces postback js`"}},
		"apps of Android alone":            {[]string{block, "\t@events not path /ios/*\n\thandle @events {\n\t\ttd_postback us01\n\t}\n\thandle {\n\t\terror 404\n\t}\n"}, bites, []string{": iOS apps (POST /ios/v3/event)."}},
		"no scripts' path":                 {[]string{block, "\t@events path /postback/* /js/v3/event/* /android/* /ios/*\n\thandle @events {\n\t\ttd_postback us01\n\t}\n\thandle {\n\t\trespond 404\n\t}\n"}, bites, []string{": scripts (POST /js/v3/event)."}},
		"POST alone":                       {[]string{block, "\t@events method POST\n\thandle @events {\n\t\ttd_postback us01\n\t}\n\thandle {\n\t\trespond 405\n\t}\n"}, bites, []string{": pixels (GET /postback/v3/event/DATABASE/TABLE), script tags (GET /js/v3/event/DATABASE/TABLE)."}},
		"tags refused in front":            {[]string{"\t\ttd_postback us01\n", "\t\troute {\n\t\trespond /js/* 404\n\t\ttd_postback us01\n\t\t}\n"}, bites, []string{"script tags", "`surfaces postback mobile`"}},
		"a page for apps":                  {[]string{block, "\t@events path /postback/* /js/*\n\thandle @events {\n\t\ttd_postback us01\n\t}\n\thandle {\n\t\trespond hello\n\t}\n"}, losesRecords, []string{"with success", ": Android apps (POST /android/v3/event), iOS apps (POST /ios/v3/event).", "without end", "`respond /android/v3/event* 404`"}},
		"a page behind pass_thru":          {[]string{"\t\ttd_postback us01\n", "\t\troute {\n\t\ttd_postback us01 {\n\t\t\tsurfaces postback js\n\t\t\tpass_thru\n\t\t}\n\t\trespond hello\n\t\t}\n"}, losesRecords, []string{"with success", ": Android apps"}},
		"an empty handle for tags":         {[]string{block, "\thandle /js/* {\n\t}\n" + block}, losesRecords, []string{"with success", "script tags"}},
		"basic_auth for tags":              {[]string{"\tlog {\n", "\tbasic_auth /js/* {\n\t\tBob " + passwordHash + "\n\t}\n\tlog {\n"}, losesRecords, []string{"`basic_auth` asks every caller", "a.example on :80 (calls to /js/v3/event/, /js/v3/event)"}},
		"a stripped prefix of tags":        {[]string{"\tlog {\n", "\turi /js/* strip_prefix /js\n\tlog {\n"}, losesRecords, []string{"every event is refused", "(calls to /js/v3/event/, /js/v3/event)"}},
		"a redirect of apps":               {[]string{"\tlog {\n", "\tredir /android/* https://{host}{uri}\n\tlog {\n"}, losesRecords, []string{"redirected to https", "(calls to /android/v3/event)"}},
		"a small limit of apps' bodies":    {[]string{"\tlog {\n", "\trequest_body /android/* {\n\t\tmax_size 64KiB\n\t}\n\tlog {\n"}, bites, []string{"smaller bodies through than apps send", "(calls to /android/v3/event)"}},
		"a limit of tags' bodies":          {[]string{"\tlog {\n", "\trequest_body /js/* {\n\t\tmax_size 64KiB\n\t}\n\tlog {\n"}, losesRecords, []string{"smaller bodies through than td_postback takes", "(calls to /js/v3/event/, /js/v3/event)"}},
		"a stripped prefix":                {[]string{"\tlog {\n", "\turi strip_prefix /postback\n\tlog {\n"}, losesRecords, []string{"every event is refused"}},
		"a stripped prefix in the block":   {[]string{"\t\ttd_postback us01\n", "\t\turi /postback/* strip_prefix /postback/v3\n\t\ttd_postback us01\n"}, losesRecords, []string{"every event is refused"}},
		"a rewrite":                        {[]string{"\tlog {\n", "\trewrite * /td{uri}\n\tlog {\n"}, losesRecords, []string{"every event is refused"}},
		"a replaced part of the path":      {[]string{"\tlog {\n", "\turi replace /postback/ /p/\n\tlog {\n"}, losesRecords, []string{"every event is refused"}},
		"a replaced pattern of the path":   {[]string{"\tlog {\n", "\turi path_regexp /v[0-9]+/ /\n\tlog {\n"}, losesRecords, []string{"every event is refused"}},
		"basic_auth":                       {[]string{"\tlog {\n", "\tbasic_auth {\n\t\tBob " + passwordHash + "\n\t}\n\tlog {\n"}, losesRecords, []string{"`basic_auth` asks every caller", "401", "a.example on :80"}},
		"basic_auth in the block":          {[]string{"\t\ttd_postback us01\n", "\t\tbasic_auth /postback/* {\n\t\tBob " + passwordHash + "\n\t}\n\t\ttd_postback us01\n"}, losesRecords, []string{"`basic_auth` asks every caller"}},
		"basic_auth in a route before":     {[]string{"\t\ttd_postback us01\n", "\t\troute {\n\t\troute {\n\t\tbasic_auth {\n\t\tBob " + passwordHash + "\n\t}\n\t}\n\t\ttd_postback us01\n\t}\n"}, losesRecords, []string{"`basic_auth` asks every caller"}},
		"a limit of bodies":                {[]string{"\tlog {\n", "\trequest_body {\n\t\tmax_size 64KiB\n\t}\n\tlog {\n"}, losesRecords, []string{"`request_body` lets only smaller bodies through", "413", "a.example on :80"}},
		"Caddy's redirect":                 {[]string{redirects, "", "http://a.example, https://a.example", "a.example"}, losesRecords, []string{"redirected to https", "auto_https disable_redirects", "http://HOST, https://HOST {"}},
		"Caddy's redirect before a site":   {[]string{redirects, "", "http://a.example, https://a.example", "https://a.example", "http://, https:// {\n\trespond \"nobody\" 404", "http://, https:// {\n\tabort"}, losesRecords, []string{"redirected to https"}},
		"a redirect":                       {[]string{"\tlog {\n", "\t@plain protocol http\n\tredir @plain https://{host}{uri}\n\tlog {\n"}, losesRecords, []string{"redirected to https", "`redir`", "not path /postback/* /js/* /android/* /ios/*"}},
		"a redirect but for other paths":   {[]string{"\tlog {\n", "\t@records not path /healthz\n\tredir @records https://b.example\n\tlog {\n"}, losesRecords, []string{"redirected to https"}},
		"a redirect of everything":         {[]string{"\tlog {\n", "\tredir https://{host}{uri}\n\tlog {\n"}, losesRecords, []string{"redirected to https"}},
		"a redirect in a block":            {[]string{health, health + "\t@plain protocol http\n\thandle @plain {\n\t\tredir https://b.example{uri}\n\t}\n"}, losesRecords, []string{"redirected to https"}},
		"a redirect by a proxy's header":   {[]string{"\tlog {\n", "\t@plain header X-Forwarded-Proto http\n\tredir @plain https://{host}{uri} permanent\n\tlog {\n"}, losesRecords, []string{"redirected to https"}},
		"other hosts":                      {[]string{"http://, https:// {\n\trespond \"nobody\" 404\n}\n", ""}, losesRecords, []string{"any other host", "empty 200", "http://, https:// {"}},
		"other hosts of https":             {[]string{"http://, https:// {", "http:// {"}, losesRecords, []string{"any other host", "a.example on :443"}},
		"other paths":                      {[]string{block, "\ttd_postback /postback/* us01\n"}, losesRecords, []string{"empty 200", "path"}},
		"other paths of a handle":          {[]string{block, "\thandle /postback/* {\n\t\ttd_postback us01\n\t}\n"}, losesRecords, []string{"empty 200", "path"}},
		"the limit of URLs":                {[]string{"\t\tmax_header_size 1MiB\n", ""}, losesRecords, []string{"16 KiB", "431", "max_header_size 1MiB"}},
		"a low limit of URLs":              {[]string{"max_header_size 1MiB", "max_header_size 8KiB"}, losesRecords, []string{"431"}},
		"a high limit of URLs":             {[]string{"max_header_size 1MiB", "max_header_size 64MiB"}, bites, []string{"memory"}},
		"no td_handover":                   {[]string{"\t\t\ttd_handover\n", "\t\t\thttp_redirect\n\t\t\ttls\n"}, losesRecords, []string{"reload", "td_handover"}},
		"shutdown_delay":                   {[]string{"\tgrace_period 40s\n", "\tgrace_period 40s\n\tshutdown_delay 5s\n"}, losesRecords, []string{"`shutdown_delay` switches td_handover off"}},
		"no grace_period":                  {[]string{"\tgrace_period 40s\n", ""}, bites, []string{"no end", "grace_period 40s"}},
		"a short grace_period":             {[]string{"grace_period 40s", "grace_period 5s"}, bites, []string{"shorter than response_timeout (30s)", "grace_period 40s"}},
		"no read_body":                     {[]string{"\t\ttimeouts {\n\t\t\tread_body 60s\n\t\t}\n", ""}, bites, []string{"read_body 60s"}},
		"no filter at all":                 {[]string{"\tlog {\n" + filterFormat + "\t}\n", "\tlog\n", filterFormat, "\t\toutput stdout\n"}, showsKeys, []string{`"default" (error, headers, method, request, resp_headers, uri)`}},
		"an access log without a filter":   {[]string{"\tlog {\n" + filterFormat, "\tlog {\n\t\tformat json\n"}, showsKeys, []string{`"log0"`, "format filter"}},
		"a filter for parts of a request":  {[]string{"request td_key", "request>uri td_key"}, showsKeys, []string{`"default" (request); "log0" (request)`}},
		"one more log":                     {[]string{"\tlog default {", "\tlog errors {\n\t\toutput stdout\n\t\tinclude http.log.error\n\t}\n\tlog default {"}, showsKeys, []string{`"errors"`}},
		"a field without a filter":         {[]string{"resp_headers td_key", "resp_headers rename x"}, showsKeys, []string{`"default" (resp_headers); "log0" (resp_headers)`}},
		"credentials in logs":              {[]string{"\t\tmax_header_size", "\t\tlog_credentials\n\t\tmax_header_size"}, showsKeys, []string{"`log_credentials`"}},
		"handoff":                          {[]string{"td_postback us01", "td_postback us01 {\n\thandoff\n}"}, losesRecords, []string{"`handoff`", "reverse_proxy https://us01.records.in.treasuredata.com"}},
		"pass_thru":                        {[]string{"td_postback us01", "td_postback us01 {\n\tpass_thru\n}"}, bites, []string{"`pass_thru`"}},
		"an upstream":                      {[]string{"td_postback us01", "td_postback us01 {\n\tupstream http://127.0.0.1:9000\n}"}, bites, []string{"http://127.0.0.1:9000, and not to Treasure Data"}},
		"a rule that never runs":           {[]string{"\tlog {\n", "\t@bad remote_ip 192.0.2.1\n\trespond @bad 403\n\tlog {\n"}, bites, []string{"`respond` never runs"}},
		"a proxy that never runs":          {[]string{"\t\ttd_postback us01\n", "\t\troute {\n\t\ttd_postback us01\n\t\treverse_proxy 127.0.0.1:1\n\t\t}\n"}, bites, []string{"`reverse_proxy` never runs", "`pass_thru`", "`route` block"}},
		"a second td_postback":             {[]string{"\t\ttd_postback us01\n", "\t\troute {\n\t\ttd_postback us01\n\t\ttd_postback eu01\n\t\t}\n"}, bites, []string{"`td_postback` never runs", "Take one td_postback out"}},
		"a relative spool":                 {[]string{"td_postback us01", "td_postback us01 {\n\tspool {\n\t\tdir spool\n\t}\n}"}, bites, []string{"directory spool is relative", "`dir /"}},
		"trust in everybody":               {[]string{"\t\tmax_header_size", "\t\ttrusted_proxies static private_ranges 0.0.0.0/0\n\t\tmax_header_size"}, bites, []string{"`trusted_proxies`", "anybody", "a.example on :80"}},
		"trust in everybody of IPv6":       {[]string{"\t\tmax_header_size", "\t\ttrusted_proxies static 2000::/3\n\t\tmax_header_size"}, bites, []string{"`trusted_proxies`"}},
		"https alone":                      {[]string{"http://a.example, https://a.example", "https://a.example"}, bites, []string{"http://", "a.example on :443"}},
		"auto at another host":             {[]string{"td_postback us01", "td_postback auto"}, losesRecords, []string{"421", "a.example on :80"}},
		"a limit of apps' bodies":          {[]string{"\tlog {\n", "\trequest_body {\n\t\tmax_size 2MiB\n\t}\n\tlog {\n"}, bites, []string{"smaller bodies through than apps send", "32MiB"}},
		"an option that Caddy refuses":     {[]string{"td_postback us01", "td_postback us01 {\n\tmax_buffered 1KiB\n}"}, losesRecords, []string{"does not start", "max_buffered"}},
		"two blocks on one spool disagree": {[]string{health, "\thandle /x/* {\n\t\ttd_postback us01 {\n\t\t\tspool {\n\t\t\t\tdir /s\n\t\t\t\tmax_size 1GiB\n\t\t\t}\n\t\t}\n\t}\n", "\t\ttd_postback us01\n", "\t\ttd_postback us01 {\n\t\t\tspool {\n\t\t\t\tdir /s\n\t\t\t}\n\t\t}\n"}, losesRecords, []string{"spool /s", "different options"}},
	} {
		t.Run(name, func(t *testing.T) {
			text := healthy
			for i := 0; i < len(test.replace); i += 2 {
				if !strings.Contains(text, test.replace[i]) {
					t.Fatalf("%q is not in the configuration", test.replace[i])
				}
				text = strings.ReplaceAll(text, test.replace[i], test.replace[i+1])
			}
			only(t, checkConfiguration(examineText(t, text)), test.severity, test.texts...)
		})
	}
}

// TestDoctorSeesWhatALoadSees: what the doctor says of handlers in front of a
// td_postback is what a load warns of. Redirects have a finding of their own.
func TestDoctorSeesWhatALoadSees(t *testing.T) {
	for name, test := range shadowSites {
		e := examineText(t, "http://x.example:8080 {\n"+test.site+"\n}\n")
		var got []string
		for _, b := range e.blocks {
			if b.shadow != "" {
				got = append(got, b.shadow)
			}
		}
		if !slices.Equal(got, test.want) {
			t.Errorf("%s: got %q, want %q", name, got, test.want)
		}
	}
}

// TestDoctorsAdviceOnPaths follows the advice for a site without an answer for
// other paths: then there is nothing left to find.
func TestDoctorsAdviceOnPaths(t *testing.T) {
	const block = "\thandle {\n\t\ttd_postback us01\n\t}\n"
	for _, site := range []string{"\ttd_postback /postback/* us01\n", "\thandle /postback/* {\n\t\ttd_postback us01\n\t}\n"} {
		found := checkConfiguration(examineText(t, strings.Replace(healthy, block, site, 1)))
		only(t, found, losesRecords, "empty 200")
		_, advice, _ := strings.Cut(found[0].instead, ":\n")
		if !strings.Contains(advice, "td_postback us01") {
			t.Fatalf("no block in %q", found[0].instead)
		}
		if all := checkConfiguration(examineText(t, strings.Replace(healthy, block, advice+"\n", 1))); len(all) > 0 {
			t.Errorf("after the advice: %+v", all)
		}
	}
}

// TestDoctorsAdviceOnCalls follows the advice for a site that keeps tags and apps from
// td_postback, if there are such callers and if there are none.
func TestDoctorsAdviceOnCalls(t *testing.T) {
	const block, end = "\thandle {\n\t\ttd_postback us01\n\t}\n", "\thandle {\n\t\trespond 404\n\t}\n"
	const narrow = "\thandle /postback/* {\n\t\ttd_postback us01\n\t}\n"
	found := checkConfiguration(examineText(t, strings.Replace(healthy, block, narrow+end, 1)))
	only(t, found, bites, "something else refuses them")
	_, advice, _ := strings.Cut(found[0].instead, ":\n")
	all, none, _ := strings.Cut(advice, "\n"+"If nobody")
	_, option, _ := strings.Cut(none, "`")
	option, _, _ = strings.Cut(option, "`")
	for _, site := range []string{all + "\n", strings.Replace(narrow, "us01", "us01 {\n\t\t\t"+option+"\n\t\t}", 1)} {
		if !strings.Contains(site, "td_postback us01") {
			t.Fatalf("no block in %q", found[0].instead)
		}
		if all := checkConfiguration(examineText(t, strings.Replace(healthy, block, site+end, 1))); len(all) > 0 {
			t.Errorf("after %s: %+v", site, all)
		}
	}
}

// TestDoctorsAdviceOnOrder follows the advice for what never runs: then there is
// nothing left to find.
func TestDoctorsAdviceOnOrder(t *testing.T) {
	const block = "\thandle {\n\t\ttd_postback us01\n\t}\n"
	for before, after := range map[string]string{
		"\thandle {\n\t\treverse_proxy 127.0.0.1:1\n\t\ttd_postback us01\n\t}\n":                                        "\thandle {\n\t\treverse_proxy 127.0.0.1:1\n\t\ttd_postback us01 {\n\t\t\tpass_thru\n\t\t}\n\t}\n",
		"\thandle {\n\t\ttd_postback us01\n\t}\n\t@bad remote_ip 192.0.2.1\n\trespond @bad 403\n":                       "\troute {\n\t\t@bad remote_ip 192.0.2.1\n\t\trespond @bad 403\n\t\ttd_postback us01\n\t}\n",
		"\thandle {\n\t\troute {\n\t\t\ttd_postback us01\n\t\t\ttd_postback us01\n\t\t\trespond gone 410\n\t\t}\n\t}\n": "\thandle {\n\t\troute {\n\t\t\ttd_postback us01 {\n\t\t\t\tpass_thru\n\t\t\t}\n\t\t\trespond gone 410\n\t\t}\n\t}\n",
	} {
		only(t, checkConfiguration(examineText(t, strings.Replace(healthy, block, before, 1))), bites, "never runs", "`pass_thru`", "`route`")
		if all := checkConfiguration(examineText(t, strings.Replace(healthy, block, after, 1))); len(all) > 0 {
			t.Errorf("after the advice: %+v", all)
		}
	}
}

// TestDoctorsAdviceInJSON: whoever has a .json file reads the places in it, and
// nothing of a Caddyfile.
func TestDoctorsAdviceInJSON(t *testing.T) {
	e := examineText(t, "{\n\tshutdown_delay 5s\n\tservers {\n\t\tlog_credentials\n\t}\n}\na.example {\n\tlog\n\ttd_postback /postback/* us01\n}\n"+
		"b.example {\n\trespond /js/* 404\n\trespond /android/* ok\n\trespond /ios/* ok\n\ttd_postback us01\n}\n")
	e.json = true
	var out bytes.Buffer
	printFindings(&out, "caddy.json", checkConfiguration(e))
	for _, place := range []string{
		"apps.http.servers.NAME.max_header_bytes to 1048576", `apps.http.servers.NAME.listener_wrappers to [{"wrapper": "td_handover"}]`,
		`apps.http.servers.NAME.read_timeout to "60s"`, `apps.http.grace_period to "40s"`, "logging.logs.default", `"td_key"`,
		`"surfaces": ["postback"]`, `{"handler": "static_response", "status_code": 404}`,
		"apps.http.servers.NAME.automatic_https", "apps.http.servers.NAME.routes", "apps.http.servers.NAME.logs.should_log_credentials",
	} {
		if !strings.Contains(out.String(), place) {
			t.Errorf("%q is not in %s", place, out.String())
		}
	}
	for _, word := range []string{"Caddyfile", "global options", "respond ", "max_header_size", "@events"} {
		if strings.Contains(out.String(), word) {
			t.Errorf("%q is in %s", word, out.String())
		}
	}
}

// TestDoctorRaisesNoFalseAlarm: these are as they should be.
func TestDoctorRaisesNoFalseAlarm(t *testing.T) {
	const block = "\thandle {\n\t\ttd_postback us01\n\t}\n"
	for name, replace := range map[string][]string{
		"a redirect of other paths":      {"\tlog {\n", "\tredir /old https://b.example\n\tlog {\n"},
		"a redirect but for events":      {"\tlog {\n", "\t@pages not path /postback/* /js/* /android/* /ios/*\n\tredir @pages https://b.example\n\tlog {\n"},
		"a deny rule before td_postback": {"\t\ttd_postback us01\n", "\t\troute {\n\t\t@bad remote_ip 192.0.2.1\n\t\trespond @bad 403\n\t\ttd_postback us01\n\t\t}\n"},
		"forward_auth":                   {"\tlog {\n", "\tforward_auth 127.0.0.1:9091 {\n\t\turi /check\n\t}\n\tlog {\n"},
		"basic_auth":                     {"\tlog {\n", "\tbasic_auth /admin/* {\n\t\tBob " + passwordHash + "\n\t}\n\tlog {\n"},
		"basic_auth in another handle":   {"\thandle /healthz {\n", "\thandle /healthz {\n\t\tbasic_auth {\n\t\tBob " + passwordHash + "\n\t}\n"},
		"basic_auth of another site":     {"http://, https:// {", "https://b.example {\n\tbasic_auth {\n\t\tBob " + passwordHash + "\n\t}\n\trespond \"b\"\n}\n\nhttp://, https:// {"},
		"basic_auth but for events":      {"\tlog {\n", "\t@pages not path /postback/* /js/* /android/* /ios/*\n\tbasic_auth @pages {\n\t\tBob " + passwordHash + "\n\t}\n\tlog {\n"},
		"a prefix before the path":       {block, "\thandle_path /td/* {\n\t\ttd_postback us01\n\t}\n" + block},
		"an old path":                    {block, "\thandle_path /old/* {\n\t\trewrite * /postback/v3/event{uri}\n\t\ttd_postback us01\n\t}\n" + block},
		"a path there and back":          {"\t\ttd_postback us01\n", "\t\troute {\n\t\turi strip_prefix /postback\n\t\trewrite * /postback{uri}\n\t\ttd_postback us01 {\n\t\t\tsurfaces postback\n\t\t}\n\t}\n"},
		"a path of a map":                {"\tlog {\n", "\tmap {path} {to} {\n\t\tdefault /postback/v3/event/db/t\n\t}\n\trewrite * {to}\n\tlog {\n"},
		"a rewrite for another path":     {"\tlog {\n", "\trewrite /old/* /new\n\turi /old/* strip_prefix /postback\n\tlog {\n"},
		"a query is rewritten":           {"\tlog {\n", "\turi query -utm\n\tlog {\n"},
		"a generous limit of bodies":     {"\tlog {\n", "\trequest_body {\n\t\tmax_size 64MiB\n\t}\n\tlog {\n"},
		"a limit of bodies without apps": {"\t\ttd_postback us01\n", "\trequest_body {\n\t\tmax_size 2MiB\n\t}\n\ttd_postback us01 {\n\t\tsurfaces postback js\n\t}\n"},
		"a limit of other bodies":        {"\tlog {\n", "\trequest_body /upload/* {\n\t\tmax_size 1KiB\n\t}\n\tlog {\n"},
		"handoff with a proxy":           {"\t\ttd_postback us01\n", "\t\troute {\n\t\ttd_postback us01 {\n\t\thandoff\n\t\t}\n\t\treverse_proxy https://us01.records.in.treasuredata.com\n\t\t}\n"},
		"a matcher and an end":           {block, "\troute {\n\t\ttd_postback /postback/* us01 {\n\t\t\tsurfaces postback\n\t\t}\n\t\trespond 404\n\t}\n"},
		"a matcher of all calls":         {block, "\t@events path /postback/* /js/v3/* /ANDROID/v3/event* /ios/v3/event\n\thandle @events {\n\t\ttd_postback us01\n\t}\n\thandle {\n\t\trespond 404\n\t}\n"},
		"a matcher of methods":           {block, "\t@events method GET POST OPTIONS\n\thandle @events {\n\t\ttd_postback us01\n\t}\n\thandle {\n\t\trespond 405\n\t}\n"},
		"a block for each surface":       {block, "\thandle /postback/* {\n\t\ttd_postback us01 {\n\t\t\tsurfaces postback\n\t\t}\n\t}\n\thandle /js/* {\n\t\ttd_postback eu01 {\n\t\t\tsurfaces js\n\t\t}\n\t}\n\thandle {\n\t\trespond 404\n\t}\n"},
		"the rest to the legacy host":    {block, "\t@moved path /postback/v3/event/shop/*\n\thandle @moved {\n\t\ttd_postback us01\n\t}\n\thandle {\n\t\treverse_proxy https://in.treasuredata.com\n\t}\n"},
		"a page behind pass_thru":        {"\t\ttd_postback us01\n", "\t\troute {\n\t\ttd_postback us01 {\n\t\t\tpass_thru\n\t\t}\n\t\trespond hello\n\t\t}\n"},
		"an end behind pass_thru":        {"\t\ttd_postback us01\n", "\t\troute {\n\t\ttd_postback us01 {\n\t\t\tsurfaces postback\n\t\t\tpass_thru\n\t\t}\n\t\trespond /v3/* 200\n\t\trespond 404\n\t\t}\n"},
		"a deny rule for tags":           {"\t\ttd_postback us01\n", "\t\troute {\n\t\t@bad {\n\t\tpath /js/*\n\t\tremote_ip 192.0.2.1\n\t\t}\n\t\trespond @bad 403\n\t\ttd_postback us01\n\t\t}\n"},
		"some tables of tags refused":    {"\t\ttd_postback us01\n", "\t\troute {\n\t\trespond /js/v3/event/old/* 410\n\t\ttd_postback us01\n\t\t}\n"},
		"a handle of another site":       {"http://, https:// {", "https://b.example {\n\thandle /js/* {\n\t\trespond \"b\"\n\t}\n\thandle {\n\t\trespond 404\n\t}\n}\n\nhttp://, https:// {"},
		"blocks by a matcher":            {block, "\t@part client_ip 192.0.2.0/24\n\thandle @part {\n\t\ttd_postback us01\n\t}\n\thandle {\n\t\ttd_postback eu01\n\t}\n"},
		"auto at a legacy host":          {"td_postback us01", "td_postback auto", "http://a.example, https://a.example", "http://tokyo.in.treasuredata.com, https://tokyo.in.treasuredata.com"},
		"auto for every host":            {"td_postback us01", "td_postback auto", "http://a.example, https://a.example", "http://*.treasuredata.com, https://*.treasuredata.com"},
		"a named route":                  {"http://a.example", "&(gateway) {\n\ttd_postback us01\n}\n\nhttp://a.example", block, "\thandle {\n\t\tinvoke gateway\n\t}\n"},
		"a log that goes nowhere":        {"\tlog default {", "\tlog none {\n\t\toutput discard\n\t}\n\tlog default {"},
		"a log of other things":          {"\tlog default {", "\tlog certificates {\n\t\tinclude tls\n\t}\n\tlog default {"},
		"the request left out of a log":  {"request td_key", "request delete"},
		"https for other names":          {"http://, https:// {", "https://b.example {\n\trespond \"b\"\n}\n\nhttp://, https:// {"},
		"private proxies":                {"\t\tmax_header_size", "\t\ttrusted_proxies static private_ranges 192.0.2.1\n\t\tmax_header_size"},
		"plain http alone":               {"http://a.example, https://a.example", "http://a.example"},
		"a spool shared":                 {"\t\ttd_postback us01\n", "\t\ttd_postback us01 {\n\t\t\tspool {\n\t\t\t\tdir /s\n\t\t\t}\n\t\t}\n"},
	} {
		t.Run(name, func(t *testing.T) {
			text := healthy
			for i := 0; i < len(replace); i += 2 {
				if !strings.Contains(text, replace[i]) {
					t.Fatalf("%q is not in the configuration", replace[i])
				}
				text = strings.ReplaceAll(text, replace[i], replace[i+1])
			}
			if all := checkConfiguration(examineText(t, text)); len(all) > 0 {
				t.Errorf("%+v", all)
			}
		})
	}
}

// TestDoctorLikesTheExamples: nothing in them, and in README's configuration,
// loses records or shows keys.
func TestDoctorLikesTheExamples(t *testing.T) {
	t.Setenv("RUNTIME_DIRECTORY", t.TempDir())
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, inReadme, _ := strings.Cut(string(readme), "```caddyfile\n")
	inReadme, _, _ = strings.Cut(inReadme, "```")
	for file, text := range map[string]string{"README.md": inReadme, "Caddyfile.example": "", "deploy/Caddyfile": ""} {
		if text == "" {
			content, err := os.ReadFile("../" + file) //nolint:gosec // G304: one of the three above
			if err != nil {
				t.Fatal(err)
			}
			text = string(content)
		}
		e := examineText(t, text)
		if len(e.blocks) != 2 {
			t.Errorf("%s: %d blocks", file, len(e.blocks))
		}
		for _, f := range checkConfiguration(e) {
			if f.severity < bites {
				t.Errorf("%s: %+v", file, f)
			}
		}
		if all := checkMemory(e, 320<<20, 512<<20); len(all) > 0 {
			t.Errorf("%s: with the unit's limits %+v", file, all)
		}
		if all := checkFiles(e, 65536); len(all) > 0 {
			t.Errorf("%s: with the unit's limits %+v", file, all)
		}
	}
}

// TestDoctorReadsAnyJSON: what is no configuration with td_postback is an error
// or a finding, and routes that invoke each other have an end.
func TestDoctorReadsAnyJSON(t *testing.T) {
	for config, want := range map[string]string{
		`{}`:                  "no td_postback",
		`null`:                "no td_postback",
		`{"apps":{"http":`:    "",
		`{"apps":{"http":1}}`: "",
		`{"apps":{"http":{"servers":{"a":null}}}}`: "no td_postback",
		`{"apps":{"http":{"servers":{"a":{"named_routes":{"x":{"handle":[{"handler":"invoke","name":"x"}]}},"routes":[{"handle":[{"handler":"invoke","name":"x"}]}]}}}}}`:                                                                                                                                                  "no td_postback",
		`{"apps":{"http":{"servers":{"a":{"named_routes":{"x":{"handle":[{"handler":"invoke","name":"x"},{"handler":"invoke","name":"x"},{"handler":"invoke","name":"y"}]},"y":{"handle":[{"handler":"invoke","name":"x"},{"handler":"invoke","name":"x"}]}},"routes":[{"handle":[{"handler":"invoke","name":"x"}]}]}}}}}`: "no td_postback",
		`{"apps":{"http":{"servers":{"a":{"routes":[{"handle":[{"handler":"td_postback","region":"us01","regoin":1}]}]}}}}}`:                                                                                                                                                                                               "regoin",
		`{"apps":{"http":{"servers":{"a":{"routes":[{"handle":[{"handler":"td_postback","region":"mars"}]}]}}}}}`:                                                                                                                                                                                                          `region "mars"`,
	} {
		e, err := examine([]byte(config))
		if err != nil {
			if want != "" {
				t.Errorf("%s: %v", config, err)
			}
			continue
		}
		if all := checkConfiguration(e); want == "" || len(all) == 0 || !strings.Contains(all[0].what, want) {
			t.Errorf("%s: %+v", config, all)
		}
	}
}

// FuzzDoctor examines any configuration: it ends, and prints no header and no
// upstream's password.
func FuzzDoctor(f *testing.F) {
	for _, seed := range []string{
		`{"apps":{"http":{"servers":{"a":{"listen":[":80"],"routes":[{"match":[{"path":["/x"]}],"handle":[{"handler":"td_postback","region":"us01","spool":{}}]}]}}}}}`,
		`{"apps":{"http":{"servers":{"a":{"named_routes":{"x":{"handle":[{"handler":"invoke","name":"x"},{"handler":"td_postback"}]}},"routes":[{"handle":[{"handler":"invoke","name":"x"}]}]}}}}}`,
		`{"logging":{"logs":{"default":null,"a":{"encoder":{"format":"append","wrap":{"format":"filter"}}}}},"apps":{"http":{"servers":{"a":{"logs":{},"routes":[{"handle":[{"handler":"headers","request":{"set":{"X-TD-Write-Key":["1/secret"]}}},{"handler":"td_postback","upstream":"http://u:secret@h"}]}]}}}}}`,
		`{"apps":{"http":{"servers":{"a":{"routes":[{"handle":[{"handler":"rewrite","path_regexp":[null,{"find":"("}]},{"handler":"rewrite","uri":"/%zz{http.request.uri}"},{"handler":"request_body","max_size":-1},{"handler":"td_postback","region":"us01"}]}]}}}}}`,
		`{"apps":{"http":{"servers":{"a":{"routes":[{"match":[{"host":["h"],"not":[{"path":["/js/*","*"],"method":["POST"]}],"method":7}],"group":"g","handle":[{"handler":"td_postback","surfaces":["js"],"pass_thru":true}]},{"group":"g","terminal":true,"handle":[{"handler":"static_response","status_code":"{x}"},{"handler":"metrics"}]}]}}}}}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, config []byte) {
		e, err := examine(config)
		if err != nil {
			return
		}
		var out bytes.Buffer
		loses := printFindings(&out, "file", checkConfiguration(e))
		if loses != strings.Contains(out.String(), headings[losesRecords]) {
			t.Errorf("loses: %v in %s", loses, out.String())
		}
		for _, server := range e.http.Servers {
			if server != nil && len(swallows(server.Routes)) > 0 && !loses {
				t.Errorf("a start warns of a shadow in %s, and the doctor does not", config)
			}
		}
		if len(e.blocks) == 0 && !loses {
			t.Errorf("no td_postback, and no complaint about %s", config)
		}
	})
}

// TestDoctorShowsNoSecrets: keys, headers and passwords of a configuration are
// not in what the doctor prints.
func TestDoctorShowsNoSecrets(t *testing.T) {
	for _, block := range []string{
		"request_header X-TD-Write-Key 1234/5ec2e700\n\t\ttd_postback us01",
		"td_postback {\n\t\t\tupstream http://user:5ec2e700@h.example\n\t\t}",
		"td_postback us01 {\n\t\t\tspool nats nats://user:5ec2e700@n.example\n\t\t}",
		"td_postback us01 {\n\t\t\tspool nats nats://user:5ec2e700@n.example/x\n\t\t}",
	} {
		e := examineText(t, strings.Replace(healthy, "td_postback us01", block, 1))
		var out bytes.Buffer
		printFindings(&out, "file", checkConfiguration(e))
		if strings.Contains(out.String(), "5ec2e700") {
			t.Errorf("%s: %s", block, out.String())
		}
	}
}

// TestDoctorPrintsTheWorstFirst also shows the form of the output.
func TestDoctorPrintsTheWorstFirst(t *testing.T) {
	var out bytes.Buffer
	loses := printFindings(&out, "F", []finding{
		{bites, "A.", "Do a."}, {inOrder, "B.", ""}, {losesRecords, "C.", "Write\n\tc"}, {showsKeys, "D.", "Do d."}, {losesRecords, "E.", "Do e."},
	})
	want := `LOSES RECORDS

 1. C.
    Instead: Write
        c

 2. E.
    Instead: Do e.

SHOWS WRITE KEYS

 3. D.
    Instead: Do d.

MAY BITE LATER

 4. A.
    Instead: Do a.

IN ORDER

 5. B.

F: do not use it like this. Findings that lose records: 2.
`
	if !loses || out.String() != want {
		t.Errorf("%v\n%s", loses, out.String())
	}
	for want, all := range map[string][]finding{
		"F: it would lose no record that the doctor knows of. Findings worth a change: 2.\n": {{bites, "A.", "a"}, {showsKeys, "B.", "b"}, {inOrder, "C.", ""}},
		"F: the doctor finds nothing to change.\n":                                           {{inOrder, "C.", ""}},
	} {
		out.Reset()
		if printFindings(&out, "F", all) || !strings.HasSuffix(out.String(), want) {
			t.Errorf("%+v: %s", all, out.String())
		}
	}
}

func TestDoctorCountsMemory(t *testing.T) {
	e := examineText(t, healthy) // two blocks of 256 MiB, and 64 MiB
	only(t, checkMemory(e, 512<<20, 1<<30), bites, "576 MiB", "Go's memory limit is 512 MiB", "GOMEMLIMIT=576MiB")
	only(t, checkMemory(e, 512<<20, 575<<20), losesRecords, "576 MiB", "has 575 MiB")
	if all := checkMemory(e, 576<<20, 576<<20); len(all) > 0 {
		t.Errorf("%+v", all)
	}
	// Five queues of one spool, for both blocks together.
	e = examineText(t, strings.Replace(healthy, "td_postback us01", "td_postback auto {\n\tspool\n}", 1))
	only(t, checkMemory(e, 895<<20, math.MaxInt64), bites, "896 MiB")
	if all := checkMemory(e, 896<<20, math.MaxInt64); len(all) > 0 {
		t.Errorf("%+v", all)
	}
	// 16 MiB more for each of the five.
	e = examineText(t, strings.Replace(healthy, "td_postback us01", "td_postback auto {\n\tspool {\n\t\tbatch 500\n\t}\n}", 1))
	only(t, checkMemory(e, 975<<20, math.MaxInt64), bites, "976 MiB")
	if all := checkMemory(e, 976<<20, math.MaxInt64); len(all) > 0 {
		t.Errorf("%+v", all)
	}
}

func TestDoctorCountsFiles(t *testing.T) {
	e := examineText(t, healthy)                                          // two blocks of 1,024 connections
	only(t, checkFiles(e, 4195), bites, "4195 files", "needs about 4196") // 2 x 2 x 1,024, and 100
	if all := checkFiles(e, 4196); len(all) > 0 {
		t.Errorf("%+v", all)
	}
}

func TestDoctorLooksAtTheKernel(t *testing.T) {
	file := filepath.Join(t.TempDir(), "tcp_migrate_req")
	e := examineText(t, healthy)
	for setting, says := range map[string]bool{"0\n": true, "1\n": false} {
		if err := os.WriteFile(file, []byte(setting), 0o600); err != nil {
			t.Fatal(err)
		}
		if all := checkKernel(e, file); len(all) > 0 != says {
			t.Errorf("%s: %+v", setting, all)
		}
	}
	if err := os.WriteFile(file, []byte("0\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if all := checkKernel(examineText(t, strings.NewReplacer("http://a.example, https", "https", "\tlog {\n", "\tbind fd/3\n\tlog {\n").Replace(healthy)), file); len(all) > 0 {
		t.Errorf("with sockets of systemd: %+v", all)
	}
	if all := checkKernel(e, file+"no"); len(all) > 0 {
		t.Errorf("on another system: %+v", all)
	}
}

// TestDoctorLooksAtTheSpool: its directory, which is not made, its disk, and the
// files that the block names.
func TestDoctorLooksAtTheSpool(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	block := func(options string) *foundBlock {
		return examineText(t, strings.Replace(healthy, "td_postback us01", "td_postback us01 {\n"+options+"\n}", 1)).blocks[0]
	}
	small := filepath.Join(dir, "a", "b")
	if all := probeSpool(block("spool {\ndir " + small + "\nmax_size 1MiB\n}")); len(all) > 0 {
		t.Errorf("%+v", all)
	}
	if _, err := os.Stat(filepath.Dir(small)); err == nil {
		t.Error("the doctor has made a directory")
	}
	only(t, probeSpool(block("spool {\ndir "+file+"/x\n}")), losesRecords, "cannot be written", file)
	only(t, probeFiles(block("spool {\nkey_file "+file+"\n}")), losesRecords, "does not start", "64 hexadecimal digits")
	only(t, probeFiles(block("tls_ca "+file)), losesRecords, "does not start", "tls_ca")
	if _, known := freeSpace(dir); known {
		only(t, probeSpool(block("spool {\ndir "+small+"\nmax_size 1PiB\n}")), bites, "max_size", "1.3 PiB") // and a quarter for dead letters
	}
	if os.Getuid() == 0 {
		return // who may write everywhere
	}
	if err := os.Chmod(dir, 0o500); err != nil { //nolint:gosec // G302: it is a directory
		t.Fatal(err)
	}
	only(t, probeSpool(block("spool {\ndir "+small+"\n}")), losesRecords, "cannot be written", dir)
}

// TestDoctorLooksAtCertificates: files that are not there, and that are none.
func TestDoctorLooksAtCertificates(t *testing.T) {
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	e := examineText(t, "https://a.example {\n\ttls "+cert+" "+key+"\n\ttd_postback us01\n}\n")
	only(t, probeCertificates(e), losesRecords, "does not start", cert, "no such file")
	for _, file := range []string{cert, key} {
		if err := os.WriteFile(file, []byte("5ec2e700"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	all := probeCertificates(e)
	only(t, all, losesRecords, "does not start", key)
	if strings.Contains(all[0].what, "5ec2e700") {
		t.Errorf("a file's content is in %+v", all)
	}
	writeCertificate(t, cert, key)
	if all := probeCertificates(e); len(all) > 0 {
		t.Errorf("%+v", all)
	}
}

// writeCertificate writes the certificate of httptest, and its key.
func writeCertificate(t *testing.T, cert, key string) {
	t.Helper()
	server := httptest.NewTLSServer(http.NotFoundHandler())
	defer server.Close()
	pair := server.TLS.Certificates[0]
	der, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: pair.Certificate[0]}, key: {Type: "PRIVATE KEY", Bytes: der}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestDoctorReadsTheProxy: a variable that cannot be used needs no network to be
// found.
func TestDoctorReadsTheProxy(t *testing.T) {
	e := examineText(t, healthy)
	if all := probeProxies(e); len(all) > 0 {
		t.Fatalf("%+v", all)
	}
	t.Setenv("HTTPS_PROXY", "ftp://user:5ec2e700@proxy.example")
	all := probeProxies(e)
	only(t, all, losesRecords, "does not start", "HTTPS_PROXY")
	if strings.Contains(all[0].what, "5ec2e700") {
		t.Errorf("a password: %+v", all)
	}
	t.Setenv("HTTPS_PROXY", "http://proxy.example:3128")
	t.Setenv("NO_PROXY", "*.example")
	if all := probeProxies(e); len(all) > 0 {
		only(t, all, losesRecords, "NO_PROXY")
	}
	t.Setenv("NO_PROXY", "10.0.0.0/99")
	only(t, probeProxies(e), losesRecords, "does not start", "NO_PROXY")
}

// TestDoctorNotesKeys: a spool in clear is a note, and no fault.
func TestDoctorNotesKeys(t *testing.T) {
	e := examineText(t, strings.Replace(healthy, "td_postback us01", "td_postback us01 {\nspool\n}", 1))
	only(t, noteKeys(e), inOrder, "not encrypted", "`key_file`")
	e = examineText(t, strings.Replace(healthy, "td_postback us01", "td_postback us01 {\nspool {\nkey_file /k\n}\n}", 1))
	if all := slices.Concat(noteKeys(e), noteKeys(examineText(t, healthy))); len(all) > 0 {
		t.Errorf("%+v", all)
	}
}

// TestDoctorAsksV2 has a stand-in for each way in which the asking can end.
func TestDoctorAsksV2(t *testing.T) {
	asked := make(chan *http.Request, 1)
	answer := func(status int, date string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			asked <- r
			w.Header().Set("Date", date)
			w.WriteHeader(status)
		})
	}
	now, wrong, old := time.Now().UTC().Format(http.TimeFormat), time.Now().Add(-time.Hour).UTC().Format(http.TimeFormat), time.Now().Add(100*time.Hour).UTC().Format(http.TimeFormat)
	for _, test := range []struct {
		status   int
		date     string
		severity []severity
		text     string
	}{
		{403, now, []severity{inOrder, inOrder}, "403 to a record without a key, as it should"},
		{403, wrong, []severity{inOrder, bites}, "wrong by 1h"},
		{403, old, []severity{inOrder, losesRecords}, "wrong by 99h59m"},
		{200, now, []severity{losesRecords, inOrder}, "something else is there"},
		{404, now, []severity{losesRecords, inOrder}, "answers 404"},
		{301, now, []severity{losesRecords, inOrder}, "answers 301"},
		{503, now, []severity{bites, inOrder}, "answers 503 now"},
		{429, now, []severity{bites, inOrder}, "answers 429 now"},
		{403, "yesterday", []severity{inOrder}, "403"},
	} {
		server := httptest.NewServer(answer(test.status, test.date))
		all := probeUpstream(probing(t, server.URL, "surfaces postback"), server.URL)
		var got []severity
		var texts strings.Builder
		for _, f := range all {
			got = append(got, f.severity)
			texts.WriteString(f.what)
		}
		if !reflect.DeepEqual(got, test.severity) || !strings.Contains(strings.NewReplacer("100h0m0s", "99h59m", "1h0m1s", "1h").Replace(texts.String()), test.text) {
			t.Errorf("%d, %s: %+v", test.status, test.date, all)
		}
		if r := <-asked; r.Method != http.MethodPost || r.Header.Get("X-TD-Write-Key") != "" || r.Header.Get("Authorization") != "" || r.URL.RawQuery != "" {
			t.Errorf("it sent %v", r)
		}
		server.Close()
	}
}

// TestDoctorAsksForBatches: a host that takes Postback may take no batches.
func TestDoctorAsksForBatches(t *testing.T) {
	for status, severity := range map[int]severity{200: inOrder, 400: inOrder, 401: inOrder, 403: inOrder, 503: inOrder, 301: bites, 404: bites, 405: bites, 415: bites} {
		var batches atomic.Int32
		v2 := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.HasPrefix(r.URL.Path, "/postback/") {
				w.WriteHeader(http.StatusForbidden)
				return
			}
			if batches.Add(1); r.Method != http.MethodPost || r.URL.Path != "/td_doctor/td_doctor" || r.Header.Get("Authorization") != "TD1" {
				t.Errorf("it sent %s %s %v", r.Method, r.URL, r.Header)
			}
			w.WriteHeader(status)
		}))
		all := probeUpstream(probing(t, v2.URL, "spool {\nbatch 500\n}"), v2.URL)
		worst := slices.MinFunc(all, func(a, b finding) int { return cmp.Compare(a.severity, b.severity) })
		if batches.Load() != 1 || worst.severity != severity {
			t.Errorf("%d, and %d batches: %+v", status, batches.Load(), all)
		}
		says := slices.ContainsFunc(all, func(f finding) bool { return strings.Contains(f.what, "takes batches of records") })
		if says != (severity == inOrder && status != 503) { // 503 does not tell
			t.Errorf("%d: it says that batches are taken: %v", status, says)
		}
		probeUpstream(probing(t, v2.URL, "spool\nsurfaces postback"), v2.URL)
		if batches.Load() != 1 {
			t.Error("where no batch can go, it asks for batches")
		}
		all = probeUpstream(probing(t, v2.URL, "surfaces mobile"), v2.URL)
		worst = slices.MinFunc(all, func(a, b finding) int { return cmp.Compare(a.severity, b.severity) })
		if batches.Load() != 2 || worst.severity != severity || severity == bites && !strings.Contains(worst.what, "several events") {
			t.Errorf("%d for apps: %+v", status, all)
		}
		v2.Close()
	}
}

// TestDoctorFindsACircle: v2's name leads to a gateway.
func TestDoctorFindsACircle(t *testing.T) {
	gateway := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		writeRefusal(w, r, postback.MissingKey)
	}))
	defer gateway.Close()
	h := probing(t, gateway.URL, "")
	if all := probeUpstream(h, gateway.URL); len(all) == 0 || all[0].severity != inOrder {
		t.Errorf("a gateway before another one is no circle: %+v", all)
	}
	h.Upstream = "" // as if the region's host were this one
	only(t, probeUpstream(h, gateway.URL), losesRecords, "circle")
}

// TestDoctorAsksNATS: one server is there, and one is not.
func TestDoctorAsksNATS(t *testing.T) {
	there, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer there.Close()
	gone := natstest.FreeAddr(t)
	e := examineText(t, strings.Replace(healthy, "td_postback us01", "td_postback us01 {\nspool nats nats://"+there.Addr().String()+" tls://user:5ec2e700@"+gone+"\n}", 1))
	all := probeClusters(e)
	only(t, all, losesRecords, gone, "takes no connection")
	if strings.Contains(all[0].what, "5ec2e700") {
		t.Errorf("a password: %+v", all)
	}
}

// probing is a handler for this upstream, with its defaults.
func probing(t *testing.T, upstream, more string) *Handler {
	t.Helper()
	e := examineText(t, strings.Replace(healthy, "td_postback us01", "td_postback {\nupstream "+upstream+"\ndial_timeout 2s\n"+more+"\n}", 1))
	return e.blocks[0].handler
}

// TestDoctorSaysWhereTheWayEnds: at the name, at the connection, at the
// certificate, or at the answer.
func TestDoctorSaysWhereTheWayEnds(t *testing.T) {
	secure := httptest.NewTLSServer(http.NotFoundHandler())
	defer secure.Close()
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	closed := httptest.NewServer(http.NotFoundHandler())
	closed.Close()
	for upstream, want := range map[string]string{
		closed.URL: "takes no connection",
		secure.URL: "certificate that this machine trusts",
		strings.Replace(closed.URL, "http://127.0.0.1", "http://nosuch.invalid", 1): "has no address",
		"http://" + silent.Addr().String():                                          "does not answer",
	} {
		only(t, probeUpstream(probing(t, upstream, "response_timeout 200ms"), upstream), losesRecords, want, "--offline")
	}
}

func TestUnreachable(t *testing.T) {
	address := &url.URL{Scheme: "https", Host: "v2.example"}
	for want, err := range map[string]error{
		"has no address":      &net.OpError{Op: "dial", Err: &net.DNSError{Err: "no such host", Name: "v2.example"}},
		"takes no connection": &net.OpError{Op: "dial", Err: os.ErrDeadlineExceeded},
		"certificate":         &tls.CertificateVerificationError{Err: x509.UnknownAuthorityError{}},
		"does not answer":     os.ErrDeadlineExceeded,
	} {
		if f := unreachable(address, err); strings.Contains(f.instead, "upstream`") != (want == "has no address") || f.severity != losesRecords || !strings.Contains(f.what, want) || !strings.HasPrefix(f.what, "v2.example ") {
			t.Errorf("%v: %+v", err, f)
		}
	}
}

// TestUnreachableHere: behind an upstream of one's own is no firewall.
func TestUnreachableHere(t *testing.T) {
	refused := &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
	for address, here := range map[string]bool{
		"http://127.0.0.1:9000": true, "https://127.0.0.1:9000": true, "https://[::1]:9000": true, "https://localhost:9000": true,
		"http://v2.example": true, "https://v2.example": false,
	} {
		u, err := url.Parse(address)
		if err != nil {
			t.Fatal(err)
		}
		if f := unreachable(u, refused); strings.Contains(f.instead, "Nothing listens there") != here || strings.Contains(f.instead, "HTTPS_PROXY") == here {
			t.Errorf("%s: %+v", address, f)
		}
	}
}

// TestFilteredFields: the fields that the doctor asks for are those of the
// command and of the example.
func TestFilteredFields(t *testing.T) {
	var want struct {
		Fields map[string]json.RawMessage
	}
	if err := json.Unmarshal([]byte(keyFilter), &want); err != nil || len(want.Fields) != len(filteredFields) || len(filteredFields) < 5 {
		t.Errorf("%v: %q", err, filteredFields)
	}
	if missing := unfiltered(json.RawMessage(keyFilter)); len(missing) > 0 {
		t.Error("missing", missing)
	}
}
