package caddymodule

import (
	"bytes"
	"net/http"
	"net/textproto"
	"net/url"
	"strconv"
	"strings"
)

// This file turns a legacy request into a Postback v2 request. Everything in
// it is a function of its arguments: no Caddy, no sockets.

const (
	// writeKeyParam is the URL parameter that carries the key in the legacy
	// contract. v2 does not read it.
	writeKeyParam = "td_write_key"

	// writeKeyHeader carries the key in both contracts, spelled as published.
	writeKeyHeader = "X-TD-Write-Key"

	// canonicalWriteKeyHeader is writeKeyHeader as net/http's maps spell it.
	canonicalWriteKeyHeader = "X-Td-Write-Key"

	// maxWriteKey is the longest key that is forwarded, in bytes. Real keys
	// have about 45; a longer value is no key but a mistake worth an answer.
	maxWriteKey = 1024

	// maxV2Body is the largest body that Postback v2 takes, in bytes. One
	// more is its 413.
	maxV2Body = 1_048_064
)

const (
	postbackPrefix = "/postback/"
	eventPrefix    = "/postback/v3/event/"
)

// destination is where a record belongs.
type destination struct {
	database, table string
}

// parsePath reads the destination out of a percent-decoded path. Runs of `/`
// count as one and the table may have one trailing slash: legacy callers send
// both. A path outside /postback/ is errNotFound; inside, a path that is no
// event path or has a bad name is invalid_path with the part that is wrong.
func parsePath(path string) (destination, *refusal) {
	if strings.Contains(path, "//") {
		path = squeezeSlashes(path)
	}
	if !strings.HasPrefix(path, postbackPrefix) {
		return destination{}, errNotFound
	}
	names, ok := strings.CutPrefix(path, eventPrefix)
	if !ok {
		return destination{}, invalidPath("the path must start with " + eventPrefix)
	}
	database, table, ok := strings.Cut(names, "/")
	if !validName(database) {
		return destination{}, invalidPath("the database name must be letters, digits and _")
	}
	if !ok || table == "" {
		return destination{}, invalidPath("the table name is missing")
	}
	table = strings.TrimSuffix(table, "/")
	if strings.Contains(table, "/") {
		return destination{}, invalidPath("nothing may follow the table name")
	}
	if !validName(table) {
		return destination{}, invalidPath("the table name must be letters, digits and _")
	}
	return destination{database, table}, nil
}

func squeezeSlashes(path string) string {
	var b strings.Builder
	b.Grow(len(path))
	for i := 0; i < len(path); i++ {
		if path[i] == '/' && i > 0 && path[i-1] == '/' {
			continue
		}
		b.WriteByte(path[i])
	}
	return b.String()
}

// validName reports whether a database or table name is [A-Za-z0-9_]+, the
// same in both contracts.
func validName(name string) bool {
	for i := 0; i < len(name); i++ {
		c := name[i]
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_') {
			return false
		}
	}
	return name != ""
}

// urlKey is what the td_write_key parameters of a query say.
type urlKey struct {
	key     string // the first value that is not empty, decoded and trimmed
	invalid bool   // that value has a bad percent-escape, so there is no key to read
}

// cutWriteKey takes every td_write_key parameter out of a raw query. The other
// parameters keep their order and their bytes; without any, rest is empty.
// Only `&` separates parameters, as in the URL standard: a `;` is part of a
// value.
func cutWriteKey(query string) (rest string, key urlKey) {
	var (
		lo, hi = 0, -1         // what was kept is query[lo:hi], as long as it is in one piece
		joined strings.Builder // what was kept, once it is in several
		any    bool            // at least one parameter was kept
	)
	for start := 0; start <= len(query); {
		end := len(query)
		if i := strings.IndexByte(query[start:], '&'); i >= 0 {
			end = start + i
		}
		param := query[start:end]
		if value, ok := writeKeyValue(param); ok {
			if key.key == "" && !key.invalid {
				key = decodeKey(value)
			}
		} else {
			any = any || param != ""
			switch {
			case joined.Len() > 0:
				joined.WriteByte('&')
				joined.WriteString(param)
			case hi < 0:
				lo, hi = start, end
			case start == hi+1:
				hi = end
			default:
				joined.Grow(len(query) - lo)
				joined.WriteString(query[lo:hi])
				joined.WriteByte('&')
				joined.WriteString(param)
			}
		}
		start = end + 1
	}
	switch {
	case !any:
		return "", key
	case joined.Len() > 0:
		return joined.String(), key
	default:
		return query[lo:hi], key
	}
}

