package migration

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/td-postback/gateway/postback"
)

// What a rule is about, of 100 events to a table, 20 to another, 3 to none and 7 to several,
// of which some came before the last hour.
func TestFit(t *testing.T) {
	r := hour(sent{"1", "orders", 0, 60}, sent{"2", "orders", 10, 10}, sent{"1", "carts", 0, 20}, sent{"1", "", 0, 3})
	for _, add := range []func(*Call){
		func(c *Call) {
			c.Key, c.Client, c.Time, c.Events = "2/#9f3a1c20b7", "198.51.100.7", start.Add(-24*time.Hour), 20
		},
		func(c *Call) { c.Table, c.Time = "gone", start.Add(-20*24*time.Hour) },
		func(c *Call) { c.Database, c.Table, c.Surface, c.Events = "", "", "k", 7 },
	} {
		count(r, postCall(), add)
	}
	s := openPlan(t, "")
	for _, tc := range []struct {
		rule Rule
		want string // events of the hour, of the week, tables
	}{
		{Rule{"shop.orders", ""}, "80 100 shop.carts shop.gone"},
		{Rule{"shop.orders", "2"}, "20 40 shop.carts shop.gone shop.orders"},
		{Rule{"shop.*", ""}, "100 120"},
		{DefaultRule, "110 130"},
		{Rule{"*.*", "1"}, "83 83 shop.gone shop.orders"}, // and 1234 has sent to several
		{Rule{"shop.order", ""}, "0 0 shop.carts shop.gone shop.orders"},
		{Rule{"shop.gone", ""}, "0 0 shop.carts shop.orders"},
		{Rule{"shops.*", ""}, "0 0 shop.carts shop.gone shop.orders"},
		{Rule{"shop.orders", "3"}, "0 0 shop.carts shop.gone shop.orders"},
	} {
		fit := s.Fit(tc.rule, r, start)
		if got := strings.TrimSpace(fmt.Sprint(fit.Hour, fit.Week, " ", strings.Join(fit.Tables, " "))); got != tc.want {
			t.Errorf("%s: %s, want %s", tc.rule, got, tc.want)
		}
		if several := map[bool]uint64{true: 0, false: 7}[tc.rule == DefaultRule]; fit.Several != several {
			t.Errorf("%s: %d events of several tables", tc.rule, fit.Several)
		}
	}
}

// A rule stands before another one if there is a call that both are for, and it decides.
func TestRulesBefore(t *testing.T) {
	rules := make([]Rule, 0, 18)
	for _, target := range []string{"*.*", "a.*", "a.x", "a.y", "b.*", "b.x"} {
		for _, account := range []string{"", "1", "2"} {
			rules = append(rules, Rule{target, account})
		}
	}
	for _, rule := range rules {
		for _, other := range rules {
			both := newPlan([]RuleShare{{rule, 1}, {other, 2}}, false, StickClient)
			before := false
			for _, account := range []string{"", "1", "2"} {
				for _, to := range []postback.Destination{{}, {Database: "a", Table: "x"}, {Database: "a", Table: "y"}, {Database: "a", Table: "z"}, {Database: "b", Table: "x"}, {Database: "c", Table: "x"}} {
					found := both.find(account, to)
					before = before || rule != other && rule.covers(account, to) && found != nil && found.rule == other
				}
			}
			if other.precedes(rule) != before {
				t.Errorf("%s before %s: %t", other, rule, !before)
			}
		}
	}
	s := openPlan(t, "")
	must(t, s, "share a.x 1", "share a.x 2 1", "share a.* 3", "share b.x 4", "share *.* 5 1")
	for rule, want := range map[Rule]string{
		DefaultRule:  "*.* account:1 5 %, a.* 3 %, a.x 1 %, a.x account:1 2 %, b.x 4 %",
		{"a.*", ""}:  "a.x 1 %, a.x account:1 2 %",
		{"a.*", "1"}: "a.x 1 %, a.x account:1 2 %",
		{"a.*", "2"}: "a.x 1 %",
		{"*.*", "2"}: "a.* 3 %, a.x 1 %, b.x 4 %",
		{"a.x", "1"}: "",
		{"c.x", ""}:  "",
		{"a.x", ""}:  "a.x account:1 2 %",
	} {
		var got []string
		for _, r := range s.Fit(rule, inMemory(0), start).Before {
			got = append(got, r.String())
		}
		if strings.Join(got, ", ") != want {
			t.Errorf("%s: %s, want %s", rule, got, want)
		}
	}
}
