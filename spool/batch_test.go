package spool_test

import (
	"bytes"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/td-postback/gateway/spool"
)

// batchServer stands in for v2's batch API. The records of a test are "group:name",
// and those that begin with "alone" go alone.
type batchServer struct {
	mu      sync.Mutex
	answer  func(records []string) spool.BatchResult // nil takes everything
	takes   time.Duration                            // an answer
	head    int                                      // bytes of a request beside its records
	batches [][]string
	at      []time.Time
}

func (b *batchServer) part(e spool.Entry) (spool.Part, bool) {
	group, _, _ := strings.Cut(string(e.Data[:min(len(e.Data), 20)]), ":")
	return spool.Part{Group: group, Record: e.Data}, group != "alone"
}

func (b *batchServer) send(group string, records [][]byte) spool.BatchResult {
	names, size := make([]string, len(records)), 0
	for i, r := range records {
		names[i] = string(r[:min(len(r), 20)])
		size += len(r)
		if g, _, _ := strings.Cut(names[i], ":"); g != group {
			names[i] = "of another group: " + names[i]
		}
	}
	time.Sleep(b.takes)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.batches, b.at = append(b.batches, names), append(b.at, time.Now())
	r := spool.BatchResult{Result: taken}
	if b.answer != nil {
		r = b.answer(names)
	}
	r.Plain, r.Sent = size, b.head+size/10
	return r
}

func (b *batchServer) set(answer func([]string) spool.BatchResult) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.answer = answer
}

// sizes is how many records the batches had.
func (b *batchServer) sizes() (sizes []int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, batch := range b.batches {
		sizes = append(sizes, len(batch))
	}
	return sizes
}

// times is when a record was in a batch.
func (b *batchServer) times(name string) (at []time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, batch := range b.batches {
		if slices.Contains(batch, name) {
			at = append(at, b.at[i])
		}
	}
	return at
}

const batchWait = 200 * time.Millisecond

// runBatches is run with batches of up to 500 records.
func runBatches(t testing.TB, how spool.Delivery) (*worker, *batchServer) {
	t.Helper()
	v2 := &batchServer{}
	how.Part, how.SendBatch = v2.part, v2.send
	if how.Batching == (spool.Batching{}) {
		how.Batching = spool.Batching{Most: 500, Wait: batchWait}
	}
	return run(t, how), v2
}

// named makes the records of a group.
func named(group string, n int) []string {
	names := numbers(n)
	for i := range names {
		names[i] = group + ":" + names[i]
	}
	return names
}

// refusing is v2 that answers a batch with a status because of some records.
func refusing(status int, poison ...string) func([]string) spool.BatchResult {
	return func(records []string) spool.BatchResult {
		for _, r := range records {
			if slices.Contains(poison, r) {
				return spool.BatchResult{Result: spool.Result{Status: status, Words: "poison"}}
			}
		}
		return spool.BatchResult{Result: taken}
	}
}

// partly is v2 that refuses some records of a batch, and takes the others.
func partly(poison ...string) func([]string) spool.BatchResult {
	return func(records []string) spool.BatchResult {
		r := spool.BatchResult{Result: taken, Receipts: make([]spool.Receipt, len(records))}
		for i, name := range records {
			r.Receipts[i].Taken = !slices.Contains(poison, name)
			if !r.Receipts[i].Taken {
				r.Status, r.Receipts[i].Words = http.StatusPartialContent, "not this one"
			}
		}
		return r
	}
}

func TestBatchesAreOfOneGroup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, v2 := runBatches(t, spool.Delivery{})
		all := append(named("a", 1000), named("b", 700)...)
		w.queue.append(all...)
		time.Sleep(batchWait)
		w.expect(t, map[state]int{acked: 1700})
		var got []string
		for _, batch := range v2.batches {
			got = append(got, batch...)
		}
		slices.Sort(got)
		slices.Sort(all)
		if !slices.Equal(got, all) {
			t.Error("the batches do not have each record once, with those of its group")
		}
		sizes := v2.sizes()
		slices.Sort(sizes)
		if !slices.Equal(sizes, []int{200, 500, 500, 500}) {
			t.Errorf("batches of %d records", sizes)
		}
		if seen, _ := w.server.seen(); len(seen) > 0 {
			t.Errorf("%d records went alone", len(seen))
		}
	})
}

func TestBatchKeepsTheOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, v2 := runBatches(t, spool.Delivery{Limits: spool.Limits{InFlight: 1}})
		w.queue.append(named("a", 2000)...)
		time.Sleep(batchWait)
		w.expect(t, map[state]int{acked: 2000})
		if got := slices.Concat(v2.batches...); !slices.Equal(got, named("a", 2000)) {
			t.Error("the records were not sent in the order in which they were appended")
		}
	})
}

func TestLoneRecordWaitsNoLonger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, v2 := runBatches(t, spool.Delivery{})
		began := time.Now()
		w.queue.append("a:1")
		time.Sleep(batchWait / 2)
		w.queue.append("a:2", "b:1")
		time.Sleep(2 * batchWait)
		w.expect(t, map[state]int{acked: 3})
		for name, came := range map[string]time.Duration{"a:1": 0, "a:2": 0, "b:1": batchWait / 2} { // a:2 goes with a:1
			at := v2.times(name)
			if len(at) != 1 || at[0].Sub(began) > came+batchWait || at[0].Sub(began) < came+batchWait*3/4 {
				t.Errorf("%s went at %v, want once, at most %s after %s", name, at, batchWait, came)
			}
		}
	})
}

// Batches that begin together do not go together: callers would wait while all are
// compressed, again and again.
func TestBatchesGoOneAfterTheOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const groups = 20
		w, v2 := runBatches(t, spool.Delivery{})
		for n := range groups {
			w.queue.append(named(strconv.Itoa(n), 1)...)
		}
		time.Sleep(batchWait)
		w.expect(t, map[state]int{acked: groups})
		together := 0
		for i, at := range v2.at[1:] {
			if at.Sub(v2.at[i]) < time.Millisecond {
				together++
			}
		}
		if together > groups*3/4 {
			t.Errorf("%d of %d batches went with another", together, groups)
		}
	})
}

// A batch that began with a longer wait holds up none of those with a shorter one.
func TestWaitIsMadeShorter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _ := runBatches(t, spool.Delivery{Limits: spool.Limits{Batching: spool.Batching{Most: 500, Wait: time.Minute}}})
		w.queue.append("a:1")
		synctest.Wait()
		w.SetLimits(spool.Limits{InFlight: 10, Rate: unlimited, MaxAge: 6 * day, Batching: spool.Batching{Most: 500, Wait: batchWait}})
		w.queue.append("b:1")
		time.Sleep(batchWait)
		w.expect(t, map[state]int{acked: 1, held: 1})
		time.Sleep(time.Minute)
		w.expect(t, map[state]int{acked: 2})
	})
}

func TestFullBatchWaitsForNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, v2 := runBatches(t, spool.Delivery{})
		w.queue.append(named("a", 500)...)
		w.expect(t, map[state]int{acked: 500})
		if got := v2.sizes(); !slices.Equal(got, []int{500}) {
			t.Errorf("batches of %d records, want one of 500 at once", got)
		}
	})
}

func TestBatchBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, v2 := runBatches(t, spool.Delivery{})
		for range 11 { // with a comma each and two brackets, five are more than 5,000,000
			w.queue.appendData(append([]byte("a:"), bytes.Repeat([]byte("x"), 999_998)...))
		}
		time.Sleep(batchWait)
		w.expect(t, map[state]int{acked: 11})
		if got := v2.sizes(); !slices.Equal(got, []int{4, 4, 3}) {
			t.Errorf("batches of %d records of 1,000,000 bytes, want 4, 4 and 3", got)
		}
	})
}

