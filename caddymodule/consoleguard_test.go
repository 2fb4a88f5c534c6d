package caddymodule

import (
	"errors"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/td-postback/gateway/console"
	"github.com/td-postback/gateway/migration"
)

// aConsole is one that watches nothing.
func aConsole() *Console { return &Console{gateway: "gw-1", watch: new(consoleWatch)} }

// askConsole sends a request with these headers. The method is the first word.
func askConsole(t *testing.T, c *Console, target string, header map[string]string, form url.Values) *httptest.ResponseRecorder {
	t.Helper()
	method, path, _ := strings.Cut(target, " ")
	r := httptest.NewRequestWithContext(t.Context(), method, path, strings.NewReader(form.Encode()))
	r.Host, r.RemoteAddr = "localhost:8181", "127.0.0.1:5000"
	if form != nil {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	for name, value := range header {
		switch name {
		case "Host":
			r.Host = value
		case "RemoteAddr":
			r.RemoteAddr = value
		case "Proto":
			r.Proto, r.ProtoMinor = "HTTP/1.0", 0
		default:
			r.Header.Set(name, value)
		}
	}
	w := httptest.NewRecorder()
	if err := c.ServeHTTP(w, r, nil); err != nil {
		t.Fatal(err)
	}
	return w
}

// ownPost is what a browser says of a form of the page's own.
var ownPost = map[string]string{"Origin": "http://localhost:8181", "Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}

// with is a request's headers and others.
func with(header map[string]string, more ...string) map[string]string {
	all := map[string]string{}
	maps.Copy(all, header)
	for pair := range slices.Chunk(more, 2) {
		all[pair[0]] = pair[1]
		if pair[1] == "" {
			delete(all, pair[0])
		}
	}
	return all
}

// TestConsoleGuards asks for each part, under each condition: a guard holds for all parts
// alike, and a refusal has the same headers as the page.
func TestConsoleGuards(t *testing.T) {
	t.Cleanup(sampled.forget)
	for name, test := range map[string]struct {
		console Console
		header  map[string]string
		want    int
	}{
		"as it is":                       {Console{}, nil, 200},
		"IPv4 address":                   {Console{}, with(nil, "Host", "127.0.0.1"), 200},
		"another loopback address":       {Console{}, with(nil, "Host", "127.9.9.9:80"), 200},
		"IPv6 address":                   {Console{}, with(nil, "Host", "[::1]:8181", "RemoteAddr", "[::1]:5000"), 200},
		"mapped client":                  {Console{}, with(nil, "RemoteAddr", "[::ffff:127.0.0.1]:5000"), 200},
		"name below localhost":           {Console{}, with(nil, "Host", "console.LOCALHOST."), 200},
		"rebinding":                      {Console{}, with(nil, "Host", "evil.example:8181"), 403},
		"rebinding by a like name":       {Console{}, with(nil, "Host", "localhost.evil.example"), 403},
		"rebinding by a number":          {Console{}, with(nil, "Host", "2130706433"), 403},
		"rebinding, remote allowed":      {Console{AllowRemote: true}, with(nil, "Host", "evil.example"), 403},
		"an address of the network":      {Console{}, with(nil, "Host", "192.0.2.1"), 403},
		"no Host":                        {Console{}, with(nil, "Host", ":"), 403},
		"a host of the list":             {Console{Hosts: []string{"Ops.Example"}}, with(nil, "Host", "ops.example:443"), 200},
		"of the list, with a dot":        {Console{Hosts: []string{"ops.example."}}, with(nil, "Host", "OPS.example"), 200},
		"an address of the list":         {Console{Hosts: []string{"2001:DB8:0:0::1"}}, with(nil, "Host", "[2001:db8::1]:8181"), 200},
		"not of the list":                {Console{Hosts: []string{"ops.example"}}, nil, 403},
		"remote client":                  {Console{}, with(nil, "RemoteAddr", "192.0.2.7:5000"), 403},
		"remote client, allowed":         {Console{AllowRemote: true}, with(nil, "RemoteAddr", "192.0.2.7:5000"), 200},
		"a client without an address":    {Console{}, with(nil, "RemoteAddr", "@"), 403},
		"through a proxy":                {Console{}, with(nil, "X-Forwarded-For", "127.0.0.1"), 403},
		"through a proxy, Forwarded":     {Console{}, with(nil, "Forwarded", "for=127.0.0.1"), 403},
		"through a proxy, Via":           {Console{}, with(nil, "Via", "1.1 x"), 403},
		"through a proxy, its host only": {Console{}, with(nil, "X-Forwarded-Host", "ops.example"), 403},
		"through a proxy, its scheme":    {Console{}, with(nil, "X-Forwarded-Proto", "https"), 403},
		"through a proxy, client only":   {Console{}, with(nil, "X-Client-Ip", "192.0.2.7"), 403},
		"through a proxy, in a chain":    {Console{}, with(nil, "X-Original-Forwarded-For", "192.0.2.7"), 403},
		"through a proxy, HTTP/1.0":      {Console{}, with(nil, "Proto", "1.0"), 403},
		"HTTP/1.0, remote allowed":       {Console{AllowRemote: true}, with(nil, "Proto", "1.0"), 200},
		"through a proxy, allowed":       {Console{AllowRemote: true}, with(nil, "Via", "1.1 x"), 200},
		"opened by hand":                 {Console{}, with(nil, "Sec-Fetch-Site", "none", "Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "document"), 200},
		"a link elsewhere":               {Console{}, with(nil, "Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "document"), 200},
		"framed elsewhere":               {Console{}, with(nil, "Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "iframe"), 403},
		"framed here":                    {Console{}, with(nil, "Sec-Fetch-Site", "same-origin", "Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "frame"), 403},
		"embedded":                       {Console{}, with(nil, "Sec-Fetch-Site", "same-site", "Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "object"), 403},
		"a script or an image of others": {Console{}, with(nil, "Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "no-cors", "Sec-Fetch-Dest", "script"), 403},
		"read by another port":           {Console{}, with(nil, "Sec-Fetch-Site", "same-site", "Sec-Fetch-Mode", "cors", "Sec-Fetch-Dest", "empty"), 403},
	} {
		for _, part := range []string{"/", "/?part=body", "/?part=style", "/?part=script", "/?part=icon", "/any/path?caller=x"} {
			console := test.console
			console.watch = new(consoleWatch)
			w := askConsole(t, &console, "GET "+part, test.header, nil)
			if w.Code != test.want {
				t.Errorf("%s, %s: %d, want %d", name, part, w.Code, test.want)
			}
			checkConsoleHeaders(t, w.Header())
		}
	}
}

// checkConsoleHeaders fails if an answer lets a browser do more than the page needs.
func checkConsoleHeaders(t *testing.T, header http.Header) {
	t.Helper()
	for name, want := range map[string]string{
		"Content-Security-Policy": "default-src 'none'", "X-Frame-Options": "DENY", "X-Content-Type-Options": "nosniff",
		"Cache-Control": "no-store", "Cross-Origin-Resource-Policy": "same-origin",
	} {
		if !strings.HasPrefix(header.Get(name), want) {
			t.Errorf("%s: %q", name, header.Get(name))
		}
	}
	policy := header.Get("Content-Security-Policy")
	if !strings.Contains(policy, "frame-ancestors 'none'") || !strings.Contains(policy, "base-uri 'none'") || strings.Contains(policy, "unsafe") || strings.Contains(policy, "*") {
		t.Error(policy)
	}
	if header.Get("Access-Control-Allow-Origin") != "" {
		t.Error("another origin may read it")
	}
}

// TestConsoleMethods: without actions, there is nothing but reading.
func TestConsoleMethods(t *testing.T) {
	for _, method := range []string{"POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "X"} {
		for _, actions := range []bool{false, true} {
			c := aConsole()
			c.Actions = actions
			if method == "POST" && actions {
				continue
			}
			form := url.Values{"token": {consoleToken}, "do": {"rollback"}}
			w := askConsole(t, c, method+" /", ownPost, form)
			if w.Code != http.StatusMethodNotAllowed {
				t.Errorf("%s, actions %v: %d", method, actions, w.Code)
			}
			if got := w.Header().Get("Allow"); got != map[bool]string{false: "GET, HEAD", true: "GET, HEAD, POST"}[actions] {
				t.Errorf("%s, actions %v: allowed is %q", method, actions, got)
			}
		}
	}
	if w := askConsole(t, aConsole(), "HEAD /", nil, nil); w.Code != http.StatusOK {
		t.Errorf("HEAD: %d", w.Code)
	}
}

// TestConsoleForms: only a form of the page's own acts. Each case lacks one thing.
func TestConsoleForms(t *testing.T) {
	options := aPlan(t)
	plan := startPlan(t, options)
	t.Cleanup(plan.leave)
	token := url.Values{"token": {consoleToken}, "do": {"rollback"}}
	for name, test := range map[string]struct {
		header map[string]string
		form   url.Values
	}{
		"another origin":            {with(ownPost, "Origin", "http://evil.example"), token},
		"another port":              {with(ownPost, "Origin", "http://localhost:1"), token},
		"another scheme":            {with(ownPost, "Origin", "https://localhost:8181"), token},
		"no origin":                 {with(ownPost, "Origin", "null"), token},
		"cross-site":                {with(ownPost, "Sec-Fetch-Site", "cross-site"), token},
		"same-site":                 {with(ownPost, "Sec-Fetch-Site", "same-site"), token},
		"cross-site without Origin": {with(ownPost, "Sec-Fetch-Site", "cross-site", "Origin", ""), token},
		"no word of a browser":      {nil, token},
		"no token":                  {ownPost, url.Values{"do": {"rollback"}}},
		"another token":             {ownPost, url.Values{"token": {strings.Repeat("0", 64)}, "do": {"rollback"}}},
		"rebinding":                 {with(ownPost, "Host", "evil.example", "Origin", "http://evil.example"), token},
		"framed":                    {with(ownPost, "Sec-Fetch-Dest", "iframe"), token},
		"remote":                    {with(ownPost, "RemoteAddr", "192.0.2.7:1"), token},
	} {
		c := aConsole()
		c.Actions = true
		if w := askConsole(t, c, "POST /", test.header, test.form); w.Code != http.StatusForbidden {
			t.Errorf("%s: %d %s", name, w.Code, w.Body)
		}
	}
	c := aConsole()
	c.Actions = true
	// A token in the address is none: it would be in logs.
	if w := askConsole(t, c, "POST /?token="+consoleToken, ownPost, url.Values{"do": {"rollback"}}); w.Code != http.StatusForbidden {
		t.Errorf("token in the address: %d", w.Code)
	}
	if plan.get().Status().Hold != nil {
		t.Fatal("something has acted")
	}
	for _, header := range []map[string]string{ownPost, with(ownPost, "Sec-Fetch-Site", ""), with(ownPost, "Origin", "")} {
		if w := askConsole(t, c, "POST /", header, token); w.Code != http.StatusSeeOther || plan.get().Status().Hold == nil {
			t.Errorf("%v: %d %s", header, w.Code, w.Body)
		}
	}
}

// doForm sends a form of the page's own, and returns what the page says then.
func doForm(t *testing.T, c *Console, status int, form url.Values) string {
	t.Helper()
	form.Set("token", consoleToken)
	w := askConsole(t, c, "POST /", ownPost, form)
	if w.Code != status {
		t.Errorf("%v: %d, want %d\n%s", form, w.Code, status, w.Body)
	}
	if w.Code != http.StatusSeeOther {
		return w.Body.String()
	}
	return askConsole(t, c, "GET /"+w.Header().Get("Location"), nil, nil).Body.String()
}

// TestConsoleActions does what the forms do, in turn. The page says it, and what to see to.
func TestConsoleActions(t *testing.T) {
	plan := startPlan(t, aPlan(t))
	t.Cleanup(plan.leave)
	t.Cleanup(sampled.forget)
	c := aConsole()
	c.Actions = true
	do := func(status int, says string, form url.Values) {
		t.Helper()
		if said := doForm(t, c, status, form); !strings.Contains(said, says) {
			t.Errorf("%v: %q is not in %s", form, says, said)
		}
	}
	lane := func(want migration.Lane) {
		t.Helper()
		wantLane(t, plan, want)
	}
	lane(migration.Legacy)
	do(303, "<strong>Done.</strong> 100 % of shop.orders go to v2, from the next request on.", url.Values{"do": {"share"}, "base": {"0"}, "rule": {" shop.orders "}, "percent": {"100"}})
	lane(migration.V2)
	do(409, "<strong>Not done.</strong> The plan has revision 1, and not 0", url.Values{"do": {"share"}, "base": {"0"}, "rule": {"shop.orders"}, "percent": {"1"}})
	do(303, "Everything goes to the legacy host, from the next request on.", url.Values{"do": {"rollback"}, "note": {"3 a.m."}})
	lane(migration.Legacy)
	if hold := plan.get().Status().Hold; hold == nil || hold.Who != "console@127.0.0.1" || hold.Note != "3 a.m." {
		t.Errorf("%+v", hold)
	}
	do(303, "Nothing has changed: the plan is like that already.", url.Values{"do": {"rollback"}})
	do(303, "50 % of shop.orders go to v2, once it is resumed", url.Values{"do": {"share"}, "base": {"2"}, "rule": {"shop.orders"}, "percent": {"50"}})
	do(303, "The shares are those of revision 1 again, once it is resumed", url.Values{"do": {"undo"}, "base": {"3"}, "revision": {"1"}})
	do(303, "The shares of the plan hold again", url.Values{"do": {"resume"}, "base": {"4"}})
	lane(migration.V2)
	do(303, "Everything that comes to this gateway goes to the legacy host", url.Values{"do": {"rollback"}, "local": {"yes"}})
	lane(migration.Legacy)
	do(303, "<strong>Done, but look.</strong> This gateway is rolled back by itself", url.Values{"do": {"resume"}, "base": {"5"}})
	lane(migration.Legacy)
	do(303, "The shares of the plan hold again", url.Values{"do": {"resume"}, "local": {"yes"}, "base": {"5"}})
	lane(migration.V2)
	do(303, "The rule shop.orders is gone, and the next more general one holds, from the next request on.", url.Values{"do": {"unset"}, "base": {"5"}, "rule": {"shop.orders"}, "account": {""}})
	lane(migration.Legacy)
	do(400, "The default *.* cannot be taken away", url.Values{"do": {"unset"}, "base": {"6"}, "rule": {"*.*"}})
	do(400, "The rule must be", url.Values{"do": {"unset"}, "base": {"6"}, "rule": {"shop"}})
	do(400, "", url.Values{"do": {"share"}, "base": {"6"}, "rule": {"shop"}, "percent": {"1"}})
	do(400, "", url.Values{"do": {"share"}, "base": {"6"}, "rule": {"shop.orders"}, "percent": {"101"}})
	do(400, "", url.Values{"do": {"share"}, "rule": {"shop.orders"}, "percent": {"1"}})
	do(400, "", url.Values{"do": {"share"}, "base": {"x"}, "rule": {"shop.orders"}, "percent": {"1"}})
	do(400, "", url.Values{"do": {"undo"}, "base": {"6"}, "revision": {"x"}})
	do(400, "", url.Values{"do": {"everything"}})
	do(400, "", url.Values{"do": {"replay"}, "spool": {"/nowhere"}, "id": {"1"}})
	lane(migration.Legacy)
	// A note that is too long, which a browser counts in characters, does not keep a rollback
	// from holding.
	do(303, "Everything goes to the legacy host", url.Values{"do": {"rollback"}, "note": {strings.Repeat("午前三時", 125)}})
	if hold := plan.get().Status().Hold; hold == nil || !strings.HasPrefix(hold.Note, "午前三時午") || !utf8.ValidString(hold.Note) || strings.Contains(hold.Note, "\ufffd") {
		t.Errorf("%+v", hold)
	}
	// A form that is too large is not read.
	do(400, "", url.Values{"do": {"rollback"}, "note": {strings.Repeat("x", maxForm)}})
}

// TestConsoleIsUnsure of a change that a disk or a cluster may have taken, and of no other:
// it does not say that nothing was done.
func TestConsoleIsUnsure(t *testing.T) {
	for _, of := range []struct {
		err  error
		want string
	}{
		{errUnsure, "Not confirmed."},
		{errNotBegun, "Not done."},
		{&migration.NotSavedError{Err: errors.New("no answer"), Unsure: true}, "Not confirmed."},
		{&migration.NotSavedError{Err: errors.New("no room")}, "Not done."},
	} {
		if got := (&console.Notice{Unsure: isUnsure(of.err)}).Done(); got != of.want || statusOf(of.err) != http.StatusServiceUnavailable {
			t.Errorf("%v: %s %d", of.err, got, statusOf(of.err))
		}
	}
}

// TestConsoleSaysOnlyWhatWasDone: no address of the page has it say that something was
// done, but the one that is given to who has done it; and that one not for long.
func TestConsoleSaysOnlyWhatWasDone(t *testing.T) {
	t.Cleanup(sampled.forget)
	c := aConsole()
	for _, made := range []string{"rollback", "", "0", "done"} {
		if said := askConsole(t, c, "GET /?said="+made+"&done="+made, nil, nil).Body.String(); strings.Contains(said, "Done.") {
			t.Errorf("%q: %s", made, said)
		}
	}
	now := time.Now()
	name := c.watch.said.keep(&console.Notice{Level: console.Good, Text: "It is done."}, now)
	if said := askConsole(t, c, "GET /?said="+name, nil, nil).Body.String(); !strings.Contains(said, "It is done.") {
		t.Error(said)
	}
	if c.watch.said.find(name, now.Add(2*saidFor)) != nil {
		t.Error("it is said for ever")
	}
	for range 3 * maxSaid {
		c.watch.said.keep(new(console.Notice), now)
	}
	if got := len(c.watch.said.list); got != maxSaid {
		t.Errorf("%d are kept", got)
	}
}
