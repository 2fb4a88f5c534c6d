package postback

import (
	"bytes"
	"strconv"
	"time"
)

// This file gives a record that v2 gets later the time at which it came to the
// gateway.

// RecordTime says where the time of a kept record comes from.
type RecordTime uint8

// The sources of a time.
const (
	TimeAdded    RecordTime = iota // the gateway has written the arrival
	TimeOwn                        // the caller has sent one that v2 can use
	TimeNoObject                   // none was written: the body is not one JSON object, or must stay as it is
	TimeUnusable                   // none was written: the body has one that v2 cannot use, or the gateway's clock is wrong
)

// RecordTimeNames has the names in metrics and logs.
var RecordTimeNames = [...]string{"added", "own", "no_object", "unusable"}

// String is the name in metrics and logs.
func (t RecordTime) String() string { return RecordTimeNames[t] }

// v2 ignores a time that is older than maxAge or more than maxAhead in the
// future, by its clock.
const (
	maxAge   = 7 * 24 * time.Hour
	maxAhead = 3 * 24 * time.Hour
)

// firstTime is before this source was written.
var firstTime = time.Date(2026, time.January, 1, 0, 0, 0, 0, time.UTC)

// PlausibleTime reports whether a clock that says this time can be right: a
// machine without a clock of its own begins at 1970, or at its last shutdown.
func PlausibleTime(t time.Time) bool { return !t.Before(firstTime) }

// maxTimeMember is the most bytes that a body grows by.
const maxTimeMember = len(`,"td_record_time":`) + len("-9223372036854775808")

// timeChange is how a body gets its time, if timed is TimeAdded: text goes in
// the place of body[from:to].
type timeChange struct {
	text     []byte
	from, to int
	timed    RecordTime
}

// timeChangeOf finds out whose time a body has, and appends to dst what gives it
// the arrival in UNIX seconds: a member td_record_time behind all others. v2
// prefers td_record_time to time, so that one counts if both are there. What the
// caller has written stays. Only in a record that the gateway has made of a query
// does the arrival take the place of a td_record_time that v2 cannot use, and is
// time, which is a string there, a column like others.
func timeChangeOf(dst, body []byte, arrival time.Time, fromQuery bool) timeChange {
	if !startsObject(body) || !validJSON(body) {
		return timeChange{timed: TimeNoObject}
	}
	own, plain := findTimes(body)
	if own.end == 0 && !fromQuery {
		own = plain
	}
	switch found := own.end > 0; {
	case found && usableTime(body[own.value:own.end], arrival):
		return timeChange{timed: TimeOwn}
	case found && !fromQuery, !PlausibleTime(arrival):
		return timeChange{timed: TimeUnusable}
	case found:
		return timeChange{strconv.AppendInt(dst, arrival.Unix(), 10), own.value, own.end, TimeAdded}
	}
	end, empty := objectEnd(body)
	if !empty {
		dst = append(dst, ',')
	}
	dst = append(dst, `"td_record_time":`...)
	return timeChange{strconv.AppendInt(dst, arrival.Unix(), 10), end, end, TimeAdded}
}

// usableTime reports whether v2 can use the value of a member as the time of a
// record that comes now: a whole number of UNIX seconds within its window. What
// is not known to be taken, as digits in a string or a fraction, does not count.
// With a clock that is wrong there is no window, and any time since firstTime
// counts.
func usableTime(value []byte, now time.Time) bool {
	value = bytes.Trim(value, jsonSpace)
	if len(value) > len("9999999999") {
		return false // or it is milliseconds
	}
	seconds, err := strconv.ParseInt(string(value), 10, 64)
	if err != nil {
		return false
	}
	at := time.Unix(seconds, 0)
	if !PlausibleTime(now) {
		return PlausibleTime(at)
	}
	now = now.Truncate(time.Second)
	return !at.Before(now.Add(-maxAge)) && !at.After(now.Add(maxAhead))
}

