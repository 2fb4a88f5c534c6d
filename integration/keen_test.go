package integration

import (
	"bytes"
	"compress/gzip"
	"compress/zlib"
	"fmt"
	"hash/fnv"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/td-postback/gateway/sandbox"
)

// This file sends what mobile SDKs and scripts send, several events in a request.

const (
	androidPath = "/android/v3/event"
	ofAndroid   = "Content-Type: application/json\r\nX-TD-Data-Type: k\r\nX-TD-Write-Key: " + spoolKey + "\r\nUser-Agent: TD-Android-SDK/0.6.0 (Pixel 10)\r\n"
	ofScript    = "Content-Type: application/json\r\nX-TD-Data-Type: k\r\nX-TD-Write-Key: " + spoolKey + "\r\n"
)

// keenBody is a request with events that have these IDs.
func keenBody(table string, ids ...string) string {
	events := make([]string, len(ids))
	for n, id := range ids {
		events[n] = fmt.Sprintf(`{"keen":{"timestamp":"2026-11-25T02:23:55.675+0000"},"#UUID":%q,"id":%q}`, keenUUID(id), id)
	}
	return `{"` + table + `":[` + strings.Join(events, ",") + `]}`
}

// keenUUID is the UUID of the event with this ID.
func keenUUID(id string) string {
	hash := fnv.New64a()
	_, _ = io.WriteString(hash, id)
	return fmt.Sprintf("08289530-0000-4000-8000-%012x", hash.Sum64()>>16)
}

// keenTaken is the answer when so many events are taken.
func keenTaken(table string, n int) string {
	return `{"` + table + `":[` + strings.TrimSuffix(strings.Repeat(`{"success":true},`, n), ",") + `]}`
}

func deflated(text string) string {
	var to bytes.Buffer
	w := zlib.NewWriter(&to)
	_, _ = io.WriteString(w, text)
	_ = w.Close()
	return to.String()
}

func gzippedText(text string) string {
	var to bytes.Buffer
	w := gzip.NewWriter(&to)
	_, _ = io.WriteString(w, text)
	_ = w.Close()
	return to.String()
}

// TestKeen sends what each kind of client sends, and looks at the answer, byte by
// byte, and at the batch that v2 gets.
func TestKeen(t *testing.T) {
	t.Parallel()
	v2 := startBatchV2(t, nil)
	g := serve(t, "", "td_postback {\n upstream "+v2.URL+"\n}")
	for name, request := range map[string]func(body string) string{
		"Android": func(b string) string {
			return post(androidPath, ofAndroid+"Content-Encoding: deflate\r\n", deflated(b))
		},
		"iOS": func(b string) string {
			return post("/ios/v3/event", ofAndroid+"Content-Encoding: deflate\r\n", deflated(b))
		},
		"mobile, in the open": func(b string) string { return post("//ios/v3/event/", ofAndroid, b) },
		"gzip": func(b string) string {
			return post(androidPath, ofAndroid+"Content-Encoding: gzip\r\n", gzippedText(b))
		},
		"Python":      func(b string) string { return post("/js/v3/event/", ofScript, b) },
		"Apps Script": func(b string) string { return post("/js/v3/event", ofScript, b) },
		"chunked": func(b string) string {
			return fmt.Sprintf("POST %s HTTP/1.1\r\nHost: x\r\n%sTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", androidPath, ofAndroid, len(b), b)
		},
		"waiting for 100": func(b string) string { return post(androidPath, ofAndroid+"Expect: 100-continue\r\n", b) },
		"HTTP/1.0": func(b string) string {
			return strings.Replace(post(androidPath, ofAndroid, b), "HTTP/1.1", "HTTP/1.0", 1)
		},
	} {
		t.Run(name, func(t *testing.T) {
			table := "db.t" + strings.Map(func(c rune) rune {
				if c < 'a' || c > 'z' {
					return '_'
				}
				return c
			}, strings.ToLower(name))
			ids := []string{name + "1", name + "2"}
			answer := raw(t, g.addr, request(keenBody(table, ids...)))
			if answer.StatusCode != 200 || answer.body != keenTaken(table, 2) || answer.Header.Get("Content-Type") != "application/json" {
				t.Fatalf("got %d %q %q", answer.StatusCode, answer.Header, answer.body)
			}
			v2.await(t, ids...)
			all := v2.all()
			a := all[len(all)-1]
			if !a.batch || a.target != "/"+strings.Replace(table, ".", "/", 1) || a.header.Get("Authorization") != "TD1 "+spoolKey || a.header.Get("X-Td-Write-Key") != "" {
				t.Errorf("v2 got %s %v", a.target, a.header)
			}
			if want := `{"id":"` + name + `1","time":1795573435,"uuid":"` + keenUUID(name+"1") + `"}`; a.records[0] != want {
				t.Errorf("v2 got %s, want %s", a.records[0], want)
			}
		})
	}
}

