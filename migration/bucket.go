package migration

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/bits"
	"net/netip"
	"strings"

	"github.com/td-postback/gateway/postback"
)

// This file says which calls of a rule go to v2. Each call has a value, and each value
// is for ever in one of 10,000 buckets, which are different ones for each rule. The
// buckets 0, 1, 2 … up to the share go to v2, so that a share that is raised only adds,
// and one that is lowered only removes. To find a bucket:
//
//	take SHA-256 of `td-postback:1`, a zero byte, the rule's text, a zero byte and the value
//	take its first 8 bytes as a number, the highest byte first
//	multiply it by 10,000 and divide it by 2^64
//
// The rule's text is `shop.orders`, or with an account `shop.orders account:1234`. So
// `shop.orders` has 203.0.113.7 in bucket 1866 (the first bytes are 2fcab5e11bf3bfdb):
// that client goes to v2 at 18.67 % and not at 18.66 %. There are more in
// testdata/buckets.tsv: rule, value, the first 8 bytes, bucket.

// Stick says which calls always go the same way: those that have the same value.
type Stick uint8

const (
	// StickClient is Caddy's client_ip as text: an IPv6 address in its shortest form
	// (RFC 5952) and without a zone, or as an IPv4 address if it stands for one.
	StickClient Stick = iota

	// StickKey is the write key that v2 would use. Calls without one go by StickClient.
	StickKey

	// StickTable is the table: shop.orders.
	StickTable
)

var stickNames = [...]string{"client", "key", "table"}

// String is the name in the configuration.
func (s Stick) String() string { return stickNames[s] }

// StickNames are all names in the configuration.
func StickNames() []string { return stickNames[:] }

// ParseStick reads a name in the configuration.
func ParseStick(name string) (Stick, error) {
	for stick, known := range stickNames {
		if name == known {
			return Stick(stick), nil
		}
	}
	return 0, fmt.Errorf("must be %s", strings.Join(stickNames[:], ", "))
}

// bucketSpace begins what is hashed. Another way to find buckets would have another
// number.
const bucketSpace = "td-postback:1\x00"

const (
	// usualBucketText is room for what is hashed of nearly all calls, in bytes.
	usualBucketText = 192

	// longBucketText is room for the longest rule and the longest key. A caller may
	// send a longer name of a table: then the room is made for it.
	longBucketText = 2048
)

// bucketSeed is what is hashed before a value.
func bucketSeed(r Rule) string { return bucketSpace + r.String() + "\x00" }

// bucketOf is a call's bucket.
func bucketOf(seed string, stick Stick, c *Caller, to postback.Destination) Share {
	if len(seed)+valueSize(stick, c, to) > usualBucketText {
		return longBucketOf(seed, stick, c, to)
	}
	var room [usualBucketText]byte
	return bucketOfText(appendValue(append(room[:0], seed...), stick, c, to))
}

// longBucketOf is a function of its own, so that only it needs the room.
//
//go:noinline
func longBucketOf(seed string, stick Stick, c *Caller, to postback.Destination) Share {
	var room [longBucketText]byte
	return bucketOfText(appendValue(append(room[:0], seed...), stick, c, to))
}

func bucketOfText(text []byte) Share {
	sum := sha256.Sum256(text)
	bucket, _ := bits.Mul64(binary.BigEndian.Uint64(sum[:]), uint64(AllToV2))
	return Share(bucket) //nolint:gosec // G115: it is less than 10,000
}

// maxAddress is the most bytes that an address has as text.
const maxAddress = len("ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255")

// valueSize is how long a value may be.
func valueSize(stick Stick, c *Caller, to postback.Destination) int {
	switch {
	case stick == StickTable:
		return len(to.Database) + len(".") + len(to.Table)
	case stick == StickKey && c.Key != "":
		return len(c.Key)
	default:
		return max(len(c.Client), maxAddress)
	}
}

// appendValue appends a call's value.
func appendValue(dst []byte, stick Stick, c *Caller, to postback.Destination) []byte {
	switch {
	case stick == StickTable:
		dst = append(dst, to.Database...)
		dst = append(dst, '.')
		return append(dst, to.Table...)
	case stick == StickKey && c.Key != "":
		return append(dst, c.Key...)
	default:
		return appendClient(dst, c.Client)
	}
}

// appendClient appends a client's address. What is no address stays as it is.
func appendClient(dst []byte, client string) []byte {
	if strings.IndexByte(client, ':') < 0 {
		return append(dst, client...) // IPv4, of which there is one form
	}
	text, _, _ := strings.Cut(client, "%")
	address, err := netip.ParseAddr(text)
	if err != nil {
		return append(dst, text...)
	}
	return address.Unmap().AppendTo(dst)
}
