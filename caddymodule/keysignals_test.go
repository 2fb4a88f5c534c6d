package caddymodule

import (
	"fmt"
	"net/http"
	"net/url"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/td-postback/gateway/migration"
	"github.com/td-postback/gateway/spool"
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

// TestLegacyKeySignals: what the legacy host says of the key of a kept record is none of
// v2's answers.
func TestLegacyKeySignals(t *testing.T) {
	for queue, want := range map[string]float64{"https://v2.example": 1, legacyQueue + "https://legacy.example": 0} {
		before := timesCounted(t, keySignals, "refused")
		settled(queue, spool.Refused, spool.Result{Status: http.StatusForbidden, Fingerprint: "1/#0123456789"})
		if got := timesCounted(t, keySignals, "refused") - before; got != want {
			t.Errorf("%s: counted %v times, want %v", queue, got, want)
		}
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

// TestNewKeysAreCounted counts each key that the report has never seen before, names no
// more than ten of them, and says how many more there are.
func TestNewKeysAreCounted(t *testing.T) {
	const keys = 25
	_, s := startReport(t, aReport(t), "a")
	defer s.leave()
	now := time.Now()
	call := migration.Call{Time: now.Add(-48 * time.Hour), Key: "1/#old", Result: forwardedResult}
	s.get().Count(&call)
	s.tellOfKeys(s.get(), call.Time)
	before := timesCounted(t, keySignals, "new")
	for i := range keys {
		s.get().Count(&migration.Call{Time: now, Key: fmt.Sprintf("2/#%02d", i), Result: forwardedResult})
	}
	s.tellOfKeys(s.get(), now)
	times, exemplar := countedWith(t, keySignals, "new")
	if times-before != keys || exemplar != "key=2/#24" {
		t.Errorf("counted %v times, with the exemplar %s", times-before, exemplar)
	}

	core, logs := observer.New(zap.WarnLevel)
	tell(zap.New(core), make([]migration.Sighting, keys), "m", "a")
	lines := logs.All()
	if len(lines) != maxToldKeys || lines[maxToldKeys-1].ContextMap()["more"] != int64(keys-maxToldKeys) {
		t.Errorf("got %d lines: %v", len(lines), lines)
	}
}

// TestSilentKeysGauge is there when there is a report that has been looked through.
func TestSilentKeysGauge(t *testing.T) {
	if got := gaugesOf(t, keyGauges{}); len(got) != 0 {
		t.Errorf("without a report: %v", got)
	}
	_, s := startReport(t, aReport(t), "a")
	defer s.leave()
	now := time.Now()
	for day := range 7 {
		s.get().Count(&migration.Call{Time: now.Add(-30*time.Hour - time.Duration(6-day)*24*time.Hour), Key: "1/#old", Result: forwardedResult})
	}
	if got := gaugesOf(t, keyGauges{}); len(got) != 1 || got[0] != 0 {
		t.Errorf("at the start: %v", got)
	}
	s.tellOfKeys(s.get(), now)
	if got := gaugesOf(t, keyGauges{}); len(got) != 1 || got[0] != 1 {
		t.Errorf("then: %v", got)
	}
	// A reload with other options goes on with the same keys.
	other := s.options
	other.Rows = minRows
	_, again := startReport(t, &other, "a")
	defer again.leave()
	again.save()
	if got := gaugesOf(t, keyGauges{}); len(got) != 1 || got[0] != 1 {
		t.Errorf("after a reload: %v", got)
	}
}
