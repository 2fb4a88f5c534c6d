package jetstream

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"errors"
)

// sealer encrypts records. The servers see sizes and times, and which queue a
// record is for, but not what is in it.
type sealer struct{ key []byte }

const saltSize = 16

var errSealed = errors.New("the record is encrypted with another key, or damaged")

// newSealer returns nil without a key.
func newSealer(key []byte) (*sealer, error) {
	switch len(key) {
	case 0:
		return nil, nil //nolint:nilnil // no key, no sealer: all that asks checks for it
	case 32:
		return &sealer{key: key}, nil
	}
	return nil, errors.New("the key has to be 32 bytes long")
}

// aead is AES-256-GCM with a key for one record. One key for all would be worn
// out by chance repetitions of its 12-byte nonce after some days at full load.
func (s *sealer) aead(salt []byte) (cipher.AEAD, error) {
	key, err := hkdf.Key(sha256.New, s.key, salt, "td_postback spool", 32)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}

// seal encrypts data, and ties it to its queue.
func (s *sealer) seal(queue string, data []byte) ([]byte, error) {
	salt := make([]byte, saltSize, saltSize+len(data)+28)
	_, _ = rand.Read(salt) // never fails
	aead, err := s.aead(salt)
	if err != nil {
		return nil, err
	}
	return aead.Seal(salt, nil, data, []byte(queue)), nil //nolint:gosec // G407: without a nonce it takes a random one
}

// open decrypts what seal has made for the same queue.
func (s *sealer) open(queue string, sealed []byte) ([]byte, error) {
	if s == nil || len(sealed) < saltSize {
		return nil, errSealed
	}
	aead, err := s.aead(sealed[:saltSize])
	if err != nil {
		return nil, err
	}
	data, err := aead.Open(nil, nil, sealed[saltSize:], []byte(queue))
	if err != nil {
		return nil, errSealed
	}
	return data, nil
}
