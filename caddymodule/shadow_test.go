package caddymodule

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	_ "github.com/caddyserver/caddy/v2/modules/standard"
)

// shadowSites are sites of a Caddyfile, and what swallows the events in each.
var shadowSites = map[string]struct {
	site string
	want []string
}{
	"alone":                              {"td_postback us01", nil},
	"respond":                            {"td_postback us01\nrespond 200", []string{"respond"}},
	"respond with the matcher of all":    {"td_postback us01\nrespond * 200", []string{"respond"}},
	"respond with the path of all":       {"td_postback us01\nrespond /* 200", []string{"respond"}},
	"redir":                              {"td_postback us01\nredir https://x.example{uri}", []string{"respond"}},
	"abort":                              {"td_postback us01\nabort", []string{"respond"}},
	"error":                              {"td_postback us01\nerror 404", []string{"error"}},
	"metrics":                            {"td_postback us01\nmetrics", []string{"metrics"}},
	"console":                            {"td_postback us01\ntd_console", []string{"td_console"}},
	"console at a path":                  {"td_postback us01\ntd_console /console*", nil},
	"handle":                             {"td_postback us01\nhandle {\n respond 200\n}", []string{"respond"}},
	"route":                              {"td_postback us01\nroute {\n respond 200\n}", []string{"respond"}},
	"handles for all paths":              {"td_postback us01\nhandle /a {\n respond 200\n}\nhandle {\n respond 404\n}", []string{"respond"}},
	"within a handle":                    {"handle {\n respond 200\n td_postback us01\n}", []string{"respond"}},
	"a proxy before it in a route":       {"route {\n reverse_proxy localhost:1\n td_postback us01\n}", []string{"reverse_proxy"}},
	"files before it in a route":         {"route {\n file_server\n td_postback us01\n}", []string{"file_server"}},
	"two handles, which Caddy makes one": {"route {\n handle {\n  header X 1\n }\n handle {\n  td_postback us01\n }\n}", nil},
	"two of them":                        {"td_postback /postback/* us01\ntd_postback ap01\nrespond 200", []string{"respond", "respond"}},
	"respond with a path":                {"td_postback us01\nrespond /healthz 200", nil},
	"respond with a matcher":             {"@bad remote_ip 192.0.2.1\ntd_postback us01\nrespond @bad 403", nil},
	"abort with a matcher":               {"@bad remote_ip 192.0.2.1\ntd_postback us01\nabort @bad", nil},
	"handle with a path":                 {"td_postback us01\nhandle /healthz {\n respond ok\n}", nil},
	"a handle of its own":                {"handle /healthz {\n respond ok\n}\nhandle {\n td_postback us01\n}", nil},
	"a handle for it":                    {"handle /postback/* {\n td_postback us01\n}\nhandle {\n respond 404\n}", nil},
	"first in a route":                   {"route {\n td_postback us01\n respond 200\n}", nil},
	"a proxy behind it":                  {"td_postback us01 {\n handoff\n}\nreverse_proxy localhost:1", nil},
	"files behind it":                    {"td_postback us01 {\n pass_thru\n}\nfile_server", nil},
	"forward_auth":                       {"td_postback us01\nforward_auth localhost:1 {\n uri /\n}", nil},
	"files that pass on":                 {"route {\n file_server {\n  pass_thru\n }\n td_postback us01\n}", nil},
	"a route that some requests leave":   {"route {\n handle /postback/* {\n  header X 1\n }\n handle {\n  respond 404\n }\n}\ntd_postback us01", nil},
	"a handle that some requests leave":  {"handle /postback/* {\n header X 1\n}\nhandle {\n respond 404\n}\ntd_postback us01", nil},
	"middleware":                         {"encode\nheader X 1\nvars a b\ntd_postback us01", nil},
}

