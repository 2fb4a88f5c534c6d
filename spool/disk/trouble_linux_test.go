package disk

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/td-postback/gateway/spool"
)

// limited marks the process that has a limit of its own.
const limited = "TEST_SPOOL_LIMITED"

// A file cannot grow any more, which is no full disk: it is written no more,
// what is in it comes, and new records go to other files.
func TestFileThatCannotGrow(t *testing.T) {
	t.Parallel()
	if os.Getenv(limited) == "" { // the limit is for the whole process
		exe, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(exe, "-test.run=^"+t.Name()+"$", "-test.v")
		cmd.Env = append(os.Environ(), limited+"=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	var ev events
	dir := t.TempDir()
	cfg := Config{Dir: dir, MaxSize: 64 << 20, OnEvent: ev.add}
	d := open(t, cfg)
	signal.Ignore(syscall.SIGXFSZ)
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: 3 << 20, Max: syscall.RLIM_INFINITY & (1<<63 - 1)}); err != nil {
		t.Fatal(err)
	}
	durable, failed := map[string]bool{}, 0
	for i := 0; failed < 3; i++ {
		data := fmt.Sprintf("%d %s", i, strings.Repeat("x", 50_000))
		switch err := d.Append(q1, spool.Record{Data: []byte(data)}); {
		case err == nil:
			durable[data] = true
		case errors.Is(err, spool.ErrUnavailable):
			failed++
		default:
			t.Fatal(err)
		}
	}
	if len(durable) < 60 || len(segmentFiles(t, dir)) < 3 {
		t.Errorf("%d records in %d files", len(durable), len(segmentFiles(t, dir)))
	}
	if len(ev.of(spool.Failed)) != 3 || len(ev.of(spool.Recovered)) != 2 {
		t.Errorf("%d failures and %d recoveries were reported, want 3 and 2", len(ev.of(spool.Failed)), len(ev.of(spool.Recovered)))
	}
	for range 2 {
		got := map[string]bool{}
		for _, e := range takeAll(t, "limited", d) {
			got[string(e.Data)] = true
		}
		for data := range durable {
			if !got[data] {
				t.Fatalf("%.10s is missing", data)
			}
		}
		shut(t, d)
		d = open(t, cfg)
	}
}

// Somebody deletes the file that takes records, or the whole directory: what is
// written there would be gone with the process, so that it does not count.
func TestActiveFileIsDeleted(t *testing.T) {
	t.Parallel()
	for _, what := range []string{"file", "queue", "directory"} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			var ev events
			dir := filepath.Join(t.TempDir(), "spool")
			d := open(t, Config{Dir: dir, OnEvent: ev.add})
			add(t, d, "before")
			file := segmentFiles(t, dir)[0]
			path := map[string]string{"file": file, "queue": filepath.Dir(file), "directory": dir}[what]
			if err := os.RemoveAll(path); err != nil {
				t.Fatal(err)
			}
			if err := d.Append(q1, spool.Record{Data: []byte("into nothing")}); !errors.Is(err, spool.ErrUnavailable) {
				t.Errorf("Append without a file gives %v", err)
			}
			add(t, d, "after")
			if files := segmentFiles(t, dir); len(files) != 1 || files[0] == file {
				t.Fatalf("the files are %v", files)
			}
			// What is in the deleted file can still be delivered.
			all := takeAll(t, "deleted", d)
			if len(all) < 2 || string(all[0].Data) != "before" || string(all[len(all)-1].Data) != "after" {
				t.Errorf("%d records come", len(all))
			}
			for _, e := range all {
				d.Queue(q1).Ack(e)
			}
			if len(ev.of(spool.Failed)) != 1 || len(ev.of(spool.Recovered)) != 1 {
				t.Errorf("%+v was reported", ev.all)
			}
			shut(t, d)
			d = open(t, Config{Dir: dir})
			if depth, err := d.Depth(q1); err != nil || depth.Records != 0 {
				t.Errorf("%+v is left, %v", depth, err)
			}
		})
	}
}

// The directory cannot be written: Append says so, and the spool finds out by
// itself when it can.
func TestDirectoryCannotBeWritten(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var ev events
	d := open(t, Config{Dir: dir, OnEvent: ev.add})
	path := d.queue(q1).dir
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := d.Append(q1, spool.Record{}); !errors.Is(err, spool.ErrUnavailable) || !errors.Is(err, syscall.ENOTDIR) {
			t.Errorf("Append gives %v", err)
		}
	}
	if len(ev.of(spool.Failed)) != 1 || len(ev.of(spool.Recovered)) != 0 {
		t.Errorf("%d failures and %d recoveries were reported", len(ev.of(spool.Failed)), len(ev.of(spool.Recovered)))
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the disk is known to take records", func() bool { return len(ev.of(spool.Recovered)) == 1 })
	if files, err := os.ReadDir(path); err != nil || len(files) > 0 {
		t.Errorf("the look at the disk leaves %v, %v", files, err)
	}
	add(t, d, "a")
}

