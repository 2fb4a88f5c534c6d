//go:build unix

package natstest

import (
	"syscall"
	"testing"
)

// Pause makes the server silent: its connections stay, and nothing answers.
func (n *Node) Pause(t testing.TB) {
	t.Helper()
	n.signal(t, syscall.SIGSTOP)
	var status syscall.WaitStatus // it stops a moment after the signal
	if _, err := syscall.Wait4(n.cmd.Process.Pid, &status, syscall.WUNTRACED, nil); err != nil || !status.Stopped() {
		t.Fatalf("nats-server is not paused: %v, %v", status, err)
	}
}

// Resume lets a server that is paused go on.
func (n *Node) Resume(t testing.TB) { n.signal(t, syscall.SIGCONT) }

func (n *Node) signal(t testing.TB, signal syscall.Signal) {
	t.Helper()
	if err := n.cmd.Process.Signal(signal); err != nil {
		t.Fatal(err)
	}
}
