package integration

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/td-postback/gateway/sandbox"
)

// This file is all that stands in for v2. recorder keeps every byte, and a test
// says what it answers. fickle takes records as long as a test wants that, and
// knows which it has taken. faulty is behind TLS and misbehaves on command.
// Three more are the strict sandbox: flakySandbox fails at random, arrivals
// counts, witness shows what came.

// seen is one request as recorder, fickle or faulty read it.
type seen struct {
	line   string
	fields []string // sorted
	body   string
	conn   int // which connection it came on, counted from 1
}

// field returns the values of a field, by its exact name.
func (s seen) field(name string) []string {
	var values []string
	for _, field := range s.fields {
		if value, ok := strings.CutPrefix(field, name+": "); ok {
			values = append(values, value)
		}
	}
	return values
}

// readExact reads one request without any leniency: the gateway always sends
// HTTP/1.1 with a Content-Length.
func readExact(br *bufio.Reader) (s seen, err error) {
	length := -1
	for {
		line, err := br.ReadString('\n')
		if err != nil {
			return s, err
		}
		line, ok := strings.CutSuffix(line, "\r\n")
		if !ok {
			return s, fmt.Errorf("bare LF in %q", line)
		}
		if s.line == "" {
			s.line = line
			continue
		}
		if line == "" {
			break
		}
		if value, ok := strings.CutPrefix(line, "Content-Length: "); ok {
			if _, err := fmt.Sscanf(value, "%d", &length); err != nil {
				return s, err
			}
		}
		s.fields = append(s.fields, line)
	}
	slices.Sort(s.fields)
	if length < 0 {
		return s, errors.New("no Content-Length")
	}
	body := make([]byte, length)
	_, err = io.ReadFull(br, body)
	s.body = string(body)
	return s, err
}

// eachRequest reads the requests of a connection, counted from 1, until handle
// does not keep the connection.
func eachRequest(conn net.Conn, handle func(nth int, request seen) (keep bool)) {
	br := bufio.NewReader(conn)
	for nth := 1; ; nth++ {
		request, err := readExact(br)
		if err != nil || !handle(nth, request) {
			return
		}
	}
}

// acceptAll handles connections, counted from 1, until the end of the test.
func acceptAll(t testing.TB, l net.Listener, handle func(conn net.Conn, number int)) {
	var conns sync.WaitGroup
	var open sync.Map
	go func() {
		for n := 1; ; n++ {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			open.Store(conn, true)
			conns.Go(func() {
				defer open.Delete(conn)
				defer conn.Close()
				handle(conn, n)
			})
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		open.Range(func(conn, _ any) bool { _ = conn.(net.Conn).Close(); return true })
		conns.Wait()
	})
}

const answerOK = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"

// send writes an answer in pieces and says whether the connection stays.
func send(conn net.Conn, keep bool, pieces ...string) bool {
	for _, piece := range pieces {
		if _, err := io.WriteString(conn, piece); err != nil {
			return false
		}
	}
	return keep
}

// reset closes a connection with a reset.
func reset(conn net.Conn) {
	_ = conn.(*net.TCPConn).SetLinger(0)
	conn.Close()
}

// recorder is an upstream that keeps the exact bytes of every request and
// answers what the test tells it to.
type recorder struct {
	net.Listener
	requests chan seen

	// answer writes the answer to the nth request of a connection, counted
	// from 1. It returns false to close the connection. The default is v2's {}.
	answer func(conn net.Conn, nth int, request seen) (keep bool)
}

// startRecorder starts a recorder.
func startRecorder(t testing.TB, answer func(conn net.Conn, nth int, request seen) bool) *recorder {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return startRecorderOn(t, l, answer)
}

func startRecorderOn(t testing.TB, l net.Listener, answer func(conn net.Conn, nth int, request seen) bool) *recorder {
	if answer == nil {
		answer = func(conn net.Conn, _ int, _ seen) bool { _, err := io.WriteString(conn, answerOK); return err == nil }
	}
	u := &recorder{Listener: l, answer: answer, requests: make(chan seen, 10_000)}
	acceptAll(t, l, u.handle)
	return u
}

func (u *recorder) handle(conn net.Conn, number int) {
	eachRequest(conn, func(nth int, request seen) bool {
		request.conn = number
		u.requests <- request
		return u.answer(conn, nth, request)
	})
}

func (u *recorder) url() string { return "http://" + u.Addr().String() }

