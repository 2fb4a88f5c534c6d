package caddymodule

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"golang.org/x/net/html"

	"github.com/td-postback/gateway/console"
	"github.com/td-postback/gateway/migration"
	"github.com/td-postback/gateway/postback"
	"github.com/td-postback/gateway/spool"
	"github.com/td-postback/gateway/upstream"
)

// watching is a console that watches, as long as the test runs.
func watching(t *testing.T) *Console {
	t.Helper()
	c := &Console{gateway: "gw-1"}
	var err error
	if c.watch, err = watchForConsole(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Cleanup(); err != nil {
			t.Error(err)
		}
		sampled.forget()
		consoleLook.last.Store(0)
	})
	return c
}

// section is the text of a part of the page, with single spaces.
func section(t *testing.T, c *Console, target, id string) string {
	t.Helper()
	w := askConsole(t, c, "GET "+target, nil, nil)
	doc, err := html.Parse(strings.NewReader(w.Body.String()))
	if err != nil || w.Code != http.StatusOK {
		t.Fatal(w.Code, err)
	}
	for n := range doc.Descendants() {
		for _, a := range n.Attr {
			if a.Key != "id" || a.Val != id {
				continue
			}
			var text strings.Builder
			for d := range n.Descendants() {
				if d.Type == html.TextNode {
					text.WriteString(d.Data + " ")
				}
			}
			return strings.Join(strings.Fields(text.String()), " ")
		}
	}
	return ""
}

func wantIn(t *testing.T, said string, wants ...string) {
	t.Helper()
	for _, want := range wants {
		if !strings.Contains(said, want) {
			t.Errorf("%q is not in\n%s", want, said)
		}
	}
}

// TestConsoleShows what a gateway with everything knows, after calls that v2 takes, keeps
// waiting and refuses.
func TestConsoleShows(t *testing.T) {
	v2 := newFakeV2(t, http.StatusOK)
	g := newSpooling(t)
	c := watching(t)
	c.Actions = true
	plan := t.TempDir()
	g.load(t, fmt.Sprintf(`{"handler":"td_postback","upstream":%q,"retries":0,"spool":{"dir":%q},"report":{"dir":%q},"migrate":{"legacy":"http://127.0.0.1:1","start":"v2","dir":%q}}`,
		v2.URL, g.dir, t.TempDir(), plan))
	host := strings.TrimPrefix(v2.URL, "http://")
	wantIn(t, section(t, c, "/", "hosts"), host+" v2 takes records p50 – p99 – Last failure none since the start", "127.0.0.1:1 legacy takes records")
	ended := func() { // callers have their answers before
		t.Helper()
		eventually(t, "the call has ended", func() bool { return books[postback.Post].open.Load() == 0 })
		c.watch.callers.forget()
		c.watch.spools.forget()
	}
	g.post(t, `{"name":"alice"}`)
	ended()
	wantIn(t, section(t, c, "/", "calls"), "v2 post db.tbl 1234/#", "forwarded 200")
	wantIn(t, section(t, c, "/", "plan"), "*.* all 100 %", "sticks to: client")
	if said := section(t, c, "/", "books"); !strings.Contains(said, "post") {
		t.Error(said)
	}
	v2.status.Store(http.StatusServiceUnavailable)
	g.post(t, `{"name":"bob"}`)
	ended()
	wantIn(t, section(t, c, "/", "spools"), g.dir, v2.URL+" down Records 1 ", "0.1 records a second arrive")
	wantIn(t, section(t, c, "/", "hosts"), host+" v2 down: tried now and then", "ago: 503")
	wantIn(t, section(t, c, "/", "audit"), "ready with changes", "1 of 1 callers", "key_in_url changed 1 2 Send the write key")
	wantIn(t, section(t, c, "/", "tables"), "db.tbl 2 100 % 100 % 1 of 1")
	wantIn(t, section(t, c, "/", "keys"), "1234/#", "key_in_url")
	wantIn(t, section(t, c, "/", "callers"), "Go-http-client 2 left db.tbl post")
	g.postTo(t, testEvent, `{"name":"carol"}`) // without a key
	ended()
	wantIn(t, section(t, c, "/", "refusals"), "missing_write_key", "missing_write_key v2 1 ", "Send the write key in the header", "POST")
	wantIn(t, section(t, c, "/", "state"), "Take a look", "Refused in the last 5 minutes")
	wantIn(t, section(t, c, "/?rule=db.tbl&percent=0", "plan"), "0 of the 3 events of the last hour would have gone to v2 instead, and 3 to the legacy host, from 2 of 2 callers", "Send 0 % of db.tbl to v2")
	wantIn(t, section(t, c, "/?rule=db&percent=0", "plan"), "The rule must be")
	for _, field := range []string{"rule", "account", "percent"} { // a key that somebody has put into the wrong field
		form := url.Values{"rule": {"db.tbl"}, "percent": {"1"}}
		form.Set(field, testKeyText)
		if whole := askConsole(t, c, "GET /?"+form.Encode(), nil, nil).Body.String(); strings.Contains(whole, testSecret) {
			t.Errorf("%s: a key is on the page", field)
		}
	}
	listed := c.watch.report(time.Now())
	wantIn(t, section(t, c, "/?caller="+listed.report.Callers.Rows[0].ID, "caller"), "Send the write key in the header X-TD-Write-Key", "curl", "<script>fetch(")
	for _, target := range []string{"/", "/?caller=" + listed.report.Callers.Rows[0].ID} {
		whole := askConsole(t, c, "GET "+target, nil, nil).Body.String()
		for _, never := range []string{testSecret, "alice", "bob", "carol"} {
			if strings.Contains(whole, never) {
				t.Errorf("%s is on the page %s", never, target)
			}
		}
	}
}

