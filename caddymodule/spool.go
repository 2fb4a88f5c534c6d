package caddymodule

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/td-postback/gateway/postback"
	"github.com/td-postback/gateway/spool"
	"github.com/td-postback/gateway/spool/cluster"
	"github.com/td-postback/gateway/spool/disk"
	"github.com/td-postback/gateway/upstream"
)

// The modes of a spool.
const (
	spoolOnFailure = "on_failure"
	spoolAlways    = "always"
)

// maxSpoolAge is when v2 ignores a record's time (see docs/requests.md, "td_record_time").
const maxSpoolAge = 7 * 24 * time.Hour

// What the options about batches may be.
const (
	maxBatch         = postback.MaxBatch
	defaultBatchWait = 200 * time.Millisecond
	maxBatchWait     = time.Minute // longer, and data that is there is missed
)

const allowedSpoolAge = "more than 0 and at most 7d, when v2 ignores a record's time"

// Spool keeps records that v2 does not take now, and delivers them later. A
// caller is answered as if v2 had taken its record as soon as that is durable.
type Spool struct {
	// When a record goes to the spool: `on_failure`, only if v2 cannot be
	// reached, does not answer in time, or answers 408, 429 or 5xx; or `always`,
	// which answers callers without waiting for v2, unless v2 would surely refuse
	// the record: what is not one JSON object goes to v2 first. Default:
	// `on_failure`.
	Mode string `json:"mode,omitempty"`

	// The directory on the local disk, for this gateway alone. It is made with
	// mode 0700 if it is not there. Default: `td_postback/spool` in Caddy's data
	// directory.
	Dir string `json:"dir,omitempty"`

	// The URLs of a NATS JetStream cluster, `nats://` or `tls://`, to keep the
	// records on instead of the local disk. Several gateways may share it.
	NATS []string `json:"nats,omitempty"`

	// How many bytes the records to be delivered may take. Beyond it, callers get
	// 503. At least 1048576. Default: 10737418240 (10 GiB).
	MaxSize int64 `json:"max_size,omitempty"`

	// How many bytes dead letters may take, beside the records to be delivered. When
	// it is used up, what v2 refuses for good is counted and logged, but not kept;
	// what is too old or damaged is always kept. At least 1. Default: a quarter of
	// max_size.
	DeadSize int64 `json:"dead_size,omitempty"`

	// When a record is given up and becomes a dead letter. At most 7 days, when
	// v2 ignores its time. Default: 6 days.
	MaxAge caddy.Duration `json:"max_age,omitempty"`

	// How many records a second may be delivered, to each v2 host, beyond those
	// that arrive at the time. It leaves room for live traffic when v2 is back. Of a
	// kept request with several events, each event counts. Default: 1000.
	DrainRate int `json:"drain_rate,omitempty"`

	// How many bytes a second may be delivered, to each v2 host, beyond those that
	// arrive at the time. It leaves room on a thin uplink. Default: not limited.
	BytesRate int64 `json:"bytes_rate,omitempty"`

	// How many records may share a request to v2, by v2's batch API: those of the
	// same database, table and key. With 1, each has a request of its own there,
	// and v2 still drops what is repeated. Between 1 and 500, v2's own limit.
	// Default: no batches, each record goes by Postback.
	Batch int `json:"batch,omitempty"`

	// How long a record waits at most for others to share its request. More than 0
	// and at most 1m, and only together with `batch`. Default: 200ms.
	BatchWait caddy.Duration `json:"batch_wait,omitempty"`

	// A file with a key of 32 bytes as 64 hexadecimal digits. With it, records
	// are encrypted on disk: they hold write keys.
	KeyFile string `json:"key_file,omitempty"`
}

