package spool

import (
	"encoding/binary"
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxAccounts bounds how many accounts have state, whatever callers make up.
	// While so many wait, the records of a further one wait one by one.
	maxAccounts = 1000

	// maxAccountPause bounds what v2 may ask for an account.
	maxAccountPause = time.Hour

	// maxWindow bounds how many requests with records of an account that v2 takes
	// again are on their way at a time, until none of them waits any more.
	maxWindow = 128
)

// Accounts keeps the accounts that v2 has answered 429 from being asked for more
// than they may send: a 429 speaks of the account whose record it answers. Such an
// account has a pause. Then one record at a time may try, and as long as v2 takes
// them, each lets one more go. The zero Accounts has nobody in it.
//
// Accounts are known by a hash: some are a whole write key. Its seed is random, so
// that no caller can make up a key that stands for another's account.
type Accounts struct {
	some    atomic.Bool  // there is one; nearly never, and then nothing else is asked
	sharing atomic.Int64 // how many records may share a request; 0 if none do

	mu      sync.Mutex
	states  map[uint64]*account
	changed chan struct{} // nil until somebody waits; parked records may go
}

// account is one that v2 has answered 429.
type account struct {
	since  time.Time     // when it was paused last
	until  time.Time     // when that ends
	pause  time.Duration // the last one that v2 did not ask for
	window int           // how many records may be on their way at a time
	out    int           // how many are
	given  int           // how many were given back, and are not on their way yet
	events int           // how many events these have
	moved  time.Time     // when one went last: what is never heard of does not count for ever
	parked parked
}

var accountSeed = maphash.MakeSeed()

func hashOf(name string) uint64 { return maphash.String(accountSeed, name) }

// Paused is how many accounts v2 has answered 429 and that have records waiting,
// or a pause.
func (a *Accounts) Paused() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.states)
}

