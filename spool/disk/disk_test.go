package disk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/td-postback/gateway/spool"
)

const q1 = "https://us01.records.in.treasuredata.com"

var arrivalTime = time.UnixMilli(1_700_000_000_123)

// events gathers what a Log reports.
type events struct {
	mu  sync.Mutex
	all []spool.Event
}

func (e *events) add(ev spool.Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.all = append(e.all, ev)
}

func (e *events) of(kind spool.EventKind) (found []spool.Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, ev := range e.all {
		if ev.Kind == kind {
			found = append(found, ev)
		}
	}
	return found
}

func open(t testing.TB, cfg Config) *Disk {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	d, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

func shut(t testing.TB, d *Disk) {
	t.Helper()
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
}

func add(t testing.TB, d *Disk, data string) {
	t.Helper()
	if err := d.Append(q1, spool.Record{Arrival: arrivalTime, Data: []byte(data)}); err != nil {
		t.Fatal(err)
	}
}

// take takes n records.
func take(t testing.TB, d *Disk, n int) []spool.Entry {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var all []spool.Entry
	for len(all) < n {
		entries, err := d.Queue(q1).Take(ctx, n-len(all))
		if err != nil {
			t.Fatalf("after %d of %d records: %v", len(all), n, err)
		}
		all = append(all, entries...)
	}
	return all
}

// takeAll takes what is there, until nothing can come any more.
func takeAll(t testing.TB, what string, d *Disk) (all []spool.Entry) {
	t.Helper()
	q := d.queue(q1)
	for end := time.Now().Add(30 * time.Second); ; {
		entries, _ := q.take(100, false)
		all = append(all, entries...)
		q.mu.Lock()
		settled := len(entries) == 0 && len(q.later.laters)+len(q.due.laters) == 0
		for _, s := range q.segments {
			if s.damaged || !s.read && (s != q.active || s.cursor < s.last) {
				settled = false
			}
		}
		q.mu.Unlock()
		if settled {
			return all
		}
		if len(entries) == 0 {
			if time.Now().After(end) {
				t.Fatalf("%s: after %d records, no more come", what, len(all))
			}
			_ = q.await(t.Context(), time.Millisecond)
		}
	}
}

// eventually waits for something that another goroutine does.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("never: " + what)
		}
	}
}

func segmentFiles(t testing.TB, dir string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*", "*"+segmentSuffix))
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// diskUse is what the files take together.
func diskUse(t testing.TB, dir string) (bytes int64) {
	t.Helper()
	for _, path := range segmentFiles(t, dir) {
		if info, err := os.Stat(path); err == nil {
			bytes += info.Size()
		}
	}
	return bytes
}

func data(entries []spool.Entry) (all []string) {
	for _, e := range entries {
		all = append(all, string(e.Data))
	}
	return all
}

func expect(t testing.TB, what string, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Fatalf("%s: %d records %.200q, want %d: %.200q", what, len(got), got, len(want), want)
	}
}

func expectDepth(t testing.TB, d *Disk, records, dead int) {
	t.Helper()
	depth, err := d.Depth(q1)
	if err != nil || depth.Records != records || depth.Dead != dead || depth.Oldest.IsZero() != (records == 0) {
		t.Fatalf("the depth is %+v, want %d records and %d dead letters; %v", depth, records, dead, err)
	}
}