// applyDefaults fills in what is not set.
func (s *Spool) applyDefaults() {
	setDefault(&s.Mode, spoolOnFailure)
	setDefault(&s.MaxSize, spool.DefaultMaxSize)
	setDefault(&s.DeadSize, max(1, s.MaxSize/spool.DeadShare))
	setDefault(&s.MaxAge, caddy.Duration(spool.DefaultMaxAge))
	setDefault(&s.DrainRate, spool.DefaultRate)
	if s.Batch != 0 {
		setDefault(&s.BatchWait, caddy.Duration(defaultBatchWait))
	}
	if len(s.NATS) == 0 {
		setDefault(&s.Dir, defaultSpoolDir())
	}
}

// validate refuses options with values that are not allowed.
func (s *Spool) validate() error {
	if s.Mode != spoolOnFailure && s.Mode != spoolAlways {
		return fmt.Errorf("spool mode %q: must be %s or %s%s", s.Mode, spoolOnFailure, spoolAlways,
			didYouMean(nearest(s.Mode, []string{spoolOnFailure, spoolAlways})))
	}
	if len(s.NATS) > 0 && s.Dir != "" {
		return fmt.Errorf("spool dir %q: with nats, the records are on the cluster's disks", s.Dir)
	}
	for _, server := range s.NATS {
		if !cluster.ValidURL(server) {
			return fmt.Errorf("spool nats %q: must be nats:// or tls://, a host and maybe a port, without a comma", redactUser(server))
		}
	}
	if s.MaxSize < 1<<20 {
		return fmt.Errorf("spool max_size %d: must be at least %d bytes", s.MaxSize, 1<<20)
	}
	if s.DeadSize < 1 {
		return fmt.Errorf("spool dead_size %d: must be at least 1 byte", s.DeadSize)
	}
	if age := time.Duration(s.MaxAge); age <= 0 || age > maxSpoolAge {
		return fmt.Errorf("spool max_age %s: must be %s", durationText(age), allowedSpoolAge)
	}
	if s.DrainRate < 1 {
		return fmt.Errorf("spool drain_rate %d: must be at least 1", s.DrainRate)
	}
	if s.BytesRate < 0 {
		return fmt.Errorf("spool bytes_rate %d: must be more than 0 bytes, or be left out for no limit", s.BytesRate)
	}
	return s.validateBatch()
}

// validateBatch refuses values of the options about batches.
func (s *Spool) validateBatch() error {
	if s.Batch < 0 || s.Batch > maxBatch {
		return fmt.Errorf("spool batch %d: must be between 1 and %d, as many records as v2 takes in one request, or be left out for no batches", s.Batch, maxBatch)
	}
	wait := time.Duration(s.BatchWait)
	if s.Batch == 0 && wait != 0 {
		return fmt.Errorf("spool batch_wait %s: no record waits for others without batch: set batch too, or leave batch_wait out", durationText(wait))
	}
	if wait < 0 || wait > maxBatchWait {
		return fmt.Errorf("spool batch_wait %s: must be more than 0 and at most %s", durationText(wait), durationText(maxBatchWait))
	}
	return nil
}

// place is what tells spools apart: for logs and metrics too, so without
// credentials.
func (s *Spool) place() (string, error) {
	if len(s.NATS) == 0 {
		return filepath.Abs(s.Dir)
	}
	hosts := make([]string, len(s.NATS))
	for i, server := range s.NATS {
		if u, err := url.Parse(server); err == nil { // validate refuses another
			hosts[i] = u.Host
		}
	}
	return "nats " + strings.Join(hosts, ","), nil
}

// fixed sums up what cannot change while the spool is open, beside its place.
func (s *Spool) fixed(key []byte) [sha256.Size]byte {
	return sha256.Sum256(append([]byte(strings.Join(s.NATS, ",")+" "), key...))
}

// key reads the key file. Errors do not quote it.
func (s *Spool) key() ([]byte, error) {
	if s.KeyFile == "" {
		return nil, nil
	}
	text, err := readFile(s.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("spool key_file %q: must be a readable file: %w", s.KeyFile, err)
	}
	key, err := hex.DecodeString(strings.TrimSpace(string(text)))
	if err != nil || len(key) != spool.KeySize {
		return nil, fmt.Errorf("spool key_file %q: must hold %d hexadecimal digits, as openssl rand -hex %d prints them", s.KeyFile, 2*spool.KeySize, spool.KeySize)
	}
	return key, nil
}

