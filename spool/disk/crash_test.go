package disk

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/td-postback/gateway/spool"
)

const childRole, childDir, childFirst = "TEST_SPOOL_ROLE", "TEST_SPOOL_DIR", "TEST_SPOOL_FIRST"

// TestMain makes this binary a process that is killed, when a test says so.
func TestMain(m *testing.M) {
	roles := map[string]func() error{"use": useUntilKilled, "compact": compactUntilKilled, "groups": groupsUntilKilled, "lock": lockUntilKilled}
	if role := roles[os.Getenv(childRole)]; role != nil {
		if err := role(); err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

var crashConfig = Config{MaxSize: 4 << 20}

const crashProducers = 16

// say tells the parent what has happened, and when.
func say(what string, i int) {
	now := time.Now().UnixMicro()
	_, _ = fmt.Fprintf(os.Stdout, "%s %d %d\n", what, i, now)
}

// useUntilKilled appends records from several producers while it delivers
// those that are there. It says what it has done.
func useUntilKilled() error {
	cfg := crashConfig
	cfg.Dir = os.Getenv(childDir)
	d, err := Open(cfg)
	if err != nil {
		return err
	}
	first, err := strconv.Atoi(os.Getenv(childFirst))
	if err != nil {
		return err
	}
	for p := range crashProducers {
		go func() {
			for i := first + p; ; i += crashProducers {
				data := fmt.Appendf(nil, "%d %s", i, strings.Repeat("x", 300))
				err := d.Append(q1, spool.Record{Arrival: arrivalTime, Data: data})
				for ; errors.Is(err, spool.ErrFull); err = d.Append(q1, spool.Record{Arrival: arrivalTime, Data: data}) {
					time.Sleep(time.Millisecond)
				}
				if err != nil {
					fmt.Println("error", err)
					return
				}
				say("durable", i)
			}
		}()
	}
	q := d.Queue(q1)
	for {
		entries, err := q.Take(context.Background(), 20)
		if err != nil {
			return err
		}
		for _, e := range entries {
			text, _, _ := strings.Cut(string(e.Data), " ")
			i, err := strconv.Atoi(text)
			if err != nil {
				return err
			}
			switch {
			case i%50 == 7:
				go func() {
					if err := q.Bury(e, spool.Verdict{Status: 400, Reason: "refused"}); err == nil {
						say("buried", i)
					}
				}()
			case i%20 == 3 && e.Tries == 0:
				q.Later(e, 5*time.Millisecond)
			default:
				say("delivered", i) // before it may be forgotten
				q.Ack(e)
			}
		}
	}
}

// A process is killed again and again while it takes and delivers records. All
// that it said was durable is delivered or a dead letter, and only what was
// acked just before comes twice.
func TestKilledAgainAndAgain(t *testing.T) {
	t.Parallel()
	const kills = 20
	dir := t.TempDir()
	durable, delivered, buried := map[int]bool{}, map[int]int64{}, map[int]bool{}
	var twice int
	var end, oldest int64 // of the last run; how long before a kill what comes again was delivered, in µs
	again := func(i int) {
		if at, ok := delivered[i]; ok {
			twice++
			oldest = max(oldest, end-at)
		}
	}
	for kill := range kills {
		lines := runAndKill(t, "use", dir, kill*1_000_000, 100*time.Millisecond+time.Duration(kill*37%100)*time.Millisecond)
		last := int64(0)
		for _, line := range lines {
			var what string
			var i int
			var at int64
			if _, err := fmt.Sscan(line, &what, &i, &at); err != nil {
				t.Fatalf("the process said %q", line)
			}
			switch what {
			case "durable":
				durable[i] = true
			case "buried":
				buried[i] = true
			case "delivered":
				again(i)
				delivered[i] = at
			}
			last = max(last, at)
		}
		end = last
	}
	cfg := crashConfig
	cfg.Dir = dir
	var ev events
	cfg.OnEvent = ev.add
	started := time.Now()
	d := open(t, cfg)
	opened := time.Since(started)
	present, dead := map[int]bool{}, map[int]bool{}
	for i := range delivered {
		present[i] = true
	}
	left := takeAll(t, "after the last kill", d)
	for _, e := range left {
		again(number(t, e.Data))
		present[number(t, e.Data)] = true
	}
	letters, err := d.Letters(q1, 0, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range letters {
		dead[number(t, l.Data)] = true
		present[number(t, l.Data)] = true
	}
	missing := 0
	for i := range durable {
		if !present[i] {
			missing++
		}
	}
	for i := range buried {
		if !dead[i] {
			missing++
		}
	}
	t.Logf("%d durable, %d delivered, %d dead letters, %d left; %d came twice, delivered at most %d ms before a kill; opened in %v",
		len(durable), len(delivered), len(dead), len(left), twice, oldest/1000, opened)
	if missing > 0 {
		t.Errorf("%d records are missing", missing)
	}
	if len(durable) < kills*crashProducers || len(delivered) < kills*crashProducers {
		t.Errorf("only %d records in %d runs: the processes were killed too early", len(durable), kills)
	}
	// Acks gather for 20 ms. The rest is for a busy machine.
	if oldest > 500_000 {
		t.Errorf("a record came again that was delivered %d ms before the kill", oldest/1000)
	}
	for _, kind := range []spool.EventKind{spool.SetAside, spool.Damaged, spool.Unreadable, spool.Failed} {
		if n := len(ev.of(kind)); n > 0 {
			t.Errorf("the kills look like trouble: %d times %s", n, kind)
		}
	}
}

func number(t testing.TB, data []byte) (i int) {
	t.Helper()
	if _, err := fmt.Sscan(string(data), &i); err != nil {
		t.Fatalf("a record that nobody wrote: %.50q", data)
	}
	return i
}

// child starts this binary in a role.
func child(t testing.TB, role, dir string, first int) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), childRole+"="+role, childDir+"="+dir, childFirst+"="+strconv.Itoa(first))
	cmd.Stderr = os.Stderr
	return cmd
}

