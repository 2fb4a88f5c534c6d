package caddymodule

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/maphash"
	"io/fs"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/td-postback/gateway/migration"
	"github.com/td-postback/gateway/postback"
)

// This file names write keys without showing them. A plain hash of a key would tell
// everybody who has the key that it is the one, and everybody else could try keys. So
// the name is made under a secret of the installation.

const (
	// secretName is where the secret is in Caddy's storage.
	secretName = "td_postback/secret" //nolint:gosec // G101: its name

	secretSize = 32 // bytes

	// fingerprintSize is how many bytes of a key's HMAC are shown: enough to tell an
	// installation's keys apart, and too few to check a key by.
	fingerprintSize = 5

	// pseudonymSize is the same of the gateway's pseudonym.
	pseudonymSize = 6

	// storageTime is how long the storage may take for the secret.
	storageTime = 5 * time.Second
)

// storage is what of Caddy's storage is needed.
type storage interface {
	Lock(ctx context.Context, name string) error
	Unlock(ctx context.Context, name string) error
	Load(ctx context.Context, name string) ([]byte, error)
	Store(ctx context.Context, name string, value []byte) error
}

// fingerprints names keys.
type fingerprints struct {
	secret func() []byte

	mu    sync.RWMutex
	known map[[2]uint64]knownKey // some that were here, by two hashes: no key stays here
}

// knownKey is what the report says of a key.
type knownKey struct {
	name     string
	findings migration.Findings
}

// newFingerprints names keys under the secret of this storage. It is read, and made if
// there is none, when the first name is wanted.
func newFingerprints(in storage) *fingerprints {
	return &fingerprints{secret: sync.OnceValue(func() []byte {
		ctx, cancel := context.WithTimeout(context.Background(), storageTime)
		defer cancel()
		secret, err := installationSecret(ctx, in)
		if err != nil {
			if e := secretWarning.check(caddy.Log().Named(handlerID)); e != nil {
				e.Write(zap.String("name", secretName), zap.Error(err),
					zap.String("advice", "see to Caddy's storage, and that the gateway's user may write there; until then the names of keys, such as 1234/#9f3a1c20b7, are others after each start, and on each gateway"))
			}
			secret = processSecret()
		}
		return secret
	})}
}

// processSecret is what stands in for a secret that cannot be kept. It stays through
// reloads.
var processSecret = sync.OnceValue(newSecret)

func newSecret() []byte {
	secret := make([]byte, secretSize)
	_, _ = rand.Read(secret) // it never fails
	return secret
}

// installationSecret reads the secret of the installation, and makes it if there is
// none: under a lock, so that all gateways that share the storage have the same.
func installationSecret(ctx context.Context, in storage) (secret []byte, err error) {
	if secret, err = loadSecret(ctx, in); !errors.Is(err, fs.ErrNotExist) {
		return secret, err
	}
	if err = in.Lock(ctx, secretName); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, in.Unlock(context.WithoutCancel(ctx), secretName)) }()
	if secret, err = loadSecret(ctx, in); !errors.Is(err, fs.ErrNotExist) {
		return secret, err // another gateway has just made it
	}
	secret = newSecret()
	return secret, in.Store(ctx, secretName, []byte(hex.EncodeToString(secret)+"\n"))
}

func loadSecret(ctx context.Context, in storage) ([]byte, error) {
	text, err := in.Load(ctx, secretName)
	if err != nil {
		return nil, err
	}
	secret, err := hex.DecodeString(strings.TrimSpace(string(text)))
	if err != nil || len(secret) != secretSize {
		return nil, fmt.Errorf("it is damaged: it must hold %d hexadecimal digits; delete it, and a new one is made at the next start", 2*secretSize)
	}
	return secret, nil
}

// naming names keys as the configuration does that was accepted last. A spool outlives
// the configurations, and so it belongs to the process.
var naming atomic.Pointer[fingerprints]

// untilStart names keys until a configuration has started.
var untilStart = &fingerprints{secret: processSecret}

// fingerprintOf is the name of a key.
func fingerprintOf(key string) string { return cmp.Or(naming.Load(), untilStart).quickly(key).name }

// of is the name of a key: `1234/#9f3a1c20b7`, its account number and a part of its
// HMAC. Without an account number, it begins with `#`.
func (f *fingerprints) of(key string) string {
	if key == "" {
		return ""
	}
	mac := hmac.New(sha256.New, f.secret())
	_, _ = mac.Write([]byte(key))
	name := "#" + hex.EncodeToString(mac.Sum(nil)[:fingerprintSize])
	if account := postback.AccountOf(key); account != "" {
		return account + "/" + name
	}
	return name
}

// pseudonym is what the gateway calls itself in Via, where its requests may come back to
// it. Gateways that share the storage have the same.
func (f *fingerprints) pseudonym() string {
	mac := hmac.New(sha256.New, f.secret())
	_, _ = mac.Write([]byte("td-postback via"))
	return "td-postback-" + hex.EncodeToString(mac.Sum(nil)[:pseudonymSize])
}

// maxKnownKeys is how many keys are remembered: somebody may try many. Each takes about
// 100 bytes.
const maxKnownKeys = 4096

// keySeeds make the hashes by which keys are remembered.
var keySeeds = [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()}

// quickly is what the report says of the key of a call: most come with keys that were here
// before.
func (f *fingerprints) quickly(key string) knownKey {
	if key == "" {
		return knownKey{}
	}
	sum := [2]uint64{maphash.String(keySeeds[0], key), maphash.String(keySeeds[1], key)}
	f.mu.RLock()
	of, known := f.known[sum]
	f.mu.RUnlock()
	if known {
		return of
	}
	of = knownKey{f.of(key), migration.KeyFindings(key)}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.known == nil || len(f.known) >= maxKnownKeys {
		f.known = make(map[[2]uint64]knownKey)
	}
	f.known[sum] = of
	return of
}
