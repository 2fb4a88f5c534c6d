package spool_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/td-postback/gateway/spool"
)

// witness stands before chaos and knows what was said of each event. An event is
// "group:record.event", a record that is one itself "group:record": so records are
// numbered from 0, as the queue numbers them.
type witness struct {
	chaos
	mu      sync.Mutex
	t       *testing.T
	queue   *memory
	known   map[string]bool      // v2 has said that it has taken it
	first   map[string]time.Time // of the first request by which v2 may have taken it
	doubled map[int]bool         // records of which v2 may have taken something twice
	refused map[string]bool      // v2 has refused it, and not another one
	away    bool                 // v2's answers are lost
}

// number is the record that an event is of.
func (w *witness) number(event string) int {
	_, text, _ := strings.Cut(event, ":")
	text, _, _ = strings.Cut(text, ".")
	n, err := strconv.Atoi(text)
	if err != nil {
		w.t.Errorf("event %q", event)
	}
	return n
}

// see checks that events may go.
func (w *witness) see(events []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, event := range events {
		if state := w.queue.record(w.number(event)).state; state != held {
			w.t.Errorf("%s goes, and its record is %s", event, state)
		}
		if w.known[event] {
			w.t.Errorf("%s goes again, and v2 has said that it has it", event)
		}
	}
}

// hear notes v2's answer to what was sent.
func (w *witness) hear(events []string, sent time.Time, r spool.BatchResult) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, event := range events {
		first, maybe := w.first[event]
		switch {
		case r.NotTaken() && !r.Ambiguous:
		case r.OfRecords() && len(events) > 1:
		case r.Status == http.StatusOK, r.Receipts != nil && r.Receipts[i].Taken:
			w.known[event] = true
			if maybe && sent.Sub(first) >= time.Hour {
				w.doubled[w.number(event)] = true
			}
		case !maybe && (r.Ambiguous || r.Status == http.StatusPartialContent && r.Receipts == nil):
			w.first[event] = sent
		case !r.Ambiguous:
			w.refused[event] = true
		}
	}
}

func (w *witness) goAway(away bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.away = away
}

func (w *witness) sendBatch(group string, records [][]byte) spool.BatchResult {
	events, size := make([]string, len(records)), 0
	for i, r := range records {
		events[i], size = string(r), size+len(r)
		if !bytes.HasPrefix(r, []byte(group+":")) {
			w.t.Errorf("%s goes as one of %s", r, group)
		}
	}
	w.see(events)
	sent := time.Now()
	time.Sleep(time.Duration(1+len(events)%7) * time.Millisecond)
	w.mu.Lock()
	r, away := spool.BatchResult{Result: lost}, w.away
	w.mu.Unlock()
	if !away {
		r = w.send(events)
		r.Plain, r.Sent = size, size/5+1
	}
	w.hear(events, sent, r)
	return r
}

// TestSeveralAtRandom has v2 answer at random records with several events among single
// ones, while the Log cannot bury now and then. Each event is taken or a dead letter in
// the end, and none goes that need not.
func TestSeveralAtRandom(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { synctest.Test(t, func(t *testing.T) { severalAtRandom(t, seed) }) })
	}
}

