package migration

import (
	"encoding/csv"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
)

// audited counts one call of each of some callers, and judges them a minute later.
func audited(callers ...Findings) *Audit {
	r := inMemory(0)
	for i, found := range callers {
		count(r, postCall(), func(c *Call) { c.Table, c.Findings = fmt.Sprint("t", i), found })
	}
	return r.List(start.Add(time.Minute)).Audit(start)
}

// TestVerdict: the worst finding of any caller decides.
func TestVerdict(t *testing.T) {
	for _, tc := range []struct {
		callers []Findings
		want    Verdict
		reason  string
	}{
		{nil, VerdictNot, "No caller was seen in this time, so nothing is known."},
		{[]Findings{0}, VerdictReady, "All 1 callers send what v2 takes as it is."},
		{[]Findings{0, setOf(TimeIgnored), setOf(LegacyRefused, BodyCut), setOf(RequestTimeout)}, VerdictReady, "All 4 callers send what v2 takes as it is."},
		{[]Findings{0, setOf(KeyInURL)}, VerdictChanges, "1 of 2 callers send what the gateway makes fit for v2: they can be moved, and need the gateway."},
		{[]Findings{setOf(KeyInURL, TimeIgnored), setOf(MissingWriteKey), 0}, VerdictNot, "1 of 3 callers send what is refused on the way to v2, and lost when they are moved."},
	} {
		a := audited(tc.callers...)
		if a.Verdict != tc.want || a.Reason != tc.reason || len(a.Callers) != len(tc.callers) {
			t.Errorf("%v: got %s: %s", tc.callers, a.Verdict, a.Reason)
		}
	}
}

// TestVerdictOfEachFinding: by its kind, but for that of a slow caller.
func TestVerdictOfEachFinding(t *testing.T) {
	want := map[FindingKind]Verdict{Changed: "ready with changes", Refused: "not ready", Noted: "ready"}
	for f := range findings {
		expected := want[f.Kind()]
		if f == RequestTimeout {
			expected = "ready"
		}
		if a := audited(setOf(f)); a.Verdict != expected || a.Callers[0].Verdict != expected || a.Findings[0].Name != f.String() || a.Findings[0].Advice != f.Advice() {
			t.Errorf("%s: got %+v", f, a)
		}
	}
}

// TestAuditSince: what nobody has done since does not count, nor who was not there.
func TestAuditSince(t *testing.T) {
	r := inMemory(0)
	hour := func(n int) time.Time { return start.Add(time.Duration(n) * time.Hour) }
	count(r, postCall(), func(c *Call) { c.Table, c.Findings = "gone", setOf(MissingWriteKey) })
	for n, found := range []Findings{setOf(MissingWriteKey, KeyInURL), setOf(KeyInURL), 0} {
		count(r, postCall(), func(c *Call) { c.Table, c.Findings, c.Time, c.Events = "mended", found, hour(n), n+1 })
	}
	for since, want := range map[int]string{
		0: "not ready key_in_url 3, missing_write_key 1", 1: "ready with changes key_in_url 3", 2: "ready ",
	} {
		a := r.List(hour(3)).Audit(hour(since).Add(999 * time.Millisecond)) // rows have whole seconds
		i := slices.IndexFunc(a.Callers, func(c AuditedCaller) bool { return c.Table == "mended" })
		found := make([]string, 0, 2)
		for _, f := range a.Callers[i].Findings {
			found = append(found, fmt.Sprint(f.Name, " ", f.Events))
		}
		slices.Sort(found)
		if since == 0 && (len(a.Callers) != 2 || a.Findings[0].Callers != 2 || a.Findings[0].Events != 2) {
			t.Errorf("got %+v", a)
		}
		if got := fmt.Sprint(a.Verdict, " ", strings.Join(found, ", ")); got != want || len(a.Callers) > 1 && since > 0 {
			t.Errorf("since %d: got %s of %d callers", since, got, len(a.Callers))
		}
	}
}

