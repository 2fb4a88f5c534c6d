package integration

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quic-go/quic-go/http3"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// This file has callers and a legacy host that mean harm, or are merely odd.

// TestLegacyTunnel: neither CONNECT nor Upgrade opens a way through the gateway, and what
// the legacy host takes for a tunnel carries no other caller's request.
func TestLegacyTunnel(t *testing.T) {
	t.Parallel()
	const connect = "CONNECT internal.example:22 HTTP/1.1\r\nHost: internal.example:22\r\n\r\n"
	const upgrade = "GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
	for _, tc := range []struct {
		name, request, answer string
		status                int
		code                  string
	}{
		{"CONNECT", connect, "HTTP/1.1 200 Connection established\r\n\r\nSSH-2.0-x\r\n", 502, "upstream_unreachable"},
		{"CONNECT, with a length", connect, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 502, "upstream_unreachable"},
		{"CONNECT, refused", connect, "HTTP/1.1 405 Not Allowed\r\nContent-Length: 0\r\n\r\n", 405, ""},
		{"Upgrade", upgrade, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhello", 502, "upstream_unreachable"},
		{"Upgrade, and 200", upgrade, answerOK, 200, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			u := startLegacy(t, func(conn net.Conn, p *passed) bool {
				if strings.HasPrefix(p.line, "POST") {
					return send(conn, true, answerOK)
				}
				return send(conn, true, tc.answer)
			})
			g := serveLegacy(t, u, "retries 0", "")
			answer := raw(t, g.addr, tc.request)
			if answer.StatusCode != tc.status || answer.code() != tc.code || strings.Contains(answer.body, "SSH") {
				t.Errorf("got %d %q", answer.StatusCode, answer.body)
			}
			if p := u.next(t); p.field("Upgrade")+p.field("Connection") != "" {
				t.Errorf("the legacy host saw %q", p.fields)
			}
			if answer := raw(t, g.addr, post("/next", "", object)); answer.StatusCode != 200 {
				t.Errorf("the next one: got %d %q", answer.StatusCode, answer.body)
			}
			if p := u.next(t); p.body != object || (p.nth > 1) != (tc.status < 500) {
				t.Errorf("the next one came as request %d of its connection, with %q", p.nth, p.body)
			}
			u.none(t)
		})
	}
}

