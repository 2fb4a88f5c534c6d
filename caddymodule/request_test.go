package caddymodule

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
)

func TestParsePath(t *testing.T) {
	const wrongName = "must be letters, digits and _"
	for _, tc := range []struct {
		name, path string
		want       destination
		code, says string // of the refusal
	}{
		{name: "canonical", path: "/postback/v3/event/db/tbl", want: destination{"db", "tbl"}},
		{name: "every allowed byte", path: "/postback/v3/event/aZ09_/_", want: destination{"aZ09_", "_"}},
		{name: "trailing slash", path: "/postback/v3/event/db/tbl/", want: destination{"db", "tbl"}},
		{name: "leading run of slashes", path: "///postback/v3/event/db/tbl", want: destination{"db", "tbl"}},
		{name: "runs of slashes everywhere", path: "//postback///v3//event/db////tbl", want: destination{"db", "tbl"}},
		{name: "trailing run of slashes", path: "/postback/v3/event/db/tbl//", want: destination{"db", "tbl"}},

		{name: "root", path: "/", code: "not_found"},
		{name: "empty", path: "", code: "not_found"},
		{name: "asterisk", path: "*", code: "not_found"},
		{name: "only looks like the prefix", path: "/postbacks/v3/event/db/tbl", code: "not_found"},
		{name: "prefix without slash", path: "/postback", code: "not_found"},
		{name: "other case", path: "/Postback/v3/event/db/tbl", code: "not_found"},
		{name: "prefix further in", path: "/x/postback/v3/event/db/tbl", code: "not_found"},
		{name: "javascript surface", path: "/js/v3/event/db/tbl", code: "not_found"},

		{name: "nothing after the prefix", path: "/postback/", code: "invalid_path", says: "start with /postback/v3/event/"},
		{name: "other version", path: "/postback/v4/event/db/tbl", code: "invalid_path", says: "start with /postback/v3/event/"},
		{name: "no event", path: "/postback/v3/db/tbl", code: "invalid_path", says: "start with /postback/v3/event/"},
		{name: "neither name", path: "/postback/v3/event/", code: "invalid_path", says: "database name"},
		{name: "no table", path: "/postback/v3/event/db", code: "invalid_path", says: "table name is missing"},
		{name: "no table, slash", path: "/postback/v3/event/db/", code: "invalid_path", says: "table name is missing"},
		{name: "one part too many", path: "/postback/v3/event/db/tbl/x", code: "invalid_path", says: "nothing may follow"},
		{name: "hyphen in database", path: "/postback/v3/event/my-db/tbl", code: "invalid_path", says: "database name " + wrongName},
		{name: "dot in table", path: "/postback/v3/event/db/t.b", code: "invalid_path", says: "table name " + wrongName},
		{name: "dot segments", path: "/postback/v3/event/../tbl", code: "invalid_path", says: "database name"},
		{name: "space in table", path: "/postback/v3/event/db/t b", code: "invalid_path", says: "table name"},
		{name: "not ASCII", path: "/postback/v3/event/db/täbel", code: "invalid_path", says: "table name"},
		{name: "line break", path: "/postback/v3/event/db/t\r\nX: y", code: "invalid_path", says: "table name"},
		{name: "query behind an ampersand", path: "/postback/v3/event/db/tbl&td_write_key=1", code: "invalid_path", says: "table name"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, refused := parsePath(tc.path)
			if tc.code != "" {
				if refused == nil || refused.code != tc.code || !strings.Contains(refused.message, tc.says) {
					t.Fatalf("got %v, want %s with %q", refused, tc.code, tc.says)
				}
				return
			}
			if refused != nil || got != tc.want {
				t.Fatalf("got %v, %v", got, refused)
			}
		})
	}
}

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
		{name: "every visible byte", param: urlKey{key: "!\"#$%&'()*+,-./09:;<=>?@AZ[\\]^_`az{|}~"}, wantKey: "!\"#$%&'()*+,-./09:;<=>?@AZ[\\]^_`az{|}~"},
		{name: "1,024 bytes", param: urlKey{key: long}, wantKey: long},
		{name: "1,025 bytes", param: urlKey{key: long + "a"}, code: "invalid_write_key"},
		{name: "1,025 bytes in TD1", auth: header("TD1 " + long + "a"), code: "invalid_write_key"},
		{name: "unusual form passes", param: urlKey{key: "not-a-key"}, wantKey: "not-a-key"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, refused := findKey(tc.param, tc.header, tc.auth)
			if tc.code != "" {
				if refused == nil || refused.code != tc.code {
					t.Fatalf("got %v, want %s", refused, tc.code)
				}
				for _, key := range append(append([]string{tc.param.key}, tc.header...), tc.auth...) {
					if key = strings.TrimPrefix(key, "TD1 "); len(strings.TrimSpace(key)) > 3 && strings.Contains(refused.message, key) {
						t.Errorf("the message holds the key: %s", refused.message)
					}
				}
				return
			}
			if refused != nil {
				t.Fatal(refused)
			}
			if got.writeKey != tc.wantKey || got.authorization != tc.wantA {
				t.Errorf("got %+v, want %q and %q", got, tc.wantKey, tc.wantA)
			}
			source := keyHeader
			if tc.wantKey == tc.param.key {
				source = keyParam
			}
			if tc.wantA != "" { // v2 prefers it
				source = keyTD1
			}
			if got.source != source {
				t.Errorf("found in %s, want %s", got.source, source)
			}
		})
	}
}

