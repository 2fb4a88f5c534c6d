package caddymodule

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/KimMachineGun/automemlimit/memlimit"
	"github.com/caddyserver/caddy/v2"
	"github.com/dustin/go-humanize"

	"github.com/td-postback/gateway/postback"
	"github.com/td-postback/gateway/upstream"
)

// This file looks at what a configuration needs of the machine and of v2. It
// changes nothing: it makes no file, and what it sends cannot be stored.

// probeMachine says what will bite on this machine.
func probeMachine(e *examined) (all []finding) {
	said := map[string]bool{}
	for _, b := range e.blocks {
		for _, f := range slices.Concat(probeFiles(b), probeSpool(b)) {
			if !said[f.what] {
				said[f.what] = true
				all = append(all, f)
			}
		}
	}
	all = append(all, probeState(e)...)
	all = append(all, probeCertificates(e)...)
	all = append(all, probeProxies(e)...)
	limit, machine := memory()
	all = append(all, checkMemory(e, limit, machine)...)
	if files, known := fileLimit(); known {
		all = append(all, checkFiles(e, files)...)
	}
	return append(all, checkKernel(e, "/proc/sys/net/ipv4/tcp_migrate_req")...)
}

// memory is Go's limit, and what the machine or container has, in bytes. What is
// not known is very large.
func memory() (limit, machine int64) {
	limit, machine = debug.SetMemoryLimit(-1), math.MaxInt64 // which only reads it
	if found, err := memlimit.ApplyFallback(memlimit.FromCgroup, memlimit.FromSystem)(); err == nil && found < math.MaxInt64 {
		machine = int64(found)
	}
	return limit, machine
}

// checkKernel finds reloads that fail calls which wait in the kernel. file is
// where Linux has the setting.
func checkKernel(e *examined, file string) []finding {
	setting, err := os.ReadFile(file) //nolint:gosec // G304: a constant, or a test's
	if err != nil || strings.TrimSpace(string(setting)) != "0" {
		return nil // another system, an old kernel, or it is set
	}
	places := e.places(func(b *foundBlock) bool {
		return slices.ContainsFunc(b.server.Listen, func(listen string) bool { return !strings.HasPrefix(listen, "fd") })
	})
	if places == "" {
		return nil
	}
	return []finding{{
		bites,
		"A reload fails the calls that wait in the kernel just then, at " + places + ".",
		"Set `sysctl -w net.ipv4.tcp_migrate_req=1`, or let systemd hold the sockets: docs/reloading.md.",
	}}
}

// probeFiles finds files that the block names and that cannot be used.
func probeFiles(b *foundBlock) (all []finding) {
	if b.problem != nil {
		return nil
	}
	errs := make([]error, 0, 3)
	_, err := b.handler.trust()
	errs = append(errs, err)
	if b.handler.Spool != nil {
		_, err := b.handler.Spool.key()
		errs = append(errs, err)
	}
	if b.handler.Keys != nil {
		errs = append(errs, b.handler.Keys.checkFile())
	}
	for _, err := range errs {
		if err != nil {
			all = append(all, finding{
				losesRecords,
				"The gateway does not start with this file: " + err.Error() + ".",
				"Put the file there, and let the gateway's user read it. The doctor looks as the user who runs it.",
			})
		}
	}
	return all
}

// probeCertificates finds certificates that Caddy cannot load.
func probeCertificates(e *examined) (all []finding) {
	replacer := caddy.NewReplacer()
	for _, pair := range e.certificates {
		certificate, key := replacer.ReplaceKnown(pair.Certificate, ""), replacer.ReplaceKnown(pair.Key, "")
		if _, err := tls.LoadX509KeyPair(certificate, key); err != nil {
			all = append(all, finding{
				losesRecords,
				fmt.Sprintf("The gateway does not start with the certificate %s and the key %s of `tls`: %s.", certificate, key, err),
				"Put both files there, as PEM, and let the gateway's user read them, or take them out: then Caddy gets a certificate itself. The doctor looks as the user who runs it.",
			})
		}
	}
	return all
}

