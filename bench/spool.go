package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

// The gateway with a spool: by its mode, and with v2 down.
const (
	spoolOnFailure = "spool on_failure"
	spoolAlways    = "spool always"
	spoolDown      = "spool always, v2 down"
)

// spoolNames are the ways that -spool compares: the first one has no spool.
var spoolNames = []string{gateway, spoolOnFailure, spoolAlways, spoolDown}

// spoolConnections is how many callers there are: each commit of the spool is
// shared by those who wait.
const spoolConnections = 128

// spoolFiles are the names of the configurations, and of the spools.
var spoolFiles = map[string]string{spoolOnFailure: "spool_on_failure", spoolAlways: "spool_always", spoolDown: "spool_down"}

// spoolDir is where the spools are: not in a temporary directory, which may be
// in memory, where a sync costs nothing.
func spoolDir() (string, error) {
	dir, err := os.MkdirTemp(".", "bench-spool-")
	if err != nil {
		return "", err
	}
	return filepath.Abs(dir)
}

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
	w := work{Name: "POST 300 B", uri: eventURI, size: 300, connections: spoolConnections}
	rows, err := measure(place, w, spoolNames, length, rounds)
	if err != nil {
		return err
	}
	fmt.Printf("%s\nmedians of %d × %.0f s, %d connections\n\n", describeMachine(), rounds, length.Seconds(), spoolConnections)
	fmt.Println("| gateway | requests/s | CPU µs/request | p50 ms | p99 ms | peak MiB | errors | left in the spool | CPU ÷ without |")
	fmt.Println("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
	for _, row := range rows {
		m := row.Median
		fmt.Printf("| %s | %.0f | %.1f | %.2f | %.2f | %.0f | %d | %d | %.2f |\n",
			row.Proxy, m.Rate, m.CPU, m.P50, m.P99, m.PeakMiB, m.Errors, m.Left, row.ratio(&rows[0], cpuOf))
	}
	return nil
}

// kept asks a gateway how many records are in its spool.
func kept(name string) (int, error) {
	if spoolFiles[name] == "" {
		return 0, nil
	}
	resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/td_postback/spool", ports[name]+2)) //nolint:noctx // on loopback
	if err != nil {
		return 0, err
	}
	defer func() { _ = resp.Body.Close() }()
	var spools []struct{ Queues []struct{ Records int } }
	if err := json.NewDecoder(resp.Body).Decode(&spools); err != nil || len(spools) != 1 {
		return 0, fmt.Errorf("no spool: %w", err)
	}
	sum := 0
	for _, q := range spools[0].Queues {
		sum += q.Records
	}
	return sum, nil
}
