package integration

import (
	"encoding/base64"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/td-postback/gateway/migration"
)

// This file looks at the report of callers, over the admin API and by td-migrate.

const (
	callersKey = "1234/feedfacefeedfacefeedfacefeedfacefeedface"
	canary     = "canaryvalue" // what no report has
)

// calledAs is a call of each surface with a canary in each place where a value may be, and
// what the report says of it.
var calledAs = []struct{ request, table, surface, agent, source, findings string }{
	{post("/postback/v3/event/shop/ready", asJSON+"X-Forwarded-Proto: https\r\nX-TD-Write-Key: "+callersKey+"\r\nUser-Agent: curl/8.5.0\r\n", `{"a":"`+canary+`"}`),
		"ready", "post", "curl", "127.0.0.0/24", ""},
	{post("/postback//v3/event/shop/posts?td_write_key="+callersKey+"&q="+canary, "User-Agent: python-requests/2.31\r\nAuthorization: Basic "+canary+"\r\n", `{"a":"`+canary+`"}`),
		"posts", "post", "python-requests", "127.0.0.0/24", "authorization_dropped body_type_mended key_in_url path_mended plain_http"},
	{get("/postback/v3/event/shop/gets?a="+canary+"&td_write_key="+callersKey, "User-Agent: ESP32/"+canary+"\r\n"),
		"gets", "get", "ESP32", "127.0.0.0/24", "from_query key_in_url plain_http"},
	{get("/postback/v3/event/shop/pixels?td_format=pixel&td_ip=td_ip&a="+canary+"&td_write_key="+callersKey, "User-Agent: Mozilla/5.0 (X11) Gecko/1 Firefox/140.0\r\nReferer: https://shop.example/"+canary+"\r\n"),
		"pixels", "pixel", "Firefox", "shop.example", "answered_with_image from_query key_in_url plain_http value_filled"},
	{post("/postback/v3/event/shop/beacons?a="+canary+"&td_write_key="+callersKey, "Origin: https://shop.example\r\nUser-Agent: Mozilla/5.0 (X11) Gecko/1 Firefox/140.0\r\n", ""),
		"beacons", "beacon", "Firefox", "shop.example", "from_query key_in_url plain_http"},
	{get("/js/v3/event/shop/tags?api_key="+callersKey+"&data="+url.QueryEscape(base64.StdEncoding.EncodeToString([]byte(`{"a":"`+canary+`"}`)))+"&callback=cb", ""),
		"tags", "jsonp", "", "127.0.0.0/24", "from_query js_sdk key_in_url plain_http"},
	{post("/js/v3/event/shop/sdk", asJSON+"X-TD-Write-Key: "+callersKey+"\r\n", `{"a":"`+canary+`"}`),
		"sdk", "js", "", "127.0.0.0/24", "js_sdk plain_http"},
	{post("/js/v3/event", asJSON+"X-TD-Data-Type: k\r\nX-TD-Write-Key: "+callersKey+"\r\n", `{"shop.scripts":[{"a":"`+canary+`"},{"a":2}]}`),
		"scripts", "k", "", "127.0.0.0/24", "plain_http several_events"},
	{post("/android/v3/event", asJSON+"X-TD-Write-Key: "+callersKey+"\r\nUser-Agent: TD-Android-SDK/0.6.0 (Pixel)\r\n", `{"shop.apps":[{"a":"`+canary+`"}]}`),
		"apps", "mobile", "TD-Android-SDK", "127.0.0.0/24", "mobile_sdk plain_http"},
	{post("/postback/v3/event/shop/nokey?q="+canary, asJSON, `{"a":"`+canary+`"}`), "nokey", "post", "", "127.0.0.0/24", "missing_write_key"},
	{post("/postback/v3/event/shop/refused?td_write_key="+callersKey+canary, asJSON, `[]`), "refused", "post", "", "127.0.0.0/24", "key_in_url plain_http refused_by_v2 unusual_key"},
	{post("/postback/v3/event/shop/broken?td_write_key="+callersKey, asJSON, strings.Repeat(canary, 100_000)), "broken", "post", "", "127.0.0.0/24", "key_in_url payload_too_large plain_http"},
	{post("/postback/v3/event/TD1%20"+callersKey, asJSON, `{}`), "…", "post", "", "127.0.0.0/24", "invalid_path"},
	{get("/postback/v3/event/shop/"+canary+".txt", ""), "", "get", "", "127.0.0.0/24", "from_query invalid_path"},
}

