package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
)

// echoPath is where the stand-in answers with the request as it has come.
const echoPath = "/postback/v3/event/db/echo"

// received is a request as it has come to the stand-in.
type received struct {
	Target string              `json:"target"`
	Header map[string][]string `json:"header"`
	Body   string              `json:"body"`
}

// probe is a request that shows whether a proxy does the work.
type probe struct {
	name   string
	target string // of the caller's POST
	header map[string]string
	body   string // a record if empty
	chunks bool   // the body comes without its length

	// What v2 must get: headers that are empty here must not come.
	query         string
	key           string
	authorization string
	contentType   string // JSON's if empty

	refused string // or nothing, with this code in the answer
	status  int
}

const (
	probeRecord = `{"user":"alice","event":"view"}`
	otherKey    = "5678/fedcba9876543210"
	jsonType    = "application/json"
)

// usual is what all proxies are measured with.
var usual = []probe{
	{name: "a key in the URL", target: echoPath + "?td_write_key=" + writeKey, key: writeKey},
}

// strict is what the gateway and nginx with Lua do beside that.
var strict = []probe{
	{name: "encoded", target: echoPath + "?td%5Fwrite_key=" + strings.ReplaceAll(writeKey, "/", "%2F"), key: writeKey},
	{name: "two, the first one empty", target: echoPath + "?td_write_key=&td_write_key=" + writeKey, key: writeKey},
	{name: "among others", target: echoPath + "?a=1&td_write_key=" + writeKey + "&b=%20&c", query: "a=1&b=%20&c", key: writeKey},
	{
		name: "the header wins, what is for this host goes", target: echoPath + "?td_write_key=" + otherKey, key: writeKey,
		header: map[string]string{"X-TD-Write-Key": writeKey, "Authorization": "TD1 " + otherKey, "Cookie": "a=b"},
	},
	{name: "only a header", target: echoPath, header: map[string]string{"X-TD-Write-Key": writeKey, "Authorization": "Basic YTpi"}, key: writeKey},
	{name: "only v2's header", target: echoPath, header: map[string]string{"Authorization": "td1 " + writeKey}, authorization: "TD1 " + writeKey},
	{
		name: "both headers", target: echoPath, header: map[string]string{"X-TD-Write-Key": otherKey, "Authorization": "TD1 " + writeKey},
		key: otherKey, authorization: "TD1 " + writeKey,
	},
	{name: "any spelling of the path", target: "//postback/v3//event/d%62/echo/?td_write_key=" + writeKey, key: writeKey},
	{name: "an object of another type", target: echoPath + "?td_write_key=" + writeKey, header: map[string]string{"Content-Type": "text/plain;charset=UTF-8"}, key: writeKey},
	{name: "an object without a type", target: echoPath + "?td_write_key=" + writeKey, header: map[string]string{"Content-Type": ""}, key: writeKey},
	{
		name: "no object", target: echoPath + "?td_write_key=" + writeKey, header: map[string]string{"Content-Type": "text/plain"}, body: "alice",
		key: writeKey, contentType: "text/plain",
	},
	{name: "a body without its length", target: echoPath + "?td_write_key=" + writeKey, chunks: true, key: writeKey},
	{name: "no key", target: echoPath + "?td_write_key=", refused: "missing_write_key", status: http.StatusForbidden},
	{name: "another scheme", target: echoPath, header: map[string]string{"Authorization": "Basic YTpi"}, refused: "missing_write_key", status: http.StatusForbidden},
	{name: "a bad escape", target: echoPath + "?td_write_key=1234/%zz", refused: "invalid_write_key", status: http.StatusBadRequest},
	{name: "two keys in one", target: echoPath + "?td_write_key=" + writeKey + "," + otherKey, refused: "invalid_write_key", status: http.StatusBadRequest},
	{name: "a line break", target: echoPath + "?td_write_key=1234/ab%0d%0aX-A:b", refused: "invalid_write_key", status: http.StatusBadRequest},
	{name: "no secret", target: echoPath + "?td_write_key=1234/", refused: "invalid_write_key", status: http.StatusBadRequest},
	{name: "no table", target: "/postback/v3/event/db?td_write_key=" + writeKey, refused: "invalid_path", status: http.StatusBadRequest},
	{name: "another path", target: "/other", refused: "not_found", status: http.StatusNotFound},
	{
		name: "a byte over the cap", target: echoPath + "?td_write_key=" + writeKey, body: "{" + strings.Repeat(" ", 1_048_063) + "}",
		refused: "payload_too_large", status: http.StatusRequestEntityTooLarge,
	},
}

// verify makes sure that a proxy does the work: a fast one that delivers something
// else is no peer.
func (p *place) verify(proxy string, secure bool) error {
	probes := usual
	switch {
	case proxy == respond, spoolFiles[proxy] != "": // they answer by themselves
		return nil
	case laneFiles[proxy] != "": // the stand-ins look at each request
		return nil
	case proxy == gateway, proxy == nginxLua:
		probes = slices.Concat(usual, strict)
	}
	client, err := p.client()
	if err != nil {
		return err
	}
	defer client.CloseIdleConnections()
	scheme := "http"
	if secure {
		scheme = "https"
	}
	for _, probe := range probes {
		if err := probe.send(client, scheme+"://"+address(proxy, secure)); err != nil {
			return fmt.Errorf("%s does not do the work: %s: %w", proxy, probe.name, err)
		}
	}
	return nil
}

// client is a caller that trusts the certificate of the proxies.
func (p *place) client() (*http.Client, error) {
	cert, err := os.ReadFile(p.path("cert.pem"))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(cert)
	return &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}}}, nil
}

// send sends the probe and compares what has become of it.
func (b *probe) send(client *http.Client, base string) error {
	var body io.Reader = strings.NewReader(b.record())
	if b.chunks {
		body = struct{ io.Reader }{body}
	}
	req, err := http.NewRequest(http.MethodPost, base+b.target, body) //nolint:noctx // loopback
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", jsonType)
	for name, value := range b.header {
		if req.Header.Set(name, value); value == "" {
			req.Header.Del(name)
		}
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if b.refused != "" {
		if resp.StatusCode != b.status || !bytes.Contains(text, []byte(`"`+b.refused+`"`)) {
			return fmt.Errorf("%d %s, not %d %s", resp.StatusCode, text, b.status, b.refused)
		}
		return nil
	}
	var got received
	if err := json.Unmarshal(text, &got); err != nil {
		return fmt.Errorf("%d %s: %w", resp.StatusCode, text, err)
	}
	return b.compare(&got)
}

func (b *probe) record() string {
	if b.body != "" {
		return b.body
	}
	return probeRecord
}

// compare finds what v2 should not have got, or not so.
func (b *probe) compare(got *received) error {
	target := echoPath
	if b.query != "" {
		target += "?" + b.query
	}
	if strings.TrimSuffix(got.Target, "?") != target { // an empty query is none
		return fmt.Errorf("v2 was asked for %q, not %q", got.Target, target)
	}
	if got.Body != b.record() {
		return fmt.Errorf("v2 got the body %q", got.Body)
	}
	contentType := b.contentType
	if contentType == "" {
		contentType = jsonType
	}
	for name, want := range map[string]string{"X-Td-Write-Key": b.key, "Authorization": b.authorization, "Content-Type": contentType, "Cookie": ""} {
		var wanted []string
		if want != "" {
			wanted = []string{want}
		}
		if !slices.Equal(got.Header[name], wanted) {
			return fmt.Errorf("v2 got %s %q, not %q", name, got.Header[name], wanted)
		}
	}
	return nil
}
