package caddymodule

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/td-postback/gateway/migration"
	"github.com/td-postback/gateway/postback"
	"github.com/td-postback/gateway/upstream"
)

// steered gives a handler two lanes, between which decide decides. Both lead to hosts
// without a kernel.
func steered(h *Handler, decide func(laneQuery) migration.Lane) *Handler {
	h.legacy = &legacyLane{
		decide:         decide,
		decideAtHead:   func(q laneQuery) (migration.Lane, bool) { return decide(q), true },
		decideByTables: func(q laneQuery, _ []postback.Destination) migration.Lane { return decide(q) },

		pseudonym: func() string { return "td-postback-0123456789ab" },
		via:       func() string { return "1.1 td-postback-0123456789ab" },
		single:    &route{host: "in.treasuredata.com", Client: stubUpstream()},
	}
	return h
}

func always(lane migration.Lane) func(laneQuery) migration.Lane {
	return func(laneQuery) migration.Lane { return lane }
}

// TestLaneQuery looks what the plan is asked, how often, and where the call goes.
func TestLaneQuery(t *testing.T) {
	const js = "/js/v3/event/db/tbl?api_key=1/a"
	for _, tc := range []struct {
		name, method, uri string
		length            int
		asked             []laneQuery
	}{
		{"a record", http.MethodPost, benchPath, 300, []laneQuery{{postback.Destination{Database: "db", Table: "tbl"}, benchKey, "192.0.2.7"}}},
		{"a pixel", http.MethodGet, benchPath + "&td_format=pixel", 0, []laneQuery{{postback.Destination{Database: "db", Table: "tbl"}, benchKey, "192.0.2.7"}}},
		{"of a JavaScript SDK", http.MethodPost, js, 300, []laneQuery{{postback.Destination{Database: "db", Table: "tbl"}, "1/a", "192.0.2.7"}}},
		{"no key", http.MethodPost, "/postback/v3/event/db/tbl", 300, []laneQuery{{postback.Destination{Database: "db", Table: "tbl"}, "", "192.0.2.7"}}},
		{"above the cap", http.MethodPost, benchPath, postback.MaxBody + 1, []laneQuery{{postback.Destination{Database: "db", Table: "tbl"}, benchKey, "192.0.2.7"}}},
		{"several events", http.MethodPost, "/ios/v3/event", 300, []laneQuery{{Client: "192.0.2.7"}}},
		{"a bad name", http.MethodPost, "/postback/v3/event/d.b/tbl", 300, []laneQuery{{Client: "192.0.2.7"}}},
		{"another method", http.MethodPut, benchPath, 300, []laneQuery{{Key: benchKey, Client: "192.0.2.7"}}},
		{"no call", http.MethodPost, "/x", 300, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var asked []laneQuery
			h := steered(stubHandler(), func(q laneQuery) migration.Lane {
				asked = append(asked, q)
				return migration.Legacy
			})
			r := benchRequest(tc.method, tc.uri, tc.length)
			r.Body = &stubBody{data: benchBody(tc.length)}
			w := httptest.NewRecorder()
			if err := h.ServeHTTP(w, r, nil); err != nil || w.Code != http.StatusOK {
				t.Fatal(err, w.Code)
			}
			if len(asked) != len(tc.asked) || len(asked) == 1 && asked[0] != tc.asked[0] {
				t.Errorf("the plan was asked %+v, want %+v", asked, tc.asked)
			}
		})
	}
}

// TestLaneIsDecidedWhenTheBodyIsThere: what changes while a body comes holds for it.
func TestLaneIsDecidedWhenTheBodyIsThere(t *testing.T) {
	for name, size := range map[string]int{"whole": 300, "longer than max_body, in chunks": postback.MaxBody + 1} {
		t.Run(name, func(t *testing.T) {
			var lane atomic.Int32
			h := steered(stubHandler(), func(laneQuery) migration.Lane { return migration.Lane(lane.Load()) }) //nolint:gosec // 0 or 1
			h.single.Client = nil                                                                              // nothing may go to v2
			lane.Store(int32(migration.V2))
			r := benchRequest(http.MethodPost, benchPath, size)
			if size > postback.MaxBody {
				r.ContentLength = -1
			}
			r.Body = changingBody{&stubBody{data: benchBody(size)}, func() { lane.Store(int32(migration.Legacy)) }}
			w := httptest.NewRecorder()
			if err := h.ServeHTTP(w, r, nil); err != nil || w.Code != http.StatusOK {
				t.Error(err, w.Code)
			}
		})
	}
}

