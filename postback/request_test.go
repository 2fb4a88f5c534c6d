package postback

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
)

// TestContentType takes each body as a whole, and in two parts, as a long one is
// kept.
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
		{"link's ping", []string{"Text/Ping"}, `{}`, json},
		{"ping around PING stays", []string{"text/ping"}, `PING`, "text/ping"},
		{"byte-order mark", []string{"text/plain"}, "\ufeff {}", json},
		{"byte-order mark before no object stays", []string{"text/plain"}, "\ufeff[]", "text/plain"},
		{"two byte-order marks stay", []string{"text/plain"}, "\ufeff\ufeff{}", "text/plain"},
		{"white space before the byte-order mark stays", []string{"text/plain"}, " \ufeff{}", "text/plain"},
		{"compressed stays", []string{"text/plain"}, "\x1f\x8b{", "text/plain"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for at := range len(tc.body) + 1 {
				if at > 0 && at < len("\ufeff") {
					continue // the first part is never that short
				}
				q := Request{Header: http.Header{}}
				if tc.sent != nil {
					q.Header["Content-Type"] = tc.sent
				}
				if q.UseBody([]byte(tc.body[:at]), [][]byte{nil, []byte(tc.body[at:])}); at == 0 {
					q.UseBody([]byte(tc.body), nil)
				}
				want := tc.want
				if want == strings.Join(tc.sent, "") {
					want = "" // it stays
				}
				if q.ContentType != want {
					t.Errorf("cut at %d: got %q, want %q", at, q.ContentType, want)
				}
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
	base := func(change func(*Request)) Request {
		q := Request{Host: "us01.records.in.treasuredata.com", Destination: Destination{"db", "tbl"}, Body: []byte("{}"), Header: http.Header{}}
		q.Credentials.WriteKey = "1/a"
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
		change func(*Request)
		line   string
		fields []string
	}{
		{"least", func(*Request) {}, line, []string{length, host, key}},
		{"query", func(q *Request) { q.Query = "a=%7e&b=;c" }, "POST /postback/v3/event/db/tbl?a=%7e&b=;c HTTP/1.1", []string{length, host, key}},
		{
			"a space in the query cannot end the request line",
			func(q *Request) { q.Query = "a=b c\x7f" },
			"POST /postback/v3/event/db/tbl?a=b%20c%7F HTTP/1.1",
			[]string{length, host, key},
		},
		{"authorization", func(q *Request) { q.Credentials = Credentials{Authorization: "TD1 1/t"} }, line, []string{"Authorization: TD1 1/t", length, host}},
		{
			"the caller's headers stay",
			func(q *Request) {
				q.Header = http.Header{"User-Agent": {"x/1"}, "Content-Encoding": {"gzip"}, "X-Multi": {"1", "2"}, "Content-Type": {"a/b"}, "Accept": {""}}
			},
			line,
			[]string{"Accept: ", "Content-Encoding: gzip", length, "Content-Type: a/b", host, "User-Agent: x/1", "X-Multi: 1", "X-Multi: 2", key},
		},
		{
			"a new content type replaces the caller's",
			func(q *Request) {
				q.Header, q.ContentType = http.Header{"Content-Type": {"text/plain"}}, "application/json"
			},
			line,
			[]string{length, "Content-Type: application/json", host, key},
		},
		{
			"hop-by-hop headers, cookies, Expect and old keys go",
			func(q *Request) {
				q.Header = http.Header{}
				for _, name := range []string{
					"Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Proxy-Connection", "Te", "Trailer",
					"Transfer-Encoding", "Upgrade", "Http2-Settings", "Cookie", "Expect", "X-Td-Write-Key", "Authorization", "Content-Length", "Host",
				} {
					q.Header[name] = []string{"x"}
				}
			},
			line,
			[]string{length, host, key},
		},
		{
			"what Connection names goes, but never the key",
			func(q *Request) {
				q.Header = http.Header{"Connection": {"close, x-hop", "X-TD-Write-Key"}, "X-Hop": {"1"}, "X-Stays": {"1"}}
			},
			line,
			[]string{length, host, "X-Stays: 1", key},
		},
		{
			"forwarded headers are the gateway's",
			func(q *Request) {
				q.Header = http.Header{"X-Forwarded-For": {"6.6.6.6"}, "X-Forwarded-Proto": {"gopher"}, "X-Forwarded-Host": {"evil"}, "Via": {"x"}}
				q.Forwarded = Forwarded{ClientIP: "192.0.2.1", Proto: "http", Host: "in.treasuredata.com", Via: "x, 1.1 Caddy"}
			},
			line,
			[]string{length, host, "Via: x, 1.1 Caddy", "X-Forwarded-For: 192.0.2.1", "X-Forwarded-Host: in.treasuredata.com", "X-Forwarded-Proto: http", key},
		},
		{"early data", func(q *Request) { q.Forwarded.EarlyData = true }, line, []string{length, "Early-Data: 1", host, key}},
		{
			"a line break from another handler is no line break",
			func(q *Request) { q.Header = http.Header{"X-Other": {"a\r\nX-Evil: 1\x00"}} },
			line,
			[]string{length, host, "X-Other: a  X-Evil: 1 ", key},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			q := base(tc.change)
			line, fields := headLines(t, q.AppendHead(nil))
			if line != tc.line {
				t.Errorf("request line %q, want %q", line, tc.line)
			}
			if !slices.Equal(fields, tc.fields) {
				t.Errorf("fields\n%q, want\n%q", fields, tc.fields)
			}
		})
	}
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
			if refused.Code != "missing_write_key" && refused.Code != "invalid_write_key" {
				t.Errorf("refused with %s", refused.Code)
			}
			return
		}
		rest, _ := cutWriteKey(query)
		q := Request{
			Host: "v2.example", Destination: Destination{"db", "tbl"}, Query: rest,
			Header: http.Header{http.CanonicalHeaderKey(name): {value}}, Credentials: cred, Body: []byte(body),
		}
		q.UseBody([]byte(body), nil)
		line, fields := headLines(t, q.AppendHead(nil))
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
				if content != cred.WriteKey || keyProblem(content) != "" {
					t.Errorf("key %q, want %q", content, cred.WriteKey)
				}
			case "Authorization":
				if keyProblem(strings.TrimPrefix(content, "TD1 ")) != "" {
					t.Errorf("authorization %q", content)
				}
			}
		}
		if keys > 1 || (keys == 0) != (cred.WriteKey == "") {
			t.Errorf("%d keys for %+v", keys, cred)
		}
	})
}

