package caddymodule

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/td-postback/gateway/postback"
)

// This file leaves requests to the next handler. Behind the last one, Caddy
// answers an empty 200, which a legacy caller takes for success: the gateway
// answers instead.

// serveNext runs the next handler and reports whether it has answered.
func serveNext(next caddyhttp.Handler, w http.ResponseWriter, r *http.Request) (answered bool, err error) {
	watch := &answerWatch{ResponseWriterWrapper: &caddyhttp.ResponseWriterWrapper{ResponseWriter: w}}
	err = next.ServeHTTP(watch, r)
	if !watch.answered {
		caddyhttp.SetVar(r.Context(), "unhandled", false) // or the access log would say so
	}
	return watch.answered, err
}

// handOff leaves a record to the next handler.
func (h *Handler) handOff(c *call) error {
	defer h.bodies.drop(c.body)
	c.result = handedOffResult
	h.closeIfLeaving(c.w, c.r)
	c.out.Apply(c.r)
	answered, err := serveNext(c.next, c.w, c.r)
	if !answered && err == nil {
		h.warn(&undeliveredWarning, c, postback.NothingBehind, errNothingBehind,
			"with handoff, a handler behind td_postback must forward the record: reverse_proxy, or another one in the same route block")
		h.refuse(c, postback.NothingBehind)
	}
	return err
}

var errNothingBehind = errors.New("no handler behind td_postback has answered")

// answerWatch notices whether its handler answers.
type answerWatch struct {
	*caddyhttp.ResponseWriterWrapper
	answered bool
}

// WriteHeader notices an answer. 101 is one, the other 1xx come before it.
func (w *answerWatch) WriteHeader(status int) {
	w.answered = w.answered || status >= 200 || status == http.StatusSwitchingProtocols
	w.ResponseWriter.WriteHeader(status)
}

func (w *answerWatch) Write(p []byte) (int, error) {
	w.answered = true
	return w.ResponseWriter.Write(p)
}

// ReadFrom is Write for a reader.
func (w *answerWatch) ReadFrom(r io.Reader) (int64, error) {
	w.answered = true
	return w.ResponseWriterWrapper.ReadFrom(r)
}

// FlushError sends the head off, if nothing else has.
func (w *answerWatch) FlushError() error {
	w.answered = true
	return http.NewResponseController(w.ResponseWriter).Flush()
}

// Hijack leaves the connection to the handler, and with it the answer.
func (w *answerWatch) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(w.ResponseWriter).Hijack()
	w.answered = w.answered || err == nil
	return conn, rw, err
}
