package gateway

import (
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const (
	module = "github.com/td-postback/gateway"
	caddy  = "github.com/caddyserver/"
)

// layer is one package of this repository, and what it may import. Its tests may
// import what they like.
type layer struct {
	ours     []string // packages of this repository
	caddy    bool     // Caddy's packages
	standard bool     // nothing but the standard library
}

// layers has every package: a new one needs a line here. An arrow may only point
// down.
var layers = map[string]layer{
	"cmd/caddy": {ours: []string{"caddymodule"}, caddy: true},
	".":         {ours: []string{"caddymodule"}},

	"caddymodule": {ours: []string{"upstream", "spool", "spool/disk", "spool/cluster", "migration", "console", "migration/cluster", "postback", "sandbox"}, caddy: true},

	"upstream":          {ours: []string{"postback"}},
	"migration":         {ours: []string{"postback"}},
	"migration/cluster": {ours: []string{"migration"}},
	"spool/disk":        {ours: []string{"spool"}},
	"spool/cluster":     {ours: []string{"spool"}},

	"postback": {standard: true},
	"console":  {standard: true},
	"spool":    {},
	"sandbox":  {},

	// What tests and measures the others from outside.
	"spool/cluster/natstest": {},
	"spool/mounttest":        {},
	"integration":            {},
	"bench":                  {},
	"bench/standin":          {},
	"bench/stock":            {caddy: true},
}

// TestLayers fails when a package imports what is above it.
func TestLayers(t *testing.T) {
	output, err := exec.Command("go", "list", "-f", "{{.ImportPath}}{{range .Imports}} {{.}}{{end}}", "./...").Output()
	if exit := new(exec.ExitError); errors.As(err, &exit) {
		t.Fatalf("go list: %v\n%s", err, exit.Stderr)
	} else if err != nil {
		t.Fatal(err)
	}
	imports := map[string][]string{}
	for line := range strings.Lines(string(output)) {
		words := strings.Fields(line)
		imports[ourName(words[0])] = words[1:]
	}
	for _, wrong := range wrongArrows(imports) {
		t.Error(wrong)
	}
}

// ourName is a package's path within this repository, or "" for all others.
func ourName(path string) string {
	if path == module {
		return "."
	}
	name, ours := strings.CutPrefix(path, module+"/")
	if !ours {
		return ""
	}
	return name
}

// wrongArrows compares what the packages import with what they may.
func wrongArrows(imports map[string][]string) (wrong []string) {
	for name := range layers {
		if _, exists := imports[name]; !exists {
			wrong = append(wrong, fmt.Sprintf("there is no package %s: take it out of layers", name))
		}
	}
	for name, paths := range imports {
		layer, known := layers[name]
		if !known {
			wrong = append(wrong, fmt.Sprintf("package %s is not in layers: say there what it may import", name))
			continue
		}
		for _, path := range paths {
			if !layer.allows(path) {
				wrong = append(wrong, fmt.Sprintf("package %s must not import %s", name, path))
			}
		}
	}
	slices.Sort(wrong)
	return wrong
}

// allows says whether a package of the layer may import another.
func (l layer) allows(path string) bool {
	if name := ourName(path); name != "" {
		return slices.Contains(l.ours, name)
	}
	if strings.HasPrefix(path, caddy) {
		return l.caddy
	}
	// Paths of the standard library have no dot in their first part.
	host, _, _ := strings.Cut(path, "/")
	return !l.standard || !strings.Contains(host, ".")
}

// TestWrongArrows adds one wrong thing at a time to what is allowed.
func TestWrongArrows(t *testing.T) {
	for _, test := range []struct{ name, imports, want string }{
		{"postback", "net/url", ""},
		{"postback", "golang.org/x/net/http/httpguts", "package postback must not import golang.org/x/net/http/httpguts"},
		{"postback", module + "/sandbox", "package postback must not import " + module + "/sandbox"},
		{"upstream", module + "/postback", ""},
		{"upstream", "github.com/valyala/fasthttp", ""},
		{"upstream", module + "/spool", "package upstream must not import " + module + "/spool"},
		{"upstream", caddy + "caddy/v2", "package upstream must not import " + caddy + "caddy/v2"},
		{"console", module + "/migration", "package console must not import " + module + "/migration"},
		{"migration", module + "/postback", ""},
		{"migration", "go.etcd.io/bbolt", ""},
		{"migration", module + "/upstream", "package migration must not import " + module + "/upstream"},
		{"migration", caddy + "caddy/v2", "package migration must not import " + caddy + "caddy/v2"},
		{"spool", module + "/spool/disk", "package spool must not import " + module + "/spool/disk"},
		{"spool", module + "/postback", "package spool must not import " + module + "/postback"},
		{"spool/disk", module + "/spool", ""},
		{"spool/disk", module + "/spool/cluster", "package spool/disk must not import " + module + "/spool/cluster"},
		{"sandbox", module + "/postback", "package sandbox must not import " + module + "/postback"},
		{"bench", module + "/caddymodule", "package bench must not import " + module + "/caddymodule"},
		{"caddymodule", module, "package caddymodule must not import " + module},
		{".", module + "/caddymodule", ""},
		{"cmd/caddy", caddy + "caddy/v2/cmd", ""},
		{"other", "fmt", "package other is not in layers: say there what it may import"},
	} {
		imports := map[string][]string{}
		for name := range layers {
			imports[name] = nil
		}
		imports[test.name] = append(imports[test.name], "context", test.imports)
		if got := strings.Join(wrongArrows(imports), "; "); got != test.want {
			t.Errorf("%s with %s: %q, want %q", test.name, test.imports, got, test.want)
		}
	}
	imports := map[string][]string{}
	for name := range layers {
		imports[name] = nil
	}
	delete(imports, "upstream")
	if got := wrongArrows(imports); !slices.Equal(got, []string{"there is no package upstream: take it out of layers"}) {
		t.Errorf("without upstream: %q", got)
	}
}
