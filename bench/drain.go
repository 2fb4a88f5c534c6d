package main

import (
	"fmt"
	"log"
	"os"
	"strconv"
	"time"
)

const (
	// spoolDrain is the gateway that has kept records, and standinLate the v2 that
	// comes up for them.
	spoolDrain  = "spool, a backlog"
	standinLate = "standin, late"

	// fillLength is how long callers send until it is looked how many records are
	// kept.
	fillLength = 5 * time.Second

	// drainPatience is how long a backlog may take.
	drainPatience = 10 * time.Minute
)

// drained is how the delivery of a backlog went.
type drained struct {
	records int
	first   float64 // seconds from v2's start to its first record
	seconds float64 // from there to an empty spool
	cpu     float64 // µs of the gateway for each record
	before  float64 // MiB at the most while the records were kept
	peak    float64 // MiB at the most from v2's start on
	own     float64 // of these at the most without the pages of files

	requests, bytes float64 // to v2 for each record
}

// runDrain has the gateway keep so many records while v2 is down, starts v2, and
// measures how the records are delivered. With a file, it has a profile of so long
// from the first one on.
func runDrain(records, rounds int, length time.Duration, profile string) error {
	if err := install("wrk"); err != nil {
		return err
	}
	place, err := prepare()
	if err != nil {
		return err
	}
	defer place.remove()
	fmt.Printf("%s\n%d tables, records of %d bytes\n\n", describeMachine(), spoolWork.tables, spoolWork.size)
	fmt.Println("| records | first after s | seconds | records/s | CPU µs/record | peak MiB | without files | peak MiB while kept | requests to v2 per record | bytes to v2 per record |")
	fmt.Println("|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
	var rates, peaks []float64
	for range rounds {
		d, err := place.drain(records, length, profile)
		if err != nil {
			return err
		}
		rate := float64(d.records) / d.seconds
		fmt.Printf("| %d | %.2f | %.2f | %.0f | %.2f | %.0f | %.0f | %.0f | %.4f | %.0f |\n",
			d.records, d.first, d.seconds, rate, d.cpu, d.peak, d.own, d.before, d.requests, d.bytes)
		rates, peaks = append(rates, rate), append(peaks, d.peak)
	}
	rate, peak := middle(rates), middle(peaks)
	fmt.Println("\n| what draining must hold | measured | |")
	fmt.Println("|---|---:|---|")
	fmt.Printf("| records/s ≥ 100000 | %.0f | %s |\n", rate, verdict(rate, 100_000, true))
	fmt.Printf("| peak ≤ 250 MiB | %.0f | %s |\n", peak, verdict(peak, 250, false))
	return nil
}

// drain measures once, from an empty spool to an empty spool.
func (p *place) drain(records int, length time.Duration, profile string) (d drained, err error) {
	running, err := p.start(spoolDrain)
	if err != nil {
		return d, err
	}
	defer running.stop()
	if d.records, err = p.fill(records); err != nil {
		return d, err
	}
	if d.before, err = running.peakMemory(); err != nil {
		return d, err
	}
	if err := running.forgetPeak(); err != nil {
		return d, err
	}
	before, err := running.cpu()
	if err != nil {
		return d, err
	}

	standin, err := p.start(standinLate)
	if err != nil {
		return d, err
	}
	defer standin.stop()
	profiled := make(chan error, 1)
	var began time.Duration
	err = d.wait(running, func() (err error) {
		if profile == "" {
			profiled <- nil
		} else {
			go func() { profiled <- fetchProfile(spoolDrain, length, profile) }()
		}
		began, err = running.cpu()
		return err
	})
	if err != nil {
		return d, err
	}
	after, err := running.cpu()
	if err != nil {
		return d, err
	}
	d.cpu = float64((after - began).Microseconds()) / float64(d.records)
	if used, err := standin.cpu(); err == nil {
		log.Printf("the gateway has taken %s until v2's first record, the stand-in %.2f µs for each", began-before, float64(used.Microseconds())/float64(d.records))
	}
	if d.peak, err = running.peakMemory(); err != nil {
		return d, err
	}
	return d, <-profiled
}

// fill sends until at least so many records are kept, and returns how many are.
func (p *place) fill(records int) (have int, err error) {
	for have < records {
		m, err := p.load(spoolWork, spoolDrain, fillLength)
		if err != nil {
			return have, err
		}
		if m.Errors > 0 {
			return have, fmt.Errorf("keeping records: %d errors", m.Errors)
		}
		if have, err = kept(spoolDrain); err != nil {
			return have, err
		}
		log.Printf("%d records are kept, %.0f/s", have, m.Rate)
	}
	return have, nil
}

// wait waits until v2 has all records and the spool is empty. It calls begun when v2
// has the first one.
func (d *drained) wait(running *process, begun func() error) error {
	up := time.Now()
	var first time.Time
	for ; ; time.Sleep(10 * time.Millisecond) {
		now, err := countsOf(standinLate)
		if err != nil {
			return err
		}
		if first.IsZero() && now.Events > 0 {
			first = time.Now()
			if err := begun(); err != nil {
				return err
			}
		}
		own, err := memory("/proc/"+strconv.Itoa(running.cmd.Process.Pid), "RssAnon:")
		if err != nil {
			return err
		}
		d.own = max(d.own, own)
		if time.Since(up) > drainPatience {
			return fmt.Errorf("v2 has %d of %d records after %s", now.Events, d.records, drainPatience)
		}
		if now.Events < d.records {
			continue
		}
		left, err := kept(spoolDrain)
		if err != nil {
			return err
		}
		if left == 0 {
			d.first, d.seconds = first.Sub(up).Seconds(), time.Since(first).Seconds()
			d.requests, d.bytes = float64(now.Requests)/float64(d.records), float64(now.Bytes)/float64(d.records)
			return nil
		}
	}
}

// forgetPeak has peakMemory begin anew with what is in use now.
func (p *process) forgetPeak() error {
	return p.each(func(dir string, _ []string) error {
		return os.WriteFile(dir+"/clear_refs", []byte("5"), 0)
	})
}
