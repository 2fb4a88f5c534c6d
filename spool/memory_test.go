package spool_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/td-postback/gateway/spool"
)

// memory is a Queue without a disk. What it does not expect is in wrong.
type memory struct {
	mu      sync.Mutex
	records []kept // by their ID
	counts  [dead + 1]int
	next    int        // the first of them that was never given out
	later   []spool.ID // not due yet, by when they are
	due     []spool.ID // by their age
	back    bool       // what was given out last had been put back
	sheds   bool       // it does not hold what was given out at no cost
	arrived chan struct{}
	takes   int
	takeErr error
	buryErr error
	wrong   []string
}

// kept is a record, and what became of it.
type kept struct {
	spool.Entry
	state  state
	due    time.Time
	why    spool.Verdict
	pauses []time.Duration // with which it was put back
}

// isNew reports whether a record was never given out, as the newest either.
func (k *kept) isNew() bool { return k.state == waiting && k.due.IsZero() }

type state int

const (
	waiting state = iota
	held
	acked
	dead
)

func (s state) String() string { return [...]string{"waiting", "held", "acked", "dead"}[s] }

func newMemory() *memory { return &memory{arrived: make(chan struct{}, 1)} }

func (m *memory) append(data ...string) {
	for _, d := range data {
		m.appendData([]byte(d))
	}
}

func (m *memory) appendData(data []byte) {
	m.appendRecord(spool.Record{Arrival: time.Now(), Data: data})
}

func (m *memory) appendRecord(r spool.Record) {
	m.mu.Lock()
	m.records = append(m.records, kept{Entry: spool.Entry{ID: spool.ID(len(m.records)), Record: r}, state: waiting})
	m.counts[waiting]++
	m.mu.Unlock()
	m.notify()
}

func (m *memory) notify() {
	select {
	case m.arrived <- struct{}{}:
	default:
	}
}

func (m *memory) Take(ctx context.Context, n int) ([]spool.Entry, error) {
	return m.takeOf(ctx, n, false)
}

func (m *memory) TakeUntried(ctx context.Context) ([]spool.Entry, error) {
	return m.takeOf(ctx, 1, true)
}

func (m *memory) TakeNewest(ctx context.Context) ([]spool.Entry, error) {
	m.mu.Lock()
	if last := len(m.records) - 1; last >= m.next && m.takeErr == nil && m.records[last].isNew() {
		defer m.mu.Unlock()
		return []spool.Entry{m.giveOut(m.records[last].ID)}, nil
	}
	m.mu.Unlock()
	return m.takeOf(ctx, 1, true)
}

func (m *memory) Holds() bool { return !m.sheds }

func (m *memory) takeOf(ctx context.Context, n int, untried bool) ([]spool.Entry, error) {
	for {
		entries, wait, err := m.take(n, untried)
		if len(entries) > 0 || err != nil {
			return entries, err
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil, ctx.Err()
		case <-m.arrived:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// take gives out what was put back and is due, or else what is new.
func (m *memory) take(n int, untried bool) (entries []spool.Entry, wait time.Duration, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.takes++
	if m.takeErr != nil {
		return nil, 0, m.takeErr
	}
	now := time.Now()
	for len(m.later) > 0 && !m.records[m.later[0]].due.After(now) {
		at, _ := slices.BinarySearch(m.due, m.later[0])
		m.due = slices.Insert(m.due, at, m.later[0])
		m.later = m.later[1:]
	}
	for !((untried || m.back) && m.next < len(m.records)) && len(m.due) > 0 && len(entries) < n {
		entries = append(entries, m.giveOut(m.due[0]))
		m.due = m.due[1:]
	}
	m.back = len(entries) > 0
	if m.back {
		return entries, 0, nil
	}
	for ; m.next < len(m.records) && len(entries) < n; m.next++ {
		if m.records[m.next].isNew() {
			entries = append(entries, m.giveOut(spool.ID(m.next))) //nolint:gosec // G115: not negative
		}
	}
	if len(entries) == 0 && len(m.due) > 0 {
		return nil, 0, nil
	}
	wait = time.Hour
	if len(m.later) > 0 {
		wait = m.records[m.later[0]].due.Sub(now)
	}
	return entries, wait, nil
}

func (m *memory) giveOut(id spool.ID) spool.Entry {
	m.counts[m.records[id].state]--
	m.counts[held]++
	m.records[id].state = held
	return m.records[id].Entry
}

// answer notes what became of a record that was given out. m.mu is held.
func (m *memory) answer(e spool.Entry, s state) *kept {
	r := &m.records[e.ID]
	if r.state != held {
		m.wrong = append(m.wrong, fmt.Sprintf("record %d was %s and became %s", e.ID, r.state, s))
	}
	m.counts[r.state]--
	m.counts[s]++
	r.state = s
	return r
}

func (m *memory) Ack(e spool.Entry) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.answer(e, acked)
}

func (m *memory) AckSafe(e spool.Entry) { m.Ack(e) }

func (m *memory) Later(e spool.Entry, after time.Duration) {
	m.mu.Lock()
	r := m.answer(e, waiting)
	r.Tries = e.Tries
	if after > 0 {
		r.Tries++
	}
	r.due = time.Now().Add(after)
	r.pauses = append(r.pauses, after)
	at, _ := slices.BinarySearchFunc(m.later, r, func(id spool.ID, r *kept) int {
		return cmp.Or(m.records[id].due.Compare(r.due), cmp.Compare(id, r.ID))
	})
	m.later = slices.Insert(m.later, at, e.ID)
	m.mu.Unlock()
	m.notify()
}

var errBroken = errors.New("the log is broken")

func (m *memory) Bury(e spool.Entry, why spool.Verdict) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.buryErr != nil {
		return m.buryErr
	}
	m.answer(e, dead).why = why
	return nil
}

func (m *memory) BuryRest(e spool.Entry, rest []byte, why spool.Verdict) error {
	err := m.Bury(e, why)
	if err == nil {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.records[e.ID].Data = slices.Clone(rest)
	}
	return err
}

func (m *memory) fail(take, bury error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.takeErr, m.buryErr = take, bury
}

// count says how many records are in a state.
func (m *memory) count(s state) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.counts[s]
}

