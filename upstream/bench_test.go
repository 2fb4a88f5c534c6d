package upstream

import (
	"bufio"
	"net"
	"net/http/httptest"
	"testing"
	"time"
)

func BenchmarkCopyHeader(b *testing.B) {
	x := new(exchange)
	if err := x.readHead(bufio.NewReader(stubConn{})); err != nil {
		b.Fatal(err)
	}
	w := httptest.NewRecorder()
	x.w = w
	b.ReportAllocs()
	for b.Loop() {
		clear(w.Header())
		if x.copyHeader(true, 2); len(w.Header()) != 5 {
			b.Fatal(w.Header())
		}
	}
}

// stubConn answers every read with v2's usual answer.
type stubConn struct{ net.Conn }

func (stubConn) Read(p []byte) (int, error) {
	return copy(p, "HTTP/1.1 200 OK\r\nDate: Thu, 01 Jan 2026 00:00:00 GMT\r\nContent-Type: application/json;charset=utf-8\r\n"+
		"Content-Length: 2\r\nConnection: keep-alive\r\nX-Request-Id: 0123456789abcdef\r\nServer: nginx\r\n\r\n{}"), nil
}
func (stubConn) Write(p []byte) (int, error)     { return len(p), nil }
func (stubConn) SetDeadline(time.Time) error     { return nil }
func (stubConn) SetReadDeadline(time.Time) error { return nil }
func (stubConn) Close() error                    { return nil }