func TestAppendTakeAck(t *testing.T) {
	t.Parallel()
	for _, key := range [][]byte{nil, bytes.Repeat([]byte{7}, spool.KeySize)} {
		dir := t.TempDir()
		d := open(t, Config{Dir: dir, Key: key})
		records := []spool.Record{
			{Arrival: arrivalTime, Data: []byte(`{"a":1}`)},
			{Arrival: arrivalTime.Add(time.Hour), Data: nil},
			{Arrival: arrivalTime.Add(-time.Hour), Data: bytes.Repeat([]byte{0, 255, 0xf5}, 1<<20)},
			{Arrival: arrivalTime, Data: []byte("d")},
		}
		for _, r := range records {
			if err := d.Append(q1, r); err != nil {
				t.Fatal(err)
			}
		}
		entries := take(t, d, len(records))
		for i, e := range entries {
			if !bytes.Equal(e.Data, records[i].Data) || !e.Arrival.Equal(records[i].Arrival) || e.Tries != 0 || i > 0 && e.ID <= entries[i-1].ID {
				t.Errorf("record %d is not as it was", i)
			}
		}
		expectDepth(t, d, 4, 0)
		for _, i := range []int{3, 0, 1, 3} {
			d.Queue(q1).Ack(entries[i])
		}
		expectDepth(t, d, 1, 0)
		if depth, _ := d.Depth(q1); !depth.Oldest.Equal(records[2].Arrival) {
			t.Errorf("the oldest is of %s", depth.Oldest)
		}
		shut(t, d)
		d = open(t, Config{Dir: dir, Key: key})
		expectDepth(t, d, 1, 0)
		if e := take(t, d, 1)[0]; !bytes.Equal(e.Data, records[2].Data) || e.ID != entries[2].ID {
			t.Errorf("got record %d after a restart", e.ID)
		}
		shut(t, d)
	}
}

func TestOrderOverManySegments(t *testing.T) {
	t.Parallel()
	cfg := Config{Dir: t.TempDir(), MaxSize: 4 << 20}
	d := open(t, cfg)
	want := make([]string, 600)
	for i := range want {
		want[i] = fmt.Sprintf("%d %s", i, strings.Repeat("x", 1000))
		add(t, d, want[i])
		if i%150 == 149 {
			shut(t, d)
			d = open(t, cfg)
		}
	}
	if n := len(segmentFiles(t, cfg.Dir)); n < 4 {
		t.Fatalf("%d segments: this test needs several", n)
	}
	entries := take(t, d, 600)
	expect(t, "taken", data(entries), want...)
	records, err := d.Records(q1, entries[99].ID, 200)
	if err != nil {
		t.Fatal(err)
	}
	expect(t, "shown", data(records), want[100:300]...)
	// All that is acked gives its space back, in whatever order that is.
	for i := range entries {
		d.Queue(q1).Ack(entries[(i*7)%600])
	}
	eventually(t, "the files are gone", func() bool { return len(segmentFiles(t, cfg.Dir)) == 0 })
	expectDepth(t, d, 0, 0)
	eventually(t, "they are not counted", func() bool { used, _ := d.Size(); return used == 0 })
}

func TestQueuesAreApart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	d := open(t, Config{Dir: dir})
	if len(d.Queues()) > 0 {
		t.Errorf("a new Log has queues %v", d.Queues())
	}
	names := []string{"http://localhost:8080/a?b=c", "https://ap01.example", "https://us01.example"}
	for _, name := range names {
		if err := d.Append(name, spool.Record{Data: []byte(name)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "lost+found"), 0); err != nil { // as in the root of a disk
		t.Fatal(err)
	}
	for range 2 {
		if !slices.Equal(d.Queues(), names) {
			t.Errorf("the queues are %v", d.Queues())
		}
		for _, name := range names {
			entries, err := d.Queue(name).Take(t.Context(), 10)
			if err != nil {
				t.Fatal(err)
			}
			expect(t, name, data(entries), name)
		}
		shut(t, d)
		d = open(t, Config{Dir: dir})
	}
	if depth, err := d.Depth("https://nobody.example"); err != nil || depth != (spool.Depth{}) {
		t.Errorf("a queue that is not there has %+v, %v", depth, err)
	}
	if letters, err := d.Letters("https://nobody.example", 0, 1); err != nil || len(letters) > 0 {
		t.Errorf("a queue that is not there has %v, %v", letters, err)
	}
}

// TestTakeWaitsForTheCommit takes while a commit has been written, and its sync has
// not returned: if that fails, the caller is told that its record is not kept.
func TestTakeWaitsForTheCommit(t *testing.T) {
	t.Parallel()
	d := open(t, Config{})
	for _, s := range []string{"a", "b", "c"} {
		add(t, d, s)
	}
	q := d.queue(q1)
	durable := func(moved spool.ID) {
		q.mu.Lock()
		defer q.mu.Unlock()
		q.active.last += moved
	}
	durable(^spool.ID(0)) // back to b
	expect(t, "before the sync", data(takeAll(t, "before the sync", d)), "a", "b")
	durable(+1)
	expect(t, "behind it", data(takeAll(t, "behind it", d)), "c")
}

