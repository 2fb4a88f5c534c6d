package disk

import (
	"container/heap"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/td-postback/gateway/spool"
)

// This file is the group commit. One goroutine per queue writes: while it
// syncs, the next records gather.

const (
	maxBatchBytes   = 4 << 20
	maxBatchRecords = 8192

	// recordOverhead is about what a record takes beside its data.
	recordOverhead = 64

	// gatherTime is how long a commit waits at most for as many records as the last
	// one had. Callers who have just got their answers may send the next ones, and a
	// commit costs the same for many as for one.
	gatherTime = 3 * time.Millisecond

	// ackDelay is how long acks gather before they go to disk, and safeDelay the same
	// of records of which v2 drops a repeat. A page of the file has some records: it
	// is written again as often as acks of them go to disk one after the other.
	ackDelay  = 20 * time.Millisecond
	safeDelay = 500 * time.Millisecond
	maxAcks   = 65536 // more than a file of small records has: it goes as a whole

	// tidyPause is how often files are closed and made smaller.
	tidyPause = time.Second

	// idleFile is when a file that nobody uses is closed: its pages are memory.
	idleFile = 5 * time.Second

	// retryAcks is when acks are tried again that could not be written.
	retryAcks = time.Second
)

// batch is what one commit adds.
type batch struct {
	records []spool.Record
	callers int // who have added them
	bytes   int64
	done    chan struct{}
	err     error // once done
}

// order is a change to records that are there. done gets its result.
type order struct {
	segment *segment
	change  change
	suspect bool // the file may be damaged: look first
	done    chan error
}

// append adds records to one commit, and waits until they are durable.
func (q *queue) append(records ...spool.Record) error {
	var size int64
	for _, r := range records {
		size += int64(len(r.Data) + recordOverhead)
	}
	q.mu.Lock()
	if q.closed {
		q.mu.Unlock()
		return spool.ErrClosed
	}
	if !q.disk.reserve(size) {
		q.mu.Unlock()
		return spool.ErrFull
	}
	var b *batch
	if n := len(q.waiting); n > 0 {
		b = q.waiting[n-1]
	}
	if b == nil || b.bytes+size > maxBatchBytes || len(b.records)+len(records) > maxBatchRecords {
		b = &batch{done: make(chan struct{})}
		q.waiting = append(q.waiting, b)
		notify(q.wake)
	}
	b.records = append(b.records, records...)
	b.callers++
	b.bytes += size
	if b.callers == q.enough {
		notify(q.wake)
	}
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
	var tidied time.Time // at once: what a killed process has left may need no space
	timer := time.NewTimer(0)
	for {
		q.gather(timer)
		t := q.todo()
		q.do(t)
		if time.Since(tidied) > tidyPause {
			q.tidy()
			tidied = time.Now()
		}
		if !t.nothing() {
			continue
		}
		if t.closed {
			q.closeSegments()
			return
		}
		timer.Reset(t.wait)
		select {
		case <-q.wake:
		case <-timer.C:
		}
	}
}

// gather waits for the records that make a commit worth its while, if there are any.
func (q *queue) gather(timer *time.Timer) {
	until := time.Now().Add(gatherTime)
	for wait := gatherTime; wait > 0; wait = time.Until(until) {
		q.mu.Lock()
		done := len(q.waiting) != 1 || q.waiting[0].callers >= q.enough || q.closed
		q.mu.Unlock()
		if done {
			return
		}
		timer.Reset(wait)
		select {
		case <-q.wake:
		case <-timer.C:
		}
	}
}

// todo is what is to be done now.
type todo struct {
	batch   *batch
	orders  []*order
	acks    []*segment // whose acks are due
	damaged []*segment
	closed  bool
	wait    time.Duration // until there may be something, if there is nothing
}

func (t *todo) nothing() bool {
	return t.batch == nil && len(t.orders) == 0 && len(t.acks) == 0 && len(t.damaged) == 0
}

