package caddymodule

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/td-postback/gateway/postback"
)

// This file lets only those keys and databases through that the operator names.

// The values of unknown.
const (
	unknownRefuse = "refuse"
	unknownWarn   = "warn"
)

// Keys says which write keys may send, and to which databases. v2 answers 200 to any
// key, and a gateway without this relays anybody's events to anybody's account.
//
// What is checked is the key that v2 would use, wherever it is, and the database of
// each event. A call that does not pass is refused with 403, `unknown_key` or
// `unknown_database`: as JSON, to a pixel with its image, to a JavaScript SDK without
// its callback. Of a request with several events, all are refused.
type Keys struct {
	// The accounts whose keys are known, by their numbers: the digits before a key's
	// slash. It does not tell a wrong key of such an account from a right one.
	Accounts []string `json:"accounts,omitempty"`

	// A file with known keys. Each line has one, as it is or as `sha256:` and the
	// hexadecimal SHA-256 of it; a label may follow behind a space. Blank lines, and
	// those that begin with `#`, are nothing. At most 64 MiB. A change counts within
	// 2 seconds. A file that cannot be used fails the start; later it changes
	// nothing, and is warned of.
	File string `json:"file,omitempty"`

	// The databases to which records may go: names, or `name*` for all that begin so.
	// Default: all.
	Databases []string `json:"databases,omitempty"`

	// What becomes of a call with another key or database: `refuse`, or `warn`, which
	// forwards it and counts it, and names its key in a warning. Default: `refuse`.
	Unknown string `json:"unknown,omitempty"`

	policy *postback.Policy
	file   *keyFile // nil without one
}

func (k *Keys) unmarshal(d *caddyfile.Dispenser) error {
	if d.NextArg() { // maybe a key
		return d.Err("keys takes its options in a block: accounts, file, databases and unknown")
	}
	return eachOption(d, "keys ", make(map[string]bool), k.unmarshalOption)
}

func (k *Keys) unmarshalOption(d *caddyfile.Dispenser, option string) (err error) {
	switch option {
	case "accounts":
		k.Accounts, err = someArgs(d)
	case "file":
		k.File, err = wordArg(d, "a file")
	case "databases":
		k.Databases, err = someArgs(d)
	case "unknown":
		k.Unknown, err = wordArg(d, unknownRefuse+" or "+unknownWarn)
	default:
		return d.Err(noOption(option, "keys"))
	}
	return err
}

func (k *Keys) applyDefaults() { setDefault(&k.Unknown, unknownRefuse) }

func (k *Keys) validate() error {
	if len(k.Accounts) == 0 && k.File == "" && len(k.Databases) == 0 {
		return errors.New("keys has neither accounts nor file nor databases: it must have one of them, or be left out to let every key through")
	}
	if err := checkAccounts("keys accounts", k.Accounts); err != nil {
		return err
	}
	if err := checkNames("keys databases", k.Databases); err != nil {
		return err
	}
	if allowed := []string{unknownRefuse, unknownWarn}; !slices.Contains(allowed, k.Unknown) {
		return fmt.Errorf("keys unknown %q: must be %s%s", withoutSecret(k.Unknown), strings.Join(allowed, " or "), didYouMean(nearest(k.Unknown, allowed)))
	}
	return nil
}

// checkAccounts refuses values of an option that are no account numbers.
func checkAccounts(option string, accounts []string) error {
	for _, account := range accounts {
		if !postback.ValidAccount(account) {
			return fmt.Errorf("%s %q: must be an account number, the digits before a write key's slash, such as 1234", option, withoutSecret(account))
		}
	}
	return nil
}

// checkNames refuses values of an option that are no names of databases or tables, nor
// the beginnings of some.
func checkNames(option string, names []string) error {
	for _, name := range names {
		if !postback.ValidNamePattern(name) {
			return fmt.Errorf("%s %q: must be a name of letters, digits and _, or the beginning of one and *", option, withoutSecret(name))
		}
	}
	return nil
}

// withoutSecret is an option's value without what may be a key's secret, if somebody
// has written a key there.
func withoutSecret(value string) string {
	if i := strings.IndexAny(value, "/%"); i >= 0 {
		return value[:i] + "/…"
	}
	const longest = 32
	if len(value) > longest {
		return "…"
	}
	return value
}

// provision begins to follow the file.
func (k *Keys) provision() (err error) {
	k.policy = postback.NewPolicy(k.Accounts, k.Databases, k.File != "")
	if k.File != "" {
		if k.file, err = followKeyFile(k.File); err != nil {
			return k.fileError(err)
		}
	}
	return nil
}

// checkFile reports whether the file could be used at a start.
func (k *Keys) checkFile() error {
	if k.File == "" {
		return nil
	}
	text, err := readKeyFile(k.File)
	if err == nil {
		_, err = postback.ReadKeyList(text)
	}
	if err != nil {
		return k.fileError(err)
	}
	return nil
}

func (k *Keys) fileError(err error) error {
	return fmt.Errorf("keys file %q: must be a readable file with a write key, or sha256: and its hash, in each line: %w", postback.MaskKeys(k.File), err)
}

// cleanup ends following the file.
func (k *Keys) cleanup() {
	if k.file != nil {
		k.file.leave()
	}
}

// knowsKey reports whether a key may send.
func (k *Keys) knowsKey(key string) bool {
	var list *postback.KeyList
	if k.file != nil {
		list = k.file.list.Load()
	}
	return k.policy.KnowsKey(key, list)
}

