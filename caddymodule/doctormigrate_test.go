package caddymodule

import (
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/td-postback/gateway/migration"
	"github.com/td-postback/gateway/postback"
)

// migrating is the healthy configuration with these options of td_postback and of migrate.
// Its state is where nobody looks.
func migrating(t *testing.T, options, migrate string) *examined {
	t.Helper()
	return examineText(t, strings.Replace(healthy, "td_postback us01", "td_postback "+options+"\nmigrate {\n"+migrate+"\n}\n}", 1))
}

// TestDoctorLooksAtMigrate: what migrate needs, and what goes together with it.
func TestDoctorLooksAtMigrate(t *testing.T) {
	for _, fine := range []*examined{
		migrating(t, "us01 {", ""), migrating(t, "us01 {", "legacy in.treasuredata.com\nresolve 203.0.113.7:443"),
		migrating(t, "us01 {\nsurfaces postback", "dir /var/lib/plan"), migrating(t, "{\nregion ap01", "legacy https://tokyo.in.treasuredata.com:443"),
	} {
		if all := checkConfiguration(fine); len(all) > 0 {
			t.Errorf("%+v", all)
		}
	}
	for name, test := range map[string]struct {
		options, migrate string
		severity         severity
		texts            []string
	}{
		"a stand-in":            {"us01 {", "legacy http://127.0.0.1:9001", bites, []string{"http://127.0.0.1:9001, and not to Treasure Data's legacy host", "Take `legacy` out"}},
		"a password":            {"us01 {", "legacy http://user:secret@127.0.0.1:9001", losesRecords, []string{"does not start", "…@127.0.0.1:9001"}},
		"another region's":      {"us01 {", "legacy https://tokyo.in.treasuredata.com", losesRecords, []string{"host of region ap01, and `region` is us01", "write region `ap01`"}},
		"one region's, for all": {"us01 {", "legacy eu01.in.treasuredata.com", losesRecords, []string{"region eu01"}},
		"no host":               {"us01 {", "legacy \"a b\"", losesRecords, []string{"does not start", "migrate legacy \"a b\": must be"}},
		"pass_thru":             {"us01 {\npass_thru", "", bites, []string{"`pass_thru` does nothing beside `migrate`", "a.example on :80", "before td_postback"}},
		"a relative directory":  {"us01 {", "dir plan", bites, []string{"directory plan of `migrate` is relative", "dir /var/lib/td-postback/plan"}},
		"a relative report":     {"us01 {\nreport {\ndir state\n}", "", bites, []string{"directory state of `report`", "dir /var/lib/td-postback/report"}},
	} {
		t.Run(name, func(t *testing.T) {
			all := checkConfiguration(migrating(t, test.options, test.migrate))
			only(t, all, test.severity, test.texts...)
			for _, f := range all {
				if strings.Contains(f.what+f.instead, "secret") {
					t.Errorf("a password is in %+v", f)
				}
			}
		})
	}
	only(t, checkOptions(migrating(t, "us01 {\nhandoff", "")), losesRecords, "does not start", "migrate")
	only(t, checkMigrate(migrating(t, "{\nupstream http://127.0.0.1:9000", "")), losesRecords, "does not start", "migrate legacy is not set")
	only(t, checkMigrate(migrating(t, "auto {", "legacy in.treasuredata.com")), losesRecords, "`region` is auto")
}

// TestDoctorLooksForTheWayToRollBack: who has `migrate` must be able to roll back, and all of
// the traffic.
func TestDoctorLooksForTheWayToRollBack(t *testing.T) {
	off := strings.Replace(healthy, "td_postback us01", "td_postback us01 {\nmigrate\n}", 1)
	off = strings.Replace(off, "{\n", "{\nadmin off\n", 1)
	only(t, checkConfiguration(examineText(t, off)), bites, "`admin off`", "nobody can roll back", "td-migrate")
	if all := checkRollback(examineText(t, "{\nadmin off\n}\n:8080 {\ntd_postback us01\n}\n")); len(all) > 0 {
		t.Errorf("without migrate: %+v", all)
	}
	mixed := "http://a.example {\ntd_postback us01 {\nmigrate\n}\n}\nhttp://b.example {\ntd_postback us01\n}\n"
	only(t, checkRollback(examineText(t, mixed)), bites, "b.example on :80", "also under a rollback", "Write `migrate`")
}

