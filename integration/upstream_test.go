package integration

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestAnswer passes v2's answers on as they came.
func TestAnswer(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("0123456789abcdef", 1<<16) // 1 MiB
	for _, tc := range []struct {
		name   string
		answer string
		keep   bool // the upstream keeps the connection
		status int
		body   string
		header map[string][]string // nil: absent
	}{
		{name: "as published", answer: answerOK, keep: true, status: 200, body: "{}", header: map[string][]string{"Content-Type": {"application/json"}, "Content-Length": {"2"}}},
		{name: "refused by v2", answer: "HTTP/1.1 403 Forbidden\r\nContent-Type: application/json\r\nContent-Length: 13\r\n\r\n{\"error\":\"x\"}", keep: true, status: 403, body: `{"error":"x"}`},
		{name: "server error with Retry-After", answer: "HTTP/1.1 503 Busy\r\nRetry-After: 7\r\nContent-Length: 0\r\n\r\n", keep: true, status: 503, header: map[string][]string{"Retry-After": {"7"}}},
		{name: "no content", answer: "HTTP/1.1 204 No Content\r\nX-A: 1\r\n\r\n", keep: true, status: 204, header: map[string][]string{"X-A": {"1"}}},
		{name: "redirect", answer: "HTTP/1.1 302 Found\r\nLocation: https://x.example/\r\nContent-Length: 0\r\n\r\n", keep: true, status: 302, header: map[string][]string{"Location": {"https://x.example/"}}},
		{name: "unknown status", answer: "HTTP/1.1 299 Hm\r\nContent-Length: 1\r\n\r\nx", keep: true, status: 299, body: "x"},
		{
			name: "what speaks for v2's host or this hop goes", keep: true, status: 200, body: "{}",
			answer: "HTTP/1.1 200 OK\r\nstrict-transport-security: max-age=1\r\nAlt-Svc: h3=\":443\"\r\nSet-Cookie: a=b\r\nSet-Cookie: c=d\r\n" +
				"Connection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nProxy-Authenticate: Basic\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\n{}",
			header: map[string][]string{
				"Strict-Transport-Security": nil, "Alt-Svc": nil, "Set-Cookie": nil, "X-Hop": nil,
				"Keep-Alive": nil, "Connection": nil, "Proxy-Authenticate": nil, "Upgrade": nil,
			},
		},
		{
			name: "Connection in two lines and lower case", keep: true, status: 200, body: "{}",
			answer: "HTTP/1.1 200 OK\r\nx-hop: 1\r\nconnection: X-Other, keep-alive\r\nX-Other: 1\r\nConnection: X-Hop\r\nContent-Length: 2\r\n\r\n{}",
			header: map[string][]string{"X-Hop": nil, "X-Other": nil, "Connection": nil},
		},
		{
			name: "other headers stay, repeated ones too", keep: true, status: 200, body: "{}",
			answer: "HTTP/1.1 200 OK\r\nServer: v2/1\r\nDate: Mon, 01 Jan 2024 00:00:00 GMT\r\nX-Request-Id: q\r\n" +
				"Vary: A\r\nVary: B\r\nETag: \"e\"\r\nCache-Control: private\r\ncontent-type: text/x\r\ncontent-length: 2\r\n\r\n{}",
			header: map[string][]string{
				"Server": {"v2/1"}, "Date": {"Mon, 01 Jan 2024 00:00:00 GMT"}, "X-Request-Id": {"q"}, "Vary": {"A", "B"},
				"Etag": {`"e"`}, "Cache-Control": {"private"}, "Content-Type": {"text/x"}, "Content-Length": {"2"},
			},
		},
		{name: "no content type is invented", answer: "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", keep: true, status: 200, body: "{}", header: map[string][]string{"Content-Type": nil}},
		{name: "chunked", answer: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n1;x=y\r\n}\r\n0\r\n\r\n", keep: true, status: 200, body: "{}", header: map[string][]string{"Content-Length": {"2"}}},
		{name: "chunked with a trailer", answer: "HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nX-Sum: 1\r\n\r\n", keep: true, status: 200, body: "{}", header: map[string][]string{"X-Sum": nil, "Trailer": nil}},
		{name: "without a length", answer: "HTTP/1.1 200 OK\r\n\r\n{}", status: 200, body: "{}"},
		{name: "HTTP/1.0", answer: "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}", status: 200, body: "{}"},
		{name: "Connection: close", answer: "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}", status: 200, body: "{}", header: map[string][]string{"Connection": nil}},
		{name: "interim answers", answer: "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n" + answerOK, keep: true, status: 200, body: "{}", header: map[string][]string{"Link": nil}},
		{name: "long, known length", answer: fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(long), long), keep: true, status: 200, body: long},
		{name: "long, chunked", answer: fmt.Sprintf("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", len(long), long), keep: true, status: 200, body: long},
		{name: "long, without a length", answer: "HTTP/1.1 200 OK\r\n\r\n" + long, status: 200, body: long},
		{name: "8 KiB of headers", answer: "HTTP/1.1 200 OK\r\nX-Big: " + strings.Repeat("x", 8<<10) + "\r\nContent-Length: 2\r\n\r\n{}", keep: true, status: 200, body: "{}", header: map[string][]string{"X-Big": {strings.Repeat("x", 8<<10)}}},

		{name: "no HTTP", answer: "SSH-2.0-OpenSSH_9\r\n\r\n", status: 502},
		{name: "status 000", answer: "HTTP/1.1 000 Odd\r\nContent-Length: 2\r\n\r\n{}", status: 502},
		{name: "status 000 behind two spaces", answer: "HTTP/1.1  000 Odd\r\nContent-Length: 2\r\n\r\n{}", status: 502},
		{name: "status 000 behind an empty line", answer: "\r\nHTTP/1.1 000 Odd\r\nContent-Length: 2\r\n\r\n{}", status: 502},
		{name: "status 000 after an interim answer", answer: "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 000 Odd\r\nContent-Length: 2\r\n\r\n{}", status: 502},
		{name: "status below 100", answer: "HTTP/1.1 099 Odd\r\nContent-Length: 0\r\n\r\n", status: 502},
		{name: "switching protocols", answer: "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n", status: 502},
		{name: "two lengths", answer: "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}x", status: 502},
		{name: "endless interim answers", answer: strings.Repeat("HTTP/1.1 100 Continue\r\n\r\n", 100) + answerOK, status: 502},
		{name: "too many headers", answer: "HTTP/1.1 200 OK\r\n" + strings.Repeat("X-A: "+strings.Repeat("x", 1000)+"\r\n", 100) + "\r\n", status: 502},
		{name: "cut head", answer: "HTTP/1.1 200 OK\r\nContent-Le", status: 502},
		{name: "cut body", answer: "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{}", status: 502},
		{name: "cut chunk", answer: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{}", status: 502},
		{name: "cut after an interim answer", answer: "HTTP/1.1 100 Continue\r\n\r\n", status: 502},
		{name: "nothing", answer: "", status: 502},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			u := startRecorder(t, func(conn net.Conn, _ int, _ seen) bool { return send(conn, tc.keep, tc.answer) })
			g := serve(t, "", "td_postback {\n upstream "+u.url()+"\n}")
			for range 2 {
				answer := raw(t, g.addr, post(target, asJSON, object))
				u.next(t)
				u.none(t) // none of these may be sent again
				if answer.StatusCode != tc.status {
					t.Fatalf("got %d %q", answer.StatusCode, answer.body)
				}
				if tc.status == 502 {
					if answer.code() != "upstream_unreachable" {
						t.Errorf("code %q", answer.code())
					}
					continue
				}
				if answer.body != tc.body {
					t.Errorf("body of %d bytes, want %d", len(answer.body), len(tc.body))
				}
				for name, want := range tc.header {
					if got := answer.Header[name]; !slices.Equal(got, want) {
						t.Errorf("%s: %q, want %q", name, got, want)
					}
				}
			}
		})
	}
}

