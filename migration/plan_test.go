package migration

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/td-postback/gateway/postback"
)

const usualKey = "1234/0123456789abcdef0123456789abcdef01234567"

var orders = postback.Destination{Database: "shop", Table: "orders"}

// rulesOf reads `shop.orders account:1234 25, *.* 0`.
func rulesOf(t testing.TB, text string) (rules []RuleShare) {
	t.Helper()
	for one := range strings.SplitSeq(text, ", ") {
		words := strings.Fields(one)
		var account string
		if len(words) == 3 {
			account = strings.TrimPrefix(words[1], "account:")
		}
		rule, err := ParseRule(words[0], account)
		share, again := ParseShare(words[len(words)-1])
		if err != nil || again != nil {
			t.Fatal(one, err, again)
		}
		rules = append(rules, RuleShare{rule, share})
	}
	return rules
}

func planOf(t testing.TB, text string, stick Stick) *Plan {
	t.Helper()
	return newPlan(rulesOf(t, text), false, stick)
}

// readBuckets reads the published table: rule, value, the first 8 bytes of its SHA-256,
// bucket.
func readBuckets(t testing.TB) (lines [][]string) {
	t.Helper()
	f, err := os.Open("testdata/buckets.tsv")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	in := bufio.NewScanner(f)
	for in.Scan() {
		lines = append(lines, strings.Split(in.Text(), "\t"))
	}
	if in.Err() != nil || len(lines) < 10 {
		t.Fatal(in.Err(), len(lines))
	}
	return lines
}

// The table was made with openssl and bc, not with this code.
func TestPublishedBuckets(t *testing.T) {
	for _, line := range readBuckets(t) {
		target, account, _ := strings.Cut(line[0], " account:")
		rule, err := ParseRule(target, account)
		if err != nil {
			t.Fatal(err)
		}
		want, err := strconv.Atoi(line[3])
		if err != nil {
			t.Fatal(err)
		}
		client := &Caller{Client: line[1]}
		if got := bucketOf(bucketSeed(rule), StickClient, client, orders); int(got) != want {
			t.Errorf("%s, client %s: bucket %d, want %d", rule, line[1], got, want)
		}
		if line[1] == "" {
			continue
		}
		key := &Caller{Key: line[1], Client: "192.0.2.99"}
		if got := bucketOf(bucketSeed(rule), StickKey, key, orders); int(got) != want {
			t.Errorf("%s, key %s: bucket %d, want %d", rule, line[1], got, want)
		}
		if database, table, isTable := strings.Cut(line[1], "."); isTable {
			to := postback.Destination{Database: database, Table: table}
			if got := bucketOf(bucketSeed(rule), StickTable, key, to); int(got) != want {
				t.Errorf("%s, table %s: bucket %d, want %d", rule, line[1], got, want)
			}
		}
	}
}

// The bucket is the first that goes to v2 at a share above it.
func TestShareAtItsBucket(t *testing.T) {
	for _, tc := range []struct {
		share string
		want  Lane
	}{{"0", Legacy}, {"18.66", Legacy}, {"18.67", V2}, {"100", V2}} {
		p := planOf(t, "*.* 0, shop.orders "+tc.share, StickClient)
		if got := p.Lane(&Caller{Client: "203.0.113.7"}, orders); got != tc.want {
			t.Errorf("%s %%: %s", tc.share, got)
		}
	}
}

// The rules of a plan in their order: each is the one that counts once those before it
// are gone.
func TestTheMostSpecificRuleWins(t *testing.T) {
	order := []string{"shop.orders account:1234", "shop.orders", "shop.* account:1234", "shop.*", "*.* account:1234", "*.*"}
	others := ", shop.orders account:99 50, shop.other 50, shop.other account:1234 50, shop2.* 50, *.* account:99 50, shop.* account:99 50"
	caller := &Caller{Key: usualKey, Client: "203.0.113.7"}
	for i := range order {
		for _, share := range []string{"0", "100"} {
			opposite := map[string]string{"0": "100", "100": "0"}[share]
			text := order[i] + " " + share + others
			for _, less := range order[i+1:] {
				text += ", " + less + " " + opposite
			}
			p := planOf(t, text, StickClient)
			if got, want := p.Lane(caller, orders), map[string]Lane{"0": Legacy, "100": V2}[share]; got != want {
				t.Errorf("%s: %s", text, got)
			}
			if s := p.find("1234", orders); s.rule.String() != order[i] {
				t.Errorf("%s: %s counts", text, s.rule)
			}
		}
	}
}

