package integration

import (
	"context"
	"errors"
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

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/td-postback/gateway/migration"
	"github.com/td-postback/gateway/sandbox"
)

// This file looks at the console of the built binary in Chromium, and uses it.

// hostileName is what a caller may send as the name of its agent.
const hostileName = `<img/src=x>onerror=alert(1)><script>document.title='owned'</script>`

// manyCallers writes a report of so many callers, as a gateway finds it at its start. The
// one with the most events has a hostile name.
func manyCallers(t *testing.T, dir string, callers int) {
	t.Helper()
	r, err := migration.Open(migration.Config{Rows: 25_000, Path: filepath.Join(dir, "callers.db")})
	if err != nil {
		t.Fatal(err)
	}
	var findings migration.Findings
	findings.Add(migration.KeyInURL)
	call := migration.Call{Time: time.Now(), Database: "shop", Surface: "post", Result: "forwarded", Findings: findings}
	for i := range callers {
		call.Key, call.Table = fmt.Sprintf("1234/#%010x", i/40), fmt.Sprintf("table%03d", i%400)
		call.UserAgent, call.Client, call.Events = fmt.Sprintf("agent%c%c%c/1", 'a'+i%26, 'a'+i/26%26, 'a'+i/676%26), "203.0.113.7", 1
		if i == 7 {
			call.UserAgent, call.Events = hostileName, 1000
		}
		r.Count(&call)
	}
	if err := errors.Join(r.Save(time.Now()), r.Close()); err != nil {
		t.Fatal(err)
	}
}

// serveConsoles runs a gateway that so many callers have called: at /console it may be
// changed, at /look not. more are more options of td_postback.
func serveConsoles(t *testing.T, callers int, v2, more string) (g *gateway, admin string) {
	t.Helper()
	dir := t.TempDir()
	admin = freeAddr(t)
	addr := freeAddr(t)
	_, port, _ := net.SplitHostPort(addr)
	manyCallers(t, dir, callers)
	config := fmt.Sprintf(`{
		%s
		storage file_system %s/storage
	}
	http://:%s {
		td_console /console* {
			actions on
		}
		td_console /look*
		td_postback {
			upstream %s
			report {
				rows 25000
				dir %s
			}
			migrate {
				legacy %s
				dir %s/plan
				start v2
			}
			%s
		}
	}`, withAdmin(admin), dir, port, v2, dir, startLegacy(t, nil).url(), dir, strings.ReplaceAll(more, "DIR", dir))
	g = serveCaddyfile(t, addr, config)
	return g, admin
}

// audit has axe-core look at a page, and fails the test for each thing that keeps somebody
// from using it. Of each table, the first rows are enough: the others are like them.
func (b *tab) audit(t *testing.T, name string, axe []byte) {
	t.Helper()
	value[int](t, b, `[...document.querySelectorAll("tbody tr:nth-child(n+4)")].map((row) => row.remove()).length`)
	if value[bool](t, b, "typeof axe === 'undefined'") {
		b.do(t, chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
			_, err := chromedp.Evaluate[bool](string(axe)+"; true")(ctx, target)
			return err
		}))
	}
	found := value[[]string](t, b, `axe.run(document, {resultTypes: ["violations"]}).then((r) => r.violations.map((v) => v.id + ": " + v.help + " " + v.nodes.map((n) => n.html + " " + n.failureSummary).join("; ")))`)
	for _, violation := range found {
		t.Errorf("%s: %s", name, violation)
	}
}

func axeCore(t *testing.T) []byte {
	t.Helper()
	axe, err := os.ReadFile("testdata/sdk/node_modules/axe-core/axe.min.js")
	if err != nil {
		t.Skip("axe-core is not installed (npm --prefix integration/testdata/sdk ci --ignore-scripts)")
	}
	return axe
}

