// Command standin answers as v2 does, on Postback and on its batch API, with as
// little work as possible, so that what is before it is measured. A request that
// is not in v2's form gets a 400: a proxy that gains time by mangling requests
// shows as errors.
package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"log"
	"net"
	"sync/atomic"

	"github.com/valyala/fasthttp"
)

func main() {
	plain := flag.String("listen", "127.0.0.1:18100", "address for plain HTTP")
	secure := flag.String("listen-tls", "127.0.0.1:18101", "address for HTTPS")
	cert := flag.String("cert", "cert.pem", "certificate for HTTPS")
	key := flag.String("key", "key.pem", "its key")
	target := flag.String("target", "", "the request target that every event must have, without a query; two digits may follow")
	writeKey := flag.String("write-key", "", "the write key that every request must carry")
	flag.Parse()

	v := &v2{target: []byte(*target), batch: bytes.TrimPrefix([]byte(*target), []byte(eventPrefix)), key: []byte(*writeKey)}
	s := &fasthttp.Server{
		MaxRequestBodySize:    8 << 20,
		ReadBufferSize:        16 << 10,
		NoDefaultServerHeader: true,
		Handler:               v.answer,
	}
	go func() { log.Fatal(s.Serve(v.listen(*plain))) }()
	log.Fatal(s.ServeTLS(v.listen(*secure), *cert, *key))
}

const (
	eventPrefix = "/postback/v3/event"

	// echoPath is where a request is answered with what has come.
	echoPath = eventPrefix + "/db/echo"

	// countsPath is where a GET finds what has come so far.
	countsPath = "/counts"
)

// v2 is the stand-in.
type v2 struct {
	target, batch, key []byte // an event's request target, a batch's, and the key

	requests, events, bytes atomic.Int64 // that have come, the bytes as they came over the wire
}

// answer checks what a proxy could get wrong, and answers {}, or a batch's
// receipts.
func (v *v2) answer(c *fasthttp.RequestCtx) {
	uri := bytes.TrimSuffix(c.RequestURI(), []byte("?")) // an empty query is none
	c.SetContentType("application/json")
	switch {
	case c.IsPost() && isTable(uri, v.target):
		if v.isEvent(c) {
			v.taken(1)
			c.SetBodyString("{}")
			return
		}
	case c.IsPost() && isTable(uri, v.batch):
		if n := v.batchOf(c); n > 0 {
			v.taken(n)
			c.SetBody(receipts(n))
			return
		}
	case c.IsGet() && string(uri) == countsPath:
		answerJSON(c, map[string]int64{"requests": v.requests.Load(), "events": v.events.Load(), "bytes": v.bytes.Load()})
		return
	default:
		if path, _, _ := bytes.Cut(uri, []byte("?")); string(path) == echoPath {
			echo(c)
			return
		}
	}
	c.SetStatusCode(fasthttp.StatusBadRequest)
}

// isTable reports whether a target is the wanted one, or one of its hundred
// tables.
func isTable(uri, wanted []byte) bool {
	rest, ok := bytes.CutPrefix(uri, wanted)
	return ok && (len(rest) == 0 || len(rest) == 2 && isDigit(rest[0]) && isDigit(rest[1]))
}

func isDigit(b byte) bool { return '0' <= b && b <= '9' }

func (v *v2) taken(events int) {
	v.requests.Add(1)
	v.events.Add(int64(events))
}

func (v *v2) isEvent(c *fasthttp.RequestCtx) bool {
	body := c.Request.Body()
	return bytes.Equal(c.Request.Header.Peek("X-TD-Write-Key"), v.key) &&
		string(c.Request.Header.ContentType()) == "application/json" &&
		len(body) > 0 && body[0] == '{' && body[len(body)-1] == '}'
}

// echo answers with the request as it has come.
func echo(c *fasthttp.RequestCtx) {
	header := map[string][]string{}
	for name, value := range c.Request.Header.All() {
		header[string(name)] = append(header[string(name)], string(value))
	}
	answerJSON(c, map[string]any{"target": string(c.RequestURI()), "header": header, "body": string(c.Request.Body())})
}

func answerJSON(c *fasthttp.RequestCtx, value any) {
	text, err := json.Marshal(value)
	if err != nil {
		c.Error(err.Error(), fasthttp.StatusInternalServerError)
		return
	}
	c.SetBody(text)
}

// listen listens at an address and counts what comes over the wire.
func (v *v2) listen(address string) net.Listener {
	l, err := net.Listen("tcp", address) //nolint:noctx // at the start
	if err != nil {
		log.Fatal(err)
	}
	return countingListener{l, &v.bytes}
}

type countingListener struct {
	net.Listener
	bytes *atomic.Int64
}

func (l countingListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return countingConn{conn, l.bytes}, nil
}

type countingConn struct {
	net.Conn
	bytes *atomic.Int64
}

func (c countingConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.bytes.Add(int64(n))
	return n, err
}
