package caddymodule

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/td-postback/gateway/migration"
	"github.com/td-postback/gateway/postback"
	"github.com/td-postback/gateway/spool"
	"github.com/td-postback/gateway/upstream"
)

// withLegacySpool gives a handler with two lanes a spool on disk, for a legacy host that
// answers so, and delivers nothing.
func withLegacySpool(t *testing.T, h *Handler, answer http.HandlerFunc) spool.Log {
	t.Helper()
	host := httptest.NewServer(answer)
	t.Cleanup(host.Close)
	target, err := url.Parse(host.URL)
	if err != nil {
		t.Fatal(err)
	}
	h.Spool = &Spool{Dir: t.TempDir()}
	h.Spool.applyDefaults()
	h.MaxConns, h.Retries = 8, new(int)
	h.DialTimeout, h.ResponseTimeout = caddy.Duration(time.Second), caddy.Duration(time.Second)
	h.Migrate = &Migrate{Legacy: host.URL}
	h.single = nil // nothing may go to v2
	if h.legacy.single, err = h.newLegacyRoute(target.String(), new(tls.Config)); err != nil {
		t.Fatal(err)
	}
	shared := h.Spool.shared(h.Spool.Dir, nil)
	if err := shared.Open(); err != nil {
		t.Fatal(err)
	}
	block := h.spoolBlock()
	h.legacy.single.queue = shared.Attach(block)[h.legacy.single.queueName()]
	t.Cleanup(func() {
		h.legacy.close()
		shared.Detach(block)
		if err := shared.Close(); err != nil {
			t.Error(err)
		}
	})
	return shared.Log()
}

// TestLegacyKept has the legacy host not take calls now, and looks what their callers
// hear, what is kept, and that nothing is counted in max_buffered in the end.
func TestLegacyKept(t *testing.T) {
	t.Parallel() // one waits for a connection
	large := benchPath + "&td_format=pixel&a=" + strings.Repeat("%01", 200)
	for _, tc := range []struct {
		name, method, uri string
		length            int
		status            int // of the host
		change            func(h *Handler)
		heard             int
		says              string // the answer
		kept              int
	}{
		{"a record", http.MethodPost, benchPath, 300, 503, nil, 200, "{}", 1},
		{"64 KiB", http.MethodPost, benchPath, 64 << 10, 503, nil, 200, "{}", 1},
		{"the largest", http.MethodPost, benchPath, postback.MaxBody, 503, nil, 200, "{}", 1},
		{"a pixel", http.MethodGet, benchPath + "&td_format=pixel&a=1", 0, 503, nil, 200, pixel, 1},
		{"a beacon", http.MethodPost, benchPath + "&a=1", 0, 503, nil, 200, "{}", 1},
		{"an object beside a query", http.MethodPost, benchPath + "&td_format=pixel", 300, 503, nil, 200, pixel, 1},
		{"a redirect that is not allowed", http.MethodGet, benchPath + "&td_redirect=https://x.example/", 0, 503, nil, 400, "redirect_not_allowed", 1},
		{"it takes the record", http.MethodPost, benchPath, 300, 200, nil, 200, "own", 0},
		{"it refuses the record", http.MethodGet, benchPath, 0, 403, nil, 403, "own", 0},
		{"of a JavaScript SDK", http.MethodPost, benchJS, 300, 503, nil, 503, "own", 0},
		{"another method", http.MethodPut, benchPath, 300, 503, nil, 503, "own", 0},
		{"no memory to keep it", http.MethodPost, benchPath, 300, 503, func(h *Handler) { h.bodies.maxTotal = 7000 }, 503, "own", 0},
		{"no memory for a record from a query", http.MethodGet, benchPath + "&a=1", 0, 503, func(h *Handler) { h.bodies.maxTotal = 4000 }, 503, "own", 0},
		{"no memory, and no answer", http.MethodPost, benchPath, 300, 0, func(h *Handler) { h.bodies.maxTotal = 7000 }, 503, "overloaded", 0},
		{"a record from a query that is too large", http.MethodGet, large, 0, 503, func(h *Handler) { h.bodies.maxBody = 500 }, 503, "own", 0},
		{"the same, and no answer", http.MethodGet, large, 0, 0, func(h *Handler) { h.bodies.maxBody = 500 }, 502, "upstream_unreachable", 0},
		{"the same, and the account has to wait", http.MethodGet, large, 0, 503, func(h *Handler) { h.bodies.maxBody = 500; pause(h) }, 503, "own", 0},
		{"no answer", http.MethodPost, benchPath, 300, 0, nil, 200, "{}", 1},
		{"the account has to wait", http.MethodPost, benchPath, 300, 200, pause, 200, "{}", 1},
		{"all connections are in use", http.MethodPost, benchPath, 300, 200, func(h *Handler) { h.legacy.single.Client = busy(t) }, 200, "{}", 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			h := steered(stubHandler(), always(migration.Legacy))
			log := withLegacySpool(t, h, func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body)
				if tc.status == 0 {
					panic(http.ErrAbortHandler)
				}
				w.WriteHeader(tc.status)
				_, _ = io.WriteString(w, "own")
			})
			if tc.change != nil {
				tc.change(h)
			}
			r := benchRequest(tc.method, tc.uri, tc.length)
			r.Body = &stubBody{data: benchBody(tc.length)}
			w := httptest.NewRecorder()
			if err := h.ServeHTTP(w, r, nil); err != nil || w.Code != tc.heard || !strings.Contains(w.Body.String(), tc.says) {
				t.Errorf("got %d %q, %v", w.Code, w.Body, err)
			}
			entries, err := log.Records(h.legacy.single.queueName(), 0, 10)
			if len(entries) != tc.kept || tc.kept > 0 && (err != nil || !strings.Contains(string(entries[0].Data), "\r\nHost: "+h.legacy.single.host+"\r\n")) {
				t.Errorf("%d records are kept, %v", len(entries), err)
			}
			if used := h.bodies.inUse.Load(); used != 0 {
				t.Errorf("%d bytes are still counted", used)
			}
		})
	}
}

