package caddymodule

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"

	"github.com/td-postback/gateway/migration"
)

func init() {
	caddycmd.RegisterCommand(caddycmd.Command{
		Name:  "td-migrate",
		Usage: "status|share|unset|rollback|resume|history|undo|audit|callers",
		Short: "Moves traffic from the legacy host to v2, and back, and shows what is left to change",
		Long: `
Asks a running gateway, over Caddy's admin API, for its plan, which says what goes to
v2 and what to the legacy host, and changes it. A change holds from the next request.
The option migrate of td_postback switches it on.

	$ caddy td-migrate status
	$ caddy td-migrate share shop.orders 5 --dry-run
	$ caddy td-migrate share shop.orders 5 --note "first shops"
	$ caddy td-migrate share 'shop.*' 12.34 --account 1234
	$ caddy td-migrate unset shop.orders
	$ caddy td-migrate rollback
	$ caddy td-migrate resume
	$ caddy td-migrate history
	$ caddy td-migrate undo

audit says whether callers can be moved to v2, and what is to change before.

	$ caddy td-migrate audit
	$ caddy td-migrate audit --since 7d --format json

callers shows the report of callers: one row for each key, table, surface, agent and
source. A key is shown by its fingerprint, and no value of a record is shown. The
option report of td_postback switches it on, and so does migrate.

	$ caddy td-migrate callers
	$ caddy td-migrate callers --left
	$ caddy td-migrate callers --since 24h --format csv >callers.csv
	$ caddy td-migrate callers --format json
`,
		CobraFunc: func(cmd *cobra.Command) {
			cmd.SetFlagErrorFunc(nearestFlag) // the subcommands' too
			cmd.Args, cmd.RunE = noSubcommand, func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
			addAddress(cmd)
			callers := &cobra.Command{Use: "callers", Short: "Lists the callers, those with most events first", Long: callersHelp, Args: noArguments}
			callers.Flags().Bool("left", false, "Only those that have sent within 7 days what v2 would not take as it is")
			callers.Flags().String("since", "", "Only those seen within this time, such as 24h or 7d (default all of 30 days)")
			callers.Flags().String("format", formatTable, "One of "+strings.Join(formats, ", "))
			callers.RunE = withPlainErrors(callersCommand)
			cmd.AddCommand(callers)
			addPlanCommands(cmd)
			addAuditCommand(cmd)
		},
	})
}

// The formats of callers.
const (
	formatTable = "table"
	formatJSON  = "json"
	formatCSV   = "csv"
)

var formats = []string{formatTable, formatJSON, formatCSV}

// formatOf is the format that is asked for.
func formatOf(fs caddycmd.Flags) (string, error) {
	format := fs.String("format")
	if !slices.Contains(formats, format) {
		return "", fmt.Errorf("--format %q: must be one of %s%s", format, strings.Join(formats, ", "), didYouMean(nearest(format, formats)))
	}
	return format, nil
}

// printJSON writes an answer for programs.
func printJSON(answer any) error {
	encoder := json.NewEncoder(os.Stdout)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	return encoder.Encode(answer)
}

func callersCommand(fs caddycmd.Flags) error {
	format, err := formatOf(fs)
	if err != nil {
		return err
	}
	since := fs.String("since")
	within, err := caddy.ParseDuration(cmp.Or(since, "30d"))
	if err != nil || within <= 0 {
		return fmt.Errorf("--since %q: must be a duration of more than 0, such as 24h or 7d", since)
	}
	var listing callersAnswer
	if err := askAdmin(fs, http.MethodGet, "/td_postback/migration/callers", &listing); err != nil {
		return err
	}
	all := len(listing.Rows)
	from := time.Time{}
	if since != "" {
		from = listing.Time.Add(-within)
	}
	listing.Keep(fs.Bool("left"), from)
	switch format {
	case formatCSV:
		err = listing.WriteCSV(os.Stdout)
	case formatJSON:
		err = printJSON(listing)
	default:
		err = printCallers(&listing, all)
	}
	return err
}

