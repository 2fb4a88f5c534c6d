package integration

import (
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestRollback rolls back while callers hold 1,000 connections of HTTP/1.1 and 20 of
// HTTP/2, with streams that have begun, and a long upload is under way: the first request
// after the command's answer goes to the legacy host on each of them. The same holds for
// v2 after resume, while an upload above the cap goes on to the legacy host. Each of what
// was under way is whole, at one host. UPLOAD_TIME is how long the uploads take.
func TestRollback(t *testing.T) {
	t.Parallel()
	lasts := time.Second
	if value := os.Getenv("UPLOAD_TIME"); value != "" {
		var err error
		if lasts, err = time.ParseDuration(value); err != nil {
			t.Fatal(err)
		}
	}
	s, _ := serveLanes(t, "", "")
	change(t, s.admin, "share", share("*.*", "", "100"))
	kept := make([]*caller, 1000)
	for n := range kept {
		kept[n] = &caller{addr: s.plain, target: target}
		t.Cleanup(kept[n].close)
	}
	clients := make([]*http.Client, 20)
	for n := range clients {
		clients[n] = s.http2Client()
	}
	s.askAll(t, kept, clients, "v2")
	streams := make([]*upload, len(clients))
	for n, client := range clients {
		streams[n] = s.startUpload(client, "https://"+s.secure, 1000)
	}
	long := s.startUpload(&http.Client{}, "http://"+s.plain, v2Cap)
	s.awaitInFlight(t, len(streams)+1)

	status, answer, err := order(s.admin, "rollback", "", -1)
	if err != nil || status != http.StatusOK {
		t.Fatal(status, answer, err)
	}
	s.askAll(t, kept, clients, "legacy")
	for _, stream := range streams {
		stream.end(t)
		if lane := s.lane(t, stream.id); lane != "legacy" { // it is sent only now
			t.Errorf("a stream that was under way goes to %s", lane)
		}
	}
	streamed := s.startUpload(&http.Client{}, "http://"+s.plain, 2*v2Cap)
	s.awaitInFlight(t, 2)
	change(t, s.admin, "resume", "")
	s.askAll(t, kept, clients, "v2")

	began := time.Now()
	for time.Since(began) < lasts {
		long.send(t, 100)
		streamed.send(t, 100)
		time.Sleep(100 * time.Millisecond) // as slow callers
	}
	long.end(t)
	streamed.end(t)
	if lane := s.lane(t, long.id); lane != "v2" {
		t.Errorf("an upload that ended after the resume goes to %s", lane)
	}
	if lane := s.lane(t, streamed.id); lane != "legacy" {
		t.Errorf("an upload that began before the resume goes on to %s", lane)
	}
}

// upload is a POST with a body that comes bit by bit.
type upload struct {
	id   string
	body *io.PipeWriter
	left int // bytes
	told chan string
}

// startUpload begins to send an event of so many bytes: the head and a little more.
func (s *laneSite) startUpload(client *http.Client, base string, size int) *upload {
	body, w := io.Pipe()
	u := &upload{id: s.newID(), body: w, told: make(chan string, 1)}
	req, _ := http.NewRequest(http.MethodPost, base+target, body)
	req.ContentLength = int64(size)
	go func() {
		resp, err := client.Do(req)
		if err != nil {
			_ = body.CloseWithError(err)
			u.told <- err.Error()
			return
		}
		_ = resp.Body.Close()
		u.told <- resp.Status
	}()
	begin := `{"id":"` + u.id + `","pad":"`
	n, _ := io.WriteString(w, begin)
	u.left = size - n
	return u
}

// send sends so many bytes more.
func (u *upload) send(t *testing.T, n int) {
	t.Helper()
	n, err := io.WriteString(u.body, strings.Repeat("x", n))
	if err != nil {
		t.Fatal(err)
	}
	u.left -= n
}

// end sends the rest. The event must be taken.
func (u *upload) end(t *testing.T) {
	t.Helper()
	const last = `"}`
	u.send(t, u.left-len(last))
	_, _ = io.WriteString(u.body, last)
	_ = u.body.Close()
	if told := <-u.told; told != "200 OK" {
		t.Errorf("the caller of an upload was told %s", told)
	}
}

// awaitInFlight waits until the gateway has so many requests that are not answered.
func (s *laneSite) awaitInFlight(t *testing.T, n int) {
	t.Helper()
	for end := time.Now().Add(patience); scrape(t, s.admin)["requests_in_flight"] != float64(n); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%v requests are in flight, not %d", scrape(t, s.admin)["requests_in_flight"], n)
		}
	}
}

