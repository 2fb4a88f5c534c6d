package integration

import (
	"sync/atomic"
	"testing"
	"time"
)

// TestBatchSurvivesKill kills the gateway again and again while callers send, stops it
// in good order now and then, with a v2 that loses answers, fails some records of a batch and is down, at random. In the
// end v2, which drops repeats by their uuid, has each record exactly once whose
// caller was told 200. Without that it would have doubles.
func TestBatchSurvivesKill(t *testing.T) {
	t.Parallel()
	kills, each := 6, 600
	if underRace() {
		kills, each = 3, 200
	}
	var calm atomic.Bool
	v2 := startBatchV2(t, func(a *batchArrival) batchAnswer {
		if calm.Load() {
			return batchAnswer{}
		}
		return trouble(a)
	})
	addr, socket := outsideSocket(t)
	g := &spooling{admin: freeAddr(t), dir: t.TempDir() + "/spool"}
	config := socketCaddyfile(g.admin, spoolBlock(v2.URL, g.dir, "", always+"batch_wait 20ms\n drain_rate 100000"))
	callers := startTraffic(t, addr, 8, 1<<30, "")
	for n := range kills {
		p := startOn(t, config, socket)
		saysNoSecret(t, p)
		callers.await(t, each)
		if n%3 == 2 {
			p.stop()
		} else {
			kill(p)
		}
	}
	p := startOn(t, config, socket)
	saysNoSecret(t, p)
	callers.await(t, each)
	callers.stop()
	calm.Store(true)
	began := time.Now()
	v2.await(t, callers.acked...)
	g.awaitEmpty(t)
	doubles := v2.once(t, callers.acked)
	if doubles == 0 {
		t.Error("no record came twice: this shows nothing")
	}
	for id, times := range v2.taken { // those whose callers were told nothing too
		if times > 1 {
			t.Errorf("record %s is at v2 %d times", id, times)
		}
	}
	if n := g.state(t).dead(); n > 0 {
		t.Errorf("%d dead letters", n)
	}
	for _, a := range v2.all() {
		if !a.batch {
			t.Errorf("a record came by Postback: %s", a.target)
		}
	}
	t.Logf("%d records acknowledged, %d callers cut, %d requests, %d would be there twice; the last one %s after the end",
		len(callers.acked), callers.cut, len(v2.all()), doubles, time.Since(began))
}
