package spool

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"
)

const (
	// maxHeld bounds the memory of the records on their way, in bytes.
	maxHeld = 64 << 20

	// takeAtOnce is how many records are taken from the queue at a time.
	takeAtOnce = 128

	// The pause until a record is tried again that v2 did not take while it
	// took others: doubled each time.
	minRetry = time.Second
	maxRetry = 5 * time.Minute

	// logPause is the pause after the Log could not be read.
	logPause = time.Second

	// lastWait is how long Run waits at the end for the records on their way.
	lastWait = 5 * time.Second
)

// Result is how sending a record to v2 went.
type Result struct {
	Status     int           // of v2's answer; 0 without one
	RetryAfter time.Duration // that v2 asked for; 0 if it did not
	Err        error         // why there is no answer

	// Ambiguous says that v2 may have taken the record although it did not say
	// so.
	Ambiguous bool
}

// NotTaken reports whether v2 has not taken the record, but may later: there
// was no answer, or 408, 429 or 5xx.
func (r Result) NotTaken() bool {
	return r.Status == 0 || r.Status == http.StatusRequestTimeout || r.Status == http.StatusTooManyRequests ||
		r.Status >= http.StatusInternalServerError
}

// Fate is what became of a record.
type Fate string

// The fates of records.
const (
	Delivered Fate = "delivered"
	Retried   Fate = "retried" // put back; Result says why
	Refused   Fate = "refused" // a dead letter, since v2 refused it
	TooOld    Fate = "too_old" // a dead letter, since it is older than MaxAge
)

// Delivery says how the records of a queue are delivered.
type Delivery struct {
	// Send sends a record to v2. It is called from many goroutines.
	Send func(data []byte) Result

	// InFlight is how many records may be on their way at a time.
	InFlight int

	// Rate is how many records a second may be delivered beyond those that
	// arrive: what leaves room for live traffic when v2 is back.
	Rate int

	// MaxAge is when a record becomes a dead letter: v2 ignores the time of an
	// old one.
	MaxAge time.Duration

	// OnFate is told what became of a record; nil for nobody.
	OnFate func(fate Fate, r Result)

	// OnError is told of errors of the Log; nil for nobody.
	OnError func(error)
}

// Deliverer delivers the records of one queue: in the order in which they were
// appended, many at a time. A record that v2 does not take, while it takes
// others, is put back and holds up nobody.
type Deliverer struct {
	*Circuit

	queue   Queue
	how     Delivery
	limiter *rate.Limiter
	maxAge  atomic.Int64
	live    atomic.Int64 // records that arrived while v2 was up, and may pass the limiter
	room    *semaphore.Weighted
	cost    int64 // of a small record in room
	running sync.WaitGroup
}

// NewDeliverer makes a Deliverer. Run starts it. The circuit is that of all who
// send to the same v2 host.
func NewDeliverer(queue Queue, circuit *Circuit, how Delivery) *Deliverer {
	d := &Deliverer{
		Circuit: circuit, queue: queue, how: how,
		limiter: rate.NewLimiter(0, 0),
		room:    semaphore.NewWeighted(maxHeld),
		cost:    maxHeld / int64(how.InFlight),
	}
	d.SetLimits(how.Rate, how.MaxAge)
	return d
}

// SetLimits changes Rate and MaxAge.
func (d *Deliverer) SetLimits(records int, maxAge time.Duration) {
	d.limiter.SetLimit(rate.Limit(records))
	d.limiter.SetBurst(max(1, records/10))
	d.maxAge.Store(int64(maxAge))
}

// Arrived tells that a record was appended only now: if v2 is up, it is live
// traffic, and not limited by Rate.
func (d *Deliverer) Arrived() {
	if !d.IsOpen() {
		d.live.Add(1)
	}
}

// Run delivers until ctx ends.
func (d *Deliverer) Run(ctx context.Context) {
	for ctx.Err() == nil {
		entries, err := d.queue.Take(ctx, takeAtOnce)
		if errors.Is(err, ErrClosed) {
			break
		}
		if err != nil && ctx.Err() == nil {
			d.failed(err)
			sleep(ctx, logPause)
		}
		for _, e := range entries {
			if d.dispatch(ctx, e) != nil {
				break
			}
		}
	}
	done := make(chan struct{})
	go func() {
		d.running.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(lastWait): // what is still on its way comes again
	}
}

// dispatch sends a record off when it may go. It fails if ctx ends before.
func (d *Deliverer) dispatch(ctx context.Context, e Entry) error {
	cost := min(max(int64(len(e.Data)), d.cost), maxHeld)
	if err := d.room.Acquire(ctx, cost); err != nil {
		return err
	}
	old := d.isOld(e)
	if !old {
		if err := d.turn(ctx); err != nil {
			d.room.Release(cost)
			return err
		}
	}
	d.running.Go(func() {
		defer d.room.Release(cost)
		if old {
			d.bury(e, Result{}, TooOld)
		} else {
			sent := time.Now()
			d.settle(e, sent, d.how.Send(e.Data))
		}
	})
	return nil
}

// turn waits until v2 may be sent a record.
func (d *Deliverer) turn(ctx context.Context) error {
	if d.live.Load() > 0 {
		d.live.Add(-1)
	} else if err := d.limiter.Wait(ctx); err != nil {
		return err
	}
	if !d.IsOpen() {
		return nil
	}
	d.live.Store(0) // what arrives while v2 is down is drained with the rest
	return d.Wait(ctx)
}

func (d *Deliverer) isOld(e Entry) bool {
	return time.Since(e.Arrival) > time.Duration(d.maxAge.Load())
}

// settle decides by v2's answer what becomes of a record.
func (d *Deliverer) settle(e Entry, sent time.Time, r Result) {
	switch {
	case r.NotTaken():
		d.Failure(sent, r.RetryAfter)
		d.queue.Later(e, d.retryPause(e, r))
		d.tell(Retried, r)
	case r.Status < http.StatusMultipleChoices:
		d.Success()
		d.queue.Ack(e)
		d.tell(Delivered, r)
	default:
		d.Success() // it is up
		d.bury(e, r, Refused)
	}
}

// retryPause is how long a record waits that v2 has not taken. When v2 is down,
// that says nothing about the record, which is to keep its place as far as
// possible; but each try is made with another record, so that one that v2
// never takes cannot keep the circuit open.
func (d *Deliverer) retryPause(e Entry, r Result) time.Duration {
	if d.IsOpen() {
		return jitter(minRetry)
	}
	return max(jitter(min(minRetry<<min(e.Tries, 20), maxRetry)), min(r.RetryAfter, maxRetryAfter))
}

// bury makes a dead letter of a record, or puts it back if that fails.
func (d *Deliverer) bury(e Entry, r Result, why Fate) {
	if err := d.queue.Bury(e, r.Status, string(why)); err != nil {
		d.failed(err)
		d.queue.Later(e, jitter(minRetry))
		return
	}
	d.tell(why, r)
}

func (d *Deliverer) tell(fate Fate, r Result) {
	if d.how.OnFate != nil {
		d.how.OnFate(fate, r)
	}
}

func (d *Deliverer) failed(err error) {
	if d.how.OnError != nil {
		d.how.OnError(err)
	}
}

func sleep(ctx context.Context, pause time.Duration) {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
