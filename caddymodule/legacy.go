package caddymodule

import (
	"errors"
	"io"
	"net/http"
	"strings"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
	"golang.org/x/net/http/httpguts"

	"github.com/td-postback/gateway/migration"
	"github.com/td-postback/gateway/postback"
	"github.com/td-postback/gateway/upstream"
)

// This file is the legacy lane: what goes by it goes on to the legacy host as it came,
// and so does the answer. No rule of v2's holds there. A body of which max_body is
// there and more is to come is not read further: it goes on as it comes.

// steer decides by which lane a call goes, and serves it if that is the legacy one. It
// decides when the call is ready to be sent: when its body is there. What v2's lane
// would refuse by its head, or reads in another way, is decided by its head.
func (h *Handler) steer(c *call) (served bool) {
	c.badKey = c.readKey() // first, so that the log and the report say whose call it is
	c.keyRead = true
	if h.hasComeBack(c.r) {
		h.warnOfLoop(c)
		h.refuse(c, postback.LoopDetected)
		return true
	}
	byHead := c.atHead != nil || c.r.Method != http.MethodPost || c.IsKeen() || c.r.ContentLength > h.MaxBody
	if byHead {
		if c.decided = h.decide(c); !c.decided {
			return h.steerByTables(c)
		}
		if c.lane == migration.V2 {
			return false
		}
	}
	expect := c.r.Header["Expect"]
	whole := c.r.ContentLength <= h.MaxBody
	c.body = noBody
	if whole {
		var unread *postback.Refusal
		if c.body, c.over, unread = h.bodies.readSome(c.r, h.MaxBody); unread != nil {
			h.refuse(c, unread)
			return true
		}
		whole = c.over == 0
	}
	if !byHead {
		if c.decided = h.decide(c); c.lane == migration.V2 {
			return false
		}
	}
	defer h.audit(c, whole)
	c.keepable = whole && c.atHead == nil && c.isKeepable()
	h.relay(c, whole, expect)
	return true
}

// decide decides by which lane a call goes. What is no call of a surface has no other
// lane. Of a call with several events it may not be known before its tables are.
func (h *Handler) decide(c *call) (known bool) {
	q := c.laneQuery()
	if c.atHead == nil {
		q.Destination = c.Destination
	}
	known = true
	switch {
	case c.Foreign:
		c.lane = migration.Legacy
	case c.atHead == nil && c.IsKeen() && c.r.Method == http.MethodPost:
		c.lane, known = h.legacy.decideAtHead(q)
	default:
		c.lane = h.legacy.decide(q)
	}
	return known
}

// label gives a call that could not be sent, so that its lane was never chosen, the one
// that it would have gone by, as far as its head says that.
func (h *Handler) label(c *call) {
	if c.noted.refused == postback.LoopDetected {
		c.lane = migration.Legacy
	} else if !h.decide(c) {
		c.lane = h.legacy.decideByTables(c.laneQuery(), nil)
	}
}

// laneQuery is what of a call may decide over its lane, but for its tables.
func (c *call) laneQuery() laneQuery {
	client, _ := caddyhttp.GetVar(c.r.Context(), caddyhttp.ClientIPVarKey).(string)
	return laneQuery{Key: c.Key(), Client: client}
}

// steerByTables is steer for a call with several events whose tables decide: so its body
// is read, and goes on to the legacy host as it came. A call of which the tables cannot be
// read, or that is too large for it, is one without a table.
func (h *Handler) steerByTables(c *call) (served bool) {
	expect := c.r.Header["Expect"]
	most := min(int64(postback.MaxKeenBody), h.bodies.share()) // to read them, and to send it to v2, takes several times as much
	whole := c.r.ContentLength <= most
	c.body = noBody
	var tables []postback.Destination
	var unread *postback.Refusal
	if whole {
		if c.body, c.over, unread = h.bodies.readSome(c.r, most); unread == nil {
			if whole = c.over == 0; whole {
				tables, unread = h.tablesOf(c)
			}
		}
	}
	if unread != nil {
		h.dropBody(c)
		h.refuse(c, unread)
		return true
	}
	c.decided = true
	if c.lane = h.legacy.decideByTables(c.laneQuery(), tables); c.lane == migration.V2 {
		return false
	}
	defer h.audit(c, whole)
	h.relay(c, whole, expect)
	return true
}

// tablesOf are the tables of a call with several events. It refuses a call for want of
// memory only.
func (h *Handler) tablesOf(c *call) (tables []postback.Destination, unread *postback.Refusal) {
	k := &keenCall{call: *c, h: h}
	defer func() { h.bodies.free(k.held.Load()) }()
	reader := &postback.KeenReader{Hold: k.hold}
	body, refused, err := reader.ReadBody(c.body.reader(), c.r.Header["Content-Encoding"])
	held := refused != postback.Overloaded
	if refused == nil && err == nil {
		tables, held = reader.Tables(body)
	}
	if !held {
		return nil, postback.Overloaded
	}
	return tables, nil
}

