// Package console makes the page on which an operator sees how a gateway is: what is
// wrong first, then what comes, where it goes, who sends it, and what is left to do. It
// is given what the page shows, and knows nothing of where that comes from. Texts may
// come from callers: none of them becomes markup.
package console

import (
	"fmt"
	"strings"
	"time"
)

// Page is what the page shows.
type Page struct {
	Now     time.Time
	Gateway string // which one of several this is
	Version string
	Started time.Time

	// Token must come with every action. It is empty if the page offers none.
	Token string

	Notice *Notice // what an action has done; nil without one
	Trial  *Trial  // what a share would do; nil if nobody has asked

	Recent    *Recent
	Hosts     []Host
	Books     []Book
	Spools    []Spool
	SpoolsOld bool    // a spool does not answer: they are as they were before
	Plan      *Plan   // nil if everything goes to v2
	Audit     *Audit  // nil if nothing is to be moved, or nobody counts callers
	Report    *Report // nil without a report of callers
	Caller    *Caller // the one that is looked at; nil if there is none
	Calls     []Call  // a live sample; the newest comes first

	Refusals []RefusalKind
	Letters  *Letters // nil unless somebody looks at dead letters
}

// Notice is what an action has done, or why it has not: then its level is Bad. If it is
// Look, there is something to see to.
type Notice struct {
	Level  Level
	Text   string
	Unsure bool // it may be done all the same, or later
}

// Done says whether something was done.
func (n *Notice) Done() string {
	if n.Unsure {
		return "Not confirmed."
	}
	return [...]string{"Not done.", "Done, but look.", "Done."}[n.Level]
}

// Host is one to which calls go.
type Host struct {
	Name    string
	Lane    string
	Circuit Circuit
	Last    *Failure // nil if there was none since the start
}

// Circuit says whether a host is taken to be down.
type Circuit string

// The states of a host.
const (
	CircuitClosed  Circuit = "takes records"
	CircuitOpen    Circuit = "down: tried now and then"
	CircuitUnknown Circuit = "not watched" // without a spool, each call finds out by itself
)

// Class is the state's name in the stylesheet.
func (c Circuit) Class() string {
	return map[Circuit]string{CircuitClosed: Good.Class(), CircuitOpen: Look.Class()}[c]
}

// Failure is the last time that a host did not take a call.
type Failure struct {
	Time   time.Time
	Status int    // 0 without an answer
	Words  string // the host's own, or why there was no answer
}

// Book says what became of the calls of one surface, since the start.
type Book struct {
	Surface                                                           string
	Received, Forwarded, Spooled, Refused, Lost, UnderWay, Difference int64
}

// Spool is how a spool is.
type Spool struct {
	Place              string
	Health             Health
	Available          bool // it takes records
	Full               bool
	Stale              bool // the figures are as they were before
	Bytes, MaxBytes    int64
	DeadBytes, MaxDead int64
	Queues             []Queue
}

// Health sums up how a spool is.
type Health string

// The states of a spool.
const (
	HealthOK       Health = "ok"
	HealthDegraded Health = "degraded"
	HealthRefusing Health = "refusing"
)

// Class is the state's name in the stylesheet.
func (h Health) Class() string {
	return map[Health]string{HealthOK: Good.Class(), HealthDegraded: Look.Class(), HealthRefusing: Bad.Class()}[h]
}

// Queue is one host's part of a spool.
type Queue struct {
	Name          string
	Records, Dead int
	Oldest        time.Time // zero without records
	Down          bool
	Paused        int // accounts that wait for what v2 has answered them
}

// Letters are some dead letters of a queue.
type Letters struct {
	Spool, Queue string
	List         []Letter
	After        uint64 // the last page's last one
	Next         uint64 // the last one of the list, if there may be more; else 0
	Problem      string // why some are not in the list; empty if all are
}

// Letter is a dead letter.
type Letter struct {
	ID            uint64
	Path, Key     string
	Arrived, Died time.Time
	Bytes         int
	Status        int
	Reason, Words string
	Example       string // its names and types
}

// Plan is which calls go to v2.
type Plan struct {
	Revision uint64
	Hold     *Hold // nil unless it is rolled back
	Stick    string
	Rules    []Rule
	History  []Change // the newest comes first
	Degraded string   // why it is not as it should be on disk
	Unsaved  string   // what a restart would do

	Gateways []Gateway // that share it, this one too; none if it is this one's alone
}

// Self is the name of the gateway among those that share the plan, or else another one.
func (p *Plan) Self(another string) string {
	for i := range p.Gateways {
		if p.Gateways[i].Self {
			return p.Gateways[i].Name
		}
	}
	return another
}

// Hold is a rollback.
type Hold struct {
	Time      time.Time
	Who, Note string
	Local     bool // of this gateway alone
}

// Gateway is one of those that share a plan.
type Gateway struct {
	Name     string
	Self     bool
	Revision uint64
	Heard    time.Time
	Why      string // it does not follow; empty if it does
}

// Rule is a share of some calls.
type Rule struct {
	Target, Account string
	Asked           Percent
	Real            *Percent // of the last hour; nil without calls
	Events          uint64   // of the last hour
}

// Default reports whether the rule holds where no other one does.
func (r *Rule) Default() bool { return r.Target == "*.*" && r.Account == "" }

// Change is one revision.
type Change struct {
	Revision        uint64
	Time            time.Time
	Who, Note, What string
	Undoable        bool
}

// Percent is hundredths of a percent.
type Percent uint16

// String is a percentage such as 12.34.
func (p Percent) String() string {
	text := fmt.Sprintf("%d.%02d", p/100, p%100)
	return strings.TrimSuffix(strings.TrimRight(text, "0"), ".")
}

// Audit says whether callers can be moved to v2.
type Audit struct {
	Verdict  string
	Ready    bool
	Reason   string
	Since    time.Duration  // for how long callers were looked at
	Findings []AuditFinding // the worst first
}

// AuditFinding is a finding about some callers.
type AuditFinding struct {
	Finding
	Callers int
}

// Trial is what a share would move.
type Trial struct {
	Rule, Account, Percent string
	Revision               uint64
	Problem                string // why it cannot be tried; empty if it can
	Callers, OfCallers     int
	ToV2, ToLegacy, Of     uint64
	Exact, Held            bool
}

// Call is one of the live sample. It has no value of a record.
type Call struct {
	Time                              time.Time
	Table, Surface, Key, Lane, Result string
	Status                            int
	Took                              time.Duration // 0 without an answer
}

// RefusalKind is a kind of refusals, on one lane.
type RefusalKind struct {
	Code    string
	Lane    string
	Recent  uint64 // in the time of the chart
	Total   uint64 // since the start
	Example string // redacted; empty if there is none
	Do      string
}
