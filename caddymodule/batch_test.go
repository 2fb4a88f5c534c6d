package caddymodule

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/td-postback/gateway/postback"
	"github.com/td-postback/gateway/sandbox"
	"github.com/td-postback/gateway/spool"
	"github.com/td-postback/gateway/spool/cluster/natstest"
)

const batchKey = "1234/0123456789abcdef"

// keptBody is a record as it is kept.
func keptBody(body string) []byte {
	data, _ := postback.AppendKept(nil, &postback.Request{
		Host: "v2.example", Destination: postback.Destination{Database: "mydb", Table: "mytable"},
		Credentials: postback.Credentials{WriteKey: batchKey}, ContentType: "application/json", Body: []byte(body),
	}, time.Now())
	return data
}

// TestPart: what goes by batch, to whom, and by which uuid v2 knows a repeat of it.
func TestPart(t *testing.T) {
	t.Parallel()
	entry := spool.Entry{ID: 7, Record: spool.Record{Arrival: time.Now(), Data: keptBody(`{"a":1}`)}, Namespace: [16]byte{1}}
	uuidOf := func(e spool.Entry) string {
		t.Helper()
		part, ok := upstreamSender{}.Part(e)
		var record struct{ UUID string }
		if err := json.Unmarshal(part.Record, &record); !ok || err != nil || record.UUID == "" {
			t.Fatalf("%v, %v: %s", ok, err, part.Record)
		}
		if to, ok := postback.ParseBatchGroup(part.Group); !ok || to != (postback.BatchGroup{Database: "mydb", Table: "mytable", Key: batchKey}) {
			t.Errorf("the group is %+v", to)
		}
		return record.UUID
	}
	first := uuidOf(entry)
	entry.Tries = 3
	if again := uuidOf(entry); again != first {
		t.Errorf("tried again, its uuid is %s, and was %s", again, first)
	}
	entry.ID = 8
	next := uuidOf(entry)
	entry.Namespace[0] = 2
	if other := uuidOf(entry); next == first || other == next {
		t.Errorf("records share a uuid: %s, %s, %s", first, next, other)
	}
	entry.Namespace = [16]byte{}
	if _, ok := (upstreamSender{}).Part(entry); ok {
		t.Error("without a name that lasts, it is in a batch")
	}
	entry.Namespace[0], entry.Data = 1, keptBody(`{"UUID":"x"}`)
	if _, ok := (upstreamSender{}).Part(entry); ok {
		t.Error("with a column uuid, it is in a batch")
	}
}

// counted is a listener that counts the bytes that it reads.
type counted struct {
	net.Listener
	bytes atomic.Int64
}

func (l *counted) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	return &countedConn{conn, l}, err
}

type countedConn struct {
	net.Conn
	of *counted
}

func (c *countedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.of.bytes.Add(int64(n))
	return n, err
}

// sums has the sum of each collector: of a histogram its count and its sum.
func sums(t *testing.T, collectors ...prometheus.Collector) (all []float64) {
	t.Helper()
	for _, c := range collectors {
		registry := prometheus.NewPedanticRegistry()
		registry.MustRegister(c)
		families, err := registry.Gather()
		if err != nil || len(families) != 1 || len(families[0].GetMetric()) != 1 {
			t.Fatalf("not one metric: %v, %v", families, err)
		}
		m := families[0].GetMetric()[0]
		if m.GetHistogram() != nil {
			all = append(all, float64(m.GetHistogram().GetSampleCount()), m.GetHistogram().GetSampleSum())
		} else {
			all = append(all, m.GetCounter().GetValue())
		}
	}
	return all
}