func TestLaterComesInDueOrder(t *testing.T) {
	t.Parallel()
	d := open(t, Config{})
	for _, s := range []string{"a", "b", "c", "d"} {
		add(t, d, s)
	}
	e := take(t, d, 3)
	q := d.Queue(q1)
	started := time.Now()
	q.Later(e[0], 120*time.Millisecond)
	q.Later(e[1], 60*time.Millisecond)
	q.Later(e[2], 0)
	again := take(t, d, 4)
	expect(t, "put back", data(again), "c", "d", "b", "a")
	if took := time.Since(started); took < 120*time.Millisecond {
		t.Errorf("all were there after %v", took)
	}
	for i, want := range []int{0, 0, 1, 1} { // c was given back at once
		if again[i].Tries != want {
			t.Errorf("%s was tried %d times before, want %d", again[i].Data, again[i].Tries, want)
		}
	}
	q.Later(again[3], time.Millisecond)
	if e := take(t, d, 1)[0]; e.Tries != 2 {
		t.Errorf("a record was tried %d times before, want 2", e.Tries)
	}
}

// What is new takes turns with what was put back: neither can keep the other
// waiting.
func TestNewRecordsTakeTurnsWithOthers(t *testing.T) {
	t.Parallel()
	d := open(t, Config{})
	for i := range 100 {
		add(t, d, fmt.Sprint(i))
	}
	q, newest, back := d.Queue(q1), -1, 0
	for _, e := range take(t, d, 10) {
		q.Later(e, 0)
	}
	for range 40 {
		e := take(t, d, 1)[0]
		if n, _ := strconv.Atoi(string(e.Data)); n >= 10 {
			newest = n
		} else {
			back++
		}
		q.Later(e, 0) // there is always one
	}
	if newest < 25 || back < 5 {
		t.Errorf("of 40 records, %d had been put back, and new ones came to number %d", back, newest)
	}
}

// The newest record comes first when it is asked for, and once.
func TestTakeNewest(t *testing.T) {
	t.Parallel()
	d := open(t, Config{})
	newest := func() string {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		entries, err := d.Queue(q1).TakeNewest(ctx)
		if err != nil || len(entries) != 1 {
			t.Fatalf("%d records, %v", len(entries), err)
		}
		return string(entries[0].Data)
	}
	for i := range 10 {
		add(t, d, fmt.Sprint(i))
	}
	expect(t, "the newest", []string{newest(), newest()}, "9", "0") // there is none newer than 9
	add(t, d, "10")
	e, err := d.Queue(q1).TakeNewest(t.Context())
	if err != nil || string(e[0].Data) != "10" {
		t.Fatalf("got %s, %v", data(e), err)
	}
	d.Queue(q1).Ack(e[0])
	add(t, d, "11")
	expect(t, "the others", data(takeAll(t, "the others", d)), "1", "2", "3", "4", "5", "6", "7", "8", "11")
}

func TestTakeEndsWithItsContext(t *testing.T) {
	t.Parallel()
	d := open(t, Config{})
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(10*time.Millisecond, cancel)
	if entries, err := d.Queue(q1).Take(ctx, 1); !errors.Is(err, context.Canceled) || len(entries) > 0 {
		t.Errorf("Take gives %v, %v", entries, err)
	}
	add(t, d, "a")
	expect(t, "afterwards", data(take(t, d, 1)), "a")
}

