package console

import (
	"bytes"
	"fmt"
	"net/url"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/html"
)

var now = time.Date(2026, 11, 28, 3, 0, 0, 0, time.UTC)

// quietPage is that of a gateway that has just started.
func quietPage() *Page {
	history := new(History)
	return &Page{Now: now, Gateway: "gw-1", Version: "1.0", Started: now.Add(-time.Hour), Recent: history.Recent(&Reading{At: now})}
}

// busyPage has something of everything.
func busyPage() *Page {
	p := quietPage()
	p.Token = "token"
	history := new(History)
	reading := func(ago time.Duration, count uint64) *Reading {
		return &Reading{At: now.Add(-ago), Kept: count, Delivered: 2 * count, Totals: []Total{
			{"v2", "forwarded", ToV2, 100 * count}, {"legacy", "forwarded", ToLegacy, 10 * count},
			{"v2", "spooled", Kept, count}, {"v2", "missing_write_key", Refused, count}, {"v2", "upstream_5xx", Lost, count},
		}, Times: map[string]Times{"v2": {[]float64{0.01, 0.1, 1}, []uint64{50 * count, 99 * count, 100 * count}, 100 * count}}}
	}
	for i := range steps {
		history.Add(reading(time.Duration(steps-i)*Step, uint64(i)))
	}
	p.Recent = history.Recent(reading(0, uint64(steps)))
	quarter := Percent(2500)
	p.Hosts = []Host{{"us01.records.in.treasuredata.com", "v2", CircuitClosed, &Failure{now.Add(-time.Minute), 503, "busy"}}, {"in.treasuredata.com", "legacy", CircuitUnknown, nil}}
	p.Books = []Book{{"post", 10, 5, 2, 1, 1, 1, 0}}
	p.Spools = []Spool{{Place: "/var/spool", Health: HealthDegraded, Available: true, Bytes: 900, MaxBytes: 1000, MaxDead: 100, Queues: []Queue{{"https://v2", 1000, 2, now.Add(-48 * time.Hour), true, 1}}}}
	p.Plan = &Plan{Revision: 41, Hold: &Hold{now, "ops@host", "3 a.m.", true}, Stick: "client", Rules: []Rule{{"*.*", "", 0, nil, 0}, {"shop.orders", "1234", quarter, &quarter, 7}},
		History: []Change{{41, now, "ops@host", "why", "rollback", false}, {40, now, "ops@host", "", "share (shop.orders 25 %)", true}}, Degraded: "the disk", Unsaved: "a restart would lift it", Gateways: []Gateway{{"gw-1", true, 41, now, ""}, {"gw-2", false, 40, now, "it has not been heard of"}}}
	p.Report = &Report{Time: now, NotSaved: "no directory", Others: 5,
		Tables: List[Table]{Rows: []Table{{"shop.orders", &quarter, true, &quarter, 1, 7, 2, 1, []string{"from_query"}, now}}},
		Keys:   List[Key]{Rows: []Key{{"1234/#9f3a1c20b7", 1, 7, 1, 2, []string{"key_in_url"}, now}}},
		Callers: List[Caller]{Rows: []Caller{{ID: "abc", Key: "1234/#9f3a1c20b7", Table: "shop.orders", Surface: "post", Agent: "curl", Source: "192.0.2.0/24", State: "left", FirstSeen: now, LastSeen: now,
			Events7d: 7, Lanes: []Count{{"v2", 7}}, Results: []Count{{"forwarded", 7}}, Findings: []Finding{{"key_in_url", "changed", "Send the key in a header.", 7}},
			Examples: []Example{{"POST {\"a\":string}", []string{"key_in_url"}}}, Curl: "curl -X POST", Tag: "<script>fetch()</script>"}}}}
	p.Caller = &p.Report.Callers.Rows[0]
	p.Refusals = []RefusalKind{{"missing_write_key", "v2", 90, 100, "POST {\"a\":string}", "Send the key."}}
	p.Calls = []Call{{now, "shop.orders", "post", "1234/#9f3a1c20b7", "v2", "forwarded", 200, time.Millisecond}}
	p.Letters = &Letters{Spool: "/var/spool", Queue: "https://v2", Next: 7, List: []Letter{{7, "/postback/v3/event/shop/orders", "1234/#9f3a1c20b7", now, now, 10, 400, "refused", "no object", "POST {\"a\":string}"}}}
	p.Trial = &Trial{Rule: "shop.orders", Account: "1234", Percent: "25", Revision: 41, Callers: 1, OfCallers: 2, ToV2: 10, Of: 20}
	p.Audit = &Audit{"not ready", false, "1 of 2 callers send what is refused.", 24 * time.Hour, []AuditFinding{{Finding{"key_in_url", "changed", "Send the key in a header.", 7}, 1}}}
	p.Notice = &Notice{Level: Good, Text: "Rolled back."}
	return p
}

