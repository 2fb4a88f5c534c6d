package caddymodule

import (
	"bytes"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/td-postback/gateway/migration"
	"github.com/td-postback/gateway/postback"
	"github.com/td-postback/gateway/upstream"
)

// withReport gives a handler a report in memory.
func withReport(t testing.TB, h *Handler) *sharedReport {
	t.Helper()
	r, err := migration.Open(migration.Config{Rows: minRows})
	if err != nil {
		t.Fatal(err)
	}
	h.app, h.report = &App{fingerprints: newFingerprints(new(memoryStorage))}, new(sharedReport)
	h.report.current.Store(r)
	return h.report
}

// data is a record in the query of a JavaScript SDK's call.
func data(record string) string {
	return "&data=" + url.QueryEscape(base64.StdEncoding.EncodeToString([]byte(record)))
}

const (
	plain  = "plain_http" // which all of these calls have
	inURL  = "key_in_url " + plain
	events = "/postback/v3/event/db/t"
	keyed  = events + "?td_write_key=" + benchKey
	asJS   = "/js/v3/event/db/t?api_key=" + benchKey
)

// talliedCalls has each finding at least once.
var talliedCalls = []struct {
	name, method, uri, body string
	headers                 []string
	surface, result, want   string // the findings, in alphabetical order
	example                 string
}{
	{name: "v2's form", method: "POST", uri: events, body: `{"a":1}`, headers: []string{"X-Td-Write-Key", benchKey},
		surface: "post", result: "forwarded", want: plain, example: `POST {"a":number}`},
	{name: "key in Authorization", method: "POST", uri: events, body: `{"a":1}`, headers: []string{"Authorization", "TD1 " + benchKey},
		surface: "post", result: "forwarded", want: plain, example: `POST {"a":number}`},
	{name: "key in the URL", method: "POST", uri: keyed + "&x=1", body: `{"a":"v"}`,
		surface: "post", result: "forwarded", want: inURL, example: `POST ?td_write_key=…&x=string {"a":string}`},
	{name: "another Authorization", method: "POST", uri: keyed, body: `{"a":1}`, headers: []string{"Authorization", "Basic eDp5"},
		surface: "post", result: "forwarded", want: "authorization_dropped " + inURL},
	{name: "as a form", method: "POST", uri: keyed, body: `{"a":1}`, headers: []string{"Content-Type", "application/x-www-form-urlencoded"},
		surface: "post", result: "forwarded", want: "body_type_mended " + inURL},
	{name: "byte-order mark", method: "POST", uri: keyed, body: "\ufeff" + `{"a":1}`,
		surface: "post", result: "forwarded", want: "key_in_url mark_removed " + plain},
	{name: "slashes", method: "POST", uri: "/postback//v3/event/db/t/?td_write_key=" + benchKey, body: `{"a":1}`,
		surface: "post", result: "forwarded", want: "key_in_url path_mended " + plain},
	{name: "old time", method: "POST", uri: keyed, body: `{"td_record_time":1}`,
		surface: "post", result: "forwarded", want: inURL + " time_ignored"},
	{name: "time in milliseconds, from a query", method: "GET", uri: keyed + "&a=1&td_record_time=1796000000000",
		surface: "get", result: "forwarded", want: "from_query " + inURL + " time_ignored"},
	{name: "a name like it", method: "POST", uri: keyed, body: `{"x":{"td_record_time":1}}`, surface: "post", result: "forwarded", want: inURL},
	{name: "get", method: "GET", uri: keyed + "&a=1", surface: "get", result: "forwarded", want: "from_query " + inURL, example: "GET ?td_write_key=…&a=string"},
	{name: "get, no UTF-8", method: "GET", uri: keyed + "&a=%ff", surface: "get", result: "forwarded", want: "encoding_mended from_query " + inURL},
	{name: "get, U+FFFD of the caller's", method: "GET", uri: keyed + "&a=%ef%bf%bd", surface: "get", result: "forwarded", want: "from_query " + inURL},
	{name: "pixel", method: "GET", uri: keyed + "&td_format=pixel&td_ip=td_ip", surface: "pixel", result: "forwarded", want: "answered_with_image from_query " + inURL + " value_filled"},
	{name: "pixel with a body", method: "POST", uri: keyed + "&td_format=pixel", body: `{"a":1}`, surface: "pixel", result: "forwarded", want: "answered_with_image " + inURL},
	{name: "redirect", method: "GET", uri: keyed + "&a=1&td_redirect=https://shop.example/", surface: "get", result: "forwarded", want: "answered_with_redirect from_query " + inURL},
	{name: "redirect elsewhere", method: "GET", uri: keyed + "&a=1&td_redirect=https://other.example/", surface: "get", result: "redirect_not_allowed", want: "from_query " + inURL + " redirect_not_allowed"},
	{name: "ping", method: "POST", uri: keyed + "&a=1", body: "PING", headers: []string{"Content-Type", "text/ping"}, surface: "beacon", result: "forwarded", want: "from_query " + inURL},
	{name: "jsonp", method: "GET", uri: asJS + data(`{"a":"b","td_ip":"td_ip"}`) + "&callback=cb", surface: "jsonp", result: "forwarded", want: "from_query js_sdk " + inURL + " value_filled",
		example: `GET ?api_key=…&data=…&callback=… {"a":string,"td_ip":string}`},
	{name: "jsonp, no UTF-8", method: "GET", uri: asJS + data("{\"a\":\"\xff\"}"), surface: "jsonp", result: "forwarded", want: "encoding_mended from_query js_sdk " + inURL},
	{name: "jsonp that is none", method: "GET", uri: asJS + "&data=%21&callback=cb", surface: "jsonp", result: "invalid_request", want: "from_query invalid_request js_sdk " + inURL,
		example: `GET ?api_key=…&data=…&callback=…`},
	{name: "js", method: "POST", uri: asJS, body: `{"a":1}`, headers: []string{"Content-Type", "text/plain"}, surface: "js", result: "forwarded", want: "body_type_mended js_sdk " + inURL},
	{name: "k", method: "POST", uri: "/js/v3/event", body: `{"db.t":[{"a":1},{"a":2}]}`, headers: []string{"X-Td-Write-Key", benchKey, "X-Td-Data-Type", "k"}, surface: "k", result: "forwarded", want: plain + " several_events"},
	{name: "mobile", method: "POST", uri: "/ios/v3/event", body: `{"db.t":[{"a":1}]}`, headers: []string{"X-Td-Write-Key", benchKey}, surface: "mobile", result: "forwarded", want: "mobile_sdk " + plain},
	{name: "mobile, an event that is none", method: "POST", uri: "/ios/v3/event", body: `{"db.t":[{"a":1},7]}`, headers: []string{"X-Td-Write-Key", benchKey}, surface: "mobile", result: "some_refused", want: "mobile_sdk " + plain + " refused_by_v2"},
	{name: "no key", method: "POST", uri: events, body: `{"a":1}`, surface: "post", result: "missing_write_key", want: "missing_write_key"},
	{name: "a bad key", method: "POST", uri: events + "?td_write_key=1234/", body: `{"a":1}`, surface: "post", result: "invalid_write_key", want: "invalid_write_key key_in_url"},
	{name: "a cut key", method: "POST", uri: events, body: `{"a":1}`, headers: []string{"X-Td-Write-Key", "1234/0123ab"}, surface: "post", result: "forwarded", want: "cut_key " + plain},
	{name: "a template's key", method: "POST", uri: events, body: `{"a":1}`, headers: []string{"X-Td-Write-Key", "YOUR_KEY"}, surface: "post", result: "forwarded", want: plain + " template_key"},
	{name: "another key", method: "POST", uri: events, body: `{"a":1}`, headers: []string{"X-Td-Write-Key", "1234:abc"}, surface: "post", result: "forwarded", want: plain + " unusual_key"},
	{name: "a bad path", method: "POST", uri: "/postback/v3/event/db/a.b", body: `{"a":1}`, headers: []string{"X-Td-Write-Key", benchKey}, surface: "post", result: "invalid_path", want: "invalid_path"},
	{name: "another path", method: "POST", uri: "/robots.txt", surface: "post", result: "not_found", want: "not_found"},
	{name: "another path, by GET", method: "GET", uri: "/robots.txt?a=1", surface: "get", result: "not_found", want: "not_found"},
	{name: "another path, with a key", method: "GET", uri: "/v3/event/db/t?td_write_key=" + benchKey, surface: "get", result: "not_found", want: "from_query key_in_url not_found"},
	{name: "another method", method: "PUT", uri: events, body: `{"a":1}`, surface: "other", result: "method_not_allowed", want: "method_not_allowed"},
	{name: "a large head", method: "POST", uri: events, body: `{"a":1}`, headers: []string{"X-Large", strings.Repeat("x", 70_000)}, surface: "post", result: "headers_too_large", want: "headers_too_large"},
	{name: "a large body", method: "POST", uri: keyed, body: strings.Repeat("x", postback.MaxBody+1), surface: "post", result: "payload_too_large", want: "key_in_url payload_too_large " + plain},
}

