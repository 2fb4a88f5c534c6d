// Package cluster keeps a spool in an external cluster of NATS JetStream, so
// that several gateways share one, and the loss of a machine loses no record.
//
// A stream <Name>_records holds the records of all queues, each under the
// subject <Name>.records.<queue> and a lane; what is acked leaves it. A stream
// <Name>_letters holds the dead letters. Gateways of the same Name deliver from
// the same queues: each record goes to one of them.
//
// What is durable is up to the servers: they need
//
//	max_payload: 4MB
//	jetstream { sync_interval: always }
//
// and there must be three of them, on machines that do not fail together. The
// first is checked, since a record is larger than the default of 1 MB. The
// second cannot be checked from outside: without it, a power cut loses minutes
// of what was acknowledged. docs/spool-nats.md says more.
//
// Delivery is at least once. A record comes twice when its ack was on its way
// while its gateway died, and when a gateway loses the cluster for longer than
// half a minute.
package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/td-postback/gateway/spool"
)

// Config says where the cluster is, and how much it may keep.
type Config struct {
	// URLs of the servers, as nats://host:4222 or tls://host:4222; any that
	// answers tells of the others. User and password, or a token, may stand
	// before the host.
	URLs []string

	// Name begins the names of the streams and subjects: letters, digits, "_"
	// and "-". Default: td_postback.
	Name string

	// MaxSize is how many bytes the records may take. Default:
	// spool.DefaultMaxSize.
	//
	// DeadSize is how many the dead letters may take that v2 has refused. What v2
	// has not refused is kept beyond it, until dead letters have the larger one of
	// the two: each server needs room for MaxSize and as much again. Default: a
	// quarter of MaxSize.
	MaxSize, DeadSize int64

	// MaxAge is when the gateway buries a record. The servers know nothing of
	// it: they delete what three times this age, and at least 30 days old, which
	// happens only if no gateway has run for so long. Default:
	// spool.DefaultMaxAge.
	MaxAge time.Duration

	// Replicas is on how many servers a record is before it counts as kept.
	// Default: 3. It is used when the streams are made, and not changed later.
	Replicas int

	// Key encrypts what the servers store with AES-256. 32 bytes; default: not
	// encrypted. With a key, records that were kept without one can be seen, and
	// are not delivered: anybody who can write to the servers could make them.
	Key []byte

	// Timeout is how long Append waits for the cluster. Default: 10 s, which is
	// how long it may take until another server leads when the leading one dies.
	// Without a connection to any of them, it waits for 2 s at most. When nobody
	// was answered for as long, Append fails at once until the cluster answers.
	Timeout time.Duration

	// Account names the account that a record is of, so that those of one do not
	// hold up those of others; nil if none is known.
	Account func(data []byte) string

	// OnEvent is told what an operator should know; nil for nobody. It never sees
	// credentials or records. It is called concurrently, and must not wait.
	OnEvent func(spool.Event)

	ackWait time.Duration // how long a record stays with a gateway that is not heard of
}

const (
	resend      = time.Second           // how long a publish waits for its acknowledgement before it goes out again
	pause       = 50 * time.Millisecond // between attempts that failed at once
	patience    = 2 * time.Second       // for a server, where asking again or giving up does no harm
	duplicates  = time.Minute           // how long the servers know a message that was published again
	buried      = time.Hour             // the same, for dead letters
	stuck       = 5 * time.Second       // how long a write may take: meanwhile, nobody else gets an answer from the connection
	keepRecords = 30 * 24 * time.Hour

	// What a message needs: a body and a head of up to 1 MiB each, and room for
	// the headers of NATS and the encryption.
	maxMessage = 2<<20 + 3584
)

// ErrMisfit: the cluster is there, but cannot serve as it is configured.
var ErrMisfit = errors.New("the NATS servers do not fit")

