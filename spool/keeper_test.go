package spool_test

import (
	"context"
	"errors"
	"reflect"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/td-postback/gateway/spool"
)

// The v2 hosts of these tests.
const (
	tokyo = "https://tokyo.example"
	seoul = "https://seoul.example"
)

// legacy is a host of these tests to which only a configuration that names it can
// deliver.
const legacy = "legacy+https://legacy.example"

// keeping is a Keeper of a Log in memory, and what it has told.
type keeping struct {
	*spool.Keeper
	log *memoryLog

	mu      sync.Mutex
	opens   int
	openErr error             // what opening the Log returns
	opening chan struct{}     // if not nil, opening begins and ends with a receive from it
	report  func(spool.Event) // the Log's
	events  []spool.Event
	fates   map[spool.Fate]int
}

var errMisfit = errors.New("another process has it")

// newKeeping makes a Keeper that has nothing open. It is closed at the end.
func newKeeping(t *testing.T) *keeping {
	k := &keeping{log: newMemoryLog(), fates: map[spool.Fate]int{}}
	k.Keeper = spool.NewKeeper(spool.Setup{
		Place: "here",
		Open: func(_ context.Context, report func(spool.Event)) (spool.Log, error) {
			if k.opening != nil {
				<-k.opening
				<-k.opening
			}
			k.mu.Lock()
			defer k.mu.Unlock()
			k.opens++
			k.report = report
			if k.openErr != nil {
				return nil, k.openErr
			}
			return k.log, nil
		},
		Final:  []error{errMisfit},
		Events: readSeveral,
		Rest:   restOf,
		Report: func(e spool.Event) {
			k.mu.Lock()
			defer k.mu.Unlock()
			k.events = append(k.events, e)
		},
		OnFate: func(_ string, fate spool.Fate, _ spool.Result) {
			k.mu.Lock()
			defer k.mu.Unlock()
			k.fates[fate]++
		},
	})
	t.Cleanup(func() {
		if err := k.Close(); err != nil {
			t.Error(err)
		}
	})
	return k
}

// failOpen has the Log fail to open, or not.
func (k *keeping) failOpen(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.openErr = err
}

// opened is how often the Log was opened, or that was tried.
func (k *keeping) opened() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.opens
}

// told is how often a fate was.
func (k *keeping) told(fate spool.Fate) int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.fates[fate]
}

// kinds are the kinds of the events so far.
func (k *keeping) kinds() (kinds []spool.EventKind) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, e := range k.events {
		kinds = append(kinds, e.Kind)
	}
	return kinds
}

// host is a v2 as a Sender.
type host struct {
	server
	batches batchServer
	closed  atomic.Bool
}

func (h *host) Send(data []byte) spool.Result         { return h.send(data) }
func (h *host) Part(e spool.Entry) (spool.Part, bool) { return h.batches.part(e) }
func (h *host) Close()                                { h.closed.Store(true) }
func (h *host) SendBatch(group string, records [][]byte) spool.BatchResult {
	return h.batches.send(group, records)
}

// configuration is a Block, and the v2 hosts that it has been asked for.
type configuration struct {
	*spool.Block
	mu    sync.Mutex
	hosts map[string]*host
}

// configure makes a Block for some targets. It can deliver to https hosts.
func configure(maxSize int64, rate int, targets ...string) *configuration {
	c := &configuration{hosts: map[string]*host{}}
	c.Block = &spool.Block{
		Targets: targets,
		MaxSize: maxSize,
		Limits:  spool.Limits{InFlight: 10, Rate: rate, MaxAge: 6 * day},
		Sender: func(target string) (spool.Sender, error) {
			if target == "garbage" || target == legacy && !slices.Contains(targets, legacy) {
				return nil, errors.New("no host")
			}
			c.mu.Lock()
			defer c.mu.Unlock()
			c.hosts[target] = &host{}
			return c.hosts[target], nil
		},
	}
	return c
}

// host is what delivers a queue by this configuration, or nil.
func (c *configuration) host(target string) *host {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.hosts[target]
}

// asked is how many hosts the configuration has made.
func (c *configuration) asked() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.hosts)
}

