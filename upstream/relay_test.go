package upstream

import (
	"bufio"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/td-postback/gateway/postback"
)

// relay sends one request, and returns what its caller gets.
func relay(client *Client, method, body string, rest io.Reader, trip *Trip) (*httptest.ResponseRecorder, error) {
	w := httptest.NewRecorder()
	r := httptest.NewRequest(method, "/x", nil)
	q := &Relayed{Body: []byte(body), Rest: rest}
	q.Method, q.Target, q.Host, q.Header, q.Length = method, "/x", "legacy.test", http.Header{}, int64(len(body))
	if rest != nil {
		q.Length = postback.UnknownLength
	}
	return w, client.Relay(w, r, q, trip)
}

// TestRelay sends one request after the other to a host that follows a script.
func TestRelay(t *testing.T) {
	isTimeout := func(err error) bool { return IsTimeout(err) }
	notProcessed := func(err error) bool { _, ok := errors.AsType[NotProcessedError](err); return ok }
	unclear := func(err error) bool { return err != nil && !notProcessed(err) && !IsTimeout(err) }
	for _, tc := range []struct {
		name   string
		conns  [][]string
		send   int  // how many requests
		rest   bool // they have one
		status int  // for the last one's caller; 0 for an error
		fails  func(error) bool
		trip   Trip // of the last one, without its duration
		got    int  // bodies that came
	}{
		{name: "a kept connection", conns: [][]string{{okAnswer, okAnswer}}, send: 2, status: 200, trip: Trip{Tries: 1, Status: 200}, got: 2},
		{name: "one that is given up", conns: [][]string{{okAnswer}, {okAnswer}}, send: 2, status: 200, trip: Trip{Tries: 2, Dialed: 1, Status: 200}, got: 2},
		{name: "a rest has one of its own", conns: [][]string{{okAnswer}, {okAnswer}}, send: 2, rest: true, status: 200, trip: Trip{Tries: 1, Dialed: 1, Status: 200}, got: 2},
		{name: "a rest, at the third dial", conns: [][]string{{closed}, {closed}, {okAnswer}}, send: 1, rest: true, status: 200, trip: Trip{Tries: 3, Dialed: 1, Status: 200}, got: 1},
		{name: "nobody is there", send: 1, fails: notProcessed, trip: Trip{Tries: 3}},
		{name: "nobody is there for a rest", send: 1, rest: true, fails: notProcessed, trip: Trip{Tries: 3}},
		{name: "a rest is not sent twice", conns: [][]string{{}, {okAnswer}}, send: 1, rest: true, fails: unclear, trip: Trip{Tries: 1, Dialed: 1}},
		{name: "an answer that breaks off", conns: [][]string{{"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{}" + cut}, {okAnswer}}, send: 1, fails: unclear, trip: Trip{Tries: 1, Dialed: 1, Status: 200}, got: 1},
		{name: "silence", conns: [][]string{{silent}, {okAnswer}}, send: 1, fails: isTimeout, trip: Trip{Tries: 1, Dialed: 1}, got: 1},
		{name: "silence behind a rest", conns: [][]string{{silent}, {okAnswer}}, send: 1, rest: true, fails: isTimeout, trip: Trip{Tries: 1, Dialed: 1}, got: 1},
		{name: "no words of what is refused", conns: [][]string{{busyAnswer}}, send: 1, status: 503, trip: Trip{Tries: 1, Dialed: 1, Status: 503}, got: 1},
		{name: "a chunked answer keeps its connection", conns: [][]string{{"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nX-A: 1\r\n\r\n", okAnswer}}, send: 2, status: 200, trip: Trip{Tries: 1, Status: 200}, got: 2},
		{name: "a head of 17 KiB", conns: [][]string{{"HTTP/1.1 200 OK\r\nX-A: " + strings.Repeat("x", 17<<10) + "\r\n\r\n"}, {okAnswer}}, send: 1, fails: unclear, trip: Trip{Tries: 1, Dialed: 1}, got: 1},
		{name: "two lengths", conns: [][]string{{"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}"}, {okAnswer}}, send: 1, fails: unclear, trip: Trip{Tries: 1, Dialed: 1}, got: 1},
		{name: "a transfer coding that is not chunked", conns: [][]string{{"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"}, {okAnswer}}, send: 1, fails: unclear, trip: Trip{Tries: 1, Dialed: 1}, got: 1},
		{name: "a trailer that may be none", conns: [][]string{{"HTTP/1.1 200 OK\r\nTrailer: Content-Length\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"}, {okAnswer}}, send: 1, fails: unclear, trip: Trip{Tries: 1, Dialed: 1}, got: 1},
		{name: "too many interim answers", conns: [][]string{{strings.Repeat("HTTP/1.1 103 Early Hints\r\n\r\n", maxInterim) + okAnswer}}, send: 1, fails: unclear, trip: Trip{Tries: 1, Dialed: 1}, got: 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				host := &script{conns: tc.conns}
				client := newScripted(t, host, nil)
				var w *httptest.ResponseRecorder
				var err error
				var trip Trip
				for range tc.send {
					trip = Trip{}
					var rest io.Reader
					want := "one"
					if tc.rest {
						rest, want = strings.NewReader(" two"), "one two"
					}
					w, err = relay(client, http.MethodPost, "one", rest, &trip)
					synctest.Wait()
					if slices.ContainsFunc(host.got, func(got string) bool { return got != want }) {
						t.Errorf("the host got %q", host.got)
					}
				}
				trip.Duration, trip.Answered = 0, time.Time{}
				if tc.fails == nil && (err != nil || w.Code != tc.status) || tc.fails != nil && !tc.fails(err) {
					t.Errorf("got %d, %v", w.Code, err)
				}
				if trip != tc.trip || len(host.got) != tc.got {
					t.Errorf("got %+v and %d bodies, want %+v and %d", trip, len(host.got), tc.trip, tc.got)
				}
			})
		})
	}
}

