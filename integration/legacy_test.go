package integration

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/http/httputil"
	"net/textproto"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// passed is a request as the legacy host reads it.
type passed struct {
	line    string
	fields  []string // sorted; the pseudonym in Via is PSEUDONYM
	body    string
	trailer []string
	nth     int   // of its connection, counted from 1
	err     error // why the request is not whole
}

// legacyHost is an imitation of the legacy host that keeps what comes, byte for byte.
type legacyHost struct {
	net.Listener
	requests chan passed

	// early is called when the head of a request is there, begun, if it is not nil, behind
	// it, and answer when all is there. They return false to close the connection.
	early  func(conn net.Conn, br *bufio.Reader) (keep bool)
	begun  func(conn net.Conn, p *passed) (keep bool)
	answer func(conn net.Conn, p *passed) (keep bool)
}

func legacyOK(conn net.Conn, _ *passed) bool { return send(conn, true, answerOK) }

// startLegacy starts a legacy host that gives this answer; nil for {}.
func startLegacy(t testing.TB, answer func(conn net.Conn, p *passed) bool) *legacyHost {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return startLegacyOn(t, l, answer)
}

func startLegacyOn(t testing.TB, l net.Listener, answer func(conn net.Conn, p *passed) bool) *legacyHost {
	if answer == nil {
		answer = legacyOK
	}
	u := &legacyHost{
		Listener: l, answer: answer, requests: make(chan passed, 1000),
		early: func(net.Conn, *bufio.Reader) bool { return true },
	}
	acceptAll(t, l, u.handle)
	return u
}

var pseudonym = regexp.MustCompile(`td-postback-[0-9a-f]{12}`)

func (u *legacyHost) handle(conn net.Conn, _ int) {
	br := bufio.NewReader(conn)
	for nth := 1; ; nth++ {
		p := passed{nth: nth}
		lines, err := readLines(br)
		if err != nil {
			return
		}
		p.line, p.fields = lines[0], lines[1:]
		for i := range p.fields {
			p.fields[i] = pseudonym.ReplaceAllString(p.fields[i], "PSEUDONYM")
		}
		slices.Sort(p.fields)
		keep := u.early(conn, br) && (u.begun == nil || u.begun(conn, &p))
		if keep {
			p.readBody(br)
			keep = p.err == nil && u.answer(conn, &p)
		}
		u.requests <- p
		if !keep {
			return
		}
	}
}

// readLines reads lines up to an empty one.
func readLines(br *bufio.Reader) (lines []string, err error) {
	for {
		line, err := br.ReadString('\n')
		if err != nil {
			return lines, err
		}
		line, ok := strings.CutSuffix(line, "\r\n")
		if !ok {
			return lines, fmt.Errorf("bare LF in %q", line)
		}
		if line == "" {
			return lines, nil
		}
		lines = append(lines, line)
	}
}

func (p *passed) readBody(br *bufio.Reader) {
	var body []byte
	switch length := p.field("Content-Length"); {
	case slices.Contains(p.fields, "Transfer-Encoding: chunked"):
		body, p.err = io.ReadAll(httputil.NewChunkedReader(br))
		if p.err == nil {
			p.trailer, p.err = readLines(br)
		}
	case length != "":
		n, _ := strconv.Atoi(length)
		body = make([]byte, n)
		n, p.err = io.ReadFull(br, body)
		body = body[:n]
	}
	p.body = string(body)
}

func (p *passed) field(name string) string {
	for _, field := range p.fields {
		if value, ok := strings.CutPrefix(field, name+": "); ok {
			return value
		}
	}
	return ""
}

func (u *legacyHost) url() string  { return "http://" + u.Addr().String() }
func (u *legacyHost) host() string { return u.Addr().String() }

func (u *legacyHost) next(t testing.TB) passed {
	t.Helper()
	select {
	case p := <-u.requests:
		return p
	case <-time.After(patience):
		t.Fatal("the legacy host saw no request")
		return passed{}
	}
}

func (u *legacyHost) none(t testing.TB) {
	t.Helper()
	select {
	case p := <-u.requests:
		t.Errorf("the legacy host saw %q %q with %d bytes", p.line, p.fields, len(p.body))
	default:
	}
}

// migrateBlock is a block that sends all to this legacy host.
func migrateBlock(u *legacyHost, options, migrate string) string {
	return fmt.Sprintf("td_postback {\n upstream http://127.0.0.1:9\n %s\n migrate {\n  legacy %s\n  %s\n }\n}", options, u.url(), migrate)
}

// serveLegacyTLS runs such a gateway for HTTPS. It returns a client of HTTP/2 and where
// the gateway is.
func serveLegacyTLS(t testing.TB, u *legacyHost) (client *http.Client, authority string) {
	t.Helper()
	cert := newCertificate(t, "localhost")
	addr := freeAddr(t)
	_, port, _ := net.SplitHostPort(addr)
	serveCaddyfile(t, addr, fmt.Sprintf("{\n%s\n}\nhttps://localhost:%s {\n tls %s %s\n%s\n}\n", globals, port, cert.cert, cert.key, migrateBlock(u, "max_body 1000", "")))
	return cert.http2Client(), "localhost:" + port
}

// serveLegacy runs a gateway that sends all to this legacy host.
func serveLegacy(t testing.TB, u *legacyHost, options, migrate string) *gateway {
	t.Helper()
	return serve(t, "servers {\n max_header_size 1MiB\n}\n", migrateBlock(u, options, migrate))
}

// viaFields are those that the gateway adds to a request over plain HTTP/1.1.
var viaFields = []string{"X-Forwarded-For: 127.0.0.1", "X-Forwarded-Host: in.treasuredata.com", "X-Forwarded-Proto: http", "Via: 1.1 PSEUDONYM"}

// check compares a request with what it must be. The gateway's own fields are added to
// fields, less those of the same name.
func (p *passed) check(t testing.TB, u *legacyHost, line string, fields []string, body string) {
	t.Helper()
	want := append([]string{"Host: " + u.host()}, fields...)
	for _, field := range viaFields {
		name, _, _ := strings.Cut(field, ":")
		if !slices.ContainsFunc(fields, func(f string) bool { return strings.HasPrefix(f, name+":") }) {
			want = append(want, field)
		}
	}
	slices.Sort(want)
	if p.line != line {
		t.Errorf("the request line is\n%q, want\n%q", p.line, line)
	}
	if !slices.Equal(p.fields, want) {
		t.Errorf("the fields are\n%q, want\n%q", p.fields, want)
	}
	if p.body != body {
		t.Errorf("the body has %d bytes, %.40q, want %d", len(p.body), p.body, len(body))
	}
}

