package integration

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/td-postback/gateway/migration"
	"github.com/td-postback/gateway/sandbox"
)

// This file compares what the audit says of calls that go to the legacy host with what
// becomes of the same calls by the lane of v2.

// auditedV2 is the strict sandbox, and what it saw since the last look.
type auditedV2 struct {
	*httptest.Server
	mu   sync.Mutex
	seen []testimony
}

func startAuditedV2(t *testing.T) *auditedV2 {
	v2, strict := new(auditedV2), new(sandbox.Sandbox)
	v2.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		v2.mu.Lock()
		v2.seen = append(v2.seen, testimony{line: r.Method + " " + r.RequestURI, header: r.Header.Clone(), body: body})
		v2.mu.Unlock()
		r.Body = io.NopCloser(bytes.NewReader(body))
		strict.ServeHTTP(w, r)
	}))
	t.Cleanup(v2.Close)
	return v2
}

func (v2 *auditedV2) take() []testimony {
	v2.mu.Lock()
	defer v2.mu.Unlock()
	seen := v2.seen
	v2.seen = nil
	return seen
}

// lanedGateway is a gateway that starts with one lane for all.
func lanedGateway(t *testing.T, v2, legacy, lane, more string) (g *gateway, admin string) {
	t.Helper()
	addr, admin := freeAddr(t), freeAddr(t)
	_, port, _ := net.SplitHostPort(addr)
	dir := t.TempDir()
	return serveCaddyfile(t, addr, fmt.Sprintf("{\n%s\n storage file_system %s/storage\n servers {\n trusted_proxies static 127.0.0.1/32\n}\n}\nhttp://:%s {\n td_postback us01 {\n upstream %s\n redirect_hosts shop.example\n %s\n"+
		" report {\n dir %s/report\n}\n migrate {\n legacy %s\n start %s\n dir %s/plan\n}\n}\n}\n", withAdmin(admin), dir, port, v2, more, dir, legacy, lane, dir)), admin
}

// auditCorpus has requests of all surfaces and forms, good and bad.
func auditCorpus() (corpus []legacyCase) {
	add := func(name, request string) { corpus = append(corpus, legacyCase{name: name, request: request}) }
	for part, cases := range map[string][]odd{"path": oddPaths, "query": oddQueries, "header": oddHeaders, "body": oddBodies, "framing": oddFraming, "record": oddRecords} {
		for _, tc := range cases {
			if !strings.HasPrefix(tc.name, "compressed") && tc.name != "gzip" { // the sandbox refuses these, and v2 may not
				add(part+"/"+tc.name, tc.legacy)
			}
		}
	}
	for _, call := range calledAs {
		add("caller/"+call.table, call.request)
	}
	for _, tc := range legacyLines() {
		add(tc.name, tc.request)
	}
	const key = "X-TD-Write-Key: " + callersKey + "\r\n"
	js := "/js/v3/event/db/tbl?api_key=" + callersKey
	for name, request := range map[string]string{
		"above the cap":               post(target, asJSON, objectOf(v2Cap+1)),
		"above the cap in chunks":     "POST " + target + " HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + chunksOf(objectOf(v2Cap+1), 100_000) + "0\r\n\r\n",
		"nearly the cap":              post(target, asJSON, objectOf(v2Cap)),
		"an array":                    post(target, asJSON, "[{}]"),
		"a cut object":                post(target, asJSON, `{"a":`),
		"no key":                      post(event, asJSON, object),
		"a bad key":                   post(event+"?td_write_key=a,b", asJSON, object),
		"a database that is not ours": post("/postback/v3/event/theirs/tbl?td_write_key="+callersKey, asJSON, object),
		"an account that is not ours": post(event, asJSON+"X-TD-Write-Key: 99/abcd\r\n", object),
		"a pixel of such an account":  get(event+"?td_write_key=99/abcd&a=1&td_format=pixel", ""),
		"large headers":               get(target+"&a=1", "X-Large: "+strings.Repeat("x", 70_000)+"\r\n"),
		"jsonp":                       get(js+"&data="+url.QueryEscape(jsData(object))+"&callback=cb", ""),
		"jsonp that is none":          get(js+"&data=%21&callback=cb", ""),
		"a bad callback":              get(js+"&data="+url.QueryEscape(jsData(object))+"&callback=1", ""),
		"js in the query":             post(js+"&data="+url.QueryEscape(jsData(object)), "", ""),
		"js in the body":              post(js, "Content-Type: text/plain\r\n", object),
		"js to be filled":             post(js, asJSON, `{"td_ip":"td_ip"}`),
		"js without a record":         post(js, asJSON, ""),
		"js, an array":                post(js, asJSON, "[]"),
		"k":                           post("/js/v3/event", key+"X-TD-Data-Type: k\r\n", keenBody("db.tbl", "1", "2")),
		"k without a key":             post("/js/v3/event", "X-TD-Data-Type: k\r\n", keenBody("db.tbl", "1", "2")),
		"k for no table":              post("/js/v3/event", key+"X-TD-Data-Type: k\r\n", keenBody("db", "1")),
		"k for theirs":                post("/js/v3/event", key+"X-TD-Data-Type: k\r\n", keenBody("theirs.tbl", "1")),
		"k that is none":              post("/js/v3/event", key, object),
		"mobile":                      post("/ios/v3/event", key+"Content-Encoding: gzip\r\n", gzippedText(keenBody("db.tbl", "1"))),
		"mobile, cut":                 post("/ios/v3/event", key+"Content-Encoding: gzip\r\n", gzippedText(keenBody("db.tbl", "1"))[:30]),
		"mobile, below its path":      post("/ios/v3/event/x", key, keenBody("db.tbl", "1")),
		"mobile, by GET":              get("/ios/v3/event", key),
	} {
		add(name, request)
	}
	return corpus
}

