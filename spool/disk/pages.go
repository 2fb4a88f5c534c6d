package disk

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"io"
	"os"
)

// This file reads the pages of a bbolt file without bbolt, which takes them on
// trust: a flipped bit could make it forget the last commit without a word,
// write over a record, or recurse for ever, which ends the process. So a file
// is checked before bbolt opens it. The layout is that of bbolt's files,
// version 2, in which an element's key and value lie right behind those of the
// element before.

const (
	pageHeader    = 16 // id, flags, count, overflow
	elementHeader = 16 // leaf: flags, position, key size, value size; branch: position, key size, page id
	bucketHeader  = 16 // root page, sequence

	branchFlag   = 1
	leafFlag     = 2
	freelistFlag = 16
	bucketFlag   = 1 // of a leaf's element

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

	maxDepth  = 8         // levels of pages; a segment has 3
	readAhead = 256 << 10 // bytes
)

// pages reads a bbolt file.
type pages struct {
	file      io.ReaderAt
	size      int64
	pageSize  uint64
	root      uint64 // page of the list of buckets
	freelist  uint64
	end       uint64 // the first page that is not in use
	readAhead int

	window   []byte // read last
	windowAt uint64
}

// openPages opens a file. It must be closed.
func openPages(path string) (*pages, *os.File, error) {
	f, err := os.Open(path) //nolint:gosec // G304: the spool's own
	if err != nil {
		return nil, nil, err
	}
	info, err := f.Stat()
	if err == nil {
		var p *pages
		if p, err = newPages(f, info.Size()); err == nil {
			return p, f, nil
		}
	}
	_ = f.Close()
	return nil, nil, err
}

// newPages reads both meta pages: with one of them damaged, bbolt goes back to
// the commit before the last.
func newPages(file io.ReaderAt, size int64) (*pages, error) {
	p := &pages{file: file, size: size, pageSize: 1}
	var newest uint64
	for id := range uint64(2) {
		b := make([]byte, metaSize)
		if _, err := file.ReadAt(b, int64(id*p.pageSize)+pageHeader); err != nil { //nolint:gosec // G115: less than 1 MiB
			return nil, shortFile(err)
		}
		sum := fnv.New64a()
		_, _ = sum.Write(b[:metaSum])
		if binary.NativeEndian.Uint32(b) != boltMagic || binary.NativeEndian.Uint32(b[metaVersion:]) != boltVersion ||
			binary.NativeEndian.Uint64(b[metaSum:]) != sum.Sum64() {
			return nil, fmt.Errorf("%w: meta page %d", errDamaged, id)
		}
		p.pageSize = uint64(binary.NativeEndian.Uint32(b[metaPageSize:]))
		if p.pageSize < 512 || p.pageSize > 1<<20 {
			return nil, fmt.Errorf("%w: pages of %d bytes", errDamaged, p.pageSize)
		}
		if tx := binary.NativeEndian.Uint64(b[metaTx:]); tx >= newest {
			newest = tx
			p.root = binary.NativeEndian.Uint64(b[metaRoot:])
			p.freelist = binary.NativeEndian.Uint64(b[metaFreelist:])
			p.end = binary.NativeEndian.Uint64(b[metaEnd:])
		}
	}
	if p.end > uint64(size)/p.pageSize { //nolint:gosec // G115: a size
		return nil, fmt.Errorf("%w: the file is shorter than its pages", errDamaged)
	}
	return p, nil
}

// shortFile makes damage of the end of a file.
func shortFile(err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF { //nolint:errorlint // ReadAt does not wrap them
		return fmt.Errorf("%w: the file is too short", errDamaged)
	}
	return err
}