func TestDeadLetters(t *testing.T) {
	t.Parallel()
	cfg := Config{Dir: t.TempDir()}
	d := open(t, cfg)
	for _, s := range []string{"a", "b", "c", "d", "e"} {
		add(t, d, s)
	}
	e := take(t, d, 5)
	before := time.Now().Truncate(time.Millisecond)
	for i, status := range map[int]int{1: 413, 2: 0, 3: 403} {
		if err := d.Queue(q1).Bury(e[i], spool.Verdict{Status: status, Reason: strings.Repeat("too old ", status), Words: strings.Repeat("no ", status)}); err != nil {
			t.Fatal(err)
		}
	}
	d.Queue(q1).Ack(e[4])
	for range 2 {
		expectDepth(t, d, 1, 3)
		letters, err := d.Letters(q1, 0, 10)
		if err != nil || len(letters) != 3 {
			t.Fatalf("%d dead letters, %v", len(letters), err)
		}
		first := letters[0]
		if first.Status != 413 || first.Reason != strings.Repeat("too old ", 25) || first.Words != strings.Repeat("no ", 100)[:200] || first.Died.Before(before) || string(first.Data) != "b" ||
			first.ID != e[1].ID || first.Queue != q1 || !first.Arrival.Equal(arrivalTime) || letters[1].Verdict != (spool.Verdict{}) {
			t.Errorf("a dead letter is %+v", first)
		}
		if rest, err := d.Letters(q1, first.ID, 1); err != nil || len(rest) != 1 || string(rest[0].Data) != "c" {
			t.Errorf("behind the first comes %+v, %v", rest, err)
		}
		records, err := d.Records(q1, 0, 10)
		if err != nil {
			t.Fatal(err)
		}
		expect(t, "to be delivered", data(records), "a")
		shut(t, d)
		d = open(t, cfg)
	}
	if n, err := d.Replay(q1, e[3].ID, e[1].ID, e[1].ID, e[0].ID, 1, 1<<63); n != 2 || err != nil {
		t.Errorf("%d were replayed, %v", n, err)
	}
	if n, err := d.Drop(q1, e[2].ID, e[0].ID, 12345); n != 1 || err != nil {
		t.Errorf("%d were dropped, %v", n, err)
	}
	expectDepth(t, d, 3, 0)
	expect(t, "replayed before they were read", data(takeAll(t, "", d)), "a", "b", "d")
	shut(t, d)
	d = open(t, cfg)
	expect(t, "after a restart", data(takeAll(t, "", d)), "a", "b", "d")
}

// A record that was replayed comes once, whether Take is before or behind it.
// A record that was replayed says so, after a restart too, with a key and without.
func TestReplayedIsKnown(t *testing.T) {
	t.Parallel()
	for name, key := range map[string][]byte{"plain": nil, "sealed": bytes.Repeat([]byte{7}, spool.KeySize)} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			d := open(t, Config{Dir: dir, Key: key})
			add(t, d, "a letter")
			add(t, d, "no letter")
			e := take(t, d, 2)
			for range 2 { // it may die and be replayed again
				if err := d.Queue(q1).Bury(e[0], spool.Verdict{Reason: "too_old"}); err != nil {
					t.Fatal(err)
				}
				if n, err := d.Replay(q1, e[0].ID); n != 1 || err != nil {
					t.Fatalf("%d were replayed, %v", n, err)
				}
				again := take(t, d, 1)[0]
				if !again.Replayed || string(again.Data) != "a letter" || !again.Arrival.Equal(arrivalTime) {
					t.Errorf("got %+v", again.Record)
				}
			}
			shut(t, d)
			d = open(t, Config{Dir: dir, Key: key})
			e = take(t, d, 2)
			if !e[0].Replayed || string(e[0].Data) != "a letter" || e[1].Replayed || string(e[1].Data) != "no letter" {
				t.Errorf("after a restart: %+v", e)
			}
			shut(t, d)
		})
	}
}

