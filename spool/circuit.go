package spool

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// openAfter is how many failures in a row mean that v2 is down. Fewer may be
	// the fault of the records.
	openAfter = 5

	// The pause until the next try, when v2 is down. Each try that fails doubles
	// it. Four tries a minute hammer nobody, and find v2 soon when it is back.
	minPause = time.Second
	maxPause = 15 * time.Second

	// maxHostPause bounds what v2 may ask for its host: one answer must not stop
	// everybody for long.
	maxHostPause = time.Minute

	// When v2 was taken to be down and took the very next record, the failures were
	// those of some records. For a while, so many times as many are needed then.
	falseAlarm   = 4
	maxOpenAfter = 80
	forgetAlarms = 10 * time.Minute

	// probeLease is how long a try may take. Then another one may be made.
	probeLease = time.Minute
)

// Circuit keeps a v2 host that is down from being hammered. While it is open,
// one request at a time may try, after pauses that grow. The zero Circuit is
// closed.
type Circuit struct {
	open    atomic.Bool
	failing atomic.Bool // the circuit is open, or there were failures: Success has something to do

	mu       sync.Mutex
	failures int           // in a row, while it is closed
	needed   int           // how many of them open it; 0 for openAfter
	since    time.Time     // when it opened or closed
	pause    time.Duration // the last one
	next     time.Time     // when the next try may be made
	changed  chan struct{} // nil if nobody waits; closed when next comes closer, or the circuit closes
}

// IsOpen reports whether v2 is taken to be down.
func (c *Circuit) IsOpen() bool { return c.open.Load() }

// Allow reports whether a request may be sent now. After true, the caller must
// call Success, Failure or Forgo; otherwise the next try waits for a minute.
func (c *Circuit) Allow() bool {
	if !c.open.Load() {
		return true
	}
	wait, _ := c.allow()
	return wait <= 0
}

// allow lets a request through, or says how long to wait. Whoever waits looks
// again when changed is closed.
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

// wake lets all who wait look again. c.mu is held.
func (c *Circuit) wake() {
	if c.changed != nil {
		close(c.changed)
		c.changed = nil
	}
}

// Wait waits until a request may be sent, or ctx ends. What Allow asks of its
// caller, Wait asks too.
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

// Forgo gives back what Allow or Wait has allowed at sent, or before: the request
// is not sent, and another one may be.
func (c *Circuit) Forgo(sent time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !sent.After(c.since) {
		return // it was no try of an open circuit
	}
	c.next = time.Now()
	c.wake()
}

// Success notes that v2 has answered a request.
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
		if c.pause == minPause {
			c.needed = min(falseAlarm*c.needed, maxOpenAfter)
		}
		c.wake()
	}
}

// Failure notes that v2 has not taken a request. sent is when the request was
// allowed, or later. retryAfter is how long v2 wants to be left alone, or 0:
// then one failure is enough, unless v2 took the next record after it said so last.
func (c *Circuit) Failure(sent time.Time, retryAfter time.Duration) {
	retryAfter = min(retryAfter, maxHostPause)
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	switch {
	case !sent.After(c.since):
		// The request was on its way when the circuit opened or closed. It says
		// nothing new about v2.
		if next := now.Add(retryAfter); c.open.Load() && next.After(c.next) {
			c.next = next
		}
		return
	case c.open.Load():
		c.pause = min(2*c.pause, maxPause)
	default:
		if c.needed == 0 || now.Sub(c.since) > forgetAlarms {
			c.needed = openAfter
		}
		c.failures++
		c.failing.Store(true)
		if c.failures < c.needed && (retryAfter <= 0 || c.needed > openAfter) {
			return
		}
		c.open.Store(true)
		c.since, c.pause = now, minPause
	}
	c.next = now.Add(max(jitter(c.pause), retryAfter))
	c.wake()
}

// jitter returns between half of a pause and one and a half of it, so that many
// who pause do not come back together.
func jitter(pause time.Duration) time.Duration {
	return pause/2 + rand.N(pause) //nolint:gosec // G404: nobody gains by guessing it
}
