package disk

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/td-postback/gateway/spool"
)

// Whatever is in a segment's name, it is either refused or the name of that
// segment.
func FuzzParseSegmentName(f *testing.F) {
	f.Add(segmentName(1<<50, []byte("saltsalt")))
	f.Add("0123456789abcdef-0123456789ABCDEF.db")
	f.Add("+123456789abcdef-0123456789abcdef.db")
	f.Add("lock.db")
	f.Fuzz(func(t *testing.T, name string) {
		first, salt, ok := parseSegmentName(name)
		if ok && segmentName(first, salt) != name {
			t.Errorf("%q is read as %q", name, segmentName(first, salt))
		}
	})
}

// What decodes is what was encoded, and is found among other bytes.
func FuzzDecode(f *testing.F) {
	plain, _ := newCoder(nil, []byte("saltsalt"), q1)
	secret, _ := newCoder(make([]byte, spool.KeySize), []byte("saltsalt"), q1)
	r := spool.Record{Arrival: arrivalTime, Data: []byte("data")}
	f.Add(plain.encode(nil, 7, r), []byte("before"))
	f.Add(secret.encode(nil, 7, r), []byte(magic))
	f.Add(append(plain.encode(nil, 7, r), plain.encode(nil, 8, r)...), plain.encode(nil, 7, r)[:20])
	f.Fuzz(func(t *testing.T, value, before []byte) {
		for _, c := range []coder{plain, secret} {
			id, r, err := c.decode(value)
			if err == nil && c.aead == nil && !bytes.Equal(c.encode(nil, id, r), value) {
				t.Errorf("record %d of %s with %q was not encoded like that", id, r.Arrival, r.Data)
			}
			found := c.find(append(before, value...))
			for id, v := range found {
				if c.size(v) != len(v) || idIn(v) != id {
					t.Errorf("what is found is not whole: %q", v)
				}
			}
			if err == nil && len(c.find(before)) == 0 && !bytes.Contains(before, []byte(magic[:1])) && !bytes.Equal(found[id], value) {
				t.Errorf("record %d was not found", id)
			}
		}
	})
}

func FuzzDecodeState(f *testing.F) {
	f.Add(state{live: 1, dead: 2, bytes: 3}.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		if st, err := decodeState(b); err == nil && !bytes.Equal(st.encode(), b) {
			t.Errorf("%+v was not encoded like that", st)
		}
	})
}

func FuzzDecodeDeath(f *testing.F) {
	f.Add((&death{id: 1, died: arrivalTime, Verdict: spool.Verdict{Status: 400, Reason: "no"}}).encode())
	f.Add((&death{id: 1, died: arrivalTime, Verdict: spool.Verdict{Status: 400, Reason: "no", Words: "no such table"}}).encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		if d, err := decodeDeath(b); err == nil && !bytes.Equal(d.encode(), b) {
			t.Errorf("%+v was not encoded like that", d)
		}
	})
}

// A file that passes the check is one that bbolt can read, with as many records
// as it says; any other is damaged.
func FuzzCheck(f *testing.F) {
	salt := []byte("saltsalt")
	c, err := newCoder(nil, salt, q1)
	if err != nil {
		f.Fatal(err)
	}
	path := filepath.Join(f.TempDir(), segmentName(1, salt))
	db, err := createFile(path, c, space{growth: 4096})
	if err != nil {
		f.Fatal(err)
	}
	s := newSegment(path, 1, c)
	s.db = db
	ch := change{putID: 1, deaths: []death{{id: 5}}}
	for id := range spool.ID(30) {
		ch.puts = append(ch.puts, c.encode(nil, id+1, spool.Record{Data: make([]byte, 400)}))
	}
	if _, _, err := s.commit(&ch); err != nil {
		f.Fatal(err)
	}
	s.retire()
	content, err := os.ReadFile(path) //nolint:gosec // G304: the test's own file
	if err != nil {
		f.Fatal(err)
	}
	f.Add(uint32(0), []byte(nil), uint32(0), []byte(nil))
	f.Add(uint32(2*page+8), []byte{1}, uint32(6*page+10), []byte{0, 0, 0})
	f.Add(uint32(page+metaEnd), []byte{255, 255, 255}, uint32(0), []byte{})
	for at := range uint32(len(content) / page) { //nolint:gosec // G115: a small file
		f.Add(at*page+8, []byte{1, 0, 255}, at*page+20, []byte{3})
	}
	f.Fuzz(func(t *testing.T, at uint32, bytes1 []byte, at2 uint32, bytes2 []byte) {
		damaged := bytes.Clone(content)
		copy(damaged[int(at)%len(damaged):], bytes1)
		copy(damaged[int(at2)%len(damaged):], bytes2)
		p, err := newPages(bytes.NewReader(damaged), int64(len(damaged)))
		if err == nil {
			err = p.check(c)
		}
		if err != nil {
			if !errors.Is(err, errDamaged) {
				t.Fatalf("the check ends with %v", err)
			}
			return
		}
		if err := os.WriteFile(path, damaged, 0o600); err != nil { //nolint:gosec // G703: the test's own file
			t.Fatal(err)
		}
		s := newSegment(path, 1, c)
		live, dead := 0, 0
		err = errors.Join(s.each(0, func(spool.ID, []byte) bool { live++; return true }),
			s.eachDead(0, func(spool.ID, []byte, []byte) bool { dead++; return true }), s.close())
		if err != nil || live != 29 || dead != 1 {
			t.Errorf("%d records and %d dead letters, %v", live, dead, err)
		}
	})
}
