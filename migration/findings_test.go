package migration

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/td-postback/gateway/postback"
)

// aboutTheGateway has the codes of refusals that say nothing of the call.
var aboutTheGateway = []string{"upstream_unreachable", "upstream_timeout", "spool_full", "spool_unavailable", "overloaded", "loop_detected"}

// Each refusal that speaks of the call is a finding, so that no code is forgotten
// here when one is added there.
func TestEachRefusalIsAFinding(t *testing.T) {
	for _, code := range postback.RefusalCodes {
		f, ok := FindingOf(code)
		if about := slices.Contains(aboutTheGateway, code); ok == about {
			t.Errorf("%s: a finding is %v", code, ok)
		}
		if ok && (f.String() != code || f.Kind() != Refused) {
			t.Errorf("%s: %s, %s", code, f, f.Kind())
		}
	}
}

func TestFindings(t *testing.T) {
	name := regexp.MustCompile(`^[a-z0-9]+(_[a-z0-9]+)*$`)
	seen := map[string]bool{}
	for f := range findings {
		if !name.MatchString(f.String()) || seen[f.String()] {
			t.Errorf("%d: the name %q", f, f)
		}
		seen[f.String()] = true
		advice := f.Advice()
		if !strings.HasSuffix(advice, ".") || strings.Contains(advice, "\n") || len(advice) < 15 || len(advice) > 160 {
			t.Errorf("%s: the advice is %q", f, advice)
		}
		if got, ok := FindingOf(f.String()); !ok || got != f {
			t.Errorf("%s: found %s, %v", f, got, ok)
		}
	}
	for _, want := range []string{ // those that the audit is specified by
		"missing_write_key", "payload_too_large", "from_query", "authorization_dropped", "body_type_mended", "time_ignored", "legacy_refused",
	} {
		if !seen[want] {
			t.Errorf("%s is missing", want)
		}
	}
	if _, ok := FindingOf("forwarded"); ok {
		t.Error("a result is a finding")
	}
}

// TestDocumentedFindings: the document has all of them, with what to do.
func TestDocumentedFindings(t *testing.T) {
	text, err := os.ReadFile("../docs/callers.md")
	if err != nil {
		t.Fatal(err)
	}
	for f := range findings {
		if line := fmt.Sprintf("\n| `%s` | %s | %s |\n", f, f.Kind(), f.Advice()); !strings.Contains(string(text), line) {
			t.Errorf("docs/callers.md has no line%s", line)
		}
	}
}

func TestSetOfFindings(t *testing.T) {
	var set Findings
	if set.LegacyForm() || len(slices.Collect(set.All())) > 0 {
		t.Errorf("none: %v", set)
	}
	set.Add(TimeIgnored)
	set.Add(TemplateKey)
	if set.LegacyForm() {
		t.Error("what is only noted makes a call one that v2 does not take")
	}
	set.Add(FromQuery)
	set.Add(FromQuery)
	if !set.LegacyForm() || !set.Has(FromQuery) || set.Has(KeyInURL) {
		t.Errorf("%v", set)
	}
	if got := slices.Collect(set.All()); !slices.Equal(got, []Finding{FromQuery, TimeIgnored, TemplateKey}) {
		t.Errorf("%v", got)
	}
	for f := range set.All() {
		if f != FromQuery {
			t.Error(f)
		}
		break
	}
	for f := range findings {
		var one Findings
		one.Add(f)
		if want := f.Kind() != Noted && f != RequestTimeout; one.LegacyForm() != want {
			t.Errorf("%s, %s: legacy form is %v", f, f.Kind(), one.LegacyForm())
		}
	}
}
