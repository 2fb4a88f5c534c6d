package upstream

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/td-postback/gateway/postback"
)

const batchKey = "1234/0123456789abcdef0123456789abcdef01234567"

var batchGroup = postback.BatchGroup{Database: "db", Table: "tbl", Key: batchKey}

// batchClient makes a client of a v2 on a socket.
func batchClient(t *testing.T, target string) *Client {
	t.Helper()
	u, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	client, err := New(Config{URL: u, DialTimeout: 5 * time.Second, Timeout: 30 * time.Second, MaxConns: 1, Retries: 2})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}

// batchRecords makes so many records up.
func batchRecords(n int) (records [][]byte) {
	for i := range n {
		records = append(records, fmt.Appendf(nil, `{"n":%d,"url":"https://shop.example/item?id=%d","uuid":"00000000-0000-5000-8000-%012d"}`, i, i*i, i))
	}
	return records
}

// receipts is v2's answer to n records, of which it has taken all or half.
func receipts(n int, all bool) string {
	parts := make([]string, n)
	for i := range parts {
		parts[i] = fmt.Sprintf(`{"success":%t,"uuid":"00000000-0000-5000-8000-%012d"}`, all || i%2 == 0, i)
	}
	return `{"receipts":[` + strings.Join(parts, ",") + `]}`
}

// TestDeliverBatch sends batches to a real server: what comes there, what comes back
// whole, and on how many connections.
func TestDeliverBatch(t *testing.T) {
	const most = postback.MaxBatch
	for _, tc := range []struct {
		name     string
		records  int
		status   int
		want     string
		inChunks bool
	}{
		{name: "one record", records: 1, status: 200, want: receipts(1, true)},
		{name: "all that go together", records: most, status: 200, want: receipts(most, true)},
		{name: "in chunks", records: most, status: 200, want: receipts(most, true), inChunks: true},
		{name: "some taken", records: most, status: 206, want: receipts(most, false)},
		{name: "some taken, in chunks", records: most, status: 206, want: receipts(most, false), inChunks: true},
		{name: "nothing said", records: 2, status: 204},
		{name: "no record", status: 200, want: "{}"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			records := batchRecords(tc.records)
			var problems atomic.Value
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if problem := batchProblem(r, records); problem != "" {
					problems.Store(problem)
				}
				if !tc.inChunks && tc.status != http.StatusNoContent {
					w.Header().Set("Content-Length", fmt.Sprint(len(tc.want)))
				}
				w.WriteHeader(tc.status)
				for rest := tc.want; rest != ""; {
					n := min(10_000, len(rest))
					_, _ = io.WriteString(w, rest[:n])
					if rest = rest[n:]; tc.inChunks {
						_ = http.NewResponseController(w).Flush()
					}
				}
			}))
			defer server.Close()
			client := batchClient(t, server.URL)
			for n := range 3 {
				var trip Trip
				answer, sent, err := client.DeliverBatch(batchGroup, records, &trip)
				if err != nil || string(answer) != tc.want || trip.Status != tc.status {
					t.Fatalf("got %.100q, %v, %+v", answer, err, trip)
				}
				if sent <= trip.Bytes || trip.Bytes == 0 || tc.records == most && sent > len(bytes.Join(records, nil))/2 {
					t.Errorf("%d bytes went, %d of them the body", sent, trip.Bytes)
				}
				// What ends a chunked answer may come too late for its connection.
				if n > 0 && trip.Dialed > 0 && !tc.inChunks {
					t.Error("the connection is not used again")
				}
			}
			if problem := problems.Load(); problem != nil {
				t.Error(problem)
			}
		})
	}
}

// batchProblem says what is wrong with a batch that v2 got.
func batchProblem(r *http.Request, records [][]byte) string {
	const media = "application/vnd.treasuredata.v1+json"
	want := http.Header{
		"Authorization": {"TD1 " + batchKey}, "Content-Type": {media}, "Accept": {media},
		"Content-Encoding": {"gzip"}, "Content-Length": {fmt.Sprint(r.ContentLength)},
	}
	if got := fmt.Sprint(r.Method, r.RequestURI, r.Header); got != fmt.Sprint("POST", "/db/tbl", want) {
		return got
	}
	z, err := gzip.NewReader(r.Body)
	if err != nil {
		return err.Error()
	}
	body, err := io.ReadAll(z)
	if err != nil {
		return err.Error()
	}
	if array := `{"events":[` + string(bytes.Join(records, []byte(","))) + "]}"; string(body) != array {
		return fmt.Sprintf("got %q, want %q", body, array)
	}
	return ""
}

// rawV2 is a v2 on a socket that does with each connection what a test says.
func rawV2(t *testing.T, serve func(conn net.Conn, br *bufio.Reader, n int)) (target string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for n := 0; ; n++ {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				serve(conn, bufio.NewReader(conn), n)
			}()
		}
	}()
	return "http://" + listener.Addr().String()
}

