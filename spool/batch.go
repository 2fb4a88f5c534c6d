package spool

import (
	"context"
	"math"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"time"
)

// This file makes batches of records, which go to v2 together in one request of its
// batch API, and decides by its answer what becomes of each.

const (
	// maxBatchBytes is what v2 takes in a request, in bytes of its array of records.
	maxBatchBytes = 5_000_000

	// maxForming bounds the bytes of the records that wait for others, and
	// batchCost is what a batch takes beside its records.
	maxForming = 16 << 20
	batchCost  = 512

	// minQueue is how many batches that are gone may be among those that form, if
	// these are few.
	minQueue = 500

	// batchWeight makes a byte in a batch take more of the room than another: 16 MiB
	// on their way are enough for 80,000 small records a second, 200 ms away. It does
	// not make a batch heavier than heavyBatch: of large records, some go at a time.
	batchWeight = 4
	heavyBatch  = 8 << 20

	// learnedFrom is about how many bytes of records say how well those that come can
	// be compressed.
	learnedFrom = 1 << 20

	// limitedWait is how long the records of an account wait at most for others, when
	// v2 has limited it: how many more may go depends on how soon v2 answers to these.
	limitedWait = 50 * time.Millisecond

	// maxRefusals is how often a receipt refuses a record until it is a dead letter.
	maxRefusals = 5
)

// Part is what a record is in a batch.
type Part struct {
	// Group names those that may share a request. It has a write key in it: it goes
	// nowhere but to SendBatch.
	Group string

	// Record is the record, as it is among the others.
	Record []byte
}

// Batching bounds the batches of a queue.
type Batching struct {
	// Most is how many records may share a request. With 0, each goes alone.
	Most int

	// Wait is how long a record waits at most for others to share its request.
	Wait time.Duration
}

// BatchResult is how sending a batch to v2 went.
type BatchResult struct {
	Result

	// Receipts are v2's answers to the single records, in their order; nil if it
	// gave none, or not as many as there were records.
	Receipts []Receipt

	// Plain is how many bytes the records had together, and Sent how many went to
	// v2 for them, the request's head included.
	Plain, Sent int
}

// Receipt is v2's answer to one record of a batch.
type Receipt struct {
	Taken bool
	Words string // in which v2 refused it, on one line and without keys
}

// item is a record in a batch.
type item struct {
	Entry
	part []byte
}

// held is how many bytes it takes.
func (i item) held() int { return len(i.Data) + len(i.part) }

// batch is records that share a request.
type batch struct {
	kind  kind
	items []item
	size  int       // bytes of the array
	held  int       // bytes of all that it holds
	until time.Time // when it goes, even if there is room for more
}

// kind is what the records of a batch have in common.
type kind struct {
	group string
	tries int // a failed batch comes again in smaller ones, which have a kind each
}

// kindOf is the kind of a record's batch.
func kindOf(group string, tries int) kind { return kind{group, min(tries, len(shrink)-1)} }

// shrink is by what the number of records in a batch is divided, by how often they
// were tried. Where one record makes all fail, it is soon alone.
var shrink = [...]int{1, 4, 16, 64, 512}

// forming is the batches that are not full yet. Only Run uses it, but for the limits
// and the ratio.
type forming struct {
	most atomic.Int64
	wait atomic.Int64

	open  map[kind]*batch
	queue []*batch // by when they go; some are gone already
	held  int      // bytes of all
	ratio atomic.Uint64
}

func (f *forming) setLimits(l Batching) {
	f.most.Store(int64(l.Most))
	f.wait.Store(int64(l.Wait))
}

// limit is how many records a batch may have; 0 without batches.
func (f *forming) limit() int { return int(f.most.Load()) }

// add puts a record into the batch of its kind, which goes after a time if it is new.
// It returns a batch that is full.
func (f *forming) add(k kind, i item, until time.Time) (b *batch, full bool) {
	if b = f.open[k]; b == nil {
		b = f.begin(k, until)
	}
	b.items = append(b.items, i)
	b.size += len(i.part) + len(",")
	b.held += i.held()
	f.held += i.held()
	return b, len(b.items) >= f.mostOf(k)
}