// TestAnswerSpelling keeps the spelling of v2's header names.
func TestAnswerSpelling(t *testing.T) {
	t.Parallel()
	u := startRecorder(t, func(conn net.Conn, _ int, _ seen) bool {
		return send(conn, true, "HTTP/1.1 200 OK\r\nETag: x\r\nx-lower: 1\r\nX-XSS-Protection: 0\r\nContent-Length: 2\r\n\r\n{}")
	})
	g := serve(t, "", "td_postback {\n upstream "+u.url()+"\n}")
	conn := dial(t, g.addr)
	if _, err := io.WriteString(conn, strings.Replace(post(target, asJSON, object), "Host:", "Connection: close\r\nHost:", 1)); err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(conn)
	if err != nil {
		t.Fatal(err)
	}
	for _, field := range []string{"\r\nETag: x\r\n", "\r\nx-lower: 1\r\n", "\r\nX-XSS-Protection: 0\r\n"} {
		if !bytes.Contains(text, []byte(field)) {
			t.Errorf("no %q in %q", field, text)
		}
	}
}

// TestTruncatedLongAnswer breaks off once the caller has the status: its
// connection must break too, or it would take the piece for the whole.
func TestTruncatedLongAnswer(t *testing.T) {
	t.Parallel()
	for name, head := range map[string]string{
		"known length": "Content-Length: 1000000\r\n\r\n" + strings.Repeat("x", 500_000),
		"chunked":      "Transfer-Encoding: chunked\r\n\r\nf4240\r\n" + strings.Repeat("x", 500_000),
	} {
		t.Run(name, func(t *testing.T) {
			u := startRecorder(t, func(conn net.Conn, _ int, _ seen) bool { return send(conn, false, "HTTP/1.1 200 OK\r\n"+head) })
			g := serve(t, "", "td_postback {\n upstream "+u.url()+"\n}")
			conn := dial(t, g.addr)
			if _, err := io.WriteString(conn, post(target, asJSON, object)); err != nil {
				t.Fatal(err)
			}
			resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Fatal(err)
			}
			if n, err := io.Copy(io.Discard, resp.Body); err == nil {
				t.Errorf("a broken answer looked whole after %d bytes", n)
			}
			if answer := raw(t, g.addr, post(event, asJSON, object)); answer.StatusCode != 403 {
				t.Errorf("the gateway no longer answers: %d", answer.StatusCode)
			}
		})
	}
}

