// Command standin answers as Postback v2 does, with as little work as
// possible, so that the proxies before it are what is measured. A request that
// is not in v2's form gets a 400: a proxy that gains time by mangling requests
// shows as errors.
package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"log"

	"github.com/valyala/fasthttp"
)

func main() {
	plain := flag.String("listen", "127.0.0.1:18100", "address for plain HTTP")
	secure := flag.String("listen-tls", "127.0.0.1:18101", "address for HTTPS")
	cert := flag.String("cert", "cert.pem", "certificate for HTTPS")
	key := flag.String("key", "key.pem", "its key")
	target := flag.String("target", "", "the request target that every request must have, without a query")
	writeKey := flag.String("write-key", "", "the write key that every request must carry")
	flag.Parse()

	s := &fasthttp.Server{
		MaxRequestBodySize:    2 << 20,
		ReadBufferSize:        16 << 10,
		NoDefaultServerHeader: true,
		Handler:               answer([]byte(*target), []byte(*writeKey)),
	}
	go func() { log.Fatal(s.ListenAndServe(*plain)) }()
	log.Fatal(s.ListenAndServeTLS(*secure, *cert, *key))
}

// echoPath is where a request is answered with what has come.
const echoPath = "/postback/v3/event/db/echo"

// answer checks what a proxy could get wrong, and answers {}.
func answer(target, writeKey []byte) fasthttp.RequestHandler {
	return func(c *fasthttp.RequestCtx) {
		body := c.Request.Body()
		switch {
		case !c.IsPost(),
			!bytes.Equal(bytes.TrimSuffix(c.RequestURI(), []byte("?")), target), // an empty query is none
			!bytes.Equal(c.Request.Header.Peek("X-TD-Write-Key"), writeKey),
			!bytes.Equal(c.Request.Header.ContentType(), []byte("application/json")),
			len(body) == 0 || body[0] != '{' || body[len(body)-1] != '}':
			if path, _, _ := bytes.Cut(c.RequestURI(), []byte("?")); bytes.Equal(path, []byte(echoPath)) {
				echo(c)
				return
			}
			c.SetStatusCode(fasthttp.StatusBadRequest)
		}
		c.SetContentType("application/json")
		c.SetBodyString("{}")
	}
}

// echo answers with the request as it has come.
func echo(c *fasthttp.RequestCtx) {
	header := map[string][]string{}
	for name, value := range c.Request.Header.All() {
		header[string(name)] = append(header[string(name)], string(value))
	}
	text, err := json.Marshal(map[string]any{"target": string(c.RequestURI()), "header": header, "body": string(c.Request.Body())})
	if err != nil {
		c.Error(err.Error(), fasthttp.StatusInternalServerError)
		return
	}
	c.SetContentType("application/json")
	c.SetBody(text)
}
