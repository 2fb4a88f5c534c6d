package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/td-postback/gateway/spool"
)

// depth asserts what a queue holds. An ack is not waited for, so that it may
// take a moment.
func depth(t testing.TB, l *Log, queue string, records, dead int) (d spool.Depth) {
	t.Helper()
	until(t, fmt.Sprintf("%d records and %d dead letters", records, dead), func() bool {
		now, err := l.Depth(queue)
		d = now
		return err == nil && d.Records == records && d.Dead == dead
	})
	return d
}

func TestTakeAndAck(t *testing.T) {
	l := open(t, cluster(t), nil)
	q := l.Queue(testQueue)
	add(t, l, testQueue, "a", "b", "c")
	add(t, l, "https://other", "x")
	if d := depth(t, l, testQueue, 3, 0); !d.Oldest.Equal(arrival) {
		t.Errorf("the oldest is of %s", d.Oldest)
	}
	entries := take(t, q, 3)
	if got := texts(entries); got != "a b c" {
		t.Errorf("took %s", got)
	}
	for i, e := range entries {
		if !e.Arrival.Equal(arrival) || e.Tries != 0 || i > 0 && e.ID <= entries[i-1].ID {
			t.Errorf("entry %d: %+v", i, e)
		}
		q.Ack(e)
	}
	if d := depth(t, l, testQueue, 0, 0); !d.Oldest.IsZero() {
		t.Errorf("an empty queue's oldest is of %s", d.Oldest)
	}
	if got := l.Queues(); !slices.Equal(got, []string{"https://other"}) {
		t.Errorf("queues: %q", got)
	}
}

// A Take that waits gets what comes then.
func TestTakeWaits(t *testing.T) {
	l := open(t, cluster(t), nil)
	type result struct {
		entries []spool.Entry
		err     error
	}
	taken := make(chan result)
	go func() {
		var r result
		for begin := true; begin || errors.Is(r.err, spool.ErrUnavailable); begin = false {
			r.entries, r.err = l.Queue(testQueue).Take(t.Context(), 10) // again, while a busy cluster still makes the consumer
		}
		taken <- r
	}()
	until(t, "somebody has made the consumer, and waits for records", func() bool {
		_, err := l.records.Consumer(t.Context(), tokenOf(testQueue))
		return err == nil
	})
	began := time.Now()
	add(t, l, testQueue, "a")
	defer func() { t.Logf("it came after %v", time.Since(began)) }()
	if r := <-taken; r.err != nil || texts(r.entries) != "a" {
		t.Errorf("took %q, %v", texts(r.entries), r.err)
	}
}

// What an operator deletes by mistake is made again.
func TestConsumerDeleted(t *testing.T) {
	l := open(t, cluster(t), nil)
	q := l.Queue(testQueue)
	add(t, l, testQueue, "a", "b")
	held := take(t, q, 1)
	if err := l.records.DeleteConsumer(t.Context(), tokenOf(testQueue)); err != nil {
		t.Fatal(err)
	}
	q.Ack(held[0]) // nobody hears that
	b := take(t, q, 1)
	if got := texts(b); got != "b" {
		t.Errorf("took %s", got)
	}
	q.Ack(b[0])
	ctx, cancel := context.WithCancel(t.Context())
	taken := make(chan []spool.Entry)
	go func() {
		again, _ := q.Take(ctx, 1)
		taken <- again
	}()
	depth(t, l, testQueue, 0, 0)
	cancel()
	if again := <-taken; len(again) > 0 {
		t.Errorf("%s, which was acked, came again", texts(again))
	}
}

func TestTakeEnds(t *testing.T) {
	l := open(t, cluster(t), nil)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := l.Queue(testQueue).Take(ctx, 1); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("with its context: %v", err)
	}
	ended := make(chan error)
	go func() {
		_, err := l.Queue(testQueue).Take(context.Background(), 1)
		ended <- err
	}()
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if err := <-ended; !errors.Is(err, spool.ErrClosed) {
		t.Errorf("with the log: %v", err)
	}
	if err := l.Append(testQueue, spool.Record{}); !errors.Is(err, spool.ErrClosed) {
		t.Errorf("an append: %v", err)
	}
}

