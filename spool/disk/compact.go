package disk

import (
	"errors"
	"os"
	"syscall"
	"time"

	bolt "go.etcd.io/bbolt"
)

// This file gives back the space of a segment that is kept for a few records or
// dead letters.

// settledFile is how long nothing has changed in a segment before it is made
// smaller, unless space is short.
const settledFile = 10 * time.Second

// isSparse reports whether a segment takes much more space than what is in it, or
// just more while the disk is full or dead letters have too much. q.mu is held.
func (q *queue) isSparse(s *segment) bool {
	if s == q.active || !s.loaded || s.orphan || s.damaged || s.acked.count > 0 {
		return false
	}
	if s.state.bytes > s.packed/3*2 && s.packed > 0 {
		return false // most of what it was made smaller for is still there
	}
	size := s.size - q.disk.smallFile()
	if s.state.dead > 0 && q.disk.tooDead() || !q.disk.spare.held.Load() {
		return size > s.state.bytes/2*3
	}
	return (time.Since(s.changed) > settledFile || q.disk.nearlyFull.Load()) && size > 4*s.state.bytes
}

// compact makes the file of a segment smaller. If that fails, it is tried again
// later.
func (q *queue) compact(s *segment) {
	q.mu.Lock()
	bytes := s.state.bytes
	q.mu.Unlock()
	var size int64
	err := q.disk.scarcely(func() (err error) {
		if !mayFit(q.dir, bytes) {
			return syscall.ENOSPC
		}
		size, err = s.compact()
		return err
	})
	q.mu.Lock()
	defer q.mu.Unlock()
	s.changed = time.Now()
	if err == nil {
		s.packed = s.state.bytes
		q.disk.count(s, size)
	}
}

// compact copies what is in the file to a new one, which then takes its place:
// whenever the process dies, there is the one or the other.
func (s *segment) compact() (size int64, err error) {
	path := s.path + newSuffix
	if err := removeFile(path); err != nil {
		return 0, err
	}
	err = s.withDB(func(db *bolt.DB) error {
		smaller, err := bolt.Open(path, 0o600, space{}.options())
		if err != nil {
			return err
		}
		smaller.AllocSize = minGrowth
		return errors.Join(bolt.Compact(smaller, db, 1<<20), smaller.Close())
	})
	if err == nil {
		err = (&segment{path: path, coder: s.coder}).check()
	}
	info, statErr := os.Stat(path)
	if err = errors.Join(err, statErr); err != nil {
		return 0, errors.Join(err, removeFile(path))
	}
	s.open.Lock()
	defer s.open.Unlock()
	if err := s.closeDB(); err != nil {
		return 0, err
	}
	return info.Size(), rename(path, s.path)
}
