package spool_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/td-postback/gateway/spool"
)

// fail tells of so many failures in a row, of requests that were just sent.
func fail(c *spool.Circuit, times int) {
	for range times {
		time.Sleep(time.Millisecond)
		c.Failure(time.Now(), 0)
	}
}

func TestCircuitOpensAfterFiveFailuresInARow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c spool.Circuit
		fail(&c, 4)
		c.Success()
		fail(&c, 4)
		if c.IsOpen() || !c.Allow() {
			t.Fatal("it opened after four failures in a row")
		}
		fail(&c, 1)
		if !c.IsOpen() || c.Allow() {
			t.Fatal("it is closed after five failures in a row")
		}
	})
}

func TestCircuitHeedsRetryAfter(t *testing.T) {
	for _, c := range []struct{ asked, atLeast, atMost time.Duration }{
		{time.Nanosecond, 500 * time.Millisecond, 1500 * time.Millisecond},
		{20 * time.Second, 20 * time.Second, 20 * time.Second},
		{48 * time.Hour, time.Minute, time.Minute},
	} {
		t.Run(c.asked.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var circuit spool.Circuit
				opened := time.Now()
				circuit.Failure(opened, c.asked)
				if !circuit.IsOpen() {
					t.Fatal("it is closed")
				}
				if err := circuit.Wait(t.Context()); err != nil {
					t.Fatal(err)
				}
				if waited := time.Since(opened); waited < c.atLeast || waited > c.atMost {
					t.Errorf("the next try is after %s, want %s to %s", waited, c.atLeast, c.atMost)
				}
			})
		})
	}
}

func TestCircuitLetsOneTryThroughAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c spool.Circuit
		fail(&c, 5)
		spread := map[time.Duration]bool{}
		for i := range 200 {
			pause := min(time.Second<<min(i, 10), 15*time.Second)
			asked := time.Now()
			if err := c.Wait(t.Context()); err != nil {
				t.Fatal(err)
			}
			waited := time.Since(asked)
			if waited < pause/2 || waited > pause*3/2 {
				t.Fatalf("try %d is after %s, want about %s", i, waited, pause)
			}
			spread[waited] = true
			time.Sleep(10 * time.Second) // it is slow
			if c.Allow() {
				t.Fatalf("another may be sent while try %d is on its way", i)
			}
			c.Failure(time.Now(), 0)
		}
		if len(spread) < 100 {
			t.Errorf("%d different pauses in 200, want jitter", len(spread))
		}
	})
}

func TestCircuitClosesAtTheFirstSuccess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c spool.Circuit
		fail(&c, 5)
		var waiters sync.WaitGroup
		for range 10 {
			waiters.Go(func() {
				if err := c.Wait(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		succeeded := time.Now()
		c.Success() // of one that was on its way
		waiters.Wait()
		if c.IsOpen() || time.Since(succeeded) > 0 {
			t.Errorf("open: %t, and those who waited went %s later", c.IsOpen(), time.Since(succeeded))
		}
		fail(&c, 4)
		if c.IsOpen() {
			t.Error("it remembers failures from before")
		}
	})
}

func TestCircuitGivesUpATryThatNeverSaysHowItWent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c spool.Circuit
		fail(&c, 5)
		for range 3 {
			if err := c.Wait(t.Context()); err != nil {
				t.Fatal(err)
			}
			if c.Allow() {
				t.Fatal("two tries at a time")
			}
			asked := time.Now()
			if err := c.Wait(t.Context()); err != nil {
				t.Fatal(err)
			}
			if waited := time.Since(asked); waited > 61*time.Second {
				t.Fatalf("the next try is after %s, want a minute", waited)
			}
			c.Failure(time.Now(), 0)
		}
	})
}

func TestCircuitWakesWhoWaitsForATryToEnd(t *testing.T) {
	for name, c := range map[string]struct {
		end    func(*spool.Circuit)
		within time.Duration
	}{
		"failed":    {func(c *spool.Circuit) { c.Failure(time.Now(), 0) }, 3 * time.Second},
		"forgone":   {func(c *spool.Circuit) { c.Forgo(time.Now()) }, 0},
		"succeeded": {(*spool.Circuit).Success, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var circuit spool.Circuit
				fail(&circuit, 5)
				if err := circuit.Wait(t.Context()); err != nil {
					t.Fatal(err)
				}
				var waiting sync.WaitGroup
				waiting.Go(func() {
					if err := circuit.Wait(t.Context()); err != nil {
						t.Error(err)
					}
				})
				synctest.Wait()
				ended := time.Now()
				c.end(&circuit)
				waiting.Wait()
				if waited := time.Since(ended); waited > c.within {
					t.Errorf("the next try is %s later, want %s at most", waited, c.within)
				}
			})
		})
	}
}