// checkKey refuses a call whose key may not send, or not to its database. Of a call
// with several events, the databases are not known yet. An unknown key in a header, beside
// the Authorization that v2 uses, does not go along.
func (h *Handler) checkKey(c *call) *postback.Refusal {
	switch {
	case h.Keys == nil:
		return nil
	case !h.Keys.knowsKey(c.Key()):
		return h.unknown(c, &unknownKey, c.Destination)
	case !c.IsKeen() && !h.Keys.policy.KnowsDatabase(c.Database):
		return h.unknown(c, &unknownDatabase, c.Destination)
	case c.Authorization != "" && c.WriteKey != "" && h.Keys.Unknown == unknownRefuse && !h.Keys.knowsKey(c.WriteKey):
		c.WriteKey = ""
	}
	return nil
}

// checkDatabases refuses a call with several events if one of them may not go to its
// database. Events for no table are not forwarded anyway.
func (h *Handler) checkDatabases(c *call, events *postback.Keen) *postback.Refusal {
	if h.Keys == nil {
		return nil
	}
	for i := range events.Collections {
		if to := events.Collections[i].Destination; to.Database != "" && !h.Keys.policy.KnowsDatabase(to.Database) {
			return h.unknown(c, &unknownDatabase, to)
		}
	}
	return nil
}

// strangeness is what the operator does not know.
type strangeness struct {
	counter prometheus.Counter
	refused *postback.Refusal
	message string
	advice  string
	named   namedKeys
}

var (
	unknownKey = strangeness{
		counter: unknownTotal.WithLabelValues("key"), refused: postback.UnknownKey, message: "unknown write key",
		advice: "if it is a caller of yours, compare its key with the one in Treasure Data, and add it to keys; if not, a stranger sends through this gateway",
	}
	unknownDatabase = strangeness{
		counter: unknownTotal.WithLabelValues("database"), refused: postback.UnknownDatabase, message: "record for an unknown database",
		advice: "if it is right, add the database to keys; if not, see what the owner of this key sends",
	}
)

// unknown counts a call and warns of it, and refuses it, if it is to be refused. Of a
// call that is only audited it says what it would do.
func (h *Handler) unknown(c *call, what *strangeness, to postback.Destination) *postback.Refusal {
	warns := h.Keys.Unknown == unknownWarn
	if !c.audited {
		h.warnOfUnknown(c, what, to, warns)
	}
	if warns {
		return nil
	}
	return what.refused
}

func (h *Handler) warnOfUnknown(c *call, what *strangeness, to postback.Destination, warns bool) {
	name := fingerprintOf(c.Key())
	countNamed(what.counter, name)
	if what.named.due(name) {
		h.logger.Warn(what.message, zap.Inline(keyOwner{owner{c.Account(), to}, c.Key()}), zap.Stringer("surface", c.Kind), zap.Stringer("key", c.Source),
			zap.Bool("forwarded", warns), zap.String("advice", what.advice))
	}
}

// maxNamedKeys is how many keys are named in warnings in a minute: somebody may try
// many.
const maxNamedKeys = 256

// namedKeys says which keys were named within the last minute.
type namedKeys struct {
	mu    sync.Mutex
	last  map[string]time.Time // by fingerprint
	swept time.Time
}

// due reports whether a key is to be named, and notes that it is.
func (n *namedKeys) due(name string) bool {
	now := time.Now()
	n.mu.Lock()
	defer n.mu.Unlock()
	last, known := n.last[name]
	switch {
	case known && now.Sub(last) < warningPause:
		return false
	case !known && len(n.last) >= maxNamedKeys:
		if now.Sub(n.swept) < warningPause {
			return false
		}
		n.swept = now
		maps.DeleteFunc(n.last, func(_ string, last time.Time) bool { return now.Sub(last) >= warningPause })
		if len(n.last) >= maxNamedKeys {
			return false
		}
	}
	if n.last == nil {
		n.last = make(map[string]time.Time)
	}
	n.last[name] = now
	return true
}

// toldOfOpenGateway says that the process has told of a gateway that everybody may use.
var toldOfOpenGateway atomic.Bool

// warnOfOpenGateway tells the operator what it means that everybody who reaches the
// gateway may send any key. It says so once, and not of a gateway that only this
// machine reaches, or whose events stay on it.
func (h *Handler) warnOfOpenGateway() {
	if h.Keys != nil || h.server == nil || !isPublic(h.server.Listen) || staysHere(h.Upstream) || !toldOfOpenGateway.CompareAndSwap(false, true) {
		return
	}
	h.logger.Warn("this gateway is open: whoever reaches it can send events to any account, through your address, and v2 says 200 to wrong keys too",
		zap.Strings("listen", h.server.Listen),
		zap.String("advice", "name the accounts, the keys or the databases that may be used in the option keys: docs/keys.md"))
}

// isPublic reports whether one of these addresses may be reached from another machine.
// Of a socket that the gateway is given, nobody knows.
func isPublic(listen []string) bool {
	return slices.ContainsFunc(listen, func(listen string) bool {
		address, err := caddy.ParseNetworkAddress(listen)
		return err == nil && !address.IsUnixNetwork() && !isLoopback(address.Host)
	})
}

// staysHere reports whether an upstream is on this machine: a sandbox, say.
func staysHere(upstream string) bool {
	to, err := parseUpstream(upstream)
	return upstream != "" && err == nil && isLoopback(to.Hostname())
}
