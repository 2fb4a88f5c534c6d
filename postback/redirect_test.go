package postback

import (
	"net/url"
	"regexp"
	"strings"
	"testing"
)

func TestRedirectTarget(t *testing.T) {
	hosts := []string{"shop.example.com", "*.example.org", "localhost"}
	for value, want := range map[string]string{
		"https://shop.example.com":                            "https://shop.example.com",
		"http://shop.example.com/":                            "http://shop.example.com/",
		"HTTPS://SHOP.example.COM/A?B=C#D":                    "https://shop.example.com/A?B=C#D",
		"https://shop.example.com:443/x":                      "https://shop.example.com:443/x",
		"http://shop.example.com:80/x":                        "http://shop.example.com:80/x",
		"https://a.example.org/":                              "https://a.example.org/",
		"https://a.b.example.org/":                            "https://a.b.example.org/",
		"http://localhost/":                                   "http://localhost/",
		"https://shop.example.com/a b?c=d e":                  "https://shop.example.com/a%20b?c=d%20e",
		"https://shop.example.com/?q=日":                       "https://shop.example.com/?q=%E6%97%A5",
		"https://shop.example.com/?u=https://evil.test/":      "https://shop.example.com/?u=https://evil.test/",
		"https://shop.example.com/?id=td_global_id&x":         "https://shop.example.com/?id=g%2F1%26&x",
		"https://shop.example.com/td_global_id#td_global_id":  "https://shop.example.com/g%2F1%26#g%2F1%26",
		"https://shop.example.com/%2F%2Fevil.test":            "https://shop.example.com/%2F%2Fevil.test",
		"https://shop.example.com//evil.test":                 "https://shop.example.com//evil.test",
		"https://shop.example.com/?a=%zz;b":                   "https://shop.example.com/?a=%zz;b",
		"https://shop.example.com?x=1":                        "https://shop.example.com?x=1",
		"https://shop.example.com/?next=<script>alert('x')//": "https://shop.example.com/?next=%3Cscript%3Ealert('x')//",
	} {
		if got, ok := RedirectTarget(value, hosts, "g/1&"); !ok || got != want {
			t.Errorf("%q: got %q, %v, want %q", value, got, ok, want)
		}
	}
	if got, _ := RedirectTarget("https://shop.example.com/?id=td_global_id", hosts, ""); got != "https://shop.example.com/?id=" {
		t.Errorf("without an id: %q", got)
	}
	many := "https://shop.example.com/?" + strings.Repeat("td_global_id&", 500)
	if _, ok := RedirectTarget(many, hosts, "1"); !ok {
		t.Error("a target of 6 kB is refused")
	}
	if got, ok := RedirectTarget(many, hosts, strings.Repeat("x", 4000)); ok {
		t.Errorf("a short query became a Location of %d bytes", len(got))
	}
	for _, value := range hostileTargets {
		if got, ok := RedirectTarget(value, hosts, "evil.test"); ok {
			t.Errorf("%q leads to %q", value, got)
		}
		if _, ok := RedirectTarget(value, nil, ""); ok {
			t.Errorf("%q is followed without any host", value)
		}
	}
	if len(hostileTargets) < 40 {
		t.Errorf("only %d hostile targets", len(hostileTargets))
	}
}

// FuzzRedirect checks where a browser is led, by what stands between `//` and
// the end of the authority, and that an honest target leads where it says.
func FuzzRedirect(f *testing.F) {
	for _, seed := range []string{
		"https://shop.example/a?b=td_global_id#c", "http://a.sub.example:80", "https://shop.example:443/", "https://shop.example@evil.example/", `https:\\evil.example`,
		"//evil.example", "https:/evil.example", "https://evil.example?.sub.example", "https://x%2f.sub.example/", "HTTPS://SHOP.example/\u00e9\"<>", "https://shop.example\t/", "javascript://shop.example/%0aalert(1)",
		"https://user@shop.example/", "https://.sub.example/", "https://a'b.sub.example/", `https://shop.example/?\evil.example`,
	} {
		f.Add(seed, "gid&\r\n\"")
	}
	hosts := []string{"shop.example", "*.sub.example"}
	location := regexp.MustCompile(`^(?:http://(?:shop\.example|(?:[a-z0-9-]+\.)+sub\.example)(?::80)?|https://(?:shop\.example|(?:[a-z0-9-]+\.)+sub\.example)(?::443)?)(?:[/?#][!#-;=?-~]*)?$`)
	f.Fuzz(func(t *testing.T, value, globalID string) {
		if got, ok := RedirectTarget(value, hosts, globalID); ok {
			if !location.MatchString(got) || strings.Contains(got, `\`) {
				t.Errorf("%q leads to %q", value, got)
			}
			_, rest, _ := strings.Cut(value, "//")
			if authority := strings.FieldsFunc(rest+"/", func(r rune) bool { return strings.ContainsRune("/?#", r) }); len(authority) > 0 && strings.Contains(authority[0], "@") {
				t.Errorf("%q has a user name and leads to %q", value, got)
			}
			if len(got) > 3*3*maxRedirect { // each byte escaped, and that escaped once more
				t.Errorf("%q: %d bytes", value, len(got))
			}
			if again, ok := RedirectTarget(got, hosts, ""); len(got) <= maxRedirect && !strings.Contains(got, globalIDPlaceholder) && (!ok || again != got) {
				t.Errorf("%q leads to %q, and that to %q, %v", value, got, again, ok)
			}
		} else if got != "" {
			t.Errorf("%q is refused, and leads to %q", value, got)
		}
		text := value[:min(len(value), 500)]
		honest := "https://shop.example/p/" + url.PathEscape(text) + "?q=" + url.QueryEscape(text) + "&id=td_global_id"
		got, ok := RedirectTarget(honest, hosts, globalID[:min(len(globalID), 500)])
		u, err := url.Parse(got)
		if !ok || err != nil {
			t.Fatalf("%q: got %q, %v, %v", honest, got, ok, err)
		}
		if !strings.Contains(text, globalIDPlaceholder) && (u.Path != "/p/"+text || u.Query().Get("q") != text || u.Query().Get("id") != globalID[:min(len(globalID), 500)]) {
			t.Errorf("%q leads to %q", honest, got)
		}
	})
}