// Log is a spool in a cluster of NATS JetStream. Open makes one.
type Log struct {
	config           Config
	records, letters jetstream.Stream // once ready

	control, publisher *link // the second is for publishing
	sealer             *sealer
	pulse              pulse
	acks               acks

	ctx    context.Context //nolint:containedctx // ends with the Log, whose methods take none
	cancel context.CancelFunc
	ready  chan struct{} // closed once the streams exist
	tasks  sync.WaitGroup

	mu        sync.Mutex
	trouble   error                         // why it is not ready
	consumers map[string]jetstream.Consumer // by lane
	takers    map[string]*taker             // by queue
	held      map[identity]holding          // given out and not answered for
	putOffs
	deadSize int64
	wanted   int64         // how many bytes the records shall be allowed; 0 if that is so
	seen     census        // what the servers hold
	counted  time.Time     // when that was asked for
	counting chan struct{} // closed when it has been; nil if it is not
}

var _ spool.Log = (*Log)(nil)

// Open connects to the cluster and makes the streams, or adapts their size. It
// fails if the configuration is wrong, or if the servers do not fit it. If they
// do not answer within Timeout, or before ctx ends, it says so to OnEvent and
// returns a Log that goes on trying: a gateway must start without its spool.
func Open(ctx context.Context, config Config) (*Log, error) {
	if err := config.complete(); err != nil {
		return nil, err
	}
	l := &Log{
		config:    config,
		ready:     make(chan struct{}),
		consumers: map[string]jetstream.Consumer{},
		takers:    map[string]*taker{},
		held:      map[identity]holding{},
		putOffs:   newPutOffs(),
		seen:      census{limit: config.MaxSize},
		deadSize:  config.DeadSize,
		trouble:   errors.New("NATS has not answered yet"),
	}
	var err error
	if l.sealer, err = newSealer(config.Key); err != nil {
		return nil, err
	}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	if err := l.connect(); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	opening, opened := context.WithTimeout(ctx, config.Timeout)
	defer opened()
	misfit := make(chan error)
	l.tasks.Go(func() { l.prepare(opening.Done(), misfit) }) //nolint:contextcheck // it outlives Open
	l.tasks.Go(l.keep)
	l.tasks.Go(l.watch)
	select {
	case <-l.ready:
		return l, nil
	case err := <-misfit:
		return nil, errors.Join(err, l.Close())
	case <-opening.Done():
	}
	config.OnEvent(spool.Event{Kind: spool.Failed, Text: "NATS cannot be used yet", Err: l.unready()})
	return l, nil
}

var plainName = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)

// complete checks the configuration and fills in what is missing. Its errors do
// not repeat a URL: there may be a password in it.
func (c *Config) complete() error {
	c.Name = cmp.Or(c.Name, "td_postback")
	c.MaxSize = cmp.Or(c.MaxSize, spool.DefaultMaxSize)
	c.DeadSize = cmp.Or(c.DeadSize, c.MaxSize/spool.DeadShare)
	c.MaxAge = cmp.Or(c.MaxAge, spool.DefaultMaxAge)
	c.Replicas = cmp.Or(c.Replicas, 3)
	c.Timeout = cmp.Or(c.Timeout, 10*time.Second)
	c.ackWait = cmp.Or(c.ackWait, 30*time.Second)
	if c.OnEvent == nil {
		c.OnEvent = func(spool.Event) {}
	}
	switch {
	case len(c.URLs) == 0:
		return errors.New("no URL of a NATS server")
	case !plainName.MatchString(c.Name):
		return fmt.Errorf("the name %q: only letters, digits, _ and - are allowed", c.Name)
	case c.MaxSize < 0 || c.DeadSize < 0 || c.MaxAge < 0 || c.Timeout < 0 || c.Replicas < 0:
		return errors.New("sizes, times and replicas cannot be negative")
	}
	for i, raw := range c.URLs {
		if !ValidURL(raw) {
			return fmt.Errorf("NATS server %d: not a URL like nats://host:4222", i+1)
		}
	}
	return nil
}

