package integration

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/td-postback/gateway/sandbox"
)

// batchV2 is the strict sandbox as a v2 that takes batches too. It drops repeats by
// their uuid, as v2 does, and knows what it would have if it did not.
type batchV2 struct {
	*httptest.Server
	inner sandbox.Sandbox
	calm  atomic.Bool // it says nothing any more
	lost  atomic.Bool // of startTrouble: an answer was lost

	// says is v2's own word on a request, before it is taken. It may be nil.
	says func(a *batchArrival) batchAnswer

	mu       sync.Mutex
	changed  *sync.Cond
	arrivals []*batchArrival
	taken    map[string]int    // how often a record was taken, by its ID
	came     map[string]int    // the same with the repeats that were dropped
	uuids    map[string]string // of each ID
	ids      map[string]string // and the other way round
}

// batchArrival is a request as it came.
type batchArrival struct {
	batch   bool
	target  string
	header  http.Header
	records []string // of Postback: the body
	at      time.Time
}

// batchAnswer is what v2 does with a request. The zero value: it takes the records.
type batchAnswer struct {
	status int    // 300 and more: takes nothing, and answers this; else the answer, with body
	body   string // after it has taken the records
	failed []bool // fails these records, and takes the others
	lost   bool   // breaks off after it has taken the records
	pause  string // Retry-After
}

// startBatchV2 starts a v2; says may be nil.
func startBatchV2(t *testing.T, says func(a *batchArrival) batchAnswer) *batchV2 {
	v2 := &batchV2{
		says:  says,
		taken: map[string]int{}, came: map[string]int{}, uuids: map[string]string{}, ids: map[string]string{},
	}
	v2.changed = sync.NewCond(&v2.mu)
	v2.inner.Received = func(r sandbox.Record) {
		v2.mu.Lock()
		defer v2.mu.Unlock()
		v2.taken[idOf(string(r.Body))]++
		v2.changed.Broadcast()
	}
	v2.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { v2.serve(t, w, r) }))
	t.Cleanup(v2.Close)
	return v2
}

func (v2 *batchV2) serve(t *testing.T, w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // the gateway was killed
	}
	a := v2.arrive(t, r, body)
	var say batchAnswer
	if v2.says != nil && !v2.calm.Load() {
		say = v2.says(a)
	}
	w.Header().Set("Content-Type", "application/json")
	if say.status >= http.StatusMultipleChoices {
		if say.pause != "" {
			w.Header().Set("Retry-After", say.pause)
		}
		w.WriteHeader(say.status)
		_, _ = io.WriteString(w, `{"error":"so it is"}`)
		return
	}
	answer := v2.take(t, r, a, body, say.failed)
	if say.lost {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		if rand.IntN(2) == 0 { //nolint:gosec // a test's dice
			_, _ = fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%.20s", answer.Body.Len(), answer.Body)
		}
		_ = conn.Close()
		return
	}
	w.WriteHeader(cmp.Or(say.status, answer.Code))
	_, _ = io.WriteString(w, cmp.Or(say.body, answer.Body.String()))
}

// arrive notes a request.
func (v2 *batchV2) arrive(t *testing.T, r *http.Request, body []byte) *batchArrival {
	a := &batchArrival{batch: !strings.HasPrefix(r.URL.Path, "/postback/"), target: r.RequestURI, header: r.Header.Clone(), at: time.Now()}
	if a.batch {
		a.records = recordsIn(t, body)
	} else {
		a.records = []string{string(body)}
	}
	v2.mu.Lock()
	defer v2.mu.Unlock()
	v2.arrivals = append(v2.arrivals, a)
	for _, record := range a.records {
		id, uuid := idOf(record), uuidOf(record)
		if !a.batch || id == "" {
			continue
		}
		if other := cmp.Or(v2.ids[uuid], id); other != id {
			t.Errorf("records %s and %s share the uuid %s", id, other, uuid)
		}
		if other := cmp.Or(v2.uuids[id], uuid); other != uuid {
			t.Errorf("record %s has the uuids %s and %s", id, other, uuid)
		}
		v2.ids[uuid], v2.uuids[id] = id, uuid
	}
	return a
}

// recordsIn are the records in the body of a batch.
func recordsIn(t *testing.T, body []byte) (records []string) {
	unzip, err := gzip.NewReader(bytes.NewReader(body))
	if err != nil {
		t.Error(err)
		return nil
	}
	var all struct{ Events []json.RawMessage }
	if err := json.NewDecoder(unzip).Decode(&all); err != nil {
		t.Error(err)
	}
	for _, record := range all.Events {
		records = append(records, string(record))
	}
	return records
}

// uuidOf is the uuid of a record of a batch.
func uuidOf(record string) string {
	_, uuid, _ := strings.Cut(record, `"uuid":"`)
	uuid, _, _ = strings.Cut(uuid, `"`)
	return uuid
}

