package caddymodule

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"

	"github.com/td-postback/gateway/migration"
)

// This file has td-migrate audit.

func addAuditCommand(cmd *cobra.Command) {
	audit := &cobra.Command{
		Use: "audit", Short: "Says whether the callers can be moved to v2, and what is to change",
		Long: auditHelp,
	}
	audit.Flags().String("since", auditTime, "Only callers, and findings, seen within this time, such as 24h or 7d")
	audit.Flags().String("format", formatTable, "One of "+strings.Join(formats, ", "))
	audit.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return noVerdict(cmd, nearestFlag(cmd, err)) })
	audit.Args = func(cmd *cobra.Command, args []string) error { return noVerdict(cmd, noArguments(cmd, args)) }
	audit.RunE = func(cmd *cobra.Command, _ []string) error {
		a, err := auditCommand(caddycmd.Flags{FlagSet: cmd.Flags()})
		if err != nil || a.Verdict != migration.VerdictNot {
			return noVerdict(cmd, err)
		}
		cmd.SilenceErrors = true // it is an answer
		return errNotReady
	}
	cmd.AddCommand(audit)
}

// errNotReady makes the exit code 1. What is to be said of it is said already.
var errNotReady = errors.New(string(migration.VerdictNot))

// noVerdict says what has gone wrong, if anything has. The exit code is then above 1.
func noVerdict(cmd *cobra.Command, err error) error {
	if err == nil {
		return nil
	}
	cmd.SilenceErrors = true
	cmd.PrintErrln(cmd.ErrPrefix(), oneLine(err.Error()))
	return endWithoutVerdict(cmd, nil)
}

// endWithoutVerdict has Caddy end the process: only it has exit codes above 1.
var endWithoutVerdict = caddycmd.WrapCommandFuncForCobra(func(caddycmd.Flags) (int, error) { return caddy.ExitCodeFailedQuit, nil })

func auditCommand(fs caddycmd.Flags) (*migration.Audit, error) {
	format, err := formatOf(fs)
	if err != nil {
		return nil, err
	}
	since := fs.String("since")
	if _, err := parseAuditTime(since); err != nil {
		return nil, fmt.Errorf("--%w", err)
	}
	var a migration.Audit
	if err := askAdmin(fs, http.MethodGet, "/td_postback/migration/audit?since="+url.QueryEscape(since), &a); err != nil {
		return nil, err
	}
	switch format {
	case formatCSV:
		return &a, a.WriteCSV(os.Stdout)
	case formatJSON:
		return &a, printJSON(&a)
	default:
		return &a, printAudit(&a)
	}
}

// printAudit writes the audit for people: the verdict is its end.
func printAudit(a *migration.Audit) error {
	fmt.Printf("%d callers since %s\n", len(a.Callers), a.Since.UTC().Format(time.RFC3339))
	if a.NotSaved != "" {
		fmt.Printf("\nThe report is not on disk, and a restart loses it: %s\n", a.NotSaved)
	}
	if len(a.Callers) > 0 {
		fmt.Println()
		table := newTable("VERDICT", "KEY", "DATABASE", "TABLE", "SURFACE", "AGENT", "SOURCE", "EVENTS", "LAST SEEN", "FINDINGS")
		for i := range a.Callers {
			c := &a.Callers[i]
			found := make([]string, 0, len(c.Findings))
			for n := range c.Findings {
				found = append(found, fmt.Sprintf("%s %d", c.Findings[n].Name, c.Findings[n].Events))
			}
			table.row(string(c.Verdict), cmp.Or(c.Key, "-"), cmp.Or(c.Database, "-"), cmp.Or(c.Table, "-"), cmp.Or(c.Surface, "-"), cmp.Or(c.Agent, "-"), cmp.Or(c.Source, "-"),
				strconv.FormatUint(c.Events, 10), c.LastSeen.UTC().Format(time.RFC3339), cmp.Or(strings.Join(found, ", "), "-"))
		}
		if err := table.Flush(); err != nil {
			return err
		}
	}
	if len(a.Findings) > 0 {
		fmt.Print("\nWhat to change:\n\n")
	}
	for i := range a.Findings {
		f := &a.Findings[i]
		fmt.Printf("%s (%s, %d events of %d callers): %s\n", f.Name, f.Kind, f.Events, f.Callers, f.Advice)
	}
	fmt.Printf("\n%s\nVerdict: %s\n", a.Reason, a.Verdict)
	return nil
}