// dropBody gives back the body of a call that is ready for nothing.
func (h *Handler) dropBody(c *call) {
	if c.body != nil {
		h.bodies.release(c.body)
		c.body = nil
	}
}

// relay sends a call on to the legacy host, and passes the answer on. whole says that
// its body is there.
func (h *Handler) relay(c *call, whole bool, expect []string) {
	var refused *postback.Refusal
	if c.to, refused = h.legacy.routeFor(c.r.Host); refused != nil {
		h.refuse(c, refused)
		return
	}
	if c.r.ProtoMajor > 1 && !httpguts.ValidHeaderFieldName(c.r.Method) { // it is no token either
		h.refuse(c, postback.MethodNotAllowed) // HTTP/1.1 would read another request
		return
	}
	var rest *restOfBody
	q := upstream.Relayed{Body: c.body.data, More: c.body.parts(), Apart: c.Foreign}
	if whole {
		if len(c.r.Trailer) > 0 {
			_, _ = io.Copy(io.Discard, c.r.Body) // behind the end are the trailers
		}
		if conn := callerConnOf(c.r); conn != nil {
			conn.unwatched.Store(true)
			defer conn.unwatched.Store(false)
		}
	} else {
		var window int64
		if window, refused = h.bodies.openWindow(c.r); refused != nil {
			h.refuse(c, refused)
			return
		}
		defer h.bodies.closeWindow(window)
		rest = &restOfBody{Reader: c.r.Body}
		q.Rest = rest
		delete(c.r.Header, "Expect") // the first read tells the caller to continue
		if c.r.ProtoMajor == 1 {
			q.Continue = len(expect) > 0 && c.body == noBody && c.r.ProtoMinor > 0
			// Without this, net/http would read the body itself before an answer.
			_ = http.NewResponseController(c.w).EnableFullDuplex()
		}
	}
	c.out.Forwarded = h.legacyForwarded(c.r)
	q.LegacyRequest = postback.NewLegacyRequest(c.r, whole && len(c.body.data) == 0)
	q.Host, q.Forwarded, q.Expect = c.to.host, c.out.Forwarded, expect
	if c.keepable && c.to.queue != nil {
		h.relayOrKeep(c, &q)
	} else if err := c.to.Relay(c.w, c.r, &q, &c.trip); err != nil {
		h.refuseUnrelayed(c, err)
		return
	} else {
		c.result = upstreamResult(c.trip.Status)
	}
	if rest != nil && !rest.ended {
		leaveBody(c.w, c.r)()
	}
}

// restOfBody is what of a body is still to come.
type restOfBody struct {
	io.Reader
	ended bool // there is nothing left to read
}

func (b *restOfBody) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	b.ended = b.ended || err != nil
	return n, err
}

// refuseUnrelayed tells a caller that the legacy host did not get its request, or not
// for certain.
func (h *Handler) refuseUnrelayed(c *call, err error) {
	if broken, is := errors.AsType[upstream.CallerError](err); is {
		h.refuse(c, bodyRefusal(broken))
		return
	}
	_, notProcessed := errors.AsType[upstream.NotProcessedError](err)
	refused, advice := postback.LegacyBrokenOff, "check the legacy host and the network; callers that send again may send the record twice"
	switch {
	case errors.Is(err, upstream.ErrNoConn):
		refused, advice = noConnection, "the legacy host is too slow for this load, or max_conns is too low"
	case notProcessed:
		refused, advice = postback.LegacyUnreachable, "check the legacy host in DNS, migrate's legacy and resolve, the way there, HTTPS_PROXY and tls_ca"
	case upstream.IsTimeout(err):
		refused = postback.LegacyTimeout
	}
	noteFailure(c.to.host, 0, err.Error())
	h.warn(&unrelayedWarning, c, refused, err, advice)
	h.refuse(c, refused)
}

// legacyForwarded builds the headers that tell the legacy host where a request came
// from.
func (h *Handler) legacyForwarded(r *http.Request) postback.Forwarded {
	f := h.forwarded(r)
	own := h.legacy.via()
	if r.ProtoMajor != 1 || r.ProtoMinor != 1 {
		own = via(r.ProtoMajor, r.ProtoMinor, h.legacy.pseudonym())
	}
	f.Via = chain(r.Header["Via"], own)
	return f
}

// hasComeBack reports whether the gateway, or another one of its installation, has sent
// a request on to the legacy host before.
func (h *Handler) hasComeBack(r *http.Request) bool {
	for _, value := range r.Header["Via"] {
		if strings.Contains(value, h.legacy.pseudonym()) {
			return true
		}
	}
	return false
}

// warnOfLoop tells of a request that the legacy host's name has led back.
func (h *Handler) warnOfLoop(c *call) {
	if e := loopWarning.check(h.logger); e != nil {
		host := ""
		if to, _ := h.legacy.routeFor(c.r.Host); to != nil {
			host = to.host
		}
		e.Write(zap.String("legacy", host),
			zap.String("advice", "in this network the legacy host's name leads to the gateway: set resolve, in migrate, to the address where the legacy host really is; the callers have got 508"))
	}
}
