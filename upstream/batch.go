package upstream

import (
	"bufio"
	"bytes"
	"io"
	"runtime"

	"github.com/klauspost/compress/gzip"

	"github.com/td-postback/gateway/postback"
)

// maxReceipts is how much is read of v2's answer to a batch, in bytes. That to 500
// records has about 40 KB.
const maxReceipts = 256 << 10

// DeliverBatch sends records of one group in one request, for no caller. answer is
// the body of an answer below 300, or its first 256 KiB; sent is how many bytes the
// request has, its head included. The errors are those of Deliver: after one that is
// no NotProcessedError and not ErrNoConn, v2 may have taken the records.
func (c *Client) DeliverBatch(g postback.BatchGroup, records [][]byte, t *Trip) (answer []byte, sent int, err error) {
	x := exchanges.Get().(*exchange)
	defer x.put()
	x.timeout, x.whole = c.Timeout, true
	body := compressBatch(records)
	x.head = g.AppendHead(x.head[:0], c.URL.Host, len(body))
	sent = len(x.head) + len(body)
	x.addBody(body, nil)
	t.Bytes = len(body)
	if err := c.send(c.pool, x, t); err != nil {
		return nil, sent, err
	}
	return x.said, sent, nil
}

// maxCompressors is how many batches are compressed at a time, at most: each takes a
// compressor of 1.2 MB.
const maxCompressors = 8

// compressors are those that are not in use: nil before the first use. There are no
// more than processors, as more at a time would not be faster.
var compressors = func() chan *gzip.Writer {
	n := min(runtime.GOMAXPROCS(0), maxCompressors)
	all := make(chan *gzip.Writer, n)
	for range n {
		all <- nil
	}
	return all
}()

// compressBatch makes the body of a batch.
func compressBatch(records [][]byte) []byte {
	z := <-compressors
	if z == nil {
		z, _ = gzip.NewWriterLevel(io.Discard, gzip.BestSpeed) // fails for another level only
	}
	var body bytes.Buffer
	z.Reset(&body)
	write := func(text []byte) { _, _ = z.Write(text) } // memory takes all
	comma := []byte(",")
	write([]byte(`{"events":[`))
	for i, record := range records {
		if i > 0 {
			write(comma)
		}
		write(record)
	}
	write([]byte("]}"))
	_ = z.Close()
	z.Reset(io.Discard) // it must not hold the body
	compressors <- z
	return body.Bytes()
}

// keep reads an answer to its end, or up to maxReceipts. It fails if the answer
// breaks off.
func (x *exchange) keep(br *bufio.Reader) (reusable bool, err error) {
	body, length := x.body(br)
	var said bytes.Buffer
	said.Grow(min(max(length, 0), maxReceipts) + bytes.MinRead)
	_, err = said.ReadFrom(io.LimitReader(body, maxReceipts+1))
	complete := err == nil && said.Len() <= maxReceipts
	x.said = said.Bytes()[:min(said.Len(), maxReceipts)]
	return complete && x.reusable(br, complete), err
}
