package disk

import (
	"cmp"
	"container/heap"
	"context"
	"errors"
	"net/url"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/td-postback/gateway/spool"
)

// queue is a spool.Queue: the segments of one directory. This file gives
// records out; commit.go is how they come in and go.
type queue struct {
	disk *Disk
	name string
	dir  string

	mu       sync.Mutex
	segments []*segment // by their first ID
	active   *segment   // the last of them, if it takes records
	next     spool.ID   // of the next record
	later    laterHeap
	due      dueHeap
	gaveBack bool     // what Take gave out last had been put back: what is new takes turns with it
	waiting  []*batch // records to be committed
	enough   int      // how many callers make a commit worth its while
	orders   []*order // about records that are there
	closed   bool

	namespace namespace // zero while it is not known
	unnamedAt time.Time // when it could not be read or made last; zero if it could. run's alone, once it runs

	missed   error // why the directory could not be taken over; nil if it was. run's alone, once it runs
	missedAt time.Time

	failed atomic.Bool // the last commit of records has failed, and nothing was written since

	wake    chan struct{} // run has something to do
	arrived chan struct{} // Take may find something
	stopped chan struct{} // run has ended

	values []byte // of a commit, used again
}

// retryRead is when a file that could not be read is tried again.
const retryRead = 5 * time.Second

// maxTaken is how many bytes Take gives out at a time, if more than a record.
const maxTaken = 2 << 20

func (d *Disk) newQueue(name string) *queue {
	return &queue{
		disk: d, name: name, dir: filepath.Join(d.cfg.Dir, url.QueryEscape(name)),
		wake: make(chan struct{}, 1), arrived: make(chan struct{}, 1), stopped: make(chan struct{}),
	}
}

// loadSegment reads a segment's state. If that fails, it is tried again when
// its turn comes.
func (q *queue) loadSegment(s *segment) error {
	found, err := s.load()
	if err != nil {
		q.blame(s, err)
		return err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	s.loaded, s.state, s.last, s.keyed = true, found.state, spool.ID(found.last), found.keyed
	q.disk.count(s, found.size)
	return nil
}

// blame notes that a segment could not be used.
func (q *queue) blame(s *segment, err error) {
	damaged := s.isDamaged(err)
	q.mu.Lock()
	defer q.mu.Unlock()
	if damaged {
		s.damaged, s.readAt = true, time.Time{}
		notify(q.wake)
		return
	}
	s.readAt = time.Now().Add(retryRead)
	if !s.blamed && !errors.Is(err, errGone) {
		q.disk.report(spool.Event{Kind: spool.Unreadable, Queue: q.name, File: s.path, Err: err})
	}
	s.blamed = true
}

// Take waits for records and gives out at least one, at most n. Only one
// goroutine at a time may call it.
func (q *queue) Take(ctx context.Context, n int) ([]spool.Entry, error) {
	return q.takeOf(ctx, n, false)
}

// TakeUntried is Take for one record, if possible one that was never given out.
func (q *queue) TakeUntried(ctx context.Context) ([]spool.Entry, error) {
	return q.takeOf(ctx, 1, true)
}

// TakeNewest is Take for one record, if possible the last one that was appended.
func (q *queue) TakeNewest(ctx context.Context) ([]spool.Entry, error) {
	if e, ok := q.takeAhead(); ok {
		return []spool.Entry{e}, nil
	}
	return q.takeOf(ctx, 1, true)
}

// takeAhead gives out the newest record, unless it was given out before. Take
// passes over it when it comes to it.
func (q *queue) takeAhead() (e spool.Entry, ok bool) {
	q.mu.Lock()
	s := q.active
	if s == nil || !s.loaded || s.damaged || s.last <= s.cursor || s.ahead[s.last] {
		q.mu.Unlock()
		return e, false
	}
	id := s.last
	q.mu.Unlock()
	r, err := s.get(id)
	if err != nil {
		return e, false // Take finds out what that means
	}
	if s.ahead == nil {
		s.ahead = map[spool.ID]bool{}
	}
	s.ahead[id] = true
	return spool.Entry{ID: id, Record: r, Namespace: q.namespaceOf(s).of(r)}, true
}

// Holds says that a record that was given out costs nothing.
func (q *queue) Holds() bool { return true }

func (q *queue) takeOf(ctx context.Context, n int, untried bool) ([]spool.Entry, error) {
	for {
		select {
		case <-q.stopped:
			return nil, spool.ErrClosed
		default:
		}
		entries, wait := q.take(n, untried)
		if len(entries) > 0 {
			return entries, nil
		}
		if err := q.await(ctx, wait); err != nil {
			return nil, err
		}
	}
}

// await waits until there may be something to take.
func (q *queue) await(ctx context.Context, wait time.Duration) error {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-q.stopped:
		return spool.ErrClosed
	case <-q.arrived:
	case <-timer.C:
	}
	return nil
}

