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
		got, left, reusable, err := answerOf(sent, "")
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
		status, body, err := finalAnswer(sent, http.MethodPost)
		if err != nil {
			return // fasthttp takes more than net/http does
		}
		if got.Code != status || got.Body.String() != body {
			t.Errorf("got %d %q, net/http reads %d %q", got.Code, got.Body, status, body)
		}
	})
}

// FuzzRelayAnswer does the same with answers that go on as they came, and looks that
// nothing in a head, a 1xx answer or a trailer is for another hop.
func FuzzRelayAnswer(f *testing.F) {
	for _, seed := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
		"HTTP/1.1 200 OK\r\nConnection: X-Hop\r\nTrailer: X-A, X-Hop\r\nX-A: 1\r\nTransfer-Encoding: chunked\r\n\r\n2;x\r\n{}\r\n0\r\nX-A: 2\r\nX-Hop: 1\r\n b\r\n\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nUpgrade: x\r\nalt-svc: x\r\nContent-Length: 7\r\n\r\nmore",
		"HTTP/1.1 103 Early Hints\r\nConnection: X-Hop\r\nX-Hop: 1\r\nContent-Length: 7\r\n\r\nHTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n",
		"HTTP/1.1 100 Continue\r\nTrailer: X-A\r\nX-A: 1\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
		"HTTP/1.0 404 Not Found\r\nset-cookie: a=b\r\nALT-SVC: x\r\n\r\nuntil the end",
	} {
		for _, method := range []string{http.MethodPost, http.MethodHead, http.MethodConnect} {
			f.Add(method, []byte(seed))
		}
	}
	f.Fuzz(func(t *testing.T, method string, sent []byte) {
		if method != http.MethodHead && method != http.MethodConnect {
			method = http.MethodPost
		}
		got, left, reusable, err := answerOf(sent, method)
		if err != nil {
			if got.Code != 200 || got.Body.Len() > 0 || len(got.Header()) > 0 {
				t.Errorf("%v, but the caller has something", err)
			}
			return
		}
		if name := hopIn(got.Header()); name != "" {
			t.Errorf("%s went through", name)
		}
		if method == http.MethodConnect && got.Code < 300 {
			t.Errorf("a tunnel is open: %d", got.Code)
		}
		if !reusable {
			return
		}
		if left != 0 {
			t.Errorf("%d bytes are left on a connection that is used again", left)
		}
		if status, body, err := finalAnswer(sent, method); err == nil && (got.Code != status || got.Body.String() != body) {
			t.Errorf("got %d %q, net/http reads %d %q", got.Code, got.Body, status, body)
		}
	})
}

// hopIn is a field of a head or its trailer that must not go to a caller; empty for none.
func hopIn(header http.Header) string {
	for name := range header {
		bare := strings.TrimPrefix(name, http.TrailerPrefix)
		switch textproto.CanonicalMIMEHeaderKey(bare) {
		case "Connection", "Keep-Alive", "Proxy-Connection", "Te", "Transfer-Encoding", "Upgrade", "Alt-Svc", "Strict-Transport-Security":
			return name
		case "Content-Length", "Trailer":
			if bare != name {
				return name
			}
		}
	}
	for _, announced := range header["Trailer"] {
		for name := range strings.SplitSeq(announced, ", ") {
			if hopIn(http.Header{http.TrailerPrefix + name: nil}) != "" || len(header[http.CanonicalHeaderKey(name)]) > 0 {
				return "the announced " + name
			}
		}
	}
	return ""
}

// hopWriter looks at 1xx answers, for which the recorder has no place.
type hopWriter struct{ *httptest.ResponseRecorder }

func (w hopWriter) WriteHeader(status int) {
	if status >= 200 {
		w.ResponseRecorder.WriteHeader(status)
	} else if name := hopIn(w.Header()); name != "" {
		panic(name + " went through in a 1xx answer")
	}
}

// answerOf passes an answer on to a caller: as it came, if the method of the request is
// given.
func answerOf(sent []byte, relayed string) (got *httptest.ResponseRecorder, left int, reusable bool, err error) {
	got = httptest.NewRecorder()
	x := exchanges.Get().(*exchange)
	defer x.put()
	x.w, x.r, x.conn, x.timeout = hopWriter{got}, httptest.NewRequest(http.MethodPost, "/", nil), stubConn{}, time.Second
	x.relayed = relayed != ""
	if x.relayed {
		x.r.Method = relayed
	}
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
	if x.relayed {
		reusable, err = x.relayAnswer(br, nil, new(Trip))
	} else {
		reusable, err = x.pass(br, nil, new(Trip))
	}
	rest, _ := io.Copy(io.Discard, br)
	return got, int(rest), reusable, err
}

// finalAnswer reads the same answer with net/http.
func finalAnswer(sent []byte, method string) (status int, body string, err error) {
	if bytes.Contains(sent, []byte(" :")) || bytes.Contains(sent, []byte("\t:")) {
		return 0, "", errors.New("such a field is another one for net/http (RFC 9112 section 5.1)")
	}
	br := bufio.NewReader(bytes.NewReader(sent))
	for {
		resp, err := http.ReadResponse(br, &http.Request{Method: method})
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
				got, _, _, err := answerOf([]byte(answer), "")
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
