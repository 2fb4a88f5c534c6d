package caddymodule

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"
)

// slowConsole is a connection to a console, of which the end of each request is told.
func slowConsole(t *testing.T) (client net.Conn, ended <-chan time.Duration) {
	t.Helper()
	c := aConsole()
	c.AllowRemote, c.Actions = true, true
	client, server := net.Pipe()
	end, began := make(chan time.Duration, 10), time.Now()
	served := &http.Server{ReadHeaderTimeout: time.Hour, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = c.ServeHTTP(w, r, nil) //nolint:contextcheck // the request has its own
		end <- time.Since(began)
	})}
	go func() { _ = served.Serve(&oneConn{conn: server, closed: make(chan struct{})}) }()
	t.Cleanup(func() {
		_ = client.Close()
		_ = served.Close()
	})
	return client, end
}

// oneConn is a listener to which one connection comes.
type oneConn struct {
	conn   net.Conn
	closed chan struct{}
}

func (l *oneConn) Accept() (net.Conn, error) {
	if conn := l.conn; conn != nil {
		l.conn = nil
		return conn, nil
	}
	<-l.closed
	return nil, net.ErrClosed
}

func (l *oneConn) Close() error   { close(l.closed); return nil }
func (l *oneConn) Addr() net.Addr { return &net.TCPAddr{} }

// TestConsoleWaitsForNobody: a form that does not come, and a page that is not taken, end:
// a stop of the gateway would wait for them.
func TestConsoleWaitsForNobody(t *testing.T) {
	for name, request := range map[string]string{
		"a form that does not come": "POST / HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 100\r\n\r\ntoken=",
		"a form that is refused":    "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\ntoken=",
		"a body of a GET":           "GET /?part=icon HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n",
		"a page that is not taken":  "GET /?part=style HTTP/1.1\r\nHost: localhost\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client, ended := slowConsole(t)
				_, _ = io.WriteString(client, request)
				select {
				case took := <-ended:
					if took > time.Minute {
						t.Errorf("it took %s", took)
					}
				case <-time.After(time.Hour):
					t.Error("it never ends")
				}
			})
		})
	}
}

// TestConsoleLeavesTheConnection: what limits a page does not limit what comes later on
// its connection, be it an event.
func TestConsoleLeavesTheConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, _ := slowConsole(t)
		from := bufio.NewReader(client)
		for range 3 {
			_, _ = io.WriteString(client, "GET /?part=style HTTP/1.1\r\nHost: localhost\r\n\r\n")
			answer, err := http.ReadResponse(from, nil)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, answer.Body); err != nil || answer.StatusCode != http.StatusOK {
				t.Fatal(answer.StatusCode, err)
			}
			_ = answer.Body.Close()
			time.Sleep(time.Hour)
		}
	})
}