func chunksOf(body string, size int) string {
	var b strings.Builder
	for part := range slices.Chunk([]byte(body), size) {
		fmt.Fprintf(&b, "%x\r\n%s\r\n", len(part), part)
	}
	return b.String()
}

// legacyCase is a request and what comes of it at the legacy host.
type legacyCase struct {
	name, request string
	line          string // as it came, if empty
	fields        []string
	body          string
	trailer       []string
}

// legacyLines are requests with all kinds of methods and targets.
func legacyLines() []legacyCase {
	methods := []string{"GET", "HEAD", "PUT", "DELETE", "PATCH", "TRACE", "PROPFIND", "BREW", "post"}
	targets := []string{
		"/", "//", "/favicon.ico", "/js/v3/global_id", "/js/v3/enable_global_id?callback=x", "/js/v3/event/a/b", "/android/v3/event/",
		"/postback/v3/event/d.b/t%20l", "/postback//v3/./event/../x", "/%2e%2E/%41%2fb;c=d", event + "/?", event + "?td_write_key=%zz&=&&a=%&b=%F", "/a?b?c#d", "/\xc3\xa9\xff?\xe9",
		event + "?td_write_key=1234/abcd&td_write_key=5/b&a+b=%20", "/a?\"<>\\^`{|}", "/:80/x",
	}
	cases := make([]legacyCase, 0, len(methods)+len(targets))
	for _, method := range methods {
		cases = append(cases, legacyCase{name: "the method " + method, request: method + " " + target + " HTTP/1.1\r\nHost: in.treasuredata.com\r\n\r\n"})
	}
	for _, of := range targets {
		cases = append(cases, legacyCase{name: "the target " + of, request: get(of, "")})
	}
	return cases
}

