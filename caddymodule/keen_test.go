package caddymodule

import (
	"bytes"
	"cmp"
	"compress/flate"
	"compress/gzip"
	"compress/zlib"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/td-postback/gateway/postback"
	"github.com/td-postback/gateway/spool/cluster/natstest"
	"github.com/td-postback/gateway/upstream"
)

const (
	keenPath = "/android/v3/event"
	keenKey  = "1234/0123456789abcdef"
)

// keenV2 is the strict sandbox behind a handler, with a word of a test's first.
type keenV2 struct {
	*strictV2
	h *Handler

	mu  sync.Mutex
	say http.HandlerFunc // instead of the sandbox; nil for none
}

func newKeenV2(t *testing.T) *keenV2 {
	t.Helper()
	v2 := &keenV2{strictV2: newStrictV2(t)}
	strict := v2.Config.Handler
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		v2.mu.Lock()
		say := v2.say
		v2.mu.Unlock()
		if say != nil {
			say(w, r)
			return
		}
		strict.ServeHTTP(w, r)
	}))
	t.Cleanup(front.Close)
	v2.h = keenHandler(t, front.URL, time.Minute)
	return v2
}

// says makes v2 say something of its own from now on.
func (v2 *keenV2) says(say http.HandlerFunc) {
	v2.mu.Lock()
	defer v2.mu.Unlock()
	v2.say = say
}

// came is what v2 has taken, and forgets it.
func (v2 *keenV2) came() (records []string) {
	v2.strictV2.mu.Lock()
	defer v2.strictV2.mu.Unlock()
	for _, r := range v2.records {
		way, body := "alone", string(r.Body)
		if r.Batch {
			way = r.UUID
			body = strings.Replace(strings.Replace(body, `,"uuid":"`+way+`"`, "", 1), `"uuid":"`+way+`"`, "", 1)
		}
		records = append(records, fmt.Sprintf("%s.%s %s %s %s", r.Database, r.Table, way, r.Key, body))
	}
	v2.records = nil
	slices.Sort(records)
	return records
}

func keenHandler(t testing.TB, target string, timeout time.Duration) *Handler {
	t.Helper()
	u, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	client, err := upstream.New(upstream.Config{URL: u, DialTimeout: time.Second, Timeout: timeout, MaxConns: 64})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	h := stubHandler()
	h.single = &route{host: u.Host, url: u, Client: client}
	return h
}

// askKeen sends a call through the handler.
func askKeen(t testing.TB, h *Handler, r *http.Request) *httptest.ResponseRecorder {
	t.Helper()
	w := httptest.NewRecorder()
	if err := h.ServeHTTP(w, r, nil); err != nil {
		t.Fatal(err)
	}
	if left := h.bodies.inUse.Load(); left != 0 {
		t.Errorf("%d bytes stay counted", left)
	}
	if w.Code == http.StatusRequestEntityTooLarge || w.Code < 300 && (w.Code != 200 || w.Body.String() == "{}") {
		t.Errorf("answered %d %q", w.Code, w.Body)
	}
	return w
}

// keenRequest is a call as an SDK sends it.
func keenRequest(path, body string, headers ...string) *http.Request {
	r := benchRequest(http.MethodPost, path, len(body))
	r.Body = io.NopCloser(strings.NewReader(body))
	r.Header["X-Td-Write-Key"], r.Header["X-Td-Data-Type"] = []string{keenKey}, []string{"k"}
	for pair := range slices.Chunk(headers, 2) {
		r.Header.Set(pair[0], pair[1])
		if pair[1] == "" {
			r.Header.Del(pair[0])
		}
	}
	return r
}

func compressed(t testing.TB, by string, text string) string {
	t.Helper()
	var to bytes.Buffer
	var w io.WriteCloser
	switch by {
	case "gzip":
		w = gzip.NewWriter(&to)
	case "zlib":
		w = zlib.NewWriter(&to)
	default:
		w, _ = flate.NewWriter(&to, flate.DefaultCompression)
	}
	_, _ = io.WriteString(w, text)
	_ = w.Close()
	return to.String()
}

