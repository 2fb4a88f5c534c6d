package caddymodule

import (
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/td-postback/gateway/postback"
)

func init() {
	caddy.RegisterModule(MatchCall{})
}

// matcherName is the matcher's name in a configuration.
const matcherName = "td_call"

// MatchCall matches legacy calls as the handler `td_postback` reads them: by its rules
// for paths, and by the key that v2 would use, wherever it is. A matcher of a query or
// of a header does not see a key that is in the other one.
//
// Without options it matches each call of a surface. What is none (another path, a
// preflight, a method or a name that is refused) never matches. Several values of an
// option are alternatives; all options that are given must match. The body is not read,
// so a request with several events has no database and no table here.
//
// For each call, matched or not, it sets these placeholders:
//
// Placeholder | Value
// ------------|------
// `{td.kind}` | the kind of call
// `{td.account}` | the account number of the key, or nothing
// `{td.database}` | the database, or nothing if it is in the body; `…` in place of a key that a caller has put there
// `{td.table}` | the table, likewise
// `{td.key}` | the key's fingerprint, such as `1234/#9f3a1c20b7`, or nothing without a key
type MatchCall struct {
	// The kinds of calls: `post`, `get`, `pixel`, `beacon`, `jsonp`, `js`, `k` and
	// `mobile`. A POST whose empty body is announced as one that has a length is a
	// `post` here.
	Kind []string `json:"kind,omitempty"`

	// The account numbers of the keys that v2 would use.
	Account []string `json:"account,omitempty"`

	// The databases: names, or `name*` for all that begin so.
	Database []string `json:"database,omitempty"`

	// The tables, likewise.
	Table []string `json:"table,omitempty"`

	databases, tables postback.Names
}

// CaddyModule returns the Caddy module information.
func (MatchCall) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.matchers." + matcherName,
		New: func() caddy.Module { return new(MatchCall) },
	}
}

// UnmarshalCaddyfile sets up the matcher from Caddyfile tokens. Syntax:
//
//	td_call {
//		kind     post|get|pixel|beacon|jsonp|js|k|mobile ...
//		account  <number...>
//		database <name...>
//		table    <name...>
//	}
func (m *MatchCall) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	seen := make(map[string]bool)
	for d.Next() {
		if d.NextArg() {
			return d.Errf("%s takes its options in a block: kind, account, database and table", matcherName)
		}
		if err := eachOption(d, matcherName+" ", seen, m.unmarshalOption); err != nil {
			return err
		}
	}
	return nil
}

func (m *MatchCall) unmarshalOption(d *caddyfile.Dispenser, option string) (err error) {
	switch option {
	case "kind":
		m.Kind, err = someArgs(d)
	case "account":
		m.Account, err = someArgs(d)
	case "database":
		m.Database, err = someArgs(d)
	case "table":
		m.Table, err = someArgs(d)
	default:
		return d.Err(noOption(option, matcherName))
	}
	return err
}

// Provision loads the app that has the secret under which keys are named.
func (m *MatchCall) Provision(ctx caddy.Context) error {
	m.prepare()
	_, err := appOf(ctx)
	return err
}

func (m *MatchCall) prepare() {
	m.databases, m.tables = postback.NamesOf(m.Database), postback.NamesOf(m.Table)
}

// callKinds are the kinds that calls can have.
var callKinds = postback.KindNames[postback.Other+1:]

// Validate refuses options with values that are not allowed.
func (m *MatchCall) Validate() error {
	for _, kind := range m.Kind {
		if !slices.Contains(callKinds, kind) {
			return fmt.Errorf("%s kind %q: must be some of %s%s", matcherName, kind, strings.Join(callKinds, ", "), didYouMean(nearest(kind, callKinds)))
		}
	}
	if err := checkAccounts(matcherName+" account", m.Account); err != nil {
		return err
	}
	if err := checkNames(matcherName+" database", m.Database); err != nil {
		return err
	}
	return checkNames(matcherName+" table", m.Table)
}

// Match reports whether a request matches.
func (m *MatchCall) Match(r *http.Request) bool {
	matches, _ := m.MatchWithError(r)
	return matches
}

// MatchWithError reports whether a request matches. It makes no error.
func (m *MatchCall) MatchWithError(r *http.Request) (bool, error) {
	c, refused := postback.ReadCall(r, postback.AllSurfaces)
	if refused != nil || c.Kind == postback.Other {
		return false, nil
	}
	_ = c.ReadKey(r.URL.RawQuery, r.Header) // of a call whose key is refused, the rest counts
	if r.ContentLength == 0 {
		c.NoBody(callerOf(r, defaultGlobalID))
	}
	account := c.AccountNumber()
	show(r, &shownCall{kind: c.Kind, account: account, to: c.Destination, key: c.Key()})
	return (len(m.Kind) == 0 || slices.Contains(m.Kind, c.Kind.String())) &&
		(len(m.Account) == 0 || account != "" && slices.Contains(m.Account, account)) &&
		(len(m.Database) == 0 || m.databases.Has(c.Database)) &&
		(len(m.Table) == 0 || m.tables.Has(c.Table)), nil
}

// shownCall is a call for placeholders.
type shownCall struct {
	kind    postback.Kind
	account string
	to      postback.Destination
	key     string
}

// show sets the placeholders of a request. Another matcher may have done so, before the
// request was changed.
func show(r *http.Request, c *shownCall) {
	if shown, ok := caddyhttp.GetVar(r.Context(), matcherName).(*shownCall); ok {
		*shown = *c
		return
	}
	replacer, ok := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	if !ok {
		return
	}
	caddyhttp.SetVar(r.Context(), matcherName, c)
	replacer.Map(c.placeholder)
}

// placeholder is the value of a placeholder. The fingerprint is made when it is wanted.
func (c *shownCall) placeholder(name string) (any, bool) {
	switch name {
	case "td.kind":
		return c.kind.String(), true
	case "td.account":
		return c.account, true
	case "td.database":
		return c.to.Shown().Database, true
	case "td.table":
		return c.to.Shown().Table, true
	case "td.key":
		return fingerprintOf(c.key), true
	}
	return nil, false
}

// String keeps the key out of what shows variables.
func (c *shownCall) String() string { return fingerprintOf(c.key) }

// Interface guards
var (
	_ caddy.Provisioner                 = (*MatchCall)(nil)
	_ caddy.Validator                   = (*MatchCall)(nil)
	_ caddyfile.Unmarshaler             = (*MatchCall)(nil)
	_ caddyhttp.RequestMatcherWithError = (*MatchCall)(nil)
	_ fmt.Stringer                      = (*shownCall)(nil)
)
