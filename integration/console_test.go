package integration

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/td-postback/gateway/sandbox"
)

// consoleOf is the address of a gateway's console, as the gateway prints it.
func consoleOf(t *testing.T, p *process) string {
	t.Helper()
	p.await(t, "The console is at http://", 1)
	found := regexp.MustCompile(`The console is at http://(\S+)`).FindStringSubmatch(p.text())
	return found[1]
}

// look asks for a page, or sends a form, as a browser on this machine does.
func look(t *testing.T, addr, target string, form url.Values, header ...string) reply {
	t.Helper()
	method, body := "GET", form.Encode()
	if form != nil {
		method = "POST"
		header = append(header, "Content-Type: application/x-www-form-urlencoded", "Content-Length: "+strconv.Itoa(len(body)))
	}
	if !slices.ContainsFunc(header, func(line string) bool { return strings.HasPrefix(line, "Host:") }) {
		header = append(header, "Host: "+addr)
	}
	return raw(t, addr, method+" "+target+" HTTP/1.1\r\nConnection: close\r\n"+strings.Join(header, "\r\n")+"\r\n\r\n"+body)
}

// awaitPage waits until a page has a text.
func awaitPage(t *testing.T, addr, target, text string) reply {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		page := look(t, addr, target, nil)
		if page.StatusCode == http.StatusOK && strings.Contains(page.body, text) {
			return page
		}
		if time.Now().After(deadline) {
			t.Fatalf("never: %q in %d %s", text, page.StatusCode, page.body)
		}
	}
}

// press presses a button of a page: it sends a form of the page's own, and returns what
// the browser shows then. The page must have the form's token.
func press(t *testing.T, addr, page string, form url.Values) reply {
	t.Helper()
	token := regexp.MustCompile(`name="token" value="([0-9a-f]{64})"`).FindStringSubmatch(look(t, addr, page, nil).body)
	if token == nil {
		t.Fatal("no form on the page")
	}
	form.Set("token", token[1])
	answer := look(t, addr, page, form, "Origin: http://"+addr)
	if answer.StatusCode == http.StatusSeeOther {
		answer = look(t, addr, page+answer.Header.Get("Location"), nil)
	}
	return answer
}

// presses does so, and wants the page to say these texts.
func (g *planned) presses(t *testing.T, form url.Values, texts ...string) {
	t.Helper()
	answer := press(t, g.addr, "/console", form)
	for _, text := range texts {
		if !strings.Contains(answer.body, text) {
			t.Errorf("%v: %d without %q: %s", form, answer.StatusCode, text, answer.body)
		}
	}
}

// TestSandboxConsole: the sandbox has a console, whose address it prints. It shows the
// calls, changes nothing of the gateway's numbers by itself, and refuses who should not
// see it.
func TestSandboxConsole(t *testing.T) {
	t.Parallel()
	g := command(t, "--sandbox")
	addr := consoleOf(t, g.process)
	if host, _, err := net.SplitHostPort(addr); err != nil || host != "localhost" {
		t.Fatalf("the console is at %s", addr)
	}
	isTaken(t, raw(t, g.addr, post(target, asJSON, object)))
	raw(t, g.addr, post("/postback/v3/event/shop/%3Cscript%3Ealert(1)%3C%2Fscript%3E", asJSON, object))
	const counted = `<th scope="row">post</th><td class="n">2</td><td class="n">1</td>`
	awaitPage(t, addr, "/", counted)
	page := awaitPage(t, addr, "/", counted) // looking is no call
	if strings.Contains(page.body, "<script>alert") {
		t.Error("a name is markup")
	}
	for _, part := range []string{"style", "script", "icon", "body"} {
		if got := look(t, addr, "/?part="+part, nil); got.StatusCode != http.StatusOK || len(got.body) == 0 {
			t.Errorf("%s: %d", part, got.StatusCode)
		}
	}
	for _, target := range []string{"/", "/?part=style", "/?part=body"} {
		for _, header := range []string{"Host: evil.example", "Sec-Fetch-Dest: iframe", "X-Forwarded-For: 127.0.0.1"} {
			if got := look(t, addr, target, nil, header); got.StatusCode != http.StatusForbidden || got.Header.Get("X-Frame-Options") != "DENY" {
				t.Errorf("%s with %s: %d", target, header, got.StatusCode)
			}
		}
	}
}

