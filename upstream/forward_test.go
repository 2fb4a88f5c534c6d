package upstream

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/td-postback/gateway/postback"
)

const (
	okAnswer   = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
	busyAnswer = "HTTP/1.1 503 Service Unavailable\r\nretry-after: 7\r\nContent-Length: 4\r\n\r\nbusy"
)

// script is a v2 that does what a test says: for each connection, what it
// answers to one request after the other. Behind the last one it closes the
// connection. A silent answer never comes; closed refuses to be dialled.
type script struct {
	conns  [][]string
	dialed int
	got    []string // the bodies that came
}

const (
	silent = "silent"
	closed = "closed"
	cut    = "cut" // ends an answer behind which v2 closes the connection
)

func (s *script) dial(string) (net.Conn, error) {
	n := s.dialed
	s.dialed++
	if n >= len(s.conns) || slices.Equal(s.conns[n], []string{closed}) {
		return nil, errors.New("refused")
	}
	conn, v2 := net.Pipe()
	go s.serve(v2, s.conns[n])
	return conn, nil
}

func (s *script) serve(conn net.Conn, answers []string) {
	defer conn.Close()
	br := bufio.NewReader(conn)
	for _, answer := range answers {
		r, err := http.ReadRequest(br)
		if err != nil {
			return
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		s.got = append(s.got, string(body))
		if answer == silent {
			_, _ = br.ReadByte() // until the client gives up
			return
		}
		whole, isCut := strings.CutSuffix(answer, cut)
		if _, err := io.WriteString(conn, whole); err != nil || isCut {
			return
		}
	}
	// The next request is read and not answered, as by a v2 that had given the
	// connection up when it came.
	_, _ = http.ReadRequest(br)
}

// newScripted makes a client of a scripted v2. It is for one request at a time.
func newScripted(t *testing.T, s *script, change func(*Config)) *Client {
	t.Helper()
	cfg := Config{
		URL: &url.URL{Scheme: "http", Host: "v2.test"}, Dial: s.dial,
		DialTimeout: time.Second, Timeout: 30 * time.Second, MaxConns: 1, Retries: 2,
	}
	if change != nil {
		change(&cfg)
	}
	client, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		client.Close()
		time.Sleep(2 * idleTimeout) // fasthttp sees only then that nothing is left to close
	})
	return client
}

// forward sends one record, and returns what its caller gets.
func forward(client *Client, body string, trip *Trip) (*httptest.ResponseRecorder, error) {
	w := httptest.NewRecorder()
	q := &postback.Request{
		Host: "v2.test", Destination: postback.Destination{Database: "db", Table: "tbl"},
		Credentials: postback.Credentials{WriteKey: "1/a"}, Body: []byte(body),
	}
	return w, client.Forward(w, httptest.NewRequest(http.MethodPost, "/", nil), q, trip)
}

