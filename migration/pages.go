package migration

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"math"
	"os"
)

// This file looks through a bbolt file before bbolt opens it. bbolt takes its pages on
// trust: a flipped bit can make it recurse for ever, which ends the process, and at
// each start again. The layout is that of bbolt's files, version 2.

const (
	filePage      = 4096 // bytes, of each file that is made here
	pageHeader    = 16   // id, flags, count, overflow
	elementHeader = 16   // leaf: flags, position, key size, value size; branch: position, key size, page id
	bucketHeader  = 16   // root page, sequence
	branchFlag    = 1
	leafFlag      = 2
	freelistFlag  = 16
	bucketFlag    = 1 // of a leaf's element
	maxDepth      = 16
	maxFile       = 1 << 30 // bytes; a report has some MB

	boltMagic   = 0xED0CDAED
	boltVersion = 2

	// In a meta page, behind the header.
	metaVersion  = 4
	metaPageSize = 8
	metaRoot     = 16
	metaFreelist = 32
	metaEnd      = 40
	metaTx       = 48
	metaSum      = 56
	metaSize     = 64
)

var errDamaged = errors.New("the file is damaged")

// checkFile reports errDamaged if bbolt might be misled by a file. One that is empty or
// missing is new.
func checkFile(path string) (isNew bool, err error) {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, os.ErrNotExist) || err == nil && info.Mode().IsRegular() && info.Size() == 0:
		return true, nil
	case err != nil:
		return false, err
	case !info.Mode().IsRegular():
		return false, fmt.Errorf("%s is no file", path)
	case info.Size() > maxFile:
		return false, fmt.Errorf("%w: it has %d bytes", errDamaged, info.Size())
	}
	file, err := os.ReadFile(path) //nolint:gosec // G304: the operator's path
	if err != nil {
		return false, err
	}
	return false, checkPages(file)
}

// checkPages looks through the bytes of a file.
func checkPages(file []byte) error {
	m, err := newestMeta(file)
	if err != nil {
		return err
	}
	c := checker{file: file, used: make([]bool, m.end)}
	var buckets []element
	list := tree{checker: &c, each: func(e element) error {
		if e.flags != bucketFlag || len(e.value) < bucketHeader {
			return fmt.Errorf("%w: a bucket", errDamaged)
		}
		buckets = append(buckets, e)
		return nil
	}}
	if err := list.page(m.root, 0); err != nil {
		return err
	}
	for _, bucket := range buckets {
		if err := c.bucket(bucket.value); err != nil {
			return err
		}
	}
	return c.freelist(m.freelist)
}

// bucket looks through a bucket. A small one is within its value.
func (c *checker) bucket(value []byte) error {
	rows := tree{checker: c, each: func(e element) error {
		if e.flags != 0 {
			return fmt.Errorf("%w: a bucket in a bucket", errDamaged)
		}
		return nil
	}}
	if root := binary.NativeEndian.Uint64(value); root != 0 {
		return rows.page(root, 0)
	}
	return rows.elements(value[bucketHeader:], 0)
}

// meta is what a meta page says: where the list of buckets and that of free pages are,
// and how many pages are in use.
type meta struct{ root, freelist, end uint64 }

// newestMeta reads the meta page of the last commit, or of the one before, if the last
// is damaged: bbolt does the same.
func newestMeta(file []byte) (m meta, err error) {
	newest, found := uint64(0), false
	for id := range 2 {
		if len(file) < (id+1)*filePage {
			break
		}
		b := file[id*filePage+pageHeader:][:metaSize]
		sum := fnv.New64a()
		_, _ = sum.Write(b[:metaSum])
		if binary.NativeEndian.Uint32(b) != boltMagic || binary.NativeEndian.Uint32(b[metaVersion:]) != boltVersion ||
			binary.NativeEndian.Uint64(b[metaSum:]) != sum.Sum64() || binary.NativeEndian.Uint32(b[metaPageSize:]) != filePage {
			continue
		}
		if tx := binary.NativeEndian.Uint64(b[metaTx:]); !found || tx > newest {
			newest, found = tx, true
			m = meta{binary.NativeEndian.Uint64(b[metaRoot:]), binary.NativeEndian.Uint64(b[metaFreelist:]), binary.NativeEndian.Uint64(b[metaEnd:])}
		}
	}
	if !found || m.end > uint64(len(file))/filePage {
		return meta{}, fmt.Errorf("%w: it is not as bbolt left it", errDamaged)
	}
	return m, nil
}

// checker looks through the pages of a file.
type checker struct {
	file []byte
	used []bool // by page
}

