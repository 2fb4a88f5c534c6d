package caddymodule

import (
	"net/http"
	"net/url"
	"testing"
)

// TestRefusedKeys counts each answer by which v2 refuses a key: to a call, to one with
// several events, and to a kept record. Other refusals are none of a key.
func TestRefusedKeys(t *testing.T) {
	refuses := func(status int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) }
	}
	post := func() *http.Request {
		r := benchRequest(http.MethodPost, benchPath, 300)
		r.Body = &stubBody{data: benchBody(300)}
		return r
	}
	for name, tc := range map[string]struct {
		status int
		mode   string // of the spool; empty without one
		call   func() *http.Request
		key    string
		want   float64
	}{
		"a record, 403":        {http.StatusForbidden, "", post, benchKey, 1},
		"a record, 401":        {http.StatusUnauthorized, "", post, benchKey, 1},
		"a record, 400":        {http.StatusBadRequest, "", post, benchKey, 0},
		"a record, 500":        {http.StatusInternalServerError, "", post, benchKey, 0},
		"a record with spool":  {http.StatusForbidden, spoolOnFailure, post, benchKey, 1},
		"a kept record":        {http.StatusForbidden, spoolAlways, post, benchKey, 1},
		"several events, 401":  {http.StatusUnauthorized, "", func() *http.Request { return keenRequest(keenPath, `{"db.a":[{"n":1}]}`) }, keenKey, 1},
		"several events, kept": {http.StatusForbidden, spoolAlways, func() *http.Request { return keenRequest(keenPath, `{"db.a":[{"n":1}]}`) }, keenKey, 1},
	} {
		t.Run(name, func(t *testing.T) {
			v2 := newKeenV2(t)
			v2.says(refuses(tc.status))
			before := timesCounted(t, keySignals, "refused")
			if tc.mode == "" {
				_ = v2.h.ServeHTTP(&stubWriter{header: http.Header{}}, tc.call(), nil)
			} else {
				log := withSpool(t, v2.h, Spool{Mode: tc.mode})
				_ = v2.h.ServeHTTP(&stubWriter{header: http.Header{}}, tc.call(), nil)
				eventually(t, "nothing waits in the spool", func() bool { requests, _ := keptEvents(t, log); return len(requests) == 0 })
				eventually(t, "it is counted", func() bool { return timesCounted(t, keySignals, "refused") > before })
			}
			times, exemplar := countedWith(t, keySignals, "refused")
			if got := times - before; got != tc.want {
				t.Errorf("counted %v times, want %v", got, tc.want)
			}
			if want := "key=" + fingerprintOf(tc.key); tc.want > 0 && exemplar != want {
				t.Errorf("the exemplar is %q, want %q", exemplar, want)
			}
		})
	}
}

// TestKeyFormSignals counts calls that go to v2 by the form of their key, and none that
// the gateway refuses.
func TestKeyFormSignals(t *testing.T) {
	const cut = "1234567890123456789/0123456789abcdef" // with as long an account number as there is
	for key, signal := range map[string]string{
		benchKey: "", cut: "cut", "{{KEY}}": "template", "1234%2Fabcd": "unusual",
		"": "", "1234/": "", // which are refused
	} {
		var before [3]float64
		signals := [len(before)]string{"cut", "template", "unusual"}
		for i, name := range signals {
			before[i] = timesCounted(t, keySignals, name)
		}
		r := benchRequest(http.MethodPost, "/postback/v3/event/db/tbl?td_write_key="+url.QueryEscape(key), 300)
		r.Body = &stubBody{data: benchBody(300)}
		if err := stubHandler().ServeHTTP(&stubWriter{header: http.Header{}}, r, nil); err != nil {
			t.Fatal(err)
		}
		for i, name := range signals {
			want := 0.0
			if name == signal {
				want = 1
			}
			times, exemplar := countedWith(t, keySignals, name)
			if got := times - before[i]; got != want {
				t.Errorf("%q: %s is counted %v times, want %v", key, name, got, want)
			}
			if want > 0 && exemplar != "key="+fingerprintOf(key) {
				t.Errorf("%q: the exemplar of %s is %q", key, name, exemplar)
			}
		}
	}
}
