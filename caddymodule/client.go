package caddymodule

import (
	"crypto/tls"
	"errors"
	"net/http"
	"net/url"
	"os"
	"runtime"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/td-postback/gateway/postback"
	"github.com/td-postback/gateway/spool"
)

// This file is the upstream client. fasthttp's HostClient keeps the
// connections and parses answers; which failure may be retried, and on what
// connection, is decided here, because only here is it known what was sent.
// How a connection is made is in dial.go, what becomes of an answer in
// answer.go.

const (
	// idleTimeout is below the 60 s after which v2's load balancer gives an
	// idle connection up, so that the gateway is the first to close it.
	idleTimeout = 45 * time.Second

	// maxConnAge makes busy connections follow v2's addresses in DNS.
	maxConnAge = 5 * time.Minute

	// queueTimeout is how long a request waits for a connection when
	// max_conns are in use.
	queueTimeout = 10 * time.Second

	// closeRace is how soon after a request v2 closes a kept-alive connection
	// that it gave up before the request came. If it closes later, it may have
	// been working on the record.
	closeRace = time.Second

	// answerBuffer holds the head of an answer, and is the piece in which a
	// long body is passed on.
	answerBuffer = 16 << 10

	// maxInterim bounds the 1xx answers that may come before the real one.
	maxInterim = 16

	// shortBody is the longest body that is copied behind its head, so that
	// both go out in one piece. For a longer one, a second piece is cheaper
	// than the copy.
	shortBody = 4 << 10
)

// upstream forwards to one v2 host.
type upstream struct {
	// pool has the kept-alive connections. fresh has none: a retry dials, so
	// that it cannot meet another connection that v2 has closed meanwhile.
	pool, fresh *fasthttp.HostClient

	retries     int
	dialTimeout time.Duration
	timeout     time.Duration
	handover    *Handover // of the callers' server, or nil
	spooled     bool      // what v2 does not take now is kept, so its answer is not for the caller

	closed atomic.Bool
}

// upstreamConfig is what an upstream is made from.
type upstreamConfig struct {
	url         *url.URL // scheme and host
	dialTimeout time.Duration
	timeout     time.Duration
	maxConns    int
	retries     int
	tls         *tls.Config // with the certificate authorities to trust, if not the system's
	handover    *Handover
	spooled     bool
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
		retries: cfg.retries, dialTimeout: cfg.dialTimeout, timeout: cfg.timeout, handover: cfg.handover, spooled: cfg.spooled,
	}, nil
}

