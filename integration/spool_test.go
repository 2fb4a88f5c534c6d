package integration

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestSpoolDeliversTheSame sends records of every kind to a v2 that does not
// take them at first. Later it gets just what it would have got, and the time
// at which the record came.
func TestSpoolDeliversTheSame(t *testing.T) {
	t.Parallel()
	var met sync.Map
	u := startRecorder(t, func(conn net.Conn, _ int, s seen) bool {
		if _, again := met.LoadOrStore(s.line, true); !again && !strings.Contains(s.line, "/well") {
			return answers("503", "")(conn)
		}
		return send(conn, true, answerOK)
	})
	g := serveSpool(t, u.url(), "redirect_hosts shop.example", "")
	first := make([]seen, len(keptCases))
	from, to := make([]time.Time, len(keptCases)), make([]time.Time, len(keptCases))
	late := map[string]seen{}
	next := func() seen { // of the first tries: others may come in between
		for {
			s := u.next(t)
			if _, again := late[s.line]; again || strings.Contains(s.line, "/well") {
				continue
			}
			return s
		}
	}
	known := map[string]bool{}
	for n, tc := range keptCases {
		from[n] = time.Now()
		tc.check(t, raw(t, g.addr, strings.Replace(tc.request, "/tbl", "/t"+strconv.Itoa(n), 1)))
		to[n] = time.Now()
		for {
			s := next()
			if known[s.line] {
				late[s.line] = s
				continue
			}
			first[n], known[s.line] = s, true
			break
		}
		// So that v2 does not look as if it were down.
		isTaken(t, raw(t, g.addr, post(strings.Replace(spoolTarget, "/tbl", "/well", 1), asJSON, object)))
	}
	for len(late) < len(keptCases) {
		s := next()
		late[s.line] = s
	}
	for n, tc := range keptCases {
		t.Run(tc.name, func(t *testing.T) { t.Parallel(); tc.checkLate(t, first[n], late[first[n].line], from[n], to[n]) })
	}
	g.awaitEmpty(t)
	for len(u.requests) > 0 {
		if s := <-u.requests; !strings.Contains(s.line, "/well") {
			t.Errorf("v2 got another %q", s.line)
		}
	}
}

// TestSpoolFailures has v2 fail in every way. The caller is told what v2 would
// have told it, and v2 gets the record when it is well again.
func TestSpoolFailures(t *testing.T) {
	t.Parallel()
	refused, listen := unreachable(t)
	type failure struct {
		name string
		away func(net.Conn) bool
	}
	failures := []failure{
		{"cannot be reached", nil},
		{"silence", hangs},
		{"closes", closes},
		{"resets", func(conn net.Conn) bool { reset(conn); return false }},
		{"garbage", func(conn net.Conn) bool { return send(conn, false, "200 OK\r\n\r\n{}") }},
		{"half an answer", func(conn net.Conn) bool { return send(conn, false, answerOK[:len(answerOK)-1]) }},
		{"half a head", func(conn net.Conn) bool { return send(conn, false, answerOK[:20]) }},
		{"408", answers("408", "X-Own: 1\r\n")},
		{"429", answers("429", "X-Own: 1\r\n")},
		{"500", answers("500", "X-Own: 1\r\n")},
		{"502", answers("502", "X-Own: 1\r\n")},
		{"503", answers("503", "X-Own: 1\r\n")},
		{"504", answers("504", "X-Own: 1\r\n")},
		{"599", answers("599", "X-Own: 1\r\n")},
	}
	dir := t.TempDir() + "/spool"
	v2s := make([]*fickle, len(failures))
	var site strings.Builder
	for n, f := range failures {
		addr := refused
		if f.away != nil {
			v2s[n] = startFickle(t)
			v2s[n].goAway(f.away)
			addr = v2s[n].Addr().String()
		}
		site.WriteString(strings.Replace(spoolBlock("http://"+addr, dir, "response_timeout 500ms\n redirect_hosts shop.example", "")+"\n",
			"td_postback", "td_postback /postback/v3/event/db/t"+strconv.Itoa(n), 1))
	}
	g := serveSpoolSite(t, dir, site.String())
	var all sync.WaitGroup
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
					if answer.Header.Get("X-Own") != "" || answer.Header.Get("Retry-After") != "" {
						t.Errorf("record %d: v2's failure shows: %q", id, answer.Header)
					}
				}
				if f.away == nil {
					v2s[n] = newFickleOn(listen())
					v2s[n].serve(t)
				}
				v2s[n].comeBack()
				v2s[n].await(t, "0", "1", "2", "3")
				for _, id := range []string{"0", "1", "2", "3"} {
					if got := v2s[n].find(id); len(got) != 1 || !addedTime.MatchString(got[0].body) {
						t.Errorf("v2 has taken %+v", got)
					}
				}
			})
		})
	}
	all.Wait()
	g.awaitEmpty(t)
}