// next waits for the next request.
func (u *recorder) next(t testing.TB) seen {
	t.Helper()
	select {
	case s := <-u.requests:
		return s
	case <-time.After(patience):
		t.Fatal("the upstream saw no request")
		return seen{}
	}
}

// none checks that no request has come. Call it after the answer.
func (u *recorder) none(t testing.TB) {
	t.Helper()
	select {
	case s := <-u.requests:
		t.Errorf("the upstream saw %q %q with %d bytes", s.line, s.fields, len(s.body))
	default:
	}
}

// fickle is a v2 that takes records only as long as the test wants it to.
type fickle struct {
	net.Listener
	away  atomic.Pointer[func(conn net.Conn) bool] // what it does instead of taking a record; nil: it takes it
	conns atomic.Int32                             // connections so far

	mu      sync.Mutex
	changed *sync.Cond
	taken   []accepted
	times   map[string]int // how often it took a record, by ID
}

// accepted is a request that v2 has answered with 200.
type accepted struct {
	seen
	id string
	at time.Time
}

// startFickle starts a v2 that takes records.
func startFickle(t testing.TB) *fickle {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	v2 := newFickleOn(l)
	v2.serve(t)
	return v2
}

// newFickleOn makes a v2 that does not accept connections yet.
func newFickleOn(l net.Listener) *fickle {
	v2 := &fickle{Listener: l, times: map[string]int{}}
	v2.changed = sync.NewCond(&v2.mu)
	return v2
}

func (v2 *fickle) serve(t testing.TB) { acceptAll(t, v2.Listener, v2.handle) }

func (v2 *fickle) handle(conn net.Conn, _ int) {
	v2.conns.Add(1)
	eachRequest(conn, func(_ int, request seen) bool {
		if away := v2.away.Load(); away != nil {
			return (*away)(conn)
		}
		v2.take(request)
		return send(conn, true, answerOK)
	})
}

func (v2 *fickle) take(request seen) {
	id := idOf(request.body)
	v2.mu.Lock()
	defer v2.mu.Unlock()
	v2.taken = append(v2.taken, accepted{request, id, time.Now()})
	v2.times[id]++
	v2.changed.Broadcast()
}

// goAway has v2 answer otherwise than by taking records, until comeBack.
func (v2 *fickle) goAway(answer func(conn net.Conn) bool) { v2.away.Store(&answer) }
func (v2 *fickle) comeBack()                              { v2.away.Store(nil) }

// The ways in which v2 is away.
func closes(net.Conn) bool { return false }

func hangs(conn net.Conn) bool {
	_, _ = conn.Read(make([]byte, 1)) // until the gateway gives up
	return false
}

func answers(status, header string) func(net.Conn) bool {
	return func(conn net.Conn) bool {
		return send(conn, true, "HTTP/1.1 "+status+" X\r\n"+header+"Content-Length: 13\r\n\r\n"+`{"error":"x"}`)
	}
}

func (v2 *fickle) url() string { return "http://" + v2.Addr().String() }

// await waits until v2 has taken these records.
func (v2 *fickle) await(t testing.TB, ids ...string) {
	t.Helper()
	left := ids
	v2.awaitUntil(t, func() bool {
		for len(left) > 0 && v2.times[left[0]] > 0 {
			left = left[1:]
		}
		return len(left) == 0
	}, func() string {
		missing := slices.DeleteFunc(slices.Clone(left), func(id string) bool { return v2.times[id] > 0 })
		return fmt.Sprintf("%d of %d records are missing at v2, %q", len(missing), len(ids), missing[:min(10, len(missing))])
	})
}

// awaitUntil waits until done, which is called with v2.mu held. It has no limit of
// time, as long as v2 takes records.
func (v2 *fickle) awaitUntil(t testing.TB, done func() bool, problem func() string) {
	t.Helper()
	late, taken := false, 0
	timer := time.AfterFunc(patience, func() { v2.mu.Lock(); late = true; v2.changed.Broadcast(); v2.mu.Unlock() })
	defer timer.Stop()
	v2.mu.Lock()
	defer v2.mu.Unlock()
	for ; !done(); v2.changed.Wait() {
		if len(v2.taken) > taken {
			taken, late = len(v2.taken), false
			timer.Reset(patience)
		} else if late {
			t.Fatal(problem())
		}
	}
}