// TestStreamedAnswer passes the pieces of a slow answer on as they come.
func TestStreamedAnswer(t *testing.T) {
	t.Parallel()
	more := make(chan struct{})
	u := startRecorder(t, func(conn net.Conn, _ int, _ seen) bool {
		if !send(conn, true, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n") {
			return false
		}
		<-more
		return send(conn, true, "4\r\nlast\r\n0\r\n\r\n")
	})
	g := serve(t, "", "td_postback {\n upstream "+u.url()+"\n}")
	conn := dial(t, g.addr)
	if _, err := io.WriteString(conn, post(target, asJSON, object)); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	piece := make([]byte, 5)
	if _, err := io.ReadFull(resp.Body, piece); err != nil || string(piece) != "first" {
		t.Fatalf("%q, %v", piece, err)
	}
	close(more) // only now: the first piece was not held back
	rest, err := io.ReadAll(resp.Body)
	if err != nil || string(rest) != "last" {
		t.Errorf("%q, %v", rest, err)
	}
}

// TestReuse keeps the connection to v2 where it can carry another request, and
// only there.
func TestReuse(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, answer string
		keep, reused bool
	}{
		{"known length", answerOK, true, true},
		{"chunked", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", true, true},
		{"chunked with a trailer", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nX-Sum: 1\r\n\r\n", true, true},
		{"no content", "HTTP/1.1 204 No Content\r\n\r\n", true, true},
		{"no content, but with a length", "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", true, false},
		{"Connection: close, but left open", "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}", true, false},
		{"more bytes than announced", answerOK + "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", true, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			u := startRecorder(t, func(conn net.Conn, _ int, _ seen) bool { return send(conn, tc.keep, tc.answer) })
			g := serve(t, "", "td_postback {\n upstream "+u.url()+"\n}")
			for n := range 3 {
				if answer := raw(t, g.addr, post(target, asJSON, object)); answer.StatusCode/100 != 2 || answer.body == "evil" {
					t.Fatalf("got %d %q", answer.StatusCode, answer.body)
				}
				if got := u.next(t); (got.conn == 1) != (tc.reused || n == 0) {
					t.Errorf("request %d came on connection %d", n+1, got.conn)
				}
			}
		})
	}
}

