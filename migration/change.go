package migration

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/td-postback/gateway/postback"
)

// This file changes a plan: from what it is and what is wanted to what it then is. It
// does nothing else: what comes of it is kept and put into force in steering.go.

// The bounds of what a plan keeps.
const (
	// MaxRules is how many rules a plan may have.
	MaxRules = 10_000

	// MaxNote is the longest note, in bytes.
	MaxNote = 500

	// MaxHistory is how many changes a plan keeps.
	MaxHistory = 1000

	// maxRuleChanges is how many changes of single rules they may have together: one
	// undo may change all rules.
	maxRuleChanges = 2 * MaxRules

	maxNoteKept = 3*MaxNote + len(cutMark) // bytes, when each of them was replaced by U+FFFD
	maxWho      = 200                      // bytes of the name of who made a change
)

// Action is what a change did.
type Action string

// The actions, by the names of their commands.
const (
	ActionShare    Action = "share"
	ActionUnset    Action = "unset"
	ActionUndo     Action = "undo"
	ActionRollback Action = "rollback"
	ActionResume   Action = "resume"
)

// Change is one revision in the history of a plan.
type Change struct {
	Revision uint64    `json:"revision"`
	Time     time.Time `json:"time"`
	Who      string    `json:"who"` // the user and the host of the command
	Note     string    `json:"note,omitempty"`
	Action   Action    `json:"action"`

	Undo  *uint64      `json:"undo,omitempty"`  // of an undo, the revision whose rules are the newest again
	Rules []RuleChange `json:"rules,omitempty"` // none of a rollback and a resume
}

// RuleChange is what a change did to a rule. Without From, it is new; without To, it is
// gone.
type RuleChange struct {
	Rule
	From *Share `json:"from,omitempty"`
	To   *Share `json:"to,omitempty"`
}

// Hold is a rollback that has not been lifted.
type Hold struct {
	Revision uint64    `json:"revision"` // that laid it
	Time     time.Time `json:"time"`
	Who      string    `json:"who"`
	Note     string    `json:"note,omitempty"`
}

// planState is a plan with its history. It never changes.
type planState struct {
	Revision uint64      `json:"revision"`
	Hold     *Hold       `json:"hold,omitempty"`
	Rules    []RuleShare `json:"rules"`   // in the order of compareRules; the first is the default
	History  []Change    `json:"history"` // the oldest comes first

	// What only this gateway knows. No change of the plan lifts these. Of the second, the
	// other gateways are to hear.
	Local  *Hold `json:"local,omitempty"`  // a rollback of this gateway alone
	Wanted *Hold `json:"wanted,omitempty"` // one of all gateways, which the cluster has not taken yet
}

// isHeld reports whether everything goes to the legacy host.
func (s *planState) isHeld() bool { return s.Hold != nil || s.hasOwn() }

// hasOwn reports whether the gateway is rolled back by itself.
func (s *planState) hasOwn() bool { return s.Local != nil || s.Wanted != nil }

// withOwn is the state with the holds of this gateway alone.
func (s *planState) withOwn(local, wanted *Hold) *planState {
	next := *s
	next.Local, next.Wanted = local, wanted
	return &next
}

// beginning is a plan that nobody has made yet.
func beginning(start Lane) *planState {
	all := AllToV2
	if start == Legacy {
		all = NoneToV2
	}
	return &planState{Rules: []RuleShare{{DefaultRule, all}}}
}

// Order is who wants a change, why, and of which plan.
type Order struct {
	Time time.Time
	Who  string // the user and the host of the command
	Note string // at most MaxNote bytes

	// Base is the revision that the change is meant for. Only a rollback may be without.
	Base *uint64

	// Local is a rollback, or a resume, of this gateway alone. The plan does not change.
	Local bool
}

// InvalidError is an order that cannot be carried out. It says what to change.
type InvalidError struct{ err error }

func (e *InvalidError) Error() string { return e.err.Error() }

// Unwrap is what is wrong.
func (e *InvalidError) Unwrap() error { return e.err }