// TestForward sends one record after the other to a v2 that follows a script,
// and looks what the last one's caller gets, what came at v2, and what the trip
// says.
func TestForward(t *testing.T) {
	isTimeout := func(err error) bool { return IsTimeout(err) }
	notProcessed := func(err error) bool { _, ok := errors.AsType[NotProcessedError](err); return ok }
	unclear := func(err error) bool { return err != nil && !notProcessed(err) && !IsTimeout(err) }
	for _, tc := range []struct {
		name   string
		conns  [][]string
		send   int // how many records
		status int // for the last one's caller; 0 for an error
		fails  func(error) bool
		trip   Trip // of the last record, without its duration
		got    int  // bodies at v2
	}{
		{name: "a record", conns: [][]string{{okAnswer}}, send: 1, status: 200, trip: Trip{Tries: 1, Dialed: 1, Status: 200}, got: 1},
		{name: "a kept connection", conns: [][]string{{okAnswer, okAnswer}}, send: 2, status: 200, trip: Trip{Tries: 1, Status: 200}, got: 2},
		{
			name: "an answer that closes", conns: [][]string{{"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}"}, {okAnswer}},
			send: 2, status: 200, trip: Trip{Tries: 1, Dialed: 1, Status: 200}, got: 2,
		},
		{
			name: "a kept connection that v2 has given up", conns: [][]string{{okAnswer}, {okAnswer}},
			send: 2, status: 200, trip: Trip{Tries: 2, Dialed: 1, Status: 200}, got: 2,
		},
		{
			name: "v2 is back at the third dial", conns: [][]string{{closed}, {closed}, {okAnswer}},
			send: 1, status: 200, trip: Trip{Tries: 3, Dialed: 1, Status: 200}, got: 1,
		},
		{name: "v2 is away", conns: nil, send: 1, fails: notProcessed, trip: Trip{Tries: 3}},
		{name: "a new connection that closes", conns: [][]string{{}, {okAnswer}}, send: 1, fails: unclear, trip: Trip{Tries: 1, Dialed: 1}},
		{name: "an answer that breaks off", conns: [][]string{{"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{" + cut}, {okAnswer}}, send: 1, fails: unclear, trip: Trip{Tries: 1, Dialed: 1, Status: 200}, got: 1},
		{name: "no HTTP", conns: [][]string{{"SSH-2.0\r\n\r\n"}, {okAnswer}}, send: 1, fails: unclear, trip: Trip{Tries: 1, Dialed: 1}, got: 1},
		{name: "no answer in time", conns: [][]string{{silent}, {okAnswer}}, send: 1, fails: isTimeout, trip: Trip{Tries: 1, Dialed: 1}, got: 1},
		{name: "a refusal of v2", conns: [][]string{{busyAnswer}}, send: 1, status: 503, trip: Trip{Tries: 1, Dialed: 1, Status: 503, Words: "busy"}, got: 1},
		{
			name: "interim answers", conns: [][]string{{strings.Repeat("HTTP/1.1 103 Early Hints\r\n\r\n", maxInterim-1) + okAnswer}},
			send: 1, status: 200, trip: Trip{Tries: 1, Dialed: 1, Status: 200}, got: 1,
		},
		{
			name: "too many of them", conns: [][]string{{strings.Repeat("HTTP/1.1 103 Early Hints\r\n\r\n", maxInterim) + okAnswer}},
			send: 1, fails: unclear, trip: Trip{Tries: 1, Dialed: 1}, got: 1,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &script{conns: tc.conns}
				client := newScripted(t, s, nil)
				var (
					w    *httptest.ResponseRecorder
					err  error
					trip Trip
				)
				for range tc.send {
					trip = Trip{}
					w, err = forward(client, `{"a":1}`, &trip)
				}
				synctest.Wait()
				switch {
				case tc.fails == nil && (err != nil || w.Code != tc.status):
					t.Errorf("got %d, %v, want %d", w.Code, err, tc.status)
				case tc.fails != nil && !tc.fails(err):
					t.Errorf("got %d, %v", w.Code, err)
				case tc.fails != nil && (w.Body.Len() > 0 || len(w.Header()) > 0):
					t.Errorf("after an error the caller has %q", w.Body)
				}
				trip.Duration, trip.Answered = 0, time.Time{}
				if tc.trip.Bytes = len(`{"a":1}`); trip != tc.trip {
					t.Errorf("the trip is %+v, want %+v", trip, tc.trip)
				}
				if len(s.got) != tc.got {
					t.Errorf("%d records at v2, want %d", len(s.got), tc.got)
				}
			})
		})
	}
}

