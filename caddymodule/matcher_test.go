package caddymodule

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// callRequest is a request as Caddy hands it on, with header fields by name and value.
func callRequest(method, target string, length int64, fields ...string) *http.Request {
	ctx := context.WithValue(context.Background(), caddyhttp.VarsCtxKey, map[string]any{})
	ctx = context.WithValue(ctx, caddy.ReplacerCtxKey, caddy.NewReplacer())
	r := httptest.NewRequestWithContext(ctx, method, "/", nil)
	r.URL.Path, r.URL.RawQuery, _ = strings.Cut(target, "?")
	r.ContentLength = length
	r.Body = unreadBody{}
	for pair := range slices.Chunk(fields, 2) {
		r.Header.Add(pair[0], pair[1])
	}
	return r
}

// unreadBody is a body that nobody may read.
type unreadBody struct{}

func (unreadBody) Read([]byte) (int, error) { panic("the body is read") }
func (unreadBody) Close() error             { panic("the body is closed") }

func newMatchCall(t testing.TB, m MatchCall) *MatchCall {
	t.Helper()
	if err := m.Validate(); err != nil {
		t.Fatal(err)
	}
	m.prepare()
	return &m
}

const callPath = "/postback/v3/event/shop/orders"

// TestMatchCall: what a call is, and its key, follow the handler's rules, wherever the
// key is.
func TestMatchCall(t *testing.T) {
	const header, auth = "X-TD-Write-Key", "Authorization"
	for _, tc := range []struct {
		name, want string // kind, account, database and table; nothing for no call
		r          *http.Request
	}{
		{"post", "post 1234 shop orders", callRequest("POST", callPath+"?td_write_key=1234/ab", 2)},
		{"of unknown length", "post 1234 shop orders", callRequest("POST", callPath+"?td_write_key=1234/ab&a=1", -1)},
		{"get", "get 1234 shop orders", callRequest("GET", callPath+"?td_write_key=1234%2Fab&a=1", 0)},
		{"pixel", "pixel 1234 shop orders", callRequest("GET", callPath+"?td_write_key=1234/ab&td_format=pixel", 0)},
		{"ping", "beacon 1234 shop orders", callRequest("POST", callPath+"?td_write_key=1234/ab&a=1", 4, "Content-Type", "text/ping")},
		{"an empty body", "beacon 1234 shop orders", callRequest("POST", callPath+"?td_write_key=1234/ab&a=1", 0)},
		{"an empty body, no column", "post 1234 shop orders", callRequest("POST", callPath+"?td_write_key=1234/ab", 0)},
		{"jsonp", "jsonp 1234 shop orders", callRequest("GET", "/js/v3/event/shop/orders?api_key=1234/ab&data=e30=", 0)},
		{"js", "js 1234 shop orders", callRequest("POST", "/js/v3/event/shop/orders?api_key=1234/ab", 2)},
		{"k", "k 1234  ", callRequest("POST", "/js/v3/event", 2, header, "1234/ab")},
		{"mobile", "mobile 1234  ", callRequest("POST", "/ios/v3/event/", 2, header, "1234/ab")},
		{"slashes", "post 1234 shop orders", callRequest("POST", "//postback//v3/event/shop/orders/?td_write_key=1234/ab", 2)},

		{"the header wins", "post 5 shop orders", callRequest("POST", callPath+"?td_write_key=1234/ab", 2, header, "5/cd")},
		{"an empty header does not", "post 1234 shop orders", callRequest("POST", callPath+"?td_write_key=1234/ab", 2, header, " ")},
		{"the first header that is not empty", "post 5 shop orders", callRequest("POST", callPath, 2, header, "", header, "5/cd", header, "6/ef")},
		{"Authorization beside a param", "post 1234 shop orders", callRequest("POST", callPath+"?td_write_key=1234/ab", 2, auth, "TD1 5/cd")},
		{"Authorization beside a header", "post 5 shop orders", callRequest("POST", callPath, 2, header, "1234/ab", auth, "td1 5/cd")},
		{"another Authorization", "post 1234 shop orders", callRequest("POST", callPath, 2, header, "1234/ab", auth, "Bearer 5/cd")},
		{"an encoded name", "post 1234 shop orders", callRequest("POST", callPath+"?td%5Fwrite%5Fkey=1234/ab", 2)},
		{"a second param", "post 1234 shop orders", callRequest("POST", callPath+"?td_write_key=1234/ab&td_write_key=5/cd", 2)},
		{"js, Authorization beside api_key", "js 1234 shop orders", callRequest("POST", "/js/v3/event/shop/orders?api_key=1234/ab", 2, auth, "TD1 5/cd")},
		{"js, the header wins", "js 5 shop orders", callRequest("POST", "/js/v3/event/shop/orders?api_key=1234/ab", 2, header, "5/cd")},

		{"no key", "post  shop orders", callRequest("POST", callPath, 2)},
		{"a key that is refused", "post  shop orders", callRequest("POST", callPath+"?td_write_key=1234/", 2)},
		{"a key without an account", "post  shop orders", callRequest("POST", callPath+"?td_write_key=YOUR_KEY", 2)},

		{"another path", "", callRequest("POST", "/healthz?td_write_key=1234/ab", 2)},
		{"a path that is nearly one", "", callRequest("POST", "/postback/v3/event/shop?td_write_key=1234/ab", 2)},
		{"a bad name", "", callRequest("POST", "/postback/v3/event/shop-1/orders?td_write_key=1234/ab", 2)},
		{"a preflight", "", callRequest("OPTIONS", callPath+"?td_write_key=1234/ab", 0)},
		{"another method", "", callRequest("PUT", callPath+"?td_write_key=1234/ab", 2)},
		{"a GET with several events", "", callRequest("GET", "/js/v3/event?api_key=1234/ab", 0)},
	} {
		m := newMatchCall(t, MatchCall{})
		matches := m.Match(tc.r)
		replacer := tc.r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
		got := replacer.ReplaceKnown("{td.kind} {td.account} {td.database} {td.table}", "")
		if matches != (tc.want != "") || matches && got != tc.want || !matches && got[:1] != "{" {
			t.Errorf("%s: matches is %v, %q, want %q", tc.name, matches, got, tc.want)
		}
		key := replacer.ReplaceKnown("{td.key}", "")
		account, _, _ := strings.Cut(strings.TrimPrefix(tc.want, strings.Split(tc.want, " ")[0]+" "), " ")
		if account != "" && !strings.HasPrefix(key, account+"/#") || len(key) > 20 {
			t.Errorf("%s: key %q", tc.name, key)
		}
	}
}

