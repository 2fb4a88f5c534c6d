package caddymodule

import (
	"maps"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/td-postback/gateway/migration"
)

// planMetrics are the plan's gauges by their names, without what all have in common.
func planMetrics(t *testing.T) map[string]float64 {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(planGauges{})
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]float64{}
	for _, family := range families {
		for _, metric := range family.GetMetric() {
			name := strings.TrimPrefix(family.GetName(), "caddy_td_postback_plan_")
			for _, label := range metric.GetLabel() {
				name += " " + label.GetValue()
			}
			values[name] = metric.GetGauge().GetValue()
		}
	}
	return values
}

func wantPlanMetrics(t *testing.T, when string, want map[string]float64) {
	t.Helper()
	if got := planMetrics(t); !maps.Equal(got, want) {
		t.Errorf("%s: got\n%v, want\n%v", when, got, want)
	}
}

// TestPlanGauges follows the plan's gauges through its life.
func TestPlanGauges(t *testing.T) {
	wantPlanMetrics(t, "without migrate", map[string]float64{})
	s := startPlan(t, aPlan(t))
	wantPlanMetrics(t, "before anybody has made a plan", map[string]float64{
		"revision": 0, "hold": 0, "degraded": 0, "rules none": 1, "rules some": 0, "rules all": 0,
	})

	at := time.Unix(1_800_000_000, 0)
	order := func() migration.Order {
		at = at.Add(time.Minute)
		base := s.get().Status().Revision
		return migration.Order{Time: at, Who: "test", Base: &base}
	}
	share := func(target string, share migration.Share) {
		t.Helper()
		if _, err := s.get().Share(order(), migration.Rule{Target: target}, share); err != nil {
			t.Fatal(err)
		}
	}
	share("shop.orders", 25_00)
	share("shop.*", migration.AllToV2)
	wantPlanMetrics(t, "with two rules", map[string]float64{
		"revision": 2, "hold": 0, "degraded": 0, "rules none": 1, "rules some": 1, "rules all": 1,
		"last_change_timestamp_seconds": 1_800_000_120,
	})
	if _, err := s.get().Rollback(order()); err != nil {
		t.Fatal(err)
	}
	wantPlanMetrics(t, "rolled back", map[string]float64{
		"revision": 3, "hold": 1, "degraded": 0, "rules none": 1, "rules some": 1, "rules all": 1,
		"last_change_timestamp_seconds": 1_800_000_180,
	})
	s.leave()
	wantPlanMetrics(t, "when migrate is gone", map[string]float64{})
}

// TestPlanGaugeOfTrouble: a plan that cannot be written can be seen, until it can.
func TestPlanGaugeOfTrouble(t *testing.T) {
	options := aPlan(t)
	if err := os.WriteFile(options.Dir, nil, 0o600); err != nil { // which is no directory
		t.Fatal(err)
	}
	s := startPlan(t, options)
	defer s.leave()
	if got := planMetrics(t)["degraded"]; got != 1 {
		t.Errorf("degraded is %v, want 1", got)
	}
	if err := os.Remove(options.Dir); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); planMetrics(t)["degraded"] != 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it is degraded, though the plan can be written")
		}
	}
}
