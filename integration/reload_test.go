package integration

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/td-postback/gateway/sandbox"
)

// arrivals counts what arrives at v2, by body, and v2's open connections.
type arrivals struct {
	*httptest.Server
	times sync.Map // body -> *atomic.Int32
	open  atomic.Int32
}

// newArrivals starts a v2 that takes up to 50 ms for an answer.
func newArrivals(t *testing.T) *arrivals {
	a := &arrivals{}
	a.Server = httptest.NewUnstartedServer(&sandbox.Sandbox{Received: func(r sandbox.Record) {
		n, _ := a.times.LoadOrStore(string(r.Body), new(atomic.Int32))
		n.(*atomic.Int32).Add(1)
		time.Sleep(rand.N(50 * time.Millisecond)) //nolint:gosec // a test's dice
	}})
	a.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		switch state { //nolint:exhaustive // the other states do not change the number
		case http.StateNew:
			a.open.Add(1)
		case http.StateClosed:
			a.open.Add(-1)
		}
	}
	a.Start()
	t.Cleanup(a.Close)
	return a
}

// once reports whether a record arrived exactly once.
func (a *arrivals) once(body string) bool {
	n, ok := a.times.Load(body)
	return ok && n.(*atomic.Int32).Load() == 1
}

// singleCaller returns a caller that connects for each record.
func singleCaller(addr string) func(body string) error {
	return func(body string) error {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			return err
		}
		defer conn.Close()
		_, err = deliver(conn, bufio.NewReader(conn), post(target, asJSON+"Connection: close\r\n", body))
		return err
	}
}

// keptCaller returns a caller that keeps its connection for as long as the
// gateway lets it, pauses after each answer, and sends no record again.
func keptCaller(addr string) func(body string) error {
	var conn net.Conn
	var br *bufio.Reader
	return func(body string) error {
		if conn == nil {
			var err error
			if conn, err = net.Dial("tcp", addr); err != nil {
				return err
			}
			br = bufio.NewReader(conn)
		}
		last, err := deliver(conn, br, post(target, asJSON, body))
		if err != nil || last {
			_ = conn.Close()
			conn = nil
		}
		time.Sleep(20 * time.Millisecond) // as a network would
		return err
	}
}

// deliver sends a request and reads the answer, which must be v2's. last is
// true if it is the connection's last one.
func deliver(conn net.Conn, br *bufio.Reader, request string) (last bool, err error) {
	_ = conn.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(conn, request); err != nil {
		return true, err
	}
	resp, err := http.ReadResponse(br, nil)
	if err != nil {
		return true, err
	}
	defer resp.Body.Close()
	if answer, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusOK || string(answer) != "{}" {
		return true, fmt.Errorf("%s %q %w", resp.Status, answer, err)
	}
	return resp.Close, nil
}

// callers send records, numbered, until they are told to stop.
type callers struct {
	sent atomic.Int32
	stop func()
}

// startCallers has n callers send records. Each answer must be a 200 for a
// record that has arrived once.
func startCallers(t *testing.T, n int, newCaller func() func(string) error, v2 *arrivals) *callers {
	c := &callers{}
	stopping := make(chan struct{})
	var all sync.WaitGroup
	c.stop = sync.OnceFunc(func() { close(stopping); all.Wait() })
	t.Cleanup(c.stop)
	for caller := range n {
		call := newCaller()
		all.Go(func() {
			for n := 0; !t.Failed(); n++ {
				select {
				case <-stopping:
					return
				default:
				}
				body := `{"id":"` + strconv.Itoa(caller) + "-" + strconv.Itoa(n) + `"}`
				if err := call(body); err != nil || !v2.once(body) {
					t.Errorf("caller %d, record %d: %v, once at v2: %t", caller, n, err, v2.once(body))
					return
				}
				c.sent.Add(1)
			}
		})
	}
	return c
}

// await waits until n more records have been sent.
func (c *callers) await(t *testing.T, n int32) {
	t.Helper()
	before, end := c.sent.Load(), time.Now().Add(patience)
	for c.sent.Load() < before+n && !t.Failed() {
		if time.Now().After(end) {
			t.Fatal("no records are sent any more")
		}
		time.Sleep(time.Millisecond)
	}
}