// printCallers writes the callers for people; all is how many there are with those that
// are not asked for.
func printCallers(l *callersAnswer, all int) error {
	fmt.Printf("%d of %d callers\n", len(l.Rows), all)
	if l.NotSaved != "" {
		fmt.Printf("\nThe report is not on disk, and a restart loses it: %s\n\n", l.NotSaved)
	}
	if len(l.Rows) > 0 {
		table := newTable("KEY", "DATABASE", "TABLE", "SURFACE", "AGENT", "SOURCE", "EVENTS 24H", "7D", "LAST SEEN", "STATE", "FINDINGS")
		for i := range l.Rows {
			r := &l.Rows[i]
			table.row(cmp.Or(r.Key, "-"), cmp.Or(r.Database, "-"), cmp.Or(r.Table, "-"), r.Surface, cmp.Or(r.Agent, "-"), cmp.Or(r.Source, "-"),
				strconv.FormatUint(r.Events24h, 10), strconv.FormatUint(r.Events7d, 10), r.LastSeen.UTC().Format(time.RFC3339), string(r.State), findingNames(r))
		}
		if err := table.Flush(); err != nil {
			return err
		}
	}
	if o := &l.Others; o.Events > 0 {
		fmt.Printf("\nOthers, which have no row: %d events, %d in 7 days. None of them can have more than %d; %d rows is the most.\n", o.Events, o.Events7d, o.Error, l.MaxRows)
	}
	printAdvice(l.Rows)
	printInstead(l.Rows)
	return printBooks(l.Books)
}

// printBooks writes what has become of all calls, whoever sent them.
func printBooks(books []shownBooks) error {
	if len(books) == 0 {
		return nil
	}
	fmt.Print("\nAll requests since the gateway started, with those of callers that are not listed:\n\n")
	table := newTable("SURFACE", "RECEIVED", "FORWARDED", "SPOOLED", "REFUSED", "LOST", "UNDER WAY")
	for i := range books {
		b := &books[i]
		cells := []string{b.Surface}
		for _, n := range []int64{b.Received, b.Forwarded, b.Spooled, b.Refused, b.Lost, b.UnderWay} {
			cells = append(cells, strconv.FormatInt(n, 10))
		}
		table.row(cells...)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	fmt.Println("\n" + balance(books))
	return nil
}

// balance says whether it is known what became of each call.
func balance(books []shownBooks) string {
	var differ []string
	for i := range books {
		if n := books[i].Difference; n > 0 {
			differ = append(differ, fmt.Sprintf("%d of %s", n, books[i].Surface))
		}
	}
	if len(differ) == 0 {
		return "The books balance: each request that has ended was forwarded, spooled, refused or lost."
	}
	return "The books do not balance. Nobody knows what became of these requests: " + strings.Join(differ, ", ") + ". See TDPostbackBooksDiffer in docs/runbook.md."
}

func findingNames(r *migration.Row) string {
	names := make([]string, len(r.Findings))
	for i := range r.Findings {
		names[i] = r.Findings[i].Name
	}
	return cmp.Or(strings.Join(names, " "), "-")
}

// printAdvice writes once what each finding of these callers means.
func printAdvice(rows []migration.Row) {
	found := map[string]migration.RowFinding{}
	for i := range rows {
		for _, f := range rows[i].Findings {
			found[f.Name] = f
		}
	}
	if len(found) == 0 {
		return
	}
	fmt.Print("\nWhat to change:\n\n")
	for _, name := range slices.Sorted(maps.Keys(found)) {
		fmt.Printf("%s (%s): %s\n", name, found[name].Kind, found[name].Advice)
	}
}

// maxInstead is for how many tables callers are told what to send instead. The JSON has
// it for all.
const maxInstead = 5

// printInstead writes what these callers should send, for each table that is left.
func printInstead(rows []migration.Row) {
	var told []migration.Instead
	for i := range rows {
		if instead := rows[i].Instead; instead != nil && !slices.Contains(told, *instead) {
			told = append(told, *instead)
		}
	}
	if len(told) == 0 {
		return
	}
	fmt.Print("\nWhat to send instead, from a program or from a page:\n")
	for _, instead := range told[:min(len(told), maxInstead)] {
		fmt.Printf("\n%s\n%s\n", instead.Curl, instead.Tag)
	}
	if more := len(told) - maxInstead; more > 0 {
		fmt.Printf("\nand for %d more tables: --format json has them all.\n", more)
	}
}
