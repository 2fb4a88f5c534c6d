package caddymodule

import (
	"net/http"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/td-postback/gateway/migration"
	"github.com/td-postback/gateway/postback"
)

// This file serves the calls of JavaScript SDKs. Their rules are in package postback.

// serveJS sends the record of a call, and answers as the SDKs expect it.
func (h *Handler) serveJS(c *call) error {
	callback, refused := h.readJS(c)
	if refused != nil {
		h.dropBody(c)
		h.refuse(c, refused)
		return nil
	}
	c.asked = &queryAnswer{ResponseWriterWrapper: &caddyhttp.ResponseWriterWrapper{ResponseWriter: c.w}, h: h, r: c.r, js: true, callback: callback}
	c.w = c.asked
	return h.forward(c)
}

// readJS reads what the answer is to call, and the record.
func (h *Handler) readJS(c *call) (callback string, refused *postback.Refusal) {
	if callback, refused = c.Callback(); refused == nil {
		refused = h.readRecord(c)
	}
	return callback, refused
}

// readRecord makes v2's body of a call's: the one that it has, or the one in its
// query. A compressed one goes on as it came.
func (h *Handler) readRecord(c *call) (refused *postback.Refusal) {
	switch c.InBody = c.body != nil && len(c.body.data) > 0; {
	case !c.InBody:
		refused = h.readData(c)
	case c.out.SaysBatch():
		refused = postback.BatchBody
	case c.out.Compressed():
		return nil
	case len(c.body.more) > 0:
		if c.body, refused = h.bodies.join(c.body); refused == nil {
			c.out.UseBody(c.body.data, nil)
		}
	}
	if refused != nil {
		return refused
	}
	if !utf8.Valid(c.out.Body) {
		if refused = h.mend(c); refused != nil {
			return refused
		}
	}
	filler, refused := c.NewFiller(c.out.Body, h.caller(c.r), c.arrival, int(h.bodies.maxBody))
	if refused != nil || !filler.Changes() {
		return refused
	}
	if filler.Filled() {
		c.noted.findings.Add(migration.ValueFilled)
	}
	return h.remake(c, filler.Size(), filler.Append)
}

// readData makes the record in the query the body.
func (h *Handler) readData(c *call) *postback.Refusal {
	room, refused := h.bodies.room(c.DataSize())
	if refused != nil {
		return refused
	}
	record, refused := c.AppendData(room.data, int(h.bodies.maxBody))
	if refused != nil {
		h.bodies.release(room)
		return refused
	}
	if c.body != nil { // a buffer for a body that was empty
		h.bodies.release(c.body)
	}
	room.data = record
	c.body = room
	c.out.UseData(record)
	return nil
}

// mend makes the record UTF-8.
func (h *Handler) mend(c *call) *postback.Refusal {
	c.noted.findings.Add(migration.EncodingMended)
	size := postback.MendedSize(c.out.Body)
	if int64(size) > h.bodies.maxBody {
		return postback.TooLarge(int64(size), h.bodies.maxBody, true)
	}
	return h.remake(c, size, func(dst []byte) []byte { return postback.AppendMended(dst, c.out.Body) })
}

// remake makes what add appends, of this size, the record in place of the one that it
// is made of.
func (h *Handler) remake(c *call, size int, add func(dst []byte) []byte) *postback.Refusal {
	room, refused := h.bodies.room(size)
	if refused != nil {
		return refused
	}
	room.data = add(room.data)
	h.bodies.release(c.body)
	c.body = room
	c.out.UseChanged(room.data)
	return nil
}

// What tells a JavaScript SDK that its record is taken. The comment keeps a callback
// from being the first bytes of a file, which another program could take for its own.
const (
	created       = `{"created":true}`
	callbackStart = "/**/"
)

var createdAnswer = []byte(created)

// answerCreated answers the caller of a JavaScript SDK's call whose record is taken.
func (w *queryAnswer) answerCreated() {
	h := w.Header()
	dropContent(h)
	answer, kind := createdAnswer, "application/json"
	if w.callback != "" {
		answer, kind = []byte(callbackStart+w.callback+"("+created+");"), "application/javascript; charset=utf-8"
	}
	// One piece of memory, in which no append to a header reaches the next one.
	values := []string{kind, strconv.Itoa(len(answer)), "no-store", "nosniff"}
	h["Content-Type"], h["Content-Length"], h["Cache-Control"] = values[0:1:1], values[1:2:2], values[2:3:3]
	if w.callback != "" {
		h["X-Content-Type-Options"] = values[3:4:4]
	}
	w.ResponseWriter.WriteHeader(http.StatusOK)
	_, _ = w.ResponseWriter.Write(answer)
}

// keepFromRunning keeps what v2 says to a refused call from being run as a script, or
// shown as a page of the gateway's: a script tag's URL can be opened like any other,
// and v2 may quote the record. Nor may a cache keep it.
func keepFromRunning(h http.Header) {
	media, _, _ := strings.Cut(strings.Join(h["Content-Type"], ","), ";")
	kind := "text/plain; charset=utf-8"
	if strings.EqualFold(strings.TrimSpace(media), "application/json") {
		kind = "application/json"
	}
	h["Content-Type"] = []string{kind}
	h["X-Content-Type-Options"] = []string{"nosniff"}
	h["Cache-Control"] = []string{"no-store"}
}
