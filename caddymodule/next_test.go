package caddymodule

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/td-postback/gateway/postback"
)

// TestNextAnswers has next handlers that answer, each in another way: that
// answer stays. One that does not is answered by the gateway, and an error is
// Caddy's to answer.
func TestNextAnswers(t *testing.T) {
	failed := errors.New("failed")
	for name, test := range map[string]struct {
		next   func(w http.ResponseWriter) error
		status int
		body   string
		none   bool // the gateway answers
	}{
		"nothing":       {next: func(http.ResponseWriter) error { return nil }, none: true},
		"only a header": {next: func(w http.ResponseWriter) error { w.Header().Set("X", "1"); return nil }, none: true},
		"an empty 200":  {next: func(w http.ResponseWriter) error { w.WriteHeader(200); return nil }, status: 200},
		"a body":        {next: func(w http.ResponseWriter) error { _, err := io.WriteString(w, "x"); return err }, status: 200, body: "x"},
		"a copied body": {next: func(w http.ResponseWriter) error {
			_, err := w.(io.ReaderFrom).ReadFrom(strings.NewReader("y"))
			return err
		}, status: 200, body: "y"},
		"a flush":       {next: func(w http.ResponseWriter) error { return http.NewResponseController(w).Flush() }, status: 200},
		"an error":      {next: func(http.ResponseWriter) error { return failed }, status: 200},
		"only a status": {next: func(w http.ResponseWriter) error { w.WriteHeader(299); return nil }, status: 299},
	} {
		next := caddyhttp.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) error { return test.next(w) })
		for path, refused := range map[string]*postback.Refusal{"/elsewhere": postback.NotFound, benchPath: postback.NothingBehind} {
			h := &Handler{
				Handoff: true, PassThru: true, logger: zap.NewNop(), served: postback.SurfacesOf([]string{handoffSurface}), leaving: leavingOf(nil),
				bodies: &bodies{maxBody: postback.MaxBody, maxTotal: 2 << 20}, single: &route{host: "v2.example"},
			}
			w, r := httptest.NewRecorder(), benchRequest(http.MethodPost, path, 2)
			r.Body = &stubBody{[]byte("{}")}
			err := h.ServeHTTP(w, r, next)
			if (err != nil) != (name == "an error") {
				t.Errorf("%s at %s: %v", name, path, err)
			}
			want, body := test.status, test.body
			if test.none {
				want, body = refused.Status, `{"error":"`+refused.Code+`","message":"`+refused.Message+`"}`+"\n"
			}
			if w.Code != want || w.Body.String() != body {
				t.Errorf("%s at %s: got %d %q, want %d %q", name, path, w.Code, w.Body, want, body)
			}
			if h.bodies.inUse.Load() != 0 {
				t.Errorf("%s at %s: %d bytes stay counted", name, path, h.bodies.inUse.Load())
			}
		}
	}
}

// TestNextEarly tells what comes before an answer from one.
func TestNextEarly(t *testing.T) {
	for status, want := range map[int]bool{100: false, 103: false, 101: true, 200: true, 404: true} {
		watch := &answerWatch{ResponseWriterWrapper: &caddyhttp.ResponseWriterWrapper{ResponseWriter: httptest.NewRecorder()}}
		if watch.WriteHeader(status); watch.answered != want {
			t.Errorf("%d: got %v", status, watch.answered)
		}
	}
}
