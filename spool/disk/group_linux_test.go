package disk

import (
	"errors"
	"fmt"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/td-postback/gateway/spool"
	"github.com/td-postback/gateway/spool/mounttest"
)

// A disk has room for some records of a request, and not for all: none is there
// afterwards, after a restart neither. Of a large request, the disk is not filled to
// find that out.
func TestAppendAllOnAFullDisk(t *testing.T) {
	t.Parallel()
	if !mounttest.Own(t) {
		return
	}
	small := mount(t, 6<<20, "")
	cfg := Config{Dir: filepath.Join(small, "spool"), MaxSize: 64 << 20}
	d := open(t, cfg)
	if err := d.AppendAll(q1, group(0, 20, 20_000)); err != nil {
		t.Fatal(err)
	}
	before, _, _ := room(small)
	for range 3 {
		if err := d.AppendAll(q1, group(-1, 5, 1_000_000)); !errors.Is(err, spool.ErrUnavailable) || !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("a large request: %v", err)
		}
	}
	if after, _, ok := room(small); !ok || after < before {
		t.Errorf("%d bytes are free, and were %d before what was refused", after, before)
	}
	kept, err := 1, error(nil)
	for ; err == nil; kept++ {
		err = d.AppendAll(q1, group(kept, 20, 20_000))
	}
	kept-- // the last one
	if !errors.Is(err, spool.ErrUnavailable) || !errors.Is(err, syscall.ENOSPC) || kept < 5 {
		t.Fatalf("after %d groups: %v", kept, err)
	}
	for _, when := range []string{"full", "opened again"} {
		if whole := expectWhole(t, when, d); len(whole) != kept || whole[kept] {
			t.Errorf("%s: groups %v are there, want %d", when, whole, kept)
		}
		shut(t, d)
		d = open(t, cfg)
	}
}

// On a disk that is full to the last byte, what is left of requests can be dead
// letters, after a restart too.
func TestBuryRestOnAFullDisk(t *testing.T) {
	t.Parallel()
	if !mounttest.Own(t) {
		return
	}
	for _, size := range []int{2000, 30_000, 200_000} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			t.Parallel()
			d, ev, records := fullDisk(t, size, "")
			for _, half := range []int{records / 2, records - records/2} {
				for i, e := range take(t, d, half) {
					if err := d.Queue(q1).BuryRest(e, make([]byte, size/10), spool.Verdict{Status: 400, Reason: "refused"}); err != nil {
						t.Fatalf("letter %d: %v", i, err)
					}
				}
				shut(t, d)
				d = open(t, Config{Dir: d.cfg.Dir, MaxSize: 8 << 20, OnEvent: ev.add})
			}
			expectDepth(t, d, 0, records)
			letters, err := d.Letters(q1, 0, records)
			if err != nil || len(letters) != records {
				t.Fatalf("%d letters of %d, %v", len(letters), records, err)
			}
			for _, l := range letters {
				if len(l.Data) != size/10 || l.Status != 400 {
					t.Fatalf("a letter has %d bytes and the status %d", len(l.Data), l.Status)
				}
			}
			eventually(t, "there is room again", func() bool { return d.Append(q1, spool.Record{Data: []byte("new")}) == nil })
			for _, kind := range []spool.EventKind{spool.Unnoted, spool.SetAside, spool.Damaged, spool.Unreadable} {
				if n := len(ev.of(kind)); n > 0 {
					t.Errorf("%d times %s", n, kind)
				}
			}
		})
	}
}

// There is not even room for what is left of a request: it stays what it was, and can
// be buried when there is.
func TestBuryRestWithoutRoom(t *testing.T) {
	t.Parallel()
	if !mounttest.Own(t) {
		return
	}
	d, _, records := fullDisk(t, 1_200_000, "")
	fillUp(t, filepath.Join(filepath.Dir(d.cfg.Dir), "filler2"))
	entries := take(t, d, records)
	bury := func(e spool.Entry) error {
		return d.Queue(q1).BuryRest(e, make([]byte, 1_100_000), spool.Verdict{Reason: "too_old"})
	}
	if err := bury(entries[0]); !isNoSpace(err) {
		t.Fatalf("a rest without room: %v", err)
	}
	for _, e := range entries[1:] {
		d.Queue(q1).Ack(e)
	}
	d.Queue(q1).Later(entries[0], 0)
	e := take(t, d, 1)[0]
	if len(e.Data) != 1_200_000 {
		t.Errorf("%d bytes come again", len(e.Data))
	}
	eventually(t, "there is room", func() bool { return bury(e) == nil })
	expectDepth(t, d, 0, 1)
}
