package integration

import (
	"crypto/tls"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestMixed sends requests of every kind over HTTP/1.1 and HTTP/2, to a v2 that
// fails at random, through reloads. In the end the record of every caller that
// was told 200 is at v2, none is there twice, what was refused is not there at
// all, the metrics tell what the callers were told, and the books balance.
func TestMixed(t *testing.T) {
	total := 10_000
	if value := os.Getenv("MIXED_REQUESTS"); value != "" {
		var err error
		if total, err = strconv.Atoi(value); err != nil {
			t.Fatal(err)
		}
	}
	v2 := newFlakySandbox()
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
			client := &http.Client{
				Timeout: patience, Transport: transport,
				CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
			}
			base := "http://" + g.plain
			if transport.ForceAttemptHTTP2 {
				base = "https://" + g.secure
			}
			for n := int(next.Add(1)); n <= total && !t.Failed(); n = int(next.Add(1)) {
				request := newMixedRequest(n)
				told.add(t, n, request.send(client, base))
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
	if received := checkBooks(t, got); received != total {
		t.Errorf("the books have %d requests, the callers sent %d", received, total)
	}
	for result, n := range told.results {
		sum := 0.0
		for name, value := range got {
			if strings.HasPrefix(name, "requests_total{") && strings.Contains(name, fmt.Sprintf("result=%q", result)) {
				sum += value
			}
		}
		if total := got[resultsTotal(result)]; total != sum {
			t.Errorf("results_total has %s %v times, requests_total %v times", result, total, sum)
		}
		if int(sum) != n {
			t.Errorf("the metrics have %s %v times, the callers %d times", result, sum, n)
		}
	}
	t.Logf("%d requests, %d reloads, %v", total, reloads, told.results)
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
`, strings.Replace(handoverGlobals(g.admin), "servers {", "servers {\n max_header_size 1MiB", 1), g.upstream, 100+n, g.cert, g.key)
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
