package caddymodule

import (
	"compress/gzip"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/td-postback/gateway/migration"
	"github.com/td-postback/gateway/postback"
	"github.com/td-postback/gateway/sandbox"
	"github.com/td-postback/gateway/upstream"
)

// auditedCalls are calls that the lane of v2 takes otherwise than the legacy host, beside
// talliedCalls.
var auditedCalls = []struct {
	name, method, uri, body string
	headers                 []string
}{
	{name: "no object", method: "POST", uri: keyed, body: `[1]`},
	{name: "no whole object", method: "POST", uri: keyed, body: `{"a":1`},
	{name: "no body", method: "POST", uri: keyed},
	{name: "no object, in gzip", method: "POST", uri: keyed, body: gzipped(`[1]`), headers: []string{"Content-Encoding", "gzip"}},
	{name: "no whole object, in gzip", method: "POST", uri: keyed, body: gzipped(`{"a":1`), headers: []string{"Content-Encoding", "gzip"}},
	{name: "gzip that is cut", method: "POST", uri: keyed, body: gzipped(`{"a":1}`)[:15], headers: []string{"Content-Encoding", "x-gzip"}},
	{name: "no object, in many bytes of gzip", method: "POST", uri: keyed, body: gzipped("[" + strings.Repeat(" ", 900_000) + "]"), headers: []string{"Content-Encoding", "gzip"}},
	{name: "js with an array in gzip", method: "POST", uri: asJS, body: gzipped(`[1]`), headers: []string{"Content-Encoding", "gzip"}},
	{name: "an object that says it is in gzip", method: "POST", uri: keyed, body: `{"a":1}`, headers: []string{"Content-Encoding", "gzip"}},
	{name: "white space", method: "POST", uri: keyed, body: " \n"},
	{name: "a beacon", method: "POST", uri: keyed + "&a=1&td_ua=td_ua"},
	{name: "a beacon without a key", method: "POST", uri: events + "?a=1"},
	{name: "a pixel with a body that is none", method: "POST", uri: keyed + "&td_format=pixel&a=1", body: "x"},
	{name: "GET with a body", method: "GET", uri: keyed + "&a=1", body: `{"b":2}`},
	{name: "GET without a column", method: "GET", uri: keyed},
	{name: "a record of a query that is too large", method: "GET", uri: keyed + "&a=" + strings.Repeat("%22", 600_000)},
	{name: "HEAD", method: "HEAD", uri: keyed},
	{name: "a bad path, by HEAD", method: "HEAD", uri: "/postback/v3/event/db"},
	{name: "a bad path, by OPTIONS", method: "OPTIONS", uri: "/postback/v3/event/db"},
	{name: "js without a record", method: "POST", uri: asJS},
	{name: "js with a bad callback", method: "GET", uri: asJS + data(`{}`) + "&callback=alert(1)"},
	{name: "js with a batch", method: "POST", uri: asJS, body: `{"events":[]}`, headers: []string{"Content-Type", "application/vnd.treasuredata.v1+json"}},
	{name: "js with an array", method: "POST", uri: asJS, body: `[]`},
	{name: "js, no UTF-8", method: "POST", uri: asJS, body: "{\"a\":\"\xff\"}"},
	{name: "js, in several parts", method: "POST", uri: asJS, body: `{"td_ip":"td_ip","a":"` + strings.Repeat("x", 200_000) + `"}`},
	{name: "js by DELETE", method: "DELETE", uri: asJS},
	{name: "k, no JSON", method: "POST", uri: "/js/v3/event", body: `{`, headers: []string{"X-Td-Write-Key", benchKey}},
	{name: "k without a mark, and no events", method: "POST", uri: "/js/v3/event", body: `{"a":1}`, headers: []string{"X-Td-Write-Key", benchKey}},
	{name: "k without a key", method: "POST", uri: "/js/v3/event", body: `{"db.t":[{}]}`},
	{name: "k with a key for no batch", method: "POST", uri: "/js/v3/event", body: `{"db.t":[{}]}`, headers: []string{"X-Td-Write-Key", "1;2"}},
	{name: "k for a name that is none", method: "POST", uri: "/js/v3/event", body: `{"db":[{}]}`, headers: []string{"X-Td-Write-Key", benchKey, "X-Td-Data-Type", "k"}},
	{name: "k, its gzip cut", method: "POST", uri: "/js/v3/event", body: "\x1f\x8b\x08", headers: []string{"X-Td-Write-Key", benchKey}},
	{name: "mobile, of several tables", method: "POST", uri: "/ios/v3/event/", body: `{"db.t":[{}],"db.u":[{},{}]}`, headers: []string{"X-Td-Write-Key", benchKey}},
	{name: "mobile, by GET", method: "GET", uri: "/ios/v3/event?api_key=" + benchKey},
	{name: "mobile, a bad path", method: "POST", uri: "/ios/v3/event/db", body: `{}`},
}