// writeKeyValue returns the raw value of a td_write_key parameter. The name
// may be percent-encoded: a decoder at v2 or on the way would see the key.
func writeKeyValue(param string) (value string, ok bool) {
	name, value, _ := strings.Cut(param, "=")
	if name == writeKeyParam {
		return value, true
	}
	if len(name) <= len(writeKeyParam) || strings.IndexByte(name, '%') < 0 {
		return "", false
	}
	decoded, err := url.QueryUnescape(name)
	return value, err == nil && decoded == writeKeyParam
}

func decodeKey(value string) urlKey {
	decoded, err := url.QueryUnescape(value)
	if err != nil {
		return urlKey{invalid: true}
	}
	return urlKey{key: trimKey(decoded)}
}

func trimKey(key string) string {
	return strings.Trim(key, " \t\r\n")
}

// keySource is where the key that v2 uses was found.
type keySource uint8

const (
	keyNone keySource = iota
	keyParam
	keyHeader
	keyTD1 // Authorization: TD1
)

var keySourceNames = [...]string{"none", "param", "header", "td1"}

// String is the source's name in metrics and logs.
func (s keySource) String() string { return keySourceNames[s] }

// credentials are the headers by which a request authenticates at v2. An empty
// one is not sent.
type credentials struct {
	writeKey      string // X-TD-Write-Key
	authorization string // Authorization
	source        keySource
}

// key is the key that v2 uses: it prefers Authorization.
func (c *credentials) key() string {
	if c.authorization != "" {
		return strings.TrimPrefix(c.authorization, "TD1 ")
	}
	return c.writeKey
}

// findKey decides what v2 gets to see, from the URL's key, the X-TD-Write-Key
// headers and the Authorization headers. In the legacy contract the header
// wins over the URL and Authorization is ignored; in v2 Authorization wins. So
// Authorization passes only where a caller speaks v2 already: TD1, and no key
// in the URL that a legacy endpoint would have used.
func findKey(param urlKey, headers, authorizations []string) (cred credentials, refused *refusal) {
	for _, value := range headers {
		if cred.writeKey = trimKey(value); cred.writeKey != "" {
			cred.source = keyHeader
			break
		}
	}
	switch hasParam := param.key != "" || param.invalid; {
	case !hasParam:
		if cred.authorization = td1(authorizations); cred.authorization != "" {
			cred.source = keyTD1
		}
	case cred.writeKey == "":
		cred.writeKey, cred.source = param.key, keyParam
	}
	problem := keyProblem(cred.writeKey)
	switch {
	case cred.source == keyNone:
		return cred, errMissingKey
	case cred.source == keyParam && param.invalid:
		problem = "the td_write_key parameter has a bad percent-escape"
	case problem == "":
		problem = keyProblem(cred.key())
	}
	if problem != "" {
		return credentials{source: cred.source}, invalidKey(problem)
	}
	return cred, nil
}

// td1 returns the first Authorization of the scheme TD1 that has a key, the
// scheme spelled as published (RFC 9110 section 11.1: it compares without
// case). Any other Authorization is not for v2.
func td1(authorizations []string) string {
	for _, value := range authorizations {
		value = trimKey(value)
		if len(value) < 4 || !strings.EqualFold(value[:3], "TD1") || (value[3] != ' ' && value[3] != '\t') {
			continue
		}
		if value[:4] == "TD1 " && value[4] > ' ' {
			return value
		}
		return "TD1 " + trimKey(value[4:])
	}
	return ""
}

// keyProblem says what is wrong with a key that must not become a header, or
// nothing. The message never holds the key.
func keyProblem(key string) string {
	if len(key) > maxWriteKey {
		return "the write key is longer than " + strconv.Itoa(maxWriteKey) + " bytes"
	}
	for i := 0; i < len(key); i++ {
		if key[i] <= ' ' || key[i] >= 0x7f {
			return "the write key has a byte that is not visible ASCII; percent-encode it once, like any URL parameter"
		}
	}
	return ""
}

// usualKey reports whether a key has the form of Treasure Data's: an account
// number, a slash, and hexadecimal digits.
func usualKey(key string) bool {
	account, secret, ok := strings.Cut(key, "/")
	return ok && account != "" && secret != "" &&
		strings.Trim(account, "0123456789") == "" && strings.Trim(secret, "0123456789abcdefABCDEF") == ""
}