// A rule is for whom it says, and for nobody else.
func TestWhomARuleIsFor(t *testing.T) {
	table := func(name string) postback.Destination {
		database, table, _ := strings.Cut(name, ".")
		return postback.Destination{Database: database, Table: table}
	}
	for _, tc := range []struct{ rule, key, table, yes string }{
		{"shop.orders", usualKey, "shop.orders", "yes"},
		{"shop.orders", "", "shop.orders", "yes"},
		{"shop.orders", usualKey, "shop.Orders", "no"},
		{"shop.orders", usualKey, "shop.orders2", "no"},
		{"shop.orders", usualKey, "shop2.orders", "no"},
		{"shop.*", usualKey, "shop.orders", "yes"},
		{"shop.*", usualKey, "shop2.orders", "no"},
		{"shop.*", usualKey, "shop.", "no"},
		{"shop.*", usualKey, ".orders", "no"},
		{"*.*", usualKey, "shop.orders", "yes"},
		{"*.*", "", "", "yes"},
		{"*.*", usualKey, "shop.", "yes"},
		{"shop.orders account:1234", usualKey, "shop.orders", "yes"},
		{"shop.orders account:1234", "1234/ab", "shop.orders", "yes"},
		{"shop.orders account:1234", "1235/ab", "shop.orders", "no"},
		{"shop.orders account:1234", "12345/ab", "shop.orders", "no"},
		{"shop.orders account:1234", "1234", "shop.orders", "no"},
		{"shop.orders account:1234", "", "shop.orders", "no"},
		{"shop.* account:1234", usualKey, "shop.orders", "yes"},
		{"shop.* account:1234", usualKey, "shop2.orders", "no"},
		{"shop.* account:1234", "1235/ab", "shop.orders", "no"},
		{"*.* account:1234", usualKey, "other.table", "yes"},
		{"*.* account:1234", usualKey, "", "yes"},
		{"*.* account:1234", "", "other.table", "no"},
		{"*.* account:1234", "1235/ab", "other.table", "no"},
	} {
		text := tc.rule + " 100"
		if tc.rule != "*.*" {
			text += ", *.* 0"
		}
		got := planOf(t, text, StickClient).Lane(&Caller{Key: tc.key, Client: "203.0.113.7"}, table(tc.table))
		if want := map[string]Lane{"yes": V2, "no": Legacy}[tc.yes]; got != want {
			t.Errorf("%s, key %q, table %q: %s", tc.rule, tc.key, tc.table, got)
		}
	}
}

