package console

import (
	"net/url"
	"slices"
	"strconv"
)

// The parts that are served under one path, by the parameter part. Without it, it is the
// page: so it works wherever it stands, and whatever the path is.
const (
	PartPage   = ""
	PartBody   = "body" // of the page, for its script
	PartStyle  = "style"
	PartScript = "script"
	PartIcon   = "icon"
)

// View is what somebody looks at: the part of a page's address behind the question mark.
type View struct {
	Part   string
	Caller string // whose row is shown
	Dead   *DeadView
	Trial  *TrialView
	Said   string // the name of what an action has done just now

	lists map[string]listView
}

// DeadView says which dead letters are shown.
type DeadView struct {
	Spool, Queue string
	After        uint64
}

// TrialView is a share that is tried out.
type TrialView struct{ Rule, Account, Percent string }

// listView says how a list is shown.
type listView struct {
	sort string
	page int
}

// The lists of the page, by their names in links.
const (
	listTables  = "tables"
	listKeys    = "keys"
	listCallers = "callers"
)

// ParseView reads a query. What it does not know, it leaves: an old link shows the page.
func ParseView(query url.Values) View {
	v := View{Part: query.Get("part"), Caller: query.Get("caller"), Said: query.Get("said"), lists: map[string]listView{}}
	if query.Has("dead") {
		after, _ := strconv.ParseUint(query.Get("after"), 10, 64)
		v.Dead = &DeadView{query.Get("dead"), query.Get("queue"), after}
	}
	if query.Has("rule") {
		v.Trial = &TrialView{query.Get("rule"), query.Get("account"), query.Get("percent")}
	}
	for _, list := range []string{listTables, listKeys, listCallers} {
		page, err := strconv.Atoi(query.Get(list + "_page"))
		if err != nil || page < 1 {
			page = 1
		}
		v.lists[list] = listView{query.Get(list + "_sort"), page}
	}
	return v
}

// link is the address of the same view with another order or page of a list.
func (v *View) link(list, sort string, page int) string {
	query := url.Values{}
	for name, l := range v.lists {
		if name == list {
			l = listView{sort, page}
		}
		if l.sort != "" {
			query.Set(name+"_sort", l.sort)
		}
		if l.page > 1 {
			query.Set(name+"_page", strconv.Itoa(l.page))
		}
	}
	return "?" + query.Encode() + "#" + list
}

// shown is a page of a list, as the template shows it.
type shown[T any] struct {
	Name         string
	Heads        []head
	Rows         []*T
	Total        int
	Page, Pages  int
	Before, Next string // links; empty at an end
}

// head is the head of a column.
type head struct {
	Title, Link string
	Sorted      string // which way, as aria-sort has it; empty if by another one
	Number      bool
}

// show makes a page of a list.
func show[T any](v *View, name string, list *List[T], columns []column[T]) *shown[T] {
	asked := v.lists[name]
	named := func(name string) int {
		return slices.IndexFunc(columns, func(c column[T]) bool { return c.name == name })
	}
	at := named(asked.sort)
	if at < 0 {
		at = named(byEvents)
	}
	by := columns[at]
	pages := list.pages()
	s := &shown[T]{Name: name, Total: len(list.Rows), Pages: pages, Page: min(max(asked.page, 1), pages)}
	s.Rows = list.some(by, s.Page)
	for _, c := range columns {
		h := head{Title: c.title, Link: v.link(name, c.name, 1), Number: c.number}
		switch {
		case c.name == by.name && c.up:
			h.Sorted = "ascending"
		case c.name == by.name:
			h.Sorted = "descending"
		}
		s.Heads = append(s.Heads, h)
	}
	if s.Page > 1 {
		s.Before = v.link(name, by.name, s.Page-1)
	}
	if s.Page < pages {
		s.Next = v.link(name, by.name, s.Page+1)
	}
	return s
}
