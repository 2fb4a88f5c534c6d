package integration

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// TestSlowCallers attacks the command's defaults with slowhttptest in three
// ways at once: headers that never end, bodies that never end, and answers
// that are hardly read. A normal caller is served all the while.
func TestSlowCallers(t *testing.T) {
	slowhttptest := tool(t, "slowhttptest", "slowhttptest")
	v2 := startRecorder(t, nil)
	g := command(t, "--upstream", v2.url())
	url := g.url(target)
	attacks := [][]string{
		{"-H", "-c", "2000", "-i", "3"},
		{"-B", "-c", "5000", "-i", "3", "-s", "1048064"},
		{"-X", "-c", "1000"},
	}
	ended := make(chan error, len(attacks))
	for _, attack := range attacks {
		args := strings.Join(append(attack, "-r", "1000", "-l", "12", "-u", "'"+url+"'"), " ")
		// The Go runtime gives a child the soft limit of open files.
		cmd := exec.Command("sh", "-c", "ulimit -n $(ulimit -Hn); exec "+slowhttptest+" "+args)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cmd.Process.Kill() })
		go func() { ended <- cmd.Wait() }()
	}

	client := &http.Client{Timeout: patience}
	var slowest time.Duration
	served, open := 0, 0
	for running := len(attacks); running > 0; {
		select {
		case <-ended: // its status tells what it thinks of the server
			running--
		case <-time.After(20 * time.Millisecond):
		}
		began := time.Now()
		resp, err := client.Post(url, "application/json", strings.NewReader(object))
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Fatalf("a normal caller got %d", resp.StatusCode)
		}
		slowest = max(slowest, time.Since(began))
		served++
		files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", g.cmd.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		open = max(open, len(files))
	}
	t.Logf("%d served, the slowest in %v, beside %d connections", served, slowest, open)
	if open < 5000 {
		t.Errorf("only %d connections at a time: that proves little", open)
	}
	if slowest > 5*time.Second {
		t.Errorf("a normal caller waited %v", slowest)
	}
}
