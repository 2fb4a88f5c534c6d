package postback

import (
	"bytes"
	"net/http"
	"strings"
	"testing"
	"time"
)

// TestAppendKept checks a kept request as a whole: what stands before it stays,
// its length counts the time, and what describes its bytes keeps them.
func TestAppendKept(t *testing.T) {
	arrival := time.Unix(testArrival, 0)
	const head = "POST /postback/v3/event/db/tbl HTTP/1.1\r\nHost: v2\r\n"
	large := `{"a":"` + strings.Repeat("x", MaxBody-len(`{"a":""}`)) + `"}`
	for _, tc := range []struct {
		name   string
		change func(*Request)
		fields string
		body   string
		timed  RecordTime
	}{
		{"without a time", func(q *Request) { q.Body = []byte(`{"a":1}`) }, "Content-Length: 35\r\n", `{"a":1,"td_record_time":1800000000}`, TimeAdded},
		{
			"in parts",
			func(q *Request) { q.Body, q.More = []byte(`{"a"`), [][]byte{[]byte(":1"), []byte("}")} },
			"Content-Length: 35\r\n", `{"a":1,"td_record_time":1800000000}`, TimeAdded,
		},
		{"with a time", func(q *Request) { q.Body = []byte(`{"time":1800000000}`) }, "Content-Length: 19\r\n", `{"time":1800000000}`, TimeOwn},
		{"no object", func(q *Request) { q.Body = []byte(`[1]`) }, "Content-Length: 3\r\n", `[1]`, TimeNoObject},
		{
			"described bytes",
			func(q *Request) { q.Body, q.Header = []byte(`{"a":1}`), http.Header{"Content-Md5": {"x"}} },
			"Content-Md5: x\r\nContent-Length: 7\r\n", `{"a":1}`, TimeNoObject,
		},
		{"with a time that v2 cannot use", func(q *Request) { q.Body = []byte(`{"time":null}`) }, "Content-Length: 13\r\n", `{"time":null}`, TimeUnusable},
		{
			"digests",
			func(q *Request) { q.Body, q.Header = []byte(`{"a":1}`), http.Header{"Repr-Digest": {"x"}} },
			"Repr-Digest: x\r\nContent-Length: 7\r\n", `{"a":1}`, TimeNoObject,
		},
		{
			"a coding that is none",
			func(q *Request) { q.Body, q.Header = []byte(`{"a":1}`), http.Header{"Content-Encoding": {"UTF-8"}} },
			"Content-Encoding: UTF-8\r\nContent-Length: 35\r\n", `{"a":1,"td_record_time":1800000000}`, TimeAdded,
		},
		{
			"without its byte-order mark and what described it",
			func(q *Request) {
				q.Header = http.Header{"Content-Md5": {"x"}, "Content-Type": {"application/json"}}
				q.UseBody([]byte("\ufeff{}"), nil)
			},
			"Content-Type: application/json\r\nContent-Length: 29\r\n", `{"td_record_time":1800000000}`, TimeAdded,
		},
		{"no room for a time", func(q *Request) { q.Body = []byte(large) }, "Content-Length: 1048064\r\n", large, TimeNoObject},
		{
			"early data is over by then",
			func(q *Request) { q.Body, q.Forwarded.EarlyData = []byte(`{"time":1800000000}`), true },
			"Content-Length: 19\r\n", `{"time":1800000000}`, TimeOwn,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			q := Request{Host: "v2", Destination: Destination{"db", "tbl"}}
			tc.change(&q)
			got, timed := AppendKept([]byte("before"), &q, arrival)
			if want := "before" + head + tc.fields + "\r\n" + tc.body; string(got) != want {
				t.Errorf("got  %.300q\nwant %.300q", got, want)
			}
			if timed != tc.timed {
				t.Errorf("its time is %v, want %v", timed, tc.timed)
			}
		})
	}
}

// TestAppendKeptRoom checks that dst is used when it has room, to its last
// byte, and left when it has not.
func TestAppendKeptRoom(t *testing.T) {
	q := Request{Host: "v2", Destination: Destination{"db", "tbl"}, Body: []byte(`{"a":1}`)}
	want, _ := AppendKept([]byte("x"), &q, time.Unix(testArrival, 0))
	if !bytes.HasSuffix(want, []byte(`{"a":1,"td_record_time":1800000000}`)) {
		t.Fatalf("got %q", want)
	}
	for room := range 2 * len(want) {
		dst := make([]byte, 1, max(room, 1))
		dst[0] = 'x'
		got, _ := AppendKept(dst, &q, time.Unix(testArrival, 0))
		if !bytes.Equal(got, want) {
			t.Errorf("room for %d: got %q", room, got)
		}
		if inPlace := &got[0] == &dst[0]; inPlace != (room >= len(want)) {
			t.Errorf("room for %d of %d: in place: %v", room, len(want), inPlace)
		}
	}
}

