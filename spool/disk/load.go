package disk

import (
	"cmp"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/td-postback/gateway/spool"
)

// This file takes over what is in the directory. Each queue stands alone: one that
// cannot be read is named and tried again, and the others go on.

// load takes over what is in the Log's directory.
func (d *Disk) load() error {
	entries, err := os.ReadDir(d.cfg.Dir)
	if err != nil {
		return err
	}
	var wrongKey error
	rightKey := false
	for _, entry := range entries {
		name, ours := d.queueIn(entry)
		if !ours {
			continue
		}
		q := d.newQueue(name)
		q.next = spool.ID(time.Now().UnixMicro())
		err := q.load()
		if errors.Is(err, ErrKey) && wrongKey == nil {
			wrongKey = err
		}
		rightKey = rightKey || q.keyFits()
		d.queues[name] = q
		q.noteMissed(err)
	}
	if !rightKey {
		return wrongKey
	}
	return nil
}

// queueIn reads which queue an entry of the directory is. A directory that is none,
// but for what a file system makes in its root, is told of and left alone.
func (d *Disk) queueIn(entry os.DirEntry) (name string, ours bool) {
	path := filepath.Join(d.cfg.Dir, entry.Name())
	name, err := url.QueryUnescape(entry.Name())
	ours = err == nil && isQueueName(name) && url.QueryEscape(name) == entry.Name()
	if entry.Type()&os.ModeSymlink != 0 { // an operator may have moved it to another disk
		info, err := os.Stat(path)
		return name, ours && (err != nil || info.IsDir())
	}
	if entry.IsDir() && !ours && entry.Name() != "lost+found" {
		d.report(spool.Event{Kind: spool.Foreign, File: path})
	}
	return name, ours && entry.IsDir()
}

// isQueueName reports whether a text is the URL of a host. Its scheme may say more before
// a plus sign.
func isQueueName(name string) bool {
	u, err := url.Parse(name)
	if err != nil || u.Host == "" {
		return false
	}
	scheme := u.Scheme[strings.LastIndexByte(u.Scheme, '+')+1:]
	return scheme == "http" || scheme == "https"
}

// keyFits reports whether something in the queue was encrypted with the key.
func (q *queue) keyFits() bool {
	return slices.ContainsFunc(q.segments, func(s *segment) bool { return s.keyed })
}

// noteMissed notes that the queue could not be taken over, and tells of it once.
func (q *queue) noteMissed(err error) {
	if err != nil && q.missed == nil {
		q.disk.report(spool.Event{Kind: spool.Unreadable, Text: "a queue of the spool cannot be read now", Queue: q.name, File: q.dir, Err: err})
	}
	q.missed, q.missedAt = err, time.Now()
}

// loadLater takes over what could not be read before. Meanwhile records may have
// come.
func (q *queue) loadLater() {
	if q.missed == nil || time.Since(q.missedAt) < retryRead {
		return
	}
	q.noteMissed(q.load())
	if q.missed == nil {
		q.disk.report(spool.Event{Kind: spool.Recovered, Text: "a queue of the spool can be read again", Queue: q.name})
		notify(q.arrived)
	}
}

// load takes over the segments that are there. New records go to a new one, so
// that nothing is written to a file whose last commit may be torn.
func (q *queue) load() error {
	files, err := os.ReadDir(q.dir)
	if err != nil {
		return err
	}
	if files, err = q.finish(files); err != nil {
		return err
	}
	q.identify()
	for _, f := range files {
		first, salt, ok := parseSegmentName(f.Name())
		if !ok || q.has(first) {
			continue
		}
		c, err := newCoder(q.disk.cfg.Key, salt, q.name)
		if err != nil {
			return err
		}
		s := newSegment(filepath.Join(q.dir, f.Name()), first, c)
		if err := q.loadSegment(s); errors.Is(err, errKey) {
			return fmt.Errorf("%w: %s", ErrKey, s.path)
		}
		q.add(s)
	}
	return nil
}

// has reports whether a segment is known.
func (q *queue) has(first spool.ID) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return slices.ContainsFunc(q.segments, func(s *segment) bool { return s.first == first })
}

// unknownIDs is more than a segment has, which is one whose last ID is not known.
const unknownIDs = 1 << 32

// add puts a segment that was found in its place. Whatever the clock says, new
// records have larger IDs, in a file that begins with such a one.
func (q *queue) add(s *segment) {
	q.mu.Lock()
	defer q.mu.Unlock()
	last := s.last
	if !s.loaded {
		last = s.first + unknownIDs
	}
	if q.next = max(q.next, last+1, s.first+1); q.active != nil && q.active.first < s.first {
		q.active = nil
	}
	q.segments = append(slices.Clone(q.segments), s) // it may be in use
	slices.SortFunc(q.segments, func(a, b *segment) int { return cmp.Compare(a.first, b.first) })
}

// finish ends what the death of a process has cut short: it deletes files that
// were not finished, and lets one with rescued records take the place of the
// damaged one, if that was set aside already.
func (q *queue) finish(files []os.DirEntry) (left []os.DirEntry, err error) {
	changed := false
	for _, f := range files {
		path := filepath.Join(q.dir, f.Name())
		name, _, _ := strings.Cut(f.Name(), segmentSuffix+".")
		if _, _, ours := parseSegmentName(name + segmentSuffix); !ours {
			continue // nobody's but the operator's
		}
		if to, ok := strings.CutSuffix(path, rescuedSuffix); ok {
			if _, err := os.Lstat(to); isGone(err) {
				if err := rename(path, to); err != nil {
					return nil, err
				}
				changed = true
				continue
			}
			_ = os.Remove(path)
		}
		if strings.HasSuffix(path, newSuffix) {
			_ = os.Remove(path)
		}
	}
	if changed {
		return os.ReadDir(q.dir)
	}
	return files, nil
}