// take has the sandbox take the records that do not fail.
func (v2 *batchV2) take(t *testing.T, r *http.Request, a *batchArrival, body []byte, failed []bool) *httptest.ResponseRecorder {
	fails := func(n int) bool { return n < len(failed) && failed[n] }
	answer := httptest.NewRecorder()
	whole := !slices.Contains(failed, true)
	if whole {
		r.Body = io.NopCloser(bytes.NewReader(body))
		v2.inner.ServeHTTP(answer, r)
	} else {
		v2.takeSome(answer, r, a.records, fails)
	}
	if answer.Code >= 300 {
		t.Errorf("the sandbox answers %d: %s", answer.Code, answer.Body)
		return answer
	}
	v2.mu.Lock()
	defer v2.mu.Unlock()
	for n, record := range a.records {
		if !fails(n) {
			v2.came[idOf(record)]++
		}
	}
	return answer
}

// takeSome has the sandbox take some records of a batch, and answers 206 for all.
func (v2 *batchV2) takeSome(answer *httptest.ResponseRecorder, r *http.Request, records []string, fails func(n int) bool) {
	var some []string
	receipts := make([]string, len(records))
	for n, record := range records {
		if receipts[n] = `{"success":true,"uuid":"` + uuidOf(record) + `"}`; fails(n) {
			receipts[n] = `{"success":false,"error":"not this one"}`
		} else {
			some = append(some, record)
		}
	}
	if len(some) > 0 {
		r.Header.Del("Content-Encoding")
		r.Body = io.NopCloser(strings.NewReader(`{"events":[` + strings.Join(some, ",") + `]}`))
		if v2.inner.ServeHTTP(answer, r); answer.Code != http.StatusOK {
			return
		}
	}
	answer.Code, answer.Body = http.StatusPartialContent, bytes.NewBufferString(`{"receipts":[`+strings.Join(receipts, ",")+`]}`)
}

// await waits until v2 has taken these records. It has no limit of time, as long as it
// goes on.
func (v2 *batchV2) await(t *testing.T, ids ...string) {
	t.Helper()
	late := false
	timer := time.AfterFunc(patience, func() { v2.mu.Lock(); late = true; v2.changed.Broadcast(); v2.mu.Unlock() })
	defer timer.Stop()
	v2.mu.Lock()
	defer v2.mu.Unlock()
	for left, came := ids, 0; ; v2.changed.Wait() {
		for len(left) > 0 && v2.taken[left[0]] > 0 {
			left = left[1:]
		}
		switch {
		case len(left) == 0:
			return
		case len(v2.taken) > came:
			came, late = len(v2.taken), false
			timer.Reset(patience)
		case late:
			missing := slices.DeleteFunc(slices.Clone(left), func(id string) bool { return v2.taken[id] > 0 })
			t.Fatalf("%d of %d records are missing at v2, %q", len(missing), len(ids), missing[:min(10, len(missing))])
		}
	}
}

// all is what came so far.
func (v2 *batchV2) all() []*batchArrival {
	v2.mu.Lock()
	defer v2.mu.Unlock()
	return slices.Clone(v2.arrivals)
}

// once checks that v2 has each of these records once. It returns how many it would
// have twice if it did not drop repeats.
func (v2 *batchV2) once(t *testing.T, ids []string) (doubles int) {
	t.Helper()
	v2.mu.Lock()
	defer v2.mu.Unlock()
	missing := 0
	for _, id := range ids {
		switch times := v2.taken[id]; {
		case times == 0:
			missing++
		case times > 1:
			t.Errorf("record %s is at v2 %d times", id, times)
		case v2.came[id] > 1:
			doubles++
		}
	}
	if missing > 0 {
		t.Errorf("%d of %d records are missing", missing, len(ids))
	}
	return doubles
}

// dice is chance in percent.
func dice(percent int) bool { return rand.IntN(100) < percent } //nolint:gosec // a test's dice

// startTrouble starts a v2 that loses answers, the first one among them, fails some
// records of a batch, and is down, each at random, until it is calm.
func startTrouble(t *testing.T) (v2 *batchV2) {
	v2 = startBatchV2(t, func(a *batchArrival) batchAnswer {
		switch {
		case a.batch && v2.lost.CompareAndSwap(false, true) || dice(10):
			return batchAnswer{lost: true}
		case dice(5):
			return batchAnswer{status: http.StatusServiceUnavailable}
		case dice(5):
			return batchAnswer{failed: someOf(a)}
		}
		return batchAnswer{}
	})
	return v2
}

// settle ends the trouble, once an answer was lost.
func (v2 *batchV2) settle(t *testing.T) {
	t.Helper()
	for end := time.Now().Add(patience); !v2.lost.Load(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("no batch has come")
		}
	}
	v2.calm.Store(true)
}

// someOf picks a fifth of the records of a batch.
func someOf(a *batchArrival) []bool {
	some := make([]bool, len(a.records))
	for n := range some {
		some[n] = dice(20)
	}
	return some
}
