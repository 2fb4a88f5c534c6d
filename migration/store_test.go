package migration

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

func open(t testing.TB, path string, rows int) *Report {
	t.Helper()
	r, err := Open(Config{Path: path, Rows: rows})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

func save(t testing.TB, r *Report) {
	t.Helper()
	if err := r.Save(start); err != nil {
		t.Fatal(err)
	}
}

func shut(t testing.TB, r *Report) {
	t.Helper()
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
}

// expectSame wants a report to say what it should.
func expectSame(t testing.TB, when, got, want string) {
	t.Helper()
	if got == want {
		return
	}
	gotLines, wantLines := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := range min(len(gotLines), len(wantLines)) {
		if gotLines[i] != wantLines[i] {
			t.Errorf("%s, line %d is %s, want %s", when, i, gotLines[i], wantLines[i])
			return
		}
	}
	t.Errorf("%s, %d lines, want %d", when, len(gotLines), len(wantLines))
}

// asText is all that a report says.
func asText(t testing.TB, r *Report) string {
	t.Helper()
	text, err := json.MarshalIndent(r.List(start.Add(time.Hour)), "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// fill counts calls of so many callers.
func fill(r *Report, callers int) {
	for i := range callers {
		count(r, pixelCall(), func(c *Call) {
			c.Table, c.Events, c.Time = fmt.Sprint("t", i), i+1, start.Add(-time.Duration(i)*time.Hour)
			r.Count(c)
			r.AddExample(c, Redact("GET", "td_write_key=1234%2Fcafe0123456789abcdef&id=1", nil))
			c.Result, c.Lane, c.Findings = "spooled", Legacy, setOf(ValueFilled)
		})
	}
}

func TestReportSurvivesARestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "report.db")
	r := open(t, path, 20)
	fill(r, 30) // and ten of them gave way
	want := asText(t, r)
	save(t, r)
	shut(t, r)
	r = open(t, path, 20)
	expectSame(t, "after a restart", asText(t, r), want)
	count(r, postCall(), func(*Call) {})
	want = asText(t, r)
	save(t, r)
	shut(t, r)
	expectSame(t, "after two restarts", asText(t, open(t, path, 20)), want)
	for _, name := range []string{path, path + lockSuffix} {
		if info, err := os.Stat(name); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	text, err := os.ReadFile(path) //nolint:gosec // G304: the test's own file
	if err != nil || strings.Contains(string(text), "cafe") || !strings.Contains(string(text), "from_query") {
		t.Errorf("the file has a key, or no report: %v", err)
	}
}

// A gateway that was off goes by the time that it is.
func TestReportAfterDays(t *testing.T) {
	path := filepath.Join(t.TempDir(), "report.db")
	r := open(t, path, 0)
	r.Count(pixelCall())
	save(t, r)
	shut(t, r)
	for _, tc := range []struct {
		days     int
		state    State
		day, all uint64
	}{{1, Left, 1, 1}, {2, Left, 0, 1}, {7, Left, 0, 1}, {8, Gone, 0, 0}, {30, Gone, 0, 0}} {
		now := start.Add(time.Duration(tc.days) * 24 * time.Hour)
		r = open(t, path, 0)
		if err := r.Save(now); err != nil {
			t.Fatal(err)
		}
		l := r.List(now)
		if len(l.Rows) != 1 || l.Rows[0].State != tc.state || l.Rows[0].Events24h != tc.day || l.Rows[0].Events7d != tc.all || l.Rows[0].Events != 1 {
			t.Errorf("%d days later: %+v", tc.days, l.Rows)
		}
		shut(t, r)
	}
	now := start.Add(30*24*time.Hour + time.Second)
	for range 2 {
		r = open(t, path, 0)
		if err := r.Save(now); err != nil {
			t.Fatal(err)
		}
		if l := r.List(now); len(l.Rows) > 0 || l.Others.Events != 1 {
			t.Errorf("31 days later: %+v", l)
		}
		shut(t, r)
	}
}

// A caller in v2's form, of which the file says that it was left, is left.
func TestLeftInTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "report.db")
	first := open(t, path, 0)
	count(first, postCall(), func(c *Call) { c.Findings = setOf(KeyInURL) })
	save(t, first)
	second, err := Open(Config{Path: path})
	if !errors.Is(err, errInUse) {
		t.Fatalf("the file is open twice: %v", err)
	}
	t.Cleanup(func() { _ = second.Close() })
	count(second, postCall(), func(c *Call) { c.Time = start.Add(time.Minute) })
	shut(t, first)
	save(t, second)
	row := second.List(start.Add(time.Hour)).Rows[0]
	if row.State != Left || row.Events != 2 || len(row.Findings) != 1 || !row.Findings[0].LastSeen.Equal(start) || !row.LastSeen.Equal(start.Add(time.Minute)) {
		t.Errorf("got %+v", row)
	}
}

