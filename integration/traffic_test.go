package integration

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const (
	event  = "/postback/v3/event/db/tbl"
	target = event + "?td_write_key=1234/abcd"
	object = `{"a":1}`
	asJSON = "Content-Type: application/json\r\n"
)

// This file is the callers: what they send, how they send it, and what they were
// told.

// post is a request in its plainest form; headers end with \r\n each.
func post(target, headers, body string) string {
	return fmt.Sprintf("POST %s HTTP/1.1\r\nHost: in.treasuredata.com\r\n%sContent-Length: %d\r\n\r\n%s", target, headers, len(body), body)
}

// get is a GET in its plainest form; headers end with \r\n each.
func get(target, headers string) string {
	return "GET " + target + " HTTP/1.1\r\nHost: in.treasuredata.com\r\n" + headers + "\r\n"
}

// v2Cap is the largest body that v2 takes.
const v2Cap = 1_048_064

// objectOf is a JSON object of exactly so many bytes.
func objectOf(size int) string {
	const frame = `{"a":""}`
	return `{"a":"` + strings.Repeat("x", size-len(frame)) + `"}`
}

const (
	// spoolKey is the key of all records for a spool. No log, answer or
	// command may show it.
	spoolKey = "1234/" + spoolSecret

	spoolSecret = "c0ffee5ec2e7"

	spoolTarget = event + "?td_write_key=" + spoolKey

	// spoolText is in the body of records, and may be in no log either.
	spoolText = "confidential"
)

// withID is a record with an ID.
func withID(id string) string {
	return `{"id":"` + id + `","text":"` + spoolText + `"}`
}

// idOf is the ID in a body.
func idOf(body string) string {
	_, id, _ := strings.Cut(body, `"id":"`)
	id, _, _ = strings.Cut(id, `"`)
	return id
}

// reply is an answer as a caller sees it.
type reply struct {
	*http.Response
	body string
}

// code is the code of a refusal.
func (r reply) code() string {
	_, rest, _ := strings.Cut(r.body, `"error":"`)
	code, _, _ := strings.Cut(rest, `"`)
	return code
}

// raw sends bytes on a connection of their own and reads one answer.
func raw(t testing.TB, addr, request string) reply {
	t.Helper()
	conn := dial(t, addr)
	go func() { _, _ = io.WriteString(conn, request) }()
	method, _, _ := strings.Cut(request, " ")
	return readReply(t, bufio.NewReader(conn), method)
}

// dial connects for the length of the test.
func dial(t testing.TB, addr string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.SetDeadline(time.Now().Add(patience))
	t.Cleanup(func() { conn.Close() })
	return conn
}

func readReply(t testing.TB, br *bufio.Reader, method string) reply {
	t.Helper()
	for {
		resp, err := http.ReadResponse(br, &http.Request{Method: method})
		if err != nil {
			t.Fatalf("no answer: %v", err)
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatalf("answer cut: %v", err)
		}
		if resp.StatusCode >= http.StatusOK {
			return reply{resp, string(body)}
		}
	}
}

// timedReply is what a caller got: an answer, how long it took, and whether its
// connection broke before the end.
type timedReply struct {
	reply
	cut  bool
	took time.Duration
}

// ask sends a request. It calls answered when it has the head of the answer.
func ask(t testing.TB, addr, request string, answered func()) timedReply {
	t.Helper()
	conn := dial(t, addr)
	started := time.Now()
	go func() { _, _ = io.WriteString(conn, request) }()
	resp, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: http.MethodPost})
	if err != nil {
		t.Fatalf("no answer: %v", err)
	}
	answered()
	body, err := io.ReadAll(resp.Body)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal("the answer never ended")
	}
	return timedReply{reply{resp, string(body)}, err != nil, time.Since(started)}
}

// isTaken checks that a caller was answered as if v2 had taken its record.
func isTaken(t testing.TB, answer reply) {
	t.Helper()
	if answer.StatusCode != 200 || answer.body != "{}" || answer.Header.Get("Content-Type") != "application/json" {
		t.Errorf("got %d %q %q", answer.StatusCode, answer.Header.Get("Content-Type"), answer.body)
	}
}