func TestReplayWhileTaking(t *testing.T) {
	t.Parallel()
	d := open(t, Config{Dir: t.TempDir()})
	for i := range 200 {
		add(t, d, fmt.Sprint(i))
	}
	var ids []spool.ID
	for i, e := range take(t, d, 200) {
		if i%2 == 0 {
			ids = append(ids, e.ID)
			if err := d.Queue(q1).Bury(e, spool.Verdict{Status: 400, Reason: "no"}); err != nil {
				t.Fatal(err)
			}
		}
	}
	shut(t, d)
	d = open(t, Config{Dir: d.cfg.Dir})
	done := make(chan error, 1)
	go func() {
		for i := range ids {
			if n, err := d.Replay(q1, ids[len(ids)-1-i]); n != 1 || err != nil {
				done <- fmt.Errorf("%d replayed, %w", n, err)
				return
			}
		}
		done <- nil
	}()
	seen := map[string]int{}
	for _, e := range take(t, d, 200) {
		seen[string(e.Data)]++
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if more := takeAll(t, "replayed", d); len(seen) != 200 || len(more) > 0 {
		t.Errorf("%d of 200 records came, and %d again", len(seen), len(more))
	}
}

// Everything at once: counted by what is in the records, each comes once.
func TestManyProducersOneTaker(t *testing.T) {
	t.Parallel()
	const producers, each = 32, 150
	var records, commits atomic.Int64
	cfg := Config{Dir: t.TempDir(), MaxSize: 8 << 20, OnCommit: func(n int, took time.Duration) {
		records.Add(int64(n))
		commits.Add(1)
		if took <= 0 {
			t.Error("a commit took no time")
		}
	}}
	d := open(t, cfg)
	q := d.Queue(q1)
	var producing, burying sync.WaitGroup
	for p := range producers {
		producing.Go(func() {
			for i := range each {
				add(t, d, fmt.Sprintf("%d-%d %s", p, i, strings.Repeat("x", 400)))
			}
		})
	}
	seen := map[string]int{}
	var held []spool.Entry
	letters := 0
	for len(seen) < producers*each {
		entries := take(t, d, 1)
		for _, e := range entries {
			if e.Tries == 0 {
				seen[string(e.Data)]++
			}
			switch {
			case e.ID%10 == 0 && e.Tries == 0:
				q.Later(e, time.Millisecond)
			case e.ID%10 == 1:
				letters++
				burying.Go(func() {
					if err := q.Bury(e, spool.Verdict{Status: 400, Reason: "no"}); err != nil {
						t.Error(err)
					}
				})
			default:
				held = append(held, e)
			}
		}
		if len(held) > 100 { // out of order
			for i := range held {
				q.Ack(held[(i*37)%len(held)])
			}
			held = held[:0]
			_, _ = d.Depth(q1)
			_, _ = d.Records(q1, 0, 3)
			_, _ = d.Letters(q1, 0, 3)
			_, _ = d.Size()
		}
	}
	producing.Wait()
	for _, e := range append(held, takeAll(t, "the rest", d)...) {
		if e.ID%10 == 1 && e.Tries == 0 {
			t.Errorf("%s came again", e.Data)
		}
		q.Ack(e)
	}
	burying.Wait()
	for text, n := range seen {
		if n != 1 {
			t.Errorf("%.20s came %d times", text, n)
		}
	}
	expectDepth(t, d, 0, letters)
	if records.Load() != producers*each {
		t.Errorf("%d records were in commits, want %d", records.Load(), producers*each)
	}
	t.Logf("%.3f commits per record", float64(commits.Load())/float64(records.Load()))
	shut(t, d)
	d = open(t, cfg)
	expectDepth(t, d, 0, letters)
}

// expectUsed wants that what is counted is what the files take.
func expectUsed(t testing.TB, d *Disk) {
	t.Helper()
	eventually(t, "what is counted as used is what the files take", func() bool {
		used, _ := d.Size()
		return used+d.usedByDead.Load() == diskUse(t, d.cfg.Dir)
	})
}

func TestFullSpoolRefuses(t *testing.T) {
	t.Parallel()
	for _, size := range []int{300, 3000, 15000, 100_000} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			t.Parallel()
			const limit = 4 << 20
			var ev events
			d := open(t, Config{Dir: memoryDir(t), MaxSize: limit, OnEvent: ev.add})
			var refused atomic.Int64
			for range 2 {
				var wg sync.WaitGroup
				for range 16 {
					wg.Go(func() {
						for {
							err := d.Append(q1, spool.Record{Arrival: arrivalTime, Data: make([]byte, size)})
							if errors.Is(err, spool.ErrFull) {
								refused.Add(1)
								return
							}
							if err != nil {
								t.Error(err)
								return
							}
						}
					})
				}
				wg.Wait()
				if use := diskUse(t, d.cfg.Dir); use > limit+limit/20 || use < limit*7/10 {
					t.Errorf("refused at %d bytes, the limit is %d", use, limit)
				}
				if used, most := d.Size(); most != limit || used < limit*7/10 {
					t.Errorf("Size gives %d of %d", used, most)
				}
				expectUsed(t, d)
				for _, e := range takeAll(t, "full", d) {
					d.Queue(q1).Ack(e)
				}
				eventually(t, "there is room again", func() bool {
					return d.Append(q1, spool.Record{Data: make([]byte, size)}) == nil
				})
			}
			if refused.Load() != 32 {
				t.Errorf("%d Appends were refused", refused.Load())
			}
			if n := len(ev.of(spool.NearlyFull)); n != 2 {
				t.Errorf("%d warnings, want one each time", n)
			}
			shut(t, d)
			d = open(t, Config{Dir: d.cfg.Dir})
			expectUsed(t, d)
		})
	}
}

