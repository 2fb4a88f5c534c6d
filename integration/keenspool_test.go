package integration

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/td-postback/gateway/sandbox"
)

// This file has calls with several events go through a spool.

// keenIDs are the IDs of n events.
func keenIDs(prefix string, n int) []string {
	ids := make([]string, n)
	for i := range ids {
		ids[i] = fmt.Sprint(prefix, i)
	}
	return ids
}

// keepEvents has an app send events, and checks that it is told that they are taken.
func keepEvents(t *testing.T, g *spooling, table string, ids []string) {
	t.Helper()
	answer := raw(t, g.addr, post(androidPath, ofAndroid+"Content-Encoding: deflate\r\n", deflated(keenBody(table, ids...))))
	if answer.StatusCode != http.StatusOK || answer.body != keenTaken(table, len(ids)) {
		t.Fatalf("got %d %.300s", answer.StatusCode, answer.body)
	}
}

// TestKeenSpool: in either mode, events that v2 does not take are kept, and arrive when
// it takes them: as they would have arrived at once, in requests of up to 500, each
// event once.
func TestKeenSpool(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"on_failure", "always", "always\n batch 500"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			v2 := startBatchV2(t, func(*batchArrival) batchAnswer { return batchAnswer{status: 503} })
			g := serveSpool(t, v2.URL, "", "mode "+mode)
			ids := keenIDs("n", 1200)
			keepEvents(t, g, "db.tbl", ids)
			if s := g.state(t); s.records() != 3 {
				t.Errorf("%d requests are kept", s.records())
			}
			spoolPrints(t, g.admin, []string{"list"}, "/db/tbl", "1234/…")
			v2.calm.Store(true)
			v2.await(t, ids...)
			g.awaitEmpty(t)
			v2.once(t, ids)
			for _, a := range v2.all() {
				if !a.batch || a.target != "/db/tbl" || a.header.Get("Authorization") != "TD1 "+spoolKey {
					t.Errorf("v2 got %s %v", a.target, a.header)
				}
			}
			want := `{"id":"n0","time":1795573435,"uuid":"` + keenUUID("n0") + `"}`
			if !slices.ContainsFunc(v2.all(), func(a *batchArrival) bool { return slices.Contains(a.records, want) }) {
				t.Errorf("v2 did not get %s", want)
			}
		})
	}
}

// TestKeenSpoolDead: of events that v2 refuses for good, and only of these, an operator
// finds a dead letter, and may have it delivered after all.
func TestKeenSpoolDead(t *testing.T) {
	t.Parallel()
	isBad := func(record string) bool { return strings.Contains(record, `"bad`) }
	for name, say := range map[string]func(a *batchArrival) batchAnswer{
		"422": func(a *batchArrival) batchAnswer {
			if slices.ContainsFunc(a.records, isBad) {
				return batchAnswer{status: 422}
			}
			return batchAnswer{}
		},
		"206": func(a *batchArrival) batchAnswer {
			failed := make([]bool, len(a.records))
			for n, record := range a.records {
				failed[n] = isBad(record)
			}
			return batchAnswer{failed: failed}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v2 := startBatchV2(t, say)
			g := serveSpool(t, v2.URL, "", "mode always")
			good, bad := keenIDs("good", 40), keenIDs("bad", 3)
			ids := slices.Concat(good[:20], bad[:2], good[20:], bad[2:])
			keepEvents(t, g, "db.tbl", ids)
			g.awaitState(t, func(s *spoolState) bool { return s.dead() == 1 && s.records() == 0 })
			v2.once(t, good)
			lines := strings.Split(spoolPrints(t, g.admin, []string{"list", "--dead"}, "EVENTS"), "\n")
			if fields := strings.Fields(lines[1]); len(fields) != 8 || !slices.Equal(fields[2:4], []string{"/db/tbl", "1234/…"}) || !slices.Equal(fields[5:], []string{name, "refused", "3"}) {
				t.Errorf("listed: %q", lines[1])
			}
			var letters []letter
			if askAdmin(t, http.MethodGet, g.admin, "spool/records?dead=true", &letters); len(letters) != 1 || letters[0].Events != 3 {
				t.Fatalf("got %+v", letters)
			}
			id := fmt.Sprint(letters[0].ID)
			spoolPrints(t, g.admin, []string{"show", "--dead", id}, `"path": "/db/tbl"`, `"account": "1234/…"`, `"events": 3`, `"reason": "refused"`)
			var shown struct{ Events []struct{ ID string } }
			if err := json.Unmarshal([]byte(spoolPrints(t, g.admin, []string{"show", "--dead", "--raw", id})), &shown); err != nil {
				t.Fatal(err)
			}
			for n, event := range shown.Events {
				if event.ID != bad[n] {
					t.Errorf("the dead letter has %+v", shown.Events)
				}
			}
			v2.calm.Store(true)
			spoolPrints(t, g.admin, []string{"replay", id}, "1 dead letter to be delivered again")
			v2.await(t, bad...)
			g.awaitEmpty(t)
			v2.once(t, ids)
			if s := g.state(t); s.dead() != 0 {
				t.Errorf("%d dead letters are left", s.dead())
			}
		})
	}
}