// TestSpoolOverHTTP2 keeps records that come over HTTP/2.
func TestSpoolOverHTTP2(t *testing.T) {
	t.Parallel()
	v2 := startFickle(t)
	v2.goAway(closes)
	pair := newCertificate(t, "127.0.0.1")
	addr, admin := freeAddr(t), freeAddr(t)
	_, port, _ := net.SplitHostPort(addr)
	dir := t.TempDir() + "/spool"
	g := &spooling{admin: admin, dir: dir, gateway: serveCaddyfile(t, addr, strings.Replace(spoolCaddyfile(admin, port, spoolBlock(v2.url(), dir, "", "")),
		"http://:"+port+" {", "https://127.0.0.1:"+port+" {\n tls "+pair.cert+" "+pair.key, 1))}
	client := pair.http2Client()
	defer client.CloseIdleConnections()
	for _, id := range []string{"a", "b"} {
		req, err := http.NewRequest(http.MethodPost, "https://"+addr+spoolTarget, strings.NewReader(withID(id)))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Origin", "https://x.example")
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		isTaken(t, reply{resp, string(body)})
		if resp.ProtoMajor != 2 || resp.Header.Get("Access-Control-Allow-Origin") != "https://x.example" {
			t.Errorf("got %s %q", resp.Proto, resp.Header)
		}
	}
	v2.comeBack()
	v2.await(t, "a", "b")
	got := v2.find("a")[0]
	if !slices.Equal(got.field("Via"), []string{"2.0 Caddy"}) || !slices.Equal(got.field("X-TD-Write-Key"), []string{spoolKey}) {
		t.Errorf("v2 got %q", got.fields)
	}
	g.awaitEmpty(t)
}

// TestSpoolPassesAnswers compares v2's answers through a gateway with a spool
// with those through one without, and checks that none of these records is kept.
func TestSpoolPassesAnswers(t *testing.T) {
	t.Parallel()
	u := startRecorder(t, func(conn net.Conn, _ int, s seen) bool {
		_, status, _ := strings.Cut(s.line, "/db/s")
		return send(conn, true,
			"HTTP/1.1 "+status[:3]+" X\r\nX-Own: "+status[:3]+"\r\nDate: Thu, 01 Jan 2026 00:00:00 GMT\r\n"+
				"Content-Type: text/x\r\nLocation: /x\r\nRetry-After: 9\r\n"+
				map[bool]string{true: "\r\n", false: "Content-Length: 5\r\n\r\nhello"}[status[:3] == "204" || status[:3] == "304"])
	})
	g := serveSpool(t, u.url(), "", "")
	without := serve(t, "", "td_postback {\n upstream "+u.url()+"\n}")
	for _, status := range []string{"200", "201", "204", "299", "302", "304", "400", "401", "403", "404", "413", "499"} {
		t.Run(status, func(t *testing.T) {
			for _, request := range []string{
				post(spoolTarget, asJSON+"Origin: https://x.example\r\n", object),
				get(spoolTarget+"&a=1", ""),
				get(spoolTarget+"&a=1&td_format=pixel", ""),
				get(spoolTarget+"&a=1&td_redirect=https://shop.example/", ""),
			} {
				request = strings.Replace(request, "/tbl", "/s"+status, 1)
				got, want := raw(t, g.addr, request), raw(t, without.addr, request)
				if got.StatusCode != want.StatusCode || fmt.Sprint(got.Header) != fmt.Sprint(want.Header) || got.body != want.body {
					t.Errorf("got %d %q %q\nwant %d %q %q", got.StatusCode, got.Header, got.body, want.StatusCode, want.Header, want.body)
				}
				if a, b := u.next(t), u.next(t); a.line != b.line || a.body != b.body {
					t.Errorf("v2 got %q %q and %q %q", a.line, a.body, b.line, b.body)
				}
			}
		})
	}
	if s := g.state(t); s.records() != 0 || s.dead() != 0 {
		t.Errorf("kept: %+v", s)
	}
	u.none(t)
}

