package disk

import (
	"cmp"
	"math/bits"
	"slices"
	"time"

	"github.com/td-postback/gateway/spool"
)

// This file notes which records of a segment were delivered and are still in its file.
//
// An ack deletes its record, and bbolt writes a page again for each commit that takes
// a record out of it: so the acks of neighbours go to disk together, and those of
// whole pages cost next to nothing. Neighbours make a group, which goes when its first
// ack is due. Groups come one after the other, as their records did: no commit has to
// take a second's acks along, with the callers of its records waiting.

const (
	// groupSize is how many IDs a group has: some dozen pages of small records.
	groupSize = 512

	// maxAcksAtOnce is how many acks go to disk at once, if others are not due to.
	maxAcksAtOnce = 4096
)

// acks are the records of a segment that were delivered, but are still in the file.
// The zero acks are none.
type acks struct {
	groups []*ackGroup // by their IDs; none is empty
	count  int
}

// ackGroup is the acks of neighbours.
type ackGroup struct {
	first spool.ID // a multiple of groupSize
	bits  [groupSize / 64]uint64
	count int
	due   time.Time // when they go to disk; zero while they do
}

// groupOf finds the place of an ID's group, and whether it is there.
func (a *acks) groupOf(id spool.ID) (i int, found bool) {
	first := id &^ (groupSize - 1)
	if n := len(a.groups); n > 0 && a.groups[n-1].first <= first { // mostly
		return n - 1 + cmp.Compare(first, a.groups[n-1].first), a.groups[n-1].first == first
	}
	return slices.BinarySearchFunc(a.groups, first, func(g *ackGroup, first spool.ID) int { return cmp.Compare(g.first, first) })
}

// bit is the place of an ID in its group.
func bit(id spool.ID) (word int, mask uint64) {
	at := id % groupSize
	return int(at / 64), 1 << (at % 64)
}

// has reports whether a record was delivered.
func (a *acks) has(id spool.ID) bool {
	i, found := a.groupOf(id)
	word, mask := bit(id)
	return found && a.groups[i].bits[word]&mask != 0
}

// add notes that a record was delivered. It reports whether its group is due earlier
// now.
func (a *acks) add(id spool.ID, due time.Time) (earlier bool) {
	i, found := a.groupOf(id)
	if !found {
		a.groups = slices.Insert(a.groups, i, &ackGroup{first: id &^ (groupSize - 1)})
	}
	g := a.groups[i]
	word, mask := bit(id)
	if g.bits[word]&mask != 0 {
		return false
	}
	g.bits[word] |= mask
	g.count++
	a.count++
	if earlier = g.due.IsZero() || due.Before(g.due); earlier {
		g.due = due
	}
	return earlier
}

// ids appends the IDs of a group.
func (g *ackGroup) ids(ids []spool.ID) []spool.ID {
	for word, set := range g.bits {
		for ; set != 0; set &= set - 1 {
			ids = append(ids, g.first+spool.ID(64*word+bits.TrailingZeros64(set))) //nolint:gosec // G115: less than groupSize
		}
	}
	return ids
}

// all returns all IDs, in their order.
func (a *acks) all() []spool.ID {
	ids := make([]spool.ID, 0, a.count)
	for _, g := range a.groups {
		ids = g.ids(ids)
	}
	return ids
}

// next is when the next group is due. There must be one.
func (a *acks) next() time.Time {
	first := slices.MinFunc(a.groups, func(a, b *ackGroup) int { return a.due.Compare(b.due) })
	return first.due
}

// due returns the IDs of the groups that are due at a time, in their order, some
// thousand at most.
func (a *acks) due(at time.Time) (ids []spool.ID) {
	for _, g := range a.groups {
		if !g.due.After(at) && len(ids) < maxAcksAtOnce {
			ids = g.ids(ids)
		}
	}
	return ids
}

// begin notes that acks go to disk: the time of those that come meanwhile begins anew.
func (a *acks) begin(ids []spool.ID) { a.setDue(ids, time.Time{}) }

// failed notes that they have not got there.
func (a *acks) failed(ids []spool.ID, now time.Time) { a.setDue(ids, now) }

func (a *acks) setDue(ids []spool.ID, due time.Time) {
	a.eachGroup(ids, func(g *ackGroup, _ []spool.ID) { g.due = due })
}

// remove forgets acks that are on disk.
func (a *acks) remove(ids []spool.ID, now time.Time) {
	a.eachGroup(ids, func(g *ackGroup, ids []spool.ID) {
		for _, id := range ids {
			word, mask := bit(id)
			if g.bits[word]&mask != 0 {
				g.bits[word] &^= mask
				g.count--
				a.count--
			}
		}
		if g.due.IsZero() {
			g.due = now // what did not go along
		}
	})
	a.groups = slices.DeleteFunc(a.groups, func(g *ackGroup) bool { return g.count == 0 })
}

// eachGroup calls do with each group of IDs, which are sorted.
func (a *acks) eachGroup(ids []spool.ID, do func(g *ackGroup, ids []spool.ID)) {
	for len(ids) > 0 {
		end := ids[0] | (groupSize - 1)
		n, _ := slices.BinarySearchFunc(ids, end, func(id, end spool.ID) int {
			if id > end {
				return 1
			}
			return -1
		})
		if i, found := a.groupOf(ids[0]); found {
			do(a.groups[i], ids[:n])
		}
		ids = ids[n:]
	}
}
