package spool_test

import (
	"bytes"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/td-postback/gateway/spool"
)

// Halves of batches that v2 answers late count by their size: what they hold is not
// free before.
func TestHalvesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		now, most := 0, 0 // bytes with v2 in first halves
		hold := func(size int) {
			mu.Lock()
			now += size
			most = max(most, now)
			mu.Unlock()
			time.Sleep(time.Second)
			mu.Lock()
			now -= size
			mu.Unlock()
		}
		w := run(t, spool.Delivery{
			Limits: spool.Limits{InFlight: 128, Batching: spool.Batching{Most: 500, Wait: batchWait}},
			Part:   func(e spool.Entry) (spool.Part, bool) { return spool.Part{Group: "a", Record: e.Data}, true },
			SendBatch: func(_ string, records [][]byte) spool.BatchResult {
				switch len(records) {
				case 5:
					return spool.BatchResult{Result: spool.Result{Status: http.StatusUnprocessableEntity}}
				case 2: // the first half
					hold(len(records) * len(records[0]))
				}
				return spool.BatchResult{Result: taken}
			},
		})
		record := bytes.Repeat([]byte("x"), 990_000)
		for range 80 {
			for range 5 { // with one more, they would be too large for a batch
				w.queue.appendData(record)
			}
			time.Sleep(time.Millisecond) // nobody waits for room when the next batch comes
		}
		time.Sleep(10 * time.Minute)
		w.expect(t, map[state]int{acked: 400})
		if most > 32<<20 {
			t.Errorf("first halves of %d MB were with v2 at a time", most/1_000_000)
		}
	})
}

// ends are answers after which v2 is not asked for more of a batch.
var ends = map[string]spool.Result{
	"the account is limited": {Status: http.StatusTooManyRequests, RetryAfter: time.Minute},
	"v2 is down":             {Status: http.StatusServiceUnavailable, RetryAfter: time.Minute},
}

// While a batch is halved, v2 may come to be down, or limit the account: then it is
// not asked for the rest.
func TestHalvingEnds(t *testing.T) {
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, v2 := runBatches(t, spool.Delivery{
					Limits:  spool.Limits{InFlight: 1, Batching: spool.Batching{Most: 500, Wait: batchWait}},
					Account: func([]byte) string { return "a" },
				})
				requests := 0
				v2.set(func([]string) spool.BatchResult {
					requests++
					if requests == 1 {
						return spool.BatchResult{Result: spool.Result{Status: http.StatusUnprocessableEntity}}
					}
					return spool.BatchResult{Result: end}
				})
				w.queue.append(named("a", 500)...)
				time.Sleep(10 * time.Second)
				if n := len(v2.sizes()); n != 2 {
					t.Errorf("%d requests, the first half's and those behind it included, want 2", n)
				}
				v2.set(nil)
				time.Sleep(10 * time.Minute)
				w.expect(t, map[state]int{acked: 500})
			})
		})
	}
}

// The same, where a host takes no batches and the records go one by one.
func TestOneByOneEnds(t *testing.T) {
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, v2 := runBatches(t, spool.Delivery{
					Limits:  spool.Limits{InFlight: 1, Batching: spool.Batching{Most: 500, Wait: batchWait}},
					Account: func([]byte) string { return "a" },
				})
				v2.set(func([]string) spool.BatchResult {
					return spool.BatchResult{Result: spool.Result{Status: http.StatusNotFound}}
				})
				w.server.always(end)
				w.queue.append(named("a", 500)...)
				time.Sleep(10 * time.Second)
				if got, _ := w.server.seen(); len(got) != 1 {
					t.Errorf("%d records went alone, want 1", len(got))
				}
				w.server.always(taken)
				time.Sleep(10 * time.Minute)
				w.expect(t, map[state]int{acked: 500})
			})
		})
	}
}

// An account with records for many tables has as many batches that form: v2's 429 to
// the first one holds for the others.
func TestLimitedWhileBatchesForm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, v2 := runBatches(t, spool.Delivery{
			Limits:  spool.Limits{InFlight: 100, Batching: spool.Batching{Most: 500, Wait: time.Minute}},
			Account: func([]byte) string { return "a" },
		})
		v2.set(func([]string) spool.BatchResult {
			return spool.BatchResult{Result: spool.Result{Status: http.StatusTooManyRequests, RetryAfter: 10 * time.Minute}}
		})
		for _, group := range []string{"a", "b", "c", "d", "e", "f", "g", "h"} {
			w.queue.append(named(group, 10)...)
			time.Sleep(time.Second) // so that one goes after the other
		}
		time.Sleep(2 * time.Minute)
		if n := len(v2.sizes()); n != 1 {
			t.Errorf("%d requests for an account within its pause, want 1", n)
		}
		v2.set(nil)
		time.Sleep(30 * time.Minute)
		w.expect(t, map[state]int{acked: 80})
	})
}