// readBatch reads one request to its end.
func readBatch(br *bufio.Reader) bool {
	r, err := http.ReadRequest(br)
	if err != nil {
		return false
	}
	_, err = io.Copy(io.Discard, r.Body)
	return err == nil
}

// TestDeliverBatchAnswers has v2 answer in other ways. After each, the next batch
// gets its own answer.
func TestDeliverBatchAnswers(t *testing.T) {
	large := `{"receipts":[` + strings.Repeat(" ", maxReceipts) + "]}"
	chunk := func(text string) string { return fmt.Sprintf("%x\r\n%s\r\n", len(text), text) }
	const chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
	for _, tc := range []struct {
		name, answer string
		want         string // empty for an error
		fails        bool
		trip         Trip
	}{
		{name: "cut", answer: "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{" + cut, fails: true},
		{name: "cut, some taken", answer: "HTTP/1.1 206 OK\r\nContent-Length: 100\r\n\r\n{" + cut, fails: true},
		{name: "cut in the middle of a long one", answer: "HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n" + strings.Repeat(" ", 40_000) + cut, fails: true},
		{name: "cut between chunks", answer: chunked + chunk("{}") + cut, fails: true},
		{name: "cut in a chunk", answer: chunked + "9\r\n{}" + cut, fails: true},
		{name: "cut before its body", answer: chunked + cut, fails: true},
		{name: "no HTTP", answer: "key " + batchKey + "\r\n\r\n", fails: true},
		{name: "a chunk that is none", answer: chunked + batchKey + "\r\n", fails: true},
		{name: "nothing", answer: cut, fails: true},
		{name: "until v2 closes", answer: "HTTP/1.1 200 OK\r\n\r\n{}" + cut, want: "{}", trip: Trip{Status: 200}},
		{name: "as much as is read", answer: fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", maxReceipts, large[:maxReceipts]), want: large[:maxReceipts], trip: Trip{Status: 200}},
		{name: "too much", answer: fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(large), large), want: large[:maxReceipts], trip: Trip{Status: 200}},
		{name: "too much in chunks", answer: chunked + chunk(large[:100_000]) + chunk(large[100_000:]) + "0\r\n\r\n", want: large[:maxReceipts], trip: Trip{Status: 200}},
		{name: "without an end", answer: chunked + strings.Repeat(chunk(strings.Repeat("x", 1000)), 10_000), want: strings.Repeat("x", maxReceipts), trip: Trip{Status: 200}},
		{name: "refused", answer: "HTTP/1.1 403 X\r\nContent-Length: 65\r\n\r\nunknown key TD1 " + batchKey + "\r\n{}", trip: Trip{Status: 403, Words: "unknown key TD1 … {}"}},
		{name: "its secret told", answer: "HTTP/1.1 422 X\r\nContent-Length: 8\r\n\r\n01234567", trip: Trip{Status: 422, Words: "…"}},
		{name: "not now", answer: busyAnswer, trip: Trip{Status: 503, Words: "busy", RetryAfter: 7 * time.Second}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			client := batchClient(t, rawV2(t, func(conn net.Conn, br *bufio.Reader, n int) {
				answer, isCut := strings.CutSuffix(tc.answer, cut)
				for readBatch(br) {
					if n > 0 {
						answer, isCut = okAnswer, false
					}
					n++
					if _, err := io.WriteString(conn, answer); err != nil || isCut {
						return
					}
				}
			}))
			var trip Trip
			answer, sent, err := client.DeliverBatch(batchGroup, batchRecords(3), &trip)
			if (err != nil) != tc.fails || string(answer) != tc.want || sent == 0 {
				t.Fatalf("got %.100q, %v", answer, err)
			}
			if _, again := errors.AsType[NotProcessedError](err); again || tc.fails && strings.Contains(err.Error(), "0123456") {
				t.Errorf("got %v", err)
			}
			trip.Duration, trip.Answered = 0, time.Time{}
			if tc.trip.Tries, tc.trip.Dialed, tc.trip.Bytes = 1, 1, trip.Bytes; !tc.fails && trip != tc.trip {
				t.Errorf("the trip is %+v, want %+v", trip, tc.trip)
			}
			if answer, _, err := client.DeliverBatch(batchGroup, batchRecords(3), &trip); err != nil || string(answer) != "{}" {
				t.Errorf("the next one: got %.100q, %v", answer, err)
			}
		})
	}
}

