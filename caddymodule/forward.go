package caddymodule

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/textproto"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/valyala/fasthttp"
	"github.com/valyala/fasthttp/fasthttpproxy"
	"golang.org/x/net/http/httpproxy"
	"golang.org/x/net/proxy"
)

// This file is the upstream client. fasthttp's HostClient keeps the
// connections and parses answers; which failure may be retried, and on what
// connection, is decided here, because only here is it known what was sent.

const (
	// idleTimeout is below the 60 s after which v2's load balancer gives an
	// idle connection up, so that the gateway is the first to close it.
	idleTimeout = 45 * time.Second

	// maxConnAge makes busy connections follow v2's addresses in DNS.
	maxConnAge = 5 * time.Minute

	// queueTimeout is how long a request waits for a connection when
	// max_conns are in use.
	queueTimeout = 10 * time.Second

	// answerBuffer holds the head of an answer, and is the piece in which a
	// long body is passed on.
	answerBuffer = 16 << 10

	// maxInterim bounds the 1xx answers that may come before the real one.
	maxInterim = 16
)

// forwarder sends a request to v2 and passes the answer on to the caller. If
// it returns an error, nothing has been written to the caller.
type forwarder interface {
	forward(w http.ResponseWriter, r *http.Request, out *v2Request) error
}

// upstream forwards to one v2 host.
type upstream struct {
	// pool has the kept-alive connections. fresh has none: a retry dials, so
	// that it cannot meet another connection that v2 has closed meanwhile.
	pool, fresh *fasthttp.HostClient

	retries     int
	dialTimeout time.Duration
	timeout     time.Duration
}

// upstreamConfig is what an upstream is made from.
type upstreamConfig struct {
	url         *url.URL // scheme and host
	dialTimeout time.Duration
	timeout     time.Duration
	maxConns    int
	retries     int
	tls         *tls.Config // with the certificate authorities to trust, if not the system's
}

func newUpstream(cfg upstreamConfig) (*upstream, error) {
	dial, err := newDialer(cfg)
	if err != nil {
		return nil, err
	}
	client := func() *fasthttp.HostClient {
		return &fasthttp.HostClient{
			Addr:                hostPort(cfg.url),
			DialTimeout:         dial,
			MaxConns:            cfg.maxConns,
			MaxConnWaitTimeout:  queueTimeout,
			MaxIdleConnDuration: idleTimeout,
			ConnPoolStrategy:    fasthttp.LIFO,
			ReadBufferSize:      answerBuffer,
		}
	}
	return &upstream{
		pool: client(), fresh: client(),
		retries: cfg.retries, dialTimeout: cfg.dialTimeout, timeout: cfg.timeout,
	}, nil
}

// hostPort is a URL's host with its port, or its scheme's.
func hostPort(u *url.URL) string {
	port := u.Port()
	switch {
	case port != "":
	case u.Scheme == "https":
		port = "443"
	case strings.HasPrefix(u.Scheme, "socks5"):
		port = "1080"
	default:
		port = "80"
	}
	return net.JoinHostPort(u.Hostname(), port)
}

