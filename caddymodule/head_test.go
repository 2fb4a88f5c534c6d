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

// TestAnnouncedTrailers: over HTTP/2 and HTTP/3, some bytes of a trailer that is
// allowed to come are as much as a head in memory. So its room is counted before.
func TestAnnouncedTrailers(t *testing.T) {
	const limit = 1 << 20
	for _, test := range []struct {
		name  string
		major int
		names http.Header
		total int64
		held  int64 // at least
	}{
		{"over HTTP/2", 2, http.Header{"A": nil}, 4 << 20, limit},
		{"over HTTP/3", 3, http.Header{"A": nil}, 4 << 20, limit},
		{"over HTTP/2, without room", 2, http.Header{"A": nil}, limit, -1},
		{"none over HTTP/2", 2, nil, limit, 0},
		{"over HTTP/1.1, where net/http takes 4 KiB", 1, http.Header{"A": nil}, limit, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := stubHandler()
			h.Handoff, h.bodies.maxTotal, h.server = true, test.total, &caddyhttp.Server{MaxHeaderBytes: limit}
			r := benchRequest(http.MethodPost, benchPath, 2)
			r.Body, r.ProtoMajor, r.Trailer = &stubBody{[]byte("{}")}, test.major, test.names
			held := int64(-1)
			next := caddyhttp.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) error {
				held = h.bodies.inUse.Load()
				w.WriteHeader(http.StatusOK)
				return nil
			})
			w := httptest.NewRecorder()
			if err := h.ServeHTTP(w, r, next); err != nil {
				t.Fatal(err)
			}
			if held < test.held || held >= test.held+limit/2 {
				t.Errorf("%d bytes are counted, want about %d", held, test.held)
			}
			if want := map[bool]int{true: http.StatusServiceUnavailable, false: http.StatusOK}[test.held < 0]; w.Code != want {
				t.Errorf("got %d, want %d", w.Code, want)
			}
			if left := h.bodies.inUse.Load(); left != 0 {
				t.Errorf("%d bytes stay counted", left)
			}
		})
	}
}
