package integration

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/td-postback/gateway/spool/cluster/natstest"
)

// TestSpoolOnNATS has two gateways keep records on a cluster of three
// nats-servers, over TLS and with a password. One of these is killed under load.
// When v2 is back, it gets each record whose caller was told 200, through either
// gateway.
func TestSpoolOnNATS(t *testing.T) {
	t.Parallel()
	server := goTool(t, "nats-server", "github.com/nats-io/nats-server/v2")
	pair := newCertificate(t, "localhost")
	nodes := natstest.Nodes(t, server, t.TempDir(), 3, fmt.Sprintf("max_payload: 4MB\ntls { cert_file: %q, key_file: %q }\nauthorization { user: spool, password: %s }",
		pair.cert, pair.key, spoolSecret))
	trusted := "SSL_CERT_DIR=" + filepath.Dir(pair.cert)
	urls := make([]string, 0, len(nodes))
	for _, n := range nodes {
		t.Cleanup(n.Kill)
		n.Start(t)
		urls = append(urls, "tls://spool:"+spoolSecret+"@"+n.Addr)
	}
	v2 := startFickle(t)
	v2.goAway(closes)
	site := "td_postback {\n upstream " + v2.url() + "\n retries 0\n" +
		" spool nats " + strings.Join(urls, " ") + " {\n max_size 1GiB\n drain_rate 100000\n }\n}"
	one, other := serveSpoolSite(t, "", site, trusted), serveSpoolSite(t, "", site, trusted)
	for _, g := range []*spooling{one, other} {
		g.awaitState(t, func(s *spoolState) bool { return s.Available })
	}

	const each = 200
	first, second := startTraffic(t, one.addr, 4, 1<<30, ""), startTraffic(t, other.addr, 4, 1<<30, "")
	first.await(t, each)
	second.await(t, each)
	nodes[0].Kill()
	first.await(t, each)
	second.await(t, each)
	first.stop()
	second.stop()
	nodes[0].Start(t)

	one.stop() // the other gateway delivers what both have kept
	v2.comeBack()
	v2.await(t, append(first.acked, second.acked...)...)
	other.awaitEmpty(t)
	v2.mu.Lock()
	defer v2.mu.Unlock()
	before := map[string]time.Time{}
	for _, a := range v2.taken {
		if first, twice := before[a.id]; twice { // v2 took none before the end, so none was on its way
			t.Errorf("record %s came again after %s", a.id, a.at.Sub(first))
		}
		before[a.id] = a.at
	}
	t.Logf("%d records acknowledged, %d refused", len(first.acked)+len(second.acked), first.refused+second.refused)
}
