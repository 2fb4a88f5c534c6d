package migration

import (
	"errors"
	"io"
	"os"
	"path/filepath"

	bolt "go.etcd.io/bbolt"
)

// This file keeps a plan in a bbolt file, and behind each change a copy beside it. The
// file counts. The copy is for when it cannot be read: it needs no lock, and is always
// whole, as it takes the place of the one before in one step.

const (
	copySuffix = ".copy"
	stateKey   = "state"
)

var planBucket = []byte("plan")

// planFile is the file of a plan, and its copy.
type planFile struct {
	store

	// damaged says that the file is to be set aside before anything is written.
	damaged bool
}

// errNoPlan is a file in which no plan was ever written.
var errNoPlan = errors.New("no plan is in it")

// read reads the plan in the file. If the file is damaged, it is left as it is, and set
// aside when something is to be written.
func (f *planFile) read() (s *planState, err error) {
	if f.db == nil {
		err = f.open()
	}
	var text []byte
	if err == nil {
		err = guard(func() error {
			return f.db.View(func(tx *bolt.Tx) error {
				text = append(text, tx.Bucket(planBucket).Get([]byte(stateKey))...)
				return nil
			})
		})
	}
	switch {
	case err != nil:
	case len(text) == 0:
		return nil, errNoPlan
	default:
		s, err = decodeState(text)
	}
	if isDamage(err) {
		f.damaged = true
		if f.db != nil {
			f.forsake()
		}
	}
	return s, err
}

// isDamage reports whether an error says that trying again will not help.
func isDamage(err error) bool {
	_, fault := errors.AsType[faultError](err)
	return fault || errors.Is(err, errDamaged) || errors.Is(err, errState)
}

// readCopy reads the copy.
func (f *planFile) readCopy() (*planState, error) {
	file, err := os.Open(f.path + copySuffix)
	if errors.Is(err, os.ErrNotExist) {
		return nil, errNoPlan
	}
	if err != nil {
		return nil, err
	}
	text, err := io.ReadAll(io.LimitReader(file, maxState+1))
	if err = errors.Join(err, file.Close()); err != nil {
		return nil, err
	}
	return decodeState(text)
}

// write writes a plan into the file. When it returns, it is on the disk. A file that
// turns out to be damaged is set aside, and a new one takes its place.
func (f *planFile) write(s *planState) error {
	text, err := s.encode()
	if err != nil {
		return err
	}
	err = f.put(s, text)
	if f.damaged {
		err = f.put(s, text)
	}
	return err
}

func (f *planFile) put(s *planState, text []byte) error {
	if err := f.reopen(); err != nil {
		return err
	}
	err := guard(func() error {
		return f.db.Update(func(tx *bolt.Tx) error {
			if s.Revision == 0 && !s.hasOwn() { // nobody has made it
				return tx.Bucket(planBucket).Delete([]byte(stateKey))
			}
			return tx.Bucket(planBucket).Put([]byte(stateKey), text)
		})
	})
	if f.damaged = isDamage(err); f.damaged {
		f.forsake()
	}
	return err
}

// reopen opens the file for writing, unless it is open.
func (f *planFile) reopen() (err error) {
	if f.db != nil {
		return nil
	}
	if !f.damaged {
		err = f.open()
		f.damaged = isDamage(err)
	}
	if f.damaged {
		if err = f.setAside(); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		f.damaged = false
		err = f.open()
	}
	if err == nil {
		err = syncDirectory(filepath.Dir(f.path))
	}
	return err
}

// writeCopy writes a plan into the copy.
func (f *planFile) writeCopy(s *planState) error {
	text, err := s.encode()
	if err != nil {
		return err
	}
	path, made := f.path+copySuffix, f.path+copySuffix+".new"
	_ = os.Remove(made) // it may be there since a process was killed, and lead elsewhere
	if err = writeSynced(made, text); err == nil {
		err = os.Rename(made, path)
	}
	if err != nil {
		_ = os.Remove(made) // it takes room, and nobody reads it
		return err
	}
	return syncDirectory(filepath.Dir(path))
}

func writeSynced(path string, text []byte) error {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600) //nolint:gosec // G304: the operator's path
	if err != nil {
		return err
	}
	_, err = file.Write(text)
	if err == nil {
		err = file.Sync()
	}
	return errors.Join(err, file.Close())
}

// syncDirectory makes the names in a directory last.
func syncDirectory(path string) error {
	dir, err := os.Open(path) //nolint:gosec // G304: the operator's path
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

func (f *planFile) removeCopy() error { return os.Remove(f.path + copySuffix) }
