// Package cluster keeps a plan that several gateways share in a stream of NATS
// JetStream.
//
// A stream <Name>_plan has one message, the plan with its history, on three servers.
// Who changes it says which message it was changed from, so of two changes at the same
// time one is refused. It is read from the server that leads the stream. The subject
// <Name>.gateways, which no stream keeps, has what the gateways say to each other.
package cluster

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/td-postback/gateway/migration"
)

// Config says where the cluster is.
type Config struct {
	// URLs of the servers, as of a spool: nats://host:4222 or tls://host:4222, maybe
	// with a user and a password, or a token, before the host.
	URLs []string

	// Name begins the names of the stream and the subjects, as of a spool: gateways of
	// the same name share a plan. Default: td_postback.
	Name string

	// Replicas is on how many servers the plan is. Default: 3. It is used when the
	// stream is made, and not changed later.
	Replicas int
}

const (
	patience = 2 * time.Second       // for a connection
	resend   = time.Second           // how long one question waits for its answer
	pause    = 50 * time.Millisecond // until somebody looks again whether there is a connection

	// maxText is the most bytes of a plan: as many as package migration reads.
	maxText = 64 << 20

	// room is for two plans of the largest size, and some more.
	room = 32 << 20
)

// Plan is the place of a plan in a cluster of NATS JetStream. Open makes one.
type Plan struct {
	config Config
	conn   *nats.Conn
	js     jetstream.JetStream
	up     atomic.Bool // conn knows it too, but lets nobody ask while it dials

	mu     sync.Mutex
	err    error            // why it is not connected
	stream jetstream.Stream // nil until it is known to exist
}

var _ migration.Shared = (*Plan)(nil)

// Open starts a connection to the cluster, which need not succeed now. Its errors do not
// repeat a URL: there may be a password in it.
func Open(config Config) (*Plan, error) {
	config.Name = cmp.Or(config.Name, "td_postback")
	config.Replicas = cmp.Or(config.Replicas, 3)
	p := &Plan{config: config, err: errors.New("NATS has not answered yet")}
	var err error
	p.conn, err = nats.Connect(strings.Join(config.URLs, ","),
		nats.Name("td-postback plan"),
		nats.Timeout(patience),
		nats.PingInterval(patience), nats.MaxPingsOutstanding(2),
		nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1), nats.IgnoreAuthErrorAbort(),
		nats.ReconnectWait(5*pause), nats.ReconnectJitter(5*pause, 5*pause),
		nats.ReconnectBufSize(-1), // a change that is not sent now is not made later
		nats.FlusherTimeout(patience),
		nats.ConnectHandler(func(*nats.Conn) { p.up.Store(true) }),
		nats.ReconnectHandler(func(*nats.Conn) { p.up.Store(true) }),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) { p.down(err) }),
		nats.ReconnectErrHandler(func(_ *nats.Conn, err error) { p.down(err) }),
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}), // who is not heard notices it
	)
	if err != nil {
		return nil, err
	}
	p.js, err = jetstream.New(p.conn)
	return p, err
}

// down notes that the connection is lost, and why.
func (p *Plan) down(err error) {
	p.up.Store(false)
	if err == nil {
		return
	}
	p.mu.Lock()
	p.err = err
	p.mu.Unlock()
}