func TestLater(t *testing.T) {
	l := open(t, cluster(t), nil)
	q := l.Queue(testQueue)
	add(t, l, testQueue, "a", "b")
	first := take(t, q, 2)
	began := time.Now()
	q.Later(first[0], 300*time.Millisecond)
	again := take(t, q, 1)
	if waited := time.Since(began); waited < 300*time.Millisecond || texts(again) != "a" || again[0].ID != first[0].ID || again[0].Tries != 1 {
		t.Errorf("after %s took %+v", waited, again)
	}
	q.Ack(again[0])
	q.Ack(first[1])
	depth(t, l, testQueue, 0, 0)
}

// Only what was tried counts as a try: not that a record was given back, or that it
// was with a gateway that has ended.
func TestTries(t *testing.T) {
	l := open(t, cluster(t), nil)
	q := l.Queue(testQueue)
	add(t, l, testQueue, "a")
	want := 0
	for i := range 12 {
		e := take(t, q, 1)[0]
		if e.Tries != want {
			t.Errorf("given out for the %dth time: %d tries, want %d", i+1, e.Tries, want)
		}
		if i%4 == 3 {
			want++
			q.Later(e, time.Millisecond)
		} else {
			q.Later(e, 0)
		}
	}
}

// What is put off comes again no sooner than it is asked to, not too much in any
// second, and that of others in time.
func TestCalendar(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 678_000_000, time.UTC)
	c := calendar{booked: map[int64]int{}}
	in := map[int64]int{}
	last := now
	for range 10*returns + 1 {
		at := c.book(now, now.Add(time.Hour))
		if at.Before(now.Add(time.Hour)) || at.After(now.Add(time.Hour+12*time.Second)) {
			t.Fatalf("put off until %v", at)
		}
		in[at.Unix()]++
		last = at
	}
	for second, n := range in {
		if n > returns {
			t.Errorf("%d come again in the second %d", n, second)
		}
	}
	if last.Before(now.Add(time.Hour + 9*time.Second)) {
		t.Errorf("the last one comes again at %v", last)
	}
	if at := c.book(now, now.Add(time.Second)); !at.Equal(now.Add(time.Second)) {
		t.Errorf("another one, put off for a second, comes again at %v", at)
	}
	now = now.Add(2 * time.Hour)
	c.book(now, now)
	if len(c.booked) != 1 {
		t.Errorf("%d seconds are remembered, and %d are gone", len(c.booked), len(c.booked)-1)
	}
}

