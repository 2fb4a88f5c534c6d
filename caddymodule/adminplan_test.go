package caddymodule

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/td-postback/gateway/migration"
	"github.com/td-postback/gateway/spool"
)

// startMigration is a configuration with a plan and a report, which Caddy has started and
// accepted.
func startMigration(t *testing.T, options *Migrate) (*sharedPlan, *migration.Report) {
	t.Helper()
	a := &App{fingerprints: newFingerprints(new(memoryStorage))}
	report, err := a.useReport(aReport(t), "us01.records.in.treasuredata.com")
	if err != nil {
		t.Fatal(err)
	}
	plan, err := a.usePlan(options)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Start(); err != nil {
		t.Fatal(err)
	}
	if err := a.Handle(context.Background(), caddy.Event{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { plan.leave(); report.leave() })
	return plan, report.get()
}

// planReply is an answer of the admin API's.
type planReply struct {
	status int
	etag   string
	text   string
}

// askPlan asks the admin API. Of a write, match are the lines of If-Match.
func askPlan(t *testing.T, method, path, body string, match ...string) planReply {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), method, "/td_postback/"+path, strings.NewReader(body))
	r.Header["If-Match"] = match
	for _, route := range (adminAPI{}).Routes() {
		if route.Pattern != r.URL.Path {
			continue
		}
		w := httptest.NewRecorder()
		err := route.Handler.ServeHTTP(w, r)
		reply := planReply{w.Code, w.Header().Get("ETag"), w.Body.String()}
		if refused, ok := errors.AsType[caddy.APIError](err); ok {
			reply.status, reply.text = refused.HTTPStatus, refused.Err.Error()
		} else if err != nil {
			reply.status, reply.text = http.StatusInternalServerError, err.Error()
		}
		if strings.Contains(reply.text, testSecret) {
			t.Errorf("%s %s shows the key: %s", method, path, reply.text)
		}
		return reply
	}
	t.Fatalf("there is no route %s", r.URL.Path)
	return planReply{}
}

// answered decodes an answer that must have this status.
func (r planReply) answered(t *testing.T, status int, value any) {
	t.Helper()
	if r.status != status {
		t.Errorf("got %d %s, want %d", r.status, r.text, status)
	} else if err := json.Unmarshal([]byte(r.text), value); err != nil {
		t.Errorf("%v in %s", err, r.text)
	}
}

// changed is an outcome as a client reads it.
type changed struct {
	Revision uint64
	Change   *migration.Change
	Message  string
	Unsaved  string
}

// mustChange makes a change based on this revision, and checks that it makes the next.
func mustChange(t *testing.T, action, body string, base uint64) changed {
	t.Helper()
	var got changed
	reply := askPlan(t, http.MethodPost, "migration/"+action, body, etagOf(base))
	reply.answered(t, http.StatusOK, &got)
	if got.Revision != base+1 || reply.etag != etagOf(base+1) || got.Change == nil || got.Change.Revision != base+1 {
		t.Errorf("%s %s at %d: got %s %+v", action, body, base, reply.etag, got)
	}
	return got
}

// planNow is GET /td_postback/migration.
func planNow(t *testing.T) (now struct {
	Revision     uint64
	Hold         *migration.Hold
	Stick, Start string
	Degraded     string
	Unsaved      string
	Rules        []migration.RuleStatus
	LastChange   *migration.Change `json:"last_change"`
},
) {
	t.Helper()
	reply := askPlan(t, http.MethodGet, "migration", "")
	reply.answered(t, http.StatusOK, &now)
	if reply.etag != etagOf(now.Revision) {
		t.Errorf("ETag %s at revision %d", reply.etag, now.Revision)
	}
	return now
}

