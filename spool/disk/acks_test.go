package disk

import (
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/td-postback/gateway/spool"
)

// TestAcksAtRandom adds and removes acks, and compares them with a set.
func TestAcksAtRandom(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // G404: the same each time
	now := time.Now()
	var a acks
	want := map[spool.ID]bool{}
	for step := range 20_000 {
		id := 1_000_000 + spool.ID(random.Uint64N(5000))
		if random.IntN(10) > 0 {
			a.add(id, now)
			want[id] = true
		} else {
			ids := a.due(now)[:random.IntN(len(a.due(now))+1)]
			a.begin(ids)
			a.remove(ids, now)
			for _, id := range ids {
				delete(want, id)
			}
		}
		id = 1_000_000 + spool.ID(random.Uint64N(5000))
		if a.has(id) != want[id] || a.count != len(want) {
			t.Fatalf("step %d: %d is acked: %t, and %d of %d are", step, id, a.has(id), a.count, len(want))
		}
	}
	if all := a.all(); !slices.Equal(all, slices.Sorted(maps.Keys(want))) {
		t.Errorf("%d acks, want %d in their order", len(all), len(want))
	}
	a.remove(a.all(), now)
	if a.count != 0 || len(a.groups) != 0 {
		t.Errorf("%d acks are left in %d groups", a.count, len(a.groups))
	}
}

// TestAcksOfNeighboursAreDueTogether has some neighbours delivered at one time, and
// others later.
func TestAcksOfNeighboursAreDueTogether(t *testing.T) {
	t.Parallel()
	const first = 10 * groupSize
	now := time.Now()
	var a acks
	for i := range spool.ID(2 * groupSize) {
		if earlier := a.add(first+i, now.Add(time.Duration(i)*time.Millisecond)); earlier != (i%groupSize == 0) {
			t.Fatalf("ack %d makes its group due earlier: %t", i, earlier)
		}
	}
	if !a.add(first-1, now.Add(-time.Second)) || !a.next().Equal(now.Add(-time.Second)) {
		t.Error("one that is due earlier, in front of the others, is not the next")
	}
	for at, want := range map[time.Time]int{now.Add(-time.Hour): 0, now.Add(-time.Second): 1, now: 1 + groupSize, now.Add(time.Minute): 1 + 2*groupSize} {
		if ids := a.due(at); len(ids) != want || !slices.IsSorted(ids) {
			t.Errorf("%d acks are due at %s, want %d in their order", len(ids), at.Sub(now), want)
		}
	}
}

// TestAcksGoInPieces has many due at a time: the callers who wait for the commit must
// not wait for all.
func TestAcksGoInPieces(t *testing.T) {
	t.Parallel()
	const many = 50_000
	now := time.Now()
	var a acks
	for id := range spool.ID(many) {
		a.add(id, now)
	}
	pieces := 0
	for a.count > 0 {
		ids := a.due(now)
		if len(ids) == 0 || len(ids) >= maxAcksAtOnce+groupSize {
			t.Fatalf("a piece of %d acks", len(ids))
		}
		a.remove(ids, now)
		pieces++
	}
	if pieces < many/(maxAcksAtOnce+groupSize) {
		t.Errorf("%d acks in %d pieces", many, pieces)
	}
}

// TestAcksThatComeMeanwhile has a neighbour delivered while others go to disk: it has
// its own time, and what did not get there is due at once.
func TestAcksThatComeMeanwhile(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for name, gone := range map[string][]spool.ID{"all": {1, 2}, "a part": {1}, "none": nil} {
		var a acks
		a.add(1, now)
		a.add(2, now)
		going := a.due(now)
		a.begin(going)
		if !a.add(3, now.Add(time.Second)) {
			t.Errorf("%s: nobody is told when the new one is due", name)
		}
		if gone == nil {
			a.failed(going, now)
		}
		a.remove(gone, now)
		want := map[string]time.Time{"all": now.Add(time.Second), "a part": now.Add(time.Second), "none": now}[name]
		if a.count != 3-len(gone) || !a.next().Equal(want) {
			t.Errorf("%s: %d are left and due in %s, want %s", name, a.count, a.next().Sub(now), want.Sub(now))
		}
	}
	var a acks
	a.add(1, now)
	a.add(2, now)
	a.begin(a.due(now))
	if a.remove([]spool.ID{1}, now.Add(time.Second)); !a.next().Equal(now.Add(time.Second)) {
		t.Error("what did not get there is not due")
	}
}