// read reads so many pages. They are good until the next read.
func (p *pages) read(id, n uint64) ([]byte, error) {
	if id < 2 || id >= p.end || n > p.end-id {
		return nil, fmt.Errorf("%w: there is no page %d", errDamaged, id)
	}
	at, size := id*p.pageSize, n*p.pageSize
	if at < p.windowAt || at+size > p.windowAt+uint64(len(p.window)) {
		ahead := min(max(size, uint64(p.readAhead)), p.end*p.pageSize-at) //nolint:gosec // G115: a size
		if uint64(cap(p.window)) < ahead {
			p.window = make([]byte, ahead)
		}
		p.window, p.windowAt = p.window[:ahead], at
		if _, err := p.file.ReadAt(p.window, int64(at)); err != nil { //nolint:gosec // G115: it is within the file
			p.window = p.window[:0]
			return nil, shortFile(err)
		}
	}
	return p.window[at-p.windowAt:][:size:size], nil
}

// page reads a page, with those that it runs over to.
func (p *pages) page(id uint64) ([]byte, error) {
	b, err := p.read(id, 1)
	if err != nil {
		return nil, err
	}
	if binary.NativeEndian.Uint64(b) != id {
		return nil, fmt.Errorf("%w: page %d is another one", errDamaged, id)
	}
	if overflow := binary.NativeEndian.Uint32(b[12:]); overflow > 0 {
		return p.read(id, 1+uint64(overflow))
	}
	return b, nil
}

func flagsOf(page []byte) uint16 { return binary.NativeEndian.Uint16(page[8:]) }

func countOf(page []byte) int { return int(binary.NativeEndian.Uint16(page[10:])) }

// element is an entry of a branch or leaf page.
type element struct {
	flags      uint32
	key, value []byte // value, of a leaf
	child      uint64 // of a branch
	room       []byte // of a leaf: the page from the value on
}

// appendElements appends what is in a branch or leaf page.
func appendElements(elements []element, page []byte) ([]element, error) {
	if len(page) < pageHeader || flagsOf(page) != leafFlag && flagsOf(page) != branchFlag {
		return nil, fmt.Errorf("%w: a page is of another kind", errDamaged)
	}
	branch, count := flagsOf(page) == branchFlag, countOf(page)
	at := uint64(pageHeader + count*elementHeader) //nolint:gosec // G115: at most 16 bits
	if at > uint64(len(page)) || branch && count == 0 {
		return nil, fmt.Errorf("%w: a page has no room for its elements", errDamaged)
	}
	for i := range count {
		start := pageHeader + i*elementHeader
		header := page[start:]
		var e element
		var size uint64 // of the value
		if branch {
			e.child = binary.NativeEndian.Uint64(header[8:])
		} else {
			e.flags = binary.NativeEndian.Uint32(header)
			size = uint64(binary.NativeEndian.Uint32(header[12:]))
			header = header[4:]
		}
		position, keySize := uint64(binary.NativeEndian.Uint32(header)), uint64(binary.NativeEndian.Uint32(header[4:]))
		if uint64(start)+position != at || keySize == 0 || keySize+size > uint64(len(page))-at {
			return nil, fmt.Errorf("%w: an element of a page", errDamaged)
		}
		e.key = page[at : at+keySize]
		e.room = page[at+keySize:]
		e.value = e.room[:size:size]
		if i > 0 && bytes.Compare(elements[len(elements)-1].key, e.key) >= 0 {
			return nil, fmt.Errorf("%w: the elements of a page are not in order", errDamaged)
		}
		elements = append(elements, e)
		at += keySize + size
	}
	return elements, nil
}

// bucketPages is where a bucket is.
type bucketPages struct {
	root   uint64 // or 0
	inline []byte // its only page
}

// buckets reads the list of buckets.
func (p *pages) buckets() (map[string]bucketPages, error) {
	b, err := p.page(p.root)
	if err != nil {
		return nil, err
	}
	list, err := appendElements(nil, bytes.Clone(b))
	if err != nil || flagsOf(b) != leafFlag {
		return nil, fmt.Errorf("%w: the list of buckets", errDamaged)
	}
	buckets := map[string]bucketPages{}
	for _, e := range list {
		if e.flags != bucketFlag || len(e.value) < bucketHeader {
			return nil, fmt.Errorf("%w: a bucket", errDamaged)
		}
		buckets[string(e.key)] = bucketPages{root: binary.NativeEndian.Uint64(e.value), inline: e.value[bucketHeader:]}
	}
	for _, name := range [][]byte{recordsBucket, deadBucket, stateBucket} {
		if _, ok := buckets[string(name)]; !ok || len(buckets) != 3 {
			return nil, fmt.Errorf("%w: a bucket is missing", errDamaged)
		}
	}
	return buckets, nil
}

