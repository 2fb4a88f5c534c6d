package integration

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"image/gif"
	"io"
	"net"
	"net/http"
	"net/textproto"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/quic-go/quic-go/http3"
)

// call is a request in no protocol yet.
type call struct {
	method, target string
	headers        [][2]string
	body           string
	undeclared     bool // the length of the body is not said before it
}

// protocol is a way to make calls.
type protocol struct {
	name    string
	version string // as Via says it
	proto   string // as X-Forwarded-Proto says it
	host    string // as X-Forwarded-Host says it; empty: not at all
	ask     func(t *testing.T, c call) reply
}

// TestProtocols has one contract for every version of HTTP: the same answer
// and the same record at v2.
func TestProtocols(t *testing.T) {
	t.Parallel()
	u := startRecorder(t, nil)
	pair := newCertificate(t, "localhost")
	plain, secure := freeAddr(t), freeAddr(t)
	serveCaddyfile(t, plain, protocolsCaddyfile(plain, secure, pair, u.url()))

	form := [2]string{"Content-Type", "application/x-www-form-urlencoded"}
	json := [2]string{"Content-Type", "application/json"}
	origin := [2]string{"Origin", "https://shop.example"}
	key := [2]string{"X-TD-Write-Key", "1234/abcd"}
	const line = "POST " + event + " HTTP/1.1"
	post := func(target, body string, headers ...[2]string) call {
		return call{method: "POST", target: target, headers: headers, body: body}
	}
	get := func(target string, headers ...[2]string) call {
		return call{method: "GET", target: target, headers: headers}
	}
	callers := protocols(t, plain, secure, pair)
	undeclared := func(c call) call { c.undeclared = true; return c }
	for _, tc := range []struct {
		name string
		call
		status int
		answer string            // the code of a refusal, or the whole body
		pixel  bool              // the body is an image instead
		header map[string]string // of the answer; empty: absent

		// What v2 sees; nothing without a line.
		line, record string
		fields       []string
	}{
		{name: "key in the URL", call: post(target+"&x=%7e&y=;+", object, json), status: 200, answer: "{}", line: "POST " + event + "?x=%7e&y=;+ HTTP/1.1", record: object},
		{name: "key in a header", call: post(event, object, json, key), status: 200, answer: "{}", line: line, record: object},
		{name: "key in both", call: post(event+"?td_write_key=9/wrong", object, json, key), status: 200, answer: "{}", line: line, record: object},
		{name: "a foreign Authorization", call: post(target, object, json, [2]string{"Authorization", "Bearer x"}), status: 200, answer: "{}", line: line, record: object},
		{name: "trailing slash and escapes", call: post("/postback/v3//event/%64b/tbl/?td%5Fwrite_key=1234%2Fabcd", object, json), status: 200, answer: "{}", line: line, record: object},
		{name: "a form's content type", call: post(target, object, form), status: 200, answer: "{}", line: line, record: object},
		{name: "undeclared length", call: undeclared(post(target, object, json)), status: 200, answer: "{}", line: line, record: object},
		{name: "hop-by-hop headers and cookies", call: post(target, object, json, [2]string{"TE", "trailers"}, [2]string{"Cookie", "a=b"}, [2]string{"Cookie", "c=d"}), status: 200, answer: "{}", line: line, record: object},
		{
			name: "Origin", call: post(target, object, json, origin), status: 200, answer: "{}", header: map[string]string{"Access-Control-Allow-Origin": "https://shop.example", "Access-Control-Allow-Credentials": "true", "Vary": "Origin"},
			line: line, record: object, fields: []string{"Origin: https://shop.example"},
		},
		{name: "no Origin", call: post(target, object, json), status: 200, answer: "{}", header: map[string]string{"Access-Control-Allow-Origin": ""}, line: line, record: object},

		{name: "pixel", call: get(target + "&a=%E6%97%A5&td_format=pixel"), status: 200, pixel: true, header: map[string]string{"Content-Type": "image/gif", "Cache-Control": "no-store, no-cache"}, line: line, record: `{"a":"日"}`},
		{name: "GET", call: get(target + "&a=1&b=+x"), status: 200, answer: "{}", header: map[string]string{"Content-Type": "application/json", "Cache-Control": "no-store"}, line: line, record: `{"a":"1","b":" x"}`},
		{name: "GET, cookies in two headers", call: get(target+"&td_global_id=td_global_id", [2]string{"Cookie", "a=b"}, [2]string{"Cookie", "_td_global=gid"}), status: 200, answer: "{}", line: line, record: `{"td_global_id":"gid"}`},
		{name: "beacon without a body", call: post(target+"&a=1", ""), status: 200, answer: "{}", line: line, record: `{"a":"1"}`},
		{name: "beacon without a body, undeclared", call: undeclared(post(target+"&a=1", "")), status: 200, answer: "{}", line: line, record: `{"a":"1"}`},
		{name: "<a ping>", call: post(target+"&a=1", "PING", [2]string{"Content-Type", "text/ping"}), status: 200, answer: "{}", line: line, record: `{"a":"1"}`},

		{name: "the largest body", call: post(target, objectOf(v2Cap), json), status: 200, answer: "{}", line: line, record: objectOf(v2Cap)},
		{name: "the largest body, undeclared", call: undeclared(post(target, objectOf(v2Cap), json)), status: 200, answer: "{}", line: line, record: objectOf(v2Cap)},
		{name: "one byte more", call: post(target, objectOf(v2Cap+1), json), status: 413, answer: "payload_too_large"},
		{name: "one byte more, undeclared", call: undeclared(post(target, objectOf(v2Cap+1), json)), status: 413, answer: "payload_too_large"},

		{name: "no key", call: post(event, object, json), status: 403, answer: "missing_write_key"},
		{name: "no key, with Origin", call: post(event, object, json, origin), status: 403, answer: "missing_write_key", header: map[string]string{"Access-Control-Allow-Origin": "https://shop.example", "Access-Control-Allow-Credentials": "true", "Vary": "Origin"}},
		{name: "a line break in the key", call: post(event+"?td_write_key=1/a%0d%0ax:y", object, json), status: 400, answer: "invalid_write_key"},
		{name: "bad path", call: post("/postback/v3/event/my-db/tbl?td_write_key=1234/abcd", object, json), status: 400, answer: "invalid_path"},
		{name: "other path", call: post("/other?td_write_key=1234/abcd", object, json), status: 404, answer: "not_found"},
		{name: "HEAD", call: call{method: "HEAD", target: target}, status: 405, header: map[string]string{"Allow": "GET, POST, OPTIONS"}},
		{name: "PUT", call: call{method: "PUT", target: target, body: object, headers: [][2]string{json}}, status: 405, answer: "method_not_allowed", header: map[string]string{"Allow": "GET, POST, OPTIONS"}},
		{
			name: "preflight", status: 204,
			call: call{method: "OPTIONS", target: target, headers: [][2]string{
				origin, {"Access-Control-Request-Method", "POST"}, {"Access-Control-Request-Headers", "content-type,x-td-write-key"},
			}},
			header: map[string]string{
				"Access-Control-Allow-Origin": "https://shop.example", "Access-Control-Allow-Credentials": "true", "Access-Control-Allow-Methods": "GET, POST, OPTIONS",
				"Access-Control-Allow-Headers": "content-type,x-td-write-key",
			},
		},
	} {
		for _, p := range callers {
			if tc.undeclared && p.version == "1.0" {
				continue // HTTP/1.0 has no chunks
			}
			t.Run(tc.name+"/"+p.name, func(t *testing.T) {
				answer := p.ask(t, tc.call)
				got := answer.body
				switch {
				case tc.status >= 400 && tc.method != http.MethodHead:
					got = answer.code()
				case tc.pixel:
					if image, err := gif.DecodeConfig(strings.NewReader(answer.body)); err != nil || image.Width != 1 || image.Height != 1 {
						t.Errorf("no image of 1x1: %v", err)
					}
					got = ""
				}
				if answer.StatusCode != tc.status || got != tc.answer {
					t.Fatalf("got %d %q", answer.StatusCode, answer.body)
				}
				if tc.status >= 400 && answer.Header.Get("Content-Type") != "application/json" {
					t.Errorf("Content-Type %q", answer.Header.Get("Content-Type"))
				}
				for name, want := range tc.header {
					if got := answer.Header.Get(name); got != want {
						t.Errorf("%s: %q, want %q", name, got, want)
					}
				}
				if tc.line == "" {
					u.none(t)
					return
				}
				checkRecord(t, u, u.next(t), p, tc.line, tc.record, tc.fields)
				u.none(t)
			})
		}
	}
}