// TestKeen sends each form of call, and looks at the answer and at what v2 gets.
func TestKeen(t *testing.T) {
	const (
		id1, id2 = "08289530-0000-4000-8000-00000000000a", "08289530-0000-4000-8000-00000000000b"
		at       = `"keen":{"timestamp":"2026-11-25T02:23:55.675+0000"}`
		one      = `{"db.tbl":[{` + at + `,"#UUID":"` + id1 + `","n":0}]}`
		came     = `db.tbl ` + id1 + ` ` + keenKey + ` {"n":0,"time":1795573435}`
		taken    = `{"db.tbl":[{"success":true}]}`
	)
	large := `{"db.tbl":[{"#UUID":"` + id1 + `","a":"` + strings.Repeat("x", 900_000) + `"},{"#UUID":"` + id2 + `","a":"` + strings.Repeat("y", 900_000) + `"}]}`
	for name, tc := range map[string]struct {
		r      *http.Request
		answer string
		came   []string
		result string // forwarded, if empty
		key    string // header, if empty
	}{
		"Android":                 {r: keenRequest(keenPath, compressed(t, "zlib", one), "Content-Encoding", "deflate")},
		"iOS":                     {r: keenRequest("/ios/v3/event", compressed(t, "zlib", strings.Replace(one, "00a", "00A", 1)), "Content-Encoding", "deflate")},
		"iOS, not compressed":     {r: keenRequest("/ios/v3/event/", one)},
		"raw deflate":             {r: keenRequest(keenPath, compressed(t, "flate", one), "Content-Encoding", "deflate")},
		"gzip":                    {r: keenRequest(keenPath, compressed(t, "gzip", one), "Content-Encoding", "gzip")},
		"a script":                {r: keenRequest("/js/v3/event", one)},
		"a script with a slash":   {r: keenRequest("/js/v3/event/", one)},
		"without a mark":          {r: keenRequest("/js/v3/event/", one, "X-Td-Data-Type", "")},
		"the key in the query":    {r: keenRequest("/js/v3/event/?api_key="+keenKey+"&modified=1", one, "X-Td-Write-Key", ""), key: "param"},
		"td_write_key":            {r: keenRequest("/js/v3/event/?td_write_key="+keenKey+"&api_key=5/ef", one, "X-Td-Write-Key", ""), key: "param"},
		"TD1":                     {r: keenRequest(keenPath, one, "X-Td-Write-Key", "", "Authorization", "TD1 "+keenKey), key: "td1"},
		"the header beside TD1":   {r: keenRequest(keenPath, one, "Authorization", "TD1 5/ef")},
		"larger than max_body":    {r: keenRequest(keenPath, large), answer: `{"db.tbl":[{"success":true},{"success":true}]}`, came: []string{"db.tbl " + id1 + " " + keenKey + ` {"a":"` + strings.Repeat("x", 900_000) + `"}`, "db.tbl " + id2 + " " + keenKey + ` {"a":"` + strings.Repeat("y", 900_000) + `"}`}},
		"a column uuid":           {r: keenRequest(keenPath, `{"db.tbl":[{`+at+`,"uuid":"mine"}]}`), came: []string{`db.tbl alone ` + keenKey + ` {"uuid":"mine","td_record_time":1795573435}`}},
		"what is to be filled in": {r: keenRequest("/js/v3/event", `{"db.tbl":[{"td_ip":"td_ip","td_os":"td_os","a":1,"td_global_id":"td_global_id","#UUID":"`+id1+`"}]}`, "Cookie", "_td_global=g-7"), came: []string{"db.tbl " + id1 + " " + keenKey + ` {"a":1,"td_ip":"192.0.2.7","td_global_id":"g-7"}`}},
		"two tables":              {r: keenRequest(keenPath, `{"db0.tbl0":[{"#UUID":"`+id1+`"}],"db1.tbl1":[{"#UUID":"`+id2+`"}]}`), answer: `{"db0.tbl0":[{"success":true}],"db1.tbl1":[{"success":true}]}`, came: []string{"db0.tbl0 " + id1 + " " + keenKey + " {}", "db1.tbl1 " + id2 + " " + keenKey + " {}"}},
		"none":                    {r: keenRequest(keenPath, `{"db.tbl":[]}`), answer: `{"db.tbl":[]}`, came: []string{}},
		"one that is no object":   {r: keenRequest(keenPath, `{"db.tbl":[1,`+one[len(`{"db.tbl":[`):]), result: "some_refused", answer: `{"db.tbl":[{"success":false,"error":{"name":"InvalidPropertyValueError","description":"the event must be a JSON object"}},{"success":true}]}`},
		"a collection's bad name": {r: keenRequest(keenPath, `{"db":[{}],"db.tbl":[],"x":[]}`), result: "some_refused", came: []string{}, answer: `{"db":[{"success":false,"error":{"name":"InvalidCollectionNameError","description":"the name must be a database and a table with a dot between them, both of letters, digits and _"}}],"db.tbl":[],"x":[]}`},
	} {
		t.Run(name, func(t *testing.T) {
			kind := "mobile"
			if strings.HasPrefix(tc.r.URL.Path, "/js/") {
				kind = "k"
			}
			counter := requestsTotal.WithLabelValues(kind, cmp.Or(tc.key, "header"), "v2", cmp.Or(tc.result, forwardedResult))
			before := sums(t, counter)
			v2 := newKeenV2(t)
			w := askKeen(t, v2.h, tc.r)
			if w.Code != 200 || w.Body.String() != cmp.Or(tc.answer, taken) || w.Header().Get("Content-Type") != "application/json" {
				t.Errorf("answered %d %q %s", w.Code, w.Header(), w.Body)
			}
			if tc.came == nil {
				tc.came = []string{came}
			}
			if got := v2.came(); !slices.Equal(got, tc.came) {
				t.Errorf("v2 has %.300q", got)
			}
			if after := sums(t, counter); after[0] != before[0]+1 {
				t.Errorf("counted %v times", after[0]-before[0])
			}
		})
	}
}

