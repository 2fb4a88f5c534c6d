package caddymodule

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/caddyserver/caddy/v2"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/td-postback/gateway/spool"
)

func init() {
	caddycmd.RegisterCommand(caddycmd.Command{
		Name:  "td-spool",
		Usage: "status|list|show|replay|drop",
		Short: "Shows what the spool keeps, and replays or drops dead letters",
		Long: `
Asks a running gateway, over Caddy's admin API, for the records that Postback v2
has not taken. Of a write key, only the account number is shown. A body is shown
as it is.

	$ caddy td-spool status
	$ caddy td-spool list --dead
	$ caddy td-spool show --dead 1763930000000123
	$ caddy td-spool show --dead --raw 1763930000000123 >body
	$ caddy td-spool replay --all
	$ caddy td-spool drop 1763930000000123
`,
		CobraFunc: func(cmd *cobra.Command) {
			cmd.SetFlagErrorFunc(nearestFlag) // the subcommands' too
			cmd.Args, cmd.RunE = noSubcommand, func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
			addAddress(cmd)
			cmd.PersistentFlags().String("spool", "", "The spool, as status shows it, if there are several")
			cmd.PersistentFlags().String("queue", "", "The queue, as status shows it, if several hold something")
			add := func(use, short string, args cobra.PositionalArgs, run func(caddycmd.Flags) error) *cobra.Command {
				sub := &cobra.Command{Use: use, Short: short, Args: args}
				sub.RunE = withPlainErrors(run)
				cmd.AddCommand(sub)
				return sub
			}
			add("status", "Shows each spool and its queues", noArguments, spoolStatusCommand)
			list := add("list", "Lists records to be delivered, oldest first", noArguments, spoolListCommand)
			list.Flags().Bool("dead", false, "List dead letters instead")
			list.Flags().Uint64("after", 0, "Begin behind this ID")
			list.Flags().Int("limit", 100, "List at most so many, up to "+strconv.Itoa(maxListed))
			show := add("show <id>", "Shows a whole record, but for the key in its head", oneID, spoolShowCommand)
			show.Flags().Bool("dead", false, "Show a dead letter")
			show.Flags().Bool("raw", false, "Write only the body, byte for byte")
			replay := add("replay [<id>...]", "Delivers dead letters after all", idsOrAll, spoolReplayCommand)
			replay.Flags().Bool("all", false, "All dead letters of the queue, but for those that v2 has (delivered)")
			drop := add("drop [<id>...]", "Deletes dead letters for good", idsOrAll, spoolDropCommand)
			drop.Flags().Bool("all", false, "All dead letters of the queue")
		},
	})
}

// noSubcommand refuses a word that is no subcommand: cobra would print the help, as
// after a success.
func noSubcommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	var names []string
	for _, sub := range cmd.Commands() {
		names = append(names, sub.Name())
	}
	return fmt.Errorf("%q: must be one of %s%s", args[0], strings.Join(names, ", "), didYouMean(nearest(args[0], names)))
}

func oneID(_ *cobra.Command, args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("give one ID, as list shows it, not %d", len(args))
	}
	return nil
}

// idsOrAll lets nobody change all dead letters who means some, or the reverse.
func idsOrAll(cmd *cobra.Command, args []string) error {
	if all, err := cmd.Flags().GetBool("all"); err != nil || all == (len(args) > 0) {
		return errors.New("give one or more IDs, as list --dead shows them, or --all")
	}
	return nil
}

// askSpool asks a running gateway and decodes its answer into value.
func askSpool(fs caddycmd.Flags, method, path string, query url.Values, value any) error {
	for _, name := range []string{"spool", "queue"} {
		if fs.String(name) != "" {
			query.Set(name, fs.String(name))
		}
	}
	return askAdmin(fs, method, "/td_postback/spool"+path+"?"+query.Encode(), value)
}

// addAddress adds the flag that says which gateway is asked.
func addAddress(cmd *cobra.Command) {
	cmd.PersistentFlags().String("address", "", "Address of the gateway's admin API (default "+caddy.DefaultAdminListen+", or else "+unitSocket+")")
}

