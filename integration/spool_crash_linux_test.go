package integration

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"
)

// TestSpoolSurvivesKill kills the gateway again and again while callers send,
// with a v2 that is up, down, and now this and now that. In the end v2 has each
// record whose caller was told 200. A record comes twice only if it was on its
// way when the gateway was killed, or had arrived just before: to note that takes
// the gateway a moment.
func TestSpoolSurvivesKill(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"on_failure", "always"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			surviveKills(t, mode)
		})
	}
}

func surviveKills(t *testing.T, mode string) {
	kills, each := 20, 200
	if underRace() {
		kills, each = 6, 100
	}
	const justBefore = time.Second
	v2 := startFickle(t)
	addr, socket := outsideSocket(t)
	g := &spooling{admin: freeAddr(t), dir: t.TempDir() + "/spool"}
	config := socketCaddyfile(g.admin,
		spoolBlock(v2.url(), g.dir, "max_conns 64", "mode "+mode+"\n drain_rate 100000"))
	callers := startTraffic(t, addr, 8, 1<<30, "")
	killed := make([]time.Time, 0, kills)
	for n := range kills {
		p := startOn(t, config, socket)
		saysNoSecret(t, p)
		flapping := flap(v2, n%3)
		callers.await(t, each)
		killed = append(killed, time.Now())
		kill(p)
		flapping()
	}
	v2.comeBack()
	p := startOn(t, config, socket)
	saysNoSecret(t, p)
	callers.await(t, each)
	callers.stop()
	v2.await(t, callers.acked...)
	g.awaitEmpty(t)
	if callers.refused > 0 {
		t.Errorf("%d callers were told 503", callers.refused)
	}

	arrived := map[string][]time.Time{}
	for _, r := range v2.all() {
		arrived[r.id] = append(arrived[r.id], r.at)
	}
	again, longest := make([]int, kills), time.Duration(0)
	for id, times := range arrived {
		for n := 1; n < len(times); n++ {
			why := slices.IndexFunc(killed, func(k time.Time) bool {
				return times[n].After(k) && times[n-1].After(k.Add(-justBefore)) && times[n-1].Before(k.Add(justBefore))
			})
			if why < 0 {
				t.Errorf("record %s came twice, and the gateway was not killed just after the first time", id)
				continue
			}
			again[why]++
			longest = max(longest, killed[why].Sub(times[n-1]))
		}
	}
	t.Logf("%d records acknowledged, %d callers cut, %d at v2; twice, by kill: %v, up to %v before it",
		len(callers.acked), callers.cut, len(arrived), again, longest)
}

// flap has v2 be up, down, or now this and now that.
func flap(v2 *fickle, how int) (stop func()) {
	switch how {
	case 0:
		v2.comeBack()
	case 1:
		v2.goAway(closes)
	default:
		stopping := make(chan struct{})
		var flapping sync.WaitGroup
		flapping.Go(func() {
			ticker := time.NewTicker(20 * time.Millisecond)
			defer ticker.Stop()
			for up := true; ; up = !up {
				if up {
					v2.comeBack()
				} else {
					v2.goAway(answers("503", ""))
				}
				select {
				case <-stopping:
					return
				case <-ticker.C:
				}
			}
		})
		return func() { close(stopping); flapping.Wait() }
	}
	return func() {}
}

// TestSpoolBacklog kills a gateway that keeps many records, starts it again,
// and has it deliver them. SPOOL_RECORDS is how many; only 100,000 and more say
// something of speed and memory.
func TestSpoolBacklog(t *testing.T) {
	total := 20_000
	if underRace() {
		total = 3_000
	}
	if value := os.Getenv("SPOOL_RECORDS"); value != "" {
		var err error
		if total, err = strconv.Atoi(value); err != nil {
			t.Fatal(err)
		}
	}
	full := total >= 100_000
	v2 := startFickle(t)
	v2.goAway(closes)
	addr, socket := outsideSocket(t)
	g := &spooling{admin: freeAddr(t), dir: t.TempDir() + "/spool"}
	config := socketCaddyfile(g.admin,
		spoolBlock(v2.url(), g.dir, "", "drain_rate 100000"))

	p := startOn(t, config, socket)
	from := time.Now()
	callers := startTraffic(t, addr, 64, total, fmt.Sprintf("%0150d", 0))
	callers.awaitAll(t, total)
	t.Logf("%d records kept at %.0f/s, %d MiB of memory", total, float64(total)/time.Since(from).Seconds(), peakMiB(t, p.cmd.Process.Pid))
	kill(p)

	from = time.Now()
	p = startOn(t, config, socket)
	saysNoSecret(t, p)
	isTaken(t, raw(t, addr, post(spoolTarget, asJSON, withID("first"))))
	ready := time.Since(from)
	if ready > 3*time.Second {
		t.Errorf("ready after %v", ready)
	}
	if n := g.state(t).records(); n != total+1 {
		t.Errorf("%d records are kept", n)
	}
	v2.comeBack()
	v2.awaitUntil(t, func() bool { return len(v2.taken) > 0 }, func() string { return "nothing is delivered" })
	from = time.Now()
	for end := time.Now().Add(patience + time.Duration(total)*time.Millisecond/5); g.state(t).records() > 0 && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
	rate := float64(total) / time.Since(from).Seconds()
	v2.await(t, append(callers.acked, "first")...)
	peak := peakMiB(t, p.cmd.Process.Pid)
	t.Logf("ready after %v, delivered at %.0f/s, %d MiB of memory, %d deliveries of %d records",
		ready.Round(time.Millisecond), rate, peak, len(v2.all()), total+1)
	if full && (rate < 10_000 || peak > 250) {
		t.Error("too slow, or too much memory")
	}
	if n := len(v2.all()); n != total+1 {
		t.Errorf("v2 has taken %d records", n)
	}
}
