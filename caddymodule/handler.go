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
	body, refused := h.bodies.read(r)
	if refused != nil {
		refuse(w, r, refused)
		return nil
	}
	out.body = body.data
	out.setContentType()
	if h.Handoff {
		defer h.bodies.drop(body)
		out.rewrite(r)
		return next.ServeHTTP(w, r)
	}
	defer h.bodies.release(body)
	if err := way.forward(w, r, &out); err != nil {
		refuse(w, r, h.failure(err, way))
	}
	return nil
}

// prepare builds the v2 request but for its body.
func (h *Handler) prepare(r *http.Request, dest destination) (out v2Request, way *route, refused *refusal) {
	if r.Method != http.MethodPost {
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

// failure turns an error of the forwarder into the caller's answer, and tells
// the operator.
func (h *Handler) failure(err error, way *route) *refusal {
	refused, ok := errors.AsType[*refusal](err)
	if !ok {
		refused = errUnreachable
		if _, notSent := errors.AsType[notProcessedError](err); !notSent && isTimeout(err) {
			refused = errUpstreamTimeout
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
		via:   chain(r.Header["Via"], strconv.Itoa(r.ProtoMajor)+"."+strconv.Itoa(r.ProtoMinor)+" Caddy"),
	}
	if r.TLS != nil {
		f.proto = "https"
		f.earlyData = !r.TLS.HandshakeComplete
	}
	if ip, _, err := net.SplitHostPort(r.RemoteAddr); err == nil {
		f.clientIP = withoutZone(ip)
	}
	if !trusted {
		return f
	}
	if prior := r.Header["X-Forwarded-For"]; len(prior) > 0 {
		f.clientIP = chain(prior, f.clientIP)
	}
	if prior := last(r.Header["X-Forwarded-Proto"]); prior != "" {
		f.proto = prior
	}
	if prior := last(r.Header["X-Forwarded-Host"]); prior != "" {
		f.host = prior
	}
	return f
}
