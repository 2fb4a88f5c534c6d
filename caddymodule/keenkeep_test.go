package caddymodule

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/td-postback/gateway/postback"
	"github.com/td-postback/gateway/spool"
)

// withSpool gives a handler a spool on disk, which delivers.
func withSpool(t *testing.T, h *Handler, options Spool) spool.Log {
	t.Helper()
	options.Dir = t.TempDir()
	options.applyDefaults()
	h.Spool, h.MaxConns, h.Retries = &options, 8, new(int)
	h.DialTimeout, h.ResponseTimeout = caddy.Duration(time.Second), caddy.Duration(h.single.Timeout)
	shared := h.Spool.shared(options.Dir, nil)
	if err := shared.Open(); err != nil {
		t.Fatal(err)
	}
	block := h.spoolBlock()
	h.single.queue = shared.Attach(block)[h.single.url.String()]
	shared.Accept(block)
	t.Cleanup(func() {
		shared.Detach(block)
		if err := shared.Close(); err != nil {
			t.Error(err)
		}
	})
	return shared.Log()
}

// keptEvents are the events that a spool holds, in order, and the requests by which
// they are to go.
func keptEvents(t *testing.T, log spool.Log) (requests, events []string) {
	t.Helper()
	for _, queue := range log.Queues() {
		entries, err := log.Records(queue, 0, 1000)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			kept, err := postback.ReadKept(e.Data)
			if err != nil {
				t.Fatal(err)
			}
			requests = append(requests, kept.Path)
			if _, several, ok := eventsOf(e.Data); ok {
				for _, event := range several {
					events = append(events, string(event))
				}
			} else {
				events = append(events, string(kept.Body))
			}
		}
	}
	return requests, events
}

// isDown answers as a v2 that is down.
func isDown(w http.ResponseWriter, r *http.Request) {
	_ = batchRecordsOf(r)
	w.WriteHeader(http.StatusServiceUnavailable)
}

// keptCall has events of every sort.
const (
	keptCall = `{"db.a":[{"#UUID":"08289530-0000-4000-8000-00000000000a","n":0,"keen":{"timestamp":"2026-11-25T02:23:55Z"}},{"n":1,"#SSUT":true}],` +
		`"db.b":[{"uuid":"mine","n":2,"keen":{"timestamp":"2026-11-25T02:23:55Z"}},7]}`
	keptCallAnswer = `{"db.a":[{"success":true},{"success":true}],"db.b":[{"success":true},` +
		`{"success":false,"error":{"name":"InvalidPropertyValueError","description":"the event must be a JSON object"}}]}`
)

// TestKeenKept: in either mode, a call gets 200 when its events are kept, and v2 gets
// each of them once when it takes them: the same as it would have got at once, and the
// time at which they came.
func TestKeenKept(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{spoolOnFailure, spoolAlways} {
		for name, say := range map[string]http.HandlerFunc{
			"503": isDown, "garbage": hijacked("no HTTP\r\n\r\n"), "half an answer": hijacked("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"),
			"500": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) },
			"408": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(408) },
			"206": func(w http.ResponseWriter, r *http.Request) {
				if strings.HasPrefix(r.URL.Path, "/postback/") { // it has no receipts
					isDown(w, r)
					return
				}
				receipts(206, func(int, string) bool { return false })(w, r)
			},
		} {
			t.Run(mode+" "+name, func(t *testing.T) {
				t.Parallel()
				v2 := newKeenV2(t)
				v2.says(say)
				log := withSpool(t, v2.h, Spool{Mode: mode})
				from := time.Now().Unix()
				w := askKeen(t, v2.h, keenRequest(keenPath, keptCall))
				to := time.Now().Unix()
				if w.Code != 200 || w.Body.String() != keptCallAnswer || w.Header().Get("Content-Type") != "application/json" {
					t.Fatalf("answered %d %q %s", w.Code, w.Header(), w.Body)
				}
				v2.says(nil)
				var came []string
				eventually(t, "v2 gets all of them", func() bool { came = append(came, v2.came()...); return len(came) >= 3 })
				eventually(t, "the spool is empty", func() bool { requests, _ := keptEvents(t, log); return len(requests) == 0 })
				came = append(came, v2.came()...)
				timed := slices.IndexFunc(came, func(record string) bool { return strings.Contains(record, `"n":1`) })
				if len(came) != 3 || timed < 0 || !slices.Contains(came, "db.a 08289530-0000-4000-8000-00000000000a "+keenKey+` {"n":0,"time":1795573435}`) ||
					!slices.Contains(came, "db.b alone "+keenKey+` {"uuid":"mine","n":2,"td_record_time":1795573435}`) {
					t.Fatalf("v2 has %q", came)
				}
				var event struct{ Time int64 }
				_ = json.Unmarshal([]byte(came[timed][strings.IndexByte(came[timed], '{'):]), &event)
				if event.Time < from || event.Time > to {
					t.Errorf("v2 has %q", came[timed])
				}
			})
		}
	}
}