// got is how many records a host has got by this configuration.
func (c *configuration) got(target string) int {
	h := c.host(target)
	if h == nil {
		return 0
	}
	got, _ := h.seen()
	return len(got)
}

func put(t *testing.T, o *spool.Outbox, records int) {
	t.Helper()
	for i := range records {
		if err := o.Put(spool.Record{Arrival: time.Now(), Data: []byte(strconv.Itoa(i))}, false); err != nil {
			t.Fatal(err)
		}
	}
}

// TestKeeperWaitsForAccept takes a configuration through its life: nothing is
// opened before the first record or Open, and nothing delivered before Accept.
func TestKeeperWaitsForAccept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKeeping(t)
		c := configure(1<<20, 1000, tokyo)
		o := k.Attach(c.Block)[tokyo]
		synctest.Wait()
		if k.opened() != 0 || k.Begun() || k.Log() != nil {
			t.Errorf("Attach has opened the Log %d times", k.opened())
		}
		put(t, o, 3) // a server of the configuration may begin before Open is called
		if err := k.Open(); err != nil || k.opened() != 1 || !k.Begun() {
			t.Errorf("%v, opened %d times", err, k.opened())
		}
		time.Sleep(time.Minute)
		if c.asked() != 0 || k.log.limit != 0 {
			t.Errorf("before Accept: %d hosts, max_size %d", c.asked(), k.log.limit)
		}
		k.Accept(c.Block)
		time.Sleep(time.Second)
		if c.got(tokyo) != 3 || k.told(spool.Delivered) != 3 || k.log.limit != 1<<20 {
			t.Errorf("after Accept: %d records, %d delivered, max_size %d", c.got(tokyo), k.told(spool.Delivered), k.log.limit)
		}
		k.Detach(c.Block)
		if err := k.Close(); err != nil || !k.log.closed || !c.host(tokyo).closed.Load() {
			t.Errorf("%v, the Log is closed: %t, the host: %t", err, k.log.closed, c.host(tokyo).closed.Load())
		}
		if err := k.Open(); !errors.Is(err, spool.ErrClosed) {
			t.Errorf("Open after Close: %v", err)
		}
	})
}

// TestKeeperOpensOnce has records come while the Log is being opened: they wait
// for it, and none is refused.
func TestKeeperOpensOnce(t *testing.T) {
	const callers = 10
	k := newKeeping(t)
	k.opening = make(chan struct{})
	o := k.Attach(configure(1<<20, 1000, tokyo).Block)[tokyo]
	results := make(chan error, callers+1)
	go func() { results <- k.Open() }()
	k.opening <- struct{}{} // it has begun
	for range callers {
		go func() { results <- o.Put(spool.Record{Arrival: time.Now()}, true) }()
	}
	select {
	case err := <-results:
		t.Errorf("before the Log is open: %v", err)
		results <- err
	case <-time.After(20 * time.Millisecond): // enough to be refused
	}
	close(k.opening)
	for range callers + 1 {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	if k.opened() != 1 || k.log.queue(tokyo).count(waiting) != callers {
		t.Errorf("opened %d times, %d records", k.opened(), k.log.queue(tokyo).count(waiting))
	}
}

// TestKeeperKeepsToWhatRuns loads a configuration that fails after its Block was
// attached, and then one that is accepted: only the second changes the rate,
// the size and who delivers.
func TestKeeperKeepsToWhatRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKeeping(t)
		runs := configure(1<<30, 10, tokyo)
		o := k.Attach(runs.Block)[tokyo]
		if err := k.Open(); err != nil {
			t.Fatal(err)
		}
		k.Accept(runs.Block)
		put(t, o, 1000)
		time.Sleep(10 * time.Second)
		before := runs.got(tokyo)

		fails := configure(1<<20, 1, tokyo, seoul)
		k.Attach(fails.Block)
		if err := k.Open(); err != nil || k.opened() != 1 {
			t.Errorf("%v, opened %d times", err, k.opened())
		}
		time.Sleep(10 * time.Second)
		if n := runs.got(tokyo) - before; n < 99 || n > 101 {
			t.Errorf("%d records in 10 s at 10 a second, with a configuration that is not accepted", n)
		}
		k.Detach(fails.Block)
		if fails.asked() != 0 || k.log.limit != 1<<30 || slices.Contains(k.log.Queues(), seoul) {
			t.Errorf("it has changed something: %d hosts, max_size %d, queues %q", fails.asked(), k.log.limit, k.log.Queues())
		}

		next := configure(1<<21, 100, tokyo)
		if k.Attach(next.Block)[tokyo] != o {
			t.Error("the queue has two outboxes")
		}
		k.Accept(next.Block)
		time.Sleep(time.Second) // what the old configuration has on its way
		before = next.got(tokyo)
		k.Detach(runs.Block)
		time.Sleep(5 * time.Second)
		if n := next.got(tokyo) - before; n < 499 || n > 501 || k.log.limit != 1<<21 || !runs.host(tokyo).closed.Load() {
			t.Errorf("%d records in 5 s at 100 a second, max_size %d, the old host is closed: %t", n, k.log.limit, runs.host(tokyo).closed.Load())
		}
	})
}

