package integration

import (
	"cmp"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// always is a spool by which all records go in batches.
const always = "mode always\n batch 500\n "

// sendRecords has callers send these bodies, and checks that each is told 200.
func sendRecords(t *testing.T, addr, target string, bodies []string) {
	t.Helper()
	var all sync.WaitGroup
	for part := range slices.Chunk(bodies, (len(bodies)+7)/8) {
		all.Go(func() {
			own := caller{addr: addr, target: target}
			defer own.close()
			for _, body := range part {
				if answer, err := own.send(body); err != nil || answer.StatusCode != http.StatusOK {
					t.Errorf("%s: %v %v", body, err, answer.Response)
				}
			}
		})
	}
	all.Wait()
}

// numbered are n records, by their IDs and as bodies.
func numbered(prefix string, n int) (ids, bodies []string) {
	ids, bodies = make([]string, n), make([]string, n)
	for i := range n {
		ids[i] = prefix + strconv.Itoa(i)
		bodies[i] = withID(ids[i])
	}
	return ids, bodies
}

// TestBatchPoison sends 2,000 records, 20 of which v2 never takes. It refuses any
// batch that has one of them, whatever the others are. All others arrive within 15
// seconds, and each of these is a dead letter.
func TestBatchPoison(t *testing.T) {
	t.Parallel()
	for name, refuses := range map[string]int{"422": 422, "400": 400, "413": 413, "422 and 206 at random too": 0} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			batchPoison(t, refuses)
		})
	}
}

func batchPoison(t *testing.T, refuses int) {
	isPoison := func(record string) bool { return strings.Contains(record, `"poison"`) }
	v2 := startBatchV2(t, func(a *batchArrival) batchAnswer {
		switch {
		case !a.batch && isPoison(a.records[0]):
			return batchAnswer{status: http.StatusBadRequest}
		case a.batch && slices.ContainsFunc(a.records, isPoison):
			return batchAnswer{status: max(refuses, 400)}
		case refuses > 0:
		case len(a.records) > 1 && dice(10):
			return batchAnswer{status: http.StatusUnprocessableEntity}
		case dice(10):
			return batchAnswer{failed: someOf(a)}
		}
		return batchAnswer{}
	})
	g := serveSpool(t, v2.URL, "", always+"drain_rate 100000")
	const total, each = 2000, 100
	bodies, good := make([]string, total), make([]string, 0, total)
	for n := range bodies {
		if bodies[n] = withID(strconv.Itoa(n)); n%each == each/2 {
			bodies[n] = `{"id":"` + strconv.Itoa(n) + `","poison":true}`
			continue
		}
		good = append(good, strconv.Itoa(n))
	}
	sendRecords(t, g.addr, spoolTarget, bodies)
	sent := time.Now()
	v2.await(t, good...)
	g.awaitState(t, func(s *spoolState) bool { return s.records() == 0 })
	if took := time.Since(sent); took > 15*time.Second && !underRace() {
		t.Errorf("they are through only after %s", took)
	}
	if n := g.state(t).dead(); n != total/each {
		t.Errorf("%d dead letters, want %d", n, total/each)
	}
	if doubles := v2.once(t, good); doubles > 0 {
		t.Errorf("%d records came twice", doubles)
	}
	t.Logf("through after %s, by %d requests", time.Since(sent), len(v2.all()))
}

// TestBatchLeavesNothing sends for some seconds with the default drain_rate, which
// is far less than what comes, to a v2 that is up: nothing is left behind.
func TestBatchLeavesNothing(t *testing.T) {
	t.Parallel()
	v2 := startBatchV2(t, nil)
	g := serveSpool(t, v2.URL, "", always)
	callers := startTraffic(t, g.addr, 16, 1<<30, "")
	time.Sleep(5 * time.Second)
	callers.stop()
	sent := time.Now()
	g.awaitEmpty(t)
	if took := time.Since(sent); took > 10*time.Second {
		t.Errorf("the last record is at v2 %s after it came", took)
	}
	if doubles := v2.once(t, callers.acked); doubles > 0 {
		t.Errorf("%d records came twice", doubles)
	}
	t.Logf("%d records by %d requests, the last one after %s", len(callers.acked), len(v2.all()), time.Since(sent))
}