// TestByteOrderMark: the mark before an object goes, and with it what held for
// the body's very bytes. Nothing else does.
func TestByteOrderMark(t *testing.T) {
	described := func() http.Header {
		return http.Header{"Content-Md5": {"x"}, "Digest": {"x"}, "Content-Digest": {"x"}, "Repr-Digest": {"x"}, "Content-Language": {"de"}}
	}
	const digests = 4
	for _, tc := range []struct {
		name, body, encoding string
		want                 string
	}{
		{name: "before an object", body: "\ufeff{}", want: "{}"},
		{name: "before white space and an object", body: "\ufeff \n{}", want: " \n{}"},
		{name: "identity", body: "\ufeff{}", encoding: "identity", want: "{}"},
		{name: "none", body: "{}", want: "{}"},
		{name: "before an array", body: "\ufeff[]", want: "\ufeff[]"},
		{name: "alone", body: "\ufeff", want: "\ufeff"},
		{name: "compressed", body: "\ufeff{}", encoding: "gzip", want: "\ufeff{}"},
		{name: "of UTF-16", body: "\xff\xfe{\x00}\x00", want: "\xff\xfe{\x00}\x00"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			q := Request{Header: described()}
			if tc.encoding != "" {
				q.Header["Content-Encoding"] = []string{tc.encoding}
			}
			q.UseBody([]byte(tc.body), nil)
			if string(q.Body) != tc.want || q.Length() != len(tc.want) {
				t.Errorf("got %q of %d bytes, want %q", q.Body, q.Length(), tc.want)
			}
			r := &http.Request{Header: q.Header.Clone(), URL: new(url.URL)}
			q.Apply(r)
			_, fields := headLines(t, q.AppendHead(nil))
			if !slices.Contains(fields, "Content-Language: de") {
				t.Errorf("the language has gone: %q", fields)
			}
			want := digests
			if tc.want != tc.body {
				want = 0
			}
			forwarded, handedOn := 0, 0
			for name := range described() {
				if slices.Contains(fields, name+": x") {
					forwarded++
				}
				if r.Header.Get(name) == "x" {
					handedOn++
				}
			}
			if forwarded != want || handedOn != want {
				t.Errorf("%d digests are forwarded, %d handed on, want %d", forwarded, handedOn, want)
			}
		})
	}
}