// batchV2 is a v2 that answers batches as a test says, and a sender to it.
func batchV2(t *testing.T, serve http.HandlerFunc) (*counted, spool.Sender) {
	t.Helper()
	server := httptest.NewUnstartedServer(serve)
	counts := &counted{Listener: server.Listener}
	server.Listener = counts
	server.Start()
	t.Cleanup(server.Close)
	none := 0
	h := &Handler{Upstream: server.URL, Retries: &none, Spool: &Spool{Batch: 500}}
	h.applyDefaults()
	sender, err := h.newSender(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(sender.Close)
	return counts, sender
}

// TestSendBatch sends batches to a v2 that gives every kind of answer.
func TestSendBatch(t *testing.T) {
	status := func(code int, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			if code >= 429 {
				w.Header().Set("Retry-After", "7")
			}
			w.WriteHeader(code)
			_, _ = io.WriteString(w, body)
		}
	}
	const taken = `{"receipts":[{"success":true,"uuid":"x"},{"success":true,"uuid":"y"}]}`
	for name, test := range map[string]struct {
		serve http.HandlerFunc
		want  spool.BatchResult
	}{
		"taken":                {status(200, taken), spool.BatchResult{Receipts: []spool.Receipt{{Taken: true}, {Taken: true}}, Result: spool.Result{Status: 200}}},
		"no receipts":          {status(200, `{}`), spool.BatchResult{Result: spool.Result{Status: 200}}},
		"cut receipts":         {status(200, taken[:20]), spool.BatchResult{Result: spool.Result{Status: 206, Words: unreadReceipts}}},
		"too few, and 200":     {status(200, `{"receipts":[]}`), spool.BatchResult{Result: spool.Result{Status: 206, Words: unreadReceipts}}},
		"too few receipts":     {status(206, `{"receipts":[{"success":true}]}`), spool.BatchResult{Result: spool.Result{Status: 206}}},
		"200 that is cut":      {status(200, `{"receipts":[{"success":false,"error":"`+strings.Repeat("x", 300<<10)+`"},{"success":true}]}`), spool.BatchResult{Result: spool.Result{Status: 206, Words: unreadReceipts}}},
		"200 with too many":    {status(200, `{"receipts":[{"success":true},{"success":false},{"success":true}]}`), spool.BatchResult{Result: spool.Result{Status: 206, Words: unreadReceipts}}},
		"one is refused":       {status(206, `{"receipts":[{"success":true},{"success":false,"error":"of `+batchKey+`"}]}`), spool.BatchResult{Receipts: []spool.Receipt{{Taken: true}, {Words: "of 1234/…"}}, Result: spool.Result{Status: 206, Account: "1234/…"}}},
		"all are refused":      {status(422, `{"message":"no"}`), spool.BatchResult{Result: spool.Result{Status: 422, Words: `{"message":"no"}`, Account: "1234/…"}}},
		"the key is refused":   {status(401, ``), spool.BatchResult{Result: spool.Result{Status: 401, Account: "1234/…"}}},
		"no batches here":      {status(404, ``), spool.BatchResult{Result: spool.Result{Status: 404, Account: "1234/…"}}},
		"too much of it":       {status(429, ``), spool.BatchResult{Result: spool.Result{Status: 429, RetryAfter: 7 * time.Second}}},
		"it may have taken it": {status(500, ``), spool.BatchResult{Result: spool.Result{Status: 500, RetryAfter: 7 * time.Second, Ambiguous: true}}},
		"down":                 {status(503, ``), spool.BatchResult{Result: spool.Result{Status: 503, RetryAfter: 7 * time.Second}}},
		"no answer": {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
			spool.BatchResult{Result: spool.Result{Ambiguous: true}}},
		"half an answer": {func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, taken[:20])
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}, spool.BatchResult{Result: spool.Result{Ambiguous: true}}},
	} {
		t.Run(name, func(t *testing.T) {
			bodies := make(chan []byte, 1)
			counts, sender := batchV2(t, func(w http.ResponseWriter, r *http.Request) {
				var body []byte
				unzip, err := gzip.NewReader(r.Body)
				if err == nil {
					body, err = io.ReadAll(unzip)
				}
				bodies <- body
				if err != nil || r.URL.Path != "/mydb/mytable" || r.Header.Get("Authorization") != "TD1 "+batchKey {
					t.Errorf("got %s %v, %v", r.URL.Path, r.Header, err)
				}
				test.serve(w, r)
			})
			records := [][]byte{[]byte(`{"a":1}`), []byte(`{"b":"` + strings.Repeat("x", 10_000) + `"}`)}
			before := sums(t, batchRecords, batchBytes, batchPlainBytes)
			got := sender.SendBatch(postback.BatchGroup{Database: "mydb", Table: "mytable", Key: batchKey}.String(), records)
			body, want := <-bodies, `{"events":[`+string(records[0])+`,`+string(records[1])+`]}`
			if string(body) != want {
				t.Errorf("v2 got %.100s, want %.100s", body, want)
			}
			plain, sent := len(records[0])+len(records[1]), int(counts.bytes.Load())
			if got.Plain != plain || got.Sent != sent || sent > plain/10 {
				t.Errorf("of %d bytes, %d went to v2; the result says %d and %d", plain, sent, got.Plain, got.Sent)
			}
			for i, after := range sums(t, batchRecords, batchBytes, batchPlainBytes) {
				if want := []float64{1, 2, 1, float64(sent), float64(plain)}[i]; after-before[i] != want {
					t.Errorf("metric %d has grown by %v, want %v", i, after-before[i], want)
				}
			}
			if (got.Err != nil) != (test.want.Status == 0) {
				t.Errorf("the error is %v", got.Err)
			}
			if (got.Fingerprint == fingerprintOf(batchKey)) != (got.Account != "") {
				t.Errorf("the key is named %q beside the account %q", got.Fingerprint, got.Account)
			}
			got.Plain, got.Sent, got.Err, got.Fingerprint = 0, 0, nil, ""
			if !reflect.DeepEqual(got, test.want) {
				t.Errorf("got %+v, want %+v", got, test.want)
			}
		})
	}
}

