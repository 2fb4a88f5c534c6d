package postback

import (
	"net/url"
	"strings"
	"testing"
)

func TestCutWriteKey(t *testing.T) {
	manyAmpersands := strings.Repeat("&", 10_001)
	for _, tc := range []struct {
		name, query, rest, key string
		invalid                bool
	}{
		{name: "no query", query: ""},
		{name: "only the key", query: "td_write_key=1234/abcd", key: "1234/abcd"},
		{name: "encoded slash", query: "td_write_key=1234%2Fabcd", key: "1234/abcd"},
		{name: "encoded slash, lower case", query: "td_write_key=1234%2fabcd", key: "1234/abcd"},
		{name: "key first", query: "td_write_key=1/a&b=2&c=3", rest: "b=2&c=3", key: "1/a"},
		{name: "key last", query: "b=2&c=3&td_write_key=1/a", rest: "b=2&c=3", key: "1/a"},
		{name: "key in the middle", query: "b=2&td_write_key=1/a&c=3", rest: "b=2&c=3", key: "1/a"},
		{name: "no key", query: "z=1&a=2", rest: "z=1&a=2"},

		{name: "order, escapes and plus signs stay", query: "z=%7e&a=b+c&td_write_key=1/a&m=%20%2B", rest: "z=%7e&a=b+c&m=%20%2B", key: "1/a"},
		{name: "bad escapes elsewhere stay", query: "a=%zz&td_write_key=1/a&b=%", rest: "a=%zz&b=%", key: "1/a"},
		{name: "semicolons elsewhere stay", query: "a=1;b=2&td_write_key=1/a&c;d", rest: "a=1;b=2&c;d", key: "1/a"},
		{name: "a semicolon does not separate", query: "a=1;td_write_key=1/a", rest: "a=1;td_write_key=1/a"},
		{name: "flag without a value stays", query: "flag&td_write_key=1/a&other=", rest: "flag&other=", key: "1/a"},
		{name: "raw bytes above ASCII stay", query: "a=\xe3\x81\x82\xff&td_write_key=1/a", rest: "a=\xe3\x81\x82\xff", key: "1/a"},
		{name: "unencoded URL stays", query: "td_write_key=1/a&page_url=http://x.example/?q=1#top", rest: "page_url=http://x.example/?q=1#top", key: "1/a"},
		{name: "equals signs in a value stay", query: "td_write_key=1/a&a==b=c", rest: "a==b=c", key: "1/a"},
		{name: "empty name stays", query: "=x&td_write_key=1/a", rest: "=x", key: "1/a"},
		{name: "empty pairs between others stay", query: "a=1&&b=2&td_write_key=1/a&", rest: "a=1&&b=2&", key: "1/a"},
		{name: "empty pairs alone go", query: "&&td_write_key=1/a&&", rest: "", key: "1/a"},
		{name: "ampersands alone go", query: "&&&", rest: ""},
		{name: "10,001 ampersands", query: "a=1" + manyAmpersands + "td_write_key=1/a&b=2", rest: "a=1" + manyAmpersands + "b=2", key: "1/a"},

		{name: "the first wins", query: "td_write_key=1/a&td_write_key=2/b", key: "1/a"},
		{name: "the first that is not empty wins", query: "td_write_key=&td_write_key=2/b&x=1", rest: "x=1", key: "2/b"},
		{name: "every one leaves", query: "td_write_key=1/a&x=1&td_write_key=2/b&y=2&td_write_key", rest: "x=1&y=2", key: "1/a"},
		{name: "without equals sign", query: "td_write_key&x=1", rest: "x=1"},
		{name: "empty", query: "td_write_key=", rest: ""},
		{name: "only white space", query: "td_write_key=%20+%09&x", rest: "x"},
		{name: "trimmed", query: "td_write_key=+1/a%20", key: "1/a"},
		{name: "trailing line break", query: "td_write_key=1/a%0D%0A", key: "1/a"},
		{name: "decoded once", query: "td_write_key=1%252Fa", key: "1%2Fa"},
		{name: "equals sign in the key", query: "td_write_key=1/a==", key: "1/a=="},

		{name: "cut at a fragment", query: "td_write_key=1/a#top&x=1", rest: "x=1", key: "1/a"},
		{name: "cut at an encoded number sign", query: "td_write_key=1/a%23top", key: "1/a"},
		{name: "trimmed before the number sign", query: "td_write_key=1/a+%09#top", key: "1/a"},
		{name: "bad escape behind the number sign", query: "td_write_key=1/a#%zz", key: "1/a"},
		{name: "nothing before the number sign", query: "td_write_key=#1/a&td_write_key=+%23&td_write_key=2/b", key: "2/b"},
		{name: "a number sign elsewhere stays", query: "td_write_key=1/a&b=1#top", rest: "b=1#top", key: "1/a"},
		{name: "a key behind a number sign is a key", query: "b=1#&td_write_key=1/a", rest: "b=1#", key: "1/a"},

		{name: "encoded name", query: "td%5Fwrite%5Fkey=1/a&x=1", rest: "x=1", key: "1/a"},
		{name: "encoded letter in the name", query: "x=1&%74d_write_key=1/a", rest: "x=1", key: "1/a"},
		{name: "wholly encoded name", query: "%74%64%5f%77%72%69%74%65%5f%6b%65%79=1/a", key: "1/a"},

		{name: "bad escape in the key", query: "td_write_key=1%zza&x=1", rest: "x=1", invalid: true},
		{name: "cut escape in the key", query: "td_write_key=1/a%2", invalid: true},
		{name: "bad escape first, good key second", query: "td_write_key=%&td_write_key=1/a", invalid: true},
		{name: "good key first, bad escape second", query: "td_write_key=1/a&td_write_key=%", key: "1/a"},

		{name: "other case", query: "TD_WRITE_KEY=1/a", rest: "TD_WRITE_KEY=1/a"},
		{name: "longer name", query: "td_write_keys=1/a", rest: "td_write_keys=1/a"},
		{name: "shorter name", query: "td_write_ke=1/a", rest: "td_write_ke=1/a"},
		{name: "prefixed name", query: "xtd_write_key=1/a", rest: "xtd_write_key=1/a"},
		{name: "indexed name", query: "td_write_key[]=1/a", rest: "td_write_key[]=1/a"},
		{name: "name with a space", query: "td_write_key+=1/a", rest: "td_write_key+=1/a"},
		{name: "name with a bad escape", query: "td_write_key%=1/a", rest: "td_write_key%=1/a"},
		{name: "name encoded twice", query: "td%255Fwrite%255Fkey=1/a", rest: "td%255Fwrite%255Fkey=1/a"},
		{name: "the name as a value", query: "a=td_write_key", rest: "a=td_write_key"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			rest, key := cutWriteKey(tc.query)
			if rest != tc.rest {
				t.Errorf("rest %q, want %q", rest, tc.rest)
			}
			if want := (urlKey{tc.key, tc.invalid}); key != want {
				t.Errorf("key %+v, want %+v", key, want)
			}
		})
	}
}

