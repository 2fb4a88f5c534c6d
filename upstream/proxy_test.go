package upstream

import (
	"net"
	"net/url"
	"strings"
	"testing"
	"unicode/utf8"

	"golang.org/x/net/http/httpproxy"
)

// TestProxyFor reads the environment. What cannot be parsed is an error, and
// never a direct connection; the error names the variable and tells no password.
func TestProxyFor(t *testing.T) {
	const https, http = "https://v2.example", "http://v2.example"
	for _, tc := range []struct {
		name string
		env  string // NAME=value, separated by spaces
		url  string
		want string // the proxy
		err  string // what the error names
	}{
		{name: "none", url: https},
		{name: "a URL", env: "HTTPS_PROXY=http://proxy.example:3128", url: https, want: "http://proxy.example:3128"},
		{name: "a slash behind it", env: "HTTPS_PROXY=http://proxy.example:3128/", url: https, want: "http://proxy.example:3128/"},
		{name: "without a scheme", env: "HTTPS_PROXY=proxy.example:3128", url: https, want: "http://proxy.example:3128"},
		{name: "a user", env: "HTTPS_PROXY=http://user:s%40cret@proxy.example:3128", url: https, want: "http://user:s%40cret@proxy.example:3128"}, //nolint:gosec // G101: it is a test's
		{name: "a user without a scheme", env: "HTTPS_PROXY=user:secret@proxy.example", url: https, want: "http://user:secret@proxy.example"},     //nolint:gosec // G101: it is a test's
		{name: "an IPv6 address", env: "HTTPS_PROXY=http://[2001:db8::1]:3128", url: https, want: "http://[2001:db8::1]:3128"},
		{name: "SOCKS", env: "HTTPS_PROXY=socks5://proxy.example", url: https, want: "socks5://proxy.example"},
		{name: "SOCKS that looks names up", env: "HTTPS_PROXY=socks5h://proxy.example", url: https, want: "socks5h://proxy.example"},
		{name: "a small letter's wins", env: "HTTPS_PROXY=http://a.example https_proxy=http://b.example", url: https, want: "http://b.example"},
		{name: "http has its own", env: "HTTP_PROXY=http://a.example HTTPS_PROXY=http://b.example", url: http, want: "http://a.example"},
		{name: "http, in small letters", env: "http_proxy=http://a.example", url: http, want: "http://a.example"},
		{name: "the other's is not looked at", env: "HTTP_PROXY=http://[", url: https},
		{name: "never for this machine", env: "HTTP_PROXY=http://a.example", url: "http://127.0.0.1:8080"},
		{name: "NO_PROXY", env: "HTTPS_PROXY=http://a.example NO_PROXY=.example", url: https},
		{name: "no_proxy", env: "HTTPS_PROXY=http://a.example no_proxy=10.0.0.0/8,v2.example:443", url: https},
		{name: "NO_PROXY of all", env: "HTTPS_PROXY=http://a.example NO_PROXY=*", url: https},
		{name: "NO_PROXY of others", env: "HTTPS_PROXY=http://a.example NO_PROXY=localhost,.svc,*.test,10.0.0.1,10.0.0.1:80,::1,[::1]:80,2001:db8::/32,bücher.example,,x_y.example", url: https, want: "http://a.example"},
		{name: "NO_PROXY without a proxy", env: "NO_PROXY=http://[", url: https},

		{name: "no closing bracket", env: "HTTPS_PROXY=http://[::1", url: https, err: "HTTPS_PROXY"},
		{name: "no host", env: "HTTPS_PROXY=http://", url: https, err: "HTTPS_PROXY"},
		{name: "a port alone", env: "HTTPS_PROXY=:3128", url: https, err: "HTTPS_PROXY"},
		{name: "no number", env: "HTTPS_PROXY=http://proxy.example:port", url: https, err: "HTTPS_PROXY"},
		{name: "too large a port", env: "HTTPS_PROXY=http://proxy.example:70000", url: https, err: "HTTPS_PROXY"},
		{name: "no escape", env: "HTTPS_PROXY=http://user:se%cret@proxy.example", url: https, err: "https_proxy"}, //nolint:gosec // G101: it is a test's
		{name: "a slash in the password", env: "HTTPS_PROXY=http://user:1/secret@proxy.example", url: https, err: "HTTPS_PROXY"},
		{name: "a hash in the password", env: "HTTPS_PROXY=http://user:1#secret@proxy.example", url: https, err: "HTTPS_PROXY"},
		{name: "a question mark in the password", env: "HTTPS_PROXY=http://user:1?secret@proxy.example", url: https, err: "HTTPS_PROXY"},
		{name: "over TLS", env: "HTTPS_PROXY=https://proxy.example", url: https, err: "HTTPS_PROXY"},
		{name: "another scheme", env: "HTTPS_PROXY=ftp://proxy.example", url: https, err: "HTTPS_PROXY"},
		{name: "a slash too few", env: "HTTPS_PROXY=http:/proxy.example:3128", url: https, err: "HTTPS_PROXY"},
		{name: "two schemes", env: "HTTPS_PROXY=http://http://proxy.example", url: https, err: "HTTPS_PROXY"},
		{name: "two proxies", env: "HTTPS_PROXY=a.example,b.example", url: https, err: "HTTPS_PROXY"},
		{name: "half an address", env: "HTTPS_PROXY=http://10.0.0:3128", url: https, err: "HTTPS_PROXY"},
		{name: "http", env: "HTTP_PROXY=http://[::1", url: http, err: "HTTP_PROXY"},
		{name: "small letters", env: "https_proxy=http://[::1 HTTPS_PROXY=http://a.example", url: https, err: "https_proxy"},
		{name: "even for this machine", env: "HTTP_PROXY=http://[::1", url: "http://127.0.0.1", err: "HTTP_PROXY"},
		{name: "a CGI program", env: "HTTP_PROXY=http://a.example REQUEST_METHOD=GET", url: http, err: "REQUEST_METHOD"},
		{name: "NO_PROXY with a URL", env: "HTTPS_PROXY=http://a.example NO_PROXY=http://v2.example", url: https, err: "http://v2.example"},
		{name: "NO_PROXY with semicolons", env: "HTTPS_PROXY=http://a.example NO_PROXY=a.example;v2.example", url: https, err: "a.example;v2.example"},
		{name: "NO_PROXY with a bad network", env: "HTTPS_PROXY=http://a.example NO_PROXY=10.0.0.0/33", url: https, err: "10.0.0.0/33"},
		{name: "NO_PROXY with half an address", env: "HTTPS_PROXY=http://a.example NO_PROXY=10.0.0", url: https, err: "10.0.0"},
		{name: "NO_PROXY with a star in it", env: "HTTPS_PROXY=http://a.example NO_PROXY=10.0.0.*", url: https, err: "10.0.0.*"},
		{name: "NO_PROXY with a star before it", env: "HTTPS_PROXY=http://a.example NO_PROXY=*v2.example", url: https, err: "*v2.example"},
		{name: "NO_PROXY with a bracket", env: "HTTPS_PROXY=http://a.example NO_PROXY=[::1]", url: https, err: "[::1]"},
		{name: "NO_PROXY with a port alone", env: "HTTPS_PROXY=http://a.example NO_PROXY=:80", url: https, err: ":80"},
		{name: "NO_PROXY with a port's name", env: "HTTPS_PROXY=http://a.example NO_PROXY=v2.example:https", url: https, err: "v2.example:https"},
		{name: "NO_PROXY with a user", env: "HTTPS_PROXY=http://a.example NO_PROXY=user:secret@v2.example", url: https, err: "v2.example"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "REQUEST_METHOD"} {
				t.Setenv(name, "")
				t.Setenv(strings.ToLower(name), "")
			}
			for pair := range strings.FieldsSeq(tc.env) {
				name, value, _ := strings.Cut(pair, "=")
				t.Setenv(name, value)
			}
			u, err := url.Parse(tc.url)
			if err != nil {
				t.Fatal(err)
			}
			got, err := proxyFor(u)
			switch {
			case tc.err != "":
				if err == nil || !strings.Contains(err.Error(), tc.err) {
					t.Fatalf("got %v, %v", got, err)
				}
				if strings.Contains(err.Error(), "secret") {
					t.Errorf("it tells the password: %v", err)
				}
			case err != nil:
				t.Error(err)
			case got == nil && tc.want != "", got != nil && got.String() != tc.want:
				t.Errorf("got %v, want %s", got, tc.want)
			}
		})
	}
}

