package disk

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/td-postback/gateway/spool"
)

// uuid is what names a record at v2.
type uuid struct {
	namespace [16]byte
	id        spool.ID
}

// uuidsOf tells the uuids of records by their data. None is without one, and no two
// have the same.
func uuidsOf(t testing.TB, entries []spool.Entry) map[string]uuid {
	t.Helper()
	all, taken := map[string]uuid{}, map[uuid]bool{}
	for _, e := range entries {
		name := uuid{e.Namespace, e.ID}
		if e.Namespace == [16]byte{} || taken[name] {
			t.Fatalf("%.20q has the uuid %x", e.Data, name)
		}
		taken[name] = true
		all[string(e.Data)] = name
	}
	return all
}

// expectUUIDs wants the same records with the same uuids.
func expectUUIDs(t testing.TB, what string, got []spool.Entry, want map[string]uuid) {
	t.Helper()
	all := uuidsOf(t, got)
	for data, name := range want {
		if all[data] != name {
			t.Errorf("%s: %.20q is %x, want %x", what, data, all[data], name)
		}
	}
	if len(all) != len(want) {
		t.Errorf("%s: %d records come, want %d", what, len(all), len(want))
	}
}

func namespacePath(t testing.TB, dir string) string {
	t.Helper()
	dirs, err := filepath.Glob(filepath.Join(dir, "http*"))
	if err != nil || len(dirs) != 1 {
		t.Fatal(dirs, err)
	}
	return filepath.Join(dirs[0], namespaceName)
}

// copyDir makes a copy of a spool's directory.
func copyDir(t testing.TB, from string) (to string) {
	t.Helper()
	to = filepath.Join(t.TempDir(), "copy")
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	return to
}

