package spool_test

import (
	"bytes"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/td-postback/gateway/spool"
)

// The records with several events of these tests: "several" and the events, which are
// "group:name", each on a line.
const severalMark = "several\n"

func several(events ...string) string { return severalMark + strings.Join(events, "\n") }

func readSeveral(data []byte) (group string, events [][]byte, ok bool) {
	lines, ok := bytes.CutPrefix(data, []byte(severalMark))
	if !ok {
		return "", nil, false
	}
	name, _, _ := bytes.Cut(lines, []byte(":"))
	return string(name), bytes.Split(lines, []byte("\n")), true
}

func restOf(data []byte, left []int) []byte {
	_, events, _ := readSeveral(data)
	rest := make([]string, 0, len(left))
	for _, n := range left {
		rest = append(rest, string(events[n]))
	}
	return []byte(several(rest...))
}

// runSeveral is run with such records. Others go alone.
func runSeveral(t testing.TB, how spool.Delivery) (*worker, *batchServer) {
	t.Helper()
	v2 := &batchServer{}
	how.SendBatch, how.Events, how.Rest = v2.send, readSeveral, restOf
	return run(t, how), v2
}

// Such a record goes in a request of its own, at once and in the order of its events,
// whether others share requests or not.
func TestSeveralGoTogether(t *testing.T) {
	for name, batching := range map[string]spool.Batching{"without batches": {}, "with batches": {Most: 500, Wait: time.Minute}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				how := spool.Delivery{Limits: spool.Limits{Batching: batching}}
				how.Part = func(e spool.Entry) (spool.Part, bool) {
					if strings.HasPrefix(string(e.Data), severalMark) {
						t.Error("a record with several events is asked for its part")
					}
					return spool.Part{Group: "a", Record: e.Data}, true
				}
				w, v2 := runSeveral(t, how)
				w.queue.append(several(named("a", 500)...), several("b:1"), "a:single")
				w.expect(t, map[state]int{acked: 3 - min(batching.Most, 1), held: min(batching.Most, 1)})
				sent := v2.sent()
				slices.SortFunc(sent, func(a, b []string) int { return len(b) - len(a) })
				if len(sent) != 2 || !slices.Equal(sent[0], named("a", 500)) || !slices.Equal(sent[1], []string{"b:1"}) {
					t.Errorf("requests with %d events", v2.sizes())
				}
				time.Sleep(time.Minute)
				w.expect(t, map[state]int{acked: 3})
				if n := w.toldOf(spool.Delivered); n != 3 {
					t.Errorf("%d records are told to be delivered, want 3", n)
				}
			})
		})
	}
}

// sent are the events of all requests.
func (b *batchServer) sent() [][]string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.batches)
}

// eventsOf are the events of such a record.
func eventsOf(data []byte) []string {
	return strings.Split(strings.TrimPrefix(string(data), severalMark), "\n")
}

// always is v2 that gives every request the same answer.
func always(r spool.Result) func([]string) spool.BatchResult {
	return func([]string) spool.BatchResult { return spool.BatchResult{Result: r} }
}

// refusedBatch is v2's answer with a status that is final.
func refusedBatch(status int) spool.Result { return spool.Result{Status: status, Words: "poison"} }