// TestLegacyRequest sends all kinds of requests, and compares what comes at the legacy
// host, byte for byte.
func TestLegacyRequest(t *testing.T) {
	u := startLegacy(t, nil)
	// Nothing of these holds in the legacy lane.
	g := serveLegacy(t, u, "max_body 1000\n surfaces postback\n pass_thru\n keys {\n  accounts 77\n }", "")
	const host = "Host: in.treasuredata.com\r\n"
	large := strings.Repeat("0123456789abcdef", 8<<20/16)
	line := func(method, target string) string { return method + " " + target + " HTTP/1.1\r\n" + host }
	for _, tc := range append([]legacyCase{
		{name: "a record", request: post(target, asJSON, object), fields: []string{"Content-Type: application/json", "Content-Length: 7"}, body: object},
		{name: "no key", request: post(event, "", object), fields: []string{"Content-Length: 7"}, body: object},
		{name: "no JSON", request: post(target, "Content-Type: text/plain\r\n", "no {"), fields: []string{"Content-Type: text/plain", "Content-Length: 4"}, body: "no {"},
		{
			name: "keys, cookies and others stay", body: "{}",
			request: post(target, "Authorization: TD1 77/a\r\nAuthorization: Basic x\r\nX-TD-Write-Key: a, \"b\"\r\nCookie: a=b; c=d\r\nX-A: 1\r\nX-A:  2 \r\nContent-MD5: x\r\nOrigin: https://x.example\r\nX-Empty:\r\n", "{}"),
			fields:  []string{"Authorization: TD1 77/a", "Authorization: Basic x", "X-Td-Write-Key: a, \"b\"", "Cookie: a=b; c=d", "X-A: 1", "X-A: 2", "Content-Md5: x", "Origin: https://x.example", "X-Empty: ", "Content-Length: 2"},
		},
		{
			name: "what is for one hop goes", body: "{}",
			request: post(target, "Connection: X-Hop, keep-alive\r\nX-Hop: 1\r\nKeep-Alive: 5\r\nTE: trailers\r\nProxy-Authorization: x\r\nUpgrade: h2c\r\n", "{}"),
			fields:  []string{"Content-Length: 2"},
		},
		{
			name: "a proxy before", body: "{}",
			request: post(target, "Via: 1.0 other\r\nX-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Host: forged\r\nX-Forwarded-Proto: https\r\nForwarded: for=6.6.6.6\r\n", "{}"),
			fields:  []string{"Via: 1.0 other, 1.1 PSEUDONYM", "Forwarded: for=6.6.6.6", "Content-Length: 2"},
		},
		{name: "Content-Length: 0", request: post(target, "", ""), fields: []string{"Content-Length: 0"}},
		{name: "POST without a length", request: line("POST", target) + "\r\n"},
		{name: "a body of a byte-order mark", request: post(target, "", "\ufeff{}"), fields: []string{"Content-Length: 5"}, body: "\ufeff{}"},
		{name: "compressed", request: post("/js/v3/event", "Content-Encoding: gzip\r\nX-TD-Data-Type: k\r\n", "\x1f\x8b\x00\xff"), fields: []string{"Content-Encoding: gzip", "X-Td-Data-Type: k", "Content-Length: 4"}, body: "\x1f\x8b\x00\xff"},
		{name: "a preflight", request: line("OPTIONS", target) + "Origin: https://x.example\r\nAccess-Control-Request-Method: POST\r\n\r\n", fields: []string{"Origin: https://x.example", "Access-Control-Request-Method: POST"}},
		{name: "a pixel", request: get(target+"&td_format=pixel&a=b&td_redirect=http://x.example/", "If-None-Match: \"x\"\r\n"), fields: []string{"If-None-Match: \"x\""}},
		{name: "GET with a body", request: line("GET", target) + "Content-Length: 2\r\n\r\n{}", fields: []string{"Content-Length: 2"}, body: "{}"},
		{name: "HTTP/1.0", request: "POST " + target + " HTTP/1.0\r\nHost: in.treasuredata.com\r\nContent-Length: 2\r\n\r\n{}", line: "POST " + target + " HTTP/1.1", fields: []string{"Content-Length: 2", "Via: 1.0 PSEUDONYM"}, body: "{}"},
		{name: "max_body", request: post(target, "", large[:1000]), fields: []string{"Content-Length: 1000"}, body: large[:1000]},
		{name: "one more", request: post(target, "", large[:1001]), fields: []string{"Content-Length: 1001"}, body: large[:1001]},
		{name: "8 MiB", request: post(target, "", large), fields: []string{fmt.Sprint("Content-Length: ", len(large))}, body: large},
		{name: "8 MiB to a path of nobody's", request: strings.Replace(post("/x", "", large), "POST", "PUT", 1), fields: []string{fmt.Sprint("Content-Length: ", len(large))}, body: large},
		{name: "8 MiB of a batch", request: post("/ios/v3/event", "", large), fields: []string{fmt.Sprint("Content-Length: ", len(large))}, body: large},
		{name: "chunked", request: line("POST", target) + "Transfer-Encoding: chunked\r\n\r\n" + chunksOf(object, 3) + "0\r\n\r\n", fields: []string{"Transfer-Encoding: chunked"}, body: object},
		{name: "chunked, empty", request: line("POST", target) + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", fields: []string{"Transfer-Encoding: chunked"}},
		{name: "chunked, max_body", request: line("POST", target) + "Transfer-Encoding: chunked\r\n\r\n" + chunksOf(large[:1000], 300) + "0\r\n\r\n", fields: []string{"Transfer-Encoding: chunked"}, body: large[:1000]},
		{name: "chunked, one more", request: line("POST", target) + "Transfer-Encoding: chunked\r\n\r\n" + chunksOf(large[:1001], 1000) + "0\r\n\r\n", fields: []string{"Transfer-Encoding: chunked"}, body: large[:1001]},
		{name: "chunked, 8 MiB", request: line("POST", target) + "Transfer-Encoding: chunked\r\n\r\n" + chunksOf(large, 50_000) + "0\r\n\r\n", fields: []string{"Transfer-Encoding: chunked"}, body: large},
		{
			name: "a trailer", body: object, trailer: []string{"X-Sum: 7"},
			request: line("POST", target) + "Trailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n" + chunksOf(object, 3) + "0\r\nX-Sum: 7\r\n\r\n",
			fields:  []string{"Transfer-Encoding: chunked", "Trailer: X-Sum"},
		},
		{ // Go's server shows it to nobody
			name: "a trailer that nobody has announced", body: object,
			request: line("POST", target) + "Transfer-Encoding: chunked\r\n\r\n" + chunksOf(object, 3) + "0\r\nX-Sum: 7\r\n\r\n",
			fields:  []string{"Transfer-Encoding: chunked"},
		},
		{
			name: "a trailer behind 8 MiB", body: large, trailer: []string{"X-Sum: 7"},
			request: line("POST", target) + "Trailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n" + chunksOf(large, 50_000) + "0\r\nX-Sum: 7\r\n\r\n",
			fields:  []string{"Transfer-Encoding: chunked", "Trailer: X-Sum"},
		},
		{name: "Expect", request: post(target, "Expect: 100-continue\r\n", "{}"), fields: []string{"Expect: 100-continue", "Content-Length: 2"}, body: "{}"},
		{name: "Expect before 8 MiB", request: post(target, "Expect: 100-continue\r\n", large), fields: []string{"Expect: 100-continue", fmt.Sprint("Content-Length: ", len(large))}, body: large},
		{name: "60 KB of headers", request: get(target, "X-Long: "+strings.Repeat("x", 60_000)+"\r\n"), fields: []string{"X-Long: " + strings.Repeat("x", 60_000)}},
		{name: "a target of 100 KB", request: get(target+"&a="+strings.Repeat("x", 100_000), "")},
		{name: "an absolute target", request: get("http://other.example:81/a//b/?c=http://x/", ""), line: "GET /a//b/?c=http://x/ HTTP/1.1", fields: []string{"X-Forwarded-Host: other.example:81"}},
		{name: "an absolute target without a path", request: get("http://other.example", ""), line: "GET / HTTP/1.1", fields: []string{"X-Forwarded-Host: other.example"}},
		{name: "the same with a query", request: get("http://other.example?a=/b", ""), line: "GET /?a=/b HTTP/1.1", fields: []string{"X-Forwarded-Host: other.example"}},
		{name: "a target of another kind", request: get("urn:x:y?z=http://other.example/secret", ""), line: "GET urn:x:y?z=http://other.example/secret HTTP/1.1"},
		{name: "OPTIONS of an absolute target", request: "OPTIONS http://in.treasuredata.com HTTP/1.1\r\n" + host + "\r\n", line: "OPTIONS * HTTP/1.1"},
	}, legacyLines()...) {
		t.Run(tc.name, func(t *testing.T) {
			answer := raw(t, g.addr, tc.request)
			if answer.StatusCode != 200 {
				t.Errorf("got %d %q", answer.StatusCode, answer.body)
			}
			if tc.line == "" {
				tc.line, _, _ = strings.Cut(tc.request, "\r\n")
			}
			p := u.next(t)
			p.check(t, u, tc.line, tc.fields, tc.body)
			if !slices.Equal(p.trailer, tc.trailer) {
				t.Errorf("the trailer is %q", p.trailer)
			}
			u.none(t)
		})
	}
}

// TestLegacyKeepsCallers: a caller's connection goes on behind all kinds of bodies.
func TestLegacyKeepsCallers(t *testing.T) {
	t.Parallel()
	u := startLegacy(t, nil)
	g := serveLegacy(t, u, "max_body 1000", "")
	conn := dial(t, g.addr)
	br := bufio.NewReader(conn)
	large := strings.Repeat("x", 3<<20)
	for n, request := range []string{
		post(target, asJSON, object),
		post(target, "", large),
		get("/x", ""),
		"PUT /y HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + chunksOf(large, 70_000) + "0\r\n\r\n",
		"HEAD /z HTTP/1.1\r\nHost: x\r\n\r\n",
		post(target, asJSON, object),
	} {
		if _, err := io.WriteString(conn, request); err != nil {
			t.Fatal(n, err)
		}
		method, _, _ := strings.Cut(request, " ")
		if answer := readReply(t, br, method); answer.StatusCode != 200 || answer.Close {
			t.Errorf("%d: got %d %q", n, answer.StatusCode, answer.Header)
		}
		u.next(t)
	}
}

// TestLegacyHTTP10: a caller of HTTP/1.0 gets what it can read.
func TestLegacyHTTP10(t *testing.T) {
	t.Parallel()
	u := startLegacy(t, func(conn net.Conn, _ *passed) bool {
		return send(conn, true, "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n")
	})
	g := serveLegacy(t, u, "", "")
	text := exchangeRaw(t, g.addr, "POST "+target+" HTTP/1.0\r\nContent-Length: 2\r\n\r\n{}")
	if !strings.HasPrefix(text, "HTTP/1.0 200 OK\r\n") || !strings.HasSuffix(text, "\r\n\r\n{}") || strings.Contains(text, "Transfer-Encoding") {
		t.Errorf("got %q", text)
	}
}

// exchangeRaw sends a request and returns all that comes until the connection ends.
func exchangeRaw(t *testing.T, addr, request string) string {
	t.Helper()
	conn := dial(t, addr)
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(conn)
	if err != nil {
		t.Error(err)
	}
	return string(text)
}

// headLines are the lines of a head, the fields sorted.
func headLines(head string) []string {
	lines := strings.Split(head, "\r\n")
	slices.Sort(lines[1:])
	return lines
}

// TestLegacyAnswer passes the legacy host's answers on as they came, and compares the
// bytes that the caller reads.
func TestLegacyAnswer(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("0123456789abcdef", 1<<16) // 1 MiB
	const date = "Date: Mon, 01 Jan 2024 00:00:00 GMT\r\n"
	for _, tc := range []struct {
		name, method string // POST, if it is empty
		answer       string
		head, body   string // as they came, if empty; heads end before the empty line
		interim      string
	}{
		{name: "usual", answer: "HTTP/1.1 200 OK\r\n" + date + "Server: nginx/1.1\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"},
		{name: "no Server", answer: "HTTP/1.1 200 OK\r\n" + date + "Content-Length: 2\r\n\r\n{}"},
		{
			name:   "cookies and CORS",
			answer: "HTTP/1.1 200 OK\r\n" + date + "Set-Cookie: a=b; Path=/\r\nSet-Cookie: c=d; Secure\r\nAccess-Control-Allow-Origin: *\r\nAccess-Control-Max-Age: 5\r\nVary: X\r\nETag: \"x\"\r\nx-lower: 1\r\nContent-Length: 2\r\n\r\n{}",
		},
		{
			name:   "what is for one hop or speaks for the host",
			answer: "HTTP/1.1 200 OK\r\n" + date + "strict-transport-security: max-age=1\r\nAlt-Svc: h3=\":443\"\r\nConnection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\n{}",
			head:   "HTTP/1.1 200 OK\r\n" + date + "Content-Length: 2",
		},
		{name: "403", answer: "HTTP/1.1 403 Forbidden\r\n" + date + "Content-Length: 5\r\n\r\nwhy\r\n"},
		{name: "a redirect", answer: "HTTP/1.1 302 Found\r\n" + date + "Location: https://x.example/?a=b\r\nContent-Length: 0\r\n\r\n"},
		{name: "503", answer: "HTTP/1.1 503 Service Unavailable\r\n" + date + "Retry-After: 7\r\nContent-Length: 0\r\n\r\n"},
		{name: "204", answer: "HTTP/1.1 204 No Content\r\n" + date + "X-A: 1\r\n\r\n"},
		{name: "304", method: "GET", answer: "HTTP/1.1 304 Not Modified\r\n" + date + "ETag: \"x\"\r\n\r\n"},
		{name: "HEAD", method: "HEAD", answer: "HTTP/1.1 200 OK\r\n" + date + "Content-Length: 12345\r\nContent-Type: text/x\r\n\r\n"},
		{name: "OPTIONS", method: "OPTIONS", answer: "HTTP/1.1 200 OK\r\n" + date + "Allow: GET\r\nAccess-Control-Allow-Methods: PUT\r\nContent-Length: 0\r\n\r\n"},
		{name: "long", answer: fmt.Sprintf("HTTP/1.1 200 OK\r\n%sContent-Length: %d\r\n\r\n%s", date, len(long), long)},
		{
			name:   "chunked",
			answer: "HTTP/1.1 200 OK\r\n" + date + "Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n1;x=y\r\n}\r\n0\r\n\r\n",
			body:   "2\r\n{}\r\n0\r\n\r\n",
		},
		{name: "chunked, empty", answer: "HTTP/1.1 200 OK\r\n" + date + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"},
		{
			name:   "a trailer",
			answer: "HTTP/1.1 200 OK\r\n" + date + "Trailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nX-Sum: 1\r\n\r\n",
		},
		{
			name:   "a trailer that nobody has announced",
			answer: "HTTP/1.1 200 OK\r\n" + date + "Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nX-Sum: 1\r\n\r\n",
		},
		{
			name: "a trailer that is for one hop or speaks for the host",
			answer: "HTTP/1.1 200 OK\r\n" + date + "Connection: X-Hop\r\nTrailer: X-Hop, X-Sum, Alt-Svc\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n" +
				"X-Hop: 1\r\nx-hop: 2\r\nX-Sum: 1\r\nStrict-Transport-Security: x\r\nAlt-Svc: x\r\nUpgrade: h2c\r\nProxy-Connection: x\r\nno colon\r\n\r\n",
			head: "HTTP/1.1 200 OK\r\n" + date + "Trailer: X-Sum\r\nTransfer-Encoding: chunked", body: "2\r\n{}\r\n0\r\nX-Sum: 1\r\n\r\n",
		},
		{
			name:   "a field of the head and of the trailer",
			answer: "HTTP/1.1 200 OK\r\n" + date + "Server: x\r\nTrailer: x-sum, Server, X-B\r\nX-Sum: 1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nX-Sum: 2\r\nX-B: 3\r\n\r\n",
			head:   "HTTP/1.1 200 OK\r\n" + date + "Server: x\r\nTrailer: X-B\r\nX-Sum: 1\r\nTransfer-Encoding: chunked", body: "2\r\n{}\r\n0\r\nX-B: 3\r\nX-Sum: 2\r\n\r\n",
		},
		{
			name:   "until it closes",
			answer: "HTTP/1.1 200 OK\r\n" + date + "Connection: close\r\n\r\n{}",
			head:   "HTTP/1.1 200 OK\r\n" + date + "Transfer-Encoding: chunked", body: "2\r\n{}\r\n0\r\n\r\n",
		},
		{
			name:    "1xx before it",
			answer:  "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nLink: </b>\r\nx-b: 1\r\n\r\nHTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\n" + date + "Content-Length: 2\r\n\r\n{}",
			interim: "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nLink: </b>\r\nx-b: 1\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n",
		},
		{
			name: "100 that nobody has asked for", answer: "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n" + date + "Content-Length: 2\r\n\r\n{}",
			interim: "HTTP/1.1 100 Continue\r\n\r\n",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			u := startLegacy(t, func(conn net.Conn, _ *passed) bool {
				return send(conn, !strings.Contains(tc.answer, "Connection: close"), tc.answer)
			})
			g := serveLegacy(t, u, "", "")
			method := tc.method
			if method == "" {
				method = "POST"
			}
			text := exchangeRaw(t, g.addr, method+" "+target+" HTTP/1.1\r\nHost: x\r\nOrigin: https://x.example\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
			rest, ok := strings.CutPrefix(text, tc.interim)
			if !ok {
				t.Errorf("got %.500q before the answer", text)
			}
			head, body, _ := strings.Cut(rest, "\r\n\r\n")
			wantHead, wantBody, _ := strings.Cut(strings.TrimPrefix(tc.answer, tc.interim), "\r\n\r\n")
			if tc.head != "" {
				wantHead = tc.head
			}
			if tc.body != "" {
				wantBody = tc.body
			}
			want := headLines(wantHead + "\r\nConnection: close") // the caller has asked for it
			if got := headLines(head); !slices.Equal(got, want) {
				t.Errorf("got the head\n%q, want\n%q", got, want)
			}
			if body != wantBody {
				t.Errorf("got the body %.200q, want %.200q", body, wantBody)
			}
		})
	}
}

// TestLegacyExpect: a caller that has asked for 100 Continue gets it once, whoever says
// it.
func TestLegacyExpect(t *testing.T) {
	t.Parallel()
	u := startLegacy(t, func(conn net.Conn, _ *passed) bool {
		return send(conn, true, "HTTP/1.1 100 Continue\r\n\r\n"+answerOK)
	})
	g := serveLegacy(t, u, "max_body 10", "")
	for _, body := range []string{"{}", strings.Repeat("x", 1000)} {
		conn := dial(t, g.addr)
		fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n", target, len(body))
		br := bufio.NewReader(conn)
		if lines, err := readLines(br); err != nil || !slices.Equal(lines, []string{"HTTP/1.1 100 Continue"}) {
			t.Fatal(lines, err)
		}
		if _, err := io.WriteString(conn, body); err != nil {
			t.Fatal(err)
		}
		rest, err := io.ReadAll(br)
		if err != nil || !strings.HasPrefix(string(rest), "HTTP/1.1 200 OK\r\n") {
			t.Errorf("got %q, %v", rest, err)
		}
		if p := u.next(t); p.body != body || p.field("Expect") != "100-continue" {
			t.Errorf("the legacy host saw %q and %q", p.fields, p.body)
		}
	}
}

// TestLegacyStreams: what the caller sends above the cap is at the legacy host before
// the caller has sent all, and an answer in chunks at the caller before it ends.
func TestLegacyStreams(t *testing.T) {
	t.Parallel()
	got := make(chan int, 100)
	more := make(chan bool)
	u := startLegacy(t, func(conn net.Conn, _ *passed) bool {
		ok := send(conn, true, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
		for range more {
			ok = ok && send(conn, true, "3\r\nabc\r\n")
		}
		return ok && send(conn, true, "0\r\n\r\n")
	})
	const length = 20_000
	u.early = func(conn net.Conn, br *bufio.Reader) bool {
		part := make([]byte, length)
		for total := 0; total < length; {
			n, err := br.Read(part)
			if err != nil {
				return false
			}
			total += n
			got <- n
		}
		return u.answer(conn, nil)
	}
	g := serveLegacy(t, u, "max_body 100", "")
	conn := dial(t, g.addr)
	fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n", target, length)
	for range 5 {
		if _, err := io.WriteString(conn, strings.Repeat("x", length/5)); err != nil {
			t.Fatal(err)
		}
		for n := 0; n < length/5; {
			select {
			case part := <-got:
				n += part
			case <-time.After(patience):
				t.Fatal("the legacy host does not get what was sent")
			}
		}
	}
	br := bufio.NewReader(conn)
	if lines, err := readLines(br); err != nil || lines[0] != "HTTP/1.1 200 OK" {
		t.Fatal(lines, err)
	}
	for range 3 {
		more <- true
		if line, err := br.ReadString('c'); err != nil || !strings.HasSuffix(line, "3\r\nabc") {
			t.Fatalf("got %q, %v", line, err)
		}
	}
	close(more)
	if lines, err := readLines(br); err != nil || len(lines) > 0 { // the end of the last piece
		t.Error(lines, err)
	}
	if lines, err := readLines(br); err != nil || !slices.Equal(lines, []string{"0"}) {
		t.Error(lines, err)
	}
}

// TestLegacyBackpressure: a body goes on no faster than the legacy host reads it, and
// little of it is held meanwhile.
func TestLegacyBackpressure(t *testing.T) {
	t.Parallel()
	read := make(chan bool)
	u := startLegacy(t, nil)
	u.early = func(net.Conn, *bufio.Reader) bool { <-read; return true }
	g := serveLegacy(t, u, "", "")
	conn := dial(t, g.addr)
	const size = 64 << 20
	fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n", target, size)
	_ = conn.SetWriteDeadline(time.Now().Add(2 * time.Second))
	block := bytes.Repeat([]byte("x"), 64<<10)
	sent := 0
	for sent < size {
		n, err := conn.Write(block)
		sent += n
		if err != nil {
			break
		}
	}
	if sent > size/2 {
		t.Errorf("%d bytes were taken before the legacy host has read one", sent)
	}
	close(read)
	_ = conn.SetWriteDeadline(time.Now().Add(patience))
	for sent < size {
		n, err := conn.Write(block[:min(len(block), size-sent)])
		sent += n
		if err != nil {
			t.Fatal(err)
		}
	}
	if answer := readReply(t, bufio.NewReader(conn), "POST"); answer.StatusCode != 200 {
		t.Errorf("got %d %q", answer.StatusCode, answer.body)
	}
	if p := u.next(t); len(p.body) != size {
		t.Errorf("the legacy host saw %d bytes", len(p.body))
	}
}

// TestLegacyOverHTTP2 has a caller that speaks HTTP/2, with what only it can send.
func TestLegacyOverHTTP2(t *testing.T) {
	u := startLegacy(t, func(conn net.Conn, p *passed) bool {
		answer := answerOK
		if strings.HasPrefix(p.line, "POST /hints") {
			answer = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nX-Sum: 1\r\n\r\n"
		}
		return send(conn, true, answer)
	})
	client, authority := serveLegacyTLS(t, u)
	large := strings.Repeat("x", 3<<20)
	ours := []string{"Via: 2.0 PSEUDONYM", "X-Forwarded-Proto: https", "X-Forwarded-Host: " + authority, "Accept-Encoding: gzip", "User-Agent: Go-http-client/2.0"}
	for _, tc := range []struct {
		name, method, target string
		body                 io.Reader
		fields               []string
		trailer              bool
		want                 string
	}{
		{name: "GET", method: "GET", target: "/x?a=%zz"},
		{name: "POST without a body", method: "POST", target: target, fields: []string{"Content-Length: 0"}},
		{name: "a record", method: "POST", target: target, body: strings.NewReader(object), fields: []string{"Content-Length: 7"}, want: object},
		{name: "no length", method: "POST", target: target, body: io.MultiReader(strings.NewReader(object)), fields: []string{"Transfer-Encoding: chunked"}, want: object},
		{name: "3 MiB", method: "PUT", target: "/y", body: strings.NewReader(large), fields: []string{fmt.Sprint("Content-Length: ", len(large))}, want: large},
		{name: "3 MiB, no length", method: "POST", target: target, body: io.MultiReader(strings.NewReader(large)), fields: []string{"Transfer-Encoding: chunked"}, want: large},
		{name: "a trailer", method: "POST", target: target, body: io.MultiReader(strings.NewReader(object)), trailer: true, fields: []string{"Transfer-Encoding: chunked", "Trailer: X-Sum"}, want: object},
		{name: "hints", method: "POST", target: "/hints", body: strings.NewReader(object), fields: []string{"Content-Length: 7"}, want: object},
	} {
		t.Run(tc.name, func(t *testing.T) {
			req, err := http.NewRequest(tc.method, "https://"+authority+tc.target, tc.body)
			if err != nil {
				t.Fatal(err)
			}
			if tc.trailer {
				req.Trailer = http.Header{"X-Sum": {"7"}}
			}
			hints := 0
			req = req.WithContext(httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{Got1xxResponse: func(code int, header textproto.MIMEHeader) error {
				if code == 103 && header.Get("Link") == "</a>" {
					hints++
				}
				return nil
			}}))
			resp, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if err != nil || resp.ProtoMajor != 2 || resp.StatusCode != 200 || string(body) != "{}" {
				t.Errorf("got %s %s %q, %v", resp.Proto, resp.Status, body, err)
			}
			if tc.name == "hints" && (hints != 1 || resp.Trailer.Get("X-Sum") != "1") {
				t.Errorf("%d hints, and the trailer %q", hints, resp.Trailer)
			}
			p := u.next(t)
			p.check(t, u, tc.method+" "+tc.target+" HTTP/1.1", append(ours, tc.fields...), tc.want)
			if tc.trailer && !slices.Equal(p.trailer, []string{"X-Sum: 7"}) {
				t.Errorf("the trailer is %q", p.trailer)
			}
		})
	}
}

// TestLegacyEarlyOverHTTP2: a refusal that comes while a caller sends, and goes on
// sending or stalls, is the caller's at once, and its connection goes on.
func TestLegacyEarlyOverHTTP2(t *testing.T) {
	u := startLegacy(t, nil)
	u.early = func(conn net.Conn, _ *bufio.Reader) bool {
		return send(conn, true, "HTTP/1.1 413 Too Large\r\nContent-Length: 5\r\n\r\nearly") && hangs(conn)
	}
	client, authority := serveLegacyTLS(t, u)
	for name, body := range map[string]func(w io.Writer){
		"it goes on": func(w io.Writer) {
			for range 64 {
				if _, err := w.Write(make([]byte, 64<<10)); err != nil {
					return
				}
			}
		},
		"it stalls": func(w io.Writer) { _, _ = w.Write(make([]byte, 2000)) },
	} {
		t.Run(name, func(t *testing.T) {
			r, w := io.Pipe()
			defer r.Close()
			go body(w)
			began := time.Now()
			resp, err := client.Post("https://"+authority+target, "", r)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			if text, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != 413 || string(text) != "early" || time.Since(began) > 10*time.Second {
				t.Errorf("got %s %q, %v after %v", resp.Status, text, err, time.Since(began))
			}
			u.next(t)
		})
	}
}

// TestLegacyFaults has the legacy host, the way to it or a caller fail. Nothing is sent
// twice that the legacy host may have.
func TestLegacyFaults(t *testing.T) {
	t.Parallel()
	large := strings.Repeat("x", 3<<20)
	for _, tc := range []struct {
		name       string
		request    string
		early      func(conn net.Conn, br *bufio.Reader) bool
		answer     func(conn net.Conn, p *passed) bool
		status     int
		code, body string
		seen       int // requests, whole or not
	}{
		{name: "silence", answer: func(conn net.Conn, _ *passed) bool { return hangs(conn) }, status: 504, code: "upstream_timeout", seen: 1},
		{name: "closes without a word", answer: func(net.Conn, *passed) bool { return false }, status: 502, code: "upstream_unreachable", seen: 1},
		{name: "no HTTP", answer: func(conn net.Conn, _ *passed) bool { return send(conn, false, "SSH-2.0\r\n\r\n") }, status: 502, code: "upstream_unreachable", seen: 1},
		{name: "a short answer is cut", answer: func(conn net.Conn, _ *passed) bool {
			return send(conn, false, "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{}")
		}, status: 502, code: "upstream_unreachable", seen: 1},
		{name: "switches protocols", answer: func(conn net.Conn, _ *passed) bool {
			return send(conn, false, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n")
		}, status: 502, code: "upstream_unreachable", seen: 1},
		{
			name: "refuses a long body by its head", request: post(target, "", large), status: 413, body: "early", seen: 1,
			early: func(conn net.Conn, _ *bufio.Reader) bool {
				return send(conn, true, "HTTP/1.1 413 Too Large\r\nContent-Length: 5\r\n\r\nearly") && hangs(conn)
			},
		},
		{
			name: "refuses a long body and closes", request: post(target, "", large), status: 413, body: "early", seen: 1,
			early: func(conn net.Conn, _ *bufio.Reader) bool {
				return send(conn, false, "HTTP/1.1 413 Too Large\r\nContent-Length: 5\r\n\r\nearly")
			},
		},
		{
			name: "closes within a long body", request: post(target, "", large), status: 502, code: "upstream_unreachable", seen: 1,
			early: func(net.Conn, *bufio.Reader) bool { return false },
		},
		{
			name: "never reads a long body", request: post(target, "", strings.Repeat("x", 32<<20)), status: 504, code: "upstream_timeout", seen: 1,
			early: func(conn net.Conn, _ *bufio.Reader) bool { time.Sleep(3 * time.Second); return false },
		},
		{name: "no answer to a long body", request: post(target, "", large), answer: func(conn net.Conn, _ *passed) bool { return hangs(conn) }, status: 504, code: "upstream_timeout", seen: 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			u := startLegacy(t, tc.answer)
			if tc.early != nil {
				u.early = tc.early
			}
			g := serveLegacy(t, u, "response_timeout 1s\n retries 2", "")
			request := tc.request
			if request == "" {
				request = post(target, asJSON, object)
			}
			answer := raw(t, g.addr, request)
			if answer.StatusCode != tc.status || answer.code() != tc.code || !strings.HasPrefix(answer.body, tc.body) {
				t.Errorf("got %d %q", answer.StatusCode, answer.body)
			}
			for range tc.seen {
				u.next(t)
			}
			u.none(t)
		})
	}
}

// TestLegacyCutAnswer: an answer that breaks off when the caller has its head is none
// for the caller either.
func TestLegacyCutAnswer(t *testing.T) {
	t.Parallel()
	var answer string
	u := startLegacy(t, func(conn net.Conn, _ *passed) bool { return send(conn, false, answer) })
	g := serveLegacy(t, u, "", "")
	for name, head := range map[string]string{
		"long":      "Content-Length: 1000000\r\n\r\n" + strings.Repeat("x", 500_000),
		"in pieces": "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
		"33 KiB":    "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n" + strings.Repeat("X-A: "+strings.Repeat("x", 1017)+"\r\n", 33) + "\r\n",
		"trailer":   "Trailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-S",
	} {
		answer = "HTTP/1.1 200 OK\r\n" + head
		conn := dial(t, g.addr)
		if _, err := io.WriteString(conn, post(target, asJSON, object)); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil || resp.StatusCode != 200 {
			t.Fatal(name, err)
		}
		if body, err := io.ReadAll(resp.Body); err == nil {
			t.Errorf("%s: %d bytes are taken for the whole", name, len(body))
		}
		u.next(t)
		u.none(t)
	}
}

// TestLegacyCutBody: a caller that leaves within its body leaves no whole request
// behind, and one that stalls gets no answer of the legacy host's that says so.
func TestLegacyCutBody(t *testing.T) {
	u := startLegacy(t, nil)
	g := serveLegacy(t, u, "max_body 1000", "")
	for name, head := range map[string]string{
		"a length":  "Content-Length: 200000\r\n\r\n" + strings.Repeat("x", 100_000),
		"in chunks": "Transfer-Encoding: chunked\r\n\r\n" + chunksOf(strings.Repeat("x", 100_000), 10_000),
	} {
		t.Run(name, func(t *testing.T) {
			conn := dial(t, g.addr)
			if _, err := io.WriteString(conn, "POST "+target+" HTTP/1.1\r\nHost: x\r\n"+head); err != nil {
				t.Fatal(err)
			}
			_ = conn.(*net.TCPConn).CloseWrite()
			if answer := readReply(t, bufio.NewReader(conn), "POST"); answer.StatusCode != 400 || answer.code() != "invalid_request" {
				t.Errorf("got %d %q", answer.StatusCode, answer.body)
			}
			if p := u.next(t); p.err == nil {
				t.Errorf("the legacy host takes %d bytes for a whole request", len(p.body))
			}
		})
	}
	t.Run("within the cap", func(t *testing.T) {
		conn := dial(t, g.addr)
		fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{", target)
		_ = conn.(*net.TCPConn).CloseWrite()
		if answer := readReply(t, bufio.NewReader(conn), "POST"); answer.StatusCode != 400 {
			t.Errorf("got %d %q", answer.StatusCode, answer.body)
		}
		u.none(t)
	})
}

// TestLegacyRetry: what the legacy host cannot have, since it has given the connection
// up, is sent again on a fresh one. A long body has one of its own from the start.
func TestLegacyRetry(t *testing.T) {
	t.Parallel()
	u := startLegacy(t, func(conn net.Conn, p *passed) bool { return p.nth == 1 && send(conn, true, answerOK) })
	g := serveLegacy(t, u, "max_body 1000", "")
	large := strings.Repeat("x", 1001)
	for _, tc := range []struct {
		name, request, body string
		again               int
	}{
		{"the first", post(target, asJSON, object), object, 0},
		{"on a connection that is given up", post(target, asJSON, object), object, 1},
		{"the next, which finds none", get("/x", ""), "", 0},
	} {
		answer := raw(t, g.addr, tc.request)
		if answer.StatusCode != 200 {
			t.Errorf("%s: got %d %q", tc.name, answer.StatusCode, answer.body)
		}
		for range 1 + tc.again {
			if p := u.next(t); p.body != tc.body {
				t.Errorf("%s: the legacy host saw %q", tc.name, p.body)
			}
		}
		u.none(t)
	}
	for range 2 {
		if answer := raw(t, g.addr, post(target, "", large)); answer.StatusCode != 200 {
			t.Errorf("got %d %q", answer.StatusCode, answer.body)
		}
		if p := u.next(t); p.body != large || p.nth != 1 {
			t.Errorf("the legacy host saw %d bytes, as request %d", len(p.body), p.nth)
		}
	}
	u.none(t)
}

// TestLegacyUnreachable: there is nobody.
func TestLegacyUnreachable(t *testing.T) {
	t.Parallel()
	g := serve(t, "", "td_postback {\n upstream http://127.0.0.1:9\n migrate {\n  legacy http://"+freeAddr(t)+"\n }\n}")
	for _, request := range []string{post(target, asJSON, object), get("/x", ""), post(target, "", strings.Repeat("x", 3<<20))} {
		answer := raw(t, g.addr, request)
		if answer.StatusCode != 502 || answer.code() != "upstream_unreachable" || !strings.Contains(answer.body, "legacy host") {
			t.Errorf("got %d %q", answer.StatusCode, answer.body)
		}
	}
	g.await(t, `"record not delivered"`, 1)
}

// TestLegacyTLS: the certificate is verified against the legacy host's name, also where
// resolve says where it is.
func TestLegacyTLS(t *testing.T) {
	t.Parallel()
	cert := newCertificate(t, "legacy.example")
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert.pair}, MinVersion: tls.VersionTLS12})
	if err != nil {
		t.Fatal(err)
	}
	u := startLegacyOn(t, l, nil)
	site := "td_postback {\n upstream http://127.0.0.1:9\n tls_ca " + cert.cert + "\n retries 0\n migrate {\n  legacy %s\n  resolve " + u.host() + "\n }\n}"
	right := serve(t, "", fmt.Sprintf(site, "legacy.example"))
	if answer := raw(t, right.addr, post(target, asJSON, object)); answer.StatusCode != 200 {
		t.Errorf("got %d %q", answer.StatusCode, answer.body)
	}
	if p := u.next(t); p.field("Host") != "legacy.example" || p.body != object {
		t.Errorf("the legacy host saw %q", p.fields)
	}
	wrong := serve(t, "", fmt.Sprintf(site, "other.example"))
	if answer := raw(t, wrong.addr, post(target, asJSON, object)); answer.StatusCode != 502 {
		t.Errorf("got %d %q", answer.StatusCode, answer.body)
	}
	u.none(t)
}