// TestKeenRefused: what is refused is told in JSON, never with 413, and does not go to
// v2.
func TestKeenRefused(t *testing.T) {
	const good = `{"db.tbl":[{"n":0}]}`
	spaces := good + strings.Repeat(" ", 33<<20)
	for name, tc := range map[string]struct {
		r      *http.Request
		status int
		code   string
	}{
		"no key":                    {keenRequest(keenPath, good, "X-Td-Write-Key", ""), 403, "missing_write_key"},
		"a bad key":                 {keenRequest(keenPath, good, "X-Td-Write-Key", "1234/é"), 400, "invalid_write_key"},
		"a key that is no token":    {keenRequest(keenPath, good, "X-Td-Write-Key", "1234/(a)"), 400, "invalid_write_key"},
		"GET":                       {benchRequest(http.MethodGet, "/js/v3/event?callback=f", 0), 405, "method_not_allowed"},
		"HEAD":                      {benchRequest(http.MethodHead, keenPath, 0), 405, "method_not_allowed"},
		"below the path":            {keenRequest("/ios/v3/event/db/tbl", good), 400, "invalid_path"},
		"no JSON":                   {keenRequest(keenPath, "no"), 400, "invalid_request"},
		"empty":                     {keenRequest(keenPath, ""), 400, "invalid_request"},
		"v2's batch":                {keenRequest("/js/v3/event", `{"events":[{"n":0}]}`, "X-Td-Data-Type", ""), 400, "invalid_request"},
		"one record":                {keenRequest("/js/v3/event", `{"n":0}`, "X-Td-Data-Type", ""), 400, "invalid_request"},
		"brotli":                    {keenRequest(keenPath, good, "Content-Encoding", "br"), 400, "invalid_request"},
		"half a stream":             {keenRequest(keenPath, compressed(t, "zlib", good)[:12], "Content-Encoding", "deflate"), 400, "invalid_request"},
		"33 MiB":                    {keenRequest(keenPath, spaces), 400, "invalid_request"},
		"33 MiB, compressed":        {keenRequest(keenPath, compressed(t, "gzip", spaces), "Content-Encoding", "gzip"), 400, "invalid_request"},
		"the operator's own limit":  {limitedRequest(good), 400, "invalid_request"},
		"a body that ends early":    {brokenRequest(good, io.ErrUnexpectedEOF), 400, "invalid_request"},
		"a body that stalls":        {brokenRequest(good, os.ErrDeadlineExceeded), 408, "request_timeout"},
		"a large head":              {keenRequest(keenPath, good, "X-Large", strings.Repeat("x", 65<<10)), 431, "headers_too_large"},
		"more events than are read": {keenRequest(keenPath, `{"db.tbl":[`+strings.Repeat("{},", 100_000)+`{}]}`), 400, "invalid_request"},
	} {
		t.Run(name, func(t *testing.T) {
			v2 := newKeenV2(t)
			w := askKeen(t, v2.h, tc.r)
			var said struct{ Error, Message string }
			if err := json.Unmarshal(w.Body.Bytes(), &said); err != nil || w.Code != tc.status || said.Error != tc.code || said.Message == "" {
				t.Errorf("answered %d %.300s", w.Code, w.Body)
			}
			if got := w.Header().Get("Allow"); tc.status == 405 && got != "POST, OPTIONS" {
				t.Errorf("allows %q", got)
			}
			if got := v2.came(); len(got) > 0 {
				t.Errorf("v2 has %.300q", got)
			}
		})
	}
}

// limitedRequest has a body that Caddy's request_body cuts.
func limitedRequest(body string) *http.Request {
	r := keenRequest(keenPath, body)
	r.Body = http.MaxBytesReader(nil, r.Body, 4)
	return r
}

// brokenRequest has a body that breaks off.
func brokenRequest(body string, err error) *http.Request {
	r := keenRequest(keenPath, body)
	r.Body = io.NopCloser(io.MultiReader(strings.NewReader(body[:9]), errReader{err}))
	return r
}

type errReader struct{ err error }

func (e errReader) Read([]byte) (int, error) { return 0, e.err }

// android imitates the client of td-android-sdk 0.1.15 to 0.6.0, whose store has some
// events: SURFACES.md 3.3. It uploads once.
type android struct {
	store map[string][]string
	send  func(body string) (status int, answer string)

	requests, rounds int
}

// newAndroid has events of two tables in its store.
func newAndroid(send func(string) (int, string)) *android {
	a := &android{store: map[string][]string{}, send: send}
	for n := range 6 {
		table := fmt.Sprintf("db%d.tbl", n%2)
		a.store[table] = append(a.store[table], fmt.Sprintf(`{"#UUID":"08289530-0000-4000-8000-%012d","n":%d}`, n, n))
	}
	return a
}

// upload sends the store until it is empty, or five tries in a row have failed. It
// gives up after a hundred rounds, where the real one goes on for ever.
func (a *android) upload() {
	for ; len(a.store) > 0 && a.rounds < 100; a.rounds++ {
		parts := make([]string, 0, len(a.store))
		for table, events := range a.store {
			parts = append(parts, `"`+table+`":[`+strings.Join(events, ",")+`]`)
		}
		status, answer := 0, ""
		for range 5 { // with pauses of 4, 8, 16 and 32 s
			a.requests++
			if status, answer = a.send("{" + strings.Join(parts, ",") + "}"); status/100 == 2 {
				break
			}
		}
		if status/100 != 2 {
			return
		}
		a.clear(answer)
	}
}

