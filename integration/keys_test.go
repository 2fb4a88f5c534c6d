package integration

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// This file sends keys and databases that the operator knows, and others.

const (
	knownKey  = "1234/feedfacefeedfacefeedfacefeedfacefeedface"
	listedKey = "77/c0ffeec0ffeec0ffeec0ffeec0ffeec0ffeec0ff"
	hashedKey = "78/0000abcdef0000abcdef0000abcdef0000abcdef"
	otherKey  = "666/deadbeefdeadbeefdeadbeefdeadbeefdeadbeef"
)

// keysSite is a site with these keys.
func keysSite(upstream, keys string) string {
	return fmt.Sprintf("td_postback {\n upstream %s\n keys {\n%s\n}\n}", upstream, keys)
}

// showsNoKey checks at the end of the test that a process has written no key.
func showsNoKey(t *testing.T, p *process) {
	t.Cleanup(func() {
		p.stop()
		for _, key := range []string{knownKey, listedKey, hashedKey, otherKey} {
			if _, secret, _ := strings.Cut(key, "/"); strings.Contains(p.text(), secret) {
				t.Errorf("the key of account %.4s is in the output", key)
			}
		}
	})
}

// hashOf is a key's line in a file, as sha256sum makes it.
func hashOf(key string) string {
	sum := sha256.Sum256([]byte(key))
	return hex.EncodeToString(sum[:])
}

// surfaceRequest is a request of each surface, with a key in a place where that has it.
type surfaceRequest struct {
	name    string
	request func(key, database string) string
	taken   string // the beginning of the answer to a call that is taken
	gif     bool
}

var surfaceRequests = []surfaceRequest{
	{name: "post, key in the URL", taken: "{}", request: func(key, database string) string {
		return post("/postback/v3/event/"+database+"/t?td_write_key="+strings.Replace(key, "/", "%2F", 1), asJSON, object)
	}},
	{name: "post, key in the header", taken: "{}", request: func(key, database string) string {
		return post("/postback/v3/event/"+database+"/t?td_write_key="+opposite(key), asJSON+"X-TD-Write-Key: "+key+"\r\n", object)
	}},
	{name: "post, key in Authorization", taken: "{}", request: func(key, database string) string {
		return post("/postback/v3/event/"+database+"/t", asJSON+"X-TD-Write-Key: "+opposite(key)+"\r\nAuthorization: TD1 "+key+"\r\n", object)
	}},
	{name: "post, Authorization beside a param", taken: "{}", request: func(key, database string) string {
		return post("/postback/v3/event/"+database+"/t?td_write_key="+key, asJSON+"Authorization: TD1 "+opposite(key)+"\r\n", object)
	}},
	{name: "get", taken: "{}", request: func(key, database string) string {
		return get("/postback/v3/event/"+database+"/t?a=1&td_write_key="+key, "")
	}},
	{name: "pixel", gif: true, taken: "GIF89a", request: func(key, database string) string {
		return get("/postback/v3/event/"+database+"/t?a=1&td_format=pixel&td_write_key="+key, "")
	}},
	{name: "pixel with a body", gif: true, taken: "GIF89a", request: func(key, database string) string {
		return post("/postback/v3/event/"+database+"/t?td_format=pixel&td_write_key="+key, asJSON, object)
	}},
	{name: "pixel with a redirect", gif: true, taken: "", request: func(key, database string) string {
		return get("/postback/v3/event/"+database+"/t?a=1&td_format=pixel&td_redirect=https://shop.example/&td_write_key="+key, "")
	}},
	{name: "ping", taken: "{}", request: func(key, database string) string {
		return post("/postback/v3/event/"+database+"/t?a=1&td_write_key="+key, "Content-Type: text/ping\r\n", "PING")
	}},
	{name: "beacon", taken: "{}", request: func(key, database string) string {
		return post("/postback/v3/event/"+database+"/t?a=1&td_write_key="+key, "", "")
	}},
	{name: "jsonp", taken: createdJS, request: func(key, database string) string {
		return get("/js/v3/event/"+database+"/t?api_key="+key+jsData(object)+"&callback=TreasureJSONPCallback0", "")
	}},
	{name: "jsonp, td_write_key", taken: createdJS, request: func(key, database string) string {
		return get("/js/v3/event/"+database+"/t?td_write_key="+key+"&api_key="+opposite(key)+jsData(object)+"&callback=TreasureJSONPCallback0", "")
	}},
	{name: "js", taken: createdJSON, request: func(key, database string) string {
		return post("/js/v3/event/"+database+"/t?api_key="+opposite(key), asJSON+"X-TD-Write-Key: "+key+"\r\n", object)
	}},
	{name: "k", taken: `{"`, request: func(key, database string) string {
		return post("/js/v3/event", asJSON+"X-TD-Data-Type: k\r\nX-TD-Write-Key: "+key+"\r\n", keenBody(database+".t", "1"))
	}},
	{name: "mobile", taken: `{"`, request: func(key, database string) string {
		return post(androidPath, asJSON+"X-TD-Data-Type: k\r\nContent-Encoding: deflate\r\nX-TD-Write-Key: "+key+"\r\n",
			deflated(`{"shop.t":[{"n":2}],"`+database+`.t":[{"n":3}]}`))
	}},
}