// Batches of large records go side by side, too.
func TestLargeBatchesSideBySide(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, v2 := runBatches(t, spool.Delivery{})
		v2.takes = time.Second
		for range 200 {
			w.queue.appendData(append([]byte("a:"), bytes.Repeat([]byte("x"), 989_998)...))
		}
		time.Sleep(10 * time.Second) // for 40 batches of 5, four at a time
		w.expect(t, map[state]int{acked: 200})
	})
}

// What waits for others takes bounded memory, however many groups there are.
func TestFormingBatchesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const groups = 40_000 // with 512 bytes each beside their records: more than 16 MiB
		w, v2 := runBatches(t, spool.Delivery{Limits: spool.Limits{Batching: spool.Batching{Most: 500, Wait: time.Minute}}})
		for n := range groups {
			w.queue.append(fmt.Sprintf("%d:", n))
		}
		synctest.Wait()
		if sent := len(v2.sizes()); sent == 0 || sent == groups {
			t.Errorf("%d batches went before their time, want some of %d", sent, groups)
		}
		time.Sleep(time.Minute)
		w.expect(t, map[state]int{acked: groups})
	})
}

func TestSomeGoAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, v2 := runBatches(t, spool.Delivery{})
		w.queue.append("a:1", "alone:1", "a:2")
		synctest.Wait()
		if got, _ := w.server.seen(); !slices.Equal(got, []string{"alone:1"}) {
			t.Errorf("%q went alone at once", got)
		}
		time.Sleep(batchWait)
		w.expect(t, map[state]int{acked: 3})
		if got := v2.sizes(); !slices.Equal(got, []int{2}) {
			t.Errorf("batches of %d records", got)
		}
	})
}

// A batch that v2 refuses for some of its records is halved until these are found.
func TestPoisonIsFound(t *testing.T) {
	for _, status := range []int{http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnprocessableEntity} {
		t.Run(http.StatusText(status), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, v2 := runBatches(t, spool.Delivery{})
				v2.set(refusing(status, "a:0", "a:77", "a:78", "a:499"))
				w.queue.append(named("a", 500)...)
				w.expect(t, map[state]int{acked: 496, dead: 4})
				for _, k := range w.queue.all(dead) {
					if k.why != (spool.Verdict{Status: status, Reason: string(spool.Refused), Words: "poison"}) {
						t.Errorf("%s is a dead letter for %+v", k.Data, k.why)
					}
				}
				if n := len(v2.sizes()); n > 1+2*4*9 {
					t.Errorf("%d requests for four records of 500", n)
				}
			})
		})
	}
}

func TestAllOfABatchAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, v2 := runBatches(t, spool.Delivery{Limits: spool.Limits{InFlight: 1}})
		v2.set(refusing(http.StatusBadRequest, named("a", 100)...))
		w.queue.append(named("a", 100)...)
		time.Sleep(batchWait)
		w.expect(t, map[state]int{dead: 100})
	})
}

// A key that v2 refuses is refused for all: there is nothing to find.
func TestKeyOfABatchIsRefused(t *testing.T) {
	for _, status := range []int{http.StatusUnauthorized, http.StatusForbidden} {
		t.Run(http.StatusText(status), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, v2 := runBatches(t, spool.Delivery{})
				v2.set(refusing(status, "a:0"))
				w.queue.append(append(named("a", 500), named("b", 500)...)...)
				w.expect(t, map[state]int{acked: 500, dead: 500})
				if got := v2.sizes(); !slices.Equal(got, []int{500, 500}) {
					t.Errorf("batches of %d records", got)
				}
			})
		})
	}
}