// top reads the first page of a bucket.
func (p *pages) top(b bucketPages) ([]byte, error) {
	if b.root != 0 {
		return p.page(b.root)
	}
	if len(b.inline) < pageHeader || flagsOf(b.inline) != leafFlag {
		return nil, fmt.Errorf("%w: a bucket", errDamaged)
	}
	return b.inline, nil
}

// edge finds the first element of a bucket, or the last. It is zero if the
// bucket is empty.
func (p *pages) edge(b bucketPages, last bool) (element, error) {
	page, err := p.top(b)
	for range maxDepth {
		if err != nil {
			return element{}, err
		}
		var all []element
		if all, err = appendElements(nil, page); err != nil || len(all) == 0 {
			return element{}, err
		}
		e := all[0]
		if last {
			e = all[len(all)-1]
		}
		if flagsOf(page) == leafFlag {
			return e, nil
		}
		page, err = p.page(e.child)
	}
	return element{}, fmt.Errorf("%w: a tree of pages is too deep", errDamaged)
}

// found is what is in a segment.
type found struct {
	state
	size  int64  // of the file
	check []byte // tells the key; nil if that is not known
	keyed bool   // it is the Log's
	last  uint64
}

// peek reads what a segment knows of itself, in few pages however large it is.
// first is its first record, good until the next read.
func (p *pages) peek() (f found, first []byte, err error) {
	f.size = p.size
	buckets, err := p.buckets()
	if err != nil {
		return f, nil, err
	}
	if err := p.readState(&f, buckets[string(stateBucket)]); err != nil {
		return f, nil, err
	}
	records := buckets[string(recordsBucket)]
	e, err := p.edge(records, true)
	if err != nil {
		return f, nil, err
	}
	f.last = uint64(idOf(e.key))
	e, err = p.edge(records, false)
	return f, e.value, err
}

// readState reads the counts of a segment. One of the first version does not say
// how many bytes its dead letters have: until it is written to, they count as large
// as the others.
func (p *pages) readState(f *found, b bucketPages) error {
	page, err := p.top(b)
	if err != nil {
		return err
	}
	values := map[string][]byte{}
	all, err := appendElements(nil, page)
	for _, e := range all {
		values[string(e.key)] = e.value
	}
	if err != nil {
		return err
	}
	f.check = decodeCheck(values[string(checkKey)])
	if f.state, err = decodeState(values[string(stateKey)]); err != nil || f.decodeDead(values[string(deadKey)]) || f.dead == 0 {
		return err
	}
	f.deadBytes = f.bytes / int64(max(1, f.live+f.dead)) * int64(f.dead)
	return nil
}

// check reads the whole file. It returns errDamaged if the file's structure would
// mislead bbolt, or if an intact record stands under another key than its own. It
// does not look for damaged records.
func (p *pages) check(c coder) error {
	p.readAhead = readAhead
	want, _, err := p.peek()
	if err != nil {
		return err
	}
	buckets, err := p.buckets()
	if err != nil {
		return err
	}
	k := checker{pages: p, coder: c, used: make([]bool, p.end)}
	root, err := p.page(p.root)
	if err := k.use(p.root, root, err); err != nil {
		return err
	}
	for name, b := range buckets {
		k.fits = map[string]func(element) bool{
			string(recordsBucket): k.recordFits, string(deadBucket): deathFits, string(stateBucket): func(element) bool { return true },
		}[name]
		if err := k.bucket(b); err != nil {
			return err
		}
		switch name {
		case string(recordsBucket):
			k.found.live, k.found.bytes = k.elements, k.bytes
		case string(deadBucket):
			k.found.dead = k.elements
		}
		k.elements, k.bytes = 0, 0
	}
	k.found.deadBytes = want.deadBytes // to which records they belong is not looked at
	if k.found.live -= k.found.dead; k.found != want.state {
		return fmt.Errorf("%w: records are missing", errDamaged)
	}
	return k.checkFreelist()
}