// close gives up the idle connections. Those in use follow when they are
// released: a configuration is cleaned up while its last requests are served.
func (u *upstream) close() {
	u.closed.Store(true)
	u.pool.CloseIdleConnections()
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

// errNotTaken is an answer by which v2 asks for the record again later, and
// that is not for the caller, because the spool has one.
var errNotTaken = errors.New("not taken by Postback v2")

// delivery is how a request to v2 went.
type delivery struct {
	bytes      int           // of the body
	tries      int           // how often it was sent, or a connection was asked for
	status     int           // of v2's answer; 0 without one
	duration   time.Duration // from sending until the head of the answer was there
	retryAfter time.Duration // that v2 asked for, if its answer is not for the caller
}

// forward sends a request to v2 and passes the answer on to the caller. If it
// returns an error, nothing has been written to the caller. d is filled also if
// the caller's connection is aborted by a panic.
func (u *upstream) forward(w http.ResponseWriter, r *http.Request, out *postback.Request, d *delivery) error {
	x := exchanges.Get().(*exchange)
	defer x.put()
	x.w, x.r, x.timeout = w, r, u.timeout
	x.compose(out)
	d.bytes = out.Length()
	return u.exchange(x, d)
}

// deliver sends a request that was kept, for no caller.
func (u *upstream) deliver(data []byte) spool.Result {
	x := exchanges.Get().(*exchange)
	defer x.put()
	x.timeout = u.timeout
	x.pieces = append(x.pieces[:0], data)
	var d delivery
	err := u.exchange(x, &d)
	return d.result(err)
}

// result says how sending a record went that has a spool.
func (d *delivery) result(err error) spool.Result {
	r := spool.Result{Status: d.status, RetryAfter: d.retryAfter}
	if err != nil && !r.NotTaken() {
		r.Status = 0 // an answer that broke off says nothing
	}
	switch r.Status {
	case 0:
		_, notProcessed := errors.AsType[notProcessedError](err)
		_, notSent := errors.AsType[*postback.Refusal](err)
		r.Err, r.Ambiguous = err, !notProcessed && !notSent
	case http.StatusInternalServerError, http.StatusBadGateway, http.StatusGatewayTimeout:
		r.Ambiguous = true // it may have failed only after it had stored the record
	}
	return r
}

// exchange sends the request, again if v2 cannot have processed it, and passes
// the answer on.
func (u *upstream) exchange(x *exchange, d *delivery) error {
	d.tries = 1
	started := time.Now()
	err := u.try(u.pool, x, d)
	for n := 0; n < u.retries && err != nil; n++ {
		failure, ok := errors.AsType[notProcessedError](err)
		if !ok || failure.dialing && time.Since(started) >= u.dialTimeout {
			break // a second dial timeout would not help this caller
		}
		d.tries++
		retriesTotal.Inc()
		err = u.try(u.fresh, x, d)
	}
	return err
}

// try sends the request over one connection of the client and passes the
// answer on.
func (u *upstream) try(client *fasthttp.HostClient, x *exchange, d *delivery) error {
	conn, err := client.AcquireConn(0, client == u.fresh)
	now := time.Now()
	for err == nil && !conn.LastUseTime().IsZero() && !conn.Conn().(*connection).reuse(now.Add(u.timeout)) {
		client.CloseConn(conn)
		conn, err = client.AcquireConn(0, client == u.fresh)
		now = time.Now()
	}
	if errors.Is(err, fasthttp.ErrNoFreeConns) {
		return postback.ErrOverloaded
	}
	if err != nil {
		return notProcessedError{err, true}
	}
	reused := !conn.LastUseTime().IsZero()
	keep := false
	defer func() { // also when the caller's connection is aborted by a panic
		if keep && client == u.pool && now.Sub(conn.CreatedTime()) < maxConnAge {
			client.ReleaseConn(conn)
			if u.closed.Load() {
				client.CloseIdleConnections()
			}
		} else {
			client.CloseConn(conn)
		}
	}()

	x.conn = conn.Conn().(*connection).Conn
	if !reused {
		connectionsTotal.Inc()
		if err := x.conn.SetDeadline(now.Add(u.timeout)); err != nil {
			return notProcessedError{err, false}
		}
	}
	sendErr := x.send()
	if isTimeout(sendErr) {
		return sendErr
	}

	// Others first: under load the answer is there when the turn comes back,
	// and a read that finds nothing, a wait and a wake-up are saved.
	runtime.Gosched()

	// Even if sending failed, v2 may have answered before it closed.
	br := client.AcquireReader(x.conn)
	defer client.ReleaseReader(br)
	if _, err := br.Peek(1); err != nil {
		if reused && !isTimeout(err) && time.Since(now) < closeRace {
			return notProcessedError{err, false}
		}
		return err
	}
	if err := x.readHead(br); err != nil {
		return err
	}
	d.status, d.duration = x.answer.StatusCode(), time.Since(now)
	if x.w == nil || u.spooled && (spool.Result{Status: d.status}).NotTaken() {
		d.retryAfter = parseRetryAfter(string(x.answer.Peek("Retry-After")), now)
		reusable, err := x.skip(br)
		keep = reusable && sendErr == nil
		if x.w == nil {
			return err
		}
		return errNotTaken
	}
	u.handover.end(x.w, x.r)
	keep, err = x.pass(br)
	keep = keep && sendErr == nil
	return err
}

// parseRetryAfter reads a Retry-After header: seconds or a date (RFC 9110
// section 10.2.3). It returns 0 for none.
func parseRetryAfter(value string, now time.Time) time.Duration {
	if seconds, err := strconv.Atoi(value); err == nil {
		return time.Duration(max(0, min(seconds, 1<<30))) * time.Second
	}
	if date, err := http.ParseTime(value); err == nil {
		return max(0, date.Sub(now))
	}
	return 0
}

func isTimeout(err error) bool {
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, fasthttp.ErrTimeout)
}
