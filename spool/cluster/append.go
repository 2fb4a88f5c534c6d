package cluster

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"github.com/td-postback/gateway/spool"
)

// Headers of a message.
const (
	headerArrival = "Td-Arrival"
	headerSealed  = "Td-Sealed" // what is in it is encrypted
	headerStatus  = "Td-Status" // these three are a dead letter's
	headerReason  = "Td-Reason"
	headerWords   = "Td-Words"

	headerReplayed = "Td-Replayed" // of a record that was a dead letter
	headerDied     = "Td-Died"
)

// The servers' error codes that mean that a record has no room: in the stream,
// in the account, on the server, and in what the server set aside.
const (
	codeStoreFailed  jetstream.ErrorCode = 10077 // of a full stream, if it says so
	codeAccountFull  jetstream.ErrorCode = 10002
	codeServerFull   jetstream.ErrorCode = 10023
	codeReservedFull jetstream.ErrorCode = 10047
	storeIsFull                          = "maximum bytes exceeded"
)

// Append returns when a record is on a majority of the servers. It waits for at
// most Timeout, and then says ErrUnavailable, and ErrMaybeKept if it has sent the
// record: who then sends it again may send it twice. When the servers have been
// silent for as long as that, it says so at once, and has not sent the record.
func (l *Log) Append(queue string, r spool.Record) error {
	token, err := l.tokenFor(queue)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(l.ctx, l.config.Timeout)
	defer cancel()
	return l.appendTo(ctx, token, queue, r)
}

// A request of some tens of MiB must not be on its way for so long that the first
// records of it are sent again.
const (
	appendWindow   = 8 << 20 // bytes of AppendAll that are on their way together
	recordOverhead = 512     // what a message takes beside the data, about
)

// AppendAll returns when all records are on a majority of the servers, for which it
// waits as long as Append. They go side by side, each for itself: so after an error,
// some of them may have been kept.
func (l *Log) AppendAll(queue string, records []spool.Record) error {
	if len(records) == 1 {
		return l.Append(queue, records[0])
	}
	token, err := l.tokenFor(queue)
	if err != nil {
		return err
	}
	if err := l.roomFor(records); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(l.ctx, l.config.Timeout)
	defer cancel()
	err = l.appendEach(ctx, token, queue, records)
	if err != nil && l.ctx.Err() != nil {
		return spool.ErrClosed
	}
	return err
}

// appendEach publishes records side by side. The first error ends it.
func (l *Log) appendEach(ctx context.Context, token, queue string, records []spool.Record) error {
	all, going := errgroup.WithContext(ctx)
	window := semaphore.NewWeighted(appendWindow)
	var some atomic.Bool // of them may be kept
	for _, r := range records {
		size := min(int64(len(r.Data)+recordOverhead), appendWindow)
		if err := window.Acquire(going, size); err != nil { // one has failed, or it is too late
			all.Go(func() error { return unavailable(err) })
			break
		}
		all.Go(func() error {
			defer window.Release(size)
			err := l.appendTo(going, token, queue, r)
			if err == nil || errors.Is(err, spool.ErrMaybeKept) {
				some.Store(true)
			}
			return err
		})
	}
	err := all.Wait()
	if err != nil && some.Load() && !errors.Is(err, spool.ErrMaybeKept) {
		err = fmt.Errorf("%w; of several records, %w", err, spool.ErrMaybeKept)
	}
	return err
}

// roomFor says ErrFull if the stream has no room for all of some records, as far as
// is known: then none of them is sent.
func (l *Log) roomFor(records []spool.Record) error {
	var size int64
	for _, r := range records {
		size += int64(len(r.Data) + recordOverhead)
	}
	if now := l.census(); now.err == nil && now.used+size > now.limit {
		return spool.ErrFull
	}
	return nil
}

// tokenFor is the queue's token, unless no record can be sent now.
func (l *Log) tokenFor(queue string) (string, error) {
	if err := l.unready(); err != nil {
		return "", err
	}
	if l.away() {
		return "", l.errAway()
	}
	return checkedToken(queue)
}

// appendTo publishes a record.
func (l *Log) appendTo(ctx context.Context, token, queue string, r spool.Record) error {
	m := &nats.Msg{
		Subject: l.recordSubject(l.laneFor(token, r.Data)),
		Header: nats.Header{
			headerArrival:         {formatTime(r.Arrival)},
			jetstream.MsgIDHeader: {rand.Text()},
		},
	}
	if err := l.fill(m, queue, r.Data); err != nil {
		return err
	}
	l.pulse.waiting.Add(1)
	defer l.pulse.waiting.Add(-1)
	err := l.publishBy(ctx, m)
	if err == nil || errors.Is(err, spool.ErrFull) {
		l.pulse.acked.Add(1)
	}
	return err
}

