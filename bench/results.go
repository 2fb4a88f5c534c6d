package main

import (
	"fmt"
	"slices"
	"strings"
)

// measurement is what one run of a load generator showed.
type measurement struct {
	Requests int     `json:"requests"`
	Seconds  float64 `json:"seconds"`
	Rate     float64 `json:"requests_per_second"`
	CPU      float64 `json:"cpu_us_per_request"` // user and system time of the proxy
	P50      float64 `json:"p50_ms"`
	P99      float64 `json:"p99_ms"`
	PeakMiB  float64 `json:"peak_mib"`
	Errors   int     `json:"errors"` // connections that failed, and answers other than 2xx and 3xx

	// With a spool.
	Left  int     `json:"left_in_spool,omitempty"`       // records that had not been delivered some seconds after the end
	Empty float64 `json:"empty_after_seconds,omitempty"` // until they were

	V2Requests float64 `json:"v2_requests_per_event,omitempty"`
	V2Bytes    float64 `json:"v2_bytes_per_event,omitempty"` // that went over the wire
}

// row is one kind of work through one proxy.
type row struct {
	Work         string        `json:"work"`
	Proxy        string        `json:"proxy"`
	Median       measurement   `json:"median"`
	Measurements []measurement `json:"measurements"`
}

// results is a whole run.
type results struct {
	Machine  string            `json:"machine"`
	Versions map[string]string `json:"versions"`
	Seconds  float64           `json:"seconds"`
	Rounds   int               `json:"rounds"`
	Rows     []row             `json:"rows"`
}

// middle is the median of numbers.
func middle(numbers []float64) float64 {
	slices.Sort(numbers)
	n := len(numbers)
	return (numbers[(n-1)/2] + numbers[n/2]) / 2
}

// median takes the median of every figure by itself. Errors are added up, so
// that none of them is lost.
func median(all []measurement) measurement {
	of := func(figure func(m measurement) float64) float64 {
		values := make([]float64, len(all))
		for i, m := range all {
			values[i] = figure(m)
		}
		return middle(values)
	}
	m := measurement{
		Requests: int(of(func(m measurement) float64 { return float64(m.Requests) })),
		Seconds:  of(func(m measurement) float64 { return m.Seconds }),
		Rate:     of(func(m measurement) float64 { return m.Rate }),
		CPU:      of(func(m measurement) float64 { return m.CPU }),
		P50:      of(func(m measurement) float64 { return m.P50 }),
		P99:      of(func(m measurement) float64 { return m.P99 }),
		PeakMiB:  of(func(m measurement) float64 { return m.PeakMiB }),
		Empty:    of(func(m measurement) float64 { return m.Empty }),

		V2Requests: of(requestsOf),
		V2Bytes:    of(bytesOf),
	}
	for _, one := range all {
		m.Errors += one.Errors
		m.Left = max(m.Left, one.Left)
	}
	return m
}

// find finds a row, or nil if it was not measured.
func (r *results) find(work, proxy string) *row {
	for i := range r.Rows {
		if r.Rows[i].Work == work && r.Rows[i].Proxy == proxy {
			return &r.Rows[i]
		}
	}
	return nil
}

// ratio is the median of a figure's ratios to another row's, round by round:
// the two measurements of a round are seconds apart, so that what else the
// machine did met both.
func (r *row) ratio(to *row, figure func(m measurement) float64) float64 {
	ratios := make([]float64, min(len(r.Measurements), len(to.Measurements)))
	for i := range ratios {
		ratios[i] = figure(r.Measurements[i]) / figure(to.Measurements[i])
	}
	return middle(ratios)
}

// gatewayErrors is an error if the gateway had any: it was then not measured at
// its work.
func (r *results) gatewayErrors() error {
	for _, row := range r.Rows {
		if row.Proxy == gateway && row.Median.Errors > 0 {
			return fmt.Errorf("%s: the gateway had %d errors", row.Work, row.Median.Errors)
		}
	}
	return nil
}