// TestLegacyLoop: the legacy host's name leads back to the gateway, or to another one
// that shares its storage.
func TestLegacyLoop(t *testing.T) {
	t.Parallel()
	addr := freeAddr(t)
	_, port, _ := net.SplitHostPort(addr)
	site := "td_postback {\n upstream http://127.0.0.1:9\n migrate {\n  legacy http://" + addr + "\n }\n}"
	g := serveCaddyfile(t, addr, fmt.Sprintf("{\n%s\n}\nhttp://:%s {\n%s\n}\n", globals, port, site))
	for _, request := range []string{post(target, asJSON, object), get("/x", ""), "OPTIONS " + target + " HTTP/1.1\r\nHost: x\r\n\r\n", post(target, "", strings.Repeat("x", 2<<20))} {
		if answer := raw(t, g.addr, request); answer.StatusCode != 508 || answer.code() != "loop_detected" {
			t.Errorf("got %d %q", answer.StatusCode, answer.body)
		}
	}
	g.await(t, "set resolve", 1)
	// Another gateway's name is none of its own.
	if answer := raw(t, g.addr, post(target, "Via: 1.1 td-postback-000000000000, 1.1 Caddy\r\n", object)); answer.StatusCode != 508 {
		t.Errorf("got %d", answer.StatusCode) // after one round
	}
}