// TestEachCallIsTallied sends a call of each kind, and one for each thing that is changed
// or refused: each is one row, with its findings, and an example that has no value.
func TestEachCallIsTallied(t *testing.T) {
	seen := map[string]bool{}
	for _, tc := range talliedCalls {
		t.Run(tc.name, func(t *testing.T) {
			h := stubHandler()
			h.redirectHosts = []string{"shop.example"}
			row := tallied(t, h, taggedRequest(tc.method, tc.uri, tc.body, tc.headers...))
			found := foundIn(row)
			for _, name := range found {
				seen[name] = true
			}
			if got := strings.Join(found, " "); got != tc.want {
				t.Errorf("findings: got %s, want %s", got, tc.want)
			}
			if row.Surface != tc.surface || row.Results[tc.result] != row.Events || row.Lanes["v2"] != row.Events {
				t.Errorf("got %+v", row)
			}
			if tc.example != "" && (len(row.Examples) != 1 || row.Examples[0].Request != tc.example) {
				t.Errorf("got the example %+v", row.Examples)
			}
		})
	}
	for _, elsewhere := range []string{"request_timeout", "unknown_region", "unknown_key", "unknown_database", "legacy_refused"} {
		seen[elsewhere] = true
	}
	for _, code := range postback.RefusalCodes {
		if _, ok := migration.FindingOf(code); ok && !seen[code] {
			t.Errorf("no call has %s", code)
		}
	}
}