// checkRecord compares all that v2 sees but what a client says of itself.
func checkRecord(t *testing.T, u *recorder, got seen, p protocol, line, record string, fields []string) {
	t.Helper()
	want := append(slices.Clone(fields),
		"Host: "+u.Addr().String(), "Content-Length: "+strconv.Itoa(len(record)), "Content-Type: application/json",
		"X-TD-Write-Key: 1234/abcd", "X-Forwarded-For: 127.0.0.1", "X-Forwarded-Proto: "+p.proto, "Via: "+p.version+" Caddy")
	if p.host != "" {
		want = append(want, "X-Forwarded-Host: "+p.host)
	}
	slices.Sort(want)
	seen := slices.DeleteFunc(got.fields, func(field string) bool {
		name, _, _ := strings.Cut(field, ": ")
		return slices.Contains([]string{"User-Agent", "Accept", "Accept-Encoding"}, name)
	})
	if got.line != line {
		t.Errorf("request line %q, want %q", got.line, line)
	}
	if !slices.Equal(seen, want) {
		t.Errorf("fields\n%q, want\n%q", seen, want)
	}
	if got.body != record {
		t.Errorf("a body of %d bytes, %.80q, want %.80q", len(got.body), got.body, record)
	}
}

func protocolsCaddyfile(plain, secure string, pair certificate, upstream string) string {
	_, port, _ := net.SplitHostPort(plain)
	_, securePort, _ := net.SplitHostPort(secure)
	return fmt.Sprintf(`{
	%s
	servers {
		protocols h1 h2 h2c h3
	}
}
(gateway) {
	td_postback {
		upstream %s
	}
}
http://:%s {
	import gateway
}
https://localhost:%s {
	tls %s %s
	import gateway
}
`, globals, upstream, port, securePort, pair.cert, pair.key)
}

