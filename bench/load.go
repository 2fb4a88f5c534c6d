package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

// concurrency is how many connections are open at a time.
const concurrency = 32

// streams is how many requests an HTTP/2 connection has open at a time.
const streams = 4

// threads is how many threads make the load: half of the processors, since the
// proxy and the stand-in need some too.
func threads() string { return strconv.Itoa(max(1, runtime.NumCPU()/2)) }

// load sends one kind of work through a proxy for a while.
func (p *place) load(w work, proxy string, length time.Duration) (measurement, error) {
	scheme := "http"
	if w.tls {
		scheme = "https"
	}
	url := scheme + "://" + address(proxy, w.tls) + w.uri
	if w.http2 {
		return p.h2load(w, url, length)
	}
	return p.wrk(w, url, length)
}

// seconds is a length as both load generators take it.
func seconds(length time.Duration) string { return strconv.Itoa(int(length.Seconds())) + "s" }

func (p *place) wrk(w work, url string, length time.Duration) (measurement, error) {
	method, keep := "POST", "keep"
	if w.size == 0 {
		method = "GET"
	}
	if w.close {
		keep = "close"
	}
	script := []string{p.path("report.lua"), url, "--", method, strconv.Itoa(w.size), keep}
	if w.tables > 0 {
		script = []string{p.path("events.lua"), url, "--", strconv.Itoa(w.tables), strconv.Itoa(w.size)}
	}
	connections := strconv.Itoa(cmp.Or(w.connections, concurrency))
	output, err := p.run(append([]string{"wrk", "-t" + threads(), "-c" + connections, "-d" + seconds(length), "-s"}, script...)...)
	if err != nil {
		return measurement{}, err
	}
	lines := bytes.Split(bytes.TrimSpace(output), []byte("\n"))
	var m measurement
	if err := json.Unmarshal(lines[len(lines)-1], &m); err != nil {
		return m, fmt.Errorf("wrk: %w\n%s", err, output)
	}
	return m.finish()
}

// h2load's log has a line for every request: when it began, its status and how
// long it took, both times in µs.
func (p *place) h2load(w work, url string, length time.Duration) (measurement, error) {
	record := `{"user":"alice","event":"view","page":"` + strings.Repeat("x", w.size)
	record = record[:w.size-2] + `"}`
	if err := os.WriteFile(p.path("record"), []byte(record), 0o600); err != nil {
		return measurement{}, err
	}
	_ = os.Remove(p.path("h2load.log"))
	if output, err := p.run("h2load", "-t"+threads(), "-c"+strconv.Itoa(concurrency), "-m"+strconv.Itoa(streams), "-D"+seconds(length),
		"-d", "record", "-H", "content-type: application/json", "--log-file", "h2load.log", url); err != nil {
		return measurement{}, fmt.Errorf("h2load: %w\n%s", err, output)
	}
	text, err := os.ReadFile(p.path("h2load.log"))
	if err != nil {
		return measurement{}, err
	}
	m := measurement{Seconds: length.Seconds()}
	var times []float64
	for line := range strings.Lines(string(text)) {
		var began, status, took int64
		if _, err := fmt.Sscanf(line, "%d %d %d", &began, &status, &took); err != nil {
			return m, fmt.Errorf("h2load's log: %w: %q", err, line)
		}
		if status != 200 {
			m.Errors++
		}
		times = append(times, float64(took)/1e3)
	}
	m.Requests = len(times)
	if m.Requests > 0 {
		slices.Sort(times)
		m.P50, m.P99 = times[len(times)/2], times[len(times)*99/100]
	}
	return m.finish()
}

func (p *place) run(args ...string) ([]byte, error) {
	cmd := exec.Command(args[0], args[1:]...) //nolint:gosec,noctx // G204: wrk and h2load
	cmd.Dir = p.dir
	output, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s: %w\n%s", args[0], err, output)
	}
	return output, err
}

// finish computes the rate. Without a request there is nothing to compare.
func (m measurement) finish() (measurement, error) {
	if m.Requests == 0 {
		return m, fmt.Errorf("no request was answered (%d errors)", m.Errors)
	}
	m.Rate = float64(m.Requests) / m.Seconds
	return m, nil
}
