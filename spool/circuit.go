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
	// fails. Four tries a minute hammer nobody, and v2 is not left waiting long
	// when it is back.
	minPause = time.Second
	maxPause = 15 * time.Second

	// maxRetryAfter bounds what v2 may ask for.
	maxRetryAfter = time.Hour

	// probeLease is when a try that never said how it went is given up.
	probeLease = time.Minute
)

// Circuit keeps a v2 host that is down from being hammered. While it is open,
// one request at a time may try, after pauses that grow. The zero Circuit is
// closed.
type Circuit struct {
	open    atomic.Bool
	failing atomic.Bool // it is open, or there were failures: Success has something to do

	mu       sync.Mutex
	failures int           // in a row, while it is closed
	since    time.Time     // when it opened or closed
	pause    time.Duration // the last one
	next     time.Time     // when the next try may be made
	changed  chan struct{} // if somebody waits: closed when next comes closer, or the circuit closes
}

// IsOpen reports whether v2 is taken to be down.
func (c *Circuit) IsOpen() bool { return c.open.Load() }

// Allow reports whether a request may be sent now. Its Success, Failure or
// Forgo must be told, or the next try waits for a minute.
func (c *Circuit) Allow() bool {
	if !c.open.Load() {
		return true
	}
	wait, _ := c.allow()
	return wait <= 0
}

// allow lets a request through, or says how long none may be sent unless
// changed is closed before.
func (c *Circuit) allow() (wait time.Duration, changed <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.open.Load() {
		return 0, nil
	}
	now := time.Now()
	if now.Before(c.next) {
		if c.changed == nil {
			c.changed = make(chan struct{})
		}
		return c.next.Sub(now), c.changed
	}
	c.next = now.Add(probeLease)
	return 0, nil
}

// wake has those look again who wait. c.mu is held.
func (c *Circuit) wake() {
	if c.changed != nil {
		close(c.changed)
		c.changed = nil
	}
}

// Wait waits until a request may be sent, as Allow does, or ctx ends.
func (c *Circuit) Wait(ctx context.Context) error {
	for ctx.Err() == nil {
		wait, changed := c.allow()
		if wait <= 0 {
			return nil
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-changed:
		case <-timer.C:
		}
		timer.Stop()
	}
	return ctx.Err()
}

// Forgo tells that a request is not sent that was allowed: another may be.
func (c *Circuit) Forgo() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.next = time.Now()
	c.wake()
}

// Success tells that v2 has answered a request.
func (c *Circuit) Success() {
	if !c.failing.Load() {
		return // nearly always
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failures = 0
	c.failing.Store(false)
	if c.open.Swap(false) {
		c.since = time.Now()
		c.wake()
	}
}

// Failure tells that v2 has not taken a request. sent is when the request was
// allowed or later; retryAfter is for how long v2 asked not to be tried, or 0.
func (c *Circuit) Failure(sent time.Time, retryAfter time.Duration) {
	retryAfter = min(retryAfter, maxRetryAfter)
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	switch {
	case !sent.After(c.since):
		// It was on its way when the circuit opened or closed, and says no more
		// of v2 than was known by then.
		if next := now.Add(retryAfter); c.open.Load() && next.After(c.next) {
			c.next = next
		}
		return
	case c.open.Load():
		c.pause = min(2*c.pause, maxPause)
	default:
		c.failures++
		c.failing.Store(true)
		if c.failures < openAfter && retryAfter <= 0 {
			return
		}
		c.open.Store(true)
		c.since, c.pause = now, minPause
	}
	c.next = now.Add(max(jitter(c.pause), retryAfter))
	c.wake()
}

// jitter spreads what many do after the same pause: between half of it and one
// and a half.
func jitter(pause time.Duration) time.Duration {
	return pause/2 + rand.N(pause) //nolint:gosec // G404: nobody gains by guessing it
}
