package console

import (
	"bytes"
	"embed"
	"html/template"
	"time"
)

//go:embed assets
var assets embed.FS

// Style, Script and Icon are what the page loads.
var (
	Style  = asset("style.css")
	Script = asset("script.js")
	Icon   = asset("icon.svg")
)

func asset(name string) []byte {
	content, err := assets.ReadFile("assets/" + name)
	if err != nil {
		panic(err) // it is built in
	}
	return content
}

var templates = template.Must(template.New("").Funcs(template.FuncMap{
	"number": anyNumber, "rate": rate, "size": size, "span": span, "took": took, "moment": moment, "bar": bar, "sentence": sentence,
	"float": func(n int64) float64 { return float64(n) }, "percent": func(p Percent) float64 { return float64(p) },
	"kinds": func() []Kind { return []Kind{ToV2, ToLegacy, Kept, Refused, Lost} },
}).ParseFS(assets, "assets/*.html"))

// anyNumber writes a number of a template's.
func anyNumber(n any) string {
	switch n := n.(type) {
	case int:
		return number(n)
	case int64:
		return number(n)
	case uint64:
		return number(n)
	}
	return ""
}

// shownPage is what the templates need.
type shownPage struct {
	*Page
	View    *View
	State   Trouble
	Others  []Trouble // that are wrong besides
	Chart   *Chart
	Minutes [int(Span / time.Minute)][kinds]uint64
	Tables  *shown[Table]
	Keys    *shown[Key]
	Callers *shown[Caller]
}

// Render makes the page, or, if the view asks for that, its body.
func Render(p *Page, v *View) ([]byte, error) {
	s := &shownPage{Page: p, View: v, State: p.State(), Chart: chartOf(p.Recent), Minutes: p.Recent.Minutes()}
	if all := p.Troubles(); len(all) > 0 {
		s.Others = all[1:]
	}
	if p.Report != nil {
		s.Tables = show(v, listTables, &p.Report.Tables, tableColumns)
		s.Keys = show(v, listKeys, &p.Report.Keys, keyColumns)
		s.Callers = show(v, listCallers, &p.Report.Callers, callerColumns)
	}
	name := "page"
	if v.Part == PartBody {
		name = "body"
	}
	var out bytes.Buffer
	err := templates.ExecuteTemplate(&out, name, s)
	return out.Bytes(), err
}

// Ago is how long ago something was.
func (s *shownPage) Ago(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return span(s.Now.Sub(t)) + " ago"
}

// Records is how many records of all queues wait.
func (s *Spool) Records() (sum int) {
	for _, q := range s.Queues {
		sum += q.Records
	}
	return sum
}

// EmptyIn says how long all spools will take to be empty.
func (s *shownPage) EmptyIn() string {
	records := 0
	for i := range s.Spools {
		records += s.Spools[i].Records()
	}
	if records == 0 {
		return "empty"
	}
	if left := s.Recent.EmptyIn(records); left > 0 {
		return "empty in about " + span(left)
	}
	return "at this pace it does not get empty"
}
