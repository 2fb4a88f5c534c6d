// Package natstest runs nats-server for tests, alone or as a cluster, in
// processes that can be killed and started again.
package natstest

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// wait is how long a server may take to listen.
const wait = time.Minute

// ErrNotCached says that nats-server is not in Go's module cache. Tests skip
// then: they install nothing.
var ErrNotCached = errors.New("nats-server is not in Go's module cache (go -C .ci/tools mod download)")

// Build builds nats-server, in the version of .ci/tools, into a directory. tools
// is the way to .ci/tools.
func Build(dir, tools string) (binary string, err error) {
	binary = filepath.Join(dir, "nats-server")
	build := exec.Command("go", "build", "-C", tools, "-mod=readonly", "-o", binary, "github.com/nats-io/nats-server/v2") //nolint:gosec,noctx // G204: by tests
	build.Env = append(os.Environ(), "GOPROXY=off")
	output, err := build.CombinedOutput()
	switch {
	case err == nil:
		return binary, nil
	case strings.Contains(string(output), "GOPROXY=off"):
		return "", ErrNotCached
	default:
		return "", fmt.Errorf("building nats-server: %w\n%s", err, output)
	}
}

// Node is a nats-server.
type Node struct {
	Addr string
	User string // and password, as before the host in a URL

	binary, config string
	cmd            *exec.Cmd
}

// Nodes configures n servers with JetStream, one or a cluster, that sync all
// they store. more is added to each of the configurations.
func Nodes(t testing.TB, binary, dir string, n int, more string) []*Node {
	t.Helper()
	addrs := freeAddrs(t, 2*n)
	routes := make([]string, n)
	for i, addr := range addrs[n:] {
		routes[i] = "nats://" + addr
	}
	all := make([]*Node, n)
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
		all[i] = &Node{Addr: addrs[i], binary: binary, config: path}
	}
	return all
}

// freeAddrs are loopback addresses that nobody listens on.
func freeAddrs(t testing.TB, n int) (addrs []string) {
	t.Helper()
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // on loopback
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close() //nolint:errcheck // until all are known
		addrs = append(addrs, l.Addr().String())
	}
	return addrs
}

// URL is where clients connect to.
func (n *Node) URL() string { return "nats://" + n.User + n.Addr }

// Start starts the server and waits until it takes connections.
func (n *Node) Start(t testing.TB) {
	t.Helper()
	n.cmd = exec.Command(n.binary, "-c", n.config) //nolint:gosec,noctx // G204: by Build
	dieWithTest(n.cmd)
	if err := n.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(wait); ; time.Sleep(20 * time.Millisecond) {
		conn, err := net.Dial("tcp", n.Addr) //nolint:noctx // on loopback
		if err == nil {
			_ = conn.Close()
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("nats-server does not listen: %v", err)
		}
	}
}

// Runs says whether the server was started, and not killed since.
func (n *Node) Runs() bool { return n.cmd != nil }

// Kill ends the server as a crash would.
func (n *Node) Kill() {
	if n.Runs() {
		_ = n.cmd.Process.Kill()
		_ = n.cmd.Wait()
		n.cmd = nil
	}
}