// A record's uuid stays, however it comes out of the spool.
func TestNamespaceStays(t *testing.T) {
	t.Parallel()
	for _, key := range [][]byte{nil, make([]byte, spool.KeySize)} {
		dir := t.TempDir()
		d := open(t, Config{Dir: dir, Key: key})
		for i := range 8 {
			add(t, d, fmt.Sprintf("record %d", i))
		}
		q := d.Queue(q1)
		newest, err := q.TakeNewest(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		entries := append(take(t, d, 7), newest...)
		want := uuidsOf(t, entries)
		for _, e := range entries[:7] {
			q.Later(spool.Entry{ID: e.ID}, 0)
		}
		expectUUIDs(t, "put back", append(take(t, d, 7), newest...), want)
		if err := q.Bury(entries[0], spool.Verdict{Status: 400}); err != nil {
			t.Fatal(err)
		}
		if n, err := d.Replay(q1, entries[0].ID); n != 1 || err != nil {
			t.Fatal(n, err)
		}
		replayed := take(t, d, 1)
		if !replayed[0].Replayed {
			t.Error("it is not the replayed one")
		}
		expectUUIDs(t, "replayed", append(replayed, entries[1:]...), want)
		shut(t, d)
		for range 2 {
			d = open(t, Config{Dir: dir, Key: key})
			expectUUIDs(t, "opened again", takeAll(t, "opened again", d), want)
			shut(t, d)
		}
		dir = copyDir(t, dir) // a backup, or what a second machine has of it
		d = open(t, Config{Dir: dir, Key: key})
		expectUUIDs(t, "a copy", takeAll(t, "a copy", d), want)
	}
}

// It stays when the file is made smaller, and when its records are taken out of a
// damaged one.
func TestNamespaceStaysOverOtherFiles(t *testing.T) {
	t.Parallel()
	x := makeSpecimen(t, 40, 100)
	d := open(t, Config{Dir: x.dir, MaxSize: minMaxSize})
	want := uuidsOf(t, takeAll(t, "whole", d))
	for _, s := range d.queue(q1).segments {
		if _, err := s.compact(); err != nil {
			t.Fatal(err)
		}
	}
	shut(t, d)
	d = open(t, Config{Dir: x.dir, MaxSize: minMaxSize})
	expectUUIDs(t, "made smaller", takeAll(t, "made smaller", d), want)
	shut(t, d)
	damaged := bytes.Clone(x.content)
	damaged[pageHeader+metaSum]++
	if err := os.WriteFile(x.path, damaged, 0o600); err != nil {
		t.Fatal(err)
	}
	var ev events
	d = open(t, Config{Dir: x.dir, MaxSize: minMaxSize, OnEvent: ev.add})
	rescued := uuidsOf(t, takeAll(t, "rescued", d))
	for data, name := range want {
		if rescued[data] != name {
			t.Errorf("rescued: %.20q is %x, want %x", data, rescued[data], name)
		}
	}
	if n := len(ev.of(spool.SetAside)); n != 1 {
		t.Errorf("%d files were set aside", n)
	}
}

// No two records have the same uuid: not if their IDs are the same, in a directory
// that was made anew, in copies of one, in one of another version of itself, or in
// two queues.
func TestNamespacesDiffer(t *testing.T) {
	t.Parallel()
	names := map[[16]byte]string{}
	known := func(what string, entries []spool.Entry) {
		t.Helper()
		for _, e := range entries {
			if other, ok := names[e.Namespace]; ok || e.Namespace == [16]byte{} {
				t.Errorf("%s has the name of %s: %x", what, other, e.Namespace)
			}
			names[e.Namespace] = what
		}
	}
	// one appends a record with the ID that it always has.
	const later = spool.ID(1) << 52
	one := func(what string, cfg Config, queues ...string) {
		t.Helper()
		d := open(t, cfg)
		for _, name := range append(queues, q1) {
			q := d.queue(name)
			q.mu.Lock()
			q.next = later
			q.mu.Unlock()
			if err := d.Append(name, spool.Record{Arrival: arrivalTime, Data: []byte("a")}); err != nil {
				t.Fatal(err)
			}
			entries, err := q.Take(t.Context(), 10)
			if err != nil || len(entries) != 1 || entries[0].ID != later+1 {
				t.Fatalf("%s: %v, %v", what, entries, err)
			}
			known(what, entries)
			q.Ack(entries[0])
		}
		shut(t, d)
	}
	dir := filepath.Join(t.TempDir(), "spool")
	one("the first", Config{Dir: dir}, "https://tokyo.example")
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	one("made anew", Config{Dir: dir})
	for range 3 {
		one("a copy", Config{Dir: copyDir(t, dir)})
	}
	one("itself", Config{Dir: dir})
}

// A machine that goes back to what was in its memory gives an ID again, at another
// time.
func TestNamespaceOfAnotherArrival(t *testing.T) {
	t.Parallel()
	d := open(t, Config{})
	for i := range 3 {
		if err := d.Append(q1, spool.Record{Arrival: arrivalTime.Add(time.Duration(i/2) * time.Millisecond), Data: []byte("a")}); err != nil {
			t.Fatal(err)
		}
	}
	e := take(t, d, 3)
	if e[0].Namespace != e[1].Namespace || e[1].Namespace == e[2].Namespace {
		t.Errorf("names %x, %x, %x", e[0].Namespace, e[1].Namespace, e[2].Namespace)
	}
}

// A queue's records keep their uuids when its process is killed, whenever that is.
func TestKilledKeepsNamespaces(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cfg := crashConfig
	cfg.Dir = dir
	known := map[string]uuid{}
	for kill := range 6 {
		runAndKill(t, "use", dir, kill*1_000_000, time.Duration(kill)*10*time.Millisecond)
		d := open(t, cfg)
		all := uuidsOf(t, takeAll(t, "after a kill", d))
		for data, name := range known {
			if now, ok := all[data]; ok && now != name {
				t.Errorf("%.20q is %x, and was %x", data, now, name)
			}
		}
		known = all
		shut(t, d)
	}
}

// A queue of before gets a name when it is opened. One that is damaged is told of,
// and there is a new one; while it cannot be read, the records have none, and it
// stays as it is.
func TestNamespaceFile(t *testing.T) {
	t.Parallel()
	for what, c := range map[string]struct {
		spoil func(path string) error
		told  int
		same  bool
		none  bool
	}{
		"as it was":           {func(string) error { return nil }, 0, true, false},
		"of before":           {os.Remove, 0, false, false},
		"empty":               {func(path string) error { return os.Truncate(path, 0) }, 1, false, false},
		"cut":                 {func(path string) error { return os.Truncate(path, 20) }, 1, false, false},
		"all zero":            {func(path string) error { return os.WriteFile(path, make([]byte, namespaceSize), 0o600) }, 1, false, false},
		"zero":                {func(path string) error { return os.WriteFile(path, []byte(strings.Repeat("0", 32)+"\n"), 0o600) }, 1, false, false},
		"was not finished":    {func(path string) error { return os.Rename(path, path+newSuffix) }, 0, false, false},
		"cannot be read":      {func(path string) error { _ = os.Remove(path); return os.Mkdir(path, 0o700) }, 1, false, true},
		"is a link to itself": {func(path string) error { _ = os.Remove(path); return os.Symlink(path, path) }, 1, false, true},
	} {
		var ev events
		cfg := Config{Dir: t.TempDir(), OnEvent: ev.add}
		d := open(t, cfg)
		add(t, d, "a")
		before := take(t, d, 1)[0].Namespace
		shut(t, d)
		path := namespacePath(t, cfg.Dir)
		if err := c.spoil(path); err != nil {
			t.Fatal(err)
		}
		d = open(t, cfg)
		add(t, d, "b")
		var names [2][16]byte
		for i, e := range take(t, d, 2) {
			names[i] = e.Namespace
		}
		if c.same != (names[0] == before) || c.none != (names[0] == [16]byte{}) || c.none != (names[1] == [16]byte{}) {
			t.Errorf("%s: the names are %x, and before %x", what, names, before)
		}
		told := ev.of(spool.Unnamed)
		if len(told) != c.told || c.told == 1 && (told[0].Queue != q1 || told[0].File != path || told[0].Err == nil) {
			t.Errorf("%s: told %v", what, told)
		}
		shut(t, d)
		if c.none {
			continue
		}
		d = open(t, cfg)
		for i, e := range take(t, d, 2) {
			if names[i] != e.Namespace {
				t.Errorf("%s: the name is %x later, and was %x", what, e.Namespace, names[i])
			}
		}
		if n := len(ev.of(spool.Unnamed)); n != c.told {
			t.Errorf("%s: told %d times", what, n)
		}
		shut(t, d)
		if left, _ := filepath.Glob(path + ".*"); len(left) > 0 {
			t.Errorf("%s: %v was left", what, left)
		}
	}
}

// What could not be read is read later; until then, records come without a name.
func TestNamespaceComesLater(t *testing.T) {
	t.Parallel()
	cfg := Config{Dir: t.TempDir()}
	d := open(t, cfg)
	add(t, d, "a")
	want := uuidsOf(t, take(t, d, 1))
	shut(t, d)
	path := namespacePath(t, cfg.Dir)
	if err := os.Rename(path, path+"-away"); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	d = open(t, cfg)
	e := take(t, d, 1)
	if e[0].Namespace != [16]byte{} {
		t.Errorf("the name is %x", e[0].Namespace)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+"-away", path); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it has its name", func() bool {
		d.Queue(q1).Later(e[0], 0)
		e = take(t, d, 1)
		return e[0].Namespace != [16]byte{}
	})
	expectUUIDs(t, "later", e, want)
}

