package caddymodule

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/td-postback/gateway/migration"
	"github.com/td-postback/gateway/postback"
	"github.com/td-postback/gateway/sandbox"
)

func init() {
	caddycmd.RegisterCommand(caddycmd.Command{
		Name:  "td-postback",
		Usage: "[--listen <addr>] [--region <region>] [--upstream <url>] [--sandbox] [--console <addr>] [--spool] [--access-log] [--max-body <size>] [--redirect-hosts <host,...>]",
		Short: "Takes legacy Postback requests and forwards them to Postback API v2",
		Long: `
Takes requests of Treasure Data's legacy Postback API over plain HTTP, without
redirecting to HTTPS, and forwards them to Postback API v2 in the given region.
Every other path is answered with 404. Write keys stay out of the logs.

Try it without an account; the sandbox prints what v2 would receive:

	$ caddy td-postback --sandbox
	$ curl 'http://localhost:8080/postback/v3/event/mydb/mytable?td_write_key=1234/abcd' -d '{"user":"alice"}'
	$ curl 'http://localhost:8080/postback/v3/event/mydb/views?td_write_key=1234/abcd&td_format=pixel&page=home' -o pixel.gif

The sandbox refuses what is for the tables answer_400, answer_403, answer_422,
answer_429, answer_503 and answer_never, and of batches some of answer_206, to try
what then happens. For another gateway whose "upstream" this one is, it takes v2's
batches too. A stand-in for the legacy host is there as well, to try how td-migrate
moves a table to v2, and back: at first, everything goes to v2.

Forward for real:

	$ caddy td-postback --listen :80 --region us01

With --spool, records that v2 does not take now are kept on this machine's disk
and delivered later. The command td-spool shows them: for that, Caddy's admin
endpoint is on, at localhost:2019 or where CADDY_ADMIN says.

	$ caddy td-postback --listen :80 --region us01 --spool
	$ caddy td-spool status

With --console, a page says how the gateway is, to browsers on this machine. The
sandbox always has one, and prints its address.

For HTTPS and everything else that Caddy can do, use the td_postback directive
in a Caddyfile.
`,
		CobraFunc: func(cmd *cobra.Command) {
			cmd.Flags().StringP("listen", "l", ":8080", "Address on which to receive requests")
			cmd.Flags().StringP("region", "r", "", "Region to forward to: "+postback.RegionNames()+", or auto, by the legacy host that the caller used")
			cmd.Flags().StringP("upstream", "u", "", "URL to forward to, instead of the region's v2 host")
			cmd.Flags().BoolP("sandbox", "s", false, "Forward to stand-ins for v2 and the legacy host in this process, and print every record that they receive, and why others are refused")
			cmd.Flags().StringP("console", "", "", "Address of the page that says how the gateway is, for browsers on this machine; with --sandbox localhost:8181, or another port if that is in use, unless this is off")
			cmd.Flags().BoolP("access-log", "", false, "Enable the access log")
			cmd.Flags().StringP("max-body", "", "", "Largest body to take (default 1048064 bytes)")
			cmd.Flags().StringSliceP("redirect-hosts", "", nil, "Hosts to which td_redirect may lead, separated by commas")
			cmd.Flags().BoolP("spool", "", false, "Keep on disk what v2 does not take now, and deliver it later; td-spool shows it")
			addVersion(cmd)
			cmd.SetFlagErrorFunc(nearestFlag)
			cmd.Args = noArguments
			cmd.RunE = withPlainErrors(cmdPostback)
		},
	})
}

// noArguments refuses what is no flag: a region without --region, above all.
func noArguments(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	meant := ""
	if region := nearestRegion(args[0]); region != "" && cmd.Flags().Lookup("region") != nil {
		meant = "--region " + region
	} else if flag := nearest(args[0], flagsOf(cmd)); flag != "" {
		meant = "--" + flag
	}
	if meant == "" {
		return fmt.Errorf("%q: %s takes no argument, only flags; see --help", args[0], cmd.Name())
	}
	return fmt.Errorf("%q: %s takes no argument%s", args[0], cmd.Name(), didYouMean(meant))
}

