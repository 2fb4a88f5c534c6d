package integration

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestMixedSpool sends requests of every kind to a gateway with a spool, whose
// disk is full now and then, and to a v2 that fails at random, is down now and
// then, and slows one account down. In the end the record of every caller that
// was told 200 is at v2, or was refused by it and is a dead letter, or had no room as one; what was
// refused is not there. Each record that is there twice was counted, and each that was refused without room for it.
// The books balance.
func TestMixedSpool(t *testing.T) {
	t.Parallel()
	total := 5_000
	if value := os.Getenv("MIXED_REQUESTS"); value != "" {
		n, err := strconv.Atoi(value)
		if err != nil {
			t.Fatal(err)
		}
		total = n / 4
	}
	for _, mode := range []string{"on_failure", "always"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			mixWithSpool(t, mode, total)
		})
	}
}

func mixWithSpool(t *testing.T, mode string, total int) {
	v2 := newFlakySandbox()
	server := httptest.NewServer(v2)
	t.Cleanup(server.Close)
	g, inside := serveOnDisk(t, "size=512m", server.URL, "mode "+mode+"\n max_size 320MiB\n dead_size 16MiB\n drain_rate 100000")

	var next atomic.Int64
	var told tally
	var callers, trouble sync.WaitGroup
	for caller := range 32 {
		callers.Go(func() {
			client := &http.Client{
				Timeout: patience, Transport: &http.Transport{DisableKeepAlives: caller%4 == 0},
				CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
			}
			for n := int(next.Add(1)); n <= total && !t.Failed(); n = int(next.Add(1)) {
				request := newMixedRequest(n)
				told.add(t, n, request.send(client, "http://"+g.addr))
			}
		})
	}
	ended := make(chan struct{})
	trouble.Go(func() { makeTrouble(t, v2, filepath.Join(inside, "filler"), ended) })
	callers.Wait()
	close(ended)
	trouble.Wait()
	v2.calm.Store(true)
	g.awaitEmpty(t)
	told.checkKept(t, v2, total, g)
	if received := checkBooks(t, awaitIdle(t, g.admin)); received != total {
		t.Errorf("the books have %d requests, the callers sent %d", received, total)
	}
	t.Logf("%s: %d requests, %v", mode, total, told.results)
}

// makeTrouble fills the spool's disk and has v2 be down, by turns.
func makeTrouble(t *testing.T, v2 *flakySandbox, filler string, ended <-chan struct{}) {
	ticker := time.NewTicker(300 * time.Millisecond)
	defer ticker.Stop()
	for n := 0; ; n++ {
		switch n % 8 { // half of the time there is no trouble
		case 0:
			v2.down.Store(true)
		case 1:
			fill(t, filler)
		case 2:
			v2.down.Store(false)
		case 3:
			if err := os.Remove(filler); err != nil {
				t.Error(err)
			}
		}
		select {
		case <-ended:
			v2.down.Store(false)
			_ = os.Remove(filler)
			return
		case <-ticker.C:
		}
	}
}

// checkKept compares with what v2 has, when a spool was between.
func (a *tally) checkKept(t *testing.T, v2 *flakySandbox, total int, g *spooling) {
	if len(a.of) != total {
		t.Errorf("%d of %d callers were told something", len(a.of), total)
	}
	twice, refused := 0, 0
	for id, result := range a.of {
		times := v2.taken.of(strconv.Itoa(id))
		switch kind := id % mixedKinds; {
		case result == "forwarded" && (kind == mixedEarly || kind == mixedJunk):
			refused++ // v2 never takes it, so it was kept and refused
		case result == "forwarded" || result == "redirect_not_allowed":
			if times == 0 {
				t.Errorf("record %d is missing at v2, its caller was told %s", id, result)
			}
		case times > 0 && result != "spool_unavailable" && result != "spool_full": // or its answer was lost
			t.Errorf("record %d is at v2 %d times, its caller was told %s", id, times, result)
		}
		twice += max(0, times-1)
	}
	counted, _ := g.spoolMetrics(t)
	if possible := int(counted["duplicates_possible_total"]); twice > possible {
		t.Errorf("%d records are at v2 twice, %d were counted", twice, possible)
	}
	unkept := int(counted[`deliveries_total{fate="refused_unkept"}`])
	if dead := g.state(t).dead(); dead+unkept != refused {
		t.Errorf("%d dead letters, and %d without room; %d kept records were refused", dead, unkept, refused)
	}
	if n := a.results["forwarded"]; n < total/4 {
		t.Errorf("only %d of %d were taken", n, total)
	}
}
