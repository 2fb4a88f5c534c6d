package integration

import (
	"bufio"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
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
	t.Parallel()
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

// TestEarlyAnswerAndSilence has v2 refuse a record by its head, and then neither
// read the rest nor close. With the small packets and buffers of a real network
// the record never gets out whole. The caller hears the refusal all the same,
// and a spool neither keeps the record nor takes v2 to be down.
func TestEarlyAnswerAndSilence(t *testing.T) {
	t.Parallel()
	for _, secure := range []bool{false, true} {
		name, scheme := "plain", "http"
		authority := newCertificate(t, "localhost")
		if secure {
			name, scheme = "TLS", "https"
		}
		t.Run(name, func(t *testing.T) {
			l := listenNarrow(t)
			acceptAll(t, l, func(conn net.Conn, _ int) {
				if secure {
					conn = tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{authority.pair}})
				}
				refuseByHead(t.Context(), conn)
			})
			_, port, _ := net.SplitHostPort(l.Addr().String())
			upstream := scheme + "://localhost:" + port
			options := "tls_ca " + authority.cert
			check := func(t *testing.T, addr string) {
				t.Helper()
				for range 6 { // more than the failures that would open a circuit
					got := ask(t, addr, post(spoolTarget, asJSON, objectOf(v2Cap)), func() {})
					if got.StatusCode != 403 || got.body != "early" {
						t.Errorf("got %d %q", got.StatusCode, got.body)
					}
					if got.took > slack {
						t.Errorf("it took %v", got.took)
					}
				}
			}
			t.Run("without a spool", func(t *testing.T) {
				g := serve(t, "", "td_postback {\n upstream "+upstream+"\n "+options+"\n}")
				check(t, g.addr)
			})
			t.Run("with a spool", func(t *testing.T) {
				g := serveSpool(t, upstream, options, "")
				check(t, g.addr)
				if s := g.state(t); s.records() != 0 || s.dead() != 0 || len(s.Queues) != 1 || s.Queues[0].Down {
					t.Errorf("the spool is %+v", s)
				}
			})
			t.Run("from the spool", func(t *testing.T) {
				g := serveSpool(t, upstream, options, "mode always")
				isTaken(t, ask(t, g.addr, post(spoolTarget, asJSON, objectOf(v2Cap)), func() {}).reply)
				s := g.awaitState(t, func(s *spoolState) bool { return s.dead() == 1 })
				if s.records() != 0 || s.Queues[0].Down {
					t.Errorf("the spool is %+v", s)
				}
			})
		})
	}
}

// listenNarrow listens for connections with the packets of an Ethernet and a
// small buffer, which over loopback both are much larger.
func listenNarrow(t testing.TB) net.Listener {
	t.Helper()
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var failed error
		err := raw.Control(func(fd uintptr) {
			failed = errors.Join(
				syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, syscall.TCP_MAXSEG, 1448),
				syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 4<<10))
		})
		return errors.Join(err, failed)
	}}
	l, err := config.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// refuseByHead answers the head of a request, and does nothing more until the
// end.
func refuseByHead(end context.Context, conn net.Conn) {
	br := bufio.NewReaderSize(conn, 512)
	for line := ""; line != "\r\n"; {
		var err error
		if line, err = br.ReadString('\n'); err != nil {
			return
		}
	}
	send(conn, true, "HTTP/1.1 403 Forbidden\r\nContent-Length: 5\r\n\r\nearly")
	<-end.Done()
}