func TestDeadLetters(t *testing.T) {
	for name, key := range map[string][]byte{"in clear": nil, "encrypted": bytes.Repeat([]byte{7}, 32)} {
		t.Run(name, func(t *testing.T) {
			l := open(t, cluster(t), func(c *Config) { c.Key = key })
			q := l.Queue(testQueue)
			add(t, l, testQueue, "a", "b", "c")
			entries := take(t, q, 3)
			for i, reason := range []string{"refused", "old", "refused"} {
				if err := q.Bury(entries[i], spool.Verdict{Status: 400 * ((i + 1) % 2), Reason: reason, Words: reason + ": no such\ntable"}); err != nil {
					t.Fatal(err)
				}
			}
			depth(t, l, testQueue, 0, 3)
			letters, err := l.Letters(testQueue, 0, 2)
			if err != nil || len(letters) != 2 {
				t.Fatalf("%d letters, %v", len(letters), err)
			}
			for i, want := range []spool.Letter{
				{Record: spool.Record{Arrival: arrival, Data: []byte("a")}, Verdict: spool.Verdict{Status: 400, Reason: "refused", Words: "refused: no such table"}},
				{Record: spool.Record{Arrival: arrival, Data: []byte("b")}, Verdict: spool.Verdict{Reason: "old", Words: "old: no such table"}},
			} {
				got := letters[i]
				if string(got.Data) != string(want.Data) || !got.Arrival.Equal(arrival) || got.Verdict != want.Verdict ||
					got.Queue != testQueue || time.Since(got.Died).Abs() > wait {
					t.Errorf("letter %d: %+v", i, got)
				}
			}
			rest, err := l.Letters(testQueue, letters[1].ID, 10)
			if err != nil || len(rest) != 1 || string(rest[0].Data) != "c" {
				t.Fatalf("the rest: %+v, %v", rest, err)
			}

			if n, err := l.Drop("https://other", letters[0].ID); n != 0 || err != nil {
				t.Errorf("dropped %d of another queue, %v", n, err)
			}
			if n, err := l.Drop(testQueue, letters[0].ID, 999_999); n != 1 || err != nil {
				t.Errorf("dropped %d, %v", n, err)
			}
			if n, err := l.Replay(testQueue, letters[0].ID, letters[1].ID); n != 1 || err != nil {
				t.Errorf("replayed %d, %v", n, err)
			}
			depth(t, l, testQueue, 1, 1)
			again := take(t, q, 1)[0]
			if string(again.Data) != "b" || !again.Arrival.Equal(arrival) || again.Tries != 0 || !again.Replayed {
				t.Errorf("replayed %+v", again)
			}
			q.Ack(again)
			depth(t, l, testQueue, 0, 1)
			if got := l.Queues(); !slices.Equal(got, []string{testQueue}) {
				t.Errorf("queues: %q", got)
			}
		})
	}
}

func TestRecords(t *testing.T) {
	l := open(t, cluster(t), nil)
	add(t, l, testQueue, "a")
	add(t, l, "https://other", "x")
	add(t, l, testQueue, "b", "c")
	q := l.Queue(testQueue)
	first := take(t, q, 1)[0]
	records, err := l.Records(testQueue, 0, 2)
	if err != nil || texts(records) != "a b" || records[0].ID != first.ID || !records[0].Arrival.Equal(arrival) {
		t.Errorf("records: %+v, %v", records, err)
	}
	q.Ack(first)
	depth(t, l, testQueue, 2, 0)
	if records, err = l.Records(testQueue, records[1].ID, 10); err != nil || texts(records) != "c" {
		t.Errorf("behind the second: %+v, %v", records, err)
	}
}

func TestFull(t *testing.T) {
	l := open(t, cluster(t), func(c *Config) { c.MaxSize = 100_000 })
	record := spool.Record{Arrival: arrival, Data: make([]byte, 10_000)}
	kept := 0
	for {
		err := l.Append(testQueue, record)
		if errors.Is(err, spool.ErrFull) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		kept++
	}
	if kept < 8 || kept > 9 {
		t.Errorf("%d records of 10,000 bytes in 100,000", kept)
	}
	depth(t, l, testQueue, kept, 0)
	if used, limit := l.Size(); limit != 100_000 || used < int64(kept)*10_000 || used > limit {
		t.Errorf("%d bytes used of %d", used, limit)
	}
	q := l.Queue(testQueue)
	q.Ack(take(t, q, 1)[0])
	depth(t, l, testQueue, kept-1, 0)
	if err := l.Append(testQueue, record); err != nil {
		t.Errorf("with room again: %v", err)
	}
	bigger := open(t, cluster(t), func(c *Config) { c.MaxSize = 200_000 })
	for range 3 {
		if err := bigger.Append(testQueue, record); err != nil {
			t.Errorf("after max_size has grown: %v", err)
		}
	}
	if err := bigger.SetLimits(100_000, 50_000); err != nil {
		t.Fatal(err)
	}
	if err := bigger.Append(testQueue, record); !errors.Is(err, spool.ErrFull) {
		t.Errorf("after max_size has shrunk: %v", err)
	}
	if _, limit := bigger.Size(); limit != 100_000 {
		t.Errorf("the limit is %d", limit)
	}
	if err := bigger.SetLimits(300_000, 50_000); err != nil {
		t.Fatal(err)
	}
	if err := bigger.Append(testQueue, record); err != nil {
		t.Errorf("after max_size has grown by SetLimits: %v", err)
	}
}

