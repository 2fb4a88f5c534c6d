package spool

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"fmt"
)

// KeySize is the length in bytes of the key that encrypts records: AES-256.
const KeySize = 32

// What the key of records is derived for. These are a part of the formats on
// disk and in a cluster.
const (
	SegmentKey = "td_postback spool segment" // all records of a segment on disk; what follows it is the queue
	RecordKey  = "td_postback spool"         // one record in a cluster
)

// CheckKey refuses a key that is neither absent nor KeySize bytes long.
func CheckKey(key []byte) error {
	if len(key) != 0 && len(key) != KeySize {
		return fmt.Errorf("the key has %d bytes: it must have %d", len(key), KeySize)
	}
	return nil
}

// KeyCheck tells one key from another without telling anything of them.
func KeyCheck(key, salt []byte) ([]byte, error) {
	return hkdf.Key(sha256.New, key, salt, "td_postback spool key check", KeyCheckSize)
}

// KeyCheckSize is the length in bytes of what KeyCheck makes.
const KeyCheckSize = 8

// NewAEAD makes AES-256-GCM with a key that is derived from an operator's key of
// KeySize bytes (HKDF with SHA-256, RFC 5869). It puts a random nonce of 12 bytes
// before what it seals. After some billions of records, chance repeats such a
// nonce; so each salt has a key of its own.
func NewAEAD(key, salt []byte, purpose string) (cipher.AEAD, error) {
	own, err := hkdf.Key(sha256.New, key, salt, purpose, KeySize)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(own)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}
