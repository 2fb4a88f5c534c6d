package integration

import (
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
	"testing"
	"time"

	"github.com/td-postback/gateway/sandbox"
)

// page sends a record in every way that a browser has, and reports what the
// page itself saw of it. GATEWAY is the event's URL with the key.
const page = `<!doctype html><meta charset="utf-8"><title>page</title>
<a id="link" href="#clicked" ping="GATEWAY&how=ping">link</a>
<script>
const gateway = "GATEWAY";
const seen = [];
async function note(what, work) {
	try { seen.push(what + ": " + await work()); } catch (error) { seen.push(what + ": " + error); }
}
function image(url) {
	return new Promise((resolve) => {
		const img = new Image();
		img.onload = () => resolve("loaded " + img.naturalWidth + "x" + img.naturalHeight);
		img.onerror = () => resolve("error");
		img.src = url;
	});
}
function xhr(how, headers) {
	return new Promise((resolve) => {
		const request = new XMLHttpRequest();
		request.open("POST", gateway);
		request.withCredentials = true;
		for (const name in headers) request.setRequestHeader(name, headers[name]);
		request.onload = () => resolve(request.status + " " + request.responseText);
		request.onerror = () => resolve("error");
		request.send(JSON.stringify({how: how}));
	});
}
async function answer(response) { return response.status + " " + await response.text(); }
(async () => {
	await note("pixel", () => image(gateway + "&td_format=pixel&how=pixel&title=Caf%C3%A9&td_ua=td_ua"));
	await note("beacon", () => navigator.sendBeacon(gateway + "&how=beacon"));
	await note("beacon with JSON", () => navigator.sendBeacon(gateway, JSON.stringify({how: "beacon with JSON"})));
	await note("keepalive", async () => answer(await fetch(gateway, {method: "POST", keepalive: true, body: JSON.stringify({how: "keepalive"})})));
	await note("header", async () => answer(await fetch(gateway.split("?")[0], {
		method: "POST",
		headers: {"X-TD-Write-Key": gateway.split("=")[1], "Content-Type": "application/json"},
		body: JSON.stringify({how: "header"}),
	})));
	await note("get", async () => answer(await fetch(gateway + "&how=get")));
	const json = {"Content-Type": "application/json"};
	await note("beacon with a JSON blob", () => navigator.sendBeacon(gateway, new Blob([JSON.stringify({how: "beacon with a JSON blob"})], {type: "application/json"})));
	await note("credentials", async () => answer(await fetch(gateway, {method: "POST", credentials: "include", headers: json, body: JSON.stringify({how: "credentials"})})));
	await note("credentials as text", async () => answer(await fetch(gateway, {method: "POST", credentials: "include", body: JSON.stringify({how: "credentials as text"})})));
	await note("credentials by GET", async () => answer(await fetch(gateway + "&how=credentials+by+GET", {credentials: "include"})));
	await note("XHR", () => xhr("XHR", json));
	await note("XHR as text", () => xhr("XHR as text", {}));
	await note("refused with credentials", async () => { const r = await fetch(gateway.split("?")[0], {method: "POST", credentials: "include", body: "{}"}); return r.status + " " + (await r.json()).error; });
	await note("a method that is refused", async () => { const r = await fetch(gateway, {method: "PUT", credentials: "include", body: "{}"}); return r.status + " " + (await r.json()).error; });
	await note("refused", async () => { const r = await fetch(gateway.split("?")[0] + "?how=refused"); return r.status + " " + (await r.json()).error; });
	document.getElementById("link").click();
	await fetch("/done", {method: "POST", body: seen.join("\n")});
})();
</script>`

