package spool_test

import (
	"context"
	"fmt"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/td-postback/gateway/spool"
	"github.com/td-postback/gateway/spool/disk"
)

// accountOf is the first word of a record.
func accountOf(data []byte) string {
	account, _, _ := strings.Cut(string(data), " ")
	return account
}

// limit answers 429 to records whose data begins with "noisy".
func limit(retryAfter time.Duration) func(string) spool.Result {
	return func(data string) spool.Result {
		if strings.HasPrefix(data, "noisy") {
			return spool.Result{Status: 429, RetryAfter: retryAfter}
		}
		return taken
	}
}

// fill appends so many records of an account that is called noisy.
func (w *worker) fill(records int) {
	for i := range records {
		w.queue.append("noisy " + strconv.Itoa(i))
	}
}

// healthy appends so many records of an account of its own, evenly over a time, and
// checks that each is taken within two seconds.
func (w *worker) healthy(t *testing.T, name string, records int, over time.Duration) {
	t.Helper()
	sent := make([]time.Time, records)
	for i := range records {
		sent[i] = time.Now()
		w.queue.append(name + " " + strconv.Itoa(i))
		w.Arrived(1, 10)
		time.Sleep(over / time.Duration(records))
	}
	time.Sleep(2 * time.Second)
	for i := range records {
		tries := w.server.tries(name + " " + strconv.Itoa(i))
		if len(tries) != 1 || tries[0].Sub(sent[i]) > 2*time.Second {
			t.Fatalf("record %d of a healthy account was sent %d times, want once within two seconds", i, len(tries))
		}
	}
}

// queues are the two kinds: those that hold records at no cost, and those that do
// not.
var queues = map[string]func(*worker){
	"holding":  func(*worker) {},
	"shedding": func(w *worker) { w.queue.sheds = true },
}

// A healthy account at 20/s beside one that v2 answers 429 once a second.
func TestOneAccountsLimit(t *testing.T) {
	t.Parallel()
	for name, prepare := range queues {
		for _, pause := range []time.Duration{0, 20 * time.Second, 4000 * time.Second} {
			t.Run(fmt.Sprint(name, " ", pause), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					w := run(t, spool.Delivery{Account: accountOf})
					prepare(w)
					w.server.set(limit(pause), 0)
					for second := range 45 {
						w.queue.append("noisy " + strconv.Itoa(second))
						w.Arrived(1, 10)
						w.healthy(t, "healthy"+strconv.Itoa(second), 20, time.Second)
					}
					if w.IsOpen() {
						t.Error("a host that answers is taken to be down")
					}
					if got, _ := w.server.seen(); len(got) > 45*20+45 {
						t.Errorf("%d records were sent, want few of the noisy account", len(got))
					}
					w.server.always(taken)
					time.Sleep(2 * time.Hour)
					w.expect(t, map[state]int{acked: 45 * 21})
				})
			})
		}
	}
}

// However much of the noisy account waits, others do not; and when v2 takes its
// records again, they come as fast as the rate allows, and others still do not wait.
func TestLargeBacklogOfOneAccount(t *testing.T) {
	t.Parallel()
	const backlog = 200_000
	synctest.Test(t, func(t *testing.T) {
		w := run(t, spool.Delivery{Account: accountOf, Limits: spool.Limits{Rate: 1000}})
		w.server.set(limit(10*time.Minute), 10*time.Millisecond)
		w.fill(backlog)
		w.healthy(t, "first", 100, 5*time.Second)
		w.expect(t, map[state]int{acked: 100, held: backlog})
		if got, _ := w.server.seen(); len(got) > 100+1000 {
			t.Errorf("%d of the noisy account's records were sent, though v2 asked for a pause", len(got)-100)
		}
		w.server.set(nil, 10*time.Millisecond)
		time.Sleep(10 * time.Minute) // the pause is over
		began := time.Now()
		w.healthy(t, "second", 400, 20*time.Second)
		_, at := w.server.seen()
		for s, n := range perSecond(at, began, 20)[1:] {
			if n > 1000+20+110 || n < 900 {
				t.Errorf("second %d: %d records, want about 1000 of the backlog and 20 others", s+1, n)
			}
		}
		time.Sleep(5 * time.Minute)
		w.expect(t, map[state]int{acked: backlog + 500})
		if n := w.Paused(); n > 0 {
			t.Errorf("%d accounts are paused still", n)
		}
		if n := w.server.most; n > 500 {
			t.Errorf("%d at a time", n)
		}
	})
}

