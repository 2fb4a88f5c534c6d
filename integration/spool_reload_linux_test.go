package integration

import (
	"encoding/hex"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestSpoolReload reloads the configuration while callers send, with v2 down
// and up, and changes what can be changed. The spool goes from one configuration
// to the next: no record whose caller was told 200 is lost, and none comes twice.
func TestSpoolReload(t *testing.T) {
	t.Parallel()
	for name, handover := range map[string]bool{"with td_handover": true, "without": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			reloadSpool(t, handover)
		})
	}
}

func reloadSpool(t *testing.T, handover bool) {
	first, second := startFickle(t), startFickle(t)
	g := &spooling{admin: freeAddr(t), dir: t.TempDir() + "/spool"}
	var config func(upstream, spool string) string
	var addr string
	if handover {
		var socket *os.File
		addr, socket = outsideSocket(t)
		config = func(upstream, spool string) string {
			return socketCaddyfile(g.admin, spoolBlock(upstream, g.dir, "", spool))
		}
		g.gateway = &gateway{addr: addr, process: startOn(t, config(first.url(), ""), socket)}
	} else {
		addr = freeAddr(t)
		_, port, _ := net.SplitHostPort(addr)
		config = func(upstream, spool string) string {
			return spoolCaddyfile(g.admin, port, spoolBlock(upstream, g.dir, "", spool))
		}
		g.gateway = serveCaddyfile(t, addr, config(first.url(), ""))
	}
	saysNoSecret(t, g.process)
	callers := startTraffic(t, addr, 8, 1<<30, "")
	callers.await(t, 50)

	first.goAway(closes)
	for n, spool := range []string{
		"drain_rate 5000", "mode always", "mode always\n drain_rate 100", "mode on_failure", "max_age 5d", "mode always\n drain_rate 100000",
	} {
		callers.await(t, 50)
		if n == 3 {
			first.comeBack()
		}
		if status, problem := reload(t, g.admin, config(first.url(), spool)); status != http.StatusOK {
			t.Fatalf("reload: %d %s", status, problem)
		}
	}
	callers.await(t, 50)

	// These fail, one before anything is set up and one after all is. The
	// configuration that serves keeps its spool, and its mode.
	before := g.state(t)
	for _, wrong := range []string{
		config(first.url(), "max_age 8d"),
		config(first.url(), "mode on_failure\n drain_rate 1") + "https://localhost:1 {\n tls /nonexistent /nonexistent\n}\n",
		strings.Replace(config(first.url(), "mode on_failure\n drain_rate 1"),
			"http://", "http://127.0.0.1:1 {\n bind 192.0.2.1\n}\nhttp://", 1),
	} {
		if status, _ := reload(t, g.admin, wrong); status == http.StatusOK {
			t.Fatal("a wrong configuration was loaded")
		}
		callers.await(t, 50)
	}
	if after := g.state(t); after.Spool != before.Spool || !after.Available {
		t.Errorf("after reloads that failed: %+v", after)
	}

	// What was kept for the old address is delivered there.
	first.goAway(closes)
	callers.await(t, 50)
	if status, problem := reload(t, g.admin, config(second.url(), "drain_rate 100000")); status != http.StatusOK {
		t.Fatalf("reload: %d %s", status, problem)
	}
	callers.await(t, 50)
	second.goAway(answers("503", ""))
	callers.await(t, 50)
	first.comeBack()
	callers.stop()
	second.comeBack()
	g.awaitEmpty(t)

	times := map[string]int{}
	for _, v2 := range []*fickle{first, second} {
		for _, r := range v2.all() {
			times[r.id]++
		}
	}
	for _, id := range callers.acked {
		if times[id] != 1 {
			t.Errorf("record %s is at v2 %d times", id, times[id])
		}
	}
	if callers.refused > 0 || handover && callers.cut > 0 {
		t.Errorf("%d callers were told 503, %d nothing", callers.refused, callers.cut)
	}
	if len(first.all()) == 0 || len(second.all()) == 0 {
		t.Error("one v2 has got nothing")
	}
	if text := g.text(); strings.Contains(text, "in use by another") || strings.Contains(text, "refuses records") {
		t.Errorf("the log has\n%s", text)
	}
	t.Logf("%d records acknowledged, %d callers cut", len(callers.acked), callers.cut)
}