// TestConsoleInBrowser looks at the pages of an empty gateway, of one with 20,000 callers
// and a hostile one among them, and of one whose v2 is down and whose spool is full: at
// three widths, in light and dark, nothing is wider than the page, nothing keeps somebody
// from using it, nothing fails, and no other host is asked.
func TestConsoleInBrowser(t *testing.T) {
	t.Parallel()
	axe := axeCore(t)
	browser := startChromium(t)
	v2 := httptest.NewServer(new(sandbox.Sandbox))
	t.Cleanup(v2.Close)
	busy, _ := serveConsoles(t, 20_000, v2.URL, "")
	for _, request := range []string{post(target, asJSON, object), post(testEventPath, asJSON, object), post("/postback/v3/event/shop/%3Cb%3E?td_write_key=1234/abcd", asJSON, object)} {
		raw(t, busy.addr, request)
	}
	full, _ := serveConsoles(t, 10, "http://"+freeAddr(t), "retries 0\nspool {\nmax_size 1MiB\ndir DIR/spool\n}")
	for range 5 {
		raw(t, full.addr, post(target, asJSON, `{"a":"`+strings.Repeat("x", 400_000)+`"}`))
	}
	empty := consoleOf(t, command(t, "--sandbox").process)
	awaitPage(t, busy.addr, "/look", "Page 1 of 401, 20,003 rows")
	for name, page := range map[string]struct {
		address, word string
		want          []string
	}{
		"empty":     {empty + "/", "All is well", []string{"No call has come yet."}},
		"busy":      {busy.addr + "/console", "Take a look", []string{"Send everything to the legacy host", "missing_write_key", "agentaaa"}},
		"no action": {busy.addr + "/look", "Take a look", []string{"This page changes nothing"}},
		"full":      {full.addr + "/console", "Act now", []string{"callers are turned away", "spool_full", "down: tried now and then", "no answer"}},
		"caller":    {busy.addr + "/look?caller=" + firstCaller(t, busy.addr), "Take a look", []string{"What to send instead"}},
		"share":     {busy.addr + "/console?rule=shop.*&percent=50", "Take a look", []string{"Send 50 % of shop.* to v2"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := openTab(t, browser)
			for _, scheme := range []string{"light", "dark"} {
				b.prefers(t, "prefers-color-scheme", scheme)
				b.open(t, "http://"+page.address)
				text := value[string](t, b, "document.body.textContent")
				for _, want := range append(page.want, page.word) {
					if !strings.Contains(text, want) {
						t.Errorf("%q is not there", want)
					}
				}
				b.shoot(t, name+"-"+scheme, 1280, 2000)
				if scheme == "light" {
					b.shoot(t, name+"-"+scheme, 320, 2000)
					b.shoot(t, name+"-"+scheme, 768, 2000)
				}
				b.audit(t, name+", "+scheme, axe)
			}
			if title := value[string](t, b, "document.title"); !strings.HasPrefix(title, page.word) || value[bool](t, b, "!!document.querySelector('main img, main script')") {
				t.Errorf("a name is markup: %q", title)
			}
			addr, _, _ := strings.Cut(page.address, "/")
			b.checkQuiet(t, addr)
		})
	}
}

// testEventPath is an event without a key.
const testEventPath = "/postback/v3/event/db/tbl"

// firstCaller is the ID of the caller with the most events.
func firstCaller(t *testing.T, addr string) string {
	t.Helper()
	_, rest, ok := strings.Cut(look(t, addr, "/look", nil).body, "?caller=")
	id, _, _ := strings.Cut(rest, `"`)
	if !ok {
		t.Fatal("no caller")
	}
	return id
}

