package caddymodule

import (
	"net/http"
	"regexp"
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
// out of a field of a request: a URI, or all headers. A URI, and the value of
// each header, ends where a query may begin: at the first `?` or percent-escape,
// or at the name td_write_key. Proxies and browsers copy URLs into headers of
// many names. The header with the key goes, however it is spelled. It takes no
// options.
type LogFilter struct{}

// queryStart is where a query may begin.
var queryStart = regexp.MustCompile(`(?is)([?%]|` + postback.WriteKeyParam + `).*`)

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
	case caddyhttp.LoggableHTTPHeader:
		value.Header = withoutKeys(value.Header)
		return zap.Object(in.Key, value)
	case caddyhttp.LoggableStringArray:
		return zap.Array(in.Key, caddyhttp.LoggableStringArray(withoutQueries(value)))
	}
	if in.Type != zapcore.StringType {
		return zap.Skip()
	}
	in.String = withoutQuery(in.String)
	return in
}

// withoutKeys copies a header for the log.
func withoutKeys(header http.Header) http.Header {
	kept := make(http.Header, len(header))
	for name, values := range header {
		if !isKeyHeader(name) {
			kept[name] = withoutQueries(values)
		}
	}
	return kept
}

func withoutQueries(values []string) []string {
	kept := make([]string, len(values))
	for i, value := range values {
		kept[i] = withoutQuery(value)
	}
	return kept
}

func withoutQuery(value string) string {
	return queryStart.ReplaceAllLiteralString(value, "?REDACTED")
}

// isKeyHeader reports whether a header is X-TD-Write-Key, or would be with
// other separators: Caddy's log has also the headers that it then drops.
func isKeyHeader(name string) bool {
	return strings.EqualFold(strings.NewReplacer("_", "-", ".", "-").Replace(name), postback.WriteKeyHeader)
}

// Interface guards
var (
	_ caddy.Module           = LogFilter{}
	_ caddyfile.Unmarshaler  = (*LogFilter)(nil)
	_ logging.LogFieldFilter = LogFilter{}
)