// TestSurelyRefused judges bodies, in one piece and in parts.
func TestSurelyRefused(t *testing.T) {
	for _, tc := range []struct {
		body    string
		header  http.Header
		refused bool
	}{
		{body: `{}`},
		{body: " {\"a\":[1]} \r\n"},
		{body: `{"a":1`, refused: true},
		{body: `{"a":1}x`, refused: true},
		{body: `[{}]`, refused: true},
		{body: `"a"`, refused: true},
		{body: `a=1`, refused: true},
		{body: "\x00", refused: true},
		{body: "", refused: true},
		{body: "\x1f\x8b", header: http.Header{"Content-Encoding": {"gzip"}}},
		{body: "\x1f\x8b", header: http.Header{"Content-Encoding": {"identity, gzip"}}},
		{body: `{}`, header: http.Header{"Content-Encoding": {"identity"}}},
		{body: `a=1`, header: http.Header{"Content-Encoding": {"identity"}}, refused: true},
		{body: `a=1`, header: http.Header{"Content-Encoding": {"UTF-8"}}, refused: true},
		{body: `a=1`, header: http.Header{"Content-Encoding": {""}}, refused: true},
		{body: `{"a":1}`, header: http.Header{"Content-Md5": {"x"}}},
		{body: `[]`, header: http.Header{"Content-Md5": {"x"}}, refused: true},
	} {
		for cut := range len(tc.body) + 1 {
			q := Request{Header: tc.header, Body: []byte(tc.body[:cut]), More: [][]byte{[]byte(tc.body[cut:])}}
			if got := q.SurelyRefused(); got != tc.refused {
				t.Errorf("%q, cut at %d: surely refused: %t", tc.body, cut, got)
			}
		}
		if q := (Request{Header: tc.header, Body: []byte(tc.body), FromQuery: true}); q.SurelyRefused() {
			t.Errorf("%q from a query: surely refused", tc.body)
		}
	}
}

// FuzzKept reads back what was kept.
func FuzzKept(f *testing.F) {
	f.Add("a=1&b=%2F", "application/json", "1234/abc", "", []byte(`{"a":1}`))
	f.Add("", "", "", "1/a", []byte("\x00\r\n\r\n"))
	f.Add(" \x7f", "a/b; c=d", "1/b", "1/a", []byte(`{"time":"x"} `))
	f.Fuzz(func(t *testing.T, query, contentType, key, token string, body []byte) {
		if keyProblem(key) != "" || keyProblem(token) != "" || len(body) > MaxBody/2 ||
			strings.ContainsFunc(contentType, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			return // no call that is kept
		}
		authorization := ""
		if token != "" {
			authorization = "TD1 " + token
		}
		q := Request{
			Host: "v2", Destination: Destination{"db", "tbl"}, Query: query, ContentType: contentType, Body: body,
			Credentials: Credentials{WriteKey: key, Authorization: authorization},
		}
		data, timed := AppendKept(nil, &q, time.Unix(testArrival, 0))
		if payer := KeptPayer(data); payer != q.Credentials.Payer() {
			t.Errorf("the payer of %q is %q, want %q", data, payer, q.Credentials.Payer())
		}
		if account := KeptAccount(data); account != q.Credentials.Account() {
			t.Errorf("the account of %q is %q, want %q", data, account, q.Credentials.Account())
		}
		got, err := ReadKept(data)
		if err != nil {
			t.Fatalf("%v: %q", err, data)
		}
		if got.Path != "/postback/v3/event/db/tbl" || got.Query != string(appendQuery(nil, query)) {
			t.Errorf("%q has become %q?%q", query, got.Path, got.Query)
		}
		if got.Credentials != q.Credentials {
			t.Errorf("%q, %q have become %+v", key, authorization, got.Credentials)
		}
		if got.Header.Get(WriteKeyHeader) != "" || got.Header.Get("Authorization") != "" {
			t.Errorf("a key is in the header: %q", got.Header)
		}
		if want, result := appendRecordTime(nil, body, testArrival); !bytes.Equal(got.Body, want) || timed != result {
			t.Errorf("%q, %v has become %q, %v", body, result, got.Body, timed)
		}
		if _, err := ReadKept(data[:len(data)-1]); err == nil {
			t.Errorf("a request without its last byte is whole: %q", data)
		}
	})
}
