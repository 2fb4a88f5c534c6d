package integration

import (
	"net"
	"strings"
	"testing"
)

// This file has callers and a legacy host that mean harm, or are merely odd.

// TestLegacyTunnel: neither CONNECT nor Upgrade opens a way through the gateway, and what
// the legacy host takes for a tunnel carries no other caller's request.
func TestLegacyTunnel(t *testing.T) {
	t.Parallel()
	const connect = "CONNECT internal.example:22 HTTP/1.1\r\nHost: internal.example:22\r\n\r\n"
	const upgrade = "GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
	for _, tc := range []struct {
		name, request, answer string
		status                int
		code                  string
	}{
		{"CONNECT", connect, "HTTP/1.1 200 Connection established\r\n\r\nSSH-2.0-x\r\n", 502, "upstream_unreachable"},
		{"CONNECT, with a length", connect, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 502, "upstream_unreachable"},
		{"CONNECT, refused", connect, "HTTP/1.1 405 Not Allowed\r\nContent-Length: 0\r\n\r\n", 405, ""},
		{"Upgrade", upgrade, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhello", 502, "upstream_unreachable"},
		{"Upgrade, and 200", upgrade, answerOK, 200, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			u := startLegacy(t, func(conn net.Conn, p *passed) bool {
				if strings.HasPrefix(p.line, "POST") {
					return send(conn, true, answerOK)
				}
				return send(conn, true, tc.answer)
			})
			g := serveLegacy(t, u, "retries 0", "")
			answer := raw(t, g.addr, tc.request)
			if answer.StatusCode != tc.status || answer.code() != tc.code || strings.Contains(answer.body, "SSH") {
				t.Errorf("got %d %q", answer.StatusCode, answer.body)
			}
			if p := u.next(t); p.field("Upgrade")+p.field("Connection") != "" {
				t.Errorf("the legacy host saw %q", p.fields)
			}
			if answer := raw(t, g.addr, post(target, asJSON, object)); answer.StatusCode != 200 {
				t.Errorf("the next one: got %d %q", answer.StatusCode, answer.body)
			}
			if p := u.next(t); p.body != object || (p.nth > 1) != (tc.status < 500) {
				t.Errorf("the next one came as request %d of its connection, with %q", p.nth, p.body)
			}
			u.none(t)
		})
	}
}
