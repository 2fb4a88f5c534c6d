package spool_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/td-postback/gateway/spool"
	"github.com/td-postback/gateway/spool/disk"
)

const (
	day       = 24 * time.Hour
	unlimited = 1_000_000_000 // records a second
)

// today is later than the clock of a synctest bubble, which begins in 2000: such a
// clock cannot be right.
var today = time.Date(2026, time.June, 1, 0, 0, 0, 0, time.UTC)

var (
	taken     = spool.Result{Status: http.StatusOK}
	failing   = spool.Result{Status: http.StatusServiceUnavailable}
	errNobody = errors.New("connection refused")
	nobody    = spool.Result{Err: errNobody}
)

// server stands in for v2.
type server struct {
	mu       sync.Mutex
	answer   func(data string) spool.Result // nil takes everything
	duration time.Duration                  // of an answer
	got      []string
	at       []time.Time
	sending  int // now
	most     int // at a time
}

func (s *server) send(data []byte) spool.Result {
	s.mu.Lock()
	s.sending++
	s.most = max(s.most, s.sending)
	s.got, s.at = append(s.got, string(data[:min(len(data), 20)])), append(s.at, time.Now())
	duration := s.duration
	s.mu.Unlock()
	if duration > 0 {
		time.Sleep(duration)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sending--
	if s.answer == nil {
		return taken
	}
	return s.answer(string(data))
}

func (s *server) set(answer func(string) spool.Result, duration time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer, s.duration = answer, duration
}

func (s *server) always(r spool.Result) { s.set(func(string) spool.Result { return r }, 0) }

// seen returns what was sent, and when.
func (s *server) seen() ([]string, []time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.got), slices.Clone(s.at)
}

// tries returns when a record was sent.
func (s *server) tries(data string) (at []time.Time) {
	got, when := s.seen()
	for i := range got {
		if got[i] == data {
			at = append(at, when[i])
		}
	}
	return at
}

// worker is a Deliverer that runs, between a queue and a server.
type worker struct {
	*spool.Deliverer
	queue  *memory
	server *server
	stop   func() // ends Run and waits for it

	mu     sync.Mutex
	fates  map[spool.Fate]int
	told   []spool.Result
	errors []error
}

// run starts a Deliverer. What is 0 in how gets a value that limits nothing.
// Records go to the server within a millisecond, then.
func run(t testing.TB, how spool.Delivery) *worker {
	t.Helper()
	time.Sleep(time.Until(today))
	w := &worker{queue: newMemory(), server: &server{}, fates: map[spool.Fate]int{}}
	if how.InFlight == 0 {
		how.InFlight = 1000
	}
	if how.Rate == 0 {
		how.Rate = unlimited
	}
	if how.MaxAge == 0 {
		how.MaxAge = 6 * day
	}
	how.Send = w.server.send
	how.OnFate = func(fate spool.Fate, r spool.Result) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.fates[fate]++
		w.told = append(w.told, r)
	}
	how.OnError = func(err error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.errors = append(w.errors, err)
	}
	w.Deliverer = spool.NewDeliverer(w.queue, &spool.Gate{}, how)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		w.Run(ctx)
	}()
	time.Sleep(time.Millisecond) // until the rate lets some go
	w.stop = func() {
		cancel()
		<-ended
	}
	t.Cleanup(func() {
		w.stop()
		if len(w.queue.wrong) > 0 {
			t.Errorf("the queue got %d answers that it did not expect, the first: %s", len(w.queue.wrong), w.queue.wrong[0])
		}
	})
	return w
}

// arrive appends live records, evenly over a time.
func (w *worker) arrive(records int, over time.Duration) {
	for i := range records {
		w.queue.append("live " + strconv.Itoa(i))
		w.Arrived(1, len("live ")+5)
		time.Sleep(over / time.Duration(records))
	}
}

func (w *worker) toldOf(fate spool.Fate) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.fates[fate]
}

func (w *worker) reported() []error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.errors)
}

// expect checks how many records are in which state, once nothing moves.
func (w *worker) expect(t *testing.T, want map[state]int) {
	t.Helper()
	synctest.Wait()
	for _, s := range []state{waiting, held, acked, dead} {
		if got := w.queue.count(s); got != want[s] {
			t.Errorf("%d records are %s, want %d", got, s, want[s])
		}
	}
	if got := w.toldOf(spool.Delivered); got != want[acked] {
		t.Errorf("told of %d delivered, want %d", got, want[acked])
	}
	if got := w.toldOf(spool.Refused) + w.toldOf(spool.TooOld); got != want[dead] {
		t.Errorf("told of %d dead letters, want %d", got, want[dead])
	}
}

func numbers(n int) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = strconv.Itoa(i)
	}
	return all
}

func TestOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := run(t, spool.Delivery{Limits: spool.Limits{InFlight: 1}})
		w.queue.append(numbers(1000)...)
		w.expect(t, map[state]int{acked: 1000})
		if got, _ := w.server.seen(); !slices.Equal(got, numbers(1000)) {
			t.Error("the records were not sent in the order in which they were appended")
		}
	})
}