// TestKeenSpoolAnswers: what becomes of events at each of the sandbox's tables that
// refuse, if v2 is asked first.
func TestKeenSpoolAnswers(t *testing.T) {
	t.Parallel()
	v2 := httptest.NewServer(new(sandbox.Sandbox))
	t.Cleanup(v2.Close)
	for table, want := range map[string]struct {
		status, kept int
		says         string
	}{
		"answer_400":   {200, 0, "InvalidPropertyValueError"},
		"answer_422":   {200, 0, "InvalidPropertyValueError"},
		"answer_403":   {403, 0, "invalid_write_key"},
		"answer_429":   {200, 1, `"success":true`},
		"answer_503":   {200, 1, `"success":true`},
		"answer_never": {200, 1, `"success":true`},
		"answer_206":   {200, 1, `"success":true`},
	} {
		t.Run(table, func(t *testing.T) {
			t.Parallel()
			g := serveSpool(t, v2.URL, "response_timeout 1s", "")
			answer := raw(t, g.addr, post(androidPath, ofAndroid, `{"db.`+table+`":[{"refused":1},{"refused":2}]}`))
			if answer.StatusCode != want.status || !strings.Contains(answer.body, want.says) {
				t.Errorf("got %d %s", answer.StatusCode, answer.body)
			}
			if answer.StatusCode == 200 && strings.Count(answer.body, want.says) != 2 {
				t.Errorf("got %s", answer.body)
			}
			if s := g.state(t); s.records() != want.kept {
				t.Errorf("kept are %+v", s)
			}
		})
	}
}

// TestKeenSpoolReceipts: 200 says nothing of the events when its receipts cannot be
// read. Those that v2 has not taken are kept, and arrive when it takes them.
func TestKeenSpoolReceipts(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"on_failure", "always"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			var cut atomic.Int32
			v2 := startBatchV2(t, func(a *batchArrival) batchAnswer {
				failed := make([]bool, len(a.records))
				failed[0] = true
				cut.Add(1)
				return batchAnswer{status: 200, body: `{"receipts":[{"succ`, failed: failed}
			})
			g := serveSpool(t, v2.URL, "", "mode "+mode)
			ids := keenIDs("n", 20)
			keepEvents(t, g, "db.tbl", ids)
			// Four times are one more than a caller's own call goes.
			g.awaitState(t, func(s *spoolState) bool { return cut.Load() >= 4 || s.records() == 0 })
			v2.calm.Store(true)
			v2.await(t, ids...)
			g.awaitEmpty(t)
			v2.once(t, ids)
		})
	}
}

// TestKeenSpoolRefusedKey: events whose key v2 refuses are one dead letter.
func TestKeenSpoolRefusedKey(t *testing.T) {
	t.Parallel()
	v2 := startBatchV2(t, func(*batchArrival) batchAnswer { return batchAnswer{status: 403} })
	g := serveSpool(t, v2.URL, "", "mode always")
	keepEvents(t, g, "db.tbl", keenIDs("n", 10))
	g.awaitState(t, func(s *spoolState) bool { return s.dead() == 1 && s.records() == 0 })
	spoolPrints(t, g.admin, []string{"list", "--dead"}, "/db/tbl", "403", "10")
	g.await(t, `"msg":"a kept record became a dead letter"`, 1)
	if n := len(v2.all()); n != 1 {
		t.Errorf("v2 got %d requests", n)
	}
}

// TestKeenSpoolFull: when not all of a call's events have room, none is kept, and the
// app is told to send them again. Those of a smaller call are kept then.
func TestKeenSpoolFull(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"on_failure", "always"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			v2 := startBatchV2(t, func(*batchArrival) batchAnswer { return batchAnswer{status: 503} })
			g := serveSpool(t, v2.URL, "", "max_size 1MiB\n mode "+mode)
			answer := raw(t, g.addr, post(androidPath, ofAndroid, keenBody("db.tbl", keenIDs(strings.Repeat("x", 500), 2000)...)))
			isUnkept(t, answer, "spool_full")
			if s := g.state(t); s.records() != 0 {
				t.Errorf("%d requests are kept", s.records())
			}
			ids := keenIDs("n", 100)
			keepEvents(t, g, "db.tbl", ids)
			v2.calm.Store(true)
			v2.await(t, ids...)
			g.awaitEmpty(t)
			v2.once(t, ids)
		})
	}
}

// TestKeenSpoolLarge: a call with as much as can be, 32 MiB of 30,000 events, is kept in
// one piece, with the default of max_buffered, and arrives.
func TestKeenSpoolLarge(t *testing.T) {
	t.Parallel()
	v2 := startBatchV2(t, func(*batchArrival) batchAnswer { return batchAnswer{status: 503} })
	g := serveSpool(t, v2.URL, "", "drain_rate 100000")
	ids := keenIDs("n", 30_000)
	body := keenBody("db.tbl", ids...)
	pad := strings.Repeat("p", (32<<20-len(body))/len(ids)-len(`"p":"",`))
	body = strings.ReplaceAll(body, `"keen":`, `"p":"`+pad+`","keen":`)
	if len(body) < 31<<20 || len(body) > 32<<20 {
		t.Fatalf("it has %d bytes", len(body))
	}
	answer := raw(t, g.addr, post(androidPath, ofAndroid+"Content-Encoding: deflate\r\n", deflated(body)))
	if answer.StatusCode != http.StatusOK || answer.body != keenTaken("db.tbl", len(ids)) {
		t.Fatalf("got %d %.300s", answer.StatusCode, answer.body)
	}
	v2.calm.Store(true)
	v2.await(t, ids...)
	g.awaitEmpty(t)
	v2.once(t, ids)
}
