package caddymodule

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/td-postback/gateway/postback"
	"github.com/td-postback/gateway/spool"
)

// Like the others, the spool's counters belong to the process.
var (
	spoolRecordsTotal = prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "caddy", Subsystem: "td_postback", Name: "spool_records_total",
		Help: "Records kept, by their time: the gateway's was added, they had their own, or they are not one JSON object and went as they are.",
	}, []string{"time"})

	spoolFatesTotal = prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "caddy", Subsystem: "td_postback", Name: "spool_deliveries_total",
		Help: "What became of records that were kept: delivered, retried, or a dead letter since they were refused or too_old.",
	}, []string{"fate"})

	spoolDuplicates = prometheus.NewCounter(prometheus.CounterOpts{
		Namespace: "caddy", Subsystem: "td_postback", Name: "spool_duplicates_possible_total",
		Help: "Records sent again although v2 may have taken them before.",
	})

	spoolCommits = prometheus.NewHistogram(prometheus.HistogramOpts{
		Namespace: "caddy", Subsystem: "td_postback", Name: "spool_commit_seconds",
		Help:    "Time to make records durable, syncs included.",
		Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5},
	})
)

// spoolTimes has the counters of spoolRecordsTotal by what a record's time is.
var spoolTimes = func() (counters [len(postback.RecordTimeNames)]prometheus.Counter) {
	for i, name := range postback.RecordTimeNames {
		counters[i] = spoolRecordsTotal.WithLabelValues(name)
	}
	return counters
}()

// spoolFates has the counters of spoolFatesTotal.
var spoolFates = func() map[spool.Fate]prometheus.Counter {
	counters := map[spool.Fate]prometheus.Counter{}
	for _, fate := range []spool.Fate{spool.Delivered, spool.Retried, spool.Refused, spool.TooOld} {
		counters[fate] = spoolFatesTotal.WithLabelValues(string(fate))
	}
	return counters
}()

// spoolGauges says how the spools are that are open.
type spoolGauges struct{}

var (
	spoolDepth = newSpoolGauge("spool_records",
		"Records to be delivered.", "spool", "queue")
	spoolDead = newSpoolGauge("spool_dead_letters",
		"Dead letters.", "spool", "queue")
	spoolOldest = newSpoolGauge("spool_oldest_age_seconds",
		"Age of the oldest record to be delivered; 0 without one.", "spool", "queue")
	spoolDown = newSpoolGauge("spool_upstream_down",
		"1 while v2 is taken to be down, and only tried now and then.", "spool", "queue")
	spoolAvailable = newSpoolGauge("spool_available",
		"0 while the disk or the cluster refuses records.", "spool")
	spoolBytes = newSpoolGauge("spool_bytes",
		"What the records take.", "spool")
	spoolLimit = newSpoolGauge("spool_limit_bytes",
		"What the records may take.", "spool")
)

func newSpoolGauge(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(prometheus.BuildFQName("caddy", "td_postback", name), help, labels, nil)
}

// Describe sends the gauges' descriptions.
func (spoolGauges) Describe(descs chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{spoolDepth, spoolDead, spoolOldest, spoolDown, spoolAvailable, spoolBytes, spoolLimit} {
		descs <- desc
	}
}

// Collect sends the gauges.
func (spoolGauges) Collect(metrics chan<- prometheus.Metric) {
	gauge := func(desc *prometheus.Desc, value float64, labels ...string) {
		metrics <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, labels...)
	}
	for _, k := range openSpools() {
		status := k.Status()
		available := 0.0
		if status.Available {
			available = 1
		}
		gauge(spoolAvailable, available, k.Place())
		gauge(spoolBytes, float64(status.Bytes), k.Place())
		gauge(spoolLimit, float64(status.MaxBytes), k.Place())
		for _, q := range status.Queues {
			gauge(spoolDepth, float64(q.Records), k.Place(), q.Name)
			gauge(spoolDead, float64(q.Dead), k.Place(), q.Name)
			age := 0.0
			if q.Oldest != nil {
				age = max(0, time.Since(*q.Oldest).Seconds())
			}
			gauge(spoolOldest, age, k.Place(), q.Name)
			down := 0.0
			if q.Down {
				down = 1
			}
			gauge(spoolDown, down, k.Place(), q.Name)
		}
	}
}
