package caddymodule

import (
	"errors"
	"io"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
)

// bufferSizes are the sizes in which body buffers are pooled, in bytes. A body
// starts in the smallest that may hold it, at most in the third, and moves up
// as it arrives: memory is spent on bytes received, not on bytes announced.
var bufferSizes = [...]int{4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20}

const largestFirstBuffer = 2 // index in bufferSizes

var bufferPools [len(bufferSizes)]sync.Pool

// bodyBuffer is a pooled buffer. data is the body read so far.
type bodyBuffer struct {
	data []byte
	size int // index in bufferSizes
}

func takeBuffer(size int) *bodyBuffer {
	if b, ok := bufferPools[size].Get().(*bodyBuffer); ok {
		return b
	}
	return &bodyBuffer{data: make([]byte, 0, bufferSizes[size]), size: size}
}

func (b *bodyBuffer) put() {
	b.data = b.data[:0]
	bufferPools[b.size].Put(b)
}

// bodies reads request bodies into memory and keeps all of them together under
// a limit.
type bodies struct {
	maxBody  int64 // of one body, in bytes
	maxTotal int64 // of all buffers in use, in bytes
	inUse    atomic.Int64
}

// noBody is what an empty body is read into.
var noBody = &bodyBuffer{size: -1}

// read reads a request's body to its end, or refuses the request. The buffer
// goes back with release.
func (s *bodies) read(r *http.Request) (*bodyBuffer, *refusal) {
	if r.ContentLength > s.maxBody {
		return nil, tooLarge(r.ContentLength, s.maxBody, true)
	}
	if r.Body == nil || r.ContentLength == 0 {
		return noBody, nil
	}
	size := 0
	for size < largestFirstBuffer && r.ContentLength > int64(bufferSizes[size]) {
		size++
	}
	buf, refused := s.take(size)
	if refused != nil {
		return nil, refused
	}
	delete(r.Header, "Expect") // the first read tells the caller to continue
	for {
		if len(buf.data) == cap(buf.data) {
			if buf, refused = s.grow(buf); refused != nil {
				return nil, refused
			}
		}
		n, err := r.Body.Read(buf.data[len(buf.data):cap(buf.data)])
		buf.data = buf.data[:len(buf.data)+n]
		if total := int64(len(buf.data)); total > s.maxBody {
			s.release(buf)
			return nil, tooLarge(total, s.maxBody, false)
		}
		switch {
		case int64(len(buf.data)) == r.ContentLength:
			return buf, nil
		case errors.Is(err, io.EOF) && r.ContentLength < 0:
			return buf, nil
		case err != nil:
			s.release(buf)
			return nil, bodyRefusal(err)
		}
	}
}

// bodyRefusal says why a body could not be read.
func bodyRefusal(err error) *refusal {
	var limited *http.MaxBytesError // by Caddy's request_body, before this handler
	switch {
	case errors.As(err, &limited):
		return tooLarge(limited.Limit+1, limited.Limit, false)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return errBodySlow
	default:
		return errBodyCut
	}
}

func (s *bodies) take(size int) (*bodyBuffer, *refusal) {
	if !s.reserve(int64(bufferSizes[size])) {
		return nil, errOverloaded
	}
	return takeBuffer(size), nil
}

// room takes a buffer for a body of about this size, which does not come from
// the caller.
func (s *bodies) room(size int) (*bodyBuffer, *refusal) {
	class := 0
	for class < len(bufferSizes)-1 && bufferSizes[class] < size {
		class++
	}
	return s.take(class)
}

// reserve counts bytes in, if they fit.
func (s *bodies) reserve(bytes int64) bool {
	if s.inUse.Add(bytes) > s.maxTotal {
		s.inUse.Add(-bytes)
		return false
	}
	return true
}

// grow moves a body to the next larger buffer.
func (s *bodies) grow(buf *bodyBuffer) (*bodyBuffer, *refusal) {
	next := buf.size + 1
	if !s.reserve(int64(bufferSizes[next] - bufferSizes[buf.size])) {
		s.release(buf)
		return nil, errOverloaded
	}
	larger := takeBuffer(next)
	larger.data = append(larger.data, buf.data...)
	buf.put()
	return larger, nil
}

func (s *bodies) release(buf *bodyBuffer) {
	s.drop(buf)
	if buf.size >= 0 {
		buf.put()
	}
}

// drop ends the accounting of a body whose buffer must not be used again: the
// next handler may still be reading it.
func (s *bodies) drop(buf *bodyBuffer) {
	if buf.size >= 0 {
		s.inUse.Add(-int64(bufferSizes[buf.size]))
	}
}
