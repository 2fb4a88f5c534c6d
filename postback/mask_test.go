package postback

import (
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestMaskKeys(t *testing.T) {
	const secret = "0123456789abcdef0123456789abcdef01234567"
	for _, tc := range []struct{ name, in, want string }{
		{"empty", "", ""},
		{"by shape", "key 1234/" + secret + " is wrong", "key 1234/… is wrong"},
		{"upper case", "1234/" + strings.ToUpper(secret), "1234/…"},
		{"escaped slash", "1234%2F" + secret + ",1234%2f" + secret, "1234%2F…,1234%2f…"},
		{"slash escaped twice", "1234%252F" + secret, "1234%252F…"},
		{"slash escaped three times", "1234%25252f" + secret, "1234%25252f…"},
		{"slash escaped as in PHP's JSON", `1234\/` + secret, `1234\/…`},
		{"slash escaped as in JSON", `1234\u002f` + secret, `1234\u002f…`},
		{"escaped digits", "%31234/%30" + secret, "%31234/…"},
		{"in a path", "/postback/v3/event/db/1234/" + secret + "/tbl", "/postback/v3/event/db/1234/…/tbl"},
		{"in a fragment", "https://x.example/#1234/" + secret, "https://x.example/#1234/…"},
		{"behind other digits and slashes", "1/2/" + secret, "1/2/…"},
		{"two", "1234/" + secret + "1235/" + secret, "1234/…/" + secret},
		{"16 digits", "1/0123456789abcdef", "1/…"},
		{"15 digits", "1/0123456789abcde", "1/0123456789abcde"},
		{"no account", "/" + secret, "/" + secret},
		{"letters behind", "1/0123456789abcdefXYZ-_9 on", "1/… on"},
		{"a date", "2026/01/02 15:04", "2026/01/02 15:04"},

		{"TD1", "Authorization: TD1 any-thing", "Authorization: TD1 …"},
		{"TD1 in another case, several blanks", "td1 \t x", "td1 \t …"},
		{"TD1 escaped", "auth=TD1%20a%2Fb&x=1", "auth=TD1%20…"},
		{"TD1 with a plus sign", "TD1+a", "TD1+…"},
		{"TD1 in JSON", `{"authorization":["TD1 a"],"x":1}`, `{"authorization":["TD1 …"],"x":1}`},
		{"TD1 in JSON in JSON", `"{\"a\":\"TD1 a\",\"x\":1}"`, `"{\"a\":\"TD1 …\",\"x\":1}"`},
		{"TD1 behind an escaped line break", `\nTD1 a`, `\nTD1 …`},
		{"TD1 alone", "or as Authorization: TD1", "or as Authorization: TD1"},
		{"another scheme", "TD12 a", "TD12 a"},
		{"two keys in one header", "TD1 a,b c", "TD1 … c"},

		{"td_write_key", "/p?td_write_key=a&b=1", "/p?td_write_key=…&b=1"},
		{"in another case", "TD_Write_Key=a", "TD_Write_Key=…"},
		{"behind a semicolon", "/p?a=1;td_write_key=a", "/p?a=1;td_write_key=…"},
		{"behind &amp;", "/p?a=1&amp;td_write_key=a&amp;b=1", "/p?a=1&amp;td_write_key=…&amp;b=1"},
		{"escaped name", "td%5Fwrite%5fkey=a", "td%5Fwrite%5fkey=…"},
		{"wholly escaped", "%74%64%5f%77%72%69%74%65%5f%6b%65%79=a", "%74%64%5f%77%72%69%74%65%5f%6b%65%79=…"},
		{"URL in a URL", "?u=http%3A%2F%2Fx%3Ftd_write_key%3Da%26b%3D1 x", "?u=http%3A%2F%2Fx%3Ftd_write_key%3D… x"},
		{"api_key", "api_key=a&callback=f", "api_key=…&callback=f"},
		{"X-TD-Write-Key", "X-TD-Write-Key: a\r\nHost: x", "X-TD-Write-Key: …\r\nHost: x"},
		{"Td-Write-Key", "Td-Write-Key: a", "Td-Write-Key: …"},
		{"underscores and dots", "x_td_write_key: a, x.td.write.key: b", "x_td_write_key: …, x.td.write.key: …"},
		{"of the JS SDK", `{writeKey: 'a', database: 'b'}`, `{writeKey: '…', database: 'b'}`},
		{"JSON", `{"X-Td-Write-Key":["a"],"b":"c"}`, `{"X-Td-Write-Key":["…"],"b":"c"}`},
		{"JSON in JSON", `"{\"td_write_key\":\"a\",\"b\":1}"`, `"{\"td_write_key\":\"…\",\"b\":1}"`},
		{"JSON number", `{"api_key":123,"b":1}`, `{"api_key":…,"b":1}`},
		{"Go's map", "map[X-Td-Write-Key:[a] Host:[b]]", "map[X-Td-Write-Key:[… Host:[b]]"},
		{"Ruby's hash", `"api_key"=>"a"`, `"api_key"=>"…"`},
		{"index in the name", "td_write_key[]=a", "td_write_key[]=…"},
		{"no value", "td_write_key=&b=1", "td_write_key=&b=1"},
		{"in a sentence", MissingKey.Message, MissingKey.Message},
		{"another name", "td_write_keys=a&write_keyboard=b", "td_write_keys=a&write_keyboard=b"},
		{"an ampersand in a header's key", "X-TD-Write-Key: a&b", "X-TD-Write-Key: …"},
		{"bytes that are no text", "td_write_key=\xff\x00a b\xff", "td_write_key=… b\xff"},
		{"masked already", "1234/… TD1 … td_write_key=…", "1234/… TD1 … td_write_key=…"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := MaskKeys(tc.in); got != tc.want {
				t.Errorf("got  %q\nwant %q", got, tc.want)
			}
		})
	}
}

