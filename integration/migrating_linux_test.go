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
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/td-postback/gateway/sandbox"
)

// This file runs the commands of docs/migrating.md, word for word and in their order, and
// compares what they print with what the page says. Each of a thousand clients has an
// address of its own, which only Linux has on loopback.

// bothHosts stands in for the legacy host of us01 and for v2, which is the sandbox. Its
// environment leads a gateway and curl to them, through a proxy, as in recipes_test.go.
type bothHosts struct {
	legacy, v2 atomic.Int64 // events that they have taken
	authority  string       // a file with that of their certificate
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
	hosts.authority = pair.cert
	hosts.env = []string{"HTTPS_PROXY=" + proxy.URL, "SSL_CERT_FILE=" + pair.cert, "SSL_CERT_DIR=" + t.TempDir()}
	return hosts
}

// guide is the page, and what it is run with.
type guide struct {
	*bothHosts
	dir, bash, addr, admin string
	env                    []string
	sent                   int64
}

// fromClients sends a request for each of n clients, whose addresses begin with 127 and
// this number.
func (g *guide) fromClients(t *testing.T, n, network int, request string) {
	t.Helper()
	for i := range n {
		from := &net.TCPAddr{IP: net.IPv4(127, byte(network), byte(i/250), byte(1+i%250))}
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

// shoppers are a thousand clients that send an order.
func (g *guide) shoppers(t *testing.T) {
	t.Helper()
	const order = `{"order":17}`
	g.fromClients(t, 1000, 1, fmt.Sprintf("POST /postback/v3/event/shop/orders HTTP/1.1\r\nHost: postback.example.com\r\nUser-Agent: Shop/2.1\r\n"+asJSON+"X-TD-Write-Key: %s\r\nContent-Length: %d\r\n\r\n%s", callersKey, len(order), order))
}

// leads are twenty clients whose mails have a pixel with a key in its URL.
func (g *guide) leads(t *testing.T) {
	t.Helper()
	g.fromClients(t, 20, 2, "GET /postback/v3/event/crm/leads?td_format=pixel&mail=9&td_write_key="+strings.Replace(callersKey, "/", "%2F", 1)+" HTTP/1.1\r\nHost: postback.example.com\r\nUser-Agent: Mail/1.0\r\n\r\n")
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
		case block.language != "sh" || strings.Contains(block.text, "--local"):
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
		output := g.run(t, block)
		if i+1 < len(blocks) && blocks[i+1].language == "text" && !outputPattern(blocks[i+1].text).MatchString(output) {
			t.Errorf("%s: it prints\n%s", block.place, output)
		}
		t.Logf("%s\n%s", block.text, output)
	}
	// One went directly to the legacy host.
	if legacy, v2 := g.legacy.Load(), g.v2.Load(); legacy+v2 != g.sent+1 || v2 < 1020 {
		t.Errorf("of %d events, %d are at the legacy host and %d at v2", g.sent, legacy, v2)
	}
	if strings.Contains(gateway.text(), callersKey) {
		t.Error("the key is in the log")
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
	for _, block := range blocks {
		if block.language == "caddyfile" {
			if err := os.WriteFile(filepath.Join(g.dir, "Caddyfile"), []byte(block.text), 0o600); err != nil {
				t.Fatal(err)
			}
			break
		}
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
// the command, and in the width of columns. … alone in a line stands for any lines.
func outputPattern(page string) *regexp.Regexp {
	pattern := regexp.QuoteMeta(page)
	pattern = regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ`).ReplaceAllLiteralString(pattern, `\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ`)
	pattern = strings.ReplaceAll(pattern, "root@gateway", `[^\n]+@[^ \n]+`)
	pattern = regexp.MustCompile(` +\n`).ReplaceAllLiteralString(pattern, "\n")
	pattern = regexp.MustCompile(` +`).ReplaceAllLiteralString(pattern, " +")
	pattern = strings.ReplaceAll(pattern, "\n", " *\n")
	pattern = strings.ReplaceAll(pattern, "… *\n", `(?:[^\n]*\n)*`)
	return regexp.MustCompile("^" + pattern + "$")
}