// TestRetry sends again what v2 cannot have processed, on a fresh connection,
// and nothing else.
func TestRetry(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name string
		// second misbehaves at the second request of a connection.
		second  func(conn net.Conn) bool
		retries string
		status  int
		sent    int // times that v2 read the second request
	}{
		{"closes a reused connection", func(net.Conn) bool { return false }, "2", 200, 2},
		{"resets a reused connection", func(conn net.Conn) bool { reset(conn); return false }, "2", 200, 2},
		{"408 on a reused connection", func(conn net.Conn) bool {
			return send(conn, false, "HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
		}, "2", 408, 1},
		{"one retry is enough", func(net.Conn) bool { return false }, "1", 200, 2},
		{"no retries", func(net.Conn) bool { return false }, "0", 502, 1},
		{"closes a reused connection after a while", func(net.Conn) bool { time.Sleep(1200 * time.Millisecond); return false }, "2", 502, 1},
		{"breaks off within the head", func(conn net.Conn) bool { return send(conn, false, "HTTP/1.1 200 O") }, "2", 502, 1},
		{"breaks off after one byte", func(conn net.Conn) bool { return send(conn, false, "H") }, "2", 502, 1},
		{"breaks off after an interim answer", func(conn net.Conn) bool { return send(conn, false, "HTTP/1.1 100 Continue\r\n\r\n") }, "2", 502, 1},
		{"answers 500", func(conn net.Conn) bool {
			return send(conn, true, "HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n")
		}, "2", 500, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			u := startRecorder(t, func(conn net.Conn, nth int, _ seen) bool {
				if nth == 2 {
					return tc.second(conn)
				}
				return send(conn, true, answerOK)
			})
			g := serve(t, "", "td_postback {\n upstream "+u.url()+"\n retries "+tc.retries+"\n}")
			if answer := raw(t, g.addr, post(target, asJSON, object)); answer.StatusCode != 200 {
				t.Fatalf("first: got %d", answer.StatusCode)
			}
			u.next(t)
			answer := raw(t, g.addr, post(event+"?n=2&td_write_key=1234/abcd", asJSON, object))
			if answer.StatusCode != tc.status {
				t.Errorf("got %d %q, want %d", answer.StatusCode, answer.body, tc.status)
			}
			for range tc.sent {
				if got := u.next(t); got.line != "POST "+event+"?n=2 HTTP/1.1" || got.body != object ||
					!slices.Equal(got.field("X-TD-Write-Key"), []string{"1234/abcd"}) {
					t.Errorf("v2 saw %+v", got)
				}
			}
			u.none(t)
			if answer := raw(t, g.addr, post(target, asJSON, object)); answer.StatusCode != 200 {
				t.Errorf("the next request: got %d", answer.StatusCode)
			}
		})
	}
}

// TestUnasked has v2 send something on an idle connection: a 408 before it
// closes, the end of the stream, bytes that belong to nothing. The next
// request must not take it for its answer, even without retries.
func TestUnasked(t *testing.T) {
	t.Parallel()
	for name, unasked := range map[string]string{
		"408":    "HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
		"answer": strings.Replace(answerOK, "{}", "[]", 1),
		"end":    "",
	} {
		t.Run(name, func(t *testing.T) {
			idle, sent := make(chan struct{}), make(chan struct{})
			u := startRecorder(t, func(conn net.Conn, nth int, s seen) bool {
				if s.conn == 1 {
					send(conn, true, answerOK)
					<-idle
					send(conn, true, unasked)
					if unasked == "" {
						_ = conn.(*net.TCPConn).CloseWrite()
					}
					close(sent)
					return true
				}
				return send(conn, true, answerOK)
			})
			g := serve(t, "", "td_postback {\n upstream "+u.url()+"\n retries 0\n}")
			for n := range 2 {
				if answer := raw(t, g.addr, post(target, asJSON, object)); answer.StatusCode != 200 || answer.body != "{}" {
					t.Fatalf("request %d: got %d %q", n+1, answer.StatusCode, answer.body)
				}
				if got := u.next(t); got.conn != n+1 {
					t.Errorf("request %d came on connection %d", n+1, got.conn)
				}
				if n == 0 {
					close(idle)
					<-sent
				}
			}
		})
	}
}

// TestUnaskedWithinTLS has v2 send a second answer in the same packet as the
// first: it is out of the socket before anybody can look there.
func TestUnaskedWithinTLS(t *testing.T) {
	t.Parallel()
	pair := newCertificate(t, "localhost")
	cert, err := tls.LoadX509KeyPair(pair.cert, pair.key)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	u := startRecorderOn(t, onePacketListener{l, &tls.Config{Certificates: []tls.Certificate{cert}}}, func(conn net.Conn, nth int, _ seen) bool {
		packet := conn.(*tls.Conn).NetConn().(*onePacket)
		packet.open = true
		send(conn, true, answerOK)
		if nth == 1 {
			send(conn, true, strings.Replace(answerOK, "{}", "[]", 1))
		}
		return packet.flush() == nil
	})
	_, port, _ := net.SplitHostPort(l.Addr().String())
	g := serve(t, "", "td_postback {\n upstream https://localhost:"+port+"\n tls_ca "+pair.cert+"\n retries 0\n}")
	for n := range 3 {
		if answer := raw(t, g.addr, post(target, asJSON, object)); answer.StatusCode != 200 || answer.body != "{}" {
			t.Fatalf("request %d: got %d %q", n+1, answer.StatusCode, answer.body)
		}
		if got := u.next(t); got.conn != n+1 {
			t.Errorf("request %d came on connection %d", n+1, got.conn)
		}
	}
}