// tree looks through the pages of a bucket, in the order of their keys.
type tree struct {
	*checker
	each func(element) error

	last  []byte // the key before
	first []byte // what the next one has to be, of a branch
}

// element is an entry of a leaf.
type element struct {
	flags uint32
	value []byte
}

// next wants a key to be in order, and the first below a branch to be the branch's:
// bbolt would put a row or a page beside itself otherwise.
func (t *tree) next(key []byte, branch bool) error {
	if t.last != nil && bytes.Compare(key, t.last) <= 0 || t.first != nil && !bytes.Equal(key, t.first) {
		return fmt.Errorf("%w: the keys are not in order", errDamaged)
	}
	if branch {
		t.first = key
	} else {
		t.last, t.first = key, nil
	}
	return nil
}

// take reads a page, with those that it runs over to, and notes that they are in use.
func (c *checker) take(id uint64) ([]byte, error) {
	end := uint64(len(c.used))
	if id < 2 || id >= end {
		return nil, fmt.Errorf("%w: there is no page %d", errDamaged, id)
	}
	b := c.file[id*filePage:]
	pages := 1 + uint64(binary.NativeEndian.Uint32(b[12:]))
	if binary.NativeEndian.Uint64(b) != id || pages > end-id {
		return nil, fmt.Errorf("%w: page %d is another one", errDamaged, id)
	}
	for i := range pages {
		if c.used[id+i] {
			return nil, fmt.Errorf("%w: page %d is used twice", errDamaged, id+i)
		}
		c.used[id+i] = true
	}
	return b[:pages*filePage], nil
}

// freelist looks through the list of free pages, when all others are known to be used.
// A list of 65,535 pages or more begins with their number.
func (c *checker) freelist(id uint64) error {
	b, err := c.take(id)
	if err != nil {
		return err
	}
	count := uint64(binary.NativeEndian.Uint16(b[10:]))
	list := b[pageHeader:]
	if count == math.MaxUint16 {
		count, list = binary.NativeEndian.Uint64(list), list[8:]
	}
	if binary.NativeEndian.Uint16(b[8:]) != freelistFlag || count > uint64(len(list))/8 {
		return fmt.Errorf("%w: the list of free pages", errDamaged)
	}
	for i := range count {
		free := binary.NativeEndian.Uint64(list[i*8:])
		if free < 2 || free >= uint64(len(c.used)) || c.used[free] {
			return fmt.Errorf("%w: page %d is not free", errDamaged, free)
		}
		c.used[free] = true
	}
	return nil
}

// page looks through a page, and through those below it.
func (t *tree) page(id uint64, depth int) error {
	b, err := t.take(id)
	if err != nil {
		return err
	}
	if depth > maxDepth {
		return fmt.Errorf("%w: a tree of pages is too deep", errDamaged)
	}
	return t.elements(b, depth)
}

// elements looks through what is in a page.
func (t *tree) elements(page []byte, depth int) error {
	if len(page) < pageHeader {
		return fmt.Errorf("%w: a page is too short", errDamaged)
	}
	flags, count := binary.NativeEndian.Uint16(page[8:]), int(binary.NativeEndian.Uint16(page[10:]))
	branch := flags == branchFlag
	if flags != leafFlag && !branch || pageHeader+count*elementHeader > len(page) || branch && count == 0 {
		return fmt.Errorf("%w: a page is of another kind", errDamaged)
	}
	for i := range count {
		start := pageHeader + i*elementHeader
		key, e, below, ok := readElement(page, start, branch)
		if !ok {
			return fmt.Errorf("%w: a key or a value", errDamaged)
		}
		err := t.next(key, branch)
		switch {
		case err != nil:
		case branch:
			err = t.page(below, depth+1)
		default:
			err = t.each(e)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// readElement reads the element whose header is at start: its key, and of a leaf the
// rest, of a branch the page below. It is ok if the page has all of it.
func readElement(page []byte, start int, branch bool) (key []byte, e element, below uint64, ok bool) {
	header := page[start:]
	size := uint64(0) // of the value
	if branch {
		below = binary.NativeEndian.Uint64(header[8:])
	} else {
		e.flags, size = binary.NativeEndian.Uint32(header), uint64(binary.NativeEndian.Uint32(header[12:]))
		header = header[4:]
	}
	at := uint64(start) + uint64(binary.NativeEndian.Uint32(header)) //nolint:gosec // G115: a place
	keySize := uint64(binary.NativeEndian.Uint32(header[4:]))
	if keySize == 0 || at+keySize+size > uint64(len(page)) {
		return nil, e, 0, false
	}
	e.value = page[at+keySize : at+keySize+size]
	return page[at : at+keySize], e, below, true
}
