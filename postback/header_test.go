package postback

import (
	"bufio"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/textproto"
	"slices"
	"strings"
	"testing"
)

// TestHeaderFates sends every header that a rule names, and one that none does,
// on both ways to v2: in the gateway's own request, and in the one that the next
// handler forwards.
func TestHeaderFates(t *testing.T) {
	const (
		end   = "ends here"
		pass  = "goes on"
		renew = "is written anew"
	)
	for name, want := range map[string]string{
		"Connection": end, "Keep-Alive": end, "Proxy-Authenticate": end, "Proxy-Authorization": end, "Proxy-Connection": end,
		"Te": end, "Trailer": end, "Transfer-Encoding": end, "Upgrade": end, "Http2-Settings": end,
		"Cookie": end, "Expect": end, "X-Td-Write-Key": end, "Authorization": end,
		"Host": renew, "Content-Length": renew, "X-Forwarded-For": renew, "X-Forwarded-Proto": renew, "X-Forwarded-Host": renew,
		"Via": renew, "Early-Data": renew,
		"User-Agent": pass, "Content-Encoding": pass, "Content-Type": pass, "X-Other": pass, "X-Forwarded-Port": pass, "Forwarded": pass,
	} {
		t.Run(name, func(t *testing.T) {
			const mark = "the caller's own"
			q := Request{Host: "v2", Destination: Destination{"db", "tbl"}, Header: http.Header{name: {mark}}, Body: []byte("{}")}
			_, fields := headLines(t, q.AppendHead(nil))
			forwarded := slices.ContainsFunc(fields, func(field string) bool { return strings.HasSuffix(field, mark) })
			if forwarded != (want == pass) {
				t.Errorf("forwarded: %v, but it %s", forwarded, want)
			}
			r := httptest.NewRequest(http.MethodPost, "/", nil)
			r.Header = http.Header{name: {mark}}
			q.Apply(r)
			handedOn := slices.Equal(r.Header[name], []string{mark})
			if ends := want == end; handedOn == ends && name != "Content-Length" { // which Apply writes anew itself
				t.Errorf("handed on: %v, but it %s", handedOn, want)
			}
		})
	}
}

// TestApply makes a caller's request the one for v2, for the next handler.
func TestApply(t *testing.T) {
	r := httptest.NewRequest(http.MethodGet, "//postback/v3/event//db/tbl/?td_write_key=1/a&a=b%20c", nil)
	r.Header = http.Header{"Connection": {"X-Hop, X-TD-Write-Key"}, "X-Hop": {"1"}, "Range": {"bytes=0-1"}, "X-Stays": {"1"}}
	q := Request{
		Host: "v2.test", Destination: Destination{"db", "tbl"}, Header: r.Header,
		Credentials: Credentials{WriteKey: "1/a", Authorization: "TD1 1/b"},
	}
	q.UseRecord([]byte(`{"a":"b c"}`))
	q.Apply(r)
	if r.Method != http.MethodPost || r.Host != "v2.test" || r.RequestURI != "/postback/v3/event/db/tbl" || r.URL.String() != r.RequestURI {
		t.Errorf("got %s %s%s, %s", r.Method, r.Host, r.URL, r.RequestURI)
	}
	want := http.Header{
		"X-Stays": {"1"}, "X-Td-Write-Key": {"1/a"}, "Authorization": {"TD1 1/b"},
		"Content-Type": {"application/json"}, "Content-Length": {"11"},
	}
	if len(r.Header) != len(want) {
		t.Errorf("got the header %v", r.Header)
	}
	for name, values := range want {
		if !slices.Equal(r.Header[name], values) {
			t.Errorf("%s: got %q, want %q", name, r.Header[name], values)
		}
	}
	for range 2 { // a retry reads it again
		body := make([]byte, 20)
		n, _ := r.Body.Read(body)
		if string(body[:n]) != `{"a":"b c"}` {
			t.Errorf("got the body %q", body[:n])
		}
		r.Body, _ = r.GetBody()
	}
}

// TestHeadBytes compares with the very bytes of a request.
func TestHeadBytes(t *testing.T) {
	for name, fields := range map[string]string{
		"only a Host":      "Host: in.treasuredata.com\r\n",
		"an empty Host":    "Host: \r\n",
		"several":          "Host: x\r\nUser-Agent: a b\r\nContent-Length: 0\r\n",
		"a name repeated":  "Host: x\r\nCookie: a=1\r\nCookie: b=22\r\nCookie: \r\n",
		"many small ones":  "Host: x\r\n" + strings.Repeat("A: \r\n", 5000),
		"a large one":      "Host: x\r\nX-Large: " + strings.Repeat("x", 100_000) + "\r\n",
		"the limit's text": "Host: x\r\nX: " + strings.Repeat("x", MaxHeaders-len("Host: x\r\nX: \r\n")) + "\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			line := "POST /postback/v3/event/db/tbl?a=" + strings.Repeat("u", 70_000) + " HTTP/1.1\r\n"
			r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(line + fields + "\r\n")))
			if err != nil {
				t.Fatal(err)
			}
			got, memory := HeadBytes(r)
			if got != len(fields) {
				t.Errorf("got %d bytes of fields, want %d", got, len(fields))
			}
			if least := len(line) + len(fields) + 16*strings.Count(fields, "\n"); memory < least {
				t.Errorf("got %d bytes in memory, want at least %d", memory, least)
			}
		})
	}
}

// TestHeadBytesOfTrailers: net/http takes what Trailer announces out of the header,
// and has a place for each name.
func TestHeadBytesOfTrailers(t *testing.T) {
	var names strings.Builder
	const n = 20_000
	for i := range n {
		fmt.Fprintf(&names, "t%05x,", i)
	}
	for name, head := range map[string]string{
		"one field":   "Trailer: " + names.String() + "\r\n",
		"many fields": strings.ReplaceAll("Trailer: "+names.String(), ",t", "\r\nTrailer: t") + "\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			r, err := http.ReadRequest(bufio.NewReader(strings.NewReader("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n" + head + "\r\n")))
			if err != nil {
				t.Fatal(err)
			}
			if len(r.Trailer) != n {
				t.Fatalf("%d trailers", len(r.Trailer))
			}
			fields, memory := HeadBytes(r)
			if least := names.Len(); fields < least {
				t.Errorf("got %d bytes of fields, want at least %d", fields, least)
			}
			if least := names.Len() + n*fieldCost; memory < least {
				t.Errorf("got %d bytes in memory, want at least %d", memory, least)
			}
		})
	}
}

// TestConnectionLinear: a header that names many others costs no more than its
// length, beside many others too.
func TestConnectionLinear(t *testing.T) {
	checkLinear(t, func(n int) func() {
		q := Request{Header: http.Header{}}
		var list strings.Builder
		for i := range n / 16 {
			fmt.Fprintf(&list, "t%05x,", i)
			q.Header[textproto.CanonicalMIMEHeaderKey(fmt.Sprintf("h%05x", i))] = []string{"v"}
		}
		q.Header["Connection"] = []string{list.String()}
		return func() { q.AppendHead(nil) }
	})
}
