package integration

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/td-postback/gateway/sandbox"
	"github.com/td-postback/gateway/spool/cluster/natstest"
)

// This file runs the commands of docs/migrating.md, word for word and in their order, and
// compares what they print with what the page says. Each of a thousand clients has an
// address of its own, which only Linux has on loopback.

// bothHosts stands in for the legacy host of us01 and for v2, which is the sandbox. Its
// environment leads a gateway and curl to them, through a proxy, as in recipes_test.go.
type bothHosts struct {
	legacy, v2 atomic.Int64 // events that they have taken
	addr       string
	authority  string // a file with that of their certificate
	env        []string
}

func newBothHosts(t *testing.T) *bothHosts {
	t.Helper()
	hosts, v2 := new(bothHosts), new(sandbox.Sandbox)
	pair := newCertificate(t, "in.treasuredata.com", "us01.records.in.treasuredata.com")
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.Host, ".records.") {
			answer := httptest.NewRecorder()
			v2.ServeHTTP(answer, r)
			if answer.Code == http.StatusOK {
				hosts.v2.Add(1)
			}
			w.WriteHeader(answer.Code)
			_, _ = answer.Body.WriteTo(w)
			return
		}
		_, _ = io.Copy(io.Discard, r.Body)
		if strings.Contains(r.URL.Path, "td_doctor") {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		hosts.legacy.Add(1)
		_, _ = io.WriteString(w, "{}")
	}))
	server.TLS = &tls.Config{Certificates: []tls.Certificate{pair.pair}}
	server.StartTLS()
	t.Cleanup(server.Close)
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		tunnel(w, server.Listener.Addr().String())
	}))
	t.Cleanup(proxy.Close)
	hosts.addr, hosts.authority = server.Listener.Addr().String(), pair.cert
	hosts.env = []string{"HTTPS_PROXY=" + proxy.URL, "SSL_CERT_FILE=" + pair.cert, "SSL_CERT_DIR=" + t.TempDir()}
	return hosts
}

// guide is the page, and what it is run with.
type guide struct {
	*bothHosts
	dir, bash, addr, admin string // of the gateway
	env                    []string
	sent                   int64
}

// fromClients sends a request for each of n clients of a network of 127.
func (g *guide) fromClients(t *testing.T, n int, network, request string) {
	t.Helper()
	for i := range n {
		from, err := net.ResolveTCPAddr("tcp", fmt.Sprintf("127.%s.%d:0", network, 1+i))
		if err != nil {
			t.Fatal(err)
		}
		conn, err := (&net.Dialer{LocalAddr: from, Timeout: patience}).Dial("tcp", g.addr)
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(patience))
		_, err = io.WriteString(conn, request)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatal(resp, err)
		}
		_ = resp.Body.Close()
		_ = conn.Close()
	}
	g.sent += int64(n)
}

// shoppers are a thousand clients that send an order. No two networks have as many.
func (g *guide) shoppers(t *testing.T) {
	t.Helper()
	const order = `{"order":17}`
	for network, clients := range []int{250, 240, 230, 220, 60} {
		g.fromClients(t, clients, fmt.Sprintf("1.%d", network),
			fmt.Sprintf("POST /postback/v3/event/shop/orders HTTP/1.1\r\nHost: postback.example.com\r\nUser-Agent: Shop/2.1\r\n"+asJSON+"X-TD-Write-Key: %s\r\nContent-Length: %d\r\n\r\n%s", callersKey, len(order), order))
	}
}

// leads are twenty clients whose mails have a pixel with a key in its URL.
func (g *guide) leads(t *testing.T) {
	t.Helper()
	g.fromClients(t, 20, "2.0", "GET /postback/v3/event/crm/leads?td_format=pixel&mail=9&td_write_key="+strings.Replace(callersKey, "/", "%2F", 1)+" HTTP/1.1\r\nHost: postback.example.com\r\nUser-Agent: Mail/1.0\r\n\r\n")
}

// before is what happens before the block of the page whose first line is this.
var before = map[string]func(t *testing.T, g *guide){
	"./caddy td-migrate callers": func(t *testing.T, g *guide) { t.Helper(); g.shoppers(t); g.leads(t) },
	"./caddy td-migrate status": func(t *testing.T, g *guide) {
		t.Helper()
		if g.sent > 0 { // not the first time
			g.shoppers(t)
		}
	},
	"./caddy td-migrate undo": func(t *testing.T, g *guide) { t.Helper(); g.shoppers(t) },
	"./caddy td-migrate history": func(t *testing.T, g *guide) { // it is rolled back
		t.Helper()
		v2 := g.v2.Load()
		g.shoppers(t)
		if g.v2.Load() != v2 {
			t.Errorf("after the rollback, %d events have gone to v2", g.v2.Load()-v2)
		}
	},
	"./caddy td-migrate unset shop.orders": func(t *testing.T, g *guide) { // everything goes to v2
		t.Helper()
		legacy := g.legacy.Load()
		g.shoppers(t)
		g.leads(t)
		if g.legacy.Load() != legacy {
			t.Errorf("at 100 %%, %d events have gone to the legacy host", g.legacy.Load()-legacy)
		}
	},
}