// isUnkept checks that a caller was told to send its record again.
func isUnkept(t testing.TB, answer reply, code string) {
	t.Helper()
	if answer.StatusCode != 503 || answer.code() != code || answer.Header.Get("Retry-After") == "" ||
		answer.Header.Get("Content-Type") != "application/json" || !json.Valid([]byte(answer.body)) {
		t.Errorf("got %d %q %q", answer.StatusCode, answer.Header, answer.body)
	}
}

// counts is how often each record came, by its ID or its body.
type counts struct {
	times sync.Map // string -> *atomic.Int32
}

func (c *counts) add(record string) {
	n, _ := c.times.LoadOrStore(record, new(atomic.Int32))
	n.(*atomic.Int32).Add(1)
}

func (c *counts) of(record string) int {
	n, came := c.times.Load(record)
	if !came {
		return 0
	}
	return int(n.(*atomic.Int32).Load())
}

// caller sends records over a connection that it keeps for as long as the
// gateway lets it. It sends no record again.
type caller struct {
	addr, target, headers string
	pause                 time.Duration // after each record
	keep                  time.Duration // how long it keeps an idle connection; 0 for ever

	conn net.Conn
	br   *bufio.Reader
	used time.Time // when the last answer had come
}

// send sends a record and reads the answer.
func (c *caller) send(body string) (reply, error) {
	answer, err := c.exchange(body)
	if err != nil || answer.StatusCode != http.StatusOK || answer.Close {
		c.close()
	}
	time.Sleep(c.pause)
	return answer, err
}

func (c *caller) exchange(body string) (reply, error) {
	if c.keep > 0 && time.Since(c.used) > c.keep {
		c.close()
	}
	if c.conn == nil {
		conn, err := net.Dial("tcp", c.addr)
		if err != nil {
			return reply{}, err
		}
		c.conn, c.br = conn, bufio.NewReader(conn)
	}
	_ = c.conn.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c.conn, post(c.target, asJSON+c.headers, body)); err != nil {
		return reply{}, err
	}
	resp, err := http.ReadResponse(c.br, nil)
	if err != nil {
		return reply{}, err
	}
	answer, err := io.ReadAll(resp.Body)
	c.used = time.Now()
	return reply{resp, string(answer)}, err
}

func (c *caller) close() {
	if c.conn != nil {
		_ = c.conn.Close()
		c.conn = nil
	}
}

// callers send records, numbered, until they are told to stop.
type callers struct {
	sent atomic.Int32
	stop func()
}

// startCallers has n callers like this one send records. Each answer must be
// v2's, for a record that has arrived once.
func startCallers(t *testing.T, n int, like caller, v2 *arrivals) *callers {
	c := &callers{}
	stopping := make(chan struct{})
	var all sync.WaitGroup
	c.stop = sync.OnceFunc(func() { close(stopping); all.Wait() })
	t.Cleanup(c.stop)
	for number := range n {
		all.Go(func() {
			own := like
			defer own.close()
			for n := 0; !t.Failed(); n++ {
				select {
				case <-stopping:
					return
				default:
				}
				body := `{"id":"` + strconv.Itoa(number) + "-" + strconv.Itoa(n) + `"}`
				answer, err := own.send(body)
				if err != nil {
					t.Errorf("caller %d, record %d: %v", number, n, err)
					return
				}
				if times := v2.records.of(body); answer.StatusCode != http.StatusOK || answer.body != "{}" || times != 1 {
					t.Errorf("caller %d, record %d: got %d %q, %d times at v2", number, n, answer.StatusCode, answer.body, times)
					return
				}
				c.sent.Add(1)
			}
		})
	}
	return c
}

