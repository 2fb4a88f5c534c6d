package postback

import (
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// LegacyRequest is a request as the legacy host gets it: as its caller has sent it, but
// for what is for one hop alone.
type LegacyRequest struct {
	Method    string
	Target    string // as its first line has it
	Host      string // of the legacy host
	Header    http.Header
	Trailer   http.Header // announced, or sent
	Forwarded Forwarded

	// Expect is the caller's, which is in no header any more when its body is read.
	Expect []string

	// Length of the body in bytes; UnknownLength for chunks.
	Length int64

	// NoLength says that the request has no body and says nothing of one.
	NoLength bool
}

// UnknownLength is the length of a body that is sent in chunks.
const UnknownLength = -1

// NewLegacyRequest makes the legacy host's request of a caller's, whose body may have
// been read already. bodyless says that it was, and that there was none.
func NewLegacyRequest(r *http.Request, bodyless bool) LegacyRequest {
	q := LegacyRequest{Method: r.Method, Target: r.RequestURI, Header: r.Header, Trailer: r.Trailer, Length: r.ContentLength}
	switch {
	case len(r.Trailer) > 0:
		q.Length = UnknownLength // only behind chunks there are trailers
	case q.Length < 0 && bodyless && len(r.TransferEncoding) == 0:
		q.Length = 0 // HTTP/2 and HTTP/3 need not say that nothing follows
	}
	q.NoLength = q.Length == 0 && len(r.Header["Content-Length"]) == 0 && !(r.ProtoMajor > 1 && usuallyHasBody(r.Method))
	return q
}

// usuallyHasBody reports whether servers of HTTP/1.1 may want to be told that a request
// with this method has no body (RFC 9110 section 8.6).
func usuallyHasBody(method string) bool {
	return method == http.MethodPost || method == http.MethodPut || method == http.MethodPatch
}

// AppendHead appends the request's head in HTTP/1.1 form (RFC 9112 section 3)
// up to and including the empty line.
func (q *LegacyRequest) AppendHead(dst []byte) []byte {
	dst = append(dst, q.Method...)
	dst = append(dst, ' ')
	dst = appendQuery(dst, originForm(q.Method, q.Target))
	dst = append(dst, " HTTP/1.1\r\nHost: "...)
	dst = append(dst, q.Host...)
	dst = append(dst, "\r\n"...)
	hops := HopsOf(q.Header["Connection"])
	for name, values := range q.Header {
		if !isRelayed(name, hops) {
			continue
		}
		for _, value := range values {
			dst = appendField(dst, name, value)
		}
	}
	for _, value := range q.Expect {
		dst = appendField(dst, "Expect", value)
	}
	dst = q.Forwarded.appendTo(dst)
	switch {
	case q.NoLength:
	case q.Length < 0:
		names := slices.Sorted(maps.Keys(q.Trailer))
		names = slices.DeleteFunc(names, func(name string) bool { return !isRelayed(name, hops) })
		if len(names) > 0 {
			dst = appendField(dst, "Trailer", strings.Join(names, ", "))
		}
		dst = append(dst, "Transfer-Encoding: chunked\r\n"...)
	default:
		dst = append(dst, "Content-Length: "...)
		dst = strconv.AppendInt(dst, q.Length, 10)
		dst = append(dst, "\r\n"...)
	}
	return append(dst, "\r\n"...)
}

// isRelayed reports whether a caller's field, by its canonical name, goes on as it came.
func isRelayed(name string, hops Hops) bool {
	fate := fateOf(name)
	return fate != ends && fate != renewed && name != "Expect" && !hops.Has(name)
}

// AppendTrailer appends what stands behind the last chunk of a body. What a caller
// cannot say in a head, such as another one's address, it cannot say here: there are
// servers that take both for one.
func AppendTrailer(dst []byte, trailer http.Header, hops Hops) []byte {
	for name, values := range trailer {
		if !isRelayed(name, hops) {
			continue
		}
		for _, value := range values {
			dst = appendField(dst, name, value)
		}
	}
	return append(dst, "\r\n"...)
}

// originForm is a target as a server that is no proxy gets it (RFC 9112 section 3.2.1).
// A target with a host of its own would win over Host.
func originForm(method, target string) string {
	if strings.HasPrefix(target, "/") {
		return target
	}
	scheme, rest, absolute := strings.Cut(target, "://")
	if !absolute || strings.ContainsAny(scheme, ":/?") {
		return target // it has no host, and no path that anybody before has seen
	}
	start := strings.IndexAny(rest, "/?")
	switch {
	case start < 0 && method == http.MethodOptions:
		return "*"
	case start < 0:
		return "/"
	case rest[start] == '?':
		return "/" + rest[start:]
	default:
		return rest[start:]
	}
}