// all is what v2 has taken so far.
func (v2 *fickle) all() []accepted {
	v2.mu.Lock()
	defer v2.mu.Unlock()
	return slices.Clone(v2.taken)
}

// find returns the requests that v2 has taken with this ID.
func (v2 *fickle) find(id string) []accepted {
	return slices.DeleteFunc(v2.all(), func(r accepted) bool { return r.id != id })
}

// faulty is a v2 behind TLS that misbehaves on command, and counts what it
// reads.
type faulty struct {
	net.Listener
	certificate tls.Certificate
	fault       atomic.Pointer[fault]  // for all connections
	choose      func(at moment) *fault // instead, if it is not nil

	answered chan struct{} // closed when the caller has the head of the answer

	mu    sync.Mutex
	whole map[string]int // how often it read a request whole, by its body
	cut   int            // requests that the gateway broke off
	met   []moment       // when a fault struck
}

// fault is one way to misbehave. What is nil goes well.
type fault struct {
	certificate *tls.Certificate

	connect func(conn net.Conn) // instead of the TLS handshake
	request misbehaviour        // instead of reading a request that has begun
	answer  misbehaviour        // instead of answering a request that was read

	pause time.Duration // before each piece that it writes
}

// misbehaviour is what v2 does with a connection before it closes it.
type misbehaviour func(u *faulty, conn *tls.Conn)

// moment is when a fault may strike.
type moment int

const (
	onConnection moment = iota // before the TLS handshake
	onFresh                    // at the first request of a connection
	onReused                   // at a later one
)

func newFaulty(t testing.TB, certificate tls.Certificate) *faulty {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	u := &faulty{
		Listener: l, certificate: certificate,
		answered: make(chan struct{}), whole: make(map[string]int),
	}
	u.fault.Store(&fault{})
	return u
}

// serve takes connections until the end of the test.
func (u *faulty) serve(t testing.TB) {
	acceptAll(t, u, func(conn net.Conn, _ int) { u.handle(conn) })
}

// now is the fault for this moment.
func (u *faulty) now(at moment) *fault {
	if u.choose != nil {
		return u.choose(at)
	}
	return u.fault.Load()
}

// handle serves one connection.
func (u *faulty) handle(raw net.Conn) {
	now := u.now(onConnection)
	if now.connect != nil {
		now.connect(raw)
		return
	}
	certificate := u.certificate
	if now.certificate != nil {
		certificate = *now.certificate
	}
	if now.pause > 0 {
		raw = &pacedConn{raw, now.pause}
	}
	// A resumed session would not show the certificate again.
	conn := tls.Server(raw, &tls.Config{Certificates: []tls.Certificate{certificate}, SessionTicketsDisabled: true})
	if conn.Handshake() != nil {
		return
	}
	br := bufio.NewReader(conn)
	for at := onFresh; ; at = onReused {
		if _, err := br.Peek(1); err != nil {
			return
		}
		now = u.now(at)
		if now.request != nil || now.answer != nil {
			u.mu.Lock()
			u.met = append(u.met, at)
			u.mu.Unlock()
		}
		if now.request != nil {
			now.request(u, conn)
			return
		}
		request, err := readExact(br)
		u.mu.Lock()
		if err != nil {
			u.cut++
		} else {
			u.whole[request.body]++
		}
		u.mu.Unlock()
		if err != nil {
			return
		}
		if now.answer != nil {
			now.answer(u, conn)
			return
		}
		if !send(conn, true, answerOK) {
			return
		}
	}
}

// read returns how often v2 read the record whole, and how many requests the
// gateway broke off.
func (u *faulty) read(body string) (whole, cut int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.whole[body], u.cut
}

func (u *faulty) url() string {
	_, port, _ := net.SplitHostPort(u.Addr().String())
	return "https://localhost:" + port
}

// pacedConn writes in small pieces with a pause before each.
type pacedConn struct {
	net.Conn
	pause time.Duration
}

func (c *pacedConn) Write(b []byte) (n int, err error) {
	for n < len(b) && err == nil {
		time.Sleep(c.pause)
		var m int
		m, err = c.Conn.Write(b[n:min(len(b), n+100)])
		n += m
	}
	return n, err
}

// says sends the pieces of an answer, with a pause before each but the first,
// and ends the connection in good order.
func says(pause time.Duration, pieces ...string) misbehaviour {
	return func(_ *faulty, conn *tls.Conn) {
		for n, piece := range pieces {
			if n > 0 {
				time.Sleep(pause)
			}
			if !send(conn, true, piece) {
				return
			}
		}
		conn.Close()
	}
}

