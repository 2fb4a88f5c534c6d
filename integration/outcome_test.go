package integration

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// TestMetrics counts every kind of request, through reloads and reloads that
// fail.
func TestMetrics(t *testing.T) {
	t.Parallel()
	addr, admin := freeAddr(t), freeAddr(t)
	_, port, _ := net.SplitHostPort(addr)
	config := outcomeConfig(t, admin, port, "")
	serveCaddyfile(t, addr, config)
	load := func(config string, want int) {
		t.Helper()
		if status, problem := reload(t, admin, config); status != want {
			t.Fatalf("reload: %d %s", status, problem)
		}
	}

	// Before the first request.
	resp, err := http.Get("http://" + admin + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	text, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	for _, result := range []string{"forwarded", "upstream_4xx", "upstream_5xx", "upstream_unreachable", "overloaded", "spool_full", "missing_write_key", "answer_cut"} {
		if line := "caddy_td_postback_" + resultsTotal(result) + " 0\n"; !strings.Contains(string(text), line) {
			t.Errorf("not there from the start: %s", line)
		}
	}

	want := map[string]float64{}
	round := func() {
		t.Helper()
		for _, tc := range outcomes {
			raw(t, addr, tc.request)
			want[requestsTotal(tc.surface, tc.key, tc.result)]++
			want[resultsTotal(tc.result)]++
			if toV2[tc.result] {
				want[keySignals("cut")]++ // the key of all of them
			}
			if book, ok := resultBooks[tc.result]; ok {
				surface := tc.surface
				if tc.name == "empty beacon" { // its head says POST
					surface = "post"
				}
				want[booksTotal(surface, "received")]++
				want[booksTotal(surface, book)]++
			}
		}
		conn := dial(t, addr) // raw would complain of an answer that is cut
		_, _ = io.WriteString(conn, post(strings.Replace(target, "tbl", "cut", 1), asJSON, object))
		_, _ = io.Copy(io.Discard, conn)
		want[requestsTotal("post", "param", "answer_cut")]++
		want[resultsTotal("answer_cut")]++
		want[keySignals("cut")]++
		want[booksTotal("post", "received")]++
		want[booksTotal("post", "forwarded")]++
		want["body_bytes_count"] += 18 // not what is refused, answered here or handed off
		want["body_bytes_sum"] += 12*float64(len(object)) + 3*float64(len(`{"a":"1"}`)) + 3*float64(len(`{}`))
		want["upstream_duration_seconds_count"] += 16 // two have no answer
		want["retries_total"]++

		got := awaitIdle(t, admin)
		checkBooks(t, got)
		if got["upstream_connections_total"] < 1 || got["upstream_duration_seconds_sum"] <= 0 {
			t.Errorf("got %v", got)
		}
		maps.DeleteFunc(got, func(name string, value float64) bool { return strings.HasPrefix(name, "build_info{") && value == 1 })
		delete(got, "upstream_connections_total")
		delete(got, "upstream_duration_seconds_sum")
		for name := range maps.Keys(want) {
			if got[name] != want[name] {
				t.Errorf("%s is %v, want %v", name, got[name], want[name])
			}
			delete(got, name)
		}
		if len(got) > 0 {
			t.Errorf("beside what was sent: %v", got)
		}
	}
	round()
	load(strings.Replace(config, "retries 1", "retries 1\nmax_conns 7", 1), http.StatusOK)
	round()
	load(strings.Replace(config, "retries 1", "retries 11", 1), http.StatusBadRequest)
	round()
	// This one fails before any handler is set up.
	load(config+"https://localhost:1 {\n tls /nonexistent /nonexistent\n}\n", http.StatusBadRequest)
	round()
}

// TestOutcomeInAccessLog reads the line of every kind of request in the access
// log.
func TestOutcomeInAccessLog(t *testing.T) {
	t.Parallel()
	addr := freeAddr(t)
	_, port, _ := net.SplitHostPort(addr)
	g := serveCaddyfile(t, addr, outcomeConfig(t, "off", port, ""))
	for n, tc := range outcomes {
		raw(t, addr, tc.request)
		g.await(t, `"msg":"handled request"`, n+1)
	}
	var lines []map[string]any
	for line := range strings.SplitSeq(g.text(), "\n") {
		var entry struct {
			Msg     string
			Outcome map[string]any `json:"td_postback"`
		}
		if json.Unmarshal([]byte(line), &entry) == nil && entry.Msg == "handled request" {
			lines = append(lines, entry.Outcome)
		}
	}
	for n, tc := range outcomes {
		t.Run(tc.name, func(t *testing.T) {
			got := lines[n]
			if duration, ok := got["upstream_duration"].(float64); ok != (got["upstream_status"] != nil) || ok && duration <= 0 {
				t.Errorf("got %v", got)
			}
			want := map[string]any{"surface": tc.surface, "key": tc.key, "result": tc.result}
			if tc.result != "not_found" {
				want["database"] = "db"
			}
			if tc.result != "invalid_path" && tc.result != "not_found" {
				want["table"] = "tbl"
				if _, table, ok := strings.Cut(tc.request, "/db/s"); ok { // those for which v2 behaves otherwise
					want["table"] = "s" + table[:3]
				}
			}
			if tc.key != "none" && tc.result != "invalid_write_key" {
				want["account"] = "1234/…"
			}
			switch tc.result {
			case "forwarded", "redirect_not_allowed":
				want["upstream_status"], want["retried"] = 200.0, 0.0
			case "upstream_3xx", "upstream_4xx", "upstream_5xx":
				status, _ := strconv.ParseFloat(want["table"].(string)[1:], 64)
				want["upstream_status"], want["retried"] = status, 0.0
			case "upstream_unreachable":
				want["retried"] = 1.0
			case "upstream_timeout":
				want["retried"] = 0.0
			}
			delete(got, "upstream_duration")
			if !maps.Equal(got, want) {
				t.Errorf("got %v\nwant %v", got, want)
			}
		})
	}
}

// TestWarnings sends what the operator should know of, several times: each kind
// is written once, with advice.
func TestWarnings(t *testing.T) {
	t.Parallel()
	addr := freeAddr(t)
	_, port, _ := net.SplitHostPort(addr)
	g := serveCaddyfile(t, addr, outcomeConfig(t, "off", port, ""))
	const secret = "0123456789abcdeg"
	for range 3 {
		for _, request := range []string{
			post(event+"?td_write_key=1234/"+secret, asJSON, object),
			post(event+"?td_write_key={{"+secret+"}}", asJSON, object),
			post(target, asJSON+"Authorization: Basic "+secret+"\r\n", object),
			get(target+"&td_redirect=http://evil.example/"+secret, ""),
			post(strings.Replace(target, "tbl", "s503", 1), asJSON, object),
			post(strings.Replace(target, "tbl", "s429", 1), asJSON, object),
			post(strings.Replace(target, "tbl", "s403", 1), asJSON, object),
			post(strings.Replace(target, "tbl", "s400", 1), asJSON, object),
			post(target, asJSON, object),
			post(event, asJSON+"Authorization: TD1 1234/abcd\r\n", object),
		} {
			raw(t, addr, request)
		}
	}
	for range 3 {
		raw(t, addr, post("/down"+target, asJSON, object))
	}
	g.stop()

	got := map[string]int{}
	for line := range strings.SplitSeq(g.text(), "\n") {
		var entry struct{ Level, Logger, Msg, Advice string }
		if json.Unmarshal([]byte(line), &entry) != nil || entry.Logger != "http.handlers.td_postback" {
			continue
		}
		if strings.Contains(line, secret) {
			t.Errorf("a secret is in %s", line)
		}
		if entry.Level != "warn" || entry.Advice == "" {
			t.Errorf("no warning with advice: %s", line)
		}
		if names := strings.Contains(line, `"fingerprint":"1234/#`) || strings.Contains(line, `"fingerprint":"#`); !names && (entry.Msg == "write key of unusual form" || strings.Contains(line, `"status":403`)) {
			t.Errorf("no key is named: %s", line)
		}
		got[entry.Msg]++
	}
	want := map[string]int{
		"write key of unusual form":                 3, // cut, a template's, and another
		"Authorization dropped beside a legacy key": 1,
		"redirect refused":                          1,
		"Postback v2 did not take a record":         2, // for 503, and for 429 of one account
		"Postback v2 refused a record":              2, // for 403 and for 400
		"record not delivered":                      1,
	}
	if !maps.Equal(got, want) {
		t.Errorf("got %v\nwant %v", got, want)
	}
}

// TestWordsOfV2 has v2 say why it does not take a record, and quote the key. The
// operator reads it in the access log, in a warning, and at the dead letter.
func TestWordsOfV2(t *testing.T) {
	t.Parallel()
	v2 := startFickle(t)
	dir := filepath.Join(t.TempDir(), "spool")
	g := serveSpoolSite(t, dir, "log {\n format filter {\n request>uri td_key\n}\n}\n"+spoolBlock(v2.url(), dir, "", ""))
	says := func(status string) {
		body := fmt.Sprintf(`{"error":"no %s for %s and %s"}`, status, spoolKey, strings.Replace(spoolKey, "/", "%2F", 1))
		v2.goAway(func(conn net.Conn) bool {
			return send(conn, true, fmt.Sprintf("HTTP/1.1 %s X\r\nContent-Length: %d\r\n\r\n%s", status, len(body), body))
		})
	}
	account, _, _ := strings.Cut(spoolKey, "/")
	words := func(status string) string {
		return fmt.Sprintf(`{"error":"no %s for %s/… and %s%%2F…"}`, status, account, account)
	}
	logged := func(message, field, status string) {
		t.Helper()
		g.await(t, `"msg":"`+message+`"`, 1)
		line := warningLine(g.text(), message)
		quoted, _ := json.Marshal(words(status))
		if !strings.Contains(line, `"`+field+`":`+string(quoted)) {
			t.Errorf("%s is not in %s", quoted, line)
		}
	}

	says("403")
	if got := raw(t, g.addr, post(spoolTarget, asJSON, object)); got.StatusCode != 403 || !strings.Contains(got.body, spoolKey) {
		t.Errorf("the caller got %d %q", got.StatusCode, got.body)
	}
	logged("handled request", "upstream_words", "403")
	logged("Postback v2 refused a record", "words", "403")
	if line := warningLine(g.text(), "Postback v2 refused a record"); !strings.Contains(line, `"account":"`+account+`/…","database":"`) ||
		!strings.Contains(line, `"advice":"compare the caller's key`) {
		t.Errorf("the warning is %s", line)
	}

	says("500")
	isTaken(t, raw(t, g.addr, post(spoolTarget, asJSON, object)))
	logged("record kept for later", "words", "500")
	if line := warningLine(g.text(), "record kept for later"); !strings.Contains(line, `"account":"`+account+`/…","database":"`) {
		t.Errorf("the warning is %s", line)
	}
	says("400")
	g.awaitState(t, func(s *spoolState) bool { return s.dead() == 1 })
	logged("a kept record became a dead letter", "words", "400")
	if line := warningLine(g.text(), "a kept record became a dead letter"); !strings.Contains(line, `"account":"`+account+`/…"`) {
		t.Errorf("the warning is %s", line)
	}
	var letters []struct{ Words string }
	if askAdmin(t, http.MethodGet, g.admin, "spool/records?dead=true", &letters); len(letters) != 1 || letters[0].Words != words("400") {
		t.Errorf("got %+v", letters)
	}
}

// outcomes are requests of every kind, and what becomes of each of them.
var outcomes = []struct {
	name, request        string
	surface, key, result string
}{
	{"key in the URL", post(target, asJSON, object), "post", "param", "forwarded"},
	{"key in a header", post(event, asJSON+"X-TD-Write-Key: 1234/abcd\r\n", object), "post", "header", "forwarded"},
	{"key in both", post(target, asJSON+"X-TD-Write-Key: 1234/abcd\r\n", object), "post", "header", "forwarded"},
	{"key in Authorization", post(event, asJSON+"Authorization: TD1 1234/abcd\r\n", object), "post", "td1", "forwarded"},
	{"GET", get(target+"&a=1", ""), "get", "param", "forwarded"},
	{"pixel", get(target+"&td_format=pixel", ""), "pixel", "param", "forwarded"},
	{"ping", post(target+"&a=1", "Content-Type: text/ping\r\n", "PING"), "beacon", "param", "forwarded"},
	{"empty beacon", post(target+"&a=1", "", ""), "beacon", "param", "forwarded"},
	{"preflight", "OPTIONS " + event + " HTTP/1.1\r\nHost: x\r\n\r\n", "other", "none", "preflight"},

	{"no key", post(event, asJSON, object), "post", "none", "missing_write_key"},
	{"pixel without a key", get(event+"?td_format=pixel", ""), "pixel", "none", "missing_write_key"},
	{"bad key", post(event+"?td_write_key=%zz", asJSON, object), "post", "param", "invalid_write_key"},
	{"bad path", post("/postback/v3/event/db", asJSON, object), "post", "none", "invalid_path"},
	{"bad table, with a key", post("/postback/v3/event/db/my-table?td_write_key=1234/abcd", asJSON, object), "post", "param", "invalid_path"},
	{"bad table, with a key in Authorization", post("/postback/v3/event/db/my-table", asJSON+"Authorization: TD1 1234/abcd\r\n", object), "post", "td1", "invalid_path"},
	{"elsewhere", get("/elsewhere", ""), "get", "none", "not_found"},
	{"elsewhere, with a key", get("/elsewhere?td_write_key=1234/abcd", ""), "get", "param", "not_found"},
	{"PUT", "PUT " + target + " HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", "other", "param", "method_not_allowed"},
	{"too large", "POST " + target + " HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 1048065\r\n\r\n", "post", "param", "payload_too_large"},
	{"redirect to a stranger", get(target+"&td_redirect=http://evil.example/", ""), "get", "param", "redirect_not_allowed"},

	{"v2 answers 304", post(strings.Replace(target, "tbl", "s304", 1), asJSON, object), "post", "param", "upstream_3xx"},
	{"v2 answers 400", post(strings.Replace(target, "tbl", "s400", 1), asJSON, object), "post", "param", "upstream_4xx"},
	{"v2 answers 429", post(strings.Replace(target, "tbl", "s429", 1), asJSON, object), "post", "param", "upstream_4xx"},
	{"v2 answers 500", post(strings.Replace(target, "tbl", "s500", 1), asJSON, object), "post", "param", "upstream_5xx"},
	{"v2 answers 999", post(strings.Replace(target, "tbl", "s999", 1), asJSON, object), "post", "param", "upstream_5xx"},
	{"v2's pixel fails", get(strings.Replace(target, "tbl", "s500", 1)+"&td_format=pixel", ""), "pixel", "param", "upstream_5xx"},
	{"v2 cannot be reached", post("/down"+target, asJSON, object), "post", "param", "upstream_unreachable"},
	{"v2 is slow", post(strings.Replace(target, "tbl", "slow", 1), asJSON, object), "post", "param", "upstream_timeout"},
	{"handoff", post("/handoff"+target, asJSON, object), "post", "param", "handed_off"},
}

// resultBooks are the books of the results above. A preflight has none.
var resultBooks = map[string]string{
	"forwarded": "forwarded", "redirect_not_allowed": "forwarded", "handed_off": "forwarded",
	"missing_write_key": "refused", "invalid_write_key": "refused", "invalid_path": "refused", "not_found": "refused",
	"method_not_allowed": "refused", "payload_too_large": "refused", "upstream_3xx": "refused", "upstream_4xx": "refused",
	"upstream_5xx": "lost", "upstream_unreachable": "lost", "upstream_timeout": "lost",
}

// toV2 has the results above of calls whose key is good enough to go to v2.
var toV2 = map[string]bool{
	"forwarded": true, "redirect_not_allowed": true, "handed_off": true, "payload_too_large": true, "upstream_3xx": true,
	"upstream_4xx": true, "upstream_5xx": true, "upstream_unreachable": true, "upstream_timeout": true,
}

// outcomeConfig is a configuration for outcomes, of several handlers.
func outcomeConfig(t *testing.T, admin, port, logging string) string {
	u := startRecorder(t, func(conn net.Conn, _ int, s seen) bool {
		switch _, status, _ := strings.Cut(s.line, "/db/s"); {
		case strings.Contains(s.line, "/slow"):
			_, _ = conn.Read(make([]byte, 1)) // until the gateway gives up
			return false
		case strings.Contains(s.line, "/cut"):
			return send(conn, false, "HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"+strings.Repeat("x", 50_000))
		case status != "":
			return send(conn, true, "HTTP/1.1 "+status[:3]+" X\r\nContent-Length: 0\r\n\r\n")
		}
		return send(conn, true, answerOK)
	})
	return fmt.Sprintf(`{
	%s
	%s
}
http://:%s {
	log
	handle_path /down/* {
		td_postback {
			upstream http://%s
			retries 1
		}
	}
	handle_path /handoff/* {
		route {
			td_postback {
				upstream %s
				handoff
			}
			respond "{}"
		}
	}
	handle {
		td_postback {
			upstream %s
			redirect_hosts shop.example
			response_timeout 1s
		}
	}
}
`, withAdmin(admin), logging, port, freeAddr(t), u.url(), u.url())
}