// await waits until n more records have been sent.
func (c *callers) await(t *testing.T, n int32) {
	t.Helper()
	before, end := c.sent.Load(), time.Now().Add(patience)
	for c.sent.Load() < before+n && !t.Failed() {
		if time.Now().After(end) {
			t.Fatal("no records are sent any more")
		}
		time.Sleep(time.Millisecond)
	}
}

// traffic is callers that send records with IDs, each over a connection of its
// own for as long as that lasts.
type traffic struct {
	stop func()

	mu      sync.Mutex
	changed *sync.Cond
	acked   []string // records whose callers were told 200
	refused int      // records whose callers were told 503
	cut     int      // records whose callers were told nothing
}

// lastID is the ID of the last record of all traffic: each has its own.
var lastID atomic.Int64

// startTraffic has n callers send until they are stopped, or have sent limit
// records together. pad makes the records longer.
func startTraffic(t testing.TB, addr string, n, limit int, pad string) *traffic {
	c := &traffic{}
	c.changed = sync.NewCond(&c.mu)
	stopping := make(chan struct{})
	var all sync.WaitGroup
	var next atomic.Int64
	c.stop = sync.OnceFunc(func() { close(stopping); all.Wait() })
	t.Cleanup(c.stop)
	for range n {
		all.Go(func() {
			own := caller{addr: addr, target: spoolTarget}
			defer own.close()
			for !t.Failed() {
				select {
				case <-stopping:
					return
				default:
				}
				if int(next.Add(1)) > limit {
					return
				}
				id := strconv.FormatInt(lastID.Add(1), 10)
				answer, err := own.send(`{"id":"` + id + `","text":"` + spoolText + pad + `"}`)
				c.note(t, id, answer, err)
			}
		})
	}
	return c
}

// note remembers what a caller was told, or that it was told nothing.
func (c *traffic) note(t testing.TB, id string, answer reply, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case err != nil || answer.StatusCode == http.StatusOK && answer.body != "{}":
		c.cut++
	case answer.StatusCode == http.StatusOK:
		c.acked = append(c.acked, id)
	case answer.StatusCode == http.StatusServiceUnavailable:
		c.refused++
	default:
		t.Errorf("record %s: got %d", id, answer.StatusCode)
	}
	c.changed.Broadcast()
}

// await waits until n more callers were told 200.
func (c *traffic) await(t testing.TB, n int) {
	t.Helper()
	c.mu.Lock()
	want := len(c.acked) + n
	c.mu.Unlock()
	c.reach(t, want)
}

// reach waits until that many callers were told 200, of all.
func (c *traffic) reach(t testing.TB, want int) {
	t.Helper()
	deadline := time.Now().Add(patience)
	timer := time.AfterFunc(patience, func() { c.mu.Lock(); c.changed.Broadcast(); c.mu.Unlock() })
	defer timer.Stop()
	c.mu.Lock()
	defer c.mu.Unlock()
	for ; len(c.acked) < want; c.changed.Wait() {
		if time.Now().After(deadline) || t.Failed() {
			t.Fatalf("%d of %d records were taken, %d refused, %d cut", len(c.acked), want, c.refused, c.cut)
		}
	}
}

// awaitAll waits until n callers were told 200. It has no limit of time, as long
// as it goes on.
func (c *traffic) awaitAll(t testing.TB, n int) {
	t.Helper()
	for want := 0; want < n; {
		want = min(want+1000, n)
		c.reach(t, want)
	}
}

// mixedRequest is a request of a mixed run.
type mixedRequest struct {
	method, uri, contentType, body string
	pad                            string // of a header
}

const (
	// noisyAccount is the account of which v2 takes few records.
	noisyAccount = "666"

	// earlyTable is the table whose records v2 refuses before it has read them.
	earlyTable = "/early"
)

// How many kinds of requests a mixed run has, and those that v2 never takes.
const (
	mixedKinds = 20
	mixedEarly = 12
	mixedJunk  = 13
)

