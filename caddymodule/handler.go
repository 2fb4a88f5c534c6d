package caddymodule

import (
	"net/http"
	"slices"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/td-postback/gateway/migration"
	"github.com/td-postback/gateway/postback"
	"github.com/td-postback/gateway/upstream"
)

// call is a request on its way through the handler: what its steps hand on.
type call struct {
	postback.Call // what its head says

	w    http.ResponseWriter // the caller
	r    *http.Request
	next caddyhttp.Handler

	head  int64            // what it counts in max_buffered, in bytes
	held  int64            // the same, with room for its trailers
	to    *route           // where v2 is
	out   postback.Request // what v2 gets
	body  *bodyBuffer      // what out.Body is in
	asked *queryAnswer     // what w is, if the query says how to answer

	books   *surfaceBooks // where it is received: see books.go
	record  string        // what became of its record, if its result says something else
	result  string        // what became of it: see outcome.go
	trip    upstream.Trip // to v2
	arrival time.Time     // of the request; known only where a time is needed
	events  int           // how many there are, if it is a call with several
	ready   bool          // out is whole, and its body is held until the call ends
	lane    migration.Lane
	atHead  *postback.Refusal // what v2's rules say to the head
	steered bool              // there are two lanes
	decided bool              // the plan has chosen the lane, for a call that could be sent
	keyRead bool              // the key is read
	badKey  *postback.Refusal // why that key cannot be used
	over    int64             // the body is longer than max_body: so much is read of it
	noted   noted             // for the report

	audited  bool // it has gone to the legacy host: nothing comes of what is found out about it
	keepable bool // in the legacy lane: the spool may keep its record
}

// ServeHTTP takes one call through its steps: read the call, where it goes and
// its key, its record, forward or keep it, answer.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	read, refused := postback.ReadCall(r, h.served)
	if read.Foreign && h.PassThru && h.legacy == nil {
		if answered, err := serveNext(next, w, r); answered || err != nil {
			return err
		}
	}
	c := call{Call: read, w: w, r: r, next: next, atHead: refused, steered: h.legacy != nil}
	if h.Spool != nil || c.SaysTime() || c.IsKeen() {
		c.arrival = time.Now()
	}
	requestsInFlight.Inc()
	c.receive()
	defer c.finish()
	tooMuch := h.holdHead(&c)
	defer h.letGo(&c)
	defer h.tally(&c)
	if tooMuch != nil {
		h.refuseHead(&c, tooMuch)
		return nil
	}
	if c.steered && h.steer(&c) {
		return nil
	}
	if refused == nil && r.Method == http.MethodOptions {
		h.preflight(&c)
		return nil
	}
	if refused == nil {
		refused = h.prepare(&c)
	} else {
		_ = c.readKey() // whose call it is, for the log
	}
	if refused != nil {
		h.dropBody(&c)
		h.refuse(&c, refused)
		return nil
	}
	h.warnOfKey(&c)
	if c.IsKeen() {
		h.serveKeen(&c)
		return nil
	}
	if r.Method == http.MethodGet {
		linger := skipBody(w, r)
		defer linger()
	} else if refused = h.readBody(&c); refused != nil {
		h.refuse(&c, refused)
		return nil
	}
	switch {
	case c.IsJS():
		return h.serveJS(&c)
	case c.Kind == postback.Post: // and readBody has not found out otherwise
		return h.forward(&c)
	default:
		return h.serveQuery(&c)
	}
}

// headCopies is how many copies of a head there are: the caller's and v2's.
const headCopies = 2

// holdHead counts a call's head in max_buffered, if it is not too large. A few
// bytes of HTTP/2 can be a large head.
func (h *Handler) holdHead(c *call) *postback.Refusal {
	fields, memory := postback.HeadBytes(c.r)
	if fields > postback.MaxHeaders {
		return postback.HeadersTooLarge
	}
	head := headCopies * int64(memory)
	held := head + h.trailerRoom(c.r)
	if !h.bodies.reserve(held) {
		return postback.Overloaded
	}
	c.head, c.held = head, held
	return nil
}

// A head that may outlive its accounting, in bytes of memory, and how long the
// answers to others may take over HTTP/2 and HTTP/3.
const (
	smallHead       = 8 << 10
	heldHeadTime    = 5 * time.Second
	refusedHeadTime = 2 * time.Second
)

// letGo ends the accounting of a call's head. Over HTTP/2 and HTTP/3 the caller
// decides when there is room for its answer. Until then the server holds the head,
// long after the handler has returned. So the answer to a large head goes out while
// the head is counted, and the stream ends if its caller does not take it; to a head
// that is not counted, sooner.
func (h *Handler) letGo(c *call) {
	defer h.bodies.free(c.held)
	if c.r.ProtoMajor < 2 || c.held > 0 && c.head <= headCopies*smallHead || c.result == "" || h.Handoff {
		return
	}
	patience := heldHeadTime
	if c.held == 0 {
		patience = refusedHeadTime
	}
	control := http.NewResponseController(c.w)
	_ = control.SetWriteDeadline(time.Now().Add(patience))
	_ = control.Flush()
}

