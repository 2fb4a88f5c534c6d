package integration

import (
	"bufio"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// startFickleLegacy starts a legacy host that takes whatever comes, GETs too, as long as
// the test wants that.
func startFickleLegacy(t testing.TB) *fickle {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	legacy := newFickleOn(l)
	legacy.serveLegacy(t)
	return legacy
}

func (v2 *fickle) serveLegacy(t testing.TB) {
	acceptAll(t, v2.Listener, func(conn net.Conn, _ int) {
		v2.conns.Add(1)
		br := bufio.NewReader(conn)
		for {
			lines, err := readLines(br)
			if err != nil {
				return
			}
			p := passed{line: lines[0], fields: lines[1:]}
			if p.readBody(br); p.err != nil {
				return
			}
			if away := v2.away.Load(); away != nil {
				if !(*away)(conn) {
					return
				}
				continue
			}
			slices.Sort(p.fields)
			v2.take(seen{line: p.line, fields: p.fields, body: p.body})
			if !send(conn, true, answerOK) {
				return
			}
		}
	})
}

// steeredSpoolBlock is a block with a spool and two lanes.
func steeredSpoolBlock(v2, legacy, dir, options, spool string) string {
	return spoolBlock(v2, dir, "migrate {\n  legacy "+legacy+"\n }\n "+options, spool)
}

// legacyQueue is the name of a legacy host's queue.
func legacyQueue(legacy *fickle) string { return "legacy+" + legacy.url() }

// depth is how many records a queue has.
func (s spoolState) depth(queue string) int {
	for _, q := range s.Queues {
		if q.Name == queue {
			return q.Records
		}
	}
	return 0
}

// TestLegacySpoolFailures has the legacy host fail in every way, in both modes. The caller
// is told what v2 would have told it, and the legacy host gets the record when it is well
// again. v2 never hears of it.
func TestLegacySpoolFailures(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"on_failure", "always"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			legacySpoolFailures(t, mode)
		})
	}
}