// newDialer returns the function that makes a connection ready to use: through
// the environment's proxy if there is one for this upstream, and with TLS
// established if the upstream is https, all within dialTimeout. Names are
// looked up at every dial, IPv4 and IPv6 are tried side by side (RFC 8305).
func newDialer(cfg upstreamConfig) (fasthttp.DialFuncWithTimeout, error) {
	direct := &net.Dialer{Timeout: cfg.dialTimeout}
	dial := func(addr string) (net.Conn, error) { return direct.Dial("tcp", addr) }

	proxyURL, err := httpproxy.FromEnvironment().ProxyFunc()(cfg.url)
	if err != nil {
		// The error quotes the variable, which may hold a password.
		return nil, errors.New("the environment's HTTP_PROXY or HTTPS_PROXY is no valid URL")
	}
	if proxyURL != nil {
		if dial, err = dialThrough(proxyURL, cfg.dialTimeout); err != nil {
			return nil, fmt.Errorf("the environment's HTTP_PROXY or HTTPS_PROXY must be an http or socks5 URL: %w", err)
		}
	}
	if cfg.url.Scheme != "https" {
		return func(addr string, _ time.Duration) (net.Conn, error) { return dial(addr) }, nil
	}

	tlsConfig := cfg.tls.Clone()
	tlsConfig.ServerName = cfg.url.Hostname()
	tlsConfig.NextProtos = []string{"http/1.1"}
	tlsConfig.ClientSessionCache = tls.NewLRUClientSessionCache(0)
	return func(addr string, _ time.Duration) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(context.Background(), cfg.dialTimeout)
		defer cancel()
		raw, err := dial(addr)
		if err != nil {
			return nil, err
		}
		conn := tls.Client(raw, tlsConfig)
		if err := conn.HandshakeContext(ctx); err != nil {
			_ = raw.Close()
			return nil, err
		}
		return conn, nil
	}, nil
}

// dialThrough returns a function that dials through a proxy.
func dialThrough(proxyURL *url.URL, timeout time.Duration) (fasthttp.DialFunc, error) {
	// Only the scheme, the user and the address count: a path, such as the
	// usual trailing slash, would become a part of the address.
	at := &url.URL{Scheme: proxyURL.Scheme, User: proxyURL.User, Host: hostPort(proxyURL)}
	if strings.HasPrefix(at.Scheme, "socks5") {
		through, err := proxy.FromURL(at, &net.Dialer{})
		if err != nil {
			return nil, err
		}
		return func(addr string) (net.Conn, error) {
			ctx, cancel := context.WithTimeout(context.Background(), timeout)
			defer cancel()
			return through.(proxy.ContextDialer).DialContext(ctx, "tcp", addr)
		}, nil
	}
	through := &fasthttpproxy.Dialer{
		Config:         httpproxy.Config{HTTPProxy: at.String(), HTTPSProxy: at.String()},
		TCPDialer:      fasthttp.TCPDialer{DisableDNSResolution: true},
		DialDualStack:  true,
		Timeout:        timeout,
		ConnectTimeout: timeout,
	}
	return through.GetDialFunc(false)
}

// close gives up the idle connections. Those in use follow by themselves.
func (u *upstream) close() {
	u.pool.CloseIdleConnections()
	u.fresh.CloseIdleConnections()
}

// notProcessedError is a failure after which v2 cannot have taken the record: it
// may be sent again.
type notProcessedError struct {
	error
	dialing bool // the connection could not be made
}

func (e notProcessedError) Unwrap() error { return e.error }

// badAnswerError is an answer that is no HTTP. Its text never quotes the answer.
type badAnswerError string

func (e badAnswerError) Error() string { return "malformed answer: " + string(e) }

func (u *upstream) forward(w http.ResponseWriter, r *http.Request, out *v2Request) error {
	x := exchanges.Get().(*exchange)
	defer x.put()
	x.head = out.appendHead(x.head[:0])
	x.w, x.r, x.body = w, r, out.body

	started := time.Now()
	err := u.try(u.pool, x)
	for n := 0; n < u.retries && err != nil; n++ {
		failure, ok := errors.AsType[notProcessedError](err)
		if !ok || failure.dialing && time.Since(started) >= u.dialTimeout {
			break // a second dial timeout would not help this caller
		}
		err = u.try(u.fresh, x)
	}
	return err
}

