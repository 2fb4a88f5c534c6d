package disk

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"

	bolt "go.etcd.io/bbolt"

	"github.com/td-postback/gateway/spool"
)

// This file takes what is intact out of a damaged segment.

// salvage makes a new segment of the intact records in a damaged file, which
// it renames. It looks at no page of bbolt: records that were delivered, and
// whose bytes are still there, come again, but for those that are known to be
// acked. It returns nil without a segment if
// there is none.
func (s *segment) salvage(acked map[spool.ID]bool, space space) (rescued *segment, err error) {
	data, err := os.ReadFile(s.path)
	if err != nil {
		return nil, err
	}
	records := s.coder.find(data)
	for id := range acked {
		delete(records, id)
	}
	rescued = newSegment(s.path, s.first, s.coder)
	temporary := s.path + ".new"
	if len(records) > 0 {
		_ = os.Remove(temporary) // of a try that was cut short
		if err := rescued.fill(temporary, records, space); err != nil {
			return nil, errors.Join(err, os.Remove(temporary))
		}
	}
	s.retire()
	if err := os.Rename(s.path, s.path+damagedSuffix); err != nil {
		return nil, err
	}
	if len(records) == 0 {
		return nil, syncDir(filepath.Dir(s.path))
	}
	if err := errors.Join(os.Rename(temporary, s.path), syncDir(filepath.Dir(s.path))); err != nil {
		return nil, err
	}
	rescued.found, err = rescued.load()
	rescued.loaded, rescued.counted = err == nil, rescued.size
	return rescued, err
}

// fill makes the segment's file under another name, with records in it.
func (s *segment) fill(path string, records map[spool.ID][]byte, space space) error {
	if err := s.create(path, space); err != nil {
		return err
	}
	err := s.withDB(func() error {
		return s.db.Update(func(tx *bolt.Tx) error {
			var st state
			for id, value := range records {
				st.live++
				st.bytes += int64(len(value))
				if err := tx.Bucket(recordsBucket).Put(keyOf(id), value); err != nil {
					return err
				}
			}
			return writeState(tx, st)
		})
	})
	return errors.Join(err, s.close())
}

// find looks for intact records in the bytes of a file. bbolt never splits a
// value.
func (c coder) find(data []byte) map[spool.ID][]byte {
	records := map[spool.ID][]byte{}
	for {
		at := bytes.Index(data, []byte(magic))
		if at < 0 {
			return records
		}
		data = data[at:]
		size := c.size(data)
		if size == 0 {
			data = data[1:]
			continue
		}
		records[idIn(data)] = data[:size]
		data = data[size:]
	}
}
