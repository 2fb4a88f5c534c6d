package integration

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/td-postback/gateway/sandbox"
)

// TestDoctor runs td-doctor on the examples, with the sandbox in v2's place, and
// on configurations that lose records: the exit code tells them apart.
func TestDoctor(t *testing.T) {
	t.Parallel()
	stand := httptest.NewServer(&sandbox.Sandbox{})
	t.Cleanup(stand.Close)
	example, err := os.ReadFile("../Caddyfile.example")
	if err != nil {
		t.Fatal(err)
	}
	// Everything as in the example, and its upstream for a stand-in.
	tried := strings.Replace(string(example), "# upstream http://127.0.0.1:9000", "upstream "+stand.URL, 1)
	for name, test := range map[string]struct {
		args  []string
		code  int
		texts []string
	}{
		"the example":                          {[]string{"--config", write(t, "Caddyfile", tried)}, 0, []string{"403 to a record without a key, as it should", "The clock agrees", "would lose no record"}},
		"the example, offline":                 {[]string{"--config", "../Caddyfile.example", "--offline"}, 0, nil},
		"the example, adapter":                 {[]string{"--config", write(t, "gateway.conf", tried), "--adapter", "caddyfile", "--offline"}, 0, nil},
		"a redirect":                           {[]string{"--config", write(t, "Caddyfile", strings.NewReplacer("auto_https disable_redirects", "", "http://{$POSTBACK_HOST:localhost}, ", "").Replace(tried)), "--offline"}, 1, []string{"redirected to https"}},
		"nothing":                              {[]string{"--config", write(t, "Caddyfile", ":8080\nrespond ok\n"), "--offline"}, 1, []string{"LOSES RECORDS", "There is no td_postback", "do not use it like this"}},
		"JSON":                                 {[]string{"--config", write(t, "caddy.json", "{}"), "--offline"}, 1, []string{"There is no td_postback", `{"handler": "td_postback", "region": "us01"}`}},
		"a misspelt option":                    {[]string{"--config", write(t, "Caddyfile", ":8080\ntd_postback us01 {\n\tmax_bod 1\n}\n")}, 1, []string{"max_bod is no option of td_postback"}},
		"no file":                              {[]string{"--config", "nosuch"}, 1, []string{"nosuch"}},
		"no such adapter":                      {[]string{"--config", "../Caddyfile.example", "--adapter", "toml"}, 1, []string{`--adapter "toml"`}},
		"a stray argument":                     {[]string{"../Caddyfile.example"}, 1, []string{"takes no argument"}},
		"v2 that cannot be reached":            {[]string{"--config", write(t, "Caddyfile", strings.Replace(tried, stand.URL, "http://"+freeAddr(t), 1))}, 1, []string{"takes no connection", "Nothing listens there: start it, or correct `upstream`", "--offline"}},
		"a legacy host that cannot be reached": {[]string{"--config", write(t, "Caddyfile", ":8080 {\n\ttd_postback us01 {\n\t\tupstream "+stand.URL+"\n\t\tmigrate {\n\t\t\tlegacy http://"+freeAddr(t)+"\n\t\t}\n\t}\n}\n")}, 1, []string{"takes no connection", "`legacy` and `resolve` in `migrate`"}},
		"a certificate that is not there":      {[]string{"--config", write(t, "Caddyfile", "https://a.example {\ntls nosuch.pem nosuch.key\ntd_postback us01\n}\n"), "--offline"}, 1, []string{"does not start", "nosuch.pem"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			output, code := run(t, append([]string{"td-doctor"}, test.args...)...)
			if code != test.code {
				t.Errorf("exit %d, want %d: %s", code, test.code, output)
			}
			for _, text := range test.texts {
				if !strings.Contains(output, text) {
					t.Errorf("%q is not in %s", text, output)
				}
			}
		})
	}
}

