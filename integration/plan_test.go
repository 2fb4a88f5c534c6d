package integration

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/td-postback/gateway/migration"
)

// This file shows and changes the plan, by td-migrate and over the admin API.

// planned is a gateway with a plan, between a legacy host and a v2 host.
type planned struct {
	*gateway
	admin, dir string
	caddyfile  string
	legacy     *legacyHost
	v2         *recorder
}

// servePlan runs one. migrate has more options of that block.
func servePlan(t *testing.T, migrate string) *planned {
	t.Helper()
	return servePlanIn(t, t.TempDir(), migrate)
}

// servePlanIn keeps what it keeps in this directory.
func servePlanIn(t *testing.T, dir, migrate string) *planned {
	t.Helper()
	g := &planned{admin: freeAddr(t), dir: dir, legacy: startLegacy(t, nil), v2: startRecorder(t, nil)}
	addr := freeAddr(t)
	_, port, _ := net.SplitHostPort(addr)
	g.caddyfile = fmt.Sprintf("{\n%s\n storage file_system %s/storage\n}\nhttp://:%s {\n%s\n}\n", withAdmin(g.admin), g.dir, port, g.block(migrate))
	g.gateway = serveCaddyfile(t, addr, g.caddyfile)
	return g
}

func (g *planned) block(migrate string) string {
	return fmt.Sprintf("td_postback {\n upstream %s\n report {\n  dir %s/report\n }\n migrate {\n  legacy %s\n  dir %s\n  %s\n }\n}\ntd_console /console* {\n actions on\n}", g.v2.url(), g.dir, g.legacy.url(), g.planDir(), migrate)
}

func (g *planned) planDir() string { return filepath.Join(g.dir, "plan") }

// restart ends the gateway and runs it again.
func (g *planned) restart(t *testing.T) {
	t.Helper()
	g.stop()
	g.gateway = serveCaddyfile(t, g.addr, g.caddyfile)
}

// goesTo checks where an event goes, and that it goes there alone.
func (g *planned) goesTo(t *testing.T, lane string) {
	t.Helper()
	if answer := raw(t, g.addr, post(target, asJSON, object)); answer.StatusCode != http.StatusOK {
		t.Errorf("got %d %s", answer.StatusCode, answer.body)
	}
	if lane == "v2" {
		g.v2.next(t)
	} else {
		g.legacy.next(t)
	}
	g.v2.none(t)
	g.legacy.none(t)
}

// migrateAt runs td-migrate against an admin endpoint. An exit code other than 0 or 1
// fails the test.
func migrateAt(t *testing.T, admin string, args ...string) (output string, ok bool) {
	t.Helper()
	output, code := run(t, append([]string{"td-migrate", "--address", admin}, args...)...)
	if code > 1 {
		t.Errorf("%q: exit %d: %s", args, code, output)
	}
	return output, code == 0
}

func hasTexts(t *testing.T, args []string, output string, texts []string) {
	t.Helper()
	for _, text := range texts {
		if !strings.Contains(output, text) {
			t.Errorf("%q: %q is not in\n%s", args, text, output)
		}
	}
}

// says checks that a td-migrate command succeeds and says these texts.
func (g *planned) says(t *testing.T, args []string, texts ...string) {
	t.Helper()
	output, ok := migrateAt(t, g.admin, args...)
	if !ok {
		t.Errorf("%q: exit 1: %s", args, output)
	}
	hasTexts(t, args, output, texts)
}

// refuses checks that a td-migrate command ends with exit code 1 and says these texts.
func refuses(t *testing.T, admin string, args []string, texts ...string) {
	t.Helper()
	output, ok := migrateAt(t, admin, args...)
	if ok {
		t.Errorf("%q: exit 0: %s", args, output)
	}
	isPlain(t, args, output)
	hasTexts(t, args, output, texts)
}

// words are the arguments of a command.
func words(line string) []string { return strings.Fields(line) }