// TestBrowser has Chromium load a page on another origin that sends records in
// every way. Each must arrive once and whole, and the page must see it work.
func TestBrowser(t *testing.T) {
	t.Parallel()
	chromium := tool(t, "chromium", "chromium", "chromium-browser", "google-chrome")

	records := make(chan sandbox.Record, 100)
	upstream := &http.Server{Handler: &sandbox.Sandbox{Received: func(r sandbox.Record) { records <- r }}} //nolint:gosec // loopback
	g := serve(t, "", "td_postback {\n upstream http://"+listen(t, upstream)+"\n}")

	done := make(chan string, 1)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /page", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		_, _ = io.WriteString(w, strings.ReplaceAll(page, "GATEWAY", "http://"+g.addr+target))
	})
	mux.HandleFunc("POST /done", func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		done <- string(body)
	})
	site := listen(t, &http.Server{Handler: mux}) //nolint:gosec // loopback

	browse(t, chromium, "http://"+site+"/page")

	var report string
	select {
	case report = <-done:
	case <-time.After(2 * patience):
		t.Fatal("the page did not finish")
	}
	for _, want := range []string{
		"pixel: loaded 1x1", "beacon: true", "beacon with JSON: true", "keepalive: 200 {}",
		"header: 200 {}", "get: 200 {}", "refused: 403 missing_write_key",
		"beacon with a JSON blob: true", "credentials: 200 {}", "credentials as text: 200 {}", "credentials by GET: 200 {}",
		"XHR: 200 {}", "XHR as text: 200 {}", "refused with credentials: 403 missing_write_key",
		"a method that is refused: 405 method_not_allowed",
	} {
		if !slices.Contains(strings.Split(report, "\n"), want) {
			t.Errorf("the page did not see %q:\n%s", want, report)
		}
	}

	want := map[string]int{
		`{"how":"pixel","title":"Café","td_ua":"UA"}`: 1,
		`{"how":"beacon"}`:           1,
		`{"how":"beacon with JSON"}`: 1,
		`{"how":"keepalive"}`:        1,
		`{"how":"header"}`:           1,
		`{"how":"get"}`:              1,
		`{"how":"ping"}`:             1,

		`{"how":"beacon with a JSON blob"}`: 1,
		`{"how":"credentials"}`:             1,
		`{"how":"credentials as text"}`:     1,
		`{"how":"credentials by GET"}`:      1,
		`{"how":"XHR"}`:                     1,
		`{"how":"XHR as text"}`:             1,
	}
	for range want {
		select {
		case r := <-records:
			body := strings.Replace(string(r.Body), r.Header.Get("User-Agent"), "UA", 1)
			want[body]--
			if r.Key != "1234/abcd" || r.Via != "X-TD-Write-Key" || r.Query != "" || r.Database != "db" || r.Table != "tbl" {
				t.Errorf("%s came as %+v", body, r)
			}
		case <-time.After(patience):
			t.Fatalf("missing: %v", want)
		}
	}
	for body, n := range want {
		if n != 0 {
			t.Errorf("%s arrived %d times", body, 1-n)
		}
	}
	if len(records) > 0 {
		t.Errorf("also arrived: %v", <-records)
	}
}

// browse has Chromium open a page, until the end of the test or until the function
// that it returns is called. It is told to stay off the network, to accept that the
// test may run as root, and to let other sites have their cookies.
func browse(t *testing.T, chromium, page string, flags ...string) (closeBrowser func()) {
	t.Helper()
	profile := t.TempDir()
	if err := os.Mkdir(filepath.Join(profile, "Default"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(profile, "Default", "Preferences"), []byte(`{"profile":{"cookie_controls_mode":0}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, chromium, append([]string{"--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
		"--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
		"--user-data-dir=" + profile, "--remote-debugging-port=0", page}, flags...)...)
	cmd.WaitDelay = patience
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	closeBrowser = sync.OnceFunc(func() { cancel(); _ = cmd.Wait() })
	t.Cleanup(closeBrowser)
	return closeBrowser
}

// listen serves on a free loopback port until the end of the test.
func listen(t testing.TB, server *http.Server) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			fmt.Println(err)
		}
	}()
	t.Cleanup(func() { server.Close() })
	return l.Addr().String()
}
