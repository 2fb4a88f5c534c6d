package integration

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestRecord sends what is no POST with a body and looks at the record that v2
// gets, and at the answer.
func TestRecord(t *testing.T) {
	t.Parallel()
	u := startRecorder(t, nil)
	g := serve(t, "", "td_postback {\n upstream "+u.url()+"\n}")
	const ping = "Content-Type: text/ping\r\nPing-From: https://x.example/\r\n"
	for _, tc := range []struct {
		name, request, body string
		gif                 bool
		fields              []string // that v2 gets
	}{
		{name: "GET", request: get(target+"&b=2&a=1", ""), body: `{"b":"2","a":"1"}`},
		{name: "GET without columns", request: get(target, ""), body: `{}`},
		{name: "GET, key in the header", request: get(event+"?a=1", "X-TD-Write-Key: 1234/abcd\r\n"), body: `{"a":"1"}`},
		{name: "GET, trailing slash", request: get(event+"/?td_write_key=1234%2Fabcd&a=1", ""), body: `{"a":"1"}`},
		{name: "GET, HTTP/1.0", request: "GET " + target + "&a=1 HTTP/1.0\r\n\r\n", body: `{"a":"1"}`},
		{name: "GET with a body", request: "GET " + target + "&a=1 HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}", body: `{"a":"1"}`},
		{name: "pixel", request: get(target+"&td_format=pixel&a=%E6%97%A5", ""), body: `{"a":"日"}`, gif: true},
		{
			name: "pixel with all specials", gif: true,
			request: get(target+"&td_format=pixel&td_ip=td_ip&td_ua=td_ua&td_global_id=td_global_id&td_record_time=1700000000",
				"User-Agent: Mozilla/5.0 (x)\r\nCookie: other=1; _td_global=gid-7\r\n"),
			body:   `{"td_ip":"127.0.0.1","td_ua":"Mozilla/5.0 (x)","td_global_id":"gid-7","td_record_time":1700000000}`,
			fields: []string{"User-Agent: Mozilla/5.0 (x)"},
		},
		{name: "a spoofed address", request: get(target+"&td_ip=td_ip", "X-Forwarded-For: 6.6.6.6\r\n"), body: `{"td_ip":"127.0.0.1"}`},
		{name: "conditional GET", request: get(target+"&a=1", "If-None-Match: \"x\"\r\nIf-Modified-Since: x\r\nRange: bytes=0-1\r\nReferer: https://x.example/\r\n"), body: `{"a":"1"}`, fields: []string{"Referer: https://x.example/"}},
		{name: "<a ping>", request: post(target+"&a=1", ping, "PING"), body: `{"a":"1"}`, fields: []string{"Ping-From: https://x.example/"}},
		{name: "<a ping> to a pixel", request: post(target+"&a=1&td_format=pixel", ping, "PING"), body: `{"a":"1"}`, gif: true},
		{name: "ping without a column", request: post(target, ping, "PING"), body: `{}`, fields: []string{"Ping-From: https://x.example/"}},
		{name: "beacon without a body", request: post(target+"&a=1", "", ""), body: `{"a":"1"}`},
		{name: "beacon without a body, chunked", request: "POST " + target + "&a=1 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", body: `{"a":"1"}`},
		{name: "beacon to a pixel", request: post(target+"&a=1&td_format=pixel", "Content-Type: text/plain;charset=UTF-8\r\n", `hello`), body: `{"a":"1"}`, gif: true},
		{name: "a URL of 10 kB", request: get(target+"&a="+strings.Repeat("x", 10_000), ""), body: `{"a":"` + strings.Repeat("x", 10_000) + `"}`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			answer := raw(t, g.addr, tc.request)
			if answer.StatusCode != 200 {
				t.Fatalf("got %d %q", answer.StatusCode, answer.body)
			}
			if caching := answer.Header.Get("Cache-Control"); !strings.Contains(caching, "no-store") {
				t.Errorf("Cache-Control %q", caching)
			}
			if tc.gif {
				if answer.Header.Get("Content-Type") != "image/gif" ||
					len(answer.body) != 43 || !strings.HasPrefix(answer.body, "GIF89a\x01\x00\x01\x00") {
					t.Errorf("no pixel: %q %q", answer.Header, answer.body)
				}
			} else if answer.body != "{}" || answer.Header.Get("Content-Type") != "application/json" {
				t.Errorf("got %q %q", answer.Header, answer.body)
			}
			got := u.next(t)
			if got.line != "POST "+event+" HTTP/1.1" {
				t.Errorf("request line %q", got.line)
			}
			if got.body != tc.body {
				t.Errorf("record %s, want %s", got.body, tc.body)
			}
			for name, want := range map[string][]string{
				"X-TD-Write-Key": {"1234/abcd"}, "Content-Type": {"application/json"}, "Content-Length": {fmt.Sprint(len(tc.body))},
				"Content-Encoding": nil, "If-None-Match": nil, "If-Modified-Since": nil, "Range": nil, "Cookie": nil,
			} {
				if values := got.field(name); !slices.Equal(values, want) {
					t.Errorf("%s: %q, want %q", name, values, want)
				}
			}
			for _, field := range tc.fields {
				if !slices.Contains(got.fields, field) {
					t.Errorf("no %q in %q", field, got.fields)
				}
			}
			u.none(t)
		})
	}
}