// What v2 refuses of a record with the events a:0 to a:9 is a dead letter, and no more.
func TestRefusedEvents(t *testing.T) {
	whole := named("a", 10)
	halving := func(refused int) int { return 1 + 2*4*refused } // four times is a half of ten one event
	const byReceipt = 1 + 1 + 3*4                               // five times, the last three in four requests
	for name, c := range map[string]struct {
		answer func([]string) spool.BatchResult
		status int      // of the dead letter
		left   []string // its events
		most   int      // requests
	}{
		"401":                      {always(refusedBatch(http.StatusUnauthorized)), http.StatusUnauthorized, whole, 1},
		"403":                      {always(refusedBatch(http.StatusForbidden)), http.StatusForbidden, whole, 1},
		"404":                      {always(refusedBatch(http.StatusNotFound)), http.StatusNotFound, whole, 1},
		"405":                      {always(refusedBatch(http.StatusMethodNotAllowed)), http.StatusMethodNotAllowed, whole, 1},
		"302":                      {always(refusedBatch(http.StatusFound)), http.StatusFound, whole, 1},
		"400 for some":             {refusing(http.StatusBadRequest, "a:3", "a:9"), http.StatusBadRequest, []string{"a:3", "a:9"}, halving(2)},
		"413 for some":             {refusing(http.StatusRequestEntityTooLarge, "a:0"), http.StatusRequestEntityTooLarge, []string{"a:0"}, halving(1)},
		"422 for some":             {refusing(http.StatusUnprocessableEntity, "a:5", "a:6"), http.StatusUnprocessableEntity, []string{"a:5", "a:6"}, halving(2)},
		"422 for all":              {refusing(http.StatusUnprocessableEntity, whole...), http.StatusUnprocessableEntity, whole, 2*10 - 1},
		"by receipts for some":     {partly("a:2", "a:8"), http.StatusPartialContent, []string{"a:2", "a:8"}, byReceipt},
		"by receipts for all":      {partly(whole...), http.StatusPartialContent, whole, byReceipt},
		"206 that does not say it": {always(refusedBatch(http.StatusPartialContent)), http.StatusPartialContent, whole, byReceipt},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, v2 := runSeveral(t, spool.Delivery{})
				v2.set(c.answer)
				w.queue.append(several(whole...))
				time.Sleep(time.Minute)
				w.expect(t, map[state]int{dead: 1})
				k := w.queue.record(0)
				if k.why.Status != c.status || k.why.Reason != string(spool.Refused) || k.why.Words == "" || !slices.Equal(eventsOf(k.Data), c.left) {
					t.Errorf("a dead letter for %+v with %q", k.why, eventsOf(k.Data))
				}
				if w.toldOf(spool.Refused) != 1 || w.toldOf(spool.Delivered) != 0 {
					t.Errorf("told of %v", w.fates)
				}
				if n := len(v2.sizes()); n > c.most {
					t.Errorf("%d requests, want at most %d", n, c.most)
				}
				for _, event := range whole { // what v2 has said to have taken goes no more
					if at := v2.times(event); !slices.Contains(c.left, event) && at[len(at)-1].Sub(at[0]) > 0 {
						t.Errorf("%s went again after %s", event, at[len(at)-1].Sub(at[0]))
					}
				}
			})
		})
	}
}

// A record that v2 does not take now comes again as a whole.
func TestSeveralNotTaken(t *testing.T) {
	for name, c := range map[string]struct {
		answer spool.Result
		safe   bool // it is told that a repeat is dropped
	}{
		"no connection": {nobody, false},
		"no answer":     {lost, true},
		"408":           {spool.Result{Status: http.StatusRequestTimeout}, false},
		"429":           {spool.Result{Status: http.StatusTooManyRequests}, false},
		"500":           {spool.Result{Status: http.StatusInternalServerError, Ambiguous: true}, true},
		"503":           {failing, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, v2 := runSeveral(t, spool.Delivery{})
				v2.set(always(c.answer))
				w.queue.append(several(named("a", 10)...))
				synctest.Wait()
				if got := v2.sizes(); !slices.Equal(got, []int{10}) || w.toldOf(spool.Retried) != 1 {
					t.Errorf("requests with %d events, told of %v", got, w.fates)
				}
				if r := w.told[0]; r.Ambiguous != c.safe || r.Safe != c.safe {
					t.Errorf("told of %+v", r)
				}
				v2.set(nil)
				time.Sleep(5 * time.Second)
				w.expect(t, map[state]int{acked: 1})
				if got := v2.sizes(); !slices.Equal(got, []int{10, 10}) || w.toldOf(spool.Delivered) != 1 {
					t.Errorf("requests with %d events, told of %v", got, w.fates)
				}
			})
		})
	}
}

// v2 drops a repeat for an hour. Later, it is told that events may be there twice.
func TestLostAnswerOfSeveral(t *testing.T) {
	for down, double := range map[time.Duration]bool{30 * time.Minute: false, 90 * time.Minute: true} {
		t.Run(down.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, v2 := runSeveral(t, spool.Delivery{})
				v2.set(always(lost))
				w.queue.append(several(named("a", 10)...))
				time.Sleep(down)
				synctest.Wait()
				for _, r := range w.told {
					if !r.Ambiguous || !r.Safe {
						t.Errorf("told of %+v, want an ambiguous one of which a repeat is dropped", r)
					}
				}
				v2.set(nil)
				time.Sleep(30 * time.Minute)
				w.expect(t, map[state]int{acked: 1})
				if r := w.told[len(w.told)-1]; r.Ambiguous != double || r.Safe {
					t.Errorf("delivered with %+v, want that they may be there twice: %t", r, double)
				}
			})
		})
	}
}

