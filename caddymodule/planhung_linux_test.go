package caddymodule

import (
	"net/http"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/td-postback/gateway/migration"
)

// hangDisk has the plan's disk not answer, until the function that it returns is called:
// the next copy of the plan is to be written into a pipe that nobody reads.
func hangDisk(t *testing.T, options *Migrate) (answer func()) {
	t.Helper()
	pipe := filepath.Join(options.Dir, planFile+".copy.new")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	answer = sync.OnceFunc(func() {
		fd, err := syscall.Open(pipe, syscall.O_RDONLY|syscall.O_NONBLOCK, 0)
		if err != nil {
			t.Error(err)
			return
		}
		t.Cleanup(func() { _ = syscall.Close(fd) })
	})
	t.Cleanup(answer)
	return answer
}

// TestPlanDiskHangs: while the plan's disk does not answer, whoever asks, however often,
// is told so within seconds, and next to nothing is left waiting. A change says what is
// true then, and a rollback holds at once.
func TestPlanDiskHangs(t *testing.T) {
	options := aPlan(t)
	options.Start = "v2"
	plan, _ := startMigration(t, options)
	answer := hangDisk(t, options)
	before := runtime.NumGoroutine()
	var wg sync.WaitGroup
	change := func(path, body, want string, match ...string) {
		wg.Go(func() {
			began := time.Now()
			got := askPlan(t, http.MethodPost, "migration/"+path, body, match...)
			if !strings.Contains(got.text, want) || time.Since(began) > 2*diskPatience {
				t.Errorf("%s: got %d %s after %s", path, got.status, got.text, time.Since(began))
			}
		})
	}
	change("share", `{"rule":"shop.orders","percent":50}`, "may hold as soon as", `"0"`)
	for end := time.Now().Add(time.Minute); healthOfPlan().Status == "ok"; {
		if time.Now().After(end) {
			t.Fatal("health says nothing")
		}
	}
	for range 20 {
		change("share", `{"rule":"shop.orders","percent":60}`, "nothing has changed", `"0"`)
		change("unset", `{"rule":"shop.orders"}`, "nothing has changed", `"0"`)
		change("undo", "", "nothing has changed", `"0"`)
		change("resume", "", "nothing has changed", `"0"`)
		change("rollback", "", "the plan's disk does not answer")
		change("rollback", `{"local":true}`, "the plan's disk does not answer")
		wg.Go(func() {
			if h := healthOfPlan(); h.Problem != "the plan's disk does not answer" {
				t.Errorf("health is %+v", h)
			}
		})
		for _, path := range []string{"migration", "migration/history"} {
			wg.Go(func() {
				if got := askPlan(t, http.MethodGet, path, ""); got.status != http.StatusServiceUnavailable || !strings.Contains(got.text, "the plan's disk does not answer") {
					t.Errorf("%s: got %d %s", path, got.status, got.text)
				}
			})
		}
	}
	wg.Wait()
	wantLane(t, plan, migration.Legacy)
	if left := runtime.NumGoroutine() - before; left > int(askings) {
		t.Errorf("%d goroutines are left waiting", left)
	}
	answer()
	for end := time.Now().Add(time.Minute); plan.get().Status().Revision != 2; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the plan is %+v", plan.get().Status())
		}
	}
	wantLane(t, plan, migration.Legacy)
}
