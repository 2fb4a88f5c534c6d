package caddymodule

import (
	"errors"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/td-postback/gateway/migration"
	"github.com/td-postback/gateway/postback"
	"github.com/td-postback/gateway/spool"
	"github.com/td-postback/gateway/upstream"
)

// The collectors belong to the process, not to a configuration: counters go on
// through reloads, and all handlers count together. Labels have few values,
// none of which a caller can choose.
var (
	requestsTotal = prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "caddy", Subsystem: "td_postback", Name: "requests_total",
		Help: "Requests by kind of call, where their write key was, by which lane they went, and what became of them.",
	}, []string{"surface", "key", "lane", "result"})

	resultsTotal = prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "caddy", Subsystem: "td_postback", Name: "results_total",
		Help: "Requests by their lane and what became of them. Every result is there from the start, so that Prometheus sees the first of each.",
	}, []string{"lane", "result"})

	bodyBytes = prometheus.NewHistogram(prometheus.HistogramOpts{
		Namespace: "caddy", Subsystem: "td_postback", Name: "body_bytes",
		Help:    "Size of the records for v2.",
		Buckets: prometheus.ExponentialBuckets(256, 4, 7), // to 1 MiB
	})

	upstreamDuration = prometheus.NewHistogram(prometheus.HistogramOpts{
		Namespace: "caddy", Subsystem: "td_postback", Name: "upstream_duration_seconds",
		Help:    "Time from sending a record until the head of v2's answer is there.",
		Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
	})

	legacyDuration = prometheus.NewHistogram(prometheus.HistogramOpts{
		Namespace: "caddy", Subsystem: "td_postback", Name: "legacy_duration_seconds",
		Help:    "Time from sending a request on to the legacy host until the head of its answer is there.",
		Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
	})

	requestsInFlight = prometheus.NewGauge(prometheus.GaugeOpts{
		Namespace: "caddy", Subsystem: "td_postback", Name: "requests_in_flight",
		Help: "Requests that are being served.",
	})

	buffered      atomic.Int64
	bufferedBytes = prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Namespace: "caddy", Subsystem: "td_postback", Name: "buffered_bytes",
		Help: "Memory in use for requests, heads and bodies, of all handlers together. Each handler refuses what goes beyond its max_buffered.",
	}, func() float64 { return float64(buffered.Load()) })

	retriesTotal = prometheus.NewCounter(prometheus.CounterOpts{
		Namespace: "caddy", Subsystem: "td_postback", Name: "retries_total",
		Help: "Records sent once more, because v2 cannot have processed them.",
	})

	unknownTotal = prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "caddy", Subsystem: "td_postback", Name: "unknown_total",
		Help: "Requests whose write key or database is not in keys, refused or with a warning.",
	}, []string{"reason"})

	keySignals = prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "caddy", Subsystem: "td_postback", Name: "key_signals_total",
		Help: "What says that a write key is wrong: calls that go to v2 with one that looks cut, like a template's, or unusual; answers by which v2 refuses one; and keys that the report of callers has never seen before.",
	}, []string{"signal"})

	connectionsTotal = prometheus.NewCounter(prometheus.CounterOpts{
		Namespace: "caddy", Subsystem: "td_postback", Name: "upstream_connections_total",
		Help: "Connections opened to v2.",
	})
)

// forwardedTotal holds the counters of requestsTotal that nearly every request
// needs, so that none is looked up by its labels. It also makes them visible
// before the first request.
var forwardedTotal = func() (counters [len(postback.KindNames)][len(postback.KeySourceNames)]prometheus.Counter) {
	for s, surface := range postback.KindNames {
		for k, key := range postback.KeySourceNames {
			if s != int(postback.Other) && k != int(postback.KeyNone) {
				counters[s][k] = requestsTotal.WithLabelValues(surface, key, migration.V2.String(), forwardedResult)
			}
		}
	}
	return counters
}()

// forwardedResults is the counter of resultsTotal that nearly every request
// needs.
var forwardedResults = func() prometheus.Counter {
	showResults(migration.V2)
	return resultsTotal.WithLabelValues(migration.V2.String(), forwardedResult)
}()

// showResults makes all results of a lane visible.
func showResults(lane migration.Lane) {
	for _, result := range slices.Concat(postback.RefusalCodes, ownResults) {
		resultsTotal.WithLabelValues(lane.String(), result)
	}
}

// keyForms has the counters of keySignals for each form of a key that is probably
// wrong.
var keyForms = func() (counters [len(postback.KeyFormNames)]prometheus.Counter) {
	for form, name := range postback.KeyFormNames {
		if form != int(postback.KeyUsual) {
			counters[form] = keySignals.WithLabelValues(name)
		}
	}
	return counters
}()

