package disk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	bolt "go.etcd.io/bbolt"

	"github.com/td-postback/gateway/spool"
)

// buryAll makes dead letters of all records that are there, until there is no room
// for one, and returns how many there were.
func buryAll(t *testing.T, d *Disk, why spool.Verdict) (buried int, full bool) {
	t.Helper()
	for _, e := range takeAll(t, "to be buried", d) {
		err := d.Queue(q1).Bury(e, why)
		switch {
		case err == nil:
			buried++
		case errors.Is(err, spool.ErrFull):
			full = true
			d.Queue(q1).Ack(e)
		default:
			t.Fatal(err)
		}
	}
	return buried, full
}

// Dead letters that v2 refused fill their own size and no more, whatever is
// appended: records have the same room as without them.
func TestDeadLettersKeepNoRecordOut(t *testing.T) {
	t.Parallel()
	for _, size := range []int{100, 3000, 60_000} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			t.Parallel()
			const limit, dead = 4 << 20, 1 << 20
			var ev events
			cfg := Config{Dir: memoryDir(t), MaxSize: limit, DeadSize: dead, OnEvent: ev.add}
			d := open(t, cfg)
			refused := spool.Verdict{Status: 400, Reason: "refused", Words: "no such table"}
			letters := 0
			for full := false; !full; {
				for range max(1, 500_000/size) {
					if err := d.Append(q1, spool.Record{Arrival: arrivalTime, Data: make([]byte, size)}); err != nil {
						t.Fatalf("with %d dead letters: %v", letters, err)
					}
				}
				var n int
				n, full = buryAll(t, d, refused)
				letters += n
			}
			eventually(t, "what is not kept is gone", func() bool {
				depth, err := d.Depth(q1)
				return err == nil && depth.Records == 0 && depth.Dead == letters
			})
			for _, when := range []string{"filled", "opened again"} {
				used, most := d.DeadSize()
				if most != dead || used > dead || used < dead*8/10 {
					t.Errorf("%s: DeadSize gives %d of %d", when, used, most)
				}
				eventually(t, when+": dead letters count as no records", func() bool { used, _ := d.Size(); return used <= limit/20 })
				eventually(t, when+": their files become smaller", func() bool { return diskUse(t, cfg.Dir) < dead*3 })
				shut(t, d)
				d = open(t, cfg)
			}
			kept, without := fillWith(d, size), fillWith(open(t, Config{Dir: memoryDir(t), MaxSize: limit}), size)
			if kept < without*9/10 {
				t.Errorf("%d records beside them, %d without", kept, without)
			}
			if n := len(ev.of(spool.NearlyFull)); n != 1 {
				t.Errorf("%d warnings that it is nearly full, want the one of now", n)
			}
			if _, full := buryAll(t, d, spool.Verdict{Reason: "too_old"}); full {
				t.Error("what v2 has not refused was not kept")
			}
			expectDepth(t, d, 0, letters+kept)
			if used, _ := d.DeadSize(); used < dead*3/2 {
				t.Errorf("with those that are too old, they take %d", used)
			}
			ids := lettersOf(t, d)
			if n, err := d.Drop(q1, ids...); err != nil || n != len(ids) {
				t.Fatalf("Drop: %d of %d, %v", n, len(ids), err)
			}
			if used, _ := d.DeadSize(); used != 0 {
				t.Errorf("without any, they take %d", used)
			}
			expectUsed(t, d)
		})
	}
}

// fillWith appends records until there is no room, and says how many.
func fillWith(d *Disk, size int) (kept int) {
	for d.Append(q1, spool.Record{Arrival: arrivalTime, Data: make([]byte, size)}) == nil {
		kept++
	}
	return kept
}

// lettersOf returns the IDs of all dead letters.
func lettersOf(t *testing.T, d *Disk) (ids []spool.ID) {
	t.Helper()
	for after := spool.ID(0); ; {
		letters, err := d.Letters(q1, after, 1000)
		if err != nil {
			t.Fatal(err)
		}
		if len(letters) == 0 {
			return ids
		}
		for _, l := range letters {
			after = l.ID
			ids = append(ids, l.ID)
		}
	}
}

