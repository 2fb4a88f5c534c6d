package migration

import (
	"testing"

	"github.com/td-postback/gateway/postback"
)

// TestTables: a table has the share of the rule that is about it, and what its calls
// really did.
func TestTables(t *testing.T) {
	t.Parallel()
	s, err := OpenPlan(PlanConfig{Start: Legacy})
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range []RuleShare{{Rule{"shop.*", ""}, 1000}, {Rule{"shop.orders", ""}, 2500}, {Rule{"shop.orders", "1234"}, AllToV2}} {
		base := uint64(i)
		if _, err := s.Share(Order{Time: start, Base: &base}, r.Rule, r.Share); err != nil {
			t.Fatal(err)
		}
	}
	r := hour(sent{"1234", "orders", 30, 70}, sent{"5678", "orders", 0, 20}, sent{"1234", "", 1, 1})
	database := postCall().Database
	if database != "shop" {
		t.Fatalf("the report's database is %s", database)
	}
	tables := []postback.Destination{{Database: "shop", Table: "orders"}, {Database: "shop", Table: "views"}, {Database: "crm", Table: "x"}, {Table: "half"}}
	got := s.Tables(r, tables, start)
	for i, want := range []TableStatus{
		{tables[0], 2500, true, 120, 30},
		{tables[1], 1000, false, 0, 0},
		{tables[2], NoneToV2, false, 0, 0},
		{tables[3], NoneToV2, false, 2, 1},
	} {
		if got[i] != want {
			t.Errorf("%+v, want %+v", got[i], want)
		}
	}
	if real := got[0].Real(); real == nil || *real != 2500 {
		t.Errorf("real %v", real)
	}
	if got[1].Real() != nil {
		t.Error("a real share without calls")
	}
}
