package caddymodule

import (
	"net/textproto"
	"strings"
)

// passes reports whether a caller's header, by its canonical name, goes to v2.
func (q *v2Request) passes(name string, connection []string) bool {
	return forwardsHeader(name) &&
		!(q.contentType != "" && name == "Content-Type") &&
		!(q.fromQuery && describesContent(name)) &&
		!(len(connection) > 0 && listsToken(connection, name))
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
