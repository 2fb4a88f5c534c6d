package integration

import (
	"bytes"
	"compress/gzip"
	"compress/zlib"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/td-postback/gateway/sandbox"
)

// This file is two hosts of events, the legacy one and v2, that fail at random and write
// down what they take, and the changes of a plan that sends events now to the one and
// now to the other.

// laneHost is a host that takes events, and fails at random as flakySandbox does.
type laneHost struct {
	*httptest.Server
	flakySandbox

	mu   sync.Mutex
	took map[string]*takings // by the ID of an event
}

// takings is when a host took an event, and how often its answer to that was lost.
type takings struct {
	at   []time.Time
	lost int
}

var laneEvent = regexp.MustCompile(`"id":"([0-9.]+)"`)

// startLaneV2 starts the strict sandbox as one of the hosts.
func startLaneV2(t *testing.T) *laneHost {
	h := &laneHost{}
	h.inner = &sandbox.Sandbox{Received: func(r sandbox.Record) { h.take(idsIn(r.Body)) }}
	h.start(t)
	return h
}

// startLaneLegacy starts a legacy host as the other one: it takes each form that there
// is, and answers each as its clients expect.
func startLaneLegacy(t *testing.T) *laneHost {
	h := &laneHost{}
	h.inner = http.HandlerFunc(h.serveLegacy)
	h.start(t)
	return h
}

func (h *laneHost) start(t *testing.T) {
	h.took = map[string]*takings{}
	h.Server = httptest.NewServer(h)
	t.Cleanup(h.Close)
}

// ServeHTTP notes the events of an answer that is lost.
func (h *laneHost) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // the gateway was killed, or its caller was
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	switch h.serve(w, r) {
	case "breaks off its answer", "resets within its answer", "answers garbage", "answers too late":
		ids := eventsOf(r, body)
		h.mu.Lock()
		defer h.mu.Unlock()
		for _, id := range ids {
			if took := h.took[id]; took != nil {
				took.lost++
			}
		}
	}
}

func (h *laneHost) take(ids []string) {
	now := time.Now()
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, id := range ids {
		if h.took[id] == nil {
			h.took[id] = &takings{}
		}
		h.took[id].at = append(h.took[id].at, now)
	}
}

// idsIn are the IDs of the events in a text.
func idsIn(text []byte) (ids []string) {
	for _, id := range laneEvent.FindAllSubmatch(text, -1) {
		ids = append(ids, string(id[1]))
	}
	return ids
}

// eventsOf are the IDs of the events of a request in any form.
func eventsOf(r *http.Request, body []byte) []string {
	query := r.URL.Query()
	if query.Has("id") {
		return query["id"]
	}
	if data, err := base64.StdEncoding.DecodeString(query.Get("data")); err == nil && len(data) > 0 {
		return idsIn(data)
	}
	return idsIn(unpacked(r, body))
}

func unpacked(r *http.Request, body []byte) []byte {
	var in io.Reader
	var err error
	switch r.Header.Get("Content-Encoding") {
	case "deflate":
		in, err = zlib.NewReader(bytes.NewReader(body))
	case "gzip":
		in, err = gzip.NewReader(bytes.NewReader(body))
	default:
		return body
	}
	if err != nil {
		return nil
	}
	text, _ := io.ReadAll(in)
	return text
}

