package caddymodule

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
)

func TestBodiesAccounting(t *testing.T) {
	for _, size := range []int{1, 4 << 10, 4<<10 + 1, 65 << 10, 300 << 10, maxV2Body} {
		for _, declared := range []bool{true, false} {
			s := &bodies{maxBody: maxV2Body, maxTotal: 1 << 20}
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
	s := &bodies{maxBody: maxV2Body, maxTotal: 1 << 20}
	send := func(length int64) (*http.Request, *io.PipeWriter) {
		body, w := io.Pipe()
		r := httptest.NewRequest(http.MethodPost, "/", body)
		r.ContentLength = length
		return r, w
	}
	slow, writer := send(maxV2Body)
	done := make(chan *refusal)
	go func() {
		buf, refused := s.read(slow)
		if refused == nil {
			s.release(buf)
		}
		done <- refused
	}()
	// A pipe's Write returns once all of it has been read.
	if _, err := writer.Write(make([]byte, maxV2Body-1)); err != nil {
		t.Fatal(err)
	}
	quick := httptest.NewRequest(http.MethodPost, "/", strings.NewReader("{}"))
	if _, refused := s.read(quick); refused != errOverloaded {
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
		want   *refusal
	}{
		"ends early":        {5, strings.NewReader("abc"), errBodyCut},
		"breaks":            {-1, io.MultiReader(strings.NewReader("abc"), iotest.ErrReader(io.ErrUnexpectedEOF)), errBodyCut},
		"stalls":            {-1, io.MultiReader(strings.NewReader("abc"), iotest.ErrReader(os.ErrDeadlineExceeded)), errBodySlow},
		"too large for all": {1001, strings.NewReader(""), tooLarge(1001, 1000, true)},
		"too large, chunks": {-1, strings.NewReader(strings.Repeat("x", 1001)), tooLarge(1001, 1000, false)},
		"request_body":      {-1, http.MaxBytesReader(nil, io.NopCloser(strings.NewReader("abcdef")), 3), tooLarge(4, 3, false)},
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