// opposite is a key that is known if this one is not, and the other way round.
func opposite(key string) string {
	if key == otherKey {
		return knownKey
	}
	return otherKey
}

// TestKeys sends a known and an unknown key, and a known key to an unknown database, by
// each surface and from each place that a key can be in. The key that counts is the one
// that v2 would use.
func TestKeys(t *testing.T) {
	t.Parallel()
	for _, unknown := range []string{"refuse", "warn"} {
		t.Run(unknown, func(t *testing.T) {
			t.Parallel()
			v2 := startBatchV2(t, nil)
			file := write(t, "keys", "# the app\n"+listedKey+" the app\n\nsha256:"+hashOf(hashedKey)+"\tthe shop\n")
			g := serve(t, "", keysSite(v2.URL, "accounts 1234\n file "+file+"\n databases shop app_*\n unknown "+unknown+"\n")+"\nmetrics /metrics")
			showsNoKey(t, g.process)
			refused := 0
			for _, s := range surfaceRequests {
				for _, call := range []struct{ name, key, database, code string }{
					{"an account's", knownKey, "shop", ""},
					{"listed", listedKey, "app_1", ""},
					{"hashed", hashedKey, "shop", ""},
					{"unknown", otherKey, "shop", "unknown_key"},
					{"one digit more", listedKey + "0", "shop", "unknown_key"},
					{"another account", "12345" + knownKey[4:], "shop", "unknown_key"},
					{"another database", knownKey, "private", "unknown_database"},
				} {
					before := len(v2.all())
					answer := raw(t, g.addr, s.request(call.key, call.database))
					came := len(v2.all()) - before
					switch refuses := call.code != "" && unknown == "refuse"; {
					case refuses && (answer.StatusCode != http.StatusForbidden || came != 0):
						t.Errorf("%s, %s: got %d, and v2 got %d", s.name, call.name, answer.StatusCode, came)
					case refuses && s.gif && (answer.Header.Get("Content-Type") != "image/gif" || len(answer.body) != 43):
						t.Errorf("%s, %s: got no image: %v %q", s.name, call.name, answer.Header, answer.body)
					case refuses && !s.gif && (answer.code() != call.code || strings.Contains(answer.body, "Callback")):
						t.Errorf("%s, %s: got %s", s.name, call.name, answer.body)
					case refuses && (answer.Header.Get("Cache-Control") != "no-store" || answer.Header.Get("Location") != ""):
						t.Errorf("%s, %s: got %v", s.name, call.name, answer.Header)
					case !refuses && (came == 0 || !strings.HasPrefix(answer.body, s.taken)):
						t.Errorf("%s, %s: got %d %s, and v2 got %d", s.name, call.name, answer.StatusCode, answer.body, came)
					}
					if call.code != "" {
						refused++
					}
				}
			}
			checkUnknownMetrics(t, g, unknown, refused)
			checkUnknownWarnings(t, g, unknown)
		})
	}
}

// checkUnknownMetrics: each call that is not known is counted, and by its result.
func checkUnknownMetrics(t *testing.T, g *gateway, unknown string, calls int) {
	t.Helper()
	metrics := awaitIdle(t, g.addr)
	if got := metrics[`unknown_total{reason="key"}`] + metrics[`unknown_total{reason="database"}`]; got != float64(calls) || metrics[`unknown_total{reason="database"}`] != float64(len(surfaceRequests)) {
		t.Errorf("%v calls are counted as unknown, of %d", got, calls)
	}
	if got := metrics[resultsTotal("unknown_key")] + metrics[resultsTotal("unknown_database")]; unknown == "refuse" && got != float64(calls) || unknown == "warn" && got != 0 {
		t.Errorf("%v calls are counted as refused, of %d", got, calls)
	}
}