// take gives out what is there, or says how long there will be nothing, unless
// something arrives.
func (q *queue) take(n int, untried bool) (entries []spool.Entry, wait time.Duration) {
	now := time.Now()
	q.mu.Lock()
	var unread *segment
	if untried || q.gaveBack {
		unread, _ = q.unread(now, 0)
	}
	for len(q.later.laters) > 0 && !q.later.laters[0].due.After(now) {
		heap.Push(&q.due, heap.Pop(&q.later))
	}
	var again []later
	for unread == nil && len(q.due.laters) > 0 && len(again) < n {
		again = append(again, heap.Pop(&q.due).(later)) //nolint:forcetypeassert // it holds nothing else
	}
	q.gaveBack = len(again) > 0
	wait = time.Minute
	if len(q.later.laters) > 0 {
		wait = q.later.laters[0].due.Sub(now)
	}
	if unread == nil && len(again) == 0 {
		unread, wait = q.unread(now, wait)
	}
	q.mu.Unlock()
	if unread != nil {
		return q.read(unread, n), 0
	}
	size := 0
	for i, l := range again {
		if size > maxTaken {
			q.putBack(again[i:])
			break
		}
		if e, ok := q.reread(l); ok {
			entries = append(entries, e)
			size += len(e.Data)
		}
	}
	if len(again) > 0 {
		wait = 0
	}
	return entries, wait
}

// unread finds the first segment that has not been read to its end. q.mu is
// held.
func (q *queue) unread(now time.Time, wait time.Duration) (*segment, time.Duration) {
	for _, s := range q.segments {
		switch {
		case s.read || s.damaged || s == q.active && s.cursor >= s.last:
		case s.readAt.After(now):
			wait = min(wait, s.readAt.Sub(now))
		default:
			return s, 0
		}
	}
	return nil, wait
}

// read gives out the next records of a segment. Without any, the segment is at
// its end, or it is noted when to try again.
func (q *queue) read(s *segment, n int) (entries []spool.Entry) {
	if !s.loaded && q.loadSegment(s) != nil {
		return nil
	}
	q.mu.Lock()
	final, last := s != q.active, s.last // nothing comes behind the last one of a file that takes no records
	q.mu.Unlock()
	var damaged, unsealed []spool.ID
	var wrongKey error
	size, cursor, more := 0, s.cursor, false
	entries = make([]spool.Entry, 0, min(uint64(n), uint64(last-cursor))) //nolint:gosec // G115: a count
	names := q.namespaceOf(s)
	err := s.each(cursor, func(id spool.ID, value []byte) bool {
		if len(entries) == n || size > maxTaken || !final && id > last { // whose commit is not durable yet
			more = true
			return false
		}
		stored, r, err := s.coder.decode(value)
		if errors.Is(err, errKey) {
			wrongKey = err
			return false
		}
		cursor = id
		if s.ahead[id] {
			return true
		}
		if errors.Is(err, errPlain) {
			unsealed = append(unsealed, id)
			return true
		}
		if err != nil || stored != id {
			damaged = append(damaged, id)
			return true
		}
		entries = append(entries, spool.Entry{ID: id, Record: r, Namespace: names.of(r)})
		size += len(r.Data)
		return true
	})
	if err == nil {
		err = wrongKey
	}
	if err != nil {
		q.blame(s, err)
		return nil // they are read again
	}
	q.mu.Lock()
	s.used = time.Now()
	if !more {
		cursor = max(cursor, last)
	}
	s.cursor, s.read, s.blamed = cursor, final && !more, false
	q.passRevived(s, entries)
	if s.read {
		s.ahead = nil
	}
	q.mu.Unlock()
	q.buryUnread(s, damaged, spool.Damaged)
	q.buryUnread(s, unsealed, spool.NotSealed)
	return entries
}

// passRevived puts back the records that were no dead letters any more only
// after they had been passed over. q.mu is held.
func (q *queue) passRevived(s *segment, entries []spool.Entry) {
	if len(s.revived) == 0 {
		return
	}
	behind := s.revived[:0]
	for _, id := range s.revived {
		_, given := slices.BinarySearchFunc(entries, id, func(e spool.Entry, id spool.ID) int { return cmp.Compare(e.ID, id) })
		switch {
		case id > s.cursor:
			behind = append(behind, id)
		case !given:
			heap.Push(&q.later, later{id: id})
			notify(q.arrived)
		}
	}
	s.revived = behind
}

