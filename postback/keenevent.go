package postback

import (
	"bytes"
	"encoding/hex"
	"strconv"
	"time"
)

// This file makes of an event of a mobile SDK or a script what v2 gets of it. Its
// members stay as they are, but for those that the SDKs add:
//
//	keen    its timestamp is the time of the event, by the device's clock
//	#UUID   by which v2 drops the event when it comes again
//	#SSUT   true: the time is the gateway's; a name: that column gets it

// keenNamespace is the namespace of the UUIDs of events whose #UUID is none.
var keenNamespace = []byte{0x43, 0x70, 0x73, 0x57, 0xa5, 0x36, 0x49, 0x28, 0xb3, 0x8b, 0x82, 0x7d, 0x9c, 0x4c, 0xea, 0x89}

// maxKeenAdded is the most bytes that an event grows by, without the name of the
// column that gets the arrival.
const maxKeenAdded = maxUUIDMember + 2*maxTimeMember

// keenEvent is an event as far as it has been read, in pieces of its body.
type keenEvent struct {
	kept    []span // the members that go on, in runs of neighbours
	size    int    // of kept and what will be around them, in bytes
	deepest int    // how many brackets are open at a time in what goes on

	keen, uuid, ssut []byte // the values of the SDK's members; the last one of each counts

	column []byte // that gets the arrival, between its quotes

	fillsIP, fillsGlobalID bool   // columns that held their own names are to be filled in
	filled                 []byte // they, each with a comma before it

	ownUUID       bool // it has a column uuid
	ownRecordTime bool // it has a column td_record_time
	times         int  // how many columns time it has
	oddTime       bool // they are not one whole number of UNIX seconds

	seconds int64 // the time of the event; -1 if the device does not say it
}

// span is a piece of a text.
type span struct{ from, to int }

// read reads the event at which v is.
func (e *keenEvent) read(v *values, arrival time.Time) {
	start := v.at
	e.scan(v, nil, arrival)
	if isString(e.ssut) && len(e.ssut) > MaxBody { // no record has room for its column
		e.size += len(e.ssut)
		return
	}
	if isString(e.ssut) && len(e.ssut) > len(`""`) && PlausibleTime(arrival) {
		v.at = start
		e.scan(v, inside(e.ssut), arrival) // now without the column that gets the arrival
	}
	e.seconds = -1
	if string(e.ssut) == "true" {
		return
	}
	at, ok := keenTime(e.keen)
	if ok && at.Unix() >= 0 && !(PlausibleTime(arrival) && at.After(arrival.Add(maxAhead))) {
		e.seconds = at.Unix()
	}
}

// scan goes through the members. column is the one that gets the arrival: what has
// its name already does not go on.
func (e *keenEvent) scan(v *values, column []byte, arrival time.Time) {
	*e = keenEvent{kept: e.kept[:0], filled: e.filled[:0], size: len("{}") - len(","), deepest: 1, column: column}
	drop := ""
	if column != nil {
		drop = jsonText(column)
		e.note(column, strconv.AppendInt(nil, arrival.Unix(), 10))
	}
	joined := false // to the member before
	for v.open(); v.more('}'); {
		start := v.at
		name := v.name()
		value, depth := v.skip()
		if e.isOfSDK(name, value) || column != nil && isColumn(name, drop) || e.isPlaceholder(name, value) {
			joined = false
			continue
		}
		e.deepest = max(e.deepest, depth+1)
		e.note(name, value)
		if joined {
			run := &e.kept[len(e.kept)-1]
			e.size += v.at - run.to
			run.to = v.at
		} else if e.size <= MaxBody {
			e.kept = append(e.kept, span{start, v.at})
			e.size += v.at - start + len(",")
			joined = true
		}
	}
}

