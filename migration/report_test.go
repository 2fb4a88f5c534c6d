package migration

import (
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

const chrome = "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36"

var start = time.Date(2026, time.November, 20, 10, 30, 0, 0, time.UTC)

// pixelCall is an ordinary call of a page's.
func pixelCall() *Call {
	return &Call{
		Time: start, Key: "1234/#9f3a1c20b7", Database: "shop", Table: "orders", Surface: "pixel",
		UserAgent: chrome, Referer: "https://shop.example/cart?user=jane", Client: "203.0.113.7",
		Result: "forwarded", Findings: setOf(FromQuery, KeyInURL, AnsweredWithImage),
	}
}

// postCall is an ordinary call of a script's, in v2's form.
func postCall() *Call {
	return &Call{
		Time: start, Key: "1234/#9f3a1c20b7", Database: "shop", Table: "orders", Surface: "post",
		UserAgent: "python-requests/2.31.0", Client: "203.0.113.7", Result: "forwarded",
	}
}

func setOf(all ...Finding) (set Findings) {
	for _, f := range all {
		set.Add(f)
	}
	return set
}

// inMemory is a report without a file.
func inMemory(rows int) *Report { return newReport(Config{Rows: rows}) }

// count counts a call after a change of it.
func count(r *Report, c *Call, change func(*Call)) bool {
	changed := *c
	change(&changed)
	return r.Count(&changed)
}

func TestEachPartOfACallerMakesARow(t *testing.T) {
	r := inMemory(0)
	r.Count(pixelCall())
	for name, change := range map[string]func(*Call){
		"key":      func(c *Call) { c.Key = "1234/#0000000000" },
		"database": func(c *Call) { c.Database = "shop2" },
		"table":    func(c *Call) { c.Table = "orders2" },
		"surface":  func(c *Call) { c.Surface = "get" },
		"agent":    func(c *Call) { c.UserAgent = strings.Replace(chrome, "Chrome", "Firefox", 1) },
		"source":   func(c *Call) { c.Referer = "https://other.example/" },
		"network":  func(c *Call) { c.Referer = "" },
	} {
		before := len(r.List(start).Rows)
		count(r, pixelCall(), change)
		if after := len(r.List(start).Rows); after != before+1 {
			t.Errorf("another %s: %d rows, then %d", name, before, after)
		}
	}
	for name, change := range map[string]func(*Call){
		"time":     func(c *Call) { c.Time = c.Time.Add(time.Hour) },
		"version":  func(c *Call) { c.UserAgent = strings.Replace(chrome, "126", "127", 1) },
		"page":     func(c *Call) { c.Referer = "https://shop.example/" },
		"client":   func(c *Call) { c.Client = "198.51.100.1" }, // of a page, it is not looked at
		"lane":     func(c *Call) { c.Lane = Legacy },
		"result":   func(c *Call) { c.Result = "spooled" },
		"findings": func(c *Call) { c.Findings = 0 },
	} {
		before := len(r.List(start).Rows)
		count(r, pixelCall(), change)
		if after := len(r.List(start).Rows); after != before {
			t.Errorf("another %s: %d rows, then %d", name, before, after)
		}
	}
}

func TestRow(t *testing.T) {
	r := inMemory(0)
	wants := r.Count(pixelCall())
	r.AddExample(pixelCall(), Redact("GET", "td_write_key=1234%2Fabc&id=1", nil))
	count(r, pixelCall(), func(c *Call) { c.Time, c.Lane, c.Result = start.Add(2*time.Hour), Legacy, "upstream_4xx" })
	count(r, pixelCall(), func(c *Call) {
		c.Time, c.Events = start.Add(72*time.Hour), 10
		c.Findings.Add(ValueFilled)
	})
	if !wants {
		t.Error("the first call is no example")
	}
	now := start.Add(73 * time.Hour)
	l := r.List(now)
	if len(l.Rows) != 1 {
		t.Fatalf("%d rows", len(l.Rows))
	}
	got := fmt.Sprintf("%+v", l.Rows[0])
	want := fmt.Sprintf("%+v", Row{
		Key: "1234/#9f3a1c20b7", Database: "shop", Table: "orders", Surface: "pixel", Agent: "Chrome", Source: "shop.example",
		State: Left, FirstSeen: start, LastSeen: start.Add(72 * time.Hour), Events24h: 10, Events7d: 12, Events: 12,
		Lanes:   map[string]uint64{"v2": 11, "legacy": 1},
		Results: map[string]uint64{"forwarded": 11, "upstream_4xx": 1},
		Findings: []RowFinding{
			{"from_query", "changed", 12, start.Add(72 * time.Hour), FromQuery.Advice()},
			{"key_in_url", "changed", 12, start.Add(72 * time.Hour), KeyInURL.Advice()},
			{"answered_with_image", "changed", 12, start.Add(72 * time.Hour), AnsweredWithImage.Advice()},
			{"value_filled", "changed", 10, start.Add(72 * time.Hour), ValueFilled.Advice()},
		},
		Examples: []RowExample{{"GET ?td_write_key=…&id=string", []string{"from_query", "key_in_url", "answered_with_image"}}},
	})
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	for after, want := range map[time.Duration][2]uint64{23 * time.Hour: {10, 12}, 26 * time.Hour: {0, 12}, 6 * 24 * time.Hour: {0, 10}, 8 * 24 * time.Hour: {0, 0}} {
		row := r.List(start.Add(72*time.Hour + after)).Rows[0]
		if row.Events24h != want[0] || row.Events7d != want[1] || row.Events != 12 {
			t.Errorf("%v after the last call: %d and %d of %d events", after, row.Events24h, row.Events7d, row.Events)
		}
	}
}

// Who sends what v2 would not take is left for a week; who sends v2's form can go.
func TestStates(t *testing.T) {
	r := inMemory(0)
	state := func(after time.Duration) State { return r.List(start.Add(after)).Rows[0].State }
	r.Count(postCall())
	if got := state(time.Hour); got != Ready {
		t.Errorf("v2's form: %s", got)
	}
	if last, then := state(7*24*time.Hour), state(7*24*time.Hour+time.Second); last != Ready || then != Gone {
		t.Errorf("7 days after the last call: %s, and a second later: %s", last, then)
	}
	count(r, postCall(), func(c *Call) { c.Findings = setOf(TimeIgnored, UnusualKey) })
	if got := state(time.Hour); got != Ready {
		t.Errorf("what is only noted: %s", got)
	}
	count(r, postCall(), func(c *Call) { c.Findings = setOf(KeyInURL) })
	if got := state(6 * 24 * time.Hour); got != Left {
		t.Errorf("a key in the URL: %s", got)
	}
	count(r, postCall(), func(c *Call) { c.Time = start.Add(6 * 24 * time.Hour) })
	if got := state(6 * 24 * time.Hour); got != Left {
		t.Errorf("6 days after the last call in the old form: %s", got)
	}
	if got := state(8 * 24 * time.Hour); got != Ready {
		t.Errorf("8 days after the last call in the old form: %s", got)
	}
	if got := state(14 * 24 * time.Hour); got != Gone {
		t.Errorf("8 days after the last call: %s", got)
	}
}

// What a caller does not do any more, its owner need not be told.
func TestCurrentFindings(t *testing.T) {
	r := inMemory(0)
	at := func(days int, findings Findings) {
		count(r, postCall(), func(c *Call) { c.Time, c.Findings = start.Add(time.Duration(days)*24*time.Hour), findings })
	}
	current := func(now int) string {
		row := r.List(start.Add(time.Duration(now) * 24 * time.Hour)).Rows[0]
		names := string(row.State)
		for _, f := range row.Findings {
			names += " " + f.Name
		}
		return names
	}
	at(0, setOf(KeyInURL, PlainHTTP))
	at(3, setOf(PlainHTTP, CutKey))
	if got := current(3); got != "left key_in_url plain_http cut_key" {
		t.Errorf("at first: %s", got)
	}
	at(8, setOf(PlainHTTP))
	if got := current(8); got != "left plain_http cut_key" {
		t.Errorf("8 days after the last key in the URL: %s", got)
	}
	at(16, 0)
	if got := current(16); got != "ready to leave the gateway" {
		t.Errorf("8 days after the last finding: %s", got)
	}
	at(17, setOf(PlainHTTP))
	if got := r.List(start).Rows[0].Findings; len(got) != 1 || got[0].Events != 4 || !got[0].LastSeen.Equal(start.Add(17*24*time.Hour)) {
		t.Errorf("of one that comes back: %+v", got)
	}
	if got := current(40); got != "gone plain_http" {
		t.Errorf("of one that has gone, what it did last: %s", got)
	}
}

// Who has no key, and goes nowhere, is no caller that has something to change.
func TestStrangers(t *testing.T) {
	for _, tc := range []struct {
		key      string
		findings Findings
		want     State
	}{
		{"", setOf(NotFound), Stranger},
		{"", 0, Stranger}, // it was refused before its key was looked for
		{"1234/#9f3a1c20b7", setOf(NotFound), Left},
		{"", setOf(NotFound, JSSDK), Left},
		{"", setOf(InvalidPath), Left},
	} {
		r := inMemory(0)
		count(r, postCall(), func(c *Call) { c.Key, c.Findings = tc.key, tc.findings })
		if got := r.List(start.Add(time.Hour)).Rows[0].State; got != tc.want {
			t.Errorf("%q with %v: %s", tc.key, tc.findings, got)
		}
		if got := r.List(start.Add(8 * 24 * time.Hour)).Rows[0].State; got != Gone {
			t.Errorf("%q with %v, 8 days later: %s", tc.key, tc.findings, got)
		}
	}
}

func TestExamples(t *testing.T) {
	r := inMemory(0)
	forms := []Findings{0, setOf(KeyInURL), setOf(FromQuery), setOf(FromQuery, KeyInURL)}
	for i, form := range forms {
		with := func(c *Call) { c.Findings = form }
		if wants := count(r, postCall(), with); wants != (i < maxExamples) {
			t.Errorf("form %d: wants an example is %v", i, wants)
		}
		c := postCall()
		with(c)
		r.AddExample(c, "POST "+fmt.Sprint(i))
		r.AddExample(c, "another of the form")
		if count(r, postCall(), with) {
			t.Errorf("form %d: wants a second example", i)
		}
	}
	if got := fmt.Sprint(r.List(start).Rows[0].Examples); got != "[{POST 0 []} {POST 1 [key_in_url]} {POST 2 [from_query]}]" {
		t.Error(got)
	}
	r.AddExample(pixelCall(), "of a caller that has no row")
	if rows := r.List(start).Rows; len(rows) != 1 {
		t.Errorf("%d rows", len(rows))
	}
}

// A flood of callers makes no flood of examples.
func TestFewExamples(t *testing.T) {
	r := inMemory(0)
	wants := func(minute time.Duration) (n int) {
		for i := range 3 * examplesAMinute {
			if count(r, postCall(), func(c *Call) { c.Table, c.Time = fmt.Sprint("t", minute, i), start.Add(minute) }) {
				n++
			}
		}
		return n
	}
	for minute := range 3 {
		if got := wants(time.Duration(minute) * time.Minute); got != examplesAMinute {
			t.Errorf("%d examples in a minute", got)
		}
	}
}

// What a caller may choose without end is bounded: results in number, all texts in
// length.
func TestBoundedTexts(t *testing.T) {
	r := inMemory(0)
	long := strings.Repeat("é", 5000)
	c := &Call{
		Time: start, Key: long, Database: long, Table: long, Surface: long, UserAgent: long, Origin: "https://" + strings.Repeat("x", 5000),
		Referer: long, Client: long, Result: long, Findings: math.MaxUint64 >> (64 - findings), Events: -1,
	}
	r.Count(c)
	r.AddExample(c, long)
	for i := range 100 {
		count(r, c, func(c *Call) { c.Result = fmt.Sprint("result", i) })
	}
	for i := range 5000 {
		count(r, c, func(c *Call) { c.Result += strings.Repeat("\xff\x00", i) })
	}
	l := r.List(start)
	if len(l.Rows) != 1 || l.Rows[0].Events != 5101 || len(l.Rows[0].Results) > maxResults+1 {
		t.Fatalf("%d rows: %+v", len(l.Rows), l.Rows)
	}
	row := l.Rows[0]
	for name, text := range map[string]struct {
		text  string
		limit int
	}{
		"key": {row.Key, maxFingerprint}, "database": {row.Database, maxName}, "table": {row.Table, maxName}, "surface": {row.Surface, maxSurface},
		"agent": {row.Agent, maxAgent}, "source": {row.Source, maxSource}, "example": {row.Examples[0].Request, maxExample},
	} {
		expectFit(t, text.text, text.limit)
		if name != "source" && !strings.HasPrefix(text.text, "éé") || !strings.Contains(text.text, cutMark) && name != "source" && name != "agent" {
			t.Errorf("%s: %q", name, text.text)
		}
	}
	for result := range row.Results {
		expectFit(t, result, maxResult)
	}
}

// A canary key stands wherever a caller may put one, and is nowhere in the report.
func TestNoKeyInTheReport(t *testing.T) {
	r := inMemory(0)
	const secret = "cafe0123456789abcdef0123456789abcdef0123"
	for _, key := range []string{"1234/" + secret, "1234%2F" + secret, "TD1 1234/" + secret, "td_write_key=1234/" + secret, secret, "https://shop.example/" + secret, "https://x:" + secret + "@shop.example"} {
		for _, change := range []func(*Call){
			func(c *Call) { c.UserAgent = key },
			func(c *Call) { c.UserAgent = "agent " + key },
			func(c *Call) { c.UserAgent = "Mozilla/5.0 (compatible; " + key + ") " + key },
			func(c *Call) { c.Origin = key },
			func(c *Call) { c.Origin = "https://" + key },
			func(c *Call) { c.Referer = key },
			func(c *Call) { c.Client = key },
			func(c *Call) { c.Database, c.Table = "1234", secret },
			func(c *Call) { c.Database, c.Table = "", secret }, // TD1 1234/… in the path
			func(c *Call) { c.Database, c.Table = "1234_"+secret, "td_write_key_"+secret },
		} {
			for _, call := range []*Call{pixelCall(), postCall()} {
				count(r, call, change)
				change(call)
				r.AddExample(call, Redact("POST", key+"&a="+key+"&"+key+"=1", []byte(`{"`+key+`":"`+key+`"}`)))
			}
		}
	}
	expectNoSecret(t, r, secret[:16])
}

func expectNoSecret(t *testing.T, r *Report, secret string) {
	t.Helper()
	var out strings.Builder
	l := r.List(start)
	if err := l.WriteCSV(&out); err != nil {
		t.Fatal(err)
	}
	_, _ = fmt.Fprintf(&out, "%+v", l)
	if _, behind, found := strings.Cut(out.String(), secret); found {
		t.Errorf("the secret is in the report, before %.100s", behind)
	}
}

// Few rows, and many callers of which some come much and most come once: who has more
// than 2N/rows of the events has a row, no row counts too much, each says how much it
// may have missed, and rows and others are together all that came.
func TestRareCallersGiveWay(t *testing.T) {
	const rows, events = 100, 100_000
	for name, next := range map[string]func(*rand.Rand, int) int{
		"even":         func(random *rand.Rand, _ int) int { return random.IntN(10 * rows) },
		"skewed":       func(random *rand.Rand, _ int) int { return int(math.Exp(random.Float64() * 10)) },
		"once each":    func(_ *rand.Rand, i int) int { return i },
		"in turns":     func(_ *rand.Rand, i int) int { return i % (rows + 1) },
		"large at end": func(_ *rand.Rand, i int) int { return max(i, events*9/10) },
		"large first":  func(_ *rand.Rand, i int) int { return max(0, i-events/10) },
		"large between": func(random *rand.Rand, i int) int {
			if random.IntN(30) == 0 {
				return -random.IntN(3)
			}
			return i
		},
	} {
		r := inMemory(rows)
		random := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // G404: a test's
		sent := map[string]uint64{}
		var all uint64
		for i := range events {
			table := fmt.Sprint("t", next(random, i))
			n := 1 + i%3
			count(r, postCall(), func(c *Call) { c.Table, c.Events = table, n })
			sent[table] += uint64(n)
			all += uint64(n)
		}
		l := r.List(start)
		if len(l.Rows) > rows {
			t.Errorf("%s: %d rows", name, len(l.Rows))
		}
		counted := l.Others.Events
		has := map[string]bool{}
		for _, row := range l.Rows {
			has[row.Table] = true
			counted += row.Events
			if truth := sent[row.Table]; row.Events > truth || row.Events+row.Error < truth || row.Error > all/rows {
				t.Errorf("%s: %s has %d events, at most %d more; it sent %d", name, row.Table, row.Events, row.Error, truth)
			}
		}
		if counted != all || l.Others.Events7d+sum(l.Rows) != all {
			t.Errorf("%s: %d events were counted, of %d", name, counted, all)
		}
		for table, n := range sent {
			if !has[table] && (n > 2*all/rows || n > l.Others.Error) {
				t.Errorf("%s: %s has no row, and %d of %d events; the error is said to be %d", name, table, n, all, l.Others.Error)
			}
		}
	}
}

func sum(rows []Row) (events uint64) {
	for _, row := range rows {
		events += row.Events7d
	}
	return events
}

// 1,000,000 callers take at most 16 MiB, and those that come often have rows.
func TestMillionCallers(t *testing.T) {
	before := heapInUse()
	r := inMemory(0)
	const callers, often = 1_000_000, 50
	c := pixelCall()
	for i := range callers {
		c.Time = start.Add(time.Duration(i) * time.Millisecond)
		c.Findings = setOf(FromQuery, KeyInURL)
		c.Referer = fmt.Sprintf("https://shop-%d.example/cart", i)
		if r.Count(c) || i > callers-DefaultRows { // an example for each row that is left
			r.AddExample(c, strings.Repeat("x", maxExample))
		}
		if i%20 == 0 {
			c.Referer = fmt.Sprintf("https://often-%d.example/cart", i/20%often)
			r.Count(c)
		}
	}
	used := heapInUse() - before
	t.Logf("%d callers: %d bytes", callers, used)
	if used > 16<<20 {
		t.Errorf("%d callers: %d bytes", callers, used)
	}
	l := r.List(c.Time)
	found := 0
	for _, row := range l.Rows {
		if strings.HasPrefix(row.Source, "often-") {
			found++
		}
	}
	if len(l.Rows) != DefaultRows || found != often {
		t.Errorf("%d rows, and %d of %d callers that come often", len(l.Rows), found, often)
	}
	if got := l.Others.Events + sum(l.Rows); got != callers*21/20 {
		t.Errorf("%d events", got)
	}
}

// Rows that are as large as they become take no more.
func TestLargeRows(t *testing.T) {
	before := heapInUse()
	r := inMemory(0)
	for i := range DefaultRows {
		for j := range maxExamples {
			count(r, pixelCall(), func(c *Call) {
				c.Referer, c.Result = fmt.Sprintf("https://shop-%d.example/cart", i), fmt.Sprint("result", j)
				c.UserAgent = fmt.Sprint(chrome, " build/", i)
				c.Time = start.Add(time.Duration(j) * weekHours / maxExamples * time.Hour)
				c.Findings.Add(InvalidPath + Finding(j)) //nolint:gosec // G115: it is small
				r.Count(c)
				r.AddExample(c, strings.Repeat("x", maxExample))
			})
		}
	}
	used := heapInUse() - before
	t.Logf("%d bytes", used)
	if l := r.List(start); used > 16<<20 || len(l.Rows) != DefaultRows {
		t.Errorf("%d rows: %d bytes", len(l.Rows), used)
	}
}

func heapInUse() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc) //nolint:gosec // G115: a size
}