// clear deletes what an answer says is taken, or never will be.
func (a *android) clear(answer string) {
	var results map[string][]struct {
		Success any
		Error   struct{ Name string }
	}
	if json.Unmarshal([]byte(answer), &results) != nil {
		return
	}
	for table, of := range results {
		var left []string
		for n, event := range a.store[table] {
			gone := slices.Contains([]string{"InvalidCollectionNameError", "InvalidPropertyNameError", "InvalidPropertyValueError"}, of[n].Error.Name)
			if of[n].Success != true && !gone {
				left = append(left, event)
			}
		}
		if a.store[table] = left; len(left) == 0 {
			delete(a.store, table)
		}
	}
}

// TestAndroidImitation: the imitation does what the real client was seen to do.
func TestAndroidImitation(t *testing.T) {
	for answer, want := range map[string]struct{ loops bool }{
		`200 {}`:               {true},
		`200 {"created":true}`: {true},
		`200 {"db0.tbl":[{"success":"true"},{"success":"true"},{"success":"true"}]}`:                 {true},
		`200 {"db0.tbl":[{"success":false,"error":{"name":"X"}},{"success":true},{"success":true}]}`: {true},
		`503 {}`: {false},
		`200 {"db0.tbl":[{"success":true},{"success":true},{"success":true}],"db1.tbl":[{"success":true},{"success":false,"error":{"name":"InvalidPropertyValueError"}},{"success":true}]}`: {false},
	} {
		a := newAndroid(func(string) (int, string) {
			var status int
			_, _ = fmt.Sscan(answer[:3], &status)
			return status, answer[4:]
		})
		defer func() { _ = recover() }()
		a.upload()
		if loops := a.rounds > 1; loops != want.loops {
			t.Errorf("%s: %d rounds", answer, a.rounds)
		}
	}
}

// v2States are all states of a v2, for calls with several events.
func v2States() map[string]http.HandlerFunc {
	states := map[string]http.HandlerFunc{"up": nil}
	for _, status := range []int{200, 201, 204, 206, 301, 400, 401, 403, 404, 405, 408, 413, 415, 422, 429, 500, 502, 503, 504, 599, 999} {
		for name, body := range map[string]string{"{}": `{}`, "nothing": "", "created": `{"created":true}`, "HTML": "<html>", "too few receipts": `{"receipts":[{"success":true}]}`} {
			states[fmt.Sprintf("%d %s", status, name)] = func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body)
				w.Header().Set("Retry-After", "3600")
				w.WriteHeader(status)
				_, _ = io.WriteString(w, body)
			}
		}
	}
	states["206 with one that fails"] = receipts(206, func(n int, _ string) bool { return n != 0 })
	states["206 with all that fail"] = receipts(206, func(int, string) bool { return false })
	states["200 with one that fails"] = receipts(200, func(n int, _ string) bool { return n != 0 })
	states["200 with too many words"] = answered200(`{"receipts":[{"success":false,"error":"` + strings.Repeat("x", 300<<10) + `"},{"success":true},{"success":true}]}`)
	states["200 with too many receipts"] = answered200(`{"receipts":[` + strings.Repeat(`{"success":false},`, 600) + `{"success":false}]}`)
	states["206, and taken the next time"] = receipts(206, func(n int, record string) bool { return n%2 == 0 })
	states["garbage"] = hijacked("no HTTP\r\n\r\n")
	states["nothing at all"] = hijacked("")
	states["half an answer"] = hijacked("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
	states["a switch of protocols"] = hijacked("HTTP/1.1 101 Switching Protocols\r\n\r\n")
	states["slow"] = func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	}
	return states
}

func answered200(body string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(w, body)
	}
}

// receipts answers each record of a batch as takes says.
func receipts(status int, takes func(n int, record string) bool) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(status)
		records := batchRecordsOf(r)
		said := make([]string, 0, len(records))
		for n, record := range records {
			said = append(said, fmt.Sprintf(`{"success":%v}`, takes(n, record)))
		}
		_, _ = fmt.Fprintf(w, `{"receipts":[%s]}`, strings.Join(said, ","))
	}
}

// batchRecordsOf reads the records of a batch.
func batchRecordsOf(r *http.Request) (records []string) {
	var body struct{ Events []json.RawMessage }
	if unzip, err := gzip.NewReader(r.Body); err == nil {
		_ = json.NewDecoder(unzip).Decode(&body)
	}
	for _, record := range body.Events {
		records = append(records, string(record))
	}
	return records
}

// hijacked answers these bytes, and closes.
func hijacked(answer string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		if conn, _, err := http.NewResponseController(w).Hijack(); err == nil {
			_, _ = io.WriteString(conn, answer)
			_ = conn.Close()
		}
	}
}

