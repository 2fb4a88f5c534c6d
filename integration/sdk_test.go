package integration

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/td-postback/gateway/sandbox"
)

// sdkKey is the write key of the pages, which may be in no log.
const sdkKey = "1234/0123456789abcdef0123"

// sdkGlobalID is the value of the cookie that the legacy host has set in the past.
const sdkGlobalID = "0a1b2c3d-browser"

// sdk is one version of td-js-sdk, and what it does. Its page gets what has a name
// in JSON.
type sdk struct {
	// Name is its version; behind a plus sign, what is special about its options.
	Name string `json:"name"`

	// GlobalID is the value of the cookie that reaches the gateway from its page.
	GlobalID string `json:"global_id"`
	// Agent says that its events have td_user_agent, td_platform and td_description.
	Agent bool `json:"agent"`
	// Timed says that it repeats a record's time in the query.
	Timed bool `json:"timed"`
	// Outlives says that its requests outlive the page, if it is not empty, and
	// "without cookies" that those requests have none.
	Outlives string `json:"outlives"`

	// Options are its options beside the database and the key.
	Options map[string]any `json:"options"`

	Database string `json:"database"`
	Key      string `json:"key"`

	batch bool // it speaks the batch API, which the gateway does not serve
	loses bool // it sends clicks, and what it sends when the page is left, without the record
	asks  bool // it can ask for the global id
}

// sdks are those that npm has, one of each kind. 4 speaks the batch API, also if it
// has the path of older ones, 3.1.0 too, and the later ones of 3 if they are told to.
// 3.1.2 loses what it sends when the page is left.
func sdks() []*sdk {
	all := []*sdk{
		{Name: "1.5.2"}, // over http, as its page: the cookie is for https
		{Name: "1.9.2", GlobalID: sdkGlobalID, Agent: true, Timed: true, asks: true},
		{Name: "2.5.3", GlobalID: sdkGlobalID, Agent: true, Timed: true, asks: true, Outlives: "without cookies"},
		{Name: "3.1.0", batch: true, asks: true},
		{Name: "3.1.2", GlobalID: sdkGlobalID, Agent: true, Timed: true, asks: true, loses: true},
		{Name: "3.1.4", GlobalID: sdkGlobalID, Agent: true, Timed: true, asks: true, Outlives: "with cookies"},
		{Name: "3.1.4+new", batch: true, asks: true, Options: map[string]any{"useNewJavaScriptEndpoint": true}},
		{Name: "4.4.3", batch: true, asks: true, Options: map[string]any{"host": "in.treasuredata.com"}},
		{Name: "4.4.3+path", batch: true, asks: true, Options: map[string]any{"host": "in.treasuredata.com", "pathname": "/js/v3/event/"}},
	}
	for _, s := range all {
		s.Database, s.Key = "sdk_"+strings.NewReplacer(".", "_", "+", "_").Replace(s.Name), sdkKey
	}
	return all
}

// arrives are the tables in which v2 must have a record of it in the end.
func (s *sdk) arrives() []string {
	switch {
	case s.batch:
		return nil
	case s.loses:
		return []string{"pageviews", "events", "records"}
	case s.Outlives == "":
		return []string{"pageviews", "events", "records", "clicks"}
	default:
		return []string{"pageviews", "events", "records", "clicks", "leaves"}
	}
}

// says is what its pages must report, by table.
func (s *sdk) says() map[string]string {
	says := map[string]string{}
	for _, table := range []string{"answer_400", "answer_403", "answer_429", "answer_503", "no_answer"} {
		says[table] = "error"
	}
	if s.asks {
		says["the global id"] = "error"
	}
	taken := "success"
	if s.batch {
		taken = "error"
	} else {
		maps.Copy(says, map[string]string{"clicks": "sent", "leaves": "sent", "the next page": "loaded"})
	}
	for _, table := range []string{"pageviews", "events", "records"} {
		says[table] = taken
	}
	return says
}

// outcome is what a page says became of a record, and the record that it meant.
type outcome struct {
	SDK, Table, Outcome, Detail string
	Want                        map[string]any
}

// visit is where a page with a link is.
type visit struct {
	left, clicked       chan struct{} // closed when the next page has been loaded, and when v2 has the click
	nowLeft, nowClicked func()
}

// sdkSite is the customer's site.
type sdkSite struct {
	t        *testing.T
	page     string
	sdks     []*sdk
	code     map[string][]byte // SDK to its file
	visits   map[string]visit  // database to the page with the link
	outcomes chan outcome
}

