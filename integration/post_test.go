package integration

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// TestPost sends bytes and compares the bytes that v2 gets: the request line,
// every field, the body.
func TestPost(t *testing.T) {
	t.Parallel()
	u := startRecorder(t, nil)
	g := serve(t, "", "td_postback us01 {\n upstream "+u.url()+"\n}")
	const line = "POST /postback/v3/event/db/tbl HTTP/1.1"
	key := []string{"X-TD-Write-Key: 1234/abcd"}
	json := "Content-Type: application/json"
	for _, tc := range []struct {
		name    string
		request string
		line    string
		fields  []string // beside those that every request has
		body    string
	}{
		{"key in the URL, raw slash", post(target, asJSON, object), line, append(key, json), object},
		{"key in the URL, encoded slash", post(event+"?td_write_key=1234%2Fabcd", asJSON, object), line, append(key, json), object},
		{"other parameters keep order and bytes", post(event+"?z=%7e&td_write_key=1234/abcd&a=b+c;d&%zz", asJSON, object), "POST " + event + "?z=%7e&a=b+c;d&%zz HTTP/1.1", append(key, json), object},
		{"encoded parameter name", post(event+"?td%5fwrite%5Fkey=1234/abcd&x=1", asJSON, object), "POST " + event + "?x=1 HTTP/1.1", append(key, json), object},
		{"question mark alone goes", post(event+"?", asJSON+"X-TD-Write-Key: 1234/abcd\r\n", object), line, append(key, json), object},
		{"10,001 ampersands", post(event+"?a=1"+strings.Repeat("&", 10_001)+"td_write_key=1234/abcd&b=2", asJSON, object), "POST " + event + "?a=1" + strings.Repeat("&", 10_001) + "b=2 HTTP/1.1", append(key, json), object},
		{"header wins over the URL", post(event+"?td_write_key=9/wrong", asJSON+"x-td-write-key: 1234/abcd\r\n", object), line, append(key, json), object},
		{"unrelated Authorization goes beside a URL key", post(target, asJSON+"Authorization: Basic eDp5\r\n", object), line, append(key, json), object},
		{"TD1 goes beside a URL key", post(target, asJSON+"Authorization: TD1 9/wrong\r\n", object), line, append(key, json), object},
		{"TD1 alone", post(event, asJSON+"Authorization: td1 1234/abcd\r\n", object), line, []string{"Authorization: TD1 1234/abcd", json}, object},
		{"TD1 and a header", post(event, asJSON+"X-TD-Write-Key: 1234/abcd\r\nAuthorization: TD1 5/e\r\n", object), line, append(key, "Authorization: TD1 5/e", json), object},
		{"empty key, then a header", post(event+"?td_write_key=", asJSON+"X-TD-Write-Key: 1234/abcd\r\n", object), line, append(key, json), object},

		{"trailing slash", post(event+"/?td_write_key=1234/abcd", asJSON, object), line, append(key, json), object},
		{"runs of slashes", post("//postback/v3//event/db///tbl?td_write_key=1234/abcd", asJSON, object), line, append(key, json), object},
		{"percent-encoded path", post("/postback/v3/event/%64b/t%62l?td_write_key=1234/abcd", asJSON, object), line, append(key, json), object},
		{"absolute-form target", post("http://in.treasuredata.com"+target, asJSON, object), line, append(key, json), object},

		{"curl -d", post(target, "Content-Type: application/x-www-form-urlencoded\r\n", object), line, append(key, json), object},
		{"sendBeacon with a string", post(target, "Content-Type: text/plain;charset=UTF-8\r\n", object), line, append(key, json), object},
		{"no content type", post(target, "", object), line, append(key, json), object},
		{"stray semicolon", post(target, "Content-Type: application/json;\r\n", object), line, append(key, "Content-Type: application/json;"), object},
		{"form around a form", post(target, "Content-Type: application/x-www-form-urlencoded\r\n", "a=1"), line, append(key, "Content-Type: application/x-www-form-urlencoded"), "a=1"},
		{"content type for this hop alone", post(target, "Connection: content-type\r\nContent-Type: application/json\r\n", object), line, append(key, json), object},
		{"early data stays marked", post(target, asJSON+"Early-Data: 1\r\n", object), line, append(key, json, "Early-Data: 1"), object},
		{"body bytes stay", post(target, asJSON, " {\"a\":\"\xff\x00\"} \n\n"), line, append(key, json), " {\"a\":\"\xff\x00\"} \n\n"},
		{"compressed body", post(target, asJSON+"Content-Encoding: gzip\r\n", "\x1f\x8b\x08rest"), line, append(key, json, "Content-Encoding: gzip"), "\x1f\x8b\x08rest"},
		{"empty body without columns", post(target, asJSON, ""), line, append(key, json), ""},

		{
			"end-to-end headers stay",
			post(target, asJSON+
				"User-Agent: Arduino/1.0\r\nX-Multi: 1\r\nX-Multi: 2\r\nReferer: http://x.example/?a=b\r\nAccept-Encoding: gzip\r\n", object),
			line,
			append(key, json, "User-Agent: Arduino/1.0", "X-Multi: 1", "X-Multi: 2", "Referer: http://x.example/?a=b", "Accept-Encoding: gzip"), object,
		},
		{
			"hop-by-hop headers, cookies and Expect go",
			post(target, asJSON+
				"Connection: X-Hop, x-td-write-key\r\nX-Hop: 1\r\nKeep-Alive: 5\r\nProxy-Authorization: Basic eDp5\r\n"+
				"Proxy-Connection: keep-alive\r\nTE: trailers\r\nUpgrade: h2c\r\nCookie: session=1\r\nExpect: 100-continue\r\n", object),
			line, append(key, json), object,
		},
		{
			"an untrusted caller cannot say where it comes from",
			post(target, asJSON+"X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Proto: gopher\r\nX-Forwarded-Host: evil.example\r\n", object),
			line, append(key, json), object,
		},
		{"Via is extended", post(target, asJSON+"Via: 1.0 old\r\n", object), line, append(key, json, "Via: 1.0 old, 1.1 Caddy"), object},
		{
			"chunked with extension and trailer",
			"POST " + target + " HTTP/1.1\r\nHost: in.treasuredata.com\r\n" + asJSON +
				"Transfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n3;x=y\r\n{\"a\r\n4\r\n\":1}\r\n0\r\nX-Sum: 7\r\n\r\n",
			line, append(key, json), object,
		},
		{
			"HTTP/1.0",
			"POST " + target + " HTTP/1.0\r\nHost: in.treasuredata.com\r\n" + asJSON + "Content-Length: 7\r\n\r\n" + object,
			line, append(key, json, "Via: 1.0 Caddy"), object,
		},
		{
			"the same Content-Length twice",
			"POST " + target + " HTTP/1.1\r\nHost: in.treasuredata.com\r\n" + asJSON +
				"Content-Length: 7\r\nContent-Length: 7\r\n\r\n" + object,
			line, append(key, json), object,
		},
		{
			"chunked wins over a Content-Length",
			"POST " + target + " HTTP/1.1\r\nHost: in.treasuredata.com\r\n" + asJSON +
				"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n7\r\n" + object + "\r\n0\r\n\r\n",
			line, append(key, json), object,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			answer := raw(t, g.addr, tc.request)
			if answer.StatusCode != 200 || answer.body != "{}" {
				t.Fatalf("got %d %q", answer.StatusCode, answer.body)
			}
			got := u.next(t)
			if got.line != tc.line {
				t.Errorf("request line %q, want %q", got.line, tc.line)
			}
			want := append(slices.Clone(tc.fields),
				"Host: "+u.Addr().String(),
				fmt.Sprintf("Content-Length: %d", len(tc.body)),
				"X-Forwarded-For: 127.0.0.1", "X-Forwarded-Proto: http", "X-Forwarded-Host: in.treasuredata.com",
			)
			if !slices.ContainsFunc(want, func(f string) bool { return strings.HasPrefix(f, "Via: ") }) {
				want = append(want, "Via: 1.1 Caddy")
			}
			slices.Sort(want)
			if !slices.Equal(got.fields, want) {
				t.Errorf("fields\n%q, want\n%q", got.fields, want)
			}
			if got.body != tc.body {
				t.Errorf("body %q, want %q", got.body, tc.body)
			}
			u.none(t)
		})
	}
}

