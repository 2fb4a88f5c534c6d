package caddymodule

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/td-postback/gateway/upstream"
)

// lookingConn is a v2 that looks at the caller's connection when it gets a record.
type lookingConn struct {
	stubConn
	look func()
}

func (c lookingConn) Write(p []byte) (int, error) {
	c.look()
	return len(p), nil
}

// TestCallerConn sends records, and a request to another handler, over one
// connection of a server with td_handover. While a record is on its way, who
// watches the connection sees nothing, and nothing is taken from the next request,
// which is there already. Beside records the server watches as ever.
func TestCallerConn(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var conn *callerConn // only one caller comes
	looks := 0
	h := stubHandler()
	h.single.Client, err = upstream.New(upstream.Config{
		URL: &url.URL{Scheme: "http", Host: "v2"}, Timeout: time.Minute, MaxConns: 1,
		Dial: func(string) (net.Conn, error) {
			return lookingConn{look: func() {
				looks++
				if n, err := conn.Read(make([]byte, 1)); n != 0 || err != nil {
					t.Errorf("the watcher reads %d bytes, error %v", n, err)
				}
			}}, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	entered, left := make(chan struct{}), make(chan struct{})
	server := &http.Server{
		ReadHeaderTimeout: time.Minute,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			conn, _ = c.(*callerConn)
			return withCallerConn(ctx, c)
		},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/other" {
				close(entered)
				<-r.Context().Done()
				close(left)
				return
			}
			if err := h.ServeHTTP(w, r, nil); err != nil { //nolint:contextcheck // the request has it
				t.Error(err)
			}
		}),
	}
	go func() { _ = server.Serve(new(Handover).WrapListener(listener)) }()
	defer func() { _ = server.Close() }()

	caller, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	body := `{"a":"` + strings.Repeat("x", 300) + `"}`
	record := fmt.Sprintf("POST %s HTTP/1.1\r\nHost: in.treasuredata.com\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", benchPath, len(body), body)
	pixel := "GET " + benchPath + "&" + benchQuery + " HTTP/1.1\r\nHost: in.treasuredata.com\r\n\r\n"
	requests := []string{record, record, pixel, record, "GET /other HTTP/1.1\r\nHost: in.treasuredata.com\r\n\r\n"}
	if _, err := io.WriteString(caller, strings.Join(requests, "")); err != nil {
		t.Fatal(err)
	}
	answers := bufio.NewReader(caller)
	for i := range requests[:4] {
		resp, err := http.ReadResponse(answers, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("answer %d: %d, %v", i+1, resp.StatusCode, err)
		}
		_ = resp.Body.Close()
	}
	<-entered
	if looks != 4 || conn.unwatched.Load() {
		t.Errorf("%d records looked at, unwatched behind them: %v", looks, conn.unwatched.Load())
	}
	_ = caller.Close()
	<-left
}