// warningLine is the first line of a log with this message.
func warningLine(log, message string) string {
	for line := range strings.SplitSeq(log, "\n") {
		if strings.Contains(line, `"msg":"`+message+`"`) {
			return line
		}
	}
	return ""
}

// TestSpoolAlways answers callers while v2 hangs, and delivers when v2 is well
// again. What v2 refuses then is a dead letter and holds up nothing.
func TestSpoolAlways(t *testing.T) {
	t.Parallel()
	v2 := startFickle(t)
	release := make(chan struct{})
	v2.goAway(func(conn net.Conn) bool { <-release; return false })
	g := serveSpool(t, v2.url(), "redirect_hosts shop.example", "mode always")
	for n, tc := range []keptCase{
		{request: post(spoolTarget, asJSON, withID("0"))},
		{request: get(spoolTarget+"&id=1&td_format=pixel", ""), answer: asPixel},
		{request: get(spoolTarget+"&id=2&td_redirect=https://shop.example/x", ""), answer: asRedirect},
		{request: post(spoolTarget, asJSON, objectOf(v2Cap))},
	} {
		from := time.Now()
		tc.check(t, raw(t, g.addr, tc.request))
		if took := time.Since(from); took > slack {
			t.Errorf("record %d took %v", n, took)
		}
	}
	v2.comeBack()
	close(release)
	v2.await(t, "0", "1", "2")
	g.awaitEmpty(t)
	if got := v2.find("0"); len(got) != 1 || !addedTime.MatchString(got[0].body) {
		t.Errorf("v2 has taken %+v", got)
	}
	if got := v2.find(""); len(got) != 1 || got[0].body != objectOf(v2Cap) {
		t.Errorf("v2 has taken %d large records", len(got))
	}

	for n, status := range []string{"400", "403", "413"} {
		v2.goAway(answers(status, ""))
		isTaken(t, raw(t, g.addr, post(spoolTarget, asJSON, withID("refused"+status))))
		g.awaitState(t, func(s *spoolState) bool { return s.dead() == n+1 && s.records() == 0 })
	}
	if line := warningLine(g.text(), "a kept record became a dead letter"); !strings.Contains(line, `"reason":"refused"`) ||
		!strings.Contains(line, `"status":400`) || !strings.Contains(line, `"advice":"look at it with td-spool list --dead`) {
		t.Errorf("the dead letter is logged as %q", line)
	}
	v2.comeBack()
	isTaken(t, raw(t, g.addr, post(spoolTarget, asJSON, withID("after"))))
	v2.await(t, "after")
	var letters []struct {
		Status        int
		Reason, Path  string
		Account, Body string
	}
	if status := askAdmin(t, http.MethodGet, g.admin, "spool/records?dead=true", &letters); status != 200 || len(letters) != 3 {
		t.Fatalf("got %d %+v", status, letters)
	}
	for n, status := range []int{400, 403, 413} {
		if l := letters[n]; l.Status != status || l.Reason != "refused" || l.Path != event || l.Account != "1234/…" || l.Body != "" {
			t.Errorf("got %+v", l)
		}
	}
}