// TestMigrateCommands: each subcommand does what it says, to the next request and no
// further, and says how to go back.
func TestMigrateCommands(t *testing.T) {
	t.Parallel()
	g := servePlan(t, "")
	g.says(t, words("status"), "Revision 0", "Nobody has changed the plan yet", "legacy is the start", "*.*   -        0 %")
	g.says(t, words("history"), "Nobody has changed the plan yet")
	g.goesTo(t, "legacy")
	g.awaitEvents(t, 1)
	g.says(t, words("share db.tbl 100 --dry-run"), "With db.tbl 100 %, 1 of 1 callers", "1 of 1 events would move to v2, and 0 to the legacy host", "Nothing has changed: the plan has revision 0")
	g.says(t, words("share db.tbl 12.34 --dry-run"), "about 0 of 1 events would move to v2", "That is an estimate, rounded: a hash decides who moves")
	g.goesTo(t, "legacy")

	g.says(t, append(words("share db.tbl 100 --note"), "the first table"), "Revision 1, in force from the next request", "db.tbl: 100 % to v2, a new rule", "Back: td-migrate undo", "td-migrate rollback")
	g.goesTo(t, "v2")
	g.awaitEvents(t, 3)
	host, _ := os.Hostname()
	g.says(t, words("status"), "Revision 1. The last change: share (db.tbl: 100 % to v2, a new rule), by ", "@"+host+" at ", "(the first table)", "db.tbl  -        100 %  33.33 %  1   2")
	g.says(t, words("share db.tbl 100"), "Nothing has changed: db.tbl has 100 % already. The plan has revision 1.\n")
	g.says(t, words("share db.tbl 0 --account 1234"), "Revision 2", "db.tbl account:1234: 0 % to v2, a new rule")
	g.goesTo(t, "legacy")
	g.says(t, words("share db.tbl 100 --account 1234"), "Revision 3", "db.tbl account:1234: 100 % to v2, was 0 %")
	g.goesTo(t, "v2")

	g.says(t, words("rollback --note alarm"), "Rolled back: everything goes to the legacy host, from the next request. Revision 4", "Back: td-migrate resume")
	g.goesTo(t, "legacy")
	g.says(t, words("rollback"), "Nothing has changed: it is rolled back already", "revision 4")
	g.says(t, words("status"), "It is rolled back, by ", "(alarm)", "db.tbl  1234     100 %")
	g.says(t, words("share db.tbl 100 --dry-run --account 7"), "nothing would move before td-migrate resume")
	g.says(t, words("unset db.tbl --account 1234"), "Revision 5, in force after td-migrate resume", "db.tbl account:1234: taken away, was 100 % to v2")
	g.goesTo(t, "legacy")
	g.says(t, words("resume --note over"), "Resumed", "Revision 6", "Back: td-migrate rollback")
	g.goesTo(t, "v2")
	g.says(t, words("resume"), "Nothing has changed: it is not rolled back", "revision 6")

	g.says(t, words("undo 0"), "Revision 7", "db.tbl: taken away, was 100 % to v2")
	g.goesTo(t, "legacy")
	g.says(t, words("undo"), "Revision 8", "db.tbl: 100 % to v2, a new rule")
	g.goesTo(t, "v2")
	g.says(t, words("unset db.tb"), "Nothing has changed: there is no rule db.tb (did you mean db.tbl?). The rules are *.*, db.tbl. The plan has revision 8.\n")
	g.says(t, words("unset db.tbl --account 7"), "there is no rule db.tbl account:7. The rules are *.*, db.tbl.")
	g.says(t, words("history"), "8         ", "undo to revision 6", "undo to revision 0", "rollback", "alarm", "resume", "over", "the first table")

	g.says(t, words("share *.* 100 --note back"), "*.*: 100 % to v2, was 0 %")
	if status, problem := reload(t, g.admin, strings.Replace(g.caddyfile, "migrate {", "migrate {\n start v2", 1)); status != http.StatusOK {
		t.Fatalf("reload: %d %s", status, problem)
	}
	g.says(t, words("status"), "Revision 9")
	g.says(t, words("rollback"), "Revision 10")
	g.restart(t)
	g.goesTo(t, "legacy")
	g.says(t, words("status"), "Revision 10", "It is rolled back")
	g.says(t, words("resume"), "Revision 11")
	g.goesTo(t, "v2")

	g.says(t, words("rollback --local"), "Rolled back", "Back: td-migrate resume --local")
	refuses(t, g.admin, words("resume"), "this gateway is rolled back by itself", "td-migrate resume --local lifts that")
	g.says(t, words("share *.* 99"), "Revision 12, in force here after td-migrate resume --local")
	g.says(t, words("rollback"), "Revision 13")
	refuses(t, g.admin, words("resume"), "Revision 14", "td-migrate resume --local lifts that")
	g.goesTo(t, "legacy")
	g.says(t, words("undo"), "Revision 15")
	g.says(t, words("resume --local"), "Resumed: this gateway goes by the plan again")
	g.goesTo(t, "v2")
}

