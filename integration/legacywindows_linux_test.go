package integration

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// TestLegacyWindowsOverHTTP2 has 800 callers send 1 MiB each of a body that is longer than
// max_body, while the legacy host takes one of them, slowly. What Go's server keeps of
// them is bounded: most are refused at once, as in v2's lane, and memory stays within
// MemoryMax. An ordinary record is delivered meanwhile.
func TestLegacyWindowsOverHTTP2(t *testing.T) {
	t.Parallel()
	const (
		callers     = 800
		maxBuffered = 32 // MiB
	)
	u := startLegacy(t, nil)
	end := make(chan struct{})
	var busy atomic.Bool
	u.early = func(net.Conn, *bufio.Reader) bool {
		if busy.CompareAndSwap(false, true) {
			<-end
		}
		return true
	}
	defer close(end)
	addr := freeAddr(t)
	_, port, _ := net.SplitHostPort(addr)
	g := startBinary(t, plainBinary(t), nil, "run", "--adapter", "caddyfile", "--config", write(t, "Caddyfile",
		fmt.Sprintf("{\n%s\nservers {\n protocols h1 h2c\n}\n}\nhttp://:%s {\n%s\n}\n", globals, port,
			migrateBlock(u, fmt.Sprintf("max_conns 1\n max_buffered %dMiB", maxBuffered), ""))))
	g.await(t, "serving initial configuration", 1)

	statuses := make(chan string, callers)
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	var all sync.WaitGroup
	for range callers {
		all.Go(func() {
			conn, err := net.Dial("tcp", addr)
			if err != nil {
				t.Error(err)
				statuses <- ""
				return
			}
			context.AfterFunc(ctx, func() { conn.Close() })
			statuses <- sendWindow(conn, 2*v2Cap)
		})
	}
	got := map[string]int{}
	for n := 0; n < callers && got["503"] < callers-maxBuffered; n++ {
		got[<-statuses]++
	}
	resp, err := http.Post("http://"+addr+target, "application/json", strings.NewReader(object))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("an ordinary caller gets %d", resp.StatusCode)
	}
	peak := peakMiB(t, g.cmd.Process.Pid)
	t.Logf("answers %v, at most %d MiB of memory", got, peak)
	if peak > headsMemoryMax {
		t.Errorf("%d MiB of memory with %d MiB of max_buffered", peak, maxBuffered)
	}
	if got["503"] < callers-maxBuffered {
		t.Errorf("answers %v", got)
	}
	leave()
	all.Wait()
}

// sendWindow begins a request with a body of this length, and sends so much of it as the
// server lets it without reading. It returns the status, or nothing if there is none soon.
func sendWindow(conn net.Conn, length int) (status string) {
	_ = conn.SetDeadline(time.Now().Add(9 * time.Second)) // less than a request waits for a connection
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	for _, field := range [][2]string{
		{":method", "POST"}, {":scheme", "http"}, {":authority", "localhost"}, {":path", target}, {"content-length", strconv.Itoa(length)},
	} {
		_ = encoder.WriteField(hpack.HeaderField{Name: field[0], Value: field[1]})
	}
	_, _ = io.WriteString(conn, http2.ClientPreface)
	framer := http2.NewFramer(conn, conn)
	framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	_ = framer.WriteSettings()
	_ = framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true})
	go func() {
		for piece := make([]byte, 16<<10); ; {
			if framer.WriteData(1, false, piece) != nil {
				return
			}
			if length -= len(piece); length <= 1<<20 {
				return
			}
		}
	}()
	for {
		frame, err := framer.ReadFrame()
		if err != nil {
			return ""
		}
		if head, ok := frame.(*http2.MetaHeadersFrame); ok {
			return head.PseudoValue("status")
		}
	}
}

// TestLegacyDeafCallers has 250 callers whose answers get no room but for their heads. They
// keep no connection to the legacy host: an ordinary record is delivered meanwhile.
func TestLegacyDeafCallers(t *testing.T) {
	t.Parallel()
	u := startLegacy(t, func(conn net.Conn, _ *passed) bool {
		return send(conn, true, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n")
	})
	pair := newCertificate(t, "localhost")
	addr := freeAddr(t)
	_, port, _ := net.SplitHostPort(addr)
	serveCaddyfile(t, addr, fmt.Sprintf("{\n%s\n}\nhttps://localhost:%s {\n tls %s %s\n%s\n}\n", globals, port, pair.cert, pair.key, migrateBlock(u, "max_conns 5", "")))
	conn, err := tls.Dial("tcp", addr, &tls.Config{RootCAs: pair.pool, ServerName: "localhost", NextProtos: []string{"h2"}})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	statuses := make(chan string, streams)
	deaf := flood{conn: conn, body: true, deaf: true, waits: true, statuses: statuses}
	if _, err := deaf.run(1); err != nil {
		t.Error(err)
	}
	for len(statuses) > 0 {
		if status := <-statuses; status != "200" {
			t.Fatalf("a caller that takes no answer gets %s", status)
		}
	}
	resp, err := pair.http2Client().Post("https://localhost:"+port+target, "application/json", strings.NewReader(object))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if text, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusOK || string(text) != "{}" {
		t.Errorf("an ordinary caller gets %d %q, %v", resp.StatusCode, text, err)
	}
}