// begin begins a batch of a kind.
func (f *forming) begin(k kind, until time.Time) *batch {
	b := &batch{kind: k, size: len("[]"), held: batchCost, until: until}
	if f.open == nil {
		f.open = map[kind]*batch{}
	}
	f.open[k] = b
	f.held += batchCost
	if len(f.queue) >= 2*len(f.open)+minQueue {
		f.queue = slices.DeleteFunc(f.queue, func(b *batch) bool { return f.open[b.kind] != b })
	}
	at, _ := slices.BinarySearchFunc(f.queue, until, func(b *batch, until time.Time) int {
		if b.until.After(until) {
			return 1
		}
		return -1 // equal ones are in front
	})
	f.queue = slices.Insert(f.queue, at, b)
	return b
}

// fits reports whether a batch of the kind has room for so many bytes more.
func (f *forming) fits(k kind, size int) bool {
	b := f.open[k]
	return b == nil || b.size+size+len(",") <= maxBatchBytes
}

// mostOf is how many records a batch of a kind may have.
func (f *forming) mostOf(k kind) int { return max(1, f.limit()/shrink[k.tries]) }

// remove takes a batch out: it goes. What is left of it in the queue is empty.
func (f *forming) remove(b *batch) *batch {
	delete(f.open, b.kind)
	f.held -= b.held
	removed := *b
	b.items = nil
	return &removed
}

// next is when the next batch goes.
func (f *forming) next() (until time.Time, some bool) {
	for len(f.queue) > 0 && f.open[f.queue[0].kind] != f.queue[0] {
		f.queue = f.queue[1:]
	}
	if len(f.queue) == 0 {
		f.queue = nil
		return until, false
	}
	return f.queue[0].until, true
}

// due takes out a batch that goes at a time, or nil.
func (f *forming) due(at time.Time) *batch {
	until, some := f.next()
	if !some || until.After(at) {
		return nil
	}
	return f.remove(f.queue[0])
}

// all takes all batches out.
func (f *forming) all() (batches []*batch) {
	for _, b := range f.queue {
		if f.open[b.kind] == b {
			batches = append(batches, f.remove(b))
		}
	}
	f.queue = nil
	return batches
}

// weight is about how many bytes a record of a batch makes v2's connection carry:
// by how well those before it could be compressed.
func (f *forming) weight(size int) int {
	ratio := math.Float64frombits(f.ratio.Load())
	if ratio == 0 {
		return size
	}
	return int(ratio*float64(size)) + 1
}

// learn notes how well a batch could be compressed. A byte counts the same in each: a
// small batch is its head, nearly all, and says nothing of large ones.
func (f *forming) learn(r *BatchResult) {
	if r.Plain == 0 || r.Sent == 0 {
		return
	}
	ratio := float64(r.Sent) / float64(r.Plain)
	if old := math.Float64frombits(f.ratio.Load()); old > 0 {
		weight := float64(r.Plain) / float64(r.Plain+learnedFrom)
		ratio = old + weight*(ratio-old)
	}
	f.ratio.Store(math.Float64bits(ratio)) // two at once: one of them is not learned from
}

// part makes of a record what it is in a batch. It says no to one that goes alone.
// What has gone in a batch and may have been taken goes so again, also if there are
// no batches any more: only there does v2 drop the repeat.
func (d *Deliverer) part(e Entry) (Part, bool) {
	if d.how.Part == nil || d.forming.limit() == 0 && d.marks.get(e.name()).unanswered.IsZero() {
		return Part{}, false
	}
	return d.how.Part(e)
}

