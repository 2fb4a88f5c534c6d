package migration

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

const day = 24 * time.Hour

// sees counts a call with a key at a time after the start.
func sees(r *Report, key string, after time.Duration) {
	count(r, postCall(), func(c *Call) { c.Key, c.Time = key, start.Add(after) })
}

// keysOf are the keys of sightings.
func keysOf(sightings []Sighting) string {
	keys := make([]string, 0, len(sightings))
	for _, s := range sightings {
		keys = append(keys, s.Key)
	}
	return strings.Join(keys, " ")
}

// expectSignals wants a report to tell of these keys at a time after the start.
func expectSignals(t *testing.T, r *Report, after time.Duration, isNew, silenced string, silent int) {
	t.Helper()
	s := r.Signals(start.Add(after))
	if keysOf(s.New) != isNew || keysOf(s.Silenced) != silenced || s.Silent != silent {
		t.Errorf("after %s: new %q, silenced %q, %d silent; want %q, %q, %d", after, keysOf(s.New), keysOf(s.Silenced), s.Silent, isNew, silenced, silent)
	}
}

// TestNewKeys: a report learns for a day, and then tells once of each key that it has not
// seen, with its first table; never of a call without a key, or of another row of the same.
func TestNewKeys(t *testing.T) {
	r := inMemory(0)
	expectSignals(t, r, 0, "", "", 0)
	sees(r, "1/#a", 0)
	sees(r, "1/#b", day-2*time.Second)
	expectSignals(t, r, day-time.Second, "", "", 0)
	expectSignals(t, r, day, "", "", 0)
	sees(r, "", day+time.Hour)
	sees(r, "1/#a", day+time.Hour)
	count(r, pixelCall(), func(c *Call) { c.Key, c.Time = "1/#b", start.Add(day+time.Hour) })
	expectSignals(t, r, day+time.Hour, "", "", 0)
	sees(r, "2/#d", day+3*time.Hour)
	sees(r, "1/#c", day+2*time.Hour)
	count(r, postCall(), func(c *Call) { c.Key, c.Table, c.Time = "2/#d", "later", start.Add(day+4*time.Hour) })
	s := r.Signals(start.Add(day + 5*time.Hour))
	if want := []Sighting{
		{"1/#c", "shop", "orders", start.Add(day + 2*time.Hour), start.Add(day + 2*time.Hour)},
		{"2/#d", "shop", "orders", start.Add(day + 3*time.Hour), start.Add(day + 4*time.Hour)},
	}; !slices.Equal(s.New, want) || s.Full {
		t.Errorf("got %+v, want %+v", s, want)
	}
	expectSignals(t, r, day+6*time.Hour, "", "", 0)
}

// TestUnknownKeysAreNotSeen: what keys has refused is no key's first call; what it let
// through with a warning is.
func TestUnknownKeysAreNotSeen(t *testing.T) {
	r := inMemory(0)
	sees(r, "1/#a", 0)
	expectSignals(t, r, 0, "", "", 0)
	refused := func(key string) {
		count(r, postCall(), func(c *Call) { c.Key, c.Time, c.Result = key, start.Add(2*day), "unknown_key" })
	}
	refused("666/#a")
	refused("666/#b")
	expectSignals(t, r, 2*day, "", "", 0)
	sees(r, "666/#b", 2*day)
	expectSignals(t, r, 2*day, "666/#b", "", 0)
}

// TestNewKeysOverRestarts: a restart forgets no key that was saved, and learns no more.
// Without the file, it learns again.
func TestNewKeysOverRestarts(t *testing.T) {
	path := filepath.Join(t.TempDir(), "callers.db")
	r := open(t, path, 0)
	sees(r, "1/#a", 0)
	sees(r, "1/#b", 0)
	save(t, r)
	shut(t, r)
	r = open(t, path, 0)
	expectSignals(t, r, 2*day, "", "", 0)
	sees(r, "1/#a", 2*day)
	sees(r, "1/#c", 2*day)
	expectSignals(t, r, 2*day, "1/#c", "", 0)
	if err := r.Save(start.Add(2 * day)); err != nil {
		t.Fatal(err)
	}

	// Another one that begins without the file, and gets it later.
	next, err := Open(Config{Path: path, Rows: 200})
	if err == nil {
		t.Fatal("two reports have the file")
	}
	t.Cleanup(func() { _ = next.Close() })
	sees(next, "1/#a", 2*day)
	sees(next, "1/#d", 2*day)
	shut(t, r)
	if err := next.Save(start.Add(2 * day)); err != nil {
		t.Fatal(err)
	}
	expectSignals(t, next, 2*day, "1/#d", "", 0)
	shut(t, next)

	lost := open(t, filepath.Join(t.TempDir(), "callers.db"), 0)
	sees(lost, "1/#a", 3*day)
	expectSignals(t, lost, 3*day, "", "", 0)
}

