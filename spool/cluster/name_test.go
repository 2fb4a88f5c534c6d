package cluster

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/td-postback/gateway/spool"
)

// name is what a record is known by.
func name(e spool.Entry) string { return fmt.Sprintf("%x-%d", e.Namespace, e.ID) }

// names asserts that each record has a name, and none that another has, and puts the
// new ones into known.
func names(t *testing.T, known map[string]string, entries ...spool.Entry) {
	t.Helper()
	for _, e := range entries {
		if e.Namespace == [16]byte{} {
			t.Errorf("%q has no name", e.Data)
		}
		if other, shared := known[name(e)]; shared {
			t.Errorf("%q has the name of %q", e.Data, other)
		}
		known[name(e)] = string(e.Data)
	}
}

// A record that was with a gateway which has died has the same name at another one.
func TestNameAtAnotherGateway(t *testing.T) {
	for what, key := range map[string][]byte{"in clear": nil, "encrypted": bytes.Repeat([]byte{7}, 32)} {
		t.Run(what, func(t *testing.T) {
			with := func(c *Config) { c.Key, c.ackWait = key, 2*time.Second }
			one, other := open(t, cluster(t), with), open(t, cluster(t), with)
			add(t, one, testQueue, "a", "a")
			add(t, other, testQueue, "a")
			js, err := jetstream.New(direct(t, cluster(t)[0]))
			if err != nil {
				t.Fatal(err)
			}
			n := 3
			if key == nil { // somebody else's: without a Nats-Msg-Id
				if _, err := js.Publish(t.Context(), one.recordSubject(tokenOf(testQueue)), []byte("a")); err != nil {
					t.Fatal(err)
				}
				add(t, one, testQueue, "a")
				n += 2
			}
			known := map[string]string{}
			names(t, known, take(t, one.Queue(testQueue), n)...)
			one.control.conn.Close()
			for _, e := range take(t, other.Queue(testQueue), n) {
				if _, same := known[name(e)]; !same {
					t.Errorf("record %d has another name now", e.ID)
				}
			}
		})
	}
}

// remake deletes a stream and makes it anew: its numbers begin again.
func remake(t *testing.T, l *Log, stream jetstream.Stream) {
	t.Helper()
	config := stream.CachedInfo().Config
	if err := l.control.js.DeleteStream(t.Context(), config.Name); err != nil {
		t.Fatal(err)
	}
	if _, err := l.control.js.CreateStream(t.Context(), config); err != nil {
		t.Fatal(err)
	}
}

// A stream that is made anew has the same numbers for other records. What is held of
// the old one does not keep them from being given out, or from being dead letters.
func TestNameInStreamMadeAnew(t *testing.T) {
	l := open(t, cluster(t), nil)
	q, known := l.Queue(testQueue), map[string]string{}
	add(t, l, testQueue, "a", "b", "c")
	before := take(t, q, 3)
	names(t, known, before...)
	if err := q.Bury(before[0], spool.Verdict{Status: 400, Reason: "refused"}); err != nil {
		t.Fatal(err)
	}
	remake(t, l, l.records)
	for _, text := range []string{"A", "B", "C"} {
		addLate(t, l, testQueue, text)
	}
	after := take(t, q, 3)
	names(t, known, after...)
	if after[1].ID != before[1].ID {
		t.Fatalf("the record's number is %d, and was %d: this test shows nothing", after[1].ID, before[1].ID)
	}
	if err := q.Bury(after[0], spool.Verdict{Status: 400, Reason: "refused"}); err != nil {
		t.Fatal(err)
	}
	depth(t, l, testQueue, 2, 2)
	letters, err := l.Letters(testQueue, 0, 10)
	if err != nil || len(letters) != 2 || string(letters[0].Data)+string(letters[1].Data) != "aA" {
		t.Errorf("dead letters: %+v, %v", letters, err)
	}
}

// Dead letters of a stream that is made anew, with the same numbers, are records of
// their own when they are replayed, and so is one that dies again.
func TestNameOfReplayed(t *testing.T) {
	l := open(t, cluster(t), nil)
	q, known := l.Queue(testQueue), map[string]string{}
	for i := range 3 {
		if i == 2 {
			remake(t, l, l.letters)
		}
		addLate(t, l, testQueue, fmt.Sprint(i))
		e := take(t, q, 1)[0]
		for range 2 {
			names(t, known, e)
			until(t, "it is buried", func() bool { return q.Bury(e, spool.Verdict{Reason: "old"}) == nil })
			letters, err := l.Letters(testQueue, 0, 1)
			if err != nil || len(letters) != 1 {
				t.Fatalf("letters: %+v, %v", letters, err)
			}
			if n, err := l.Replay(testQueue, letters[0].ID); n != 1 || err != nil {
				t.Fatalf("replayed %d, %v", n, err)
			}
			if e = take(t, q, 1)[0]; string(e.Data) != fmt.Sprint(i) {
				t.Fatalf("%q was replayed in place of %d", e.Data, i)
			}
		}
		names(t, known, e)
		q.Ack(e)
	}
	depth(t, l, testQueue, 0, 0)
}

// Servers that are restored from a backup know a record by the same name, and a new
// one by none that was used since the backup.
func TestNameAfterRestore(t *testing.T) {
	dir, backup := t.TempDir(), t.TempDir()
	n := nodes(t, dir, 1, "max_payload: 4MB")[0]
	t.Cleanup(n.Kill)
	n.Start(t)
	l := open(t, []*node{n}, func(c *Config) { c.Replicas, c.ackWait = 1, time.Second })
	known := map[string]string{}
	add(t, l, testQueue, "a")
	a := take(t, l.Queue(testQueue), 1)[0]
	names(t, known, a)
	n.Kill()
	if err := os.CopyFS(backup, os.DirFS(filepath.Join(dir, "n1"))); err != nil {
		t.Fatal(err)
	}
	n.Start(t)
	addLate(t, l, testQueue, "b")
	b := takeText(t, l, "b")
	names(t, known, b)
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	n.Kill()
	if err := os.RemoveAll(filepath.Join(dir, "n1")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(backup, filepath.Join(dir, "n1")); err != nil {
		t.Fatal(err)
	}
	n.Start(t)
	l = open(t, []*node{n}, func(c *Config) { c.Replicas, c.ackWait = 1, time.Second })
	addLate(t, l, testQueue, "c")
	if again := takeText(t, l, "a"); name(again) != name(a) {
		t.Errorf("a record was %s before the backup, and is %s", name(a), name(again))
	}
	c := takeText(t, l, "c")
	names(t, known, c)
	if b.ID != c.ID {
		t.Fatalf("the record's number is %d, and was %d: this test shows nothing", c.ID, b.ID)
	}
}

// takeText takes records until there is one with this text.
func takeText(t *testing.T, l *Log, text string) spool.Entry {
	t.Helper()
	for {
		e := take(t, l.Queue(testQueue), 1)[0]
		if string(e.Data) == text {
			return e
		}
		l.Queue(testQueue).Later(e, 100*time.Millisecond)
	}
}
