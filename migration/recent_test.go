package migration

import (
	"encoding/json"
	"errors"
	"fmt"
	"testing"
	"time"
)

// The last hour is this step of ten minutes and the six before it.
func TestRecentEvents(t *testing.T) {
	var r recent
	step := recentStepOf(start)
	r.add(step, V2, 1)
	r.add(step+1, Legacy, 10)
	r.add(step+6, V2, 100)
	expect := func(at int64, v2, legacy uint64) {
		t.Helper()
		if got := r.events(at); got[V2] != v2 || got[Legacy] != legacy {
			t.Errorf("step %d: %v", at-step, got)
		}
	}
	expect(step+6, 101, 10)
	expect(step+7, 100, 10)
	expect(step+8, 100, 0)
	expect(step+13, 0, 0)
	r.add(step+5, V2, 1000) // a call that was answered late
	expect(step+6, 1101, 10)
	r.add(step+7, Legacy, 5)
	expect(step+7, 1100, 15)
	r.add(step-20, V2, 3) // the clock goes right again
	expect(step-20, 3, 0)
	r.add(step+20, V2, 4)
	expect(step+20, 4, 0)
}

// sent is what an account has sent to a table in the last hour, by lane.
type sent struct {
	account, table string
	v2, legacy     int
}

// hour has a report of the last hour.
func hour(all ...sent) *Report {
	r := inMemory(0)
	for _, of := range all {
		for lane, events := range map[Lane]int{V2: of.v2, Legacy: of.legacy} {
			if events == 0 {
				continue
			}
			count(r, postCall(), func(c *Call) {
				c.Key, c.Table, c.Lane, c.Events, c.Time = of.account+"/#9f3a1c20b7", of.table, lane, events, start.Add(-30*time.Minute)
				if of.table == "" {
					c.Database = ""
				}
			})
		}
	}
	return r
}

// Each event counts for the rule that decides about it.
func TestRealShares(t *testing.T) {
	r := hour(sent{"1", "orders", 30, 70}, sent{"1", "carts", 1, 2}, sent{"2", "orders", 5, 0}, sent{"2", "carts", 0, 4}, sent{"2", "", 7, 7})
	count(r, postCall(), func(c *Call) { c.Time, c.Events = start.Add(-2*time.Hour), 1000 })
	s := openPlan(t, "")
	must(t, s, "share shop.orders 25", "share shop.* 50", "share *.* 60 2", "share shop.orders 100 2", "share other.* 1")
	got, err := json.Marshal(s.Shares(r, start))
	want := `[{"rule":"*.*","percent":0,"events":0,"events_v2":0,"real_percent":null},` +
		`{"rule":"*.*","account":"2","percent":60,"events":14,"events_v2":7,"real_percent":50},` +
		`{"rule":"other.*","percent":1,"events":0,"events_v2":0,"real_percent":null},` +
		`{"rule":"shop.*","percent":50,"events":7,"events_v2":1,"real_percent":14.29},` +
		`{"rule":"shop.orders","percent":25,"events":100,"events_v2":30,"real_percent":30},` +
		`{"rule":"shop.orders","account":"2","percent":100,"events":5,"events_v2":5,"real_percent":100}]`
	if err != nil || string(got) != want {
		t.Errorf("%v\n%s\nwant\n%s", err, got, want)
	}
}

// The real share of 10,000 clients is the one that was asked for, within a point.
func TestRealShareOfManyClients(t *testing.T) {
	s := openPlan(t, "")
	must(t, s, "share shop.orders 33.33")
	r := inMemory(0)
	for _, c := range clients(10_000) {
		count(r, postCall(), func(call *Call) { call.Client, call.Lane = c.Client, s.Plan().Lane(&c, orders) })
	}
	if real := s.Shares(r, start)[1].Real; real == nil || *real < 3233 || *real > 3433 {
		t.Error(real)
	}
}

