package migration

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/td-postback/gateway/postback"
)

// DefaultRows is how many rows a report has that is not told how many.
const DefaultRows = 10_000

// forgetAfter is how long a row stays whose caller has gone.
const forgetAfter = 30 * 24 * time.Hour

// Config says what a report keeps. The zero value is a good one.
type Config struct {
	// Rows is how many callers have a row of their own; 0 for DefaultRows. Memory is
	// about 1 KB a row, and at most 1.6 KB.
	Rows int

	// NoNetworks drops the networks of clients: only pages have a source then.
	NoNetworks bool

	// Path is the file that keeps the report, in a directory that is made if there is
	// none. Without one, the report is gone with the process.
	Path string
}

// Call is what a report needs to know of a call. Texts are as the caller sent them:
// the report makes them short and printable, and keeps no key of them.
type Call struct {
	Time time.Time // when it was answered

	Key             string // the key's fingerprint, or empty
	Database, Table string // or empty
	Surface         string // its kind: post, pixel, …
	UserAgent       string // the header, as are the next two
	Origin          string
	Referer         string
	Client          string // the client's address

	Lane     Lane     // by which it went, or would have gone
	Result   string   // what became of it: forwarded, or the code of a refusal. There are few.
	Findings Findings // what its owner should know
	Events   int      // how many it has; 0 counts as 1

	// Undecided says that no plan has chosen the lane: the call was refused before it
	// could be sent, or has no other lane. It counts in no share.
	Undecided bool
}

// Report counts calls by who sends them: the key's fingerprint, the table, the
// surface, the agent and the source. Its memory is bounded: of more callers than it
// has rows, the rare ones give way, and are summed up as others. That is the
// Space-Saving algorithm (Metwally, Agrawal, El Abbadi 2005): a caller with more than
// an N/rows part of all N events always has a row, and each row says how many events
// it may have missed. All methods may be called at the same time.
type Report struct {
	store      store
	noNetworks atomic.Bool

	mu     sync.RWMutex // locked whole to change which rows there are
	limit  int          // how many there are at most
	rows   map[string]*row
	order  order
	others others
	gone   map[string]bool // keys that the file has, or may have, without a row
	known  map[string]bool // write keys that are not new, and whether they are silent; behind the store's mu

	agents   knownAgents
	examples budget
}

// others is all callers that have no row now.
type others struct {
	totals
	rows uint64 // how often one gave way

	// missed is how many events at most a caller without a row has had.
	missed uint64

	findings []found
}

// newReport makes a report without what is in its file.
func newReport(cfg Config) *Report {
	if cfg.Rows == 0 {
		cfg.Rows = DefaultRows
	}
	r := &Report{
		store: store{path: cfg.Path, buckets: [][]byte{rowsBucket, othersBucket}}, limit: cfg.Rows,
		rows: make(map[string]*row, cfg.Rows), gone: map[string]bool{},
	}
	r.noNetworks.Store(cfg.NoNetworks)
	return r
}

// Configure changes how many rows there are, which are those with most events, and whether
// callers that come have their networks. The file stays.
func (r *Report) Configure(cfg Config, now time.Time) {
	r.noNetworks.Store(cfg.NoNetworks)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.limit = cfg.Rows; len(r.rows) <= r.limit {
		return
	}
	all := slices.Collect(maps.Values(r.rows))
	slices.SortFunc(all, func(a, b *row) int { return cmp.Compare(b.data.weight(), a.data.weight()) })
	rare := map[*row]bool{}
	for _, one := range all[r.limit:] {
		rare[one] = true
		r.others.missed = max(r.others.missed, one.data.weight())
		r.giveWay(one, now)
	}
	r.order.keep(func(one *row) bool { return !rare[one] })
}

// add adds other others.
func (o *others) add(more *others) {
	o.merge(&more.totals)
	o.rows += more.rows
	o.missed = max(o.missed, more.missed)
	for _, f := range more.findings {
		o.findings = addFound(o.findings, f)
	}
}

// Count counts a call. It is quick: for a caller that is known, it waits for no file
// and allocates nothing. It reports whether the call should be an example, for
// AddExample.
func (r *Report) Count(c *Call) (wantsExample bool) {
	var buffer [512]byte
	key := r.appendKey(buffer[:0], c)
	r.mu.RLock()
	known, ok := r.rows[string(key)]
	if ok {
		wantsExample = known.count(c)
	}
	r.mu.RUnlock()
	if !ok {
		wantsExample = r.countNew(string(key), c)
	}
	return wantsExample && r.examples.take(c.Time)
}

