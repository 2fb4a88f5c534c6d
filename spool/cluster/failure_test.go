package cluster

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/td-postback/gateway/spool"
)

// leader is the server that leads a stream of records.
func leader(t testing.TB, l *Log) *node {
	t.Helper()
	var name string
	until(t, "a server leads", func() bool {
		info, err := l.records.Info(t.Context())
		if err != nil || info.Cluster == nil {
			return false
		}
		name = info.Cluster.Leader
		return name != ""
	})
	return cluster(t)[name[1]-'1'] // n1, n2, n3
}

// ledger counts records by id: how often each was acknowledged to its producer,
// and how often it was given out.
type ledger struct {
	mu     sync.Mutex
	kept   map[string]bool
	given  map[string]int
	failed int
}

// produce appends records with ids of their own until stop is closed.
func (b *ledger) produce(l *Log, producer int, stop <-chan struct{}) {
	for i := 0; ; i++ {
		select {
		case <-stop:
			return
		default:
		}
		id := fmt.Sprintf("%d-%d", producer, i)
		err := l.Append(testQueue, spool.Record{Arrival: arrival, Data: []byte(id)})
		b.mu.Lock()
		if err == nil {
			b.kept[id] = true
		} else {
			b.failed++
		}
		b.mu.Unlock()
	}
}

// consume takes and acks records until ctx ends.
func (b *ledger) consume(ctx context.Context, q spool.Queue) {
	for ctx.Err() == nil {
		entries, err := q.Take(ctx, 100)
		if err != nil {
			select {
			case <-ctx.Done():
			case <-time.After(pause):
			}
			continue
		}
		for _, e := range entries {
			b.mu.Lock()
			b.given[string(e.Data)]++
			b.mu.Unlock()
			q.Ack(e)
		}
	}
}

// count says how many records were acknowledged, how many of these were never
// given out, and how often records were given out once more.
func (b *ledger) count() (kept, missing, again int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for id := range b.kept {
		if b.given[id] == 0 {
			missing++
		}
	}
	for _, n := range b.given {
		again += n - 1
	}
	return len(b.kept), missing, again
}

// awaitKept waits until so many more records are kept.
func (b *ledger) awaitKept(t testing.TB, more int) {
	t.Helper()
	before, _, _ := b.count()
	until(t, "records are kept", func() bool {
		now, _, _ := b.count()
		return now >= before+more
	})
}

// The server that leads dies under load and comes back. Two gateways share the
// cluster.
func TestServerDies(t *testing.T) {
	shorter := func(c *Config) { c.Timeout, c.ackWait = 0, 3*time.Second }
	gateways := []*Log{open(t, cluster(t), shorter), open(t, cluster(t), shorter)}
	book := &ledger{kept: map[string]bool{}, given: map[string]int{}}
	stop := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var producers, consumers sync.WaitGroup
	for i := range 32 {
		producers.Go(func() { book.produce(gateways[i%2], i, stop) })
	}
	for _, l := range gateways {
		consumers.Go(func() { book.consume(ctx, l.Queue(testQueue)) })
	}
	book.awaitKept(t, 500)
	victim := leader(t, gateways[0])
	kill(t, victim)
	killed := time.Now()
	book.awaitKept(t, 500)
	down := time.Since(killed)
	victim.Start(t)
	book.awaitKept(t, 500)
	close(stop)
	producers.Wait()
	depth(t, gateways[0], testQueue, 0, 0)
	cancel()
	consumers.Wait()

	kept, missing, again := book.count()
	t.Logf("%d records kept, %d appends failed, %d records given out again; 500 records were kept %s after the kill", kept, book.failed, again, down)
	if missing != 0 {
		t.Errorf("%d of %d acknowledged records were never given out", missing, kept)
	}
	// What was with the gateways at that moment, and no more: what a Take of
	// each gives out, and acks that were on their way.
	if again > 400 {
		t.Errorf("%d records were given out again", again)
	}
}

