// Package mounttest lets tests mount disks of their own.
package mounttest

import (
	"errors"
	"os"
	"os/exec"
	"syscall"
	"testing"
)

const ownMounts = "TEST_OWN_MOUNTS"

// Own runs a test again in a process that has mounts of its own, which
// are gone when it ends, and reports whether this is that process.
func Own(t *testing.T) bool {
	t.Helper()
	if os.Getenv(ownMounts) != "" {
		// Without this, mounts would be seen outside.
		if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
			t.Fatal(err)
		}
		return true
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe, "-test.run=^"+t.Name()+"$", "-test.v", "-test.count=1") //nolint:gosec // G204: the test itself
	cmd.Env = append(os.Environ(), ownMounts+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	if os.Getuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}
	}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, syscall.EPERM) {
		t.Fatal("this test mounts a small disk: it needs root, or a kernel that gives users namespaces of their own")
	}
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Logf("%s", out)
	return false
}
