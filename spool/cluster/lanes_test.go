package cluster

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/td-postback/gateway/spool"
)

// accountOf is the first word of a record.
func accountOf(data []byte) string {
	account, _, _ := strings.Cut(string(data), " ")
	return account
}

// TestLimitedAccount has the records of an account waiting that v2 answers 429, and
// sends some of healthy accounts behind them, of its own lane and of others: the first
// ones right after a start, and others when v2 has not said so yet. SPOOL_RECORDS is how many wait.
func TestLimitedAccount(t *testing.T) {
	backlog := 22_000
	if value := os.Getenv("SPOOL_RECORDS"); value != "" {
		var err error
		if backlog, err = strconv.Atoi(value); err != nil {
			t.Fatal(err)
		}
	}
	nodes := cluster(t)
	config := func(c *Config) { c.MaxSize, c.Account = 1<<30, accountOf }
	l := open(t, nodes, config)
	lookEverywhere(l)
	fill(t, l, backlog)
	accounts := append(inLaneOf("noisy", 12)[1:], "healthy", "well", "fine")
	early := inLaneOf("noisy", 1)[0] + " waits behind them"
	add(t, l, testQueue, early)
	l = open(t, nodes, config) // as after a restart: nobody knows what is there
	for _, account := range accounts {
		add(t, l, testQueue, account+" comes first")
	}
	delivered, limited := make(chan string, 100), make(chan struct{})
	d := spool.NewDeliverer(l.Queue(testQueue), &spool.Gate{}, spool.Delivery{
		Send: func(data []byte) spool.Result {
			if accountOf(data) == "noisy" {
				<-limited
				return spool.Result{Status: 429, RetryAfter: time.Hour}
			}
			delivered <- string(data)
			return spool.Result{Status: 200}
		},
		Account: accountOf,
		Limits:  spool.Limits{InFlight: 100, Rate: 100, MaxAge: time.Since(arrival) + time.Hour},
		OnError: func(err error) { t.Error(err) },
	})
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { d.Run(ctx) })
	defer running.Wait()
	defer cancel()
	answers := sync.OnceFunc(func() { close(limited) })
	defer answers()
	until(t, "it is known who jams its lane", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.jams[laneToken(tokenOf(testQueue), int(hashOf("noisy")%lanes))].keeps(0)
	})
	came := map[string]bool{}
	await := func(record string) {
		t.Helper()
		for late := time.After(5 * wait); !came[record]; {
			select {
			case got := <-delivered:
				came[got] = true
			case <-late:
				t.Fatalf("%q was not sent", record)
			}
		}
	}
	slowest := time.Duration(0)
	for _, account := range accounts {
		add(t, l, testQueue, account+" comes before the answer")
		d.Arrived(1, 10)
	}
	answers()
	began := time.Now()
	for _, account := range accounts {
		await(account + " comes first")
		await(account + " comes before the answer")
		slowest = max(slowest, time.Since(began))
	}
	for _, account := range accounts {
		began = time.Now()
		add(t, l, testQueue, account+" comes later")
		d.Arrived(1, 10)
		await(account + " comes later")
		slowest = max(slowest, time.Since(began))
	}
	t.Logf("%d records wait, and healthy ones were sent after %v at most", backlog, slowest)
	if slowest > 2*time.Second {
		t.Errorf("healthy records were sent after %v", slowest)
	}
	began = time.Now()
	await(early)
	t.Logf("what was among them already was sent %v later", time.Since(began))
}

// lookEverywhere has a Log know its lanes as if all were empty.
func lookEverywhere(l *Log) {
	for _, lane := range laneTokens(tokenOf(testQueue)) {
		l.look(lane)
	}
}