// TestKeenRepeats: what a client sends again after an answer that was lost, or after a
// 503, is there once.
func TestKeenRepeats(t *testing.T) {
	t.Parallel()
	var requests atomic.Int32
	v2 := startBatchV2(t, func(*batchArrival) batchAnswer {
		switch requests.Add(1) {
		case 1:
			return batchAnswer{lost: true}
		case 2:
			return batchAnswer{status: 503}
		case 3:
			return batchAnswer{failed: []bool{true, false, true}}
		}
		return batchAnswer{}
	})
	g := serve(t, "", "td_postback {\n upstream "+v2.URL+"\n retries 0\n}")
	body := keenBody("db.tbl", "a", "b", "c")
	for n, want := range []int{503, 503, 200, 200} {
		if answer := raw(t, g.addr, post(androidPath, ofAndroid, body)); answer.StatusCode != want {
			t.Fatalf("request %d: got %d %s", n, answer.StatusCode, answer.body)
		}
	}
	if doubles := v2.once(t, []string{"a", "b", "c"}); doubles == 0 {
		t.Error("v2 has dropped no repeat")
	}
}

// TestKeenManyEvents: 10,000 events of an old SDK's store arrive in 20 batches, each
// once, and one that v2 refuses is told as what makes the client delete it.
func TestKeenManyEvents(t *testing.T) {
	t.Parallel()
	const events = 10_000
	v2 := startBatchV2(t, func(a *batchArrival) batchAnswer {
		if slices.ContainsFunc(a.records, func(record string) bool { return strings.Contains(record, `"n7777"`) }) {
			return batchAnswer{status: 422}
		}
		return batchAnswer{}
	})
	g := serve(t, "", "td_postback {\n upstream "+v2.URL+"\n}")
	ids := make([]string, events)
	for n := range ids {
		ids[n] = fmt.Sprint("n", n)
	}
	answer := raw(t, g.addr, post(androidPath, ofAndroid+"Content-Encoding: deflate\r\n", deflated(keenBody("db.tbl", ids...))))
	const refused = `{"success":false,"error":{"name":"InvalidPropertyValueError","description":"Treasure Data has refused the event"}}`
	if answer.StatusCode != 200 || strings.Count(answer.body, `{"success":true}`) != events-1 || strings.Count(answer.body, refused) != 1 {
		t.Fatalf("got %d %.300s", answer.StatusCode, answer.body)
	}
	v2.once(t, slices.DeleteFunc(ids, func(id string) bool { return id == "n7777" }))
	if n := len(v2.all()); n > 20+18 {
		t.Errorf("%d requests for 20 batches", n)
	}
}

// TestKeenAnswers: each of the sandbox's tables that refuse, and what the client is
// told. Nothing of it is 413, or a 200 that leaves an event.
func TestKeenAnswers(t *testing.T) {
	t.Parallel()
	v2 := httptest.NewServer(new(sandbox.Sandbox))
	defer v2.Close()
	g := serve(t, "", "td_postback {\n upstream "+v2.URL+"\n response_timeout 2s\n}")
	saysNoSecret(t, g.process)
	for table, want := range map[string]struct {
		status int
		says   string
	}{
		"answer_400":   {200, "InvalidPropertyValueError"},
		"answer_422":   {200, "InvalidPropertyValueError"},
		"answer_403":   {403, "invalid_write_key"},
		"answer_429":   {503, "upstream_unreachable"},
		"answer_503":   {503, "upstream_unreachable"},
		"answer_never": {503, "upstream_timeout"},
		"answer_206":   {503, "upstream_unreachable"},
	} {
		body := `{"db.` + table + `":[{"refused":1},{"refused":2}]}`
		answer := raw(t, g.addr, post(androidPath, ofAndroid, body))
		if answer.StatusCode != want.status || !strings.Contains(answer.body, want.says) {
			t.Errorf("%s: got %d %s", table, answer.StatusCode, answer.body)
		}
		if answer.StatusCode == 200 && strings.Count(answer.body, want.says) != 2 {
			t.Errorf("%s: got %s", table, answer.body)
		}
	}
}