// TestPlanRoutes goes through all changes, and looks at the plan and its history.
func TestPlanRoutes(t *testing.T) {
	plan, report := startMigration(t, aPlan(t))
	if got := askPlan(t, http.MethodGet, "migration", ""); got.text != `{"revision":0,"hold":null,"stick":"client","rules":[{"rule":"*.*","percent":0,"events":0,"events_v2":0,"real_percent":null}],"start":"legacy","last_change":null}`+"\n" {
		t.Errorf("the beginning is %s", got.text)
	}
	if got := askPlan(t, http.MethodGet, "migration/history", ""); got.text != "[]\n" {
		t.Errorf("the history is %s", got.text)
	}
	wantLane(t, plan, migration.Legacy)
	c := mustChange(t, "share", `{"rule":"shop.orders","percent":12.34,"note":"first","who":"alice@host"}`, 0)
	if c.Change.Who != "alice@host" || c.Change.Note != "first" || c.Change.Action != migration.ActionShare || c.Message != "" ||
		len(c.Change.Rules) != 1 || *c.Change.Rules[0].To != 12_34 || c.Change.Rules[0].From != nil {
		t.Errorf("got %+v", c.Change)
	}
	mustChange(t, "share", `{"rule":"shop.orders","account":"1234","percent":100,"dry_run":false}`, 1)
	wantLane(t, plan, migration.V2)
	c = mustChange(t, "rollback", "", 2)
	if c.Change.Who != "admin API from 192.0.2.1" {
		t.Errorf("the rollback is by %q", c.Change.Who)
	}
	wantLane(t, plan, migration.Legacy)
	if now := planNow(t); now.Hold == nil || now.Hold.Revision != 3 {
		t.Errorf("got %+v", now)
	}
	mustChange(t, "resume", `{"note":"again"}`, 3)
	wantLane(t, plan, migration.V2)
	mustChange(t, "unset", `{"rule":"shop.orders","account":"1234"}`, 4)
	mustChange(t, "undo", "", 5)
	wantLane(t, plan, migration.V2)
	mustChange(t, "undo", `{"revision":0}`, 6)
	wantLane(t, plan, migration.Legacy)

	report.Count(&migration.Call{Time: time.Now(), Database: "a", Table: "b", Surface: "post", Result: forwardedResult, Lane: migration.Legacy})
	now := planNow(t)
	if now.Revision != 7 || now.Hold != nil || now.LastChange.Action != migration.ActionUndo || len(now.Rules) != 1 || now.Rules[0].Events != 1 || *now.Rules[0].Real != 0 {
		t.Errorf("got %+v", now)
	}
	var history []migration.Change
	askPlan(t, http.MethodGet, "migration/history", "").answered(t, http.StatusOK, &history)
	want := []migration.Action{"share", "share", "rollback", "resume", "unset", "undo", "undo"}
	if !slices.EqualFunc(history, want, func(c migration.Change, action migration.Action) bool { return c.Action == action }) {
		t.Errorf("the history is %+v", history)
	}
}

// TestPlanUnchanged: what changes nothing makes no revision, and says so.
func TestPlanUnchanged(t *testing.T) {
	startMigration(t, aPlan(t))
	mustChange(t, "share", `{"rule":"a.b","percent":5}`, 0)
	for _, tc := range [][]string{
		{"share", `{"rule":"a.b","percent":5.00}`, `"1"`},
		{"unset", `{"rule":"a.c"}`, `"1"`},
		{"undo", `{"revision":1}`, `"1"`},
		{"resume", "", `"1"`},
	} {
		var got changed
		reply := askPlan(t, http.MethodPost, "migration/"+tc[0], tc[1], tc[2])
		reply.answered(t, http.StatusOK, &got)
		if got.Revision != 1 || reply.etag != `"1"` || got.Change != nil || !strings.Contains(got.Message, "nothing has changed") {
			t.Errorf("%s: got %s %s", tc[0], reply.etag, reply.text)
		}
	}
	mustChange(t, "rollback", "", 1)
	if got := askPlan(t, http.MethodPost, "migration/rollback", ""); got.status != http.StatusOK || got.etag != `"2"` || !strings.Contains(got.text, `"change":null`) {
		t.Errorf("a second rollback: %+v", got)
	}
}

