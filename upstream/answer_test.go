package upstream

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/textproto"
	"strings"
	"testing"
	"time"
)

// FuzzAnswer gives v2's answer as any bytes, and compares with net/http: what
// the caller gets, and where the answer ends on a connection that is used
// again.
func FuzzAnswer(f *testing.F) {
	for _, seed := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;x\r\n{\r\n1\r\n}\r\n0\r\nX: 1\r\n\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}}",
		"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\nConnection: X-Hop, close\r\nX-Hop: 1\r\n\r\n",
		"HTTP/1.0 404 Not Found\r\nset-cookie: a=b\r\nALT-SVC: x\r\n\r\nuntil the end",
		"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
		"HTTP/1.1 200 OK\nX: \x00a\nContent-Length: +2\n\n{}",
		"HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 2\r\n\r\n{}HTTP/1.1 200 OK\r\n\r\n",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, sent []byte) {
		got, left, reusable, err := answerOf(sent)
		if err != nil {
			if got.Code != 200 || got.Body.Len() > 0 || len(got.Header()) > 0 {
				t.Errorf("%v, but the caller has something", err)
			}
			return
		}
		for name, values := range got.Header() {
			switch textproto.CanonicalMIMEHeaderKey(name) {
			case "Connection", "Keep-Alive", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade", "Set-Cookie", "Alt-Svc", "Strict-Transport-Security":
				t.Errorf("%s: %q went through", name, values)
			}
		}
		if !reusable {
			return // whatever it means, nothing follows on this connection
		}
		if left != 0 {
			t.Errorf("%d bytes are left on a connection that is used again", left)
		}
		status, body, err := finalAnswer(sent)
		if err != nil {
			return // fasthttp takes more than net/http does
		}
		if got.Code != status || got.Body.String() != body {
			t.Errorf("got %d %q, net/http reads %d %q", got.Code, got.Body, status, body)
		}
	})
}

// answerOf passes an answer on to a caller.
func answerOf(sent []byte) (got *httptest.ResponseRecorder, left int, reusable bool, err error) {
	got = httptest.NewRecorder()
	x := exchanges.Get().(*exchange)
	defer x.put()
	x.w, x.r, x.conn, x.timeout = got, httptest.NewRequest(http.MethodPost, "/", nil), stubConn{}, time.Second
	x.pieces = append(x.pieces[:0], nil)
	br := bufio.NewReaderSize(bytes.NewReader(sent), answerBuffer)
	defer func() {
		if p := recover(); p != nil {
			if p != http.ErrAbortHandler { //nolint:errorlint // a panic's value is compared as net/http does
				panic(p)
			}
			reusable = false // the caller's connection is broken off
		}
	}()
	if err := x.readHead(br); err != nil {
		return got, 0, false, err
	}
	reusable, err = x.pass(br, nil, new(Trip))
	rest, _ := io.Copy(io.Discard, br)
	return got, int(rest), reusable, err
}

// finalAnswer reads the same answer with net/http.
func finalAnswer(sent []byte) (status int, body string, err error) {
	if bytes.Contains(sent, []byte(" :")) || bytes.Contains(sent, []byte("\t:")) {
		return 0, "", errors.New("such a field is another one for net/http (RFC 9112 section 5.1)")
	}
	br := bufio.NewReader(bytes.NewReader(sent))
	for {
		resp, err := http.ReadResponse(br, &http.Request{Method: http.MethodPost})
		if err != nil {
			return 0, "", err
		}
		text, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			return 0, "", err
		}
		if resp.StatusCode >= 200 {
			return resp.StatusCode, string(text), nil
		}
	}
}

// TestCostlyAnswer gives v2's answer the largest heads that are taken, of as
// many fields as fit, in the ways in which each could cost as much as there are
// others. When each was compared with all of Connection, one took 550 ms.
func TestCostlyAnswer(t *testing.T) {
	const most = 100 * time.Millisecond
	for name, fields := range map[string]func(size int) string{
		"one name":   func(size int) string { return strings.Repeat("a:\r\n", size/4) },
		"many names": func(size int) string { return numbered(size, "X-%x:\r\n") },
		"names for one hop": func(size int) string {
			return "Connection: " + numbered(size/2, "x-%x,") + "\r\n" + numbered(size/2-100, "x-%x:\r\n")
		},
		"others for one hop": func(size int) string {
			return "Connection: " + strings.Repeat("a,", size/4) + "\r\n" + strings.Repeat("b:\r\n", size/8-10)
		},
		"Connection itself": func(size int) string { return strings.Repeat("Connection:a\r\n", size/14) },
	} {
		t.Run(name, func(t *testing.T) {
			const status, length = "HTTP/1.1 200 OK\r\n", "Content-Length: 2\r\n\r\n"
			answer := status + fields(answerBuffer-len(status+length)) + length + "{}"
			least := time.Hour
			for range 5 {
				began := time.Now()
				got, _, _, err := answerOf([]byte(answer))
				if err != nil || got.Code != 200 || got.Body.String() != "{}" {
					t.Fatalf("got %d %q, %v", got.Code, got.Body, err)
				}
				least = min(least, time.Since(began))
			}
			if t.Logf("%d bytes take %v", len(answer), least); least > most {
				t.Error("too long")
			}
		})
	}
}

// numbered repeats a text with numbers in it.
func numbered(size int, format string) string {
	var b strings.Builder
	for n := 0; ; n++ {
		next := fmt.Sprintf(format, n)
		if b.Len()+len(next) > size {
			return b.String()
		}
		b.WriteString(next)
	}
}
