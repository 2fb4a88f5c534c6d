package spool

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Setup is what a Keeper is made from.
type Setup struct {
	// Place tells spools apart, for logs and metrics too: it has no credentials.
	Place string

	// Open opens the Log. report takes the Log's events.
	Open func(ctx context.Context, report func(Event)) (Log, error)

	// Final are the errors of Open that time does not mend.
	Final []error

	// Report is told what an operator should know. It is called concurrently,
	// must not wait, and must not use the Keeper.
	Report func(Event)

	// Account names the account that a kept record is of; nil if none is known.
	Account func(data []byte) string

	// Events and Rest are those of Delivery: for kept requests with several events.
	// Without both, there are none.
	Events func(data []byte) (group string, events [][]byte, ok bool)
	Rest   func(data []byte, left []int) []byte

	// OnOpen is told when the Log is open; nil for nobody.
	OnOpen func(Log)

	// OnFate is told what became of a record; nil for nobody.
	OnFate func(queue string, fate Fate, r Result)
}

// Sender sends the records of a queue.
type Sender interface {
	// Send sends a record to v2. It is called from many goroutines.
	Send(data []byte) Result

	// Part makes of a record what it is in a batch. It says no to one that must go
	// alone.
	Part(e Entry) (Part, bool)

	// SendBatch sends records of one group to v2 in one request. It is called from
	// many goroutines.
	SendBatch(group string, records [][]byte) BatchResult

	// Close gives up what the Sender holds. Records may still be on their way.
	Close()
}

// Block is one configuration's use of a spool. It is not changed while it is
// attached.
type Block struct {
	// Targets are the queues that records are put into: the URLs of v2 hosts, or
	// other names that Sender knows.
	Targets []string

	// Alone are those of the Targets whose records never share a request.
	Alone []string

	// MaxSize is how many bytes the records may take, and DeadSize the dead
	// letters.
	MaxSize, DeadSize int64

	// Limits are those of each queue.
	Limits Limits

	// Sender makes who delivers a queue. It fails if the queue's name is none
	// that it knows.
	Sender func(target string) (Sender, error)

	accepted bool
	senders  map[string]Sender // by queue
}

// Keeper owns a spool as long as a configuration uses it: it has the Log, and a
// Deliverer for each queue. While one configuration replaces another, both use
// it. The last Block that was accepted decides how records are delivered, those
// of queues that are left from before too.
type Keeper struct {
	setup Setup
	stop  context.CancelFunc
	ctx   context.Context //nolint:containedctx // the Keeper's own life, which no call ends
	ended sync.WaitGroup

	opening sync.Mutex          // held by Open
	begun   atomic.Bool         // Open has been called and has not failed
	log     atomic.Pointer[Log] // nil while it is not open
	full    atomic.Bool         // there was no room for the last record

	mu       sync.Mutex
	outboxes map[string]*Outbox // by queue
	blocks   []*Block           // in the order in which they came
}

// Outbox takes the records for one v2 host. Its Gate is that of all who send to
// the host.
type Outbox struct {
	Gate
	name      string
	keeper    *Keeper
	used      bool   // it is delivered; keeper.mu
	stranded  *Block // for which it was told that nobody delivers; keeper.mu
	sender    atomic.Pointer[Sender]
	deliverer atomic.Pointer[Deliverer] // nil until a Block is accepted that can deliver, and the Log is open
	stop      context.CancelFunc        // ends the deliverer; keeper.mu
}

// NewKeeper makes a Keeper. Nothing is opened, and nothing is on disk, before
// Open or the first record.
func NewKeeper(setup Setup) *Keeper {
	k := &Keeper{setup: setup, outboxes: map[string]*Outbox{}}
	k.ctx, k.stop = context.WithCancel(context.Background())
	return k
}

// Place tells the spool from others.
func (k *Keeper) Place() string { return k.setup.Place }

// Open opens the Log, unless that is done already. It returns only errors that
// time does not mend; after another it tries again every few seconds. It may be
// called again after an error.
func (k *Keeper) Open() error {
	k.opening.Lock()
	defer k.opening.Unlock()
	if k.ctx.Err() != nil {
		return ErrClosed
	}
	if k.begun.Swap(true) {
		return nil
	}
	log, err := k.setup.Open(k.ctx, k.report)
	switch {
	case err == nil:
		k.use(log)
	case slices.ContainsFunc(k.setup.Final, func(final error) bool { return errors.Is(err, final) }):
		k.begun.Store(false)
		return err
	default:
		k.report(Event{Kind: Failed, Err: err})
		k.ended.Go(func() { k.openLater(err) })
	}
	return nil
}

// Begun reports whether the Log is open, or is to be.
func (k *Keeper) Begun() bool { return k.begun.Load() }

// reopenPause is how often a Log that could not be opened is tried again.
const reopenPause = 5 * time.Second