// awaitEvents waits until so many events are in the report: each is counted after its
// answer.
func (g *planned) awaitEvents(t *testing.T, n uint64) {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		var plan struct{ Rules []struct{ Events uint64 } }
		askAdmin(t, http.MethodGet, g.admin, "migration", &plan)
		var total uint64
		for _, r := range plan.Rules {
			total += r.Events
		}
		if total == n {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%d events of %d are in the report", total, n)
		}
	}
}

// TestMigrateFit: a share says what may surprise: that nobody sends to its rule, which name
// is nearly the same, and which more specific rules stay as they are.
func TestMigrateFit(t *testing.T) {
	t.Parallel()
	g := servePlan(t, "")
	g.says(t, words("undo"), "Nothing has changed: there is no change of the rules to take back. The plan has revision 0.\n")
	g.goesTo(t, "legacy") // to db.tbl
	raw(t, g.addr, post("/js/v3/event", asJSON+"X-TD-Data-Type: k\r\nX-TD-Write-Key: "+callersKey+"\r\n", `{"db.one":[{}],"db.two":[{},{}]}`))
	g.legacy.next(t)
	g.awaitEvents(t, 4)
	const nobody = "This gateway's report has no event of the last 7 days for "
	for line, nearly := range map[string]string{"db.tb": " (did you mean db.tbl?).\n", "dbb.*": " (did you mean db.*?).\n", "other.table": ".\nIt has 3 that came in requests with several tables, and does not say for which.\n"} {
		g.says(t, words("share "+line+" 5 --dry-run"), nobody+line+nearly)
		g.says(t, words("share "+line+" 5"), nobody+line+nearly)
		g.says(t, words("undo"), "taken away")
	}
	for _, line := range []string{"share db.tbl 5", "share *.* 5 --account 1234", "share db.* 5 --dry-run"} {
		output, ok := migrateAt(t, g.admin, words(line)...)
		if !ok || strings.Contains(output, "report has no event") {
			t.Errorf("%s: %s", line, output)
		}
	}
	const before = "More specific rules decide before it, and stay as they are: "
	g.says(t, words("share *.* 50 --dry-run"), before+"*.* account:1234 5 %, db.tbl 5 %.\n")
	g.says(t, words("share *.* 50"), before+"*.* account:1234 5 %, db.tbl 5 %.\n")
	g.says(t, words("share *.* 50"), "*.* has 50 % already", before+"*.* account:1234 5 %, db.tbl 5 %.\n")
	g.says(t, words("share db.* 50 --account 1234"), before+"db.tbl 5 %.\n")
	if output, _ := migrateAt(t, g.admin, words("share db.tbl 6")...); strings.Contains(output, "More specific") {
		t.Error(output)
	}
	var answer struct {
		Message string
		Fit     *struct {
			Hour   uint64 `json:"events_hour"`
			Week   uint64 `json:"events_7d"`
			Meant  string `json:"did_you_mean"`
			Before []migration.RuleShare
		}
	}
	status, _, text := g.post(t, "share", "", `{"rule":"db.*","percent":1,"dry_run":true}`)
	if err := json.Unmarshal([]byte(text), &answer); err != nil || status != http.StatusOK || answer.Fit == nil || answer.Fit.Hour != 1 || answer.Fit.Week != 1 || len(answer.Fit.Before) != 2 {
		t.Errorf("got %d %s", status, text)
	}
	_, base, _ := g.post(t, "rollback", "", "")
	status, _, text = g.post(t, "unset", base, `{"rule":"db.none"}`)
	if err := json.Unmarshal([]byte(text), &answer); err != nil || status != http.StatusOK || answer.Message != "nothing has changed: there is no such rule" {
		t.Errorf("got %d %s", status, text)
	}
}

