package cluster

import (
	"bytes"
	"encoding/hex"
	"errors"
	"testing"

	"github.com/td-postback/gateway/spool"
)

// TestSealedFormat reads a record as the first version has sealed it: what is in
// an operator's cluster must stay readable, and only in its own queue.
func TestSealedFormat(t *testing.T) {
	sealed, err := hex.DecodeString("0b44446d34b89672e7df75ff6635b0559a2ccf0b6a17658d4e604546c1ea6d7160e4a9cf88e4e36e3fda3aab9cdc8228840dfe5e")
	if err != nil {
		t.Fatal(err)
	}
	s, err := newSealer(bytes.Repeat([]byte{7}, spool.KeySize))
	if err != nil {
		t.Fatal(err)
	}
	if data, err := s.open("a queue", sealed); err != nil || string(data) != "a record" {
		t.Errorf("got %q %v", data, err)
	}
	if _, err := s.open("another", sealed); !errors.Is(err, errSealed) {
		t.Errorf("in another queue: %v", err)
	}
}
