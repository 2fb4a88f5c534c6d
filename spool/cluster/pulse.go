package cluster

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/td-postback/gateway/spool"
)

// pulse notes whether the servers acknowledge records. They are silent when they
// have acknowledged none for a second though some wait.
type pulse struct {
	waiting atomic.Int64              // Appends that are under way
	acked   atomic.Uint64             // records that the servers have answered for
	silent  atomic.Pointer[time.Time] // since when they have not; nil nearly always
}

// beat is how often the pulse is felt.
const beat = resend / 4

// quiet is for how long the servers have been silent: 0 if they are not.
func (p *pulse) quiet() time.Duration {
	if since := p.silent.Load(); since != nil {
		return time.Since(*since)
	}
	return 0
}

// feel looks for a sign of life: last is how many records were acknowledged
// before, and when that was last known to be well.
func (p *pulse) feel(last *uint64, well *time.Time) {
	acked, now := p.acked.Load(), time.Now()
	switch {
	case acked != *last:
		*last, *well = acked, now
		p.silent.Store(nil)
	case p.silent.Load() != nil:
	case p.waiting.Load() == 0:
		*well = now
	case now.Sub(*well) >= resend:
		since := *well
		if long := now.Add(-2 * resend); since.Before(long) {
			since = long // it is this process that was suspended
		}
		p.silent.Store(&since)
	}
}

// Hesitates reports whether the servers are silent. Append still waits for them
// for a while.
func (l *Log) Hesitates() bool { return l.pulse.quiet() > 0 || l.unready() != nil }

// away reports whether the servers have been silent for so long that a record
// need not wait for them.
func (l *Log) away() bool {
	quiet := l.pulse.quiet()
	if quiet == 0 {
		return false
	}
	quiet += beat // it may have begun so much earlier
	return quiet >= l.config.Timeout || quiet >= patience && !l.publisher.up.Load()
}

// errAway says why a record was not even sent.
func (l *Log) errAway() error {
	err := fmt.Errorf("the servers have acknowledged no record for %s", l.pulse.quiet().Round(time.Second))
	return unavailable(errors.Join(err, l.publisher.usable()))
}

// watch feels the pulse until the Log is closed. While the servers are silent, it
// asks them with a record of its own. So nobody has to wait to find out that they
// are back.
func (l *Log) watch() {
	tick := time.NewTicker(beat)
	defer tick.Stop()
	last, well, told := l.pulse.acked.Load(), time.Now(), false
	for {
		select {
		case <-l.ctx.Done():
			return
		case <-tick.C:
		}
		if l.pulse.quiet() > 0 && l.probe() {
			l.pulse.acked.Add(1)
		}
		l.pulse.feel(&last, &well)
		switch {
		case !told && l.away():
			told = true
			l.config.OnEvent(spool.Event{Kind: spool.Failed, Text: "NATS acknowledges no records", Err: l.errAway()})
		case told && l.pulse.quiet() == 0:
			told = false
			l.config.OnEvent(spool.Event{Kind: spool.Recovered, Text: "NATS acknowledges records again"})
		}
	}
}

// probeToken stands for no queue.
const probeToken = "_probe"

// probe publishes a record that is none, and reports whether the servers have
// answered for it. Only that says that there is a majority of them. It is deleted
// again; if that fails, the next probe does it.
func (l *Log) probe() bool {
	if l.unready() != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(l.ctx, resend)
	defer cancel()
	subject := l.recordSubject(probeToken)
	_, err := l.attempt(ctx, &nats.Msg{Subject: subject, Header: nats.Header{jetstream.MsgIDHeader: {rand.Text()}}})
	if err == nil {
		_ = l.records.Purge(ctx, jetstream.WithPurgeSubject(subject))
	}
	return err == nil || noRoom(err)
}
