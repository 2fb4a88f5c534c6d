package cluster

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/td-postback/gateway/spool"
)

// queue has a durable consumer for each lane, which all gateways share.
type queue struct {
	*Log
	name string
}

// Queue returns a queue. All gateways take from it; a record that one of them
// holds goes to another when it is not heard of for half a minute.
func (l *Log) Queue(name string) spool.Queue { return &queue{l, name} }

// heartbeat is how often the servers say that they know of a Take that waits. It
// fails when they do not for twice as long.
const heartbeat = 2 * time.Second

// maxTaken is how many records of a lane are given out at a time, if they are small:
// the first large ones behind them may have 2 MiB each. 512 were measured to be twice
// as fast, and may be 1 GiB. Pulls with a limit of bytes (FetchMaxBytes) were tried:
// they ended with "batch completed", and records that were due did not come.
const maxTaken = 32

// Take waits for records.
func (q *queue) Take(ctx context.Context, n int) ([]spool.Entry, error) {
	t, err := q.taker()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(q.ctx, cancel)() //nolint:contextcheck // ends with the Log, too
	entries, err := t.take(ctx, n)
	if err != nil && q.ctx.Err() != nil {
		err = spool.ErrClosed
	}
	return entries, err
}

// TakeUntried is Take for one record: the servers decide which.
func (q *queue) TakeUntried(ctx context.Context) ([]spool.Entry, error) { return q.Take(ctx, 1) }

// TakeNewest is the same.
func (q *queue) TakeNewest(ctx context.Context) ([]spool.Entry, error) { return q.Take(ctx, 1) }

// Holds says that the servers want to hear of a record that was given out.
func (q *queue) Holds() bool { return false }

// passing says whether an error is usual for a moment: the consumer was just
// made, or another server begins to lead it.
func passing(err error) bool {
	return errors.Is(err, nats.ErrNoResponders) || errors.Is(err, jetstream.ErrConsumerLeadershipChanged) || errors.Is(err, jetstream.ErrServerShutdown)
}

// next waits for the next record. It is one: a pull for more would go on collecting
// after the first has come.
func (q *queue) next(ctx context.Context, consumer jetstream.Consumer) ([]spool.Entry, error) {
	batch, err := consumer.Fetch(1, jetstream.FetchContext(ctx), jetstream.FetchHeartbeat(heartbeat))
	if err != nil {
		return nil, err
	}
	if entries := q.entries(batch); len(entries) > 0 {
		return entries, nil
	}
	return nil, batch.Error()
}

// consumer makes the durable consumer of a lane, or finds it.
func (q *queue) consumer(ctx context.Context, token string) (jetstream.Consumer, error) {
	q.mu.Lock()
	consumer := q.consumers[token]
	q.mu.Unlock()
	if consumer != nil {
		return consumer, nil
	}
	ctx, cancel := context.WithTimeout(ctx, q.config.Timeout)
	defer cancel()
	consumer, err := q.records.CreateOrUpdateConsumer(ctx, jetstream.ConsumerConfig{
		Durable:       token,
		FilterSubject: q.recordSubject(token),
		AckPolicy:     jetstream.AckExplicitPolicy,
		AckWait:       q.config.ackWait,
		MaxDeliver:    -1,
		MaxAckPending: maxAckPending,
	})
	if err != nil {
		return nil, err
	}
	q.mu.Lock()
	q.consumers[token] = consumer
	q.mu.Unlock()
	return consumer, nil
}

// forget has the consumer looked for again: it may have been deleted.
func (q *queue) forget(token string) {
	q.mu.Lock()
	delete(q.consumers, token)
	q.mu.Unlock()
}

// entries collects what a pull gives out.
func (q *queue) entries(batch jetstream.MessageBatch) []spool.Entry {
	var entries []spool.Entry
	for msg := range batch.Messages() {
		if e, ok := q.entry(msg); ok {
			entries = append(entries, e)
		}
	}
	return entries
}

// entry is a message, if it is to be given out.
func (q *queue) entry(msg jetstream.Msg) (e spool.Entry, ok bool) {
	meta, err := msg.Metadata()
	if err != nil {
		q.config.OnEvent(spool.Event{Kind: spool.Disturbed, Text: "NATS gave out a message that is none of a stream", Queue: q.name, Err: err})
		return e, false
	}
	if q.acked(meta) { // which they have not heard
		q.lost(q.acknowledge(msg))
		return e, false
	}
	data, err := q.unseal(q.name, msg.Headers(), msg.Data())
	if err != nil {
		// Another gateway may have the key, or this one after a change of its
		// configuration. The record grows old and is never lost.
		q.config.OnEvent(spool.Event{
			Kind: spool.Unreadable, Text: "a record in NATS cannot be read", Queue: q.name, Records: 1,
			Err: fmt.Errorf("record %d: %w", meta.Sequence.Stream, err),
		})
		_ = msg.NakWithDelay(2 * q.config.ackWait)
		return e, false
	}
	id := identify(msg.Headers(), meta.Sequence.Stream, meta.Timestamp)
	tries, ok := q.hold(id, msg)
	if !ok {
		return e, false
	}
	q.given(laneOf(msg), data, meta.NumPending)
	return spool.Entry{
		ID: spool.ID(id.seq), Namespace: id.namespace,
		Record: spool.Record{
			Arrival: parseTime(msg.Headers(), headerArrival, meta.Timestamp), Data: data, Replayed: msg.Headers().Get(headerReplayed) != "",
		},
		Tries: tries,
	}, true
}

