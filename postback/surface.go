// Package postback has the contracts between which the gateway stands: how the
// callers of the legacy host send a record, and how Postback v2 takes it. All of
// it is a function of its arguments: it needs the standard library only, and
// opens no connection.
package postback

import (
	"net/http"
	"net/url"
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
)

// KindNames has the kinds' names in metrics and logs.
var KindNames = [...]string{"other", "post", "get", "pixel", "beacon"}

// String is the kind's name in metrics and logs.
func (k Kind) String() string { return KindNames[k] }

// Call is a legacy request, as its head says it.
type Call struct {
	Kind Kind

	// Foreign says that the path is below no legacy surface: such a call is not
	// the gateway's.
	Foreign bool

	Destination // where its record belongs
	Credentials // what v2 gets of its keys

	// Query is the raw query without the write key.
	Query string

	// InBody says that the record is the body, although the query asks for the
	// answer to a record of its own.
	InBody bool
}

// ReadCall reads the path and the kind of a request. With a refusal, the call
// says as much as could be read. A preflight has the kind Other and no refusal.
func ReadCall(r *http.Request) (Call, *Refusal) {
	c := Call{Kind: kindOf(r.Method, r.URL, r.Header)}
	var refused *Refusal
	if c.Destination, refused = parsePath(r.URL.Path); refused != nil {
		c.Foreign = refused.Code == NotFound.Code
		return c, refused
	}
	if c.Kind == Other && r.Method != http.MethodOptions {
		return c, MethodNotAllowed
	}
	return c, nil
}

// kindOf tells what kind of call a request is, unless it is a POST without a
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
	query, param := cutWriteKey(rawQuery)
	c.Credentials, refused = findKey(param, header[canonicalWriteKeyHeader], header["Authorization"])
	if refused != nil {
		c.Credentials = Credentials{Source: c.Source}
		return refused
	}
	c.Query = query
	return nil
}
