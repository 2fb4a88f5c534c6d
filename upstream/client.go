package upstream

import (
	"bufio"
	"cmp"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"runtime"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/td-postback/gateway/postback"
)

// fasthttp's HostClient keeps the connections and parses answers. Which failure
// may be retried, and on what connection, is decided here, because only here is
// it known what was sent.

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

	// restTime is how long a caller waits for the rest of an answer that is not
	// for it. With its rest, the connection can be used again.
	restTime = 100 * time.Millisecond

	// maxInterim bounds the 1xx answers that may come before the real one.
	maxInterim = 16

	// shortBody is the longest body that is copied behind its head, so that
	// both go out in one piece. For a longer one, a second piece is cheaper
	// than the copy.
	shortBody = 4 << 10

	// shortRequest is the longest request that goes into an empty socket's buffer
	// at once, so that sending it waits for nobody. By default, Linux takes 16 KiB
	// and other systems more, whatever v2 reads.
	shortRequest = 8 << 10
)

// Config says what a Client sends to, and how.
type Config struct {
	// URL is where v2 is: a scheme, http or https, and a host.
	URL *url.URL

	// TLS has what an https URL needs: the certificate authorities to trust, if
	// not the system's.
	TLS *tls.Config

	// Addr is where to connect to, as host:port, if the URL's host is not there. The
	// certificate is verified against the URL's host all the same.
	Addr string

	// Dial makes a connection to host:port. Nil for TCP, through the
	// environment's proxy if there is one for this URL.
	Dial func(addr string) (net.Conn, error)

	// DialTimeout is how long making a connection may take, TLS included.
	DialTimeout time.Duration

	// Timeout is how long v2 may take until its answer is there, and then
	// between two pieces of it.
	Timeout time.Duration

	// MaxConns is how many connections may be in use at a time, retries apart.
	MaxConns int

	// Retries is how often a request that v2 cannot have processed is sent
	// again.
	Retries int

	// Begin is called before the head of v2's answer is written to a caller; nil
	// for nothing. It may add headers.
	Begin func(http.ResponseWriter, *http.Request)

	// Withhold reports whether an answer with this status is not for the caller;
	// nil for none. Forward then fails with ErrWithheld, and Relay if Instead agrees.
	Withhold func(status int) bool
}

// Client sends requests to one v2 host. Its methods may be called concurrently.
type Client struct {
	Config

	// pool has the kept-alive connections, and apart those for what is no event.
	// fresh has none: a retry dials, so that it cannot meet another connection that
	// v2 has closed meanwhile. Nor has rests, for requests that are sent as they
	// come. Callers of apart and rests may take for ever, and must not keep an event,
	// or its retry, from its connection.
	pool, apart, fresh, rests *fasthttp.HostClient

	closed atomic.Bool
}

// New makes a client. It opens no connection. It fails if the environment names
// a proxy for the URL that cannot be used.
func New(cfg Config) (*Client, error) {
	dial, err := newDialer(cfg)
	if err != nil {
		return nil, err
	}
	pool := func() *fasthttp.HostClient {
		return &fasthttp.HostClient{
			Addr:                cmp.Or(cfg.Addr, hostPort(cfg.URL)),
			DialTimeout:         dial,
			MaxConns:            cfg.MaxConns,
			MaxConnWaitTimeout:  queueTimeout,
			MaxIdleConnDuration: idleTimeout,
			ConnPoolStrategy:    fasthttp.LIFO,
			ReadBufferSize:      answerBuffer,
		}
	}
	return &Client{Config: cfg, pool: pool(), apart: pool(), fresh: pool(), rests: pool()}, nil
}

// Close gives up the idle connections. Those in use follow when they are
// released: a configuration is cleaned up while its last requests are served.
func (c *Client) Close() {
	c.closed.Store(true)
	c.pool.CloseIdleConnections()
	c.apart.CloseIdleConnections()
}

var (
	// ErrNoConn: MaxConns connections are in use, and none became free in time.
	// Nothing was sent.
	ErrNoConn = errors.New("all connections are in use")

	// ErrWithheld: v2 has answered, but its answer is not for the caller.
	ErrWithheld = errors.New("v2's answer is not for the caller")
)

// NotProcessedError is a failure after which v2 cannot have taken the record: it
// may be sent again.
type NotProcessedError struct {
	error
	dialing bool // the connection could not be made
}

// Unwrap returns what happened.
func (e NotProcessedError) Unwrap() error { return e.error }

// badAnswerError is an answer that is no HTTP. Its text never quotes the answer.
type badAnswerError string

func (e badAnswerError) Error() string { return "malformed answer: " + string(e) }

// IsTimeout reports whether v2, or the way to it, was too slow.
func IsTimeout(err error) bool {
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, fasthttp.ErrTimeout)
}

// Trip is how sending a request went.
type Trip struct {
	Bytes      int           // of the body
	Tries      int           // how often it was sent, or a connection was asked for
	Dialed     int           // how many connections were made
	Status     int           // of v2's answer; 0 without one
	Duration   time.Duration // from sending until the head of the answer was there
	Answered   time.Time     // when it was there; zero without an answer
	RetryAfter time.Duration // that v2 asked for, if its answer is not for the caller
	Cut        bool          // its answer broke off when the caller had a part of it
	Words      string        // in which v2 refused the record, as postback.Words makes them: for the operator
}

// Forward sends a request to v2 and passes the answer on to the caller. If it
// returns an error, nothing has been written to the caller: ErrNoConn,
// ErrWithheld, a NotProcessedError, or what went wrong when v2 may have taken the
// record. t is filled in any case, also when the caller's connection is aborted
// by a panic.
func (c *Client) Forward(w http.ResponseWriter, r *http.Request, q *postback.Request, t *Trip) error {
	x := exchanges.Get().(*exchange)
	defer x.put()
	x.w, x.r, x.timeout = w, r, c.Timeout
	x.compose(q)
	t.Bytes = q.Length()
	return c.send(c.pool, x, t)
}

