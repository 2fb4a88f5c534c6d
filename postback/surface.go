package postback

import (
	"net/http"
)

// Kind is the kind of a legacy call.
type Kind uint8

const (
	Other  Kind = iota // a preflight, or a method that is refused
	Post               // a record in the body
	Get                // a record in the query
	Pixel              // the same, answered with an image
	Beacon             // a POST that has its record in the query: a ping, or no body
)

var KindNames = [...]string{"other", "post", "get", "pixel", "beacon"}

// String is the surface's name in metrics and logs.
func (s Kind) String() string { return KindNames[s] }

// KindOf tells what kind of call a request is, but for a POST without a
// body: that may be a beacon.
func KindOf(r *http.Request) Kind {
	switch {
	case r.Method != http.MethodPost && r.Method != http.MethodGet:
		return Other
	case wantsPixel(r.URL.RawQuery):
		return Pixel
	case r.Method == http.MethodGet:
		return Get
	case isPing(r.Header["Content-Type"]):
		return Beacon
	default:
		return Post
	}
}