// TestRefused checks every refusal, and that v2 sees nothing of it.
func TestRefused(t *testing.T) {
	t.Parallel()
	u := startRecorder(t, nil)
	g := serve(t, "", "td_postback {\n region auto\n upstream "+u.url()+"\n}")
	withHost := func(request, host string) string {
		return strings.Replace(request, "Host: in.treasuredata.com", "Host: "+host, 1)
	}
	for _, tc := range []struct {
		name, request string
		status        int
		code, says    string
	}{
		{"other path", post("/other?td_write_key=1234/abcd", asJSON, object), 404, "not_found", ""},
		{"root", post("/", asJSON, object), 404, "not_found", ""},
		{"other version", post("/postback/v4/event/db/tbl?td_write_key=1234/abcd", asJSON, object), 400, "invalid_path", "/postback/v3/event/"},
		{"bad database", post("/postback/v3/event/my-db/tbl?td_write_key=1234/abcd", asJSON, object), 400, "invalid_path", "database"},
		{"bad table", post("/postback/v3/event/db/t.b?td_write_key=1234/abcd", asJSON, object), 400, "invalid_path", "table"},
		{"no table", post("/postback/v3/event/db?td_write_key=1234/abcd", asJSON, object), 400, "invalid_path", "table"},
		{"too deep", post(event+"/x?td_write_key=1234/abcd", asJSON, object), 400, "invalid_path", ""},
		{"encoded line break in the path", post("/postback/v3/event/db/t%0d%0aX:%20y?td_write_key=1234/abcd", asJSON, object), 400, "invalid_path", "table"},
		{"key behind an ampersand in the path", post(event+"&td_write_key=1234/abcd", asJSON, object), 400, "invalid_path", "table"},

		{"PUT", strings.Replace(post(target, asJSON, object), "POST", "PUT", 1), 405, "method_not_allowed", ""},
		{"DELETE", strings.Replace(post(target, "", ""), "POST", "DELETE", 1), 405, "method_not_allowed", ""},
		{"PATCH", strings.Replace(post(target, asJSON, object), "POST", "PATCH", 1), 405, "method_not_allowed", ""},
		{"post in lower case", strings.Replace(post(target, asJSON, object), "POST", "post", 1), 405, "method_not_allowed", ""},

		{"unknown host", withHost(post(target, asJSON, object), "gateway.example"), 421, "unknown_region", ""},
		{"v2's own host", withHost(post(target, asJSON, object), "us01.records.in.treasuredata.com"), 421, "unknown_region", ""},

		{"no key", post(event, asJSON, object), 403, "missing_write_key", "td_write_key"},
		{"empty key", post(event+"?td_write_key=", asJSON, object), 403, "missing_write_key", ""},
		{"key of spaces", post(event+"?td_write_key=%20%20", asJSON, object), 403, "missing_write_key", ""},
		{"Basic only", post(event, asJSON+"Authorization: Basic eDp5\r\n", object), 403, "missing_write_key", ""},
		{"TD1 without a key", post(event, asJSON+"Authorization: TD1\r\n", object), 403, "missing_write_key", ""},
		{"key behind a semicolon", post(event+"?a=1;td_write_key=1234/abcd", asJSON, object), 403, "missing_write_key", ""},
		{"empty header", post(event, asJSON+"X-TD-Write-Key:\r\n", object), 403, "missing_write_key", ""},

		{"line break in the key", post(event+"?td_write_key=1234/abcd%0d%0aX-Evil:1", asJSON, object), 400, "invalid_write_key", ""},
		{"bad escape in the key", post(event+"?td_write_key=1234%zzabcd", asJSON, object), 400, "invalid_write_key", "percent"},
		{"space in the key", post(event+"?td_write_key=1234+abcd", asJSON, object), 400, "invalid_write_key", "ASCII"},
		{"key above ASCII", post(event+"?td_write_key=1234/%E3%81%82", asJSON, object), 400, "invalid_write_key", "ASCII"},
		{"long key", post(event+"?td_write_key=1234/"+strings.Repeat("abcd", 256), asJSON, object), 400, "invalid_write_key", "1024"},

		{"declared size above the cap", "POST " + target + " HTTP/1.1\r\nHost: in.treasuredata.com\r\nContent-Length: 1048065\r\n\r\n", 413, "payload_too_large", "1048065"},
		{"declared size far above the cap", "POST " + target + " HTTP/1.1\r\nHost: in.treasuredata.com\r\nContent-Length: 9000000000\r\n\r\n", 413, "payload_too_large", "1048064"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			answer := raw(t, g.addr, tc.request)
			if answer.StatusCode != tc.status || answer.code() != tc.code {
				t.Fatalf("got %d %q, want %d %s", answer.StatusCode, answer.body, tc.status, tc.code)
			}
			if got := answer.Header.Get("Content-Type"); got != "application/json" {
				t.Errorf("Content-Type %q", got)
			}
			if !strings.Contains(answer.body, tc.says) || strings.Contains(answer.body, "abcd") {
				t.Errorf("body %q", answer.body)
			}
			if got := answer.Header.Get("Allow"); (got != "") != (tc.status == 405) {
				t.Errorf("Allow %q", got)
			}
			u.none(t)
		})
	}
	t.Run("HEAD", func(t *testing.T) {
		answer := raw(t, g.addr, "HEAD "+target+" HTTP/1.1\r\nHost: in.treasuredata.com\r\n\r\n")
		if answer.StatusCode != 405 || answer.body != "" {
			t.Errorf("got %d %q", answer.StatusCode, answer.body)
		}
		u.none(t)
	})
}

