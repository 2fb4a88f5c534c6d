package disk

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"os"
)

// This file checks what bbolt takes on trust when it opens a file: a flipped
// bit there could make it forget the last commit without a word, or recurse
// for ever, which ends the process. The layout is that of bbolt's files,
// version 2.

const (
	pageHeader = 16 // id, flags, count, overflow
	branchFlag = 1
	leafFlag   = 2

	metaSum   = 56 // offset of the checksum in a meta page
	metaRoot  = 16 // offset of the root's page id
	metaTx    = 48 // offset of the transaction id
	boltMagic = 0xED0CDAED

	branchElement = 16 // position, key size, page id
	maxDepth      = 8  // levels of branch pages; a segment has 2
)

// pageFile reads the pages of a bbolt file.
type pageFile struct {
	*os.File
	pageSize int
}

// page reads a page, with those that it runs over to.
func (p pageFile) page(id uint64) ([]byte, error) {
	b := make([]byte, p.pageSize)
	if _, err := p.ReadAt(b, int64(id)*int64(p.pageSize)); err != nil { //nolint:gosec // G115: wrong ids are not in the file
		return nil, err
	}
	if binary.NativeEndian.Uint64(b) != id {
		return nil, fmt.Errorf("%w: there is no page %d", errDamaged, id)
	}
	if overflow := binary.NativeEndian.Uint32(b[12:]); flagsOf(b) == branchFlag && overflow > 0 && overflow < 1024 {
		b = make([]byte, (1+int(overflow))*p.pageSize)
		if _, err := p.ReadAt(b, int64(id)*int64(p.pageSize)); err != nil { //nolint:gosec // G115: it was there
			return nil, err
		}
	}
	return b, nil
}

func flagsOf(page []byte) uint16 { return binary.NativeEndian.Uint16(page[8:]) }

// checkMetas checks both meta pages: with one of them damaged, bbolt goes back
// to the commit before the last. It also checks that the list of buckets is a
// single page.
func (p pageFile) checkMetas() error {
	var root, newest uint64
	for id := range uint64(2) {
		b, err := p.page(id)
		if err != nil {
			return err
		}
		meta, sum := b[pageHeader:], fnv.New64a()
		_, _ = sum.Write(meta[:metaSum])
		if binary.NativeEndian.Uint32(meta) != boltMagic || binary.NativeEndian.Uint64(meta[metaSum:]) != sum.Sum64() {
			return fmt.Errorf("%w: meta page %d", errDamaged, id)
		}
		if tx := binary.NativeEndian.Uint64(meta[metaTx:]); tx >= newest {
			root, newest = binary.NativeEndian.Uint64(meta[metaRoot:]), tx
		}
	}
	b, err := p.page(root)
	if err == nil && flagsOf(b) != leafFlag {
		err = fmt.Errorf("%w: the list of buckets", errDamaged)
	}
	return err
}

// checkTree checks that a tree of pages has no loop. It reads the branch pages
// and one leaf, few pages however large the file is.
func (p pageFile) checkTree(root uint64) error {
	if root == 0 {
		return nil // a small bucket is inside the list of buckets
	}
	above, level := map[uint64]bool{}, []uint64{root}
	for range maxDepth {
		first, err := p.page(level[0])
		if err != nil {
			return err
		}
		if flagsOf(first) == leafFlag {
			for _, id := range level {
				if above[id] {
					return fmt.Errorf("%w: page %d is above itself", errDamaged, id)
				}
			}
			return nil
		}
		var below []uint64
		for _, id := range level {
			above[id] = true
			if below, err = p.appendChildren(below, id); err != nil {
				return err
			}
		}
		level = below
	}
	return fmt.Errorf("%w: a tree of pages is too deep", errDamaged)
}

// appendChildren appends the pages below a branch page.
func (p pageFile) appendChildren(ids []uint64, branch uint64) ([]uint64, error) {
	b, err := p.page(branch)
	if err != nil {
		return nil, err
	}
	count := int(binary.NativeEndian.Uint16(b[10:]))
	if flagsOf(b) != branchFlag || count == 0 || pageHeader+count*branchElement > len(b) {
		return nil, fmt.Errorf("%w: page %d", errDamaged, branch)
	}
	for i := range count {
		ids = append(ids, binary.NativeEndian.Uint64(b[pageHeader+i*branchElement+8:]))
	}
	return ids, nil
}
