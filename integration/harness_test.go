// Package integration tests the built binary from outside: real sockets, real
// clients, and behind it either the strict sandbox or an upstream that records
// every byte.
package integration

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/td-postback/gateway/spool/cluster/natstest"
)

// This file builds, starts, asks and stops the gateway.

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

// homeIn is the environment of a binary with a home of its own. With the race detector,
// a process sleeps for a second before it ends, in case a race is being reported; a
// twentieth is enough for a line to be written.
func homeIn(dir string) []string {
	return []string{"HOME=" + dir, "XDG_DATA_HOME=" + dir, "XDG_CONFIG_HOME=" + dir, "GORACE=atexit_sleep_ms=50"}
}

// startWith is startBinary; prepare may change the command before it starts.
func startWith(t testing.TB, path string, env []string, prepare func(*exec.Cmd), args ...string) *process {
	t.Helper()
	p := &process{cmd: exec.Command(path, args...), exited: make(chan struct{})}
	p.changed = sync.NewCond(&p.mu)
	p.cmd.Stdout, p.cmd.Stderr = p, p
	p.cmd.Env = append(append(homeIn(t.TempDir()), "PATH="+os.Getenv("PATH")), env...)
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
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, args...)
	cmd.Env = homeIn(t.TempDir())
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

// freeAddr is a loopback address that nobody listens on, and that nobody gets by
// chance before the test uses it.
func freeAddr(t testing.TB) string {
	t.Helper()
	return natstest.FreeAddr(t)
}

// kill ends a process as a power cut would.
func kill(p *process) {
	_ = p.cmd.Process.Kill()
	<-p.exited
}

// underRace reports whether the race detector is on: then all is several times
// as slow.
func underRace() bool { return slices.Contains(buildFlags, "-race") }

// tool finds a program by any of its names. Without it the test is skipped,
// which CI does not let pass.
func tool(t testing.TB, pkg string, names ...string) string {
	t.Helper()
	for _, name := range names {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	t.Skipf("%s is not installed (apt-get install %s)", names[0], pkg)
	return ""
}

// goTool builds a program of .ci/tools. If Go would have to download it, the
// test is skipped, which CI does not let pass.
func goTool(t testing.TB, name, pkg string) string {
	t.Helper()
	path, output, err := build(name, pkg, "-C", "../.ci/tools", "-mod=readonly")
	if strings.Contains(output, "GOPROXY=off") {
		t.Skipf("%s is not in Go's module cache (go -C .ci/tools mod download)", name)
	}
	if err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
	return path
}

// goBuild builds a program of this module.
func goBuild(t testing.TB, name, pkg string, flags ...string) string {
	t.Helper()
	path, output, err := build(name, pkg, flags...)
	if err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
	return path
}

// builds are the programs that tests have built, by their names: each is built once.
var builds sync.Map // string -> func() (output string, err error)

func build(name, pkg string, flags ...string) (path, output string, err error) {
	path = filepath.Join(filepath.Dir(binary), name)
	once, _ := builds.LoadOrStore(name, sync.OnceValues(func() (string, error) {
		cmd := exec.Command("go", slices.Concat([]string{"build"}, flags, []string{"-o", path, pkg})...)
		cmd.Env = append(os.Environ(), "GOPROXY=off")
		output, err := cmd.CombinedOutput()
		return string(output), err
	}))
	output, err = once.(func() (string, error))()
	return path, output, err
}

// running is what td-postback logs when it serves callers: its console is another server.
const running = `"msg":"server running","name":"postback"`

// command runs td-postback on a free port and waits until it serves.
func command(t testing.TB, args ...string) *gateway {
	t.Helper()
	addr := freeAddr(t)
	g := &gateway{addr: addr, process: start(t, []string{"CADDY_ADMIN=" + freeAddr(t)}, append([]string{"td-postback", "--listen", addr}, args...)...)}
	g.await(t, running, 1)
	return g
}

// withAdmin is globals with Caddy's admin endpoint on the given address.
func withAdmin(admin string) string {
	return strings.Replace(globals, "admin off", "admin "+admin, 1)
}

// handoverGlobals are global options for outside sockets.
func handoverGlobals(admin string) string {
	return strings.Replace(withAdmin(admin), "default_bind 127.0.0.1",
		"servers {\n protocols h1 h2\n listener_wrappers {\n td_handover\n}\n}", 1)
}

// socketCaddyfile is a configuration with this site, on a socket from outside.
func socketCaddyfile(admin, site string) string {
	return fmt.Sprintf("{\n%s\n}\nhttp:// {\n bind fd/3\n%s\n}\n", handoverGlobals(admin), site)
}

// outsideSocket is a listening socket for a process that is started with it, as
// systemd would.
func outsideSocket(t *testing.T) (addr string, socket *os.File) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	if socket, err = listener.(*net.TCPListener).File(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = socket.Close() })
	return listener.Addr().String(), socket
}

