package integration

import (
	"strings"
	"testing"

	"github.com/td-postback/gateway/spool/cluster/natstest"
)

// TestLegacySpoolOnNATS is TestLegacySpoolQueuesStayApart on a cluster, and then
// TestLegacySpoolLeft in short: what is kept for the legacy host stays when migrate goes.
func TestLegacySpoolOnNATS(t *testing.T) {
	t.Parallel()
	server := goTool(t, "nats-server", "github.com/nats-io/nats-server/v2")
	urls := make([]string, 0, 3)
	for _, n := range natstest.Nodes(t, server, t.TempDir(), 3, "max_payload: 4MB") {
		t.Cleanup(n.Kill)
		n.Start(t)
		urls = append(urls, n.URL())
	}
	v2, legacy := startFickle(t), startFickleLegacy(t)
	site := func(migrate string) string {
		return "td_postback {\n upstream " + v2.url() + "\n retries 0\n" + migrate +
			" spool nats " + strings.Join(urls, " ") + " {\n max_size 1GiB\n drain_rate 100000\n }\n}"
	}
	steered := func(start string) string {
		return site(" migrate {\n  legacy " + legacy.url() + "\n  start " + start + "\n }\n")
	}
	g := queuesStayApart(t, v2, legacy, steered)
	before := len(legacy.all())

	legacy.goAway(closes)
	for _, id := range []string{"1", "2", "3"} {
		isTaken(t, raw(t, g.addr, post(spoolTarget, asJSON, withID(id))))
	}
	if status, problem := reload(t, g.admin, strings.Replace(g.caddyfile, steered("legacy"), site(""), 1)); status != 200 {
		t.Fatalf("%d %s", status, problem)
	}
	g.await(t, strandedWarning, 1)
	if line := warningLine(g.text(), strandedWarning); !strings.Contains(line, `"records":3`) || !strings.Contains(line, `"queue":"`+legacyQueue(legacy)+`"`) {
		t.Errorf("logged %s", line)
	}
	legacy.comeBack()
	isTaken(t, raw(t, g.addr, post(spoolTarget, asJSON, withID("for v2"))))
	if s := g.awaitState(t, func(s *spoolState) bool { return s.depth(legacyQueue(legacy)) == 3 }); len(legacy.all()) != before {
		t.Errorf("kept: %+v; the legacy host has %d more", s, len(legacy.all())-before)
	}
	if len(v2.find("1")) > 0 || len(v2.find("for v2")) != 1 {
		t.Errorf("v2 has %+v", v2.all())
	}
	if status, problem := reload(t, g.admin, g.caddyfile); status != 200 {
		t.Fatalf("%d %s", status, problem)
	}
	legacy.await(t, "1", "2", "3")
	g.awaitEmpty(t)
}