// checkUnknownWarnings: each unknown key is named once, and so is the known one that
// sent to an unknown database.
func checkUnknownWarnings(t *testing.T, g *gateway, unknown string) {
	t.Helper()
	named := map[string]int{}
	for line := range strings.SplitSeq(g.text(), "\n") {
		if found := regexp.MustCompile(`"msg":"(unknown write key|record for an unknown database)","fingerprint":"([^"]*)"`).FindStringSubmatch(line); found != nil {
			named[found[1]+" "+found[2]]++
			if want := fmt.Sprintf(`"forwarded":%v`, unknown == "warn"); !strings.Contains(line, want) {
				t.Errorf("%s is not in %s", want, line)
			}
		}
	}
	for name, times := range named {
		if times > 1 || !regexp.MustCompile(`^(unknown write key (666|77|12345)|record for an unknown database 1234)/#[0-9a-f]{10}$`).MatchString(name) {
			t.Errorf("%s: %d times", name, times)
		}
	}
	if len(named) != 4 {
		t.Errorf("got %v", named)
	}
}

// send is the status for a call with a key.
func (g *gateway) statusOf(t testing.TB, key string) int {
	return raw(t, g.addr, post("/postback/v3/event/shop/t?td_write_key="+key, asJSON+"Connection: close\r\n", object)).StatusCode
}

// awaitKey waits until a key is known, or not, and no longer than a change may take: two
// seconds. They are counted by ticks that are seen here, so that a machine that is too
// busy to look in time is so for both sides.
func (g *gateway) awaitKey(t *testing.T, key string, known bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for ticks := 0; (g.statusOf(t, key) == http.StatusOK) != known; ticks++ {
		if ticks > 200 {
			t.Fatalf("account %.4s: after %d ticks, known is still %v", key, ticks, !known)
		}
		<-tick.C
	}
}

// TestKeysFileChanges: a change of the file counts within 2 s, in place and by rename,
// without a reload and after one. A file that cannot be used changes nothing.
func TestKeysFileChanges(t *testing.T) {
	t.Parallel()
	v2 := startBatchV2(t, nil)
	file := write(t, "keys", knownKey+"\n")
	addr, admin := freeAddr(t), freeAddr(t)
	_, port, _ := net.SplitHostPort(addr)
	caddyfile := func(more string) string {
		return fmt.Sprintf("{\n%s\n}\nhttp://:%s {\n%s\n}\n", withAdmin(admin), port, keysSite(v2.URL, "file "+file+more))
	}
	g := serveCaddyfile(t, addr, caddyfile(""))
	showsNoKey(t, g.process)
	rename := func(text string) {
		t.Helper()
		if err := os.WriteFile(file+".new", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(file+".new", file); err != nil {
			t.Fatal(err)
		}
	}
	inPlace := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	g.awaitKey(t, knownKey, true)
	g.awaitKey(t, otherKey, false)

	inPlace(otherKey + "\n")
	g.awaitKey(t, otherKey, true)
	g.awaitKey(t, knownKey, false)
	rename(knownKey + "\n")
	g.awaitKey(t, knownKey, true)
	g.awaitKey(t, otherKey, false)

	// With a bad line, empty, and gone: all stays.
	inPlace(otherKey + "\nsecret line\n")
	g.await(t, "line 2: must be a write key", 1)
	rename("")
	g.await(t, "there is no key in it", 1)
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	g.await(t, "no such file", 1)
	if g.statusOf(t, knownKey) != http.StatusOK || g.statusOf(t, otherKey) != http.StatusForbidden {
		t.Error("what cannot be used has changed something")
	}
	// A reload does not fail because of it.
	if status, problem := reload(t, admin, caddyfile("\n databases shop")); status != http.StatusOK {
		t.Errorf("reload: %d %s", status, problem)
	}
	if g.statusOf(t, knownKey) != http.StatusOK || g.statusOf(t, otherKey) != http.StatusForbidden {
		t.Error("a reload has changed something")
	}
	inPlace("sha256:" + hashOf(otherKey) + "\n")
	g.awaitKey(t, otherKey, true)
	g.awaitKey(t, knownKey, false)
	// A reload to other rules counts at once.
	if status, problem := reload(t, admin, caddyfile("\n accounts 1234")); status != http.StatusOK {
		t.Errorf("reload: %d %s", status, problem)
	}
	if g.statusOf(t, knownKey) != http.StatusOK || g.statusOf(t, otherKey) != http.StatusOK {
		t.Error("the new rules do not count")
	}
	if strings.Contains(g.text(), "secret line") {
		t.Error("a line of the file is in the output")
	}
}

// TestKeysFileUnderLoad: a file of 100,000 keys is changed again and again under load,
// in place and in pieces, and no call with a key that is in all of them is refused.
func TestKeysFileUnderLoad(t *testing.T) {
	t.Parallel()
	v2 := startArrivals(t)
	lines := func(first string) string {
		var text strings.Builder
		text.WriteString(first)
		for n := range 100_000 {
			_, _ = fmt.Fprintf(&text, "%d/%040x\n", 1+n, n)
		}
		return text.String() + knownKey + "\n" // the last line
	}
	file := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(file, []byte(lines("")), 0o600); err != nil {
		t.Fatal(err)
	}
	g := serve(t, "", keysSite(v2.URL, "file "+file))
	var refused atomic.Int64
	var calls sync.WaitGroup
	done := make(chan struct{})
	stop := sync.OnceFunc(func() { close(done); calls.Wait() })
	t.Cleanup(stop)
	for range 4 {
		calls.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				resp, err := http.Post(g.url("/postback/v3/event/shop/t?td_write_key="+knownKey), "application/json", strings.NewReader(object))
				if err != nil {
					t.Error(err)
					return
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				_ = resp.Body.Close()
				if resp.StatusCode != http.StatusOK {
					refused.Add(1)
				}
			}
		})
	}
	for n := range 3 {
		key := fmt.Sprintf("9999999/%040x", n)
		writeInPieces(t, file, lines(key+"\n"))
		g.awaitKey(t, key, true)
	}
	stop()
	if refused.Load() > 0 {
		t.Errorf("%d calls with a key that was always there were refused", refused.Load())
	}
}

