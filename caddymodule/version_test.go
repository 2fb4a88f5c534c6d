package caddymodule

import (
	"runtime/debug"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
)

func TestVersionOf(t *testing.T) {
	const commit = "0123456789abcdef0123456789abcdef01234567"
	stamped := func(revision, modified string) []debug.BuildSetting {
		return []debug.BuildSetting{{Key: "-trimpath", Value: "true"}, {Key: "vcs.revision", Value: revision}, {Key: "vcs.modified", Value: modified}}
	}
	ours := func(version string) debug.Module { return debug.Module{Path: modulePath, Version: version} }
	// What xcaddy makes: a command without a name, with the gateway among others.
	foreign := func(gateway debug.Module, settings ...debug.BuildSetting) *debug.BuildInfo {
		return &debug.BuildInfo{
			Main:     debug.Module{Path: "caddy", Version: "(devel)"},
			Deps:     []*debug.Module{{Path: "github.com/caddyserver/caddy/v2", Version: "v2.11.9"}, &gateway},
			Settings: settings,
		}
	}
	replaced := func(by debug.Module) debug.Module {
		return debug.Module{Path: modulePath, Version: "v0.0.0", Replace: &by}
	}
	for _, test := range []struct {
		name              string
		info              *debug.BuildInfo
		version, revision string
	}{
		{"no information", nil, "(devel)", "unknown"},
		{"another module only", &debug.BuildInfo{Main: debug.Module{Path: "other", Version: "v1.0.0"}}, "(devel)", "unknown"},
		{"go run, or -buildvcs=false", &debug.BuildInfo{Main: ours("(devel)")}, "(devel)", "unknown"},
		{
			"go build at a tag", &debug.BuildInfo{Main: ours("v1.2.3"), Settings: stamped(commit, "false")},
			"v1.2.3", commit,
		},
		{
			"go build in between", &debug.BuildInfo{Main: ours("v1.2.4-0.20250102030405-0123456789ab+dirty"), Settings: stamped(commit, "true")},
			"v1.2.4-0.20250102030405-0123456789ab+dirty", commit + "+dirty",
		},
		{
			"go build before Go made versions", &debug.BuildInfo{Main: ours("(devel)"), Settings: stamped(commit, "true")},
			"(devel)", commit + "+dirty",
		},
		{"go install at a version", &debug.BuildInfo{Main: ours("v1.2.3")}, "v1.2.3", "unknown"},
		{"go install at a commit", &debug.BuildInfo{Main: ours("v0.0.0-20250102030405-0123456789ab")}, "v0.0.0-20250102030405-0123456789ab", "0123456789ab"},
		{"xcaddy", foreign(ours("v1.2.3")), "v1.2.3", "unknown"},
		{"xcaddy at a commit", foreign(ours("v1.2.4-0.20250102030405-0123456789ab")), "v1.2.4-0.20250102030405-0123456789ab", "0123456789ab"},
		{
			"a command in a repository of its own", foreign(ours("v1.2.3"), stamped(strings.Repeat("f", 40), "true")...),
			"v1.2.3", "unknown",
		},
		{"replaced by a fork", foreign(replaced(debug.Module{Path: "example.com/fork", Version: "v1.2.3-fork"})), "v1.2.3-fork", "unknown"},
		{"replaced by a directory", foreign(replaced(debug.Module{Path: "/src"})), "(devel)", "unknown"},
		{
			"replaced by a directory, with a version for it",
			foreign(debug.Module{Path: modulePath, Version: "v0.0.0-20250102030405-0123456789ab", Replace: &debug.Module{Path: "/src"}}),
			"v0.0.0-20250102030405-0123456789ab", "0123456789ab",
		},
		{
			"replaced by a directory, without a version",
			foreign(debug.Module{Path: modulePath, Version: "v0.0.0-00010101000000-000000000000", Replace: &debug.Module{Path: "/src"}}),
			"(devel)", "unknown",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			if version, revision := versionOf(test.info); version != test.version || revision != test.revision {
				t.Errorf("got %q, %q, want %q, %q", version, revision, test.version, test.revision)
			}
		})
	}
}

// TestVersionBySetting has the linker's settings count before all else, each for
// itself.
func TestVersionBySetting(t *testing.T) {
	defer func(v, r string) { version, revision = v, r }(version, revision)
	info := &debug.BuildInfo{
		Main:     debug.Module{Path: modulePath, Version: "v1.2.3"},
		Settings: []debug.BuildSetting{{Key: "vcs.revision", Value: "0123"}},
	}
	version, revision = "v9", "abcd"
	if version, revision := versionOf(info); version != "v9" || revision != "abcd" {
		t.Errorf("with both set: %q, %q", version, revision)
	}
	version, revision = "v9", ""
	if version, revision := versionOf(info); version != "v9" || revision != "0123" {
		t.Errorf("with a version set: %q, %q", version, revision)
	}
}

// TestBuildInfo finds the version in a registry that a configuration has.
func TestBuildInfo(t *testing.T) {
	registry := prometheus.NewRegistry()
	if err := registerMetrics(registry); err != nil {
		t.Fatal(err)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	version, revision := ownVersion()
	for _, family := range families {
		if family.GetName() != "caddy_td_postback_build_info" {
			continue
		}
		if len(family.GetMetric()) != 1 || family.GetMetric()[0].GetGauge().GetValue() != 1 {
			t.Errorf("got %v, want a gauge of 1", family.GetMetric())
		}
		labels := map[string]string{}
		for _, pair := range family.GetMetric()[0].GetLabel() {
			labels[pair.GetName()] = pair.GetValue()
		}
		if len(labels) != 2 || labels["version"] != version || labels["revision"] != revision || version == "" || revision == "" {
			t.Errorf("labels %v, want version %q and revision %q", labels, version, revision)
		}
		return
	}
	t.Error("there is no such metric")
}

// TestVersionFlag has a command print its version and run nothing.
func TestVersionFlag(t *testing.T) {
	var out strings.Builder
	cmd := &cobra.Command{Use: "td-postback", RunE: func(*cobra.Command, []string) error {
		t.Error("the command ran")
		return nil
	}}
	addVersion(cmd)
	cmd.SetOut(&out)
	cmd.SetArgs([]string{"--version"})
	if err := cmd.Execute(); err != nil {
		t.Fatal(err)
	}
	version, revision := ownVersion()
	if want := version + " " + revision + "\n"; out.String() != want {
		t.Errorf("printed %q, want %q", out.String(), want)
	}
}
