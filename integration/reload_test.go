package integration

import (
	"bytes"
	"fmt"
	"io"
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

func newArrivals(t *testing.T) *arrivals {
	a := &arrivals{}
	a.Server = httptest.NewUnstartedServer(&sandbox.Sandbox{Received: func(r sandbox.Record) {
		n, _ := a.times.LoadOrStore(string(r.Body), new(atomic.Int32))
		n.(*atomic.Int32).Add(1)
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

// callers send records, numbered, until they are told to stop.
type callers struct {
	sent atomic.Int32
	stop chan struct{}
	all  sync.WaitGroup
}

// startCallers has n callers send records over the client. Each answer must be
// a 200 for a record that has arrived once.
func startCallers(t *testing.T, n int, client *http.Client, url string, v2 *arrivals) *callers {
	c := &callers{stop: make(chan struct{})}
	for caller := range n {
		c.all.Go(func() {
			for n := 0; !t.Failed(); n++ {
				select {
				case <-c.stop:
					return
				default:
				}
				body := `{"id":"` + strconv.Itoa(caller) + "-" + strconv.Itoa(n) + `"}`
				resp, err := client.Post(url, "application/json", strings.NewReader(body))
				if err != nil {
					t.Errorf("caller %d, record %d: %v", caller, n, err)
					return
				}
				answer, err := io.ReadAll(resp.Body)
				_ = resp.Body.Close()
				if err != nil || resp.StatusCode != http.StatusOK || !v2.once(body) {
					t.Errorf("caller %d, record %d: %s %s %v, once at v2: %t", caller, n, resp.Status, answer, err, v2.once(body))
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

// TestReloadAndRestartUnderLoad reloads the configuration 20 times while
// callers send, and then replaces the whole process. It has its listening
// socket from outside, as from systemd, so that no connection meets a closed
// one: no request fails, over a new connection each or over kept ones.
func TestReloadAndRestartUnderLoad(t *testing.T) {
	t.Parallel()
	t.Run("a connection per request", func(t *testing.T) {
		t.Parallel()
		reloadAndRestart(t, &http.Transport{DisableKeepAlives: true})
	})
	t.Run("kept connections", func(t *testing.T) {
		t.Parallel()
		reloadAndRestart(t, &http.Transport{MaxIdleConnsPerHost: 8})
	})
}

func reloadAndRestart(t *testing.T, transport *http.Transport) {
	const concurrent, reloads = 8, 20
	v2 := newArrivals(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	socket, err := listener.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	admin := freeAddr(t)
	config := func(n int) string {
		return fmt.Sprintf("{\n%s\n}\nhttp:// {\n bind fd/3\n td_postback {\n upstream %s\n max_conns %d\n}\n}\n",
			strings.Replace(withAdmin(admin), "default_bind 127.0.0.1", "servers {\n listener_wrappers {\n td_handover\n}\n}", 1), v2.URL, 100+n)
	}
	run := func() *process {
		p := startWith(t, binary, nil, func(cmd *exec.Cmd) { cmd.ExtraFiles = []*os.File{socket} },
			"run", "--adapter", "caddyfile", "--config", write(t, "Caddyfile", config(0)))
		p.await(t, "serving initial configuration", 1)
		return p
	}
	old := run()

	client := &http.Client{Timeout: patience, Transport: transport}
	defer transport.CloseIdleConnections()
	callers := startCallers(t, concurrent, client, "http://"+listener.Addr().String()+target, v2)
	callers.await(t, 100)
	goroutines := goroutinesOf(t, admin)
	for n := range reloads {
		callers.await(t, 50) // by every configuration
		resp, err := http.Post("http://"+admin+"/load", "text/caddyfile", bytes.NewBufferString(config(n+1)))
		if err != nil {
			t.Fatal(err)
		}
		problem, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Fatalf("reload: %s %s", resp.Status, problem)
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
	run()
	callers.await(t, 100)
	close(callers.stop)
	callers.all.Wait()
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