// changingBody changes something while it is read.
type changingBody struct {
	*stubBody
	change func()
}

func (b changingBody) Read(p []byte) (int, error) {
	b.change()
	return b.stubBody.Read(p)
}

// brokenBody breaks off.
type brokenBody struct{ stubBody }

func (b *brokenBody) Read(p []byte) (int, error) {
	n, err := b.stubBody.Read(p)
	if err != nil {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// TestLegacyHoldsNothing: whatever becomes of a call, nothing of it is counted in
// max_buffered when it has ended.
func TestLegacyHoldsNothing(t *testing.T) {
	const chunked = -1
	large := benchBody(postback.MaxBody + 1)
	for _, tc := range []struct {
		name   string
		lane   migration.Lane
		uri    string
		length int64
		body   io.Reader
		change func(h *Handler)
		status int
	}{
		{name: "a record", uri: benchPath, length: 300, body: &stubBody{data: benchBody(300)}, status: 200},
		{name: "64 KiB", uri: benchPath, length: 64 << 10, body: &stubBody{data: benchBody(64 << 10)}, status: 200},
		{name: "above the cap", uri: benchPath, length: int64(len(large)), body: &stubBody{data: large}, status: 200},
		{name: "above the cap in chunks", uri: benchPath, length: chunked, body: &stubBody{data: large}, status: 200},
		{name: "the body breaks off", uri: benchPath, length: 400, body: &brokenBody{stubBody{data: benchBody(300)}}, status: 400},
		{name: "the rest breaks off", uri: benchPath, length: chunked, body: &brokenBody{stubBody{data: large}}, status: 400},
		{name: "no memory for the body", uri: benchPath, length: 300, body: &stubBody{data: benchBody(300)}, change: func(h *Handler) { h.bodies.maxTotal = 4000 }, status: 503},
		{name: "no memory for the head", uri: "/x", length: 0, body: http.NoBody, change: func(h *Handler) { h.bodies.maxTotal = 10 }, status: 503},
		{name: "nobody is there", uri: benchPath, length: 300, body: &stubBody{data: benchBody(300)}, change: func(h *Handler) { h.legacy.single.Client = nobody(h) }, status: 502},
		{name: "no such host", uri: benchPath, length: 300, body: &stubBody{data: benchBody(300)}, change: func(h *Handler) { h.legacy.single = nil }, status: 200},
		{name: "v2", lane: migration.V2, uri: benchPath, length: 300, body: &stubBody{data: benchBody(300)}, status: 200},
		{name: "v2, a record in the query", lane: migration.V2, uri: benchPath + "&a=1", length: 0, body: http.NoBody, status: 200},
		{name: "v2, a record in the query, in no chunk", lane: migration.V2, uri: benchPath + "&a=1", length: chunked, body: http.NoBody, status: 200},
		{name: "v2, no key", lane: migration.V2, uri: "/postback/v3/event/db/tbl", length: 300, body: &stubBody{data: benchBody(300)}, status: 403},
		{name: "v2, above the cap", lane: migration.V2, uri: benchPath, length: int64(len(large)), body: &stubBody{data: large}, status: 413},
		{name: "v2, above the cap in chunks", lane: migration.V2, uri: benchPath, length: chunked, body: &stubBody{data: large}, status: 413},
		{name: "v2, of a JavaScript SDK", lane: migration.V2, uri: benchJS, length: 300, body: &stubBody{data: benchBody(300)}, status: 200},
		{name: "v2, a bad name", lane: migration.V2, uri: "/postback/v3/event/d.b/tbl", length: 300, body: &stubBody{data: benchBody(300)}, status: 400},
	} {
		t.Run(tc.name, func(t *testing.T) {
			lane := migration.Legacy
			if strings.HasPrefix(tc.name, "v2") {
				lane = tc.lane
			}
			h := steered(stubHandler(), always(lane))
			if tc.change != nil {
				tc.change(h)
			}
			r := benchRequest(http.MethodPost, tc.uri, 0)
			r.ContentLength, r.Body = tc.length, io.NopCloser(tc.body)
			if h.legacy.single == nil {
				h.legacy.byRegion = map[string]*route{"us01": {host: "in.treasuredata.com", Client: stubUpstream()}}
			}
			w := httptest.NewRecorder()
			if err := h.ServeHTTP(w, r, nil); err != nil || w.Code != tc.status {
				t.Errorf("got %d %s, %v", w.Code, w.Body, err)
			}
			if used := h.bodies.inUse.Load(); used != 0 {
				t.Errorf("%d bytes are still counted", used)
			}
		})
	}
}

// waitingBody says when it is read, and then breaks off when it is told to.
type waitingBody struct {
	read chan<- struct{}
	end  <-chan struct{}
}

func (b waitingBody) Read([]byte) (int, error) {
	b.read <- struct{}{}
	<-b.end
	return 0, io.ErrUnexpectedEOF
}

// TestLegacyWindows: over HTTP/2 and HTTP/3, what callers send of long bodies before the
// legacy host takes it is in memory. So there are only so many of them at a time, and
// other calls suffer nothing from it.
func TestLegacyWindows(t *testing.T) {
	h := steered(stubHandler(), always(migration.Legacy))
	h.bodies.maxTotal = 2 * bufferedShare * callerWindow
	read, end := make(chan struct{}), make(chan struct{})
	send := func(major int, length int64, body io.Reader) int {
		r := benchRequest(http.MethodPost, benchPath, 0)
		r.ProtoMajor, r.ContentLength, r.Body = major, length, io.NopCloser(body)
		w := httptest.NewRecorder()
		if err := h.ServeHTTP(w, r, nil); err != nil {
			t.Error(err)
		}
		return w.Code
	}
	waiting := waitingBody{read, end}
	statuses := make(chan int)
	for _, major := range []int{2, 3, 1} {
		go func() { statuses <- send(major, postback.MaxBody+1, waiting) }()
		<-read
	}
	if got := send(2, postback.MaxBody+1, strings.NewReader("")); got != http.StatusServiceUnavailable {
		t.Errorf("a third one over HTTP/2 got %d", got)
	}
	if got := send(2, 300, &stubBody{data: benchBody(300)}); got != http.StatusOK {
		t.Errorf("a record beside them got %d", got)
	}
	close(end)
	for range 3 {
		if got := <-statuses; got != http.StatusBadRequest {
			t.Errorf("one that broke off got %d", got)
		}
	}
	if used, windows := h.bodies.inUse.Load(), h.bodies.windows.Load(); used+windows != 0 {
		t.Errorf("%d and %d bytes are still counted", used, windows)
	}
	large := &stubBody{data: benchBody(postback.MaxBody + 1)}
	if got := send(2, int64(len(large.data)), large); got != http.StatusOK {
		t.Errorf("one behind them got %d", got)
	}
}

// TestLegacyMethods: HTTP/2 and HTTP/3 carry methods that would be other requests in
// HTTP/1.1. None of them goes on.
func TestLegacyMethods(t *testing.T) {
	for method, status := range map[string]int{
		"BREW": 200, "M!#$%&'*+-.^_`|~": 200,
		"GET /secret HTTP/1.1": 405, "GET ": 405, "G\tT": 405, "G\r\nT": 405, "G\x00T": 405, "G:T": 405, "GÉT": 405, "": 405,
	} {
		for _, uri := range []string{"/x", benchPath} {
			h := steered(stubHandler(), always(migration.Legacy))
			if status != 200 {
				h.legacy.single.Client = nil // nothing may go there
			}
			r := benchRequest(http.MethodPost, uri, 300)
			r.Method, r.ProtoMajor, r.Body = method, 2, &stubBody{data: benchBody(300)}
			w := httptest.NewRecorder()
			if err := h.ServeHTTP(w, r, nil); err != nil || w.Code != status {
				t.Errorf("%q %s: got %d, %v", method, uri, w.Code, err)
			}
		}
	}
}

// nobody is a client of a host that is not there.
func nobody(h *Handler) *upstream.Client {
	client, err := upstream.New(upstream.Config{
		URL: &url.URL{Scheme: "http", Host: "legacy"}, MaxConns: 1, Timeout: time.Second, DialTimeout: time.Second,
		Dial: func(string) (net.Conn, error) { return nil, io.ErrClosedPipe },
	})
	if err != nil {
		h.logger.Fatal(err.Error())
	}
	return client
}

// TestLegacyRegions: with region auto, each request goes to the host that it names.
func TestLegacyRegions(t *testing.T) {
	h := &Handler{Region: postback.RegionAuto, Migrate: new(Migrate), app: &App{fingerprints: newFingerprints(new(memoryStorage))}}
	h.applyDefaults()
	if h.Report == nil {
		t.Error("migrate does not switch the report on")
	}
	if err := h.provisionMigrate(); err != nil {
		t.Fatal(err)
	}
	defer h.legacy.close()
	for region, host := range postback.LegacyHosts {
		if to, refused := h.legacy.routeFor(strings.ToUpper(host) + ":443"); refused != nil || to.url.String() != "https://"+postback.LegacyHosts[region] {
			t.Errorf("%s: got %+v, %v", host, to, refused)
		}
	}
	if _, refused := h.legacy.routeFor("other.example"); refused != postback.UnknownRegion {
		t.Errorf("got %v", refused)
	}
}

// TestPseudonym: gateways with the same storage have the same, and others have others.
func TestPseudonym(t *testing.T) {
	shared := new(memoryStorage)
	one, two, other := newFingerprints(shared).pseudonym(), newFingerprints(shared).pseudonym(), newFingerprints(new(memoryStorage)).pseudonym()
	if one != two || one == other || !strings.HasPrefix(one, "td-postback-") || len(one) != len("td-postback-0123456789ab") {
		t.Errorf("got %s, %s and %s", one, two, other)
	}
}

// FuzzMigrateLegacy: what is taken for the legacy host is a scheme and a host, and an
// error shows no password.
func FuzzMigrateLegacy(f *testing.F) {
	for _, value := range []string{"in.treasuredata.com", "https://x:8443", "http://[::1]:80", "x/", "x?", "user:PASSWORD@x", "ftp://x", ":", ""} {
		f.Add(value)
	}
	f.Fuzz(func(t *testing.T, value string) {
		u, err := new(Migrate).legacyURL(value)
		if err == nil && (u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.Path != "" || u.RawQuery != "") {
			t.Errorf("%q is taken for %v", value, u)
		}
		if strings.Contains(value, "PASSWORD") {
			return // as the host, behind the @
		}
		if _, err := new(Migrate).legacyURL("user:PASSWORD@" + value); err != nil && strings.Contains(err.Error(), "PASSWORD") {
			t.Errorf("the error is %v", err)
		}
	})
}

// TestMigrateResolve: resolve is where a connection can be opened to, and nothing else.
func TestMigrateResolve(t *testing.T) {
	for resolve, allowed := range map[string]bool{
		"203.0.113.7:443": true, "[2001:db8::7]:443": true, "[fe80::7%eth0]:443": true, "legacy.example:8443": true, "in_2.example:1": true,
		"203.0.113.7": false, ":443": false, "legacy.example:": false, "legacy.example:0": false, "legacy.example:65536": false,
		"a b:443": false, "user@legacy.example:443": false, "legacy.example/x:443": false, "a,b:443": false, "[::zz]:443": false, "a%20b:443": false,
	} {
		m := &Migrate{Resolve: resolve}
		m.applyDefaults()
		if err := m.validate(); (err == nil) != allowed {
			t.Errorf("%q: %v", resolve, err)
		}
	}
}

func FuzzMigrateResolve(f *testing.F) {
	for _, resolve := range []string{"203.0.113.7:443", "[::1]:443", "[fe80::7%eth0]:443", "legacy.example:443", "a b:443", "a/b:443", ":", "x@y:1"} {
		f.Add(resolve)
	}
	f.Fuzz(func(t *testing.T, resolve string) {
		if host, _, err := net.SplitHostPort(resolve); isHostPort(resolve) && (err != nil || host == "" || !strings.Contains(host, "%") && strings.ContainsAny(host, " \t\r\n/@?#,")) {
			t.Errorf("%q is taken for a place", resolve)
		}
	})
}
