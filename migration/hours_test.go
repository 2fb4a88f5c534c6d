package migration

import (
	"math"
	"math/rand/v2"
	"testing"
)

// The rings count what a list of all events counts.
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
			late := hour - random.Int64N(3)*random.Int64N(weekHours/2) // the clock goes back a little
			events := random.Uint64N(5)
			h.add(late, events)
			all[late] += events
			if h.newest != hour {
				continue
			}
			day, week := uint64(0), uint64(0)
			for at, events := range all {
				if at >= hour-dayHours {
					day += events
				}
				if at/stepHours >= hour/stepHours-weekSteps {
					week += events
				}
			}
			if h.lastDay(hour) != day || h.lastWeek(hour) != week {
				t.Fatalf("at %d: %d in a day and %d in a week, want %d and %d", hour, h.lastDay(hour), h.lastWeek(hour), day, week)
			}
		}
	}
}

// Of an hour, events are counted for a day and for a week, and not much longer.
func TestHoursGoBy(t *testing.T) {
	for first := int64(490_000); first < 490_000+dayHours; first++ {
		var h hours
		h.add(first, 3)
		for after := range int64(2 * weekHours) {
			day, week := h.lastDay(first+after), h.lastWeek(first+after)
			if after <= dayHours && day != 3 || after > dayHours && day != 0 || after <= weekHours && week != 3 || after >= weekHours+stepHours && week != 0 {
				t.Fatalf("%d hours after %d: %d and %d events", after, first, day, week)
			}
		}
	}
}

func TestHoursOfAWrongClock(t *testing.T) {
	var h hours
	h.add(900_000, 5) // decades ahead
	h.add(490_000, 3) // and right again
	h.add(490_001, 1)
	if h.lastWeek(490_001) != 4 || h.lastDay(490_001) != 4 {
		t.Errorf("%d events, want 4", h.lastWeek(490_001))
	}
	if got := h.lastWeek(900_000); got != 0 {
		t.Errorf("%d events of an hour that has not come", got)
	}
	h.add(490_001, math.MaxUint64)
	if h.lastDay(490_001) < math.MaxUint32 || h.lastWeek(490_001) != math.MaxUint32 {
		t.Errorf("a counter that is full says %d", h.lastWeek(490_001))
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
	if got := all.lastWeek(490_100); got != 1+2+8+16 {
		t.Errorf("%d events", got)
	}
	var old hours
	old.add(480_000, 100)
	all.merge(&old)
	if got := all.lastWeek(490_100); got != 1+2+8+16 {
		t.Errorf("%d events, with those of weeks ago", got)
	}
}
