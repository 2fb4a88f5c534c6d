package caddymodule

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/td-postback/gateway/migration"
	"github.com/td-postback/gateway/migration/cluster"
)

// This file has the plan be that of all gateways whose spool is in the same NATS cluster.

// sharePlan has the plan of a configuration be in a NATS cluster.
func (a *App) sharePlan(servers []string) error {
	if a.plan.nats != nil && !slices.Equal(a.plan.nats, servers) {
		return errors.New("migrate: another td_postback block has other servers in spool nats: all blocks with migrate share one plan, which is in that cluster, so give them the same")
	}
	a.plan.nats = servers
	s := a.plan.sharedPlan
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current.Load() == nil {
		s.nats = servers
	}
	return nil
}

// join has a plan be that of all gateways of the cluster, or this one's own without one.
// It may wait for the cluster for some seconds.
func (s *sharedPlan) join(p *migration.Steering) error {
	if len(s.nats) == 0 || !stateStays {
		return p.Join(nil, "")
	}
	place, err := cluster.Open(cluster.Config{URLs: s.nats})
	if err != nil {
		return err
	}
	host, err := os.Hostname()
	if err != nil {
		host = "a host without a name"
	}
	return p.Join(place, host+":"+s.dir)
}

// rejoin does so if another configuration names another cluster.
func (s *sharedPlan) rejoin(p *migration.Steering, servers []string) {
	if slices.Equal(s.nats, servers) {
		return
	}
	s.nats = servers
	s.warn(s.join(p))
}

// patience is how long a change may take: what the disk may, and for one of all gateways,
// what they may.
func (u *planUse) patience(o *migration.Order) time.Duration {
	if len(u.nats) == 0 || o.Local {
		return diskPatience
	}
	return diskPatience + migration.SharingPatience
}

// printFollowers says that all gateways have followed a change, or returns an error that
// says which may not have, and why.
func printFollowers(o *migration.Outcome) error {
	switch {
	case len(o.Missing) > 0:
		fmt.Printf("It is in force at %d of %d gateways. Missing: %s.\n", len(o.Followed), len(o.Followed)+len(o.Lagging)+len(o.Missing), reasonsOf(o.Missing))
	case len(o.Lagging) == 0 && len(o.Followed) > 1:
		fmt.Printf("All %d gateways have followed.\n", len(o.Followed))
	}
	if len(o.Lagging) == 0 {
		return nil
	}
	return fmt.Errorf("it is in force at %d of %d gateways. Not at %s", len(o.Followed), len(o.Followed)+len(o.Lagging), reasonsOf(o.Lagging))
}

// reasonsOf says of each gateway why it does not follow.
func reasonsOf(gateways []migration.Gateway) string {
	reasons := make([]string, 0, len(gateways))
	for _, g := range gateways {
		reasons = append(reasons, g.Name+": "+oneLine(g.Why))
	}
	return strings.Join(reasons, "; ")
}

// printGateways lists the gateways that share a plan.
func printGateways(gateways []migration.Gateway) error {
	if len(gateways) == 0 {
		return nil
	}
	fmt.Print("\nGateways that share the plan:\n\n")
	table := newTable("GATEWAY", "REVISION", "STATE")
	for _, g := range gateways {
		name := g.Name
		if g.Self {
			name += " (this one)"
		}
		table.row(name, fmt.Sprint(g.Revision), cmp.Or(oneLine(g.Why), "follows"))
	}
	return table.Flush()
}