func TestCircuitForgo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c spool.Circuit
		c.Forgo(time.Now()) // of a closed one changes nothing
		fail(&c, 5)
		if err := c.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		c.Forgo(time.Now())
		if !c.Allow() || c.Allow() {
			t.Error("want one more try at once")
		}
	})
}

func TestCircuitLateFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c spool.Circuit
		sent := time.Now()
		fail(&c, 5)
		for range 100 { // as many as were on their way
			c.Failure(sent, 0)
		}
		opened := time.Now()
		if err := c.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		if waited := time.Since(opened); waited > 1500*time.Millisecond {
			t.Errorf("they lengthened the first pause to %s", waited)
		}
		for range 100 { // and some while the try is
			c.Failure(sent, 0)
		}
		if c.Allow() {
			t.Error("they ended the try that was on its way")
		}
		c.Failure(time.Now(), 0)
		tried := time.Now()
		if err := c.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		if waited := time.Since(tried); waited > 3*time.Second {
			t.Errorf("they lengthened the second pause to %s", waited)
		}
		c.Success()
		for range 100 { // and the slowest
			c.Failure(sent, 0)
		}
		if c.IsOpen() {
			t.Error("they opened it again")
		}
		c.Failure(sent, time.Hour)
		if c.IsOpen() {
			t.Error("a Retry-After from before the success opened it again")
		}
	})
}

func TestCircuitHeedsALateRetryAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c spool.Circuit
		sent := time.Now()
		fail(&c, 5)
		c.Failure(sent, time.Minute)
		asked := time.Now()
		c.Failure(sent, time.Second)
		if err := c.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		if waited := time.Since(asked); waited != time.Minute {
			t.Errorf("the next try is after %s, want 1m", waited)
		}
	})
}

func TestCircuitWaitEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c spool.Circuit
		c.Failure(time.Now(), time.Hour)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		asked := time.Now()
		if err := c.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) || time.Since(asked) != 10*time.Second {
			t.Errorf("%v after %s, want the context's error after 10s", err, time.Since(asked))
		}
	})
}

// When v2 takes the next record after it was taken to be down, the failures were
// about some records: then more of them are needed, for ten minutes, and one that
// asks for a pause is not enough.
func TestCircuitAfterAFalseAlarm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c spool.Circuit
		for _, needed := range []int{5, 20, 80, 80} {
			fail(&c, needed-1)
			if c.IsOpen() {
				t.Fatalf("it opened before %d failures", needed)
			}
			fail(&c, 1)
			if !c.IsOpen() {
				t.Fatalf("it is closed after %d failures", needed)
			}
			if err := c.Wait(t.Context()); err != nil {
				t.Fatal(err)
			}
			c.Success()
		}
		time.Sleep(time.Millisecond)
		c.Failure(time.Now(), time.Minute)
		if c.IsOpen() {
			t.Fatal("one answer opened it, though v2 took others after the last time")
		}
		c.Success()
		time.Sleep(10*time.Minute + time.Second)
		fail(&c, 5)
		if !c.IsOpen() {
			t.Fatal("it remembers a false alarm for more than ten minutes")
		}
		for range 3 {
			if err := c.Wait(t.Context()); err != nil {
				t.Fatal(err)
			}
			c.Failure(time.Now(), 0)
		}
		c.Success()
		fail(&c, 5)
		if !c.IsOpen() {
			t.Error("v2 was down, and it takes more than five failures in a row to see that again")
		}
	})
}

// A success and a failure that cross must not leave a Circuit open that no
// success closes.
func TestCircuitClosesAfterAnything(t *testing.T) {
	var c spool.Circuit
	for range 2000 {
		var crossing sync.WaitGroup
		for range 5 {
			crossing.Go(func() { c.Failure(time.Now(), 0) })
			crossing.Go(func() { c.Failure(time.Now(), 1) })
			crossing.Go(c.Success)
			crossing.Go(func() { c.Allow() })
		}
		crossing.Wait()
		c.Success()
		if c.IsOpen() || !c.Allow() {
			t.Fatal("it stays open after a success")
		}
	}
}
