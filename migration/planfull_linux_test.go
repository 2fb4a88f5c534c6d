package migration

import (
	"errors"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/td-postback/gateway/spool/mounttest"
)

// smallDisk mounts a disk of a MiB.
func smallDisk(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=1048576"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	return dir
}

// refused wants a change to be refused, as it cannot be written.
func refused(t *testing.T, s *Steering, command string, why error) {
	t.Helper()
	was := says(s)
	_, err := do(s, based(s), command)
	if _, ok := errors.AsType[*NotSavedError](err); !ok || !errors.Is(err, why) {
		t.Errorf("%s: %v", command, err)
	}
	expectSays(t, s, was)
	if !errors.Is(s.Trouble(), why) {
		t.Error("no trouble:", s.Trouble())
	}
}

// rollsBack wants a rollback to hold that cannot be written.
func rollsBack(t *testing.T, s *Steering, restart string) {
	t.Helper()
	out, err := s.Rollback(Order{Time: start, Who: "ann@desk"})
	if err != nil || !strings.Contains(out.Unsaved, "until then a restart would lift it, and begin with "+restart) {
		t.Errorf("%+v, %v", out, err)
	}
	if s.Plan().Lane(&Caller{}, orders) != Legacy || s.Save() == nil {
		t.Error("it does not hold, or is written")
	}
}

// The disk is full to the last byte: a change that cannot be written is refused, a
// rollback holds, and is written when there is room. A restart there reads the plan.
func TestPlanOnAFullDisk(t *testing.T) {
	if !mounttest.Own(t) {
		return
	}
	dir := smallDisk(t)
	path := filepath.Join(dir, "plan.db")
	s := openPlan(t, path)
	must(t, s, "share *.* 100")
	filler := fillDisk(t, dir)
	// A small change has room in the file. One with a long note and many rules has not.
	var err error
	for i := 0; err == nil && i < 200; i++ {
		o := based(s)
		o.Note = strings.Repeat("n", MaxNote)
		_, err = s.Share(o, Rule{Target: "a.b"}, Share(i+1))
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	was := says(s)
	summary := s.saved.summary()
	o := based(s)
	o.Note = strings.Repeat("n", MaxNote)
	if _, err := s.Share(o, Rule{Target: "a.b"}, 9999); !errors.Is(err, syscall.ENOSPC) {
		t.Error(err)
	}
	expectSays(t, s, was)
	if s.Trouble() == nil {
		t.Error("no trouble")
	}
	s, err = reopenPlan(t, s)
	t.Logf("opened on the full disk: %v", err)
	expectSays(t, s, was)
	if parts, _ := filepath.Glob(filepath.Join(dir, "*.new")); len(parts) > 0 {
		t.Errorf("a part of a copy takes room: %s", parts)
	}
	o = Order{Time: start, Who: "ann@desk", Note: strings.Repeat("n", MaxNote)}
	out, err := s.Rollback(o)
	if err != nil || out.Unsaved != "" && !strings.Contains(out.Unsaved, "and begin with "+summary) {
		t.Errorf("%+v, %v", out, err)
	}
	if s.Plan().Lane(&Caller{}, orders) != Legacy {
		t.Error("the rollback does not hold")
	}
	removeFile(t, filler)
	if err := s.Save(); err != nil {
		t.Error("with room:", err)
	}
	held := says(s)
	if s, err = reopenPlan(t, s); err != nil || s.Status().Hold == nil {
		t.Errorf("%v, %+v", err, s.Status().Hold)
	}
	expectSays(t, s, held)

	// Another plan begins on the full disk.
	fillDisk(t, dir)
	path = filepath.Join(dir, "another.db")
	s, err = OpenPlan(PlanConfig{Start: V2, Path: path})
	if !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("opened on the full disk: %v", err)
	}
	t.Cleanup(func() { _ = s.Close() })
	refused(t, s, "share a.b 5", syscall.ENOSPC)
	rollsBack(t, s, "revision 0, with these shares to v2: *.* 100 %")
	removeFile(t, filler)
	if err := s.Save(); err != nil {
		t.Error("with room:", err)
	}
	if s, err = reopenPlan(t, s); err != nil {
		t.Error(err)
	}
	expectSays(t, s, "1: held *.* 100")
	if damaged, _ := filepath.Glob(filepath.Join(dir, "*"+damagedSuffix)); len(damaged) > 0 {
		t.Error("a full disk looks like damage")
	}
}

// The disk becomes read-only, as after an error of its own: the plan stays, also after a
// restart there.
func TestPlanOnAReadOnlyDisk(t *testing.T) {
	if !mounttest.Own(t) {
		return
	}
	dir := smallDisk(t)
	path := filepath.Join(dir, "plan.db")
	s := openPlan(t, path)
	must(t, s, "share *.* 100", "share a.b 5")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	remount := func(flags uintptr) {
		t.Helper()
		if err := syscall.Mount("tmpfs", dir, "tmpfs", syscall.MS_REMOUNT|flags, "size=1048576"); err != nil {
			t.Fatal(err)
		}
	}
	remount(syscall.MS_RDONLY)
	s, err := OpenPlan(PlanConfig{Start: Legacy, Path: path})
	if !errors.Is(err, syscall.EROFS) || !strings.Contains(err.Error(), "the last good copy counts, with revision 2") {
		t.Error(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	expectSays(t, s, "2: *.* 100, a.b 5")
	refused(t, s, "share a.b 6", syscall.EROFS)
	rollsBack(t, s, "revision 2, with these shares to v2: *.* 100 %, a.b 5 %")
	expectSays(t, s, "3: held *.* 100, a.b 5")
	remount(0)
	if err := s.Save(); err != nil {
		t.Error(err)
	}
	if s, err = reopenPlan(t, s); err != nil {
		t.Error(err)
	}
	expectSays(t, s, "3: held *.* 100, a.b 5")
	if s.History()[2].Action != ActionRollback || !s.History()[2].Time.Equal(start) {
		t.Errorf("%+v", s.History()[2])
	}
}