// TestSpoolAlwaysAsksFirst has mode always hear v2's verdict on a body that is not one
// JSON object, and keep it only without one.
func TestSpoolAlwaysAsksFirst(t *testing.T) {
	t.Parallel()
	v2 := startFickle(t)
	g := serveSpool(t, v2.url(), "", "mode always")
	noObjects := []string{`["id"]`, `{"id":"x"`, `id=1`, "\x00\x01"}
	v2.goAway(answers("400", "X-Own: 1\r\n"))
	for _, body := range noObjects {
		answer := raw(t, g.addr, post(spoolTarget, asJSON, body))
		if answer.StatusCode != 400 || answer.body != `{"error":"x"}` || answer.Header.Get("X-Own") != "1" {
			t.Errorf("%q: got %d %q, want v2's verdict", body, answer.StatusCode, answer.body)
		}
	}
	if s := g.state(t); s.records()+s.dead() != 0 {
		t.Errorf("kept: %+v", s)
	}

	// What cannot be judged is kept: a compressed body, a record from a query.
	for n, request := range []string{
		post(spoolTarget, asJSON+"Content-Encoding: gzip\r\n", compressed("[]")),
		get(spoolTarget+"&id=1", ""),
		post(spoolTarget, asJSON, withID("object")),
	} {
		isTaken(t, raw(t, g.addr, request))
		g.awaitState(t, func(s *spoolState) bool { return s.dead() == n+1 })
	}

	for _, status := range []string{"408", "429", "500", "503"} {
		v2.goAway(answers(status, ""))
		isTaken(t, raw(t, g.addr, post(spoolTarget, asJSON, `["`+status+`"]`)))
	}
	v2.goAway(closes)
	isTaken(t, raw(t, g.addr, post(spoolTarget, asJSON, `["closed"]`)))
	if s := g.state(t); s.records() != 5 {
		t.Errorf("%d records are kept, want 5 on which v2 has not said a word", s.records())
	}
	v2.comeBack()
	g.awaitEmpty(t)
}

// TestSpoolCircuit counts how often a v2 that is down is tried, and how long
// callers wait meanwhile.
func TestSpoolCircuit(t *testing.T) {
	t.Parallel()
	for name, away := range map[string]func(net.Conn) bool{"closes": closes, "hangs": hangs} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v2 := startFickle(t)
			v2.goAway(away)
			g := serveSpool(t, v2.url(), "response_timeout 500ms", "")
			ids, slow := make([]string, 200), 0
			for n := range ids {
				id := strconv.Itoa(n)
				from := time.Now()
				isTaken(t, raw(t, g.addr, post(spoolTarget, asJSON, withID(id))))
				if time.Since(from) > 100*time.Millisecond {
					slow++
				}
				ids[n] = id
			}
			tries := v2.conns.Load()
			t.Logf("%d tries and %d slow answers for 200 records", tries, slow)
			// Five failures are needed; a request and a delivery may be on their
			// way at the time, and there may be a probe.
			if tries > 15 {
				t.Errorf("v2 was tried %d times", tries)
			}
			if slow > 50 { // a few wait for v2's failures, and more for a busy machine
				t.Errorf("%d callers waited", slow)
			}
			if health, status := g.health(t); health != "degraded" || status != 200 || !g.state(t).Queues[0].Down {
				t.Errorf("health: %s %d, %+v", health, status, g.state(t))
			}
			v2.comeBack()
			v2.await(t, ids...)
			g.awaitEmpty(t)
			g.awaitHealth(t, "ok")
			if n := len(v2.all()); n != 200 {
				t.Errorf("v2 has taken %d records", n)
			}
		})
	}
}

// TestSpoolHonoursRetryAfter has v2 ask for a pause.
func TestSpoolHonoursRetryAfter(t *testing.T) {
	t.Parallel()
	v2 := startFickle(t)
	v2.goAway(answers("429", "Retry-After: 3\r\n"))
	g := serveSpool(t, v2.url(), "", "")
	from := time.Now()
	for n := range 20 {
		isTaken(t, raw(t, g.addr, post(spoolTarget, asJSON, withID(strconv.Itoa(n)))))
	}
	if tries := v2.conns.Load(); tries > 3 {
		t.Errorf("v2 was tried %d times", tries)
	}
	v2.comeBack()
	v2.await(t, "0", "19")
	if took := v2.all()[0].at.Sub(from); took < 3*time.Second {
		t.Errorf("v2 was tried again after %v", took)
	}
}

