package disk

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"github.com/td-postback/gateway/spool"
)

const (
	segmentSuffix = ".db"
	saltSize      = 8 // bytes

	// What may be behind segmentSuffix: a file that is not finished, one with
	// what was rescued from a damaged one, and the damaged one.
	newSuffix     = ".new"
	rescuedSuffix = ".rescued"
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
	deadKey       = []byte("state.dead") // behind it
	checkKey      = []byte("state.key")  // tells which key the segment is of
)

// segment is one bbolt file of a queue. Its name tells the least ID that it
// can hold, and its salt.
type segment struct {
	path  string
	first spool.ID
	coder coder

	open    sync.Mutex // held while the file is opened and closed
	db      *bolt.DB   // nil while the file is closed
	retired bool       // the file must not be opened again

	// The queue's mutex guards the following.
	state    state
	last     spool.ID  // the largest ID
	loaded   bool      // state and last are known
	keyed    bool      // it was encrypted with the Log's key
	acked    acks      // delivered, but still in the file
	acksHeld time.Time // they do not go to disk before, since that has failed
	size     int64     // of the file
	usage    usage     // as part of what the Log uses
	used     time.Time // last
	changed  time.Time // when something was committed last, or the file made smaller, or that has failed
	packed   int64     // what was in the file when it was made smaller last, in bytes; 0 before
	orphan   bool      // the file may be gone, so it must stay open
	damaged  bool      // to be salvaged
	hint     spool.ID  // no record to be delivered has a smaller ID

	// How far Take has come.
	cursor  spool.ID          // the last ID given out
	read    bool              // to the end
	readAt  time.Time         // when to read again what could not be read
	blamed  bool              // that was reported
	revived []spool.ID        // behind the cursor: maybe they are not seen there
	ahead   map[spool.ID]bool // behind the cursor, and given out all the same; only Take's
}

func newSegment(path string, first spool.ID, c coder) *segment {
	return &segment{path: path, first: first, coder: c, hint: first}
}

// live is how many records are to be delivered. The queue's mutex is held.
func (s *segment) live() int { return max(0, s.state.live-s.acked.count) }

// segmentName makes the name of a file from the first ID and the salt.
func segmentName(first spool.ID, salt []byte) string {
	return fmt.Sprintf("%016x-%s%s", uint64(first), hex.EncodeToString(salt), segmentSuffix)
}

// parseSegmentName is segmentName the other way round.
func parseSegmentName(name string) (first spool.ID, salt []byte, ok bool) {
	id, rest, _ := strings.Cut(name, "-")
	n, err := strconv.ParseUint(id, 16, 64)
	if err != nil {
		return 0, nil, false
	}
	salt, err = hex.DecodeString(strings.TrimSuffix(rest, segmentSuffix))
	first = spool.ID(n)
	return first, salt, err == nil && len(salt) == saltSize && segmentName(first, salt) == name
}

// createSegment makes a new file. After an error there is none.
func (q *queue) createSegment(first spool.ID) (*segment, error) {
	salt := make([]byte, saltSize)
	_, _ = rand.Read(salt) // never fails
	c, err := newCoder(q.disk.cfg.Key, salt, q.name)
	if err != nil {
		return nil, err
	}
	s := newSegment(filepath.Join(q.dir, segmentName(first, salt)), first, c)
	s.loaded = true
	s.db, err = createFile(s.path+newSuffix, c, q.disk.space())
	if err != nil {
		return nil, err
	}
	if err := rename(s.path+newSuffix, s.path); err != nil {
		s.retire()
		return nil, errors.Join(err, removeFile(s.path+newSuffix), removeFile(s.path))
	}
	return s, nil
}