// gzipped is a text in gzip.
func gzipped(text string) string {
	var b strings.Builder
	w := gzip.NewWriter(&b)
	_, _ = io.WriteString(w, text) // neither fails
	_ = w.Close()
	return b.String()
}

// TestAuditIsWhatV2Does sends each call by both lanes. The report must say the same of it,
// but for the lane and what became of the call.
func TestAuditIsWhatV2Does(t *testing.T) {
	type tried struct {
		name, method, uri, body string
		headers                 []string
	}
	calls := make([]tried, 0, len(talliedCalls)+len(auditedCalls))
	for _, tc := range talliedCalls {
		calls = append(calls, tried{tc.name, tc.method, tc.uri, tc.body, tc.headers})
	}
	for _, tc := range auditedCalls {
		calls = append(calls, tried(tc))
	}
	strict := upstreamAt(t, httptest.NewServer(new(sandbox.Sandbox)))
	for _, tc := range calls {
		for name, change := range map[string]func(h *Handler, r *http.Request){
			"":                 func(*Handler, *http.Request) {},
			", with keys":      func(h *Handler, _ *http.Request) { knowOnly(t, h, &Keys{Accounts: []string{"77"}}) },
			", with databases": func(h *Handler, _ *http.Request) { knowOnly(t, h, &Keys{Databases: []string{"other"}}) },
			", with a warning only": func(h *Handler, _ *http.Request) {
				knowOnly(t, h, &Keys{Accounts: []string{"77"}, Unknown: unknownWarn})
			},
			", to another region": func(h *Handler, r *http.Request) { h.byRegion, r.Host = map[string]*route{}, "other.example" },
		} {
			t.Run(tc.name+name, func(t *testing.T) {
				row := func(lane migration.Lane) migration.Row {
					h := steered(stubHandler(), always(lane))
					h.single.Client = strict
					h.redirectHosts = []string{"shop.example"}
					r := taggedRequest(tc.method, tc.uri, tc.body, tc.headers...)
					change(h, r)
					judgedSmall.used.Store(0)
					judgedLarge.used.Store(0)
					judgedPacked.used.Store(0)
					return tallied(t, h, r)
				}
				legacy, v2 := row(migration.Legacy), row(migration.V2)
				if got, want := strings.Join(foundIn(legacy), " "), strings.Join(foundIn(v2), " "); got != want {
					t.Errorf("the audit finds %s, and v2's lane %s with %v", got, want, v2.Results)
				}
				for _, r := range []*migration.Row{&legacy, &v2} {
					r.Key = strings.Split(r.Key, "#")[0] // each handler has a secret of its own
					r.Lanes, r.Results, r.Findings = nil, nil, nil
				}
				if legacy.FirstSeen, legacy.LastSeen = v2.FirstSeen, v2.LastSeen; !reflect.DeepEqual(legacy, v2) {
					t.Errorf("the row is\n%+v, and by v2's lane\n%+v", legacy, v2)
				}
			})
		}
	}
}

// knowOnly lets a handler know these keys and no others.
func knowOnly(t *testing.T, h *Handler, k *Keys) {
	t.Helper()
	k.applyDefaults()
	if err := k.provision(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.cleanup)
	h.Keys = k
}

// upstreamAt is a client of this server.
func upstreamAt(t *testing.T, s *httptest.Server) *upstream.Client {
	t.Helper()
	t.Cleanup(s.Close)
	to, err := url.Parse(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	client, err := upstream.New(upstream.Config{URL: to, Timeout: time.Minute, DialTimeout: time.Minute, MaxConns: 10})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}

// TestAuditTellsNobody: an unknown key is no news as long as it does not matter.
func TestAuditTellsNobody(t *testing.T) {
	h, logs := watchedHandler(t, &Keys{Accounts: []string{"77"}})
	steered(h, always(migration.Legacy))
	row := tallied(t, h, taggedRequest(http.MethodPost, keyed, `{}`))
	if got := strings.Join(foundIn(row), " "); got != "key_in_url unknown_key" || row.Results["forwarded"] != 1 || logs.Len() > 0 {
		t.Errorf("got %s, %v and %v", got, row.Results, logs.All())
	}
}

// TestAuditOfALongBody: a body is too large for v2 by what its head says, or as soon as it
// is; events may be more, and then nothing is known of them.
func TestAuditOfALongBody(t *testing.T) {
	const declared, chunked = postback.MaxBody + 1, -1
	for _, tc := range []struct {
		name, method, uri string
		length            int64
		want              string
	}{
		{"declared", "POST", keyed, declared, "key_in_url payload_too_large plain_http"},
		{"in chunks", "POST", keyed, chunked, "key_in_url payload_too_large plain_http"},
		{"of a JavaScript SDK", "POST", asJS, chunked, "js_sdk key_in_url payload_too_large plain_http"},
		{"of a pixel", "POST", keyed + "&td_format=pixel&a=1", declared, "answered_with_image from_query key_in_url payload_too_large plain_http"},
		{"of a GET", "GET", keyed + "&a=1", declared, "from_query key_in_url plain_http"},
		{"several events", "POST", "/ios/v3/event?api_key=" + benchKey, declared, "key_in_url mobile_sdk plain_http"},
		{"several events in chunks", "POST", "/ios/v3/event?api_key=" + benchKey, chunked, "key_in_url mobile_sdk plain_http"},
		{"several events without a key", "POST", "/ios/v3/event", chunked, "missing_write_key mobile_sdk"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := steered(stubHandler(), always(migration.Legacy))
			r := taggedRequest(tc.method, tc.uri, "")
			r.Body, r.ContentLength = &stubBody{data: benchBody(declared)}, tc.length
			if got := strings.Join(foundIn(tallied(t, h, r)), " "); got != tc.want {
				t.Errorf("got %s", got)
			}
		})
	}
}

