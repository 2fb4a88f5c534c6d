package disk

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/td-postback/gateway/spool"
)

// backlog is how many records the tests of this file use. With
// TEST_SPOOL_BACKLOG=1000000 they are a measurement.
func backlog(t *testing.T) int {
	t.Helper()
	text := os.Getenv("TEST_SPOOL_BACKLOG")
	if text == "" {
		return 30_000
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func fillBacklog(t *testing.T, d *Disk, n int) {
	t.Helper()
	var wg sync.WaitGroup
	const producers = 500
	for p := range producers {
		wg.Go(func() {
			for range n/producers + min(1, max(0, n%producers-p)) {
				if err := d.Append(q1, spool.Record{Arrival: arrivalTime, Data: make([]byte, 512)}); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// A backlog is opened without reading it, and drained without holding it.
func TestBacklog(t *testing.T) {
	n := backlog(t)
	cfg := Config{Dir: t.TempDir(), MaxSize: 10 << 30}
	if n < 100_000 {
		cfg.MaxSize = 64 << 20 // more segments
	}
	d := open(t, cfg)
	fillBacklog(t, d, n)
	shut(t, d)
	read := readBytes(t)
	started := time.Now()
	d = open(t, cfg)
	opened := time.Since(started)
	read = readBytes(t) - read
	expectDepth(t, d, n, 0)
	filled, most := resident(t), int64(0)
	started = time.Now()
	q := d.Queue(q1)
	for taken := 0; taken < n; {
		entries, err := q.Take(t.Context(), 256)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			q.Ack(e)
		}
		if before := taken; before/10_000 != (taken+len(entries))/10_000 {
			most = max(most, resident(t))
		}
		taken += len(entries)
	}
	shut(t, d)
	t.Logf("%d records: opened in %v, %d KiB read; drained in %v; %d MiB of memory filled, at most %d while draining",
		n, opened, read>>10, time.Since(started), filled>>20, most>>20)
	if opened > 3*time.Second || read > int64(n)*512/4 {
		t.Errorf("opened in %v, %d bytes read", opened, read)
	}
	if most > 250<<20 {
		t.Errorf("%d MiB of memory", most>>20)
	}
	if files := segmentFiles(t, cfg.Dir); len(files) > 0 {
		t.Errorf("%v is left", files)
	}
}

// resident is how much memory this process takes, files that are mapped included.
func resident(t *testing.T) int64 {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "VmRSS:")
	var n int64
	if _, err := fmt.Sscan(rest, &n); err != nil {
		t.Fatal(err)
	}
	return n << 10
}

// readBytes is how much this process has read.
func readBytes(t *testing.T) (n int64) {
	t.Helper()
	io, err := os.ReadFile("/proc/self/io")
	if err != nil {
		t.Fatal(err)
	}
	var name string
	if _, err := fmt.Sscan(string(io), &name, &n); err != nil || name != "rchar:" {
		t.Fatal(name, err)
	}
	return n
}

// What is too old dies by the hundred thousand.
func TestManyDeadLetters(t *testing.T) {
	n := backlog(t) / 3
	d := open(t, Config{Dir: t.TempDir(), MaxSize: 10 << 30})
	fillBacklog(t, d, n)
	q := d.Queue(q1)
	entries := take(t, d, n)
	started := time.Now()
	var wg sync.WaitGroup
	const buriers = 64
	for b := range buriers {
		wg.Go(func() {
			for i := b; i < n; i += buriers {
				if err := q.Bury(entries[i], spool.Verdict{Reason: "too old"}); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	buried := time.Since(started)
	expectDepth(t, d, 0, n)
	started = time.Now()
	var ids []spool.ID
	for after := spool.ID(0); ; {
		letters, err := d.Letters(q1, after, 1000)
		if err != nil {
			t.Fatal(err)
		}
		if len(letters) == 0 {
			break
		}
		for _, l := range letters {
			ids = append(ids, l.ID)
		}
		after = ids[len(ids)-1]
	}
	listed := time.Since(started)
	started = time.Now()
	if dropped, err := d.Drop(q1, ids...); err != nil || dropped != n {
		t.Errorf("%d of %d were dropped, %v", dropped, n, err)
	}
	t.Logf("%d dead letters: %.0f/s made, listed in %v, dropped in %v", n, float64(n)/buried.Seconds(), listed, time.Since(started))
	expectDepth(t, d, 0, 0)
}
