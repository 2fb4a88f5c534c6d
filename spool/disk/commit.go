package disk

import (
	"container/heap"
	"fmt"
	"maps"
	"os"
	"time"

	"github.com/td-postback/gateway/spool"
)

// This file is the group commit. One goroutine per queue writes: while it
// syncs, the next records gather. Nobody waits longer for that.

const (
	maxBatchBytes   = 4 << 20
	maxBatchRecords = 8192

	// recordOverhead is about what a record takes beside its data.
	recordOverhead = 64

	// ackDelay is how long acks gather before they go to disk without a record.
	ackDelay = 20 * time.Millisecond
	maxAcks  = 4096

	// tidyPause is how often files are closed and made smaller.
	tidyPause = time.Second

	// idleFile is when a file that nobody uses is closed: its pages are memory.
	idleFile = 5 * time.Second
)

// batch is what one commit adds.
type batch struct {
	records []spool.Record
	bytes   int64
	done    chan struct{}
	err     error // once done
}

// order is a change to records that are there. done gets its result.
type order struct {
	segment *segment
	change  change
	done    chan error
}

// append adds a record and waits until it is durable.
func (q *queue) append(r spool.Record) error {
	q.mu.Lock()
	if q.closed {
		q.mu.Unlock()
		return spool.ErrClosed
	}
	size := int64(len(r.Data) + recordOverhead)
	if !q.disk.hasRoom(q.waitingBytes + size) {
		q.mu.Unlock()
		return spool.ErrFull
	}
	var b *batch
	if n := len(q.waiting); n > 0 {
		b = q.waiting[n-1]
	}
	if b == nil || b.bytes+size > maxBatchBytes || len(b.records) == maxBatchRecords {
		b = &batch{done: make(chan struct{})}
		q.waiting = append(q.waiting, b)
		notify(q.wake)
	}
	b.records = append(b.records, r)
	b.bytes += size
	q.waitingBytes += size
	q.mu.Unlock()
	<-b.done
	return b.err
}

// order hands an order to run, and waits for what became of it.
func (q *queue) order(o *order) error {
	o.done = make(chan error, 1)
	q.mu.Lock()
	if q.closed {
		q.mu.Unlock()
		return spool.ErrClosed
	}
	q.orders = append(q.orders, o)
	q.mu.Unlock()
	notify(q.wake)
	return <-o.done
}

// run is the only goroutine that writes to the queue's files.
func (q *queue) run() {
	defer close(q.stopped)
	tidied := time.Now()
	timer := time.NewTimer(0)
	for {
		wait := q.work()
		if wait < 0 {
			q.closeSegments()
			return
		}
		if time.Since(tidied) > tidyPause {
			q.tidy()
			tidied = time.Now()
		}
		timer.Reset(min(wait, tidyPause))
		select {
		case <-q.wake:
		case <-timer.C:
		}
	}
}

// work does what is to be done now, and returns how long there is nothing; it
// is negative at the end.
func (q *queue) work() time.Duration {
	for {
		q.mu.Lock()
		var b *batch
		if len(q.waiting) > 0 {
			b, q.waiting = q.waiting[0], q.waiting[1:]
			q.waitingBytes -= b.bytes
		}
		orders := q.orders
		q.orders = nil
		age := time.Since(q.ackedAt)
		ack := q.acks > 0 && (age >= ackDelay || q.acks >= maxAcks && age >= 0 || q.closed)
		closed := q.closed
		q.mu.Unlock()
		switch {
		case b == nil && len(orders) == 0 && !ack:
			q.salvageDamaged()
			if closed {
				return -1
			}
			if q.pendingAcks() {
				return max(0, ackDelay-age)
			}
			return tidyPause
		case b != nil:
			b.err = q.commit(b)
			close(b.done)
			notify(q.arrived)
		}
		q.carryOut(orders)
		if ack {
			q.flushAcks(closed)
		}
	}
}

func (q *queue) pendingAcks() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.acks > 0
}