// Dead letters that v2 has refused have DeadSize. Others are kept beyond it, and
// none keeps a record out.
func TestDeadSize(t *testing.T) {
	const size = 10_000
	l := open(t, cluster(t), func(c *Config) { c.MaxSize, c.DeadSize = 10*size, 5*size/2 })
	q := l.Queue(testQueue)
	bury := func(status int) (spool.Entry, error) {
		t.Helper()
		if err := l.Append(testQueue, spool.Record{Arrival: arrival, Data: make([]byte, size)}); err != nil {
			t.Fatalf("dead letters keep a record out: %v", err)
		}
		e := take(t, q, 1)[0]
		return e, q.Bury(e, spool.Verdict{Status: status, Reason: "a reason"})
	}
	for range 2 {
		if _, err := bury(400); err != nil {
			t.Fatal(err)
		}
	}
	refused, err := bury(400)
	if !errors.Is(err, spool.ErrFull) {
		t.Errorf("what v2 refused, beyond dead_size: %v", err)
	}
	q.Ack(refused)
	for range 5 {
		if _, err := bury(0); err != nil {
			t.Errorf("what v2 has not refused, beyond dead_size: %v", err)
		}
	}
	depth(t, l, testQueue, 0, 7)
	if used, limit := l.DeadSize(); limit != 5*size/2 || used < 7*size {
		t.Errorf("dead letters: %d bytes of %d", used, limit)
	}
	for range 3 { // until not even max_size has room
		if refused, err = bury(0); err != nil {
			break
		}
	}
	if err == nil || errors.Is(err, spool.ErrFull) {
		t.Errorf("what v2 has not refused, without room: %v", err)
	}
	letters, err := l.Letters(testQueue, 0, 10)
	if err != nil {
		t.Fatal(err)
	}
	for _, letter := range letters[1:] {
		if n, err := l.Drop(testQueue, letter.ID); n != 1 || err != nil {
			t.Fatalf("dropped %d, %v", n, err)
		}
	}
	if err := q.Bury(refused, spool.Verdict{Reason: "again"}); err != nil {
		t.Errorf("with room again: %v", err)
	}
	depth(t, l, testQueue, 0, 2)
	if _, err := bury(400); !errors.Is(err, spool.ErrFull) {
		t.Errorf("what v2 refused, beside two: %v", err)
	}
	if err := l.SetLimits(10*size, 4*size); err != nil {
		t.Fatal(err)
	}
	if _, err := bury(400); err != nil {
		t.Errorf("after dead_size has grown: %v", err)
	}
}

// The longest record, with the longest head.
func TestLongRecord(t *testing.T) {
	l := open(t, cluster(t), func(c *Config) { c.Key = bytes.Repeat([]byte{1}, 32) })
	data := bytes.Repeat([]byte("0123456789abcdef"), (1_048_064+1<<20)/16)
	if err := l.Append(testQueue, spool.Record{Arrival: arrival, Data: data}); err != nil {
		t.Fatal(err)
	}
	records, err := l.Records(testQueue, 0, 1)
	if err != nil || len(records) != 1 || !bytes.Equal(records[0].Data, data) {
		t.Errorf("%d records, %v", len(records), err)
	}
	if entries := take(t, l.Queue(testQueue), 1); !bytes.Equal(entries[0].Data, data) {
		t.Errorf("took %d bytes", len(entries[0].Data))
	}
	err = l.Append(testQueue, spool.Record{Arrival: arrival, Data: make([]byte, 5<<20)})
	if !errors.Is(err, spool.ErrUnavailable) || !strings.Contains(err.Error(), "max_payload") {
		t.Errorf("beyond max_payload: %v", err)
	}
}

