package cluster

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"github.com/td-postback/gateway/spool"
)

// answer is how long the servers may take to say what they hold: a health check
// or a scrape waits for it.
const answer = 900 * time.Millisecond

// censusAge is how long what they have said counts as new, so that all that one
// scrape needs, and another at the same time, is asked once.
const censusAge = 250 * time.Millisecond

// census is what the servers hold, as far as it is known.
type census struct {
	depths      map[string]spool.Depth // by queue
	used, limit int64                  // bytes of records, and how many they may have
	dead        int64                  // bytes of dead letters
	err         error                  // why it is what was known before
}

// ask gives a function the time that the cluster has for one question. Where
// there is no use in asking, it says so at once.
func (l *Log) ask(question func(ctx context.Context) error) error {
	return l.askWithin(l.config.Timeout, question)
}

func (l *Log) askWithin(d time.Duration, question func(ctx context.Context) error) error {
	if err := l.unready(); err != nil {
		return err
	}
	if err := l.control.usable(); err != nil {
		return unavailable(err)
	}
	ctx, cancel := context.WithTimeout(l.ctx, d)
	defer cancel()
	err := question(ctx)
	switch {
	case err == nil, errors.Is(err, spool.ErrFull), errors.Is(err, spool.ErrUnavailable):
		return err
	case l.ctx.Err() != nil:
		return spool.ErrClosed
	}
	return unavailable(err)
}

// census says what the servers hold. Who asks while they are being asked waits
// for the same answer, and nobody for longer than it may take.
func (l *Log) census() census {
	l.mu.Lock()
	defer l.mu.Unlock()
	if time.Since(l.counted) < censusAge {
		return l.seen
	}
	counting := l.counting
	if counting == nil {
		counting = make(chan struct{})
		l.counting = counting
		go l.recount(counting) // not one of l.tasks: a write that is stuck would hold it, and Close with it
	}
	l.mu.Unlock()
	late := time.NewTimer(answer)
	defer late.Stop()
	select {
	case <-counting:
		l.mu.Lock()
	case <-late.C:
		l.mu.Lock()
		l.seen.err, l.counted = errNoAnswer, time.Now()
	}
	return l.seen
}

var errNoAnswer = unavailable(errors.New("NATS has not said in time what it holds"))

// recount asks the servers, and closes done. What was known stays if they do not
// answer.
func (l *Log) recount(done chan struct{}) {
	defer close(done)
	var now census
	err := l.askWithin(answer, func(ctx context.Context) (err error) {
		now, err = l.count(ctx)
		return err
	})
	l.mu.Lock()
	defer l.mu.Unlock()
	if err == nil {
		l.seen = now
	}
	l.seen.err, l.counted, l.counting = err, time.Now(), nil
}

// count asks for all that a census has, at once as far as possible.
func (l *Log) count(ctx context.Context) (census, error) {
	var records, letters *jetstream.StreamInfo
	both, within := errgroup.WithContext(ctx)
	both.Go(func() (err error) {
		records, err = l.records.Info(within, jetstream.WithSubjectFilter(l.recordSubject("*")))
		return err
	})
	both.Go(func() (err error) {
		letters, err = l.letters.Info(within, jetstream.WithSubjectFilter(l.letterSubject("*")))
		return err
	})
	if err := both.Wait(); err != nil {
		return census{}, err
	}
	depths := map[string]*spool.Depth{}
	for subject, n := range records.State.Subjects {
		depthOf(depths, subject).Records += int(n) //nolint:gosec // G115: there are not that many
	}
	for subject, n := range letters.State.Subjects {
		depthOf(depths, subject).Dead += int(n) //nolint:gosec // G115: the same
	}
	var mu sync.Mutex
	oldest, within := errgroup.WithContext(ctx)
	for subject := range records.State.Subjects {
		oldest.Go(func() error {
			at, err := l.oldest(within, subject)
			mu.Lock()
			defer mu.Unlock()
			if depth := depthOf(depths, subject); !at.IsZero() && (depth.Oldest.IsZero() || at.Before(depth.Oldest)) {
				depth.Oldest = at
			}
			return err
		})
	}
	err := oldest.Wait()
	now := census{
		depths: map[string]spool.Depth{},
		used:   int64(records.State.Bytes), //nolint:gosec // G115: it is at most MaxBytes
		limit:  records.Config.MaxBytes,
		dead:   int64(letters.State.Bytes), //nolint:gosec // G115: the same
	}
	for queue, depth := range depths {
		now.depths[queue] = *depth
	}
	return now, err
}

