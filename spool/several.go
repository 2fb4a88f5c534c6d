package spool

import (
	"context"
	"slices"
	"sync/atomic"
	"time"
)

// This file delivers records that are requests with several events, and decides by
// v2's answers what becomes of each. Until v2 has said of each event that it has taken
// it, or will never do so, all of them come again: it drops those that it has.

// several is a record with several events that is on its way.
type several struct {
	Entry
	group  string
	events [][]byte
	over   atomic.Bool // all of them come again: those that have not gone need not go now
}

// outcome is what is known of some of a record's events.
type outcome struct {
	decisive       // of all answers
	taken    bool  // v2 has taken some of them, or may have
	refused  []int // their positions, in order
}

// decisive is what decides what becomes of a record.
type decisive struct {
	weight weight
	Result           // v2's answer
	sent   time.Time // its request
}

// weight says which of two answers decides: the greater one.
type weight int

const (
	allTaken   weight = iota
	refusedNow        // for good
	doubted           // by a receipt, or v2 does not say which: it may take them later
	unsent            // there is no answer, since the events did not go
	notTaken          // see Result.NotTaken
)

// join is what is known of both halves.
func join(first, second outcome) outcome {
	both := first
	if second.weight > first.weight {
		both.decisive = second.decisive
	}
	both.taken = first.taken || second.taken
	both.refused = slices.Concat(first.refused, second.refused)
	return both
}

// several reads a record with several events. Of another it returns nil.
func (d *Deliverer) several(e Entry) *several {
	if d.how.Events == nil {
		return nil
	}
	group, events, ok := d.how.Events(e.Data)
	if !ok {
		return nil
	}
	return &several{Entry: e, group: group, events: events}
}

// loadOf is what such a record asks of the limits.
func (d *Deliverer) loadOf(s *several) load {
	size := len(s.Data)
	return load{records: len(s.events), size: size, sent: d.forming.weight(size), room: weightOf(size)}
}

// deliverSeveral sends the events of a record, and decides what becomes of it.
func (d *Deliverer) deliverSeveral(ctx context.Context, s *several, sent time.Time) {
	o := d.sendEvents(ctx, s, 0, len(s.events))
	account := d.accountOf(s.Entry)
	noted := o.taken && o.weight != allTaken && d.marks.unanswered(s.name(), sent)
	r := o.Result
	r.Ambiguous, r.Safe = o.taken, noted // if it comes again
	switch o.weight {
	case notTaken:
		d.settle(s.Entry, o.sent, r)
		return
	case unsent:
		d.forgo(account, sent)
		d.queue.Later(s.Entry, 0)
		if o.taken {
			d.tell(Retried, r)
		}
		return
	}
	d.accept(account, sent)
	if o.weight == doubted && d.marks.refusal(s.name(), s.Tries+1) < maxRefusals {
		d.queue.Later(s.Entry, retryPause(s.Tries))
		d.tell(Retried, r)
		return
	}
	r.Ambiguous, r.Safe = o.taken && d.marks.get(s.name()).expired(sent), false
	if o.weight == allTaken {
		d.marks.forget(s.name())
		d.queue.AckSafe(s.Entry)
		d.tell(Delivered, r)
		return
	}
	if len(o.refused) == len(s.events) {
		o.refused = nil
	}
	d.buryRest(s.Entry, o.refused, r)
}

// buryRest is bury for a record of which v2 refuses only the events that are left; nil
// for all.
func (d *Deliverer) buryRest(e Entry, left []int, r Result) {
	if left == nil {
		d.bury(e, r, Refused)
		return
	}
	verdict := Verdict{Status: r.Status, Reason: string(Refused), Words: r.Words}
	d.buried(e, Refused, refusal{r, left}, d.queue.BuryRest(e, d.how.Rest(e.Data, left), verdict))
}

// sendEvents sends some of a record's events in one request. Those that v2 refuses for
// others' sake go again.
func (d *Deliverer) sendEvents(ctx context.Context, s *several, from, to int) outcome {
	sent := time.Now()
	r := d.how.SendBatch(s.group, s.events[from:to])
	d.forming.learn(&r)
	o := outcome{decisive: decisive{Result: r.Result, sent: sent}}
	if r.NotTaken() {
		s.over.Store(true)
		o.weight, o.taken = notTaken, r.Ambiguous
		return o
	}
	d.Success()
	switch {
	case r.Status < statusRedirect:
		o.read(r, from, to)
		return o
	case r.OfRecords() && to-from > 1:
		return d.halveEvents(ctx, s, from, to)
	default: // 404 too: this host may not have the batch API
		o.weight = refusedNow
		for n := from; n < to; n++ {
			o.refused = append(o.refused, n)
		}
		return o
	}
}

// read reads v2's answer to events of which it has taken some, or all.
func (o *outcome) read(r BatchResult, from, to int) {
	if r.Receipts == nil && r.Status != statusPartial {
		o.taken = true
		return
	}
	for n := from; n < to; n++ {
		switch {
		case r.Receipts == nil: // v2 does not say which
			o.taken = true
		case r.Receipts[n-from].Taken:
			o.taken = true
			continue
		case o.weight != doubted:
			o.Words = r.Receipts[n-from].Words
		}
		o.weight = doubted
		o.refused = append(o.refused, n)
	}
}

// halveEvents sends two halves of events that v2 has refused, to find those that it
// refuses. It waits for both: what they hold is not free before.
func (d *Deliverer) halveEvents(ctx context.Context, s *several, from, to int) outcome {
	half := func(from, to int) outcome {
		if s.over.Load() || d.isOver(ctx, s.Entry) {
			s.over.Store(true)
			return outcome{decisive: decisive{weight: unsent}}
		}
		return d.sendEvents(ctx, s, from, to)
	}
	middle := from + (to-from)/2
	size := 0
	for _, event := range s.events[from:middle] {
		size += len(event)
	}
	first := make(chan outcome, 1)
	d.beside(weightOf(size), func() { first <- half(from, middle) })
	second := half(middle, to)
	return join(<-first, second)
}
