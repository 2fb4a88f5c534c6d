package caddymodule

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/td-postback/gateway/console"
	"github.com/td-postback/gateway/migration"
	"github.com/td-postback/gateway/postback"
)

// This file makes what the console shows of the report of callers. With many rows that is
// much work, so it is made for all who look, and now and then.

// consoleCallers is a report as the console shows it.
type consoleCallers struct {
	report   *console.Report
	rows     []migration.Row // in the order of the report's callers
	host     string
	rules    map[migration.Rule]migration.RuleStatus
	audit    *console.Audit
	examples map[string]string // by the name of a finding
}

// reportOf is what a report that is made depends on: one of another configuration, or of
// another plan, must not be shown.
type reportOf struct {
	report   *reportUse
	plan     *planUse
	revision uint64
}

// report is the report as it was some seconds ago; nil without one.
func (w *consoleWatch) report(now time.Time) *consoleCallers {
	of := reportOf{report: shownReport.Load(), plan: shownPlan.Load()}
	if of.report == nil {
		return nil
	}
	if of.plan != nil {
		of.revision = of.plan.get().Plan().Signals().Revision
	}
	return w.callers.get(of, reportMost, func() *consoleCallers { return newConsoleCallers(&of, now) })
}

func newConsoleCallers(of *reportOf, now time.Time) *consoleCallers {
	listing := of.report.get().List(now)
	c := &consoleCallers{
		report: &console.Report{Time: now, MaxRows: listing.MaxRows, Others: listing.Others.Events7d},
		rows:   listing.Rows, host: of.report.host, examples: map[string]string{},
	}
	c.report.NotSaved, _ = of.report.trouble.Load().(string)
	c.report.Callers.Rows = make([]console.Caller, 0, len(c.rows))
	tables, keys := tableRows{}, keyRows{}
	for i := range c.rows {
		row := &c.rows[i]
		c.report.Callers.Rows = append(c.report.Callers.Rows, consoleCaller(row))
		tables.add(row)
		keys.add(row)
		for _, example := range row.Examples {
			for _, finding := range example.Findings {
				if c.examples[finding] == "" {
					c.examples[finding] = example.Request
				}
			}
		}
	}
	c.report.Tables.Rows, c.report.Keys.Rows = tables.rows(), keys.rows()
	if of.plan != nil {
		c.addPlan(of, now)
		c.audit = consoleAudit(listing.Audit(now.Add(-auditedFor)))
	}
	return c
}

// auditedFor is for how long the page looks at callers that may move: as td-migrate audit
// does, unless somebody says otherwise.
const auditedFor = 24 * time.Hour

func consoleAudit(a *migration.Audit) *console.Audit {
	shown := &console.Audit{Verdict: string(a.Verdict), Ready: a.Verdict != migration.VerdictNot, Reason: a.Reason, Since: auditedFor}
	for _, f := range a.Findings {
		shown.Findings = append(shown.Findings, console.AuditFinding{Finding: consoleFinding(&f.RowFinding), Callers: f.Callers})
	}
	return shown
}

func consoleFinding(f *migration.RowFinding) console.Finding {
	return console.Finding{Name: f.Name, Kind: f.Kind, Advice: f.Advice, Events: f.Events}
}

// auditOf is whether the callers can move.
func (c *consoleCallers) auditOf() *console.Audit {
	if c == nil {
		return nil
	}
	return c.audit
}

// addPlan adds what the plan says, and what has become of it in the last hour. While the
// plan's disk does not answer, there is nothing to add.
func (c *consoleCallers) addPlan(of *reportOf, now time.Time) {
	plan, report, rows := of.plan.get(), of.report.get(), c.report.Tables.Rows
	shares, ok := within(of.plan.turns[askingPage], planPatience, func() []migration.RuleStatus { return plan.Shares(report, now) })
	if !ok {
		return
	}
	c.rules = make(map[migration.Rule]migration.RuleStatus, len(shares))
	for _, r := range shares {
		c.rules[r.Rule] = r
	}
	tables := make([]postback.Destination, len(rows))
	for i := range rows {
		tables[i].Database, tables[i].Table, _ = strings.Cut(rows[i].Name, ".")
	}
	for i, t := range plan.Tables(report, tables, now) {
		asked := console.Percent(t.Asked)
		rows[i].Asked, rows[i].Accounts, rows[i].Real = &asked, t.Accounts, percentOf(t.Real())
	}
}