// protocols are all ways to the two sites of protocolsCaddyfile.
func protocols(t *testing.T, plain, secure string, pair certificate) []protocol {
	curl := tool(t, "curl", "curl")
	_, port, _ := net.SplitHostPort(secure)
	secureHost := "localhost:" + port
	httpURL, httpsURL := "http://"+plain, "https://"+secureHost
	byCurl := func(base string, args ...string) func(*testing.T, call) reply {
		args = append(args, "--cacert", pair.cert, "--resolve", secureHost+":127.0.0.1")
		return func(t *testing.T, c call) reply { return askByCurl(t, curl, base, args, c) }
	}
	byGo := func(base string, via http.RoundTripper) func(*testing.T, call) reply {
		return func(t *testing.T, c call) reply { return askByGo(t, base, via, c) }
	}
	transport := func(set func(*http.Protocols)) *http.Transport {
		transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pair.pool}, Protocols: new(http.Protocols)}
		set(transport.Protocols)
		t.Cleanup(transport.CloseIdleConnections)
		return transport
	}
	h1 := transport(func(p *http.Protocols) { p.SetHTTP1(true) })
	h2 := transport(func(p *http.Protocols) { p.SetHTTP2(true) })
	h2c := transport(func(p *http.Protocols) { p.SetUnencryptedHTTP2(true) })
	h3 := &http3.Transport{TLSClientConfig: &tls.Config{RootCAs: pair.pool}}
	t.Cleanup(func() { h3.Close() })
	return []protocol{
		{"1.0 by socket", "1.0", "http", "", func(t *testing.T, c call) reply { return askInHTTP10(t, plain, c) }},
		{"1.0 by curl", "1.0", "http", plain, byCurl(httpURL, "--http1.0")},
		// Old clients know no ALPN. To curl's own offer of http/1.0, which Caddy
		// does not have, it ends the handshake.
		{"1.0 over TLS by curl", "1.0", "https", secureHost, byCurl(httpsURL, "--http1.0", "--no-alpn")},
		{"1.1 by Go", "1.1", "http", plain, byGo(httpURL, h1)},
		{"1.1 by curl", "1.1", "http", plain, byCurl(httpURL, "--http1.1")},
		{"1.1 over TLS by Go", "1.1", "https", secureHost, byGo(httpsURL, h1)},
		{"1.1 over TLS by curl", "1.1", "https", secureHost, byCurl(httpsURL, "--http1.1")},
		{"2 without TLS by Go", "2.0", "http", plain, byGo(httpURL, h2c)},
		{"2 without TLS by curl", "2.0", "http", plain, byCurl(httpURL, "--http2-prior-knowledge")},
		{"2 by Go", "2.0", "https", secureHost, byGo(httpsURL, h2)},
		{"2 by curl", "2.0", "https", secureHost, byCurl(httpsURL, "--http2")},
		{"3 by Go", "3.0", "https", secureHost, byGo(httpsURL, h3)},
	}
}

