package postback

import (
	"strings"
)

const (
	postbackPrefix = "/postback/"
	eventPrefix    = "/postback/v3/event/"
	jsEventPrefix  = "/js/v3/event/"
)

// Destination is where a record belongs.
type Destination struct {
	Database, Table string
}

// parsePath reads the surface and the destination out of a percent-decoded path.
// Runs of `/` count as one and the table may have one trailing slash: legacy callers
// send both. A path below no surface is NotFound; below one, a path that is no
// event path or has a bad name is invalid_path with the part that is wrong, and
// with the names that are good, for the log. A path that takes several events has no
// names.
func parsePath(path string) (Surface, Destination, *Refusal) {
	if strings.Contains(path, "//") {
		path = squeezeSlashes(path)
	}
	switch strings.TrimSuffix(path, "/") {
	case "/js/v3/event":
		return SurfaceJS, Destination{}, nil
	case "/android/v3/event", "/ios/v3/event":
		return SurfaceMobile, Destination{}, nil
	}
	switch {
	case strings.HasPrefix(path, eventPrefix):
		to, refused := parseNames(path[len(eventPrefix):])
		return SurfacePostback, to, refused
	case strings.HasPrefix(path, postbackPrefix):
		return SurfacePostback, Destination{}, invalidPath("the path must start with " + eventPrefix)
	case strings.HasPrefix(path, jsEventPrefix):
		to, refused := parseNames(path[len(jsEventPrefix):])
		return SurfaceJS, to, refused
	case strings.HasPrefix(path, "/android/v3/event/"), strings.HasPrefix(path, "/ios/v3/event/"):
		return SurfaceMobile, Destination{}, invalidPath("nothing may follow the path of a mobile SDK; the tables are named in the body")
	case path == "/js/v3/global_id", path == "/js/v3/enable_global_id":
		return SurfaceNone, Destination{}, NoGlobalID
	}
	return SurfaceNone, Destination{}, NotFound
}

// IsCanonical reports whether a path that was taken for this destination is written as
// it is sent to v2.
func IsCanonical(path string, to Destination) bool {
	return len(path) == len(eventPrefix)+len(to.Database)+len("/")+len(to.Table)
}

// parseNames reads what stands behind the prefix of an event path.
func parseNames(names string) (Destination, *Refusal) {
	database, table, ok := strings.Cut(names, "/")
	table = strings.TrimSuffix(table, "/")
	first, _, more := strings.Cut(table, "/")
	to := Destination{goodName(database), goodName(first)}
	switch {
	case to.Database == "":
		return to, invalidPath("the database name must be letters, digits and _")
	case !ok || table == "":
		return to, invalidPath("the table name is missing")
	case more:
		return to, invalidPath("nothing may follow the table name")
	case to.Table == "":
		return to, invalidPath("the table name must be letters, digits and _")
	}
	return to, nil
}

// goodName returns a valid name, and nothing for any other.
func goodName(name string) string {
	if !validName(name) {
		return ""
	}
	return name
}

func squeezeSlashes(path string) string {
	var b strings.Builder
	b.Grow(len(path))
	for i := 0; i < len(path); i++ {
		if path[i] == '/' && i > 0 && path[i-1] == '/' {
			continue
		}
		b.WriteByte(path[i])
	}
	return b.String()
}

// validName reports whether a database or table name is [A-Za-z0-9_]+, the
// same in both contracts.
func validName(name string) bool {
	for i := 0; i < len(name); i++ {
		c := name[i]
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_') {
			return false
		}
	}
	return name != ""
}

// isPing reports whether a POST is the ping of a link. Its record is in the
// query, and its body, PING, says nothing.
func isPing(contentType []string) bool {
	return len(contentType) > 0 && strings.EqualFold(mediaType(contentType[0]), "text/ping")
}

// path is the canonical path, however the caller spelled it.
func (q *Request) path() string {
	return eventPrefix + q.Database + "/" + q.Table
}

// wantsPixel reports whether a query has td_format=pixel.
func wantsPixel(query string) bool {
	for param := range strings.SplitSeq(query, "&") {
		name, value, _ := strings.Cut(param, "=")
		if len(name) >= len("td_format") && decode(name) == "td_format" && decode(value) == "pixel" {
			return true
		}
	}
	return false
}
