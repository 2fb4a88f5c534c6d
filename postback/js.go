package postback

import (
	"bytes"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// This file has the calls of JavaScript SDKs: a record in the query, as base64 of
// JSON, or a body that is one JSON object.

// IsJS reports whether the call is a JavaScript SDK's.
func (c *Call) IsJS() bool { return c.Kind == JSONP || c.Kind == JS }

// jsQuery is what the query of a JavaScript SDK's call says: of each, the first value
// that is not empty.
type jsQuery struct {
	writeKey, apiKey     urlKey
	data, time, callback string // as the query has them
}

// readJSQuery reads the query of a call. What is none of these is nothing: modified,
// say, keeps a cache from answering.
func readJSQuery(query string) (q jsQuery) {
	for param := range strings.SplitSeq(query, "&") {
		name, value, _ := strings.Cut(param, "=")
		switch name = decode(name); {
		case name == "data" && q.data == "":
			q.data = value
		case name == "time" && q.time == "":
			q.time = value
		case name == "callback" && q.callback == "":
			q.callback = value
		case name == APIKeyParam && q.apiKey.none():
			q.apiKey = decodeKey(value)
		case name == WriteKeyParam && q.writeKey.none():
			q.writeKey = decodeKey(value)
		}
	}
	return q
}

// kind tells what kind a call with this query is.
func (q *jsQuery) kind(method string) Kind {
	switch {
	case method != http.MethodPost && method != http.MethodGet:
		return Other
	case method == http.MethodGet && q.data != "":
		return JSONP
	default:
		return JS
	}
}

// SaysTime reports whether the query says a time for the record.
func (c *Call) SaysTime() bool { return c.js.time != "" }

// maxCallback is the longest callback, in bytes.
const maxCallback = 128

// Callback is the function that the answer is to call; empty if the answer is to be
// JSON. It comes back to the caller as a script, so it is nothing but names.
func (c *Call) Callback() (string, *Refusal) {
	name := decode(c.js.callback)
	if name != "" && !validCallback(name) {
		return "", BadCallback
	}
	return name, nil
}

// validCallback reports whether a callback is made of names of JavaScript, joined by
// dots.
func validCallback(name string) bool {
	begins := true // a name
	for i := range len(name) {
		c := name[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', c == '_', c == '$':
			begins = false
		case isDigit(c) && !begins:
		case c == '.' && !begins:
			begins = true
		default:
			return false
		}
	}
	return !begins && len(name) <= maxCallback
}

// DataSize is at least as many bytes as the record in the query has.
func (c *Call) DataSize() int { return (len(c.js.data)/4 + 1) * 3 }

// AppendData appends the record in the query to dst, which is not looked at
// otherwise. It gives up once the record is larger than limit.
func (c *Call) AppendData(dst []byte, limit int) ([]byte, *Refusal) {
	if c.js.data == "" {
		return dst, NoRecord
	}
	start := len(dst)
	dst, ok := appendBase64(dst, c.js.data, start+limit)
	if !ok {
		return dst, BadData
	}
	if size := len(dst) - start; size > limit {
		return dst, TooLarge(int64(size), int64(limit), false)
	}
	return dst, nil
}

// SaysBatch reports whether the caller says that its body is one of v2's batch API. An
// SDK that speaks it does so here, too, if it has the path of an older one: that body
// would become one record with a column events.
func (q *Request) SaysBatch() bool {
	const vendor = "application/vnd.treasuredata."
	return slices.ContainsFunc(q.Header["Content-Type"], func(sent string) bool {
		media := mediaType(sent)
		return len(media) > len(vendor) && strings.EqualFold(media[:len(vendor)], vendor)
	})
}

// notBase64 marks what no digit of base64 is.
const notBase64 = 0xff

// sextets has the values of base64's digits (RFC 4648 section 4), with those of
// its URL alphabet. A space is a `+` that was not percent-encoded.
var sextets = func() (values [256]byte) {
	for i := range values {
		values[i] = notBase64
	}
	for i, c := range []byte("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/") {
		values[c] = byte(i)
	}
	values['-'], values['_'], values[' '] = values['+'], values['/'], values['+']
	return values
}()

// appendBase64 appends what query text says in base64, up to some bytes beyond end.
// Its padding may be missing, and line breaks do not count. It returns false for
// anything else.
func appendBase64(dst []byte, text string, end int) (_ []byte, ok bool) {
	var bits uint32 // of the digits since the last whole three bytes
	digits, padded := 0, false
	for i := 0; i < len(text) && len(dst) <= end; i++ {
		if i+4 <= len(text) && digits == 0 && !padded { // most come in fours
			four := text[i : i+4]
			a, b, c, d := sextets[four[0]], sextets[four[1]], sextets[four[2]], sextets[four[3]]
			if a|b|c|d != notBase64 {
				dst = append(dst, a<<2|b>>4, b<<4|c>>2, c<<6|d)
				i += 3
				continue
			}
		}
		c := text[i]
		if c == '%' && i+2 < len(text) && isHex(text[i+1]) && isHex(text[i+2]) {
			c = unhex(text[i+1])<<4 | unhex(text[i+2])
			i += 2
		}
		value := sextets[c]
		switch {
		case value != notBase64 && !padded:
			bits = bits<<6 | uint32(value)
			if digits++; digits == 4 {
				dst = append(dst, byte(bits>>16), byte(bits>>8), byte(bits)) //nolint:gosec // G115: a byte each
				bits, digits = 0, 0
			}
		case c == '=':
			padded = true
		case c != '\n' && c != '\r':
			return dst, false
		}
	}
	switch digits {
	case 2:
		dst = append(dst, byte(bits>>4))
	case 3:
		dst = append(dst, byte(bits>>10), byte(bits>>2))
	}
	return dst, digits != 1
}

// MendedSize is how many bytes a record has when AppendMended has made it UTF-8.
func MendedSize(record []byte) (size int) {
	for len(record) > 0 {
		r, width := decodeRune(record)
		size += utf8.RuneLen(r)
		record = record[width:]
	}
	return size
}

// AppendMended appends a record to dst as UTF-8. Some SDKs write a character beyond
// U+FFFF as its two surrogates, three bytes each (CESU-8): such a pair becomes the
// character. What else is no UTF-8 becomes U+FFFD: a surrogate that stands alone, and
// each other byte.
func AppendMended(dst, record []byte) []byte {
	for len(record) > 0 {
		r, width := decodeRune(record)
		dst = utf8.AppendRune(dst, r)
		record = record[width:]
	}
	return dst
}

// surrogateSize is how many bytes a surrogate has in CESU-8.
const surrogateSize = 3

// decodeRune decodes the first character, which may be a pair of surrogates.
func decodeRune(text []byte) (r rune, size int) {
	if r, size = utf8.DecodeRune(text); r != utf8.RuneError || size != 1 {
		return r, size
	}
	high, ok := surrogate(text)
	if !ok {
		return utf8.RuneError, 1
	}
	low, ok := surrogate(text[surrogateSize:])
	const firstLow = 0x400 // of the 11 bits in which surrogates differ
	if !ok || high >= firstLow || low < firstLow {
		return utf8.RuneError, surrogateSize
	}
	return 0x10000 + high<<10 + (low - firstLow), 2 * surrogateSize
}

// surrogate returns the last 11 bits of a surrogate that a text begins with.
func surrogate(text []byte) (bits rune, ok bool) {
	if len(text) < surrogateSize || text[0] != 0xed || text[1]&0xe0 != 0xa0 || text[2]&0xc0 != 0x80 {
		return 0, false
	}
	return rune(text[1]&0x1f)<<6 | rune(text[2]&0x3f), true
}

// Filler fills a record in: values of the server's for columns that hold their own
// name, and the time that the query says.
type Filler struct {
	record []byte
	from   Caller
	ip     string // the JSON of from.IP, once it is asked for
	global string // the same of from.GlobalID
	time   string // a member td_record_time with a comma before it; empty for none
	count  int    // of the changes
	filled bool   // one of them is a value of the server's
	size   int    // of the filled record

	few [8]edit // the changes, if they are no more than that: most records are read once
}

// NewFiller looks at what a record needs. The record is UTF-8. It is refused if it is
// not one JSON object, or if it becomes larger than limit.
func (c *Call) NewFiller(record []byte, from Caller, now time.Time, limit int) (Filler, *Refusal) {
	if !startsObject(record) || !validJSON(record) {
		return Filler{}, c.noObject()
	}
	f := Filler{record: record, from: from, size: len(record)}
	if seconds := decode(c.js.time); seconds != "" && hasOnly(seconds, isDigit) && usableTime([]byte(seconds), now) {
		f.time = `,"td_record_time":` + seconds
	}
	edits := f.edits()
	for e, ok := edits.next(); ok; e, ok = edits.next() {
		f.size += len(e.text) - (e.to - e.from)
		f.filled = f.filled || e.to > e.from
		if f.count < len(f.few) {
			f.few[f.count] = e
		}
		f.count++
	}
	if f.size > limit && edits.timed > 0 { // without it, v2 takes the arrival
		f.size -= edits.timed
		f.count--
		f.time = ""
	}
	if f.size > limit {
		return Filler{}, TooLarge(int64(f.size), int64(limit), true)
	}
	return f, nil
}

func (c *Call) noObject() *Refusal {
	if c.InBody {
		return NoObject
	}
	return BadData
}

// Changes reports whether the filled record is another one.
func (f *Filler) Changes() bool { return f.count > 0 }

// Filled reports whether a column that held its own name is filled in, or left out.
func (f *Filler) Filled() bool { return f.filled }

// Size is how many bytes the filled record has.
func (f *Filler) Size() int { return f.size }

// Append appends the filled record to dst.
func (f *Filler) Append(dst []byte) []byte {
	from := 0
	if f.count <= len(f.few) {
		for _, e := range f.few[:f.count] {
			dst = append(append(dst, f.record[from:e.from]...), e.text...)
			from = e.to
		}
		return append(dst, f.record[from:]...)
	}
	edits := f.edits()
	for e, ok := edits.next(); ok; e, ok = edits.next() {
		dst = append(append(dst, f.record[from:e.from]...), e.text...)
		from = e.to
	}
	return append(dst, f.record[from:]...)
}

// edit is a change: text goes in the place of record[from:to].
type edit struct {
	from, to int
	text     string
}

// edits goes through the changes of a record, in its order.
type edits struct {
	*Filler
	all   members
	start int  // of the next member
	kept  bool // a member before it stays
	own   bool // the record says its time
	done  bool
	timed int // the length of the member that was added
}

func (f *Filler) edits() edits {
	all := newMembers(f.record)
	return edits{Filler: f, all: all, start: all.at}
}

// next returns the next change, and false behind the last one.
func (e *edits) next() (next edit, ok bool) {
	for m, more := e.all.next(); more; m, more = e.all.next() {
		start := e.start
		e.start = m.end + 1
		text, fate := e.fateOf(m)
		switch {
		case fate != drops:
			e.kept = true
			if fate == fills {
				return edit{m.value, m.end, text}, true
			}
		case e.kept: // with the comma before it
			return edit{start - 1, m.end, ""}, true
		case e.record[m.end] == ',': // with the comma behind it
			return edit{start, m.end + 1, ""}, true
		default:
			return edit{start, m.end, ""}, true
		}
	}
	if e.done || e.own || e.time == "" {
		return edit{}, false
	}
	e.done = true
	end, _ := objectEnd(e.record)
	text := e.time
	if !e.kept {
		text = text[len(","):]
	}
	e.timed = len(text)
	return edit{end, end, text}, true
}

// memberFate is what becomes of a member.
type memberFate uint8

const (
	stays memberFate = iota
	fills            // with a value of the server's
	drops
)

// placeholders are the columns that legacy filled when they held their own name.
var placeholders = [...]string{"td_ip", "td_global_id", "td_browser", "td_browser_version", "td_os", "td_os_version"}

// fateOf tells what becomes of a member, and with which value it is filled. What
// legacy made of the User-Agent is made by nobody now: td_user_agent has all of it.
func (e *edits) fateOf(m member) (text string, fate memberFate) {
	name := e.record[m.name:m.nameEnd]
	if len(name) == 0 || lower(name[0]) != 't' && name[0] != '\\' {
		return "", stays
	}
	e.own = e.own || len(name) >= len("td_record_time") && spells(name, "td_record_time", true)
	value, ok := stringValue(e.record[m.value:m.end])
	if !ok {
		return "", stays
	}
	switch column := placeholderIn(name, value); {
	case column == "":
		return "", stays
	case column == "td_ip":
		return quoteOnce(&e.ip, e.from.IP), fills
	case column == "td_global_id" && e.from.GlobalID != "":
		return quoteOnce(&e.global, e.from.GlobalID), fills
	default:
		return "", drops
	}
}

// placeholderIn is the column of a member, if it holds its own name; else it is
// empty.
func placeholderIn(name, value []byte) string {
	if bytes.Equal(name, value) {
		for _, column := range placeholders {
			if string(name) == column {
				return column
			}
		}
	}
	if bytes.IndexByte(name, '\\') < 0 && bytes.IndexByte(value, '\\') < 0 {
		return ""
	}
	for _, column := range placeholders {
		if spells(name, column, false) && spells(value, column, false) {
			return column
		}
	}
	return ""
}

// stringValue returns the inside of a value that is a string.
func stringValue(value []byte) (text []byte, ok bool) {
	value = value[skipSpace(value, 0):]
	for isJSONSpace(value[len(value)-1]) {
		value = value[:len(value)-1]
	}
	if !isString(value) {
		return nil, false
	}
	return inside(value), true
}

func isJSONSpace(c byte) bool { return c == ' ' || c == '\t' || c == '\n' || c == '\r' }

// quoteOnce makes JSON of a text, once.
func quoteOnce(quoted *string, text string) string {
	if *quoted == "" {
		var room [64]byte
		*quoted = string(append(appendEscaped(append(room[:0], '"'), text), '"'))
	}
	return *quoted
}
