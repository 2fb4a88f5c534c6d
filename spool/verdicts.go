package spool

import "sync"

// maxVerdicts bounds how many are remembered, and of how many events.
const maxVerdicts = 10_000

// refusal is v2's answer to a record that it refuses.
type refusal struct {
	Result
	left []int // the events that it is about, if v2 has taken others of the record; nil otherwise
}

// verdicts has v2's answers to records that it refused and that could not be
// buried yet: v2 is not asked again while only the Log is in trouble.
type verdicts struct {
	mu   sync.Mutex
	of   map[name]refusal
	held int // one for each, and for each event
}

// get returns v2's answer to a record, if it is known.
func (v *verdicts) get(n name) (r refusal, known bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	r, known = v.of[n]
	return r, known
}

// note remembers an answer, if there is room.
func (v *verdicts) note(n name, r refusal) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.of == nil {
		v.of = map[name]refusal{}
	}
	if _, known := v.of[n]; !known && v.held < maxVerdicts {
		v.of[n] = r
		v.held += 1 + len(r.left)
	}
}

// forget says that the record is gone.
func (v *verdicts) forget(n name) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if r, known := v.of[n]; known {
		delete(v.of, n)
		v.held -= 1 + len(r.left)
	}
}