// runAndKill kills a child some time after it has said something, and returns
// what it had said.
func runAndKill(t testing.TB, role, dir string, first int, after time.Duration) (lines []string) {
	t.Helper()
	cmd := child(t, role, dir, first)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kill := sync.OnceFunc(func() { _ = cmd.Process.Kill() })
	defer kill()
	in := bufio.NewReader(out)
	for {
		line, err := in.ReadString('\n')
		if err == io.EOF {
			break // what it had not finished saying does not count
		}
		if err != nil {
			t.Fatal(err)
		}
		if lines == nil {
			time.AfterFunc(after, kill)
		}
		lines = append(lines, line)
	}
	_ = cmd.Wait()
	if lines == nil {
		t.Fatalf("the process has said nothing: %v", cmd.ProcessState)
	}
	return lines
}

// compactUntilKilled makes a segment smaller, again and again.
func compactUntilKilled() error {
	cfg := crashConfig
	cfg.Dir = os.Getenv(childDir)
	d, err := Open(cfg)
	if err != nil {
		return err
	}
	s := d.queue(q1).segments[0]
	if err := d.Close(); err != nil { // nobody else uses the segment
		return err
	}
	s = newSegment(s.path, s.first, s.coder)
	for {
		if _, err := s.compact(); err != nil {
			return err
		}
		fmt.Println("compacted")
	}
}

func TestKilledWhileCompacting(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cfg := crashConfig
	cfg.Dir = dir
	d := open(t, cfg)
	for i := range 300 {
		add(t, d, fmt.Sprintf("%d %s", i, strings.Repeat("x", 900)))
	}
	shut(t, d)
	for kill := range 8 {
		if lines := runAndKill(t, "compact", dir, 0, time.Duration(10+kill*3)*time.Millisecond); lines[0] != "compacted\n" {
			t.Fatalf("the process said %q", lines)
		}
		var ev events
		cfg.OnEvent = ev.add
		d := open(t, cfg)
		if got := takeAll(t, "after a kill", d); len(got) != 300 || len(ev.all) > 0 {
			t.Fatalf("%d records come, want 300; %v", len(got), ev.all)
		}
		if unfinished, _ := filepath.Glob(filepath.Join(dir, "*", "*"+newSuffix)); len(unfinished) > 0 {
			t.Errorf("%v was left", unfinished)
		}
		shut(t, d)
	}
}

// lockUntilKilled has the directory until it is killed.
func lockUntilKilled() error {
	cfg := crashConfig
	cfg.Dir = os.Getenv(childDir)
	if _, err := Open(cfg); err != nil {
		return err
	}
	fmt.Println("opened")
	select {}
}

func TestDirectoryHasOneOwner(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "new", "spool")
	d := open(t, Config{Dir: dir})
	if _, err := Open(Config{Dir: dir}); !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), dir) {
		t.Errorf("a second owner gets %v", err)
	}
	out, err := child(t, "lock", dir, 0).Output()
	if err == nil || !strings.Contains(string(out), ErrLocked.Error()) {
		t.Errorf("another process gets %q, %v", out, err)
	}
	shut(t, d)
	// The lock goes with the process.
	for range 3 {
		if lines := runAndKill(t, "lock", dir, 0, 0); lines[0] != "opened\n" {
			t.Fatalf("the process said %q", lines)
		}
	}
	d = open(t, Config{Dir: dir})
	add(t, d, "a")
	if err := filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		want := os.FileMode(0o600)
		if err == nil && info.IsDir() {
			want = 0o700
		}
		if err == nil && info.Mode().Perm() != want {
			t.Errorf("%s has mode %v, want %v", path, info.Mode().Perm(), want)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
}
