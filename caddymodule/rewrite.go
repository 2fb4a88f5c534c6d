package caddymodule

import (
	"net"
	"net/http"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/td-postback/gateway/postback"
)

// chain appends an entry to a header that lists the hops so far. Empty ones do
// not count.
func chain(prior []string, entry string) string {
	joined := strings.Join(prior, ", ")
	switch {
	case joined == "":
		return entry
	case entry == "":
		return joined
	default:
		return joined + ", " + entry
	}
}

// last returns the last of a header's values.
func last(values []string) string {
	if len(values) == 0 {
		return ""
	}
	return values[len(values)-1]
}

// withoutZone drops the zone of an IPv6 address: it means nothing elsewhere.
func withoutZone(ip string) string {
	ip, _, _ = strings.Cut(ip, "%")
	return ip
}

// caller reads what a record may take from the request beside its query.
func (h *Handler) caller(r *http.Request) postback.Caller {
	ip, _ := caddyhttp.GetVar(r.Context(), caddyhttp.ClientIPVarKey).(string)
	from := postback.Caller{IP: withoutZone(ip), UserAgent: r.UserAgent()}
	if len(r.Header["Cookie"]) > 0 {
		if cookie, err := r.Cookie(h.GlobalID); err == nil {
			from.GlobalID = cookie.Value
		}
	}
	return from
}

// prepare builds the v2 request but for its body.
func (h *Handler) prepare(r *http.Request, dest postback.Destination) (out postback.Request, way *route, refused *postback.Refusal) {
	if r.Method != http.MethodPost && r.Method != http.MethodGet {
		return out, nil, postback.ErrMethod
	}
	if way, refused = h.route(r.Host); refused != nil {
		return out, nil, refused
	}
	query, param := postback.CutWriteKey(r.URL.RawQuery)
	cred, refused := postback.FindKey(param, r.Header[http.CanonicalHeaderKey(postback.WriteKeyHeader)], r.Header["Authorization"])
	if refused != nil {
		out.Credentials.Source = cred.Source
		return out, nil, refused
	}
	return postback.Request{
		Host:        way.host,
		Destination: dest,
		Query:       query,
		Header:      r.Header,
		Credentials: cred,
		Forwarded:   h.forwarded(r),
	}, way, nil
}

// route finds the way to v2 for a request's Host. With handoff and neither
// region nor upstream there is none to know: the Host stays.
func (h *Handler) route(host string) (*route, *postback.Refusal) {
	if h.byRegion != nil {
		region, ok := postback.RegionOf(host)
		if !ok {
			return nil, postback.UnknownRegion()
		}
		return h.byRegion[region], nil
	}
	if h.fixed == nil {
		return &route{host: host}, nil
	}
	return h.fixed, nil
}

// forwarded builds the headers that tell v2 where a request came from, by the
// rules of Caddy's reverse_proxy: what the caller says of itself counts only
// if it is a trusted proxy.
func (h *Handler) forwarded(r *http.Request) postback.Forwarded {
	trusted, _ := caddyhttp.GetVar(r.Context(), caddyhttp.TrustedProxyVarKey).(bool)
	f := postback.Forwarded{
		Proto: "http",
		Host:  r.Host,
		Via:   chain(r.Header["Via"], via(r.ProtoMajor, r.ProtoMinor)),
	}
	f.EarlyData = len(r.Header["Early-Data"]) > 0 // by a proxy before this one
	if r.TLS != nil {
		f.Proto = "https"
		f.EarlyData = f.EarlyData || !r.TLS.HandshakeComplete
	}
	ip, _, err := net.SplitHostPort(r.RemoteAddr)
	f.ClientIP = withoutZone(ip)
	if !trusted {
		if err != nil { // a Unix socket, say: there is no peer to tell of
			f.ClientIP, f.Proto, f.Host = "", "", ""
		}
		return f
	}
	f.ClientIP = chain(r.Header["X-Forwarded-For"], f.ClientIP)
	if prior := last(r.Header["X-Forwarded-Proto"]); prior != "" {
		f.Proto = prior
	}
	if prior := last(r.Header["X-Forwarded-Host"]); prior != "" {
		f.Host = prior
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