// awaitCounted waits until the report has all that was sent.
func (g *guide) awaitCounted(t *testing.T) {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		var counted uint64
		l, text := callersOf(t, g.admin)
		for i := range l.Rows {
			counted += l.Rows[i].Events
		}
		if counted == uint64(g.sent) { //nolint:gosec // G115: it is a count
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%d events of %d are counted: %s", counted, g.sent, text)
		}
	}
}

// TestMigrating follows docs/migrating.md.
func TestMigrating(t *testing.T) {
	t.Parallel()
	tool(t, "curl", "curl")
	blocks := fencedBlocks("migrating.md", readFile(t, "docs/migrating.md"))
	g := newGuide(t, blocks)
	var gateway *process
	for i, block := range blocks {
		first, _, _ := strings.Cut(block.text, "\n")
		switch {
		case block.language != "sh" || isShared(block):
			continue
		case strings.HasPrefix(first, "./caddy run "):
			gateway = startWith(t, binary, g.env, func(cmd *exec.Cmd) { cmd.Dir = g.dir }, strings.Fields(first)[1:]...)
			gateway.await(t, "serving initial configuration", 1)
			continue
		}
		if prepare := before[first]; prepare != nil {
			prepare(t, g)
		}
		if gateway != nil {
			g.awaitCounted(t)
		}
		if strings.Contains(block.text, "http://postback.example.com/postback/") {
			g.sent++
		}
		g.follow(t, blocks[i:])
	}
	// One went directly to the legacy host.
	if legacy, v2 := g.legacy.Load(), g.v2.Load(); legacy+v2 != g.sent+1 || v2 < 1020 {
		t.Errorf("of %d events, %d are at the legacy host and %d at v2", g.sent, legacy, v2)
	}
	if strings.Contains(gateway.text(), callersKey) {
		t.Error("the key is in the log")
	}
	g.cutOver(t, blocks)
}

// isShared reports whether a block of commands is for several gateways.
func isShared(commands block) bool {
	return strings.Contains(commands.text, "--local") || strings.Contains(commands.text, "'shop.*' 5")
}

// follow runs the first of these blocks, and compares what it prints with the next one, if
// that says so.
func (g *guide) follow(t *testing.T, blocks []block) {
	t.Helper()
	output := g.run(t, blocks[0])
	if len(blocks) > 1 && blocks[1].language == "text" && !outputPattern(blocks[1].text).MatchString(output) {
		t.Errorf("%s: it prints\n%s", blocks[0].place, output)
	}
	t.Logf("%s\n%s", blocks[0].text, output)
}

// TestMigratingNATS follows what the page says of several gateways.
func TestMigratingNATS(t *testing.T) {
	t.Parallel()
	server := goTool(t, "nats-server", "github.com/nats-io/nats-server/v2")
	nodes := natstest.Nodes(t, server, t.TempDir(), 3, "max_payload: 4MB")
	urls := make([]string, 0, len(nodes))
	for _, n := range nodes {
		t.Cleanup(n.Kill)
		n.Start(t)
		urls = append(urls, "nats://"+n.Addr)
	}
	blocks := fencedBlocks("migrating.md", readFile(t, "docs/migrating.md"))
	shared := blocks[slices.IndexFunc(blocks, func(b block) bool { return strings.Contains(b.text, "spool nats ") }):]
	g, homes := newGuide(t, shared), t.TempDir()
	for _, name := range []string{"3", "2", "1"} { // the commands are for the last one
		_, port, _ := net.SplitHostPort(freeAddr(t))
		g.admin = freeAddr(t)
		g.env = append(slices.Clip(g.env), "HTTP_PORT="+port, "CADDY_ADMIN="+g.admin, "NATS_URLS="+strings.Join(urls, " "), "XDG_DATA_HOME="+filepath.Join(homes, name))
		gateway := startWith(t, binary, g.env, func(cmd *exec.Cmd) { cmd.Dir = g.dir }, "run", "--config", "Caddyfile")
		gateway.await(t, "serving initial configuration", 1)
	}
	followed := 0
	for i, block := range shared {
		if block.language == "sh" && isShared(block) {
			g.follow(t, shared[i:])
			followed++
		}
	}
	if followed != 2 {
		t.Errorf("%d blocks are for several gateways", followed)
	}
}

