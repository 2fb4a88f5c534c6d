package caddymodule

import "github.com/prometheus/client_golang/prometheus"

// planGauges says how the plan is that decides over the lanes, if there is one. It waits
// for no disk: a plan that is being written is as it was.
type planGauges struct{}

var (
	planRevision = newDesc("plan_revision",
		"Revision of the plan that is in force; 0 as long as nobody has made one.")
	planHold = newDesc("plan_hold",
		"1 while the plan is rolled back, for all or at this gateway alone: everything goes to the legacy host.")
	planDegraded = newDesc("plan_degraded",
		"1 while the plan could not be read, or not be written, or the cluster that has it is away: it may be another one after a restart.")
	planRules = newDesc("plan_rules",
		"Rules of the plan that send none, some or all to v2, the default included, whether it is rolled back or not.", "share")
	planChanged = newDesc("plan_last_change_timestamp_seconds",
		"Time of the plan's last change, in UNIX seconds; there is none as long as nobody has made one.")
)

// Describe sends the gauges' descriptions.
func (planGauges) Describe(descs chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{planRevision, planHold, planDegraded, planRules, planChanged} {
		descs <- desc
	}
}

// Collect sends the gauges.
func (planGauges) Collect(metrics chan<- prometheus.Metric) {
	shown := shownPlan.Load()
	if shown == nil {
		return
	}
	gauge := func(desc *prometheus.Desc, value float64, labels ...string) {
		metrics <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, labels...)
	}
	plan := shown.get().Plan().Signals()
	gauge(planRevision, float64(plan.Revision))
	gauge(planHold, oneIf(plan.Held))
	gauge(planDegraded, oneIf(shown.trouble.Load()))
	gauge(planRules, float64(plan.None), "none")
	gauge(planRules, float64(plan.Some), "some")
	gauge(planRules, float64(plan.All), "all")
	if !plan.Changed.IsZero() {
		gauge(planChanged, float64(plan.Changed.Unix()))
	}
}