// TestAuditIsSorted: the worst comes first.
func TestAuditIsSorted(t *testing.T) {
	r := inMemory(0)
	for i, tc := range []struct {
		found  Findings
		events int
	}{{setOf(TimeIgnored), 9}, {setOf(KeyInURL), 8}, {setOf(FromQuery, KeyInURL), 3}, {setOf(MissingWriteKey), 2}, {setOf(UnknownKey), 1}} {
		count(r, postCall(), func(c *Call) { c.Table, c.Findings, c.Events = fmt.Sprint("t", i), tc.found, tc.events })
	}
	a := r.List(start).Audit(start)
	names := make([]string, 0, len(a.Findings))
	tables := make([]string, 0, len(a.Callers))
	for _, c := range a.Callers {
		tables = append(tables, c.Table)
	}
	for _, f := range a.Findings {
		names = append(names, fmt.Sprint(f.Name, " ", f.Events, "/", f.Callers))
	}
	if got := strings.Join(tables, " "); got != "t3 t4 t1 t2 t0" {
		t.Errorf("callers: %s", got)
	}
	if got := strings.Join(names, " "); got != "missing_write_key 2/1 unknown_key 1/1 key_in_url 11/2 from_query 3/1 time_ignored 9/1" {
		t.Errorf("findings: %s", got)
	}
}

// TestAuditOfOthers: what a caller sends whose row gave way decides, too, and is in the file.
func TestAuditOfOthers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "callers.db")
	r := open(t, path, 1)
	for n := range 3 {
		count(r, postCall(), func(c *Call) { c.Table, c.Findings = fmt.Sprint("rare", n), setOf(MissingWriteKey) })
	}
	r.Count(postCall())
	check := func(when string, l *Listing) {
		t.Helper()
		a := l.Audit(start)
		if a.Verdict != VerdictNot || len(a.Callers) != 2 || a.Callers[0].Key != "others" || a.Callers[0].Events != 3 || a.Findings[0].Events != 3 {
			t.Errorf("%s: %+v", when, a)
		}
	}
	check("before", r.List(start))
	save(t, r)
	shut(t, r)
	r = open(t, path, 1)
	check("after a restart", r.List(start))
	// A row of the file for which there is no room is one of the others.
	for range 9 {
		count(r, pixelCall(), func(c *Call) { c.Findings = setOf(KeyInURL) })
	}
	if a := r.List(start).Audit(start); a.Callers[0].Events != 4 || a.Callers[1].Surface != "pixel" {
		t.Errorf("%+v", a.Callers)
	}
	shut(t, r)
}

// TestFileWithoutFindingsOfOthers: a file of a version that did not have them is read.
func TestFileWithoutFindingsOfOthers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "callers.db")
	r := open(t, path, 1)
	r.Count(pixelCall())
	r.Count(postCall())
	save(t, r)
	if err := r.store.db.Update(func(tx *bolt.Tx) error { return tx.Bucket(othersBucket).Delete([]byte(foundKey)) }); err != nil {
		t.Fatal(err)
	}
	shut(t, r)
	r = open(t, path, 1)
	if l := r.List(start); l.Others.Events != 1 || len(l.Others.Findings) != 0 || len(l.Rows) != 1 {
		t.Errorf("%+v", l)
	}
	shut(t, r)
}

// TestFindingsOfOthersAfterAClockThatWasAhead: they count from now on no longer than others.
func TestFindingsOfOthersAfterAClockThatWasAhead(t *testing.T) {
	r := inMemory(1)
	ahead := start.Add(1000 * time.Hour)
	for n := range 2 {
		count(r, postCall(), func(c *Call) { c.Time, c.Table, c.Findings = ahead, fmt.Sprint("t", n), setOf(MissingWriteKey) })
	}
	r.forget(start)
	if o := r.List(start).Others; !o.LastSeen.Equal(start) || len(o.Findings) != 1 || !o.Findings[0].LastSeen.Equal(start) {
		t.Errorf("the others are %+v", o)
	}
}