// TestRelayHead: an answer to HEAD has no body, whatever its length says. If it says that
// there is one, a host may send it all the same: for the next caller it would be an answer.
func TestRelayHead(t *testing.T) {
	for head, dialed := range map[string]int{"Content-Length: 77\r\n": 2, "Transfer-Encoding: chunked\r\n": 2, "Content-Length: 0\r\n": 1} {
		synctest.Test(t, func(t *testing.T) {
			answer := "HTTP/1.1 200 OK\r\n" + head + "\r\n"
			client := newScripted(t, &script{conns: [][]string{{answer, okAnswer}, {okAnswer}}}, nil)
			var trip Trip
			w, err := relay(client, http.MethodHead, "", nil, &trip)
			length, isLength := strings.CutPrefix(head, "Content-Length: ")
			if err != nil || w.Code != 200 || isLength && w.Header().Get("Content-Length") != strings.TrimSpace(length) || w.Body.Len() > 0 {
				t.Errorf("got %d %q, %v", w.Code, w.Header(), err)
			}
			if w, err := relay(client, http.MethodPost, "one", nil, &trip); err != nil || w.Code != 200 || trip.Dialed != dialed {
				t.Errorf("the next one: %d, %v, after %d dials", w.Code, err, trip.Dialed)
			}
		})
	}
}

// TestRelayConnect: a host that says yes to CONNECT has opened a tunnel on the connection
// (RFC 9110 section 9.3.6). Nothing of it reaches the caller, and no request goes into it.
func TestRelayConnect(t *testing.T) {
	for _, tc := range []struct {
		name, answer string
		status       int // 0 for an error
		dialed       int // for this request and the next one
	}{
		{"yes, with a length", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 0, 2},
		{"yes, without one", "HTTP/1.1 200 Connection established\r\n\r\nSSH-2.0-x\r\n", 0, 2},
		{"yes, with a body in chunks", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 0, 2},
		{"204", "HTTP/1.1 204 No Content\r\n\r\n", 0, 2},
		{"no", "HTTP/1.1 405 Not Allowed\r\nContent-Length: 2\r\n\r\nno", 405, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client := newScripted(t, &script{conns: [][]string{{tc.answer, okAnswer}, {okAnswer}}}, nil)
				var trip, next Trip
				w, err := relay(client, http.MethodConnect, "", nil, &trip)
				if tc.status > 0 && (err != nil || w.Code != tc.status) || tc.status == 0 && (err == nil || len(w.Header())+w.Body.Len() > 0) {
					t.Errorf("got %d %q %q, %v", w.Code, w.Header(), w.Body, err)
				}
				w, err = relay(client, http.MethodPost, "one", nil, &next)
				if err != nil || w.Code != 200 || trip.Dialed+next.Dialed != tc.dialed {
					t.Errorf("the next one: %d, %v, after %d dials", w.Code, err, trip.Dialed+next.Dialed)
				}
			})
		})
	}
}