// TestBatchOfOne has a record that no other comes to.
func TestBatchOfOne(t *testing.T) {
	t.Parallel()
	v2 := startBatchV2(t, nil)
	g := serveSpool(t, v2.URL, "", always+"batch_wait 500ms")
	for n := range 3 {
		id := strconv.Itoa(n)
		isTaken(t, raw(t, g.addr, post(spoolTarget, asJSON, withID(id))))
		sent := time.Now()
		v2.await(t, id)
		if took := time.Since(sent); took > 1500*time.Millisecond { // and what a busy machine takes
			t.Errorf("it came after %s", took)
		}
	}
	if all := v2.all(); len(all) != 3 || !all[0].batch {
		t.Errorf("got %d requests, %+v", len(all), all[0])
	}
}

// batchAloneCases are requests that a batch cannot be made of without loss, beside
// those of keptCases.
var batchAloneCases = []keptCase{
	{name: "a column uuid", request: post(spoolTarget, asJSON, `{"uuid":"mine"}`)},
	{name: "a column uuid that is one", request: post(spoolTarget, asJSON, `{"a":1,"uuid":"08289530-0000-4000-8000-00000000000a"}`)},
	{name: "a column uuid in capitals and escapes", request: post(spoolTarget, asJSON, `{"a":1,"U\u0055ID":1}`)},
	{name: "both times", request: post(spoolTarget, asJSON, `{"td_record_time":`+minuteAgo+`,"time":`+minuteAgo+`}`)},
	{name: "time twice", request: post(spoolTarget, asJSON, `{"time":`+minuteAgo+`,"time":`+minuteAgo+`}`)},
	{name: "no UTF-8", request: post(spoolTarget, asJSON, "{\"a\":\"\xff\"}")},
	{name: "more than a batch's record may have", request: post(spoolTarget, asJSON, objectOf(999_980))},
	{name: "a parameter beside the key", request: post(spoolTarget+"&a=1", asJSON, object)},
}

// aloneKept are those of keptCases that go alone.
var aloneKept = []string{
	"encoded slash, odd query", "pixel beside an object",
	"as large as can be with a time", "too large for a time", "the largest",
	"a td_record_time that v2 cannot use", "a time that v2 cannot use",
	"compressed", "with a digest", "an array", "two objects", "no JSON", "half an object",
}

// TestBatchDeliversTheSame sends requests of every kind through a gateway without
// batches, and through one with them. What can be a record of a batch arrives as the
// same record, but for its uuid and the name of its time. What cannot goes by
// Postback, exactly as without batches.
func TestBatchDeliversTheSame(t *testing.T) {
	t.Parallel()
	v2 := startBatchV2(t, nil)
	v2.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// It takes everything: what is no record too.
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		w.Header().Set("Content-Type", "application/json")
		if v2.arrive(t, r, body).batch {
			_, _ = io.WriteString(w, `{"receipts":[{"success":true}]}`)
		} else {
			_, _ = io.WriteString(w, "{}")
		}
	})
	const options = "redirect_hosts shop.example"
	alone, batched := serveSpool(t, v2.URL, options, "mode always"), serveSpool(t, v2.URL, options, always+"batch_wait 1ms")
	for n, tc := range slices.Concat(keptCases, batchAloneCases) {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			table := "/t" + strconv.Itoa(n)
			var came [2]*batchArrival
			for i, g := range []*spooling{alone, batched} {
				tc.check(t, raw(t, g.addr, strings.Replace(tc.request, "/tbl", table, 1)))
				came[i] = v2.awaitTable(t, table, i)
			}
			goesAlone := n >= len(keptCases) || slices.Contains(aloneKept, tc.name)
			if came[0].batch || came[1].batch == goesAlone {
				t.Fatalf("by batch: %v, %v", came[0].batch, came[1].batch)
			}
			compareBatched(t, came[0], came[1])
		})
	}
}

// awaitTable waits for the request after the first n that is for a table.
func (v2 *batchV2) awaitTable(t *testing.T, table string, n int) *batchArrival {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(time.Millisecond) {
		var found []*batchArrival
		for _, a := range v2.all() {
			if path, _, _ := strings.Cut(a.target, "?"); strings.HasSuffix(path, table) {
				found = append(found, a)
			}
		}
		if len(found) > n {
			return found[n]
		}
	}
	t.Fatalf("nothing came for %s", table)
	return nil
}

var (
	batchUUID  = regexp.MustCompile(`,?"uuid":"[0-9a-f-]{36}"}\s*$`)
	recordTime = regexp.MustCompile(`"td_record_time":\d+`)
)

