package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"sync"

	"github.com/valyala/fasthttp"
)

const (
	batchType = "application/vnd.treasuredata.v1+json"
	maxEvents = 500
	maxBytes  = 5_000_000 + len(batchHead+batchTail)

	batchHead = `{"events":[`
	batchTail = `]}`
)

// One receipt, with the uuid of nobody: to read the uuids would cost more than
// the rest.
const (
	receiptsHead = `{"receipts":[`
	receipt      = `{"success":true,"uuid":"5bd3a4b1-60a5-4d4c-9d59-0f4d3a3d6c2e"},`
	receiptsTail = `]}`
)

// allReceipts is the answer to the largest batch, so that a smaller one's is a
// part of it.
var allReceipts = receiptsHead + strings.Repeat(receipt, maxEvents)

// receipts is the answer to a batch of n events.
func receipts(n int) []byte {
	length := len(receiptsHead) + n*len(receipt) - len(",")
	return append([]byte(allReceipts[:length]), receiptsTail...)
}

// plain has buffers for batches that are decompressed.
var plain = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// batchOf is how many events a request of the batch API has, or 0 if it is none.
func (v *v2) batchOf(c *fasthttp.RequestCtx) int {
	head := &c.Request.Header
	key, ok := bytes.CutPrefix(head.Peek("Authorization"), []byte("TD1 "))
	if !ok || !bytes.Equal(key, v.key) || string(head.ContentType()) != batchType || string(head.ContentEncoding()) != "gzip" {
		return 0
	}
	text := plain.Get().(*bytes.Buffer)
	defer plain.Put(text)
	text.Reset()
	if _, err := fasthttp.WriteGunzip(text, c.Request.Body()); err != nil || text.Len() > maxBytes {
		return 0
	}
	n := countEvents(text.Bytes())
	if v.requests.Load()%lookEvery == 0 && !holds(text.Bytes(), n) {
		return 0
	}
	return n
}

// lookEvery is how many requests share a look at the whole of a batch, which would
// cost more than the gateway does.
const lookEvery = 64

// holds reports whether a batch is JSON with n events.
func holds(text []byte, n int) bool {
	var batch struct{ Events []json.RawMessage }
	return json.Unmarshal(text, &batch) == nil && len(batch.Events) == n
}

// countEvents counts the events of a batch by the member that each has, or none
// if it is no batch.
func countEvents(text []byte) int {
	if !bytes.HasPrefix(text, []byte(batchHead)) || !bytes.HasSuffix(text, []byte(batchTail)) {
		return 0
	}
	if n := bytes.Count(text, []byte(`"uuid":"`)); n <= maxEvents {
		return n
	}
	return 0
}