// fillingWriter is a caller who gets its answer when max_buffered is used up.
type fillingWriter struct {
	*httptest.ResponseRecorder
	of *bodies
}

func (w fillingWriter) WriteHeader(status int) {
	w.of.maxTotal = 0
	w.ResponseRecorder.WriteHeader(status)
}

// TestAuditWithoutMemory: what there is no room for is not looked at, and nobody suffers.
func TestAuditWithoutMemory(t *testing.T) {
	for name, tc := range map[string]struct{ method, uri, body, want string }{
		"a record in the query":         {"GET", keyed + "&a=1", "", "from_query key_in_url plain_http"},
		"of a JavaScript SDK":           {"GET", asJS + data(`{}`), "", "from_query js_sdk key_in_url plain_http"},
		"several events":                {"POST", "/ios/v3/event?api_key=" + benchKey, `{"db.t":[7]}`, "key_in_url mobile_sdk plain_http"},
		"an array in several parts":     {"POST", keyed, "[" + strings.Repeat(" ", 200_000) + "]", "key_in_url plain_http"},
		"an array in gzip":              {"POST gzip", keyed, gzipped("[1]"), "key_in_url plain_http"},
		"an array, which takes no room": {"POST", keyed, "[]", "key_in_url plain_http refused_by_v2"},
	} {
		t.Run(name, func(t *testing.T) {
			h := steered(stubHandler(), always(migration.Legacy))
			report := withReport(t, h)
			w := fillingWriter{httptest.NewRecorder(), h.bodies}
			method, coding, isPacked := strings.Cut(tc.method, " ")
			r := taggedRequest(method, tc.uri, tc.body)
			if isPacked {
				r.Header["Content-Encoding"] = []string{coding}
			}
			if err := h.ServeHTTP(w, r, nil); err != nil || w.Code != http.StatusOK {
				t.Fatal(err, w.Code)
			}
			row := report.get().List(time.Now()).Rows[0]
			if got := strings.Join(foundIn(row), " "); got != tc.want || row.Results[forwardedResult] != 1 {
				t.Errorf("got %s, %v", got, row.Results)
			}
			if used := h.bodies.inUse.Load(); used != 0 {
				t.Errorf("%d bytes are still counted", used)
			}
		})
	}
}

// TestAuditLeavesRoom: nobody waits for an audit, so it takes no memory of which calls may
// be short.
func TestAuditLeavesRoom(t *testing.T) {
	for name, tc := range map[string]struct {
		uri, body, want string
		headers         []string
	}{
		"several events":            {uri: "/ios/v3/event?api_key=" + benchKey, body: `{"db.t":[7]}`, want: "key_in_url mobile_sdk plain_http"},
		"an array in several parts": {uri: keyed, body: "[" + strings.Repeat(" ", 200_000) + "]", want: "key_in_url plain_http"},
		"an array in gzip":          {uri: keyed, body: gzipped("[1]"), want: "key_in_url plain_http", headers: []string{"Content-Encoding", "gzip"}},
	} {
		t.Run(name, func(t *testing.T) {
			h := steered(stubHandler(), always(migration.Legacy))
			const taken = defaultMaxBuffered - defaultMaxBuffered/bufferedShare
			h.bodies.inUse.Store(taken)
			report := withReport(t, h)
			w := httptest.NewRecorder()
			if err := h.ServeHTTP(w, taggedRequest(http.MethodPost, tc.uri, tc.body, tc.headers...), nil); err != nil || w.Code != http.StatusOK {
				t.Fatal(err, w.Code)
			}
			if got := strings.Join(foundIn(report.get().List(time.Now()).Rows[0]), " "); got != tc.want {
				t.Errorf("got %s", got)
			}
			if used := h.bodies.inUse.Load(); used != taken {
				t.Errorf("%d bytes are still counted", used-taken)
			}
			h.legacy = nil
			w = httptest.NewRecorder()
			if err := h.ServeHTTP(w, taggedRequest(http.MethodPost, tc.uri, tc.body, tc.headers...), nil); err != nil || w.Code != http.StatusOK {
				t.Errorf("a call that is not audited: %d, %v", w.Code, err)
			}
		})
	}
}

