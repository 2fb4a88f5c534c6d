package caddymodule

import (
	"crypto/tls"
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

func TestLogFilter(t *testing.T) {
	const key = "1234/secret"
	header := http.Header{
		"User-Agent":     {"Arduino/1.0"},
		"X-Td-Write-Key": {key}, "X_td_write_key": {key}, "X-TD_Write-Key": {key}, "x.td.write.key": {key},
		"X-Original-Url": {"/p?td_write_key=" + key, "/p;TD_WRITE_KEY=" + key, "/p;API_KEY=" + key}, "Referer": {"http://x.example/%3Ftd%5Fwrite%5Fkey=" + key},
		"X-Lines": {"a\ntd_write_key=\n" + key},
	}
	const real = "1234/0123456789abcdef0123456789abcdef01234567"
	relatives := http.Header{
		"Td-Write-Key": {key}, "X-Writekey": {key}, "Api_key": {key}, // which go
		"X-Forwarded-Authorization": {"TD1 " + key}, "X-Original-Cookie": {key},
		"X-Note": {"by TD1 " + key, "td-write-key: " + key, "for " + real}, "Referer": {"http://x.example/a#" + key}, "X-1234%2F0123456789abcdef": {"a"},
	}
	for _, tc := range []struct {
		name  string
		field zapcore.Field
		want  string
	}{
		{"URI", zap.String("f", "/postback/v3/event/db/tbl?td_write_key="+key), `"/postback/v3/event/db/tbl?REDACTED"`},
		{"URI without a query", zap.String("f", "/postback/v3/event/db/tbl"), `"/postback/v3/event/db/tbl"`},
		{"URI with an encoded query", zap.String("f", "/t%3Ftd%5Fwrite%5Fkey="+key), `"/t?REDACTED"`},
		{"URI with the key in its path", zap.String("f", "/t;Td_Write_Key="+key), `"/t;?REDACTED"`},
		{"URI of a JavaScript SDK", zap.String("f", "/js/v3/event/db/tbl?api_key="+key+"&data=e30="), `"/js/v3/event/db/tbl?REDACTED"`},
		{"URI with an API key in its path", zap.String("f", "/t;Api_Key="+key), `"/t;?REDACTED"`},
		{"one header", zap.Array("f", caddyhttp.LoggableStringArray{"/?" + key, "b"}), `["/?REDACTED","b"]`},
		{"headers", zap.Object("f", caddyhttp.LoggableHTTPHeader{Header: header}),
			`{"Referer":["http://x.example/?REDACTED"],"User-Agent":["Arduino/1.0"],"X-Lines":["a\n?REDACTED"],"X-Original-Url":["/p?REDACTED","/p;?REDACTED","/p;?REDACTED"]}`},
		{"credentials stay masked", zap.Object("f", caddyhttp.LoggableHTTPHeader{Header: http.Header{"Authorization": {"TD1 " + key}}}), `{"Authorization":["REDACTED"]}`},
		{"headers like the key's", zap.Object("f", caddyhttp.LoggableHTTPHeader{Header: relatives}),
			`{"Referer":["http://x.example/a?REDACTED"],"X-1234?REDACTED":["a"],"X-Forwarded-Authorization":["REDACTED"],"X-Note":["by TD1 …","td-write-key: …","for 1234/…"],"X-Original-Cookie":["REDACTED"]}`},
		{"key in a path", zap.String("f", "/postback/v3/event/"+real+"/x"), `"/postback/v3/event/1234/…/x"`},
		{"key in a text", zap.String("f", "dial "+real+": refused"), `"dial 1234/…: refused"`},
		{"credentials that Caddy is told to log", zap.Object("f", caddyhttp.LoggableHTTPHeader{ShouldLogCredentials: true, Header: http.Header{"Authorization": {"TD1 " + key}}}), `{"Authorization":["REDACTED"]}`},
		{"a whole request", zap.Object("f", caddyhttp.LoggableHTTPRequest{Request: &http.Request{
			Method: "TD1%20" + key, Host: "1234%2F0123456789abcdef", RequestURI: "/a?td_write_key=" + key, Proto: "HTTP/1.1", RemoteAddr: "192.0.2.1:7",
			Header: http.Header{"Td-Write-Key": {key}, "X-A": {real}}, TLS: &tls.ConnectionState{ServerName: "td_write_key=" + key},
		}}), `{"headers":{"X-A":["1234/…"]},"host":"1234?REDACTED","method":"TD1?REDACTED","proto":"HTTP/1.1","remote_ip":"192.0.2.1","remote_port":"7",` +
			`"tls":{"cipher_suite":0,"ech":false,"proto":"","resumed":false,"server_name":"?REDACTED","version":0},"uri":"/a?REDACTED"}`},
		{"another kind of field", zap.Any("f", map[string]string{"a": key}), ``},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := filtered(t, tc.field); got != tc.want {
				t.Errorf("got %s, want %s", got, tc.want)
			}
		})
	}
	if len(header["X-Td-Write-Key"]) != 1 || !strings.Contains(header["X-Original-Url"][0], key) {
		t.Error("the request's own header was changed")
	}
}

