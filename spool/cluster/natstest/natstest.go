// Package natstest runs nats-server for tests, alone or as a cluster, in
// processes that can be killed and started again.
package natstest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

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
	routes, listens := make([]string, n), make([]string, n)
	for i := range n {
		listens[i] = FreeAddr(t)
		routes[i] = "nats://" + listens[i]
	}
	all := make([]*Node, n)
	for i := range n {
		name, addr := fmt.Sprintf("n%d", i+1), FreeAddr(t)
		config := fmt.Sprintf("listen: %s\nserver_name: %s\njetstream {\n store_dir: %q\n sync_interval: always\n max_file_store: 16GB\n}\n%s\n",
			addr, name, filepath.Join(dir, name), more)
		if n > 1 {
			config += fmt.Sprintf("cluster {\n name: test\n listen: %s\n routes: [%s]\n}\n", listens[i], strings.Join(routes, ", "))
		}
		path := filepath.Join(dir, name+".conf")
		if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
			t.Fatal(err)
		}
		all[i] = &Node{Addr: addr, binary: binary, config: path}
	}
	return all
}

// Ports that FreeAddr gives. Systems take those for outgoing connections, and for who
// listens on port 0, from 32768 upwards.
const (
	firstPort = 10000
	ports     = 32768 - firstPort
)

// given counts what FreeAddr has tried. It starts at random: tests of other packages
// run at the same time.
var given atomic.Uint32

func init() { given.Store(rand.Uint32N(ports)) } //nolint:gosec // G404: no secret

// FreeAddr is a loopback address that nobody uses, over TCP or UDP, for a server that
// will start later. Until then nobody else gets it: a process gives each but once, and
// the system gives none of them by chance, to another test's connection for example.
func FreeAddr(t testing.TB) string {
	t.Helper()
	for range ports {
		addr := fmt.Sprintf("127.0.0.1:%d", firstPort+given.Add(1)%ports)
		if isFree(addr) {
			return addr
		}
	}
	t.Fatal("no port is free")
	return ""
}

func isFree(addr string) bool {
	l, err := net.Listen("tcp", addr) //nolint:noctx // on loopback
	if err != nil {
		return false
	}
	defer l.Close()                            //nolint:errcheck // nobody has connected
	conn, err := net.ListenPacket("udp", addr) //nolint:noctx // on loopback
	if err != nil {
		return false
	}
	return conn.Close() == nil
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
	for deadline := time.Now().Add(Wait); ; time.Sleep(20 * time.Millisecond) {
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