func TestAuditAsJSON(t *testing.T) {
	text, err := json.Marshal(audited())
	if err != nil || string(text) != `{"time":"2026-11-20T10:31:00Z","since":"2026-11-20T10:30:00Z","verdict":"not ready",`+
		`"reason":"No caller was seen in this time, so nothing is known.","findings":[],"callers":[]}` {
		t.Errorf("%s, %v", text, err)
	}
	text, err = json.Marshal(audited(setOf(KeyInURL)))
	found := `{"name":"key_in_url","kind":"changed","events":1,"last_seen":"2026-11-20T10:30:00Z","advice":"` + KeyInURL.Advice() + `"`
	if err != nil || !strings.Contains(string(text), `"verdict":"ready with changes"`) || !strings.Contains(string(text), `"findings":[`+found+`,"callers":1}]`) ||
		!strings.HasSuffix(string(text), `"callers":[{"key":"1234/#9f3a1c20b7","database":"shop","table":"t0","surface":"post","agent":"python-requests","source":"203.0.113.0/24",`+
			`"verdict":"ready with changes","last_seen":"2026-11-20T10:30:00Z","events":1,"lanes":{"v2":1},"findings":[`+found+`}]}]}`) {
		t.Errorf("%s, %v", text, err)
	}
}

func TestAuditAsCSV(t *testing.T) {
	var out strings.Builder
	if err := audited(setOf(TimeIgnored), setOf(KeyInURL)).WriteCSV(&out); err != nil {
		t.Fatal(err)
	}
	want := "verdict,key,database,table,surface,agent,source,last_seen,events,findings,advice\n" +
		`ready with changes,all,,,,,,2026-11-20T10:30:00Z,2,"key_in_url 1, time_ignored 1","` + KeyInURL.Advice() + " " + TimeIgnored.Advice() + "\"\n" +
		`ready with changes,1234/#9f3a1c20b7,shop,t1,post,python-requests,203.0.113.0/24,2026-11-20T10:30:00Z,1,key_in_url 1,"` + KeyInURL.Advice() + "\"\n" +
		`ready,1234/#9f3a1c20b7,shop,t0,post,python-requests,203.0.113.0/24,2026-11-20T10:30:00Z,1,time_ignored 1,"` + TimeIgnored.Advice() + "\"\n"
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
	out.Reset()
	if err := audited().WriteCSV(&out); err != nil || !strings.HasSuffix(out.String(), "\nnot ready,all,,,,,,,0,,\n") {
		t.Errorf("nobody: %s, %v", out.String(), err)
	}
}

// FuzzAuditCSV: no cell is one that a spreadsheet runs.
func FuzzAuditCSV(f *testing.F) {
	for _, text := range []string{`=cmd|' /C calc'!A0`, "+1", "-1", "@SUM(1)", "\t=1", "\r=1", "＝1", `a"b`, "a,b", "a\nb", ""} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		found := []RowFinding{{Name: text, Kind: text, Advice: text, LastSeen: start}}
		l := &Listing{Time: start, Rows: []Row{{Key: text, Database: text, Table: text, Surface: text, Agent: text, Source: text, LastSeen: start, Findings: found}}}
		var out strings.Builder
		if err := l.Audit(start).WriteCSV(&out); err != nil {
			t.Fatal(err)
		}
		lines, err := csv.NewReader(strings.NewReader(out.String())).ReadAll()
		if err != nil || len(lines) != 3 {
			t.Fatalf("%q: %v", out.String(), err)
		}
		for _, cell := range slices.Concat(lines[1], lines[2]) {
			if cell != "" && strings.ContainsAny(cell[:1], "=+-@\t\r") {
				t.Errorf("a cell is %q", cell)
			}
		}
	})
}