// What has not changed is not written again, and what gave way goes.
func TestOnlyChangesAreSaved(t *testing.T) {
	path := filepath.Join(t.TempDir(), "report.db")
	r := open(t, path, 20)
	expect := func(when string, rows, gone int) {
		t.Helper()
		n := r.takeNews()
		if len(n.rows) != rows || len(n.gone) != gone {
			t.Errorf("%s: %d rows and %d that have gone are written, want %d and %d", when, len(n.rows), len(n.gone), rows, gone)
		}
		r.giveBack(n)
		save(t, r)
	}
	fill(r, 20)
	expect("20 callers", 20, 0)
	expect("nothing", 0, 0)
	r.Count(pixelCall())
	expect("a new caller", 1, 1)
	r.Count(pixelCall())
	expect("a known caller", 1, 0)
	for i := range 100 {
		count(r, postCall(), func(c *Call) { c.Table = fmt.Sprint("new", i) })
	}
	n := r.takeNews()
	if len(n.rows) > 20 || len(n.gone) > 20 {
		t.Errorf("100 new callers: %d rows and %d that have gone are written", len(n.rows), len(n.gone))
	}
	r.giveBack(n)
	save(t, r)
	if err := r.Save(start.Add(365 * 24 * time.Hour)); err != nil {
		t.Fatal(err)
	}
	shut(t, r)
	if l := open(t, path, 20).List(start); len(l.Rows) != 0 || l.Others.Events != 2*(20*21/2)+102 {
		t.Errorf("a year later: %d rows, %+v", len(l.Rows), l.Others)
	}
}

func TestFewerRowsThanInTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "report.db")
	r := open(t, path, 20)
	fill(r, 20)
	all := r.List(start)
	save(t, r)
	shut(t, r)
	r = open(t, path, 5)
	l := r.List(start)
	if len(l.Rows) != 5 || l.Rows[0].Table != all.Rows[0].Table || l.Rows[4].Table != all.Rows[4].Table || l.Others.Rows != 15 {
		t.Errorf("%+v", l)
	}
	if l.Others.Events+eventsOf(l.Rows) != eventsOf(all.Rows) || l.Others.Events7d+sum(l.Rows) != sum(all.Rows) || l.Others.Error != all.Rows[5].Events {
		t.Errorf("%+v", l.Others)
	}
	r.Count(pixelCall())
	count(r, pixelCall(), func(c *Call) { c.Table = l.Rows[0].Table })
	save(t, r)
	want := asText(t, r)
	shut(t, r)
	expectSame(t, "after a restart", asText(t, open(t, path, 5)), want)
}

// saveUntilKilled counts and saves, and says how much is saved.
func saveUntilKilled(path string) {
	r, err := Open(Config{Path: path, Rows: 50})
	if err != nil {
		fmt.Println("error", err)
		return
	}
	l := r.List(start)
	for total := l.Others.Events + eventsOf(l.Rows); ; {
		for range 30 {
			total++
			count(r, pixelCall(), func(c *Call) { c.Table = fmt.Sprint("t", total%70) })
		}
		if err := r.Save(start); err != nil {
			fmt.Println("error", err)
			return
		}
		fmt.Println("saved", total)
	}
}

