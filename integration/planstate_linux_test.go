package integration

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestPlanDiskFull fills the plan's disk to the last byte. What a change is told is so: it
// is made and on the disk, or nothing moves. A rollback holds, and is on the disk as soon
// as there is room.
func TestPlanDiskFull(t *testing.T) {
	t.Parallel()
	mount := tool(t, "mount", "mount")
	g := servePlan(t, "")
	g.stop()
	g.process = startWith(t, "/bin/sh", nil, ownMounts,
		"-c", mount+` --make-rprivate / && `+mount+` -t tmpfs -o size=512k tmpfs "$1" && shift && exec "$@"`, "sh", g.planDir(),
		binary, "run", "--adapter", "caddyfile", "--config", write(t, "Caddyfile", g.caddyfile))
	g.await(t, "serving initial configuration", 1)
	inside := fmt.Sprintf("/proc/%d/root%s", g.cmd.Process.Pid, g.planDir())
	filler := filepath.Join(inside, "filler")
	change(t, g.admin, "share", share("*.*", "", "100"))
	fill(t, filler)

	revision, refused := planOf(t, g.admin).Revision, false
	for n := 0; !refused; n++ { // what is free within the file is still used
		body := fmt.Sprintf(`{"rule":"db.full%d","percent":5,"note":%q}`, n, strings.Repeat("n", 500))
		status, answer, err := order(g.admin, "share", body, int(revision)) //nolint:gosec // G115: a test's few changes
		switch {
		case err == nil && status == http.StatusOK:
			revision++
		case err == nil && status == http.StatusServiceUnavailable && strings.Contains(answer, "nothing has changed"):
			refused = true
		default:
			t.Fatal(status, answer, err)
		}
		if n > 300 {
			t.Fatal("the disk is full, and changes are made")
		}
	}
	if now := planOf(t, g.admin).Revision; now != revision {
		t.Errorf("the plan has revision %d, and %d was made last", now, revision)
	}
	g.goesTo(t, "v2")
	g.says(t, words("rollback"), "Rolled back: everything goes to the legacy host", "could not be written")
	g.goesTo(t, "legacy")
	if status, problem := g.planHealth(t); status != "degraded" || !strings.Contains(problem, "cannot be written") {
		t.Errorf("health is %s: %s", status, problem)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	g.awaitPlanHealth(t, "ok")
	g.goesTo(t, "legacy")
	g.restartBeside(t, inside)
	g.goesTo(t, "legacy")
	if now := planOf(t, g.admin).Revision; now != revision+1 {
		t.Errorf("the plan has revision %d behind a restart, not %d", now, revision+1)
	}
}

// restartBeside kills a gateway, and starts another one on what it has left in a
// directory that ends with it.
func (g *planned) restartBeside(t *testing.T, inside string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "plan")
	if err := os.CopyFS(dir, os.DirFS(inside)); err != nil {
		t.Fatal(err)
	}
	kill(g.process)
	g.caddyfile = strings.ReplaceAll(g.caddyfile, "dir "+g.planDir(), "dir "+dir)
	g.gateway = serveCaddyfile(t, g.addr, g.caddyfile)
}
