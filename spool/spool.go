// Package spool keeps requests for Postback v2 until v2 has taken them.
//
// A record is durable when Append has returned without an error: it survives the
// death of the process and, if the disk keeps what it has synced, a power cut. It
// is delivered at least once: if the process dies before it has noted a delivery,
// the record comes again.
//
// A Log keeps records in queues, one for each v2 host. Package disk is a Log in
// files of the local disk, package cluster one in NATS JetStream. A Keeper owns a
// Log and delivers its queues. docs/spool.md says what is on disk and what each
// failure looks like.
package spool

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// What a spool's options are without being set.
const (
	DefaultMaxSize = 10 << 30           // bytes
	DeadShare      = 4                  // dead letters may take max_size divided by it
	DefaultMaxAge  = 6 * 24 * time.Hour // below the 7 days after which v2 ignores a record's time
	DefaultRate    = 1000               // records a second
)

// Record is a request that is kept.
type Record struct {
	Arrival time.Time // of the caller's request
	Data    []byte    // the request to v2, as it goes over the connection

	// Replayed means that it was a dead letter which somebody wants delivered after
	// all, however old it is.
	Replayed bool
}

// ID names a record within a queue. IDs grow in the order of Append.
type ID uint64

// Entry is a record that was taken out of a queue for delivery.
type Entry struct {
	ID
	Record
	Tries int // how often it was tried before, as far as is known

	// Namespace and ID name the record among all records of all spools, also after
	// a crash (RFC 9562 section 6.5). Zero if the Log has no such name for it.
	Namespace [16]byte
}

// name tells a record from all others. An ID may come again, if a stream is made anew.
type name struct {
	namespace [16]byte
	id        ID
}

func (e Entry) name() name { return name{e.Namespace, e.ID} }

// Queue gives out records in the order in which they were appended. It gives out a
// record once; then Ack, Later or Bury says what became of it.
type Queue interface {
	// Take waits for records and gives out at least one, at most n, and few MiB
	// if they are large. It fails when ctx ends or when the Log cannot be read
	// now: try again later.
	Take(ctx context.Context, n int) ([]Entry, error)

	// TakeUntried is Take for one record, to find out whether v2 is up. If
	// possible, it is a record that was not tried before: another may fail for a
	// reason of its own.
	TakeUntried(ctx context.Context) ([]Entry, error)

	// TakeNewest is the same, and if possible it is the record that was appended
	// last: those that were appended together may all fail for the same reason.
	TakeNewest(ctx context.Context) ([]Entry, error)

	// Holds reports whether records that were given out may stay so in any number,
	// at no cost. Later then needs no more than their ID and Tries.
	Holds() bool

	// Ack says that v2 has taken a record. It does not wait until that is
	// durable.
	Ack(Entry)

	// AckSafe is Ack for a record of which v2 drops a repeat. That has more time to
	// become durable.
	AckSafe(Entry)

	// Later puts a record back. It is given out again after a while. 0 means that
	// it was not tried.
	Later(Entry, time.Duration)

	// Bury makes a record a dead letter. ErrFull says that v2 has refused it, and
	// that dead letters have used up their size; a Verdict without a status is for
	// what is always kept. After an error the record is still held: call Later, or
	// Ack to let it go.
	Bury(e Entry, why Verdict) error

	// BuryRest is Bury for a request of which v2 has taken some events: the dead
	// letter's data is rest, the request with the others. Rest is the caller's again
	// when it has returned. In a cluster, the letter may be there after an error: then
	// it stays as it is, so rest must have all that v2 has not taken.
	BuryRest(e Entry, rest []byte, why Verdict) error
}

// Verdict is why nobody tries to deliver a record any more.
type Verdict struct {
	Status int    // of v2's answer; 0 if it is not v2 that has decided
	Reason string // in a word
	Words  string // v2's own, on one line and without keys; empty if there are none
}

// MaxWords is how many bytes of v2's words are kept.
const MaxWords = 200

// Letter is a dead letter: a record that is kept, but not delivered.
type Letter struct {
	ID
	Record
	Verdict
	Queue string
	Died  time.Time // when
}

