package disk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/td-postback/gateway/spool"
)

const q2 = "https://eu01.records.in.treasuredata.com"

// A queue whose directory cannot be read is named and tried again, and takes
// records meanwhile. The others go on.
func TestUnreadableQueue(t *testing.T) {
	t.Parallel()
	var ev events
	cfg := Config{Dir: t.TempDir(), OnEvent: ev.add}
	d := open(t, cfg)
	add(t, d, "before")
	if err := d.Append(q2, spool.Record{Data: []byte("other")}); err != nil {
		t.Fatal(err)
	}
	shut(t, d)
	dir, away := filepath.Join(cfg.Dir, url.QueryEscape(q1)), filepath.Join(t.TempDir(), "away")
	if err := errors.Join(os.Rename(dir, away), os.Symlink("/nowhere/at/all", dir)); err != nil { // root reads whatever it may not
		t.Fatal(err)
	}
	d = open(t, cfg)
	if told := ev.of(spool.Unreadable); len(told) != 1 || told[0].Queue != q1 || told[0].File != dir || told[0].Err == nil {
		t.Errorf("told %+v", told)
	}
	if e, err := d.Queue(q2).Take(t.Context(), 1); err != nil || string(e[0].Data) != "other" {
		t.Errorf("of the other queue comes %v, %v", e, err)
	}
	if err := d.Append(q1, spool.Record{}); !errors.Is(err, spool.ErrUnavailable) {
		t.Errorf("a record of the queue that cannot be written: %v", err)
	}
	if err := errors.Join(os.Remove(dir), os.Rename(away, dir)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "records are taken", func() bool { return d.Append(q1, spool.Record{Data: []byte("meanwhile")}) == nil })
	got := map[string]bool{}
	for len(got) < 2 {
		got[string(take(t, d, 1)[0].Data)] = true
	}
	if !got["before"] || !got["meanwhile"] {
		t.Errorf("%v come", got)
	}
	if n := len(ev.of(spool.Unreadable)); n != 1 {
		t.Errorf("it was told %d times", n)
	}
}