// TestSendBatchUnsent: a batch of which nothing went to v2 is not counted, and may be
// sent again without a second thought.
func TestSendBatchUnsent(t *testing.T) {
	gone := "http://" + natstest.FreeAddr(t)
	none := 0
	h := &Handler{Upstream: gone, Retries: &none, Spool: &Spool{Batch: 500}}
	h.applyDefaults()
	sender, err := h.newSender(gone)
	if err != nil {
		t.Fatal(err)
	}
	defer sender.Close()
	before := sums(t, batchRecords, batchBytes, batchPlainBytes)
	got := sender.SendBatch(postback.BatchGroup{Database: "mydb", Table: "mytable", Key: batchKey}.String(), [][]byte{[]byte(`{}`)})
	if got.Err == nil || got.Ambiguous || got.Sent != 0 || strings.Contains(got.Err.Error(), batchKey) {
		t.Errorf("got %+v", got)
	}
	if after := sums(t, batchRecords, batchBytes, batchPlainBytes); !slices.Equal(after, before) {
		t.Errorf("the metrics were %v and are %v", before, after)
	}
}

// TestBatchWarnings says whose record v2 refused in a batch, and that a host takes no
// batches. Neither hides that v2 is down, nor shows a key.
func TestBatchWarnings(t *testing.T) {
	keptWarning.last.Store(0)
	keptPartWarning.last.Store(0)
	noBatchesWarning.last.Store(0)
	core, logs := observer.New(zap.WarnLevel)
	logger := zap.New(core)
	whose := owner{"1234/…", postback.Destination{Database: "mydb", Table: "mytable"}}
	for range 2 {
		warnOfPart(logger, 206, "no such column", "v2.example", whose)
		warnOfNoBatches(logger, &spool.Result{Status: 404, Words: "what is that"}, "v2.example")
		warnOfKept(logger, &spool.Result{Status: 503}, "v2.example", whose)
	}
	entries := logs.All()
	if len(entries) != 3 {
		t.Fatalf("got %d lines, want one for each kind: %v", len(entries), entries)
	}
	part, no := entries[0].ContextMap(), entries[1].ContextMap()
	if entries[0].Message != "record kept for later" || part["words"] != "no such column" || part["account"] != "1234/…" || part["table"] != "mytable" {
		t.Errorf("got %q %v", entries[0].Message, part)
	}
	if entries[1].Message != "v2 takes no batches" || no["status"] != int64(404) || no["words"] != "what is that" ||
		!strings.Contains(fmt.Sprint(no["advice"]), "dead letters") {
		t.Errorf("got %q %v", entries[1].Message, no)
	}
}

// TestRepeatsAreCounted: those that v2 drops, and those that it does not.
func TestRepeatsAreCounted(t *testing.T) {
	for _, test := range []struct {
		fate       spool.Fate
		result     spool.Result
		safe, dups float64
	}{
		{spool.Retried, spool.Result{}, 0, 0},
		{spool.Retried, spool.Result{Ambiguous: true}, 0, 1},
		{spool.Retried, spool.Result{Ambiguous: true, Safe: true}, 1, 0},
		{spool.Delivered, spool.Result{Status: 200}, 0, 0},
		{spool.Delivered, spool.Result{Status: 200, Ambiguous: true}, 0, 1}, // more than an hour later
		{spool.Refused, spool.Result{Status: 422, Ambiguous: true}, 0, 1},   // the same of other events of its request
		{spool.Refused, spool.Result{Status: 206, Ambiguous: true, Safe: true}, 0, 0},
	} {
		before := sums(t, spoolRepeatsSafe, spoolDuplicates)
		settled("http://v2.example", test.fate, test.result)
		after := sums(t, spoolRepeatsSafe, spoolDuplicates)
		if safe, dups := after[0]-before[0], after[1]-before[1]; safe != test.safe || dups != test.dups {
			t.Errorf("%s %+v: %v safe and %v possible doubles", test.fate, test.result, safe, dups)
		}
	}
}

