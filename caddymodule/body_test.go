package caddymodule

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"github.com/td-postback/gateway/postback"
)

func TestBodiesAccounting(t *testing.T) {
	for _, size := range []int{1, 4 << 10, 4<<10 + 1, 65 << 10, 300 << 10, postback.MaxBody} {
		for _, declared := range []bool{true, false} {
			s := &bodies{maxBody: postback.MaxBody, maxTotal: 1 << 20}
			want := make([]byte, size)
			for i := range want {
				want[i] = byte(i * 31 >> 3)
			}
			r := httptest.NewRequest(http.MethodPost, "/", io.LimitReader(bytes.NewReader(want), int64(size)))
			r.ContentLength = -1
			if declared {
				r.ContentLength = int64(size)
			}
			buf, refused := s.read(r)
			if refused != nil {
				t.Fatalf("%d bytes: %v", size, refused)
			}
			got := slices.Concat(append([][]byte{buf.data}, buf.parts()...)...)
			if !bytes.Equal(got, want) {
				t.Errorf("read %d bytes of %d, or other ones", len(got), size)
			}
			// Memory is spent on what has arrived, and one buffer is not full.
			if n := s.inUse.Load(); n < int64(size) || n > int64(size)+64<<10 {
				t.Errorf("%d bytes: %d counted", size, n)
			}
			s.release(buf)
			if s.inUse.Load() != 0 {
				t.Errorf("%d bytes: %d counted after release", size, s.inUse.Load())
			}
		}
	}
}

// TestBodiesLimit fills the limit with a body that is not finished.
func TestBodiesLimit(t *testing.T) {
	s := &bodies{maxBody: postback.MaxBody, maxTotal: 1 << 20}
	send := func(length int64) (*http.Request, *io.PipeWriter) {
		body, w := io.Pipe()
		r := httptest.NewRequest(http.MethodPost, "/", body)
		r.ContentLength = length
		return r, w
	}
	slow, writer := send(postback.MaxBody)
	done := make(chan *postback.Refusal)
	go func() {
		buf, refused := s.read(slow)
		if refused == nil {
			s.release(buf)
		}
		done <- refused
	}()
	// A pipe's Write returns once all of it has been read.
	if _, err := writer.Write(make([]byte, postback.MaxBody-1)); err != nil {
		t.Fatal(err)
	}
	quick := httptest.NewRequest(http.MethodPost, "/", strings.NewReader("{}"))
	if _, refused := s.read(quick); refused != postback.Overloaded {
		t.Errorf("with the memory full: %v", refused)
	}
	if _, err := writer.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if refused := <-done; refused != nil {
		t.Errorf("the slow body: %v", refused)
	}
	buf, refused := s.read(httptest.NewRequest(http.MethodPost, "/", strings.NewReader("{}")))
	if refused != nil {
		t.Fatalf("afterwards: %v", refused)
	}
	s.release(buf)
}

// TestBodiesRefusals checks what a broken body is called.
func TestBodiesRefusals(t *testing.T) {
	for name, tc := range map[string]struct {
		length int64
		body   io.Reader
		want   *postback.Refusal
	}{
		"ends early":        {5, strings.NewReader("abc"), postback.BodyCut},
		"breaks":            {-1, io.MultiReader(strings.NewReader("abc"), iotest.ErrReader(io.ErrUnexpectedEOF)), postback.BodyCut},
		"stalls":            {-1, io.MultiReader(strings.NewReader("abc"), iotest.ErrReader(os.ErrDeadlineExceeded)), postback.BodySlow},
		"too large for all": {1001, strings.NewReader(""), postback.TooLarge(1001, 1000, true)},
		"too large, chunks": {-1, strings.NewReader(strings.Repeat("x", 1001)), postback.TooLarge(1001, 1000, false)},
		"request_body":      {-1, http.MaxBytesReader(nil, io.NopCloser(strings.NewReader("abcdef")), 3), postback.TooLarge(4, 3, false)},
	} {
		s := &bodies{maxBody: 1000, maxTotal: 1 << 20}
		r := httptest.NewRequest(http.MethodPost, "/", tc.body)
		r.ContentLength = tc.length
		if _, refused := s.read(r); refused == nil || *refused != *tc.want {
			t.Errorf("%s: got %v, want %v", name, refused, tc.want)
		}
		if n := s.inUse.Load(); n != 0 {
			t.Errorf("%s: %d bytes still counted", name, n)
		}
	}
}

// TestAnnouncedBody announces a body of the largest size and sends some of it:
// the memory that counts is for what has been sent.
func TestAnnouncedBody(t *testing.T) {
	for sent, most := range map[int]int64{0: 4 << 10, 4<<10 - 1: 4 << 10, 5 << 10: 16 << 10, 65 << 10: 128 << 10} {
		s := &bodies{maxBody: postback.MaxBody, maxTotal: 1 << 30}
		body, rest := io.Pipe()
		r := httptest.NewRequest(http.MethodPost, "/", body)
		r.ContentLength = postback.MaxBody
		done := make(chan *postback.Refusal)
		go func() { _, refused := s.read(r); done <- refused }()
		_, _ = rest.Write(make([]byte, sent)) // returns when all of it has been read
		if n := s.inUse.Load(); n > most {
			t.Errorf("%d bytes sent: %d counted", sent, n)
		}
		_ = rest.Close()
		if refused := <-done; refused != postback.BodyCut || s.inUse.Load() != 0 {
			t.Errorf("%d bytes sent: %v, %d counted", sent, refused, s.inUse.Load())
		}
	}
}

