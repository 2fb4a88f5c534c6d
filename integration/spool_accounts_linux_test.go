package integration

import (
	"net"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// A second account, beside that of spoolKey.
const (
	healthyKey    = "77/0123456789abcdef0123456789abcdef01234567"
	healthyTarget = event + "?td_write_key=" + healthyKey
)

// limiter is a v2 that answers 429 to the account of spoolKey, with Retry-After,
// until it is told to take its records too.
type limiter struct {
	*fickle
	pause   atomic.Pointer[string]
	limited atomic.Int64 // how often it has said 429
}

func startLimiter(t *testing.T, pause string) *limiter {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	v2 := &limiter{fickle: newFickleOn(l)}
	v2.pause.Store(&pause)
	acceptAll(t, l, func(conn net.Conn, _ int) {
		eachRequest(conn, func(_ int, request seen) bool {
			if pause := v2.pause.Load(); pause != nil && strings.HasPrefix(request.field("X-TD-Write-Key")[0], "1234/") {
				v2.limited.Add(1)
				return answers("429", "Retry-After: "+*pause+"\r\n")(conn)
			}
			v2.take(request)
			return send(conn, true, answerOK)
		})
	})
	return v2
}

// healthy sends 20 records a second of the other account, and checks that each is at
// v2 within two seconds.
func (v2 *limiter) healthy(t *testing.T, addr, name string, seconds int) {
	t.Helper()
	sent := map[string]time.Time{}
	ids := make([]string, 0, 20*seconds)
	ticker := time.NewTicker(time.Second / 20)
	defer ticker.Stop()
	for n := range 20 * seconds {
		id := name + strconv.Itoa(n)
		ids, sent[id] = append(ids, id), time.Now()
		isTaken(t, raw(t, addr, post(healthyTarget, asJSON, withID(id))))
		<-ticker.C
	}
	v2.await(t, ids...)
	longest := time.Duration(0)
	for _, a := range v2.all() {
		if at, ok := sent[a.id]; ok {
			longest = max(longest, a.at.Sub(at))
		}
	}
	if longest > 2*time.Second {
		t.Errorf("a healthy account's record was at v2 only after %v", longest)
	}
	t.Logf("%d healthy records, the slowest was at v2 after %v", len(ids), longest)
}

// TestSpoolAccounts sends 20 records a second of an account beside one a second of
// another, which v2 answers 429 with a long Retry-After.
func TestSpoolAccounts(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"on_failure", "always"} {
		for _, pause := range []string{"20", "4000"} {
			t.Run(mode+" "+pause, func(t *testing.T) {
				t.Parallel()
				v2 := startLimiter(t, pause)
				g := serveSpool(t, v2.url(), "", "mode "+mode)
				stop, stopped := make(chan struct{}), make(chan struct{})
				go func() {
					defer close(stopped)
					for n := 0; ; n++ {
						isTaken(t, raw(t, g.addr, post(spoolTarget, asJSON, withID("noisy"+strconv.Itoa(n)))))
						select {
						case <-stop:
							return
						case <-time.After(time.Second):
						}
					}
				}()
				v2.healthy(t, g.addr, "healthy", 12)
				close(stop)
				<-stopped
				if n := v2.limited.Load(); n > 3 {
					t.Errorf("v2 was asked %d times by the account that it wants to be left alone by", n)
				}
				if health, status := g.health(t); health != "ok" || status != 200 {
					t.Errorf("health: %s %d", health, status)
				}
				if counts, _ := g.spoolMetrics(t); counts["accounts_paused{}"] != 1 {
					t.Errorf("metrics: %v", counts)
				}
				spoolPrints(t, g.admin, []string{"status"}, "ACCOUNTS PAUSED")
				if pause == "20" {
					v2.pause.Store(nil)
					v2.await(t, "noisy0", "noisy5")
					g.awaitEmpty(t)
				}
			})
		}
	}
}

// TestSpoolAccountsBacklog has many records of an account waiting that v2 answers
// 429, from before a restart, and sends those of another. SPOOL_RECORDS is how many.
func TestSpoolAccountsBacklog(t *testing.T) {
	total := 20_000
	if underRace() {
		total = 3_000
	}
	if value := os.Getenv("SPOOL_RECORDS"); value != "" {
		var err error
		if total, err = strconv.Atoi(value); err != nil {
			t.Fatal(err)
		}
	}
	v2 := startLimiter(t, "4000")
	addr, socket := outsideSocket(t)
	g := &spooling{admin: freeAddr(t), dir: t.TempDir() + "/spool"}
	config := socketCaddyfile(g.admin, spoolBlock(v2.url(), g.dir, "", "mode always"))
	p := startOn(t, config, socket)
	callers := startTraffic(t, addr, 64, total, "")
	callers.awaitAll(t, total)
	v2.healthy(t, addr, "before", 3)
	kill(p)
	p = startOn(t, config, socket)
	saysNoSecret(t, p)
	v2.healthy(t, addr, "after", 5)
	if n := v2.limited.Load(); n > 2*1024 { // as many as are on their way at a time, twice
		t.Errorf("v2 has said 429 %d times", n)
	}
	if n := g.state(t).records(); n != total {
		t.Errorf("%d records are kept, want %d", n, total)
	}
	t.Logf("%d MiB of memory", peakMiB(t, p.cmd.Process.Pid))
}
