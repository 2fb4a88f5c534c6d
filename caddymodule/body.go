package caddymodule

import (
	"errors"
	"io"
	"net/http"
	"os"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/td-postback/gateway/postback"
)

// bufferSizes are the sizes in which body buffers are kept, in bytes. A body
// starts in the smallest and moves up as it arrives. Beyond the largest,
// buffers of that size follow one another. So memory is spent on bytes
// received, not on bytes announced, which would let a few callers that never
// send them refuse all others; and nothing large is copied.
var bufferSizes = [...]int{4 << 10, 16 << 10, 64 << 10}

const largestBuffer = len(bufferSizes) - 1 // index in bufferSizes

// maxIdle is how many of the largest buffers are kept for the next bodies.
// max_buffered does not count them, and a sync.Pool would hold all of them
// until the second garbage collection: too long when memory is short.
const maxIdle = 128

var (
	smallBuffers [largestBuffer]sync.Pool
	largeBuffers = make(chan *bodyBuffer, maxIdle)
)

// bodyBuffer is a buffer that is used again.
type bodyBuffer struct {
	data []byte        // the body read so far, or its first part
	more []*bodyBuffer // the parts behind it
}

func takeBuffer(size int) *bodyBuffer {
	if size == largestBuffer {
		select {
		case b := <-largeBuffers:
			return b
		default:
		}
	} else if b, ok := smallBuffers[size].Get().(*bodyBuffer); ok {
		return b
	}
	return &bodyBuffer{data: make([]byte, 0, bufferSizes[size])}
}

// put keeps a buffer for the next body.
func (b *bodyBuffer) put() {
	size := slices.Index(bufferSizes[:], cap(b.data))
	if size < 0 {
		return // made to measure
	}
	b.data = b.data[:0]
	if size < largestBuffer {
		smallBuffers[size].Put(b)
		return
	}
	select {
	case largeBuffers <- b:
	default:
	}
}

// parts returns the parts behind the first.
func (b *bodyBuffer) parts() [][]byte {
	if len(b.more) == 0 {
		return nil
	}
	parts := make([][]byte, len(b.more))
	for i, part := range b.more {
		parts[i] = part.data
	}
	return parts
}

// bodies reads request bodies into memory and keeps all of them, and what else
// requests hold, together under a limit.
type bodies struct {
	maxBody  int64 // of one body, in bytes
	maxTotal int64 // of all that is in use, in bytes
	inUse    atomic.Int64
	windows  atomic.Int64 // what of it is for callerWindow
}

// noBody is what an empty body is read into.
var noBody = &bodyBuffer{}

// read reads a request's body to its end, or refuses the request. The buffer
// goes back with release.
func (s *bodies) read(r *http.Request) (*bodyBuffer, *postback.Refusal) {
	if r.ContentLength > s.maxBody {
		return nil, postback.TooLarge(r.ContentLength, s.maxBody, true)
	}
	body, over, refused := s.readSome(r, s.maxBody)
	if over > 0 {
		s.release(body)
		return nil, postback.TooLarge(over, s.maxBody, false)
	}
	return body, refused
}

// readSome reads a request's body to its end, or until it has more than most bytes: then
// over is how much is read, and the rest is still there.
func (s *bodies) readSome(r *http.Request, most int64) (body *bodyBuffer, over int64, refused *postback.Refusal) {
	if r.Body == nil || r.ContentLength == 0 {
		return noBody, 0, nil
	}
	first, refused := s.take(0)
	if refused != nil {
		return nil, 0, refused
	}
	delete(r.Header, "Expect") // the first read tells the caller to continue
	last, total := first, int64(0)
	for {
		if len(last.data) == cap(last.data) {
			if first, last, refused = s.grow(first); refused != nil {
				return nil, 0, refused
			}
		}
		n, err := r.Body.Read(last.data[len(last.data):cap(last.data)])
		last.data = last.data[:len(last.data)+n]
		total += int64(n)
		switch {
		case total > most:
			return first, total, nil
		case total == r.ContentLength:
			return first, 0, nil
		case errors.Is(err, io.EOF) && r.ContentLength < 0:
			return first, 0, nil
		case err != nil:
			s.release(first)
			return nil, 0, bodyRefusal(err)
		}
	}
}

// bodyRefusal says why a body could not be read.
func bodyRefusal(err error) *postback.Refusal {
	var limited *http.MaxBytesError // by Caddy's request_body, before this handler
	switch {
	case errors.As(err, &limited):
		return postback.TooLarge(limited.Limit+1, limited.Limit, false)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return postback.BodySlow
	default:
		return postback.BodyCut
	}
}

