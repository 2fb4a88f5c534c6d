package caddymodule

import (
	"cmp"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"strings"
	"sync"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/td-postback/gateway/migration"
	"github.com/td-postback/gateway/postback"
	"github.com/td-postback/gateway/upstream"
)

// This file has the option migrate: where the legacy host is, and what decides over the
// lanes. What the legacy lane does is in legacy.go.

// Migrate sends requests on to the legacy host, unchanged, as long as they are not moved
// to v2. It switches the report on.
//
// All `td_postback` handlers of a configuration that have it share one plan, so `start`,
// `stick` and `dir` must be the same.
type Migrate struct {
	// The legacy host: a host, maybe with a port, or `http://` or `https://` and one.
	// Default: the legacy host of the region; with region `auto`, the one that the
	// request's Host names.
	Legacy string `json:"legacy,omitempty"`

	// Where the legacy host really is, as host:port, for a network in which its name
	// leads to the gateway. The certificate is verified against the legacy host's name
	// all the same. Default: where its name leads.
	Resolve string `json:"resolve,omitempty"`

	// Where requests go before anybody has made a plan: `legacy`, or `v2`. Default:
	// `legacy`.
	Start string `json:"start,omitempty"`

	// What of a request decides, where a share of a table's requests goes to v2:
	// `client`, its address; `key`, its write key, or its address without one; or
	// `table`, its database and table. Default: `client`.
	Stick string `json:"stick,omitempty"`

	// The directory that keeps the plan, for this gateway alone. Default:
	// `td_postback/plan` in Caddy's data directory.
	Dir string `json:"dir,omitempty"`
}

func (m *Migrate) unmarshal(d *caddyfile.Dispenser) error {
	if d.NextArg() {
		return d.Err("migrate takes its options in a block: legacy, resolve, start, stick and dir")
	}
	return eachOption(d, "migrate ", make(map[string]bool), m.unmarshalOption)
}

func (m *Migrate) unmarshalOption(d *caddyfile.Dispenser, option string) (err error) {
	switch option {
	case "legacy":
		m.Legacy, err = wordArg(d, allowedLegacy)
	case "resolve":
		m.Resolve, err = wordArg(d, allowedResolve)
	case "start":
		m.Start, err = wordArg(d, allowedStart)
	case "stick":
		m.Stick, err = wordArg(d, allowedStick)
	case "dir":
		m.Dir, err = wordArg(d, "a directory")
	default:
		return d.Err(noOption(option, "migrate"))
	}
	return err
}

const (
	allowedLegacy  = "a host such as in.treasuredata.com, maybe with a port, or http:// or https:// and one"
	allowedStart   = "legacy or v2"
	allowedStick   = "client, key or table"
	allowedResolve = "a host or an address, and a port, such as 203.0.113.7:443"
)

func (m *Migrate) applyDefaults() {
	setDefault(&m.Start, migration.Legacy.String())
	setDefault(&m.Stick, migration.StickClient.String())
	setDefault(&m.Dir, filepath.Join(caddy.AppDataDir(), "td_postback", "plan"))
}

func (m *Migrate) validate() error {
	if m.Resolve != "" && !isHostPort(m.Resolve) {
		return fmt.Errorf("migrate resolve %q: must be %s", m.Resolve, allowedResolve)
	}
	_, err := m.planConfig()
	return err
}

// isHostPort reports whether a text is a host or an address, and a port.
func isHostPort(text string) bool {
	host, port, err := net.SplitHostPort(text)
	if err != nil || port == "" || !validPort(port) {
		return false
	}
	if _, err = netip.ParseAddr(host); err == nil {
		return true
	}
	name := originOf("http://" + host)
	return name != nil && name.Host == host
}

// validateMigrate refuses what does not go together with the other options.
func (h *Handler) validateMigrate() error {
	if err := h.Migrate.validate(); err != nil {
		return err
	}
	if h.Migrate.Resolve != "" && h.Migrate.Legacy == "" && h.Region == postback.RegionAuto {
		return fmt.Errorf("migrate resolve %q: must not be set with region auto, whose legacy hosts are several, unless legacy names one", h.Migrate.Resolve)
	}
	return nil
}

