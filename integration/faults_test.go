package integration

import (
	"crypto/tls"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Here v2 misbehaves on command. docs/faults.md lists what callers and v2 get
// then.

const (
	dialTimeout     = 3 * time.Second
	responseTimeout = 2 * time.Second

	// slack is what a slow machine may add to a timeout. Three dial timeouts,
	// one for each try, would not fit.
	slack = 5 * time.Second
)

// TestFaultyConnection has v2 fail before it can have read a record: the
// caller may send it again without a second thought.
func TestFaultyConnection(t *testing.T) {
	t.Parallel()
	right := newCertificate(t, "localhost")
	otherName, otherAuthority := newCertificate(t, "elsewhere.example"), newCertificate(t, "localhost")
	trusted := right
	trusted.cert += " " + otherName.cert // tls_ca takes several

	cases := []faultCase{
		{name: "slow TLS handshake", fault: fault{pause: 100 * time.Millisecond}, status: 200, body: "{}", sent: 1},
		// What is refused below is refused for its dates alone.
		{name: "certificate that is still valid", fault: fault{certificate: signed(t, right, time.Now().Add(time.Minute))}, status: 200, body: "{}", sent: 1},

		{name: "never a word of TLS", fault: fault{connect: func(conn net.Conn) { _, _ = io.Copy(io.Discard, conn) }}, waits: dialTimeout},
		{name: "TLS handshake beyond dial_timeout", fault: fault{pause: dialTimeout / 3}, waits: dialTimeout},
		{name: "TLS handshake broken off", fault: fault{connect: func(conn net.Conn) { _, _ = conn.Read(make([]byte, 100)); reset(conn) }}},
		{name: "closes at once", fault: fault{connect: func(net.Conn) {}}},
		{name: "resets at once", fault: fault{connect: reset}},
		{name: "plain HTTP instead of TLS", fault: fault{connect: func(conn net.Conn) { send(conn, false, answerOK) }}},
		{name: "certificate of another name", fault: fault{certificate: &otherName.pair}},
		{name: "certificate by an unknown authority", fault: fault{certificate: &otherAuthority.pair}},
		{name: "expired certificate", fault: fault{certificate: signed(t, right, time.Now().Add(-time.Minute))}},
		{name: "certificate not valid yet", fault: fault{certificate: signed(t, right, time.Now().Add(2*time.Hour))}},
	}
	for n := range cases {
		if cases[n].sent == 0 {
			cases[n].status, cases[n].code = 502, "upstream_unreachable"
		}
	}
	runFaults(t, false, trusted, cases)
}

// TestFaultyAnswer has v2 fail within a request or its answer, on a fresh
// connection and on one that was kept alive. It reads a record again only where
// it closed a kept-alive connection before a byte of answer.
func TestFaultyAnswer(t *testing.T) {
	t.Parallel()
	const (
		head    = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
		chunked = head + "Transfer-Encoding: chunked\r\n\r\n"
		interim = "HTTP/1.1 102 Processing\r\n\r\n"
		short   = responseTimeout / 10
		pause   = responseTimeout * 2 / 5 // three of them are beyond the timeout
	)
	piece := strings.Repeat("0123456789abcdef", 2<<10) // more than the gateway holds back
	long := head + "Content-Length: " + strconv.Itoa(4*len(piece)) + "\r\n\r\n"
	bytewise := strings.Split(answerOK, "")

	cases := []faultCase{
		{name: "reset before the request is read", fault: fault{request: resets()}, status: 502, code: "upstream_unreachable"},
		{name: "reset within the request", fault: fault{request: func(_ *faulty, conn *tls.Conn) {
			_, _ = io.CopyN(io.Discard, conn, 100_000)
			reset(conn.NetConn())
		}}, large: true, status: 502, code: "upstream_unreachable"},
		{name: "stops reading the request", fault: fault{request: func(u *faulty, conn *tls.Conn) {
			_ = conn.NetConn().(*net.TCPConn).SetReadBuffer(4 << 10)
			<-u.answered
		}}, large: true, status: 504, code: "upstream_timeout", waits: responseTimeout},
		{name: "reset before the answer", fault: fault{answer: resets()}, status: 502, code: "upstream_unreachable", sent: 1, resent: 1},
		{name: "reset within the head", fault: fault{answer: resets("HTTP/1.1 200 OK\r\nContent-")}, status: 502, code: "upstream_unreachable", sent: 1},
		{name: "reset within a short body", fault: fault{answer: resets(head + "Content-Length: 10\r\n\r\n{}")}, status: 502, code: "upstream_unreachable", sent: 1},
		{name: "reset within a long body", fault: fault{answer: func(u *faulty, conn *tls.Conn) {
			send(conn, true, long, piece)
			<-u.answered
			reset(conn.NetConn())
		}}, status: 200, cut: true, sent: 1},
		{name: "reset after the answer", fault: fault{answer: func(u *faulty, conn *tls.Conn) {
			send(conn, true, answerOK)
			<-u.answered
			reset(conn.NetConn())
		}}, status: 200, body: "{}", sent: 1},

		{name: "silence", fault: fault{answer: stalls()}, status: 504, code: "upstream_timeout", waits: responseTimeout, sent: 1},
		{name: "slow head", fault: fault{answer: says(short, head, "Content-Length: 2\r\n", "\r\n", "{}")}, status: 200, body: "{}", sent: 1},
		{name: "head beyond response_timeout", fault: fault{answer: says(short, bytewise...)}, status: 504, code: "upstream_timeout", waits: responseTimeout, sent: 1},
		{name: "slow short body", fault: fault{answer: says(short, head+"Content-Length: 4\r\n\r\n", "{", " ", " ", "}")}, status: 200, body: "{  }", sent: 1},
		{name: "short body beyond response_timeout", fault: fault{answer: says(pause, head+"Content-Length: 4\r\n\r\n", "{", " ", " ", "}")}, status: 504, code: "upstream_timeout", waits: responseTimeout, sent: 1},
		{name: "stall within a short body", fault: fault{answer: stalls(head + "Content-Length: 4\r\n\r\n{")}, status: 504, code: "upstream_timeout", waits: responseTimeout, sent: 1},
		{name: "slow long body", fault: fault{answer: says(pause, long, piece, piece, piece, piece)}, status: 200, body: strings.Repeat(piece, 4), waits: 4 * pause, sent: 1},
		{name: "slow chunks", fault: fault{answer: says(pause, chunked+"1\r\n{\r\n", "1\r\n \r\n", "1\r\n \r\n", "1\r\n}\r\n", "0\r\n\r\n")}, status: 200, body: "{  }", waits: 4 * pause, sent: 1},
		{name: "stall within a long body", fault: fault{answer: stalls(long, piece)}, status: 200, cut: true, waits: responseTimeout, sent: 1},
		{name: "stall between chunks", fault: fault{answer: stalls(chunked + "1\r\n{\r\n")}, status: 200, cut: true, waits: responseTimeout, sent: 1},

		{name: "Content-Length not reached", fault: fault{answer: says(0, head+"Content-Length: 10\r\n\r\n{}")}, status: 502, code: "upstream_unreachable", sent: 1},
		{name: "Content-Length of a long body not reached", fault: fault{answer: says(0, long, piece)}, status: 200, cut: true, sent: 1},
		{name: "chunks without an end", fault: fault{answer: says(0, chunked+"2\r\n{}\r\n")}, status: 200, cut: true, sent: 1},
		{name: "cut within a chunk", fault: fault{answer: says(0, chunked+"5\r\n{}")}, status: 502, code: "upstream_unreachable", sent: 1},
		{name: "a part of the trailer", fault: fault{answer: stalls(chunked + "2\r\n{}\r\n0\r\nX-Sum: 1")}, status: 200, body: "{}", sent: 1},
		{name: "no length", fault: fault{answer: says(0, head+"\r\n{}")}, status: 200, body: "{}", sent: 1},
		{name: "no length and a reset", fault: fault{answer: func(u *faulty, conn *tls.Conn) {
			send(conn, true, head+"\r\n{")
			<-u.answered
			reset(conn.NetConn())
		}}, status: 200, cut: true, sent: 1},

		{name: "another protocol", fault: fault{answer: says(0, "220 mail.example ESMTP\r\n")}, status: 502, code: "upstream_unreachable", sent: 1},
		{name: "binary garbage", fault: fault{answer: says(0, "\x00\x00\x12\x04\x00\x00\x00\x00\x00\xff\xfe")}, status: 502, code: "upstream_unreachable", sent: 1},
		{name: "garbage without an end", fault: fault{answer: func(_ *faulty, conn *tls.Conn) {
			for send(conn, true, piece) {
			}
		}}, status: 502, code: "upstream_unreachable", sent: 1},
		{name: "102 and 103 before the answer", fault: fault{answer: says(short, interim, "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n", answerOK)}, status: 200, body: "{}", sent: 1},
		{name: "too many 102", fault: fault{answer: says(0, strings.Repeat(interim, 20), answerOK)}, status: 502, code: "upstream_unreachable", sent: 1},
		{name: "102 instead of an answer", fault: fault{answer: says(pause, interim, interim, interim, interim, answerOK)}, status: 504, code: "upstream_timeout", waits: responseTimeout, sent: 1},
		{name: "64 KiB of headers", fault: fault{answer: says(0, head+"X-Big: "+strings.Repeat("x", 64<<10)+"\r\nContent-Length: 2\r\n\r\n{}")}, status: 502, code: "upstream_unreachable", sent: 1},
		{name: "429 with Retry-After", fault: fault{answer: says(0, "HTTP/1.1 429 Too Many Requests\r\nRetry-After: 30\r\nContent-Length: 4\r\n\r\nslow")}, status: 429, retryAfter: "30", body: "slow", sent: 1},
		{name: "503 with Retry-After", fault: fault{answer: says(0, "HTTP/1.1 503 Service Unavailable\r\nRetry-After: Fri, 31 Dec 2027 23:59:59 GMT\r\nContent-Length: 0\r\n\r\n")}, status: 503, retryAfter: "Fri, 31 Dec 2027 23:59:59 GMT", sent: 1},
	}
	authority := newCertificate(t, "localhost")
	t.Run("fresh connection", func(t *testing.T) { runFaults(t, false, authority, cases) })
	t.Run("kept-alive connection", func(t *testing.T) { runFaults(t, true, authority, cases) })
}

// TestConnectionsInUse has v2 keep all connections busy. A caller that waits for
// one is told to come back, and its record goes nowhere.
func TestConnectionsInUse(t *testing.T) {
	t.Parallel() // it waits for 10 s
	const queueTimeout = 10 * time.Second
	release := make(chan struct{})
	u := startRecorder(t, func(conn net.Conn, nth int, _ seen) bool {
		if nth == 1 {
			<-release
		}
		return send(conn, true, answerOK)
	})
	g := serve(t, "", "td_postback {\n upstream "+u.url()+"\n max_conns 1\n}")
	first := make(chan int, 1)
	go func() {
		resp, err := http.Post(g.url(target), "application/json", strings.NewReader(object))
		if err != nil {
			first <- 0
			return
		}
		resp.Body.Close()
		first <- resp.StatusCode
	}()
	u.next(t)

	got := ask(t, g.addr, post(target, asJSON, object), func() {})
	if got.StatusCode != 503 || got.code() != "overloaded" || got.Header.Get("Retry-After") == "" {
		t.Errorf("got %d %q", got.StatusCode, got.body)
	}
	if got.took > queueTimeout+slack {
		t.Errorf("it took %v", got.took)
	}
	u.none(t)

	close(release)
	if status := <-first; status != 200 {
		t.Errorf("the first caller got %d", status)
	}
	if got := ask(t, g.addr, post(target, asJSON, object), func() {}); got.StatusCode != 200 {
		t.Errorf("v2 is well: got %d %q", got.StatusCode, got.body)
	}
	u.next(t)
	u.none(t)
}

// TestStalledBody has callers stop within their body, or vanish there. v2 sees
// nothing of it.
func TestStalledBody(t *testing.T) {
	t.Parallel()
	const readBody = time.Second
	u := startRecorder(t, nil)
	g := serve(t, fmt.Sprintf("servers {\n timeouts {\n read_body %s\n}\n}\n", readBody), "td_postback {\n upstream "+u.url()+"\n}")
	for name, request := range map[string]string{
		"known length":    " HTTP/1.1\r\nHost: x\r\nContent-Length: 7\r\n\r\n{\"a\"",
		"chunked":         " HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n7\r\n" + object + "\r\n",
		"beside a pixel":  "&td_format=pixel HTTP/1.1\r\nHost: x\r\nContent-Length: 7\r\n\r\n",
		"beside a beacon": "&a=1 HTTP/1.1\r\nHost: x\r\nContent-Type: text/ping\r\nContent-Length: 7\r\n\r\nPIN",
	} {
		request = "POST " + target + request
		t.Run(name, func(t *testing.T) {
			got := ask(t, g.addr, request, func() {})
			if got.StatusCode != 408 || got.code() != "request_timeout" || got.cut {
				t.Errorf("got %d %q", got.StatusCode, got.body)
			}
			if got.took < readBody || got.took > readBody+slack {
				t.Errorf("it took %v", got.took)
			}
			u.none(t)
		})
		t.Run(name+" and a reset", func(t *testing.T) {
			conn := dial(t, g.addr)
			if _, err := io.WriteString(conn, request); err != nil {
				t.Fatal(err)
			}
			reset(conn)
			if got := ask(t, g.addr, post(target, asJSON, `{"id":"after"}`), func() {}); got.StatusCode != 200 {
				t.Errorf("the next caller got %d %q", got.StatusCode, got.body)
			}
			if got := u.next(t); got.body != `{"id":"after"}` {
				t.Errorf("v2 read %q", got.body)
			}
			u.none(t)
		})
	}
}

// TestFaultsAtRandom sends events to a v2 that fails at random, but always so
// that the gateway can tell whether v2 has read the event. None arrives twice.
// If a caller is told 200, v2 has its event.
func TestFaultsAtRandom(t *testing.T) {
	t.Parallel()
	const events, callers = 400, 16
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	var mu sync.Mutex
	random := mathrand.New(mathrand.NewPCG(seed, 0)) //nolint:gosec // G404: it chooses faults
	pick := func(faults []fault) *fault {
		mu.Lock()
		defer mu.Unlock()
		if random.IntN(2) == 0 {
			return &fault{}
		}
		return &faults[random.IntN(len(faults))]
	}

	const head = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n"
	connecting := []fault{
		{connect: reset},
		{connect: func(net.Conn) {}},
		{connect: func(conn net.Conn) { send(conn, false, answerOK) }},
	}
	reused := []fault{
		{request: resets()},
		{request: says(0)},
		{answer: says(0, answerOK)}, // and closes, while the next request may be under way
		{answer: says(0, "H")},
		{answer: says(0, head+"{}")},
		{answer: says(0, "no HTTP\r\n\r\n")},
		{answer: says(0, "HTTP/1.1 100 Continue\r\n\r\n")},
		{answer: says(0, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n")},
		{answer: says(0, "HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n")},
		{answer: says(0, "HTTP/1.1 503 Busy\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n")},
		{answer: says(20*time.Millisecond, answerOK[:20], answerOK[20:])},
		{answer: stalls()},
		{answer: stalls(head)},
	}
	// A kept-alive connection that closes like this counts as one that was
	// given up before the request came, and the record is sent again.
	fresh := append(slices.Clone(reused), fault{answer: resets()}, fault{answer: says(0)})

	authority := newCertificate(t, "localhost")
	u := newFaulty(t, authority.pair)
	var well atomic.Bool
	u.choose = func(at moment) *fault {
		if well.Load() {
			return &fault{}
		}
		return pick(map[moment][]fault{onConnection: connecting, onFresh: fresh, onReused: reused}[at])
	}
	u.serve(t)
	g := serve(t, "", "td_postback {\n upstream "+u.url()+"\n tls_ca "+authority.cert+"\n response_timeout 500ms\n}")
	body := func(n int) string { return `{"id":` + strconv.Itoa(n) + `}` }

	var next, taken, failed atomic.Int64
	var all sync.WaitGroup
	for range callers {
		all.Go(func() {
			for n := int(next.Add(1)); n <= events; n = int(next.Add(1)) {
				got := ask(t, g.addr, post(target, asJSON, body(n)), func() {})
				whole, _ := u.read(body(n))
				switch {
				case got.StatusCode == 200 && whole == 1:
					taken.Add(1)
				case got.StatusCode == 200:
					t.Errorf("event %d: the caller was told 200, v2 has it %d times", n, whole)
				case got.StatusCode == 500 || got.StatusCode == 503, // v2's own
					got.StatusCode == 502 && got.code() == "upstream_unreachable",
					got.StatusCode == 504 && got.code() == "upstream_timeout":
					failed.Add(1)
				default:
					t.Errorf("event %d: got %d %q", n, got.StatusCode, got.body)
				}
			}
		})
	}
	all.Wait()
	t.Logf("%d taken, %d failed", taken.Load(), failed.Load())
	if taken.Load() == 0 || failed.Load() == 0 {
		t.Errorf("%d taken, %d failed: that was not at random", taken.Load(), failed.Load())
	}

	well.Store(true)
	if got := ask(t, g.addr, post(target, asJSON, body(0)), func() {}); got.StatusCode != 200 {
		t.Errorf("v2 is well: got %d %q", got.StatusCode, got.body)
	}
	for n := range events + 1 {
		if whole, cut := u.read(body(n)); whole > 1 || cut > 0 {
			t.Errorf("event %d: v2 has it %d times; it read a part of %d records", n, whole, cut)
		}
	}
}

// testSources is, for each test, the source that it is in.
func testSources(t *testing.T) map[string]string {
	t.Helper()
	var files []string
	for _, pattern := range []string{"*_test.go", "../*/*_test.go", "../*/*/*_test.go"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, found...)
	}
	source := make(map[string]string)
	definition := regexp.MustCompile(`(?m)^func (Test\w+)\(t \*testing\.T\) {$`)
	for _, file := range files {
		content, err := os.ReadFile(file) //nolint:gosec // G304: this repository's own
		if err != nil {
			t.Fatal(err)
		}
		for _, test := range definition.FindAllStringSubmatch(string(content), -1) {
			source[test[1]] += string(content) // packages may have tests of one name
		}
	}
	return source
}

var namedTest = regexp.MustCompile("`(Test\\w+)(?:/([^`]+))?`")

// namesTests checks that the tests which a line names exist, and counts them.
func namesTests(t *testing.T, line string, source map[string]string) int {
	t.Helper()
	tests := namedTest.FindAllStringSubmatch(line, -1)
	for _, test := range tests {
		content, exists := source[test[1]]
		if !exists {
			t.Errorf("there is no test %s", test[1])
		} else if test[2] != "" && !strings.Contains(content, strconv.Quote(test[2])) {
			t.Errorf("%s has no case %q", test[1], test[2])
		}
	}
	return len(tests)
}

// TestSpoolDocuments keeps the documents of the spool true in the same way.
func TestSpoolDocuments(t *testing.T) {
	t.Parallel()
	source := testSources(t)
	for _, document := range []string{"../docs/spool.md", "../docs/spool-nats.md"} {
		text, err := os.ReadFile(document) //nolint:gosec // G304: this repository's own
		if err != nil {
			t.Fatal(err)
		}
		if namesTests(t, string(text), source) == 0 {
			t.Errorf("%s names no test", document)
		}
	}
}

// TestFaultsDocument keeps docs/faults.md true: every row names a test, every
// test that it names exists, and so does the case behind the slash. Each fault
// in this file has a row.
func TestFaultsDocument(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../docs/faults.md")
	if err != nil {
		t.Fatal(err)
	}
	source := testSources(t)
	rows := 0
	for line := range strings.Lines(string(text)) {
		named := namesTests(t, line, source)
		if row := strings.HasPrefix(line, "| ") && !strings.HasPrefix(line, "| fault"); row {
			rows++
			if named == 0 {
				t.Errorf("no test: %s", line)
			}
		}
	}
	if rows == 0 {
		t.Error("no rows")
	}
	for _, tc := range regexp.MustCompile(`{name: ("[^"]+"), fault:`).FindAllStringSubmatch(source["TestFaultyAnswer"], -1) {
		if name, err := strconv.Unquote(tc[1]); err != nil || !strings.Contains(string(text), "/"+name+"`") {
			t.Errorf("no row for %s", tc[1])
		}
	}
}

// faultCase is a fault and what becomes of a record.
type faultCase struct {
	name  string
	fault fault

	status     int
	code       string // of a refusal
	body       string // of v2's own answer
	retryAfter string
	cut        bool          // the caller's connection breaks within the answer
	waits      time.Duration // what the caller waits for at least; slack more at most

	large  bool // a record of nearly 1 MiB
	sent   int  // how often v2 reads the record
	resent int  // and how much oftener when the fault meets a kept-alive connection
}

// run meets the fault on a fresh connection, or on one that was kept alive,
// and then a v2 that is well again.
func (tc *faultCase) run(t *testing.T, u *faulty, addr, path string, reused bool) {
	request := func(body string) string { return post(path+"?td_write_key=1234/abcd", asJSON, body) }
	record := func(id string) string {
		if tc.large {
			return `{"id":"` + id + `","pad":"` + strings.Repeat("x", 1_000_000) + `"}`
		}
		return `{"id":"` + id + `"}`
	}
	goesWell := func(body string) {
		t.Helper()
		if got := ask(t, addr, request(body), func() {}); got.StatusCode != 200 || got.body != "{}" || got.cut {
			t.Fatalf("v2 is well: got %d %q", got.StatusCode, got.body)
		}
		if whole, _ := u.read(body); whole != 1 {
			t.Errorf("v2 is well: it read the record %d times", whole)
		}
	}
	sent := tc.sent
	if reused {
		sent += tc.resent
		goesWell(record("before"))
	}

	u.fault.Store(&tc.fault)
	got := ask(t, addr, request(record("fault")), func() { close(u.answered) })
	if got.StatusCode != tc.status || got.cut != tc.cut || got.code() != tc.code {
		t.Errorf("got %d %.200q, cut is %v", got.StatusCode, got.body, got.cut)
	}
	if tc.code == "" && !tc.cut && got.body != tc.body {
		t.Errorf("got a body of %d bytes, want %d", len(got.body), len(tc.body))
	}
	if got.Header.Get("Retry-After") != tc.retryAfter {
		t.Errorf("Retry-After: %q", got.Header.Get("Retry-After"))
	}
	if got.took < tc.waits || got.took > tc.waits+slack {
		t.Errorf("it took %v", got.took)
	}

	u.fault.Store(&fault{})
	goesWell(record("after"))
	// Now v2 has read all that was sent before.
	whole, cut := u.read(record("fault"))
	if whole != sent {
		t.Errorf("v2 read the record %d times, want %d", whole, sent)
	}
	if cut != 0 {
		t.Errorf("v2 read a part of %d records", cut)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.met) > 0 && (u.met[0] == onReused) != reused {
		t.Error("the fault struck on the wrong connection")
	}
}

// runFaults gives each case an upstream of its own behind one gateway. The
// cases run side by side: most of them wait.
func runFaults(t *testing.T, reused bool, authority certificate, cases []faultCase) {
	t.Helper()
	upstreams := make([]*faulty, len(cases))
	paths := make([]string, len(cases))
	var site strings.Builder
	for n := range cases {
		upstreams[n] = newFaulty(t, authority.pair)
		upstreams[n].serve(t)
		paths[n] = "/postback/v3/event/faults/t" + strconv.Itoa(n)
		fmt.Fprintf(&site, "td_postback %s {\n upstream %s\n tls_ca %s\n dial_timeout %s\n response_timeout %s\n}\n",
			paths[n], upstreams[n].url(), authority.cert, dialTimeout, responseTimeout)
	}
	g := serve(t, "", site.String())
	// Not t.Parallel, which runs no more tests at once than there are processors.
	var all sync.WaitGroup
	for n := range cases {
		all.Go(func() {
			t.Run(cases[n].name, func(t *testing.T) { cases[n].run(t, upstreams[n], g.addr, paths[n], reused) })
		})
	}
	all.Wait()
}
