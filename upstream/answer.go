package upstream

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/http/httputil"
	"net/textproto"
	"strconv"
	"strings"

	"github.com/td-postback/gateway/postback"
)

// pass passes the answer on to the caller, when begin, if it is not nil, has
// added its headers, and notes v2's words. reusable says whether the connection
// can carry another request.
func (x *exchange) pass(br *bufio.Reader, begin func(http.ResponseWriter, *http.Request), t *Trip) (reusable bool, err error) {
	body, length := x.body(br)

	// Most answers are `{}`: read to their end, so that a broken one is still
	// a 502 and a whole one is a single write.
	n, complete, err := readAvailable(br, body, x.buf, length)
	if err != nil {
		return false, err
	}
	t.Words = x.words(n, complete)
	if begin != nil {
		begin(x.w, x.r)
	}
	x.copyHeader(complete, n)
	x.w.WriteHeader(x.answer.StatusCode())
	// If the caller has gone, there is nobody left to tell.
	if _, writeErr := x.w.Write(x.buf[:n]); writeErr == nil && !complete {
		complete = x.stream(body, t)
	}
	return x.reusable(br, complete), nil
}

// skip reads an answer that is for nobody, if it is short, and notes v2's words.
// It fails if the answer breaks off.
func (x *exchange) skip(br *bufio.Reader, t *Trip) (reusable bool, err error) {
	body, length := x.body(br)
	n, complete, err := readAvailable(br, body, x.buf, length)
	t.Words = x.words(n, complete)
	return err == nil && x.reusable(br, complete), err
}

// words is what v2 says in the first n bytes of its answer, if it refuses the
// record and says it in the clear.
func (x *exchange) words(n int, complete bool) string {
	coding := x.answer.ContentEncoding()
	if x.answer.StatusCode() < http.StatusBadRequest || n == 0 || len(coding) > 0 && !bytes.EqualFold(coding, []byte("identity")) {
		return ""
	}
	return postback.Words(x.buf[:n], complete, x.sentKeys()...)
}

// sentKeys finds the keys in the head that v2 got.
func (x *exchange) sentKeys() (keys []string) {
	for line := range bytes.SplitSeq(x.pieces[0], []byte("\r\n")) {
		if len(line) == 0 {
			break
		}
		name, value, _ := strings.Cut(string(line), ": ")
		if name == postback.WriteKeyHeader || name == "Authorization" {
			keys = append(keys, strings.TrimPrefix(value, "TD1 "))
		}
	}
	return keys
}

// body returns the answer's body and its length, which is -1 or less if it is
// not known.
func (x *exchange) body(br *bufio.Reader) (body io.Reader, length int) {
	length = x.answer.ContentLength()
	switch {
	case x.bodyless():
		return http.NoBody, 0
	case length >= 0:
		x.fixed = fixedReader{r: br, left: length}
		return &x.fixed, length
	case length == -1: // chunked
		return httputil.NewChunkedReader(br), length
	default: // until v2 closes
		return br, length
	}
}

// reusable reports whether the connection can carry another request.
func (x *exchange) reusable(br *bufio.Reader, complete bool) bool {
	switch {
	case x.bodyless(): // a host that announces one may send it, in the next caller's answer
		complete = x.answer.ContentLength() <= 0 && len(x.answer.Peek("Transfer-Encoding")) == 0
	case x.relayed: // with its trailer
	case x.answer.ContentLength() == -1 && complete:
		complete = hasTrailer(br) && x.answer.ReadTrailer(br) == nil
	}
	return complete && !x.answer.ConnectionClose() && br.Buffered() == 0
}

// hasTrailer reports whether a trailer is there already, to its end, even if it
// is empty. The caller's answer is complete without it, and does not wait.
func hasTrailer(br *bufio.Reader) bool {
	rest, err := br.Peek(br.Buffered())
	return err == nil && (string(rest) == "\r\n" || bytes.HasSuffix(rest, []byte("\r\n\r\n")))
}

// readAvailable reads a body into buf: to its end if it surely fits, and
// otherwise what is there already. A chunked reader returns all of that at once,
// with the end.
func readAvailable(br *bufio.Reader, body io.Reader, buf []byte, length int) (n int, complete bool, err error) {
	for n < len(buf) {
		m, err := body.Read(buf[n:])
		n += m
		switch {
		case errors.Is(err, io.EOF):
			return n, true, nil
		case err != nil:
			return n, false, err
		case length < 0, length > len(buf) && br.Buffered() == 0:
			return n, false, nil
		}
	}
	return n, false, nil
}

