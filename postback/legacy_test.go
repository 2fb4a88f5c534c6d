package postback

import (
	"bufio"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
)

// TestLegacyRequestHead compares whole heads, the fields sorted.
func TestLegacyRequestHead(t *testing.T) {
	for _, tc := range []struct {
		name, method, target string
		change               func(r *http.Request)
		bodyless             bool
		expect               []string
		line                 string
		fields               []string
	}{
		{name: "GET", method: "GET", target: "/a//b/%2F?x=%zz&=", line: "GET /a//b/%2F?x=%zz&="},
		{name: "what only HTTP/2 can send", method: "GET", target: "/a b?\x01\x7fé", line: "GET /a%20b?%01%7Fé"},
		{name: "an absolute target", method: "GET", target: "https://x.example/a?b", line: "GET /a?b"},
		{name: "without a path", method: "GET", target: "http://x.example", line: "GET /"},
		{name: "with a query alone", method: "GET", target: "http://x.example?a/b", line: "GET /?a/b"},
		{name: "OPTIONS without a path", method: "OPTIONS", target: "http://x.example", line: "OPTIONS *"},
		{name: "no host in a target", method: "GET", target: "urn:x?y=http://x.example/a", line: "GET urn:x?y=http://x.example/a"},
		{name: "nor behind a slash", method: "GET", target: "http:/x://y/a", line: "GET http:/x://y/a"},
		{name: "CONNECT", method: "CONNECT", target: "x.example:443", line: "CONNECT x.example:443"},
		{
			name: "what is for one hop goes", method: "GET", target: "/", line: "GET /",
			change: func(r *http.Request) {
				r.Header = http.Header{
					"Connection": {"X-Hop, close", "Authorization"}, "X-Hop": {"1"}, "Authorization": {"x"}, "Te": {"trailers"}, "Upgrade": {"h2c"}, "Http2-Settings": {"x"},
					"Cookie": {"a=b", "c"}, "X-Td-Write-Key": {"k"}, "Via": {"1.0 x"}, "X-Forwarded-For": {"1"}, "Early-Data": {"1"},
				}
			},
			fields: []string{"Cookie: a=b", "Cookie: c", "X-Td-Write-Key: k"},
		},
		{
			name: "no line of its own in a value", method: "GET", target: "/", line: "GET /",
			change: func(r *http.Request) { r.Header["X-A"] = []string{"a\r\nX-B: c\x00"} },
			fields: []string{"X-A: a  X-B: c "},
		},
		{name: "Expect", method: "POST", target: "/", line: "POST /", expect: []string{"100-continue"}, fields: []string{"Expect: 100-continue"}},
		{
			name: "a length", method: "POST", target: "/", line: "POST /", fields: []string{"Content-Length: 5"},
			change: func(r *http.Request) { r.ContentLength, r.Header["Content-Length"] = 5, []string{"005"} },
		},
		{
			name: "the length 0", method: "POST", target: "/", line: "POST /", fields: []string{"Content-Length: 0"},
			change: func(r *http.Request) { r.Header["Content-Length"] = []string{"0"} },
		},
		{name: "no length", method: "POST", target: "/", line: "POST /"},
		{name: "no length over HTTP/2", method: "POST", target: "/", line: "POST /", fields: []string{"Content-Length: 0"}, change: func(r *http.Request) { r.ProtoMajor = 2 }},
		{name: "GET over HTTP/2", method: "GET", target: "/", line: "GET /", change: func(r *http.Request) { r.ProtoMajor = 2 }},
		{
			name: "an unknown length", method: "POST", target: "/", line: "POST /", fields: []string{"Transfer-Encoding: chunked"},
			change: func(r *http.Request) { r.ProtoMajor, r.ContentLength = 2, -1 },
		},
		{
			name: "an unknown length and no body", method: "GET", target: "/", line: "GET /", bodyless: true,
			change: func(r *http.Request) { r.ProtoMajor, r.ContentLength = 3, -1 },
		},
		{
			name: "no chunk", method: "POST", target: "/", line: "POST /", bodyless: true, fields: []string{"Transfer-Encoding: chunked"},
			change: func(r *http.Request) { r.TransferEncoding, r.ContentLength = []string{"chunked"}, -1 },
		},
		{
			name: "trailers", method: "POST", target: "/", line: "POST /", fields: []string{"Transfer-Encoding: chunked", "Trailer: X-A, X-B"},
			change: func(r *http.Request) {
				r.ProtoMajor, r.ContentLength, r.Trailer = 2, 5, http.Header{"X-B": nil, "X-A": nil}
				r.Header["Content-Length"] = []string{"5"}
			},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := httptest.NewRequest(http.MethodGet, "/", nil)
			r.Method, r.RequestURI = tc.method, tc.target
			if tc.change != nil {
				tc.change(r)
			}
			q := NewLegacyRequest(r, tc.bodyless)
			q.Host, q.Expect, q.Forwarded = "legacy.example", tc.expect, Forwarded{Via: "1.1 me"}
			head, empty := strings.CutSuffix(string(q.AppendHead(nil)), "\r\n\r\n")
			lines := strings.Split(head, "\r\n")
			slices.Sort(lines[1:])
			want := append([]string{"Host: legacy.example", "Via: 1.1 me"}, tc.fields...)
			slices.Sort(want)
			if lines[0] != tc.line+" HTTP/1.1" || !slices.Equal(lines[1:], want) || !empty {
				t.Errorf("got %q, want %q %q", lines, tc.line, want)
			}
		})
	}
}

