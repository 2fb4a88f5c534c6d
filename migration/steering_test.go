package migration

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/td-postback/gateway/postback"
)

// openPlan opens a plan that is well.
func openPlan(t testing.TB, path string) *Steering {
	t.Helper()
	s, err := OpenPlan(PlanConfig{Start: Legacy, Path: path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// based is an order for the newest plan.
func based(s *Steering) Order {
	revision := s.Status().Revision
	return Order{Time: start, Who: "ann@desk", Base: &revision}
}

// do carries out `share shop.orders 25`, `share shop.* 12.34 1234`, `unset shop.orders`,
// `undo`, `undo 3`, `rollback` and `resume`.
func do(s *Steering, o Order, command string) (*Outcome, error) {
	words := append(strings.Fields(command), "", "", "")
	switch words[0] {
	case "share":
		share, err := ParseShare(words[2])
		if err != nil {
			return nil, err
		}
		return s.Share(o, Rule{words[1], words[3]}, share)
	case "unset":
		return s.Unset(o, Rule{words[1], words[2]})
	case "rollback":
		return s.Rollback(o)
	case "resume":
		return s.Resume(o)
	}
	if words[1] == "" {
		return s.Undo(o, nil)
	}
	var revision uint64
	if _, err := fmt.Sscan(words[1], &revision); err != nil {
		return nil, err
	}
	return s.Undo(o, &revision)
}

// must carries commands out.
func must(t testing.TB, s *Steering, commands ...string) {
	t.Helper()
	for _, command := range commands {
		if _, err := do(s, based(s), command); err != nil {
			t.Fatalf("%s: %v", command, err)
		}
	}
}

// says is a plan in a few words: `3: *.* 0 %, shop.orders 25 %`.
func says(s *Steering) string {
	status := s.Status()
	text := fmt.Sprint(status.Revision, ":")
	if status.Hold != nil {
		text += " held"
	}
	for _, r := range status.Rules {
		text += " " + strings.ReplaceAll(r.String(), " %", "") + ","
	}
	return strings.TrimSuffix(text, ",")
}

func expectSays(t testing.TB, s *Steering, want string) {
	t.Helper()
	if got := says(s); got != want {
		t.Errorf("the plan is %q, want %q", got, want)
	}
}

// What the commands do to a plan, one after another, and when that is nothing.
func TestChangesOfAPlan(t *testing.T) {
	for name, steps := range map[string][]string{
		"the start holds until somebody makes a plan": {"", "0: *.* 0"},
		"a share of a table":                          {"share shop.orders 25", "1: *.* 0, shop.orders 25", "share shop.orders 50.5", "2: *.* 0, shop.orders 50.5"},
		"the default":                                 {"share *.* 100", "1: *.* 100", "share *.* 0.01", "2: *.* 0.01"},
		"each kind of rule": {
			"share shop.orders 1", "1: *.* 0, shop.orders 1", "share shop.* 2", "2: *.* 0, shop.* 2, shop.orders 1", "share *.* 3 7", "3: *.* 0, *.* account:7 3, shop.* 2, shop.orders 1",
			"share shop.* 4 7", "4: *.* 0, *.* account:7 3, shop.* 2, shop.* account:7 4, shop.orders 1",
			"share shop.orders 5 7", "5: *.* 0, *.* account:7 3, shop.* 2, shop.* account:7 4, shop.orders 1, shop.orders account:7 5",
			"unset shop.orders", "6: *.* 0, *.* account:7 3, shop.* 2, shop.* account:7 4, shop.orders account:7 5",
			"unset *.* 7", "7: *.* 0, shop.* 2, shop.* account:7 4, shop.orders account:7 5",
		},
		"what changes nothing makes no revision": {
			"share *.* 0", "= 0: *.* 0", "resume", "= 0: *.* 0", "unset shop.orders", "= 0: *.* 0", "undo", "= 0: *.* 0", "undo 0", "= 0: *.* 0",
			"share a.b 5", "1: *.* 0, a.b 5", "share a.b 5.00", "= 1: *.* 0, a.b 5", "unset a.c", "= 1: *.* 0, a.b 5", "unset a.b 1", "= 1: *.* 0, a.b 5", "undo 1", "= 1: *.* 0, a.b 5",
			"rollback", "2: held *.* 0, a.b 5", "rollback", "= 2: held *.* 0, a.b 5", "resume", "3: *.* 0, a.b 5", "resume", "= 3: *.* 0, a.b 5",
			"undo 1", "= 3: *.* 0, a.b 5", "undo 3", "= 3: *.* 0, a.b 5",
		},
		"a rule with the share of the one it is in is a rule": {"share a.b 0", "1: *.* 0, a.b 0"},
		"a rollback and a resume touch nothing else": {
			"share a.b 5", "1: *.* 0, a.b 5", "rollback", "2: held *.* 0, a.b 5", "resume", "3: *.* 0, a.b 5",
		},
		"a plan is changed under a hold": {
			"rollback", "1: held *.* 0", "share a.b 5", "2: held *.* 0, a.b 5", "undo", "3: held *.* 0", "resume", "4: *.* 0",
		},
		"undo takes back the last change of the rules": {
			"share a.b 5", "1: *.* 0, a.b 5", "share a.b 6", "2: *.* 0, a.b 6", "undo", "3: *.* 0, a.b 5",
		},
		"undo of a new rule takes it away":    {"share a.b 5", "1: *.* 0, a.b 5", "undo", "2: *.* 0"},
		"undo of an unset brings a rule back": {"share a.b 5", "1: *.* 0, a.b 5", "unset a.b", "2: *.* 0", "undo", "3: *.* 0, a.b 5"},
		"undo of an undo":                     {"share a.b 5", "1: *.* 0, a.b 5", "undo", "2: *.* 0", "undo", "3: *.* 0, a.b 5"},
		"undo passes over holds": {
			"share a.b 5", "1: *.* 0, a.b 5", "rollback", "2: held *.* 0, a.b 5", "undo", "3: held *.* 0", "resume", "4: *.* 0",
		},
		"undo does not lift a hold":      {"rollback", "1: held *.* 0", "undo", "= 1: held *.* 0", "undo 0", "= 1: held *.* 0"},
		"undo does not lay a hold again": {"rollback", "1: held *.* 0", "resume", "2: *.* 0", "undo", "= 2: *.* 0", "undo 1", "= 2: *.* 0"},
		"undo makes the rules of a revision the newest": {
			"share a.b 5", "1: *.* 0, a.b 5", "share *.* 9", "2: *.* 9, a.b 5", "share c.d 7", "3: *.* 9, a.b 5, c.d 7", "unset a.b", "4: *.* 9, c.d 7", "share c.d 8", "5: *.* 9, c.d 8",
			"undo 2", "6: *.* 9, a.b 5", "undo 4", "7: *.* 9, c.d 7", "undo 0", "8: *.* 0", "undo 5", "9: *.* 9, c.d 8", "undo 6", "10: *.* 9, a.b 5", "undo", "11: *.* 9, c.d 8",
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := openPlan(t, "")
			for i := 0; i < len(steps); i += 2 {
				if steps[i] == "" {
					expectSays(t, s, steps[i+1])
					continue
				}
				before := s.Plan()
				out, err := do(s, based(s), steps[i])
				if err != nil {
					t.Fatalf("%s: %v", steps[i], err)
				}
				want, nothing := strings.CutPrefix(steps[i+1], "= ")
				expectSays(t, s, want)
				if nothing != (out.Change == nil) || nothing != (s.Plan() == before) || out.Revision != s.Status().Revision || out.Unsaved != "" {
					t.Errorf("%s: %+v", steps[i], out)
				}
			}
		})
	}
}

// Orders that cannot be carried out change nothing, and say what to change.
func TestWrongOrders(t *testing.T) {
	s := openPlan(t, "")
	must(t, s, "share a.b 5", "rollback")
	revision := uint64(2)
	for _, tc := range []struct {
		command, want string
		change        func(*Order)
	}{
		{command: "unset *.*", want: "the default *.* cannot be taken away: give it a share instead"},
		{command: "undo 3", want: "there is no revision 3: the newest is 2"},
		{command: "share a 5", want: errRule.Error()},
		{command: "unset a", want: errRule.Error()},
		{command: "share a.b 5 x", want: "the account must be its number, such as 1234"},
		{command: "resume", want: "the note has 501 bytes: it may have 500", change: func(o *Order) { o.Note = strings.Repeat("n", 501) }},
		{command: "share a.b 6", want: ErrNoBase.Error(), change: func(o *Order) { o.Base = nil }},
		{command: "unset a.b", want: ErrNoBase.Error(), change: func(o *Order) { o.Base = nil }},
		{command: "undo", want: ErrNoBase.Error(), change: func(o *Order) { o.Base = nil }},
		{command: "resume", want: ErrNoBase.Error(), change: func(o *Order) { o.Base = nil }},
	} {
		o := Order{Time: start, Who: "ann@desk", Base: &revision}
		if tc.change != nil {
			tc.change(&o)
		}
		out, err := do(s, o, tc.command)
		if err == nil || err.Error() != tc.want {
			t.Errorf("%s: %v, %v", tc.command, out, err)
		}
		if _, isInvalid := errors.AsType[*InvalidError](err); !isInvalid && !errors.Is(err, ErrNoBase) {
			t.Errorf("%s: %T", tc.command, err)
		}
	}
	if _, err := s.Share(based(s), DefaultRule, AllToV2+1); err == nil || err.Error() != errShare.Error() {
		t.Error(err)
	}
	expectSays(t, s, "2: held *.* 0, a.b 5")
}

// A change is for the plan that its maker has seen. A rollback may be for any.
func TestChangeIsCheckedAgainstTheRevision(t *testing.T) {
	s := openPlan(t, "")
	must(t, s, "share a.b 5", "share a.b 6")
	old, future := uint64(1), uint64(9)
	for _, command := range []string{"share a.b 7", "share a.b 6", "unset a.b", "undo", "undo 0", "rollback", "resume"} {
		for _, base := range []*uint64{&old, &future} {
			out, err := do(s, Order{Time: start, Who: "bob@desk", Base: base}, command)
			conflict, ok := errors.AsType[*ConflictError](err)
			if !ok || conflict.Base != *base || conflict.Revision != 2 {
				t.Fatalf("%s based on %d: %v, %v", command, *base, out, err)
			}
			if base == &old && (len(conflict.Changes) != 1 || conflict.Changes[0].Revision != 2 || conflict.Changes[0].Rules[0].String() != "a.b") {
				t.Errorf("%s: the other's change is %+v", command, conflict.Changes)
			}
			if base == &old && err.Error() != "the plan has revision 2, and not 1; the last change is a share by ann@desk at 2026-11-20T10:30:00Z: look at the plan again, and then decide" {
				t.Error(err)
			}
		}
	}
	expectSays(t, s, "2: *.* 0, a.b 6")
	if out, err := s.Rollback(Order{Time: start, Who: "bob@desk"}); err != nil || out.Revision != 3 {
		t.Error(out, err)
	}
	expectSays(t, s, "3: held *.* 0, a.b 6")
}

// The history says who, when, why and what. No key gets into it.
func TestHistoryOfAPlan(t *testing.T) {
	s := openPlan(t, "")
	note := func(note string) Order {
		o := based(s)
		o.Note = note
		return o
	}
	for _, step := range []struct{ command, note string }{
		{"share a.b 5", "first"}, {"share a.b 12.34", "key " + usualKey + "\x1b[31m"}, {"rollback", strings.Repeat("\xff", 500)}, {"resume", ""}, {"undo 0", ""}, {"unset a.b", ""},
	} {
		if _, err := do(s, note(step.note), step.command); err != nil {
			t.Fatal(err)
		}
	}
	got := s.History()
	text := make([]string, 0, len(got))
	for _, c := range got {
		line := fmt.Sprint(c.Revision, " ", c.Time.Format("15:04"), " ", c.Who, " ", c.Action)
		if c.Undo != nil {
			line += fmt.Sprint(" ", *c.Undo)
		}
		for _, r := range c.Rules {
			for _, share := range []*Share{r.From, r.To} {
				if share == nil {
					line += " none"
				} else {
					line += " " + share.String()
				}
			}
		}
		text = append(text, line)
	}
	want := []string{
		"1 10:30 ann@desk share none 5", "2 10:30 ann@desk share 5 12.34", "3 10:30 ann@desk rollback", "4 10:30 ann@desk resume", "5 10:30 ann@desk undo 0 12.34 none",
	}
	if !slices.Equal(text, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(text, "\n"), strings.Join(want, "\n"))
	}
	if got[0].Note != "first" || got[1].Note != "key 1234/…\ufffd[31m" || got[2].Note != strings.Repeat("\ufffd", 500) {
		t.Errorf("%q", []string{got[0].Note, got[1].Note, got[2].Note})
	}
}

// Of a long history, the oldest changes give way, and what is left can still be undone.
func TestHistoryIsBounded(t *testing.T) {
	s := openPlan(t, "")
	for i := range MaxHistory + 10 {
		must(t, s, fmt.Sprint("share a.b ", i%50+1))
	}
	h := s.History()
	if len(h) != MaxHistory || h[0].Revision != 11 {
		t.Fatalf("%d changes, the oldest is %d", len(h), h[0].Revision)
	}
	if _, err := do(s, based(s), "undo 9"); err == nil || err.Error() != "revision 9 is not kept any more: the oldest is 10" {
		t.Error(err)
	}
	must(t, s, "undo 11")
	expectSays(t, s, "1011: *.* 0, a.b 11")
}

// A plan has so many rules, and a history so many changes of them.
func TestRulesAreBounded(t *testing.T) {
	state := beginning(Legacy)
	state.Rules = manyRules(MaxRules, 100)
	s := openPlan(t, "")
	s.enforce(state)
	if _, err := do(s, based(s), "share new.table 5"); err == nil || !strings.HasPrefix(err.Error(), "a plan has at most 10000 rules") {
		t.Error(err)
	}
	must(t, s, "share "+state.Rules[7].Target+" 7 "+state.Rules[7].Account, "unset "+state.Rules[7].Target+" "+state.Rules[7].Account, "share new.table 5")
	// A change of all rules there are, again and again.
	before := s.state
	next := &planState{Revision: before.Revision, Rules: before.Rules, History: before.History}
	for share := range Share(5) {
		all := make([]RuleChange, 0, MaxRules)
		for _, r := range next.Rules {
			to := share
			all = append(all, RuleChange{Rule: r.Rule, To: &to})
		}
		o := based(s)
		var err error
		if next, err = next.change(&o, &Change{Action: ActionUndo, Rules: next.differences(all)}); err != nil {
			t.Fatal(err)
		}
		if n := ruleChanges(next.History); n > maxRuleChanges || len(next.History) == 0 {
			t.Errorf("%d changes of rules in %d changes", n, len(next.History))
		}
	}
	if !next.isWhole() {
		t.Error("the plan is not whole")
	}
}

// A change holds for the next call, and a plan that was read before does not change.
func TestChangeHoldsFromTheNextCall(t *testing.T) {
	s := openPlan(t, "")
	c := &Caller{Client: "203.0.113.7"}
	was := s.Plan()
	for command, want := range map[string]Lane{"share shop.orders 100": V2} {
		must(t, s, command)
		if s.Plan().Lane(c, orders) != want || was.Lane(c, orders) != Legacy {
			t.Error(command)
		}
	}
	must(t, s, "rollback")
	if s.Plan().Lane(c, orders) != Legacy {
		t.Error("rolled back")
	}
	must(t, s, "resume")
	if s.Plan().Lane(c, orders) != V2 {
		t.Error("resumed")
	}
}

// A disk takes its time over a change: a rollback holds at once, and the change does not
// lift it when it is written.
func TestRollbackWaitsForNoDisk(t *testing.T) {
	s := openPlan(t, "")
	must(t, s, "share *.* 50")
	s.file.mu.Lock() // a change is being written
	answered := make(chan *Outcome)
	go func() {
		out, err := s.Rollback(Order{Time: start, Who: "ann@desk"})
		if err != nil {
			t.Error(err)
		}
		answered <- out
	}()
	for !s.Plan().held {
		runtime.Gosched()
	}
	next, err := s.state.change(&Order{Time: start}, &Change{Action: ActionShare, Rules: []RuleChange{{Rule: DefaultRule, To: new(Share)}}})
	if err != nil {
		t.Fatal(err)
	}
	s.enforce(next) // and it is written
	if !s.Plan().held {
		t.Error("the change lifts the rollback")
	}
	s.file.mu.Unlock()
	if out := <-answered; out.Revision != 3 || out.Change.Action != ActionRollback {
		t.Errorf("%+v", out)
	}
	expectSays(t, s, "3: held *.* 0")
	must(t, s, "resume")
	if s.Plan().held {
		t.Error("it is not lifted")
	}
}

// Of changes that are made at the same time for the same plan, one is made. Calls are
// decided about meanwhile.
func TestChangesAtTheSameTime(t *testing.T) {
	s := openPlan(t, filepath.Join(t.TempDir(), "plan.db"))
	var wg sync.WaitGroup
	var done atomic.Int32
	const workers, changes = 4, 25
	for w := range workers {
		wg.Go(func() {
			for made := 0; made < changes; {
				revision := s.Status().Revision
				_, err := s.Share(Order{Time: start, Base: &revision}, Rule{Target: fmt.Sprint("a.b", w)}, Share(made+1))
				if _, conflict := errors.AsType[*ConflictError](err); err != nil && !conflict {
					t.Error(err)
					break
				} else if !conflict {
					made++
				}
			}
			done.Add(1)
		})
	}
	for done.Load() < workers {
		s.Plan().Lane(&Caller{Client: "203.0.113.7"}, orders)
		_ = s.Save()
		_ = s.Shares(inMemory(0), start)
	}
	wg.Wait()
	expectSays(t, s, "100: *.* 0, a.b0 0.25, a.b1 0.25, a.b2 0.25, a.b3 0.25")
	for i, c := range s.History() {
		if c.Revision != uint64(i)+1 {
			t.Fatal(c)
		}
	}
}

// What is configured counts before somebody has made a plan. Later, only the stick does.
func TestConfigurationOfAPlan(t *testing.T) {
	s, err := OpenPlan(PlanConfig{Start: V2})
	if err != nil {
		t.Fatal(err)
	}
	expectSays(t, s, "0: *.* 100")
	s.Configure(Legacy, StickKey)
	expectSays(t, s, "0: *.* 0")
	must(t, s, "share a.b 5")
	s.Configure(V2, StickTable)
	expectSays(t, s, "1: *.* 0, a.b 5")
	must(t, s, "undo 0")
	expectSays(t, s, "2: *.* 0")
	if got := s.Status().Stick; got != "table" {
		t.Error(got)
	}
	must(t, s, "share *.* 50")
	a, b := s.Plan().Lane(&Caller{Client: "203.0.113.7"}, orders), s.Plan().Lane(&Caller{Client: "203.0.113.8"}, orders)
	if a != b || (bucketOf(bucketSeed(DefaultRule), StickTable, &Caller{}, orders) < 5000) != (a == V2) {
		t.Error("the new stick does not count")
	}
	must(t, s, "rollback")
	s.Configure(V2, StickClient) // as at a reload
	if s.Plan().Lane(&Caller{}, postback.Destination{}) != Legacy {
		t.Error("a reload lifts a rollback")
	}
}

// TestPlanSignals: a plan counts its rules by what they send to v2, and a rollback changes
// none of them.
func TestPlanSignals(t *testing.T) {
	s := openPlan(t, "")
	if got, want := s.Plan().Signals(), (PlanSignals{None: 1}); got != want {
		t.Errorf("at the start: got %+v, want %+v", got, want)
	}
	must(t, s, "share shop.orders 0.01", "share shop.* 99.99 1234", "share crm.* 100", "share crm.leads 0", "rollback")
	want := PlanSignals{Revision: 5, Changed: start, Held: true, None: 2, Some: 2, All: 1}
	if got := s.Plan().Signals(); got != want {
		t.Errorf("rolled back: got %+v, want %+v", got, want)
	}
	must(t, s, "resume", "unset shop.orders")
	want = PlanSignals{Revision: 7, Changed: start, None: 2, Some: 1, All: 1}
	if got := s.Plan().Signals(); got != want {
		t.Errorf("resumed: got %+v, want %+v", got, want)
	}
}

// A plan goes on that was in force with another file: all of it, or only its rollback where
// the file has a plan that did not come of it. Nothing is written before that is wanted.
func TestTakeOver(t *testing.T) {
	for name, tc := range map[string]struct{ before, own, want, kept string }{
		"an empty file":             {"share *.* 50, share a.b 7, rollback", "", "3: held *.* 50, a.b 7", "3: held *.* 50, a.b 7"},
		"nobody has made a plan":    {"", "share *.* 50", "1: *.* 50", "1: *.* 50"},
		"neither has one":           {"", "", "0: *.* 0", "0: *.* 0"},
		"a plan of its own":         {"share *.* 50", "share a.b 7, share a.b 8", "2: *.* 0, a.b 8", "2: *.* 0, a.b 8"},
		"the same, but rolled back": {"share *.* 50, rollback", "share a.b 7, share a.b 8", "2: *.* 0, a.b 8 by itself", "2: *.* 0, a.b 8 by itself"},
	} {
		t.Run(name, func(t *testing.T) {
			before, path := openPlan(t, ""), filepath.Join(t.TempDir(), "plan.db")
			own := openPlan(t, path)
			orders := func(s *Steering, commands string) {
				if commands != "" {
					must(t, s, strings.Split(commands, ", ")...)
				}
			}
			orders(before, tc.before)
			orders(own, tc.own)
			saysAll := func(s *Steering) string {
				if s.Status().Local != nil {
					return says(s) + " by itself"
				}
				return says(s)
			}
			read := saysAll(own)
			own.TakeOver(before.Plan())
			own.TakeOver(before.Plan()) // and changes nothing
			if got := saysAll(own); got != tc.want || own.Plan().held != (strings.Contains(got, "held") || strings.HasSuffix(got, "itself")) {
				t.Errorf("got %q, want %q", got, tc.want)
			}
			if err := own.Close(); err != nil {
				t.Fatal(err)
			}
			again := openPlan(t, path)
			if got := saysAll(again); got != read {
				t.Errorf("%q is written, and %q was there", got, read)
			}
			again.TakeOver(before.Plan())
			again.Keep()
			if err := again.Close(); err != nil {
				t.Fatal(err)
			}
			if got := saysAll(openPlan(t, path)); got != tc.kept {
				t.Errorf("kept %q, want %q", got, tc.kept)
			}
		})
	}
}

// What a plan is rolled back by may not be in it yet, if the disk of its file hangs. It
// goes on all the same, and what was lifted since does not.
func TestTakeOverOfARollback(t *testing.T) {
	before := openPlan(t, "")
	must(t, before, "share *.* 50")
	before.file.mu.Lock()
	done := make(chan error)
	go func() {
		_, err := before.Rollback(Order{Time: start})
		done <- err
	}()
	for !before.Plan().held {
		time.Sleep(time.Millisecond)
	}
	held := before.Plan()
	own := openPlan(t, filepath.Join(t.TempDir(), "plan.db"))
	own.TakeOver(held)
	if status := own.Status(); !own.Plan().held || status.Revision != 1 || status.Local == nil || status.Local.Note != takenOver {
		t.Errorf("%+v", status)
	}
	before.file.mu.Unlock()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	after := openPlan(t, "")
	after.TakeOver(before.Plan())
	must(t, after, "resume")
	after.TakeOver(before.Plan())
	expectSays(t, after, "3: *.* 50")
	if after.Plan().held || after.Status().Local != nil {
		t.Error("a rollback that was lifted is back")
	}
}

// What a file has of a rollback of this gateway alone, that was lifted while the plan was in
// another file, does not come back. Beside a plan that did not come of it, it stays.
func TestTakeOverOfARollbackByItself(t *testing.T) {
	for name, tc := range map[string]struct {
		before, own []string
		held        bool
	}{
		"lifted since":            {[]string{"share *.* 50"}, nil, false},
		"no plan was made":        {nil, nil, false},
		"of another plan":         {[]string{"share *.* 50"}, []string{"share *.* 7"}, true},
		"of a plan that is newer": {nil, []string{"share *.* 7"}, true},
	} {
		t.Run(name, func(t *testing.T) {
			before, own := openPlan(t, ""), openPlan(t, filepath.Join(t.TempDir(), "plan.db"))
			must(t, before, tc.before...)
			must(t, own, tc.own...)
			if _, err := own.Rollback(Order{Time: start, Local: true}); err != nil {
				t.Fatal(err)
			}
			own.TakeOver(before.Plan())
			if own.Plan().held != tc.held || (own.Status().Local != nil) != tc.held {
				t.Errorf("%+v", own.Status())
			}
		})
	}
}

// Of a file that cannot be read, nothing is known to be right unless a plan was taken over.
func TestTakeOverOfADamagedFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "plan.db")
	if err := os.WriteFile(path, []byte("no plan"), 0o600); err != nil {
		t.Fatal(err)
	}
	own, err := OpenPlan(PlanConfig{Path: path})
	if err == nil {
		t.Fatal("it can be read")
	}
	t.Cleanup(func() { _ = own.Close() })
	before := openPlan(t, "")
	own.TakeOver(before.Plan())
	own.Keep()
	if own.Trouble() == nil {
		t.Error("it is said to be well")
	}
	must(t, before, "share *.* 50")
	own.TakeOver(before.Plan())
	own.Keep()
	expectSays(t, own, "1: *.* 50")
	if err := own.Trouble(); err != nil {
		t.Error(err)
	}
}
