package migration

import "math"

const (
	dayHours  = 24
	weekHours = 7 * dayHours
	stepHours = 6
	weekSteps = weekHours / stepHours
)

// hours counts events by time: by hour for the one that is running and a day before it,
// and by six hours for a week. By hour, a week would take half of a report's memory.
type hours struct {
	newest int64 // the last hour that was counted in, since 1970
	day    [dayHours + 1]uint32
	week   [weekSteps + 1]uint32
}

// add counts events in an hour.
func (h *hours) add(hour int64, events uint64) {
	h.advance(hour)
	if hour > h.newest-int64(len(h.day)) {
		addToRing(h.day[:], hour, events)
	}
	addToRing(h.week[:], hour/stepHours, events)
}

// advance makes room for an hour: what is too old goes. If the hours that were counted
// in have not come yet, by a week, the clock was wrong and goes right again: all goes.
func (h *hours) advance(hour int64) {
	if hour <= h.newest-weekHours {
		*h = hours{newest: hour}
		return
	}
	clearRing(h.day[:], h.newest, hour)
	clearRing(h.week[:], h.newest/stepHours, hour/stepHours)
	h.newest = max(h.newest, hour)
}

// lastDay is how many events came in this hour and the 24 before.
func (h *hours) lastDay(hour int64) uint64 {
	return sumOfRing(h.day[:], h.newest, hour-dayHours, hour)
}

// lastWeek is how many events came in these six hours and in a week before.
func (h *hours) lastWeek(hour int64) uint64 {
	return sumOfRing(h.week[:], h.newest/stepHours, hour/stepHours-weekSteps, hour/stepHours)
}

// days has a bit for each of the last eight days, by UTC, on which events came, and the
// lowest bit for the day of the newest hour. The first of the eight may miss some hours.
func (h *hours) days() (newest int64, days uint64) {
	newest = h.newest / dayHours
	for step := max(0, h.newest/stepHours-weekSteps); step <= h.newest/stepHours; step++ {
		if h.week[slot(h.week[:], step)] > 0 {
			days |= 1 << (newest - step*stepHours/dayHours)
		}
	}
	return newest, days
}

// merge adds other counts, as far as these have their hours.
func (h *hours) merge(other *hours) {
	mergeRings(h.day[:], other.day[:], h.newest, other.newest)
	mergeRings(h.week[:], other.week[:], h.newest/stepHours, other.newest/stepHours)
}

// A ring has a count for each time unit up to the newest, as many as it is long.

func slot(ring []uint32, at int64) int {
	length := int64(len(ring))
	return int((at%length + length) % length)
}

func addToRing(ring []uint32, at int64, events uint64) {
	count := &ring[slot(ring, at)]
	*count = uint32(min(uint64(*count)+min(events, math.MaxUint32), math.MaxUint32))
}

// clearRing makes room for what comes after the newest.
func clearRing(ring []uint32, newest, now int64) {
	for at := max(newest+1, now-int64(len(ring))+1); at <= now; at++ {
		ring[slot(ring, at)] = 0
	}
}

func sumOfRing(ring []uint32, newest, from, to int64) (events uint64) {
	for at := max(from, newest-int64(len(ring))+1); at <= min(to, newest); at++ {
		events += uint64(ring[slot(ring, at)])
	}
	return events
}

func mergeRings(ring, other []uint32, newest, otherNewest int64) {
	for at := max(newest, otherNewest) - int64(len(ring)) + 1; at <= min(newest, otherNewest); at++ {
		addToRing(ring, at, uint64(other[slot(other, at)]))
	}
}
