package cluster

import (
	"bufio"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/td-postback/gateway/spool/cluster/natstest"
)

// Servers do not outlive a test process that has no time to end them.
func TestServersDieWithTest(t *testing.T) {
	const child, says = "TD_POSTBACK_DIES", "listens: "
	if os.Getenv(child) != "" {
		n := single(t, "")
		_, _ = os.Stdout.WriteString(says + n.Addr + "\n")
		select {} // until the time is over
	}
	natstest.Needed(t)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe, "-test.run=^"+t.Name()+"$", "-test.timeout=20s")
	cmd.Env = append(os.Environ(), child+"=1", "TMPDIR="+t.TempDir())
	output, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var addr string
	for lines := bufio.NewScanner(output); lines.Scan(); {
		if found, ok := strings.CutPrefix(lines.Text(), says); ok {
			addr = found
			if conn, err := net.Dial("tcp", addr); err != nil {
				t.Errorf("the server does not listen: %v", err)
			} else {
				_ = conn.Close()
			}
			_ = cmd.Process.Kill()
		}
	}
	if err := cmd.Wait(); addr == "" || err == nil {
		t.Fatalf("the child's server is at %q, and it ended with %v", addr, err)
	}
	until(t, "the server is gone", func() bool {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			_ = conn.Close()
		}
		return err != nil
	})
}
