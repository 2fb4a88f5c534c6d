package integration

import (
	"net/http"
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
	g.says(t, words("rollback"), "Rolled back: everything goes to the legacy host", "Not safe yet: the rollback is in force, but the plan's disk does not answer")
	g.goesTo(t, "legacy")
	refuses(t, g.admin, words("status"), "the plan's disk does not answer")
	refuses(t, g.admin, words("share db.tbl 50 --dry-run"), "the plan's disk does not answer")
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
