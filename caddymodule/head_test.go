package caddymodule

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/td-postback/gateway/postback"
)

// TestHeads sends heads of every size. What is in memory is counted while the
// call lasts, fields of more than 64 KiB are refused first of all, and a URL may
// be long.
func TestHeads(t *testing.T) {
	const field = len("X-Large: \r\n")
	for _, test := range []struct {
		name, method, uri string
		fields            int // bytes of one field; 0 for none
		total             int64
		status            int
		code              string
	}{
		{"an ordinary head", http.MethodPost, benchPath, 0, minBuffered, 200, ""},
		{"a long URL", http.MethodPost, benchPath + "&x=" + strings.Repeat("x", 900_000), 0, 4 << 20, 200, ""},
		{"a long URL that does not fit", http.MethodPost, benchPath + "&x=" + strings.Repeat("x", 900_000), 0, 1_700_000, 503, "overloaded"},
		{"large fields", http.MethodPost, benchPath, 65_000 - 300, minBuffered, 200, ""},
		{"fields that are too large", http.MethodPost, benchPath, 66_000, minBuffered, 431, "headers_too_large"},
		{"too large, without a key", http.MethodPost, "/postback/v3/event/db/tbl", 66_000, minBuffered, 431, "headers_too_large"},
		{"too large, another method", http.MethodPut, benchPath, 66_000, minBuffered, 431, "headers_too_large"},
		{"too large, a preflight", http.MethodOptions, benchPath, 66_000, minBuffered, 431, "headers_too_large"},
		{"too large, and passed through", http.MethodPost, "/elsewhere", 66_000, minBuffered, 200, ""}, // what passes through is not the gateway's,
	} {
		t.Run(test.name, func(t *testing.T) {
			h := stubHandler()
			h.PassThru, h.Handoff, h.bodies.maxTotal = true, true, test.total
			r := benchRequest(test.method, test.uri, 2)
			r.Body = &stubBody{[]byte("{}")}
			if test.fields > 0 {
				r.Header.Set("X-Large", strings.Repeat("x", test.fields-field))
			}
			_, memory := postback.HeadBytes(r)
			next := caddyhttp.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
				if held := h.bodies.inUse.Load(); r.URL.Path != "/elsewhere" && held < 2*int64(memory) {
					t.Errorf("%d bytes are counted of a head of %d", held, memory)
				}
				w.WriteHeader(http.StatusOK)
				return nil
			})
			w := httptest.NewRecorder()
			if err := h.ServeHTTP(w, r, next); err != nil {
				t.Fatal(err)
			}
			if w.Code != test.status || !strings.Contains(w.Body.String(), test.code) {
				t.Errorf("got %d %q", w.Code, w.Body)
			}
			if held := h.bodies.inUse.Load(); held != 0 {
				t.Errorf("%d bytes stay counted", held)
			}
		})
	}
}