// A host without the batch API gets each record alone: nothing is lost for that.
func TestNoBatchAPI(t *testing.T) {
	for _, status := range []int{http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusUnsupportedMediaType, http.StatusFound} {
		t.Run(http.StatusText(status), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, v2 := runBatches(t, spool.Delivery{})
				w.server.duration = time.Second
				v2.set(func([]string) spool.BatchResult { return spool.BatchResult{Result: spool.Result{Status: status}} })
				w.queue.append(named("a", 10)...)
				time.Sleep(batchWait + time.Second)
				w.expect(t, map[state]int{acked: 10})
				got, _ := w.server.seen()
				slices.Sort(got)
				if !slices.Equal(got, named("a", 10)) {
					t.Errorf("%q went alone", got)
				}
				if w.server.most != 10 {
					t.Errorf("%d at a time, want all: there is room", w.server.most)
				}
			})
		})
	}
}

func TestReceipts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, v2 := runBatches(t, spool.Delivery{})
		v2.set(partly("a:3"))
		began := time.Now()
		w.queue.append(named("a", 500)...)
		w.expect(t, map[state]int{acked: 499, waiting: 1})
		time.Sleep(10 * time.Minute)
		w.expect(t, map[state]int{acked: 499, dead: 1})
		if k := w.queue.all(dead)[0]; string(k.Data) != "a:3" || k.why.Words != "not this one" || k.why.Status != http.StatusPartialContent {
			t.Errorf("%s is a dead letter for %+v", k.Data, k.why)
		}
		at := v2.times("a:3")
		if len(at) != 5 {
			t.Fatalf("it was tried %d times, want 5", len(at))
		}
		for n, want := range []time.Duration{time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second} {
			if pause := at[n+1].Sub(at[n]); pause < want/2 || pause > want*3/2+batchWait {
				t.Errorf("pause %d is %s, want about %s", n, pause, want)
			}
		}
		if last := at[4].Sub(began); last > 30*time.Second {
			t.Errorf("the last try was after %s", last)
		}
	})
}

func TestRefusedByReceiptForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, v2 := runBatches(t, spool.Delivery{})
		v2.set(partly("a:3"))
		w.queue.append(named("a", 10)...)
		time.Sleep(batchWait)
		w.expect(t, map[state]int{acked: 9, waiting: 1})
		v2.set(nil)
		time.Sleep(2 * time.Second)
		w.expect(t, map[state]int{acked: 10})
	})
}

// Failures that are no receipt's do not count for a record.
func TestOnlyReceiptsRefuse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, v2 := runBatches(t, spool.Delivery{})
		v2.set(func([]string) spool.BatchResult { return spool.BatchResult{Result: failing} })
		w.queue.append("a:3")
		time.Sleep(10 * time.Minute)
		v2.set(partly("a:3"))
		time.Sleep(30 * time.Minute)
		if n := len(v2.times("a:3")); n < 10 {
			t.Errorf("%d tries", n)
		}
		w.expect(t, map[state]int{waiting: 1})
	})
}

// v2 that says only that some records failed gets all of them again: it knows by
// their uuid what it has. They are not tried for ever.
func TestPartialWithoutReceipts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, v2 := runBatches(t, spool.Delivery{})
		v2.set(func([]string) spool.BatchResult {
			return spool.BatchResult{Result: spool.Result{Status: http.StatusPartialContent}}
		})
		w.queue.append(named("a", 10)...)
		time.Sleep(batchWait)
		w.expect(t, map[state]int{waiting: 10})
		for _, r := range w.told {
			if !r.Ambiguous || !r.Safe {
				t.Fatalf("told of %+v, want an ambiguous one of which a repeat is dropped", r)
			}
		}
		v2.set(nil)
		time.Sleep(2 * time.Second)
		w.expect(t, map[state]int{acked: 10})
	})
}

var lost = spool.Result{Err: errNobody, Ambiguous: true}