// A process is killed again and again while it saves: what it said is saved, and
// nothing twice.
func TestKilledWhileSaving(t *testing.T) {
	path := filepath.Join(t.TempDir(), "report.db")
	for kill := range 10 {
		saved := killChild(t, childSaves, path, "saved %d", time.Duration(20+kill*7)*time.Millisecond)
		r := open(t, path, 50)
		l := r.List(start)
		if total := l.Others.Events + eventsOf(l.Rows); total < saved || total > saved+30 || saved == 0 {
			t.Errorf("kill %d: %d events, saved were %d", kill, total, saved)
		}
		shut(t, r)
	}
}

// baseFile is the file of a report, saved twice, and what it said each time.
func baseFile(t testing.TB) (file []byte, before, after string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "report.db")
	r := open(t, path, 60)
	fill(r, 50)
	save(t, r)
	before = asText(t, r)
	r.Count(postCall())
	save(t, r)
	after = asText(t, r)
	shut(t, r)
	file, err := os.ReadFile(path) //nolint:gosec // G304: the test's own file
	if err != nil {
		t.Fatal(err)
	}
	return file, before, after
}

// expectUsable wants that a report can be opened with a file, whatever is in it, says
// nothing false without an error, and can be saved.
func expectUsable(t *testing.T, file []byte, before, after string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "report.db")
	if err := os.WriteFile(path, file, 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := Open(Config{Path: path, Rows: 60})
	defer func() { _ = r.Close() }()
	if got := asText(t, r); err == nil && got != before && got != after {
		t.Errorf("without an error:\n%s", got)
	}
	count(r, postCall(), func(c *Call) { c.Table = "later" })
	want := asText(t, r)
	if err := r.Save(start); err != nil {
		t.Errorf("Save: %v", err)
	}
	if err := r.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	r, err = Open(Config{Path: path, Rows: 60})
	if err != nil {
		t.Errorf("opened again: %v", err)
	}
	expectSame(t, "opened again", asText(t, r), want)
}

// Bits of the file flip, wherever they are: the report is the last that was saved, the
// one before, or what could be read, with an error. It never ends the process.
func TestFlippedBitsOfTheReport(t *testing.T) {
	file, before, after := baseFile(t)
	random := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // G404: a test's
	for i := range 300 {
		damaged := append([]byte(nil), file...)
		at := random.IntN(len(damaged))
		if i%2 == 0 { // where the pages say what they are
			at = at/filePage*filePage + random.IntN(120)
		}
		damaged[at] ^= 1 << random.IntN(8)
		expectUsable(t, damaged, before, after)
		if t.Failed() {
			t.Fatalf("byte %d", at)
		}
	}
}

func TestUnusableFiles(t *testing.T) {
	file, before, after := baseFile(t)
	empty := asText(t, inMemory(60))
	for name, damaged := range map[string][]byte{
		"empty":     {},
		"no bbolt":  []byte(strings.Repeat("no bbolt\n", 10000)),
		"short":     []byte("short"),
		"zeros":     make([]byte, len(file)),
		"cut":       file[:len(file)/2],
		"cut metas": file[:filePage+100],
		"one page":  file[:filePage],
	} {
		t.Run(name, func(t *testing.T) {
			if len(damaged) == 0 {
				before = empty
			}
			expectUsable(t, damaged, before, after)
		})
	}
}

// FuzzFile changes bytes of the file.
func FuzzFile(f *testing.F) {
	file, before, after := baseFile(f)
	f.Add(uint32(filePage+16), []byte{1})
	f.Add(uint32(3*filePage+8), []byte{1})
	f.Add(uint32(0), []byte("x"))
	f.Fuzz(func(t *testing.T, at uint32, change []byte) {
		damaged := append([]byte(nil), file...)
		copy(damaged[int(at)%len(damaged):], change)
		expectUsable(t, damaged, before, after)
	})
}

// FuzzPages gives any bytes to what looks through a file.
func FuzzPages(f *testing.F) {
	file, _, _ := baseFile(f)
	f.Add(file)
	f.Add([]byte{})
	f.Fuzz(func(_ *testing.T, file []byte) { _ = checkPages(file) })
}