func legacySpoolFailures(t *testing.T, mode string) {
	v2 := startRecorder(t, nil)
	refused, listen := unreachable(t)
	type failure struct {
		name      string
		away      func(net.Conn) bool
		ambiguous bool
	}
	failures := []failure{
		{"cannot be reached", nil, false},
		{"silence", hangs, true},
		{"closes", closes, true},
		{"resets", func(conn net.Conn) bool { reset(conn); return false }, true},
		{"garbage", func(conn net.Conn) bool { return send(conn, false, "200 OK\r\n\r\n{}") }, true},
		{"half an answer", func(conn net.Conn) bool { return send(conn, false, answerOK[:len(answerOK)-1]) }, true},
		{"408", answers("408", "X-Own: 1\r\n"), false},
		{"429", answers("429", "X-Own: 1\r\nSet-Cookie: a=1\r\n"), false},
		{"500", answers("500", "X-Own: 1\r\n"), true},
		{"502", answers("502", "X-Own: 1\r\n"), true},
		{"503", answers("503", "X-Own: 1\r\n"), false},
		{"503 in chunks", func(conn net.Conn) bool {
			return send(conn, true, "HTTP/1.1 503 X\r\nX-Own: 1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nX: y\r\n\r\n")
		}, false},
		{"503 that breaks off", func(conn net.Conn) bool {
			return send(conn, false, "HTTP/1.1 503 X\r\nX-Own: 1\r\nContent-Length: 9\r\n\r\n{}")
		}, false},
		{"504", answers("504", "X-Own: 1\r\n"), true},
		{"599", answers("599", "X-Own: 1\r\n"), false},
	}
	dir := t.TempDir() + "/spool"
	hosts := make([]*fickle, len(failures))
	var site strings.Builder
	ambiguous := 0
	for n, f := range failures {
		addr := refused
		if f.away != nil {
			hosts[n] = startFickleLegacy(t)
			hosts[n].goAway(f.away)
			addr = hosts[n].Addr().String()
		}
		site.WriteString(strings.Replace(steeredSpoolBlock(v2.url(), "http://"+addr, dir, "response_timeout 500ms\n redirect_hosts shop.example", "mode "+mode)+"\n",
			"td_postback", "td_postback /postback/v3/event/db/t"+strconv.Itoa(n), 1))
		if f.ambiguous {
			ambiguous += 4
		}
	}
	g := serveSpoolSite(t, dir, site.String())
	var kept, all sync.WaitGroup
	kept.Add(len(failures))
	for n, f := range failures {
		all.Go(func() {
			t.Run(f.name, func(t *testing.T) {
				at := func(request string) string { return strings.Replace(request, "/tbl", "/t"+strconv.Itoa(n), 1) }
				for id, tc := range []keptCase{
					{request: post(spoolTarget, asJSON, withID("0"))},
					{request: post(spoolTarget, asJSON+"Origin: https://x.example\r\n", withID("1"))},
					{request: get(spoolTarget+"&td_format=pixel&id=2", ""), answer: asPixel},
					{request: get(spoolTarget+"&td_redirect=https://shop.example/x&id=3", ""), answer: asRedirect},
				} {
					answer := raw(t, g.addr, at(tc.request))
					tc.check(t, answer)
					if answer.Header.Get("X-Own") != "" || answer.Header.Get("Set-Cookie") != "" || answer.Header.Get("Retry-After") != "" {
						t.Errorf("record %d: the legacy host's failure shows: %q", id, answer.Header)
					}
				}
				kept.Done()
				kept.Wait()
				if f.away == nil {
					hosts[n] = newFickleOn(listen())
					hosts[n].serveLegacy(t)
				}
				hosts[n].comeBack()
				hosts[n].await(t, "0", "1", "2", "3")
				for _, id := range []string{"0", "1", "2", "3"} {
					got := hosts[n].find(id)
					if len(got) != 1 || !addedTime.MatchString(got[0].body) || got[0].line != at("POST "+event+" HTTP/1.1") ||
						!slices.Equal(got[0].field("Host"), []string{hosts[n].Addr().String()}) || !slices.Equal(got[0].field("X-TD-Write-Key"), []string{spoolKey}) {
						t.Errorf("the legacy host has taken %+v", got)
					}
				}
			})
		})
	}
	all.Wait()
	g.awaitEmpty(t)
	v2.none(t)
	counts, _ := g.spoolMetrics(t)
	// A delivery that failed before the host came back may count too.
	if got := counts["duplicates_possible_total"]; got < float64(ambiguous) {
		t.Errorf("%v records may be there twice, want at least %d", got, ambiguous)
	}
	g.await(t, "check the legacy host and the way there", 1)
}

// TestLegacySpoolForm keeps records of every kind for the legacy host, and the same for
// v2 through another gateway. They are the same, but for where they go and came through.
func TestLegacySpoolForm(t *testing.T) {
	t.Parallel()
	v2, legacy := startFickle(t), startFickleLegacy(t)
	v2.goAway(answers("503", "Retry-After: 1\r\n"))
	legacy.goAway(answers("503", ""))
	one := serveSpool(t, v2.url(), "redirect_hosts shop.example", "")
	dir := t.TempDir() + "/spool"
	g := serveSpoolSite(t, dir, steeredSpoolBlock("http://127.0.0.1:9", legacy.url(), dir, "redirect_hosts shop.example", ""))
	for n, tc := range keptCases {
		at := strings.Replace(tc.request, "/tbl", "/t"+strconv.Itoa(n), 1)
		tc.check(t, raw(t, one.addr, at))
		if tc.name == "TD1 alone" { // which the legacy host does not read
			legacy.comeBack()
			if answer := raw(t, g.addr, at); answer.StatusCode != 200 {
				t.Errorf("got %d", answer.StatusCode)
			}
			legacy.goAway(answers("503", ""))
			continue
		}
		tc.check(t, raw(t, g.addr, at))
	}
	v2.comeBack()
	legacy.comeBack()
	one.awaitEmpty(t)
	g.awaitEmpty(t)
	got, want := map[string]accepted{}, map[string]accepted{}
	for _, a := range legacy.all() {
		got[a.line] = a
	}
	for _, a := range v2.all() {
		want[a.line] = a
	}
	ofAll := func(s accepted) []string {
		return slices.DeleteFunc(slices.Clone(s.fields), func(f string) bool {
			return strings.HasPrefix(f, "Host: ") || strings.HasPrefix(f, "Via: ") || strings.HasPrefix(f, "Authorization: ")
		})
	}
	withoutTime := func(body string) string { return addedTime.ReplaceAllString(body, "}") }
	for n, tc := range keptCases {
		if tc.name == "TD1 alone" {
			continue
		}
		t.Run(tc.name, func(t *testing.T) {
			mark := "/t" + strconv.Itoa(n)
			var line string
			for l := range want {
				if strings.Contains(l+" ", mark+" ") || strings.Contains(l, mark+"?") {
					line = l
				}
			}
			a, b := got[line], want[line]
			if line == "" || !slices.Equal(ofAll(a), ofAll(b)) || withoutTime(a.body) != withoutTime(b.body) {
				t.Errorf("the legacy host got\n%q %q %.100q, and v2\n%q %q %.100q", a.line, a.fields, a.body, b.line, b.fields, b.body)
			}
			if len(a.field("Authorization")) > 0 || len(a.field("Via")) != 1 || !pseudonym.MatchString(a.field("Via")[0]) {
				t.Errorf("the legacy host got %q", a.fields)
			}
		})
	}
}