// agentOf names a call in its User-Agent, and so in the report.
func agentOf(n int) string {
	name := "case-"
	for ; n > 0; n /= 26 {
		name += string(rune('a' + n%26))
	}
	return name + "-end"
}

// auditRows are the rows of a report by their agents.
func auditRows(t *testing.T, admin string) map[string]migration.Row {
	t.Helper()
	awaitIdle(t, admin)
	l, _ := callersOf(t, admin)
	rows := map[string]migration.Row{}
	for _, row := range l.Rows {
		if other, twice := rows[row.Agent]; twice {
			t.Errorf("%s has two rows: %+v and %+v", row.Agent, row, other)
		}
		rows[row.Agent] = row
	}
	return rows
}

// TestAuditEqualsTruth sends a corpus twice: to a gateway whose calls go to the legacy
// host, and to one whose calls go to v2. What the first one's audit says of a call is what
// the second one does with it, and what v2 then sees of it.
func TestAuditEqualsTruth(t *testing.T) {
	v2, u := startAuditedV2(t), startLegacy(t, nil)
	const more = "keys {\n accounts 1234 5678 1 2 7 77\n databases db* a* shop* t* x* test*\n}"
	audited, admin := lanedGateway(t, v2.URL, u.url(), "legacy", more)
	moved, movedAdmin := lanedGateway(t, v2.URL, u.url(), "v2", more)
	corpus := auditCorpus()
	answers, saw := make([]reply, len(corpus)), make([][]testimony, len(corpus))
	came := make([]*passed, len(corpus))
	for i := range corpus {
		request := strings.Replace(corpus[i].request, " HTTP/1.1\r\n", " HTTP/1.1\r\nUser-Agent: "+agentOf(i+1)+"/1.0\r\n", 1)
		raw(t, audited.addr, request)
		if seen := v2.take(); len(seen) > 0 {
			t.Errorf("%s: the audit has sent %+v", corpus[i].name, seen)
		}
		answers[i] = raw(t, moved.addr, request)
		saw[i] = v2.take()
	}
	rows, movedRows := auditRows(t, admin), auditRows(t, movedAdmin)
	for len(u.requests) > 0 {
		p := u.next(t)
		for i := range corpus {
			if p.field("User-Agent") == agentOf(i+1)+"/1.0" {
				came[i] = &p
				break
			}
		}
	}
	for i, tc := range corpus {
		t.Run(tc.name, func(t *testing.T) {
			row, movedRow := rows[agentOf(i+1)], movedRows[agentOf(i+1)]
			found, want := namesOf(&row), namesOf(&movedRow)
			if !slices.Equal(found, want) || row.Database != movedRow.Database || row.Table != movedRow.Table || row.Surface != movedRow.Surface || row.Events != movedRow.Events {
				t.Errorf("the audit finds %v of %s %s.%s, %d events; v2's lane %v of %s %s.%s, %d events", found, row.Surface, row.Database, row.Table, row.Events,
					want, movedRow.Surface, movedRow.Database, movedRow.Table, movedRow.Events)
			}
			if row.Events > 0 {
				checkRefused(t, &row, answers[i])
				checkChanged(t, found, came[i], saw[i])
			}
		})
	}
}

