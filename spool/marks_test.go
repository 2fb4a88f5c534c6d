package spool

import (
	"reflect"
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
