package caddymodule

import "syscall"

// mayWrite reports whether this user may make files in a directory.
func mayWrite(dir string) bool {
	const write, search = 2, 1 // W_OK and X_OK of access(2)
	return syscall.Access(dir, write|search) == nil
}

// freeSpace is how many bytes this user may still write to a directory's disk.
func freeSpace(dir string) (n int64, known bool) {
	var fs syscall.Statfs_t
	if syscall.Statfs(dir, &fs) != nil {
		return 0, false
	}
	return int64(fs.Bavail) * int64(fs.Bsize), true //nolint:gosec,unconvert // G115: a disk's size; the types differ between processors
}

// fileLimit is how many files the process may have open. Go has raised it to the
// hard limit, as it does for the gateway.
func fileLimit() (n uint64, known bool) {
	var limit syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit) != nil {
		return 0, false
	}
	return limit.Cur, true
}