// String is the table and the bars in Markdown.
func (r *results) String() string {
	w := &strings.Builder{}
	fmt.Fprintf(w, "%s\n", r.Machine)
	for _, name := range []string{"go", "caddy", "nginx", "haproxy", "wrk", "h2load"} {
		fmt.Fprintf(w, "%s: %s\n", name, r.Versions[name])
	}
	fmt.Fprintf(w, "medians of %d × %.0f s, %d connections\n\n", r.Rounds, r.Seconds, concurrency)
	fmt.Fprintln(w, "| work | proxy | requests/s | CPU µs/request | p50 ms | p99 ms | peak MiB | errors | rate ÷ recipe | CPU ÷ recipe |")
	fmt.Fprintln(w, "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|")
	for _, row := range r.Rows {
		m, rate, cpu := row.Median, "", ""
		if base := r.find(row.Work, recipe); base != nil {
			rate, cpu = fmt.Sprintf("%.2f", row.ratio(base, rateOf)), fmt.Sprintf("%.2f", row.ratio(base, cpuOf))
		}
		fmt.Fprintf(w, "| %s | %s | %.0f | %.1f | %.2f | %.2f | %.0f | %d | %s | %s |\n",
			row.Work, row.Proxy, m.Rate, m.CPU, m.P50, m.P99, m.PeakMiB, m.Errors, rate, cpu)
	}
	fmt.Fprintln(w, "\n| what the gateway must hold | measured | |")
	fmt.Fprintln(w, "|---|---:|---|")
	for _, b := range bars {
		r.printBar(w, b)
	}
	return w.String()
}

// bar bounds one figure of the gateway by the same figure of another row.
type bar struct {
	work         string
	figure       string
	of           func(m measurement) float64
	other        string // proxy to compare with
	otherWork    string // if it is not the same work
	limit        float64
	atLeastLimit bool
}

func cpuOf(m measurement) float64      { return m.CPU }
func rateOf(m measurement) float64     { return m.Rate }
func p99Of(m measurement) float64      { return m.P99 }
func requestsOf(m measurement) float64 { return m.V2Requests }
func bytesOf(m measurement) float64    { return m.V2Bytes }

var bars = []bar{
	{work: "POST 300 B", figure: "CPU", of: cpuOf, other: recipe, limit: 0.36},
	{work: "POST 300 B", figure: "CPU", of: cpuOf, other: respond, limit: 1.45},
	{work: "POST 300 B", figure: "CPU", of: cpuOf, other: nginxLua, limit: 1.85},
	{work: "POST 300 B", figure: "rate", of: rateOf, other: recipe, limit: 2.2, atLeastLimit: true},
	{work: "POST 300 B", figure: "p99", of: p99Of, other: recipe, limit: 1},
	{work: "GET pixel", figure: "CPU", of: cpuOf, other: gateway, otherWork: "POST 300 B", limit: 1.15},
	{work: "POST 64 KiB", figure: "CPU", of: cpuOf, other: recipe, limit: 0.6},
	{work: "POST 300 B, TLS, new connections", figure: "CPU", of: cpuOf, other: "nginx", limit: 1},
}

func (r *results) printBar(w *strings.Builder, b bar) {
	otherWork, than := b.work, b.other
	if b.otherWork != "" {
		otherWork, than = b.otherWork, b.otherWork
	}
	ours, theirs := r.find(b.work, gateway), r.find(otherWork, b.other)
	if ours == nil || theirs == nil {
		return
	}
	ratio := ours.ratio(theirs, b.of)
	sign := "≤"
	if b.atLeastLimit {
		sign = "≥"
	}
	fmt.Fprintf(w, "| %s: %s %s %.2f × %s | %.2f | %s |\n", b.work, b.figure, sign, b.limit, than, ratio, verdict(ratio, b.limit, b.atLeastLimit))
}

// verdict says whether a figure is within its limit.
func verdict(figure, limit float64, atLeast bool) string {
	if atLeast && figure >= limit || !atLeast && figure <= limit {
		return "held"
	}
	return "missed"
}