// FuzzProxy compares with httpproxy, which says nothing of what it cannot
// parse: what is taken here it takes in the same way.
func FuzzProxy(f *testing.F) {
	for _, seed := range []string{
		"http://proxy.example:3128", "user:secret@proxy.example", "socks5://[::1]:1080/", "http://[::1", "http:/a", "a,b", "", "://", "http://a%00b", "HTTP://A",
	} {
		f.Add(seed, "")
		f.Add("http://proxy.example", seed)
	}
	for _, seed := range []string{"*", ".example", "*.example", "10.0.0.0/8", "10.0.0.1:80", "[::1]:443", "::1", ":80", "a:b", "*.*", "[]:80", "é.example"} {
		f.Add("http://proxy.example", seed)
	}
	f.Fuzz(func(t *testing.T, value, entry string) {
		if got := parseProxy(value); got != nil {
			env := httpproxy.Config{HTTPSProxy: value}
			want, err := env.ProxyFunc()(&url.URL{Scheme: "https", Host: "v2.example"})
			if err != nil || want == nil || *want != *got && want.String() != got.String() {
				t.Errorf("%q: got %v, httpproxy reads %v, %v", value, got, want, err)
			}
			if got.Hostname() == "" {
				t.Errorf("%q: no host", value)
			}
		}
		if entry == "" || strings.ContainsAny(entry, "/%") || strings.Contains(entry+":", ".:") || !validNoProxy(entry) {
			return // a network, a zone, a name with its last dot: httpproxy knows only the first
		}
		host := strings.ToLower(entry)
		switch {
		case strings.IndexFunc(host, func(r rune) bool { return r >= utf8.RuneSelf }) >= 0:
			return // it compares in another form
		case net.ParseIP(host) != nil:
			host = net.JoinHostPort(host, "443")
		case host[0] == '.' || host[0] == '*':
			host = "x" + strings.TrimPrefix(host, "*")
		}
		env := httpproxy.Config{HTTPSProxy: "http://proxy.example", NoProxy: entry}
		if got, err := env.ProxyFunc()(&url.URL{Scheme: "https", Host: host}); err != nil || got != nil {
			t.Errorf("%s goes by the proxy, in spite of %q", host, entry)
		}
	})
}