// TestLegacyTrailer: a caller cannot say behind its body what it cannot say before it.
func TestLegacyTrailer(t *testing.T) {
	r := httptest.NewRequest(http.MethodPost, "/", nil)
	r.RequestURI, r.ContentLength = "/", UnknownLength
	r.Trailer = http.Header{
		"X-Sum": {"1"}, "X-Forwarded-For": {"192.0.2.1"}, "Via": {"1.1 x"}, "Connection": {"close"},
		"Host": {"x.example"}, "Expect": {"100-continue"}, "X-Hop": {"1"},
	}
	r.Header["Connection"] = []string{"X-Hop"}
	q := NewLegacyRequest(r, false)
	q.Host = "legacy.example"
	if head := string(q.AppendHead(nil)); !strings.Contains(head, "\r\nTrailer: X-Sum\r\n") {
		t.Errorf("got %q, want X-Sum alone to be announced", head)
	}
	if got := string(AppendTrailer(nil, q.Trailer, HopsOf(q.Header["Connection"]))); got != "X-Sum: 1\r\n\r\n" {
		t.Errorf("got %q, want X-Sum alone", got)
	}
}

// FuzzLegacyRequestHead: whatever a target and a value are, the head is one request's,
// in origin-form.
func FuzzLegacyRequestHead(f *testing.F) {
	for _, target := range []string{"/", "*", "/a?b=%zz", "http://x.example/a", "http://x?", "a://", "/\r\nX: y", " /", ""} {
		f.Add("GET", target, "value")
	}
	f.Fuzz(func(t *testing.T, method, target, value string) {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.Method, r.RequestURI = "GET", target
		if method == http.MethodOptions {
			r.Method = method
		}
		r.Header["X-A"] = []string{value}
		q := NewLegacyRequest(r, false)
		q.Host = "legacy.example"
		head := string(q.AppendHead(nil))
		if lines := strings.Split(head, "\r\n"); len(lines) != 5 || strings.Count(head, "\n") != 4 {
			t.Fatalf("got %q", head)
		}
		if !strings.HasPrefix(target, "/") {
			return // net/http takes few of those
		}
		got, err := http.ReadRequest(bufio.NewReader(strings.NewReader(head)))
		if err != nil {
			return // nor has it taken this one
		}
		if got.Host != "legacy.example" || got.Method != r.Method || got.RequestURI != string(appendQuery(nil, target)) {
			t.Errorf("got %q %q %q from %q", got.Method, got.RequestURI, got.Host, head)
		}
	})
}
