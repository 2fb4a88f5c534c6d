package migration

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"sync"
	"syscall"
	"time"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// This file keeps a report in a bbolt file: each row under its key, and the others
// under a name of theirs. Only what has changed is written, all of it in one
// transaction: a process that is killed leaves what was saved last. A file in which
// something is damaged is left as it is, and what could be read goes into a new one.

const (
	othersKey     = "others"
	foundKey      = "findings" // the others': a version that does not know them reads the rest
	damagedSuffix = ".damaged" // of a file that was set aside
	lockSuffix    = ".lock"    // of a file that is locked as long as the report has its own

	// lockWait is how long a report waits for a file that another process has.
	lockWait = 200 * time.Millisecond
)

var errInUse = errors.New("another process has it")

var rowsBucket, othersBucket = []byte("rows"), []byte("others")

// store is the file of a report, or of a plan.
type store struct {
	mu      sync.Mutex // one at a time
	path    string
	buckets [][]byte    // that it has
	lock    *bolt.DB    // or nil
	db      *bolt.DB    // or nil
	file    os.FileInfo // what db has open
	loaded  bool        // what was in the file at the start is in the report
}

// Open makes a report that a file keeps, and reads what is in it. The report can
// always be used: the error says what of the file could not be. A file that is damaged
// is set aside, under its name and `.damaged`; one that cannot be read now, or that
// another process has, is tried again at each Save.
func Open(cfg Config) (*Report, error) {
	r := newReport(cfg)
	r.store.mu.Lock()
	defer r.store.mu.Unlock()
	return r, r.openStore()
}