// TestIdleBeyondTimeout uses a connection again after more than
// response_timeout: that is for an answer, not for a pause between callers.
func TestIdleBeyondTimeout(t *testing.T) {
	t.Parallel()
	u := startRecorder(t, nil)
	g := serve(t, "", "td_postback {\n upstream "+u.url()+"\n response_timeout 200ms\n}")
	for range 3 {
		if answer := raw(t, g.addr, post(target, asJSON, object)); answer.StatusCode != 200 {
			t.Fatalf("got %d %q", answer.StatusCode, answer.body)
		}
		if got := u.next(t); got.conn != 1 {
			t.Errorf("connection %d", got.conn)
		}
		time.Sleep(300 * time.Millisecond)
	}
}

// TestFreshFailureIsNotRetried breaks a connection that was just made: v2 may
// have taken the record.
func TestFreshFailureIsNotRetried(t *testing.T) {
	t.Parallel()
	u := startRecorder(t, func(conn net.Conn, _ int, _ seen) bool { reset(conn); return false })
	g := serve(t, "", "td_postback {\n upstream "+u.url()+"\n}")
	if answer := raw(t, g.addr, post(target, asJSON, object)); answer.StatusCode != 502 || answer.code() != "upstream_unreachable" {
		t.Errorf("got %d %q", answer.StatusCode, answer.body)
	}
	u.next(t)
	u.none(t)
}

// TestUnreachable answers 502 when nobody listens, and works once somebody
// does.
func TestUnreachable(t *testing.T) {
	t.Parallel()
	addr := freeAddr(t)
	g := serve(t, "", "td_postback {\n upstream http://"+addr+"\n}")
	answer := raw(t, g.addr, post(target, asJSON, object))
	if answer.StatusCode != 502 || answer.code() != "upstream_unreachable" {
		t.Errorf("got %d %q", answer.StatusCode, answer.body)
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	u := startRecorderOn(t, l, nil)
	if answer := raw(t, g.addr, post(target, asJSON, object)); answer.StatusCode != 200 {
		t.Errorf("afterwards: got %d %q", answer.StatusCode, answer.body)
	}
	u.next(t)
}

// TestResponseTimeout answers 504 when v2 is silent, and does not send the
// record again.
func TestResponseTimeout(t *testing.T) {
	t.Parallel()
	silent := make(chan struct{})
	u := startRecorder(t, func(net.Conn, int, seen) bool { <-silent; return false })
	t.Cleanup(func() { close(silent) })
	g := serve(t, "", "td_postback {\n upstream "+u.url()+"\n response_timeout 200ms\n}")
	if answer := raw(t, g.addr, post(target, asJSON, object)); answer.StatusCode != 504 || answer.code() != "upstream_timeout" {
		t.Errorf("got %d %q", answer.StatusCode, answer.body)
	}
	u.next(t)
	u.none(t)
}

// TestDialTimeout answers 502 within the dial timeout when nothing comes back:
// here, a TLS handshake that never goes on.
func TestDialTimeout(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	g := serve(t, "", "td_postback {\n upstream https://"+l.Addr().String()+"\n dial_timeout 200ms\n}")
	if answer := raw(t, g.addr, post(target, asJSON, object)); answer.StatusCode != 502 || answer.code() != "upstream_unreachable" {
		t.Errorf("got %d %q", answer.StatusCode, answer.body)
	}
}

// TestEarlyAnswer passes on an answer that v2 gives before it has read the
// body, closing the connection.
func TestEarlyAnswer(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			br := bufio.NewReader(conn)
			for line := ""; line != "\r\n" && err == nil; {
				line, err = br.ReadString('\n')
			}
			send(conn, false, "HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 5\r\n\r\nearly")
			_ = conn.(*net.TCPConn).CloseWrite()
			_, _ = io.Copy(io.Discard, br)
			conn.Close()
		}
	}()
	g := serve(t, "", "td_postback {\n upstream http://"+l.Addr().String()+"\n}")
	if answer := raw(t, g.addr, post(target, asJSON, objectOf(v2Cap))); answer.StatusCode != 400 || answer.body != "early" {
		t.Errorf("got %d %q", answer.StatusCode, answer.body)
	}
}

