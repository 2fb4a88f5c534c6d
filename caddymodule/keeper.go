package caddymodule

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/td-postback/gateway/spool"
	"github.com/td-postback/gateway/spool/cluster"
	"github.com/td-postback/gateway/spool/disk"
	"github.com/td-postback/gateway/upstream"
)

// keepers has the keeper of each spool, by its place. They outlive
// configurations: a reload hands a spool over without closing it.
var keepers = caddy.NewUsagePool()

// keeper owns a spool as long as a configuration uses it: it has the Log, and
// one Deliverer for each v2 host.
type keeper struct {
	place string
	fixed [sha256.Size]byte // of the options that only a restart changes
	nats  bool              // the Log is a cluster, not a disk
	stop  context.CancelFunc
	ctx   context.Context //nolint:containedctx // the keeper's own life, which no call ends
	ended sync.WaitGroup

	log  atomic.Pointer[spool.Log] // nil while it cannot be opened
	full atomic.Bool               // there was no room for the last record
	said sync.Map                  // what a cluster has said, with when that was logged

	mu     sync.Mutex
	queues map[string]*spoolQueue
	blocks []*block
}

// spoolQueue is what is kept for one v2 host. Its name is the host's URL.
type spoolQueue struct {
	spool.Circuit
	name      string
	keeper    *keeper
	upstream  atomic.Pointer[upstream.Client]
	failed    atomic.Bool                     // the Log refuses its records
	deliverer atomic.Pointer[spool.Deliverer] // nil while the Log cannot be opened
}

// block is a td_postback block that uses a keeper. The last one that came and
// has not gone decides how records are delivered.
type block struct {
	handler   *Handler
	config    <-chan struct{}             // tells configurations apart
	own       []*url.URL                  // the v2 hosts that it forwards to
	upstreams map[string]*upstream.Client // by queue
}

// openKeeper makes a keeper and opens its Log. If the disk is in trouble, that
// is tried again later: what v2 takes directly is still forwarded.
func openKeeper(place string, s *Spool, key []byte) (*keeper, error) {
	k := &keeper{place: place, fixed: s.fixed(key), nats: len(s.NATS) > 0, queues: map[string]*spoolQueue{}}
	open := s.open(key)
	k.ctx, k.stop = context.WithCancel(context.Background())
	log, err := open(k)
	switch {
	case err == nil:
		k.use(log)
	case errors.Is(err, disk.ErrLocked), errors.Is(err, disk.ErrKey), errors.Is(err, cluster.ErrMisfit):
		k.stop()
		return nil, fmt.Errorf("spool: %w", err)
	default:
		k.report(spool.Event{Kind: spool.Failed, Err: err})
		k.ended.Go(func() { k.openLater(open) })
	}
	return k, nil
}

// reopenPause is how often a Log that could not be opened is tried again.
const reopenPause = 5 * time.Second

func (k *keeper) openLater(open func(*keeper) (spool.Log, error)) {
	ticker := time.NewTicker(reopenPause)
	defer ticker.Stop()
	var told string
	for {
		select {
		case <-k.ctx.Done():
			return
		case <-ticker.C:
		}
		log, err := open(k)
		if err == nil {
			k.report(spool.Event{Kind: spool.Recovered})
			k.use(log)
			return
		}
		if err.Error() != told {
			told = err.Error()
			k.report(spool.Event{Kind: spool.Failed, Err: err})
		}
	}
}

// use takes a Log that has been opened.
func (k *keeper) use(log spool.Log) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.log.Store(&log)
	for _, q := range k.queues {
		k.start(q)
	}
	k.adopt()
}

// opened returns the Log, or nil.
func (k *keeper) opened() spool.Log {
	if log := k.log.Load(); log != nil {
		return *log
	}
	return nil
}

// queue finds a queue, and makes it if it is not there. k.mu is held.
func (k *keeper) queue(name string) *spoolQueue {
	q := k.queues[name]
	if q == nil {
		q = &spoolQueue{name: name, keeper: k}
		k.queues[name] = q
		if k.opened() != nil {
			k.start(q)
		}
	}
	return q
}

