package natstest

import (
	"errors"
	"os"
	"sync"
	"testing"
	"time"
)

// This file is for packages whose TestMain is Main.

// Wait is how long a test waits for something that must happen.
const Wait = time.Minute

// Scratch is a directory for what outlives a test.
var Scratch string

// shared is the cluster of three that the tests of a package share.
var shared []*Node

// Server builds nats-server, once for all tests of a package.
var Server = sync.OnceValues(func() (binary string, err error) { return Build(Scratch, "../../.ci/tools") })

// Main runs the tests of a package, and ends the servers that they share.
func Main(m *testing.M) {
	dir, err := os.MkdirTemp("", "td-postback")
	if err != nil {
		panic(err)
	}
	Scratch = dir
	status := m.Run()
	for _, n := range shared {
		n.Kill()
	}
	_ = os.RemoveAll(dir)
	os.Exit(status)
}

// New is Nodes with the binary of Server. Without that, the test is skipped.
func New(t testing.TB, dir string, n int, more string) []*Node {
	t.Helper()
	return Nodes(t, Needed(t), dir, n, more)
}

// Needed is the binary of Server. Without that, the test is skipped.
func Needed(t testing.TB) string {
	t.Helper()
	server, err := Server()
	if errors.Is(err, ErrNotCached) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return server
}

// Shared is the cluster of three that all tests of a package use, with a user and a
// password. more is added to the configurations when it is started first.
func Shared(t testing.TB, more string) []*Node {
	t.Helper()
	if shared == nil {
		shared = New(t, Scratch, 3, more)
		for _, n := range shared {
			n.User = "spool:secret@"
			n.Start(t)
		}
	}
	return shared
}

// KillFor kills a server of the shared cluster. At the end of the test it runs again,
// however that ends: the next test needs it.
func KillFor(t testing.TB, n *Node) {
	t.Helper()
	n.Kill()
	t.Cleanup(func() {
		if !n.Runs() {
			n.Start(t)
		}
	})
}

// Until waits for a condition that nothing announces.
func Until(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(Wait); !holds(); {
		if time.Now().After(deadline) {
			t.Fatal("never came about: " + what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
