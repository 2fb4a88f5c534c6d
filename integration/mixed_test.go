package integration

import (
	"crypto/tls"
	"fmt"
	"io"
	"math/rand/v2"
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

// faultyV2 is the sandbox, but one in ten requests goes wrong.
type faultyV2 struct {
	inner  sandbox.Sandbox
	taken  sync.Map // id -> *atomic.Int32
	faults [len(faultNames)]atomic.Int32
}

var faultNames = [...]string{
	"closes before it reads", "resets before it reads", "429", "500", "503",
	"breaks off its answer", "resets within its answer", "answers garbage", "an interim answer first", "closes after its answer", "answers too late",
}

var recordID = regexp.MustCompile(`"id":"(\d+)"`)

func newFaultyV2() *faultyV2 {
	v2 := &faultyV2{}
	v2.inner.Received = func(r sandbox.Record) {
		for _, id := range recordID.FindAllSubmatch(r.Body, -1) {
			n, _ := v2.taken.LoadOrStore(string(id[1]), new(atomic.Int32))
			n.(*atomic.Int32).Add(1)
		}
	}
	return v2
}

// times is how often v2 took the record with an id.
func (v2 *faultyV2) times(id int) int {
	n, ok := v2.taken.Load(strconv.Itoa(id))
	if !ok {
		return 0
	}
	return int(n.(*atomic.Int32).Load())
}

// ServeHTTP answers a request, or fails to. v2 takes no record of a request
// that it closes the connection on before it answers: that is what makes such a
// request safe to send again.
func (v2 *faultyV2) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	fault := rand.IntN(10 * len(faultNames))            //nolint:gosec // a test's dice
	if fault == len(faultNames)-1 && rand.IntN(3) > 0 { //nolint:gosec // the same
		fault = len(faultNames) // this one takes long
	}
	if fault >= len(faultNames) {
		v2.inner.ServeHTTP(w, r)
		return
	}
	v2.faults[fault].Add(1)
	switch name := faultNames[fault]; name {
	case "closes before it reads", "resets before it reads":
		conn, _, err := http.NewResponseController(w).Hijack()
		if err == nil && strings.HasPrefix(name, "resets") {
			reset(conn)
		}
		_ = conn.Close()
	case "429", "500", "503":
		w.Header().Set("Retry-After", "1")
		status, _ := strconv.Atoi(name)
		w.WriteHeader(status)
	default:
		v2.inner.ServeHTTP(httptest.NewRecorder(), r)
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		switch name {
		case "breaks off its answer":
			_, _ = io.WriteString(conn, ok[:len(ok)-1])
		case "resets within its answer":
			_, _ = io.WriteString(conn, ok[:20])
			reset(conn)
		case "answers garbage":
			_, _ = io.WriteString(conn, "200 OK\r\n\r\n{}")
		case "an interim answer first":
			_, _ = io.WriteString(conn, "HTTP/1.1 103 Early Hints\r\n\r\n"+ok)
		case "closes after its answer":
			_, _ = io.WriteString(conn, ok)
		case "answers too late":
			time.Sleep(1500 * time.Millisecond)
			_, _ = io.WriteString(conn, ok)
		}
	}
}

// mixedRequest is the n-th request of a run, one of every kind that callers
// send, well or wrongly.
func mixedRequest(n int) (method, uri, contentType, body string) {
	id := fmt.Sprintf(`{"id":"%d"}`, n)
	query := "&id=" + strconv.Itoa(n)
	switch n % 16 {
	case 0:
		return "GET", target + query, "", ""
	case 1:
		return "GET", target + query + "&td_format=pixel", "", ""
	case 2:
		return "POST", target + query, "text/ping", "PING"
	case 3:
		return "POST", target + query, "", ""
	case 4:
		return "POST", target, "application/json", fmt.Sprintf(`{"pad":"%s","id":"%d"}`, strings.Repeat("x", 20_000), n)
	case 5:
		return "GET", target + query + "&td_redirect=http://evil.example/", "", ""
	case 6:
		return "POST", event + "?td_write_key=", "application/json", id
	case 7:
		return "POST", event + "/deeper?td_write_key=1/a", "application/json", id
	case 8:
		return "PUT", target, "application/json", id
	case 9:
		return "POST", target, "application/x-www-form-urlencoded", id
	default:
		return "POST", target, "application/json", id
	}
}

