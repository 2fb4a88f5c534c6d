package disk

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// lock makes a Log the only one in its directory, until it is closed or the
// process dies. It holds the directory itself, where the system lets it: a file
// could be deleted, and another process would then make and lock its own.
type lock struct {
	path string
	file *bolt.DB // what versions before, and systems that cannot lock a directory, look at

	mu  sync.Mutex
	dir *os.File // nil where it cannot be locked
}

// lockWait is how long another owner may take to give a directory up. A process
// that this one starts has what is open here, until it runs its own program.
const lockWait = 100 * time.Millisecond

// lockDir locks a directory.
func lockDir(path string) (*lock, error) {
	dir, err := holdDir(path)
	if err != nil {
		return nil, err
	}
	l := &lock{path: path, dir: dir}
	if l.file, err = lockFile(path); err != nil {
		return nil, errors.Join(err, l.close())
	}
	return l, nil
}

// holdDir locks the directory that has this path now.
func holdDir(path string) (*os.File, error) {
	dir, err := os.Open(path) //nolint:gosec // G304: the spool's own
	if err != nil {
		return nil, err
	}
	taken, err := holdFile(dir)
	for began := time.Now(); taken && time.Since(began) < lockWait; taken, err = holdFile(dir) {
		time.Sleep(lockWait / 20)
	}
	switch {
	case taken:
		_ = dir.Close()
		return nil, fmt.Errorf("%w: %s", ErrLocked, path)
	case err != nil: // a file system that cannot
		_ = dir.Close()
		return nil, nil //nolint:nilerr // the file in it is locked
	}
	return dir, nil
}

// holds checks that the directory is still the one that is locked. If somebody has
// put another in its place, that one is locked too.
func (l *lock) holds() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.dir == nil {
		return nil
	}
	held, err := l.dir.Stat()
	if err != nil {
		return err
	}
	now, err := os.Stat(l.path)
	if err == nil && os.SameFile(held, now) {
		return nil
	}
	if err := makeDir(l.path); err != nil {
		return err
	}
	dir, err := holdDir(l.path)
	if err != nil {
		return err
	}
	_ = l.dir.Close()
	l.dir = dir
	return nil
}

func (l *lock) close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var err error
	if l.file != nil {
		err = guard(l.file.Close)
	}
	if l.dir != nil {
		err = errors.Join(err, l.dir.Close())
	}
	return err
}

// lockFile locks a file in the directory. bbolt locks a file until it is closed,
// which the system does when the process dies.
func lockFile(dir string) (*bolt.DB, error) {
	path := filepath.Join(dir, "lock"+segmentSuffix)
	open := func() (lock *bolt.DB, err error) {
		err = guard(func() error {
			lock, err = bolt.Open(path, 0o600, &bolt.Options{Timeout: time.Millisecond})
			return err
		})
		return lock, err
	}
	lock, err := open()
	if errors.Is(err, berrors.ErrTimeout) {
		return nil, fmt.Errorf("%w: %s", ErrLocked, dir)
	}
	if _, system := errors.AsType[syscall.Errno](err); err != nil && !system {
		// Its making was cut short, or it is damaged. Nothing is in it.
		if err := os.Remove(path); err != nil {
			return nil, err
		}
		return open()
	}
	return lock, err
}
