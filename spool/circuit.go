package spool

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// openAfter is how many failures in a row say that v2 is down, and not
	// that it stumbled over a record.
	openAfter = 5

	// The pause until the next try, when v2 is down: doubled by each try that
	// fails.
	minPause = time.Second
	maxPause = time.Minute

	// maxRetryAfter bounds what v2 may ask for.
	maxRetryAfter = time.Hour

	// probeLease is when a try that never said how it went is given up.
	probeLease = time.Minute
)

// Circuit keeps a v2 host that is down from being hammered. While it is open,
// one request at a time may try, after pauses that grow. The zero Circuit is
// closed.
type Circuit struct {
	failures atomic.Int32 // in a row
	open     atomic.Bool

	mu      sync.Mutex
	pause   time.Duration
	next    time.Time     // when the next try may be made
	probing bool          // a try is on its way
	changed chan struct{} // closed when the circuit closes, or next has changed
}

// IsOpen reports whether v2 is taken to be down.
func (c *Circuit) IsOpen() bool { return c.open.Load() }

// Allow reports whether a request may be sent now. Its Success or Failure must
// be told.
func (c *Circuit) Allow() bool {
	if !c.open.Load() {
		return true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if now.Before(c.next) {
		return false
	}
	c.probing, c.next = true, now.Add(probeLease)
	return true
}

// Wait waits until a request may be sent, or ctx ends.
func (c *Circuit) Wait(ctx context.Context) error {
	for !c.Allow() {
		c.mu.Lock()
		if c.changed == nil {
			c.changed = make(chan struct{})
		}
		changed, timer := c.changed, time.NewTimer(time.Until(c.next))
		c.mu.Unlock()
		select {
		case <-ctx.Done():
		case <-changed:
		case <-timer.C:
		}
		timer.Stop()
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return nil
}

// Success tells that v2 has answered a request.
func (c *Circuit) Success() {
	if c.failures.Load() == 0 && !c.open.Load() {
		return // nearly always
	}
	c.failures.Store(0)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.probing = false
	if c.open.Swap(false) {
		c.wake()
	}
}

// wake has those look again who wait. c.mu is held.
func (c *Circuit) wake() {
	if c.changed != nil {
		close(c.changed)
		c.changed = nil
	}
}

// Failure tells that v2 has not taken a request. retryAfter is for how long v2
// asked not to be tried, or 0.
func (c *Circuit) Failure(retryAfter time.Duration) {
	failures := c.failures.Add(1)
	retryAfter = min(retryAfter, maxRetryAfter)
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	switch {
	case !c.open.Load():
		if failures < openAfter && retryAfter == 0 {
			return
		}
		c.open.Store(true)
		c.pause = minPause
	case !c.probing: // it was on its way when the circuit opened
		if next := now.Add(retryAfter); next.After(c.next) {
			c.next = next
		}
		return
	default:
		c.pause = min(2*c.pause, maxPause)
	}
	c.probing = false
	c.next = now.Add(max(jitter(c.pause), retryAfter))
	c.wake() // they may be waiting for the end of the lease
}

// jitter spreads what many do after the same pause: between half of it and one
// and a half.
func jitter(pause time.Duration) time.Duration {
	return pause/2 + rand.N(pause) //nolint:gosec // G404: nobody gains by guessing it
}
