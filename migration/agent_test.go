package migration

import (
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/td-postback/gateway/postback"
)

var agents = []struct {
	userAgent, family string
	browser           bool
}{
	{"", "", false},
	{"   ", "", false},

	// Clients say their name and version.
	{"python-requests/2.31.0", "python-requests", false},
	{"curl/8.5.0", "curl", false},
	{"curl", "curl", false},
	{"okhttp/4.9.3", "okhttp", false},
	{"okhttp3", "okhttp3", false},
	{"Go-http-client/1.1", "Go-http-client", false},
	{"td-js-sdk/2.5.3", "td-js-sdk", false},
	{"TD-Android-SDK/0.6.0 (Pixel 10)", "TD-Android-SDK", false},
	{"Apache-HttpClient/4.5.13 (Java/1.8.0_292)", "Apache-HttpClient", false},
	{"Java/1.8.0_201", "Java", false},
	{"Java1.6.0_20", "Java", false},
	{"Wget 1.21", "Wget", false},
	{"Wget v1.21", "Wget", false},
	{"tool-1.2.3", "tool", false},
	{"node", "node", false},
	{"axios/1.6.0", "axios", false},
	{"Dalvik/2.1.0 (Linux; U; Android 9; Pixel)", "Dalvik", false},
	{"MyApp/12 CFNetwork/978.0.7 Darwin/18.6.0", "MyApp", false},
	{"My%20App/12 CFNetwork/978.0.7 Darwin/18.6.0", "My App", false},
	{"Microsoft Office/16.0 (Windows NT 10.0)", "Microsoft Office", false},
	{"Amazon CloudFront", "Amazon CloudFront", false},
	{"GuzzleHttp/7", "GuzzleHttp", false},
	{"アプリ/3.1", "アプリ", false},
	{"Google-HTTP-Java-Client/1.21.0 (gzip)", "Google-HTTP-Java-Client", false},
	{"(no name)", "", false},
	{"7zip/1", "", false},

	// Nothing of a key is a name.
	{"1234/0123456789abcdef0123456789abcdef01234567", "", false},
	{"0123456789abcdef0123456789abcdef01234567", "", false},
	{"agent abcdef0123456789abcdef0123456789", "agent", false},
	{"TD1 1234/0123456789abcdef", "", false},
	{"agent TD1 secret", "agent", false},
	{"td_write_key=1234%2F0123456789abcdef", "td_write_key", false},

	// Browsers say the names of others too.
	{"Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36", "Chrome", true},
	{"Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) CriOS/126.0.6478.54 Mobile/15E148 Safari/604.1", "Chrome", true},
	{"Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.5 Safari/605.1.15", "Safari", true},
	{"Mozilla/5.0 (X11; Linux x86_64; rv:127.0) Gecko/20100101 Firefox/127.0", "Firefox", true},
	{"Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) FxiOS/127.0 Mobile/15E148 Safari/605.1.15", "Firefox", true},
	{"Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36 Edg/126.0.0.0", "Edge", true},
	{"Mozilla/5.0 (Windows NT 10.0) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/64.0.3282.140 Safari/537.36 Edge/18.17763", "Edge", true},
	{"Mozilla/5.0 (Windows NT 10.0) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/125.0.0.0 Safari/537.36 OPR/111.0.0.0", "Opera", true},
	{"Opera/9.80 (Windows NT 6.1) Presto/2.12.388 Version/12.18", "Opera", true},
	{"Mozilla/5.0 (Linux; Android 14; SM-S921B) AppleWebKit/537.36 (KHTML, like Gecko) SamsungBrowser/25.0 Chrome/121.0.0.0 Mobile Safari/537.36", "Samsung Internet", true},
	{"Mozilla/5.0 (Windows NT 10.0; WOW64; Trident/7.0; rv:11.0) like Gecko", "Internet Explorer", true},
	{"Mozilla/5.0 (compatible; MSIE 9.0; Windows NT 6.1; Trident/5.0)", "Internet Explorer", true},
	{"Mozilla/5.0 (Linux; Android 9; Pixel 3; wv) AppleWebKit/537.36 (KHTML, like Gecko) Version/4.0 Chrome/126.0.0.0 Mobile Safari/537.36", "Android WebView", true},
	{"Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Mobile/15E148", "Mozilla", true},
	{"Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Mobile/15E148 [FBAN/FBIOS;FBAV/467.0;FBDV/iPhone12,1]", "Facebook", true},
	{"Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Safari Line/14.7.0", "Line", true},
	{"Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) HeadlessChrome/126.0.0.0 Safari/537.36", "HeadlessChrome", true},
	{"Mozilla/5.0", "Mozilla", true},
	{"Mozilla/5.0 (unclosed Chrome/1", "Mozilla", true},

	// An address is somebody's, and no product.
	{"jane.doe@secret.example", "", false},
	{"MyApp jane.doe@secret.example", "MyApp", false},
	{"MyApp%20jane%40secret.example", "MyApp", false},
	{"Mozilla/5.0 (compatible; jane.doe@secret.example)", "Mozilla", true},

	// Robots say the names of browsers.
	{"Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)", "Googlebot", false},
	{"Mozilla/5.0 AppleWebKit/537.36 (KHTML, like Gecko; compatible; Googlebot/2.1; +http://www.google.com/bot.html) Chrome/126.0.0.0 Safari/537.36", "Googlebot", false},
	{"Mozilla/5.0 (compatible; Yahoo! Slurp; http://help.yahoo.com)", "Yahoo! Slurp", false},
}