// probeSpool finds a spool whose directory cannot be used.
func probeSpool(b *foundBlock) []finding {
	options := b.handler.Spool
	if b.problem != nil || options == nil || len(options.NATS) > 0 {
		return nil
	}
	there := existing(options.Dir)
	if info, err := os.Stat(there); err != nil || !info.IsDir() || !mayWrite(there) {
		return []finding{{
			losesRecords,
			fmt.Sprintf("The spool %s cannot be written: %s is no directory that this user may write to. Callers get 503 when v2 does not take their records.", options.Dir, there),
			"Give the directory to the gateway's user, or set `dir` in `spool`. The doctor looks as the user who runs it.",
		}}
	}
	room, known := freeSpace(there)
	room += sizeOf(options.Dir) // which the spool has taken already
	if need := options.MaxSize + options.DeadSize; known && room < need {
		return []finding{{
			bites,
			fmt.Sprintf("The spool %s may take %s (`max_size` and `dead_size`), but its disk has room for %s. When it is full, callers get 503.",
				options.Dir, humanize.IBytes(uint64(need)), humanize.IBytes(uint64(room))), //nolint:gosec // G115: sizes
			"Lower `max_size` in `spool`, or give it a larger disk.",
		}}
	}
	return nil
}

// existing is the directory itself, or the nearest one above it that is there.
func existing(dir string) string {
	for {
		if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) || dir == filepath.Dir(dir) {
			return dir
		}
		dir = filepath.Dir(dir)
	}
}

// sizeOf is how many bytes the files below a directory have.
func sizeOf(dir string) (n int64) {
	_ = filepath.WalkDir(dir, func(_ string, entry fs.DirEntry, err error) error {
		if err == nil && entry.Type().IsRegular() {
			if info, err := entry.Info(); err == nil {
				n += info.Size()
			}
		}
		return nil
	})
	return n
}

// targets are the URLs that a block sends to.
func (b *foundBlock) targets() (all []string) {
	switch h := b.handler; {
	case b.problem != nil || h.Handoff:
	case h.Upstream != "":
		all = append(all, h.Upstream)
	case h.Region == postback.RegionAuto:
		for region := range postback.LegacyHosts {
			all = append(all, "https://"+postback.V2Host(region))
		}
		slices.Sort(all)
	default:
		all = append(all, "https://"+postback.V2Host(h.Region))
	}
	return all
}

// probeUpstreams asks each host that the configuration sends to.
func probeUpstreams(e *examined) (all []finding) {
	asked := map[string]bool{}
	for _, b := range e.blocks {
		for _, target := range b.targets() {
			if !asked[target] {
				asked[target] = true
				all = append(all, probeUpstream(b.handler, target)...)
			}
		}
	}
	return all
}

// probeClusters tries to connect to the NATS servers of spools.
func probeClusters(e *examined) (all []finding) {
	asked := map[string]bool{}
	for _, b := range e.blocks {
		if b.problem != nil || b.handler.Spool == nil {
			continue
		}
		for _, server := range b.handler.Spool.NATS {
			u, err := url.Parse(server)
			if err != nil || asked[u.Host] {
				continue // Validate refuses what cannot be parsed
			}
			asked[u.Host] = true
			dialer := net.Dialer{Timeout: time.Duration(b.handler.DialTimeout)}
			conn, err := dialer.DialContext(context.Background(), "tcp", net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), "4222")))
			if err != nil {
				all = append(all, finding{
					losesRecords,
					fmt.Sprintf("The NATS server %s takes no connection: %s. If too few of the cluster do, callers get 503 when v2 does not take their records.", u.Host, err),
					"Start the server, correct its name in `spool nats`, or open the way to it in the firewall. `td-doctor --offline` leaves this check out.",
				})
				continue
			}
			_ = conn.Close()
		}
	}
	return all
}

