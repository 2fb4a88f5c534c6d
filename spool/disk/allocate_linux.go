package disk

import (
	"errors"
	"os"
	"syscall"
)

// allocate gives a file so many bytes of the disk.
func allocate(f *os.File, size int64) error {
	err := syscall.Fallocate(int(f.Fd()), 0, 0, size)
	if errors.Is(err, syscall.EOPNOTSUPP) || errors.Is(err, syscall.ENOSYS) ||
		err == nil && allocated(f.Name()) < size { // it was only checked that there is room, as on ZFS
		return writeAll(f, size)
	}
	return err
}
