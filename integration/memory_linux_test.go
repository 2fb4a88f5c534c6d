package integration

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestSlowUploads has 2,000 callers send bodies of the largest size, all in
// step, so that none is done before all have sent nearly everything. Memory
// stays within max_buffered and 150 MiB. A caller that does not fit is refused at
// once. If a caller is told 200, v2 has its record.
func TestSlowUploads(t *testing.T) {
	const (
		callers     = 2000
		maxBuffered = 256 // MiB, the default
		pieces      = 16
	)
	v2 := startUploadsV2(t)
	addr := freeAddr(t)
	g := startBinary(t, plainBinary(t), nil, "td-postback", "--listen", addr, "--upstream", v2.URL)
	g.await(t, "server running", 1)

	step := newBarrier(callers)
	var taken, refused atomic.Int32
	var all sync.WaitGroup
	for n := range callers {
		all.Go(func() {
			id := strconv.Itoa(n)
			first, rest := uploadOf(id)
			body := io.MultiReader(strings.NewReader(first), strings.NewReader(rest))
			status, retryAfter, err := uploadInStep(addr, body, pieces, step)
			switch {
			case err != nil:
				t.Errorf("caller %s: %v", id, err)
			case status == http.StatusOK:
				taken.Add(1)
				if _, ok := v2.arrived.Load(id); !ok {
					t.Errorf("caller %s was told 200, but v2 has no record", id)
				}
			case status == http.StatusServiceUnavailable && retryAfter == "1":
				refused.Add(1)
			default:
				t.Errorf("caller %s: status %d, Retry-After %q", id, status, retryAfter)
			}
		})
	}
	all.Wait()
	peak := peakMiB(t, g.cmd.Process.Pid)
	t.Logf("%d taken, %d refused, at most %d MiB of memory", taken.Load(), refused.Load(), peak)
	if n := taken.Load(); n < maxBuffered/2 {
		t.Errorf("only %d callers were served; half of max_buffered holds %d", n, maxBuffered/2)
	}
	if peak >= maxBuffered+150 {
		t.Errorf("%d MiB of memory with %d MiB of max_buffered", peak, maxBuffered)
	}
}

// uploadPad is what all uploads are made of.
var uploadPad = strings.Repeat("x", v2Cap)

// uploadOf is a body of the largest size, in two pieces.
func uploadOf(id string) (first, rest string) {
	first = `{"id":"` + id + `","pad":"`
	return first, uploadPad[:v2Cap-len(first)-2] + `"}`
}

// uploadsV2 is a v2 that takes uploads. The sandbox would read them as JSON, which
// takes longer than the gateway waits when a busy machine gets 200 MiB at once.
type uploadsV2 struct {
	*httptest.Server
	arrived sync.Map // by their IDs
}

func startUploadsV2(t *testing.T) *uploadsV2 {
	v2 := &uploadsV2{}
	v2.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body := make([]byte, v2Cap)
		if _, err := io.ReadFull(r.Body, body); err != nil {
			return // the caller is told
		}
		id := idOf(string(body[:32]))
		first, rest := uploadOf(id)
		if !bytes.Equal(body, append([]byte(first), rest...)) || r.ContentLength != v2Cap {
			t.Errorf("v2 has another body of %d bytes: %.50q", r.ContentLength, body)
		}
		v2.arrived.Store(id, true)
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, "{}")
	}))
	t.Cleanup(v2.Close)
	return v2
}

// plainBinary is a binary without the race detector, which has memory of its
// own.
func plainBinary(t *testing.T) string {
	t.Helper()
	if !underRace() {
		return binary
	}
	return goBuild(t, "plain", "../cmd/caddy")
}

// uploadInStep sends a body of the largest size in pieces, and waits before
// each until every other caller is there too, or has its answer.
func uploadInStep(addr string, body io.Reader, pieces int, step *barrier) (status int, retryAfter string, err error) {
	leave := sync.OnceFunc(step.leave)
	defer leave()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return 0, "", err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(2 * time.Minute))

	answered := make(chan struct{})
	var readErr error
	go func() {
		defer close(answered)
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			readErr = err
			return
		}
		defer resp.Body.Close()
		status, retryAfter = resp.StatusCode, resp.Header.Get("Retry-After")
		_, readErr = io.Copy(io.Discard, resp.Body)
	}()
	if _, err := fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n", target, v2Cap); err != nil {
		return 0, "", err
	}
	for range pieces {
		step.wait()
		select {
		case <-answered:
			return status, retryAfter, readErr
		default:
		}
		if _, err := io.CopyN(conn, body, v2Cap/int64(pieces)); err != nil {
			break // the answer says why
		}
	}
	leave()
	<-answered
	return status, retryAfter, readErr
}

// barrier lets parties go on together.
type barrier struct {
	mu      sync.Mutex
	parties int
	waiting int
	open    chan struct{}
}

func newBarrier(parties int) *barrier {
	return &barrier{parties: parties, open: make(chan struct{})}
}

func (b *barrier) wait() {
	b.mu.Lock()
	open := b.open
	b.waiting++
	b.release()
	b.mu.Unlock()
	<-open
}

// leave takes a party out for good.
func (b *barrier) leave() {
	b.mu.Lock()
	b.parties--
	b.release()
	b.mu.Unlock()
}

func (b *barrier) release() {
	if b.waiting >= b.parties {
		close(b.open)
		b.open, b.waiting = make(chan struct{}), 0
	}
}
