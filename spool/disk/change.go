package disk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"strings"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/td-postback/gateway/spool"
)

// This file is what a commit does to a segment.

// change is what one caller, or a batch of them, wants to be done.
type change struct {
	puts   [][]byte // records, with their IDs from putID on
	putID  spool.ID
	acks   []spool.ID // delivered: they go
	deaths []death
	revive []spool.ID // no dead letters any more
	drop   []spool.ID // dead letters that go

	// reserved is of the room for dead letters, until the deaths are committed.
	reserved int64

	// Once committed: those of revive that were dead letters, and how many of
	// drop.
	revived []spool.ID
	dropped int
}

// death is why a record is a dead letter.
type death struct {
	spool.Verdict
	id   spool.ID
	died time.Time
	rest []byte // what takes the place of the record's data; nil for nothing
}

// state is what a segment knows of itself.
type state struct {
	live, dead int   // records to be delivered, dead letters
	bytes      int64 // of both
	deadBytes  int64 // of the dead letters
}

// usage is what a segment's file takes.
type usage struct {
	live, dead int64 // the file's bytes, by what they are there for
	letters    int64 // what the dead letters need by themselves
}

// usage shares out the bytes of a file. What is in it pays for what is in it no
// more.
func (st state) usage(size int64) usage {
	u := usage{live: size, letters: st.deadBytes + letterSize*int64(st.dead)}
	if st.deadBytes > 0 {
		u.dead = int64(float64(size) * min(1, float64(st.deadBytes)/float64(st.bytes)))
		u.live -= u.dead
	}
	return u
}

func (c *change) apply(tx *bolt.Tx, st *state, coder coder) error {
	c.revived, c.dropped = nil, 0 // of a commit that failed
	records, dead := tx.Bucket(recordsBucket), tx.Bucket(deadBucket)
	records.FillPercent = 1 // IDs only grow
	dead.FillPercent = 0.9  // they mostly do
	for i, value := range c.puts {
		if err := records.Put(keyOf(c.putID+spool.ID(i)), value); err != nil {
			return err
		}
		st.live++
		st.bytes += int64(len(value))
	}
	if err := c.applyAcks(records, dead, st); err != nil {
		return err
	}
	if err := c.applyDeaths(records, dead, st, coder); err != nil {
		return err
	}
	return c.applyLetters(records, dead, st, coder)
}

// applyAcks looks for each record once: hundred thousands a second may be acked.
func (c *change) applyAcks(records, dead *bolt.Bucket, st *state) error {
	at, key := records.Cursor(), make([]byte, 0, 8)
	for _, id := range c.acks {
		key = binary.BigEndian.AppendUint64(key[:0], uint64(id))
		found, value := at.Seek(key)
		if !bytes.Equal(found, key) || st.dead > 0 && dead.Get(key) != nil {
			continue
		}
		st.live--
		st.bytes -= int64(len(value))
		if err := at.Delete(); err != nil {
			return err
		}
	}
	return nil
}

func (c *change) applyDeaths(records, dead *bolt.Bucket, st *state, coder coder) error {
	for _, d := range c.deaths {
		key := keyOf(d.id)
		value := records.Get(key)
		if dead.Get(key) != nil || value == nil {
			continue
		}
		if d.rest != nil {
			rest := coder.withData(value, d.rest)
			st.bytes += int64(len(rest) - len(value))
			value = rest
			if err := records.Put(key, value); err != nil {
				return err
			}
		}
		st.live--
		st.dead++
		st.deadBytes += int64(len(value))
		if err := dead.Put(key, d.encode()); err != nil {
			return err
		}
	}
	return nil
}

func (c *change) applyLetters(records, dead *bolt.Bucket, st *state, coder coder) error {
	for _, id := range c.revive {
		key := keyOf(id)
		if dead.Get(key) == nil {
			continue
		}
		c.revived = append(c.revived, id)
		value := records.Get(key)
		st.dead--
		st.deadBytes -= int64(len(value))
		st.live++
		if err := dead.Delete(key); err != nil {
			return err
		}
		if marked := coder.asReplayed(value); marked != nil {
			st.bytes += int64(len(marked) - len(value))
			if err := records.Put(key, marked); err != nil {
				return err
			}
		}
	}
	for _, id := range c.drop {
		key := keyOf(id)
		if dead.Get(key) == nil {
			continue
		}
		c.dropped++
		st.dead--
		size := int64(len(records.Get(key)))
		st.bytes, st.deadBytes = st.bytes-size, st.deadBytes-size
		if err := errors.Join(dead.Delete(key), records.Delete(key)); err != nil {
			return err
		}
	}
	return nil
}

const (
	stateSize = 8 + 8 + 8 + 4     // live, dead, bytes, checksum
	deadSize  = 8 + 8 + 8 + 8 + 4 // the same, dead bytes, checksum
)

