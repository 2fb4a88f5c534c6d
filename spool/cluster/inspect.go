package cluster

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/td-postback/gateway/spool"
)

// sizeAge is how long Size may say the same.
const sizeAge = time.Second

// ask gives a function the time that the cluster has for one question. Where
// there is no use in asking, it says so at once.
func (l *Log) ask(question func(ctx context.Context) error) error {
	if err := l.unready(); err != nil {
		return err
	}
	if err := l.control.usable(); err != nil {
		return unavailable(err)
	}
	ctx, cancel := context.WithTimeout(l.ctx, l.config.Timeout)
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

// subjects counts the messages of a stream under each subject of a filter.
func subjects(ctx context.Context, stream jetstream.Stream, filter string) (map[string]uint64, error) {
	info, err := stream.Info(ctx, jetstream.WithSubjectFilter(filter))
	if err != nil {
		return nil, err
	}
	return info.State.Subjects, nil
}

// Queues names the queues with records or dead letters. While the cluster
// cannot be asked, it names those that it named before.
func (l *Log) Queues() []string {
	names := map[string]bool{}
	err := l.ask(func(ctx context.Context) error {
		records, err := subjects(ctx, l.records, l.recordSubject("*"))
		if err != nil {
			return err
		}
		letters, err := subjects(ctx, l.letters, l.letterSubject("*"))
		for _, found := range []map[string]uint64{records, letters} {
			for subject := range found {
				if queue, ok := queueOf(subject[strings.LastIndexByte(subject, '.')+1:]); ok {
					names[queue] = true
				}
			}
		}
		return err
	})
	l.mu.Lock()
	defer l.mu.Unlock()
	if err == nil {
		l.queues = slices.Sorted(maps.Keys(names))
	}
	return slices.Clone(l.queues)
}

// Depth says what a queue holds.
func (l *Log) Depth(queue string) (d spool.Depth, err error) {
	token := tokenOf(queue)
	err = l.ask(func(ctx context.Context) error {
		records, err := subjects(ctx, l.records, l.recordSubject(token))
		if err != nil {
			return err
		}
		letters, err := subjects(ctx, l.letters, l.letterSubject(token))
		if err != nil {
			return err
		}
		d.Records, d.Dead = count(records), count(letters)
		if d.Records == 0 {
			return nil
		}
		oldest, err := l.records.GetMsg(ctx, 1, jetstream.WithGetMsgSubject(l.recordSubject(token)))
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			return nil // it has been acked meanwhile
		}
		if err == nil {
			d.Oldest = parseTime(oldest.Header, headerArrival, oldest.Time)
		}
		return err
	})
	return d, err
}

func count(subjects map[string]uint64) (total int) {
	for _, n := range subjects {
		total += int(n) //nolint:gosec // G115: there are not that many
	}
	return total
}

// Size is how many bytes the records take in the stream, counted once for all
// replicas, and how many they may. Dead letters do not count: they have as much
// room of their own. It is up to a second old; while the cluster cannot be
// asked, it is what it was before.
func (l *Log) Size() (used, limit int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if time.Since(l.measured) < sizeAge {
		return l.used, l.limit
	}
	l.measured = time.Now() // others do not wait: they get the figures of before
	l.mu.Unlock()
	var state *jetstream.StreamInfo
	err := l.ask(func(ctx context.Context) (err error) {
		state, err = l.records.Info(ctx)
		return err
	})
	l.mu.Lock()
	if err == nil {
		l.used, l.limit = int64(state.State.Bytes), state.Config.MaxBytes //nolint:gosec // G115: it is at most MaxBytes
	}
	return l.used, l.limit
}

// SetLimit changes how many bytes the records may take, and how many the dead
// letters.
func (l *Log) SetLimit(bytes int64) error {
	return l.ask(func(ctx context.Context) error {
		for _, stream := range []jetstream.Stream{l.records, l.letters} {
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
		l.measured = time.Time{}
		l.mu.Unlock()
		return nil
	})
}

// messages calls yield for up to limit messages of a subject, behind an ID. Each
// costs a question of its own.
func (l *Log) messages(stream *jetstream.Stream, subject string, after spool.ID, limit int, yield func(*jetstream.RawStreamMsg)) error {
	for size := 0; limit > 0 && size < spool.MaxListed; limit-- {
		var found *jetstream.RawStreamMsg
		err := l.ask(func(ctx context.Context) (err error) {
			found, err = (*stream).GetMsg(ctx, uint64(after)+1, jetstream.WithGetMsgSubject(subject))
			if errors.Is(err, jetstream.ErrMsgNotFound) {
				return nil
			}
			return err
		})
		if err != nil || found == nil {
			return err
		}
		after = spool.ID(found.Sequence)
		size += len(found.Data)
		yield(found)
	}
	return nil
}

// Records returns records that are to be delivered, without taking them. It
// does not know how often they were taken. Data is nil if it cannot be
// decrypted.
func (l *Log) Records(queue string, after spool.ID, limit int) ([]spool.Entry, error) {
	var entries []spool.Entry
	err := l.messages(&l.records, l.recordSubject(tokenOf(queue)), after, limit, func(m *jetstream.RawStreamMsg) {
		entries = append(entries, spool.Entry{ID: spool.ID(m.Sequence), Record: l.record(queue, m)})
	})
	return entries, err
}

// Letters returns dead letters. Data is nil if it cannot be decrypted.
func (l *Log) Letters(queue string, after spool.ID, limit int) ([]spool.Letter, error) {
	var letters []spool.Letter
	err := l.messages(&l.letters, l.letterSubject(tokenOf(queue)), after, limit, func(m *jetstream.RawStreamMsg) {
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

// record is what a message holds.
func (l *Log) record(queue string, m *jetstream.RawStreamMsg) spool.Record {
	data, err := l.unseal(queue, m.Header, m.Data)
	if err != nil {
		data = nil
	}
	return spool.Record{Arrival: parseTime(m.Header, headerArrival, m.Time), Data: data}
}

// Replay makes dead letters records again. If it fails between the two steps of
// one of them, both are there; replaying that within a minute makes no second
// record.
func (l *Log) Replay(queue string, ids ...spool.ID) (int, error) {
	return l.each(queue, ids, func(letter *jetstream.RawStreamMsg) error {
		m := &nats.Msg{
			Subject: l.recordSubject(tokenOf(queue)),
			Data:    letter.Data,
			Header: nats.Header{
				headerArrival:         {letter.Header.Get(headerArrival)},
				jetstream.MsgIDHeader: {"replay-" + strconv.FormatUint(letter.Sequence, 10)},
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

// each does something with dead letters, and deletes them. It counts them.
func (l *Log) each(queue string, ids []spool.ID, do func(*jetstream.RawStreamMsg) error) (n int, err error) {
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
			if err := do(letter); err != nil {
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
	return n, nil
}