// add adds a record to a batch as soon as it may go, and sends the batch if it is
// full.
func (d *Deliverer) add(ctx context.Context, account string, i item, group string) {
	if d.turn(ctx, load{records: 1, size: len(i.Data), sent: d.forming.weight(len(i.part))}) != nil {
		d.queue.Later(i.Entry, 0)
		return
	}
	now := time.Now()
	if d.isOld(i.Entry, now) {
		d.Forgo(account, now)
		d.aside(ctx, i.Entry, func() { d.bury(i.Entry, Result{}, TooOld) })
		return
	}
	if d.IsOpen() { // it is to find out whether v2 is up
		d.sendBatch(ctx, &batch{kind: kind{group: group}, items: []item{i}, held: i.held()})
		return
	}
	k := kindOf(group, i.Tries)
	if !d.forming.fits(k, len(i.part)) {
		d.sendBatch(ctx, d.forming.remove(d.forming.open[k]))
	}
	if b, full := d.forming.add(k, i, now.Add(d.waitOf(account))); full {
		d.sendBatch(ctx, d.forming.remove(b))
	}
	if d.forming.held > maxForming {
		for _, b := range d.forming.all() {
			d.sendBatch(ctx, b)
		}
	}
	d.sendFormed(ctx, now)
}

// waitOf is how long a batch with an account's record waits for others. That is up to
// a quarter less than it may: else the batches of many tables, which begin together,
// would go together for ever, and callers would wait while all are compressed.
func (d *Deliverer) waitOf(account string) time.Duration {
	wait := time.Duration(d.forming.wait.Load())
	if d.limits(account) {
		wait = min(wait, limitedWait)
	}
	return wait - rand.N(wait/4+1) //nolint:gosec // G404: nobody gains by guessing it
}

// sendFormed sends the batches that go before a time.
func (d *Deliverer) sendFormed(ctx context.Context, before time.Time) {
	for b := d.forming.due(before); b != nil; b = d.forming.due(before) {
		if d.isOver(ctx, b.items[0].Entry) { // since they were begun
			d.putBack(b.items)
			continue
		}
		d.sendBatch(ctx, b)
	}
}

// weightOf is how much room a batch takes that holds so many bytes.
func weightOf(held int) int { return max(held, min(batchWeight*held, heavyBatch)) }

// sendBatch sends a batch as soon as there is room. If ctx ends before, it puts the
// records back.
func (d *Deliverer) sendBatch(ctx context.Context, b *batch) {
	release, err := d.occupy(ctx, weightOf(b.held))
	if err != nil {
		d.putBack(b.items)
		return
	}
	d.running.Go(func() {
		defer release()
		d.exchange(ctx, b.kind.group, b.items)
	})
}

// putBack puts records back that were not sent.
func (d *Deliverer) putBack(items []item) {
	now := time.Now()
	for _, i := range items {
		d.forgo(d.accountOf(i.Entry), now)
		d.queue.Later(i.Entry, 0)
	}
}

// exchange sends records of a group in one request, and decides by v2's answer what
// becomes of each.
func (d *Deliverer) exchange(ctx context.Context, group string, items []item) {
	records := make([][]byte, len(items))
	for n, i := range items {
		records[n] = i.part
	}
	sent := time.Now()
	r := d.how.SendBatch(group, records)
	d.forming.learn(&r)
	switch {
	case r.Status == statusTooManyRequests:
		for _, i := range items {
			d.limited(i.Entry, sent, r.Result)
			d.tell(Retried, r.Result)
		}
	case r.NotTaken():
		d.repeat(items, sent, r.Result)
	case r.Status < statusRedirect:
		d.Success()
		d.readReceipts(items, sent, r)
	case r.OfKey() || r.OfRecords() && len(items) == 1:
		for _, i := range items {
			d.Answered(d.accountOf(i.Entry), sent, r.Result)
			d.bury(i.Entry, r.Result, Refused)
		}
	case r.OfRecords():
		d.halve(ctx, group, items)
	default: // not about the records: this host may not have the batch API
		d.sendOneByOne(ctx, items)
	}
}

