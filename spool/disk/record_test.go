package disk

import (
	"bytes"
	"encoding/hex"
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
	c, err := newCoder(bytes.Repeat([]byte{7}, spool.KeySize), []byte("saltsalt"))
	if err != nil {
		t.Fatal(err)
	}
	id, r, err := c.decode(value)
	if err != nil || id != 5 || r.Arrival.UnixMilli() != 1763930000123 || string(r.Data) != "a record" {
		t.Errorf("got %d %d %q %v", id, r.Arrival.UnixMilli(), r.Data, err)
	}
}
