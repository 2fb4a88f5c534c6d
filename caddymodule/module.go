// Package caddymodule is the Caddy module http.handlers.td_postback: it takes
// requests of the legacy Postback API and forwards them to Postback API v2.
package caddymodule

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/url"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
	"golang.org/x/net/http/httpguts"

	"github.com/td-postback/gateway/postback"
	"github.com/td-postback/gateway/spool"
	"github.com/td-postback/gateway/upstream"
)

func init() {
	caddy.RegisterModule(Handler{})
}

// handlerID is the module's name, and that of its logger.
const handlerID = "http.handlers.td_postback"

// The defaults of options.
const (
	defaultGlobalID        = "_td_global"
	defaultDialTimeout     = 5 * time.Second
	defaultResponseTimeout = 30 * time.Second
	defaultMaxConns        = 1024
	defaultMaxBuffered     = 256 << 20
	defaultRetries         = 2
)

// minBuffered is the least max_buffered: one body of the largest size, its head
// and its buffers. Of a JavaScript SDK's call, such a body is held twice while it is
// made one piece, or filled in.
const minBuffered = 3 << 20

// minBufferedSpool is the same beside a spool: until such a body is durable, it is
// held four times.
const minBufferedSpool = 5 << 20

// Handler takes requests of Treasure Data's legacy Postback API at
// `/postback/v3/event/{database}/{table}` and forwards them to Postback API v2,
// so that the callers need no change. The write key moves from the URL's
// `td_write_key` parameter into the `X-TD-Write-Key` header; every other
// parameter and the body arrive as they were sent. A GET, and a pixel, a ping
// or a beacon without a JSON object in its body, become a JSON record from
// their query, since v2 takes nothing else.
//
// The calls of JavaScript SDKs at `/js/v3/event/{database}/{table}`, with the record
// as base64 in the query or as a body, go the same way, and are answered as the SDKs
// expect it.
//
// What v2 answers goes back to the caller. What the handler itself refuses is
// answered as JSON, `{"error":"<code>","message":"<what to change>"}`:
//
// Status | Code | When
// -------|------|-----
// 400 | `invalid_path` | under `/postback/`, `/js/v3/event/`, `/android/v3/event/` or `/ios/v3/event/`, but no event path, or a bad name in it
// 400 | `invalid_write_key` | a key with a bad percent-escape, a byte that is not visible ASCII, a comma or a quote, nothing behind its slash, or more than 1,024 bytes
// 400 | `invalid_request` | a body that ends early; of a JavaScript SDK's call: no record that is one JSON object, or a callback that is more than a name; of several events: not the format, or too many
// 403 | `missing_write_key` | no key in the URL or the headers
// 403 | `unknown_key` | with `keys`: the key is not among those that may send
// 403 | `unknown_database` | with `keys`: the database is not among those to which records may go
// 400 | `redirect_not_allowed` | a `td_redirect` to a host that is not in `redirect_hosts`; the record was sent all the same
// 404 | `not_found` | any other path, without `pass_thru`
// 405 | `method_not_allowed` | any method but GET, POST and OPTIONS
// 408 | `request_timeout` | a body that stalls
// 413 | `payload_too_large` | a body above `max_body`
// 508 | `loop_detected` | with `migrate`: the legacy host's name has led the request back to the gateway
// 431 | `headers_too_large` | header fields of more than 64 KiB together; the request line is not counted
// 421 | `unknown_region` | with `region auto`, a Host that is no legacy host
// 401, 403 | `invalid_write_key` | several events, and v2 refuses the key
// 502 | `upstream_unreachable` | v2 cannot be reached, or breaks off
// 503 | `upstream_unreachable`, `upstream_timeout` | several events, v2 does not take all of them now, and there is no spool
// 503 | `spool_full`, `spool_unavailable` | v2 does not take the record, and the spool cannot; with `Retry-After`
// 503 | `overloaded` | `max_buffered` or `max_conns` is used up; with `Retry-After`
// 504 | `upstream_timeout` | v2 does not answer within `response_timeout`
//
// The handler sets no placeholders, and its options take none.
type Handler struct {
	// The region to forward to, one of `us01`, `ap01`, `eu01`, `ap02` and
	// `ap03`, or `auto`: the region of the legacy host in the request's Host;
	// a request for another host is then refused with 421. Required, unless
	// `upstream` or `handoff` is set.
	Region string `json:"region,omitempty"`

	// Where to forward to instead of the region's v2 host: `http://` or
	// `https://`, a host and maybe a port. For a staging environment or a
	// stand-in.
	Upstream string `json:"upstream,omitempty"`

	// The largest body that is taken, in bytes; a larger one is refused with
	// 413 before v2 is contacted. Between 1 and 1048064, v2's own limit, which
	// is the default.
	MaxBody int64 `json:"max_body,omitempty"`

	// The hosts to which a pixel's `td_redirect` may lead: `example.com`, or
	// `*.example.com` for every subdomain. None by default.
	RedirectHosts []string `json:"redirect_hosts,omitempty"`

	// The name of the cookie that holds a browser's global id. It is read,
	// never set. Default: `_td_global`.
	GlobalID string `json:"global_id,omitempty"`

	// How long establishing a connection to v2 may take, TLS included.
	// Default: 5s.
	DialTimeout caddy.Duration `json:"dial_timeout,omitempty"`

	// How long v2 may take from the first byte sent to it until its answer is
	// there, or begins if it has more than 16 KiB, and then between any two
	// pieces. A slower answer is 504. Default: 30s.
	ResponseTimeout caddy.Duration `json:"response_timeout,omitempty"`

	// How many connections to a v2 host may be in use at a time. Further
	// requests wait for one, at most 10 seconds, then they are refused with
	// 503. A retry uses a connection beyond this limit. With migrate, bodies above
	// max_body have as many connections to the legacy host of their own, and so has
	// what is no call of a surface. Default: 1024.
	MaxConns int `json:"max_conns,omitempty"`

	// How many bytes all requests may hold in memory together, heads and
	// bodies. A request that does not fit is refused with 503. At least
	// 3145728, beside a spool 5242880. Default: 268435456 (256 MiB).
	MaxBuffered int64 `json:"max_buffered,omitempty"`

	// How often a request that v2 cannot have processed is sent again on a
	// fresh connection: after a dial or TLS failure, and after a kept-alive
	// connection turned out to be closed. Between 0 and 10. Default: 2.
	Retries *int `json:"retries,omitempty"`

	// PEM files with the certificate authorities that v2's certificate is
	// verified against, instead of the system's.
	TLSCA []string `json:"tls_ca,omitempty"`

	// The legacy URLs that are served: `postback`, `js` for those of JavaScript
	// SDKs, below `/js/v3/event`, and `mobile` for `/android/v3/event` and
	// `/ios/v3/event`. A call of another one is like a
	// request for any other path. Default: all; with `handoff` only `postback`,
	// the one that it can rewrite.
	Surfaces []string `json:"surfaces,omitempty"`

	// Leaves requests for no URL that is served to the next handler, instead of
	// answering them with 404.
	PassThru bool `json:"pass_thru,omitempty"`

	// Only rewrites the request, and leaves it to the next handler, such as
	// `reverse_proxy`, to forward it. The options about the upstream
	// connection have no use then and are refused.
	Handoff bool `json:"handoff,omitempty"`

	// Keeps records that v2 does not take now, and delivers them later. Off
	// without it.
	Spool *Spool `json:"spool,omitempty"`

	// Names the write keys and databases that may be used. Without it, every key may
	// send to every database.
	Keys *Keys `json:"keys,omitempty"`

	// Counts who sends what, and what is left to change. Off without it.
	Report *Report `json:"report,omitempty"`

	// Sends requests on to the legacy host, unchanged, as long as they are not moved to
	// v2. Without it, all go to v2.
	Migrate *Migrate `json:"migrate,omitempty"`

	app           *App
	spoolUse      *spoolUse     // nil without a spool
	report        *sharedReport // nil without one
	plan          *sharedPlan   // nil without migrate
	logger        *zap.Logger
	bodies        *bodies
	redirectHosts []string // in lower case
	served        postback.Surfaces
	server        *caddyhttp.Server
	leaving       *atomic.Bool // the configuration ends
	legacy        *legacyLane  // nil without migrate

	// single is where all calls go. It is nil if the region is auto, when each
	// goes to the region of its legacy host, and with handoff to an unknown host.
	single   *route
	byRegion map[string]*route
}

