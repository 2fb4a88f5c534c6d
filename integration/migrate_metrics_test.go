package integration

import (
	"fmt"
	"maps"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// This file looks at the metrics of a migration from outside.

// TestLegacyLaneMetrics: whatever goes to the legacy host, and whatever that makes of it,
// the figures of v2 are what they were.
func TestLegacyLaneMetrics(t *testing.T) {
	t.Parallel()
	var refusing atomic.Bool
	legacy := startLegacy(t, func(conn net.Conn, p *passed) bool {
		switch {
		case strings.Contains(p.line, "/later") && refusing.Load():
			return send(conn, true, "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
		case strings.Contains(p.line, "/later"):
			return send(conn, true, "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
		case strings.Contains(p.line, "/refused"):
			return send(conn, true, "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
		case strings.Contains(p.line, "/closed"):
			return false
		}
		return send(conn, true, answerOK)
	})
	v2, admin, addr, dir := startRecorder(t, nil), freeAddr(t), freeAddr(t), t.TempDir()
	_, port, _ := net.SplitHostPort(addr)
	serveCaddyfile(t, addr, fmt.Sprintf("{\n%s servers {\n max_header_size 1MiB\n}\n}\nhttp://:%s {\n td_postback {\n upstream %s\n keys {\n accounts 1234\n}\n report {\n dir %s/r\n}\n spool {\n dir %s/s\n}\n migrate {\n legacy %s\n dir %s/p\n}\n}\n}\n",
		withAdmin(admin), port, v2.url(), dir, dir, legacy.url(), dir))
	withKey := asJSON + "X-TD-Write-Key: " + callersKey + "\r\n"
	for _, request := range []string{
		post(target, withKey, object),
		post(target, asJSON+"X-TD-Write-Key: YOUR_KEY\r\n", object),
		post(target, asJSON+"X-TD-Write-Key: 777/feedfacefeedfacefeedfacefeedfacefeedface\r\n", object),
		post(target, asJSON, object),
		post(target, withKey, strings.Repeat("x", 1_100_000)),
		post("/postback/v3/event/shop/refused", withKey, object),
		post("/js/v3/event/shop/closed", withKey, object),
		post("/js/v3/event", withKey+"X-TD-Data-Type: k\r\n", `{"shop.orders":[{"a":1}]}`),
		"GET " + target + "?td_format=pixel&a=1&td_write_key=1234%2Fabcdef HTTP/1.1\r\nHost: a\r\n\r\n",
		"PUT /postback/v3/event/shop/orders HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
		"GET /anything HTTP/1.1\r\nHost: a\r\n\r\n",
		post(target, withKey+"X-Large: "+strings.Repeat("x", 65<<10)+"\r\n", object), // refused before its lane is chosen
	} {
		raw(t, addr, request)
	}
	metrics := awaitIdle(t, admin)
	if got := metrics[`results_total{lane="legacy",result="forwarded"}`]; got != 9 {
		t.Errorf("%v calls are forwarded to the legacy host, want 9", got)
	}
	for _, result := range []string{"upstream_4xx", "upstream_unreachable", "headers_too_large"} {
		if got := metrics[`results_total{lane="legacy",result="`+result+`"}`]; got != 1 {
			t.Errorf("%v calls of lane legacy are %s, want 1", got, result)
		}
	}
	refusing.Store(true)
	later := post("/postback/v3/event/shop/later", withKey, object)
	raw(t, addr, later) // which the legacy host refuses
	refusing.Store(false)
	raw(t, addr, later) // which is kept
	refusing.Store(true)
	for end := time.Now().Add(patience); metricOf(scrape(t, admin), "spool_dead_letters{") != 1; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the kept record is no dead letter")
		}
	}

	metrics = awaitIdle(t, admin)
	checkBooks(t, metrics)
	for name, value := range metrics {
		for _, ofV2 := range []string{`lane="v2"`, "upstream_duration_seconds", "body_bytes", "retries_total", "upstream_connections_total", "unknown_total", `signal="refused"`, `signal="cut"`, `signal="template"`, `signal="unusual"`} {
			if strings.Contains(name, ofV2) {
				t.Errorf("%s is %v, and nothing has gone to v2", name, value)
			}
		}
	}
	v2.none(t)
}

// TestPlanMetrics follows the plan's metrics through changes, a reload and a restart.
func TestPlanMetrics(t *testing.T) {
	t.Parallel()
	g := servePlan(t, "")
	changed := func(metrics map[string]float64) (at float64) {
		at = metrics["plan_last_change_timestamp_seconds"]
		delete(metrics, "plan_last_change_timestamp_seconds")
		return at
	}
	plan := func() map[string]float64 {
		metrics := scrape(t, g.admin)
		maps.DeleteFunc(metrics, func(name string, _ float64) bool { return !strings.HasPrefix(name, "plan_") })
		return metrics
	}
	expect := func(when string, want map[string]float64) {
		t.Helper()
		got := plan()
		at := changed(got)
		if !maps.Equal(got, want) {
			t.Errorf("%s: got %v, want %v", when, got, want)
		}
		if age := float64(time.Now().Unix()) - at; want["plan_revision"] > 0 && (age < 0 || age > patience.Seconds()) || want["plan_revision"] == 0 && at != 0 {
			t.Errorf("%s: the last change was at %v", when, at)
		}
	}
	expect("at the start", map[string]float64{`plan_rules{share="none"}`: 1})
	g.says(t, words("share shop.orders 25"))
	g.says(t, words("share crm.* 100"))
	shares := map[string]float64{"plan_revision": 2, `plan_rules{share="none"}`: 1, `plan_rules{share="some"}`: 1, `plan_rules{share="all"}`: 1}
	expect("with two rules", shares)
	g.says(t, words("rollback"))
	shares["plan_revision"], shares["plan_hold"] = 3, 1
	expect("rolled back", shares)
	reload(t, g.admin, g.caddyfile)
	expect("after a reload", shares)
	g.restart(t)
	expect("after a restart", shares)
	reload(t, g.admin, strings.Replace(g.caddyfile, "migrate {", "migrate {\n resolve 127.0.0.1:9", 1))
	expect("after a reload with other options", shares)
}

// metricOf is the sum of the metrics whose names begin like this.
func metricOf(metrics map[string]float64, prefix string) (value float64) {
	for name, v := range metrics {
		if strings.HasPrefix(name, prefix) {
			value += v
		}
	}
	return value
}