// stream passes on what is left of a body, piece by piece as it arrives, and
// reports whether all of it went through.
func (x *exchange) stream(body io.Reader, t *Trip) (complete bool) {
	control := http.NewResponseController(x.w)
	for control.Flush() == nil {
		x.extend()
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
			t.Cut = true
			panic(http.ErrAbortHandler)
		}
	}
	return false
}

// field is a field of the answer.
type field struct {
	name string // as the caller gets it
	end  int    // of its value in exchange.values; it begins where the one before ends
}

// copyHeader copies the answer's header to the caller's, less what speaks for
// this hop or for v2's host.
func (x *exchange) copyHeader(complete bool, n int) {
	x.hops = postback.HopsOf(x.collectFields())
	h := x.w.Header()
	text := string(x.values)                // one string for all values
	values := make([]string, len(x.fields)) // and one slice for all headers
	start := 0
	seen := false                                     // Server is the gateway's until v2 sends one
	cors := len(h["Access-Control-Allow-Origin"]) > 0 // is the gateway's, all of it
	for i, f := range x.fields {
		values[i] = text[start:f.end]
		start = f.end
		one := values[i : i+1 : i+1]
		switch {
		case x.hops.Has(f.name):
		case f.name == "Server" && !seen:
			seen = true
			h[f.name] = one
		case cors && isCORS(f.name):
		case h[f.name] == nil:
			h[f.name] = one
		default:
			h[f.name] = append(h[f.name], values[i])
		}
	}
	if x.relayed {
		x.announceTrailer(h)
	}
	if _, sent := h["Content-Type"]; !sent {
		h["Content-Type"] = nil // or net/http would guess one
	}
	if complete && h["Content-Length"] == nil && !x.bodyless() {
		h["Content-Length"] = []string{strconv.Itoa(n)}
	}
}

// isCORS reports whether a field says which pages may read the answer.
func isCORS(name string) bool {
	const prefix = "Access-Control-"
	return len(name) > len(prefix) && strings.EqualFold(name[:len(prefix)], prefix)
}

// keepAlive is what a Connection header says usually. It names no field that
// would go to the caller.
var keepAlive = []byte("keep-alive")

// collectFields fills fields and values with what goes to the caller, and
// returns the Connection headers, which may name more that does not.
func (x *exchange) collectFields() (connection []string) {
	x.fields, x.values = x.fields[:0], x.values[:0]
	for name, value := range x.answer.All() {
		key, ok := answerField(name)
		if ok || x.relayed && isRelayed(key) {
			x.values = append(x.values, value...)
			x.fields = append(x.fields, field{key, len(x.values)})
		} else if key == "Connection" && !bytes.EqualFold(value, keepAlive) {
			connection = append(connection, string(value))
		}
	}
	return connection
}

// bodyless reports whether the answer has no body, whatever its head says.
func (x *exchange) bodyless() bool {
	return Bodyless(x.answer.StatusCode()) || x.relayed && x.r.Method == http.MethodHead
}

// Bodyless reports whether an answer with this status never has a body
// (RFC 9110 sections 15.3.5 and 15.4.5).
func Bodyless(status int) bool {
	return status == http.StatusNoContent || status == http.StatusNotModified
}

// answerField returns the name under which a field of v2's answer goes back to
// the caller, and whether it does. Names stay as v2 spelled them. Only
// those are changed that net/http or the gateway must recognise, or there would be two.
func answerField(name []byte) (key string, ok bool) {
	switch string(name) { // the usual spellings of the usual fields
	case "Content-Type":
		return "Content-Type", true
	case "Content-Length":
		return "Content-Length", true
	case "Date":
		return "Date", true
	case "Server":
		return "Server", true
	case "Connection":
		return "Connection", false
	}
	key = string(name)
	switch canonical := textproto.CanonicalMIMEHeaderKey(key); canonical {
	case "Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Proxy-Connection",
		"Te", "Trailer", "Transfer-Encoding", "Upgrade",
		"Strict-Transport-Security", "Alt-Svc", "Set-Cookie":
		return canonical, false
	case "Content-Type", "Content-Length", "Content-Encoding", "Date", "Server", "Cache-Control", "Access-Control-Allow-Origin", "X-Content-Type-Options":
		return canonical, true
	}
	return key, true
}

// fixedReader reads a body of known length and tells a short one from a whole
// one.
type fixedReader struct {
	r    *bufio.Reader
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