// TestLegacySpoolPassesOn sends what the legacy host does not take now and what is no
// record that may be kept: its callers hear the legacy host's own answer, whatever is
// known of the host, and nothing is kept.
func TestLegacySpoolPassesOn(t *testing.T) {
	t.Parallel()
	legacy := startFickleLegacy(t)
	dir := t.TempDir() + "/spool"
	g := serveSpoolSite(t, dir, steeredSpoolBlock("http://127.0.0.1:9", legacy.url(), dir, "", ""))
	never := map[string]string{
		"no key":                   post(event, asJSON, object),
		"a bad key":                post(event+"?td_write_key=%zz", asJSON, object),
		"TD1 alone":                post(event, asJSON+"Authorization: TD1 "+spoolKey+"\r\n", object),
		"above the cap":            post(spoolTarget, asJSON, objectOf(v2Cap+1)),
		"above the cap in a query": post(spoolTarget+"&td_format=pixel&a="+strings.Repeat("%22", v2Cap/6), "", ""),
		"another method":           strings.Replace(post(spoolTarget, asJSON, object), "POST", "PUT", 1),
		"HEAD":                     strings.Replace(get(spoolTarget, ""), "GET", "HEAD", 1),
		"a preflight":              "OPTIONS " + spoolTarget + " HTTP/1.1\r\nHost: x\r\n\r\n",
		"a bad name":               post("/postback/v3/event/d.b/tbl?td_write_key="+spoolKey, asJSON, object),
		"of a JavaScript SDK":      get("/js/v3/event/db/tbl?api_key="+spoolKey+"&data=e30=&callback=x", ""),
		"several events":           post("/ios/v3/event", ofAndroid, keenBody("db.tbl", "1")),
		"no call":                  get("/x?td_write_key="+spoolKey, ""),
	}
	delete(never, "above the cap in a query") // its head is larger than the server takes
	check := func() {
		for _, status := range []string{"429", "500", "503"} {
			legacy.goAway(answers(status, "X-Own: 1\r\nRetry-After: 7\r\nSet-Cookie: a=1\r\n"))
			for name, request := range never {
				answer := raw(t, g.addr, request)
				if strconv.Itoa(answer.StatusCode) != status || answer.Header.Get("X-Own") != "1" || answer.Header.Get("Set-Cookie") != "a=1" ||
					answer.body != `{"error":"x"}` && name != "HEAD" {
					t.Errorf("%s: got %d %q %q", name, answer.StatusCode, answer.Header, answer.body)
				}
			}
		}
	}
	check()
	if s := g.state(t); s.records()+s.dead() != 0 {
		t.Errorf("kept: %+v", s)
	}
	// Records that are refused for good go back, too.
	for _, status := range []string{"302", "400", "401", "403", "404", "413", "422"} {
		legacy.goAway(answers(status, "X-Own: 1\r\n"))
		if answer := raw(t, g.addr, post(spoolTarget, asJSON, object)); strconv.Itoa(answer.StatusCode) != status || answer.Header.Get("X-Own") != "1" {
			t.Errorf("got %d %q", answer.StatusCode, answer.body)
		}
	}
	// The host is taken to be down: that holds for nobody whose record cannot be kept.
	legacy.goAway(answers("503", "Retry-After: 60\r\n"))
	isTaken(t, raw(t, g.addr, post(spoolTarget, asJSON, withID("1"))))
	if s := g.state(t); len(s.Queues) == 0 || !slices.ContainsFunc(s.Queues, func(q struct {
		Name          string
		Records, Dead int
		Oldest        *time.Time
		Down          bool `json:"upstream_down"`
	}) bool {
		return q.Name == legacyQueue(legacy) && q.Down
	}) {
		t.Errorf("the host is not down: %+v", s)
	}
	check()
	if s := g.state(t); s.records() != 1 || s.depth(legacyQueue(legacy)) != 1 {
		t.Errorf("kept: %+v", s)
	}
}