func (q *queue) todo() todo {
	q.mu.Lock()
	defer q.mu.Unlock()
	t := todo{orders: q.orders, closed: q.closed, wait: tidyPause}
	q.orders = nil
	if len(q.waiting) > 0 {
		t.batch, q.waiting = q.waiting[0], q.waiting[1:]
		q.enough = t.batch.callers
	}
	now := time.Now()
	for _, s := range q.segments {
		if s.damaged && !s.readAt.After(now) && !q.closed {
			t.damaged = append(t.damaged, s)
		}
		if s.acked.count == 0 {
			continue
		}
		left := s.acksLeft(now)
		if left <= 0 || q.closed {
			t.acks = append(t.acks, s)
		} else {
			t.wait = min(t.wait, left)
		}
	}
	return t
}

func (q *queue) do(t todo) {
	if t.batch != nil {
		t.batch.err = q.commit(t.batch)
		q.disk.reserved.Add(-t.batch.bytes)
		close(t.batch.done)
		notify(q.arrived)
	}
	q.carryOut(t.orders)
	for _, s := range t.acks {
		ids := q.dueAcks(s) // maybe none, as a commit has just taken them along
		if t.closed || !q.disk.spare.held.Load() {
			ids = q.acksOf(s)
		}
		if len(ids) > 0 {
			q.flushAcks(s, ids, t.closed)
		}
	}
	for _, s := range t.damaged {
		q.salvage(s)
	}
}