// writeInPieces writes a file in place, as a slow program does: piece by piece.
func writeInPieces(t *testing.T, path, text string) {
	t.Helper()
	file, err := os.Create(path) //nolint:gosec // G304: the test's own
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	const pieces = 20
	for n := range pieces {
		if _, err := file.WriteString(text[n*len(text)/pieces : (n+1)*len(text)/pieces]); err != nil {
			t.Fatal(err)
		}
		time.Sleep(100 * time.Millisecond) // it is slow
	}
}

// TestKeysBeforeTheBody: who may not send is told so before his body is read.
func TestKeysBeforeTheBody(t *testing.T) {
	t.Parallel()
	g := serve(t, "", keysSite("http://127.0.0.1:1", "accounts 1234"))
	answer := raw(t, g.addr, "POST /postback/v3/event/shop/t?td_write_key="+otherKey+" HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 1000000\r\n\r\n")
	if answer.StatusCode != http.StatusForbidden || answer.code() != "unknown_key" {
		t.Errorf("got %d %s", answer.StatusCode, answer.body)
	}
}

// TestKeysInHandoff: with handoff and pass_thru too, the next handler sees no unknown
// key, and other paths are nobody's business.
func TestKeysInHandoff(t *testing.T) {
	t.Parallel()
	u := startRecorder(t, nil)
	g := serve(t, "", "route {\n td_postback us01 {\n handoff\n pass_thru\n keys {\n accounts 1234\n databases shop\n}\n}\n reverse_proxy "+u.url()+"\n}")
	for target, want := range map[string]int{
		"/postback/v3/event/shop/t?td_write_key=" + otherKey: http.StatusForbidden,
		"/postback/v3/event/no/t?td_write_key=" + knownKey:   http.StatusForbidden,
	} {
		if answer := raw(t, g.addr, post(target, asJSON, object)); answer.StatusCode != want {
			t.Errorf("%s: got %d", target, answer.StatusCode)
		}
	}
	if got := raw(t, g.addr, post("/postback/v3/event/shop/t?td_write_key="+knownKey, asJSON, object)); got.StatusCode != http.StatusOK {
		t.Errorf("known: got %d", got.StatusCode)
	}
	if s := u.next(t); s.line != "POST /postback/v3/event/shop/t HTTP/1.1" {
		t.Errorf("the next handler got %s", s.line)
	}
	if got := raw(t, g.addr, get("/other", "Content-Length: 0\r\n")); got.StatusCode == http.StatusForbidden {
		t.Error("another path is refused")
	}
}