// TestAndroidNeverLoops: in no state of v2 and the gateway does the client send its
// store again without a pause, and what it deletes is at v2, or refused by it.
func TestAndroidNeverLoops(t *testing.T) {
	t.Parallel()
	for name, say := range v2States() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v2 := newKeenV2(t)
			v2.says(say)
			if name == "slow" {
				v2.h = keenHandler(t, "http://"+v2.h.single.host, 50*time.Millisecond)
			}
			neverLoops(t, v2.h)
		})
	}
	t.Run("down", func(t *testing.T) {
		neverLoops(t, keenHandler(t, "http://"+natstest.FreeAddr(t), time.Second))
	})
	t.Run("max_buffered used up", func(t *testing.T) {
		v2 := newKeenV2(t)
		for room := int64(1 << 10); room < 8<<20; room += room/2 + 1 {
			v2.h.bodies.maxTotal = room
			neverLoops(t, v2.h)
		}
	})
	t.Run("surface off", func(t *testing.T) {
		v2 := newKeenV2(t)
		v2.h.served = postback.SurfacesOf([]string{"postback"})
		neverLoops(t, v2.h)
	})
}

func neverLoops(t *testing.T, h *Handler) {
	t.Helper()
	last := ""
	a := newAndroid(func(body string) (int, string) {
		w := askKeen(t, h, keenRequest(keenPath, compressed(t, "zlib", body), "Content-Encoding", "deflate"))
		last = fmt.Sprintf("%d %s", w.Code, w.Body)
		return w.Code, w.Body.String()
	})
	a.upload()
	if a.rounds > 1 || a.requests > 5 || a.rounds == 1 && len(a.store) > 0 {
		t.Errorf("%d requests in %d rounds, %d tables left, after %s", a.requests, a.rounds, len(a.store), last)
	}
}

// TestKeenAnswers: what each answer of v2 becomes, and how the call is counted.
func TestKeenAnswers(t *testing.T) {
	for name, tc := range map[string]struct {
		status       int
		code, result string
	}{
		"401 {}":                       {401, "invalid_write_key", upstream4xxResult},
		"403 nothing":                  {403, "invalid_write_key", upstream4xxResult},
		"301 {}":                       {503, "upstream_unreachable", upstream3xxResult},
		"404 HTML":                     {503, "upstream_unreachable", upstream4xxResult},
		"408 {}":                       {503, "upstream_unreachable", upstream4xxResult},
		"429 {}":                       {503, "upstream_unreachable", upstream4xxResult},
		"500 {}":                       {503, "upstream_unreachable", upstream5xxResult},
		"503 {}":                       {503, "upstream_unreachable", upstream5xxResult},
		"999 {}":                       {503, "upstream_unreachable", upstream5xxResult},
		"garbage":                      {503, "upstream_unreachable", "upstream_unreachable"},
		"nothing at all":               {503, "upstream_unreachable", "upstream_unreachable"},
		"half an answer":               {503, "upstream_unreachable", "upstream_unreachable"},
		"206 with all that fail":       {503, "upstream_unreachable", "upstream_unreachable"},
		"206 {}":                       {503, "upstream_unreachable", "upstream_unreachable"},
		"slow":                         {503, "upstream_timeout", "upstream_timeout"},
		"400 {}":                       {200, "", someRefusedResult},
		"413 HTML":                     {200, "", someRefusedResult},
		"422 nothing":                  {200, "", someRefusedResult},
		"200 {}":                       {200, "", forwardedResult},
		"200 with too many words":      {503, "upstream_unreachable", "upstream_unreachable"},
		"200 with too many receipts":   {503, "upstream_unreachable", "upstream_unreachable"},
		"up":                           {200, "", forwardedResult},
		"206, and taken the next time": {200, "", forwardedResult},
	} {
		t.Run(name, func(t *testing.T) {
			v2 := newKeenV2(t)
			v2.says(v2States()[name])
			if name == "slow" {
				v2.h = keenHandler(t, "http://"+v2.h.single.host, 50*time.Millisecond)
			}
			for _, body := range []string{`{"db.tbl":[{"n":1},{"n":2},{"n":3}]}`, `{"db.tbl":[{"n":1,"uuid":"x"}]}`} {
				if strings.Contains(body, "uuid") && (strings.HasPrefix(name, "206") || strings.HasPrefix(name, "200 with")) {
					continue // no answer to a record that goes alone
				}
				counter := requestsTotal.WithLabelValues("mobile", "header", "v2", tc.result)
				before := sums(t, counter)
				w := askKeen(t, v2.h, keenRequest(keenPath, body))
				var said struct{ Error string }
				_ = json.Unmarshal(w.Body.Bytes(), &said)
				if w.Code != tc.status || said.Error != tc.code {
					t.Errorf("%s: answered %d %s", body, w.Code, w.Body)
				}
				if (w.Code == 503) != (w.Header().Get("Retry-After") != "") {
					t.Errorf("Retry-After %q", w.Header().Get("Retry-After"))
				}
				if after := sums(t, counter); after[0] != before[0]+1 {
					t.Errorf("%s: not counted as %s", body, tc.result)
				}
			}
		})
	}
}