// clientFor makes the client of a block for a target, which is where resolve says, if it
// says so. It opens no connection.
func clientFor(h *Handler, target, resolve string) (*upstream.Client, error) {
	address, err := parseUpstream(target)
	if err != nil {
		return nil, nil //nolint:nilnil,nilerr // the options are wrong, which is said already
	}
	trust, err := h.trust()
	if err != nil {
		return nil, nil //nolint:nilnil,nilerr // the same
	}
	h.leaving = new(atomic.Bool) // what Provision would have set
	cfg := h.upstreamConfig(address, trust)
	cfg.Retries, cfg.Addr = 0, resolve
	return upstream.New(cfg)
}

// probeProxies finds proxies in the environment that cannot be used. It asks
// nobody.
func probeProxies(e *examined) (all []finding) {
	for _, b := range e.blocks {
		legacy, _ := b.legacyTargets() // what is wrong is said already
		for _, target := range slices.Concat(b.targets(), legacy) {
			client, err := clientFor(b.handler, target, "")
			if client != nil {
				client.Close()
			}
			if err == nil {
				continue
			}
			f := finding{losesRecords, "The gateway does not start: " + err.Error() + ".", "Correct the variable in the gateway's environment."}
			if !slices.Contains(all, f) {
				all = append(all, f)
			}
		}
	}
	return all
}

// probeUpstream sends a record without a key, which v2 refuses and cannot store,
// by the way of real ones.
func probeUpstream(h *Handler, target string) []finding {
	client, err := clientFor(h, target, "")
	if err != nil || client == nil {
		return nil // which is said without asking
	}
	address := client.URL
	defer client.Close()
	record := postback.Request{
		Host: address.Host, Destination: postback.Destination{Database: "td_doctor", Table: "td_doctor"},
		ContentType: "application/json", Body: []byte("{}"),
	}
	answer, trip, started := keyless{header: http.Header{}}, upstream.Trip{}, time.Now()
	if err := client.Forward(&answer, &http.Request{Header: http.Header{}}, &record, &trip); err != nil {
		return []finding{unreachable(address, err)}
	}
	host := address.Host
	if h.Upstream == "" && bytes.Contains(answer.body, []byte(postback.MissingKey.Code)) {
		return []finding{{
			losesRecords,
			fmt.Sprintf("The name %s leads to a td_postback, and not to Treasure Data: records go round in a circle.", host),
			"Let your name server lead only the legacy hosts to the gateway, and never the names below records.in.treasuredata.com: docs/recipes.md.",
		}}
	}
	all := checkAnswer(host, answer.status, time.Since(started))
	if all[0].severity == inOrder {
		all = append(all, probeBatches(h, client, host)...)
	}
	return append(all, checkClock(host, answer.header.Get("Date"), time.Now())...)
}

// probeBatches tells whether a host that takes Postback takes batches too, if some may
// go there. It sends one without a key.
func probeBatches(h *Handler, client *upstream.Client, host string) []finding {
	batch := h.Spool != nil && h.Spool.Batch > 0
	several := slices.ContainsFunc(h.Surfaces, func(name string) bool { return name != handoffSurface })
	if !batch && !several {
		return nil
	}
	var trip upstream.Trip
	_, _, err := client.DeliverBatch(postback.BatchGroup{Database: "td_doctor", Table: "td_doctor"}, [][]byte{[]byte("{}")}, &trip)
	switch {
	case err != nil || trip.Status < http.StatusOK || spoolTakes(trip.Status):
		return nil // it does not tell
	case trip.Status < http.StatusMultipleChoices || ofRecordsOrKey(trip.Status):
		return []finding{{severity: inOrder, what: fmt.Sprintf("%s takes batches of records: it answers %d to one without a key.", host, trip.Status)}}
	}
	what := fmt.Sprintf("%s answers %d to a batch of records, so it takes none.", host, trip.Status)
	advice := "If a proxy of yours answers in v2's place, let it pass POST /DATABASE/TABLE too."
	if batch {
		what += " Each batch is a request in vain, and its records go one by one."
		advice += " Or take `batch` out of `spool`."
	}
	if several {
		what += " Calls with several events, as apps and some scripts send them, cannot arrive."
		advice += " If nobody sends such calls, say `surfaces postback`."
	}
	return []finding{{bites, what, advice}}
}

// keyless takes the answer to a record without a key.
type keyless struct {
	header http.Header
	status int
	body   []byte // its beginning
}