// TestLegacySpoolCircuit counts how often a legacy host that is down is tried, and how
// long callers wait meanwhile.
func TestLegacySpoolCircuit(t *testing.T) {
	t.Parallel()
	for name, away := range map[string]func(net.Conn) bool{"closes": closes, "hangs": hangs} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			legacy := startFickleLegacy(t)
			legacy.goAway(away)
			dir := t.TempDir() + "/spool"
			g := serveSpoolSite(t, dir, steeredSpoolBlock("http://127.0.0.1:9", legacy.url(), dir, "response_timeout 500ms", "mode always"))
			ids, slow := make([]string, 200), 0
			for n := range ids {
				ids[n] = strconv.Itoa(n)
				from := time.Now()
				isTaken(t, raw(t, g.addr, post(spoolTarget, asJSON, withID(ids[n]))))
				if time.Since(from) > 100*time.Millisecond {
					slow++
				}
			}
			tries := legacy.conns.Load()
			t.Logf("%d tries and %d slow answers for 200 records", tries, slow)
			if tries > 15 || slow > 50 { // as with v2
				t.Errorf("the host was tried %d times, and %d callers waited", tries, slow)
			}
			if health, status := g.health(t); health != "degraded" || status != 200 {
				t.Errorf("health: %s %d", health, status)
			}
			legacy.comeBack()
			legacy.await(t, ids...)
			g.awaitEmpty(t)
			g.awaitHealth(t, "ok")
			if n := len(legacy.all()); n != 200 {
				t.Errorf("the host has taken %d records", n)
			}
		})
	}
}

// TestLegacySpoolAccounts: 429 speaks of the account, also in this lane.
func TestLegacySpoolAccounts(t *testing.T) {
	t.Parallel()
	legacy := startFickleLegacy(t)
	dir := t.TempDir() + "/spool"
	g := serveSpoolSite(t, dir, steeredSpoolBlock("http://127.0.0.1:9", legacy.url(), dir, "", ""))
	legacy.goAway(answers("429", "Retry-After: 3\r\n"))
	from := time.Now()
	isTaken(t, raw(t, g.addr, post(spoolTarget, asJSON, withID("limited"))))
	legacy.comeBack()
	isTaken(t, raw(t, g.addr, post(spoolTarget, asJSON, withID("also"))))
	isTaken(t, raw(t, g.addr, post(event+"?td_write_key=777/"+spoolSecret, asJSON, withID("other"))))
	legacy.await(t, "other", "limited", "also")
	for _, a := range legacy.all() {
		if early := a.at.Sub(from) < 3*time.Second; early != (a.id == "other") {
			t.Errorf("%s came after %v", a.id, a.at.Sub(from))
		}
	}
}