// TestMatchCallShowsNoKeyInThePath: a caller that puts its key into the path has the
// secret for a table. A log shows no more of it than of another key.
func TestMatchCallShowsNoKeyInThePath(t *testing.T) {
	r := callRequest("POST", "/postback/v3/event/1234/feedfacefeedfacefeedfacefeedfacefeedface", 2, "X-TD-Write-Key", "1234/ab")
	if !newMatchCall(t, MatchCall{Table: []string{"feedface*"}}).Match(r) {
		t.Error("it does not match by its table")
	}
	replacer := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	if got := replacer.ReplaceKnown("{td.database} {td.table}", ""); got != "1234 …" {
		t.Errorf("got %q", got)
	}
}

// TestMatchCallOptions: alternatives within an option, and all options together.
func TestMatchCallOptions(t *testing.T) {
	r := func() *http.Request { return callRequest("POST", callPath+"?td_write_key=1234/ab", 2) }
	for _, tc := range []struct {
		m       MatchCall
		matches bool
	}{
		{MatchCall{Kind: []string{"post"}}, true},
		{MatchCall{Kind: []string{"get", "pixel"}}, false},
		{MatchCall{Account: []string{"5", "1234"}}, true},
		{MatchCall{Account: []string{"123", "12345", "01234"}}, false},
		{MatchCall{Database: []string{"shop"}}, true},
		{MatchCall{Database: []string{"sh*"}}, true},
		{MatchCall{Database: []string{"app", "shops*"}}, false},
		{MatchCall{Table: []string{"*"}}, true},
		{MatchCall{Table: []string{"order"}}, false},
		{MatchCall{Kind: []string{"post"}, Account: []string{"1234"}, Database: []string{"shop"}, Table: []string{"ord*"}}, true},
		{MatchCall{Kind: []string{"post"}, Account: []string{"1234"}, Database: []string{"shop"}, Table: []string{"x"}}, false},
	} {
		if got := newMatchCall(t, tc.m).Match(r()); got != tc.matches {
			t.Errorf("%+v: matches is %v", tc.m, got)
		}
	}
	many := callRequest("POST", "/android/v3/event", 2, "X-TD-Write-Key", "1234/ab")
	if newMatchCall(t, MatchCall{Database: []string{"*"}}).Match(many) {
		t.Error("a database in the body is known")
	}
	if newMatchCall(t, MatchCall{Account: []string{"1234"}}).Match(callRequest("POST", callPath, 2)) {
		t.Error("a call without a key has an account")
	}
}

