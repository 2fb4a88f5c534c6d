package caddymodule

import (
	"errors"
	"sync/atomic"

	"github.com/caddyserver/caddy/v2"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/td-postback/gateway/postback"
	"github.com/td-postback/gateway/upstream"
)

func init() {
	caddy.RegisterModule(adminAPI{})
}

// The collectors belong to the process, not to a configuration: counters go on
// through reloads, and all handlers count together. Labels have few values,
// none of which a caller can choose.
var (
	requestsTotal = prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "caddy", Subsystem: "td_postback", Name: "requests_total",
		Help: "Requests by kind of call, where their write key was, and what became of them.",
	}, []string{"surface", "key", "result"})

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

	requestsInFlight = prometheus.NewGauge(prometheus.GaugeOpts{
		Namespace: "caddy", Subsystem: "td_postback", Name: "requests_in_flight",
		Help: "Requests that are being served.",
	})

	buffered      atomic.Int64
	bufferedBytes = prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Namespace: "caddy", Subsystem: "td_postback", Name: "buffered_bytes",
		Help: "Memory in use for bodies, of all handlers together. Each handler refuses what goes beyond its max_buffered.",
	}, func() float64 { return float64(buffered.Load()) })

	retriesTotal = prometheus.NewCounter(prometheus.CounterOpts{
		Namespace: "caddy", Subsystem: "td_postback", Name: "retries_total",
		Help: "Records sent once more, because v2 cannot have processed them.",
	})

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
				counters[s][k] = requestsTotal.WithLabelValues(surface, key, forwardedResult)
			}
		}
	}
	return counters
}()

// registerMetrics shows the collectors in a configuration's registry. A second
// handler of the configuration finds them there.
func registerMetrics(registry *prometheus.Registry) error {
	for _, collector := range []prometheus.Collector{
		requestsTotal, bodyBytes, upstreamDuration, requestsInFlight, bufferedBytes, retriesTotal, connectionsTotal,
		spoolRecordsTotal, spoolFatesTotal, spoolDuplicates, spoolCommits, spoolGauges{},
	} {
		if err := registry.Register(collector); err != nil && !errors.As(err, new(prometheus.AlreadyRegisteredError)) {
			return err
		}
	}
	return nil
}

// adminAPI is the gateway's part of the admin endpoint: what is in spooladmin.go,
// and the metrics as soon as the endpoint exists.
// Caddy replaces the endpoint before it loads anything else of a new
// configuration: when that fails, the old handlers still serve, and without
// this their metrics would be gone.
type adminAPI struct{}

// CaddyModule returns the Caddy module information.
func (adminAPI) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "admin.api.td_postback",
		New: func() caddy.Module { return new(adminAPI) },
	}
}

// Provision registers the metrics.
func (adminAPI) Provision(ctx caddy.Context) error {
	return registerMetrics(ctx.GetMetricsRegistry())
}

// count adds a call to the metrics.
func (c *call) count() {
	if c.result == forwardedResult {
		forwardedTotal[c.Kind][c.Source].Inc()
	} else {
		requestsTotal.WithLabelValues(c.Kind.String(), c.Source.String(), c.result).Inc()
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
		return "upstream_3xx"
	case status < 500:
		return "upstream_4xx"
	default:
		return "upstream_5xx"
	}
}

// Interface guards
var (
	_ caddy.Module      = adminAPI{}
	_ caddy.Provisioner = adminAPI{}
	_ caddy.AdminRouter = adminAPI{}
)