// TestUpstreamClosesConnections has v2 close every connection after a few
// requests, without a word, while 3,200 POSTs are under way at once: no caller
// may see it. That is so when v2 closes within a second of its last answer: later, it
// may have been at work on the next request. Where the machine is too busy to close in
// time, fewer are under way.
func TestUpstreamClosesConnections(t *testing.T) {
	const total, inTime = 3200, 500 * time.Millisecond
	late := watchLateness(t)
	var mu sync.Mutex
	counts := make(map[string]int)
	u := startRecorder(t, func(conn net.Conn, nth int, s seen) bool {
		mu.Lock()
		counts[s.body]++
		mu.Unlock()
		if nth%5 != 0 {
			return send(conn, true, answerOK)
		}
		began := time.Now()
		defer late.since(began)
		_ = send(conn, false, answerOK)
		return conn.Close() != nil
	})
	g := serve(t, "", "td_postback {\n upstream "+u.url()+"\n}")
	answered := 0
	for round, atOnce := 0, total; answered < 2*total; round++ {
		failures := postAtOnce(g, round, atOnce)
		answered += atOnce - len(failures)
		worst := late.worst()
		if len(failures) > 0 && worst > inTime && atOnce > 100 {
			t.Logf("%d of %d at once failed, and the machine was late by %v", len(failures), atOnce, worst)
			atOnce /= 2
		} else if len(failures) > 0 {
			t.Fatalf("%d of %d requests failed: %v", len(failures), atOnce, failures[0])
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if len(counts) != answered {
		t.Errorf("v2 has %d records of %d", len(counts), answered)
	}
	for body, n := range counts {
		if n != 1 {
			t.Errorf("%s arrived %d times", body, n)
		}
	}
}

// postAtOnce sends so many records at once, each with a body of its own. It returns what
// went wrong.
func postAtOnce(g *gateway, round, n int) (failures []error) {
	var mu sync.Mutex
	var callers sync.WaitGroup
	begin := make(chan struct{})
	client := &http.Client{Timeout: 2 * patience, Transport: &http.Transport{MaxIdleConnsPerHost: n}}
	defer client.CloseIdleConnections()
	for i := range n {
		callers.Go(func() {
			<-begin
			if err := postOne(client, g.url(target), fmt.Sprintf(`{"round":%d,"n":%d}`, round, i)); err != nil {
				mu.Lock()
				defer mu.Unlock()
				failures = append(failures, err)
			}
		})
	}
	close(begin)
	callers.Wait()
	return failures
}

func postOne(client *http.Client, url, record string) error {
	resp, err := client.Post(url, "application/json", strings.NewReader(record))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != 200 || string(body) != "{}" {
		return fmt.Errorf("%d %q %w", resp.StatusCode, body, err)
	}
	return nil
}

// lateness is how late this process was at worst.
type lateness struct{ longest atomic.Int64 }

// watchLateness looks at the clock every few milliseconds, until the end of the test.
func watchLateness(t *testing.T) *lateness {
	const pause = 10 * time.Millisecond
	l := &lateness{}
	go func() {
		for t.Context().Err() == nil {
			expected := time.Now().Add(pause)
			time.Sleep(pause)
			l.since(expected)
		}
	}()
	return l
}

func (l *lateness) since(began time.Time) {
	took := int64(time.Since(began))
	for longest := l.longest.Load(); took > longest && !l.longest.CompareAndSwap(longest, took); longest = l.longest.Load() {
	}
}

// worst is the longest since it was asked before.
func (l *lateness) worst() time.Duration { return time.Duration(l.longest.Swap(0)) }

// TestMaxConns queues what exceeds the connections, and loses none of it.
func TestMaxConns(t *testing.T) {
	t.Parallel()
	var now, most atomic.Int64
	u := startRecorder(t, func(conn net.Conn, _ int, _ seen) bool {
		n := now.Add(1)
		defer now.Add(-1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		return send(conn, true, answerOK)
	})
	g := serve(t, "", "td_postback {\n upstream "+u.url()+"\n max_conns 3\n}")
	var callers sync.WaitGroup
	for range 300 {
		callers.Go(func() {
			resp, err := http.Post(g.url(target), "application/json", strings.NewReader(object))
			if err != nil || resp.StatusCode != 200 {
				t.Error(resp, err)
				return
			}
			resp.Body.Close()
		})
	}
	callers.Wait()
	if most.Load() > 3 {
		t.Errorf("%d requests at once", most.Load())
	}
	conns := 0
	for range 300 {
		conns = max(conns, u.next(t).conn)
	}
	if conns > 3 {
		t.Errorf("%d connections", conns)
	}
}

// TestTLS verifies v2's certificate, and takes another authority only where
// told to.
func TestTLS(t *testing.T) {
	t.Parallel()
	right, other, wrongName := newCertificate(t, "localhost"), newCertificate(t, "localhost"), newCertificate(t, "elsewhere.example")
	listen := func(pair certificate, resumed *atomic.Bool) *recorder {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		cfg := &tls.Config{Certificates: []tls.Certificate{pair.pair}, NextProtos: []string{"h2", "http/1.1"}}
		return startRecorderOn(t, tls.NewListener(l, cfg), func(conn net.Conn, _ int, _ seen) bool {
			state := conn.(*tls.Conn).ConnectionState()
			resumed.Store(state.DidResume)
			if state.NegotiatedProtocol != "http/1.1" {
				t.Errorf("protocol %q", state.NegotiatedProtocol)
			}
			return send(conn, false, strings.Replace(answerOK, "\r\n", "\r\nConnection: close\r\n", 1))
		})
	}
	url := func(u *recorder) string {
		_, port, _ := net.SplitHostPort(u.Addr().String())
		return "https://localhost:" + port
	}
	var resumed atomic.Bool
	u := listen(right, &resumed)
	t.Run("trusted", func(t *testing.T) {
		g := serve(t, "", "td_postback {\n upstream "+url(u)+"\n tls_ca "+right.cert+"\n}")
		for n := range 2 {
			if answer := raw(t, g.addr, post(target, asJSON, object)); answer.StatusCode != 200 {
				t.Fatalf("got %d %q", answer.StatusCode, answer.body)
			}
			got := u.next(t)
			if host := strings.TrimPrefix(url(u), "https://"); !slices.Equal(got.field("Host"), []string{host}) {
				t.Errorf("Host %q", got.field("Host"))
			}
			if resumed.Load() != (n == 1) {
				t.Errorf("connection %d: resumed is %v", n+1, resumed.Load())
			}
		}
	})
	for name, tc := range map[string]struct {
		pair  certificate
		trust string
	}{
		"no authority":    {right, ""},
		"other authority": {right, "tls_ca " + other.cert},
		"other name":      {wrongName, "tls_ca " + wrongName.cert},
	} {
		t.Run(name, func(t *testing.T) {
			u := listen(tc.pair, new(atomic.Bool))
			g := serve(t, "", "td_postback {\n upstream "+url(u)+"\n"+tc.trust+"\n}")
			if answer := raw(t, g.addr, post(target, asJSON, object)); answer.StatusCode != 502 || answer.code() != "upstream_unreachable" {
				t.Errorf("got %d %q", answer.StatusCode, answer.body)
			}
			u.none(t)
		})
	}
}

// TestProxy reaches v2 through the proxy of the environment, and nobody else.
func TestProxy(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	pair := newCertificate(t, "us01.records.in.treasuredata.com")
	u := startRecorder(t, nil)
	connects := make(chan string, 10)
	go func() { // a proxy that leads every CONNECT to a TLS server of its own
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				br := bufio.NewReader(conn)
				request, err := http.ReadRequest(br)
				if err != nil {
					return
				}
				connects <- request.Method + " " + request.RequestURI + " " + request.Header.Get("Proxy-Authorization")
				_, _ = io.WriteString(conn, "HTTP/1.1 200 Connected\r\n\r\n")
				u.handle(tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{pair.pair}}), 1)
			}()
		}
	}()
	proxy := "HTTPS_PROXY=http://user:secret@" + l.Addr().String() + "/"
	g := serve(t, "", "td_postback us01 {\n tls_ca "+pair.cert+"\n}", proxy)
	if answer := raw(t, g.addr, post(target, asJSON, object)); answer.StatusCode != 200 {
		t.Fatalf("got %d %q", answer.StatusCode, answer.body)
	}
	if got, want := <-connects, "CONNECT us01.records.in.treasuredata.com:443 Basic dXNlcjpzZWNyZXQ="; got != want {
		t.Errorf("the proxy saw %q", got)
	}
	if got := u.next(t); !slices.Equal(got.field("Host"), []string{"us01.records.in.treasuredata.com"}) {
		t.Errorf("Host %q", got.field("Host"))
	}

	t.Run("a SOCKS proxy that is silent", func(t *testing.T) {
		silent, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { silent.Close() })
		g := serve(t, "", "td_postback us01 {\n dial_timeout 200ms\n}", "HTTPS_PROXY=socks5://"+silent.Addr().String()+"/")
		if answer := raw(t, g.addr, post(target, asJSON, object)); answer.StatusCode != 502 || answer.code() != "upstream_unreachable" {
			t.Errorf("got %d %q", answer.StatusCode, answer.body)
		}
	})
	for _, env := range []string{"HTTPS_PROXY=http://user:secret@[::1", "https_proxy=http://user:1#secret@proxy.example", "NO_PROXY=secret@https://v2.example"} {
		name, _, _ := strings.Cut(env, "=")
		t.Run("malformed "+name, func(t *testing.T) {
			config := write(t, "Caddyfile", "{\n"+globals+"}\n:1 {\n td_postback us01\n}\n")
			p := start(t, []string{"HTTPS_PROXY=http://proxy.example", env}, "run", "--adapter", "caddyfile", "--config", config)
			select {
			case <-p.exited:
			case <-time.After(patience):
				t.Fatal("it runs")
			}
			if text := p.text(); p.cmd.ProcessState.ExitCode() == 0 || !strings.Contains(text, name) || strings.Contains(text, "secret") {
				t.Errorf("exit %d: %s", p.cmd.ProcessState.ExitCode(), text)
			}
		})
	}
	t.Run("not for loopback", func(t *testing.T) {
		g := serve(t, "", "td_postback {\n upstream "+u.url()+"\n}", proxy, "HTTP_PROXY=http://"+l.Addr().String())
		if answer := raw(t, g.addr, post(target, asJSON, object)); answer.StatusCode != 200 {
			t.Errorf("got %d %q", answer.StatusCode, answer.body)
		}
		u.next(t)
		if len(connects) > 0 {
			t.Errorf("the proxy saw %q", <-connects)
		}
	})
	t.Run("not for NO_PROXY", func(t *testing.T) {
		g := serve(t, "", "td_postback us01 {\n dial_timeout 1s\n}", proxy, "NO_PROXY=.treasuredata.com")
		if answer := raw(t, g.addr, post(target, asJSON, object)); answer.code() != "upstream_unreachable" {
			t.Errorf("got %d %q", answer.StatusCode, answer.body)
		}
		if len(connects) > 0 {
			t.Errorf("the proxy saw %q", <-connects)
		}
	})
}

