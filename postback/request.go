package postback

import (
	"bytes"
	"io"
	"net/http"
	"net/textproto"
	"strconv"
	"strings"
)

// MaxBody is the largest body that Postback v2 takes, in bytes. One more is its
// 413.
const MaxBody = 1_048_064

// contentType returns the Content-Type for v2 and whether it differs from the
// caller's. v2 takes JSON; callers of the legacy contract send JSON under the
// types that curl, forms and navigator.sendBeacon add by themselves.
func contentType(sent []string, object bool) (value string, changed bool) {
	if len(sent) > 0 {
		value = sent[0]
	}
	switch media := mediaType(value); {
	case media == "",
		strings.EqualFold(media, "text/plain"),
		strings.EqualFold(media, "text/ping"),
		strings.EqualFold(media, "application/x-www-form-urlencoded"):
		if object {
			return "application/json", true
		}
	}
	return value, false
}

// UseRecord makes a record that comes from the query the body. Nothing of the
// query stays in the URL.
func (q *Request) UseRecord(record []byte) {
	q.FromQuery, q.changed = true, false
	q.Query = ""
	q.ContentType = "application/json"
	q.Body, q.More = record, nil
}

// UseData makes a record that the query has as JSON the body. Nothing else of the
// query goes on.
func (q *Request) UseData(record []byte) {
	q.UseRecord(record)
	q.ownTimes = true
}

// UseChanged makes a record the body that is the caller's body or its record but
// for some members.
func (q *Request) UseChanged(record []byte) {
	q.Body, q.More, q.changed = record, nil, true
}

// byteOrderMark is what some editors and runtimes put before a text in UTF-8.
// It is no part of JSON, and v2 need not know it (RFC 8259 section 8.1).
const byteOrderMark = "\ufeff"

// UseBody makes what the caller has sent the body: its bytes, but for a
// byte-order mark before an object. It decides the Content-Type.
func (q *Request) UseBody(first []byte, more [][]byte) {
	q.Body, q.More = first, more
	if bytes.HasPrefix(first, []byte(byteOrderMark)) && !q.Compressed() {
		q.Body = first[len(byteOrderMark):]
		if q.changed = q.startsObject(); !q.changed {
			q.Body = first
		}
	}
	sent := q.Header["Content-Type"]
	if HopsOf(q.Header["Connection"]).Has("Content-Type") {
		sent = nil // it does not go to v2
	}
	if value, changed := contentType(sent, q.startsObject()); changed {
		q.ContentType = value
	}
}

// startsObject reports whether the body's first byte that is no white space
// opens an object. It may be in any of the parts.
func (q *Request) startsObject() bool {
	start := q.Body
	for i := 0; i < len(q.More) && len(bytes.TrimLeft(start, jsonSpace)) == 0; i++ {
		start = q.More[i]
	}
	return startsObject(start)
}

// Length is the length of the body in bytes.
func (q *Request) Length() int {
	n := len(q.Body)
	for _, part := range q.More {
		n += len(part)
	}
	return n
}

// mediaType is a Content-Type without its parameters.
func mediaType(value string) string {
	media, _, _ := strings.Cut(value, ";")
	return textproto.TrimString(media)
}

// jsonSpace is JSON's white space (RFC 8259 section 2).
const jsonSpace = " \t\n\r"

// startsObject reports whether the first byte that is no white space opens an
// object.
func startsObject(body []byte) bool {
	body = bytes.TrimLeft(body, jsonSpace)
	return len(body) > 0 && body[0] == '{'
}

// Forwarded holds the headers that tell v2 where a request came from. An
// empty one is not sent.
type Forwarded struct {
	ClientIP, Proto, Host string // X-Forwarded-For, -Proto, -Host
	Via                   string
	EarlyData             bool // RFC 8470 section 5.2
}

// Request is a request as v2 gets it.
type Request struct {
	Host string // of the region, or of the upstream option
	Destination
	Query       string // without `?` and without the write key
	Header      http.Header
	Credentials Credentials
	ContentType string // replaces the caller's if not empty
	Forwarded   Forwarded
	Body        []byte   // all of it, or its first part
	More        [][]byte // the parts behind that

	// FromQuery: the body is a record from the query, so what the caller says
	// of a body of its own, or of a representation to GET, does not hold.
	FromQuery bool

	ownTimes bool // the record from the query is JSON of the caller's own: it says its time as a body does
	changed  bool // the body's bytes are not the caller's: what held for those does not
}

