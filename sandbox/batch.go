package sandbox

import (
	"bytes"
	"compress/gzip"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
)

// This file is v2's batch API, the Data Ingestion API.

// The limits of v2's batch API: how many records a request may have, and how many
// bytes of JSON a record and all of them together.
const (
	MaxBatch       = 500
	MaxBatchRecord = 1_000_000
	MaxBatchBytes  = 5_000_000
)

// around is how many bytes a batch may have around its array of records.
const around = 1000

const (
	batchType  = "application/vnd.treasuredata.v1+json"
	singleType = "application/vnd.treasuredata.v1.single+json" // one bare object
)

// batchTypes are the content types of the batch API. Of a request of the third and
// fourth, v2 would fill td_ip and td_global_id.
var batchTypes = []string{
	batchType, singleType,
	"application/vnd.treasuredata.v1.js+json",
	"application/vnd.treasuredata.v1.mobile+json",
}

var (
	batchPath = regexp.MustCompile(`^/([A-Za-z0-9_]+)/([A-Za-z0-9_]+)$`)
	keyPath   = regexp.MustCompile(`^/[0-9]+/[0-9A-Fa-f]{16,}$`) // a write key that went astray

	uuidForm = regexp.MustCompile(`^[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}$`)
)

// refusedMember is the column by which a record of the table answer_206 fails, while
// the others of its batch are taken.
const refusedMember = "refused"

// isBatch reports whether a request is for the batch API.
func isBatch(r *http.Request) bool {
	path := r.URL.EscapedPath()
	return batchPath.MatchString(path) && !keyPath.MatchString(path)
}

// receipt is what v2 says of one record of a batch.
type receipt struct {
	Success bool   `json:"success"`
	UUID    string `json:"uuid"`
	Error   string `json:"error,omitempty"`
}

// serveBatch answers a request for the batch API.
func (s *Sandbox) serveBatch(w http.ResponseWriter, r *http.Request) {
	request, records, status, message := receiveBatch(r)
	if refusal, ok := refusals[request.Table]; ok && status == http.StatusOK {
		status, message = refusal.status, refusal.message
	}
	if status != http.StatusOK {
		s.refuse(w, r, request, status, message)
		return
	}
	receipts := make([]receipt, len(records))
	for n, record := range records {
		receipts[n] = s.take(record)
		if !receipts[n].Success {
			status = http.StatusPartialContent
		}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string][]receipt{"receipts": receipts})
}

// take takes one record of a batch, or lets it fail.
func (s *Sandbox) take(record Record) receipt {
	if record.Table == "answer_206" && has(record.Body, refusedMember) {
		message := "a record with a member " + refusedMember + ": it is for trying a 206"
		s.print(record.refusal(http.StatusPartialContent, message))
		return receipt{UUID: record.UUID, Error: message}
	}
	given := receipt{Success: true, UUID: record.UUID}
	if given.UUID == "" {
		given.UUID = randomUUID()
	} else if s.repeats.known(record) {
		return given
	}
	if s.Received != nil {
		s.Received(record)
	}
	s.print(record.String())
	return given
}

// receiveBatch checks a request against the contract of the batch API. The request
// is returned as a record without a body.
func receiveBatch(r *http.Request) (request Record, records []Record, status int, message string) {
	request = Record{Batch: true, Header: r.Header, Query: r.URL.RawQuery}
	if request.Via, request.Key = authentication(r.Header); request.Via != "Authorization" || request.Key == "" {
		request.Key = ""
		return request, nil, http.StatusUnauthorized, "the write key must be in Authorization: TD1"
	}
	path := batchPath.FindStringSubmatch(r.URL.EscapedPath())
	request.Database, request.Table = path[1], path[2]
	if status, message = checkBatchHead(r); status != http.StatusOK {
		return request, nil, status, message
	}
	body, status, message := readBatch(r)
	if status != http.StatusOK {
		return request, nil, status, message
	}
	bodies := []json.RawMessage{body}
	if !isType(r, singleType) {
		if bodies, status, message = events(body); status != http.StatusOK {
			return request, nil, status, message
		}
	}
	for n, body := range bodies {
		record := request
		record.Body = body
		if record.UUID, status, message = checkRecord(body); status != http.StatusOK {
			return request, nil, status, fmt.Sprintf("record %d of %d: %s", n+1, len(bodies), message)
		}
		records = append(records, record)
	}
	return request, records, http.StatusOK, ""
}

// checkBatchHead checks what stands before the body, but for the key.
func checkBatchHead(r *http.Request) (status int, message string) {
	if r.Method != http.MethodPost {
		return http.StatusMethodNotAllowed, "only POST is taken"
	}
	query, err := url.ParseQuery(r.URL.RawQuery)
	delete(query, "modified")
	delete(query, "time")
	if err != nil || len(query) > 0 {
		return http.StatusBadRequest, "the query may have modified and time, and nothing else"
	}
	if !slices.ContainsFunc(batchTypes, func(name string) bool { return isType(r, name) }) {
		return http.StatusUnsupportedMediaType, "Content-Type must be " + batchType + ", or its form for single, js or mobile"
	}
	if accept := r.Header.Values("Accept"); len(accept) != 1 || !strings.EqualFold(accept[0], r.Header.Get("Content-Type")) {
		return http.StatusBadRequest, "Accept must be the same as Content-Type"
	}
	return http.StatusOK, ""
}

// isType reports whether a request has this content type, and no other.
func isType(r *http.Request, name string) bool {
	types := r.Header.Values("Content-Type")
	return len(types) == 1 && strings.EqualFold(types[0], name)
}