// Somebody deletes the queue's directory, or only the name in it, while a process
// has it: what is written then has its name after a restart too.
func TestNamespaceFileIsDeleted(t *testing.T) {
	t.Parallel()
	cfg := Config{Dir: t.TempDir(), MaxSize: minMaxSize}
	d := open(t, cfg)
	add(t, d, "a")
	if err := os.RemoveAll(filepath.Dir(namespacePath(t, cfg.Dir))); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a record is taken again", func() bool {
		return d.Append(q1, spool.Record{Arrival: arrivalTime, Data: []byte("b")}) == nil
	})
	want := uuidsOf(t, takeAll(t, "here", d))
	delete(want, "a")
	shut(t, d)
	d = open(t, cfg)
	expectUUIDs(t, "later", takeAll(t, "later", d), want)
}

// The format on disk of the first version that has it.
func TestNamespaceOfTheFirstVersion(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	d := open(t, Config{Dir: dir})
	shut(t, d)
	q := d.newQueue(q1)
	if err := os.MkdirAll(q.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(q.dir, "namespace"), []byte("000102030405060708090a0b0c0d0e0f\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := newCoder(nil, []byte("saltsalt"), q1)
	if err != nil {
		t.Fatal(err)
	}
	db, err := createFile(filepath.Join(q.dir, segmentName(7, []byte("saltsalt"))), c, d.space())
	if err != nil {
		t.Fatal(err)
	}
	put := change{putID: 7, puts: [][]byte{c.encode(nil, 7, spool.Record{Arrival: time.UnixMilli(1), Data: []byte("a")})}}
	if err := db.Update(func(tx *bolt.Tx) error {
		var st state
		if err := put.apply(tx, &st, c); err != nil {
			return err
		}
		return writeState(tx, st)
	}); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	d = open(t, Config{Dir: dir})
	e := take(t, d, 1)
	// (printf '000102030405060708090a0b0c0d0e0f' | xxd -r -p; printf saltsalt) | sha256sum
	// and the arrival, 1, in its last bit.
	const want = "20a35a15de4cfbbc2c96338ba68fa52c"
	if got := fmt.Sprintf("%x", e[0].Namespace); got != want {
		t.Errorf("the name is %s, want %s", got, want)
	}
}

// Whatever is in the file, it is either refused or written like that.
func FuzzParseNamespace(f *testing.F) {
	f.Add([]byte("000102030405060708090a0b0c0d0e0f\n"))
	f.Add([]byte("000102030405060708090A0B0C0D0E0F\n"))
	f.Add([]byte(strings.Repeat("0", 32) + "\n"))
	f.Add([]byte("000102030405060708090a0b0c0d0e0f"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if n, ok := parseNamespace(text); ok && (string(n.text()) != string(text) || n == namespace{}) {
			t.Errorf("%q is read as %x", text, n)
		}
	})
}