func (k *keyless) Header() http.Header    { return k.header }
func (k *keyless) WriteHeader(status int) { k.status = status }

func (k *keyless) Write(b []byte) (int, error) {
	const enough = 1 << 10
	k.body = append(k.body, b[:min(len(b), enough-len(k.body))]...)
	return len(b), nil
}

// unreachable says at which step the way to v2 ends.
func unreachable(address *url.URL, err error) finding {
	step, instead := "does not answer", "See whether a firewall or a proxy holds the answer back."
	_, isName := errors.AsType[*net.DNSError](err)
	_, isCertificate := errors.AsType[*tls.CertificateVerificationError](err)
	_, isRecord := errors.AsType[tls.RecordHeaderError](err)
	_, isAlert := errors.AsType[tls.AlertError](err)
	_, isHostname := errors.AsType[x509.HostnameError](err)
	operation, isDial := errors.AsType[*net.OpError](err)
	switch {
	case isName:
		step, instead = "has no address", "Correct the region or `upstream`, or the machine's DNS (/etc/resolv.conf)."
	case isCertificate || isRecord || isAlert || isHostname:
		step = "does not show a certificate that this machine trusts"
		instead = "See to the machine's clock and its certificate authorities. If a proxy of yours opens TLS, name its authority in `tls_ca`."
	case errors.Is(err, syscall.ECONNREFUSED) && (address.Scheme == "http" || isLoopback(address.Hostname())):
		step, instead = "takes no connection", "Nothing listens there: start it, or correct `upstream`."
	case isDial && operation.Op == "dial":
		step, instead = "takes no connection", "Open the way to it in the firewall, or set HTTPS_PROXY in the gateway's environment."
	}
	return finding{
		losesRecords,
		fmt.Sprintf("%s %s: %s.", address.Host, step, strings.TrimSuffix(err.Error(), ".")),
		instead + " `td-doctor --offline` leaves this check out.",
	}
}

// isLoopback reports whether a host is this machine.
func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// checkAnswer judges what came back for a record without a key: v2 answers 403.
func checkAnswer(host string, status int, took time.Duration) []finding {
	switch {
	case status == http.StatusForbidden || status == http.StatusUnauthorized || status == http.StatusBadRequest:
		return []finding{{severity: inOrder, what: fmt.Sprintf("%s answers: %d to a record without a key, as it should, after %s.", host, status, took.Round(time.Millisecond))}}
	case status >= 500 || status == http.StatusTooManyRequests || status == http.StatusRequestTimeout:
		return []finding{{bites, fmt.Sprintf("%s answers %d now.", host, status), "Run the doctor again in a minute. If it stays so, ask Treasure Data. A `spool` keeps records meanwhile."}}
	default:
		return []finding{{
			losesRecords,
			fmt.Sprintf("%s answers %d to a record without a key, and Postback v2 would answer 403: something else is there.", host, status),
			"Correct `upstream`, or see to the proxy that answers in v2's place.",
		}}
	}
}

// The differences of clocks from which something is wrong. A Date header has
// whole seconds, and is some time on its way.
const (
	clockBites = time.Minute
	clockLoses = 24 * time.Hour
)

// checkClock compares the machine's clock with that of v2.
func checkClock(host, date string, now time.Time) []finding {
	theirs, err := http.ParseTime(date)
	if err != nil {
		return nil // it does not say
	}
	off := now.Sub(theirs).Round(time.Second)
	if off.Abs() < clockBites {
		return []finding{{severity: inOrder, what: fmt.Sprintf("The clock agrees with that of %s.", host)}}
	}
	f := finding{
		bites,
		fmt.Sprintf("The machine's clock is wrong by %s, compared with %s. Events that the spool keeps get wrong times.", off.Abs(), host),
		"Set the clock, and keep it right by NTP: `timedatectl set-ntp true`.",
	}
	if off.Abs() >= clockLoses {
		f.severity = losesRecords
		f.what += " Treasure Data ignores times that are days off, and kept records may age at once."
	}
	return []finding{f}
}