// TestEmptyBodiesAreShared has the race detector watch what all empty bodies
// share.
func TestEmptyBodiesAreShared(t *testing.T) {
	s := &bodies{maxBody: postback.MaxBody, maxTotal: 1 << 20}
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 100 {
				buf, refused := s.read(httptest.NewRequest(http.MethodPost, "/", http.NoBody))
				if refused != nil || len(buf.data) != 0 || len(buf.parts()) != 0 {
					t.Errorf("got %v, %v", buf, refused)
				}
				s.release(buf)
			}
		})
	}
	all.Wait()
}

// TestRoom makes room for records: of any size up to the largest body, also
// when only one of those fits.
func TestRoom(t *testing.T) {
	s := &bodies{maxBody: postback.MaxBody, maxTotal: 1 << 20}
	for _, size := range []int{1, 4 << 10, 64<<10 + 1, postback.MaxBody, 2 << 20} {
		buf, refused := s.room(size)
		if refused != nil {
			t.Fatalf("%d bytes: %v", size, refused)
		}
		if n := s.inUse.Load(); n != int64(cap(buf.data)) || n < int64(min(size, postback.MaxBody)) {
			t.Errorf("%d bytes: room for %d, %d counted", size, cap(buf.data), n)
		}
		s.release(buf)
		if n := s.inUse.Load(); n != 0 {
			t.Errorf("%d bytes: %d counted after release", size, n)
		}
	}
}

// TestEscapedRecordIsCounted sends a query whose record is six times as long.
func TestEscapedRecordIsCounted(t *testing.T) {
	h := stubHandler()
	h.bodies.maxTotal = 1 << 20
	post := func() int {
		r := benchRequest(http.MethodGet, benchPath, 0)
		r.URL.RawQuery += "&a=" + strings.Repeat("\x01", 170_000)
		w := &stubWriter{header: http.Header{}}
		if err := h.ServeHTTP(w, r, nil); err != nil {
			t.Fatal(err)
		}
		return w.status
	}
	if status := post(); status != http.StatusOK {
		t.Errorf("got %d", status)
	}
	h.bodies.reserve(256 << 10)
	if status := post(); status != http.StatusServiceUnavailable {
		t.Errorf("with less memory: got %d", status)
	}
	if n := h.bodies.inUse.Load(); n != 256<<10 {
		t.Errorf("%d bytes counted afterwards", n)
	}
}

// FuzzBody reads a body that comes in any pieces and ends in any way.
func FuzzBody(f *testing.F) {
	f.Add([]byte(`{"a":1}`), uint16(3), 0, uint32(100))
	f.Add(bytes.Repeat([]byte("x"), 70<<10), uint16(4096), 1, uint32(80<<10))
	f.Add(bytes.Repeat([]byte("x"), 5<<10), uint16(1), -1, uint32(5<<10-1))
	f.Fuzz(func(t *testing.T, body []byte, piece uint16, missing int, limit uint32) {
		s := &bodies{maxBody: int64(limit) + 1, maxTotal: 8 << 20}
		cut := missing > 0
		r := httptest.NewRequest(http.MethodPost, "/", nil)
		r.ContentLength = -1
		if missing >= 0 {
			r.ContentLength = int64(len(body)) + int64(missing%1024)
			cut = missing%1024 > 0
		}
		r.Body = io.NopCloser(&pieces{body: body, size: int(piece) + 1, cut: cut})
		buf, refused := s.read(r)
		switch {
		case max(r.ContentLength, int64(len(body))) > s.maxBody:
			if refused == nil || refused.Code != "payload_too_large" {
				t.Errorf("%d bytes of at most %d: %v", len(body), s.maxBody, refused)
			}
		case cut:
			if refused != postback.BodyCut {
				t.Errorf("a cut body: %v", refused)
			}
		case refused != nil:
			t.Errorf("%d bytes of at most %d: %v", len(body), s.maxBody, refused)
		default:
			if got := slices.Concat(append([][]byte{buf.data}, buf.parts()...)...); !bytes.Equal(got, body) {
				t.Errorf("read %d bytes, or others than the %d sent", len(got), len(body))
			}
			s.release(buf)
		}
		if n := s.inUse.Load(); n != 0 {
			t.Errorf("%d bytes are counted for ever", n)
		}
	})
}

// pieces is a body as it comes from a connection.
type pieces struct {
	body []byte
	size int
	cut  bool
}

func (p *pieces) Read(b []byte) (int, error) {
	n := copy(b, p.body[:min(p.size, len(p.body))])
	p.body = p.body[n:]
	if len(p.body) > 0 {
		return n, nil
	}
	if p.cut {
		return n, io.ErrUnexpectedEOF
	}
	return n, io.EOF
}
