package integration

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
)

// TestCap sends bodies of one byte below the cap, at it and above it, in every
// framing. At most the cap arrives, whole; one more is a certain 413.
func TestCap(t *testing.T) {
	t.Parallel()
	u := startRecorder(t, nil)
	pair := newCertificate(t, "localhost")
	addr, secure := freeAddr(t), freeAddr(t)
	_, port, _ := net.SplitHostPort(addr)
	_, securePort, _ := net.SplitHostPort(secure)
	serveCaddyfile(t, addr, fmt.Sprintf("{\n%s\n}\n(gateway) {\n td_postback {\n upstream %s\n}\n}\n"+
		"http://:%s {\n import gateway\n}\nhttps://localhost:%s {\n tls %s %s\n import gateway\n}\n",
		globals, u.url(), port, securePort, pair.cert, pair.key))

	h2 := pair.http2Client()
	viaH2 := func(t *testing.T, body string, length int64) (int, string) {
		// The length of an io.Reader that is none of net/http's own is unknown.
		req, err := http.NewRequest(http.MethodPost, "https://localhost:"+securePort+target, struct{ io.Reader }{strings.NewReader(body)})
		if err != nil {
			t.Fatal(err)
		}
		req.ContentLength = length
		resp, err := h2.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if resp.ProtoMajor != 2 {
			t.Fatal(resp.Proto)
		}
		answer, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(answer)
	}
	head := "POST " + target + " HTTP/1.1\r\nHost: x\r\n"
	// writeAll is the caller that gives the race away: it writes its whole
	// body before it reads a byte.
	writeAll := func(t *testing.T, request string) (int, string) {
		conn := dial(t, addr)
		if _, err := io.WriteString(conn, request); err != nil {
			t.Fatalf("could not send the whole request: %v", err)
		}
		answer := readReply(t, bufio.NewReader(conn), "POST")
		return answer.StatusCode, answer.body
	}
	framings := map[string]func(t *testing.T, body string) (int, string){
		"known length": func(t *testing.T, body string) (int, string) {
			return writeAll(t, head+"Content-Length: "+strconv.Itoa(len(body))+"\r\n\r\n"+body)
		},
		"one chunk": func(t *testing.T, body string) (int, string) {
			return writeAll(t, head+fmt.Sprintf("Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", len(body), body))
		},
		"many chunks": func(t *testing.T, body string) (int, string) {
			var b bytes.Buffer
			b.WriteString(head + "Transfer-Encoding: chunked\r\n\r\n")
			for len(body) > 0 {
				n := min(len(body), 1000)
				fmt.Fprintf(&b, "%x\r\n%s\r\n", n, body[:n])
				body = body[n:]
			}
			b.WriteString("0\r\n\r\n")
			return writeAll(t, b.String())
		},
		"HTTP/2 known length":   func(t *testing.T, body string) (int, string) { return viaH2(t, body, int64(len(body))) },
		"HTTP/2 unknown length": func(t *testing.T, body string) (int, string) { return viaH2(t, body, -1) },
	}
	for name, send := range framings {
		for _, size := range []int{v2Cap - 1, v2Cap, v2Cap + 1, v2Cap + 500, 4 << 20} {
			t.Run(fmt.Sprintf("%s/%d", name, size), func(t *testing.T) {
				rounds := 10 // a race would show
				if strings.HasPrefix(name, "HTTP/2") && size > v2Cap {
					rounds = 3 // Go's client stops sending, and each round waits for that
				}
				for range rounds {
					body := objectOf(size)
					status, answer := send(t, body)
					if size > v2Cap {
						if status != 413 || !strings.Contains(answer, `"payload_too_large"`) || !strings.Contains(answer, "1048064") {
							t.Fatalf("got %d %q", status, answer)
						}
						u.none(t)
						continue
					}
					if status != 200 {
						t.Fatalf("got %d %q", status, answer)
					}
					if got := u.next(t); got.body != body {
						t.Fatalf("v2 saw %d bytes", len(got.body))
					}
				}
			})
		}
	}
}

// TestCapByCurl has curl send too much over HTTP/2: unlike Go's client it
// gives an answer up when its stream is reset.
func TestCapByCurl(t *testing.T) {
	t.Parallel()
	curl := tool(t, "curl", "curl")
	u := startRecorder(t, nil)
	pair := newCertificate(t, "localhost")
	addr := freeAddr(t)
	_, port, _ := net.SplitHostPort(addr)
	serveCaddyfile(t, addr, fmt.Sprintf(
		"{\n%s\n}\nhttps://localhost:%s {\n tls %s %s\n td_postback {\n upstream %s\n}\n}\n",
		globals, port, pair.cert, pair.key, u.url()))
	for _, size := range []int{v2Cap + 1, 5 << 20} {
		file := write(t, "body", objectOf(size))
		for name, args := range map[string][]string{
			"known length":   {"--data-binary", "@" + file},
			"unknown length": {"-X", "POST", "-H", "Content-Length:", "-T", "-"},
			"ping":           {"--data-binary", "@" + file, "-H", "Content-Type: text/ping"},
			"no key":         {"--data-binary", "@" + file, "-H", "X-No-Key: 1"},
		} {
			t.Run(fmt.Sprintf("%s/%d", name, size), func(t *testing.T) {
				url, want := "https://localhost:"+port+target, "413 2"
				if name == "no key" {
					url, want = "https://localhost:"+port+event, "403 2"
				}
				cmd := exec.Command(curl,
					append(args, "-sS", "--max-time", "20", "--http2",
						"--cacert", pair.cert, "--resolve", "localhost:"+port+":127.0.0.1",
						"-w", " %{http_code} %{http_version}", url)...)
				cmd.Stdin, _ = os.Open(file) //nolint:gosec // G304: written above
				output, err := cmd.CombinedOutput()
				if err != nil || !strings.HasSuffix(string(output), want) {
					t.Errorf("%v: %s", err, output)
				}
				u.none(t)
			})
		}
	}
}