// TestPlanBase: a change names the revision that it is based on, a rollback need not.
func TestPlanBase(t *testing.T) {
	startMigration(t, aPlan(t))
	mustChange(t, "share", `{"rule":"a.b","percent":5,"who":"bob@there"}`, 0)
	const body = `{"rule":"a.b","percent":7}`
	for _, tc := range []struct {
		match  []string
		status int
	}{
		{nil, 428},
		{[]string{`1`}, 400},
		{[]string{`W/"1"`}, 400},
		{[]string{`*`}, 400},
		{[]string{``}, 400},
		{[]string{`""`}, 400},
		{[]string{`"1", "2"`}, 400},
		{[]string{`"1"`, `"1"`}, 400},
		{[]string{`"01"`}, 400},
		{[]string{`"+1"`}, 400},
		{[]string{`"-1"`}, 400},
		{[]string{`"1.0"`}, 400},
		{[]string{`""1""`}, 400},
		{[]string{`"1`}, 400},
		{[]string{`"18446744073709551616"`}, 400},
		{[]string{`"18446744073709551615"`}, 412},
		{[]string{`"2"`}, 412},
		{[]string{`"0"`}, 412},
	} {
		got := askPlan(t, http.MethodPost, "migration/share", body, tc.match...)
		if got.status != tc.status || tc.status != 412 && !strings.Contains(got.text, "GET /td_postback/migration") {
			t.Errorf("%q: got %+v, want %d", tc.match, got, tc.status)
		}
	}
	for _, action := range []string{"unset", "undo", "resume"} {
		rule := map[string]string{"unset": `{"rule":"a.b"}`}[action]
		if got := askPlan(t, http.MethodPost, "migration/"+action, rule); got.status != http.StatusPreconditionRequired {
			t.Errorf("%s: got %+v", action, got)
		}
	}
	if got := askPlan(t, http.MethodPost, "migration/rollback", "", `"0"`); got.status != http.StatusPreconditionFailed {
		t.Errorf("a rollback of another plan: %+v", got)
	}
	if got := planNow(t); got.Revision != 1 {
		t.Errorf("something has changed: %+v", got)
	}
	var conflict struct {
		Error    string
		Revision uint64
		Changes  []migration.Change
	}
	reply := askPlan(t, http.MethodPost, "migration/share", body, `"0"`)
	reply.answered(t, http.StatusPreconditionFailed, &conflict)
	if reply.etag != `"1"` || conflict.Revision != 1 || len(conflict.Changes) != 1 || conflict.Changes[0].Who != "bob@there" || !strings.Contains(conflict.Error, "bob@there") {
		t.Errorf("got %+v", reply)
	}
	if got := askPlan(t, http.MethodPost, "migration/share", body, `"2"`); !strings.Contains(got.text, `"changes":[]`) {
		t.Errorf("a revision that is to come: %+v", got)
	}
}