// What a dry run says of 100 events to a table, 20 to another and 3 to none.
func TestDryRun(t *testing.T) {
	r := hour(sent{"1", "orders", 0, 60}, sent{"2", "orders", 10, 30}, sent{"1", "carts", 0, 20}, sent{"1", "", 0, 3})
	for name, tc := range map[string]struct {
		stick       Stick
		has         []string
		rule        Rule
		share       Share
		held, exact bool
		want        string // callers, to v2, to legacy
	}{
		"all of a table":                 {rule: Rule{"shop.orders", ""}, share: 10000, exact: true, want: "2 100 0"},
		"a quarter of a table":           {rule: Rule{"shop.orders", ""}, share: 2500, want: "2 25 0"},
		"a part of an account":           {rule: Rule{"*.*", "1"}, share: 5000, want: "3 42 0"}, // of 83
		"all of a database":              {rule: Rule{"shop.*", ""}, share: 10000, exact: true, want: "3 120 0"},
		"everything":                     {rule: DefaultRule, share: 10000, exact: true, want: "4 123 0"},
		"nothing, as it is":              {rule: DefaultRule, share: 0, exact: true, want: "0 0 0"},
		"another table":                  {rule: Rule{"shop.other", ""}, share: 10000, exact: true, want: "0 0 0"},
		"a raise only adds":              {has: []string{"share shop.orders 20"}, rule: Rule{"shop.orders", ""}, share: 5000, want: "2 30 0"},
		"a cut only removes":             {has: []string{"share shop.orders 50"}, rule: Rule{"shop.orders", ""}, share: 2000, want: "2 0 30"},
		"back to the legacy host":        {has: []string{"share *.* 100"}, rule: Rule{"shop.orders", ""}, share: 0, exact: true, want: "2 0 100"},
		"a new rule has its own buckets": {has: []string{"share *.* 50"}, rule: Rule{"shop.orders", ""}, share: 5000, want: "2 25 25"},
		"a rule that others hide":        {has: []string{"share shop.orders 0"}, rule: DefaultRule, share: 10000, exact: true, want: "2 23 0"},
		"under a hold":                   {has: []string{"rollback"}, rule: Rule{"shop.orders", ""}, share: 10000, exact: true, held: true, want: "2 100 0"},
		// shop.orders is in bucket 4209 of *.*: see testdata/buckets.tsv.
		"a table that moves":       {stick: StickTable, has: []string{"share shop.carts 0", "share *.* 42.09"}, rule: DefaultRule, share: 4210, exact: true, want: "2 100 0"},
		"a table that has moved":   {stick: StickTable, has: []string{"share shop.carts 0", "share *.* 42.10"}, rule: DefaultRule, share: 4211, exact: true, want: "0 0 0"},
		"a table that moves again": {stick: StickTable, has: []string{"share shop.carts 0", "share *.* 42.10"}, rule: DefaultRule, share: 4209, exact: true, want: "2 0 100"},
	} {
		s := openPlan(t, "")
		s.Configure(Legacy, tc.stick)
		must(t, s, tc.has...)
		was := says(s)
		m, err := s.TryShare(based(s), tc.rule, tc.share, r)
		if err != nil {
			t.Fatal(name, err)
		}
		if got := fmt.Sprint(m.Callers, m.ToV2, m.ToLegacy); got != tc.want || m.Exact != tc.exact || m.Held != tc.held || m.OfCallers != 4 || m.OfEvents != 123 {
			t.Errorf("%s: %+v, want %s", name, m, tc.want)
		}
		expectSays(t, s, was)
	}
}

// A dry run says that nothing moves at a gateway that is rolled back by itself, too.
func TestDryRunOfAGatewayHeldByItself(t *testing.T) {
	s := openPlan(t, "")
	if _, err := s.Rollback(Order{Time: start, Who: "ann@desk", Local: true}); err != nil {
		t.Fatal(err)
	}
	if m, err := s.TryShare(based(s), DefaultRule, AllToV2, inMemory(0)); err != nil || !m.Held {
		t.Errorf("%+v, %v", m, err)
	}
}

// A dry run is checked like the change itself.
func TestDryRunIsChecked(t *testing.T) {
	s := openPlan(t, "")
	o := based(s)
	must(t, s, "share a.b 5")
	if _, err := s.TryShare(o, DefaultRule, 5, inMemory(0)); err == nil {
		t.Error("another revision")
	} else if _, ok := errors.AsType[*ConflictError](err); !ok {
		t.Error(err)
	}
	if _, err := s.TryShare(based(s), Rule{Target: "a"}, 5, inMemory(0)); err == nil {
		t.Error("no rule")
	}
}