// Save writes to the file what has changed since the last time, and forgets callers
// that have gone for 30 days. The caller calls it every 10 seconds, and at a stop before
// Close. After an error nothing is lost: the next Save writes it.
func (r *Report) Save(now time.Time) error {
	r.forget(now)
	s := &r.store
	if s.path == "" {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leaveLostFile()
	if s.db == nil {
		if err := r.openStore(); s.db == nil {
			return err
		}
	}
	news := r.takeNews()
	if len(news.rows)+len(news.gone) == 0 {
		return nil
	}
	err := guard(func() error { return s.db.Update(news.write) })
	if err == nil {
		return nil
	}
	r.giveBack(news)
	if _, fault := errors.AsType[faultError](err); fault {
		s.forsake()
		err = errors.Join(err, s.setAside())
	}
	return fmt.Errorf("the report is not saved: %w", err)
}

// Close closes the file. What was not saved is lost, and nothing is saved any more.
func (r *Report) Close() error {
	r.store.mu.Lock()
	defer r.store.mu.Unlock()
	return r.store.close()
}

// close closes the file, and nothing is written to it any more.
func (s *store) close() error {
	s.path = ""
	var errs []error
	for _, db := range []**bolt.DB{&s.db, &s.lock} {
		if *db != nil {
			errs = append(errs, guard((*db).Close))
			*db = nil
		}
	}
	return errors.Join(errs...)
}

// openStore opens the file, and sets it aside first if it is damaged. The first time,
// it reads it; later, what is in the report counts. There may be an error, and the
// file is open all the same.
func (r *Report) openStore() error {
	s := &r.store
	if s.path == "" {
		return nil
	}
	err := s.open()
	if err == nil && !s.loaded {
		s.loaded = true
		err = r.load()
	} else if err == nil {
		r.markAll()
	}
	var aside error
	if _, fault := errors.AsType[faultError](err); fault || errors.Is(err, errDamaged) {
		aside = fmt.Errorf("the report's file %s is a new one: %w; the old one is kept with %s behind its name", s.path, err, damagedSuffix)
		if s.db != nil {
			s.forsake()
		}
		s.loaded = true
		r.markAll()
		if err = s.setAside(); err == nil {
			err = s.open()
		}
	}
	if err != nil {
		err = fmt.Errorf("the report's file %s cannot be used: %w", s.path, err)
	}
	return errors.Join(aside, err)
}

// setAside gives the file another name. It stays for whoever wants to look into it.
func (s *store) setAside() error { return os.Rename(s.path, s.path+damagedSuffix) }

// open opens the file, and makes it if there is none.
func (s *store) open() error {
	if err := os.MkdirAll(filepath.Dir(s.path), 0o700); err != nil {
		return err
	}
	if err := s.takeLock(); err != nil {
		return err
	}
	isNew, err := checkFile(s.path)
	if err != nil {
		return err
	}
	if err = guard(s.openFile); err != nil && isNew {
		_ = os.Remove(s.path) // its making was cut short, as on a full disk, and that is no damage
	}
	return err
}

// openFile opens the file with bbolt.
func (s *store) openFile() error {
	db, err := bolt.Open(s.path, 0o600, &bolt.Options{
		Timeout: lockWait, PageSize: filePage, FreelistType: bolt.FreelistMapType, NoStatistics: true,
	})
	if err != nil {
		return err
	}
	if db.View(s.hasBuckets) != nil { // a file that has them can be read on a full disk
		err = db.Update(func(tx *bolt.Tx) (err error) {
			for _, name := range s.buckets {
				_, again := tx.CreateBucketIfNotExists(name)
				err = errors.Join(err, again)
			}
			return err
		})
	}
	if err == nil {
		s.file, err = os.Stat(s.path)
	}
	if err != nil {
		return errors.Join(err, db.Close())
	}
	s.db = db
	return nil
}

func (s *store) hasBuckets(tx *bolt.Tx) error {
	for _, name := range s.buckets {
		if tx.Bucket(name) == nil {
			return berrors.ErrBucketNotFound
		}
	}
	return nil
}

// takeLock makes this the only process that has the file: it must not be looked
// through while another writes. A file of its own is locked for that, by bbolt, as
// long as it is open.
func (s *store) takeLock() error {
	if s.lock != nil {
		return nil
	}
	path := s.path + lockSuffix
	take := func() error {
		return guard(func() (err error) {
			s.lock, err = bolt.Open(path, 0o600, &bolt.Options{Timeout: lockWait, NoStatistics: true})
			return err
		})
	}
	err := take()
	if errors.Is(err, berrors.ErrTimeout) {
		return errInUse
	}
	if _, system := errors.AsType[syscall.Errno](err); err != nil && !system {
		// Its making was cut short, or it is damaged. Nothing is in it.
		if err := os.Remove(path); err != nil {
			return err
		}
		return take()
	}
	return err
}

// InUse reports whether a process has a file of a report or of a plan. It makes no file.
func InUse(path string) bool {
	return errors.Is(guard(func() error {
		lock, err := bolt.Open(path+lockSuffix, 0, &bolt.Options{ReadOnly: true, Timeout: lockWait})
		if err == nil {
			err = lock.Close()
		}
		return err
	}), berrors.ErrTimeout)
}

// leaveLostFile closes a file that somebody has deleted or replaced: what is written
// there, nobody reads again.
func (s *store) leaveLostFile() {
	if s.db == nil {
		return
	}
	if now, err := os.Stat(s.path); err == nil && os.SameFile(now, s.file) || err != nil && !errors.Is(err, os.ErrNotExist) {
		return
	}
	s.forsake()
	if _, err := os.Stat(s.path + lockSuffix); errors.Is(err, os.ErrNotExist) && s.lock != nil {
		_ = guard(s.lock.Close) // nobody else sees a lock that is deleted
		s.lock = nil
	}
}

// forsake leaves a file alone that bbolt may have left locked by a panic: it may never
// be closed then, and nobody waits for that.
func (s *store) forsake() {
	db := s.db
	s.db = nil
	go func() { _ = guard(db.Close) }()
}

// faultError is a panic of bbolt, or an access to a page of the file that the system
// cannot read.
type faultError string

func (e faultError) Error() string { return string(e) }

// guard runs f, and makes an error of a panic.
func guard(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = faultError(fmt.Sprint(p))
		}
	}()
	return f()
}

// load reads the file into the report. Of more rows than the report has, the rarest are
// others.
func (r *Report) load() error {
	all := map[string]*rowData{}
	var rest others
	var damaged, expected int
	err := guard(func() error {
		return r.store.db.View(func(tx *bolt.Tx) (err error) {
			if value := tx.Bucket(othersBucket).Get([]byte(othersKey)); value != nil {
				if rest, expected, err = decodeOthers(value); err != nil {
					damaged++
				}
			}
			if value := tx.Bucket(othersBucket).Get([]byte(foundKey)); value != nil {
				if rest.findings, err = decodeFound(value); err != nil {
					damaged++
				}
			}
			return tx.Bucket(rowsBucket).ForEach(func(key, value []byte) error {
				if d, err := decodeRow(string(key), value); err == nil {
					all[string(key)] = &d
				} else {
					damaged++
				}
				return nil
			})
		})
	})
	r.know(all)
	r.takeIn(all, &rest)
	if damaged = max(damaged, expected-len(all)); damaged > 0 {
		err = errors.Join(err, fmt.Errorf("%w: %d rows could not be read, and are missing", errDamaged, damaged))
	}
	return err
}