// What is in the directory and none of the spool's stays as it is, and is named. A
// queue may be a link to another disk.
func TestForeignDirectories(t *testing.T) {
	t.Parallel()
	var ev events
	cfg := Config{Dir: t.TempDir(), OnEvent: ev.add}
	d := open(t, cfg)
	add(t, d, "a")
	shut(t, d)
	linked := filepath.Join(t.TempDir(), "linked")
	ours := filepath.Join(cfg.Dir, url.QueryEscape(q1))
	if err := errors.Join(os.Rename(ours, linked), os.Symlink(linked, ours)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"backup", "https%3a%2f%2flower.example", "ftp%3A%2F%2Fx.example", "legacy%2Bftp%3A%2F%2Fx.example", "%zz", "lost+found", ".git"} {
		if err := os.Mkdir(filepath.Join(cfg.Dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(cfg.Dir, "notes"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	d = open(t, cfg)
	if queues := d.Queues(); len(queues) != 1 || queues[0] != q1 {
		t.Errorf("the queues are %q", queues)
	}
	if e := take(t, d, 1)[0]; string(e.Data) != "a" {
		t.Errorf("%q comes", e.Data)
	}
	if told := ev.of(spool.Foreign); len(told) != 6 || len(ev.all) != 6 {
		t.Errorf("told %+v", ev.all)
	}
}

// A queue's scheme may say more of its host.
func TestQueueNames(t *testing.T) {
	t.Parallel()
	var ev events
	cfg := Config{Dir: t.TempDir(), OnEvent: ev.add}
	d := open(t, cfg)
	const plain, special = "http://h.example:8080", "legacy+http://h.example:8080"
	for _, queue := range []string{plain, special} {
		if err := d.Append(queue, spool.Record{Arrival: time.Now(), Data: []byte(queue)}); err != nil {
			t.Fatal(err)
		}
	}
	shut(t, d)
	d = open(t, cfg)
	if queues := d.Queues(); !slices.Equal(queues, []string{plain, special}) || len(ev.all) != 0 {
		t.Errorf("the queues are %q, and told %+v", queues, ev.all)
	}
	for _, queue := range []string{plain, special} {
		if entries, err := d.Records(queue, 0, 10); err != nil || len(entries) != 1 || string(entries[0].Data) != queue {
			t.Errorf("%s has %+v, %v", queue, entries, err)
		}
	}
}

// Whatever of a running spool is deleted, no second process gets it.
func TestLockIsTheDirectory(t *testing.T) {
	t.Parallel()
	cfg := Config{Dir: filepath.Join(t.TempDir(), "spool")}
	d := open(t, cfg)
	add(t, d, "a")
	second := func(when string) {
		t.Helper()
		if other, err := Open(cfg); !errors.Is(err, ErrLocked) {
			if err == nil {
				shut(t, other)
			}
			t.Errorf("%s, a second owner gets %v", when, err)
		}
	}
	if err := os.Remove(filepath.Join(cfg.Dir, "lock.db")); err != nil {
		t.Fatal(err)
	}
	second("without lock.db")
	if err := os.RemoveAll(cfg.Dir); err != nil {
		t.Fatal(err)
	}
	_ = d.Append(q1, spool.Record{}) // into nothing
	add(t, d, "into a new one")
	second("in a new directory")
	shut(t, d)
	shut(t, open(t, cfg))
}

// A directory that has another queue's name keeps its encrypted records: they are
// not delivered there, and the other queues go on.
func TestRenamedQueueIsNotDelivered(t *testing.T) {
	t.Parallel()
	var ev events
	cfg := Config{Dir: t.TempDir(), Key: bytes.Repeat([]byte{1}, spool.KeySize), OnEvent: ev.add}
	d := open(t, cfg)
	add(t, d, "secret")
	shut(t, d)
	const evil = "https://evil.example"
	from, to := filepath.Join(cfg.Dir, url.QueryEscape(q1)), filepath.Join(cfg.Dir, url.QueryEscape(evil))
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
	d = open(t, cfg)
	if told := ev.of(spool.Unreadable); len(told) != 1 || !errors.Is(told[0].Err, errQueue) || filepath.Dir(told[0].File) != to {
		t.Errorf("told %+v", told)
	}
	if entries, wait := d.queue(evil).take(10, false); len(entries) > 0 || wait <= 0 {
		t.Errorf("%q is delivered there", data(entries))
	}
	add(t, d, "goes on")
	if e := take(t, d, 1)[0]; string(e.Data) != "goes on" {
		t.Errorf("%q comes", e.Data)
	}
	shut(t, d)
	if err := errors.Join(os.RemoveAll(from), os.Rename(to, from)); err != nil {
		t.Fatal(err)
	}
	d = open(t, cfg)
	if e := take(t, d, 1)[0]; string(e.Data) != "secret" {
		t.Errorf("under its own name, %q comes", e.Data)
	}
}

// A queue of another key does not keep the others from being opened, but a key that
// nothing was encrypted with is a mistake.
func TestQueueOfAnotherKey(t *testing.T) {
	t.Parallel()
	key := func(b byte) []byte { return bytes.Repeat([]byte{b}, spool.KeySize) }
	cfg, other := Config{Dir: t.TempDir(), Key: key(1)}, Config{Dir: t.TempDir(), Key: key(2)}
	var ev events
	cfg.OnEvent = ev.add
	d := open(t, cfg)
	add(t, d, "a")
	shut(t, d)
	d = open(t, other)
	if err := d.Append(q2, spool.Record{Data: []byte("b")}); err != nil {
		t.Fatal(err)
	}
	shut(t, d)
	if err := os.Rename(filepath.Join(other.Dir, url.QueryEscape(q2)), filepath.Join(cfg.Dir, url.QueryEscape(q2))); err != nil {
		t.Fatal(err)
	}
	d = open(t, cfg)
	if e := take(t, d, 1)[0]; string(e.Data) != "a" {
		t.Errorf("%q comes", e.Data)
	}
	told := false
	for _, e := range ev.of(spool.Unreadable) {
		told = told || e.Queue == q2 && errors.Is(e.Err, ErrKey)
	}
	if !told {
		t.Errorf("told %+v", ev.all)
	}
	shut(t, d)
	if _, err := Open(Config{Dir: cfg.Dir, Key: key(3)}); !errors.Is(err, ErrKey) {
		t.Errorf("with a key of nobody: %v", err)
	}
}

// With a key, what is not encrypted may be anybody's: it is a dead letter, and a
// record again only when an operator says so. Then it is encrypted.
func TestPlainRecordsAreNotDeliveredWithAKey(t *testing.T) {
	t.Parallel()
	var ev events
	cfg := Config{Dir: t.TempDir(), OnEvent: ev.add}
	d := open(t, cfg)
	for _, s := range []string{"before 1", "before 2", "before 3"} {
		add(t, d, s)
	}
	shut(t, d)
	cfg.Key = bytes.Repeat([]byte{1}, spool.KeySize)
	d = open(t, cfg)
	add(t, d, "after")
	if e := take(t, d, 1)[0]; string(e.Data) != "after" {
		t.Errorf("%q comes", e.Data)
	}
	eventually(t, "they are dead letters", func() bool { return len(lettersOf(t, d)) == 3 })
	letters, err := d.Letters(q1, 0, 10)
	if err != nil || letters[0].Verdict != (spool.Verdict{Reason: "not_encrypted"}) || string(letters[0].Data) != "before 1" || !letters[0].Arrival.Equal(arrivalTime) {
		t.Errorf("the first is %+v, %v", letters[0], err)
	}
	if told := ev.of(spool.NotSealed); len(told) != 1 || told[0].Records != 3 {
		t.Errorf("told %+v", told)
	}
	if n, err := d.Replay(q1, letters[0].ID, letters[1].ID); n != 2 || err != nil {
		t.Fatalf("replayed %d, %v", n, err)
	}
	expectDepth(t, d, 3, 1)
	shut(t, d)
	for _, path := range segmentFiles(t, cfg.Dir) {
		s := newSegment(path, 0, d.queue(q1).segments[0].coder)
		if err := s.check(); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
	d = open(t, cfg)
	var got []string
	for len(got) < 3 {
		got = append(got, data(take(t, d, 1))...)
	}
	expect(t, "afterwards", got, "before 1", "before 2", "after")
}

// What the first version has encrypted is not bound to its queue, and is delivered.
func TestSealedRecordsOfTheFirstVersionAreDelivered(t *testing.T) {
	t.Parallel()
	cfg := Config{Dir: t.TempDir(), Key: bytes.Repeat([]byte{1}, spool.KeySize)}
	d := open(t, cfg)
	q := d.queue(q1)
	if err := makeDir(q.dir); err != nil {
		t.Fatal(err)
	}
	s, err := q.createSegment(1)
	if err != nil {
		t.Fatal(err)
	}
	old := s.coder
	old.aead = old.old
	value := old.encode(nil, 1, spool.Record{Arrival: arrivalTime, Data: []byte("old")})
	value[dataStart-1] = sealed
	sealedAt := value[:dataStart:dataStart]
	value = old.aead.Seal(sealedAt, nil, []byte("old"), value[headerEnd:dataStart]) //nolint:gosec // G407: it makes a random nonce itself
	binary.BigEndian.PutUint32(value[4:], old.checksum(value[8:]))
	if _, _, err := s.commit(&change{putID: 1, puts: [][]byte{value}}); err != nil {
		t.Fatal(err)
	}
	s.retire()
	shut(t, d)
	d = open(t, cfg)
	if e := take(t, d, 1)[0]; string(e.Data) != "old" {
		t.Errorf("%q comes", e.Data)
	}
}

// A look at a directory counts what is in it, and leaves all as it is.
func TestLook(t *testing.T) {
	t.Parallel()
	cfg := Config{Dir: t.TempDir(), Key: bytes.Repeat([]byte{1}, spool.KeySize)}
	if records, dead, err := Look(cfg.Dir); records != 0 || dead != 0 || err != nil {
		t.Errorf("an empty one holds %d and %d, %v", records, dead, err)
	}
	d := open(t, cfg)
	for _, s := range []string{"a", "b", "c"} {
		add(t, d, s)
	}
	if err := d.Append(q2, spool.Record{}); err != nil {
		t.Fatal(err)
	}
	if err := d.Queue(q1).Bury(take(t, d, 1)[0], spool.Verdict{}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Look(cfg.Dir); !errors.Is(err, ErrLocked) {
		t.Errorf("while it is open: %v", err)
	}
	shut(t, d)
	for range 2 {
		if records, dead, err := Look(cfg.Dir); records != 3 || dead != 1 || err != nil {
			t.Errorf("it holds %d and %d, %v", records, dead, err)
		}
	}
	shut(t, open(t, cfg))
	if _, _, err := Look(filepath.Join(cfg.Dir, "nowhere")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("one that is not there: %v", err)
	}
}

// inFuture opens a Log whose clock was a day ahead when it kept these records, and
// closes it.
func inFuture(t *testing.T, cfg Config, records ...string) {
	t.Helper()
	d := open(t, cfg)
	q := d.queue(q1)
	q.mu.Lock()
	q.next = spool.ID(time.Now().Add(24 * time.Hour).UnixMicro())
	q.mu.Unlock()
	for _, data := range records {
		add(t, d, data)
	}
	shut(t, d)
}

// When the clock was set back, records that come while a queue cannot be read, and
// after it can, are not mistaken for those that are there.
func TestClockSetBackBeforeUnreadableQueue(t *testing.T) {
	t.Parallel()
	cfg := Config{Dir: t.TempDir()}
	inFuture(t, cfg, "before")
	dir, away := filepath.Join(cfg.Dir, url.QueryEscape(q1)), filepath.Join(t.TempDir(), "away")
	if err := errors.Join(os.Rename(dir, away), os.Symlink("/nowhere/at/all", dir)); err != nil {
		t.Fatal(err)
	}
	d := open(t, cfg)
	if err := errors.Join(os.Remove(dir), os.Rename(away, dir)); err != nil {
		t.Fatal(err)
	}
	add(t, d, "meanwhile")
	held := []spool.Entry{take(t, d, 1)[0], take(t, d, 1)[0]}
	add(t, d, "after")
	for _, e := range append(held, take(t, d, 1)[0]) {
		d.Queue(q1).Ack(e)
	}
	eventually(t, "all is delivered", func() bool { depth, err := d.Depth(q1); return err == nil && depth.Records == 0 })
}

// The same of a file that cannot be read at once.
func TestClockSetBackBeforeDamagedFile(t *testing.T) {
	t.Parallel()
	cfg := Config{Dir: t.TempDir()}
	inFuture(t, cfg, "1", "2", "3", "4", "5")
	file := segmentFiles(t, cfg.Dir)[0]
	content, err := os.ReadFile(file) //nolint:gosec // G304: the test's own
	if err != nil {
		t.Fatal(err)
	}
	content[pageHeader+metaSum] ^= 1
	if err := os.WriteFile(file, content, 0o600); err != nil { //nolint:gosec // G703: the same
		t.Fatal(err)
	}
	d := open(t, cfg)
	for _, data := range []string{"6", "7", "8"} {
		add(t, d, data)
	}
	for range 8 {
		d.Queue(q1).Ack(take(t, d, 1)[0])
	}
	eventually(t, "all is delivered", func() bool { depth, err := d.Depth(q1); return err == nil && depth.Records == 0 })
}
