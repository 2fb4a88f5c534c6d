package postback

import (
	"bytes"
	"crypto/sha1" //nolint:gosec // G505: version 5 of a UUID is made with it; nothing is kept secret by it
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// This file makes of kept requests what they are in v2's batch API: records of one
// database, table and key, which go in one request.

// The limits of a batch.
const (
	MaxBatch       = 500       // records
	MaxBatchBytes  = 5_000_000 // of the array of records
	MaxBatchRecord = 1_000_000 // bytes of one record
)

// maxNesting is how deep a record of a batch may be nested. Two more levels come
// around it, and parsers that limit the depth take at least 100.
const maxNesting = 90

// batchType is the media type of a batch and of the answer to it.
const batchType = "application/vnd.treasuredata.v1+json"

// BatchGroup is what the records of one batch have in common.
type BatchGroup struct {
	Database, Table, Key string
}

// String names the group: `database/table key`. It has the write key in it, so it
// is for the memory of the process alone.
func (g BatchGroup) String() string { return g.Database + "/" + g.Table + " " + g.Key }

// ParseBatchGroup reads what String has written.
func ParseBatchGroup(text string) (BatchGroup, bool) {
	g := cutBatchGroup(text)
	return g, validName(g.Database) && validName(g.Table) && isBatchKey(g.Key)
}

func cutBatchGroup(text string) BatchGroup {
	names, key, _ := strings.Cut(text, " ")
	database, table, _ := strings.Cut(names, "/")
	return BatchGroup{database, table, key}
}

// RecordUUID is the UUID of a record in v2's batches: version 5 (RFC 9562 section
// 5.5) of the record's ID, as 8 bytes, in the namespace of its queue.
func RecordUUID(namespace [16]byte, id uint64) [16]byte {
	var name [8]byte
	binary.BigEndian.PutUint64(name[:], id)
	return hashUUID(namespace[:], name[:])
}

// hashUUID is the UUID of a name in a namespace.
func hashUUID(namespace, name []byte) (uuid [16]byte) {
	hash := sha1.New() //nolint:gosec // G401: see the import
	_, _ = hash.Write(namespace)
	_, _ = hash.Write(name)
	var sum [sha1.Size]byte
	copy(uuid[:], hash.Sum(sum[:0]))
	uuid[6] = uuid[6]&0x0f | 5<<4
	uuid[8] = uuid[8]&0x3f | 0x80
	return uuid
}

// appendUUID appends a UUID's text (RFC 9562 section 4).
func appendUUID(dst []byte, uuid [16]byte) []byte {
	start := 0
	for _, end := range [...]int{4, 6, 8, 10, 16} {
		if start > 0 {
			dst = append(dst, '-')
		}
		dst = hex.AppendEncode(dst, uuid[start:end])
		start = end
	}
	return dst
}

// ToBatch makes of a request that AppendKept has written a record of a batch: the
// bytes of its body, but td_record_time is called time there, and a member uuid is
// behind all others. ok is false for a record that goes alone, as it was kept, since
// v2 would not take the same from a batch. For the same request and arrival the
// answer is the same, whenever it is asked for.
func ToBatch(data []byte, arrival time.Time, uuid [16]byte) (g BatchGroup, record []byte, ok bool) {
	event, ok := readPlainEvent(data)
	if !ok || !startsObject(event.body) || !utf8.Valid(event.body) || !validJSON(event.body) {
		return BatchGroup{}, nil, false
	}
	recordTime, ok := batchTime(event.body, arrival)
	if !ok {
		return BatchGroup{}, nil, false
	}
	if record = batchRecord(event.body, recordTime, uuid); len(record) > MaxBatchRecord {
		return BatchGroup{}, nil, false
	}
	return event.group(), record, true
}

// plainEvent is a kept request that says no more than a batch can say.
type plainEvent struct {
	names     []byte // database/table
	key, body []byte
}

// readPlainEvent reads a request that AppendKept has written, if it is a whole plain
// event: it has a key that v2 reads the same in a batch, no query, and no header by
// which its body would be more than, or other than, its bytes.
func readPlainEvent(data []byte) (e plainEvent, ok bool) {
	line, rest, _ := cutLine(data)
	line, isEvent := bytes.CutPrefix(line, []byte("POST "+eventPrefix))
	names, isHTTP := bytes.CutSuffix(line, []byte(" HTTP/1.1"))
	if !isEvent || !isHTTP || !areNames(names) {
		return plainEvent{}, false
	}
	var key keptKey
	length := -1
	for {
		if line, rest, ok = cutLine(rest); !ok {
			return plainEvent{}, false // no end of the head
		}
		if len(line) == 0 {
			break
		}
		key.read(line)
		name, value, _ := bytes.Cut(line, []byte(": "))
		if string(name) == "Content-Length" {
			length, _ = strconv.Atoi(string(value))
		} else if holdsForBody(name, value) {
			return plainEvent{}, false
		}
	}
	return plainEvent{names, key.text, rest}, len(rest) == length && isBatchKey(key.text)
}

// areNames reports whether a path is that of a database that may have batches, and a
// table.
func areNames(path []byte) bool {
	database, table, _ := bytes.Cut(path, []byte("/"))
	return validName(string(database)) && validName(string(table)) && mayHaveBatches(string(database))
}

// mayHaveBatches reports whether records of a database may go in batches. Those for one
// that is called postback would come at v2 where the paths of Postback begin.
func mayHaveBatches(database string) bool { return !strings.EqualFold(database, "postback") }

// holdsForBody reports whether a header says of the body what a batch cannot say of
// a record: a coding, a digest, a type that is not JSON in UTF-8.
func holdsForBody(name, value []byte) bool {
	switch string(name) {
	case "Content-Type":
		return string(value) != "application/json" && !isJSONType(string(value))
	case "Content-Encoding":
		return isCompressed(string(value))
	}
	return describesBytes(string(name))
}

// isJSONType reports whether a Content-Type is that of JSON in UTF-8.
func isJSONType(value string) bool {
	media, params, _ := strings.Cut(value, ";")
	if !strings.EqualFold(strings.Trim(media, " \t"), "application/json") {
		return false
	}
	for param := range strings.SplitSeq(params, ";") {
		name, value, _ := strings.Cut(param, "=")
		value = strings.ToLower(strings.Trim(value, " \t\""))
		if strings.EqualFold(strings.Trim(name, " \t"), "charset") && value != "utf-8" && value != "utf8" && value != "us-ascii" {
			return false
		}
	}
	return true
}

// isBatchKey reports whether a key is the same behind `Authorization: TD1 ` as in
// X-TD-Write-Key: if it has the form that RFC 9110 calls token68 (section 11.2), and
// is one that the gateway takes.
func isBatchKey[T string | []byte](key T) bool {
	end := len(key)
	for end > 0 && key[end-1] == '=' {
		end--
	}
	for i := range end {
		if c := key[i]; !isWord(c) && c != '.' && c != '~' && c != '+' && c != '/' {
			return false
		}
	}
	return 0 < end && len(key) <= maxWriteKey && key[end-1] != '/'
}

// group makes one string of all, and cuts its parts out of it.
func (e *plainEvent) group() BatchGroup {
	text := make([]byte, 0, 128)
	text = append(append(append(text, e.names...), ' '), e.key...)
	return cutBatchGroup(string(text))
}

// batchTime finds the member td_record_time of a body, which is one valid JSON
// object. It returns false if the record must go alone: it has a column that a
// batch has for itself, times that v2 cannot use or of which it would use another
// one, or levels that a batch leaves no room for. Names compare without case, as
// columns do at v2.
func batchTime(body []byte, arrival time.Time) (recordTime member, ok bool) {
	times := 0
	all := newMembers(body)
	for m, more := all.next(); more; m, more = all.next() {
		name := body[m.name:m.nameEnd]
		switch {
		case len(name) != len("uuid") && len(name) != len("td_record_time") && bytes.IndexByte(name, '\\') < 0:
		case spells(name, "uuid", true):
			return member{}, false
		case spells(name, "td_record_time", true):
			recordTime = m
			fallthrough
		case spells(name, "time", true):
			times++
			if times > 1 || !usableTime(body[m.value:m.end], arrival) || !spells(name, "time", false) && !spells(name, "td_record_time", false) {
				return member{}, false
			}
		}
	}
	return recordTime, all.deepest <= maxNesting
}

// batchRecord makes a record of a body: the name of the member recordTime, if
// there is one, becomes time, and the UUID goes behind all members.
func batchRecord(body []byte, recordTime member, uuid [16]byte) []byte {
	record := make([]byte, 0, len(body)+maxUUIDMember)
	from := 0
	if recordTime.nameEnd > 0 {
		record = append(record, body[:recordTime.name]...)
		record = append(record, "time"...)
		from = recordTime.nameEnd
	}
	end, empty := objectEnd(body)
	record = append(record, body[from:end]...)
	if !empty {
		record = append(record, ',')
	}
	record = append(record, `"uuid":"`...)
	record = appendUUID(record, uuid)
	record = append(record, '"')
	return append(record, body[end:]...)
}

// maxUUIDMember is the most bytes that a body grows by.
const maxUUIDMember = len(`,"uuid":"00000000-0000-0000-0000-000000000000"`)

// AppendHead appends the head of a batch's request in HTTP/1.1 form, up to and
// including the empty line. The body is gzip-compressed JSON of so many bytes.
func (g BatchGroup) AppendHead(dst []byte, host string, length int) []byte {
	return g.appendHead(dst, host, "Content-Encoding: gzip\r\n", length)
}

// appendHead is the same for a body of which the field coding says how it is
// compressed.
func (g BatchGroup) appendHead(dst []byte, host, coding string, length int) []byte {
	dst = append(dst, "POST /"...)
	dst = append(dst, g.Database...)
	dst = append(dst, '/')
	dst = append(dst, g.Table...)
	dst = append(dst, " HTTP/1.1\r\nHost: "...)
	dst = append(dst, host...)
	dst = append(dst, "\r\nContent-Type: "+batchType+"\r\nAccept: "+batchType+"\r\n"...)
	dst = append(dst, coding...)
	dst = append(dst, "Authorization: TD1 "...)
	dst = append(dst, g.Key...)
	dst = append(dst, "\r\nContent-Length: "...)
	dst = strconv.AppendInt(dst, int64(length), 10)
	return append(dst, "\r\n\r\n"...)
}

// BatchReceipt is v2's answer to one record of a batch.
type BatchReceipt struct {
	Taken bool
	Words string // in which v2 refused it, as Words makes them
}

// ReadReceipts reads v2's answer to a batch of n records. It returns false if there
// is not a receipt for each of them. keys are those of the request: v2 may quote
// them.
func ReadReceipts(answer []byte, n int, keys ...string) ([]BatchReceipt, bool) {
	var said struct {
		Receipts []struct {
			Success *bool `json:"success"`
		} `json:"receipts"`
	}
	if json.Unmarshal(answer, &said) != nil || len(said.Receipts) != n || n == 0 {
		return nil, false
	}
	receipts := make([]BatchReceipt, n)
	refused := false
	for i, receipt := range said.Receipts {
		if receipt.Success == nil {
			return nil, false
		}
		receipts[i].Taken = *receipt.Success
		refused = refused || !*receipt.Success
	}
	if refused {
		addWords(receipts, answer, keys)
	}
	return receipts, true
}

// addWords adds what v2 says to the records that it has refused.
func addWords(receipts []BatchReceipt, answer []byte, keys []string) {
	var said struct {
		Receipts []map[string]json.RawMessage `json:"receipts"`
	}
	if json.Unmarshal(answer, &said) != nil {
		return
	}
	for i, receipt := range said.Receipts {
		if !receipts[i].Taken {
			receipts[i].Words = Words(reasonIn(receipt), true, keys...)
		}
	}
}

// reasonIn finds the reason in a receipt. Where it stands is not published: it may
// be the error, or a member of it or of the receipt. What is none of these is told
// as it is.
func reasonIn(receipt map[string]json.RawMessage) []byte {
	reason := receipt["error"]
	var inside map[string]json.RawMessage
	if json.Unmarshal(reason, &inside) != nil {
		inside = nil
	}
	for _, text := range []json.RawMessage{
		reason, inside["message"], receipt["message"], inside["reason"], receipt["reason"],
		inside["description"], receipt["description"], inside["name"], inside["code"],
	} {
		var words string
		if json.Unmarshal(text, &words) == nil && words != "" {
			return []byte(words)
		}
	}
	return reason
}
