package caddymodule

import (
	"net/http"
	"regexp"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/logging"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/td-postback/gateway/postback"
)

func init() {
	caddy.RegisterModule(LogFilter{})
}

// LogFilter is a filter for Caddy's `filter` log encoder that keeps write keys
// out of a field: a whole request, a URI, all headers, or any other text. A URI, and
// the value of each header, ends where a query or a fragment may begin: at the
// first `?`, `#` or percent-escape, or at the name td_write_key or api_key. Proxies and
// browsers copy URLs into headers of many names. A header whose name says that it
// is a write key or an API key goes, however it is spelled. What is left is
// masked by shape too: `1234/…`. One request adds few KiB to a log, whatever it
// sends: what is longer ends in `…`. The filter takes no options.
type LogFilter struct{}

// What one request may add to a log, in bytes.
const (
	maxLoggedText   = 2 << 10 // of a URI, or a header's name and value
	maxLoggedHeader = 8 << 10 // of all headers, some more for the last one
	maxLoggedValues = 16      // of a header, in number
)

// cutMark stands where something is left out.
const cutMark = "…"

// queryStart is where a query may begin.
var queryStart = regexp.MustCompile(`(?is)([?#%]|` + postback.WriteKeyParam + `|` + postback.APIKeyParam + `).*`)

// CaddyModule returns the Caddy module information.
func (LogFilter) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "caddy.logging.encoders.filter.td_key",
		New: func() caddy.Module { return new(LogFilter) },
	}
}

// UnmarshalCaddyfile sets up the filter from Caddyfile tokens. Syntax:
//
//	td_key
func (*LogFilter) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	return parseNothing(d)
}

// Filter returns the field without what may be a key. A field of another kind
// goes.
func (LogFilter) Filter(in zapcore.Field) zapcore.Field {
	switch value := in.Interface.(type) {
	case caddyhttp.LoggableHTTPRequest:
		value.Request = loggedRequest(value.Request)
		return zap.Object(in.Key, value)
	case caddyhttp.LoggableHTTPHeader:
		value.Header = loggedHeader(value.Header)
		return zap.Object(in.Key, value)
	case caddyhttp.LoggableStringArray:
		return zap.Array(in.Key, caddyhttp.LoggableStringArray(loggedValues("", value)))
	}
	if in.Type != zapcore.StringType {
		return zap.Skip()
	}
	if in.Key == "error" { // which is no URL, but may quote one
		in.String = cutText(postback.MaskKeys(in.String), false)
		return in
	}
	in.String = loggedText(in.String)
	return in
}

// loggedRequest copies of a request what Caddy logs of it.
func loggedRequest(r *http.Request) *http.Request {
	logged := r.WithContext(r.Context())
	logged.Method, logged.Host, logged.RequestURI = loggedText(r.Method), loggedText(r.Host), loggedText(r.RequestURI)
	logged.Header = loggedHeader(r.Header)
	if r.TLS != nil {
		state := *r.TLS
		state.ServerName = loggedText(state.ServerName)
		logged.TLS = &state
	}
	return logged
}

// loggedHeader copies a header for the log, as much as there is room for.
func loggedHeader(header http.Header) http.Header {
	kept, room, seen := make(http.Header), maxLoggedHeader, 0
	for name, values := range header {
		if room <= 0 {
			kept[cutMark] = []string{strconv.Itoa(len(header)-seen) + " more"}
			break
		}
		seen++
		if isKeyHeader(name) {
			continue
		}
		values = loggedValues(name, values)
		name = loggedText(name)
		kept[name] = append(kept[name], values...)
		for _, value := range values {
			room -= len(name) + len(value)
		}
	}
	return kept
}

func loggedValues(name string, values []string) []string {
	if len(values) <= maxLoggedValues {
		return cleanValues(name, values, loggedText)
	}
	return append(cleanValues(name, values[:maxLoggedValues], loggedText), cutMark)
}

// loggedText is a text for the log. It looks some way beyond the bound, so that
// a key that begins before it is recognised.
func loggedText(text string) string {
	long := len(text) > 2*maxLoggedText
	if long {
		text = text[:2*maxLoggedText]
	}
	return cutText(withoutQuery(text), long)
}

// cutText bounds a text. A mark says that something is left out, here or before.
func cutText(text string, cut bool) string {
	if cut || len(text) > maxLoggedText {
		return text[:min(len(text), maxLoggedText)] + cutMark
	}
	return text
}

// withoutKeys copies a header, all of it, without what may be a key.
func withoutKeys(header http.Header) http.Header {
	kept := make(http.Header, len(header))
	for name, values := range header {
		if !isKeyHeader(name) {
			kept[postback.MaskKeys(name)] = cleanValues(name, values, withoutQuery)
		}
	}
	return kept
}

func cleanValues(name string, values []string, clean func(string) string) []string {
	if isSecretHeader(name) {
		return []string{"REDACTED"}
	}
	cleaned := make([]string, len(values))
	for i, value := range values {
		cleaned[i] = clean(value)
	}
	return cleaned
}

// withoutQuery ends a text where a query may begin, and masks keys before it.
func withoutQuery(text string) string {
	return postback.MaskKeys(queryStart.ReplaceAllLiteralString(text, "?REDACTED"))
}

// isKeyHeader reports whether a header is named like X-TD-Write-Key or an API
// key: in Caddy's log are also names with other separators, which Caddy then
// drops, and those in which proxies pass a key on.
func isKeyHeader(name string) bool {
	plain := strings.ToLower(strings.NewReplacer("_", "", "-", "", ".", "").Replace(name))
	return strings.Contains(plain, "writekey") || strings.Contains(plain, "apikey")
}

// isSecretHeader reports whether a header is a relative of those that Caddy
// masks, Authorization and Cookie: X-Forwarded-Authorization, say.
func isSecretHeader(name string) bool {
	plain := strings.ToLower(name)
	return strings.Contains(plain, "authorization") || strings.Contains(plain, "cookie")
}

// Interface guards
var (
	_ caddy.Module           = LogFilter{}
	_ caddyfile.Unmarshaler  = (*LogFilter)(nil)
	_ logging.LogFieldFilter = LogFilter{}
)
