package integration

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestKeenSpoolSurvivesKill kills the gateway again and again while apps send, with a
// v2 that loses answers, takes only some events, and is down, at random. In the end v2
// has each event of which an app was told that it is taken, once.
func TestKeenSpoolSurvivesKill(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"on_failure", "always"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			keenSurvivesKills(t, mode)
		})
	}
}

func keenSurvivesKills(t *testing.T, mode string) {
	const kills, apps, each = 5, 4, 7000
	v2 := startTrouble(t)
	addr, socket := outsideSocket(t)
	g := &spooling{admin: freeAddr(t), dir: t.TempDir() + "/spool"}
	config := socketCaddyfile(g.admin, spoolBlock(v2.URL, g.dir, "", "mode "+mode+"\n drain_rate 100000"))
	senders := startApps(addr, apps)
	for range kills {
		p := startOn(t, config, socket)
		saysNoSecret(t, p)
		senders.await(t, each)
		kill(p)
	}
	v2.calm.Store(true)
	saysNoSecret(t, startOn(t, config, socket))
	senders.await(t, each)
	senders.stop()
	v2.await(t, senders.taken...)
	g.awaitEmpty(t)
	doubles := v2.once(t, senders.taken)
	t.Logf("%d events taken, %d calls answered and %d cut; %d events would be there twice", len(senders.taken), senders.answered, senders.cut, doubles)
}

// senders are apps that send one call after the other.
type senders struct {
	stopping chan struct{}
	running  sync.WaitGroup

	mu            sync.Mutex
	taken         []string // the events that they were told are taken
	answered, cut int      // calls
}

func startApps(addr string, apps int) *senders {
	s := &senders{stopping: make(chan struct{})}
	for app := range apps {
		s.running.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-s.stopping:
					return
				default:
					s.send(addr, keenIDs(fmt.Sprint(app, "-", n, "-"), 700))
				}
			}
		})
	}
	return s
}

// send sends a call. Without a gateway, it waits for the next one.
func (s *senders) send(addr string, ids []string) {
	r, _ := http.NewRequest(http.MethodPost, "http://"+addr+androidPath, strings.NewReader(keenBody("db.tbl", ids...)))
	r.Header.Set("X-TD-Write-Key", spoolKey)
	resp, err := http.DefaultClient.Do(r)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.cut++
		return
	}
	_ = resp.Body.Close()
	s.answered++
	if resp.StatusCode == http.StatusOK {
		s.taken = append(s.taken, ids...)
	}
}

// await waits until so many more events are taken, as long as it goes on.
func (s *senders) await(t *testing.T, more int) {
	t.Helper()
	count := func() int {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.taken)
	}
	before := count()
	for end, want := time.Now().Add(patience), before+more; before < want; time.Sleep(5 * time.Millisecond) {
		if now := count(); now > before {
			before, end = now, time.Now().Add(patience)
		} else if time.Now().After(end) {
			t.Fatalf("%d of %d events are taken", now, want)
		}
	}
}

func (s *senders) stop() {
	close(s.stopping)
	s.running.Wait()
}
