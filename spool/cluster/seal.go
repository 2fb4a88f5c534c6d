package cluster

import (
	"crypto/cipher"
	"crypto/rand"
	"errors"

	"github.com/td-postback/gateway/spool"
)

// sealer encrypts records. The servers see sizes and times, and which queue a
// record is for, but not what is in it.
type sealer struct{ key []byte }

const saltSize = 16

var (
	errSealed = errors.New("the record is encrypted with another key or for another host, or damaged")
	errPlain  = errors.New("the record was kept without a key, so that anybody may have made it: a gateway without key_file delivers it")
)

// newSealer returns nil without a key.
func newSealer(key []byte) (*sealer, error) {
	if err := spool.CheckKey(key); err != nil || len(key) == 0 {
		return nil, err
	}
	return &sealer{key: key}, nil
}

// aead is AES-256-GCM with a key for one record. One key for all would be worn
// out by chance repetitions of its 12-byte nonce after some days at full load.
func (s *sealer) aead(salt []byte) (cipher.AEAD, error) {
	return spool.NewAEAD(s.key, salt, spool.RecordKey)
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