// commit makes a batch durable.
func (q *queue) commit(b *batch) error {
	started := time.Now()
	err := q.write(b)
	q.mu.Lock()
	failed := q.failed
	q.failed = err != nil
	q.mu.Unlock()
	switch {
	case err != nil && !failed:
		q.disk.report(Event{Kind: Failed, Queue: q.name, Err: err})
	case err == nil && failed:
		q.disk.report(Event{Kind: Recovered, Queue: q.name})
	}
	if err != nil {
		return fmt.Errorf("%w: %w", spool.ErrUnavailable, err)
	}
	if q.disk.cfg.OnCommit != nil {
		q.disk.cfg.OnCommit(len(b.records), time.Since(started))
	}
	return nil
}

// write writes a batch to the active segment.
func (q *queue) write(b *batch) error {
	s, err := q.writable()
	if err != nil {
		return err
	}
	q.mu.Lock()
	first := q.next
	q.next += spool.ID(len(b.records)) // also if it fails: an ID is used once
	q.mu.Unlock()
	c := change{putID: first, acks: q.acksOf(s)}
	q.values = q.values[:0]
	ends := make([]int, len(b.records))
	for i, r := range b.records {
		q.values = s.coder.encode(q.values, first+spool.ID(i), r)
		ends[i] = len(q.values)
	}
	c.puts = make([][]byte, len(b.records))
	for i, start := 0, 0; i < len(ends); i++ {
		c.puts[i] = q.values[start:ends[i]:ends[i]]
		start = ends[i]
	}
	size, err := s.commit(&c)
	if cap(q.values) > maxBatchBytes {
		q.values = nil
	}
	if err != nil {
		if !isNoSpace(err) {
			// Nobody knows what of it will be on the disk: records that come
			// now must not depend on that.
			q.abandon(s)
		}
		return err
	}
	q.applied(s, &c, size)
	return nil
}

// applied brings what is in memory of a segment in line with a commit. What
// was acked is counted out already.
func (q *queue) applied(s *segment, c *change, size int64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	s.live += len(c.puts) + len(c.revived) - c.died
	s.dead += c.died - len(c.revived) - c.dropped
	if n := len(c.puts); n > 0 {
		s.last = c.putID + spool.ID(n) - 1
	}
	for _, id := range c.acks {
		delete(s.acked, id)
	}
	q.acks -= len(c.acks)
	q.ackedAt = time.Now()
	for _, id := range c.revived { // before what has not been given out
		heap.Push(&q.later, later{id: id})
		s.hint = min(s.hint, id)
		notify(q.arrived)
	}
	q.disk.resize(size - s.counted)
	s.counted, s.used = size, time.Now()
}

// writable returns the segment that takes records.
func (q *queue) writable() (*segment, error) {
	if s := q.active; s != nil && s.counted < q.disk.segmentSize {
		return s, nil
	}
	if err := makeDir(q.dir); err != nil {
		return nil, err
	}
	s, err := createSegment(q.dir, q.next, q.disk.cfg.Key, q.disk.space())
	if err != nil {
		return nil, err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.active = s
	q.segments = append(q.segments, s)
	return s, nil
}

// abandon ends the writing of records to the active segment. What is in it can
// still be read, and stays open: its file may be gone.
func (q *queue) abandon(s *segment) {
	q.mu.Lock()
	defer q.mu.Unlock()
	s.orphan = true
	if q.active == s {
		q.active = nil
	}
}

// acksOf returns the acks of a segment that are not on disk.
func (q *queue) acksOf(s *segment) []spool.ID {
	q.mu.Lock()
	defer q.mu.Unlock()
	ids := make([]spool.ID, 0, len(s.acked))
	for id := range s.acked {
		ids = append(ids, id)
	}
	return ids
}

// flushAcks brings the acks to disk: by deleting the file if nothing else is
// in it, which works on a full disk too.
func (q *queue) flushAcks(closing bool) {
	q.mu.Lock()
	var touched []*segment
	for _, s := range q.segments {
		if len(s.acked) > 0 {
			touched = append(touched, s)
		}
	}
	q.mu.Unlock()
	for _, s := range touched {
		if q.removeEmpty(s, closing) {
			continue
		}
		c := change{acks: q.acksOf(s)}
		if size, err := s.commit(&c); err == nil {
			q.applied(s, &c, size)
		} else {
			q.mu.Lock()
			q.ackedAt = time.Now().Add(time.Second) // they stay, and come again at worst
			q.mu.Unlock()
			if closing {
				q.forgetAcks(s)
			}
		}
	}
}

// forgetAcks gives up acks that cannot be written when the Log is closed: the
// records come again.
func (q *queue) forgetAcks(s *segment) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.acks -= len(s.acked)
	clear(s.acked)
}

