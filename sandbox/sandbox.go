// Package sandbox has stand-ins for both hosts. Legacy is one for the legacy host, and
// Sandbox a strict one for v2, its Postback API and its batch API:
// it takes what v2's published contract takes, refuses the rest, and prints every
// record as v2 would receive it, or why it is refused. Like v2, it does not know
// whether a write key is right and answers 200 to any. Records for some tables it
// refuses on purpose: answer_400, answer_403, answer_422, answer_429, answer_503 and
// answer_never, and some of answer_206.
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
	"time"
)

// MaxBody is the largest body that v2 takes, in bytes.
const MaxBody = 1_048_064

// Record is one record as v2 received it.
type Record struct {
	Database, Table string

	// Via is the header by which the request authenticated, X-TD-Write-Key or
	// Authorization. Key is the key in it.
	Via, Key string

	// Body is the body, byte for byte; of a batch, what stands in its array.
	Body []byte

	// Batch says that the record came by the batch API, and UUID by what v2 knows
	// a repeat of it: 36 characters, in lower case. A record that came without one
	// has none.
	Batch bool
	UUID  string

	// Header is the request's header, and Query its raw query.
	Header http.Header
	Query  string
}

// String is the record on one line, with the key masked. The uuid is not in it: v2
// does not store it.
func (r Record) String() string {
	stored := r.Body
	if r.Batch {
		stored = withoutUUID(stored)
	}
	return fmt.Sprintf("record %s.%s  key %s via %s  %s", r.Database, r.Table, maskKey(r.Key), r.way(), shown(stored))
}

// shown is JSON on one line, or else a quoted text.
func shown(text []byte) string {
	line := new(bytes.Buffer)
	if json.Compact(line, text) != nil {
		return fmt.Sprintf("%q", text)
	}
	return line.String()
}

// way is how the record came.
func (r Record) way() string {
	if r.Batch {
		return r.Via + ", by batch"
	}
	return r.Via
}

// refusal says on one line why v2 would not take the record.
func (r Record) refusal(status int, message string) string {
	line := "refused"
	if r.Table != "" {
		line += " " + r.Database + "." + r.Table
	}
	switch {
	case r.Key != "":
		line += "  key " + maskKey(r.Key) + " via " + r.way()
	case status == http.StatusForbidden || status == http.StatusUnauthorized:
		line += "  no key"
	}
	if status == 0 {
		return line + "  " + message
	}
	return fmt.Sprintf("%s  %d %s", line, status, message)
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
	// Out gets one line for every record, and for every request that is refused,
	// if it is not nil.
	Out io.Writer

	// Received is called with every record before it is answered, if it is
	// not nil. A repeat that v2 would drop by its uuid is none.
	Received func(Record)

	// Fail makes the sandbox misbehave on purpose, if it is not nil: when it
	// returns true it has answered the request, or broken it off, itself.
	Fail func(http.ResponseWriter, *http.Request) bool

	mu      sync.Mutex // one line at a time
	repeats repeats
}

var eventPath = regexp.MustCompile(`^/postback/v3/event/([A-Za-z0-9_]+)/([A-Za-z0-9_]+)$`)

// ServeHTTP answers one request by v2's contract.
func (s *Sandbox) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if s.Fail != nil && s.Fail(w, r) {
		return
	}
	if isBatch(r) {
		s.serveBatch(w, r)
		return
	}
	record, status, message := receive(r)
	if refusal, ok := refusals[record.Table]; ok && status == http.StatusOK {
		status, message = refusal.status, refusal.message
	}
	if status != http.StatusOK {
		s.refuse(w, r, record, status, message)
		return
	}
	if s.Received != nil {
		s.Received(record)
	}
	s.print(record.String())
	answer(w, http.StatusOK, "")
}

// refusals are the tables whose records are refused on purpose, to try what
// becomes of them. The status 0 is no answer at all.
var refusals = map[string]struct {
	status  int
	message string
}{
	"answer_400":   {http.StatusBadRequest, "this table takes no record: it is for trying a 400"},
	"answer_403":   {http.StatusForbidden, "this table takes no key: it is for trying a 403"},
	"answer_422":   {http.StatusUnprocessableEntity, "this table takes no record: it is for trying a 422"},
	"answer_429":   {http.StatusTooManyRequests, "this table is always over its limit: it is for trying a 429"},
	"answer_503":   {http.StatusServiceUnavailable, "this table is always down: it is for trying a 503"},
	"answer_never": {0, "no answer"},
}

// maxSilence is how long a client is left without an answer, if it waits.
const maxSilence = 5 * time.Minute

// retryAfter is what a 429 says, in seconds.
const retryAfter = "30"

// refuse answers a request that v2 would not take.
func (s *Sandbox) refuse(w http.ResponseWriter, r *http.Request, record Record, status int, message string) {
	s.print(record.refusal(status, message))
	turnDown(w, r, status, message)
}

// turnDown answers with a refusal. The status 0 is no answer at all.
func turnDown(w http.ResponseWriter, r *http.Request, status int, message string) {
	if status == 0 {
		select {
		case <-r.Context().Done(): // the client has given up
		case <-time.After(maxSilence):
		}
		panic(http.ErrAbortHandler) // which closes the connection
	}
	if status == http.StatusTooManyRequests {
		w.Header().Set("Retry-After", retryAfter)
	}
	answer(w, status, message)
}

func (s *Sandbox) print(line string) { printLine(&s.mu, s.Out, line) }

// printLine prints a line, if there is somewhere to print it.
func printLine(mu *sync.Mutex, out io.Writer, line string) {
	if out == nil {
		return
	}
	mu.Lock()
	defer mu.Unlock()
	fmt.Fprintln(out, line)
}

// receive checks a request against the contract.
func receive(r *http.Request) (record Record, status int, message string) {
	path := eventPath.FindStringSubmatch(r.URL.EscapedPath())
	if path == nil {
		return record, http.StatusNotFound, "the path must be /postback/v3/event/{database}/{table}, or /{database}/{table} for a batch"
	}
	record = Record{Database: path[1], Table: path[2], Header: r.Header, Query: r.URL.RawQuery}
	if r.Method != http.MethodPost {
		return record, http.StatusMethodNotAllowed, "only POST is taken"
	}
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
