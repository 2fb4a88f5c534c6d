package integration

import (
	"bytes"
	"encoding/json"
	"errors"
	"math"
	"math/rand/v2"
	"net/http"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/td-postback/gateway/spool/cluster/natstest"
)

// TestMixedGateways is TestMixedLanes with three gateways that share a plan and a spool in
// a cluster of three nats-servers. The plan changes at random at each of them. One of them
// is killed, loads its configuration again, or is cut off from the cluster, sometimes
// rolled back by itself meanwhile, and a server is killed and started again, in turns. In
// the end each change of the plan that was answered is in its history, and all gateways
// have the same one.
//
// What was with a gateway that was killed comes again half a minute later, so it is only
// in a mixed run that all queues are emptied.
func TestMixedGateways(t *testing.T) {
	t.Parallel()
	total, rounds, kept, long := 1_500, 1, 60, false
	if value := os.Getenv("MIXED_REQUESTS"); value != "" {
		n, err := strconv.Atoi(value)
		if err != nil {
			t.Fatal(err)
		}
		total, rounds, kept, long = n/10, 3, 300, true
	}
	m := newGatewayMix(t)
	m.total.Store(math.MaxInt64) // until there was each trouble
	callers, ended := m.start(t, 36), make(chan struct{})
	var pilots sync.WaitGroup
	for _, s := range m.sites {
		pilots.Go(func() { m.steer(t, s, ended) })
	}
	m.trouble(t, rounds, total)
	m.total.Store(int64(total))
	callers.Wait()
	close(ended)
	pilots.Wait()
	awaitFollowers(t, m.sites)
	m.checkHistory(t)
	m.keepSome(t, m.sites[0].admin, kept)
	for _, s := range m.sites {
		awaitIdle(t, s.admin)
	}
	m.spool.awaitState(t, func(s *spoolState) bool { return s.Available })
	queued := m.checkPlaces(t, m.spool)
	if long {
		m.calmDown()
		m.spool.awaitEmpty(t)
		for _, s := range m.sites {
			m.countDoubles(t, s.admin)
		}
		m.checkArrived(t, queued)
	}
	t.Logf("%d events at 3 gateways were sent, %v; %d changes of the plan, %d reloads, %d kills; %d were kept at the end",
		len(m.told), m.failed, len(m.made), m.reloads, len(m.killed), len(queued))
}

// gatewayMix is a run of TestMixedGateways.
type gatewayMix struct {
	*laneCalls
	sites   []*sharingSite
	nodes   []*natstest.Node
	spool   *spooling // as the first gateway sees it
	reloads int

	changes sync.Mutex
	made    map[uint64]json.RawMessage // changes of the plan that were answered, by revision
}

func newGatewayMix(t *testing.T) *gatewayMix {
	m := &gatewayMix{made: map[uint64]json.RawMessage{}}
	m.sites, m.nodes = newSharingSites(t, mixedOptions, "mode MODE\n drain_rate 100000")
	lanes := make([]*laneSite, len(m.sites))
	for n, s := range m.sites {
		s.process, lanes[n] = s.start(t, 0), s.laneSite
	}
	m.laneCalls, m.spool = newLaneCalls(lanes...), &spooling{admin: lanes[0].admin}
	awaitFollowers(t, m.sites)
	return m
}

// trouble makes each trouble so many times, while the events are sent. What was with a
// gateway that is killed comes again only half a minute later, so that is the first one.
func (m *gatewayMix) trouble(t *testing.T, rounds, total int) {
	troubles := []func(t *testing.T, s *sharingSite, pause int){m.kill, m.reload, m.cutOff, m.killServer}
	pause := total / (rounds * len(troubles)) / 3
	for range rounds {
		for n := range troubles {
			m.awaitSent(t, pause)
			troubles[n](t, m.sites[rand.IntN(len(m.sites))], pause) //nolint:gosec // a test's dice
		}
	}
}

// awaitSent waits until so many more events were sent. It has no limit of time, as long as
// some are.
func (m *gatewayMix) awaitSent(t *testing.T, n int) {
	t.Helper()
	last, end := m.last.Load(), time.Now().Add(patience)
	for want := last + int64(n); last < want; time.Sleep(5 * time.Millisecond) {
		if now := m.last.Load(); now > last {
			last, end = now, time.Now().Add(patience)
		}
		if time.Now().After(end) || t.Failed() {
			t.Fatal("no events are sent any more")
		}
	}
}

// kill kills a gateway and starts it again.
func (m *gatewayMix) kill(t *testing.T, s *sharingSite, _ int) {
	m.countDoubles(t, s.admin)
	m.killed = append(m.killed, time.Now())
	kill(s.process)
	s.process = s.start(t, m.reloads)
}

// reload loads the next configuration of a gateway, which has the other mode.
func (m *gatewayMix) reload(t *testing.T, s *sharingSite, _ int) {
	m.reloads++
	if status, problem := reload(t, s.admin, s.config(m.reloads)); status != http.StatusOK {
		t.Fatal(status, problem)
	}
}