// commit makes a batch durable.
func (q *queue) commit(b *batch) error {
	started := time.Now()
	err := q.write(b)
	failed := q.failed.Swap(err != nil)
	switch {
	case err != nil && !failed:
		q.disk.report(spool.Event{Kind: spool.Failed, Queue: q.name, Err: err})
	case err == nil && failed:
		q.disk.report(spool.Event{Kind: spool.Recovered, Queue: q.name})
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
	if err := q.makeRoom(); err != nil {
		return err
	}
	if b.bytes > maxBatchBytes && !mayFit(q.dir, b.bytes+b.bytes/4) {
		return syscall.ENOSPC // to find out by writing would take all that is left
	}
	s, err := q.writable(b.bytes)
	if err != nil {
		return err
	}
	q.mu.Lock()
	first := q.next
	q.next += spool.ID(len(b.records)) // also if it fails: an ID is used once
	q.mu.Unlock()
	c := change{putID: first, puts: q.encode(s, first, b)}
	err = q.changeWith(s, q.dueAcks(s), &c)
	if cap(q.values) > 2*maxBatchBytes {
		q.values = nil // they were large
	}
	if err != nil {
		if !isNoSpace(err) {
			// Nobody knows what of it will be on the disk: records that come
			// now must not depend on that.
			q.abandon(s)
		}
		return err
	}
	return nil
}

// makeRoom says why no record can be taken. What was delivered just now may have
// been all that filled the disk.
func (q *queue) makeRoom() error {
	err := q.disk.spare.missing()
	if err == nil {
		return nil
	}
	q.mu.Lock()
	segments := q.segments
	q.mu.Unlock()
	for _, s := range segments {
		if ids := q.acksOf(s); len(ids) > 0 {
			q.flushAcks(s, ids, false)
		}
	}
	return q.disk.spare.missing()
}

// encode makes the values of records. They are good until the next call.
func (q *queue) encode(s *segment, first spool.ID, b *batch) [][]byte {
	q.values = slices.Grow(q.values[:0], int(b.bytes)) // a header takes less than recordOverhead
	ends := make([]int, len(b.records))
	for i, r := range b.records {
		q.values = s.coder.encode(q.values, first+spool.ID(i), r)
		ends[i] = len(q.values)
	}
	values, start := make([][]byte, len(b.records)), 0
	for i, end := range ends {
		values[i] = q.values[start:end:end]
		start = end
	}
	return values
}

// free is change for what gives space back: it works on a full disk, and if need
// be bit by bit, as each commit leaves pages for the next. It says of each change
// what became of it.
func (q *queue) free(s *segment, changes []*change) []error {
	err := q.disk.scarcely(func() error { return q.changeWith(s, q.acksOf(s), changes...) })
	errs := make([]error, len(changes))
	for i, c := range changes {
		if errs[i] = err; isNoSpace(err) { // acks have time
			errs[i] = q.freeAlone(s, c)
		}
	}
	return errs
}

// freeAcks is free for acks.
func (q *queue) freeAcks(s *segment, ids []spool.ID) error {
	err := q.disk.scarcely(func() error { return q.changeWith(s, ids) })
	if !isNoSpace(err) {
		return err
	}
	return inPieces(ids, func(ids []spool.ID) error { return q.changeWith(s, ids) })
}

// freeAlone commits one change bit by bit.
func (q *queue) freeAlone(s *segment, c *change) error {
	if len(c.drop) == 0 {
		return q.changeWith(s, nil, c)
	}
	c.dropped = 0
	return inPieces(c.drop, func(ids []spool.ID) error {
		piece := change{drop: ids}
		err := q.changeWith(s, nil, &piece)
		if err == nil {
			c.dropped += piece.dropped
		}
		return err
	})
}

// inPieces commits IDs in the largest pieces for which there is room.
func inPieces(ids []spool.ID, commit func([]spool.ID) error) error {
	for n := len(ids); len(ids) > 0; {
		n = min(n, len(ids))
		err := commit(ids[:n])
		switch {
		case err == nil:
			ids = ids[n:]
		case !isNoSpace(err) || n == 1:
			return err
		default:
			n /= 2
		}
	}
	return nil
}

// changeWith commits changes to a segment together, and acks with them.
func (q *queue) changeWith(s *segment, ids []spool.ID, changes ...*change) error {
	acks := change{acks: ids}
	q.mu.Lock()
	s.acked.begin(ids)
	q.mu.Unlock()
	st, size, err := s.commit(append(changes, &acks)...)
	if err != nil {
		if s.isDamaged(err) {
			q.blame(s, err)
		}
		q.mu.Lock()
		defer q.mu.Unlock()
		s.acked.failed(ids, time.Now())
		return err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	s.state = st
	s.acked.remove(ids, time.Now())
	for _, c := range changes {
		q.disk.dying.Add(-c.reserved)
		c.reserved = 0
		if n := len(c.puts); n > 0 {
			s.last = c.putID + spool.ID(n) - 1
		}
		q.revive(s, c.revived)
	}
	q.disk.count(s, size)
	s.used, s.changed = time.Now(), time.Now()
	return nil
}

// revive puts records back that are no dead letters any more. They come before
// what has not been given out. q.mu is held.
func (q *queue) revive(s *segment, ids []spool.ID) {
	for _, id := range ids {
		s.hint = min(s.hint, id)
		if id > s.cursor {
			s.revived = append(s.revived, id)
			continue
		}
		heap.Push(&q.later, later{id: id})
		notify(q.arrived)
	}
}

// writable returns the segment that takes so many bytes of records. Many that belong
// together begin a new one: what is made smaller later must fit on the disk once more.
func (q *queue) writable(bytes int64) (*segment, error) {
	if s, full := q.active, q.disk.segmentSize(); s != nil && s.size < full && s.size+bytes <= full+maxBatchBytes {
		return s, nil
	}
	if err := errors.Join(q.disk.lock.holds(), makeDir(q.dir)); err != nil {
		return nil, err
	}
	q.mu.Lock()
	q.next++ // no two files have the same first ID, even if one could not be deleted
	first := q.next
	q.mu.Unlock()
	s, err := q.createSegment(first)
	if err != nil {
		return nil, err
	}
	q.identify()
	q.mu.Lock()
	full := q.active
	unread := full != nil && full.cursor == 0
	q.active = s
	q.segments = append(q.segments, s)
	q.mu.Unlock()
	if unread {
		_ = full.close() // its pages are memory, and Take may be far behind
	}
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

// acksLeft is how long the acks of a segment have time. The queue's mutex is held.
func (s *segment) acksLeft(now time.Time) time.Duration {
	if s.allAcksDue() {
		return max(0, s.acksHeld.Sub(now))
	}
	return max(s.acked.next().Sub(now), s.acksHeld.Sub(now))
}

// allAcksDue reports whether all acks of a segment go to disk now: the file can go
// then, and its pages need not be written, or there are many. The queue's mutex is held.
func (s *segment) allAcksDue() bool {
	return s.read && s.acked.count >= s.state.live || s.acked.count >= maxAcks
}

// dueAcks returns the acks of a segment that shall go to disk now, some thousand at
// most.
func (q *queue) dueAcks(s *segment) []spool.ID {
	q.mu.Lock()
	defer q.mu.Unlock()
	now := time.Now()
	if s.acked.count == 0 || s.acksLeft(now) > 0 {
		return nil
	}
	if s.allAcksDue() {
		now = now.Add(safeDelay)
	}
	return s.acked.due(now)
}

// acksOf returns the acks of a segment that are not on disk.
func (q *queue) acksOf(s *segment) []spool.ID {
	q.mu.Lock()
	defer q.mu.Unlock()
	return s.acked.all()
}

// flushAcks brings acks of a segment to disk: by deleting the file if
// nothing else is in it, which works on a full disk too.
func (q *queue) flushAcks(s *segment, ids []spool.ID, closing bool) {
	if q.removeEmpty(s, closing || !q.disk.spare.held.Load()) {
		return
	}
	err := q.freeAcks(s, ids)
	if closing && isNoSpace(err) {
		err = q.markAcked(s)
	}
	if err == nil || q.removeEmpty(s, true) {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	s.acksHeld = time.Now().Add(retryAcks)
	if closing || errors.Is(err, errGone) {
		q.disk.report(spool.Event{Kind: spool.Unnoted, Queue: q.name, File: s.path, Records: s.acked.count, Err: err})
		s.acked = acks{}
	}
}

// markAcked makes dead letters of records that were delivered, and that there is
// no room to delete: for that, bbolt writes the records beside them again. So none
// of them comes again.
func (q *queue) markAcked(s *segment) error {
	return inPieces(q.acksOf(s), func(ids []spool.ID) error {
		deaths := make([]death, len(ids))
		for i, id := range ids {
			deaths[i] = death{id: id, died: time.Now(), Verdict: spool.Verdict{Reason: string(spool.Delivered)}}
		}
		if err := q.changeWith(s, nil, &change{deaths: deaths}); err != nil {
			return err
		}
		q.mu.Lock()
		defer q.mu.Unlock()
		s.acked.remove(ids, time.Now())
		return nil
	})
}

// removeEmpty deletes a file whose records are all gone, unless it takes
// records and may be needed.
func (q *queue) removeEmpty(s *segment, active bool) bool {
	q.mu.Lock()
	empty := s.loaded && !s.damaged && s.live() == 0 && s.state.dead == 0 && (s != q.active || active)
	q.mu.Unlock()
	if !empty || !q.isEmpty(s) {
		return false
	}
	s.retire()
	if err := removeFile(s.path); err != nil {
		q.disk.report(spool.Event{Kind: spool.Undeletable, Queue: q.name, File: s.path, Err: err})
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.replace(s, nil)
	return true
}

// isEmpty looks into a file that is about to be deleted: that cannot be undone,
// whatever the counts say.
func (q *queue) isEmpty(s *segment) bool {
	acked := q.acksOf(s)
	empty := true
	err := s.view(func(records, dead *bolt.Bucket) error {
		letter, _ := dead.Cursor().First()
		empty = letter == nil
		c := records.Cursor()
		for k, _ := c.First(); k != nil && empty; k, _ = c.Next() {
			_, empty = slices.BinarySearch(acked, idOf(k))
		}
		return nil
	})
	return err == nil && empty || isGone(err)
}

// replace puts a segment in the place of another, or nothing. q.mu is held.
func (q *queue) replace(s, by *segment) {
	s.state = state{}
	q.disk.count(s, 0)
	if q.active == s {
		q.active = nil
	}
	i := slices.Index(q.segments, s)
	if i < 0 {
		return
	}
	q.segments = slices.Clone(q.segments) // it may be in use
	if by == nil {
		q.segments = slices.Delete(q.segments, i, i+1)
		return
	}
	q.segments[i] = by
	q.disk.count(by, by.size)
}

// carryOut does what orders say, with one commit for each segment if there is room.
func (q *queue) carryOut(orders []*order) {
	for len(orders) > 0 {
		s, others := orders[0].segment, orders[:0:0]
		var these []*order
		var changes []*change
		var err error
		for _, o := range orders {
			if o.segment != s {
				others = append(others, o)
				continue
			}
			these, changes = append(these, o), append(changes, &o.change)
			if o.suspect {
				err = errors.Join(err, s.check())
			}
		}
		errs := slices.Repeat([]error{err}, len(these))
		if err == nil {
			errs = q.free(s, changes)
		} else {
			q.blame(s, err)
		}
		for i, o := range these {
			o.done <- errs[i]
		}
		if err == nil {
			q.removeEmpty(s, false)
		}
		orders = others
	}
}

// salvage puts what is intact in a damaged segment in the segment's place.
func (q *queue) salvage(s *segment) {
	acked := q.acksOf(s)
	rescued, err := s.salvage(acked, q.disk.space())
	q.mu.Lock()
	defer q.mu.Unlock()
	if err != nil {
		s.readAt = time.Now().Add(retryRead)
		if !s.blamed {
			q.disk.report(spool.Event{Kind: spool.Unreadable, Queue: q.name, File: s.path, Err: err})
		}
		s.blamed = true
		return
	}
	event := spool.Event{Kind: spool.SetAside, Queue: q.name, File: s.path + damagedSuffix}
	if rescued != nil {
		event.Records = rescued.live()
		for _, id := range s.acked.all() {
			if _, found := slices.BinarySearch(acked, id); !found {
				rescued.acked.add(id, time.Now())
			}
		}
	}
	q.replace(s, rescued)
	q.disk.report(event)
	notify(q.arrived)
}

// probe finds out whether the disk takes records again that it has refused: as
// long as v2 takes all, no record would show it.
func (q *queue) probe() {
	err := errors.Join(makeDir(q.dir), q.disk.spare.missing())
	if err != nil || !mayFit(q.dir, q.disk.growth()) {
		return
	}
	if tryWrite(filepath.Join(q.dir, "probe"), q.disk.growth()) == nil {
		q.failed.Store(false)
		q.disk.report(spool.Event{Kind: spool.Recovered, Queue: q.name})
	}
}

// tryWrite writes so many bytes into a file, and deletes it.
func tryWrite(path string, bytes int64) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600) //nolint:gosec // G304: the spool's own
	if err != nil {
		return err
	}
	_, err = f.Write(make([]byte, bytes))
	return errors.Join(err, f.Sync(), f.Close(), os.Remove(path))
}

// tidy closes files that are not in use, and gives space back.
func (q *queue) tidy() {
	if q.failed.Load() {
		q.probe()
	}
	q.loadLater()
	q.identifyLater()
	_ = q.disk.spare.missing() // as soon as there is room for it, whether or not a record comes
	q.mu.Lock()
	var idle []*segment
	var sparse *segment // one at a time, as records wait meanwhile; and each in its turn
	for _, s := range q.segments {
		if q.isSparse(s) && (sparse == nil || s.changed.Before(sparse.changed)) {
			sparse = s
		}
		keep := s == q.active && s.size <= q.disk.smallFile()
		if !keep && !s.orphan && !s.damaged && time.Since(s.used) > idleFile {
			idle = append(idle, s)
		}
	}
	q.mu.Unlock()
	if sparse != nil {
		q.compact(sparse)
	}
	for _, s := range idle {
		if !q.removeEmpty(s, true) && s != q.active {
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
	for _, s := range q.segments {
		if !q.removeEmpty(s, true) {
			s.retire()
		}
	}
}