func TestLostAnswerOfABatch(t *testing.T) {
	for name, c := range map[string]struct {
		down   time.Duration
		double bool // v2 may have it twice
	}{
		"soon":                  {30 * time.Minute, false},
		"v2 has forgotten them": {90 * time.Minute, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, v2 := runBatches(t, spool.Delivery{})
				v2.set(func([]string) spool.BatchResult { return spool.BatchResult{Result: lost} })
				w.queue.append("a:1")
				time.Sleep(c.down)
				w.mu.Lock()
				for _, r := range w.told {
					if !r.Ambiguous || !r.Safe {
						t.Errorf("told of %+v, want an ambiguous one of which a repeat is dropped", r)
					}
				}
				w.told = nil
				w.mu.Unlock()
				v2.set(nil)
				time.Sleep(time.Hour)
				w.expect(t, map[state]int{acked: 1})
				if r := w.told[len(w.told)-1]; r.Ambiguous != c.double {
					t.Errorf("delivered with %+v, want that it may be there twice: %t", r, c.double)
				}
			})
		})
	}
}

// What may have been taken in a batch is repeated in one, when batches are switched
// off: alone, v2 would take it twice.
func TestBatchesAreSwitchedOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, v2 := runBatches(t, spool.Delivery{})
		v2.set(func([]string) spool.BatchResult { return spool.BatchResult{Result: lost} })
		w.queue.append("a:1", "a:2")
		time.Sleep(batchWait)
		synctest.Wait()
		w.SetLimits(spool.Limits{InFlight: 10, Rate: unlimited, MaxAge: 6 * day})
		v2.set(nil)
		w.queue.append("a:3")
		time.Sleep(5 * time.Second)
		w.expect(t, map[state]int{acked: 3})
		if got, _ := w.server.seen(); !slices.Equal(got, []string{"a:3"}) {
			t.Errorf("%q went alone", got)
		}
		for _, name := range []string{"a:1", "a:2"} {
			if n := len(v2.times(name)); n != 2 {
				t.Errorf("%s was in %d batches, want 2", name, n)
			}
		}
	})
}

// A batch that fails comes again in smaller ones: a record that makes v2 fail holds
// up the others for seconds only.
func TestRecordThatMakesBatchesFail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, v2 := runBatches(t, spool.Delivery{})
		v2.set(func(records []string) spool.BatchResult {
			if slices.Contains(records, "a:123") {
				return spool.BatchResult{Result: spool.Result{Status: http.StatusInternalServerError}}
			}
			return spool.BatchResult{Result: taken}
		})
		w.queue.append(named("a", 500)...)
		time.Sleep(24 * time.Second) // pauses of 1, 2, 4 and 8 s, each half as long again at most, and batchWait before each
		w.expect(t, map[state]int{acked: 499, waiting: 1})
	})
}

func TestBatchesWhileDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, v2 := runBatches(t, spool.Delivery{Limits: spool.Limits{InFlight: 4}})
		v2.set(func([]string) spool.BatchResult { return spool.BatchResult{Result: nobody} })
		for g := range 100 {
			w.queue.append(named(fmt.Sprint("g", g), 100)...)
		}
		time.Sleep(5 * time.Minute)
		if !w.IsOpen() {
			t.Fatal("v2 is not taken to be down")
		}
		if n := len(v2.sizes()); n > 5*60 {
			t.Errorf("%d requests in five minutes", n)
		}
		v2.set(nil)
		time.Sleep(30 * time.Minute)
		w.expect(t, map[state]int{acked: 10_000})
	})
}

func TestBatchOfAPausedAccount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, v2 := runBatches(t, spool.Delivery{Account: func(data []byte) string { return string(data[:1]) }})
		v2.set(func(records []string) spool.BatchResult {
			if records[0][0] == 'a' {
				return spool.BatchResult{Result: spool.Result{Status: http.StatusTooManyRequests, RetryAfter: time.Minute}}
			}
			return spool.BatchResult{Result: taken}
		})
		for range 10 {
			w.queue.append(append(named("a", 500), named("b", 500)...)...)
			time.Sleep(batchWait)
		}
		if got := w.queue.count(acked); got != 5000 {
			t.Errorf("%d records of the other account are delivered, want 5000", got)
		}
		if got := v2.times("a:0"); len(got) != 1 {
			t.Errorf("the account was asked %d times within its pause", len(got))
		}
		v2.set(nil)
		time.Sleep(2 * time.Minute)
		w.expect(t, map[state]int{acked: 10_000})
	})
}