// TestLegacySpoolFull: what the spool has no room for hears the legacy host's own answer,
// or, while the host is not asked, 503.
func TestLegacySpoolFull(t *testing.T) {
	t.Parallel()
	legacy := startFickleLegacy(t)
	dir := t.TempDir() + "/spool"
	g := serveSpoolSite(t, dir, steeredSpoolBlock("http://127.0.0.1:9", legacy.url(), dir, "", "max_size 1MiB"))
	pad := strings.Repeat("x", 100_000)
	legacy.goAway(answers("429", "X-Own: 1\r\nSet-Cookie: a=1\r\n"))
	var kept []string
	for n := 0; ; n++ {
		id := strconv.Itoa(n)
		// Each has an account of its own, so that the host is asked each time.
		answer := raw(t, g.addr, post(event+"?td_write_key="+id+"/"+spoolSecret, asJSON, `{"id":"`+id+`","pad":"`+pad+`"}`))
		if answer.StatusCode == 429 && answer.Header.Get("X-Own") == "1" && answer.Header.Get("Set-Cookie") == "a=1" && answer.body == `{"error":"x"}` {
			break
		}
		isTaken(t, answer)
		if kept = append(kept, id); len(kept) > 20 {
			t.Fatal("it takes more than max_size")
		}
	}
	g.await(t, "the callers have got the legacy host's answer", 1)
	legacy.goAway(answers("503", "Retry-After: 60\r\n"))
	large := post(event+"?td_write_key=99/"+spoolSecret, asJSON, `{"id":"no","pad":"`+pad+`"}`)
	if answer := raw(t, g.addr, large); answer.StatusCode != 503 || answer.body != `{"error":"x"}` {
		t.Errorf("got %d %q", answer.StatusCode, answer.body)
	}
	isUnkept(t, raw(t, g.addr, large), "spool_full")
	if s := g.state(t); s.depth(legacyQueue(legacy)) != len(kept) {
		t.Errorf("%d were answered with 200: %+v", len(kept), s)
	}
}

// TestLegacySpoolBatch: the legacy host gets no batches, whatever is configured.
func TestLegacySpoolBatch(t *testing.T) {
	t.Parallel()
	legacy := startFickleLegacy(t)
	dir := t.TempDir() + "/spool"
	g := serveSpoolSite(t, dir, steeredSpoolBlock("http://127.0.0.1:9", legacy.url(), dir, "", "batch 500\n mode always\n drain_rate 100000"))
	legacy.goAway(closes)
	ids, bodies := numbered("b", 100)
	sendRecords(t, g.addr, spoolTarget, bodies)
	legacy.comeBack()
	legacy.await(t, ids...)
	g.awaitEmpty(t)
	for _, a := range legacy.all() {
		if a.line != "POST "+event+" HTTP/1.1" || len(legacy.find(a.id)) != 1 {
			t.Errorf("the legacy host got %q", a.line)
		}
	}
}

// TestLegacySpoolDead: what the legacy host refuses later is a dead letter of its queue,
// which the commands see.
func TestLegacySpoolDead(t *testing.T) {
	t.Parallel()
	legacy := startFickleLegacy(t)
	dir := t.TempDir() + "/spool"
	g := serveSpoolSite(t, dir, steeredSpoolBlock("http://127.0.0.1:9", legacy.url(), dir, "", ""))
	legacy.goAway(answers("503", ""))
	for _, id := range []string{"1", "2"} {
		isTaken(t, raw(t, g.addr, post(spoolTarget, asJSON, withID(id))))
	}
	queue := []string{"--queue", legacyQueue(legacy)}
	spoolPrints(t, g.admin, []string{"status"}, legacyQueue(legacy))
	spoolPrints(t, g.admin, append([]string{"list"}, queue...), event, "1234/…")
	legacy.goAway(answers("403", ""))
	g.awaitState(t, func(s *spoolState) bool { return s.dead() == 2 })
	g.await(t, "a kept record became a dead letter", 1)
	if line := warningLine(g.text(), "a kept record became a dead letter"); !strings.Contains(line, `"upstream":"`+legacy.Addr().String()+`"`) {
		t.Errorf("logged %s", line)
	}
	var letters []struct {
		ID     uint64
		Status int
	}
	if status := askAdmin(t, http.MethodGet, g.admin, "spool/records?dead=true&queue="+strings.ReplaceAll(legacyQueue(legacy), "+", "%2B"), &letters); status != 200 || len(letters) != 2 || letters[0].Status != 403 {
		t.Fatalf("got %d %+v", status, letters)
	}
	id := strconv.FormatUint(letters[0].ID, 10)
	spoolPrints(t, g.admin, append([]string{"show", "--dead", id}, queue...), `"status": 403`, "1234/…")
	spoolPrints(t, g.admin, append([]string{"drop", id}, queue...), "1 dead letter deleted")
	legacy.comeBack()
	spoolPrints(t, g.admin, append([]string{"replay", "--all"}, queue...), "1 dead letter to be delivered again")
	legacy.await(t, "2")
	g.awaitEmpty(t)
}