// agrees reports whether two blocks of a configuration can share a spool: they
// differ only in when a record goes there.
func (s *Spool) agrees(other *Spool) bool {
	return s.MaxSize == other.MaxSize && s.DeadSize == other.DeadSize && s.MaxAge == other.MaxAge && s.DrainRate == other.DrainRate && s.BytesRate == other.BytesRate &&
		s.Batch == other.Batch && s.BatchWait == other.BatchWait && s.KeyFile == other.KeyFile && slices.Equal(s.NATS, other.NATS)
}

// sharedSpool is a spool that configurations share.
type sharedSpool struct {
	*spool.Keeper
	fixed [sha256.Size]byte // of the options that only a restart changes
}

// Destruct closes a spool that no configuration uses any more.
func (s *sharedSpool) Destruct() error {
	s.tellLeft()
	return s.Close()
}

// shared makes the spool, and opens nothing.
func (s *Spool) shared(place string, key []byte) *sharedSpool {
	setup := spool.Setup{Place: place, Account: postback.KeptPayer, Events: eventsOf, Rest: restOf, OnFate: settled, OnOpen: func(log spool.Log) { tellOpened(place, len(key) > 0, log) }}
	if len(s.NATS) > 0 {
		setup.Report = clusterReporter(place)
		setup.Final = []error{cluster.ErrMisfit}
		setup.Open = func(ctx context.Context, report func(spool.Event)) (spool.Log, error) {
			return cluster.Open(ctx, cluster.Config{URLs: s.NATS, MaxSize: s.MaxSize, DeadSize: s.DeadSize, MaxAge: time.Duration(s.MaxAge), Key: key, Account: postback.KeptPayer, OnEvent: report})
		}
	} else {
		setup.Report = func(e spool.Event) { reportDisk(place, e) }
		setup.Final = []error{disk.ErrLocked, disk.ErrKey}
		setup.Open = func(_ context.Context, report func(spool.Event)) (spool.Log, error) {
			return disk.Open(disk.Config{
				Dir: s.Dir, MaxSize: s.MaxSize, DeadSize: s.DeadSize, Key: key, OnEvent: report,
				OnCommit: func(_ int, took time.Duration) { spoolCommits.Observe(took.Seconds()) },
			})
		}
	}
	return &sharedSpool{Keeper: spool.NewKeeper(setup), fixed: s.fixed(key)}
}

// maxDeliveries is how many records of a v2 host are on their way at a time, if
// max_conns is not less. It is for a region 200 ms away and 2,500 records a
// second; more would cost memory that a near one has no use for.
const maxDeliveries = 512

// spoolBlock is how the handler's spool is used.
func (h *Handler) spoolBlock() *spool.Block {
	b := &spool.Block{
		MaxSize:  h.Spool.MaxSize,
		DeadSize: h.Spool.DeadSize,
		Limits: spool.Limits{
			InFlight:  min(h.MaxConns, maxDeliveries),
			Rate:      h.Spool.DrainRate,
			BytesRate: h.Spool.BytesRate,
			MaxAge:    time.Duration(h.Spool.MaxAge),
			Batching:  spool.Batching{Most: h.Spool.Batch, Wait: time.Duration(h.Spool.BatchWait)},
		},
		Sender: h.newSender,
	}
	for _, r := range h.routes() {
		b.Targets = append(b.Targets, r.queueName())
	}
	if h.legacy != nil {
		for _, r := range h.legacy.routes() {
			b.Alone = append(b.Alone, r.queueName())
		}
		b.Targets = append(b.Targets, b.Alone...)
	}
	return b
}

// legacyQueue begins the name of a legacy host's queue. So it is never taken for that of
// a v2 host, whatever a later configuration says of the host.
const legacyQueue = "legacy+"