// compareBatched compares a record that came by Postback with the same one that came
// by batch, or alone.
func compareBatched(t *testing.T, alone, batched *batchArrival) {
	t.Helper()
	const seconds = `"td_record_time":0` // they came one after the other
	want := recordTime.ReplaceAllString(alone.records[0], seconds)
	if !batched.batch {
		delete(alone.header, "Content-Length")
		delete(batched.header, "Content-Length")
		if alone.target != batched.target || !reflect.DeepEqual(alone.header, batched.header) {
			t.Errorf("got %s %q, without batches %s %q", batched.target, batched.header, alone.target, alone.header)
		}
		if got := recordTime.ReplaceAllString(batched.records[0], seconds); got != want {
			t.Errorf("got %.200q, without batches %.200q", got, want)
		}
		return
	}
	got := batched.records[0]
	if len(batched.records) != 1 || !batchUUID.MatchString(got) {
		t.Fatalf("got %d records, %.200q", len(batched.records), got)
	}
	got = batchUUID.ReplaceAllString(got, "}")
	want = strings.TrimSpace(want) // which is none of the record's
	if at := strings.Index(want, seconds); at >= 0 && len(got) > at {
		got = got[:at] + strings.Replace(got[at:], `"time":`, `"td_record_time":`, 1)
	}
	if got = recordTime.ReplaceAllString(got, seconds); got != want {
		t.Errorf("got %.200q, without batches %.200q", got, want)
	}
	key := cmp.Or(alone.header.Get("Authorization"), "TD1 "+alone.header.Get("X-TD-Write-Key"))
	if target := "/postback/v3/event" + batched.target; target != alone.target || batched.header.Get("Authorization") != key {
		t.Errorf("got %s %q, without batches %s %q", batched.target, batched.header, alone.target, alone.header)
	}
}

// TestBatchTurnedOff loses the answer to a batch and turns batches off. The records
// come again by batch, with the same uuids: there v2 drops the repeats. What comes
// then goes by Postback.
func TestBatchTurnedOff(t *testing.T) {
	t.Parallel()
	var lost atomic.Bool
	v2 := startBatchV2(t, func(*batchArrival) batchAnswer { return batchAnswer{lost: lost.CompareAndSwap(false, true)} })
	g := serveSpool(t, v2.URL, "", always)
	ids, bodies := numbered("", 100)
	sendRecords(t, g.addr, spoolTarget, bodies)
	for !lost.Load() {
		time.Sleep(time.Millisecond)
	}
	if status, problem := reload(t, g.admin, strings.Replace(g.caddyfile, "batch 500", "", 1)); status != http.StatusOK {
		t.Fatal(problem)
	}
	isTaken(t, raw(t, g.addr, post(spoolTarget, asJSON, withID("after"))))
	v2.await(t, slices.Concat(ids, []string{"after"})...)
	g.awaitEmpty(t)
	if doubles := v2.once(t, ids); doubles == 0 {
		t.Error("no record came twice: none was lost")
	}
	repeats := 0
	for _, a := range v2.all() {
		if !a.batch {
			if id := idOf(a.records[0]); id != "after" && v2.uuids[id] != "" {
				t.Errorf("record %s came by batch, and then by Postback", id)
			}
			continue
		}
		repeats++
	}
	if repeats < 2 {
		t.Errorf("%d batches", repeats)
	}
}

// TestBatchReload turns batches on, off and to other sizes while callers send. When
// nothing fails, no record comes twice.
func TestBatchReload(t *testing.T) {
	t.Parallel()
	v2 := startBatchV2(t, nil)
	g := serveSpool(t, v2.URL, "", "mode always")
	callers := startTraffic(t, g.addr, 4, 1<<30, "")
	for _, spool := range []string{"batch 500", "batch 1", "", "batch 20\n batch_wait 1s", "batch 500\n batch_wait 1ms"} {
		if status, problem := reload(t, g.admin, strings.Replace(g.caddyfile, "mode always", "mode always\n "+spool, 1)); status != http.StatusOK {
			t.Fatal(problem)
		}
		callers.await(t, 200)
	}
	callers.stop()
	g.awaitEmpty(t)
	if doubles := v2.once(t, callers.acked); doubles > 0 {
		t.Errorf("%d records came twice", doubles)
	}
	single, batches, largest := 0, 0, 0
	for _, a := range v2.all() {
		if largest = max(largest, len(a.records)); a.batch {
			batches++
		} else {
			single++
		}
	}
	if single < 100 || batches < 100 || largest < 5 {
		t.Errorf("%d single records, %d batches, the largest of %d", single, batches, largest)
	}
}

