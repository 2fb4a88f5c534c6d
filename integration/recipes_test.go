package integration

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// This file runs every block of docs/recipes.md as it stands. Only the ports,
// hosts and files are others, by the placeholders of the block.

// recipeBlock is the only block of a language below a heading of the recipes.
func recipeBlock(t *testing.T, heading, language string) string {
	t.Helper()
	document, err := os.ReadFile("../docs/recipes.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, found := strings.Cut(string(document), "\n## "+heading+"\n")
	section, _, _ = strings.Cut(section, "\n## ")
	var text string
	for _, block := range fencedBlocks("recipes.md", section) {
		if block.language == language {
			found = found && text == ""
			text = block.text
		}
	}
	if !found || text == "" {
		t.Fatalf("%q has not one block of %s", heading, language)
	}
	return text
}

// arrived is a request that has come to Treasure Data.
type arrived struct{ host, uri, key, authorization, body string }

// treasureData stands in for all of Treasure Data's hosts. env leads a gateway
// to it: through a proxy, so that it needs no other configuration.
type treasureData struct {
	requests chan arrived
	env      []string
}

func newTreasureData(t *testing.T) *treasureData {
	t.Helper()
	td := &treasureData{requests: make(chan arrived, 1000)}
	hosts := []string{"in.treasuredata.com", "tokyo.in.treasuredata.com", "*.in.treasuredata.com", "*.records.in.treasuredata.com"}
	pair := newCertificate(t, hosts...)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		td.requests <- arrived{r.Host, r.RequestURI, r.Header.Get("X-TD-Write-Key"), r.Header.Get("Authorization"), string(body)}
		_, _ = io.WriteString(w, "{}")
	}))
	server.TLS = &tls.Config{Certificates: []tls.Certificate{pair.pair}}
	server.StartTLS()
	t.Cleanup(server.Close)
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		tunnel(w, server.Listener.Addr().String())
	}))
	t.Cleanup(proxy.Close)
	td.env = []string{"HTTPS_PROXY=" + proxy.URL, "SSL_CERT_FILE=" + pair.cert, "SSL_CERT_DIR=" + t.TempDir()}
	return td
}

// tunnel answers CONNECT with a connection to addr.
func tunnel(w http.ResponseWriter, addr string) {
	to, err := net.Dial("tcp", addr)
	if err != nil {
		w.WriteHeader(http.StatusBadGateway)
		return
	}
	from, begun, err := http.NewResponseController(w).Hijack()
	if err != nil {
		_ = to.Close()
		return
	}
	_, _ = io.WriteString(from, "HTTP/1.1 200 OK\r\n\r\n")
	go func() { _, _ = io.Copy(to, begun); _ = to.Close() }() // the server may have read a byte already
	go func() { _, _ = io.Copy(from, to); _ = from.Close() }()
}

// next is the next request that has come.
func (td *treasureData) next(t *testing.T) arrived {
	t.Helper()
	select {
	case r := <-td.requests:
		return r
	case <-time.After(patience):
		t.Fatal("nothing arrives")
		return arrived{}
	}
}

// none checks that nothing more has come. A request is noted before it is
// answered.
func (td *treasureData) none(t *testing.T) {
	t.Helper()
	select {
	case r := <-td.requests:
		t.Errorf("it arrived: %+v", r)
	default:
	}
}

// runRecipe runs a recipe on free ports, and has the doctor look at it.
func runRecipe(t *testing.T, td *treasureData, heading string, env ...string) (g *gateway, secure string) {
	t.Helper()
	config := write(t, "Caddyfile", recipeBlock(t, heading, "caddyfile"))
	g = &gateway{addr: freeAddr(t)}
	secure = freeAddr(t)
	_, httpPort, _ := net.SplitHostPort(g.addr)
	_, httpsPort, _ := net.SplitHostPort(secure)
	env = append(env, "HTTP_PORT="+httpPort, "HTTPS_PORT="+httpsPort, "CADDY_ADMIN="+freeAddr(t))
	g.process = start(t, append(env, td.env...), "run", "--adapter", "caddyfile", "--config", config)
	g.await(t, "serving initial configuration", 1)

	doctor := start(t, append(env, td.env...), "td-doctor", "--offline", "--config", config)
	<-doctor.exited
	output := doctor.text()
	for _, fault := range []string{"answers every call", "redirected to https", "empty 200", "never runs", "does not start", "nothing behind"} {
		if strings.Contains(output, fault) {
			t.Errorf("the doctor says of the recipe: %s", output)
		}
	}
	return g, secure
}

