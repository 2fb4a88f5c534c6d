// Package sandbox is a strict stand-in for Postback API v2: it takes what v2's
// published contract takes, refuses the rest, and prints every record as v2
// would receive it. Like v2, it does not know whether a write key is right and
// answers 200 to any.
package sandbox

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"sync"
)

// MaxBody is the largest body that v2 takes, in bytes.
const MaxBody = 1_048_064

// Record is one record as v2 received it.
type Record struct {
	Database, Table string

	// Via is the header by which the request authenticated, X-TD-Write-Key or
	// Authorization. Key is the key in it.
	Via, Key string

	// Body is the body, byte for byte.
	Body []byte

	// Header is the request's header, and Query its raw query.
	Header http.Header
	Query  string
}

// String is the record on one line, with the key masked.
func (r Record) String() string {
	body := new(bytes.Buffer)
	if json.Compact(body, r.Body) != nil {
		fmt.Fprintf(body, "%q", r.Body)
	}
	return fmt.Sprintf("record %s.%s  key %s via %s  %s", r.Database, r.Table, maskKey(r.Key), r.Via, body)
}

// maskKey keeps a write key's account number and nothing else: `1234/…`. The
// gateway has the same rule: the stand-in shares no code with what it checks.
func maskKey(key string) string {
	account, _, ok := strings.Cut(key, "/")
	if !ok || account == "" || strings.Trim(account, "0123456789") != "" {
		return "…"
	}
	return account + "/…"
}

// Sandbox is the stand-in, as an http.Handler. Its zero value works.
type Sandbox struct {
	// Out gets one line for every record, if it is not nil.
	Out io.Writer

	// Received is called with every record before it is answered, if it is
	// not nil.
	Received func(Record)

	// Fail makes the sandbox misbehave on purpose, if it is not nil: when it
	// returns true it has answered the request, or broken it off, itself.
	Fail func(http.ResponseWriter, *http.Request) bool

	mu sync.Mutex // one line at a time
}

var eventPath = regexp.MustCompile(`^/postback/v3/event/([A-Za-z0-9_]+)/([A-Za-z0-9_]+)$`)

// ServeHTTP answers one request by v2's contract.
func (s *Sandbox) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if s.Fail != nil && s.Fail(w, r) {
		return
	}
	record, status, message := receive(r)
	if status != http.StatusOK {
		answer(w, status, message)
		return
	}
	if s.Received != nil {
		s.Received(record)
	}
	if s.Out != nil {
		s.mu.Lock()
		fmt.Fprintln(s.Out, record)
		s.mu.Unlock()
	}
	answer(w, http.StatusOK, "")
}

// receive checks a request against the contract.
func receive(r *http.Request) (record Record, status int, message string) {
	path := eventPath.FindStringSubmatch(r.URL.EscapedPath())
	if path == nil {
		return record, http.StatusNotFound, "the path must be /postback/v3/event/{database}/{table}"
	}
	if r.Method != http.MethodPost {
		return record, http.StatusMethodNotAllowed, "only POST is taken"
	}
	record = Record{Database: path[1], Table: path[2], Header: r.Header, Query: r.URL.RawQuery}
	if record.Via, record.Key = authentication(r.Header); record.Key == "" {
		return record, http.StatusForbidden, "the write key must be in X-TD-Write-Key or Authorization: TD1"
	}
	if r.URL.Query().Has("td_write_key") {
		return record, http.StatusBadRequest, "a write key in the URL is not accepted"
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, MaxBody+1))
	if err != nil {
		return record, http.StatusBadRequest, "the body ended early"
	}
	if len(body) > MaxBody {
		return record, http.StatusRequestEntityTooLarge, "the body is larger than 1048064 bytes"
	}
	if !isObject(body) {
		return record, http.StatusBadRequest, "the body must be one JSON object"
	}
	record.Body = body
	return record, http.StatusOK, ""
}

// authentication finds the key by v2's precedence: Authorization first.
func authentication(h http.Header) (via, key string) {
	if scheme, key, ok := strings.Cut(h.Get("Authorization"), " "); ok && scheme == "TD1" {
		return "Authorization", strings.TrimSpace(key)
	}
	return "X-TD-Write-Key", strings.TrimSpace(h.Get("X-TD-Write-Key"))
}

func isObject(body []byte) bool {
	trimmed := bytes.TrimLeft(body, " \t\r\n")
	return len(trimmed) > 0 && trimmed[0] == '{' && json.Valid(body)
}

// answer writes v2's `{}`, or an error object.
func answer(w http.ResponseWriter, status int, message string) {
	body := []byte("{}")
	if status != http.StatusOK {
		body, _ = json.Marshal(map[string]string{"error": message})
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(body)
}