// openLater tries until the Log is open. Of equal errors it reports one.
func (k *Keeper) openLater(told error) {
	ticker := time.NewTicker(reopenPause)
	defer ticker.Stop()
	for {
		select {
		case <-k.ctx.Done():
			return
		case <-ticker.C:
		}
		log, err := k.setup.Open(k.ctx, k.report)
		if err == nil {
			k.use(log)
			k.report(Event{Kind: Recovered})
			return
		}
		if err.Error() != told.Error() {
			told = err
			k.report(Event{Kind: Failed, Err: err})
		}
	}
}

func (k *Keeper) use(log Log) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.log.Store(&log)
	k.adopt()
	if k.setup.OnOpen != nil {
		k.ended.Go(func() { k.setup.OnOpen(log) })
	}
}

// Log returns the Log, or nil while it is not open.
func (k *Keeper) Log() Log {
	if log := k.log.Load(); log != nil {
		return *log
	}
	return nil
}

// Attach makes the outboxes of a Block's targets. How records are delivered does
// not change before Accept.
func (k *Keeper) Attach(b *Block) map[string]*Outbox {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.blocks = append(k.blocks, b)
	outboxes := make(map[string]*Outbox, len(b.Targets))
	for _, target := range b.Targets {
		outboxes[target] = k.outbox(target)
	}
	return outboxes
}

// Accept lets a Block decide how records are delivered: its configuration is the
// one that runs.
func (k *Keeper) Accept(b *Block) {
	k.mu.Lock()
	defer k.mu.Unlock()
	b.accepted = true
	k.adopt()
}

// Detach undoes Attach and Accept, when a configuration has ended or has not
// been accepted.
func (k *Keeper) Detach(b *Block) {
	k.mu.Lock()
	defer k.mu.Unlock()
	i := slices.Index(k.blocks, b)
	if i < 0 {
		return
	}
	k.blocks = slices.Delete(k.blocks, i, i+1)
	k.adopt()
	for _, sender := range b.senders {
		sender.Close()
	}
}

// outbox finds an outbox, and makes it if it is not there. k.mu is held.
func (k *Keeper) outbox(name string) *Outbox {
	o := k.outboxes[name]
	if o == nil {
		o = &Outbox{name: name, keeper: k}
		k.outboxes[name] = o
	}
	return o
}

// adopt lets the Blocks that are accepted deliver all queues. k.mu is held.
func (k *Keeper) adopt() {
	last := k.decider("")
	log := k.Log()
	if last == nil || log == nil || k.ctx.Err() != nil {
		return
	}
	queues := log.Queues()
	for _, b := range k.blocks {
		if b.accepted {
			queues = append(queues, b.Targets...)
		}
	}
	for _, name := range queues {
		k.outbox(name).used = true
	}
	_, limit := log.Size()
	_, dead := log.DeadSize()
	if limit != last.MaxSize || dead != last.DeadSize {
		if err := log.SetLimits(last.MaxSize, last.DeadSize); err != nil {
			k.report(Event{Kind: Unreadable, Err: fmt.Errorf("max_size and dead_size: %w", err)})
		}
	}
	for _, o := range k.outboxes {
		if !o.used {
			continue // its configuration has not been accepted
		}
		decider := k.decider(o.name)
		sender := decider.senderTo(o.name)
		if sender == nil {
			k.strand(o, log, decider)
			continue
		}
		o.sender.Store(&sender)
		o.stranded = nil
		limits := last.Limits
		if slices.Contains(decider.Alone, o.name) {
			limits.Batching = Batching{}
		}
		if d := o.deliverer.Load(); d != nil {
			d.SetLimits(limits)
		} else {
			k.deliver(o, log, limits)
		}
	}
}

// strand leaves a queue alone to which no configuration can deliver, and tells of it once
// for each, if it has records. k.mu is held.
func (k *Keeper) strand(o *Outbox, log Log, decider *Block) {
	o.sender.Store(nil)
	if o.deliverer.Swap(nil) != nil {
		o.stop()
	}
	if o.stranded == decider {
		return
	}
	o.stranded = decider
	k.ended.Go(func() {
		for range strandedLooks {
			depth, _ := log.Depth(o.name) // what is known
			if n := depth.Records + depth.Dead; n > 0 {
				k.report(Event{Kind: Stranded, Queue: o.name, Records: n, Err: errNoSender})
				return
			}
			sleep(k.ctx, reopenPause)
		}
	})
}

// strandedLooks is how often it is looked what a stranded queue has: what a cluster says
// may be some seconds old.
const strandedLooks = 2

// decider is the last Block that is accepted, and that has a queue among its
// targets if one has. k.mu is held.
func (k *Keeper) decider(queue string) (last *Block) {
	for _, b := range slices.Backward(k.blocks) {
		if b.accepted && slices.Contains(b.Targets, queue) {
			return b
		}
		if b.accepted && last == nil {
			last = b
		}
	}
	return last
}