// flagsOf lists the names of a command's flags.
func flagsOf(cmd *cobra.Command) (names []string) {
	cmd.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
	return names
}

// nearestFlag adds to the error of an unknown flag which one was probably meant:
// by its name, or by its name behind one hyphen, which begins short flags.
func nearestFlag(cmd *cobra.Command, err error) error {
	unknown, ok := errors.AsType[*pflag.NotExistError](err)
	if !ok {
		return err
	}
	if number := unknown.GetSpecifiedShortnames(); strings.Trim(number, "0123456789.,") == "" && number != "" && cmd.Args != nil {
		// A number below 0 is taken for a flag. The arguments say what is allowed instead.
		if err := cmd.Args(cmd, append(cmd.Flags().Args(), "-"+number)); err != nil {
			return err
		}
	}
	meant := nearest(cmp.Or(unknown.GetSpecifiedShortnames(), unknown.GetSpecifiedName()), flagsOf(cmd))
	if meant == "" {
		return fmt.Errorf("%w; see --help", err)
	}
	return fmt.Errorf("%w%s", err, didYouMean("--"+meant))
}

// withPlainErrors has a command end with its error as one line for people, on the standard
// error, and exit code 1. Caddy would log it as JSON.
func withPlainErrors(run func(caddycmd.Flags) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, _ []string) error {
		if err := run(caddycmd.Flags{FlagSet: cmd.Flags()}); err != nil {
			return errors.New(oneLine(err.Error()))
		}
		return nil
	}
}

// oneLine is a text of several errors in a line.
func oneLine(text string) string { return strings.ReplaceAll(text, "\n", "; ") }

func cmdPostback(fs caddycmd.Flags) error {
	caddy.TrapSignals()

	handler, err := handlerFromFlags(fs)
	if err != nil {
		return err
	}
	if err = checkFlags(*handler, fs.Bool("sandbox")); err != nil {
		return err
	}
	var first caddyhttp.RouteList
	if fs.Bool("sandbox") {
		if err = useSandbox(handler); err != nil {
			return err
		}
		first = batchesTo(handler.Upstream)
	}
	page, err := consoleFromFlags(fs)
	if err != nil {
		return err
	}
	if page != nil && handler.Report == nil {
		handler.Report = new(Report) // which it shows
	}
	cfg, err := commandConfig(fs.String("listen"), handler, fs.Bool("access-log"), first, page)
	if err != nil {
		return err
	}
	if err := mustBeFree("--listen", fs.String("listen")); err != nil {
		return err
	}
	if err := chooseAdmin(cfg.Admin, handler); err != nil {
		return err
	}
	if err := caddy.Run(cfg); err != nil {
		return err
	}
	if page != nil {
		fmt.Println("The console is at " + urlOf(page.Listen[0]))
	}
	select {}
}

// chooseAdmin switches the admin endpoint on for td-spool and td-migrate, if there is
// something to show. Only a spool is worth no start without it.
func chooseAdmin(admin *caddy.AdminConfig, h *Handler) error {
	if admin.Disabled = h.Spool == nil && h.Report == nil; admin.Disabled {
		return nil
	}
	err := mustBeFree("the admin endpoint, CADDY_ADMIN", caddy.DefaultAdminListen)
	if err != nil && h.Spool == nil {
		fmt.Printf("td-migrate cannot reach this gateway: %s is in use. Set CADDY_ADMIN to another address for that.\n", caddy.DefaultAdminListen)
		admin.Disabled, err = true, nil
	}
	return err
}

