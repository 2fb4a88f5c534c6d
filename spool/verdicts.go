package spool

import "sync"

// maxVerdicts bounds how many are remembered.
const maxVerdicts = 10_000

// verdicts has v2's answers to records that it refused and that could not be
// buried yet: v2 is not asked again while only the Log is in trouble.
type verdicts struct {
	mu sync.Mutex
	of map[name]Result
}

// get returns v2's answer to a record, if it is known.
func (v *verdicts) get(n name) (r Result, known bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	r, known = v.of[n]
	return r, known
}

// note remembers an answer, if there is room.
func (v *verdicts) note(n name, r Result) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.of == nil {
		v.of = map[name]Result{}
	}
	if len(v.of) < maxVerdicts {
		v.of[n] = r
	}
}

// forget says that the record is gone.
func (v *verdicts) forget(n name) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.of, n)
}
