package console

import (
	"cmp"
	"slices"
	"strings"
	"sync"
	"time"
)

// Report is who sends what. It does not change once a page has shown it: the order of
// many rows is made once.
type Report struct {
	Time     time.Time
	NotSaved string // why it is gone with the process
	MaxRows  int
	Others   uint64 // events in 7 days of callers without a row

	Tables  List[Table]
	Keys    List[Key]
	Callers List[Caller]
}

// Table is one to which calls go.
type Table struct {
	Name      string
	Asked     *Percent // to v2, by the plan; nil without one
	Accounts  bool     // the plan has other shares for some accounts
	Real      *Percent // of the last hour; nil without calls or a plan
	Events24h uint64
	Events7d  uint64
	Callers   int
	Left      int // of them
	Findings  []string
	LastSeen  time.Time
}

// Key is a write key, by its fingerprint.
type Key struct {
	Name      string
	Events24h uint64
	Events7d  uint64
	Tables    int
	Callers   int
	Findings  []string
	LastSeen  time.Time
}

// Caller is who sends something.
type Caller struct {
	ID                         string // in links
	Key, Table, Surface, Agent string
	Source, State              string
	FirstSeen, LastSeen        time.Time
	Events24h, Events7d        uint64
	Events, Error              uint64
	Lanes, Results             []Count
	Findings                   []Finding
	Examples                   []Example
	Curl, Tag                  string
}

// Count is how many there are of something.
type Count struct {
	Name  string
	Count uint64
}

// Finding is what a caller's owner should know.
type Finding struct {
	Name, Kind, Advice string
	Events             uint64
}

// Example is what a caller sends: names and types, no value.
type Example struct {
	Request  string
	Findings []string
}

// Find finds the place of a caller by its ID, or -1.
func (r *Report) Find(id string) int {
	return slices.IndexFunc(r.Callers.Rows, func(c Caller) bool { return c.ID == id })
}

// column is what rows can be sorted by. Links name it.
type column[T any] struct {
	name, title string
	number      bool              // it stands at the right
	up          bool              // the lowest comes first
	compare     func(a, b *T) int // what is looked at first comes first
}

// List is rows in the order in which they come, and in others.
type List[T any] struct {
	Rows []T

	mu     sync.Mutex
	orders map[string][]int
}

// sorted is the order of the rows by a column. The first order stays among equals.
func (l *List[T]) sorted(by column[T]) []int {
	l.mu.Lock()
	defer l.mu.Unlock()
	if order, ok := l.orders[by.name]; ok {
		return order
	}
	order := make([]int, len(l.Rows))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return by.compare(&l.Rows[a], &l.Rows[b]) })
	if l.orders == nil {
		l.orders = map[string][]int{}
	}
	l.orders[by.name] = order
	return order
}

// pageSize is how many rows are shown at a time.
const pageSize = 50

// some are the rows of a page, which counts from 1.
func (l *List[T]) some(by column[T], page int) []*T {
	order := l.sorted(by)
	from := min((page-1)*pageSize, len(order))
	rows := make([]*T, 0, pageSize)
	for _, i := range order[from:min(from+pageSize, len(order))] {
		rows = append(rows, &l.Rows[i])
	}
	return rows
}

// pages is how many pages there are.
func (l *List[T]) pages() int { return max(1, (len(l.Rows)+pageSize-1)/pageSize) }

// most compares so that more comes first.
func most[N cmp.Ordered](a, b N) int { return cmp.Compare(b, a) }

// byEvents is the column by which every list is sorted, unless somebody wants another.
const byEvents = "events"

var tableColumns = []column[Table]{
	{"name", "Table", false, true, func(a, b *Table) int { return strings.Compare(a.Name, b.Name) }},
	{byEvents, "Events in 7 days", true, false, func(a, b *Table) int { return most(a.Events7d, b.Events7d) }},
	{"asked", "To v2, asked", true, true, func(a, b *Table) int { return cmp.Compare(percentOf(a.Asked), percentOf(b.Asked)) }},
	{"real", "Real", true, true, func(a, b *Table) int { return cmp.Compare(percentOf(a.Real), percentOf(b.Real)) }},
	{"left", "Callers left", true, false, func(a, b *Table) int { return most(a.Left, b.Left) }},
	{"findings", "Findings", false, false, func(a, b *Table) int { return most(len(a.Findings), len(b.Findings)) }},
	{"seen", "Last seen", false, false, func(a, b *Table) int { return b.LastSeen.Compare(a.LastSeen) }},
}

var keyColumns = []column[Key]{
	{"name", "Key", false, true, func(a, b *Key) int { return strings.Compare(a.Name, b.Name) }},
	{byEvents, "Events in 7 days", true, false, func(a, b *Key) int { return most(a.Events7d, b.Events7d) }},
	{"tables", "Tables", true, false, func(a, b *Key) int { return most(a.Tables, b.Tables) }},
	{"callers", "Callers", true, false, func(a, b *Key) int { return most(a.Callers, b.Callers) }},
	{"findings", "Findings", false, false, func(a, b *Key) int { return most(len(a.Findings), len(b.Findings)) }},
	{"seen", "Last seen", false, false, func(a, b *Key) int { return b.LastSeen.Compare(a.LastSeen) }},
}

var callerColumns = []column[Caller]{
	{"agent", "Caller", false, true, func(a, b *Caller) int {
		return cmp.Or(strings.Compare(a.Agent, b.Agent), strings.Compare(a.Source, b.Source))
	}},
	{byEvents, "Events in 7 days", true, false, func(a, b *Caller) int { return most(a.Events7d, b.Events7d) }},
	{"state", "State", false, true, func(a, b *Caller) int { return strings.Compare(a.State, b.State) }},
	{"table", "Table", false, true, func(a, b *Caller) int { return strings.Compare(a.Table, b.Table) }},
	{"key", "Key", false, true, func(a, b *Caller) int { return strings.Compare(a.Key, b.Key) }},
	{"findings", "Findings", false, false, func(a, b *Caller) int { return most(len(a.Findings), len(b.Findings)) }},
	{"seen", "Last seen", false, false, func(a, b *Caller) int { return b.LastSeen.Compare(a.LastSeen) }},
}

// percentOf orders what is not known before the lowest.
func percentOf(p *Percent) int {
	if p == nil {
		return -1
	}
	return int(*p)
}
