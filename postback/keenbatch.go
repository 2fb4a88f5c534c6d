package postback

// This file makes batches of events.

// KeenBatch is events that go to v2 in one request of its batch API.
type KeenBatch struct {
	Destination
	Events []*KeenEvent // their faults are those of the request's
}

// Batches returns the events that go in batches, each of at most MaxBatch events and
// so many bytes of array, which are at most MaxBatchBytes. All events of a batch are
// of one collection. A record that is longer than that has a batch of its own.
func (k *Keen) Batches(most int) (batches []KeenBatch) {
	for n := range k.Collections {
		c := &k.Collections[n]
		b := KeenBatch{Destination: c.Destination}
		size := len("[]")
		for i := range c.Events {
			e := &c.Events[i]
			if e.Alone || e.Fault != 0 {
				continue
			}
			length := len(e.Record) + len(",")
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

// Records are the records of the events.
func (b *KeenBatch) Records() [][]byte {
	records := make([][]byte, len(b.Events))
	for i, e := range b.Events {
		records[i] = e.Record
	}
	return records
}