// caller is one that is looked at, with what it should send instead.
func (c *consoleCallers) caller(id string) *console.Caller {
	if id == "" {
		return nil
	}
	i := c.report.Find(id)
	if i < 0 {
		return nil
	}
	caller, row := c.report.Callers.Rows[i], &c.rows[i]
	if row.State == migration.Left {
		caller.Curl, caller.Tag = migration.Curl(c.host, row.Database, row.Table), migration.Tag(c.host, row.Database, row.Table)
	}
	return &caller
}

// example is what a caller with a finding sends.
func (c *consoleCallers) example(finding string) string {
	if c == nil {
		return ""
	}
	return c.examples[finding]
}

func consoleCaller(row *migration.Row) console.Caller {
	caller := console.Caller{
		ID: callerID(row), Key: row.Key, Table: tableName(row.Database, row.Table), Surface: row.Surface, Agent: row.Agent, Source: row.Source, State: string(row.State),
		FirstSeen: row.FirstSeen, LastSeen: row.LastSeen, Events24h: row.Events24h, Events7d: row.Events7d, Events: row.Events, Error: row.Error,
		Lanes: consoleCounts(row.Lanes), Results: consoleCounts(row.Results),
	}
	for i := range row.Findings {
		caller.Findings = append(caller.Findings, consoleFinding(&row.Findings[i]))
	}
	for _, e := range row.Examples {
		caller.Examples = append(caller.Examples, console.Example{Request: e.Request, Findings: e.Findings})
	}
	return caller
}

// callerID names a row in links, as long as it is there, and through restarts.
func callerID(row *migration.Row) string {
	hash := fnv.New64a()
	for _, part := range []string{row.Key, row.Database, row.Table, row.Surface, row.Agent, row.Source} {
		_, _ = hash.Write([]byte(part))
		_, _ = hash.Write([]byte{0})
	}
	return fmt.Sprintf("%016x", hash.Sum64())
}

// consoleCounts are counts, the most first.
func consoleCounts(of map[string]uint64) []console.Count {
	counts := make([]console.Count, 0, len(of))
	for name, count := range of {
		counts = append(counts, console.Count{Name: name, Count: count})
	}
	slices.SortFunc(counts, func(a, b console.Count) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), strings.Compare(a.Name, b.Name))
	})
	return counts
}

// tableRows sums the rows up by table, and keyRows by key.
type (
	tableRows map[string]*console.Table
	keyRows   map[string]*keyRow
)

type keyRow struct {
	console.Key
	tables map[string]bool
}

func (t tableRows) add(row *migration.Row) {
	name := tableName(row.Database, row.Table)
	table := t[name]
	if table == nil {
		table = &console.Table{Name: name}
		t[name] = table
	}
	table.Events24h += row.Events24h
	table.Events7d += row.Events7d
	table.Callers++
	if row.State == migration.Left {
		table.Left++
	}
	table.Findings = withFindings(table.Findings, row)
	table.LastSeen = later(table.LastSeen, row.LastSeen)
}

// withFindings are these and those of a row, each once.
func withFindings(names []string, row *migration.Row) []string {
	for _, f := range row.Findings {
		if !slices.Contains(names, f.Name) {
			names = append(names, f.Name)
		}
	}
	return names
}

func (t tableRows) rows() []console.Table {
	rows := make([]console.Table, 0, len(t))
	for _, name := range slices.Sorted(maps.Keys(t)) {
		rows = append(rows, *t[name])
	}
	return rows
}

func (k keyRows) add(row *migration.Row) {
	if row.Key == "" {
		return
	}
	key := k[row.Key]
	if key == nil {
		key = &keyRow{Key: console.Key{Name: row.Key}, tables: map[string]bool{}}
		k[row.Key] = key
	}
	key.Events24h += row.Events24h
	key.Events7d += row.Events7d
	key.Callers++
	key.tables[tableName(row.Database, row.Table)] = true
	key.Findings = withFindings(key.Findings, row)
	key.LastSeen = later(key.LastSeen, row.LastSeen)
}

func (k keyRows) rows() []console.Key {
	rows := make([]console.Key, 0, len(k))
	for _, name := range slices.Sorted(maps.Keys(k)) {
		key := k[name]
		key.Tables = len(key.tables)
		rows = append(rows, key.Key)
	}
	return rows
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}