// Without a majority nothing is kept and nothing is promised.
func TestMajorityLost(t *testing.T) {
	const limit = 2 * time.Second // silence is noticed within it
	l := open(t, cluster(t), func(c *Config) { c.Timeout = limit })
	addLate(t, l, testQueue, "before")
	q := l.Queue(testQueue)
	held := take(t, q, 1)[0]
	victims := cluster(t)[:2]
	for _, n := range victims {
		kill(t, n)
	}
	var failures sync.WaitGroup
	var unavailable atomic.Int64
	for range 8 {
		failures.Go(func() {
			began := time.Now()
			err := l.Append(testQueue, spool.Record{Arrival: arrival, Data: []byte("lost or not")})
			if took := time.Since(began); took > limit+2*resend {
				t.Errorf("an append took %s", took)
			}
			if errors.Is(err, spool.ErrUnavailable) {
				unavailable.Add(1)
			}
		})
	}
	failures.Wait()
	if unavailable.Load() != 8 {
		t.Errorf("%d of 8 appends said that the spool is not available", unavailable.Load())
	}
	for range 100 { // nobody waits any more
		began := time.Now()
		err := l.Append(testQueue, spool.Record{Arrival: arrival, Data: []byte("not sent")})
		if took := time.Since(began); !errors.Is(err, spool.ErrUnavailable) || took > atOnce {
			t.Fatalf("a later append: %v after %s", err, took)
		}
	}
	began := time.Now()
	err := l.AppendAll(testQueue, []spool.Record{{Arrival: arrival, Data: []byte("not sent")}, {Arrival: arrival, Data: []byte("not sent")}})
	if took := time.Since(began); !errors.Is(err, spool.ErrUnavailable) || took > atOnce {
		t.Errorf("records that belong together: %v after %s", err, took)
	}
	ctx, cancel := context.WithTimeout(t.Context(), wait)
	defer cancel()
	// What is not acknowledged may be kept all the same, and is then the letter that stays.
	if err := q.BuryRest(held, held.Data, spool.Verdict{Status: 400, Reason: "refused"}); !errors.Is(err, spool.ErrUnavailable) {
		t.Errorf("BuryRest: %v", err)
	}
	if err := q.Bury(held, spool.Verdict{Status: 400, Reason: "refused"}); !errors.Is(err, spool.ErrUnavailable) {
		t.Errorf("Bury: %v", err)
	}
	if _, err := q.Take(ctx, 1); !errors.Is(err, spool.ErrUnavailable) {
		t.Errorf("Take: %v", err)
	}
	for _, n := range victims {
		n.Start(t)
	}
	other, err := jetstream.New(direct(t, cluster(t)[2]))
	if err != nil {
		t.Fatal(err)
	}
	until(t, "the servers take what somebody else sends", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), resend)
		defer cancel()
		_, err := other.Publish(ctx, l.recordSubject("_other"), nil)
		return err == nil
	})
	again := time.Now()
	addLate(t, l, testQueue, "after")
	if took := time.Since(again); took > 2*time.Second {
		t.Errorf("the servers take records, and are used after %s", took)
	}
	until(t, "a record is buried", func() bool { return q.Bury(held, spool.Verdict{Status: 400, Reason: "refused"}) == nil })
	var letters []spool.Letter
	until(t, "dead letters can be listed", func() bool {
		letters, err = l.Letters(testQueue, 0, 10)
		return err == nil
	})
	if len(letters) != 1 || string(letters[0].Data) != "before" {
		t.Errorf("dead letters: %+v", letters)
	}
	for seen := map[string]bool{}; !seen["after"]; {
		entries, err := q.Take(ctx, 10)
		if err != nil && !errors.Is(err, spool.ErrUnavailable) {
			t.Fatal(err)
		}
		for _, e := range entries {
			seen[string(e.Data)] = true
			q.Ack(e)
		}
		if seen["before"] {
			t.Error("what was buried was given out again")
		}
		if seen["not sent"] {
			t.Error("what was refused at once was kept nevertheless")
		}
	}
}
