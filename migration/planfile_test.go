package migration

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// reopenPlan closes a plan and opens it again.
func reopenPlan(t testing.TB, s *Steering) (*Steering, error) {
	t.Helper()
	path := s.cfg.Path
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s, err := OpenPlan(PlanConfig{Start: Legacy, Path: path})
	t.Cleanup(func() { _ = s.Close() })
	return s, err
}

func TestPlanSurvivesARestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "plan.db")
	s := openPlan(t, path)
	expectSays(t, s, "0: *.* 0")
	var err error
	for _, step := range [][2]string{
		{"share shop.orders 12.34", "1: *.* 0, shop.orders 12.34"}, {"share shop.* 50 1234", "2: *.* 0, shop.* account:1234 50, shop.orders 12.34"},
		{"rollback", "3: held *.* 0, shop.* account:1234 50, shop.orders 12.34"}, {"undo", "4: held *.* 0, shop.orders 12.34"},
		{"resume", "5: *.* 0, shop.orders 12.34"}, {"unset shop.orders", "6: *.* 0"}, {"share *.* 100", "7: *.* 100"},
	} {
		must(t, s, step[0])
		history := fmt.Sprintf("%+v", s.History())
		if s, err = reopenPlan(t, s); err != nil {
			t.Fatal(err)
		}
		expectSays(t, s, step[1])
		if again := fmt.Sprintf("%+v", s.History()); len(again) != len(history) { // pointers differ
			t.Errorf("the history is\n%s\nwas\n%s", again, history)
		}
	}
	must(t, s, "undo 2") // after restarts, the whole history counts
	expectSays(t, s, "8: *.* 0, shop.* account:1234 50, shop.orders 12.34")
	for _, suffix := range []string{"", copySuffix, lockSuffix} {
		if info, err := os.Stat(path + suffix); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", path+suffix, info, err)
		}
	}
}

// The start of the first change stays, whatever is configured later.
func TestStartIsPartOfThePlan(t *testing.T) {
	path := filepath.Join(t.TempDir(), "plan.db")
	s := openPlan(t, path)
	must(t, s, "rollback", "resume")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s, err := OpenPlan(PlanConfig{Start: V2, Path: path})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	expectSays(t, s, "2: *.* 0")
}

func TestClosedPlanRefusesChanges(t *testing.T) {
	s := openPlan(t, filepath.Join(t.TempDir(), "plan.db"))
	must(t, s, "share a.b 5")
	o := based(s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if out, err := do(s, o, "share a.b 6"); !errors.Is(err, errClosed) {
		t.Error(out, err)
	}
	expectSays(t, s, "1: *.* 0, a.b 5")
}

// newPlanFiles has a plan of three revisions, and what its file was after the second.
func newPlanFiles(t testing.TB) (path string, second []byte) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "plan.db")
	s := openPlan(t, path)
	must(t, s, "share a.b 5", "share c.d 6")
	second = readFile(t, path)
	must(t, s, "share c.d 7")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return path, second
}