func readState(tx *bolt.Tx) (st state, err error) {
	bucket := tx.Bucket(stateBucket)
	if bucket == nil {
		return st, fmt.Errorf("%w: a bucket is missing", errDamaged)
	}
	if st, err = decodeState(bucket.Get(stateKey)); err != nil || st.decodeDead(bucket.Get(deadKey)) {
		return st, err
	}
	records := tx.Bucket(recordsBucket)
	err = tx.Bucket(deadBucket).ForEach(func(key, _ []byte) error {
		st.deadBytes += int64(len(records.Get(key)))
		return nil
	})
	return st, err
}

func writeState(tx *bolt.Tx, st state) error {
	bucket := tx.Bucket(stateBucket)
	return errors.Join(bucket.Put(stateKey, st.encode()), bucket.Put(deadKey, st.encodeDead()))
}

// encodeDead makes a value of its own of what the first version did not have, so
// that it goes on reading the other. As that does not write this one, the counts
// to which it belongs are in it.
func (st state) encodeDead() []byte {
	b := st.encode()[:24]
	b = binary.BigEndian.AppendUint64(b, uint64(st.deadBytes)) //nolint:gosec // G115: a size
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// decodeDead is encodeDead the other way round. It reports whether the value is
// that of these counts.
func (st *state) decodeDead(b []byte) bool {
	if len(b) != deadSize || !bytes.Equal(b[:24], st.encode()[:24]) || crc32.Checksum(b[:32], castagnoli) != binary.BigEndian.Uint32(b[32:]) {
		return false
	}
	st.deadBytes = int64(binary.BigEndian.Uint64(b[24:])) //nolint:gosec // G115: a size
	return true
}

func (st state) encode() []byte {
	b := binary.BigEndian.AppendUint64(make([]byte, 0, stateSize), uint64(st.live)) //nolint:gosec // G115: a count
	b = binary.BigEndian.AppendUint64(b, uint64(st.dead))                           //nolint:gosec // G115: a count
	b = binary.BigEndian.AppendUint64(b, uint64(st.bytes))                          //nolint:gosec // G115: a size
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// writeCheck notes which key a segment is of, if any.
func (c coder) writeCheck(tx *bolt.Tx) error {
	if c.check == nil {
		return nil
	}
	return tx.Bucket(stateBucket).Put(checkKey, binary.BigEndian.AppendUint32(bytes.Clone(c.check), crc32.Checksum(c.check, castagnoli)))
}

// decodeCheck reads that. It returns nil without it: then a record must tell.
func decodeCheck(b []byte) []byte {
	if len(b) != spool.KeyCheckSize+4 || crc32.Checksum(b[:spool.KeyCheckSize], castagnoli) != binary.BigEndian.Uint32(b[spool.KeyCheckSize:]) {
		return nil
	}
	return bytes.Clone(b[:spool.KeyCheckSize])
}

// decodeState is encode the other way round. A segment that took itself for
// empty would be deleted: so the counts have a checksum.
func decodeState(b []byte) (st state, err error) {
	if len(b) != stateSize || crc32.Checksum(b[:24], castagnoli) != binary.BigEndian.Uint32(b[24:]) {
		return st, fmt.Errorf("%w: the counts of a segment", errDamaged)
	}
	st.live = int(binary.BigEndian.Uint64(b))         //nolint:gosec // G115: a count
	st.dead = int(binary.BigEndian.Uint64(b[8:]))     //nolint:gosec // G115: a count
	st.bytes = int64(binary.BigEndian.Uint64(b[16:])) //nolint:gosec // G115: a size
	return st, nil
}

// wordsMark stands between the reason and v2's words. Marks of before have no
// words.
const wordsMark = "\x00"

// encode makes the value that marks a record as a dead letter. Its checksum is
// over the ID too: a mark must not come to another record.
func (d *death) encode() []byte {
	b := binary.BigEndian.AppendUint64(make([]byte, 0, 32), uint64(d.id))
	b = binary.BigEndian.AppendUint16(b, uint16(d.Status)) //nolint:gosec // G115: an HTTP status
	b = binary.BigEndian.AppendUint64(b, uint64(d.died.UnixMilli()))
	b = append(b, d.Reason...)
	if d.Words != "" {
		b = append(append(b, wordsMark...), d.Words...)
	}
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

func decodeDeath(b []byte) (d death, err error) {
	end := len(b) - 4
	if end < 8+2+8 || crc32.Checksum(b[:end], castagnoli) != binary.BigEndian.Uint32(b[end:]) {
		return d, fmt.Errorf("%w: the mark of a dead letter", errDamaged)
	}
	d.id = spool.ID(binary.BigEndian.Uint64(b))
	d.Status = int(binary.BigEndian.Uint16(b[8:]))
	d.died = time.UnixMilli(int64(binary.BigEndian.Uint64(b[10:]))) //nolint:gosec // G115: the same bits
	reason, words, found := strings.Cut(string(b[18:end]), wordsMark)
	if found && words == "" {
		return d, fmt.Errorf("%w: the mark of a dead letter", errDamaged)
	}
	d.Reason, d.Words = reason, words
	return d, nil
}