// A caller that has gone makes room after a while, however much it sent.
func TestForgottenCallers(t *testing.T) {
	r := inMemory(10)
	for i := range 10 {
		count(r, postCall(), func(c *Call) { c.Table, c.Events = fmt.Sprint("t", i), 1000 })
	}
	count(r, postCall(), func(c *Call) { c.Table, c.Time = "t3", start.Add(20*24*time.Hour) })
	r.forget(start.Add(29 * 24 * time.Hour))
	if l := r.List(start); len(l.Rows) != 10 {
		t.Errorf("%d rows after 29 days", len(l.Rows))
	}
	r.forget(start.Add(31 * 24 * time.Hour))
	for i := range 3 { // the last of them has to take one
		for j := range 5 {
			count(r, postCall(), func(c *Call) { c.Table, c.Time = fmt.Sprint("new", i, j), start.Add(31*24*time.Hour) })
		}
		r.forget(start.Add(31 * 24 * time.Hour))
	}
	l := r.List(start.Add(31 * 24 * time.Hour))
	if len(l.Rows) != 10 || l.Others.Events+eventsOf(l.Rows) != 10*1000+1+15 || l.Others.Events7d+sum(l.Rows) != 15 {
		t.Errorf("%d rows, %+v", len(l.Rows), l.Others)
	}
	stays := false
	for _, row := range l.Rows {
		stays = stays || row.Table == "t3"
	}
	if !stays {
		t.Error("a caller is forgotten that was there 11 days ago")
	}
}

