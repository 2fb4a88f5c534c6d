package integration

import (
	"fmt"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
)

// TestSpoolCommand is an operator who looks at the spool while v2 is down, and
// at the dead letters after.
func TestSpoolCommand(t *testing.T) {
	t.Parallel()
	v2 := startFickle(t)
	v2.goAway(answers("503", "Retry-After: 3600\r\n"))
	g := serveSpool(t, v2.url(), "", "")
	spoolPrints(t, g.admin, []string{"status"}, g.dir+": ok, ", "10 GiB")
	for n, request := range []string{
		post(event+"?a=b&td_write_key="+spoolKey, asJSON+"X-Own: 1\r\n", withID("0")),
		post(event, asJSON+"Authorization: TD1 "+spoolKey+"\r\nX-TD-Write-Key: "+spoolKey+"\r\n", withID("1")),
		post(event, asJSON+"Authorization: TD1 "+spoolKey+"\r\n", withID("2")),
		get(spoolTarget+"&id=3", ""),
	} {
		isTaken(t, raw(t, g.addr, request))
		if n := g.state(t).records() - n; n != 1 {
			t.Fatalf("%d more records", n)
		}
	}

	spoolPrints(t, g.admin, []string{"status"}, g.dir+": degraded, ", "QUEUE", "RECORDS", "OLDEST", v2.url(), "down")
	list := spoolPrints(t, g.admin, []string{"list"}, "ID", "ARRIVAL", "ACCOUNT", event, "1234/…")
	if strings.Count(list, event) != 4 || strings.Count(list, "1234/…") != 4 || strings.Contains(list, spoolText) {
		t.Errorf("listed: %s", list)
	}
	if list := spoolPrints(t, g.admin, []string{"list", "--dead"}); strings.Contains(list, event) {
		t.Errorf("dead: %s", list)
	}
	var kept []letter
	if status := askAdmin(t, http.MethodGet, g.admin, "spool/records", &kept); status != 200 || len(kept) != 4 {
		t.Fatalf("got %d %+v", status, kept)
	}
	rest := spoolPrints(t, g.admin, []string{"list", "--after", fmt.Sprint(kept[1].ID), "--limit", "1"}, fmt.Sprint(kept[2].ID))
	if strings.Count(rest, event) != 1 {
		t.Errorf("one behind the second: %s", rest)
	}
	for line := range strings.Lines(list) {
		if fields := strings.Fields(line); fields[0] != "ID" && !slices.Equal(fields[5:], []string{"-", "-"}) {
			t.Errorf("a waiting record has no status and no reason: %s", line)
		}
	}
	waiting := fmt.Sprint(kept[0].ID)
	spoolFails(t, g.admin, []string{"show", "--dead", waiting}, "id "+waiting+": it is no dead letter, but waits")
	spoolPrints(t, g.admin, []string{"drop", waiting}, "0 dead letters deleted", "what waits to be delivered cannot be dropped")
	spoolPrints(t, g.admin, []string{"replay", waiting}, "0 dead letters", "what waits is delivered anyway")
	shown := spoolPrints(t, g.admin, []string{"show", waiting},
		`"query": "a=b"`, `"X-Own"`, `\"id\":\"0\"`, spoolText, "td_record_time", `"account": "1234/…"`)
	if strings.Contains(shown, "Write-Key") {
		t.Errorf("shown: %s", shown)
	}
	for _, one := range kept {
		status := askAdmin(t, http.MethodGet, g.admin, "spool/record?id="+fmt.Sprint(one.ID), &one)
		if status != 200 || one.Account != "1234/…" || one.Body == "" {
			t.Errorf("got %d %+v", status, one)
		}
	}

	// Nobody waits for an hour: the gateway is started again. Now v2 refuses all.
	v2.goAway(answers("403", ""))
	g.stop()
	g = serveSpoolSite(t, g.dir, spoolBlock(v2.url(), g.dir, "", ""))
	g.awaitState(t, func(s *spoolState) bool { return s.dead() == 4 && s.records() == 0 })
	dead := spoolPrints(t, g.admin, []string{"list", "--dead"}, "403", "refused")
	if strings.Count(dead, "refused") != 4 {
		t.Errorf("dead: %s", dead)
	}
	var letters []letter
	if status := askAdmin(t, http.MethodGet, g.admin, "spool/records?dead=true", &letters); status != 200 || len(letters) != 4 {
		t.Fatalf("got %d %+v", status, letters)
	}
	byID := map[string]string{}
	for _, l := range letters {
		id := strconv.FormatUint(l.ID, 10)
		var whole letter
		status := askAdmin(t, http.MethodGet, g.admin, "spool/record?dead=true&id="+id, &whole)
		if status != 200 || whole.Status != 403 || whole.Reason != "refused" || whole.Died == nil {
			t.Errorf("got %d %+v", status, whole)
		}
		byID[idOf(whole.Body)] = id
	}
	spoolFails(t, g.admin, []string{"show", byID["1"]}, "id "+byID["1"]+": it is a dead letter: show it with --dead")
	spoolPrints(t, g.admin, []string{"show", "--dead", byID["1"]}, `"reason": "refused"`, `"status": 403`, `\"id\":\"1\"`)

	v2.comeBack()
	spoolPrints(t, g.admin, []string{"replay", byID["0"], byID["1"]}, "2 dead letters to be delivered again")
	v2.await(t, "0", "1")
	g.awaitState(t, func(s *spoolState) bool { return s.dead() == 2 && s.records() == 0 })
	if got := v2.find("1"); len(got) != 1 || len(got[0].field("Authorization")) != 1 || !addedTime.MatchString(got[0].body) {
		t.Errorf("v2 has taken %+v", got)
	}
	spoolPrints(t, g.admin, []string{"drop", byID["2"]}, "1 dead letter deleted")
	spoolPrints(t, g.admin, []string{"replay", byID["2"]}, "0 dead letters")
	spoolPrints(t, g.admin, []string{"replay", "--all"}, "1 dead letter to be delivered again")
	v2.await(t, "3")
	g.awaitState(t, func(s *spoolState) bool { return s.dead() == 0 && s.records() == 0 })
	if len(v2.find("2")) > 0 {
		t.Error("v2 has taken a record that was dropped")
	}

	spoolFails(t, g.admin, []string{"show", "17"}, `Error: id 17: there is no such record`)
	spoolFails(t, g.admin, []string{"show", "--dead", "17"}, `Error: id 17: there is no such dead letter`)
	spoolFails(t, g.admin, []string{"show", "x"}, `Error: id "x": must be a whole number`)
	if list := spoolPrints(t, g.admin, []string{"list", "--after", "18446744073709551615"}); strings.Contains(list, event) {
		t.Errorf("behind the last ID that there can be: %s", list)
	}
	spoolFails(t, g.admin, []string{"show"}, "give one ID")
	for _, change := range []string{"replay", "drop"} {
		spoolFails(t, g.admin, []string{change}, "give one or more IDs", "--all")
		spoolFails(t, g.admin, []string{change, "--all", "1"}, "give one or more IDs", "--all")
	}
	for word, meant := range map[string]string{"stauts": "status", "dorp": "drop", "lst": "list", "elsewhere": "must be one of drop, list"} {
		spoolFails(t, g.admin, []string{word}, `"`+word+`"`, meant)
	}
	spoolFails(t, g.admin, []string{"list", "--spool", "other"}, `spool "other"`)
	spoolFails(t, freeAddr(t), []string{"status"}, "--address", "no gateway answers there", "connection refused")
	spoolFails(t, "http://"+g.admin+"/x", []string{"status"}, "--address", "no gateway answers there")
	spoolFails(t, g.addr, []string{"status"}, g.addr+" is no gateway's admin endpoint")
	for path, method := range map[string]string{
		"spool/replay?all=true": http.MethodGet, "spool/drop?all=true": http.MethodGet,
		"spool": http.MethodPost, "health": http.MethodPost,
	} {
		if status := askAdmin(t, method, g.admin, path, nil); status != http.StatusMethodNotAllowed {
			t.Errorf("%s %s: got %d", method, path, status)
		}
	}
}