// TestKeenRefused: what the gateway refuses itself.
func TestKeenRefused(t *testing.T) {
	t.Parallel()
	u := startRecorder(t, nil)
	g := serve(t, "servers {\n max_header_size 2MiB\n}\n", "route {\n request_body /limited/* {\n max_size 10\n}\n uri strip_prefix /limited\n td_postback {\n upstream "+u.url()+"\n max_body 1000\n}\n}")
	body := keenBody("db.tbl", "a")
	for name, tc := range map[string]struct {
		request string
		status  int
		code    string
	}{
		"no key":                     {post(androidPath, "X-TD-Data-Type: k\r\n", body), 403, "missing_write_key"},
		"broken":                     {post(androidPath, ofAndroid+"Content-Encoding: deflate\r\n", deflated(body)[:20]), 400, "invalid_request"},
		"no JSON":                    {post(androidPath, ofAndroid, body[1:]), 400, "invalid_request"},
		"a bomb":                     {post(androidPath, ofAndroid+"Content-Encoding: gzip\r\n", gzippedText(body+strings.Repeat(" ", 64<<20))), 400, "invalid_request"},
		"larger than request_body":   {"POST /limited" + androidPath + " HTTP/1.1\r\nHost: x\r\n" + ofAndroid + "Transfer-Encoding: chunked\r\n\r\n14\r\n" + body[:20] + "\r\n0\r\n\r\n", 400, "invalid_request"},
		"a large head":               {post(androidPath, ofAndroid+"X-Large: "+strings.Repeat("x", 65<<10)+"\r\n", body), 431, "headers_too_large"},
		"GET":                        {get("/js/v3/event?callback=f", ""), 405, "method_not_allowed"},
		"below the path of a mobile": {post("/ios/v3/event/db/tbl", ofAndroid, body), 400, "invalid_path"},
	} {
		if answer := raw(t, g.addr, tc.request); answer.StatusCode != tc.status || answer.code() != tc.code {
			t.Errorf("%s: got %d %s", name, answer.StatusCode, answer.body)
		}
	}
	u.none(t)
}

// TestKeenFromPages: a page may send several events too.
func TestKeenFromPages(t *testing.T) {
	t.Parallel()
	v2 := startBatchV2(t, nil)
	g := serve(t, "", "td_postback {\n upstream "+v2.URL+"\n}")
	const origin = "Origin: https://shop.example\r\n"
	preflight := raw(t, g.addr, "OPTIONS /js/v3/event HTTP/1.1\r\nHost: x\r\n"+origin+"Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: content-type,x-td-data-type,x-td-write-key\r\n\r\n")
	if preflight.StatusCode != 204 || preflight.Header.Get("Access-Control-Allow-Headers") != "content-type,x-td-data-type,x-td-write-key" {
		t.Errorf("preflight: got %d %v", preflight.StatusCode, preflight.Header)
	}
	for _, body := range []string{keenBody("db.tbl", "a"), "no"} {
		answer := raw(t, g.addr, post("/js/v3/event", origin+ofScript, body))
		if answer.Header.Get("Access-Control-Allow-Origin") != "https://shop.example" || answer.Header.Get("Access-Control-Allow-Credentials") != "true" {
			t.Errorf("%s: got %d %v", body, answer.StatusCode, answer.Header)
		}
	}
}

// TestKeenSurfaces: js switches /js/v3/event on and off, and mobile the two others.
func TestKeenSurfaces(t *testing.T) {
	t.Parallel()
	v2 := startBatchV2(t, nil)
	for options, want := range map[string][2]int{
		"":                                 {200, 200},
		"surfaces js":                      {200, 404},
		"surfaces mobile postback":         {404, 200},
		"surfaces postback\n pass_thru":    {299, 299},
		"surfaces js postback\n pass_thru": {200, 299},
	} {
		g := serve(t, "", "route {\n td_postback {\n upstream "+v2.URL+"\n"+options+"\n}\n respond 299\n}")
		for n, path := range []string{"/js/v3/event/", androidPath} {
			if answer := raw(t, g.addr, post(path, ofAndroid, keenBody("db.tbl", "a"))); answer.StatusCode != want[n] {
				t.Errorf("%q: %s: got %d %s", options, path, answer.StatusCode, answer.body)
			}
		}
	}
}

