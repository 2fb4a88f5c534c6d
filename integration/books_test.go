package integration

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestBooksOfCallsThatBreakOff sends calls of each surface that end in the middle, over
// HTTP/1.1 and HTTP/2, while v2 is slow, breaks off or says nothing, next handlers panic,
// a spool is full, and the configuration is loaded again. Then each is in one book.
func TestBooksOfCallsThatBreakOff(t *testing.T) {
	t.Parallel()
	v2 := startMoodyV2(t)
	pair := newCertificate(t, "localhost")
	admin, plain, secure := freeAddr(t), freeAddr(t), freeAddr(t)
	_, plainPort, _ := net.SplitHostPort(plain)
	_, securePort, _ := net.SplitHostPort(secure)
	dir := filepath.Join(t.TempDir(), "spool")
	config := func(n int) string {
		options := fmt.Sprintf("upstream %s\n retries 0\n response_timeout 100ms\n max_conns %d", v2, 50+n)
		site := fmt.Sprintf("route {\n td_postback /postback/v3/event/handed/* {\n handoff\n }\n reverse_proxy /postback/v3/event/handed/* %s\n"+
			" td_postback /postback/v3/event/kept/* {\n %s\n spool {\n dir %s\n max_size 1MiB\n }\n }\n td_postback {\n %s\n max_buffered 4MiB\n report {\n dir %s\n }\n }\n}\n", v2, options, dir, options, dir+"-report")
		return fmt.Sprintf("{\n%s skip_install_trust\n servers {\n max_header_size 1MiB\n timeouts {\n read_body 300ms\n }\n }\n}\nhttp://:%s {\n%s}\nhttps://localhost:%s {\n tls %s %s\n%s}\n",
			withAdmin(admin), plainPort, site, securePort, pair.cert, pair.key, site)
	}
	g := serveCaddyfile(t, plain, config(0))
	client := pair.http2Client()

	var callers sync.WaitGroup
	stop := make(chan struct{})
	for range 8 {
		callers.Go(func() { breakOff(stop, plain) })
		callers.Go(func() { resetStreams(stop, client, "https://localhost:"+securePort) })
	}
	for n := range 5 {
		time.Sleep(400 * time.Millisecond) // of calls
		if status, problem := reload(t, admin, config(n+1)); status != http.StatusOK {
			t.Errorf("reload: %d %s", status, problem)
		}
	}
	close(stop)
	callers.Wait()
	client.CloseIdleConnections()
	metrics := awaitIdle(t, admin)
	t.Logf("%d calls, %v", checkBooks(t, metrics), g.addr)
	for _, surface := range []string{"post", "get", "pixel", "jsonp", "js", "k", "mobile"} {
		if metrics[booksTotal(surface, "received")] == 0 {
			t.Errorf("no %s was received", surface)
		}
	}
	for _, book := range []string{"forwarded", "spooled", "refused", "lost"} {
		if metrics[booksTotal("post", book)] == 0 {
			t.Errorf("no post was %s", book)
		}
	}
}

// startMoodyV2 runs v2 that answers at once, late, too late, with a fault, or in part.
func startMoodyV2(t *testing.T) (url string) {
	t.Helper()
	v2 := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		switch below(8) {
		case 0:
			w.WriteHeader(http.StatusServiceUnavailable)
		case 1:
			w.WriteHeader(http.StatusBadRequest)
		case 2:
			panic(http.ErrAbortHandler)
		case 3:
			w.Header().Set("Content-Length", "1000")
			_, _ = io.WriteString(w, "{")
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		case 4:
			select {
			case <-r.Context().Done():
			case <-time.After(200 * time.Millisecond):
			}
		case 5:
			time.Sleep(time.Duration(below(50)) * time.Millisecond)
		default:
			_, _ = io.WriteString(w, "{}")
		}
	}))
	t.Cleanup(v2.Close)
	return v2.URL
}

// below is a number from 0 on, below n.
func below(n int) int { return rand.IntN(n) } //nolint:gosec // G404: a test's dice

// anyCall is a call of a surface: its method, target, type and body.
func anyCall() (method, target, header, body string) {
	key, data := "td_write_key="+callersKey, url.QueryEscape(base64.StdEncoding.EncodeToString([]byte(`{"a":1}`)))
	database := []string{"shop", "shop", "kept", "handed"}[below(4)]
	event := "/postback/v3/event/" + database + "/orders?" + key
	object, events := `{"a":"`+strings.Repeat("a", below(30_000))+`"}`, `{"shop.orders":[{"a":1},{"a":2}]}`
	switch below(9) {
	case 0:
		return http.MethodGet, event + "&a=1", "", ""
	case 1:
		return http.MethodGet, event + "&a=1&td_format=pixel", "", ""
	case 2:
		return http.MethodPost, event + "&a=1", "", "" // a beacon
	case 3:
		return http.MethodGet, "/js/v3/event/shop/orders?callback=cb&" + key + "&data=" + data, "", ""
	case 4:
		return http.MethodPost, "/js/v3/event/shop/orders?" + key, "", object
	case 5:
		return http.MethodPost, "/js/v3/event", "k", events
	case 6:
		return http.MethodPost, "/android/v3/event", "k", events
	case 7:
		return http.MethodOptions, event, "", ""
	default:
		return http.MethodPost, event, "", object
	}
}

// breakOff sends calls over HTTP/1.1 and closes the connection somewhere in them, or
// pauses there, or behind them.
func breakOff(stop <-chan struct{}, addr string) {
	for {
		select {
		case <-stop:
			return
		default:
		}
		method, target, dataType, body := anyCall()
		var head bytes.Buffer
		fmt.Fprintf(&head, "%s %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n", method, target, len(body))
		if dataType != "" {
			fmt.Fprintf(&head, "X-TD-Data-Type: %s\r\nX-TD-Write-Key: %s\r\n", dataType, callersKey)
		}
		text := head.String() + "\r\n" + body
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			continue
		}
		cut := len(text)
		if below(2) == 0 {
			cut = below(len(text))
		}
		_, _ = io.WriteString(conn, text[:cut])
		_ = conn.SetReadDeadline(time.Now().Add(time.Duration(below(400)) * time.Millisecond))
		_, _ = conn.Read(make([]byte, 1))
		_ = conn.Close()
	}
}

// resetStreams sends calls over HTTP/2 and resets their streams at any time.
func resetStreams(stop <-chan struct{}, client *http.Client, base string) {
	for {
		select {
		case <-stop:
			return
		default:
		}
		method, target, dataType, body := anyCall()
		ctx, cancel := context.WithTimeout(context.Background(), time.Duration(below(150_000))*time.Microsecond)
		req, err := http.NewRequestWithContext(ctx, method, base+target, io.NopCloser(strings.NewReader(body)))
		if err == nil {
			req.Header.Set("Content-Type", "application/json")
			if dataType != "" {
				req.Header.Set("X-Td-Data-Type", dataType)
				req.Header.Set("X-TD-Write-Key", callersKey)
			}
			if resp, err := client.Do(req); err == nil {
				_, _ = io.CopyN(io.Discard, resp.Body, int64(below(100)))
				_ = resp.Body.Close()
			}
		}
		cancel()
	}
}
