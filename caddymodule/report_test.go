package caddymodule

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/td-postback/gateway/migration"
)

// TestReportOptions: what is wrong is told with the option, the value and what is allowed.
func TestReportOptions(t *testing.T) {
	for want, r := range map[string]Report{
		"report rows 99: must be between 100 and 100000":                   {Rows: 99},
		"report rows -1: must be between 100 and 100000":                   {Rows: -1},
		"report rows 100001: must be between 100 and 100000":               {Rows: 100_001},
		`report networks "non": must be cidr or none (did you mean none?)`: {Networks: "non"},
		`report networks "whole addresses, please": must be cidr or none`:  {Networks: "whole addresses, please"},
	} {
		r.applyDefaults()
		if err := r.validate(); err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	good := Report{}
	good.applyDefaults()
	if err := good.validate(); err != nil || good.Rows != 10_000 || !strings.HasSuffix(good.Dir, filepath.Join("td_postback", "report")) || good.Networks != "cidr" {
		t.Errorf("got %+v, %v", good, err)
	}
}

// aReport is the options of a report in a new directory.
func aReport(t *testing.T) *Report {
	t.Helper()
	r := &Report{Dir: t.TempDir()}
	r.applyDefaults()
	return r
}

// startReport is a configuration with a report, which Caddy has started and accepted.
func startReport(t *testing.T, options *Report, host string) (*App, *sharedReport) {
	t.Helper()
	a := &App{fingerprints: newFingerprints(new(memoryStorage))}
	s, err := a.useReport(options, host)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Start(); err != nil {
		t.Fatal(err)
	}
	if err := a.Handle(context.Background(), caddy.Event{}); err != nil {
		t.Fatal(err)
	}
	return a, s
}

func countIn(s *sharedReport, table string) {
	s.get().Count(&migration.Call{Time: time.Now(), Database: "db", Table: table, Surface: "post", Result: forwardedResult})
}

// tablesIn is how many events each table has.
func tablesIn(t *testing.T) map[string]uint64 {
	t.Helper()
	shown := shownReport.Load()
	if shown == nil {
		t.Fatal("there is no report")
	}
	tables := map[string]uint64{}
	for _, row := range shown.get().List(time.Now()).Rows {
		tables[row.Table] += row.Events
	}
	return tables
}

// TestReportSurvivesReloads: a reload goes on with the same report, also with other
// options, and a new process with what was saved at the stop.
func TestReportSurvivesReloads(t *testing.T) {
	options := aReport(t)
	_, first := startReport(t, options, "a")
	countIn(first, "t")

	_, second := startReport(t, options, "a")
	if second != first {
		t.Fatal("a reload opens another report")
	}
	first.leave()
	countIn(second, "t")

	other := *options
	other.Rows, other.Networks = minRows, networksNone
	_, third := startReport(t, &other, "a")
	countIn(second, "t") // a call of the old configuration
	countIn(third, "u")
	second.leave()
	if got := tablesIn(t); got["t"] != 3 || got["u"] != 1 {
		t.Errorf("got %v", got)
	}
	if l := third.get().List(time.Now()); l.MaxRows != minRows {
		t.Errorf("%d rows at most", l.MaxRows)
	}
	third.leave()
	if shownReport.Load() != nil {
		t.Error("a report is shown that nobody uses")
	}

	_, fourth := startReport(t, options, "a")
	defer fourth.leave()
	if got := tablesIn(t); got["t"] != 3 || got["u"] != 1 {
		t.Errorf("after a restart: %v", got)
	}
}

// TestReportInMemorySurvivesReloads: also one that cannot be kept is there after a reload
// with other options.
func TestReportInMemorySurvivesReloads(t *testing.T) {
	options := aReport(t)
	if err := os.WriteFile(filepath.Join(options.Dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	options.Dir = filepath.Join(options.Dir, "file", "dir")
	_, first := startReport(t, options, "a")
	countIn(first, "t")
	other := *options
	other.Rows = minRows
	_, second := startReport(t, &other, "a")
	first.leave()
	defer second.leave()
	countIn(second, "t")
	if got, l := tablesIn(t), second.get().List(time.Now()); got["t"] != 2 || l.MaxRows != minRows {
		t.Errorf("got %v of %d rows", got, l.MaxRows)
	}
}

// TestReportInAnotherDirectory: the configuration that runs decides which one is shown.
func TestReportInAnotherDirectory(t *testing.T) {
	_, first := startReport(t, aReport(t), "a")
	countIn(first, "t")
	_, second := startReport(t, aReport(t), "a")
	countIn(second, "u")
	first.leave()
	defer second.leave()
	if got := tablesIn(t); got["t"] != 0 || got["u"] != 1 {
		t.Errorf("got %v", got)
	}
}

// TestReportsAgree: the blocks of a configuration share one report.
func TestReportsAgree(t *testing.T) {
	options := aReport(t)
	a, s := startReport(t, options, "a")
	defer s.leave()
	again, err := a.useReport(options, "b")
	if err != nil || again != s || a.report.host != anyV2Host {
		t.Errorf("got %p, %v, host %s", again, err, a.report.host)
	}
	again.leave()
	for _, change := range []func(*Report){
		func(r *Report) { r.Rows = 200 }, func(r *Report) { r.Dir = t.TempDir() }, func(r *Report) { r.Networks = networksNone },
	} {
		other := *options
		change(&other)
		if got, err := a.useReport(&other, "a"); err == nil || got != nil || !strings.Contains(err.Error(), "another td_postback block has other options") {
			t.Errorf("%+v: got %v, %v", other, got, err)
		}
	}
}

// TestReportIsOnlyOpenedAtAStart: a configuration that is only checked makes no file.
func TestReportIsOnlyOpenedAtAStart(t *testing.T) {
	options := aReport(t)
	options.Dir = filepath.Join(options.Dir, "new")
	s, err := new(App).useReport(options, "a")
	if err != nil {
		t.Fatal(err)
	}
	s.leave()
	if _, err := os.Stat(options.Dir); err == nil {
		t.Error("the directory is there")
	}
}

// TestReportThatCannotBeKept is in memory, and says so as long as it is.
func TestReportThatCannotBeKept(t *testing.T) {
	options := aReport(t)
	file := filepath.Join(options.Dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	options.Dir = filepath.Join(file, "dir")
	_, s := startReport(t, options, "a")
	defer s.leave()
	countIn(s, "t")
	if got := tablesIn(t); got["t"] != 1 {
		t.Errorf("got %v", got)
	}
	notSaved := func() string {
		w := httptest.NewRecorder()
		var listing migration.Listing
		if err := errors.Join(serveCallers(w, nil), json.Unmarshal(w.Body.Bytes(), &listing)); err != nil {
			t.Fatal(err)
		}
		return listing.NotSaved
	}
	if got := notSaved(); !strings.Contains(got, "not a directory") {
		t.Errorf("got %q", got)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	s.warn(s.get().Save(time.Now()))
	if got := notSaved(); got != "" {
		t.Errorf("when it is saved: %q", got)
	}
}

// TestReportInMemory: the sandbox keeps none.
func TestReportInMemory(t *testing.T) {
	stateStays = false
	t.Cleanup(func() { stateStays = true })
	options := aReport(t)
	_, s := startReport(t, options, "a")
	countIn(s, "t")
	s.leave()
	if files, err := os.ReadDir(options.Dir); err != nil || len(files) > 0 {
		t.Errorf("files: %v, %v", files, err)
	}
}

// TestInsteadHost is where a handler's callers are told to send.
func TestInsteadHost(t *testing.T) {
	for want, h := range map[string]Handler{
		"ap01.records.in.treasuredata.com":     {Region: "ap01", Upstream: "http://127.0.0.1:1"},
		"{region}.records.in.treasuredata.com": {Region: "auto"},
	} {
		if got := h.insteadHost(); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	if h := (Handler{Upstream: "http://127.0.0.1:1"}); h.insteadHost() != anyV2Host {
		t.Errorf("got %s", h.insteadHost())
	}
}

// TestCallersAPI is what the admin API answers, with a report and without.
func TestCallersAPI(t *testing.T) {
	w := httptest.NewRecorder()
	if err := serveCallers(w, nil); err == nil || !strings.Contains(err.Error(), "write report into td_postback") {
		t.Errorf("without a report: %v", err)
	}
	a, s := startReport(t, aReport(t), "us01.records.in.treasuredata.com")
	defer s.leave()
	h := stubHandler()
	h.app, h.report = a, s
	sender(t, h, http.MethodPost, benchPath, 300)()
	w = httptest.NewRecorder()
	if err := serveCallers(w, nil); err != nil {
		t.Fatal(err)
	}
	var listing migration.Listing
	if err := json.Unmarshal(w.Body.Bytes(), &listing); err != nil || len(listing.Rows) != 1 {
		t.Fatalf("%v: %s", err, w.Body)
	}
	row := listing.Rows[0]
	if row.Instead == nil || row.Instead.Curl != migration.Curl("us01.records.in.treasuredata.com", "db", "tbl") || row.State != migration.Left {
		t.Errorf("got %+v", row)
	}
	if strings.Contains(w.Body.String(), "0123456789") {
		t.Errorf("a key is in %s", w.Body)
	}
}
