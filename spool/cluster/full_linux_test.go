package cluster

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/td-postback/gateway/spool"
	"github.com/td-postback/gateway/spool/mounttest"
)

// smallDisk makes a disk of so many bytes.
func smallDisk(t *testing.T, dir string, bytes int) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", bytes)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
}

// A server whose disk is full is as good as dead until it is restarted with room
// (nats-server #7654). One of three costs nothing. With all three, callers are
// refused, soon at once, and nothing that was acknowledged is lost.
func TestServersDiskFull(t *testing.T) {
	t.Parallel()
	if !mounttest.Own(t) {
		return
	}
	for name, full := range map[string]int{"one": 1, "all": 3} {
		t.Run(name, func(t *testing.T) { t.Parallel(); testServersDiskFull(t, full) })
	}
}

func testServersDiskFull(t *testing.T, full int) {
	const size, filler, record = 64 << 20, 48 << 20, 100_000
	dir := t.TempDir()
	fillers := make([]string, full)
	for i := range full {
		disk := filepath.Join(dir, fmt.Sprintf("n%d", i+1)) // where natstest has the server's store
		smallDisk(t, disk, size)
		fillers[i] = filepath.Join(disk, "filler")
		if err := os.WriteFile(fillers[i], make([]byte, filler), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	servers := nodes(t, dir, 3, "max_payload: 4MB")
	for _, n := range servers {
		t.Cleanup(n.Kill)
		n.Start(t)
	}
	l := open(t, servers, func(c *Config) {
		c.MaxSize = 1 << 30
		if full == len(servers) {
			c.Timeout = 3 * time.Second
		}
	})
	kept := map[string]bool{}
	keep := func() error {
		id := fmt.Sprintf("%09d", len(kept))
		err := l.Append(testQueue, spool.Record{Arrival: arrival, Data: append(make([]byte, record), id...)})
		if err == nil {
			kept[id] = true
		}
		return err
	}
	for len(kept) < 3*(size-filler)/record {
		err := keep()
		if err == nil {
			continue
		}
		if full < len(servers) || !errors.Is(err, spool.ErrUnavailable) {
			t.Fatalf("after %d records: %v", len(kept), err)
		}
		break
	}
	if full == len(servers) {
		began := time.Now()
		if err := keep(); !errors.Is(err, spool.ErrUnavailable) || time.Since(began) > atOnce {
			t.Errorf("with disks that are full: %v after %s", err, time.Since(began))
		}
		for i, n := range servers {
			if err := os.Remove(fillers[i]); err != nil {
				t.Fatal(err)
			}
			n.Kill()
			n.Start(t)
		}
		until(t, "a record is kept again", func() bool { return keep() == nil })
	}
	q := l.Queue(testQueue)
	for missing := len(kept); missing > 0; {
		for _, e := range take(t, q, 1) {
			if id := string(e.Data[record:]); kept[id] {
				kept[id] = false
				missing--
			}
			q.Ack(e)
		}
	}
}
