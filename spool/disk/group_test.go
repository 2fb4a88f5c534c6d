package disk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/td-postback/gateway/spool"
)

// This file tests records that belong together, and what is left of a request.

// group makes so many records that say which group they are of.
func group(id, n, size int) []spool.Record {
	records := make([]spool.Record, n)
	for i := range records {
		data := fmt.Appendf(nil, "%d %d %d ", id, i, n)
		records[i] = spool.Record{Arrival: arrivalTime, Data: append(data, bytes.Repeat([]byte("x"), size)...)}
	}
	return records
}

// expectWhole wants of each group either all records, in their order, or none, and
// returns which ones are there.
func expectWhole(t *testing.T, what string, d *Disk) map[int]bool {
	t.Helper()
	found, whole := map[int]int{}, map[int]bool{}
	for after := spool.ID(0); ; {
		entries, err := d.Records(q1, after, 1000)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if len(entries) == 0 {
			break
		}
		for _, e := range entries {
			var id, i, n int
			if _, err := fmt.Sscan(string(e.Data[:min(40, len(e.Data))]), &id, &i, &n); err != nil || i != found[id] {
				t.Fatalf("%s: record %d of group %d comes as number %d (%v)", what, i, id, found[id], err)
			}
			found[id]++
			whole[id] = found[id] == n
			after = e.ID
		}
	}
	for id, all := range whole {
		if !all {
			t.Fatalf("%s: of group %d there are only %d records", what, id, found[id])
		}
	}
	return whole
}

// Records that belong together are in one commit, however large they are together,
// and come in their order. They make no single record behind them wait for as many.
func TestAppendAll(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var commits []int
	d := open(t, Config{Dir: memoryDir(t), Key: bytes.Repeat([]byte{1}, spool.KeySize), OnCommit: func(n int, _ time.Duration) {
		mu.Lock()
		defer mu.Unlock()
		commits = append(commits, n)
	}})
	for id, records := range [][]spool.Record{group(0, 1, 10), group(1, 300, 100), group(2, 20, 2<<20), group(3, maxBatchRecords+1, 10), nil} {
		if err := d.AppendAll(q1, records); err != nil {
			t.Fatalf("group %d: %v", id, err)
		}
	}
	if got := fmt.Sprint(commits); got != fmt.Sprint([]int{1, 300, 20, maxBatchRecords + 1}) {
		t.Errorf("commits of %s records", got)
	}
	if n := d.queue(q1).enough; n != 1 {
		t.Errorf("a commit waits for %d callers after one", n)
	}
	if n := d.reserved.Load(); n != 0 {
		t.Errorf("%d bytes stay reserved", n)
	}
	shut(t, d)
	d = open(t, Config{Dir: d.cfg.Dir, Key: d.cfg.Key})
	if whole := expectWhole(t, "opened again", d); len(whole) != 4 {
		t.Errorf("groups %v are there, want 4", whole)
	}
}

