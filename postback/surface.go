// Package postback has the contracts between which the gateway stands: how the
// callers of the legacy host send a record, and how Postback v2 takes it. All of
// it is a function of its arguments: it needs the standard library only, and
// opens no connection.
package postback

import (
	"net/http"
	"net/url"
	"slices"
)

// Kind is the kind of a legacy call. In metrics and logs its label is surface.
type Kind uint8

// The kinds of calls.
const (
	Other  Kind = iota // a preflight, or a method that is refused
	Post               // a record in the body
	Get                // a record in the query
	Pixel              // the same, answered with an image
	Beacon             // a POST that has its record in the query: a ping, or no body
	JSONP              // a GET of a JavaScript SDK's: its record in the query, as base64
	JS                 // any other call of a JavaScript SDK's with one record
	K                  // several events of a script's, on a JavaScript SDK's path
	Mobile             // the same of a mobile SDK's
)

// KindNames has the kinds' names in metrics and logs.
var KindNames = [...]string{"other", "post", "get", "pixel", "beacon", "jsonp", "js", "k", "mobile"}

// String is the kind's name in metrics and logs.
func (k Kind) String() string { return KindNames[k] }

// Surface is a family of legacy URLs.
type Surface uint8

// The surfaces. SurfaceNone is what belongs to none.
const (
	SurfaceNone Surface = iota
	SurfacePostback
	SurfaceJS
	SurfaceMobile
)

// SurfaceNames has the names of the surfaces in a configuration.
var SurfaceNames = []string{"postback", "js", "mobile"}

// Surfaces is a set of surfaces.
type Surfaces uint8

// AllSurfaces has them all.
var AllSurfaces = SurfacesOf(SurfaceNames)

// SurfacesOf is the set of the surfaces with these names.
func SurfacesOf(names []string) (set Surfaces) {
	for i, name := range SurfaceNames {
		if slices.Contains(names, name) {
			set |= 1 << (Surface(i) + SurfacePostback)
		}
	}
	return set
}

func (s Surfaces) has(surface Surface) bool { return s&(1<<surface) != 0 }

// Call is a legacy request, as its head says it.
type Call struct {
	Kind Kind

	// Foreign says that the path is below no legacy surface that is served: such a
	// call is not the gateway's.
	Foreign bool

	Destination // where its record belongs
	Credentials // what v2 gets of its keys

	// Query is the raw query without the write key. Of a JavaScript SDK's call it is
	// empty: nothing of that query goes on.
	Query string

	// InBody says that the record is the body, although the query asks for the
	// answer to a record of its own, or may have one.
	InBody bool

	js jsQuery // what the query of a JavaScript SDK's call says
}

// ReadCall reads the path and the kind of a request, where these surfaces are
// served. With a refusal, the call says as much as could be read. A preflight has
// the kind Other and no refusal.
func ReadCall(r *http.Request, served Surfaces) (Call, *Refusal) {
	surface, to, refused := parsePath(r.URL.Path)
	if surface != SurfaceNone && !served.has(surface) {
		surface, to, refused = SurfaceNone, Destination{}, SurfaceOff
	}
	c := Call{Destination: to, Foreign: surface == SurfaceNone}
	keen := isKeenPath(surface, to, refused)
	switch {
	case keen:
		c.js = readJSQuery(r.URL.RawQuery)
		c.Kind = keenKind(surface, r.Method)
	case surface == SurfaceJS:
		c.js = readJSQuery(r.URL.RawQuery)
		c.Kind = c.js.kind(r.Method)
	default:
		c.Kind = kindOf(r.Method, r.URL, r.Header)
	}
	if refused != nil {
		return c, refused
	}
	if c.Kind == Other && r.Method != http.MethodOptions {
		if keen {
			return c, PostOnly
		}
		return c, MethodNotAllowed
	}
	return c, nil
}

// kindOf tells what kind of Postback call a request is, unless it is a POST without a
// body: NoBody decides that.
func kindOf(method string, u *url.URL, header http.Header) Kind {
	switch {
	case method != http.MethodPost && method != http.MethodGet:
		return Other
	case wantsPixel(u.RawQuery):
		return Pixel
	case method == http.MethodGet:
		return Get
	case isPing(header["Content-Type"]):
		return Beacon
	default:
		return Post
	}
}

// InQuery reports whether the call's record is in its query.
func (c *Call) InQuery() bool {
	return (c.Kind == Get || c.Kind == Pixel || c.Kind == Beacon) && !c.InBody
}

// NoBody tells a call that its body is empty. A POST is then a beacon, if its
// query has at least one column.
func (c *Call) NoBody(from Caller) {
	if c.Kind == Post && hasColumn(c.Query, from) {
		c.Kind = Beacon
	}
}

// HasBody tells a call what its body is. An object is never dropped: it is the
// record, also of a call that has one in its query. A compressed body may be
// one.
func (c *Call) HasBody(q *Request) { c.InBody = q.startsObject() || q.Compressed() }

// ReadKey finds the key that v2 gets, and takes it out of the query. After a
// refusal the call has no key, but says where it was looked for.
func (c *Call) ReadKey(rawQuery string, header http.Header) (refused *Refusal) {
	var query string
	if c.IsJS() || c.IsKeen() {
		c.Credentials, refused = findJSKey(&c.js, header[canonicalWriteKeyHeader], header["Authorization"])
	} else {
		var param urlKey
		query, param = cutWriteKey(rawQuery)
		c.Credentials, refused = findKey(param, header[canonicalWriteKeyHeader], header["Authorization"])
	}
	if refused != nil {
		c.Credentials = Credentials{Source: c.Source}
		return refused
	}
	c.Query = query
	return nil
}