func severalAtRandom(t *testing.T, seed uint64) {
	random := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // G404: a test
	v2 := &witness{
		chaos: chaos{random: rand.New(rand.NewPCG(seed, 2)), taken: map[string]bool{}}, //nolint:gosec // G404: a test
		t:     t, known: map[string]bool{}, first: map[string]time.Time{}, doubled: map[int]bool{}, refused: map[string]bool{},
	}
	limits := func() spool.Limits {
		return spool.Limits{
			InFlight: 1 + random.IntN(20), Rate: 1000, MaxAge: 6 * day, BytesRate: []int64{0, 100_000}[random.IntN(2)],
			Batching: spool.Batching{Most: []int{0, 7, 500}[random.IntN(3)], Wait: time.Duration(1+random.IntN(1000)) * time.Millisecond},
		}
	}
	groupOf := func(data []byte) string {
		group, _, _ := bytes.Cut(bytes.TrimPrefix(data, []byte(severalMark)), []byte(":"))
		return string(group)
	}
	w := run(t, spool.Delivery{
		Limits:  limits(),
		Account: func(data []byte) string { return groupOf(data)[:1] },
		Part: func(e spool.Entry) (spool.Part, bool) {
			return spool.Part{Group: groupOf(e.Data), Record: e.Data}, true
		},
		SendBatch: func(group string, records [][]byte) spool.BatchResult { return v2.sendBatch(group, records) },
		Events:    readSeveral, Rest: restOf,
	})
	v2.queue = w.queue
	w.server.set(func(data string) spool.Result {
		if strings.HasPrefix(data, severalMark) {
			t.Errorf("%q goes alone", data)
		}
		r := spool.BatchResult{Result: spool.Result{Status: http.StatusBadRequest}}
		if !strings.HasSuffix(data, "7") {
			v2.chaos.mu.Lock()
			v2.taken[data] = true
			v2.chaos.mu.Unlock()
			r.Result = taken
		}
		v2.hear([]string{data}, time.Now(), r)
		return r.Result
	}, 0)
	w.queue.mu.Lock()
	w.queue.sheds = seed%2 == 1
	w.queue.mu.Unlock()
	records := make([][]string, 0, 50*60) // their events
	for range 50 {
		for range random.IntN(60) {
			group := fmt.Sprintf("%c%d", "abc"[random.IntN(3)], random.IntN(3))
			events := []string{fmt.Sprint(group, ":", len(records))}
			if random.IntN(2) == 0 {
				w.queue.append(events[0])
			} else {
				for n := range 1 + random.IntN(20) {
					events = append(events, fmt.Sprint(group, ":", len(records), ".", n))
				}
				events = events[1:]
				w.queue.append(several(events...))
			}
			records = append(records, events)
			if random.IntN(2) == 0 {
				w.Arrived(1, 10)
			}
		}
		time.Sleep(time.Duration(random.IntN(2000)) * time.Millisecond)
		if random.IntN(5) == 0 {
			w.SetLimits(limits())
		}
		w.queue.fail(nil, []error{nil, nil, nil, errBroken}[random.IntN(4)])
		if random.IntN(25) == 0 {
			v2.goAway(true)
			time.Sleep(time.Duration(30+random.IntN(60)) * time.Minute)
			v2.goAway(false)
		}
	}
	w.queue.fail(nil, nil)
	v2.chaos.mu.Lock()
	v2.calm = true
	v2.chaos.mu.Unlock()
	time.Sleep(3 * time.Hour)
	synctest.Wait()
	letters := 0
	for n, events := range records {
		k := w.queue.record(n)
		var buried []string
		switch k.state {
		case acked:
		case dead:
			buried = eventsOf(k.Data)
			letters += len(buried)
		default:
			t.Errorf("record %d is %s", n, k.state)
			continue
		}
		for _, event := range events {
			switch is := slices.Contains(buried, event); {
			case !is && !v2.taken[event]:
				t.Errorf("%s is lost", event)
			case is && v2.known[event]:
				t.Errorf("%s is in a dead letter, and v2 has said that it has it", event)
			case is && !v2.refused[event]:
				t.Errorf("%s is in a dead letter for another's sake: %+v", event, k.why)
			}
		}
	}
	told := 0
	for _, r := range w.told {
		if r.Ambiguous && !r.Safe {
			told++
		}
	}
	if len(v2.doubled) > told {
		t.Errorf("v2 may have something of %d records twice, and %d were told", len(v2.doubled), told)
	}
	t.Logf("%d records, %d events in dead letters, %d may be twice, %d told", len(records), letters, len(v2.doubled), told)
}