// TestRecordCompressed: a compressed body may be an object, so it is not dropped
// for the query.
func TestRecordCompressed(t *testing.T) {
	t.Parallel()
	u := startRecorder(t, nil)
	g := serve(t, "", "td_postback {\n upstream "+u.url()+"\n}")
	const compressed = "\x1f\x8b\x08\x00rest"
	for _, headers := range []string{"Content-Type: text/ping\r\n", asJSON} {
		answer := raw(t, g.addr, post(target+"&td_format=pixel&a=1", headers+"Content-Encoding: gzip\r\n", compressed))
		if answer.StatusCode != 200 || answer.Header.Get("Content-Type") != "image/gif" {
			t.Errorf("got %d %q", answer.StatusCode, answer.Header)
		}
		got := u.next(t)
		if got.line != "POST "+event+"?a=1 HTTP/1.1" || got.body != compressed || !slices.Equal(got.field("Content-Encoding"), []string{"gzip"}) {
			t.Errorf("v2 saw %q %q and %q", got.line, got.fields, got.body)
		}
	}
}

// TestRecordRefused refuses pixels like other requests, as JSON.
func TestRecordRefused(t *testing.T) {
	t.Parallel()
	u := startRecorder(t, nil)
	g := serve(t, "servers {\n max_header_size 2MiB\n}\n", "td_postback {\n upstream "+u.url()+"\n}")
	for name, tc := range map[string]struct {
		request string
		status  int
		code    string
	}{
		"no key":         {get(event+"?a=1&td_format=pixel", ""), 403, "missing_write_key"},
		"bad key":        {get(event+"?td_write_key=%zz&td_format=pixel", ""), 400, "invalid_write_key"},
		"bad name":       {get("/postback/v3/event/d.b/tbl?td_write_key=1/a", ""), 400, "invalid_path"},
		"elsewhere":      {get("/favicon.ico", ""), 404, "not_found"},
		"above the cap":  {get(target+"&a="+strings.Repeat("x", v2Cap), ""), 413, "payload_too_large"},
		"grows past cap": {get(target+"&a="+strings.Repeat("%01", v2Cap/6), ""), 413, "payload_too_large"},
		"HEAD":           {strings.Replace(get(target+"&a=1", ""), "GET", "HEAD", 1), 405, ""},
	} {
		t.Run(name, func(t *testing.T) {
			answer := raw(t, g.addr, tc.request)
			if answer.StatusCode != tc.status || answer.code() != tc.code {
				t.Errorf("got %d %q", answer.StatusCode, answer.body)
			}
			u.none(t)
		})
	}
	t.Run("800 KiB and the last that fits", func(t *testing.T) {
		for _, size := range []int{800 << 10, v2Cap - len(`{"a":""}`)} {
			if answer := raw(t, g.addr, get(target+"&a="+strings.Repeat("x", size), "")); answer.StatusCode != 200 {
				t.Errorf("got %d %q", answer.StatusCode, answer.body)
			}
			if got := u.next(t); len(got.body) != size+len(`{"a":""}`) {
				t.Errorf("v2 saw %d bytes", len(got.body))
			}
		}
	})
}