func TestUsualKey(t *testing.T) {
	for key, want := range map[string]bool{
		"1234/0123456789abcdef0123456789abcdef01234567": true,
		"1/A": true,
		"":    false, "/": false, "1234": false, "1234/": false, "/abcd": false,
		"12x4/abcd": false, "1234/abcg": false, "1234/ab/cd": false, "1234%2Fabcd": false, " 1234/abcd": false,
	} {
		if got := usualKey(key); got != want {
			t.Errorf("%q: got %t", key, got)
		}
	}
}

func TestContentType(t *testing.T) {
	const json = "application/json"
	for _, tc := range []struct {
		name string
		sent []string
		body string
		want string
	}{
		{"absent", nil, `{"a":1}`, json},
		{"empty", []string{""}, `{}`, json},
		{"curl -d", []string{"application/x-www-form-urlencoded"}, `{"a":1}`, json},
		{"sendBeacon with a string", []string{"text/plain;charset=UTF-8"}, `{"a":1}`, json},
		{"form with a charset", []string{"application/x-www-form-urlencoded; charset=utf-8"}, `{"a":1}`, json},
		{"upper case", []string{"TEXT/PLAIN"}, `{"a":1}`, json},
		{"space before the semicolon", []string{" text/plain ; x=y"}, `{"a":1}`, json},
		{"white space before the brace", []string{"text/plain"}, " \t\r\n{}", json},
		{"json stays", []string{json}, `{}`, json},
		{"json with a stray semicolon stays", []string{"application/json;"}, `{}`, "application/json;"},
		{"json with a charset stays", []string{"application/json; charset=utf-8"}, `{}`, "application/json; charset=utf-8"},
		{"text around no object stays", []string{"text/plain"}, `hello`, "text/plain"},
		{"form around a form stays", []string{"application/x-www-form-urlencoded"}, `a=1`, "application/x-www-form-urlencoded"},
		{"text around an array stays", []string{"text/plain"}, `[{}]`, "text/plain"},
		{"absent around no object stays absent", nil, `[1]`, ""},
		{"absent around nothing stays absent", nil, ``, ""},
		{"other text stays", []string{"text/html"}, `{}`, "text/html"},
		{"multipart stays", []string{"multipart/form-data; boundary=x"}, `{}`, "multipart/form-data; boundary=x"},
		{"byte order mark is no white space", []string{"text/plain"}, "\ufeff{}", "text/plain"},
		{"compressed stays", []string{"text/plain"}, "\x1f\x8b{", "text/plain"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, changed := contentType(tc.sent, []byte(tc.body))
			if got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
			if sent := strings.Join(tc.sent, ""); changed != (got != sent) {
				t.Errorf("changed is %v, from %q to %q", changed, sent, got)
			}
		})
	}
}