// startCallersGateway runs a gateway with a report, and says how to load it again.
func startCallersGateway(t *testing.T, upstream, dir string) (g *gateway, admin string, config func(more string) string) {
	t.Helper()
	addr, admin := freeAddr(t), freeAddr(t)
	_, port, _ := net.SplitHostPort(addr)
	config = func(more string) string {
		return fmt.Sprintf("{\n%s\n storage file_system %s/storage\n servers {\n trusted_proxies static 127.0.0.1/32\n}\n}\nhttp://:%s {\n td_postback us01 {\n upstream %s\n report {\n dir %s/report\n%s\n}\n}\n}\n",
			withAdmin(admin), dir, port, upstream, dir, more)
	}
	return serveCaddyfile(t, addr, config("")), admin, config
}

// callersOf is what the admin API says.
func callersOf(t *testing.T, admin string) (l migration.Listing, text string) {
	t.Helper()
	resp, err := http.Get("http://" + admin + "/td_postback/migration/callers")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK || json.Unmarshal(body, &l) != nil {
		t.Fatalf("%s %v: %s", resp.Status, err, body)
	}
	return l, string(body)
}

// awaitRows waits until all calls are in the report: each is counted after its answer.
func awaitRows(t *testing.T, admin string, n int) (migration.Listing, string) {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		l, text := callersOf(t, admin)
		if len(l.Rows) == n {
			return l, text
		}
		if time.Now().After(end) {
			t.Fatalf("%d rows of %d: %s", len(l.Rows), n, text)
		}
	}
}

func rowOf(t *testing.T, l *migration.Listing, table string) migration.Row {
	t.Helper()
	i := slices.IndexFunc(l.Rows, func(r migration.Row) bool { return r.Table == table })
	if i < 0 {
		t.Fatalf("no row of %q", table)
	}
	return l.Rows[i]
}

