package spool

import (
	"context"
	"slices"
	"sync/atomic"
	"time"
)

// This file delivers records that are requests with several events, and decides by
// v2's answers what becomes of each. Such a record comes again until v2 has said of
// each event that it has taken it, or never will. What it has taken does not go again,
// as long as that can be remembered; otherwise v2 drops it by its uuid, for an hour.

const (
	// splitFrom is how often a record has failed when its events go in requests of
	// their own, a splitTo-th in each: where one event makes all fail, it is soon alone.
	splitFrom = 2
	splitTo   = 4
)

// several is a record with several events that is on its way.
type several struct {
	Entry
	group  string
	events [][]byte
	left   []int       // the positions of those that v2 has not taken yet
	over   atomic.Bool // what has not gone need not go now
}

// outcome is what is known of some of a record's events.
type outcome struct {
	decisive       // of all answers
	left     []int // the positions of those that v2 has not taken
	may      bool  // it may have taken some of these all the same
}

// decisive is the answer that decides what becomes of a record.
type decisive struct {
	Result
	weight weight
	sent   time.Time // the request
}

// weight says which of two answers decides: the greater one.
type weight int

const (
	allTaken   weight = iota
	refusedAll        // for good
	doubted           // by a receipt, or v2 does not say which: it may take them later
	unsent            // they did not go, so there is no answer
	notTaken          // see Result.NotTaken
)

// several reads a record with several events. Of another it returns nil.
func (d *Deliverer) several(e Entry) *several {
	if d.how.Events == nil {
		return nil
	}
	group, events, ok := d.how.Events(e.Data)
	if !ok {
		return nil
	}
	s := &several{Entry: e, group: group, events: events}
	if m := d.marks.get(e.name()); m.left != nil && m.events == len(events) {
		s.left = m.left
		return s
	}
	for n := range events {
		s.left = append(s.left, n)
	}
	return s
}

// eventsIn is how many events of a record are to go.
func (d *Deliverer) eventsIn(e Entry) int {
	if s := d.several(e); s != nil {
		return len(s.left)
	}
	return 1
}

// some returns the events at some positions.
func (s *several) some(at []int) [][]byte {
	if len(at) == len(s.events) {
		return s.events
	}
	events := make([][]byte, len(at))
	for i, n := range at {
		events[i] = s.events[n]
	}
	return events
}

// loadOf is what such a record asks of the limits.
func (d *Deliverer) loadOf(s *several) load {
	size := len(s.Data)
	return load{records: len(s.left), size: size, sent: d.forming.weight(size), room: weightOf(size)}
}

// deliverSeveral sends the events of a record, and decides what becomes of it.
func (d *Deliverer) deliverSeveral(ctx context.Context, s *several, sent time.Time) {
	o := d.sendLeft(ctx, s)
	account := d.accountOf(s.Entry)
	if o.weight == allTaken {
		d.accept(account, sent)
		o.Ambiguous = d.marks.get(s.name()).expired(sent)
		d.marks.forget(s.name())
		d.queue.AckSafe(s.Entry)
		d.tell(Delivered, o.Result)
		return
	}
	r := d.noteLeft(s, sent, o)
	switch {
	case o.weight == notTaken:
		d.settle(s.Entry, o.sent, r)
	case o.weight == unsent:
		d.forgo(account, sent)
		d.queue.Later(s.Entry, 0)
		if r.Ambiguous {
			d.tell(Retried, r)
		}
	case o.weight == doubted && d.marks.refusal(s.name(), s.Tries+1) < maxRefusals:
		d.accept(account, sent)
		d.queue.Later(s.Entry, retryPause(s.Tries))
		d.tell(Retried, r)
	default:
		d.accept(account, sent)
		d.buryLeft(s, r, Refused)
	}
}

