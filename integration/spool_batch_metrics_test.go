package integration

import (
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
)

// TestBatchMetrics: what the metrics say of batches is what v2 saw. The answer to the
// first is lost; its records come again, and v2 would drop them.
func TestBatchMetrics(t *testing.T) {
	t.Parallel()
	var requests atomic.Int32
	u := startRecorder(t, func(conn net.Conn, _ int, _ seen) bool {
		return requests.Add(1) > 1 && send(conn, true, answerOK)
	})
	const records = 4
	g := serveSpool(t, u.url(), "", "mode always\nbatch "+strconv.Itoa(records)+"\nbatch_wait 1m")
	resp, err := http.Get("http://" + g.admin + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	for _, series := range []string{
		`spool_batch_records_count`, `spool_batch_records_bucket{le="1"}`, `spool_batch_records_bucket{le="500"}`,
		`spool_batch_bytes_sum`, `spool_batch_plain_bytes_total`, `spool_repeats_safe_total`,
	} {
		if line := "caddy_td_postback_" + series + " 0\n"; !strings.Contains(string(text), line) {
			t.Errorf("not there from the start: %s", line)
		}
	}

	for range records {
		isTaken(t, raw(t, g.addr, post(spoolTarget, asJSON, object)))
	}
	g.awaitEmpty(t)
	want := map[string]float64{"spool_repeats_safe_total": records}
	for range requests.Load() {
		s := u.next(t)
		want["spool_batch_records_count"]++
		want["spool_batch_bytes_count"]++
		want["spool_batch_bytes_sum"] += float64(len(s.line+"\r\n"+strings.Join(s.fields, "\r\n")+"\r\n\r\n") + len(s.body))
		for _, record := range recordsIn(t, []byte(s.body)) {
			want["spool_batch_records_sum"]++
			want["spool_batch_plain_bytes_total"] += float64(len(record))
		}
	}
	got := scrape(t, g.admin)
	for name, value := range want {
		if got[name] != value {
			t.Errorf("%s is %v, want %v", name, got[name], value)
		}
	}
	if want["spool_batch_records_sum"] != 2*records || got["spool_duplicates_possible_total"] != 0 {
		t.Errorf("v2 saw %v records, and there were %v possible doubles", want["spool_batch_records_sum"], got["spool_duplicates_possible_total"])
	}
}
