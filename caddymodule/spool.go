package caddymodule

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/td-postback/gateway/spool"
	"github.com/td-postback/gateway/spool/cluster"
	"github.com/td-postback/gateway/spool/disk"
)

// The modes of a spool.
const (
	spoolOnFailure = "on_failure"
	spoolAlways    = "always"
)

// maxSpoolAge is when v2 ignores a record's time (see README, "td_record_time").
const maxSpoolAge = 7 * 24 * time.Hour

// Spool keeps records that v2 does not take now, and delivers them later. A
// caller is answered as if v2 had taken its record as soon as that is durable.
type Spool struct {
	// When a record goes to the spool: `on_failure`, only if v2 cannot be
	// reached, does not answer in time, or answers 408, 429 or 5xx; or `always`,
	// which answers callers without waiting for v2. Default: `on_failure`.
	Mode string `json:"mode,omitempty"`

	// The directory on the local disk, for this gateway alone. It is made with
	// mode 0700 if it is not there. Default: `td_postback/spool` in Caddy's data
	// directory.
	Dir string `json:"dir,omitempty"`

	// The URLs of a NATS JetStream cluster, `nats://` or `tls://`, to keep the
	// records on instead of the local disk. Several gateways may share it.
	NATS []string `json:"nats,omitempty"`

	// How many bytes the records may take. Beyond it, callers get 503. At least
	// 1048576. Default: 10737418240 (10 GiB).
	MaxSize int64 `json:"max_size,omitempty"`

	// When a record is given up and becomes a dead letter. At most 7 days, when
	// v2 ignores its time. Default: 6 days.
	MaxAge caddy.Duration `json:"max_age,omitempty"`

	// How many records a second may be delivered, to each v2 host, beyond those
	// that arrive at the time. It leaves room for live traffic when v2 is back.
	// Default: 1000.
	DrainRate int `json:"drain_rate,omitempty"`

	// A file with a key of 32 bytes as 64 hexadecimal digits. With it, records
	// are encrypted on disk: they hold write keys.
	KeyFile string `json:"key_file,omitempty"`
}

// applyDefaults fills in what is not set.
func (s *Spool) applyDefaults() {
	setDefault(&s.Mode, spoolOnFailure)
	setDefault(&s.MaxSize, spool.DefaultMaxSize)
	setDefault(&s.MaxAge, caddy.Duration(spool.DefaultMaxAge))
	setDefault(&s.DrainRate, spool.DefaultRate)
	if len(s.NATS) == 0 {
		setDefault(&s.Dir, filepath.Join(caddy.AppDataDir(), "td_postback", "spool"))
	}
}

// validate refuses options with values that are not allowed.
func (s *Spool) validate() error {
	if s.Mode != spoolOnFailure && s.Mode != spoolAlways {
		return fmt.Errorf("spool mode %q: must be %s or %s", s.Mode, spoolOnFailure, spoolAlways)
	}
	if len(s.NATS) > 0 && s.Dir != "" {
		return fmt.Errorf("spool dir %q: with nats, the records are on the cluster's disks", s.Dir)
	}
	for _, server := range s.NATS {
		if !cluster.ValidURL(server) {
			return fmt.Errorf("spool nats %q: must be nats:// or tls://, a host and maybe a port, without a comma", redactUser(server))
		}
	}
	if s.MaxSize < 1<<20 {
		return fmt.Errorf("spool max_size %d: must be at least %d bytes", s.MaxSize, 1<<20)
	}
	if age := time.Duration(s.MaxAge); age <= 0 || age > maxSpoolAge {
		return fmt.Errorf("spool max_age %s: must be more than 0 and at most %s, when v2 ignores a record's time", age, maxSpoolAge)
	}
	if s.DrainRate < 1 {
		return fmt.Errorf("spool drain_rate %d: must be at least 1", s.DrainRate)
	}
	return nil
}

// place is what tells spools apart: for logs and metrics too, so without
// credentials.
func (s *Spool) place() (string, error) {
	if len(s.NATS) == 0 {
		return filepath.Abs(s.Dir)
	}
	hosts := make([]string, len(s.NATS))
	for i, server := range s.NATS {
		u, err := url.Parse(server)
		if err != nil {
			return "", errors.New("spool nats: not a URL")
		}
		hosts[i] = u.Host
	}
	return "nats " + strings.Join(hosts, ","), nil
}

// fixed sums up the options that cannot change while the spool is open, but for
// its place.
func (s *Spool) fixed(key []byte) [sha256.Size]byte {
	return sha256.Sum256(append([]byte(strings.Join(s.NATS, ",")+" "), key...))
}

// key reads the key file. Errors do not quote it.
func (s *Spool) key() ([]byte, error) {
	if s.KeyFile == "" {
		return nil, nil
	}
	text, err := os.ReadFile(s.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("spool key_file %q: must be a readable file: %w", s.KeyFile, err)
	}
	key, err := hex.DecodeString(strings.TrimSpace(string(text)))
	if err != nil || len(key) != spool.KeySize {
		return nil, fmt.Errorf("spool key_file %q: must hold %d hexadecimal digits, as openssl rand -hex %d prints them", s.KeyFile, 2*spool.KeySize, spool.KeySize)
	}
	return key, nil
}

// open returns what opens the Log.
func (s *Spool) open(key []byte) func(*keeper) (spool.Log, error) {
	if len(s.NATS) > 0 {
		return func(k *keeper) (spool.Log, error) {
			return cluster.Open(k.ctx, cluster.Config{
				URLs: s.NATS, MaxSize: s.MaxSize, MaxAge: time.Duration(s.MaxAge), Key: key, OnEvent: k.reportCluster,
			})
		}
	}
	return func(k *keeper) (spool.Log, error) {
		return disk.Open(disk.Config{
			Dir: s.Dir, MaxSize: s.MaxSize, Key: key, OnEvent: k.report,
			OnCommit: func(_ int, took time.Duration) { spoolCommits.Observe(took.Seconds()) },
		})
	}
}