// TestMigrateHelp: each subcommand explains itself, with an example where it has arguments.
func TestMigrateHelp(t *testing.T) {
	t.Parallel()
	for name, texts := range map[string][]string{
		"status":   {"last hour by\nlane", "whether it is rolled back"},
		"share":    {"Quote the stars", "a number from 0 to 100", "at most two digits", "without a percent sign", "share 'shop.*' 50", "share '*.*' 100", "--account 1234", "The most specific rule decides", "is an estimate"},
		"unset":    {"unset shop.orders", "'shop.*' --account 1234"},
		"rollback": {"whatever\nthe rules say", "Back: td-migrate resume"},
		"resume":   {"Lifts a rollback"},
		"undo":     {"undo 12"},
		"history":  {"the newest first"},
		"callers":  {"callers --left", "ready to leave the gateway"},
		"audit":    {"not ready", "exit\ncode is 1"},
	} {
		output, code := run(t, "td-migrate", name, "--help")
		if code != 0 {
			t.Errorf("%s: exit %d", name, code)
		}
		hasTexts(t, []string{name, "--help"}, output, texts)
		explained, _, _ := strings.Cut(output, "\nUsage:")
		for line := range strings.SplitSeq(explained, "\n") {
			if len(line) > 92 {
				t.Errorf("%s: a long line: %s", name, line)
			}
		}
	}
}

// TestMigrateOtherDir: a reload that names another directory moves nothing, there or back,
// and a rollback goes along. What it has taken along is there after a restart.
func TestMigrateOtherDir(t *testing.T) {
	t.Parallel()
	g := servePlan(t, "")
	g.says(t, words("share db.tbl 100"), "Revision 1")
	g.goesTo(t, "v2")
	reloads := func(caddyfile string) {
		t.Helper()
		if status, problem := reload(t, g.admin, caddyfile); status != http.StatusOK {
			t.Fatalf("reload: %d %s", status, problem)
		}
	}
	reloads(strings.Replace(g.caddyfile, "dir "+g.planDir()+"\n", "dir "+g.planDir()+"2\n", 1))
	g.says(t, words("status"), "Revision 1", "db.tbl  -        100 %")
	g.goesTo(t, "v2")
	g.says(t, words("rollback"), "Revision 2")
	reloads(g.caddyfile)
	for range 2 {
		g.says(t, words("status"), "Revision 2", "It is rolled back", "db.tbl  -        100 %")
		g.goesTo(t, "legacy")
		g.says(t, words("history"), "rollback", "share (db.tbl: 100 % to v2, a new rule)")
		g.restart(t)
	}
}

