package caddymodule

import (
	"net/http"
)

// surface is the kind of a legacy call.
type surface uint8

const (
	surfaceOther  surface = iota // a preflight, or a method that is refused
	surfacePost                  // a record in the body
	surfaceGet                   // a record in the query
	surfacePixel                 // the same, answered with an image
	surfaceBeacon                // a POST that has its record in the query: a ping, or no body
)

var surfaceNames = [...]string{"other", "post", "get", "pixel", "beacon"}

// String is the surface's name in metrics and logs.
func (s surface) String() string { return surfaceNames[s] }

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
