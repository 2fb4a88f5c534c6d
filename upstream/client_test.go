package upstream

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"
	"testing/synctest"
	"time"

	"github.com/td-postback/gateway/postback"
)

// TestConnectionAge counts the connections that are made while v2 answers
// well, on a clock of its own. Names are looked up when a connection is made,
// so this is how fast the gateway follows v2 to a new address.
func TestConnectionAge(t *testing.T) {
	for _, tc := range []struct {
		name  string
		pause time.Duration // between requests
		last  time.Duration // when the last one is sent
		conns int
	}{
		{"busy for less than 5 minutes", 30 * time.Second, 270 * time.Second, 1},
		{"busy for more than 5 minutes", 30 * time.Second, 330 * time.Second, 2},
		{"busy for more than 10 minutes", 30 * time.Second, 690 * time.Second, 3},
		{"idle for nearly as long as v2 allows", 59 * time.Second, 59 * time.Second, 2},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				u, err := New(Config{URL: &url.URL{Scheme: "http", Host: "v2.test"}, Timeout: time.Second, MaxConns: 1})
				if err != nil {
					t.Fatal(err)
				}
				conns := 0
				u.pool.DialTimeout = func(string, time.Duration) (net.Conn, error) {
					conns++
					conn, v2 := net.Pipe()
					go answerWell(v2)
					return &connection{Conn: conn, socket: newWatch(conn)}, nil
				}
				defer func() {
					u.Close()
					time.Sleep(2 * idleTimeout) // fasthttp sees only then that nothing is left to close
				}()
				out := &postback.Request{Host: "v2.test", Destination: postback.Destination{Database: "db", Table: "tbl"}, Credentials: postback.Credentials{WriteKey: "1/a"}, Body: []byte("{}")}
				began := time.Now()
				for {
					w := httptest.NewRecorder()
					if err := u.Forward(w, httptest.NewRequest(http.MethodPost, "/", nil), out, new(Trip)); err != nil || w.Code != http.StatusOK {
						t.Fatalf("after %v: got %d, %v", time.Since(began), w.Code, err)
					}
					if time.Since(began) >= tc.last {
						break
					}
					time.Sleep(tc.pause)
				}
				if conns != tc.conns {
					t.Errorf("%d connections, want %d", conns, tc.conns)
				}
			})
		})
	}
}

// answerWell answers the requests on a connection as v2 does.
func answerWell(conn net.Conn) {
	defer conn.Close()
	br := bufio.NewReader(conn)
	for {
		r, err := http.ReadRequest(br)
		if err != nil {
			return
		}
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			return
		}
		if _, err := io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"); err != nil {
			return
		}
	}
}