// TestConsoleLetters shows dead letters without their values, replays one, and drops one.
func TestConsoleLetters(t *testing.T) {
	v2 := newFakeV2(t, http.StatusServiceUnavailable)
	g := newSpooling(t)
	c := watching(t)
	c.Actions = true
	g.load(t, g.handler(v2.URL))
	for n := range 2 {
		g.post(t, fmt.Sprintf(`{"name":"alice","n":%d}`, n))
	}
	v2.status.Store(http.StatusForbidden)
	// Nobody waits for the hour that v2 has asked for.
	if err := caddy.Stop(); err != nil {
		t.Fatal(err)
	}
	g.load(t, g.handler(v2.URL))
	where := "dead=" + url.QueryEscape(g.dir) + "&queue=" + url.QueryEscape(v2.URL)
	var list []keptRecord
	eventually(t, "both records are dead letters", func() bool {
		s, ok := selectQueue(g.dir, v2.URL)
		s.dead, s.limit = true, 10
		list, _ = s.list()
		return ok && len(list) == 2
	})
	said := section(t, c, "/?"+where, "letters")
	wantIn(t, said, testEvent, "1234/#", "403", `POST {"name":string,"n":number,"td_record_time":number}`, "Replay "+strconv.Itoa(int(list[0].ID))) //nolint:gosec // G115: it is small
	if strings.Contains(said, "alice") || strings.Contains(said, testSecret) {
		t.Error(said)
	}
	v2.status.Store(http.StatusOK)
	of := func(do, name, value string) url.Values {
		return url.Values{"do": {do}, "spool": {g.dir}, "queue": {v2.URL}, name: {value}}
	}
	first := fmt.Sprint(list[0].ID)
	wantIn(t, doForm(t, c, 303, of("replay", "id", first)), "Dead letters that are now waiting to be delivered again: 1.", "<h1 id=\"letters-head\">Dead letters")
	wantIn(t, doForm(t, c, 303, of("replay", "id", first)), "Nothing has changed")
	wantIn(t, doForm(t, c, 400, of("drop", "id", "x")), "Not done.")
	for changed, want := range []struct{ done, text string }{{"", "the disk is full"}, {"Done, but look.", "Dead letters that are now gone: 1. Not all are: the disk is full."}} {
		order := &consoleOrder{request: httptest.NewRequestWithContext(t.Context(), "POST", "/", nil), form: of("drop", "all", "yes"), where: url.Values{}}
		notice, err := order.letters("gone", func(spool.Log, string, ...spool.ID) (int, error) { return changed, errors.New("the disk is full") }, undelivered)
		if want.done == "" && (notice != nil || statusOf(err) != http.StatusServiceUnavailable || !strings.Contains(err.Error(), want.text)) || want.done != "" && (err != nil || notice.Done() != want.done || notice.Text != want.text) {
			t.Errorf("%d changed: %+v, %v", changed, notice, err)
		}
	}
	wantIn(t, doForm(t, c, 303, of("drop", "all", "yes")), "Dead letters that are now gone: 1.")
	wantIn(t, doForm(t, c, 303, of("replay", "all", "yes")), "Nothing has changed")
	wantIn(t, section(t, c, "/?"+where, "letters"), "There is none here.")
	eventually(t, "v2 has what was replayed", func() bool { return v2.taken.Load() == 1 })
	wantIn(t, section(t, c, "/?dead=nowhere&queue=x", "letters"), "not open here")
}