// takeIn adds what was in a file.
func (r *Report) takeIn(all map[string]*rowData, rest *others) {
	r.mu.Lock()
	defer r.mu.Unlock()
	newest := rest.hours.newest
	keys := make([]string, 0, len(all))
	for key, d := range all {
		keys = append(keys, key)
		newest = max(newest, d.hours.newest)
	}
	if newest > r.others.hours.newest {
		r.others.hours.advance(newest)
	}
	r.others.add(rest)
	slices.SortFunc(keys, func(a, b string) int { return cmp.Compare(all[b].weight(), all[a].weight()) })
	for _, key := range keys {
		d := all[key]
		d.saved = true
		switch known, ok := r.rows[key]; {
		case ok: // it called before the file could be read
			known.data.merge(d)
		case len(r.rows) < r.limit:
			made := &row{key: key, data: *d}
			r.rows[key] = made
			r.order.append(made)
		default:
			r.gone[key] = true
			r.others.add(&others{totals: d.totals, rows: 1, missed: d.weight(), findings: d.findings})
		}
	}
}

// news is what has changed in a report.
type news struct {
	rows   map[string][]byte // values by key
	gone   map[string]bool
	others []byte
	found  []byte // the others' findings
}

// takeNews takes what has changed since the last time. Calls wait only while it lists
// the rows, and not while it writes them down. A row that gives way meanwhile stays in
// the file as it was saved last: its counts are not yet among the others there.
func (r *Report) takeNews() *news {
	n := &news{rows: map[string][]byte{}}
	rest, rows, changed := r.listChanged(n)
	n.encode(&rest, rows, changed)
	return n
}

// encode writes down the rows that have changed, and the others.
func (n *news) encode(rest *others, rows int, changed []listed) {
	for _, l := range changed {
		l.row.mu.Lock()
		switch d := &l.row.data; {
		case l.row.key == l.key:
			n.rows[l.key] = appendRow(nil, l.key, d)
			d.changed = false
		case !l.saved:
			rows--
		}
		l.row.mu.Unlock()
	}
	n.others, n.found = appendOthers(nil, rest, rows), appendOthersFound(nil, rest.findings)
}

// listed is a row that has changed.
type listed struct {
	row   *row
	key   string
	saved bool // it was in the file before
}

// listChanged takes the keys that have gone, copies the others, and lists the rows that
// have changed, of how many there are.
func (r *Report) listChanged(n *news) (rest others, rows int, changed []listed) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n.gone, r.gone = r.gone, map[string]bool{}
	for _, p := range r.order.places {
		if d := &p.row.data; d.changed {
			changed = append(changed, listed{p.row, p.row.key, d.saved})
			d.saved = true
		}
	}
	rest = r.others
	rest.findings = slices.Clone(rest.findings)
	return rest, len(r.rows), changed
}

// giveBack notes that news were not written.
func (r *Report) giveBack(n *news) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for key := range n.rows {
		if one, ok := r.rows[key]; ok {
			one.data.changed = true
		}
	}
	for key := range n.gone {
		if _, ok := r.rows[key]; !ok {
			r.gone[key] = true
		}
	}
}

// markAll notes that no row is in the file.
func (r *Report) markAll() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, one := range r.rows {
		one.data.changed = true
	}
}

// write writes news into a file.
func (n *news) write(tx *bolt.Tx) error {
	rows := tx.Bucket(rowsBucket)
	for key := range n.gone {
		if err := rows.Delete([]byte(key)); err != nil {
			return err
		}
	}
	for key, value := range n.rows {
		if err := rows.Put([]byte(key), value); err != nil {
			return err
		}
	}
	return errors.Join(tx.Bucket(othersBucket).Put([]byte(othersKey), n.others), tx.Bucket(othersBucket).Put([]byte(foundKey), n.found))
}
