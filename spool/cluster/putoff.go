package cluster

import (
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/td-postback/gateway/spool"
)

// This file is about records that were given out and are put back: how often they
// were tried, when they come again, and how others get past them.

const (
	// maxAckPending is how many records of a lane may be with all gateways together,
	// those included that are put off. So many of one account do not keep those
	// behind them. They cost each server 30 MB, and ten times as many some minutes of
	// CPU time and a server that does not answer for seconds.
	maxAckPending = 250_000

	// returns is how many records that are put off come again in a second, of a lane:
	// the servers give them out before others.
	returns = spool.DefaultRate

	// maxTried bounds of how many records it is known how often they were tried.
	maxTried = 100_000

	// A lane is jammed for others than an account when so many records of this have
	// been put off, none taken since, and so many records wait that it has not given
	// out yet.
	jammedAt     = 2000
	jammedBehind = 1000

	// maxJammers bounds how many accounts of a lane are counted.
	maxJammers = 64
)

// putOffs is what is known of records that are put off.
type putOffs struct {
	tries     map[identity]int
	calendars map[string]*calendar // by lane
	jams      map[string]jam       // the same, of lanes with a backlog
}

func newPutOffs() putOffs {
	return putOffs{map[identity]int{}, map[string]*calendar{}, map[string]jam{}}
}

// jam counts the records of a lane that were put off, by account, since one of the
// account was taken.
type jam map[uint32]int

// keeps reports whether the lane is jammed for an account, by others.
func (j jam) keeps(account uint32) bool {
	for other, n := range j {
		if other != account && n >= jammedAt {
			return true
		}
	}
	return false
}

// calendar says how many records come again in which second.
type calendar struct {
	booked map[int64]int
	pruned int64 // seconds before it are not in booked
}

// book finds the first time from at on that has room.
func (c *calendar) book(now, at time.Time) time.Time {
	if second := now.Unix(); second != c.pruned {
		for s := range c.booked {
			if s < second {
				delete(c.booked, s)
			}
		}
		c.pruned = second
	}
	second := at.Unix()
	for c.booked[second] >= returns {
		second++
	}
	room := time.Unix(second, 0).Add(time.Duration(c.booked[second]) * time.Second / returns)
	c.booked[second]++
	if room.After(at) {
		return room
	}
	return at
}

// laneOf is the lane of a message of this package.
func laneOf(msg jetstream.Msg) string {
	subject := msg.Subject()
	return subject[strings.LastIndexByte(subject, '.')+1:]
}

// putOff notes that a record is put back, with 0 because it was not tried. It says
// for how long.
func (l *Log) putOff(e spool.Entry, msg jetstream.Msg, after time.Duration) time.Duration {
	if after <= 0 {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.tried(identityOf(e), e.Tries)
		return 0
	}
	lane, account, behind := laneOf(msg), l.accountOf(e.Data), uint64(0)
	if meta, err := msg.Metadata(); err == nil { // always: it was given out
		behind = meta.NumPending
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tried(identityOf(e), e.Tries+1)
	l.passed(lane, behind)
	if j := l.jams[lane]; j != nil {
		if len(j) >= maxJammers {
			clear(j)
		}
		j[account]++
	}
	c := l.calendars[lane]
	if c == nil {
		c = &calendar{booked: map[int64]int{}}
		l.calendars[lane] = c
	}
	now := time.Now()
	return c.book(now, now.Add(after)).Sub(now)
}

// tried notes how often a record was tried. l.mu is held.
func (l *Log) tried(id identity, tries int) {
	if tries == 0 {
		return
	}
	if len(l.tries) >= maxTried {
		clear(l.tries)
	}
	l.tries[id] = tries
}

// passed notes how many records a lane has not given out yet. l.mu is held.
func (l *Log) passed(lane string, behind uint64) {
	switch {
	case behind < jammedBehind:
		delete(l.jams, lane)
	case l.jams[lane] == nil:
		l.jams[lane] = jam{}
	}
}

// taken notes that v2 has taken a record: its account jams nothing.
func (l *Log) taken(e spool.Entry, msg jetstream.Msg) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if j := l.jams[laneOf(msg)]; len(j) > 0 {
		delete(j, l.accountOf(e.Data))
	}
}

// accountOf is the account of a record, as a number that few share.
func (l *Log) accountOf(data []byte) uint32 {
	if l.config.Account == nil {
		return 0
	}
	return hashOf(l.config.Account(data))
}
