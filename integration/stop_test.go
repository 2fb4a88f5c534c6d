package integration

import (
	"bufio"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestStopWithStuckCallers ends a gateway that has a caller of every kind that
// keeps a connection for as long as it may. The process ends when grace_period
// is over, and no sooner.
func TestStopWithStuckCallers(t *testing.T) {
	t.Parallel()
	const grace = 2 * time.Second
	// v2 answers more than all buffers on the way hold.
	huge := listen(t, &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { //nolint:gosec // loopback
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Length", strconv.Itoa(64<<20))
		_, _ = io.CopyN(w, zeros{}, 64<<20)
	})})
	asked := make(chan struct{})
	silent := listen(t, &http.Server{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { //nolint:gosec // loopback
		_, _ = io.Copy(io.Discard, r.Body)
		close(asked)
		<-r.Context().Done()
	})})
	upgrade := listen(t, &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { //nolint:gosec // loopback
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		_, _ = io.Copy(io.Discard, conn)
	})})
	pair := newCertificate(t, "localhost")
	// send sends a request, and waits until the gateway has begun to answer, if
	// it does.
	send := func(request string, answers bool) func(*testing.T, string) io.Closer {
		return func(t *testing.T, addr string) io.Closer {
			conn := dial(t, addr)
			if _, err := io.WriteString(conn, request); err != nil {
				t.Fatal(err)
			}
			if answers {
				if _, err := io.ReadFull(conn, make([]byte, 12)); err != nil {
					t.Fatal(err)
				}
			}
			return conn
		}
	}
	waits := func(t *testing.T, addr string) io.Closer {
		conn := send(post(target, asJSON, object), false)(t, addr)
		<-asked
		return conn
	}
	for name, test := range map[string]struct {
		site  string
		stick func(t *testing.T, addr string) io.Closer
		least time.Duration // how long the process waits for it
	}{
		"reads nothing":             {"td_postback {\n upstream http://" + huge + "\n}", send(post(target, asJSON, object), true), grace},
		"reads nothing over HTTP/2": {"td_postback {\n upstream http://" + huge + "\n}", func(t *testing.T, addr string) io.Closer { return openHTTP2(t, pair, addr) }, grace},
		"reads nothing of handoff":  {"td_postback {\n upstream http://" + huge + "\n handoff\n}\nreverse_proxy " + huge, send(post(target, asJSON, object), true), grace},
		"waits for v2":              {"td_postback {\n upstream http://" + silent + "\n}", waits, grace},
		"sends no body":             {"td_postback us01", send("POST "+target+" HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 100\r\n\r\n", true), grace},
		"sends no end of its head":  {"td_postback us01", send("POST "+target+" HTTP/1.1\r\nHost: x\r\n", false), 0},
		"is refused and stays":      {"td_postback us01", send("POST "+target+" HTTP/1.1\r\nHost: x\r\nContent-Length: 2000000\r\n\r\n", true), 0},
		"has another protocol": {
			"td_postback us01 {\n pass_thru\n}\nreverse_proxy " + upgrade,
			send("GET /socket HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n", true), 0,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			addr := freeAddr(t)
			_, port, _ := net.SplitHostPort(addr)
			site := fmt.Sprintf("http://:%s {\n%s\n}\n", port, test.site)
			if strings.Contains(name, "HTTP/2") {
				site = fmt.Sprintf("https://localhost:%s {\n tls %s %s\n%s\n}\n", port, pair.cert, pair.key, test.site)
			}
			g := serveCaddyfile(t, addr, "{\n debug\n"+strings.Replace(globals, "grace_period 5s", "grace_period "+grace.String(), 1)+"}\n"+site)
			defer test.stick(t, addr).Close()
			start := time.Now()
			_ = g.cmd.Process.Signal(syscall.SIGTERM)
			select {
			case <-g.exited:
			case <-time.After(patience):
				t.Fatalf("the process lives on:\n%s", g.text())
			}
			if took := time.Since(start); took < test.least || took > grace+5*time.Second {
				t.Errorf("the process took %v to end, want between %v and %v", took, test.least, grace+5*time.Second)
			}
		})
	}
}

