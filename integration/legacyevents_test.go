package integration

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// TestLegacyEvents moves one of two tables to v2: a call with several events goes there
// only if all of its tables do, and otherwise to the legacy host as it came.
func TestLegacyEvents(t *testing.T) {
	t.Parallel()
	v2 := startBatchV2(t, func(*batchArrival) batchAnswer { return batchAnswer{} })
	u := startLegacy(t, nil)
	admin, addr := freeAddr(t), freeAddr(t)
	_, port, _ := net.SplitHostPort(addr)
	g := serveCaddyfile(t, addr, fmt.Sprintf("{\n%s\n}\nhttp://:%s {\ntd_postback {\n upstream %s\n migrate {\n  legacy %s\n }\n}\n}\n", withAdmin(admin), port, v2.URL, u.url()))
	change(t, admin, "share", share("shop.moved", "", "100"))

	moved, stays := keenBody("shop.moved", "1", "2"), keenBody("shop.stays", "3")
	both := strings.TrimSuffix(moved, "}") + "," + strings.TrimPrefix(stays, "{")
	large := keenBody("shop.moved", keenIDs("large", 20_000)...)
	inChunks := func(body string) string {
		return "POST " + androidPath + " HTTP/1.1\r\nHost: x\r\n" + ofAndroid + "Transfer-Encoding: chunked\r\n\r\n" + chunksOf(body, 100_000) + "0\r\n\r\n"
	}
	packed := ofAndroid + "Content-Encoding: gzip\r\n"
	for _, tc := range []struct {
		name, request string
		toV2          int // so many requests; 0 for the legacy host
		body          string
	}{
		{"a table that is moved", post(androidPath, ofAndroid, moved), 1, ""},
		{"one that is not", post(androidPath, ofAndroid, stays), 0, stays},
		{"both", post(androidPath, ofAndroid, both), 0, both},
		{"both, of a script's", post("/js/v3/event", ofScript, both), 0, both},
		{"both, compressed", post(androidPath, packed, gzippedText(both)), 0, gzippedText(both)},
		{"compressed", post(androidPath, packed, gzippedText(moved)), 1, ""},
		{"in chunks", inChunks(moved), 1, ""},
		{"both, in chunks", inChunks(both), 0, both},
		{"longer than max_body", post(androidPath, ofAndroid, large), 40, ""},
		{"the same beside one that is not moved", post(androidPath, ofAndroid, strings.TrimSuffix(large, "}")+","+strings.TrimPrefix(stays, "{")), 0, strings.TrimSuffix(large, "}") + "," + strings.TrimPrefix(stays, "{")},
		{"beside a bad name", post(androidPath, ofAndroid, strings.TrimSuffix(moved, "}")+`,"a b":[]}`), 0, strings.TrimSuffix(moved, "}") + `,"a b":[]}`},
		{"broken", post(androidPath, ofAndroid, moved[:30]), 0, moved[:30]},
		{"longer than can be read", post(androidPath, ofAndroid, strings.Repeat("x", 33<<20)), 0, strings.Repeat("x", 33<<20)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before := len(v2.all())
			if answer := raw(t, g.addr, tc.request); answer.StatusCode != http.StatusOK || (answer.body == "{}") != (tc.toV2 == 0) {
				t.Errorf("got %d %.200q", answer.StatusCode, answer.body)
			}
			if got := len(v2.all()) - before; got != tc.toV2 {
				t.Errorf("v2 saw %d requests", got)
			}
			if tc.toV2 > 0 {
				u.none(t)
			} else if p := u.next(t); p.body != tc.body {
				t.Errorf("the legacy host saw %d bytes, want %d", len(p.body), len(tc.body))
			}
		})
	}

	change(t, admin, "share", share("shop.stays", "", "100"))
	if answer := raw(t, g.addr, post(androidPath, ofAndroid, both)); !strings.Contains(answer.body, `"shop.stays":[{"success":true}]`) {
		t.Errorf("with both moved: got %d %q", answer.StatusCode, answer.body)
	}
	change(t, admin, "rollback", "")
	if answer := raw(t, g.addr, post(androidPath, ofAndroid, moved)); answer.body != "{}" {
		t.Errorf("rolled back: got %d %q", answer.StatusCode, answer.body)
	}
	if p := u.next(t); p.body != moved {
		t.Errorf("rolled back, the legacy host saw %q", p.body)
	}
}

// TestLegacyEventsStream: as long as the tables do not matter, a call with several events
// is at the legacy host before it is here whole.
func TestLegacyEventsStream(t *testing.T) {
	t.Parallel()
	u := startLegacy(t, nil)
	began := make(chan bool, 1)
	early := u.early
	u.early = func(conn net.Conn, br *bufio.Reader) bool { began <- true; return early(conn, br) }
	g := serveLegacy(t, u, "", "")
	conn := dial(t, g.addr)
	body := strings.Repeat("x", 4<<20)
	request := post(androidPath, ofAndroid, body)
	send(conn, true, request[:len(request)-1])
	select {
	case <-began:
	case <-time.After(patience):
		t.Fatal("the legacy host saw nothing of it")
	}
	send(conn, true, "x")
	if p := u.next(t); p.body != body {
		t.Errorf("the legacy host saw %d bytes", len(p.body))
	}
}

// TestLegacyMaxConns: max_conns holds for the legacy host, for requests that are here
// whole and for others.
func TestLegacyMaxConns(t *testing.T) {
	t.Parallel()
	for name, request := range map[string]string{"whole": post(target, asJSON, object), "longer than max_body": post(target, asJSON, strings.Repeat("x", 2000))} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			release, arrived := make(chan struct{}), make(chan bool, 3)
			u := startLegacy(t, func(conn net.Conn, _ *passed) bool {
				arrived <- true
				<-release
				return send(conn, true, answerOK)
			})
			g := serveLegacy(t, u, "max_conns 1\n max_body 1000", "")
			held := make(chan reply, 2)
			go func() { held <- raw(t, g.addr, request) }()
			<-arrived
			from := time.Now()
			answer := raw(t, g.addr, request)
			if answer.StatusCode != 503 || answer.code() != "overloaded" || time.Since(from) < 10*time.Second {
				t.Errorf("beyond max_conns, got %d %q after %v", answer.StatusCode, answer.body, time.Since(from))
			}
			go func() { held <- raw(t, g.addr, request) }() // it waits for the connection
			close(release)
			for range 2 {
				if answer := <-held; answer.StatusCode != 200 {
					t.Errorf("got %d %q", answer.StatusCode, answer.body)
				}
			}
			u.next(t)
			u.next(t)
			u.none(t)
		})
	}
}

// TestLegacyRetries: how often a request is sent again that the legacy host cannot have
// is what retries says.
func TestLegacyRetries(t *testing.T) {
	t.Parallel()
	for retries, want := range map[string]int{"0": 502, "1": 200, "2": 200} {
		t.Run(retries, func(t *testing.T) {
			t.Parallel()
			u := startLegacy(t, func(conn net.Conn, p *passed) bool { return p.nth == 1 && send(conn, true, answerOK) })
			g := serveLegacy(t, u, "retries "+retries, "")
			for n, status := range []int{200, want} { // the second meets a connection that is given up
				if answer := raw(t, g.addr, post(target, asJSON, object)); answer.StatusCode != status {
					t.Errorf("request %d: got %d %q", n, answer.StatusCode, answer.body)
				}
			}
			for range map[int]int{502: 2, 200: 3}[want] {
				u.next(t)
			}
			u.none(t)
		})
	}
}