// TestCallers: a call by each surface makes a row with its findings; a reload and a
// kill -9 keep the rows; td-migrate shows them in each format, and nothing has a key or a
// value.
func TestCallers(t *testing.T) {
	t.Parallel()
	v2 := startBatchV2(t, nil)
	refusing := startRefusing(t, v2.URL)
	dir := t.TempDir()
	g, admin, config := startCallersGateway(t, refusing, dir)
	for _, call := range calledAs {
		raw(t, g.addr, call.request)
	}
	l, text := awaitRows(t, admin, len(calledAs))
	for _, call := range calledAs {
		row := rowOf(t, &l, call.table)
		var found []string
		for _, f := range row.Findings {
			found = append(found, f.Name)
			if f.Advice == "" || f.Events != row.Events {
				t.Errorf("%s: %+v", call.table, f)
			}
		}
		slices.Sort(found)
		if got := strings.Join(found, " "); got != call.findings || row.Surface != call.surface || row.Agent != call.agent || row.Source != call.source {
			t.Errorf("%s: got %s, %s by %q from %q", call.table, got, row.Surface, row.Agent, row.Source)
		}
		if left := row.State == migration.Left; left != (call.findings != "") || left != (row.Instead != nil) {
			t.Errorf("%s: %s, %+v", call.table, row.State, row.Instead)
		}
	}
	texts := map[string]string{"the admin API": text}
	commandCallers(t, admin, texts)

	// A reload, with other options too, keeps what was counted.
	for _, more := range []string{"", "rows 500"} {
		if status, problem := reload(t, admin, config(more)); status != http.StatusOK {
			t.Fatalf("reload: %d %s", status, problem)
		}
	}
	raw(t, g.addr, calledAs[1].request)
	if l, _ = awaitRows(t, admin, len(calledAs)); l.MaxRows != 500 {
		t.Errorf("%d rows at most", l.MaxRows)
	}

	// What is on disk is there after a kill.
	file := filepath.Join(dir, "report", "callers.db")
	awaitKept(t, file, "scripts", 2)
	kill(g.process)
	again, admin, _ := startCallersGateway(t, refusing, dir)
	l, _ = awaitRows(t, admin, len(calledAs))
	if row := rowOf(t, &l, "scripts"); row.Events != 2 || !strings.HasPrefix(row.Key, "1234/#") {
		t.Errorf("after a kill: %+v", row)
	}

	// What is counted is on disk when the gateway has stopped.
	before := rowOf(t, &l, "posts").Events
	raw(t, again.addr, calledAs[1].request)
	again.stop()
	kept, err := migration.Open(migration.Config{Path: file})
	if err != nil {
		t.Fatal(err)
	}
	if row := rowOf(t, kept.List(time.Now()), "posts"); row.Events != before+1 {
		t.Errorf("after a stop: %d calls, want %d", row.Events, before+1)
	}
	_ = kept.Close()
	onDisk, err := os.ReadFile(file) //nolint:gosec // G304: the test's own
	if err != nil {
		t.Fatal(err)
	}
	texts["the file"], texts["the log"] = string(onDisk), g.text()+again.text()
	for where, text := range texts {
		for _, secret := range []string{canary, "feedface", base64.StdEncoding.EncodeToString([]byte(canary))[:12]} {
			if strings.Contains(text, secret) {
				t.Errorf("%s has %s", where, secret)
			}
		}
	}
}

// startRefusing is v2 that refuses what is for the table refused; upstream has the rest.
func startRefusing(t *testing.T, v2 string) string {
	t.Helper()
	g := serve(t, "", "respond /postback/v3/event/shop/refused `{\"error\":\"no object\"}` 400\n reverse_proxy "+v2)
	return "http://" + g.addr
}

// awaitKept waits until a report's file, as a kill would leave it now, has a row of a
// table with so many events: it is saved every 10 seconds.
func awaitKept(t *testing.T, file, table string, events uint64) {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		content, err := os.ReadFile(file) //nolint:gosec // G304: the test's own
		if err == nil && isKept(t, content, table, events) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s with %d events is not in %s: %v", table, events, file, err)
		}
	}
}

// isKept reports whether the content of a report's file has such a row.
func isKept(t *testing.T, content []byte, table string, events uint64) bool {
	t.Helper()
	kept, err := migration.Open(migration.Config{Path: write(t, "callers.db", string(content))})
	if kept == nil {
		t.Fatal(err)
	}
	rows := kept.List(time.Now()).Rows
	if closed := kept.Close(); closed != nil {
		t.Fatal(closed)
	}
	return err == nil && slices.ContainsFunc(rows, func(r migration.Row) bool { return r.Table == table && r.Events == events })
}

// checkShownBooks: all calls are in books, in JSON and in the table.
func checkShownBooks(t *testing.T, books []map[string]any, output string) {
	t.Helper()
	received := 0.0
	for _, b := range books {
		number := func(name string) float64 { return b[name].(float64) }
		received += number("received")
		if number("received") != number("forwarded")+number("spooled")+number("refused")+number("lost") || number("difference") != 0 || number("under_way") != 0 {
			t.Errorf("the books are %v", b)
		}
		line := regexp.MustCompile(fmt.Sprintf(`(?m)^%v +%v +%v +%v +%v +%v +0 *$`, b["surface"], b["received"], b["forwarded"], b["spooled"], b["refused"], b["lost"]))
		if !line.MatchString(output) {
			t.Errorf("no line %s is in\n%s", line, output)
		}
	}
	if int(received) < len(calledAs) || !strings.Contains(output, "The books balance") {
		t.Errorf("%v requests are in the books, %d were sent", received, len(calledAs))
	}
}