// mustBeFree fails if somebody listens on an address already. Caddy shares ports
// and takes sockets over, so that a second gateway would get some callers of the
// first, or all of them, without a word.
func mustBeFree(option, listen string) error {
	address, err := caddy.ParseNetworkAddress(listen)
	if err != nil || address.IsFdNetwork() {
		return err
	}
	inUse := fmt.Errorf("%s %s: it is in use, by another gateway or something else: stop that, or take another address", option, listen)
	if address.IsUnixNetwork() {
		path, _, _ := strings.Cut(address.Host, "|") // the rights stand behind it
		conn, err := new(net.Dialer).DialContext(context.Background(), "unix", path)
		if err != nil {
			return nil //nolint:nilerr // nobody is there
		}
		_ = conn.Close()
		return inUse
	}
	// Without SO_REUSEPORT, it cannot be shared. Any other trouble is Caddy's to tell.
	listener, err := new(net.ListenConfig).Listen(context.Background(), address.Network, address.JoinHostPort(0))
	if errors.Is(err, syscall.EADDRINUSE) {
		return inUse
	}
	if err == nil {
		return listener.Close()
	}
	return nil
}

func handlerFromFlags(fs caddycmd.Flags) (*Handler, error) {
	h := &Handler{Region: fs.String("region"), Upstream: fs.String("upstream")}
	if fs.Bool("sandbox") && (h.Region != "" || h.Upstream != "") {
		return nil, errors.New("--sandbox forwards to itself: it cannot be combined with --region or --upstream")
	}
	if size := fs.String("max-body"); size != "" {
		bytes, err := humanize.ParseBytes(size)
		if err != nil || bytes == 0 || bytes > postback.MaxBody {
			return nil, fmt.Errorf("--max-body %q: must be a size between 1 and %d bytes", size, postback.MaxBody)
		}
		h.MaxBody = int64(bytes)
	}
	if fs.Bool("spool") {
		h.Spool = new(Spool)
	}
	hosts, err := fs.GetStringSlice("redirect-hosts")
	h.RedirectHosts = hosts
	return h, err
}

// tellRefusal is told of every request that the gateway refuses itself; nil for
// nobody. Only td-postback --sandbox sets it, before anything is served.
var tellRefusal func(*call, *postback.Refusal)

// printRefusal writes why the gateway refuses a request: v2, and so the sandbox,
// does not see it.
func printRefusal(c *call, f *postback.Refusal) {
	line := "refused"
	if c.Database != "" && c.Table != "" {
		to := c.Shown()
		line += " " + to.Database + "." + to.Table
	}
	fmt.Printf("%s  by the gateway  %d %s: %s\n", line, f.Status, f.Code, f.Message)
}

// checkFlags finds what Caddy would find later, and would say at the end of a
// long line.
func checkFlags(h Handler, sandbox bool) error {
	if sandbox {
		h.Upstream = "http://localhost" // or what it will be
	}
	if h.Region == "" && h.Upstream == "" {
		return fmt.Errorf("region is not set: say with --region where to forward, %s, or try it with --sandbox", postback.AllowedRegions())
	}
	h.applyDefaults()
	if err := h.Validate(); err != nil {
		return err
	}
	if h.Upstream != "" {
		_, err := parseUpstream(h.Upstream)
		return err
	}
	return nil
}

// useSandbox lets a handler forward to the stand-ins: to that for v2, unless a plan moves
// it to that for the legacy host. Its spool is a new one: the next sandbox has another
// address, and the usual spool may hold real records. Its report of callers and its plan
// are in memory.
func useSandbox(h *Handler) (err error) {
	stateStays, tellRefusal = false, printRefusal
	h.Report, h.Migrate = new(Report), &Migrate{Start: migration.V2.String()}
	if h.Upstream, err = serveStandIn(&sandbox.Sandbox{Out: os.Stdout}); err != nil {
		return err
	}
	if h.Migrate.Legacy, err = serveStandIn(&sandbox.Legacy{Out: os.Stdout}); err != nil || h.Spool == nil {
		return err
	}
	if h.Spool.Dir, err = os.MkdirTemp("", "td-postback-sandbox"); err == nil {
		fmt.Println("The spool is in " + h.Spool.Dir + ". It is not used again: delete it when you are done.")
	}
	return err
}

// serveStandIn serves a stand-in on a free loopback port, and returns its URL.
func serveStandIn(standIn http.Handler) (string, error) {
	listener, err := new(net.ListenConfig).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	server := &http.Server{Handler: standIn} //nolint:gosec // loopback, and the gateway is its only client
	go func() { _ = server.Serve(listener) }()
	return "http://" + listener.Addr().String(), nil
}

