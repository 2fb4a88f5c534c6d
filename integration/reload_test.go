package integration

import (
	"fmt"
	"net/http"
	"syscall"
	"testing"
	"time"
)

// TestReloadAndRestartUnderLoad reloads the configuration 20 times while
// callers send, and then replaces the whole process. It has its listening
// socket from outside, so that no connection meets a closed one: no request
// fails, over a new connection each or over kept ones. On kept ones, callers have 200 ms
// to learn that their connection ends; a caller that the machine holds up for longer
// than half of that comes back on a new one.
func TestReloadAndRestartUnderLoad(t *testing.T) {
	t.Parallel()
	for name, like := range map[string]caller{
		"a connection per request": {target: target, headers: "Connection: close\r\n"},
		"kept connections":         {target: target, pause: 20 * time.Millisecond, keep: 100 * time.Millisecond}, // as a network would
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			reloadAndRestart(t, like)
		})
	}
}

func reloadAndRestart(t *testing.T, like caller) {
	const concurrent, reloads = 16, 20
	v2 := startArrivals(t)
	addr, socket := outsideSocket(t)
	admin := freeAddr(t)
	config := func(n int) string {
		return socketCaddyfile(admin, fmt.Sprintf("td_postback {\n upstream %s\n max_conns %d\n}", v2.URL, 100+n))
	}
	old := startOn(t, config(0), socket)

	like.addr = addr
	callers := startCallers(t, concurrent, like, v2)
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
	end := time.Now().Add(patience)
	for ; v2.open.Load() > concurrent || goroutinesOf(t, admin) > goroutines+concurrent*4; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d connections to v2 for %d callers; %d goroutines, before %d",
				v2.open.Load(), concurrent, goroutinesOf(t, admin), goroutines)
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
