package integration

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
)

// TestSpoolDiskFull fills the spool's disk to the last byte: at once, and bit by
// bit with records.
func TestSpoolDiskFull(t *testing.T) {
	t.Parallel()
	v2 := startFickle(t)
	g, inside := serveOnDisk(t, "size=8m", v2.url(), "drain_rate 10000")
	filler := filepath.Join(inside, "filler")
	pad := strings.Repeat("x", 10_000)
	var kept []string
	var next int
	offer := func() bool {
		next++
		id := strconv.Itoa(next)
		answer := raw(t, g.addr, post(spoolTarget, asJSON, `{"id":"`+id+`","pad":"`+pad+`"}`))
		if answer.StatusCode == 200 {
			isTaken(t, answer)
			kept = append(kept, id)
			return true
		}
		isUnkept(t, answer, "spool_unavailable")
		return false
	}
	v2.goAway(closes)
	for round := range 3 {
		for range 20 { // the disk has room
			if !offer() {
				t.Fatal("a record was refused before the disk was full")
			}
		}
		if round < 2 {
			fill(t, filler)
		}
		refused := 0
		for n := 0; refused < 20; n++ { // what is free within the files is still used
			if n > 2000 {
				t.Fatal("the disk is full, and records are kept")
			}
			if !offer() {
				refused++
			}
		}
		g.await(t, "the spool's disk refuses records", round+1)
		if health, status := g.health(t); health != "refusing" || status != 503 {
			t.Errorf("health: %s %d", health, status)
		}

		// What v2 takes directly still goes, and what is kept is delivered.
		v2.comeBack()
		v2.await(t, kept...)
		g.awaitState(t, func(s *spoolState) bool { return s.records() == 0 })
		isTaken(t, raw(t, g.addr, post(spoolTarget, asJSON, withID("direct"+strconv.Itoa(round)))))
		v2.await(t, "direct"+strconv.Itoa(round))

		v2.goAway(closes)
		if round < 2 {
			if err := os.Remove(filler); err != nil {
				t.Fatal(err)
			}
		}
		if !offer() {
			t.Errorf("round %d: the disk has room again, and a record was refused", round)
		}
		g.await(t, "the spool's disk takes records again", round+1)
	}
	v2.comeBack()
	v2.await(t, kept...)
	g.awaitEmpty(t)
	g.awaitHealth(t, "ok")
	for id, n := range v2.times {
		if n != 1 {
			t.Errorf("v2 has taken %s %d times", id, n)
		}
	}
	t.Logf("%d of %d records kept", len(kept), next)
}

// TestSpoolReadOnly starts a gateway whose disk is mounted to be read only.
func TestSpoolReadOnly(t *testing.T) {
	t.Parallel()
	nsenter := tool(t, "util-linux", "nsenter")
	v2 := startFickle(t)
	g, _ := serveOnDisk(t, "size=8m,ro", v2.url(), "")
	unavailable(t, g, v2, func() {
		args := []string{"-t", strconv.Itoa(g.cmd.Process.Pid), "--mount"}
		if os.Geteuid() != 0 {
			args = append(args, "--user", "--preserve-credentials")
		}
		args = append(args, "mount", "-o", "remount,rw", filepath.Dir(g.dir))
		if output, err := exec.Command(nsenter, args...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, output)
		}
	})
}

// TestSpoolBlackHole has v2 answer nothing at all to a connection.
func TestSpoolBlackHole(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	blackHole(t, l)
	g := serveSpool(t, "http://"+l.Addr().String(), "dial_timeout 500ms", "")
	got := ask(t, g.addr, post(spoolTarget, asJSON, withID("hole")), func() {})
	isTaken(t, got.reply)
	if got.took > slack {
		t.Errorf("it took %v", got.took)
	}
	setQueue(t, l, 100)
	v2 := newFickleOn(l)
	v2.serve(t)
	v2.await(t, "hole")
	g.awaitEmpty(t)
	if n := len(v2.all()); n != 1 {
		t.Errorf("v2 has taken %d records", n)
	}
}

// serveOnDisk runs a gateway whose spool is on a file system of its own, in
// memory, mounted with these options. Only the gateway sees it under that name;
// inside is its path for the test. The test must be root, or be allowed user
// namespaces.
func serveOnDisk(t *testing.T, options, upstream, spool string) (g *spooling, inside string) {
	t.Helper()
	mount := tool(t, "mount", "mount")
	mountpoint := t.TempDir()
	addr, admin := freeAddr(t), freeAddr(t)
	_, port, _ := net.SplitHostPort(addr)
	g = &spooling{admin: admin, dir: mountpoint + "/spool"}
	g.caddyfile = spoolCaddyfile(admin, port, spoolBlock(upstream, g.dir, "", spool))
	p := startWith(t, "/bin/sh", nil, ownMounts, "-c", mount+` --make-rprivate / && `+mount+` -t tmpfs -o "$1" tmpfs "$2" && shift 2 && exec "$@"`, "sh", options, mountpoint,
		binary, "run", "--adapter", "caddyfile", "--config", write(t, "Caddyfile", g.caddyfile))
	g.gateway = &gateway{addr: addr, process: p}
	g.await(t, "serving initial configuration", 1)
	saysNoSecret(t, p)
	return g, fmt.Sprintf("/proc/%d/root%s", p.cmd.Process.Pid, mountpoint)
}

// ownMounts gives a command mounts of its own.
func ownMounts(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}
	}
}

// fill writes a file until its disk has not a byte left.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path) //nolint:gosec // G304: the test's own
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for size := 64 << 10; size > 0; size /= 2 {
		for err = nil; err == nil; {
			_, err = f.Write(make([]byte, size))
		}
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
	}
}

// TestSpoolDiskFullIsEmptied has v2 refuse and take records from a spool whose disk
// has not a byte left: v2 is asked once of each, the letters can be dropped, and
// what was delivered does not come again after a restart.
func TestSpoolDiskFullIsEmptied(t *testing.T) {
	t.Parallel()
	v2 := startFickle(t)
	g, inside := serveOnDisk(t, "size=16m", v2.url(), "drain_rate 10000\n max_size 8MiB")
	v2.goAway(closes)
	const records = 600
	ids := make([]string, records)
	for n := range ids {
		ids[n] = strconv.Itoa(n)
		isTaken(t, raw(t, g.addr, post(spoolTarget, asJSON, `{"id":"`+ids[n]+`","pad":"`+strings.Repeat("x", 4000)+`"}`)))
	}
	fill(t, filepath.Join(inside, "filler"))
	var asked atomic.Int64
	v2.goAway(func(conn net.Conn) bool {
		if n := asked.Add(1); n > records/2 {
			v2.comeBack()
		}
		return answers("400", "")(conn)
	})
	g.awaitState(t, func(s *spoolState) bool { return s.records() == 0 && s.dead() > 0 })
	dead := g.state(t).dead()
	if n := len(v2.all()); n+dead != records || int(asked.Load()) != dead {
		t.Errorf("v2 has taken %d, %d are dead letters, and it has refused %d, of %d", n, dead, asked.Load(), records)
	}
	spoolPrints(t, g.admin, []string{"drop", "--all"}, strconv.Itoa(dead)+" dead letters deleted")
	g.awaitState(t, func(s *spoolState) bool { return s.records() == 0 && s.dead() == 0 })
	for id, n := range v2.times {
		if n != 1 {
			t.Errorf("v2 has taken %s %d times", id, n)
		}
	}
}