// maxDeliveries is how many records of a v2 host are on their way at a time, if
// max_conns is not less. It is for a region 200 ms away and 2,500 records a
// second; more would cost memory that a near one has no use for.
const maxDeliveries = 512

// start begins to deliver a queue. k.mu is held.
func (k *keeper) start(q *spoolQueue) {
	limits := spool.Limits{InFlight: maxDeliveries, Rate: spool.DefaultRate, MaxAge: spool.DefaultMaxAge}
	if len(k.blocks) > 0 {
		limits = k.blocks[len(k.blocks)-1].limits()
	}
	d := spool.NewDeliverer(k.opened().Queue(q.name), &q.Circuit, spool.Delivery{
		Send:    q.send,
		Limits:  limits,
		OnFate:  q.settled,
		OnError: func(err error) { k.reportUnreadable(q.name, err) },
	})
	q.deliverer.Store(d)
	k.ended.Go(func() { d.Run(k.ctx) })
}

// limits are those of the block's options.
func (b *block) limits() spool.Limits {
	s := b.handler.Spool
	return spool.Limits{InFlight: min(b.handler.MaxConns, maxDeliveries), Rate: s.DrainRate, MaxAge: time.Duration(s.MaxAge)}
}

// send sends a record to v2.
func (q *spoolQueue) send(data []byte) spool.Result {
	up := q.upstream.Load()
	if up == nil {
		return spool.Result{Err: errNoUpstream}
	}
	var t upstream.Trip
	err := up.Deliver(data, &t)
	countTrip(&t)
	return resultOf(&t, err)
}

var errNoUpstream = errors.New("no td_postback block can deliver to this host")

// attach makes a block the one that decides.
func (k *keeper) attach(h *Handler, config <-chan struct{}) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	b := &block{handler: h, config: config, upstreams: map[string]*upstream.Client{}}
	for _, other := range k.blocks {
		if other.config == config && !sameSpool(other.handler.Spool, h.Spool) {
			return fmt.Errorf("spool %s: another td_postback block has other options for it: give both the same, or each a dir of its own", k.place)
		}
	}
	k.blocks = append(k.blocks, b)
	for _, r := range h.routes() {
		r.queue = k.queue(r.url.String())
		b.own = append(b.own, r.url)
	}
	k.adopt()
	return nil
}

// sameSpool reports whether two blocks agree on all but when a record goes to
// the spool.
func sameSpool(a, b *Spool) bool {
	return a.MaxSize == b.MaxSize && a.MaxAge == b.MaxAge && a.DrainRate == b.DrainRate && a.KeyFile == b.KeyFile
}

// detach undoes attach: when a configuration goes, or did not come to be.
func (k *keeper) detach(h *Handler) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for i, b := range k.blocks {
		if b.handler != h {
			continue
		}
		k.blocks = slices.Delete(k.blocks, i, i+1)
		k.adopt()
		for _, up := range b.upstreams {
			up.Close()
		}
		return
	}
}

// adopt lets the blocks that are attached now deliver all queues, those that
// are left from before too. k.mu is held.
func (k *keeper) adopt() {
	if len(k.blocks) == 0 {
		return
	}
	last := k.blocks[len(k.blocks)-1]
	if log := k.opened(); log != nil {
		for _, name := range log.Queues() {
			k.queue(name)
		}
		if _, limit := log.Size(); limit != last.handler.Spool.MaxSize {
			if err := log.SetLimit(last.handler.Spool.MaxSize); err != nil {
				k.reportUnreadable("", fmt.Errorf("max_size: %w", err))
			}
		}
	}
	for _, q := range k.queues {
		if up := k.upstreamFor(q.name); up != nil {
			q.upstream.Store(up)
		}
		if d := q.deliverer.Load(); d != nil {
			d.SetLimits(last.limits())
		}
	}
}

