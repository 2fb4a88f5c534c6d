package caddymodule

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/td-postback/gateway/console"
)

// consoleDirective is the console's name in a configuration.
const consoleDirective = "td_console"

func init() {
	caddy.RegisterModule(Console{})
	httpcaddyfile.RegisterHandlerDirective(consoleDirective, parseConsole)
	// Before td_postback, which stands before reverse_proxy, in whichever order the
	// two are registered: with a matcher, it can share a site.
	httpcaddyfile.RegisterDirectiveOrder(consoleDirective, httpcaddyfile.After, "metrics")
}

// Console is a page on which operators see how the gateway is: whether anything is lost,
// what comes and where it goes, the spool, the plan, and who is left. It stands on a site
// of its own, or below a path of one, such as `http://localhost:8181`. It answers every
// request that it is given.
//
// It shows no write key, no value of a record, and no whole address of a client. By
// default it answers only browsers on the gateway's own machine, and changes nothing.
type Console struct {
	// Whether the page can change something: give shares, roll back, replay and drop
	// dead letters. Who can open the page can do that then. Off by default.
	Actions bool `json:"actions,omitempty"`

	// The names by which the page is called, as they stand in a browser's address, without
	// a port. A request for another host is refused: a page elsewhere whose name leads
	// here must not read this one. Default: `localhost`, the names below it, and loopback
	// addresses.
	Hosts []string `json:"hosts,omitempty"`

	// Answers clients on other machines, too, and what comes through a proxy. Without it,
	// only the gateway's own machine. Put authentication before it: whoever reaches it
	// reads it.
	AllowRemote bool `json:"allow_remote,omitempty"`

	app     *App
	watch   *consoleWatch
	gateway string // which of several this is
}

// CaddyModule returns the Caddy module information.
func (Console) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.handlers." + consoleDirective,
		New: func() caddy.Module { return new(Console) },
	}
}

func parseConsole(helper httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
	c := new(Console)
	err := c.UnmarshalCaddyfile(helper.Dispenser)
	return c, err
}

// UnmarshalCaddyfile sets up the handler from Caddyfile tokens. Syntax:
//
//	td_console [<matcher>] {
//		actions on|off
//		hosts   <host...>
//		allow_remote
//	}
func (c *Console) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // consume directive name
	if d.NextArg() {
		return d.Errf("%s takes its options in a block: actions, hosts and allow_remote", consoleDirective)
	}
	return eachOption(d, consoleDirective+" ", make(map[string]bool), c.unmarshalOption)
}

func (c *Console) unmarshalOption(d *caddyfile.Dispenser, option string) (err error) {
	switch option {
	case "actions":
		c.Actions, err = switchArg(d)
	case "hosts":
		c.Hosts, err = someArgs(d)
	case "allow_remote":
		c.AllowRemote, err = true, noArg(d)
	default:
		return d.Err(noOption(option, consoleDirective))
	}
	return err
}

func switchArg(d *caddyfile.Dispenser) (bool, error) {
	option := d.Val()
	value, err := oneArg(d)
	if err == nil && value != "on" && value != "off" {
		err = d.Errf("%s %q: must be on or off%s", option, value, didYouMean(nearest(value, []string{"on", "off"})))
	}
	return value == "on", err
}

// Provision begins to watch the counters that the page shows.
func (c *Console) Provision(ctx caddy.Context) (err error) {
	if c.app, err = appOf(ctx); err != nil {
		return err
	}
	c.gateway, _ = os.Hostname()
	c.watch, err = watchForConsole()
	return err
}

// Validate refuses hosts that no request can have.
func (c *Console) Validate() error {
	for _, host := range c.Hosts {
		if !isHost(host) {
			return fmt.Errorf("%s hosts %q: must be a host name or an address, without a scheme, a port and a path", consoleDirective, host)
		}
	}
	return nil
}

// Cleanup stops watching, unless another configuration still does.
func (c *Console) Cleanup() error {
	if c.watch == nil {
		return nil
	}
	return c.watch.leave()
}

// browserPatience is how long a form may take to come, and an answer to be taken: a stop of
// the gateway waits for both.
const browserPatience = 10 * time.Second

// ServeHTTP answers with the page, or a part of it, or does what it asks for.
func (c *Console) ServeHTTP(w http.ResponseWriter, r *http.Request, _ caddyhttp.Handler) error {
	guardAnswer(w.Header())
	if r.ContentLength != 0 { // net/http reads the body of what is refused, too
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(browserPatience))
	}
	if refused := c.guard(r); refused != nil {
		return refused.answer(w)
	}
	if r.Method == http.MethodPost {
		return c.act(w, r)
	}
	view := console.ParseView(r.URL.Query())
	switch view.Part {
	case console.PartStyle:
		return answerConsole(w, http.StatusOK, "text/css; charset=utf-8", console.Style)
	case console.PartScript:
		return answerConsole(w, http.StatusOK, "text/javascript; charset=utf-8", console.Script)
	case console.PartIcon:
		return answerConsole(w, http.StatusOK, "image/svg+xml", console.Icon)
	case console.PartPage, console.PartBody:
		return c.show(w, &view, nil, http.StatusOK)
	default:
		return (&consoleRefusal{status: http.StatusNotFound, why: "there is no such part"}).answer(w)
	}
}

// show answers with the page.
func (c *Console) show(w http.ResponseWriter, view *console.View, notice *console.Notice, status int) error {
	page, err := console.Render(c.page(view, notice, time.Now()), view)
	if err != nil {
		return err
	}
	return answerConsole(w, status, "text/html; charset=utf-8", page)
}

// answerConsole answers who takes it. Over HTTP/1.1, a limit holds for what comes later on
// the connection, too, so it ends here.
func answerConsole(w http.ResponseWriter, status int, contentType string, content []byte) error {
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Content-Length", strconv.Itoa(len(content)))
	control := http.NewResponseController(w)
	_ = control.SetWriteDeadline(time.Now().Add(browserPatience))
	w.WriteHeader(status)
	_, err := w.Write(content)
	_ = control.Flush()
	_ = control.SetWriteDeadline(time.Time{})
	return err
}

// hostOnly is a Host without its port, in the one way in which names and addresses are
// compared.
func hostOnly(host string) string {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.ToLower(strings.TrimSuffix(strings.Trim(host, "[]"), "."))
	if address, err := netip.ParseAddr(host); err == nil {
		return address.String()
	}
	return host
}

// hostName is what browsers send as a name: other letters they write as xn--….
var hostName = regexp.MustCompile(`^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?$`)

// isHost reports whether a request can have this as its Host, beside a port.
func isHost(host string) bool {
	if address, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil {
		return address.Zone() == ""
	}
	return hostName.MatchString(host)
}

// isLocalName reports whether a name is that of the machine that uses it, whoever
// answers for names in the network.
func isLocalName(host string) bool {
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	address, err := netip.ParseAddr(host)
	return err == nil && address.Unmap().IsLoopback()
}

// Interface guards
var (
	_ caddy.Module                = (*Console)(nil)
	_ caddy.Provisioner           = (*Console)(nil)
	_ caddy.Validator             = (*Console)(nil)
	_ caddy.CleanerUpper          = (*Console)(nil)
	_ caddyfile.Unmarshaler       = (*Console)(nil)
	_ caddyhttp.MiddlewareHandler = (*Console)(nil)
)