// A report that is told to have fewer rows keeps those that had one with the most events,
// and counts on.
func TestOtherRowsAndNetworks(t *testing.T) {
	r := inMemory(100)
	for i := range 100 {
		count(r, postCall(), func(c *Call) { c.Table, c.Events = fmt.Sprint("t", i), i+1 })
	}
	r.Configure(Config{Rows: 10, NoNetworks: true}, start)
	l := r.List(start)
	if len(l.Rows) != 10 || l.MaxRows != 10 || l.Rows[9].Events != 91 || l.Others.Events != 90*91/2 || l.Others.Rows != 90 || l.Others.Error != 90 {
		t.Errorf("%d rows of %d, the last with %d events, others %+v", len(l.Rows), l.MaxRows, l.Rows[len(l.Rows)-1].Events, l.Others)
	}
	count(r, postCall(), func(c *Call) { c.Table = "new" })
	l = r.List(start)
	if row := l.Rows[slices.IndexFunc(l.Rows, func(r Row) bool { return r.Table == "new" })]; len(l.Rows) != 10 || row.Source != "" || row.Error != 91 {
		t.Errorf("a new one: %+v", row)
	}
	r.Configure(Config{Rows: 20}, start)
	count(r, postCall(), func(c *Call) { c.Table = "more" })
	if l = r.List(start); len(l.Rows) != 11 || l.Others.Events+eventsOf(l.Rows) != 100*101/2+2 {
		t.Errorf("%d rows, others %+v", len(l.Rows), l.Others)
	}
}

