package integration

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// planHealth is what the gateway says of its plan.
func (g *planned) planHealth(t *testing.T) (status, problem string) {
	t.Helper()
	var health struct {
		Status string
		Plan   struct{ Status, Problem string }
	}
	if code := askAdmin(t, http.MethodGet, g.admin, "health", &health); code != http.StatusOK || health.Status != health.Plan.Status {
		t.Errorf("got %d %+v", code, health)
	}
	return health.Plan.Status, health.Plan.Problem
}

// awaitPlanHealth waits until the gateway has tried again what it could not do.
func (g *planned) awaitPlanHealth(t *testing.T, want string) {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		status, problem := g.planHealth(t)
		if status == want {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("the plan stays %s: %s", status, problem)
		}
	}
}

// TestPlanDamage starts a gateway whose plan's file, or the copy of it, is not what was
// left there. It always starts. The last good plan counts, else the start, and health
// says so until somebody changes the plan.
func TestPlanDamage(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name   string
		damage func(d planFiles)
		lane   string
		says   string // health is degraded, and says this; it is ok if this is empty
	}{
		{"cut", func(d planFiles) { d.edit(d.file, func(b []byte) []byte { return b[:len(b)/2] }) }, "v2", "the last good copy counts"},
		{"cut within the first page", func(d planFiles) { d.edit(d.file, func(b []byte) []byte { return b[:100] }) }, "v2", "the last good copy counts"},
		{"empty", func(d planFiles) { d.edit(d.file, func([]byte) []byte { return nil }) }, "v2", "the last good copy counts"},
		{"gone", func(d planFiles) { d.remove(d.file) }, "v2", "the last good copy counts"},
		{"flipped", func(d planFiles) { d.edit(d.file, flipped) }, "v2", "the last good copy counts"},
		{"another file", func(d planFiles) { d.edit(d.file, func([]byte) []byte { return []byte("no plan\n") }) }, "v2", "the last good copy counts"},
		{"a directory", func(d planFiles) { d.remove(d.file); d.make(d.file) }, "v2", "the last good copy counts"},
		{"older", func(d planFiles) { d.edit(d.file, func([]byte) []byte { return d.older }) }, "v2", "which is older than its copy: the copy counts"},
		{"no copy", func(d planFiles) { d.remove(d.copied) }, "v2", ""},
		{"the copy flipped", func(d planFiles) { d.edit(d.copied, flipped) }, "v2", ""},
		{"the copy older", func(d planFiles) { d.edit(d.copied, func([]byte) []byte { return d.olderCopy }) }, "v2", ""},
		{"both flipped", func(d planFiles) { d.edit(d.file, flipped); d.edit(d.copied, flipped) }, "legacy", "the start counts"},
		{"both cut", func(d planFiles) {
			d.edit(d.file, func(b []byte) []byte { return b[:len(b)/2] })
			d.edit(d.copied, func(b []byte) []byte { return b[:len(b)/2] })
		}, "legacy", "the start counts"},
		{"flipped, the copy older", func(d planFiles) {
			d.edit(d.file, flipped)
			d.edit(d.copied, func([]byte) []byte { return d.olderCopy })
		}, "legacy", "the last good copy counts"},
		{"both gone", func(d planFiles) { d.remove(d.file); d.remove(d.copied) }, "legacy", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			g := servePlan(t, "")
			d := planFiles{T: t, file: filepath.Join(g.planDir(), "plan.db"), copied: filepath.Join(g.planDir(), "plan.db.copy")}
			change(t, g.admin, "share", share("db.tbl", "", "0"))
			g.stop()
			d.older, d.olderCopy = d.read(d.file), d.read(d.copied)
			g.restart(t)
			change(t, g.admin, "share", share("db.tbl", "", "100"))
			g.stop()
			tc.damage(d)
			g.restart(t)
			g.goesTo(t, tc.lane)
			status, problem := g.planHealth(t)
			if wanted := map[bool]string{true: "ok", false: "degraded"}[tc.says == ""]; status != wanted || !strings.Contains(problem, tc.says) {
				t.Errorf("health is %s: %s", status, problem)
			}
			if tc.name == "a directory" { // it is seen to first
				d.remove(d.file)
				g.awaitPlanWrite(t)
			}
			change(t, g.admin, "share", share("db.tbl", "1234", "100"))
			if status, problem := g.planHealth(t); status != "ok" {
				t.Errorf("health is %s behind a change: %s", status, problem)
			}
			g.restart(t)
			g.goesTo(t, "v2")
			if status, problem := g.planHealth(t); status != "ok" {
				t.Errorf("health is %s behind a restart: %s", status, problem)
			}
		})
	}
}

