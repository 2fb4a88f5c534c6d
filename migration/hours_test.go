package migration

import (
	"math"
	"math/rand/v2"
	"testing"
)

// The ring counts what a list of all events counts.
func TestHours(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // G404: a test's
	for range 200 {
		var h hours
		all := map[int64]uint64{}
		hour := int64(490_000)
		for range 60 {
			switch random.IntN(4) {
			case 0:
				hour += random.Int64N(100)
			case 1:
				hour++
			}
			late := hour - random.Int64N(3)*random.Int64N(weekHours/2) // the clock went back a little
			events := random.Uint64N(5)
			h.add(late, events)
			all[late] += events
			for _, before := range []int64{0, 1, dayHours, weekHours} {
				want := uint64(0)
				for at, events := range all {
					if at >= hour-before && at <= hour {
						want += events
					}
				}
				// What is not in the ring any more is not asked for either.
				if got := h.sum(hour, before); h.newest == hour && got != want {
					t.Fatalf("at %d, the last %d hours: %d, want %d", hour, before, got, want)
				}
			}
		}
	}
}

func TestHoursOfAWrongClock(t *testing.T) {
	var h hours
	h.add(900_000, 5) // decades ahead
	h.add(490_000, 3) // and right again
	h.add(490_001, 1)
	if got := h.sum(490_001, weekHours); got != 4 {
		t.Errorf("%d events, want 4", got)
	}
	if got := h.sum(900_000, weekHours); got != 0 {
		t.Errorf("%d events of an hour that has not come", got)
	}
	h.add(490_001, math.MaxUint64/2)
	if got := h.sum(490_001, 0); got != math.MaxUint32 {
		t.Errorf("a counter that is full says %d", got)
	}
}

func TestMergedHours(t *testing.T) {
	var all, one hours
	all.add(490_100, 1)
	all.add(490_000, 2)
	one.add(490_000-weekHours, 4) // too old for the other
	one.add(489_950, 8)
	one.add(490_000, 16)
	all.merge(&one)
	if got := all.sum(490_100, weekHours); got != 1+2+8+16 {
		t.Errorf("%d events", got)
	}
	var old hours
	old.add(480_000, 100)
	all.merge(&old)
	if got := all.sum(490_100, weekHours); got != 1+2+8+16 {
		t.Errorf("%d events, with those of weeks ago", got)
	}
}
