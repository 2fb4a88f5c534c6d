package disk

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"github.com/td-postback/gateway/spool"
)

const (
	segmentSuffix = ".db"
	damagedSuffix = ".damaged"

	// The steps in which a segment's file grows, in bytes: while records are
	// written to it, at most, and after that.
	maxGrowth = 2 << 20
	minGrowth = 64 << 10
)

var (
	recordsBucket = []byte("records") // ID -> record, until v2 has taken it
	deadBucket    = []byte("dead")    // ID -> why the record is a dead letter
	stateBucket   = []byte("state")
	stateKey      = []byte("state")
)

// segment is one bbolt file of a queue. Its name tells the least ID that it
// can hold, and its salt.
type segment struct {
	path  string
	first spool.ID
	coder coder

	open    sync.RWMutex // held for reading while db is used
	db      *bolt.DB     // nil while the file is closed
	retired bool         // the file must not be opened again

	// The queue's mutex guards the following.
	found
	loaded  bool              // found is known
	acked   map[spool.ID]bool // delivered, but still in the file
	counted int64             // of the file's size, as part of what the Log uses
	used    time.Time         // when something was committed last
	orphan  bool              // the file may be gone, so it must stay open
	damaged bool              // to be salvaged
	gone    bool              // no part of the queue any more
	hint    spool.ID          // no record to be delivered has a smaller ID

	// How far Take has come.
	cursor spool.ID  // the last ID given out
	read   bool      // to the end
	readAt time.Time // when to read again what could not be read
	blamed bool      // that was reported
}

// found is what is in a segment.
type found struct {
	state
	size int64    // of the file
	last spool.ID // the largest ID
}

// state is what a segment knows of itself.
type state struct {
	live, dead int   // records to be delivered, dead letters
	bytes      int64 // of both
}

func newSegment(path string, first spool.ID, c coder) *segment {
	return &segment{path: path, first: first, coder: c, acked: map[spool.ID]bool{}, hint: first}
}

// death is why a record is a dead letter.
type death struct {
	id     spool.ID
	status int
	died   time.Time
	reason string
}

// change is what one commit does to a segment.
type change struct {
	puts   [][]byte // records, with their IDs from putID on
	putID  spool.ID
	acks   []spool.ID // delivered: they go
	deaths []death
	revive []spool.ID // no dead letters any more
	drop   []spool.ID // dead letters that go

	// How many of them there were, once committed.
	died, dropped int
	revived       []spool.ID
}

// segmentName makes the name of a file from the first ID and the salt.
func segmentName(first spool.ID, salt []byte) string {
	return fmt.Sprintf("%016x-%s%s", uint64(first), hex.EncodeToString(salt), segmentSuffix)
}

// parseSegmentName is segmentName the other way round.
func parseSegmentName(name string) (first spool.ID, salt []byte, ok bool) {
	name, ok = strings.CutSuffix(name, segmentSuffix)
	if !ok || len(name) != 16+1+16 || name[16] != '-' {
		return 0, nil, false
	}
	n, err := strconv.ParseUint(name[:16], 16, 64)
	if err != nil {
		return 0, nil, false
	}
	salt, err = hex.DecodeString(name[17:])
	return spool.ID(n), salt, err == nil
}

// createSegment makes a new file. After an error there is none.
func createSegment(dir string, first spool.ID, key []byte, space space) (*segment, error) {
	salt := make([]byte, 8)
	_, _ = rand.Read(salt) // never fails
	c, err := newCoder(key, salt)
	if err != nil {
		return nil, err
	}
	s := newSegment(filepath.Join(dir, segmentName(first, salt)), first, c)
	s.loaded = true
	return s, s.create(s.path, space)
}

// create makes the segment's file under a name.
func (s *segment) create(path string, space space) (err error) {
	err = guard(func() error {
		if s.db, err = bolt.Open(path, 0o600, space.options()); err != nil {
			return err
		}
		s.db.AllocSize = space.growth
		err := s.db.Update(func(tx *bolt.Tx) error {
			for _, bucket := range [][]byte{recordsBucket, deadBucket, stateBucket} {
				if _, err := tx.CreateBucket(bucket); err != nil {
					return err
				}
			}
			return nil
		})
		return errors.Join(err, syncDir(filepath.Dir(path)))
	})
	if err != nil {
		s.retire()
		_ = os.Remove(path)
	}
	return err
}

// space is how large a segment's file becomes.
type space struct {
	mapped int // bytes of address space to begin with: more cost a pause
	growth int // step in which the file grows, in bytes; each costs a sync
}

func (p space) options() *bolt.Options {
	return &bolt.Options{
		Timeout:         50 * time.Millisecond, // nobody else has the directory
		FreelistType:    bolt.FreelistMapType,
		InitialMmapSize: p.mapped,
		NoStatistics:    true,
	}
}

