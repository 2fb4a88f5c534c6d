package migration

import (
	"slices"
	"time"

	"github.com/td-postback/gateway/postback"
)

// This file says what a rule is about: what callers have sent of late that it names, and
// which other rules decide over a part of that.

// Fit is what a rule is about. A rule without events may be misspelt.
type Fit struct {
	Hour uint64 `json:"events_hour"` // of the last hour, of what the rule names
	Week uint64 `json:"events_7d"`   // of 7 days

	// Several is how many events of 7 days came in calls of several tables. The report
	// does not say of which, so some of them may be of what the rule names.
	Several uint64 `json:"events_several_tables"`

	// Before are the more specific rules, each of which decides over a part of what the
	// rule names.
	Before []RuleShare `json:"before"`

	// Tables are the others that the report has, each once, as rules name them: one of them
	// may have been meant.
	Tables []string `json:"-"`
}

// Fit says what a rule is about.
func (s *Steering) Fit(rule Rule, r *Report, now time.Time) *Fit {
	s.file.mu.Lock()
	rules := s.state.Rules
	s.file.mu.Unlock()
	fit := &Fit{Before: []RuleShare{}}
	for _, other := range rules {
		if other.precedes(rule) {
			fit.Before = append(fit.Before, other)
		}
	}
	for _, row := range r.recently(now) {
		if rule.covers(row.account, row.to) {
			fit.Hour += row.events()
		}
	}
	for _, row := range r.List(now).Rows {
		to := tableOf(postback.Destination{Database: row.Database, Table: row.Table})
		switch {
		case rule.covers(postback.AccountOf(row.Key), to):
			fit.Week += row.Events7d
		case to != postback.Destination{}:
			fit.Tables = append(fit.Tables, to.Database+"."+to.Table)
		case row.Surface == postback.K.String() || row.Surface == postback.Mobile.String():
			fit.Several += row.Events7d
		}
	}
	slices.Sort(fit.Tables)
	fit.Tables = slices.Compact(fit.Tables)
	return fit
}

// covers reports whether a rule is for what an account sends to a table.
func (r Rule) covers(account string, to postback.Destination) bool {
	database, table := r.names()
	return (r.Account == "" || r.Account == account) &&
		(database == wildcard || database == to.Database && (table == wildcard || table == to.Table))
}

// precedes reports whether a rule decides in the place of another one over a part of what
// that names, or all of it.
func (r Rule) precedes(other Rule) bool {
	database, table := r.names()
	otherDatabase, otherTable := other.names()
	return r.rank() > other.rank() && mayAgree(r.Account, other.Account, "") &&
		mayAgree(database, otherDatabase, wildcard) && mayAgree(table, otherTable, wildcard)
}

// mayAgree reports whether two words are the same, or one of them stands for all.
func mayAgree(a, b, all string) bool { return a == b || a == all || b == all }

// rank is how specific a rule is: one for a table more than one for a database, and then
// one for an account more than one for all.
func (r Rule) rank() (rank int) {
	database, table := r.names()
	if database != wildcard {
		rank += 2
	}
	if table != wildcard {
		rank += 2
	}
	if r.Account != "" {
		rank++
	}
	return rank
}