// badPlanBodies are bodies that are refused, with what the error says.
var badPlanBodies = []struct{ action, body, problem string }{
	{"share", "", "must be one JSON object"},
	{"share", "  \n", "must be one JSON object"},
	{"share", "null", "must be one JSON object"},
	{"share", "[]", "must be one JSON object"},
	{"share", `"{}"`, "must be one JSON object"},
	{"share", `{"rule":"a.b","percent":5`, "must be one JSON object"},
	{"share", `{"rule":"a.b","percent":5}}`, "must be one JSON object"},
	{"share", `{"rule":"a.b","percent":5}{}`, "must be one JSON object"},
	{"share", `{"rule":"a.b" "percent":5}`, "must be one JSON object"},
	{"share", `{rule:"a.b"}`, "must be one JSON object"},
	{"share", "rule=a.b&percent=5", "must be one JSON object"},
	{"share", "{}", "rule: is not set"},
	{"share", `{"rule":null,"percent":5}`, "rule: must be a string"},
	{"share", `{"rule":"a.b"}`, "percent: is not set"},
	{"share", `{"rule":"a.b","percent":null}`, "percent: must be a number from 0 to 100"},
	{"share", `{"rule":"*.*","account":null,"percent":100}`, "account: must be a string"},
	{"share", `{"rule":"a.b","percent":5,"dry_run":null}`, "dry_run: must be true or false"},
	{"rollback", `{"local": null}`, "local: must be true or false"},
	{"undo", `{"revision":null}`, "revision: must be a whole number"},
	{"share", `{"rule":5,"percent":5}`, `rule: must be a string`},
	{"share", `{"rule":"a.b","account":1234,"percent":5}`, `account: must be a string, such as "1234"`},
	{"share", `{"rule":"a.b","percent":"5"}`, "percent: must be a number from 0 to 100"},
	{"share", `{"rule":"a.b","percent":"5%"}`, "percent: must be a number from 0 to 100"},
	{"share", `{"rule":"a.b","percent":5.001}`, "percent: must be a number from 0 to 100"},
	{"share", `{"rule":"a.b","percent":100.01}`, "percent: must be a number from 0 to 100"},
	{"share", `{"rule":"a.b","percent":-1}`, "percent: must be a number from 0 to 100"},
	{"share", `{"rule":"a.b","percent":1e1}`, "percent: must be a number from 0 to 100"},
	{"share", `{"rule":"a.b","percent":true}`, "percent: must be a number from 0 to 100"},
	{"share", `{"rule":"a.b","percent":5,"dry_run":"true"}`, "dry_run: must be true or false"},
	{"share", `{"rule":"a.b","percent":5,"note":7}`, "note: must be a string"},
	{"share", `{"rule":"a.b","percent":5,"who":[]}`, "who: must be a string"},
	{"share", `{"rule":"a.b","percent":5,"percent":6}`, "percent: must be given once"},
	{"share", `{"rule":"a.b","Percent":5}`, "did you mean percent?"},
	{"share", `{"rule":"a.b","percent":5,"dryrun":true}`, "did you mean dry_run?"},
	{"share", `{"rule":"a.b","percent":5,"dry_run ":true}`, "did you mean dry_run?"},
	{"share", `{"rule":"a.b","percent":5,"revision":1}`, "it may have account, dry_run, note, percent, rule, who"},
	{"share", `{"rule":"a.b","percent":5,"` + testKeyText + `":1}`, "a field that is not known: it may have"},
	{"share", `{"rule":"` + testKeyText + `","percent":5}`, "the rule must be database.table"},
	{"share", `{"rule":"a.b","account":"` + testKeyText + `","percent":5}`, "the account must be its number"},
	{"share", `{"rule":"*.b","percent":5}`, "the rule must be database.table"},
	{"share", `{"rule":"ab","percent":5}`, "the rule must be database.table"},
	{"share", `{"rule":"a.b","percent":5,"note":"` + strings.Repeat("x", migration.MaxNote+1) + `"}`, "the note has 501 bytes: it may have 500"},
	{"share", `{"rule":"a.b","percent":5,"note":"` + strings.Repeat("x", maxPlanBody) + `"}`, "the body must have at most 16384 bytes"},
	{"share", `{"rule":"a.b","percent":5}` + strings.Repeat(" ", maxPlanBody), "the body must have at most 16384 bytes"},
	{"unset", "", "must be one JSON object"},
	{"unset", `{"rule":"a.b","percent":5}`, "it may have account, note, rule, who"},
	{"unset", `{"rule":"a.b","dry_run":true}`, "it may have account, note, rule, who"},
	{"unset", `{"rule":"*.*"}`, "the default *.* cannot be taken away"},
	{"undo", `{"revision":"1"}`, "revision: must be a whole number"},
	{"undo", `{"revision":-1}`, "revision: must be a whole number"},
	{"undo", `{"revision":1.5}`, "revision: must be a whole number"},
	{"undo", `{"revision":1000}`, "there is no revision 1000"},
	{"undo", `5`, "must be one JSON object"},
	{"rollback", `{"rule":"a.b"}`, "it may have local, note, who"},
	{"rollback", `x`, "must be one JSON object"},
	{"resume", `{"percent":5}`, "it may have local, note, who"},
}

// testKeyText is a write key, as somebody may have it on the clipboard.
const testKeyText = "1234/" + testSecret + testSecret

// TestPlanBodies: what cannot be read, or means nothing, is refused, and changes nothing.
func TestPlanBodies(t *testing.T) {
	startMigration(t, aPlan(t))
	for _, tc := range badPlanBodies {
		got := askPlan(t, http.MethodPost, "migration/"+tc.action, tc.body, `"0"`)
		if got.status != http.StatusBadRequest || !strings.Contains(got.text, tc.problem) {
			t.Errorf("%s %.80s: got %d %s, want %q", tc.action, tc.body, got.status, got.text, tc.problem)
		}
	}
	if got := planNow(t); got.Revision != 0 {
		t.Errorf("something has changed: %+v", got)
	}
}

// TestPlanTexts: no key gets into the history, by whatever field, nor into what is said of
// a time.
func TestPlanTexts(t *testing.T) {
	startMigration(t, aPlan(t))
	mustChange(t, "share", `{"rule":"a.b","percent":5,"note":"as `+testKeyText+` wanted\u0000","who":"TD1 `+testKeyText+`"}`, 0)
	got := askPlan(t, http.MethodGet, "migration/history", "")
	if strings.Contains(got.text, testSecret) || !strings.Contains(got.text, "wanted\ufffd") {
		t.Errorf("the history is %s", got.text)
	}
	got = askPlan(t, http.MethodGet, "migration/audit?since="+testKeyText, "")
	if got.status != http.StatusBadRequest || strings.Contains(got.text, testSecret) || !strings.Contains(got.text, "1234/…") {
		t.Errorf("an audit since a key: %d %s", got.status, got.text)
	}
}