// createFile makes a segment's file without records. After an error there is
// none.
func createFile(path string, c coder, space space) (db *bolt.DB, err error) {
	if err := removeFile(path); err != nil { // of a try that was cut short
		return nil, err
	}
	err = guard(func() error {
		if db, err = bolt.Open(path, 0o600, space.options()); err != nil {
			return err
		}
		db.AllocSize = space.growth
		return db.Update(func(tx *bolt.Tx) error {
			for _, bucket := range [][]byte{recordsBucket, deadBucket, stateBucket} {
				if _, err := tx.CreateBucket(bucket); err != nil {
					return err
				}
			}
			return errors.Join(writeState(tx, state{}), c.writeCheck(tx))
		})
	})
	if err != nil {
		if db != nil {
			_ = guard(db.Close)
		}
		_ = os.Remove(path)
		return nil, err
	}
	return db, nil
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

// load reads what the segment knows of itself, and checks that the key is the
// right one.
func (s *segment) load() (found, error) {
	p, f, err := openPages(s.path)
	if err != nil {
		return found{}, err
	}
	defer f.Close() //nolint:errcheck // it is only read
	found, first, err := p.peek()
	if err != nil {
		return found, err
	}
	_, _, err = s.coder.decode(first)
	known := found.check != nil
	switch {
	case known && !bytes.Equal(found.check, s.coder.check):
		return found, errKey
	case errors.Is(err, errKey) && known:
		return found, errQueue
	case errors.Is(err, errKey):
		return found, errKey
	}
	found.keyed = s.coder.check != nil && (known || err == nil && len(first) > 0)
	return found, nil
}

var (
	// errFile says that a segment's file is gone: what is written to it is lost
	// when it is closed.
	errFile = errors.New("the file of the segment is gone")

	// errGone says that a segment is no part of the queue any more.
	errGone = errors.New("the segment is gone")

	// errNoRecord says that a record is not there, or is a dead letter.
	errNoRecord = errors.New("there is no such record")
)

// commit makes changes durable together, and returns what is in the file then,
// and its size.
func (s *segment) commit(changes ...*change) (st state, size int64, err error) {
	err = s.withDB(func(db *bolt.DB) error {
		err := db.Update(func(tx *bolt.Tx) (err error) {
			if st, err = readState(tx); err != nil {
				return err
			}
			for _, c := range changes {
				if err := c.apply(tx, &st, s.coder); err != nil {
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
	return st, size, err
}

// each calls take for the records behind an ID that are to be delivered, until
// it returns false.
func (s *segment) each(after spool.ID, take func(id spool.ID, value []byte) bool) error {
	return s.view(func(records, dead *bolt.Bucket) error {
		first, _ := dead.Cursor().First()
		c := records.Cursor()
		for k, value := c.Seek(keyOf(after + 1)); k != nil; k, value = c.Next() {
			if (first == nil || dead.Get(k) == nil) && !take(idOf(k), value) {
				return nil
			}
		}
		return nil
	})
}

// eachDead is each for the dead letters.
func (s *segment) eachDead(after spool.ID, take func(id spool.ID, value, mark []byte) bool) error {
	return s.view(func(records, dead *bolt.Bucket) error {
		c := dead.Cursor()
		for k, mark := c.Seek(keyOf(after + 1)); k != nil; k, mark = c.Next() {
			if !take(idOf(k), records.Get(k), mark) {
				return nil
			}
		}
		return nil
	})
}

// get reads one record that is to be delivered.
func (s *segment) get(id spool.ID) (r spool.Record, err error) {
	err = s.view(func(records, dead *bolt.Bucket) error {
		value := records.Get(keyOf(id))
		if value == nil || dead.Get(keyOf(id)) != nil {
			return errNoRecord
		}
		stored, record, err := s.coder.decode(value)
		if err == nil && stored != id {
			err = errDamaged
		}
		r = record
		return err
	})
	return r, err
}

func (s *segment) view(f func(records, dead *bolt.Bucket) error) error {
	return s.withDB(func(db *bolt.DB) error {
		return db.View(func(tx *bolt.Tx) error {
			records, dead := tx.Bucket(recordsBucket), tx.Bucket(deadBucket)
			if records == nil || dead == nil {
				return fmt.Errorf("%w: a bucket is missing", errDamaged)
			}
			return f(records, dead)
		})
	})
}

// withDB runs f with the file open. bbolt itself lets transactions end before
// it closes a file.
func (s *segment) withDB(f func(*bolt.DB) error) error {
	for {
		db, err := s.opened()
		if err != nil {
			return err
		}
		err = guard(func() error { return f(db) })
		if errors.Is(err, berrors.ErrDatabaseNotOpen) {
			continue // it was closed meanwhile
		}
		if _, ok := errors.AsType[faultError](err); ok {
			s.forsake(db)
		}
		return err
	}
}

// opened returns the open file.
func (s *segment) opened() (*bolt.DB, error) {
	s.open.Lock()
	defer s.open.Unlock()
	if s.db != nil {
		return s.db, nil
	}
	if s.retired {
		return nil, errGone
	}
	if err := s.check(); err != nil { // also because bbolt would make a new file
		return nil, err
	}
	err := guard(func() error {
		db, err := bolt.Open(s.path, 0o600, space{}.options())
		if err != nil {
			return err
		}
		db.AllocSize = minGrowth
		s.db = db
		return nil
	})
	return s.db, err
}

// check checks the file's pages. It must not be written meanwhile.
func (s *segment) check() error {
	p, f, err := openPages(s.path)
	if err != nil {
		return err
	}
	return errors.Join(p.check(s.coder), f.Close())
}

// close closes the file, until it is used again.
func (s *segment) close() error {
	s.open.Lock()
	defer s.open.Unlock()
	return s.closeDB()
}

// retire closes the file for good.
func (s *segment) retire() {
	s.open.Lock()
	defer s.open.Unlock()
	s.retired = true
	_ = s.closeDB() // nothing is written to it any more
}

func (s *segment) closeDB() error {
	db := s.db
	s.db = nil
	if db == nil {
		return nil
	}
	return guard(db.Close)
}

// forsake leaves a file alone that bbolt may have left locked by a panic: it
// may never be closed then, and nobody waits for that.
func (s *segment) forsake(db *bolt.DB) {
	s.open.Lock()
	defer s.open.Unlock()
	if s.db == db {
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
	if _, fault := errors.AsType[faultError](err); !fault && !errors.Is(err, errDamaged) {
		return false
	}
	f, err := os.Open(s.path)
	if err != nil {
		return false
	}
	_, err = io.Copy(io.Discard, f)
	return errors.Join(err, f.Close()) == nil
}

// rename gives a file a name that is durable.
func rename(from, to string) error {
	if err := os.Rename(from, to); err != nil {
		return err
	}
	return syncDir(filepath.Dir(to))
}

// removeFile deletes a file, which need not be there.
func removeFile(path string) error {
	if err := os.Remove(path); !isGone(err) {
		return err
	}
	return nil
}

// syncDir makes the names of files durable.
func syncDir(dir string) error {
	d, err := os.Open(dir) //nolint:gosec // G304: the spool's own
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
