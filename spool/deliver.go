package spool

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"
)

const (
	// maxHeld bounds the memory of the records on their way, in bytes.
	maxHeld = 64 << 20

	// takeAtOnce is how many records are taken from the queue at a time, if a batch
	// does not have more.
	takeAtOnce = 128

	// maxLive bounds how many events may pass the limiter at once, and maxCredit how
	// many bytes BytesRate, for as many that have arrived. What arrives together may
	// go beyond that: a large call is no backlog. thinBurst is how much of BytesRate
	// that was not used before may be made up for: no timer is exact.
	maxLive   = 10_000
	maxCredit = 16 << 20
	thinBurst = 100 * time.Millisecond

	// The pause until a record is tried again. Each try doubles it, also while v2
	// is down. So the next tries are with other records: some dozens in a row
	// that v2 never takes do not keep the circuit open.
	minRetry = time.Second
	maxRetry = 15 * time.Minute

	// logPause is the pause after the Log could not be read. tellPause is the
	// least time between two reports of its errors.
	logPause  = time.Second
	tellPause = 10 * time.Second

	// lastWait is how long Run waits at the end for the records on their way.
	lastWait = 5 * time.Second
)

// The statuses of HTTP that decide what becomes of a record (RFC 9110 section
// 15, RFC 6585 section 4).
const (
	statusPartial         = 206
	statusRedirect        = 300 // and above: not taken
	statusBadRequest      = 400
	statusUnauthorized    = 401
	statusForbidden       = 403
	statusRequestTimeout  = 408
	statusTooLarge        = 413
	statusUnprocessable   = 422
	statusTooManyRequests = 429
	statusServerError     = 500 // and above
	statusUnavailable     = 503
)

// Result is how sending a record to v2 went.
type Result struct {
	Status     int           // of v2's answer; 0 without one
	RetryAfter time.Duration // that v2 asked for; 0 if it did not
	Words      string        // in which v2 refused it, on one line and without keys
	Account    string        // whose record v2 refused
	Err        error         // why there is no answer

	// Fingerprint is the name of that record's key. It does not show the key.
	Fingerprint string

	// Ambiguous means that v2 did not say that it has taken the record, but may
	// have. Of a record that was delivered: it may have taken it before, too.
	Ambiguous bool

	// Safe means that v2 drops the repeat of an ambiguous record.
	Safe bool
}

// NotTaken reports whether v2 has not taken the record, but may later: there
// was no answer, or 408, 429 or 5xx.
func (r Result) NotTaken() bool {
	return r.Status == 0 || r.Status == statusRequestTimeout || r.Status == statusTooManyRequests ||
		r.Status >= statusServerError
}

// Fate is what became of a record.
type Fate string

// The fates of records.
const (
	Delivered Fate = "delivered"
	Retried   Fate = "retried" // put back; Result says why
	Refused   Fate = "refused" // a dead letter, since v2 refused it
	TooOld    Fate = "too_old" // a dead letter, since it is older than MaxAge

	// RefusedUnkept: v2 refused it, and dead letters have no room.
	RefusedUnkept Fate = "refused_unkept"
)

// Limits bound the delivery of a queue.
type Limits struct {
	// InFlight is how many requests may be on their way at a time; at least 1.
	InFlight int

	// Rate is how many events a second may be delivered beyond those that arrive:
	// what leaves room for live traffic when v2 is back. At least 1.
	Rate int

	// BytesRate is the same in bytes; 0 for no limit. A larger record than this
	// passes all the same, and those behind it wait the longer.
	BytesRate int64

	// MaxAge is when a record becomes a dead letter: v2 ignores the time of an
	// old one. More than 0.
	MaxAge time.Duration

	// Batching says which records share a request. Its zero value: none do.
	Batching
}

