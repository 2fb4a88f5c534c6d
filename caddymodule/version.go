package caddymodule

import (
	"cmp"
	"regexp"
	"runtime/debug"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
)

// modulePath is how builds call this repository.
const modulePath = "github.com/td-postback/gateway"

// A build can set them, and then they are what counts:
//
//	go build -ldflags "-X github.com/td-postback/gateway/caddymodule.version=v1.2.3 -X github.com/td-postback/gateway/caddymodule.revision=0123abcd" ./cmd/caddy
var version, revision string

// buildInfo shows the version as a metric. It belongs to the process, like the
// other collectors.
var buildInfo = func() prometheus.Gauge {
	version, revision := ownVersion()
	gauge := prometheus.NewGauge(prometheus.GaugeOpts{
		Namespace: "caddy", Subsystem: "td_postback", Name: "build_info",
		Help:        "Always 1. The labels are the version of the gateway and the commit that it was built from.",
		ConstLabels: prometheus.Labels{"version": version, "revision": revision},
	})
	gauge.Set(1)
	return gauge
}()

// ownVersion is the version of the gateway in this binary and the commit that
// it was built from. A build that has neither is "(devel)" and "unknown".
func ownVersion() (string, string) {
	info, _ := debug.ReadBuildInfo()
	return versionOf(info)
}

// addVersion gives a command the flag --version, which prints one line.
func addVersion(cmd *cobra.Command) {
	version, revision := ownVersion()
	cmd.Version = version + " " + revision
	cmd.SetVersionTemplate("{{.Version}}\n")
}

// pseudoVersion is a version that Go makes from a commit without a tag.
var pseudoVersion = regexp.MustCompile(`[.-][0-9]{14}-([0-9a-f]{12})(?:\+(dirty))?`)

// noVersion are the versions that say nothing: what Go calls a build without
// one, and what stands for a version where a directory replaces the module.
var noVersion = map[string]bool{
	"(devel)": true, "v0.0.0": true, "v0.0.0-00010101000000-000000000000": true,
}

// versionOf finds the version and the commit of this module in a build, which
// may be a build of somebody else's command. No info is a build without modules.
func versionOf(info *debug.BuildInfo) (string, string) {
	if info == nil {
		info = &debug.BuildInfo{}
	}
	built := moduleVersion(info)
	if noVersion[built] {
		built = ""
	}
	var commit string
	// The stamp is of the main module's repository: for us it counts only there.
	if info.Main.Path == modulePath {
		commit = stamp(info.Settings)
	}
	if match := pseudoVersion.FindStringSubmatch(built); match != nil {
		commit = cmp.Or(commit, dirty(match[1], match[2] != ""))
	}
	return cmp.Or(version, built, "(devel)"), cmp.Or(revision, commit, "unknown")
}

// moduleVersion is the version of this module, as a build lists it.
func moduleVersion(info *debug.BuildInfo) string {
	for _, module := range append([]*debug.Module{&info.Main}, info.Deps...) {
		if module.Path != modulePath {
			continue
		}
		if module.Replace != nil {
			// A directory has no version of its own.
			return cmp.Or(module.Replace.Version, module.Version)
		}
		return module.Version
	}
	return ""
}

// stamp is the commit in the settings of a build.
func stamp(settings []debug.BuildSetting) string {
	values := map[string]string{}
	for _, setting := range settings {
		values[setting.Key] = setting.Value
	}
	return dirty(values["vcs.revision"], values["vcs.modified"] == "true")
}

// dirty marks a commit if the files were others, as Go marks versions.
func dirty(commit string, modified bool) string {
	if commit != "" && modified {
		commit += "+dirty"
	}
	return commit
}