// TestDoctorComparesBlocks: of the plan and of the report there is one.
func TestDoctorComparesBlocks(t *testing.T) {
	two := func(a, b string) *examined {
		return examineText(t, "http://a.example {\ntd_postback us01 {\n"+a+"\n}\n}\nhttp://b.example {\ntd_postback us01 {\n"+b+"\n}\n}\n")
	}
	if all := checkState(two("migrate {\nlegacy in.treasuredata.com\n}", "migrate")); len(all) > 0 {
		t.Errorf("%+v", all)
	}
	if all := checkState(two("report", "report {\nrows 10000\n}")); len(all) > 0 {
		t.Errorf("%+v", all)
	}
	for _, option := range []string{"start v2", "stick key", "dir /b"} {
		only(t, checkState(two("migrate", "migrate {\n"+option+"\n}")), losesRecords, "two td_postback blocks have `migrate` with different options", "snippet")
	}
	only(t, checkState(two("migrate\nspool nats nats://a.example", "migrate\nspool nats nats://b.example")), losesRecords, "two td_postback blocks have `spool nats` with different options, and share one plan")
	if all := checkState(two("migrate\nspool nats nats://a.example", "spool nats nats://b.example")); len(all) > 0 {
		t.Errorf("a block without migrate: %+v", all)
	}
	for _, option := range []string{"rows 500", "networks none", "dir /b"} {
		only(t, checkState(two("report", "report {\n"+option+"\n}")), losesRecords, "two td_postback blocks have `report` with different options")
	}
}

// TestDoctorLooksAtState: directories that cannot be used, and that a gateway has.
func TestDoctorLooksAtState(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	block := func(plan, report string) *examined {
		return migrating(t, "us01 {\nreport {\ndir "+report+"\n}", "dir "+plan)
	}
	if all := probeState(block(dir+"/a/plan", dir+"/b/report")); len(all) > 0 {
		t.Errorf("%+v", all)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("the doctor has made %v", entries)
	}
	only(t, probeState(block(file, dir+"/report")), bites, "The plan cannot be kept in "+file, "Nobody can move requests", "`dir` in `migrate`")
	only(t, probeState(block(dir+"/plan", file+"/x")), bites, "The report cannot be kept in "+file+"/x", "`dir` in `report`")

	s, err := migration.OpenPlan(migration.PlanConfig{Path: filepath.Join(dir, "plan", planFile)})
	if err != nil {
		t.Fatal(err)
	}
	only(t, probeState(block(dir+"/plan", dir+"/report")), inOrder, "A gateway that runs has the plan in "+dir+"/plan", "a `dir` of its own into `migrate`")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if all := probeState(block(dir+"/plan", dir+"/report")); len(all) > 0 {
		t.Errorf("when the gateway has ended: %+v", all)
	}
}

