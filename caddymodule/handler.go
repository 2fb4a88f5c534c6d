package caddymodule

import (
	"errors"
	"net/http"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/td-postback/gateway/postback"
	"github.com/td-postback/gateway/upstream"
)

// ServeHTTP takes one request through the gateway: where does it belong, with
// which key, how does it look to v2, is it small enough, forward, answer.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	dest, refused := postback.ParsePath(r.URL.Path)
	if refused == postback.ErrNotFound && h.PassThru {
		return next.ServeHTTP(w, r)
	}
	o := outcome{Destination: dest, surface: postback.KindOf(r)}
	if h.Spool != nil {
		o.arrival = time.Now()
	}
	requestsInFlight.Inc()
	defer o.finish(r)
	h.handover.end(w, r)
	if refused != nil {
		o.refuse(w, r, refused)
		return nil
	}
	if r.Method == http.MethodOptions {
		o.result = preflightResult
		preflight(w, r)
		return nil
	}
	out, way, refused := h.prepare(r, dest)
	o.credentials = out.Credentials
	if refused != nil {
		o.refuse(w, r, refused)
		return nil
	}
	h.warnOfKey(r, &out)
	if o.surface != postback.Post {
		linger := skipBody(w, r)
		defer linger()
		return h.serveRecord(w, r, &out, way, &o, next)
	}
	body, refused := h.bodies.read(r)
	if refused != nil {
		h.warnOfMemoryLimit(refused)
		o.refuse(w, r, refused)
		return nil
	}
	if len(body.data) == 0 && postback.HasColumn(out.Query, h.caller(r)) {
		h.bodies.release(body)
		o.surface = postback.Beacon
		return h.serveRecord(w, r, &out, way, &o, next)
	}
	out.Body, out.More = body.data, body.parts()
	out.SetContentType()
	return h.send(w, w, r, &out, way, body, &o, next)
}

// serveRecord sends the record that the query holds, and answers as the query
// asks for.
func (h *Handler) serveRecord(w http.ResponseWriter, r *http.Request, out *postback.Request, way *route, o *outcome, next caddyhttp.Handler) error {
	from := h.caller(r)
	rec, room, refused := h.bodies.record(out.Query, from)
	if refused != nil {
		h.warnOfMemoryLimit(refused)
		o.refuse(w, r, refused)
		return nil
	}
	out.UseRecord(rec)
	answer := &recordWriter{ResponseWriterWrapper: &caddyhttp.ResponseWriterWrapper{ResponseWriter: w}, request: r, pixel: rec.Pixel}
	if rec.Redirect != "" {
		var ok bool
		if answer.location, ok = postback.RedirectTarget(rec.Redirect, h.redirectHosts, from.GlobalID); !ok {
			h.warnOfRedirect(out)
			answer.refused = postback.ErrRedirect
			asked := *r // handoff changes r
			answer.request = &asked
		}
	}
	err := h.send(answer, w, r, out, way, room, o, next)
	if answer.replaced && answer.refused != nil {
		o.result = answer.refused.Code
	}
	return err
}

// send forwards the request, or hands it to the next handler. v2's answer goes
// to answer, a refusal to w.
func (h *Handler) send(answer, w http.ResponseWriter, r *http.Request, out *postback.Request, way *route, body *bodyBuffer, o *outcome, next caddyhttp.Handler) error {
	if h.Handoff {
		defer h.bodies.drop(body)
		o.result = handedOffResult
		out.Apply(r)
		return next.ServeHTTP(answer, r)
	}
	defer h.bodies.release(body)
	if h.Spool != nil {
		h.forwardOrKeep(answer, w, r, out, way, o)
		return nil
	}
	if err := way.Forward(answer, r, out, &o.delivery); err != nil {
		h.handover.end(w, r)
		o.refuse(w, r, h.failure(err, way))
		return nil
	}
	o.result = upstreamResult(o.delivery.Status)
	h.warnOfAnswer(o.delivery.Status, way)
	return nil
}

// failure turns an error of the upstream client into the caller's answer, and
// tells the operator.
func (h *Handler) failure(err error, way *route) *postback.Refusal {
	_, notProcessed := errors.AsType[upstream.NotProcessedError](err)
	refused := postback.ErrBrokenOff
	switch {
	case errors.Is(err, upstream.ErrNoConn):
		refused = postback.ErrOverloaded
	case notProcessed:
		refused = postback.ErrUnreachable
	case upstream.IsTimeout(err):
		refused = postback.ErrUpstreamTimeout
	}
	h.warnOfFailure(refused, err, way)
	return refused
}

// begin adds to an answer what the gateway has to say to its caller.
func (h *Handler) begin(w http.ResponseWriter, r *http.Request) {
	h.handover.end(w, r)
	allowOrigin(w.Header(), r)
}