// commandCallers looks at the report by td-migrate callers, in each format.
func commandCallers(t *testing.T, admin string, texts map[string]string) {
	t.Helper()
	td := func(args ...string) string {
		t.Helper()
		output, code := run(t, append([]string{"td-migrate", "callers", "--address", admin}, args...)...)
		if code != 0 {
			t.Errorf("%v: exit %d: %s", args, code, output)
		}
		texts[strings.Join(args, " ")] = output
		return output
	}
	for _, want := range []string{fmt.Sprintf("%d of %d callers\n", len(calledAs), len(calledAs)), "ready to leave the gateway", "from_query (changed): Send the record as one JSON object",
		`curl -X POST 'https://us01.records.in.treasuredata.com/postback/v3/event/shop/`, "<script>fetch(", "for 8 more tables"} {
		if output := td(); !strings.Contains(output, want) {
			t.Errorf("%s is not in\n%s", want, output)
		}
	}
	if output := td("--left"); strings.Contains(output, "ready to leave") || !strings.Contains(output, "pixels") {
		t.Errorf("--left:\n%s", output)
	}
	if output := td("--since", "1d", "--left"); !strings.HasPrefix(output, fmt.Sprintf("%d of %d callers", len(calledAs)-1, len(calledAs))) {
		t.Errorf("--since:\n%s", output)
	}
	var l struct {
		migration.Listing
		Books []map[string]any `json:"books"`
	}
	if err := json.Unmarshal([]byte(td("--format", "json", "--left")), &l); err != nil || len(l.Rows) != len(calledAs)-1 || l.Rows[0].Instead == nil {
		t.Errorf("json: %v, %d rows", err, len(l.Rows))
	}
	checkShownBooks(t, l.Books, td())
	lines, err := csv.NewReader(strings.NewReader(td("--format", "csv"))).ReadAll()
	if err != nil || len(lines) != len(calledAs)+1 || lines[0][0] != "key" {
		t.Errorf("csv: %v, %d lines", err, len(lines))
	}
	for _, line := range lines {
		for _, cell := range line {
			if cell != "" && strings.ContainsAny(cell[:1], "=+-@") {
				t.Errorf("a spreadsheet runs %s", cell)
			}
		}
	}
}

