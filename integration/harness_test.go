// Package integration tests the built binary from outside: real sockets, real
// clients, and behind it either the strict sandbox or an upstream that records
// every byte.
package integration

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience is how long a test waits for something that must happen.
const patience = 30 * time.Second

// buildFlags make the binary under test like the test itself.
var buildFlags []string

// binary is the built cmd/caddy.
var binary string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "td-postback")
	if err != nil {
		panic(err)
	}
	binary = filepath.Join(dir, "caddy")
	build := exec.Command("go", append(append([]string{"build", "-o", binary}, buildFlags...), "../cmd/caddy")...)
	build.Stdout, build.Stderr = os.Stdout, os.Stderr
	status := 1
	if err := build.Run(); err != nil {
		fmt.Println("building the binary:", err)
	} else {
		status = m.Run()
	}
	_ = os.RemoveAll(dir)
	os.Exit(status)
}

// process is a running binary. Its output is kept and can be awaited.
type process struct {
	cmd    *exec.Cmd
	exited chan struct{}

	mu      sync.Mutex
	changed *sync.Cond
	output  bytes.Buffer
	ended   bool
}

// Write takes the process's output.
func (p *process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.changed.Broadcast()
	return p.output.Write(b)
}

// text is the output so far.
func (p *process) text() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.output.String()
}

// await waits until the output has the text n times.
func (p *process) await(t testing.TB, text string, n int) {
	t.Helper()
	deadline := time.Now().Add(patience)
	timer := time.AfterFunc(patience, func() { p.mu.Lock(); p.changed.Broadcast(); p.mu.Unlock() })
	defer timer.Stop()
	p.mu.Lock()
	defer p.mu.Unlock()
	for strings.Count(p.output.String(), text) < n {
		if p.ended || time.Now().After(deadline) {
			t.Fatalf("the output never had %q %d times:\n%s", text, n, p.output.String())
		}
		p.changed.Wait()
	}
}

// stop ends the process and waits for it.
func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.exited:
	case <-time.After(patience):
		_ = p.cmd.Process.Kill()
		<-p.exited
	}
}

// start runs the binary until the end of the test, with a home of its own. A
// data race in it fails the test.
func start(t testing.TB, env []string, args ...string) *process {
	t.Helper()
	return startBinary(t, binary, env, args...)
}

func startBinary(t testing.TB, path string, env []string, args ...string) *process {
	t.Helper()
	return startWith(t, path, env, func(*exec.Cmd) {}, args...)
}

// startWith is startBinary with a last touch to the command.
func startWith(t testing.TB, path string, env []string, prepare func(*exec.Cmd), args ...string) *process {
	t.Helper()
	home := t.TempDir()
	p := &process{cmd: exec.Command(path, args...), exited: make(chan struct{})}
	p.changed = sync.NewCond(&p.mu)
	p.cmd.Stdout, p.cmd.Stderr = p, p
	p.cmd.Env = append([]string{"HOME=" + home, "XDG_DATA_HOME=" + home, "XDG_CONFIG_HOME=" + home, "PATH=" + os.Getenv("PATH")}, env...)
	prepare(p.cmd)
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = p.cmd.Wait()
		p.mu.Lock()
		p.ended = true
		p.changed.Broadcast()
		p.mu.Unlock()
		close(p.exited)
	}()
	t.Cleanup(func() {
		p.stop()
		if text := p.text(); strings.Contains(text, "WARNING: DATA RACE") {
			t.Error("data race in the binary:\n" + text)
		}
	})
	return p
}

// run runs the binary to its end, which must come soon, and returns its output
// and exit code.
func run(t testing.TB, args ...string) (output string, code int) {
	t.Helper()
	home := t.TempDir()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, args...)
	cmd.Env = []string{"HOME=" + home, "XDG_DATA_HOME=" + home, "XDG_CONFIG_HOME=" + home}
	b, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return string(b), cmd.ProcessState.ExitCode()
}

// gateway is a running gateway.
type gateway struct {
	*process
	addr string
}

func (g *gateway) url(path string) string { return "http://" + g.addr + path }

// globals are the global options of every Caddyfile under test.
const globals = `
	admin off
	persist_config off
	auto_https off
	default_bind 127.0.0.1
	grace_period 5s
`

// serve runs a gateway whose site block holds the given directives. more is
// added to the global options.
func serve(t testing.TB, more, site string, env ...string) *gateway {
	t.Helper()
	addr := freeAddr(t)
	_, port, _ := net.SplitHostPort(addr)
	return serveCaddyfile(t, addr, fmt.Sprintf("{\n%s%s\n}\nhttp://:%s {\n%s\n}\n", globals, more, port, site), env...)
}

func serveCaddyfile(t testing.TB, addr, caddyfile string, env ...string) *gateway {
	t.Helper()
	g := &gateway{addr: addr, process: start(t, env, "run", "--adapter", "caddyfile", "--config", write(t, "Caddyfile", caddyfile))}
	g.await(t, "serving initial configuration", 1)
	return g
}

// write writes a file for the test.
func write(t testing.TB, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil { //nolint:gosec // G703: a test's own name
		t.Fatal(err)
	}
	return path
}

