package migration

import (
	"encoding/csv"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestListingIsSortedAndKept(t *testing.T) {
	r := inMemory(0)
	for i, events := range []int{5, 100, 1} {
		count(r, postCall(), func(c *Call) {
			c.Table, c.Events, c.Time = fmt.Sprint("t", i), events, start.Add(time.Duration(i)*time.Hour)
			if i != 1 {
				c.Findings = setOf(KeyInURL)
			}
		})
	}
	tables := func(l *Listing) string {
		names := make([]string, 0, len(l.Rows))
		for _, row := range l.Rows {
			names = append(names, row.Table)
		}
		return strings.Join(names, " ")
	}
	now := start.Add(3 * time.Hour)
	l := r.List(now)
	if got := tables(l); got != "t1 t0 t2" {
		t.Errorf("%s", got)
	}
	l.Keep(true, time.Time{})
	if got := tables(l); got != "t0 t2" {
		t.Errorf("left: %s", got)
	}
	l.Keep(false, start.Add(time.Hour))
	if got := tables(l); got != "t2" {
		t.Errorf("left, of the last hours: %s", got)
	}
	l.Keep(false, start.Add(2*time.Hour+999*time.Millisecond)) // a row has its times in whole seconds
	if got := tables(l); got != "t2" {
		t.Errorf("of the same second: %s", got)
	}
	l.Keep(false, start.Add(2*time.Hour+time.Second))
	if got := tables(l); got != "" {
		t.Errorf("of a second later: %s", got)
	}
}

func TestListingAsJSON(t *testing.T) {
	r := inMemory(1)
	text, err := json.Marshal(r.List(start))
	if err != nil || !strings.Contains(string(text), `"rows":[]`) || strings.Contains(string(text), `"first_seen"`) {
		t.Errorf("an empty report: %s, %v", text, err)
	}
	r.Count(postCall())
	count(r, pixelCall(), func(c *Call) { c.Time = start.Add(time.Hour) })
	text, err = json.Marshal(r.List(start.Add(time.Hour)))
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"time":"2026-11-20T11:30:00Z","max_rows":1,"rows":[{"key":"1234/#9f3a1c20b7","database":"shop","table":"orders",` +
		`"surface":"pixel","agent":"Chrome","source":"shop.example","state":"left","first_seen":"2026-11-20T11:30:00Z",` +
		`"last_seen":"2026-11-20T11:30:00Z","events_24h":1,"events_7d":1,"events":1,"error":1,"lanes":{"v2":1},"results":{"forwarded":1},"findings":[`
	if !strings.HasPrefix(string(text), want) {
		t.Errorf("%s", text)
	}
	const others = `"others":{"rows":1,"first_seen":"2026-11-20T10:30:00Z","last_seen":"2026-11-20T10:30:00Z","events_24h":1,"events_7d":1,"events":1,"error":1}}`
	if !strings.HasSuffix(string(text), others) {
		t.Errorf("%s", text)
	}
	if !strings.Contains(string(text), `{"name":"key_in_url","kind":"changed","events":1,"last_seen":"2026-11-20T11:30:00Z","advice":"Send the write key in the header`) {
		t.Errorf("%s", text)
	}
}

func TestListingAsCSV(t *testing.T) {
	r := inMemory(2)
	r.Count(postCall())
	for i, result := range []string{"spooled", "forwarded", "forwarded"} {
		count(r, pixelCall(), func(c *Call) { c.Result, c.Time = result, start.Add(time.Duration(i)*time.Hour) })
	}
	r.AddExample(pixelCall(), `GET ?a=string "quoted", and so on`)
	count(r, postCall(), func(c *Call) { c.UserAgent, c.Key = "-2+3", "1234/#0" })
	var out strings.Builder
	if err := r.List(start.Add(2 * time.Hour)).WriteCSV(&out); err != nil {
		t.Fatal(err)
	}
	want := strings.Join(csvHead, ",") + "\n" +
		`1234/#9f3a1c20b7,shop,orders,pixel,Chrome,shop.example,left,2026-11-20T10:30:00Z,2026-11-20T12:30:00Z,3,3,3,0,` +
		`v2 3,"forwarded 2, spooled 1",from_query key_in_url answered_with_image,"` +
		FromQuery.Advice() + " " + KeyInURL.Advice() + " " + AnsweredWithImage.Advice() + `","GET ?a=string ""quoted"", and so on"` + "\n" +
		`1234/#0,shop,orders,post,'-2+3,203.0.113.0/24,ready to leave the gateway,2026-11-20T10:30:00Z,2026-11-20T10:30:00Z,1,1,1,1,v2 1,forwarded 1,,,` + "\n" +
		`others,,,,,,,2026-11-20T10:30:00Z,2026-11-20T10:30:00Z,1,1,1,1,,,,,` + "\n"
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
}

// FuzzCSV puts any text into the cells: what a reader of CSV gets is that text, or the
// text behind a `'`, and nothing that a spreadsheet would run.
func FuzzCSV(f *testing.F) {
	for _, text := range []string{`=cmd|' /C calc'!A0`, "+1", "-1", "@SUM(1)", "\t=1", "\r=1", "＝1", `a"b`, "a,b", "a\nb", "a\r\nb", `\.`, "", "'", "é"} {
		f.Add(text, text)
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		row := Row{
			Key: a, Database: b, Table: a, Surface: b, Agent: a, Source: b, State: State(a),
			Lanes: map[string]uint64{a: 1}, Results: map[string]uint64{b: 1},
			Findings: []RowFinding{{Name: a, Advice: b}}, Examples: []RowExample{{Request: b}},
		}
		var out strings.Builder
		if err := (&Listing{Rows: []Row{row}}).WriteCSV(&out); err != nil {
			t.Fatal(err)
		}
		lines, err := csv.NewReader(strings.NewReader(out.String())).ReadAll()
		if err != nil || len(lines) != 2 || !slices.Equal(lines[0], csvHead) || len(lines[1]) != len(csvHead) {
			t.Fatalf("%q: %v", out.String(), err)
		}
		for i, cell := range lines[1] {
			if cell != "" && strings.ContainsAny(cell[:1], "=+-@\t\r") {
				t.Errorf("%s is %q", csvHead[i], cell)
			}
		}
		for i, text := range []string{a, b, a, b, a, b, a} {
			text = strings.ReplaceAll(text, "\r\n", "\n") // as every reader of CSV does
			if got := lines[1][i]; got != text && got != "'"+text {
				t.Errorf("%s is %q, was %q", csvHead[i], got, text)
			}
		}
	})
}