// depthOf is the depth of the queue that a subject is for. What is for none
// counts nowhere.
func depthOf(depths map[string]*spool.Depth, subject string) *spool.Depth {
	queue, ok := queueOf(withoutLane(subject[strings.LastIndexByte(subject, '.')+1:]))
	if !ok {
		return new(spool.Depth)
	}
	if depths[queue] == nil {
		depths[queue] = new(spool.Depth)
	}
	return depths[queue]
}

// oldest is the arrival of a subject's oldest record.
func (l *Log) oldest(ctx context.Context, subject string) (time.Time, error) {
	msg, err := l.records.GetMsg(ctx, 1, jetstream.WithGetMsgSubject(subject))
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return time.Time{}, nil // it has been acked meanwhile
	}
	if err != nil {
		return time.Time{}, err
	}
	return parseTime(msg.Header, headerArrival, msg.Time), nil
}

// Queues names the queues with records or dead letters. While the cluster does
// not answer, it names those that are known.
func (l *Log) Queues() []string { return slices.Sorted(maps.Keys(l.census().depths)) }

// Depth says what a queue holds. While the cluster does not answer, it is what
// was known before, and an error.
func (l *Log) Depth(queue string) (spool.Depth, error) {
	now := l.census()
	d := now.depths[queue]
	d.Refusing = l.away()
	return d, now.err
}

// Size is how many bytes the records take in the stream, counted once for all
// replicas, and how many they may. While the cluster does not answer, it is what
// was known before.
func (l *Log) Size() (used, limit int64) {
	now := l.census()
	return now.used, now.limit
}

// DeadSize is the same of dead letters, which have a stream of their own.
func (l *Log) DeadSize() (used, limit int64) {
	now := l.census()
	l.mu.Lock()
	defer l.mu.Unlock()
	return now.dead, l.deadSize
}

// SetLimits changes how many bytes the records may take, and the dead letters. It
// waits for a second at most: who calls it may hold others up. If the cluster has
// not taken the limits by then, they are set as soon as it does.
func (l *Log) SetLimits(records, dead int64) error {
	l.mu.Lock()
	l.deadSize, l.wanted = dead, records
	l.mu.Unlock()
	return l.setLimits()
}

// setLimits sets limits that are wanted and not set.
func (l *Log) setLimits() error {
	l.mu.Lock()
	records, dead := l.wanted, l.deadSize
	l.mu.Unlock()
	if records == 0 {
		return nil
	}
	return l.askWithin(answer, func(ctx context.Context) error {
		for stream, bytes := range map[jetstream.Stream]int64{l.records: records, l.letters: max(records, dead)} {
			info, err := stream.Info(ctx)
			if err != nil {
				return err
			}
			info.Config.MaxBytes = bytes
			if _, err := l.control.js.UpdateStream(ctx, info.Config); err != nil {
				return err
			}
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		l.counted = time.Time{}
		if l.wanted == records && l.deadSize == dead {
			l.wanted = 0
		}
		return nil
	})
}

// addDead adds a dead letter to what is known of them, which is asked for now and
// then only.
func (l *Log) addDead(bytes int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.seen.dead += int64(bytes)
}

// messages calls yield for up to limit messages of some subjects, behind an ID, in
// their order. Each costs a question of its own.
func (l *Log) messages(stream *jetstream.Stream, subjects []string, after spool.ID, limit int, yield func(*jetstream.RawStreamMsg)) error {
	heads := map[string]*jetstream.RawStreamMsg{} // the next one of each subject
	var asking sync.Mutex
	all := errgroup.Group{}
	for _, subject := range subjects {
		all.Go(func() error {
			found, err := l.following(stream, subject, after)
			asking.Lock()
			defer asking.Unlock()
			if found != nil {
				heads[subject] = found
			}
			return err
		})
	}
	if err := all.Wait(); err != nil {
		return err
	}
	for size := 0; len(heads) > 0 && limit > 0 && size < spool.MaxListed; limit-- {
		var first *jetstream.RawStreamMsg
		for _, head := range heads {
			if first == nil || head.Sequence < first.Sequence {
				first = head
			}
		}
		size += len(first.Data)
		yield(first)
		delete(heads, first.Subject)
		found, err := l.following(stream, first.Subject, spool.ID(first.Sequence))
		if err != nil {
			return err
		}
		if found != nil {
			heads[first.Subject] = found
		}
	}
	return nil
}

// following is the first message of a subject behind an ID, or nil.
func (l *Log) following(stream *jetstream.Stream, subject string, after spool.ID) (found *jetstream.RawStreamMsg, err error) {
	err = l.ask(func(ctx context.Context) (err error) {
		found, err = (*stream).GetMsg(ctx, uint64(after)+1, jetstream.WithGetMsgSubject(subject))
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			found, err = nil, nil
		}
		return err
	})
	return found, err
}