// TestDoctorIsRight has a configuration for each way in which a record is lost
// before td_postback sees it: the doctor names it, and a caller's record does not
// arrive. Of what a caller is told as an error, it does not say that it loses records.
func TestDoctorIsRight(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		site       string // of a.example
		host, path string
		status     int
		finding    string
		told       bool
	}{
		"respond in front": {
			site: "route {\nrespond ok\ntd_postback {\nupstream UPSTREAM\n}\n}",
			host: "a.example", path: eventPath, status: http.StatusOK, finding: "`respond` answers every call",
		},
		"another handle in front": {
			site: "handle /* {\n}\nhandle {\ntd_postback {\nupstream UPSTREAM\n}\n}",
			host: "a.example", path: eventPath, status: http.StatusOK, finding: "`handle` answers every call",
		},
		"another host": {
			site: "td_postback {\nupstream UPSTREAM\n}",
			host: "b.example", path: eventPath, status: http.StatusOK, finding: "any other host gets Caddy's empty 200",
		},
		"another path": {
			site: "td_postback /postback/* {\nupstream UPSTREAM\n}",
			host: "a.example", path: "/Postbak/v3/event/db/t", status: http.StatusOK, finding: "gets Caddy's empty 200",
		},
		"a redirect": {
			site: "@plain protocol http\nredir @plain https://{host}{uri}\nhandle {\ntd_postback {\nupstream UPSTREAM\n}\n}",
			host: "a.example", path: eventPath, status: http.StatusFound, finding: "redirected to https",
		},
		"a path that is stripped": {
			site: "handle_path /postback/* {\ntd_postback {\nupstream UPSTREAM\n}\n}\nhandle {\nrespond 404\n}",
			host: "a.example", path: eventPath, status: http.StatusNotFound, finding: "every event is refused",
		},
		"a path that is rewritten": {
			site: "rewrite * /td{uri}\ntd_postback {\nupstream UPSTREAM\n}",
			host: "a.example", path: eventPath, status: http.StatusNotFound, finding: "every event is refused",
		},
		"a password": {
			site: "basic_auth {\nBob $2a$14$Zkx19XLiW6VYouLHR5NmfOFU0z2GTNmpkT/5qqR7hx4IjWJPDhjvG\n}\ntd_postback {\nupstream UPSTREAM\n}",
			host: "a.example", path: eventPath, status: http.StatusUnauthorized, finding: "`basic_auth` asks every caller",
		},
		"a limit of bodies": {
			site: "request_body {\nmax_size 1\n}\ntd_postback {\nupstream UPSTREAM\n}",
			host: "a.example", path: eventPath, status: http.StatusRequestEntityTooLarge, finding: "`request_body` lets only smaller bodies through",
		},
		"a page for apps": {
			site: "handle /postback/* {\ntd_postback {\nupstream UPSTREAM\n}\n}\nhandle {\nrespond hello\n}",
			host: "a.example", path: androidPath, status: http.StatusOK, finding: "answers these calls with success",
		},
		"an empty handle for tags": {
			site: "handle /js/* {\n}\nhandle {\ntd_postback {\nupstream UPSTREAM\n}\n}",
			host: "a.example", path: jsEvent, status: http.StatusOK, finding: "answers these calls with success",
		},
		"Postback's path alone": {
			site: "handle /postback/* {\ntd_postback {\nupstream UPSTREAM\n}\n}\nhandle {\nrespond 404\n}",
			host: "a.example", path: jsEvent, status: http.StatusNotFound, finding: "something else refuses them", told: true,
		},
		"a password for tags": {
			site: "basic_auth /js/* {\nBob $2a$14$Zkx19XLiW6VYouLHR5NmfOFU0z2GTNmpkT/5qqR7hx4IjWJPDhjvG\n}\ntd_postback {\nupstream UPSTREAM\n}",
			host: "a.example", path: jsEvent, status: http.StatusUnauthorized, finding: "`basic_auth` asks every caller",
		},
		"a long URL": {
			site: "td_postback {\nupstream UPSTREAM\n}",
			host: "a.example", path: eventPath + "?td_write_key=1%2Fabc&x=" + strings.Repeat("x", 24<<10), status: http.StatusRequestHeaderFieldsTooLarge, finding: "get 431",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := make(chan sandbox.Record, 1)
			stand := httptest.NewServer(&sandbox.Sandbox{Received: func(r sandbox.Record) { got <- r }})
			t.Cleanup(stand.Close)
			addr := freeAddr(t)
			_, port, _ := net.SplitHostPort(addr)
			site := strings.ReplaceAll(test.site, "UPSTREAM", stand.URL)
			config := fmt.Sprintf("{\n%s\n}\nhttp://a.example:%s {\n%s\n}\n", globals, port, site)
			output, code := run(t, "td-doctor", "--offline", "--config", write(t, "Caddyfile", config))
			loses, _, _ := strings.Cut(output, "MAY BITE LATER")
			if code != 1 || !strings.Contains(output, test.finding) || strings.Contains(loses, test.finding) == test.told {
				t.Errorf("exit %d: %q is not in %s", code, test.finding, output)
			}
			serveCaddyfile(t, addr, config)
			req, err := http.NewRequest(http.MethodPost, "http://"+addr+test.path, strings.NewReader("{}"))
			if err != nil {
				t.Fatal(err)
			}
			req.Host = test.host
			req.Header.Set("X-TD-Write-Key", "1/abc")
			resp, err := http.DefaultTransport.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != test.status {
				t.Errorf("got %d, want %d", resp.StatusCode, test.status)
			}
			select {
			case r := <-got:
				t.Errorf("it arrived: %v", r)
			default:
			}
		})
	}
}

// eventPath is an event's path.
const eventPath = "/postback/v3/event/db/t"

// TestDoctorFindsALoop: the legacy host's name leads to the gateway that runs, whose
// callers get 508, and the doctor says so.
func TestDoctorFindsALoop(t *testing.T) {
	t.Parallel()
	addr, v2 := freeAddr(t), httptest.NewServer(&sandbox.Sandbox{})
	t.Cleanup(v2.Close)
	_, port, _ := net.SplitHostPort(addr)
	config := fmt.Sprintf("{\n%s\n}\nhttp://:%s {\n td_postback {\n upstream %s\n migrate {\n legacy http://%s\n}\n}\n}\n", globals, port, v2.URL, addr)
	serveCaddyfile(t, addr, config)
	if answer := raw(t, addr, post(target, asJSON, object)); answer.StatusCode != http.StatusLoopDetected {
		t.Errorf("a caller gets %d %s", answer.StatusCode, answer.body)
	}
	output, code := run(t, "td-doctor", "--config", write(t, "Caddyfile", config))
	if code != 1 || !strings.Contains(output, "the name of the legacy host "+addr+" leads to the gateway") || !strings.Contains(output, "resolve 203.0.113.7:443") {
		t.Errorf("exit %d: %s", code, output)
	}
}
