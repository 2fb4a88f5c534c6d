package caddymodule

import (
	"bytes"
	"io"
	"net/http"
	"strconv"
)

// rewrite makes r the v2 request, for the next handler to forward. The body
// can be read again for a retry.
func (q *v2Request) rewrite(r *http.Request) {
	r.Host = q.host
	r.Method = http.MethodPost
	r.URL.Path, r.URL.RawPath = q.path(), ""
	r.URL.RawQuery, r.URL.ForceQuery = string(appendQuery(nil, q.query)), false
	r.RequestURI = r.URL.RequestURI()

	// What the caller's Connection header names goes now: reverse_proxy would
	// do it later and could take the write key along.
	connection := r.Header["Connection"]
	for name := range r.Header {
		if listsToken(connection, name) || q.fromQuery && describesContent(name) {
			delete(r.Header, name)
		}
	}
	for _, name := range []string{"Connection", "Upgrade", "Http2-Settings", "Cookie", "Expect", "Authorization", canonicalWriteKeyHeader} {
		delete(r.Header, name)
	}
	if q.credentials.writeKey != "" {
		r.Header.Set(canonicalWriteKeyHeader, q.credentials.writeKey)
	}
	if q.credentials.authorization != "" {
		r.Header.Set("Authorization", q.credentials.authorization)
	}
	if q.contentType != "" {
		r.Header.Set("Content-Type", q.contentType)
	}

	body := q.body
	r.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
	r.Body, _ = r.GetBody()
	r.ContentLength = int64(len(body))
	r.TransferEncoding, r.Trailer = nil, nil
	r.Header.Set("Content-Length", strconv.Itoa(len(body)))
}
