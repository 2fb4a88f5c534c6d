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
// sends some of healthy accounts behind them, of its own lane and of others.
// SPOOL_RECORDS is how many wait.
func TestLimitedAccount(t *testing.T) {
	backlog := 22_000
	if value := os.Getenv("SPOOL_RECORDS"); value != "" {
		var err error
		if backlog, err = strconv.Atoi(value); err != nil {
			t.Fatal(err)
		}
	}
	l := open(t, cluster(t), func(c *Config) { c.MaxSize, c.Account = 1<<30, accountOf })
	fill(t, l, backlog)
	add(t, l, testQueue, inLaneOf("noisy", 1)[0]+" waits behind them")
	delivered := make(chan string, 100)
	d := spool.NewDeliverer(l.Queue(testQueue), &spool.Gate{}, spool.Delivery{
		Send: func(data []byte) spool.Result {
			if accountOf(data) == "noisy" {
				return spool.Result{Status: 429, RetryAfter: time.Hour}
			}
			delivered <- accountOf(data)
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
	until(t, "it is known who jams its lane", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.jams[laneToken(tokenOf(testQueue), int(hashOf("noisy")%lanes))].keeps(0)
	})
	accounts := append(inLaneOf("noisy", 12)[1:], "healthy", "well", "fine")
	took := make([]time.Duration, 0, len(accounts))
	await := func(account string) {
		t.Helper()
		for late := time.After(5 * wait); ; {
			select {
			case got := <-delivered:
				if got == account {
					return
				}
			case <-late:
				t.Fatalf("a record of %s was not sent", account)
			}
		}
	}
	for i, account := range accounts {
		sent := time.Now()
		add(t, l, testQueue, fmt.Sprintf("%s %d", account, i))
		d.Arrived(1, 10)
		await(account)
		took = append(took, time.Since(sent))
	}
	t.Logf("%d records wait, and healthy ones were sent after %v at most", backlog, slices.Max(took))
	if slices.Max(took) > 2*time.Second {
		t.Errorf("healthy records were sent after %v", took)
	}
	began := time.Now()
	await(inLaneOf("noisy", 1)[0])
	t.Logf("what was among them already was sent %v later", time.Since(began))
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

// A lane is jammed for others than who jams it, until v2 takes a record of that
// account. With all lanes jammed, each account keeps to its own.
func TestJam(t *testing.T) {
	l := &Log{config: Config{Account: accountOf}, putOffs: newPutOffs()}
	noisy, other := []byte("noisy"), []byte(inLaneOf("noisy", 1)[0])
	own := l.laneFor("q", noisy)
	jammed := func() bool { return l.laneFor("q", other) != own }
	if jammed() {
		t.Error("nobody jams the lane yet")
	}
	l.jams[own] = jam{hashOf("noisy"): jammedAt - 1, hashOf("another"): 1}
	if jammed() {
		t.Error("too few were put off")
	}
	l.jams[own][hashOf("noisy")]++
	if !jammed() || l.laneFor("q", noisy) != own {
		t.Error("the lane is jammed for others alone")
	}
	free := l.laneFor("q", other)
	for lane := range lanes {
		l.jams[laneToken("q", lane)] = jam{hashOf("noisy"): jammedAt}
	}
	delete(l.jams, free)
	if l.laneFor("q", other) != free {
		t.Error("one lane is free, and not found")
	}
	l.jams[free] = jam{hashOf("noisy"): jammedAt}
	if jammed() {
		t.Error("all lanes are jammed, and it is not in its own")
	}
	l.passed(free, jammedBehind-1)
	if !jammed() {
		t.Error("a lane is not jammed that has given out its backlog")
	}
}