func TestCompressed(t *testing.T) {
	for _, tc := range []struct {
		values []string
		want   bool
	}{
		{nil, false},
		{[]string{""}, false},
		{[]string{"identity"}, false},
		{[]string{"UTF-8"}, false},
		{[]string{"utf-8, identity", "", ","}, false},
		{[]string{"gzipped"}, false},
		{[]string{"gzip"}, true},
		{[]string{"GZip"}, true},
		{[]string{"x-gzip"}, true},
		{[]string{"deflate"}, true},
		{[]string{"br"}, true},
		{[]string{"zstd"}, true},
		{[]string{"compress"}, true},
		{[]string{"identity", "identity , gzip"}, true},
	} {
		q := Request{Header: http.Header{"Content-Encoding": tc.values}}
		if got := q.Compressed(); got != tc.want {
			t.Errorf("%q: got %v", tc.values, got)
		}
	}
}

// FuzzContentType also takes the body in two parts, as a long one is kept.
func FuzzContentType(f *testing.F) {
	f.Add("", " \t\r\n{", "", uint16(2))
	f.Add("Text/Plain ;charset=x", "{}", "identity", uint16(0))
	f.Add("application/x-www-form-urlencoded", "a={", "", uint16(1))
	f.Add(";", "\ufeff{}", "br", uint16(3))
	f.Add("text/ping", "\ufeff{}", "", uint16(4))
	f.Add("application/json;", "{}", "", uint16(1))
	f.Fuzz(func(t *testing.T, sent, body, encoding string, cut uint16) {
		const mark = "\ufeff"
		want := body
		if after, ok := strings.CutPrefix(body, mark); ok && !slices.Contains([]string{"br", "gzip"}, encoding) &&
			strings.HasPrefix(strings.TrimLeft(after, " \t\r\n"), "{") {
			want = after
		}
		wantType := ""
		switch strings.Trim(strings.ToLower(strings.SplitN(sent, ";", 2)[0]), " \t\r\n") { // a line break comes from no caller
		case "", "text/plain", "text/ping", "application/x-www-form-urlencoded":
			if strings.HasPrefix(strings.TrimLeft(want, " \t\r\n"), "{") {
				wantType = "application/json"
			}
		}
		if encoding != "br" && encoding != "gzip" {
			encoding = "UTF-8" // no coding
		}
		at := min(int(cut), len(body))
		if at < len(mark) {
			at = len(body) // the first part is never that short
		}
		q := Request{Header: http.Header{"Content-Type": {sent}, "Content-Encoding": {encoding}}}
		q.UseBody([]byte(body[:at]), [][]byte{nil, []byte(body[at:])})
		if got := string(q.Body) + body[at:]; got != want {
			t.Errorf("%q has become %q, want %q", body, got, want)
		}
		if q.ContentType != wantType {
			t.Errorf("%q around %q and %q: got %q, want %q", sent, body[:at], body[at:], q.ContentType, wantType)
		}
	})
}

// FuzzQuery checks that a query means the same behind the escapes that
// HTTP/1.1 needs.
func FuzzQuery(f *testing.F) {
	for _, seed := range []string{"a=1", "a b=%\x01", "%4\x7f1", "\xff\x00&=", "% 41"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, query string) {
		got := string(appendQuery(nil, query))
		if strings.ContainsFunc(got, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
			t.Errorf("%q: %q would end the request line", query, got)
		}
		if decode(got) != decode(query) || strings.Count(got, "&") != strings.Count(query, "&") {
			t.Errorf("%q became %q", query, got)
		}
		if !strings.ContainsFunc(query, func(r rune) bool { return r <= ' ' || r == 0x7f }) && got != query {
			t.Errorf("%q had nothing to escape and became %q", query, got)
		}
	})
}
