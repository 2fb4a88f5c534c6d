package natstest

import (
	"io"
	"net"
	"sync"
	"testing"
)

// Way is a way to a server that can be cut.
type Way struct {
	Addr string // where clients connect to

	to    string
	mu    sync.Mutex
	isCut bool
	conns []net.Conn
}

// NewWay makes a way to the server at an address.
func NewWay(t testing.TB, to string) *Way {
	t.Helper()
	w := &Way{Addr: FreeAddr(t), to: to}
	l, err := net.Listen("tcp", w.Addr) //nolint:noctx // on loopback
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = l.Close()
		w.Cut()
	})
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			w.join(conn)
		}
	}()
	return w
}

func (w *Way) join(conn net.Conn) {
	w.mu.Lock()
	defer w.mu.Unlock()
	other, err := net.Dial("tcp", w.to) //nolint:noctx // on loopback
	if err != nil || w.isCut {
		_ = conn.Close()
		if err == nil {
			_ = other.Close()
		}
		return
	}
	w.conns = append(w.conns, conn, other)
	go pass(conn, other)
	go pass(other, conn)
}

// pass passes on what comes. When one side has ended, the other one hears of it.
func pass(to, from net.Conn) {
	_, _ = io.Copy(to, from)
	_ = to.Close()
	_ = from.Close()
}

// Cut breaks all connections, and lets none come about.
func (w *Way) Cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.isCut = true
	for _, conn := range w.conns {
		_ = conn.Close()
	}
	w.conns = nil
}

// Mend lets connections come about again.
func (w *Way) Mend() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.isCut = false
}