// headLines splits a head into its request line and its sorted fields.
func headLines(t testing.TB, head []byte) (line string, fields []string) {
	t.Helper()
	text, ok := strings.CutSuffix(string(head), "\r\n\r\n")
	if !ok {
		t.Fatalf("the head does not end with an empty line: %q", head)
	}
	lines := strings.Split(text, "\r\n")
	slices.Sort(lines[1:])
	return lines[0], lines[1:]
}

func TestAppendHead(t *testing.T) {
	base := func(change func(*v2Request)) v2Request {
		q := v2Request{host: "us01.records.in.treasuredata.com", destination: destination{"db", "tbl"}, body: []byte("{}"), header: http.Header{}}
		q.credentials.writeKey = "1/a"
		change(&q)
		return q
	}
	const (
		host   = "Host: us01.records.in.treasuredata.com"
		length = "Content-Length: 2"
		key    = "X-TD-Write-Key: 1/a"
		line   = "POST /postback/v3/event/db/tbl HTTP/1.1"
	)
	for _, tc := range []struct {
		name   string
		change func(*v2Request)
		line   string
		fields []string
	}{
		{"least", func(*v2Request) {}, line, []string{length, host, key}},
		{"query", func(q *v2Request) { q.query = "a=%7e&b=;c" }, "POST /postback/v3/event/db/tbl?a=%7e&b=;c HTTP/1.1", []string{length, host, key}},
		{
			"a space in the query cannot end the request line",
			func(q *v2Request) { q.query = "a=b c\x7f" },
			"POST /postback/v3/event/db/tbl?a=b%20c%7F HTTP/1.1",
			[]string{length, host, key},
		},
		{"authorization", func(q *v2Request) { q.credentials = credentials{authorization: "TD1 1/t"} }, line, []string{"Authorization: TD1 1/t", length, host}},
		{
			"the caller's headers stay",
			func(q *v2Request) {
				q.header = http.Header{"User-Agent": {"x/1"}, "Content-Encoding": {"gzip"}, "X-Multi": {"1", "2"}, "Content-Type": {"a/b"}, "Accept": {""}}
			},
			line,
			[]string{"Accept: ", "Content-Encoding: gzip", length, "Content-Type: a/b", host, "User-Agent: x/1", "X-Multi: 1", "X-Multi: 2", key},
		},
		{
			"a new content type replaces the caller's",
			func(q *v2Request) {
				q.header, q.contentType = http.Header{"Content-Type": {"text/plain"}}, "application/json"
			},
			line,
			[]string{length, "Content-Type: application/json", host, key},
		},
		{
			"hop-by-hop headers, cookies, Expect and old keys go",
			func(q *v2Request) {
				q.header = http.Header{}
				for _, name := range []string{
					"Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Proxy-Connection", "Te", "Trailer",
					"Transfer-Encoding", "Upgrade", "Http2-Settings", "Cookie", "Expect", "X-Td-Write-Key", "Authorization", "Content-Length", "Host",
				} {
					q.header[name] = []string{"x"}
				}
			},
			line,
			[]string{length, host, key},
		},
		{
			"what Connection names goes, but never the key",
			func(q *v2Request) {
				q.header = http.Header{"Connection": {"close, x-hop", "X-TD-Write-Key"}, "X-Hop": {"1"}, "X-Stays": {"1"}}
			},
			line,
			[]string{length, host, "X-Stays: 1", key},
		},
		{
			"forwarded headers are the gateway's",
			func(q *v2Request) {
				q.header = http.Header{"X-Forwarded-For": {"6.6.6.6"}, "X-Forwarded-Proto": {"gopher"}, "X-Forwarded-Host": {"evil"}, "Via": {"x"}}
				q.forwarded = forwarded{clientIP: "192.0.2.1", proto: "http", host: "in.treasuredata.com", via: "x, 1.1 Caddy"}
			},
			line,
			[]string{length, host, "Via: x, 1.1 Caddy", "X-Forwarded-For: 192.0.2.1", "X-Forwarded-Host: in.treasuredata.com", "X-Forwarded-Proto: http", key},
		},
		{"early data", func(q *v2Request) { q.forwarded.earlyData = true }, line, []string{length, "Early-Data: 1", host, key}},
		{
			"a line break from another handler is no line break",
			func(q *v2Request) { q.header = http.Header{"X-Other": {"a\r\nX-Evil: 1\x00"}} },
			line,
			[]string{length, host, "X-Other: a  X-Evil: 1 ", key},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			q := base(tc.change)
			line, fields := headLines(t, q.appendHead(nil))
			if line != tc.line {
				t.Errorf("request line %q, want %q", line, tc.line)
			}
			if !slices.Equal(fields, tc.fields) {
				t.Errorf("fields\n%q, want\n%q", fields, tc.fields)
			}
		})
	}
}