// A file that cannot be read is left as it is, and tried again; the others go on.
func TestUnreadableFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for i := range 3 {
		d := open(t, Config{Dir: dir})
		add(t, d, fmt.Sprint(i))
		shut(t, d)
	}
	files := segmentFiles(t, dir)
	away := filepath.Join(t.TempDir(), "away")
	for what, hide := range map[string]func() error{
		"deleted":     func() error { return nil },
		"a directory": func() error { return os.Mkdir(files[1], 0o700) },
		"a link":      func() error { return os.Symlink(files[1], files[1]) },
	} {
		var ev events
		d := open(t, Config{Dir: dir, OnEvent: ev.add})
		if err := os.Rename(files[1], away); err != nil {
			t.Fatal(err)
		}
		if err := hide(); err != nil {
			t.Fatal(err)
		}
		got := data(take(t, d, 2))
		if strings.Join(got, " ") != "0 2" {
			t.Errorf("%s: %v come", what, got)
		}
		if e := ev.of(spool.Unreadable); len(e) != 1 || e[0].File != files[1] || e[0].Err == nil || len(ev.all) != 1 {
			t.Errorf("%s: %v was reported", what, ev.all)
		}
		_ = os.Remove(files[1])
		if err := os.Rename(away, files[1]); err != nil {
			t.Fatal(err)
		}
		q := d.queue(q1)
		q.mu.Lock()
		q.segments[1].readAt = time.Time{} // some seconds later
		q.mu.Unlock()
		notify(q.arrived)
		if e := take(t, d, 1)[0]; string(e.Data) != "1" {
			t.Errorf("%s: %q comes", what, e.Data)
		}
		shut(t, d)
	}
}

// What a process leaves that dies while it makes, salvages or compacts a file.
func TestUnfinishedFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	d := open(t, Config{Dir: dir})
	add(t, d, "a")
	shut(t, d)
	path := segmentFiles(t, dir)[0]
	content, err := os.ReadFile(path) //nolint:gosec // G304: the test's own file
	if err != nil {
		t.Fatal(err)
	}
	damaged := bytes.Clone(content)
	damaged[metaSum]++
	for what, files := range map[string]map[string][]byte{
		"a new file":                        {"": content, newSuffix: content[:5000]},
		"an empty new file":                 {"": content, newSuffix: nil},
		"rescued records are not finished":  {"": damaged, newSuffix: content[:5000]},
		"rescued records are finished":      {"": damaged, rescuedSuffix: content},
		"rescued records have no name":      {damagedSuffix: damaged, rescuedSuffix: content},
		"rescued records have their name":   {damagedSuffix: damaged, "": content},
		"rescued records of another damage": {"": damaged, damagedSuffix: damaged, rescuedSuffix: content[:5000]},
	} {
		old, err := filepath.Glob(path + "*")
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range old {
			if err := os.Remove(f); err != nil {
				t.Fatal(err)
			}
		}
		for suffix, content := range files {
			if err := os.WriteFile(path+suffix, content, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		d := open(t, Config{Dir: dir})
		if all := takeAll(t, what, d); len(all) != 1 || string(all[0].Data) != "a" {
			t.Errorf("%s: %d records come", what, len(all))
		}
		for _, suffix := range []string{newSuffix, rescuedSuffix} {
			eventually(t, what+": "+suffix+" is gone", func() bool {
				_, err := os.Stat(path + suffix)
				return isGone(err)
			})
		}
		shut(t, d)
	}
}

// A damaged lock holds nobody up.
func TestDamagedLock(t *testing.T) {
	dir := t.TempDir()
	d := open(t, Config{Dir: dir})
	add(t, d, "a")
	shut(t, d)
	for _, size := range []int{0, 1, page, 2 * page, 3 * page, 4 * page} {
		if err := os.WriteFile(filepath.Join(dir, "lock.db"), bytes.Repeat([]byte{1}, size), 0o600); err != nil {
			t.Fatal(err)
		}
		d := open(t, Config{Dir: dir})
		if _, err := Open(Config{Dir: dir}); !errors.Is(err, ErrLocked) {
			t.Errorf("a second owner gets %v", err)
		}
		shut(t, d)
	}
}

// A delivery that cannot be noted before the end is told of: the record comes
// again.
func TestUnnotedDeliveriesAreCounted(t *testing.T) {
	t.Parallel()
	var ev events
	cfg := Config{Dir: t.TempDir(), OnEvent: ev.add}
	d := open(t, cfg)
	for i := range 10 {
		add(t, d, fmt.Sprint(i))
	}
	entries := take(t, d, 10)
	file := segmentFiles(t, cfg.Dir)[0]
	content, err := os.ReadFile(file) //nolint:gosec // G304: the test's own file
	if err := errors.Join(err, os.Remove(file)); err != nil {
		t.Fatal(err)
	}
	for _, e := range entries[:7] {
		d.Queue(q1).Ack(e)
	}
	shut(t, d)
	if told := ev.of(spool.Unnoted); len(told) != 1 || told[0].Records != 7 || told[0].Err == nil {
		t.Errorf("told %+v", told)
	}
	if err := os.WriteFile(file, content, 0o600); err != nil { //nolint:gosec // G703: the test's own file, as it was
		t.Fatal(err)
	}
	d = open(t, cfg)
	expectDepth(t, d, 10, 0)
}
