package migration

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/td-postback/gateway/postback"
)

// This file tells of keys that are new, and of those that have fallen silent. It knows
// no more of keys than the rows do. So its memory is bounded as theirs is, a restart
// forgets nothing, and it costs a call nothing, with however many keys somebody comes.

const (
	// learnFor is how long a report takes all keys for known, from its first event on:
	// each is new to an empty one. In a day, all have come that send every day.
	learnFor = 24 * time.Hour

	// silentAfter is how long a key that came every day must not come to be silent: a
	// day, and so long may one be late that comes once a day.
	silentAfter = 30 * time.Hour
)

// eachDay has a bit for each of seven days.
const eachDay = 1<<7 - 1

// KeySignals is what the keys of a report tell at a time.
type KeySignals struct {
	New      []Sighting // those that had no row before
	Silenced []Sighting // those that have fallen silent since the last time
	Silent   int        // how many are silent now

	// Full means that rows had to give way to others: a key that is new may have been
	// here before, and one may have fallen silent that had no row any more.
	Full bool
}

// Sighting is a key, and the table for which it was seen first.
type Sighting struct {
	Key             string // its fingerprint
	Database, Table string
	First, Last     time.Time // when it was seen
}

// Signals is what the keys tell since it was called before. The caller calls it after
// Open, and after each Save.
//
// A key is new if it has a row, and had none the last time, nor in the file. None is
// while the report is younger than a day. A key is silent if it was seen on each of seven
// days, by UTC, and then not for 30 hours. It is that until it comes again, or has not for
// 7 days. Calls that the gateway refuses since it does not know their key show no key.
func (r *Report) Signals(now time.Time) KeySignals {
	r.store.mu.Lock() // of known, too
	defer r.store.mu.Unlock()
	keys, began, full := r.keys()
	s := KeySignals{Full: full}
	learns := now.Add(-learnFor).Unix() < began
	known := make(map[string]bool, len(keys))
	for key, k := range keys {
		wasSilent, wasKnown := r.known[key]
		silent := k.silent(now)
		known[key] = silent
		if !wasKnown && !learns {
			s.New = append(s.New, k.sighting())
		}
		if silent {
			s.Silent++
		}
		if silent && !wasSilent {
			s.Silenced = append(s.Silenced, k.sighting())
		}
	}
	r.known = known
	slices.SortFunc(s.New, Sighting.compare)
	slices.SortFunc(s.Silenced, Sighting.compare)
	return s
}

func (s Sighting) compare(other Sighting) int {
	return cmp.Or(s.First.Compare(other.First), strings.Compare(s.Key, other.Key))
}

// know notes the keys of rows that were in a file: they are not new. Those that were
// silent when it was written were told of then.
func (r *Report) know(rows map[string]*rowData) {
	keys, written := keysSeen{}, int64(0)
	for row, d := range rows {
		keys.add(row, d)
		written = max(written, d.last)
	}
	if r.known == nil {
		r.known = make(map[string]bool, len(keys))
	}
	for key, k := range keys {
		r.known[key] = k.silent(timeOf(written))
	}
}

// keys is when each key was seen, when the report began, and whether rows had to give way
// to others.
func (r *Report) keys() (keys keysSeen, began int64, full bool) {
	r.mu.RLock()
	rows := r.order.all()
	began, full = r.others.first, r.others.missed > 0
	r.mu.RUnlock()
	keys = make(keysSeen, len(rows))
	for _, one := range rows { // one at a time: callers do not wait for all of it
		one.mu.Lock()
		keys.add(one.key, &one.data)
		if first := one.data.first; first != 0 && (began == 0 || first < began) {
			began = first
		}
		one.mu.Unlock()
	}
	return keys, began, full
}

// keysSeen is when keys were seen, by their fingerprints.
type keysSeen map[string]keySeen

// keySeen is when a key was seen, by all its rows.
type keySeen struct {
	row         string // the key of the row that was first
	first, last int64  // UNIX seconds
	day         int64  // the last on which it was, since 1970
	days        uint64 // a bit for each day on which it was: the lowest for the last
}

// add adds a row.
func (keys keysSeen) add(row string, d *rowData) {
	key, _, _ := strings.Cut(row, string(rune(keySeparator)))
	if key == "" || d.first == 0 || d.isUnknown() { // 0 until the clock can be right
		return
	}
	k := keySeen{row: row, first: d.first, last: d.last}
	k.day, k.days = d.hours.days()
	if other, again := keys[key]; again {
		k = k.with(other)
	}
	keys[key] = k
}

// isUnknown reports whether the gateway has refused the row's key each time, as one that
// the operator has not named.
func (d *rowData) isUnknown() bool {
	return len(d.results) == 1 && d.results[0].name == postback.UnknownKey.Code
}

// with is when a key was seen by these rows or the others.
func (k keySeen) with(other keySeen) keySeen {
	if k.day < other.day {
		k, other = other, k
	}
	if other.first < k.first {
		k.first, k.row = other.first, other.row
	}
	k.last = max(k.last, other.last)
	k.days |= other.days << (k.day - other.day)
	return k
}

// silent reports whether the key is.
func (k keySeen) silent(now time.Time) bool {
	since := now.Sub(timeOf(k.last))
	return k.days&eachDay == eachDay && silentAfter <= since && since < leftFor
}

func (k keySeen) sighting() Sighting {
	parts := partsOf(k.row)
	return Sighting{parts[0], parts[1], parts[2], timeOf(k.first), timeOf(k.last)}
}