// TestLegacySpoolLeft takes migrate out of the configuration while records are kept for
// the legacy host, by a reload and by a restart: the gateway says how many, and where, and
// sends them nowhere. When it is back, they are delivered.
func TestLegacySpoolLeft(t *testing.T) {
	t.Parallel()
	v2, legacy := startFickle(t), startFickleLegacy(t)
	legacy.goAway(closes)
	home, dir := "XDG_DATA_HOME="+t.TempDir(), filepath.Join(t.TempDir(), "spool")
	with := steeredSpoolBlock(v2.url(), legacy.url(), dir, "", "")
	without := spoolBlock(v2.url(), dir, "", "")
	elsewhere := steeredSpoolBlock(v2.url(), "http://127.0.0.1:9", dir, "", "")
	g := serveSpoolSite(t, dir, with, home)
	for _, id := range []string{"1", "2", "3"} {
		isTaken(t, raw(t, g.addr, post(spoolTarget, asJSON, withID(id))))
	}
	for n, site := range []string{without, elsewhere, strings.Replace(without, "retries 0", "retries 1", 1)} {
		if status, problem := reload(t, g.admin, strings.Replace(g.caddyfile, with, site, 1)); status != 200 {
			t.Fatalf("%d %s", status, problem)
		}
		g.await(t, strandedWarning, n+1)
	}
	if line := warningLine(g.text(), strandedWarning); !strings.Contains(line, `"records":3`) || !strings.Contains(line, `"spool":"`+dir+`"`) ||
		!strings.Contains(line, `"queue":"`+legacyQueue(legacy)+`"`) || !strings.Contains(line, "configure migrate again") {
		t.Errorf("logged %s", line)
	}
	isTaken(t, raw(t, g.addr, post(spoolTarget, asJSON, withID("for v2"))))
	g.stop()
	legacy.comeBack()
	g = serveSpoolSite(t, dir, without, home)
	g.await(t, strandedWarning, 1)
	isTaken(t, raw(t, g.addr, post(spoolTarget, asJSON, withID("again"))))
	if s := g.state(t); s.depth(legacyQueue(legacy)) != 3 {
		t.Errorf("the queue is %+v", s)
	}
	if n := len(v2.all()); n != 2 || len(legacy.all()) != 0 {
		t.Errorf("v2 has %d records, and the legacy host %d", n, len(legacy.all()))
	}
	g.stop()
	g = serveSpoolSite(t, dir, with, home)
	legacy.await(t, "1", "2", "3")
	g.awaitEmpty(t)
	if n := len(v2.all()); n != 2 {
		t.Errorf("v2 has %d records", n)
	}
	if line := warningLine(g.text(), strandedWarning); line != "" {
		t.Errorf("logged %s", line)
	}
}