func readFile(t testing.TB, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(path) //nolint:gosec // G304: the test's own file
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func writeFile(t testing.TB, path string, text []byte) {
	t.Helper()
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

func removeFile(t testing.TB, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

// A file that cannot be read: the last good copy counts, else the start, and the plan's
// health says so, also after another restart, until somebody changes the plan. It starts
// always. What is damaged is kept.
func TestPlanThatCannotBeRead(t *testing.T) {
	const (
		all    = "3: *.* 0, a.b 5, c.d 7"
		none   = "0: *.* 0"
		copied = "the last good copy counts, with revision 3, with these shares to v2: *.* 0 %, a.b 5 %, c.d 7 %"
		begun  = "the start counts, with revision 0, with these shares to v2: *.* 0 %"
	)
	spoil := func(t *testing.T, path, old, with string) {
		text := readFile(t, path)
		if !bytes.Contains(text, []byte(old)) {
			t.Fatal("nothing to spoil")
		}
		writeFile(t, path, bytes.ReplaceAll(text, []byte(old), []byte(with)))
	}
	flip := func(t *testing.T, path string) { spoil(t, path, `"c.d","percent":7`, `"c.d","percent":8`) }
	for name, tc := range map[string]struct {
		spoil         func(t *testing.T, path string, second []byte)
		says, trouble string
		damaged       bool
	}{
		"file flipped":  {func(t *testing.T, path string, _ []byte) { flip(t, path) }, all, copied, true},
		"file cut":      {func(t *testing.T, path string, _ []byte) { writeFile(t, path, readFile(t, path)[:filePage*3/2]) }, all, copied, true},
		"file emptied":  {func(t *testing.T, path string, _ []byte) { writeFile(t, path, nil) }, all, copied, false},
		"file of zeros": {func(t *testing.T, path string, _ []byte) { writeFile(t, path, make([]byte, 4*filePage)) }, all, copied, true},
		"file is none":  {func(t *testing.T, path string, _ []byte) { writeFile(t, path, []byte("no bbolt")) }, all, copied, true},
		"file gone":     {func(t *testing.T, path string, _ []byte) { removeFile(t, path) }, all, copied, false},
		"file of another version": {
			func(t *testing.T, path string, _ []byte) { spoil(t, path, stateName+"1 ", stateName+"2 ") }, all, copied, true,
		},
		"file older": {
			func(t *testing.T, path string, second []byte) { writeFile(t, path, second) }, all,
			"has revision 2, which is older than its copy: the copy counts, with revision 3", false,
		},
		"copy gone": {func(t *testing.T, path string, _ []byte) { removeFile(t, path+copySuffix) }, all, "", false},
		"copy older": {
			func(t *testing.T, path string, second []byte) {
				older := filepath.Join(t.TempDir(), "older.db")
				writeFile(t, older, second)
				s := openPlan(t, older)
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				writeFile(t, path+copySuffix, readFile(t, older+copySuffix))
			}, all, "", false,
		},
		"copy flipped": {func(t *testing.T, path string, _ []byte) { flip(t, path+copySuffix) }, all, "", false},
		"copy emptied": {func(t *testing.T, path string, _ []byte) { writeFile(t, path+copySuffix, nil) }, all, "", false},
		"lock damaged": {func(t *testing.T, path string, _ []byte) { writeFile(t, path+lockSuffix, []byte("x")) }, all, "", false},
		"both gone":    {func(t *testing.T, path string, _ []byte) { removeFile(t, path); removeFile(t, path+copySuffix) }, none, "", false},
		"both flipped": {func(t *testing.T, path string, _ []byte) { flip(t, path); flip(t, path+copySuffix) }, none, begun, true},
		"file flipped, copy gone": {
			func(t *testing.T, path string, _ []byte) { flip(t, path); removeFile(t, path+copySuffix) }, none, begun, true,
		},
		"file gone, copy cut": {
			func(t *testing.T, path string, _ []byte) {
				removeFile(t, path)
				writeFile(t, path+copySuffix, readFile(t, path+copySuffix)[:30])
			}, none, begun, false,
		},
	} {
		t.Run(name, func(t *testing.T) {
			path, second := newPlanFiles(t)
			good := readFile(t, path+copySuffix)
			tc.spoil(t, path, second)
			s, err := OpenPlan(PlanConfig{Start: Legacy, Path: path})
			t.Cleanup(func() { _ = s.Close() })
			for range 2 { // also after a Save and a restart
				expectSays(t, s, tc.says)
				if tc.trouble == "" && tc.says == all && !bytes.Equal(readFile(t, path+copySuffix), good) {
					t.Error("the copy is not the plan")
				}
				again, degraded := s.Save(), s.Status().Degraded
				if tc.trouble == "" && (err != nil || again != nil || degraded != "") {
					t.Errorf("%v, %v, %s", err, again, degraded)
				}
				if tc.trouble != "" && (err == nil || again == nil || !strings.Contains(err.Error(), tc.trouble) || again.Error() != err.Error() || degraded != err.Error()) {
					t.Errorf("%v\n%v\n%s", err, again, degraded)
				}
				s, err = reopenPlan(t, s)
			}
			must(t, s, "share e.f 9")
			if err := s.Trouble(); err != nil {
				t.Error("after a change:", err)
			}
			want := says(s)
			if s, err = reopenPlan(t, s); err != nil {
				t.Error("after a change and a restart:", err)
			}
			expectSays(t, s, want)
			if _, err := os.Stat(path + damagedSuffix); (err == nil) != tc.damaged {
				t.Error("the damaged file:", err)
			}
			if !bytes.Contains(readFile(t, path+copySuffix), []byte("e.f")) {
				t.Error("the copy is older")
			}
		})
	}
}

// The file cannot be read for a while, and then its copy is lost, too: what was read of
// it counts, until the file can be read.
func TestPlanThatCannotBeReadNow(t *testing.T) {
	path, _ := newPlanFiles(t)
	if err := errors.Join(os.Rename(path, path+".away"), os.Mkdir(path, 0o700)); err != nil {
		t.Fatal(err)
	}
	s, err := OpenPlan(PlanConfig{Start: V2, Path: path})
	t.Cleanup(func() { _ = s.Close() })
	removeFile(t, path+copySuffix)
	again := s.Save()
	if err == nil || again == nil {
		t.Error(err, again)
	}
	expectSays(t, s, "3: *.* 0, a.b 5, c.d 7")
	if _, err := do(s, based(s), "share a.b 6"); err == nil || strings.Contains(err.Error(), "good copy") {
		t.Error("a change of what cannot be read:", err)
	}
	expectSays(t, s, "3: *.* 0, a.b 5, c.d 7")
	if trouble := s.Trouble().Error(); strings.Count(trouble, "cannot be read") != 1 || strings.Count(trouble, "cannot be written") != 1 {
		t.Errorf("what is wrong is not said once: %s", trouble)
	}
	if err := errors.Join(os.Remove(path), os.Rename(path+".away", path)); err != nil {
		t.Fatal(err)
	}
	if err := s.Save(); err != nil {
		t.Error(err)
	}
	must(t, s, "share a.b 6")
	if s, err = reopenPlan(t, s); err != nil {
		t.Error(err)
	}
	expectSays(t, s, "4: *.* 0, a.b 6, c.d 7")
}

// Somebody deletes the file before anybody has made a plan: there is none, and no harm.
func TestFileWithoutAPlanLost(t *testing.T) {
	path := filepath.Join(t.TempDir(), "plan.db")
	s := openPlan(t, path)
	removeFile(t, path)
	if err := s.Save(); err != nil {
		t.Error(err)
	}
	s, err := reopenPlan(t, s)
	if err != nil {
		t.Error(err)
	}
	expectSays(t, s, "0: *.* 0")
}

// A place that cannot be written: changes are refused and nothing moves, but a rollback
// holds, says what a restart would do, and is written when that can be done.
func TestPlanThatCannotBeWritten(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file", "plan.db")
	writeFile(t, filepath.Join(dir, "file"), nil)
	s, err := OpenPlan(PlanConfig{Start: V2, Path: path})
	if err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "the start counts") {
		t.Error(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	before := s.Plan()
	for _, command := range []string{"share a.b 5", "share *.* 0"} {
		_, err := do(s, based(s), command)
		if _, ok := errors.AsType[*NotSavedError](err); !ok || !strings.HasPrefix(err.Error(), "the plan cannot be written, so nothing has changed: ") {
			t.Errorf("%s: %v", command, err)
		}
	}
	if s.Plan().Lane(&Caller{}, orders) != V2 || before.Lane(&Caller{}, orders) != V2 {
		t.Error("something has moved")
	}
	expectSays(t, s, "0: *.* 100")
	o := based(s)
	o.Note = "v2 is down"
	for range 2 { // the second one changes nothing, and says the same
		out, err := s.Rollback(o)
		if err != nil || out.Revision != 1 || !strings.Contains(out.Unsaved, "a restart would lift it, and begin with revision 0, with these shares to v2: *.* 100 %") {
			t.Fatalf("%+v, %v", out, err)
		}
		expectSays(t, s, "1: held *.* 100")
		if s.Plan().Lane(&Caller{}, orders) != Legacy || s.Trouble() == nil || s.Status().Unsaved != out.Unsaved || s.Save() == nil {
			t.Error("the rollback does not hold")
		}
		o.Base = nil
	}
	s.Configure(V2, StickKey) // a reload
	if s.Plan().Lane(&Caller{}, orders) != Legacy {
		t.Error("a reload lifts it")
	}
	if _, err := do(s, based(s), "resume"); err == nil {
		t.Error("it could be lifted")
	}
	if err := os.Remove(filepath.Join(dir, "file")); err != nil {
		t.Fatal(err)
	}
	if err := s.Save(); err != nil || s.Status().Unsaved != "" || s.Trouble() != nil {
		t.Error(err, s.Status())
	}
	s, err = reopenPlan(t, s)
	if err != nil || s.Status().Hold == nil || s.Status().Hold.Note != "v2 is down" || s.Status().Hold.Who != "ann@desk" {
		t.Errorf("%v, %+v", err, s.Status().Hold)
	}
	expectSays(t, s, "1: held *.* 100")
	must(t, s, "resume")
	expectSays(t, s, "2: *.* 100")
}

// Another process has the file: what it keeps counts here too, but only it can change it.
// A rollback holds here alone, and is laid over what the other has left.
func TestPlanOfAnotherProcess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "plan.db")
	first := openPlan(t, path)
	must(t, first, "share a.b 5")
	second, err := OpenPlan(PlanConfig{Start: V2, Path: path})
	if !errors.Is(err, errInUse) {
		t.Error(err)
	}
	t.Cleanup(func() { _ = second.Close() })
	expectSays(t, second, "1: *.* 0, a.b 5")
	if _, err := do(second, based(second), "share a.b 6"); !errors.Is(err, errInUse) {
		t.Error(err)
	}
	must(t, first, "share a.b 7")
	if err := second.Save(); !errors.Is(err, errInUse) {
		t.Error(err)
	}
	expectSays(t, second, "2: *.* 0, a.b 7")
	if out, err := second.Rollback(based(second)); err != nil || out.Unsaved == "" {
		t.Error(out, err)
	}
	must(t, first, "share c.d 9")
	if err := second.Save(); !errors.Is(err, errInUse) {
		t.Error(err)
	}
	expectSays(t, second, "4: held *.* 0, a.b 7, c.d 9")
	expectSays(t, first, "3: *.* 0, a.b 7, c.d 9")
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if err := second.Save(); err != nil {
		t.Error(err)
	}
	if second, err = reopenPlan(t, second); err != nil {
		t.Error(err)
	}
	expectSays(t, second, "4: held *.* 0, a.b 7, c.d 9")
}

// Somebody deletes the file, or spoils it, while it is in use: nothing moves, the next
// change works, and after a restart all of it is there.
func TestPlanFileLost(t *testing.T) {
	for name, lose := range map[string]func(path string) error{
		"deleted": os.Remove,
		"cut":     func(path string) error { return os.Truncate(path, 0) },
		"replaced": func(path string) error {
			return errors.Join(os.WriteFile(path+".x", []byte("no bbolt"), 0o600), os.Rename(path+".x", path))
		},
		"home": func(path string) error { return os.RemoveAll(filepath.Dir(path)) },
	} {
		for _, saved := range []bool{false, true} {
			t.Run(fmt.Sprint(name, ", saved ", saved), func(t *testing.T) {
				path := filepath.Join(t.TempDir(), "plans", "plan.db")
				s := openPlan(t, path)
				must(t, s, "share a.b 5", "share c.d 6")
				if err := lose(path); err != nil {
					t.Fatal(err)
				}
				want := "2: *.* 0, a.b 5, c.d 6"
				if saved {
					if err := s.Save(); err != nil {
						t.Error(err)
					}
					if name == "cut" { // what is not written is not looked at
						return
					}
				} else {
					must(t, s, "share e.f 7")
					want = "3: *.* 0, a.b 5, c.d 6, e.f 7"
				}
				expectSays(t, s, want)
				s, err := reopenPlan(t, s)
				if err != nil {
					t.Error(err)
				}
				expectSays(t, s, want)
			})
		}
	}
}

// Where the copy is made, and where it is, may be a link: what that leads to stays.
func TestCopyLeadsNowhereElse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "plan.db")
	s := openPlan(t, path)
	other := path + ".other"
	writeFile(t, other, []byte("somebody's"))
	for _, link := range []string{path + copySuffix, path + copySuffix + ".new"} {
		if err := os.Symlink(other, link); err != nil {
			t.Fatal(err)
		}
	}
	must(t, s, "share *.* 5")
	if text := readFile(t, other); string(text) != "somebody's" {
		t.Errorf("the plan has been written over %q", text)
	}
	if _, err := (&planFile{store: store{path: path}}).readCopy(); err != nil {
		t.Error(err)
	}
	if err := s.Trouble(); err != nil {
		t.Error(err)
	}
}

