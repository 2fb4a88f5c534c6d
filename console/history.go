package console

import (
	"cmp"
	"math"
	"slices"
	"sync"
	"time"
)

// What the chart shows, and how often the counters are read for it.
const (
	Span = 15 * time.Minute
	Step = 10 * time.Second

	steps = int(Span / Step)

	// rateSpan is for what is shown as a rate now, and alarmSpan for what makes the
	// state of the gateway.
	rateSpan  = time.Minute
	alarmSpan = 5 * time.Minute
)

// Kind is what became of calls, as the chart has it.
type Kind int

// The kinds, in the order in which the chart stacks them.
const (
	ToV2 Kind = iota
	ToLegacy
	Kept
	Refused
	Lost

	kinds // how many there are
)

var kindNames = [kinds]string{"to v2", "to the legacy host", "kept in the spool", "refused", "lost"}

// String is the kind's name.
func (k Kind) String() string { return kindNames[k] }

// Total is how many calls have had a result since the start.
type Total struct {
	Lane, Result string
	Kind         Kind
	Count        uint64
}

// Reading is what the counters say at a time.
type Reading struct {
	At              time.Time
	Totals          []Total
	Kept, Delivered uint64           // records of spools
	Times           map[string]Times // of answers, by lane
}

// Times is a histogram: how many answers took at most so many seconds.
type Times struct {
	Bounds []float64
	Counts []uint64 // for each bound, those below it, too
	All    uint64
}

// History has the readings of the chart's time. The zero History has none. Its methods
// may be called at the same time.
type History struct {
	mu       sync.Mutex
	readings []Reading // the oldest comes first
}

// Add adds a reading, and drops those of which the time has gone.
func (h *History) Add(r *Reading) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.readings = append(h.readings, *r)
	if more := len(h.readings) - steps - 1; more > 0 {
		h.readings = slices.Delete(h.readings, 0, more)
	}
}

// Recent is what has changed in the chart's time.
type Recent struct {
	At      time.Time
	Since   time.Time // of the oldest reading
	Points  []Point   // the oldest comes first
	Results []Total   // those that there were, most first
	Minute  [kinds]float64
	Alarm   [kinds]uint64 // in the last five minutes
	All     [kinds]uint64

	Arriving, Leaving float64 // records of spools, a second

	Took map[string]Took // by lane; of the last five minutes
}

// Point is what came between two readings.
type Point struct {
	From, To time.Duration // ago
	Counts   [kinds]uint64
}

// seconds is how long it took, for rates: at least a step, soon after the start too.
func (p Point) seconds() float64 { return max(p.From-p.To, Step).Seconds() }

// Took is how long answers took: half of them at most so long, and 99 of 100.
type Took struct{ P50, P99 time.Duration }

// Recent compares what the counters say now with what they have said.
func (h *History) Recent(now *Reading) *Recent {
	h.mu.Lock()
	readings := slices.Clone(h.readings)
	h.mu.Unlock()
	readings = slices.DeleteFunc(readings, func(r Reading) bool { return now.At.Sub(r.At) > Span+Step })
	if last := len(readings) - 1; last > 0 && now.At.Sub(readings[last].At) < Step {
		readings = readings[:last] // what came in a moment says little of how much comes in a second
	}
	readings = append(readings, *now)
	first := &readings[0]
	r := &Recent{At: now.At, Since: first.At, Results: since(first, now), Took: map[string]Took{}}
	for i := 1; i < len(readings); i++ {
		a, b := &readings[i-1], &readings[i]
		r.Points = append(r.Points, Point{now.At.Sub(a.At), now.At.Sub(b.At), byKind(since(a, b))})
	}
	slices.SortStableFunc(r.Results, func(a, b Total) int { return cmp.Compare(b.Count, a.Count) })
	r.All = byKind(r.Results)
	minute := before(readings, rateSpan)
	span := Point{From: now.At.Sub(minute.At)}.seconds()
	for kind, count := range byKind(since(minute, now)) {
		r.Minute[kind] = float64(count) / span
	}
	r.Arriving = float64(less(now.Kept, minute.Kept)) / span
	r.Leaving = float64(less(now.Delivered, minute.Delivered)) / span
	alarm := before(readings, alarmSpan)
	r.Alarm = byKind(since(alarm, now))
	for lane, times := range now.Times {
		if took, ok := times.since(alarm.Times[lane]); ok {
			r.Took[lane] = took
		}
	}
	return r
}