// Deliver sends a request that was kept, as the bytes of the whole request, for
// no caller. Its errors are those of Forward but ErrWithheld.
func (c *Client) Deliver(data []byte, t *Trip) error {
	x := exchanges.Get().(*exchange)
	defer x.put()
	x.timeout = c.Timeout
	x.pieces = append(x.pieces[:0], data)
	return c.send(c.pool, x, t)
}

// send sends the request, on a connection of this pool, again if v2 cannot have
// processed it, and passes the answer on.
func (c *Client) send(pool *fasthttp.HostClient, x *exchange, t *Trip) error {
	t.Tries = 1
	started, again := time.Now(), c.rests
	if pool == c.pool {
		again = c.fresh
	}
	err := c.try(pool, x, t)
	for n := 0; n < c.Retries && err != nil; n++ {
		failure, ok := errors.AsType[NotProcessedError](err)
		if !ok || failure.dialing && time.Since(started) >= c.DialTimeout {
			break // a second dial timeout would not help this caller
		}
		t.Tries++
		err = c.try(again, x, t)
	}
	return err
}

// try sends the request over one connection of the pool and passes the answer
// on.
func (c *Client) try(pool *fasthttp.HostClient, x *exchange, t *Trip) error {
	kept := pool == c.pool || pool == c.apart
	conn, err := pool.AcquireConn(0, !kept)
	x.started = time.Now()
	for err == nil && !conn.LastUseTime().IsZero() && !conn.Conn().(*connection).reuse(x.started.Add(c.Timeout)) {
		pool.CloseConn(conn)
		conn, err = pool.AcquireConn(0, !kept)
		x.started = time.Now()
	}
	switch {
	case errors.Is(err, fasthttp.ErrNoFreeConns):
		return ErrNoConn
	case err != nil:
		return NotProcessedError{err, true}
	}
	reusable := false
	defer func() { // also when the caller's connection is aborted by a panic
		if reusable && kept && x.started.Sub(conn.CreatedTime()) < maxConnAge {
			pool.ReleaseConn(conn)
			if c.closed.Load() {
				pool.CloseIdleConnections()
			}
			return
		}
		if x.aside {
			conn.Conn().(*connection).hangUp()
		}
		pool.CloseConn(conn)
		x.stopReading()
		_ = x.finishSending() // then nobody uses the request's bytes any more
	}()
	x.conn, x.reused = conn.Conn().(*connection).Conn, !conn.LastUseTime().IsZero()
	if !x.reused {
		t.Dialed++
		if err := x.conn.SetDeadline(x.started.Add(c.Timeout)); err != nil {
			return NotProcessedError{err, false}
		}
	}
	x.startSending()

	// Others first: under load the answer is there when the turn comes back,
	// and a read that finds nothing, a wait and a wake-up are saved.
	runtime.Gosched()

	// Even if sending failed, v2 may have answered before it closed.
	br := pool.AcquireReader(x.conn)
	defer pool.ReleaseReader(br)
	reusable, err = c.receive(x, br, t)
	// What is sent may still be in buffers that v2 does not read any more: behind a
	// refusal of a long request, the next one would wait for nothing.
	refused := x.aside && t.Status >= http.StatusMultipleChoices
	reusable = reusable && x.isSent() && !refused
	return err
}

// receive reads the answer and passes it on. reusable says whether the
// connection can carry another request.
func (c *Client) receive(x *exchange, br *bufio.Reader, t *Trip) (reusable bool, err error) {
	if _, err := br.Peek(1); err != nil {
		if x.reused && !IsTimeout(err) && time.Since(x.started) < closeRace {
			return false, NotProcessedError{err, false}
		}
		return false, err
	}
	if err := x.readHead(br); err != nil {
		return false, err
	}
	t.Status, t.Duration = x.answer.StatusCode(), time.Since(x.started)
	t.Answered = x.started.Add(t.Duration)
	if t.Status < http.StatusMultipleChoices {
		// v2 cannot have taken what it has not got. A refusal holds in any case.
		if err := x.finishSending(); err != nil {
			return false, fmt.Errorf("it answered %d and did not read the request: %w", t.Status, err)
		}
	}
	switch {
	case x.relayed && x.withheld(c.Withhold, t):
		return x.skipRelayed(br, t), ErrWithheld
	case x.relayed:
		return x.relayAnswer(br, c.Begin, t)
	}
	withheld := x.w != nil && c.Withhold != nil && c.Withhold(t.Status)
	if x.w != nil && !withheld {
		return x.pass(br, c.Begin, t)
	}
	if withheld {
		x.wait(restTime)
	}
	t.RetryAfter = parseRetryAfter(x.retryAfter(), x.started)
	if x.whole && t.Status < http.StatusMultipleChoices {
		return x.keep(br)
	}
	reusable, err = x.skip(br, t)
	if withheld {
		err = ErrWithheld
	}
	return reusable, err
}

// parseRetryAfter reads a Retry-After header: seconds or a date (RFC 9110
// section 10.2.3). It returns 0 for none.
func parseRetryAfter(value string, now time.Time) time.Duration {
	// One that is out of range is as good as the largest.
	if seconds, err := strconv.Atoi(value); err == nil || errors.Is(err, strconv.ErrRange) {
		return time.Duration(max(0, min(seconds, 1<<30))) * time.Second
	}
	if date, err := http.ParseTime(value); err == nil {
		return max(0, date.Sub(now))
	}
	return 0
}
