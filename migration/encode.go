package migration

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"math"
	"strings"
)

// This file writes rows for the report's file, and reads them. A row's value is
//
//	version, times, counts, hours, results, findings, examples, checksum
//
// with numbers as in encoding/binary's varints, texts behind their length, findings by
// name, so that a later version may have others, and a CRC-32 of the key and of what
// is before it.

const encodingVersion = 1

var errEncoding = errors.New("a row is damaged")

// appendRow appends a row's value.
func appendRow(b []byte, key string, d *rowData) []byte {
	start := len(b)
	b = append(b, encodingVersion)
	b = appendTotals(b, &d.totals)
	b = binary.AppendUvarint(b, d.missed)
	b = binary.AppendVarint(b, d.formSeen)
	for _, events := range d.lanes {
		b = binary.AppendUvarint(b, events)
	}
	b = appendTallies(b, d.results)
	b = appendFound(b, d.findings)
	b = binary.AppendUvarint(b, uint64(len(d.examples)))
	for _, e := range d.examples {
		b = appendText(b, e.Request)
		names := make([]string, 0, findings)
		for f := range e.Findings.All() {
			names = append(names, f.String())
		}
		b = appendText(b, strings.Join(names, " "))
	}
	return appendSum(b, start, key)
}

// appendOthers appends the value of all that has no row, and how many rows there are.
func appendOthers(b []byte, o *others, rows int) []byte {
	start := len(b)
	b = append(b, encodingVersion)
	b = appendTotals(b, &o.totals)
	b = binary.AppendUvarint(b, o.rows)
	b = binary.AppendUvarint(b, o.missed)
	b = binary.AppendUvarint(b, uint64(rows)) //nolint:gosec // G115: it is positive
	return appendSum(b, start, othersKey)
}

// appendOthersFound appends the findings about all that has no row.
func appendOthersFound(b []byte, all []found) []byte {
	start := len(b)
	return appendSum(appendFound(append(b, encodingVersion), all), start, foundKey)
}

func appendTotals(b []byte, t *totals) []byte {
	b = binary.AppendVarint(b, t.first)
	b = binary.AppendVarint(b, t.last)
	b = binary.AppendUvarint(b, t.events)
	b = binary.AppendVarint(b, t.hours.newest)
	b = appendRing(b, t.hours.day[:])
	return appendRing(b, t.hours.week[:])
}

// appendRing appends the counts of a ring that are not 0, each behind its slot.
func appendRing(b []byte, ring []uint32) []byte {
	busy := uint64(0)
	for _, events := range ring {
		if events > 0 {
			busy++
		}
	}
	b = binary.AppendUvarint(b, busy)
	for slot, events := range ring {
		if events > 0 {
			b = binary.AppendUvarint(b, uint64(slot))
			b = binary.AppendUvarint(b, uint64(events))
		}
	}
	return b
}

func appendTallies(b []byte, tallies []tally) []byte {
	b = binary.AppendUvarint(b, uint64(len(tallies)))
	for _, t := range tallies {
		b = appendText(b, t.name)
		b = binary.AppendUvarint(b, t.events)
	}
	return b
}

func appendFound(b []byte, all []found) []byte {
	b = binary.AppendUvarint(b, uint64(len(all)))
	for _, f := range all {
		b = appendText(b, f.of.String())
		b = binary.AppendUvarint(b, f.events)
		b = binary.AppendVarint(b, f.last)
	}
	return b
}

func appendText(b []byte, text string) []byte {
	b = binary.AppendUvarint(b, uint64(len(text)))
	return append(b, text...)
}

// appendSum appends the checksum of a key and of what is behind start.
func appendSum(b []byte, start int, key string) []byte {
	return binary.BigEndian.AppendUint32(b, sumOf(key, b[start:]))
}

func sumOf(key string, value []byte) uint32 {
	return crc32.Update(crc32.ChecksumIEEE([]byte(key)), crc32.IEEETable, value)
}