// What a share sticks to: the same values go the same way.
func TestWhatAShareSticksTo(t *testing.T) {
	type call struct {
		Caller
		to postback.Destination
	}
	usual := call{Caller{usualKey, "203.0.113.7"}, orders}
	change := func(f func(*call)) call { c := usual; f(&c); return c }
	with := func(client string) call { return change(func(c *call) { c.Client = client }) }
	keyless := func(client string) call { return change(func(c *call) { c.Key, c.Client = "", client }) }
	otherKey := change(func(c *call) { c.Key = "1234/other" })
	otherTable := change(func(c *call) { c.to.Table = "carts" })
	for name, tc := range map[string]struct {
		stick Stick
		a, b  call
		same  bool
	}{
		"client":                              {StickClient, usual, with("203.0.113.8"), false},
		"client, whatever the key":            {StickClient, usual, otherKey, true},
		"client, whatever the table":          {StickClient, usual, otherTable, true},
		"client as a mapped address":          {StickClient, usual, with("::ffff:203.0.113.7"), true},
		"client as a mapped address in hex":   {StickClient, usual, with("::ffff:cb00:7107"), true},
		"client as a mapped address, a zone":  {StickClient, usual, with("::ffff:203.0.113.7%eth0"), true},
		"client with a zone":                  {StickClient, with("fe80::1"), with("fe80::1%eth0"), true},
		"client with another zone":            {StickClient, with("fe80::1%eth1"), with("fe80::1%eth0"), true},
		"client of IPv6":                      {StickClient, with("2001:db8::1"), with("2001:db8::2"), false},
		"client of IPv6, written otherwise":   {StickClient, with("2001:db8::1"), with("2001:0DB8:0:0:0:0:0:1"), true},
		"client that is no address":           {StickClient, with("@"), with("unix"), false},
		"client that is no address, no zone":  {StickClient, with("a:b%c"), with("a:b"), true},
		"key":                                 {StickKey, usual, otherKey, false},
		"key, whoever sends it":               {StickKey, usual, with("203.0.113.8"), true},
		"key, whatever the table":             {StickKey, usual, otherTable, true},
		"no key, so the client":               {StickKey, keyless("203.0.113.7"), keyless("203.0.113.8"), false},
		"no key, so the client, as the other": {StickKey, keyless("203.0.113.7"), keyless("::ffff:203.0.113.7"), true},
		"table":                               {StickTable, usual, otherTable, false},
		"table, whoever sends it":             {StickTable, usual, with("203.0.113.8"), true},
		"table, whatever the key":             {StickTable, usual, otherKey, true},
	} {
		seed := bucketSeed(DefaultRule)
		a, b := bucketOf(seed, tc.stick, &tc.a.Caller, tc.a.to), bucketOf(seed, tc.stick, &tc.b.Caller, tc.b.to)
		if (a == b) != tc.same {
			t.Errorf("%s: buckets %d and %d", name, a, b)
		}
	}
	// Without a key, a call sticks to its client just as with stick client.
	c := keyless("2001:DB8::7").Caller
	if a, b := bucketOf("seed", StickKey, &c, orders), bucketOf("seed", StickClient, &Caller{Client: "2001:db8::7"}, orders); a != b {
		t.Errorf("buckets %d and %d", a, b)
	}
}

func TestNamesOfSticks(t *testing.T) {
	for _, name := range StickNames() {
		if stick, err := ParseStick(name); err != nil || stick.String() != name {
			t.Errorf("%s: %v, %v", name, stick, err)
		}
	}
	if _, err := ParseStick("ip"); err == nil || err.Error() != "must be client, key, table" {
		t.Error(err)
	}
}

// clients are so many different addresses.
func clients(n int) (all []Caller) {
	for i := range n {
		all = append(all, Caller{Client: fmt.Sprintf("10.%d.%d.%d", i>>16, i>>8&255, i&255)})
	}
	return all
}

// Raising a share only adds, lowering only removes, and of 10,000 clients so many go to
// v2 as asked, within a point.
func TestRaisingOnlyAdds(t *testing.T) {
	callers := clients(10_000)
	was := make([]Lane, len(callers))
	for i := range was {
		was[i] = Legacy
	}
	for _, share := range []Share{0, 1, 50, 100, 777, 2500, 5000, 5001, 9000, 9999, 10000} {
		p := newPlan([]RuleShare{{DefaultRule, share}}, false, StickClient)
		there := 0
		for i := range callers {
			lane := p.Lane(&callers[i], orders)
			if was[i] == V2 && lane == Legacy {
				t.Fatalf("%s %%: %s goes back", share, callers[i].Client)
			}
			if was[i] = lane; lane == V2 {
				there++
			}
		}
		if off := there - int(share); off < -100 || off > 100 {
			t.Errorf("%s %%: %d of 10,000 go to v2", share, there)
		}
	}
}