// readBatch reads a body, which may be compressed by gzip.
func readBatch(r *http.Request) (body []byte, status int, message string) {
	var reader io.Reader = r.Body
	switch coding := strings.Join(r.Header.Values("Content-Encoding"), ","); {
	case coding == "":
	case strings.EqualFold(coding, "gzip"):
		unzip, err := gzip.NewReader(r.Body)
		if err != nil {
			return nil, http.StatusBadRequest, "the body is not in gzip"
		}
		reader = unzip
	default:
		return nil, http.StatusUnsupportedMediaType, "Content-Encoding may be gzip, and nothing else"
	}
	body, err := io.ReadAll(io.LimitReader(reader, MaxBatchBytes+around+1))
	switch {
	case err != nil:
		return nil, http.StatusBadRequest, "the body is broken or ended early"
	case len(body) > MaxBatchBytes+around:
		return nil, http.StatusRequestEntityTooLarge, "the records have more than 5000000 bytes"
	case !utf8.Valid(body):
		return nil, http.StatusBadRequest, "the body is not UTF-8"
	}
	return body, http.StatusOK, ""
}

// events finds the records in a body: one array, and nothing beside it.
func events(body []byte) (bodies []json.RawMessage, status int, message string) {
	list, ok := members(body)
	switch {
	case !ok:
		return nil, http.StatusBadRequest, "the body must be one JSON object"
	case len(list) == 0:
		return nil, http.StatusBadRequest, "missing parameter: events"
	case len(list) > 1 || list[0].name != "events" && list[0].name != "records":
		return nil, http.StatusBadRequest, "the body must have one member, events or records"
	case len(list[0].value) > MaxBatchBytes:
		return nil, http.StatusRequestEntityTooLarge, "the records have more than 5000000 bytes"
	case list[0].value[0] != '[' || json.Unmarshal(list[0].value, &bodies) != nil:
		return nil, http.StatusBadRequest, list[0].name + " must be an array"
	case len(bodies) == 0 || len(bodies) > MaxBatch:
		return nil, http.StatusBadRequest, "events size must be between 1 and 500"
	}
	return bodies, http.StatusOK, ""
}

// checkRecord checks one record of a batch. v2 lowers the names of columns, so that
// UUID is uuid too.
func checkRecord(body []byte) (uuid string, status int, message string) {
	list, ok := members(body)
	if !ok {
		return "", http.StatusUnprocessableEntity, "it must be one JSON object"
	}
	if len(body) > MaxBatchRecord {
		return "", http.StatusRequestEntityTooLarge, "it has more than 1000000 bytes"
	}
	for _, m := range list {
		if !strings.EqualFold(m.name, "uuid") {
			continue
		}
		if uuid != "" {
			return "", http.StatusUnprocessableEntity, "it has two members uuid"
		}
		if json.Unmarshal(m.value, &uuid) != nil || !uuidForm.MatchString(uuid) {
			return "", http.StatusUnprocessableEntity, "its uuid is not valid"
		}
	}
	return strings.ToLower(uuid), http.StatusOK, ""
}

// member is one of an object's.
type member struct {
	name  string
	value json.RawMessage
	text  []byte // the name as it is written
}

// members lists the members of one JSON object, in their order.
func members(object []byte) (list []member, ok bool) {
	if !isObject(object) {
		return nil, false
	}
	d := json.NewDecoder(bytes.NewReader(object))
	_, _ = d.Token() // its begin; it is valid, so there are no errors
	for d.More() {
		from := d.InputOffset()
		name, _ := d.Token()
		m := member{text: bytes.TrimLeft(object[from:d.InputOffset()], ", \t\r\n")}
		m.name, _ = name.(string)
		_ = d.Decode(&m.value)
		list = append(list, m)
	}
	return list, true
}

// has reports whether an object has a member of this name.
func has(object []byte, name string) bool {
	list, _ := members(object)
	return slices.ContainsFunc(list, func(m member) bool { return m.name == name })
}

// withoutUUID is a record as v2 stores it.
func withoutUUID(object []byte) []byte {
	list, _ := members(object)
	var parts [][]byte
	for _, m := range list {
		if !strings.EqualFold(m.name, "uuid") {
			parts = append(parts, slices.Concat(m.text, []byte(":"), m.value))
		}
	}
	return slices.Concat([]byte("{"), bytes.Join(parts, []byte(",")), []byte("}"))
}

func randomUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// repeats remembers the records that came with a uuid, for an hour, but no more of
// them than there is room for: some 50 MB.
type repeats struct {
	mu         sync.Mutex
	young, old map[[16]byte]time.Time
}

// How long v2 drops repeats, and how many records each half of repeats may have.
const (
	dropRepeats = time.Hour
	maxRepeats  = 250_000
)

// known reports whether a record of the same table and account with the same uuid
// came within the hour before. If none did, this one is remembered.
func (k *repeats) known(r Record) bool {
	account, _, _ := strings.Cut(r.Key, "/")
	sum := sha256.Sum256([]byte(account + "/" + r.Database + "/" + r.Table + "/" + r.UUID))
	id, now := [16]byte(sum[:16]), time.Now()
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, half := range []map[[16]byte]time.Time{k.young, k.old} {
		if at, ok := half[id]; ok && now.Sub(at) < dropRepeats {
			return true
		}
	}
	if k.young == nil || len(k.young) >= maxRepeats {
		k.young, k.old = make(map[[16]byte]time.Time), k.young
	}
	k.young[id] = now
	return false
}
