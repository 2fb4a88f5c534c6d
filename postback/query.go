package postback

import (
	"slices"
	"strings"
	"unicode/utf8"
)

// This file turns the query of a GET, pixel, ping or beacon into the JSON
// record that v2 takes.

// Caller is what a record may take from the request beside the query, when the
// query asks for it.
type Caller struct {
	IP        string // without port and zone
	UserAgent string
	GlobalID  string // empty without the cookie
}

// QueryRecord is what a query says.
type QueryRecord struct {
	Body     []byte // one JSON object
	Columns  int    // how many columns it has
	Pixel    bool   // td_format=pixel: the caller wants an image
	Redirect string // td_redirect, decoded; empty if there is none
	Filled   bool   // a column that held its own name is filled in
	TooLarge bool   // the body has reached the limit and was given up
}

// column is one value of a column.
type column struct {
	name  string // decoded
	value string
	next  int32 // index of the next value of the same name, 0 for none
	plain bool  // the value is no query text: it needs no decoding
	later bool  // an earlier value has the same name: it writes this one too
}

// fewColumns is the number of columns up to which a repeated name is found by
// comparing. Above it, a map keeps a hostile query from taking quadratic time.
const fewColumns = 32

// columnBytes is about what a column costs in memory above fewColumns: its
// column and its entry in the map.
const columnBytes = 128

// QueryCost is how many bytes ReadQuery needs beside dst. A usual query needs
// next to nothing, but a hostile one can have half a million columns.
func QueryCost(query string) int64 {
	if n := strings.Count(query, "&") + 1; n > fewColumns {
		return int64(n) * columnBytes
	}
	return 0
}

// ReadQuery appends the record of a raw query, without the write key, to
// dst. It gives up once the body is larger than limit.
func ReadQuery(dst []byte, query string, from Caller, limit int) QueryRecord {
	var (
		rec   QueryRecord
		few   [fewColumns]column
		all   = few[:0]
		names map[string]int32 // last index of each name, above fewColumns
	)
	if n := strings.Count(query, "&") + 1; n > fewColumns {
		all, names = make([]column, 0, n), make(map[string]int32, n)
	}
	for param := range strings.SplitSeq(query, "&") {
		if param == "" {
			continue
		}
		col, ok := rec.read(param, from)
		if !ok {
			continue
		}
		at := int32(len(all)) //nolint:gosec // G115: a URL is far below 2 GiB
		if prior := lastOf(all, names, col.name); prior >= 0 {
			all[prior].next, col.later = at, true
		}
		if names != nil {
			names[col.name] = at
		}
		all = append(all, col)
	}
	rec.Body = append(dst, '{')
	for i := range all {
		if all[i].later {
			continue
		}
		if rec.Columns > 0 {
			rec.Body = append(rec.Body, ',')
		}
		rec.Columns++
		rec.Body = appendColumn(rec.Body, all, i)
		if len(rec.Body)-len(dst) > limit {
			rec.TooLarge = true
			return rec
		}
	}
	rec.Body = append(rec.Body, '}')
	rec.TooLarge = len(rec.Body)-len(dst) > limit
	return rec
}

// read takes one parameter. It returns false for a reserved name, which is no
// column.
func (rec *QueryRecord) read(param string, from Caller) (col column, ok bool) {
	name, value, _ := strings.Cut(param, "=")
	col = column{name: decode(name), value: value}
	if !utf8.ValidString(col.name) {
		// Two names that differ here only would be one in JSON.
		col.name = string([]rune(col.name))
	}
	if !strings.HasPrefix(col.name, "td_") {
		return col, true
	}
	if rec.readAnswer(col.name, value) {
		return col, false
	}
	switch col.name {
	case "td_ip":
		if decode(value) == col.name {
			col.value, col.plain, rec.Filled = from.IP, true, true
		}
	case "td_ua":
		if decode(value) == col.name {
			col.value, col.plain, rec.Filled = from.UserAgent, true, true
		}
	case "td_global_id":
		if decode(value) == col.name {
			col.value, col.plain, rec.Filled = from.GlobalID, true, true
			return col, from.GlobalID != ""
		}
	}
	return col, true
}

// readAnswer takes a parameter that says what the answer is to be, and reports
// whether it is one.
func (rec *QueryRecord) readAnswer(name, value string) bool {
	switch {
	case name == "td_format" && decode(value) == "pixel":
		rec.Pixel = true
		return true
	case name == "td_redirect":
		if rec.Redirect == "" {
			rec.Redirect = decode(value)
		}
		return true
	}
	return false
}

// CutAnswer takes the parameters that say what the answer is to be out of a raw
// query. The others keep their order and their bytes; without any, rest is
// empty.
func CutAnswer(query string) (rest string, asked QueryRecord) {
	var kept []string
	any := false
	for param := range strings.SplitSeq(query, "&") {
		name, value, _ := strings.Cut(param, "=")
		if !asked.readAnswer(decode(name), value) {
			kept = append(kept, param)
			any = any || param != ""
		}
	}
	if !any {
		return "", asked
	}
	return strings.Join(kept, "&"), asked
}

