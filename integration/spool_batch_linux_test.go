package integration

import (
	"math/rand/v2"
	"net/http"
	"strconv"
	"sync/atomic"
	"testing"
	"time"
)

// batchKills is a gateway that is killed again and again while callers send, with a
// v2 in trouble.
type batchKills struct {
	*spooling
	v2      *batchV2
	callers *traffic
	start   func() *process
}

func startBatchKills(t *testing.T, dir string) *batchKills {
	v2 := startTrouble(t)
	addr, socket := outsideSocket(t)
	g := &spooling{admin: freeAddr(t), dir: dir + "/spool"}
	config := socketCaddyfile(g.admin, spoolBlock(v2.URL, g.dir, "", always+"batch_wait 20ms\n drain_rate 100000"))
	return &batchKills{g, v2, startTraffic(t, addr, 8, 1<<30, ""), func() *process {
		p := startOn(t, config, socket)
		saysNoSecret(t, p)
		return p
	}}
}

// check starts the gateway once more, with a v2 that is well. In the end v2, which
// drops repeats by their uuid, has each record exactly once whose caller was told 200,
// and none twice. Without that it would have doubles.
func (k *batchKills) check(t *testing.T, each int) {
	k.start()
	k.callers.await(t, each)
	k.callers.stop()
	k.v2.settle(t)
	k.v2.await(t, k.callers.acked...)
	k.awaitEmpty(t)
	doubles := k.v2.once(t, k.callers.acked)
	if doubles == 0 {
		t.Error("no record came twice: this shows nothing")
	}
	for id, times := range k.v2.taken { // those whose callers were told nothing too
		if times > 1 {
			t.Errorf("record %s is at v2 %d times", id, times)
		}
	}
	if n := k.state(t).dead(); n > 0 {
		t.Errorf("%d dead letters", n)
	}
	if n := k.v2.singles("/tbl"); n > 0 {
		t.Errorf("%d records came by Postback", n)
	}
	t.Logf("%d records acknowledged, %d callers cut, %d requests, %d records would be there twice",
		len(k.callers.acked), k.callers.cut, len(k.v2.all()), doubles)
}

// TestBatchSurvivesKill kills the gateway, and stops it in good order now and then.
func TestBatchSurvivesKill(t *testing.T) {
	t.Parallel()
	kills, each := 6, 600
	if underRace() {
		kills, each = 3, 200
	}
	k := startBatchKills(t, t.TempDir())
	for n := range kills {
		p := k.start()
		k.callers.await(t, each)
		if n%3 == 2 {
			p.stop()
		} else {
			kill(p)
		}
	}
	k.check(t, each)
}

// TestBatchPowerCut cuts the power: what the disk forgets that it had delivered comes
// again with the same uuid. The gateway goes first. If it saw its disk fail, it would
// forward what it cannot keep, by Postback.
func TestBatchPowerCut(t *testing.T) {
	t.Parallel()
	cuts, each := 8, 100
	if underRace() {
		cuts = 4
	}
	seed := rand.Uint64()                    //nolint:gosec // G404: a test
	chance := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // G404: a test
	disk := mountForgetful(t)
	k := startBatchKills(t, disk.dir)
	forgotten := 0
	for range cuts {
		p := k.start()
		k.callers.await(t, 1+chance.IntN(2*each))
		kill(p)
		forgotten += disk.cut(chance)
		disk.mount(t)
	}
	k.check(t, each)
	t.Logf("%d cuts (seed %d), %d unsynced changes forgotten", cuts, seed, forgotten)
}

// TestBatchAccounts has v2 answer 429 to the batches of one account, for a long time.
// Those of another are at v2 within two seconds, and it is left alone by the first.
func TestBatchAccounts(t *testing.T) {
	t.Parallel()
	var limited atomic.Int32
	v2 := startBatchV2(t, func(a *batchArrival) batchAnswer {
		if a.header.Get("Authorization") != "TD1 "+spoolKey {
			return batchAnswer{}
		}
		limited.Add(1)
		return batchAnswer{status: http.StatusTooManyRequests, pause: "4000"}
	})
	g := serveSpool(t, v2.URL, "", always)
	_, noisy := numbered("noisy ", 200)
	longest := time.Duration(0)
	const rounds = 10
	for n := range rounds {
		sendRecords(t, g.addr, spoolTarget, noisy)
		id := "healthy " + strconv.Itoa(n)
		sendRecords(t, g.addr, healthyTarget, []string{withID(id)})
		sent := time.Now()
		v2.await(t, id)
		longest = max(longest, time.Since(sent))
	}
	if longest > 2*time.Second {
		t.Errorf("a healthy account's record was at v2 only after %s", longest)
	}
	if n := limited.Load(); n > 5 { // as many batches as may be on their way
		t.Errorf("v2 was asked %d times by the account that it wants to be left alone by", n)
	}
	g.awaitState(t, func(s *spoolState) bool { return s.records() == rounds*len(noisy) })
	t.Logf("the slowest was at v2 after %s, %d batches had a 429", longest, limited.Load())
}
