package integration

import (
	"encoding/json"
	"fmt"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// TestDNS has v2's name change its address, lead to a dead one, or lead
// nowhere.
func TestDNS(t *testing.T) {
	t.Parallel()
	path := withResolver(t)
	// start runs a gateway in front of v2.test on that port.
	start := func(t *testing.T, names *nameServer, port string) *gateway {
		addr := freeAddr(t)
		_, own, _ := net.SplitHostPort(addr)
		config := fmt.Sprintf("{\n%s}\nhttp://:%s {\n td_postback {\n upstream http://v2.test:%s\n dial_timeout %s\n}\n}\n",
			globals, own, port, dialTimeout)
		g := &gateway{addr: addr, process: startBinary(t, path, []string{"TEST_RESOLVER=" + names.LocalAddr().String()},
			"run", "--adapter", "caddyfile", "--config", write(t, "Caddyfile", config))}
		g.await(t, "serving initial configuration", 1)
		return g
	}
	var records atomic.Int64
	goesWell := func(t *testing.T, g *gateway, at *recorder, waits time.Duration) seen {
		t.Helper()
		body := fmt.Sprintf(`{"id":%d}`, records.Add(1))
		got := ask(t, g.addr, post(target, asJSON, body), func() {})
		if got.StatusCode != 200 || got.took > waits+slack {
			t.Fatalf("got %d %q after %v", got.StatusCode, got.body, got.took)
		}
		arrived := at.next(t)
		if arrived.body != body {
			t.Errorf("v2 read %q, want %q", arrived.body, body)
		}
		at.none(t)
		return arrived
	}
	unreachable := func(t *testing.T, g *gateway, waits time.Duration) {
		t.Helper()
		got := ask(t, g.addr, post(target, asJSON, object), func() {})
		if got.StatusCode != 502 || got.code() != "upstream_unreachable" {
			t.Errorf("got %d %q", got.StatusCode, got.body)
		}
		if got.took < waits || got.took > waits+slack {
			t.Errorf("it took %v", got.took)
		}
	}

	// The cases run side by side: some of them wait.
	var all sync.WaitGroup
	defer all.Wait()
	run := func(name string, test func(t *testing.T)) { all.Go(func() { t.Run(name, test) }) }

	run("new connections follow a new address", func(t *testing.T) {
		atOld, atNew, port := listenBoth(t)
		closing := func(conn net.Conn, nth int, _ seen) bool { return send(conn, nth < 2, answerOK) }
		before, after := startRecorderOn(t, atOld, closing), startRecorderOn(t, atNew, nil)
		names := newNameServer(t, oldAddress)
		g := start(t, names, port)
		goesWell(t, g, before, 0)
		names.set(dnsmessage.RCodeSuccess, false, newAddress)
		if arrived := goesWell(t, g, before, 0); arrived.conn != 1 {
			t.Errorf("a connection that is well was not used again")
		}
		goesWell(t, g, after, 0) // the old one has closed its connection
		before.none(t)
	})
	run("the old address dies", func(t *testing.T) {
		atOld, atNew, port := listenBoth(t)
		dead := make(chan struct{})
		before := startRecorderOn(t, atOld, func(conn net.Conn, _ int, _ seen) bool {
			send(conn, true, answerOK)
			<-dead
			atOld.Close()
			reset(conn)
			return false
		})
		after := startRecorderOn(t, atNew, nil)
		names := newNameServer(t, oldAddress)
		g := start(t, names, port)
		goesWell(t, g, before, 0)
		names.set(dnsmessage.RCodeSuccess, false, newAddress)
		close(dead)
		goesWell(t, g, after, 0)
		before.none(t)
	})
	run("one of two addresses refuses", func(t *testing.T) {
		atOld, atNew, port := listenBoth(t)
		atOld.Close()
		g := start(t, newNameServer(t, oldAddress, newAddress), port)
		goesWell(t, g, startRecorderOn(t, atNew, nil), 0)
	})
	run("one of two addresses is a black hole", func(t *testing.T) {
		atOld, atNew, port := listenBoth(t)
		t.Cleanup(func() { atOld.Close() })
		blackHole(t, atOld)
		g := start(t, newNameServer(t, oldAddress, newAddress), port)
		goesWell(t, g, startRecorderOn(t, atNew, nil), dialTimeout)
	})
	for name, tc := range map[string]struct {
		code   dnsmessage.RCode
		silent bool
		waits  time.Duration
	}{
		"no such name":                {code: dnsmessage.RCodeNameError},
		"the name server fails":       {code: dnsmessage.RCodeServerFailure},
		"the name server is silent":   {silent: true, waits: dialTimeout},
		"the name has no address now": {},
	} {
		run(name, func(t *testing.T) {
			atOld, atNew, port := listenBoth(t)
			t.Cleanup(func() { atOld.Close() })
			u := startRecorderOn(t, atNew, nil)
			names := newNameServer(t)
			names.set(tc.code, tc.silent)
			g := start(t, names, port)
			unreachable(t, g, tc.waits)
			u.none(t)
			names.set(dnsmessage.RCodeSuccess, false, newAddress)
			goesWell(t, g, u, 0)
			names.set(tc.code, tc.silent)
			if arrived := goesWell(t, g, u, 0); arrived.conn != 1 {
				t.Error("a connection that is well was not used again")
			}
		})
	}
}

// nameServer is a DNS server that knows one name's IPv4 addresses, whatever
// the name is.
type nameServer struct {
	net.PacketConn

	mu        sync.Mutex
	addresses [][4]byte
	code      dnsmessage.RCode
	silent    bool
}

func newNameServer(t testing.TB, addresses ...[4]byte) *nameServer {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &nameServer{PacketConn: conn, addresses: addresses}
	done := make(chan struct{})
	go func() {
		defer close(done)
		packet := make([]byte, 1024)
		for {
			n, from, err := conn.ReadFrom(packet)
			if err != nil {
				return
			}
			if answer := s.answer(packet[:n]); answer != nil {
				_, _ = conn.WriteTo(answer, from)
			}
		}
	}()
	t.Cleanup(func() { conn.Close(); <-done })
	return s
}

// answer is the answer to a query, nil for none.
func (s *nameServer) answer(packet []byte) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	var query dnsmessage.Message
	if s.silent || query.Unpack(packet) != nil || len(query.Questions) != 1 {
		return nil
	}
	answer := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: query.ID, Response: true, Authoritative: true, RecursionAvailable: true, RCode: s.code},
		Questions: query.Questions,
	}
	asked := query.Questions[0]
	if asked.Type == dnsmessage.TypeA && s.code == dnsmessage.RCodeSuccess {
		for _, address := range s.addresses {
			answer.Answers = append(answer.Answers, dnsmessage.Resource{
				Header: dnsmessage.ResourceHeader{Name: asked.Name, Type: asked.Type, Class: asked.Class, TTL: 60},
				Body:   &dnsmessage.AResource{A: address},
			})
		}
	}
	packed, err := answer.Pack()
	if err != nil {
		return nil
	}
	return packed
}