// hasColumn reports whether a query, without the write key, has at least one
// column.
func hasColumn(query string, from Caller) bool {
	var rec QueryRecord
	for param := range strings.SplitSeq(query, "&") {
		if param == "" {
			continue
		}
		if _, ok := rec.read(param, from); ok {
			return true
		}
	}
	return false
}

// lastOf finds the last column so far with a name, or -1.
func lastOf(columns []column, names map[string]int32, name string) int32 {
	if names != nil {
		if i, ok := names[name]; ok {
			return i
		}
		return -1
	}
	for i := range slices.Backward(columns) {
		if columns[i].name == name {
			return int32(i) //nolint:gosec // G115: below fewColumns
		}
	}
	return -1
}

// appendColumn appends a column with all of its values: one as it is, several
// as an array.
func appendColumn(dst []byte, columns []column, i int) []byte {
	dst = append(dst, '"')
	dst = appendEscaped(dst, columns[i].name)
	dst = append(dst, `":`...)
	if columns[i].next == 0 {
		return appendValue(dst, &columns[i])
	}
	separator := byte('[')
	for {
		dst = append(dst, separator)
		dst = appendValue(dst, &columns[i])
		if i = int(columns[i].next); i == 0 {
			return append(dst, ']')
		}
		separator = ','
	}
}

func appendValue(dst []byte, col *column) []byte {
	if col.name == "td_record_time" {
		if digits, ok := number(decode(col.value)); ok {
			return append(dst, digits...)
		}
	}
	dst = append(dst, '"')
	if col.plain {
		dst = appendEscaped(dst, col.value)
	} else {
		dst = appendDecoded(dst, col.value)
	}
	return append(dst, '"')
}

// number returns the JSON number that a string of digits says. JSON has no
// leading zeros (RFC 8259 section 6).
func number(s string) (string, bool) {
	for i := 0; i < len(s); i++ {
		if s[i] < '0' || s[i] > '9' {
			return "", false
		}
	}
	if s == "" {
		return "", false
	}
	if s = strings.TrimLeft(s, "0"); s == "" {
		s = "0"
	}
	return s, true
}

// IsUTF8Query reports whether all of a raw query is UTF-8 when it is decoded. What is
// not becomes U+FFFD in a record.
func IsUTF8Query(query string) bool { return utf8.ValidString(decode(query)) }

// isLiteral reports whether query text stands for itself.
func isLiteral(s string) bool {
	return strings.IndexByte(s, '%') < 0 && strings.IndexByte(s, '+') < 0
}

// decode decodes query text: `+` is a space, and an escape that is none stays
// as it is.
func decode(s string) string {
	if isLiteral(s) {
		return s
	}
	return string(appendUnescaped(nil, s))
}

func appendUnescaped(dst []byte, s string) []byte {
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '+':
			dst = append(dst, ' ')
		case c == '%' && i+2 < len(s) && isHex(s[i+1]) && isHex(s[i+2]):
			dst = append(dst, unhex(s[i+1])<<4|unhex(s[i+2]))
			i += 2
		default:
			dst = append(dst, c)
		}
	}
	return dst
}

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}

func unhex(c byte) byte {
	if c <= '9' {
		return c - '0'
	}
	return c&^0x20 - 'A' + 10
}

// appendDecoded appends query text as the inside of a JSON string.
func appendDecoded(dst []byte, s string) []byte {
	if isLiteral(s) {
		return appendEscaped(dst, s)
	}
	start := len(dst)
	dst = appendUnescaped(dst, s)
	if isClean(dst[start:]) {
		return dst
	}
	return appendEscaped(dst[:start], string(dst[start:]))
}

// isClean reports whether text can stand in a JSON string as it is.
func isClean(s []byte) bool {
	ascii := true
	for _, c := range s {
		if c < ' ' || c == '"' || c == '\\' {
			return false
		}
		ascii = ascii && c < utf8.RuneSelf
	}
	return ascii || utf8.Valid(s)
}

// appendEscaped appends text as the inside of a JSON string (RFC 8259 section
// 7). Bytes that are no UTF-8 become U+FFFD each.
func appendEscaped(dst []byte, s string) []byte {
	const hex = "0123456789abcdef"
	from := 0 // what is before it has been appended
	for i := 0; i < len(s); {
		c := s[i]
		if c < utf8.RuneSelf {
			if c >= ' ' && c != '"' && c != '\\' {
				i++
				continue
			}
			dst = append(dst, s[from:i]...)
			switch c {
			case '"', '\\':
				dst = append(dst, '\\', c)
			case '\n':
				dst = append(dst, `\n`...)
			case '\r':
				dst = append(dst, `\r`...)
			case '\t':
				dst = append(dst, `\t`...)
			default:
				dst = append(dst, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
			}
			i++
			from = i
			continue
		}
		r, size := utf8.DecodeRuneInString(s[i:])
		if r == utf8.RuneError && size == 1 {
			dst = append(dst, s[from:i]...)
			dst = append(dst, "\ufffd"...)
			from = i + 1
		}
		i += size
	}
	return append(dst, s[from:]...)
}
