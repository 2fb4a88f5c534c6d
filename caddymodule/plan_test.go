package caddymodule

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/td-postback/gateway/migration"
	"github.com/td-postback/gateway/postback"
)

// aPlan is the options of a plan in a new directory.
func aPlan(t *testing.T) *Migrate {
	t.Helper()
	m := &Migrate{Dir: filepath.Join(t.TempDir(), "plan")}
	m.applyDefaults()
	return m
}

// loadPlan is a configuration with a plan that Caddy has provisioned.
func loadPlan(t *testing.T, options *Migrate) (*App, *sharedPlan) {
	t.Helper()
	a := &App{fingerprints: newFingerprints(new(memoryStorage))}
	s, err := a.usePlan(options)
	if err != nil {
		t.Fatal(err)
	}
	return a, s
}

// startPlan is one that Caddy has started and accepted, too.
func startPlan(t *testing.T, options *Migrate) *sharedPlan {
	t.Helper()
	a, s := loadPlan(t, options)
	if err := a.Start(); err != nil {
		t.Fatal(err)
	}
	if err := a.Handle(context.Background(), caddy.Event{}); err != nil {
		t.Fatal(err)
	}
	return s
}

var aCall = laneQuery{Destination: postback.Destination{Database: "shop", Table: "orders"}, Key: benchKey, Client: "203.0.113.7"}

// toV2 sends all of a plan to v2.
func toV2(t *testing.T, s *sharedPlan) {
	t.Helper()
	base := s.get().Status().Revision
	if _, err := s.get().Share(migration.Order{Time: time.Now(), Who: "test", Base: &base}, migration.DefaultRule, migration.AllToV2); err != nil {
		t.Fatal(err)
	}
}

func wantLane(t *testing.T, s *sharedPlan, want migration.Lane) {
	t.Helper()
	if got := s.decide(aCall); got != want {
		t.Errorf("the lane is %s, want %s", got, want)
	}
}

// TestOnePlan: blocks that would have different plans fail the load.
func TestOnePlan(t *testing.T) {
	base := *aPlan(t)
	for _, tc := range []struct {
		change func(m *Migrate)
		fails  bool
	}{
		{func(*Migrate) {}, false},
		{func(m *Migrate) { m.Legacy, m.Resolve = "x", "y:1" }, false},
		{func(m *Migrate) { m.Start = "v2" }, true},
		{func(m *Migrate) { m.Stick = "key" }, true},
		{func(m *Migrate) { m.Dir = "/b" }, true},
	} {
		second := base
		tc.change(&second)
		app, first := loadPlan(t, &base)
		s, err := app.usePlan(&second)
		if (err != nil) != tc.fails {
			t.Errorf("%+v: got %v", second, err)
		}
		if s != nil {
			s.leave()
		}
		first.leave()
	}
}

// TestPlanReload: a reload goes on with the same plan, and moves nothing; the start holds
// only as long as nobody has made one.
func TestPlanReload(t *testing.T) {
	options := aPlan(t)
	old := startPlan(t, options)
	wantLane(t, old, migration.Legacy)
	other := *options
	other.Start = "v2"
	_, loaded := loadPlan(t, &other)
	wantLane(t, loaded, migration.Legacy) // it is not accepted yet
	loaded.leave()
	toV2(t, old)
	now := startPlan(t, options)
	old.leave()
	if now != old {
		t.Error("the reload has another plan")
	}
	wantLane(t, now, migration.V2)
	now.leave()
	if shownPlan.Load() != nil {
		t.Error("a plan is shown that no configuration uses")
	}
	after := startPlan(t, options)
	defer after.leave()
	if got := after.get().Status().Revision; got != 1 {
		t.Errorf("a new process has revision %d", got)
	}
	wantLane(t, after, migration.V2)
}

// TestPlanStart: an accepted configuration says where calls go before anybody has made a
// plan.
func TestPlanStart(t *testing.T) {
	options := aPlan(t)
	old := startPlan(t, options)
	defer old.leave()
	other := *options
	other.Start = "v2"
	now := startPlan(t, &other)
	defer now.leave()
	wantLane(t, now, migration.V2)
}

// TestPlanHoldOutlivesReload: a rollback that cannot be written holds in memory, and after
// a reload, and is written when that can be done.
func TestPlanHoldOutlivesReload(t *testing.T) {
	options := aPlan(t)
	if err := os.WriteFile(options.Dir, nil, 0o600); err != nil { // which is no directory
		t.Fatal(err)
	}
	options.Start = "v2"
	old := startPlan(t, options)
	wantLane(t, old, migration.V2)
	outcome, err := old.get().Rollback(migration.Order{Time: time.Now(), Who: "test"})
	if err != nil || !strings.Contains(outcome.Unsaved, "a restart would lift it") {
		t.Fatalf("got %+v, %v", outcome, err)
	}
	now := startPlan(t, options)
	old.leave()
	wantLane(t, now, migration.Legacy)
	if err := os.Remove(options.Dir); err != nil {
		t.Fatal(err)
	}
	now.leave() // which tries once more
	after := startPlan(t, options)
	defer after.leave()
	wantLane(t, after, migration.Legacy)
}