// A machine without a clock of its own begins at 1970. What is known of a caller stays.
func TestCallsBeforeTheClockIsSet(t *testing.T) {
	r := inMemory(2)
	r.Count(pixelCall())
	count(r, postCall(), func(c *Call) { c.Findings = setOf(CutKey) })
	unset := time.Unix(100, 0)
	count(r, pixelCall(), func(c *Call) { c.Time = unset })
	r.forget(unset)
	if l := r.List(unset); l.Rows[0].Events+l.Rows[1].Events != 3 {
		t.Errorf("got %+v", l.Rows)
	}
	now := start.Add(time.Hour)
	r.forget(now)
	l := r.List(now)
	if len(l.Rows) != 2 {
		t.Fatalf("%d rows", len(l.Rows))
	}
	for _, row := range l.Rows {
		if !row.FirstSeen.Equal(start) || !row.LastSeen.Equal(start) || row.Events24h != 1 || row.State != Left && row.Surface == "pixel" {
			t.Errorf("got %+v", row)
		}
	}
	count(r, postCall(), func(c *Call) { c.Time, c.Table = unset, "other" }) // one of them gives way
	count(r, postCall(), func(c *Call) { c.Time, c.Table = now, "other" })
	l = r.List(now)
	if row := l.Rows[slices.IndexFunc(l.Rows, func(r Row) bool { return r.Table == "other" })]; !row.FirstSeen.Equal(now) || row.Events != 2 || row.Events7d != 1 {
		t.Errorf("of a caller that was new then: %+v", row)
	}
	if l.Others.Events24h != 1 {
		t.Errorf("others: %+v", l.Others)
	}
}