// A reload opens a Log while the one before is still there.
func TestReload(t *testing.T) {
	before := open(t, cluster(t), nil)
	add(t, before, testQueue, "a", "b")
	held := take(t, before.Queue(testQueue), 2)
	after := open(t, cluster(t), nil)
	add(t, before, testQueue, "c")
	add(t, after, testQueue, "d")
	if got := texts(take(t, after.Queue(testQueue), 2)); got != "c d" {
		t.Errorf("the new one took %s", got)
	}
	before.Queue(testQueue).Ack(held[0])
	began := time.Now()
	if err := before.Close(); err != nil {
		t.Error(err)
	}
	if again := take(t, after.Queue(testQueue), 1); texts(again) != "b" || again[0].Tries != 0 || time.Since(began) > 15*time.Second {
		t.Errorf("%s after the end of the old one the new one took %+v", time.Since(began), again)
	}
	depth(t, after, testQueue, 3, 0)
}

func TestEncryption(t *testing.T) {
	key := bytes.Repeat([]byte{1}, 32)
	plain := open(t, cluster(t), nil)
	add(t, plain, testQueue, "in clear")
	sealed := open(t, cluster(t), func(c *Config) { c.Key = key })
	add(t, sealed, testQueue, "a secret")

	var stored [2][]byte
	for i := range stored {
		msg, err := plain.records.GetMsg(t.Context(), uint64(i)+1)
		if err != nil {
			t.Fatal(err)
		}
		stored[i] = msg.Data
	}
	if string(stored[0]) != "in clear" || bytes.Contains(stored[1], []byte("secret")) {
		t.Errorf("the servers keep %q", stored)
	}
	if records, err := sealed.Records(testQueue, 0, 2); err != nil || texts(records) != "in clear a secret" {
		t.Errorf("with the key: %+v, %v", records, err)
	}
	if records, err := plain.Records(testQueue, 0, 2); err != nil || texts(records) != "in clear " {
		t.Errorf("without the key: %+v, %v", records, err)
	}
	// Who cannot read it does not take it.
	held := take(t, plain.Queue(testQueue), 1)
	if got := texts(held); got != "in clear" {
		t.Errorf("without the key took %s", got)
	}
	plain.Queue(testQueue).Later(held[0], 0)
	for _, wrong := range []func(*Config){
		func(c *Config) { c.Key = key[:31] },
		func(c *Config) { c.Key = append(slices.Clone(key), 1) },
	} {
		config := Config{URLs: []string{cluster(t)[0].URL()}}
		wrong(&config)
		if _, err := Open(t.Context(), config); err == nil {
			t.Error("a key of a wrong length was taken")
		}
	}
}

// With a key, a record that is not encrypted may be anybody's: it is told, and
// not given out. Nor is one that was put into the queue of another host, or
// replayed.
func TestForged(t *testing.T) {
	var said events
	l := open(t, cluster(t), func(c *Config) { c.Key, c.OnEvent, c.ackWait = bytes.Repeat([]byte{1}, 32), said.add, time.Second })
	plain := open(t, cluster(t), nil)
	const evil = "https://evil.example"
	q := plain.Queue(testQueue)
	add(t, plain, testQueue, "a letter in clear")
	if err := q.Bury(take(t, q, 1)[0], spool.Verdict{Status: 400, Reason: "refused"}); err != nil {
		t.Fatal(err)
	}
	add(t, plain, testQueue, "in clear")
	add(t, l, testQueue, "a secret")
	stored, err := plain.records.GetLastMsgForSubject(t.Context(), plain.recordSubject(tokenOf(testQueue)))
	if err != nil {
		t.Fatal(err)
	}
	stored.Header.Del(jetstream.MsgIDHeader)
	js, err := jetstream.New(direct(t, cluster(t)[0]))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.PublishMsg(t.Context(), &nats.Msg{Subject: l.recordSubject(tokenOf(evil)), Header: stored.Header, Data: stored.Data}); err != nil {
		t.Fatal(err)
	}

	if got := texts(take(t, l.Queue(testQueue), 1)); got != "a secret" {
		t.Errorf("took %s", got)
	}
	for queue, want := range map[string]string{testQueue: "kept without a key", evil: "for another host"} {
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		if entries, err := l.Queue(queue).Take(ctx, 1); len(entries) != 0 || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: took %q, %v", queue, texts(entries), err)
		}
		cancel()
		if !strings.Contains(said.String(), want) {
			t.Errorf("nobody was told %q:\n%s", want, said.String())
		}
	}
	letters, err := l.Letters(testQueue, 0, 1)
	if err != nil || len(letters) != 1 || string(letters[0].Data) != "a letter in clear" {
		t.Fatalf("letters: %+v, %v", letters, err)
	}
	if n, err := l.Replay(testQueue, letters[0].ID); n != 0 || err == nil || !strings.Contains(err.Error(), "kept without a key") {
		t.Errorf("replayed %d, %v", n, err)
	}
}