func TestOrderOfManyInFlight(t *testing.T) {
	const inFlight = 50
	synctest.Test(t, func(t *testing.T) {
		w := run(t, spool.Delivery{Limits: spool.Limits{InFlight: inFlight}})
		w.server.duration = 10 * time.Millisecond
		w.queue.append(numbers(1000)...)
		time.Sleep(time.Second)
		w.expect(t, map[state]int{acked: 1000})
		got, _ := w.server.seen()
		for i, data := range got {
			if n, _ := strconv.Atoi(data); n < i-inFlight || n > i+inFlight {
				t.Fatalf("record %s was sent as number %d, with %d in flight", data, i, inFlight)
			}
		}
	})
}

func TestInFlight(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ inFlight, size, want int }{
		{1, 10, 1},
		{3, 10, 3},
		{1000, 10, 1000},
		{2000, 10, 2000},
		{1024, 60 << 10, 1024},
		{1024, 1 << 20, 64},
		{1024, 33 << 20, 1},
		{1024, 65 << 20, 1},
		{3, 65 << 20, 1},
		{1, 65 << 20, 1},
	} {
		t.Run(fmt.Sprintf("%d of %d bytes", c.inFlight, c.size), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := run(t, spool.Delivery{Limits: spool.Limits{InFlight: c.inFlight}})
				w.server.duration = time.Second
				total := c.want + c.want/10 + 1
				data := bytes.Repeat([]byte("x"), c.size)
				for range total {
					w.queue.appendData(data)
				}
				time.Sleep(10 * time.Second)
				w.expect(t, map[state]int{acked: total})
				if w.server.most != c.want {
					t.Errorf("%d at a time, want %d", w.server.most, c.want)
				}
			})
		})
	}
}

func TestRefusedForGood(t *testing.T) {
	statuses := []int{400, 401, 403, 404, 413, 301}
	synctest.Test(t, func(t *testing.T) {
		w := run(t, spool.Delivery{Limits: spool.Limits{InFlight: 1}})
		w.server.set(func(data string) spool.Result {
			status, err := strconv.Atoi(data)
			if err != nil {
				return taken
			}
			return spool.Result{Status: status, Words: "no such table"}
		}, 0)
		for range 10 {
			for _, status := range statuses {
				w.queue.append(strconv.Itoa(status))
			}
		}
		w.queue.append("a good one")
		w.expect(t, map[state]int{acked: 1, dead: 10 * len(statuses)})
		if w.IsOpen() {
			t.Error("v2, which refuses, is taken to be down")
		}
		for id, status := range statuses {
			if r := w.queue.record(id); r.why != (spool.Verdict{Status: status, Reason: "refused", Words: "no such table"}) {
				t.Errorf("a record that v2 answered with %d is a letter with %+v", status, r.why)
			}
		}
		if w.toldOf(spool.Refused) != 10*len(statuses) {
			t.Errorf("told of %v", w.fates)
		}
	})
}

func TestTaken(t *testing.T) {
	for _, status := range []int{200, 201, 202, 204} {
		synctest.Test(t, func(t *testing.T) {
			w := run(t, spool.Delivery{})
			w.server.always(spool.Result{Status: status})
			w.queue.append("a record")
			w.expect(t, map[state]int{acked: 1})
		})
	}
}

func TestNotTakenIsPutBack(t *testing.T) {
	for _, result := range []spool.Result{
		{Status: 408},
		{Status: 429},
		{Status: 429, RetryAfter: 5 * time.Second},
		{Status: 500, Ambiguous: true},
		{Status: 502, Ambiguous: true},
		{Status: 503},
		{Status: 599},
		nobody,
		{Err: context.DeadlineExceeded, Ambiguous: true},
	} {
		t.Run(fmt.Sprintf("%d %v %s", result.Status, result.Err, result.RetryAfter), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := run(t, spool.Delivery{})
				w.server.always(result)
				w.queue.append("a record")
				back := waiting
				if result.Status == 429 {
					back = held // by the Deliverer, without its data
				}
				w.expect(t, map[state]int{back: 1})
				if len(w.told) != 1 || w.told[0] != result || w.fates[spool.Retried] != 1 {
					t.Errorf("told of %v, %v", w.fates, w.told)
				}
				w.server.always(taken)
				time.Sleep(10 * time.Second)
				w.expect(t, map[state]int{acked: 1})
				if tries := w.server.tries("a record"); len(tries) != 2 || tries[1].Sub(tries[0]) < result.RetryAfter {
					t.Errorf("it was tried at %v", tries)
				}
			})
		})
	}
}