// TestExpectContinue refuses before the caller is told to go on, and tells it
// to go on otherwise.
func TestExpectContinue(t *testing.T) {
	t.Parallel()
	u := startRecorder(t, nil)
	g := serve(t, "", "td_postback {\n upstream "+u.url()+"\n}")
	for name, tc := range map[string]struct {
		target, length, first string
	}{
		"taken":     {target, "7", "HTTP/1.1 100 Continue\r\n"},
		"too large": {target, "1048065", "HTTP/1.1 413 Request Entity Too Large\r\n"},
		"no key":    {event, "7", "HTTP/1.1 403 Forbidden\r\n"},
	} {
		t.Run(name, func(t *testing.T) {
			conn := dial(t, g.addr)
			fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: %s\r\n\r\n", tc.target, tc.length)
			br := bufio.NewReader(conn)
			line, err := br.ReadString('\n')
			if err != nil || line != tc.first {
				t.Fatalf("first line %q, %v", line, err)
			}
			if name != "taken" {
				if _, err := io.ReadAll(br); err != nil {
					t.Errorf("the connection did not end cleanly: %v", err)
				}
				u.none(t)
				return
			}
			if line, err = br.ReadString('\n'); err != nil || line != "\r\n" {
				t.Fatalf("then %q, %v", line, err)
			}
			if _, err := io.WriteString(conn, object); err != nil {
				t.Fatal(err)
			}
			if answer := readReply(t, br, "POST"); answer.StatusCode != 200 {
				t.Errorf("got %d", answer.StatusCode)
			}
			if got := u.next(t); got.body != object || got.field("Expect") != nil {
				t.Errorf("v2 saw %q %q", got.fields, got.body)
			}
		})
	}
}

// TestMaxBody lowers the cap.
func TestMaxBody(t *testing.T) {
	t.Parallel()
	u := startRecorder(t, nil)
	g := serve(t, "", "td_postback {\n upstream "+u.url()+"\n max_body 1KB\n}")
	if answer := raw(t, g.addr, post(target, asJSON, objectOf(1000))); answer.StatusCode != 200 {
		t.Errorf("at the limit: got %d", answer.StatusCode)
	}
	u.next(t)
	if answer := raw(t, g.addr, post(target, asJSON, objectOf(1001))); answer.StatusCode != 413 || !strings.Contains(answer.body, "1000") {
		t.Errorf("above the limit: got %d %q", answer.StatusCode, answer.body)
	}
	u.none(t)
}

// TestMaxBuffered has more callers hold back their last byte than there is
// memory for. Each one is either taken or told to come back, and afterwards
// the memory is free again.
func TestMaxBuffered(t *testing.T) {
	t.Parallel()
	u := startRecorder(t, nil)
	g := serve(t, "", "td_postback {\n upstream "+u.url()+"\n max_buffered 4MiB\n}")
	const callers, size = 20, 1_048_000 // a buffer of 1 MiB each
	body := objectOf(size)
	conns := make([]net.Conn, 0, callers)
	for range callers {
		conn := dial(t, g.addr)
		if _, err := fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", target, size, body[:size-1]); err != nil {
			t.Fatal(err)
		}
		conns = append(conns, conn)
	}
	taken, refused := 0, 0
	for _, conn := range conns {
		if _, err := io.WriteString(conn, body[size-1:]); err != nil {
			t.Fatal(err)
		}
		switch answer := readReply(t, bufio.NewReader(conn), "POST"); {
		case answer.StatusCode == 200:
			taken++
			if got := u.next(t); got.body != body {
				t.Errorf("v2 saw %d bytes", len(got.body))
			}
		case answer.StatusCode == 503 && answer.code() == "overloaded" && answer.Header.Get("Retry-After") != "":
			refused++
		default:
			t.Errorf("got %d %q", answer.StatusCode, answer.body)
		}
	}
	if taken == 0 || refused == 0 {
		t.Errorf("%d taken, %d refused", taken, refused)
	}
	g.await(t, "record refused: max_buffered is used up", 1)
	u.none(t)
	for range 8 {
		if answer := raw(t, g.addr, post(target, asJSON, body)); answer.StatusCode != 200 {
			t.Errorf("afterwards: got %d", answer.StatusCode)
		}
		u.next(t)
	}
}