// TestWhoIsLeft: a caller is left by what it sends, and not by what becomes of it.
func TestWhoIsLeft(t *testing.T) {
	key := []string{"X-Td-Write-Key", benchKey}
	cut := func(r *http.Request) {
		r.Body, r.ContentLength = io.NopCloser(iotest.ErrReader(io.ErrUnexpectedEOF)), 99
	}
	slow := func(r *http.Request) {
		r.Body, r.ContentLength = io.NopCloser(iotest.ErrReader(os.ErrDeadlineExceeded)), 99
	}
	for _, tc := range []struct {
		name, method, uri, body string
		headers                 []string
		change                  func(*http.Request)
		state                   migration.State
		found                   string
	}{
		{"v2's form", "POST", events, `{"a":1}`, key, nil, migration.Ready, ""},
		{"the key in the URL", "POST", keyed, `{"a":1}`, nil, nil, migration.Left, "key_in_url"},
		{"a body that ends early", "POST", events, "", key, cut, migration.Ready, "body_cut"},
		{"one of several events", "POST", "/js/v3/event", "", key, cut, migration.Left, "body_cut several_events"},
		{"a body that does not come", "POST", events, "", key, slow, migration.Ready, "request_timeout"},
		{"a record in the query", "GET", events + "?a=1", "", key, nil, migration.Left, "from_query"},
		{"no key", "POST", events, `{"a":1}`, nil, nil, migration.Left, "missing_write_key"},
		{"a scanner", "GET", "/robots.txt?a=1", "", nil, nil, migration.Stranger, "not_found"},
		{"a check of the gateway's health", "POST", "/", "", nil, nil, migration.Stranger, "not_found"},
		{"a key for another path", "POST", "/v3/event/db/t", `{"a":1}`, key, nil, migration.Left, "not_found"},
		{"a pixel at another path", "GET", "/event/db/t?td_format=pixel&td_write_key=" + benchKey, "", nil, nil, migration.Left, "answered_with_image from_query key_in_url not_found"},
		{"an SDK that asks for its global id", "GET", "/js/v3/global_id?callback=cb", "", nil, nil, migration.Left, "js_sdk not_found"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := taggedRequest(tc.method, tc.uri, tc.body, tc.headers...)
			r.TLS = &tls.ConnectionState{HandshakeComplete: true}
			if tc.change != nil {
				tc.change(r)
			}
			row := tallied(t, stubHandler(), r)
			if got := strings.Join(foundIn(row), " "); row.State != tc.state || got != tc.found {
				t.Errorf("got %s with %s: %+v", row.State, got, row)
			}
		})
	}
}