// refusedKeys is the counter of keySignals for the answers by which v2 refuses one.
var refusedKeys = keySignals.WithLabelValues("refused")

// countRefusedKey counts an answer of v2's to a call with this key, if it refuses the key.
func countRefusedKey(status int, key string) {
	if (spool.Result{Status: status}).OfKey() {
		countNamed(refusedKeys, fingerprintOf(key))
	}
}

// exemplarKey is the label by which an exemplar names a write key.
const exemplarKey = "key"

// countNamed counts what is wrong about a key, and shows the key's name as the counter's
// exemplar. A name is far shorter than the 128 characters that an exemplar may have. No
// call that is in order comes here.
func countNamed(counter prometheus.Counter, fingerprint string) {
	if fingerprint == "" { // a kept record that cannot be read
		counter.Inc()
		return
	}
	counter.(prometheus.ExemplarAdder).AddWithExemplar(1, prometheus.Labels{exemplarKey: fingerprint}) //nolint:forcetypeassert // each counter of the library is one
}

// registerMetrics shows the collectors in a configuration's registry. A second
// handler of the configuration finds them there.
func registerMetrics(registry *prometheus.Registry) error {
	for _, collector := range []prometheus.Collector{
		requestsTotal, resultsTotal, bodyBytes, upstreamDuration, legacyDuration, requestsInFlight, bufferedBytes, retriesTotal, connectionsTotal,
		buildInfo, spoolRecordsTotal, spoolFatesTotal, spoolDuplicates, spoolRepeatsSafe, spoolCommits,
		batchRecords, batchBytes, batchPlainBytes, unknownTotal, keySignals, spoolGauges{}, bookkeeping{}, keyGauges{}, planGauges{},
	} {
		if err := registry.Register(collector); err != nil && !errors.As(err, new(prometheus.AlreadyRegisteredError)) {
			return err
		}
	}
	return nil
}

// count adds a call to the metrics. Those of sizes, times and connections are of v2.
func (c *call) count() {
	if c.result == forwardedResult && c.lane == migration.V2 {
		forwardedTotal[c.Kind][c.Source].Inc()
		forwardedResults.Inc()
	} else {
		resultsTotal.WithLabelValues(c.lane.String(), c.result).Inc()
		requestsTotal.WithLabelValues(c.Kind.String(), c.Source.String(), c.lane.String(), c.result).Inc()
	}
	if c.lane != migration.V2 {
		if c.trip.Status > 0 {
			legacyDuration.Observe(c.trip.Duration.Seconds())
		}
		return
	}
	if c.trip.Tries > 0 {
		bodyBytes.Observe(float64(c.trip.Bytes))
	}
	if c.trip.Status > 0 {
		upstreamDuration.Observe(c.trip.Duration.Seconds())
	}
	countTrip(&c.trip)
}

// countTrip counts what a trip to v2 has cost beyond a kept-alive connection.
func countTrip(t *upstream.Trip) {
	if t.Tries > 1 {
		retriesTotal.Add(float64(t.Tries - 1))
	}
	if t.Dialed > 0 {
		connectionsTotal.Add(float64(t.Dialed))
	}
}

// upstreamResult is the result of an answer of v2. A status of 600 and above is
// a failure too: no client takes it for success.
func upstreamResult(status int) string {
	switch {
	case status < 300:
		return forwardedResult
	case status < 400:
		return upstream3xxResult
	case status < 500:
		return upstream4xxResult
	default:
		return upstream5xxResult
	}
}

// Like the others, the spool's counters belong to the process.
var (
	spoolRecordsTotal = prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "caddy", Subsystem: "td_postback", Name: "spool_records_total",
		Help: "Records kept, by their time: the gateway's was added, they had their own, or they are not one JSON object and went as they are.",
	}, []string{"time"})

	spoolFatesTotal = prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "caddy", Subsystem: "td_postback", Name: "spool_deliveries_total",
		Help: "What became of records that were kept: delivered, retried, a dead letter since they were refused or too_old, or refused_unkept: dead letters have no room.",
	}, []string{"fate"})

	spoolDuplicates = prometheus.NewCounter(prometheus.CounterOpts{
		Namespace: "caddy", Subsystem: "td_postback", Name: "spool_duplicates_possible_total",
		Help: "Records sent again although v2 may have taken them before, or sent although the spool may have kept them, too.",
	})

	spoolRepeatsSafe = prometheus.NewCounter(prometheus.CounterOpts{
		Namespace: "caddy", Subsystem: "td_postback", Name: "spool_repeats_safe_total",
		Help: "Records of batches sent again although v2 may have taken them before: it drops the repeat by its uuid.",
	})

	batchRecords = prometheus.NewHistogram(prometheus.HistogramOpts{
		Namespace: "caddy", Subsystem: "td_postback", Name: "spool_batch_records",
		Help:    "Records in a batch.",
		Buckets: []float64{1, 2, 5, 10, 20, 50, 100, 200, 300, 400, maxBatch},
	})

	batchBytes = prometheus.NewHistogram(prometheus.HistogramOpts{
		Namespace: "caddy", Subsystem: "td_postback", Name: "spool_batch_bytes",
		Help:    "Bytes sent to v2 for a batch, compressed and with the head.",
		Buckets: prometheus.ExponentialBuckets(256, 4, 8), // to 4 MiB
	})

	batchPlainBytes = prometheus.NewCounter(prometheus.CounterOpts{
		Namespace: "caddy", Subsystem: "td_postback", Name: "spool_batch_plain_bytes_total",
		Help: "Bytes of the records in the batches that were sent, before they were compressed.",
	})

	spoolCommits = prometheus.NewHistogram(prometheus.HistogramOpts{
		Namespace: "caddy", Subsystem: "td_postback", Name: "spool_commit_seconds",
		Help:    "Time to make records durable, syncs included.",
		Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5},
	})
)