// TestKeysShownToV2: v2 sees no key that was not checked, also none beside the one that
// it uses.
func TestKeysShownToV2(t *testing.T) {
	t.Parallel()
	for unknown, want := range map[string][]string{"refuse": nil, "warn": {otherKey}} {
		u := startRecorder(t, nil)
		g := serve(t, "", keysSite(u.url(), "accounts 1234\n unknown "+unknown))
		for beside, header := range map[string][]string{otherKey: want, knownKey: {knownKey}} {
			answer := raw(t, g.addr, post("/postback/v3/event/shop/t", asJSON+"X-TD-Write-Key: "+beside+"\r\nAuthorization: TD1 "+knownKey+"\r\n", object))
			if answer.StatusCode != http.StatusOK {
				t.Errorf("%s: got %d", unknown, answer.StatusCode)
			}
			got := u.next(t)
			if !slices.Equal(got.field("X-TD-Write-Key"), header) || !slices.Equal(got.field("Authorization"), []string{"TD1 " + knownKey}) {
				t.Errorf("%s, %.4s beside it: v2 got %q and %q", unknown, beside, got.field("X-TD-Write-Key"), got.field("Authorization"))
			}
		}
	}
}

// TestKeysWithASpool: what is unknown is neither forwarded nor kept.
func TestKeysWithASpool(t *testing.T) {
	t.Parallel()
	g := serveSpool(t, "http://127.0.0.1:1", "keys {\n accounts 1234\n}", "mode always")
	if got := g.statusOf(t, knownKey); got != http.StatusOK {
		t.Errorf("known: got %d", got)
	}
	if got := g.statusOf(t, otherKey); got != http.StatusForbidden {
		t.Errorf("unknown: got %d", got)
	}
	if s := g.state(t); s.records() != 1 {
		t.Errorf("%d records are kept", s.records())
	}
	// Lists call the key by the name by which the log calls it.
	var kept []struct{ Account, Fingerprint string }
	if status := askAdmin(t, http.MethodGet, g.admin, "spool/records", &kept); status != http.StatusOK || len(kept) != 1 ||
		kept[0].Account != "1234/…" || !regexp.MustCompile(`^1234/#[0-9a-f]{10}$`).MatchString(kept[0].Fingerprint) {
		t.Fatalf("got %d %+v", status, kept)
	}
	g.await(t, `"msg":"record kept for later"`, 1)
	if !strings.Contains(g.text(), `"fingerprint":"`+kept[0].Fingerprint+`"`) {
		t.Errorf("the log does not call it %s: %s", kept[0].Fingerprint, g.text())
	}
}

// TestFingerprintsStay: a key has the same name after a restart, in another gateway
// with the same storage, and with a storage that cannot be written it still has one.
func TestFingerprintsStay(t *testing.T) {
	t.Parallel()
	storage := t.TempDir()
	name := func(global string) string {
		t.Helper()
		g := serve(t, global, keysSite("http://127.0.0.1:1", "accounts 1234"))
		showsNoKey(t, g.process)
		g.statusOf(t, otherKey)
		g.await(t, `"msg":"unknown write key"`, 1)
		found := regexp.MustCompile(`"fingerprint":"(666/#[0-9a-f]{10})"`).FindStringSubmatch(g.text())
		if found == nil {
			t.Fatalf("no fingerprint in %s", g.text())
		}
		return found[1]
	}
	at := "storage file_system " + storage + "\n"
	first := name(at)
	if again := name(at); again != first {
		t.Errorf("got %s, and then %s", first, again)
	}
	if other := name(""); other == first {
		t.Errorf("another installation has %s too", other)
	}
	path := filepath.Join(storage, "td_postback", "secret")
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the secret: %v, %v", info, err)
	}
	secret, err := os.ReadFile(path) //nolint:gosec // G304: the test's own
	if err != nil || len(strings.TrimSpace(string(secret))) != 64 {
		t.Errorf("the secret has %d bytes, %v", len(secret), err)
	}
	if broken := name("storage file_system /dev/null/x\n"); broken == first {
		t.Errorf("without a storage: %s too", broken)
	}
}