// TestRecordAnswers looks at the answer when v2 does not say 200, or says more
// than the caller asked for.
func TestRecordAnswers(t *testing.T) {
	t.Parallel()
	said := answerOK
	u := startRecorder(t, func(conn net.Conn, _ int, _ seen) bool { _, err := io.WriteString(conn, said); return err == nil })
	g := serve(t, "", "td_postback {\n upstream "+u.url()+"\n redirect_hosts shop.example\n}")
	for _, tc := range []struct {
		name, said, query string
		status            int
		body, location    string
		header            map[string]string
	}{
		{name: "refused by v2", said: "HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno", query: "", status: 403, body: "no"},
		{name: "pixel refused by v2", said: "HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno", query: "&td_format=pixel", status: 403, body: "GIF"},
		{name: "pixel, v2 fails", said: "HTTP/1.1 503 Busy\r\nRetry-After: 3\r\nContent-Length: 2\r\n\r\nno", query: "&td_format=pixel", status: 503, body: "GIF", header: map[string]string{"Retry-After": "3"}},
		{name: "pixel, v2 has no content", said: "HTTP/1.1 204 No Content\r\n\r\n", query: "&td_format=pixel", status: 204},
		{
			name: "pixel, v2 describes its own body", query: "&td_format=pixel", status: 200, body: "GIF",
			said:   "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nETag: \"x\"\r\nlast-modified: x\r\nCache-Control: max-age=9\r\nX-Request-Id: q\r\nContent-Length: 20000\r\n\r\n" + strings.Repeat("x", 20_000),
			header: map[string]string{"Content-Encoding": "", "Etag": "", "Last-Modified": "", "Cache-Control": "no-store, no-cache", "X-Request-Id": "q"},
		},
		{name: "v2 allows caching", said: "HTTP/1.1 200 OK\r\ncache-control: private\r\nContent-Length: 2\r\n\r\n{}", status: 200, body: "{}", header: map[string]string{"Cache-Control": "private"}},
		{name: "redirect", said: answerOK, query: "&td_redirect=https%3A%2F%2Fshop.example%2Fx%3Fa%3Db", status: 302, location: "https://shop.example/x?a=b", header: map[string]string{"Cache-Control": "no-store, no-cache", "Content-Type": ""}},
		{name: "redirect of a pixel", said: answerOK, query: "&td_format=pixel&td_redirect=https://shop.example/", status: 302, location: "https://shop.example/"},
		{name: "redirect with the global id", said: answerOK, query: "&td_redirect=https://shop.example/?id=td_global_id", status: 302, location: "https://shop.example/?id=gid-7"},
		{name: "redirect not allowed", said: answerOK, query: "&td_redirect=https://evil.example/", status: 400, body: "redirect_not_allowed"},
		{name: "redirect of a pixel not allowed", said: answerOK, query: "&td_format=pixel&td_redirect=//shop.example/", status: 400, body: "redirect_not_allowed"},
		{name: "no redirect when v2 refuses", said: "HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno", query: "&td_redirect=https://shop.example/", status: 403, body: "no"},
		{name: "no redirect when v2 breaks off", said: "", query: "&td_redirect=https://shop.example/", status: 502, body: "upstream_unreachable"},
	} {
		for _, form := range recordForms {
			t.Run(strings.TrimSpace(tc.name+" "+form.name), func(t *testing.T) {
				said = tc.said
				if tc.said == "" {
					said = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nContent-Length: 1\r\n\r\n"
				}
				answer := raw(t, g.addr, form.request(target+"&a=1"+tc.query, "Cookie: _td_global=gid-7\r\n"))
				if answer.StatusCode != tc.status || answer.Header.Get("Location") != tc.location {
					t.Errorf("got %d to %q, want %d to %q", answer.StatusCode, answer.Header.Get("Location"), tc.status, tc.location)
				}
				if !strings.Contains(answer.body, tc.body) || tc.body == "" && answer.body != "" {
					t.Errorf("body %q", answer.body)
				}
				for name, want := range tc.header {
					if got := answer.Header.Get(name); got != want {
						t.Errorf("%s: %q, want %q", name, got, want)
					}
				}
				if got := answer.Header["Set-Cookie"]; got != nil {
					t.Errorf("a cookie is set: %q", got)
				}
				// The record is sent whatever the redirect, and nothing that asks for an answer.
				if got := u.next(t); got.body != form.body || got.line != "POST "+event+form.query+" HTTP/1.1" {
					t.Errorf("v2 saw %q and %q", got.line, got.body)
				}
			})
		}
	}
}

// recordForms are the calls whose query says what the answer is to be.
var recordForms = []struct {
	name        string
	request     func(target, headers string) string
	query, body string // that v2 gets
}{
	{"", get, "", `{"a":"1"}`},
	{"beside an object", func(target, headers string) string {
		return post(target, "Content-Type: text/ping\r\n"+headers, object)
	}, "?a=1", object},
}