func namesOf(row *migration.Row) (names []string) {
	for _, f := range row.Findings {
		names = append(names, f.Name)
	}
	slices.Sort(names)
	return names
}

// statusesOf are those of refusals.
var statusesOf = map[string]int{
	"missing_write_key": 403, "unknown_key": 403, "unknown_database": 403, "invalid_write_key": 400, "invalid_path": 400, "invalid_request": 400,
	"redirect_not_allowed": 400, "method_not_allowed": 405, "payload_too_large": 413, "headers_too_large": 431, "refused_by_v2": 400,
}

// checkRefused compares the refusals that the audit says with the answer by v2's lane.
func checkRefused(t *testing.T, row *migration.Row, answer reply) {
	t.Helper()
	refused := ""
	for _, f := range row.Findings {
		if f.Kind == "refused" {
			refused += f.Name
		}
	}
	switch {
	case refused == "" && answer.StatusCode >= 400, refused != "" && answer.StatusCode != statusesOf[refused] && !strings.Contains(answer.body, `"success":false`):
		t.Errorf("the audit says %q, the answer by v2's lane is %d %s", refused, answer.StatusCode, answer.body)
	case strings.HasPrefix(answer.body, `{"error":"`) && refused != "refused_by_v2" && answer.code() != refused:
		t.Errorf("the audit says %q, the answer by v2's lane is %s", refused, answer.body)
	}
}

// checkChanged compares what the audit says that is changed with what the caller has sent,
// as the legacy host sees it, and what v2 sees.
func checkChanged(t *testing.T, found []string, came *passed, saw []testimony) {
	t.Helper()
	if came == nil || len(saw) != 1 || !strings.HasPrefix(saw[0].line, "POST /postback/v3/event/") {
		return // refused, or several events
	}
	of, method := &saw[0], strings.Fields(came.line)[0]
	target, _, _ := strings.Cut(strings.Fields(came.line)[1], "?")
	path, err := url.PathUnescape(target)
	if err != nil {
		t.Fatal(err)
	}
	var types []string
	for _, field := range came.fields {
		if kind, ok := strings.CutPrefix(field, "Content-Type: "); ok {
			types = append(types, kind)
		}
	}
	sameBody, ofPostback := bytes.Contains([]byte(came.body), of.body), strings.Contains(path, "postback")
	for name, is := range map[string]bool{
		"from_query":            method == "GET" || !sameBody && !strings.Contains(came.body, "{"),
		"authorization_dropped": came.field("Authorization") != "" && of.header.Get("Authorization") == "",
		"mark_removed":          ofPostback && strings.HasPrefix(came.body, "\ufeff") && !bytes.HasPrefix(of.body, []byte("\ufeff")),
		"path_mended":           ofPostback && "POST "+path != strings.SplitN(of.line, "?", 2)[0],
		"body_type_mended":      method == "POST" && sameBody && !slices.Equal(types, of.header["Content-Type"]) && of.header.Get("Content-Type") == "application/json",
	} {
		if slices.Contains(found, name) != is {
			t.Errorf("%s: the audit says %v; it came as %q %q %.80q, and is at v2 %q %v %.80q", name, !is, came.line, came.fields, came.body, of.line, of.header, of.body)
		}
	}
}

