package disk

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/td-postback/gateway/spool"
	"github.com/td-postback/gateway/spool/mounttest"
)

// mount makes a small disk.
func mount(t *testing.T, bytes int, options string) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, strings.TrimSuffix(fmt.Sprintf("size=%d,%s", bytes, options), ",")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	return dir
}

// fillUp takes the last byte of a disk.
func fillUp(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path) //nolint:gosec // G304: the test's own file
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for err == nil {
		_, err = f.Write(make([]byte, page))
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
}

// kept is what a test knows to be durable.
type kept struct {
	mu      sync.Mutex
	records map[string]bool
}

// fill appends from several goroutines until there is an error, and returns it.
func (k *kept) fill(d *Disk, round int) (err error) {
	var wg sync.WaitGroup
	for p := range 8 {
		wg.Go(func() {
			for i := 0; ; i++ {
				data := fmt.Sprintf("%d %d %d %s", round, p, i, strings.Repeat("x", 500))
				failed := d.Append(q1, spool.Record{Arrival: arrivalTime, Data: []byte(data)})
				k.mu.Lock()
				if failed != nil {
					err = failed
					k.mu.Unlock()
					return
				}
				k.records[data] = true
				k.mu.Unlock()
			}
		})
	}
	wg.Wait()
	return err
}

// check wants that nothing is missing that is durable.
func (k *kept) check(t *testing.T, when string, d *Disk) {
	t.Helper()
	found := map[string]bool{}
	entries, err := d.Records(q1, 0, 1<<30)
	if err != nil {
		t.Fatalf("%s: %v", when, err)
	}
	for _, e := range entries {
		found[string(e.Data)] = true
	}
	missing := 0
	for data := range k.records {
		if !found[data] {
			missing++
		}
	}
	if missing > 0 {
		t.Fatalf("%s: %d of %d durable records are missing", when, missing, len(k.records))
	}
}

// A disk is filled to the last byte, by the spool and by somebody else, again
// and again. Append says so, what was durable stays, deliveries and deletions
// are noted, and the spool goes on by itself.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	if !mounttest.Own(t) {
		return
	}
	small := mount(t, 3<<20, "")
	var ev events
	cfg := Config{Dir: filepath.Join(small, "spool"), MaxSize: 8 << 20, OnEvent: ev.add} // segments of 1 MiB
	d := open(t, cfg)
	filler := filepath.Join(small, "filler")
	k := &kept{records: map[string]bool{}}
	for round := range 4 {
		if err := k.fill(d, round); !errors.Is(err, spool.ErrUnavailable) || !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("Append on a full disk: %v", err)
		}
		fillUp(t, filler)
		for range 5 {
			if err := d.Append(q1, spool.Record{Data: make([]byte, 5000)}); !errors.Is(err, spool.ErrUnavailable) {
				t.Fatalf("Append on a full disk: %v", err)
			}
		}
		if len(k.records) < 100 {
			t.Fatalf("only %d records before the disk was full", len(k.records))
		}
		k.check(t, "full", d)
		if round == 1 { // it starts on a full disk, too
			shut(t, d)
			d = open(t, cfg)
			k.check(t, "opened on the full disk", d)
		}
		// Some of each of the older segments is delivered, and half of the
		// rest: that gives space back, although there is none for anything else.
		depth, err := d.Depth(q1)
		if err != nil {
			t.Fatal(err)
		}
		use := diskUse(t, d.cfg.Dir)
		all := takeAll(t, "full", d)
		for _, e := range all[:len(all)/2] {
			d.Queue(q1).Ack(e)
			delete(k.records, string(e.Data))
		}
		for _, e := range all[len(all)/2:] {
			d.Queue(q1).Later(e, 0)
		}
		eventually(t, "space comes back", func() bool { return diskUse(t, d.cfg.Dir) < use })
		eventually(t, "the rest is counted", func() bool {
			now, err := d.Depth(q1)
			return err == nil && now.Records == depth.Records-len(all)/2
		})
		if round%2 == 0 {
			if err := os.Remove(filler); err != nil {
				t.Fatal(err)
			}
		}
		eventually(t, "records can be appended", func() bool { return d.Append(q1, spool.Record{Data: []byte("x")}) == nil })
		_ = os.Remove(filler)
		k.check(t, "recovered", d)
	}
	if failed, recovered := len(ev.of(spool.Failed)), len(ev.of(spool.Recovered)); failed < 4 || recovered < 3 {
		t.Errorf("%d failures and %d recoveries were reported, want one of each per round", failed, recovered)
	}
	for _, kind := range []spool.EventKind{spool.SetAside, spool.Damaged, spool.Unreadable} {
		if n := len(ev.of(kind)); n > 0 {
			t.Errorf("a full disk looks like damage: %d times %s", n, kind)
		}
	}
	shut(t, d)
	d = open(t, cfg)
	k.check(t, "opened again", d)
}

