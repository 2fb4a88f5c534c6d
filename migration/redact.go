package migration

import (
	"bytes"
	"encoding/json"
	"net/url"
	"strings"

	"github.com/td-postback/gateway/postback"
)

const (
	// maxExample is the most bytes of an example.
	maxExample = 200

	// maxRedacted is how much of a query or a body is read for an example.
	maxRedacted = 4 << 10

	// maxColumn is the longest name of a column that an example shows.
	maxColumn = 32

	// maxDigits is how many digits such a name may have in a row: a day has 8, and what
	// has more may be somebody's number.
	maxDigits = 8

	// hidden stands where a value was, or what may be one.
	hidden = "…"
)

// Redact is what an example shows of a call: its method, and the names and types of
// what is in its raw query and in its body, if that is one JSON object. No value is
// in it, nor what may be one: a name that is no usual name of a column.
//
//	GET ?td_format=…&id=string
//	POST {"id":number,"tags":array}
func Redact(method, rawQuery string, body []byte) string {
	var out strings.Builder
	out.WriteString(clean(methodName(method), maxColumn))
	if rawQuery != "" {
		redactQuery(&out, rawQuery[:min(len(rawQuery), maxRedacted)])
	}
	if len(body) > 0 {
		redactBody(&out, body[:min(len(body), maxRedacted)])
	}
	return clean(postback.MaskKeys(out.String()), maxExample)
}

// methodName is a method, if it is one of HTTP's.
func methodName(method string) string {
	switch method {
	case "GET", "POST", "PUT", "HEAD", "PATCH", "DELETE", "OPTIONS":
		return method
	}
	return hidden
}

// redactQuery shows the names in a query. What has no `=` may be anything.
func redactQuery(out *strings.Builder, query string) {
	separator := byte('?')
	out.WriteByte(' ')
	for pair := range strings.SplitSeq(query, "&") {
		name, _, named := strings.Cut(pair, "=")
		out.WriteByte(separator)
		separator = '&'
		decoded, err := url.QueryUnescape(name)
		switch {
		case !named || err != nil:
			out.WriteString(hidden)
		case hasMeaning(decoded):
			out.WriteString(decoded + "=" + hidden)
		default:
			out.WriteString(columnName(decoded) + "=string")
		}
		if out.Len() > maxExample {
			return
		}
	}
}

// hasMeaning reports whether a parameter says something to a legacy endpoint, and is
// not a column.
func hasMeaning(name string) bool {
	switch name {
	case postback.WriteKeyParam, postback.APIKeyParam, "td_format", "td_redirect", "callback", "data", "modified":
		return true
	}
	return false
}

// redactBody shows the names and types in a JSON object.
func redactBody(out *strings.Builder, body []byte) {
	d := json.NewDecoder(bytes.NewReader(body))
	if start, err := d.Token(); err != nil || start != json.Delim('{') {
		out.WriteString(" " + hidden)
		return
	}
	out.WriteString(" {")
	for separator := ""; d.More() && out.Len() <= maxExample; separator = "," {
		name, err := d.Token()
		if err != nil {
			break
		}
		var value json.RawMessage
		column, _ := name.(string)
		out.WriteString(separator + `"` + columnName(column) + `":`)
		if d.Decode(&value) != nil { // it is not JSON, or goes on behind what is read
			out.WriteString(hidden)
			break
		}
		out.WriteString(typeOf(value[0]))
	}
	out.WriteByte('}')
}

// typeOf is the type of a JSON value that begins so.
func typeOf(first byte) string {
	switch first {
	case '"':
		return "string"
	case '{':
		return "object"
	case '[':
		return "array"
	case 't', 'f':
		return "boolean"
	case 'n':
		return "null"
	default:
		return "number"
	}
}

// columnName is a name that may be shown.
func columnName(name string) string {
	digits := 0
	usual := name != "" && len(name) <= maxColumn && (isLetter(name[0]) || name[0] == '_' || name[0] == '#')
	for i := 1; usual && i < len(name); i++ {
		if digits++; !isDigit(name[i]) {
			digits = 0
		}
		usual = digits <= maxDigits && (isLetter(name[i]) || isDigit(name[i]) || name[i] == '_' || name[i] == '.' || name[i] == '-')
	}
	if !usual || postback.MayBeSecret(name) || postback.MaskKeys(name) != name {
		return hidden
	}
	return name
}