// TestSwallows finds in an adapted configuration what stands before a
// td_postback and answers everything, and nothing else, also below a host.
func TestSwallows(t *testing.T) {
	for name, test := range shadowSites {
		for _, address := range []string{"http://:8080", "http://x.example:8080"} {
			t.Run(name+" at "+address, func(t *testing.T) {
				for _, server := range serversOf(t, adapt(t, address+" {\n"+test.site+"\n}")) {
					if got := swallows(server.Routes); !slices.Equal(got, test.want) {
						t.Errorf("got %q, want %q", got, test.want)
					}
				}
			})
		}
	}
}

// TestSwallowsRoutes is TestSwallows for what no Caddyfile becomes.
func TestSwallowsRoutes(t *testing.T) {
	for routes, want := range map[string][]string{
		`[{"group":"g","handle":[{"handler":"headers"}]},{"group":"g","handle":[{"handler":"td_postback"}]}]`:                                                        {"handle"},
		`[{"group":"g","handle":[{"handler":"headers"}]},{"group":"h","handle":[{"handler":"td_postback"}]}]`:                                                        nil,
		`[{"handle":[{"handler":"headers"}],"terminal":true},{"handle":[{"handler":"td_postback"}]}]`:                                                                {"terminal route"},
		`[{"match":[{"path":["/a"]},{"path":["/b","*"]}],"handle":[{"handler":"static_response"}]},{"handle":[{"handler":"td_postback"}]}]`:                          {"respond"},
		`[{"match":[{"path":["*"],"method":["GET"]}],"handle":[{"handler":"static_response"}]},{"handle":[{"handler":"td_postback"}]}]`:                              nil,
		`[{"handle":[{"handler":"td_postback"},{"handler":"td_postback"}]}]`:                                                                                         nil,
		`[{"handle":[{"handler":"td_postback","pass_thru":true},{"handler":"static_response"},{"handler":"td_postback"}]}]`:                                          {"respond"},
		`[{"handle":[7]},{"handle":[{"handler":"unknown"}]},{"match":[{"path":7}],"handle":[{"handler":"static_response"}]},{"handle":[{"handler":"td_postback"}]}]`: nil,
	} {
		var list caddyhttp.RouteList
		if err := json.Unmarshal([]byte(routes), &list); err != nil {
			t.Fatal(err)
		}
		if got := swallows(list); !slices.Equal(got, want) {
			t.Errorf("%s: got %q, want %q", routes, got, want)
		}
	}
}

// TestWarnOfShadow checks that a load warns, once for each td_postback that no
// event reaches.
func TestWarnOfShadow(t *testing.T) {
	for name, test := range shadowSites {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "log")
			cfg := adapt(t, "{\n admin off\n persist_config off\n log {\n  output file "+file+"\n  format json\n }\n}\nhttp://x.example:8080 {\n"+test.site+"\n}")
			if err := caddy.Validate(cfg); err != nil {
				t.Fatal(err)
			}
			lines, err := os.ReadFile(file) //nolint:gosec // G304: a test's own file
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for line := range strings.Lines(string(lines)) {
				var entry struct{ Msg, Handler string }
				if err := json.Unmarshal([]byte(line), &entry); err != nil {
					t.Fatal(err)
				}
				if strings.Contains(entry.Msg, "no event reaches") {
					got = append(got, entry.Handler)
				}
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

// adapt makes a configuration of a Caddyfile.
func adapt(t *testing.T, caddyfile string) *caddy.Config {
	t.Helper()
	adapted, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(caddyfile), nil)
	if err != nil {
		t.Fatal(err)
	}
	var cfg caddy.Config
	if err := json.Unmarshal(adapted, &cfg); err != nil {
		t.Fatal(err)
	}
	return &cfg
}

// serversOf are the servers of a configuration.
func serversOf(t *testing.T, cfg *caddy.Config) map[string]*caddyhttp.Server {
	t.Helper()
	var app caddyhttp.App
	if err := json.Unmarshal(cfg.AppsRaw["http"], &app); err != nil {
		t.Fatal(err)
	}
	return app.Servers
}
