package caddymodule

import (
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/td-postback/gateway/console"
	"github.com/td-postback/gateway/migration"
	"github.com/td-postback/gateway/postback"
	"github.com/td-postback/gateway/spool"
)

// This file is what the console needs to be noted before somebody looks: what the counters
// were in the last minutes, and the last failure of each host. Of calls, it notes nothing
// unless somebody looks.

// consoleWatch watches as long as a configuration has a console.
type consoleWatch struct {
	history console.History
	saver   *saver

	said    sayings
	spools  remade[spoolsSeen]
	callers remade[*consoleCallers]
	trials  remade[*console.Trial]
}

// consoleWatches has the one that there is, if there is one.
var consoleWatches = caddy.NewUsagePool()

// watchForConsole begins to watch. What it returns must be left.
func watchForConsole() (*consoleWatch, error) {
	value, _, err := consoleWatches.LoadOrNew("", func() (caddy.Destructor, error) {
		w := new(consoleWatch)
		w.note()
		w.saver = startSaver(console.Step, w.note)
		consoleWatched.Store(true)
		return w, nil
	})
	if err != nil {
		return nil, err
	}
	return value.(*consoleWatch), nil //nolint:forcetypeassert // it has nothing else
}

func (w *consoleWatch) leave() error {
	_, err := consoleWatches.Delete("")
	return err
}

// Destruct stops watching.
func (w *consoleWatch) Destruct() error {
	consoleWatched.Store(false)
	w.saver.end()
	return nil
}

// note notes what the counters say, and forgets what was made for pages at which nobody
// looks any more.
func (w *consoleWatch) note() {
	w.history.Add(readCounters(time.Now()))
	if !consoleLook.now() {
		w.spools.forget()
		w.callers.forget()
		w.trials.forget()
	}
}

// readCounters reads the counters that the chart shows.
func readCounters(at time.Time) *console.Reading {
	r := &console.Reading{At: at, Times: map[string]console.Times{}}
	for _, m := range collected(resultsTotal) {
		lane, result := labelOf(m, "lane"), labelOf(m, "result")
		r.Totals = append(r.Totals, console.Total{Lane: lane, Result: result, Kind: consoleKind(lane, result), Count: uint64(m.GetCounter().GetValue())})
	}
	for _, m := range collected(spoolRecordsTotal) {
		r.Kept += uint64(m.GetCounter().GetValue())
	}
	for _, m := range collected(spoolFatesTotal) {
		if labelOf(m, "fate") != "retried" {
			r.Delivered += uint64(m.GetCounter().GetValue())
		}
	}
	for lane, histogram := range map[migration.Lane]prometheus.Histogram{migration.V2: upstreamDuration, migration.Legacy: legacyDuration} {
		for _, m := range collected(histogram) {
			r.Times[lane.String()] = timesOf(m.GetHistogram())
		}
	}
	return r
}

func timesOf(h *dto.Histogram) console.Times {
	times := console.Times{All: h.GetSampleCount()}
	for _, b := range h.GetBucket() {
		times.Bounds, times.Counts = append(times.Bounds, b.GetUpperBound()), append(times.Counts, b.GetCumulativeCount())
	}
	return times
}

// consoleKind is what the chart shows of a result. What means no record is in none.
func consoleKind(lane, result string) console.Kind {
	switch in := bookOf(result); {
	case result == postback.NotFound.Code, in == noBook:
		return -1
	case in == refusedBook && result != cutResult:
		return console.Refused
	case in == lostBook:
		return console.Lost
	case in == spooledBook:
		return console.Kept
	case lane == migration.Legacy.String():
		return console.ToLegacy
	default:
		return console.ToV2
	}
}

// collected are a collector's metrics.
func collected(c prometheus.Collector) (all []*dto.Metric) {
	metrics := make(chan prometheus.Metric)
	go func() {
		defer close(metrics)
		c.Collect(metrics)
	}()
	for m := range metrics {
		one := new(dto.Metric)
		if m.Write(one) == nil {
			all = append(all, one)
		}
	}
	return all
}

func labelOf(m *dto.Metric, name string) string {
	for _, label := range m.GetLabel() {
		if label.GetName() == name {
			return label.GetValue()
		}
	}
	return ""
}

// remade is something that is made anew when it is old, by what it costs: so that making
// it takes a small part of a core, however many look.
type remade[T any] struct {
	mu    sync.Mutex
	of    any // what it depends on besides
	made  time.Time
	took  time.Duration
	value T
}

// What remaking may take: a second is as good as now, and the part of a core is one of
// this. But what took long may have waited, for a disk, a cluster or a busy machine: so
// nothing gets older than its own limit.
const (
	remadeAge  = time.Second
	remadePart = 300

	reportMost = time.Minute
	spoolsMost = 5 * time.Second // they say whether something is wrong
	trialMost  = 5 * time.Second
)

// get is the value, made of this, and no older than most.
func (m *remade[T]) get(of any, most time.Duration, remake func() T) T {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.made.IsZero() && m.of == of && time.Since(m.made) < min(max(remadeAge, remadePart*m.took), most) {
		return m.value
	}
	began := time.Now()
	m.value = remake()
	m.of, m.made = of, time.Now()
	m.took = m.made.Sub(began)
	return m.value
}

func (m *remade[T]) forget() {
	m.mu.Lock()
	defer m.mu.Unlock()
	var none T
	m.of, m.made, m.value = nil, time.Time{}, none
}

// consoleWatched says that there is a console.
var consoleWatched atomic.Bool

// failures has the last failure of each host, by its name. Hosts are few: they stand in
// the configuration.
var failures sync.Map // of *console.Failure

// maxFailureWords is how many bytes of them are kept.
const maxFailureWords = 200

// noteFailure notes that a host has not taken a call, for the console.
func noteFailure(host string, status int, words string) {
	if !consoleWatched.Load() {
		return
	}
	words = postback.MaskKeys(words)
	if len(words) > maxFailureWords {
		words = strings.ToValidUTF8(words[:maxFailureWords], "") + "…"
	}
	failures.Store(host, &console.Failure{Time: time.Now(), Status: status, Words: words})
}

// noteResult notes what a host has answered to a record that it did not take.
func noteResult(host string, r *spool.Result) {
	words := r.Words
	if words == "" && r.Err != nil {
		words = r.Err.Error()
	}
	noteFailure(host, r.Status, words)
}

func lastFailure(host string) *console.Failure {
	found, _ := failures.Load(host)
	failure, _ := found.(*console.Failure)
	return failure
}