// sent is a request to a gateway.
type sent struct {
	addr, host, path string
	secure           *x509.CertPool // over https, if it is not nil
	header           http.Header
}

// send sends a record and returns the answer.
func (s sent) send(t *testing.T) (status int, body string) {
	t.Helper()
	scheme, transport := "http", &http.Transport{
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, s.addr)
		},
		DisableKeepAlives: true,
	}
	if s.secure != nil {
		scheme = "https"
		transport.TLSClientConfig = &tls.Config{RootCAs: s.secure}
	}
	req, err := http.NewRequest(http.MethodPost, scheme+"://"+s.host+s.path, strings.NewReader(`{"a":1}`))
	if err != nil {
		t.Fatal(err)
	}
	if s.header != nil {
		req.Header = s.header
	}
	resp, err := transport.RoundTrip(req)
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

// expect sends a record and checks the answer.
func (s sent) expect(t *testing.T, status int, text string) {
	t.Helper()
	if got, body := s.send(t); got != status || !strings.Contains(body, text) {
		t.Errorf("%s%s: got %d %q, want %d with %q", s.host, s.path, got, body, status, text)
	}
}

const (
	recipeHost = "postback.example.com"
	recipePath = eventPath + "?td_write_key=1%2Fabc"
)

func TestRecipeProbe(t *testing.T) {
	t.Parallel()
	td := newTreasureData(t)
	g, _ := runRecipe(t, td, "A probe of a load balancer or of Kubernetes")
	sent{addr: g.addr, host: "10.0.0.1:8080", path: "/healthz"}.expect(t, http.StatusOK, "ok")
	sent{addr: g.addr, host: recipeHost, path: "/healthz"}.expect(t, http.StatusOK, "ok")
	sent{addr: g.addr, host: "10.0.0.1", path: recipePath}.expect(t, http.StatusNotFound, `"not_found"`)
	td.none(t)
	sent{addr: g.addr, host: recipeHost, path: recipePath}.expect(t, http.StatusOK, "{}")
	if got := td.next(t); got.host != "us01.records.in.treasuredata.com" || got.key != "1/abc" {
		t.Errorf("got %+v", got)
	}
}

func TestRecipeCertificate(t *testing.T) {
	t.Parallel()
	td := newTreasureData(t)
	own := newCertificate(t, recipeHost)
	g, secure := runRecipe(t, td, "Your own certificate", "CERT_FILE="+own.cert, "KEY_FILE="+own.key)
	for _, s := range []sent{{addr: g.addr, host: recipeHost, path: recipePath}, {addr: secure, host: recipeHost, path: recipePath, secure: own.pool}} {
		s.expect(t, http.StatusOK, "{}")
		if got := td.next(t); got.key != "1/abc" {
			t.Errorf("got %+v", got)
		}
	}
	sent{addr: g.addr, host: "b.example", path: recipePath}.expect(t, http.StatusNotFound, "not_found")
}

