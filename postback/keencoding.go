package postback

import (
	"bufio"
	"compress/flate"
	"compress/gzip"
	"compress/zlib"
	"errors"
	"io"
	"net/textproto"
	"strconv"
	"strings"
)

// This file reads and decompresses the bodies of requests with several events. Mobile
// SDKs send them in zlib's format by the name deflate, as RFC 9110 section 8.4.1.2
// wants it.

// maxKeenSent is how much is read of a body, in bytes. No compressor makes it longer
// than its content by more than this.
const maxKeenSent = MaxKeenBody + MaxKeenBody>>10

// keenDecoderCost is about what decompression holds in memory.
const keenDecoderCost = 64 << 10

// keenCoding is how a body is compressed.
type keenCoding uint8

const (
	codingNone keenCoding = iota
	codingGzip
	codingZlib
	codingDeflate // without zlib's head
)

// keenCodingOf says how a body is compressed, by how it begins. No JSON begins like
// gzip or zlib, so their callers need not say it. What is left decides the
// Content-Encoding.
func keenCodingOf(start []byte, encodings []string) (keenCoding, *Refusal) {
	deflate, count := false, 0
	for _, value := range encodings {
		for coding := range strings.SplitSeq(value, ",") {
			if !isCompressed(coding) {
				continue
			}
			count++
			switch coding = textproto.TrimString(coding); {
			case strings.EqualFold(coding, "deflate"):
				deflate = true
			case !strings.EqualFold(coding, "gzip") && !strings.EqualFold(coding, "x-gzip"):
				return codingNone, invalidKeen("the body's Content-Encoding is not taken; send it as gzip, deflate, or not compressed")
			}
		}
	}
	switch {
	case count > 1:
		return codingNone, invalidKeen("the body's Content-Encoding has several codings; compress it once")
	case len(start) < 2:
		return codingNone, nil
	case start[0] == 0x1f && start[1] == 0x8b: // RFC 1952 section 2.3.1
		return codingGzip, nil
	case start[0]&0x0f == 8 && start[0]>>4 <= 7 && (uint(start[0])<<8|uint(start[1]))%31 == 0: // RFC 1950 section 2.2
		return codingZlib, nil
	case deflate && start[0] != '{':
		return codingDeflate, nil
	}
	return codingNone, nil
}

// ReadBody reads a body to its end and decompresses it. Without a refusal, err is what
// the reader says.
func (r *KeenReader) ReadBody(body io.Reader, encodings []string) (data []byte, refused *Refusal, err error) {
	sent := &sentBody{body: body, left: maxKeenSent}
	buffered := bufio.NewReader(sent)
	start, _ := buffered.Peek(2) // an error comes again
	coding, refused := keenCodingOf(start, encodings)
	if refused != nil {
		return nil, refused, nil
	}
	if coding != codingNone {
		if !r.Hold(keenDecoderCost) {
			return nil, Overloaded, nil
		}
		defer r.Hold(-keenDecoderCost)
	}
	plain, err := coding.decoder(buffered)
	if err == nil {
		data, refused, err = r.readAll(plain)
	}
	switch {
	case refused != nil:
		return nil, refused, nil
	case err == nil:
		return data, nil, nil
	case errors.Is(sent.err, errKeenTooLarge):
		return nil, keenTooLarge(), nil
	case sent.err != nil:
		return nil, nil, sent.err
	}
	return nil, invalidKeen("the body cannot be decompressed; send all of it, and compress it as its Content-Encoding says"), nil
}

// decoder decompresses a body while it is read.
func (c keenCoding) decoder(body *bufio.Reader) (io.Reader, error) {
	switch c {
	case codingGzip:
		return gzip.NewReader(body)
	case codingZlib:
		return zlib.NewReader(body)
	case codingDeflate:
		return flate.NewReader(body), nil
	default:
		return body, nil
	}
}

// readAll reads to the end, into memory that is counted before it is taken.
func (r *KeenReader) readAll(plain io.Reader) (data []byte, refused *Refusal, err error) {
	for !errors.Is(err, io.EOF) {
		if len(data) == cap(data) {
			larger := max(64<<10, 2*cap(data))
			if larger >= MaxKeenBody {
				larger = MaxKeenBody + 1 // the last one shows that it is too large
			}
			if !r.Hold(larger) {
				return nil, Overloaded, nil
			}
			old := cap(data)
			data = append(make([]byte, 0, larger), data...)
			r.Hold(-old)
		}
		var n int
		n, err = plain.Read(data[len(data):cap(data)])
		data = data[:len(data)+n]
		if len(data) > MaxKeenBody {
			return nil, keenTooLarge(), nil
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, nil, err
		}
	}
	return data, nil, nil
}

// keenTooLarge refuses a body that is too large. It is not 413: after that, mobile
// SDKs send the same again for ever.
func keenTooLarge() *Refusal {
	return invalidKeen("the body has more than " + strconv.Itoa(MaxKeenBody) + " bytes, decompressed; send fewer events at a time")
}

// errKeenTooLarge ends the reading of a body that is too large as it was sent.
var errKeenTooLarge = errors.New("the body is too large")

// sentBody is a body as it was sent. It remembers why it could not be read.
type sentBody struct {
	body io.Reader
	left int
	err  error // but for io.EOF
}

func (s *sentBody) Read(p []byte) (n int, err error) {
	if s.err == nil && s.left == 0 {
		s.err = errKeenTooLarge
	}
	if s.err != nil {
		return 0, s.err
	}
	n, err = s.body.Read(p[:min(len(p), s.left)])
	s.left -= n
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}