// removeEmpty deletes a file whose records are all gone, unless it takes
// records.
func (q *queue) removeEmpty(s *segment, closing bool) bool {
	q.mu.Lock()
	empty := s.loaded && !s.damaged && s.live == 0 && s.dead == 0 && (s != q.active || closing)
	q.mu.Unlock()
	if !empty {
		return false
	}
	q.remove(s)
	return true
}

// remove deletes a segment's file.
func (q *queue) remove(s *segment) {
	s.retire()
	err := os.Remove(s.path)
	q.mu.Lock()
	defer q.mu.Unlock()
	if err != nil && !isGone(err) {
		q.disk.report(Event{Kind: Failed, Queue: q.name, File: s.path, Err: err})
	}
	q.acks -= len(s.acked)
	q.disk.resize(-s.counted)
	s.gone = true
	if q.active == s {
		q.active = nil
	}
	for i := range q.segments {
		if q.segments[i] == s {
			q.segments = append(q.segments[:i:i], q.segments[i+1:]...)
			return
		}
	}
}

// carryOut does what orders say, with one commit for each segment.
func (q *queue) carryOut(orders []*order) {
	bySegment := map[*segment][]*order{}
	for _, o := range orders {
		bySegment[o.segment] = append(bySegment[o.segment], o)
	}
	for s, orders := range bySegment {
		changes := make([]*change, len(orders))
		for i, o := range orders {
			changes[i] = &o.change
		}
		size, err := s.commit(changes...)
		if err == nil {
			for _, c := range changes {
				q.applied(s, c, size)
			}
			q.removeEmpty(s, false)
		}
		for _, o := range orders {
			o.done <- err
		}
	}
}

// salvageDamaged takes what is intact out of segments that are damaged.
func (q *queue) salvageDamaged() {
	q.mu.Lock()
	var damaged []*segment
	for _, s := range q.segments {
		if s.damaged {
			damaged = append(damaged, s)
		}
	}
	q.mu.Unlock()
	for _, s := range damaged {
		q.salvage(s)
	}
}

func (q *queue) salvage(s *segment) {
	q.mu.Lock()
	acked := maps.Clone(s.acked)
	q.mu.Unlock()
	rescued, err := s.salvage(acked, q.disk.space())
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.active == s {
		q.active = nil
	}
	if err != nil {
		s.damaged, s.readAt = false, time.Now().Add(retryRead) // the next read finds the damage again
		if !s.blamed {
			q.disk.report(Event{Kind: Unreadable, Queue: q.name, File: s.path, Err: err})
		}
		s.blamed = true
		return
	}
	q.acks -= len(s.acked)
	q.disk.resize(-s.counted)
	s.gone = true
	event := Event{Kind: SetAside, Queue: q.name, File: s.path + damagedSuffix}
	for i := range q.segments {
		if q.segments[i] != s {
			continue
		}
		if rescued == nil {
			q.segments = append(q.segments[:i:i], q.segments[i+1:]...)
		} else {
			q.segments[i] = rescued
			q.disk.resize(rescued.counted)
			event.Records = rescued.live
		}
		break
	}
	q.disk.report(event)
	notify(q.arrived)
}

// tidy closes files that are not in use.
func (q *queue) tidy() {
	q.mu.Lock()
	var idle []*segment
	for _, s := range q.segments {
		if s != q.active && !s.orphan && time.Since(s.used) > idleFile {
			idle = append(idle, s)
		}
	}
	q.mu.Unlock()
	for _, s := range idle {
		if !q.removeEmpty(s, false) {
			_ = s.close()
		}
	}
}

// close ends the queue.
func (q *queue) close() error {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	notify(q.wake)
	<-q.stopped
	return nil
}

func (q *queue) closeSegments() {
	q.mu.Lock()
	segments := q.segments
	q.mu.Unlock()
	for _, s := range segments {
		if !q.removeEmpty(s, true) {
			_ = s.close()
		}
	}
}