// route leads to one v2 host, or to a legacy one.
type route struct {
	host             string        // what Host says
	url              *url.URL      // nil with handoff
	*upstream.Client               // the same
	queue            *spool.Outbox // nil without a spool
	legacy           bool          // the host is a legacy one, not v2
}

// CaddyModule returns the Caddy module information.
func (Handler) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  handlerID,
		New: func() caddy.Module { return new(Handler) },
	}
}

// Provision applies the defaults and makes the upstream clients. It opens no
// connection and no spool: the app does that when the configuration starts.
func (h *Handler) Provision(ctx caddy.Context) (err error) {
	h.logger = ctx.Logger()
	defer func() { h.sayFirst(err) }()
	if err := registerMetrics(ctx.GetMetricsRegistry()); err != nil {
		return fmt.Errorf("registering metrics: %w", err)
	}
	h.applyDefaults()
	h.redirectHosts = lowerCase(h.RedirectHosts)
	h.server, _ = ctx.Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server)
	h.leaving = leavingOf(h.server)
	h.warnOfShadow()
	h.warnOfOpenGateway()
	h.bodies = &bodies{maxBody: h.MaxBody, maxTotal: h.MaxBuffered}
	h.warnOfMemory(debug.SetMemoryLimit(-1)) // which only reads it
	if err := h.makeRoutes(); err != nil {
		return err
	}
	if h.app, err = appOf(ctx); err != nil {
		return err
	}
	if h.Migrate != nil {
		if err = h.provisionMigrate(); err != nil {
			return err
		}
	}
	h.app.showHosts(h)
	if h.Keys != nil {
		err = h.Keys.provision()
	}
	if err == nil && h.Report != nil {
		h.report, err = h.app.useReport(h.Report, h.insteadHost())
	}
	if err != nil || h.Spool == nil || h.Handoff {
		return err // Validate refuses a spool with handoff
	}
	return h.provisionSpool()
}

