package caddymodule

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"go.uber.org/zap"

	"github.com/td-postback/gateway/migration"
	"github.com/td-postback/gateway/postback"
)

// This file has the option report, and the report of callers that handlers share. What
// is counted is in tally.go, how in package migration.

// The values of networks.
const (
	networksCIDR = "cidr"
	networksNone = "none"
)

// What rows may be: fewer tell next to nothing, and more are more than anybody reads.
const (
	minRows = 100
	maxRows = 100_000
)

// reportFile is the report's file in its directory.
const reportFile = "callers.db"

// reportPause is how long it is between two times that the report is saved: so much of
// it is lost at most.
const reportPause = 10 * time.Second

// Report counts who sends what through the gateway, and says what is left to change
// before a caller can do without it. `caddy td-migrate callers` shows it. It has no key,
// no value of a record, and no whole address of a client.
//
// All `td_postback` handlers of a configuration that have a report share one, so their
// options must be the same.
type Report struct {
	// How many callers have a row of their own. Of more callers, the rare ones are
	// summed up. A row takes about 1 KB of memory, and at most 1.6 KB. Between 100
	// and 100000. Default: 10000.
	Rows int `json:"rows,omitempty"`

	// The directory that keeps the report, for this gateway alone. It is made if it is
	// not there. If it cannot be used, the report is in memory, and a warning says so.
	// Default: `td_postback/report` in Caddy's data directory.
	Dir string `json:"dir,omitempty"`

	// What tells callers apart that are no pages: `cidr`, the network of the client, 24
	// bits of an IPv4 address or 48 of an IPv6 address; or `none`, nothing. Default:
	// `cidr`.
	Networks string `json:"networks,omitempty"`
}

func (r *Report) unmarshal(d *caddyfile.Dispenser) error {
	if d.NextArg() {
		return d.Err("report takes its options in a block: rows, dir and networks")
	}
	return eachOption(d, "report ", make(map[string]bool), r.unmarshalOption)
}

func (r *Report) unmarshalOption(d *caddyfile.Dispenser, option string) (err error) {
	switch option {
	case "rows":
		r.Rows, err = countArg(d, minRows)
	case "dir":
		r.Dir, err = wordArg(d, "a directory")
	case "networks":
		r.Networks, err = wordArg(d, networksCIDR+" or "+networksNone)
	default:
		return d.Err(noOption(option, "report"))
	}
	return err
}

func (r *Report) applyDefaults() {
	setDefault(&r.Rows, migration.DefaultRows)
	setDefault(&r.Dir, filepath.Join(caddy.AppDataDir(), "td_postback", "report"))
	setDefault(&r.Networks, networksCIDR)
}

func (r *Report) validate() error {
	if r.Rows < minRows || r.Rows > maxRows {
		return fmt.Errorf("report rows %d: must be between %d and %d", r.Rows, minRows, maxRows)
	}
	if allowed := []string{networksCIDR, networksNone}; !slices.Contains(allowed, r.Networks) {
		return fmt.Errorf("report networks %q: must be %s%s", r.Networks, strings.Join(allowed, " or "), didYouMean(nearest(r.Networks, allowed)))
	}
	return nil
}

// stateStays says that reports and plans are kept on disk. Only td-postback --sandbox
// changes it, before anything is served.
var stateStays = true

// config is what package migration needs to know.
func (r *Report) config(dir string) migration.Config {
	c := migration.Config{Rows: r.Rows, NoNetworks: r.Networks == networksNone}
	if stateStays {
		c.Path = filepath.Join(dir, reportFile)
	}
	return c
}

// sharedReports has the reports that configurations use, by their directories. They
// outlive configurations: a reload goes on with the same.
var sharedReports = caddy.NewUsagePool()

// sharedReport is a report that configurations share.
type sharedReport struct {
	dir     string
	current atomic.Pointer[migration.Report] // nil before it is opened
	trouble atomic.Value                     // a string: why it is not saved, or empty
	silent  atomic.Int64                     // how many keys are, if watched
	watched atomic.Bool

	mu      sync.Mutex // of what is below
	options Report     // of current, or those with which it is to be opened
	saver   *saver     // nil before it is opened
}