// fill has many records of a noisy account waiting.
func fill(t *testing.T, l *Log, records int) {
	t.Helper()
	const callers = 500
	pad := strings.Repeat("x", 300)
	var calling sync.WaitGroup
	for c := range callers {
		calling.Go(func() {
			for i := range records / callers {
				if err := l.Append(testQueue, spool.Record{Arrival: arrival, Data: fmt.Appendf(nil, "noisy %d-%d %s", c, i, pad)}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	calling.Wait()
}

// inLaneOf names accounts that share another's lane.
func inLaneOf(account string, n int) (names []string) {
	for i := 0; len(names) < n; i++ {
		if name := fmt.Sprintf("a%d", i); hashOf(name)%lanes == hashOf(account)%lanes {
			names = append(names, name)
		}
	}
	return names
}

// What an earlier version has kept, without lanes, is given out, listed and counted
// with the rest.
func TestLanes(t *testing.T) {
	l := open(t, cluster(t), func(c *Config) { c.Account = accountOf })
	lookEverywhere(l)
	earlier := open(t, cluster(t), nil)
	want := make([]string, 0, 100)
	for i := range 50 {
		text := fmt.Sprintf("account%d 1", i)
		add(t, earlier, testQueue, text+" earlier")
		add(t, l, testQueue, text)
		want = append(want, text+" earlier", text)
	}
	depth(t, l, testQueue, 100, 0)
	if got := l.Queues(); !slices.Equal(got, []string{testQueue}) {
		t.Errorf("queues: %q", got)
	}
	var listed []string
	for after := spool.ID(0); ; {
		entries, err := l.Records(testQueue, after, 7)
		if err != nil {
			t.Fatal(err)
		}
		if len(entries) == 0 {
			break
		}
		for _, e := range entries {
			listed, after = append(listed, string(e.Data)), e.ID
		}
	}
	if !slices.Equal(listed, want) {
		t.Errorf("listed: %q", listed)
	}
	q := l.Queue(testQueue)
	got := make([]string, 0, 100)
	for _, e := range take(t, q, 100) {
		got = append(got, string(e.Data))
		if strings.HasPrefix(string(e.Data), "account7 ") {
			if err := q.Bury(e, spool.Verdict{Status: 400, Reason: "refused"}); err != nil {
				t.Error(err)
			}
		} else {
			q.Ack(e)
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("given out: %q", got)
	}
	depth(t, l, testQueue, 0, 2)
	letters, err := l.Letters(testQueue, 0, 10)
	if err != nil || len(letters) != 2 {
		t.Fatalf("%d letters, %v", len(letters), err)
	}
	if n, err := l.Replay(testQueue, letters[0].ID, letters[1].ID); n != 2 || err != nil {
		t.Errorf("replayed %d, %v", n, err)
	}
	for _, e := range take(t, q, 2) {
		if accountOf(e.Data) != "account7" || !e.Replayed {
			t.Errorf("replayed %+v", e)
		}
		q.Ack(e)
	}
	depth(t, l, testQueue, 0, 0)
}

// No queue's token looks like a lane.
func TestLaneTokens(t *testing.T) {
	for _, queue := range []string{"", "_", "-", "_-", "_-00", "a_-01", "https://us01.records.in.treasuredata.com"} {
		token := tokenOf(queue)
		for _, lane := range laneTokens(token) {
			if back, ok := queueOf(withoutLane(lane)); !ok || back != queue {
				t.Errorf("lane %q of %q is of %q, %t", lane, queue, back, ok)
			}
		}
	}
}

// A lane that does not work is told of, though others give out their records.
func TestLaneFails(t *testing.T) {
	var said events
	l := open(t, cluster(t), func(c *Config) { c.Account, c.OnEvent = accountOf, said.add })
	lookEverywhere(l)
	config := l.records.CachedInfo().Config
	config.MaxConsumers = 3 // of 17
	if err := l.control.js.DeleteStream(t.Context(), config.Name); err != nil {
		t.Fatal(err)
	}
	if _, err := l.control.js.CreateStream(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		addLate(t, l, testQueue, fmt.Sprintf("account%d 1", i))
	}
	q := l.Queue(testQueue)
	if e, err := q.Take(t.Context(), 16); err != nil || len(e) == 0 {
		t.Fatalf("of the lanes that work come %d records, %v", len(e), err)
	}
	until(t, "somebody is told", func() bool { return strings.Contains(said.String(), "maximum consumers limit") })
}

// A lane with a backlog is jammed for whom few of it are, until that is given out. With
// all lanes jammed, each account keeps to its own.
func TestJam(t *testing.T) {
	l := &Log{config: Config{Account: accountOf}, putOffs: newPutOffs()}
	noisy, other := []byte("noisy"), []byte(inLaneOf("noisy", 1)[0])
	if lane := l.laneFor("q", noisy); lane != "q" {
		t.Errorf("before anybody has looked, the lane is %s", lane)
	}
	for lane := range lanes {
		l.look(laneToken("q", lane))
	}
	own := l.laneFor("q", noisy)
	give := func(lane string, data []byte, n int) {
		for range n {
			l.given(lane, data, jammedBehind)
		}
	}
	jammed := func() bool { return l.laneFor("q", other) != own }
	if jammed() {
		t.Error("nobody jams the lane yet")
	}
	if give(own, noisy, jammedAt-1); jammed() {
		t.Error("too little is known of who jams it")
	}
	if give(own, other, 1); !jammed() || l.laneFor("q", noisy) != own {
		t.Error("the lane is jammed for others alone")
	}
	free := l.laneFor("q", other)
	for lane := range lanes {
		if token := laneToken("q", lane); token != free {
			give(token, noisy, jammedAt)
		}
	}
	if l.laneFor("q", other) != free {
		t.Error("one lane is free, and not found")
	}
	if give(free, noisy, jammedAt); jammed() {
		t.Error("all lanes are jammed, and it is not in its own")
	}
	if l.given(free, noisy, jammedBehind-1); l.laneFor("q", other) != free {
		t.Error("a lane is jammed that has given out its backlog")
	}
}

// TestJamOfMany: among thousands of accounts, who has most of a backlog stays known.
func TestJamOfMany(t *testing.T) {
	noisy, j := hashOf("noisy"), jam{}
	for i := range 10_000 {
		j.count(hashOf(fmt.Sprintf("healthy%d", i)))
		for range 3 {
			j.count(noisy)
		}
		if len(j) > 2*maxJammers {
			t.Fatalf("%d accounts are counted", len(j))
		}
		if i > jammedAt && (j.keeps(noisy) || !j.keeps(hashOf("new"))) {
			t.Fatalf("with %d others, the lane is %v", i, j)
		}
	}
}