// TestKeeperChoosesSender has two Blocks share a spool that has a third queue
// from before: each queue is delivered by the Block that it is a target of, and
// the third by the last Block.
func TestKeeperChoosesSender(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKeeping(t)
		const left = "https://left.example"
		k.log.queue(left).append("a")
		k.log.queue("garbage").append("b")
		first, second := configure(1<<20, 1000, tokyo), configure(1<<20, 1000, seoul)
		put(t, k.Attach(first.Block)[tokyo], 1)
		put(t, k.Attach(second.Block)[seoul], 2)
		k.Accept(first.Block)
		k.Accept(second.Block)
		time.Sleep(time.Second)
		got := []int{first.got(tokyo), first.got(seoul), first.got(left), second.got(tokyo), second.got(seoul), second.got(left)}
		// The first was alone for a moment, and may have delivered all.
		if got[0] != 1 || got[3] != 0 || got[1]+got[4] != 2 || got[2]+got[5] != 1 {
			t.Errorf("delivered: %v", got)
		}
		k.log.queue(left).append("c")
		k.log.queue(seoul).append("d")
		time.Sleep(time.Second)
		if second.got(left) != got[5]+1 || second.got(seoul) != got[4]+1 {
			t.Errorf("both accepted: %d and %d records", second.got(left), second.got(seoul))
		}
		if n := k.log.queue("garbage").count(waiting) + k.log.queue("garbage").count(held); n != 1 || k.told(spool.Retried) > 0 {
			t.Errorf("%d records for nobody, %d retried", n, k.told(spool.Retried))
		}
	})
}

// TestKeeperSendsBatches has a configuration without batches replaced by one that
// has them, and by none again.
func TestKeeperSendsBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKeeping(t)
		for round, most := range []int{0, 500, 0} {
			c := configure(1<<20, 1000, tokyo)
			c.Limits.Batching = spool.Batching{Most: most, Wait: batchWait}
			o := k.Attach(c.Block)[tokyo]
			k.Accept(c.Block)
			put(t, o, 10)
			time.Sleep(time.Second)
			batches := 0
			if most > 0 {
				batches = 10 // each is its own group
			}
			if got := len(c.host(tokyo).batches.sizes()); got != batches || c.got(tokyo) != 10-batches {
				t.Errorf("configuration %d: %d in batches, %d alone", round, got, c.got(tokyo))
			}
			defer k.Detach(c.Block)
		}
	})
}

// TestKeeperSendsAlone has a queue whose records share no request beside one whose do.
func TestKeeperSendsAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKeeping(t)
		c := configure(1<<20, 1000, tokyo, legacy)
		c.Limits.Batching = spool.Batching{Most: 500, Wait: batchWait}
		c.Alone = []string{legacy}
		boxes := k.Attach(c.Block)
		k.Accept(c.Block)
		put(t, boxes[tokyo], 10)
		put(t, boxes[legacy], 10)
		time.Sleep(time.Second)
		if alone, batched := c.host(legacy), c.host(tokyo); len(alone.batches.sizes()) != 0 || c.got(legacy) != 10 || len(batched.batches.sizes()) == 0 || c.got(tokyo) != 0 {
			t.Errorf("%d of the legacy host's in batches, %d alone; %d and %d of v2's", len(alone.batches.sizes()), c.got(legacy), len(batched.batches.sizes()), c.got(tokyo))
		}
	})
}