// freeAddr is a loopback address that nobody listens on.
func freeAddr(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// seen is one request as the recording upstream read it.
type seen struct {
	line   string
	fields []string // sorted
	body   string
	conn   int // which connection it came on, counted from 1
}

// field returns the values of a field, by its exact name.
func (s seen) field(name string) []string {
	var values []string
	for _, field := range s.fields {
		if value, ok := strings.CutPrefix(field, name+": "); ok {
			values = append(values, value)
		}
	}
	return values
}

// recorder is an upstream that keeps the exact bytes of every request and
// answers what the test tells it to.
type recorder struct {
	net.Listener
	requests chan seen

	// answer writes the answer to the n-th request of a connection, both from
	// 1. It returns false to close the connection. The default is v2's `{}`.
	answer func(conn net.Conn, nth int, request seen) (keep bool)
}

const ok = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"

// record starts a recorder.
func record(t testing.TB, answer func(conn net.Conn, nth int, request seen) bool) *recorder {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return recordOn(t, l, answer)
}

func recordOn(t testing.TB, l net.Listener, answer func(conn net.Conn, nth int, request seen) bool) *recorder {
	if answer == nil {
		answer = func(conn net.Conn, _ int, _ seen) bool { _, err := io.WriteString(conn, ok); return err == nil }
	}
	u := &recorder{Listener: l, answer: answer, requests: make(chan seen, 10_000)}
	acceptAll(t, l, u.handle)
	return u
}

// acceptAll handles connections, counted from 1, until the end of the test.
func acceptAll(t testing.TB, l net.Listener, handle func(conn net.Conn, number int)) {
	var conns sync.WaitGroup
	var open sync.Map
	go func() {
		for n := 1; ; n++ {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			open.Store(conn, true)
			conns.Go(func() {
				defer open.Delete(conn)
				defer conn.Close()
				handle(conn, n)
			})
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		open.Range(func(conn, _ any) bool { _ = conn.(net.Conn).Close(); return true })
		conns.Wait()
	})
}

func (u *recorder) handle(conn net.Conn, number int) {
	br := bufio.NewReader(conn)
	for nth := 1; ; nth++ {
		request, err := readExact(br)
		if err != nil {
			return
		}
		request.conn = number
		u.requests <- request
		if !u.answer(conn, nth, request) {
			return
		}
	}
}

// readExact reads one request without any leniency: the gateway always sends
// HTTP/1.1 with a Content-Length.
func readExact(br *bufio.Reader) (s seen, err error) {
	length := -1
	for {
		line, err := br.ReadString('\n')
		if err != nil {
			return s, err
		}
		line, ok := strings.CutSuffix(line, "\r\n")
		if !ok {
			return s, fmt.Errorf("bare LF in %q", line)
		}
		if s.line == "" {
			s.line = line
			continue
		}
		if line == "" {
			break
		}
		if value, ok := strings.CutPrefix(line, "Content-Length: "); ok {
			if _, err := fmt.Sscanf(value, "%d", &length); err != nil {
				return s, err
			}
		}
		s.fields = append(s.fields, line)
	}
	slices.Sort(s.fields)
	if length < 0 {
		return s, errors.New("no Content-Length")
	}
	body := make([]byte, length)
	_, err = io.ReadFull(br, body)
	s.body = string(body)
	return s, err
}

func (u *recorder) url() string { return "http://" + u.Addr().String() }

// next waits for the next request.
func (u *recorder) next(t testing.TB) seen {
	t.Helper()
	select {
	case s := <-u.requests:
		return s
	case <-time.After(patience):
		t.Fatal("the upstream saw no request")
		return seen{}
	}
}

// none checks that no request has come. Call it after the answer.
func (u *recorder) none(t testing.TB) {
	t.Helper()
	select {
	case s := <-u.requests:
		t.Errorf("the upstream saw %q %q with %d bytes", s.line, s.fields, len(s.body))
	default:
	}
}

// reply is an answer as a caller sees it.
type reply struct {
	*http.Response
	body string
}

// code is the code of a refusal.
func (r reply) code() string {
	_, rest, _ := strings.Cut(r.body, `"error":"`)
	code, _, _ := strings.Cut(rest, `"`)
	return code
}

// raw sends bytes on a connection of their own and reads one answer.
func raw(t testing.TB, addr, request string) reply {
	t.Helper()
	conn := dial(t, addr)
	go func() { _, _ = io.WriteString(conn, request) }()
	method, _, _ := strings.Cut(request, " ")
	return readReply(t, bufio.NewReader(conn), method)
}

// dial connects for the length of the test.
func dial(t testing.TB, addr string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.SetDeadline(time.Now().Add(patience))
	t.Cleanup(func() { conn.Close() })
	return conn
}

func readReply(t testing.TB, br *bufio.Reader, method string) reply {
	t.Helper()
	for {
		resp, err := http.ReadResponse(br, &http.Request{Method: method})
		if err != nil {
			t.Fatalf("no answer: %v", err)
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatalf("answer cut: %v", err)
		}
		if resp.StatusCode != http.StatusContinue {
			return reply{resp, string(body)}
		}
	}
}

// tool finds a program by any of its names, and installs its Debian package
// where that is possible. Without it the test is skipped, which CI does not let
// pass.
func tool(t testing.TB, pkg string, names ...string) string {
	t.Helper()
	for round := range 2 {
		for _, name := range names {
			if path, err := exec.LookPath(name); err == nil {
				return path
			}
		}
		if apt, err := exec.LookPath("apt-get"); err == nil && os.Geteuid() == 0 && round == 0 {
			if output, err := exec.Command("sh", "-c", apt+" update -qq && "+apt+" install -y -qq "+pkg).CombinedOutput(); err != nil {
				t.Logf("installing %s: %v\n%s", pkg, err, output)
			}
		}
	}
	t.Skipf("SKIPPED: this test needs %s, of Debian's package %s", names[0], pkg)
	return ""
}
