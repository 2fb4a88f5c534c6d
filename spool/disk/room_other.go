//go:build !darwin && !freebsd && !linux

package disk

import (
	"errors"
	"os"
)

// room is not known here.
func room(string) (free, all int64, ok bool) { return 0, 0, false }

func allocated(path string) int64 {
	info, err := os.Lstat(path)
	if err != nil {
		return 0
	}
	return info.Size()
}

// holdFile cannot lock a directory here.
func holdFile(*os.File) (taken bool, err error) { return false, errors.ErrUnsupported }