// holding is a record that was given out, and when.
type holding struct {
	msg   jetstream.Msg
	since time.Time
}

// hold notes what is given out. It says how often it was tried, and no if it has been
// given out already: the servers have not heard of this gateway for a while.
func (l *Log) hold(id identity, msg jetstream.Msg) (tries int, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.held == nil {
		return 0, false
	}
	_, again := l.held[id]
	l.held[id] = holding{msg, time.Now()}
	return l.tries[id], !again
}

// release forgets an entry, and returns its message.
func (l *Log) release(e spool.Entry) jetstream.Msg {
	l.mu.Lock()
	defer l.mu.Unlock()
	id := identityOf(e)
	msg := l.held[id].msg
	delete(l.held, id)
	delete(l.tries, id)
	return msg
}

// keep tells the servers, until the Log is closed, of what is still being worked
// on and of what they have not confirmed, and sets limits that could not be set.
func (l *Log) keep() {
	every := l.config.ackWait / 3
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-l.ctx.Done():
			return
		case <-tick.C:
		}
		for _, msg := range l.heldFor(every) {
			_ = msg.InProgress() // one that is acked meanwhile says so
		}
		l.ackAgain(every)
		_ = l.setLimits() // the next time, then
	}
}

// heldFor returns what has been held for some time.
func (l *Log) heldFor(d time.Duration) (msgs []jetstream.Msg) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, h := range l.held {
		if time.Since(h.since) >= d {
			msgs = append(msgs, h.msg)
		}
	}
	return msgs
}

// Ack says that v2 has taken a record. If that is lost on its way, it is said
// again, and if this gateway ends before, the record comes again.
func (q *queue) Ack(e spool.Entry) {
	if msg := q.release(e); msg != nil {
		q.lost(q.acknowledge(msg))
	}
}

// AckSafe is Ack.
func (q *queue) AckSafe(e spool.Entry) { q.Ack(e) }

// Later puts a record back.
func (q *queue) Later(e spool.Entry, after time.Duration) {
	msg := q.release(e)
	if msg == nil {
		return
	}
	q.lost(msg.NakWithDelay(q.putOff(e, msg, after)))
}

// lost tells of an answer that the servers do not get. They wait for it, and
// then give the record out again.
func (q *queue) lost(err error) {
	if err != nil {
		q.config.OnEvent(spool.Event{Kind: spool.Disturbed, Text: "a record was answered for in vain, and comes again", Queue: q.name, Err: err})
	}
}

// Bury makes a record a dead letter. Both are on a majority of the servers
// before it returns. If it fails between the two, the dead letter is there
// already; burying it again within an hour makes no second one.
func (q *queue) Bury(e spool.Entry, why spool.Verdict) error { return q.bury(e, nil, why) }

// BuryRest is Bury with other data. If it has failed before, the dead letter that is
// there already stays as it is: v2 has taken what is not in that.
func (q *queue) BuryRest(e spool.Entry, rest []byte, why spool.Verdict) error {
	return q.bury(e, rest, why)
}

// bury makes a dead letter of a record, with other data if there is a rest.
func (q *queue) bury(e spool.Entry, rest []byte, why spool.Verdict) error {
	id := identityOf(e)
	q.mu.Lock()
	msg := q.held[id].msg
	q.mu.Unlock()
	if msg == nil {
		return fmt.Errorf("record %d was not given out", e.ID)
	}
	token, err := checkedToken(q.name)
	if err != nil {
		return err
	}
	letter := q.letter(token, msg, id, why)
	if rest != nil {
		if err := q.fill(letter, q.name, rest); err != nil {
			return err
		}
	}
	if err := q.publishLetter(letter, why.Status != 0); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(q.ctx, q.config.Timeout)
	defer cancel()
	if err := q.control.usable(); err != nil {
		return unavailable(err)
	}
	if err := msg.DoubleAck(ctx); err != nil && !errors.Is(err, jetstream.ErrMsgAlreadyAckd) {
		return unavailable(err)
	}
	q.release(e)
	return nil
}

// publishLetter publishes a dead letter. One that v2 has refused has room in
// DeadSize only.
func (l *Log) publishLetter(m *nats.Msg, refused bool) error {
	size := len(m.Data)
	if used, limit := l.DeadSize(); refused && used+int64(size) > limit {
		return spool.ErrFull
	}
	err := l.publish(m)
	switch {
	case err == nil:
		l.addDead(size)
	case !refused && errors.Is(err, spool.ErrFull):
		return unavailable(fmt.Errorf("a dead letter that must be kept has no room: %v", err)) //nolint:errorlint // it is not ErrFull for who called: the record stays
	}
	return err
}