// load opens a file that is there, checks it and reads its state.
func (s *segment) load() (found found, err error) {
	info, err := os.Stat(s.path)
	if err != nil {
		return found, err
	}
	found.size = info.Size()
	f, err := os.Open(s.path)
	if err != nil {
		return found, err
	}
	defer f.Close() //nolint:errcheck // it is only read
	err = s.withDB(func() error {
		pages := pageFile{f, s.db.Info().PageSize}
		if err := pages.checkMetas(); err != nil {
			return err
		}
		return s.db.View(func(tx *bolt.Tx) error { return s.check(tx, pages, &found) })
	})
	return found, err
}

// check checks what bbolt does not, and that the key is the right one.
func (s *segment) check(tx *bolt.Tx, pages pageFile, found *found) error {
	if found.size < tx.Size() {
		return fmt.Errorf("%w: the file is shorter than its pages", errDamaged)
	}
	for _, name := range [][]byte{recordsBucket, deadBucket, stateBucket} {
		bucket := tx.Bucket(name)
		if bucket == nil {
			return fmt.Errorf("%w: a bucket is missing", errDamaged)
		}
		if err := pages.checkTree(uint64(bucket.Root())); err != nil {
			return err
		}
	}
	found.state = readState(tx)
	c := tx.Bucket(recordsBucket).Cursor()
	_, value := c.First()
	if _, _, err := s.coder.decode(value); errors.Is(err, errKey) {
		return errKey
	}
	last, _ := c.Last()
	found.last = idOf(last)
	return nil
}

var (
	// errFile says that a segment's file is gone: what is written to it is lost
	// when it is closed.
	errFile = errors.New("the file of the segment is gone")

	// errGone says that a segment is no part of the queue any more.
	errGone = errors.New("the segment is gone")
)

// commit makes changes durable together, and returns the size of the file.
func (s *segment) commit(changes ...*change) (size int64, err error) {
	err = s.withDB(func() error {
		err := s.db.Update(func(tx *bolt.Tx) error {
			st := readState(tx)
			for _, c := range changes {
				if err := c.apply(tx, &st); err != nil {
					return err
				}
			}
			return writeState(tx, st)
		})
		if err != nil {
			return err
		}
		info, err := os.Stat(s.path)
		if err != nil {
			return errors.Join(errFile, err)
		}
		size = info.Size()
		return nil
	})
	return size, err
}

func (c *change) apply(tx *bolt.Tx, st *state) error {
	records, dead := tx.Bucket(recordsBucket), tx.Bucket(deadBucket)
	records.FillPercent = 1 // IDs only grow
	for i, value := range c.puts {
		if err := records.Put(keyOf(c.putID+spool.ID(i)), value); err != nil {
			return err
		}
		st.live++
		st.bytes += int64(len(value))
	}
	for _, id := range c.acks {
		if value := records.Get(keyOf(id)); value != nil {
			st.live--
			st.bytes -= int64(len(value))
			if err := records.Delete(keyOf(id)); err != nil {
				return err
			}
		}
	}
	for _, d := range c.deaths {
		if dead.Get(keyOf(d.id)) != nil || records.Get(keyOf(d.id)) == nil {
			continue
		}
		c.died++
		if err := dead.Put(keyOf(d.id), d.encode()); err != nil {
			return err
		}
	}
	if err := c.applyLetters(records, dead, st); err != nil {
		return err
	}
	st.live += len(c.revived) - c.died
	st.dead += c.died - len(c.revived) - c.dropped
	return nil
}

func (c *change) applyLetters(records, dead *bolt.Bucket, st *state) error {
	for _, id := range c.revive {
		if dead.Get(keyOf(id)) == nil {
			continue
		}
		c.revived = append(c.revived, id)
		if err := dead.Delete(keyOf(id)); err != nil {
			return err
		}
	}
	for _, id := range c.drop {
		value := records.Get(keyOf(id))
		if dead.Get(keyOf(id)) == nil {
			continue
		}
		c.dropped++
		st.bytes -= int64(len(value))
		if err := errors.Join(dead.Delete(keyOf(id)), records.Delete(keyOf(id))); err != nil {
			return err
		}
	}
	return nil
}

// each calls take for the records behind an ID that are to be delivered (or,
// with dead, for the dead letters), until it returns false.
func (s *segment) each(after spool.ID, dead bool, take func(id spool.ID, value, mark []byte) bool) error {
	return s.view(func(tx *bolt.Tx) error {
		records, marks := tx.Bucket(recordsBucket), tx.Bucket(deadBucket)
		if records == nil || marks == nil {
			return errDamaged
		}
		anyDead := readState(tx).dead > 0
		if dead && !anyDead {
			return nil
		}
		c := records.Cursor()
		for k, value := c.Seek(keyOf(after + 1)); k != nil; k, value = c.Next() {
			var mark []byte
			if anyDead {
				mark = marks.Get(k)
			}
			if dead == (mark != nil) && !take(idOf(k), value, mark) {
				return nil
			}
		}
		return nil
	})
}