// askRaw asks over HTTP/2 with a head that no client would send. It returns the status of
// the answer; empty for none.
func askRaw(t *testing.T, authority string, config *tls.Config, fields ...[2]string) (status string) {
	t.Helper()
	config = config.Clone()
	config.NextProtos, config.ServerName = []string{"h2"}, "localhost"
	conn := tls.Client(dial(t, strings.Replace(authority, "localhost", "127.0.0.1", 1)), config)
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	framer := http2.NewFramer(conn, conn)
	framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	for _, field := range fields {
		_ = encoder.WriteField(hpack.HeaderField{Name: field[0], Value: field[1]})
	}
	if err := framer.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	if err := framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true, EndStream: true}); err != nil {
		t.Fatal(err)
	}
	for {
		switch frame, err := framer.ReadFrame(); frame := frame.(type) {
		case *http2.MetaHeadersFrame:
			return frame.PseudoValue("status")
		case *http2.RSTStreamFrame, *http2.GoAwayFrame:
			return ""
		default:
			if err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestLegacyRequestLine: what only HTTP/2 can carry makes no other request of one, and a
// target with no host is none with one.
func TestLegacyRequestLine(t *testing.T) {
	u := startLegacy(t, nil)
	client, authority := serveLegacyTLS(t, u)
	config := client.Transport.(*http.Transport).TLSClientConfig
	for _, tc := range []struct {
		method, path string
		status, line string
	}{
		{"GET", "/a b", "200", "GET /a%20b HTTP/1.1"},
		{"GET", "/x HTTP/1.1", "200", "GET /x%20HTTP/1.1 HTTP/1.1"},
		{"GET /y HTTP/1.1", "/x", "405", ""},
		{"GET /y", "/x", "405", ""},
		{"G(T", "/x", "405", ""},
		{"GÉT", "/x", "405", ""},
		{"M!#$%&'*+-.^_`|~", "/x", "200", "M!#$%&'*+-.^_`|~ /x HTTP/1.1"},
	} {
		status := askRaw(t, authority, config, [2]string{":method", tc.method}, [2]string{":scheme", "https"}, [2]string{":authority", authority}, [2]string{":path", tc.path})
		if status != tc.status {
			t.Errorf("%q %q: got %q", tc.method, tc.path, status)
		}
		if status == "200" {
			if p := u.next(t); p.line != tc.line {
				t.Errorf("%q %q: the legacy host saw %q", tc.method, tc.path, p.line)
			}
		}
		u.none(t)
	}
}

// TestLegacyInterimAndContinue: a 1xx answer of the legacy host's and the 100 for which a
// caller waits come one after the other, and once each.
func TestLegacyInterimAndContinue(t *testing.T) {
	t.Parallel()
	u := startLegacy(t, nil)
	u.early = func(conn net.Conn, _ *bufio.Reader) bool {
		return send(conn, true, "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
	}
	g := serveLegacy(t, u, "max_body 10", "")
	body := strings.Repeat("x", 1000)
	for range 200 {
		conn := dial(t, g.addr)
		fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n", target, len(body))
		br := bufio.NewReader(conn)
		for _, want := range [][]string{{"HTTP/1.1 100 Continue"}, {"HTTP/1.1 103 Early Hints", "Link: </a>"}} {
			if lines, err := readLines(br); err != nil || !slices.Equal(lines, want) {
				t.Fatalf("got %q, %v", lines, err)
			}
		}
		if _, err := io.WriteString(conn, body); err != nil {
			t.Fatal(err)
		}
		if rest, err := io.ReadAll(br); err != nil || !strings.HasPrefix(string(rest), "HTTP/1.1 200 OK\r\n") {
			t.Fatalf("got %q, %v", rest, err)
		}
		if p := u.next(t); p.body != body {
			t.Errorf("the legacy host saw %q", p.body)
		}
		conn.Close()
	}
}

// TestLegacyPollution: nothing that stands behind an answer, now or when its connection
// lies idle, reaches the next caller.
func TestLegacyPollution(t *testing.T) {
	t.Parallel()
	const evil = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
	for _, tc := range []struct {
		name, method, answer, behind string
		reused                       bool
	}{
		{name: "nothing", method: "POST", answer: answerOK, reused: true},
		{name: "an answer", method: "POST", answer: answerOK, behind: evil},
		{name: "a line", method: "POST", answer: answerOK, behind: "\r\n"},
		{name: "a 1xx answer", method: "POST", answer: answerOK, behind: "HTTP/1.1 103 Early Hints\r\n\r\n"},
		{name: "more than its length", method: "POST", answer: "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", behind: "more"},
		{name: "more than its chunks", method: "POST", answer: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", behind: evil},
		{name: "less than its chunks", method: "POST", answer: "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", behind: evil},
		{name: "a body behind 204", method: "POST", answer: "HTTP/1.1 204 No Content\r\n\r\n", behind: evil},
		{name: "a body behind 304", method: "GET", answer: "HTTP/1.1 304 Not Modified\r\nContent-Length: 4\r\n\r\n"},
		{name: "a body that 204 announces", method: "POST", answer: "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n"},
		{name: "a body behind HEAD", method: "HEAD", answer: "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n", behind: "evil"},
		{name: "a body that HEAD announces", method: "HEAD", answer: "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n"},
		{name: "HEAD without a body", method: "HEAD", answer: "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", reused: true},
	} {
		for _, when := range []string{"at once", "idle"} {
			t.Run(tc.name+", "+when, func(t *testing.T) {
				t.Parallel()
				idle, sent := make(chan bool), make(chan bool)
				u := startLegacy(t, func(conn net.Conn, p *passed) bool {
					switch {
					case strings.HasSuffix(p.line, " /second HTTP/1.1"):
						return send(conn, true, answerOK)
					case when == "at once":
						return send(conn, true, tc.answer+tc.behind)
					}
					ok := send(conn, true, tc.answer)
					go func() {
						<-idle
						send(conn, true, tc.behind)
						close(sent)
					}()
					return ok
				})
				g := serveLegacy(t, u, "retries 0", "")
				want, err := http.ReadResponse(bufio.NewReader(strings.NewReader(tc.answer)), &http.Request{Method: tc.method})
				if err != nil {
					t.Fatal(err)
				}
				answer := raw(t, g.addr, tc.method+" /first HTTP/1.1\r\nHost: x\r\n\r\n")
				if answer.StatusCode != want.StatusCode || strings.Contains(answer.body, "evil") {
					t.Errorf("got %d %q", answer.StatusCode, answer.body)
				}
				if when == "idle" {
					close(idle)
					<-sent
				}
				if answer := raw(t, g.addr, post("/second", "", object)); answer.StatusCode != 200 || answer.body != "{}" {
					t.Errorf("the next one: got %d %q", answer.StatusCode, answer.body)
				}
				u.next(t)
				if p := u.next(t); (p.nth > 1) != tc.reused {
					t.Errorf("the next one came as request %d of its connection", p.nth)
				}
				u.none(t)
			})
		}
	}
}

// TestLegacyLoopOfTwo: two gateways that share nothing have each other for the legacy
// host. Each request ends where it has begun.
func TestLegacyLoopOfTwo(t *testing.T) {
	t.Parallel()
	addrs := []string{freeAddr(t), freeAddr(t)}
	for n, addr := range addrs {
		_, port, _ := net.SplitHostPort(addr)
		site := "td_postback {\n upstream http://127.0.0.1:9\n migrate {\n  legacy http://legacy.example\n  resolve " + addrs[1-n] + "\n }\n}"
		serveCaddyfile(t, addr, fmt.Sprintf("{\n%s\n}\nhttp://:%s {\n%s\n}\n", globals, port, site))
	}
	for _, request := range []string{
		post(target, asJSON, object),
		post(target, "Via: 1.1 x\r\nConnection: Via\r\n", object),
		get("/x", ""),
		post(target, "", strings.Repeat("x", 2<<20)),
		"CONNECT x.example:443 HTTP/1.1\r\nHost: x.example:443\r\n\r\n",
	} {
		if answer := raw(t, addrs[0], request); answer.StatusCode != 508 || answer.code() != "loop_detected" {
			t.Errorf("%.60q: got %d %q", request, answer.StatusCode, answer.body)
		}
	}
}

// TestLegacyHalfClosed: a caller that closes its side behind its request gets its answer,
// also to a body that goes on as it comes.
func TestLegacyHalfClosed(t *testing.T) {
	t.Parallel()
	u := startLegacy(t, nil)
	g := serveLegacy(t, u, "max_body 1000", "")
	large := strings.Repeat("x", 3<<20)
	for name, tc := range map[string]struct{ request, body string }{
		"whole":              {post(target, asJSON, object), object},
		"longer":             {post(target, "", large), large},
		"longer, in chunks":  {"POST " + target + " HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + chunksOf(large, 70_000) + "0\r\n\r\n", large},
		"one behind another": {post(target, "", large) + post(target, asJSON, object), large},
	} {
		t.Run(name, func(t *testing.T) {
			conn := dial(t, g.addr)
			go func() {
				_, _ = io.WriteString(conn, tc.request)
				_ = conn.(*net.TCPConn).CloseWrite()
			}()
			br := bufio.NewReader(conn)
			for n := range strings.Count(tc.request, "POST") {
				if answer := readReply(t, br, "POST"); answer.StatusCode != 200 || answer.body != "{}" {
					t.Errorf("got %d %q", answer.StatusCode, answer.body)
				}
				if p := u.next(t); p.err != nil || n == 0 && p.body != tc.body || n == 1 && p.body != object {
					t.Errorf("the legacy host saw %d bytes, %v", len(p.body), p.err)
				}
			}
			u.none(t)
		})
	}
}

// TestLegacySentOnce counts what the legacy host has read when it misbehaves: once a byte
// of an answer is there, or a second has gone by, it may have taken the request, and gets
// it no second time. What it answers when the gateway has given up reaches nobody.
func TestLegacySentOnce(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name   string
		second func(conn net.Conn) bool
		status int
		sent   int
	}{
		{"closes at once", func(net.Conn) bool { return false }, 200, 2},
		{"closes a second later", func(net.Conn) bool { time.Sleep(1200 * time.Millisecond); return false }, 502, 1},
		{"resets a second later", func(conn net.Conn) bool { time.Sleep(1200 * time.Millisecond); reset(conn); return false }, 502, 1},
		{"closes within the first line", func(conn net.Conn) bool { return send(conn, false, "H") }, 502, 1},
		{"closes behind a 1xx answer", func(conn net.Conn) bool { return send(conn, false, "HTTP/1.1 103 Early Hints\r\n\r\n") }, 502, 1},
		{"no HTTP", func(conn net.Conn) bool { return send(conn, false, "\r\n") }, 502, 1},
		{"200 when the gateway has given up", func(conn net.Conn) bool { time.Sleep(2500 * time.Millisecond); return send(conn, true, answerOK) }, 504, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			u := startLegacy(t, func(conn net.Conn, p *passed) bool {
				if strings.Contains(p.line, "/second") && p.nth > 1 {
					return tc.second(conn)
				}
				return send(conn, true, answerOK)
			})
			g := serveLegacy(t, u, "response_timeout 2s\n retries 5", "")
			raw(t, g.addr, get("/first", ""))
			u.next(t)
			answer := raw(t, g.addr, post("/second", "", object))
			if answer.StatusCode != tc.status {
				t.Errorf("got %d %q", answer.StatusCode, answer.body)
			}
			for range tc.sent {
				if p := u.next(t); p.body != object {
					t.Errorf("the legacy host saw %q", p.body)
				}
			}
			if answer := raw(t, g.addr, get("/third", "")); answer.StatusCode != 200 {
				t.Errorf("the next one: got %d %q", answer.StatusCode, answer.body)
			}
			if p := u.next(t); !strings.HasPrefix(p.line, "GET /third ") {
				t.Errorf("the legacy host saw %q", p.line)
			}
			u.none(t)
		})
	}
}

// TestLegacyContinueOnce: of the 100 that Go's server says over HTTP/2 and that of the
// legacy host's, a caller gets one. Over HTTP/3, only the legacy host says it.
func TestLegacyContinueOnce(t *testing.T) {
	t.Parallel()
	u := startLegacy(t, nil)
	u.early = func(conn net.Conn, _ *bufio.Reader) bool {
		return send(conn, true, "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n")
	}
	client, authority := serveLegacyTLS(t, u)
	over3 := &http3.Transport{TLSClientConfig: &tls.Config{RootCAs: client.Transport.(*http.Transport).TLSClientConfig.RootCAs}}
	defer over3.Close()
	for proto, client := range map[int]*http.Client{2: client, 3: {Timeout: patience, Transport: over3}} {
		for _, body := range []string{"{}", strings.Repeat("x", 2000)} { // max_body is 1000
			req, err := http.NewRequest(http.MethodPost, "https://"+authority+target, strings.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Expect", "100-continue")
			var interim []int
			req = req.WithContext(httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{Got1xxResponse: func(code int, _ textproto.MIMEHeader) error {
				interim = append(interim, code)
				return nil
			}}))
			resp, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			slices.Sort(interim) // either may be first
			if resp.StatusCode != 200 || resp.ProtoMajor != proto || !slices.Equal(interim, []int{100, 103}) {
				t.Errorf("got %s %s behind %v", resp.Proto, resp.Status, interim)
			}
			if p := u.next(t); p.body != body {
				t.Errorf("the legacy host saw %d bytes", len(p.body))
			}
		}
	}
}

// echoFault is a way in which the legacy host says the number of a request.
type echoFault struct {
	name   string
	early  bool // before it has read the body
	again  bool // the request may come a second time
	whole  bool // its caller gets the answer
	status int
	answer func(conn net.Conn, number string) (keep bool)
}

// echoFaults are what TestLegacyFaultsAtRandom chooses from. None of their texts but the
// number may get to a caller.
func echoFaults() []echoFault {
	const evil = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
	answer := func(status, number string) string {
		return fmt.Sprintf("HTTP/1.1 %s X\r\nContent-Length: %d\r\n\r\n%s", status, len(number), number)
	}
	chunks := func(number string) string {
		return "HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n" + chunksOf(number, 2) + "0\r\nX-Sum: " + number + "\r\n\r\n"
	}
	return []echoFault{
		{"none", false, false, true, 200, func(conn net.Conn, number string) bool { return send(conn, true, answer("200", number)) }},
		{"chunks", false, false, true, 200, func(conn net.Conn, number string) bool { return send(conn, true, chunks(number)) }},
		{"more behind it", false, false, true, 200, func(conn net.Conn, number string) bool { return send(conn, true, answer("200", number)+evil) }},
		{"more behind chunks", false, false, true, 200, func(conn net.Conn, number string) bool { return send(conn, true, chunks(number)+evil) }},
		{"1xx", false, false, true, 200, func(conn net.Conn, number string) bool {
			return send(conn, true, "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"+answer("200", number))
		}},
		{"until it closes", false, false, true, 200, func(conn net.Conn, number string) bool { return send(conn, false, "HTTP/1.1 200 OK\r\n\r\n"+number) }},
		{"closes behind it", false, false, true, 200, func(conn net.Conn, number string) bool { return send(conn, false, answer("200", number)) }},
		{"refuses", false, false, true, 403, func(conn net.Conn, number string) bool { return send(conn, true, answer("403", number)) }},
		{"refuses by the head", true, false, true, 413, func(conn net.Conn, number string) bool { return send(conn, false, answer("413", number)) }},
		{"closes", false, true, false, 502, func(net.Conn, string) bool { return false }},
		{"resets", false, true, false, 502, func(conn net.Conn, _ string) bool { reset(conn); return false }},
		{"half an answer", false, false, false, 502, func(conn net.Conn, number string) bool {
			return send(conn, false, strings.TrimSuffix(answer("200", number), number[1:]))
		}},
		{"no HTTP", false, false, false, 502, func(conn net.Conn, _ string) bool { return send(conn, false, "evil\r\n\r\n"+evil) }},
		{"CONNECT's answer", false, false, false, 502, func(conn net.Conn, _ string) bool {
			return send(conn, true, "HTTP/1.1 101 Switching Protocols\r\n\r\n"+evil)
		}},
	}
}

// TestLegacyFaultsAtRandom: whatever the legacy host does to others, a caller gets the
// answer to its own request or none, and the legacy host each request whole and once, but
// where it closes a connection without a word.
func TestLegacyFaultsAtRandom(t *testing.T) {
	t.Parallel()
	const callers, requests = 8, 100
	faults := echoFaults()
	u := startLegacy(t, nil)
	var seen sync.Map // number -> *atomic.Int32
	faultOf := func(p *passed) (number string, fault *echoFault) {
		parts := strings.Split(strings.Fields(p.line)[1], "/")
		n, _ := strconv.Atoi(parts[2])
		return parts[1], &faults[n]
	}
	count := func(number string) int32 {
		n, _ := seen.LoadOrStore(number, new(atomic.Int32))
		return n.(*atomic.Int32).Add(1)
	}
	u.requests = make(chan passed, 4*callers*requests)
	u.begun = func(conn net.Conn, p *passed) (keep bool) {
		number, fault := faultOf(p)
		if !fault.early {
			return true
		}
		count(number)
		fault.answer(conn, number)
		return false
	}
	u.answer = func(conn net.Conn, p *passed) bool {
		number, fault := faultOf(p)
		if p.body != strings.Repeat(number, len(p.body)/len(number)) {
			t.Errorf("%s: the body is another's, or not whole: %.60q", number, p.body)
		}
		if n := count(number); n > 1 && !fault.again || n > 2 {
			t.Errorf("%s: the legacy host reads it for the %dth time", number, n)
		}
		return fault.answer(conn, number)
	}
	g := serveLegacy(t, u, "max_body 20000\n response_timeout 20s", "")
	var all sync.WaitGroup
	for c := range callers {
		all.Go(func() {
			random := mathrand.New(mathrand.NewPCG(uint64(c), 17)) //nolint:gosec // G404: it chooses faults
			var conn net.Conn
			var br *bufio.Reader
			for n := range requests {
				number, kind := fmt.Sprintf("%02d%04d", c, n), random.IntN(len(faults))
				body := strings.Repeat(number, []int{1, 100, 3000, 10_000}[random.IntN(4)])
				request := fmt.Sprintf("POST /%s/%d HTTP/1.1\r\nHost: x\r\n", number, kind)
				if random.IntN(2) == 0 {
					request += fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(body), body)
				} else {
					request += "Transfer-Encoding: chunked\r\n\r\n" + chunksOf(body, 7000) + "0\r\n\r\n"
				}
				if conn == nil {
					conn = dial(t, g.addr)
					br = bufio.NewReader(conn)
				}
				_, _ = io.WriteString(conn, request)
				if !faults[kind].check(t, br, number) {
					conn.Close()
					conn = nil
				}
			}
		})
	}
	all.Wait()
}

// check reads a caller's answer, and reports whether the connection goes on.
func (f *echoFault) check(t *testing.T, br *bufio.Reader, number string) (goesOn bool) {
	for {
		resp, err := http.ReadResponse(br, &http.Request{Method: http.MethodPost})
		if err != nil {
			t.Errorf("%s, %s: no answer: %v", number, f.name, err)
			return false
		}
		body, err := io.ReadAll(resp.Body)
		if resp.StatusCode < 200 {
			continue
		}
		if err != nil || resp.StatusCode != f.status || f.whole && string(body) != number || strings.Contains(string(body), "evil") {
			t.Errorf("%s, %s: got %d %q, %v", number, f.name, resp.StatusCode, body, err)
		}
		if sum := resp.Trailer.Get("X-Sum"); sum != "" && sum != number {
			t.Errorf("%s, %s: got the trailer of %s", number, f.name, sum)
		}
		return !resp.Close
	}
}