// views are all that can be looked at.
var views = []string{"", "caller=abc", "dead=%2Fvar%2Fspool&queue=https%3A%2F%2Fv2", "part=body", "rule=shop.orders&percent=25"}

func render(t testing.TB, p *Page, query string) *html.Node {
	t.Helper()
	values, err := url.ParseQuery(query)
	if err != nil {
		t.Fatal(err)
	}
	view := ParseView(values)
	out, err := Render(p, &view)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := html.Parse(bytes.NewReader(out))
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

func elements(doc *html.Node, name string) (found []*html.Node) {
	for n := range doc.Descendants() {
		if n.Type == html.ElementNode && (name == "" || n.Data == name) {
			found = append(found, n)
		}
	}
	return found
}

func attribute(n *html.Node, name string) string {
	for _, a := range n.Attr {
		if a.Key == name {
			return a.Val
		}
	}
	return ""
}

func text(n *html.Node) string {
	var out strings.Builder
	for d := range n.Descendants() {
		if d.Type == html.TextNode {
			out.WriteString(d.Data)
		}
	}
	return out.String()
}

func byID(doc *html.Node, id string) *html.Node {
	for _, n := range elements(doc, "") {
		if attribute(n, "id") == id {
			return n
		}
	}
	return nil
}

// TestPageNeedsNothingElse: no view has script or style in it, or leads to another host,
// so that a strict policy takes nothing from it. What has an ID has it alone, and what
// names one names one that is there.
func TestPageNeedsNothingElse(t *testing.T) {
	t.Parallel()
	for name, p := range map[string]*Page{"quiet": quietPage(), "busy": busyPage()} {
		for _, view := range views {
			doc := render(t, p, view)
			ids := map[string]bool{}
			for _, n := range elements(doc, "") {
				if id := attribute(n, "id"); id != "" {
					if ids[id] {
						t.Errorf("%s, %q: the ID %s is there twice", name, view, id)
					}
					ids[id] = true
				}
				checkHarmless(t, n)
			}
			for _, n := range elements(doc, "") {
				if label := attribute(n, "aria-labelledby"); label != "" && !ids[label] {
					t.Errorf("%s, %q: there is no %s", name, view, label)
				}
			}
			if len(elements(doc, "h1")) != 1 {
				t.Errorf("%s, %q: %d h1", name, view, len(elements(doc, "h1")))
			}
		}
	}
}

// checkHarmless fails on what runs, or leads elsewhere.
func checkHarmless(t *testing.T, n *html.Node) {
	t.Helper()
	switch n.Data {
	case "script":
		if attribute(n, "src") != "?part=script" || n.FirstChild != nil {
			t.Errorf("a script of its own: %s", text(n))
		}
	case "style", "iframe", "object", "embed", "base", "img":
		t.Errorf("a %s", n.Data)
	}
	for _, a := range n.Attr {
		switch {
		case a.Key == "style" || strings.HasPrefix(a.Key, "on"):
			t.Errorf("%s has %s=%q", n.Data, a.Key, a.Val)
		case slices.Contains([]string{"href", "src", "action", "formaction"}, a.Key) && !strings.HasPrefix(a.Val, "?") && !strings.HasPrefix(a.Val, "#"):
			t.Errorf("%s leads to %q", n.Data, a.Val)
		}
	}
}

// hostile is what callers may send as a name.
const hostile = `"'><script>alert(1)</script><img src=x onerror=alert(1)>{{.}}javascript:alert(1)` + "\u202e"

// TestNamesAreNoMarkup writes the hostile name into every text of the page.
func TestNamesAreNoMarkup(t *testing.T) {
	t.Parallel()
	p := busyPage()
	texts := 0
	spoil(reflect.ValueOf(p).Elem(), &texts)
	if texts < 60 {
		t.Fatalf("only %d texts", texts)
	}
	p.Report.Callers.Rows[0].ID = "abc"
	for _, view := range views {
		doc := render(t, p, view)
		for _, n := range elements(doc, "") {
			checkHarmless(t, n)
		}
		if view == "" && !strings.Contains(text(byID(doc, "callers")), hostile) {
			t.Error("the name is not there as it is")
		}
	}
}

// spoil writes the hostile name into all texts of a value.
func spoil(v reflect.Value, texts *int) {
	switch v.Kind() {
	case reflect.String:
		if v.CanSet() {
			v.SetString(hostile)
			*texts++
		}
	case reflect.Pointer:
		if !v.IsNil() {
			spoil(v.Elem(), texts)
		}
	case reflect.Slice:
		for i := range v.Len() {
			spoil(v.Index(i), texts)
		}
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			return
		}
		for _, field := range v.Fields() {
			spoil(field, texts)
		}
	default: // no text
	}
}

