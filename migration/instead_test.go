package migration

import (
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strings"
	"testing"

	"github.com/td-postback/gateway/sandbox"
)

const v2Host = "us01.records.in.treasuredata.com"

// runCurl runs the command as it stands, but for the host, against a server in v2's place.
func runCurl(t *testing.T, curl string, v2 http.Handler) (output string, err error) {
	t.Helper()
	if _, err := exec.LookPath("curl"); err != nil {
		t.Skip("no curl: apt-get install curl")
	}
	server := httptest.NewServer(v2)
	defer server.Close()
	cmd := exec.Command("sh", "-c", strings.Replace(curl, "https://"+v2Host, server.URL, 1)+" -sS --noproxy '*'")
	cmd.Env = append(cmd.Environ(), "TD_WRITE_KEY=1234/0123456789abcdef0123456789abcdef01234567")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// What arrives from the command is a record, by v2's own rules.
func TestCurl(t *testing.T) {
	curl := Curl(v2Host, "shop", "orders")
	if want := "curl -X POST 'https://us01.records.in.treasuredata.com/postback/v3/event/shop/orders' "; !strings.HasPrefix(curl, want) {
		t.Fatalf("%s", curl)
	}
	got := make(chan sandbox.Record, 1)
	if out, err := runCurl(t, curl, &sandbox.Sandbox{Received: func(r sandbox.Record) { got <- r }}); err != nil || out != "{}" {
		t.Fatalf("%v: %s", err, out)
	}
	r := <-got
	if r.Database != "shop" || r.Table != "orders" || r.Key != "1234/0123456789abcdef0123456789abcdef01234567" || r.Query != "" || r.Header.Get("Content-Type") != "application/json" {
		t.Errorf("v2 gets %+v", r)
	}
}

// A command with a part that is left open gets no record anywhere, if it is run so:
// curl takes {table} for a list of one table.
func TestOpenCurl(t *testing.T) {
	for _, curl := range []string{Curl(v2Host, "shop", ""), Curl(v2Host, "", "orders"), Curl(v2Host, "a b", "'")} {
		got := false
		out, err := runCurl(t, curl, &sandbox.Sandbox{Received: func(sandbox.Record) { got = true }})
		if err != nil || got || !strings.Contains(out, "error") {
			t.Errorf("%s: a record is %v: %v %s", curl, got, err, out)
		}
	}
}

// What arrives from the tag is a record, too, with a key in the place of the word.
func TestTag(t *testing.T) {
	tag := Tag(v2Host, "shop", "orders")
	script, isTag := strings.CutPrefix(tag, "<script>")
	script, ends := strings.CutSuffix(script, "</script>")
	if !isTag || !ends || !strings.Contains(script, `fetch("https://us01.records.in.treasuredata.com/postback/v3/event/shop/orders", {`) || strings.Contains(script, "<") {
		t.Fatalf("%s", tag)
	}
	if _, err := exec.LookPath("node"); err != nil {
		t.Skip("no node: apt-get install nodejs")
	}
	got := make(chan sandbox.Record, 1)
	v2 := httptest.NewServer(&sandbox.Sandbox{Received: func(r sandbox.Record) { got <- r }})
	defer v2.Close()
	script = strings.NewReplacer("https://"+v2Host, v2.URL, "YOUR_WRITE_KEY", "1234/abc").Replace(script)
	out, err := exec.Command("node", "-e", script+".then(answer => console.log(answer.status))").CombinedOutput()
	if err != nil || string(out) != "200\n" {
		t.Fatalf("%v: %s", err, out)
	}
	if r := <-got; r.Database != "shop" || r.Table != "orders" || r.Key != "1234/abc" || r.Query != "" || r.Header.Get("Content-Type") != "application/json" {
		t.Errorf("v2 gets %+v", r)
	}
}

// What a caller calls its table does not get into a shell or a page.
func TestInsteadHasOnlyNames(t *testing.T) {
	for _, name := range []string{"", "'; rm -rf /;'", `"</script><script>`, "a b", "é", "a\x00", "ŷ", strings.Repeat("x", 300), "a/b"} {
		for _, text := range []string{Curl(v2Host, name, name), Tag(v2Host, name, name)} {
			if !strings.Contains(text, "/postback/v3/event/{database}/{table}") {
				t.Errorf("%q: %s", name, text)
			}
		}
	}
	if text := Curl(v2Host, "1234", "0123456789abcdef0123"); !strings.HasPrefix(text, "curl -g -X POST 'https://"+v2Host+"/postback/v3/event/1234/{table}'") {
		t.Errorf("a key in the path: %s", text)
	}
}

// TestAddInstead: those who are left are told what to send, and only they.
func TestAddInstead(t *testing.T) {
	l := Listing{Rows: []Row{{Database: "shop", Table: "orders", State: Left}, {State: Ready}, {State: Gone}}}
	l.AddInstead("us01.records.in.treasuredata.com")
	if got := l.Rows[0].Instead; got == nil || got.Curl != Curl("us01.records.in.treasuredata.com", "shop", "orders") || got.Tag != Tag("us01.records.in.treasuredata.com", "shop", "orders") {
		t.Errorf("got %+v", got)
	}
	if l.Rows[1].Instead != nil || l.Rows[2].Instead != nil {
		t.Errorf("got %+v", l.Rows[1:])
	}
}
