package integration

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"testing"
)

// TestKeenCost: an event in a request of 400 costs at most a tenth of the processor
// time of one that is sent alone, straight through and through a spool, until it is
// delivered. Under the race detector, which makes each step cost something else, only
// the requests are tried.
func TestKeenCost(t *testing.T) {
	receipts := []byte(`{"receipts":[` + strings.TrimSuffix(strings.Repeat(`{"success":true},`, 400), ",") + `]}`)
	v2 := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		if strings.HasPrefix(r.URL.Path, "/postback/") {
			_, _ = io.WriteString(w, "{}")
			return
		}
		_, _ = w.Write(receipts)
	}))
	defer v2.Close()
	t.Run("straight through", func(t *testing.T) {
		keenCost(t, serve(t, "", "td_postback {\n upstream "+v2.URL+"\n}"), func() {})
	})
	t.Run("through a spool", func(t *testing.T) {
		g := serveSpool(t, v2.URL, "", "mode always\n drain_rate 1000000")
		keenCost(t, g.gateway, func() { g.awaitEmpty(t) })
	})
}

// keenCost compares what an event costs in either way. done waits until all of them are
// at v2.
func keenCost(t *testing.T, g *gateway, done func()) {
	columns := `"event":"view","page":"https://shop.example/item?id=7","title":"Café noir","text":"` + strings.Repeat("0123456789", 18) + `"`
	events := make([]string, 400)
	for n := range events {
		events[n] = fmt.Sprintf(`{"keen":{"timestamp":"2026-11-25T02:23:55.%03d+0000"},"#UUID":"08289530-0000-4000-8000-%012d","n":%d,%s}`, n, n, n, columns)
	}
	send := func(path, body string, times int) {
		t.Helper()
		for range times {
			r, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, g.url(path), strings.NewReader(body))
			r.Header["X-Td-Write-Key"], r.Header["Content-Type"] = []string{spoolKey}, []string{"application/json"}
			resp, err := http.DefaultClient.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				t.Fatalf("got %d", resp.StatusCode)
			}
		}
		done()
	}
	const singles, many = 4000, 40
	alone, together := `{`+columns+`}`, deflated(`{"db.tbl":[`+strings.Join(events, ",")+`]}`)
	send(event, alone, 200)
	send(androidPath, together, 4)
	start := cpuTicks(t, g.cmd.Process.Pid)
	send(event, alone, singles)
	between := cpuTicks(t, g.cmd.Process.Pid)
	send(androidPath, together, many)
	end := cpuTicks(t, g.cmd.Process.Pid)
	one := float64(between-start) / singles
	each := float64(end-between) / (many * 400)
	t.Logf("alone %.1f µs, together %.2f µs, %.3f of it", one*1e4, each*1e4, each/one) // a tick is 10 ms
	if each > one/10 && !underRace() {
		t.Errorf("an event costs %.2f µs, alone %.1f µs", each*1e4, one*1e4)
	}
}

// cpuTicks is a process's user and system time, in hundredths of a second.
func cpuTicks(t *testing.T, pid int) (ticks int) {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	for _, field := range fields[11:13] {
		n, err := strconv.Atoi(field)
		if err != nil {
			t.Fatal(err)
		}
		ticks += n
	}
	return ticks
}
