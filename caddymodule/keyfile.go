package caddymodule

import (
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/td-postback/gateway/postback"
)

// This file follows a file of write keys. Files are looked at, and not watched: a
// watch does not see what a volume of Kubernetes or a network file system does.

const (
	// keyFilePause is how long it is between two looks at a file. What has changed
	// counts when two looks in a row see the same: then nobody is still writing it.
	keyFilePause = 500 * time.Millisecond

	// maxKeyFile is the largest file, in bytes: about a million keys.
	maxKeyFile = 64 << 20
)

// keyFiles has the files that configurations follow, by their paths. A reload goes on
// with the same.
var keyFiles = caddy.NewUsagePool()

// keyFile is a file of keys.
type keyFile struct {
	path string
	list atomic.Pointer[postback.KeyList]
	stop chan struct{}

	seed    maphash.Seed
	current glimpse // that list is of
	last    glimpse
	trouble glimpse // that cannot be used, and why
	because string
	told    time.Time // when it was told
}

// glimpse is what a look at a file has seen.
type glimpse struct {
	sum     uint64 // of its bytes
	problem string // why they cannot be read
}

// followKeyFile begins to follow a file, unless it is followed already. The file must
// be good then; later, what is wrong with it changes nothing.
func followKeyFile(name string) (*keyFile, error) {
	path, err := filepath.Abs(name)
	if err != nil {
		return nil, err
	}
	value, _, err := keyFiles.LoadOrNew(path, func() (caddy.Destructor, error) {
		f, err := newKeyFile(path)
		if err != nil {
			return nil, err
		}
		go f.follow()
		return f, nil
	})
	if err != nil {
		return nil, err
	}
	return value.(*keyFile), nil //nolint:forcetypeassert // it has nothing else
}

// leave ends following, if nobody else does.
func (f *keyFile) leave() { _, _ = keyFiles.Delete(f.path) }

// Destruct ends following.
func (f *keyFile) Destruct() error {
	close(f.stop)
	return nil
}

// newKeyFile reads a file for the first time.
func newKeyFile(path string) (*keyFile, error) {
	f := &keyFile{path: path, stop: make(chan struct{}), seed: maphash.MakeSeed()}
	list, sum, err := f.read()
	if err != nil {
		return nil, err
	}
	f.list.Store(list)
	f.current = glimpse{sum: sum}
	f.last = f.current
	return f, nil
}

// follow looks at the file again and again.
func (f *keyFile) follow() {
	ticker := time.NewTicker(keyFilePause)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			f.look()
		case <-f.stop:
			return
		}
	}
}

// look looks at the file, and takes it over when it has changed and stays as it is.
func (f *keyFile) look() {
	now, before := f.glimpse(), f.last
	f.last = now
	switch {
	case now != before: // it may be half written, or gone for a moment
		return
	case now == f.current:
		f.trouble, f.because = glimpse{}, ""
	case now != f.trouble:
		f.take(now)
	}
	if f.because != "" && time.Since(f.told) >= warningPause {
		f.told = time.Now()
		caddy.Log().Named(handlerID).Warn("the file of write keys cannot be used: those of before count",
			zap.String("file", f.path), zap.String("error", f.because),
			zap.String("advice", "mend the file, or put the one of before back: one key a line, or sha256: and its hash; write a new file beside it and rename it, so that it is never half written"))
	}
}

// take takes over what two looks have seen, or says why not.
func (f *keyFile) take(seen glimpse) {
	problem := seen.problem
	if problem == "" {
		list, sum, err := f.read()
		if sum != seen.sum {
			return // it has changed since, or is gone: the next looks see to it
		}
		if err == nil {
			f.use(list, seen)
			return
		}
		problem = err.Error()
	}
	f.trouble, f.because, f.told = seen, problem, time.Time{} // it is told at once
}

// use lets a list count.
func (f *keyFile) use(list *postback.KeyList, seen glimpse) {
	f.list.Store(list)
	f.current, f.trouble, f.because = seen, glimpse{}, ""
	caddy.Log().Named(handlerID).Info("the file of write keys has changed", zap.String("file", f.path), zap.Int("keys", list.Len()))
}

// glimpse looks at the file's bytes, and keeps none of them.
func (f *keyFile) glimpse() glimpse {
	file, err := openKeyFile(f.path)
	if err != nil {
		return glimpse{problem: err.Error()}
	}
	defer func() { _ = file.Close() }() // it was only read
	hash := new(maphash.Hash)
	hash.SetSeed(f.seed)
	size, err := io.Copy(hash, io.LimitReader(file, maxKeyFile+1))
	if err == nil && size > maxKeyFile {
		err = errLargeKeyFile
	}
	if err != nil {
		return glimpse{problem: withoutPath(err).Error()}
	}
	return glimpse{sum: hash.Sum64()}
}

// read reads the keys of the file, all or none. The sum is of its bytes, also after an
// error that is about them.
func (f *keyFile) read() (list *postback.KeyList, sum uint64, err error) {
	text, err := readKeyFile(f.path)
	if err != nil {
		return nil, 0, err
	}
	defer clear(text) // it has keys
	list, err = postback.ReadKeyList(text)
	return list, maphash.Bytes(f.seed, text), err
}

var errLargeKeyFile = fmt.Errorf("it has more than %d bytes", maxKeyFile)

func readKeyFile(path string) ([]byte, error) {
	file, err := openKeyFile(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }() // it was only read
	text, err := io.ReadAll(io.LimitReader(file, maxKeyFile+1))
	if err != nil {
		return nil, withoutPath(err)
	}
	if len(text) > maxKeyFile {
		return nil, errLargeKeyFile
	}
	return text, nil
}

// openKeyFile opens a file, if it is one: a pipe would hold up the start for ever.
func openKeyFile(path string) (*os.File, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, withoutPath(err)
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("it is no regular file")
	}
	file, err := os.Open(path) //nolint:gosec // G304: the operator names it
	return file, withoutPath(err)
}

// withoutPath is an error without the path that it is about: its reader has that, and
// it may be a key that was meant for another option.
func withoutPath(err error) error {
	if of, ok := errors.AsType[*fs.PathError](err); ok {
		return of.Err
	}
	return err
}
