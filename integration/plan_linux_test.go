package integration

import (
	"testing"
)

// This file has a plan whose disk is read-only.

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