// TestMigrateErrors: what is wrong with a command is told, with exit code 1, and nothing
// changes.
func TestMigrateErrors(t *testing.T) {
	t.Parallel()
	g := servePlan(t, "")
	for line, problem := range map[string]string{
		"share db.tbl 25%":                 "such as 25 or 12.34, without a percent sign",
		"share db.tbl 0,5":                 "such as 25 or 12.34",
		"share db.tbl -5":                  "Error: the share must be a percentage from 0 to 100, with at most two digits behind the point",
		"share db.tbl -0.5":                "Error: the share must be a percentage from 0 to 100",
		"share db.tbl -.5":                 "Error: the share must be a percentage from 0 to 100",
		"share -5 db.tbl":                  "Error: give a rule and a percentage",
		"share --account 1234 db.tbl -5":   "Error: the share must be a percentage from 0 to 100",
		"share db.tbl 1e2":                 "Error: the share must be a percentage from 0 to 100",
		"share db.tbl 0x10":                "Error: the share must be a percentage from 0 to 100",
		"share db.tbl +5":                  "Error: the share must be a percentage from 0 to 100",
		"share db.tbl NaN":                 "Error: the share must be a percentage from 0 to 100",
		"share db.tbl inf":                 "Error: the share must be a percentage from 0 to 100",
		"share db.tbl 050":                 "Error: the share must be a percentage from 0 to 100",
		"share 25 db.tbl":                  "Error: give the rule first, and then the percentage",
		"share db.tbl 25 %":                "Error: give a rule and a percentage, such as shop.orders 25, without a percent sign",
		"undo -1":                          "Error: the revision must be a whole number",
		"share db.tbl 12.345":              "at most two digits behind the point",
		"share db.tbl 101":                 "a percentage from 0 to 100",
		"share db.tbl":                     "give a rule and a percentage",
		"share 25":                         "give a rule and a percentage",
		"share db.tbl 25 now":              "quote a rule with a *",
		"share db 25":                      "the rule must be database.table, database.* or *.*",
		"share *.tbl 25":                   "the rule must be database.table, database.* or *.*",
		"share db.tbl 25 --account 12/ab":  "the account must be its number",
		"share db.tbl 25 --acount 1":       "did you mean --account?",
		"share db.tbl 25 --dryrun":         "did you mean --dry-run?",
		"share db.tbl 25 --note":           "flag needs an argument",
		"unset":                            "give one rule",
		"unset *.*":                        "the default *.* cannot be taken away",
		"undo 5":                           "there is no revision 5: the newest is 0",
		"undo last":                        "the revision must be a whole number",
		"undo 1 2":                         "give one revision",
		"rollback db.tbl":                  "rollback takes no argument, only flags",
		"resume 5":                         "resume takes no argument, only flags",
		"rollbak":                          "did you mean rollback?",
		"share db.tbl 25 --note " + padded: "the note has 501 bytes",
	} {
		refuses(t, g.admin, words(line), problem)
	}
	for _, percent := range []string{" 5", "5 ", "", "５"} {
		refuses(t, g.admin, []string{"share", "db.tbl", percent}, "Error: the share must be a percentage from 0 to 100")
	}
	g.says(t, words("status"), "Revision 0")
	refuses(t, g.admin, []string{"share", "*.*", "100", "--account", ""}, "the account must be its number") // of a variable that is not set
	refuses(t, g.admin, []string{"unset", "db.tbl", "--account="}, "the account must be its number")
	refuses(t, freeAddr(t), words("rollback"), "no gateway answers there")
}

var padded = strings.Repeat("x", 501)

// TestMigrateConflict: of two who change the plan at the same time, one is told what the
// other has done, and has done nothing. A rollback does not ask.
func TestMigrateConflict(t *testing.T) {
	t.Parallel()
	g := servePlan(t, "")
	// Between the two requests of a command, somebody else changes the plan.
	var other atomic.Pointer[func()]
	to := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: g.admin})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			if change := other.Swap(nil); change != nil {
				(*change)()
			}
		}
		r.Host, r.Header["Origin"] = g.admin, nil
		to.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	between := server.Listener.Addr().String()
	for n, line := range []string{"share db.tbl 50", "unset db.tbl", "undo", "resume"} {
		change := func() { g.says(t, words(fmt.Sprintf("share db.other %d --note mine", n+1))) }
		other.Store(&change)
		refuses(t, between, words(line), "the plan was changed meanwhile, so this was not done",
			fmt.Sprintf("It has revision %d now; revision %d: share (db.other: %d %% to v2", n+1, n+1, n+1), "(mine)", "try again")
	}
	change := func() { g.says(t, words("share db.other 99")) }
	other.Store(&change)
	if output, ok := migrateAt(t, between, "rollback"); !ok || !strings.Contains(output, "Revision 6") {
		t.Errorf("the rollback: %s", output)
	}
}