// TestSpoolFull sends until the spool is full, twice: then callers are told to
// come back, and none is told that its record is safe when it is not.
func TestSpoolFull(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"on_failure", "always"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			v2 := startFickle(t)
			g := serveSpool(t, v2.url(), "", "mode "+mode+"\n max_size 1MiB\n drain_rate 10000")
			pad := strings.Repeat("x", 10_000)
			var kept []string
			for round := range 2 {
				v2.goAway(closes)
				full := 0
				for n := 0; full < 5; n++ {
					if n > 200 {
						t.Fatal("it takes more than max_size")
					}
					id := strconv.Itoa(round) + "-" + strconv.Itoa(n)
					answer := raw(t, g.addr, post(spoolTarget, asJSON, `{"id":"`+id+`","pad":"`+pad+`"}`))
					if answer.StatusCode == 200 {
						isTaken(t, answer)
						kept = append(kept, id)
						continue
					}
					isUnkept(t, answer, "spool_full")
					full++
				}
				if s := g.state(t); s.Bytes > s.MaxBytes || s.MaxBytes != 1<<20 || s.records() < 10 {
					t.Errorf("full: %+v", s)
				}
				if health, status := g.health(t); health != "refusing" || status != 503 {
					t.Errorf("full, and health is %s %d", health, status)
				}
				v2.comeBack()
				v2.await(t, kept...)
				g.awaitEmpty(t)
				g.awaitHealth(t, "ok")
			}
			g.await(t, "the spool is nearly full", 2)
			for id, n := range v2.times {
				if n != 1 || !slices.Contains(kept, id) {
					t.Errorf("v2 has taken %s %d times", id, n)
				}
			}
			t.Logf("%d records kept", len(kept))
		})
	}
}

// TestSpoolUnavailable starts a gateway whose directory cannot be made. It
// forwards what v2 takes, says that it cannot keep the rest, and recovers.
func TestSpoolUnavailable(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"on_failure", "always"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			blocked := write(t, "blocked", "a file where a directory should be")
			v2 := startFickle(t)
			g := serveSpoolSite(t, blocked+"/spool", spoolBlock(v2.url(), blocked+"/spool", "", "mode "+mode))
			unavailable(t, g, v2, func() { _ = os.Remove(blocked) })
		})
	}
}

// unavailable runs a gateway whose spool's disk refuses records until mend is
// called.
func unavailable(t *testing.T, g *spooling, v2 *fickle, mend func()) {
	isTaken(t, raw(t, g.addr, post(spoolTarget, asJSON, withID("direct"))))
	v2.await(t, "direct")
	if got := v2.find("direct"); addedTime.MatchString(got[0].body) {
		t.Errorf("forwarded directly, v2 got %q", got[0].body)
	}
	v2.goAway(closes)
	for range 10 { // with the circuit open too
		isUnkept(t, raw(t, g.addr, post(spoolTarget, asJSON, withID("lost"))), "spool_unavailable")
	}
	if health, status := g.health(t); health != "refusing" || status != 503 {
		t.Errorf("health: %s %d", health, status)
	}
	mend()
	g.await(t, "the spool's disk takes records again", 1)
	isTaken(t, raw(t, g.addr, post(spoolTarget, asJSON, withID("kept"))))
	v2.comeBack()
	v2.await(t, "kept")
	g.awaitEmpty(t)
	if len(v2.find("lost")) > 0 {
		t.Error("v2 has taken a record whose caller was told 503")
	}
	g.awaitHealth(t, "ok")
}

// keptCase is a request that goes to the spool.
type keptCase struct {
	name, request string
	own           bool   // its body stays as it is
	was           string // the member whose place the time takes, if there was one
	answer        string
}

// The answers of keptCase that are not v2's usual one.
const (
	asPixel    = "pixel"
	asRedirect = "redirect"
)

// addedTime is what the gateway adds to a record without a time.
var addedTime = regexp.MustCompile(`,?"td_record_time":(\d+)}\s*$`)

// findTime finds addedTime near the end of a body, as FindStringSubmatchIndex.
func findTime(body string) []int {
	start := max(0, len(body)-100)
	at := addedTime.FindStringSubmatchIndex(body[start:])
	for n := range at {
		at[n] += start
	}
	return at
}

