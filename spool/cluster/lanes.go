package cluster

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"strings"
	"time"

	"github.com/td-postback/gateway/spool"
)

// This file keeps accounts from holding each other up. The servers give out the
// records of a consumer in their order, and no more than maxAckPending at a time.
// So a queue has lanes, each with a subject and a consumer of its own, and an
// account's records are all in one of them, unless others jam that.

// lanes is how many a queue has. One more is for what was kept without: by an
// earlier version, for no account, or in the first moments of a gateway.
const lanes = 16

// laneMark comes behind a queue's token, before the lane: no token has it in it.
const laneMark = "_-"

const (
	// laneBytes is about how many bytes a lane gives out at a time, unless a record
	// is larger.
	laneBytes = 2 << 20

	// unwanted is how long records stay with this gateway when nobody takes them.
	unwanted = 5 * time.Second

	// laneRetry is the pause of a lane that does not work.
	laneRetry = time.Second
)

// laneTokens are the tokens of a queue's lanes.
func laneTokens(token string) []string {
	tokens := append(make([]string, 0, 1+lanes), token)
	for lane := range lanes {
		tokens = append(tokens, laneToken(token, lane))
	}
	return tokens
}

func laneToken(token string, lane int) string { return fmt.Sprintf("%s%s%02d", token, laneMark, lane) }

// withoutLane is the token of the queue that a lane is of.
func withoutLane(token string) string {
	token, _, _ = strings.Cut(token, laneMark)
	return token
}

// laneFor is the token of the lane for a record: its account's own, or if others jam
// that, the next one that nobody jams. Before this gateway has looked into it, nobody
// knows who jams it: then it is the one that is for no account.
func (l *Log) laneFor(token string, data []byte) string {
	if l.config.Account == nil {
		return token
	}
	account := l.accountOf(data)
	own := laneToken(token, int(account%lanes))
	l.mu.Lock()
	defer l.mu.Unlock()
	lane := own
	if !l.looked[own] {
		return token
	}
	for next := account % lanes; l.jams[lane].keeps(account); lane = laneToken(token, int(next)) {
		if next = (next + 1) % lanes; next == account%lanes {
			return own
		}
	}
	return lane
}

func hashOf(account string) uint32 {
	h := fnv.New32a()
	_, _ = h.Write([]byte(account)) // never fails
	return h.Sum32()
}

// taker takes from all lanes of a queue.
type taker struct {
	lanes    []*lane
	arrivals chan found
}

// lane is one of them. It takes records when it is asked to.
type lane struct {
	*queue
	token string
	most  int // records to take at a time
	asked chan int
}

// found is what a lane has found, or why it does not work.
type found struct {
	lane    *lane
	entries []spool.Entry
	err     error
}

// taker returns who takes from the queue, and starts it.
func (q *queue) taker() (*taker, error) {
	token, err := checkedToken(q.name)
	if err != nil {
		return nil, err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if t := q.takers[q.name]; t != nil {
		return t, nil
	}
	t := &taker{arrivals: make(chan found)}
	for _, token := range laneTokens(token) {
		lane := &lane{queue: q, token: token, most: jammedAt, asked: make(chan int, 1)}
		t.lanes = append(t.lanes, lane)
		go lane.run(t.arrivals) // not one of tasks: a write that is stuck would hold it, and Close with it
	}
	q.takers[q.name] = t
	return t, nil
}

// take waits for records of any lane. It fails if none of the lanes works.
func (t *taker) take(ctx context.Context, n int) ([]spool.Entry, error) {
	for _, lane := range t.lanes {
		select {
		case lane.asked <- n:
		default: // it is at it
		}
	}
	failed := map[*lane]error{}
	for {
		select {
		case a := <-t.arrivals:
			if a.err == nil {
				return a.entries, nil
			}
			if failed[a.lane] = a.err; len(failed) == len(t.lanes) {
				return nil, a.err
			}
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// run takes what is asked for, until the Log is closed.
func (l *lane) run(arrivals chan<- found) {
	for {
		select {
		case n := <-l.asked:
			l.serve(n, arrivals)
		case <-l.ctx.Done():
			return
		}
	}
}

// serve takes up to n records once, however often that fails: somebody waits.
func (l *lane) serve(n int, arrivals chan<- found) {
	for {
		entries, err := l.patiently(n)
		if l.ctx.Err() != nil {
			return // Close gives back what was given out
		}
		if err != nil { // Take says so only if no lane works
			l.config.OnEvent(spool.Event{Kind: spool.Unreadable, Text: "records in NATS cannot be taken", Queue: l.name, Err: fmt.Errorf("lane %s: %w", l.token, err)})
		}
		l.hand(arrivals, found{l, entries, err})
		if err == nil {
			return
		}
		select {
		case <-time.After(laneRetry):
		case <-l.ctx.Done():
			return
		}
	}
}

// hand gives records to who takes them, or back to the servers: another gateway may
// deliver them.
func (l *lane) hand(arrivals chan<- found, a found) {
	late := time.NewTimer(unwanted)
	defer late.Stop()
	select {
	case arrivals <- a:
		return
	case <-late.C:
	case <-l.ctx.Done():
	}
	for _, e := range a.entries {
		l.Later(e, 0)
	}
}

// patiently takes records as soon as there are some. What is usual for a moment is
// no failure.
func (l *lane) patiently(n int) ([]spool.Entry, error) {
	for began := time.Now(); ; {
		entries, err := l.take(l.ctx, n)
		switch {
		case len(entries) > 0:
			l.most = l.mostOf(entries)
			return entries, nil
		case l.ctx.Err() != nil:
			return nil, spool.ErrClosed
		case err == nil:
			began = time.Now()
			continue
		}
		l.forget(l.token)
		if !passing(err) || time.Since(began) > patience {
			return nil, unavailable(err)
		}
		select {
		case <-l.ctx.Done():
		case <-time.After(pause):
		}
	}
}

// mostOf is how many records as large as these may be taken at a time.
func (l *lane) mostOf(entries []spool.Entry) int {
	size := 1
	for _, e := range entries {
		size += len(e.Data)
	}
	return max(1, min(maxTaken, laneBytes*len(entries)/size))
}

// take gives out what is there, or else the next record to come.
func (l *lane) take(ctx context.Context, n int) ([]spool.Entry, error) {
	if err := l.unready(); err != nil {
		return nil, err
	}
	if err := l.control.usable(); err != nil {
		return nil, err
	}
	consumer, err := l.consumer(ctx, l.token)
	if err != nil {
		return nil, err
	}
	batch, err := consumer.FetchNoWait(min(n, l.most))
	if err != nil {
		return nil, err
	}
	entries := l.entries(batch)
	if err := errors.Join(batch.Error(), ctx.Err()); err != nil && len(entries) == 0 {
		return nil, err
	}
	l.look(l.token)
	if len(entries) > 0 {
		return entries, nil
	}
	return l.next(ctx, consumer)
}

// subjectsOf are the subjects of a queue's records.
func (l *Log) subjectsOf(queue string) []string {
	subjects := laneTokens(tokenOf(queue))
	for i := range subjects {
		subjects[i] = l.recordSubject(subjects[i])
	}
	return subjects
}
