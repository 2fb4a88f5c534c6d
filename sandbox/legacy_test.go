package sandbox_test

import (
	"bytes"
	"compress/gzip"
	"compress/zlib"
	"encoding/base64"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/td-postback/gateway/sandbox"
)

const legacySecret = "0123456789abcdef0123456789abcdef01234567"

// compressed is a body of which this is the content.
func compressed(text string, by func(io.Writer) io.WriteCloser) string {
	var b bytes.Buffer
	w := by(&b)
	_, _ = io.WriteString(w, text)
	_ = w.Close()
	return b.String()
}

// TestLegacy sends a call of each surface, and what is none.
func TestLegacy(t *testing.T) {
	const key, inURL = "1234/" + legacySecret, "td_write_key=1234%2F" + legacySecret
	data := url.QueryEscape(base64.StdEncoding.EncodeToString([]byte(`{"page":"ü>?"}`)))
	gzipped := compressed(`{"db.tbl":[{"a":1},{"a":2}]}`, func(w io.Writer) io.WriteCloser { return gzip.NewWriter(w) })
	deflated := compressed(`{"db.tbl":[{"a":1}]}`, func(w io.Writer) io.WriteCloser { return zlib.NewWriter(w) })
	for name, tc := range map[string]struct {
		method, target, body string
		headers              []string
		status               int
		answer, printed      string
	}{
		"a POST":                {"POST", "/postback/v3/event/db/tbl", `{ "a": 1 }`, []string{"X-TD-Write-Key", key}, 200, "{}", `legacy db.tbl  key 1234/… via X-TD-Write-Key  {"a":1}`},
		"a key in the URL":      {"POST", "/postback/v3/event/db/tbl/?" + inURL, `no JSON`, nil, 200, "{}", `legacy db.tbl  key 1234/… via td_write_key  "no JSON"`},
		"a GET":                 {"GET", "/postback/v3/event/db/tbl?a=1&" + inURL + "&b=2", "", nil, 200, "{}", "legacy db.tbl  key 1234/… via td_write_key  GET a=1&b=2"},
		"a pixel":               {"GET", "/postback/v3/event/db/tbl?td_format=pixel&" + inURL, "", nil, 200, "GIF89a", "legacy db.tbl  key 1234/… via td_write_key  GET td_format=pixel"},
		"a key twice":           {"GET", "/postback/v3/event/db/tbl?a=" + key + "&amp;" + inURL + "&td%5Fwrite_key=" + key, "", []string{"X-TD-Write-Key", key}, 200, "{}", "legacy db.tbl  key 1234/… via X-TD-Write-Key  GET a=…"},
		"no key":                {"POST", "/postback/v3/event/db/tbl", "{}", nil, 403, "no write key", "refused db.tbl  by the legacy host  403 no write key"},
		"JSONP":                 {"GET", "/js/v3/event/db/tbl?api_key=" + key + "&data=" + data + "&callback=TD.cb_1", "", nil, 200, `TD.cb_1({"created":true})`, `legacy db.tbl  key 1234/… via api_key  {"page":"ü>?"}`},
		"no name of a function": {"GET", "/js/v3/event/db/tbl?api_key=" + key + "&data=" + data + "&callback=alert(1)", "", nil, 200, `{"created":true}`, `legacy db.tbl  key 1234/… via api_key  {"page":"ü>?"}`},
		"a page's POST":         {"POST", "/js/v3/event/db/tbl", `{"a":1}`, []string{"X-TD-Write-Key", key}, 200, `{"created":true}`, `legacy db.tbl  key 1234/… via X-TD-Write-Key  {"a":1}`},
		"broken base64":         {"GET", "/js/v3/event/db/tbl?api_key=" + key + "&data=.&callback=f", "", nil, 400, "the event cannot be read", "refused db.tbl  by the legacy host  400 the event cannot be read"},
		"several":               {"POST", "/js/v3/event", `{"db.tbl":[{"a":1}],"db.t\n":[]}`, []string{"X-TD-Write-Key", key}, 200, `{"db.t\n":[],"db.tbl":[{"success":true}]}`, `legacy db.tbl  key 1234/… via X-TD-Write-Key  {"a":1}`},
		"a phone's":             {"POST", "/ios/v3/event", deflated, []string{"X-TD-Write-Key", key, "Content-Encoding", "deflate"}, 200, `{"db.tbl":[{"success":true}]}`, `legacy db.tbl  key 1234/… via X-TD-Write-Key  {"a":1}`},
		"another phone's":       {"POST", "/android/v3/event", gzipped, []string{"X-TD-Write-Key", key, "Content-Encoding", "gzip"}, 200, `{"db.tbl":[{"success":true},{"success":true}]}`, `legacy db.tbl  key 1234/… via X-TD-Write-Key  {"a":1}` + "\n" + `legacy db.tbl  key 1234/… via X-TD-Write-Key  {"a":2}`},
		"no gzip":               {"POST", "/android/v3/event", "{}", []string{"X-TD-Write-Key", key, "Content-Encoding", "gzip"}, 400, "the events cannot be read", "refused  by the legacy host  400 the events cannot be read"},
		"no events":             {"POST", "/js/v3/event", "[]", []string{"X-TD-Write-Key", key}, 400, "the events cannot be read", "refused  by the legacy host  400 the events cannot be read"},
		"on purpose":            {"POST", "/postback/v3/event/db/answer_503", "{}", []string{"X-TD-Write-Key", key}, 503, "always down", "refused db.answer_503  by the legacy host  503 this table is always down: it is for trying a 503"},
		"no event":              {"GET", "/js/v3/global_id?callback=f", "", nil, 404, "not_found", "legacy  GET /js/v3/global_id  404"},
		"a key as a path":       {"GET", "/" + key, "", nil, 404, "not_found", "legacy  GET /…  404"},
	} {
		out := new(bytes.Buffer)
		r := httptest.NewRequest(tc.method, tc.target, strings.NewReader(tc.body))
		for i := 0; i < len(tc.headers); i += 2 {
			r.Header.Set(tc.headers[i], tc.headers[i+1])
		}
		answer := httptest.NewRecorder()
		(&sandbox.Legacy{Out: out}).ServeHTTP(answer, r)
		if answer.Code != tc.status || !strings.Contains(answer.Body.String(), tc.answer) || out.String() != tc.printed+"\n" {
			t.Errorf("%s: got %d %q, and printed\n%s", name, answer.Code, answer.Body, out)
		}
	}
}