// TestKeenKeptAtOnce: events are kept without asking a v2 that is taken to be down, or
// that has paused their account; another account's go on.
func TestKeenKeptAtOnce(t *testing.T) {
	t.Parallel()
	var asked atomic.Int32 // for what is not delivered from the spool
	v2 := newKeenV2(t)
	log := withSpool(t, v2.h, Spool{})
	v2.says(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		if strings.Contains(r.Header.Get("Authorization"), " 5678/") {
			w.Header().Set("Retry-After", "3600")
			w.WriteHeader(429)
			return
		}
		receipts(200, func(int, string) bool { return true })(w, r)
	})
	ask := func(key string) int {
		return askKeen(t, v2.h, keenRequest("/js/v3/event", `{"db.tbl":[{"n":1}]}`, "X-Td-Write-Key", key)).Code
	}
	if got := ask("5678/bb"); got != 200 {
		t.Errorf("got %d", got)
	}
	limited := asked.Load()
	if got := ask("5678/cc"); got != 200 || asked.Load() != limited {
		t.Errorf("got %d, and v2, which has paused the account, %d requests", got, asked.Load()-limited)
	}
	if requests, _ := keptEvents(t, log); len(requests) != 2 {
		t.Errorf("%d requests are kept", len(requests))
	}
	if got := ask("1234/aa"); got != 200 || asked.Load() != limited+1 {
		t.Errorf("another account got %d", got)
	}

	v2.says(func(w http.ResponseWriter, r *http.Request) { w.Header().Set("Retry-After", "3600"); isDown(w, r) })
	for range 5 {
		if got := ask("1234/aa"); got != 200 {
			t.Fatalf("got %d", got)
		}
	}
	if !v2.h.single.queue.IsOpen() {
		t.Error("v2 is not taken to be down")
	}
	v2.says(func(http.ResponseWriter, *http.Request) { t.Error("v2 is asked") })
	if got := ask("1234/aa"); got != 200 {
		t.Errorf("got %d", got)
	}
	v2.says(nil)
}

// TestKeenKeptRest: only those events are kept that v2 has not taken, and none that it
// refuses for good.
func TestKeenKeptRest(t *testing.T) {
	t.Parallel()
	v2 := newKeenV2(t)
	log := withSpool(t, v2.h, Spool{})
	// What v2 does not take is answered when all else is asked: after that answer the
	// call asks no more.
	taken, refused, partly := make(chan struct{}), make(chan struct{}), make(chan struct{})
	isTaken, isRefused, isPartly := sync.OnceFunc(func() { close(taken) }), sync.OnceFunc(func() { close(refused) }), sync.OnceFunc(func() { close(partly) })
	await := func(asked ...chan struct{}) {
		for _, table := range asked {
			select {
			case <-table:
			case <-t.Context().Done():
			}
		}
	}
	v2.says(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasPrefix(r.URL.Path, "/db/taken"):
			isTaken()
			receipts(200, func(int, string) bool { return true })(w, r)
		case strings.HasPrefix(r.URL.Path, "/db/refused"):
			isRefused()
			_ = batchRecordsOf(r)
			w.WriteHeader(422)
		case strings.HasPrefix(r.URL.Path, "/db/partly"):
			isPartly()
			await(taken, refused)
			receipts(206, func(n int, record string) bool { return !strings.Contains(record, `"left"`) })(w, r)
		default:
			await(taken, refused, partly)
			isDown(w, r)
		}
	})
	w := askKeen(t, v2.h, keenRequest(keenPath, `{"db.taken":[{"n":0}],"db.refused":[{"n":1}],"db.partly":[{"n":2},{"n":3,"a":"left"},{"n":4}],"db.down":[{"n":5},{"uuid":"mine"},[]],"x":[{}]}`))
	if w.Code != 200 || strings.Count(w.Body.String(), `"success":true`) != 6 || strings.Count(w.Body.String(), "InvalidPropertyValueError") != 2 || strings.Count(w.Body.String(), "InvalidCollectionNameError") != 1 {
		t.Errorf("answered %d %s", w.Code, w.Body)
	}
	requests, events := keptEvents(t, log)
	if !slices.Equal(requests, []string{"/db/partly", "/db/down", "/postback/v3/event/db/down"}) {
		t.Errorf("kept are requests to %q", requests)
	}
	if len(events) != 3 || !strings.HasPrefix(events[0], `{"n":3,`) || !strings.HasPrefix(events[1], `{"n":5,`) || !strings.HasPrefix(events[2], `{"uuid":"mine","td_record_time":`) {
		t.Errorf("kept are %q", events)
	}
}