// queueName names the queue of the route's host.
func (to *route) queueName() string {
	if to.legacy {
		return legacyQueue + to.url.String()
	}
	return to.url.String()
}

// upstreamSender sends records that were kept.
type upstreamSender struct {
	*upstream.Client
	host string
}

// newSender makes who delivers a queue: its name is a v2 host's URL, or says that it is a
// legacy host's. The connections are its own, so that a backlog takes none from callers.
func (h *Handler) newSender(queue string) (spool.Sender, error) {
	if strings.HasPrefix(queue, legacyQueue) {
		return h.newLegacySender(queue)
	}
	target, err := parseUpstream(queue)
	if err != nil {
		return nil, err
	}
	trust, err := h.trust()
	if err != nil {
		return nil, err
	}
	cfg := h.upstreamConfig(target, trust)
	cfg.MaxConns = maxDeliveries // which are counted before they need one
	client, err := upstream.New(cfg)
	if err != nil {
		return nil, err
	}
	return upstreamSender{client, target.Host}, nil
}

// Send sends a record to v2.
func (s upstreamSender) Send(data []byte) spool.Result {
	var t upstream.Trip
	err := s.Deliver(data, &t)
	countTrip(&t)
	result := resultOf(&t, err)
	switch {
	case result.NotTaken():
		warnOfKept(caddy.Log().Named(handlerID), &result, s.host, keptOwner(data))
	case result.Status >= http.StatusMultipleChoices:
		result.Account, result.Fingerprint = accountOf(data), keptFingerprint(data)
	}
	return result
}

// spoolAdvice is what an operator can do about a spool on disk.
var spoolAdvice = map[spool.EventKind]string{
	spool.NearlyFull:  "see why v2 does not take records, or give the spool a larger max_size; when it is full, callers get 503",
	spool.Undeletable: "see to the rights and the disk; delete the file when the gateway is stopped, or its records may be delivered again",
	spool.Unreadable:  "see to the disk or the cluster; the records are delivered when they can be read",
	spool.Foreign:     "it is left alone; move it elsewhere, or, if records of the spool are in it, give it the name that it had",
	spool.NotSealed:   "key_file is set, and whoever can write to the directory may have made them: look at them with td-spool list --dead, and replay those that are yours",
	spool.Damaged:     "check the disk; td-spool list --dead shows what is left of the record",
	spool.SetAside:    "check the disk; keep the file if you miss records, and delete it otherwise",
	spool.SmallDisk:   "give the spool a larger disk, or a smaller max_size: else the disk is full before the spool is, and whatever else is on it fails too",
	spool.Unnoted:     "see to the disk; v2 has these records, and gets them again",
	spool.Stranded:    strandedAdvice,
	spool.Unnamed:     "see to the disk; while a queue has no name, its records are delivered one by one, not in batches",
}

// failedAdvice is what an operator can do when the disk refuses records.
var failedAdvice = []struct {
	errors []error
	advice string
}{
	{[]error{syscall.ENOSPC, syscall.EDQUOT}, "free space on the disk, or names (df -i), or raise the quota"},
	{[]error{fs.ErrPermission, syscall.EACCES, syscall.EPERM, syscall.EROFS}, "give the gateway's user the right to write the directory and all that is in it, and see that the disk is not mounted read-only; it may have become so after an error (dmesg)"},
	{[]error{fs.ErrNotExist, syscall.ENOENT, syscall.ENOTDIR}, "see that dir is a directory, and that its disk is mounted"},
	{[]error{syscall.EFBIG}, "raise the limit on the size of a file (ulimit -f, LimitFSIZE)"},
	{[]error{syscall.EMFILE, syscall.ENFILE}, "raise the limit on open files (LimitNOFILE)"},
	{[]error{syscall.EIO}, "the disk is failing (dmesg): move the callers to another gateway"},
}