// TestPlanDryRun: a dry run says what would move, and changes nothing. It need not name a
// revision.
func TestPlanDryRun(t *testing.T) {
	plan, report := startMigration(t, aPlan(t))
	mustChange(t, "share", `{"rule":"a.b","percent":50}`, 0)
	for range 3 {
		report.Count(&migration.Call{Time: time.Now(), Database: "shop", Table: "orders", Surface: "post", Result: forwardedResult, Lane: migration.Legacy})
	}
	const body = `{"rule":"shop.*","percent":100,"dry_run":true}`
	for _, match := range [][]string{nil, {`"1"`}} {
		got := askPlan(t, http.MethodPost, "migration/share", body, match...)
		if want := `{"revision":1,"dry_run":true,"moves":{"callers":1,"to_v2":3,"to_legacy":0,"of_callers":1,"of_events":3,"exact":true,"held":false},"fit":{"events_hour":3,"events_7d":3,"events_several_tables":0,"before":[]}}` + "\n"; got.status != http.StatusOK || got.text != want || got.etag != `"1"` {
			t.Errorf("%q: got %+v, want %s", match, got, want)
		}
	}
	for match, status := range map[string]int{`"0"`: http.StatusPreconditionFailed, `*`: http.StatusBadRequest} {
		if got := askPlan(t, http.MethodPost, "migration/share", body, match); got.status != status {
			t.Errorf("%s: got %+v", match, got)
		}
	}
	if got := askPlan(t, http.MethodPost, "migration/share", strings.Replace(body, "shop.*", "*.x", 1)); got.status != http.StatusBadRequest {
		t.Errorf("a bad rule: %+v", got)
	}
	wantLane(t, plan, migration.Legacy)
	if got := planNow(t); got.Revision != 1 || len(got.Rules) != 2 {
		t.Errorf("something has changed: %+v", got)
	}
}

// TestPlanNotSaved: a change that cannot be written is refused, but for a rollback, which
// holds and says so; health is degraded until it is written.
func TestPlanNotSaved(t *testing.T) {
	options := aPlan(t)
	options.Start = "v2"
	if err := os.WriteFile(options.Dir, nil, 0o600); err != nil { // which is no directory
		t.Fatal(err)
	}
	plan, _ := startMigration(t, options)
	if got := askPlan(t, http.MethodPost, "migration/share", `{"rule":"a.b","percent":5}`, `"0"`); got.status != http.StatusServiceUnavailable || !strings.Contains(got.text, "nothing has changed") {
		t.Errorf("a share: %+v", got)
	}
	wantLane(t, plan, migration.V2)
	got := mustChange(t, "rollback", "", 0)
	if !strings.Contains(got.Unsaved, "a restart would lift it") {
		t.Errorf("the rollback: %+v", got)
	}
	wantLane(t, plan, migration.Legacy)
	if now := planNow(t); now.Hold == nil || now.Unsaved == "" || now.Degraded == "" {
		t.Errorf("got %+v", now)
	}
	var health struct {
		Status spool.Health
		Plan   struct {
			Status  spool.Health
			Problem string
		}
	}
	askPlan(t, http.MethodGet, "health", "").answered(t, http.StatusOK, &health)
	if health.Status != spool.HealthDegraded || health.Plan.Status != spool.HealthDegraded || !strings.Contains(health.Plan.Problem, "cannot be written") {
		t.Errorf("got %+v", health)
	}
	if err := os.Remove(options.Dir); err != nil {
		t.Fatal(err)
	}
	if err := plan.get().Save(); err != nil {
		t.Fatal(err)
	}
	if got := askPlan(t, http.MethodGet, "health", ""); got.text != `{"status":"ok","spools":{},"plan":{"status":"ok"}}`+"\n" {
		t.Errorf("the health is %+v", got)
	}
}

// TestWithin: what takes too long is not waited for.
func TestWithin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stuck, of := make(chan bool), newTurn()
		began := time.Now()
		if _, ok := within(of, time.Second, func() bool { return <-stuck }); ok || time.Since(began) != time.Second {
			t.Errorf("after %s: %v", time.Since(began), ok)
		}
		if _, begun, ok := begin(of, time.Second, func() bool { return true }); begun || ok || time.Since(began) != 2*time.Second {
			t.Errorf("a second one, after %s: %v %v", time.Since(began), begun, ok)
		}
		close(stuck)
		if got, ok := within(of, time.Second, func() int { time.Sleep(time.Second - 1); return 7 }); !ok || got != 7 {
			t.Errorf("got %d %v", got, ok)
		}
	})
}

