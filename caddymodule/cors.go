package caddymodule

import (
	"net/http"
	"slices"
	"strings"

	"golang.org/x/net/http/httpguts"
)

// This file lets any page send records and read the answer, with credentials
// too, as it may at the legacy endpoint. That is safe: no answer holds anything
// private, and a record counts by its key, not by a cookie. A `*` is not enough:
// a browser then drops each request with credentials without a word, and
// sendBeacon of a JSON Blob is one.

// maxOrigin is the longest Origin that is echoed, in bytes: a scheme, a host
// name of at most 255 bytes, a port.
const maxOrigin = 300

// allowOrigin lets a page read the answer to its cross-origin request.
func allowOrigin(h http.Header, r *http.Request) (allowed bool) {
	origins := r.Header["Origin"]
	if len(origins) != 1 || !validOrigin(origins[0]) {
		return false // no browser's
	}
	// One piece of memory, in which no append to a header reaches the next one.
	values := []string{origins[0], "true", "Origin"}
	h["Access-Control-Allow-Origin"] = values[0:1:1]
	h["Access-Control-Allow-Credentials"] = values[1:2:2]
	if vary := h["Vary"]; len(vary) == 0 {
		h["Vary"] = values[2:3:3]
	} else if !slices.Contains(vary, "Origin") { // an answer may begin twice
		h["Vary"] = append(vary, "Origin")
	}
	return true
}

// validOrigin reports whether a value may be an origin, `null` included.
func validOrigin(origin string) bool {
	if origin == "" || len(origin) > maxOrigin {
		return false
	}
	for i := range len(origin) {
		if origin[i] <= ' ' || origin[i] > '~' || origin[i] == ',' {
			return false
		}
	}
	return true
}

// preflight answers a CORS preflight. What it names besides is for a page whose
// request will be refused: it can then read why.
func (h *Handler) preflight(c *call) {
	c.result = preflightResult
	h.begin(c.w, c.r)
	header := c.w.Header()
	header["Allow"] = []string{allowedMethods}
	if len(header["Access-Control-Allow-Origin"]) > 0 {
		allowAsked(header, c.r.Header)
	}
	linger := leaveBody(c.w, c.r)
	c.w.WriteHeader(http.StatusNoContent)
	linger()
}

// allowAsked allows what a preflight asks for.
func allowAsked(h, asked http.Header) {
	methods := allowedMethods
	if method := asked.Get("Access-Control-Request-Method"); httpguts.ValidHeaderFieldName(method) && !strings.Contains(methods, method) {
		methods += ", " + method
	}
	h["Access-Control-Allow-Methods"] = []string{methods}
	h["Access-Control-Max-Age"] = []string{"86400"}
	if headers := asked["Access-Control-Request-Headers"]; len(headers) > 0 {
		h["Access-Control-Allow-Headers"] = slices.Clone(headers)
	}
	if asked.Get("Access-Control-Request-Private-Network") == "true" { // a public page, a gateway inside
		h["Access-Control-Allow-Private-Network"] = []string{"true"}
	}
	h["Vary"] = append(h["Vary"], "Access-Control-Request-Method", "Access-Control-Request-Headers")
}