// cutOff cuts a gateway off from the cluster, until it says so and some events are sent.
// Sometimes it is rolled back by itself meanwhile.
func (m *gatewayMix) cutOff(t *testing.T, s *sharingSite, pause int) {
	for _, way := range s.ways {
		way.Cut()
	}
	alone := dice(50)
	if alone {
		m.alone(t, s, "rollback")
	}
	for end := time.Now().Add(patience); planOf(t, s.admin).Degraded == ""; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("a gateway does not say that it is cut off")
		}
	}
	m.awaitSent(t, pause)
	for _, way := range s.ways {
		way.Mend()
	}
	if alone {
		m.alone(t, s, "resume")
	}
}

// alone carries out an order for one gateway alone. Others may change the plan just then.
func (m *gatewayMix) alone(t *testing.T, s *sharingSite, action string) {
	for status := 0; status != http.StatusOK; {
		base := int(planOf(t, s.admin).Revision) //nolint:gosec // G115: a test's few changes
		var answer string
		var err error
		status, answer, err = order(s.admin, action, `{"local":true}`, base)
		if err != nil || status != http.StatusOK && status != http.StatusPreconditionFailed {
			t.Fatalf("%s alone: got %d %s, %v", action, status, answer, err)
		}
	}
}

// killServer kills a nats-server, and starts it again when the plan was changed without it.
func (m *gatewayMix) killServer(t *testing.T, s *sharingSite, _ int) {
	node := m.nodes[rand.IntN(len(m.nodes))] //nolint:gosec // a test's dice
	node.Kill()
	before := planOf(t, s.admin).Revision
	for end := time.Now().Add(patience); planOf(t, s.admin).Revision < before+2; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) || t.Failed() {
			t.Fatal("the plan is not changed without a server")
		}
	}
	node.Start(t)
}

// steer changes the plan at random at a gateway, until it is told to end. Others may have
// changed it meanwhile, and the gateway may be killed or cut off.
func (m *gatewayMix) steer(t *testing.T, s *sharingSite, ended <-chan struct{}) {
	for !t.Failed() {
		select {
		case <-ended:
			return
		case <-time.After(rand.N(100 * time.Millisecond)): //nolint:gosec // a test's dice
		}
		plan, err := planAt(s.admin)
		if err != nil {
			continue
		}
		based := int(plan.Revision) //nolint:gosec // G115: a test's few changes
		action, body := changeAtRandom(based)
		status, answer, err := order(s.admin, action, body, based)
		switch {
		case err != nil || status == http.StatusPreconditionFailed || status == http.StatusServiceUnavailable:
		case status != http.StatusOK:
			t.Errorf("%s %s at revision %d: got %d %s", action, body, based, status, answer)
		default:
			m.note(t, answer)
		}
	}
}

// note notes a change that was made. A rollback that the cluster has not taken yet will be
// another change.
func (m *gatewayMix) note(t *testing.T, answer string) {
	var outcome struct {
		Change  json.RawMessage
		Unsaved string
	}
	var change *struct{ Revision uint64 }
	if err := errors.Join(json.Unmarshal([]byte(answer), &outcome), json.Unmarshal(outcome.Change, &change)); err != nil {
		t.Errorf("a change: %v in %s", err, answer)
	}
	if change == nil || outcome.Unsaved != "" {
		return
	}
	m.changes.Lock()
	defer m.changes.Unlock()
	if before := m.made[change.Revision]; before != nil && !bytes.Equal(before, outcome.Change) { // two may ask for the same
		t.Errorf("revision %d is %s, and %s", change.Revision, before, outcome.Change)
	}
	m.made[change.Revision] = outcome.Change
}

// checkHistory checks that all gateways have the same plan, and that each change which was
// answered is in its history.
func (m *gatewayMix) checkHistory(t *testing.T) {
	histories := make([][]byte, len(m.sites))
	for n, s := range m.sites {
		var history []json.RawMessage
		askAdmin(t, http.MethodGet, s.admin, "migration/history", &history)
		histories[n], _ = json.Marshal(history)
		if !bytes.Equal(histories[n], histories[0]) {
			t.Errorf("gateway %d has the history %s,\nand the first one %s", n+1, histories[n], histories[0])
		}
	}
	var history []struct{ Revision uint64 }
	var changes []json.RawMessage
	if err := json.Unmarshal(histories[0], &history); err != nil {
		t.Fatal(err)
	}
	_ = json.Unmarshal(histories[0], &changes)
	missing := map[uint64]bool{}
	for revision := range m.made {
		missing[revision] = true
	}
	for n, change := range history {
		delete(missing, change.Revision)
		if made := m.made[change.Revision]; made != nil && !bytes.Equal(made, changes[n]) {
			t.Errorf("revision %d is %s, and %s was answered", change.Revision, changes[n], made)
		}
	}
	for revision := range missing {
		t.Errorf("revision %d is in no history: %s", revision, m.made[revision])
	}
	if len(m.made) == 0 {
		t.Error("the plan has not changed")
	}
}