// TestLegacyBooks looks at the metrics, the access log and the report.
func TestLegacyBooks(t *testing.T) {
	t.Parallel()
	status := make(chan string, 1)
	u := startLegacy(t, func(conn net.Conn, _ *passed) bool {
		s := <-status
		return send(conn, s != "", "HTTP/1.1 "+s+" X\r\nContent-Length: 2\r\n\r\n{}")
	})
	addr, admin := freeAddr(t), freeAddr(t)
	_, port, _ := net.SplitHostPort(addr)
	g := serveCaddyfile(t, addr, fmt.Sprintf("{\n%s\n}\nhttp://:%s {\n log {\n  format filter {\n   request td_key\n  }\n }\n%s\n}\n", withAdmin(admin), port, migrateBlock(u, "report {\n dir "+t.TempDir()+"\n }", "")))
	for _, tc := range []struct{ request, status string }{
		{post(target, asJSON, object), "200"},
		{post(target, asJSON, object), "200"},
		{get(target, ""), "403"},
		{get("/x", ""), "503"},
		{post("/ios/v3/event", "", object), "302"},
		{post(event, "", object), "99"}, // no HTTP
		{"OPTIONS " + target + " HTTP/1.1\r\nHost: x\r\n\r\n", "204"},
	} {
		status <- tc.status
		raw(t, g.addr, tc.request)
	}
	got := awaitIdle(t, admin)
	checkBooks(t, got)
	for name, want := range map[string]float64{
		`requests_total{key="param",lane="legacy",result="forwarded",surface="post"}`:           2,
		`requests_total{key="param",lane="legacy",result="upstream_4xx",surface="get"}`:         1,
		`requests_total{key="none",lane="legacy",result="upstream_5xx",surface="get"}`:          1,
		`requests_total{key="none",lane="legacy",result="upstream_3xx",surface="mobile"}`:       1,
		`requests_total{key="none",lane="legacy",result="upstream_unreachable",surface="post"}`: 1,
		`results_total{lane="legacy",result="forwarded"}`:                                       3, // the preflight too
		booksTotal("post", "forwarded"):                                                         2,
		booksTotal("post", "lost"):                                                              1,
		booksTotal("get", "refused"):                                                            1,
		booksTotal("get", "lost"):                                                               1,
		booksTotal("mobile", "refused"):                                                         1,
	} {
		if got[name] != want {
			t.Errorf("%s is %v, want %v", name, got[name], want)
		}
	}
	for name := range got {
		if strings.Contains(name, `lane="v2"`) || strings.HasPrefix(name, "upstream_") || strings.HasPrefix(name, "buffered_bytes") {
			t.Errorf("%s is %v", name, got[name])
		}
	}
	g.await(t, `"lane":"legacy"`, 7)
	if strings.Contains(g.text(), "1234/abcd") {
		t.Error("the key is in the log")
	}
	var callers struct {
		Rows []struct {
			Lanes    map[string]int
			Findings []struct{ Name string }
		}
	}
	askAdmin(t, http.MethodGet, admin, "migration/callers", &callers)
	legacy, refused := 0, 0
	for _, row := range callers.Rows {
		legacy += row.Lanes["legacy"]
		if row.Lanes["v2"] != 0 {
			t.Errorf("a row has %v", row.Lanes)
		}
		for _, finding := range row.Findings {
			if finding.Name == "legacy_refused" {
				refused++
			}
		}
	}
	if legacy != 6 || refused != 1 { // a preflight is no event
		t.Errorf("the report has %d calls, and %d rows that the legacy host refuses: %+v", legacy, refused, callers)
	}
}

