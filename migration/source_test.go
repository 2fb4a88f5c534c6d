package migration

import (
	"net/netip"
	"strings"
	"testing"
)

var sources = []struct {
	origin, referer, client string
	browser, networks       bool
	want                    string
}{
	{"https://shop.example", "https://other.example/a", "203.0.113.7", true, true, "shop.example"},
	{"https://Shop.Example:8443", "", "203.0.113.7", true, true, "shop.example"},
	{"", "https://shop.example/cart?user=jane#top", "203.0.113.7", true, true, "shop.example"},
	{"null", "https://shop.example", "203.0.113.7", true, true, "shop.example"},
	{"", "https://shop.example?user=jane", "203.0.113.7", true, true, "shop.example"},
	{"http://127.0.0.1:3000", "", "203.0.113.7", true, true, "127.0.0.1"},
	{"http://[2001:db8::1]:3000", "", "203.0.113.7", true, true, "2001:db8::1"},
	{"http://localhost:3000", "", "203.0.113.7", true, true, "localhost"},
	{"chrome-extension://abcdefghijklmnop", "", "203.0.113.7", true, true, "chrome-extension://abcdefghijklmnop"},
	{"", "android-app://com.google.android.gm/", "203.0.113.7", true, true, "android-app://com.google.android.gm"},
	{"https://" + strings.Repeat("x", 100) + ".shop.example", "", "", true, true, "…" + strings.Repeat("x", 48) + ".shop.example"},

	// A browser that does not tell its page has a network.
	{"", "", "203.0.113.7", true, true, "203.0.113.0/24"},
	{"null", "", "203.0.113.7", true, true, "203.0.113.0/24"},
	{"https://jane:secret@shop.example", "", "203.0.113.7", true, true, "203.0.113.0/24"},
	{"https://1234%2F0123456789abcdef", "", "203.0.113.7", true, true, "203.0.113.0/24"},
	{"https://shop example", "", "203.0.113.7", true, true, "203.0.113.0/24"},
	{"http://[secret]", "", "203.0.113.7", true, true, "203.0.113.0/24"},
	{"http://[fe80::1%25secret]", "", "203.0.113.7", true, true, "203.0.113.0/24"},
	{"1234/0123456789abcdef://x", "", "203.0.113.7", true, true, "203.0.113.0/24"},

	// So has what is no browser, whatever it says.
	{"https://shop.example", "https://shop.example/", "203.0.113.7", false, true, "203.0.113.0/24"},
	{"", "", "2001:db8:1234:5678::1", false, true, "2001:db8:1234::/48"},
	{"", "", "fe80::1%eth0", false, true, "fe80::/48"},
	{"", "", "::ffff:203.0.113.7", false, true, "203.0.113.0/24"},
	{"", "", "", false, true, ""},
	{"", "", "@", false, true, ""},

	// Networks are dropped, sites are not.
	{"", "", "203.0.113.7", false, false, ""},
	{"", "", "203.0.113.7", true, false, ""},
	{"https://shop.example", "", "203.0.113.7", true, false, "shop.example"},
}

func TestSource(t *testing.T) {
	for _, test := range sources {
		c := &Call{Origin: test.origin, Referer: test.referer, Client: test.client}
		if got := string(appendSource(nil, c, test.browser, test.networks)); got != test.want {
			t.Errorf("%+v: %q", test, got)
		}
	}
}

func FuzzSource(f *testing.F) {
	for _, test := range sources {
		f.Add(test.origin, test.referer, test.client)
	}
	f.Fuzz(func(t *testing.T, origin, referer, client string) {
		c := &Call{Origin: origin, Referer: referer, Client: client}
		site := string(appendSource(nil, c, true, false))
		expectFit(t, site, maxSource)
		if strings.ContainsAny(site, "@?#% ") {
			t.Errorf("%q is no site", site)
		}
		network := string(appendSource(nil, c, false, true))
		expectFit(t, network, maxSource)
		if network != "" {
			if prefix, err := netip.ParsePrefix(network); err != nil || prefix.Masked() != prefix {
				t.Errorf("%q is no network: %v", network, err)
			}
		}
	})
}