// TestMalformed sends what is no valid HTTP request. net/http answers some of
// it by itself; v2 must see none of it.
func TestMalformed(t *testing.T) {
	t.Parallel()
	u := startRecorder(t, nil)
	g := serve(t, "", "td_postback {\n upstream "+u.url()+"\n}")
	head := "POST " + target + " HTTP/1.1\r\nHost: in.treasuredata.com\r\n" + asJSON
	for name, request := range map[string]string{
		"two Content-Lengths":            head + "Content-Length: 7\r\nContent-Length: 8\r\n\r\n" + object,
		"Content-Length is no number":    head + "Content-Length: seven\r\n\r\n" + object,
		"negative Content-Length":        head + "Content-Length: -1\r\n\r\n" + object,
		"bad chunk size":                 head + "Transfer-Encoding: chunked\r\n\r\nz\r\n" + object,
		"unknown transfer coding":        head + "Transfer-Encoding: gzip\r\n\r\n" + object,
		"space before the colon":         head + "Content-Length : 7\r\n\r\n" + object,
		"no Host":                        "POST " + target + " HTTP/1.1\r\nContent-Length: 7\r\n\r\n" + object,
		"two Hosts":                      head + "Host: other\r\nContent-Length: 7\r\n\r\n" + object,
		"bad escape in the path":         post("/postback/v3/event/db/%zz?td_write_key=1/a", asJSON, object),
		"control byte in the header":     head + "X: a\x01b\r\nContent-Length: 7\r\n\r\n" + object,
		"space in the target":            post(event+"?td_write_key=1/a&b=c d", asJSON, object),
		"control byte in the query":      post(event+"?td_write_key=1/a&b=\x01", asJSON, object),
		"an Expect that nobody can meet": head + "Expect: the-impossible\r\nContent-Length: 7\r\n\r\n" + object,
	} {
		t.Run(name, func(t *testing.T) {
			answer := raw(t, g.addr, request)
			if answer.StatusCode < 400 {
				t.Errorf("got %d %q", answer.StatusCode, answer.body)
			}
			u.none(t)
		})
	}
}

