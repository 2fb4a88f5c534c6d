package disk

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/td-postback/gateway/spool"
)

// This file is about dead letters, and what an operator sees of a queue. A dead
// letter stays where it was as a record, with a mark: so a full disk has room
// for it, and a crash leaves either the one or the other.

// maxReason is the longest reason that is kept, in bytes.
const maxReason = 200

// letterSize is about what a mark takes, in bytes.
const letterSize = 256

// Bury makes a dead letter of a record, if there is room for one.
func (q *queue) Bury(e spool.Entry, why spool.Verdict) error {
	return q.bury(death{id: e.ID, Verdict: why}, len(e.Data))
}

// BuryRest is Bury with other data. On a full disk it needs more room than Bury, as
// bbolt writes what is new before it gives up what was there.
func (q *queue) BuryRest(e spool.Entry, rest []byte, why spool.Verdict) error {
	return q.bury(death{id: e.ID, Verdict: why, rest: rest}, len(rest))
}

// bury makes a dead letter with so many bytes of data.
func (q *queue) bury(d death, size int) error {
	s := q.segmentOf(d.id)
	if s == nil {
		return nil // it is gone
	}
	o := &order{segment: s}
	if d.Status != 0 {
		if o.change.reserved = int64(size + letterSize); !q.disk.reserveLetter(o.change.reserved) {
			return fmt.Errorf("dead letters: %w", spool.ErrFull)
		}
	}
	d.Reason = d.Reason[:min(len(d.Reason), maxReason)]
	d.Words = d.Words[:min(len(d.Words), spool.MaxWords)]
	if !q.disk.spare.held.Load() {
		d.Words = "" // the disk is full, and each mark takes of what is left
	}
	d.died = time.Now()
	o.change.deaths = []death{d}
	err := q.order(o)
	q.disk.dying.Add(-o.change.reserved) // of one that failed
	return err
}

// Depth says what a queue holds.
func (d *Disk) Depth(name string) (spool.Depth, error) {
	q := d.known(name)
	if q == nil {
		return spool.Depth{}, nil
	}
	depth := spool.Depth{Refusing: q.failed.Load()}
	q.mu.Lock()
	var oldest *segment
	for _, s := range q.segments {
		depth.Records += s.live()
		depth.Dead += s.state.dead
		if oldest == nil && s.live() > 0 {
			oldest = s
		}
	}
	q.mu.Unlock()
	if oldest == nil {
		return depth, nil
	}
	err := q.oldest(oldest, &depth.Oldest)
	if errors.Is(err, errGone) { // since then
		err = nil
	}
	return depth, err
}

// oldest finds the arrival of a segment's first record to be delivered.
func (q *queue) oldest(s *segment, at *time.Time) error {
	q.mu.Lock()
	from := max(s.hint, 1) - 1
	q.mu.Unlock()
	return s.each(from, func(id spool.ID, value []byte) bool {
		q.mu.Lock()
		defer q.mu.Unlock()
		if s.acked.has(id) || s.coder.size(value) == 0 {
			return true
		}
		*at = arrival(value)
		s.hint = id
		return false
	})
}

// known finds a queue that exists.
func (d *Disk) known(name string) *queue {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.queues[name]
}

// Records returns records that are to be delivered.
func (d *Disk) Records(name string, after spool.ID, limit int) (entries []spool.Entry, err error) {
	q, size := d.known(name), 0
	err = q.eachSegment(after, func(s *segment) (more bool, err error) {
		more = true
		err = s.each(after, func(id spool.ID, value []byte) bool {
			if q.isAcked(s, id) {
				return true
			}
			if more = len(entries) < limit && size < spool.MaxListed; more {
				size += len(value)
				_, r, _ := s.coder.decode(value)
				entries = append(entries, spool.Entry{ID: id, Record: r})
			}
			return more
		})
		return more, err
	})
	return entries, err
}

func (q *queue) isAcked(s *segment, id spool.ID) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return s.acked.has(id)
}

// Letters returns dead letters.
func (d *Disk) Letters(name string, after spool.ID, limit int) (letters []spool.Letter, err error) {
	size := 0
	err = d.known(name).eachSegment(after, func(s *segment) (more bool, err error) {
		more = true
		err = s.eachDead(after, func(id spool.ID, value, mark []byte) bool {
			if more = len(letters) < limit && size < spool.MaxListed; more {
				size += len(value)
				_, r, _ := s.coder.decode(value)
				death, _ := decodeDeath(mark)
				letters = append(letters, spool.Letter{
					ID: id, Record: r, Queue: name, Verdict: death.Verdict, Died: death.died,
				})
			}
			return more
		})
		return more, err
	})
	return letters, err
}

// eachSegment goes through the segments that may have records behind an ID,
// until look says that it has enough.
func (q *queue) eachSegment(after spool.ID, look func(*segment) (more bool, err error)) error {
	if q == nil {
		return nil
	}
	q.mu.Lock()
	segments := slices.Clone(q.segments)
	q.mu.Unlock()
	var errs []error
	for i, s := range segments {
		if i+1 < len(segments) && segments[i+1].first <= after+1 {
			continue
		}
		more, err := look(s)
		if err != nil && !errors.Is(err, errGone) {
			errs = append(errs, err) // the other files may be readable
		}
		if !more {
			break
		}
	}
	return errors.Join(errs...)
}

// Replay makes dead letters records again.
func (d *Disk) Replay(name string, ids ...spool.ID) (int, error) {
	return d.changeLetters(name, ids, func(c *change, ids []spool.ID) { c.revive = ids })
}

// Drop deletes dead letters.
func (d *Disk) Drop(name string, ids ...spool.ID) (int, error) {
	return d.changeLetters(name, ids, func(c *change, ids []spool.ID) { c.drop = ids })
}

func (d *Disk) changeLetters(name string, ids []spool.ID, fill func(*change, []spool.ID)) (n int, err error) {
	q := d.known(name)
	if q == nil {
		return 0, nil
	}
	ids = slices.Clone(ids)
	slices.SortFunc(ids, func(a, b spool.ID) int { return cmp.Compare(a, b) })
	ids = slices.Compact(ids)
	for len(ids) > 0 {
		s := q.segmentOf(ids[0])
		end := 1
		for end < len(ids) && q.segmentOf(ids[end]) == s {
			end++
		}
		if s != nil {
			o := &order{segment: s}
			fill(&o.change, ids[:end])
			if err := q.order(o); err != nil && !errors.Is(err, errGone) {
				return n, err
			}
			n += len(o.change.revived) + o.change.dropped
		}
		ids = ids[end:]
	}
	return n, nil
}