// adminRequest is a request to a gateway's admin API.
type adminRequest struct {
	method, uri string
	header      http.Header
	body        []byte // JSON, or nil
}

// askAdmin asks a running gateway's admin API and decodes its answer into value.
func askAdmin(fs caddycmd.Flags, method, uri string, value any) error {
	return sendAdmin(fs, &adminRequest{method: method, uri: uri}, value)
}

// sendAdmin is askAdmin with a header and a body.
func sendAdmin(fs caddycmd.Flags, r *adminRequest, value any) error {
	address, err := adminAddress(fs.String("address"))
	if err != nil {
		return err
	}
	var body io.Reader
	if r.body != nil {
		body = bytes.NewReader(r.body)
	}
	resp, err := caddycmd.AdminAPIRequest(address, r.method, r.uri, r.header, body)
	if err != nil {
		return plainly(address, err)
	}
	defer resp.Body.Close() //nolint:errcheck // it is only read
	if err := json.NewDecoder(resp.Body).Decode(value); err != nil {
		return fmt.Errorf("what answers at %s is no gateway's admin endpoint: %w", address, err)
	}
	return nil
}

// plainly takes the gateway's own words out of Caddy's error, which has them as
// JSON.
func plainly(address string, err error) error {
	var said struct {
		Message        string // of a refusal of a record
		conflictAnswer        // any other one has an error alone
	}
	_, answer, answered := strings.Cut(err.Error(), ": HTTP ")
	_, text, _ := strings.Cut(answer, ": ")
	switch {
	case json.Unmarshal([]byte(text), &said) == nil && said.Error != "" && said.Message == "":
		if said.Changes != nil {
			return errors.New(conflictText(&said.conflictAnswer))
		}
		return errors.New(said.Error)
	case answered:
		return fmt.Errorf("what answers at %s is no gateway's admin endpoint: HTTP %s", address, strings.TrimSpace(answer))
	default:
		return err
	}
}

// unitSocket is where deploy/Caddyfile has the admin endpoint, under systemd.
const unitSocket = "unix//run/td-postback/admin.sock"

// adminAddress is where the gateway's admin endpoint is: where the operator says,
// or where Caddy has it by default, or where the systemd unit has it.
func adminAddress(given string) (string, error) {
	places := []string{caddy.DefaultAdminListen, unitSocket}
	if given != "" {
		places = []string{given}
	}
	var problems []string
	for _, address := range places {
		place, err := caddy.ParseNetworkAddress(address)
		if err == nil {
			path, _, _ := strings.Cut(place.JoinHostPort(0), "|") // the rights of a socket stand behind it
			var conn net.Conn
			if conn, err = net.DialTimeout(place.Network, path, dialLimit); err == nil { //nolint:noctx // it has a time limit
				return address, conn.Close()
			}
		}
		problems = append(problems, err.Error())
	}
	if given != "" {
		return "", fmt.Errorf("--address %q: no gateway answers there: must be where its admin endpoint is, such as localhost:2019, as the option admin in its Caddyfile says (off: it has none): %s", given, problems[0])
	}
	return "", fmt.Errorf("no gateway answers where it usually does: it does not run, or its admin endpoint is elsewhere or off, as the option admin in its Caddyfile says. Say with --address where. Tried: %s",
		strings.Join(problems, "; "))
}

// dialLimit is how long a gateway may take to be reached.
const dialLimit = 5 * time.Second

