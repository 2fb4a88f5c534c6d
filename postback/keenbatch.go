package postback

import (
	"iter"
	"time"
)

// This file makes batches of events.

// KeenBatch is events that go to v2 in one request of its batch API.
type KeenBatch struct {
	Destination
	Events []*KeenEvent // their faults are those of the request's
}

// Batches returns the events that go in batches and are not Taken, each of at most
// MaxBatch events and so many bytes of array, which are at most MaxBatchBytes, as they
// are now and as they are kept. All events of a batch are of one collection. A record
// that is longer than that has a batch of its own.
func (k *Keen) Batches(most int) (batches []KeenBatch) {
	for n := range k.Collections {
		c := &k.Collections[n]
		b := KeenBatch{Destination: c.Destination}
		size := len("[]")
		for i := range c.Events {
			e := &c.Events[i]
			if e.Alone || e.Taken || e.Fault != 0 {
				continue
			}
			length := len(e.Record) + len(",")
			if e.untimed {
				length += maxTimeMember
			}
			if len(b.Events) == MaxBatch || len(b.Events) > 0 && size+length > most {
				batches = append(batches, b)
				b.Events, size = nil, len("[]")
			}
			if b.Events == nil {
				b.Events = make([]*KeenEvent, 0, min(MaxBatch, len(c.Events)-i))
			}
			b.Events = append(b.Events, e)
			size += length
		}
		if len(b.Events) > 0 {
			batches = append(batches, b)
		}
	}
	return batches
}

// Alone returns the events that go alone and are not Taken, and where they go.
func (k *Keen) Alone() iter.Seq2[Destination, *KeenEvent] {
	return func(yield func(Destination, *KeenEvent) bool) {
		for n := range k.Collections {
			c := &k.Collections[n]
			for i := range c.Events {
				if e := &c.Events[i]; e.Alone && !e.Taken && e.Fault == 0 && !yield(c.Destination, e) {
					return
				}
			}
		}
	}
}

// Records are the records of the events, for a request that goes now.
func (b *KeenBatch) Records() [][]byte {
	records := make([][]byte, len(b.Events))
	for i, e := range b.Events {
		records[i] = e.Record
	}
	return records
}

// ToKeep is the same batch as it is kept, for v2's host. An event that does not say its
// time gets the arrival, unless the clock is wrong. timed says whether any of them did.
func (b *KeenBatch) ToKeep(key, host string, arrival time.Time) (k KeptBatch, timed RecordTime) {
	k = KeptBatch{BatchGroup{b.Database, b.Table, key}, host, b.Records()}
	timed = TimeOwn
	for i, e := range b.Events {
		switch {
		case !e.untimed:
		case !PlausibleTime(arrival):
			return k, TimeUnusable
		default:
			timed = TimeAdded
			open := append(make([]byte, 0, len(e.Record)+maxTimeMember), e.Record[:len(e.Record)-1]...)
			k.Records[i] = append(appendNumber(open, []byte("time"), arrival.Unix()), '}')
		}
	}
	return k, timed
}