// TestForwardHooks checks when an answer is begun, and that one which is
// withheld leaves the caller untouched and the connection open.
func TestForwardHooks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{conns: [][]string{{busyAnswer, okAnswer}}}
		begun := 0
		client := newScripted(t, s, func(cfg *Config) {
			cfg.Begin = func(w http.ResponseWriter, _ *http.Request) {
				begun++
				w.Header().Set("X-Begun", "1")
			}
			cfg.Withhold = func(status int) bool { return status == http.StatusServiceUnavailable }
		})
		var trip Trip
		w, err := forward(client, "{}", &trip)
		if !errors.Is(err, ErrWithheld) || trip.Status != http.StatusServiceUnavailable || trip.RetryAfter != 7*time.Second {
			t.Errorf("withheld: got %v, %+v", err, trip)
		}
		if begun != 0 || len(w.Header()) > 0 || w.Body.Len() > 0 {
			t.Errorf("withheld: the caller has %v, %q", w.Header(), w.Body)
		}
		w, err = forward(client, "{}", &trip)
		if err != nil || w.Code != http.StatusOK || w.Body.String() != "{}" || begun != 1 || w.Header().Get("X-Begun") != "1" {
			t.Errorf("got %d, %q, %v, begun %d times", w.Code, w.Body, err, begun)
		}
		if s.dialed != 1 {
			t.Errorf("%d connections, want 1", s.dialed)
		}
	})
}

// TestNoConn checks that a request waits for a connection, and gives up after a
// while without having sent anything. It runs on the real clock: fasthttp keeps
// the timers of those who wait for the next test.
func TestNoConn(t *testing.T) {
	const wait = 20 * time.Millisecond
	released := make(chan struct{})
	entered := make(chan struct{})
	client, err := New(Config{
		URL: &url.URL{Scheme: "http", Host: "v2.test"}, MaxConns: 1, Timeout: time.Minute,
		Dial: func(string) (net.Conn, error) {
			close(entered)
			<-released
			return nil, errors.New("refused")
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if client.pool.MaxConnWaitTimeout != queueTimeout {
		t.Errorf("a request waits for %v, want %v", client.pool.MaxConnWaitTimeout, queueTimeout)
	}
	client.pool.MaxConnWaitTimeout = wait
	first := make(chan error)
	go func() {
		_, err := forward(client, "first", new(Trip))
		first <- err
	}()
	<-entered
	began := time.Now()
	var trip Trip
	if _, err := forward(client, "{}", &trip); !errors.Is(err, ErrNoConn) || trip.Tries != 1 || trip.Dialed != 0 {
		t.Errorf("got %v, %+v", err, trip)
	}
	if waited := time.Since(began); waited < wait {
		t.Errorf("given up after %v", waited)
	}
	close(released)
	if _, ok := errors.AsType[NotProcessedError](<-first); !ok {
		t.Error("the first has another error than that of its dial")
	}
}

// TestDeliver sends what was kept, for no caller.
func TestDeliver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{conns: [][]string{{okAnswer, busyAnswer}}}
		client := newScripted(t, s, nil)
		q := &postback.Request{Host: "v2.test", Destination: postback.Destination{Database: "db", Table: "tbl"}, Body: []byte(`{"time":1}`)}
		data, _ := postback.AppendKept(nil, q, time.Now())
		for _, want := range []Trip{{Tries: 1, Dialed: 1, Status: 200}, {Tries: 1, Status: 503, RetryAfter: 7 * time.Second, Words: "busy"}} {
			var trip Trip
			if err := client.Deliver(data, &trip); err != nil {
				t.Error(err)
			}
			if trip.Duration, trip.Answered = 0, (time.Time{}); trip != want {
				t.Errorf("the trip is %+v, want %+v", trip, want)
			}
		}
		if !slices.Equal(s.got, []string{`{"time":1}`, `{"time":1}`}) {
			t.Errorf("at v2: %q", s.got)
		}
	})
}

// TestRetryAfter reads the header as RFC 9110 section 10.2.3 writes it.
func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, time.January, 1, 0, 0, 0, 0, time.UTC)
	for value, want := range map[string]time.Duration{
		"":                              0,
		"0":                             0,
		"120":                           2 * time.Minute,
		"-1":                            0,
		"99999999999999999999":          1 << 30 * time.Second,
		"-99999999999999999999":         0,
		"9999999999":                    1 << 30 * time.Second,
		"soon":                          0,
		"Thu, 01 Jan 2026 00:01:00 GMT": time.Minute,
		"Wed, 31 Dec 2025 23:59:00 GMT": 0,
	} {
		if got := parseRetryAfter(value, now); got != want {
			t.Errorf("%q: got %v, want %v", value, got, want)
		}
	}
}
