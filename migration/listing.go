package migration

import (
	"cmp"
	"encoding/csv"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Listing is a report at one time, for people and programs: its JSON is that of the
// admin API.
type Listing struct {
	Time    time.Time `json:"time"`
	MaxRows int       `json:"max_rows"` // of more callers, the rare ones are among the others
	Rows    []Row     `json:"rows"`     // the one with most events in 7 days comes first
	Others  Others    `json:"others"`

	// NotSaved is why the file has not got the report, if that is so: it is gone with the
	// process then. The caller of List knows.
	NotSaved string `json:"not_saved,omitempty"`
}

// Row is one caller, and what it has sent. Events of a day are those of this hour
// and the 24 before; those of a week are counted by six hours: of these and the 28 before.
type Row struct {
	Key      string `json:"key"` // the fingerprint, or empty
	Database string `json:"database"`
	Table    string `json:"table"`
	Surface  string `json:"surface"`
	Agent    string `json:"agent"`  // the product's name without its version
	Source   string `json:"source"` // a page's site, or a network as CIDR

	State     State     `json:"state"`
	FirstSeen time.Time `json:"first_seen"`
	LastSeen  time.Time `json:"last_seen"`
	Events24h uint64    `json:"events_24h"`
	Events7d  uint64    `json:"events_7d"`
	Events    uint64    `json:"events"` // since it has the row
	Error     uint64    `json:"error"`  // so many more at most, while it was one of the others

	Lanes    map[string]uint64 `json:"lanes"`    // events by lane
	Results  map[string]uint64 `json:"results"`  // events by what became of them
	Findings []RowFinding      `json:"findings"` // of the last 7 days in which it was there
	Examples []RowExample      `json:"examples"`

	Instead *Instead `json:"instead,omitempty"` // what to send, if it is left: see AddInstead
}

// RowFinding is a finding about a caller.
type RowFinding struct {
	Name     string    `json:"name"`
	Kind     string    `json:"kind"`
	Events   uint64    `json:"events"` // that it was true of
	LastSeen time.Time `json:"last_seen"`
	Advice   string    `json:"advice"`
}

// RowExample is an example of what a caller sends.
type RowExample struct {
	Request  string   `json:"request"`  // names and types, and no value
	Findings []string `json:"findings"` // what is to change
}

// Others is all callers that have no row.
type Others struct {
	Rows      uint64    `json:"rows"` // how often a row was taken from a caller
	FirstSeen time.Time `json:"first_seen,omitzero"`
	LastSeen  time.Time `json:"last_seen,omitzero"`
	Events24h uint64    `json:"events_24h"`
	Events7d  uint64    `json:"events_7d"`
	Events    uint64    `json:"events"`
	Error     uint64    `json:"error"` // the most events that one of them can have

	Findings []RowFinding `json:"findings,omitempty"` // about some of them, of the last 7 days in which they were there
}

// State says how far a caller is.
type State string

// The states of callers.
const (
	Left     State = "left"                       // within 7 days it has sent what v2 would not take as it is
	Ready    State = "ready to leave the gateway" // within 7 days it has sent nothing but v2's form
	Stranger State = "stranger"                   // within 7 days it has sent no key, and nothing to a path of the gateway's: a scanner, or a check of its health
	Gone     State = "gone"                       // for 7 days it has sent nothing
)

const leftFor = 7 * 24 * time.Hour

// List is what the report knows at a time.
func (r *Report) List(now time.Time) *Listing {
	r.mu.RLock()
	rows := r.order.all()
	l := &Listing{Time: now, MaxRows: r.limit, Rows: make([]Row, 0, len(rows)), Others: r.others.list(now)}
	r.mu.RUnlock()
	for _, one := range rows { // one at a time: callers do not wait for all of it
		l.Rows = append(l.Rows, one.list(now))
	}
	slices.SortFunc(l.Rows, func(a, b Row) int {
		return cmp.Or(cmp.Compare(b.Events7d, a.Events7d), cmp.Compare(b.Events, a.Events), b.LastSeen.Compare(a.LastSeen),
			strings.Compare(a.name(), b.name()))
	})
	return l
}

func (r *Row) name() string {
	return strings.Join([]string{r.Key, r.Database, r.Table, r.Surface, r.Agent, r.Source}, "\x00")
}

// Keep drops the rows of all callers but those seen since a time, in whole seconds, as
// rows have theirs, and, with left, of those that are not left.
func (l *Listing) Keep(left bool, since time.Time) {
	since = since.Truncate(time.Second)
	l.Rows = slices.DeleteFunc(l.Rows, func(r Row) bool {
		return r.LastSeen.Before(since) || left && r.State != Left
	})
}

func (r *row) list(now time.Time) Row {
	r.mu.Lock()
	defer r.mu.Unlock()
	d := &r.data
	parts := partsOf(r.key)
	out := Row{
		Key: parts[0], Database: parts[1], Table: parts[2], Surface: parts[3], Agent: parts[4], Source: parts[5],
		State: d.state(parts[0], now), FirstSeen: timeOf(d.first), LastSeen: timeOf(d.last),
		Events24h: d.hours.lastDay(hourOf(now)), Events7d: d.hours.lastWeek(hourOf(now)), Events: d.events, Error: d.missed,
		Lanes: map[string]uint64{}, Results: map[string]uint64{}, Examples: []RowExample{},
	}
	for lane, events := range d.lanes {
		if events > 0 {
			out.Lanes[laneNames[lane]] = events
		}
	}
	for _, result := range d.results {
		out.Results[result.name] = result.events
	}
	out.Findings = listFound(d.findings, d.last)
	for _, e := range d.examples {
		names := []string{}
		for f := range e.Findings.All() {
			names = append(names, f.String())
		}
		out.Examples = append(out.Examples, RowExample{e.Request, names})
	}
	return out
}

// listFound lists the findings of a week in which the last event came. What is older is
// done no more: there is nothing to change.
func listFound(all []found, last int64) []RowFinding {
	listed := make([]RowFinding, 0, len(all))
	for _, f := range all {
		if f.last >= last-int64(leftFor/time.Second) {
			listed = append(listed, RowFinding{f.of.String(), f.of.Kind().String(), f.events, timeOf(f.last), f.of.Advice()})
		}
	}
	return listed
}

// state is the state of a caller with this key.
func (d *rowData) state(key string, now time.Time) State {
	week := now.Add(-leftFor).Unix()
	switch {
	case d.formSeen >= week:
		return Left
	case d.last < week:
		return Gone
	case key == "":
		return Stranger
	default:
		return Ready
	}
}

func (o *others) list(now time.Time) Others {
	if o.events == 0 {
		return Others{}
	}
	return Others{
		Rows: o.rows, FirstSeen: timeOf(o.first), LastSeen: timeOf(o.last),
		Events24h: o.hours.lastDay(hourOf(now)), Events7d: o.hours.lastWeek(hourOf(now)), Events: o.events, Error: o.missed,
		Findings: listFound(o.findings, o.last),
	}
}

func timeOf(seconds int64) time.Time { return time.Unix(seconds, 0).UTC() }

var csvHead = []string{
	"key", "database", "table", "surface", "agent", "source", "state", "first_seen", "last_seen", "events_24h", "events_7d", "events", "error",
	"lanes", "results", "findings", "advice", "examples",
}

// WriteCSV writes the listing as CSV: a line of names, one for each row, and one of the
// others if there are any. No cell begins with what a spreadsheet takes for a formula.
func (l *Listing) WriteCSV(w io.Writer) error {
	out := csv.NewWriter(w)
	_ = out.Write(csvHead) // as of the other lines, Error has what went wrong
	for i := range l.Rows {
		_ = out.Write(l.Rows[i].cells())
	}
	if o := &l.Others; o.Events > 0 {
		cells := make([]string, len(csvHead))
		cells[0] = "others"
		copy(cells[7:], []string{csvTime(o.FirstSeen), csvTime(o.LastSeen), csvNumber(o.Events24h), csvNumber(o.Events7d), csvNumber(o.Events), csvNumber(o.Error)})
		_ = out.Write(cells)
	}
	out.Flush()
	return out.Error()
}

// cells are those of csvHead.
func (r *Row) cells() []string {
	names, advice, examples := make([]string, 0, len(r.Findings)), make([]string, 0, len(r.Findings)), make([]string, 0, len(r.Examples))
	for _, f := range r.Findings {
		names, advice = append(names, f.Name), append(advice, f.Advice)
	}
	for _, e := range r.Examples {
		examples = append(examples, e.Request)
	}
	cells := []string{
		r.Key, r.Database, r.Table, r.Surface, r.Agent, r.Source, string(r.State), csvTime(r.FirstSeen), csvTime(r.LastSeen),
		csvNumber(r.Events24h), csvNumber(r.Events7d), csvNumber(r.Events), csvNumber(r.Error),
		csvCounts(r.Lanes), csvCounts(r.Results), strings.Join(names, " "), strings.Join(advice, " "), strings.Join(examples, " | "),
	}
	for i, cell := range cells {
		cells[i] = csvCell(cell)
	}
	return cells
}

// csvCell is a text that a spreadsheet shows, and does not run. Those of some
// countries take the wide signs for the usual ones.
func csvCell(text string) string {
	for _, sign := range []string{"=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠"} {
		if strings.HasPrefix(text, sign) {
			return "'" + text
		}
	}
	return text
}

func csvTime(t time.Time) string { return t.UTC().Format(time.RFC3339) }

func csvNumber(n uint64) string { return strconv.FormatUint(n, 10) }

// csvCounts is `forwarded 12, spooled 3`, the largest first.
func csvCounts(counts map[string]uint64) string {
	names := make([]string, 0, len(counts))
	for name := range counts {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int { return cmp.Or(cmp.Compare(counts[b], counts[a]), strings.Compare(a, b)) })
	for i, name := range names {
		names[i] = name + " " + csvNumber(counts[name])
	}
	return strings.Join(names, ", ")
}