// askByGo makes a call with one of Go's clients.
func askByGo(t *testing.T, base string, via http.RoundTripper, c call) reply {
	t.Helper()
	// The length of an io.Reader that is none of net/http's own is unknown.
	req, err := http.NewRequest(c.method, base+c.target, struct{ io.Reader }{strings.NewReader(c.body)})
	if err != nil {
		t.Fatal(err)
	}
	req.ContentLength = -1
	if !c.undeclared {
		req.ContentLength = int64(len(c.body))
		if c.body == "" {
			req.Body = http.NoBody
		}
	}
	for _, header := range c.headers {
		req.Header.Add(header[0], header[1])
	}
	resp, err := (&http.Client{Transport: via, Timeout: patience}).Do(req)
	if err != nil {
		t.Fatalf("no answer: %v", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("answer cut: %v", err)
	}
	return reply{resp, string(body)}
}

// askByCurl makes a call with curl.
func askByCurl(t *testing.T, curl, base string, args []string, c call) reply {
	t.Helper()
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	if err := os.WriteFile(path("sent"), []byte(c.body), 0o600); err != nil {
		t.Fatal(err)
	}
	args = append(slices.Clone(args), "-sS", "--path-as-is", "--globoff",
		"--max-time", strconv.Itoa(int(patience.Seconds())), "-D", path("head"), "-o", path("body"))
	switch {
	case c.undeclared:
		args = append(args, "-X", c.method, "-T", "-", "-H", "Content-Length:")
	case c.body != "" || c.method == http.MethodPost:
		args = append(args, "-X", c.method, "-H", "Content-Type:", "--data-binary", "@"+path("sent"))
	case c.method == http.MethodHead:
		args = append(args, "--head")
	default:
		args = append(args, "-X", c.method)
	}
	for _, header := range c.headers {
		args = append(args, "-H", header[0]+": "+header[1])
	}
	cmd := exec.Command(curl, append(args, base+c.target)...)
	cmd.Stdin, _ = os.Open(path("sent"))
	if output, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("no answer: %v: %s", err, output)
	}
	heads, err := os.ReadFile(path("head"))
	if err != nil {
		t.Fatal(err)
	}
	answer := lastHead(t, heads)
	if c.method == http.MethodHead {
		return answer // curl writes the head to both files
	}
	body, err := os.ReadFile(path("body"))
	if err != nil && !os.IsNotExist(err) { // without a body, there is no file
		t.Fatal(err)
	}
	answer.body = string(body)
	return answer
}

// lastHead reads the last of the heads that curl has written: those of interim
// answers come first.
func lastHead(t *testing.T, heads []byte) reply {
	t.Helper()
	heads = bytes.TrimSuffix(heads, []byte("\r\n\r\n"))
	if i := bytes.LastIndex(heads, []byte("\r\n\r\n")); i >= 0 {
		heads = heads[i+4:]
	}
	status, fields, _ := strings.Cut(string(heads)+"\r\n\r\n", "\r\n")
	header, err := textproto.NewReader(bufio.NewReader(strings.NewReader(fields))).ReadMIMEHeader()
	if err != nil {
		t.Fatal(err)
	}
	words := strings.Fields(status)
	if len(words) < 2 {
		t.Fatalf("status line %q", status)
	}
	code, err := strconv.Atoi(words[1])
	if err != nil {
		t.Fatal(err)
	}
	return reply{Response: &http.Response{StatusCode: code, Header: http.Header(header)}}
}

// askInHTTP10 makes a call as a simple old client does: without a Host, and
// with the end of the connection as the end of the answer.
func askInHTTP10(t *testing.T, addr string, c call) reply {
	t.Helper()
	var request strings.Builder
	fmt.Fprintf(&request, "%s %s HTTP/1.0\r\n", c.method, c.target)
	for _, header := range c.headers {
		fmt.Fprintf(&request, "%s: %s\r\n", header[0], header[1])
	}
	if c.body != "" || c.method == http.MethodPost {
		fmt.Fprintf(&request, "Content-Length: %d\r\n", len(c.body))
	}
	request.WriteString("\r\n" + c.body)
	conn := dial(t, addr)
	if _, err := io.WriteString(conn, request.String()); err != nil {
		t.Fatalf("could not send the whole request: %v", err)
	}
	text, err := io.ReadAll(conn)
	if err != nil {
		t.Fatalf("answer cut: %v", err)
	}
	head, body, _ := bytes.Cut(text, []byte("\r\n\r\n"))
	answer := lastHead(t, head)
	answer.body = string(body)
	if bytes.Count(text, []byte("HTTP/1.")) != 1 {
		t.Errorf("an interim answer: %q", text)
	}
	if coding := answer.Header.Get("Transfer-Encoding"); coding != "" {
		t.Errorf("Transfer-Encoding %q in an answer to HTTP/1.0", coding)
	}
	if length := answer.Header.Get("Content-Length"); length != strconv.Itoa(len(body)) && length != "" && c.method != http.MethodHead {
		t.Errorf("Content-Length %q of %d bytes", length, len(body))
	}
	return answer
}