func TestFindKey(t *testing.T) {
	header := func(values ...string) []string { return values }
	long := strings.Repeat("a", 1024)
	for _, tc := range []struct {
		name           string
		param          urlKey
		header, auth   []string
		wantKey, wantA string
		code           string
	}{
		// the table of the contract, row by row
		{name: "param and header", param: urlKey{key: "1/p"}, header: header("1/h"), wantKey: "1/h"},
		{name: "param and header, Authorization TD1", param: urlKey{key: "1/p"}, header: header("1/h"), auth: header("TD1 1/t"), wantKey: "1/h"},
		{name: "param and header, Authorization Basic", param: urlKey{key: "1/p"}, header: header("1/h"), auth: header("Basic eDp5"), wantKey: "1/h"},
		{name: "param", param: urlKey{key: "1/p"}, wantKey: "1/p"},
		{name: "param, Authorization TD1", param: urlKey{key: "1/p"}, auth: header("TD1 1/t"), wantKey: "1/p"},
		{name: "param, Authorization Bearer", param: urlKey{key: "1/p"}, auth: header("Bearer x"), wantKey: "1/p"},
		{name: "header", header: header("1/h"), wantKey: "1/h"},
		{name: "header, Authorization Basic", header: header("1/h"), auth: header("Basic eDp5"), wantKey: "1/h"},
		{name: "header, Authorization TD1", header: header("1/h"), auth: header("TD1 1/t"), wantKey: "1/h", wantA: "TD1 1/t"},
		{name: "Authorization TD1", auth: header("TD1 1/t"), wantA: "TD1 1/t"},
		{name: "nothing", code: "missing_write_key"},
		{name: "Authorization Basic", auth: header("Basic eDp5"), code: "missing_write_key"},

		{name: "empty header", param: urlKey{key: "1/p"}, header: header(""), wantKey: "1/p"},
		{name: "header of spaces", param: urlKey{key: "1/p"}, header: header(" \t"), wantKey: "1/p"},
		{name: "first header that is not empty", header: header("", "1/h", "1/i"), wantKey: "1/h"},
		{name: "header trimmed", header: header(" 1/h "), wantKey: "1/h"},
		{name: "empty param, empty header", header: header(""), code: "missing_write_key"},
		{name: "empty param, Authorization TD1", param: urlKey{}, auth: header("TD1 1/t"), wantA: "TD1 1/t"},

		{name: "header cut at a number sign", header: header("1/h #top"), wantKey: "1/h"},
		{name: "nothing before the header's number sign", param: urlKey{key: "1/p"}, header: header("#1/h", " # "), wantKey: "1/p"},
		{name: "second header behind a number sign", header: header("#1/h", "1/i"), wantKey: "1/i"},
		{name: "a key in TD1 ends at a number sign", auth: header("TD1 1/t#top"), wantA: "TD1 1/t"},
		{name: "TD1 with a number sign alone", auth: header("TD1 #top"), code: "missing_write_key"},

		{name: "bad header beside TD1", header: header("1/h\xff"), auth: header("TD1 1/t"), wantA: "TD1 1/t"},
		{name: "header with a comma beside TD1", header: header("1/h,1/i"), auth: header("TD1 1/t"), wantA: "TD1 1/t"},
		{name: "long header beside TD1", header: header(long + "a"), auth: header("TD1 1/t"), wantA: "TD1 1/t"},
		{name: "good header beside a bad TD1", header: header("1/h"), auth: header("TD1 1/t,"), code: "invalid_write_key"},
		{name: "bad header beside Basic", header: header("1/h\xff"), auth: header("Basic eDp5"), code: "invalid_write_key"},
		{name: "bad header beside a param", param: urlKey{key: "1/p"}, header: header("1/h\xff"), auth: header("TD1 1/t"), code: "invalid_write_key"},
		{name: "bad param beside a header", param: urlKey{key: "1/p,"}, header: header("1/h"), wantKey: "1/h"},

		{name: "scheme in lower case", auth: header("td1 1/t"), wantA: "TD1 1/t"},
		{name: "scheme in mixed case beside a header", header: header("1/h"), auth: header("Td1 1/t"), wantKey: "1/h", wantA: "TD1 1/t"},
		{name: "several spaces after the scheme", auth: header("TD1   1/t"), wantA: "TD1 1/t"},
		{name: "tab after the scheme", auth: header("TD1\t1/t"), wantA: "TD1 1/t"},
		{name: "scheme without a key", auth: header("TD1"), code: "missing_write_key"},
		{name: "scheme with an empty key", auth: header("TD1  "), code: "missing_write_key"},
		{name: "scheme without a key beside a header", header: header("1/h"), auth: header("TD1"), wantKey: "1/h"},
		{name: "longer scheme", auth: header("TD12 1/t"), code: "missing_write_key"},
		{name: "scheme glued to the key", auth: header("TD1:1/t"), code: "missing_write_key"},
		{name: "second Authorization is TD1", auth: header("Basic eDp5", "TD1 1/t"), wantA: "TD1 1/t"},

		{name: "bad escape in the param", param: urlKey{invalid: true}, code: "invalid_write_key"},
		{name: "bad escape in the param, Authorization TD1", param: urlKey{invalid: true}, auth: header("TD1 1/t"), code: "invalid_write_key"},
		{name: "bad escape in the param, header wins", param: urlKey{invalid: true}, header: header("1/h"), wantKey: "1/h"},
		{name: "param with a line break", param: urlKey{key: "1/p\r\nX-Evil: 1"}, code: "invalid_write_key"},
		{name: "param with a space", param: urlKey{key: "1/p q"}, code: "invalid_write_key"},
		{name: "param with NUL", param: urlKey{key: "1/p\x00"}, code: "invalid_write_key"},
		{name: "param with DEL", param: urlKey{key: "1/p\x7f"}, code: "invalid_write_key"},
		{name: "param above ASCII", param: urlKey{key: "1/ä"}, code: "invalid_write_key"},
		{name: "header with a space", header: header("1/h, 1/i"), code: "invalid_write_key"},
		{name: "header above ASCII", header: header("1/\xff"), code: "invalid_write_key"},
		{name: "TD1 key with a space", auth: header("TD1 1/t x"), code: "invalid_write_key"},
		{name: "param with a comma", param: urlKey{key: "1/p,1/q"}, code: "invalid_write_key"},
		{name: "header with a comma", header: header("1/h,1/i"), code: "invalid_write_key"},
		{name: "param in quotes", param: urlKey{key: `"1/p"`}, code: "invalid_write_key"},
		{name: "param in single quotes", param: urlKey{key: "'1/p'"}, code: "invalid_write_key"},
		{name: "header in quotes", header: header(`"1/h"`), code: "invalid_write_key"},
		{name: "TD1 key in quotes", auth: header(`TD1 "1/t"`), code: "invalid_write_key"},
		{name: "param with nothing behind its slash", param: urlKey{key: "1234/"}, code: "invalid_write_key"},
		{name: "header with nothing behind its slash", header: header("1234/ #"), code: "invalid_write_key"},
		{name: "TD1 key with nothing behind its slash", auth: header("TD1 1234/"), code: "invalid_write_key"},
		{name: "every other visible byte", param: urlKey{key: "!#$%&()*+-./09:;<=>?@AZ[\\]^_`az{|}~"}, wantKey: "!#$%&()*+-./09:;<=>?@AZ[\\]^_`az{|}~"},
		{name: "1,024 bytes", param: urlKey{key: long}, wantKey: long},
		{name: "1,025 bytes", param: urlKey{key: long + "a"}, code: "invalid_write_key"},
		{name: "1,025 bytes in TD1", auth: header("TD1 " + long + "a"), code: "invalid_write_key"},
		{name: "unusual form passes", param: urlKey{key: "not-a-key"}, wantKey: "not-a-key"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, refused := findKey(tc.param, tc.header, tc.auth)
			if tc.code != "" {
				if refused == nil || refused.Code != tc.code {
					t.Fatalf("got %v, want %s", refused, tc.code)
				}
				for _, key := range append(append([]string{tc.param.key}, tc.header...), tc.auth...) {
					if key = strings.TrimPrefix(key, "TD1 "); len(strings.TrimSpace(key)) > 3 && strings.Contains(refused.Message, key) {
						t.Errorf("the message holds the key: %s", refused.Message)
					}
				}
				return
			}
			if refused != nil {
				t.Fatal(refused)
			}
			if got.WriteKey != tc.wantKey || got.Authorization != tc.wantA {
				t.Errorf("got %+v, want %q and %q", got, tc.wantKey, tc.wantA)
			}
			source := KeyHeader
			if tc.wantKey == tc.param.key {
				source = KeyParam
			}
			if tc.wantA != "" { // v2 prefers it
				source = KeyTD1
			}
			if got.Source != source {
				t.Errorf("found in %s, want %s", got.Source, source)
			}
		})
	}
}