// fill puts data into a message, encrypted if there is a key.
func (l *Log) fill(m *nats.Msg, queue string, data []byte) (err error) {
	m.Data = data
	if l.sealer == nil {
		return nil
	}
	m.Header[headerSealed] = []string{"1"}
	if m.Data, err = l.sealer.seal(queue, data); err != nil {
		return unavailable(err)
	}
	return nil
}

// checkedToken is tokenOf for queues that the servers can have.
func checkedToken(queue string) (string, error) {
	token := tokenOf(queue)
	if len(laneToken(token, 0)) > maxToken {
		return "", unavailable(fmt.Errorf("the queue's name is too long: %d bytes as NATS needs it, at most %d", len(token), maxToken))
	}
	return token, nil
}

// publish sends a message until it is acknowledged, for Timeout at most.
func (l *Log) publish(m *nats.Msg) error {
	ctx, cancel := context.WithTimeout(l.ctx, l.config.Timeout)
	defer cancel()
	return l.publishBy(ctx, m)
}

// publishBy is publish until ctx ends. However often a message goes out, the stream
// keeps it once, by its Nats-Msg-Id.
func (l *Log) publishBy(ctx context.Context, m *nats.Msg) error {
	began := time.Now()
	maybe := error(nil) // as soon as it was sent
	for trouble := error(nil); ; {
		sent, err := l.attempt(ctx, m)
		if sent {
			maybe = spool.ErrMaybeKept
		}
		switch {
		case err == nil:
			return nil
		case l.ctx.Err() != nil:
			return spool.ErrClosed
		case noRoom(err):
			return errors.Join(spool.ErrFull, err)
		case errors.Is(err, nats.ErrMaxPayload):
			return unavailable(fmt.Errorf("the servers' max_payload is too small for a record of %d bytes: %w", len(m.Data), err))
		case ctx.Err() == nil || trouble == nil:
			trouble = err
		}
		if ctx.Err() != nil || l.away() || !l.publisher.up.Load() && time.Since(began) > patience {
			return unavailable(errors.Join(fmt.Errorf("not acknowledged within %s: %w", time.Since(began).Round(time.Millisecond), trouble), maybe))
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// attempt sends a message once and waits for its acknowledgement. It says whether it was
// sent.
func (l *Log) attempt(ctx context.Context, m *nats.Msg) (sent bool, err error) {
	if err := l.publisher.usable(); err != nil {
		return false, err
	}
	// No attempts of its own: those would use the data after Append has
	// returned it to its caller.
	future, err := l.publisher.js.PublishMsgAsync(m, jetstream.WithRetryAttempts(0))
	if err != nil {
		return false, err
	}
	select {
	case <-future.Ok():
		return true, nil
	case err := <-future.Err():
		return true, err
	case <-ctx.Done():
		return true, ctx.Err()
	}
}

// noRoom says whether an error means that there is no room.
func noRoom(err error) bool {
	var refusal *jetstream.APIError
	if !errors.As(err, &refusal) {
		return false
	}
	switch refusal.ErrorCode {
	case codeAccountFull, codeServerFull, codeReservedFull:
		return true
	case codeStoreFailed:
		return refusal.Description == storeIsFull
	default:
		return false
	}
}

func formatTime(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

// parseTime reads a header. A message that this package did not make has none:
// then it is when the server got it.
func parseTime(h nats.Header, name string, otherwise time.Time) time.Time {
	if t, err := time.Parse(time.RFC3339Nano, h.Get(name)); err == nil {
		return t
	}
	return otherwise
}

// unseal is what a message holds, in clear. With a key, one that is not encrypted
// is none: whoever can write to the servers may have made it.
func (l *Log) unseal(queue string, h nats.Header, data []byte) ([]byte, error) {
	sealed := h.Get(headerSealed) != ""
	switch {
	case sealed:
		return l.sealer.open(queue, data)
	case l.sealer != nil:
		return nil, errPlain
	}
	return data, nil
}

// letter makes a dead letter of a message, which stays encrypted if it is.
func (l *Log) letter(token string, msg jetstream.Msg, id identity, why spool.Verdict) *nats.Msg {
	m := &nats.Msg{
		Subject: l.letterSubject(token),
		Data:    msg.Data(),
		Header: nats.Header{
			headerArrival:         {msg.Headers().Get(headerArrival)},
			headerStatus:          {strconv.Itoa(why.Status)},
			headerReason:          {why.Reason},
			headerDied:            {formatTime(time.Now())},
			jetstream.MsgIDHeader: {"died-" + id.String()},
		},
	}
	if why.Words != "" {
		m.Header.Set(headerWords, why.Words[:min(len(why.Words), spool.MaxWords)])
	}
	if sealed := msg.Headers().Get(headerSealed); sealed != "" {
		m.Header.Set(headerSealed, sealed)
	}
	return m
}
