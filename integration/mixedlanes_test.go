package integration

import (
	"cmp"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestMixedLanes sends numbered events of all surfaces over HTTP/1.1 and HTTP/2, to a
// gateway between a legacy host and a v2 that fail at random. Meanwhile its plan changes
// at random, its configuration is reloaded, the mode of its spool with it, and it is
// killed. Each event of which a caller was told 200 is then at exactly one host or in
// exactly one queue, and in the end at the host of that queue. None is at both. It is
// twice at one host only if the gateway has counted that, as it got no answer, or was
// killed just then. After each kill the plan is the one that was changed last.
//
// A caller that hears no 200 sends its event again, under another number: what is sent
// again is a new event, and may go by the other lane.
func TestMixedLanes(t *testing.T) {
	t.Parallel()
	total, kills, reloads := 6_000, 2, 1 // in each life
	if value := os.Getenv("MIXED_REQUESTS"); value != "" {
		var err error
		if total, err = strconv.Atoi(value); err != nil {
			t.Fatal(err)
		}
		kills, reloads = 10, 8
	}
	m := newLaneMix(t)
	ended := make(chan struct{})
	var pilot sync.WaitGroup
	m.total.Store(int64(total))
	callers := m.start(t, 32)
	pilot.Go(func() { m.steer(t, ended) })
	for n := range kills {
		p := m.live(t, reloads, (n+1)*total/(kills+1))
		m.countDoubles(t, m.admin)
		m.killed = append(m.killed, time.Now())
		kill(p)
	}
	m.live(t, reloads, total)
	callers.Wait()
	close(ended)
	pilot.Wait()
	m.keepSome(t, m.admin, 300)
	awaitIdle(t, m.admin)
	kept := m.checkPlaces(t, m.spool)
	m.calmDown()
	m.spool.awaitEmpty(t)
	m.countDoubles(t, m.admin)
	m.checkArrived(t, kept)
	t.Logf("%d events, sent %d times, %v; %d changes of the plan, %d reloads, %d kills; %d were kept at the end",
		total, len(m.told), m.failed, m.changes, m.reloads, kills, len(kept))
}

// laneMix is a run of TestMixedLanes.
type laneMix struct {
	*laneCalls
	site    *laneSite
	spool   *spooling
	admin   string
	reloads int
	changes int
}

func newLaneMix(t *testing.T) *laneMix {
	site := newLaneSite(t, believed, mixedOptions+" spool {\n mode MODE\n dir DIR/spool\n drain_rate 100000\n}", "")
	m := &laneMix{laneCalls: newLaneCalls(site), site: site, admin: site.admin}
	m.spool = &spooling{admin: m.admin, dir: site.dir + "/spool"}
	return m
}

// mixedOptions are the block's options of a mixed run.
const mixedOptions = "response_timeout 1s\n max_body 30000\n"

// laneCalls are calls with numbered events to gateways between the same hosts, and what
// their callers were told.
type laneCalls struct {
	*laneHosts
	ways  []laneWay    // in turn
	total atomic.Int64 // how many events to send
	kinds atomic.Int64 // calls so far

	mu     sync.Mutex
	told   map[string]string // what callers were told, by the ID of an event
	failed map[string]int    // of those that were told something else than 200, by what

	killed  []time.Time // when a gateway was
	doubles int         // events that may be twice at one host, as the gateways have counted
}

// laneWay is a way by which calls are sent.
type laneWay struct {
	transport *http.Transport
	base      string // of the URLs
}

// newLaneCalls makes calls that are sent in turn to these gateways, in each way.
func newLaneCalls(sites ...*laneSite) *laneCalls {
	c := &laneCalls{laneHosts: sites[0].laneHosts, told: map[string]string{}, failed: map[string]int{}}
	for _, s := range sites {
		c.ways = append(c.ways,
			laneWay{&http.Transport{MaxIdleConnsPerHost: 32}, "http://" + s.plain},
			laneWay{&http.Transport{DisableKeepAlives: true}, "http://" + s.plain},
			laneWay{&http.Transport{TLSClientConfig: &tls.Config{RootCAs: s.pool}, ForceAttemptHTTP2: true}, "https://" + s.secure})
	}
	return c
}

// start has so many callers send calls, until there are enough events.
func (c *laneCalls) start(t *testing.T, callers int) *sync.WaitGroup {
	var all sync.WaitGroup
	for caller := range callers {
		all.Go(func() { c.call(t, caller) })
	}
	return &all
}

// live starts a gateway, and reloads it some times until so many events are sent.
func (m *laneMix) live(t *testing.T, reloads, until int) *process {
	p := m.site.start(t, m.reloads)
	from := int(m.last.Load())
	for step := range reloads + 1 {
		for want := from + (until-from)*(step+1)/(reloads+1); int(m.last.Load()) < want && !t.Failed(); {
			time.Sleep(5 * time.Millisecond)
		}
		if step == reloads {
			break
		}
		m.reloads++
		if status, problem := reload(t, m.admin, m.site.config(m.reloads)); status != http.StatusOK {
			t.Fatal(status, problem)
		}
	}
	return p
}

// call sends events, one call after the other, until there are enough. What was not taken
// is sent again.
func (c *laneCalls) call(t *testing.T, caller int) {
	for !t.Failed() {
		kind := int(c.kinds.Add(1) % laneKinds)
		n := int(c.last.Add(laneEvents(kind)))
		if int64(n) > c.total.Load() {
			return
		}
		for try := range 3 {
			told := c.send(t, caller, newLaneRequest(kind, n, try))
			if told == laneTaken || strings.HasPrefix(told, "4") {
				break
			}
		}
	}
}

// send sends a call in a caller's way, and notes what that is told.
func (c *laneCalls) send(t *testing.T, caller int, r laneRequest) string {
	way := &c.ways[caller%len(c.ways)]
	told := r.send(t, &http.Client{Timeout: patience, Transport: way.transport}, way.base)
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, id := range r.ids {
		c.told[id] = told
	}
	if told != laneTaken {
		c.failed[told] += len(r.ids)
	}
	return told
}

// What a caller is told: this, nothing, or a status and a code.
const (
	laneTaken  = "taken"
	laneNoWord = "no answer"
)

// laneRequest is a call with events.
type laneRequest struct {
	method, target, body string
	header               http.Header
	ids                  []string
	answer               string // how that of a call begins that was taken
}

// laneKinds is how many kinds of calls there are: all surfaces, all places of a key.
const laneKinds = 16

// laneEvents is how many events a call of a kind has.
func laneEvents(kind int) int64 {
	if kind >= 13 {
		return 4
	}
	return 1
}

var laneTables = []string{"shop/orders", "shop/items", "web/pages", "web/clicks", "app/starts"}

// newLaneRequest is a try to send a call whose last event has the number n.
func newLaneRequest(kind, n, try int) laneRequest {
	table := laneTables[n/laneKinds%len(laneTables)]
	key := fmt.Sprintf("%d/%s", 1000+n%100, spoolSecret)
	id := fmt.Sprintf("%d.%d", n, try)
	record := fmt.Sprintf(`{"id":"%s","text":"%s"}`, id, spoolText)
	post, js := "/postback/v3/event/"+table, "/js/v3/event/"+table
	inURL, column := "?td_write_key="+key, "&id="+id
	apiKey, data := "?api_key="+key, "&modified=1&data="+url.QueryEscape(base64.StdEncoding.EncodeToString([]byte(record)))
	r := laneRequest{method: http.MethodPost, target: post + inURL, body: record, header: http.Header{}, ids: []string{id}, answer: "{}"}
	r.header.Set("X-Forwarded-For", fmt.Sprintf("10.1.%d.%d", n%4, n/16%256))
	r.header.Set("Content-Type", "application/json")
	withKey := func() { r.header.Set("X-TD-Write-Key", key) }
	switch kind {
	case 0, 1, 2:
	case 3:
		r.target = post
		withKey()
	case 4:
		r.header.Set("Content-Type", "application/x-www-form-urlencoded")
	case 5:
		r.method, r.target, r.body = http.MethodGet, post+inURL+column, ""
	case 6:
		r.method, r.target, r.body, r.answer = http.MethodGet, post+inURL+column+"&td_format=pixel", "", "GIF89a"
	case 7:
		r.target, r.body = post+inURL+column, ""
	case 8:
		r.target, r.body = post+inURL+column, "PING"
		r.header.Set("Content-Type", "text/ping")
	case 9:
		r.method, r.target, r.body, r.answer = http.MethodGet, js+apiKey+data+"&callback=cb", "", "cb"+createdCall
	case 10:
		r.target, r.body, r.answer = js+apiKey+data, "", createdJSON
	case 11:
		r.target, r.answer = js, createdJSON
		withKey()
	case 12: // above max_body: 413 in v2's lane, and streamed in the other
		r.body = fmt.Sprintf(`{"id":"%s","pad":"%s"}`, id, strings.Repeat("x", 60_000))
	default:
		withKey()
		r.useSeveral(kind, n, try)
	}
	return r
}

// useSeveral makes the call one with several events.
func (r *laneRequest) useSeveral(kind, n, try int) {
	r.header.Set("X-Td-Data-Type", "k")
	r.ids = nil
	for back := range int(laneEvents(kind)) {
		r.ids = append(r.ids, fmt.Sprintf("%d.%d", n-back, try))
	}
	switch kind {
	case 13: // all in one table
		r.target, r.body = androidPath, deflated(keenBody("shop.orders", r.ids...))
		r.header.Set("Content-Encoding", "deflate")
		r.answer = keenTaken("shop.orders", len(r.ids))
	case 14: // of two tables
		first, second := keenBody("app.starts", r.ids[:1]...), keenBody("shop.items", r.ids[1:]...)
		r.target, r.body = "/ios/v3/event", strings.TrimSuffix(first, "}")+","+second[1:]
		r.answer = receiptsFor([]byte(r.body))
	default:
		r.target, r.body = "/js/v3/event", keenBody("web.pages", r.ids...)
		r.answer = keenTaken("web.pages", len(r.ids))
	}
}

// send sends the call and says what its caller is told. It is sent once: net/http sends
// nothing a second time that has a body which it cannot get again.
func (r *laneRequest) send(t *testing.T, client *http.Client, base string) string {
	var body io.Reader = io.NopCloser(strings.NewReader(r.body))
	if r.body == "" && r.method == http.MethodPost {
		body = http.NoBody
	}
	req, err := http.NewRequest(r.method, base+r.target, body)
	if err != nil {
		t.Error(err)
		return laneNoWord
	}
	req.ContentLength, req.Header = int64(len(r.body)), r.header
	resp, err := client.Do(req)
	if err != nil {
		return laneNoWord
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return laneNoWord
	}
	answer := strings.TrimPrefix(string(text), "/**/")
	if resp.StatusCode != http.StatusOK {
		return strings.TrimSpace(fmt.Sprint(resp.StatusCode, " ", reply{resp, answer}.code()))
	}
	if !strings.HasPrefix(answer, r.answer) {
		t.Errorf("%s %.60s, events %q: got 200 %.200q", r.method, r.target, r.ids, answer)
	}
	return laneTaken
}

// steer changes the plan at random, until it is told to end.
func (m *laneMix) steer(t *testing.T, ended <-chan struct{}) {
	known, sure := 0, false // the plan's revision, and whether it is that
	action, body := "share", share("*.*", "", "50")
	for !t.Failed() {
		select {
		case <-ended:
			return
		case <-time.After(rand.N(20 * time.Millisecond)): //nolint:gosec // a test's dice
		}
		if !sure { // the gateway was killed within a change
			plan, err := planAt(m.admin)
			if err != nil {
				continue
			}
			if now := int(plan.Revision); now != known && now != known+1 { //nolint:gosec // G115: a test's few changes
				t.Errorf("the plan has revision %d after a kill, and had %d", now, known)
			}
			known, sure = int(plan.Revision), true //nolint:gosec // G115: the same
		}
		status, answer, err := order(m.admin, action, body, known)
		switch {
		case err != nil:
			sure = false
		case status != http.StatusOK:
			t.Errorf("%s %s: got %d %s", action, body, status, answer)
		default:
			var now struct{ Revision int }
			if err := json.Unmarshal([]byte(answer), &now); err != nil || now.Revision != known && now.Revision != known+1 {
				t.Errorf("%s %s based on %d: got %s", action, body, known, answer)
			}
			known = now.Revision
			m.changes++
			action, body = changeAtRandom(known)
		}
	}
}

// changeAtRandom is a change of a plan that has this revision.
func changeAtRandom(revision int) (action, body string) {
	rules := []string{"*.*", "*.*", "shop.*", "shop.orders", "shop.items", "web.*", "web.pages", "app.starts"}
	rule, account := rules[rand.IntN(len(rules))], "" //nolint:gosec // a test's dice
	if dice(20) {
		account = strconv.Itoa(1000 + rand.IntN(3)) //nolint:gosec // the same
	}
	switch {
	case dice(8):
		return "rollback", ""
	case dice(30):
		return "resume", ""
	case dice(15) && rule != "*.*":
		return "unset", fmt.Sprintf(`{"rule":%q,"account":%q}`, rule, account)
	case dice(10):
		return "undo", ""
	case dice(10):
		return "undo", fmt.Sprintf(`{"revision":%d}`, max(0, revision-rand.IntN(10))) //nolint:gosec // the same
	default:
		return "share", share(rule, account, []string{"0", "100", "12.34", "50", "87.5"}[rand.IntN(5)]) //nolint:gosec // the same
	}
}

// keepSome has both hosts be down, so that what is sent now is kept, some of it for each.
func (c *laneCalls) keepSome(t *testing.T, admin string, events int) {
	change(t, admin, "resume", "")
	change(t, admin, "share", share("web.clicks", "", "50"))
	c.v2.down.Store(true)
	c.legacy.down.Store(true)
	for n := range events {
		c.send(t, n, newLaneRequest(0, int(c.last.Add(1)), 0))
	}
}

// calmDown has both hosts take what comes from now on.
func (c *laneCalls) calmDown() {
	for _, host := range []*laneHost{c.v2, c.legacy} {
		host.down.Store(false)
		host.calm.Store(true)
	}
}

// checkPlaces checks that each event of which a caller was told 200 is at one host, or in
// one queue of a spool. Both hosts are down, so that no queue is emptied, but for what was
// under way. It returns the hosts of the queues in which events are.
func (c *laneCalls) checkPlaces(t *testing.T, spool *spooling) (kept map[string]string) {
	for end, moving := time.Now().Add(2*time.Second), 1; moving > 0 && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		kept, moving = spool.kept(t), 0 // what was delivered leaves its queue within a moment
		for id, queue := range kept {
			if took := c.host(queue).takings(id); len(took.at) > took.lost {
				moving++
			}
		}
	}
	for id, told := range c.told {
		atV2, atLegacy := len(c.v2.takings(id).at) > 0, len(c.legacy.takings(id).at) > 0
		queue, queued := kept[id]
		switch {
		case atV2 && atLegacy:
			t.Errorf("event %s is at both hosts", id)
		case queued && (atV2 && c.host(queue) != c.v2 || atLegacy && c.host(queue) != c.legacy):
			t.Errorf("event %s is at one host, and in the queue of the other", id)
		case told == laneTaken && !atV2 && !atLegacy && !queued:
			t.Errorf("event %s is nowhere, its caller was told 200", id)
		}
	}
	return kept
}

