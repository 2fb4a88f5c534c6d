package disk

import (
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/td-postback/gateway/spool"
)

// counted opens a Disk that counts its commits of records and their time.
func counted(t *testing.T) (d *Disk, commits *atomic.Int64, spent *atomic.Int64) {
	commits, spent = new(atomic.Int64), new(atomic.Int64)
	d = open(t, Config{MaxSize: 64 << 20, OnCommit: func(_ int, took time.Duration) {
		commits.Add(1)
		spent.Add(int64(took))
	}})
	return d, commits, spent
}

// TestCommitsAreShared has callers who send the next record when they have the
// answer to the last one: a commit waits for those who have just got theirs.
func TestCommitsAreShared(t *testing.T) {
	const callers, each = 64, 50
	d, commits, _ := counted(t)
	var calling sync.WaitGroup
	for range callers {
		calling.Go(func() {
			for range each {
				add(t, d, "x")
			}
		})
	}
	calling.Wait()
	if n := commits.Load(); n > each*3/2 {
		t.Errorf("%d commits for %d records of each of %d callers", n, each, callers)
	}
}

// TestLoneCallerDoesNotWait has one caller, behind many that have gone.
func TestLoneCallerDoesNotWait(t *testing.T) {
	const records = 200
	d, _, spent := counted(t)
	var calling sync.WaitGroup
	for range 64 {
		calling.Go(func() { add(t, d, "x") })
	}
	calling.Wait()
	spent.Store(0)
	began := time.Now()
	for range records {
		add(t, d, "x")
	}
	if waited := time.Since(began) - time.Duration(spent.Load()); waited > records*gatherTime/2 {
		t.Errorf("%d records waited %s for more than their commits", records, waited)
	}
}

// noted reports whether the acks so far are on disk.
func noted(d *Disk) bool {
	q := d.queue(q1)
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, s := range q.segments {
		if s.acked.count > 0 {
			return false
		}
	}
	return true
}

// TestAcksBecomeDurable acks some of the records in a file, while others are
// appended. An ack is on disk soon; if v2 drops a repeat of the record, it has more
// time, and takes others along.
func TestAcksBecomeDurable(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		ack    func(q spool.Queue, e spool.Entry)
		within time.Duration
	}{
		"Ack":     {func(q spool.Queue, e spool.Entry) { q.Ack(e) }, ackDelay},
		"AckSafe": {func(q spool.Queue, e spool.Entry) { q.AckSafe(e) }, safeDelay},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := open(t, Config{MaxSize: 64 << 20})
			for range 100 {
				add(t, d, "x")
			}
			began := time.Now()
			for _, e := range take(t, d, 50) {
				c.ack(d.Queue(q1), e)
			}
			for !noted(d) {
				if time.Since(began) > 20*time.Second {
					t.Fatal("the acks are never noted")
				}
				add(t, d, "x") // which does not put them off
			}
			if took := time.Since(began); took < c.within {
				t.Errorf("they were noted after %s, want %s or more", took, c.within)
			}
		})
	}
}

// TestAckTakesOthersAlong acks a record that has to be noted soon behind one that
// has time. If it were not taken along, none of the tries would be in time; a busy machine
// may be late for one.
func TestAckTakesOthersAlong(t *testing.T) {
	d := open(t, Config{MaxSize: 64 << 20})
	var took time.Duration
	for range 10 {
		for range 3 {
			add(t, d, "x")
		}
		entries := take(t, d, 2)
		began := time.Now()
		d.Queue(q1).AckSafe(entries[0])
		d.Queue(q1).Ack(entries[1])
		eventually(t, "both acks are noted", func() bool { return noted(d) })
		if took = time.Since(began); took <= safeDelay*9/10 {
			return
		}
	}
	t.Errorf("they were noted after %s", took)
}

// TestDrainedFileGoesAtOnce acks all records of a file that takes no more: it is
// deleted before its acks would be due.
func TestDrainedFileGoesAtOnce(t *testing.T) {
	dir := t.TempDir()
	d := open(t, Config{Dir: dir, MaxSize: minMaxSize})
	records := 0
	for ; len(segmentFiles(t, dir)) < 3; records++ {
		add(t, d, strings.Repeat("x", 4000))
	}
	q, began := d.Queue(q1), time.Now()
	for _, e := range take(t, d, records) {
		q.AckSafe(e)
	}
	eventually(t, "only the file that takes records is there", func() bool { return len(segmentFiles(t, dir)) == 1 })
	if took := time.Since(began); took > safeDelay*9/10 {
		t.Errorf("the others went after %s", took)
	}
}
