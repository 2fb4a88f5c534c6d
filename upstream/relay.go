package upstream

import (
	"bufio"
	"errors"
	"io"
	"maps"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http/httpguts"

	"github.com/td-postback/gateway/postback"
)

// This file passes a request on as it came, and its answer as that came. What the
// caller has not sent yet goes on as it arrives, no faster than it is taken.

const (
	// restBuffer is the piece in which the rest of a body is passed on.
	restBuffer = 32 << 10

	// maxTrailer bounds the trailer of an answer, in bytes.
	maxTrailer = 32 << 10
)

// Relayed is a request that goes on as it came.
type Relayed struct {
	postback.LegacyRequest
	Body []byte    // what is there of its body, or the first part of it
	More [][]byte  // the parts behind that
	Rest io.Reader // what the caller has still to send; nil for nothing

	// Apart is for what is no event: its answer may be long, and its caller slow to take
	// it. It has connections of its own kind, of which there are as many, and keeps no
	// event waiting.
	Apart bool

	// Continue says that the caller waits for 100 Continue before it sends the rest. It
	// gets that when there is a connection. Else net/http would write it at the first
	// read, in the midst of a 1xx answer of the host's.
	Continue bool

	// Instead is asked whether the caller gets another answer than one that is not for
	// it, as Withhold says. The Trip has what the host says; nil for no. If Instead says
	// no, the host's answer goes to the caller all the same.
	Instead func() bool
}

// CallerError says that the rest of a request could not be read from its caller.
type CallerError struct{ error }

// Unwrap returns what happened.
func (e CallerError) Unwrap() error { return e.error }

// Relay is Forward for a request that goes on as it came, and whose answer does. 1xx
// answers too. A request with a rest can be sent only once: it gets a connection of its
// own, which cannot have been closed before it comes. Beside the errors of Forward, it
// may return a CallerError.
func (c *Client) Relay(w http.ResponseWriter, r *http.Request, q *Relayed, t *Trip) error {
	x := exchanges.Get().(*exchange)
	defer x.put()
	x.w, x.r, x.timeout = w, r, c.Timeout
	x.relayed, x.expects, x.continues, x.instead = true, len(q.Expect) > 0, q.Continue, q.Instead
	x.composeRelayed(q)
	pool := c.pool
	switch {
	case x.rest != nil:
		pool = c.rests
	case q.Apart:
		pool = c.apart
	}
	err := c.send(pool, x, t)
	if broken, ok := errors.AsType[CallerError](x.sendErr); ok && err != nil {
		return broken
	}
	return err
}

// composeRelayed makes the bytes of a request that goes on as it came, as far as they
// are there.
func (x *exchange) composeRelayed(q *Relayed) {
	x.head = q.AppendHead(x.head[:0])
	chunked := q.Length < 0
	var hops postback.Hops
	if chunked { // else there is no trailer
		hops = postback.HopsOf(q.Header["Connection"])
	}
	if q.Rest != nil {
		x.rest = &restOfRequest{Reader: q.Rest, chunked: chunked, trailer: q.Trailer, hops: hops}
	}
	if !chunked {
		x.addBody(q.Body, q.More)
		return
	}
	length := len(q.Body)
	for _, part := range q.More {
		length += len(part)
	}
	var end []byte // of the chunk
	if length > 0 {
		x.head = appendChunkSize(x.head, length)
		end = []byte("\r\n")
	}
	if q.Rest == nil {
		end = appendLastChunk(end, q.Trailer, hops)
	}
	if length == 0 {
		x.head = append(x.head, end...)
		x.pieces = append(x.pieces[:0], x.head)
		return
	}
	x.pieces = append(x.pieces[:0], x.head, q.Body)
	x.pieces = append(x.pieces, q.More...)
	x.pieces = append(x.pieces, end)
}

func appendChunkSize(dst []byte, size int) []byte {
	return append(strconv.AppendInt(dst, int64(size), 16), "\r\n"...)
}