// connected waits a little for a connection.
func (p *Plan) connected(ctx context.Context) error {
	for begin := time.Now(); !p.up.Load(); {
		if time.Since(begin) > patience || ctx.Err() != nil || p.conn.IsClosed() {
			p.mu.Lock()
			defer p.mu.Unlock()
			return fmt.Errorf("%w: %w", migration.ErrAway, p.err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
	return nil
}

func (p *Plan) subject() string  { return p.config.Name + ".plan" }
func (p *Plan) gateways() string { return p.config.Name + ".gateways" }

// Read reads the plan from the server that leads the stream, which it makes if there is
// none.
func (p *Plan) Read(ctx context.Context) (text []byte, number uint64, err error) {
	if err := p.connected(ctx); err != nil {
		return nil, 0, err
	}
	var msg *jetstream.RawStreamMsg
	err = p.ask(ctx, func(ctx context.Context) error {
		stream, err := p.ensure(ctx)
		if err == nil {
			msg, err = stream.GetLastMsgForSubject(ctx, p.subject())
		}
		return err
	})
	switch {
	case errors.Is(err, jetstream.ErrMsgNotFound):
		return nil, 0, nil
	case err != nil:
		p.mu.Lock()
		p.stream = nil // it may have been deleted
		p.mu.Unlock()
		return nil, 0, err
	}
	text, err = unpack(msg.Data)
	return text, msg.Sequence, err
}

// ask gives a question its time, and says of an answer that does not come in words that
// there is none.
func (p *Plan) ask(ctx context.Context, question func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, resend)
	defer cancel()
	err := question(ctx)
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, nats.ErrTimeout) {
		return errors.New("the servers do not answer: fewer than two of three may run, or another one is about to lead")
	}
	return err
}

// ensure makes the stream. Of one that exists it mends what a plan needs.
func (p *Plan) ensure(ctx context.Context) (stream jetstream.Stream, err error) {
	p.mu.Lock()
	stream = p.stream
	p.mu.Unlock()
	if stream != nil {
		return stream, nil
	}
	want := jetstream.StreamConfig{
		Name:              p.config.Name + "_plan",
		Description:       "The plan of the gateways to Postback v2",
		Subjects:          []string{p.subject()},
		Storage:           jetstream.FileStorage,
		Replicas:          p.config.Replicas,
		MaxMsgsPerSubject: 1,
		MaxBytes:          room,
	}
	stream, err = p.js.Stream(ctx, want.Name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		stream, err = p.js.CreateStream(ctx, want)
	}
	if err != nil {
		return nil, err
	}
	have := stream.CachedInfo().Config
	if have.AllowDirect || have.MaxMsgsPerSubject != 1 || have.MaxAge != 0 {
		// A server that does not lead must not answer, and the plan must not go away.
		have.AllowDirect, have.MaxMsgsPerSubject, have.MaxAge = false, 1, 0
		if stream, err = p.js.UpdateStream(ctx, have); err != nil {
			return nil, err
		}
	}
	p.mu.Lock()
	p.stream = stream
	p.mu.Unlock()
	return stream, nil
}

// Write writes a plan, if the newest has still the number.
func (p *Plan) Write(ctx context.Context, text []byte, number uint64) error {
	if err := p.connected(ctx); err != nil {
		return err
	}
	data, err := pack(text)
	if err != nil {
		return err
	}
	if limit := p.conn.MaxPayload(); int64(len(data)) > limit {
		return fmt.Errorf("the plan takes %d bytes, and the servers' max_payload is %d: set max_payload: 4MB in their configuration, or take rules away", len(data), limit)
	}
	err = p.ask(ctx, func(ctx context.Context) error {
		_, err := p.js.Publish(ctx, p.subject(), data, jetstream.WithExpectLastSequencePerSubject(number),
			jetstream.WithExpectStream(p.config.Name+"_plan"), jetstream.WithRetryAttempts(0))
		return err
	})
	if isOutdated(err) {
		return migration.ErrOutdated
	}
	return err
}

// isOutdated reports whether the servers have refused a plan as there is a newer one.
// They have two codes for it.
func isOutdated(err error) bool {
	var refused *jetstream.APIError
	return errors.As(err, &refused) && (refused.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence ||
		refused.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequenceConstant)
}

// Say tells all gateways something, if there is a connection.
func (p *Plan) Say(text []byte) {
	if p.up.Load() {
		_ = p.conn.Publish(p.gateways(), text) // what is lost is said again
	}
}

// Hear has a function called with what gateways say.
func (p *Plan) Hear(hear func(text []byte)) error {
	_, err := p.conn.Subscribe(p.gateways(), func(m *nats.Msg) { hear(m.Data) })
	return err
}

// Close ends the connection, behind what was said.
func (p *Plan) Close() error {
	var err error
	if p.up.Load() {
		err = p.conn.FlushTimeout(patience)
	}
	p.conn.Close()
	return err
}

// pack makes a plan small: rules and their changes repeat each other.
func pack(text []byte) ([]byte, error) {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, err := w.Write(text)
	err = errors.Join(err, w.Close())
	return b.Bytes(), err
}

// unpack reads what pack wrote.
func unpack(data []byte) ([]byte, error) {
	r, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		return nil, errDamaged
	}
	text, err := io.ReadAll(io.LimitReader(r, maxText+1))
	if err != nil || len(text) > maxText {
		return nil, errDamaged
	}
	return text, nil
}

var errDamaged = errors.New("the plan in NATS is damaged, or of another version: look into the stream, or purge it, and the gateways put theirs there again")