// TestConsoleNotesNothingUnlessSomebodyLooks: a call costs a look at one number then, and
// nothing is kept of it.
func TestConsoleNotesNothingUnlessSomebodyLooks(t *testing.T) {
	sampled.forget()
	consoleLook.last.Store(0)
	c := &call{result: forwardedResult, trip: upstream.Trip{Status: 200}}
	if allocs := testing.AllocsPerRun(100, c.tellConsole); allocs != 0 {
		t.Errorf("%v allocations", allocs)
	}
	if len(sampled.newest()) != 0 {
		t.Error("a call was noted")
	}
	consoleLook.look()
	sampled.last.Store(0)
	c.tellConsole()
	c.tellConsole() // at once: it is left out
	if got := len(sampled.newest()); got != 1 {
		t.Errorf("%d calls", got)
	}
	consoleLook.last.Store(int64(uptime() - lookPause))
	c.tellConsole()
	if len(sampled.newest()) != 0 || consoleLook.last.Load() != 0 {
		t.Error("nobody looks any more, and calls are kept")
	}
}

// TestNoCallWaitsForAPage: while a page reads the sample, a call that ends leaves it alone.
func TestNoCallWaitsForAPage(t *testing.T) {
	t.Cleanup(sampled.forget)
	sampled.last.Store(0)
	sampled.mu.Lock()
	sampled.take(new(call)) // it would wait for ever
	sampled.mu.Unlock()
	if got := len(sampled.newest()); got != 0 {
		t.Errorf("%d calls", got)
	}
}

// TestSampleIsBounded by its size.
func TestSampleIsBounded(t *testing.T) {
	t.Cleanup(sampled.forget)
	for n := range 3 * sampleSize {
		sampled.last.Store(0)
		sampled.take(&call{result: strconv.Itoa(n)})
	}
	if got := sampled.newest(); len(got) != sampleSize || got[0].Result != strconv.Itoa(3*sampleSize-1) {
		t.Errorf("%d calls, the newest is %s", len(got), got[0].Result)
	}
}

// TestConsoleKinds: each result is in the chart by its book, and what means no record is
// in none.
func TestConsoleKinds(t *testing.T) {
	for result, want := range map[string]console.Kind{
		forwardedResult: console.ToV2, handedOffResult: console.ToV2, cutResult: console.ToV2, spooledResult: console.Kept, upstream4xxResult: console.Refused,
		upstream5xxResult: console.Lost, "missing_write_key": console.Refused, "spool_full": console.Lost, preflightResult: -1, "not_found": -1, noOutcomeResult: -1,
	} {
		if got := consoleKind("v2", result); got != want {
			t.Errorf("%s: %d, want %d", result, got, want)
		}
	}
	if got := consoleKind("legacy", forwardedResult); got != console.ToLegacy {
		t.Error(got)
	}
}

// TestRefusalsSayWhatToDo: every result that is a refusal, or a loss, has something.
func TestRefusalsSayWhatToDo(t *testing.T) {
	for _, m := range collected(resultsTotal) {
		if refusalDo(labelOf(m, "result"), labelOf(m, "lane")) == "" {
			t.Error(labelOf(m, "result"))
		}
	}
}

// TestRefusalsByLane: what the legacy host refuses is not what v2 refuses, and something
// else is to be done about it.
func TestRefusalsByLane(t *testing.T) {
	of := func(lane string, count uint64) console.Total {
		return console.Total{Lane: lane, Result: upstream4xxResult, Kind: console.Refused, Count: count}
	}
	got := consoleRefusals([]console.Total{of("legacy", 2)}, []console.Total{of("v2", 3), of("legacy", 5), {Lane: "v2", Result: forwardedResult, Count: 9}}, nil)
	want := []console.RefusalKind{
		{Code: upstream4xxResult, Lane: "legacy", Recent: 2, Total: 5, Do: migration.LegacyRefused.Advice()},
		{Code: upstream4xxResult, Lane: "v2", Total: 3, Do: migration.RefusedByV2.Advice()},
	}
	if !slices.Equal(got, want) {
		t.Errorf("%+v", got)
	}
}

// TestFailures: the words are short, and have no key.
func TestFailures(t *testing.T) {
	consoleWatched.Store(false)
	noteFailure("unseen.example", 503, "busy")
	if lastFailure("unseen.example") != nil {
		t.Error("noted for no console")
	}
	_ = watching(t)
	noteResult("host.example", &spool.Result{Status: 403, Words: "no such key 1234/0123456789abcdef0123456789abcdef01234567 " + strings.Repeat("ä", 200)})
	got := lastFailure("host.example")
	if got == nil || got.Status != 403 || strings.Contains(got.Words, "0123456789abcdef") || len(got.Words) > maxFailureWords+3 {
		t.Errorf("%+v", got)
	}
}