// TestSDKs has Chromium run pages with td-js-sdk as npm has it, for which
// in.treasuredata.com is the gateway. Each record must arrive once and whole, also
// when its page is left meanwhile, and the SDK must say what became of it. An SDK
// that speaks the batch API must say that nothing was taken.
func TestSDKs(t *testing.T) {
	t.Parallel()
	chromium := tool(t, "chromium", "chromium", "chromium-browser", "google-chrome")
	site := newSDKSite(t)
	records := make(chan sandbox.Record, 1000)
	v2 := &sandbox.Sandbox{
		Received: func(r sandbox.Record) {
			records <- r
			site.arrived(r)
		},
		Fail: func(_ http.ResponseWriter, r *http.Request) bool {
			if strings.HasSuffix(r.URL.Path, "/no_answer") {
				panic(http.ErrAbortHandler)
			}
			return false
		},
	}
	g, secure := serveSDKs(t, listen(t, &http.Server{Handler: v2})) //nolint:gosec // loopback

	closeBrowser := browse(t, chromium, "http://"+listen(t, &http.Server{Handler: site.handler()})+"/", "--ignore-certificate-errors", //nolint:gosec // loopback
		fmt.Sprintf("--host-resolver-rules=MAP in.treasuredata.com:80 %s, MAP in.treasuredata.com:443 %s, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", g.addr, secure))
	outcomes, arrived := site.await(records)
	for _, s := range site.sdks {
		if s.loses {
			awaitRefused(t, g, s)
		}
	}
	closeBrowser()
	g.stop()
	for len(records) > 0 {
		arrived = append(arrived, <-records)
	}
	for _, s := range site.sdks {
		t.Run(s.Name, func(t *testing.T) {
			t.Parallel()
			s.check(t, outcomes, arrived)
		})
	}
	if text := g.text(); strings.Contains(text, strings.TrimPrefix(sdkKey, "1234/")) {
		t.Error("the key is in the log:\n" + text)
	}
}

// awaitRefused waits for the preflight and the POST of a click that has no record in
// it. Its SDK tells nobody what the answer was.
func awaitRefused(t *testing.T, g *gateway, s *sdk) {
	t.Helper()
	path := "/js/v3/event/" + s.Database + "/clicks?"
	g.await(t, path, 2)
	for line := range strings.SplitSeq(g.text(), "\n") {
		if strings.Contains(line, path) && strings.Contains(line, `"method":"POST"`) && !strings.Contains(line, `"status":400`) {
			t.Errorf("a POST without a record was not refused: %s", line)
		}
	}
}

// serveSDKs runs a gateway that is in.treasuredata.com, with and without TLS, and
// has its access log as the documents advise.
func serveSDKs(t *testing.T, upstream string) (g *gateway, secure string) {
	t.Helper()
	plain, secure := freeAddr(t), freeAddr(t)
	_, plainPort, _ := net.SplitHostPort(plain)
	_, securePort, _ := net.SplitHostPort(secure)
	certificate := newCertificate(t, "in.treasuredata.com")
	const masked = "format filter {\n request td_key\n resp_headers td_key\n uri td_key\n method td_key\n headers td_key\n error td_key\n}"
	site := "log {\n" + masked + "\n}\n" +
		"handle /cookie {\n header Set-Cookie \"_td_global=" + sdkGlobalID + "; Path=/; SameSite=None; Secure\"\n respond 204\n}\n" +
		"td_postback {\n upstream http://" + upstream + "\n}"
	return serveCaddyfile(t, plain, fmt.Sprintf("{\n%slog default {\n%s\n}\n}\nhttp://:%s {\n%s\n}\nhttps://:%s {\ntls %s %s\n%s\n}\n",
		globals, masked, plainPort, site, securePort, certificate.cert, certificate.key, site)), secure
}

func newSDKSite(t *testing.T) *sdkSite {
	t.Helper()
	sdkTool(t) // by which esbuild's command is run
	page, err := os.ReadFile("testdata/sdk/page.html")
	if err != nil {
		t.Fatal(err)
	}
	site := &sdkSite{
		t: t, page: string(page), sdks: sdks(),
		code: map[string][]byte{}, visits: map[string]visit{}, outcomes: make(chan outcome, 1000),
	}
	for _, s := range site.sdks {
		site.code[s.Name] = sdkCode(t, s.Name)
		left, clicked := make(chan struct{}), make(chan struct{})
		site.visits[s.Database] = visit{left, clicked, sync.OnceFunc(func() { close(left) }), sync.OnceFunc(func() { close(clicked) })}
	}
	return site
}