// Delivery says how the records of a queue are delivered.
type Delivery struct {
	// Send sends a record to v2. It is called from many goroutines.
	Send func(data []byte) Result

	// Part makes of a record what it is in a batch. It says no to one that must go
	// alone. SendBatch sends records of one group in one request, and is called from
	// many goroutines. Without both, Batching is not used.
	Part      func(e Entry) (Part, bool)
	SendBatch func(group string, records [][]byte) BatchResult

	// Events reads a record that is itself a request with at least one event. Each
	// has a uuid, so that v2 drops a repeat. It is quick to say no to any other. The
	// events go in a request of their own, by SendBatch, with or without Batching.
	// Rest makes the same request with only some of them, by their positions, in
	// order. Without both, there are no such records.
	Events func(data []byte) (group string, events [][]byte, ok bool)
	Rest   func(data []byte, left []int) []byte

	// Account names the account that a record is of: v2's 429 is for all of its
	// records, and for no others. Without it, all records are of one account.
	Account func(data []byte) string

	Limits

	// OnFate is told what became of a record. It may be nil.
	OnFate func(fate Fate, r Result)

	// OnError is told of the Log's errors, at most one in ten seconds. It may be
	// nil.
	OnError func(error)
}

// Deliverer delivers the records of one queue: in the order in which they were
// appended, many at a time. If v2 takes other records but not this one, this one
// is put back, and the others go on.
type Deliverer struct {
	*Gate

	queue    Queue
	how      Delivery
	limiter  *rate.Limiter
	maxAge   atomic.Int64
	live     atomic.Int64  // how many events may pass the limiter at once
	bytes    atomic.Int64  // BytesRate
	thin     time.Time     // when BytesRate lets the next record go
	credit   atomic.Int64  // how many bytes may pass it at once
	arriving chan struct{} // there is more of live, or of credit
	room     *semaphore.Weighted
	cost     atomic.Int64 // of a small request in it
	taken    []Entry      // by Run, and not sent yet
	forming  forming      // the same, in batches
	marks    marks
	probes   int          // how often a record was taken while v2 was down
	portion  atomic.Int64 // how many events of an account that was paused come back at a time
	running  sync.WaitGroup
	began    time.Time    // of this Deliverer: a clock that jumps does not move what is measured from it
	told     atomic.Int64 // when OnError was, in nanoseconds since tellPause before began
	refused  verdicts
}

// NewDeliverer makes a Deliverer. Run starts it. The gate is that of all who send
// to the same v2 host.
func NewDeliverer(queue Queue, gate *Gate, how Delivery) *Deliverer {
	d := &Deliverer{
		Gate: gate, queue: queue, how: how, began: time.Now(),
		limiter:  rate.NewLimiter(0, 0),
		arriving: make(chan struct{}, 1),
		room:     semaphore.NewWeighted(maxHeld),
	}
	d.SetLimits(how.Limits)
	return d
}

// SetLimits changes the limits.
func (d *Deliverer) SetLimits(l Limits) {
	d.cost.Store(maxHeld / int64(l.InFlight))
	d.limiter.SetLimit(rate.Limit(l.Rate))
	d.limiter.SetBurst(max(1, l.Rate/10))
	d.maxAge.Store(int64(l.MaxAge))
	d.bytes.Store(l.BytesRate)
	d.portion.Store(int64(max(1, min(l.InFlight, l.Rate/8)))) // so that others wait for them an eighth of a second
	d.forming.setLimits(l.Batching)
	d.sharing.Store(int64(l.Most))
}

// Arrived notes that so many events were appended just now, and how many bytes their
// records have. If v2 is up, this is live traffic, and the rates do not limit it.
func (d *Deliverer) Arrived(events, size int) {
	if d.IsOpen() {
		return
	}
	if d.live.Load() < maxLive {
		d.live.Add(int64(events))
	}
	if d.bytes.Load() > 0 && d.credit.Load() < maxCredit {
		d.credit.Add(int64(size))
	}
	select {
	case d.arriving <- struct{}{}:
	default:
	}
}

// Run delivers until ctx ends or the Log is closed. Then it waits some seconds for
// the records on their way. A record that has no answer when the Log is closed
// comes again.
func (d *Deliverer) Run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	var returning sync.WaitGroup
	returning.Go(func() { d.returnParked(ctx) })
	defer returning.Wait()
	defer cancel()
	for ctx.Err() == nil && d.take(ctx) {
		for len(d.taken) > 0 && ctx.Err() == nil {
			e := d.taken[0]
			d.taken = d.taken[1:]
			d.dispatch(ctx, e)
		}
		d.sendFormed(ctx, time.Now())
	}
	d.giveBack()
	done := make(chan struct{})
	go func() {
		d.running.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(lastWait):
	}
}