// sendOneByOne sends the records of a batch in requests of their own, and puts back
// those that may not go any more. The first one goes in any case: it may be to find
// out whether v2 is up.
func (d *Deliverer) sendOneByOne(ctx context.Context, items []item) {
	for n, i := range items {
		if n > 0 && d.isOver(ctx, i.Entry) {
			d.putBack(items[n:])
			return
		}
		d.beside(len(i.Data), func() {
			sent := time.Now()
			d.settle(i.Entry, sent, d.how.Send(i.Data))
		})
	}
}

// isOver reports whether a record that was allowed to go is not to go any more: v2
// has come to be down, its account has got a pause, or ctx has ended.
func (d *Deliverer) isOver(ctx context.Context, e Entry) bool {
	return ctx.Err() != nil || d.IsOpen() || d.isPaused(d.accountOf(e))
}

// beside sends something at the same time as others, if there is room for so many
// bytes, or else at once. The room of who calls it may be given up before.
func (d *Deliverer) beside(size int, send func()) {
	cost := d.costOf(size)
	if !d.room.TryAcquire(cost) {
		send()
		return
	}
	d.running.Go(func() {
		defer d.room.Release(cost)
		send()
	})
}

// OfRecords reports whether v2 refuses a batch for some of its records.
func (r Result) OfRecords() bool {
	return r.Status == statusBadRequest || r.Status == statusTooLarge || r.Status == statusUnprocessable
}

// OfKey reports whether v2 refuses a batch for its key.
func (r Result) OfKey() bool { return r.Status == statusUnauthorized || r.Status == statusForbidden }

// halve sends two halves of a batch that v2 has refused, to find the records that it
// refuses: none is lost for the sake of another.
func (d *Deliverer) halve(ctx context.Context, group string, items []item) {
	half := func(items []item) {
		if d.isOver(ctx, items[0].Entry) {
			d.putBack(items)
			return
		}
		d.exchange(ctx, group, items)
	}
	first, second := items[:len(items)/2], items[len(items)/2:]
	held := 0
	for _, i := range first {
		held += i.held()
	}
	d.beside(weightOf(held), func() { half(first) })
	half(second)
}

// repeat puts the records of a batch back that v2 has not taken now. They come again
// together.
func (d *Deliverer) repeat(items []item, sent time.Time, r Result) {
	tries := items[0].Tries
	for _, i := range items {
		tries = min(tries, i.Tries)
	}
	if tries == 0 || d.IsOpen() { // see settle
		d.Failure(sent, r.hostPause())
	}
	pause := max(retryPause(tries), min(r.RetryAfter, r.longest()))
	for _, i := range items {
		d.forgo(d.accountOf(i.Entry), sent)
		one := r
		one.Safe = r.Ambiguous && d.marks.unanswered(i.name(), sent)
		d.queue.Later(i.Entry, pause)
		d.tell(Retried, one)
	}
}

// readReceipts decides about the records of a batch of which v2 has taken some, or
// all.
func (d *Deliverer) readReceipts(items []item, sent time.Time, r BatchResult) {
	for n, i := range items {
		d.accept(d.accountOf(i.Entry), sent)
		one := r.Result
		switch {
		case r.Receipts == nil && r.Status != statusPartial, r.Receipts != nil && r.Receipts[n].Taken:
			one.Ambiguous = d.marks.get(i.name()).expired(sent)
			d.marks.forget(i.name())
			d.queue.AckSafe(i.Entry)
			d.tell(Delivered, one)
			continue
		case r.Receipts != nil:
			one.Words = r.Receipts[n].Words
		default: // v2 does not say which
			one.Ambiguous, one.Safe = true, d.marks.unanswered(i.name(), sent)
		}
		if d.marks.refusal(i.name(), i.Tries+1) >= maxRefusals {
			d.bury(i.Entry, one, Refused)
			continue
		}
		d.queue.Later(i.Entry, retryPause(i.Tries))
		d.tell(Retried, one)
	}
}
