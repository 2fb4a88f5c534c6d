package postback

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"compress/zlib"
	"errors"
	"io"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

// The codings of bodies, each as a client writes it.
var keenCompressors = map[string]func(io.Writer, int) (io.WriteCloser, error){
	"gzip":    func(w io.Writer, level int) (io.WriteCloser, error) { return gzip.NewWriterLevel(w, level) },
	"zlib":    func(w io.Writer, level int) (io.WriteCloser, error) { return zlib.NewWriterLevel(w, level) },
	"deflate": func(w io.Writer, level int) (io.WriteCloser, error) { return flate.NewWriter(w, level) },
}

func compressed(t testing.TB, coding string, level int, text []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := keenCompressors[coding](&b, level)
	if err == nil {
		_, err = w.Write(text)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestKeenBodies reads bodies as they may come.
func TestKeenBodies(t *testing.T) {
	text := keenBody400()
	pack := func(coding string) []byte { return compressed(t, coding, flate.DefaultCompression, text) }
	none := compressed(t, "zlib", flate.NoCompression, text)
	best := compressed(t, "zlib", flate.BestCompression, text)
	if !bytes.HasPrefix(pack("zlib"), []byte{0x78, 0x9c}) || !bytes.HasPrefix(best, []byte{0x78, 0xda}) {
		t.Error("these are not the bodies of Android and iOS")
	}
	wrongSum := func(body []byte) []byte {
		body = bytes.Clone(body)
		body[len(body)-1] ^= 1
		return body
	}
	for _, tc := range []struct {
		name      string
		body      []byte
		encodings []string
		refused   bool
	}{
		{name: "not compressed", body: text},
		{name: "not compressed, and says so", body: text, encodings: []string{"identity"}},
		{name: "not compressed, and says something else", body: text, encodings: []string{"utf-8", ""}},
		{name: "not compressed, though it says deflate", body: text, encodings: []string{"deflate"}},
		{name: "not compressed, though it says gzip", body: text, encodings: []string{"gzip"}},
		{name: "Android", body: pack("zlib"), encodings: []string{"deflate"}},
		{name: "iOS", body: best, encodings: []string{"deflate"}},
		{name: "zlib, stored", body: none, encodings: []string{"deflate"}},
		{name: "zlib, does not say so", body: pack("zlib")},
		{name: "zlib, says gzip", body: pack("zlib"), encodings: []string{"gzip"}},
		{name: "raw deflate", body: pack("deflate"), encodings: []string{"deflate"}},
		{name: "raw deflate in capitals", body: pack("deflate"), encodings: []string{" Deflate "}},
		{name: "gzip", body: pack("gzip"), encodings: []string{"gzip"}},
		{name: "x-gzip", body: pack("gzip"), encodings: []string{"x-GZIP"}},
		{name: "gzip, does not say so", body: pack("gzip")},
		{name: "gzip, says deflate", body: pack("gzip"), encodings: []string{"deflate"}},
		{name: "gzip in several members", body: append(compressed(t, "gzip", 1, text[:1000]), compressed(t, "gzip", 9, text[1000:])...), encodings: []string{"gzip"}},
		{name: "gzip beside identity", body: pack("gzip"), encodings: []string{"identity, gzip"}},

		{name: "compressed twice", body: compressed(t, "gzip", 1, pack("zlib")), encodings: []string{"deflate, gzip"}, refused: true},
		{name: "two fields", body: pack("gzip"), encodings: []string{"gzip", "gzip"}, refused: true},
		{name: "br", body: []byte("\x1b\x00"), encodings: []string{"br"}, refused: true},
		{name: "zstd", body: text, encodings: []string{"zstd"}, refused: true},
		{name: "zlib, a wrong sum", body: wrongSum(pack("zlib")), encodings: []string{"deflate"}, refused: true},
		{name: "gzip, a wrong length", body: wrongSum(pack("gzip")), encodings: []string{"gzip"}, refused: true},
		{name: "gzip, and something behind it", body: append(pack("gzip"), text...), encodings: []string{"gzip"}, refused: true},
		{name: "zlib with a dictionary", body: []byte("\x78\xbb\x00\x00\x00\x00\x00\x00"), encodings: []string{"deflate"}, refused: true},
		{name: "no deflate", body: []byte("\xff\xff\xff"), encodings: []string{"deflate"}, refused: true},
		{name: "nothing but zlib's head", body: []byte("\x78\x9c"), encodings: []string{"deflate"}, refused: true},
		{name: "nothing but gzip's first bytes", body: []byte("\x1f\x8b"), encodings: []string{"gzip"}, refused: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for way, reader := range map[string]io.Reader{"at once": bytes.NewReader(tc.body), "byte by byte": iotest.OneByteReader(bytes.NewReader(tc.body)), "with its end": iotest.DataErrReader(bytes.NewReader(tc.body))} {
				held, most := 0, 0
				r := keenReader(time.Unix(testArrival, 0))
				r.Hold = func(n int) bool { held += n; most = max(most, held); return true }
				data, refused, err := r.ReadBody(reader, tc.encodings)
				if err != nil || (refused != nil) != tc.refused {
					t.Fatalf("%s: %d bytes, %+v, %v", way, len(data), refused, err)
				}
				if refused != nil {
					if refused.Status != 400 || refused.Code != "invalid_request" || data != nil {
						t.Errorf("%s: %+v", way, refused)
					}
					continue
				}
				if !bytes.Equal(data, text) {
					t.Errorf("%s: got %.100q", way, data)
				}
				if held != cap(data) || most > 4*len(text)+keenDecoderCost {
					t.Errorf("%s: %d bytes are counted, and at most %d, for %d", way, held, most, cap(data))
				}
			}
		})
	}
	if data, refused, err := keenReader(time.Time{}).ReadBody(strings.NewReader(""), []string{"deflate"}); len(data) > 0 || refused != nil || err != nil {
		t.Errorf("an empty body is read as %q, %+v, %v", data, refused, err)
	}
}

// TestKeenBodyCut: a body that ends early is refused, wherever it ends.
func TestKeenBodyCut(t *testing.T) {
	text := []byte(`{"db.tbl":[{"a":"` + strings.Repeat("x", 100) + `é"},{"b":1}]}`)
	for coding := range keenCompressors {
		body := compressed(t, coding, flate.BestCompression, text)
		for end := 2; end < len(body); end++ {
			data, refused, err := keenReader(time.Time{}).ReadBody(bytes.NewReader(body[:end]), []string{"deflate"})
			if refused == nil || err != nil {
				t.Errorf("%s: %d of %d bytes are read as %q, %v", coding, end, len(body), data, err)
			}
		}
	}
}

// TestKeenBodyBroken: why a body could not be read is for the caller.
func TestKeenBodyBroken(t *testing.T) {
	broken := errors.New("broken")
	for coding := range keenCompressors {
		body := compressed(t, coding, flate.BestSpeed, keenBody400())
		for _, end := range []int{0, 1, 2, 5, len(body) / 2} {
			for _, failure := range []error{broken, io.ErrUnexpectedEOF} {
				once := &failingReader{body: body[:end], err: failure}
				data, refused, err := keenReader(time.Time{}).ReadBody(once, []string{"deflate"})
				if !errors.Is(err, failure) || refused != nil || data != nil {
					t.Errorf("%s after %d bytes: %q, %+v, %v", coding, end, data, refused, err)
				}
			}
		}
	}
}

// failingReader fails once, and then says that all was read.
type failingReader struct {
	body []byte
	err  error
}

func (r *failingReader) Read(p []byte) (n int, err error) {
	n = copy(p, r.body)
	r.body = r.body[n:]
	if n == 0 {
		err, r.err = r.err, io.EOF
	}
	return n, err
}

// endless is a body that does not end.
type endless struct {
	repeat []byte
	at     int
}

func (e *endless) Read(p []byte) (n int, err error) {
	for n < len(p) {
		copied := copy(p[n:], e.repeat[e.at:])
		n += copied
		e.at = (e.at + copied) % len(e.repeat)
	}
	return n, nil
}

// TestKeenBodyTooLarge: the limit holds to the byte, and for what does not end, without
// more memory than that.
func TestKeenBodyTooLarge(t *testing.T) {
	zeros := make([]byte, MaxKeenBody+1)
	noise := make([]byte, MaxKeenBody)
	source := rand.NewChaCha8([32]byte{})
	_, _ = source.Read(noise)
	noise[0] = '{'
	var member bytes.Buffer
	empty := gzip.NewWriter(&member)
	empty.Extra = make([]byte, 60_000)
	if err := empty.Close(); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name    string
		body    io.Reader
		refused bool
	}{
		{"all that is taken", bytes.NewReader(noise), false},
		{"a byte more", io.MultiReader(bytes.NewReader(noise), strings.NewReader("x")), true},
		{"all that is taken, zlib", bytes.NewReader(compressed(t, "zlib", flate.BestSpeed, zeros[1:])), false},
		{"a byte more, zlib", bytes.NewReader(compressed(t, "zlib", flate.BestSpeed, zeros)), true},
		{"all that is taken, not compressible", bytes.NewReader(compressed(t, "gzip", flate.NoCompression, noise)), false},
		{"no end", &endless{repeat: bytes.Repeat([]byte("{"), 1<<12)}, true},
		{"empty members of gzip without end", &endless{repeat: member.Bytes()}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := keenReader(time.Time{})
			held, most := 0, 0
			r.Hold = func(n int) bool { held += n; most = max(most, held); return true }
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			data, refused, err := r.ReadBody(tc.body, nil)
			runtime.ReadMemStats(&after)
			if err != nil || (refused != nil) != tc.refused || len(data) > MaxKeenBody {
				t.Fatalf("%d bytes, %+v, %v", len(data), refused, err)
			}
			if refused != nil && (refused.Status != 400 || refused.Code != "invalid_request") {
				t.Errorf("refused with %+v", refused)
			}
			if allocated := after.TotalAlloc - before.TotalAlloc; allocated > 5*MaxKeenBody/2 {
				t.Errorf("%d bytes are allocated", allocated)
			}
			if most > 2*MaxKeenBody {
				t.Errorf("%d bytes are counted", most)
			}
		})
	}
}