// What v2 has taken of a record does not go again, however long the others take: v2
// would not know it any more.
func TestTakenEventsGoOnce(t *testing.T) {
	for name, answer := range map[string]func([]string) spool.BatchResult{
		"by receipts": partly("a:3", "a:4"),
		"by halving": func(events []string) spool.BatchResult {
			switch {
			case len(events) > 3 && slices.Contains(events, "a:3"):
				return spool.BatchResult{Result: refusedBatch(http.StatusUnprocessableEntity)}
			case slices.Contains(events, "a:3"):
				return spool.BatchResult{Result: nobody}
			}
			return spool.BatchResult{Result: taken}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, v2 := runSeveral(t, spool.Delivery{Limits: spool.Limits{InFlight: 1}})
				v2.set(answer)
				w.queue.append(several(named("a", 10)...))
				synctest.Wait()
				first := len(v2.sizes())
				v2.set(always(nobody))
				time.Sleep(2 * time.Hour)
				v2.set(nil)
				time.Sleep(time.Hour)
				w.expect(t, map[state]int{acked: 1})
				for _, events := range v2.sent()[first:] {
					if slices.Contains(events, "a:0") || slices.Contains(events, "a:1") {
						t.Fatalf("%q went after v2 had taken a:0 and a:1", events)
					}
				}
				if r := w.told[len(w.told)-1]; r.Ambiguous {
					t.Errorf("delivered with %+v: nothing is there twice", r)
				}
			})
		})
	}
}

// While events are halved, v2 may come to be down, or limit the account: then it is
// not asked for the rest.
func TestHalvingOfSeveralEnds(t *testing.T) {
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, v2 := runSeveral(t, spool.Delivery{
					Limits:  spool.Limits{InFlight: 1}, // one half goes after the other
					Account: func([]byte) string { return "a" },
				})
				requests := 0
				v2.set(func([]string) spool.BatchResult {
					if requests++; requests == 1 {
						return spool.BatchResult{Result: refusedBatch(http.StatusUnprocessableEntity)}
					}
					return spool.BatchResult{Result: end}
				})
				w.queue.append(several(named("a", 500)...))
				time.Sleep(10 * time.Second)
				if got := v2.sizes(); !slices.Equal(got, []int{500, 250}) {
					t.Errorf("requests with %d events, want all and one half", got)
				}
				v2.set(nil)
				time.Sleep(10 * time.Minute)
				w.expect(t, map[state]int{acked: 1})
			})
		})
	}
}

// Where one event makes v2 fail, the others do not wait for it, nor is it lost.
func TestEventThatMakesV2Fail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, v2 := runSeveral(t, spool.Delivery{})
		v2.set(func(events []string) spool.BatchResult {
			if slices.Contains(events, "a:123") {
				return spool.BatchResult{Result: spool.Result{Status: http.StatusInternalServerError}}
			}
			return spool.BatchResult{Result: taken}
		})
		w.queue.append(several(named("a", 500)...))
		time.Sleep(95 * time.Second) // pauses of 1, 2, 4, 8, 16 and 32 s, each half as long again at most: 500 is less than 4 to the power of 5
		before := len(v2.sent())
		time.Sleep(time.Minute)
		for _, events := range v2.sent()[before:] {
			if !slices.Equal(events, []string{"a:123"}) {
				t.Errorf("%d events still go, the first %s", len(events), events[0])
			}
		}
		time.Sleep(7 * day)
		w.expect(t, map[state]int{dead: 1})
		if k := w.queue.record(0); k.why.Reason != string(spool.TooOld) || !slices.Equal(eventsOf(k.Data), []string{"a:123"}) {
			t.Errorf("a dead letter for %+v with %d events", k.why, len(eventsOf(k.Data)))
		}
		if w.IsOpen() {
			t.Error("v2 is taken to be down")
		}
	})
}