// legacyURL is where the legacy host is.
func (m *Migrate) legacyURL(value string) (*url.URL, error) {
	whole := value
	if !strings.Contains(value, "://") {
		whole = "https://" + value
	}
	u := originOf(whole)
	if u == nil {
		return nil, fmt.Errorf("migrate legacy %q: must be %s", redactUser(value), allowedLegacy)
	}
	return u, nil
}

// legacyLane is what leads to the legacy host, and decides what goes there.
type legacyLane struct {
	// decide decides by which lane a call goes. It may be called by many at a time.
	decide func(laneQuery) migration.Lane

	// decideAtHead is decide for a call with several events, if its tables do not matter,
	// and decideByTables if they may. It goes to v2 only if all of its tables do.
	decideAtHead   func(laneQuery) (lane migration.Lane, known bool)
	decideByTables func(laneQuery, []postback.Destination) migration.Lane

	// pseudonym is what the gateway calls itself in Via, and via its entry there of a
	// request over HTTP/1.1, as nearly all are: it need not be made for each.
	pseudonym, via func() string

	single   *route            // nil if the region is auto and no host is named
	byRegion map[string]*route // then
}

// laneQuery is what of a call may decide over its lane. A call with several events has
// its tables in the body, and here none. Nor has what v2 would not take: a bad name, or
// another method.
type laneQuery struct {
	postback.Destination
	Key    string // that v2 would use; empty without one
	Client string // its address
}

// provisionMigrate makes the ways to the legacy host. It opens no connection.
func (h *Handler) provisionMigrate() error {
	if h.Handoff {
		return nil // which Validate refuses
	}
	var err error
	if h.plan, err = h.app.usePlan(h.Migrate); err != nil {
		return err
	}
	if h.Spool != nil && len(h.Spool.NATS) > 0 {
		if err = h.app.sharePlan(h.Spool.NATS); err != nil {
			return err
		}
	}
	h.legacy = &legacyLane{decide: h.plan.decide, decideAtHead: h.plan.decideAtHead, decideByTables: h.plan.decideByTables}
	h.legacy.pseudonym = sync.OnceValue(h.app.fingerprints.pseudonym)
	h.legacy.via = sync.OnceValue(func() string { return via(1, 1, h.legacy.pseudonym()) })
	showResults(migration.Legacy)
	trust, err := h.trust()
	if err != nil {
		return err
	}
	named := cmp.Or(h.Migrate.Legacy, postback.LegacyHosts[h.Region])
	switch {
	case named != "":
		h.legacy.single, err = h.newLegacyRoute(named, trust)
	case h.Region == postback.RegionAuto:
		h.legacy.byRegion = make(map[string]*route, len(postback.LegacyHosts))
		for region, host := range postback.LegacyHosts {
			if h.legacy.byRegion[region], err = h.newLegacyRoute(host, trust); err != nil {
				return err
			}
		}
	case h.Upstream != "":
		err = errNoLegacy
	}
	return err
}

var errNoLegacy = errors.New("migrate legacy is not set: without a region it must be " + allowedLegacy)

func (h *Handler) newLegacyRoute(host string, trust *tls.Config) (*route, error) {
	target, err := h.Migrate.legacyURL(host)
	if err != nil {
		return nil, err
	}
	cfg := h.upstreamConfig(target, trust)
	cfg.Addr, cfg.Begin = h.Migrate.Resolve, h.closeIfLeaving
	if h.Spool != nil {
		cfg.Withhold = spoolTakes
	}
	client, err := upstream.New(cfg)
	if err != nil {
		return nil, err
	}
	return &route{host: target.Host, url: target, Client: client, legacy: true}, nil
}

// routeFor finds the way to the legacy host for a request's Host.
func (l *legacyLane) routeFor(host string) (*route, *postback.Refusal) {
	if l.single != nil {
		return l.single, nil
	}
	region, ok := postback.RegionOf(host)
	if !ok {
		return nil, postback.UnknownRegion
	}
	return l.byRegion[region], nil
}

// routes are the ways to all legacy hosts.
func (l *legacyLane) routes() (routes []*route) {
	if l.single != nil {
		routes = append(routes, l.single)
	}
	for _, r := range l.byRegion {
		if r != nil {
			routes = append(routes, r)
		}
	}
	return routes
}

// close gives up the idle connections.
func (l *legacyLane) close() {
	for _, r := range l.routes() {
		r.Close()
	}
}