// TestSpoolShow shows records whose body is no text, and whose head has keys
// where the gateway does not look for them. The body can be sent by other means.
func TestSpoolShow(t *testing.T) {
	t.Parallel()
	v2 := startFickle(t)
	v2.goAway(answers("503", "Retry-After: 3600\r\n"))
	g := serveSpool(t, v2.url(), "", "")
	bodies := []string{"[\"<&>\u2028é\"]\n", "\x1f\x8b\x00\xff\r\n"}
	for _, body := range bodies {
		isTaken(t, raw(t, g.addr, post(event+"?a=b;td_write_key="+spoolKey+"&amp;td_write_key="+spoolKey,
			"X-TD-Write-Key: "+spoolKey+"\r\nTd-Write-Key: "+spoolKey+"\r\nX-Forwarded-Authorization: TD1 "+spoolKey+
				"\r\nReferer: http://x.example/#"+spoolKey+"\r\n", body)))
	}
	var kept []letter
	if status := askAdmin(t, http.MethodGet, g.admin, "spool/records", &kept); status != 200 || len(kept) != len(bodies) {
		t.Fatalf("got %d %+v", status, kept)
	}
	for n, body := range bodies {
		id := strconv.FormatUint(kept[n].ID, 10)
		if got := spoolPrints(t, g.admin, []string{"show", "--raw", id}); got != body {
			t.Errorf("got %q, want %q", got, body)
		}
		shown := spoolPrints(t, g.admin, []string{"show", id}, `"query": "a=b;td_write_key=…&amp;td_write_key=…"`, `"body`)
		if base64 := strings.Contains(shown, `"body_base64": "H4sA/w0K"`); base64 != (n == 1) {
			t.Errorf("shown: %s", shown)
		}
	}
	spoolFails(t, g.admin, []string{"show", "--raw", "17"}, "id 17")
}

