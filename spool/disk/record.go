package disk

import (
	"bytes"
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"time"

	"github.com/td-postback/gateway/spool"
)

// A record in a segment is a bbolt value, under its ID. All numbers are
// big-endian:
//
//	magic    4 bytes
//	checksum 4 bytes   of all that follows, CRC-32C with the segment's seed
//	length   4 bytes   of all that follows
//	id       8 bytes
//	arrival  8 bytes   UNIX milliseconds
//	form     1 byte    plain, sealed or bound, and maybe replayed
//	data               with sealed and bound: a nonce, and the data in AES-256-GCM
//
// The key of what is bound is of the segment and of its queue. What the first
// version has sealed is not bound to a queue: in another one's directory it is
// delivered to that one's host.
//
// bbolt checks no data, so each record has a checksum; and with its ID and its
// length in it, a record can be found in a file whose pages are damaged. The
// seed keeps a caller from sending a body that looks like a record.
const (
	magic     = "\xf5tdR"
	headerEnd = 4 + 4 + 4
	dataStart = headerEnd + 8 + 8 + 1

	plain  byte = 0
	sealed byte = 1
	bound  byte = 2

	// replayed is added to the form of a record that was a dead letter.
	replayed byte = 0x80
)

var (
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
	errDamaged = errors.New("it is damaged")
	errKey     = errors.New("it was written with another key")
	errQueue   = errors.New("it was written for another queue: its directory has got another name")
	errPlain   = errors.New("it is not encrypted")
)

// coder writes and reads the records of one segment.
type coder struct {
	salt  []byte
	seed  uint32
	check []byte      // tells the key; nil without one
	aead  cipher.AEAD // the same
	old   cipher.AEAD // for what the first version has sealed
}

// newCoder makes the coder of a queue's segment from its salt, which no other
// segment has: so each segment has its own key, and random nonces are safe.
func newCoder(key []byte, salt []byte, queue string) (c coder, err error) {
	c.salt, c.seed = salt, crc32.Checksum(salt, castagnoli)
	if len(key) == 0 {
		return c, nil
	}
	if c.check, err = spool.KeyCheck(key, salt); err != nil {
		return c, err
	}
	if c.old, err = spool.NewAEAD(key, salt, spool.SegmentKey); err != nil {
		return c, err
	}
	c.aead, err = spool.NewAEAD(key, salt, spool.SegmentKey+" "+queue)
	return c, err
}

// encode appends a record to dst.
func (c coder) encode(dst []byte, id spool.ID, r spool.Record) []byte {
	at := len(dst)
	dst = append(dst, magic...)
	dst = append(dst, 0, 0, 0, 0, 0, 0, 0, 0)
	dst = binary.BigEndian.AppendUint64(dst, uint64(id))
	dst = binary.BigEndian.AppendUint64(dst, uint64(r.Arrival.UnixMilli()))
	form := plain
	if c.aead != nil {
		form = bound
	}
	if r.Replayed {
		form |= replayed
	}
	dst = append(dst, form)
	if c.aead == nil {
		dst = append(dst, r.Data...)
	} else {
		dst = c.aead.Seal(dst, nil, r.Data, dst[at+headerEnd:at+dataStart]) //nolint:gosec // G407: it makes a random nonce itself
	}
	binary.BigEndian.PutUint32(dst[at+8:], uint32(len(dst)-at-headerEnd)) //nolint:gosec // G115: Append refuses such lengths
	binary.BigEndian.PutUint32(dst[at+4:], c.checksum(dst[at+8:]))
	return dst
}

// decode reads a record and copies its data.
func (c coder) decode(value []byte) (id spool.ID, r spool.Record, err error) {
	size := c.size(value)
	if size != len(value) || size == 0 {
		return 0, r, errDamaged
	}
	id = idIn(value)
	r.Arrival = arrival(value)
	form, data, aead := value[dataStart-1], value[dataStart:], c.aead
	r.Replayed = form&replayed != 0
	switch form &^ replayed {
	case plain:
		r.Data = bytes.Clone(data)
		if c.aead != nil {
			err = errPlain // whoever can write to the disk may have made it
		}
		return id, r, err
	case sealed:
		aead = c.old
	}
	if aead == nil {
		return id, r, errKey
	}
	r.Data, err = aead.Open(nil, nil, data, value[headerEnd:dataStart])
	if err != nil {
		return id, r, errKey // its checksum is right
	}
	return id, r, nil
}

// asReplayed makes the value of the same record as one that was replayed, and
// encrypts it if there is a key. For one that is that already, or cannot be read,
// there is none.
func (c coder) asReplayed(value []byte) []byte {
	id, r, err := c.decode(value)
	switch {
	case errors.Is(err, errPlain):
	case err != nil || r.Replayed:
		return nil
	}
	r.Replayed = true
	return c.encode(nil, id, r)
}

// withData makes the value of the same record with other data.
func (c coder) withData(value, data []byte) []byte {
	return c.encode(nil, idIn(value), spool.Record{Arrival: arrival(value), Data: data, Replayed: isReplayed(value)})
}

// idIn reads only the ID of an intact record.
func idIn(value []byte) spool.ID { return spool.ID(binary.BigEndian.Uint64(value[headerEnd:])) }

// lengthIn reads only the length that a record has if it is intact.
func lengthIn(value []byte) int { return headerEnd + int(binary.BigEndian.Uint32(value[8:])) }

// isReplayed reads only from an intact record whether it was replayed.
func isReplayed(value []byte) bool { return value[dataStart-1]&replayed != 0 }

// arrival reads only the arrival of an intact record.
func arrival(value []byte) time.Time {
	return time.UnixMilli(int64(binary.BigEndian.Uint64(value[headerEnd+8:]))) //nolint:gosec // G115: the same bits
}

// size returns the length of the intact record at the beginning of b, or 0.
func (c coder) size(b []byte) int {
	if len(b) < dataStart || string(b[:4]) != magic {
		return 0
	}
	size := lengthIn(b)
	if size < dataStart || size > len(b) || c.checksum(b[8:size]) != binary.BigEndian.Uint32(b[4:]) {
		return 0
	}
	return size
}

func (c coder) checksum(b []byte) uint32 { return crc32.Update(c.seed, castagnoli, b) }

func keyOf(id spool.ID) []byte { return binary.BigEndian.AppendUint64(nil, uint64(id)) }

func idOf(key []byte) spool.ID {
	if len(key) != 8 {
		return 0
	}
	return spool.ID(binary.BigEndian.Uint64(key))
}