// On a full disk, dead letters can be made and dropped, in one file or many.
func TestDeadLettersOnAFullDisk(t *testing.T) {
	t.Parallel()
	if !mounttest.Own(t) {
		return
	}
	small := mount(t, 3<<20, "")
	d := open(t, Config{Dir: filepath.Join(small, "spool"), MaxSize: 8 << 20})
	k := &kept{records: map[string]bool{}}
	_ = k.fill(d, 0)
	fillUp(t, filepath.Join(small, "filler"))
	var ids []spool.ID
	for i, e := range takeAll(t, "full", d) {
		if i%10 != 0 {
			d.Queue(q1).Ack(e)
			continue
		}
		if err := d.Queue(q1).Bury(e, spool.Verdict{Status: 413, Reason: "too large"}); err != nil {
			t.Fatal(err)
		}
		ids = append(ids, e.ID)
	}
	eventually(t, "the acks are counted", func() bool {
		depth, err := d.Depth(q1)
		return err == nil && depth.Records == 0 && depth.Dead == len(ids)
	})
	if n, err := d.Drop(q1, ids...); err != nil || n != len(ids) {
		t.Fatalf("Drop on a full disk: %d of %d, %v", n, len(ids), err)
	}
	eventually(t, "all space comes back", func() bool { return diskUse(t, d.cfg.Dir) < 3<<19 })
	add(t, d, "new")
}

// A disk becomes read-only, as Linux does it after an error: Append says so,
// all that is there can be read, and when the disk is back the spool is, too.
func TestReadOnlyDisk(t *testing.T) {
	t.Parallel()
	if !mounttest.Own(t) {
		return
	}
	small := mount(t, 16<<20, "")
	cfg := Config{Dir: filepath.Join(small, "spool")}
	d := open(t, cfg)
	for i := range 50 {
		add(t, d, fmt.Sprint(i))
	}
	remount := func(flags uintptr) error { return syscall.Mount("", small, "", syscall.MS_REMOUNT|flags, "") }
	if err := remount(syscall.MS_RDONLY); !errors.Is(err, syscall.EBUSY) {
		t.Fatalf("files are open for writing, but: %v", err)
	}
	shut(t, d)
	if err := remount(syscall.MS_RDONLY); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(cfg); !errors.Is(err, syscall.EROFS) {
		t.Fatalf("Open on a read-only disk: %v", err)
	}
	if err := remount(0); err != nil {
		t.Fatal(err)
	}
	d = open(t, cfg)
	add(t, d, "new")
	if got := takeAll(t, "writable again", d); len(got) != 51 {
		t.Errorf("%d records come, want 51", len(got))
	}
}

// fullDisk is a Log with records in several files, on a disk that then has not a
// byte left.
func fullDisk(t *testing.T, size int, options string) (d *Disk, ev *events, records int) {
	t.Helper()
	small := mount(t, 6<<20, options)
	ev = &events{}
	d = open(t, Config{Dir: filepath.Join(small, "spool"), MaxSize: 8 << 20, OnEvent: ev.add})
	for {
		err := d.Append(q1, spool.Record{Arrival: arrivalTime, Data: make([]byte, size)})
		if errors.Is(err, syscall.ENOSPC) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		records++
	}
	fillUp(t, filepath.Join(small, "filler"))
	return d, ev, records
}

