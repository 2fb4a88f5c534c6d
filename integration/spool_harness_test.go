package integration

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// This file is what the tests of the spool share: a v2 that can be away, and a
// gateway that keeps records meanwhile.

const (
	// spoolKey is the key of all records for a spool. No log, answer or
	// command may show it.
	spoolKey = "1234/" + spoolSecret

	spoolSecret = "c0ffee5ec2e7"

	spoolTarget = event + "?td_write_key=" + spoolKey

	// spoolText is in the body of records, and may be in no log either.
	spoolText = "confidential"
)

// fickle is a v2 that takes records only as long as the test wants it to.
type fickle struct {
	net.Listener
	away  atomic.Pointer[func(conn net.Conn) bool] // what it does instead of taking a record; nil: it takes it
	conns atomic.Int32                             // connections so far

	mu      sync.Mutex
	changed *sync.Cond
	taken   []take
	times   map[string]int // how often it took a record, by ID
}

// take is a request that v2 has answered with 200.
type take struct {
	seen
	id string
	at time.Time
}

// newFickle starts a v2 that takes records.
func newFickle(t testing.TB) *fickle {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	v2 := newFickleOn(l)
	v2.serve(t)
	return v2
}

// newFickleOn makes a v2 that does not accept connections yet.
func newFickleOn(l net.Listener) *fickle {
	v2 := &fickle{Listener: l, times: map[string]int{}}
	v2.changed = sync.NewCond(&v2.mu)
	return v2
}

func (v2 *fickle) serve(t testing.TB) { acceptAll(t, v2.Listener, v2.handle) }

func (v2 *fickle) handle(conn net.Conn, _ int) {
	v2.conns.Add(1)
	for br := bufio.NewReader(conn); ; {
		request, err := readExact(br)
		if err != nil {
			return
		}
		answer := func(conn net.Conn) bool {
			v2.take(request)
			return send(conn, true, ok)
		}
		if away := v2.away.Load(); away != nil {
			answer = *away
		}
		if !answer(conn) {
			return
		}
	}
}

func (v2 *fickle) take(request seen) {
	id := idOf(request.body)
	v2.mu.Lock()
	defer v2.mu.Unlock()
	v2.taken = append(v2.taken, take{request, id, time.Now()})
	v2.times[id]++
	v2.changed.Broadcast()
}

// idOf is the ID in a body.
func idOf(body string) string {
	_, id, _ := strings.Cut(body, `"id":"`)
	id, _, _ = strings.Cut(id, `"`)
	return id
}

// goAway has v2 do something else than take records; comeBack undoes that.
func (v2 *fickle) goAway(answer func(conn net.Conn) bool) { v2.away.Store(&answer) }
func (v2 *fickle) comeBack()                              { v2.away.Store(nil) }

// The ways in which v2 is away.
func closes(net.Conn) bool { return false }

func hangs(conn net.Conn) bool {
	_, _ = conn.Read(make([]byte, 1)) // until the gateway gives up
	return false
}

func answers(status, header string) func(net.Conn) bool {
	return func(conn net.Conn) bool {
		return send(conn, true, "HTTP/1.1 "+status+" X\r\n"+header+"Content-Length: 13\r\n\r\n"+`{"error":"x"}`)
	}
}

func (v2 *fickle) url() string { return "http://" + v2.Addr().String() }

// await waits until v2 has taken these records.
func (v2 *fickle) await(t testing.TB, ids ...string) {
	t.Helper()
	v2.awaitUntil(t, func() bool {
		return !slices.ContainsFunc(ids, func(id string) bool { return v2.times[id] == 0 })
	}, func() string {
		missing := slices.DeleteFunc(slices.Clone(ids), func(id string) bool { return v2.times[id] > 0 })
		return fmt.Sprintf("%d of %d records are missing at v2, %q", len(missing), len(ids), missing[:min(10, len(missing))])
	})
}

// awaitUntil waits until done, which is called with v2.mu held.
func (v2 *fickle) awaitUntil(t testing.TB, done func() bool, problem func() string) {
	t.Helper()
	deadline := time.Now().Add(patience)
	timer := time.AfterFunc(patience, func() { v2.mu.Lock(); v2.changed.Broadcast(); v2.mu.Unlock() })
	defer timer.Stop()
	v2.mu.Lock()
	defer v2.mu.Unlock()
	for !done() {
		if time.Now().After(deadline) {
			t.Fatal(problem())
		}
		v2.changed.Wait()
	}
}

// all is what v2 has taken so far.
func (v2 *fickle) all() []take {
	v2.mu.Lock()
	defer v2.mu.Unlock()
	return slices.Clone(v2.taken)
}

// find returns the requests that v2 has taken with this ID.
func (v2 *fickle) find(id string) []take {
	return slices.DeleteFunc(v2.all(), func(r take) bool { return r.id != id })
}

