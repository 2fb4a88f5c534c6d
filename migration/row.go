package migration

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/td-postback/gateway/postback"
)

// Lane is one of the two ways that a call may go.
type Lane uint8

// The lanes.
const (
	V2     Lane = iota // to Postback v2, by the gateway's rules
	Legacy             // to the legacy host, as it came
)

var laneNames = [...]string{"v2", "legacy"}

// String is the lane's name in reports and in the configuration.
func (l Lane) String() string { return laneNames[l] }

// LaneNames are the names of both lanes.
func LaneNames() []string { return laneNames[:] }

// ParseLane reads a lane's name.
func ParseLane(name string) (Lane, error) {
	for lane, known := range laneNames {
		if name == known {
			return Lane(lane), nil
		}
	}
	return 0, fmt.Errorf("must be %s", strings.Join(laneNames[:], " or "))
}

const (
	maxExamples = 3
	maxResults  = 12
	restOfTally = "other"
)

// row is what is known of one caller. Its key changes only with the report and the
// row locked; the rest is behind mu.
type row struct {
	key  string
	mu   sync.Mutex
	data rowData
}

// rowData is what a row has counted.
type rowData struct {
	totals
	missed uint64 // so many events at most were counted for others, before the row began

	formSeen int64 // the last call in a form that v2 would not take, in UNIX seconds
	lanes    [len(laneNames)]uint64
	recent   recent
	results  []tally
	findings []found
	examples []example

	changed bool // since it was saved
	saved   bool // there may be something of it in the file
}

// totals counts events by time.
type totals struct {
	first, last int64 // UNIX seconds
	events      uint64
	hours       hours
}

// tally counts the events of one name.
type tally struct {
	name   string
	events uint64
}

// found counts the events of one finding.
type found struct {
	events uint64
	last   int64 // when it was true last, in UNIX seconds
	of     Finding
}

// example is one call of a row, redacted.
type example struct {
	Request  string   // names and types, and no value: see Redact
	Findings Findings // what is to change
}

// addTo counts events under a name. Should there be more names than the limit, the
// rest has one of its own.
func addTo(tallies []tally, name string, events uint64, limit int) []tally {
	for i := range tallies {
		if tallies[i].name == name {
			tallies[i].events += events
			return tallies
		}
	}
	if len(tallies) >= limit && name != restOfTally {
		return addTo(tallies, restOfTally, events, limit)
	}
	return append(tallies, tally{name, events})
}

// addFound counts events of which a finding was true.
func addFound(all []found, more found) []found {
	for i := range all {
		if f := &all[i]; f.of == more.of {
			f.events += more.events
			f.last = max(f.last, more.last)
			return all
		}
	}
	return append(all, more)
}

// weight is what the row's place depends on: how many events it may have had.
func (d *rowData) weight() uint64 { return d.missed + d.events }

// add counts a call.
func (d *rowData) add(c *Call) {
	events := uint64(max(1, c.Events))
	now := d.last // as long as the clock cannot be right
	if postback.PlausibleTime(c.Time) {
		now = c.Time.Unix()
		d.hours.add(hourOf(c.Time), events)
	}
	if d.first == 0 {
		d.first = now
	}
	d.last = now
	d.events += events
	d.lanes[c.Lane] += events
	if !c.Undecided {
		d.recent.add(recentStepOf(c.Time), c.Lane, events)
	}
	d.results = addTo(d.results, clean(c.Result, maxResult), events, maxResults)
	for f := range c.Findings.All() {
		d.findings = addFound(d.findings, found{events, now, f})
	}
	if c.legacyForm() {
		d.formSeen = now
	}
	d.changed = true
}

// legacyForm reports whether a call makes its caller one that is left. One without a
// key for a path that nobody serves is a scanner's, or a check of the gateway's health.
func (c *Call) legacyForm() bool {
	return c.Findings.LegacyForm() && (c.Key != "" || c.Findings != 1<<NotFound)
}

// wantsExample reports whether a call would be the row's first example with its
// findings.
func (d *rowData) wantsExample(of Findings) bool {
	return len(d.examples) < maxExamples && !slices.ContainsFunc(d.examples, func(e example) bool { return e.Findings == of })
}

// begin makes the row another caller's.
func (r *row) begin(key string, missed uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.key = key
	r.data = rowData{missed: missed, results: r.data.results[:0], findings: r.data.findings[:0]}
}

// merge adds what the row had in a file.
func (d *rowData) merge(saved *rowData) {
	d.totals.merge(&saved.totals)
	d.missed = max(d.missed, saved.missed)
	d.formSeen = max(d.formSeen, saved.formSeen)
	for lane, events := range saved.lanes {
		d.lanes[lane] += events
	}
	for _, t := range saved.results {
		d.results = addTo(d.results, t.name, t.events, maxResults)
	}
	for _, f := range saved.findings {
		d.findings = addFound(d.findings, f)
	}
	for _, e := range saved.examples {
		if d.wantsExample(e.Findings) {
			d.examples = append(d.examples, e)
		}
	}
	d.changed, d.saved = true, true
}

// notAfter brings to the present what was counted while the clock was ahead.
func (d *rowData) notAfter(now int64) {
	d.first, d.last, d.formSeen = min(d.first, now), min(d.last, now), min(d.formSeen, now)
	foundNotAfter(d.findings, now)
	d.changed = true
}

func foundNotAfter(all []found, now int64) {
	for i := range all {
		all[i].last = min(all[i].last, now)
	}
}

// merge adds the counts of another row, or of several.
func (t *totals) merge(other *totals) {
	if t.first == 0 || other.first != 0 && other.first < t.first {
		t.first = other.first
	}
	t.last = max(t.last, other.last)
	t.events += other.events
	t.hours.merge(&other.hours)
}

func hourOf(t time.Time) int64 { return t.Unix() / 3600 }