// countBatch counts a batch, unless nothing of it went to v2.
func countBatch(records int, r *spool.BatchResult) {
	if r.Sent == 0 {
		return
	}
	batchRecords.Observe(float64(records))
	batchBytes.Observe(float64(r.Sent))
	batchPlainBytes.Add(float64(r.Plain))
}

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
	for _, fate := range []spool.Fate{spool.Delivered, spool.Retried, spool.Refused, spool.RefusedUnkept, spool.TooOld} {
		counters[fate] = spoolFatesTotal.WithLabelValues(string(fate))
	}
	return counters
}()

// spoolGauges says how the spools are that are open.
type spoolGauges struct{}

var (
	spoolDepth = newDesc("spool_records",
		"Records to be delivered.", "spool", "queue")
	spoolDead = newDesc("spool_dead_letters",
		"Dead letters.", "spool", "queue")
	spoolOldest = newDesc("spool_oldest_age_seconds",
		"Age of the oldest record to be delivered; 0 without one.", "spool", "queue")
	spoolDown = newDesc("spool_upstream_down",
		"1 while v2 is taken to be down, and only tried now and then.", "spool", "queue")
	spoolPaused = newDesc("spool_accounts_paused",
		"Accounts that v2 has answered 429 and whose records wait for that; the others go on.", "spool", "queue")
	spoolAvailable = newDesc("spool_available",
		"0 while the disk or the cluster refuses records.", "spool")
	spoolBytes = newDesc("spool_bytes",
		"What the records to be delivered take.", "spool")
	spoolLimit = newDesc("spool_limit_bytes",
		"What the records to be delivered may take.", "spool")
	spoolDeadBytes = newDesc("spool_dead_bytes",
		"What dead letters take.", "spool")
	spoolDeadLimit = newDesc("spool_dead_limit_bytes",
		"What dead letters may take.", "spool")
)

// oneIf is a gauge's value for what is or is not.
func oneIf(is bool) float64 {
	if is {
		return 1
	}
	return 0
}

func newDesc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(prometheus.BuildFQName("caddy", "td_postback", name), help, labels, nil)
}

// Describe sends the gauges' descriptions.
func (spoolGauges) Describe(descs chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{spoolDepth, spoolDead, spoolOldest, spoolDown, spoolPaused, spoolAvailable, spoolBytes, spoolLimit, spoolDeadBytes, spoolDeadLimit} {
		descs <- desc
	}
}

// Collect sends the gauges.
func (spoolGauges) Collect(metrics chan<- prometheus.Metric) {
	gauge := func(desc *prometheus.Desc, value float64, labels ...string) {
		metrics <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, labels...)
	}
	for _, status := range spoolStatuses() {
		gauge(spoolAvailable, oneIf(status.Available), status.Spool)
		gauge(spoolBytes, float64(status.Bytes), status.Spool)
		gauge(spoolLimit, float64(status.MaxBytes), status.Spool)
		gauge(spoolDeadBytes, float64(status.Dead), status.Spool)
		gauge(spoolDeadLimit, float64(status.MaxDead), status.Spool)
		for _, q := range status.Queues {
			gauge(spoolDepth, float64(q.Records), status.Spool, q.Name)
			gauge(spoolDead, float64(q.Dead), status.Spool, q.Name)
			age := 0.0
			if q.Oldest != nil {
				age = max(0, time.Since(*q.Oldest).Seconds())
			}
			gauge(spoolOldest, age, status.Spool, q.Name)
			gauge(spoolDown, oneIf(q.Down), status.Spool, q.Name)
			gauge(spoolPaused, float64(q.Paused), status.Spool, q.Name)
		}
	}
}