// On a disk that is full to the last byte, whatever gives space back works, also
// after a restart: nothing that was answered for comes again.
func TestFullDiskIsEmptied(t *testing.T) {
	t.Parallel()
	if !mounttest.Own(t) {
		return
	}
	for _, size := range []int{100, 2000, 30_000, 200_000} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			t.Parallel()
			d, ev, records := fullDisk(t, size, "")
			q := d.Queue(q1)
			var letters []spool.ID
			var delivered []spool.ID
			acked := 0
			for i, e := range takeAll(t, "full", d) {
				if size > page {
					i = i * 6 / records // else some of each kind in every file
				}
				switch {
				case i%6 == 0 && (size >= 2000 || i%60 == 0):
					if err := q.Bury(e, spool.Verdict{Status: 400, Reason: "refused", Words: strings.Repeat("no ", 60)}); err != nil {
						t.Fatalf("letter %d: %v", len(letters), err)
					}
					letters = append(letters, e.ID)
				case i%3 == 1:
					q.Ack(e)
					acked++
				default:
					q.Later(e, 0)
				}
			}
			left := records - len(letters) - acked
			shut(t, d)
			d = open(t, Config{Dir: d.cfg.Dir, MaxSize: 8 << 20, OnEvent: ev.add})
			for _, id := range lettersOf(t, d) { // what is delivered and could not be deleted
				if _, ours := slices.BinarySearch(letters, id); !ours {
					delivered = append(delivered, id)
				}
			}
			t.Logf("%d records were delivered and could not be deleted", len(delivered))
			expectDepth(t, d, left, len(letters)+len(delivered))
			letters = append(delivered, letters...)
			half := letters[:len(letters)/2]
			if n, err := d.Drop(q1, half...); err != nil || n != len(half) {
				t.Fatalf("Drop: %d of %d, %v", n, len(half), err)
			}
			for _, id := range letters[len(half):] { // one by one
				if n, err := d.Drop(q1, id); err != nil || n != 1 {
					t.Fatalf("Drop: %d, %v", n, err)
				}
			}
			all := takeAll(t, "full", d)
			if len(all) != left {
				t.Errorf("%d records come, want %d", len(all), left)
			}
			for _, e := range all[1:] {
				d.Queue(q1).Ack(e)
			}
			shut(t, d)
			d = open(t, Config{Dir: d.cfg.Dir, MaxSize: 8 << 20, OnEvent: ev.add})
			expectDepth(t, d, 1, 0)
			eventually(t, "records are taken again", func() bool { return d.Append(q1, spool.Record{Data: []byte("new")}) == nil })
			for _, kind := range []spool.EventKind{spool.Unnoted, spool.SetAside, spool.Damaged, spool.Unreadable} {
				if n := len(ev.of(kind)); n > 0 {
					t.Errorf("%d times %s", n, kind)
				}
			}
		})
	}
}

// A spool of before finds its disk full to the last byte: its records go on without
// a name, and get one as soon as there is room.
func TestNoRoomForANamespace(t *testing.T) {
	t.Parallel()
	if !mounttest.Own(t) {
		return
	}
	d, ev, records := fullDisk(t, 2000, "")
	shut(t, d)
	if err := os.Remove(namespacePath(t, d.cfg.Dir)); err != nil {
		t.Fatal(err)
	}
	fillUp(t, filepath.Join(filepath.Dir(d.cfg.Dir), "filler2"))
	d = open(t, Config{Dir: d.cfg.Dir, MaxSize: 8 << 20, OnEvent: ev.add})
	all := takeAll(t, "full", d)
	for _, e := range all {
		if e.Namespace != [16]byte{} {
			t.Fatalf("a record has the name %x", e.Namespace)
		}
	}
	if told := ev.of(spool.Unnamed); len(all) != records || len(told) != 1 || !errors.Is(told[0].Err, syscall.ENOSPC) {
		t.Errorf("%d of %d records come; told %v", len(all), records, told)
	}
	for _, e := range all[1:] {
		d.Queue(q1).Ack(e)
	}
	e := all[:1]
	eventually(t, "the last one has a name", func() bool {
		d.Queue(q1).Later(e[0], 0)
		e = take(t, d, 1)
		return e[0].Namespace != [16]byte{}
	})
	want := uuidsOf(t, e)
	shut(t, d)
	d = open(t, Config{Dir: d.cfg.Dir, MaxSize: 8 << 20, OnEvent: ev.add})
	expectUUIDs(t, "later", takeAll(t, "later", d), want)
}

// On a disk without room for the spare, nothing is written to find that out: it
// would take the room of what gives space back, each second.
func TestNoRoomForTheSpare(t *testing.T) {
	t.Parallel()
	if !mounttest.Own(t) {
		return
	}
	d, _, _ := fullDisk(t, 2000, "")
	if !d.spare.giveUp() {
		t.Fatal("there is no spare")
	}
	shut(t, d)
	filler := filepath.Join(filepath.Dir(d.cfg.Dir), "filler2")
	fillUp(t, filler)
	if err := os.Truncate(filler, d.spare.size/2); err != nil { // some room, but not enough
		t.Fatal(err)
	}
	if err := os.WriteFile(d.spare.path, make([]byte, 10*page), 0o600); err != nil { // what a killed process leaves
		t.Fatal(err)
	}
	if err := d.spare.missing(); !isNoSpace(err) || allocated(d.spare.path) > 0 {
		t.Errorf("a part: %v, %d bytes are left", err, allocated(d.spare.path))
	}
	before, err := os.Stat(d.cfg.Dir)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := d.spare.missing(); !isNoSpace(err) {
			t.Errorf("without room: %v", err)
		}
	}
	if after, err := os.Stat(d.cfg.Dir); err != nil || !after.ModTime().Equal(before.ModTime()) {
		t.Errorf("something was made in the directory: %v, %v", after, err)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if err := d.spare.missing(); err != nil || allocated(d.spare.path) < d.spare.size {
		t.Errorf("with room: %v, %d bytes", err, allocated(d.spare.path))
	}
}

