package cluster

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/td-postback/gateway/spool"
)

// This file tests records that belong together, and what is left of a request.

// groupKeys are with which records are kept.
var groupKeys = map[string][]byte{"in clear": nil, "encrypted": bytes.Repeat([]byte{7}, 32)}

// group makes so many records, each of another account.
func group(name string, n, size int) []spool.Record {
	records := make([]spool.Record, n)
	for i := range records {
		data := fmt.Appendf(nil, "%s%d ", name, i)
		records[i] = spool.Record{Arrival: arrival, Data: append(data, bytes.Repeat([]byte("x"), size)...)}
	}
	return records
}

// Records that belong together are all kept, more of them than go out at a time.
func TestAppendAll(t *testing.T) {
	for name, key := range groupKeys {
		t.Run(name, func(t *testing.T) {
			l := open(t, cluster(t), func(c *Config) { c.Key, c.Account = key, accountOf })
			records := append(group("small", 400, 100), group("large", 8, 2_000_000)...)
			for _, these := range [][]spool.Record{records, nil} {
				if err := l.AppendAll(testQueue, these); err != nil {
					t.Fatal(err)
				}
			}
			depth(t, l, testQueue, len(records), 0)
			q := l.Queue(testQueue)
			want := map[string]bool{}
			for _, r := range records {
				want[string(r.Data)] = true
			}
			for range len(records) {
				e := take(t, q, 1)[0]
				if !want[string(e.Data)] || !e.Arrival.Equal(arrival) {
					t.Errorf("%.20q of %s comes", e.Data, e.Arrival)
				}
				delete(want, string(e.Data))
				q.Ack(e)
			}
		})
	}
}

// Without room for all of them, none is kept. What has no room only when it is sent
// is an error too.
func TestAppendAllFull(t *testing.T) {
	l := open(t, cluster(t), func(c *Config) { c.MaxSize = 100_000 })
	if err := l.AppendAll(testQueue, group("a", 5, 10_000)); err != nil {
		t.Fatal(err)
	}
	depth(t, l, testQueue, 5, 0)
	if err := l.AppendAll(testQueue, group("b", 5, 10_000)); !errors.Is(err, spool.ErrFull) {
		t.Errorf("without room: %v", err)
	}
	if records, err := l.Records(testQueue, 0, 10); err != nil || len(records) != 5 {
		t.Errorf("%d records are there, want 5 (%v)", len(records), err)
	}
	if err := l.AppendAll(testQueue, group("c", 3, 10_000)); err != nil {
		t.Errorf("with room: %v", err)
	}
	l.mu.Lock()
	l.seen.used, l.counted = 0, time.Now().Add(time.Hour) // as if another gateway had just filled it
	l.mu.Unlock()
	if err := l.AppendAll(testQueue, group("d", 4, 10_000)); !errors.Is(err, spool.ErrFull) {
		t.Errorf("without room, which is not known: %v", err)
	}
}

// An error says that some of them are not kept, whatever the reason, and the Log goes
// on.
func TestAppendAllFails(t *testing.T) {
	l := open(t, cluster(t), nil)
	tooLarge := append(group("a", 20, 10), spool.Record{Arrival: arrival, Data: make([]byte, 5<<20)})
	if err := l.AppendAll(testQueue, slices.Concat(tooLarge, group("b", 20, 10))); !errors.Is(err, spool.ErrUnavailable) || !errors.Is(err, spool.ErrMaybeKept) || !strings.Contains(err.Error(), "max_payload") {
		t.Errorf("with one that is too large: %v", err)
	}
	timeout := l.config.Timeout
	l.config.Timeout = time.Nanosecond
	if err := l.AppendAll(testQueue, group("c", 3, 10)); !errors.Is(err, spool.ErrUnavailable) {
		t.Errorf("without time: %v", err)
	}
	l.config.Timeout = timeout
	if err := l.AppendAll(testQueue, group("d", 3, 10)); err != nil {
		t.Errorf("later: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := l.AppendAll(testQueue, group("e", 3, 10)); !errors.Is(err, spool.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}

// A letter of what is left of a request lists and replays with that and no more, and
// counts by its own size.
func TestBuryRest(t *testing.T) {
	for name, key := range groupKeys {
		t.Run(name, func(t *testing.T) {
			l := open(t, cluster(t), func(c *Config) { c.Key, c.DeadSize = key, 3000 })
			q := l.Queue(testQueue)
			add(t, l, testQueue, strings.Repeat("x", 100_000), strings.Repeat("y", 100_000))
			e := take(t, q, 2)
			why := spool.Verdict{Status: 422, Reason: "refused", Words: "no such column"}
			if err := q.BuryRest(e[0], []byte("left over"), why); err != nil {
				t.Fatal(err)
			}
			depth(t, l, testQueue, 1, 1)
			letters, err := l.Letters(testQueue, 0, 10)
			if err != nil || len(letters) != 1 {
				t.Fatalf("%d letters, %v", len(letters), err)
			}
			if got := letters[0]; string(got.Data) != "left over" || !got.Arrival.Equal(arrival) || got.Verdict != why {
				t.Errorf("the letter is %+v", got)
			}
			if stored, err := l.letters.GetMsg(t.Context(), uint64(letters[0].ID)); err != nil || bytes.Contains(stored.Data, []byte("left over")) != (key == nil) {
				t.Errorf("the servers keep %q, %v", stored.Data, err)
			}
			if err := q.BuryRest(e[1], make([]byte, 5000), why); !errors.Is(err, spool.ErrFull) {
				t.Errorf("beyond dead_size: %v", err)
			}
			if err := q.BuryRest(e[1], make([]byte, 5000), spool.Verdict{Reason: "too_old"}); err != nil {
				t.Errorf("what v2 has not refused: %v", err)
			}
			if n, err := l.Replay(testQueue, letters[0].ID); n != 1 || err != nil {
				t.Fatalf("replayed %d, %v", n, err)
			}
			if again := take(t, q, 1)[0]; string(again.Data) != "left over" || !again.Replayed || !again.Arrival.Equal(arrival) {
				t.Errorf("replayed %+v", again)
			}
			if err := q.BuryRest(e[0], []byte("left over"), why); err == nil {
				t.Error("what is not held can be buried")
			}
		})
	}
}

// The letter is there, and the record's ack was lost: burying it again makes no second
// letter, though v2 may have refused less of it the second time.
func TestBuryRestAgain(t *testing.T) {
	l := open(t, cluster(t), nil)
	q := &queue{l, testQueue}
	add(t, l, testQueue, "whole")
	e := take(t, q, 1)[0]
	why := spool.Verdict{Status: 422, Reason: "refused"}
	l.mu.Lock()
	msg := l.held[identityOf(e)].msg
	l.mu.Unlock()
	letter := l.letter(tokenOf(testQueue), msg, identityOf(e), why)
	letter.Data = []byte("two are left")
	if err := l.publish(letter); err != nil {
		t.Fatal(err)
	}
	if err := q.BuryRest(e, []byte("one is left"), why); err != nil {
		t.Fatal(err)
	}
	depth(t, l, testQueue, 0, 1)
	if letters, err := l.Letters(testQueue, 0, 10); err != nil || len(letters) != 1 || string(letters[0].Data) != "two are left" {
		t.Errorf("letters: %+v, %v", letters, err)
	}
}
