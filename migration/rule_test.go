package migration

import (
	"encoding/json"
	"math/big"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func TestRules(t *testing.T) {
	long := strings.Repeat("a", maxRuleName)
	for _, tc := range []struct{ target, account, text string }{
		{"shop.orders", "", "shop.orders"},
		{"shop.orders", "1234", "shop.orders account:1234"},
		{"shop.*", "", "shop.*"},
		{"shop.*", "1234", "shop.* account:1234"},
		{"*.*", "", "*.*"},
		{"*.*", "1234", "*.* account:1234"},
		{"A_9.0", "01", "A_9.0 account:01"},
		{long + "." + long, "12345678901234567890", long + "." + long + " account:12345678901234567890"},
	} {
		rule, err := ParseRule(tc.target, tc.account)
		if err != nil || rule.String() != tc.text {
			t.Errorf("%s, %s: %v, %v", tc.target, tc.account, rule, err)
		}
	}
}

func TestWrongRules(t *testing.T) {
	const secret = "1234/0123456789abcdef0123456789abcdef01234567"
	for _, tc := range []struct{ target, account, want string }{
		{"", "", errRule.Error()},
		{".", "", errRule.Error()},
		{"shop", "", errRule.Error()},
		{"*", "", errRule.Error()},
		{"shop.", "", errRule.Error()},
		{".orders", "", errRule.Error()},
		{"*.orders", "", errRule.Error()},
		{"shop.ord*", "", errRule.Error()},
		{"shop.**", "", errRule.Error()},
		{"sh*.*", "", errRule.Error()},
		{"shop.orders.more", "", errRule.Error()},
		{"shop.or ders", "", errRule.Error()},
		{"shop.ordérs", "", errRule.Error()},
		{"shop.orders\x00", "", errRule.Error()},
		{"shop.orders account:1234", "", errRule.Error()},
		{"shop." + strings.Repeat("a", maxRuleName+1), "", errRule.Error()},
		{secret, "", errRule.Error()},
		{"shop.orders", secret, "the account must be its number, such as 1234"},
		{"shop.orders", "12x4", "the account must be its number, such as 1234"},
		{"shop.orders", "123456789012345678901", "the account must be its number, such as 1234"},
		{"shop.orders", "*", "the account must be its number, such as 1234"},
	} {
		if rule, err := ParseRule(tc.target, tc.account); err == nil || err.Error() != tc.want {
			t.Errorf("%q, %q: %v, %v", tc.target, tc.account, rule, err)
		}
	}
}

func TestOrderOfRules(t *testing.T) {
	want := []Rule{{"*.*", ""}, {"*.*", "1"}, {"a.*", ""}, {"a.*", "2"}, {"a.b", ""}, {"a.b", "1"}, {"b.*", ""}}
	got := slices.Clone(want)
	slices.Reverse(got)
	slices.SortFunc(got, compareRules)
	if !slices.Equal(got, want) {
		t.Error(got)
	}
}

func TestShares(t *testing.T) {
	for _, tc := range []struct {
		text  string
		share Share
		again string
	}{
		{"0", 0, "0"}, {"0.0", 0, "0"}, {"0.00", 0, "0"}, {"0.01", 1, "0.01"}, {"0.1", 10, "0.1"}, {"0.10", 10, "0.1"}, {"1", 100, "1"}, {"1.05", 105, "1.05"},
		{"10", 1000, "10"}, {"12.34", 1234, "12.34"}, {"12.3", 1230, "12.3"}, {"25", 2500, "25"}, {"99.99", 9999, "99.99"}, {"100", 10000, "100"}, {"100.00", 10000, "100"},
		// As binary fractions, these would be a little less, or more.
		{"0.29", 29, "0.29"}, {"0.57", 57, "0.57"}, {"1.15", 115, "1.15"}, {"8.2", 820, "8.2"}, {"16.08", 1608, "16.08"},
	} {
		share, err := ParseShare(tc.text)
		if err != nil || share != tc.share || share.String() != tc.again {
			t.Errorf("%s: %d, %s, %v", tc.text, share, share, err)
		}
		var decoded RuleShare
		err = json.Unmarshal([]byte(`{"rule":"a.b","percent":`+tc.text+`}`), &decoded)
		if err != nil || decoded.Share != tc.share {
			t.Errorf("%s as JSON: %d, %v", tc.text, decoded.Share, err)
		}
		if text, err := json.Marshal(decoded); err != nil || string(text) != `{"rule":"a.b","percent":`+tc.again+`}` {
			t.Errorf("%s: %s, %v", tc.text, text, err)
		}
	}
	for _, text := range []string{
		"", ".", "-1", "+1", "100.01", "101", "1000", "0025", "025", "00", "12.345", "12.", ".5", "1e1", "1,5", "25%", " 25", "25 ", "0x10", "1_0", "NaN", "Inf",
		"٢٥", "12.3.4", "1.-1", "null", `"25"`, "65561", "4294967321",
	} {
		if share, err := ParseShare(text); err == nil {
			t.Errorf("%q: %d", text, share)
		}
		var decoded RuleShare
		if err := json.Unmarshal([]byte(`{"rule":"a.b","percent":`+text+`}`), &decoded); err == nil && strings.TrimSpace(text) == text {
			t.Errorf("%q as JSON: %d", text, decoded.Share)
		}
	}
}

// Every share is written and read the same.
func TestEachShare(t *testing.T) {
	for share := range AllToV2 + 1 {
		if got, err := ParseShare(share.String()); err != nil || got != share {
			t.Fatalf("%d: %s, then %d, %v", share, share, got, err)
		}
	}
}

// FuzzShare compares with exact fractions.
func FuzzShare(f *testing.F) {
	for _, text := range []string{"25", "12.34", "100.01", "0.29", "1e2", "007"} {
		f.Add(text)
	}
	number := regexp.MustCompile(`\A(0|[1-9][0-9]*)(\.[0-9]{1,2})?\z`)
	f.Fuzz(func(t *testing.T, text string) {
		share, err := ParseShare(text)
		exact, _ := new(big.Rat).SetString("0")
		good := number.MatchString(text)
		if good {
			exact.SetString(text)
			exact.Mul(exact, big.NewRat(100, 1))
			good = exact.Cmp(big.NewRat(int64(AllToV2), 1)) <= 0
		}
		if good != (err == nil) || good && exact.Cmp(big.NewRat(int64(share), 1)) != 0 {
			t.Errorf("%q: %d, %v", text, share, err)
		}
	})
}

// FuzzRule compares with the rule's grammar, and wants its text to be read the same.
func FuzzRule(f *testing.F) {
	for _, seed := range [][2]string{{"shop.orders", "1234"}, {"shop.*", ""}, {"*.*", ""}, {"*.a", ""}, {"a.b*", "1/2"}} {
		f.Add(seed[0], seed[1])
	}
	target := regexp.MustCompile(`\A(\*\.\*|[A-Za-z0-9_]{1,255}\.(\*|[A-Za-z0-9_]{1,255}))\z`)
	account := regexp.MustCompile(`\A[0-9]{0,20}\z`)
	f.Fuzz(func(t *testing.T, text, of string) {
		rule, err := ParseRule(text, of)
		if (err == nil) != (target.MatchString(text) && account.MatchString(of)) {
			t.Fatalf("%q, %q: %v", text, of, err)
		}
		if err != nil {
			return
		}
		again, of, _ := strings.Cut(rule.String(), " account:")
		if same, err := ParseRule(again, of); err != nil || same != rule {
			t.Errorf("%v, then %v: %v", rule, same, err)
		}
	})
}