// adviceOn is what an operator can do about an event.
func adviceOn(e spool.Event) string {
	if e.Kind != spool.Failed {
		return spoolAdvice[e.Kind]
	}
	advice := "see to the disk, by what the error says"
	for _, known := range failedAdvice {
		if slices.ContainsFunc(known.errors, func(err error) bool {
			return errors.Is(e.Err, err) || e.Err != nil && strings.Contains(e.Err.Error(), err.Error()) // bbolt keeps only the text of some
		}) {
			advice = known.advice
			break
		}
	}
	return advice + "; until then callers whose records v2 does not take get 503"
}

// reportDisk tells the operator what has happened to a spool on disk.
func reportDisk(place string, e spool.Event) {
	fields := []zap.Field{zap.String("spool", place)}
	if e.Queue != "" {
		fields = append(fields, zap.String("queue", e.Queue))
	}
	if e.File != "" {
		fields = append(fields, zap.String("file", e.File))
	}
	if e.Records > 0 {
		fields = append(fields, zap.Int("records", e.Records))
	}
	if e.Err != nil {
		fields = append(fields, zap.Error(e.Err))
	}
	if e.Kind == spool.Recovered {
		caddy.Log().Named(handlerID).Info(e.String(), fields...)
		return
	}
	if e.Kind == spool.Unnoted {
		spoolDuplicates.Add(float64(e.Records))
	}
	caddy.Log().Named(handlerID).Warn(e.String(), append(fields, zap.String("advice", adviceOn(e)))...)
}

// clusterTexts says of a cluster what the kinds say of a disk.
var clusterTexts = map[spool.EventKind]string{
	spool.Failed:     "NATS cannot be used yet",
	spool.Recovered:  "NATS can be used",
	spool.Unreadable: "the spool's cluster does not answer",
}

// clusterReporter returns what tells the operator what has happened to a spool
// in a cluster. Trouble of one kind is told once a minute.
func clusterReporter(place string) func(spool.Event) {
	var said sync.Map // text -> *warning
	return func(e spool.Event) {
		text := cmp.Or(e.Text, clusterTexts[e.Kind], e.String())
		logger := caddy.Log().Named(handlerID)
		if e.Kind == spool.Stranded { // which is about the configuration, and told once for each
			reportDisk(place, e)
			return
		}
		if e.Kind == spool.Recovered {
			logger.Info(text, zap.String("spool", place))
			return
		}
		last, _ := said.LoadOrStore(text, new(warning))
		if !last.(*warning).due() { //nolint:forcetypeassert // there is nothing else in it
			return
		}
		logger.Warn(text, zap.String("spool", place), zap.Error(e.Err),
			zap.String("advice", "see to the cluster: docs/spool-nats.md; until then callers whose records v2 does not take may get 503"))
	}
}

// countRepeat counts a record that v2 may have taken more than once, or would have if
// it did not drop the repeat.
func countRepeat(r *spool.Result) {
	switch {
	case r.Ambiguous && r.Safe:
		spoolRepeatsSafe.Inc()
	case r.Ambiguous:
		spoolDuplicates.Inc()
	}
}

// settled counts what became of a record, and tells of one that is not
// delivered.
func settled(queue string, fate spool.Fate, r spool.Result) {
	spoolFates[fate].Inc()
	logger, host := caddy.Log().Named(handlerID), queue[strings.LastIndexByte(queue, '/')+1:]
	if r.OfKey() && !strings.HasPrefix(queue, legacyQueue) {
		countNamed(refusedKeys, r.Fingerprint)
	}
	switch fate {
	case spool.Refused, spool.TooOld:
		warnOfDeadLetter(logger, fate, &r, host)
	case spool.RefusedUnkept:
		refusedUnkept.add(r.Account)
	case spool.Retried, spool.Delivered: // when it was delivered, v2 may have had it before
		countRepeat(&r)
		return
	}
	if !r.Safe { // so it is with events of which v2 refuses the others
		countRepeat(&r)
	}
}
