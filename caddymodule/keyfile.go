package caddymodule

import (
	"bytes"
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

	// restlessLooks is how many looks in a row must each see something else, until a
	// file counts that does not stay.
	restlessLooks = 3

	// maxRestlessKeys is how many keys may add up while a file does not stay.
	maxRestlessKeys = 1 << 20

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
	settled *postback.KeyList // of the file when it last stayed as it was
	current glimpse           // that settled is of
	last    glimpse
	trouble glimpse // that cannot be used, and why
	because string
	told    time.Time // when it was told

	restless int               // so many looks in a row have each seen something else
	same     int               // so many of them have read the same keys as the one before
	latest   *postback.KeyList // what the last one has read, or nil
}

// glimpse is what a look at a file has seen.
type glimpse struct {
	sum     uint64 // of its bytes
	size    int64
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
	list, seen, err := f.read(false)
	if err != nil {
		return nil, err
	}
	f.list.Store(list)
	f.settled, f.current, f.last = list, seen, seen
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
		f.takeRestless(now.size > before.size)
	case now == f.current:
		f.restless = 0
		f.list.Store(f.settled) // it may not have stayed meanwhile
		f.trouble, f.because = glimpse{}, ""
	case now != f.trouble:
		f.restless = 0
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
		list, read, err := f.read(false)
		if read != seen {
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

// restlessFile is told of a file that does not stay as it is.
const restlessFile = "it changes all the time: its keys count, and so do those of before, until it stays as it is for a second"

// takeRestless takes over what a file has that does not stay for two looks: its keys
// count, and so do those of before, as it may be half written. If the keys stay, and only
// the rest does not, such as the time in it, they are all.
func (f *keyFile) takeRestless(grows bool) {
	before := f.latest
	list, _, err := f.read(true)
	f.latest = list
	f.restless++
	f.same++
	if err != nil || grows || before == nil || !list.Equal(before) {
		f.same = 0
	}
	switch {
	case err != nil:
	case f.same == restlessLooks-1:
		f.list.Store(list)
		f.settled, f.current, f.trouble, f.because = list, glimpse{}, glimpse{}, ""
	case f.restless >= restlessLooks && f.same < restlessLooks-1:
		both := f.list.Load().With(list)
		if both.Len() > maxRestlessKeys {
			both = f.settled.With(list)
		}
		f.list.Store(both)
		f.trouble, f.because = glimpse{}, restlessFile
	}
}

// use lets a list count.
func (f *keyFile) use(list *postback.KeyList, seen glimpse) {
	f.list.Store(list)
	f.settled, f.current, f.trouble, f.because = list, seen, glimpse{}, ""
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
	return glimpse{sum: hash.Sum64(), size: size}
}

// read reads the keys of the file, all or none; with whole, those of whole lines. What
// it has seen is right also after an error that is about the text.
func (f *keyFile) read(whole bool) (list *postback.KeyList, seen glimpse, err error) {
	text, err := readKeyFile(f.path)
	if err != nil {
		return nil, glimpse{}, err
	}
	defer clear(text) // it has keys
	seen = glimpse{sum: maphash.Bytes(f.seed, text), size: int64(len(text))}
	lines := text
	if whole {
		lines = text[:bytes.LastIndexByte(text, '\n')+1]
	}
	list, err = postback.ReadKeyList(lines)
	return list, seen, err
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
