package caddymodule

import (
	"encoding/json"
	"net/http"
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
		"X-Original-Url": {"/p?td_write_key=" + key, "/p;TD_WRITE_KEY=" + key}, "Referer": {"http://x.example/%3Ftd%5Fwrite%5Fkey=" + key},
		"X-Lines": {"a\ntd_write_key=\n" + key},
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
		{"one header", zap.Array("f", caddyhttp.LoggableStringArray{"/?" + key, "b"}), `["/?REDACTED","b"]`},
		{"headers", zap.Object("f", caddyhttp.LoggableHTTPHeader{Header: header}),
			`{"Referer":["http://x.example/?REDACTED"],"User-Agent":["Arduino/1.0"],"X-Lines":["a\n?REDACTED"],"X-Original-Url":["/p?REDACTED","/p;?REDACTED"]}`},
		{"credentials stay masked", zap.Object("f", caddyhttp.LoggableHTTPHeader{Header: http.Header{"Authorization": {"TD1 " + key}}}), `{"Authorization":["REDACTED"]}`},
		{"another kind of field", zap.Any("f", map[string]string{"a": key}), ``},
	} {
		t.Run(tc.name, func(t *testing.T) {
			enc := zapcore.NewMapObjectEncoder()
			LogFilter{}.Filter(tc.field).AddTo(enc)
			got := ""
			if value, ok := enc.Fields["f"]; ok {
				text, err := json.Marshal(value)
				if err != nil {
					t.Fatal(err)
				}
				got = string(text)
			}
			if got != tc.want {
				t.Errorf("got %s, want %s", got, tc.want)
			}
		})
	}
	if len(header["X-Td-Write-Key"]) != 1 || !strings.Contains(header["X-Original-Url"][0], key) {
		t.Error("the request's own header was changed")
	}
}
