package caddymodule

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/td-postback/gateway/console"
)

// This file takes a sample of the calls for the console, while somebody looks.

const (
	sampleSize  = 20
	samplePause = 100 * time.Millisecond // so that a busy gateway does not feel it
	lookPause   = 20 * time.Second       // longer, and nobody looks any more
)

// consoleLook says whether somebody looks at a console.
var consoleLook looking

// looking has when somebody looked last, as uptime; 0 for nobody.
type looking struct{ last atomic.Int64 }

func (l *looking) look() { l.last.Store(int64(uptime())) }

// now reports whether somebody looks, and notes it if nobody does any more. It is cheap
// when nobody does.
func (l *looking) now() bool {
	last := l.last.Load()
	if last == 0 {
		return false
	}
	if int64(uptime())-last < int64(lookPause) {
		return true
	}
	if l.last.CompareAndSwap(last, 0) {
		sampled.forget()
	}
	return false
}

// sampled is the sample.
var sampled sample

type sample struct {
	last atomic.Int64 // when a call was taken, as uptime

	mu    sync.Mutex
	calls []console.Call // the newest comes last
}

// take takes a call that has ended, unless another one was taken just now.
func (s *sample) take(c *call) {
	now, last := int64(uptime()), s.last.Load()
	if now-last < int64(samplePause) || !s.last.CompareAndSwap(last, now) {
		return
	}
	to := c.Shown()
	shown := console.Call{
		Time: time.Now(), Table: tableName(to.Database, to.Table), Surface: c.Kind.String(), Lane: c.lane.String(), Result: c.result,
		Status: c.trip.Status, Took: c.trip.Duration,
	}
	if key := c.Key(); key != "" {
		shown.Key = fingerprintOf(key)
	}
	if !s.mu.TryLock() {
		return // a page reads it: no call waits for that
	}
	defer s.mu.Unlock()
	if len(s.calls) == sampleSize {
		s.calls = slices.Delete(s.calls, 0, 1)
	}
	s.calls = append(s.calls, shown)
}

// newest are the calls, the newest first.
func (s *sample) newest() []console.Call {
	s.mu.Lock()
	defer s.mu.Unlock()
	calls := slices.Clone(s.calls)
	slices.Reverse(calls)
	return calls
}

func (s *sample) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls = nil
}

// tellConsole tells the console of a call that has ended.
func (c *call) tellConsole() {
	if c.to != nil && c.trip.Status >= 400 {
		noteFailure(c.to.host, c.trip.Status, c.trip.Words)
	}
	if consoleLook.now() {
		sampled.take(c)
	}
}

// tableName is a table's name with that of its database, or what there is of both.
func tableName(database, table string) string {
	if database == "" || table == "" {
		return database + table
	}
	return database + "." + table
}
