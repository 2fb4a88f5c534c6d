package integration

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/td-postback/gateway/sandbox"
)

// In MiB: max_buffered by default, and the MemoryMax that goes with it in
// deploy/td-postback.service.
const (
	headsBuffered  = 256
	headsMemoryMax = 512
)

// TestHeadsOverHTTP2 has callers whose heads are large in memory and small on
// the wire: each repeats a field that is in the connection's table. Some of them
// take no answer. Memory stays within MemoryMax, and an ordinary caller is served
// afterwards.
func TestHeadsOverHTTP2(t *testing.T) {
	t.Parallel()
	v2 := listen(t, &http.Server{Handler: &sandbox.Sandbox{}}) //nolint:gosec // loopback
	pair := newCertificate(t, "localhost")
	for _, test := range []struct {
		name   string
		conns  int
		rounds int // of a full connection
		flood  flood
		want   map[string]bool // statuses
	}{
		{"too large", 20, 4, flood{fields: 290, bytes: 3500, waits: true}, map[string]bool{"431": true}},
		{"just small enough", 20, 1, flood{fields: 18, bytes: 3500}, map[string]bool{"503": true}},
		{"too large, and takes no answer", 8, 1, flood{fields: 16_000, deaf: true, waits: true}, map[string]bool{"431": true}},
		{"small enough, and takes no answer", 12, 1, flood{fields: 8_000, body: true, deaf: true}, map[string]bool{"200": true, "503": true}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			addr := freeAddr(t)
			_, port, _ := net.SplitHostPort(addr)
			g := &gateway{addr: addr, process: startBinary(t, plainBinary(t), nil, "run", "--adapter", "caddyfile", "--config", write(t, "Caddyfile",
				fmt.Sprintf("{\n%s servers {\n max_header_size 1MiB\n}\n}\nhttps://localhost:%s {\n tls %s %s\n td_postback {\n upstream http://%s\n}\n}\n", globals, port, pair.cert, pair.key, v2)))}
			g.await(t, "serving initial configuration", 1)
			var all sync.WaitGroup
			var sent atomic.Int64
			statuses := make(chan string, test.conns*streams*test.rounds)
			conns := make(chan net.Conn, test.conns)
			for range cap(conns) {
				all.Go(func() {
					conn, err := tls.Dial("tcp", addr, &tls.Config{RootCAs: pair.pool, ServerName: "localhost", NextProtos: []string{"h2"}})
					if err != nil {
						t.Error(err)
						return
					}
					conns <- conn
					f := test.flood
					f.conn, f.statuses = conn, statuses
					n, err := f.run(test.rounds)
					if sent.Add(n); err != nil {
						t.Error(err)
					}
				})
			}
			all.Wait()
			close(statuses)
			got := map[string]int{}
			for status := range statuses {
				got[status]++
			}
			peak := peakMiB(t, g.cmd.Process.Pid)
			t.Logf("%d KiB sent, answers %v, at most %d MiB of memory", sent.Load()>>10, got, peak)
			for status := range got {
				if !test.want[status] {
					t.Errorf("got %s", status)
				}
			}
			if len(got) != len(test.want) {
				t.Errorf("answers %v", got)
			}
			if peak > headsMemoryMax {
				t.Errorf("%d MiB of memory with %d MiB of max_buffered", peak, headsBuffered)
			}
			for range cap(conns) {
				(<-conns).Close()
			}
			awaitServed(t, pair, addr)
		})
	}
}

// awaitServed waits until an ordinary record is taken.
func awaitServed(t *testing.T, pair certificate, addr string) {
	t.Helper()
	_, port, _ := net.SplitHostPort(addr)
	client := pair.http2Client()
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		resp, err := client.Post("https://localhost:"+port+target, "application/json", strings.NewReader(object))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode == http.StatusOK {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("an ordinary caller gets %d", resp.StatusCode)
		}
	}
}

// flood opens as many streams as an HTTP/2 connection may have.
type flood struct {
	conn     net.Conn
	fields   int  // of each head
	bytes    int  // of a field
	body     bool // it comes
	deaf     bool // answers get no room but for their heads
	waits    bool // each has an answer, which is waited for
	statuses chan<- string
}

// streams is what Go's server allows at a time.
const streams = 250