// TestKeenPoison: events that v2 refuses are found, wherever they are, and the others
// are taken once.
func TestKeenPoison(t *testing.T) {
	t.Parallel()
	const events = 400
	for name, poison := range map[string][]int{
		"first": {0}, "last": {events - 1}, "neighbours": {100, 101}, "some": {3, 77, 200, 201, 399}, "none": nil,
	} {
		for _, status := range []int{400, 413, 422} {
			t.Run(fmt.Sprint(name, status), func(t *testing.T) {
				t.Parallel()
				v2 := newKeenV2(t)
				var requests atomic.Int32
				var mu sync.Mutex
				taken := map[string]int{}
				v2.says(func(w http.ResponseWriter, r *http.Request) {
					requests.Add(1)
					records := batchRecordsOf(r)
					if slices.ContainsFunc(records, func(record string) bool { return strings.Contains(record, "poison") }) {
						w.WriteHeader(status)
						return
					}
					mu.Lock()
					defer mu.Unlock()
					for _, record := range records {
						taken[record]++
					}
					_, _ = fmt.Fprintf(w, `{"receipts":[%s{"success":true}]}`, strings.Repeat(`{"success":true},`, len(records)-1))
				})
				body := make([]string, events)
				for n := range body {
					body[n] = fmt.Sprintf(`{"n":%d}`, n)
					if slices.Contains(poison, n) {
						body[n] = `{"a":"poison"}`
					}
				}
				w := askKeen(t, v2.h, keenRequest(keenPath, `{"db.tbl":[`+strings.Join(body, ",")+`]}`))
				var said map[string][]struct {
					Success bool
					Error   struct{ Name string }
				}
				if err := json.Unmarshal(w.Body.Bytes(), &said); err != nil || w.Code != 200 || len(said["db.tbl"]) != events {
					t.Fatalf("answered %d %.300s", w.Code, w.Body)
				}
				for n, result := range said["db.tbl"] {
					if bad := slices.Contains(poison, n); result.Success == bad || bad != (result.Error.Name == "InvalidPropertyValueError") {
						t.Errorf("event %d: %+v", n, result)
					}
				}
				for record, times := range taken {
					if times != 1 {
						t.Errorf("%s is taken %d times", record, times)
					}
				}
				if len(taken) != events-len(poison) {
					t.Errorf("%d events are taken", len(taken))
				}
				if most := int32(1 + 18*len(poison)); requests.Load() > most { //nolint:gosec // G115: small
					t.Errorf("%d requests, at most %d are needed", requests.Load(), most)
				}
			})
		}
	}
}

// TestKeenPartly: what v2 leaves in a 206 is sent again, alone, by its uuid.
func TestKeenPartly(t *testing.T) {
	v2 := newKeenV2(t)
	var mu sync.Mutex
	var sizes []int
	uuids := map[string]string{}
	uuid := regexp.MustCompile(`"n":(\d+),"uuid":"([^"]*)"`)
	v2.says(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		records := batchRecordsOf(r)
		sizes = append(sizes, len(records))
		said := make([]string, 0, len(records))
		for n, record := range records {
			found := uuid.FindStringSubmatch(record)
			if before := uuids[found[1]]; before != "" && before != found[2] {
				t.Errorf("event %s comes again as %s", found[1], found[2])
			}
			uuids[found[1]] = found[2]
			said = append(said, fmt.Sprintf(`{"success":%v}`, n%5 != 0 || len(records) < 5))
		}
		w.WriteHeader(206)
		_, _ = fmt.Fprintf(w, `{"receipts":[%s]}`, strings.Join(said, ","))
	})
	body := make([]string, 0, 20)
	for n := range cap(body) {
		body = append(body, fmt.Sprintf(`{"n":%d}`, n))
	}
	w := askKeen(t, v2.h, keenRequest(keenPath, `{"db.tbl":[`+strings.Join(body, ",")+`]}`))
	if w.Code != 200 || !slices.Equal(sizes, []int{20, 4}) {
		t.Errorf("answered %d, after requests of %d events", w.Code, sizes)
	}
}

// TestKeenOneRefused: when v2 refuses one table, the call fails as a whole, whatever
// becomes of the others.
func TestKeenOneRefused(t *testing.T) {
	v2 := newKeenV2(t)
	for range 20 {
		w := askKeen(t, v2.h, keenRequest(keenPath, `{"db.answer_503":[{}],"db.answer_403":[{}],"db.tbl":[{}]}`))
		if w.Code != 403 && w.Code != 503 {
			t.Fatalf("answered %d %s", w.Code, w.Body)
		}
	}
}

