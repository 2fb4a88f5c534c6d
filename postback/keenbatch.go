package postback

import (
	"bytes"
	"encoding/json"
	"slices"
	"strconv"
	"time"
)

// This file makes batches of events, and the form in which a batch is kept: as one
// record, which is the request itself.

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
			length := len(e.Record) + maxTimeMember + len(",")
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

// Records are the records of the events, for a request that goes now.
func (b *KeenBatch) Records() [][]byte {
	records := make([][]byte, len(b.Events))
	for i, e := range b.Events {
		records[i] = e.Record
	}
	return records
}

// RecordsToKeep are the same for a request that goes later. An event that does not say
// its time gets the arrival, unless the clock is wrong.
func (b *KeenBatch) RecordsToKeep(arrival time.Time) [][]byte {
	records := b.Records()
	if !PlausibleTime(arrival) {
		return records
	}
	for i, e := range b.Events {
		if e.untimed {
			open := append(make([]byte, 0, len(e.Record)+maxTimeMember), e.Record[:len(e.Record)-1]...)
			records[i] = append(appendNumber(open, []byte("time"), arrival.Unix()), '}')
		}
	}
	return records
}

// What is around the records in the body of a kept batch.
const (
	keptBatchStart = `{"events":[`
	keptBatchEnd   = `]}`
)

// AppendKept appends a batch to dst in the form in which it is kept: as it could go
// over the connection later, not compressed.
func (g BatchGroup) AppendKept(dst []byte, host string, records [][]byte) []byte {
	length := len(keptBatchStart) + len(keptBatchEnd) + len(records) - 1
	for _, record := range records {
		length += len(record)
	}
	dst = slices.Grow(dst, length+len(host)+len(g.Key)+len(g.Database)+len(g.Table)+256)
	dst = g.appendHead(dst, host, "", length)
	dst = append(dst, keptBatchStart...)
	for i, record := range records {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(dst, record...)
	}
	return append(dst, keptBatchEnd...)
}

// ReadKeptBatch reads a batch that AppendKept has written. The records are parts of
// data. It returns false for any other request, and if the batch is damaged.
func ReadKeptBatch(data []byte) (g BatchGroup, records [][]byte, ok bool) {
	line, rest, _ := cutLine(data)
	line, isPost := bytes.CutPrefix(line, []byte("POST /"))
	names, isHTTP := bytes.CutSuffix(line, []byte(" HTTP/1.1"))
	if !isPost || !isHTTP || !areNames(names) {
		return BatchGroup{}, nil, false
	}
	var key keptKey
	length := -1
	for {
		if line, rest, ok = cutLine(rest); !ok {
			return BatchGroup{}, nil, false // no end of the head
		}
		if len(line) == 0 {
			break
		}
		key.read(line)
		if value, is := bytes.CutPrefix(line, []byte("Content-Length: ")); is {
			length, _ = strconv.Atoi(string(value))
		}
	}
	e := plainEvent{names: names, key: key.text}
	if records = readEvents(rest); len(rest) != length || records == nil || !isBatchKey(key.text) {
		return BatchGroup{}, nil, false
	}
	return e.group(), records, true
}

// readEvents reads the body of a kept batch. It returns nil if it is none.
func readEvents(body []byte) (records [][]byte) {
	if !bytes.HasPrefix(body, []byte(keptBatchStart)) || !json.Valid(body) {
		return nil
	}
	v := values{text: body, at: len(keptBatchStart)}
	for v.more(']') {
		if body[v.at] != '{' {
			return nil
		}
		record, _ := v.skip()
		records = append(records, record)
	}
	if string(body[v.at:]) != "}" {
		return nil
	}
	return records
}
