package caddymodule

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/td-postback/gateway/postback"
	"github.com/td-postback/gateway/spool"
)

// TestWarningDue logs a warning once a minute, by a clock that does not jump.
func TestWarningDue(t *testing.T) {
	w := warning{}
	if !w.due() || w.due() {
		t.Error("the first one is not due, or the second one is")
	}
	w.last.Add(-int64(warningPause))
	if !w.due() || w.due() {
		t.Error("a minute later: not due, or twice")
	}
	if !strings.Contains(processStart.String(), " m=") {
		t.Error("the time is measured by the wall clock")
	}
}

// TestWarningOfKept says whose record is kept, of a caller's record and of one
// that is delivered later, and whom to ask. A limit of one account does not hide
// that v2 is down.
func TestWarningOfKept(t *testing.T) {
	keptWarning.last.Store(0)
	keptLimitWarning.last.Store(0)
	core, logs := observer.New(zap.WarnLevel)
	logger := zap.New(core)
	data, _ := postback.AppendKept(nil, &postback.Request{
		Host: "v2.example", Destination: postback.Destination{Database: "mydb", Table: "mytable"},
		Credentials: postback.Credentials{WriteKey: "1234/0123456789abcdef"}, Body: []byte(`{"a":1}`),
	}, time.Now())
	for range 2 {
		warnOfKept(logger, &spool.Result{Status: 429}, "v2.example", keptOwner(data))
		warnOfKept(logger, &spool.Result{Status: 503}, "v2.example", keyOwner{owner{"1234/…", postback.Destination{Database: "mydb", Table: "mytable"}}, "1234/0123456789abcdef"})
	}
	entries := logs.All()
	if len(entries) != 2 {
		t.Fatalf("got %d lines, want one for each kind: %v", len(entries), entries)
	}
	for i, advice := range []string{"the account's rate limit: ask Treasure Data; other accounts go on", "check v2's status"} {
		fields := entries[i].ContextMap()
		if fields["fingerprint"] != fingerprintOf("1234/0123456789abcdef") {
			t.Errorf("the key is named %v", fields["fingerprint"])
		}
		if entries[i].Message != "record kept for later" || fields["account"] != "1234/…" || fields["database"] != "mydb" || fields["table"] != "mytable" {
			t.Errorf("got %q %v", entries[i].Message, fields)
		}
		if said, _ := fields["advice"].(string); !strings.HasPrefix(said, advice) {
			t.Errorf("advice: %q, want %q", said, advice)
		}
	}
}

// TestKeptOwnerOfDamaged reads what can be read, and masks a key in a name.
func TestKeptOwnerOfDamaged(t *testing.T) {
	for _, data := range []string{"", "x", "POST /postback/v3/event/mydb/1234/0123456789abcdef HTTP/1.1\r\n\r\n"} {
		enc := zapcore.NewMapObjectEncoder()
		if err := keptOwner(data).MarshalLogObject(enc); err != nil {
			t.Error(err)
		}
		if strings.Contains(fmt.Sprint(enc.Fields), "0123456789abcdef") {
			t.Errorf("%q: %v", data, enc.Fields)
		}
	}
}