// FuzzRow reads any value, with the right checksum: what can be read is written the same.
func FuzzRow(f *testing.F) {
	r := inMemory(0)
	fill(r, 3)
	for key, one := range r.rows {
		value := appendRow(nil, key, &one.data)
		f.Add(key, value[:len(value)-4])
	}
	others := appendOthers(nil, &r.others, 3)
	f.Add(othersKey, others[:len(others)-4])
	found := appendOthersFound(nil, []found{{7, start.Unix(), KeyInURL}, {1, 0, LegacyRefused}})
	f.Add(foundKey, found[:len(found)-4])
	f.Fuzz(func(t *testing.T, key string, body []byte) {
		if o, rows, err := decodeOthers(appendSum(body, 0, othersKey)); err == nil {
			if again, n, err := decodeOthers(appendOthers(nil, &o, rows)); err != nil || fmt.Sprint(again) != fmt.Sprint(o) || n != rows {
				t.Errorf("%+v, then %+v: %v", o, again, err)
			}
		}
		if all, err := decodeFound(appendSum(body, 0, foundKey)); err == nil {
			if again, err := decodeFound(appendOthersFound(nil, all)); err != nil || !slices.Equal(again, all) {
				t.Errorf("%+v, then %+v: %v", all, again, err)
			}
		}
		d, err := decodeRow(key, appendSum(body, 0, key))
		if err != nil {
			return
		}
		again, err := decodeRow(key, appendRow(nil, key, &d))
		if err != nil || fmt.Sprint(again) != fmt.Sprint(d) {
			t.Errorf("%+v, then %+v: %v", d, again, err)
		}
		one := &row{key: key, data: d}
		one.list(start)
	})
}

// Another process has the file: the report counts, says so at each Save, and adds what
// is in the file when it has it.
func TestFileOfAnotherProcess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "report.db")
	first := open(t, path, 20)
	fill(first, 10)
	save(t, first)
	second, err := Open(Config{Path: path, Rows: 20})
	if !errors.Is(err, errInUse) || !strings.Contains(err.Error(), path) {
		t.Errorf("a second owner gets %v", err)
	}
	t.Cleanup(func() { _ = second.Close() })
	fill(second, 15)
	if err := second.Save(start); !errors.Is(err, errInUse) {
		t.Errorf("a second owner's Save: %v", err)
	}
	before := eventsOf(second.List(start).Rows)
	shut(t, first)
	save(t, second)
	l := second.List(start)
	if len(l.Rows) != 15 || eventsOf(l.Rows) != before+2*(10*11/2) {
		t.Errorf("%d rows, %d events", len(l.Rows), eventsOf(l.Rows))
	}
	save(t, second)
	want := asText(t, second)
	shut(t, second)
	expectSame(t, "after a restart", asText(t, open(t, path, 20)), want)
}

// Somebody deletes the file, or cuts it, while the report has it open: it is made again,
// with all that there was.
func TestFileLost(t *testing.T) {
	for name, lose := range map[string]func(path string) error{
		"deleted":     os.Remove,
		"cut":         func(path string) error { return os.Truncate(path, 0) },
		"cut in part": func(path string) error { return os.Truncate(path, 2*filePage) },
		"replaced": func(path string) error {
			return errors.Join(os.WriteFile(path+".new", []byte("no bbolt"), 0o600), os.Rename(path+".new", path))
		},
		"lost its home": func(path string) error { return os.RemoveAll(filepath.Dir(path)) },
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "reports", "report.db")
			r := open(t, path, 40)
			fill(r, 30)
			save(t, r)
			if err := lose(path); err != nil {
				t.Fatal(err)
			}
			r.Count(postCall())
			for i := 0; r.Save(start) != nil; i++ {
				if i == 3 {
					t.Fatal(r.Save(start))
				}
			}
			want := asText(t, r)
			if _, err := os.Stat(path + lockSuffix); err != nil {
				t.Errorf("another process does not see that the file is in use: %v", err)
			}
			shut(t, r)
			expectSame(t, "after a restart", asText(t, open(t, path, 40)), want)
		})
	}
}

