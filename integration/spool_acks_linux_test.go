package integration

import (
	"testing"
	"time"
)

// TestSpoolNotesDeliveries delivers a backlog while callers send, and kills the
// gateway. What v2 had taken a second before that does not come again.
func TestSpoolNotesDeliveries(t *testing.T) {
	t.Parallel()
	const backlog = 1000
	v2 := startFickle(t)
	v2.goAway(closes)
	addr, socket := outsideSocket(t)
	g := &spooling{admin: freeAddr(t), dir: t.TempDir() + "/spool"}
	config := socketCaddyfile(g.admin,
		spoolBlock(v2.url(), g.dir, "", "mode always\n drain_rate 200"))
	p := startOn(t, config, socket)
	callers := startTraffic(t, addr, 8, backlog, "")
	callers.await(t, backlog)
	callers.stop()
	kill(p)

	v2.comeBack()
	p = startOn(t, config, socket)
	live := startTraffic(t, addr, 4, 1<<30, "")
	old := map[string]bool{}
	for _, id := range callers.acked {
		old[id] = true
	}
	late := func() (n int) { // of the backlog, a second ago and more
		for _, r := range v2.taken {
			if old[r.id] && time.Since(r.at) > time.Second {
				n++
			}
		}
		return n
	}
	v2.awaitUntil(t, func() bool { return late() >= 100 }, func() string { return "the backlog is not delivered" })
	v2.mu.Lock()
	noted := late()
	v2.mu.Unlock()
	killed := time.Now()
	kill(p)
	startOn(t, config, socket)
	live.stop()
	v2.await(t, callers.acked...)
	again := 0
	first := map[string]time.Time{}
	for _, r := range v2.all() {
		at, twice := first[r.id]
		if !twice {
			first[r.id] = r.at
		} else if at.Before(killed.Add(-time.Second)) && r.at.After(killed) {
			again++
		}
	}
	if again > 0 {
		t.Errorf("%d records came again, of %d that v2 had taken more than a second before the gateway was killed", again, noted)
	}
}