// Each rule has buckets of its own: those that go to v2 of one table are not those of
// another.
func TestEachRuleHasItsBuckets(t *testing.T) {
	p := planOf(t, "*.* 0, a.b 50, a.c 50", StickClient)
	both := 0
	for _, c := range clients(10_000) {
		if p.Lane(&c, postback.Destination{Database: "a", Table: "b"}) == V2 && p.Lane(&c, postback.Destination{Database: "a", Table: "c"}) == V2 {
			both++
		}
	}
	if both < 2400 || both > 2600 {
		t.Errorf("%d of 10,000 go to v2 for both", both)
	}
}

// Nothing and all need no bucket: they hold for every bucket there is.
func TestNothingAndAllNeverLookAtABucket(t *testing.T) {
	none, all := planOf(t, "*.* 0", StickClient), planOf(t, "*.* 100", StickClient)
	for _, c := range clients(1000) {
		if none.Lane(&c, orders) != Legacy || all.Lane(&c, orders) != V2 {
			t.Fatal(c.Client)
		}
	}
	// For a bucket, there would have to be room for so long a value.
	long := &Caller{Client: strings.Repeat("x", 2*longBucketText)}
	for _, tc := range []struct {
		plan *Plan
		room bool
	}{{none, false}, {all, false}, {planOf(t, "*.* 50", StickClient), true}} {
		if made := testing.AllocsPerRun(10, func() { tc.plan.Lane(long, orders) }); (made > 0) != tc.room {
			t.Errorf("%s %%: %v allocations", tc.plan.all.share.hundred, made)
		}
	}
}

func TestSeveralTablesGoTogether(t *testing.T) {
	p := planOf(t, "*.* 0, a.* 100, a.no 0, *.* account:7 100", StickClient)
	for _, tc := range []struct {
		key, tables string
		want        Lane
	}{
		{"", "", Legacy}, {"7/ab", "", V2}, {"", "a.b", V2}, {"", "a.b a.c a.d", V2}, {"", "a.b a.no", Legacy}, {"", "a.no a.b", Legacy}, {"", "a.b b.b", Legacy},
		{"7/ab", "a.b b.b", V2}, {"7/ab", "b.b a.no", Legacy}, {"", "a.b .", Legacy}, {"7/ab", "a.b .", V2},
	} {
		var all []postback.Destination
		for name := range strings.FieldsSeq(tc.tables) {
			database, table, _ := strings.Cut(name, ".")
			all = append(all, postback.Destination{Database: database, Table: table})
		}
		if got := p.LaneOfAll(&Caller{Key: tc.key}, all); got != tc.want {
			t.Errorf("key %q, tables %q: %s", tc.key, tc.tables, got)
		}
	}
}

func TestAHoldIsOverEverything(t *testing.T) {
	p := newPlan(rulesOf(t, "*.* 100, shop.orders 100, *.* account:1234 100"), true, StickClient)
	for _, to := range []postback.Destination{orders, {}, {Database: "other", Table: "t"}} {
		c := &Caller{Key: usualKey, Client: "203.0.113.7"}
		if p.Lane(c, to) != Legacy || p.LaneOfAll(c, []postback.Destination{to}) != Legacy {
			t.Error(to)
		}
	}
}

// manyRules are so many rules for tables, of which some are for accounts.
func manyRules(n int, share Share) []RuleShare {
	rules := []RuleShare{{DefaultRule, share}}
	for i := 1; i < n; i++ {
		r := Rule{Target: fmt.Sprintf("database_%d.table_%d", i%100, i)}
		if i%3 == 0 {
			r.Account = strconv.Itoa(i % 50)
		}
		rules = append(rules, RuleShare{r, share})
	}
	slices.SortFunc(rules, func(a, b RuleShare) int { return compareRules(a.Rule, b.Rule) })
	return rules
}

// Calls to decide about, for tables with and without a rule.
func manyCalls(n int) (callers []Caller, to []postback.Destination) {
	random := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // G404: a test's
	for range n {
		i := random.IntN(11_000)
		to = append(to, postback.Destination{Database: fmt.Sprint("database_", i%100), Table: fmt.Sprint("table_", i)})
		callers = append(callers, Caller{Key: fmt.Sprintf("%d/%040x", i%60, i), Client: fmt.Sprintf("198.51.%d.%d", i>>8, i&255)})
	}
	return callers, to
}