// host is the host of a queue.
func (c *laneCalls) host(queue string) *laneHost {
	if strings.HasPrefix(queue, "legacy+") {
		return c.legacy
	}
	return c.v2
}

// kept is the events that are in queues, and in which.
func (g *spooling) kept(t *testing.T) map[string]string {
	kept := map[string]string{}
	for _, q := range g.state(t).Queues {
		if q.Dead > 0 {
			t.Errorf("%d dead letters are in the queue of %s", q.Dead, q.Name)
		}
		for last := uint64(0); ; {
			var list []letter
			g.read(t, fmt.Sprintf("records?queue=%s&after=%d&limit=1000", url.QueryEscape(q.Name), last), &list)
			if len(list) == 0 {
				break
			}
			for _, listed := range list {
				var record letter
				g.read(t, fmt.Sprintf("record?queue=%s&id=%d", url.QueryEscape(q.Name), listed.ID), &record)
				for _, id := range idsIn([]byte(record.Body)) {
					if other := cmp.Or(kept[id], q.Name); other != q.Name {
						t.Errorf("event %s is in the queues of %s and %s", id, other, q.Name)
					}
					kept[id] = q.Name
				}
				last = listed.ID
			}
		}
	}
	return kept
}

// read reads what the spool has. A server of a cluster may be about to lead: then it is
// asked again.
func (g *spooling) read(t *testing.T, path string, value any) {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		var answer json.RawMessage
		status := askAdmin(t, http.MethodGet, g.admin, "spool/"+path, &answer)
		if status < http.StatusInternalServerError {
			_ = json.Unmarshal(answer, value) // there is nothing of a record that has just been delivered
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s: got %d %s", path, status, answer)
		}
	}
}