// TestConsoleByKeyboard uses the page with keys alone, and looks at what moves.
func TestConsoleByKeyboard(t *testing.T) {
	t.Parallel()
	v2 := httptest.NewServer(new(sandbox.Sandbox))
	t.Cleanup(v2.Close)
	g, _ := serveConsoles(t, 120, v2.URL, "")
	b := openTab(t, startChromium(t))
	b.prefers(t, "prefers-reduced-motion", "reduce")
	b.open(t, "http://"+g.addr+"/console")
	if moves := value[int](t, b, `[document.documentElement, ...document.querySelectorAll("*")].filter((e) => { const s = getComputedStyle(e); return s.scrollBehavior !== "auto" || parseFloat(s.transitionDuration) > 0 || s.animationName !== "none"; }).length`); moves > 0 {
		t.Errorf("%d things move", moves)
	}
	focused := func() string {
		return value[string](t, b, `document.activeElement.textContent.trim().slice(0, 60) || document.activeElement.name || document.activeElement.id`)
	}
	key := func(keys, want string) {
		t.Helper()
		b.do(t, chromedp.KeyEvent(keys))
		if got := focused(); !strings.HasPrefix(got, want) {
			t.Errorf("the focus is at %q, and not at %q", got, want)
		}
	}
	key(kb.Tab, "Skip to what the page says")
	key(kb.Tab, "Postback gateway")
	for range 4 {
		b.do(t, chromedp.KeyEvent(kb.Tab)) // the parts of the page
	}
	key(kb.Tab, "Roll back")
	if value[bool](t, b, `getComputedStyle(document.activeElement).outlineStyle === "none"`) {
		t.Error("nobody sees where the focus is")
	}
	key(kb.Enter, "Roll back")
	if !value[bool](t, b, `document.querySelector("details.press").open`) {
		t.Error("it did not open")
	}
	key(kb.Tab, "note")
	key(kb.Escape, "Roll back")
	if value[bool](t, b, `document.querySelector("details.press").open`) {
		t.Error("it did not close")
	}
	key(kb.Enter, "Roll back")
	key(kb.Tab, "note")
	b.do(t, chromedp.KeyEvent("3 a.m."))
	key(kb.Tab, "Send everything to the legacy host")
	b.do(t, chromedp.KeyEvent(kb.Enter), chromedp.WaitVisible(chromedp.CSS(".notice.good")))
	if said := value[string](t, b, `document.querySelector("main").textContent`); !strings.Contains(said, "Everything goes to the legacy host, from the next request on.") || !strings.Contains(said, "3 a.m.") {
		t.Error(said)
	}
	b.checkQuiet(t, g.addr)
}

// TestConsoleWithoutScript: a browser without script rolls back by the same keys.
func TestConsoleWithoutScript(t *testing.T) {
	t.Parallel()
	v2 := httptest.NewServer(new(sandbox.Sandbox))
	t.Cleanup(v2.Close)
	g, _ := serveConsoles(t, 120, v2.URL, "")
	b := openTab(t, startChromium(t))
	b.do(t, chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
		_, err := cdp.Call(ctx, target, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true})
		return err
	}))
	b.open(t, "http://"+g.addr+"/console")
	for range 7 { // the way to the rest of the page, its title, its four parts, and the button
		b.do(t, chromedp.KeyEvent(kb.Tab))
	}
	b.do(t, chromedp.KeyEvent(kb.Enter), chromedp.KeyEvent(kb.Tab), chromedp.KeyEvent("3 a.m."), chromedp.KeyEvent(kb.Tab), chromedp.KeyEvent(kb.Enter))
	awaitPage(t, g.addr, "/look", "3 a.m.")
	b.checkQuiet(t, g.addr)
}

// TestConsoleLives: the page reads itself again. What is open stays open, a list keeps how
// it is shown, the tab's name says what the page says, and looking is no call.
func TestConsoleLives(t *testing.T) {
	t.Parallel()
	v2 := httptest.NewServer(new(sandbox.Sandbox))
	t.Cleanup(v2.Close)
	g, admin := serveConsoles(t, 120, v2.URL, "")
	b := openTab(t, startChromium(t))
	closed := reloadTime(t, admin, g)
	b.open(t, "http://"+g.addr+"/console?callers_page=2")
	open := reloadTime(t, admin, g)
	if open > closed+time.Second {
		t.Errorf("a reload takes %s with the page open, and %s without it", open, closed)
	}
	b.do(t, chromedp.Click(chromedp.CSS("#traffic details summary")))
	isTaken(t, raw(t, g.addr, post(target, asJSON, object)))
	again := `document.dispatchEvent(new Event("visibilitychange")); new Promise((done) => setTimeout(done, 50)).then(() => document.querySelector("#books tbody").textContent)`
	for end := time.Now().Add(patience); ; {
		if books := value[string](t, b, again); strings.HasPrefix(books, "post11") {
			break
		} else if time.Now().After(end) {
			t.Fatal(books)
		}
	}
	if !value[bool](t, b, `document.querySelector("#traffic details").open`) {
		t.Error("what was open is closed")
	}
	if title := value[string](t, b, "document.title"); !strings.HasPrefix(title, "All is well · ") {
		t.Error(title)
	}
	raw(t, g.addr, post(testEventPath, asJSON, object))
	awaitPage(t, g.addr, "/look", "Refused in the last 5 minutes")
	for end := time.Now().Add(patience); ; {
		value[string](t, b, again)
		if title := value[string](t, b, "document.title"); strings.HasPrefix(title, "Take a look · ") {
			break
		} else if time.Now().After(end) {
			t.Fatal(title)
		}
	}
	if pages := value[string](t, b, `document.querySelector("#callers nav").textContent`); !strings.HasPrefix(pages, "Before Page 2 of 3, 12") {
		t.Error(pages)
	}
	b.do(t, chromedp.Click(chromedp.CSS("#pause button")))
	isTaken(t, raw(t, g.addr, post(target, asJSON, object)))
	awaitPage(t, g.addr, "/look", `<th scope="row">post</th><td class="n">3</td>`)
	if books := value[string](t, b, again); !strings.HasPrefix(books, "post21") {
		t.Error("it was stopped, and reads on", books)
	}
	b.checkQuiet(t, g.addr)
}

