//go:build unix

package upstream

import (
	"errors"
	"net"
	"syscall"
)

// watch looks at a connection's socket without reading from it.
type watch struct {
	raw   syscall.RawConn
	peek  func(fd uintptr) bool // look, bound once: a request needs no closure
	quiet bool
}

// newWatch takes the innermost connection. One without a socket, such as that
// of a proxy, is not watched.
func newWatch(conn net.Conn) *watch {
	w := &watch{}
	if socket, ok := conn.(syscall.Conn); ok {
		if raw, err := socket.SyscallConn(); err == nil {
			w.raw, w.peek = raw, w.look
		}
	}
	return w
}

// isQuiet reports whether an idle connection is still open and v2 has sent
// nothing on it, such as a 408 before it closes.
func (w *watch) isQuiet() bool {
	if w.raw == nil {
		return true
	}
	w.quiet = false
	return w.raw.Read(w.peek) == nil && w.quiet
}

func (w *watch) look(fd uintptr) bool {
	var b [1]byte
	_, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
	w.quiet = errors.Is(err, syscall.EAGAIN)
	return true
}
