package spool_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/td-postback/gateway/spool"
)

// chaos is v2 that answers at random, and knows what it has taken.
type chaos struct {
	mu     sync.Mutex
	random *rand.Rand
	calm   bool
	taken  map[string]bool
	twice  int // how many were taken once more, alone
}

func (c *chaos) send(records []string) (r spool.BatchResult) {
	c.mu.Lock()
	defer c.mu.Unlock()
	take := func(names ...string) {
		for _, name := range names {
			c.taken[name] = true // it drops the repeat
		}
	}
	poisoned := slices.ContainsFunc(records, func(name string) bool { return strings.HasSuffix(name, "7") })
	dice := c.random.IntN(100)
	if c.calm {
		dice = 99
	}
	switch {
	case dice < 5:
		return spool.BatchResult{Result: spool.Result{Err: errNobody, Ambiguous: true}}
	case dice < 10:
		take(records...)
		return spool.BatchResult{Result: spool.Result{Err: errNobody, Ambiguous: true}}
	case dice < 13:
		return spool.BatchResult{Result: spool.Result{Status: http.StatusTooManyRequests, RetryAfter: time.Duration(c.random.IntN(20)) * time.Second}}
	case dice < 16:
		return spool.BatchResult{Result: spool.Result{Status: http.StatusServiceUnavailable, RetryAfter: time.Duration(c.random.IntN(5)) * time.Second}}
	case dice < 19:
		return spool.BatchResult{Result: spool.Result{Status: http.StatusNotFound}}
	case dice < 21 && len(records) > 1:
		return spool.BatchResult{Result: spool.Result{Status: http.StatusUnprocessableEntity}}
	case poisoned:
		return spool.BatchResult{Result: spool.Result{Status: http.StatusUnprocessableEntity}}
	case dice < 40:
		r = spool.BatchResult{Result: spool.Result{Status: http.StatusPartialContent}, Receipts: make([]spool.Receipt, len(records))}
		for i, name := range records {
			if r.Receipts[i].Taken = c.random.IntN(4) > 0; r.Receipts[i].Taken {
				take(name)
			}
		}
		return r
	}
	take(records...)
	return spool.BatchResult{Result: taken}
}

// TestBatchesAtRandom has v2 answer at random, records be appended and limits be
// changed at random. In the end, what is acked was taken, each record is acked or a
// dead letter, the queue was told of each once, and what v2 has twice was counted.
func TestBatchesAtRandom(t *testing.T) {
	for seed := range uint64(20) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { synctest.Test(t, func(t *testing.T) { batchesAtRandom(t, seed) }) })
	}
}

func batchesAtRandom(t *testing.T, seed uint64) {
	random := rand.New(rand.NewPCG(seed, 1))                                       //nolint:gosec // G404: a test
	v2 := &chaos{random: rand.New(rand.NewPCG(seed, 2)), taken: map[string]bool{}} //nolint:gosec // G404: a test
	group := func(data []byte) string { return string(data[:bytes.IndexByte(data, ':')]) }
	limits := func() spool.Limits {
		return spool.Limits{
			InFlight: 1 + random.IntN(20), Rate: 1000, MaxAge: 6 * day, BytesRate: []int64{0, 100_000}[random.IntN(2)],
			Batching: spool.Batching{Most: []int{0, 1, 7, 500}[random.IntN(4)], Wait: time.Duration(1+random.IntN(3000)) * time.Millisecond},
		}
	}
	w := run(t, spool.Delivery{
		Limits:  limits(),
		Account: func(data []byte) string { return group(data)[:1] },
		Part:    func(e spool.Entry) (spool.Part, bool) { return spool.Part{Group: group(e.Data), Record: e.Data}, true },
		SendBatch: func(g string, records [][]byte) spool.BatchResult {
			names, size := make([]string, len(records)), 0
			for i, r := range records {
				names[i], size = string(r), size+len(r)
				if group(r) != g {
					t.Errorf("%s in a batch of %s", r, g)
				}
			}
			r := v2.send(names)
			r.Plain, r.Sent = size, size/5+1
			return r
		},
	})
	w.server.set(func(data string) spool.Result {
		if strings.HasSuffix(data, "7") {
			return spool.Result{Status: http.StatusBadRequest}
		}
		v2.mu.Lock()
		defer v2.mu.Unlock()
		if v2.taken[data] {
			v2.twice++
		}
		v2.taken[data] = true
		return taken
	}, 0)
	w.queue.mu.Lock()
	w.queue.sheds = seed%2 == 1
	w.queue.mu.Unlock()
	total := 0
	for range 100 {
		for range random.IntN(200) {
			w.queue.append(fmt.Sprintf("%c%d:%d", "abc"[random.IntN(3)], random.IntN(3), total))
			if total++; random.IntN(2) == 0 {
				w.Arrived(1, 10)
			}
		}
		time.Sleep(time.Duration(random.IntN(2000)) * time.Millisecond)
		if random.IntN(5) == 0 {
			w.SetLimits(limits())
		}
	}
	v2.mu.Lock()
	v2.calm = true
	v2.mu.Unlock()
	time.Sleep(3 * time.Hour)
	synctest.Wait()
	for _, k := range w.queue.all(acked) {
		if !v2.taken[string(k.Data)] {
			t.Errorf("%s is acked, and v2 has not taken it", k.Data)
		}
	}
	for _, k := range w.queue.all(dead) {
		if !strings.HasSuffix(string(k.Data), "7") && k.why.Status != http.StatusPartialContent {
			t.Errorf("%s is a dead letter for another's sake: %+v", k.Data, k.why)
		}
	}
	if n := w.queue.count(acked) + w.queue.count(dead); n != total {
		t.Errorf("%d of %d records are acked or dead letters", n, total)
	}
	told := 0
	for _, r := range w.told {
		if r.Ambiguous && !r.Safe {
			told++
		}
	}
	if v2.twice > told {
		t.Errorf("v2 has %d records twice, and %d may be were told", v2.twice, told)
	}
	t.Logf("%d records, %d dead letters, %d twice, %d told", total, w.queue.count(dead), v2.twice, told)
}
