package integration

import (
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/td-postback/gateway/spool/cluster/natstest"
)

// TestKeenSpoolOnNATS has two gateways, one in each mode, keep events on a cluster of
// three nats-servers. A kept request fits into a message there. What one gateway has
// kept the other delivers, and each event arrives once.
func TestKeenSpoolOnNATS(t *testing.T) {
	t.Parallel()
	server := goTool(t, "nats-server", "github.com/nats-io/nats-server/v2")
	urls := make([]string, 0, 3)
	for _, n := range natstest.Nodes(t, server, t.TempDir(), 3, "max_payload: 4MB") {
		t.Cleanup(n.Kill)
		n.Start(t)
		urls = append(urls, n.URL())
	}
	var up atomic.Bool
	v2 := startBatchV2(t, func(a *batchArrival) batchAnswer {
		switch {
		case !up.Load():
			return batchAnswer{status: 503}
		case slices.ContainsFunc(a.records, func(record string) bool { return strings.Contains(record, `"bad`) }):
			return batchAnswer{status: 422}
		}
		return batchAnswer{}
	})
	site := func(mode string) string {
		return "td_postback {\n upstream " + v2.URL + "\n retries 0\n" +
			" spool nats " + strings.Join(urls, " ") + " {\n max_size 1GiB\n drain_rate 100000\n mode " + mode + "\n }\n}"
	}
	one, other := serveSpoolSite(t, "", site("on_failure")), serveSpoolSite(t, "", site("always"))
	for _, g := range []*spooling{one, other} {
		g.awaitState(t, func(s *spoolState) bool { return s.Available })
	}
	large := keenIDs(strings.Repeat("x", 100_000), 45) // 100 KB each, so 4.5 MB
	first, second, bad := keenIDs("first", 1200), keenIDs("second", 1200), keenIDs("bad", 2)
	keepEvents(t, one, "db.large", large)
	keepEvents(t, one, "db.tbl", first)
	keepEvents(t, other, "db.tbl", slices.Concat(second, bad))
	one.awaitState(t, func(s *spoolState) bool { return s.records() == 3+3+3 })
	var kept []letter
	askAdmin(t, http.MethodGet, one.admin, "spool/records", &kept)
	for _, r := range kept {
		if r.Bytes > 2_000_000+len(`{"events":}`) || r.Events == 0 {
			t.Errorf("kept: %+v", r)
		}
	}
	one.stop() // the other gateway delivers what both have kept
	up.Store(true)
	all := slices.Concat(large, first, second)
	v2.await(t, all...)
	other.awaitEmpty(t)
	v2.once(t, all)
	other.awaitState(t, func(s *spoolState) bool { return s.dead() == 1 })
	spoolPrints(t, other.admin, []string{"list", "--dead"}, "/db/tbl", "1234/…", "422", "2")
}