// awaitPlanWrite waits until the plan can be changed, and takes the change back.
func (g *planned) awaitPlanWrite(t *testing.T) {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		base := int(planOf(t, g.admin).Revision) //nolint:gosec // G115: a test's few changes
		status, answer, err := order(g.admin, "share", share("db.other", "", "5"), base)
		if err == nil && status == http.StatusOK {
			return
		}
		if time.Now().After(end) {
			t.Fatal(status, answer, err)
		}
	}
}

// planFiles is what a plan is kept in, and what that was one revision before.
type planFiles struct {
	*testing.T
	file, copied     string
	older, olderCopy []byte
}

func (d planFiles) read(path string) []byte {
	content, err := os.ReadFile(path) //nolint:gosec // G304: the test's own
	if err != nil {
		d.Fatal(err)
	}
	return content
}

func (d planFiles) edit(path string, to func([]byte) []byte) {
	if err := os.WriteFile(path, to(d.read(path)), 0o600); err != nil {
		d.Fatal(err)
	}
}

func (d planFiles) remove(path string) {
	if err := os.Remove(path); err != nil {
		d.Fatal(err)
	}
}

func (d planFiles) make(path string) {
	if err := os.Mkdir(path, 0o700); err != nil {
		d.Fatal(err)
	}
}

// flipped has a bit of every 16th byte flipped.
func flipped(content []byte) []byte {
	for i := 7; i < len(content); i += 16 {
		content[i] ^= 4
	}
	return content
}

// TestPlanTwoProcesses starts a second gateway on the plan of a first one. It starts, goes
// by what the first one has left last, and changes nothing there. Its rollback holds, is
// in the file when the first one has ended, and outlives it.
func TestPlanTwoProcesses(t *testing.T) {
	t.Parallel()
	first, second := servePlan(t, ""), servePlan(t, "")
	change(t, first.admin, "share", share("*.*", "", "100"))
	second.stop()
	second.caddyfile = strings.ReplaceAll(second.caddyfile, "dir "+second.planDir(), "dir "+first.planDir())
	second.restart(t)
	second.goesTo(t, "v2")
	if status, problem := second.planHealth(t); status != "degraded" || !strings.Contains(problem, first.planDir()) {
		t.Errorf("the second one's health is %s: %s", status, problem)
	}
	status, answer, err := order(second.admin, "share", share("*.*", "", "5"), int(planOf(t, second.admin).Revision)) //nolint:gosec // G115: a test's few changes
	if err != nil || status != http.StatusServiceUnavailable {
		t.Errorf("the second one has changed the plan: %d %s, %v", status, answer, err)
	}
	second.goesTo(t, "v2")
	if status, answer, err = order(second.admin, "rollback", "", -1); err != nil || status != http.StatusOK || !strings.Contains(answer, "a restart would lift it") {
		t.Errorf("the second one's rollback: %d %s, %v", status, answer, err)
	}
	second.goesTo(t, "legacy")
	first.goesTo(t, "v2")
	change(t, first.admin, "share", share("db.other", "", "5"))
	if status, problem := first.planHealth(t); status != "ok" {
		t.Errorf("the first one's health is %s: %s", status, problem)
	}
	first.stop()
	second.awaitPlanHealth(t, "ok")
	second.goesTo(t, "legacy")
	kill(second.process)
	second.restart(t)
	second.goesTo(t, "legacy")
	if rules := len(planOf(t, second.admin).Rules); rules != 2 {
		t.Errorf("%d rules are left of the first one's plan", rules)
	}
}