// taggedRequest is a call of a script's.
func taggedRequest(method, uri, body string, headers ...string) *http.Request {
	r := benchRequest(method, uri, len(body))
	r.Body = &stubBody{data: []byte(body)}
	r.Header.Set("User-Agent", "python-requests/2.31.0")
	for pair := range slices.Chunk(headers, 2) {
		r.Header.Set(pair[0], pair[1])
	}
	return r
}

// tallied sends a call, and returns its row.
func tallied(t *testing.T, h *Handler, r *http.Request) migration.Row {
	t.Helper()
	report := withReport(t, h)
	if err := h.ServeHTTP(httptest.NewRecorder(), r, nil); err != nil {
		t.Fatal(err)
	}
	if used := h.bodies.inUse.Load(); used != 0 {
		t.Errorf("%d bytes are still counted", used)
	}
	rows := report.get().List(time.Now()).Rows
	if len(rows) != 1 {
		t.Fatalf("%d rows", len(rows))
	}
	text, _ := json.Marshal(rows[0])
	if bytes.Contains(text, []byte("0123456789abcdef")) {
		t.Errorf("a key is in %s", text)
	}
	if rows[0].Agent != "python-requests" || rows[0].Source != "192.0.2.0/24" {
		t.Errorf("got %s from %s", rows[0].Agent, rows[0].Source)
	}
	return rows[0]
}

func foundIn(row migration.Row) (names []string) {
	for _, f := range row.Findings {
		names = append(names, f.Name)
	}
	slices.Sort(names)
	return names
}

// oneAnswer answers each request with a status.
type oneAnswer struct {
	stubConn
	status int
}

func (c oneAnswer) Read(p []byte) (int, error) {
	return copy(p, fmt.Sprintf("HTTP/1.1 %d x\r\nContent-Length: 2\r\n\r\n{}", c.status)), nil
}

// TestAnswersAreTallied: what v2 says of the record or its key is a finding, and not what
// it says of itself or of the account.
func TestAnswersAreTallied(t *testing.T) {
	for status, want := range map[int]string{
		200: "", 301: "", 400: "refused_by_v2", 401: "refused_by_v2", 403: "refused_by_v2", 408: "", 413: "refused_by_v2", 422: "refused_by_v2", 429: "", 500: "", 503: "",
	} {
		h := stubHandler()
		client, err := upstream.New(upstream.Config{
			URL: &url.URL{Scheme: "http", Host: "v2"}, Dial: func(string) (net.Conn, error) { return oneAnswer{status: status}, nil }, Timeout: time.Minute, MaxConns: 1,
		})
		if err != nil {
			t.Fatal(err)
		}
		h.single.Client = client
		r := taggedRequest(http.MethodPost, events, `{"a":1}`, "X-Td-Write-Key", benchKey)
		r.TLS = &tls.ConnectionState{HandshakeComplete: true}
		row := tallied(t, h, r)
		if got := strings.Join(foundIn(row), " "); got != want || row.Results[upstreamResult(status)] != 1 || (row.State == migration.Left) != (want != "") {
			t.Errorf("%d: got %q, %s, %v", status, got, row.State, row.Results)
		}
	}
}