// appendKey appends what a caller is told by.
func (r *Report) appendKey(dst []byte, c *Call) []byte {
	dst = append(appendClean(dst, c.Key, maxFingerprint), keySeparator)
	to := postback.Destination{Database: c.Database, Table: c.Table}.Shown()
	dst = append(appendClean(dst, to.Database, maxName), keySeparator)
	dst = append(appendClean(dst, to.Table, maxName), keySeparator)
	dst = append(appendClean(dst, c.Surface, maxSurface), keySeparator)
	by := r.agents.of(c.UserAgent)
	dst = append(append(dst, by.family...), keySeparator)
	return appendSource(dst, c, by.browser, !r.noNetworks.Load())
}

// keySeparator stands between the parts of a row's key. No part has it: it cannot be
// printed.
const keySeparator = 0

// keyParts is how many parts there are.
const keyParts = 6

// partsOf are the parts of a row's key, in the order of appendKey.
func partsOf(key string) []string { return strings.SplitN(key, string(rune(keySeparator)), keyParts) }

// count counts a call of the row's caller.
func (r *row) count(c *Call) (wantsExample bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.data.add(c)
	return r.data.wantsExample(c.Findings)
}

// countNew counts a call whose caller had no row just before.
func (r *Report) countNew(key string, c *Call) (wantsExample bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	known, ok := r.rows[key]
	if !ok {
		known = r.makeRow(key, c.Time)
	}
	return known.count(c)
}

// makeRow gives a caller a row: a new one, or the one of the rarest caller. The caller
// begins with as many events as it may have had among the others, so that those which
// come all the time stay, however many come once.
func (r *Report) makeRow(key string, now time.Time) *row {
	var made *row
	if len(r.rows) < r.limit {
		made = &row{}
		made.begin(key, r.others.missed)
		r.order.append(made)
	} else {
		made = r.order.rarest()
		r.others.missed = max(r.others.missed, made.data.weight())
		r.giveWay(made, now)
		made.begin(key, r.others.missed)
	}
	r.rows[key] = made
	return made
}

// giveWay takes a caller's row away, and adds its counts to the others'.
func (r *Report) giveWay(old *row, now time.Time) {
	delete(r.rows, old.key)
	if old.data.saved {
		r.gone[old.key] = true
	}
	hour := max(r.others.hours.newest, old.data.hours.newest)
	if postback.PlausibleTime(now) {
		hour = hourOf(now)
	}
	r.others.hours.advance(hour)
	r.others.add(&others{totals: old.data.totals, rows: 1, findings: old.data.findings})
}

// forget takes away the rows of callers that have gone. Those that are to come, by a clock
// that was ahead, have come now. It does nothing as long as the clock cannot be right.
func (r *Report) forget(now time.Time) {
	if !postback.PlausibleTime(now) {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.others.last > now.Add(maxAhead).Unix() {
		r.others.first, r.others.last = min(r.others.first, now.Unix()), now.Unix()
		foundNotAfter(r.others.findings, now.Unix())
	}
	r.order.keep(func(old *row) bool {
		switch {
		case old.data.last > now.Add(maxAhead).Unix():
			old.mu.Lock() // somebody may be listing it
			defer old.mu.Unlock()
			old.data.notAfter(now.Unix())
		case old.data.last < now.Add(-forgetAfter).Unix():
			r.giveWay(old, now)
			return false
		}
		return true
	})
}

// maxAhead is how far a caller's last call may be ahead of the clock: calls and clocks
// overtake each other a little.
const maxAhead = time.Minute

// AddExample gives the caller of a call an example of what it sends. The text must be
// redacted: see Redact.
func (r *Report) AddExample(c *Call, request string) {
	var buffer [512]byte
	key := r.appendKey(buffer[:0], c)
	r.mu.RLock()
	defer r.mu.RUnlock()
	known, ok := r.rows[string(key)]
	if !ok {
		return // it gave way meanwhile
	}
	known.mu.Lock()
	defer known.mu.Unlock()
	if d := &known.data; d.wantsExample(c.Findings) {
		d.examples = append(d.examples, example{Request: clean(request, maxExample), Findings: c.Findings})
		d.changed = true
	}
}

// examplesAMinute bounds the work for examples when callers come that were never seen
// before, one after another.
const examplesAMinute = 1000

// budget says how many examples are made.
type budget struct {
	mu     sync.Mutex
	minute int64
	used   int
}

// take takes one example, if there is one left in this minute.
func (b *budget) take(now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if minute := now.Unix() / 60; minute != b.minute {
		b.minute, b.used = minute, 0
	}
	b.used++
	return b.used <= examplesAMinute
}
