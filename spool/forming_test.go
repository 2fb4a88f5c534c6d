package spool

import (
	"strconv"
	"testing"
	"time"
)

// TestFormingForgets fills many batches while one of another group waits: what went
// takes no memory.
func TestFormingForgets(t *testing.T) {
	var f forming
	f.setLimits(Batching{Most: 2, Wait: time.Minute})
	now := time.Now()
	f.add(kindOf("rare", 0), item{}, now)
	for n := range 100_000 {
		k := kindOf("group "+strconv.Itoa(n%10), 0)
		f.add(k, item{}, now)
		b, full := f.add(k, item{}, now)
		if !full {
			t.Fatal("two are not a full batch")
		}
		if f.remove(b); len(f.queue) > 1000 {
			t.Fatalf("%d batches are remembered, and one is open", len(f.queue))
		}
	}
	if b := f.due(now.Add(time.Minute)); b == nil || b.kind.group != "rare" {
		t.Errorf("%+v is due, want the rare one", b)
	}
}
