package caddymodule

import (
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/td-postback/gateway/migration"
	"github.com/td-postback/gateway/postback"
	"github.com/td-postback/gateway/upstream"
)

// What a request costs in the gateway's own code: without Caddy before it, and
// without a kernel behind it. The rest is in ../bench.

const (
	benchKey   = "1234/0123456789abcdef0123456789abcdef01234567"
	benchPath  = "/postback/v3/event/db/tbl?td_write_key=" + benchKey
	benchQuery = "td_format=pixel&event=view&page_url=https%3A%2F%2Fshop.example%2Fitem%3Fid%3D7&title=Caf%C3%A9+noir&user=42&td_ip=td_ip&td_ua=td_ua"
	benchAgent = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
)

func BenchmarkPost(b *testing.B) { benchHandler(b, http.MethodPost, benchPath, 300) }

// BenchmarkPostSteered is BenchmarkPost with two lanes, by that of v2, as a share of a
// large plan has it, and BenchmarkPostLegacy by the other.
func BenchmarkPostSteered(b *testing.B) {
	benchCalls(b, steered(stubHandler(), largePlan(b).decide), http.MethodPost, benchPath, 300)
}

func BenchmarkPostLegacy(b *testing.B) {
	benchCalls(b, steered(stubHandler(), always(migration.Legacy)), http.MethodPost, benchPath, 300)
}

func BenchmarkPost64K(b *testing.B) { benchHandler(b, http.MethodPost, benchPath, 64<<10) }
func BenchmarkPixel(b *testing.B)   { benchHandler(b, http.MethodGet, benchPath+"&"+benchQuery, 0) }

// BenchmarkJSONP is a page view as td-js-sdk 2.5 sends it, the slash of its key as an
// escape. TestJSONPCost compares it with BenchmarkPixel.
func BenchmarkJSONP(b *testing.B) { benchHandler(b, http.MethodGet, benchJSONP(), 0) }

// BenchmarkJS is a record in a body, as SDK 3 sends it.
func BenchmarkJS(b *testing.B) { benchHandler(b, http.MethodPost, benchJS, 300) }

const benchJS = "/js/v3/event/db/tbl?api_key=" + benchKey + "&modified=1767225600000"

// BenchmarkKeen is 400 events of a mobile SDK's in one request.
func BenchmarkKeen(b *testing.B) {
	events := make([]string, 400)
	for n := range events {
		events[n] = fmt.Sprintf(`{"keen":{"timestamp":"2026-11-25T02:23:55.%03d+0000"},"#UUID":"08289530-0000-4000-8000-%012d","text":"%0200d"}`, n, n, n)
	}
	body := compressed(b, "zlib", `{"db.tbl":[`+strings.Join(events, ",")+`]}`)
	h := stubHandler()
	w := &stubWriter{header: http.Header{}}
	b.ReportAllocs()
	for b.Loop() {
		clear(w.header)
		w.status = 0
		if err := h.ServeHTTP(w, keenRequest(keenPath, body, "Content-Encoding", "deflate"), nil); err != nil || w.status != http.StatusOK {
			b.Fatal(err, w.status)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(events)), "ns/event")
}

// benchView is the record of a page view. It has the fields of benchQuery, and what
// the SDK adds for the server to fill in.
const benchView = `{"event":"view","page_url":"https://shop.example/item?id=7","title":"Café noir","user":"42","td_ip":"td_ip",` +
	`"td_browser":"td_browser","td_browser_version":"td_browser_version","td_os":"td_os","td_os_version":"td_os_version"}`

func benchJSONP() string {
	data := url.QueryEscape(base64.StdEncoding.EncodeToString([]byte(benchView)))
	return "/js/v3/event/db/tbl?api_key=" + url.QueryEscape(benchKey) + "&modified=1767225600000&data=" + data + "&callback=TreasureJSONPCallback0"
}

// benchHandler sends requests through the whole handler. v2 is a connection
// without a kernel, the caller a writer without a connection.
func benchHandler(b *testing.B, method, uri string, size int) {
	benchCalls(b, stubHandler(), method, uri, size)
}

func benchCalls(b *testing.B, h *Handler, method, uri string, size int) {
	r := benchRequest(method, uri, size)
	body := benchBody(size)
	read := &stubBody{}
	r.Body = read
	w := &stubWriter{header: http.Header{}}
	b.ReportAllocs()
	for b.Loop() {
		read.data = body
		clear(w.header)
		w.status = 0
		if err := h.ServeHTTP(w, r, nil); err != nil || w.status != http.StatusOK {
			b.Fatal(err, w.status)
		}
	}
}

