package integration

import (
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/td-postback/gateway/spool/cluster/natstest"
)

// sharingNodes starts a cluster of three nats-servers for gateways that share a plan.
// Clients do not hear of servers that are not in their URLs.
func sharingNodes(t *testing.T) []*natstest.Node {
	t.Helper()
	server := goTool(t, "nats-server", "github.com/nats-io/nats-server/v2")
	nodes := natstest.Nodes(t, server, t.TempDir(), 3, `max_payload: 4MB
		client_advertise: "127.0.0.1:9"
		authorization { users: [{ user: spool, password: secret, permissions: {
			publish: ["td_postback.records.*", "td_postback.letters.*", "td_postback.plan", "td_postback.gateways", "$JS.API.>", "$JS.ACK.>"],
			subscribe: ["_INBOX.>", "td_postback.gateways"]
		}}]}`)
	for _, node := range nodes {
		node.User = "spool:secret@"
		t.Cleanup(node.Kill)
		node.Start(t)
	}
	return nodes
}

// serveSharing runs gateways that share a plan in a cluster of nats-servers. They are
// between the same hosts.
func serveSharing(t *testing.T, n int) (all []*planned, nodes []*natstest.Node) {
	t.Helper()
	nodes = sharingNodes(t)
	urls := make([]string, 0, len(nodes))
	for _, node := range nodes {
		urls = append(urls, node.URL())
	}
	legacy, v2 := startLegacy(t, nil), startRecorder(t, nil)
	for range n {
		g := &planned{admin: freeAddr(t), dir: t.TempDir(), legacy: legacy, v2: v2}
		addr := freeAddr(t)
		_, port, _ := net.SplitHostPort(addr)
		block := strings.Replace(g.block(""), "{\n", "{\n spool nats "+strings.Join(urls, " ")+" {\n  max_size 1GiB\n }\n", 1)
		g.caddyfile = fmt.Sprintf("{\n%s\n storage file_system %s/storage\n}\nhttp://:%s {\n%s\n}\n", withAdmin(g.admin), g.dir, port, block)
		g.gateway = serveCaddyfile(t, addr, g.caddyfile)
		all = append(all, g)
	}
	for _, g := range all {
		g.awaitsGateways(t, n)
	}
	return all, nodes
}

// awaitsGateways waits until a gateway knows of so many that follow.
func (g *planned) awaitsGateways(t *testing.T, n int) {
	t.Helper()
	output := ""
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		output, _ = migrateAt(t, g.admin, "status")
		if strings.Count(output, "  follows") == n && !strings.Contains(output, "Degraded") {
			return
		}
	}
	t.Fatalf("%d gateways never followed:\n%s", n, output)
}

// name is how the gateways call one.
func (g *planned) name() string {
	host, _ := os.Hostname()
	return host + ":" + g.planDir()
}

// TestPlanOfThreeGateways: a change at one gateway holds at all three when the command
// ends, for the next request of each. A gateway that is killed is named; one that is
// stopped is not; one that comes back has the plan.
func TestPlanOfThreeGateways(t *testing.T) {
	t.Parallel()
	all, _ := serveSharing(t, 3)
	everywhere := func(lane string) {
		t.Helper()
		for _, g := range all {
			g.goesTo(t, lane)
		}
	}
	all[0].says(t, words("share *.* 100"), "Revision 1", "All 3 gateways have followed.")
	everywhere("v2")
	for i, g := range all {
		g.says(t, words("rollback"), "Rolled back: everything goes to the legacy host", "All 3 gateways have followed.", "Back: td-migrate resume.")
		everywhere("legacy")
		all[(i+1)%3].says(t, words("resume"), "Resumed: the rules hold again", "All 3 gateways have followed.")
		everywhere("v2")
	}
	awaitPage(t, all[1].addr, "/console", `<span class="self quiet"><bdi>`+all[1].name()+`</bdi></span>`)
	all[1].presses(t, url.Values{"do": {"rollback"}}, "<strong>Done.</strong> Everything goes to the legacy host, from the next request on. All 3 gateways have followed.")
	everywhere("legacy")
	all[0].presses(t, url.Values{"do": {"resume"}, "base": {"8"}}, "All 3 gateways have followed.", all[0].name(), all[1].name(), all[2].name())
	everywhere("v2")
	all[1].presses(t, url.Values{"do": {"rollback"}, "local": {"yes"}}, "Everything that comes to this gateway goes to the legacy host", "Rolled back, this gateway alone")
	all[1].goesTo(t, "legacy")
	all[2].goesTo(t, "v2")
	awaitPage(t, all[2].addr, "/console", "it is rolled back by itself, until it is resumed by itself")
	all[1].presses(t, url.Values{"do": {"resume"}, "local": {"yes"}, "base": {"9"}}, "The shares of the plan hold again")
	everywhere("v2")
	all[1].says(t, words("history"), "rollback", "resume", "share (*.*: 100 % to v2, was 0 %)")

	kill(all[2].process)
	began := time.Now()
	refuses(t, all[0].admin, words("rollback"), "Rolled back: everything goes to the legacy host", "it is in force at 2 of 3 gateways. Not at "+all[2].name()+": ", "Give td-migrate rollback --local on the machine of each of those")
	if took := time.Since(began); took > patience/2 {
		t.Error("the command took", took)
	}
	all[0].goesTo(t, "legacy")
	all[1].goesTo(t, "legacy")
	all[2].gateway = serveCaddyfile(t, all[2].addr, all[2].caddyfile)
	all[2].goesTo(t, "legacy")
	all[0].awaitsGateways(t, 3)
	all[2].stop()
	all[1].says(t, words("resume"), "All 2 gateways have followed.")
	all[1].says(t, words("status"), all[1].name()+" (this one)", all[0].name())
}

// TestPlanWithoutItsCluster: a gateway that is cut off goes on, is rolled back by itself,
// through a restart too, and goes by the plan of all only when it is resumed by itself.
func TestPlanWithoutItsCluster(t *testing.T) {
	t.Parallel()
	all, nodes := serveSharing(t, 2)
	g, other := all[0], all[1]
	g.says(t, words("share *.* 100"), "All 2 gateways have followed.")
	for _, node := range nodes {
		node.Kill()
	}
	g.goesTo(t, "v2")
	refuses(t, g.admin, words("share *.* 50"), "the cluster")
	g.says(t, words("rollback --local"), "Rolled back: everything that comes to this gateway goes to the legacy host", "Back: td-migrate resume --local, at this gateway.")
	g.goesTo(t, "legacy")
	other.goesTo(t, "v2")
	g.says(t, words("status"), "This gateway is rolled back by itself, by ", "Degraded: the cluster that has the plan of all gateways cannot be used")
	g.restart(t)
	g.goesTo(t, "legacy")
	for _, node := range nodes {
		node.Start(t)
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
		output, _ := migrateAt(t, other.admin, "status")
		if strings.Contains(output, "it is rolled back by itself, until it is resumed by itself") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(output)
		}
	}
	other.says(t, words("rollback"), "All 2 gateways have followed.")
	refuses(t, other.admin, words("resume"), "Resumed: the rules hold again", g.name()+": it is rolled back by itself")
	other.goesTo(t, "v2")
	g.goesTo(t, "legacy")
	g.says(t, words("resume --local"), "Resumed: this gateway goes by the plan again", "Back: td-migrate rollback --local.")
	g.goesTo(t, "v2")
	other.awaitsGateways(t, 2)
}
