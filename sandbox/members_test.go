package sandbox

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

// TestRepeatsAreBounded has more records with a uuid than are remembered: the oldest
// go, and the newest are known.
func TestRepeatsAreBounded(t *testing.T) {
	var k repeats
	record := func(n int) Record { return Record{UUID: fmt.Sprintf("%032x", n)} }
	const total = 3 * maxRepeats
	for n := range total {
		if k.known(record(n)) {
			t.Fatalf("record %d is new", n)
		}
	}
	if n := len(k.young) + len(k.old); n > 2*maxRepeats {
		t.Errorf("%d are remembered", n)
	}
	if !k.known(record(total-1)) || !k.known(record(total-maxRepeats)) || k.known(record(0)) {
		t.Error("it remembers others than the newest")
	}
}

// FuzzMembers lists the members of anything: of every JSON object and of nothing
// else, whole and in order. What is stored lacks only the uuid.
func FuzzMembers(f *testing.F) {
	for _, seed := range []string{
		`{}`, ` { "a" : 1 , "uuid":"x" } `, `{"\u0055uid":[1,{"a":2}],"a":"}","a":null}`, `{,}`, `{"a" 1}`, `[]`, `{"a":1}x`, "{\"\\\"\":\"\xff\"}",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, object []byte) {
		list, ok := members(object)
		var values map[string]json.RawMessage
		err := json.Unmarshal(object, &values)
		if ok != (err == nil && values != nil) {
			t.Fatalf("%q: %v, %v", object, ok, err)
		}
		if !ok {
			return
		}
		last, uuids := map[string]string{}, 0
		for _, m := range list {
			var name string
			if err := json.Unmarshal(m.text, &name); err != nil || name != m.name {
				t.Fatalf("%q: %q is %q, %v", object, m.text, m.name, err)
			}
			if last[m.name] = string(m.value); strings.EqualFold(m.name, "uuid") {
				uuids++
			}
		}
		if len(last) != len(values) {
			t.Fatalf("%q: got %q", object, last)
		}
		for name, value := range values {
			if last[name] != string(value) {
				t.Fatalf("%q: %q is %q", object, name, last[name])
			}
		}
		stored, ok := members(withoutUUID(object))
		if !ok || len(stored) != len(list)-uuids {
			t.Fatalf("%q: %q is stored", object, withoutUUID(object))
		}
	})
}