// stalls sends the pieces and then nothing more, until the gateway gives up.
func stalls(pieces ...string) misbehaviour {
	return func(_ *faulty, conn *tls.Conn) {
		send(conn, true, pieces...)
		_, _ = io.Copy(io.Discard, conn)
	}
}

// resets sends the pieces and resets the connection.
func resets(pieces ...string) misbehaviour {
	return func(_ *faulty, conn *tls.Conn) {
		send(conn, true, pieces...)
		reset(conn.NetConn())
	}
}

// flakySandbox is the sandbox, but one in ten requests goes wrong. Of one account
// it takes one record in ten, and of one table none.
type flakySandbox struct {
	inner  http.Handler
	taken  counts // by ID
	faults [len(faultNames)]atomic.Int32
	down   atomic.Bool // it takes nothing
	calm   atomic.Bool // nothing goes wrong any more
}

var faultNames = [...]string{
	"closes before it reads", "resets before it reads", "429", "500", "503",
	"breaks off its answer", "resets within its answer", "answers garbage",
	"an interim answer first", "closes after its answer", "answers too late",
}

var recordID = regexp.MustCompile(`"id":"(\d+)"`)

func newFlakySandbox() *flakySandbox {
	v2 := &flakySandbox{}
	v2.inner = &sandbox.Sandbox{Received: func(r sandbox.Record) {
		for _, id := range recordID.FindAllSubmatch(r.Body, -1) {
			v2.taken.add(string(id[1]))
		}
	}}
	return v2
}

// ServeHTTP answers a request, or fails to. If v2 closes the connection before
// it answers, it takes no record: so the gateway may send such a request again.
func (v2 *flakySandbox) ServeHTTP(w http.ResponseWriter, r *http.Request) { v2.serve(w, r) }

// serve is ServeHTTP; it returns the fault behind which a record is taken.
func (v2 *flakySandbox) serve(w http.ResponseWriter, r *http.Request) (behind string) {
	switch calm := v2.calm.Load(); {
	case strings.HasSuffix(r.URL.Path, earlyTable):
		answerEarly(w)
		return ""
	case calm:
		v2.inner.ServeHTTP(w, r)
		return ""
	case v2.down.Load():
		w.WriteHeader(http.StatusServiceUnavailable)
		return ""
	case strings.HasPrefix(r.Header.Get("X-TD-Write-Key"), noisyAccount+"/") && rand.IntN(10) > 0: //nolint:gosec // a test's dice
		w.Header().Set("Retry-After", "1")
		w.WriteHeader(http.StatusTooManyRequests)
		return ""
	}
	fault := rand.IntN(10 * len(faultNames))            //nolint:gosec // a test's dice
	if fault == len(faultNames)-1 && rand.IntN(3) > 0 { //nolint:gosec // the same
		fault = len(faultNames) // this one takes long
	}
	if fault >= len(faultNames) {
		v2.inner.ServeHTTP(w, r)
		return ""
	}
	v2.faults[fault].Add(1)
	return v2.fail(w, r, faultNames[fault])
}

// fail does what a fault's name says.
func (v2 *flakySandbox) fail(w http.ResponseWriter, r *http.Request, name string) (behind string) {
	switch name {
	case "closes before it reads", "resets before it reads":
		conn, _, err := http.NewResponseController(w).Hijack()
		if err == nil && strings.HasPrefix(name, "resets") {
			reset(conn)
		}
		_ = conn.Close()
	case "429", "500", "503":
		w.Header().Set("Retry-After", "1")
		status, _ := strconv.Atoi(name)
		w.WriteHeader(status)
	default:
		answer := httptest.NewRecorder()
		if v2.inner.ServeHTTP(answer, r); answer.Code != http.StatusOK {
			w.WriteHeader(answer.Code) // it does not say that it has taken what it has not
			return ""
		}
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return ""
		}
		defer conn.Close()
		whole := fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s", answer.Header().Get("Content-Type"), answer.Body.Len(), answer.Body)
		switch name {
		case "breaks off its answer":
			_, _ = io.WriteString(conn, whole[:len(whole)-1])
		case "resets within its answer":
			_, _ = io.WriteString(conn, whole[:20])
			reset(conn)
		case "answers garbage":
			_, _ = io.WriteString(conn, "200 OK\r\n\r\n{}")
		case "an interim answer first":
			_, _ = io.WriteString(conn, "HTTP/1.1 103 Early Hints\r\n\r\n"+whole)
		case "closes after its answer":
			_, _ = io.WriteString(conn, whole)
		case "answers too late":
			time.Sleep(1500 * time.Millisecond)
			_, _ = io.WriteString(conn, whole)
		}
		return name
	}
	return ""
}

