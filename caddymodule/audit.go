package caddymodule

import (
	"bytes"
	"io"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/td-postback/gateway/migration"
	"github.com/td-postback/gateway/postback"
)

// This file finds out of a call that has gone to the legacy host what the lane of v2
// would have done with it. It takes the steps of that lane, by the same functions, up to
// where a request would be sent.

// audit notes what v2's lane would have done with a call, for the report. Then it needs
// no more of the body than what v2 would have got. whole says that all of the body is
// there.
func (h *Handler) audit(c *call, whole bool) {
	c.audited = true
	c.out = postback.Request{}
	switch {
	case h.report == nil:
	case c.atHead != nil || c.r.Method == http.MethodOptions:
		c.noted.atV2 = c.atHead
	case c.IsKeen():
		c.noted.atV2 = h.auditEvents(c, whole)
	default:
		c.noted.atV2 = h.auditRecord(c, whole)
	}
	if !c.ready {
		h.dropBody(c)
	}
}

// auditRecord goes with a call up to the record that v2 would get.
func (h *Handler) auditRecord(c *call, whole bool) (refused *postback.Refusal) {
	if refused = h.prepare(c); refused != nil {
		return refused
	}
	if c.r.Method == http.MethodGet || !whole && c.over == 0 {
		h.dropBody(c) // that of a GET means nothing; one that is declared too large is not there
	}
	if c.r.Method == http.MethodPost {
		refused = h.readBody(c)
	}
	switch {
	case refused != nil:
		return refused
	case c.IsJS():
		_, refused = h.readJS(c)
	case c.Kind != postback.Post:
		if refused = h.useQuery(c); refused == nil {
			c.ready = true
			return c.asked.refused
		}
	}
	if c.ready = refused == nil; c.ready && h.isSurelyRefused(c) {
		c.noted.findings.Add(migration.RefusedByV2)
	}
	return refused
}

// isSurelyRefused reports whether v2 would refuse a body, as far as it is worth looking.
func (h *Handler) isSurelyRefused(c *call) bool {
	if c.out.Compressed() {
		return h.isSurelyRefusedUnpacked(c)
	}
	length, inParts := int64(c.out.Length()), len(c.out.More) > 0
	judged := &judgedSmall
	if inParts {
		judged = &judgedLarge
	}
	if !judged.take(length, c.answered()) {
		return false
	}
	if inParts { // it is copied into one piece
		if !h.bodies.reserveSpare(length) {
			return false
		}
		defer h.bodies.free(length)
	}
	return c.out.SurelyRefused()
}

// maxUnpacked is what the audit of a compressed body may hold in memory, in bytes: room for
// as much as v2 takes, and while that grows for half of it once more, and what
// decompresses it.
const maxUnpacked = 2 << 20

// unpackCost is about what decompressing the shortest body costs, in bytes of judgedASecond.
const unpackCost = 64 << 10

// isSurelyRefusedUnpacked is isSurelyRefused for a body that is compressed.
func (h *Handler) isSurelyRefusedUnpacked(c *call) bool {
	if !judgedPacked.take(unpackCost, c.answered()) {
		return false
	}
	held, most := 0, 0
	defer func() { judgedPacked.used.Add(int64(most)) }()
	return c.out.SurelyRefusedUnpacked(func(bytes int) bool {
		if bytes < 0 {
			h.bodies.free(int64(-bytes))
		} else if held+bytes > maxUnpacked || !h.bodies.reserveSpare(int64(bytes)) {
			return false
		}
		held += bytes
		most = max(most, held)
		return true
	})
}

// judgedASecond is how many bytes are looked at in a second, whether they are JSON. It
// takes 1 ns for each, so that this is no part of what a busy gateway does. Callers that
// send what is none do so again.
const judgedASecond = 4 << 20

// judgedSmall, judgedLarge and judgedPacked say how many were, of bodies in one part, of
// others, and of compressed ones: a few large ones must not hide what small ones are.
var judgedSmall, judgedLarge, judgedPacked secondly

// secondly is an allowance for each second. Where two meet at its beginning, it may be
// some more.
type secondly struct{ second, used atomic.Int64 }

// take takes so much, if less than the allowance was taken before.
func (s *secondly) take(amount int64, now time.Time) bool {
	if second := now.Unix(); s.second.Swap(second) != second {
		s.used.Store(0)
	}
	return s.used.Add(amount)-amount < judgedASecond
}

// auditEvents reads the events of a call, if all of its body is there.
func (h *Handler) auditEvents(c *call, whole bool) *postback.Refusal {
	if refused := h.prepare(c); refused != nil {
		return refused
	}
	if !whole {
		return postback.CheckKeenKey(c.Key())
	}
	if c.result != "" && len(c.body.more) > 0 && c.r.ProtoMajor == 1 {
		// It takes a while, and who has an answer has nothing to wait for. (Behind a panic
		// there is none.) Over HTTP/2 and HTTP/3 a caller may leave no room for its answer,
		// and have its body held for ever.
		_ = http.NewResponseController(c.w).Flush()
	}
	k := &keenCall{call: *c, h: h}
	events, refused := k.read(c.body.reader())
	h.bodies.free(k.held.Load())
	c.Destination, c.events = k.Destination, k.events
	if refused != nil {
		return refused
	}
	if _, faults := events.Count(); faults > 0 {
		c.noted.findings.Add(migration.RefusedByV2)
	}
	return nil
}

// reader reads a body.
func (b *bodyBuffer) reader() io.Reader {
	parts := make([]io.Reader, 1, 1+len(b.more))
	parts[0] = bytes.NewReader(b.data)
	for _, part := range b.more {
		parts = append(parts, bytes.NewReader(part.data))
	}
	return io.MultiReader(parts...)
}