// A record that is too old is a dead letter as a whole, asked for or not.
func TestOldSeveral(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, v2 := runSeveral(t, spool.Delivery{})
		w.queue.appendRecord(spool.Record{Arrival: time.Now().Add(-7 * day), Data: []byte(several(named("a", 10)...))})
		w.queue.appendRecord(spool.Record{Arrival: time.Now().Add(-7 * day), Replayed: true, Data: []byte(several(named("b", 10)...))})
		w.expect(t, map[state]int{dead: 1, acked: 1})
		if k := w.queue.record(0); k.why != (spool.Verdict{Reason: string(spool.TooOld)}) || len(eventsOf(k.Data)) != 10 {
			t.Errorf("a dead letter for %+v with %d events", k.why, len(eventsOf(k.Data)))
		}
		if got := v2.sizes(); !slices.Equal(got, []int{10}) {
			t.Errorf("requests with %d events", got)
		}
	})
}

// v2 is not asked again while only the Log is in trouble. Then, only the events that v2
// refuses are a dead letter.
func TestBuryingTheRestFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, v2 := runSeveral(t, spool.Delivery{})
		v2.set(refusing(http.StatusUnprocessableEntity, "a:3"))
		w.queue.fail(nil, errBroken)
		w.queue.append(several(named("a", 10)...))
		synctest.Wait()
		asked := len(v2.sizes())
		time.Sleep(time.Minute)
		if n := len(v2.sizes()); n != asked {
			t.Errorf("v2 was asked %d times more", n-asked)
		}
		w.expect(t, map[state]int{waiting: 1})
		w.queue.fail(nil, nil)
		time.Sleep(2 * time.Minute)
		w.expect(t, map[state]int{dead: 1})
		if k := w.queue.record(0); k.why.Status != http.StatusUnprocessableEntity || !slices.Equal(eventsOf(k.Data), []string{"a:3"}) {
			t.Errorf("a dead letter for %+v with %q", k.why, eventsOf(k.Data))
		}
	})
}

// When dead letters have no room, what v2 refuses is let go, and told.
func TestNoRoomForTheRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, v2 := runSeveral(t, spool.Delivery{})
		v2.set(refusing(http.StatusUnprocessableEntity, "a:3"))
		w.queue.fail(nil, spool.ErrFull)
		w.queue.append(several(named("a", 10)...))
		synctest.Wait()
		if w.queue.count(acked) != 1 || w.toldOf(spool.RefusedUnkept) != 1 || len(w.told) != 1 {
			t.Errorf("%d records are let go, told of %v", w.queue.count(acked), w.fates)
		}
	})
}

// The rate counts events, also where it lets fewer go at once than a record has. For
// as many that arrive, a record passes.
func TestRateOfSeveral(t *testing.T) {
	for _, c := range []struct{ rate, events, seconds int }{{1000, 500, 60}, {1000, 3, 60}, {10, 500, 600}, {1, 7, 700}} {
		t.Run(fmt.Sprint(c.rate, " a second, ", c.events, " each"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, _ := runSeveral(t, spool.Delivery{Limits: spool.Limits{Rate: c.rate}})
				for range 2 * c.rate * c.seconds / c.events {
					w.queue.append(several(named("a", c.events)...))
				}
				time.Sleep(time.Duration(c.seconds) * time.Second)
				synctest.Wait()
				want := c.rate * c.seconds / c.events
				before := w.queue.count(acked)
				if before < want*9/10-1 || before > want*11/10+1 {
					t.Errorf("%d records in %d s, want about %d", before, c.seconds, want)
				}
				for range 10 { // within a moment
					w.Arrived(c.events, 10)
					synctest.Wait()
				}
				if n := w.queue.count(acked) - before; n < 10 || n > 11 {
					t.Errorf("10 arrivals let %d records pass", n)
				}
			})
		})
	}
}

// A rate that changes while a record waits holds for the next events.
func TestRateOfSeveralChanges(t *testing.T) {
	for _, c := range []struct{ before, after, seconds int }{{10, 1000, 10 + 5}, {1000, 10, 500 + 10}} { // what was let go at the old rate is made up for
		t.Run(fmt.Sprint("from ", c.before, " to ", c.after), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, _ := runSeveral(t, spool.Delivery{Limits: spool.Limits{Rate: c.before}})
				for range 10 {
					w.queue.append(several(named("a", 500)...))
				}
				time.Sleep(100 * time.Millisecond)
				w.SetLimits(spool.Limits{InFlight: 10, Rate: c.after, MaxAge: 6 * day})
				time.Sleep(time.Duration(c.seconds) * time.Second)
				w.expect(t, map[state]int{acked: 10})
			})
		})
	}
}