// v2 asks for a pause of an hour, and gets one of a minute: then it is tried.
func TestRetryAfterHoldsForTheHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := run(t, spool.Delivery{})
		w.server.always(spool.Result{Status: 503, RetryAfter: time.Hour})
		w.queue.append("first")
		synctest.Wait()
		w.server.always(taken)
		w.queue.append("second", "third")
		asked := time.Now()
		time.Sleep(time.Minute - time.Second)
		if got, _ := w.server.seen(); len(got) != 1 {
			t.Errorf("%d records were sent although v2 asked for a pause", len(got)-1)
		}
		time.Sleep(time.Minute)
		w.expect(t, map[state]int{acked: 3})
		_, at := w.server.seen()
		if waited := at[len(at)-1].Sub(asked); waited > 70*time.Second {
			t.Errorf("the last one went after %s", waited)
		}
	})
}

func TestRetryAfterHoldsForTheRecord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := run(t, spool.Delivery{})
		w.server.always(spool.Result{Status: 500, RetryAfter: 10 * time.Minute})
		w.queue.append("first")
		synctest.Wait()
		w.server.always(taken)
		time.Sleep(time.Minute)
		w.queue.append("second")
		w.expect(t, map[state]int{acked: 1, waiting: 1})
		time.Sleep(9*time.Minute + 2*time.Second)
		w.expect(t, map[state]int{acked: 2})
		if tries := w.server.tries("first"); tries[1].Sub(tries[0]) < 10*time.Minute {
			t.Errorf("it was tried again after %s, want 10m", tries[1].Sub(tries[0]))
		}
	})
}

// poison answers 500 to records whose data begins with "poison".
func poison(data string) spool.Result {
	if strings.HasPrefix(data, "poison") {
		return spool.Result{Status: http.StatusInternalServerError, Ambiguous: true}
	}
	return taken
}

func TestPoisonedRecordAmongOthers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := run(t, spool.Delivery{})
		w.server.set(poison, 0)
		w.queue.append("poison")
		for range 2 * 3600 {
			w.queue.append("good")
			synctest.Wait()
			if w.queue.count(waiting) > 1 {
				t.Fatal("a good record waits because of a poisoned one")
			}
			time.Sleep(500 * time.Millisecond)
		}
		w.expect(t, map[state]int{acked: 2 * 3600, waiting: 1})
		pauses := w.queue.record(0).pauses
		for i, pause := range pauses {
			if want := min(time.Second<<i, 15*time.Minute); pause < want/2 || pause > want*3/2 {
				t.Errorf("pause %d is %s, want about %s", i, pause, want)
			}
		}
		if len(pauses) < 12 {
			t.Errorf("%d tries in an hour, want 12 and more", len(pauses))
		}
	})
}

func TestPoisonedRecordAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := run(t, spool.Delivery{})
		w.server.set(poison, 0)
		w.queue.append("poison")
		for range 50 {
			time.Sleep(77 * time.Second)
			w.queue.append("good")
			time.Sleep(46 * time.Second) // two pauses
			w.expect(t, map[state]int{acked: len(w.queue.records) - 1, waiting: 1})
			if w.IsOpen() {
				t.Fatal("v2, which took a record, is taken to be down")
			}
		}
	})
}

func TestManyPoisonedRecords(t *testing.T) {
	t.Parallel()
	for _, many := range []int{30, 100, 200} {
		t.Run(strconv.Itoa(many), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := run(t, spool.Delivery{Limits: spool.Limits{InFlight: 1}}) // which does not go on to others meanwhile
				w.server.set(poison, 0)
				for range many {
					w.queue.append("poison")
				}
				time.Sleep(time.Hour)
				for range 10 {
					w.queue.append("good")
					time.Sleep(time.Hour) // most go within seconds
					synctest.Wait()
					if w.queue.count(acked) != len(w.queue.records)-many {
						t.Fatal("the record behind them was not delivered in an hour")
					}
				}
			})
		})
	}
}

// A tenth of all records is refused with 500, for hours: the others arrive.
func TestPoisonedTable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := run(t, spool.Delivery{Limits: spool.Limits{InFlight: 16, Rate: 100}})
		w.server.set(poison, 0)
		good := 0
		for i := range 20_000 {
			if i%10 < 1 || i%1000 < 50 { // and now and then many in a row
				w.queue.append("poison")
			} else {
				w.queue.append("good")
				good++
			}
			time.Sleep(500 * time.Millisecond)
		}
		// The last 50 in a row may have opened the circuit. Then v2 is tried four
		// times a minute, every second time with one that was not tried before.
		time.Sleep(50 * 2 * 15 * time.Second)
		synctest.Wait()
		if n := w.queue.count(acked); n != good {
			t.Errorf("%d of %d good records were delivered", n, good)
		}
	})
}

// perSecond counts the records that were sent in each second from a time on.
func perSecond(at []time.Time, from time.Time, seconds int) []int {
	counts := make([]int, seconds)
	for _, t := range at {
		if s := int(t.Sub(from) / time.Second); !t.Before(from) && s < seconds {
			counts[s]++
		}
	}
	return counts
}