// TestKeenKeptUUID: an event keeps its uuid, sent and kept, also a random one.
func TestKeenKeptUUID(t *testing.T) {
	t.Parallel()
	v2 := newKeenV2(t)
	log := withSpool(t, v2.h, Spool{})
	var sent atomic.Pointer[[]string]
	v2.says(func(w http.ResponseWriter, r *http.Request) {
		records := batchRecordsOf(r)
		sent.CompareAndSwap(nil, &records)
		w.WriteHeader(500)
	})
	askKeen(t, v2.h, keenRequest(keenPath, `{"db.tbl":[{"n":0},{"n":1}]}`))
	_, kept := keptEvents(t, log)
	uuid := func(record string) string {
		var event struct{ UUID string }
		_ = json.Unmarshal([]byte(record), &event)
		return event.UUID
	}
	for n, record := range *sent.Load() {
		if uuid(record) == "" || uuid(record) != uuid(kept[n]) {
			t.Errorf("sent %s, kept %s", record, kept[n])
		}
	}
}

// TestKeenKeptNot: what v2 refuses, or what cannot be kept, is told as without a spool,
// and nothing is kept.
func TestKeenKeptNot(t *testing.T) {
	t.Parallel()
	large := `{"db.a":[{"a":"` + strings.Repeat("x", 600_000) + `"}],"db.b":[{"a":"` + strings.Repeat("x", 600_000) + `"}],"db.c":[{}]}`
	for name, tc := range map[string]struct {
		options Spool
		say     http.HandlerFunc
		change  func(h *Handler)
		status  int
		code    string
	}{
		"403":                   {say: v2States()["403 {}"], status: 403, code: "invalid_write_key"},
		"401":                   {say: v2States()["401 {}"], status: 401, code: "invalid_write_key"},
		"full, v2 down":         {options: Spool{MaxSize: 1 << 20}, say: isDown, status: 503, code: "spool_full"},
		"full, always, v2 down": {options: Spool{MaxSize: 1 << 20, Mode: spoolAlways}, say: isDown, status: 503, code: "spool_full"},
		"full, always, v2 up":   {options: Spool{MaxSize: 1 << 20, Mode: spoolAlways}, status: 200},
		"no memory":             {say: isDown, change: func(h *Handler) { h.bodies.maxTotal = 4 << 20 }, status: 503, code: "overloaded"},
		"no memory, always":     {options: Spool{Mode: spoolAlways}, change: func(h *Handler) { h.bodies.maxTotal = 4 << 20 }, status: 503, code: "overloaded"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v2 := newKeenV2(t)
			v2.says(tc.say)
			log := withSpool(t, v2.h, tc.options)
			if tc.change != nil {
				tc.change(v2.h)
			}
			w := askKeen(t, v2.h, keenRequest(keenPath, large))
			var said struct{ Error string }
			_ = json.Unmarshal(w.Body.Bytes(), &said)
			if w.Code != tc.status || said.Error != tc.code {
				t.Errorf("answered %d %.300s", w.Code, w.Body)
			}
			if requests, _ := keptEvents(t, log); len(requests) > 0 {
				t.Errorf("kept are requests to %q", requests)
			}
		})
	}
}

