package caddymodule

import (
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/td-postback/gateway/postback"
)

// This file makes a call's v2 request from what only Caddy knows of the caller's:
// its route, its address, which proxies are trusted. The rules are in package
// postback.

// prepare finds out where a call goes and with which key, and begins its v2
// request.
func (h *Handler) prepare(c *call) (refused *postback.Refusal) {
	badKey := c.readKey() // first, so that the log says whose call it is
	if c.to, refused = h.routeFor(c.r.Host); refused != nil {
		return refused
	}
	if badKey == nil {
		badKey = h.checkKey(c)
	}
	if badKey != nil {
		return badKey
	}
	c.out = postback.Request{
		Host:        c.to.host,
		Destination: c.Destination,
		Query:       c.Query,
		Header:      c.r.Header,
		Credentials: c.Credentials,
		Forwarded:   h.forwarded(c.r),
	}
	return nil
}

// route finds the way to v2 for a request's Host. With handoff and neither
// region nor upstream there is none to know: the Host stays.
func (h *Handler) routeFor(host string) (*route, *postback.Refusal) {
	if h.byRegion != nil {
		region, ok := postback.RegionOf(host)
		if !ok {
			return nil, postback.UnknownRegion
		}
		return h.byRegion[region], nil
	}
	if h.single == nil {
		return &route{host: host}, nil
	}
	return h.single, nil
}

// forwarded builds the headers that tell v2 where a request came from, by the
// rules of Caddy's reverse_proxy: what the caller says of itself counts only
// if it is a trusted proxy.
func (h *Handler) forwarded(r *http.Request) postback.Forwarded {
	trusted, _ := caddyhttp.GetVar(r.Context(), caddyhttp.TrustedProxyVarKey).(bool)
	f := postback.Forwarded{
		Proto: "http",
		Host:  r.Host,
		Via:   chain(r.Header["Via"], via(r.ProtoMajor, r.ProtoMinor, viaName)),
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

// viaName is what the gateway calls itself in Via, to v2.
const viaName = "Caddy"

// via is the gateway's own entry in Via (RFC 9110 section 7.6.3).
func via(major, minor int, name string) string {
	if major == 1 && minor == 1 && name == viaName {
		return "1.1 " + viaName // nearly all: there is nothing to build
	}
	return strconv.Itoa(major) + "." + strconv.Itoa(minor) + " " + name
}

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
func (h *Handler) caller(r *http.Request) postback.Caller { return callerOf(r, h.GlobalID) }

// callerOf is the same; globalID is the name of the cookie.
func callerOf(r *http.Request, globalID string) postback.Caller {
	ip, _ := caddyhttp.GetVar(r.Context(), caddyhttp.ClientIPVarKey).(string)
	from := postback.Caller{IP: withoutZone(ip), UserAgent: r.UserAgent()}
	if len(r.Header["Cookie"]) > 0 {
		if cookie, err := r.Cookie(globalID); err == nil {
			from.GlobalID = cookie.Value
		}
	}
	return from
}

// readQuery makes the record of a query, in a buffer that goes back with
// release.
func readQuery(s *bodies, query string, from postback.Caller) (postback.QueryRecord, *bodyBuffer, *postback.Refusal) {
	room, refused := s.room(len(query) + len(query)/4 + len(from.UserAgent) + 256)
	if refused != nil {
		return postback.QueryRecord{}, nil, refused
	}
	cost := postback.QueryCost(query)
	if !s.reserve(cost) {
		s.release(room)
		return postback.QueryRecord{}, nil, postback.Overloaded
	}
	rec := postback.ReadQuery(room.data, query, from, int(s.maxBody))
	s.free(cost)
	if rec.TooLarge {
		s.release(room)
		return postback.QueryRecord{}, nil, postback.TooLarge(int64(len(rec.Body)), s.maxBody, false)
	}
	if grown := int64(len(rec.Body) - cap(room.data)); grown > 0 { // much had to be escaped
		if !s.reserve(grown) {
			s.release(room)
			return postback.QueryRecord{}, nil, postback.Overloaded
		}
		rec.Body = slices.Clip(rec.Body) // release counts the capacity
	}
	room.data = rec.Body
	return rec, room, nil
}