// TestMigrateAPI: the admin API asks for the revision that a change is based on, and
// answers with that of the plan.
func TestMigrateAPI(t *testing.T) {
	t.Parallel()
	g := servePlan(t, "stick key\n start v2")
	g.goesTo(t, "v2")
	for _, tc := range []struct {
		path, match, body string
		status            int
		etag, text        string
	}{
		{"share", "", `{"rule":"db.tbl","percent":0}`, 428, "", `"error":"say which revision of the plan`},
		{"share", "0", `{"rule":"db.tbl","percent":0}`, 400, "", "If-Match: must be one revision"},
		{"share", `"0"`, `{"rule":"db.tbl","percent":"0"}`, 400, "", "percent: must be a number"},
		{"share", `"0"`, `{"rule":"db.tbl","percent":0,"note":"why","dry_run":true}`, 200, `"0"`, `"moves":{`},
		{"share", `"0"`, `{"rule":"db.tbl","percent":0,"note":"why","dry_run":false}`, 200, `"1"`, `"who":"admin API from 127.0.0.1","note":"why","action":"share"`},
		{"unset", `"0"`, `{"rule":"db.tbl"}`, 412, `"1"`, `"revision":1,"changes":[{"revision":1,`},
		{"undo", `"1"`, `{"revision":7}`, 400, "", "there is no revision 7"},
		{"rollback", "", "", 200, `"2"`, `"action":"rollback"`},
		{"rollback", "", "", 200, `"2"`, `"change":null`},
		{"resume", "", "", 428, "", "If-Match"},
		{"resume", `"2"`, "", 200, `"3"`, `"action":"resume"`},
		{"share", `"3"`, strings.Repeat(" ", 17<<10), 400, "", "at most 16384 bytes"},
	} {
		status, etag, text := g.post(t, tc.path, tc.match, tc.body)
		if status != tc.status || etag != tc.etag || !strings.Contains(text, tc.text) {
			t.Errorf("%s %s %.40s: got %d %s %s", tc.path, tc.match, tc.body, status, etag, text)
		}
	}
	g.goesTo(t, "legacy")
	var plan struct {
		Revision     uint64
		Hold         any
		Stick, Start string
		Rules        []struct {
			Rule    string
			Percent json.Number
		}
	}
	if status := askAdmin(t, http.MethodGet, g.admin, "migration", &plan); status != http.StatusOK || plan.Revision != 3 || plan.Hold != nil ||
		plan.Stick != "key" || plan.Start != "v2" || len(plan.Rules) != 2 || plan.Rules[1].Rule != "db.tbl" || plan.Rules[1].Percent != "0" {
		t.Errorf("got %d %+v", status, plan)
	}
	if status := askAdmin(t, http.MethodPost, g.admin, "migration", nil); status != http.StatusMethodNotAllowed {
		t.Errorf("POST of the plan: %d", status)
	}
}