// socketCaddyfile is a configuration with this site, on a socket from outside.
func socketCaddyfile(admin, site string) string {
	return fmt.Sprintf("{\n%s\n}\nhttp:// {\n bind fd/3\n%s\n}\n", handoverGlobals(admin), site)
}

// reload loads a configuration, as "caddy reload" does.
func reload(t *testing.T, admin, config string) (status int, problem string) {
	t.Helper()
	resp, err := http.Post("http://"+admin+"/load", "text/caddyfile", strings.NewReader(config))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

// outsideSocket is a listening socket for a process that is started with it, as
// systemd would.
func outsideSocket(t *testing.T) (addr string, socket *os.File) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	if socket, err = listener.(*net.TCPListener).File(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = socket.Close() })
	return listener.Addr().String(), socket
}

// startOn starts a gateway with sockets as its files 3 and following.
func startOn(t *testing.T, config string, sockets ...*os.File) *process {
	t.Helper()
	p := startWith(t, binary, nil, func(cmd *exec.Cmd) { cmd.ExtraFiles = sockets },
		"run", "--adapter", "caddyfile", "--config", write(t, "Caddyfile", config))
	p.await(t, "serving initial configuration", 1)
	return p
}

// handoverGlobals are global options for outside sockets.
func handoverGlobals(admin string) string {
	return strings.Replace(withAdmin(admin), "default_bind 127.0.0.1", "servers {\n protocols h1 h2\n listener_wrappers {\n td_handover\n}\n}", 1)
}

// TestReloadAndRestartUnderLoad reloads the configuration 20 times while
// callers send, and then replaces the whole process. It has its listening
// socket from outside, so that no connection meets a closed one: no request
// fails, over a new connection each or over kept ones.
func TestReloadAndRestartUnderLoad(t *testing.T) {
	t.Parallel()
	for name, caller := range map[string]func(addr string) func(string) error{
		"a connection per request": singleCaller,
		"kept connections":         keptCaller,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			reloadAndRestart(t, caller)
		})
	}
}

func reloadAndRestart(t *testing.T, newCaller func(addr string) func(string) error) {
	const concurrent, reloads = 16, 20
	v2 := newArrivals(t)
	addr, socket := outsideSocket(t)
	admin := freeAddr(t)
	config := func(n int) string {
		return socketCaddyfile(admin, fmt.Sprintf("td_postback {\n upstream %s\n max_conns %d\n}", v2.URL, 100+n))
	}
	old := startOn(t, config(0), socket)

	callers := startCallers(t, concurrent, func() func(string) error { return newCaller(addr) }, v2)
	callers.await(t, 100)
	goroutines := goroutinesOf(t, admin)
	for n := range reloads {
		callers.await(t, 50) // by every configuration
		if status, problem := reload(t, admin, config(n+1)); status != http.StatusOK {
			t.Fatalf("reload: %d %s", status, problem)
		}
	}
	callers.await(t, 50)
	// Each caller needs one connection and a few goroutines; what the other 20
	// configurations had is gone, or will be as soon as their last request is.
	for end := time.Now().Add(patience); v2.open.Load() > concurrent || goroutinesOf(t, admin) > goroutines+concurrent*4; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d connections to v2 for %d callers; %d goroutines, before %d", v2.open.Load(), concurrent, goroutinesOf(t, admin), goroutines)
		}
	}

	_ = old.cmd.Process.Signal(syscall.SIGTERM)
	<-old.exited
	startOn(t, config(0), socket)
	callers.await(t, 100)
	callers.stop()
	t.Logf("%d records", callers.sent.Load())
}

// goroutinesOf is how many goroutines the gateway has.
func goroutinesOf(t *testing.T, admin string) (n int) {
	t.Helper()
	resp, err := http.Get("http://" + admin + "/debug/pprof/goroutine?debug=1")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := fmt.Fscanf(resp.Body, "goroutine profile: total %d", &n); err != nil {
		t.Fatal(err)
	}
	return n
}