// take waits for records. It reports whether there may be more.
func (d *Deliverer) take(ctx context.Context) bool {
	wait := ctx
	if until, some := d.forming.next(); some {
		var cancel context.CancelFunc
		wait, cancel = context.WithDeadline(ctx, until)
		defer cancel()
	}
	var err error
	if !d.IsOpen() {
		d.taken, err = d.queue.Take(wait, max(takeAtOnce, d.forming.limit()))
	} else {
		d.taken, err = d.takeProbe(wait)
	}
	if err != nil && wait.Err() == nil && !errors.Is(err, ErrClosed) {
		d.failed(err)
		sleep(ctx, logPause)
	}
	return !errors.Is(err, ErrClosed)
}

// takeProbe waits for a record to find out with whether v2 is up. Which one takes
// turns: records that v2 never takes must not keep it looking down.
func (d *Deliverer) takeProbe(ctx context.Context) ([]Entry, error) {
	d.probes++
	switch d.probes % 3 {
	case 1:
		return d.queue.TakeNewest(ctx)
	case 2:
		return d.queue.TakeUntried(ctx)
	default:
		return d.queue.Take(ctx, 1)
	}
}

// giveBack puts back what was taken and will not be sent soon. Another gateway
// that shares the Log may deliver it.
func (d *Deliverer) giveBack() {
	for _, e := range d.taken {
		d.queue.Later(e, 0)
	}
	d.taken = nil
	for _, b := range d.forming.all() {
		d.putBack(b.items)
	}
}

// dispatch sends a record as soon as it may go, or adds it to a batch. If ctx ends
// before, it puts the record back.
func (d *Deliverer) dispatch(ctx context.Context, e Entry) {
	account := d.accountOf(e)
	refused, known := d.refused.get(e.name())
	switch old := d.isOld(e, time.Now()); {
	case known:
		d.skip(account, e)
		d.aside(ctx, e, func() { d.bury(e, refused, Refused) })
	case old:
		d.skip(account, e)
		d.aside(ctx, e, func() { d.bury(e, Result{}, TooOld) })
	case !d.admitted(account, e):
	default:
		if s := d.several(e); s != nil {
			d.sendAlone(ctx, account, e, s)
		} else if part, batched := d.part(e); batched {
			d.add(ctx, account, item{e, part.Record}, part.Group)
		} else {
			d.sendAlone(ctx, account, e, nil)
		}
	}
}

// aside runs what waits for the disk or for v2 in a goroutine of its own, as soon
// as there is room. If ctx ends before, it puts the record back.
func (d *Deliverer) aside(ctx context.Context, e Entry, do func()) {
	release, err := d.occupy(ctx, len(e.Data))
	if err != nil {
		d.queue.Later(e, 0)
		return
	}
	d.running.Go(func() {
		defer release()
		do()
	})
}

// occupy waits for room for a request of so many bytes.
func (d *Deliverer) occupy(ctx context.Context, size int) (release func(), err error) {
	cost := d.costOf(size)
	if err := d.room.Acquire(ctx, cost); err != nil {
		return nil, err
	}
	return func() { d.room.Release(cost) }, nil
}

// costOf is what a request of so many bytes takes of the room.
func (d *Deliverer) costOf(size int) int64 { return min(max(int64(size), d.cost.Load()), maxHeld) }

// load is what a request asks of the limits.
type load struct {
	records int // for Rate
	size    int // how many bytes it has
	sent    int // how many it makes v2's connection carry
	room    int // how many it takes of the room
}

// waitAlone waits for room and for the turn of a request of its own. Batches that are
// due meanwhile need room too: then it takes none before its turn.
func (d *Deliverer) waitAlone(ctx context.Context, l load) (release func(), err error) {
	if d.forming.held > 0 {
		if err := d.turn(ctx, l); err != nil {
			return nil, err
		}
		return d.occupy(ctx, l.room)
	}
	if release, err = d.occupy(ctx, l.room); err != nil {
		return nil, err
	}
	if err = d.turn(ctx, l); err != nil {
		release()
	}
	return release, err
}

// sendAlone sends a record in a request of its own. s is what it is if it has several
// events, or nil.
func (d *Deliverer) sendAlone(ctx context.Context, account string, e Entry, s *several) {
	l := load{records: 1, size: len(e.Data), sent: len(e.Data), room: len(e.Data)}
	if s != nil {
		l = d.loadOf(s)
	}
	release, err := d.waitAlone(ctx, l)
	if err != nil {
		d.queue.Later(e, 0)
		return
	}
	now := time.Now()
	old := d.isOld(e, now) // by waiting
	if old {
		d.Forgo(account, now)
	}
	d.running.Go(func() {
		defer release()
		switch {
		case old:
			d.bury(e, Result{}, TooOld)
		case s != nil:
			d.deliverSeveral(ctx, s, now)
		default:
			d.settle(e, now, d.how.Send(e.Data))
		}
	})
}

