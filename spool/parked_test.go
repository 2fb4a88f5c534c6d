package spool

import (
	"math/rand/v2"
	"testing"
)

// TestParked puts records in and takes them out at random.
func TestParked(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // G404: a test
	var p parked
	var want []Entry
	var events []int
	id := ID(1 << 50)
	for range 200_000 {
		if random.IntN(5) < 3 {
			id += ID(random.Uint64N(1000)) - 100
			e := Entry{ID: id, Tries: random.IntN(300)}
			n := 1 + max(0, random.IntN(1000)-500)
			p.push(e, n)
			want, events = append(want, e), append(events, n)
		} else if len(want) > 0 {
			if e, n := p.pop(); e.ID != want[0].ID || e.Tries != want[0].Tries || n != events[0] {
				t.Fatalf("got %d %d %d, want %d %d %d", e.ID, e.Tries, n, want[0].ID, want[0].Tries, events[0])
			}
			want, events = want[1:], events[1:]
		}
		if p.len != len(want) {
			t.Fatalf("%d of %d are in the list", p.len, len(want))
		}
	}
	for len(want) > 0 {
		if e, _ := p.pop(); e.ID != want[0].ID {
			t.Fatalf("got %d, want %d", e.ID, want[0].ID)
		}
		want = want[1:]
	}
	if p.len != 0 || len(p.bytes) != 0 {
		t.Errorf("the empty list has %d records and %d bytes", p.len, len(p.bytes))
	}
}

// TestParkedIsSmall checks what a backlog of one account costs in memory.
func TestParkedIsSmall(t *testing.T) {
	var p parked
	for i := range 1_000_000 {
		p.push(Entry{ID: 1<<50 + ID(3*i)}, 1)
	}
	if n := len(p.bytes); n > 2_000_100 {
		t.Errorf("a million records take %d bytes, want two for each", n)
	}
}
