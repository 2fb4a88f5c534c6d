package upstream

import (
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/td-postback/gateway/postback"
)

// TestWords looks what a trip says of v2's words, for a caller and for a record
// that was kept.
func TestWords(t *testing.T) {
	const key = "1234/0123456789abcdef0123"
	answer := func(status int, header, body string) string {
		return fmt.Sprintf("HTTP/1.1 %d X\r\n%sContent-Length: %d\r\n\r\n%s", status, header, len(body), body)
	}
	for _, tc := range []struct{ name, answer, want string }{
		{"a refusal", answer(400, "", `{"error":"bad"}`), `{"error":"bad"}`},
		{"a failure", answer(500, "", "oops"), "oops"},
		{"nothing said", answer(403, "", ""), ""},
		{"in chunks", "HTTP/1.1 403 X\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n", "no"},
		{"until v2 closes", "HTTP/1.1 403 X\r\n\r\nno way" + cut, "no"},
		{"a key", answer(403, "", "key "+key+" and 99/fedcba9876543210"), "key 1234/… and 99/…"},
		{"its secret", answer(403, "", "key 0123456789ABCDEF0123"), "key …"},
		{"lines", answer(403, "", "<html>\r\n<h1>no</h1>\n"), "<html> <h1>no</h1>"},
		{"long", answer(403, "", strings.Repeat("no ", 10_000)), strings.Repeat("no ", 100)[:postback.MaxWords]},
		{"compressed", answer(403, "content-encoding: gzip\r\n", "\x1f\x8b"), ""},
		{"not compressed", answer(403, "Content-Encoding: identity\r\n", "no"), "no"},
		{"taken", answer(200, "", "{}"), ""},
		{"elsewhere", answer(307, "", "there"), ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client := newScripted(t, &script{conns: [][]string{{tc.answer}, {tc.answer}}}, nil)
				q := &postback.Request{
					Host: "v2.test", Destination: postback.Destination{Database: "db", Table: "tbl"},
					Credentials: postback.Credentials{WriteKey: "1/other", Authorization: "TD1 " + key}, Body: []byte(`{"time":1}`),
				}
				var trip Trip
				if err := client.Forward(httptest.NewRecorder(), httptest.NewRequest("POST", "/", nil), q, &trip); err != nil || trip.Words != tc.want {
					t.Errorf("forwarded: got %q, %v, want %q", trip.Words, err, tc.want)
				}
				data, _ := postback.AppendKept(nil, q, time.Now())
				trip = Trip{}
				if err := client.Deliver(data, &trip); err != nil || trip.Words != tc.want {
					t.Errorf("delivered: got %q, %v, want %q", trip.Words, err, tc.want)
				}
			})
		})
	}
}