// TestKeeperStranded takes a queue's host out of the configuration, and brings it back.
// Meanwhile its records go nowhere, also not by what has delivered them before, and each
// configuration tells of them once.
func TestKeeperStranded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKeeping(t)
		told := func() (n int) {
			k.mu.Lock()
			defer k.mu.Unlock()
			for _, e := range k.events {
				if e.Kind == spool.Stranded && e.Queue == legacy && e.Records == 3 {
					n++
				}
			}
			return n
		}
		with := configure(1<<20, 1000, tokyo, legacy)
		boxes := k.Attach(with.Block)
		k.Accept(with.Block)
		time.Sleep(time.Second)
		without := configure(1<<20, 1000, tokyo)
		k.Attach(without.Block)
		k.Accept(without.Block)
		put(t, boxes[legacy], 1)
		time.Sleep(time.Second)
		if with.got(legacy) != 1 || told() != 0 {
			t.Errorf("as long as one knows the host, it gets %d records, and it is told %d times", with.got(legacy), told())
		}
		for range 3 {
			k.log.queue(legacy).append("a")
		}
		k.Detach(with.Block)
		time.Sleep(time.Hour)
		if with.got(legacy)+without.got(legacy) != 1 || told() != 1 {
			t.Errorf("then it gets %d records, and it is told %d times", with.got(legacy)+without.got(legacy), told())
		}
		k.Accept(without.Block)
		again := configure(1<<20, 1000, tokyo)
		k.Attach(again.Block)
		k.Accept(again.Block)
		k.Detach(without.Block)
		time.Sleep(time.Second)
		if told() != 2 {
			t.Errorf("the next one tells of it %d times", told()-1)
		}
		back := configure(1<<20, 1000, tokyo, legacy)
		k.Attach(back.Block)
		k.Accept(back.Block)
		k.Detach(again.Block)
		time.Sleep(time.Second)
		if back.got(legacy) != 3 || told() != 2 {
			t.Errorf("when it is back, it gets %d records, and it is told %d times", back.got(legacy), told()-2)
		}
	})
}

// TestKeeperOpenFails has the Log fail to open: for good, and then until the
// disk works again.
func TestKeeperOpenFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKeeping(t)
		c := configure(1<<20, 1000, tokyo)
		o := k.Attach(c.Block)[tokyo]
		k.failOpen(errMisfit)
		if err := k.Open(); !errors.Is(err, errMisfit) || k.Begun() || len(k.kinds()) != 0 {
			t.Errorf("for good: %v, %q", err, k.kinds())
		}
		if err := o.Put(spool.Record{}, true); !errors.Is(err, spool.ErrUnavailable) || !errors.Is(err, errMisfit) {
			t.Errorf("a record: %v", err)
		}

		k.failOpen(errBroken)
		if err := k.Open(); err != nil || !k.Begun() {
			t.Errorf("for now: %v", err)
		}
		k.Accept(c.Block)
		if err := o.Put(spool.Record{}, true); !errors.Is(err, spool.ErrUnavailable) {
			t.Errorf("a record: %v", err)
		}
		if status := k.Status(); status.Available || status.Health() != spool.HealthDegraded {
			t.Errorf("status: %+v", status)
		}
		fail(&o.Circuit, 5)
		if status := k.Status(); status.Available || status.Health() != spool.HealthRefusing {
			t.Errorf("with v2 down: %+v", status)
		}
		o.Success()
		time.Sleep(time.Minute)
		if want := []spool.EventKind{spool.Failed}; !slices.Equal(k.kinds(), want) || k.opened() < 10 {
			t.Errorf("told %q, opened %d times", k.kinds(), k.opened())
		}
		k.failOpen(nil)
		time.Sleep(6 * time.Second)
		put(t, o, 2)
		time.Sleep(time.Second)
		if want := []spool.EventKind{spool.Failed, spool.Recovered}; !slices.Equal(k.kinds(), want) || c.got(tokyo) != 2 {
			t.Errorf("told %q, delivered %d records", k.kinds(), c.got(tokyo))
		}
	})
}