// pause has the legacy host have limited the account of the benchmarks' key.
func pause(h *Handler) {
	queue := h.legacy.single.queue
	account := (&postback.Credentials{WriteKey: benchKey}).Payer()
	began := time.Now()
	queue.Allow(account)
	queue.Answered(account, began.Add(1), spool.Result{Status: http.StatusTooManyRequests, RetryAfter: time.Minute})
}

// busy is a client whose only connection is in use.
func busy(t *testing.T) *upstream.Client {
	t.Helper()
	hanging := make(chan struct{})
	arrived := make(chan struct{})
	var n atomic.Int32
	host := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		if n.Add(1) == 1 {
			close(arrived)
		}
		<-hanging
	}))
	target, err := url.Parse(host.URL)
	if err != nil {
		t.Fatal(err)
	}
	client, err := upstream.New(upstream.Config{URL: target, MaxConns: 1, Timeout: time.Minute, DialTimeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = client.Deliver([]byte("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"), new(upstream.Trip))
	}()
	<-arrived
	t.Cleanup(func() { close(hanging); <-done; client.Close(); host.Close() })
	return client
}

// TestLegacyQueues: with region auto, each legacy host has a queue, which a call finds by
// its Host, and which is delivered only there, where resolve says that it is, and only as
// long as migrate has that host.
func TestLegacyQueues(t *testing.T) {
	h := &Handler{Region: postback.RegionAuto, Migrate: new(Migrate), Spool: &Spool{Dir: t.TempDir(), Batch: 500}, app: &App{fingerprints: newFingerprints(new(memoryStorage))}}
	h.applyDefaults()
	if err := h.makeRoutes(); err != nil {
		t.Fatal(err)
	}
	h.legacy = &legacyLane{byRegion: map[string]*route{}}
	for region, host := range postback.LegacyHosts {
		to, err := h.newLegacyRoute(host, new(tls.Config))
		if err != nil {
			t.Fatal(err)
		}
		h.legacy.byRegion[region] = to
	}
	defer h.legacy.close()
	block := h.spoolBlock()
	if len(block.Targets) != 2*len(postback.LegacyHosts) || len(block.Alone) != len(postback.LegacyHosts) {
		t.Errorf("the queues are %q, of which %q are alone", block.Targets, block.Alone)
	}
	for region, host := range postback.LegacyHosts {
		want := "legacy+https://" + host
		to, refused := h.legacy.routeFor(host)
		if refused != nil || to.queueName() != want || !slices.Contains(block.Alone, want) || !slices.Contains(block.Targets, "https://"+postback.V2Host(region)) {
			t.Errorf("%s: %v, %v", host, to, refused)
		}
		sender, err := block.Sender(want)
		if err != nil {
			t.Fatal(err)
		}
		if _, batched := sender.Part(spool.Entry{ID: 1, Namespace: [16]byte{1}, Record: spool.Record{Data: []byte("POST /postback/v3/event/db/tbl HTTP/1.1\r\nX-TD-Write-Key: 1/a\r\nContent-Length: 7\r\n\r\n" + `{"a":1}`)}}); batched {
			t.Error("a record for the legacy host goes in a batch")
		}
		sender.Close()
	}
	h.legacy = nil
	for _, host := range postback.LegacyHosts {
		if sender, err := block.Sender("legacy+https://" + host); err == nil {
			t.Errorf("without migrate, %v delivers", sender)
		}
	}
}

// TestLegacySenderResolves: what is kept is delivered where resolve says that the legacy
// host is.
func TestLegacySenderResolves(t *testing.T) {
	hosts := make(chan string, 1)
	host := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { hosts <- r.Host }))
	defer host.Close()
	h := &Handler{Region: "us01", Spool: &Spool{Dir: t.TempDir()}, Migrate: &Migrate{Legacy: "http://legacy.example", Resolve: host.Listener.Addr().String()}}
	h.applyDefaults()
	to, err := h.newLegacyRoute(h.Migrate.Legacy, new(tls.Config))
	if err != nil {
		t.Fatal(err)
	}
	h.legacy = &legacyLane{single: to}
	defer h.legacy.close()
	sender, err := h.newSender(to.queueName())
	if err != nil {
		t.Fatal(err)
	}
	defer sender.Close()
	result := sender.Send([]byte("POST / HTTP/1.1\r\nHost: legacy.example\r\nContent-Length: 0\r\n\r\n"))
	ctx, cancel := context.WithTimeout(t.Context(), testWait)
	defer cancel()
	select {
	case got := <-hosts:
		if got != "legacy.example" || result.Status != http.StatusOK {
			t.Errorf("%s got it: %+v", got, result)
		}
	case <-ctx.Done():
		t.Error(fmt.Sprint("nobody got it: ", result.Err))
	}
}
