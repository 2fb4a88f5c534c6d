package spool_test

import (
	"bytes"
	"net/http"
	"slices"
	"strings"
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
				slices.SortFunc(v2.batches, func(a, b []string) int { return len(b) - len(a) })
				if len(v2.batches) != 2 || !slices.Equal(v2.batches[0], named("a", 500)) || !slices.Equal(v2.batches[1], []string{"b:1"}) {
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
				for _, events := range v2.batches[first:] {
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
