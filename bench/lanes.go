package main

import (
	"fmt"
	"time"
)

// The gateway with migrate, by the lane of all calls, and the legacy host.
const (
	laneV2        = "lane v2"
	laneLegacy    = "lane legacy"
	standinLegacy = "standin, legacy"
)

// laneNames are the ways that -lanes compares: the first one has no lanes.
var laneNames = []string{gateway, laneV2, laneLegacy}

// laneFiles are the names of the configurations.
var laneFiles = map[string]string{laneV2: "lane_v2", laneLegacy: "lane_legacy"}

// legacyOverV2 is how much of the CPU of a call to v2 one to the legacy host may take. What
// v2's lane would do with it is noted all the same.
const legacyOverV2 = 1.05

// runLanes compares what a call costs by each lane, under the same load at a time. Each
// stand-in takes only the form that belongs to it, so that a call which goes by the other
// lane is an error.
func runLanes(length time.Duration, rounds int) error {
	if err := install("wrk"); err != nil {
		return err
	}
	place, err := prepare()
	if err != nil {
		return err
	}
	defer place.remove()
	legacy, err := place.start(standinLegacy)
	if err != nil {
		return err
	}
	defer legacy.stop()
	w := work{Name: "POST 300 B", uri: eventURI, size: 300, together: true}
	rows, err := measure(place, w, laneNames, length, rounds)
	if err != nil {
		return err
	}
	res := results{Rows: rows}
	v2 := res.find(w.Name, laneV2)
	fmt.Printf("%s\nmedians of %d × %.0f s, %d connections\n\n", describeMachine(), rounds, length.Seconds(), concurrency)
	fmt.Println("| gateway | requests/s | CPU µs/request | p50 ms | p99 ms | peak MiB | errors | rate ÷ lane v2 | CPU ÷ lane v2 |")
	fmt.Println("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
	for _, row := range rows {
		m := row.Median
		fmt.Printf("| %s | %.0f | %.1f | %.2f | %.2f | %.0f | %d | %.2f | %.2f |\n",
			row.Proxy, m.Rate, m.CPU, m.P50, m.P99, m.PeakMiB, m.Errors, row.ratio(v2, rateOf), row.ratio(v2, cpuOf))
	}
	ratio := res.find(w.Name, laneLegacy).ratio(v2, cpuOf)
	fmt.Printf("\nCPU of lane legacy ≤ %.2f × lane v2: %.3f, %s\n", legacyOverV2, ratio, verdict(ratio, legacyOverV2, false))
	for _, row := range rows {
		if row.Median.Errors > 0 {
			return fmt.Errorf("%s: there were %d errors", row.Proxy, row.Median.Errors)
		}
	}
	return nil
}