// contentType returns the Content-Type for v2 and whether it differs from the
// caller's. v2 takes JSON; callers of the legacy contract send JSON under the
// types that curl, forms and navigator.sendBeacon add by themselves.
func contentType(sent []string, body []byte) (value string, changed bool) {
	if len(sent) > 0 {
		value = sent[0]
	}
	switch media := mediaType(value); {
	case media == "",
		strings.EqualFold(media, "text/plain"),
		strings.EqualFold(media, "application/x-www-form-urlencoded"):
		if startsObject(body) {
			return "application/json", true
		}
	}
	return value, false
}

// useRecord makes a record from the query the body. Nothing of the query is
// left in the URL.
func (q *v2Request) useRecord(rec record) {
	q.fromQuery = true
	q.query = ""
	q.contentType = "application/json"
	q.body = rec.body
}

// setContentType decides the Content-Type, once the body is there.
func (q *v2Request) setContentType() {
	start := q.body
	for i := 0; i < len(q.more) && len(bytes.TrimLeft(start, jsonSpace)) == 0; i++ {
		start = q.more[i]
	}
	sent := q.header["Content-Type"]
	if listsToken(q.header["Connection"], "Content-Type") {
		sent = nil // it does not go to v2
	}
	if value, changed := contentType(sent, start); changed {
		q.contentType = value
	}
}

// length is the length of the body in bytes.
func (q *v2Request) length() int {
	n := len(q.body)
	for _, part := range q.more {
		n += len(part)
	}
	return n
}

// mediaType is a Content-Type without its parameters.
func mediaType(value string) string {
	media, _, _ := strings.Cut(value, ";")
	return strings.Trim(media, " \t")
}

// isPing reports whether a POST is the ping of a link, which carries its record
// in the query whatever its body is.
func isPing(contentType []string) bool {
	return len(contentType) > 0 && strings.EqualFold(mediaType(contentType[0]), "text/ping")
}

// jsonSpace is JSON's white space (RFC 8259 section 2).
const jsonSpace = " \t\n\r"

// startsObject reports whether the first byte that is no white space opens an
// object.
func startsObject(body []byte) bool {
	body = bytes.TrimLeft(body, jsonSpace)
	return len(body) > 0 && body[0] == '{'
}

// forwarded holds the headers that tell v2 where a request came from. An
// empty one is not sent.
type forwarded struct {
	clientIP, proto, host string // X-Forwarded-For, -Proto, -Host
	via                   string
	earlyData             bool // RFC 8470 section 5.2
}

// v2Request is a request as v2 gets it, but for the connection.
type v2Request struct {
	host string // of the region, or of the upstream option
	destination
	query       string // without `?` and without the write key
	header      http.Header
	credentials credentials
	contentType string // replaces the caller's if not empty
	forwarded   forwarded
	body        []byte   // all of it, or its first part
	more        [][]byte // the parts behind that

	// fromQuery: the body is a record from the query, so what the caller says
	// of a body of its own, or of a representation to GET, does not hold.
	fromQuery bool
}

// passes reports whether a caller's header, by its canonical name, goes to v2.
func (q *v2Request) passes(name string, connection []string) bool {
	return forwardsHeader(name) &&
		!(q.contentType != "" && name == "Content-Type") &&
		!(q.fromQuery && describesContent(name)) &&
		!(len(connection) > 0 && listsToken(connection, name))
}

// path is the canonical path, whatever spelling the caller used.
func (q *v2Request) path() string {
	return eventPrefix + q.database + "/" + q.table
}

// appendHead appends the request's head in HTTP/1.1 form (RFC 9112 section 3)
// up to and including the empty line.
func (q *v2Request) appendHead(dst []byte) []byte {
	dst = append(dst, "POST "+eventPrefix...)
	dst = append(dst, q.database...)
	dst = append(dst, '/')
	dst = append(dst, q.table...)
	if q.query != "" {
		dst = append(dst, '?')
		dst = appendQuery(dst, q.query)
	}
	dst = append(dst, " HTTP/1.1\r\nHost: "...)
	dst = append(dst, q.host...)
	dst = append(dst, "\r\n"...)
	connection := q.header["Connection"]
	for name, values := range q.header {
		if !q.passes(name, connection) {
			continue
		}
		for _, value := range values {
			dst = appendField(dst, name, value)
		}
	}
	if q.contentType != "" {
		dst = appendField(dst, "Content-Type", q.contentType)
	}
	if q.credentials.writeKey != "" {
		dst = appendField(dst, writeKeyHeader, q.credentials.writeKey)
	}
	if q.credentials.authorization != "" {
		dst = appendField(dst, "Authorization", q.credentials.authorization)
	}
	dst = q.forwarded.appendTo(dst)
	dst = append(dst, "Content-Length: "...)
	dst = strconv.AppendInt(dst, int64(q.length()), 10)
	return append(dst, "\r\n\r\n"...)
}