// Neither does a queue write to find out that its disk is full, nor to make a file
// smaller for which there is no room.
func TestNoRoomToTry(t *testing.T) {
	t.Parallel()
	if !mounttest.Own(t) {
		return
	}
	d, _, _ := fullDisk(t, 2000, "")
	q := d.queue(q1)
	shut(t, d)
	s := q.segments[0]
	path := s.path
	if s = newSegment(path, s.first, s.coder); q.loadSegment(s) != nil || s.state.bytes == 0 {
		t.Fatalf("%+v", s.state)
	}
	if !d.spare.giveUp() {
		t.Fatal("there is no spare")
	}
	filler := filepath.Join(filepath.Dir(d.cfg.Dir), "filler2")
	fillUp(t, filler)
	info, err := os.Stat(filler)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filler, info.Size()-min(s.state.bytes, d.growth())+page); err != nil { // some room, but not enough
		t.Fatal(err)
	}
	before, err := os.Stat(q.dir)
	if err != nil {
		t.Fatal(err)
	}
	d.spare.held.Store(true) // what is free is not enough for the rest
	q.probe()
	d.spare.held.Store(false)
	q.compact(s)
	if after, err := os.Stat(q.dir); err != nil || !after.ModTime().Equal(before.ModTime()) || !q.failed.Load() || s.packed > 0 {
		t.Errorf("something was made in the directory: %v, %v, %v", after, err, s.packed)
	}
	if err := errors.Join(os.Remove(filler), os.Remove(q.segments[1].path)); err != nil {
		t.Fatal(err)
	}
	d.spare.held.Store(true)
	q.probe()
	q.compact(s)
	if q.failed.Load() || s.packed == 0 {
		t.Errorf("with room, %v, %d", q.failed.Load(), s.packed)
	}
}

// What a full disk has room for is done, whatever else is asked for at the same
// time, and each hears what became of its own.
func TestEachOrderHearsOfItsOwn(t *testing.T) {
	t.Parallel()
	if !mounttest.Own(t) {
		return
	}
	d, ev, _ := fullDisk(t, 300, "")
	entries := takeAll(t, "full", d)
	q := d.queue(q1)
	s := q.segments[0]
	var of []spool.Entry // the first file's
	for _, e := range entries {
		if q.segmentOf(e.ID) == s {
			of = append(of, e)
		}
	}
	// Some pages of the file are free for what comes next.
	for _, e := range of[:200] {
		q.Ack(e)
	}
	eventually(t, "the acks are noted", func() bool { return len(q.acksOf(s)) == 0 })
	d.spare.giveUp()
	fillUp(t, filepath.Join(filepath.Dir(d.cfg.Dir), "filler2"))
	of = of[200:]
	small := func(i int) *order {
		return &order{segment: s, done: make(chan error, 1), change: change{deaths: []death{{id: of[i].ID, Verdict: spool.Verdict{Status: 400}}}}}
	}
	large := &order{segment: s, done: make(chan error, 1)}
	for _, e := range of[2:] {
		large.change.deaths = append(large.change.deaths, death{id: e.ID, Verdict: spool.Verdict{Status: 400, Words: strings.Repeat("no ", 60)}})
	}
	orders := []*order{small(0), large, small(1)}
	q.mu.Lock()
	q.orders = append(q.orders, orders...)
	q.mu.Unlock()
	notify(q.wake)
	for i, o := range orders {
		err := <-o.done
		t.Logf("order %d: %v", i, err)
		if (o == large) != isNoSpace(err) || o != large && err != nil {
			t.Errorf("order %d: %v", i, err)
		}
	}
	if ids := lettersOf(t, d); !slices.Equal(ids, []spool.ID{of[0].ID, of[1].ID}) {
		t.Errorf("%d dead letters", len(ids))
	}
	if n := len(ev.of(spool.SetAside)); n > 0 {
		t.Errorf("%d files were set aside", n)
	}
}