// TestRecordBodyWithheld announces a body and does not send it. A body that
// means nothing is not waited for: the caller must be answered.
func TestRecordBodyWithheld(t *testing.T) {
	t.Parallel()
	u := startRecorder(t, nil)
	g := serve(t, "", "td_postback {\n upstream "+u.url()+"\n}")
	for name, request := range map[string]string{
		"GET":             "GET " + target + "&a=1",
		"pixel":           "GET " + target + "&a=1&td_format=pixel",
		"OPTIONS":         "OPTIONS " + event,
		"refused as well": "POST " + event,
	} {
		for _, headers := range []string{"", "Expect: 100-continue\r\n"} {
			t.Run(name+" "+headers, func(t *testing.T) {
				conn := dial(t, g.addr)
				_ = conn.SetDeadline(time.Now().Add(patience / 2))
				method, _, _ := strings.Cut(request, " ")
				fmt.Fprintf(conn, "%s HTTP/1.1\r\nHost: x\r\n%sContent-Length: 10\r\n\r\n", request, headers)
				br := bufio.NewReader(conn)
				answer := readReply(t, br, method)
				if want := map[string]int{"OPTIONS": 204, "refused as well": 403}[name]; answer.StatusCode != max(want, 200) {
					t.Errorf("got %d %q", answer.StatusCode, answer.body)
				}
				if _, err := io.ReadAll(br); err != nil { // what comes late must not become a request
					t.Errorf("the connection did not end: %v", err)
				}
				if name == "GET" || name == "pixel" {
					if got := u.next(t); got.body != `{"a":"1"}` {
						t.Errorf("v2 saw %q", got.body)
					}
				}
				u.none(t)
			})
		}
	}
	for size, status := range map[int]int{1 << 20 /* below the cap */ : 200, 5 << 20: 413} {
		t.Run(fmt.Sprintf("a body of %d MB that is no object", size>>20), func(t *testing.T) {
			conn := dial(t, g.addr)
			if _, err := io.WriteString(conn, post(target+"&a=1&td_format=pixel", asJSON, strings.Repeat("x", size-10_000))); err != nil {
				t.Fatal(err)
			}
			if answer := readReply(t, bufio.NewReader(conn), "POST"); answer.StatusCode != status {
				t.Errorf("got %d %q", answer.StatusCode, answer.body)
			}
			if status == 200 {
				u.next(t)
			}
			u.none(t)
		})
	}
	t.Run("PING keeps the connection", func(t *testing.T) {
		conn := dial(t, g.addr)
		br := bufio.NewReader(conn)
		for range 3 {
			if _, err := io.WriteString(conn, post(target+"&a=1", "Content-Type: text/ping\r\n", "PING")); err != nil {
				t.Fatal(err)
			}
			if answer := readReply(t, br, "POST"); answer.StatusCode != 200 {
				t.Fatalf("got %d", answer.StatusCode)
			}
			u.next(t)
		}
	})
}

// TestGlobalIDOption reads another cookie.
func TestGlobalIDOption(t *testing.T) {
	t.Parallel()
	u := startRecorder(t, nil)
	g := serve(t, "", "td_postback {\n upstream "+u.url()+"\n global_id gid\n}")
	raw(t, g.addr, get(target+"&td_global_id=td_global_id", "Cookie: _td_global=wrong; gid=right\r\n"))
	if got := u.next(t); got.body != `{"td_global_id":"right"}` {
		t.Errorf("v2 saw %q", got.body)
	}
}

// TestRecordFromTrustedProxy takes the client's address from where Caddy
// takes it.
func TestRecordFromTrustedProxy(t *testing.T) {
	t.Parallel()
	u := startRecorder(t, nil)
	g := serve(t, "servers {\n trusted_proxies static 127.0.0.0/8\n}\n", "td_postback {\n upstream "+u.url()+"\n}")
	for address, want := range map[string]string{"192.0.2.7": "192.0.2.7", "2001:db8::7": "2001:db8::7"} {
		raw(t, g.addr, get(target+"&td_ip=td_ip", "X-Forwarded-For: "+address+"\r\n"))
		if got := u.next(t); got.body != `{"td_ip":"`+want+`"}` {
			t.Errorf("v2 saw %q", got.body)
		}
	}
}

// TestRecordHandoff leaves sending to reverse_proxy and still answers with the
// pixel or the redirect.
func TestRecordHandoff(t *testing.T) {
	t.Parallel()
	u := startRecorder(t, nil)
	g := serve(t, "", "td_postback {\n upstream "+u.url()+"\n handoff\n redirect_hosts shop.example\n}\nreverse_proxy "+u.Addr().String())
	answer := raw(t, g.addr, get(target+"&a=1&td_format=pixel", "If-None-Match: x\r\n"))
	if answer.StatusCode != 200 || !strings.HasPrefix(answer.body, "GIF89a") {
		t.Errorf("got %d %q", answer.StatusCode, answer.body)
	}
	got := u.next(t)
	if got.line != "POST "+event+" HTTP/1.1" || got.body != `{"a":"1"}` ||
		got.field("If-None-Match") != nil || !slices.Equal(got.field("Content-Type"), []string{"application/json"}) {
		t.Errorf("v2 saw %+v", got)
	}
	answer = raw(t, g.addr, get(target+"&td_redirect=https://shop.example/x", ""))
	if answer.StatusCode != 302 || answer.Header.Get("Location") != "https://shop.example/x" || answer.body != "" {
		t.Errorf("got %d %q", answer.StatusCode, answer.Header)
	}
	u.next(t)
	answer = raw(t, g.addr, get(target+"&td_redirect=https://evil.example/x", ""))
	if answer.StatusCode != 400 || answer.code() != "redirect_not_allowed" {
		t.Errorf("got %d %q", answer.StatusCode, answer.body)
	}
	u.next(t)
}
