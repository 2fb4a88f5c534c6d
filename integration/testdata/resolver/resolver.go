// This file is built into cmd/caddy for the tests of DNS, and only there: it
// has names looked up at the server in TEST_RESOLVER instead of the system's.
package main

import (
	"context"
	"net"
	"os"
)

func init() {
	net.DefaultResolver = &net.Resolver{
		PreferGo: true,
		Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, os.Getenv("TEST_RESOLVER"))
		},
	}
}
