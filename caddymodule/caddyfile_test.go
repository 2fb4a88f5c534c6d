package caddymodule

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

// FuzzCaddyfile reads any tokens: what is taken is the same in JSON, and no
// option is silently as if it were not set.
func FuzzCaddyfile(f *testing.F) {
	for _, seed := range []string{
		"td_postback us01", "td_postback {\n region auto\n max_body 1KB\n redirect_hosts a.example *.b.example\n}", "td_postback us01 {\n retries 0\n pass_thru\n}",
		"td_postback {\n handoff\n pass_thru\n handoff\n}", "td_postback us01 {\n max_body 0\n}", "td_postback us01 {\n dial_timeout 1d\n tls_ca a b\n upstream \"\"\n}", "td_postback {\n region {\n auto\n}\n}",
		"td_postback us01 {\n max_conns 99999999999999999999\n max_buffered 1e3\n response_timeout 1ns\n global_id _x\n}",
		"td_postback us01 {\n keys {\n accounts 1 2\n file /k\n databases a b*\n unknown warn\n}\n}",
		"td_postback us01 {\n report {\n rows 100\n dir /r\n networks none\n}\n}", "td_postback us01 {\n report\n}",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		tokens, err := caddyfile.Tokenize([]byte(text), "Caddyfile")
		if err != nil || len(tokens) == 0 {
			return
		}
		h := new(Handler)
		if h.UnmarshalCaddyfile(caddyfile.NewDispenser(tokens)) != nil {
			return
		}
		asJSON, err := json.Marshal(h)
		if err != nil {
			t.Fatal(err)
		}
		d := json.NewDecoder(bytes.NewReader(asJSON))
		d.DisallowUnknownFields()
		again := new(Handler)
		if err := d.Decode(again); err != nil || !reflect.DeepEqual(toValidConfig(h), toValidConfig(again)) {
			t.Errorf("%q is %s, and that is %+v, %v", text, asJSON, again, err)
		}
		h.applyDefaults()
		if h.Validate() != nil {
			return
		}
		if h.MaxBody < 1 || h.MaxBody > 1_048_064 || h.MaxBuffered < 3<<20 || h.GlobalID == "" {
			t.Errorf("%q: valid with %+v", text, h)
		}
		if !h.Handoff && (h.DialTimeout <= 0 || h.ResponseTimeout <= 0 || h.MaxConns < 1 || *h.Retries < 0 || *h.Retries > 10 || h.Region == "" && h.Upstream == "") {
			t.Errorf("%q: valid with %+v", text, h)
		}
	})
}

// toValidConfig is a configuration as JSON can say it.
func toValidConfig(h *Handler) Handler {
	c := *h
	for _, s := range []*string{&c.Region, &c.Upstream, &c.GlobalID} {
		*s = strings.ToValidUTF8(*s, "\ufffd")
	}
	return c
}

// FuzzCaddyfileOptions writes options down and reads them back.
func FuzzCaddyfileOptions(f *testing.F) {
	f.Add("us01", "http://x.example:8080", "*.shop.example", int64(1048064), int64(5000), 3, 2)
	f.Add("auto", "x", "", int64(0), int64(1), 1, 0)
	f.Add("a b", "{", "\n", int64(1)<<50+1, int64(1), 1, 0)
	f.Add("x", "#", "\"", int64(1), int64(0), 1, 0)
	f.Add("x", "\\", "é", int64(1), int64(1), 0, 0)
	f.Add("x", "x", "x", int64(1), int64(1), 1, -1)
	f.Fuzz(func(t *testing.T, region, upstream, host string, size, millis int64, conns, retries int) {
		for _, s := range []string{region, upstream, host} {
			if !utf8.ValidString(s) || strings.ContainsAny(s, "`\r\ufeff") || strings.Contains(s, "{$") {
				return // these do not stay as they are inside a quoted token either
			}
		}
		text := "td_postback {\nregion `" + region + "`\nupstream `" + upstream + "`\nredirect_hosts `" + host + "` b\nmax_body " + strconv.FormatInt(size, 10) +
			"\ndial_timeout " + strconv.FormatInt(millis, 10) + "ms\nmax_conns " + strconv.Itoa(conns) + "\nretries " + strconv.Itoa(retries) + "\npass_thru\n}"
		tokens, err := caddyfile.Tokenize([]byte(text), "Caddyfile")
		if err != nil {
			t.Fatal(err)
		}
		got := new(Handler)
		err = got.UnmarshalCaddyfile(caddyfile.NewDispenser(tokens))
		allowed := size > 0 && size <= 1<<50 && millis > 0 && millis <= int64(1<<63-1)/int64(time.Millisecond) && conns > 0 && retries >= 0 && region != "" && upstream != ""
		if (err == nil) != allowed {
			t.Errorf("%q: %v", text, err)
		}
		if err != nil {
			return
		}
		want := &Handler{
			Region: region, Upstream: upstream, RedirectHosts: []string{host, "b"}, MaxBody: size,
			DialTimeout: caddy.Duration(millis * int64(time.Millisecond)), MaxConns: conns, Retries: &retries, PassThru: true,
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%q: got %+v, want %+v", text, got, want)
		}
	})
}

// FuzzUpstream checks that an upstream is nothing but a place, and that a
// password in a wrong one is not told.
func FuzzUpstream(f *testing.F) {
	for _, seed := range []string{
		"https://v2.example", "http://[::1]:8080/", "https://v2.example:0", "https://a,b", "https://v2.example/x", "https://v2.example?", "http://v2.example:", "https://%zz", "//v2.example", "https://x\n",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, value string) {
		u, err := parseUpstream(value)
		if err == nil {
			if (u.Scheme != "http" && u.Scheme != "https") || u.Hostname() == "" || strings.ContainsAny(u.Host, "/?#@ \r\n") {
				t.Errorf("%q: %+v", value, u)
			}
			if again, err := parseUpstream(u.String()); err != nil || *again != *u {
				t.Errorf("%q is %q, and that is %v, %v", value, u, again, err)
			}
		}
		scheme, rest, ok := strings.Cut(value, "://")
		if _, err := parseUpstream(scheme + "://user:PASSWORD@" + rest); ok && (err == nil || strings.Contains(err.Error(), "PASSWORD")) {
			t.Errorf("%q with a password: %v", value, err)
		}
	})
}