// A clock that was ahead goes right again. Who called while it was ahead is gone after a
// week all the same, and forgotten after 30 days.
func TestCallsOfAClockThatWasAhead(t *testing.T) {
	r := inMemory(0)
	count(r, pixelCall(), func(c *Call) { c.Time = start.Add(3 * 365 * 24 * time.Hour) })
	r.forget(start)
	row := r.List(start).Rows[0]
	if row.State != Left || !row.FirstSeen.Equal(start) || !row.LastSeen.Equal(start) || !row.Findings[0].LastSeen.Equal(start) {
		t.Errorf("when it is right: %+v", row)
	}
	if got := r.List(start.Add(8 * 24 * time.Hour)).Rows[0].State; got != Gone {
		t.Errorf("8 days later: %s", got)
	}
	r.forget(start.Add(31 * 24 * time.Hour))
	if l := r.List(start); len(l.Rows) > 0 {
		t.Errorf("31 days later: %+v", l.Rows)
	}
}

func eventsOf(rows []Row) (events uint64) {
	for _, row := range rows {
		events += row.Events
	}
	return events
}

func TestCountAllocatesNothing(t *testing.T) {
	r := inMemory(0)
	ios := postCall()
	ios.UserAgent, ios.Client = "My%20App/12 CFNetwork/978.0.7 Darwin/18.6.0", "2001:db8:1234:5678::1"
	mixed := pixelCall()
	mixed.Referer = "HTTPS://Shop.Example/"
	for name, c := range map[string]*Call{"post": postCall(), "pixel": pixelCall(), "ios": ios, "mixed case": mixed} {
		r.Count(c)
		r.AddExample(c, "")
		if n := testing.AllocsPerRun(100, func() { r.Count(c) }); n > 0 {
			t.Errorf("%s: %.0f allocations", name, n)
		}
	}
}