// An account that v2 has limited for a moment comes back while it goes on sending as
// fast as before, faster than one at a time of its records could be.
func TestLimitedAccountComesBackByBatch(t *testing.T) {
	t.Parallel()
	for _, wait := range []time.Duration{batchWait, 10 * time.Second, time.Minute} {
		t.Run(wait.String(), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w, v2 := runBatches(t, spool.Delivery{Limits: spool.Limits{Rate: 1000, Batching: spool.Batching{Most: 500, Wait: wait}}})
				v2.takes = 100 * time.Millisecond
				began := time.Now()
				v2.set(func([]string) spool.BatchResult {
					if time.Since(began) < 5*time.Second {
						return spool.BatchResult{Result: spool.Result{Status: http.StatusTooManyRequests}}
					}
					return spool.BatchResult{Result: taken}
				})
				const seconds = 30
				const each = 20 // 2,000 a second, of ten tables
				for n := range seconds * 100 {
					w.queue.append(named(fmt.Sprint("t", n%10), each)...)
					for range each {
						w.Arrived(1, 10)
					}
					time.Sleep(10 * time.Millisecond)
				}
				if n := w.Paused(); n > 0 {
					t.Errorf("the account is limited still, %d of %d records are delivered", w.queue.count(acked), seconds*100*each)
				}
				time.Sleep(2*wait + 2*seconds*time.Second) // what was put off, all at most, comes at Rate
				w.expect(t, map[state]int{acked: seconds * 100 * each})
			})
		})
	}
}

// v2 that takes no batches gets their records one by one, but none when it is down,
// has limited their account, or the gateway stops.
func TestRecordsOfABatchOneByOne(t *testing.T) {
	for name, c := range map[string]struct {
		answer spool.Result
		most   int // how many records are sent
	}{
		"it is down":             {nobody, 20},
		"the account is limited": {spool.Result{Status: http.StatusTooManyRequests, RetryAfter: time.Hour}, 20},
		"the gateway stops":      {taken, 70},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, v2 := runBatches(t, spool.Delivery{Limits: spool.Limits{InFlight: 10}})
				v2.set(func([]string) spool.BatchResult {
					return spool.BatchResult{Result: spool.Result{Status: http.StatusNotFound}}
				})
				w.server.set(func(string) spool.Result { return c.answer }, 200*time.Millisecond)
				w.queue.append(named("a", 500)...)
				time.Sleep(time.Second)
				w.stop()
				time.Sleep(time.Minute)
				if got, _ := w.server.seen(); len(got) == 0 || len(got) > c.most {
					t.Errorf("%d records were sent, want 1 to %d", len(got), c.most)
				}
				if n := w.queue.count(acked) + w.queue.count(waiting) + w.queue.count(held); n != 500 {
					t.Errorf("%d records are delivered or wait, want 500", n)
				}
			})
		})
	}
}

// A host that takes no batches is found to be up again by one record.
func TestHostWithoutBatchesComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, v2 := runBatches(t, spool.Delivery{})
		v2.set(func([]string) spool.BatchResult {
			return spool.BatchResult{Result: spool.Result{Status: http.StatusNotFound}}
		})
		w.server.always(nobody)
		w.queue.append(named("a", 500)...)
		time.Sleep(time.Minute)
		if !w.IsOpen() {
			t.Error("v2 is not taken to be down")
		}
		w.server.always(taken)
		time.Sleep(2 * time.Minute)
		w.expect(t, map[state]int{acked: 500})
	})
}

func TestRateOfBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _ := runBatches(t, spool.Delivery{Limits: spool.Limits{Rate: 1000}})
		w.queue.append(named("a", 20_000)...)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if got := w.queue.count(acked); got < 9_000 || got > 10_200 {
			t.Errorf("%d records in 10 s, want about 10,000", got)
		}
	})
}