// FuzzCutWriteKey holds the promise of the product: the key never survives in
// the URL, every other byte does.
func FuzzCutWriteKey(f *testing.F) {
	for _, seed := range []string{
		"", "td_write_key=1234/abcd", "a=1&td_write_key=1%2Fa&b=%zz", "td%5Fwrite%5Fkey=1&&", "&td_write_key&", "a=1;td_write_key=2", "%74d_write_key=%00",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, query string) {
		rest, key := cutWriteKey(query)
		var kept []string
		first, found := urlKey{}, false
		for param := range strings.SplitSeq(query, "&") {
			name, value, _ := strings.Cut(param, "=")
			if decoded, err := url.QueryUnescape(name); err != nil || decoded != "td_write_key" {
				kept = append(kept, param)
				continue
			}
			value, _, _ = strings.Cut(value, "#")
			decoded, err := url.QueryUnescape(value)
			decoded, _, _ = strings.Cut(decoded, "#")
			if decoded = strings.Trim(decoded, " \t\r\n"); !found && (err != nil || decoded != "") {
				first, found = urlKey{decoded, err != nil}, true
			}
		}
		want := strings.Join(kept, "&")
		if strings.Trim(want, "&") == "" {
			want = ""
		}
		if rest != want {
			t.Errorf("%q: kept %q, want %q", query, rest, want)
		}
		if key != first {
			t.Errorf("%q: key %+v, want %+v", query, key, first)
		}
		if again, key := cutWriteKey(rest); again != rest || key != (urlKey{}) {
			t.Errorf("%q: not stable", query)
		}
	})
}

