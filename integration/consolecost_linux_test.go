package integration

import (
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/td-postback/gateway/sandbox"
)

// cpuOf is how much of the processor a process has used.
func cpuOf(t *testing.T, p *process) time.Duration {
	t.Helper()
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(p.cmd.Process.Pid) + "/stat")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	fields, sum := strings.Fields(rest), 0
	for _, field := range fields[11:13] { // utime and stime, in hundredths of a second
		ticks, err := strconv.Atoi(field)
		if err != nil {
			t.Fatal(err)
		}
		sum += ticks
	}
	return time.Duration(sum) * 10 * time.Millisecond
}

// TestConsoleCost: five tabs that read the page of a gateway with 20,000 callers every five
// seconds, as the page's script does, and try out a share, take less than a hundredth of a core, once the report
// is made for them; and nobody who looks takes less than that.
func TestConsoleCost(t *testing.T) {
	t.Parallel()
	v2 := httptest.NewServer(new(sandbox.Sandbox))
	t.Cleanup(v2.Close)
	g, _ := serveConsoles(t, 20_000, v2.URL, "")
	const span = 10 * time.Second
	quiet := cpuOf(t, g.process)
	time.Sleep(span / 2) // it is a time that is measured
	quiet = 2 * (cpuOf(t, g.process) - quiet)
	began := cpuOf(t, g.process)
	look(t, g.addr, "/look", nil)
	first := cpuOf(t, g.process) - began
	began = cpuOf(t, g.process)
	var tabs sync.WaitGroup
	for range 5 {
		tabs.Go(func() {
			for range span / (5 * time.Second) {
				look(t, g.addr, "/look?part=body&rule=*.*&percent=50", nil)
				time.Sleep(5 * time.Second)
			}
		})
	}
	tabs.Wait()
	five := cpuOf(t, g.process) - began
	t.Logf("in %s: %s when nobody looks, %s with five tabs; the first look takes %s", span, quiet, five, first)
	if limit := span / 100; !underRace() && (five-quiet > limit+first) {
		t.Errorf("five tabs take %s, more than %s and what a report takes, %s", five-quiet, limit, first)
	}
}
