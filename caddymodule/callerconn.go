package caddymodule

import (
	"context"
	"net"
	"net/http"
	"sync/atomic"
)

// callerConn is a caller's connection without TLS, on which nobody needs to watch
// for the caller to leave while its record is on the way: that does not stop a
// record.
//
// Go's HTTP server watches, by reading one byte ahead from the end of a body until
// the answer is out. The read is in vain, and its goroutine has to be woken up and
// waited for at each answer, a twentieth of what a small POST costs. A server whose
// way of watching changes would read as it likes, and only the gain would be lost.
type callerConn struct {
	*net.TCPConn
	unwatched atomic.Bool
}

// Read reads from the connection. To who watches it says that nothing has happened.
func (c *callerConn) Read(p []byte) (int, error) {
	if len(p) == 1 && c.unwatched.Load() {
		return 0, nil
	}
	return c.TCPConn.Read(p)
}

// callerConnKey is where a request's context has its callerConn.
type callerConnKey struct{}

// withCallerConn makes a connection known to the requests that come on it.
func withCallerConn(ctx context.Context, conn net.Conn) context.Context {
	if c, ok := conn.(*callerConn); ok {
		return context.WithValue(ctx, callerConnKey{}, c)
	}
	return ctx
}

// callerConnOf finds the connection that a request has come on, if it is a
// callerConn of HTTP/1.
func callerConnOf(r *http.Request) *callerConn {
	if r.ProtoMajor != 1 {
		return nil
	}
	c, _ := r.Context().Value(callerConnKey{}).(*callerConn)
	return c
}