// TestNewKeysOfAFullReport: keys that had to give way come back as new, which the report
// says; keys that come often stay known, however many come once.
func TestNewKeysOfAFullReport(t *testing.T) {
	const rows = 100
	r := inMemory(rows)
	for range 1000 {
		sees(r, "1/#often", 0)
	}
	sees(r, "1/#rare", 0)
	r.Signals(start.Add(2 * day))
	for i := range 10 * rows {
		sees(r, fmt.Sprintf("666/#%d", i), 2*day)
		if i%rows == rows-1 {
			s := r.Signals(start.Add(2 * day))
			if len(s.New) > rows || len(r.known) > rows {
				t.Fatalf("%d new keys, and %d are remembered, of a report with %d rows", len(s.New), len(r.known), rows)
			}
			if wantFull := i >= rows; s.Full != (i > rows-3) || wantFull && !s.Full {
				t.Errorf("after %d keys: full %v", i, s.Full)
			}
		}
	}
	sees(r, "1/#often", 3*day)
	sees(r, "1/#rare", 3*day)
	if s := r.Signals(start.Add(3 * day)); keysOf(s.New) != "1/#rare" || !s.Full {
		t.Errorf("got %+v", s)
	}
}

// TestSilentKeys: of a key that came each day, the report tells once, when it has not come
// for 30 hours, and counts it until it comes again, or for 7 days.
func TestSilentKeys(t *testing.T) {
	for name, hours := range map[string]time.Duration{"at one time of the day": 24 * time.Hour, "all the time": time.Hour, "by six hours": 6 * time.Hour} {
		for at := range 24 { // the first hour of it
			r := inMemory(0)
			began := time.Duration(at) * time.Hour
			last := began
			for ; last-began < 10*day-12*time.Hour; last += hours {
				sees(r, "1/#a", last)
				if s := r.Signals(start.Add(last)); s.Silent > 0 || len(s.New) > 0 {
					t.Fatalf("%s: %+v", name, s)
				}
			}
			last -= hours
			expectSignals(t, r, last+30*time.Hour-time.Second, "", "", 0)
			expectSignals(t, r, last+30*time.Hour, "", "1/#a", 1)
			expectSignals(t, r, last+31*time.Hour, "", "", 1)
			expectSignals(t, r, last+7*day-time.Second, "", "", 1)
			expectSignals(t, r, last+7*day, "", "", 0)
		}
	}
}

// TestKeysThatAreNotSilent: none is that was missing on one of seven days, or that comes
// again, by another way too.
func TestKeysThatAreNotSilent(t *testing.T) {
	week := func(r *Report, key string, without int) {
		for at := range 7 {
			if at != without {
				sees(r, key, time.Duration(at)*day)
			}
			r.Signals(start)
		}
	}
	for without := range 7 {
		r := inMemory(0)
		week(r, "1/#a", without)
		expectSignals(t, r, 8*day, "", "", 0)
	}
	r := inMemory(0)
	week(r, "1/#a", -1)
	expectSignals(t, r, 8*day, "", "1/#a", 1)
	count(r, pixelCall(), func(c *Call) { c.Key, c.Time = "1/#a", start.Add(8*day) })
	expectSignals(t, r, 8*day, "", "", 0)
	expectSignals(t, r, 10*day, "", "", 0) // it had a day off
}

// TestSilentKeysByAllRows: a key is seen by all of its rows together.
func TestSilentKeysByAllRows(t *testing.T) {
	r := inMemory(0)
	for at := range 7 {
		for row := range at%3 + 1 {
			count(r, postCall(), func(c *Call) {
				c.Key, c.Table, c.Time = "1/#a", fmt.Sprint((at+row)%3), start.Add(time.Duration(at)*day)
			})
		}
		expectSignals(t, r, time.Duration(at)*day, "", "", 0)
	}
	expectSignals(t, r, 6*day+29*time.Hour, "", "", 0)
	expectSignals(t, r, 6*day+30*time.Hour, "", "1/#a", 1)
}

// TestSilentKeysOverRestarts: a restart tells again of none, but of those that have fallen
// silent meanwhile.
func TestSilentKeysOverRestarts(t *testing.T) {
	path := filepath.Join(t.TempDir(), "callers.db")
	r := open(t, path, 0)
	for at := range 9 {
		if at < 7 {
			sees(r, "1/#a", time.Duration(at)*day)
		}
		if at < 8 {
			sees(r, "1/#b", time.Duration(at)*day+12*time.Hour)
		}
		sees(r, "1/#c", time.Duration(at)*day)
		r.Signals(start)
	}
	expectSignals(t, r, 8*day, "", "1/#a", 1)
	if err := r.Save(start.Add(8 * day)); err != nil {
		t.Fatal(err)
	}
	shut(t, r)
	r = open(t, path, 0)
	expectSignals(t, r, 8*day, "", "", 1)
	shut(t, r)
	r = open(t, path, 0)
	expectSignals(t, r, 9*day, "", "1/#b", 2)
}

// TestSignalsWhileCallsCome: callers that come and give way all the time disturb nothing.
func TestSignalsWhileCallsCome(t *testing.T) {
	r := inMemory(100)
	sees(r, "1/#a", 0)
	r.Signals(start)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for i := range 20_000 {
			sees(r, fmt.Sprintf("666/#%d", i), time.Second)
		}
	}()
	for running := true; running; {
		if s := r.Signals(start.Add(time.Second)); len(s.New) > 0 {
			t.Fatalf("new while it learns: %+v", s.New[0])
		}
		select {
		case <-ended:
			running = false
		default:
		}
	}
}

// BenchmarkSignals is of as many rows as there are by default, each of its own key: what
// somebody who makes keys up can bring about every 10 seconds.
func BenchmarkSignals(b *testing.B) {
	r := inMemory(0)
	for i := range DefaultRows {
		sees(r, fmt.Sprintf("666/#%010d", i), 0)
	}
	b.ReportAllocs()
	for b.Loop() {
		r.Signals(start.Add(2 * day))
	}
}
