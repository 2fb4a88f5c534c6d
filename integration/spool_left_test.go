package integration

import (
	"errors"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

const leftWarning = "a spool that is in no configuration holds records"

// TestSpoolLeft takes a spool out of the configuration that holds records, by a
// reload and by a restart: the gateway says how many, and where. The start of one
// says what it holds.
func TestSpoolLeft(t *testing.T) {
	t.Parallel()
	v2 := startFickle(t)
	v2.goAway(closes)
	home, dir := "XDG_DATA_HOME="+t.TempDir(), filepath.Join(t.TempDir(), "spool")
	with := spoolBlock(v2.url(), dir, "", "")
	g := serveSpoolSite(t, dir, with, home)
	g.await(t, "the spool is open", 1)
	for _, id := range []string{"1", "2", "3"} {
		isTaken(t, raw(t, g.addr, post(spoolTarget, asJSON, withID(id))))
	}
	before, _, _ := strings.Cut(with, " spool {")
	without := strings.Replace(g.caddyfile, with, before+"}", 1)
	for n := range 2 {
		if status, problem := reload(t, g.admin, strings.Replace(without, "retries 0", "retries "+strconv.Itoa(n), 1)); status != 200 {
			t.Fatalf("%d %s", status, problem)
		}
		g.await(t, leftWarning, n+1)
	}
	if line := warningLine(g.text(), leftWarning); !strings.Contains(line, `"records":3`) || !strings.Contains(line, `"spool":"`+dir+`"`) {
		t.Errorf("logged %s", line)
	}
	g.stop()
	again := serveSpoolSite(t, dir, before+"}", home)
	again.await(t, leftWarning, 1)
	again.stop()

	g = serveSpoolSite(t, dir, with, home)
	g.await(t, "the spool is open", 1)
	if line := warningLine(g.text(), "the spool is open"); !strings.Contains(line, `"records":3`) || !strings.Contains(line, `"encrypted":false`) ||
		!strings.Contains(line, `"spool":"`+dir+`"`) || !strings.Contains(line, `"`+v2.url()+`":3`) {
		t.Errorf("logged %s", line)
	}
	if line := warningLine(g.text(), leftWarning); line != "" {
		t.Errorf("logged %s", line)
	}
	v2.comeBack()
	v2.await(t, "1", "2", "3")
}

// TestSpoolQueuesStandAlone starts a gateway beside a directory of its spool that
// cannot be read and one that is none of it. Both are named, the rest goes on, and
// no second gateway gets the spool, whatever is deleted.
func TestSpoolQueuesStandAlone(t *testing.T) {
	t.Parallel()
	v2 := startFickle(t)
	dir := filepath.Join(t.TempDir(), "spool")
	unreadable := filepath.Join(dir, url.QueryEscape("https://eu01.records.in.treasuredata.com"))
	if err := errors.Join(os.MkdirAll(filepath.Join(dir, "backup"), 0o700), os.Symlink("/nowhere/at/all", unreadable)); err != nil {
		t.Fatal(err)
	}
	g := serveSpoolSite(t, dir, spoolBlock(v2.url(), dir, "", "mode always"))
	g.await(t, "a queue of the spool cannot be read now", 1)
	g.await(t, "a directory in the spool is none of it", 1)
	if line := warningLine(g.text(), "a queue of the spool cannot be read now"); !strings.Contains(line, `"file":"`+unreadable+`"`) {
		t.Errorf("logged %s", line)
	}
	v2.goAway(closes)
	isTaken(t, raw(t, g.addr, post(spoolTarget, asJSON, withID("kept"))))
	v2.comeBack()
	v2.await(t, "kept")
	for _, q := range g.state(t).Queues {
		if q.Name == "backup" {
			t.Error("a foreign directory is a queue")
		}
	}
	if err := os.Remove(filepath.Join(dir, "lock.db")); err != nil {
		t.Fatal(err)
	}
	admin, addr := freeAddr(t), freeAddr(t)
	_, port, _ := net.SplitHostPort(addr)
	output, code := run(t, "run", "--adapter", "caddyfile", "--config", write(t, "Caddyfile", spoolCaddyfile(admin, port, spoolBlock(v2.url(), dir, "", ""))))
	if code == 0 || !strings.Contains(output, "in use by another process") {
		t.Errorf("a second gateway ends with %d and %s", code, output)
	}
}

// TestSpoolRenamedQueue gives the directory of a queue another host's name, and
// puts records that are not encrypted beside those that are: nothing of it is
// delivered.
func TestSpoolRenamedQueue(t *testing.T) {
	t.Parallel()
	v2, evil := startFickle(t), startFickle(t)
	v2.goAway(closes)
	dir, key := filepath.Join(t.TempDir(), "spool"), write(t, "key", strings.Repeat("0f", 32))
	plain := serveSpool(t, v2.url(), "", "")
	isTaken(t, raw(t, plain.addr, post(spoolTarget, asJSON, withID("plain"))))
	plain.stop()
	g := serveSpoolSite(t, dir, spoolBlock(v2.url(), dir, "", "key_file "+key))
	isTaken(t, raw(t, g.addr, post(spoolTarget, asJSON, withID("secret"))))
	g.stop()
	of := func(v *fickle) string { return filepath.Join(dir, url.QueryEscape(v.url())) }
	if err := errors.Join(os.Rename(of(v2), of(evil)), os.Rename(filepath.Join(plain.dir, url.QueryEscape(v2.url())), of(v2))); err != nil {
		t.Fatal(err)
	}
	g = serveSpoolSite(t, dir, spoolBlock(v2.url(), dir, "", "key_file "+key))
	g.await(t, "a file of the spool cannot be read now", 1)
	if line := warningLine(g.text(), "a file of the spool cannot be read now"); !strings.Contains(line, "its directory has got another name") {
		t.Errorf("logged %s", line)
	}
	g.await(t, "records in the spool are not encrypted", 1)
	g.awaitState(t, func(s *spoolState) bool { return s.dead() == 1 })
	v2.comeBack()
	isTaken(t, raw(t, g.addr, post(spoolTarget, asJSON, withID("after"))))
	v2.await(t, "after")
	if len(v2.find("plain")) > 0 || len(evil.all()) > 0 {
		t.Errorf("v2 has taken %d that are not encrypted, and the other host %d", len(v2.find("plain")), len(evil.all()))
	}
	spoolPrints(t, g.admin, []string{"replay", "--all", "--queue", v2.url()}, "1 dead letter to be delivered again")
	v2.await(t, "plain")
	g.stop()
	if err := errors.Join(os.RemoveAll(of(v2)), os.Rename(of(evil), of(v2))); err != nil {
		t.Fatal(err)
	}
	serveSpoolSite(t, dir, spoolBlock(v2.url(), dir, "", "key_file "+key))
	v2.await(t, "secret")
}
