//go:build darwin || freebsd || linux

package disk

import (
	"errors"
	"os"
	"syscall"
)

// room is how many bytes of a directory's disk are free for this process, and how
// many it has.
func room(dir string) (free, all int64, ok bool) {
	var s syscall.Statfs_t
	if err := syscall.Statfs(dir, &s); err != nil || s.Blocks == 0 {
		return 0, 0, false
	}
	blocks := int64(s.Bavail) //nolint:gosec // G115: as below
	if os.Geteuid() == 0 {
		blocks = int64(s.Bfree) //nolint:gosec // G115: what is set aside for root too
	}
	return blocks * int64(s.Bsize), int64(s.Blocks) * int64(s.Bsize), true //nolint:gosec,unconvert // G115: sizes of disks, whose types differ between systems
}

// allocated is how many bytes of the disk a file has.
func allocated(path string) int64 {
	info, err := os.Lstat(path)
	if err != nil {
		return 0
	}
	if s, ok := info.Sys().(*syscall.Stat_t); ok {
		return s.Blocks * 512
	}
	return info.Size()
}

// holdFile locks a file or a directory for this process, or says that another one
// has it.
func holdFile(f *os.File) (taken bool, err error) {
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	return errors.Is(err, syscall.EWOULDBLOCK), err
}