// TestRemade: it is made once a second at most, and for another cause at once. However long
// it took, as when a disk or a cluster did not answer, it is soon made again.
func TestRemade(t *testing.T) {
	var r remade[int]
	made := 0
	remake := func() int { made++; return made }
	for _, want := range []struct {
		of   string
		made int
	}{{"a", 1}, {"a", 1}, {"b", 2}} {
		if got := r.get(want.of, time.Minute, remake); got != want.made {
			t.Errorf("%s: made %d times, want %d", want.of, got, want.made)
		}
	}
	r.made, r.took = time.Now().Add(-2*time.Second), time.Hour // it was dear
	if r.get("b", time.Minute, remake) != 2 {
		t.Error("made again too soon")
	}
	r.made = time.Now().Add(-time.Minute)
	if r.get("b", time.Minute, remake) != 3 {
		t.Error("too old")
	}
	r.made, r.took = time.Now().Add(-2*time.Second), 0
	if r.get("b", time.Minute, remake) != 4 {
		t.Error("not made again")
	}
	r.forget()
	if r.get("b", time.Minute, remake) != 5 {
		t.Error("not forgotten")
	}
}

// TestConsoleOptions: JSON has the same names, and wrong values say what is allowed.
func TestConsoleOptions(t *testing.T) {
	for config, want := range map[string]string{
		`{"hosts":["http://localhost"]}`: "must be a host name or an address",
		`{"hosts":["localhost:80"]}`:     "must be a host name or an address",
		`{"hosts":["*.example"]}`:        "must be a host name or an address",
		`{"hosts":[""]}`:                 "must be a host name or an address",
		`{"host":["localhost"]}`:         "did you mean hosts?",
		`{"actions":"on"}`:               "td_console actions: must be",
		`{"hosts":["{env.CONSOLE}"]}`:    "must be a host name or an address",
		`{"hosts":["münchen.example"]}`:  "must be a host name or an address",
		`{"hosts":["fe80::1%eth0"]}`:     "must be a host name or an address",
		`{"hosts":["ops.example","[::1]","192.0.2.1"],"actions":true,"allow_remote":true}`:            "",
		`{"hosts":["Ops.Example","ops.example.","my_host","2001:DB8:0::1","xn--mnchen-3ya.example"]}`: "",
	} {
		c := new(Console)
		err := json.Unmarshal([]byte(config), c)
		if err == nil {
			err = c.Validate()
		}
		if want == "" != (err == nil) || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", config, err, want)
		}
	}
}

// TestConsoleOutlivesReloads: what was watched stays through a reload, and ends with the
// last configuration.
func TestConsoleOutlivesReloads(t *testing.T) {
	first := watching(t)
	second, err := watchForConsole()
	if err != nil || second != first.watch {
		t.Error("another one watches", err)
	}
	if err := second.leave(); err != nil || !consoleWatched.Load() {
		t.Error("nobody watches", err)
	}
}

// TestConsoleCallers sums rows up by table and by key.
func TestConsoleCallers(t *testing.T) {
	_, shared := startReport(t, aReport(t), "us01.records.in.treasuredata.com")
	t.Cleanup(shared.leave)
	var findings migration.Findings
	findings.Add(migration.KeyInURL)
	for _, of := range []struct{ key, table, agent string }{{"1/#a", "x", "curl/8"}, {"1/#a", "y", "curl/8"}, {"1/#b", "x", "wget/1"}, {"", "x", "bot"}} {
		shared.get().Count(&migration.Call{Time: time.Now(), Key: of.key, Database: "db", Table: of.table, Surface: "post", UserAgent: of.agent, Result: forwardedResult, Findings: findings})
	}
	c := newConsoleCallers(&reportOf{report: shownReport.Load()}, time.Now())
	if r := c.report; len(r.Callers.Rows) != 4 || len(r.Tables.Rows) != 2 || len(r.Keys.Rows) != 2 {
		t.Fatalf("%+v", r)
	}
	if x := c.report.Tables.Rows[0]; x.Name != "db.x" || x.Callers != 3 || x.Events7d != 3 || x.Asked != nil || !slices.Equal(x.Findings, []string{"key_in_url"}) {
		t.Errorf("%+v", x)
	}
	if a := c.report.Keys.Rows[0]; a.Name != "1/#a" || a.Tables != 2 || a.Callers != 2 || len(a.Findings) != 1 {
		t.Errorf("%+v", a)
	}
	ids := map[string]bool{}
	for _, row := range c.report.Callers.Rows {
		ids[row.ID] = true
	}
	if len(ids) != 4 || c.caller("") != nil || c.caller("x") != nil {
		t.Errorf("%v", ids)
	}
}