func appendLastChunk(dst []byte, trailer http.Header, hops postback.Hops) []byte {
	return postback.AppendTrailer(append(dst, "0\r\n"...), trailer, hops)
}

// restOfRequest is what of a request its caller has still to send.
type restOfRequest struct {
	io.Reader
	chunked bool
	trailer http.Header // filled when all is read
	stopped atomic.Bool // nobody wants it any more, and that is not its caller's fault
	hops    postback.Hops
}

var restBuffers = sync.Pool{New: func() any { return new([restBuffer]byte) }}

// sendRest sends the rest of the request behind what was sent with this error. The time
// for the answer begins when all is sent: before that, it is the caller who is slow.
func (x *exchange) sendRest(err error) error {
	_ = x.conn.SetReadDeadline(time.Time{})
	if err == nil {
		err = x.copyRest()
	}
	patience := x.timeout
	if err != nil {
		patience = closeRace // there may be an answer, to what was sent
	}
	if _, ok := errors.AsType[CallerError](err); ok || IsTimeout(err) {
		patience = 0
	}
	_ = x.conn.SetReadDeadline(time.Now().Add(patience))
	return err
}

func (x *exchange) copyRest() error {
	buf := restBuffers.Get().(*[restBuffer]byte)
	defer restBuffers.Put(buf)
	defer clear(buf[:]) // it may hold what nobody else should see
	var size [20]byte
	for {
		n, readErr := x.rest.Read(buf[:])
		switch {
		case readErr == nil, errors.Is(readErr, io.EOF):
		case x.rest.stopped.Load():
			return readErr
		default:
			return CallerError{readErr}
		}
		_ = x.conn.SetWriteDeadline(time.Now().Add(x.timeout))
		if n > 0 {
			piece := [][]byte{buf[:n]}
			if x.rest.chunked {
				piece = [][]byte{appendChunkSize(size[:0], n), buf[:n], []byte("\r\n")}
			}
			if err := x.write(piece); err != nil {
				return err
			}
		}
		switch {
		case readErr == nil:
		case x.rest.chunked:
			return x.write([][]byte{appendLastChunk(nil, x.rest.trailer, x.rest.hops)})
		default:
			return nil
		}
	}
}

// write writes pieces, in one piece, if the connection can.
func (x *exchange) write(pieces [][]byte) error {
	x.unsent = pieces
	_, err := x.unsent.WriteTo(x.conn)
	x.unsent = nil
	return err
}

// stopReading ends the sending of a request whose connection is closed, also where it
// waits for its caller.
func (x *exchange) stopReading() {
	if x.rest != nil && x.sending && len(x.sent) == 0 {
		x.rest.stopped.Store(true)
		_ = http.NewResponseController(x.w).SetReadDeadline(time.Now().Add(restTime))
	}
}

// isRelayed reports whether a field that is not for others goes to the caller of a
// request that goes on as it came.
func isRelayed(name string) bool { return name == "Set-Cookie" || name == "Trailer" }

// relayInterim passes a 1xx answer on, but for a second 100. Over HTTP/1.1, a caller that
// has asked for one has got it; over HTTP/2, the server says it, and keeps to itself who
// has asked. Over HTTP/3 nobody else says it.
func (x *exchange) relayInterim() {
	status := x.answer.StatusCode()
	said := x.r.ProtoMajor == 1 && x.expects || x.r.ProtoMajor == 2
	if !x.r.ProtoAtLeast(1, 1) || status == http.StatusContinue && said {
		return
	}
	x.writeInterim(status, func() { x.copyHeader(false, 0) })
}

// writeInterim writes a 1xx answer, with no other fields than those that fill adds.
func (x *exchange) writeInterim(status int, fill func()) {
	header := x.w.Header()
	own := maps.Clone(header)
	clear(header)
	fill()
	x.w.WriteHeader(status)
	clear(header)
	maps.Copy(header, own)
}

