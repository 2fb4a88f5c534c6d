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

	parts := append([][]byte{q.body}, q.more...)
	r.GetBody = func() (io.ReadCloser, error) {
		readers := make([]io.Reader, len(parts))
		for i, part := range parts {
			readers[i] = bytes.NewReader(part)
		}
		return io.NopCloser(io.MultiReader(readers...)), nil
	}
	r.Body, _ = r.GetBody()
	r.ContentLength = int64(q.length())
	r.TransferEncoding, r.Trailer = nil, nil
	r.Header.Set("Content-Length", strconv.Itoa(q.length()))
}