// TestRegionAuto follows the legacy host to its region's v2 host.
func TestRegionAuto(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	connects := make(chan string, 20)
	go func() { // a proxy that only notes where it should lead
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			if request, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
				connects <- request.RequestURI
			}
			conn.Close()
		}
	}()
	g := serve(t, "", "td_postback auto {\n retries 0\n}", "https_proxy=http://"+l.Addr().String())
	for host, want := range map[string]string{
		"in.treasuredata.com":           "us01",
		"tokyo.in.treasuredata.com":     "ap01",
		"eu01.in.treasuredata.com:80":   "eu01",
		"AP02.in.treasuredata.com":      "ap02",
		"ap03.in.treasuredata.com.":     "ap03",
		"in.treasuredata.com.evil.test": "",
	} {
		answer := raw(t, g.addr, strings.Replace(post(target, asJSON, object), "in.treasuredata.com", host, 1))
		if want == "" {
			if answer.StatusCode != 421 || answer.code() != "unknown_region" {
				t.Errorf("%s: got %d %q", host, answer.StatusCode, answer.body)
			}
			continue
		}
		if answer.code() != "upstream_unreachable" {
			t.Errorf("%s: got %d %q", host, answer.StatusCode, answer.body)
		}
		if got := <-connects; got != want+".records.in.treasuredata.com:443" {
			t.Errorf("%s: led to %s", host, got)
		}
	}
	if len(connects) > 0 {
		t.Errorf("led to %s", <-connects)
	}
}