func (s *nameServer) set(code dnsmessage.RCode, silent bool, addresses ...[4]byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.code, s.silent, s.addresses = code, silent, addresses
}

// Two addresses of v2, both on loopback.
var oldAddress, newAddress = [4]byte{127, 0, 0, 2}, [4]byte{127, 0, 0, 3}

// listenBoth listens on one port of both addresses.
func listenBoth(t testing.TB) (atOld, atNew net.Listener, port string) {
	t.Helper()
	for range 100 {
		first, err := net.Listen("tcp", net.IP(oldAddress[:]).String()+":0")
		if err != nil {
			t.Fatal(err)
		}
		_, port, _ := net.SplitHostPort(first.Addr().String())
		second, err := net.Listen("tcp", net.JoinHostPort(net.IP(newAddress[:]).String(), port))
		if err == nil {
			return first, second, port
		}
		first.Close() // somebody has that port
	}
	t.Fatal("no port is free on both addresses")
	return nil, nil, ""
}

// withResolver builds the command as it is, and one file into it that leads
// its DNS lookups to a server of the test's.
func withResolver(t testing.TB) string {
	t.Helper()
	added, err := filepath.Abs("testdata/resolver/resolver.go")
	if err != nil {
		t.Fatal(err)
	}
	main, err := filepath.Abs("../cmd/caddy")
	if err != nil {
		t.Fatal(err)
	}
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": {filepath.Join(main, "resolver.go"): added}})
	if err != nil {
		t.Fatal(err)
	}
	return goBuild(t, "resolving", main, append([]string{"-overlay", write(t, "overlay.json", string(overlay))}, buildFlags...)...)
}