// TestLegacySpoolBooks looks at the metrics, the access log and the report.
func TestLegacySpoolBooks(t *testing.T) {
	t.Parallel()
	legacy := startFickleLegacy(t)
	dir := t.TempDir() + "/spool"
	site := "log {\n format filter {\n  request td_key\n }\n}\n" +
		steeredSpoolBlock("http://127.0.0.1:9", legacy.url(), dir, "report {\n dir "+t.TempDir()+"\n }", "")
	g := serveSpoolSite(t, dir, site)
	legacy.goAway(answers("503", ""))
	isTaken(t, raw(t, g.addr, post(spoolTarget, asJSON, withID("1"))))
	raw(t, g.addr, get(spoolTarget+"&id=2&td_redirect=https://elsewhere.example/", ""))
	got := awaitIdle(t, g.admin)
	checkBooks(t, got)
	for name, want := range map[string]float64{
		`requests_total{key="param",lane="legacy",result="spooled",surface="post"}`:             1,
		`requests_total{key="param",lane="legacy",result="redirect_not_allowed",surface="get"}`: 1,
		`results_total{lane="legacy",result="spooled"}`:                                         1,

		booksTotal("post", "spooled"): 1,
		booksTotal("get", "spooled"):  1,
	} {
		if got[name] != want {
			t.Errorf("%s is %v, want %v", name, got[name], want)
		}
	}
	for name := range got {
		if strings.Contains(name, `lane="v2"`) || strings.HasPrefix(name, "upstream_") || strings.HasPrefix(name, "buffered_bytes") {
			t.Errorf("%s is %v", name, got[name])
		}
	}
	g.await(t, `"lane":"legacy","result":"spooled"`, 1)
	var callers struct {
		Rows []struct {
			Surface        string
			Lanes, Results map[string]int
		}
	}
	askAdmin(t, http.MethodGet, g.admin, "migration/callers", &callers)
	for _, row := range callers.Rows {
		if row.Surface == "post" && (row.Lanes["legacy"] != 1 || row.Results["spooled"] != 1) {
			t.Errorf("a row is %+v", row)
		}
	}
	if len(callers.Rows) != 2 {
		t.Errorf("the report is %+v", callers)
	}
	legacy.comeBack()
	legacy.await(t, "1", "2")
}

// TestLegacySpoolQueuesStayApart keeps records for v2, moves all to the legacy host, keeps
// records for that, and kills the gateway: each host gets what was kept for it, and
// nothing else.
func TestLegacySpoolQueuesStayApart(t *testing.T) {
	t.Parallel()
	v2, legacy := startFickle(t), startFickleLegacy(t)
	dir := filepath.Join(t.TempDir(), "spool")
	queuesStayApart(t, v2, legacy, func(start string) string {
		return spoolBlock(v2.url(), dir, "migrate {\n  legacy "+legacy.url()+"\n  start "+start+"\n }", "drain_rate 100000")
	})
}

// strandedWarning tells of records for a host that is in no configuration.
const strandedWarning = "a queue of the spool is for a host that is in no configuration"

func queuesStayApart(t *testing.T, v2, legacy *fickle, site func(start string) string) *spooling {
	v2.goAway(closes)
	legacy.goAway(closes)
	admin := freeAddr(t)
	addr, socket := outsideSocket(t)
	serveAll := func(start string) *spooling {
		g := &spooling{admin: admin, caddyfile: socketCaddyfile(admin, site(start))}
		g.gateway = &gateway{process: startOn(t, g.caddyfile, socket), addr: addr}
		saysNoSecret(t, g.process)
		return g
	}
	g := serveAll("v2")
	g.awaitState(t, func(s *spoolState) bool { return s.Available })
	const each = 50
	var ids [2][]string
	for n, lane := range []string{"v2", "legacy"} {
		if status, problem := reload(t, admin, socketCaddyfile(admin, site(lane))); status != 200 {
			t.Fatalf("%d %s", status, problem)
		}
		var bodies []string
		ids[n], bodies = numbered(lane, each)
		sendRecords(t, addr, spoolTarget, bodies)
	}
	g.awaitState(t, func(s *spoolState) bool { return s.depth(v2.url()) == each && s.depth(legacyQueue(legacy)) == each })
	kill(g.process)
	g = serveAll("legacy")
	legacy.comeBack()
	legacy.await(t, ids[1]...)
	v2.comeBack()
	v2.await(t, ids[0]...)
	g.awaitEmpty(t)
	for n, host := range []*fickle{v2, legacy} {
		for _, a := range host.all() {
			if !slices.Contains(ids[n], a.id) || len(host.find(a.id)) != 1 {
				t.Errorf("host %d has taken %q, %d times", n, a.id, len(host.find(a.id)))
			}
		}
	}
	if len(v2.all()) != each || len(legacy.all()) != each {
		t.Errorf("v2 has %d, and the legacy host %d", len(v2.all()), len(legacy.all()))
	}
	return g
}
