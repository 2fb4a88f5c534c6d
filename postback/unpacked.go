package postback

import (
	"bytes"
	"io"
)

// SurelyRefusedUnpacked is SurelyRefused for a body that is compressed, once, with gzip or
// deflate: whether v2 decompresses it or not, what is no JSON object either way is refused.
// Any other body is not judged. hold counts bytes of memory in, or out if they are
// negative; if it says no, the body is not judged either. In the end, nothing is held.
func (q *Request) SurelyRefusedUnpacked(hold func(bytes int) (ok bool)) bool {
	encodings := q.Header["Content-Encoding"]
	if _, other := keenCodingOf(nil, encodings); !q.Compressed() || other != nil {
		return false
	}
	held := 0
	defer func() { hold(-held) }()
	reader := &KeenReader{Hold: func(bytes int) bool {
		if !hold(bytes) {
			return false
		}
		held += bytes
		return true
	}}
	body, broken, _ := reader.ReadBody(q.bodyReader(), encodings)
	if broken != nil {
		return broken != Overloaded
	}
	body = bytes.TrimPrefix(body, []byte(byteOrderMark))
	return !startsObject(body) || !validJSON(body)
}

// bodyReader reads the body.
func (q *Request) bodyReader() io.Reader {
	parts := make([]io.Reader, 1, 1+len(q.More))
	parts[0] = bytes.NewReader(q.Body)
	for _, part := range q.More {
		parts = append(parts, bytes.NewReader(part))
	}
	return io.MultiReader(parts...)
}