// An account that is limited to so many a second gets them through.
func TestLimitedAccountGoesOn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := run(t, spool.Delivery{Account: accountOf})
		second, n := time.Now(), 0
		w.server.set(func(string) spool.Result { // one at a time
			if time.Since(second) >= time.Second {
				second, n = time.Now(), 0
			}
			if n++; n > 10 {
				return spool.Result{Status: 429}
			}
			return taken
		}, 0)
		w.fill(3000)
		time.Sleep(20 * time.Minute)
		w.expect(t, map[state]int{acked: 3000})
	})
}

// What is parked becomes too old like anything else.
func TestParkedRecordsGrowOld(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := run(t, spool.Delivery{Account: accountOf, Limits: spool.Limits{MaxAge: 2 * time.Hour}})
		w.server.set(limit(time.Hour), 0)
		w.fill(1000)
		time.Sleep(3*time.Hour + time.Minute)
		w.expect(t, map[state]int{dead: 1000})
	})
}

// Whatever callers make up, the state of accounts is bounded; and whoever has none
// is delivered in the end.
func TestManyAccountsAreLimited(t *testing.T) {
	t.Parallel()
	for name, prepare := range queues {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := run(t, spool.Delivery{Account: accountOf})
				prepare(w)
				w.server.set(limit(time.Minute), 0)
				for i := range 5000 {
					w.queue.append(fmt.Sprintf("noisy%d 1", i), fmt.Sprintf("noisy%d 2", i))
				}
				w.healthy(t, "healthy", 100, 5*time.Second)
				if n := w.Paused(); n != 1000 {
					t.Errorf("%d accounts have state, want 1000", n)
				}
				w.server.always(taken)
				time.Sleep(time.Hour)
				w.expect(t, map[state]int{acked: 10_100})
				if n := w.Paused(); n != 0 {
					t.Errorf("%d accounts have state still", n)
				}
			})
		})
	}
}

// A live call of a paused account is not sent, until its pause is over: then one of
// them finds out.
func TestGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g spool.Gate
		allowed := func(want bool, account string) {
			t.Helper()
			if g.Allow(account) != want {
				t.Errorf("%s: allowed %t, want %t", account, !want, want)
			}
		}
		answer := func(account string, r spool.Result) {
			time.Sleep(time.Millisecond)
			g.Answered(account, time.Now(), r)
		}
		allowed(true, "1")
		answer("1", spool.Result{Status: 429, RetryAfter: 20 * time.Second})
		allowed(false, "1")
		allowed(true, "2")
		allowed(true, "a key without an account")
		time.Sleep(20 * time.Second)
		allowed(true, "1")
		allowed(false, "1") // one at a time
		allowed(true, "2")
		answer("1", spool.Result{Status: 429, RetryAfter: 48 * time.Hour})
		time.Sleep(time.Hour - time.Second)
		allowed(false, "1")
		time.Sleep(time.Second)
		allowed(true, "1")
		g.Forgo("1", time.Now())
		allowed(true, "1")
		time.Sleep(61 * time.Second) // nobody says how it went
		allowed(true, "1")
		answer("1", spool.Result{Status: 503}) // says nothing of the account
		allowed(true, "1")
		answer("1", spool.Result{Status: 400}) // it may send
		for range 10 {
			allowed(true, "1")
		}
		if n := g.Paused(); n != 0 {
			t.Errorf("%d accounts have state", n)
		}
	})
}

// What was on its way when an account was paused says nothing new of it.
func TestLateAnswersOfAnAccount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g spool.Gate
		sent := time.Now()
		time.Sleep(time.Second)
		g.Answered("1", sent, spool.Result{Status: 429, RetryAfter: 10 * time.Second})
		for range 100 {
			g.Answered("1", sent, taken)
			g.Answered("1", sent, spool.Result{Status: 429})
		}
		if g.Allow("1") {
			t.Error("they ended the pause")
		}
		time.Sleep(10 * time.Second)
		if !g.Allow("1") || g.Allow("1") {
			t.Error("want one try after the pause")
		}
	})
}

// 408 and 5xx speak of the host only together. Of how long it wants to be left alone,
// only 503 speaks; and that may hold the others up for a minute, once.
func TestWhomAnAnswerSpeaksOf(t *testing.T) {
	for _, r := range []spool.Result{
		{Status: 408, RetryAfter: time.Hour},
		{Status: 500, RetryAfter: time.Hour, Ambiguous: true},
		{Status: 503, RetryAfter: time.Hour},
	} {
		t.Run(strconv.Itoa(r.Status), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := run(t, spool.Delivery{Account: accountOf})
				w.server.set(func(data string) spool.Result {
					if strings.HasPrefix(data, "noisy") {
						return r
					}
					return taken
				}, 0)
				if r.Status == 503 {
					w.fill(1) // a second one might wait, and then be what the host is tried with
					w.arrive(90, 90*time.Second)
				}
				w.fill(4)
				w.healthy(t, "healthy", 20, time.Second)
				w.server.always(r)
				w.fill(100)
				synctest.Wait()
				if !w.IsOpen() {
					t.Error("many in a row do not say that the host is down")
				}
				w.server.always(taken)
				time.Sleep(30 * time.Minute)
				w.expect(t, map[state]int{acked: len(w.queue.records)})
			})
		})
	}
}