// unreachable is an address that refuses connections until the test listens on
// it. Nobody else can have it meanwhile.
func unreachable(t testing.TB) (addr string, listen func() net.Listener) {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	socket := os.NewFile(uintptr(fd), "v2")
	t.Cleanup(func() { socket.Close() })
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	bound, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("127.0.0.1:%d", bound.(*syscall.SockaddrInet4).Port), func() net.Listener {
		t.Helper()
		if err := syscall.Listen(fd, 100); err != nil {
			t.Fatal(err)
		}
		l, err := net.FileListener(socket)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
}

// spooling is a gateway with a spool.
type spooling struct {
	*gateway
	admin, dir string
	caddyfile  string
}

// spoolBlock is a block with a spool; options are the block's, spool the
// spool's.
func spoolBlock(upstream, dir, options, spool string) string {
	return fmt.Sprintf("td_postback {\n upstream %s\n retries 0\n %s\n spool {\n  dir %s\n  %s\n }\n}", upstream, options, dir, spool)
}

// serveSpool runs a gateway with a spool of its own.
func serveSpool(t testing.TB, upstream, options, spool string) *spooling {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "spool")
	return serveSpoolSite(t, dir, spoolBlock(upstream, dir, options, spool))
}

// serveSpoolSite runs a gateway with this site, which has a spool in dir.
func serveSpoolSite(t testing.TB, dir, site string) *spooling {
	t.Helper()
	addr, admin := freeAddr(t), freeAddr(t)
	_, port, _ := net.SplitHostPort(addr)
	g := &spooling{admin: admin, dir: dir, caddyfile: spoolCaddyfile(admin, port, site)}
	g.gateway = serveCaddyfile(t, addr, g.caddyfile)
	saysNoSecret(t, g.process)
	return g
}

func spoolCaddyfile(admin, port, site string) string {
	return fmt.Sprintf("{\n%s\n}\nhttp://:%s {\n%s\n}\n", withAdmin(admin), port, site)
}

// saysNoSecret checks at the end of the test that a process has written no key
// and no body.
func saysNoSecret(t testing.TB, p *process) {
	t.Cleanup(func() {
		p.stop()
		for line := range strings.SplitSeq(p.text(), "\n") {
			if strings.Contains(line, spoolSecret) || strings.Contains(line, spoolText) {
				t.Errorf("a key or a body is in %s", line)
			}
		}
	})
}

// spoolState is what the admin API says of a spool.
type spoolState struct {
	Spool     string
	Available bool
	Bytes     int64
	MaxBytes  int64 `json:"max_bytes"`
	Queues    []struct {
		Name          string
		Records, Dead int
		Oldest        *time.Time
		Down          bool `json:"upstream_down"`
	}
}

// records is how many are to be delivered, of all queues.
func (s spoolState) records() (n int) {
	for _, q := range s.Queues {
		n += q.Records
	}
	return n
}

func (s spoolState) dead() (n int) {
	for _, q := range s.Queues {
		n += q.Dead
	}
	return n
}

// ask asks the admin API and decodes its answer into value.
func askAdmin(t testing.TB, method, admin, path string, value any) int {
	t.Helper()
	req, err := http.NewRequest(method, "http://"+admin+"/td_postback/"+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(text), spoolSecret) {
		t.Errorf("%s %s shows the key: %s", method, path, text)
	}
	if value != nil {
		if err := json.Unmarshal(text, value); err != nil {
			t.Fatalf("%s %s: %v in %s", method, path, err, text)
		}
	}
	return resp.StatusCode
}

// state is the gateway's only spool.
func (g *spooling) state(t testing.TB) spoolState {
	t.Helper()
	var all []spoolState
	if status := askAdmin(t, http.MethodGet, g.admin, "spool", &all); status != http.StatusOK || len(all) != 1 {
		t.Fatalf("got %d, %d spools", status, len(all))
	}
	return all[0]
}

// health is what the gateway says of itself.
func (g *spooling) health(t testing.TB) (health string, status int) {
	t.Helper()
	var answer struct {
		Status string
		Spools map[string]string
	}
	status = askAdmin(t, http.MethodGet, g.admin, "health", &answer)
	if answer.Spools[g.dir] != answer.Status {
		t.Errorf("health: %+v", answer)
	}
	return answer.Status, status
}

// awaitState waits until the spool is as it is to be.
func (g *spooling) awaitState(t testing.TB, is func(s *spoolState) bool) spoolState {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		s := g.state(t)
		if is(&s) {
			return s
		}
		if time.Now().After(end) {
			t.Fatalf("the spool stays as it is: %+v", s)
		}
	}
}

// awaitHealth waits until the gateway is well again: files go a little later
// than records.
func (g *spooling) awaitHealth(t testing.TB, want string) {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		health, _ := g.health(t)
		if health == want {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("health stays %s: %+v", health, g.state(t))
		}
	}
}

// awaitEmpty waits until all is delivered.
func (g *spooling) awaitEmpty(t testing.TB) {
	t.Helper()
	g.awaitState(t, func(s *spoolState) bool { return s.Available && s.records() == 0 })
}

// isTaken checks that a caller was answered as if v2 had taken its record.
func isTaken(t testing.TB, answer reply) {
	t.Helper()
	if answer.StatusCode != 200 || answer.body != "{}" || answer.Header.Get("Content-Type") != "application/json" {
		t.Errorf("got %d %q %q", answer.StatusCode, answer.Header.Get("Content-Type"), answer.body)
	}
}

// isUnkept checks that a caller was told to send its record again.
func isUnkept(t testing.TB, answer reply, code string) {
	t.Helper()
	if answer.StatusCode != 503 || answer.code() != code || answer.Header.Get("Retry-After") == "" ||
		answer.Header.Get("Content-Type") != "application/json" || !json.Valid([]byte(answer.body)) {
		t.Errorf("got %d %q %q", answer.StatusCode, answer.Header, answer.body)
	}
}

// withID is a record with an ID.
func withID(id string) string {
	return `{"id":"` + id + `","text":"` + spoolText + `"}`
}
