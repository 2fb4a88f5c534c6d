package migration

import "math"

const (
	dayHours  = 24
	weekHours = 7 * dayHours
)

const ring = weekHours + 1 // hours

// hours counts events by the hour they came in: for the hour that is running, and for
// a week before it.
type hours struct {
	newest int64 // the last hour of the ring, since 1970
	counts [ring]uint32
}

// add counts events in an hour. Those of an hour before the ring's are too old to be
// counted by hour, unless the ring's hours have not come yet: then the clock was wrong
// and goes right again.
func (h *hours) add(hour int64, events uint64) {
	h.advance(hour)
	count := &h.counts[slot(hour)]
	*count = uint32(min(uint64(*count)+events, math.MaxUint32))
}

// advance makes room for an hour: counts of hours that the ring has no room for go.
func (h *hours) advance(hour int64) {
	switch ahead := hour - h.newest; {
	case ahead >= ring || ahead <= -ring:
		*h = hours{newest: hour}
	case ahead > 0:
		for h.newest < hour {
			h.newest++
			h.counts[slot(h.newest)] = 0
		}
	}
}

// sum is how many events came in the running hour and so many before it.
func (h *hours) sum(now, before int64) (events uint64) {
	for hour := max(now-before, h.newest-ring+1); hour <= min(now, h.newest); hour++ {
		events += uint64(h.counts[slot(hour)])
	}
	return events
}

// merge adds the counts of another ring, as far as this one has their hours.
func (h *hours) merge(other *hours) {
	for hour := max(h.newest, other.newest) - ring + 1; hour <= min(h.newest, other.newest); hour++ {
		if count := other.counts[slot(hour)]; count > 0 {
			h.add(hour, uint64(count))
		}
	}
}

// slot is where the ring has an hour.
func slot(hour int64) int {
	return int((hour%ring + ring) % ring)
}