// TestKeenKeptMemory: whatever room there is, a call is taken or kept, or refused with
// 503 and not kept; nothing of it stays counted. There may be room to keep it and none
// to send it.
func TestKeenKeptMemory(t *testing.T) {
	t.Parallel()
	text := compressed(t, "zlib", `{"db.tbl":[`+strings.Repeat(`{"a":"`+strings.Repeat("x", 300)+`"},`, 1000)+`{}]}`)
	for _, mode := range []string{spoolOnFailure, spoolAlways} {
		for _, up := range []bool{true, false} {
			v2 := newKeenV2(t)
			v2.says(receipts(200, func(int, string) bool { return up }))
			log := withSpool(t, v2.h, Spool{Mode: mode})
			taken := int64(0)
			for room := int64(256 << 10); room < 8<<20; room += room/3 + 1 {
				v2.h.bodies.maxTotal = room
				w := askKeen(t, v2.h, keenRequest(keenPath, text, "Content-Encoding", "deflate"))
				switch {
				case w.Code == 200 && taken == 0:
					taken = room
				case w.Code != 200 && (w.Code != 503 || taken > 0):
					t.Errorf("%s, %v: room of %d bytes: got %d %.200q", mode, up, room, w.Code, w.Body)
				case w.Code == 503:
					if requests, _ := keptEvents(t, log); len(requests) > 0 {
						t.Errorf("%s, %v: room of %d bytes: %d requests are kept", mode, up, room, len(requests))
					}
				}
			}
			if taken < 1<<20 || taken > 3<<20 {
				t.Errorf("%s, %v: taken with room of %d bytes", mode, up, taken)
			}
		}
	}
}

// TestKeenKeptLive: drain_rate does not hold up a call that has just been kept, however
// many events it has.
func TestKeenKeptLive(t *testing.T) {
	t.Parallel()
	v2 := newKeenV2(t)
	log := withSpool(t, v2.h, Spool{Mode: spoolAlways, DrainRate: 1})
	text := `{"db.a":[` + strings.Repeat(`{"n":0},`, 1200) + `{"n":1}],"db.b":[{"uuid":"mine"},{"uuid":"mine, too"}]}`
	for range 2 {
		if w := askKeen(t, v2.h, keenRequest(keenPath, text)); w.Code != 200 {
			t.Fatalf("answered %d %s", w.Code, w.Body)
		}
		eventually(t, "the spool is empty", func() bool { requests, _ := keptEvents(t, log); return len(requests) == 0 })
	}
}

// TestKeenDoubtLate: when a call has ended, nothing changes what it counts of events
// that v2 may have: that is read without the mutex.
func TestKeenDoubtLate(t *testing.T) {
	k := &keenCall{}
	sent, idle := &postback.KeenEvent{}, &postback.KeenEvent{}
	k.doubt(sent, true)
	k.end()
	k.doubt(sent, false)
	k.doubt(idle, true)
	if len(k.unsure) != 1 || !k.unsure[sent] {
		t.Errorf("%d events are unsure", len(k.unsure))
	}
	k = &keenCall{}
	k.end()
	if k.doubt(idle, true); k.unsure != nil {
		t.Error("a call that has ended has written")
	}
}

// TestKeenKeptLate: when v2 does not answer in time, the events are kept, also those
// that are on the way. One that goes alone may come twice then, and is counted.
func TestKeenKeptLate(t *testing.T) {
	v2 := newKeenV2(t)
	v2.says(v2States()["slow"])
	v2.h = keenHandler(t, "http://"+v2.h.single.host, 100*time.Millisecond)
	log := withSpool(t, v2.h, Spool{})
	for _, tc := range []struct {
		body    string
		doubles float64
	}{
		{`{"db.a":[{"n":0}],"db.b":[{"n":1},{"uuid":"mine"}]}`, 0},
		{`{"db.tbl":[{"uuid":"mine"},{"uuid":"mine, too"}]}`, 2},
	} {
		before := sums(t, spoolDuplicates)
		_, earlier := keptEvents(t, log)
		w := askKeen(t, v2.h, keenRequest(keenPath, tc.body))
		if w.Code != 200 || strings.Contains(w.Body.String(), "false") {
			t.Errorf("%s: answered %d %s", tc.body, w.Code, w.Body)
		}
		if _, events := keptEvents(t, log); len(events)-len(earlier) != strings.Count(w.Body.String(), "true") {
			t.Errorf("%s: kept are %q", tc.body, events)
		}
		if after := sums(t, spoolDuplicates); after[0]-before[0] < tc.doubles || tc.doubles == 0 && after[0] != before[0] {
			t.Errorf("%s: counted %v", tc.body, after[0]-before[0])
		}
		v2.h.single.queue.Success()
	}
}

