//go:build !unix

package caddymodule

import "net"

// isQuiet cannot look at a connection without reading from it here: a closed
// one is found out when it is used.
func isQuiet(net.Conn) bool { return true }
