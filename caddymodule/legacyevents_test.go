package caddymodule

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/td-postback/gateway/migration"
	"github.com/td-postback/gateway/postback"
	"github.com/td-postback/gateway/upstream"
)

// keepsBodies is a legacy host that answers {} and keeps what it gets.
func keepsBodies(t *testing.T, bodies chan<- string) *route {
	t.Helper()
	host := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		bodies <- string(body)
		_, _ = io.WriteString(w, "own")
	}))
	t.Cleanup(host.Close)
	target, err := url.Parse(host.URL)
	if err != nil {
		t.Fatal(err)
	}
	client, err := upstream.New(upstream.Config{URL: target, MaxConns: 8, Timeout: time.Minute, DialTimeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return &route{host: target.Host, url: target, Client: client, legacy: true}
}

// TestLaneOfEvents has a call with several events go by the lane of its tables, read or
// unread, whole and unchanged.
func TestLaneOfEvents(t *testing.T) {
	const both = `{"shop.v2":[{"a":1}],"shop.old":[{"a":2}]}`
	large := `{"shop.v2":[{"a":"` + strings.Repeat("x", 2<<20) + `"}]}`
	for _, tc := range []struct {
		name, body string
		headers    []string
		chunked    bool
		unasked    bool   // the plan knows without the tables
		tables     string // of which it is asked
		toV2       bool
		maxTotal   int64
		status     int
		heard      string
	}{
		{name: "one that goes to v2", body: `{"shop.v2":[{"a":1}]}`, tables: "shop.v2", toV2: true, status: 200, heard: `"success":true`},
		{name: "one that does not", body: `{"shop.old":[{"a":1}]}`, tables: "shop.old", status: 200, heard: "own"},
		{name: "both", body: both, tables: "shop.v2 shop.old", status: 200, heard: "own"},
		{name: "in chunks", body: both, chunked: true, tables: "shop.v2 shop.old", status: 200, heard: "own"},
		{name: "in chunks, to v2", body: `{"shop.v2":[{"a":1}]}`, chunked: true, tables: "shop.v2", toV2: true, status: 200, heard: `"success":true`},
		{name: "gzip", body: compressed(t, "gzip", both), headers: []string{"Content-Encoding", "gzip"}, tables: "shop.v2 shop.old", status: 200, heard: "own"},
		{name: "zlib, to v2", body: compressed(t, "zlib", `{"shop.v2":[{"a":1}]}`), headers: []string{"Content-Encoding", "deflate"}, tables: "shop.v2", toV2: true, status: 200, heard: `"success":true`},
		{name: "longer than max_body", body: large, tables: "shop.v2", toV2: true, status: 200, heard: `"success"`},
		{name: "longer than max_body, in chunks", body: large, chunked: true, tables: "shop.v2", status: 200, heard: "own"},
		{name: "a bad name beside a good one", body: `{"a b.c":[{}],"shop.v2":[{}]}`, tables: ". shop.v2", status: 200, heard: "own"},
		{name: "broken", body: `{"shop.v2":[`, status: 200, heard: "own"},
		{name: "broken, to v2", body: `{"shop.v2":[`, toV2: true, status: 400, heard: "invalid_request"},
		{name: "cut gzip", body: compressed(t, "gzip", both)[:30], headers: []string{"Content-Encoding", "gzip"}, status: 200, heard: "own"},
		{name: "too large for max_buffered", body: large, maxTotal: 4 << 20, status: 200, heard: "own"},
		{name: "the same in chunks", body: large, chunked: true, maxTotal: 4 << 20, status: 200, heard: "own"},
		{name: "the same to v2", body: large, chunked: true, maxTotal: 4 << 20, toV2: true, status: 503, heard: "overloaded"},
		{name: "no room to unpack it", body: compressed(t, "gzip", large), headers: []string{"Content-Encoding", "gzip"}, maxTotal: 1 << 20, status: 503, heard: "overloaded"},
		{name: "the plan knows without them", body: both, unasked: true, status: 200, heard: "own"},
		{name: "the same to v2", body: both, unasked: true, toV2: true, status: 200, heard: `"success":true`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := steered(newKeenV2(t).h, func(laneQuery) migration.Lane { t.Error("another question"); return migration.Legacy })
			asked, lane := 0, migration.Legacy
			if tc.toV2 {
				lane = migration.V2
			}
			h.legacy.decideAtHead = func(laneQuery) (migration.Lane, bool) { return lane, tc.unasked }
			h.legacy.decideByTables = func(q laneQuery, tables []postback.Destination) migration.Lane {
				got := make([]string, 0, len(tables))
				for _, to := range tables {
					got = append(got, to.Database+"."+to.Table)
				}
				if asked++; strings.Join(got, " ") != tc.tables || q.Key != keenKey || q.Client != "192.0.2.7" || q.Table != "" {
					t.Errorf("asked of %q, %+v", got, q)
				}
				return lane
			}
			bodies := make(chan string, 1)
			h.legacy.single = keepsBodies(t, bodies)
			if tc.maxTotal > 0 {
				h.bodies.maxTotal = tc.maxTotal
			}
			r := keenRequest("/ios/v3/event", tc.body, tc.headers...)
			if tc.chunked {
				r.ContentLength, r.TransferEncoding = -1, []string{"chunked"}
			}
			w := httptest.NewRecorder()
			if err := h.ServeHTTP(w, r, nil); err != nil || w.Code != tc.status || !strings.Contains(w.Body.String(), tc.heard) {
				t.Errorf("got %d %.100q, %v", w.Code, w.Body, err)
			}
			if want := map[bool]int{false: 1}[tc.unasked]; asked != want && tc.status != 503 {
				t.Errorf("the plan was asked %d times", asked)
			}
			got := ""
			if len(bodies) > 0 {
				got = <-bodies
			}
			if want := map[bool]string{true: tc.body}[tc.heard == "own"]; got != want {
				t.Errorf("the legacy host got %d bytes, want %d: %.100q", len(got), len(want), got)
			}
			if used := h.bodies.inUse.Load(); used != 0 {
				t.Errorf("%d bytes are still counted", used)
			}
		})
	}
}