// checkArrived checks where each event is in the end, and that none is there twice
// without a reason.
func (c *laneCalls) checkArrived(t *testing.T, kept map[string]string) {
	events := map[*laneHost]int{}
	twice, unexplained := 0, []string(nil)
	for id, told := range c.told {
		v2, legacy := c.v2.takings(id), c.legacy.takings(id)
		for host, took := range map[*laneHost]takings{c.v2: v2, c.legacy: legacy} {
			if len(took.at) > 0 {
				events[host]++
			}
			again := max(0, len(took.at)-1-c.nearKills(took.at))
			twice += again
			if again > took.lost {
				unexplained = append(unexplained, id)
			}
		}
		atV2, atLegacy := len(v2.at) > 0, len(legacy.at) > 0
		switch queue, queued := kept[id]; {
		case atV2 && atLegacy:
			t.Errorf("event %s is at both hosts", id)
		case queued && len(c.host(queue).takings(id).at) == 0:
			t.Errorf("event %s was in the queue of %s, and is not at that host", id, queue)
		case told == laneTaken && !atV2 && !atLegacy:
			t.Errorf("event %s is nowhere, its caller was told 200", id)
		}
	}
	if twice > c.doubles {
		t.Errorf("%d events are at one host twice, without a kill; %d were counted. It has lost no answer to these: %q", twice, c.doubles, unexplained)
	}
	if v2, legacy := events[c.v2], events[c.legacy]; v2 < len(c.told)/20 || legacy < len(c.told)/20 {
		t.Errorf("%d events are at v2, %d at the legacy host", v2, legacy)
	}
	if len(kept) == 0 {
		t.Error("no event was in a queue")
	}
}

// nearKills is how many of these times are near a kill: what was delivered then, the
// gateway may not have noted.
func (c *laneCalls) nearKills(times []time.Time) (n int) {
	for _, at := range times {
		for _, killed := range c.killed {
			if at.Sub(killed).Abs() < time.Second {
				n++
			}
		}
	}
	return n
}

// countDoubles adds up what a gateway has counted in its life.
func (c *laneCalls) countDoubles(t *testing.T, admin string) {
	c.doubles += int(scrape(t, admin)["spool_duplicates_possible_total"])
}