// FuzzKey compares with the table in docs/requests.md.
func FuzzKey(f *testing.F) {
	f.Add("1234%2Fabcd", "", "", "Basic x", "")
	f.Add("", "", "5/e", "td1\t 1/a", "TD1 2/b")
	f.Add("%zz", " 1/a ", "", "TD1 x y", "")
	f.Add("a+b", "", "", "TD1", "TD1 \v")
	f.Add("%00", "\t", "1/a\x7f", "TD12 x", "TD1 1/a")
	f.Add("1/a%23#%", "#", "1/,", "TD1 1/t", "")
	f.Add("", "1/", "", "TD1 1/'", "")
	f.Add("", "0", "", "TD1 1/a#\x00", "TD1 #")
	f.Fuzz(func(t *testing.T, value, header1, header2, auth1, auth2 string) {
		trim := func(s string) string { return strings.Trim(s, " \t\r\n") }
		cut := func(s string) string { return trim(strings.SplitN(s, "#", 2)[0]) }
		param, err := url.QueryUnescape(strings.SplitN(value, "#", 2)[0])
		badParam := err != nil
		param = cut(param)
		header := cut(header1)
		if header == "" {
			header = cut(header2)
		}
		td1 := ""
		for _, auth := range []string{auth2, auth1} { // the first one stays
			auth = cut(auth)
			scheme, key, _ := strings.Cut(strings.ReplaceAll(auth, "\t", " "), " ")
			if strings.ToUpper(scheme) == "TD1" && trim(key) != "" {
				td1 = trim(auth[len("TD1"):])
			}
		}
		var want Credentials
		bad := func(key string) bool {
			return len(key) > 1024 || strings.ContainsFunc(key, func(r rune) bool { return r <= ' ' || r > '~' || r == ',' || r == '"' || r == '\'' }) ||
				strings.Index(key, "/") == len(key)-1
		}
		code := ""
		switch hasParam := param != "" || badParam; {
		case hasParam && header == "":
			want = Credentials{WriteKey: param, Source: KeyParam}
		case hasParam || td1 == "":
			want = Credentials{WriteKey: header, Source: KeyHeader}
		case bad(header):
			want = Credentials{Authorization: "TD1 " + td1, Source: KeyTD1}
		default:
			want = Credentials{WriteKey: header, Authorization: "TD1 " + td1, Source: KeyTD1}
		}
		switch used := want.WriteKey; {
		case want == Credentials{Source: KeyHeader}:
			code, want = "missing_write_key", Credentials{}
		case want.Source == KeyParam && badParam, want.Source != KeyTD1 && bad(used), want.Source == KeyTD1 && bad(td1):
			code = "invalid_write_key"
		}
		got, refused := findKey(decodeKey(value), []string{header1, header2}, []string{auth1, auth2})
		switch {
		case code == "" && (refused != nil || got != want):
			t.Errorf("got %+v, %v, want %+v", got, refused, want)
		case code != "" && (refused == nil || refused.Code != code || got != (Credentials{Source: want.Source})):
			t.Errorf("got %+v, %v, want %s", got, refused, code)
		}
	})
}