// startOn starts a gateway with sockets as its files 3 and following.
func startOn(t *testing.T, config string, sockets ...*os.File) *process {
	t.Helper()
	p := startWith(t, binary, nil, func(cmd *exec.Cmd) { cmd.ExtraFiles = sockets },
		"run", "--adapter", "caddyfile", "--config", write(t, "Caddyfile", config))
	p.await(t, "serving initial configuration", 1)
	return p
}

// reload loads a configuration, as "caddy reload" does.
func reload(t *testing.T, admin, config string) (status int, problem string) {
	t.Helper()
	resp, err := http.Post("http://"+admin+"/load", "text/caddyfile", strings.NewReader(config))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

// scrape reads the gateway's own metrics, without the buckets of histograms and
// without what is 0.
func scrape(t *testing.T, addr string) map[string]float64 {
	t.Helper()
	resp, err := http.Get("http://" + addr + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatal(resp.Status, err)
	}
	found := map[string]float64{}
	for line := range strings.SplitSeq(string(text), "\n") {
		space := strings.LastIndexByte(line, ' ') // there may be others in labels
		name, ok := strings.CutPrefix(line[:max(space, 0)], "caddy_td_postback_")
		if number := line[space+1:]; ok && !strings.Contains(name, "_bucket") {
			value, err := strconv.ParseFloat(number, 64)
			if err != nil {
				t.Fatal(err)
			}
			if value != 0 {
				found[name] = value
			}
		}
	}
	return found
}

// awaitIdle scrapes until no request is in flight: a request is counted after
// its answer.
func awaitIdle(t *testing.T, addr string) map[string]float64 {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		if scrape(t, addr)["requests_in_flight"] == 0 {
			return scrape(t, addr) // the one before took its figures one after the other
		}
		if time.Now().After(end) {
			t.Fatal("requests stay in flight")
		}
	}
}

// checkBooks fails a test if what became of the requests is not known of each of them.
// None may be in flight. It returns how many were received.
func checkBooks(t *testing.T, metrics map[string]float64) (received int) {
	t.Helper()
	bySurface := map[string]float64{} // received, less all others
	for name, value := range metrics {
		labels, isBook := strings.CutPrefix(name, "books_total{book=")
		book, surface, _ := strings.Cut(labels, ",")
		switch {
		case strings.HasPrefix(name, "books_difference{"):
			t.Errorf("%s is %v", name, value)
		case isBook && book == `"received"`:
			bySurface[surface] += value
			received += int(value)
		case isBook:
			bySurface[surface] -= value
		}
	}
	if received == 0 {
		t.Error("no request is in the books")
	}
	for surface, left := range bySurface {
		if left != 0 {
			t.Errorf("the books of %s do not balance: %v more are received than forwarded, spooled, refused and lost", surface, left)
		}
	}
	return received
}

func booksTotal(surface, book string) string {
	return fmt.Sprintf("books_total{book=%q,surface=%q}", book, surface)
}

func requestsTotal(surface, key, result string) string {
	return fmt.Sprintf("requests_total{key=%q,lane=\"v2\",result=%q,surface=%q}", key, result, surface)
}

func resultsTotal(result string) string {
	return fmt.Sprintf("results_total{lane=\"v2\",result=%q}", result)
}

func keySignals(signal string) string { return fmt.Sprintf("key_signals_total{signal=%q}", signal) }

// peakMiB is the most physical memory that a process has had.
func peakMiB(t *testing.T, pid int) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, value, _ := strings.Cut(string(status), "VmHWM:")
	var kib int
	if _, err := fmt.Sscanf(value, "%d kB", &kib); err != nil {
		t.Fatal(err)
	}
	return kib >> 10
}

// certificate is a self-signed certificate on disk.
type certificate struct {
	cert, key string // paths
	pair      tls.Certificate
	pool      *x509.CertPool
}