// serveLegacy is the legacy host.
func (h *laneHost) serveLegacy(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	query := r.URL.Query()
	ids := eventsOf(r, body)
	if len(ids) == 0 {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	if r.Header.Get("X-Td-Write-Key")+query.Get("td_write_key")+query.Get("api_key") == "" {
		w.WriteHeader(http.StatusForbidden)
		return
	}
	h.take(ids)
	contentType, answer := "application/json", "{}"
	switch path := r.URL.Path; {
	case query.Has("callback"):
		contentType, answer = "application/javascript", query.Get("callback")+createdCall
	case strings.HasPrefix(path, "/js/v3/event/") && len(path) > len("/js/v3/event/"):
		answer = createdJSON
	case !strings.HasPrefix(path, "/postback/"):
		answer = receiptsFor(unpacked(r, body))
	case query.Get("td_format") == "pixel":
		contentType, answer = "image/gif", "GIF89a"
	}
	w.Header().Set("Content-Type", contentType)
	_, _ = io.WriteString(w, answer)
}

const createdCall = `({"created":true});`

// receiptsFor is the answer to a request with several events.
func receiptsFor(body []byte) string {
	var tables map[string][]json.RawMessage
	_ = json.Unmarshal(body, &tables)
	receipts := map[string][]map[string]bool{}
	for table, events := range tables {
		for range events {
			receipts[table] = append(receipts[table], map[string]bool{"success": true})
		}
	}
	answer, _ := json.Marshal(receipts)
	return string(answer)
}

// takings is when this host took an event, and how often its answer was lost.
func (h *laneHost) takings(id string) takings {
	h.mu.Lock()
	defer h.mu.Unlock()
	if took := h.took[id]; took != nil {
		return *took
	}
	return takings{}
}

// laneHosts are the two hosts that gateways are between.
type laneHosts struct {
	v2, legacy *laneHost
	last       atomic.Int64 // the number of the last event
}

// laneSite is a gateway between two hosts, over HTTP/1.1 and HTTP/2, on sockets that
// outlive its process.
type laneSite struct {
	plain, secure string // addresses
	admin, dir    string
	certificate
	*laneHosts

	config  func(n int) string // each differs from the one before
	sockets []*os.File
}

// believed has a gateway believe what callers say of their addresses.
const believed = "trusted_proxies static 127.0.0.1/32"

// newLaneSite makes such a gateway. servers is for the servers' options, options are
// those of the block.
func newLaneSite(t *testing.T, servers, options, migrate string) *laneSite {
	hosts := &laneHosts{v2: startLaneV2(t), legacy: startLaneLegacy(t)}
	return hosts.site(t, servers, options, migrate)
}

// site makes a gateway between these hosts.
func (h *laneHosts) site(t *testing.T, servers, options, migrate string) *laneSite {
	s := &laneSite{admin: freeAddr(t), dir: t.TempDir(), certificate: newCertificate(t, "127.0.0.1"), laneHosts: h}
	s.sockets = make([]*os.File, 2)
	s.plain, s.sockets[0] = outsideSocket(t)
	s.secure, s.sockets[1] = outsideSocket(t)
	globals := strings.Replace(handoverGlobals(s.admin), "servers {", "servers {\n max_header_size 1MiB\n"+servers, 1)
	block := fmt.Sprintf("upstream %s\n%s\nreport {\ndir %s/report\n}\nmigrate {\nlegacy %s\ndir %s/plan\n%s\n}",
		s.v2.URL, strings.ReplaceAll(options, "DIR", s.dir), s.dir, s.legacy.URL, s.dir, migrate)
	s.config = func(n int) string {
		block := strings.ReplaceAll(block, "MODE", []string{"on_failure", "always"}[n%2])
		return fmt.Sprintf("{\n%s\n}\n(gateway) {\ntd_postback {\nmax_conns %d\n%s\n}\n}\nhttp:// {\nbind fd/3\nimport gateway\n}\nhttps:// {\nbind fd/4\ntls %s %s\nimport gateway\n}\n",
			globals, 100+n, block, s.cert, s.key)
	}
	return s
}

// start starts a process with the n-th configuration.
func (s *laneSite) start(t *testing.T, n int) *process {
	p := startOn(t, s.config(n), s.sockets...)
	saysNoSecret(t, p)
	return p
}

// serveLanes runs such a gateway, between hosts that take what comes.
func serveLanes(t *testing.T, servers, migrate string) (*laneSite, *process) {
	s := newLaneSite(t, servers, "", migrate)
	s.v2.calm.Store(true)
	s.legacy.calm.Store(true)
	return s, s.start(t, 0)
}

// newID is the ID of an event that nobody has.
func (h *laneHosts) newID() string { return strconv.FormatInt(h.last.Add(1), 10) }

// lane is the host that has an event: v2 or legacy.
func (h *laneHosts) lane(t testing.TB, id string) string {
	t.Helper()
	v2, legacy := len(h.v2.takings(id).at), len(h.legacy.takings(id).at)
	if v2+legacy != 1 {
		t.Errorf("event %s is at v2 %d times, and at the legacy host %d times", id, v2, legacy)
	}
	if v2 > 0 {
		return "v2"
	}
	return "legacy"
}

// shownPlan is what the admin API says of a plan.
type shownPlan struct {
	Revision uint64
	Hold     *struct{ Revision uint64 }
	Degraded string
	Rules    []struct {
		Rule, Account string
		Percent       json.Number
	}
	Gateways []struct{ Name, Why string } // that share it
}

// planAt asks a gateway for its plan, as long as it lives.
func planAt(admin string) (p shownPlan, err error) {
	resp, err := http.Get("http://" + admin + "/td_postback/migration")
	if err != nil {
		return p, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return p, fmt.Errorf("the plan: got %s", resp.Status)
	}
	return p, json.NewDecoder(resp.Body).Decode(&p)
}

// planOf asks a gateway for its plan.
func planOf(t testing.TB, admin string) shownPlan {
	t.Helper()
	p, err := planAt(admin)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// order asks a gateway for a change of its plan: an action and its body, and the
// revision on which it is based, unless that is negative.
func order(admin, action, body string, base int) (status int, answer string, err error) {
	r, err := http.NewRequest(http.MethodPost, "http://"+admin+"/td_postback/migration/"+action, strings.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	r.Header.Set("Content-Type", "application/json")
	if base >= 0 {
		r.Header.Set("If-Match", fmt.Sprintf(`"%d"`, base))
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(text), err
}

// change changes the plan of a gateway.
func change(t testing.TB, admin, action, body string) {
	t.Helper()
	base := int(planOf(t, admin).Revision) //nolint:gosec // G115: a test's few changes
	if status, answer, err := order(admin, action, body, base); err != nil || status != http.StatusOK {
		t.Fatalf("%s %s: got %d %s, %v", action, body, status, answer, err)
	}
}

// share is the body of a change of a rule's share; account may be empty.
func share(rule, account, percent string) string {
	return fmt.Sprintf(`{"rule":%q,"account":%q,"percent":%s}`, rule, account, percent)
}