func TestSetLimits(t *testing.T) {
	t.Parallel()
	d := open(t, Config{Dir: memoryDir(t), MaxSize: 1 << 20})
	record := spool.Record{Arrival: arrivalTime, Data: make([]byte, 10_000)}
	fill := func() (err error) {
		for range 1000 {
			if err = d.Append(q1, record); err != nil {
				return err
			}
		}
		return nil
	}
	if err := fill(); !errors.Is(err, spool.ErrFull) {
		t.Fatalf("10 MB in 1 MiB: %v", err)
	}
	if err := d.SetLimits(64<<20, 1); err != nil {
		t.Fatal(err)
	}
	if err := fill(); err != nil {
		t.Errorf("with a larger limit: %v", err)
	}
	if err := d.SetLimits(2<<20, 1); err != nil {
		t.Fatal(err)
	}
	if err := d.Append(q1, record); !errors.Is(err, spool.ErrFull) {
		t.Errorf("with a smaller limit: %v", err)
	}
	if used, limit := d.Size(); limit != 2<<20 || used < 10_000_000 {
		t.Errorf("Size gives %d of %d", used, limit)
	}
	if err := d.SetLimits(minMaxSize-1, 1); err == nil {
		t.Error("a limit that is too small was taken")
	}
}

// Many queues that were drained leave room for another.
func TestDrainedQueuesLeaveRoom(t *testing.T) {
	t.Parallel()
	d := open(t, Config{Dir: memoryDir(t), MaxSize: minMaxSize})
	for i := range 9 {
		name := fmt.Sprintf("https://region%d.example", i)
		for range 100 {
			if err := d.Append(name, spool.Record{Data: make([]byte, 1000)}); err != nil {
				t.Fatalf("queue %d: %v", i, err)
			}
		}
		q := d.queue(name)
		for taken := 0; taken < 100; {
			entries, err := q.Take(t.Context(), 100)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				q.Ack(e)
			}
			taken += len(entries)
		}
		eventually(t, "the acks are on disk", func() bool {
			q.mu.Lock()
			defer q.mu.Unlock()
			for _, s := range q.segments {
				if s.acked.count > 0 {
					return false
				}
				s.used = s.used.Add(-idleFile) // some seconds later
			}
			return true
		})
		eventually(t, "the file is gone", func() bool { used, _ := d.Size(); return used == 0 })
	}
}

// One record that nobody takes does not keep a whole file.
func TestSparseFilesAreMadeSmaller(t *testing.T) {
	t.Parallel()
	d := open(t, Config{Dir: memoryDir(t), MaxSize: 8 << 20})
	for i := range 2500 {
		add(t, d, fmt.Sprintf("%d %s", i, strings.Repeat("x", 1000)))
	}
	q := d.queue(q1)
	want := map[string]bool{}
	var letters []spool.ID
	for i, e := range take(t, d, 2500) {
		switch i % 500 {
		case 7:
			want[string(e.Data)] = true
		case 8:
			letters = append(letters, e.ID)
			if err := q.Bury(e, spool.Verdict{Status: 400, Reason: "no"}); err != nil {
				t.Fatal(err)
			}
		default:
			q.Ack(e)
		}
	}
	full := diskUse(t, d.cfg.Dir)
	eventually(t, "the files are smaller", func() bool {
		q.mu.Lock()
		for _, s := range q.segments {
			s.changed = s.changed.Add(-settledFile)
		}
		q.mu.Unlock()
		return diskUse(t, d.cfg.Dir) < full/2
	})
	expectUsed(t, d)
	for range 2 {
		got, err := d.Letters(q1, 0, 100)
		if err != nil || len(got) != len(letters) {
			t.Fatalf("%d dead letters, want %d; %v", len(got), len(letters), err)
		}
		expectDepth(t, d, len(want), len(letters))
		records, err := d.Records(q1, 0, 100)
		if err != nil || len(records) != len(want) {
			t.Fatalf("%d records, want %d; %v", len(records), len(want), err)
		}
		for _, e := range records {
			if !want[string(e.Data)] {
				t.Errorf("%.10s is there", e.Data)
			}
		}
		shut(t, d)
		d = open(t, d.cfg)
	}
	if n, err := d.Replay(q1, letters...); n != len(letters) || err != nil {
		t.Errorf("%d of %d were replayed, %v", n, len(letters), err)
	}
	if got := takeAll(t, "all", d); len(got) != len(want)+len(letters) {
		t.Errorf("%d records come, want %d", len(got), len(want)+len(letters))
	}
}

