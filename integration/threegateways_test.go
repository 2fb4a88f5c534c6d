package integration

import (
	"fmt"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/td-postback/gateway/spool/cluster/natstest"
)

// This file has three gateways between the same two hosts, which share a plan and a spool
// in a cluster of three nats-servers.

// sharingSite is one of the gateways.
type sharingSite struct {
	*laneSite
	process *process
	ways    []*natstest.Way // to the servers, which this gateway alone takes
}

// newSharingSites makes three gateways that share a plan. spool is for the options of
// their spool, and options for those of their blocks.
func newSharingSites(t *testing.T, options, spool string) (sites []*sharingSite, nodes []*natstest.Node) {
	t.Helper()
	nodes = sharingNodes(t)
	hosts := &laneHosts{v2: startLaneV2(t), legacy: startLaneLegacy(t)}
	for range 3 {
		s := &sharingSite{}
		urls := ""
		for _, node := range nodes {
			way := natstest.NewWay(t, node.Addr)
			s.ways = append(s.ways, way)
			urls += " nats://" + node.User + way.Addr
		}
		s.laneSite = hosts.site(t, believed, options+"\nspool nats"+urls+" {\nmax_size 1GiB\n"+spool+"\n}", "")
		sites = append(sites, s)
	}
	return sites, nodes
}

// serveThree runs three gateways between hosts that take what comes. Everything goes to v2.
func serveThree(t *testing.T) []*sharingSite {
	t.Helper()
	sites, _ := newSharingSites(t, "", "")
	sites[0].v2.calm.Store(true)
	sites[0].legacy.calm.Store(true)
	for _, s := range sites {
		s.process = s.start(t, 0)
	}
	awaitFollowers(t, sites)
	change(t, sites[0].admin, "share", share("*.*", "", "100"))
	return sites
}

// awaitFollowers waits until each gateway knows that all of them follow.
func awaitFollowers(t *testing.T, sites []*sharingSite) {
	t.Helper()
	end := time.Now().Add(patience)
	for _, s := range sites {
		for {
			plan, followers := planOf(t, s.admin), 0
			for _, g := range plan.Gateways {
				if g.Why == "" {
					followers++
				}
			}
			if followers == len(sites) && plan.Degraded == "" {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("the gateways never followed: %+v", plan)
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
}

// TestRollbackOfThreeGateways rolls three gateways back, at each of them in turn, while
// callers hold connections to all: the first request after the command's answer goes to
// the legacy host on each of them, and that is within a second of the command's start.
func TestRollbackOfThreeGateways(t *testing.T) {
	t.Parallel()
	const limit, rounds = time.Second, 6
	sites := serveThree(t)
	kept, clients := make([][]*caller, len(sites)), make([][]*http.Client, len(sites))
	for n, s := range sites {
		for range 20 {
			one := &caller{addr: s.plain, target: target}
			t.Cleanup(one.close)
			kept[n] = append(kept[n], one)
		}
		clients[n] = []*http.Client{s.http2Client(), s.http2Client()}
	}
	everywhere := func(lane string) {
		t.Helper()
		for n, s := range sites {
			s.askAll(t, kept[n], clients[n], lane)
		}
	}
	everywhere("v2")
	took := make([]time.Duration, rounds)
	for n := range rounds {
		began := time.Now()
		output, ok := migrateAt(t, sites[n%3].admin, "rollback")
		took[n] = time.Since(began)
		if !ok || !strings.Contains(output, "All 3 gateways have followed.") {
			t.Errorf("rollback: %s", output)
		}
		everywhere("legacy")
		change(t, sites[(n+1)%3].admin, "resume", "")
		everywhere("v2")
	}
	t.Logf("in force at all, with the command, after %v", took)
	if best := slices.Min(took); best > limit {
		t.Errorf("a rollback is in force at all gateways after %v at best", best)
	}
}

// TestStickyOfThreeGateways sends events of many clients to each of three gateways: a
// client goes by one lane at all of them, over the restart of one too. A share that is
// raised only adds, one that is lowered only removes, and the real share is the one that
// was asked for. It has 10,000 clients in a mixed run.
func TestStickyOfThreeGateways(t *testing.T) {
	t.Parallel()
	clients, within := 1000, 2.0
	if os.Getenv("MIXED_REQUESTS") != "" {
		clients, within = 10_000, 1
	}
	sites, by := serveThree(t), &stickies[0]
	values := make([]string, clients)
	for n := range values {
		values[n] = by.value(n)
	}
	lanes := func(percent string) map[string]string {
		t.Helper()
		change(t, sites[1].admin, "share", share(by.rule, "", percent))
		lanes := sites[0].lanes(t, values, by.request)
		for n, s := range sites[1:] {
			if other := s.lanes(t, values, by.request); !maps.Equal(other, lanes) {
				t.Errorf("at %s %%, not each client goes by the same lane at gateways 1 and %d", percent, n+2)
			}
		}
		var asked float64
		_, _ = fmt.Sscan(percent, &asked)
		if real := percentOf(lanes, "v2"); real < asked-within || real > asked+within {
			t.Errorf("%.2f %% go to v2 at %s %%", real, percent)
		}
		return lanes
	}
	few := lanes("12.34")
	kill(sites[2].process)
	sites[2].process = sites[2].start(t, 1)
	if again := sites[2].lanes(t, values, by.request); !maps.Equal(again, few) {
		t.Error("not each client goes where it went before the restart of a gateway")
	}
	awaitFollowers(t, sites)
	more := lanes("45.67")
	onlyAdds(t, few, more)
	less := lanes("30.5")
	onlyAdds(t, less, more)
	onlyAdds(t, few, less)
	t.Logf("%d clients at 3 gateways: %.2f %%, %.2f %% and %.2f %% go to v2 at 12.34 %%, 45.67 %% and 30.5 %%",
		clients, percentOf(few, "v2"), percentOf(more, "v2"), percentOf(less, "v2"))
}

// onlyAdds checks that all that go to v2 at a share do so at a larger one.
func onlyAdds(t *testing.T, few, more map[string]string) {
	t.Helper()
	for value, lane := range few {
		if lane == "v2" && more[value] != "v2" {
			t.Errorf("%s goes to v2 at a share, and not at a larger one", value)
		}
	}
}