func TestDrainRate(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ rate, arriving int }{{500, 0}, {200, 100}, {10, 200}, {1, 50}, {1, 0}} {
		t.Run(fmt.Sprintf("%d and %d", c.rate, c.arriving), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := run(t, spool.Delivery{Limits: spool.Limits{Rate: c.rate}})
				w.server.duration = 20 * time.Millisecond
				w.queue.append(numbers(30 * c.rate)...)
				began := time.Now()
				if c.arriving > 0 {
					w.arrive(20*c.arriving, 20*time.Second)
				} else {
					time.Sleep(20 * time.Second)
				}
				_, at := w.server.seen()
				want := c.rate + c.arriving
				for s, n := range perSecond(at, began, 20) {
					if n > want+c.rate/10+1 || n < want-want/50-1 {
						t.Errorf("second %d: %d records, want %d", s, n, want)
					}
				}
			})
		})
	}
}

// A drain takes so many bytes a second and no more; what arrives meanwhile does not
// count, and a record larger than a second's worth passes.
func TestBytesRate(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		size     int
		limit    int64
		arriving int // a second
	}{{1000, 100_000, 0}, {1000, 100_000, 50}, {300, 1_000_000, 0}, {1 << 20, 100_000, 0}, {1 << 20, 100_000, 50}} {
		t.Run(fmt.Sprintf("%d bytes at %d, %d live", c.size, c.limit, c.arriving), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				const seconds = 60
				w := run(t, spool.Delivery{Limits: spool.Limits{BytesRate: c.limit}})
				data := bytes.Repeat([]byte("x"), c.size)
				for range int(c.limit)*seconds/c.size + 100 {
					w.queue.appendData(data)
				}
				if c.arriving > 0 {
					w.arrive(c.arriving*seconds, seconds*time.Second)
				} else {
					time.Sleep(seconds * time.Second)
				}
				got, _ := w.server.seen()
				arrived := int64(10 * c.arriving * seconds) // they are behind the backlog still
				if sent, most := int64(len(got))*int64(c.size), arrived+c.limit*(seconds+1)+int64(c.size); sent > most || sent < c.limit*(seconds-2)-int64(c.size) {
					t.Errorf("%d bytes in %d seconds, want %d a second", sent, seconds, c.limit)
				}
			})
		})
	}
}

func TestLiveTrafficIsNotLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := run(t, spool.Delivery{Limits: spool.Limits{Rate: 1, BytesRate: 10}})
		w.server.duration = 20 * time.Millisecond
		for range 100 { // as after a group commit
			for i := range 50 {
				w.queue.append(strconv.Itoa(i))
				if i%2 == 0 {
					synctest.Wait() // it is taken before this is told
				}
				w.Arrived(1, 10)
			}
			time.Sleep(20 * time.Millisecond)
			synctest.Wait()
			if n := w.queue.count(acked); n != len(w.queue.records) {
				t.Fatalf("%d of %d are delivered", n, len(w.queue.records))
			}
		}
	})
}

func TestNoBurstAfterAnOutage(t *testing.T) {
	t.Parallel()
	const rate, arriving = 50, 100
	for name, down := range map[string]func(*server){
		"refusing": func(s *server) { s.always(nobody) },
		"hanging":  func(s *server) { s.set(func(string) spool.Result { return nobody }, 30*time.Second) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := run(t, spool.Delivery{Limits: spool.Limits{Rate: rate}})
				w.arrive(5*arriving, 5*time.Second)
				down(w.server)
				w.arrive(60*arriving, 60*time.Second)
				if !w.IsOpen() {
					t.Fatal("v2 is not taken to be down")
				}
				w.server.always(taken)
				w.arrive(60*arriving, 60*time.Second) // it may be noticed only after a try that hangs
				if w.IsOpen() {
					t.Fatal("v2 is taken to be down")
				}
				began := time.Now()
				w.arrive(20*arriving, 20*time.Second)
				_, at := w.server.seen()
				for s, n := range perSecond(at, began.Add(-60*time.Second), 80) {
					if n > rate+arriving+rate/10+1 {
						t.Errorf("%d records in second %d, want %d", n, s, rate+arriving)
					}
				}
				for s, n := range perSecond(at, began, 20) {
					if n < rate+arriving-rate/10-1 {
						t.Errorf("%d records in second %d, want %d", n, s, rate+arriving)
					}
				}
			})
		})
	}
}

func TestNoBurstAfterSlowness(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := run(t, spool.Delivery{Limits: spool.Limits{InFlight: 10, Rate: 10}})
		w.server.duration = time.Second
		w.arrive(25_000, 25*time.Second)
		w.server.set(nil, 0)
		began := time.Now()
		time.Sleep(60 * time.Second)
		_, at := w.server.seen()
		counts := perSecond(at, began.Add(time.Second), 59)
		for s, n := range counts[1:] {
			if n > 12 {
				t.Errorf("%d records in second %d, want 10", n, s+1)
			}
		}
		if n := len(at); n > 250+10_000+700 {
			t.Errorf("%d records went at once, since they arrived while v2 was slow", n)
		}
	})
}