// TestCutBody closes the sending side before the body is whole.
func TestCutBody(t *testing.T) {
	t.Parallel()
	u := startRecorder(t, nil)
	g := serve(t, "", "td_postback {\n upstream "+u.url()+"\n}")
	for name, request := range map[string]string{
		"known length": "Content-Length: 7\r\n\r\n{\"a\"",
		"chunked":      "Transfer-Encoding: chunked\r\n\r\n7\r\n{\"a\"",
		"between two chunks, the first one a whole object": "Transfer-Encoding: chunked\r\n\r\n7\r\n" + object + "\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			conn := dial(t, g.addr)
			if _, err := io.WriteString(conn, "POST "+target+" HTTP/1.1\r\nHost: x\r\n"+request); err != nil {
				t.Fatal(err)
			}
			if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
				t.Fatal(err)
			}
			answer := readReply(t, bufio.NewReader(conn), "POST")
			if answer.StatusCode != 400 || answer.code() != "invalid_request" {
				t.Errorf("got %d %q", answer.StatusCode, answer.body)
			}
			u.none(t)
		})
	}
}

// TestHalfClosed takes the whole request and then the end of the stream, as
// simple clients send them: the record must arrive and be answered.
func TestHalfClosed(t *testing.T) {
	t.Parallel()
	for name, more := range watching {
		t.Run(name, func(t *testing.T) {
			u := startRecorder(t, nil)
			g := serve(t, more, "td_postback {\n upstream "+u.url()+"\n}")
			conn := dial(t, g.addr)
			if _, err := io.WriteString(conn, post(target, asJSON, object)); err != nil {
				t.Fatal(err)
			}
			if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if answer := readReply(t, bufio.NewReader(conn), "POST"); answer.StatusCode != 200 {
				t.Errorf("got %d", answer.StatusCode)
			}
			if got := u.next(t); got.body != object {
				t.Errorf("v2 saw %q", got.body)
			}
		})
	}
}

// watching has global options with which Caddy's server watches for a caller to
// leave, and with which it does not.
var watching = map[string]string{
	"watched":   "",
	"unwatched": "servers {\n listener_wrappers {\n td_handover\n}\n}",
}

// TestCallerGone closes the connection right after sending: legacy callers
// fire and forget, and their records count.
func TestCallerGone(t *testing.T) {
	t.Parallel()
	for name, more := range watching {
		t.Run(name, func(t *testing.T) {
			u := startRecorder(t, nil)
			g := serve(t, more, "td_postback {\n upstream "+u.url()+"\n}")
			for range 50 {
				conn := dial(t, g.addr)
				if _, err := io.WriteString(conn, post(target, asJSON, object)); err != nil {
					t.Fatal(err)
				}
				conn.Close()
				if got := u.next(t); got.body != object {
					t.Errorf("v2 saw %q", got.body)
				}
			}
		})
	}
}

