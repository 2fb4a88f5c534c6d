package disk

import (
	"bytes"
	"errors"
	"maps"
	"os"
	"slices"

	bolt "go.etcd.io/bbolt"

	"github.com/td-postback/gateway/spool"
)

// This file takes what is intact out of a damaged segment.

// salvage makes a new segment of the intact records in a damaged file, which
// it renames. It looks at no page of bbolt: records that were delivered or are
// dead letters, and whose bytes are still there, come again, but for those that
// are known to be acked. It returns nil without a segment if there is none. A
// process that dies meanwhile leaves what load can go on with.
func (s *segment) salvage(acked []spool.ID, space space) (rescued *segment, err error) {
	data, err := os.ReadFile(s.path)
	if err != nil {
		return nil, err
	}
	records := s.coder.find(data)
	for _, id := range acked {
		delete(records, id)
	}
	temporary := s.path + rescuedSuffix
	if err := removeFile(temporary); err != nil { // it would take the place of the damaged file
		return nil, err
	}
	if len(records) > 0 {
		if err := fill(s.path+newSuffix, s.coder, records, space); err != nil {
			return nil, err
		}
		if err := rename(s.path+newSuffix, temporary); err != nil {
			return nil, err
		}
	}
	s.retire()
	if err := rename(s.path, s.path+damagedSuffix); err != nil && !isGone(err) {
		return nil, err
	}
	if len(records) == 0 {
		return nil, nil
	}
	if err := rename(temporary, s.path); err != nil {
		return nil, err
	}
	rescued = newSegment(s.path, s.first, s.coder)
	if found, err := rescued.load(); err == nil { // or it is tried again when its turn comes
		rescued.loaded, rescued.state, rescued.last, rescued.size = true, found.state, spool.ID(found.last), found.size
	}
	return rescued, nil
}

// fill makes a segment's file with records in it.
func fill(path string, c coder, records map[spool.ID][]byte, space space) error {
	db, err := createFile(path, c, space)
	if err != nil {
		return err
	}
	err = guard(func() error {
		return db.Update(func(tx *bolt.Tx) error {
			var st state
			bucket := tx.Bucket(recordsBucket)
			bucket.FillPercent = 1
			for _, id := range slices.Sorted(maps.Keys(records)) {
				st.live++
				st.bytes += int64(len(records[id]))
				if err := bucket.Put(keyOf(id), records[id]); err != nil {
					return err
				}
			}
			return writeState(tx, st)
		})
	})
	if err = errors.Join(err, guard(db.Close)); err != nil {
		_ = os.Remove(path)
	}
	return err
}

// find looks for intact records in the bytes of a file. bbolt never splits a
// value. It may have left what a record was before.
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
		if id, value := idIn(data), data[:size:size]; records[id] == nil || isLater(value, records[id]) {
			records[id] = value
		}
		data = data[size:]
	}
}

// isLater reports whether a value of a record took the place of another one: what was
// replayed stays so, and what is left of a request is smaller.
func isLater(value, other []byte) bool {
	if replays, did := isReplayed(value), isReplayed(other); replays != did {
		return replays
	}
	return len(value) < len(other)
}