// Dead letters that cannot be read are named, and do not keep others from being
// replayed.
func TestReplayGoesOn(t *testing.T) {
	l := open(t, cluster(t), func(c *Config) { c.Key = bytes.Repeat([]byte{1}, 32) })
	clear := open(t, cluster(t), nil)
	for i, from := range []*Log{clear, l, clear, l} {
		add(t, from, testQueue, fmt.Sprint(i))
		if err := from.Queue(testQueue).Bury(take(t, from.Queue(testQueue), 1)[0], spool.Verdict{Status: 400, Reason: "refused"}); err != nil {
			t.Fatal(err)
		}
	}
	depth(t, l, testQueue, 0, 4)
	n, err := l.Replay(testQueue, 1, 2, 3, 4)
	var left *spool.NotReplayedError
	if n != 2 || !errors.As(err, &left) || !slices.Equal(left.IDs, []spool.ID{1, 3}) || errors.Is(err, spool.ErrUnavailable) {
		t.Errorf("replayed %d, %v", n, err)
	}
	if err != nil && !strings.Contains(err.Error(), "dead letter 1, 3: the record was kept without a key") {
		t.Errorf("it says %v", err)
	}
	depth(t, l, testQueue, 2, 2)
}

func TestSealer(t *testing.T) {
	s, err := newSealer(bytes.Repeat([]byte{1}, 32))
	if err != nil {
		t.Fatal(err)
	}
	one, _ := s.seal("q", []byte("data"))
	two, _ := s.seal("q", []byte("data"))
	if bytes.Equal(one, two) {
		t.Error("the same data gives the same bytes")
	}
	if data, err := s.open("q", one); err != nil || string(data) != "data" {
		t.Errorf("opened %q, %v", data, err)
	}
	if _, err := s.open("other", one); err == nil {
		t.Error("it opens for another queue")
	}
	for i := range one {
		damaged := slices.Clone(one)
		damaged[i] ^= 1
		if _, err := s.open("q", damaged); err == nil {
			t.Errorf("it opens with byte %d changed", i)
		}
		if _, err := s.open("q", one[:i]); err == nil {
			t.Errorf("it opens after %d bytes", i)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	const secret = "hunter2"
	small := single(t, `authorization { user: spool, password: `+secret+` }`)
	for name, c := range map[string]struct {
		config Config
		want   string
	}{
		"no URL":           {Config{}, "no URL"},
		"not a URL":        {Config{URLs: []string{"nats://u:" + secret + "@host:port"}}, "NATS server 1: not a URL"},
		"another scheme":   {Config{URLs: []string{"nats://host", "http://u:" + secret + "@host"}}, "NATS server 2: not a URL"},
		"name":             {Config{URLs: []string{"nats://host"}, Name: "a.b"}, `the name "a.b"`},
		"negative":         {Config{URLs: []string{"nats://host"}, MaxSize: -1}, "negative"},
		"max_payload":      {Config{URLs: []string{"nats://spool:" + secret + "@" + small.Addr}, Timeout: wait}, "max_payload is 1048576 bytes, and a record takes up to 2100736: set max_payload: 4MB"},
		"wrong password":   {Config{URLs: []string{"nats://spool:x" + secret + "@" + small.Addr}, Timeout: wait}, "Authorization Violation"},
		"no password":      {Config{URLs: []string{small.URL()}, Timeout: wait}, "Authorization Violation"},
		"another's stream": {Config{URLs: []string{cluster(t)[0].URL()}, Name: nameOf(t), Timeout: wait}, "there is a stream TestOpenRefuses_records"},
	} {
		t.Run(name, func(t *testing.T) {
			if strings.HasPrefix(name, "another's") {
				js, err := jetstream.New(direct(t, cluster(t)[0]))
				if err != nil {
					t.Fatal(err)
				}
				until(t, "a stream of this name", func() bool { // servers that have just started do not answer
					_, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: c.config.Name + "_records"})
					return err == nil
				})
			}
			var said events
			c.config.OnEvent = said.add
			l, err := Open(t.Context(), c.config)
			if err == nil {
				_ = l.Close()
			}
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error()+said.String(), secret) {
				t.Errorf("%v\n%s", err, said.String())
			}
		})
	}
}