// isOfSDK reads a member of the SDK's. It reports whether it is one.
func (e *keenEvent) isOfSDK(name, value []byte) bool {
	switch {
	case len(name) != len("keen") && len(name) != len("#UUID") && bytes.IndexByte(name, '\\') < 0:
		return false
	case spells(name, "keen", false):
		e.keen = value
	case spells(name, "#UUID", false):
		e.uuid = value
	case spells(name, "#SSUT", false):
		e.ssut = value
	default:
		return false
	}
	return true
}

// isPlaceholder reads a member that held its own name, for the server to fill it in. It
// reports whether it is one.
func (e *keenEvent) isPlaceholder(name, value []byte) bool {
	if len(name) == 0 || name[0] != 't' && name[0] != '\\' || !isString(value) {
		return false
	}
	switch placeholderIn(name, inside(value)) {
	case "":
		return false
	case "td_ip":
		e.fillsIP = true
	case "td_global_id":
		e.fillsGlobalID = true
	}
	return true
}

// fill fills in what held its own name. Without a value there is no column.
func (e *keenEvent) fill(from *Caller) {
	if e.fillsIP {
		e.filled = appendText(e.filled, `,"td_ip":"`, from.IP)
	}
	if e.fillsGlobalID && from.GlobalID != "" {
		e.filled = appendText(e.filled, `,"td_global_id":"`, from.GlobalID)
	}
}

func appendText(dst []byte, before, text string) []byte {
	return append(appendEscaped(append(dst, before...), text), '"')
}

// note notes a column that v2 may read. Names compare without case, as columns do
// there.
func (e *keenEvent) note(name, value []byte) {
	switch {
	case len(name) != len("uuid") && len(name) != len("td_record_time") && bytes.IndexByte(name, '\\') < 0:
	case spells(name, "uuid", true):
		e.ownUUID = true
	case spells(name, "td_record_time", true):
		e.ownRecordTime = true
	case spells(name, "time", true):
		e.times++
		e.oddTime = e.times > 1 || !isSeconds(value) || !spells(name, "time", false)
	}
}

// isSeconds reports whether a value is a whole number of UNIX seconds, and not of
// milliseconds.
func isSeconds(value []byte) bool {
	return len(value) <= len("9999999999") && hasOnly(string(value), isDigit)
}

// mustGoAlone reports whether v2 would not take the same from a batch, or perhaps
// not take it.
func (e *keenEvent) mustGoAlone() bool { return e.ownUUID || e.oddTime || e.deepest > maxNesting }

// appendRecord appends the record of a batch.
func (e *keenEvent) appendRecord(dst []byte, text []byte, r *KeenReader) []byte {
	dst = e.appendMembers(dst, text)
	if e.seconds >= 0 && e.times == 0 {
		dst = appendNumber(dst, []byte("time"), e.seconds)
	}
	dst = e.appendColumn(dst, r.Arrival)
	dst = appendName(dst, []byte("uuid"))
	dst = append(dst, '"')
	dst = appendUUID(dst, e.uuidOr(r.Random))
	return append(dst, `"}`...)
}

// appendAlone appends the body of a request of its own.
func (e *keenEvent) appendAlone(dst []byte, text []byte, arrival time.Time) []byte {
	dst = e.appendMembers(dst, text)
	if e.seconds >= 0 && (e.times == 0 || e.oddTime) && !e.ownRecordTime {
		dst = appendNumber(dst, []byte("td_record_time"), e.seconds)
	}
	return append(e.appendColumn(dst, arrival), '}')
}

// appendMembers opens an object and appends the members that go on.
func (e *keenEvent) appendMembers(dst []byte, text []byte) []byte {
	dst = append(dst, '{')
	for i, run := range e.kept {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(dst, text[run.from:run.to]...)
	}
	if len(e.kept) == 0 && len(e.filled) > 0 {
		return append(dst, e.filled[len(","):]...)
	}
	return append(dst, e.filled...)
}

func (e *keenEvent) appendColumn(dst []byte, arrival time.Time) []byte {
	if e.column == nil {
		return dst
	}
	return appendNumber(dst, e.column, arrival.Unix())
}