func newCertificate(t testing.TB, names ...string) certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: names[0]}, DNSNames: names,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore:   time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(certPEM)
	return certificate{write(t, "cert.pem", string(certPEM)), write(t, "key.pem", string(keyPEM)), pair, pool}
}

// http2Client is a client that speaks HTTP/2 and trusts this certificate.
func (c certificate) http2Client() *http.Client {
	return &http.Client{
		Timeout:   patience,
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: c.pool}, ForceAttemptHTTP2: true},
	}
}

// signed is a certificate for localhost, by an authority, valid until notAfter.
func signed(t testing.TB, authority certificate, notAfter time.Time) *tls.Certificate {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), DNSNames: []string{"localhost"},
		NotBefore: notAfter.Add(-time.Hour), NotAfter: notAfter,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, authority.pair.Leaf, authority.pair.Leaf.PublicKey, authority.pair.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: authority.pair.PrivateKey}
}

// spooling is a gateway with a spool.
type spooling struct {
	*gateway
	admin, dir string
	caddyfile  string
}

// spoolBlock is a block with a spool; options are the block's, spool the
// spool's.
func spoolBlock(upstream, dir, options, spool string) string {
	return fmt.Sprintf("td_postback {\n upstream %s\n retries 0\n %s\n spool {\n  dir %s\n  %s\n }\n}", upstream, options, dir, spool)
}

// serveSpool runs a gateway with a spool of its own.
func serveSpool(t testing.TB, upstream, options, spool string) *spooling {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "spool")
	return serveSpoolSite(t, dir, spoolBlock(upstream, dir, options, spool))
}

// serveSpoolSite runs a gateway with this site, which has a spool in dir.
func serveSpoolSite(t testing.TB, dir, site string, env ...string) *spooling {
	t.Helper()
	addr, admin := freeAddr(t), freeAddr(t)
	_, port, _ := net.SplitHostPort(addr)
	g := &spooling{admin: admin, dir: dir, caddyfile: spoolCaddyfile(admin, port, site)}
	g.gateway = serveCaddyfile(t, addr, g.caddyfile, env...)
	saysNoSecret(t, g.process)
	return g
}

func spoolCaddyfile(admin, port, site string) string {
	return fmt.Sprintf("{\n%s servers {\n max_header_size 1MiB\n}\n}\nhttp://:%s {\n%s\n}\n", withAdmin(admin), port, site)
}

// saysNoSecret checks at the end of the test that a process has written no key
// and no body.
func saysNoSecret(t testing.TB, p *process) {
	t.Cleanup(func() {
		p.stop()
		for line := range strings.SplitSeq(p.text(), "\n") {
			if strings.Contains(line, spoolSecret) || strings.Contains(line, spoolText) {
				t.Errorf("a key or a body is in %s", line)
			}
		}
	})
}

// spoolState is what the admin API says of a spool.
type spoolState struct {
	Spool     string
	Available bool
	Bytes     int64
	MaxBytes  int64 `json:"max_bytes"`

	DeadBytes    int64 `json:"dead_bytes"`
	MaxDeadBytes int64 `json:"max_dead_bytes"`

	Queues []struct {
		Name          string
		Records, Dead int
		Oldest        *time.Time
		Down          bool `json:"upstream_down"`
	}
}

// records is how many records of all queues are still to be delivered.
func (s spoolState) records() (n int) {
	for _, q := range s.Queues {
		n += q.Records
	}
	return n
}

func (s spoolState) dead() (n int) {
	for _, q := range s.Queues {
		n += q.Dead
	}
	return n
}

// askAdmin asks the admin API and decodes its answer into value.
func askAdmin(t testing.TB, method, admin, path string, value any) int {
	t.Helper()
	req, err := http.NewRequest(method, "http://"+admin+"/td_postback/"+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(text), spoolSecret) {
		t.Errorf("%s %s shows the key: %s", method, path, text)
	}
	if value != nil {
		if err := json.Unmarshal(text, value); err != nil {
			t.Fatalf("%s %s: %v in %s", method, path, err, text)
		}
	}
	return resp.StatusCode
}

// state is the gateway's only spool.
func (g *spooling) state(t testing.TB) spoolState {
	t.Helper()
	var all []spoolState
	if status := askAdmin(t, http.MethodGet, g.admin, "spool", &all); status != http.StatusOK || len(all) != 1 {
		t.Fatalf("got %d, %d spools", status, len(all))
	}
	return all[0]
}

