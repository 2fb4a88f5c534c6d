package integration

import (
	"slices"
	"strings"
	"testing"

	"github.com/td-postback/gateway/spool/cluster/natstest"
)

// TestBatchOnNATS has two gateways share a spool on NATS, with a v2 that loses
// answers, fails some records of a batch and is down, at random. What one of them has
// sent without an answer comes again from either, and with the same uuid.
func TestBatchOnNATS(t *testing.T) {
	t.Parallel()
	server := goTool(t, "nats-server", "github.com/nats-io/nats-server/v2")
	urls := make([]string, 0, 3)
	for _, n := range natstest.Nodes(t, server, t.TempDir(), 3, "max_payload: 4MB") {
		t.Cleanup(n.Kill)
		n.Start(t)
		urls = append(urls, n.URL())
	}
	v2 := startTrouble(t)
	site := "td_postback {\n upstream " + v2.URL + "\n retries 0\n" +
		" spool nats " + strings.Join(urls, " ") + " {\n max_size 1GiB\n drain_rate 100000\n " + always + "\n }\n}"
	one, other := serveSpoolSite(t, "", site), serveSpoolSite(t, "", site)
	for _, g := range []*spooling{one, other} {
		g.awaitState(t, func(s *spoolState) bool { return s.Available })
	}
	const each = 300
	first, second := startTraffic(t, one.addr, 4, 1<<30, ""), startTraffic(t, other.addr, 4, 1<<30, "")
	first.await(t, each)
	second.await(t, each)
	first.stop()
	second.stop()
	v2.settle(t)
	acked := slices.Concat(first.acked, second.acked)
	v2.await(t, acked...)
	other.awaitEmpty(t)
	doubles := v2.once(t, acked)
	if doubles == 0 {
		t.Error("no record came twice: this shows nothing")
	}
	if n := v2.singles("/tbl"); n > 0 {
		t.Errorf("%d records came by Postback", n)
	}
	t.Logf("%d records acknowledged, %d requests, %d would be there twice", len(acked), len(v2.all()), doubles)
}
