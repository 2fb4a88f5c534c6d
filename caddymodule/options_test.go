package caddymodule

import (
	"bytes"
	"encoding/json"
	"slices"
	"testing"
	"time"
)

func TestOptionsOf(t *testing.T) {
	for _, name := range []string{"region", "upstream", "max_body", "spool", "handoff"} {
		if !slices.Contains(blocks[directive], name) {
			t.Errorf("%s has no %s: %q", directive, name, blocks[directive])
		}
	}
	if slices.Contains(blocks[directive], "mode") || !slices.Contains(blocks["spool"], "mode") || slices.Contains(blocks["spool"], "") {
		t.Errorf("got %q", blocks)
	}
}

func TestDurationText(t *testing.T) {
	for written, d := range map[string]time.Duration{
		"8d": 8 * 24 * time.Hour, "169h": 169 * time.Hour, "1h30m": 90 * time.Minute, "5s": 5 * time.Second, "1m5s": 65 * time.Second,
		"10m": 10 * time.Minute, "1h0m5s": time.Hour + 5*time.Second, "-1ns": -1, "0s": 0, "500ms": 500 * time.Millisecond, "1d": 24 * time.Hour, "-5m": -5 * time.Minute,
	} {
		if got := durationText(d); got != written {
			t.Errorf("got %s, want %s", got, written)
		}
	}
}

// FuzzOptionsJSON reads any JSON: what is taken is the same when it is written
// and read again, and an error is about an option.
func FuzzOptionsJSON(f *testing.F) {
	for _, seed := range []string{
		`{"region":"us01","retries":0,"spool":{"mode":"always","max_age":"6d","nats":["nats://x"]}}`, `{"regoin":1}`, `{"spool":null,"retries":null}`,
		`{"spool":{"dir":7}}`, `[]`, `null`, `{"max_body":1e3}`, `{"max_age":1}`, `{"dial_timeout":"x"}`, `{`, `{"spool":{"batch":500,"batch_wait":"1s"}}`,
		`{"keys":{"accounts":["1"],"file":"/k","databases":["a*"],"unknown":"warn"}}`, `{"keys":{"account":[]}}`, `{"keys":null}`,
		`{"report":{"rows":100,"dir":"/r","networks":"none"}}`, `{"report":{}}`, `{"report":null}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		h := new(Handler)
		if err := json.Unmarshal(data, h); err != nil {
			if err.Error() == "" {
				t.Errorf("%q: no text", data)
			}
			return
		}
		text, err := json.Marshal(h)
		if err != nil {
			t.Fatal(err)
		}
		again := new(Handler)
		if err := json.Unmarshal(text, again); err != nil {
			t.Errorf("%q is %s, and that is %v", data, text, err)
		}
		if written, _ := json.Marshal(again); !bytes.Equal(written, text) {
			t.Errorf("%q is %s, and that is %s", data, text, written)
		}
	})
}