// reloadTime is how long a reload takes, at best.
func reloadTime(t *testing.T, admin string, g *gateway) time.Duration {
	t.Helper()
	config, err := os.ReadFile(g.cmd.Args[len(g.cmd.Args)-1])
	if err != nil {
		t.Fatal(err)
	}
	best := time.Hour
	for i := range 3 {
		began := time.Now()
		if status, problem := reload(t, admin, fmt.Sprintf("# %d\n%s", i, config)); status != http.StatusOK {
			t.Fatal(status, problem)
		}
		best = min(best, time.Since(began))
	}
	return best
}

// TestConsoleInHostileBrowser: a page of somebody else's, in the operator's browser, sees
// nothing of the console and changes nothing: by a name that leads here, by a form, by a
// frame, or by asking for it.
func TestConsoleInHostileBrowser(t *testing.T) {
	t.Parallel()
	v2 := httptest.NewServer(new(sandbox.Sandbox))
	t.Cleanup(v2.Close)
	g, _ := serveConsoles(t, 120, v2.URL, "")
	_, port, _ := net.SplitHostPort(g.addr)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /form", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		_, _ = io.WriteString(w, `<form method="post" action="http://`+g.addr+`/console"><input name="do" value="rollback"></form><script>document.forms[0].submit()</script>`)
	})
	mux.HandleFunc("GET /frame", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		_, _ = io.WriteString(w, `<title>frame</title><iframe src="http://`+g.addr+`/console" onload="document.title = 'loaded'"></iframe>`)
	})
	site := listen(t, &http.Server{Handler: mux}) //nolint:gosec // loopback
	_, sitePort, _ := net.SplitHostPort(site)
	browser := startChromium(t, "evil.example")
	body := func(b *tab) string { return value[string](t, b, "document.body.textContent") }

	rebound := openTab(t, browser)
	rebound.open(t, "http://evil.example:"+port+"/console")
	if got := body(rebound); !strings.HasPrefix(got, "td_console: this is not the host") {
		t.Errorf("by a name that leads here: %s", got)
	}
	form := openTab(t, browser)
	form.open(t, "http://evil.example:"+sitePort+"/form")
	if _, err := chromedp.Run(form.ctx, chromedp.Poll[bool](`location.port === "`+port+`" && document.readyState === "complete"`)); err != nil {
		t.Fatal(err)
	}
	if got := body(form); !strings.HasPrefix(got, "td_console: another site asks for this") {
		t.Errorf("by a form: %s", got)
	}
	frame := openTab(t, browser)
	frame.open(t, "http://evil.example:"+sitePort+"/frame")
	if got := value[string](t, frame, `fetch("http://`+g.addr+`/console", {credentials: "include"}).then((r) => r.text(), (e) => "refused: " + e)`); !strings.HasPrefix(got, "refused: ") {
		t.Errorf("by asking for it: %s", got)
	}
	frame.mu.Lock()
	if problems := strings.Join(frame.problems, " "); !strings.Contains(problems, "frame-ancestors 'none'") {
		t.Errorf("in a frame: %s", problems)
	}
	frame.mu.Unlock()
	if page := look(t, g.addr, "/look", nil); strings.Contains(page.body, "Rolled back") {
		t.Error("somebody else has rolled back")
	}
}
