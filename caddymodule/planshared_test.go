package caddymodule

import (
	"errors"
	"slices"
	"testing"

	"github.com/td-postback/gateway/migration"
)

// TestPlanOfOneCluster: blocks whose plan would be in different clusters fail the load. A
// reload may name another cluster, or none: the plan goes on.
func TestPlanOfOneCluster(t *testing.T) {
	options := aPlan(t)
	nobody, other := []string{"nats://127.0.0.1:1"}, []string{"nats://127.0.0.1:2"}
	app, s := loadPlan(t, options)
	defer s.leave()
	if err := app.sharePlan(nobody); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		servers []string
		fails   bool
	}{{nobody, false}, {other, true}} {
		second, err := app.usePlan(options)
		if err != nil {
			t.Fatal(err)
		}
		if err := app.sharePlan(tc.servers); (err != nil) != tc.fails {
			t.Errorf("%q: %v", tc.servers, err)
		}
		second.leave()
	}
	p := s.get()
	if err := p.Trouble(); !errors.Is(err, migration.ErrAway) {
		t.Error(err)
	}
	if list := p.Status().Gateways; len(list) != 1 || !list[0].Self {
		t.Errorf("%+v", list)
	}
	for _, servers := range [][]string{other, nil} {
		reloaded, again := loadPlan(t, options)
		if servers != nil {
			if err := reloaded.sharePlan(servers); err != nil {
				t.Fatal(err)
			}
		}
		reloaded.plan.accept()
		if !slices.Equal(s.nats, servers) || s.get() != p || errors.Is(p.Trouble(), migration.ErrAway) != (servers != nil) {
			t.Errorf("after %q: %q, %v", servers, s.nats, p.Trouble())
		}
		again.leave()
	}
}

// TestFollowers: a command fails if a gateway that is there does not follow, and not for
// one that is missing.
func TestFollowers(t *testing.T) {
	gw3 := []migration.Gateway{{Name: "gw3", Why: "not heard of"}}
	for _, tc := range []struct {
		outcome migration.Outcome
		want    string
	}{
		{migration.Outcome{Followed: []string{"gw1", "gw2"}}, ""},
		{migration.Outcome{Followed: []string{"gw1"}, Missing: gw3}, ""},
		{migration.Outcome{Followed: []string{"gw1"}, Lagging: gw3}, "it is in force at 1 of 2 gateways. Not at gw3: not heard of"},
	} {
		if err := printFollowers(&tc.outcome); (err != nil) != (tc.want != "") || err != nil && err.Error() != tc.want {
			t.Errorf("%+v: got %v", tc.outcome, err)
		}
	}
}
