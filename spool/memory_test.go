package spool_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
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
	status int
	reason string
	pauses []time.Duration // with which it was put back
}

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
	m.mu.Lock()
	m.records = append(m.records, kept{
		Entry: spool.Entry{ID: spool.ID(len(m.records)), Record: spool.Record{Arrival: time.Now(), Data: data}}, state: waiting,
	})
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
	for !(untried && m.next < len(m.records)) && len(m.due) > 0 && len(entries) < n {
		entries = append(entries, m.giveOut(m.due[0]))
		m.due = m.due[1:]
	}
	if len(entries) > 0 {
		return entries, 0, nil
	}
	for ; m.next < len(m.records) && len(entries) < n; m.next++ {
		entries = append(entries, m.giveOut(spool.ID(m.next))) //nolint:gosec // G115: not negative
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

func (m *memory) Later(e spool.Entry, after time.Duration) {
	m.mu.Lock()
	r := m.answer(e, waiting)
	r.Tries++
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

func (m *memory) Bury(e spool.Entry, status int, reason string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.buryErr != nil {
		return m.buryErr
	}
	r := m.answer(e, dead)
	r.status, r.reason = status, reason
	return nil
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