// maxTimeLooked is the largest body in which TimeIgnored looks for a time, in bytes.
const maxTimeLooked = 64 << 10

// TimeIgnored reports whether v2 ignores the td_record_time of a request that comes
// now, as none that it can use. Of a body that is compressed or large, nobody knows.
func (q *Request) TimeIgnored(now time.Time) bool {
	if len(q.More) > 0 || len(q.Body) > maxTimeLooked || q.Compressed() || !PlausibleTime(now) || !startsObject(q.Body) || !validJSON(q.Body) {
		return false
	}
	own, _ := findTimes(q.Body)
	return own.end > 0 && !usableTime(q.Body[own.value:own.end], now)
}

// objectEnd finds the bracket that ends a body, which is one valid JSON object, and
// says whether it has no member.
func objectEnd(body []byte) (end int, empty bool) {
	end = len(bytes.TrimRight(body, jsonSpace)) - len("}")
	inside := body[bytes.IndexByte(body, '{')+1 : end]
	return end, len(bytes.TrimLeft(inside, jsonSpace)) == 0
}

// member is where a member of an object is in a body.
type member struct {
	name, nameEnd int // of the inside of its name, between the quotes
	value, end    int
}

// members goes through the members of a body, which is one valid JSON object. Those
// of objects inside do not count.
type members struct {
	body    []byte
	at      int
	deepest int // how many brackets were open at a time, so far
}

func newMembers(body []byte) members {
	return members{body: body, at: bytes.IndexByte(body, '{') + 1, deepest: 1}
}

// next returns the next member, and false behind the last one.
func (m *members) next() (next member, ok bool) {
	depth, deepest := 1, m.deepest
	for i := m.at; i < len(m.body); i++ {
		switch c := m.body[i]; c {
		case '{', '[':
			depth++
			deepest = max(deepest, depth)
		case '}', ']', ',':
			if c != ',' {
				depth--
			}
			if next.value > 0 && (depth == 0 || depth == 1 && c == ',') {
				next.end = i
				m.at, m.deepest = i+1, deepest
				return next, true
			}
		case ':':
			if next.value == 0 {
				next.value = i + 1
			}
		case '"':
			end := i + 1 + len(stringInside(m.body[i+1:]))
			if next.value == 0 {
				next.name, next.nameEnd = i+1, end
			}
			i = end
		}
	}
	m.at = len(m.body)
	return member{}, false
}

// findTimes finds the members td_record_time and time of a body, which is one
// valid JSON object. Without one, its end is 0. Of a name that comes twice, the last
// one counts.
func findTimes(body []byte) (recordTime, plain member) {
	all := newMembers(body)
	for m, ok := all.next(); ok; m, ok = all.next() {
		switch name := body[m.name:m.nameEnd]; {
		case spells(name, "td_record_time", false):
			recordTime = m
		case spells(name, "time", false):
			plain = m
		}
	}
	return recordTime, plain
}

// stringInside cuts text before the quote that ends a JSON string.
func stringInside(text []byte) []byte {
	if end := bytes.IndexByte(text, '"'); end >= 0 && bytes.IndexByte(text[:end], '\\') < 0 {
		return text[:end]
	}
	for i := 0; i < len(text); i++ {
		switch text[i] {
		case '"':
			return text[:i]
		case '\\':
			i++
		}
	}
	return text
}

// spells reports whether the inside of a JSON string means a name of small letters
// and underscores, or the same in any case. JSON has one escape for these: \u00 and
// two digits.
func spells(text []byte, name string, anyCase bool) bool {
	for i := range len(name) {
		if len(text) == 0 {
			return false
		}
		c, width := text[0], 1
		if len(text) >= 6 && string(text[:4]) == `\u00` {
			c, width = unhex(text[4])<<4|unhex(text[5]), 6
		}
		if c != name[i] && (!anyCase || lower(c) != name[i]) {
			return false
		}
		text = text[width:]
	}
	return len(text) == 0
}