// Records returns records that are to be delivered, without taking them. It
// does not know how often they were taken. Data is nil if it cannot be
// decrypted.
func (l *Log) Records(queue string, after spool.ID, limit int) ([]spool.Entry, error) {
	var entries []spool.Entry
	err := l.messages(&l.records, l.subjectsOf(queue), after, limit, func(m *jetstream.RawStreamMsg) {
		entries = append(entries, spool.Entry{ID: spool.ID(m.Sequence), Record: l.record(queue, m)})
	})
	return entries, err
}

// Letters returns dead letters. Data is nil if it cannot be decrypted.
func (l *Log) Letters(queue string, after spool.ID, limit int) ([]spool.Letter, error) {
	var letters []spool.Letter
	err := l.messages(&l.letters, []string{l.letterSubject(tokenOf(queue))}, after, limit, func(m *jetstream.RawStreamMsg) {
		status, _ := strconv.Atoi(m.Header.Get(headerStatus))
		letters = append(letters, spool.Letter{
			ID:      spool.ID(m.Sequence),
			Record:  l.record(queue, m),
			Verdict: spool.Verdict{Status: status, Reason: m.Header.Get(headerReason), Words: m.Header.Get(headerWords)},
			Queue:   queue,
			Died:    parseTime(m.Header, headerDied, m.Time),
		})
	})
	return letters, err
}

// record is what a message holds. An operator may see too what is not delivered
// since it is not encrypted.
func (l *Log) record(queue string, m *jetstream.RawStreamMsg) spool.Record {
	data, err := l.unseal(queue, m.Header, m.Data)
	switch {
	case errors.Is(err, errPlain):
		data = m.Data
	case err != nil:
		data = nil
	}
	return spool.Record{Arrival: parseTime(m.Header, headerArrival, m.Time), Data: data, Replayed: m.Header.Get(headerReplayed) != ""}
}

// Replay makes dead letters records again. If it fails between the two steps of
// one of them, both are there; replaying that within a minute makes no second
// record.
func (l *Log) Replay(queue string, ids ...spool.ID) (int, error) {
	return l.each(queue, ids, func(letter *jetstream.RawStreamMsg) error {
		data, err := l.unseal(queue, letter.Header, letter.Data)
		if err != nil { // nobody would deliver it
			return &spool.NotReplayedError{IDs: []spool.ID{spool.ID(letter.Sequence)}, Why: err}
		}
		m := &nats.Msg{
			Subject: l.recordSubject(l.laneFor(tokenOf(queue), data)),
			Data:    letter.Data,
			Header: nats.Header{
				headerArrival:         {letter.Header.Get(headerArrival)},
				headerReplayed:        {"1"},
				jetstream.MsgIDHeader: {"replay-" + identify(letter.Header, letter.Sequence, letter.Time).String()},
			},
		}
		if sealed := letter.Header.Get(headerSealed); sealed != "" {
			m.Header.Set(headerSealed, sealed)
		}
		return l.publish(m)
	})
}

// Drop deletes dead letters.
func (l *Log) Drop(queue string, ids ...spool.ID) (int, error) {
	return l.each(queue, ids, func(*jetstream.RawStreamMsg) error { return nil })
}

// each does something with dead letters, and deletes them. It counts them. One that
// cannot be replayed stays.
func (l *Log) each(queue string, ids []spool.ID, do func(*jetstream.RawStreamMsg) error) (n int, err error) {
	var left *spool.NotReplayedError
	subject := l.letterSubject(tokenOf(queue))
	for _, id := range ids {
		err := l.ask(func(ctx context.Context) error {
			letter, err := l.letters.GetMsg(ctx, uint64(id))
			if errors.Is(err, jetstream.ErrMsgNotFound) || err == nil && letter.Subject != subject {
				return nil
			}
			if err != nil {
				return err
			}
			var one *spool.NotReplayedError
			switch err := do(letter); {
			case errors.As(err, &one):
				left = left.Add(one)
				return nil
			case err != nil:
				return err
			}
			if err := l.letters.DeleteMsg(ctx, letter.Sequence); err != nil {
				return err
			}
			n++
			return nil
		})
		if err != nil {
			return n, err
		}
	}
	if left != nil {
		return n, left
	}
	return n, nil
}
