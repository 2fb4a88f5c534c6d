package cluster

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/td-postback/gateway/spool"
	"github.com/td-postback/gateway/spool/cluster/natstest"
)

const wait = natstest.Wait

// atOnce is how long what does not wait for the cluster may take, on a machine
// that is busy.
const atOnce = time.Second / 2

func TestMain(m *testing.M) { natstest.Main(m) }

// node is a nats-server process, which can be killed and started again.
type node = natstest.Node

var (
	until = natstest.Until
	nodes = natstest.New
	kill  = natstest.KillFor
)

// single is a server of its own for a test.
func single(t testing.TB, more string) *node {
	t.Helper()
	n := nodes(t, t.TempDir(), 1, more)[0]
	t.Cleanup(n.Kill)
	n.Start(t)
	return n
}

// cluster is the cluster of three that all tests use, each under a name of its own.
func cluster(t testing.TB) []*node {
	t.Helper()
	// The permissions are those of docs/spool-nats.md.
	return natstest.Shared(t, `max_payload: 4MB
		authorization { users: [{ user: spool, password: secret, permissions: {
			publish: ["*.records.*", "*.letters.*", "$JS.API.>", "$JS.ACK.>"], subscribe: ["_INBOX.>"]
		}}]}`)
}

// events are what a Log had to say.
type events struct {
	mu    sync.Mutex
	texts []string
}

func (e *events) add(ev spool.Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.texts = append(e.texts, fmt.Sprintf("%s: %v", ev, ev.Err))
}

func (e *events) String() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return strings.Join(e.texts, "\n")
}

// open opens a Log that can be used, under the test's name.
func open(t testing.TB, servers []*node, change func(*Config)) *Log {
	t.Helper()
	var said events
	config := Config{Name: nameOf(t), MaxSize: 64 << 20, OnEvent: said.add, Timeout: wait}
	for _, n := range servers {
		config.URLs = append(config.URLs, n.URL())
	}
	if change != nil {
		change(&config)
	}
	l, err := Open(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(said.String())
		}
	})
	until(t, "the cluster can be used", func() bool { return l.unready() == nil })
	return l
}

// nameOf is the test's name as the name of a stream.
func nameOf(t testing.TB) string {
	return strings.NewReplacer("/", "-", " ", "-").Replace(t.Name())
}

const testQueue = "https://us01.records.in.treasuredata.com"

// arrival is the time of a record. Less than a second of it must stay, too.
var arrival = time.Date(2026, 1, 2, 3, 4, 5, 678_000_000, time.UTC)

// add appends records with these texts.
func add(t testing.TB, l *Log, queue string, texts ...string) {
	t.Helper()
	for _, text := range texts {
		if err := l.Append(queue, spool.Record{Arrival: arrival, Data: []byte(text)}); err != nil {
			t.Fatal(err)
		}
	}
}

// addLate is add for a Log that does not wait long: a busy cluster may take longer.
func addLate(t testing.TB, l *Log, queue, text string) {
	t.Helper()
	until(t, "a record is kept", func() bool {
		return l.Append(queue, spool.Record{Arrival: arrival, Data: []byte(text)}) == nil
	})
}

// take takes n records, which have to come. A cluster that is busy may say that it
// does not answer: then, as Take's contract has it, it is asked again.
func take(t testing.TB, q spool.Queue, n int) (entries []spool.Entry) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), wait)
	defer cancel()
	for len(entries) < n {
		more, err := q.Take(ctx, n-len(entries))
		if errors.Is(err, spool.ErrUnavailable) {
			time.Sleep(pause)
			continue
		}
		if err != nil {
			t.Fatalf("after %d of %d records: %v", len(entries), n, err)
		}
		entries = append(entries, more...)
	}
	return entries
}

func texts(entries []spool.Entry) string {
	all := make([]string, len(entries))
	for i, e := range entries {
		all[i] = string(e.Data)
	}
	return strings.Join(all, " ")
}

// direct is a connection beside the package's, to do what an operator would.
func direct(t testing.TB, n *node) *nats.Conn {
	t.Helper()
	conn, err := nats.Connect(n.URL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	return conn
}
