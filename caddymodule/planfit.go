package caddymodule

import (
	"fmt"
	"strings"
	"time"

	"github.com/td-postback/gateway/migration"
)

// This file tells who gives a rule a share what the rule is about: that nobody sends to a
// table whose name is misspelt, and which other rules decide before it.

// shownFit is what a rule is about, over the admin API.
type shownFit struct {
	migration.Fit
	Meant string `json:"did_you_mean,omitempty"` // a rule with nearly the same name, for which there are events
}

func fitOf(plan *migration.Steering, report *migration.Report, rule migration.Rule) *shownFit {
	fit := &shownFit{Fit: *plan.Fit(rule, report, time.Now())}
	if fit.Week == 0 {
		fit.Meant = nearest(rule.Target, likeRule(rule, fit.Tables))
	}
	return fit
}

// likeRule are the tables, or the databases if the rule is for one, as rules name them.
func likeRule(rule migration.Rule, tables []string) []string {
	if !strings.HasSuffix(rule.Target, ".*") {
		return tables
	}
	var databases []string
	for _, table := range tables { // which are in order
		database, _, _ := strings.Cut(table, ".")
		if last := len(databases) - 1; last < 0 || databases[last] != database+".*" {
			databases = append(databases, database+".*")
		}
	}
	return databases
}

// printFit says what of a rule may surprise.
func printFit(rule migration.Rule, fit *shownFit) {
	switch {
	case fit == nil: // the gateway is older than this command
		return
	case fit.Week == 0:
		fmt.Printf("This gateway's report has no event of the last 7 days for %s%s.\n", rule, didYouMean(fit.Meant))
		if fit.Several > 0 {
			fmt.Printf("It has %d that came in requests with several tables, and does not say for which.\n", fit.Several)
		}
	case fit.Hour == 0:
		fmt.Printf("This gateway's report has no event of the last hour, or since its start, for %s, but %d of the last 7 days.\n", rule, fit.Week)
	}
	if len(fit.Before) > 0 {
		fmt.Printf("More specific rules decide before it, and stay as they are: %s.\n", listed(fit.Before))
	}
}

// maxListedRules is how many rules are listed in a line. td-migrate status has all.
const maxListedRules = 10

// listed lists things of the plan in a line.
func listed[T fmt.Stringer](all []T) string {
	texts := make([]string, 0, maxListedRules+1)
	for i, one := range all {
		if i == maxListedRules {
			texts = append(texts, fmt.Sprintf("and %d more, which td-migrate status shows", len(all)-i))
			break
		}
		texts = append(texts, one.String())
	}
	return strings.Join(texts, ", ")
}