// sdkTool is node, if the SDKs are installed too.
func sdkTool(t *testing.T) string {
	t.Helper()
	if _, err := os.Stat("testdata/sdk/node_modules"); err != nil {
		t.Skip("the SDKs are not installed (npm --prefix integration/testdata/sdk ci --ignore-scripts)")
	}
	return tool(t, "npm", "node")
}

// sdkCode is an SDK as one file. npm has those of 1.x as modules; the names that
// begin with @ are replaced as its own build replaces them.
func sdkCode(t *testing.T, name string) []byte {
	t.Helper()
	version, _, _ := strings.Cut(name, "+")
	const modules = "testdata/sdk/node_modules/"
	if code, err := os.ReadFile(modules + "td-js-sdk-" + version + "/dist/td.js"); err == nil { //nolint:gosec // G304: the test's own names
		return code
	}
	code, err := exec.Command(modules+".bin/esbuild", modules+"td-js-sdk-"+version+"/lib/treasure.js", "--bundle", "--global-name=Treasure",
		"--define:global=window", "--inject:testdata/sdk/node.js").Output()
	if err != nil {
		t.Fatal(err)
	}
	return []byte(strings.NewReplacer("@VERSION", version, "@GLOBAL", "Treasure", "@HOST", "in.treasuredata.com",
		"@DATABASE", "", "@PATHNAME", "/js/v3/event/").Replace(string(code)))
}

// handler serves the site. Each SDK has a page that stays, and one that is left.
func (site *sdkSite) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", site.frames)
	for _, s := range site.sdks {
		config, err := json.Marshal(s)
		if err != nil {
			site.t.Fatal(err)
		}
		page := html(strings.NewReplacer("NAME", s.Name, "CONFIG", string(config)).Replace(site.page))
		mux.HandleFunc("GET /stay/"+s.Name, page)
		mux.HandleFunc("GET /leave/"+s.Name, page)
		mux.HandleFunc("GET /sdk/"+s.Name, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(site.code[s.Name]) })
		next := html(fmt.Sprintf(`<script>fetch("/report", {method: "POST", body: JSON.stringify({sdk: %q, table: "the next page", outcome: "loaded"})})</script>`, s.Name))
		mux.HandleFunc("GET /next/"+s.Name, func(w http.ResponseWriter, r *http.Request) {
			if s.Outlives == "" && !s.loses {
				<-site.visits[s.Database].clicked // else the browser may give the click up
			}
			next(w, r)
		})
	}
	mux.HandleFunc("POST /report", site.report)
	return mux
}

func html(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		_, _ = io.WriteString(w, text)
	}
}

// frames is a page with all pages in it, once the browser has the cookie.
func (site *sdkSite) frames(w http.ResponseWriter, r *http.Request) {
	var paths []string
	for _, s := range site.sdks {
		paths = append(paths, "/stay/"+s.Name)
		if !s.batch {
			paths = append(paths, "/leave/"+s.Name)
		}
	}
	html(fmt.Sprintf(`<!doctype html><body><script>
const cookie = new Image();
cookie.onload = cookie.onerror = () => {
	for (const path of %q.split(" ")) document.body.appendChild(document.createElement("iframe")).src = path;
};
cookie.src = "https://in.treasuredata.com/cookie";
</script>`, strings.Join(paths, " ")))(w, r)
}

func (site *sdkSite) report(_ http.ResponseWriter, r *http.Request) {
	var o outcome
	decoder := json.NewDecoder(r.Body)
	decoder.UseNumber()
	if err := decoder.Decode(&o); err != nil {
		site.t.Error(err)
	}
	if o.Table == "the next page" {
		for _, s := range site.sdks {
			if s.Name == o.SDK {
				site.visits[s.Database].nowLeft()
			}
		}
	}
	site.outcomes <- o
}

// arrived holds v2's answer to a record that outlives its page until the page is
// gone.
func (site *sdkSite) arrived(r sandbox.Record) {
	if r.Table != "clicks" && r.Table != "leaves" {
		return
	}
	v := site.visits[r.Database]
	v.nowClicked()
	for _, s := range site.sdks {
		if s.Database == r.Database && s.Outlives != "" {
			<-v.left
		}
	}
}