// A gateway starts without its cluster, uses it when it comes, and does not wait
// long when it goes.
func TestServersComeAndGo(t *testing.T) {
	n := nodes(t, t.TempDir(), 1, "max_payload: 4MB")[0]
	t.Cleanup(n.Kill)
	var said events
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	l, err := Open(ctx, Config{URLs: []string{n.URL()}, Replicas: 1, MaxSize: 1 << 20, Timeout: wait, OnEvent: said.add})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	unavailable := func() {
		t.Helper()
		began := time.Now()
		if err := l.Append(testQueue, spool.Record{Data: []byte("x")}); !errors.Is(err, spool.ErrUnavailable) || time.Since(began) > wait/4 {
			t.Errorf("without a server: %v after %s", err, time.Since(began))
		}
		if _, err := l.Queue(testQueue).Take(t.Context(), 1); !errors.Is(err, spool.ErrUnavailable) {
			t.Errorf("Take without a server: %v", err)
		}
		if _, err := l.Depth(testQueue); !errors.Is(err, spool.ErrUnavailable) {
			t.Errorf("Depth without a server: %v", err)
		}
	}
	unavailable()
	n.Start(t)
	until(t, "a record is kept", func() bool {
		return l.Append(testQueue, spool.Record{Arrival: arrival, Data: []byte("a")}) == nil
	})
	if got := texts(take(t, l.Queue(testQueue), 1)); got != "a" {
		t.Errorf("took %s", got)
	}
	if got := l.Queues(); !slices.Equal(got, []string{testQueue}) {
		t.Errorf("queues: %q", got)
	}
	used, limit := l.Size()
	n.Kill()
	until(t, "the loss is noticed", func() bool { return strings.Contains(said.String(), "lost a connection to NATS") })
	unavailable()
	if got := l.Queues(); !slices.Equal(got, []string{testQueue}) {
		t.Errorf("queues, from memory: %q", got)
	}
	if u, m := l.Size(); u != used || m != limit || u == 0 {
		t.Errorf("size, from memory: %d of %d, was %d of %d", u, m, used, limit)
	}
	// What was with the gateway is still there.
	n.Start(t)
	depth(t, l, testQueue, 1, 0)
	for _, want := range []string{"NATS cannot be used yet", "NATS can be used: <nil>", "connected to NATS again: <nil>"} {
		if !strings.Contains(said.String(), want) {
			t.Errorf("nobody was told %q:\n%s", want, said.String())
		}
	}
}