func invalid(format string, args ...any) error { return &InvalidError{fmt.Errorf(format, args...)} }

// ErrNoBase is an order that does not say which plan it is meant for.
var ErrNoBase = errors.New("say which revision of the plan the change is based on")

// ConflictError is an order for a plan that is no longer the newest.
type ConflictError struct {
	Base, Revision uint64
	Changes        []Change // since Base, as far as they are kept; the newest comes last
}

func (e *ConflictError) Error() string {
	text := fmt.Sprintf("the plan has revision %d, and not %d", e.Revision, e.Base)
	if len(e.Changes) > 0 {
		last := &e.Changes[len(e.Changes)-1]
		text += fmt.Sprintf("; the last change is a %s by %s at %s", last.Action, last.Who, last.Time.UTC().Format(time.RFC3339))
	}
	return text + ": look at the plan again, and then decide"
}

// makeFit makes an order fit for the history, and takes keys out of its texts. It is for
// an order that has just come: a note may be longer than MaxNote behind it.
func (o *Order) makeFit() error {
	if len(o.Note) > MaxNote {
		return invalid("the note has %d bytes: it may have %d", len(o.Note), MaxNote)
	}
	o.Note = clean(postback.MaskKeys(o.Note), maxNoteKept)
	o.Who = clean(postback.MaskKeys(o.Who), maxWho)
	o.Time = o.Time.UTC().Truncate(time.Second)
	return nil
}

// check checks whether an order is meant for a plan.
func (o *Order) check(s *planState, action Action) error {
	switch {
	case o.Base == nil && action != ActionRollback:
		return ErrNoBase
	case o.Base != nil && *o.Base != s.Revision:
		return s.conflict(*o.Base)
	}
	return nil
}

func (s *planState) conflict(base uint64) error {
	e := &ConflictError{Base: base, Revision: s.Revision}
	for i := range s.History {
		if s.History[i].Revision > base {
			e.Changes = slices.Clone(s.History[i:])
			break
		}
	}
	return e
}

// wish is a change that is wanted.
type wish struct {
	action   Action
	rule     Rule
	share    Share
	revision *uint64 // of an undo; nil for what takes back the last change
	atOnce   bool    // a rollback that holds before it is checked
}

// apply makes the state after a change. If nothing would change, it is the same state.
func (s *planState) apply(o *Order, w *wish) (*planState, error) {
	if w.action == ActionShare || w.action == ActionUnset {
		if _, err := ParseRule(w.rule.Target, w.rule.Account); err != nil {
			return nil, invalid("%w", err)
		}
	}
	switch w.action {
	case ActionRollback, ActionResume:
		return s.hold(o, w.action), nil
	case ActionUndo:
		return s.undo(o, w.revision)
	case ActionUnset:
		if w.rule == DefaultRule {
			return nil, invalid("the default *.* cannot be taken away: give it a share instead")
		}
		return s.change(o, &Change{Action: w.action, Rules: s.differences([]RuleChange{{Rule: w.rule}})})
	default:
		if w.share > AllToV2 {
			return nil, invalid("%w", errShare)
		}
		return s.change(o, &Change{Action: w.action, Rules: s.differences([]RuleChange{{Rule: w.rule, To: &w.share}})})
	}
}

// hold lays a hold, or lifts it.
func (s *planState) hold(o *Order, action Action) *planState {
	if (s.Hold != nil) == (action == ActionRollback) {
		return s
	}
	next := s.with(o, &Change{Action: action})
	next.Hold = nil
	if action == ActionRollback {
		next.Hold = &Hold{Revision: next.Revision, Time: o.Time, Who: o.Who, Note: o.Note}
	}
	return next
}