// A place that cannot be a file: the report counts all the same, and saves when it can.
func TestPlaceThatCannotBeUsed(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file", "report.db")
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := Open(Config{Path: path})
	if err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("Open: %v", err)
	}
	fill(r, 3)
	if err := r.Save(start); err == nil {
		t.Error("Save says nothing")
	}
	if err := os.Remove(filepath.Join(dir, "file")); err != nil {
		t.Fatal(err)
	}
	save(t, r)
	want := asText(t, r)
	shut(t, r)
	expectSame(t, "after a restart", asText(t, open(t, path, 0)), want)

	path = filepath.Join(dir, "directory")
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	if r, err := Open(Config{Path: path}); err == nil || r == nil {
		t.Errorf("a directory in its place: %v, %v", r, err)
	}
}

// Calls go on while the report is saved, and none is missing.
func TestSaveWhileCounting(t *testing.T) {
	path := filepath.Join(t.TempDir(), "report.db")
	r := open(t, path, 20)
	var wg sync.WaitGroup
	const workers, calls = 3, 2000
	for w := range workers {
		wg.Go(func() {
			for i := range calls {
				count(r, postCall(), func(c *Call) { c.Table = fmt.Sprint("t", i*(w+1)%30) })
				if i%(calls/5) == 0 {
					if err := r.Save(start); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	save(t, r)
	want := asText(t, r)
	shut(t, r)
	r = open(t, path, 20)
	expectSame(t, "after a restart", asText(t, r), want)
	if l := r.List(start); l.Others.Events+eventsOf(l.Rows) != workers*calls {
		t.Errorf("%d events", l.Others.Events+eventsOf(l.Rows))
	}
}

// Rows give way while the report is saved: at each time, the file has all events that
// came before the Save before, none twice, and says that it is whole.
func TestRowsGiveWayWhileSaving(t *testing.T) {
	path := filepath.Join(t.TempDir(), "report.db")
	r := open(t, path, 200)
	var sent, kept uint64
	for round := range 20 {
		for i := range 300 {
			count(r, postCall(), func(c *Call) { c.Table = fmt.Sprint("t", round, i%250) })
			sent++
		}
		n := &news{rows: map[string][]byte{}}
		rest, rows, changed := r.listChanged(n)
		for i := range 100 { // before they are written down
			count(r, postCall(), func(c *Call) { c.Table = fmt.Sprint("meanwhile", round, i) })
			sent++
		}
		n.encode(&rest, rows, changed)
		if err := r.store.db.Update(n.write); err != nil {
			t.Fatal(err)
		}
		copied := filepath.Join(t.TempDir(), "report.db")
		file, err := os.ReadFile(path)                              //nolint:gosec // G304: the test's own file
		if err != nil || os.WriteFile(copied, file, 0o600) != nil { //nolint:gosec // G703: both are the test's own
			t.Fatal(err)
		}
		l := open(t, copied, 200).List(start)
		got := l.Others.Events + eventsOf(l.Rows)
		if got < kept || got > sent {
			t.Errorf("round %d: %d events, of %d; %d were there at the Save before", round, got, sent, kept)
		}
		kept = sent - 100
	}
}

// BenchmarkTakeNews is what a Save of all rows costs, but for the file; and how long
// calls may wait for it.
func BenchmarkTakeNews(b *testing.B) {
	r := inMemory(0)
	for i := range DefaultRows {
		count(r, pixelCall(), func(c *Call) {
			c.Table = fmt.Sprint(i)
			for h := range weekHours {
				c.Time = start.Add(time.Duration(h) * time.Hour)
				r.Count(c)
			}
		})
	}
	var waited time.Duration
	for b.Loop() {
		r.giveBack(r.takeNews())
		began := time.Now()
		n := &news{rows: map[string][]byte{}}
		r.listChanged(n)
		waited += time.Since(began)
	}
	b.ReportMetric(float64(waited.Nanoseconds())/float64(b.N), "ns-wait/op")
}