func TestDownForEightDays(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := run(t, spool.Delivery{Limits: spool.Limits{Rate: 100}})
		w.server.always(nobody)
		for minute := range 8 * 24 * 60 {
			w.queue.append(strconv.Itoa(minute))
			w.Arrived(1, 10)
			time.Sleep(time.Minute)
		}
		// The first two days' are older than six now.
		if n := w.queue.count(dead); n < 2*24*60-10 || n > 2*24*60 {
			t.Errorf("after 8 days %d records are dead letters, want %d", n, 2*24*60)
		}
		w.server.always(taken)
		time.Sleep(30 * time.Minute)
		old := w.queue.count(dead)
		w.expect(t, map[state]int{dead: old, acked: 8*24*60 - old})
		if old < 2*24*60 || old > 2*24*60+40 {
			t.Errorf("%d records became too old, want about %d", old, 2*24*60)
		}
		if w.toldOf(spool.TooOld) != old {
			t.Errorf("told of %v", w.fates)
		}
		for id := range w.queue.records {
			r := w.queue.record(id)
			if isOld := r.state == dead; isOld != (id < old) {
				t.Fatalf("record %d of %d is %s", id, old, r.state)
			}
			if r.state == dead && r.why != (spool.Verdict{Reason: "too_old"}) {
				t.Fatalf("the dead letter has %+v", r.why)
			}
		}
	})
}

// v2 is not asked again for a record that it has refused while the Log cannot
// bury it.
func TestRefusedIsAskedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := run(t, spool.Delivery{Limits: spool.Limits{InFlight: 10}})
		w.server.set(func(string) spool.Result { return spool.Result{Status: 400, Words: "no such table"} }, 0)
		w.queue.fail(nil, errBroken)
		w.queue.append(numbers(600)...)
		time.Sleep(time.Hour)
		if seen, _ := w.server.seen(); len(seen) != 600 {
			t.Errorf("v2 was asked %d times of 600 records", len(seen))
		}
		w.queue.fail(nil, nil)
		time.Sleep(time.Hour)
		if n := w.queue.count(dead); n != 600 || w.toldOf(spool.Refused) != 600 {
			t.Errorf("%d are dead letters", n)
		}
		if r := w.queue.record(599); r.why != (spool.Verdict{Status: 400, Reason: "refused", Words: "no such table"}) {
			t.Errorf("one has %+v", r.why)
		}
	})
}

// When dead letters have no room, what v2 refuses is let go and counted; what is
// too old is put back, and kept when there is room.
func TestNoRoomForDeadLetters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := run(t, spool.Delivery{Limits: spool.Limits{InFlight: 10}})
		w.server.set(func(string) spool.Result { return spool.Result{Status: 400} }, 0)
		w.queue.fail(nil, fmt.Errorf("dead letters: %w", spool.ErrFull))
		w.queue.append(numbers(100)...)
		time.Sleep(time.Minute)
		if n := w.toldOf(spool.RefusedUnkept); n != 100 || w.queue.count(acked) != 100 || w.toldOf(spool.Refused) != 0 {
			t.Errorf("%d were told of, want 100", n)
		}
		w.SetLimits(spool.Limits{InFlight: 10, Rate: 1, MaxAge: -1})
		w.queue.append("old")
		time.Sleep(time.Minute)
		if n := w.queue.count(acked); n != 100 {
			t.Error("a record was let go that v2 has not refused")
		}
		w.queue.fail(nil, nil)
		time.Sleep(5 * time.Minute) // its pauses have grown
		if n := w.queue.count(dead); n != 1 || w.toldOf(spool.TooOld) != 1 {
			t.Errorf("%d dead letters, want the one", n)
		}
	})
}

func TestPausesWhileV2IsDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := run(t, spool.Delivery{Limits: spool.Limits{InFlight: 1}})
		w.server.set(func(string) spool.Result { return nobody }, time.Second)
		w.queue.append(numbers(1000)...)
		time.Sleep(time.Hour)
		_, at := w.server.seen()
		if len(at) < 200 {
			t.Fatalf("%d tries in an hour, want one every 16 s", len(at))
		}
		for i := 5; i < len(at); i++ { // the circuit is open
			pause, want := at[i].Sub(at[i-1])-time.Second, min(time.Second<<min(i-5, 10), 15*time.Second)
			if pause < want/2 || pause > want*3/2 {
				t.Errorf("pause %d is %s, want about %s", i-5, pause, want)
			}
		}
	})
}