func readAgent(userAgent string) (family string, browser bool) {
	family, browser = agentFamily(userAgent)
	return string(appendFamily(nil, family)), browser
}

func TestAgentFamily(t *testing.T) {
	for _, test := range agents {
		if family, browser := readAgent(test.userAgent); family != test.family || browser != test.browser {
			t.Errorf("%s: %q, %v; want %q, %v", test.userAgent, family, browser, test.family, test.browser)
		}
	}
}

// Two versions of a client are one row.
func TestAgentFamilyHasNoVersion(t *testing.T) {
	for _, test := range agents {
		for old, changed := range map[string]string{"126": "127", "2.31": "2.32", "8.5": "9.0", "1.8.0": "17.0.2", "17.5": "18.1"} {
			if family, _ := readAgent(strings.ReplaceAll(test.userAgent, old, changed)); family != test.family {
				t.Errorf("%s, in another version: %q, want %q", test.userAgent, family, test.family)
			}
		}
	}
}

// What is remembered of a User-Agent is what is read in it, however many there are, and
// they are not kept without end. Of long ones, what is read decides.
func TestKnownAgents(t *testing.T) {
	var known knownAgents
	for n := range 2*maxKnownAgents + 10 {
		test := agents[n%len(agents)]
		userAgent := fmt.Sprintf("%s x/%d", test.userAgent, n)
		family, browser := readAgent(userAgent)
		for _, userAgent := range []string{userAgent, "  " + userAgent, userAgent} {
			if got := known.of(userAgent); got != (agent{family, browser}) {
				t.Fatalf("%s: got %+v, want %s, %v", userAgent, got, family, browser)
			}
		}
		if len(known.known) > maxKnownAgents {
			t.Fatalf("%d User-Agents", len(known.known))
		}
	}
	long := strings.Repeat("x", maxAgentRead)
	before := known.of(long)
	if n := len(known.known); known.of(long+"y") != before || len(known.known) != n {
		t.Error("what is not read of a User-Agent makes it another one")
	}
}

// expectFit wants a text that may stand in a report.
func expectFit(t *testing.T, text string, limit int) {
	t.Helper()
	if len(text) > limit || !utf8.ValidString(text) || strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		t.Errorf("%q is not fit for a report", text)
	}
	if masked := postback.MaskKeys(text); masked != text {
		t.Errorf("%q has a key", text)
	}
}

func FuzzAgent(f *testing.F) {
	for _, test := range agents {
		f.Add(test.userAgent)
	}
	f.Add("Mozilla/5.0 (\xff; compatible; \xff\xfe/1) \x00 Chrome")
	f.Add(strings.Repeat("é", 300))
	f.Fuzz(func(t *testing.T, userAgent string) {
		family, _ := readAgent(userAgent)
		expectFit(t, family, maxAgent)
		if postback.MayBeSecret(family) {
			t.Errorf("%q has a secret", family)
		}
		if n := testing.AllocsPerRun(1, func() { agentFamily(userAgent) }); n > 0 {
			t.Errorf("%.0f allocations", n)
		}
	})
}

func BenchmarkAgent(b *testing.B) {
	for _, i := range []int{3, 32, 37} {
		b.Run(agents[i].family, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				agentFamily(agents[i].userAgent)
			}
		})
	}
}
