//go:build unix

package integration

import (
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/td-postback/gateway/spool/cluster/natstest"
)

// TestNATSSilent has a cluster fall silent, whole or without a majority, while v2
// is up: with mode always callers do not notice, but for the first ones. Health
// and metrics wait for a second. When v2 goes too, callers are refused at once.
// When the cluster is back, it is used again at once.
func TestNATSSilent(t *testing.T) {
	t.Parallel()
	for name, silent := range map[string]int{"whole": 3, "without a majority": 2} {
		t.Run(name, func(t *testing.T) { t.Parallel(); testNATSSilent(t, silent) })
	}
}

func testNATSSilent(t *testing.T, silent int) {
	server := goTool(t, "nats-server", "github.com/nats-io/nats-server/v2")
	nodes := natstest.Nodes(t, server, t.TempDir(), 3, "max_payload: 4MB")
	urls := make([]string, 0, len(nodes))
	for _, n := range nodes {
		t.Cleanup(n.Kill)
		n.Start(t)
		urls = append(urls, n.URL())
	}
	v2 := startFickle(t)
	g := serveSpoolSite(t, "", "td_postback {\n upstream "+v2.url()+"\n retries 0\n spool nats "+strings.Join(urls, " ")+" {\n mode always\n max_size 1GiB\n }\n}")
	g.awaitState(t, func(s *spoolState) bool { return s.Available })
	id := 0
	send := func() timedReply {
		id++
		return ask(t, g.addr, post(spoolTarget, asJSON, withID(strconv.Itoa(id))), func() {})
	}
	spooled := func() float64 { return scrape(t, g.admin)[requestsTotal("post", "param", "spooled")] }
	isTaken(t, send().reply)
	v2.await(t, "1")

	for _, n := range nodes[:silent] {
		n.Pause(t)
		t.Cleanup(func() { n.Resume(t) })
	}
	var first sync.WaitGroup
	for n := range 8 {
		first.Go(func() {
			isTaken(t, ask(t, g.addr, post(spoolTarget, asJSON, withID("first "+strconv.Itoa(n))), func() {}).reply)
		})
	}
	first.Wait() // the gateway has seen it
	var took []time.Duration
	for range 200 {
		answer := send()
		isTaken(t, answer.reply)
		took = append(took, answer.took)
		time.Sleep(10 * time.Millisecond)
	}
	slices.Sort(took)
	if p99 := took[len(took)*99/100]; p99 > 2*time.Second { // far from the 10 s of a silent cluster, and from what a busy machine takes
		t.Errorf("1 of 100 callers waits for %s or longer", p99)
	}
	v2.await(t, strconv.Itoa(id))
	for _, path := range []string{"/td_postback/health", "/td_postback/spool", "/metrics"} {
		began := time.Now()
		resp, err := http.Get("http://" + g.admin + path)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if took := time.Since(began); took > 1500*time.Millisecond {
			t.Errorf("%s took %s", path, took)
		}
	}

	if silent == len(nodes) {
		spoolPrints(t, g.admin, []string{"status"}, ": degraded, ", "It does not answer.")
	}

	v2.goAway(closes)
	for range 20 {
		answer := send()
		isUnkept(t, answer.reply, "spool_unavailable")
		if answer.took > 5*time.Second { // a silent cluster costs 10 s
			t.Errorf("a caller was refused after %s", answer.took)
		}
	}
	if silent == len(nodes) {
		spoolPrints(t, g.admin, []string{"status"}, ": refusing, ")
	}
	v2.comeBack()
	before := spooled()
	for _, n := range nodes[:silent] {
		n.Resume(t)
	}
	began := time.Now()
	for spooled() == before {
		send()
		if time.Since(began) > patience {
			t.Fatal("the cluster is never used again")
		}
	}
	t.Logf("p99 %s; used again after %s", took[len(took)*99/100], time.Since(began))
}