// TestKeenOutcome: metrics and the access log know the kinds and how many events a
// call has, batches are counted, and no log, metric or answer has a key.
func TestKeenOutcome(t *testing.T) {
	t.Parallel()
	addr, admin := freeAddr(t), freeAddr(t)
	_, port, _ := net.SplitHostPort(addr)
	v2 := httptest.NewServer(new(sandbox.Sandbox))
	defer v2.Close()
	g := serveCaddyfile(t, addr, fmt.Sprintf("{\n%s\nlog {\n format filter {\n request td_key\n resp_headers td_key\n uri td_key\n}\n}\n}\nhttp://:%s {\nlog\ntd_postback {\n upstream %s\n}\n}\n",
		withAdmin(admin), port, v2.URL))
	saysNoSecret(t, g.process)
	const key = "X-TD-Write-Key: " + spoolKey + "\r\n"
	for _, tc := range []struct{ request, kind, key, result, logged string }{
		{post("/js/v3/event", key, keenBody("db.tbl", "a", "b")), "k", "header", "forwarded", `"database":"db","table":"tbl","surface":"k","key":"header","account":"1234/…","events":2,"result":"forwarded"`},
		{post(androidPath+"?api_key="+spoolKey, "", keenBody("db.tbl", "c")), "mobile", "param", "forwarded", `"surface":"mobile","key":"param","account":"1234/…","events":1`},
		{post(androidPath, key, `{"db.a":[1],"db.b":[{}]}`), "mobile", "header", "some_refused", `"database":"db","surface":"mobile","key":"header","account":"1234/…","events":2,"result":"some_refused"`},
		{post(androidPath, "Authorization: TD1 "+spoolKey+"\r\n", `{"db.answer_403":[{}]}`), "mobile", "td1", "upstream_4xx", `"upstream_status":403`},
		{post(androidPath, key, `{"db.answer_503":[{}]}`), "mobile", "header", "upstream_5xx", `"upstream_status":503`},
		{post(androidPath, key, "no"), "mobile", "header", "invalid_request", `"events":0,"result":"invalid_request"`},
		{post("/js/v3/event", "", keenBody("db.tbl", "a")), "k", "none", "missing_write_key", `"surface":"k","key":"none"`},
	} {
		before := awaitIdle(t, admin)
		raw(t, addr, tc.request)
		name := requestsTotal(tc.kind, tc.key, tc.result)
		after := awaitIdle(t, admin)
		if after[name] != before[name]+1 || after[resultsTotal(tc.result)] != before[resultsTotal(tc.result)]+1 {
			t.Errorf("%.60q: no %s in %v", tc.request, name, slices.Sorted(maps.Keys(after)))
		}
		g.await(t, tc.logged, 1)
	}
	resp, err := http.Get("http://" + admin + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || strings.Contains(string(text), spoolSecret) || !strings.Contains(string(text), "caddy_td_postback_spool_batch_records_sum 6") {
		t.Errorf("the metrics: %v\n%s", err, text)
	}
}

// TestKeenOverHTTP2: over HTTP/2 too, a call is answered whole: taken, refused before
// its body is read, and when v2 does not answer in time.
func TestKeenOverHTTP2(t *testing.T) {
	t.Parallel()
	v2 := httptest.NewServer(new(sandbox.Sandbox))
	defer v2.Close()
	pair := newCertificate(t, "localhost")
	addr := freeAddr(t)
	_, port, _ := net.SplitHostPort(addr)
	serveCaddyfile(t, addr, fmt.Sprintf("{\n%s\n}\nhttps://localhost:%s {\n tls %s %s\n td_postback {\n upstream %s\n response_timeout 1s\n}\n}\n", globals, port, pair.cert, pair.key, v2.URL))
	client := pair.http2Client()
	for name, tc := range map[string]struct {
		body, key string
		status    int
		says      string
	}{
		"taken":      {keenBody("db.tbl", "a", "b"), spoolKey, 200, keenTaken("db.tbl", 2)},
		"a bad key":  {keenBody("db.tbl", strings.Repeat("x", 4<<20)), "1/(a)", 400, "invalid_write_key"},
		"too late":   {`{"db.answer_never":[{}]}`, spoolKey, 503, "upstream_timeout"},
		"not JSON":   {strings.Repeat("x", 4<<20), spoolKey, 400, "invalid_request"},
		"never v2's": {`{"db.tbl":[{}],"db.answer_503":[{}]}`, spoolKey, 503, "upstream_unreachable"},
	} {
		r, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://localhost:"+port+androidPath, strings.NewReader(tc.body))
		r.Header.Set("X-TD-Write-Key", tc.key)
		resp, err := client.Do(r)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		answer, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil || resp.ProtoMajor != 2 || resp.StatusCode != tc.status || !strings.Contains(string(answer), tc.says) {
			t.Errorf("%s: got %d %s over %s, %v", name, resp.StatusCode, answer, resp.Proto, err)
		}
	}
}