// TestMigrateV2 starts in the other lane: v2's rules hold, and only what is no call goes
// to the legacy host.
func TestMigrateV2(t *testing.T) {
	v2 := startRecorder(t, nil)
	u := startLegacy(t, nil)
	g := serve(t, "", "route {\ntd_postback {\n upstream "+v2.url()+"\n pass_thru\n migrate {\n  legacy "+u.url()+"\n  start v2\n }\n}\nrespond 418\n}")
	batch := `{"db.tbl":[{"#UUID":"08289530-0000-4000-8000-000000000001","a":1}]}`
	for _, tc := range []struct {
		name, request string
		status        int
		record        string // at v2
	}{
		{"a record", post(target, asJSON, object), 200, object},
		{"nearly the cap", post(target, asJSON, objectOf(v2Cap)), 200, objectOf(v2Cap)},
		{"above the cap", post(target, asJSON, objectOf(v2Cap+1)), 413, ""},
		{"above the cap in chunks", "POST " + target + " HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + chunksOf(objectOf(v2Cap+1), 100_000) + "0\r\n\r\n", 413, ""},
		{"GET", get(target+"&a=1", ""), 200, `{"a":"1"}`},
		{"a pixel by POST", post(target+"&td_format=pixel&a=1", "", ""), 200, `{"a":"1"}`},
		{"a beacon", post(target+"&a=1", "", ""), 200, `{"a":"1"}`},
		{"of a JavaScript SDK", post("/js/v3/event/db/tbl?api_key=1234/abcd", asJSON, object), 200, object},
		{"no key", post(event, asJSON, object), 403, ""},
		{"a bad name", post("/postback/v3/event/a.b/c", asJSON, object), 400, ""},
		{"PUT", strings.Replace(post(target, asJSON, object), "POST", "PUT", 1), 405, ""},
		{"a preflight", "OPTIONS " + target + " HTTP/1.1\r\nHost: x\r\n\r\n", 204, ""},
		{"several events without a key", post("/ios/v3/event", asJSON, batch), 403, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			answer := raw(t, g.addr, tc.request)
			if answer.StatusCode != tc.status {
				t.Errorf("got %d %q", answer.StatusCode, answer.body)
			}
			if tc.record == "" {
				v2.none(t)
			} else if got := v2.next(t); got.body != tc.record || got.line != "POST "+event+" HTTP/1.1" || !slices.Equal(got.field("Via"), []string{"1.1 Caddy"}) {
				t.Errorf("v2 saw %q %q and %.100q", got.line, got.fields, got.body)
			}
			u.none(t)
		})
	}
	for _, path := range []string{"/x", "/js/v3/global_id"} { // pass_thru gives way
		if answer := raw(t, g.addr, get(path, "")); answer.StatusCode != 200 {
			t.Errorf("got %d", answer.StatusCode)
		}
		p := u.next(t)
		p.check(t, u, "GET "+path+" HTTP/1.1", nil, "")
	}
	v2.none(t)
}