// TestPlanInAnotherDirectory: a reload with another directory moves nothing, and goes on
// with the plan and its history, also as it was changed until the reload was accepted. One
// that fails changes nothing.
func TestPlanInAnotherDirectory(t *testing.T) {
	old, options := startPlan(t, aPlan(t)), aPlan(t)
	toV2(t, old)
	failed, loaded := loadPlan(t, options)
	if err := failed.Start(); err != nil {
		t.Fatal(err)
	}
	wantLane(t, loaded, migration.V2)
	loaded.leave()
	app, now := loadPlan(t, options)
	if now.get().Status().Revision != 1 {
		t.Error("it has not gone on with the plan that is in force")
	}
	rollBack(t, old)
	if err := app.Handle(context.Background(), caddy.Event{}); err != nil {
		t.Fatal(err)
	}
	old.leave()
	if got := now.get().Status(); got.Revision != 2 || got.Hold == nil || len(now.get().History()) != 2 {
		t.Errorf("got %+v", got)
	}
	now.leave()
	again := startPlan(t, options) // as after a restart
	defer again.leave()
	wantLane(t, again, migration.Legacy)
	if got := again.get().Status(); got.Revision != 2 || got.Hold == nil {
		t.Errorf("got %+v", got)
	}
}

// TestPlanInADirectoryThatFailed: what a configuration would have gone on with that failed
// is not there later.
func TestPlanInADirectoryThatFailed(t *testing.T) {
	old, options := startPlan(t, aPlan(t)), aPlan(t)
	toV2(t, old)
	app, loaded := loadPlan(t, options)
	if err := app.Start(); err != nil {
		t.Fatal(err)
	}
	loaded.leave()
	old.leave()
	later := startPlan(t, options)
	defer later.leave()
	wantLane(t, later, migration.Legacy)
}

func rollBack(t *testing.T, s *sharedPlan) {
	t.Helper()
	if _, err := s.get().Rollback(migration.Order{Time: time.Now(), Who: "test"}); err != nil {
		t.Fatal(err)
	}
}

// TestPlanInMemory: the sandbox keeps none.
func TestPlanInMemory(t *testing.T) {
	stateStays = false
	t.Cleanup(func() { stateStays = true })
	options := aPlan(t)
	s := startPlan(t, options)
	toV2(t, s)
	wantLane(t, s, migration.V2)
	s.leave()
	if _, err := os.Stat(options.Dir); !os.IsNotExist(err) {
		t.Errorf("the directory: %v", err)
	}
}

// TestDecideAllocates: the decision allocates nothing.
func TestDecideAllocates(t *testing.T) {
	s := startPlan(t, aPlan(t))
	defer s.leave()
	base := uint64(0)
	rule := migration.Rule{Target: "shop.orders"}
	if _, err := s.get().Share(migration.Order{Time: time.Now(), Base: &base}, rule, 50_00); err != nil {
		t.Fatal(err)
	}
	if got := testing.AllocsPerRun(100, func() { s.decide(aCall) }); got > 0 {
		t.Errorf("%v allocations", got)
	}
}

// TestStateOfAHungDisk: a plan and a report whose disk does not answer hold up neither a
// stop nor a reload that leaves them, by which an operator gets away from that disk.
func TestStateOfAHungDisk(t *testing.T) {
	for name, leave := range map[string]func(*saver) error{
		"plan": func(hung *saver) error {
			s := &sharedPlan{saver: hung}
			plan, err := migration.OpenPlan(migration.PlanConfig{})
			s.current.Store(plan)
			return errors.Join(err, s.Destruct())
		},
		"report": func(hung *saver) error {
			s := &sharedReport{saver: hung}
			report, err := migration.Open(migration.Config{})
			s.current.Store(report)
			return errors.Join(err, s.Destruct())
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				answers := make(chan struct{})
				hung := startSaver(time.Second, func() { <-answers })
				time.Sleep(2 * time.Second)
				began := time.Now()
				if err := leave(hung); !errors.Is(err, errDiskLeft) || time.Since(began) != diskPatience {
					t.Errorf("got %v after %v", err, time.Since(began))
				}
				close(answers)
			})
		})
	}
}