// TestAuditCommand: a verdict of each kind, its exit code, and each format.
func TestAuditCommand(t *testing.T) {
	t.Parallel()
	v2, u := startAuditedV2(t), startLegacy(t, nil)
	g, admin := lanedGateway(t, v2.URL, u.url(), "legacy", "")
	audit := func(args ...string) (string, int) {
		t.Helper()
		return run(t, append([]string{"td-migrate", "audit", "--address", admin}, args...)...)
	}
	const good = asJSON + "X-Forwarded-Proto: https\r\nX-TD-Write-Key: " + callersKey + "\r\n"
	for i, tc := range []struct {
		request, verdict string
		code             int
		says             string
	}{
		{"", "not ready", 1, "No caller was seen"},
		{post("/postback/v3/event/shop/ready", good, `{"a":"`+canary+`"}`), "ready", 0, "All 1 callers send what v2 takes as it is."},
		{post("/postback/v3/event/shop/changed?td_write_key="+callersKey, asJSON+"X-Forwarded-Proto: https\r\n", `{"a":"`+canary+`"}`), "ready with changes", 0, "key_in_url (changed, 1 events of 1 callers): Send the write key in the header"},
		{post("/postback/v3/event/shop/refused?q="+canary, asJSON, `{}`), "not ready", 1, "missing_write_key (refused, 1 events of 1 callers): Send the write key in the header"},
	} {
		if tc.request != "" {
			raw(t, g.addr, tc.request)
			awaitRows(t, admin, i)
		}
		output, code := audit()
		if code != tc.code || !strings.HasSuffix(output, "\nVerdict: "+tc.verdict+"\n") || !strings.Contains(output, tc.says) || strings.Contains(output, canary) || strings.Contains(output, "feedface") {
			t.Errorf("%s: exit %d: %s", tc.request, code, output)
		}
		output, code = audit("--format", "json", "--since", "7d")
		var a migration.Audit
		if err := json.Unmarshal([]byte(output), &a); err != nil || code != tc.code || string(a.Verdict) != tc.verdict || len(a.Callers) != i {
			t.Errorf("%s: exit %d, %v: %s", tc.request, code, err, output)
		}
	}
	output, code := audit("--format", "csv")
	lines, err := csv.NewReader(strings.NewReader(output)).ReadAll()
	if err != nil || code != 1 || len(lines) != 5 || lines[0][0] != "verdict" || !slices.Equal(lines[1][:2], []string{"not ready", "all"}) {
		t.Errorf("exit %d, %v: %s", code, err, output)
	}
	for want, args := range map[string][]string{
		`--format "cvs": must be one of table, json, csv (did you mean csv?)`:                        {"--format", "cvs"},
		`--since "yesterday": must be a duration of more than 0, and at most 30d, such as 24h or 7d`: {"--since", "yesterday"},
		`--since "31d": must be a duration of more than 0, and at most 30d, such as 24h or 7d`:       {"--since", "31d"},
		"(did you mean --since?)": {"--sinc", "1h"},
	} {
		if output, code := audit(args...); code == 0 || !strings.Contains(output, want) {
			t.Errorf("%v: exit %d: %s", args, code, output)
		}
	}
	if output, code := audit("--since", "soon"); code < 2 {
		t.Errorf("exit %d: %s", code, output)
	}
	var said struct{ Error string }
	if status := askAdmin(t, http.MethodGet, admin, "migration/audit?since=-1h", &said); status != http.StatusBadRequest || !strings.HasPrefix(said.Error, `since "-1h": must be`) {
		t.Errorf("got %d %s", status, said.Error)
	}
	if status := askAdmin(t, http.MethodPost, admin, "migration/audit", &said); status != http.StatusMethodNotAllowed {
		t.Errorf("POST: got %d", status)
	}
}