func TestDecisionAllocatesNothing(t *testing.T) {
	callers, to := manyCalls(64)
	callers[0].Client = "2001:db8:1234:5678:9abc:def0:1234:5678%eth0"
	callers[1].Client = "::ffff:203.0.113.7"
	callers[2].Key = "1234/" + strings.Repeat("a", 1019) // as long as a key may be
	for _, stick := range []Stick{StickClient, StickKey, StickTable} {
		p := newPlan(manyRules(MaxRules, 1234), false, stick)
		lanes := [2]int{}
		got := testing.AllocsPerRun(100, func() {
			for i := range callers {
				lanes[p.Lane(&callers[i], to[i])]++
			}
			lanes[p.LaneOfAll(&callers[0], to)]++
		})
		if got != 0 {
			t.Errorf("stick %s: %v allocations", stick, got)
		}
		if lanes[V2] == 0 || lanes[Legacy] == 0 {
			t.Errorf("stick %s: %v", stick, lanes)
		}
	}
}

func BenchmarkLane(b *testing.B) {
	callers, to := manyCalls(1024)
	for _, tc := range []struct {
		name  string
		rules int
		share Share
		stick Stick
	}{
		{"default", 1, 2500, StickClient}, {"default to v2", 1, AllToV2, StickClient},
		{"10000 rules", MaxRules, 2500, StickClient}, {"10000 rules to v2", MaxRules, AllToV2, StickClient},
		{"10000 rules by key", MaxRules, 2500, StickKey}, {"10000 rules by table", MaxRules, 2500, StickTable},
	} {
		b.Run(tc.name, func(b *testing.B) {
			p := newPlan(manyRules(tc.rules, tc.share), false, tc.stick)
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				p.Lane(&callers[i&1023], to[i&1023])
			}
		})
	}
}

// TestTablesMatter: only where two tables of a caller may go by different lanes.
func TestTablesMatter(t *testing.T) {
	for _, tc := range []struct {
		rules string
		stick Stick
		want  bool
	}{
		{"*.* 0", StickClient, false},
		{"*.* 100", StickTable, false},
		{"*.* 25", StickClient, false},
		{"*.* 25", StickKey, false},
		{"*.* 25", StickTable, true},
		{"*.* 0, *.* account:1234 100", StickClient, false},
		{"*.* 0, *.* account:1234 50", StickTable, true},
		{"*.* 0, shop.orders 0, crm.* 0", StickClient, false},
		{"*.* 100, shop.orders 100", StickTable, false},
		{"*.* 0, shop.orders 100", StickClient, true},
		{"*.* 100, crm.* 0", StickClient, true},
		{"*.* 50, shop.orders 50", StickClient, true}, // each rule has buckets of its own
		{"*.* 0, shop.orders account:1234 1", StickKey, true},
	} {
		p := planOf(t, tc.rules, tc.stick)
		if got := p.TablesMatter(); got != tc.want {
			t.Errorf("%s by %v: got %v", tc.rules, tc.stick, got)
		}
		if p.underHold().TablesMatter() {
			t.Errorf("%s: rolled back, they do", tc.rules)
		}
		if tc.want {
			continue
		}
		for n := range 100 { // then a call goes by the lane of each of its tables
			c := &Caller{Key: strconv.Itoa(1230+n) + "/a", Client: strconv.Itoa(n)}
			one := p.Lane(c, postback.Destination{})
			for _, to := range []postback.Destination{{Database: "shop", Table: "orders"}, {Database: "crm", Table: "x"}} {
				if got := p.Lane(c, to); got != one {
					t.Errorf("%s by %v: %q goes by %v, and a call without a table by %v", tc.rules, tc.stick, to, got, one)
				}
			}
		}
	}
}