// TestHostileView: what stands in the page's own address is no markup either.
func TestHostileView(t *testing.T) {
	t.Parallel()
	query := url.Values{}
	for _, name := range []string{"caller", "said", "tables_sort", "tables_page", "keys_sort", "callers_sort", "callers_page", "rule", "account", "percent"} {
		query.Set(name, hostile)
	}
	for _, n := range elements(render(t, busyPage(), query.Encode()), "") {
		checkHarmless(t, n)
	}
}

// TestEveryPictureHasATable beside it, and a text.
func TestEveryPictureHasATable(t *testing.T) {
	t.Parallel()
	doc := render(t, busyPage(), "")
	pictures := 0
	for _, section := range elements(doc, "section") {
		for _, svg := range elements(section, "svg") {
			if attribute(svg, "aria-hidden") == "true" {
				continue
			}
			pictures++
			if attribute(svg, "role") != "img" || attribute(svg, "aria-label") == "" || len(elements(section, "table")) == 0 {
				t.Error("a picture without a text or a table")
			}
		}
	}
	if pictures != 1 {
		t.Errorf("%d pictures", pictures)
	}
	for _, input := range elements(doc, "input") {
		if attribute(input, "type") != "hidden" && input.Parent.Data != "label" {
			t.Errorf("the field %s has no label", attribute(input, "name"))
		}
	}
}

// TestActions: without a token, nothing on the page can change anything. With one, every
// form that can has it.
func TestActions(t *testing.T) {
	t.Parallel()
	for _, token := range []string{"", "token"} {
		for _, view := range views {
			p := busyPage()
			p.Token = token
			posts := 0
			for _, form := range elements(render(t, p, view), "form") {
				if attribute(form, "method") != "post" {
					continue
				}
				posts++
				has := slices.ContainsFunc(elements(form, "input"), func(n *html.Node) bool {
					return attribute(n, "name") == "token" && attribute(n, "value") == token
				})
				if !has {
					t.Errorf("%q: a form without a token", view)
				}
			}
			if token == "" && posts > 0 {
				t.Errorf("%q: %d forms without actions", view, posts)
			}
		}
	}
}

// TestRollbackIsInSight on every view, as a button or as a command.
func TestRollbackIsInSight(t *testing.T) {
	t.Parallel()
	for _, view := range views {
		p := busyPage()
		p.Plan.Hold = nil
		if top := text(byID(render(t, p, view), "top")); !strings.Contains(top, "Send everything to the legacy host") {
			t.Errorf("%q: %s", view, top)
		}
		p.Token = ""
		if top := text(byID(render(t, p, view), "top")); !strings.Contains(top, "caddy td-migrate rollback") {
			t.Errorf("%q, no actions: %s", view, top)
		}
	}
	if top := text(byID(render(t, quietPage(), ""), "top")); strings.Contains(top, "Roll back") {
		t.Error("nothing to roll back without a plan")
	}
}

// TestManyRows: 20,000 rows are 50 on a page, and its size does not grow with them.
func TestManyRows(t *testing.T) {
	t.Parallel()
	p := busyPage()
	p.Report = &Report{}
	for i := range 20_000 {
		p.Report.Callers.Rows = append(p.Report.Callers.Rows, Caller{ID: fmt.Sprint(i), Agent: fmt.Sprintf("agent%05d", 19_999-i), Events7d: uint64(i)})
	}
	for query, want := range map[string]string{
		"":                                  "agent00000",
		"callers_page=400":                  "agent19950",
		"callers_page=9999999":              "agent19950",
		"callers_sort=agent&callers_page=2": "agent00050",
	} {
		doc := render(t, p, query)
		rows := elements(byID(doc, "callers"), "tr")
		if len(rows) != 1+pageSize || !strings.Contains(text(rows[1]), want) {
			t.Errorf("%q: %d rows, the first is %s, want %s", query, len(rows), text(rows[1]), want)
		}
	}
	view := ParseView(url.Values{})
	out, _ := Render(p, &view)
	if len(out) > 100_000 {
		t.Errorf("%d bytes", len(out))
	}
}