// TestOpenGatewayIsTold: a start without keys on an address that others can reach says
// once what that means.
func TestOpenGatewayIsTold(t *testing.T) {
	t.Parallel()
	const told = "this gateway is open"
	for name, tc := range map[string]struct {
		bind, keys string
		times      int
	}{
		"every address":           {"0.0.0.0", "", 1},
		"every address, and keys": {"0.0.0.0", "keys {\n accounts 1234\n}", 0},
		"loopback":                {"127.0.0.1", "", 0},
	} {
		config := write(t, "Caddyfile", fmt.Sprintf("{\n%s}\n%s {\n bind %s\n td_postback us01 {\n%s\n}\n}\n%s {\n bind %s\n td_postback us01 {\n%s\n}\n}\n",
			globals, "http://a.example:1", tc.bind, tc.keys, "http://b.example:1", tc.bind, tc.keys))
		output, code := run(t, "validate", "--adapter", "caddyfile", "--config", config)
		if code != 0 || strings.Count(output, told) != tc.times {
			t.Errorf("%s: exit %d, told %d times: %s", name, code, strings.Count(output, told), output)
		}
	}
}

// TestCall: a matcher sees what the gateway sees, wherever the key is, and no header
// gets a caller past it.
func TestCall(t *testing.T) {
	t.Parallel()
	u := startRecorder(t, nil)
	g := serve(t, "", `
	@blocked td_call {
		account 666
	}
	@allowed td_call {
		account 1234
		database shop app_*
	}
	@call td_call
	header @call X-Call "{td.kind} {td.account} {td.database} {td.table} {td.key}"
	handle @blocked {
		respond "blocked" 403
	}
	handle @allowed {
		td_postback {
			upstream `+u.url()+`
		}
	}
	handle {
		respond "{td.kind}" 404
	}`)
	showsNoKey(t, g.process)
	for _, s := range surfaceRequests {
		if answer := raw(t, g.addr, s.request(otherKey, "shop")); answer.StatusCode != http.StatusForbidden || answer.body != "blocked" {
			t.Errorf("%s: got %d %s", s.name, answer.StatusCode, answer.body)
		}
	}
	answer := raw(t, g.addr, post("//postback/v3/event/app_1/t/?td_write_key="+otherKey, asJSON+"X-TD-Write-Key: "+knownKey+"\r\n", object))
	if answer.StatusCode != http.StatusOK || u.next(t).body != object {
		t.Errorf("allowed: got %d %s", answer.StatusCode, answer.body)
	}
	if said := answer.Header.Get("X-Call"); !regexp.MustCompile(`^post 1234 app_1 t 1234/#[0-9a-f]{10}$`).MatchString(said) {
		t.Errorf("the placeholders are %q", said)
	}
	for name, request := range map[string]string{
		"another database": post("/postback/v3/event/private/t?td_write_key="+knownKey, asJSON, object),
		"no call":          get("/x?td_write_key="+otherKey, ""),
		"a preflight":      "OPTIONS /postback/v3/event/shop/t?td_write_key=" + otherKey + " HTTP/1.1\r\nHost: x\r\n\r\n",
	} {
		if answer := raw(t, g.addr, request); answer.StatusCode != http.StatusNotFound {
			t.Errorf("%s: got %d %s", name, answer.StatusCode, answer.body)
		}
	}
}