// noteLeft notes which events v2 has not taken, and returns what is to be told.
func (d *Deliverer) noteLeft(s *several, sent time.Time, o outcome) Result {
	r := o.Result
	r.Ambiguous = o.may
	doubled := false
	if len(o.left) < len(s.left) {
		doubled = d.marks.get(s.name()).expired(sent)
		noted := d.marks.noteLeft(s.name(), o.left, len(s.events), sent)
		r.Ambiguous = o.may || !noted
		s.left = o.left
	}
	r.Safe = r.Ambiguous && d.marks.unanswered(s.name(), sent)
	if doubled {
		r.Ambiguous, r.Safe = true, false
	}
	return r
}

// buryLeft is bury for the events that are left.
func (d *Deliverer) buryLeft(s *several, r Result, why Fate) {
	if len(s.left) == len(s.events) {
		d.buried(s.Entry, r, why, d.queue.Bury(s.Entry, verdict(r, why)))
		return
	}
	d.buried(s.Entry, r, why, d.queue.BuryRest(s.Entry, d.how.Rest(s.Data, s.left), verdict(r, why)))
}

// sendLeft sends the events that are left. The first request goes in any case: it may
// be to find out whether v2 is up.
func (d *Deliverer) sendLeft(ctx context.Context, s *several) outcome {
	if s.Tries < splitFrom {
		return d.sendEvents(ctx, s, s.left)
	}
	size := (len(s.left) + splitTo - 1) / splitTo
	o := d.sendEvents(ctx, s, s.left[:size])
	for at := range slices.Chunk(s.left[size:], size) {
		o = join(o, d.sendMore(ctx, s, at))
	}
	return o
}

// sendMore sends events that need not go if v2 does not take more of them now.
func (d *Deliverer) sendMore(ctx context.Context, s *several, at []int) outcome {
	if s.over.Load() || d.isOver(ctx, s.Entry) {
		s.over.Store(true)
		return outcome{decisive: decisive{weight: unsent}, left: at}
	}
	return d.sendEvents(ctx, s, at)
}

// sendEvents sends events in one request. Those that v2 refuses for others' sake go
// again.
func (d *Deliverer) sendEvents(ctx context.Context, s *several, at []int) outcome {
	sent := time.Now()
	r := d.how.SendBatch(s.group, s.some(at))
	d.forming.learn(&r)
	o := outcome{decisive: decisive{Result: r.Result, sent: sent}, left: at}
	if r.NotTaken() {
		if s.Tries < splitFrom || r.Status == statusTooManyRequests {
			s.over.Store(true)
		}
		o.weight, o.may = notTaken, r.Ambiguous
		return o
	}
	d.Success()
	switch {
	case r.Status < statusRedirect:
		o.read(r)
	case r.OfRecords() && len(at) > 1:
		o = d.halveEvents(ctx, s, at)
	default: // 404 too: this host may not have the batch API
		o.weight = refusedAll
	}
	return o
}

// read reads v2's answer to events of which it has taken some, or all.
func (o *outcome) read(r BatchResult) {
	switch {
	case r.Receipts != nil:
		at := o.left
		o.left = nil
		for i, n := range at {
			if r.Receipts[i].Taken {
				continue
			}
			if o.left == nil {
				o.weight, o.Words = doubted, r.Receipts[i].Words
			}
			o.left = append(o.left, n)
		}
	case r.Status == statusPartial: // v2 does not say which
		o.weight, o.may = doubted, true
	default:
		o.left = nil
	}
}

// halveEvents sends two halves of events that v2 has refused, to find those that it
// refuses. It waits for both: what they hold is not free before.
func (d *Deliverer) halveEvents(ctx context.Context, s *several, at []int) outcome {
	half := len(at) / 2
	size := 0
	for _, event := range s.some(at[:half]) {
		size += len(event)
	}
	first := make(chan outcome, 1)
	d.beside(weightOf(size), func() { first <- d.sendMore(ctx, s, at[:half]) })
	second := d.sendMore(ctx, s, at[half:])
	return join(<-first, second)
}

// join is what is known of the events of both.
func join(first, second outcome) outcome {
	both := first
	if second.weight > first.weight {
		both.decisive = second.decisive
	}
	both.left = slices.Concat(first.left, second.left)
	both.may = first.may || second.may
	return both
}
