package spool

import (
	"maps"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxMarks bounds how many records have a mark.
	maxMarks = 100_000

	// repeatsDropped is how long v2 remembers a record of a batch by its uuid, and
	// drops a repeat.
	repeatsDropped = time.Hour

	// maxLeft bounds how many events have a mark of their own.
	maxLeft = 1_000_000

	// sweepPause is the least time between two looks for marks that are too old.
	sweepPause = time.Minute
)

// marks remember of some records what became of their batches. The zero marks
// remember nothing.
type marks struct {
	some atomic.Bool // nearly never

	mu    sync.Mutex
	of    map[name]mark
	left  int       // how many events have a mark of their own
	swept time.Time // when it was looked for marks that are too old
}

// mark is what is remembered of one record.
type mark struct {
	unanswered time.Time // v2 may have taken it then: the first time
	refusals   int       // how often a receipt has refused it
	left       []int     // its events that v2 has not taken yet, if it has taken some
	events     int       // how many it has, then
	changed    time.Time // when something was noted last
}

// expired reports whether v2 may have taken the record so long ago that it took it
// again now.
func (m mark) expired(now time.Time) bool {
	return !m.unanswered.IsZero() && now.Sub(m.unanswered) >= repeatsDropped
}

// get returns what is remembered of a record.
func (m *marks) get(n name) mark {
	if !m.some.Load() {
		return mark{}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.of[n]
}

// unanswered notes that v2 may have taken a record of a batch that was sent then.
// It says no if there is no room to note it.
func (m *marks) unanswered(n name, sent time.Time) bool {
	return m.change(n, func(old mark) mark {
		if old.unanswered.IsZero() {
			old.unanswered = sent
		}
		return old
	})
}

// refusal notes that a receipt has refused a record, and returns how often that was
// so. Without room to note it, tries is the answer: it is more, or as much.
func (m *marks) refusal(n name, tries int) (refusals int) {
	noted := m.change(n, func(old mark) mark {
		old.refusals++
		refusals = old.refusals
		return old
	})
	if !noted {
		return tries
	}
	return refusals
}

// noteLeft notes which events of a record v2 has not taken yet: no others than were
// noted before. What v2 may have taken so long ago that it took it again now is told
// once. It says no if there is no room to note it.
func (m *marks) noteLeft(n name, left []int, events int, now time.Time) (noted bool) {
	return m.change(n, func(old mark) mark {
		more := len(left) - len(old.left)
		if noted = m.left+more <= maxLeft; noted {
			m.left += more
			old.left, old.events = left, events
		}
		if old.expired(now) {
			old.unanswered = time.Time{}
		}
		return old
	}) && noted
}

func (m *marks) change(n name, how func(mark) mark) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	old, known := m.of[n]
	now := time.Now()
	if !known && len(m.of) >= maxMarks && !m.sweep(now) {
		return false
	}
	if m.of == nil {
		m.of = map[name]mark{}
	}
	changed := how(old)
	changed.changed = now
	m.of[n] = changed
	m.some.Store(true)
	return true
}

// sweep makes room, if there are marks so old that v2 remembers nothing of their
// records: another gateway may have delivered these. m.mu is held.
func (m *marks) sweep(now time.Time) bool {
	if now.Sub(m.swept) < sweepPause {
		return false
	}
	m.swept = now
	maps.DeleteFunc(m.of, func(_ name, old mark) bool {
		if now.Sub(old.changed) < repeatsDropped {
			return false
		}
		m.left -= len(old.left)
		return true
	})
	return len(m.of) < maxMarks
}

// forget says that the record is gone.
func (m *marks) forget(n name) {
	if !m.some.Load() {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.left -= len(m.of[n].left)
	delete(m.of, n)
	m.some.Store(len(m.of) > 0)
}