// The copy cannot be written: changes count, and health says so until it can.
func TestCopyThatCannotBeWritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "plan.db")
	s := openPlan(t, path)
	if err := os.MkdirAll(filepath.Join(path+copySuffix, "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	must(t, s, "share a.b 5")
	if err := s.Save(); err == nil || !strings.Contains(err.Error(), path+copySuffix) {
		t.Error(err)
	}
	s, err := reopenPlan(t, s)
	if err == nil {
		t.Error("a restart says nothing")
	}
	expectSays(t, s, "1: *.* 0, a.b 5")
	if err := os.RemoveAll(path + copySuffix); err != nil {
		t.Fatal(err)
	}
	if err := s.Save(); err != nil {
		t.Error(err)
	}
	removeFile(t, path)
	if s, err = reopenPlan(t, s); err == nil {
		t.Error("the file is gone, and nobody says so")
	}
	expectSays(t, s, "1: *.* 0, a.b 5")
}

// changeUntilKilled changes a plan, and says each revision that is in force. The share
// of a.b is its revision's, so that it can be checked.
func changeUntilKilled(path string) {
	s, err := OpenPlan(PlanConfig{Start: Legacy, Path: path})
	for err == nil {
		revision := s.Status().Revision
		o := Order{Time: start, Who: "child", Base: &revision}
		if _, err = s.Share(o, Rule{Target: "a.b"}, shareOf(revision+1)); err == nil {
			fmt.Println("revision", revision+1)
		}
	}
	fmt.Println("error", err)
}

func shareOf(revision uint64) Share {
	return Share(revision % uint64(AllToV2))
}

// A process is killed again and again while it changes a plan: what it said is in force
// is there after a restart, or the next revision, and all of it.
func TestKilledWhileChanging(t *testing.T) {
	path := filepath.Join(t.TempDir(), "plan.db")
	for kill := range 10 {
		said := killChild(t, childChanges, path, "revision %d", time.Duration(5+kill*7)*time.Millisecond)
		s := openPlan(t, path)
		status := s.Status()
		if status.Revision < said || status.Revision > said+1 || said == 0 {
			t.Errorf("kill %d: revision %d, and %d was said", kill, status.Revision, said)
		}
		if len(status.Rules) != 2 || status.Rules[1].Share != shareOf(status.Revision) || uint64(len(s.History())) != min(status.Revision, MaxHistory) {
			t.Errorf("kill %d: %+v, %d changes", kill, status, len(s.History()))
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// Bits of the file flip, wherever they are: the plan is the one that was in force last,
// from the file or its copy, and can be changed. It never ends the process.
func TestFlippedBitsOfThePlan(t *testing.T) {
	path, _ := newPlanFiles(t)
	file, copied := readFile(t, path), readFile(t, path+copySuffix)
	random := rand.New(rand.NewPCG(3, 4)) //nolint:gosec // G404: a test's
	for i := range 300 {
		damaged := slices.Clone(file)
		at := random.IntN(len(damaged))
		if i%2 == 0 { // where the pages say what they are
			at = at/filePage*filePage + random.IntN(120)
		}
		damaged[at] ^= 1 << random.IntN(8)
		expectPlan(t, damaged, copied)
		if t.Failed() {
			t.Fatalf("byte %d", at)
		}
	}
}

// expectPlan wants the plan of newPlanFiles, whatever is in the file.
func expectPlan(t *testing.T, file, copied []byte) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "plan.db")
	writeFile(t, path, file)
	writeFile(t, path+copySuffix, copied)
	s, _ := OpenPlan(PlanConfig{Start: V2, Path: path})
	t.Cleanup(func() { _ = s.Close() })
	expectSays(t, s, "3: *.* 0, a.b 5, c.d 7")
	must(t, s, "share e.f 9")
	s, err := reopenPlan(t, s)
	if err != nil {
		t.Error(err)
	}
	expectSays(t, s, "4: *.* 0, a.b 5, c.d 7, e.f 9")
	_ = s.Close()
}

// FuzzPlanFile changes bytes of the file.
func FuzzPlanFile(f *testing.F) {
	path, _ := newPlanFiles(f)
	file, copied := readFile(f, path), readFile(f, path+copySuffix)
	f.Add(uint32(filePage+16), []byte{1})
	f.Add(uint32(3*filePage+8), []byte{1})
	f.Add(uint32(0), []byte("x"))
	f.Fuzz(func(t *testing.T, at uint32, change []byte) {
		damaged := slices.Clone(file)
		copy(damaged[int(at)%len(damaged):], change)
		expectPlan(t, damaged, copied)
	})
}

// FuzzState reads any plan, with the right checksum: what can be read is written the
// same, decides, and can be changed and undone.
func FuzzState(f *testing.F) {
	s := openPlan(f, "")
	must(f, s, "share a.b 5", "share shop.* 12.34 1234", "rollback", "undo", "unset a.b")
	text, err := s.state.encode()
	if err != nil {
		f.Fatal(err)
	}
	_, body, _ := bytes.Cut(text, []byte("\n"))
	f.Add(body)
	f.Add(bytes.ReplaceAll(body, []byte(`"a.b"`), []byte(`"*.*"`)))
	f.Fuzz(func(t *testing.T, body []byte) {
		read, err := decodeState(append(stateLine(body), body...))
		if err != nil {
			return
		}
		text, err := read.encode()
		if err != nil {
			t.Fatal(err)
		}
		again, err := decodeState(text)
		if err != nil {
			t.Fatal(err)
		}
		if same, err := again.encode(); err != nil || !bytes.Equal(text, same) {
			t.Errorf("%s, then %s: %v", text, same, err)
		}
		s, _ := OpenPlan(PlanConfig{})
		s.enforce(read)
		s.Plan().Lane(&Caller{Key: usualKey, Client: "203.0.113.7"}, orders)
		for _, command := range []string{"share a.b 7", "undo", "undo", "rollback", "resume"} {
			if _, err := do(s, based(s), command); err == nil && !s.state.isWhole() {
				t.Errorf("%s: %+v", command, s.state)
			}
		}
	})
}

// FuzzStateText reads any text.
func FuzzStateText(f *testing.F) {
	f.Add([]byte(""))
	f.Add([]byte("td-postback plan 1 00000000\n"))
	f.Fuzz(func(_ *testing.T, text []byte) { _, _ = decodeState(text) })
}

// A plan that no changes can have made is damaged, whatever its checksum says.
func TestStateThatCannotBe(t *testing.T) {
	s := openPlan(t, "")
	must(t, s, "share a.b 5", "share c.d 6")
	for name, spoil := range map[string]func(*planState){
		"rules out of order": func(s *planState) { s.Rules[1], s.Rules[2] = s.Rules[2], s.Rules[1] },
		"a rule twice":       func(s *planState) { s.Rules[2] = s.Rules[1] },
		"no default":         func(s *planState) { s.Rules = s.Rules[1:] },
		"a gap in history":   func(s *planState) { s.History[0].Revision = 7 },
		"no history":         func(s *planState) { s.History = nil },
		"another action":     func(s *planState) { s.History[0].Action = "x" },
	} {
		state := *s.state
		state.Rules, state.History = slices.Clone(state.Rules), slices.Clone(state.History)
		spoil(&state)
		text, err := state.encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decodeState(text); !errors.Is(err, errState) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
