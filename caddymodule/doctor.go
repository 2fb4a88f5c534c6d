package caddymodule

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2/caddyconfig"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"
)

func init() {
	caddycmd.RegisterCommand(caddycmd.Command{
		Name:  "td-doctor",
		Usage: "[--config <file>] [--adapter <name>] [--offline]",
		Short: "Says what will bite in a configuration with td_postback",
		Long: `
Reads a configuration and says in plain words, the worst first, what will lose
records, show write keys or bite later, and what to write instead. It starts
nothing, and makes and changes no file.

	$ caddy td-doctor --config Caddyfile
	$ caddy td-doctor --config caddy.json --offline

It also asks each v2 host of the configuration, and with migrate each legacy
host, with a record without a key, which they refuse and cannot store, and looks
at this machine: memory, open files, the directories of the spool, the plan and
the report. Run it where the gateway runs, as its user and with its environment.
--offline asks nobody.

The exit code is 1 if something would lose records, or if the configuration
cannot be read, and else 0.
`,
		CobraFunc: func(cmd *cobra.Command) {
			cmd.Flags().StringP("config", "c", "Caddyfile", "The configuration to look at; - for the standard input")
			cmd.Flags().StringP("adapter", "a", "", "The configuration's form (default caddyfile; none for a .json file)")
			cmd.Flags().Bool("offline", false, "Ask no v2 host, and no legacy host")
			cmd.Args = noArguments
			cmd.SetFlagErrorFunc(nearestFlag)
			cmd.RunE = runDoctor
		},
	})
}

// errFindings ends the command with exit code 1. What is wrong has been printed.
var errFindings = errors.New("something would lose records")

func runDoctor(cmd *cobra.Command, _ []string) error {
	cmd.SilenceUsage = true
	flags := caddycmd.Flags{FlagSet: cmd.Flags()}
	file, adapter := flags.String("config"), flags.String("adapter")
	if adapter == "" && !strings.HasSuffix(strings.ToLower(file), ".json") {
		adapter = "caddyfile"
	}
	config, err := adapted(file, adapter)
	if err != nil {
		return err
	}
	e, err := examine(config)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	e.json = adapter != "caddyfile"
	all := slices.Concat(checkConfiguration(e), noteKeys(e), noteOpen(e), probeMachine(e))
	if !flags.Bool("offline") {
		all = slices.Concat(all, probeUpstreams(e), probeLegacies(e), probeClusters(e))
	}
	if printFindings(cmd.OutOrStdout(), file, all) {
		cmd.SilenceErrors = true
		return errFindings
	}
	return nil
}

// adapted reads a configuration and makes JSON of it, as `caddy adapt` does. Without
// an adapter it is JSON.
func adapted(file, adapter string) ([]byte, error) {
	config, err := os.ReadFile(file) //nolint:gosec // G304: the operator names it
	if file == "-" {
		config, err = io.ReadAll(os.Stdin)
	}
	if err != nil {
		return nil, err
	}
	if adapter == "" {
		return config, nil
	}
	from := caddyconfig.GetAdapter(adapter)
	if from == nil {
		return nil, fmt.Errorf("--adapter %q: this binary has no such adapter; caddyfile is one", adapter)
	}
	config, _, err = from.Adapt(config, map[string]any{"filename": file})
	return config, err
}

// headings are above the findings of a severity.
var headings = map[severity]string{
	losesRecords: "LOSES RECORDS",
	showsKeys:    "SHOWS WRITE KEYS",
	bites:        "MAY BITE LATER",
	inOrder:      "IN ORDER",
}

// printFindings prints the findings, the worst first, and reports whether one
// would lose records.
func printFindings(out io.Writer, file string, all []finding) (loses bool) {
	slices.SortStableFunc(all, func(a, b finding) int { return int(a.severity - b.severity) })
	above := severity(-1)
	for i, f := range all {
		if f.severity != above {
			above = f.severity
			_, _ = fmt.Fprintf(out, "%s\n\n", headings[above])
		}
		_, _ = fmt.Fprintf(out, "%2d. %s\n", i+1, f.what)
		if f.instead != "" {
			instead := strings.ReplaceAll(strings.ReplaceAll(f.instead, "\t", "    "), "\n", "\n    ")
			_, _ = fmt.Fprintf(out, "    Instead: %s\n", instead)
		}
		_, _ = fmt.Fprintln(out)
	}
	loses = len(all) > 0 && all[0].severity == losesRecords
	_, _ = fmt.Fprintln(out, verdict(file, all))
	return loses
}

// verdict sums the findings up.
func verdict(file string, all []finding) string {
	counts := map[severity]int{}
	for _, f := range all {
		counts[f.severity]++
	}
	switch {
	case counts[losesRecords] > 0:
		return fmt.Sprintf("%s: do not use it like this. Findings that lose records: %d.", file, counts[losesRecords])
	case counts[showsKeys]+counts[bites] > 0:
		return fmt.Sprintf("%s: it would lose no record that the doctor knows of. Findings worth a change: %d.", file, counts[showsKeys]+counts[bites])
	default:
		return fmt.Sprintf("%s: the doctor finds nothing to change.", file)
	}
}
