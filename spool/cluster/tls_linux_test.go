package cluster

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/td-postback/gateway/spool"
	"github.com/td-postback/gateway/spool/cluster/natstest"
)

// authority makes certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority() (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	a := &authority{key: key, cert: &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "an authority of the operator's"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}}
	der, err := x509.CreateCertificate(rand.Reader, a.cert, a.cert, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	a.cert, err = x509.ParseCertificate(der)
	return a, err
}

// trusted is an authority in the system's store, where docs/spool-nats.md has it
// put. Go reads the store once.
var trusted = sync.OnceValues(func() (*authority, error) {
	a, err := newAuthority()
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(natstest.Scratch, "authorities")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	if err := os.Setenv("SSL_CERT_DIR", dir); err != nil {
		return nil, err
	}
	return a, os.WriteFile(filepath.Join(dir, "own.pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw}), 0o600)
})

// secured has a server speak TLS only, with a certificate for a name.
func (a *authority) secured(t *testing.T, name string, until time.Time) string {
	t.Helper()
	key, err := x509.MarshalPKCS8PrivateKey(a.key)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: until, DNSNames: []string{name}}
	if ip := net.ParseIP(name); ip != nil {
		template.DNSNames, template.IPAddresses = nil, []net.IP{ip}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &a.key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for file, block := range map[string]*pem.Block{"cert.pem": {Type: "CERTIFICATE", Bytes: der}, "key.pem": {Type: "PRIVATE KEY", Bytes: key}} {
		if err := os.WriteFile(filepath.Join(dir, file), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return fmt.Sprintf("max_payload: 4MB\ntls { cert_file: %q, key_file: %q }", filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"))
}

// A server is used over TLS, and with credentials, if its certificate is right.
// Nothing goes to one whose certificate is not, or to one without TLS that should
// have it.
func TestServerOverTLS(t *testing.T) {
	t.Parallel()
	const secret = "hunter2"
	ours, err := trusted()
	if err != nil {
		t.Fatal(err)
	}
	strange, err := newAuthority()
	if err != nil {
		t.Fatal(err)
	}
	soon := time.Now().Add(time.Hour)
	right := func(t *testing.T) string { return ours.secured(t, "127.0.0.1", soon) }
	for name, c := range map[string]struct {
		server  func(t *testing.T) string
		user    string
		refused string
	}{
		"user and password": {server: func(t *testing.T) string {
			return right(t) + "\nauthorization { user: spool, password: " + secret + " }"
		}, user: "tls://spool:" + secret + "@"},
		"token":                {server: func(t *testing.T) string { return right(t) + "\nauthorization { token: " + secret + " }" }, user: "tls://" + secret + "@"},
		"the server's wish":    {server: right, user: "nats://"},
		"another name":         {func(t *testing.T) string { return ours.secured(t, "nats.example", soon) }, "tls://spool:" + secret + "@", "doesn't contain any IP SANs"},
		"an unknown authority": {func(t *testing.T) string { return strange.secured(t, "127.0.0.1", soon) }, "tls://spool:" + secret + "@", "unknown authority"},
		"expired":              {func(t *testing.T) string { return ours.secured(t, "127.0.0.1", time.Now().Add(-time.Minute)) }, "tls://spool:" + secret + "@", "has expired"},
		"no TLS":               {func(*testing.T) string { return "max_payload: 4MB" }, "tls://spool:" + secret + "@", "secure connection not available"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := single(t, c.server(t))
			var said events
			l, err := Open(t.Context(), Config{URLs: []string{c.user + n.Addr}, Replicas: 1, MaxSize: 1 << 20, Timeout: 5 * time.Second, OnEvent: said.add})
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			err = l.Append(testQueue, spool.Record{Arrival: arrival, Data: []byte("a")})
			if c.refused == "" {
				if err != nil || texts(take(t, l.Queue(testQueue), 1)) != "a" {
					t.Errorf("%v\n%s", err, said.String())
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.refused) || strings.Contains(err.Error()+said.String(), secret) {
				t.Errorf("%v\n%s", err, said.String())
			}
		})
	}
}
