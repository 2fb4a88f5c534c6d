package postback

import (
	"compress/flate"
	"compress/gzip"
	"compress/zlib"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
)

// packed compresses a text.
func packed(t testing.TB, text string, by func(io.Writer) io.WriteCloser) string {
	t.Helper()
	var b strings.Builder
	w := by(&b)
	_, err := io.WriteString(w, text)
	if err = errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func byGzip(w io.Writer) io.WriteCloser { return gzip.NewWriter(w) }
func byZlib(w io.Writer) io.WriteCloser { return zlib.NewWriter(w) }
func byDeflate(w io.Writer) io.WriteCloser {
	f, _ := flate.NewWriter(w, flate.DefaultCompression)
	return f
}

// TestSurelyRefusedUnpacked judges compressed bodies, in one piece and in parts, with room
// for 1 MB.
func TestSurelyRefusedUnpacked(t *testing.T) {
	for name, tc := range map[string]struct {
		body, coding string
		refused      bool
	}{
		"gzip":                             {packed(t, `{"a":1}`, byGzip), "gzip", false},
		"gzip, another name":               {packed(t, `{"a":1}`, byGzip), "x-gzip", false},
		"zlib":                             {packed(t, `{"a":1}`, byZlib), "deflate", false},
		"deflate":                          {packed(t, `{"a":1}`, byDeflate), "Deflate", false},
		"a mark":                           {packed(t, "\ufeff{}", byGzip), "gzip", false},
		"an array":                         {packed(t, `[1]`, byGzip), "gzip", true},
		"an array by deflate":              {packed(t, `[1]`, byDeflate), "deflate", true},
		"nothing":                          {packed(t, ``, byGzip), "gzip", true},
		"half an object":                   {packed(t, `{"a":`, byGzip), "gzip", true},
		"cut":                              {packed(t, `{"a":1}`, byGzip)[:12], "gzip", true},
		"an object that is not packed":     {`{"a":1}`, "gzip", false},
		"text that is not packed":          {`a=1`, "gzip", true},
		"packed twice":                     {packed(t, packed(t, `[1]`, byGzip), byGzip), "gzip, gzip", false},
		"a coding that is not looked into": {`[1]`, "br", false},
		"no coding":                        {`[1]`, "identity", false},
		"a large object":                   {packed(t, `{"a":"`+strings.Repeat("x", 500_000)+`"}`, byGzip), "gzip", false},
		"a large array":                    {packed(t, `["`+strings.Repeat("x", 500_000)+`"]`, byGzip), "gzip", true},
		"more than there is room for":      {packed(t, `["`+strings.Repeat("x", 5_000_000)+`"]`, byGzip), "gzip", false},
	} {
		for _, cut := range []int{0, 1, len(tc.body) / 2, len(tc.body)} {
			held, most := 0, 0
			hold := func(bytes int) bool {
				if held+bytes > 1_500_000 {
					return false
				}
				held += bytes
				most = max(most, held)
				return true
			}
			q := Request{Header: http.Header{"Content-Encoding": {tc.coding}}, Body: []byte(tc.body[:cut]), More: [][]byte{[]byte(tc.body[cut:])}}
			if got := q.SurelyRefusedUnpacked(hold); got != tc.refused {
				t.Errorf("%s, cut at %d: surely refused: %t", name, cut, got)
			}
			if held != 0 {
				t.Errorf("%s: %d bytes are still held", name, held)
			}
			q.FromQuery = true
			if q.SurelyRefusedUnpacked(hold) {
				t.Errorf("%s, from a query: surely refused", name)
			}
		}
	}
}

// FuzzSurelyRefusedUnpacked: whatever is in a body, no more is held than there is room for,
// and an object in gzip is never refused.
func FuzzSurelyRefusedUnpacked(f *testing.F) {
	f.Add([]byte(packed(f, `{"a":1}`, byGzip)), "gzip")
	f.Add([]byte(packed(f, `[1]`, byDeflate)), "deflate")
	f.Fuzz(func(t *testing.T, body []byte, coding string) {
		held := 0
		hold := func(bytes int) bool {
			if held+bytes > 300_000 {
				return false
			}
			held += bytes
			return true
		}
		q := Request{Header: http.Header{"Content-Encoding": {coding}}, Body: body}
		q.SurelyRefusedUnpacked(hold)
		if held != 0 {
			t.Errorf("%d bytes are still held", held)
		}
		if object := len(body) < 50_000 && startsObject(body) && json.Valid(body); object {
			q = Request{Header: http.Header{"Content-Encoding": {"gzip"}}, Body: []byte(packed(t, string(body), byGzip))}
			if q.SurelyRefusedUnpacked(hold) {
				t.Errorf("%q is refused", body)
			}
		}
	})
}
