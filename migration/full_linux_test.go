package migration

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/td-postback/gateway/spool/mounttest"
)

// The disk is full to the last byte: the report counts all the same, says so at each
// Save, also when it starts there, and saves all of it when there is room.
func TestReportOnAFullDisk(t *testing.T) {
	if !mounttest.Own(t) {
		return
	}
	small := t.TempDir()
	if err := syscall.Mount("tmpfs", small, "tmpfs", 0, "size=1048576"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(small, syscall.MNT_DETACH) })
	path := filepath.Join(small, "report.db")
	r := open(t, path, 2000)
	fill(r, 50)
	save(t, r)
	saved := asText(t, r)
	filler := fillDisk(t, small)
	fill(r, 1500)
	for range 3 {
		if err := r.Save(start); !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("Save on a full disk: %v", err)
		}
	}
	want := asText(t, r)
	shut(t, r)
	r, err := Open(Config{Path: path, Rows: 2000})
	if err != nil {
		t.Logf("Open on a full disk: %v", err)
	}
	expectSame(t, "opened on the full disk", asText(t, r), saved)
	fill(r, 1500)
	if err := r.Save(start); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("Save on a full disk: %v", err)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	save(t, r)
	expectSame(t, "with room", asText(t, r), want)
	shut(t, r)
	expectSame(t, "after a restart", asText(t, open(t, path, 2000)), want)

	// Another report begins on the full disk.
	filler = fillDisk(t, small)
	path = filepath.Join(small, "another.db")
	if r, err = Open(Config{Path: path}); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("Open on a full disk: %v", err)
	}
	t.Cleanup(func() { _ = r.Close() })
	fill(r, 3)
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	save(t, r)
	want = asText(t, r)
	shut(t, r)
	expectSame(t, "after a restart", asText(t, open(t, path, 0)), want)
	if damaged, _ := filepath.Glob(filepath.Join(small, "*"+damagedSuffix)); len(damaged) > 0 {
		t.Error("a full disk looks like damage")
	}
}

// fillDisk takes the last byte of a disk.
func fillDisk(t *testing.T, dir string) (path string) {
	t.Helper()
	path = filepath.Join(dir, "filler")
	f, err := os.Create(path) //nolint:gosec // G304: the test's own file
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for err == nil {
		_, err = f.Write(make([]byte, filePage))
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	return path
}