// TestRelayTrailer: what an answer's head may not say to the caller, its trailer may not
// say either, and what the head has said already comes once.
func TestRelayTrailer(t *testing.T) {
	for _, tc := range []struct {
		name, head, trailer string
		announced           []string
		want                http.Header
	}{
		{"announced", "Trailer: X-Sum\r\n", "X-Sum: 1\r\n", []string{"X-Sum"}, http.Header{"X-Sum": {"1"}}},
		{"not announced", "", "X-Sum: 1\r\nX-Sum: 2\r\n", nil, http.Header{"X-Sum": {"1", "2"}}},
		{"of one hop", "Connection: x-hop, close\r\nTrailer: X-Hop\r\n", "X-Hop: 1\r\nx-hop: 2\r\n", nil, nil},
		{"of one hop by its name", "Trailer: Upgrade\r\n", "Upgrade: x\r\nKeep-Alive: x\r\nproxy-connection: x\r\n", nil, nil},
		{"of the host", "Trailer: Alt-Svc, X-A\r\n", "alt-svc: x\r\nStrict-Transport-Security: x\r\nX-A: 1\r\n", []string{"X-A"}, http.Header{"X-A": {"1"}}},
		{"of the framing", "", "Content-Length: 7\r\nTransfer-Encoding: x\r\nTrailer: X-A\r\n", nil, nil},
		{"a cookie", "", "Set-Cookie: a=b\r\n", nil, http.Header{"Set-Cookie": {"a=b"}}},
		{"in the head too", "Trailer: X-Sum, X-A\r\nX-Sum: 1\r\n", "X-Sum: 2\r\n", []string{"X-A"}, http.Header{"X-Sum": {"2"}}},
		{"in the head alone", "Trailer: Server\r\nServer: x\r\n", "", nil, nil},
		{"no field", "", "no colon\r\n: 1\r\nX A: 1\r\nX-A : 1\r\n", nil, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				answer := "HTTP/1.1 200 OK\r\n" + tc.head + "Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n" + tc.trailer + "\r\n"
				w, err := relay(newScripted(t, &script{conns: [][]string{{answer}}}, nil), http.MethodPost, "one", nil, new(Trip))
				if err != nil || w.Body.String() != "{}" || !slices.Equal(w.Header()["Trailer"], tc.announced) {
					t.Errorf("got %q %q, %v", w.Header(), w.Body, err)
				}
				if got := w.Result().Trailer; !maps.EqualFunc(got, tc.want, slices.Equal) {
					t.Errorf("got the trailer %q, want %q", got, tc.want)
				}
			})
		})
	}
}

// slowly is a body of which a piece comes now and then, and then an error.
type slowly struct {
	pieces int
	pause  time.Duration
	err    error
}

func (s *slowly) Read(p []byte) (int, error) {
	time.Sleep(s.pause)
	if s.pieces == 0 {
		return 0, s.err
	}
	s.pieces--
	return copy(p, "piece"), nil
}

// TestRelaySlowCaller: who sends slowly is waited for, however long: the time for the
// answer begins when all is sent.
func TestRelaySlowCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host := &script{conns: [][]string{{okAnswer}, {silent}}}
		client := newScripted(t, host, nil)
		began := time.Now()
		w, err := relay(client, http.MethodPost, "", &slowly{10, time.Minute, io.EOF}, new(Trip))
		synctest.Wait()
		if err != nil || w.Code != 200 || time.Since(began) != 11*time.Minute || !slices.Equal(host.got, []string{strings.Repeat("piece", 10)}) {
			t.Errorf("got %d, %v after %v, and the host %q", w.Code, err, time.Since(began), host.got)
		}
		began = time.Now()
		if _, err := relay(client, http.MethodPost, "", &slowly{1, time.Minute, io.EOF}, new(Trip)); !IsTimeout(err) || time.Since(began) != 2*time.Minute+30*time.Second {
			t.Errorf("got %v after %v", err, time.Since(began))
		}
	})
}