// withheld asks whether the caller gets another answer than this one.
func (x *exchange) withheld(withhold func(status int) bool, t *Trip) bool {
	if x.instead == nil || withhold == nil || !withhold(t.Status) {
		return false
	}
	t.RetryAfter = parseRetryAfter(x.retryAfter(), x.started)
	if !x.instead() {
		x.extend() // to ask may have taken long
		return false
	}
	return true
}

// skipRelayed reads an answer that is for nobody, if it is short. What it says is not
// noted: it may quote a key from where a request to v2 has none.
func (x *exchange) skipRelayed(br *bufio.Reader, t *Trip) (reusable bool) {
	x.relayed = false // the trailer goes to nobody
	_ = x.conn.SetReadDeadline(time.Now().Add(restTime))
	reusable, _ = x.skip(br, t)
	t.Words = ""
	return reusable
}

// relayAnswer passes the answer on as it came. A body in chunks goes on piece by piece
// from its head on, and so does its trailer.
func (x *exchange) relayAnswer(br *bufio.Reader, begin func(http.ResponseWriter, *http.Request), t *Trip) (reusable bool, err error) {
	body, length := x.body(br)
	n, complete := 0, false
	if length >= 0 {
		if n, complete, err = readAvailable(br, body, x.buf, length); err != nil {
			return false, err
		}
	}
	header := x.w.Header()
	delete(header, "Server") // the gateway's
	if begin != nil {
		begin(x.w, x.r)
	}
	x.copyHeader(complete, n)
	if x.rest != nil && !x.isSent() && x.r.ProtoMajor == 1 {
		header["Connection"] = []string{"close"} // the caller need not send the rest
	}
	x.w.WriteHeader(x.answer.StatusCode())
	_, writeErr := x.w.Write(x.buf[:n])
	if writeErr != nil {
		complete = false
	} else if !complete {
		complete = x.stream(body, t)
	}
	if complete && length == -1 && !x.relayTrailer(br) {
		t.Cut = true // as in stream
		panic(http.ErrAbortHandler)
	}
	return x.reusable(br, complete), nil
}

// announceTrailer announces what relayTrailer passes on of what the answer has announced.
// Of a field that is in the head too, net/http would take that for the trailer: such a
// one comes unannounced.
func (x *exchange) announceTrailer(header http.Header) {
	var names []string
	for _, value := range header["Trailer"] {
		for name := range strings.SplitSeq(value, ",") {
			name = strings.Trim(name, " \t")
			if x.relaysTrailer(name) && len(header[http.CanonicalHeaderKey(name)]) == 0 {
				names = append(names, name)
			}
		}
	}
	delete(header, "Trailer")
	if len(names) > 0 {
		header["Trailer"] = []string{strings.Join(names, ", ")}
	}
}

// relaysTrailer reports whether a field of the answer's trailer goes to the caller: what
// the head may not say, the trailer may not say either.
func (x *exchange) relaysTrailer(name string) bool {
	if !httpguts.ValidHeaderFieldName(name) || !httpguts.ValidTrailerHeader(name) || x.hops.Has(name) {
		return false
	}
	key, ok := answerField([]byte(name))
	return ok || isRelayed(key)
}

// relayTrailer passes on what stands behind the last chunk.
func (x *exchange) relayTrailer(br *bufio.Reader) (complete bool) {
	for size := 0; size < maxTrailer; {
		x.extend()
		line, err := br.ReadSlice('\n')
		if err != nil {
			return false
		}
		size += len(line)
		text := strings.TrimRight(string(line), "\r\n")
		if text == "" {
			return true
		}
		if name, value, ok := strings.Cut(text, ":"); ok && x.relaysTrailer(name) {
			x.w.Header().Add(http.TrailerPrefix+name, strings.Trim(value, " \t"))
		}
	}
	return false
}
