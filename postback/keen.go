package postback

import (
	"bytes"
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// This file reads requests with several events, in the format that mobile SDKs and
// scripts send: `{"db.table":[{event},…],…}`. It is that of Keen IO.

// The limits of a request with several events. The SDKs keep 10,000 events for a
// table, and old ones send all at once.
const (
	MaxKeenBody   = 32 << 20 // bytes, decompressed
	MaxKeenEvents = 100_000  // events and collections
)

// maxKeenText is how long a text may be that is read for what it means, in bytes: the
// name of a collection, a time, a UUID. What is longer is none, and no copies are made
// of it.
const maxKeenText = 4 << 10

// What is held in memory for an event, a collection, and the answer to an event that
// is never taken, in bytes. It is about what they are, and rather more.
const (
	keenEventCost      = 96
	keenCollectionCost = 192
	keenFaultCost      = 192
)

// KeenReader reads requests with several events.
type KeenReader struct {
	// Arrival is when the request came.
	Arrival time.Time

	// From is who sends it. Columns that hold their own name are filled with it.
	From Caller

	// Random makes a random UUID, for an event that has none.
	Random func() [16]byte

	// Hold counts bytes that the request is about to hold in memory. When it says
	// no, the request is refused with Overloaded. It gets a negative number for what
	// is held no more. Whatever else was counted is for the caller to count out.
	Hold func(bytes int) bool
}

// Keen is a request with several events.
type Keen struct {
	// Collections are in the order in which they came. One that comes twice is here
	// twice.
	Collections []KeenCollection
}

// KeenCollection is events for one table.
type KeenCollection struct {
	// Destination is empty if the collection's name is not that of a table. Then
	// all its events have the fault KeenBadName.
	Destination

	Events []KeenEvent

	name []byte // as the caller has spelled it, between the quotes
}

// KeenEvent is an event as v2 gets it.
type KeenEvent struct {
	// Record is the record of a batch. An Alone one goes by Postback: then it is a
	// body there. It is nil if the event came with a fault.
	Record []byte
	Alone  bool

	// Fault says why the event can never be taken. Who learns it of v2 sets it to
	// KeenRefused.
	Fault KeenFault

	// Taken says that v2 has the event. Who learns that sets it.
	Taken bool

	untimed bool // nothing in it says its time
}

// Read reads a decompressed body. What it returns holds nothing of that. marked says that the request
// has the header X-TD-Data-Type: k; without it, the body must look like one of these.
func (r *KeenReader) Read(body []byte, marked bool) (*Keen, *Refusal) {
	body = bytes.TrimPrefix(body, []byte(byteOrderMark))
	if !startsObject(body) || !json.Valid(body) {
		return nil, invalidKeen("the body is not one JSON object; send one with an array of events for each database.table")
	}
	if !utf8.Valid(body) {
		size := MendedSize(body)
		if !r.Hold(size) {
			return nil, Overloaded
		}
		body = AppendMended(make([]byte, 0, size), body)
	}
	b := keenBody{KeenReader: r, values: values{text: body}}
	b.open()
	for b.more('}') {
		if refused := b.collection(marked); refused != nil {
			return nil, refused
		}
	}
	if len(b.read.Collections) == 0 {
		return nil, invalidKeen("the body has no collection; send an object with an array of events for each database.table")
	}
	return &b.read, nil
}

// Tables reads which tables a decompressed body is for, each once. A collection with a name
// that no table has is for an empty Destination. There are none if this is no request with
// several events. held is false if Hold has said no.
func (r *KeenReader) Tables(body []byte) (tables []Destination, held bool) {
	body = bytes.TrimPrefix(body, []byte(byteOrderMark))
	if !startsObject(body) || !json.Valid(body) {
		return nil, true
	}
	known := map[Destination]bool{}
	b := values{text: body}
	for b.open(); b.more('}'); {
		name, to := b.name(), Destination{}
		if len(name) <= maxKeenText {
			to = destinationOf(jsonText(name))
		}
		if b.text[b.at] != '[' {
			return nil, true
		}
		b.skip()
		if known[to] {
			continue
		}
		if !r.Hold(keenCollectionCost + len(name)) {
			return nil, false
		}
		known[to] = true
		tables = append(tables, to)
	}
	return tables, true
}

// keenBody is a body as far as it has been read.
type keenBody struct {
	*KeenReader
	values
	read  Keen
	count int    // of events and collections
	alone bool   // the events of the collection have no batches
	room  []byte // for the next records
	event keenEvent
}

// collection reads a collection.
func (b *keenBody) collection(marked bool) *Refusal {
	c := KeenCollection{name: b.name()}
	if refused := b.counted(keenCollectionCost + 2*len(c.name)); refused != nil { // the answer has it, too
		return refused
	}
	name := ""
	if len(c.name) <= maxKeenText {
		name = jsonText(c.name)
	}
	c.Destination = destinationOf(name)
	b.alone = c.Database != "" && !mayHaveBatches(c.Database)
	switch {
	case b.text[b.at] != '[':
		return invalidKeen("a collection is not an array; send an object with an array of events for each database.table")
	case !marked && strings.Count(name, ".") != 1:
		return invalidKeen("send the header X-TD-Data-Type: k, and collections named database.table")
	}
	c.name = bytes.Clone(c.name)
	for b.open(); b.more(']'); {
		if refused := b.counted(keenEventCost); refused != nil {
			return refused
		}
		e, refused := b.oneEvent(c.Database != "")
		if refused != nil {
			return refused
		}
		c.Events = append(c.Events, e)
	}
	b.read.Collections = append(b.read.Collections, c)
	return nil
}

// counted counts an event or a collection.
func (b *keenBody) counted(cost int) *Refusal {
	if b.count++; b.count > MaxKeenEvents {
		return invalidKeen("the body has more than " + strconv.Itoa(MaxKeenEvents) + " events; send fewer at a time")
	}
	return b.hold(cost)
}

func (b *keenBody) hold(bytes int) *Refusal {
	if !b.Hold(bytes) {
		return Overloaded
	}
	return nil
}

// oneEvent reads an event.
func (b *keenBody) oneEvent(named bool) (e KeenEvent, refused *Refusal) {
	if named && b.text[b.at] == '{' {
		b.event.read(&b.values, b.Arrival)
		if b.event.size <= MaxBody {
			return b.record()
		}
		e.Fault = KeenTooLarge
	} else {
		b.skip()
		e.Fault = KeenNoObject
	}
	if !named {
		e.Fault = KeenBadName
	}
	return e, b.hold(keenFaultCost)
}

// record makes of the event that was read what v2 gets.
func (b *keenBody) record() (e KeenEvent, refused *Refusal) {
	b.event.fill(&b.From)
	most := b.event.size + maxKeenAdded + len(b.event.column) + len(b.event.filled)
	if cap(b.room)-len(b.room) < most {
		// Records are about as long as the events are.
		size := max(most, min(len(b.text)-b.at+most, 1<<20))
		if refused := b.hold(size); refused != nil {
			return e, refused
		}
		b.room = make([]byte, 0, size)
	}
	start := len(b.room)
	if e.Alone = b.alone || b.event.mustGoAlone(); !e.Alone {
		b.room = b.event.appendRecord(b.room, b.text, b.KeenReader)
		e.untimed = b.event.seconds < 0 && b.event.times == 0
		length := len(b.room) - start
		if e.untimed { // it grows if it is kept
			length += maxTimeMember
		}
		e.Alone = length > MaxBatchRecord
	}
	if e.Alone {
		e.untimed = false
		b.room = b.event.appendAlone(b.room[:start], b.text, b.Arrival)
	}
	if len(b.room)-start > MaxBody {
		b.room = b.room[:start]
		return KeenEvent{Fault: KeenTooLarge}, b.hold(keenFaultCost)
	}
	e.Record = b.room[start:len(b.room):len(b.room)]
	return e, nil
}

// destinationOf splits a collection's name. It returns nothing for one that no table
// has.
func destinationOf(name string) Destination {
	database, table, _ := strings.Cut(name, ".")
	if !validName(database) || !validName(table) {
		return Destination{}
	}
	return Destination{database, table}
}

// CheckKeenKey refuses a key that v2's batch API could not take.
func CheckKeenKey(key string) *Refusal {
	if !isBatchKey(key) {
		return invalidKey("the write key has a character that no key has; send it as it was given to you")
	}
	return nil
}

func invalidKeen(message string) *Refusal {
	return &Refusal{Status: http.StatusBadRequest, Code: "invalid_request", Message: message}
}

// values goes through a text that is valid JSON, value by value.
type values struct {
	text []byte
	at   int // of the next value, or of what is behind the last one
}

// open goes into an object or an array: to what opens it, and behind that.
func (v *values) open() {
	v.space()
	v.at++
}

// more goes to the next value in an object or an array, and behind what ends it.
func (v *values) more(end byte) bool {
	v.space()
	if v.text[v.at] == ',' {
		v.at++
		v.space()
	}
	if v.text[v.at] == end {
		v.at++
		return false
	}
	return true
}

func (v *values) space() {
	for v.at < len(v.text) && v.text[v.at] <= ' ' {
		v.at++
	}
}

// name reads the name of a member, between the quotes, and goes to its value.
func (v *values) name() []byte {
	name := stringInside(v.text[v.at+1:])
	v.at += len(name) + len(`""`)
	v.open() // behind the colon
	v.space()
	return name
}

// skip goes behind a value. depth is how many brackets are open at a time in it.
func (v *values) skip() (value []byte, depth int) {
	start, open := v.at, 0
	for {
		switch v.text[v.at] {
		case '"':
			v.at += len(stringInside(v.text[v.at+1:])) + len(`""`)
		case '{', '[':
			open++
			depth = max(depth, open)
			v.at++
			continue
		case '}', ']':
			open--
			v.at++
		case ',', ':', ' ', '\t', '\n', '\r':
			v.at++
			continue
		default: // a number or a word
			for v.at < len(v.text) && !endsWord[v.text[v.at]] {
				v.at++
			}
		}
		if open == 0 {
			return v.text[start:v.at], depth
		}
	}
}

// endsWord has the bytes that may stand behind a number, true, false or null.
var endsWord = func() (ends [256]bool) {
	for _, c := range []byte(",]}" + jsonSpace) {
		ends[c] = true
	}
	return ends
}()

// jsonText is the text of a JSON string, of which inside is what stands between the
// quotes.
func jsonText(inside []byte) (text string) {
	if bytes.IndexByte(inside, '\\') < 0 {
		return string(inside)
	}
	quoted := append(append([]byte{'"'}, inside...), '"')
	_ = json.Unmarshal(quoted, &text) // it is valid
	return text
}
