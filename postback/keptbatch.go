package postback

import (
	"bytes"
	"encoding/json"
	"slices"
	"strconv"
)

// This file has the form in which a batch of events is kept: as one record, which is
// the request itself.

// KeptBatch is a batch that is kept as one record.
type KeptBatch struct {
	BatchGroup
	Host    string   // v2's
	Records [][]byte // each has its uuid
}

// What is around the records in the body of a kept batch.
const (
	keptBatchStart = `{"events":[`
	keptBatchEnd   = `]}`
)

// Append appends the batch to dst in the form in which it is kept: as it could go over
// the connection, not compressed.
func (b *KeptBatch) Append(dst []byte) []byte {
	length := len(keptBatchStart) + len(keptBatchEnd) + len(b.Records) - 1
	for _, record := range b.Records {
		length += len(record)
	}
	dst = slices.Grow(dst, length+len(b.Host)+len(b.Key)+len(b.Database)+len(b.Table)+maxBatchHead)
	dst = b.appendHead(dst, b.Host, "", length)
	dst = append(dst, keptBatchStart...)
	for i, record := range b.Records {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(dst, record...)
	}
	return append(dst, keptBatchEnd...)
}

// maxBatchHead is rather more than the head of a batch has beside its host and its
// group, in bytes.
const maxBatchHead = 256

// Only leaves only some of the records, by their positions.
func (b *KeptBatch) Only(positions []int) {
	records := make([][]byte, len(positions))
	for i, n := range positions {
		records[i] = b.Records[n]
	}
	b.Records = records
}

// ReadKeptBatch reads what Append has written. The records are parts of data. It
// returns false for any other request, and if the batch is damaged.
func ReadKeptBatch(data []byte) (b KeptBatch, ok bool) {
	line, rest, _ := cutLine(data)
	line, isPost := bytes.CutPrefix(line, []byte("POST /"))
	names, isHTTP := bytes.CutSuffix(line, []byte(" HTTP/1.1"))
	if !isPost || !isHTTP || !areNames(names) {
		return KeptBatch{}, false
	}
	var key keptKey
	length := -1
	for {
		if line, rest, ok = cutLine(rest); !ok {
			return KeptBatch{}, false // no end of the head
		}
		if len(line) == 0 {
			break
		}
		key.read(line)
		if value, is := bytes.CutPrefix(line, []byte("Content-Length: ")); is {
			length, _ = strconv.Atoi(string(value))
		} else if value, is := bytes.CutPrefix(line, []byte("Host: ")); is {
			b.Host = string(value)
		}
	}
	e := plainEvent{names: names, key: key.text}
	if b.Records = readEvents(rest); len(rest) != length || b.Records == nil || !isBatchKey(key.text) {
		return KeptBatch{}, false
	}
	b.BatchGroup = e.group()
	return b, true
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