// Without a spare, of a version before, a full disk is emptied by deleting files
// whole; and what could not be noted is told of.
func TestFullDiskWithoutASpare(t *testing.T) {
	t.Parallel()
	if !mounttest.Own(t) {
		return
	}
	d, ev, records := fullDisk(t, 2000, "")
	takeAway := func() { // by somebody else, at once
		t.Helper()
		if d.spare.giveUp() {
			fillUp(t, filepath.Join(filepath.Dir(d.cfg.Dir), fmt.Sprint("filler", records)))
		}
	}
	takeAway()
	entries := takeAll(t, "full", d)
	first := d.queue(q1).segments[0]
	var ids []spool.ID
	for _, e := range entries {
		if d.queue(q1).segmentOf(e.ID) == first && d.Queue(q1).Bury(e, spool.Verdict{Status: 400}) == nil {
			ids = append(ids, e.ID)
		}
	}
	t.Logf("%d of %d records could be buried", len(ids), records)
	for _, e := range entries { // all the rest is delivered: what is alone in its file goes with it
		d.Queue(q1).Ack(e)
	}
	eventually(t, "files are deleted whole", func() bool { return len(segmentFiles(t, d.cfg.Dir)) <= 1 })
	if n, err := d.Drop(q1, ids...); err != nil || n != len(ids) {
		t.Errorf("Drop: %d of %d, %v", n, len(ids), err)
	}
	expectDepth(t, d, 0, 0)
	if n := len(ev.of(spool.Unnoted)); n > 0 {
		t.Errorf("%d times, something could not be noted", n)
	}
}

// A disk with room, but without a name for another file.
func TestDiskWithoutNames(t *testing.T) {
	t.Parallel()
	if !mounttest.Own(t) {
		return
	}
	small := mount(t, 32<<20, "nr_inodes=20")
	var ev events
	cfg := Config{Dir: filepath.Join(small, "spool"), MaxSize: 16 << 20, OnEvent: ev.add}
	d := open(t, cfg)
	for i := 0; ; i++ { // all names but those that the spool has
		f, err := os.Create(filepath.Join(small, fmt.Sprint("filler", i))) //nolint:gosec // G304: the test's own file
		if errors.Is(err, syscall.ENOSPC) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	if err := d.Append(q1, spool.Record{}); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("without a name: %v", err)
	}
	if err := errors.Join(os.Remove(filepath.Join(small, "filler0")), os.Remove(filepath.Join(small, "filler1"))); err != nil {
		t.Fatal(err)
	}
	eventually(t, "records are taken", func() bool { return d.Append(q1, spool.Record{Data: make([]byte, 2000)}) == nil })
	for d.Append(q1, spool.Record{Data: make([]byte, 2000)}) == nil { // until there is no name for another file
	}
	all := takeAll(t, "without names", d)
	for i, e := range all {
		if i%100 != 0 {
			d.Queue(q1).Ack(e)
			continue
		}
		if err := d.Queue(q1).Bury(e, spool.Verdict{Status: 400}); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the files are made smaller", func() bool {
		d.nearlyFull.Store(true) // so that it is not waited for
		return diskUse(t, cfg.Dir) < 4<<20
	})
	if n, err := d.Drop(q1, lettersOf(t, d)...); err != nil || n != len(all)/100+1 && n != len(all)/100 {
		t.Errorf("Drop: %d, %v", n, err)
	}
	eventually(t, "records are taken again", func() bool { return d.Append(q1, spool.Record{}) == nil })
}

// What the spool may use is compared with what its disk has.
func TestSmallDisk(t *testing.T) {
	t.Parallel()
	if !mounttest.Own(t) {
		return
	}
	small := mount(t, 4<<20, "")
	var ev events
	d := open(t, Config{Dir: filepath.Join(small, "spool"), MaxSize: 2 << 20, OnEvent: ev.add})
	if n := len(ev.all); n > 0 {
		t.Errorf("with room, %v", ev.all)
	}
	if err := d.SetLimits(8<<20, 1<<20); err != nil {
		t.Fatal(err)
	}
	told := ev.of(spool.SmallDisk)
	if len(told) != 1 || !strings.Contains(told[0].Err.Error(), "9437184") || !strings.Contains(told[0].Err.Error(), "the disk has 3") && !strings.Contains(told[0].Err.Error(), "the disk has 4") {
		t.Errorf("told %v", told)
	}
}
