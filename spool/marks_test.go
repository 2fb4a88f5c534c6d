package spool

import (
	"reflect"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

var (
	one   = Entry{ID: 7, Namespace: [16]byte{1}}.name()
	other = Entry{ID: 7, Namespace: [16]byte{2}}.name() // the same ID, of a stream that was made anew
)

// What is remembered of a record is of no other one.
func TestRemembersByName(t *testing.T) {
	var m marks
	sent := time.Now()
	m.unanswered(one, sent)
	m.unanswered(one, sent.Add(time.Minute)) // the first time counts
	m.refusal(one, 1)
	if got := m.refusal(one, 1); got != 2 {
		t.Errorf("%d refusals, want 2", got)
	}
	if got := m.get(other); !reflect.DeepEqual(got, mark{}) {
		t.Errorf("another record has %+v", got)
	}
	for age, want := range map[time.Duration]bool{59 * time.Minute: false, time.Hour: true} {
		if got := m.get(one).expired(sent.Add(age)); got != want {
			t.Errorf("after %s, that v2 has forgotten it is %t", age, got)
		}
	}
	m.forget(one)
	if !reflect.DeepEqual(m.get(one), mark{}) || m.some.Load() {
		t.Error("it is remembered for ever")
	}

	var v verdicts
	v.note(one, Result{Status: 400})
	if _, known := v.get(other); known {
		t.Error("another record has the verdict")
	}
	if r, known := v.get(one); !known || r.Status != 400 {
		t.Errorf("%+v, %t", r, known)
	}
}

// Memory for what is remembered is bounded. A record for which there is none counts
// as refused as often as it was tried, and its repeat as one that v2 may take.
func TestMarksAreBounded(t *testing.T) {
	var m marks
	for id := range ID(maxMarks) {
		if !m.unanswered(name{id: id}, time.Now()) {
			t.Fatalf("no room for number %d", id)
		}
	}
	more := name{id: maxMarks}
	if m.unanswered(more, time.Now()) || m.refusal(more, 3) != 3 {
		t.Error("there is room for more")
	}
	if !m.unanswered(name{id: 1}, time.Now()) || m.refusal(name{id: 1}, 3) != 1 {
		t.Error("what is known is known no more")
	}
	m.forget(name{id: 1})
	if !m.unanswered(more, time.Now()) {
		t.Error("there is no room behind one that has gone")
	}
}

// TestMarksMakeRoom has records go elsewhere, as they do on NATS: nobody says what
// became of them here. Their marks do not take the room of others for ever.
func TestMarksMakeRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m marks
		for id := range ID(maxMarks) {
			m.unanswered(name{id: id}, time.Now())
		}
		time.Sleep(repeatsDropped)
		if !m.unanswered(name{id: maxMarks}, time.Now()) || m.refusal(name{id: maxMarks + 1}, 5) != 1 {
			t.Error("v2 has forgotten the others, and there is no room")
		}
		if n := len(m.of); n != 2 {
			t.Errorf("%d marks, want 2", n)
		}
	})
}

// TestLeftIsBounded has v2 take some events of very many records: memory for the
// others is bounded, and free again when their records are gone or forgotten.
func TestLeftIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const events = 500
		var m marks
		left := make([]int, events-1)
		note := func(id int, left []int) bool { return m.noteLeft(name{id: ID(id)}, left, events, time.Now()) } //nolint:gosec // G115: not negative
		fits := maxLeft / len(left)
		for id := range fits {
			if !note(id, left) {
				t.Fatalf("no room for number %d", id)
			}
		}
		if note(fits, left) || m.get(name{id: ID(fits)}).left != nil {
			t.Error("there is room for more")
		}
		if !note(7, left[:1]) || len(m.get(name{id: 7}).left) != 1 {
			t.Error("fewer than before have no room")
		}
		if !note(fits, left) {
			t.Error("there is no room where fewer are left")
		}
		m.forget(name{id: 8})
		m.forget(name{id: 8})
		if !note(fits+1, left) || note(fits+2, left) {
			t.Error("one that has gone makes room for another number than one")
		}
		for id := len(m.of); id < maxMarks; id++ {
			m.unanswered(name{id: ID(id + fits)}, time.Now())
		}
		time.Sleep(repeatsDropped)
		if !note(2*maxMarks, left) || m.left != len(left) {
			t.Errorf("%d events are remembered when v2 has forgotten them, want %d", m.left, len(left))
		}
	})
}

// What is left of a record says nothing of another that has come to its name: a dead
// letter with fewer events, which was replayed.
func TestLeftOfAnotherRecord(t *testing.T) {
	d := NewDeliverer(nil, &Gate{}, Delivery{
		Limits: Limits{InFlight: 1, Rate: 1},
		Events: func(data []byte) (string, [][]byte, bool) { return "", make([][]byte, len(data)), true },
	})
	e := Entry{ID: 7, Record: Record{Data: make([]byte, 10)}}
	d.marks.noteLeft(e.name(), []int{1, 9}, 10, time.Now())
	if got := d.several(e).left; !slices.Equal(got, []int{1, 9}) {
		t.Errorf("%d are left, want 1 and 9", got)
	}
	e.Data = e.Data[:2]
	if got := d.several(e).left; !slices.Equal(got, []int{0, 1}) {
		t.Errorf("%d are left of the other, want both", got)
	}
}