// health is what the gateway says of itself.
func (g *spooling) health(t testing.TB) (health string, status int) {
	t.Helper()
	var answer struct {
		Status string
		Spools map[string]string
	}
	status = askAdmin(t, http.MethodGet, g.admin, "health", &answer)
	if answer.Spools[g.dir] != answer.Status {
		t.Errorf("health: %+v", answer)
	}
	return answer.Status, status
}

// awaitState waits until is says yes. It has no limit of time, as long as the spool gets
// emptier.
func (g *spooling) awaitState(t testing.TB, is func(s *spoolState) bool) spoolState {
	t.Helper()
	end, least := time.Now().Add(patience), math.MaxInt
	for ; ; time.Sleep(10 * time.Millisecond) {
		s := g.state(t)
		if is(&s) {
			return s
		}
		if left := s.records(); left < least {
			end, least = time.Now().Add(patience), left
		}
		if time.Now().After(end) {
			t.Fatalf("the spool stays as it is: %+v", s)
		}
	}
}

// awaitHealth waits until the gateway says this of itself: files are deleted a
// little later than records are delivered.
func (g *spooling) awaitHealth(t testing.TB, want string) {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		health, _ := g.health(t)
		if health == want {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("health stays %s: %+v", health, g.state(t))
		}
	}
}

// awaitEmpty waits until all is delivered.
func (g *spooling) awaitEmpty(t testing.TB) {
	t.Helper()
	g.awaitState(t, func(s *spoolState) bool { return s.Available && s.records() == 0 })
}

// spoolMetrics are the spool's metrics, without the labels that name the spool
// and the queue. Times and sizes are in sizes, all others in counts.
func (g *spooling) spoolMetrics(t *testing.T) (counts, sizes map[string]float64) {
	t.Helper()
	counts, sizes = map[string]float64{}, map[string]float64{}
	label := regexp.MustCompile(`,?(spool|queue)="[^"]*"`)
	for name, value := range scrape(t, g.admin) {
		name, isSpool := strings.CutPrefix(label.ReplaceAllString(name, ""), "spool_")
		switch {
		case !isSpool:
		case strings.Contains(name, "bytes") || strings.Contains(name, "seconds"):
			sizes[name] = value
		default:
			counts[name] = value
		}
	}
	return counts, sizes
}

// awaitMetrics waits until the spool's metrics are these.
func (g *spooling) awaitMetrics(t *testing.T, want map[string]float64) {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		got, _ := g.spoolMetrics(t)
		if maps.Equal(got, want) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("got %v\nwant %v", got, want)
		}
	}
}

// letter is a record as the admin API lists it.
type letter struct {
	ID                        uint64
	Status, Bytes, Events     int
	Reason, Path, Account     string
	Queue, Spool, Query, Body string
	Arrival                   time.Time
	Died                      *time.Time
	Header                    http.Header
}

// spoolCommand runs td-spool against a gateway. Nothing that it writes may hold
// a key.
func spoolCommand(t *testing.T, admin string, args ...string) (output string, code int) {
	t.Helper()
	output, code = run(t, append([]string{"td-spool", "--address", admin}, args...)...)
	if strings.Contains(output, spoolSecret) {
		t.Errorf("%q shows the key: %s", args, output)
	}
	return output, code
}

// spoolPrints checks that a td-spool command succeeds and spoolPrints these texts.
func spoolPrints(t *testing.T, admin string, args []string, texts ...string) string {
	t.Helper()
	output, code := spoolCommand(t, admin, args...)
	if code != 0 {
		t.Errorf("%q: exit %d: %s", args, code, output)
	}
	for _, text := range texts {
		if !strings.Contains(output, text) {
			t.Errorf("%q: %q is not in %s", args, text, output)
		}
	}
	return output
}

// spoolFails checks that a td-spool command spoolFails with these texts.
func spoolFails(t *testing.T, admin string, args []string, texts ...string) {
	t.Helper()
	output, code := spoolCommand(t, admin, args...)
	if code != 1 {
		t.Errorf("%q: exit %d: %s", args, code, output)
	}
	isPlain(t, args, output)
	for _, text := range texts {
		if !strings.Contains(output, text) {
			t.Errorf("%q: %q is not in %s", args, text, output)
		}
	}
}