// before is the reading that is at least so long before the last one, or else the first.
func before(readings []Reading, span time.Duration) *Reading {
	last := readings[len(readings)-1].At
	for i := len(readings) - 1; i > 0; i-- {
		if last.Sub(readings[i].At) >= span {
			return &readings[i]
		}
	}
	return &readings[0]
}

// since is what came between two readings.
func since(a, b *Reading) []Total {
	type result struct{ lane, name string }
	old := make(map[result]uint64, len(a.Totals))
	for _, t := range a.Totals {
		old[result{t.Lane, t.Result}] = t.Count
	}
	var all []Total
	for _, t := range b.Totals {
		if t.Count = less(t.Count, old[result{t.Lane, t.Result}]); t.Count > 0 {
			all = append(all, t)
		}
	}
	return all
}

// less is a difference. A counter that is smaller than before began anew.
func less(now, before uint64) uint64 {
	if now < before {
		return now
	}
	return now - before
}

func byKind(totals []Total) (counts [kinds]uint64) {
	for _, t := range totals {
		if t.Kind >= 0 && t.Kind < kinds {
			counts[t.Kind] += t.Count
		}
	}
	return counts
}

// since is how long the answers took that came since other times.
func (t Times) since(old Times) (Took, bool) {
	counts := slices.Clone(t.Counts)
	all := t.All
	if len(old.Counts) == len(counts) {
		for i := range counts {
			counts[i] = less(counts[i], old.Counts[i])
		}
		all = less(all, old.All)
	}
	if all == 0 || len(counts) == 0 || len(counts) != len(t.Bounds) {
		return Took{}, false
	}
	return Took{quantile(t.Bounds, counts, all, 0.5), quantile(t.Bounds, counts, all, 0.99)}, true
}

// quantile is how long a part of the answers took at most, as exactly as the bounds tell
// it. What is above all of them counts as the last.
func quantile(bounds []float64, counts []uint64, all uint64, part float64) time.Duration {
	wanted := part * float64(all)
	below, from := 0.0, 0.0
	for i, bound := range bounds {
		if count := float64(counts[i]); count >= wanted && count > below {
			return seconds(from + (bound-from)*(wanted-below)/(count-below))
		}
		below, from = float64(counts[i]), bound
	}
	return seconds(bounds[len(bounds)-1])
}

func seconds(s float64) time.Duration { return time.Duration(math.Round(s * float64(time.Second))) }

// Rate is how many calls a second there were in the last minute.
func (r *Recent) Rate() (sum float64) {
	for _, rate := range r.Minute {
		sum += rate
	}
	return sum
}

// EmptyIn is how long a spool's records will take to be delivered, at the pace of the
// last minute; 0 if they do not become fewer.
func (r *Recent) EmptyIn(records int) time.Duration {
	pace := r.Leaving - r.Arriving
	if records == 0 || pace <= 0 {
		return 0
	}
	left := float64(records) / pace
	if left > (365 * 24 * time.Hour).Seconds() {
		return 0
	}
	return seconds(left)
}

// Minutes are the counts of each of the last fifteen minutes, the newest first.
func (r *Recent) Minutes() [int(Span / time.Minute)][kinds]uint64 {
	var minutes [int(Span / time.Minute)][kinds]uint64
	for _, p := range r.Points {
		of := int((p.From + p.To) / 2 / time.Minute)
		if of < 0 || of >= len(minutes) {
			continue
		}
		for kind, count := range p.Counts {
			minutes[of][kind] += count
		}
	}
	return minutes
}
