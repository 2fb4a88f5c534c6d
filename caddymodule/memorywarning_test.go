package caddymodule

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/td-postback/gateway/migration"
)

// TestMemoryWarning: the log says that a record is refused for want of memory when one is,
// and not when only the audit finds no room, or a connection is missing.
func TestMemoryWarning(t *testing.T) {
	for name, tc := range map[string]struct {
		method, uri, body string
		change            func(h *Handler)
		filling           bool // memory is used up when the answer is there
		warns             bool
	}{
		"no room for a head":                     {method: "POST", uri: keyed, body: "{}", change: noRoom, warns: true},
		"no room for a body":                     {method: "POST", uri: keyed, body: "{}", change: func(h *Handler) { h.bodies.maxTotal = 4000 }, warns: true},
		"no room for a record in the query":      {method: "GET", uri: keyed + "&a=1", change: func(h *Handler) { h.legacy, h.bodies.maxTotal = nil, 4000 }, warns: true},
		"no room for the audit of a query":       {method: "GET", uri: keyed + "&a=1", filling: true},
		"no room for the audit of an SDK's call": {method: "GET", uri: asJS + data(`{}`), filling: true},
		"no room for the audit of an array":      {method: "POST", uri: keyed, body: "[" + strings.Repeat(" ", 200_000) + "]", filling: true},
		"no room for the audit of events":        {method: "POST", uri: "/ios/v3/event?api_key=" + benchKey, body: `{"db.t":[7]}`, filling: true},
		"nobody is there":                        {method: "POST", uri: keyed, body: "{}", change: func(h *Handler) { h.legacy.single.Client = nobody(h) }},
	} {
		t.Run(name, func(t *testing.T) {
			h := steered(stubHandler(), always(migration.Legacy))
			withReport(t, h)
			if tc.change != nil {
				tc.change(h)
			}
			core, logs := observer.New(zap.WarnLevel)
			h.logger = zap.New(core)
			memoryWarning.last.Store(0)
			var w http.ResponseWriter = httptest.NewRecorder()
			if tc.filling {
				w = fillingWriter{httptest.NewRecorder(), h.bodies}
			}
			if err := h.ServeHTTP(w, taggedRequest(tc.method, tc.uri, tc.body), nil); err != nil {
				t.Fatal(err)
			}
			if got := logs.FilterMessage(memoryWarning.message).Len() > 0; got != tc.warns {
				t.Errorf("it warns: %v", got)
			}
		})
	}
}