// BytesRate counts what goes over the wire: a tenth, here.
func TestBytesRateOfSeveral(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _ := runSeveral(t, spool.Delivery{Limits: spool.Limits{BytesRate: 10_000}})
		event := "a:" + strings.Repeat("x", 998)
		for range 2_000 {
			w.queue.append(several(slices.Repeat([]string{event}, 10)...))
		}
		time.Sleep(time.Minute) // until it is known
		synctest.Wait()
		before := w.queue.count(acked)
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := w.queue.count(acked) - before; got < 540 || got > 660 {
			t.Errorf("%d records of 10 kB in a minute, want about 600", got)
		}
	})
}

// Records of 5 MB go some at a time: what they hold is counted. So are their halves.
func TestLargeSeveralAreBounded(t *testing.T) {
	for name, answer := range map[string]func([]string) spool.BatchResult{
		"taken":  nil,
		"halved": refusing(http.StatusUnprocessableEntity, "a:0"+strings.Repeat("x", 17)),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var mu sync.Mutex
				now, most := 0, 0 // bytes with v2
				v2 := &batchServer{answer: answer}
				how := spool.Delivery{Limits: spool.Limits{InFlight: 128}, Events: readSeveral, Rest: restOf}
				how.SendBatch = func(group string, events [][]byte) spool.BatchResult {
					size := len(slices.Concat(events...))
					mu.Lock()
					now += size
					most = max(most, now)
					mu.Unlock()
					time.Sleep(time.Second)
					mu.Lock()
					now -= size
					mu.Unlock()
					return v2.send(group, events)
				}
				w := run(t, how)
				for range 40 {
					events := named("a", 5)
					for n := range events {
						events[n] += strings.Repeat("x", 999_997)
					}
					w.queue.append(several(events...))
				}
				time.Sleep(10 * time.Minute)
				synctest.Wait()
				if n := w.queue.count(acked) + w.queue.count(dead); n != 40 {
					t.Errorf("%d of 40 records are done", n)
				}
				if most < 20_000_000 || most > 64<<20 {
					t.Errorf("%d MB were with v2 at a time", most/1_000_000)
				}
			})
		})
	}
}

// v2's 429 is for the account of a record. The others go on, and its own come later.
func TestSeveralOfALimitedAccount(t *testing.T) {
	for _, sheds := range []bool{false, true} {
		t.Run(fmt.Sprint("held at no cost: ", !sheds), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, v2 := runSeveral(t, spool.Delivery{Account: func(data []byte) string { group, _, _ := readSeveral(data); return group }})
				w.queue.mu.Lock()
				w.queue.sheds = sheds
				w.queue.mu.Unlock()
				v2.set(func(events []string) spool.BatchResult {
					if events[0][0] == 'a' {
						return spool.BatchResult{Result: spool.Result{Status: http.StatusTooManyRequests, RetryAfter: time.Minute}}
					}
					return spool.BatchResult{Result: taken}
				})
				for range 100 {
					w.queue.append(several(named("a", 10)...), several(named("b", 10)...))
					time.Sleep(10 * time.Millisecond)
				}
				if got := w.queue.count(acked); got != 100 {
					t.Errorf("%d records of the other account are delivered, want 100", got)
				}
				if n := len(v2.times("a:0")); n != 1 {
					t.Errorf("the account was asked %d times within its pause", n)
				}
				if w.IsOpen() || w.Paused() != 1 {
					t.Errorf("v2 is down: %t, %d accounts are limited", w.IsOpen(), w.Paused())
				}
				v2.set(nil)
				time.Sleep(5 * time.Minute)
				w.expect(t, map[state]int{acked: 200})
				if w.Paused() != 0 {
					t.Error("the account is limited for ever")
				}
			})
		})
	}
}