// TestRelayRetryBesideRests: callers that send slowly, on as many connections as there may
// be, keep no other request from being sent again.
func TestRelayRetryBesideRests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := newScripted(t, nil, func(cfg *Config) {
			cfg.Dial = func(string) (net.Conn, error) {
				conn, host := net.Pipe()
				go new(script).serve(host, []string{okAnswer})
				return conn, nil
			}
		})
		if w, err := relay(client, http.MethodPost, "one", nil, new(Trip)); err != nil || w.Code != 200 {
			t.Fatal(w.Code, err)
		}
		go func() { _, _ = relay(client, http.MethodPost, "", &slowly{1, time.Hour, io.EOF}, new(Trip)) }()
		synctest.Wait()
		began, trip := time.Now(), Trip{}
		w, err := relay(client, http.MethodPost, "one", nil, &trip) // its connection is given up
		if err != nil || w.Code != 200 || trip.Tries != 2 || time.Since(began) != 0 {
			t.Errorf("got %d, %v with %+v after %v", w.Code, err, trip, time.Since(began))
		}
		time.Sleep(3 * time.Hour)
	})
}

// deafWriter is a caller that takes no answer.
type deafWriter struct {
	*httptest.ResponseRecorder
	until <-chan struct{}
}

func (w deafWriter) Write(p []byte) (int, error) {
	<-w.until
	return w.ResponseRecorder.Write(p)
}

// TestRelayBesideDeafCallers: callers that do not take a long answer to what is no event,
// on as many connections as there may be, keep no event waiting, and nothing else that has
// its own connection.
func TestRelayBesideDeafCallers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		long := "HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + strings.Repeat("x", 100_000)
		client := newScripted(t, nil, func(cfg *Config) {
			cfg.Dial = func(string) (net.Conn, error) {
				conn, host := net.Pipe()
				go new(script).serve(host, []string{long, okAnswer})
				return conn, nil
			}
		})
		until := make(chan struct{})
		apart := func(w http.ResponseWriter, trip *Trip) error {
			q := &Relayed{Apart: true}
			q.Method, q.Target, q.Host = http.MethodGet, "/x", "legacy.test"
			return client.Relay(w, httptest.NewRequest(http.MethodGet, "/x", nil), q, trip)
		}
		heard := deafWriter{httptest.NewRecorder(), until}
		go func() { _ = apart(heard, new(Trip)) }()
		synctest.Wait()
		began := time.Now()
		for _, rest := range []io.Reader{nil, strings.NewReader(" two")} {
			if w, err := relay(client, http.MethodPost, "one", rest, new(Trip)); err != nil || w.Code != 200 || time.Since(began) != 0 {
				t.Errorf("an event got %d, %v after %v", w.Code, err, time.Since(began))
			}
		}
		close(until)
		synctest.Wait()
		if heard.Body.Len() != 100_000 {
			t.Errorf("the caller got %d bytes", heard.Body.Len())
		}
		w, trip := httptest.NewRecorder(), Trip{}
		if err := apart(w, &trip); err != nil || w.Code != 200 || trip.Dialed != 0 {
			t.Errorf("the next one got %d, %v with %+v", w.Code, err, trip)
		}
	})
}