// zeros reads as zero bytes for ever.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

// openHTTP2 sends a record over HTTP/2 and reads nothing but the answer's head.
func openHTTP2(t *testing.T, pair certificate, addr string) io.Closer {
	t.Helper()
	_, port, _ := net.SplitHostPort(addr)
	resp, err := pair.http2Client().Post("https://localhost:"+port+target, "application/json", strings.NewReader(object))
	if err != nil || resp.ProtoMajor != 2 {
		t.Fatal(resp, err)
	}
	return resp.Body
}

// TestGracePeriod checks that both examples bound a stop, at longer than
// response_timeout, and that the unit waits for it, and for the spool.
func TestGracePeriod(t *testing.T) {
	t.Parallel()
	unit, err := os.ReadFile("../deploy/td-postback.service")
	if err != nil {
		t.Fatal(err)
	}
	stop, err := strconv.Atoi(string(regexp.MustCompile(`(?m)^TimeoutStopSec=(\d+)$`).FindSubmatch(unit)[1]))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"../Caddyfile.example", "../deploy/Caddyfile"} {
		output, code := run(t, "adapt", "--adapter", "caddyfile", "--config", path)
		var cfg struct {
			Apps struct {
				HTTP struct {
					GracePeriod time.Duration `json:"grace_period"`
				}
			}
		}
		if err := json.Unmarshal([]byte(output[strings.LastIndex(output, "\n{")+1:]), &cfg); code != 0 || err != nil {
			t.Fatalf("%s: exit %d: %s", path, code, output)
		}
		if got := cfg.Apps.HTTP.GracePeriod; got <= 30*time.Second || got+6*time.Second > time.Duration(stop)*time.Second {
			t.Errorf("%s: grace_period is %v, TimeoutStopSec %d", path, got, stop)
		}
	}
}

// TestDeployExample runs deploy/Caddyfile on two sockets from outside, as the
// unit does: it takes records, and answers probes by whatever host.
func TestDeployExample(t *testing.T) {
	t.Parallel()
	plain, plainSocket := outsideSocket(t)
	secure, secureSocket := outsideSocket(t)
	_, metrics, _ := net.SplitHostPort(freeAddr(t))
	g := startWith(t, binary, []string{"RUNTIME_DIRECTORY=" + t.TempDir(), "METRICS_PORT=" + metrics},
		func(cmd *exec.Cmd) { cmd.ExtraFiles = []*os.File{plainSocket, secureSocket} }, "run", "--adapter", "caddyfile", "--config", "../deploy/Caddyfile")
	g.await(t, "serving initial configuration", 1)
	for _, test := range []struct {
		host, path string
		status     int
		text       string
	}{
		{"localhost", "/healthz", 200, "ok"},
		{"10.0.0.1:8080", "/healthz", 200, "ok"},
		{"10.0.0.1:8080", "/", 404, "not_found"},
		{"10.0.0.1:8080", target, 404, "not_found"},
		{"10.0.0.1:8080", "/healthz/x", 404, "not_found"},
		{"localhost", "/elsewhere", 404, "not_found"},
		{"localhost", event, 403, "missing_write_key"},
	} {
		request := "GET " + test.path + " HTTP/1.1\r\nHost: " + test.host + "\r\n\r\n"
		if answer := raw(t, plain, request); answer.StatusCode != test.status || !strings.Contains(answer.body, test.text) {
			t.Errorf("http, %s at %q: got %d %q", test.path, test.host, answer.StatusCode, answer.body)
		}
		conn := dialLocal(t, secure)
		if _, err := io.WriteString(conn, request); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != test.status || !strings.Contains(string(body), test.text) {
			t.Errorf("https, %s at %q: got %d %q, %v", test.path, test.host, resp.StatusCode, body, err)
		}
	}
}

// dialLocal connects to a gateway that has its certificate from Caddy's local
// authority, as soon as it has it.
func dialLocal(t *testing.T, addr string) net.Conn {
	t.Helper()
	for end := time.Now().Add(patience); ; {
		conn := tls.Client(dial(t, addr), &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // that authority is not installed
		err := conn.Handshake()
		if err == nil {
			return conn
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}
