package caddymodule

import (
	"errors"
	"io"
	"net/http"
	"net/textproto"
	"strconv"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/td-postback/gateway/postback"
	"github.com/td-postback/gateway/upstream"
)

// This file holds what the gateway itself answers: its refusals, pixels and
// redirects. What v2 answers goes through package upstream, and what browsers
// ask beside it is in cors.go.

// begin adds to the head of an answer what the gateway has to say to its
// caller. Every answer to a call of the gateway's begins here, v2's too.
func (h *Handler) begin(w http.ResponseWriter, r *http.Request) {
	h.closeIfLeaving(w, r)
	allowOrigin(w.Header(), r)
}

// closeIfLeaving makes an answer the last one of its connection, if the
// configuration ends. HTTP/3 has no such header, and clients refuse an answer
// that has it.
func (h *Handler) closeIfLeaving(w http.ResponseWriter, r *http.Request) {
	if h.leaving.Load() && r.ProtoMajor < 3 {
		w.Header()["Connection"] = []string{"close"}
	}
}

// refuse answers a call with a refusal: as JSON, also where a query has asked
// for an image.
func (h *Handler) refuse(c *call, f *postback.Refusal) {
	c.result, c.noted.refused = f.Code, f
	if f.Code == postback.Overloaded.Code && f != noConnection {
		h.warnOfFullMemory()
	}
	if tellRefusal != nil {
		told := *c // or every call would be on the heap
		tellRefusal(&told, f)
	}
	if c.asked != nil {
		c.asked.plain = true
	}
	h.begin(c.w, c.r)
	if f.AsAsked && c.Kind == postback.Pixel {
		writeShort(c.w, c.r, f, "image/gif", pixel)
		return
	}
	writeRefusal(c.w, c.r, f)
}

// noConnection is postback.Overloaded where max_conns is what is used up, and not memory:
// who refuses by it has told the operator.
var noConnection = func() *postback.Refusal {
	refused := *postback.Overloaded
	return &refused
}()

// taken answers a caller as v2 does when it has taken a record.
func (h *Handler) taken(c *call) {
	header := c.w.Header()
	header["Content-Type"] = []string{"application/json"}
	header["Content-Length"] = []string{"2"}
	h.begin(c.w, c.r)
	c.w.WriteHeader(http.StatusOK)
	_, _ = io.WriteString(c.w, "{}")
}

const allowedMethods = "GET, POST, OPTIONS"

// What a refused caller may still send before the connection is cut.
const (
	lingerTime  = 5 * time.Second
	lingerPause = 300 * time.Millisecond // for a piece, over HTTP/2 and HTTP/3
	lingerPiece = 64 << 10
	lingerBytes = 64 << 20
)

// writeRefusal writes a refusal as an answer that has begun.
func writeRefusal(w http.ResponseWriter, r *http.Request, f *postback.Refusal) {
	// Codes and messages are constants of package postback, and numbers: nothing
	// in them needs escaping.
	writeShort(w, r, f, "application/json", `{"error":"`+f.Code+`","message":"`+f.Message+`"}`+"\n")
}

// writeShort writes a refusal with this body.
func writeShort(w http.ResponseWriter, r *http.Request, f *postback.Refusal, kind, body string) {
	h := w.Header()
	h["Content-Type"] = []string{kind}
	h["Cache-Control"] = []string{"no-store"}
	if f.Status == http.StatusMethodNotAllowed {
		h["Allow"] = []string{allowedMethods}
		if f == postback.PostOnly {
			h["Allow"] = []string{"POST, OPTIONS"}
		}
	}
	if f.RetryAfter > 0 {
		h["Retry-After"] = []string{strconv.Itoa(f.RetryAfter)}
	}
	h["Content-Length"] = []string{strconv.Itoa(len(body))}

	linger := func() {}
	if !f.BodyLost {
		linger = leaveBody(w, r)
	}
	w.WriteHeader(f.Status)
	_, _ = io.WriteString(w, body)
	linger()
}

// leaveBody prepares for an answer to a caller that may still be sending its
// body. The function that it returns, to be called after the answer, sends the
// answer off and then reads and drops the rest for a while: a connection that
// is closed with unread bytes, and an HTTP/2 stream that is reset, take the
// answer away from a caller that writes all before it reads.
func leaveBody(w http.ResponseWriter, r *http.Request) (linger func()) {
	if r.ContentLength == 0 {
		return func() {}
	}
	control := http.NewResponseController(w)
	if r.ProtoMajor == 1 {
		// Without this, net/http would read up to 256 KiB before it answers.
		_ = control.EnableFullDuplex()
		w.Header()["Connection"] = []string{"close"}
	}
	patience := lingerTime
	switch {
	case r.ProtoMajor > 1:
		// Some clients stop sending at a refusal, and wait for the stream's end.
		patience = lingerPause
	case r.Header.Get("Expect") != "":
		// This caller waits for 100 Continue, which does not come any more.
		patience = time.Second
	}
	body := r.Body
	return func() {
		_ = control.Flush()
		end := time.Now().Add(lingerTime)
		for n := 0; n < lingerBytes && time.Now().Before(end); n += lingerPiece {
			_ = control.SetReadDeadline(time.Now().Add(patience))
			if _, err := io.CopyN(io.Discard, body, lingerPiece); err != nil {
				return
			}
		}
	}
}