// TestDoctorAsksTheLegacyHost: it answers, or another does, or nobody.
func TestDoctorAsksTheLegacyHost(t *testing.T) {
	var asked *http.Request
	status, refusal := http.StatusForbidden, (*postback.Refusal)(nil)
	legacy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = r
		if refusal != nil {
			writeRefusal(w, r, refusal)
			return
		}
		w.WriteHeader(status)
	}))
	addr := legacy.Listener.Addr().String()
	e := migrating(t, "us01 {\ndial_timeout 2s", "legacy http://legacy.example\nresolve "+addr)
	for code, want := range map[int]severity{403: inOrder, 400: inOrder, 404: inOrder, 200: bites, 301: bites, 429: bites, 503: bites} {
		status = code
		if all := probeLegacies(e); len(all) != 1 || all[0].severity != want || (want == inOrder) != (all[0].instead == "") || !strings.Contains(all[0].what, "legacy host legacy.example") {
			t.Errorf("%d: %+v", code, all)
		}
		if asked.Method != http.MethodPost || asked.Host != "legacy.example" || asked.Header.Get("X-TD-Write-Key")+asked.Header.Get("Authorization")+asked.URL.RawQuery != "" {
			t.Errorf("it sent %+v", asked)
		}
	}
	for _, refusal = range []*postback.Refusal{postback.LoopDetected, postback.MissingKey} {
		only(t, probeLegacies(e), losesRecords, "the legacy host legacy.example leads to the gateway", "resolve 203.0.113.7:443")
	}
	legacy.Close()
	only(t, probeLegacies(e), losesRecords, "takes no connection")
	if all := probeLegacies(examineText(t, healthy)); len(all) > 0 {
		t.Errorf("without migrate: %+v", all)
	}
	nowhere := migrating(t, "us01 {\ndial_timeout 2s", "legacy http://nosuch.invalid")
	only(t, probeLegacies(nowhere), losesRecords, "nosuch.invalid has no address", "`legacy` and `resolve` in `migrate`", "--offline")
}

// TestLeadsHere: a name that leads to this machine leads to the gateway, but for one that
// says itself that it does.
func TestLeadsHere(t *testing.T) {
	own, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	addresses := map[string]string{"legacy.example": "203.0.113.7", "hosts.example": "127.0.0.1", "six.example": "::1", "mapped.example": "::ffff:127.0.0.1"}
	for _, one := range own {
		addresses["own.example"] = netip.MustParsePrefix(one.String()).Addr().String()
	}
	lookUp := func(host string) []netip.Addr {
		if addresses[host] == "" {
			return nil
		}
		return []netip.Addr{netip.MustParseAddr(addresses[host])}
	}
	for host, want := range map[string]bool{
		"legacy.example": false, "nosuch.example": false, "127.0.0.1": false, "localhost": false,
		"hosts.example": true, "six.example": true, "mapped.example": true, "own.example": true,
	} {
		if got := leadsHere(host, lookUp); got != want {
			t.Errorf("%s: got %v", host, got)
		}
	}
	for resolve, want := range map[string]string{"": "legacy.example", "203.0.113.7:443": "203.0.113.7", "[::1]:443": "::1"} {
		if got := dialHost(&Migrate{Resolve: resolve}, &url.URL{Host: "legacy.example:443"}); got != want {
			t.Errorf("%q: got %q", resolve, got)
		}
	}
}

// TestDoctorCountsBothHosts: each has connections of its own, and a queue of its own.
func TestDoctorCountsBothHosts(t *testing.T) {
	with, without := migrating(t, "us01 {\nmax_conns 1000", ""), examineText(t, strings.Replace(healthy, "td_postback us01", "td_postback us01 {\nmax_conns 1000\n}", 1))
	if len(checkFiles(without, 2*2*1000+otherFiles)) > 0 {
		t.Error("too many files without migrate")
	}
	const enoughFiles = 2*2*1000*(1+3) + otherFiles // to v2, and of each kind to the legacy host
	only(t, checkFiles(with, enoughFiles-1), bites, "max_conns")
	if all := checkFiles(with, enoughFiles); len(all) > 0 {
		t.Errorf("%+v", all)
	}
	with, without = migrating(t, "us01 {\nspool", ""), examineText(t, strings.Replace(healthy, "td_postback us01", "td_postback us01 {\nspool\n}", 1))
	enough := int64(len(without.blocks))*defaultMaxBuffered + 2*minHeadroom
	if all := checkMemory(without, enough, enough); len(all) > 0 {
		t.Errorf("%+v", all)
	}
	only(t, checkMemory(with, enough, enough), losesRecords, "max_buffered")
	if all := checkMemory(with, enough+minHeadroom, enough+minHeadroom); len(all) > 0 {
		t.Errorf("%+v", all)
	}
}