// The same from the files of a disk, for two days: in synctest's bubble, what it
// syncs takes no time.
func TestDownForTwoDaysOnDisk(t *testing.T) {
	t.Parallel()
	const queue, records = "https://us01.records.in.treasuredata.com", 2 * 12 * 16
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(time.Until(today))
		log, err := disk.Open(disk.Config{
			Dir: t.TempDir(), MaxSize: 8 << 20,
			OnEvent: func(e spool.Event) { t.Errorf("%s: %v", e.Kind, e.Err) },
		})
		if err != nil {
			t.Fatal(err)
		}
		v2 := &server{}
		v2.always(spool.Result{Status: 503, RetryAfter: time.Hour})
		var delivered, old atomic.Int64
		d := spool.NewDeliverer(log.Queue(queue), &spool.Gate{}, spool.Delivery{
			Send: v2.send, Limits: spool.Limits{InFlight: 100, Rate: 100, MaxAge: day * 3 / 2},
			OnFate: func(fate spool.Fate, _ spool.Result) {
				switch fate {
				case spool.Delivered:
					delivered.Add(1)
				case spool.TooOld:
					old.Add(1)
				case spool.Retried:
				case spool.Refused, spool.RefusedUnkept:
					t.Error("a record was refused")
				}
			},
			OnError: func(err error) { t.Error(err) },
		})
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { d.Run(ctx) })
		for begins := 0; begins < records; begins += 16 {
			var callers sync.WaitGroup
			for i := range 16 {
				data := fmt.Appendf(nil, "%d %s", begins+i, strings.Repeat(" ", 1<<10))
				callers.Go(func() {
					if err := log.Append(queue, spool.Record{Arrival: time.Now(), Data: data}); err != nil {
						t.Error(err)
					}
					d.Arrived(1, 10)
				})
			}
			callers.Wait()
			time.Sleep(2 * time.Hour)
		}
		depth, err := log.Depth(queue)
		if err != nil || depth.Dead != int(old.Load()) || depth.Records != records-depth.Dead {
			t.Errorf("after two days the depth is %+v, %v, and %d were too old", depth, err, old.Load())
		}
		v2.mu.Lock()
		v2.got = nil
		v2.mu.Unlock()
		v2.always(taken)
		time.Sleep(2 * time.Hour)
		cancel()
		running.Wait()
		dead := int(old.Load())
		depth, err = log.Depth(queue)
		if err != nil || depth.Records != 0 || depth.Dead != dead || int(delivered.Load()) != records-dead {
			t.Errorf("the depth is %+v, %v; %d were delivered and %d too old, of %d", depth, err, delivered.Load(), dead, records)
		}
		if want := 6 * 16; dead < want-16 || dead > want+16 {
			t.Errorf("%d records became too old, want about %d", dead, want)
		}
		letters, err := log.Letters(queue, 0, records)
		if err != nil || len(letters) != dead {
			t.Errorf("%d dead letters, %v; want %d", len(letters), err, dead)
		}
		numbers := map[int]bool{}
		for _, l := range letters {
			numbers[number(t, string(l.Data))] = true
			if l.Reason != "too_old" || l.Status != 0 {
				t.Fatalf("a dead letter has %d, %q", l.Status, l.Reason)
			}
		}
		got, _ := v2.seen()
		for _, data := range got {
			numbers[number(t, data)] = true
		}
		if len(numbers) != records {
			t.Errorf("%d different records were delivered or are dead letters, want %d", len(numbers), records)
		}
		if err := log.Close(); err != nil {
			t.Error(err)
		}
	})
}

// number is what a record's data begins with.
func number(t *testing.T, data string) int {
	t.Helper()
	first, _, _ := strings.Cut(data, " ")
	n, err := strconv.Atoi(first)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// When records become too old all the time, the one whose turn it is to be
// tried is always about to.
func TestNoticesThatV2IsBackWhileRecordsGrowOld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := run(t, spool.Delivery{Limits: spool.Limits{MaxAge: time.Hour}})
		w.server.always(nobody)
		w.arrive(2*3600, 2*time.Hour)
		tries, _ := w.server.seen()
		if len(tries) < 300 {
			t.Errorf("%d tries in two hours, want one every 15 s", len(tries))
		}
		w.server.always(taken)
		w.arrive(30, 30*time.Second)
		if w.IsOpen() {
			t.Error("after half a minute nobody has noticed")
		}
	})
}

func TestTooOldWhenItsTurnComes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := run(t, spool.Delivery{Limits: spool.Limits{MaxAge: 59 * time.Second}})
		w.server.always(spool.Result{Status: 503, RetryAfter: time.Hour})
		w.queue.append("first")
		synctest.Wait() // for a minute, nothing is sent
		w.server.always(taken)
		w.queue.append("second") // waits for v2 until it is too old
		time.Sleep(50 * time.Second)
		w.queue.append("third")
		time.Sleep(10*time.Second + time.Millisecond)
		time.Sleep(time.Second)
		w.expect(t, map[state]int{dead: 2, acked: 1})
		if len(w.server.tries("second")) != 0 {
			t.Error("a record was sent that was too old by then")
		}
	})
}

