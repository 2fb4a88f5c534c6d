package main

import (
	"bytes"
	"cmp"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"embed"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// The proxies, by the names in the table.
const (
	gateway  = "gateway"
	recipe   = "recipe"
	respond  = "respond"
	nginxLua = "nginx+lua"
)

var proxyNames = []string{gateway, recipe, respond, "nginx", nginxLua, "haproxy"}

// ports are where each program listens: for plain HTTP, and one above for TLS.
// The configurations in peers have the same.
var ports = map[string]int{
	"standin": 18100, gateway: 18110, recipe: 18120, respond: 18130, "nginx": 18140, "haproxy": 18150, nginxLua: 18156,
	spoolOnFailure: 18160, spoolAlways: 18170, spoolDown: 18180, spoolBatch: 18190,
	spoolDrain: 18200, standinLate: 18204,
	standinLegacy: 18206, laneV2: 18210, laneLegacy: 18220,
}

//go:embed peers
var peers embed.FS

// place is a directory with everything that the programs need.
type place struct {
	dir   string
	spool string // directory on a disk
}

// prepare builds the programs, writes the configurations for as many threads
// as there are processors, and makes a certificate.
func prepare() (*place, error) {
	dir, err := os.MkdirTemp("", "bench")
	if err != nil {
		return nil, err
	}
	spool, err := spoolDir()
	if err != nil {
		return nil, err
	}
	p := &place{dir, spool}
	for name, pkg := range map[string]string{gateway: "cmd/caddy", "stock": "bench/stock", "standin": "bench/standin"} {
		build := exec.Command("go", "build", "-o", p.path(name), "github.com/td-postback/gateway/"+pkg) //nolint:gosec,noctx // G204: the names above
		if output, err := build.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("build %s: %w\n%s", pkg, err, output)
		}
	}
	files, err := peers.ReadDir("peers")
	if err != nil {
		return nil, err
	}
	threads := []byte(strconv.Itoa(runtime.NumCPU()))
	for _, f := range files {
		text, err := peers.ReadFile("peers/" + f.Name())
		if err != nil {
			return nil, err
		}
		text = bytes.ReplaceAll(bytes.ReplaceAll(text, []byte("THREADS"), threads), []byte("SPOOL"), []byte(p.spool))
		if err := os.WriteFile(p.path(f.Name()), text, 0o600); err != nil {
			return nil, err
		}
	}
	return p, p.writeCertificate()
}

func (p *place) path(name string) string { return filepath.Join(p.dir, name) }

func (p *place) remove() {
	_ = os.RemoveAll(p.dir)
	_ = os.RemoveAll(p.spool)
}

// writeCertificate makes an ECDSA P-256 certificate for 127.0.0.1, the key type
// that Caddy has by default, for all programs.
func (p *place) writeCertificate() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "bench"},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(24 * time.Hour),
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		IsCA:                  true,
		BasicConstraintsValid: true,
		IPAddresses:           []net.IP{net.IPv4(127, 0, 0, 1)},
		DNSNames:              []string{"localhost"}, // nginx verifies names only
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	return errors.Join(
		os.WriteFile(p.path("cert.pem"), certPEM, 0o600),
		os.WriteFile(p.path("key.pem"), keyPEM, 0o600),
		os.WriteFile(p.path("both.pem"), append(certPEM, keyPEM...), 0o600),
	)
}

// command is how a program is started.
func (p *place) command(name string) []string {
	switch name {
	case "standin", standinLate:
		return []string{
			p.path("standin"), "-target", eventPath, "-write-key", writeKey,
			"-listen", address(name, false), "-listen-tls", address(name, true),
		}
	case standinLegacy: // what comes is the caller's, and its key is in the target
		return []string{
			p.path("standin"), "-target", eventURI, "-listen", address(name, false), "-listen-tls", address(name, true),
		}
	case gateway, spoolOnFailure, spoolAlways, spoolBatch, spoolDown, spoolDrain, laneV2, laneLegacy:
		return []string{p.path("gateway"), "run", "--config", cmp.Or(spoolFiles[name], laneFiles[name], name) + ".caddyfile", "--adapter", "caddyfile"}
	case recipe, respond:
		return []string{p.path("stock"), "run", "--config", name + ".caddyfile", "--adapter", "caddyfile"}
	case "nginx":
		return []string{"nginx", "-p", p.dir, "-c", p.path("nginx.conf"), "-e", "stderr"}
	case nginxLua:
		return []string{"nginx", "-p", p.dir, "-c", p.path("nginx_lua.conf"), "-e", "stderr"}
	default:
		return []string{"haproxy", "-db", "-q", "-f", p.path("haproxy.cfg")}
	}
}