// TestKeepAlive sends several requests, refused ones among them, over one
// connection.
func TestKeepAlive(t *testing.T) {
	t.Parallel()
	u := startRecorder(t, nil)
	g := serve(t, "", "td_postback {\n upstream "+u.url()+"\n}")
	conn := dial(t, g.addr)
	br := bufio.NewReader(conn)
	for n := range 3 {
		for _, request := range []string{
			post(target, asJSON, object),
			"OPTIONS " + event + " HTTP/1.1\r\nHost: x\r\n\r\n",
			"PUT " + event + " HTTP/1.1\r\nHost: x\r\n\r\n",
		} {
			if _, err := io.WriteString(conn, request); err != nil {
				t.Fatal(err)
			}
			method, _, _ := strings.Cut(request, " ")
			if got, want := readReply(t, br, method).StatusCode, map[string]int{"POST": 200, "OPTIONS": 204, "PUT": 405}[method]; got != want {
				t.Fatalf("round %d: %s got %d, want %d", n, method, got, want)
			}
		}
		u.next(t)
	}
}

// TestPreflight allows what a preflight asks for, with credentials.
func TestPreflight(t *testing.T) {
	t.Parallel()
	u := startRecorder(t, nil)
	g := serve(t, "", "td_postback {\n upstream "+u.url()+"\n}")
	const page = "Origin: https://shop.example\r\n"
	for _, test := range []struct {
		name, headers string
		want          map[string][]string // of the answer's Access-Control-
	}{
		{"a JSON beacon", page + "Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: content-type,x-td-write-key\r\n", map[string][]string{
			"Allow-Origin": {"https://shop.example"}, "Allow-Credentials": {"true"}, "Max-Age": {"86400"},
			"Allow-Methods": {"GET, POST, OPTIONS"}, "Allow-Headers": {"content-type,x-td-write-key"},
		}},
		{"a method that will be refused", page + "Access-Control-Request-Method: PUT\r\n", map[string][]string{
			"Allow-Origin": {"https://shop.example"}, "Allow-Credentials": {"true"}, "Max-Age": {"86400"}, "Allow-Methods": {"GET, POST, OPTIONS, PUT"},
		}},
		{"a method that cannot be", page + "Access-Control-Request-Method: a b\r\n", map[string][]string{
			"Allow-Origin": {"https://shop.example"}, "Allow-Credentials": {"true"}, "Max-Age": {"86400"}, "Allow-Methods": {"GET, POST, OPTIONS"},
		}},
		{"a sandboxed page, a private network", "Origin: null\r\nAccess-Control-Request-Method: GET\r\nAccess-Control-Request-Private-Network: true\r\n", map[string][]string{
			"Allow-Origin": {"null"}, "Allow-Credentials": {"true"}, "Max-Age": {"86400"}, "Allow-Methods": {"GET, POST, OPTIONS"}, "Allow-Private-Network": {"true"},
		}},
		{"no page", "", map[string][]string{}},
	} {
		answer := raw(t, g.addr, "OPTIONS "+event+" HTTP/1.1\r\nHost: x\r\n"+test.headers+"\r\n")
		if answer.StatusCode != 204 || answer.body != "" || answer.Header.Get("Allow") != "GET, POST, OPTIONS" {
			t.Errorf("%s: got %d %q %q", test.name, answer.StatusCode, answer.Header, answer.body)
		}
		if got := corsOf(answer.Header); !reflect.DeepEqual(got, test.want) {
			t.Errorf("%s: got %q, want %q", test.name, got, test.want)
		}
		if vary := answer.Header["Vary"]; test.headers != "" && !slices.Contains(vary, "Origin") {
			t.Errorf("%s: Vary %q", test.name, vary)
		}
	}
	if answer := raw(t, g.addr, "OPTIONS /other HTTP/1.1\r\nHost: x\r\n\r\n"); answer.StatusCode != 404 {
		t.Errorf("elsewhere: got %d", answer.StatusCode)
	}
	u.none(t)
}

// corsOf has the fields of a header that begin with Access-Control-, without
// that.
func corsOf(header http.Header) map[string][]string {
	found := map[string][]string{}
	for name, values := range header {
		if name, ok := strings.CutPrefix(name, "Access-Control-"); ok {
			found[name] = values
		}
	}
	return found
}