// batchesTo lets the stand-in at this URL have v2's batches, as they are: another
// gateway, of which this one is the upstream, sends them, and no legacy caller does.
func batchesTo(url string) caddyhttp.RouteList {
	dial := strings.TrimPrefix(url, "http://")
	return caddyhttp.RouteList{{
		MatcherSetsRaw: caddyhttp.RawMatcherSets{{
			"path_regexp": json.RawMessage(`{"pattern": "^/[A-Za-z0-9_]+/[A-Za-z0-9_]+$"}`),
			"header":      json.RawMessage(`{"Content-Type": ["application/vnd.treasuredata.v1*"]}`),
		}},
		HandlersRaw: []json.RawMessage{caddyconfig.JSONModuleObject(
			map[string]any{"upstreams": []map[string]string{{"dial": dial}}}, "handler", "reverse_proxy", nil)},
		Terminal: true,
	}}
}

// commandConfig is the configuration that the command runs; first are the routes
// before the gateway's own, and page is the console's server, or nil.
func commandConfig(listen string, h *Handler, accessLog bool, first caddyhttp.RouteList, page *caddyhttp.Server) (*caddy.Config, error) {
	address, err := caddy.ParseNetworkAddress(listen)
	if err != nil || !address.IsUnixNetwork() && !address.IsFdNetwork() && (address.PortRangeSize() != 1 || address.StartPort == 0) {
		return nil, fmt.Errorf("--listen %q: must be an address with one port, such as :8080 or 127.0.0.1:8080, or a socket, such as fd/3", listen)
	}
	server := &caddyhttp.Server{
		Listen:         []string{listen},
		MaxHeaderBytes: 1 << 20,                     // legacy URLs may be long
		ReadTimeout:    caddy.Duration(time.Minute), // trickling callers must not hold the memory for bodies
		AutoHTTPS:      &caddyhttp.AutoHTTPSConfig{Disabled: true},
		ListenerWrappersRaw: []json.RawMessage{
			caddyconfig.JSONModuleObject(&Handover{}, "wrapper", "td_handover", nil),
		},
		Routes: append(first, caddyhttp.Route{
			HandlersRaw: []json.RawMessage{caddyconfig.JSONModuleObject(h, "handler", "td_postback", nil)},
		}),
	}
	if h.Migrate != nil { // the sandbox: a share is one of clients, and few have several addresses
		server.TrustedProxiesRaw = json.RawMessage(`{"source": "static", "ranges": ["127.0.0.0/8", "::1/128"]}`)
	}
	if accessLog {
		server.Logs = &caddyhttp.ServerLogConfig{}
	}
	servers := map[string]*caddyhttp.Server{"postback": server}
	if page != nil {
		servers["console"] = page
	}
	app := caddyhttp.App{
		Servers: servers,
		// Longer than response_timeout. Without it, a caller that reads nothing
		// would keep the process from its end.
		GracePeriod: caddy.Duration(40 * time.Second),
	}
	persist := false
	return &caddy.Config{
		Admin:   &caddy.AdminConfig{Config: &caddy.ConfigSettings{Persist: &persist}},
		AppsRaw: caddy.ModuleMap{"http": caddyconfig.JSON(app, nil)},
		Logging: &caddy.Logging{Logs: map[string]*caddy.CustomLog{
			"default": {BaseLog: caddy.BaseLog{EncoderRaw: json.RawMessage(keyFilter)}},
		}},
	}, nil
}

// keyFilter is the log format of the command: Caddy's own, with td_key on every
// field that may hold a URL or headers. Caddyfile.example has the same in
// Caddyfile syntax.
const keyFilter = `{
	"format": "filter",
	"fields": {
		"request": {"filter": "td_key"},
		"resp_headers": {"filter": "td_key"},
		"uri": {"filter": "td_key"},
		"method": {"filter": "td_key"},
		"headers": {"filter": "td_key"},
		"error": {"filter": "td_key"}
	}
}`