// checker goes through all pages of a file.
type checker struct {
	*pages
	coder coder
	used  []bool // by page
	found state

	fits     func(element) bool // whether an element can be in the bucket
	elements int                // of the bucket
	bytes    int64              // of their values
	buffer   []element
}

// use notes that a page that was read, and those that it runs over to, are in
// use.
func (k *checker) use(id uint64, page []byte, err error) error {
	if err != nil {
		return err
	}
	for n := range uint64(len(page)) / k.pageSize {
		if k.used[id+n] {
			return fmt.Errorf("%w: page %d is used twice", errDamaged, id+n)
		}
		k.used[id+n] = true
	}
	return nil
}

func (k *checker) bucket(b bucketPages) error {
	if b.root != 0 {
		return k.tree(b.root, nil, nil, maxDepth)
	}
	page, err := k.top(b)
	if err != nil {
		return err
	}
	return k.leaf(page, nil, nil)
}

// tree checks a page and those below. Their keys are at least low and less than
// high, where these are given.
func (k *checker) tree(id uint64, low, high []byte, depth int) error {
	page, err := k.page(id)
	if err := k.use(id, page, err); err != nil {
		return err
	}
	if flagsOf(page) == leafFlag {
		return k.leaf(page, low, high)
	}
	children, err := appendElements(nil, bytes.Clone(page))
	if err != nil {
		return err
	}
	if depth == 0 || !within(children, low, high) {
		return fmt.Errorf("%w: page %d", errDamaged, id)
	}
	for i, e := range children {
		end := high
		if i+1 < len(children) {
			end = children[i+1].key
		}
		if err := k.tree(e.child, e.key, end, depth-1); err != nil {
			return err
		}
	}
	return nil
}

// within reports whether keys are in their bounds.
func within(elements []element, low, high []byte) bool {
	if len(elements) == 0 {
		return true
	}
	return bytes.Compare(elements[0].key, low) >= 0 && (high == nil || bytes.Compare(elements[len(elements)-1].key, high) < 0)
}

func (k *checker) leaf(page, low, high []byte) (err error) {
	if k.buffer, err = appendElements(k.buffer[:0], page); err != nil {
		return err
	}
	if !within(k.buffer, low, high) {
		return fmt.Errorf("%w: the keys of a page", errDamaged)
	}
	for _, e := range k.buffer {
		if e.flags != 0 || !k.fits(e) {
			return fmt.Errorf("%w: an element of a page", errDamaged)
		}
		k.elements++
		k.bytes += int64(len(e.value))
	}
	return nil
}

// recordFits reports whether an element keeps its record: not if this is
// intact, but has another ID or another length than the element says.
func (k *checker) recordFits(e element) bool {
	if len(e.key) != 8 {
		return false
	}
	if len(e.value) >= dataStart && lengthIn(e.value) == len(e.value) && idIn(e.value) == idOf(e.key) {
		return true
	}
	return k.coder.size(e.room) == 0
}

func deathFits(e element) bool {
	d, err := decodeDeath(e.value)
	return err == nil && len(e.key) == 8 && d.id == idOf(e.key)
}

// checkFreelist checks that no page is given away that is in use.
func (k *checker) checkFreelist() error {
	page, err := k.page(k.freelist)
	if err := k.use(k.freelist, page, err); err != nil {
		return err
	}
	count, ids := uint64(countOf(page)), page[pageHeader:] //nolint:gosec // G115: 16 bits
	if count == 0xFFFF && len(ids) >= 8 {
		count, ids = binary.NativeEndian.Uint64(ids), ids[8:]
	}
	if flagsOf(page) != freelistFlag || count > uint64(len(ids)/8) {
		return fmt.Errorf("%w: the list of free pages", errDamaged)
	}
	var last uint64 = 1
	for i := range count {
		id := binary.NativeEndian.Uint64(ids[i*8:])
		if id <= last || id >= k.end || k.used[id] {
			return fmt.Errorf("%w: the list of free pages", errDamaged)
		}
		last = id
	}
	return nil
}