// versions are the versions of the programs.
func (p *place) versions() map[string]string {
	found := map[string]string{"go": runtime.Version()}
	for name, command := range map[string][]string{
		"caddy":   {p.path("stock"), "version"},
		"nginx":   {"nginx", "-v"},
		"haproxy": {"haproxy", "-v"},
		"wrk":     {"wrk", "-v"},
		"h2load":  {"h2load", "--version"},
	} {
		output, _ := exec.Command(command[0], command[1:]...).CombinedOutput() //nolint:gosec,noctx // G204: the names above; wrk -v exits with 1
		found[name], _, _ = strings.Cut(string(output), "\n")
	}
	return found
}

// process is a program that runs, with its children.
type process struct {
	cmd *exec.Cmd
}

// start starts a program and waits until it listens.
func (p *place) start(name string) (*process, error) {
	args := p.command(name)
	cmd := exec.Command(args[0], args[1:]...) //nolint:gosec,noctx // G204: the names above
	cmd.Dir = p.dir
	cmd.Stderr = os.Stderr
	cmd.Env = append(os.Environ(), "HOME="+p.dir, "XDG_DATA_HOME="+p.dir, "XDG_CONFIG_HOME="+p.dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	started := &process{cmd}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		conn, err := net.Dial("tcp", address(name, true)) //nolint:noctx // loopback
		if err == nil {
			return started, conn.Close()
		}
		if time.Now().After(deadline) {
			started.stop()
			return nil, fmt.Errorf("%s does not listen: %w", name, err)
		}
	}
}

func address(name string, tls bool) string {
	port := ports[name]
	if tls {
		port++
	}
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
}

// admin is where a gateway has its admin API.
func admin(name string) string {
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(ports[name]+2))
}

func (p *process) stop() {
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	_ = p.cmd.Wait()
}

// clockTick is the unit of times in /proc (USER_HZ): the same on every Linux.
const clockTick = 10 * time.Millisecond

// cpu is the user and system time of the process and its children so far.
func (p *process) cpu() (time.Duration, error) {
	var ticks int64
	err := p.each(func(dir string, stat []string) error {
		for _, field := range stat[11:15] { // utime, stime, cutime, cstime
			n, err := strconv.ParseInt(field, 10, 64)
			if err != nil {
				return err
			}
			ticks += n
		}
		return nil
	})
	return time.Duration(ticks) * clockTick, err
}

// peakMemory is the most physical memory that the process and its children
// have had, in MiB. What they share counts once for each.
func (p *process) peakMemory() (float64, error) {
	var sum float64
	err := p.each(func(dir string, _ []string) error {
		mib, err := memory(dir, "VmHWM:")
		sum += mib
		return err
	})
	return sum, err
}

// memory is one figure of /proc/PID/status in MiB.
func memory(dir, name string) (float64, error) {
	status, err := os.ReadFile(dir + "/status") //nolint:gosec // G304: /proc
	if err != nil {
		return 0, err
	}
	_, value, _ := strings.Cut(string(status), name)
	var kib float64
	if _, err := fmt.Sscanf(value, "%f kB", &kib); err != nil {
		return 0, fmt.Errorf("%s/status: %s %w", dir, name, err)
	}
	return kib / 1024, nil
}

// each calls a function for the process and its children, which are its
// process group, with the fields of /proc/PID/stat after the name.
func (p *process) each(do func(dir string, stat []string) error) error {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return err
	}
	group := strconv.Itoa(p.cmd.Process.Pid)
	for _, dir := range dirs {
		text, err := os.ReadFile(dir + "/stat") //nolint:gosec // G304: /proc
		if err != nil {
			continue // it has ended
		}
		stat := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
		if stat[2] == group {
			if err := do(dir, stat); err != nil {
				return err
			}
		}
	}
	return nil
}
