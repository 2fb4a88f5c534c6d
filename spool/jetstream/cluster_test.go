package jetstream

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/td-postback/gateway/spool"
)

// wait is how long a test waits for something that must happen.
const wait = time.Minute

// natsServer builds the real server, in the version of .ci/tools.
var natsServer = sync.OnceValues(func() (string, error) {
	path := filepath.Join(scratch, "nats-server")
	output, err := exec.Command("go", "build", "-C", "../../.ci/tools", "-mod=readonly", "-o", path, "github.com/nats-io/nats-server/v2").CombinedOutput()
	if err != nil {
		err = fmt.Errorf("building nats-server: %w\n%s", err, output)
	}
	return path, err
})

// scratch is for what outlives a test.
var scratch string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "td-postback")
	if err != nil {
		panic(err)
	}
	scratch = dir
	status := m.Run()
	for _, n := range shared {
		n.kill()
	}
	_ = os.RemoveAll(dir)
	os.Exit(status)
}

// node is a nats-server process, which can be killed and started again.
type node struct {
	addr   string
	user   string // and password, as before the host in a URL
	config string // the path of its configuration
	cmd    *exec.Cmd
}

func (n *node) url() string { return "nats://" + n.user + n.addr }

// start starts the process and waits until it takes connections.
func (n *node) start(t testing.TB) {
	t.Helper()
	server, err := natsServer()
	if err != nil {
		t.Fatal(err)
	}
	n.cmd = exec.Command(server, "-c", n.config)
	if err := n.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	until(t, "nats-server takes connections", func() bool {
		conn, err := net.Dial("tcp", n.addr)
		if err != nil {
			return false
		}
		_ = conn.Close()
		return true
	})
}

// kill ends the process as a crash would.
func (n *node) kill() {
	if n.cmd != nil {
		_ = n.cmd.Process.Kill()
		_ = n.cmd.Wait()
		n.cmd = nil
	}
}

// until waits for a condition that nothing announces.
func until(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(wait); !holds(); {
		if time.Now().After(deadline) {
			t.Fatal("never came about: " + what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// freeAddrs are loopback addresses that nobody listens on.
func freeAddrs(t testing.TB, n int) (addrs []string) {
	t.Helper()
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		addrs = append(addrs, l.Addr().String())
	}
	return addrs
}

// nodes configures servers, one or a cluster. more is added to each of the
// configurations.
func nodes(t testing.TB, dir string, n int, more string) []*node {
	t.Helper()
	addrs := freeAddrs(t, 2*n)
	routes := make([]string, n)
	for i, addr := range addrs[n:] {
		routes[i] = "nats://" + addr
	}
	all := make([]*node, n)
	for i := range n {
		name := fmt.Sprintf("n%d", i+1)
		config := fmt.Sprintf("listen: %s\nserver_name: %s\njetstream {\n store_dir: %q\n sync_interval: always\n max_file_store: 16GB\n}\n%s\n",
			addrs[i], name, filepath.Join(dir, name), more)
		if n > 1 {
			config += fmt.Sprintf("cluster {\n name: test\n listen: %s\n routes: [%s]\n}\n", addrs[n+i], strings.Join(routes, ", "))
		}
		path := filepath.Join(dir, name+".conf")
		if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
			t.Fatal(err)
		}
		all[i] = &node{addr: addrs[i], config: path}
	}
	return all
}

// single is a server of its own for a test.
func single(t testing.TB, more string) *node {
	t.Helper()
	n := nodes(t, t.TempDir(), 1, more)[0]
	t.Cleanup(n.kill)
	n.start(t)
	return n
}

// shared is the cluster of three that all tests use, each under a name of its
// own.
var shared []*node

func cluster(t testing.TB) []*node {
	t.Helper()
	if shared == nil {
		// The permissions are those of docs/spool-nats.md.
		shared = nodes(t, scratch, 3, `max_payload: 4MB
			authorization { users: [{ user: spool, password: secret, permissions: {
				publish: ["*.records.*", "*.letters.*", "$JS.API.>", "$JS.ACK.>"], subscribe: ["_INBOX.>"]
			}}]}`)
		for _, n := range shared {
			n.user = "spool:secret@"
			n.start(t)
		}
	}
	return shared
}

// events are what a Log had to say.
type events struct {
	mu    sync.Mutex
	texts []string
}

func (e *events) add(what string, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.texts = append(e.texts, fmt.Sprintf("%s: %v", what, err))
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
		config.URLs = append(config.URLs, n.url())
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

// take takes n records, which have to come.
func take(t testing.TB, q spool.Queue, n int) (entries []spool.Entry) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), wait)
	defer cancel()
	for len(entries) < n {
		more, err := q.Take(ctx, n-len(entries))
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
	conn, err := nats.Connect(n.url())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	return conn
}