// benchBody is a JSON object of this size, or nothing.
func benchBody(size int) []byte {
	const frame = `{"a":""}`
	if size < len(frame) {
		return nil
	}
	return []byte(`{"a":"` + strings.Repeat("x", size-len(frame)) + `"}`)
}

func benchRequest(method, uri string, size int) *http.Request {
	r := httptest.NewRequestWithContext(context.WithValue(context.Background(), caddyhttp.VarsCtxKey, map[string]any{
		caddyhttp.TrustedProxyVarKey: false,
		caddyhttp.ClientIPVarKey:     "192.0.2.7",
	}), method, uri, nil)
	r.ContentLength = int64(size)
	r.Host, r.RemoteAddr = "in.treasuredata.com", "192.0.2.7:40000"
	r.Header = http.Header{
		"User-Agent":      {benchAgent},
		"Accept":          {"*/*"},
		"Accept-Encoding": {"gzip, deflate, br"},
	}
	if size > 0 {
		r.Header["Content-Type"] = []string{"application/json"}
	}
	return r
}

// stubBody is a request body in memory.
type stubBody struct{ data []byte }

func (s *stubBody) Read(p []byte) (int, error) {
	if len(s.data) == 0 {
		return 0, io.EOF
	}
	n := copy(p, s.data)
	s.data = s.data[n:]
	return n, nil
}

func (s *stubBody) Close() error { return nil }

// stubWriter is a caller that keeps nothing but the status.
type stubWriter struct {
	header http.Header
	status int
}

func (w *stubWriter) Header() http.Header         { return w.header }
func (w *stubWriter) WriteHeader(status int)      { w.status = status }
func (w *stubWriter) Write(p []byte) (int, error) { return len(p), nil }

// stubConn answers every read with v2's usual answer.
type stubConn struct{ net.Conn }

func (stubConn) Read(p []byte) (int, error) {
	return copy(p, "HTTP/1.1 200 OK\r\nDate: Thu, 01 Jan 2026 00:00:00 GMT\r\nContent-Type: application/json;charset=utf-8\r\n"+
		"Content-Length: 2\r\nConnection: keep-alive\r\nX-Request-Id: 0123456789abcdef\r\nServer: nginx\r\n\r\n{}"), nil
}
func (stubConn) Write(p []byte) (int, error)      { return len(p), nil }
func (stubConn) SetDeadline(time.Time) error      { return nil }
func (stubConn) SetReadDeadline(time.Time) error  { return nil }
func (stubConn) SetWriteDeadline(time.Time) error { return nil }
func (stubConn) Close() error                     { return nil }

// largePlan is a plan with many rules and accounts. Of the calls of the benchmarks, a
// share goes to v2 that has them.
func largePlan(tb testing.TB) *sharedPlan {
	plan, err := migration.OpenPlan(migration.PlanConfig{})
	if err != nil {
		tb.Fatal(err)
	}
	share := func(rule migration.Rule, share migration.Share) {
		base := plan.Status().Revision
		if _, err := plan.Share(migration.Order{Base: &base}, rule, share); err != nil {
			tb.Fatal(err)
		}
	}
	for n := range 100 {
		share(migration.Rule{Target: fmt.Sprint("db.tbl", n), Account: fmt.Sprint(1000 + n)}, 12_34)
	}
	share(migration.Rule{Target: "db.tbl", Account: "1234"}, 99_99)
	shared := new(sharedPlan)
	shared.current.Store(plan)
	return shared
}

// stubHandler forwards to a v2 without a kernel.
func stubHandler() *Handler {
	return &Handler{
		MaxBody: postback.MaxBody, GlobalID: defaultGlobalID, logger: zap.NewNop(), served: postback.AllSurfaces, leaving: new(atomic.Bool),
		bodies: &bodies{maxBody: postback.MaxBody, maxTotal: defaultMaxBuffered},
		single: &route{host: "us01.records.in.treasuredata.com", Client: stubUpstream()},
	}
}

func stubUpstream() *upstream.Client {
	client, err := upstream.New(upstream.Config{
		URL:     &url.URL{Scheme: "http", Host: "v2"},
		Dial:    func(string) (net.Conn, error) { return stubConn{}, nil },
		Timeout: time.Minute, MaxConns: 512,
	})
	if err != nil {
		panic(err)
	}
	return client
}