// provisionSpool takes part in the spool.
func (h *Handler) provisionSpool() (err error) {
	var outboxes map[string]*spool.Outbox
	if h.spoolUse, outboxes, err = h.app.use(h.Spool, h.spoolBlock()); err != nil {
		return err
	}
	routes := h.routes()
	if h.legacy != nil {
		routes = append(routes, h.legacy.routes()...)
	}
	for _, r := range routes {
		r.queue = outboxes[r.queueName()]
	}
	return nil
}

// sayFirst logs what is wrong with the options before Caddy does: its own message
// begins with some three hundred characters of where the module stands.
func (h *Handler) sayFirst(err error) {
	if err != nil && h.logger != nil { // there is none where options are only looked at
		h.logger.Error(err.Error())
	}
}

// minHeadroom is what a gateway needs beside the bodies, in bytes.
const minHeadroom = 64 << 20

// warnOfMemory tells the operator when the bodies that max_buffered allows do
// not fit under the garbage collector's limit: the gateway would then spend its
// time on collecting, just when it is busy.
func (h *Handler) warnOfMemory(limit int64) {
	if h.MaxBuffered > limit-minHeadroom {
		h.logger.Warn("max_buffered does not fit into the memory limit: lower it, or set GOMEMLIMIT to at least the sum of max_buffered and 64 MiB",
			zap.Int64("max_buffered", h.MaxBuffered), zap.Int64("memory_limit", limit))
	}
}

func (h *Handler) applyDefaults() {
	setDefault(&h.MaxBody, postback.MaxBody)
	setDefault(&h.GlobalID, defaultGlobalID)
	setDefault(&h.MaxBuffered, defaultMaxBuffered)
	if len(h.Surfaces) == 0 {
		h.Surfaces = postback.SurfaceNames
		if h.Handoff {
			h.Surfaces = []string{handoffSurface}
		}
	}
	h.served = postback.SurfacesOf(h.Surfaces)
	if h.Keys != nil {
		h.Keys.applyDefaults()
	}
	if h.Migrate != nil {
		h.Migrate.applyDefaults()
		if h.Report == nil {
			h.Report = new(Report)
		}
	}
	if h.Report != nil {
		h.Report.applyDefaults()
	}
	if h.Handoff {
		return // the other options are about a connection that it does not make
	}
	setDefault(&h.DialTimeout, caddy.Duration(defaultDialTimeout))
	setDefault(&h.ResponseTimeout, caddy.Duration(defaultResponseTimeout))
	setDefault(&h.MaxConns, defaultMaxConns)
	if h.Retries == nil {
		retries := defaultRetries
		h.Retries = &retries
	}
	if h.Spool != nil {
		h.Spool.applyDefaults()
	}
}

func lowerCase(hosts []string) []string {
	lowered := make([]string, len(hosts))
	for i, host := range hosts {
		lowered[i] = strings.ToLower(host)
	}
	return lowered
}

func setDefault[T comparable](option *T, value T) {
	var unset T
	if *option == unset {
		*option = value
	}
}

