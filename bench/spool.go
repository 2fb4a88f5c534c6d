package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// The gateway with a spool: by its mode, and with v2 down.
const (
	spoolOnFailure = "spool on_failure"
	spoolAlways    = "spool always"
	spoolBatch     = "spool always, batch 500"
	spoolDown      = "spool always, v2 down"
)

// spoolNames are the ways that -spool compares: the first one has no spool.
var spoolNames = []string{gateway, spoolOnFailure, spoolAlways, spoolBatch, spoolDown}

// spoolConnections is how many callers there are: each commit of the spool is
// shared by those who wait.
const spoolConnections = 128

// spoolFiles are the names of the configurations, and of the spools.
var spoolFiles = map[string]string{
	spoolOnFailure: "spool_on_failure", spoolAlways: "spool_always", spoolBatch: "spool_batch", spoolDown: "spool_down",
	spoolDrain: "spool_drain",
}

// spoolDir is where the spools are: not in a temporary directory, which may be
// in memory, where a sync costs nothing.
func spoolDir() (string, error) {
	dir, err := os.MkdirTemp(".", "bench-spool-")
	if err != nil {
		return "", err
	}
	return filepath.Abs(dir)
}

// spoolWork is what callers send: records as sites send them.
var spoolWork = work{Name: "POST 300 B", uri: eventURI, size: 300, connections: spoolConnections, tables: 20}

// runSpool compares the gateway with and without a spool.
func runSpool(length time.Duration, rounds int) error {
	if err := install("wrk"); err != nil {
		return err
	}
	place, err := prepare()
	if err != nil {
		return err
	}
	defer place.remove()
	rows, err := measure(place, spoolWork, spoolNames, length, rounds)
	if err != nil {
		return err
	}
	res := results{Rows: rows}
	fmt.Printf("%s\nmedians of %d × %.0f s, %d connections, %d tables\n\n", describeMachine(), rounds, length.Seconds(), spoolConnections, spoolWork.tables)
	fmt.Print(res.spoolTable())
	for _, row := range rows {
		if row.Median.Errors > 0 {
			return fmt.Errorf("%s: there were %d errors", row.Proxy, row.Median.Errors)
		}
	}
	return nil
}

// spoolTable is the table and the bars in Markdown.
func (r *results) spoolTable() string {
	w := &strings.Builder{}
	fmt.Fprintf(w, "| gateway | events/s | CPU µs/event | p50 ms | p99 ms | peak MiB | errors | empty after s | left after %.0f s | requests to v2 per event | bytes to v2 per event | CPU ÷ forward |\n", leftAfter.Seconds())
	fmt.Fprintln(w, "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
	name := r.Rows[0].Work
	forward, always, batch := r.find(name, gateway), r.find(name, spoolAlways), r.find(name, spoolBatch)
	for _, row := range r.Rows {
		m := row.Median
		fmt.Fprintf(w, "| %s | %.0f | %.1f | %.2f | %.2f | %.0f | %d | %.2f | %d | %.4f | %.0f | %.2f |\n",
			row.Proxy, m.Rate, m.CPU, m.P50, m.P99, m.PeakMiB, m.Errors, m.Empty, m.Left, m.V2Requests, m.V2Bytes, row.ratio(forward, cpuOf))
	}
	fmt.Fprintln(w, "\n| what batches must hold | measured | |")
	fmt.Fprintln(w, "|---|---:|---|")
	for _, b := range []struct {
		name            string
		measured, limit float64
		atLeast         bool
	}{
		{"events/s ≥ 1.5 × always", batch.ratio(always, rateOf), 1.5, true},
		{"CPU ≤ 0.9 × forward", batch.ratio(forward, cpuOf), 0.9, false},
		{"requests to v2 ≤ 0.02 × always", batch.ratio(always, requestsOf), 0.02, false},
		{"bytes to v2 ≤ 0.25 × always", batch.ratio(always, bytesOf), 0.25, false},
		{"p99 ≤ 15 ms", batch.Median.P99, 15, false},
		{"left ≤ 0", float64(batch.Median.Left), 0, false},
	} {
		fmt.Fprintf(w, "| %s | %.4g | %s |\n", b.name, b.measured, verdict(b.measured, b.limit, b.atLeast))
	}
	return w.String()
}

// How long a spool has after its callers have ended: until it should be empty, and
// until the measurement goes on without that.
const (
	leftAfter = 10 * time.Second
	giveUp    = time.Minute
)

// settle waits until what was kept has been delivered, since that is part of what
// an event costs, and returns how many events v2 has.
func (m *measurement) settle(name string, before counts) (events int, err error) {
	ended, looked := time.Now(), false
	for ; ; time.Sleep(50 * time.Millisecond) {
		now, err := countsOf("standin")
		if err != nil {
			return 0, err
		}
		events, waited := now.Events-before.Events, time.Since(ended)
		late := waited > leftAfter
		if !late && events < m.Requests-m.Errors {
			continue // to ask the gateway costs it time
		}
		left, err := kept(name)
		if err != nil {
			return 0, err
		}
		if late && !looked {
			looked, m.Left = true, left
		}
		if left == 0 || waited > giveUp {
			m.Empty = waited.Seconds()
			return events, lost(m.Requests-m.Errors, left, before)
		}
	}
}

// lost is an error if v2 does not have what was acknowledged and is not kept.
func lost(acknowledged, left int, before counts) error {
	now, err := countsOf("standin")
	if err != nil {
		return err
	}
	if delivered := now.Events - before.Events; delivered+left < acknowledged {
		return fmt.Errorf("%d events were acknowledged, v2 has %d and the spool %d", acknowledged, delivered, left)
	}
	return nil
}

// counts is what has come to a stand-in: requests that it took, the events in
// them, and bytes over the wire.
type counts struct{ Requests, Events, Bytes int }

func countsOf(standin string) (c counts, err error) {
	return c, getJSON("http://"+address(standin, false)+"/counts", &c)
}

// countV2 notes what went to v2 since then.
func (m *measurement) countV2(before counts) error {
	now, err := countsOf("standin")
	if events := float64(now.Events - before.Events); err == nil && events > 0 {
		m.V2Requests = float64(now.Requests-before.Requests) / events
		m.V2Bytes = float64(now.Bytes-before.Bytes) / events
	}
	return err
}

// kept asks a gateway how many records are in its spool.
func kept(name string) (int, error) {
	var spools []struct{ Queues []struct{ Records int } }
	if err := getJSON("http://"+admin(name)+"/td_postback/spool", &spools); err != nil {
		return 0, err
	}
	if len(spools) != 1 {
		return 0, fmt.Errorf("%d spools, not one", len(spools))
	}
	sum := 0
	for _, q := range spools[0].Queues {
		sum += q.Records
	}
	return sum, nil
}

func getJSON(url string, value any) error {
	resp, err := http.Get(url) //nolint:gosec,noctx // G107: on loopback
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, resp.Status)
	}
	return json.NewDecoder(resp.Body).Decode(value)
}