// Without Close, acks reach the disk soon, also while others append: a copy of
// the directory is what a killed process leaves.
func TestAcksAreOnDiskSoon(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	d := open(t, Config{Dir: dir})
	for i := range 100 {
		add(t, d, fmt.Sprint(i))
	}
	shut(t, d)
	d = open(t, Config{Dir: dir}) // the records are in a sealed file now
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				add(t, d, "more")
			}
		}
	})
	for i, e := range take(t, d, 100) {
		if i%2 == 0 {
			d.Queue(q1).Ack(e)
		}
	}
	path := segmentFiles(t, dir)[0]
	eventually(t, "the acks are on disk", func() bool {
		s := &segment{path: path}
		found, err := s.load()
		return err == nil && found.live == 50
	})
	close(stop)
	wg.Wait()
}

func TestClose(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for range 10 {
		d := open(t, Config{Dir: dir})
		var wg sync.WaitGroup
		var durable atomic.Int64
		for range 16 {
			wg.Go(func() {
				for {
					err := d.Append(q1, spool.Record{Arrival: arrivalTime, Data: []byte("x")})
					if errors.Is(err, spool.ErrClosed) {
						return
					}
					if err != nil {
						t.Error(err)
						return
					}
					durable.Add(1)
				}
			})
		}
		wg.Go(func() {
			for {
				entries, err := d.Queue(q1).Take(t.Context(), 10)
				if errors.Is(err, spool.ErrClosed) {
					return
				}
				if err != nil {
					t.Error(err)
					return
				}
				for _, e := range entries[:len(entries)/2] {
					d.Queue(q1).Ack(e)
				}
			}
		})
		eventually(t, "there are records", func() bool { return durable.Load() > 50 })
		shut(t, d)
		wg.Wait()
		// Nothing opens a file after that: the next one has the directory.
		_, _ = d.Depth(q1)
		_, _ = d.Records(q1, 0, 1)
		if err := d.Queue(q1).Bury(spool.Entry{ID: 1 << 62}, spool.Verdict{}); !errors.Is(err, spool.ErrClosed) {
			t.Errorf("Bury gives %v", err)
		}
		d2 := open(t, Config{Dir: dir})
		all := takeAll(t, "opened again", d2)
		if len(all) == 0 {
			t.Error("no records are left")
		}
		for _, e := range all {
			d2.Queue(q1).Ack(e)
		}
		shut(t, d2)
		if files := segmentFiles(t, dir); len(files) > 0 {
			t.Errorf("%v is left of an empty queue", files)
		}
		shut(t, d)
	}
}

func TestIdleLogDoesNothing(t *testing.T) {
	d := open(t, Config{})
	for i := range 50 {
		if err := d.Append(fmt.Sprint("https://", i), spool.Record{Data: []byte("x")}); err != nil {
			t.Fatal(err)
		}
	}
	before := cpu()
	time.Sleep(2 * time.Second)
	used := cpu() - before
	t.Logf("50 idle queues took %v in 2 s", used)
	if used > 200*time.Millisecond {
		t.Error("that is not idle")
	}
}