// TestMixed sends requests of every kind over HTTP/1.1 and HTTP/2, to a v2 that
// fails at random, through reloads. In the end the record of every caller that
// was told 200 is at v2, none is there twice, what was refused is not there at
// all, and the metrics tell what the callers were told.
func TestMixed(t *testing.T) {
	total := 10_000
	if value := os.Getenv("MIXED_REQUESTS"); value != "" {
		var err error
		if total, err = strconv.Atoi(value); err != nil {
			t.Fatal(err)
		}
	}
	v2 := newFaultyV2()
	server := httptest.NewServer(v2)
	defer server.Close()
	g := newMixedGateway(t, server.URL)

	transports := []*http.Transport{
		{MaxIdleConnsPerHost: 32},
		{DisableKeepAlives: true},
		{TLSClientConfig: &tls.Config{RootCAs: g.pool}, ForceAttemptHTTP2: true},
	}
	var next atomic.Int64
	var told tally
	var callers sync.WaitGroup
	for caller := range 32 {
		callers.Go(func() {
			transport := transports[caller%len(transports)]
			client := &http.Client{Timeout: patience, Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
			base := "http://" + g.plain
			if transport.ForceAttemptHTTP2 {
				base = "https://" + g.secure
			}
			for n := int(next.Add(1)); n <= total && !t.Failed(); n = int(next.Add(1)) {
				method, uri, contentType, body := mixedRequest(n)
				told.add(t, n, sendMixed(client, method, base+uri, contentType, body))
			}
		})
	}
	ended := make(chan struct{})
	go func() { callers.Wait(); close(ended) }()
	reloads := g.reloadUntil(t, ended)

	told.check(t, v2, total)
	for fault, name := range faultNames {
		if v2.faults[fault].Load() == 0 {
			t.Errorf("v2 never did this: %s", name)
		}
	}
	got := awaitIdle(t, g.admin)
	for result, n := range told.results {
		sum := 0.0
		for name, value := range got {
			if strings.Contains(name, fmt.Sprintf("result=%q", result)) {
				sum += value
			}
		}
		if int(sum) != n {
			t.Errorf("the metrics have %s %v times, the callers %d times", result, sum, n)
		}
	}
	t.Logf("%d requests, %d reloads, %v", total, reloads, told.results)
}

// sendMixed sends a request and returns what its caller is told, as a result of the
// gateway's metrics, or as an error.
func sendMixed(client *http.Client, method, url, contentType, body string) string {
	req, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		return err.Error()
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := client.Do(req)
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return err.Error()
	}
	code := reply{resp, string(answer)}.code()
	switch {
	case code != "":
		return code
	case resp.StatusCode == http.StatusOK:
		return "forwarded"
	default:
		return "upstream_" + resp.Status[:1] + "xx"
	}
}

// tally is what callers were told of their records.
type tally struct {
	mu      sync.Mutex
	results map[string]int
	of      map[int]string // by id
}

func (a *tally) add(t *testing.T, id int, result string) {
	if strings.Contains(result, " ") {
		t.Errorf("request %d: %s", id, result)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.results == nil {
		a.results, a.of = map[string]int{}, map[int]string{}
	}
	a.results[result]++
	a.of[id] = result
}

// check compares with what v2 has.
func (a *tally) check(t *testing.T, v2 *faultyV2, total int) {
	if len(a.of) != total {
		t.Errorf("%d of %d callers were told something", len(a.of), total)
	}
	for id, result := range a.of {
		times := v2.times(id)
		want := times == 0
		switch result {
		case "forwarded", "redirect_not_allowed":
			want = times == 1
		case "upstream_unreachable", "upstream_timeout":
			want = times <= 1 // the answer was lost, or the request
		}
		if !want {
			t.Errorf("record %d is at v2 %d times, its caller was told %s", id, times, result)
		}
	}
	if n := a.results["forwarded"]; n < total/2 {
		t.Errorf("only %d of %d were forwarded", n, total)
	}
}

// mixedGateway is a gateway with listening sockets from outside.
type mixedGateway struct {
	plain, secure string // addresses
	admin         string
	certificate
	upstream string
}

func newMixedGateway(t *testing.T, upstream string) *mixedGateway {
	g := &mixedGateway{admin: freeAddr(t), certificate: newCertificate(t, "127.0.0.1"), upstream: upstream}
	var plain, secure *os.File
	g.plain, plain = outsideSocket(t)
	g.secure, secure = outsideSocket(t)
	startOn(t, g.config(0), plain, secure)
	return g
}

// config is the n-th configuration: each differs from the one before.
func (g *mixedGateway) config(n int) string {
	return fmt.Sprintf(`{
	%s
}
(gateway) {
	td_postback {
		upstream %s
		response_timeout 1s
		max_conns %d
	}
}
http:// {
	bind fd/3
	import gateway
}
https:// {
	bind fd/4
	tls %s %s
	import gateway
}
`, handoverGlobals(g.admin), g.upstream, 100+n, g.cert, g.key)
}

// reloadUntil reloads the configuration again and again.
func (g *mixedGateway) reloadUntil(t *testing.T, ended <-chan struct{}) (n int) {
	for {
		select {
		case <-ended:
			return n
		case <-time.After(time.Second):
		}
		n++
		if status, problem := reload(t, g.admin, g.config(n)); status != http.StatusOK {
			t.Fatal(status, problem)
		}
	}
}
