// Package disk is a spool.Log on the local disk: bbolt files, one per segment
// of a queue, behind a group commit. A segment whose records are all gone is
// deleted.
package disk

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/td-postback/gateway/spool"
)

// Config says where a Log is, and how large it may be.
type Config struct {
	// Dir is the Log's own directory. It is made if it is not there, and then
	// only its owner can read it.
	Dir string

	// MaxSize is about how many bytes the files may take together, but for what
	// dead letters have of them; at least 1 MiB. Default: spool.DefaultMaxSize.
	// Segments that were set aside because of damage are not counted.
	MaxSize int64

	// DeadSize is about how many bytes dead letters may take; at least 1. Those
	// that v2 has not refused are kept beyond it. Default: a quarter of MaxSize.
	DeadSize int64

	// Key, of spool.KeySize bytes, encrypts the data of new records with
	// AES-256-GCM. Without it they are on disk as they are.
	Key []byte

	// OnEvent is told what an operator should know; nil for nobody. It is
	// called from several goroutines, must be quick, and must not use the Log.
	OnEvent func(spool.Event)

	// OnCommit is told after each commit of records how many shared it, and how
	// long it took, syncs included; nil for nobody.
	OnCommit func(records int, took time.Duration)
}

// ErrLocked: another process, or another Log of this one, has the directory.
var ErrLocked = errors.New("the spool's directory is in use by another process")

// ErrKey: the Log has records that were written with another Key, or with one.
var ErrKey = errors.New("the spool was written with another key")

const (
	maxSegmentSize = 32 << 20
	minMaxSize     = 1 << 20

	// maxRecord is the largest record, in bytes: a body and a head with a long
	// URL are far below.
	maxRecord = 16 << 20
)

// Disk is a spool.Log in a directory.
type Disk struct {
	cfg        Config
	lock       *lock
	used       atomic.Int64 // by files, without the share of dead letters
	usedByDead atomic.Int64 // that share
	letters    atomic.Int64 // what dead letters take by themselves
	reserved   atomic.Int64 // for records that are not on disk yet
	dying      atomic.Int64 // for dead letters that are not on disk yet
	maxSize    atomic.Int64 // as in Config, or by SetLimits
	deadSize   atomic.Int64 // the same
	nearlyFull atomic.Bool
	spare      spare

	mu     sync.Mutex
	queues map[string]*queue
	closed bool
}

// Open opens a Log. It takes a short time however much is in it. ErrLocked and
// ErrKey are for good; after any other error the disk is in trouble, and Open
// may work later.
func Open(cfg Config) (*Disk, error) {
	cfg.MaxSize = cmp.Or(cfg.MaxSize, spool.DefaultMaxSize)
	if cfg.MaxSize < minMaxSize {
		return nil, fmt.Errorf("max_size %d: must be at least %d bytes", cfg.MaxSize, minMaxSize)
	}
	cfg.DeadSize = cmp.Or(cfg.DeadSize, cfg.MaxSize/spool.DeadShare)
	if cfg.DeadSize < 1 {
		return nil, fmt.Errorf("dead_size %d: must be at least 1 byte", cfg.DeadSize)
	}
	if err := spool.CheckKey(cfg.Key); err != nil {
		return nil, err
	}
	if err := makeDir(cfg.Dir); err != nil {
		return nil, err
	}
	lock, err := lockDir(cfg.Dir)
	if err != nil {
		return nil, err
	}
	d := &Disk{cfg: cfg, lock: lock, queues: map[string]*queue{}}
	d.maxSize.Store(cfg.MaxSize)
	d.deadSize.Store(cfg.DeadSize)
	if err := d.load(); err != nil {
		return nil, errors.Join(err, lock.close())
	}
	if err := d.openSpare(); err != nil && !isNoSpace(err) {
		return nil, errors.Join(err, lock.close())
	}
	d.compareRoom()
	for _, q := range d.queues {
		go q.run()
	}
	return d, nil
}

// makeDir makes a directory, with those above it, and their names durable.
func makeDir(dir string) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	above := filepath.Dir(dir)
	if above != dir {
		if err := makeDir(above); err != nil {
			return err
		}
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncDir(above)
}

// queue finds a queue, and makes it if it is not there.
func (d *Disk) queue(name string) *queue {
	d.mu.Lock()
	defer d.mu.Unlock()
	q := d.queues[name]
	if q != nil {
		return q
	}
	q = d.newQueue(name)
	q.next = spool.ID(time.Now().UnixMicro())
	if d.closed {
		q.closed = true
		close(q.stopped)
		return q
	}
	d.queues[name] = q
	go q.run()
	return q
}