// TestRelayInstead: an answer that is not for the caller goes to nobody if it has got
// another one, and else to the caller as it came.
func TestRelayInstead(t *testing.T) {
	const chunked = "HTTP/1.1 503 Busy\r\nRetry-After: 7\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbusy\r\n0\r\nX-A: 1\r\n\r\n"
	for _, tc := range []struct {
		name    string
		answer  string
		instead bool
		asked   int
		fails   bool // with ErrWithheld
		status  int
		dialed  int // for this request and the next one
	}{
		{"it is for the caller", okAnswer, true, 0, false, 200, 1},
		{"a refusal is, too", refusal, true, 0, false, 403, 1},
		{"the caller has another", busyAnswer, true, 1, true, 0, 1},
		{"the same in chunks", chunked, true, 1, true, 0, 1},
		{"it breaks off", "HTTP/1.1 503 Busy\r\nContent-Length: 9\r\n\r\nbusy" + cut, true, 1, true, 0, 2},
		{"the caller has none", busyAnswer, false, 1, false, 503, 1},
		{"nor one in chunks", chunked, false, 1, false, 503, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				host := &script{conns: [][]string{{tc.answer, okAnswer}, {okAnswer}}}
				client := newScripted(t, host, func(cfg *Config) { cfg.Withhold = func(status int) bool { return status == 503 } })
				w, trip, asked := httptest.NewRecorder(), Trip{}, 0
				q := &Relayed{Body: []byte("one"), Instead: func() bool {
					asked++
					if trip.Status != 503 || w.Code != 200 || len(w.Header()) > 0 {
						t.Errorf("asked about %+v, when %d %q was written", trip, w.Code, w.Header())
					}
					return tc.instead
				}}
				q.Method, q.Target, q.Host, q.Length = http.MethodPost, "/x", "legacy.test", 3
				err := client.Relay(w, httptest.NewRequest(http.MethodPost, "/x", nil), q, &trip)
				if asked != tc.asked || errors.Is(err, ErrWithheld) != tc.fails || (err == nil) == tc.fails || trip.Words != "" {
					t.Errorf("asked %d times, got %v and %+v", asked, err, trip)
				}
				if !tc.fails && w.Code != tc.status || tc.fails && len(w.Header())+w.Body.Len() > 0 {
					t.Errorf("the caller got %d %q %q", w.Code, w.Header(), w.Body)
				}
				if tc.asked > 0 && !strings.HasSuffix(tc.answer, cut) && trip.RetryAfter != 7*time.Second {
					t.Errorf("the host wants %v", trip.RetryAfter)
				}
				var next Trip
				if w, err := relay(client, http.MethodPost, "one", nil, &next); err != nil || w.Code != 200 || trip.Dialed+next.Dialed != tc.dialed {
					t.Errorf("the next one: %v, %d, after %d dials", err, w.Code, trip.Dialed+next.Dialed)
				}
			})
		})
	}
}

// TestRelayCutCaller: what breaks off at the caller is no whole request at the host, and
// the error says whose fault it is.
func TestRelayCutCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host := &script{conns: [][]string{{okAnswer}, {okAnswer}}}
		client := newScripted(t, host, nil)
		_, err := relay(client, http.MethodPost, "one", &slowly{3, time.Second, io.ErrUnexpectedEOF}, new(Trip))
		synctest.Wait()
		if _, ok := errors.AsType[CallerError](err); !ok || !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("got %v", err)
		}
		if len(host.got) > 0 {
			t.Errorf("the host took %q", host.got)
		}
		if w, err := relay(client, http.MethodPost, "one", nil, new(Trip)); err != nil || w.Code != 200 {
			t.Errorf("the next one: got %d, %v", w.Code, err)
		}
	})
}

// TestRelayStalledHost: a host that stops reading a rest is given up after Timeout.
func TestRelayStalledHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := newScripted(t, nil, func(cfg *Config) {
			cfg.Dial = func(string) (net.Conn, error) {
				conn, host := net.Pipe()
				go func() {
					_, _ = http.ReadRequest(bufio.NewReaderSize(host, 16))
				}()
				return conn, nil
			}
		})
		began := time.Now()
		if _, err := relay(client, http.MethodPost, "", &slowly{1 << 30, 0, nil}, new(Trip)); !IsTimeout(err) || time.Since(began) != 30*time.Second {
			t.Errorf("got %v after %v", err, time.Since(began))
		}
	})
}

// stalled is a body of which nothing comes until a deadline is set for reading it.
type stalled struct{ until chan struct{} }

func (s *stalled) Read([]byte) (int, error) {
	<-s.until
	return 0, errors.New("the deadline is over")
}

// deadlineWriter notices that deadline.
type deadlineWriter struct {
	*httptest.ResponseRecorder
	until chan struct{}
}

func (w deadlineWriter) SetReadDeadline(at time.Time) error {
	time.AfterFunc(time.Until(at), func() { close(w.until) })
	return nil
}

// TestRelayEarlyRefusal: a refusal that comes while the caller sends, or stalls, is the
// caller's at once, and nobody waits for the rest.
func TestRelayEarlyRefusal(t *testing.T) {
	for _, end := range []string{"", hangsUp} {
		synctest.Test(t, func(t *testing.T) {
			client := newScripted(t, nil, func(cfg *Config) { cfg.Dial = earlyDial(refusal + end) })
			until := make(chan struct{})
			w := deadlineWriter{httptest.NewRecorder(), until}
			q := &Relayed{Rest: &stalled{until}}
			q.Method, q.Target, q.Host, q.Length = http.MethodPost, "/x", "legacy.test", postback.UnknownLength
			began := time.Now()
			err := client.Relay(w, httptest.NewRequest(http.MethodPost, "/x", nil), q, new(Trip))
			if err != nil || w.Code != 403 || w.Body.String() != "early" || w.Header().Get("Connection") != "close" || time.Since(began) != restTime {
				t.Errorf("got %d %q, %v after %v", w.Code, w.Header(), err, time.Since(began))
			}
		})
	}
}