// upstreamFor finds who delivers a queue: the last block that forwards to its
// host, or else the last block, with its options.
func (k *keeper) upstreamFor(name string) *upstream.Client {
	chosen := k.blocks[len(k.blocks)-1]
	for _, b := range slices.Backward(k.blocks) {
		if slices.ContainsFunc(b.own, func(u *url.URL) bool { return u.String() == name }) {
			chosen = b
			break
		}
	}
	if up := chosen.upstreams[name]; up != nil {
		return up
	}
	target, err := parseUpstream(name)
	if err != nil {
		return nil // no name of ours
	}
	up, err := chosen.handler.newDelivery(target)
	if err != nil {
		return nil
	}
	chosen.upstreams[name] = up
	return up
}

// keep makes a record durable.
func (q *spoolQueue) keep(r spool.Record, live bool) error {
	log := q.keeper.opened()
	if log == nil {
		return spool.ErrUnavailable
	}
	err := log.Append(q.name, r)
	if failed := errors.Is(err, spool.ErrUnavailable); failed != q.failed.Load() {
		q.failed.Store(failed)
	}
	if full := errors.Is(err, spool.ErrFull); full != q.keeper.full.Load() {
		q.keeper.full.Store(full)
	}
	if d := q.deliverer.Load(); live && err == nil && d != nil {
		d.Arrived()
	}
	return err
}

// available reports whether the Log takes records, as far as is known.
func (k *keeper) available() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, q := range k.queues {
		if q.failed.Load() {
			return false
		}
	}
	return true
}

// recovered notes that the Log takes records again: those of a queue, or all.
func (k *keeper) recovered(queue string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for name, q := range k.queues {
		if queue == "" || name == queue {
			q.failed.Store(false)
		}
	}
}

// Destruct ends a keeper that no configuration uses any more.
func (k *keeper) Destruct() error {
	k.stop()
	k.ended.Wait()
	if log := k.opened(); log != nil {
		return log.Close()
	}
	return nil
}

// report tells the operator what happened to a spool.
func (k *keeper) report(e spool.Event) {
	fields := []zap.Field{zap.String("spool", k.place)}
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
		k.recovered(e.Queue)
		caddy.Log().Named(handlerID).Info(e.String(), fields...)
		return
	}
	caddy.Log().Named(handlerID).Warn(e.String(), append(fields, zap.String("advice", spoolAdvice[e.Kind]))...)
}

// reportCluster tells the operator what a cluster has said.
func (k *keeper) reportCluster(e spool.Event) {
	if e.Kind == spool.Recovered {
		k.report(e)
		go k.adoptAgain()
		return
	}
	last, _ := k.said.LoadOrStore(e.String(), new(warning))
	if !last.(*warning).due() { //nolint:forcetypeassert // there is nothing else in it
		return
	}
	caddy.Log().Named(handlerID).Warn(e.String(), zap.String("spool", k.place), zap.Error(e.Err),
		zap.String("advice", "see to the cluster: docs/spool-nats.md; until then callers whose records v2 does not take may get 503"))
}

// reportUnreadable tells the operator that the Log did not answer.
func (k *keeper) reportUnreadable(queue string, err error) {
	if k.nats {
		k.reportCluster(spool.Event{Kind: spool.Unreadable, Text: "the spool's cluster does not answer", Queue: queue, Err: err})
		return
	}
	k.report(spool.Event{Kind: spool.Unreadable, Queue: queue, Err: err})
}

// adoptAgain looks for queues that could not be seen before.
func (k *keeper) adoptAgain() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.adopt()
}

// spoolAdvice is what an operator can do.
var spoolAdvice = map[spool.EventKind]string{
	spool.NearlyFull:  "see why v2 does not take records, or give the spool a larger max_size; when it is full, callers get 503",
	spool.Failed:      "free space on the disk, or see to its errors; until then callers whose records v2 does not take get 503",
	spool.Undeletable: "see to the rights and the disk; delete the file when the gateway is stopped, or its records may be delivered again",
	spool.Unreadable:  "see to the disk or the cluster; the records are delivered when they can be read",
	spool.Damaged:     "check the disk; td-spool list --dead shows what is left of the record",
	spool.SetAside:    "check the disk; keep the file if you miss records, and delete it otherwise",
}

// Interface guard
var _ caddy.Destructor = (*keeper)(nil)