// TestKeenKeptAlone: an event that goes alone, and that has not gone when the rest is
// kept, does not go: v2 would not drop the kept one as a repeat.
func TestKeenKeptAlone(t *testing.T) {
	v2 := newKeenV2(t)
	withSpool(t, v2.h, Spool{})
	k := &keenCall{h: v2.h, until: time.Now().Add(time.Minute)}
	k.to, k.WriteKey = v2.h.single, keenKey
	if refused, because := k.end(); refused != nil {
		t.Fatal(refused, because)
	}
	k.sendAlone(postback.Destination{Database: "db", Table: "tbl"}, &postback.KeenEvent{Record: []byte(`{"uuid":"mine"}`), Alone: true})
	if came := v2.came(); len(came) > 0 {
		t.Errorf("v2 has got %q", came)
	}
}

// TestKeenKeptOutcome: a call whose events are kept is counted as spooled, and its kept
// requests by the time of their events.
func TestKeenKeptOutcome(t *testing.T) {
	v2 := newKeenV2(t)
	v2.says(isDown)
	withSpool(t, v2.h, Spool{})
	for body, result := range map[string]string{
		`{"db.a":[{"n":0}],"db.b":[{"time":1795573435},{"uuid":"mine"}]}`:   spooledResult,
		`{"db.a":[{"n":0},1],"db.b":[{"time":1795573435},{"uuid":"mine"}]}`: someRefusedResult,
	} {
		counter := requestsTotal.WithLabelValues("mobile", "header", "v2", result)
		before := sums(t, counter, spoolTimes[postback.TimeAdded], spoolTimes[postback.TimeOwn])
		askKeen(t, v2.h, keenRequest(keenPath, body))
		after := sums(t, counter, spoolTimes[postback.TimeAdded], spoolTimes[postback.TimeOwn])
		for n, want := range []float64{1, 2, 1} {
			if after[n]-before[n] != want {
				t.Errorf("%s: %d: counted %v", body, n, after[n]-before[n])
			}
		}
	}
}

// TestKeenKeptWarns: that events are kept is told once a minute, without a key.
func TestKeenKeptWarns(t *testing.T) {
	for name, tc := range map[string]struct {
		of           *warning
		state        string
		full         bool
		says, advice string
	}{
		"503":           {&keptWarning, "503 nothing", false, "record kept for later", "delivered when it takes them again"},
		"429":           {&keptLimitWarning, "429 {}", false, "record kept for later", "rate limit"},
		"404":           {&eventsLeftWarning, "404 {}", false, "did not take all events", "the events are kept"},
		"206":           {&eventsLeftWarning, "206 with all that fail", false, "did not take all events", "the events are kept"},
		"403":           {&refusalWarnings[3], "403 {}", false, "refused a record", "compare the caller's key"},
		"503, and full": {&answerWarning, "503 nothing", true, "did not take a record", "send all of their events again"},
		"full":          {&unkeptWarning, "503 nothing", true, "neither delivered nor kept", "raise it"},
	} {
		t.Run(name, func(t *testing.T) {
			v2 := newKeenV2(t)
			v2.says(v2States()[tc.state])
			options, body := Spool{}, `{"db.tbl":[{}]}`
			if tc.full {
				options.MaxSize, body = 1<<20, `{"db.tbl":[{"a":"`+strings.Repeat("x", 900_000)+`"}]}`
			}
			withSpool(t, v2.h, options)
			core, logs := observer.New(zap.WarnLevel)
			v2.h.logger = zap.New(core)
			tc.of.last.Store(0)
			for range 2 {
				askKeen(t, v2.h, keenRequest(keenPath, body))
			}
			all := logs.FilterMessageSnippet(tc.says).All()
			if len(all) != 1 || !strings.Contains(fmt.Sprint(all[0].ContextMap()["advice"]), tc.advice) {
				t.Fatalf("told %v", logs.All())
			}
			if text := fmt.Sprint(all[0].ContextMap()); strings.Contains(text, keenKey) || !strings.Contains(text, "account:1234/") || tc.of != &unkeptWarning && !strings.Contains(text, "events:1 ") {
				t.Errorf("told %s", text)
			}
		})
	}
}