// record returns one as it is now.
func (m *memory) record(id int) kept {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.records[id]
	r.pauses = slices.Clone(r.pauses)
	return r
}

// memoryLog is a Log of such queues.
type memoryLog struct {
	mu        sync.Mutex
	queues    map[string]*memory
	used      int64
	limit     int64
	dead      int64       // the limit of dead letters
	appendErr error       // what Append returns
	depth     spool.Depth // what Depth returns beside the count
	depthErr  error
	hidden    bool // Queues names none
	closed    bool
}

func newMemoryLog() *memoryLog { return &memoryLog{queues: map[string]*memory{}} }

func (l *memoryLog) queue(name string) *memory {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.queues[name] == nil {
		l.queues[name] = newMemory()
	}
	return l.queues[name]
}

// set changes how the Log behaves.
func (l *memoryLog) set(change func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	change()
}

func (l *memoryLog) Append(queue string, r spool.Record) error {
	l.mu.Lock()
	err := l.appendErr
	l.mu.Unlock()
	if err == nil {
		l.queue(queue).appendData(slices.Clone(r.Data))
	}
	return err
}

func (l *memoryLog) AppendAll(queue string, records []spool.Record) error {
	l.mu.Lock()
	err := l.appendErr
	l.mu.Unlock()
	if err == nil {
		for _, r := range records {
			l.queue(queue).appendData(slices.Clone(r.Data))
		}
	}
	return err
}

func (l *memoryLog) Queue(name string) spool.Queue { return l.queue(name) }

func (l *memoryLog) Queues() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.hidden {
		return nil
	}
	return slices.Sorted(maps.Keys(l.queues))
}

func (l *memoryLog) Depth(queue string) (spool.Depth, error) {
	l.mu.Lock()
	d, q, err := l.depth, l.queues[queue], l.depthErr
	l.mu.Unlock()
	if q != nil {
		d.Records, d.Dead = q.count(waiting)+q.count(held), q.count(dead)
	}
	return d, err
}

func (l *memoryLog) Size() (used, limit int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.used, l.limit
}

func (l *memoryLog) DeadSize() (used, limit int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return 0, l.dead
}

func (l *memoryLog) SetLimits(records, dead int64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.limit, l.dead = records, dead
	return nil
}

func (l *memoryLog) Records(string, spool.ID, int) ([]spool.Entry, error)  { return nil, nil }
func (l *memoryLog) Letters(string, spool.ID, int) ([]spool.Letter, error) { return nil, nil }
func (l *memoryLog) Replay(string, ...spool.ID) (int, error)               { return 0, nil }
func (l *memoryLog) Drop(string, ...spool.ID) (int, error)                 { return 0, nil }

func (l *memoryLog) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	return nil
}

// all returns the records that are in a state.
func (m *memory) all(s state) (found []kept) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, k := range m.records {
		if k.state == s {
			found = append(found, k)
		}
	}
	return found
}