// orderWriter notes what is written to a caller, and its body what is read of it.
type orderWriter struct {
	*httptest.ResponseRecorder
	order chan string
}

func (w orderWriter) WriteHeader(status int) { w.order <- strconv.Itoa(status) }

type orderBody struct{ order chan string }

func (b orderBody) Read([]byte) (int, error) {
	b.order <- "read"
	return 0, io.EOF
}

// inOrder is what they have noted.
func inOrder(order chan string) (noted []string) {
	close(order)
	for what := range order {
		noted = append(noted, what)
	}
	return noted
}

// TestRelayContinue: a caller that waits for 100 Continue gets it before its body is read
// and before a 1xx answer goes to it: net/http would write both at the same time.
func TestRelayContinue(t *testing.T) {
	for continues, want := range map[bool][]string{true: {"100", "read", "103", "200"}, false: {"read", "103", "200"}} {
		synctest.Test(t, func(t *testing.T) {
			answer := "HTTP/1.1 103 Early Hints\r\n\r\n" + okAnswer
			client := newScripted(t, &script{conns: [][]string{{closed}, {answer}}}, nil)
			order := make(chan string, 10)
			q := &Relayed{Rest: orderBody{order}, Continue: continues}
			q.Method, q.Target, q.Host, q.Length, q.Expect = http.MethodPost, "/x", "legacy.test", postback.UnknownLength, []string{"100-continue"}
			if err := client.Relay(orderWriter{httptest.NewRecorder(), order}, httptest.NewRequest(http.MethodPost, "/x", nil), q, new(Trip)); err != nil {
				t.Error(err)
			}
			if got := inOrder(order); !slices.Equal(got, want) {
				t.Errorf("got %q, want %q", got, want)
			}
		})
	}
}

// TestRelayContinueOnce: a caller that has got 100 already, or may have without anybody
// here knowing, gets no second one.
func TestRelayContinueOnce(t *testing.T) {
	all, others := []string{"100", "103", "200"}, []string{"103", "200"}
	for _, tc := range []struct {
		proto  int
		expect []string
		want   []string
	}{
		{1, nil, all}, {1, []string{"100-continue"}, others}, {2, nil, others}, {3, nil, all}, {3, []string{"100-continue"}, all},
	} {
		synctest.Test(t, func(t *testing.T) {
			answer := "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n" + okAnswer
			client := newScripted(t, &script{conns: [][]string{{answer}}}, nil)
			order := make(chan string, 10)
			q := new(Relayed)
			q.Method, q.Target, q.Host, q.Expect = http.MethodPost, "/x", "legacy.test", tc.expect
			r := httptest.NewRequest(http.MethodPost, "/x", nil)
			r.ProtoMajor = tc.proto
			if err := client.Relay(orderWriter{httptest.NewRecorder(), order}, r, q, new(Trip)); err != nil {
				t.Error(err)
			}
			if got := inOrder(order); !slices.Equal(got, tc.want) {
				t.Errorf("HTTP/%d, %q: got %q, want %q", tc.proto, tc.expect, got, tc.want)
			}
		})
	}
}

// TestRelayLostHost: a host that breaks off while the caller stalls is not the caller's
// fault.
func TestRelayLostHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := newScripted(t, nil, func(cfg *Config) { cfg.Dial = earlyDial(hangsUp) })
		until := make(chan struct{})
		q := &Relayed{Rest: &stalled{until}}
		q.Method, q.Target, q.Host, q.Length = http.MethodPost, "/x", "legacy.test", postback.UnknownLength
		err := client.Relay(deadlineWriter{httptest.NewRecorder(), until}, httptest.NewRequest(http.MethodPost, "/x", nil), q, new(Trip))
		if _, caller := errors.AsType[CallerError](err); err == nil || caller {
			t.Errorf("got %v", err)
		}
	})
}