// TestKeenKeptSize: a kept request has at most as many bytes as the spool is to take,
// and 500 events.
func TestKeenKeptSize(t *testing.T) {
	event := `{"a":"` + strings.Repeat("x", 300_000) + `"},`
	reader := postback.KeenReader{Arrival: time.Now(), Random: randomUUID, Hold: func(int) bool { return true }}
	events, refused := reader.Read([]byte(`{"db.large":[`+strings.Repeat(event, 40)+`{}],"db.many":[`+strings.Repeat("{},", 1200)+`{}]}`), true)
	if refused != nil {
		t.Fatal(refused)
	}
	for options, most := range map[*Spool]int{{}: 5_000_000, {NATS: []string{"nats://a"}}: 2_000_000} {
		k := &keenCall{h: &Handler{Spool: options}, call: call{to: &route{host: "v2"}, arrival: time.Now()}}
		k.WriteKey = keenKey
		batches := events.Batches(k.mostKept())
		records, _ := k.toKeep(batches, events)
		count, largest, held := 0, 0, 0
		for _, r := range records {
			group, several, ok := eventsOf(r.Data)
			if to, parsed := postback.ParseBatchGroup(group); !ok || !parsed || to.Key != keenKey || len(several) > 500 {
				t.Fatalf("%q with %d events", group, len(several))
			}
			count += len(several)
			_, body, _ := bytes.Cut(r.Data, []byte("\r\n\r\n"))
			largest = max(largest, len(body)-len(`{"events":}`))
			held += len(r.Data)
		}
		if count != 1242 || largest > most || largest < most-400_000 {
			t.Errorf("%d events in %d requests, the largest with %d bytes", count, len(records), largest)
		}
		if room := k.roomToKeep(batches, events); room < keptCopies*held*9/10 || room > keptCopies*held*2 {
			t.Errorf("%d bytes are counted for %d", room, held)
		}
	}
}

// TestRestOf: the rest of a kept request has only the events that are left.
func TestRestOf(t *testing.T) {
	group := postback.BatchGroup{Database: "db", Table: "tbl", Key: keenKey}
	whole := postback.KeptBatch{BatchGroup: group, Host: "v2", Records: [][]byte{[]byte(`{"n":0}`), []byte(`{"n":1}`), []byte(`{"n":2}`)}}
	name, events, ok := eventsOf(restOf(whole.Append(nil), []int{0, 2}))
	if !ok || name != group.String() || len(events) != 2 || string(events[0]) != `{"n":0}` || string(events[1]) != `{"n":2}` {
		t.Errorf("left are %q of %q", events, name)
	}
	if _, _, ok := eventsOf(keptBody(`{"events":[{}]}`)); ok {
		t.Error("a record is read as several events")
	}
}

// TestAndroidNeverLoopsWithASpool: the same as without one, in every state of v2.
func TestAndroidNeverLoopsWithASpool(t *testing.T) {
	t.Parallel()
	for name, say := range v2States() {
		for _, mode := range []string{spoolOnFailure, spoolAlways} {
			t.Run(mode+" "+name, func(t *testing.T) {
				t.Parallel()
				v2 := newKeenV2(t)
				v2.says(say)
				if name == "slow" {
					v2.h = keenHandler(t, "http://"+v2.h.single.host, 50*time.Millisecond)
				}
				withSpool(t, v2.h, Spool{Mode: mode})
				neverLoops(t, v2.h)
			})
		}
	}
	for _, options := range []Spool{{MaxSize: 1 << 20}, {MaxSize: 1 << 20, Mode: spoolAlways}} {
		t.Run("full "+options.Mode, func(t *testing.T) {
			v2 := newKeenV2(t)
			v2.says(isDown)
			log := withSpool(t, v2.h, options)
			for n := range 100 {
				r := httptest.NewRequest(http.MethodPost, testEvent, strings.NewReader(fmt.Sprintf(`{"n":%d,"a":%q}`, n, strings.Repeat("x", 50_000))))
				r.Header.Set("X-TD-Write-Key", keenKey)
				w := httptest.NewRecorder()
				if err := v2.h.ServeHTTP(w, r.WithContext(keenRequest(keenPath, "").Context()), nil); err != nil {
					t.Fatal(err)
				}
			}
			if used, limit := log.Size(); used < limit/2 {
				t.Fatalf("%d bytes are kept", used)
			}
			neverLoops(t, v2.h)
		})
	}
}