// Depth is what a queue holds.
type Depth struct {
	Records  int       // to be delivered, those on their way included
	Dead     int       // dead letters
	Oldest   time.Time // arrival of the oldest record to be delivered; zero without one
	Refusing bool      // no record can be added now, for another reason than ErrFull
}

// MaxListed is about how many bytes of data Records and Letters return.
const MaxListed = 8 << 20

// Log keeps queues. Its methods may be called concurrently.
type Log interface {
	// Append returns when a record is durable. ErrFull and ErrUnavailable say
	// that it is not, and ErrMaybeKept that it may be all the same. Data is the
	// caller's again when it has returned.
	Append(queue string, r Record) error

	// AppendAll is Append for records that belong together, of some tens of MiB at
	// most. On a disk, after an error none of them is kept, and ErrFull says that
	// there is no room for all of them. In a cluster, some may be kept after an error
	// all the same: so each event in them needs a uuid of its own, by which v2 drops
	// it when its caller sends it again.
	AppendAll(queue string, records []Record) error

	// Queue returns a queue, which need not exist yet.
	Queue(name string) Queue

	// Queues names the queues that exist, sorted.
	Queues() []string

	// Depth says what a queue holds. With an error, it is what is known. After
	// ErrUnavailable, the queue takes no records now.
	Depth(queue string) (Depth, error)

	// Size is how many bytes the records to be delivered take, and how many they
	// may.
	Size() (used, limit int64)

	// DeadSize is the same of dead letters. Those that v2 has not refused are kept
	// beyond it.
	DeadSize() (used, limit int64)

	// SetLimits changes how many bytes the records may take, and the dead letters.
	SetLimits(records, dead int64) error

	// Records returns up to limit records of a queue that are to be delivered,
	// Letters up to limit dead letters. Both begin behind an ID, and return fewer
	// when they have MaxListed bytes.
	Records(queue string, after ID, limit int) ([]Entry, error)
	Letters(queue string, after ID, limit int) ([]Letter, error)

	// Replay makes dead letters records again, Drop deletes them for good. Both
	// return how many there were under these IDs. NotReplayedError says which ones Replay
	// has left as they are.
	Replay(queue string, ids ...ID) (int, error)
	Drop(queue string, ids ...ID) (int, error)

	// Close ends Append and Take, and notes what was acked. A record that is acked
	// later comes again.
	Close() error
}

var (
	// ErrFull: there is no room for a record.
	ErrFull = errors.New("the spool is full")

	// ErrUnavailable: a record cannot be kept now, because the disk or the
	// cluster refuses it. What is joined to it says why.
	ErrUnavailable = errors.New("the spool is not available")

	// ErrMaybeKept is in the error of an Append, or of an AppendAll, that does not know
	// whether a record is kept. Then it may be delivered, too.
	ErrMaybeKept = errors.New("it may be kept all the same")

	// ErrClosed: the Log is closed.
	ErrClosed = errors.New("the spool is closed")
)

// NotReplayedError is an error about dead letters that cannot be replayed, since nobody
// could deliver them. It does not keep others from being replayed.
type NotReplayedError struct {
	IDs []ID
	Why error // of the first one
}

// mostNamed is how many IDs an error names.
const mostNamed = 10

// Error names some of them.
func (n *NotReplayedError) Error() string {
	var named []string
	for _, id := range n.IDs[:min(len(n.IDs), mostNamed)] {
		named = append(named, strconv.FormatUint(uint64(id), 10))
	}
	if more := len(n.IDs) - len(named); more > 0 {
		named = append(named, fmt.Sprintf("and %d more", more))
	}
	return fmt.Sprintf("not replayed: dead letter %s: %v", strings.Join(named, ", "), n.Why)
}

// Unwrap returns why.
func (n *NotReplayedError) Unwrap() error { return n.Why }

// Add adds others.
func (n *NotReplayedError) Add(more *NotReplayedError) *NotReplayedError {
	if n == nil {
		return more
	}
	n.IDs = append(n.IDs, more.IDs...)
	return n
}