// TestKeenAtATime: a call has at most four requests on the way, also when it halves
// its batches.
func TestKeenAtATime(t *testing.T) {
	v2 := newKeenV2(t)
	var now, most atomic.Int32
	v2.says(func(w http.ResponseWriter, r *http.Request) {
		if n := now.Add(1); n > most.Load() {
			most.Store(n)
		}
		defer now.Add(-1)
		time.Sleep(time.Millisecond) //nolint:forbidigo // v2 takes its time
		if len(batchRecordsOf(r)) > 1 {
			w.WriteHeader(400)
			return
		}
		_, _ = io.WriteString(w, `{"receipts":[{"success":true}]}`)
	})
	tables := make([]string, 0, 12)
	for n := range cap(tables) {
		tables = append(tables, fmt.Sprintf(`"db.t%d":[{},{},{},{"uuid":1},{"uuid":2}]`, n))
	}
	w := askKeen(t, v2.h, keenRequest(keenPath, `{`+strings.Join(tables, ",")+`}`))
	if w.Code != 200 || strings.Contains(w.Body.String(), "false") {
		t.Errorf("answered %d %s", w.Code, w.Body)
	}
	if most.Load() != maxKeenSends {
		t.Errorf("%d at a time", most.Load())
	}
}

// TestKeenMemory: whatever room there is, a call is taken or refused with 503, and
// nothing of it stays counted. A request that is sent counts with its batches.
func TestKeenMemory(t *testing.T) {
	body := make([]string, 0, 1000)
	for n := range cap(body) {
		body = append(body, fmt.Sprintf(`{"n":%d,"a":%q}`, n, strings.Repeat("x", 300)))
	}
	text := compressed(t, "zlib", `{"db.tbl":[`+strings.Join(body, ",")+`]}`)
	v2 := newKeenV2(t)
	v2.says(receipts(200, func(int, string) bool { return true }))
	taken := int64(0)
	for room := int64(8 << 10); room < 8<<20; room += room/4 + 1 {
		v2.h.bodies.maxTotal = room
		w := askKeen(t, v2.h, keenRequest(keenPath, text, "Content-Encoding", "deflate"))
		switch {
		case w.Code == 200 && taken == 0:
			taken = room
		case w.Code != 200 && (w.Code != 503 || taken > 0):
			t.Errorf("room of %d bytes: got %d %.200q", room, w.Code, w.Body)
		}
	}
	if taken < 1<<20 || taken > 4<<20 {
		t.Errorf("taken with room of %d bytes", taken)
	}
}

// TestKeenMemoryAlone: what events that go alone are copied to counts as long as they
// are on the way.
func TestKeenMemoryAlone(t *testing.T) {
	const size = 1_000_000
	v2 := newKeenV2(t)
	var came sync.WaitGroup
	came.Add(maxKeenSends)
	v2.says(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		came.Done()
		came.Wait()
		if counted := v2.h.bodies.inUse.Load(); counted < 2*maxKeenSends*size {
			t.Errorf("%d bytes are counted", counted)
		}
	})
	event := `{"uuid":"mine","a":"` + strings.Repeat("x", size) + `"}`
	w := askKeen(t, v2.h, keenRequest(keenPath, `{"db.tbl":[`+strings.Join(slices.Repeat([]string{event}, maxKeenSends), ",")+`]}`))
	if w.Code != 200 || strings.Contains(w.Body.String(), "false") {
		t.Errorf("answered %d %s", w.Code, w.Body)
	}
}

// TestKeenLate: a caller does not wait for longer than response_timeout, also when
// there is no connection for its events. What is on the way stays counted.
func TestKeenLate(t *testing.T) {
	v2 := newKeenV2(t)
	v2.says(v2States()["slow"])
	h := keenHandler(t, "http://"+v2.h.single.host, 100*time.Millisecond)
	h.single.MaxConns = 1
	client, err := upstream.New(h.single.Config)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	h.single.Client = client
	w := &flushedWriter{ResponseRecorder: httptest.NewRecorder(), flushed: func(w *flushedWriter) {
		if w.Code != 503 || !strings.Contains(w.Body.String(), "upstream_timeout") || h.bodies.inUse.Load() == 0 {
			t.Errorf("with %d bytes counted, answered %d %s", h.bodies.inUse.Load(), w.Code, w.Body)
		}
	}}
	began := time.Now()
	if err := h.ServeHTTP(w, keenRequest(keenPath, `{"db.a":[{}],"db.b":[{}],"db.c":[{}]}`), nil); err != nil || w.at.IsZero() {
		t.Error("nothing was flushed", err)
	}
	if left := h.bodies.inUse.Load(); left != 0 {
		t.Errorf("%d bytes stay counted", left)
	}
	if waited := w.at.Sub(began); waited > time.Since(began)*2/3 {
		t.Errorf("answered after %s, and all had ended after %s", waited, time.Since(began))
	}
}

// flushedWriter tells when an answer is flushed first.
type flushedWriter struct {
	*httptest.ResponseRecorder
	flushed func(*flushedWriter)
	at      time.Time
}

func (w *flushedWriter) Flush() {
	if w.at.IsZero() {
		w.at = time.Now()
		w.flushed(w)
	}
}

// TestKeenLeft: the events go on when their caller leaves.
func TestKeenLeft(t *testing.T) {
	v2 := newKeenV2(t)
	ctx, cancel := context.WithCancel(t.Context())
	r := keenRequest(keenPath, `{"db.tbl":[{"n":1}]}`)
	r = r.WithContext(context.WithValue(ctx, caddyhttp.VarsCtxKey, map[string]any{}))
	r.Body = &leavingBody{r.Body, cancel}
	if w := askKeen(t, v2.h, r); w.Code != 200 {
		t.Errorf("answered %d %s", w.Code, w.Body)
	}
	if got := v2.came(); len(got) != 1 {
		t.Errorf("v2 has %q", got)
	}
}

