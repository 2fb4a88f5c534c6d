package upstream

import (
	"bufio"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/td-postback/gateway/postback"
)

// exchange is one request to v2 and its answer. It is used again, so that what
// it holds is allocated once.
type exchange struct {
	w http.ResponseWriter // nil if no caller waits for the answer
	r *http.Request

	conn    net.Conn
	reused  bool          // the connection has carried a request before
	started time.Time     // when this try was
	timeout time.Duration // of a pause in the answer

	head   []byte   // of the request; a short body is behind it
	pieces [][]byte // head, and a body that is not short
	unsent net.Buffers

	relayed   bool // the request and its answer go on as they came: see relay.go
	expects   bool // its caller has asked for 100 Continue, and gets it here
	continues bool // of such a request: see Relayed, for instead too
	instead   func() bool
	rest      *restOfRequest // what is sent behind pieces as it comes; nil for nothing

	aside   bool       // the request is long, and sent in a goroutine of its own
	sending bool       // that goroutine has not told yet how it went
	sent    chan error // what it tells
	sendErr error      // why the request could not be sent whole

	answer fasthttp.ResponseHeader
	fixed  fixedReader
	hops   postback.Hops // which fields of the answer are for this hop alone
	fields []field       // of the answer, as they go to the caller
	values []byte        // their values, one after the other
	buf    []byte        // answerBuffer bytes of the answer's body
	whole  bool          // an answer below 300 is read whole,
	said   []byte        // into this
}

var exchanges = sync.Pool{New: func() any {
	return &exchange{buf: make([]byte, answerBuffer)}
}}

// maxIdleHead is the largest head that is used again: memory for larger ones
// would stay without being counted by anybody.
const maxIdleHead = 64 << 10

func (x *exchange) put() {
	clear(x.head) // it holds the write key
	if cap(x.head) > maxIdleHead {
		x.head = nil
	}
	clear(x.pieces)
	x.w, x.r, x.conn, x.fixed.r, x.hops = nil, nil, nil, nil, nil
	x.whole, x.said = false, nil
	x.relayed, x.expects, x.continues, x.instead, x.rest, x.sendErr = false, false, false, nil, nil, nil
	exchanges.Put(x)
}

// compose makes the bytes of a request.
func (x *exchange) compose(q *postback.Request) {
	x.head = q.AppendHead(x.head[:0])
	x.addBody(q.Body, q.More)
}

// addBody puts a body behind the head.
func (x *exchange) addBody(first []byte, more [][]byte) {
	if len(first) <= shortBody && len(more) == 0 {
		x.head = append(x.head, first...)
		x.pieces = append(x.pieces[:0], x.head)
		return
	}
	x.pieces = append(x.pieces[:0], x.head, first)
	x.pieces = append(x.pieces, more...)
}

// startSending sends the request. A long one may not fit into the socket's
// buffer. So it is sent aside, and an answer that comes meanwhile is read: v2
// may refuse a record by its head, and read no more of it.
func (x *exchange) startSending() {
	length := 0
	for _, piece := range x.pieces {
		length += len(piece)
	}
	if x.aside = length > shortRequest || x.rest != nil; !x.aside {
		x.sendErr = x.send()
		return
	}
	if x.continues {
		x.writeInterim(http.StatusContinue, func() {})
	}
	sent := make(chan error, 1)
	x.sent, x.sending = sent, true
	go func() { sent <- x.send() }()
}

// finishSending waits until the request is sent, and says why it could not be
// sent whole.
func (x *exchange) finishSending() error {
	if x.sending {
		x.sendErr, x.sending = <-x.sent, false
	}
	return x.sendErr
}

// isSent reports whether the request is sent whole by now.
func (x *exchange) isSent() bool {
	if x.sending && len(x.sent) == 0 {
		return false
	}
	return x.finishSending() == nil
}

// send sends the request.
func (x *exchange) send() error {
	err := x.sendPieces()
	if x.rest == nil {
		return err
	}
	return x.sendRest(err)
}

// sendPieces sends what of the request is there, in one piece, if the connection can.
func (x *exchange) sendPieces() error {
	if len(x.pieces) == 1 {
		_, err := x.conn.Write(x.pieces[0])
		return err
	}
	// WriteTo takes apart what it is called on, and a retry sends it again.
	x.unsent = append(x.unsent[:0], x.pieces...)
	unsent := x.unsent
	_, err := x.unsent.WriteTo(x.conn)
	clear(unsent)
	x.unsent = unsent
	return err
}

// extend puts off the deadline while a long answer flows.
func (x *exchange) extend() {
	_ = x.conn.SetReadDeadline(time.Now().Add(x.timeout))
}

// retryAfter is the answer's Retry-After, however it is spelled.
func (x *exchange) retryAfter() string {
	for name, value := range x.answer.All() {
		if strings.EqualFold(string(name), "Retry-After") {
			return string(value)
		}
	}
	return ""
}

// wait bounds what is left of the time for the answer.
func (x *exchange) wait(most time.Duration) {
	if until := time.Now().Add(most); until.Before(x.started.Add(x.timeout)) {
		_ = x.conn.SetReadDeadline(until)
	}
}

// readHead reads the head of the final answer, past any 1xx.
func (x *exchange) readHead(br *bufio.Reader) error {
	for range maxInterim {
		x.answer.Reset()
		x.answer.DisableNormalizing()
		x.answer.SetNoDefaultContentType(true)
		if !beginsAnswer(br) {
			return badAnswerError("unexpected status")
		}
		if err := x.answer.Read(br); err != nil {
			if IsTimeout(err) {
				return err
			}
			return badAnswerError("no valid head") // fasthttp's text quotes it
		}
		switch status := x.answer.StatusCode(); {
		case status == http.StatusSwitchingProtocols, x.relayed && opensTunnel(x.r.Method, status):
			return badAnswerError("unexpected status")
		case status >= 200:
			return nil
		case x.relayed:
			x.relayInterim()
		}
	}
	return badAnswerError("too many interim answers")
}

// opensTunnel reports whether, behind this answer, the connection is one to somebody else
// (RFC 9110 section 9.3.6): no caller's request may follow on it.
func opensTunnel(method string, status int) bool {
	return method == http.MethodConnect && status/100 == 2
}

// beginsAnswer reports whether what comes may be an answer: with a status that is not
// below 100 (RFC 9112 section 4). fasthttp takes 000 for 200.
func beginsAnswer(br *bufio.Reader) bool {
	const version = "HTTP/1.1 "
	line, err := br.Peek(len(version) + 1)
	if err != nil {
		return true // too short for an answer: reading it says what is wrong
	}
	first := line[len(version)]
	return string(line[:5]) == version[:5] && line[len(version)-1] == ' ' && '1' <= first && first <= '9'
}
