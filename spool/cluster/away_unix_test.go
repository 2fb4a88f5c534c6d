//go:build unix

package cluster

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/td-postback/gateway/spool"
)

// A cluster that is silent costs the first callers Timeout, and no other caller
// anything. When it is back, it is used within two seconds. Only the first callers'
// records were sent, and may be kept.
func TestSilentCluster(t *testing.T) {
	t.Parallel()
	const timeout = 3 * time.Second
	n := single(t, "max_payload: 4MB")
	var said events
	l := open(t, []*node{n}, func(c *Config) { c.Replicas, c.Timeout, c.OnEvent = 1, timeout, said.add })
	addLate(t, l, testQueue, "a")
	n.Pause(t)
	t.Cleanup(func() { n.Resume(t) })

	var first sync.WaitGroup
	began := time.Now()
	for range 8 {
		first.Go(func() {
			if err := l.Append(testQueue, spool.Record{Arrival: arrival, Data: []byte("c")}); !errors.Is(err, spool.ErrUnavailable) || !errors.Is(err, spool.ErrMaybeKept) {
				t.Errorf("one of the first: %v", err)
			}
		})
	}
	first.Wait()
	if took := time.Since(began); took > timeout+2*resend {
		t.Errorf("the first callers waited for %s", took)
	}
	for range 100 {
		began := time.Now()
		err := l.Append(testQueue, spool.Record{Arrival: arrival, Data: []byte("d")})
		if took := time.Since(began); !errors.Is(err, spool.ErrUnavailable) || errors.Is(err, spool.ErrMaybeKept) || took > atOnce {
			t.Fatalf("a later caller: %v after %s", err, took)
		}
	}
	until(t, "that is told", func() bool { return strings.Contains(said.String(), "NATS acknowledges no records") })
	if d, _ := l.Depth(testQueue); !d.Refusing {
		t.Error("the queue does not say that it refuses records")
	}

	n.Resume(t)
	began = time.Now()
	addLate(t, l, testQueue, "e")
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("it was used again after %s", took)
	}
	until(t, "that is told", func() bool { return strings.Contains(said.String(), "NATS acknowledges records again") })
}

// Who asks a silent cluster what it holds, waits for a second, for all figures
// and with all others who ask, and gets what was known before.
func TestSilentFigures(t *testing.T) {
	t.Parallel()
	n := single(t, "max_payload: 4MB")
	l := open(t, []*node{n}, func(c *Config) { c.Replicas = 1 })
	add(t, l, testQueue, "a", "b")
	add(t, l, "https://other", "c")
	before := depth(t, l, testQueue, 2, 0)
	used, limit := l.Size()
	n.Pause(t)
	t.Cleanup(func() { n.Resume(t) })
	ask := func() {
		if u, m := l.Size(); u != used || m != limit || u == 0 {
			t.Errorf("size: %d of %d, was %d of %d", u, m, used, limit)
		}
		if got := l.Queues(); len(got) != 2 {
			t.Errorf("queues: %q", got)
		}
		for range 10 {
			if d, err := l.Depth(testQueue); !errors.Is(err, spool.ErrUnavailable) || d != before {
				t.Errorf("depth: %+v, %v", d, err)
			}
		}
	}
	time.Sleep(censusAge) // until what was known counts as old
	for range 3 {         // the connection is given up meanwhile
		began := time.Now()
		var all sync.WaitGroup
		for range 8 {
			all.Go(ask)
		}
		all.Wait()
		if took := time.Since(began); took > time.Second+atOnce {
			t.Errorf("waited for %s", took)
		}
		time.Sleep(2 * time.Second)
	}
	n.Resume(t)
	depth(t, l, testQueue, 2, 0)
}

// A server that reads nothing blocks who writes to it. That ends too.
func TestBlockedWrites(t *testing.T) {
	t.Parallel()
	const timeout = 3 * time.Second
	n := single(t, "max_payload: 4MB")
	l := open(t, []*node{n}, func(c *Config) { c.Replicas, c.Timeout = 1, timeout })
	addLate(t, l, testQueue, "a")
	n.Pause(t)
	t.Cleanup(func() { n.Resume(t) })
	began := time.Now()
	var all sync.WaitGroup
	for range 100 {
		all.Go(func() {
			if err := l.Append(testQueue, spool.Record{Arrival: arrival, Data: make([]byte, 1<<20)}); !errors.Is(err, spool.ErrUnavailable) {
				t.Errorf("an append: %v", err)
			}
		})
	}
	all.Wait()
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("callers waited for %s", took)
	}
}

// Limits that a silent cluster does not take hold nobody up, and are set when it
// is back.
func TestSilentLimits(t *testing.T) {
	t.Parallel()
	n := single(t, "max_payload: 4MB")
	l := open(t, []*node{n}, func(c *Config) { c.Replicas, c.ackWait = 1, time.Second })
	n.Pause(t)
	t.Cleanup(func() { n.Resume(t) })
	began := time.Now()
	if err := l.SetLimits(2<<20, 1<<20); !errors.Is(err, spool.ErrUnavailable) || time.Since(began) > time.Second+atOnce {
		t.Errorf("%v after %s", err, time.Since(began))
	}
	n.Resume(t)
	until(t, "the limit is set", func() bool { _, limit := l.Size(); return limit == 2<<20 })
	if _, limit := l.DeadSize(); limit != 1<<20 {
		t.Errorf("the limit of dead letters is %d", limit)
	}
}
