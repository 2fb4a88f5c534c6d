package postback

import (
	"net/http"
	"net/textproto"
	"slices"
	"strings"
)

// MaxHeaders is how many bytes the header fields of a request may have together.
// The request line is not one of them: legacy URLs are long.
const MaxHeaders = 64 << 10

// fieldCost is what a header field costs in memory beside its text: about 100
// bytes in a map of Go's, when all fields have names of their own.
const fieldCost = 100

// HeadBytes measures the head of a request. fields is how many bytes its header
// fields have as HTTP/1.1 spells them, Host too; memory is about how many bytes
// its request line and fields hold in memory.
func HeadBytes(r *http.Request) (fields, memory int) {
	const around = len(": \r\n")
	count := 1
	fields = len("Host") + len(r.Host) + around
	for name, values := range r.Header {
		count += len(values)
		fields += len(values) * (len(name) + around)
		for _, value := range values {
			fields += len(value)
		}
	}
	for name := range r.Trailer { // net/http takes what Trailer announces out of the header
		count++
		fields += len(name) + len(",")
	}
	return fields, len(r.Method) + len(r.RequestURI) + len(r.Proto) + fields + count*fieldCost
}

// headerFate is what becomes of a caller's header.
type headerFate uint8

const (
	goesOn  headerFate = iota // as it came
	ends                      // here: it is for this hop alone
	notToV2                   // here, unless it goes to the legacy host: it is for one host alone, or it is a key
	renewed                   // whoever sends the request on writes it anew
)

// fateOf decides by a header's canonical name. It is the one list, for what is
// forwarded, to either host, and for what the next handler forwards. What is for one
// hop ends (RFC 9110 section 7.6.1), and at v2 so does what is for one host (Cookie);
// there, keys are set by findKey's rule.
func fateOf(name string) headerFate {
	switch name {
	case "Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Proxy-Connection",
		"Te", "Trailer", "Transfer-Encoding", "Upgrade", "Http2-Settings":
		return ends
	case "Cookie", "Expect", canonicalWriteKeyHeader, "Authorization":
		return notToV2
	case "Host", "Content-Length", "X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "Via", "Early-Data":
		return renewed
	}
	return goesOn
}

// passes reports whether a caller's header, by its canonical name, goes to v2
// as it came.
func (q *Request) passes(name string, hops Hops) bool {
	return fateOf(name) == goesOn &&
		!(q.ContentType != "" && name == "Content-Type") &&
		!q.drops(name, hops)
}

// drops reports whether this request loses a header that others keep.
func (q *Request) drops(name string, hops Hops) bool {
	return q.FromQuery && describesContent(name) || (q.FromQuery || q.changed) && describesBytes(name) || hops.Has(name)
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

// bytesHeaders are the headers that hold only for the very bytes of a body: its
// digests (RFC 9530 and what came before it), the part that it is of something (RFC
// 9110 section 14.4), and signatures (RFC 9421). The many signatures of webhooks are
// none of them: v2 checks none, and what is kept of them needs its time.
var bytesHeaders = []string{"Content-Digest", "Repr-Digest", "Digest", "Content-Md5", "Content-Range", "Signature", "Signature-Input"}

// describesBytes reports whether a header holds only for the very bytes of a body.
func describesBytes(name string) bool { return slices.Contains(bytesHeaders, name) }

// mustStay reports whether the bytes of the body must stay as they are, since a
// header that goes to v2 holds for them.
func (q *Request) mustStay() bool {
	switch {
	case q.FromQuery:
		return false
	case q.Compressed():
		return true
	}
	return !q.changed && slices.ContainsFunc(bytesHeaders, func(name string) bool { return len(q.Header[name]) > 0 })
}

// Compressed reports whether the body is not the JSON itself, by the caller's
// Content-Encoding. Only the codings that HTTP has count (the IANA's registry, RFC
// 9110 section 8.4.1): callers also send identity, a charset, or nothing.
func (q *Request) Compressed() bool {
	if q.FromQuery {
		return false
	}
	return slices.ContainsFunc(q.Header["Content-Encoding"], isCompressed)
}

// isCompressed reports whether a Content-Encoding has a coding that HTTP has.
func isCompressed(contentEncoding string) bool {
	for coding := range strings.SplitSeq(contentEncoding, ",") {
		switch strings.ToLower(textproto.TrimString(coding)) {
		case "gzip", "x-gzip", "deflate", "compress", "x-compress", "br", "zstd", "dcb", "dcz", "aes128gcm", "exi", "pack200-gzip":
			return true
		}
	}
	return false
}

// Hops has the names of the header fields that are for one hop alone, because
// a Connection header says so (RFC 9110 section 7.6.1).
type Hops map[string]struct{}

// HopsOf reads the Connection headers of a request or an answer. A set, not a
// list: a hostile one names a hundred thousand fields beside as many others. The
// usual ones name no field, and cost nothing.
func HopsOf(connection []string) Hops {
	var hops Hops
	for _, value := range connection {
		for option := range strings.SplitSeq(value, ",") {
			option = textproto.TrimString(option)
			if option == "" || strings.EqualFold(option, "keep-alive") || strings.EqualFold(option, "close") {
				continue
			}
			if hops == nil {
				hops = make(Hops)
			}
			hops[textproto.CanonicalMIMEHeaderKey(option)] = struct{}{}
		}
	}
	return hops
}

// Has reports whether a field is for one hop alone. Names compare without case.
func (h Hops) Has(name string) bool {
	if len(h) == 0 {
		return false
	}
	_, ok := h[textproto.CanonicalMIMEHeaderKey(name)]
	return ok
}