// TestTrustedProxy lets a load balancer say where the request came from.
func TestTrustedProxy(t *testing.T) {
	t.Parallel()
	u := startRecorder(t, nil)
	g := serve(t, "servers {\n trusted_proxies static 127.0.0.0/8\n}\n", "td_postback {\n upstream "+u.url()+"\n}")
	raw(t, g.addr, post(target, asJSON+
		"X-Forwarded-For: 192.0.2.7, 198.51.100.2\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: legacy.example\r\n", object))
	got := u.next(t)
	for name, want := range map[string]string{
		"X-Forwarded-For":   "192.0.2.7, 198.51.100.2, 127.0.0.1",
		"X-Forwarded-Proto": "https",
		"X-Forwarded-Host":  "legacy.example",
	} {
		if values := got.field(name); !slices.Equal(values, []string{want}) {
			t.Errorf("%s: %q, want %q", name, values, want)
		}
	}
}

// TestPassThru leaves what is no postback to the next handler, and nothing
// else.
func TestPassThru(t *testing.T) {
	t.Parallel()
	u := startRecorder(t, nil)
	g := serve(t, "", "route {\n td_postback {\n  upstream "+u.url()+"\n  pass_thru\n }\n respond next 299\n}")
	for path, want := range map[string]int{"/": 299, "/js/v3/event": 403, "/ios/v3/event/": 403, "/android/v3/event/db": 400, "/android/v3/events": 299, "/js/v3/global_id": 299, "/js/v3/event/db/tbl": 403, "/js/v3/event/db": 400, "/postback": 299, "/postback/x": 400, event: 403} {
		if got := raw(t, g.addr, post(path, asJSON, object)).StatusCode; got != want {
			t.Errorf("%s: got %d, want %d", path, got, want)
		}
	}
	u.none(t)
	if got := raw(t, g.addr, post(target, asJSON, object)).StatusCode; got != 200 {
		t.Errorf("got %d", got)
	}
	u.next(t)
}

// TestNothingBehind has pass_thru and handoff with nothing behind them, or with
// something that does not answer all: never is a caller told 200 for nothing.
func TestNothingBehind(t *testing.T) {
	t.Parallel()
	const elsewhere, get = "/js/v3/global_id", "GET " + target + "&td_format=pixel HTTP/1.1\r\nHost: x\r\n\r\n"
	upstream := "td_postback us01 {\n "
	for name, test := range map[string]struct {
		site, request string
		status        int
		code          string
	}{
		"pass_thru":                    {upstream + "pass_thru\n}", post(elsewhere, asJSON, object), 404, "not_found"},
		"pass_thru with a matcher":     {upstream + "pass_thru\n}\nfile_server /files/*", post(elsewhere, asJSON, object), 404, "not_found"},
		"handoff":                      {upstream + "handoff\n}", post(target, asJSON, object), 502, "upstream_unreachable"},
		"handoff of a pixel":           {upstream + "handoff\n}", get, 502, "upstream_unreachable"},
		"handoff, and an empty answer": {"route {\n" + upstream + "handoff\n}\nrespond 200\n}", post(target, asJSON, object), 200, ""},
		"handoff and encode":           {"route {\n encode gzip\n" + upstream + "handoff\n}\n encode zstd\n}", post(target, asJSON+"Accept-Encoding: gzip, zstd\r\n", object), 502, "upstream_unreachable"},
	} {
		t.Run(name, func(t *testing.T) {
			g := serve(t, "", "log\n"+test.site)
			answer := raw(t, g.addr, test.request)
			var refused struct{ Error string }
			if err := json.Unmarshal([]byte(answer.body), &refused); answer.StatusCode != test.status || refused.Error != test.code || err != nil && test.code != "" {
				t.Errorf("got %d %q", answer.StatusCode, answer.body)
			}
			g.await(t, `"msg":"handled request"`, 1)
			if warns := strings.Contains(g.text(), "no handler behind td_postback has answered"); warns != (test.status == 502) {
				t.Errorf("warns: %v", warns)
			}
		})
	}
}

// TestUpgradeBehind changes the protocol of a connection behind pass_thru.
func TestUpgradeBehind(t *testing.T) {
	t.Parallel()
	behind := listen(t, &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { //nolint:gosec // loopback
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nhello")
		conn.Close()
	})})
	g := serve(t, "", "td_postback us01 {\n pass_thru\n}\nreverse_proxy "+behind)
	conn := dial(t, g.addr)
	if _, err := io.WriteString(conn, "GET /socket HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(conn)
	resp, err := http.ReadResponse(r, nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("got %v, %v", resp, err)
	}
	greeting := make([]byte, 5)
	if _, err := io.ReadFull(r, greeting); err != nil || string(greeting) != "hello" {
		t.Errorf("got %q, %v", greeting, err)
	}
}

