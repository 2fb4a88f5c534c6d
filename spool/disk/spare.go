package disk

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/td-postback/gateway/spool"
)

// This file keeps some of the disk for what gives space back. bbolt writes new
// pages before it gives up old ones: so on a disk that is full to the last byte,
// nothing could be deleted but whole files.

// spareName is the file's name in the Log's directory.
const spareName = "reserve"

// diskShare is which part of a small disk the spare may be.
const diskShare = 8

// spare is a file of bytes that the disk has really set aside. It is given up
// when something that gives space back finds the disk full, and made again when
// there is room. Meanwhile no record is taken: it would take the room.
type spare struct {
	path string
	size int64

	mu   sync.Mutex
	held atomic.Bool
}

// openSpare makes the spare, if it is not there and there is room.
func (d *Disk) openSpare() error {
	d.spare.path = filepath.Join(d.cfg.Dir, spareName)
	d.spare.size = d.segmentSize() / 2 // what a sparse file is copied to has half at most
	if _, all, ok := room(d.cfg.Dir); ok {
		d.spare.size = min(d.spare.size, all/diskShare)
	}
	if allocated(d.spare.path) >= d.spare.size {
		d.spare.held.Store(true)
		return nil
	}
	return d.spare.restore()
}

// restore makes the spare again, if it was given up.
func (s *spare) restore() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held.Load() {
		return nil
	}
	if !mayFit(filepath.Dir(s.path), s.size-allocated(s.path)) {
		return errors.Join(s.noRoom(syscall.ENOSPC), removeFile(s.path)) // a part that a killed process has left
	}
	f, err := os.OpenFile(s.path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err == nil {
		err = errors.Join(allocate(f, s.size), f.Sync(), f.Close())
	}
	if err != nil {
		return errors.Join(s.noRoom(err), removeFile(s.path))
	}
	s.held.Store(true)
	return nil
}

func (s *spare) noRoom(err error) error {
	return fmt.Errorf("no room for the spool's reserve of %d bytes: %w", s.size, err)
}

// giveUp reports whether there was a spare, which is free space now.
func (s *spare) giveUp() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.held.Swap(false) && removeFile(s.path) == nil
}

// mayFit reports whether a directory's disk has room, as far as is known. To write
// until there is none would take the last of it from what gives space back, again and
// again.
func mayFit(dir string, bytes int64) bool {
	free, _, ok := room(dir)
	return !ok || free >= bytes
}

// missing says why no record can be taken: the rest of the disk is for what gives
// space back.
func (s *spare) missing() error {
	if s.held.Load() {
		return nil
	}
	return s.restore()
}

// scarcely does what gives space back. On a full disk, the spare is for it.
func (d *Disk) scarcely(free func() error) error {
	err := free()
	if isNoSpace(err) && d.spare.giveUp() {
		err = free()
	}
	return err
}

// writeAll allocates by writing bytes that no file system makes smaller.
func writeAll(f *os.File, size int64) error {
	_, err := io.CopyN(f, rand.NewChaCha8([32]byte{}), size)
	return err
}

// isNoSpace tells a full disk, or one without a name for another file, after which
// bbolt can go on with the same file. bbolt keeps only the text of some errors.
func isNoSpace(err error) bool {
	return isErrno(err, syscall.ENOSPC) || isErrno(err, syscall.EDQUOT)
}

func isErrno(err error, errno syscall.Errno) bool {
	return errors.Is(err, errno) || err != nil && strings.Contains(err.Error(), errno.Error())
}

// compareRoom tells the operator when the disk cannot hold what the Log may have.
func (d *Disk) compareRoom() {
	free, _, ok := room(d.cfg.Dir)
	limit := d.maxSize.Load() + d.deadSize.Load()
	has := free + d.used.Load() + d.usedByDead.Load()
	if ok && has < limit {
		d.report(spool.Event{Kind: spool.SmallDisk, Err: fmt.Errorf("max_size and dead_size are %d bytes together, and the disk has %d", limit, has)})
	}
}