// await waits until the pages have reported all that they must, and v2 has all
// records.
func (site *sdkSite) await(records <-chan sandbox.Record) (outcomes []outcome, arrived []sandbox.Record) {
	missing := map[string]bool{}
	for _, s := range site.sdks {
		for table := range s.says() {
			missing[s.Name+" says of "+table] = true
		}
		for _, table := range s.arrives() {
			missing[s.Database+"."+table] = true
		}
	}
	deadline := time.After(2 * patience)
	for len(missing) > 0 {
		select {
		case o := <-site.outcomes:
			outcomes = append(outcomes, o)
			delete(missing, o.SDK+" says of "+o.Table)
		case r := <-records:
			arrived = append(arrived, r)
			delete(missing, r.Database+"."+r.Table)
		case <-deadline:
			site.t.Errorf("missing: %q", slices.Sorted(maps.Keys(missing)))
			return outcomes, arrived
		}
	}
	return outcomes, arrived
}

// check compares what an SDK has said, and what v2 has of it, with what must be.
func (s *sdk) check(t *testing.T, outcomes []outcome, arrived []sandbox.Record) {
	says, want := s.says(), map[string]map[string]any{}
	for _, o := range outcomes {
		if o.SDK != s.Name {
			continue
		}
		if o.Outcome != says[o.Table] || o.Outcome == "success" && o.Detail != `{"created":true}` {
			t.Errorf("of %s it says, maybe once too often: %s %s", o.Table, o.Outcome, o.Detail)
		}
		delete(says, o.Table)
		want[o.Table] = o.Want
	}
	arrives := s.arrives()
	for _, r := range arrived {
		if r.Database != s.Database {
			continue
		}
		i := slices.Index(arrives, r.Table)
		if i < 0 {
			t.Errorf("%s arrived once too often: %s", r.Table, r.Body)
			continue
		}
		arrives = slices.Delete(arrives, i, i+1)
		if r.Key != sdkKey || r.Via != "X-TD-Write-Key" || r.Query != "" || r.Header.Get("Content-Type") != "application/json" || r.Header.Get("Cookie") != "" {
			t.Errorf("%s came as %+v", r.Table, r)
		}
		s.checkRecord(t, r, want[r.Table])
	}
}

// checkRecord compares a record with what its page meant. Only what the page cannot
// know may be in it besides.
func (s *sdk) checkRecord(t *testing.T, r sandbox.Record, want map[string]any) {
	var got map[string]any
	decoder := json.NewDecoder(strings.NewReader(string(r.Body)))
	decoder.UseNumber()
	if err := decoder.Decode(&got); err != nil {
		t.Error(err)
	}
	if _, ok := want["td_url"]; ok {
		for _, name := range []string{"td_client_id", "td_viewport", "td_version"} {
			if text, ok := got[name].(string); !ok || text == "" || name == "td_version" && text != s.Name {
				t.Errorf("%s: %s is %v", r.Table, name, got[name])
			}
			delete(got, name)
		}
	}
	for name := range want {
		if _, ok := got[name]; !ok {
			t.Errorf("%s: %s did not arrive", r.Table, name)
		}
	}
	for name, value := range got {
		if !reflect.DeepEqual(value, want[name]) {
			t.Errorf("%s: %s arrived as %v, not as %v", r.Table, name, value, want[name])
		}
	}
}