// cutOver takes migrate out: everything goes to v2, though it is rolled back.
func (g *guide) cutOver(t *testing.T, blocks []block) {
	t.Helper()
	g.run(t, block{text: "./caddy td-migrate rollback"})
	without := strings.Replace(firstOf(blocks, "caddyfile"), "\t\tmigrate\n", "", 1)
	_, port, _ := net.SplitHostPort(g.addr)
	if status, problem := reload(t, g.admin, strings.Replace(without, "{$HTTP_PORT:80}", port, 1)); status != http.StatusOK {
		t.Fatal(problem)
	}
	legacy, v2 := g.legacy.Load(), g.v2.Load()
	g.shoppers(t)
	if g.legacy.Load() != legacy || g.v2.Load() != v2+1000 {
		t.Errorf("without migrate, %d events are at the legacy host and %d at v2", g.legacy.Load()-legacy, g.v2.Load()-v2)
	}
}

// firstOf is the first block of a language.
func firstOf(blocks []block, language string) string {
	return blocks[slices.IndexFunc(blocks, func(b block) bool { return b.language == language })].text
}

// TestMigratingResolve runs the page's other configuration: its own name leads to the
// gateway, which goes where resolve says, and checks the certificate by the name.
func TestMigratingResolve(t *testing.T) {
	t.Parallel()
	hosts, blocks := newBothHosts(t), fencedBlocks("migrating.md", readFile(t, "docs/migrating.md"))
	second := slices.DeleteFunc(blocks, func(b block) bool { return !strings.Contains(b.text, "resolve ") })
	if len(second) != 1 {
		t.Fatalf("%d blocks have resolve", len(second))
	}
	addr := freeAddr(t)
	_, port, _ := net.SplitHostPort(addr)
	env := []string{"HTTP_PORT=" + port, "CADDY_ADMIN=" + freeAddr(t), "LEGACY_ADDRESS=" + hosts.addr, "SSL_CERT_FILE=" + hosts.authority, "SSL_CERT_DIR=" + t.TempDir()}
	serveCaddyfile(t, addr, second[0].text, env...)
	answer := raw(t, addr, "POST /postback/v3/event/shop/orders HTTP/1.1\r\nHost: in.treasuredata.com\r\n"+asJSON+"X-TD-Write-Key: "+callersKey+"\r\nContent-Length: 2\r\n\r\n{}")
	if answer.StatusCode != http.StatusOK || hosts.legacy.Load() != 1 || hosts.v2.Load() != 0 {
		t.Errorf("got %d %s, with %d events at the legacy host and %d at v2", answer.StatusCode, answer.body, hosts.legacy.Load(), hosts.v2.Load())
	}
}

// newGuide makes a place in which the commands of the page run: with its first
// configuration, the binary as ./caddy, and names that lead to the stand-ins.
func newGuide(t *testing.T, blocks []block) *guide {
	t.Helper()
	g := &guide{bothHosts: newBothHosts(t), dir: t.TempDir(), bash: tool(t, "bash", "bash"), addr: freeAddr(t), admin: freeAddr(t)}
	_, port, _ := net.SplitHostPort(g.addr)
	home := t.TempDir()
	g.env = append(append(homeIn(home), "PATH="+os.Getenv("PATH"), "HTTP_PORT="+port, "CADDY_ADMIN="+g.admin, "GOMEMLIMIT=1GiB"), g.bothHosts.env...)
	if err := os.WriteFile(filepath.Join(g.dir, "Caddyfile"), []byte(firstOf(blocks, "caddyfile")), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(binary, filepath.Join(g.dir, "caddy")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(home, ".curlrc"), []byte("cacert = "+g.authority+"\nconnect-to = postback.example.com:80:"+g.addr+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return g
}

// run runs a block of commands, which must not fail, and returns what it prints.
func (g *guide) run(t *testing.T, commands block) string {
	t.Helper()
	cmd := exec.Command(g.bash, "-ec", commands.text)
	cmd.Dir, cmd.Env = g.dir, g.env
	output, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%s: %v\n%s", commands.place, err, output)
	}
	return string(output)
}

// outputPattern matches an output that differs from that of a page in times, in who ran
// the command, in the names of keys and gateways, and in the width of columns.
func outputPattern(page string) *regexp.Regexp {
	pattern := regexp.QuoteMeta(page)
	pattern = regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ`).ReplaceAllLiteralString(pattern, `\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ`)
	pattern = regexp.MustCompile(`1234/#[0-9a-f]{10}`).ReplaceAllLiteralString(pattern, `1234/#[0-9a-f]{10}`)
	pattern = regexp.MustCompile(`gw\d:/[a-z/-]+`).ReplaceAllLiteralString(pattern, `[^ \n]+:/[^ \n]+`)
	pattern = strings.ReplaceAll(pattern, "root@gateway", `[^\n]+@[^ \n]+`)
	pattern = regexp.MustCompile(` +\n`).ReplaceAllLiteralString(pattern, "\n")
	pattern = regexp.MustCompile(` +`).ReplaceAllLiteralString(pattern, " +")
	pattern = strings.ReplaceAll(pattern, "\n", " *\n")
	return regexp.MustCompile("^" + pattern + "$")
}