// TestRollbackAtOnce measures how long a rollback takes until it is in force: a caller
// sends one request after the other, and those that begin after the order has been sent
// go to the legacy host, but for the first few.
func TestRollbackAtOnce(t *testing.T) {
	const limit, rounds = 10 * time.Millisecond, 10
	s, _ := serveLanes(t, "", "")
	change(t, s.admin, "share", share("*.*", "", "100"))
	took, answered := make([]time.Duration, rounds), make([]time.Duration, rounds)
	for n := range rounds {
		ended, began := make(chan struct{}), map[string]time.Time{}
		var asking sync.WaitGroup
		asking.Go(func() {
			own := caller{addr: s.plain, target: target}
			defer own.close()
			for !t.Failed() {
				select {
				case <-ended:
					return
				default:
				}
				id := s.newID()
				began[id] = time.Now()
				if answer, err := own.send(withID(id)); err != nil || answer.StatusCode != http.StatusOK {
					t.Errorf("got %v, %v", answer, err)
				}
			}
		})
		s.awaitEvents(t, 10)
		ordered := time.Now()
		status, answer, err := order(s.admin, "rollback", "", -1)
		there := time.Now()
		if err != nil || status != http.StatusOK {
			t.Fatal(status, answer, err)
		}
		s.awaitEvents(t, 10)
		close(ended)
		asking.Wait()
		last := ordered
		for id, at := range began {
			if s.lane(t, id) == "v2" && at.After(last) {
				last = at
			}
		}
		if last.After(there) {
			t.Errorf("a request that began %v after the answer goes to v2", last.Sub(there))
		}
		took[n], answered[n] = last.Sub(ordered), there.Sub(ordered)
		change(t, s.admin, "resume", "")
	}
	t.Logf("in force after %v, answered after %v", took, answered)
	if best := slices.Min(took); best > limit {
		t.Errorf("a rollback is in force after %v at best", best)
	}
}

// awaitEvents waits until so many more events were sent.
func (s *laneSite) awaitEvents(t *testing.T, n int64) {
	t.Helper()
	end := time.Now().Add(patience)
	for want := s.last.Load() + n; s.last.Load() < want; time.Sleep(time.Millisecond) {
		if time.Now().After(end) || t.Failed() {
			t.Fatal("no events are sent any more")
		}
	}
}

// askAll sends an event on each of these connections. All go to this lane.
func (s *laneSite) askAll(t *testing.T, kept []*caller, clients []*http.Client, lane string) {
	t.Helper()
	ids := make([]string, len(kept)+len(clients))
	for n := range ids {
		ids[n] = s.newID()
	}
	var all sync.WaitGroup
	var next atomic.Int64
	for range 8 {
		all.Go(func() {
			for n := int(next.Add(1)) - 1; n < len(ids); n = int(next.Add(1)) - 1 {
				if n >= len(kept) {
					s.askOverHTTP2(t, clients[n-len(kept)], ids[n])
					continue
				}
				conn := kept[n].conn
				answer, err := kept[n].send(withID(ids[n]))
				if err != nil || answer.StatusCode != http.StatusOK || conn != nil && kept[n].conn != conn {
					t.Errorf("got %v, %v; it is on another connection: %v", answer, err, kept[n].conn != conn)
				}
			}
		})
	}
	all.Wait()
	for n, id := range ids {
		if got := s.lane(t, id); got != lane {
			t.Errorf("connection %d goes to %s, not to %s", n, got, lane)
		}
	}
}

func (s *laneSite) askOverHTTP2(t *testing.T, client *http.Client, id string) {
	resp, err := client.Post("https://"+s.secure+target, "application/json", strings.NewReader(withID(id)))
	if err != nil {
		t.Error(err)
		return
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.ProtoMajor != 2 || resp.StatusCode != http.StatusOK {
		t.Errorf("got %s %s, %v", resp.Proto, resp.Status, err)
	}
}
