package disk

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"hash/crc32"
	"testing"

	"github.com/td-postback/gateway/spool"
)

// TestSealedFormat reads a record as the first version has written it: what is
// on an operator's disk must stay readable.
func TestSealedFormat(t *testing.T) {
	value, err := hex.DecodeString("f5746452f686b6550000003500000000000000050000019ab26bcafb01bd0cf277661c045d29c1bf97a20f821d53e33fdc7394fc8ea8c97322fedbb876b5a367df")
	if err != nil {
		t.Fatal(err)
	}
	c, err := newCoder(bytes.Repeat([]byte{7}, spool.KeySize), []byte("saltsalt"), q1)
	if err != nil {
		t.Fatal(err)
	}
	id, r, err := c.decode(value)
	if err != nil || id != 5 || r.Arrival.UnixMilli() != 1763930000123 || string(r.Data) != "a record" {
		t.Errorf("got %d %d %q %v", id, r.Arrival.UnixMilli(), r.Data, err)
	}
}

// A commit sets aside recordOverhead for what a record takes beside its data.
func TestHeaderFits(t *testing.T) {
	t.Parallel()
	c, err := newCoder(bytes.Repeat([]byte{7}, spool.KeySize), []byte("saltsalt"), q1)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(c.encode(nil, 1, spool.Record{Arrival: arrivalTime, Replayed: true})); n > recordOverhead {
		t.Errorf("a record without data takes %d bytes", n)
	}
}

// The mark of a dead letter from before v2's words were kept.
func TestMarkWithoutWords(t *testing.T) {
	t.Parallel()
	mark, err := hex.DecodeString("0000000000000007" + "0190" + "0000019aa0b1c2d3" + hex.EncodeToString([]byte("refused")))
	if err != nil {
		t.Fatal(err)
	}
	mark = binary.BigEndian.AppendUint32(mark, crc32.Checksum(mark, castagnoli))
	d, err := decodeDeath(mark)
	if err != nil || d.id != 7 || d.Verdict != (spool.Verdict{Status: 400, Reason: "refused"}) || d.died.UnixMilli() != 0x19aa0b1c2d3 {
		t.Errorf("it is read as %+v, %v", d, err)
	}
}
