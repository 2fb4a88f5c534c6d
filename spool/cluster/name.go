package cluster

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/td-postback/gateway/spool"
)

// This file names messages. A number of a stream is not a name: it comes again when
// the stream is made anew, or restored from a backup.

// identity names a message among all messages of all streams.
type identity struct {
	namespace [16]byte
	seq       uint64
}

func identityOf(e spool.Entry) identity { return identity{e.Namespace, uint64(e.ID)} }

// identify names a stored message by what the servers keep with it, so that all
// gateways come to the same: its number, its Nats-Msg-Id, which is some 128 random
// bits, and when it was stored, for a message of somebody else has no such ID.
func identify(h nats.Header, seq uint64, stored time.Time) identity {
	id := h.Get(jetstream.MsgIDHeader)
	at := binary.BigEndian.AppendUint64(nil, uint64(stored.UnixNano()))
	sum := sha256.Sum256(append(at, id...))
	return identity{[16]byte(sum[:]), seq}
}

// String is a text that may be a part of another message's Nats-Msg-Id.
func (i identity) String() string { return fmt.Sprintf("%x-%d", i.namespace, i.seq) }