// TestKeeperFindsQueues has a Log that cannot name its queues in time of
// trouble: they are delivered when that is over.
func TestKeeperFindsQueues(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKeeping(t)
		k.log.queue(seoul).append("a")
		k.log.set(func() { k.log.hidden = true })
		c := configure(1<<20, 1000, tokyo)
		k.Attach(c.Block)
		if err := k.Open(); err != nil {
			t.Fatal(err)
		}
		k.Accept(c.Block)
		time.Sleep(time.Second)
		if c.got(seoul) != 0 {
			t.Error("it knows a queue that it cannot see")
		}
		k.log.set(func() { k.log.hidden = false })
		k.report(spool.Event{Kind: spool.Recovered})
		time.Sleep(time.Second)
		if c.got(seoul) != 1 {
			t.Errorf("it has delivered %d records", c.got(seoul))
		}
	})
}

// TestKeeperReportsTheLog has the Log fail to give out records.
func TestKeeperReportsTheLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKeeping(t)
		c := configure(1<<20, 1000, tokyo)
		k.log.queue(tokyo).fail(errBroken, nil)
		k.Attach(c.Block)
		if err := k.Open(); err != nil {
			t.Fatal(err)
		}
		k.Accept(c.Block)
		time.Sleep(time.Second)
		k.mu.Lock()
		defer k.mu.Unlock()
		if len(k.events) != 1 || k.events[0].Kind != spool.Unreadable || k.events[0].Queue != tokyo || !errors.Is(k.events[0].Err, errBroken) {
			t.Errorf("told %+v", k.events)
		}
	})
}

// TestStatus is what a status says in trouble and after it. Asking twice says
// the same, and changes nothing.
func TestStatus(t *testing.T) {
	unavailable := errors.Join(spool.ErrUnavailable, errBroken)
	for name, c := range map[string]struct {
		trouble func(l *memoryLog) // while a record is refused
		after   func(l *memoryLog) // since then
		want    spool.Health       // while v2 is up
		down    spool.Health       // while it is down
	}{
		"a disk that refuses records": {
			func(l *memoryLog) { l.appendErr, l.depth.Refusing = unavailable, true }, func(*memoryLog) {}, spool.HealthDegraded, spool.HealthRefusing,
		},
		"a disk that takes records again": {
			func(l *memoryLog) { l.appendErr, l.depth.Refusing = unavailable, true }, func(l *memoryLog) { l.depth.Refusing = false }, spool.HealthOK, spool.HealthDegraded,
		},
		"a cluster that does not answer": {
			func(l *memoryLog) { l.appendErr, l.depthErr = unavailable, unavailable }, func(*memoryLog) {}, spool.HealthDegraded, spool.HealthRefusing,
		},
		"a cluster that does not even name the queue": {
			func(l *memoryLog) { l.appendErr, l.depthErr, l.hidden = unavailable, unavailable, true }, func(*memoryLog) {}, spool.HealthDegraded, spool.HealthRefusing,
		},
		"a cluster that answers again": {
			func(l *memoryLog) { l.appendErr, l.depthErr = unavailable, unavailable }, func(l *memoryLog) { l.depthErr = nil }, spool.HealthOK, spool.HealthDegraded,
		},
		"a file that cannot be read": {
			func(l *memoryLog) { l.appendErr, l.depthErr = errBroken, errBroken }, func(*memoryLog) {}, spool.HealthOK, spool.HealthDegraded,
		},
		"full": {
			func(l *memoryLog) { l.appendErr, l.used = spool.ErrFull, 95 }, func(*memoryLog) {}, spool.HealthDegraded, spool.HealthRefusing,
		},
		"no longer full": {
			func(l *memoryLog) { l.appendErr, l.used = spool.ErrFull, 95 }, func(l *memoryLog) { l.used = 50 }, spool.HealthOK, spool.HealthDegraded,
		},
		"nearly full": {
			func(l *memoryLog) { l.used = 85 }, func(*memoryLog) {}, spool.HealthDegraded, spool.HealthDegraded,
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := newKeeping(t)
				block := configure(100, 1000, tokyo)
				o := k.Attach(block.Block)[tokyo]
				if err := k.Open(); err != nil {
					t.Fatal(err)
				}
				k.Accept(block.Block)
				if status := k.Status(); status.Health() != spool.HealthOK || status.Spool != "here" || status.MaxBytes != 100 {
					t.Errorf("at first: %+v", status)
				}
				k.log.set(func() { c.trouble(k.log) })
				_ = o.Put(spool.Record{Data: []byte("x")}, false)
				synctest.Wait()
				k.log.set(func() { c.after(k.log) })
				status := k.Status()
				if got := status.Health(); got != c.want {
					t.Errorf("got %s, want %s: %+v", got, c.want, status)
				}
				if again := k.Status(); !reflect.DeepEqual(status, again) {
					t.Errorf("first %+v\nthen %+v", status, again)
				}
				fail(&o.Circuit, 5)
				status = k.Status()
				if got := status.Health(); got != c.down {
					t.Errorf("with v2 down, got %s, want %s: %+v", got, c.down, status)
				}
			})
		})
	}
}