// Calls, lists and rows that give way, all at once.
func TestAllAtOnce(t *testing.T) {
	r := inMemory(20)
	var wg sync.WaitGroup
	const workers, calls = 4, 3000
	for w := range workers {
		wg.Go(func() {
			for i := range calls {
				c := postCall()
				c.Table = fmt.Sprint("t", i*(w+1)%50)
				if r.Count(c) {
					r.AddExample(c, "POST")
				}
				if i%100 == 0 {
					r.List(start)
					r.forget(start)
				}
			}
		})
	}
	wg.Wait()
	if l := r.List(start); l.Others.Events+sum(l.Rows) != workers*calls {
		t.Errorf("%d events of %d", l.Others.Events+sum(l.Rows), workers*calls)
	}
}

// BenchmarkCount is what counting costs a call: of one caller, of many, and of callers
// that were never seen.
func BenchmarkCount(b *testing.B) {
	known := func(b *testing.B, calls ...*Call) {
		r := inMemory(0)
		for _, c := range calls {
			r.Count(c)
			r.AddExample(c, "")
		}
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			for i := 0; pb.Next(); i++ {
				r.Count(calls[i%len(calls)])
			}
		})
	}
	b.Run("post", func(b *testing.B) { known(b, postCall()) })
	b.Run("pixel", func(b *testing.B) { known(b, pixelCall()) })
	b.Run("callers=10000", func(b *testing.B) {
		calls := make([]*Call, DefaultRows)
		for i := range calls {
			calls[i] = pixelCall()
			calls[i].Referer = fmt.Sprintf("https://shop-%d.example/", i)
		}
		known(b, calls...)
	})
	b.Run("unknown", func(b *testing.B) {
		r := inMemory(0)
		c := pixelCall()
		i := 0
		b.ReportAllocs()
		for b.Loop() {
			i++
			c.Client, c.Referer = fmt.Sprintf("2001:db8:%x::1", i&0xffff), ""
			r.Count(c)
		}
	})
}

func BenchmarkList(b *testing.B) {
	r := inMemory(0)
	for i := range DefaultRows {
		count(r, pixelCall(), func(c *Call) { c.Table = fmt.Sprint(i) })
	}
	for b.Loop() {
		r.List(start)
	}
}