// Many bad records in a row keep the good ones behind them waiting for a moment
// only: the newest record is tried soon.
func TestNewestRecordShowsThatV2IsUp(t *testing.T) {
	for _, many := range []int{5, 50, 500} {
		t.Run(strconv.Itoa(many), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := run(t, spool.Delivery{Account: accountOf, Limits: spool.Limits{InFlight: 1}})
				w.server.set(poison, 0)
				for range many {
					w.queue.append("poison")
				}
				began := time.Now()
				w.arrive(100, 5*time.Second)
				time.Sleep(5 * time.Second)
				for i := range 100 {
					if at := w.server.tries("live " + strconv.Itoa(i)); len(at) != 1 || at[0].Sub(began) > 7*time.Second {
						t.Errorf("good record %d was sent at %v", i, at)
					}
				}
				time.Sleep(time.Hour)
				if n := w.queue.count(acked); n != 100 {
					t.Errorf("%d of 100 good records were delivered", n)
				}
			})
		})
	}
}

// The records of an account come back about in their order. Those that were on their
// way when it was paused come last.
func TestOrderOfParkedRecords(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := run(t, spool.Delivery{Account: accountOf, Limits: spool.Limits{InFlight: 1}})
		w.server.set(limit(time.Minute), time.Millisecond)
		w.fill(1000)
		time.Sleep(time.Second)
		w.server.set(nil, time.Millisecond)
		time.Sleep(5 * time.Minute)
		w.expect(t, map[state]int{acked: 1000})
		got, _ := w.server.seen()
		for place, data := range got[len(got)-1000:] {
			_, n, _ := strings.Cut(data, " ")
			if i, _ := strconv.Atoi(n); i > 2 && (i < place-130 || i > place+130) {
				t.Errorf("record %d came as number %d", i, place)
			}
		}
	})
}

// underRace reports whether the race detector is on.
func underRace() bool {
	info, _ := debug.ReadBuildInfo()
	return slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}

// The same from a disk, in real time: 200,000 records of a paused account are
// passed over within two seconds, and none of them is in memory. The race detector makes
// all several times slower; CI runs this test without it too.
func TestLargeBacklogOnDisk(t *testing.T) {
	const queue, backlog = "https://us01.records.in.treasuredata.com", 200_000
	log, err := disk.Open(disk.Config{Dir: t.TempDir(), OnEvent: func(e spool.Event) { t.Errorf("%s: %v", e.Kind, e.Err) }})
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	pad := strings.Repeat("x", 500)
	var callers sync.WaitGroup
	for c := range 1000 {
		callers.Go(func() {
			for i := range backlog / 1000 {
				if err := log.Append(queue, spool.Record{Arrival: time.Now(), Data: fmt.Appendf(nil, "noisy %d-%d %s", c, i, pad)}); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	callers.Wait()
	v2 := &server{}
	v2.set(limit(time.Hour), 0)
	healthy, delivered := make(chan struct{}), 0
	d := spool.NewDeliverer(log.Queue(queue), &spool.Gate{}, spool.Delivery{
		Send: v2.send, Account: accountOf, Limits: spool.Limits{InFlight: 100, Rate: 100, MaxAge: day},
		OnFate: func(fate spool.Fate, _ spool.Result) {
			if fate == spool.Delivered {
				delivered++
				close(healthy)
			}
		},
	})
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { d.Run(ctx) })
	sent := time.Now()
	if err := log.Append(queue, spool.Record{Arrival: sent, Data: []byte("healthy 1")}); err != nil {
		t.Fatal(err)
	}
	d.Arrived(1, 10)
	<-healthy
	within := 2 * time.Second
	if underRace() {
		within *= 3
	}
	if took := time.Since(sent); took > within {
		t.Errorf("a healthy record behind them was sent after %s, want within %s", took, within)
	} else {
		t.Logf("a healthy record behind them was sent after %s", took)
	}
	cancel()
	running.Wait()
	if depth, err := log.Depth(queue); err != nil || depth.Records != backlog {
		t.Errorf("%+v, %v", depth, err)
	}
}