func TestRecipeLegacyHosts(t *testing.T) {
	t.Parallel()
	td := newTreasureData(t)
	g, secure := runRecipe(t, td, "Callers with a hard-coded legacy host")
	g.await(t, "certificate obtained successfully", 5)
	var root []byte
	for _, variable := range g.cmd.Env {
		if dir, ok := strings.CutPrefix(variable, "XDG_DATA_HOME="); ok {
			var err error
			if root, err = os.ReadFile(filepath.Join(dir, "caddy/pki/authorities/local/root.crt")); err != nil { //nolint:gosec // G304: the test's own
				t.Fatal(err)
			}
		}
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(root) {
		t.Fatal("no root certificate")
	}
	for legacy, v2 := range map[string]string{
		"in.treasuredata.com": "us01", "tokyo.in.treasuredata.com": "ap01", "eu01.in.treasuredata.com": "eu01",
		"ap02.in.treasuredata.com": "ap02", "ap03.in.treasuredata.com": "ap03",
	} {
		for _, s := range []sent{{addr: g.addr, host: legacy, path: recipePath}, {addr: secure, host: legacy, path: recipePath, secure: pool}} {
			s.expect(t, http.StatusOK, "{}")
			if got := td.next(t); got.host != v2+".records.in.treasuredata.com" {
				t.Errorf("%s: got %+v", legacy, got)
			}
		}
	}
	sent{addr: g.addr, host: "b.example", path: recipePath}.expect(t, http.StatusNotFound, "not_found")
}

func TestRecipeShare(t *testing.T) {
	t.Parallel()
	td := newTreasureData(t)
	g, _ := runRecipe(t, td, "A share of the traffic")
	sent{addr: g.addr, host: recipeHost, path: "/postback/v3/event/shop/orders?td_write_key=1/abc"}.expect(t, http.StatusOK, "{}")
	if got := td.next(t); got.host != "us01.records.in.treasuredata.com" || got.uri != "/postback/v3/event/shop/orders" {
		t.Errorf("got %+v", got)
	}
	const calls = 200
	hosts := map[string]int{}
	for range calls {
		sent{addr: g.addr, host: recipeHost, path: recipePath}.expect(t, http.StatusOK, "{}")
		got := td.next(t)
		hosts[got.host]++
		if got.host == "in.treasuredata.com" && (got.uri != recipePath || got.body != `{"a":1}`) {
			t.Errorf("the legacy host got %+v", got)
		}
	}
	// A quarter is 50. Less than 15 or more than 100 come once in a thousand million runs.
	if n := hosts["us01.records.in.treasuredata.com"]; n < 15 || n > 100 || hosts["in.treasuredata.com"] != calls-n {
		t.Errorf("got %v", hosts)
	}
}

func TestRecipeKey(t *testing.T) {
	t.Parallel()
	td := newTreasureData(t)
	g, _ := runRecipe(t, td, "An old key replaced by a new one", "OLD_KEY=1234/01d0", "NEW_KEY=1234/2e22")
	for _, test := range []struct {
		path   string
		header http.Header
		want   arrived // key and authorization
	}{
		{path: "?td_write_key=1234/01d0&a=b", want: arrived{key: "1234/2e22"}},
		{path: "?td_write_key=1234%2F01d0", want: arrived{key: "1234/2e22"}},
		{path: "?td_write_key=1234%2f01d0", header: http.Header{"X-Td-Write-Key": {""}}, want: arrived{key: "1234/2e22"}},
		{path: "", header: http.Header{"X-Td-Write-Key": {"1234/01d0"}}, want: arrived{key: "1234/2e22"}},
		{path: "?td_write_key=5/f", header: http.Header{"X-Td-Write-Key": {"1234/01d0"}}, want: arrived{key: "1234/2e22"}},
		{path: "", header: http.Header{"Authorization": {"TD1 1234/01d0"}}, want: arrived{authorization: "TD1 1234/2e22"}},
		// Other keys stay.
		{path: "?td_write_key=5/f", want: arrived{key: "5/f"}},
		{path: "?td_write_key=1234/01d0", header: http.Header{"X-Td-Write-Key": {"5/f"}}, want: arrived{key: "5/f"}},
		{path: "?td_write_key=1234/01d00", want: arrived{key: "1234/01d00"}},
	} {
		sent{addr: g.addr, host: recipeHost, path: eventPath + test.path, header: test.header}.expect(t, http.StatusOK, "{}")
		if got := td.next(t); got.key != test.want.key || got.authorization != test.want.authorization || strings.Contains(got.uri, "td_write_key") {
			t.Errorf("%s, %v: got %+v", test.path, test.header, got)
		}
	}
}

func TestRecipeBlocked(t *testing.T) {
	t.Parallel()
	td := newTreasureData(t)
	g, _ := runRecipe(t, td, "An address blocked", "BLOCKED=192.0.2.1 127.0.0.1/32")
	sent{addr: g.addr, host: recipeHost, path: recipePath}.expect(t, http.StatusForbidden, `"blocked"`)
	td.none(t)
	g, _ = runRecipe(t, td, "An address blocked")
	sent{addr: g.addr, host: recipeHost, path: recipePath}.expect(t, http.StatusOK, "{}")
	td.next(t)
}

func TestRecipeCall(t *testing.T) {
	t.Parallel()
	td := newTreasureData(t)
	g, _ := runRecipe(t, td, "Callers sorted by their key", "GONE=666 667")
	showsNoKey(t, g.process)
	for _, headers := range []string{"", "X-TD-Write-Key: 667/ab\r\n", "Authorization: TD1 667/ab\r\n"} {
		target := eventPath
		if headers == "" {
			target += "?td_write_key=" + otherKey
		}
		conn := dial(t, g.addr)
		_, _ = io.WriteString(conn, strings.Replace(post(target, asJSON+headers, object), "in.treasuredata.com", recipeHost, 1))
		if n, err := conn.Read(make([]byte, 1)); n > 0 || err == nil {
			t.Errorf("%q: it got an answer", headers)
		}
	}
	sent{addr: g.addr, host: recipeHost, path: "/postback/v3/event/test_db/t?td_write_key=" + knownKey}.expect(t, http.StatusOK, "{}")
	td.none(t)
	sent{addr: g.addr, host: recipeHost, path: eventPath + "?td_write_key=" + knownKey}.expect(t, http.StatusOK, "{}")
	if got := td.next(t); got.key != knownKey {
		t.Errorf("got %+v", got)
	}
	g.await(t, `"fingerprint":"1234/#`, 2)
	g.await(t, `"fingerprint":"666/#`, 1)
	g.await(t, `"fingerprint":"667/#`, 2)
}

func TestRecipeBatches(t *testing.T) {
	t.Parallel()
	td := newTreasureData(t)
	g, _ := runRecipe(t, td, "Many records a second", "SPOOL_DIR="+t.TempDir())
	const calls = 30
	for range calls {
		sent{addr: g.addr, host: recipeHost, path: recipePath}.expect(t, http.StatusOK, "{}")
	}
	requests, records := 0, 0
	for ; records < calls; requests++ {
		got := td.next(t)
		if got.uri != strings.TrimPrefix(eventPath, "/postback/v3/event") || got.authorization != "TD1 1/abc" {
			t.Fatalf("got %+v", got)
		}
		for _, record := range recordsIn(t, []byte(got.body)) {
			if records++; !strings.HasPrefix(record, `{"a":1,"time":`) {
				t.Errorf("got %s", record)
			}
		}
	}
	if records != calls || requests >= calls {
		t.Errorf("%d records in %d requests, want %d in fewer", records, requests, calls)
	}
	td.none(t)
}

func TestRecipeJSON(t *testing.T) {
	t.Parallel()
	const heading = "JSON instead of a Caddyfile"
	td := newTreasureData(t)
	for name, text := range map[string]string{"caddy.json": recipeBlock(t, heading, "json"), "Caddyfile": recipeBlock(t, heading, "caddyfile")} {
		addr := freeAddr(t)
		_, port, _ := net.SplitHostPort(addr)
		config := write(t, name, strings.Replace(text, ":8080", ":"+port, 1))
		p := start(t, append([]string{"CADDY_ADMIN=" + freeAddr(t)}, td.env...), "run", "--config", config)
		p.await(t, "serving initial configuration", 1)
		sent{addr: addr, host: "10.0.0.1", path: "/healthz"}.expect(t, http.StatusOK, "ok")
		sent{addr: addr, host: recipeHost, path: recipePath}.expect(t, http.StatusOK, "{}")
		if got := td.next(t); got.key != "1/abc" {
			t.Errorf("got %+v", got)
		}
		if output, code := run(t, "td-doctor", "--offline", "--config", config); code != 0 {
			t.Errorf("%s: exit %d: %s", name, code, output)
		}
	}
}

// TestRecipesAreRun: each block of the recipes is a test's.
func TestRecipesAreRun(t *testing.T) {
	t.Parallel()
	document, err := os.ReadFile("../docs/recipes.md")
	if err != nil {
		t.Fatal(err)
	}
	source, err := os.ReadFile("recipes_test.go")
	if err != nil {
		t.Fatal(err)
	}
	var headings int
	for section := range strings.SplitSeq(string(document), "\n## ") {
		heading, text, _ := strings.Cut(section, "\n")
		if !strings.Contains(text, "```caddyfile") {
			continue
		}
		headings++
		if !strings.Contains(string(source), fmt.Sprintf("%q", heading)) {
			t.Errorf("no test runs %q", heading)
		}
	}
	if headings < 8 {
		t.Errorf("only %d recipes", headings)
	}
}