// ValidURL reports whether a URL may be that of a server: nats:// or tls://, maybe
// a user, a host and maybe a port. A comma would begin another server's URL.
func ValidURL(raw string) bool {
	u, err := url.Parse(raw)
	return err == nil && (u.Scheme == "nats" || u.Scheme == "tls") && u.Host != "" && !strings.Contains(raw, ",")
}

// prepare makes the streams, as often as it takes, until the Log is closed.
// Until opened, misfit takes an error that time does not mend.
func (l *Log) prepare(opened <-chan struct{}, misfit chan<- error) {
	for {
		err := l.prepareOnce()
		if err == nil {
			close(l.ready)
			select {
			case <-opened:
				l.config.OnEvent(spool.Event{Kind: spool.Recovered, Text: "NATS can be used"})
			default:
			}
			return
		}
		l.mu.Lock()
		l.trouble = err
		l.mu.Unlock()
		if errors.Is(err, ErrMisfit) {
			select {
			case misfit <- err:
			case <-opened:
			}
		}
		select {
		case <-l.ctx.Done():
			return
		case <-time.After(10 * pause):
		}
	}
}

// prepareOnce checks the servers and makes the streams, or adapts them.
func (l *Log) prepareOnce() error {
	if err := l.control.usable(); err != nil {
		return err
	}
	// Servers that have just started do not answer at all: ask again soon.
	ctx, cancel := context.WithTimeout(l.ctx, patience)
	defer cancel()
	var err error
	if l.records, err = l.ensure(ctx, jetstream.StreamConfig{
		Name:        l.config.Name + "_records",
		Description: "Records to be delivered to Postback v2",
		Subjects:    []string{l.recordSubject("*")},
		Retention:   jetstream.WorkQueuePolicy,
		MaxAge:      max(3*l.config.MaxAge, keepRecords),
		Duplicates:  duplicates,
		MaxBytes:    l.config.MaxSize,
	}); err != nil {
		return err
	}
	l.letters, err = l.ensure(ctx, jetstream.StreamConfig{
		Name:        l.config.Name + "_letters",
		Description: "Records that Postback v2 did not take",
		Subjects:    []string{l.letterSubject("*")},
		Retention:   jetstream.LimitsPolicy,
		Duplicates:  buried,
		MaxBytes:    max(l.config.MaxSize, l.config.DeadSize), // for those that are always kept
	})
	return err
}

// ensure makes a stream. One that exists keeps what its operator chose, but for
// what this configuration decides.
func (l *Log) ensure(ctx context.Context, want jetstream.StreamConfig) (jetstream.Stream, error) {
	want.Storage = jetstream.FileStorage
	want.Discard = jetstream.DiscardNew
	stream, err := l.control.js.Stream(ctx, want.Name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		want.Replicas = l.config.Replicas
		return l.control.js.CreateStream(ctx, want)
	}
	if err != nil {
		return nil, err
	}
	have := stream.CachedInfo().Config
	if have.Retention != want.Retention || have.Storage != want.Storage || have.Discard != want.Discard || !slices.Equal(have.Subjects, want.Subjects) {
		return nil, fmt.Errorf("%w: there is a stream %s with other subjects, or not with %s retention, file storage and discard policy new", ErrMisfit, want.Name, strings.ToLower(want.Retention.String()))
	}
	if have.MaxBytes == want.MaxBytes && have.MaxAge == want.MaxAge && have.Duplicates == want.Duplicates {
		return stream, nil
	}
	have.MaxBytes, have.MaxAge, have.Duplicates = want.MaxBytes, want.MaxAge, want.Duplicates
	return l.control.js.UpdateStream(ctx, have)
}