// TestKeysDocument runs the configuration of docs/keys.md, and its commands that write
// the file: what they write is known, and stands in no list of processes.
func TestKeysDocument(t *testing.T) {
	t.Parallel()
	document, err := os.ReadFile("../docs/keys.md")
	if err != nil {
		t.Fatal(err)
	}
	bash := tool(t, "bash", "bash")
	file := write(t, "keys", "# the callers\n")
	var site string
	commands := 0
	for _, block := range fencedBlocks("keys.md", string(document)) {
		switch {
		case block.language == "caddyfile":
			site = block.text
		case strings.Contains(block.text, "read -rs KEY"):
			script := strings.Replace(block.text, "sudo tee -a /etc/td-postback/keys", "tee -a "+file, 1)
			if strings.Contains(script, "sudo") {
				t.Fatalf("it writes elsewhere: %s", script)
			}
			cmd := exec.Command(bash, "-c", script)
			cmd.Stdin = strings.NewReader([]string{knownKey, listedKey}[commands] + "\n")
			if output, err := cmd.CombinedOutput(); err != nil || len(output) > 0 {
				t.Fatalf("%v: %s", err, output)
			}
			commands++
		}
	}
	if commands != 2 {
		t.Fatalf("%d commands", commands)
	}
	text, err := os.ReadFile(file) //nolint:gosec // G304: the test's own
	if err != nil || strings.Count(string(text), " the shop\n") != 2 || !strings.Contains(string(text), "sha256:"+hashOf(listedKey)) {
		t.Errorf("the file is %s", text)
	}
	td := newTreasureData(t)
	g := &gateway{addr: freeAddr(t)}
	_, port, _ := net.SplitHostPort(g.addr)
	g.process = start(t, append([]string{"HTTP_PORT=" + port, "CADDY_ADMIN=" + freeAddr(t), "KEYS_FILE=" + file}, td.env...),
		"run", "--adapter", "caddyfile", "--config", write(t, "Caddyfile", site))
	g.await(t, "serving initial configuration", 1)
	showsNoKey(t, g.process)
	for _, key := range []string{knownKey, listedKey, otherKey} {
		sent{addr: g.addr, host: recipeHost, path: "/postback/v3/event/shop/t?td_write_key=" + key}.expect(t, http.StatusOK, "{}")
		td.next(t)
	}
	g.await(t, `"msg":"unknown write key","fingerprint":"666/#`, 1)
	if n := strings.Count(g.text(), `"msg":"unknown write key"`); n != 1 {
		t.Errorf("%d keys are unknown", n)
	}
}

// openMetrics is what the metrics route shows to those who ask for OpenMetrics.
func openMetrics(t *testing.T, addr string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+addr+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", "application/openmetrics-text; version=1.0.0")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || !strings.HasPrefix(resp.Header.Get("Content-Type"), "application/openmetrics-text") {
		t.Fatalf("%s, %v", resp.Header.Get("Content-Type"), err)
	}
	return string(text)
}

// TestKeyExemplars: who asks for OpenMetrics sees the fingerprint of the key that was
// counted last, as the log has it, in each counter of keys that may be wrong; and no key.
func TestKeyExemplars(t *testing.T) {
	t.Parallel()
	v2 := startBatchV2(t, nil)
	file := write(t, "keys", knownKey+"\n")
	g := serve(t, "", keysSite("http://"+serve(t, "", "respond /postback/v3/event/shop/refused 403\n reverse_proxy "+v2.URL).addr, "file "+file+"\n databases shop\n unknown warn\n")+"\nmetrics /metrics")
	showsNoKey(t, g.process)
	const cut = "12345678901234567890/0123456789abcdef" // with an account number as long as one can be
	for _, call := range [][3]string{{otherKey, "shop", "t"}, {knownKey, "private", "t"}, {knownKey, "shop", "refused"}, {cut, "shop", "t"}} {
		raw(t, g.addr, post("/postback/v3/event/"+call[1]+"/"+call[2], asJSON+"X-TD-Write-Key: "+call[0]+"\r\n", object))
	}
	awaitIdle(t, g.addr)
	text := openMetrics(t, g.addr)
	for counter, warning := range map[string]string{
		`unknown_total{reason="key"}`:      `"msg":"unknown write key","fingerprint":"(1234\d{16}/#[^"]*)"`,
		`unknown_total{reason="database"}`: `"msg":"record for an unknown database","fingerprint":"([^"]*)"`,
		keySignals("refused"):              `"msg":"Postback v2 refused a record".*"fingerprint":"([^"]*)"`,
		keySignals("cut"):                  `"msg":"write key of unusual form".*"fingerprint":"([^"]*)"`,
	} {
		exemplar := regexp.MustCompile(`(?m)^caddy_td_postback_` + regexp.QuoteMeta(counter) + ` [0-9.]+ # \{key="([^"]*)"\} 1\.0 [0-9.e+]+$`).FindStringSubmatch(text)
		named := regexp.MustCompile(warning).FindStringSubmatch(g.text())
		if exemplar == nil || named == nil || exemplar[1] != named[1] {
			t.Errorf("%s: the exemplar is %q, and the warning has %q", counter, exemplar, named)
		}
	}
	if strings.Contains(text, "0123456789abcdef") || strings.Contains(text, otherKey[4:]) {
		t.Error("the metrics have a key")
	}
}