// A clock that cannot be right ages nothing, and gives no record an age. What was
// replayed has none either.
func TestWrongClock(t *testing.T) {
	for name, c := range map[string]struct {
		arrival  time.Time
		replayed bool
		dies     bool
	}{
		"old":                              {arrival: today.Add(-7 * day), dies: true},
		"old and replayed":                 {arrival: today.Add(-7 * day), replayed: true},
		"came in 1970":                     {arrival: time.Unix(100, 0)},
		"came in 2000":                     {arrival: time.Date(2000, 1, 1, 0, 5, 0, 0, time.UTC)},
		"came when the clock was ahead":    {arrival: today.Add(10_000 * day)},
		"came before records had a time":   {},
		"came when the clock was all bits": {arrival: time.UnixMilli(-1 << 60)},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := run(t, spool.Delivery{})
				w.queue.appendRecord(spool.Record{Arrival: c.arrival, Data: []byte("a record"), Replayed: c.replayed})
				if c.dies {
					w.expect(t, map[state]int{dead: 1})
				} else {
					w.expect(t, map[state]int{acked: 1})
				}
			})
		})
	}
	t.Run("now", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) { // in 2000
			queue, v2 := newMemory(), &server{}
			queue.appendRecord(spool.Record{Arrival: today.Add(-20 * 365 * day), Data: []byte("a record")})
			queue.appendRecord(spool.Record{Arrival: today, Data: []byte("another")})
			d := spool.NewDeliverer(queue, &spool.Gate{}, spool.Delivery{Send: v2.send, Limits: spool.Limits{InFlight: 1, Rate: 100, MaxAge: day}})
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			d.Run(ctx)
			if n := queue.count(acked); n != 2 {
				t.Errorf("%d of 2 records were delivered", n)
			}
		})
	})
}

func TestBuryFails(t *testing.T) {
	for name, prepare := range map[string]func(*worker){
		"refused": func(w *worker) { w.server.always(spool.Result{Status: 400}) },
		"too old": func(w *worker) { w.SetLimits(spool.Limits{InFlight: 1, Rate: 1, MaxAge: -1}) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := run(t, spool.Delivery{})
				prepare(w)
				w.queue.fail(nil, errBroken)
				time.Sleep(time.Second)
				w.queue.append(numbers(500)...)
				time.Sleep(time.Second)
				time.Sleep(5 * time.Minute)
				w.expect(t, map[state]int{waiting: 500})
				errs := w.reported()
				if len(errs) < 5 || len(errs) > 31 || !errors.Is(errs[0], errBroken) {
					t.Errorf("%d errors were told in five minutes: %v", len(errs), errs[:min(len(errs), 1)])
				}
				w.queue.fail(nil, nil)
				time.Sleep(15 * time.Minute)
				w.expect(t, map[state]int{dead: 500})
			})
		})
	}
}

func TestTakeFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := run(t, spool.Delivery{})
		w.queue.fail(errBroken, nil)
		w.queue.append("a record")
		time.Sleep(time.Hour)
		synctest.Wait()
		errs := w.reported()
		if w.queue.takes > 3610 || len(errs) < 300 || len(errs) > 361 || !errors.Is(errs[0], errBroken) {
			t.Errorf("%d attempts and %d errors in an hour", w.queue.takes, len(errs))
		}
		w.queue.fail(nil, nil)
		time.Sleep(time.Second)
		w.expect(t, map[state]int{acked: 1})
	})
}

func TestRunEndsWithTheLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		queue := newMemory()
		queue.fail(spool.ErrClosed, nil)
		d := spool.NewDeliverer(queue, &spool.Gate{}, spool.Delivery{
			Limits: spool.Limits{InFlight: 1, Rate: 1, MaxAge: day}, OnError: func(err error) { t.Errorf("told of %v", err) },
		})
		d.Run(t.Context())
		if queue.takes != 1 {
			t.Errorf("%d attempts to take records from a closed Log", queue.takes)
		}
	})
}

func TestRunEndsWithItsContext(t *testing.T) {
	for name, c := range map[string]struct {
		how     spool.Delivery
		prepare func(*worker)
		within  time.Duration
		want    map[state]int // at the end
		later   map[state]int // when the last answers have come
	}{
		"idle": {
			prepare: func(*worker) {},
		},
		"while the circuit is open": {
			prepare: func(w *worker) {
				w.Failure(time.Now(), time.Hour)
				w.queue.append(numbers(1000)...)
			},
			want: map[state]int{waiting: 1000},
		},
		"while the rate is used up": {
			how:     spool.Delivery{Limits: spool.Limits{Rate: 1}},
			prepare: func(w *worker) { w.queue.append(numbers(1000)...) },
			want:    map[state]int{waiting: 999, acked: 1},
		},
		"while the Log cannot be read": {
			prepare: func(w *worker) {
				w.queue.fail(errBroken, nil)
				w.queue.append("a record")
			},
			want: map[state]int{waiting: 1},
		},
		"with records on their way": {
			how: spool.Delivery{Limits: spool.Limits{InFlight: 100}},
			prepare: func(w *worker) {
				w.server.duration = 4 * time.Second
				w.queue.append(numbers(1000)...)
			},
			within: 4 * time.Second,
			want:   map[state]int{waiting: 900, acked: 100},
		},
		"with records whose answers take long": {
			how: spool.Delivery{Limits: spool.Limits{InFlight: 100}},
			prepare: func(w *worker) {
				w.server.duration = time.Minute
				w.queue.append(numbers(1000)...)
			},
			within: 5 * time.Second,
			want:   map[state]int{waiting: 900, held: 100},
			later:  map[state]int{waiting: 900, acked: 100},
		},
		"with records that are not taken": {
			how: spool.Delivery{Limits: spool.Limits{InFlight: 100}},
			prepare: func(w *worker) {
				w.server.set(func(string) spool.Result { return failing }, time.Second)
				w.queue.append(numbers(1000)...)
			},
			within: time.Second,
			want:   map[state]int{waiting: 1000},
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := run(t, c.how)
				time.Sleep(time.Second) // so that the failure counts, and the rate gives one
				c.prepare(w)
				synctest.Wait()
				ended := time.Now()
				w.stop()
				if took := time.Since(ended); took > c.within {
					t.Errorf("Run returned after %s, want %s", took, c.within)
				}
				w.expect(t, c.want)
				time.Sleep(2 * time.Minute)
				if c.later == nil {
					c.later = c.want
				}
				w.expect(t, c.later)
			})
		})
	}
}

func TestSetLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := run(t, spool.Delivery{Limits: spool.Limits{Rate: 1}})
		w.queue.append(numbers(1000)...)
		time.Sleep(10*time.Second + time.Millisecond)
		if n := w.queue.count(acked); n < 9 || n > 11 {
			t.Errorf("%d records in ten seconds, want 10", n)
		}
		w.SetLimits(spool.Limits{InFlight: 1000, Rate: 100, MaxAge: 6 * day})
		time.Sleep(5 * time.Second)
		if n := w.queue.count(acked); n < 400 || n > 521 {
			t.Errorf("%d records after five seconds more, want about 500", n)
		}
		w.SetLimits(spool.Limits{InFlight: 1000, Rate: 1, MaxAge: time.Second})
		time.Sleep(time.Second)
		w.expect(t, map[state]int{acked: w.queue.count(acked), dead: 1000 - w.queue.count(acked)})
	})
}

func TestSharesTheCircuitWithLiveTraffic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := run(t, spool.Delivery{})
		fail(&w.Circuit, 5) // live requests
		w.queue.append(numbers(1000)...)
		w.expect(t, map[state]int{waiting: 999, held: 1})
		w.Success()
		w.expect(t, map[state]int{acked: 1000})
	})
}

// Others who share the Log may have a v2 that is up.
func TestHoldsOneRecordWhileV2IsDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := run(t, spool.Delivery{Limits: spool.Limits{InFlight: 10}})
		w.server.set(func(string) spool.Result { return nobody }, time.Millisecond)
		w.queue.append(numbers(1000)...)
		time.Sleep(10 * time.Millisecond)
		for range 1000 {
			synctest.Wait()
			if n := w.queue.count(held); n > 2 { // one on its way, and the next
				t.Fatalf("%d records are held", n)
			}
			time.Sleep(time.Second)
		}
		w.server.always(taken)
		time.Sleep(30 * time.Minute) // more than the longest pause
		w.expect(t, map[state]int{acked: 1000})
	})
}

// Whatever v2 answers, and whatever the Log does, each record ends once.
func TestNothingIsLost(t *testing.T) {
	const records = 3000
	synctest.Test(t, func(t *testing.T) {
		w := run(t, spool.Delivery{Limits: spool.Limits{InFlight: 20, Rate: 500}})
		results := []spool.Result{
			taken, taken, taken, failing, nobody, {Status: 400}, {Status: 500, Ambiguous: true},
			{Status: 429, RetryAfter: time.Second}, {Status: 413}, {Status: 408},
		}
		n := 0
		w.server.set(func(string) spool.Result {
			n++
			return results[n*n%len(results)]
		}, 7*time.Millisecond)
		for i := range records {
			w.queue.append(strconv.Itoa(i))
			w.Arrived(1, 10)
			if i%100 == 0 {
				w.queue.fail(errBroken, errBroken)
			}
			time.Sleep(11 * time.Millisecond)
			w.queue.fail(nil, nil)
		}
		w.server.always(taken)
		time.Sleep(time.Hour)
		refused := w.queue.count(dead)
		w.expect(t, map[state]int{acked: records - refused, dead: refused})
		if refused == 0 || w.toldOf(spool.Retried) == 0 {
			t.Errorf("this did not test much: %v", maps.Clone(w.fates))
		}
	})
}

func BenchmarkDeliverer(b *testing.B) {
	data := bytes.Repeat([]byte("x"), 512)
	queue := newMemory()
	queue.records = make([]kept, 0, b.N)
	var done sync.WaitGroup
	done.Add(b.N)
	d := spool.NewDeliverer(queue, &spool.Gate{}, spool.Delivery{
		Send:   func([]byte) spool.Result { return taken },
		Limits: spool.Limits{InFlight: 1024, Rate: unlimited, MaxAge: day},
		OnFate: func(spool.Fate, spool.Result) { done.Done() },
	})
	for range b.N {
		queue.appendData(data)
	}
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	b.ReportAllocs()
	b.ResetTimer()
	go d.Run(ctx)
	done.Wait()
}
