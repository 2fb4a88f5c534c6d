package natstest

import (
	"net"
	"testing"
)

// TestFreeAddr: no address is given twice, and none that somebody listens on.
func TestFreeAddr(t *testing.T) {
	before := given.Load()
	t.Cleanup(func() { given.Store(before + 1000) })
	seen := map[string]bool{}
	for range 100 {
		addr := FreeAddr(t)
		if seen[addr] {
			t.Fatalf("%s was given twice", addr)
		}
		seen[addr] = true
	}
	given.Store(before)
	taken := FreeAddr(t)
	l, err := net.Listen("tcp", taken)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	given.Store(before)
	if addr := FreeAddr(t); addr == taken || !seen[addr] {
		t.Errorf("got %s while %s is in use", addr, taken)
	}
}