// leavingBody is the body of a caller that leaves when it is read.
type leavingBody struct {
	io.ReadCloser
	leave func()
}

func (b *leavingBody) Read(p []byte) (int, error) {
	b.leave()
	return b.ReadCloser.Read(p)
}

// TestKeenWarns: each trouble is told once a minute, with advice and without a key.
func TestKeenWarns(t *testing.T) {
	for name, tc := range map[string]struct {
		of            *warning
		body, says    string
		state, advice string
	}{
		"down":        {&undeliveredWarning, `{"db.tbl":[{}]}`, "record not delivered", "nothing at all", "send all of their events again"},
		"503":         {&answerWarning, `{"db.tbl":[{}]}`, "did not take a record", "503 {}", "send all of their events again"},
		"429":         {&limitWarning, `{"db.tbl":[{}]}`, "did not take a record", "429 {}", "rate limit"},
		"404":         {&eventsLeftWarning, `{"db.tbl":[{}]}`, "did not take all events", "404 {}", "batch API"},
		"206":         {&eventsLeftWarning, `{"db.tbl":[{}]}`, "did not take all events", "206 with all that fail", "send all of their events again"},
		"422":         {&refusalWarnings[22], `{"db.tbl":[{}]}`, "refused a record", "422 {}", "deletes the event"},
		"403":         {&refusalWarnings[3], `{"db.tbl":[{}]}`, "refused a record", "403 {}", "compare the caller's key"},
		"no object":   {&neverTakenWarning, `{"db.tbl":[1]}`, "can never be taken", "up", "reason"},
		"a bad table": {&neverTakenWarning, `{"tbl":[{}]}`, "can never be taken", "up", "reason"},
	} {
		t.Run(name, func(t *testing.T) {
			v2 := newKeenV2(t)
			v2.says(v2States()[tc.state])
			core, logs := observer.New(zap.WarnLevel)
			v2.h.logger = zap.New(core)
			tc.of.last.Store(0)
			for range 2 {
				askKeen(t, v2.h, keenRequest(keenPath, tc.body))
			}
			all := logs.FilterMessageSnippet(tc.says).All()
			if len(all) != 1 || !strings.Contains(fmt.Sprint(all[0].ContextMap()["advice"]), tc.advice) {
				t.Fatalf("told %v", logs.All())
			}
			if text := fmt.Sprint(all[0].ContextMap()); strings.Contains(text, keenKey) || !strings.Contains(text, "account:1234/") {
				t.Errorf("told %s", text)
			}
		})
	}
}

// FuzzKeenAnswers: whatever v2 answers, a caller gets 200 with a verdict on each event,
// or an error that is not 413.
func FuzzKeenAnswers(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"), uint8(1))
	f.Add([]byte("HTTP/1.1 206 Partial Content\r\nContent-Length: 49\r\n\r\n"+`{"receipts":[{"success":true},{"success":false}]}`), uint8(2))
	f.Add([]byte("HTTP/1.1 422 No\r\nContent-Length: 2\r\n\r\n{}"), uint8(3))
	f.Add([]byte("HTTP/1.1 413 No\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), uint8(7))
	f.Add([]byte("HTTP/1.1 403 No\r\n\r\n"), uint8(1))
	f.Fuzz(func(t *testing.T, answer []byte, count uint8) {
		h := stubHandler()
		client, err := upstream.New(upstream.Config{
			URL: &url.URL{Scheme: "http", Host: "v2"}, Timeout: time.Minute, MaxConns: 8,
			Dial: func(string) (net.Conn, error) { return &sayingConn{says: answer}, nil },
		})
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		h.single.Client = client
		body := `{"db.tbl":[` + strings.TrimSuffix(strings.Repeat("{},", int(count%8)), ",") + `]}`
		w := askKeen(t, h, keenRequest(keenPath, body))
		if w.Code != 200 {
			if w.Code < 400 || w.Code == 413 {
				t.Fatalf("answered %d", w.Code)
			}
			return
		}
		var said map[string][]struct {
			Success *bool
			Error   struct{ Name string }
		}
		if err := json.Unmarshal(w.Body.Bytes(), &said); err != nil || len(said["db.tbl"]) != int(count%8) {
			t.Fatalf("answered %s", w.Body)
		}
		for _, result := range said["db.tbl"] {
			if result.Success == nil || !*result.Success && result.Error.Name != "InvalidPropertyValueError" {
				t.Fatalf("answered %s", w.Body)
			}
		}
	})
}

// sayingConn answers each connection with some bytes, and ends.
type sayingConn struct {
	stubConn
	says []byte
}

func (c *sayingConn) Read(p []byte) (int, error) {
	if len(c.says) == 0 {
		return 0, io.EOF
	}
	n := copy(p, c.says)
	c.says = c.says[n:]
	return n, nil
}
