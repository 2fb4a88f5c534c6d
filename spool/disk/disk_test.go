package disk

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/td-postback/gateway/spool"
)

const q1 = "https://us01.records.in.treasuredata.com"

var arrivalTime = time.UnixMilli(1_700_000_000_123)

// events gathers what a Log reports.
type events struct {
	mu  sync.Mutex
	all []Event
}

func (e *events) add(ev Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.all = append(e.all, ev)
}

func (e *events) of(kind EventKind) (found []Event) {
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
		entries, _ := q.take(100)
		all = append(all, entries...)
		q.mu.Lock()
		settled := len(entries) == 0 && len(q.later) == 0
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

func TestAppendTakeAck(t *testing.T) {
	dir := t.TempDir()
	d := open(t, Config{Dir: dir})
	for i := range 10 {
		add(t, d, fmt.Sprintf("record %d", i))
	}
	for i, e := range take(t, d, 10) {
		if string(e.Data) != fmt.Sprintf("record %d", i) || !e.Arrival.Equal(arrivalTime) {
			t.Errorf("record %d is %q of %s", i, e.Data, e.Arrival)
		}
		if i != 3 {
			d.Queue(q1).Ack(e)
		}
	}
	if depth, err := d.Depth(q1); err != nil || depth.Records != 1 || !depth.Oldest.Equal(arrivalTime) {
		t.Errorf("the depth is %+v, want one record of %s; %v", depth, arrivalTime, err)
	}
	shut(t, d)
	d = open(t, Config{Dir: dir})
	if depth, err := d.Depth(q1); err != nil || depth.Records != 1 {
		t.Errorf("the depth is %+v, want one record; %v", depth, err)
	}
	if e := take(t, d, 1)[0]; string(e.Data) != "record 3" {
		t.Errorf("got %q, want record 3", e.Data)
	}
}