// Append returns when a record is durable.
func (d *Disk) Append(queue string, r spool.Record) error {
	if len(r.Data) > maxRecord {
		return tooLarge(r)
	}
	return d.queue(queue).append(r)
}

// AppendAll returns when all records are durable. They are in one commit, so that
// there are either all of them or none, whenever the process dies.
func (d *Disk) AppendAll(queue string, records []spool.Record) error {
	for _, r := range records {
		if len(r.Data) > maxRecord {
			return tooLarge(r)
		}
	}
	if len(records) == 0 {
		return nil
	}
	return d.queue(queue).append(records...)
}

func tooLarge(r spool.Record) error {
	return fmt.Errorf("%w: a record of %d bytes is too large", spool.ErrUnavailable, len(r.Data))
}

// Queue returns a queue, which need not exist yet.
func (d *Disk) Queue(name string) spool.Queue { return d.queue(name) }

// Queues names the queues that exist, sorted.
func (d *Disk) Queues() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	names := make([]string, 0, len(d.queues))
	for name := range d.queues {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Size is how many bytes the files take, without the share of dead letters, and
// how many they may.
func (d *Disk) Size() (used, limit int64) { return d.used.Load(), d.maxSize.Load() }

// DeadSize is how many bytes dead letters take, and how many they may.
func (d *Disk) DeadSize() (used, limit int64) { return d.letters.Load(), d.deadSize.Load() }

// SetLimits changes how many bytes the records may take, and the dead letters.
// What is there stays, also if it takes more.
func (d *Disk) SetLimits(records, dead int64) error {
	if records < minMaxSize || dead < 1 {
		return fmt.Errorf("max_size %d and dead_size %d: must be at least %d bytes and 1 byte", records, dead, minMaxSize)
	}
	d.maxSize.Store(records)
	d.deadSize.Store(dead)
	d.resize(0)
	d.compareRoom()
	return nil
}

// reserve takes room for a record until it is on disk, if there is some. bbolt's
// pages take some more than the records.
func (d *Disk) reserve(bytes int64) bool {
	all := d.reserved.Add(bytes)
	if d.used.Load()+all+all/4+d.growth() > d.maxSize.Load() {
		d.reserved.Add(-bytes)
		return false
	}
	return true
}

// reserveLetter takes room for a dead letter until it is on disk, if there is some.
func (d *Disk) reserveLetter(bytes int64) bool {
	all := d.dying.Add(bytes)
	if d.letters.Load()+all > d.deadSize.Load() {
		d.dying.Add(-bytes)
		return false
	}
	return true
}

// space is what a segment gets.
func (d *Disk) space() space {
	return space{mapped: int(2 * d.segmentSize()), growth: int(d.growth())}
}

// smallFile is how large a file is, in bytes, that is too small to gain from
// making it smaller.
func (d *Disk) smallFile() int64 { return min(256<<10, d.segmentSize()/2) }

// segmentSize is when a file is full, in bytes.
func (d *Disk) segmentSize() int64 { return min(maxSegmentSize, d.maxSize.Load()/8) }

func (d *Disk) growth() int64 { return min(maxGrowth, d.segmentSize()/4) }

// count notes how large a segment's file is, and by its state how much of that is
// there for dead letters: so those keep no record out. The segment's queue.mu is
// held.
func (d *Disk) count(s *segment, size int64) {
	before := s.usage
	s.size, s.usage = size, s.state.usage(size)
	d.usedByDead.Add(s.usage.dead - before.dead)
	d.letters.Add(s.usage.letters - before.letters)
	d.resize(s.usage.live - before.live)
}

// tooDead reports whether dead letters hold more of the files than they may take.
func (d *Disk) tooDead() bool { return d.usedByDead.Load() > d.deadSize.Load() }

// resize counts what files take for records.
func (d *Disk) resize(by int64) {
	used := d.used.Add(by)
	switch {
	case used > d.maxSize.Load()/10*8:
		if !d.nearlyFull.Swap(true) {
			d.report(spool.Event{Kind: spool.NearlyFull})
		}
	case used < d.maxSize.Load()/10*7:
		d.nearlyFull.Store(false)
	}
}

func (d *Disk) report(e spool.Event) {
	if d.cfg.OnEvent != nil {
		d.cfg.OnEvent(e)
	}
}

// Close waits for the Appends that have begun, notes what was acked, and gives
// the directory up.
func (d *Disk) Close() error {
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return nil
	}
	d.closed = true
	queues := d.queues
	d.mu.Unlock()
	var err error
	for _, q := range queues {
		err = errors.Join(err, q.close())
	}
	return errors.Join(err, d.lock.close())
}

// isGone reports whether a file is not there.
func isGone(err error) bool { return errors.Is(err, fs.ErrNotExist) }

// Interface guard
var _ spool.Log = (*Disk)(nil)