// FuzzBatchAnswer gives v2's answer to a batch as any bytes, and compares with
// net/http: what is read of it, and where it ends on a connection that is used again.
func FuzzBatchAnswer(f *testing.F) {
	for _, seed := range []string{
		okAnswer, busyAnswer, refusal,
		"HTTP/1.1 206 X\r\nTransfer-Encoding: chunked\r\n\r\n1;x\r\n{\r\n1\r\n}\r\n0\r\nX: 1\r\n\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
		"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
		"HTTP/1.0 200 OK\r\n\r\nuntil the end",
		"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, sent []byte) {
		x := exchanges.Get().(*exchange)
		defer x.put()
		x.conn, x.timeout = stubConn{}, time.Second
		br := bufio.NewReaderSize(bytes.NewReader(sent), answerBuffer)
		if x.readHead(br) != nil {
			return
		}
		reusable, err := x.keep(br)
		if len(x.said) > maxReceipts || err != nil && reusable {
			t.Errorf("read %d bytes, %v, and used again: %v", len(x.said), err, reusable)
		}
		if !reusable {
			return // whatever it means, nothing follows on this connection
		}
		if rest, _ := io.Copy(io.Discard, br); rest > 0 {
			t.Errorf("%d bytes are left on a connection that is used again", rest)
		}
		// fasthttp takes more than net/http does.
		if status, body, err := finalAnswer(sent, http.MethodPost); err == nil && (x.answer.StatusCode() != status || string(x.said) != body) {
			t.Errorf("got %d %q, net/http reads %d %q", x.answer.StatusCode(), x.said, status, body)
		}
	})
}

// TestDeliverBatchEarly has v2 refuse a batch by its head, and read no more of it.
func TestDeliverBatchEarly(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // G404: it must not compress
	records := make([][]byte, 5)
	for i := range records {
		record := []byte(`{"a":"`)
		for len(record) < 900_000 {
			record = fmt.Appendf(record, "%016x", random.Uint64())
		}
		records[i] = append(record, `"}`...)
	}
	done := make(chan struct{})
	client := batchClient(t, rawV2(t, func(conn net.Conn, br *bufio.Reader, n int) {
		if n > 0 {
			if readBatch(br) {
				_, _ = io.WriteString(conn, okAnswer)
			}
			return
		}
		if _, err := http.ReadRequest(br); err == nil {
			_, _ = io.WriteString(conn, refusal)
			<-done
		}
	}))
	defer close(done)
	began := time.Now()
	var trip Trip
	answer, _, err := client.DeliverBatch(batchGroup, records, &trip)
	if err != nil || answer != nil || trip.Status != http.StatusForbidden || trip.Words != "early" {
		t.Errorf("got %q, %v, %+v", answer, err, trip)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("it took %v", took)
	}
	if answer, _, err := client.DeliverBatch(batchGroup, records, &trip); err != nil || string(answer) != "{}" {
		t.Errorf("the next one: got %q, %v", answer, err)
	}
}

// TestDeliverBatchRetry sends batches on a connection that v2 gives up: the rule is
// that of a single record.
func TestDeliverBatchRetry(t *testing.T) {
	notProcessed := func(err error) bool { _, ok := errors.AsType[NotProcessedError](err); return ok }
	for _, tc := range []struct {
		name  string
		conns [][]string
		fails func(error) bool // the second batch
		tries int
		got   int
	}{
		{name: "closed before the batch", conns: [][]string{{okAnswer}, {okAnswer}}, tries: 2, got: 2},
		{name: "away meanwhile", conns: [][]string{{okAnswer}}, fails: notProcessed, tries: 3, got: 1},
		{name: "no answer", conns: [][]string{{okAnswer, silent}, {okAnswer}}, fails: IsTimeout, tries: 1, got: 2},
		{
			name: "broken off", conns: [][]string{{okAnswer, "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{}" + cut}, {okAnswer}}, tries: 1, got: 2,
			fails: func(err error) bool { return err != nil && !notProcessed(err) && !IsTimeout(err) },
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &script{conns: tc.conns}
				client := newScripted(t, s, nil)
				if answer, _, err := client.DeliverBatch(batchGroup, batchRecords(2), new(Trip)); err != nil || string(answer) != "{}" {
					t.Fatalf("the first: got %q, %v", answer, err)
				}
				var trip Trip
				answer, _, err := client.DeliverBatch(batchGroup, batchRecords(2), &trip)
				synctest.Wait()
				if fails := tc.fails != nil; fails != (err != nil) || fails && (!tc.fails(err) || answer != nil) {
					t.Errorf("got %q, %v", answer, err)
				}
				if trip.Tries != tc.tries || len(s.got) != tc.got {
					t.Errorf("%d tries, %d batches at v2", trip.Tries, len(s.got))
				}
			})
		})
	}
}

func BenchmarkCompressBatch(b *testing.B) {
	records := batchRecords(postback.MaxBatch)
	plain := len(bytes.Join(records, []byte(",")))
	b.SetBytes(int64(plain))
	b.ReportAllocs()
	for b.Loop() {
		if body := compressBatch(records); len(body) > plain/2 {
			b.Fatal(len(body))
		}
	}
}
