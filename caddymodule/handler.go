package caddymodule

import (
	"errors"
	"net"
	"net/http"
	"strconv"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
)

// ServeHTTP takes one request through the gateway: where does it belong, with
// which key, how does it look to v2, is it small enough, forward, answer.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	dest, refused := parsePath(r.URL.Path)
	if refused == errNotFound && h.PassThru {
		return next.ServeHTTP(w, r)
	}
	if refused != nil {
		refuse(w, r, refused)
		return nil
	}
	if r.Method == http.MethodOptions {
		preflight(w, r)
		return nil
	}
	out, way, refused := h.prepare(r, dest)
	if refused != nil {
		refuse(w, r, refused)
		return nil
	}
	if r.Method == http.MethodGet || isRecordPost(r.Header["Content-Type"], out.query) {
		linger := skipBody(w, r)
		defer linger()
		return h.serveRecord(w, r, &out, way, next)
	}
	body, refused := h.bodies.read(r)
	if refused != nil {
		refuse(w, r, refused)
		return nil
	}
	if len(body.data) == 0 && hasColumn(out.query, h.caller(r)) {
		h.bodies.release(body)
		return h.serveRecord(w, r, &out, way, next)
	}
	out.body, out.more = body.data, body.parts()
	out.setContentType()
	return h.send(w, w, r, &out, way, body, next)
}

// serveRecord sends the record that the query holds, and answers as the query
// asks for.
func (h *Handler) serveRecord(w http.ResponseWriter, r *http.Request, out *v2Request, way *route, next caddyhttp.Handler) error {
	from := h.caller(r)
	room, refused := h.bodies.room(len(out.query) + len(out.query)/4 + len(from.userAgent) + 256)
	if refused != nil {
		refuse(w, r, refused)
		return nil
	}
	cost := recordCost(out.query)
	if !h.bodies.reserve(cost) {
		h.bodies.release(room)
		refuse(w, r, errOverloaded)
		return nil
	}
	rec := appendRecord(room.data, out.query, from, int(h.MaxBody))
	h.bodies.inUse.Add(-cost)
	if rec.tooLarge {
		h.bodies.release(room)
		refuse(w, r, tooLarge(int64(len(rec.body)), h.MaxBody, false))
		return nil
	}
	if grown := int64(len(rec.body) - cap(room.data)); grown > 0 { // much had to be escaped
		if !h.bodies.reserve(grown) {
			h.bodies.release(room)
			refuse(w, r, errOverloaded)
			return nil
		}
		defer h.bodies.inUse.Add(-grown)
	}
	out.useRecord(rec)
	answer := &recordWriter{ResponseWriterWrapper: &caddyhttp.ResponseWriterWrapper{ResponseWriter: w}, request: r, pixel: rec.pixel}
	if rec.redirect != "" {
		var ok bool
		if answer.location, ok = redirectTarget(rec.redirect, h.redirectHosts, from.globalID); !ok {
			answer.refused = errRedirect
			asked := *r // handoff changes r
			answer.request = &asked
		}
	}
	return h.send(answer, w, r, out, way, room, next)
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
func (h *Handler) send(answer, w http.ResponseWriter, r *http.Request, out *v2Request, way *route, body *bodyBuffer, next caddyhttp.Handler) error {
	if h.Handoff {
		defer h.bodies.drop(body)
		out.rewrite(r)
		return next.ServeHTTP(answer, r)
	}
	defer h.bodies.release(body)
	if err := way.forward(answer, r, out); err != nil {
		refuse(w, r, h.failure(err, way))
	}
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

// failure turns an error of the upstream client into the caller's answer, and tells
// the operator.
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
	if c := h.logger.Check(zap.ErrorLevel, "record not delivered"); c != nil {
		c.Write(zap.String("code", refused.code), zap.String("upstream", way.host), zap.Error(err))
	}
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
	if r.TLS != nil {
		f.proto = "https"
		f.earlyData = !r.TLS.HandshakeComplete
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
