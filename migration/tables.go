package migration

import (
	"time"

	"github.com/td-postback/gateway/postback"
)

// TableStatus is a table, its share by the plan, and what became of its calls in the last
// hour.
type TableStatus struct {
	postback.Destination
	Asked    Share  // of accounts that have none of their own
	Accounts bool   // some accounts may have another one
	Events   uint64 // of the last 60 to 70 minutes, or since the start
	V2       uint64 // of them, those that went to v2
}

// Real is the share of the last hour's calls that went to v2; nil without calls.
func (t *TableStatus) Real() *Share {
	if t.Events == 0 {
		return nil
	}
	share := Share((t.V2*uint64(AllToV2) + t.Events/2) / t.Events) //nolint:gosec // G115: it is at most AllToV2
	return &share
}

// Tables are the given tables by the plan, rolled back or not.
func (s *Steering) Tables(r *Report, tables []postback.Destination, now time.Time) []TableStatus {
	plan := s.Plan()
	all := make([]TableStatus, len(tables))
	place := make(map[postback.Destination]int, len(tables))
	for i, to := range tables {
		share := plan.find("", tableOf(to))
		all[i] = TableStatus{Destination: to, Asked: share.hundred, Accounts: plan.accounts && plan.byAccount(tableOf(to))}
		place[tableOf(to)] = i
	}
	for _, row := range r.recently(now) {
		if i, ok := place[row.to]; ok {
			all[i].Events += row.events()
			all[i].V2 += row.lanes[V2]
		}
	}
	return all
}

// byAccount reports whether a rule for an account is about a table.
func (p *Plan) byAccount(to postback.Destination) bool {
	return len(p.tables[to].of) > 0 || len(p.databases[to.Database].of) > 0 || len(p.all.of) > 0
}