// post sends a change to the admin API.
func (g *planned) post(t *testing.T, path, match, body string) (status int, etag, text string) {
	t.Helper()
	req, err := http.NewRequest(http.MethodPost, "http://"+g.admin+"/td_postback/migration/"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if match != "" {
		req.Header.Set("If-Match", match)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, resp.Header.Get("ETag"), string(answer)
}

// TestMigrateWithout: a gateway without migrate says what is missing.
func TestMigrateWithout(t *testing.T) {
	t.Parallel()
	admin := freeAddr(t)
	addr := freeAddr(t)
	_, port, _ := net.SplitHostPort(addr)
	serveCaddyfile(t, addr, fmt.Sprintf("{\n%s\n}\nhttp://:%s {\n td_postback us01\n}\n", withAdmin(admin), port))
	for _, line := range []string{"status", "history", "share a.b 5", "share a.b 5 --dry-run", "unset a.b", "rollback", "resume", "undo"} {
		refuses(t, admin, words(line), "there is no plan of the lanes, and everything goes to v2", "stays at v2 with start v2 in it")
	}
	for _, line := range []string{"list", "list --dead", "show 1", "replay --all", "drop 1"} {
		spoolFails(t, admin, words(line), "the gateway has no spool: write spool into td_postback, and reload")
	}
}

// TestMigrateSocket: the commands ask at a socket too, as the systemd unit has it.
func TestMigrateSocket(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "td") //nolint:usetesting // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	g := &planned{admin: "unix/" + dir + "/admin.sock", dir: dir, legacy: startLegacy(t, nil), v2: startRecorder(t, nil)}
	addr := freeAddr(t)
	_, port, _ := net.SplitHostPort(addr)
	g.gateway = serveCaddyfile(t, addr, fmt.Sprintf("{\n%s\n}\nhttp://:%s {\n%s\n}\n", withAdmin(g.admin+"|0600"), port, g.block("")))
	g.says(t, words("share *.* 100"), "Revision 1")
	g.goesTo(t, "v2")
	g.says(t, words("rollback"), "Revision 2")
	g.goesTo(t, "legacy")
	g.says(t, words("status"), "Revision 2", "It is rolled back, by ")
}

// TestMigrateUnwritable: where the plan cannot be written, a share is refused, and a
// rollback holds and says what a restart would do; health is degraded.
func TestMigrateUnwritable(t *testing.T) {
	t.Parallel()
	g := servePlan(t, "start v2")
	g.stop()
	if err := os.RemoveAll(g.planDir()); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(g.planDir(), nil, 0o600); err != nil { // which is no directory
		t.Fatal(err)
	}
	g.restart(t)
	g.checkUnwritable(t, "revision 0, with these shares to v2: *.* 100 %")
	if status, problem := reload(t, g.admin, strings.Replace(g.caddyfile, "grace_period 5s", "grace_period 6s", 1)); status != http.StatusOK {
		t.Fatalf("reload: %d %s", status, problem)
	}
	g.goesTo(t, "legacy")
	g.says(t, words("status"), "It is rolled back, by ", "Degraded: the rollback is in force, but could not be written")
	kill(g.process)
	g.restart(t)
	g.goesTo(t, "v2") // as it was said
	g.says(t, words("status"), "Revision 0")
}

// checkUnwritable goes by v2 first, and ends rolled back.
func (g *planned) checkUnwritable(t *testing.T, restart string) {
	t.Helper()
	g.goesTo(t, "v2")
	for _, line := range []string{"share db.tbl 5", "share *.* 0"} {
		refuses(t, g.admin, words(line), "the plan cannot be written, so nothing has changed")
	}
	g.goesTo(t, "v2")
	g.says(t, words("rollback"), "Rolled back: everything goes to the legacy host", "Not safe yet: the rollback is in force, but could not be written",
		"until then a restart would lift it, and begin with "+restart)
	g.goesTo(t, "legacy")
	refuses(t, g.admin, words("resume"), "the plan cannot be written, so nothing has changed")
	g.goesTo(t, "legacy")
	var health struct {
		Status string
		Plan   struct{ Status, Problem string }
	}
	if status := askAdmin(t, http.MethodGet, g.admin, "health", &health); status != http.StatusOK || health.Status != "degraded" || health.Plan.Status != "degraded" || !strings.Contains(health.Plan.Problem, "cannot be written") {
		t.Errorf("got %d %+v", status, health)
	}
}

// TestMigrateHasAReport: migrate alone switches the report on, and a change shows in it
// within half a second of the next call.
func TestMigrateHasAReport(t *testing.T) {
	t.Parallel()
	admin, addr, dir := freeAddr(t), freeAddr(t), t.TempDir()
	_, port, _ := net.SplitHostPort(addr)
	serveCaddyfile(t, addr, fmt.Sprintf("{\n%s\n storage file_system %s/storage\n}\nhttp://:%s {\n td_postback {\n upstream %s\n migrate {\n legacy %s\n dir %s/plan\n}\n}\n}\n",
		withAdmin(admin), dir, port, startRecorder(t, nil).url(), startLegacy(t, nil).url(), dir))
	shows := func(lane string, events uint64) {
		t.Helper()
		raw(t, addr, post(target, asJSON+"X-TD-Write-Key: "+callersKey+"\r\n", object))
		for asked := time.Now(); ; time.Sleep(10 * time.Millisecond) {
			l, text := callersOf(t, admin)
			if len(l.Rows) == 1 && l.Rows[0].Lanes[lane] == events {
				return
			}
			if time.Since(asked) > 500*time.Millisecond {
				t.Fatalf("%s shows %s", time.Since(asked), text)
			}
		}
	}
	shows("legacy", 1)
	migrateAt(t, admin, words("share *.* 100")...)
	shows("v2", 1)
	migrateAt(t, admin, words("rollback")...)
	shows("legacy", 2)
}