// firstTime is from when on a clock can be right: no version of this package is
// older. A machine without a battery begins in 1970 or 2000.
var firstTime = time.Date(2026, time.January, 1, 0, 0, 0, 0, time.UTC)

// isOld reports whether a record is too old. While the clock cannot be right, none
// is; one that came while it could not be has no age, and neither has one that was
// replayed.
func (d *Deliverer) isOld(e Entry, now time.Time) bool {
	if e.Replayed || now.Before(firstTime) || e.Arrival.Before(firstTime) {
		return false
	}
	return now.Sub(e.Arrival) > time.Duration(d.maxAge.Load())
}

// turn waits until a request may be sent to v2. While v2 is down, one record waits
// here, and the others are put back.
func (d *Deliverer) turn(ctx context.Context, l load) error {
	if err := d.pace(ctx, l); err != nil || !d.IsOpen() {
		return err
	}
	d.live.Store(0) // what has arrived is a part of the backlog now
	d.credit.Store(0)
	d.giveBack()
	return d.Wait(ctx)
}

// pace waits until Rate and BytesRate let a request go. Each live event lets one go
// beyond Rate.
func (d *Deliverer) pace(ctx context.Context, l load) error {
	for left := l.records - d.passLive(l.records); left > 0; left -= d.passLive(left) {
		n := min(left, d.limiter.Burst())
		reserved := d.limiter.ReserveN(time.Now(), n)
		if !reserved.OK() {
			continue // the limits have just changed
		}
		if wait := reserved.Delay(); wait > 0 {
			if err := d.await(ctx, wait); err != nil {
				return err
			}
			if reserved.Delay() > 0 { // others have arrived meanwhile
				reserved.Cancel()
				continue
			}
		}
		left -= n
	}
	return d.paceBytes(ctx, l.size, l.sent)
}

// passLive is how many of so many events may go because others have arrived.
func (d *Deliverer) passLive(events int) int {
	n := min(d.live.Load(), int64(events))
	if n > 0 {
		d.live.Add(-n)
	}
	return int(n)
}

// await waits for a time, or until something arrives. Batches do not wait longer for
// that.
func (d *Deliverer) await(ctx context.Context, wait time.Duration) error {
	d.sendFormed(ctx, time.Now().Add(wait))
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-d.arriving:
	case <-ctx.Done():
	}
	return ctx.Err()
}

// paceBytes waits until BytesRate lets as many bytes go as are sent, or a record of the
// size has arrived.
func (d *Deliverer) paceBytes(ctx context.Context, size, sent int) error {
	for limit := d.bytes.Load(); limit > 0; limit = d.bytes.Load() {
		if credit := d.credit.Load(); credit >= int64(size) {
			d.credit.Add(-int64(size))
			return nil
		}
		now := time.Now()
		wait := d.thin.Sub(now)
		if wait <= 0 {
			if earliest := now.Add(-thinBurst); d.thin.Before(earliest) {
				d.thin = earliest
			}
			d.thin = d.thin.Add(time.Duration(float64(sent) / float64(limit) * float64(time.Second)))
			return nil
		}
		if err := d.await(ctx, wait); err != nil {
			return err
		}
	}
	return nil
}

// settle decides by v2's answer what becomes of a record.
func (d *Deliverer) settle(e Entry, sent time.Time, r Result) {
	account := d.accountOf(e)
	switch {
	case r.Status == statusTooManyRequests:
		d.limited(e, sent, r)
		d.tell(Retried, r)
	case r.NotTaken():
		// A record that failed before, while v2 took others, says nothing about
		// v2 when it fails again. Many such records must not open the circuit.
		if e.Tries == 0 || d.IsOpen() {
			d.Failure(sent, r.hostPause())
		}
		d.forgo(account, sent)
		d.queue.Later(e, max(retryPause(e.Tries), min(r.RetryAfter, r.longest())))
		d.tell(Retried, r)
	case r.Status < statusRedirect:
		d.Answered(account, sent, r)
		r.Ambiguous = !d.marks.get(e.name()).unanswered.IsZero() // alone, no repeat is dropped
		d.delivered(e, r)
	default:
		d.Answered(account, sent, r)
		d.bury(e, r, Refused)
	}
}

