package caddymodule

import (
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/td-postback/gateway/migration"
	"github.com/td-postback/gateway/postback"
)

// failingBody is a body that does not come.
type failingBody struct{ err error }

func (b failingBody) Read([]byte) (int, error) {
	if b.err == nil {
		panic(http.ErrAbortHandler)
	}
	return 0, b.err
}

func (failingBody) Close() error { return nil }

// labelledCalls are calls with the plan shop.orders 100, crm.* 100, and all of account 9.
var labelledCalls = []struct {
	name, uri, method string
	headers           []string
	body              io.ReadCloser // else one that comes
	change            func(h *Handler)
	lane, result      string
	counts            string // the rule for which it counts in the real shares, if it does
}{
	{name: "no room for a head", uri: "/postback/v3/event/shop/orders", change: noRoom, lane: "v2", result: "overloaded"},
	{name: "no room for a head, of a table that has not moved", uri: "/postback/v3/event/shop/carts", change: noRoom, lane: "legacy", result: "overloaded"},
	{name: "no room for a head, of an account that has moved", uri: "/postback/v3/event/shop/carts", headers: []string{"X-Td-Write-Key", "9/a"}, change: noRoom, lane: "v2", result: "overloaded"},
	{name: "no room for a head, several events", uri: "/ios/v3/event", change: noRoom, lane: "legacy", result: "overloaded"},
	{name: "no room for a head, several events of an account that has moved", uri: "/ios/v3/event", headers: []string{"X-Td-Write-Key", "9/a"}, change: noRoom, lane: "v2", result: "overloaded"},
	{name: "no room for a head, no surface", uri: "/crm/leads", headers: []string{"X-Td-Write-Key", "9/a"}, change: noRoom, lane: "legacy", result: "overloaded"},
	{name: "no room for a head, a bad name", uri: "/postback/v3/event/crm/a.b", change: noRoom, lane: "legacy", result: "overloaded"},
	{name: "no room for a head, another method", method: http.MethodPut, uri: "/postback/v3/event/crm/leads", change: noRoom, lane: "legacy", result: "overloaded"},
	{name: "a large head", uri: "/postback/v3/event/shop/orders", headers: []string{"X-Large", strings.Repeat("x", 70_000)}, lane: "v2", result: "headers_too_large"},
	{name: "a large head, of a table that has not moved", uri: "/postback/v3/event/shop/carts", headers: []string{"X-Large", strings.Repeat("x", 70_000)}, lane: "legacy", result: "headers_too_large"},
	{name: "no room for a body", uri: "/postback/v3/event/shop/orders", change: func(h *Handler) { h.bodies.maxTotal = 4000 }, lane: "v2", result: "overloaded"},
	{name: "no room for a body, of a table that has not moved", uri: "/postback/v3/event/shop/carts", change: func(h *Handler) { h.bodies.maxTotal = 4000 }, lane: "legacy", result: "overloaded"},
	{name: "a slow body", uri: "/postback/v3/event/crm/leads", body: failingBody{os.ErrDeadlineExceeded}, lane: "v2", result: "request_timeout"},
	{name: "a slow body, of a table that has not moved", uri: "/postback/v3/event/shop/carts", body: failingBody{os.ErrDeadlineExceeded}, lane: "legacy", result: "request_timeout"},
	{name: "a slow body, several events", uri: "/ios/v3/event", headers: []string{"X-Td-Write-Key", "9/a"}, body: failingBody{os.ErrDeadlineExceeded}, lane: "v2", result: "request_timeout"},
	{name: "a body that breaks off", uri: "/postback/v3/event/crm/leads", body: failingBody{io.ErrUnexpectedEOF}, lane: "v2", result: "invalid_request"},
	{name: "a body that breaks off, of a table that has not moved", uri: "/postback/v3/event/shop/carts", body: failingBody{io.ErrUnexpectedEOF}, lane: "legacy", result: "invalid_request"},
	{name: "a panic while the body comes", uri: "/postback/v3/event/crm/leads", body: failingBody{}, lane: "v2", result: "no_outcome"},
	{name: "a panic while the body comes, of a table that has not moved", uri: "/postback/v3/event/shop/carts", body: failingBody{}, lane: "legacy", result: "no_outcome"},
	{name: "a loop", uri: "/postback/v3/event/shop/orders", headers: []string{"Via", "1.1 td-postback-0123456789ab"}, lane: "legacy", result: "loop_detected"},
	{name: "no surface", uri: "/crm/leads", lane: "legacy", result: "forwarded"},
	{name: "without migrate", uri: "/postback/v3/event/shop/carts", change: func(h *Handler) { h.legacy = nil; noRoom(h) }, lane: "v2", result: "overloaded"},

	{name: "what v2's lane refuses", uri: "/postback/v3/event/shop/orders", lane: "v2", result: "missing_write_key", counts: "shop.orders"},
	{name: "what the legacy lane cannot send", uri: "/postback/v3/event/shop/carts", change: func(h *Handler) { h.legacy.single.Client = nobody(h) }, lane: "legacy", result: "upstream_unreachable", counts: "*.*"},
	{name: "a record", uri: "/postback/v3/event/shop/orders", headers: []string{"X-Td-Write-Key", "8/a"}, lane: "v2", result: "forwarded", counts: "shop.orders"},
	{name: "a record of a table that has not moved", uri: "/postback/v3/event/shop/carts", headers: []string{"X-Td-Write-Key", "8/a"}, lane: "legacy", result: "forwarded", counts: "*.*"},
	{name: "another method", method: http.MethodPut, uri: "/postback/v3/event/crm/leads", lane: "legacy", result: "forwarded", counts: "*.*"},
}