// decodeRow reads a row's value.
func decodeRow(key string, value []byte) (d rowData, err error) {
	r := openValue(key, value)
	d.totals = r.totals()
	d.missed = r.uvarint(math.MaxUint64)
	d.formSeen = r.varint()
	for lane := range d.lanes {
		d.lanes[lane] = r.uvarint(math.MaxUint64)
	}
	d.results = r.tallies()
	d.findings = r.found()
	for range r.uvarint(maxExamples) {
		e := example{Request: r.text(maxExample)}
		for name := range strings.FieldsSeq(r.text(maxTallies * maxResult)) {
			if f, ok := FindingOf(name); ok {
				e.Findings.Add(f)
			}
		}
		d.examples = append(d.examples, e)
	}
	if r.bad || len(r.left) > 0 || !isRowKey(key) {
		return rowData{}, errEncoding
	}
	return d, nil
}

// decodeOthers reads what appendOthers wrote.
func decodeOthers(value []byte) (o others, rows int, err error) {
	r := openValue(othersKey, value)
	o.totals = r.totals()
	o.rows = r.uvarint(math.MaxUint64)
	o.missed = r.uvarint(math.MaxUint64)
	rows = int(r.uvarint(math.MaxInt32)) //nolint:gosec // G115: it is at most that
	if r.bad || len(r.left) > 0 {
		return others{}, 0, errEncoding
	}
	return o, rows, nil
}

// decodeFound reads what appendOthersFound wrote.
func decodeFound(value []byte) ([]found, error) {
	r := openValue(foundKey, value)
	all := r.found()
	if r.bad || len(r.left) > 0 {
		return nil, errEncoding
	}
	return all, nil
}

// isRowKey reports whether a text can be a row's key.
func isRowKey(key string) bool {
	parts := strings.Split(key, string(rune(keySeparator)))
	for _, part := range parts {
		if clean(part, maxName) != part {
			return false
		}
	}
	return len(parts) == keyParts
}

// maxTallies is the most tallies of a kind that are read.
const maxTallies = 64

// valueReader reads a value. Once something is bad, all the rest is.
type valueReader struct {
	left []byte
	bad  bool
}

// openValue checks a value's checksum and version.
func openValue(key string, value []byte) *valueReader {
	body := len(value) - crc32.Size
	if body < 1 || value[0] != encodingVersion || binary.BigEndian.Uint32(value[body:]) != sumOf(key, value[:body]) {
		return &valueReader{bad: true}
	}
	return &valueReader{left: value[1:body]}
}

func (r *valueReader) uvarint(limit uint64) uint64 {
	n, size := binary.Uvarint(r.left)
	if r.bad = r.bad || size <= 0 || n > limit; r.bad {
		return 0
	}
	r.left = r.left[size:]
	return n
}

func (r *valueReader) varint() int64 {
	n, size := binary.Varint(r.left)
	if r.bad = r.bad || size <= 0; r.bad {
		return 0
	}
	r.left = r.left[size:]
	return n
}

func (r *valueReader) text(limit uint64) string {
	size := r.uvarint(limit)
	if r.bad = r.bad || size > uint64(len(r.left)); r.bad {
		return ""
	}
	text := string(r.left[:size])
	r.left = r.left[size:]
	r.bad = clean(text, int(limit)) != text //nolint:gosec // G115: it is small
	return text
}

func (r *valueReader) totals() (t totals) {
	t.first = r.varint()
	t.last = r.varint()
	t.events = r.uvarint(math.MaxUint64)
	if t.hours.newest = r.varint(); t.hours.newest < 0 || t.hours.newest > maxHour {
		r.bad = true
	}
	r.ring(t.hours.day[:])
	r.ring(t.hours.week[:])
	return t
}

// maxHour is an hour that no clock shows.
const maxHour = 1 << 40

func (r *valueReader) ring(ring []uint32) {
	length := uint64(len(ring))
	for range r.uvarint(length) {
		slot := r.uvarint(length - 1)
		ring[slot] = uint32(r.uvarint(math.MaxUint32)) //nolint:gosec // G115: it is at most that
	}
}

func (r *valueReader) tallies() (tallies []tally) {
	for range r.uvarint(maxTallies) {
		name := r.text(maxResult)
		tallies = append(tallies, tally{name, r.uvarint(math.MaxUint64)})
	}
	return tallies
}

// found reads findings. One that only a later version knows is left out.
func (r *valueReader) found() (all []found) {
	for range r.uvarint(maxTallies) {
		of, known := FindingOf(r.text(maxResult))
		f := found{r.uvarint(math.MaxUint64), r.varint(), of}
		if known {
			all = append(all, f)
		}
	}
	return all
}
