package caddymodule

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// TestHandoverOrder provisions the wrapper and a handler of one server in both
// orders: the handler learns in both that the configuration ends, and a handler
// of another server does not.
func TestHandoverOrder(t *testing.T) {
	for _, wrapperFirst := range []bool{true, false} {
		ctx, err := caddy.ProvisionContext(&caddy.Config{})
		if err != nil {
			t.Fatal(err)
		}
		wrapper, own, other := new(Handover), &Handler{Region: "us01"}, &Handler{Region: "us01"}
		server := ctx.WithValue(caddyhttp.ServerCtxKey, new(caddyhttp.Server))
		modules := []caddy.Provisioner{own, wrapper}
		if wrapperFirst {
			modules = []caddy.Provisioner{wrapper, own}
		}
		for _, m := range modules {
			if err := m.Provision(server); err != nil {
				t.Fatal(err)
			}
		}
		if err := other.Provision(ctx.WithValue(caddyhttp.ServerCtxKey, new(caddyhttp.Server))); err != nil {
			t.Fatal(err)
		}
		closes := func(h *Handler) bool {
			w := httptest.NewRecorder()
			if err := h.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/postback/", nil), nil); err != nil {
				t.Fatal(err)
			}
			return w.Header().Get("Connection") == "close"
		}
		if closes(own) || closes(other) {
			t.Errorf("wrapper first: %v: connections are closed before the end", wrapperFirst)
		}
		if err := wrapper.Handle(ctx, caddy.Event{}); err != nil {
			t.Fatal(err)
		}
		if !closes(own) {
			t.Errorf("wrapper first: %v: the connection stays", wrapperFirst)
		}
		if closes(other) {
			t.Errorf("wrapper first: %v: another server's connection is closed", wrapperFirst)
		}
		for _, m := range []caddy.CleanerUpper{own, wrapper, other} {
			if err := m.Cleanup(); err != nil {
				t.Error(err)
			}
		}
		if _, left := leavings.Load(wrapper.server); left {
			t.Errorf("wrapper first: %v: the server is remembered", wrapperFirst)
		}
	}
}