// undo makes the rules of a revision the newest.
func (s *planState) undo(o *Order, revision *uint64) (*planState, error) {
	if revision == nil {
		for i := len(s.History) - 1; i >= 0 && revision == nil; i-- {
			if len(s.History[i].Rules) > 0 {
				before := s.History[i].Revision - 1
				revision = &before
			}
		}
		if revision == nil {
			return s, nil
		}
	}
	oldest := s.Revision - uint64(len(s.History))
	switch {
	case *revision > s.Revision:
		return nil, invalid("there is no revision %d: the newest is %d", *revision, s.Revision)
	case *revision < oldest:
		return nil, invalid("revision %d is not kept any more: the oldest is %d", *revision, oldest)
	}
	// What was done since then, backwards: the oldest change of a rule counts.
	then := make(map[Rule]*Share)
	for i := len(s.History) - 1; i >= 0 && s.History[i].Revision > *revision; i-- {
		for _, r := range s.History[i].Rules {
			then[r.Rule] = r.From
		}
	}
	wanted := make([]RuleChange, 0, len(then))
	for rule, share := range then {
		wanted = append(wanted, RuleChange{Rule: rule, To: share})
	}
	slices.SortFunc(wanted, func(a, b RuleChange) int { return compareRules(a.Rule, b.Rule) })
	return s.change(o, &Change{Action: ActionUndo, Undo: revision, Rules: s.differences(wanted)})
}

// differences are those of the changes that change something, with what is there now.
func (s *planState) differences(wanted []RuleChange) (real []RuleChange) {
	for _, r := range wanted {
		if at, known := s.find(r.Rule); known {
			now := s.Rules[at].Share
			r.From = &now
		}
		if (r.From == nil) != (r.To == nil) || r.From != nil && *r.From != *r.To {
			real = append(real, r)
		}
	}
	return real
}

func (s *planState) find(rule Rule) (at int, known bool) {
	return slices.BinarySearchFunc(s.Rules, rule, func(r RuleShare, rule Rule) int { return compareRules(r.Rule, rule) })
}

// change makes the state after a change of rules, unless there is none.
func (s *planState) change(o *Order, c *Change) (*planState, error) {
	if len(c.Rules) == 0 {
		return s, nil
	}
	next := s.with(o, c)
	next.Rules = changeRules(s.Rules, c.Rules)
	if len(next.Rules) > MaxRules {
		return nil, invalid("a plan has at most %d rules: take some away first, or use one for a whole database", MaxRules)
	}
	return next, nil
}

// changeRules makes new rules of some and changes of them, both in order.
func changeRules(rules []RuleShare, changes []RuleChange) []RuleShare {
	next := make([]RuleShare, 0, len(rules)+len(changes))
	for _, c := range changes {
		for len(rules) > 0 && compareRules(rules[0].Rule, c.Rule) < 0 {
			next, rules = append(next, rules[0]), rules[1:]
		}
		if len(rules) > 0 && rules[0].Rule == c.Rule {
			rules = rules[1:]
		}
		if c.To != nil {
			next = append(next, RuleShare{c.Rule, *c.To})
		}
	}
	return append(next, rules...)
}

// with is the state with a change in its history. The oldest ones give way.
func (s *planState) with(o *Order, c *Change) *planState {
	c.Revision, c.Time, c.Who, c.Note = s.Revision+1, o.Time, o.Who, o.Note
	next := *s
	next.Revision = c.Revision
	next.History = append(slices.Clone(s.History), *c)
	for len(next.History) > MaxHistory || ruleChanges(next.History) > maxRuleChanges {
		next.History = next.History[1:]
	}
	return &next
}

func ruleChanges(history []Change) (n int) {
	for i := range history {
		n += len(history[i].Rules)
	}
	return n
}

// summary says in a few words where calls go by a plan.
func (s *planState) summary() string {
	if s.isHeld() {
		return fmt.Sprintf("revision %d, rolled back: everything goes to the legacy host", s.Revision)
	}
	shares := make([]string, 0, summaryRules+1)
	for i, r := range s.Rules {
		if i == summaryRules {
			shares = append(shares, fmt.Sprintf("and %d rules more", len(s.Rules)-i))
			break
		}
		shares = append(shares, r.String())
	}
	return fmt.Sprintf("revision %d, with these shares to v2: %s", s.Revision, strings.Join(shares, ", "))
}

// summaryRules is how many rules a summary names.
const summaryRules = 3