// TestRefusalsOfKeysAreTallied: what the operator does not know, with the key's name.
func TestRefusalsOfKeysAreTallied(t *testing.T) {
	for uri, want := range map[string]string{
		keyed: "key_in_url unknown_key", "/postback/v3/event/no/t?td_write_key=77/0123456789abcdef0123456789abcdef01234567": "key_in_url unknown_database",
	} {
		h, _ := watchedHandler(t, &Keys{Accounts: []string{"77"}, Databases: []string{"db"}})
		row := tallied(t, h, taggedRequest(http.MethodPost, uri, `{"a":1}`))
		if got := strings.Join(foundIn(row), " "); got != want || !strings.Contains(row.Key, "/#") {
			t.Errorf("%s: got %s of %s", uri, got, row.Key)
		}
	}
}

// TestCallsThatAreNotRead: a call is refused before its key is needed, since the gateway is
// at its limit, or since its head is too large. It is in its caller's row all the same.
func TestCallsThatAreNotRead(t *testing.T) {
	for name, tc := range map[string]struct {
		uri     string
		headers []string
		found   string
	}{
		"in the URL":    {keyed + "&x=1", nil, "key_in_url"},
		"in a header":   {events, []string{"X-Td-Write-Key", benchKey}, ""},
		"of an SDK":     {asJS, nil, "js_sdk key_in_url"},
		"Authorization": {events, []string{"Authorization", "TD1 " + benchKey}, ""},
	} {
		for result, change := range map[string]func(h *Handler, r *http.Request){
			"overloaded":        func(h *Handler, _ *http.Request) { h.bodies.maxTotal = 1 },
			"headers_too_large": func(_ *Handler, r *http.Request) { r.Header.Set("X-Large", strings.Repeat("x", 70_000)) },
		} {
			t.Run(result+", the key "+name, func(t *testing.T) {
				h, r := stubHandler(), taggedRequest(http.MethodPost, tc.uri, "", tc.headers...)
				change(h, r)
				row := tallied(t, h, r)
				got := slices.DeleteFunc(foundIn(row), func(name string) bool { return name == result })
				if !strings.HasPrefix(row.Key, "1234/#") || strings.Join(got, " ") != tc.found || row.Results[result] != 1 {
					t.Errorf("got %+v", row)
				}
			})
		}
	}
}

// abortingWriter is a caller that cannot be written to.
type abortingWriter struct{ stubWriter }

func (*abortingWriter) WriteHeader(int) { panic(http.ErrAbortHandler) }

// TestTalliedResult: the report says of a call that is aborted what the metrics say.
func TestTalliedResult(t *testing.T) {
	for want, tc := range map[string]struct {
		cut    bool
		result string
	}{
		cutResult:       {cut: true, result: forwardedResult},
		noOutcomeResult: {},
		forwardedResult: {result: forwardedResult},
	} {
		h := stubHandler()
		report := withReport(t, h)
		c := call{w: new(stubWriter), r: benchRequest(http.MethodPost, benchPath, 0), to: h.single, result: tc.result, books: new(surfaceBooks)}
		c.trip.Cut, c.Kind, c.Source = tc.cut, postback.Post, postback.KeyHeader
		h.tally(&c)
		c.finish()
		if row := report.get().List(time.Now()).Rows[0]; row.Results[want] != 1 || c.result != want {
			t.Errorf("want %s, got %s and %v", want, c.result, row.Results)
		}
	}
	h := stubHandler()
	report := withReport(t, h)
	func() {
		defer func() { _ = recover() }()
		_ = h.ServeHTTP(&abortingWriter{stubWriter{header: http.Header{}}}, taggedRequest(http.MethodPost, keyed, `{"a":1}`), nil)
	}()
	if row := report.get().List(time.Now()).Rows[0]; row.Results[noOutcomeResult] != 1 {
		t.Errorf("an abort: %v", row.Results)
	}
}

