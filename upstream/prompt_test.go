package upstream

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/td-postback/gateway/postback"
)

// promptWriter is a caller that notes when it gets the first piece of a body.
type promptWriter struct {
	*httptest.ResponseRecorder
	first time.Time
}

func (w *promptWriter) Write(p []byte) (int, error) {
	if w.first.IsZero() && len(p) > 0 {
		w.first = time.Now()
	}
	return w.ResponseRecorder.Write(p)
}

// TestPromptAnswer has v2 stop within an answer. No caller waits for bytes that
// it does not need, or holds what is there already.
func TestPromptAnswer(t *testing.T) {
	const (
		ok      = "HTTP/1.1 200 OK\r\n"
		chunked = ok + "Transfer-Encoding: chunked\r\n\r\n"
		busy    = "HTTP/1.1 503 Service Unavailable\r\n"
	)
	for _, tc := range []struct {
		name   string
		answer string
		body   string        // that the caller gets at once
		after  time.Duration // when Forward ends
		fails  error
		cut    bool // the rest never comes
		again  bool // the connection can be used again
	}{
		{name: "no part of the trailer", answer: chunked + "2\r\n{}\r\n0\r\n", body: "{}"},
		{name: "a part of the trailer", answer: chunked + "2\r\n{}\r\n0\r\nX-Sum: 1", body: "{}"},
		{name: "a part of the empty trailer", answer: chunked + "2\r\n{}\r\n0\r\n\r", body: "{}"},
		{name: "a trailer", answer: chunked + "2\r\n{}\r\n0\r\nX-Sum: 1\r\n\r\n", body: "{}", again: true},
		{name: "no trailer", answer: chunked + "2\r\n{}\r\n0\r\n\r\n", body: "{}", again: true},
		{name: "a part of the next chunk's head", answer: chunked + "2\r\n{}\r\n0", body: "{}", after: 30 * time.Second, cut: true},
		{name: "the end of a chunk", answer: chunked + "2\r\n{}\r\n", body: "{}", after: 30 * time.Second, cut: true},
		{name: "the first piece of a long body", answer: ok + "Content-Length: 20000\r\n\r\n{}", body: "{}", after: 30 * time.Second, cut: true},
		{name: "a body that never has one", answer: "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n"},

		{name: "withheld, without its body", answer: busy + "Content-Length: 5\r\n\r\n", after: restTime, fails: ErrWithheld},
		{name: "withheld, with a part of its body", answer: busy + "Content-Length: 5\r\n\r\nbu", after: restTime, fails: ErrWithheld},
		{name: "withheld, without an end", answer: busy + "Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n", fails: ErrWithheld},
		{name: "withheld, without a chunk", answer: busy + "Transfer-Encoding: chunked\r\n\r\n", after: restTime, fails: ErrWithheld},
		{name: "withheld and whole", answer: busyAnswer, fails: ErrWithheld, again: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				v2 := &stallingV2{answer: tc.answer}
				client := newScripted(t, nil, func(cfg *Config) {
					cfg.Dial = v2.dial
					cfg.Withhold = func(status int) bool { return status == http.StatusServiceUnavailable }
				})
				w := &promptWriter{ResponseRecorder: httptest.NewRecorder()}
				began := time.Now()
				err := forwardTo(w, client)
				if took := time.Since(began); took != tc.after {
					t.Errorf("it took %v, want %v", took, tc.after)
				}
				switch {
				case tc.cut && !errors.Is(err, http.ErrAbortHandler), !tc.cut && !errors.Is(err, tc.fails):
					t.Errorf("got %v", err)
				case tc.body != "" && !w.first.Equal(began):
					t.Errorf("the first piece came after %v", w.first.Sub(began))
				case w.Body.String() != tc.body:
					t.Errorf("got %q, want %q", w.Body, tc.body)
				}
				if err := forwardTo(httptest.NewRecorder(), client); err != nil {
					t.Errorf("the next record: %v", err)
				}
				if want := map[bool]int{true: 1, false: 2}[tc.again]; v2.dialed != want {
					t.Errorf("%d connections, want %d", v2.dialed, want)
				}
			})
		})
	}
}

// forwardTo sends a record. A panic that breaks the caller's connection off is
// its error.
func forwardTo(w http.ResponseWriter, client *Client) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = p.(error)
		}
	}()
	q := &postback.Request{
		Host: "v2.test", Destination: postback.Destination{Database: "db", Table: "tbl"},
		Credentials: postback.Credentials{WriteKey: "1/a"}, Body: []byte("{}"),
	}
	return client.Forward(w, httptest.NewRequest(http.MethodPost, "/", nil), q, new(Trip))
}

// stallingV2 gives an answer to the first request, and then nothing more on
// this connection unless another request comes.
type stallingV2 struct {
	answer string
	dialed int
}

func (v2 *stallingV2) dial(string) (net.Conn, error) {
	v2.dialed++
	conn, far := net.Pipe()
	if v2.dialed > 1 {
		go answerWell(far)
		return conn, nil
	}
	go func() {
		r, err := http.ReadRequest(bufio.NewReader(far))
		if err != nil {
			return
		}
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.Copy(far, strings.NewReader(v2.answer))
		answerWell(far)
	}()
	return conn, nil
}