// TestNotShadowed puts the directive beside handlers that answer what is theirs,
// without any order: they do, and a record still reaches v2.
func TestNotShadowed(t *testing.T) {
	t.Parallel()
	u := startRecorder(t, nil)
	block := "\ntd_postback {\n upstream " + u.url() + "\n}"
	asBot := asJSON + "User-Agent: bot\r\n"
	for name, test := range map[string]struct {
		site, request string
		want          int // 0 for none: the connection ends
	}{
		"deny by respond": {"@bad header User-Agent bot\nrespond @bad 403" + block, post(target, asBot, object), 403},
		"deny by error":   {"@bad header User-Agent bot\nerror @bad 418" + block, post(target, asBot, object), 418},
		"deny by abort":   {"@bad header User-Agent bot\nabort @bad" + block, post(target, asBot, object), 0},
		"a health path":   {"respond /healthz 299" + block, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", 299},
		"a handle":        {"handle /healthz {\n respond 299\n}" + block, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", 299},
		"metrics":         {"metrics /metrics" + block, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", 200},
		"authentication":  {"basic_auth {\n alice $2a$14$Zkx19XLiW6VYouLHR5NmfOFU0z2GTNmpkT/5qqR7hx4IjWJPDhjvG\n}" + block, post(target, asJSON, object), 401},
		"in a route":      {"route {" + block + "\nrespond 299\n}", "GET /elsewhere HTTP/1.1\r\nHost: x\r\n\r\n", 404},
	} {
		t.Run(name, func(t *testing.T) {
			g := serve(t, "", test.site)
			conn := dial(t, g.addr)
			if _, err := io.WriteString(conn, test.request); err != nil {
				t.Fatal(err)
			}
			resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
			switch {
			case err != nil && test.want != 0:
				t.Error(err)
			case err == nil && resp.StatusCode != test.want:
				t.Errorf("got %d, want %d", resp.StatusCode, test.want)
			}
			u.none(t)
			if name == "authentication" {
				return
			}
			if answer := raw(t, g.addr, post(target, asJSON, object)); answer.body != "{}" {
				t.Errorf("got %d %q", answer.StatusCode, answer.body)
			}
			u.next(t)
			if strings.Contains(g.text(), "no event reaches td_postback") {
				t.Error("a warning of a handler that has a matcher")
			}
		})
	}
}

// TestShadowed has a handler that answers everything: the load says that no
// event will reach v2.
func TestShadowed(t *testing.T) {
	t.Parallel()
	for name, site := range map[string]string{
		"respond":         "respond 200\ntd_postback us01",
		"handle":          "handle {\n respond 200\n}\ntd_postback us01",
		"metrics":         "metrics\ntd_postback us01",
		"inside a handle": "handle {\n respond 200\n td_postback us01\n}",
	} {
		t.Run(name, func(t *testing.T) {
			g := serve(t, "", site)
			if text := g.text(); strings.Count(text, "no event reaches td_postback") != 1 || !strings.Contains(text, `"advice":"give that handler a matcher`) {
				t.Error("no warning:\n" + text)
			}
		})
	}
}

// TestHandoff leaves forwarding to reverse_proxy, which sends the same record.
func TestHandoff(t *testing.T) {
	t.Parallel()
	u := startRecorder(t, nil)
	g := serve(t, "", "td_postback {\n upstream "+u.url()+"\n handoff\n}\nreverse_proxy "+u.Addr().String())
	chunked := "POST " + event + "/?a=%7e&td_write_key=1234%2Fabcd&b=;c HTTP/1.1\r\nHost: in.treasuredata.com\r\n" +
		"Connection: X-Td-Write-Key, X-Hop\r\nX-Hop: 1\r\nCookie: s=1\r\nAuthorization: Basic eDp5\r\n" +
		"Transfer-Encoding: chunked\r\n\r\n7\r\n" + object + "\r\n0\r\n\r\n"
	if answer := raw(t, g.addr, chunked); answer.StatusCode != 200 {
		t.Fatalf("got %d %q", answer.StatusCode, answer.body)
	}
	got := u.next(t)
	if want := "POST " + event + "?a=%7e&b=;c HTTP/1.1"; got.line != want {
		t.Errorf("request line %q, want %q", got.line, want)
	}
	if got.body != object {
		t.Errorf("body %q", got.body)
	}
	for name, want := range map[string][]string{
		"X-Td-Write-Key": {"1234/abcd"},
		"Content-Type":   {"application/json"},
		"Content-Length": {"7"},
		"Host":           {u.Addr().String()},
		"Authorization":  nil,
		"Cookie":         nil,
		"X-Hop":          nil,
	} {
		if values := got.field(name); !slices.Equal(values, want) {
			t.Errorf("%s: %q, want %q", name, values, want)
		}
	}
	for _, request := range []string{
		post(event, asJSON, object),
		"POST " + target + " HTTP/1.1\r\nHost: x\r\nContent-Length: 1048065\r\n\r\n",
	} {
		if answer := raw(t, g.addr, request); answer.StatusCode != 403 && answer.StatusCode != 413 {
			t.Errorf("got %d", answer.StatusCode)
		}
	}
	u.none(t)
}

// TestCORS lets pages read answers, with credentials, whatever v2 says of pages.
func TestCORS(t *testing.T) {
	t.Parallel()
	more := ""
	u := startRecorder(t, func(conn net.Conn, _ int, _ seen) bool {
		_, err := io.WriteString(conn, strings.Replace(answerOK, "\r\n", "\r\n"+more, 1))
		return err == nil
	})
	g := serve(t, "", "td_postback {\n upstream "+u.url()+"\n redirect_hosts shop.example\n}")
	passing := serve(t, "", "handle_path /next/* {\n td_postback {\n  upstream "+u.url()+"\n  handoff\n }\n reverse_proxy "+u.Addr().String()+"\n}\nhandle {\n td_postback {\n  upstream "+u.url()+"\n  pass_thru\n }\n reverse_proxy "+u.Addr().String()+"\n}")
	own := "access-control-allow-origin: https://only.example\r\nACCESS-CONTROL-EXPOSE-HEADERS: a\r\nVary: Accept\r\n"
	theirs := map[string][]string{"Allow-Origin": {"https://only.example"}, "Expose-Headers": {"a"}}
	page := "Origin: https://shop.example\r\n"
	ours := func(origin string) map[string][]string {
		return map[string][]string{"Allow-Origin": {origin}, "Allow-Credentials": {"true"}}
	}
	none := map[string][]string{}
	for _, test := range []struct {
		name, more, request string
		status              int
		want                map[string][]string
		vary                []string
	}{
		{"a page", "", post(target, asJSON+page, object), 200, ours("https://shop.example"), []string{"Origin"}},
		{"a page, and v2 has its own", own, post(target, asJSON+page, object), 200, ours("https://shop.example"), []string{"Origin", "Accept"}},
		{"v2 has its own, and no page asks", own, post(target, asJSON, object), 200, theirs, []string{"Accept"}},
		{"no page", "", post(target, asJSON, object), 200, none, nil},
		{"a sandboxed page", "", post(target, asJSON+"Origin: null\r\n", object), 200, ours("null"), []string{"Origin"}},
		{"an app", "", post(target, asJSON+"Origin: capacitor://localhost\r\n", object), 200, ours("capacitor://localhost"), []string{"Origin"}},
		{"the longest origin", "", post(target, asJSON+"Origin: https://"+strings.Repeat("a", 292)+"\r\n", object), 200, ours("https://" + strings.Repeat("a", 292)), []string{"Origin"}},
		{"an origin that is too long", "", post(target, asJSON+"Origin: https://"+strings.Repeat("a", 293)+"\r\n", object), 200, none, nil},
		{"an origin with a blank", "", post(target, asJSON+"Origin: https://a b\r\n", object), 200, none, nil},
		{"two origins", "", post(target, asJSON+page+page, object), 200, none, nil},
		{"a pixel", "", "GET " + target + "&td_format=pixel HTTP/1.1\r\nHost: x\r\n" + page + "\r\n", 200, ours("https://shop.example"), []string{"Origin"}},
		{"a redirect", "", "GET " + target + "&td_redirect=https://shop.example/ HTTP/1.1\r\nHost: x\r\n" + page + "\r\n", 302, ours("https://shop.example"), []string{"Origin"}},
		{"a redirect that is refused", own, "GET " + target + "&td_redirect=https://x.example/ HTTP/1.1\r\nHost: x\r\n" + page + "\r\n", 400, ours("https://shop.example"), []string{"Origin", "Accept"}},
		{"no key", "", post(event, asJSON+page, object), 403, ours("https://shop.example"), []string{"Origin"}},
		{"no event", "", post("/postback/v3", asJSON+page, object), 400, ours("https://shop.example"), []string{"Origin"}},
		{"a wrong method", "", strings.Replace(post(target, asJSON+page, object), "POST", "PUT", 1), 405, ours("https://shop.example"), []string{"Origin"}},
	} {
		more = test.more
		answer := raw(t, g.addr, test.request)
		if got := corsOf(answer.Header); answer.StatusCode != test.status || !reflect.DeepEqual(got, test.want) {
			t.Errorf("%s: got %d %q, want %d %q", test.name, answer.StatusCode, got, test.status, test.want)
		}
		if vary := answer.Header["Vary"]; !slices.Equal(vary, test.vary) {
			t.Errorf("%s: Vary %q, want %q", test.name, vary, test.vary)
		}
	}
	more = own
	for _, request := range []string{post("/next"+target, asJSON+page, object), post("/elsewhere", asJSON+page, object)} {
		if got := corsOf(raw(t, passing.addr, request).Header); !reflect.DeepEqual(got, theirs) {
			t.Errorf("the next handler's: %q", got)
		}
	}
}