// run sends the streams of all rounds, each after the one before has its
// answers. Where some have none, it waits for the next one for 5 seconds at most.
func (f *flood) run(rounds int) (sent int64, err error) {
	counted := &countedConn{Conn: f.conn}
	if _, err := io.WriteString(counted, http2.ClientPreface); err != nil {
		return 0, err
	}
	framer := http2.NewFramer(counted, f.conn)
	framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	var settings []http2.Setting
	if f.deaf {
		settings = []http2.Setting{{ID: http2.SettingInitialWindowSize, Val: 0}}
	}
	if err := framer.WriteSettings(settings...); err != nil {
		return 0, err
	}
	if err := framer.WriteWindowUpdate(0, 1<<30); err != nil {
		return 0, err
	}
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	value := strings.Repeat("c", f.bytes)
	stream := uint32(1)
	for range rounds {
		for range streams {
			block.Reset()
			for _, field := range [][2]string{{":method", "POST"}, {":scheme", "https"}, {":authority", "localhost"}, {":path", target}} {
				_ = encoder.WriteField(hpack.HeaderField{Name: field[0], Value: field[1]})
			}
			for range f.fields {
				_ = encoder.WriteField(hpack.HeaderField{Name: "x", Value: value})
			}
			if err := framer.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: block.Bytes(), EndHeaders: true}); err != nil {
				return counted.sent, err
			}
			if f.body {
				if err := framer.WriteData(stream, true, []byte(object)); err != nil {
					return counted.sent, err
				}
			}
			stream += 2
		}
		if err := f.readAnswers(framer); err != nil {
			return counted.sent, err
		}
	}
	return counted.sent, nil
}

// readAnswers reads the answers of a round, each until its stream has ended, or as
// far as there is room for it.
func (f *flood) readAnswers(framer *http2.Framer) error {
	for ended := 0; ended < streams; {
		wait := 5 * time.Second
		if f.waits {
			wait = patience
		}
		_ = f.conn.SetReadDeadline(time.Now().Add(wait))
		frame, err := framer.ReadFrame()
		switch frame := frame.(type) {
		case *http2.MetaHeadersFrame:
			f.statuses <- frame.PseudoValue("status")
			if f.deaf {
				ended++
			}
		case *http2.RSTStreamFrame:
			if !f.deaf {
				ended++
			}
		case *http2.GoAwayFrame:
			return fmt.Errorf("the connection ends: %v", frame)
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// countedConn counts what is sent.
type countedConn struct {
	net.Conn
	sent int64
}

func (c *countedConn) Write(p []byte) (int, error) {
	c.sent += int64(len(p))
	return c.Conn.Write(p)
}

// TestSlowHeads has callers that send a URL of 900 kB and do not end their head,
// and then a body that does not come. Before the head ends, no more is in memory
// than the callers have sent, and a half more; afterwards max_buffered holds.
func TestSlowHeads(t *testing.T) {
	const callers = 200
	addr := freeAddr(t)
	g := startBinary(t, plainBinary(t), nil, "td-postback", "--listen", addr, "--region", "us01")
	g.await(t, "server running", 1)
	head := "POST " + target + "&x=" + strings.Repeat("x", 900_000) + " HTTP/1.1\r\nHost: x\r\n"
	var all sync.WaitGroup
	statuses := make(chan int, callers)
	step := newBarrier(callers)
	for range callers {
		all.Go(func() {
			leave := sync.OnceFunc(step.leave)
			defer leave()
			conn, err := net.Dial("tcp", addr)
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			_, _ = io.WriteString(conn, head)
			step.wait()
			_, _ = io.WriteString(conn, "Content-Length: 100\r\n\r\n")
			_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
			line := make([]byte, len("HTTP/1.1 503"))
			if _, err := io.ReadFull(conn, line); err != nil {
				return // taken, and waits for its body
			}
			status, err := strconv.Atoi(string(line[len(line)-3:]))
			if err != nil {
				t.Error(err)
			}
			statuses <- status
		})
	}
	all.Wait()
	close(statuses)
	refused := 0
	for status := range statuses {
		if refused++; status != http.StatusServiceUnavailable {
			t.Errorf("got %d", status)
		}
	}
	peak := peakMiB(t, g.cmd.Process.Pid)
	t.Logf("%d of %d refused, at most %d MiB of memory", refused, callers, peak)
	if held := callers - refused; held*2*900_000 > headsBuffered<<20 || held < headsBuffered/3 {
		t.Errorf("%d heads of 900 kB are held with %d MiB of max_buffered", held, headsBuffered)
	}
	if sent := callers * len(head) >> 20; peak > sent+sent/2+headsMemoryMax {
		t.Errorf("%d MiB of memory with %d MiB of heads", peak, sent)
	}
}

// TestKeptHeads keeps records with long URLs: their heads count in max_buffered
// as their bodies do, so one that does not fit is refused.
func TestKeptHeads(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "spool")
	addr, admin := freeAddr(t), freeAddr(t)
	_, port, _ := net.SplitHostPort(addr)
	config := spoolCaddyfile(admin, port, spoolBlock("http://"+freeAddr(t), dir, "max_buffered 5MiB", "mode always"))
	g := &spooling{gateway: serveCaddyfile(t, addr, config), admin: admin, dir: dir}
	for body, want := range map[string]int{object: http.StatusOK, objectOf(600_000): http.StatusServiceUnavailable} {
		answer := raw(t, g.addr, post(target+"&x="+strings.Repeat("x", 600_000), asJSON, body))
		if answer.StatusCode != want {
			t.Errorf("a URL of 600,000 bytes and a body of %d: got %d %q", len(body), answer.StatusCode, answer.body)
		}
	}
	if s := g.state(t); s.records() != 1 || s.Bytes < 600_000 {
		t.Errorf("%d records of %d bytes", s.records(), s.Bytes)
	}
}
