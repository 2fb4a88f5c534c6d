package cluster

import (
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"

	"github.com/td-postback/gateway/spool/cluster/natstest"
)

// way is a way to a server that can be cut.
type way struct {
	addr, to string

	mu    sync.Mutex
	isCut bool
	conns []net.Conn
}

func newWay(t testing.TB, to string) *way {
	t.Helper()
	w := &way{addr: natstest.FreeAddr(t), to: to}
	l, err := net.Listen("tcp", w.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = l.Close()
		w.cut()
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

func (w *way) join(conn net.Conn) {
	w.mu.Lock()
	defer w.mu.Unlock()
	other, err := net.Dial("tcp", w.to)
	if err != nil || w.isCut {
		_ = conn.Close()
		if err == nil {
			_ = other.Close()
		}
		return
	}
	w.conns = append(w.conns, conn, other)
	go func() { _, _ = io.Copy(conn, other) }()
	go func() { _, _ = io.Copy(other, conn) }()
}

func (w *way) cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.isCut = true
	for _, conn := range w.conns {
		_ = conn.Close()
	}
	w.conns = nil
}

func (w *way) mend() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.isCut = false
}

func randomText(n int) []byte {
	text := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{}).Read(text)
	return text
}
