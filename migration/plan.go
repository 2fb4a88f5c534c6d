package migration

import (
	"time"

	"github.com/td-postback/gateway/postback"
)

// Plan decides which lane a call goes by. It never changes: a change makes another one.
// The zero value sends everything to the legacy host.
type Plan struct {
	held     bool
	stick    Stick
	accounts bool // a rule is for an account
	byTable  bool // two tables may go by different lanes, for the same caller
	signals  PlanSignals
	state    *planState // what it was made of

	all       target
	databases map[string]target
	tables    map[postback.Destination]target
}

// Caller is what of a call, besides its table, a lane may depend on.
type Caller struct {
	Key    string // the write key that v2 would use, or empty
	Client string // Caddy's client_ip
}

// target is what a rule may name: a table, a database, or everything.
type target struct {
	share *share // of all accounts, or nil
	of    map[string]*share
}

// share is what a rule says.
type share struct {
	hundred Share
	seed    string // of its buckets
	rule    Rule
}

// PlanSignals is what metrics say of a plan.
type PlanSignals struct {
	Revision uint64
	Changed  time.Time // by the last change; zero as long as nobody has made a plan
	Held     bool

	None, Some, All int // rules that send nothing, a part or all to v2, whatever is held
}

// Signals is what metrics say of the plan. It waits for nothing, as Lane.
func (p *Plan) Signals() PlanSignals {
	signals := p.signals
	signals.Held = p.held
	return signals
}

// newPlan makes a plan of rules. One of them is the default.
func newPlan(rules []RuleShare, held bool, stick Stick) *Plan {
	p := &Plan{held: held, stick: stick, databases: make(map[string]target), tables: make(map[postback.Destination]target)}
	for _, r := range rules {
		p.accounts = p.accounts || r.Account != ""
		p.add(&share{rule: r.Rule, hundred: r.Share, seed: bucketSeed(r.Rule)})
	}
	p.byTable = mayDivide(rules, stick)
	return p
}

// mayDivide reports whether rules may send two tables of a caller by different lanes.
func mayDivide(rules []RuleShare, stick Stick) bool {
	named, partly := false, false
	for _, r := range rules {
		database, _ := r.names()
		named = named || database != wildcard
		partly = partly || r.Share != rules[0].Share || r.Share != NoneToV2 && r.Share != AllToV2
	}
	return partly && (named || stick == StickTable)
}

// TablesMatter reports whether the lane of a call may depend on its tables. If not, who
// decides about a call with records of several tables need not know them.
func (p *Plan) TablesMatter() bool { return p.byTable && !p.held }

// add adds a rule to what it names.
func (p *Plan) add(s *share) {
	switch s.hundred {
	case NoneToV2:
		p.signals.None++
	case AllToV2:
		p.signals.All++
	default:
		p.signals.Some++
	}
	database, table := s.rule.names()
	switch {
	case database == wildcard:
		p.all = p.all.with(s)
	case table == wildcard:
		p.databases[database] = p.databases[database].with(s)
	default:
		to := postback.Destination{Database: database, Table: table}
		p.tables[to] = p.tables[to].with(s)
	}
}

// underHold is the same plan, rolled back.
func (p *Plan) underHold() *Plan {
	held := *p
	held.held = true
	return &held
}

func (t target) with(s *share) target {
	switch {
	case s.rule.Account == "":
		t.share = s
	case t.of == nil:
		t.of = map[string]*share{s.rule.Account: s}
	default:
		t.of[s.rule.Account] = s
	}
	return t
}

// Lane decides about a call to a table. Of a call that names none, or not in a way that
// it could be one, the destination lacks a part: then only rules for everything count.
// It allocates nothing, and may be called at any time.
func (p *Plan) Lane(c *Caller, to postback.Destination) Lane {
	if p.held {
		return Legacy
	}
	to = tableOf(to)
	var account string
	if p.accounts {
		account = postback.AccountOf(c.Key)
	}
	s := p.find(account, to)
	switch {
	case s == nil || s.hundred == NoneToV2:
		return Legacy
	case s.hundred == AllToV2 || bucketOf(s.seed, p.stick, c, to) < s.hundred:
		return V2
	default:
		return Legacy
	}
}

// tableOf is a destination, or an empty one if a part of it is missing.
func tableOf(to postback.Destination) postback.Destination {
	if to.Database == "" || to.Table == "" {
		return postback.Destination{}
	}
	return to
}

// LaneOfAll decides about a call with records of several tables: it goes to v2 only if
// each of them would.
func (p *Plan) LaneOfAll(c *Caller, tables []postback.Destination) Lane {
	if len(tables) == 0 {
		return p.Lane(c, postback.Destination{})
	}
	for _, to := range tables {
		if p.Lane(c, to) == Legacy {
			return Legacy
		}
	}
	return V2
}

// find finds the most specific rule for a call: of its account and table, its table, its
// account and database, its database, its account, and the default.
func (p *Plan) find(account string, to postback.Destination) *share {
	if s := p.tables[to].find(account); s != nil {
		return s
	}
	if s := p.databases[to.Database].find(account); s != nil {
		return s
	}
	return p.all.find(account)
}

// find is the target's rule for an account, or else that for all of them.
func (t target) find(account string) *share {
	if t.of != nil && account != "" {
		if s := t.of[account]; s != nil {
			return s
		}
	}
	return t.share
}