// reportUse is a configuration's use of a report.
type reportUse struct {
	*sharedReport
	options Report
	host    string // for what a caller should send instead
}

// useReport takes part in the report of a configuration. What it returns must be left,
// unless it is nil.
func (a *App) useReport(options *Report, host string) (*sharedReport, error) {
	dir, err := filepath.Abs(options.Dir)
	if err != nil {
		return nil, fmt.Errorf("report dir %q: must be a directory: %w", options.Dir, err)
	}
	if a.report != nil && (a.report.dir != dir || a.report.options != *options) {
		return nil, fmt.Errorf("report: another td_postback block has other options for it (rows %d, dir %q, networks %q): all blocks with a report share one, so give them the same",
			a.report.options.Rows, a.report.dir, a.report.options.Networks)
	}
	value, _, err := sharedReports.LoadOrNew(dir, func() (caddy.Destructor, error) {
		return &sharedReport{dir: dir, options: *options}, nil
	})
	if err != nil {
		return nil, err
	}
	shared := value.(*sharedReport) //nolint:forcetypeassert // it has nothing else
	if a.report != nil && a.report.host != host {
		host = anyV2Host // callers of several regions cannot be told apart
	}
	a.report = &reportUse{shared, *options, host}
	return shared, nil
}

// leave undoes useReport.
func (s *sharedReport) leave() { _, _ = sharedReports.Delete(s.dir) }

// anyV2Host stands for a v2 host where the region is the reader's to fill in.
const anyV2Host = "{region}.records.in.treasuredata.com"

// insteadHost is the v2 host to which the handler's callers should send.
func (h *Handler) insteadHost() string {
	if h.Region == "" || h.Region == postback.RegionAuto {
		return anyV2Host
	}
	return postback.V2Host(h.Region)
}

// get is the report. It is opened, and from then on saved, when Caddy starts the
// configuration, or when the first call comes, if that is before.
func (s *sharedReport) get() *migration.Report {
	if r := s.current.Load(); r != nil {
		return r
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.current.Load(); r != nil {
		return r
	}
	r, err := migration.Open(s.options.config(s.dir))
	s.warn(err)
	s.current.Store(r)
	s.tellOfKeys(r, time.Now())
	s.saver = startSaver(reportPause, s.save)
	return r
}

// accept lets a configuration decide that has been accepted: its options count, and its
// report is the one that is shown.
func (u *reportUse) accept() {
	u.mu.Lock()
	defer u.mu.Unlock()
	shownReport.Store(u)
	if u.sharedReport.options == u.options {
		return
	}
	u.sharedReport.options = u.options
	u.current.Load().Configure(u.options.config(u.dir), time.Now())
}

// save saves the report, and tells of its keys.
func (s *sharedReport) save() {
	s.mu.Lock()
	defer s.mu.Unlock()
	report, now := s.current.Load(), time.Now()
	s.warn(report.Save(now))
	s.tellOfKeys(report, now)
}

// Destruct saves and closes a report that no configuration uses any more.
func (s *sharedReport) Destruct() error {
	if shown := shownReport.Load(); shown != nil && shown.sharedReport == s {
		shownReport.CompareAndSwap(shown, nil)
	}
	if s.saver == nil {
		return nil
	}
	return leaveDisk(func() error {
		s.saver.end()
		s.save()
		return s.current.Load().Close()
	})
}

// warn tells of a report that cannot be kept. Nothing else suffers from that. Without an
// error, it can.
func (s *sharedReport) warn(err error) {
	if err == nil {
		s.trouble.Store("")
		return
	}
	s.trouble.Store(err.Error())
	if e := reportWarning.check(caddy.Log().Named(handlerID)); e != nil {
		e.Write(zap.String("dir", s.dir), zap.Error(err),
			zap.String("advice", "see to the directory and its disk, and give each gateway one of its own; it is tried again every 10 seconds, and until then the report is in memory only; no record suffers"))
	}
}

// shownReport is the report that td-migrate shows: that of the configuration that
// runs. It is nil without one.
var shownReport atomic.Pointer[reportUse]
