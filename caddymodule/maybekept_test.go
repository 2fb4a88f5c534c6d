package caddymodule

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/td-postback/gateway/migration"
	"github.com/td-postback/gateway/spool"
)

// doubtfulLog is a Log that takes no records, or does not know whether it has.
type doubtfulLog struct {
	spool.Log
	err error
}

func (l doubtfulLog) Append(string, spool.Record) error      { return l.err }
func (l doubtfulLog) AppendAll(string, []spool.Record) error { return l.err }
func (doubtfulLog) Queues() []string                         { return nil }
func (doubtfulLog) Close() error                             { return nil }

// outboxThat is the queue of a spool that says this of each record.
func outboxThat(t *testing.T, says error) *spool.Outbox {
	t.Helper()
	keeper := spool.NewKeeper(spool.Setup{
		Open:   func(context.Context, func(spool.Event)) (spool.Log, error) { return doubtfulLog{err: says}, nil },
		Report: func(spool.Event) {},
	})
	if err := keeper.Open(); err != nil {
		t.Fatal(err)
	}
	block := &spool.Block{Targets: []string{"a queue"}}
	outbox := keeper.Attach(block)["a queue"]
	t.Cleanup(func() {
		keeper.Detach(block)
		_ = keeper.Close()
	})
	return outbox
}

// doubts are the errors of a spool, and whether the record may be kept all the same.
var doubts = map[error]float64{
	spool.ErrUnavailable: 0,
	spool.ErrFull:        0,
	fmt.Errorf("%w: %w", spool.ErrUnavailable, spool.ErrMaybeKept):     1,
	errors.Join(spool.ErrUnavailable, errors.Join(spool.ErrMaybeKept)): 1,
}

// TestMaybeKept: a record that the spool may have kept, and that goes to v2 all the same,
// may be there twice, and is counted. Of events that have a uuid, v2 drops a repeat.
func TestMaybeKept(t *testing.T) {
	for says, times := range doubts {
		for _, tc := range []struct {
			name   string
			r      *http.Request
			events float64
		}{
			{"a record", keenRequest(benchPath, `{"a":1}`), 1},
			{"events", keenRequest(keenPath, `{"db.a":[{"n":0}],"db.b":[{"n":1}]}`), 0},
			{"events, one of which goes alone", keenRequest(keenPath, `{"db.a":[{"n":0}],"db.b":[{"n":1},{"uuid":"mine"}]}`), 1},
			{"events that go alone", keenRequest(keenPath, `{"db.tbl":[{"uuid":"mine"},{"uuid":"mine, too"}]}`), 2},
		} {
			v2 := newKeenV2(t)
			withSpool(t, v2.h, Spool{Mode: spoolAlways})
			v2.h.single.queue = outboxThat(t, says)
			before := sums(t, spoolDuplicates)
			w := httptest.NewRecorder()
			if err := v2.h.ServeHTTP(w, tc.r, nil); err != nil || w.Code != http.StatusOK {
				t.Errorf("%s, %v: got %d %s, %v", tc.name, says, w.Code, w.Body, err)
			}
			if got := sums(t, spoolDuplicates)[0] - before[0]; got != times*tc.events {
				t.Errorf("%s, %v: counted %v", tc.name, says, got)
			}
		}
	}
}

// TestMaybeKeptForLegacy: the same of the legacy host, when it is taken to be down and
// asked now and then.
func TestMaybeKeptForLegacy(t *testing.T) {
	for says, times := range doubts {
		h := steered(stubHandler(), always(migration.Legacy))
		var taken atomic.Int32
		withLegacySpool(t, h, func(_ http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			taken.Add(1)
		})
		queue := outboxThat(t, says)
		h.legacy.single.queue = queue
		for !queue.IsOpen() {
			queue.Failure(time.Now(), 0)
		}
		before := sums(t, spoolDuplicates)
		eventually(t, "the host is asked", func() bool {
			w := httptest.NewRecorder()
			r := benchRequest(http.MethodPost, benchPath, 300)
			r.Body = &stubBody{data: benchBody(300)}
			if err := h.ServeHTTP(w, r, nil); err != nil || w.Code != http.StatusOK && !strings.Contains(w.Body.String(), "spool_") {
				t.Errorf("%v: got %d %s, %v", says, w.Code, w.Body, err)
			}
			return taken.Load() > 0
		})
		if got := sums(t, spoolDuplicates)[0] - before[0]; got != times {
			t.Errorf("%v: counted %v", says, got)
		}
	}
}
