package disk

import (
	"errors"
	"os"
	"path/filepath"
)

// Look counts what a directory holds that no Log has open, and changes nothing.
// ErrLocked says that one has. Files that cannot be read count as nothing.
func Look(dir string) (records, dead int, err error) {
	held, err := holdDir(dir)
	if err != nil {
		return 0, 0, err
	}
	if held != nil {
		defer held.Close() //nolint:errcheck // it was only locked
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, 0, err
	}
	d := &Disk{cfg: Config{Dir: dir}}
	for _, entry := range entries {
		if _, ours := d.queueIn(entry); !ours {
			continue
		}
		files, readErr := os.ReadDir(filepath.Join(dir, entry.Name()))
		err = errors.Join(err, readErr)
		for _, f := range files {
			st, fileErr := peekAt(filepath.Join(dir, entry.Name(), f.Name()))
			err = errors.Join(err, fileErr)
			records, dead = records+st.live, dead+st.dead
		}
	}
	return records, dead, err
}

// peekAt reads what a segment's file knows of itself, if it is one.
func peekAt(path string) (state, error) {
	if _, _, ours := parseSegmentName(filepath.Base(path)); !ours {
		return state{}, nil
	}
	p, f, err := openPages(path)
	if err != nil {
		return state{}, err
	}
	defer f.Close() //nolint:errcheck // it is only read
	found, _, err := p.peek()
	return found.state, err
}
