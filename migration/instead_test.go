package migration

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strings"
	"testing"
)

const v2Host = "us01.records.in.treasuredata.com"

// The command is run as it stands, but for the host: what arrives is what v2 takes.
func TestCurl(t *testing.T) {
	curl := Curl(v2Host, "shop", "orders")
	if want := "curl -X POST 'https://us01.records.in.treasuredata.com/postback/v3/event/shop/orders' "; !strings.HasPrefix(curl, want) {
		t.Fatalf("%s", curl)
	}
	if _, err := exec.LookPath("curl"); err != nil {
		t.Skip("no curl: apt-get install curl")
	}
	type request struct{ method, path, key, contentType, body string }
	got := make(chan request, 1)
	v2 := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		got <- request{r.Method, r.URL.Path, r.Header.Get("X-TD-Write-Key"), r.Header.Get("Content-Type"), string(body)}
	}))
	defer v2.Close()
	cmd := exec.Command("sh", "-c", strings.Replace(curl, "https://"+v2Host, v2.URL, 1)+" -sS --noproxy '*'")
	cmd.Env = append(cmd.Environ(), "TD_WRITE_KEY=1234/abc")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	r := <-got
	if want := (request{"POST", "/postback/v3/event/shop/orders", "1234/abc", "application/json", r.body}); r != want || !json.Valid([]byte(r.body)) {
		t.Errorf("v2 gets %+v", r)
	}
}

func TestTag(t *testing.T) {
	tag := Tag(v2Host, "shop", "orders")
	for _, want := range []string{
		`<script>fetch("https://us01.records.in.treasuredata.com/postback/v3/event/shop/orders", {`, `"X-TD-Write-Key": "YOUR_WRITE_KEY"`,
		`"Content-Type": "application/json"`, `method: "POST"`, `</script>`,
	} {
		if !strings.Contains(tag, want) {
			t.Errorf("%s has no %s", tag, want)
		}
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
	if text := Curl(v2Host, "1234", "0123456789abcdef0123"); !strings.HasPrefix(text, "curl -X POST 'https://"+v2Host+"/postback/v3/event/1234/{table}'") {
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