// TestNotKnown: what could not be had is not said to be none, or nobody.
func TestNotKnown(t *testing.T) {
	t.Parallel()
	p := busyPage()
	p.Hosts[0].Last = &Failure{Time: now, Status: 503}
	p.Plan = &Plan{Revision: 41, Hold: &Hold{Time: now}}
	p.Letters = &Letters{Spool: "/var/spool", Queue: "https://v2", Problem: "the cluster does not answer"}
	doc := render(t, p, "")
	if said := text(byID(doc, "hosts")); !strings.Contains(said, "503") || len(elements(byID(doc, "hosts"), "q")) != 0 {
		t.Error(said)
	}
	if said := text(byID(doc, "plan")); strings.Contains(said, " by ") || strings.Contains(said, "sticks") || strings.Contains(said, "Nobody") || !strings.Contains(said, "Not known") {
		t.Error(said)
	}
	said := text(byID(render(t, p, "dead=x&queue=y"), "letters"))
	if strings.Contains(said, "none here") || !strings.Contains(said, "The cluster does not answer.") {
		t.Error(said)
	}
}

// TestSorted: each head says which way its rows are sorted by it, and they are.
func TestSorted(t *testing.T) {
	t.Parallel()
	day := now.Add(-24 * time.Hour)
	callers := List[Caller]{Rows: []Caller{
		{Agent: "a", State: "a", Table: "a", Key: "a", Events7d: 1, LastSeen: day},
		{Agent: "b", State: "b", Table: "b", Key: "b", Events7d: 2, LastSeen: now, Findings: []Finding{{}}},
	}}
	for _, c := range callerColumns {
		view := ParseView(url.Values{"callers_sort": {c.name}})
		s := show(&view, listCallers, &callers, callerColumns)
		want := map[string]string{"a": "ascending", "b": "descending"}[s.Rows[0].Agent]
		for i, h := range s.Heads {
			if is := callerColumns[i].name == c.name; is && h.Sorted != want || !is && h.Sorted != "" {
				t.Errorf("by %s: %s is %q, want %q", c.name, h.Title, h.Sorted, want)
			}
		}
	}
	doc := render(t, busyPage(), "callers_sort=agent")
	sorted := slices.DeleteFunc(elements(byID(doc, "callers"), "th"), func(n *html.Node) bool { return attribute(n, "aria-sort") == "" })
	if len(sorted) != 1 || attribute(sorted[0], "aria-sort") != "ascending" || text(sorted[0]) != "Caller" {
		t.Errorf("%d heads", len(sorted))
	}
}

// TestFind: a caller that has no row any more has no place, and its view says so.
func TestFind(t *testing.T) {
	t.Parallel()
	p := busyPage()
	if p.Report.Find("abc") != 0 || p.Report.Find("gone") != -1 {
		t.Error("not found, or found")
	}
	p.Caller = nil
	if said := text(byID(render(t, p, "caller=gone"), "caller")); !strings.Contains(said, "No such caller") {
		t.Error(said)
	}
}

// TestLinks: sorting by a link keeps how the other lists are shown.
func TestLinks(t *testing.T) {
	t.Parallel()
	view := ParseView(url.Values{"tables_sort": {"left"}, "callers_page": {"3"}, "keys_page": {"-1"}})
	if got, want := view.link(listCallers, "seen", 2), "?callers_page=2&callers_sort=seen&tables_sort=left#callers"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func FuzzParseView(f *testing.F) {
	f.Add("callers_page=2&callers_sort=seen&rule=a.b&percent=1")
	f.Add("dead=x&queue=y&after=18446744073709551616")
	p := busyPage()
	f.Fuzz(func(t *testing.T, query string) {
		values, _ := url.ParseQuery(query)
		view := ParseView(values)
		if _, err := Render(p, &view); err != nil {
			t.Fatal(err)
		}
	})
}

// TestScript: it is short, and has no way to make markup of a text.
func TestScript(t *testing.T) {
	t.Parallel()
	if lines := bytes.Count(Script, []byte("\n")); lines >= 300 {
		t.Errorf("%d lines", lines)
	}
	if found := regexp.MustCompile(`innerHTML\s*[+]?=[^=]|outerHTML|insertAdjacentHTML|document\.write|eval\(|https?://`).Find(Script); found != nil {
		t.Errorf("%s", found)
	}
}