// A request that is large does not make files larger by all of it: what is made
// smaller on a full disk must fit there once more.
func TestLargeGroupsHaveFilesOfTheirOwn(t *testing.T) {
	t.Parallel()
	d := open(t, Config{Dir: memoryDir(t), MaxSize: 64 << 20}) // segments of 8 MiB
	for id := range 3 {
		if err := errors.Join(d.AppendAll(q1, group(2*id, 20, 200_000)), d.AppendAll(q1, group(2*id+1, 5, 2_000_000))); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range segmentFiles(t, d.cfg.Dir) {
		if info, err := os.Stat(path); err != nil || info.Size() > 14_000_000 {
			t.Errorf("a file has %d bytes, and a group 10,000,000 (%v)", info.Size(), err)
		}
	}
	if whole := expectWhole(t, "there", d); len(whole) != 6 {
		t.Errorf("groups %v are there, want 6", whole)
	}
}

// A commit's copy of a large request does not stay in memory.
func TestLargeGroupLeavesMemory(t *testing.T) {
	t.Parallel()
	d := open(t, Config{Dir: memoryDir(t)})
	if err := d.AppendAll(q1, group(0, 5, 2_000_000)); err != nil {
		t.Fatal(err)
	}
	shut(t, d)
	if n := cap(d.queue(q1).values); n > maxBatchBytes {
		t.Errorf("%d bytes stay", n)
	}
}

// Without room for all of them, none is kept, and the room of those that would fit
// is there for others. Many at a time take no room from each other in vain.
func TestAppendAllWithoutRoom(t *testing.T) {
	t.Parallel()
	d := open(t, Config{Dir: memoryDir(t), MaxSize: 4 << 20})
	if err := d.AppendAll(q1, append(group(-1, 3, 10), spool.Record{Data: make([]byte, maxRecord+1)})); !errors.Is(err, spool.ErrUnavailable) {
		t.Errorf("with one that is too large: %v", err)
	}
	kept := map[int]bool{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for p := range 8 {
		wg.Go(func() {
			for id := p; ; id += 8 {
				switch err := d.AppendAll(q1, group(id, 1+id%40, 500)); {
				case errors.Is(err, spool.ErrFull):
					return
				case err != nil:
					t.Error(err)
					return
				}
				mu.Lock()
				kept[id] = true
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if err := d.AppendAll(q1, group(1<<20, 40, 100_000)); !errors.Is(err, spool.ErrFull) {
		t.Errorf("without room: %v", err)
	}
	if n := d.reserved.Load(); n != 0 {
		t.Errorf("%d bytes stay reserved", n)
	}
	whole := expectWhole(t, "full", d)
	for id := range kept {
		if !whole[id] {
			t.Errorf("group %d is missing", id)
		}
	}
	if len(whole) != len(kept) || len(kept) < 50 {
		t.Errorf("%d groups are there, want %d", len(whole), len(kept))
	}
	shut(t, d)
	if err := d.AppendAll(q1, group(0, 2, 10)); !errors.Is(err, spool.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}

// groupsUntilKilled appends groups from several producers, and says which ones are
// durable.
func groupsUntilKilled() error {
	cfg := crashConfig
	cfg.Dir, cfg.MaxSize = os.Getenv(childDir), 512<<20
	d, err := Open(cfg)
	if err != nil {
		return err
	}
	first, err := strconv.Atoi(os.Getenv(childFirst))
	if err != nil {
		return err
	}
	failed := make(chan error)
	for p := range crashProducers {
		go func() {
			for id := first + p; ; id += crashProducers {
				if err := d.AppendAll(q1, group(id, 1+id%50, 1+id%7*3000)); err != nil {
					failed <- err
					return
				}
				say("durable", id)
			}
		}()
	}
	return <-failed
}

// A process is killed again and again while it keeps groups of records: of each
// there is all or nothing, and all of what it said was durable.
func TestKilledBetweenRecordsThatBelongTogether(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	durable := map[int]bool{}
	for kill := range 8 {
		for _, line := range runAndKill(t, "groups", dir, kill*1_000_000, time.Duration(50+kill*37%100)*time.Millisecond) {
			var what string
			var id int
			if _, err := fmt.Sscan(line, &what, &id); err != nil || what != "durable" {
				t.Fatalf("the process said %q", line)
			}
			durable[id] = true
		}
		d := open(t, Config{Dir: dir, MaxSize: 512 << 20})
		whole := expectWhole(t, fmt.Sprintf("after kill %d", kill), d)
		for id := range durable {
			if !whole[id] {
				t.Fatalf("after kill %d: group %d is missing", kill, id)
			}
		}
		shut(t, d)
	}
	t.Logf("%d groups were durable", len(durable))
}

// The power fails while records that belong together are written: of the pages that
// their commit writes, any may be on the disk, but for the one that makes them count,
// which is written when the others are there.
func TestPowerCutInAGroup(t *testing.T) {
	t.Parallel()
	dir := memoryDir(t)
	d := open(t, Config{Dir: dir})
	add(t, d, "0 0 1 before")
	path := segmentFiles(t, dir)[0]
	read := func() []byte {
		content, err := os.ReadFile(path) //nolint:gosec // G304: the test's own file
		if err != nil {
			t.Fatal(err)
		}
		return content
	}
	before := read()
	if err := d.AppendAll(q1, group(1, 40, 3000)); err != nil {
		t.Fatal(err)
	}
	after := read()
	shut(t, d)
	size := len(after)
	before = append(before, make([]byte, size-len(before))...)
	random := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // the same in each run
	for cut := range 40 {
		content := bytes.Clone(before)
		for at := 2 * page; at < size; at += page { // the first two make a commit count
			if cut == 0 || random.IntN(40) >= cut {
				copy(content[at:at+page], after[at:])
			}
		}
		if whole := reopened(t, path, content); !whole[0] || whole[1] {
			t.Fatalf("cut %d: groups %v are there", cut, whole)
		}
	}
	if whole := reopened(t, path, after); !whole[0] || !whole[1] {
		t.Fatalf("groups %v are there after all", whole)
	}
}

// reopened says which groups are whole when a file's content is this.
func reopened(t *testing.T, path string, content []byte) map[int]bool {
	t.Helper()
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	d := open(t, Config{Dir: filepath.Dir(filepath.Dir(path))})
	defer shut(t, d)
	return expectWhole(t, "with other content", d)
}

// restKeys are with which a rest is kept.
var restKeys = map[string][]byte{"in clear": nil, "encrypted": bytes.Repeat([]byte{1}, spool.KeySize)}

// A letter of what is left of a request lists and replays with that and no more,
// after a restart too.
func TestBuryRest(t *testing.T) {
	t.Parallel()
	for name, key := range restKeys {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := Config{Dir: t.TempDir(), Key: key}
			d := open(t, cfg)
			add(t, d, "first")
			add(t, d, "taken, and left over")
			add(t, d, "last")
			e := take(t, d, 3)
			why := spool.Verdict{Status: 422, Reason: "refused", Words: "no such column"}
			rest := []byte("left over")
			if err := d.Queue(q1).BuryRest(e[1], rest, why); err != nil {
				t.Fatal(err)
			}
			clear(rest) // it is the caller's again
			for _, again := range e[:1] {
				d.Queue(q1).Ack(again)
			}
			expectDepth(t, d, 1, 1)
			if used, _ := d.DeadSize(); used > letterSize+recordOverhead+int64(len("left over")) {
				t.Errorf("it takes %d bytes", used)
			}
			shut(t, d)
			d = open(t, cfg)
			letters, err := d.Letters(q1, 0, 10)
			if err != nil || len(letters) != 1 {
				t.Fatalf("%d letters, %v", len(letters), err)
			}
			if l := letters[0]; l.ID != e[1].ID || string(l.Data) != "left over" || !l.Arrival.Equal(arrivalTime) || l.Verdict != why {
				t.Errorf("the letter is %+v", l)
			}
			if n, err := d.Replay(q1, e[1].ID); n != 1 || err != nil {
				t.Fatal(n, err)
			}
			for _, r := range take(t, d, 2) {
				if want := map[spool.ID]string{e[1].ID: "left over", e[2].ID: "last"}[r.ID]; string(r.Data) != want || r.Replayed != (want == "left over") {
					t.Errorf("%q came, replayed %t", r.Data, r.Replayed)
				}
				if r.ID == e[1].ID && r.Namespace != e[1].Namespace {
					t.Error("it has another name")
				}
			}
			content, err := os.ReadFile(segmentFiles(t, cfg.Dir)[0])
			if err != nil || bytes.Contains(content, []byte("left over")) != (key == nil) {
				t.Errorf("the rest is in clear: %t (%v)", key != nil, err)
			}
		})
	}
}

// What is left of a request counts by its own size, and what is gone is no letter.
func TestBuryRestHasRoom(t *testing.T) {
	t.Parallel()
	d := open(t, Config{Dir: t.TempDir(), DeadSize: 3000})
	q := d.Queue(q1)
	for range 4 {
		add(t, d, strings.Repeat("x", 100_000))
	}
	e := take(t, d, 4)
	refused := spool.Verdict{Status: 400, Reason: "refused"}
	for i, want := range []error{nil, nil, spool.ErrFull} {
		if err := q.BuryRest(e[i], make([]byte, 1000), refused); !errors.Is(err, want) {
			t.Fatalf("letter %d: %v, want %v", i, err, want)
		}
	}
	if err := q.BuryRest(e[3], make([]byte, 50_000), spool.Verdict{Reason: "too_old"}); err != nil {
		t.Errorf("what v2 has not refused: %v", err)
	}
	q.Later(e[2], 0)
	if again := take(t, d, 1)[0]; len(again.Data) != 100_000 {
		t.Errorf("after ErrFull, %d bytes come again", len(again.Data))
	}
	expectDepth(t, d, 1, 3)
	if n, err := d.Drop(q1, lettersOf(t, d)...); n != 3 || err != nil {
		t.Fatal(n, err)
	}
	if used, _ := d.DeadSize(); used != 0 {
		t.Errorf("without any, they take %d", used)
	}
	if err := q.BuryRest(e[0], []byte("rest"), refused); err != nil || len(lettersOf(t, d)) != 0 {
		t.Errorf("what was dropped is a letter again (%v)", err)
	}
	if n := d.dying.Load(); n != 0 {
		t.Errorf("%d bytes stay reserved", n)
	}
	shut(t, d)
	if err := q.BuryRest(e[2], []byte("rest"), refused); !errors.Is(err, spool.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}

// Of a request with a rest, a damaged file may still have the bytes of the whole. It
// is the rest that is salvaged: v2 has taken the others. In the same way, what was
// replayed is salvaged as that.
func TestSalvageTakesTheRest(t *testing.T) {
	t.Parallel()
	for name, key := range restKeys {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var ev events
			cfg := Config{Dir: memoryDir(t), Key: key, OnEvent: ev.add}
			d := open(t, cfg)
			want := map[spool.ID]string{}
			const records = 60
			for i := range records {
				add(t, d, fmt.Sprintf("%d whole %s", i, strings.Repeat("x", 2000)))
			}
			for i, e := range take(t, d, records) {
				want[e.ID] = fmt.Sprintf("%d rest", i)
				if err := d.Queue(q1).BuryRest(e, []byte(want[e.ID]), spool.Verdict{Status: 400}); err != nil {
					t.Fatal(err)
				}
			}
			replayed := lettersOf(t, d)[:records/2]
			if _, err := d.Replay(q1, replayed...); err != nil {
				t.Fatal(err)
			}
			shut(t, d)
			path := segmentFiles(t, cfg.Dir)[0]
			content, err := os.ReadFile(path) //nolint:gosec // G304: the test's own file
			if err != nil {
				t.Fatal(err)
			}
			clear(content[:page])
			if err := os.WriteFile(path, content, 0o600); err != nil { //nolint:gosec // G703: the same
				t.Fatal(err)
			}
			d = open(t, cfg)
			got := takeAll(t, "salvaged", d)
			for _, e := range got {
				if string(e.Data) != want[e.ID] || e.Replayed != (e.ID <= replayed[len(replayed)-1]) {
					t.Errorf("%.20q comes, replayed %t, want %q", e.Data, e.Replayed, want[e.ID])
				}
			}
			if len(got) != records || len(ev.of(spool.SetAside)) != 1 {
				t.Errorf("%d records come, want %d; %v", len(got), records, ev.all)
			}
		})
	}
}

// Two at a time, and others with them, each have what became of them.
func TestBuryRestAmongOthers(t *testing.T) {
	t.Parallel()
	d := open(t, Config{Dir: memoryDir(t)})
	const records = 198
	for i := range records {
		add(t, d, fmt.Sprintf("%d whole", i))
	}
	var wg sync.WaitGroup
	for _, e := range take(t, d, records) {
		wg.Go(func() {
			q, i := d.Queue(q1), number(t, e.Data)
			switch i % 3 {
			case 0:
				q.Ack(e)
			case 1:
				if err := q.Bury(e, spool.Verdict{Status: 400}); err != nil {
					t.Error(err)
				}
			case 2:
				if err := q.BuryRest(e, fmt.Appendf(nil, "%d rest", i), spool.Verdict{Status: 400}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	letters, err := d.Letters(q1, 0, records)
	if err != nil || len(letters) != records/3+records/3 {
		t.Fatalf("%d letters, %v", len(letters), err)
	}
	for _, l := range letters {
		i := number(t, l.Data)
		if want := map[int]string{1: "whole", 2: "rest"}[i%3]; string(l.Data) != fmt.Sprintf("%d %s", i, want) {
			t.Errorf("letter %q", l.Data)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := d.Queue(q1).Take(ctx, 1); !errors.Is(err, context.Canceled) {
		t.Errorf("something is left: %v", err)
	}
}