// TestKeenBodyOverloaded: it is refused before more memory is used than there is.
func TestKeenBodyOverloaded(t *testing.T) {
	for coding := range keenCompressors {
		body := compressed(t, coding, flate.BestSpeed, bytes.Repeat([]byte("x"), 1<<20))
		for _, limit := range []int{0, keenDecoderCost, 500_000, 1 << 20} {
			left := limit
			r := keenReader(time.Time{})
			r.Hold = func(n int) bool {
				if n > left {
					return false
				}
				left -= n
				return true
			}
			if data, refused, err := r.ReadBody(bytes.NewReader(body), []string{"deflate"}); refused != Overloaded || data != nil || err != nil {
				t.Errorf("%s in %d bytes: %d bytes, %+v, %v", coding, limit, len(data), refused, err)
			}
		}
	}
}

// FuzzKeenBody: what was compressed comes back, whatever it is, and no body does harm.
func FuzzKeenBody(f *testing.F) {
	for _, text := range []string{"", "{", `{"db.tbl":[{}]}`, "\x78\x9c", "\x1f\x8b\x08", "\r\n{}"} {
		for _, encoding := range []string{"", "deflate", "gzip, identity", "br"} {
			f.Add([]byte(text), encoding, 6)
		}
	}
	for coding := range keenCompressors {
		f.Add(compressed(f, coding, flate.BestSpeed, []byte(`{"db.tbl":[{"a":"aaaaaaaaaaaaaaaaaa"}]}`)), "deflate", 1)
	}
	f.Fuzz(func(t *testing.T, text []byte, encoding string, level int) {
		held := 0
		r := keenReader(time.Time{})
		r.Hold = func(n int) bool { held += n; return true }
		data, refused, err := r.ReadBody(bytes.NewReader(text), []string{encoding})
		if err != nil || refused != nil && (data != nil || refused.Status != 400) || refused == nil && held != cap(data) {
			t.Fatalf("%q: %q, %+v, %v, %d bytes counted", text, data, refused, err, held)
		}
		for coding := range keenCompressors {
			says := []string{"deflate"}
			if coding == "gzip" {
				says = nil
			}
			body := compressed(t, coding, max(flate.HuffmanOnly, min(level, flate.BestCompression)), text)
			if coding == "deflate" && (body[0] == '{' || len(body) < 2) {
				continue // it looks like JSON
			}
			if coding == "deflate" {
				if kind, _ := keenCodingOf(body, says); kind != codingDeflate {
					t.Fatalf("%q is deflated to %q", text, body)
				}
			}
			if data, refused, err := r.ReadBody(bytes.NewReader(body), says); refused != nil || err != nil || !bytes.Equal(data, text) {
				t.Fatalf("%s of %q is read as %q, %+v, %v", coding, text, data, refused, err)
			}
		}
	})
}

func BenchmarkKeenBody(b *testing.B) {
	for coding := range keenCompressors {
		body := compressed(b, coding, flate.DefaultCompression, keenBody400())
		r := keenReader(time.Time{})
		b.Run(coding, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, refused, err := r.ReadBody(bytes.NewReader(body), []string{"deflate"}); refused != nil || err != nil {
					b.Fatal(refused, err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/400, "ns/event")
		})
	}
}