// promptWriter notices that its caller gets the answer before the call has ended.
type promptWriter struct {
	*httptest.ResponseRecorder
	flushed func()
}

func (w promptWriter) Flush() { w.flushed() }

// TestAuditAfterTheAnswer: who sends many events does not wait until they are looked at, and
// they do not wait for who takes no answer.
func TestAuditAfterTheAnswer(t *testing.T) {
	for name, tc := range map[string]struct {
		body    string
		major   int // of HTTP
		flushes int
		events  uint64
	}{
		"few events":              {`{"db.t":[{}]}`, 1, 0, 1},
		"many events":             {`{"db.t":[{}` + strings.Repeat(",{}", 40_000) + `]}`, 1, 1, 40_001},
		"many events over HTTP/2": {`{"db.t":[{}` + strings.Repeat(",{}", 40_000) + `]}`, 2, 0, 40_001},
	} {
		t.Run(name, func(t *testing.T) {
			h := steered(stubHandler(), always(migration.Legacy))
			report := withReport(t, h)
			flushes := 0
			w := promptWriter{httptest.NewRecorder(), func() {
				flushes++
				if rows := report.get().List(time.Now()).Rows; len(rows) > 0 {
					t.Errorf("the call was counted before: %+v", rows)
				}
			}}
			r := taggedRequest(http.MethodPost, "/ios/v3/event?api_key="+benchKey, tc.body)
			r.ProtoMajor = tc.major
			if err := h.ServeHTTP(w, r, nil); err != nil || w.Code != http.StatusOK || flushes != tc.flushes {
				t.Errorf("got %d and %d flushes, %v", w.Code, flushes, err)
			}
			if rows := report.get().List(time.Now()).Rows; len(rows) != 1 || rows[0].Events != tc.events {
				t.Errorf("the rows are %+v", rows)
			}
		})
	}
}

// TestAuditWithoutAnswer: a call that ends in a panic has no answer, and the audit makes none.
func TestAuditWithoutAnswer(t *testing.T) {
	h := steered(stubHandler(), always(migration.Legacy))
	withReport(t, h)
	h.legacy.single.Client = nil
	w := promptWriter{httptest.NewRecorder(), func() { t.Error("its caller gets 200") }}
	defer func() {
		if recover() == nil {
			t.Error("it ends without a panic")
		}
	}()
	_ = h.ServeHTTP(w, taggedRequest(http.MethodPost, "/ios/v3/event?api_key="+benchKey, `{"db.t":[{}`+strings.Repeat(",{}", 40_000)+`]}`), nil)
}

// TestJudgedBytes: in each second, so many are looked at, and those of one body more.
func TestJudgedBytes(t *testing.T) {
	var s secondly
	now := time.Unix(1796000000, 0)
	for i, tc := range []struct {
		amount int64
		later  time.Duration
		want   bool
	}{
		{judgedASecond - 1, 0, true}, {1000, time.Second / 2, true}, {1, 0, false}, {0, 0, false},
		{judgedASecond, time.Second, true}, {1, time.Second, false}, {1, 0, true},
	} {
		if got := s.take(tc.amount, now.Add(tc.later)); got != tc.want {
			t.Errorf("%d: got %v", i, got)
		}
	}
}

// BenchmarkAudit is what a call costs with a report, by the lane of v2, and by the other
// with the audit.
func BenchmarkAudit(b *testing.B) {
	for _, tc := range []struct {
		name, method, uri string
		size              int
	}{
		{"post", http.MethodPost, benchPath, 300},
		{"post64K", http.MethodPost, benchPath, 64 << 10},
		{"post1M", http.MethodPost, benchPath, 1<<20 - 1<<10},
		{"pixel", http.MethodGet, benchPath + "&" + benchQuery, 0},
		{"jsonp", http.MethodGet, benchJSONP(), 0},
	} {
		for _, lane := range []migration.Lane{migration.V2, migration.Legacy} {
			b.Run(tc.name+"/"+lane.String(), func(b *testing.B) {
				h := steered(stubHandler(), always(lane))
				withReport(b, h)
				send := sender(b, h, tc.method, tc.uri, tc.size)
				b.ReportAllocs()
				for b.Loop() {
					send()
				}
			})
		}
	}
}
