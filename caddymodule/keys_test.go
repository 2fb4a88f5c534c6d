package caddymodule

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/td-postback/gateway/postback"
)

// TestKeysOptions: what is wrong is told with the option, the value and what is
// allowed, and never with what may be a key.
func TestKeysOptions(t *testing.T) {
	const secret = "0123456789abcdef0123456789abcdef01234567"
	bad := keysFileOf(t, "1/ab\nsecretsecret\n")
	for want, k := range map[string]Keys{
		"keys has neither accounts nor file nor databases":                                             {Unknown: unknownWarn},
		`keys accounts "x": must be an account number, the digits before a write key's slash`:          {Accounts: []string{"12", "x"}},
		`keys accounts "1234/…": must be`:                                                              {Accounts: []string{"1234/" + secret}},
		`keys accounts "1234/…": must`:                                                                 {Accounts: []string{"1234%2F" + secret}},
		`keys accounts "…": must be`:                                                                   {Accounts: []string{secret}},
		`keys accounts "": must be`:                                                                    {Accounts: []string{""}},
		`keys databases "a.b": must be a name of letters, digits and _, or the beginning of one and *`: {Databases: []string{"a", "a.b"}},
		`keys databases "*a": must be`:                                                                 {Databases: []string{"*a"}},
		`keys unknown "refus": must be refuse or warn (did you mean refuse?)`:                          {Accounts: []string{"1"}, Unknown: "refus"},
		`keys unknown "log": must be refuse or warn`:                                                   {Accounts: []string{"1"}, Unknown: "log"},
		`keys file "/none/x": must be a readable file with a write key, or sha256: and its hash, in each line: no such file`:        {File: "/none/x"},
		`keys file "1234/…": must be a readable file`:                                                                               {File: "1234/" + secret},
		`keys file "` + bad + `": must be a readable file with a write key, or sha256: and its hash, in each line: line 2: must be`: {File: bad},
	} {
		k.applyDefaults()
		err := k.validate()
		if err == nil {
			if err = k.provision(); err == nil {
				k.cleanup()
			} else if doctors := k.checkFile(); doctors == nil || doctors.Error() != err.Error() {
				t.Errorf("the doctor says %v", doctors)
			}
		}
		if err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		} else if strings.Contains(err.Error(), secret[:16]) || strings.Contains(err.Error(), "secretsecret") {
			t.Errorf("a secret is in %v", err)
		}
	}
	for _, k := range []Keys{
		{Accounts: []string{"1", "00012345678901234567"}}, {Databases: []string{"*"}}, {File: keysFileOf(t, "1/ab"), Unknown: unknownWarn},
	} {
		k.applyDefaults()
		if err := k.validate(); err != nil {
			t.Error(err)
		}
		if err := k.provision(); err != nil || k.checkFile() != nil {
			t.Error(err)
		}
		k.cleanup()
	}
}

func keysFileOf(t *testing.T, text string) string {
	t.Helper()
	path := t.TempDir() + "/keys"
	writeKeys(t, path, text)
	return path
}

// watchedHandler is a handler with these keys, and what it logs.
func watchedHandler(t *testing.T, k *Keys) (*Handler, *observer.ObservedLogs) {
	t.Helper()
	h := stubHandler()
	core, logs := observer.New(zap.DebugLevel)
	h.logger = zap.New(core)
	h.Keys = k
	k.applyDefaults()
	if err := k.provision(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.cleanup)
	unknownKey.named, unknownDatabase.named = namedKeys{}, namedKeys{}
	return h, logs
}

// TestUnknownIsNamed: a key that is unknown is named by its fingerprint, once a minute
// each, and nothing of it is in a log.
func TestUnknownIsNamed(t *testing.T) {
	for _, unknown := range []string{unknownRefuse, unknownWarn} {
		h, logs := watchedHandler(t, &Keys{Accounts: []string{"77"}, Databases: []string{"db"}, Unknown: unknown})
		send := func(target string) int {
			w := httptest.NewRecorder()
			r := benchRequest(http.MethodPost, target, 300)
			r.Body = &stubBody{data: benchBody(300)}
			if err := h.ServeHTTP(w, r, nil); err != nil {
				t.Fatal(err)
			}
			return w.Code
		}
		want := map[string]int{unknownRefuse: http.StatusForbidden, unknownWarn: http.StatusOK}[unknown]
		const other = "9/0123456789abcdef0123456789abcdef00000000"
		for range 3 {
			for _, target := range []string{benchPath, strings.Replace(benchPath, benchKey, other, 1), "/postback/v3/event/no/t?td_write_key=77/0123456789abcdef"} {
				if got := send(target); got != want {
					t.Errorf("%s: %s: got %d", unknown, target, got)
				}
			}
		}
		entries := logs.All()
		if len(entries) != 3 {
			t.Fatalf("%s: %d lines: %v", unknown, len(entries), entries)
		}
		for i, want := range []struct{ message, account, key string }{
			{"unknown write key", "1234/…", benchKey}, {"unknown write key", "9/…", other}, {"record for an unknown database", "77/…", "77/0123456789abcdef"},
		} {
			fields := entries[i].ContextMap()
			if entries[i].Message != want.message || fields["account"] != want.account || fields["fingerprint"] != fingerprintOf(want.key) ||
				fields["forwarded"] != (unknown == unknownWarn) || fields["key"] != "param" || fields["surface"] != "post" {
				t.Errorf("%s: got %s %v", unknown, entries[i].Message, fields)
			}
			if text := fmt.Sprint(fields); strings.Contains(text, "0123456789") {
				t.Errorf("a key is in %s", text)
			}
		}
	}
}

