package migration

import (
	"errors"
	"fmt"
	"strings"

	"github.com/td-postback/gateway/postback"
)

// This file reads the two words of a plan: which calls a rule is for, and what share of
// them goes to v2.

// Rule says which calls share a lane's decision: those for a table, for all tables of a
// database, or all calls; of all accounts, or of one. Its JSON is part of the admin
// API's.
type Rule struct {
	Target  string `json:"rule"`              // shop.orders, shop.* or *.*
	Account string `json:"account,omitempty"` // an account number, or empty for all
}

// DefaultRule is the rule for all calls that no other one is for.
var DefaultRule = Rule{Target: wildcard + "." + wildcard}

const wildcard = "*"

// maxRuleName is the longest name of a database or table in a rule, in bytes.
const maxRuleName = 255

var errRule = errors.New("the rule must be database.table, database.* or *.*, where a name is letters, digits and _, at most 255 of them")

// ErrAccount says what an account must be.
var ErrAccount = errors.New("the account must be its number, such as 1234")

// ParseRule reads a rule, as it is given to a command: `shop.orders`, `shop.*` or `*.*`,
// and an account number, or nothing for all accounts. Its errors do not show what was
// given: that may be a key.
func ParseRule(target, account string) (Rule, error) {
	database, table, _ := strings.Cut(target, ".")
	switch {
	case !isRuleName(database) || !isRuleName(table) || database == wildcard && table != wildcard:
		return Rule{}, errRule
	case account != "" && !postback.ValidAccount(account):
		return Rule{}, ErrAccount
	}
	return Rule{target, account}, nil
}

// isRuleName reports whether a text is a name, or stands for all names.
func isRuleName(name string) bool {
	if name == wildcard {
		return true
	}
	return len(name) <= maxRuleName && !strings.HasSuffix(name, wildcard) && postback.ValidNamePattern(name)
}

// String is the rule's text, from which its buckets are made, too: `shop.orders`, or
// `shop.orders account:1234`.
func (r Rule) String() string {
	if r.Account == "" {
		return r.Target
	}
	return r.Target + " account:" + r.Account
}

// names are the rule's database and table.
func (r Rule) names() (database, table string) {
	database, table, _ = strings.Cut(r.Target, ".")
	return database, table
}

// compareRules orders rules by their targets, and then by their accounts: the default
// first, and all tables of a database before each of them.
func compareRules(a, b Rule) int {
	if a.Target != b.Target {
		return strings.Compare(a.Target, b.Target)
	}
	return strings.Compare(a.Account, b.Account)
}

// Share is how much of a rule's calls goes to v2, in hundredths of a percent: from 0 to
// AllToV2.
type Share uint16

// The shares that need no bucket.
const (
	NoneToV2 Share = 0
	AllToV2  Share = 100_00
)

var errShare = errors.New("the share must be a percentage from 0 to 100, with at most two digits behind the point, such as 25 or 12.34")

// ParseShare reads a percentage, such as `25` or `12.34`. It is exact: what has more
// than two digits behind the point is an error.
func ParseShare(text string) (Share, error) {
	whole, part, hasPoint := strings.Cut(text, ".")
	if whole == "" || len(whole) > 3 || len(part) > 2 || hasPoint && part == "" || len(whole) > 1 && whole[0] == '0' {
		return 0, errShare
	}
	hundredths := 0
	for _, digit := range []byte(whole + part + "00"[len(part):]) {
		if !isDigit(digit) {
			return 0, errShare
		}
		hundredths = hundredths*10 + int(digit-'0')
	}
	if hundredths > int(AllToV2) {
		return 0, errShare
	}
	return Share(hundredths), nil
}

// String is the percentage, such as `25` or `12.34`.
func (s Share) String() string {
	text := fmt.Sprintf("%d.%02d", s/100, s%100)
	return strings.TrimSuffix(strings.TrimRight(text, "0"), ".")
}

// MarshalJSON writes the percentage as a number.
func (s Share) MarshalJSON() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalJSON reads a number, by its digits: no binary fraction comes between.
func (s *Share) UnmarshalJSON(number []byte) (err error) {
	*s, err = ParseShare(string(number))
	return err
}

// RuleShare is a rule and its share.
type RuleShare struct {
	Rule
	Share Share `json:"percent"`
}

// String is for people: `shop.orders 12.34 %`.
func (r RuleShare) String() string { return r.Rule.String() + " " + r.Share.String() + " %" }
