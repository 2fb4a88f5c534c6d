package postback

import (
	"bytes"
	"encoding/json"
	"strconv"
)

// This file gives a record that v2 gets later the time at which it came to the
// gateway.

// RecordTime says where the time of a kept record comes from.
type RecordTime uint8

// The sources of a time.
const (
	TimeAdded    RecordTime = iota // the gateway has added the arrival
	TimeOwn                        // the caller has sent one
	TimeNoObject                   // none was added: the body is not one JSON object, or must stay as it is
)

// RecordTimeNames has the names in metrics and logs.
var RecordTimeNames = [...]string{"added", "own", "no_object"}

// String is the name in metrics and logs.
func (t RecordTime) String() string { return RecordTimeNames[t] }

// maxTimeMember is the most bytes that timeMember returns.
const maxTimeMember = len(`,"td_record_time":`) + len("-9223372036854775808")

// timeMember appends to dst the member that gives a body its time:
// td_record_time, the arrival in UNIX seconds. The member goes into the body at
// end, behind all others. A body that is not one JSON object, or that has a
// member td_record_time or time, gets none.
func timeMember(dst, body []byte, arrival int64) (member []byte, end int, timed RecordTime) {
	switch {
	case !startsObject(body), !json.Valid(body):
		return dst, 0, TimeNoObject
	case hasTime(body):
		return dst, 0, TimeOwn
	}
	end = len(bytes.TrimRight(body, jsonSpace)) - len("}")
	if members := body[bytes.IndexByte(body, '{')+1 : end]; len(bytes.TrimLeft(members, jsonSpace)) > 0 {
		dst = append(dst, ',')
	}
	dst = append(dst, `"td_record_time":`...)
	return strconv.AppendInt(dst, arrival, 10), end, TimeAdded
}

// hasTime reports whether a body, which is one valid JSON object, has a member
// td_record_time or time. Those of objects inside do not count.
func hasTime(body []byte) bool {
	depth, name := 0, false // name: the next string is a member's name
	for i := 0; i < len(body); i++ {
		switch body[i] {
		case '{', '[':
			depth++
			name = depth == 1
		case '}', ']':
			depth--
		case ',':
			name = depth == 1
		case '"':
			text := stringInside(body[i+1:])
			if name && (spells(text, "td_record_time") || spells(text, "time")) {
				return true
			}
			name = false
			i += len(text) + 1
		}
	}
	return false
}

// stringInside cuts text before the quote that ends a JSON string.
func stringInside(text []byte) []byte {
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

// spells reports whether the inside of a JSON string means a name of small
// letters and underscores. JSON has one escape for these: \u00 and two digits.
func spells(text []byte, name string) bool {
	for i := range len(name) {
		switch {
		case len(text) > 0 && text[0] == name[i]:
			text = text[1:]
		case len(text) >= 6 && string(text[:4]) == `\u00` && unhex(text[4])<<4|unhex(text[5]) == name[i]:
			text = text[6:]
		default:
			return false
		}
	}
	return len(text) == 0
}
