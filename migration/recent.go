package migration

import (
	"time"

	"github.com/td-postback/gateway/postback"
)

// This file knows which lanes calls went by in the last hour, and says how many would go
// by another one after a change of the plan.

const (
	recentStep  = 10 * 60 // seconds
	recentSteps = 6       // an hour, less what of this step is to come
)

// recent counts a row's events of this step and of the hour before, by the lane that the
// plan has chosen, whatever became of them there. It is not saved.
type recent struct {
	newest int64 // the last step that was counted in, since 1970
	lanes  [len(laneNames)][recentSteps + 1]uint32
}

func recentStepOf(now time.Time) int64 { return now.Unix() / recentStep }

// add counts events. If the steps that were counted in have not come yet, by the whole
// ring, the clock was wrong and goes right again.
func (r *recent) add(step int64, lane Lane, events uint64) {
	if step < r.newest-recentSteps {
		*r = recent{newest: step}
	}
	for of := range r.lanes {
		clearRing(r.lanes[of][:], r.newest, step)
	}
	r.newest = max(r.newest, step)
	addToRing(r.lanes[lane][:], step, events)
}

// events are those of a step and of the hour before.
func (r *recent) events(step int64) (of [len(laneNames)]uint64) {
	for lane := range r.lanes {
		of[lane] = sumOfRing(r.lanes[lane][:], r.newest, step-recentSteps, step)
	}
	return of
}

// recentRow is what a caller has sent in the last hour.
type recentRow struct {
	account string
	to      postback.Destination
	lanes   [len(laneNames)]uint64 // events
}

func (r *recentRow) events() uint64 { return r.lanes[V2] + r.lanes[Legacy] }

// recently is what all callers have sent in the last hour that have a row.
func (r *Report) recently(now time.Time) []recentRow {
	r.mu.RLock()
	rows := r.order.all()
	r.mu.RUnlock()
	all := make([]recentRow, 0, len(rows))
	for _, one := range rows { // one at a time: callers do not wait for all of it
		one.mu.Lock()
		key, lanes := one.key, one.data.recent.events(recentStepOf(now))
		one.mu.Unlock()
		parts := partsOf(key)
		found := recentRow{account: postback.AccountOf(parts[0]), lanes: lanes}
		if parts[3] != postback.Other.String() { // of which the plan asks for no table
			found.to = tableOf(postback.Destination{Database: parts[1], Table: parts[2]})
		}
		if found.events() > 0 {
			all = append(all, found)
		}
	}
	return all
}

// RuleStatus is a rule, and what became of its calls in the last hour.
type RuleStatus struct {
	RuleShare
	Events uint64 `json:"events"`       // of the last 60 to 70 minutes, or since the start
	V2     uint64 `json:"events_v2"`    // of them, those that went to v2
	Real   *Share `json:"real_percent"` // nil without events
}

// Shares are the rules of the plan, each with its real share in the last hour: of the
// events for which the plan has chosen a lane. A call with records of several tables, or
// of none, counts for a rule for everything.
func (s *Steering) Shares(r *Report, now time.Time) []RuleStatus {
	s.file.mu.Lock()
	state, plan := s.state, s.Plan()
	s.file.mu.Unlock()
	status := make([]RuleStatus, 0, len(state.Rules))
	place := make(map[Rule]int, len(state.Rules))
	for i, rule := range state.Rules {
		status = append(status, RuleStatus{RuleShare: rule})
		place[rule.Rule] = i
	}
	for _, row := range r.recently(now) {
		of := &status[place[plan.find(row.account, row.to).rule]]
		of.Events += row.events()
		of.V2 += row.lanes[V2]
	}
	for i := range status {
		if of := &status[i]; of.Events > 0 {
			real := Share((of.V2*uint64(AllToV2) + of.Events/2) / of.Events) //nolint:gosec // G115: it is at most AllToV2
			of.Real = &real
		}
	}
	return status
}

// Moves says what of the last hour would go by another lane after a change. Under a hold,
// that is what it would be without.
type Moves struct {
	Callers  int    `json:"callers"`   // rows of the report of which events would move, or may
	ToV2     uint64 `json:"to_v2"`     // events that would go to v2, and went to the legacy host
	ToLegacy uint64 `json:"to_legacy"` // the other way round

	OfCallers int    `json:"of_callers"` // all that sent something in the last hour
	OfEvents  uint64 `json:"of_events"`

	// Exact says that the events are counted. Otherwise they are expected: a row does not
	// say in which buckets its calls are.
	Exact bool `json:"exact"`

	Held bool `json:"held"` // the plan or this gateway is rolled back: nothing moves before that is lifted
}

// TryShare says what Share would move, and changes nothing.
func (s *Steering) TryShare(o Order, rule Rule, share Share, r *Report) (*Moves, error) {
	s.file.mu.Lock()
	state, stick := s.state, s.cfg.Stick
	s.file.mu.Unlock()
	w := wish{action: ActionShare, rule: rule, share: share}
	now := o.Time
	if err := o.makeFit(); err != nil {
		return nil, err
	}
	if err := o.check(state, w.action); err != nil {
		return nil, err
	}
	next, err := state.apply(&o, &w)
	if err != nil {
		return nil, err
	}
	m := moves(newPlan(state.Rules, false, stick), newPlan(next.Rules, false, stick), r.recently(now))
	m.Held = state.isHeld()
	return m, nil
}

// moves compares two plans.
func moves(before, after *Plan, rows []recentRow) *Moves {
	m := &Moves{OfCallers: len(rows), Exact: true}
	var toV2, toLegacy float64
	for i := range rows {
		row := &rows[i]
		events := float64(row.events())
		m.OfEvents += row.events()
		there, back := movingParts(before, after, row)
		if there+back > 0 {
			m.Callers++
		}
		toV2 += there * events
		toLegacy += back * events
		m.Exact = m.Exact && (there == 0 || there == 1) && (back == 0 || back == 1)
	}
	m.ToV2, m.ToLegacy = uint64(toV2+0.5), uint64(toLegacy+0.5)
	return m
}

// movingParts says what part of a row's calls would move to v2, and what part back.
func movingParts(before, after *Plan, row *recentRow) (there, back float64) {
	was, will := before.find(row.account, row.to), after.find(row.account, row.to)
	a, b := partOf(before, was, row), partOf(after, will, row)
	if was.rule == will.rule { // the same buckets
		return max(b-a, 0), max(a-b, 0)
	}
	return b * (1 - a), a * (1 - b)
}

// partOf is what part of a row's calls goes to v2 by a rule. All calls for a table go
// together, if they stick to it.
func partOf(p *Plan, s *share, row *recentRow) float64 {
	if p.stick == StickTable && s.hundred != NoneToV2 {
		if s.hundred == AllToV2 || bucketOf(s.seed, p.stick, &Caller{}, row.to) < s.hundred {
			return 1
		}
		return 0
	}
	return float64(s.hundred) / float64(AllToV2)
}