// get reads one record.
func (s *segment) get(id spool.ID) (r spool.Record, err error) {
	err = s.view(func(tx *bolt.Tx) error {
		records := tx.Bucket(recordsBucket)
		if records == nil {
			return errDamaged
		}
		value := records.Get(keyOf(id))
		if value == nil {
			return fs.ErrNotExist
		}
		_, r, err = s.coder.decode(value)
		return err
	})
	return r, err
}

func (s *segment) view(f func(*bolt.Tx) error) error {
	return s.withDB(func() error { return s.db.View(f) })
}

// withDB runs f with the file open.
func (s *segment) withDB(f func() error) error {
	for {
		s.open.RLock()
		if s.db != nil {
			err := guard(f)
			s.open.RUnlock()
			return err
		}
		s.open.RUnlock()
		if err := s.reopen(); err != nil {
			return err
		}
	}
}

func (s *segment) reopen() error {
	s.open.Lock()
	defer s.open.Unlock()
	if s.db != nil {
		return nil
	}
	if s.retired {
		return errGone
	}
	info, err := os.Stat(s.path)
	if err != nil { // bbolt would make a new one
		return err
	}
	if info.Size() == 0 {
		return fmt.Errorf("%w: the file is empty", errDamaged)
	}
	return guard(func() error {
		db, err := bolt.Open(s.path, 0o600, space{growth: minGrowth}.options())
		if err != nil {
			return err
		}
		db.AllocSize = minGrowth
		s.db = db
		return nil
	})
}

// close closes the file, until it is used again.
func (s *segment) close() error {
	s.open.Lock()
	defer s.open.Unlock()
	if s.db == nil {
		return nil
	}
	err := guard(s.db.Close)
	s.db = nil
	return err
}

// retire closes a file for good. bbolt may have left it locked by a panic, then
// it never closes: nobody waits for that.
func (s *segment) retire() {
	s.open.Lock()
	defer s.open.Unlock()
	s.retired = true
	if db := s.db; db != nil {
		s.db = nil
		go func() { _ = guard(db.Close) }()
	}
}

// faultError is a panic of bbolt, or an access to a page of the file that the
// system cannot read.
type faultError string

func (e faultError) Error() string { return string(e) }

// guard runs f, and makes an error of a panic: bbolt has some for damaged
// pages, and a page that cannot be read is a fault.
func guard(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = faultError(fmt.Sprint(p))
		}
	}()
	return f()
}

// isDamaged tells a file that is not as it was written from one that cannot be
// used now: after an error of the disk the records are still there.
func (s *segment) isDamaged(err error) bool {
	if _, ok := errors.AsType[syscall.Errno](err); ok {
		return false
	}
	for _, other := range []error{errKey, errFile, errGone, fs.ErrNotExist, berrors.ErrTimeout, berrors.ErrDatabaseNotOpen} {
		if errors.Is(err, other) {
			return false
		}
	}
	f, err := os.Open(s.path)
	if err != nil {
		return false
	}
	_, err = io.Copy(io.Discard, f)
	return errors.Join(err, f.Close()) == nil
}

// isNoSpace tells a full disk, after which bbolt can go on with the same file.
func isNoSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// syncDir makes the names of new files durable.
func syncDir(dir string) error {
	d, err := os.Open(dir) //nolint:gosec // G304: the spool's own
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func readState(tx *bolt.Tx) (st state) {
	if b := tx.Bucket(stateBucket).Get(stateKey); len(b) == 24 {
		st.live = int(binary.BigEndian.Uint64(b))         //nolint:gosec // G115: a count
		st.dead = int(binary.BigEndian.Uint64(b[8:]))     //nolint:gosec // G115: a count
		st.bytes = int64(binary.BigEndian.Uint64(b[16:])) //nolint:gosec // G115: a size
	}
	return st
}

func writeState(tx *bolt.Tx, st state) error {
	b := binary.BigEndian.AppendUint64(nil, uint64(st.live)) //nolint:gosec // G115: a count
	b = binary.BigEndian.AppendUint64(b, uint64(st.dead))    //nolint:gosec // G115: a count
	b = binary.BigEndian.AppendUint64(b, uint64(st.bytes))   //nolint:gosec // G115: a size
	return tx.Bucket(stateBucket).Put(stateKey, b)
}

func (d *death) encode() []byte {
	b := binary.BigEndian.AppendUint16(nil, uint16(d.status)) //nolint:gosec // G115: an HTTP status
	b = binary.BigEndian.AppendUint64(b, uint64(d.died.UnixMilli()))
	return append(b, d.reason...)
}

func decodeDeath(b []byte) (d death) {
	if len(b) < 10 {
		return d
	}
	d.status = int(binary.BigEndian.Uint16(b))
	d.died = time.UnixMilli(int64(binary.BigEndian.Uint64(b[2:]))) //nolint:gosec // G115: the same bits
	d.reason = string(b[10:])
	return d
}