// TestRollbackWaitsForNoTurn: where a rollback is not in force, the next one is at once, also
// while one before it is still on its way to somebody.
func TestRollbackWaitsForNoTurn(t *testing.T) {
	options := aPlan(t)
	options.Start = "v2"
	plan, _ := startMigration(t, options)
	for kind, body := range map[asking]string{askingRollback: "", askingLocal: `{"local":true}`} {
		plan.turns[kind] <- struct{}{} // somebody has it
		began := time.Now()
		got := askPlan(t, http.MethodPost, "migration/rollback", body)
		if took := time.Since(began); got.status != http.StatusOK || took >= diskPatience {
			t.Errorf("%d: got %d %s after %s", kind, got.status, got.text, took)
		}
		wantLane(t, plan, migration.Legacy)
		<-plan.turns[kind]
		resume := `{"local":true}`
		if kind == askingRollback {
			resume = ""
		}
		askPlan(t, http.MethodPost, "migration/resume", resume, etagOf(plan.get().Status().Revision))
		wantLane(t, plan, migration.V2)
	}
}

// TestPlanWithout: without migrate there is nothing to see or to change, and health does
// not speak of it.
func TestPlanWithout(t *testing.T) {
	for _, route := range (adminAPI{}).Routes() {
		path, ok := strings.CutPrefix(route.Pattern, "/td_postback/migration")
		if !ok || path == "/callers" || path == "/audit" { // which are about the report
			continue
		}
		reply := map[string]planReply{}
		for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodHead} {
			reply[method] = askPlan(t, method, "migration"+path, "{}", `"0"`)
		}
		right := http.MethodPost
		if slices.Contains([]string{"", "/history"}, path) {
			right = http.MethodGet
		}
		for method, got := range reply {
			if method == right && (got.status != http.StatusNotFound || !strings.Contains(got.text, "write migrate")) ||
				method != right && (got.status != http.StatusMethodNotAllowed || got.text != "use "+right) {
				t.Errorf("%s %s: got %+v", method, path, got)
			}
		}
	}
	if got := askPlan(t, http.MethodGet, "health", ""); got.text != `{"status":"ok","spools":{}}`+"\n" {
		t.Errorf("the health is %+v", got)
	}
}

// FuzzPlanRequest: what is read of a body is what another reader of JSON finds there, and
// nothing of it is in an error.
func FuzzPlanRequest(f *testing.F) {
	actions := []migration.Action{migration.ActionShare, migration.ActionUnset, migration.ActionUndo, migration.ActionRollback, migration.ActionResume}
	for i, action := range actions {
		for _, tc := range badPlanBodies {
			if tc.action == string(action) {
				f.Add(uint8(i), tc.body)
			}
		}
	}
	f.Add(uint8(0), `{"rule":"shop.orders","account":"1234","percent":12.34,"note":"…","dry_run":false}`)
	f.Add(uint8(2), `{"revision":7}`)
	f.Fuzz(func(t *testing.T, n uint8, body string) {
		action := actions[int(n)%len(actions)]
		got, err := readPlanRequest(io.LimitReader(strings.NewReader(body), maxPlanBody), action)
		if err != nil {
			if strings.Contains(body, testSecret) && strings.Contains(err.Error(), testSecret) {
				t.Errorf("%q: %v", body, err)
			}
			return
		}
		if strings.TrimSpace(body) == "" {
			return
		}
		var other map[string]any
		in := json.NewDecoder(strings.NewReader(body))
		in.UseNumber()
		if err := in.Decode(&other); err != nil {
			t.Fatalf("%q is read as %+v, and is %v", body, got, err)
		}
		if percent, ok := other["percent"].(json.Number); ok != (got.Percent != nil) || ok && exactly(t, percent.String()) != *got.Percent {
			t.Errorf("%q: got %v", body, got.Percent)
		}
		if dry, _ := other["dry_run"].(bool); dry != got.DryRun {
			t.Errorf("%q: got %v", body, got.DryRun)
		}
		for name, value := range map[string]string{"rule": got.Rule, "account": got.Account, "note": got.Note, "who": got.Who} {
			if there, _ := other[name].(string); there != value {
				t.Errorf("%q: %s is %q", body, name, value)
			}
		}
	})
}

// exactly is a number of a percentage in hundredths.
func exactly(t *testing.T, number string) migration.Share {
	t.Helper()
	share, err := migration.ParseShare(number)
	if err != nil {
		t.Errorf("%s was read: %v", number, err)
	}
	return share
}
