package caddymodule

import (
	"errors"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// ServeHTTP takes one request through the gateway: where does it belong, with
// which key, how does it look to v2, is it small enough, forward, answer.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	dest, refused := parsePath(r.URL.Path)
	if refused == errNotFound && h.PassThru {
		return next.ServeHTTP(w, r)
	}
	o := outcome{destination: dest, surface: surfaceOf(r)}
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
	o.credentials = out.credentials
	if refused != nil {
		o.refuse(w, r, refused)
		return nil
	}
	h.warnOfKey(r, &out)
	if o.surface != surfacePost {
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
	if len(body.data) == 0 && hasColumn(out.query, h.caller(r)) {
		h.bodies.release(body)
		o.surface = surfaceBeacon
		return h.serveRecord(w, r, &out, way, &o, next)
	}
	out.body, out.more = body.data, body.parts()
	out.setContentType()
	return h.send(w, w, r, &out, way, body, &o, next)
}

// surfaceOf tells what kind of call a request is, but for a POST without a
// body: that may be a beacon.
func surfaceOf(r *http.Request) surface {
	switch {
	case r.Method != http.MethodPost && r.Method != http.MethodGet:
		return surfaceOther
	case wantsPixel(r.URL.RawQuery):
		return surfacePixel
	case r.Method == http.MethodGet:
		return surfaceGet
	case isPing(r.Header["Content-Type"]):
		return surfaceBeacon
	default:
		return surfacePost
	}
}

// serveRecord sends the record that the query holds, and answers as the query
// asks for.
func (h *Handler) serveRecord(w http.ResponseWriter, r *http.Request, out *v2Request, way *route, o *outcome, next caddyhttp.Handler) error {
	from := h.caller(r)
	rec, room, refused := h.bodies.record(out.query, from)
	if refused != nil {
		h.warnOfMemoryLimit(refused)
		o.refuse(w, r, refused)
		return nil
	}
	out.useRecord(rec)
	answer := &recordWriter{ResponseWriterWrapper: &caddyhttp.ResponseWriterWrapper{ResponseWriter: w}, request: r, pixel: rec.pixel}
	if rec.redirect != "" {
		var ok bool
		if answer.location, ok = redirectTarget(rec.redirect, h.redirectHosts, from.globalID); !ok {
			h.warnOfRedirect(out)
			answer.refused = errRedirect
			asked := *r // handoff changes r
			answer.request = &asked
		}
	}
	err := h.send(answer, w, r, out, way, room, o, next)
	if answer.replaced && answer.refused != nil {
		o.result = answer.refused.code
	}
	return err
}

// caller reads what a record may take from the request beside its query.
func (h *Handler) caller(r *http.Request) caller {
	ip, _ := caddyhttp.GetVar(r.Context(), caddyhttp.ClientIPVarKey).(string)
	from := caller{ip: withoutZone(ip), userAgent: r.UserAgent()}
	if len(r.Header["Cookie"]) > 0 {
		if cookie, err := r.Cookie(h.GlobalID); err == nil {
			from.globalID = cookie.Value
		}
	}
	return from
}

// send forwards the request, or hands it to the next handler. v2's answer goes
// to answer, a refusal to w.
func (h *Handler) send(answer, w http.ResponseWriter, r *http.Request, out *v2Request, way *route, body *bodyBuffer, o *outcome, next caddyhttp.Handler) error {
	if h.Handoff {
		defer h.bodies.drop(body)
		o.result = handedOffResult
		out.rewrite(r)
		return next.ServeHTTP(answer, r)
	}
	defer h.bodies.release(body)
	if h.Spool != nil {
		h.forwardOrKeep(answer, w, r, out, way, o)
		return nil
	}
	if err := way.forward(answer, r, out, &o.delivery); err != nil {
		h.handover.end(w, r)
		o.refuse(w, r, h.failure(err, way))
		return nil
	}
	o.result = upstreamResult(o.delivery.status)
	h.warnOfAnswer(o.delivery.status, way)
	return nil
}

// prepare builds the v2 request but for its body.
func (h *Handler) prepare(r *http.Request, dest destination) (out v2Request, way *route, refused *refusal) {
	if r.Method != http.MethodPost && r.Method != http.MethodGet {
		return out, nil, errMethod
	}
	if way, refused = h.route(r.Host); refused != nil {
		return out, nil, refused
	}
	query, param := cutWriteKey(r.URL.RawQuery)
	cred, refused := findKey(param, r.Header[canonicalWriteKeyHeader], r.Header["Authorization"])
	if refused != nil {
		out.credentials.source = cred.source
		return out, nil, refused
	}
	return v2Request{
		host:        way.host,
		destination: dest,
		query:       query,
		header:      r.Header,
		credentials: cred,
		forwarded:   h.forwarded(r),
	}, way, nil
}

// route finds the way to v2 for a request's Host. With handoff and neither
// region nor upstream there is none to know: the Host stays.
func (h *Handler) route(host string) (*route, *refusal) {
	if h.byRegion != nil {
		region, ok := regionOf(host)
		if !ok {
			return nil, unknownRegion()
		}
		return h.byRegion[region], nil
	}
	if h.fixed == nil {
		return &route{host: host}, nil
	}
	return h.fixed, nil
}

// failure turns an error of the upstream client into the caller's answer, and
// tells the operator.
func (h *Handler) failure(err error, way *route) *refusal {
	refused, ok := errors.AsType[*refusal](err)
	if !ok {
		_, notProcessed := errors.AsType[notProcessedError](err)
		switch {
		case notProcessed:
			refused = errUnreachable
		case isTimeout(err):
			refused = errUpstreamTimeout
		default:
			refused = errBrokenOff
		}
	}
	h.warnOfFailure(refused, err, way)
	return refused
}

// forwarded builds the headers that tell v2 where a request came from, by the
// rules of Caddy's reverse_proxy: what the caller says of itself counts only
// if it is a trusted proxy.
func (h *Handler) forwarded(r *http.Request) forwarded {
	trusted, _ := caddyhttp.GetVar(r.Context(), caddyhttp.TrustedProxyVarKey).(bool)
	f := forwarded{
		proto: "http",
		host:  r.Host,
		via:   chain(r.Header["Via"], via(r.ProtoMajor, r.ProtoMinor)),
	}
	f.earlyData = len(r.Header["Early-Data"]) > 0 // by a proxy before this one
	if r.TLS != nil {
		f.proto = "https"
		f.earlyData = f.earlyData || !r.TLS.HandshakeComplete
	}
	ip, _, err := net.SplitHostPort(r.RemoteAddr)
	f.clientIP = withoutZone(ip)
	if !trusted {
		if err != nil { // a Unix socket, say: there is no peer to tell of
			f.clientIP, f.proto, f.host = "", "", ""
		}
		return f
	}
	f.clientIP = chain(r.Header["X-Forwarded-For"], f.clientIP)
	if prior := last(r.Header["X-Forwarded-Proto"]); prior != "" {
		f.proto = prior
	}
	if prior := last(r.Header["X-Forwarded-Host"]); prior != "" {
		f.host = prior
	}
	return f
}

// via is the gateway's own entry in Via (RFC 9110 section 7.6.3).
func via(major, minor int) string {
	if major == 1 && minor == 1 {
		return "1.1 Caddy" // nearly all: there is nothing to build
	}
	return strconv.Itoa(major) + "." + strconv.Itoa(minor) + " Caddy"
}