// permit reports whether a record of an account may be sent now. After true, the
// caller must say how that went.
func (a *Accounts) permit(name string) bool {
	if !a.some.Load() {
		return true
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.states[hashOf(name)]
	return s == nil || s.take(time.Now())
}

// admit is permit for a kept record with so many events. One that may not be sent is
// parked until it may, if park says so; otherwise, wait is how long its account is
// paused.
func (a *Accounts) admit(name string, e Entry, events int, park bool) (ok bool, wait time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.states[hashOf(name)]
	if s == nil {
		return true, 0
	}
	if s.gone(events); s.given == 0 && s.parked.len > 0 {
		a.wake()
	}
	now := time.Now()
	if s.take(now) {
		return true, 0
	}
	if park {
		s.parked.push(e, events)
		a.wake()
	}
	return false, max(0, s.until.Sub(now))
}

// isPaused reports whether v2 wants to be left alone by an account now.
func (a *Accounts) isPaused(name string) bool {
	if !a.some.Load() {
		return false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.states[hashOf(name)]
	return s != nil && time.Now().Before(s.until)
}

// skip notes that a record with so many events will not be sent that may have been
// given back to be.
func (a *Accounts) skip(name string, events int) {
	if !a.some.Load() {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if s := a.states[hashOf(name)]; s != nil {
		s.gone(events)
		a.wake()
	}
}

// gone notes that a record with so many events is not waiting any more that may have
// been given back.
func (s *account) gone(events int) {
	s.given = max(0, s.given-1)
	if s.events = max(0, s.events-events); s.given == 0 {
		s.events = 0
	}
}

// take lets a record of the account go, or not.
func (s *account) take(now time.Time) bool {
	if now.Before(s.until) || s.room(now) <= 0 {
		return false
	}
	s.out++
	s.moved = now
	return true
}

// room is how many more records may go.
func (s *account) room(now time.Time) int {
	if s.out+s.given > 0 && now.Sub(s.moved) > probeLease {
		s.out, s.given, s.events = 0, 0, 0
	}
	return s.window - s.out - s.given
}

// refuse notes a 429: of a request that was allowed at sent, or later, and with the
// pause that v2 asked for, or 0. It reports whether the account has state now.
func (a *Accounts) refuse(name string, sent time.Time, retryAfter time.Duration) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	key, now := hashOf(name), time.Now()
	s := a.states[key]
	retryAfter = min(retryAfter, maxAccountPause)
	switch {
	case s == nil && !a.makeRoom(now):
		return false
	case s == nil:
		s = &account{}
		if a.states == nil {
			a.states = map[uint64]*account{}
		}
		a.states[key] = s
		a.some.Store(true)
	case !sent.After(s.since):
		// It was on its way when the account was paused, and says nothing new but
		// for how long.
		if until := now.Add(retryAfter); until.After(s.until) {
			s.until = until
		}
		return true
	}
	s.pause = min(max(2*s.pause, minPause), maxPause)
	s.since, s.until = now, now.Add(max(jitter(s.pause), retryAfter))
	s.window, s.out = 1, 0
	a.wake()
	return true
}

// makeRoom makes sure that one more account can have state: instead of one that has
// no pause and no records any more. a.mu is held.
func (a *Accounts) makeRoom(now time.Time) bool {
	if len(a.states) < maxAccounts {
		return true
	}
	for key, s := range a.states {
		if s.parked.len == 0 && s.out == 0 && !now.Before(s.until) {
			delete(a.states, key)
			return true
		}
	}
	return false
}

// park keeps a record with so many events that v2 has answered 429, until its account
// may send again. It says no if that is so already.
func (a *Accounts) park(name string, e Entry, events int) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.states[hashOf(name)]
	if s == nil {
		return false
	}
	s.parked.push(e, events)
	a.wake()
	return true
}

// accept notes that v2 has taken a record, or has refused it for its own sake. sent
// is when it was allowed, or later.
func (a *Accounts) accept(name string, sent time.Time) {
	if !a.some.Load() {
		return // nearly always
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	key := hashOf(name)
	s := a.states[key]
	if s == nil || !sent.After(s.since) {
		return // or it was on its way when the account was paused
	}
	s.out = max(0, s.out-1)
	s.pause = 0
	s.window = min(s.window+1, maxWindow*max(1, int(a.sharing.Load())))
	if s.parked.len > 0 {
		a.wake()
	} else if s.out == 0 || s.window >= maxWindow {
		a.remove(key)
	}
}

// forgo notes that a record that was allowed was not sent, or that how it went says
// nothing of its account.
func (a *Accounts) forgo(name string, sent time.Time) {
	if !a.some.Load() {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if s := a.states[hashOf(name)]; s != nil && sent.After(s.since) {
		s.out = max(0, s.out-1)
		a.wake()
	}
}

// remove forgets an account. a.mu is held.
func (a *Accounts) remove(key uint64) {
	delete(a.states, key)
	a.some.Store(len(a.states) > 0)
}

// wake lets due be asked again. a.mu is held.
func (a *Accounts) wake() {
	if a.changed != nil {
		close(a.changed)
		a.changed = nil
	}
}

// limits reports whether an account has a pause, or had one a moment ago.
func (a *Accounts) limits(name string) bool {
	if !a.some.Load() {
		return false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.states[hashOf(name)] != nil
}

// due returns parked records that may go now, and how long there will be none unless
// changed is closed. Of each account it gives back so many that about most events wait
// to be sent; where each record takes a request of its own, those on their way count
// too. It forgets accounts that have been let alone for long enough.
func (a *Accounts) due(most int) (entries []Entry, wait time.Duration, changed <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.changed == nil {
		a.changed = make(chan struct{})
	}
	now := time.Now()
	wait = probeLease
	for key, s := range a.states {
		left := s.until.Sub(now)
		if left > 0 {
			wait = min(wait, left)
			continue
		}
		room := min(s.room(now), s.parked.len)
		more := most - s.events
		if a.sharing.Load() == 0 {
			more -= s.out
		}
		for ; room > 0 && more > 0; room-- {
			e, events := s.parked.pop()
			entries = append(entries, e)
			s.given++
			s.events += events
			s.moved = now
			more -= events
		}
		if s.parked.len == 0 && s.out+s.given == 0 && left < -probeLease {
			a.remove(key)
		}
	}
	return entries, wait, a.changed
}

// parked is a list of records without their data, the first one first. Two bytes
// for each are enough, nearly always: 13 million, which a spool of 10 GiB holds,
// take 26 MB.
type parked struct {
	len   int
	bytes []byte // for each, how far its ID is from the one before, its tries, and its events if they are not one
	read  int    // how many bytes of it are done with
	first ID     // the last ID that was taken out
	last  ID     // the last that was put in
}

func (p *parked) push(e Entry, events int) {
	p.bytes = binary.AppendVarint(p.bytes, int64(e.ID-p.last)) //nolint:gosec // G115: the same bits, back in pop
	if events == 1 {
		p.bytes = binary.AppendUvarint(p.bytes, uint64(e.Tries)<<1) //nolint:gosec // G115: a count
	} else {
		p.bytes = binary.AppendUvarint(p.bytes, uint64(e.Tries)<<1|1) //nolint:gosec // G115: a count
		p.bytes = binary.AppendUvarint(p.bytes, uint64(events))       //nolint:gosec // G115: a count
	}
	p.last = e.ID
	p.len++
}

func (p *parked) pop() (e Entry, events int) {
	step, n := binary.Varint(p.bytes[p.read:])
	tries, m := binary.Uvarint(p.bytes[p.read+n:])
	p.read += n + m
	events = 1
	if tries&1 != 0 {
		count, n := binary.Uvarint(p.bytes[p.read:])
		p.read += n
		events = int(count) //nolint:gosec // G115: it was an int
	}
	p.first += ID(step) //nolint:gosec // G115: the same bits as in push
	p.len--
	e = Entry{ID: p.first, Tries: int(tries >> 1)}
	switch {
	case p.len == 0:
		*p = parked{}
	case p.read > len(p.bytes)/2 && p.read > 1<<10:
		p.bytes = append([]byte(nil), p.bytes[p.read:]...)
		p.read = 0
	}
	return e, events
}