// TestMaskLinear: four times the text takes about four times as long, not
// sixteen times.
func TestMaskLinear(t *testing.T) {
	for _, part := range []string{
		"1", "1/", "1/0123456789abcde", "1%2F", "%", "%25", "%2525", `\`, `\u003`, "td1 ", "td1 ,", "td1",
		"write_key", "write_key[", "write_key=", "td_write_key=&", "api_key: ", `"`, "[", "1/0123456789abcdef ",
	} {
		t.Run(part, func(t *testing.T) {
			checkLinear(t, func(n int) func() {
				text := strings.Repeat(part, n/len(part)+1)
				return func() { MaskKeys(text) }
			})
		})
	}
}

// lowerASCII lowers A to Z alone: (?i) also knows the Kelvin sign as a k.
func lowerASCII(s string) string {
	lower := []byte(s)
	for i, c := range lower {
		if 'A' <= c && c <= 'Z' {
			lower[i] = c + 'a' - 'A'
		}
	}
	return string(lower)
}

// FuzzMaskKeys: no key survives, and what has none stays.
func FuzzMaskKeys(f *testing.F) {
	for _, seed := range []string{
		"", "1234/0123456789abcdef0123456789abcdef01234567", "1234%2F0123456789ABCDEF", "Authorization: TD1 a", "td_write_key=a&b=1;api_key:b",
		`{"X-TD-Write-Key":["a"]}`, "%251/%30123456789abcdef0", "td1%20,\\,\"", "12%31/0123456789abcdef", "%2525",
	} {
		f.Add(seed)
	}
	survivors := []*regexp.Regexp{
		regexp.MustCompile(`[0-9](/|%2f|%252f|\\/)[0-9a-f]{16}`),
		regexp.MustCompile(`td1( |\t|\+|%20)[ \t+"'\[\](>]*[^ \t\r\n+"'\[\](>&\\,…%]`),
		regexp.MustCompile(`(td_write_key|api_key|x-td-write-key)[=:][^ \t\r\n+"'\[\](>&\\,…%]`),
	}
	suspects := regexp.MustCompile(`[%\\]|[0-9]/[0-9a-f]{16}|td1[ \t+]|key["'\[\](> \t+]*[=:]`)
	f.Fuzz(func(t *testing.T, in string) {
		out := MaskKeys(in)
		for _, survivor := range survivors {
			if found := survivor.FindString(lowerASCII(out)); found != "" {
				t.Errorf("%q has become %q: %q has survived", in, out, found)
			}
		}
		if out != in && !suspects.MatchString(lowerASCII(in)) {
			t.Errorf("%q has become %q", in, out)
		}
		if again := MaskKeys(out); again != out {
			t.Errorf("%q becomes %q when masked again", out, again)
		}
		if utf8.ValidString(in) && !utf8.ValidString(out) {
			t.Errorf("%q has become %q, which is no UTF-8", in, out)
		}
	})
}

// TestShownNames: names have no secret of a key, which a caller may have put into its path
// in many ways; names of tables stay.
func TestShownNames(t *testing.T) {
	secret := "0123456789abcdef0123456789abcdef01234567"
	for _, tc := range []struct{ to, want Destination }{
		{Destination{"shop", "orders"}, Destination{"shop", "orders"}},
		{Destination{"shop", "t_0123456789abcdef0123456789abcdef"}, Destination{"shop", "t_0123456789abcdef0123456789abcdef"}},
		{Destination{"shop", strings.Repeat("orders_of_", 9)}, Destination{"shop", strings.Repeat("orders_of_", 9)}},
		{Destination{"", "orders_of_the_whole_shop"}, Destination{"", "orders_of_the_whole_shop"}},
		{Destination{"1234", secret}, Destination{"1234", "…"}},
		{Destination{"key_1234", secret[:16] + "_x"}, Destination{"key_1234", "…"}},
		{Destination{"", secret[:16]}, Destination{"", "…"}}, // TD1 1234/…: the database is no name
		{Destination{"", "x_" + secret}, Destination{"", "…"}},
		{Destination{"shop", secret}, Destination{"shop", "…"}},
		{Destination{secret, "orders"}, Destination{"…", "orders"}},
		{Destination{"shop", "1234_" + strings.ToUpper(secret)}, Destination{"shop", "…"}},
		{Destination{"td_write_key_" + secret + "_x", "1234" + secret}, Destination{"…", "…"}},
	} {
		if got := tc.to.Shown(); got != tc.want {
			t.Errorf("%v: got %v", tc.to, got)
		}
	}
}

// TestMayBeSecret: 16 hexadecimal digits in a row are enough, in either case and anywhere.
func TestMayBeSecret(t *testing.T) {
	for text, want := range map[string]bool{
		"": false, "orders": false, "0123456789abcde": false, "0123456789abcde_f": false,
		"0123456789abcdef": true, "x_0123456789ABCDEF": true, "0123456789abcdef01234567/": true, "a-0123456789abcdef": true,
	} {
		if MayBeSecret(text) != want {
			t.Errorf("%q: want %t", text, want)
		}
	}
}