// TestHandedOffIsTallied: what the call was is noted before the next handler gets what v2
// is to get.
func TestHandedOffIsTallied(t *testing.T) {
	h := stubHandler()
	h.Handoff = true
	next := caddyhttp.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) error { w.WriteHeader(http.StatusOK); return nil })
	report := withReport(t, h)
	r := benchRequest(http.MethodGet, "/postback/v3/event//db/t?a=1&td_write_key="+benchKey, 0)
	r.Header.Set("Authorization", "Basic eDp5")
	if err := h.ServeHTTP(httptest.NewRecorder(), r, next); err != nil {
		t.Fatal(err)
	}
	row := report.get().List(time.Now()).Rows[0]
	if got := strings.Join(foundIn(row), " "); got != "authorization_dropped from_query key_in_url path_mended plain_http" || row.Results[handedOffResult] != 1 {
		t.Errorf("got %s %v", got, row.Results)
	}
	if row.Examples[0].Request != "GET ?a=string&td_write_key=…" {
		t.Errorf("got %q", row.Examples[0].Request)
	}
}

// TestPagesAreTallied: who calls from a page is told by its site.
func TestPagesAreTallied(t *testing.T) {
	for _, headers := range [][]string{{"Origin", "https://shop.example"}, {"Referer", "https://shop.example/item?id=7"}} {
		h := stubHandler()
		report := withReport(t, h)
		r := benchRequest(http.MethodGet, benchPath+"&"+benchQuery, 0)
		r.Header.Set(headers[0], headers[1])
		if err := h.ServeHTTP(httptest.NewRecorder(), r, nil); err != nil {
			t.Fatal(err)
		}
		if row := report.get().List(time.Now()).Rows[0]; row.Agent != "Firefox" || row.Source != "shop.example" {
			t.Errorf("%s: got %s from %s", headers[0], row.Agent, row.Source)
		}
	}
}

// TestSeveralEventsAreTallied: a call with several events counts as so many.
func TestSeveralEventsAreTallied(t *testing.T) {
	row := tallied(t, stubHandler(), taggedRequest(http.MethodPost, "/android/v3/event", `{"db.a":[{"n":1},{"n":2}],"db.b":[{"n":3}]}`, "X-Td-Write-Key", benchKey))
	if row.Events != 3 || row.Database != "db" || row.Table != "" {
		t.Errorf("got %+v", row)
	}
}

// TestPreflightsAreNotTallied: they are no events.
func TestPreflightsAreNotTallied(t *testing.T) {
	h := stubHandler()
	report := withReport(t, h)
	if err := h.ServeHTTP(httptest.NewRecorder(), benchRequest(http.MethodOptions, events, 0), nil); err != nil {
		t.Fatal(err)
	}
	if rows := report.get().List(time.Now()).Rows; len(rows) > 0 {
		t.Errorf("got %+v", rows)
	}
}

// TestManyKeys: a key that is remembered has the same name, and not too many are.
func TestManyKeys(t *testing.T) {
	f := newFingerprints(new(memoryStorage))
	for n := range 2*maxKnownKeys + 10 {
		key := fmt.Sprintf("%d/%x", n, n)
		first, again := f.quickly(key), f.quickly(key)
		if first.name != f.of(key) || !first.findings.Has(migration.CutKey) || again != first {
			t.Fatalf("%+v and %+v", first, again)
		}
		if len(f.known) > maxKnownKeys {
			t.Fatalf("%d keys", len(f.known))
		}
	}
	if f.quickly("") != (knownKey{}) {
		t.Error("no key has a name")
	}
}

// sender sends a request through a handler, again and again: a POST by a program, others by
// a browser, from a page.
func sender(t testing.TB, h *Handler, method, uri string, size int) func() {
	r := benchRequest(method, uri, size)
	if method == http.MethodPost {
		r.Header["User-Agent"] = []string{"python-requests/2.31.0"}
	} else {
		r.Header["Referer"] = []string{"https://shop.example/item?id=7"}
	}
	body, read, w := benchBody(size), &stubBody{}, &stubWriter{header: http.Header{}}
	r.Body = read
	return func() {
		read.data = body
		clear(w.header)
		w.status = 0
		if err := h.ServeHTTP(w, r, nil); err != nil || w.status != http.StatusOK {
			t.Fatal(err, w.status)
		}
	}
}