// TestSpoolModeAfterFailedReload checks that a reload that fails does not change
// how records are delivered.
func TestSpoolModeAfterFailedReload(t *testing.T) {
	t.Parallel()
	v2 := startFickle(t)
	v2.goAway(closes)
	g := serveSpool(t, v2.url(), "", "mode always\n drain_rate 100000")
	callers := startTraffic(t, g.addr, 4, 400, "")
	callers.await(t, 400)
	wrong := strings.Replace(g.caddyfile, "drain_rate 100000", "drain_rate 1", 1) +
		"https://localhost:1 {\n tls /nonexistent /nonexistent\n}\n"
	if status, _ := reload(t, g.admin, wrong); status == http.StatusOK {
		t.Fatal("a wrong configuration was loaded")
	}
	v2.goAway(answers("503", "")) // a 200 must come from the spool
	isTaken(t, raw(t, g.addr, post(spoolTarget, asJSON, withID("after"))))
	v2.comeBack()
	v2.await(t, append(callers.acked, "after")...) // at one a second that would take minutes
	g.awaitEmpty(t)
}

// TestSpoolRemoved takes the spool out of the configuration: another gateway can
// have the directory then. A later configuration finds the records.
func TestSpoolRemoved(t *testing.T) {
	t.Parallel()
	v2 := startFickle(t)
	v2.goAway(closes)
	g := serveSpool(t, v2.url(), "", "")
	var ids []string
	keep := func(g *spooling) {
		t.Helper()
		id := strconv.Itoa(len(ids))
		isTaken(t, raw(t, g.addr, post(spoolTarget, asJSON, withID(id))))
		ids = append(ids, id)
	}
	keep(g)
	_, port, _ := net.SplitHostPort(g.addr)
	plain := spoolCaddyfile(g.admin, port, "td_postback {\n upstream "+v2.url()+"\n retries 0\n}")
	load := func(config string) {
		t.Helper()
		if status, problem := reload(t, g.admin, config); status != http.StatusOK {
			t.Fatalf("reload: %d %s", status, problem)
		}
	}
	load(plain)
	if answer := raw(t, g.addr, post(spoolTarget, asJSON, withID("lost"))); answer.StatusCode != 502 {
		t.Errorf("without a spool: got %d %q", answer.StatusCode, answer.body)
	}
	var all []spoolState
	if status := askAdmin(t, http.MethodGet, g.admin, "spool", &all); status != 200 || len(all) != 0 {
		t.Errorf("got %d %+v", status, all)
	}

	other := serveSpoolSite(t, g.dir, spoolBlock(v2.url(), g.dir, "", "")) // it has its own process
	keep(other)
	other.awaitState(t, func(s *spoolState) bool { return s.records() == 2 })
	if status, problem := reload(t, g.admin, g.caddyfile); status == http.StatusOK || !strings.Contains(problem, "in use by another process") {
		t.Errorf("while another process has it: %d %s", status, problem)
	}
	if answer := raw(t, g.addr, post(spoolTarget, asJSON, withID("lost"))); answer.StatusCode != 502 {
		t.Errorf("after a reload that failed: got %d %q", answer.StatusCode, answer.body)
	}
	other.stop()
	load(g.caddyfile)
	keep(g)
	if n := g.state(t).records(); n != 3 {
		t.Errorf("%d records", n)
	}

	// SIGTERM, and start again.
	g.stop()
	if code := g.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("it ended with %d", code)
	}
	again := serveSpoolSite(t, g.dir, spoolBlock(v2.url(), g.dir, "", ""))
	v2.comeBack()
	v2.await(t, ids...)
	again.awaitEmpty(t)
	if n := len(v2.all()); n != len(ids) {
		t.Errorf("v2 has taken %d records, want %d", n, len(ids))
	}
}