// newMixedRequest is the n-th request of a run. All kinds take turns, right ones
// and wrong ones.
func newMixedRequest(n int) mixedRequest {
	id := fmt.Sprintf(`{"id":"%d"}`, n)
	query := "&id=" + strconv.Itoa(n)
	switch n % mixedKinds {
	case 0:
		return mixedRequest{method: "GET", uri: target + query}
	case 1:
		return mixedRequest{method: "GET", uri: target + query + "&td_format=pixel"}
	case 2:
		return mixedRequest{method: "POST", uri: target + query, contentType: "text/ping", body: "PING"}
	case 3:
		return mixedRequest{method: "POST", uri: target + query}
	case 4:
		return mixedRequest{"POST", target, "application/json", fmt.Sprintf(`{"pad":"%s","id":"%d"}`, strings.Repeat("x", 20_000), n), ""}
	case 5:
		return mixedRequest{method: "GET", uri: target + query + "&td_redirect=http://evil.example/"}
	case 6:
		return mixedRequest{"POST", event + "?td_write_key=", "application/json", id, ""}
	case 7:
		return mixedRequest{"POST", event + "/deeper?td_write_key=1/a", "application/json", id, ""}
	case 8:
		return mixedRequest{"PUT", target, "application/json", id, ""}
	case 9:
		return mixedRequest{"POST", target, "application/x-www-form-urlencoded", id, ""}
	case 10: // v2 takes few records of this account
		return mixedRequest{"POST", event + "?td_write_key=" + noisyAccount + "/abcd", "application/json", id, ""}
	case 11:
		return mixedRequest{"POST", target, "application/json", id, strings.Repeat("h", 70_000)}
	case mixedEarly: // v2 refuses it by its head, and reads no more of it
		return mixedRequest{"POST", strings.Replace(target, "/tbl", earlyTable, 1), "application/json", fmt.Sprintf(`{"id":"%d","pad":"%s"}`, n, strings.Repeat("x", 100_000)), ""}
	case mixedJunk:
		return mixedRequest{"POST", target, "application/json", "junk " + id, ""}
	default:
		return mixedRequest{"POST", target, "application/json", id, ""}
	}
}

// send sends the request and returns what its caller is told: a result as the
// metrics name it, or an error.
func (m *mixedRequest) send(client *http.Client, base string) string {
	req, err := http.NewRequest(m.method, base+m.uri, strings.NewReader(m.body))
	if err != nil {
		return err.Error()
	}
	if m.contentType != "" {
		req.Header.Set("Content-Type", m.contentType)
	}
	if m.pad != "" {
		req.Header.Set("X-Pad", m.pad)
	}
	resp, err := client.Do(req)
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return err.Error()
	}
	code := reply{resp, string(answer)}.code()
	switch {
	case code != "" && !strings.Contains(code, " "): // what v2 says are sentences
		return code
	case resp.StatusCode == http.StatusOK:
		return "forwarded"
	default:
		return "upstream_" + resp.Status[:1] + "xx"
	}
}

// tally is what callers were told of their records.
type tally struct {
	mu      sync.Mutex
	results map[string]int
	of      map[int]string // by id
}

func (a *tally) add(t *testing.T, id int, result string) {
	if strings.Contains(result, " ") {
		t.Errorf("request %d: %s", id, result)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.results == nil {
		a.results, a.of = map[string]int{}, map[int]string{}
	}
	a.results[result]++
	a.of[id] = result
}

// check compares with what v2 has.
func (a *tally) check(t *testing.T, v2 *flakySandbox, total int) {
	if len(a.of) != total {
		t.Errorf("%d of %d callers were told something", len(a.of), total)
	}
	for id, result := range a.of {
		times := v2.taken.of(strconv.Itoa(id))
		want := times == 0
		switch result {
		case "forwarded", "redirect_not_allowed":
			want = times == 1
		case "upstream_unreachable", "upstream_timeout":
			want = times <= 1 // the answer was lost, or the request
		}
		if !want {
			t.Errorf("record %d is at v2 %d times, its caller was told %s", id, times, result)
		}
	}
	if n := a.results["forwarded"]; n < total/2 {
		t.Errorf("only %d of %d were forwarded", n, total)
	}
}