// compressed is a body in gzip.
func compressed(body string) string {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, _ = io.WriteString(w, body)
	_ = w.Close()
	return b.String()
}

// minuteAgo is a time that v2 can use.
var minuteAgo = strconv.FormatInt(time.Now().Unix()-60, 10)

var keptCases = []keptCase{
	{name: "key in the URL", request: post(spoolTarget, asJSON, object)},
	{name: "encoded slash, odd query", request: post(event+"?z=%7e&td_write_key=1234%2F"+spoolSecret+"&a=b+c;d&%zz", asJSON, object)},
	{name: "key in a header", request: post(event, asJSON+"X-TD-Write-Key: "+spoolKey+"\r\n", object)},
	{name: "TD1 alone", request: post(event, asJSON+"Authorization: TD1 "+spoolKey+"\r\n", object)},
	{name: "TD1 and a header", request: post(event, asJSON+"X-TD-Write-Key: "+spoolKey+"\r\nAuthorization: TD1 5/e\r\n", object)},
	{name: "another Authorization, a cookie", request: post(spoolTarget, asJSON+"Authorization: Basic eDp5\r\nCookie: s=1\r\n", object)},
	{name: "headers of its own", request: post(spoolTarget, asJSON+"User-Agent: device/1\r\nX-Own: 1\r\nX-Own: 2\r\nX-Forwarded-For: 6.6.6.6\r\n", object)},
	{name: "curl -d", request: post(spoolTarget, "Content-Type: application/x-www-form-urlencoded\r\n", object)},
	{name: "sendBeacon", request: post(spoolTarget, "Content-Type: text/plain;charset=UTF-8\r\nOrigin: https://x.example\r\n", object)},
	{name: "trailing slash", request: post(event+"/?td_write_key="+spoolKey, asJSON, object)},
	{name: "chunked", request: "POST " + spoolTarget + " HTTP/1.1\r\nHost: x\r\n" + asJSON + "Transfer-Encoding: chunked\r\n\r\n7\r\n" + object + "\r\n0\r\n\r\n"},
	{name: "HTTP/1.0", request: strings.Replace(post(spoolTarget, asJSON, object), "HTTP/1.1", "HTTP/1.0", 1)},

	{name: "empty object", request: post(spoolTarget, asJSON, " {\n}\n")},
	{name: "white space", request: post(spoolTarget, asJSON, "\n{ \"a\" : 1 }\r\n")},
	{name: "a time inside", request: post(spoolTarget, asJSON, `{"a":{"time":1},"b":["time"]}`)},
	{name: "100 kB", request: post(spoolTarget, asJSON, objectOf(100_000))},
	{name: "as large as can be with a time", request: post(spoolTarget, asJSON, objectOf(v2Cap-38))},

	{name: "its own td_record_time", request: post(spoolTarget, asJSON, `{"td_record_time":`+minuteAgo+`,"a":1}`), own: true},
	{name: "its own time", request: post(spoolTarget, asJSON, `{"a":1,"t\u0069me":`+minuteAgo+`}`), own: true},
	{name: "a td_record_time that v2 cannot use", request: post(spoolTarget, asJSON, `{"td_record_time":null,"a":1}`), own: true},
	{name: "a time that v2 cannot use", request: post(spoolTarget, asJSON, `{"a":1,"time":"%%TIMESTAMP%%"}`), own: true},
	{name: "a byte-order mark", request: post(spoolTarget, "Content-MD5: x\r\n", "\ufeff"+object)},
	{name: "a coding that is none", request: post(spoolTarget, asJSON+"Content-Encoding: UTF-8\r\n", object)},
	{name: "too large for a time", request: post(spoolTarget, asJSON, objectOf(v2Cap-27)), own: true},
	{name: "the largest", request: post(spoolTarget, asJSON, objectOf(v2Cap)), own: true},
	{name: "compressed", request: post(spoolTarget, asJSON+"Content-Encoding: gzip\r\n", compressed(object)), own: true},
	{name: "with a digest", request: post(spoolTarget, asJSON+"Content-Digest: sha-256=:x:\r\n", object), own: true},
	{name: "an array", request: post(spoolTarget, asJSON, `[`+object+`]`), own: true},
	{name: "two objects", request: post(spoolTarget, asJSON, object+object), own: true},
	{name: "no JSON", request: post(spoolTarget, "Content-Type: application/msgpack\r\n", "\x81\xa1a\x01"), own: true},
	{name: "half an object", request: post(spoolTarget, asJSON, `{"a":`), own: true},

	{name: "GET", request: get(spoolTarget+"&b=2&a=%E6%97%A5", "User-Agent: device/1\r\n")},
	{name: "GET without columns", request: get(spoolTarget, "")},
	{name: "GET with its own time", request: get(spoolTarget+"&td_record_time="+minuteAgo, ""), own: true},
	{name: "GET with a placeholder for a time", request: get(spoolTarget+"&a=1&td_record_time=%25%25TIMESTAMP%25%25", ""), was: `,"td_record_time":"%%TIMESTAMP%%"`},
	{name: "GET with milliseconds for a time", request: get(spoolTarget+"&td_record_time="+minuteAgo+"000", ""), was: `"td_record_time":` + minuteAgo + `000`},
	{name: "GET with a time of last year", request: get(spoolTarget+"&td_record_time=1700000000", ""), was: `"td_record_time":1700000000`},
	{name: "pixel beside an object", request: post(spoolTarget+"&td_format=pixel&a=1", asJSON, object), answer: asPixel},
	{name: "pixel", request: get(spoolTarget+"&td_format=pixel&td_ip=td_ip&td_ua=td_ua", "User-Agent: device/1\r\n"), answer: asPixel},
	{name: "redirect", request: get(spoolTarget+"&a=1&td_redirect=https://shop.example/x", ""), answer: asRedirect},
	{name: "ping", request: post(spoolTarget+"&a=1", "Content-Type: text/ping\r\nPing-From: https://x.example/\r\n", "PING")},
	{name: "empty beacon", request: post(spoolTarget+"&a=1", "", "")},
}

