package integration

import (
	"fmt"
	"net/http"
	"slices"
	"testing"
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