// try sends the request over one connection of the client and passes the
// answer on.
func (u *upstream) try(client *fasthttp.HostClient, x *exchange) error {
	conn, err := client.AcquireConn(0, client == u.fresh)
	for err == nil && !conn.LastUseTime().IsZero() && !isQuiet(conn.Conn()) {
		client.CloseConn(conn)
		conn, err = client.AcquireConn(0, client == u.fresh)
	}
	if errors.Is(err, fasthttp.ErrNoFreeConns) {
		return errOverloaded
	}
	if err != nil {
		return notProcessedError{err, true}
	}
	reused := !conn.LastUseTime().IsZero()
	keep := false
	defer func() { // also when the caller's connection is aborted by a panic
		if keep && client == u.pool && time.Since(conn.CreatedTime()) < maxConnAge {
			client.ReleaseConn(conn)
		} else {
			client.CloseConn(conn)
		}
	}()

	c := conn.Conn()
	if err := c.SetDeadline(time.Now().Add(u.timeout)); err != nil {
		return notProcessedError{err, false}
	}
	bw := client.AcquireWriter(c)
	_, _ = bw.Write(x.head) // a bufio.Writer keeps its error until Flush
	_, _ = bw.Write(x.body)
	sendErr := bw.Flush()
	client.ReleaseWriter(bw)
	if isTimeout(sendErr) {
		return sendErr
	}

	// Even if sending failed, v2 may have answered before it closed.
	br := client.AcquireReader(c)
	defer client.ReleaseReader(br)
	if _, err := br.Peek(1); err != nil {
		if reused && !isTimeout(err) {
			return notProcessedError{err, false}
		}
		return err
	}
	if err := x.readHead(br); err != nil {
		return err
	}
	keep, err = x.pass(br, func() { _ = c.SetReadDeadline(time.Now().Add(u.timeout)) })
	keep = keep && sendErr == nil
	return err
}

func isTimeout(err error) bool {
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, fasthttp.ErrTimeout)
}

// exchange is one request to v2 and its answer.
type exchange struct {
	w http.ResponseWriter
	r *http.Request

	head, body []byte
	answer     fasthttp.ResponseHeader
	buf        []byte // answerBuffer bytes of the answer's body
}

var exchanges = sync.Pool{New: func() any {
	return &exchange{buf: make([]byte, answerBuffer)}
}}

func (x *exchange) put() {
	clear(x.head) // it holds the write key
	x.w, x.r, x.body = nil, nil, nil
	exchanges.Put(x)
}

// readHead reads the head of the final answer, past any 1xx.
func (x *exchange) readHead(br *bufio.Reader) error {
	for range maxInterim {
		x.answer.Reset()
		x.answer.DisableNormalizing()
		x.answer.SetNoDefaultContentType(true)
		if err := x.answer.Read(br); err != nil {
			if isTimeout(err) {
				return err
			}
			return badAnswerError("no valid head") // fasthttp's text quotes it
		}
		switch status := x.answer.StatusCode(); {
		case status == http.StatusSwitchingProtocols || status < 100:
			return badAnswerError("unexpected status")
		case status >= 200:
			return nil
		}
	}
	return badAnswerError("too many interim answers")
}

// pass passes the answer on to the caller. reusable says whether the
// connection can carry another request. extend puts off the deadline while a
// long body flows.
func (x *exchange) pass(br *bufio.Reader, extend func()) (reusable bool, err error) {
	length := x.answer.ContentLength()
	var body io.Reader
	switch {
	case bodyless(x.answer.StatusCode()):
		length, body = 0, http.NoBody
	case length >= 0:
		body = &fixedReader{r: br, left: length}
	case length == -1: // chunked
		body = httputil.NewChunkedReader(br)
	default: // until v2 closes
		body = br
	}

	// Most answers are `{}`: read to their end, so that a broken one is still
	// a 502 and a whole one is a single write.
	n, complete, err := readAvailable(br, body, x.buf, length)
	if err != nil {
		return false, err
	}
	x.copyHeader(complete, n)
	x.w.WriteHeader(x.answer.StatusCode())
	// If the caller has gone, there is nobody left to tell.
	if _, writeErr := x.w.Write(x.buf[:n]); writeErr == nil && !complete {
		complete = x.stream(body, extend)
	}
	switch {
	case bodyless(x.answer.StatusCode()):
		complete = x.answer.ContentLength() <= 0 && len(x.answer.Peek("Transfer-Encoding")) == 0
	case length == -1 && complete:
		complete = br.Buffered() > 0 && x.answer.ReadTrailer(br) == nil
	}
	return complete && !x.answer.ConnectionClose() && br.Buffered() == 0, nil
}