func TestRegionOf(t *testing.T) {
	for host, want := range map[string]string{
		"in.treasuredata.com":              "us01",
		"tokyo.in.treasuredata.com":        "ap01",
		"eu01.in.treasuredata.com":         "eu01",
		"ap02.in.treasuredata.com":         "ap02",
		"ap03.in.treasuredata.com":         "ap03",
		"in.treasuredata.com:80":           "us01",
		"In.TreasureData.COM":              "us01",
		"in.treasuredata.com.":             "us01",
		"TOKYO.in.treasuredata.com.:8080":  "ap01",
		"":                                 "",
		"localhost":                        "",
		"us01.records.in.treasuredata.com": "",
		"xin.treasuredata.com":             "",
		"in.treasuredata.com.evil.example": "",
		"us01.in.treasuredata.com":         "",
		"[::1]:80":                         "",
	} {
		if got, ok := regionOf(host); got != want || ok != (want != "") {
			t.Errorf("%q: got %q, %v", host, got, ok)
		}
	}
}

func TestV2Hosts(t *testing.T) {
	for _, region := range []string{"us01", "ap01", "eu01", "ap02", "ap03"} {
		if want := region + ".records.in.treasuredata.com"; v2Host(region) != want {
			t.Errorf("%s: got %s", region, v2Host(region))
		}
		if legacyHosts[region] == "" {
			t.Errorf("%s has no legacy host", region)
		}
	}
	if len(legacyHosts) != 5 {
		t.Errorf("%d regions", len(legacyHosts))
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
			decoded, err := url.QueryUnescape(value)
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

// FuzzHead checks that no input can break out of its header or of the request
// line.
func FuzzHead(f *testing.F) {
	f.Add("a=1", "1/a", "1/h", "TD1 1/t", "X-Other", "value", "{}")
	f.Add("td_write_key=1%0d%0aX: y", "", "", "Basic x", "Connection", "close\r\nX: y", "x")
	f.Add("a=b c", "1/\x00", "", "td1 \r\n", "Content-Type", "text/plain", " {")
	f.Fuzz(func(t *testing.T, query, param, header, auth, name, value, body string) {
		if !validName(strings.ReplaceAll(name, "-", "")) {
			return // net/http refuses such names
		}
		cred, refused := findKey(decodeKey(param), []string{header}, []string{auth})
		if refused != nil {
			if refused.code != "missing_write_key" && refused.code != "invalid_write_key" {
				t.Errorf("refused with %s", refused.code)
			}
			return
		}
		rest, _ := cutWriteKey(query)
		q := v2Request{
			host: "v2.example", destination: destination{"db", "tbl"}, query: rest,
			header: http.Header{http.CanonicalHeaderKey(name): {value}}, credentials: cred, body: []byte(body),
		}
		q.setContentType()
		line, fields := headLines(t, q.appendHead(nil))
		if strings.Count(line, " ") != 2 || strings.ContainsAny(line, "\r\n\t\x00") {
			t.Errorf("request line %q", line)
		}
		keys := 0
		for _, field := range fields {
			fieldName, content, ok := strings.Cut(field, ": ")
			if !ok || strings.ContainsAny(field, "\r\n\x00") {
				t.Errorf("field %q", field)
			}
			switch fieldName {
			case "X-TD-Write-Key":
				keys++
				if content != cred.writeKey || keyProblem(content) != "" {
					t.Errorf("key %q, want %q", content, cred.writeKey)
				}
			case "Authorization":
				if keyProblem(strings.TrimPrefix(content, "TD1 ")) != "" {
					t.Errorf("authorization %q", content)
				}
			}
		}
		if keys > 1 || (keys == 0) != (cred.writeKey == "") {
			t.Errorf("%d keys for %+v", keys, cred)
		}
	})
}