func (f *forwarded) appendTo(dst []byte) []byte {
	if f.clientIP != "" {
		dst = appendField(dst, "X-Forwarded-For", f.clientIP)
	}
	if f.proto != "" {
		dst = appendField(dst, "X-Forwarded-Proto", f.proto)
	}
	if f.host != "" {
		dst = appendField(dst, "X-Forwarded-Host", f.host)
	}
	if f.via != "" {
		dst = appendField(dst, "Via", f.via)
	}
	if f.earlyData {
		dst = appendField(dst, "Early-Data", "1")
	}
	return dst
}

// forwardsHeader reports whether a caller's header, by its canonical name,
// goes to v2. The rest is for this hop alone (RFC 9110 section 7.6.1), for
// this host alone (Cookie), or written anew by appendHead.
func forwardsHeader(name string) bool {
	switch name {
	case "Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Proxy-Connection",
		"Te", "Trailer", "Transfer-Encoding", "Upgrade", "Http2-Settings",
		"Cookie", "Expect",
		"Host", "Content-Length", canonicalWriteKeyHeader, "Authorization",
		"X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "Via", "Early-Data":
		return false
	}
	return true
}

// describesContent reports whether a header belongs to the body that was sent
// or the representation that was asked for (RFC 9110 sections 8, 13 and 14).
func describesContent(name string) bool {
	switch name {
	case "Content-Type", "Content-Encoding", "Content-Language", "Content-Location", "Content-Range", "Content-Disposition",
		"Range", "If-Range", "If-Match", "If-None-Match", "If-Modified-Since", "If-Unmodified-Since":
		return true
	}
	return false
}

// describesBytes reports whether a header that goes to v2 holds only for the
// very bytes of the body (RFC 9110 section 8.4, RFC 9530), which must then stay
// as they are.
func (q *v2Request) describesBytes() bool {
	for _, name := range []string{"Content-Encoding", "Content-Digest", "Digest", "Content-Md5"} {
		if len(q.header[name]) > 0 && !(q.fromQuery && describesContent(name)) {
			return true
		}
	}
	return false
}

// listsToken reports whether a comma-separated list header names the token.
func listsToken(values []string, token string) bool {
	for _, value := range values {
		for item := range strings.SplitSeq(value, ",") {
			if strings.EqualFold(textproto.TrimString(item), token) {
				return true
			}
		}
	}
	return false
}

// appendQuery appends a raw query as it is, except that a space or a control
// byte, which only HTTP/2 and HTTP/3 can carry here, is percent-encoded: in
// HTTP/1.1 it would end the request line.
func appendQuery(dst []byte, query string) []byte {
	const hex = "0123456789ABCDEF"
	for i := 0; i < len(query); i++ {
		if c := query[i]; c <= ' ' || c == 0x7f {
			dst = append(dst, '%', hex[c>>4], hex[c&15])
		} else {
			dst = append(dst, c)
		}
	}
	return dst
}

// appendField appends one header line. CR, LF and NUL in a value, which can
// only come from another handler of the same site, become spaces (RFC 9110
// section 5.5).
func appendField(dst []byte, name, value string) []byte {
	dst = append(dst, name...)
	dst = append(dst, ": "...)
	start := len(dst)
	dst = append(dst, value...)
	for i := start; i < len(dst); i++ {
		if c := dst[i]; c == '\r' || c == '\n' || c == 0 {
			dst[i] = ' '
		}
	}
	return append(dst, "\r\n"...)
}

// chain appends an entry to a header that lists the hops so far. Empty ones do
// not count.
func chain(prior []string, entry string) string {
	joined := strings.Join(prior, ", ")
	switch {
	case joined == "":
		return entry
	case entry == "":
		return joined
	default:
		return joined + ", " + entry
	}
}

// last returns the last of a header's values.
func last(values []string) string {
	if len(values) == 0 {
		return ""
	}
	return values[len(values)-1]
}

// withoutZone drops the zone of an IPv6 address: it means nothing elsewhere.
func withoutZone(ip string) string {
	ip, _, _ = strings.Cut(ip, "%")
	return ip
}
