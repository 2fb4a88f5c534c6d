package disk

import (
	"bytes"
	"cmp"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/td-postback/gateway/spool"
)

// This file gives each record a name that no other one has, on whatever machine: v2
// drops a second record of the same name, without a word. It is made of
//
//   - the queue's namespace: 128 random bits, in a file of its directory
//   - the salt of the segment: 64 random bits, in its file's name. A copy of the
//     directory gives out the same records under the same names. What comes to it
//     later is in a file of its own, as each process makes new ones
//   - the arrival: a machine that goes back to what was in its memory writes the same
//     IDs to the same file again
//   - the ID
//
// None of that changes when a file is made smaller or salvaged, or when a letter is
// replayed. Nothing of it is secret.

// namespaceName is the file's name in a queue's directory.
const namespaceName = "namespace"

// namespaceSize is how long the file is, in bytes: hex digits, and a line feed.
const namespaceSize = 2*len(namespace{}) + 1

// namespace names a queue among all queues, or a segment among all segments. The
// zero one says that there is no name: then records do without.
type namespace [16]byte

func (n namespace) text() []byte { return fmt.Appendf(nil, "%x\n", n[:]) }

// parseNamespace is text the other way round.
func parseNamespace(text []byte) (n namespace, ok bool) {
	if len(text) != namespaceSize {
		return n, false
	}
	_, err := hex.Decode(n[:], text[:namespaceSize-1])
	return n, err == nil && n != namespace{} && bytes.Equal(n.text(), text)
}

// of is what a segment's record has beside its ID.
func (n namespace) of(r spool.Record) [16]byte {
	if n != (namespace{}) {
		last := n[8:]
		binary.BigEndian.PutUint64(last, binary.BigEndian.Uint64(last)^uint64(r.Arrival.UnixMilli()))
	}
	return n
}

// namespaceOf is that of a segment.
func (q *queue) namespaceOf(s *segment) (n namespace) {
	q.mu.Lock()
	own := q.namespace
	q.mu.Unlock()
	if own == n {
		return n
	}
	sum := sha256.Sum256(append(own[:], s.coder.salt...))
	return namespace(sum[:len(n)])
}

// identify takes over the queue's namespace, or makes one. If that fails, records go
// on without: it is tried again.
func (q *queue) identify() {
	path := filepath.Join(q.dir, namespaceName)
	q.mu.Lock()
	known := q.namespace
	q.mu.Unlock()
	n, problem := readNamespace(path)
	err := problem
	if errors.Is(problem, errDamaged) || isGone(problem) {
		n = cmp.Or(known, newNamespace())
		err = writeNamespace(path, n)
	}
	switch {
	case known != namespace{}:
		return // this process stays with it
	case err != nil:
		q.tellUnnamed(q.unnamedAt.IsZero(), "", err)
		q.unnamedAt = time.Now()
		return
	}
	q.tellUnnamed(errors.Is(problem, errDamaged), "the name of a queue of the spool was damaged: it has a new one", problem)
	q.unnamedAt = time.Time{}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.namespace = n
}

// identifyLater tries again what has failed before.
func (q *queue) identifyLater() {
	if !q.unnamedAt.IsZero() && time.Since(q.unnamedAt) > retryRead {
		q.identify()
	}
}

func (q *queue) tellUnnamed(tell bool, text string, err error) {
	if tell {
		q.disk.report(spool.Event{Kind: spool.Unnamed, Text: text, Queue: q.name, File: filepath.Join(q.dir, namespaceName), Err: err})
	}
}

func newNamespace() (n namespace) {
	_, _ = rand.Read(n[:]) // never fails
	return n
}

func readNamespace(path string) (n namespace, err error) {
	info, err := os.Stat(path)
	if err != nil {
		return n, err
	}
	if !info.Mode().IsRegular() { // a pipe would never be read
		return n, fmt.Errorf("%s is no file", path)
	}
	f, err := os.Open(path) //nolint:gosec // G304: the spool's own
	if err != nil {
		return n, err
	}
	text, err := io.ReadAll(io.LimitReader(f, int64(namespaceSize)+1))
	if err := errors.Join(err, f.Close()); err != nil {
		return n, err
	}
	n, ok := parseNamespace(text)
	if !ok {
		return n, fmt.Errorf("%w: %s", errDamaged, path)
	}
	return n, nil
}

// writeNamespace makes the file. Whenever the process dies, there is all of it, or
// what was there before.
func writeNamespace(path string, n namespace) error {
	f, err := os.OpenFile(path+newSuffix, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600) //nolint:gosec // G304: the spool's own
	if err != nil {
		return err
	}
	_, err = f.Write(n.text())
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = rename(path+newSuffix, path)
	}
	if err != nil {
		return errors.Join(err, removeFile(path+newSuffix))
	}
	return nil
}
