package migration

import (
	"cmp"
	"encoding/csv"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// This file says whether callers can be moved to v2, by what the report has found out
// about them.

// Verdict says whether callers can be moved to v2 by the gateway.
type Verdict string

// The verdicts.
const (
	VerdictReady   Verdict = "ready"              // v2 takes what they send as it is
	VerdictChanges Verdict = "ready with changes" // the gateway makes of it what v2 takes
	VerdictNot     Verdict = "not ready"          // something is refused, or nothing is known
)

// Audit is what is known of the callers that were there since a time: its JSON is that of
// the admin API.
type Audit struct {
	Time    time.Time `json:"time"`
	Since   time.Time `json:"since"`
	Verdict Verdict   `json:"verdict"`
	Reason  string    `json:"reason"` // why, in a sentence

	Findings []AuditFinding  `json:"findings"` // of all callers, the worst first
	Callers  []AuditedCaller `json:"callers"`  // the worst first

	// NotSaved is that of the report.
	NotSaved string `json:"not_saved,omitempty"`
}

// AuditFinding is a finding about some callers.
type AuditFinding struct {
	RowFinding
	Callers int `json:"callers"` // how many; all without a row count as one
}

// AuditedCaller is a caller, and what was found out about it. Counts are those of its
// row, since it has that.
type AuditedCaller struct {
	Key      string `json:"key"` // the fingerprint, or empty; all callers without a row are others
	Database string `json:"database"`
	Table    string `json:"table"`
	Surface  string `json:"surface"`
	Agent    string `json:"agent"`
	Source   string `json:"source"`

	Verdict  Verdict           `json:"verdict"`
	LastSeen time.Time         `json:"last_seen"`
	Events   uint64            `json:"events"`
	Lanes    map[string]uint64 `json:"lanes,omitempty"`
	Findings []RowFinding      `json:"findings"` // since the audit's time
}

// othersName stands for the key of all callers that have no row.
const othersName = "others"

// Audit judges the callers that were seen since a time, in whole seconds, as rows have
// theirs.
func (l *Listing) Audit(since time.Time) *Audit {
	since = since.Truncate(time.Second)
	a := &Audit{Time: l.Time, Since: since, Findings: []AuditFinding{}, Callers: []AuditedCaller{}, NotSaved: l.NotSaved}
	for i := range l.Rows {
		r := &l.Rows[i]
		a.add(AuditedCaller{
			Key: r.Key, Database: r.Database, Table: r.Table, Surface: r.Surface, Agent: r.Agent, Source: r.Source,
			LastSeen: r.LastSeen, Events: r.Events, Lanes: r.Lanes,
		}, r.Findings)
	}
	if o := &l.Others; o.Events > 0 {
		a.add(AuditedCaller{Key: othersName, LastSeen: o.LastSeen, Events: o.Events}, o.Findings)
	}
	slices.SortStableFunc(a.Callers, func(a, b AuditedCaller) int { // the others are still sorted by events
		return cmp.Compare(b.Verdict.rank(), a.Verdict.rank())
	})
	slices.SortFunc(a.Findings, func(a, b AuditFinding) int {
		return cmp.Or(cmp.Compare(kindRank(b.Kind), kindRank(a.Kind)), cmp.Compare(b.Events, a.Events), strings.Compare(a.Name, b.Name))
	})
	a.judge()
	return a
}

// add adds a caller, if it was seen since.
func (a *Audit) add(c AuditedCaller, findings []RowFinding) {
	if c.LastSeen.Before(a.Since) {
		return
	}
	c.Verdict, c.Findings = VerdictReady, []RowFinding{}
	for _, f := range findings {
		if f.LastSeen.Before(a.Since) {
			continue
		}
		c.Findings = append(c.Findings, f)
		if v := f.verdict(); v.rank() > c.Verdict.rank() {
			c.Verdict = v
		}
		a.addFinding(f)
	}
	a.Callers = append(a.Callers, c)
}

func (a *Audit) addFinding(f RowFinding) {
	i := slices.IndexFunc(a.Findings, func(known AuditFinding) bool { return known.Name == f.Name })
	if i < 0 {
		a.Findings = append(a.Findings, AuditFinding{f, 1})
		return
	}
	all := &a.Findings[i]
	all.Events += f.Events
	all.Callers++
	if f.LastSeen.After(all.LastSeen) {
		all.LastSeen = f.LastSeen
	}
}

// verdict is that of a caller with nothing but this finding. A body that comes too slowly
// is refused by both lanes.
func (f *RowFinding) verdict() Verdict {
	switch {
	case f.Name == RequestTimeout.String():
		return VerdictReady
	case f.Kind == Refused.String():
		return VerdictNot
	case f.Kind == Changed.String():
		return VerdictChanges
	default:
		return VerdictReady
	}
}

// rank is higher for what is worse.
func (v Verdict) rank() int {
	return slices.Index([]Verdict{VerdictReady, VerdictChanges, VerdictNot}, v)
}

func kindRank(kind string) int {
	return slices.Index([]string{Noted.String(), Changed.String(), Refused.String()}, kind)
}

// judge says the verdict on all callers.
func (a *Audit) judge() {
	counts := map[Verdict]int{}
	for i := range a.Callers {
		counts[a.Callers[i].Verdict]++
	}
	of := fmt.Sprintf("of %d callers", len(a.Callers))
	switch {
	case len(a.Callers) == 0:
		a.Verdict, a.Reason = VerdictNot, "No caller was seen in this time, so nothing is known."
	case counts[VerdictNot] > 0:
		a.Verdict, a.Reason = VerdictNot, fmt.Sprintf("%d %s send what is refused on the way to v2, and lost when they are moved.", counts[VerdictNot], of)
	case counts[VerdictChanges] > 0:
		a.Verdict, a.Reason = VerdictChanges, fmt.Sprintf("%d %s send what the gateway makes fit for v2: they can be moved, and need the gateway.", counts[VerdictChanges], of)
	default:
		a.Verdict, a.Reason = VerdictReady, fmt.Sprintf("All %s send what v2 takes as it is.", strings.TrimPrefix(of, "of "))
	}
}

var auditHead = []string{"verdict", "key", "database", "table", "surface", "agent", "source", "last_seen", "events", "findings", "advice"}

// allName stands for the key in the line of the verdict on all callers.
const allName = "all"

// WriteCSV writes the audit as CSV: a line of names, one of all callers, and one for each.
// No cell begins with what a spreadsheet takes for a formula.
func (a *Audit) WriteCSV(w io.Writer) error {
	out := csv.NewWriter(w)
	_ = out.Write(auditHead) // as of the other lines, Error has what went wrong
	all := AuditedCaller{Key: allName, Verdict: a.Verdict}
	for i := range a.Callers {
		all.Events += a.Callers[i].Events
		if last := a.Callers[i].LastSeen; last.After(all.LastSeen) {
			all.LastSeen = last
		}
	}
	for i := range a.Findings {
		all.Findings = append(all.Findings, a.Findings[i].RowFinding)
	}
	_ = out.Write(all.cells())
	for i := range a.Callers {
		_ = out.Write(a.Callers[i].cells())
	}
	out.Flush()
	return out.Error()
}

// cells are those of auditHead.
func (c *AuditedCaller) cells() []string {
	names, advice := make([]string, 0, len(c.Findings)), make([]string, 0, len(c.Findings))
	for i := range c.Findings {
		f := &c.Findings[i]
		names, advice = append(names, f.Name+" "+csvNumber(f.Events)), append(advice, f.Advice)
	}
	last := ""
	if !c.LastSeen.IsZero() {
		last = csvTime(c.LastSeen)
	}
	cells := []string{
		string(c.Verdict), c.Key, c.Database, c.Table, c.Surface, c.Agent, c.Source, last, csvNumber(c.Events), strings.Join(names, ", "), strings.Join(advice, " "),
	}
	for i, cell := range cells {
		cells[i] = csvCell(cell)
	}
	return cells
}
