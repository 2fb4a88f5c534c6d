package integration

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"
)

// This file has a plan whose disk is read-only, or does not answer.

// TestMigrateReadOnly: where the plan's directory is read-only, the plan in it counts, a
// share is refused, and a rollback holds and says what a restart would do.
func TestMigrateReadOnly(t *testing.T) {
	t.Parallel()
	mount := tool(t, "mount", "mount")
	g := servePlan(t, "")
	g.says(t, words("share *.* 100"), "Revision 1")
	g.stop()
	dir := g.planDir()
	g.process = startWith(t, "/bin/sh", nil, ownMounts,
		"-c", mount+` --make-rprivate / && `+mount+` --bind "$1" "$1" && `+mount+` -o remount,bind,ro "$1" && shift && exec "$@"`, "sh", dir,
		binary, "run", "--adapter", "caddyfile", "--config", write(t, "Caddyfile", g.caddyfile))
	g.await(t, "serving initial configuration", 1)
	g.says(t, words("status"), "Revision 1", "Degraded: the plan's file", "read-only file system")
	g.checkUnwritable(t, "revision 1, with these shares to v2: *.* 100 %")
	g.says(t, words("status"), "Revision 2", "It is rolled back, by ")
	g.restart(t) // where it can be written
	g.goesTo(t, "v2")
	g.says(t, words("status"), "Revision 1. The last change: share")
}

// TestMigrateHungDisk: while the plan's disk does not answer, events go on, a rollback
// holds and is told, and health, status and other changes say what is wrong. When it
// answers, what was being written is.
func TestMigrateHungDisk(t *testing.T) {
	t.Parallel()
	disk := mountForgetful(t)
	g := servePlanIn(t, disk.dir, "start v2")
	g.goesTo(t, "v2")
	disk.mu.Lock()
	unlock := sync.OnceFunc(disk.mu.Unlock)
	t.Cleanup(unlock)
	shared := make(chan string)
	go func() {
		output, _ := migrateAt(t, g.admin, words("share db.tbl 100")...)
		shared <- output
	}()
	g.awaitHung(t)
	g.goesTo(t, "v2")
	awaitPage(t, g.addr, "/console", "Its disk does not answer.")
	g.presses(t, url.Values{"do": {"share"}, "base": {"0"}, "rule": {"db.tbl"}, "percent": {"50"}}, "Not done.", "The plan&#39;s disk does not answer")
	g.presses(t, url.Values{"do": {"rollback"}, "note": {"hung"}}, "Done, but look.", "It is not safe yet", "Rolled back")
	g.says(t, words("rollback"), "Rolled back: everything goes to the legacy host", "Not safe yet: the rollback is in force, but the plan's disk does not answer")
	g.goesTo(t, "legacy")
	var both sync.WaitGroup // each waits for as long as a command does
	for _, asks := range []string{"status", "share db.tbl 50 --dry-run"} {
		both.Go(func() { refuses(t, g.admin, words(asks), "the plan's disk does not answer") })
	}
	both.Wait()
	if output := <-shared; !strings.Contains(output, "may hold as soon as the disk answers") {
		t.Errorf("the share: %s", output)
	}
	unlock()
	g.goesTo(t, "legacy")
	g.says(t, words("status"), "Revision 2", "It is rolled back, by ")
	g.restart(t)
	g.goesTo(t, "legacy")
	g.says(t, words("undo"), "db.tbl: taken away")
}

// awaitHung waits until health says that the disk does not answer.
func (g *planned) awaitHung(t *testing.T) {
	t.Helper()
	for end := time.Now().Add(patience); ; {
		var health struct {
			Status string
			Plan   struct{ Problem string }
		}
		status := askAdmin(t, http.MethodGet, g.admin, "health", &health)
		if status == http.StatusOK && health.Status == "degraded" && health.Plan.Problem == "the plan's disk does not answer" {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("health is %d %+v", status, health)
		}
	}
}

// TestManyAskOfAHungDisk: while the plan's disk does not answer, whoever asks, however
// often, is told so within seconds, and next to nothing is left waiting in the gateway.
func TestManyAskOfAHungDisk(t *testing.T) {
	t.Parallel()
	disk := mountForgetful(t)
	g := servePlanIn(t, disk.dir, "start v2")
	g.goesTo(t, "v2")
	disk.mu.Lock()
	unlock := sync.OnceFunc(disk.mu.Unlock)
	t.Cleanup(unlock)
	const slow, refused = "the plan's disk does not answer", "nothing has changed"
	g.isTold(t, http.MethodPost, "migration/share", `{"rule":"shop.orders","percent":50}`, "may hold as soon as")
	g.awaitHung(t)
	g.isTold(t, http.MethodPost, "migration/rollback", "", slow) // which waited for none before it
	before := g.goroutines(t)
	var all sync.WaitGroup
	for range 20 {
		for _, asked := range [][4]string{
			{http.MethodPost, "migration/share", `{"rule":"shop.orders","percent":60}`, refused},
			{http.MethodPost, "migration/unset", `{"rule":"shop.orders"}`, refused},
			{http.MethodPost, "migration/undo", "", refused},
			{http.MethodPost, "migration/resume", "", refused},
			{http.MethodPost, "migration/rollback", "", slow},
			{http.MethodPost, "migration/rollback", `{"local":true}`, slow},
			{http.MethodGet, "migration", "", slow},
			{http.MethodGet, "migration/history", "", slow},
			{http.MethodGet, "health", "", slow},
		} {
			all.Go(func() { g.isTold(t, asked[0], asked[1], asked[2], asked[3]) })
		}
	}
	all.Wait()
	g.goesTo(t, "legacy")
	http.DefaultClient.CloseIdleConnections() // each has goroutines in the gateway
	const kinds = 5                           // of questions: one of each may wait
	for end := time.Now().Add(patience); g.goroutines(t) > before+kinds; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d goroutines are left, there were %d", g.goroutines(t), before)
		}
	}
	unlock()
	g.says(t, words("status"), "Revision 2", "It is rolled back, by ")
}

// isTold asks the admin API of a gateway whose plan's disk does not answer. A change is
// based on a plan that nobody has made.
func (g *planned) isTold(t *testing.T, method, path, body, want string) {
	t.Helper()
	req, err := http.NewRequest(method, "http://"+g.admin+"/td_postback/"+path, strings.NewReader(body))
	if err != nil {
		t.Error(err)
		return
	}
	if method == http.MethodPost && path != "migration/rollback" {
		req.Header.Set("If-Match", `"0"`)
	}
	began := time.Now()
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Error(err)
		return
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if took := time.Since(began); err != nil || !strings.Contains(string(text), want) || took > 10*time.Second {
		t.Errorf("%s: got %d %s, %v, after %s", path, resp.StatusCode, text, err, took)
	}
}

// goroutines is how many the gateway has.
func (g *planned) goroutines(t *testing.T) (n int) {
	t.Helper()
	resp, err := http.Get("http://" + g.admin + "/debug/pprof/goroutine?debug=1")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := fmt.Fscanf(resp.Body, "goroutine profile: total %d", &n); err != nil {
		t.Fatal(err)
	}
	return n
}