// readAvailable reads a body into buf: to its end if it fits and, when its
// length is not known, is there already.
func readAvailable(br *bufio.Reader, body io.Reader, buf []byte, length int) (n int, complete bool, err error) {
	for n < len(buf) {
		m, err := body.Read(buf[n:])
		n += m
		switch {
		case errors.Is(err, io.EOF):
			return n, true, nil
		case err != nil:
			return n, false, err
		case length < 0 && br.Buffered() == 0:
			return n, false, nil
		}
	}
	return n, false, nil
}

// stream passes on what is left of a body, piece by piece as it arrives, and
// reports whether all of it went through.
func (x *exchange) stream(body io.Reader, extend func()) (complete bool) {
	control := http.NewResponseController(x.w)
	for control.Flush() == nil {
		extend()
		n, err := body.Read(x.buf)
		if n > 0 {
			if _, err := x.w.Write(x.buf[:n]); err != nil {
				return false
			}
		}
		if errors.Is(err, io.EOF) {
			return true
		}
		if err != nil {
			// The caller has the status already: only a broken connection
			// tells it that the body is not whole.
			panic(http.ErrAbortHandler)
		}
	}
	return false
}

var connectionName = []byte("Connection")

// copyHeader copies the answer's header to the caller's, less what speaks for
// this hop or for v2's host.
func (x *exchange) copyHeader(complete bool, n int) {
	h := x.w.Header()
	allowOrigin(h, x.r)
	var connection []string
	for name, value := range x.answer.All() {
		if bytes.EqualFold(name, connectionName) {
			connection = append(connection, string(value))
		}
	}
	seen := false // Server is the gateway's until v2 sends one
	for name, value := range x.answer.All() {
		key, ok := answerField(name)
		if !ok || (len(connection) > 0 && listsToken(connection, key)) {
			continue
		}
		switch {
		case key == "Server" && !seen:
			seen = true
			h[key] = []string{string(value)}
		case key == "Access-Control-Allow-Origin":
			h[key] = []string{string(value)}
		default:
			h[key] = append(h[key], string(value))
		}
	}
	if _, sent := h["Content-Type"]; !sent {
		h["Content-Type"] = nil // or net/http would guess one
	}
	if complete && h["Content-Length"] == nil && !bodyless(x.answer.StatusCode()) {
		h["Content-Length"] = []string{strconv.Itoa(n)}
	}
}

// bodyless reports whether an answer with this status never has a body
// (RFC 9110 sections 15.3.5 and 15.4.5).
func bodyless(status int) bool {
	return status == http.StatusNoContent || status == http.StatusNotModified
}

// answerField returns the name under which a field of v2's answer goes back to
// the caller, or false if it does not. Names stay as v2 spelled them, but for
// those that net/http must recognise in order not to send its own as well.
func answerField(name []byte) (string, bool) {
	canonical := textproto.CanonicalMIMEHeaderKey(string(name))
	switch canonical {
	case "Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Proxy-Connection",
		"Te", "Trailer", "Transfer-Encoding", "Upgrade",
		"Strict-Transport-Security", "Alt-Svc", "Set-Cookie":
		return "", false
	case "Content-Type", "Content-Length", "Content-Encoding", "Date", "Server", "Cache-Control", "Access-Control-Allow-Origin":
		return canonical, true
	}
	return string(name), true
}

// fixedReader reads a body of known length and tells a short one from a whole
// one.
type fixedReader struct {
	r    io.Reader
	left int
}

func (f *fixedReader) Read(p []byte) (int, error) {
	if f.left == 0 {
		return 0, io.EOF
	}
	n, err := f.r.Read(p[:min(len(p), f.left)])
	f.left -= n
	switch {
	case f.left == 0:
		err = io.EOF
	case errors.Is(err, io.EOF):
		err = io.ErrUnexpectedEOF
	}
	return n, err
}