// However many segments there are, few files are open.
func TestFewFilesAreOpen(t *testing.T) {
	dir := memoryDir(t)
	q := (&Disk{cfg: Config{Dir: dir}}).newQueue(q1)
	q.disk.maxSize.Store(minMaxSize)
	if err := os.Mkdir(q.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for i := range 300 {
		s, err := q.createSegment(spool.ID(i + 1))
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := s.commit(&change{putID: spool.ID(i + 1), puts: [][]byte{s.coder.encode(nil, spool.ID(i+1), spool.Record{})}}); err != nil {
			t.Fatal(err)
		}
		s.retire()
	}
	d := open(t, Config{Dir: dir})
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	if len(files) > 100 {
		t.Errorf("%d files are open", len(files))
	}
	entries := []spool.Entry{}
	for len(entries) < 300 {
		some, err := d.Queue(q1).Take(t.Context(), 10)
		if err != nil {
			t.Fatal(err)
		}
		entries = append(entries, some...)
	}
}

// While v2 is down, the files that are full are closed: their pages would be memory.
func TestFullFilesOfABacklogAreClosed(t *testing.T) {
	t.Parallel()
	d := open(t, Config{Dir: memoryDir(t), MaxSize: 8 << 20}) // segments of 1 MiB
	for range 25 {
		add(t, d, strings.Repeat("x", 100_000))
	}
	q := d.queue(q1)
	q.mu.Lock()
	segments := q.segments
	q.mu.Unlock()
	for i, s := range segments {
		s.open.Lock()
		if isOpen := s.db != nil; isOpen != (i == len(segments)-1) {
			t.Errorf("file %d of %d is open: %t", i, len(segments), isOpen)
		}
		s.open.Unlock()
	}
	if got := takeAll(t, "all", d); len(segments) < 3 || len(got) != 25 {
		t.Errorf("%d records come out of %d files", len(got), len(segments))
	}
}

func TestKeyEncryptsTheDisk(t *testing.T) {
	t.Parallel()
	const secret = "1234/0123456789abcdef"
	dir := t.TempDir()
	d := open(t, Config{Dir: dir})
	add(t, d, "plain")
	shut(t, d)
	key := bytes.Repeat([]byte{1}, spool.KeySize)
	d = open(t, Config{Dir: dir, Key: key})
	for range 20 {
		add(t, d, secret)
	}
	for _, e := range take(t, d, 4) {
		if err := d.Queue(q1).Bury(e, spool.Verdict{Status: 403, Reason: "no"}); err != nil {
			t.Fatal(err)
		}
	}
	shut(t, d)
	plain := 0
	for _, path := range segmentFiles(t, dir) {
		content, err := os.ReadFile(path) //nolint:gosec // G304: the test's own file
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(content, []byte(secret)) {
			t.Errorf("the secret is in %s", path)
		}
		if bytes.Contains(content, []byte("plain")) {
			plain++
		}
	}
	if plain != 1 {
		t.Errorf("%d files are not encrypted, want the first alone", plain)
	}
	for _, wrong := range [][]byte{nil, bytes.Repeat([]byte{2}, spool.KeySize)} {
		if _, err := Open(Config{Dir: dir, Key: wrong}); !errors.Is(err, ErrKey) {
			t.Errorf("opened with a wrong key: %v", err)
		}
	}
	d = open(t, Config{Dir: dir, Key: key})
	all := takeAll(t, "with the key", d)
	letters, err := d.Letters(q1, 0, 10)
	if err != nil || len(letters) != 5 || len(all) != 16 || string(all[0].Data) != secret {
		t.Errorf("%d records and %d dead letters, %v", len(all), len(letters), err)
	}
}

func TestConfigIsChecked(t *testing.T) {
	t.Parallel()
	for want, cfg := range map[string]Config{
		"max_size 1000: must be at least 1048576": {Dir: t.TempDir(), MaxSize: 1000},
		"the key has 31 bytes: it must have 32":   {Dir: t.TempDir(), Key: make([]byte, 31)},
		"not a directory":                         {Dir: "/dev/null"},
	} {
		if _, err := Open(cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want an error with %q, got %v", want, err)
		}
	}
	d := open(t, Config{})
	if err := d.Append(q1, spool.Record{Data: make([]byte, maxRecord+1)}); !errors.Is(err, spool.ErrUnavailable) {
		t.Errorf("a huge record gives %v", err)
	}
	if err := d.Append(q1, spool.Record{Data: make([]byte, maxRecord)}); err != nil {
		t.Errorf("the largest record gives %v", err)
	}
	if e := take(t, d, 1)[0]; len(e.Data) != maxRecord {
		t.Errorf("the largest record comes with %d bytes", len(e.Data))
	}
}