// Validate refuses options with values that are not allowed.
func (h *Handler) Validate() (err error) {
	defer func() { h.sayFirst(err) }()
	if h.Region == "" && h.Upstream == "" && !h.Handoff {
		return fmt.Errorf("region is not set: it must be %s, or upstream must be set", postback.AllowedRegions())
	}
	if _, known := postback.LegacyHosts[h.Region]; h.Region != "" && h.Region != postback.RegionAuto && !known {
		return fmt.Errorf("region %q: must be %s%s", h.Region, postback.AllowedRegions(), didYouMean(nearestRegion(h.Region)))
	}
	if h.MaxBody < 1 || h.MaxBody > postback.MaxBody {
		return fmt.Errorf("max_body %d: must be between 1 and %d bytes, the most that Postback v2 takes", h.MaxBody, postback.MaxBody)
	}
	for _, host := range h.RedirectHosts {
		if !postback.ValidRedirectHost(host) {
			return fmt.Errorf("redirect_hosts %q: must be a host name like example.com, or *.example.com for its subdomains", host)
		}
	}
	if !httpguts.ValidHeaderFieldName(h.GlobalID) { // a cookie's name is a token too (RFC 6265 section 4.1.1)
		return fmt.Errorf("global_id %q: must be a cookie name", h.GlobalID)
	}
	if h.MaxBuffered < minBuffered {
		return fmt.Errorf("max_buffered %d: must be at least %d bytes, two bodies of the largest size with a head", h.MaxBuffered, minBuffered)
	}
	if err := h.validateSurfaces(); err != nil {
		return err
	}
	if h.Keys != nil {
		if err := h.Keys.validate(); err != nil {
			return err
		}
	}
	if h.Report != nil {
		if err := h.Report.validate(); err != nil {
			return err
		}
	}
	if h.Handoff {
		return h.validateHandoff()
	}
	if h.Migrate != nil {
		if err := h.validateMigrate(); err != nil {
			return err
		}
	}
	if h.Spool != nil && h.MaxBuffered < minBufferedSpool {
		return fmt.Errorf("max_buffered %d: must be at least %d bytes beside a spool, which holds a body of the largest size four times until it is durable", h.MaxBuffered, minBufferedSpool)
	}
	return h.validateConnection()
}

// handoffSurface is the surface whose calls can be rewritten for another handler to
// forward: the others have answers of their own.
const handoffSurface = "postback"

// validateSurfaces refuses surfaces that are none, or that handoff cannot serve.
func (h *Handler) validateSurfaces() error {
	for _, name := range h.Surfaces {
		if !slices.Contains(postback.SurfaceNames, name) {
			return fmt.Errorf("surfaces %q: must be some of %s%s", name, strings.Join(postback.SurfaceNames, ", "), didYouMean(nearest(name, postback.SurfaceNames)))
		}
		if h.Handoff && name != handoffSurface {
			return fmt.Errorf("surfaces %q: with handoff it must be %s, since the next handler's answers are not those that other callers expect", name, handoffSurface)
		}
	}
	return nil
}

// validateHandoff refuses options that would silently do nothing.
func (h *Handler) validateHandoff() error {
	for _, option := range []struct {
		name string
		set  bool
	}{
		{"dial_timeout", h.DialTimeout != 0},
		{"response_timeout", h.ResponseTimeout != 0},
		{"max_conns", h.MaxConns != 0},
		{"retries", h.Retries != nil},
		{"tls_ca", len(h.TLSCA) > 0},
		{"spool", h.Spool != nil},
		{"migrate", h.Migrate != nil},
	} {
		if option.set {
			return fmt.Errorf("%s is set: with handoff the next handler makes the connection, so only its own options count", option.name)
		}
	}
	return nil
}

func (h *Handler) validateConnection() error {
	if h.DialTimeout < 0 {
		return fmt.Errorf("dial_timeout %s: must be more than 0", durationText(time.Duration(h.DialTimeout)))
	}
	if h.ResponseTimeout < 0 {
		return fmt.Errorf("response_timeout %s: must be more than 0", durationText(time.Duration(h.ResponseTimeout)))
	}
	if h.MaxConns < 1 {
		return fmt.Errorf("max_conns %d: must be at least 1", h.MaxConns)
	}
	if *h.Retries < 0 || *h.Retries > 10 {
		return fmt.Errorf("retries %d: must be between 0 and 10", *h.Retries)
	}
	if h.Spool != nil {
		return h.Spool.validate()
	}
	return nil
}