// batchAnswerCases are answers of v2 to batches, and what becomes of the records.
var batchAnswerCases = []struct {
	name   string
	answer batchAnswer
	always bool   // to all batches, not only to the first
	goes   string // how v2 takes the records in the end: by batch, by Postback, not
	twice  bool   // they come twice, and the repeat is dropped
}{
	{name: "200 without receipts", answer: batchAnswer{status: 200, body: "{}"}, goes: byBatch},
	{name: "200 with too few", answer: batchAnswer{status: 200, body: `{"receipts":[]}`}, goes: byBatch, twice: true},
	{name: "206 without receipts", answer: batchAnswer{status: 206, body: "{}"}, goes: byBatch, twice: true},
	{name: "206, and garbage", answer: batchAnswer{status: 206, body: strings.Repeat("x", 1<<20)}, goes: byBatch, twice: true},
	{name: "an answer that is broken off", answer: batchAnswer{lost: true}, goes: byBatch, twice: true},
	{name: "408", answer: batchAnswer{status: 408}, goes: byBatch},
	{name: "429", answer: batchAnswer{status: 429}, goes: byBatch},
	{name: "500", answer: batchAnswer{status: 500}, goes: byBatch},
	{name: "503", answer: batchAnswer{status: 503}, goes: byBatch},
	{name: "401", answer: batchAnswer{status: 401}, always: true, goes: notAtAll},
	{name: "403", answer: batchAnswer{status: 403}, always: true, goes: notAtAll},
	{name: "404", answer: batchAnswer{status: 404}, always: true, goes: byPostback},
	{name: "405", answer: batchAnswer{status: 405}, always: true, goes: byPostback},
	{name: "415", answer: batchAnswer{status: 415}, always: true, goes: byPostback},
	{name: "a redirect", answer: batchAnswer{status: 307}, always: true, goes: byPostback},
}

const (
	byBatch    = "by batch"
	byPostback = "by Postback"
	notAtAll   = "not at all: dead letters"
)

// TestBatchAnswers has v2 answer batches in every way, always or but once. Each case
// has a table and an account of its own.
func TestBatchAnswers(t *testing.T) {
	t.Parallel()
	met := make([]atomic.Bool, len(batchAnswerCases))
	v2 := startBatchV2(t, func(a *batchArrival) batchAnswer {
		n, _ := strconv.Atoi(strings.TrimPrefix(a.target, "/db/tbl"))
		if tc := batchAnswerCases[n]; a.batch && (!met[n].Swap(true) || tc.always) {
			return tc.answer
		}
		return batchAnswer{}
	})
	g := serveSpool(t, v2.URL, "", always)
	for n, tc := range batchAnswerCases {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			ids, bodies := numbered(strconv.Itoa(n)+"-", 20)
			table := "/tbl" + strconv.Itoa(n)
			sendRecords(t, g.addr, fmt.Sprintf("/postback/v3/event/db%s?td_write_key=%d/%s", table, 1000+n, spoolSecret), bodies)
			if tc.goes == notAtAll {
				g.awaitDead(t, table, tc.answer.status, len(bodies))
				return
			}
			g.awaitGone(t, table)
			want := 0
			if tc.goes == byPostback {
				want = len(bodies)
			}
			if got := v2.singles(table); got != want {
				t.Errorf("%d records came by Postback, want %d", got, want)
			}
			if doubles := v2.once(t, ids); (doubles > 0) != tc.twice {
				t.Errorf("%d records came twice", doubles)
			}
		})
	}
}

// awaitDead waits until so many dead letters of a table have this status.
func (g *spooling) awaitDead(t *testing.T, table string, status, n int) {
	t.Helper()
	g.awaitState(t, func(*spoolState) bool {
		var letters []letter
		askAdmin(t, http.MethodGet, g.admin, "spool/records?dead=true", &letters)
		letters = slices.DeleteFunc(letters, func(l letter) bool { return !strings.HasSuffix(l.Path, table) || l.Status != status })
		return len(letters) == n
	})
}

// awaitGone waits until no record of a table is kept.
func (g *spooling) awaitGone(t *testing.T, table string) {
	t.Helper()
	g.awaitState(t, func(*spoolState) bool {
		var kept []letter
		askAdmin(t, http.MethodGet, g.admin, "spool/records", &kept)
		return !slices.ContainsFunc(kept, func(l letter) bool { return strings.HasSuffix(l.Path, table) })
	})
}

// singles counts what came by Postback for a table.
func (v2 *batchV2) singles(table string) (n int) {
	for _, a := range v2.all() {
		if path, _, _ := strings.Cut(a.target, "?"); !a.batch && strings.HasSuffix(path, table) {
			n++
		}
	}
	return n
}