// TestLegacyOrigin lets a page read the answer, as the legacy host does.
func TestLegacyOrigin(t *testing.T) {
	for method, status := range map[string]int{http.MethodOptions: http.StatusNoContent, http.MethodPost: http.StatusForbidden} {
		r := httptest.NewRequest(method, "/postback/v3/event/db/tbl", nil)
		r.Header.Set("Origin", "https://shop.example")
		answer := httptest.NewRecorder()
		new(sandbox.Legacy).ServeHTTP(answer, r)
		if h := answer.Header(); answer.Code != status || h.Get("Access-Control-Allow-Origin") != "https://shop.example" || h.Get("Access-Control-Allow-Credentials") != "true" {
			t.Errorf("%s: got %d %v", method, answer.Code, h)
		}
	}
}

// FuzzLegacy sends anything: each line that is printed is one line, and none has a key.
func FuzzLegacy(f *testing.F) {
	f.Add("a=1&td_write_key=1234/"+legacySecret, "", "")
	f.Add("api_key=1234%2F"+legacySecret+"&data=e30=&callback=f", "", "")
	f.Add("a=%0a", `{"db.tbl":[{},{"a":"\n"}]}`, "")
	f.Add("", compressed(`{"a\n.b":[1]}`, func(w io.Writer) io.WriteCloser { return gzip.NewWriter(w) }), "gzip")
	f.Fuzz(func(t *testing.T, query, body, encoding string) {
		for _, path := range []string{"/postback/v3/event/db/tbl", "/js/v3/event/db/tbl", "/js/v3/event", "/1234/" + legacySecret} {
			out := new(bytes.Buffer)
			r := httptest.NewRequest(http.MethodPost, path, strings.NewReader(body))
			var err error
			if r.URL, err = url.ParseRequestURI(path + "?" + query); err != nil {
				return // net/http would not serve it
			}
			r.Header.Set("X-TD-Write-Key", "1234/"+legacySecret)
			r.Header.Set("Content-Encoding", encoding)
			answer := httptest.NewRecorder()
			(&sandbox.Legacy{Out: out}).ServeHTTP(answer, r)
			if strings.Contains(out.String(), legacySecret) && !strings.Contains(body, legacySecret) && !strings.Contains(query, legacySecret) && !strings.Contains(query, "data") {
				t.Errorf("the key is in %q", out)
			}
			for line := range strings.SplitSeq(strings.TrimSuffix(out.String(), "\n"), "\n") {
				if line != "" && !strings.HasPrefix(line, "legacy ") && !strings.HasPrefix(line, "refused") {
					t.Errorf("a line of a caller's: %q", line)
				}
			}
			if answer.Code < 200 || answer.Code > 499 {
				t.Errorf("%s?%s: %d", path, query, answer.Code)
			}
		}
	})
}
