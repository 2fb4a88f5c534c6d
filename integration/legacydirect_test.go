package integration

import (
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/textproto"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// directHost is a legacy host that shows what it saw, and answers by it.
type directHost struct {
	*httptest.Server
	seen chan *directRequest
}

// directRequest is a request as net/http reads it: however it was framed.
type directRequest struct {
	line            string
	header, trailer http.Header
	body            string
}

func startDirect(t *testing.T) *directHost {
	u := &directHost{seen: make(chan *directRequest, 10)}
	u.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Errorf("%s %.100s: half a body came: %v", r.Method, r.RequestURI, err)
		}
		u.seen <- &directRequest{r.Method + " " + r.RequestURI, r.Header.Clone(), r.Trailer.Clone(), string(body)}
		header := w.Header()
		header.Set("X-Saw", fmt.Sprintf("%x", sha256.Sum256(body)))
		header["Set-Cookie"] = []string{"a=b", "c=d; Secure"}
		header.Set("Server", "legacy/1")
		header.Set("Access-Control-Allow-Origin", "*")
		w.WriteHeader([]int{200, 201, 302, 400, 403, 404, 413, 429, 500, 503}[len(r.URL.RawQuery)%10])
		_, _ = w.Write(body)
	}))
	t.Cleanup(u.Close)
	return u
}

// latest is what the host has seen since the last call, or nil.
func (u *directHost) latest() *directRequest {
	select {
	case saw := <-u.seen:
		return saw
	default:
		return nil
	}
}

// TestLegacyDirect sends the corpus of odd requests, all methods, long bodies and random
// requests to the legacy host itself, and through the gateway. The host must not see the
// difference, but for the headers that a proxy adds and drops, and the caller none at all.
func TestLegacyDirect(t *testing.T) {
	t.Parallel()
	u := startDirect(t)
	g := serve(t, "servers {\n max_header_size 1MiB\n}\n", "td_postback {\n upstream http://127.0.0.1:9\n max_body 100KB\n migrate {\n  legacy "+u.URL+"\n }\n}")
	check := func(name, request string) {
		t.Run(name, func(t *testing.T) {
			want := raw(t, u.Listener.Addr().String(), request)
			direct := u.latest()
			got := raw(t, g.addr, request)
			relayed := u.latest()
			if direct == nil || relayed == nil {
				t.Fatalf("by itself the host saw %v, behind the gateway %v; its answers are %s and %s", direct, relayed, want.Status, got.Status)
			}
			compareRequests(t, relayed, direct)
			compareAnswers(t, got, want)
		})
	}
	for part, cases := range map[string][]odd{"path": oddPaths, "query": oddQueries, "header": oddHeaders, "body": oddBodies, "framing": oddFraming, "record": oddRecords} {
		for _, tc := range cases {
			check(part+"/"+tc.name, tc.legacy)
		}
	}
	for _, tc := range legacyLines() {
		check(tc.name, tc.request)
	}
	for _, method := range []string{"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "QUERY"} {
		for _, size := range []int{0, 1, 100_000, 100_001, 8 << 20} {
			body := strings.Repeat("0123456789abcde\n", size/16+1)[:size]
			request := strings.Replace(post(target, asText, body), "POST", method, 1)
			if method[0]%2 == 1 && size > 100_000 { // some of the long ones
				request = fmt.Sprintf("%s %s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n%s0\r\n\r\n", method, target, chunksOf(body, 30_000))
			}
			check(fmt.Sprintf("%s with %d bytes", method, size), request)
		}
	}
	check("POST with 8 MiB in chunks", fmt.Sprintf("POST %s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n%s0\r\n\r\n", target, chunksOf(strings.Repeat("x", 8<<20), 30_000)))
	seed := rand.Uint64() //nolint:gosec // a test's dice
	t.Logf("the random requests begin with %d", seed)
	dice := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // the same
	for n := range 100 {
		check(fmt.Sprint("random/", n), randomRequest(dice))
	}
}

// proxyFields are those that the gateway adds, or that are for one hop.
var proxyFields = []string{
	"Via", "X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host",
	"Connection", "Keep-Alive", "Te", "Upgrade", "Http2-Settings", "Proxy-Connection", "Proxy-Authorization", "Proxy-Authenticate",
}

