package caddymodule

import (
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/td-postback/gateway/postback"
	"github.com/td-postback/gateway/spool"
)

// TestResultsFromTheStart compares the results that are counted from the start
// with all that the code can name: a first failure must be a step from 0 to 1,
// as Prometheus does not see the step from nothing to 1.
func TestResultsFromTheStart(t *testing.T) {
	want := map[string]bool{}
	for _, code := range refusalCodes(t, "../postback", ".") {
		want[code] = true
	}
	if len(want) < 15 || !want["spool_full"] || !want["payload_too_large"] {
		t.Fatalf("only these codes were found: %v", want)
	}
	if codes := slices.Sorted(maps.Keys(want)); !slices.Equal(codes, slices.Sorted(slices.Values(postback.RefusalCodes))) {
		t.Errorf("postback.RefusalCodes has %q, and the code makes %q", postback.RefusalCodes, codes)
	}
	results := stringConstants(t, ".", func(name, _ string) bool { return strings.HasSuffix(name, "Result") })
	if !slices.Contains(results, forwardedResult) || !slices.Contains(results, spooledResult) {
		t.Fatalf("only these results were found: %q", results)
	}
	for _, result := range results {
		want[result] = true
	}
	for status := 100; status < 1000; status++ {
		want[upstreamResult(status)] = true
	}

	counted := labelValues(t, resultsTotal, "result")
	for result := range want {
		if !counted[result] {
			t.Errorf("results_total{result=%q} is not there from the start", result)
		}
	}
	for result := range counted {
		if !want[result] {
			t.Errorf("results_total{result=%q} can never be", result)
		}
	}
}

// TestFatesFromTheStart is the same for what becomes of kept records.
func TestFatesFromTheStart(t *testing.T) {
	counted := labelValues(t, spoolFatesTotal, "fate")
	fates := stringConstants(t, "../spool", func(_, kind string) bool { return kind == "Fate" })
	if !slices.Contains(fates, string(spool.Refused)) {
		t.Fatalf("only these fates were found: %q", fates)
	}
	for _, fate := range fates {
		if !counted[fate] {
			t.Errorf("spool_deliveries_total{fate=%q} is not there from the start", fate)
		}
	}
	times := labelValues(t, spoolRecordsTotal, "time")
	for _, name := range postback.RecordTimeNames {
		if !times[name] {
			t.Errorf("spool_records_total{time=%q} is not there from the start", name)
		}
	}
}

// TestKeySignalsFromTheStart is the same for what says that a key is wrong.
func TestKeySignalsFromTheStart(t *testing.T) {
	got := slices.Sorted(maps.Keys(labelValues(t, keySignals, "signal")))
	if want := []string{"cut", "new", "refused", "template", "unusual"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// labelValues are the values of a label that a collector shows.
func labelValues(t *testing.T, collector prometheus.Collector, label string) map[string]bool {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(collector)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]bool{}
	for _, family := range families {
		for _, metric := range family.GetMetric() {
			for _, pair := range metric.GetLabel() {
				if pair.GetName() == label {
					values[pair.GetValue()] = true
				}
			}
		}
	}
	return values
}

// timesCounted is what the counters of a collector show together that have this value of
// a label.
func timesCounted(t *testing.T, collector prometheus.Collector, value string) (times float64) {
	t.Helper()
	times, _ = countedWith(t, collector, value)
	return times
}

// countedWith is that, and the exemplar, as `key=` and the name of a key.
func countedWith(t *testing.T, collector prometheus.Collector, value string) (times float64, exemplar string) {
	t.Helper()
	registry := prometheus.NewRegistry()
	registry.MustRegister(collector)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, metric := range families[0].GetMetric() {
		for _, label := range metric.GetLabel() {
			if label.GetValue() != value {
				continue
			}
			found = true
			times += metric.GetCounter().GetValue()
			for _, label := range metric.GetCounter().GetExemplar().GetLabel() {
				exemplar += label.GetName() + "=" + label.GetValue()
			}
		}
	}
	if !found {
		t.Fatalf("%s is not counted", value)
	}
	return times, exemplar
}

// gaugesOf are the values that a collector of gauges shows.
func gaugesOf(t *testing.T, collector prometheus.Collector) (values []float64) {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(collector)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		for _, metric := range family.GetMetric() {
			values = append(values, metric.GetGauge().GetValue())
		}
	}
	return values
}

// sources parses the Go files of packages, without their tests.
func sources(t *testing.T, dirs ...string) []*ast.File {
	t.Helper()
	var files []*ast.File
	for _, dir := range dirs {
		paths, err := filepath.Glob(filepath.Join(dir, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			if strings.HasSuffix(path, "_test.go") {
				continue
			}
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			files = append(files, file)
		}
	}
	return files
}

// refusalCodes finds the codes of all refusals that packages make.
func refusalCodes(t *testing.T, dirs ...string) (codes []string) {
	t.Helper()
	for _, file := range sources(t, dirs...) {
		ast.Inspect(file, func(n ast.Node) bool {
			made, ok := n.(*ast.CompositeLit)
			if !ok || !strings.HasSuffix(typeName(made.Type), "Refusal") {
				return true
			}
			for _, element := range made.Elts {
				if field, ok := element.(*ast.KeyValueExpr); ok && typeName(field.Key) == "Code" {
					codes = append(codes, literal(t, field.Value))
				}
			}
			return true
		})
	}
	return codes
}

// stringConstants finds the constants whose name and type is asks for.
func stringConstants(t *testing.T, dir string, is func(name, kind string) bool) (values []string) {
	t.Helper()
	for _, file := range sources(t, dir) {
		ast.Inspect(file, func(n ast.Node) bool {
			spec, ok := n.(*ast.ValueSpec)
			if !ok || len(spec.Values) != 1 || !is(spec.Names[0].Name, typeName(spec.Type)) {
				return true
			}
			values = append(values, literal(t, spec.Values[0]))
			return true
		})
	}
	return values
}

func typeName(n ast.Expr) string {
	switch n := n.(type) {
	case *ast.Ident:
		return n.Name
	case *ast.SelectorExpr:
		return n.Sel.Name
	}
	return ""
}

// literal is the text of a string in the source. What is made up when the
// program runs cannot be known before.
func literal(t *testing.T, n ast.Expr) string {
	t.Helper()
	text, ok := n.(*ast.BasicLit)
	if !ok {
		t.Fatalf("%T is no literal: write the text there", n)
	}
	value, err := strconv.Unquote(text.Value)
	if err != nil {
		t.Fatal(err)
	}
	return value
}
