//go:build unix

package caddymodule

import (
	"crypto/tls"
	"errors"
	"net"
	"syscall"
)

// isQuiet reports whether an idle connection is still open and v2 has sent
// nothing on it. Bytes that v2 sent unasked, such as a 408 before it closes,
// would be taken for the answer to the next request.
func isQuiet(conn net.Conn) bool {
	if over, ok := conn.(*tls.Conn); ok {
		conn = over.NetConn()
	}
	socket, ok := conn.(syscall.Conn)
	if !ok {
		return true
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return false
	}
	quiet := false
	err = raw.Read(func(fd uintptr) bool {
		var b [1]byte
		_, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		quiet = errors.Is(err, syscall.EAGAIN)
		return true
	})
	return err == nil && quiet
}