// makeRoutes makes the ways to v2 that the options ask for.
func (h *Handler) makeRoutes() error {
	trust, err := h.trust()
	if err != nil {
		return err
	}
	target := func(region string) *url.URL { return &url.URL{Scheme: "https", Host: postback.V2Host(region)} }
	if h.Upstream != "" {
		upstream, err := parseUpstream(h.Upstream)
		if err != nil {
			return err
		}
		target = func(string) *url.URL { return upstream }
	}
	switch {
	case h.Region == postback.RegionAuto:
		h.byRegion = make(map[string]*route, len(postback.LegacyHosts))
		for region := range postback.LegacyHosts {
			if h.byRegion[region], err = h.newRoute(target(region), trust); err != nil {
				return err
			}
		}
	case h.Region != "" || h.Upstream != "":
		h.single, err = h.newRoute(target(h.Region), trust)
	}
	return err
}

func (h *Handler) newRoute(target *url.URL, trust *tls.Config) (*route, error) {
	if h.Handoff {
		return &route{host: target.Host}, nil
	}
	cfg := h.upstreamConfig(target, trust)
	if h.Spool != nil {
		cfg.Withhold = spoolTakes
	}
	up, err := upstream.New(cfg)
	if err != nil {
		return nil, err
	}
	return &route{host: target.Host, url: target, Client: up}, nil
}

func (h *Handler) upstreamConfig(target *url.URL, trust *tls.Config) upstream.Config {
	return upstream.Config{
		URL:         target,
		DialTimeout: time.Duration(h.DialTimeout),
		Timeout:     time.Duration(h.ResponseTimeout),
		MaxConns:    h.MaxConns,
		Retries:     *h.Retries,
		TLS:         trust,
		Begin:       h.begin,
	}
}

// trust reads tls_ca.
func (h *Handler) trust() (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	for _, file := range h.TLSCA {
		pem, err := readFile(file)
		if err != nil {
			return nil, fmt.Errorf("tls_ca %q: must be a readable PEM file: %w", file, err)
		}
		if cfg.RootCAs == nil {
			cfg.RootCAs = x509.NewCertPool()
		}
		if !cfg.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("tls_ca %q: must hold at least one PEM certificate", file)
		}
	}
	return cfg, nil
}

// parseUpstream accepts a scheme, a host and maybe a port: what else a URL can
// have would be silently lost, since the path is v2's and the key is the
// caller's.
func parseUpstream(value string) (*url.URL, error) {
	if u := originOf(value); u != nil {
		return u, nil
	}
	return nil, fmt.Errorf("upstream %q: must be http:// or https://, a host and maybe a port, and nothing else", redactUser(value))
}

// originOf reads a scheme, a host and maybe a port. It returns nil for anything else.
func originOf(value string) *url.URL {
	u, err := url.Parse(value)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Hostname() == "" ||
		u.User != nil || (u.Path != "" && u.Path != "/") || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" ||
		!validPort(u.Port()) || strings.HasSuffix(u.Host, ":") || strings.Contains(u.Host, ",") {
		return nil
	}
	return &url.URL{Scheme: u.Scheme, Host: u.Host}
}

func validPort(port string) bool {
	n, err := strconv.Atoi(port)
	return port == "" || err == nil && n > 0 && n < 1<<16
}

// redactUser keeps what stands before an `@` out of an error message: it may
// be a password.
func redactUser(value string) string {
	if i := strings.LastIndexByte(value, '@'); i >= 0 {
		return "…" + value[i:]
	}
	return value
}

// Cleanup closes the idle connections to v2, and leaves the spool, the file of keys,
// the report and the plan.
func (h *Handler) Cleanup() error {
	if h.Keys != nil {
		h.Keys.cleanup()
	}
	if h.report != nil {
		h.report.leave()
	}
	if h.spoolUse != nil {
		if err := h.app.leave(h.spoolUse); err != nil {
			h.logger.Error("closing the spool", zap.Error(err))
		}
	}
	if h.plan != nil {
		h.plan.leave()
	}
	if h.legacy != nil {
		h.legacy.close()
	}
	leavings.Delete(h.server)
	searched.Delete(h.server)
	for _, r := range h.routes() {
		if r.Client != nil {
			r.Close()
		}
	}
	return nil
}

func (h *Handler) routes() []*route {
	var routes []*route
	if h.single != nil {
		routes = append(routes, h.single)
	}
	for _, r := range h.byRegion {
		if r != nil {
			routes = append(routes, r)
		}
	}
	return routes
}

// Interface guards
var (
	_ caddy.Module                = (*Handler)(nil)
	_ caddy.Provisioner           = (*Handler)(nil)
	_ caddy.Validator             = (*Handler)(nil)
	_ caddy.CleanerUpper          = (*Handler)(nil)
	_ caddyfile.Unmarshaler       = (*Handler)(nil)
	_ caddyhttp.MiddlewareHandler = (*Handler)(nil)
)