// check checks what the caller got.
func (tc *keptCase) check(t *testing.T, answer reply) {
	t.Helper()
	switch tc.answer {
	case asPixel:
		if answer.StatusCode != 200 || answer.Header.Get("Content-Type") != "image/gif" ||
			!strings.HasPrefix(answer.body, "GIF89a") || len(answer.body) != 43 {
			t.Errorf("got %d %q", answer.StatusCode, answer.body)
		}
	case asRedirect:
		if answer.StatusCode != 302 || answer.Header.Get("Location") != "https://shop.example/x" {
			t.Errorf("got %d %q", answer.StatusCode, answer.Header)
		}
	default:
		isTaken(t, answer)
	}
	want := ""
	if strings.Contains(tc.request, "Origin: ") {
		want = "https://x.example"
	}
	if got := answer.Header.Get("Access-Control-Allow-Origin"); got != want {
		t.Errorf("Access-Control-Allow-Origin: %q", got)
	}
}

// checkLate compares what v2 got later with what it had got at first.
func (tc *keptCase) checkLate(t *testing.T, first, late seen, from, to time.Time) {
	t.Helper()
	withoutLength := func(s seen) []string {
		return slices.DeleteFunc(slices.Clone(s.fields), func(f string) bool { return strings.HasPrefix(f, "Content-Length: ") })
	}
	if late.line != first.line || !slices.Equal(withoutLength(late), withoutLength(first)) {
		t.Errorf("v2 got\n%q %q, at first\n%q %q", late.line, late.fields, first.line, first.fields)
	}
	if tc.own {
		if late.body != first.body {
			t.Errorf("v2 got %.100q, at first %.100q", late.body, first.body)
		}
		return
	}
	at := findTime(late.body)
	if at == nil {
		t.Fatalf("no time: %.100q", late.body)
	}
	if added := late.body[:at[0]] + tc.was + late.body[at[3]:]; added != first.body {
		t.Errorf("beside the time, v2 got %.100q, at first %.100q", added, first.body)
	}
	if second, _ := strconv.ParseInt(late.body[at[2]:at[3]], 10, 64); second < from.Unix() || second > to.Unix() {
		t.Errorf("the time is %d, the record came between %d and %d", second, from.Unix(), to.Unix())
	}
}