func noRoom(h *Handler) { h.bodies.maxTotal = 10 }

// TestLaneOfEachCall: a call that is refused before its lane is chosen has the lane that
// it would have gone by, in the metrics and in the report. It counts in no real share, as
// one for which no lane is chosen.
func TestLaneOfEachCall(t *testing.T) {
	for _, tc := range labelledCalls {
		t.Run(tc.name, func(t *testing.T) {
			s := startPlan(t, aPlan(t))
			defer s.leave()
			planOfLabels(t, s)
			h := steered(stubHandler(), s.decide)
			h.legacy.decideAtHead, h.legacy.decideByTables = s.decideAtHead, s.decideByTables
			report := withReport(t, h)
			if tc.change != nil {
				tc.change(h)
			}
			method := tc.method
			if method == "" {
				method = http.MethodPost
			}
			r := benchRequest(method, tc.uri, 300)
			for i := 0; i < len(tc.headers); i += 2 {
				r.Header[tc.headers[i]] = tc.headers[i+1 : i+2]
			}
			if r.Body = tc.body; r.Body == nil {
				r.Body = &stubBody{data: benchBody(300)}
			}
			before := resultsBy(t, tc.lane, tc.result)
			serveAborted(t, h, r)
			if got := resultsBy(t, tc.lane, tc.result) - before; got != 1 {
				t.Errorf("%v calls more are %s by lane %s", got, tc.result, tc.lane)
			}
			now := time.Now()
			rows := report.get().List(now).Rows
			if len(rows) != 1 || rows[0].Lanes[tc.lane] != 1 || len(rows[0].Lanes) != 1 {
				t.Errorf("the report has %+v", rows)
			}
			counted := ""
			for _, rule := range s.get().Shares(report.get(), now) {
				if rule.Events > 0 {
					counted += rule.Target
				}
			}
			if counted != tc.counts {
				t.Errorf("it counts for %q, want %q", counted, tc.counts)
			}
		})
	}
}

// resultsBy is how many calls had a result by a lane.
func resultsBy(t *testing.T, lane, result string) (calls float64) {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(resultsTotal)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, metric := range families[0].GetMetric() {
		if labels := metric.GetLabel(); labels[0].GetValue() == lane && labels[1].GetValue() == result {
			calls = metric.GetCounter().GetValue()
		}
	}
	return calls
}

// planOfLabels makes the plan of labelledCalls.
func planOfLabels(t *testing.T, s *sharedPlan) {
	t.Helper()
	for revision, rule := range []migration.Rule{{Target: "shop.orders"}, {Target: "crm.*"}, {Target: "*.*", Account: "9"}} {
		base := uint64(revision)
		if _, err := s.get().Share(migration.Order{Time: time.Now(), Base: &base}, rule, migration.AllToV2); err != nil {
			t.Fatal(err)
		}
	}
}

// serveAborted serves a call of which the server stops a panic.
func serveAborted(t *testing.T, h *Handler, r *http.Request) {
	t.Helper()
	defer func() {
		if p := recover(); p != nil && p != http.ErrAbortHandler { //nolint:errorlint // it is a value
			t.Fatal(p)
		}
	}()
	if err := h.ServeHTTP(httptest.NewRecorder(), r, nil); err != nil {
		t.Error(err)
	}
}

// TestLaneOfLargeCalls: one that is longer than max_body has its lane by its head.
func TestLaneOfLargeCalls(t *testing.T) {
	h := steered(stubHandler(), always(migration.Legacy))
	report := withReport(t, h)
	r := benchRequest(http.MethodPost, benchPath, postback.MaxBody+1)
	r.Body = failingBody{io.ErrUnexpectedEOF}
	serveAborted(t, h, r)
	if rows := report.get().List(time.Now()).Rows; len(rows) != 1 || rows[0].Lanes["legacy"] != 1 {
		t.Errorf("the report has %+v", rows)
	}
}