// A record that goes alone holds no room that a batch needs which is due before it.
func TestRecordAloneBesideBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _ := runBatches(t, spool.Delivery{Limits: spool.Limits{InFlight: 1, Rate: 10}})
		for n := range 100 { // while one that goes alone waits for its turn, a batch is due
			w.queue.append(fmt.Sprint("a:", n), fmt.Sprint("alone:", n))
		}
		time.Sleep(time.Minute)
		w.expect(t, map[state]int{acked: 200})
	})
}

// BytesRate counts what goes over the wire: a tenth, here.
func TestBytesRateOfBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, v2 := runBatches(t, spool.Delivery{Limits: spool.Limits{BytesRate: 10_000}})
		record := append([]byte("a:"), bytes.Repeat([]byte("x"), 998)...)
		for range 20_000 {
			w.queue.appendData(record)
		}
		time.Sleep(time.Minute) // until it is known
		synctest.Wait()
		before := w.queue.count(acked)
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := w.queue.count(acked) - before; got < 5_400 || got > 6_600 {
			t.Errorf("%d records in a minute, want about 6,000", got)
		}
		for _, size := range v2.sizes()[10:] {
			if size > 500 {
				t.Errorf("a batch of %d", size)
			}
		}
	})
}

// Records that arrive meanwhile let as many of the backlog pass as they are
// themselves, not as many as their bytes could be compressed to.
func TestBytesRateBesideLiveBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _ := runBatches(t, spool.Delivery{Limits: spool.Limits{BytesRate: 10_000}})
		record := append([]byte("a:"), bytes.Repeat([]byte("x"), 998)...)
		for range 100_000 {
			w.queue.appendData(record)
		}
		live := func() { // 100 records a second
			for range 60 * 100 {
				w.queue.appendData(record)
				w.Arrived(1, len(record))
				time.Sleep(10 * time.Millisecond)
			}
		}
		live() // until it is known how well they are compressed
		before := w.queue.count(acked)
		live()
		if got := w.queue.count(acked) - before; got < 11_000 || got > 13_000 {
			t.Errorf("%d records in a minute, want about 6,000 beside as many live ones", got)
		}
	})
}

// Small records, each of a group of its own, take more bytes on the wire than they
// have. Large ones beside them are not taken to do the same.
func TestBytesRateOfSmallAndLargeBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, v2 := runBatches(t, spool.Delivery{Limits: spool.Limits{BytesRate: 100_000}})
		v2.head = 500
		large := append([]byte("large:"), bytes.Repeat([]byte("x"), 99_994)...)
		for n := range 2_000 { // 10,500 bytes of a large one, and 9 times about 500
			w.queue.appendData(large)
			for g := range 9 {
				w.queue.append(fmt.Sprint("t", n*9+g, ":1"))
			}
		}
		time.Sleep(time.Minute) // until it is known
		synctest.Wait()
		before := w.queue.count(acked)
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := w.queue.count(acked) - before; got < 3_200 || got > 5_000 {
			t.Errorf("%d records in a minute, want about 4,000", got)
		}
	})
}

func TestStopWhileBatchesForm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, v2 := runBatches(t, spool.Delivery{Limits: spool.Limits{Batching: spool.Batching{Most: 500, Wait: time.Minute}}})
		w.queue.append(append(named("a", 10), named("b", 10)...)...)
		synctest.Wait()
		w.stop()
		w.expect(t, map[state]int{waiting: 20})
		if n := len(v2.sizes()); n != 0 {
			t.Errorf("%d batches went", n)
		}
	})
}

func TestOldRecordsInNoBatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, v2 := runBatches(t, spool.Delivery{})
		w.queue.appendRecord(spool.Record{Arrival: time.Now().Add(-7 * day), Data: []byte("a:old")})
		w.queue.append("a:new")
		time.Sleep(batchWait)
		w.expect(t, map[state]int{acked: 1, dead: 1})
		if n := len(v2.times("a:old")); n != 0 {
			t.Errorf("the old record was in %d batches", n)
		}
	})
}