// A record that is worked on for long stays with its gateway. When that is not
// heard of any more, another one gets it.
func TestHeld(t *testing.T) {
	shorter := func(c *Config) { c.ackWait = 2 * time.Second }
	one, other := open(t, cluster(t), shorter), open(t, cluster(t), shorter)
	add(t, one, testQueue, "a")
	take(t, one.Queue(testQueue), 1)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if entries, err := other.Queue(testQueue).Take(ctx, 1); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("took %+v, %v", entries, err)
	}
	one.control.conn.Close()
	if entries := take(t, other.Queue(testQueue), 1); texts(entries) != "a" || entries[0].Tries != 0 {
		t.Errorf("took %+v", entries)
	}
}

// The connection breaks as the acknowledgement comes: the record goes out again,
// and is kept once.
func TestAcknowledgementLost(t *testing.T) {
	var cuts atomic.Int64
	l := open(t, cutting(t, &cuts, "", `{"stream":"`+nameOf(t)+`_records"`), nil)
	add(t, l, testQueue, "a")
	if cuts.Load() == 0 {
		t.Error("no acknowledgement was lost")
	}
	depth(t, l, testQueue, 1, 0)
}

// The connection breaks as an ack is on its way: it is sent again, before another
// gateway gets the record.
func TestAckLost(t *testing.T) {
	var cuts atomic.Int64
	with := func(c *Config) { c.ackWait = 9 * time.Second }
	one, other := open(t, cutting(t, &cuts, "$JS.ACK."+nameOf(t), ""), with), open(t, cluster(t), with)
	add(t, one, testQueue, "a", "b")
	for _, e := range take(t, one.Queue(testQueue), 2) {
		one.Queue(testQueue).Ack(e)
	}
	until(t, "an ack is lost", func() bool { return cuts.Load() > 0 })
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	taken := make(chan []spool.Entry, 1)
	go func() {
		again, _ := other.Queue(testQueue).Take(ctx, 2)
		taken <- again
	}()
	until(t, "both acks are heard, or a record comes again", func() bool {
		d, err := other.Depth(testQueue)
		return err == nil && d.Records == 0 || len(taken) > 0
	})
	cancel()
	if again := <-taken; len(again) > 0 {
		t.Errorf("%q, which were acked, came again", texts(again))
	}
	until(t, "it is known that the acks are heard", func() bool {
		one.acks.mu.Lock()
		defer one.acks.mu.Unlock()
		return len(one.acks.sent) == 0
	})
}

// cutting is the way to a server that breaks when a client says one text, or the
// server the other.
func cutting(t *testing.T, cuts *atomic.Int64, client, server string) []*node {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	to := cluster(t)[0]
	go func() {
		for {
			from, err := listener.Accept()
			if err != nil {
				return
			}
			upstream, err := net.Dial("tcp", to.Addr)
			if err != nil {
				from.Close()
				continue
			}
			go relay(upstream, from, client, cuts)
			go relay(from, upstream, server, cuts)
		}
	}()
	return []*node{{Addr: listener.Addr().String(), User: to.User}}
}

// relay passes on what from says, until it says cut.
func relay(to, from net.Conn, cut string, cuts *atomic.Int64) {
	defer to.Close()
	defer from.Close()
	for buf := make([]byte, 64<<10); ; {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		if cut != "" && bytes.Contains(buf[:n], []byte(cut)) {
			cuts.Add(1)
			return
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

func FuzzQueueToken(f *testing.F) {
	for _, s := range []string{"", "_", testQueue, "http://127.0.0.1:8080/ü", "a_5Fb", "_5f", "_4", "*", ">"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		token := tokenOf(s)
		if token == "" || strings.ContainsAny(token, ".*> /\\\t\r\n\x00") {
			t.Errorf("%q becomes %q", s, token)
		}
		if back, ok := queueOf(token); !ok || back != s {
			t.Errorf("%q becomes %q becomes %q", s, token, back)
		}
		// Read as a token, it is refused or the only way to write a queue.
		if queue, ok := queueOf(s); ok && tokenOf(queue) != s {
			t.Errorf("the token %q is read as %q", s, queue)
		}
	})
}
