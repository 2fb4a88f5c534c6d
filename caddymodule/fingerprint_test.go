package caddymodule

import (
	"context"
	"errors"
	"io/fs"
	"regexp"
	"strings"
	"sync"
	"testing"
)

// memoryStorage is Caddy's storage in memory.
type memoryStorage struct {
	lock   sync.Mutex
	mu     sync.Mutex
	values map[string][]byte
	stored int

	loadErr, lockErr, storeErr error
}

func (s *memoryStorage) Lock(context.Context, string) error {
	if s.lockErr != nil {
		return s.lockErr
	}
	s.lock.Lock()
	return nil
}

func (s *memoryStorage) Unlock(context.Context, string) error {
	s.lock.Unlock()
	return nil
}

func (s *memoryStorage) Load(_ context.Context, name string) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if value, ok := s.values[name]; ok || s.loadErr != nil {
		return value, s.loadErr
	}
	return nil, fs.ErrNotExist
}

func (s *memoryStorage) Store(_ context.Context, name string, value []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.storeErr != nil {
		return s.storeErr
	}
	if s.values == nil {
		s.values = map[string][]byte{}
	}
	s.values[name] = value
	s.stored++
	return nil
}

// TestFingerprints: gateways that share a storage agree on the names of keys, also if
// they start at the same time, and others have other names.
func TestFingerprints(t *testing.T) {
	var shared memoryStorage
	names := make([]string, 20)
	var gateways sync.WaitGroup
	for n := range names {
		gateways.Go(func() { names[n] = newFingerprints(&shared).of(benchKey) })
	}
	gateways.Wait()
	if !regexp.MustCompile(`^1234/#[0-9a-f]{10}$`).MatchString(names[0]) {
		t.Errorf("got %s", names[0])
	}
	for _, name := range names {
		if name != names[0] {
			t.Errorf("got %s and %s", name, names[0])
		}
	}
	if shared.stored != 1 {
		t.Errorf("the secret was made %d times", shared.stored)
	}
	if other := newFingerprints(new(memoryStorage)).of(benchKey); other == names[0] {
		t.Errorf("another installation has %s too", other)
	}
	f := newFingerprints(&shared)
	if f.of("1234/ab") == f.of("1234/ac") || !strings.HasPrefix(f.of("YOUR_KEY"), "#") || f.of("") != "" {
		t.Errorf("got %s, %s, %s, %q", f.of("1234/ab"), f.of("1234/ac"), f.of("YOUR_KEY"), f.of(""))
	}
}

// TestFingerprintsWithoutStorage: without a storage that can be used, keys have names
// that stay as long as the process runs, and nothing is overwritten.
func TestFingerprintsWithoutStorage(t *testing.T) {
	broken := errors.New("broken")
	want := ""
	for name, in := range map[string]*memoryStorage{
		"it cannot be read":    {loadErr: broken},
		"it cannot be locked":  {lockErr: broken},
		"it cannot be written": {storeErr: broken},
		"it is damaged":        {values: map[string][]byte{secretName: []byte("x")}},
		"it is too short":      {values: map[string][]byte{secretName: []byte("0123\n")}},
	} {
		if _, err := installationSecret(t.Context(), in); err == nil {
			t.Errorf("%s: no error", name)
		}
		got := newFingerprints(in).of(benchKey)
		if want == "" {
			want = got
		}
		if got != want || in.stored > 0 {
			t.Errorf("%s: got %s, want %s; stored %d times", name, got, want, in.stored)
		}
	}
}
