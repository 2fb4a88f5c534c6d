package cluster

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

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
// most Timeout, and then says ErrUnavailable, though the record may have been
// kept: who then sends it again may send it twice. When the servers have been
// silent for as long as that, it says so at once, and has not sent the record.
func (l *Log) Append(queue string, r spool.Record) error {
	if err := l.unready(); err != nil {
		return err
	}
	if l.away() {
		return l.errAway()
	}
	token, err := checkedToken(queue)
	if err != nil {
		return err
	}
	m := &nats.Msg{
		Subject: l.recordSubject(l.laneFor(token, r.Data)),
		Data:    r.Data,
		Header: nats.Header{
			headerArrival:         {formatTime(r.Arrival)},
			jetstream.MsgIDHeader: {rand.Text()},
		},
	}
	if l.sealer != nil {
		m.Header[headerSealed] = []string{"1"}
		if m.Data, err = l.sealer.seal(queue, r.Data); err != nil {
			return unavailable(err)
		}
	}
	l.pulse.waiting.Add(1)
	defer l.pulse.waiting.Add(-1)
	err = l.publish(m)
	if err == nil || errors.Is(err, spool.ErrFull) {
		l.pulse.acked.Add(1)
	}
	return err
}

// checkedToken is tokenOf for queues that the servers can have.
func checkedToken(queue string) (string, error) {
	token := tokenOf(queue)
	if len(laneToken(token, 0)) > maxToken {
		return "", unavailable(fmt.Errorf("the queue's name is too long: %d bytes as NATS needs it, at most %d", len(token), maxToken))
	}
	return token, nil
}

// publish sends a message until it is acknowledged. However often it goes out,
// the stream keeps it once, by its Nats-Msg-Id.
func (l *Log) publish(m *nats.Msg) error {
	ctx, cancel := context.WithTimeout(l.ctx, l.config.Timeout)
	defer cancel()
	began := time.Now()
	for trouble := error(nil); ; {
		err := l.attempt(ctx, m)
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
			return unavailable(fmt.Errorf("not acknowledged within %s: %w", time.Since(began).Round(time.Millisecond), trouble))
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// attempt sends a message once and waits for its acknowledgement.
func (l *Log) attempt(ctx context.Context, m *nats.Msg) error {
	if err := l.publisher.usable(); err != nil {
		return err
	}
	// No attempts of its own: those would use the data after Append has
	// returned it to its caller.
	future, err := l.publisher.js.PublishMsgAsync(m, jetstream.WithRetryAttempts(0))
	if err != nil {
		return err
	}
	select {
	case <-future.Ok():
		return nil
	case err := <-future.Err():
		return err
	case <-ctx.Done():
		return ctx.Err()
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
