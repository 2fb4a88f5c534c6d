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

	// A lane is jammed for an account when so many records wait that it has not given
	// out yet, and of what it has given out since, so many at least, less than half is
	// the account's. It does not matter what v2 says: of an account that it limits it
	// takes some records, too.
	jammedBehind = 1000
	jammedAt     = 4 // as many as a lane gives out first

	// maxJammers is about how many accounts of a lane are counted.
	maxJammers = 64
)

// putOffs is what is known of records that are put off.
type putOffs struct {
	tries     map[identity]int
	calendars map[string]*calendar // by lane
	jams      map[string]jam       // the same, of those with a backlog
	looked    map[string]bool      // into which lanes this gateway has looked
}

func newPutOffs() putOffs {
	return putOffs{map[identity]int{}, map[string]*calendar{}, map[string]jam{}, map[string]bool{}}
}

// jam counts the records that a lane with a backlog has given out, by account.
type jam map[uint32]int

// keeps reports whether the lane is jammed for an account, by others.
func (j jam) keeps(account uint32) bool {
	all := 0
	for _, n := range j {
		all += n
	}
	return all >= jammedAt && 2*j[account] < all
}

// count counts a record of an account. Those with many stay known, however many have
// few.
func (j jam) count(account uint32) {
	if _, known := j[account]; !known && len(j) >= maxJammers {
		for other := range j {
			if j[other] /= 2; j[other] == 0 {
				delete(j, other)
			}
		}
	}
	j[account]++
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
	lane := laneOf(msg)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tried(identityOf(e), e.Tries+1)
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

// given notes what a lane gives out, with so many records behind it that it has not
// given out yet.
func (l *Log) given(lane string, data []byte, behind uint64) {
	account := l.accountOf(data)
	l.mu.Lock()
	defer l.mu.Unlock()
	if behind < jammedBehind {
		delete(l.jams, lane)
		return
	}
	if l.jams[lane] == nil {
		l.jams[lane] = jam{}
	}
	l.jams[lane].count(account)
}

// look notes that a lane has said what is in it.
func (l *Log) look(lane string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.looked[lane] = true
}

// accountOf is the account of a record, as a number that few share.
func (l *Log) accountOf(data []byte) uint32 {
	if l.config.Account == nil {
		return 0
	}
	return hashOf(l.config.Account(data))
}