// TestSpoolCommandWithoutSpool asks a gateway that has none.
func TestSpoolCommandWithoutSpool(t *testing.T) {
	t.Parallel()
	admin := freeAddr(t)
	_, port, _ := net.SplitHostPort(freeAddr(t))
	serveCaddyfile(t, "", spoolCaddyfile(admin, port, "td_postback us01"))
	spoolPrints(t, admin, []string{"status"}, "The gateway has no spool.")
	spoolFails(t, admin, []string{"list"}, "spool")
	if status := askAdmin(t, http.MethodGet, admin, "health", nil); status != 200 {
		t.Errorf("health: got %d", status)
	}
}

// TestSpoolQueues asks a gateway that keeps records for two hosts of v2.
func TestSpoolQueues(t *testing.T) {
	t.Parallel()
	one, two := startFickle(t), startFickle(t)
	one.goAway(answers("503", "Retry-After: 3600\r\n"))
	two.goAway(answers("400", ""))
	dir := t.TempDir() + "/spool"
	g := serveSpoolSite(t, dir, "handle_path /one/* {\n"+spoolBlock(one.url(), dir, "", "")+
		"\n}\nhandle {\n"+spoolBlock(two.url(), dir, "", "mode always")+"\n}")
	isTaken(t, raw(t, g.addr, post("/one"+spoolTarget, asJSON, withID("1"))))
	isTaken(t, raw(t, g.addr, post(spoolTarget, asJSON, withID("2"))))
	g.awaitState(t, func(s *spoolState) bool { return s.dead() == 1 && s.records() == 1 })
	spoolPrints(t, g.admin, []string{"status"}, one.url(), two.url())
	spoolFails(t, g.admin, []string{"list"}, "queue: is not set", one.url(), two.url())
	spoolPrints(t, g.admin, []string{"list", "--queue", one.url()}, event)
	spoolPrints(t, g.admin, []string{"list", "--dead", "--queue", two.url()}, event, "refused")
	spoolPrints(t, g.admin, []string{"drop", "--all", "--queue", two.url()}, "1 dead letter deleted")
	if s := g.state(t); s.dead() != 0 || s.records() != 1 {
		t.Errorf("got %+v", s)
	}
}