// strictV2 is the sandbox, and what it received.
type strictV2 struct {
	*httptest.Server
	mu       sync.Mutex
	requests int
	records  []sandbox.Record
}

func newStrictV2(t *testing.T) *strictV2 {
	t.Helper()
	v2 := &strictV2{}
	strict := &sandbox.Sandbox{Received: func(r sandbox.Record) {
		v2.mu.Lock()
		defer v2.mu.Unlock()
		r.Body = bytes.Clone(r.Body)
		v2.records = append(v2.records, r)
	}}
	v2.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		v2.mu.Lock()
		v2.requests++
		v2.mu.Unlock()
		strict.ServeHTTP(w, r)
	}))
	t.Cleanup(v2.Close)
	return v2
}

// received waits for so many records.
func (v2 *strictV2) received(t *testing.T, n int) (requests int, records []sandbox.Record) {
	t.Helper()
	eventually(t, fmt.Sprintf("v2 gets %d records", n), func() bool {
		v2.mu.Lock()
		defer v2.mu.Unlock()
		return len(v2.records) >= n
	})
	v2.mu.Lock()
	defer v2.mu.Unlock()
	return v2.requests, slices.Clone(v2.records)
}

// TestBatchesOfGroups: kept records of two tables and two keys arrive in as many
// requests as there are groups, whole, each with a uuid of its own. What has a column
// uuid arrives by Postback.
func TestBatchesOfGroups(t *testing.T) {
	const each = 25
	v2, g := newStrictV2(t), newSpooling(t)
	g.load(t, g.handler(v2.URL, `"mode":"always"`, fmt.Sprintf(`"batch":%d`, each), `"batch_wait":"1m"`))
	want := map[string]bool{} // table, key, record
	for i := range each {
		for _, table := range []string{"clicks", "views"} {
			for _, key := range []string{"1234/aa", "5678/bb"} {
				body := fmt.Sprintf(`{"n":%d, "of":"%s é", "td_record_time":%d}`, i, table, time.Now().Unix())
				if status := g.postTo(t, "/postback/v3/event/db/"+table+"?td_write_key="+key, body); status != http.StatusOK {
					t.Fatalf("got %d", status)
				}
				want[table+key+strings.Replace(body, "td_record_time", "time", 1)] = true
			}
		}
	}
	alone := fmt.Sprintf(`{"uuid":"mine","td_record_time":%d}`, time.Now().Unix())
	if status := g.postTo(t, "/postback/v3/event/db/clicks?td_write_key=1234/aa", alone); status != http.StatusOK {
		t.Fatalf("got %d", status)
	}
	requests, records := v2.received(t, 4*each+1)
	if requests != 5 || len(records) != 4*each+1 {
		t.Errorf("%d records in %d requests, want %d in 5", len(records), requests, 4*each+1)
	}
	uuids := map[string]bool{}
	for _, r := range records {
		if !r.Batch {
			if string(r.Body) != alone || r.Via != postback.WriteKeyHeader {
				t.Fatalf("by Postback came %s via %s", r.Body, r.Via)
			}
			continue
		}
		if uuids[r.UUID] || r.UUID == "" {
			t.Errorf("the uuid %q is none, or not the only one", r.UUID)
		}
		uuids[r.UUID] = true
		record, tail, _ := strings.Cut(string(r.Body), `,"uuid":"`)
		if tail != r.UUID+`"}` || !want[r.Table+r.Key+record+"}"] {
			t.Errorf("for %s came %s", r.Table, r.Body)
		}
		delete(want, r.Table+r.Key+record+"}")
	}
	if len(want) > 0 {
		t.Errorf("%d records are missing", len(want))
	}
}

// TestReloadTurnsBatchesOn, and off again, without a restart.
func TestReloadTurnsBatchesOn(t *testing.T) {
	v2, g := newStrictV2(t), newSpooling(t)
	arrived := 0
	for _, step := range []struct {
		options []string
		batched bool
	}{
		{nil, false},
		{[]string{`"batch":2`, `"batch_wait":"1m"`}, true},
		{[]string{`"batch":1`}, true},
		{nil, false},
	} {
		g.load(t, g.handler(v2.URL, append(step.options, `"mode":"always"`)...))
		for range 2 {
			if status := g.post(t, `{"a":1}`); status != http.StatusOK {
				t.Fatalf("got %d", status)
			}
		}
		arrived += 2
		_, records := v2.received(t, arrived)
		for _, r := range records[arrived-2:] {
			if r.Batch != step.batched {
				t.Errorf("with %q: %s came by batch: %v", step.options, r.Body, r.Batch)
			}
		}
	}
}