// TestNamedKeys: a key is due once a minute, and somebody who tries many keys is not
// named for ever, nor hides others for ever.
func TestNamedKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n namedKeys
		expect := func(name string, due bool) {
			t.Helper()
			if n.due(name) != due {
				t.Errorf("%s: due is %v", name, !due)
			}
		}
		expect("a", true)
		expect("a", false)
		time.Sleep(warningPause - time.Second)
		expect("a", false)
		expect("b", true)
		time.Sleep(time.Second)
		expect("a", true)
		expect("b", false)
		for i := range maxNamedKeys {
			n.due(fmt.Sprint(i))
		}
		expect("c", false)
		expect("b", false)
		time.Sleep(warningPause)
		expect("c", true)
		expect("a", true)
		if len(n.last) > maxNamedKeys {
			t.Errorf("%d keys are held", len(n.last))
		}
	})
}

// TestOpenGateway: the start says once what it means that everybody may send, where
// others can reach the gateway.
func TestOpenGateway(t *testing.T) {
	for name, tc := range map[string]struct {
		listen   []string
		upstream string
		keys     *Keys
		warns    bool
	}{
		"every address":           {listen: []string{":80"}, warns: true},
		"one of two":              {listen: []string{"127.0.0.1:80", "192.0.2.1:80"}, warns: true},
		"a socket of systemd":     {listen: []string{"fd/3"}, warns: true},
		"a host name":             {listen: []string{"gateway.example:80"}, warns: true},
		"an upstream elsewhere":   {listen: []string{":80"}, upstream: "https://staging.example", warns: true},
		"loopback":                {listen: []string{"127.0.0.1:80", "[::1]:80", "localhost:80", "tcp/127.0.0.2:80"}},
		"a Unix socket":           {listen: []string{"unix//run/x.sock"}},
		"keys":                    {listen: []string{":80"}, keys: &Keys{Accounts: []string{"1"}}},
		"an upstream on loopback": {listen: []string{":80"}, upstream: "http://127.0.0.1:9000"},
	} {
		t.Run(name, func(t *testing.T) {
			core, logs := observer.New(zap.DebugLevel)
			toldOfOpenGateway.Store(false)
			for range 2 {
				h := &Handler{logger: zap.New(core), Keys: tc.keys, Upstream: tc.upstream, server: &caddyhttp.Server{Listen: tc.listen}}
				h.warnOfOpenGateway()
			}
			if got := logs.FilterMessageSnippet("this gateway is open").Len(); (got == 1) != tc.warns || got > 1 {
				t.Errorf("it was told %d times", got)
			}
		})
	}
}

// TestUnknownInHandoff: nothing unknown is left to the next handler.
func TestUnknownInHandoff(t *testing.T) {
	h, _ := watchedHandler(t, &Keys{Accounts: []string{"77"}})
	h.Handoff, h.PassThru, h.served = true, true, postback.SurfacesOf([]string{handoffSurface})
	w := httptest.NewRecorder()
	r := benchRequest(http.MethodPost, benchPath, 300)
	r.Body = &stubBody{data: benchBody(300)}
	next := caddyhttp.HandlerFunc(func(http.ResponseWriter, *http.Request) error {
		t.Error("it came to the next handler")
		return nil
	})
	if err := h.ServeHTTP(w, r, next); err != nil || w.Code != http.StatusForbidden || !strings.Contains(w.Body.String(), `"unknown_key"`) {
		t.Errorf("got %d %s, %v", w.Code, w.Body, err)
	}
}

// TestDoctorLooksAtKeys: a file that the gateway would not start with is found, and a
// gateway that everybody may use is noted.
func TestDoctorLooksAtKeys(t *testing.T) {
	const site = ":80 {\n\ttd_postback us01 {\n%s\n\t}\n}\n"
	good, bad := keysFileOf(t, "1/ab\n"), keysFileOf(t, "1/ab\nsecretsecret\n")
	for options, want := range map[string]string{
		"keys {\nfile " + good + "\n}": "",
		"keys {\nfile " + bad + "\n}":  "line 2: must be a write key",
		"keys {\nfile /none/x\n}":      "no such file",
	} {
		e := examineText(t, fmt.Sprintf(site, options))
		found := probeFiles(e.blocks[0])
		if want == "" && len(found) > 0 || want != "" && (len(found) != 1 || found[0].severity != losesRecords || !strings.Contains(found[0].what, want) || strings.Contains(found[0].what, "secretsecret")) {
			t.Errorf("%s: %+v", options, found)
		}
		if open := noteOpen(e); len(open) > 0 {
			t.Errorf("%s: %+v", options, open)
		}
	}
	for text, notes := range map[string]int{
		fmt.Sprintf(site, ""): 1,
		strings.Replace(fmt.Sprintf(site, ""), ":80", "http://127.0.0.1:80", 1):     1, // a host, on every address
		strings.Replace(fmt.Sprintf(site, ""), ":80 {", ":80 {\nbind 127.0.0.1", 1): 0,
		fmt.Sprintf(site, "upstream http://localhost:9000"):                         0,
	} {
		if open := noteOpen(examineText(t, text)); len(open) != notes {
			t.Errorf("%s: %+v", text, open)
		}
	}
	e := examineText(t, fmt.Sprintf(site, "keys {\naccounts x\n}"))
	if all := checkOptions(e); len(all) != 1 || !strings.Contains(all[0].what, `keys accounts "x"`) {
		t.Errorf("got %+v", all)
	}
}