// A replayed letter counts as a record again.
func TestReplayedLetterLeavesTheirSize(t *testing.T) {
	t.Parallel()
	d := open(t, Config{Dir: t.TempDir(), DeadSize: 3000})
	for range 3 {
		add(t, d, string(make([]byte, 1000)))
	}
	e := take(t, d, 3)
	for i, want := range []error{nil, nil, spool.ErrFull} {
		if err := d.Queue(q1).Bury(e[i], spool.Verdict{Status: 403}); !errors.Is(err, want) {
			t.Fatalf("letter %d: %v", i, err)
		}
	}
	if n, err := d.Replay(q1, e[0].ID); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	if err := d.Queue(q1).Bury(e[2], spool.Verdict{Status: 403}); err != nil {
		t.Error(err)
	}
	expectDepth(t, d, 1, 2)
}

// A file of the first version does not say how many bytes its dead letters have,
// or says it of other counts, as that version has written to it since.
func TestDeadBytesOfTheFirstVersion(t *testing.T) {
	t.Parallel()
	for what, forget := range map[string]func(*bolt.Bucket) error{
		"absent":         func(b *bolt.Bucket) error { return b.Delete(deadKey) },
		"of other count": func(b *bolt.Bucket) error { return b.Put(deadKey, state{live: 1, bytes: 8}.encodeDead()) },
		"damaged":        func(b *bolt.Bucket) error { return b.Put(deadKey, binary.BigEndian.AppendUint32(nil, 1)) },
	} {
		cfg := Config{Dir: t.TempDir()}
		d := open(t, cfg)
		for range 10 {
			add(t, d, string(make([]byte, 1000)))
		}
		for _, e := range take(t, d, 4) {
			if err := d.Queue(q1).Bury(e, spool.Verdict{Status: 403}); err != nil {
				t.Fatal(err)
			}
		}
		want, _ := d.DeadSize()
		shut(t, d)
		db, err := bolt.Open(segmentFiles(t, cfg.Dir)[0], 0o600, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(db.Update(func(tx *bolt.Tx) error { return forget(tx.Bucket(stateBucket)) }), db.Close()); err != nil {
			t.Fatal(err)
		}
		d = open(t, cfg)
		if got, _ := d.DeadSize(); got < want*9/10 || got > want*11/10 {
			t.Errorf("%s: they take %d, want about %d", what, got, want)
		}
		if n, err := d.Replay(q1, lettersOf(t, d)[0]); n != 1 || err != nil {
			t.Fatal(n, err)
		}
		if got, _ := d.DeadSize(); got != want/4*3 {
			t.Errorf("%s: once written to, three of four take %d of %d", what, got, want)
		}
		shut(t, d)
	}
}

// Many at once do not count twice: what fits is kept.
func TestManyDeadLettersAtOnceFit(t *testing.T) {
	t.Parallel()
	const records, size = 300, 4000
	d := open(t, Config{Dir: memoryDir(t), DeadSize: records * (size + recordOverhead + letterSize)})
	for range records {
		add(t, d, string(make([]byte, size)))
	}
	var wg sync.WaitGroup
	for _, e := range takeAll(t, "all", d) {
		wg.Go(func() {
			if err := d.Queue(q1).Bury(e, spool.Verdict{Status: 400}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := d.dying.Load(); n != 0 {
		t.Errorf("%d bytes stay reserved", n)
	}
}

// A file that cannot be made smaller is left alone, however much dead letters have,
// and keeps no other file from its turn.
func TestFilesAreMadeSmallerOnce(t *testing.T) {
	t.Parallel()
	cfg := Config{Dir: memoryDir(t), MaxSize: 32 << 20, DeadSize: 4 << 20} // segments of 4 MiB
	d := open(t, cfg)
	for range 3000 {
		// Two of these have two pages, of which they fill half.
		if err := d.Append(q1, spool.Record{Arrival: arrivalTime, Data: make([]byte, 2100)}); err != nil {
			t.Fatal(err)
		}
	}
	buryAll(t, d, spool.Verdict{Status: 400, Reason: "refused"})
	q := d.known(q1)
	eventually(t, "no file is to be made smaller", func() bool {
		q.mu.Lock()
		defer q.mu.Unlock()
		return !slices.ContainsFunc(q.segments, q.isSparse)
	})
	if !d.tooDead() {
		t.Error("dead letters do not have too much of the files: the test tests nothing")
	}
}