// delivered notes that v2 has taken a record.
func (d *Deliverer) delivered(e Entry, r Result) {
	d.marks.forget(e.name())
	d.queue.Ack(e)
	d.tell(Delivered, r)
}

// longest is how long a record waits at most because v2 asked for it.
func (r Result) longest() time.Duration {
	if r.Status == statusUnavailable { // that was about the host
		return maxHostPause
	}
	return maxRetry
}

// limited puts a record back that v2 has answered 429: its account sends too much.
func (d *Deliverer) limited(e Entry, sent time.Time, r Result) {
	d.Success() // the host is up
	account := d.nameOf(e)
	paused := d.refuse(account, sent, r.RetryAfter)
	tried := Entry{ID: e.ID, Tries: e.Tries + 1}
	if !paused || !d.queue.Holds() || !d.park(account, tried, d.eventsIn(e)) {
		d.queue.Later(e, max(retryPause(e.Tries), min(r.RetryAfter, maxAccountPause)))
	}
}

// skip notes that a record will not be sent.
func (d *Deliverer) skip(account string, e Entry) {
	if d.some.Load() {
		d.Gate.skip(account, d.eventsIn(e))
	}
}

// admitted reports whether a record's account may send now. If not, the record
// waits for that, without its data.
func (d *Deliverer) admitted(account string, e Entry) bool {
	if !d.some.Load() {
		return true // nearly always
	}
	events := d.eventsIn(e)
	ok, wait := d.admit(account, e, events, d.queue.Holds())
	if ok {
		return true
	}
	d.passLive(events) // what has arrived was to let this record pass
	if !d.queue.Holds() {
		d.queue.Later(e, wait+retryPause(e.Tries))
	}
	return false
}

// accountOf names the account that a record is of, as long as any account is
// paused: otherwise nobody needs to know.
func (d *Deliverer) accountOf(e Entry) string {
	if !d.some.Load() {
		return ""
	}
	return d.nameOf(e)
}

func (d *Deliverer) nameOf(e Entry) string {
	if d.how.Account == nil {
		return ""
	}
	return d.how.Account(e.Data)
}

// returnParked puts records back whose account may send again, until ctx ends.
func (d *Deliverer) returnParked(ctx context.Context) {
	for ctx.Err() == nil {
		entries, wait, changed := d.due(int(d.portion.Load()))
		for _, e := range entries {
			d.queue.Later(e, 0)
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-changed:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// retryPause is how long a record waits after so many tries.
func retryPause(tries int) time.Duration {
	return jitter(min(minRetry<<min(tries, 20), maxRetry))
}

// bury makes a dead letter of a record, or puts it back if that fails.
func (d *Deliverer) bury(e Entry, r Result, why Fate) {
	if s := d.several(e); s != nil {
		d.buryLeft(s, r, why)
		return
	}
	d.buried(e, r, why, d.queue.Bury(e, verdict(r, why)))
}

func verdict(r Result, why Fate) Verdict {
	return Verdict{Status: r.Status, Reason: string(why), Words: r.Words}
}

// buried notes that a record has become a dead letter, or puts it back if that has
// failed. What v2 refuses for good is let go when there is no room for it: else
// callers who send nothing else could fill the disk.
func (d *Deliverer) buried(e Entry, r Result, why Fate, err error) {
	full := errors.Is(err, ErrFull) && why == Refused
	if err != nil && !full {
		if why == Refused {
			d.refused.note(e.name(), r)
		}
		d.failed(err)
		d.queue.Later(e, retryPause(e.Tries))
		return
	}
	if full {
		d.queue.Ack(e)
		why = RefusedUnkept
	}
	d.refused.forget(e.name())
	d.marks.forget(e.name())
	d.tell(why, r)
}

func (d *Deliverer) tell(fate Fate, r Result) {
	if d.how.OnFate != nil {
		d.how.OnFate(fate, r)
	}
}

// failed reports an error of the Log, unless another was reported just before.
func (d *Deliverer) failed(err error) {
	now, told := int64(time.Since(d.began)+tellPause), d.told.Load()
	if d.how.OnError != nil && now-told >= int64(tellPause) && d.told.CompareAndSwap(told, now) {
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
