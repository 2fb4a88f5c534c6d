package integration

import (
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestRehearsal follows docs/rehearsal.md, word for word but for the port: what the commands
// print, and what the hosts print.
func TestRehearsal(t *testing.T) {
	t.Parallel()
	tool(t, "curl", "curl")
	const port = "127.0.0.1:8080"
	g := &guide{bothHosts: new(bothHosts), dir: t.TempDir(), bash: tool(t, "bash", "bash"), addr: freeAddr(t), admin: freeAddr(t)}
	g.env = append(homeIn(t.TempDir()), "PATH="+os.Getenv("PATH"), "CADDY_ADMIN="+g.admin)
	if err := os.Symlink(binary, filepath.Join(g.dir, "caddy")); err != nil {
		t.Fatal(err)
	}
	blocks := fencedBlocks("rehearsal.md", readFile(t, "docs/rehearsal.md"))
	for i := range blocks {
		blocks[i].text = strings.ReplaceAll(blocks[i].text, port, g.addr)
	}
	sandbox := startWith(t, g.bash, g.env, func(cmd *exec.Cmd) { cmd.Dir = g.dir }, "-c", "exec "+blocks[0].text)
	awaitPlan(t, g.admin)
	hosts, printed := 0, ""
	for i, block := range blocks[1:] {
		switch {
		case block.language == "sh":
			g.awaitCounted(t)
			g.follow(t, blocks[1+i:])
			g.sent += 10 * int64(strings.Count(block.text, "sh send.sh"))
		case strings.HasPrefix(block.text, "legacy ") || strings.HasPrefix(block.text, "record "):
			hosts++
			printed += block.text
		}
	}
	console, records, _ := strings.Cut(sandbox.text(), "\n")
	if records != printed || hosts != 4 {
		t.Errorf("in %d blocks, the hosts print\n%s", hosts, records)
	}
	page := awaitPage(t, strings.TrimPrefix(console, "The console is at http://"), "/", `<th scope="row"><code>shop.orders</code></th>`)
	if !strings.Contains(page.body, "as on the first day") {
		t.Error("the console does not show the plan")
	}
}

// awaitPlan waits until a gateway that has just been started shows its plan.
func awaitPlan(t *testing.T, admin string) {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		resp, err := http.Get("http://" + admin + "/td_postback/migration")
		if err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return
			}
		}
		if time.Now().After(end) {
			t.Fatal(resp, err)
		}
	}
}