// senderTo returns the Block's Sender to a queue, or nil. k.mu is held.
func (b *Block) senderTo(queue string) Sender {
	if sender := b.senders[queue]; sender != nil {
		return sender
	}
	sender, err := b.Sender(queue)
	if err != nil {
		return nil
	}
	if b.senders == nil {
		b.senders = map[string]Sender{}
	}
	b.senders[queue] = sender
	return sender
}

// deliver begins to deliver a queue. k.mu is held.
func (k *Keeper) deliver(o *Outbox, log Log, limits Limits) {
	var ctx context.Context
	ctx, o.stop = context.WithCancel(k.ctx)
	d := NewDeliverer(log.Queue(o.name), &o.Gate, Delivery{
		Send:      o.send,
		Part:      o.part,
		SendBatch: o.sendBatch,
		Events:    k.setup.Events,
		Rest:      k.setup.Rest,
		Account:   k.setup.Account,
		Limits:    limits,
		OnFate: func(fate Fate, r Result) {
			if k.setup.OnFate != nil {
				k.setup.OnFate(o.name, fate, r)
			}
		},
		OnError: func(err error) { k.report(Event{Kind: Unreadable, Queue: o.name, Err: err}) },
	})
	o.deliverer.Store(d)
	k.ended.Go(func() { d.Run(ctx) })
}

var errNoSender = errors.New("no configuration can deliver to this host")

func (o *Outbox) send(data []byte) Result {
	sender := o.sender.Load()
	if sender == nil {
		return Result{Err: errNoSender}
	}
	return (*sender).Send(data)
}

func (o *Outbox) part(e Entry) (Part, bool) {
	sender := o.sender.Load()
	if sender == nil {
		return Part{}, false
	}
	return (*sender).Part(e)
}

func (o *Outbox) sendBatch(group string, records [][]byte) BatchResult {
	sender := o.sender.Load()
	if sender == nil {
		return BatchResult{Result: Result{Err: errNoSender}}
	}
	return (*sender).SendBatch(group, records)
}

// Put makes a record durable. ErrFull and ErrUnavailable say that it is not. If
// the Log has not been opened yet, Put opens it. live says that the record is to
// be delivered at once, beyond the rate of the backlog.
func (o *Outbox) Put(r Record, live bool) error {
	log, err := o.keeper.opened()
	if err != nil {
		return err
	}
	err = log.Append(o.name, r)
	note(&o.keeper.full, errors.Is(err, ErrFull))
	if live && err == nil {
		o.arrived(1, len(r.Data))
	}
	return err
}

// PutAll is Put for records that belong together: see Log.AppendAll. live is how many
// events in them are to be delivered at once, beyond the rate of the backlog.
func (o *Outbox) PutAll(records []Record, live int) error {
	log, err := o.keeper.opened()
	if err != nil {
		return err
	}
	err = log.AppendAll(o.name, records)
	note(&o.keeper.full, errors.Is(err, ErrFull))
	if live > 0 && err == nil {
		size := 0
		for _, r := range records {
			size += len(r.Data)
		}
		o.arrived(live, size)
	}
	return err
}

// opened returns the Log, and opens it if that has not been done.
func (k *Keeper) opened() (Log, error) {
	if log := k.Log(); log != nil {
		return log, nil
	}
	if err := k.Open(); err != nil { // it waits for another Open
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if log := k.Log(); log != nil {
		return log, nil
	}
	return nil, ErrUnavailable
}

// arrived tells who delivers of events that were appended just now.
func (o *Outbox) arrived(events, size int) {
	if d := o.deliverer.Load(); d != nil {
		d.Arrived(events, size)
	}
}

// Hesitates reports whether the Log may take long to keep a record, or may not
// keep it. Who can do without it then should.
func (o *Outbox) Hesitates() bool {
	log, may := o.keeper.Log().(interface{ Hesitates() bool })
	return may && log.Hesitates()
}

// note writes only what is new: nearly every record would write the same, and
// the processors would pass the memory around.
func note(flag *atomic.Bool, value bool) {
	if flag.Load() != value {
		flag.Store(value)
	}
}

// Close ends the delivery and closes the Log.
func (k *Keeper) Close() error {
	k.stop()
	k.opening.Lock() // an Open that is under way ends
	defer k.opening.Unlock()
	k.mu.Lock() // the same for adopt
	log := k.Log()
	k.mu.Unlock()
	k.ended.Wait()
	if log == nil {
		return nil
	}
	return log.Close()
}

// report tells the operator what has happened. What could not be seen in time of
// trouble is looked at again.
func (k *Keeper) report(e Event) {
	k.setup.Report(e)
	if e.Kind == Recovered {
		go k.adoptAgain() // not here: who reports may hold a lock
	}
}

// adoptAgain looks for queues that could not be seen before.
func (k *Keeper) adoptAgain() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.adopt()
}
