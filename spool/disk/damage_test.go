package disk

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/td-postback/gateway/spool"
)

const page = 4096

// specimen is a segment's file with records to be delivered, dead letters, and
// traces of records that were delivered.
type specimen struct {
	dir, path string
	content   []byte
	live      map[spool.ID]string
	dead      map[spool.ID]string
	values    map[spool.ID][]byte // as they are in the file
}

func memoryDir(t testing.TB) string {
	t.Helper()
	if _, err := os.Stat("/dev/shm"); err != nil {
		return t.TempDir()
	}
	dir, err := os.MkdirTemp("/dev/shm", "spool") //nolint:usetesting // syncs are free there
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func makeSpecimen(t *testing.T, records, size int) *specimen {
	t.Helper()
	x := &specimen{dir: memoryDir(t), live: map[spool.ID]string{}, dead: map[spool.ID]string{}, values: map[spool.ID][]byte{}}
	d := open(t, Config{Dir: x.dir, MaxSize: minMaxSize})
	for i := range records {
		add(t, d, fmt.Sprintf("record %d %s.", i, strings.Repeat(string(rune('a'+i%26)), size)))
	}
	q := d.Queue(q1)
	for i, e := range take(t, d, records) {
		switch {
		case i%8 == 3:
			q.Ack(e)
		case i%4 == 0:
			x.live[e.ID] = string(e.Data)
		default:
			x.dead[e.ID] = string(e.Data)
			if err := q.Bury(e, spool.Verdict{Status: 400, Reason: "a reason"}); err != nil {
				t.Fatal(err)
			}
		}
	}
	s := d.queue(q1).segments[0]
	for _, of := range []map[spool.ID]string{x.live, x.dead} {
		for id, data := range of {
			x.values[id] = s.coder.encode(nil, id, spool.Record{Arrival: arrivalTime, Data: []byte(data)})
		}
	}
	shut(t, d)
	files := segmentFiles(t, x.dir)
	if len(files) != 1 {
		t.Fatalf("the records are in %d files", len(files))
	}
	x.path = files[0]
	content, err := os.ReadFile(x.path)
	if err != nil {
		t.Fatal(err)
	}
	p, err := newPages(bytes.NewReader(content), int64(len(content)))
	if err != nil {
		t.Fatal(err)
	}
	x.content = content[:p.end*p.pageSize]
	// Another segment of the queue, behind the one that will be damaged.
	d = open(t, Config{Dir: x.dir, MaxSize: minMaxSize})
	add(t, d, "another segment")
	shut(t, d)
	return x
}

// outcome is what comes out of a spool with a damaged segment.
type outcome struct {
	taken    map[spool.ID]string
	letters  map[spool.ID]spool.Letter
	setAside bool
	damaged  int
}

// with opens the spool with other content in the segment's file, takes all
// records, and closes it. All that comes must be as it was written.
func (x *specimen) with(t *testing.T, what string, content []byte) outcome {
	t.Helper()
	_ = os.Remove(x.path + damagedSuffix)
	if err := os.WriteFile(x.path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	var ev events
	d, err := Open(Config{Dir: x.dir, MaxSize: minMaxSize, OnEvent: ev.add})
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	o := outcome{taken: map[spool.ID]string{}, letters: map[spool.ID]spool.Letter{}}
	other := false
	for _, e := range takeAll(t, what, d) {
		if string(e.Data) == "another segment" {
			other = true
			continue
		}
		var i int
		if _, err := fmt.Sscanf(string(e.Data), "record %d ", &i); err != nil || !e.Arrival.Equal(arrivalTime) {
			t.Fatalf("%s: a record that nobody wrote: %q", what, e.Data)
		}
		for _, of := range []map[spool.ID]string{x.live, x.dead} {
			if data, ok := of[e.ID]; ok && data != string(e.Data) {
				t.Fatalf("%s: a record was %q, and is %q", what, data, e.Data)
			}
		}
		if _, again := o.taken[e.ID]; again && len(ev.of(spool.SetAside)) == 0 {
			t.Fatalf("%s: record %d came twice", what, i)
		}
		o.taken[e.ID] = string(e.Data)
	}
	if !other {
		t.Fatalf("%s: the other segment is gone", what)
	}
	letters, err := d.Letters(q1, 0, 1000)
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	for _, l := range letters {
		o.letters[l.ID] = l
	}
	if depth, err := d.Depth(q1); err != nil || depth.Records != len(o.taken)+1 || depth.Dead != len(letters) {
		t.Fatalf("%s: the depth is %+v (%v), but there are %d records and %d dead letters", what, depth, err, len(o.taken)+1, len(letters))
	}
	for _, e := range ev.of(spool.SetAside) {
		if _, err := os.Stat(e.File); err != nil || e.File != x.path+damagedSuffix {
			t.Fatalf("%s: set aside as %s: %v", what, e.File, err)
		}
		o.setAside = true
	}
	for _, e := range ev.of(spool.Damaged) {
		o.damaged += e.Records
	}
	shut(t, d)
	return o
}

// check wants all records that are whole in the file. The others may be dead
// letters.
func (x *specimen) check(t *testing.T, what string, content []byte, o outcome) (missing []spool.ID) {
	t.Helper()
	for id := range x.live {
		if _, ok := o.taken[id]; ok {
			continue
		}
		// Of a damaged record, an older copy may be whole where bbolt has left it.
		if o.letters[id].Reason != "damaged" && bytes.Contains(content, x.values[id]) {
			t.Fatalf("%s: a record is missing that is whole in the file", what)
		}
		missing = append(missing, id)
	}
	for id := range x.dead {
		_, again := o.taken[id]
		if _, letter := o.letters[id]; !letter && !again && bytes.Contains(content, x.values[id]) {
			t.Fatalf("%s: a dead letter is missing that is whole in the file", what)
		}
	}
	return missing
}

// A segment's file is cut: what is whole in the rest comes.
func TestFileCut(t *testing.T) {
	t.Parallel()
	x := makeSpecimen(t, 48, 300)
	if o := x.with(t, "undamaged", x.content); o.setAside || len(o.taken) != len(x.live) || len(o.letters) != len(x.dead) {
		t.Fatalf("undamaged: %d records and %d dead letters come", len(o.taken), len(o.letters))
	}
	for size := len(x.content) - 1; size >= 0; {
		what := fmt.Sprintf("cut at byte %d", size)
		o := x.with(t, what, x.content[:size])
		x.check(t, what, x.content[:size], o)
		if !o.setAside {
			t.Fatalf("%s: the file was not set aside", what)
		}
		if step := 83; size%page < 3 || size%page > page-3 {
			size--
		} else {
			size -= min(step, size%page-2)
		}
	}
}

// Bits are flipped all over the file. A flip in a record's data costs at most
// that record, which is a dead letter then, and any other nothing.
func TestFlippedBits(t *testing.T) {
	t.Parallel()
	x := makeSpecimen(t, 180, 60)
	lost, aside, harmless := 0, 0, 0
	for at := 0; at < len(x.content); {
		what := fmt.Sprintf("bit %d of byte %d flipped", at%8, at)
		content := bytes.Clone(x.content)
		content[at] ^= 1 << (at % 8)
		o := x.with(t, what, content)
		missing := x.check(t, what, content, o)
		if len(missing) > 1 || len(missing) == 1 && (o.setAside || o.damaged != 1 || o.letters[missing[0]].Reason != "damaged") {
			t.Fatalf("%s: %d records are missing; set aside: %t, dead letters: %v", what, len(missing), o.setAside, o.letters)
		}
		switch {
		case o.setAside:
			aside++
		case len(missing) == 1:
			lost++
		default:
			harmless++
		}
		if at%page < 32 {
			at++
		} else {
			at += 127
		}
	}
	t.Logf("%d flips cost a record, %d the file, %d nothing", lost, aside, harmless)
	if lost < 30 || aside < 100 {
		t.Errorf("%d flips cost a record, %d the file: the damage was not where the records are", lost, aside)
	}
}

// Pages are lost, misplaced or overwritten, several at a time.
func TestDamagedPages(t *testing.T) {
	t.Parallel()
	x := makeSpecimen(t, 180, 60)
	random := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // the same in each run
	pages := len(x.content) / page
	for i := range 150 {
		content := bytes.Clone(x.content)
		for range 1 + random.IntN(3) {
			to, from := random.IntN(pages), random.IntN(pages)
			at := content[to*page : (to+1)*page]
			switch random.IntN(5) {
			case 0:
				clear(at)
			case 1: // a page in another's place
				copy(at, x.content[from*page:])
			case 2: // the same, but it says that it belongs there
				copy(at[8:], x.content[from*page+8:(from+1)*page])
			case 3: // cut off within the page
				clear(at[random.IntN(page):])
			case 4: // noise in what is before the data
				for range 8 {
					at[random.IntN(200)] = byte(random.Uint32()) //nolint:gosec // G115: any byte
				}
			}
		}
		what := fmt.Sprintf("damage %d", i)
		x.check(t, what, content, x.with(t, what, content))
	}
}

// Branch pages that lead to themselves would make bbolt recurse until the
// process dies: at the start, and when a file is opened again.
func TestLoopOfPages(t *testing.T) {
	t.Parallel()
	x := makeSpecimen(t, 180, 60)
	loops := 0
	for id := 2; id < len(x.content)/page; id++ {
		if flagsOf(x.content[id*page:]) != branchFlag {
			continue
		}
		content := bytes.Clone(x.content)
		branch := content[id*page : (id+1)*page]
		for i := range countOf(branch) {
			branch[pageHeader+i*elementHeader+8] = byte(id)
		}
		what := fmt.Sprintf("page %d leads to itself", id)
		o := x.with(t, what, content)
		x.check(t, what, content, o)
		if o.setAside {
			loops++
		}
	}
	if loops < 2 {
		t.Errorf("%d loops were found, want one in the records and one in the dead letters", loops)
	}
}

func TestFileIsCheckedWhenItIsOpenedAgain(t *testing.T) {
	x := makeSpecimen(t, 180, 60)
	if err := os.WriteFile(x.path, x.content, 0o600); err != nil {
		t.Fatal(err)
	}
	var ev events
	d := open(t, Config{Dir: x.dir, MaxSize: minMaxSize, OnEvent: ev.add})
	taken := take(t, d, 10)
	s := d.queue(q1).segments[0]
	if err := s.close(); err != nil { // as it is when nobody uses it
		t.Fatal(err)
	}
	content := bytes.Clone(x.content)
	for id := 2; id < len(content)/page; id++ {
		if branch := content[id*page:]; flagsOf(branch) == branchFlag {
			for i := range countOf(branch) {
				branch[pageHeader+i*elementHeader+8] = byte(id)
			}
		}
	}
	if err := os.WriteFile(x.path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Letters(q1, 0, 1); err == nil {
		t.Error("dead letters of a damaged file are shown")
	}
	got := map[spool.ID]bool{}
	for _, e := range append(taken, takeAll(t, "damaged while it was closed", d)...) {
		got[e.ID] = true
	}
	for id := range x.live {
		if !got[id] {
			t.Fatal("a record is missing that is whole in the file")
		}
	}
	if len(ev.of(spool.SetAside)) != 1 {
		t.Errorf("%d files were set aside, want 1", len(ev.of(spool.SetAside)))
	}
}

// A file is cut or overwritten while it is in use. Nothing crashes or hangs,
// and new records are kept.
func TestFileDamagedWhileOpen(t *testing.T) {
	t.Parallel()
	for what, damage := range map[string]func(path string) error{
		"emptied": func(path string) error { return os.Truncate(path, 0) },
		"cut":     func(path string) error { return os.Truncate(path, 5*page) },
		"zeroed": func(path string) error {
			f, err := os.OpenFile(path, os.O_RDWR, 0) //nolint:gosec // G304: the test's own file
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = f.WriteAt(make([]byte, 20*page), 2*page)
			return err
		},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			d := open(t, Config{Dir: memoryDir(t), MaxSize: minMaxSize})
			for i := range 200 {
				add(t, d, fmt.Sprintf("record %d %s", i, strings.Repeat("x", 300)))
			}
			for _, path := range segmentFiles(t, d.cfg.Dir) {
				if err := damage(path); err != nil {
					t.Fatal(err)
				}
			}
			deadline := time.Now().Add(20 * time.Second)
			for {
				_, _ = d.Depth(q1)
				_, _ = d.Letters(q1, 0, 10)
				_, _ = d.Records(q1, 0, 10)
				err := d.Append(q1, spool.Record{Data: []byte("new")})
				if err == nil {
					break
				}
				if time.Now().After(deadline) {
					t.Fatal(err)
				}
			}
			all := takeAll(t, what, d)
			if !slices.ContainsFunc(all, func(e spool.Entry) bool { return string(e.Data) == "new" }) {
				t.Errorf("%d records come, the new one is not among them", len(all))
			}
			shut(t, d)
		})
	}
}

// A power cut leaves the first part of what a commit writes: pages first, then
// the meta page. Wherever it ends, all that was durable comes.
func TestTornCommit(t *testing.T) {
	t.Parallel()
	dir := memoryDir(t)
	d := open(t, Config{Dir: dir, MaxSize: minMaxSize})
	durable := map[string]bool{}
	for i := range 12 {
		data := fmt.Sprintf("record %d", i)
		add(t, d, data)
		durable[data] = true
	}
	for _, e := range take(t, d, 4) {
		d.Queue(q1).Ack(e)
		delete(durable, string(e.Data))
	}
	eventually(t, "the acks are noted", func() bool { return noted(d) })
	add(t, d, "record 12")
	durable["record 12"] = true
	path := segmentFiles(t, dir)[0]
	before, err := os.ReadFile(path) //nolint:gosec // G304: the test's own file
	if err != nil {
		t.Fatal(err)
	}
	add(t, d, "torn")
	after, err := os.ReadFile(path) //nolint:gosec // G304: the test's own file
	if err != nil {
		t.Fatal(err)
	}
	var order []int // of the bytes that change
	for at := 2 * page; at < len(after); at++ {
		order = append(order, at)
	}
	for at := range 2 * page {
		order = append(order, at)
	}
	torn := append(bytes.Clone(before), make([]byte, len(after)-len(before))...)
	left := memoryDir(t)
	leftPath := filepath.Join(left, filepath.Base(filepath.Dir(path)), filepath.Base(path))
	if err := os.Mkdir(filepath.Dir(leftPath), 0o700); err != nil {
		t.Fatal(err)
	}
	states := 0
	check := func(what string) {
		states++
		_ = os.Remove(leftPath + damagedSuffix)
		if err := os.WriteFile(leftPath, torn, 0o600); err != nil { //nolint:gosec // G703: the test's own file
			t.Fatal(err)
		}
		var ev events
		d, err := Open(Config{Dir: left, MaxSize: minMaxSize, OnEvent: ev.add})
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		got := map[string]bool{}
		for _, e := range takeAll(t, what, d) {
			if got[string(e.Data)] && len(ev.of(spool.SetAside)) == 0 {
				t.Fatalf("%s: %q comes twice", what, e.Data)
			}
			got[string(e.Data)] = true
		}
		for data := range durable {
			if !got[data] {
				t.Fatalf("%s: %q is missing", what, data)
			}
		}
		for data := range got {
			if !durable[data] && data != "torn" && len(ev.of(spool.SetAside)) == 0 {
				t.Fatalf("%s: %q comes, but was delivered", what, data)
			}
		}
		if inMeta := bytes.Equal(torn[2*page:], after[2*page:]); len(ev.of(spool.SetAside)) > 0 && !inMeta {
			t.Fatalf("%s: the file is called damaged", what)
		}
		shut(t, d)
	}
	check("before the commit")
	for _, at := range order {
		if torn[at] != after[at] {
			torn[at] = after[at]
			check(fmt.Sprintf("torn behind byte %d", at))
		}
	}
	durable["torn"] = true
	check("after the commit")
	t.Logf("%d states", states)
	if states < 200 {
		t.Errorf("%d states: the commit has changed too little", states)
	}
}