// TestSDKForms sends what td-js-sdk 0.1.1, 1.3.0 and 3.0.0 send, which npm does not
// have: these are their requests, as Chromium sent them. An older one, over http,
// needs a readable 2xx, one of 0.1 with JSON in it.
func TestSDKForms(t *testing.T) {
	t.Parallel()
	records := make(chan sandbox.Record, 10)
	v2 := &sandbox.Sandbox{Received: func(r sandbox.Record) { records <- r }}
	g := serve(t, "", "td_postback {\n upstream http://"+listen(t, &http.Server{Handler: v2})+"\n}") //nolint:gosec // loopback

	at := strconv.FormatInt(time.Now().Unix()-60, 10)
	record := `{"a":"é😀","time":` + at + `}`
	cesu := strings.ReplaceAll(record, "😀", "\xed\xa0\xbd\xed\xb8\x80")
	data := func(record string) string {
		return url.QueryEscape(base64.StdEncoding.EncodeToString([]byte(record)))
	}
	const (
		path   = "/js/v3/event/db/tbl"
		key    = "1234%2F0123456789abcdef0123"
		origin = "Origin: http://shop.example\r\nReferer: http://shop.example/\r\n"
		xhr    = "Connection: keep-alive\r\nX-TD-WRITE-KEY: " + sdkKey + "\r\n" + asJSON + "Accept: */*\r\n" + origin
		script = "Connection: keep-alive\r\nAccept: */*\r\nReferer: http://shop.example/\r\n"
		fetch  = "X-TD-Fetch-Api: true\r\nX-TD-Write-Key: " + sdkKey + "\r\n" + asJSON + "Cookie: _td_global=" + sdkGlobalID + "\r\nSec-Fetch-Mode: cors\r\n" + origin
	)
	for _, test := range []struct {
		name, preflight, request string
		callback, record         string
	}{
		{"0.1.1 by XHR", "content-type,x-td-write-key", post(path, xhr, record), "", record},
		{
			"0.1.1 by JSONP", "", get(path+"?api_key="+key+"&data="+data(cesu)+"&modified=1795817159967&callback=TreasureJSONPCallback1795817159967aa", script),
			"TreasureJSONPCallback1795817159967aa", record,
		},
		{"1.3.0 by XHR", "content-type,x-td-write-key", post(path, xhr, record), "", record},
		{
			"1.3.0 by JSONP", "", get(path+"?api_key="+key+"&data="+data(record)+"&modified=1795817180477&callback=TreasureJSONPCallback0", script),
			"TreasureJSONPCallback0", record,
		},
		{
			"3.0.0", "content-type,x-td-fetch-api,x-td-write-key",
			post(path+"?modified=1795817119026&time="+at, fetch, `{"td_global_id":"td_global_id",`+record[1:]), "",
			`{"td_global_id":"` + sdkGlobalID + `",` + strings.TrimSuffix(record[1:], "}") + `,"td_record_time":` + at + `}`,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.preflight != "" {
				allowed(t, raw(t, g.addr, "OPTIONS "+path+" HTTP/1.1\r\nHost: in.treasuredata.com\r\n"+origin+
					"Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: "+test.preflight+"\r\n\r\n"), 204, test.preflight)
			}
			answer := raw(t, g.addr, test.request)
			contentType, body := "application/json", `{"created":true}`
			if test.callback != "" {
				contentType, body = "application/javascript; charset=utf-8", "/**/"+test.callback+`({"created":true});`
			} else {
				allowed(t, answer, 200, "")
			}
			if answer.StatusCode != 200 || answer.Header.Get("Content-Type") != contentType || answer.body != body {
				t.Errorf("the answer was %d %s %q", answer.StatusCode, answer.Header, answer.body)
			}
			select {
			case r := <-records:
				if string(r.Body) != test.record || r.Key != sdkKey || r.Via != "X-TD-Write-Key" || r.Query != "" {
					t.Errorf("it arrived as %+v with %s, not with %s", r, r.Body, test.record)
				}
			default:
				t.Error("it did not arrive before its answer")
			}
			if len(records) > 0 {
				t.Errorf("%s also arrived", (<-records).Body)
			}
		})
	}
}

// TestSDKEngine has a JavaScript engine make hundreds of records of all that it can have
// in a text, and the SDKs' own code encode them: v2 gets, byte by byte, what the engine
// means by each. It does so as engines of before 2019 write JSON, too.
func TestSDKEngine(t *testing.T) {
	t.Parallel()
	node, v2 := sdkTool(t), freeAddr(t)
	g := serve(t, "", "td_postback {\n upstream http://"+v2+"\n}")
	seed := strconv.FormatInt(time.Now().UnixNano(), 10)
	output, err := exec.Command(node, "--no-deprecation", "testdata/sdk/engine.js", g.addr, v2, seed).CombinedOutput()
	if err != nil || string(output) != "800 records\n" {
		t.Errorf("with the seed %s: %v\n%.5000s", seed, err, output)
	}
}

// allowed checks that a browser lets the page at http://shop.example have the answer,
// and with headers, that it lets it send them.
func allowed(t *testing.T, answer reply, status int, headers string) {
	t.Helper()
	if answer.StatusCode != status || answer.Header.Get("Access-Control-Allow-Origin") != "http://shop.example" ||
		answer.Header.Get("Access-Control-Allow-Credentials") != "true" || answer.Header.Get("Access-Control-Allow-Headers") != headers {
		t.Errorf("the browser was told %d %s", answer.StatusCode, answer.Header)
	}
}