// unready says why the streams are not known to exist.
func (l *Log) unready() error {
	select {
	case <-l.ready:
		return nil
	default:
	}
	if l.ctx.Err() != nil {
		return spool.ErrClosed
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return unavailable(l.trouble)
}

// unavailable is ErrUnavailable and why.
func unavailable(err error) error {
	return errors.Join(spool.ErrUnavailable, err)
}

// Close gives what was given out back to the cluster, so that another gateway
// takes it at once.
func (l *Log) Close() error {
	l.cancel()
	l.tasks.Wait()
	l.mu.Lock()
	held := l.held
	l.held = nil
	l.mu.Unlock()
	if l.control != nil && l.control.up.Load() {
		for _, h := range held {
			_ = h.msg.Nak()
		}
		_ = l.control.conn.FlushTimeout(patience)
	}
	for _, k := range []*link{l.publisher, l.control} {
		if k != nil {
			k.conn.Close()
		}
	}
	return nil
}

// link is a connection to the cluster.
type link struct {
	conn *nats.Conn
	js   jetstream.JetStream

	// Whether it is connected, and the server's max_payload. conn knows both, but
	// lets nobody ask while it dials, and few while it writes.
	up    atomic.Bool
	limit atomic.Int64

	mu  sync.Mutex
	err error // why it is not
}

// connect starts the connections. They need not succeed now. More than one to
// publish on was measured and is no faster.
func (l *Log) connect() (err error) {
	// What was acked while the connection is lost is sent later. A record is
	// not: its caller was told that it is not kept.
	if l.control, err = l.dial(nats.DefaultReconnectBufSize); err != nil {
		return err
	}
	if l.publisher, err = l.dial(-1); err != nil {
		return err
	}
	return l.acks.receive(l.control.conn)
}

// dial starts a connection that holds up to buffer bytes while it is lost.
func (l *Log) dial(buffer int) (*link, error) {
	k := &link{err: errors.New("not connected to NATS")}
	options := []nats.Option{
		nats.Name("td-postback"),
		nats.Timeout(patience),
		nats.PingInterval(2 * time.Second), nats.MaxPingsOutstanding(2),
		nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1), nats.IgnoreAuthErrorAbort(),
		nats.ReconnectWait(5 * pause), nats.ReconnectJitter(5*pause, 5*pause),
		nats.ReconnectBufSize(buffer),
		nats.FlusherTimeout(stuck),
		nats.ConnectHandler(k.connected),
		nats.ReconnectHandler(func(conn *nats.Conn) {
			k.connected(conn)
			l.config.OnEvent(spool.Event{Kind: spool.Recovered, Text: "connected to NATS again"})
		}),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			k.down(err)
			if l.ctx.Err() == nil {
				l.config.OnEvent(spool.Event{Kind: spool.Failed, Text: "lost a connection to NATS", Err: err})
			}
		}),
		nats.ReconnectErrHandler(func(_ *nats.Conn, err error) { k.down(err) }),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			l.config.OnEvent(spool.Event{Kind: spool.Disturbed, Text: "NATS says", Err: err})
		}),
	}
	var err error
	if k.conn, err = nats.Connect(strings.Join(l.config.URLs, ","), options...); err != nil {
		return nil, err
	}
	k.js, err = jetstream.New(k.conn,
		jetstream.WithDefaultTimeout(l.config.Timeout),
		jetstream.WithPublishAsyncTimeout(resend),
		jetstream.WithPublishAsyncMaxPending(1<<20)) // how many wait is limited by who calls Append
	return k, err
}

// connected notes that the connection is there.
func (k *link) connected(conn *nats.Conn) {
	k.limit.Store(conn.MaxPayload())
	k.up.Store(true)
}

// down notes that the connection is lost, and why.
func (k *link) down(err error) {
	k.up.Store(false)
	if err == nil {
		return
	}
	k.mu.Lock()
	k.err = err
	k.mu.Unlock()
}

// usable says why the connection cannot be used.
func (k *link) usable() error {
	if !k.up.Load() {
		k.mu.Lock()
		defer k.mu.Unlock()
		if errors.Is(k.err, nats.ErrAuthorization) || errors.Is(k.err, nats.ErrAuthExpired) {
			return errors.Join(ErrMisfit, k.err)
		}
		return k.err
	}
	if limit := k.limit.Load(); limit < maxMessage {
		return fmt.Errorf("%w: their max_payload is %d bytes, and a record takes up to %d: set max_payload: 4MB in their configuration", ErrMisfit, limit, maxMessage)
	}
	return nil
}