func (s *bodies) take(size int) (*bodyBuffer, *postback.Refusal) {
	if !s.reserve(int64(bufferSizes[size])) {
		return nil, postback.Overloaded
	}
	return takeBuffer(size), nil
}

// room takes a buffer for a body of about this size, in one part, which does
// not come from the caller. It is never larger than the largest body.
func (s *bodies) room(size int) (*bodyBuffer, *postback.Refusal) {
	size = min(size, int(s.maxBody))
	for i := range bufferSizes {
		if size <= bufferSizes[i] {
			return s.take(i)
		}
	}
	if !s.reserve(int64(size)) {
		return nil, postback.Overloaded
	}
	return &bodyBuffer{data: make([]byte, 0, size)}, nil
}

// join makes one part of a body, whose buffers go back in any case.
func (s *bodies) join(buf *bodyBuffer) (*bodyBuffer, *postback.Refusal) {
	if len(buf.more) == 0 {
		return buf, nil
	}
	defer s.release(buf)
	size := len(buf.data)
	for _, part := range buf.more {
		size += len(part.data)
	}
	whole, refused := s.room(size)
	if refused != nil {
		return nil, refused
	}
	whole.data = append(whole.data, buf.data...)
	for _, part := range buf.more {
		whole.data = append(whole.data, part.data...)
	}
	return whole, nil
}

// bufferedShare is the part of max_buffered, one of so many, that no audit takes, and above
// which neither one call with several events goes whose tables decide over its lane, nor
// the windows of all callers together.
const bufferedShare = 4

func (s *bodies) share() int64 { return s.maxTotal / bufferedShare }

// reserve counts bytes in, if they fit.
func (s *bodies) reserve(bytes int64) bool { return s.add(bytes, s.maxTotal) }

// reserveSpare is reserve for what nobody waits for: it leaves room for calls.
func (s *bodies) reserveSpare(bytes int64) bool {
	return s.add(bytes, s.maxTotal-s.share())
}

func (s *bodies) add(bytes, most int64) bool {
	if s.inUse.Add(bytes) > most {
		s.inUse.Add(-bytes)
		return false
	}
	buffered.Add(bytes)
	return true
}

// callerWindow is how much of a body a caller may send over HTTP/2 before any of it is
// read, in bytes: the server keeps it in memory. Over HTTP/3 it begins with about as much.
const callerWindow = 1 << 20

// openWindow counts in what the server may keep of a body that is read no faster than
// somebody takes it. All of them together leave most of the memory to others, which they
// may keep waiting for long. It returns what closeWindow is to count out.
func (s *bodies) openWindow(r *http.Request) (bytes int64, refused *postback.Refusal) {
	if r.ProtoMajor < 2 {
		return 0, nil // there, what is not read stays with the system
	}
	most := s.share()
	bytes = min(callerWindow, most)
	if s.windows.Add(bytes) > most || !s.reserve(bytes) {
		s.windows.Add(-bytes)
		return 0, postback.Overloaded
	}
	return bytes, nil
}

func (s *bodies) closeWindow(bytes int64) {
	s.windows.Add(-bytes)
	s.free(bytes)
}

// free counts bytes out.
func (s *bodies) free(bytes int64) {
	s.inUse.Add(-bytes)
	buffered.Add(-bytes)
}

// grow makes room behind a body that fills its buffers: the next larger one,
// or one more of the largest.
func (s *bodies) grow(buf *bodyBuffer) (first, last *bodyBuffer, refused *postback.Refusal) {
	size := slices.Index(bufferSizes[:], cap(buf.data))
	if size == largestBuffer {
		part, refused := s.take(largestBuffer)
		if refused != nil {
			s.release(buf)
			return nil, nil, refused
		}
		buf.more = append(buf.more, part)
		return buf, part, nil
	}
	if !s.reserve(int64(bufferSizes[size+1] - bufferSizes[size])) {
		s.release(buf)
		return nil, nil, postback.Overloaded
	}
	larger := takeBuffer(size + 1)
	larger.data = append(larger.data, buf.data...)
	buf.put()
	return larger, larger, nil
}

// release gives a body's buffers back.
func (s *bodies) release(buf *bodyBuffer) {
	if buf == noBody {
		return // all requests share it
	}
	s.drop(buf)
	for i, part := range buf.more {
		buf.more[i] = nil
		part.put()
	}
	buf.more = buf.more[:0]
	buf.put()
}

// drop ends the accounting of a body whose buffers must not be used again: the
// next handler may still be reading them.
func (s *bodies) drop(buf *bodyBuffer) {
	bytes := cap(buf.data)
	for _, part := range buf.more {
		bytes += cap(part.data)
	}
	s.free(int64(bytes))
}