// compareRequests compares what the host saw behind the gateway with what it saw itself.
func compareRequests(t *testing.T, got, want *directRequest) {
	t.Helper()
	for _, value := range want.header["Connection"] {
		for name := range strings.SplitSeq(value, ",") {
			if name = strings.TrimSpace(name); name != "Content-Length" {
				want.header.Del(name)
			}
		}
	}
	if length := want.header["Content-Length"]; length != nil {
		length[0] = strconv.Itoa(len(want.body)) // without zeros before it
	}
	for _, name := range proxyFields {
		got.header.Del(name)
		want.header.Del(name)
	}
	for name := range want.header { // Caddy drops them, against smuggling
		if strings.Contains(name, "_") || strings.Contains(name, ".") {
			want.header.Del(name)
		}
	}
	if before, absolute := strings.CutPrefix(want.line, "POST http"); absolute { // a proxy sends it in origin form
		_, path, _ := strings.Cut(before, "://")
		want.line = "POST " + path[strings.IndexByte(path, '/'):]
	}
	if got.line != want.line {
		t.Errorf("the host saw %q, by itself %q", got.line, want.line)
	}
	compareFields(t, "the host saw the header", got.header, want.header)
	compareFields(t, "the host saw the trailer", got.trailer, want.trailer)
	if got.body != want.body {
		t.Errorf("the host saw %d bytes, %.60q, by itself %d, %.60q", len(got.body), got.body, len(want.body), want.body)
	}
}

// compareAnswers compares what the caller got through the gateway with what it gets of
// the host itself.
func compareAnswers(t *testing.T, got, want reply) {
	t.Helper()
	if got.Status != want.Status || got.body != want.body || got.ContentLength != want.ContentLength {
		t.Errorf("got %s with %d bytes, of the host itself %s with %d", got.Status, len(got.body), want.Status, len(want.body))
	}
	for _, header := range []http.Header{got.Header, want.Header} {
		header.Del("Date")
	}
	compareFields(t, "got", got.Header, want.Header)
}

func compareFields(t *testing.T, what string, got, want http.Header) {
	t.Helper()
	for name := range want {
		if !slices.Equal(got[name], want[name]) {
			t.Errorf("%s %s %.100q, by itself %.100q", what, name, got[name], want[name])
		}
	}
	for name := range got {
		if want[name] == nil {
			t.Errorf("%s %s %.100q, by itself nothing", what, name, got[name])
		}
	}
}

// randomRequest is a request that HTTP allows.
func randomRequest(dice *rand.Rand) string {
	from := func(letters string, most int) string {
		text := make([]byte, dice.IntN(most+1))
		for i := range text {
			text[i] = letters[dice.IntN(len(letters))]
		}
		return string(text)
	}
	const word = "abcXYZ019-_.~"
	const others = "/;=&+:@,'()*!\xe4\xff\"<>\\^`{|}"
	prefixes := []string{"/", event, event + "/", "/js/v3/event/a/b", "/js/v3/event", androidPath, "/postback/v3/event/", "//"}
	methods := []string{"GET", "POST", "POST", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "M" + from("ABC-!#$", 5)}
	target := prefixes[dice.IntN(len(prefixes))] + from(word+others, 20) + []string{"", "%2F", "%2e%41%00"}[dice.IntN(3)] + from(word+others, 20)
	if dice.IntN(2) == 0 {
		target += "?" + from(word+others+"%?", 200)
	}
	var fields strings.Builder
	for range dice.IntN(8) {
		name := textproto.CanonicalMIMEHeaderKey("X-" + from("abcXYZ019-", 8) + "z")
		fmt.Fprintf(&fields, "%s:%s%s\r\n", name, from(" \t", 2), strings.TrimSpace(from(word+" \t\"(),/:;<=>?@[\\]{}\xe4\xff", 60)))
	}
	head := fmt.Sprintf("%s %s HTTP/1.1\r\nHost: in.treasuredata.com\r\n%s", methods[dice.IntN(len(methods))], target, &fields)
	body := from("{}[]\":,\\ \x00\xffabc", []int{0, 10, 1000, 250_000}[dice.IntN(4)])
	switch dice.IntN(3) {
	case 0:
		return fmt.Sprintf("%sContent-Length: %d\r\n\r\n%s", head, len(body), body)
	case 1:
		return fmt.Sprintf("%sTransfer-Encoding: chunked\r\n\r\n%s0\r\n\r\n", head, chunksOf(body, 1+dice.IntN(70_000)))
	default:
		return head + "\r\n"
	}
}