func spoolStatusCommand(fs caddycmd.Flags) error {
	var spools []spool.Status
	if err := askSpool(fs, http.MethodGet, "", url.Values{}, &spools); err != nil {
		return err
	}
	if len(spools) == 0 {
		fmt.Println("The gateway has no spool.")
	}
	for _, s := range spools {
		fmt.Printf("%s: %s, %s of %s, dead letters %s of %s\n", s.Spool, s.Health(),
			sizeText(s.Bytes), sizeText(s.MaxBytes), sizeText(s.Dead), sizeText(s.MaxDead))
		if s.Stale {
			fmt.Println("It does not answer. What it holds is as it was before:")
		}
		table := newTable("QUEUE", "RECORDS", "DEAD", "OLDEST", "UPSTREAM", "ACCOUNTS PAUSED")
		for _, q := range s.Queues {
			oldest, state := "-", "up"
			if q.Oldest != nil {
				oldest = time.Since(*q.Oldest).Round(time.Second).String()
			}
			if q.Down {
				state = "down"
			}
			table.row(q.Name, strconv.Itoa(q.Records), strconv.Itoa(q.Dead), oldest, state, strconv.Itoa(q.Paused))
		}
		if err := table.Flush(); err != nil {
			return err
		}
	}
	return nil
}

func spoolListCommand(fs caddycmd.Flags) error {
	var records []keptRecord
	err := askSpool(fs, http.MethodGet, "/records", url.Values{
		"dead":  {strconv.FormatBool(fs.Bool("dead"))},
		"after": {fs.Lookup("after").Value.String()},
		"limit": {fs.Lookup("limit").Value.String()},
	}, &records)
	if err != nil {
		return err
	}
	table := newTable("ID", "ARRIVAL", "PATH", "ACCOUNT", "BYTES", "STATUS", "REASON", "EVENTS")
	for _, r := range records {
		status := "-" // v2 gave none that was the last word
		if r.Status != 0 {
			status = strconv.Itoa(r.Status)
		}
		events := "" // last: scripts that know no such column read the others as before
		if r.Events > 0 {
			events = strconv.Itoa(r.Events)
		}
		table.row(strconv.FormatUint(uint64(r.ID), 10), r.Arrival.UTC().Format(time.RFC3339), r.Path, r.Account,
			strconv.Itoa(r.Bytes), status, cmp.Or(r.Reason, "-"), events)
	}
	return table.Flush()
}

func spoolShowCommand(fs caddycmd.Flags) error {
	var record keptRecord
	err := askSpool(fs, http.MethodGet, "/record", url.Values{
		"dead": {strconv.FormatBool(fs.Bool("dead"))},
		"id":   {fs.Arg(0)},
	}, &record)
	if err != nil {
		return err
	}
	if fs.Bool("raw") {
		if record.Bytes == 0 {
			return fmt.Errorf("id %d: there is no body that can be read", record.ID)
		}
		_, err = os.Stdout.Write(append(record.BodyBase64, record.Body...))
		return err
	}
	encoder := json.NewEncoder(os.Stdout)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	return encoder.Encode(record)
}

func spoolReplayCommand(fs caddycmd.Flags) error {
	return spoolChangeCommand(fs, "/replay", "to be delivered again", "what waits is delivered anyway")
}

func spoolDropCommand(fs caddycmd.Flags) error {
	return spoolChangeCommand(fs, "/drop", "deleted", "what waits to be delivered cannot be dropped")
}

func spoolChangeCommand(fs caddycmd.Flags, path, done, otherwise string) error {
	var answer struct{ Letters int }
	query := url.Values{"id": fs.Args()}
	if fs.Bool("all") {
		query.Set("all", "true")
	}
	if err := askSpool(fs, http.MethodPost, path, query, &answer); err != nil {
		return err
	}
	letters := "dead letters"
	if answer.Letters == 1 {
		letters = "dead letter"
	}
	fmt.Printf("%d %s %s\n", answer.Letters, letters, done)
	if answer.Letters < len(query["id"]) {
		fmt.Println("Not every ID is that of a dead letter: list --dead shows them; " + otherwise + ".")
	}
	return nil
}

func sizeText(bytes int64) string { return humanize.IBytes(uint64(bytes)) } //nolint:gosec // G115: it is not negative

// table is columns of text.
type table struct{ *tabwriter.Writer }

func newTable(columns ...string) table {
	t := table{tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)}
	t.row(columns...)
	return t
}

func (t table) row(cells ...string) {
	for _, cell := range cells {
		_, _ = io.WriteString(t, cell+"\t")
	}
	_, _ = io.WriteString(t, "\n")
}