// answerEarly refuses a request of which only the head was read. It reads no more
// of it, and closes a while later.
func answerEarly(w http.ResponseWriter) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	_, _ = io.WriteString(conn, "HTTP/1.1 403 Forbidden\r\nContent-Type: application/json\r\nContent-Length: 27\r\n\r\n{\"error\":\"the key is wrong\"}")
	time.AfterFunc(2*time.Second, func() { _ = conn.Close() })
}

// arrivals counts what arrives at v2, by body, and v2's open connections.
type arrivals struct {
	*httptest.Server
	records counts // by body
	open    atomic.Int32
}

// startArrivals starts a v2 that takes up to 50 ms for an answer.
func startArrivals(t *testing.T) *arrivals {
	a := &arrivals{}
	a.Server = httptest.NewUnstartedServer(&sandbox.Sandbox{Received: func(r sandbox.Record) {
		a.records.add(string(r.Body))
		time.Sleep(rand.N(50 * time.Millisecond)) //nolint:gosec // a test's dice
	}})
	a.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		switch state { //nolint:exhaustive // the other states do not change the number
		case http.StateNew:
			a.open.Add(1)
		case http.StateClosed:
			a.open.Add(-1)
		}
	}
	a.Start()
	t.Cleanup(a.Close)
	return a
}

// testimony is a request as v2 reads it, and the record that v2 took.
type testimony struct {
	line   string
	header http.Header
	body   []byte
	record *sandbox.Record // nil: it took none
}

// witness is the strict sandbox, and what it saw.
type witness struct {
	*httptest.Server
	seen chan *testimony
}

func startWitness(t *testing.T) *witness {
	w := &witness{seen: make(chan *testimony, 10)}
	records := make(chan sandbox.Record, 1)
	v2 := &sandbox.Sandbox{Received: func(record sandbox.Record) { records <- record }}
	w.Server = httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Errorf("v2 saw half a body: %v", err)
		}
		saw := &testimony{line: r.Method + " " + r.RequestURI, header: r.Header.Clone(), body: body}
		r.Body = io.NopCloser(bytes.NewReader(body))
		held := httptest.NewRecorder()
		v2.ServeHTTP(held, r)
		select {
		case record := <-records:
			saw.record = &record
		default:
		}
		w.seen <- saw // before the answer, so that it is there when the answer is
		maps.Copy(rw.Header(), held.Header())
		rw.WriteHeader(held.Code)
		_, _ = rw.Write(held.Body.Bytes())
	}))
	t.Cleanup(w.Close)
	return w
}

// latest is what v2 has seen since the last call, or nil.
func (w *witness) latest() *testimony {
	select {
	case saw := <-w.seen:
		return saw
	default:
		return nil
	}
}

// onePacketListener accepts TLS connections that can hold their TLS records
// back, to send them in one packet.
type onePacketListener struct {
	net.Listener
	cfg *tls.Config
}

func (l onePacketListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return tls.Server(&onePacket{Conn: conn}, l.cfg), nil
}

type onePacket struct {
	net.Conn
	open bool
	data []byte
}

func (p *onePacket) Write(b []byte) (int, error) {
	if !p.open {
		return p.Conn.Write(b)
	}
	p.data = append(p.data, b...)
	return len(b), nil
}

func (p *onePacket) flush() error {
	_, err := p.Conn.Write(p.data)
	p.open, p.data = false, nil
	return err
}

// unreachable is an address that refuses connections until the test listens on
// it. Nobody else can have it meanwhile.
func unreachable(t testing.TB) (addr string, listen func() net.Listener) {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	socket := os.NewFile(uintptr(fd), "v2")
	t.Cleanup(func() { socket.Close() })
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	bound, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("127.0.0.1:%d", bound.(*syscall.SockaddrInet4).Port), func() net.Listener {
		t.Helper()
		if err := syscall.Listen(fd, 100); err != nil {
			t.Fatal(err)
		}
		l, err := net.FileListener(socket)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
}