// AppendHead appends the request's head in HTTP/1.1 form (RFC 9112 section 3)
// up to and including the empty line.
func (q *Request) AppendHead(dst []byte) []byte {
	dst = append(dst, "POST "+eventPrefix...)
	dst = append(dst, q.Database...)
	dst = append(dst, '/')
	dst = append(dst, q.Table...)
	if q.Query != "" {
		dst = append(dst, '?')
		dst = appendQuery(dst, q.Query)
	}
	dst = append(dst, " HTTP/1.1\r\nHost: "...)
	dst = append(dst, q.Host...)
	dst = append(dst, "\r\n"...)
	hops := HopsOf(q.Header["Connection"])
	for name, values := range q.Header {
		if !q.passes(name, hops) {
			continue
		}
		for _, value := range values {
			dst = appendField(dst, name, value)
		}
	}
	if q.ContentType != "" {
		dst = appendField(dst, "Content-Type", q.ContentType)
	}
	if q.Credentials.WriteKey != "" {
		dst = appendField(dst, WriteKeyHeader, q.Credentials.WriteKey)
	}
	if q.Credentials.Authorization != "" {
		dst = appendField(dst, "Authorization", q.Credentials.Authorization)
	}
	dst = q.Forwarded.appendTo(dst)
	dst = append(dst, "Content-Length: "...)
	dst = strconv.AppendInt(dst, int64(q.Length()), 10)
	return append(dst, "\r\n\r\n"...)
}

// Apply makes r the v2 request, for the next handler to forward. The body can be
// read again for a retry.
func (q *Request) Apply(r *http.Request) {
	r.Host = q.Host
	r.Method = http.MethodPost
	r.URL.Path, r.URL.RawPath = q.path(), ""
	r.URL.RawQuery, r.URL.ForceQuery = string(appendQuery(nil, q.Query)), false
	r.RequestURI = r.URL.RequestURI()

	// What Connection names goes now: reverse_proxy would do it later, and could
	// take the write key along.
	hops := HopsOf(r.Header["Connection"])
	for name := range r.Header {
		if fate := fateOf(name); fate == ends || fate == notToV2 || q.drops(name, hops) {
			delete(r.Header, name)
		}
	}
	if q.Credentials.WriteKey != "" {
		r.Header.Set(canonicalWriteKeyHeader, q.Credentials.WriteKey)
	}
	if q.Credentials.Authorization != "" {
		r.Header.Set("Authorization", q.Credentials.Authorization)
	}
	if q.ContentType != "" {
		r.Header.Set("Content-Type", q.ContentType)
	}

	parts := append([][]byte{q.Body}, q.More...)
	r.GetBody = func() (io.ReadCloser, error) {
		readers := make([]io.Reader, len(parts))
		for i, part := range parts {
			readers[i] = bytes.NewReader(part)
		}
		return io.NopCloser(io.MultiReader(readers...)), nil
	}
	r.Body, _ = r.GetBody()
	r.ContentLength = int64(q.Length())
	r.TransferEncoding, r.Trailer = nil, nil
	r.Header.Set("Content-Length", strconv.Itoa(q.Length()))
}

func (f *Forwarded) appendTo(dst []byte) []byte {
	if f.ClientIP != "" {
		dst = appendField(dst, "X-Forwarded-For", f.ClientIP)
	}
	if f.Proto != "" {
		dst = appendField(dst, "X-Forwarded-Proto", f.Proto)
	}
	if f.Host != "" {
		dst = appendField(dst, "X-Forwarded-Host", f.Host)
	}
	if f.Via != "" {
		dst = appendField(dst, "Via", f.Via)
	}
	if f.EarlyData {
		dst = appendField(dst, "Early-Data", "1")
	}
	return dst
}

// appendQuery appends a raw query as it is, except that a space or a control
// byte, which only HTTP/2 and HTTP/3 can carry here, is percent-encoded: in
// HTTP/1.1 it would end the request line.
func appendQuery(dst []byte, query string) []byte {
	for i := 0; i < len(query); i++ {
		if c := query[i]; c <= ' ' || c == 0x7f {
			dst = appendPercent(dst, c)
		} else {
			dst = append(dst, c)
		}
	}
	return dst
}

// appendPercent appends a byte percent-encoded (RFC 3986 section 2.1).
func appendPercent(dst []byte, c byte) []byte {
	const hex = "0123456789ABCDEF"
	return append(dst, '%', hex[c>>4], hex[c&15])
}

// appendField appends one header line. CR, LF and NUL in a value, which can
// only come from another handler of the same site, become spaces (RFC 9110
// section 5.5).
func appendField(dst []byte, name, value string) []byte {
	if breaksLine(value) {
		value = lineBreaks.Replace(value)
	}
	dst = append(dst, name...)
	dst = append(dst, ": "...)
	dst = append(dst, value...)
	return append(dst, "\r\n"...)
}

// lineBreaks makes a value that would end its line harmless.
var lineBreaks = strings.NewReplacer("\r", " ", "\n", " ", "\x00", " ")

// breaksLine reports whether a value needs lineBreaks. Three searches for one byte
// are several times as fast as a look at each byte.
func breaksLine(value string) bool {
	return strings.IndexByte(value, '\r') >= 0 || strings.IndexByte(value, '\n') >= 0 || strings.IndexByte(value, 0) >= 0
}