// TestSpoolStopsUnderLoad ends the gateway with SIGTERM while it delivers. The
// gateway waits for what is on its way, so nothing comes twice.
func TestSpoolStopsUnderLoad(t *testing.T) {
	t.Parallel()
	const total = 1000
	v2 := startFickle(t)
	v2.goAway(closes)
	g := serveSpool(t, v2.url(), "max_conns 32", "drain_rate 100000")
	callers := startTraffic(t, g.addr, 8, total, "")
	callers.await(t, total)
	v2.comeBack()
	v2.awaitUntil(t, func() bool { return len(v2.taken) > 50 },
		func() string { return fmt.Sprintf("%d delivered, %+v", len(v2.taken), g.state(t)) })
	g.stop()
	before := len(v2.all())
	again := serveSpoolSite(t, g.dir, spoolBlock(v2.url(), g.dir, "", "drain_rate 100000"))
	v2.await(t, callers.acked...)
	again.awaitEmpty(t)
	if n := len(v2.all()); n != total {
		t.Errorf("v2 has taken %d records, %d of them before the gateway was stopped", n, before)
	}
	t.Logf("%d records were delivered before the gateway was stopped", before)
}

// TestSpoolHasOneOwner starts a second gateway on a directory.
func TestSpoolHasOneOwner(t *testing.T) {
	t.Parallel()
	v2 := startFickle(t)
	v2.goAway(closes)
	g := serveSpool(t, v2.url(), "", "")
	isTaken(t, raw(t, g.addr, post(spoolTarget, asJSON, withID("a"))))
	_, port, _ := net.SplitHostPort(freeAddr(t))
	output, code := run(t, "run", "--adapter", "caddyfile", "--config",
		write(t, "Caddyfile", spoolCaddyfile("off", port, spoolBlock(v2.url(), g.dir, "", ""))))
	if code == 0 || !strings.Contains(output, "in use by another process") || !strings.Contains(output, g.dir) {
		t.Errorf("exit %d: %s", code, output)
	}
	isTaken(t, raw(t, g.addr, post(spoolTarget, asJSON, withID("b"))))
	v2.comeBack()
	v2.await(t, "a", "b")
	g.awaitEmpty(t)

	mode := func(path string) fs.FileMode {
		t.Helper()
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return info.Mode()
	}
	if got := mode(g.dir); got != fs.ModeDir|0o700 {
		t.Errorf("%s is %v", g.dir, got)
	}
	files := 0
	err := filepath.WalkDir(g.dir, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && !entry.IsDir() {
			files++
			if got := mode(path); got != 0o600 {
				t.Errorf("%s is %v", path, got)
			}
		} else if err == nil && mode(path) != fs.ModeDir|0o700 {
			t.Errorf("%s is %v", path, mode(path))
		}
		return err
	})
	if err != nil || files < 2 {
		t.Errorf("%d files, %v", files, err)
	}
}

// TestSpoolShared has two blocks share a directory.
func TestSpoolShared(t *testing.T) {
	t.Parallel()
	one, two := startFickle(t), startFickle(t)
	one.goAway(closes)
	two.goAway(closes)
	dir := t.TempDir() + "/spool"
	site := func(first, second string) string {
		return "handle_path /one/* {\n" + spoolBlock(one.url(), dir, "", first) +
			"\n}\nhandle {\n" + spoolBlock(two.url(), dir, "", second) + "\n}"
	}
	g := serveSpoolSite(t, dir, site("mode always", ""))
	isTaken(t, raw(t, g.addr, post("/one"+spoolTarget, asJSON, withID("1"))))
	isTaken(t, raw(t, g.addr, post(spoolTarget, asJSON, withID("2"))))
	if s := g.state(t); len(s.Queues) != 2 || s.records() != 2 {
		t.Errorf("got %+v", s)
	}
	one.comeBack()
	one.await(t, "1")
	two.comeBack()
	two.await(t, "2")
	g.awaitEmpty(t)
	if len(one.all()) != 1 || len(two.all()) != 1 {
		t.Errorf("they have taken %d and %d records", len(one.all()), len(two.all()))
	}

	for _, other := range []string{"max_size 1GiB", "max_age 1d", "drain_rate 7"} {
		_, port, _ := net.SplitHostPort(freeAddr(t))
		output, code := run(t, "run", "--adapter", "caddyfile", "--config",
			write(t, "Caddyfile", strings.ReplaceAll(spoolCaddyfile("off", port, site("", other)), dir, dir+"2")))
		if code == 0 || !strings.Contains(output, dir+"2") || !strings.Contains(output, "other options") {
			t.Errorf("%s: exit %d: %s", other, code, output)
		}
	}
}

