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

const (
	refusal   = "HTTP/1.1 403 Forbidden\r\nContent-Length: 5\r\n\r\nearly"
	hangsUp   = "hangs up" // ends an early answer behind which v2 closes
	readsOn   = "reads on" // ends one behind which v2 reads the body
	buffers   = "buffers"  // ends one behind which only buffers take what comes
	largeBody = postback.MaxBody
)

// earlyDial makes connections to a v2 that answers when it has the head of the
// first request, and well after that.
func earlyDial(answer string) func(string) (net.Conn, error) {
	early := true
	return func(string) (net.Conn, error) {
		conn, v2 := net.Pipe()
		if !early {
			go answerWell(v2)
			return conn, nil
		}
		early = false
		closed := make(chan struct{})
		go func() {
			defer v2.Close()
			br := bufio.NewReader(v2)
			r, err := http.ReadRequest(br)
			if err != nil {
				return
			}
			text := strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(answer, hangsUp), readsOn), buffers)
			if _, err := io.WriteString(v2, text); err != nil || strings.HasSuffix(answer, hangsUp) {
				return
			}
			if strings.HasSuffix(answer, readsOn) {
				_, _ = io.Copy(io.Discard, r.Body)
				answerWell(v2)
				return
			}
			if strings.HasSuffix(answer, buffers) {
				_, _ = io.Copy(io.Discard, br)
				return
			}
			<-closed // it reads no more
		}()
		return closeConn{conn, func() { close(closed) }}, nil
	}
}

// closeConn tells when it is closed.
type closeConn struct {
	net.Conn
	closed func()
}

func (c closeConn) Close() error {
	c.closed()
	return c.Conn.Close()
}

// TestEarlyAnswer has v2 answer while the body is still being sent. A refusal
// is the caller's at once. Anything else would say that v2 has a record that it
// cannot have.
func TestEarlyAnswer(t *testing.T) {
	isTimeout := func(err error) bool { return IsTimeout(err) }
	broken := func(err error) bool { return err != nil && !IsTimeout(err) && !errors.Is(err, ErrWithheld) }
	withheld := func(err error) bool { return errors.Is(err, ErrWithheld) }
	for _, tc := range []struct {
		name   string
		answer string
		status int // the caller's, or v2's if it is for no caller
		fails  func(error) bool
		after  time.Duration
	}{
		{name: "a refusal", answer: refusal, status: 403},
		{name: "a refusal, and v2 closes", answer: refusal + hangsUp, status: 403},
		{name: "a refusal, and v2 reads the body", answer: refusal + readsOn, status: 403},
		{name: "a refusal, and buffers take the body", answer: refusal + buffers, status: 403},
		{name: "a redirect", answer: strings.Replace(refusal, "403", "307", 1), status: 307},
		{name: "interim answers before it", answer: "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n" + refusal, status: 403},
		{name: "an interim answer alone", answer: "HTTP/1.1 100 Continue\r\n\r\n", fails: isTimeout, after: 30 * time.Second},
		{name: "an interim answer, and v2 reads on", answer: "HTTP/1.1 100 Continue\r\n\r\n" + okAnswer + readsOn, status: 200},
		{name: "200, and v2 reads the body", answer: okAnswer + readsOn, status: 200},
		{name: "200, and v2 never reads the body", answer: okAnswer, fails: isTimeout, after: 30 * time.Second},
		{name: "200, and v2 closes", answer: okAnswer + hangsUp, fails: broken},
		{name: "not now", answer: busyAnswer, fails: withheld},
		{name: "no HTTP", answer: "SSH-2.0\r\n\r\n", fails: broken},
		{name: "v2 closes without a word", answer: hangsUp, fails: broken},
	} {
		check := func(t *testing.T, send func(client *Client, body string, trip *Trip) (int, error), fails func(error) bool) {
			synctest.Test(t, func(t *testing.T) {
				client := newScripted(t, nil, func(cfg *Config) {
					cfg.Dial = earlyDial(tc.answer)
					cfg.Withhold = func(status int) bool { return status == http.StatusServiceUnavailable }
				})
				began := time.Now()
				status, err := send(client, strings.Repeat("x", largeBody), new(Trip))
				if took := time.Since(began); took != tc.after {
					t.Errorf("it took %v, want %v", took, tc.after)
				}
				if fails == nil && (err != nil || status != tc.status) || fails != nil && !fails(err) {
					t.Errorf("got %d, %v, want %d", status, err, tc.status)
				}
				if status, err := send(client, "{}", new(Trip)); err != nil || status != http.StatusOK {
					t.Errorf("the next record: got %d, %v", status, err)
				}
			})
		}
		t.Run(tc.name, func(t *testing.T) {
			check(t, func(client *Client, body string, trip *Trip) (int, error) {
				w, err := forward(client, body, trip)
				if err != nil && (w.Body.Len() > 0 || len(w.Header()) > 0) {
					t.Errorf("after an error the caller has %q", w.Body)
				}
				return w.Code, err
			}, tc.fails)
		})
		t.Run(tc.name+", for no caller", func(t *testing.T) {
			fails := tc.fails
			if tc.answer == busyAnswer {
				fails = nil // withheld from whom?
				tc.status = http.StatusServiceUnavailable
			}
			check(t, func(client *Client, body string, trip *Trip) (int, error) {
				q := &postback.Request{Host: "v2.test", Destination: postback.Destination{Database: "db", Table: "tbl"}, Body: []byte(body)}
				data, _ := postback.AppendKept(nil, q, time.Now())
				err := client.Deliver(data, trip)
				return trip.Status, err
			}, fails)
		})
	}
}

// TestEarlyAnswerAborted has the caller's connection aborted by a panic, in a
// long early answer that breaks off. The record's bytes must not be in use any
// more when Forward has ended.
func TestEarlyAnswerAborted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		long := "HTTP/1.1 403 Forbidden\r\nContent-Length: 100000\r\n\r\n" + strings.Repeat("x", answerBuffer+1)
		client := newScripted(t, nil, func(cfg *Config) { cfg.Dial = earlyDial(long + hangsUp) })
		func() {
			defer func() {
				if p := recover(); p != http.ErrAbortHandler { //nolint:errorlint // a panic's value is compared as net/http does
					t.Errorf("got %v", p)
				}
			}()
			_, _ = forward(client, strings.Repeat("x", largeBody), new(Trip))
		}()
		if w, err := forward(client, "{}", new(Trip)); err != nil || w.Code != http.StatusOK {
			t.Errorf("the next record: got %d, %v", w.Code, err)
		}
	})
}

// TestUnsentRequest has v2 say 200 on a kept connection and close it, just when
// the next request comes: that is no answer to a record that was not sent.
func TestUnsentRequest(t *testing.T) {
	x := exchanges.Get().(*exchange)
	defer x.put()
	w := httptest.NewRecorder()
	x.w, x.r, x.conn, x.timeout = w, httptest.NewRequest(http.MethodPost, "/", nil), closedConn{}, time.Second
	x.pieces = append(x.pieces[:0], []byte("POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}"))
	x.startSending()
	reusable, err := (&Client{}).receive(x, bufio.NewReader(closedConn{}), new(Trip))
	if reusable || err == nil || w.Body.Len() > 0 {
		t.Errorf("got %v, %v, %q", reusable, err, w.Body)
	}
}

// closedConn is a connection on which v2 has said 200 before it closed it.
type closedConn struct{ stubConn }

func (closedConn) Write([]byte) (int, error) { return 0, net.ErrClosed }