// Records with several events find out that v2 is down, and that it is back, also by
// one that v2 halves.
func TestSeveralWhileDown(t *testing.T) {
	for name, answer := range map[string]func([]string) spool.BatchResult{
		"all are taken":    nil,
		"some are refused": refusing(http.StatusUnprocessableEntity, "a:0"),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, v2 := runSeveral(t, spool.Delivery{Limits: spool.Limits{InFlight: 4}})
				v2.set(always(nobody))
				for range 100 {
					w.queue.append(several(named("a", 100)...))
				}
				time.Sleep(5 * time.Minute)
				if !w.IsOpen() {
					t.Fatal("v2 is not taken to be down")
				}
				if n := len(v2.sizes()); n > 10+5*60/7 { // one in 7.5 s, when the first failures are over
					t.Errorf("%d requests in five minutes", n)
				}
				v2.set(answer)
				time.Sleep(30 * time.Minute)
				synctest.Wait()
				if n := w.queue.count(acked) + w.queue.count(dead); n != 100 {
					t.Errorf("%d of 100 records are done", n)
				}
				if w.IsOpen() {
					t.Error("v2 is taken to be down")
				}
			})
		})
	}
}

// When the gateway stops, what has not gone is put back, and what is on its way is
// waited for.
func TestStopWithSeveral(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, v2 := runSeveral(t, spool.Delivery{Limits: spool.Limits{InFlight: 1}})
		v2.takes = time.Second
		v2.set(refusing(http.StatusUnprocessableEntity, "a:7"))
		for range 3 {
			w.queue.append(several(named("a", 10)...))
		}
		time.Sleep(1500 * time.Millisecond) // a half is on its way
		w.stop()
		w.expect(t, map[state]int{waiting: 3})
		if got := v2.sizes(); !slices.Equal(got, []int{10, 5}) {
			t.Errorf("requests with %d events", got)
		}
	})
}

// When v2 takes an account's records again, the others do not wait longer for them
// because they have many events.
func TestLargeBacklogOfSeveral(t *testing.T) {
	t.Parallel()
	const backlog, events = 400, 500
	synctest.Test(t, func(t *testing.T) {
		account := func(data []byte) string {
			if bytes.HasPrefix(data, []byte(severalMark)) {
				return "noisy"
			}
			return accountOf(data)
		}
		w, v2 := runSeveral(t, spool.Delivery{Account: account, Limits: spool.Limits{Rate: 1000}})
		v2.set(always(spool.Result{Status: http.StatusTooManyRequests, RetryAfter: 10 * time.Minute}))
		for range backlog {
			w.queue.append(several(named("a", events)...))
		}
		time.Sleep(time.Second) // until v2 has answered
		w.healthy(t, "first", 100, 5*time.Second)
		v2.set(nil)
		time.Sleep(10 * time.Minute) // the pause is over
		before := w.queue.count(acked)
		w.healthy(t, "second", 1000, 50*time.Second)
		if n := (w.queue.count(acked) - before - 1000) * events; n < 40_000 || n > 54_000 {
			t.Errorf("%d events of the backlog in 52 s, want 52,000: 1,000 a second", n)
		}
		time.Sleep(5 * time.Minute)
		w.expect(t, map[state]int{acked: backlog + 1100})
		if n := w.Paused(); n > 0 {
			t.Errorf("%d accounts are limited still", n)
		}
	})
}

// The rate counts events: each that arrives lets one go, and not all that its turn
// finds in one record.
func TestLiveTrafficBesideSeveral(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const rate, seconds, arriving = 200, 60, 20
		w, v2 := runSeveral(t, spool.Delivery{Limits: spool.Limits{Rate: rate}})
		for range 100 {
			w.queue.append(several(named("a", 500)...))
		}
		w.arrive(seconds*arriving, seconds*time.Second) // behind the backlog
		sent := 0
		for _, n := range v2.sizes() {
			sent += n
		}
		if want := seconds * (rate + arriving); sent < want-500 || sent > want+500 {
			t.Errorf("%d events in %d s, want %d", sent, seconds, want)
		}
	})
}

// A large call that has just arrived goes at once, whatever the rates are.
func TestLargeLiveCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _ := runSeveral(t, spool.Delivery{Limits: spool.Limits{Rate: 1, BytesRate: 10}})
		for n := range 3 {
			for range 80 {
				w.queue.append(several(named("a", 500)...))
			}
			w.Arrived(40_000, 80*len(several(named("a", 500)...)))
			time.Sleep(time.Second)
			w.expect(t, map[state]int{acked: 80 * (n + 1)})
		}
	})
}
