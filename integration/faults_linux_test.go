package integration

import (
	"bufio"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestBlackHole connects to an address that answers nothing at all, not even
// that it refuses: a listener whose queue is full.
func TestBlackHole(t *testing.T) {
	t.Parallel() // it waits for dial_timeout
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	blackHole(t, l)
	g := serve(t, "", fmt.Sprintf("td_postback {\n upstream http://%s\n dial_timeout %s\n}", l.Addr(), dialTimeout))
	got := ask(t, g.addr, post(target, asJSON, object), func() {})
	if got.StatusCode != 502 || got.code() != "upstream_unreachable" {
		t.Errorf("got %d %q", got.StatusCode, got.body)
	}
	if got.took < dialTimeout || got.took > dialTimeout+slack {
		t.Errorf("it took %v", got.took)
	}

	setQueue(t, l, 100)
	u := startRecorderOn(t, l, nil)
	if got := ask(t, g.addr, post(target, asJSON, `{"id":"after"}`), func() {}); got.StatusCode != 200 {
		t.Errorf("v2 is well: got %d %q", got.StatusCode, got.body)
	}
	if got := u.next(t); got.body != `{"id":"after"}` {
		t.Errorf("v2 read %q", got.body)
	}
	u.none(t)
}

// blackHole makes a listener's address answer nothing, until its queue is
// longer.
func blackHole(t testing.TB, l net.Listener) {
	t.Helper()
	setQueue(t, l, 0)
	for {
		conn, err := net.DialTimeout("tcp", l.Addr().String(), 200*time.Millisecond)
		if err != nil {
			return
		}
		t.Cleanup(func() { conn.Close() })
	}
}

// setQueue sets how many connections wait for Accept.
func setQueue(t testing.TB, l net.Listener, length int) {
	t.Helper()
	raw, err := l.(*net.TCPListener).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var failed error
	if err := raw.Control(func(fd uintptr) { failed = syscall.Listen(int(fd), length) }); err != nil || failed != nil {
		t.Fatal(err, failed)
	}
}

// TestHugeAnswer passes 100 MiB on, every byte of them, without holding them.
func TestHugeAnswer(t *testing.T) {
	const size, most = 100 << 20, 50 // bytes, and MiB of memory beyond what the gateway has before
	part := []byte(strings.Repeat("0123456789abcdef", 4<<10))
	want := sha256.New()
	for range size / len(part) {
		_, _ = want.Write(part)
	}
	for name, parts := range map[string]struct{ head, before, after, end string }{
		"known length": {head: "Content-Length: " + strconv.Itoa(size)},
		"chunked":      {head: "Transfer-Encoding: chunked", before: fmt.Sprintf("%x\r\n", len(part)), after: "\r\n", end: "0\r\n\r\n"},
	} {
		t.Run(name, func(t *testing.T) {
			u := startRecorder(t, func(conn net.Conn, _ int, s seen) bool {
				if s.body == object {
					return send(conn, true, answerOK)
				}
				keep := send(conn, true, "HTTP/1.1 200 OK\r\n"+parts.head+"\r\n\r\n")
				for n := 0; n < size && keep; n += len(part) {
					keep = send(conn, true, parts.before, string(part), parts.after)
				}
				return keep && send(conn, true, parts.end)
			})
			g := serve(t, "", "td_postback {\n upstream "+u.url()+"\n}")
			if answer := raw(t, g.addr, post(target, asJSON, object)); answer.StatusCode != 200 {
				t.Fatalf("got %d %q", answer.StatusCode, answer.body)
			}
			u.next(t)
			before := peakMiB(t, g.cmd.Process.Pid)

			conn := dial(t, g.addr)
			if _, err := io.WriteString(conn, post(target, asJSON, `{"id":"huge"}`)); err != nil {
				t.Fatal(err)
			}
			resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil || resp.StatusCode != 200 {
				t.Fatal(resp, err)
			}
			got := sha256.New()
			if n, err := io.Copy(got, resp.Body); err != nil || n != size || string(got.Sum(nil)) != string(want.Sum(nil)) {
				t.Errorf("%d bytes, %v", n, err)
			}
			u.next(t)
			u.none(t)
			grown := peakMiB(t, g.cmd.Process.Pid) - before
			t.Logf("%d MiB more memory", grown)
			if grown > most {
				t.Errorf("more than %d MiB", most)
			}
			if answer := raw(t, g.addr, post(target, asJSON, object)); answer.StatusCode != 200 {
				t.Errorf("afterwards: got %d %q", answer.StatusCode, answer.body)
			}
			u.next(t)
		})
	}
}