// TestStatusOfQueues counts records and dead letters, and says that v2 is down.
func TestStatusOfQueues(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKeeping(t)
		c := configure(1<<20, 1000, tokyo)
		o := k.Attach(c.Block)[tokyo]
		if err := k.Open(); err != nil {
			t.Fatal(err)
		}
		// A queue is there before its first record: who watches it must see the
		// first dead letter come.
		if queues := k.Status().Queues; !reflect.DeepEqual(queues, []spool.QueueStatus{{Name: tokyo}}) {
			t.Errorf("before the first record: %+v", queues)
		}
		put(t, o, 1)
		arrived := time.Now()
		k.log.set(func() { k.log.depth.Oldest = arrived })
		o.Failure(time.Now().Add(time.Second), time.Hour)
		status := k.Status()
		want := spool.Status{
			Spool: "here", Available: true,
			Queues: []spool.QueueStatus{{Name: tokyo, Records: 1, Oldest: &arrived, Down: true}},
		}
		if !reflect.DeepEqual(status, want) || status.Health() != spool.HealthDegraded {
			t.Errorf("got %+v, %s\nwant %+v", status, status.Health(), want)
		}
		o.Success()
		refuses := &host{}
		refuses.always(spool.Result{Status: 403})
		c.Sender = func(string) (spool.Sender, error) { return refuses, nil }
		k.Accept(c.Block)
		time.Sleep(time.Second)
		if q := k.Status().Queues[0]; q.Records != 0 || q.Dead != 1 || q.Down {
			t.Errorf("after a refusal: %+v", q)
		}
	})
}

// TestKeeperSendsSeveral has records with several events, put together, go as the
// Setup says. The rate does not limit what arrives.
func TestKeeperSendsSeveral(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKeeping(t)
		c := configure(1<<20, 1, tokyo)
		o := k.Attach(c.Block)[tokyo]
		k.Accept(c.Block)
		records := []spool.Record{
			{Arrival: time.Now(), Data: []byte(several("a:1", "a:2"))},
			{Arrival: time.Now(), Data: []byte(several("b:1", "b:2", "b:3"))},
			{Arrival: time.Now(), Data: []byte("alone:1")},
		}
		put(t, o, 1) // opens the Log
		time.Sleep(time.Second)
		if err := o.PutAll(records, 6); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		got := c.host(tokyo).batches.sizes()
		slices.Sort(got)
		if !slices.Equal(got, []int{2, 3}) || c.got(tokyo) != 2 {
			t.Errorf("requests with %d events, %d records alone", got, c.got(tokyo))
		}

		k.log.set(func() { k.log.appendErr = spool.ErrFull })
		if err := o.PutAll(records, 6); !errors.Is(err, spool.ErrFull) {
			t.Errorf("without room: %v", err)
		}
		k.log.set(func() { k.log.used, k.log.limit = 1<<20, 1<<20 })
		if !k.Status().Full {
			t.Error("the spool is not taken to be full")
		}
	})
}