// skipBody reads and drops the body of a GET, which means nothing. A caller that
// does not send it within a second gets its answer all the same. linger is to be
// called after the answer.
func skipBody(w http.ResponseWriter, r *http.Request) (linger func()) {
	if r.ContentLength != 0 && r.Header.Get("Expect") == "" {
		control := http.NewResponseController(w)
		_ = control.SetReadDeadline(time.Now().Add(time.Second))
		if _, err := io.CopyN(io.Discard, r.Body, lingerBytes); errors.Is(err, io.EOF) {
			_ = control.SetReadDeadline(time.Time{})
			return func() {}
		}
	}
	return leaveBody(w, r)
}

// pixel is a transparent GIF of 1×1.
const pixel = "GIF89a\x01\x00\x01\x00\x80\x00\x00\x00\x00\x00\xff\xff\xff!\xf9\x04\x01\x00\x00\x00\x00,\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02D\x01\x00;"

// queryAnswer answers a caller whose query says how: with v2's answer, an image, a
// redirect, or what a JavaScript SDK takes for success. None of them may be kept by a cache: the next caller's
// record would end there.
type queryAnswer struct {
	*caddyhttp.ResponseWriterWrapper
	h *Handler
	r *http.Request

	pixel    bool
	location string            // where the caller is led once v2 has taken the record
	refused  *postback.Refusal // what the caller gets then instead
	plain    bool              // what is written is for the caller as it is
	js       bool              // the caller is a JavaScript SDK
	callback string            // what its answer calls; empty for JSON

	wroteHeader bool
	replaced    bool // v2's body is not for the caller
}

// newQueryAnswer prepares for the answer that a query asks for.
func (h *Handler) newQueryAnswer(w http.ResponseWriter, r *http.Request, rec postback.QueryRecord, globalID string) *queryAnswer {
	a := &queryAnswer{ResponseWriterWrapper: &caddyhttp.ResponseWriterWrapper{ResponseWriter: w}, h: h, r: r, pixel: rec.Pixel}
	if rec.Redirect == "" {
		return a
	}
	var ok bool
	if a.location, ok = postback.RedirectTarget(rec.Redirect, h.redirectHosts, globalID); !ok {
		a.refused = postback.RedirectNotAllowed
		asked := *r // handoff changes r
		a.r = &asked
	}
	return a
}

// WriteHeader decides the answer by v2's status.
func (w *queryAnswer) WriteHeader(status int) {
	if status < 200 {
		w.ResponseWriter.WriteHeader(status)
		return
	}
	if w.wroteHeader {
		return
	}
	w.wroteHeader = true
	if w.plain {
		w.ResponseWriter.WriteHeader(status)
		return
	}
	h, taken := w.Header(), status < 300
	switch {
	case taken && w.js:
		w.replaced = true
		w.answerCreated()
	case w.js && status < http.StatusBadRequest: // a redirect may lead to what looks like success
		w.replaced = true
		dropContent(h)
		writeRefusal(w.ResponseWriter, w.r, postback.UpstreamBrokenOff)
	case w.js:
		keepFromRunning(h)
		w.ResponseWriter.WriteHeader(status)
	case taken && w.refused != nil:
		w.replaced = true
		dropContent(h)
		w.h.begin(w.ResponseWriter, w.r)
		writeRefusal(w.ResponseWriter, w.r, w.refused)
	case taken && w.location != "":
		w.replaced = true
		dropContent(h)
		h["Location"] = []string{w.location}
		h["Content-Length"] = []string{"0"}
		h["Cache-Control"] = []string{"no-store, no-cache"}
		w.ResponseWriter.WriteHeader(http.StatusFound)
	case w.pixel && !upstream.Bodyless(status):
		w.replaced = true
		dropContent(h)
		h["Content-Type"] = []string{"image/gif"}
		h["Content-Length"] = []string{strconv.Itoa(len(pixel))}
		h["Cache-Control"] = []string{"no-store, no-cache"}
		w.ResponseWriter.WriteHeader(status)
		_, _ = io.WriteString(w.ResponseWriter, pixel)
	default:
		if len(h["Cache-Control"]) == 0 {
			h["Cache-Control"] = []string{"no-store"}
		}
		w.ResponseWriter.WriteHeader(status)
	}
}

// Write passes v2's body on, unless the answer has replaced it.
func (w *queryAnswer) Write(p []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	if w.replaced {
		return len(p), nil
	}
	return w.ResponseWriter.Write(p)
}

// ReadFrom is Write for a reader: the wrapper's own would go past Write.
func (w *queryAnswer) ReadFrom(r io.Reader) (int64, error) {
	w.WriteHeader(http.StatusOK)
	if w.replaced {
		return io.Copy(io.Discard, r)
	}
	return w.ResponseWriterWrapper.ReadFrom(r)
}

// dropContent drops what v2 said of a body that the caller does not get.
func dropContent(h http.Header) {
	for name := range h {
		switch textproto.CanonicalMIMEHeaderKey(name) {
		case "Content-Type", "Content-Length", "Content-Encoding", "Content-Language", "Content-Range", "Content-Disposition",
			"Content-Md5", "Digest", "Content-Digest", "Repr-Digest", "Etag", "Last-Modified", "Expires", "Accept-Ranges", "Cache-Control", "Location":
			delete(h, name)
		}
	}
}