// reread reads a record that was put back.
func (q *queue) reread(l later) (e spool.Entry, ok bool) {
	s := q.segmentOf(l.id)
	if s == nil {
		return e, false
	}
	r, err := s.get(l.id)
	switch {
	case err == nil:
		return spool.Entry{ID: l.id, Record: r, Tries: l.tries, Namespace: q.namespaceOf(s).of(r)}, true
	case errors.Is(err, errNoRecord):
		return e, false
	case errors.Is(err, errDamaged):
		q.buryUnread(s, []spool.ID{l.id}, spool.Damaged)
		return e, false
	case errors.Is(err, errPlain):
		q.buryUnread(s, []spool.ID{l.id}, spool.NotSealed)
		return e, false
	}
	q.blame(s, err)
	l.due = time.Now().Add(retryRead)
	q.putBack([]later{l})
	return e, false
}

// unreadReasons are why records are dead letters that were never given out.
var unreadReasons = map[spool.EventKind]string{spool.Damaged: "damaged", spool.NotSealed: "not_encrypted"}

// buryUnread makes dead letters of records whose checksum does not match, unless
// it is the file that is damaged: then they are read again. It does so too of those
// that are not encrypted when there is a key.
func (q *queue) buryUnread(s *segment, ids []spool.ID, kind spool.EventKind) {
	if len(ids) == 0 {
		return
	}
	deaths := make([]death, len(ids))
	for i, id := range ids {
		deaths[i] = death{id: id, died: time.Now(), Verdict: spool.Verdict{Reason: unreadReasons[kind]}}
	}
	err := q.order(&order{segment: s, change: change{deaths: deaths}, suspect: kind == spool.Damaged})
	if err == nil {
		q.disk.report(spool.Event{Kind: kind, Queue: q.name, File: s.path, Records: len(ids)})
		return
	}
	if errors.Is(err, errDamaged) {
		return // what is intact comes again out of the salvaged file
	}
	again := make([]later, len(ids))
	for i, id := range ids {
		again[i] = later{id: id, due: time.Now().Add(retryRead)}
	}
	q.putBack(again)
}

// segmentOf finds the segment that an ID is in, or nil.
func (q *queue) segmentOf(id spool.ID) *segment {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.segmentAt(id)
}

// segmentAt is segmentOf with q.mu held.
func (q *queue) segmentAt(id spool.ID) *segment {
	i, found := slices.BinarySearchFunc(q.segments, id, func(s *segment, id spool.ID) int { return cmp.Compare(s.first, id) })
	if !found {
		i--
	}
	if i < 0 {
		return nil
	}
	return q.segments[i]
}

// Ack notes that v2 has taken a record. Some milliseconds later that is
// durable.
func (q *queue) Ack(e spool.Entry) { q.ack(e.ID, ackDelay) }

// AckSafe is Ack for a record of which v2 drops a repeat: half a second later that
// is durable.
func (q *queue) AckSafe(e spool.Entry) { q.ack(e.ID, safeDelay) }

func (q *queue) ack(id spool.ID, within time.Duration) {
	now := time.Now()
	q.mu.Lock()
	defer q.mu.Unlock()
	s := q.segmentAt(id)
	if s != nil && (s.acked.add(id, now.Add(within)) || s.allAcksDue()) {
		notify(q.wake)
	}
}

// Later puts a record back.
func (q *queue) Later(e spool.Entry, after time.Duration) {
	if after > 0 {
		e.Tries++ // at once: it was not tried
	}
	q.putBack([]later{{id: e.ID, due: time.Now().Add(after), tries: e.Tries}})
}

func (q *queue) putBack(back []later) {
	q.mu.Lock()
	for _, l := range back {
		heap.Push(&q.later, l)
	}
	q.mu.Unlock()
	notify(q.arrived)
}

// later is a record that was put back.
type later struct {
	id    spool.ID
	due   time.Time
	tries int
}

// laterHeap is the records that were put back and are not due, those that are
// due first at its beginning; dueHeap those that are due, by their age.
type (
	laterHeap struct{ laters }
	dueHeap   struct{ laters }
)

func (h laterHeap) Less(i, j int) bool { return h.laters[i].due.Before(h.laters[j].due) }
func (h dueHeap) Less(i, j int) bool   { return h.laters[i].id < h.laters[j].id }

// laters is what both have in common for container/heap.
type laters []later

func (h laters) Len() int      { return len(h) }
func (h laters) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *laters) Push(x any)   { *h = append(*h, x.(later)) } //nolint:forcetypeassert // nothing else is pushed
func (h *laters) Pop() any {
	last := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return last
}

// notify wakes a goroutine that waits, or will.
func notify(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