// TestHTTP10Answers has v2 answer in ways that HTTP/1.0 does not know.
func TestHTTP10Answers(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("0123456789abcdef", 4<<10) // longer than what is read before the head goes on
	for name, tc := range map[string]struct {
		answer string
		keep   bool
		body   string
	}{
		"chunked":              {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n1\r\n}\r\n0\r\n\r\n", true, "{}"},
		"chunked and long":     {fmt.Sprintf("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", len(long), long), true, long},
		"no length, long":      {"HTTP/1.1 200 OK\r\n\r\n" + long, false, long},
		"interim answer first": {"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n" + answerOK, true, "{}"},
	} {
		t.Run(name, func(t *testing.T) {
			u := startRecorder(t, func(conn net.Conn, _ int, _ seen) bool { return send(conn, tc.keep, tc.answer) })
			g := serve(t, "", "td_postback {\n upstream "+u.url()+"\n}")
			for _, headers := range [][][2]string{nil, {{"Expect", "100-continue"}}} {
				answer := askInHTTP10(t, g.addr, call{method: "POST", target: target, headers: headers, body: object})
				if answer.StatusCode != 200 || answer.body != tc.body {
					t.Errorf("got %d and %d bytes", answer.StatusCode, len(answer.body))
				}
				if got := u.next(t); got.body != object {
					t.Errorf("v2 saw %q", got.body)
				}
			}
		})
	}
}

// TestHTTP10KeepAlive sends two records on one connection, where the caller
// asks to keep it.
func TestHTTP10KeepAlive(t *testing.T) {
	t.Parallel()
	u := startRecorder(t, nil)
	g := serve(t, "", "td_postback {\n upstream "+u.url()+"\n}")
	conn := dial(t, g.addr)
	br := bufio.NewReader(conn)
	for range 2 {
		if _, err := io.WriteString(conn, "POST "+target+" HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 7\r\n\r\n"+object); err != nil {
			t.Fatal(err)
		}
		answer := readReply(t, br, "POST")
		if answer.StatusCode != 200 || answer.body != "{}" ||
			answer.Header.Get("Content-Length") != "2" ||
			!strings.EqualFold(answer.Header.Get("Connection"), "keep-alive") {
			t.Fatalf("got %d %q %q", answer.StatusCode, answer.Header, answer.body)
		}
		if got := u.next(t); got.body != object {
			t.Errorf("v2 saw %q", got.body)
		}
	}
}

// TestManyStreams sends thousands of records over few HTTP/2 connections, each
// with many streams at once.
func TestManyStreams(t *testing.T) {
	t.Parallel()
	h2load := tool(t, "nghttp2-client", "h2load")
	const total = 5000
	u := startRecorder(t, nil)
	pair := newCertificate(t, "localhost")
	plain, secure := freeAddr(t), freeAddr(t)
	serveCaddyfile(t, plain, protocolsCaddyfile(plain, secure, pair, u.url()))
	p := protocol{version: "2.0", proto: "https", host: "localhost:" + secure[strings.LastIndexByte(secure, ':')+1:]}
	output, err := exec.Command(h2load,
		"-n", strconv.Itoa(total), "-c", "4", "-m", "100",
		"-d", write(t, "body", object), "-H", "Content-Type: application/json",
		"--connect-to", secure, "https://"+p.host+target+"&n=1").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, output)
	}
	for _, want := range []string{
		fmt.Sprintf("requests: %d total, %d started, %d done, %d succeeded, 0 failed, 0 errored, 0 timeout", total, total, total, total),
		fmt.Sprintf("status codes: %d 2xx, 0 3xx, 0 4xx, 0 5xx", total),
		"Application protocol: h2",
	} {
		if !strings.Contains(string(output), want) {
			t.Errorf("no %q in\n%s", want, output)
		}
	}
	for range total {
		checkRecord(t, u, u.next(t), p, "POST "+event+"?n=1 HTTP/1.1", object, nil)
	}
	u.none(t)
}