// appendNumber appends a member to an object that is not closed.
func appendNumber(dst []byte, name []byte, n int64) []byte {
	return strconv.AppendInt(appendName(dst, name), n, 10)
}

func appendName(dst []byte, name []byte) []byte {
	if dst[len(dst)-1] != '{' {
		dst = append(dst, ',')
	}
	dst = append(append(dst, '"'), name...)
	return append(dst, `":`...)
}

// uuidOr returns the event's UUID, one made from what stands in its place, or, if
// there is nothing, a random one.
func (e *keenEvent) uuidOr(random func() [16]byte) [16]byte {
	text := e.uuid
	if isString(text) {
		text = inside(text)
		if uuid, ok := parseUUID(text); ok {
			return uuid
		}
		if len(text) <= maxKeenText { // a longer one is made from as it is spelled
			text = []byte(jsonText(text))
		}
	}
	if len(text) == 0 || string(text) == "null" {
		return random()
	}
	if uuid, ok := parseUUID(text); ok {
		return uuid
	}
	return hashUUID(keenNamespace, text)
}

// parseUUID reads a UUID's text (RFC 9562 section 4), in any case.
func parseUUID(text []byte) (uuid [16]byte, ok bool) {
	if len(text) != len("00000000-0000-0000-0000-000000000000") {
		return uuid, false
	}
	at, n := 0, 0
	for _, end := range [...]int{8, 13, 18, 23, 36} {
		if at > 0 {
			if text[at] != '-' {
				return uuid, false
			}
			at++
		}
		read, err := hex.Decode(uuid[n:], text[at:end])
		if err != nil {
			return uuid, false
		}
		n += read
		at = end
	}
	return uuid, true
}

// keenTime reads the member timestamp of a value of keen. The SDKs write it as in
// RFC 3339, some of them without the colon in the offset, or as in RFC 1123.
func keenTime(keen []byte) (at time.Time, ok bool) {
	if len(keen) == 0 || keen[0] != '{' {
		return at, false
	}
	var value []byte
	all := newMembers(keen)
	for m, more := all.next(); more; m, more = all.next() {
		if spells(keen[m.name:m.nameEnd], "timestamp", false) {
			value = bytes.Trim(keen[m.value:m.end], jsonSpace)
		}
	}
	if !isString(value) || len(value) > maxKeenText {
		return at, false
	}
	text := inside(value)
	if bytes.IndexByte(text, '\\') >= 0 {
		text = []byte(jsonText(text))
	}
	var room [len("2006-01-02T15:04:05.000000000+09:00")]byte
	strict := text
	if n := len(text); n > len("+0900") && n < len(room) && (text[n-5] == '+' || text[n-5] == '-') {
		strict = append(append(append(room[:0], text[:n-2]...), ':'), text[n-2:]...)
	}
	if at.UnmarshalText(strict) == nil {
		return at, true
	}
	for _, zone := range [...]string{"GMT", "UTC", "-0700"} {
		if at, err := time.Parse("Mon, _2 Jan 2006 15:04:05 "+zone, string(text)); err == nil {
			return at, true
		}
	}
	return at, false
}

// isString reports whether a JSON value is a string.
func isString(value []byte) bool { return len(value) > 0 && value[0] == '"' }

// inside is what stands between the quotes of a string.
func inside(value []byte) []byte { return value[1 : len(value)-1] }

// isColumn reports whether the inside of a name is of this column: v2 lowers ASCII
// letters.
func isColumn(name []byte, column string) bool {
	if len(name) > len(`\u0000`)*len(column) {
		return false
	}
	if bytes.IndexByte(name, '\\') >= 0 {
		name = []byte(jsonText(name))
	}
	if len(name) != len(column) {
		return false
	}
	for i := range name {
		if lower(name[i]) != lower(column[i]) {
			return false
		}
	}
	return true
}