// trailerRoom is what the trailers of a call may hold in memory, if it has
// announced any: as much as a head, out of a few bytes of HTTP/2 or HTTP/3. Not all
// of them can be seen, and they stay until the call ends. Over HTTP/1.1, net/http
// takes no more than its buffer has.
func (h *Handler) trailerRoom(r *http.Request) int64 {
	switch {
	case r.ProtoMajor < 2 || len(r.Trailer) == 0:
		return 0
	case h.server == nil || h.server.MaxHeaderBytes <= 0:
		return http.DefaultMaxHeaderBytes
	default:
		return int64(h.server.MaxHeaderBytes)
	}
}

// refuseHead refuses a call whose head is not counted. It does not wait for the
// body over HTTP/2 and HTTP/3: there a caller could have many such heads stay, at
// next to no cost of its own.
func (h *Handler) refuseHead(c *call, f *postback.Refusal) {
	if c.r.ProtoMajor > 1 {
		now := *f
		now.BodyLost = true
		f = &now
	}
	_ = c.ReadKey(c.r.URL.RawQuery, c.r.Header) // whose call it is, for the log and the report
	c.Query = ""                                // which may be a copy that is not counted
	h.refuse(c, f)
	if c.r.ProtoMajor > 1 {
		forgetFields(c.r.Header)
	}
}

// maxHeldNames is how many names of a refused head are kept for the log.
const maxHeldNames = 128

// forgetFields drops the fields of a refused head that the log would not show. The
// server holds the request until its caller takes the answer, and a field that came
// as one byte takes many more.
func forgetFields(header http.Header) {
	names := 0
	for name, values := range header {
		if names++; names > maxHeldNames {
			delete(header, name)
		} else if len(values) > maxLoggedValues {
			header[name] = slices.Clone(values[:maxLoggedValues+1]) // the log marks that there were more
		}
	}
}

// readKey finds the call's key, once.
func (c *call) readKey() *postback.Refusal {
	if c.keyRead {
		return c.badKey
	}
	return c.ReadKey(c.r.URL.RawQuery, c.r.Header)
}

// readBody reads the call's body, which is the record, unless the query is.
func (h *Handler) readBody(c *call) (refused *postback.Refusal) {
	switch {
	case c.over > 0:
		h.dropBody(c)
		return postback.TooLarge(c.over, h.MaxBody, false)
	case c.body == nil:
		if c.body, refused = h.bodies.read(c.r); refused != nil {
			return refused
		}
	}
	h.useBody(c)
	if c.InQuery() {
		h.bodies.release(c.body)
	}
	return nil
}

// useBody makes the body the record, unless the query is that.
func (h *Handler) useBody(c *call) {
	c.out.UseBody(c.body.data, c.body.parts())
	if len(c.out.Body) < len(c.body.data) {
		c.noted.findings.Add(migration.MarkRemoved)
	}
	if len(c.body.data) == 0 {
		c.NoBody(h.caller(c.r))
	} else if c.InQuery() {
		c.HasBody(&c.out)
	}
}

// serveQuery sends the record that the query holds, or the body beside it, and
// answers as the query asks for.
func (h *Handler) serveQuery(c *call) error {
	if refused := h.useQuery(c); refused != nil {
		h.refuse(c, refused)
		return nil
	}
	if c.asked.refused != nil {
		h.warnOfRedirect(c)
	}
	c.w = c.asked
	err := h.forward(c)
	c.noteAsked()
	return err
}

// useQuery makes the record that the query holds the body, unless there is one beside
// it, and reads how the query asks for the answer.
func (h *Handler) useQuery(c *call) (refused *postback.Refusal) {
	from := h.caller(c.r)
	var rec postback.QueryRecord
	if c.InBody {
		c.out.Query, rec = postback.CutAnswer(c.Query)
	} else {
		if rec, c.body, refused = readQuery(h.bodies, c.Query, from); refused != nil {
			return refused
		}
		c.out.UseRecord(rec.Body)
	}
	if rec.Filled {
		c.noted.findings.Add(migration.ValueFilled)
	}
	c.asked = h.newQueryAnswer(c.w, c.r, rec, from.GlobalID)
	return nil
}

// noteAsked notes that a caller was refused what its query asked for beside its record.
func (c *call) noteAsked() {
	if c.asked.replaced && c.asked.refused != nil {
		c.record, c.result = c.result, c.asked.refused.Code
	}
}