// TestLogFilterOfErrors leaves an error readable, which is no URL.
func TestLogFilterOfErrors(t *testing.T) {
	field := LogFilter{}.Filter(zap.String("error", `parse "/a?td_write_key=1234/ab%zz&api_key=1234/ab%zz": 100% wrong #1, for 1234/0123456789abcdef`))
	if want := `parse "/a?td_write_key=…&api_key=…": 100% wrong #1, for 1234/…`; field.String != want {
		t.Errorf("got %s, want %s", field.String, want)
	}
	if field = (LogFilter{}).Filter(zap.String("error", strings.Repeat("x", 1<<20))); len(field.String) > 4<<10 {
		t.Errorf("%d bytes", len(field.String))
	}
}

// TestLogFilterBounds sends what would fill a disk through its log.
func TestLogFilterBounds(t *testing.T) {
	const real = "1234/0123456789abcdef0123456789abcdef01234567"
	many := http.Header{}
	for n := range 10_000 {
		many["X-"+strconv.Itoa(n)] = []string{"value"}
	}
	repeated := http.Header{"X-A": slices.Repeat([]string{"value"}, 10_000)}
	for name, field := range map[string]zapcore.Field{
		"a long request": zap.Object("f", caddyhttp.LoggableHTTPRequest{Request: &http.Request{
			Method: strings.Repeat("x", 1<<20), Host: strings.Repeat("x", 1<<20), RequestURI: strings.Repeat("x", 1<<20), Header: many,
		}}),
		"a long URI":            zap.String("f", "/"+strings.Repeat("x", 1<<20)),
		"a long header":         zap.Object("f", caddyhttp.LoggableHTTPHeader{Header: http.Header{"X-A": {strings.Repeat("x", 1<<20)}}}),
		"a long name":           zap.Object("f", caddyhttp.LoggableHTTPHeader{Header: http.Header{strings.Repeat("x", 1<<20): {"a"}}}),
		"many headers":          zap.Object("f", caddyhttp.LoggableHTTPHeader{Header: many}),
		"many values":           zap.Object("f", caddyhttp.LoggableHTTPHeader{Header: repeated}),
		"a key at the bound":    zap.String("f", "/"+strings.Repeat("x", maxLoggedText-20)+"/"+real+strings.Repeat("x", 1<<20)),
		"a key beyond it":       zap.String("f", "/"+strings.Repeat("x", 2*maxLoggedText-10)+"/"+real),
		"many transfer codings": zap.Array("f", caddyhttp.LoggableStringArray(repeated["X-A"])),
	} {
		t.Run(name, func(t *testing.T) {
			text := filtered(t, field)
			if len(text) > 24<<10 || !strings.Contains(text, "…") {
				t.Errorf("%d bytes, and begins with %.100s", len(text), text)
			}
			if strings.Contains(text, "0123") {
				t.Errorf("a key is in %s", text)
			}
		})
	}
	if text := filtered(t, zap.Object("f", caddyhttp.LoggableHTTPHeader{Header: many})); !strings.Contains(text, ` more"`) {
		t.Errorf("it does not say how many are left out: %s", text)
	}
}

// filtered is a field behind the filter, as JSON.
func filtered(t *testing.T, field zapcore.Field) string {
	t.Helper()
	enc := zapcore.NewMapObjectEncoder()
	LogFilter{}.Filter(field).AddTo(enc)
	value, ok := enc.Fields["f"]
	if !ok {
		return ""
	}
	text, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// FuzzLogFilter looks for keys that get through, in a text and in a header.
func FuzzLogFilter(f *testing.F) {
	f.Add("/p", "X-A", "v")
	f.Add("/p;td_write_key=", "Td-Write-Key", "TD1 ")
	f.Add(strings.Repeat("x", maxLoggedText), strings.Repeat("x", maxLoggedText-3), strings.Repeat("1", maxLoggedText))
	f.Fuzz(func(t *testing.T, uri, name, value string) {
		const secret = "cafe0123456789abcdefcafe"
		for _, field := range []zapcore.Field{
			zap.String("f", uri+"/1234/"+secret),
			zap.Object("f", caddyhttp.LoggableHTTPHeader{Header: http.Header{name: {value + " 1234/" + secret}}}),
			zap.Object("f", caddyhttp.LoggableHTTPHeader{Header: http.Header{name + "/1234%2f" + secret: {value}}}),
		} {
			text := filtered(t, field)
			if strings.Contains(text, secret[:16]) {
				t.Errorf("a key is in %s", text)
			}
			if len(text) > 6*3*maxLoggedText { // JSON writes some bytes as six
				t.Errorf("%d bytes", len(text))
			}
		}
	})
}
