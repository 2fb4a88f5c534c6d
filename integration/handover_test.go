package integration

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/quic-go/quic-go/http3"
)

// handoverConfig is a site with td_handover on a port of its own.
func handoverConfig(admin, port, upstream, option string, n int) string {
	return fmt.Sprintf("{\n%s\nservers {\n listener_wrappers {\n td_handover\n}\n}\n%s\n}\nhttp://:%s {\n td_postback {\n upstream %s\n max_conns %d\n}\n}\n",
		withAdmin(admin), option, port, upstream, 100+n)
}

// TestHandoverWaits connects before a reload and sends its request while that
// is under way. Meanwhile a request that came before is answered: that is the
// last answer of its connection too.
func TestHandoverWaits(t *testing.T) {
	u := startRecorder(t, func(conn net.Conn, _ int, s seen) bool {
		if strings.Contains(s.line, "slow") {
			time.Sleep(200 * time.Millisecond)
		}
		return send(conn, true, answerOK)
	})
	addr, admin := freeAddr(t), freeAddr(t)
	_, port, _ := net.SplitHostPort(addr)
	serveCaddyfile(t, addr, handoverConfig(admin, port, u.url(), "", 0))
	conn, before := dial(t, addr), dial(t, addr)
	_, _ = io.WriteString(before, post(strings.Replace(target, "tbl", "slow", 1), asJSON, object))
	u.next(t) // so both connections are accepted
	reloaded := make(chan time.Time)
	go func() {
		reload(t, admin, handoverConfig(admin, port, u.url(), "", 1))
		reloaded <- time.Now()
	}()
	if answer := readReply(t, bufio.NewReader(before), "POST"); answer.StatusCode != 200 || !answer.Close {
		t.Errorf("the request before: got %d, Connection: close is %t", answer.StatusCode, answer.Close)
	}
	time.Sleep(200 * time.Millisecond) // less than the second that it waits
	sent := time.Now()
	_, _ = io.WriteString(conn, post(target, asJSON, object))
	if answer := readReply(t, bufio.NewReader(conn), "POST"); answer.StatusCode != 200 || !answer.Close {
		t.Errorf("got %d, Connection: close is %t", answer.StatusCode, answer.Close)
	}
	if (<-reloaded).Before(sent) {
		t.Error("the reload was over before the request was sent")
	}
}

// TestHandoverClosesUpstream reloads while v2 works on a record: when it
// answers, its connection is not kept for a configuration that has ended.
func TestHandoverClosesUpstream(t *testing.T) {
	t.Parallel()
	working, answer, closed := make(chan bool), make(chan bool), make(chan error)
	u := startRecorder(t, func(conn net.Conn, _ int, _ seen) bool {
		working <- true
		<-answer
		send(conn, true, answerOK)
		_ = conn.SetReadDeadline(time.Now().Add(patience))
		_, err := conn.Read(make([]byte, 1))
		closed <- err
		return false
	})
	addr, admin := freeAddr(t), freeAddr(t)
	_, port, _ := net.SplitHostPort(addr)
	serveCaddyfile(t, addr, handoverConfig(admin, port, u.url(), "", 0))
	conn := dial(t, addr)
	_, _ = io.WriteString(conn, post(target, asJSON, object))
	<-working
	reload(t, admin, handoverConfig(admin, port, u.url(), "", 1))
	answer <- true
	if answer := readReply(t, bufio.NewReader(conn), "POST"); answer.StatusCode != 200 || answer.body != "{}" {
		t.Errorf("got %d %q", answer.StatusCode, answer.body)
	}
	if err := <-closed; err != io.EOF { //nolint:errorlint // as Read returns it
		t.Errorf("the connection was not closed: %v", err)
	}
}

// TestHandoverStandsAside stops a gateway that has Caddy's shutdown_delay:
// callers are served until it is over.
func TestHandoverStandsAside(t *testing.T) {
	t.Parallel()
	u := startRecorder(t, nil)
	addr := freeAddr(t)
	_, port, _ := net.SplitHostPort(addr)
	g := serveCaddyfile(t, addr, handoverConfig("off", port, u.url(), "shutdown_delay 2s", 0))
	_ = g.cmd.Process.Signal(syscall.SIGTERM)
	g.await(t, "shutdown scheduled", 1)
	if answer := raw(t, addr, post(target, asJSON, object)); answer.StatusCode != 200 {
		t.Errorf("got %d", answer.StatusCode)
	}
	<-g.exited
}

// TestHandoverOverHTTP3 reloads while callers send over HTTP/3, whose answers
// have no Connection header.
func TestHandoverOverHTTP3(t *testing.T) {
	t.Parallel()
	u := startRecorder(t, nil)
	addr, admin := freeAddr(t), freeAddr(t)
	_, port, _ := net.SplitHostPort(addr)
	pair := newCertificate(t, "localhost")
	config := func(n int) string {
		return strings.Replace(handoverConfig(admin, port, u.url(), "", n),
			"http://:"+port+" {", "https://localhost:"+port+" {\n tls "+pair.cert+" "+pair.key, 1)
	}
	serveCaddyfile(t, addr, config(0))
	transport := &http3.Transport{TLSClientConfig: &tls.Config{RootCAs: pair.pool}}
	defer transport.Close()
	client := &http.Client{Timeout: patience, Transport: transport}
	stop := make(chan struct{})
	var callers sync.WaitGroup
	for range 4 {
		callers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				resp, err := client.Post("https://localhost:"+port+target, "application/json", strings.NewReader(object))
				if err != nil {
					t.Errorf("over HTTP/3: %v", err)
					return
				}
				if resp.StatusCode != http.StatusOK || resp.ProtoMajor != 3 {
					t.Errorf("got %s over %s", resp.Status, resp.Proto)
				}
				_ = resp.Body.Close()
				u.next(t)
			}
		})
	}
	for n := range 3 {
		time.Sleep(100 * time.Millisecond) // let each configuration serve
		if status, problem := reload(t, admin, config(n+1)); status != http.StatusOK {
			t.Errorf("reload: %d %s", status, problem)
		}
	}
	close(stop)
	callers.Wait()
}