// TestSpoolMetrics reads the metrics after a sequence that leaves nothing to
// chance.
func TestSpoolMetrics(t *testing.T) {
	t.Parallel()
	v2 := startFickle(t)
	v2.goAway(answers("503", "Retry-After: 3\r\n"))
	g := serveSpool(t, v2.url(), "", "max_size 100MiB")
	for _, request := range []string{
		post(spoolTarget, asJSON, withID("0")),
		post(spoolTarget, asJSON, withID("1")),
		post(spoolTarget, asJSON, `{"id":"2","time":`+minuteAgo+`}`),
		post(spoolTarget, asJSON, `{"id":"5","time":1}`),
		post(spoolTarget, asJSON, `["id"]`),
		get(spoolTarget+"&id=3", ""),
	} {
		isTaken(t, raw(t, g.addr, request))
	}
	want := map[string]float64{
		`records_total{time="added"}`: 3, `records_total{time="own"}`: 1, `records_total{time="no_object"}`: 1, `records_total{time="unusable"}`: 1,
		"records{}": 6, "upstream_down{}": 1, "available{}": 1,
	}
	g.awaitMetrics(t, want)
	_, sizes := g.spoolMetrics(t)
	if sizes["limit_bytes{}"] != 100<<20 || sizes["bytes{}"] <= 0 || sizes["bytes{}"] > 10<<20 || sizes["oldest_age_seconds{}"] <= 0 ||
		sizes["commit_seconds_count"] < 1 || sizes["commit_seconds_count"] > 6 || sizes["commit_seconds_sum"] <= 0 {
		t.Errorf("got %v", sizes)
	}
	all := awaitIdle(t, g.admin)
	if n := all[requestsTotal("post", "param", "spooled")] + all[requestsTotal("get", "param", "spooled")]; n != 6 {
		t.Errorf("%v requests were spooled: %v", n, all)
	}

	v2.comeBack()
	v2.await(t, "0", "1", "2", "3", "5")
	delete(want, "records{}")
	delete(want, "upstream_down{}")
	want[`deliveries_total{fate="delivered"}`] = 6
	g.awaitMetrics(t, want)
	if _, sizes := g.spoolMetrics(t); sizes["oldest_age_seconds{}"] != 0 {
		t.Errorf("got %v", sizes)
	}

	// One that fails twice, and may be there already: once with the caller, and
	// once from the spool. Then it is refused.
	var tries atomic.Int32
	v2.goAway(func(conn net.Conn) bool {
		if tries.Add(1) <= 2 {
			return answers("500", "")(conn)
		}
		return answers("400", "")(conn)
	})
	isTaken(t, raw(t, g.addr, post(spoolTarget, asJSON, withID("4"))))
	want[`records_total{time="added"}`]++
	want[`deliveries_total{fate="retried"}`] = 1
	want["duplicates_possible_total"] = 2
	want[`deliveries_total{fate="refused"}`] = 1
	want["dead_letters{}"] = 1
	g.awaitMetrics(t, want)
	if tries.Load() != 3 {
		t.Errorf("v2 was tried %d times", tries.Load())
	}

	// Counters go on through a reload, and gauges stay.
	if status, problem := reload(t, g.admin, strings.Replace(g.caddyfile, "max_size", "drain_rate 7\n max_size", 1)); status != 200 {
		t.Fatal(status, problem)
	}
	g.awaitMetrics(t, want)
	spoolPrints(t, g.admin, []string{"drop", "--all"}, "1 dead letter deleted")
	delete(want, "dead_letters{}")
	g.awaitMetrics(t, want)

	// A gateway that gives records up at once.
	v2.goAway(answers("503", "Retry-After: 3600\r\n"))
	for n := range 3 {
		isTaken(t, raw(t, g.addr, post(spoolTarget, asJSON, withID("old"+strconv.Itoa(n)))))
	}
	g.stop()
	v2.comeBack()
	g = serveSpoolSite(t, g.dir, spoolBlock(v2.url(), g.dir, "", "max_age 1ms"))
	g.awaitMetrics(t, map[string]float64{`deliveries_total{fate="too_old"}`: 3, "dead_letters{}": 3, "available{}": 1})
	if dead := spoolPrints(t, g.admin, []string{"list", "--dead"}); strings.Count(dead, "too_old") != 3 {
		t.Errorf("dead: %s", dead)
	}
	if len(v2.find("old0")) > 0 {
		t.Error("v2 has got a record that is too old")
	}
}

// TestSpoolInLogs looks at what an operator reads of a record that is kept.
func TestSpoolInLogs(t *testing.T) {
	t.Parallel()
	v2 := startFickle(t)
	v2.goAway(answers("502", ""))
	dir := t.TempDir() + "/spool"
	g := serveSpoolSite(t, dir, "log {\n format filter {\n request>uri td_key\n }\n}\n"+spoolBlock(v2.url(), dir, "", ""))
	isTaken(t, raw(t, g.addr, post(spoolTarget, asJSON, withID("a"))))
	g.await(t, `"msg":"handled request"`, 1)
	g.await(t, `"surface":"post","key":"param","account":"1234/…","result":"spooled","upstream_status":502`, 1)
	g.await(t, `"msg":"record kept for later"`, 1)
	g.await(t, `"advice"`, 1)
	v2.comeBack()
	v2.await(t, "a")
	g.awaitEmpty(t)
}