// TestSpoolEncrypted looks for what must not be on the disk.
func TestSpoolEncrypted(t *testing.T) {
	t.Parallel()
	v2 := startFickle(t)
	v2.goAway(closes)
	key := strings.Repeat("0123456789abcdef", 4)
	keyFile, otherKey := write(t, "key", key+"\n"), write(t, "other", strings.Repeat("f", 64))
	g := serveSpool(t, v2.url(), "", "key_file "+keyFile)
	for n := range 10 {
		isTaken(t, raw(t, g.addr, post(strings.Replace(spoolTarget, "/tbl", "/secrettable", 1), asJSON, withID(strconv.Itoa(n)))))
	}
	kill(g.process)
	raw, _ := hex.DecodeString(key)
	files := 0
	err := filepath.WalkDir(g.dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		content, err := os.ReadFile(path) //nolint:gosec // G122: nobody else writes there
		if err != nil {
			return err
		}
		files++
		for _, secret := range []string{spoolSecret, spoolText, "secrettable", "td_record_time", "X-TD-Write-Key", key, string(raw)} {
			if strings.Contains(string(content), secret) {
				t.Errorf("%s holds %q", path, secret)
			}
		}
		return nil
	})
	if err != nil || files < 2 {
		t.Errorf("%d files, %v", files, err)
	}

	_, port, _ := net.SplitHostPort(freeAddr(t))
	for spool, says := range map[string][]string{
		"key_file " + otherKey:                   {"another key", g.dir},
		"":                                       {"another key", g.dir},
		"key_file /nonexistent":                  {`spool key_file "/nonexistent"`, "readable"},
		"key_file " + write(t, "short", key[1:]): {"spool key_file", "64 hexadecimal digits", "openssl rand -hex 32"},
		"key_file " + write(t, "words", key[:63]+"g"): {"spool key_file", "64 hexadecimal digits"},
	} {
		output, code := run(t, "run", "--adapter", "caddyfile", "--config",
			write(t, "Caddyfile", spoolCaddyfile("off", port, spoolBlock(v2.url(), g.dir, "", spool))))
		if code == 0 || strings.Contains(output, key[1:63]) {
			t.Errorf("%s: exit %d: %s", spool, code, output)
		}
		for _, text := range says {
			if !strings.Contains(strings.ReplaceAll(output, `\"`, `"`), text) {
				t.Errorf("%s: %q is not in %s", spool, text, output)
			}
		}
	}

	again := serveSpoolSite(t, g.dir, spoolBlock(v2.url(), g.dir, "", "key_file "+keyFile))
	status, problem := reload(t, again.admin, strings.Replace(again.caddyfile, keyFile, otherKey, 1))
	if status == http.StatusOK || !strings.Contains(problem, "key_file") || !strings.Contains(problem, "another key") {
		t.Errorf("reload with another key: %d %s", status, problem)
	}
	v2.comeBack()
	v2.await(t, "0", "1", "2", "3", "4", "5", "6", "7", "8", "9")
	again.awaitEmpty(t)
}

// TestSpoolKeepsTime stops a gateway for a while: a record has the time at which
// it came, however late it goes.
func TestSpoolKeepsTime(t *testing.T) {
	t.Parallel()
	v2 := startFickle(t)
	v2.goAway(closes)
	g := serveSpool(t, v2.url(), "", "")
	from := time.Now().Unix()
	isTaken(t, raw(t, g.addr, post(spoolTarget, asJSON, withID("a"))))
	to := time.Now().Unix()
	_ = g.cmd.Process.Signal(syscall.SIGTERM)
	<-g.exited
	for time.Now().Unix() < to+2 {
		time.Sleep(10 * time.Millisecond) // the clock goes on
	}
	serveSpoolSite(t, g.dir, spoolBlock(v2.url(), g.dir, "", ""))
	v2.comeBack()
	v2.await(t, "a")
	added := addedTime.FindStringSubmatch(v2.find("a")[0].body)
	if added == nil {
		t.Fatal("no time")
	}
	if second, _ := strconv.ParseInt(added[1], 10, 64); second < from || second > to {
		t.Errorf("the time is %d, the record came between %d and %d", second, from, to)
	}
}