// TestConsoleRollsBack: the form on the page moves the next request to the legacy host, and
// back; the same form of another site does not. The console stands below a path of the
// gateway's own site.
func TestConsoleRollsBack(t *testing.T) {
	t.Parallel()
	u := startLegacy(t, nil)
	v2 := httptest.NewServer(new(sandbox.Sandbox))
	t.Cleanup(v2.Close)
	g := serve(t, "", fmt.Sprintf("td_console /console* {\n actions on\n}\ntd_postback {\n upstream %s\n migrate {\n  legacy %s\n  start v2\n }\n}", v2.URL, u.url()))
	isTaken(t, raw(t, g.addr, post(target, asJSON, object)))
	u.none(t)
	page := look(t, g.addr, "/console", nil)
	token := regexp.MustCompile(`name="token" value="([0-9a-f]{64})"`).FindStringSubmatch(page.body)
	if token == nil {
		t.Fatalf("no token in %d %s", page.StatusCode, page.body)
	}
	form := url.Values{"do": {"rollback"}, "token": {token[1]}, "note": {"3 a.m."}}
	for _, from := range []string{"Origin: http://evil.example", "Origin: null", "Sec-Fetch-Site: cross-site", "X-Nothing: x"} {
		if got := look(t, g.addr, "/console", form, from); got.StatusCode != http.StatusForbidden {
			t.Errorf("%s: %d", from, got.StatusCode)
		}
	}
	isTaken(t, raw(t, g.addr, post(target, asJSON, object)))
	u.none(t)
	own := "Origin: http://" + g.addr
	moved := look(t, g.addr, "/console", form, own)
	if moved.StatusCode != http.StatusSeeOther || !strings.HasPrefix(moved.Header.Get("Location"), "?said=") {
		t.Fatalf("%d %q %s", moved.StatusCode, moved.Header.Get("Location"), moved.body)
	}
	raw(t, g.addr, post(target, asJSON, object))
	if p := u.next(t); p.body != object {
		t.Errorf("the legacy host has %q", p.body)
	}
	awaitPage(t, g.addr, "/console"+moved.Header.Get("Location"), "Everything goes to the legacy host, from the next request on.")
	if got := look(t, g.addr, "/console", url.Values{"do": {"resume"}, "token": {token[1]}, "base": {"1"}}, own); got.StatusCode != http.StatusSeeOther {
		t.Fatalf("%d %s", got.StatusCode, got.body)
	}
	isTaken(t, raw(t, g.addr, post(target, asJSON, object)))
	u.none(t)
	awaitPage(t, g.addr, "/console", "<bdi>3 a.m.</bdi>")
}

// TestConsoleFlag: without the sandbox it is off, and changes nothing when it is on; where
// something listens it is refused.
func TestConsoleFlag(t *testing.T) {
	t.Parallel()
	console := freeAddr(t)
	g := command(t, "--region", "us01", "--console", console)
	consoleOf(t, g.process)
	page := look(t, console, "/", nil)
	if page.StatusCode != http.StatusOK || !strings.Contains(page.body, "us01.records.in.treasuredata.com") {
		t.Errorf("%d %s", page.StatusCode, page.body)
	}
	if got := look(t, console, "/", url.Values{}, "Sec-Fetch-Site: same-origin"); got.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST: %d", got.StatusCode)
	}
	for _, address := range []string{console, "localhost", "unix//x", "localhost:0", "localhost:1-9"} {
		output, code := run(t, "td-postback", "--region", "us01", "--listen", freeAddr(t), "--console", address)
		if code == 0 || !strings.Contains(output, "--console ") {
			t.Errorf("%s: exit %d: %s", address, code, output)
		}
	}
	off := command(t, "--sandbox", "--console", "off")
	if strings.Contains(off.text(), "The console is at") {
		t.Error("it is on")
	}
}
