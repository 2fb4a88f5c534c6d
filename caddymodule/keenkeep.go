package caddymodule

import (
	"errors"

	"github.com/td-postback/gateway/postback"
	"github.com/td-postback/gateway/spool"
)

// This file keeps the events of a call with several, all of them or none. Those that
// share a request to v2 are one record, which is that request. Each has its uuid, so
// that v2 drops what it has already; one that goes alone is kept as any record is.

// maxKeptOnNATS is how many bytes of events a kept request has on NATS, whose servers
// are to take 4 MB in a message.
const maxKeptOnNATS = 2_000_000

// keepFirst keeps the events before v2 is asked, if it need not be, or is taken to be
// down. No caller waits for a kept record, so those try whether v2 takes them again.
func (k *keenCall) keepFirst(events *postback.Keen) error {
	if k.h.Spool == nil {
		return errNotAsked
	}
	if down := k.to.queue.IsOpen(); !down && (k.h.Spool.Mode != spoolAlways || k.to.queue.Hesitates()) {
		return errNotAsked
	}
	return k.keep(events)
}

// keepRest keeps the events that v2 has not taken, as far as is known.
func (k *keenCall) keepRest(events *postback.Keen) {
	unkept := k.unkept
	if k.trip.Tries > 0 || errors.Is(unkept, errNotAsked) {
		unkept = k.keep(events)
	}
	if k.kept = unkept == nil; k.kept {
		k.answer(events, spooledResult)
	} else {
		k.h.refuseUnkept(&k.call, unkept)
	}
}

// keep makes those events durable that v2 has not taken, and will perhaps take. After
// an error none of them is, as far as the spool can say that.
func (k *keenCall) keep(events *postback.Keen) error {
	batches := events.Batches(k.mostKept())
	room := k.roomToKeep(batches, events)
	if !k.hold(room) {
		return errNoMemory
	}
	defer k.hold(-room)
	records, times := k.toKeep(batches, events)
	if len(records) == 0 {
		return nil
	}
	live := 0
	if k.h.Spool.Mode == spoolAlways {
		live = eventsToKeep(batches, records)
	}
	if err := k.to.queue.PutAll(records, live); err != nil {
		return err
	}
	for _, timed := range times {
		spoolTimes[timed].Inc()
	}
	for _, e := range events.Alone() {
		if k.unsure[e] {
			spoolDuplicates.Inc()
		}
	}
	return nil
}

// eventsToKeep is how many events records have that toKeep has made: each but those of
// batches has one.
func eventsToKeep(batches []postback.KeenBatch, records []spool.Record) int {
	events := len(records) - len(batches)
	for _, b := range batches {
		events += len(b.Events)
	}
	return events
}

// roomToKeep is about what keeping the events holds in memory, in bytes.
func (k *keenCall) roomToKeep(batches []postback.KeenBatch, events *postback.Keen) int {
	size := 0
	for _, b := range batches {
		size += keptMore
		for _, e := range b.Events {
			size += len(e.Record)
		}
	}
	for _, e := range events.Alone() {
		size += len(e.Record) + k.headAlone()
	}
	return keptCopies * size
}

// headAlone is about what the head of an event that goes alone has, in bytes.
func (k *keenCall) headAlone() int { return int(k.head/headCopies) + keptMore }

// mostKept is how many bytes the events of a kept request have, at most.
func (k *keenCall) mostKept() int {
	if len(k.h.Spool.NATS) > 0 {
		return maxKeptOnNATS
	}
	return postback.MaxBatchBytes
}

// toKeep makes records of the events, and says what the time of each is.
func (k *keenCall) toKeep(batches []postback.KeenBatch, events *postback.Keen) (records []spool.Record, times []postback.RecordTime) {
	add := func(data []byte, timed postback.RecordTime) {
		records = append(records, spool.Record{Arrival: k.arrival, Data: data})
		times = append(times, timed)
	}
	for _, b := range batches {
		kept, timed := b.ToKeep(k.Key(), k.to.host, k.arrival)
		add(kept.Append(nil), timed)
	}
	for to, e := range events.Alone() {
		request := k.requestOf(to, e)
		add(postback.AppendKept(nil, &request, k.arrival))
	}
	return records, times
}

// eventsOf reads a kept request with several events.
func eventsOf(data []byte) (group string, events [][]byte, ok bool) {
	kept, ok := postback.ReadKeptBatch(data)
	if !ok {
		return "", nil, false
	}
	return kept.String(), kept.Records, true
}

// restOf is a kept request with only some of its events.
func restOf(data []byte, left []int) []byte {
	kept, _ := postback.ReadKeptBatch(data) // eventsOf has read it
	kept.Only(left)
	return kept.Append(nil)
}