// TestMatchCallShowsTheLast: placeholders follow a request that is changed between two
// matchers, and no key is where all can see it.
func TestMatchCallShowsTheLast(t *testing.T) {
	r := callRequest("POST", callPath+"?td_write_key=1234/abcdef", 2)
	m := newMatchCall(t, MatchCall{Account: []string{"5"}})
	if m.Match(r) {
		t.Error("it matches")
	}
	replacer := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	first := replacer.ReplaceKnown("{td.account} {td.key}", "")
	if want := "1234 " + fingerprintOf("1234/abcdef"); first != want {
		t.Errorf("got %s, want %s", first, want)
	}
	r.Header.Set("X-TD-Write-Key", "5/fedcba")
	if !m.Match(r) {
		t.Error("it does not match")
	}
	if got, want := replacer.ReplaceKnown("{td.account} {td.key}", ""), "5 "+fingerprintOf("5/fedcba"); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	shown := caddyhttp.GetVar(r.Context(), matcherName)
	asJSON, _ := json.Marshal(shown)
	for _, text := range []string{caddy.ToString(shown), fmt.Sprintf("%v %+v", shown, shown), string(asJSON)} {
		if strings.Contains(text, "fedcba") {
			t.Errorf("the key is in %s", text)
		}
	}
}

func TestMatchCallErrors(t *testing.T) {
	const secret = "1234/0123456789abcdef"
	for text, want := range map[string]string{
		"td_call {\n kind pixl\n}":                          `td_call kind "pixl": must be some of post, get, pixel, beacon, jsonp, js, k, mobile (did you mean pixel?)`,
		"td_call {\n kind other\n}":                         `td_call kind "other": must be some of`,
		"td_call {\n account shop\n}":                       `td_call account "shop": must be an account number`,
		"td_call {\n account " + secret + "\n}":             `td_call account "1234/…": must be`,
		"td_call {\n database a.b\n}":                       `td_call database "a.b": must be a name of letters, digits and _, or the beginning of one and *`,
		"td_call {\n table *a\n}":                           `td_call table "*a": must be a name`,
		"td_call {\n accounts 1\n}":                         "accounts is no option of td_call (did you mean account?)",
		"td_call {\n " + secret + "\n}":                     "1234/… is no option of td_call",
		"td_call " + secret:                                 "td_call takes its options in a block: kind, account, database and table",
		"td_call {\n kind post\n kind get\n}":               "td_call kind is set already",
		"td_call {\n kind post\n}\ntd_call {\n kind get\n}": "td_call kind is set already",
		"td_call {\n kind\n}":                               "rong argument count",
	} {
		m := new(MatchCall)
		err := m.UnmarshalCaddyfile(caddyfile.NewTestDispenser(text))
		if err == nil {
			err = m.Validate()
		}
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "0123456789") {
			t.Errorf("%q: got %v, want %s", text, err, want)
		}
	}
	for text, want := range map[string]string{
		`{"kinds":[]}`:       "kinds is no option of td_call (did you mean kind?)",
		`{"kind":"post"}`:    "td_call kind: must be an array of strings, not a string",
		`{"account":[1234]}`: "td_call account: must be an array of strings, not a number",
		`[]`:                 "td_call must be an object with options",
	} {
		if err := json.Unmarshal([]byte(text), new(MatchCall)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %s", text, err, want)
		}
	}
}

// FuzzMatchCall reads any tokens: what is taken is the same in JSON.
func FuzzMatchCall(f *testing.F) {
	f.Add("td_call {\n kind post get\n account 1\n database a*\n table t\n}")
	f.Add("td_call")
	f.Add("td_call {\n}\ntd_call {\n table t\n}")
	f.Fuzz(func(t *testing.T, text string) {
		tokens, err := caddyfile.Tokenize([]byte(text), "Caddyfile")
		if err != nil {
			return
		}
		m := new(MatchCall)
		if m.UnmarshalCaddyfile(caddyfile.NewDispenser(tokens)) != nil || m.Validate() != nil {
			return
		}
		asJSON, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		again := new(MatchCall)
		if err := caddy.StrictUnmarshalJSON(asJSON, again); err != nil || !reflect.DeepEqual(m, again) {
			t.Errorf("%q is %s, and that is %+v, %v", text, asJSON, again, err)
		}
		if written, _ := json.Marshal(again); !bytes.Equal(written, asJSON) {
			t.Errorf("%q is %s, and that is %s", text, asJSON, written)
		}
	})
}

// BenchmarkMatchCall is what the matcher adds to a call, and to a request that is none.
func BenchmarkMatchCall(b *testing.B) {
	m := newMatchCall(b, MatchCall{Account: []string{"1234"}, Database: []string{"shop*"}})
	for name, target := range map[string]string{"call": callPath + "?td_write_key=" + benchKey, "no call": "/healthz"} {
		b.Run(name, func(b *testing.B) {
			r := callRequest("POST", target, 300)
			b.ReportAllocs()
			for b.Loop() {
				if m.Match(r) != (name == "call") {
					b.Fatal()
				}
			}
		})
	}
}