// writeReport makes a report in which a key was seen on each of seven days, and last 31
// hours ago.
func writeReport(t *testing.T, path, fingerprint string) {
	t.Helper()
	report, err := migration.Open(migration.Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	for day := range 8 {
		report.Count(&migration.Call{
			Time: time.Now().Add(-31*time.Hour - time.Duration(7-day)*24*time.Hour), Key: fingerprint,
			Database: "shop", Table: "nightly", Surface: "post", Result: "forwarded",
		})
	}
	if err := errors.Join(report.Save(time.Now()), report.Close()); err != nil {
		t.Fatal(err)
	}
}

// TestKeysSeen: a key that was never seen before, and one that came every day and comes no
// more, are counted and named; a restart tells again of neither.
func TestKeysSeen(t *testing.T) {
	t.Parallel()
	v2 := startBatchV2(t, nil)
	dir := t.TempDir()
	const silent = "1234/#0123456789"
	writeReport(t, filepath.Join(dir, "report", "callers.db"), silent)
	g, admin, _ := startCallersGateway(t, v2.URL, dir)
	if line := warningLine(g.text(), "a write key that came every day comes no more"); !strings.Contains(line, `"fingerprint":"`+silent+`","database":"shop","table":"nightly"`) {
		t.Errorf("the silent key: %s", line)
	}
	raw(t, g.addr, calledAs[0].request)
	l, _ := awaitRows(t, admin, 2)
	for end := time.Now().Add(patience); scrape(t, admin)[keySignals("new")] != 1; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the new key is not counted")
		}
	}
	if got := scrape(t, admin)["keys_silent"]; got != 1 {
		t.Errorf("%v keys are silent", got)
	}
	if line := warningLine(g.text(), "a write key was never seen before"); !strings.Contains(line, `"fingerprint":"`+rowOf(t, &l, "ready").Key+`","database":"shop","table":"ready"`) {
		t.Errorf("the new key: %s", line)
	}
	raw(t, g.addr, calledAs[1].request) // of the same key
	awaitRows(t, admin, 3)
	g.stop()

	again, admin, _ := startCallersGateway(t, v2.URL, dir)
	raw(t, again.addr, calledAs[2].request)
	awaitRows(t, admin, 4)
	if metrics := scrape(t, admin); metrics["keys_silent"] != 1 || metrics[keySignals("new")] != 0 {
		t.Errorf("after a restart: %v silent, %v new", metrics["keys_silent"], metrics[keySignals("new")])
	}
	again.stop() // which tells what is new
	for message, times := range map[string]int{"a write key was never seen before": 1, "a write key that came every day comes no more": 1} {
		if got := strings.Count(g.text(), message); got != times {
			t.Errorf("%q: %d times", message, got)
		}
		if strings.Contains(again.text(), message) {
			t.Errorf("%q: again after the restart", message)
		}
	}
}

// TestCallersCommand: what is wrong is told.
func TestCallersCommand(t *testing.T) {
	t.Parallel()
	_, port, _ := net.SplitHostPort(freeAddr(t))
	admin := freeAddr(t)
	serveCaddyfile(t, "", fmt.Sprintf("{\n%s\n}\nhttp://:%s {\n td_postback us01\n}\n", withAdmin(admin), port))
	for want, args := range map[string][]string{
		"there is no report of callers: write report into td_postback, and reload":  {"callers"},
		`--format "cvs": must be one of table, json, csv (did you mean csv?)`:       {"callers", "--format", "cvs"},
		`--since "yesterday": must be a duration of more than 0, such as 24h or 7d`: {"callers", "--since", "yesterday"},
		"(did you mean callers?)":  {"caller"},
		"(did you mean --format?)": {"callers", "--formt", "csv"},
	} {
		output, code := run(t, append([]string{"td-migrate", "--address", admin}, args...)...)
		if code == 0 || !strings.Contains(strings.ReplaceAll(output, `\"`, `"`), want) {
			t.Errorf("%v: exit %d: %s", args, code, output)
		}
	}
	resp, err := http.Post("http://"+admin+"/td_postback/migration/callers", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST: got %s", resp.Status)
	}
}

// TestSandboxCallers: the sandbox has a report, which is on no disk; where another gateway
// has the admin endpoint, it starts all the same.
func TestSandboxCallers(t *testing.T) {
	t.Parallel()
	admin, addr := freeAddr(t), freeAddr(t)
	env := []string{"CADDY_ADMIN=" + admin, "TMPDIR=" + t.TempDir()}
	g := start(t, env, "td-postback", "--sandbox", "--listen", addr)
	g.await(t, running, 1)
	raw(t, addr, calledAs[1].request)
	awaitRows(t, admin, 1)
	second := start(t, env, "td-postback", "--sandbox", "--listen", freeAddr(t))
	second.await(t, running, 1)
	if !strings.Contains(second.text(), "td-migrate cannot reach this gateway: "+admin+" is in use.") {
		t.Errorf("a second one: %s", second.text())
	}
	g.stop()
	home := strings.TrimPrefix(g.cmd.Env[0], "HOME=")
	err := filepath.WalkDir(home, func(path string, _ os.DirEntry, err error) error {
		if strings.HasPrefix(filepath.Base(path), "callers.db") {
			t.Errorf("%s is on disk", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}
