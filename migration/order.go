package migration

import "slices"

// order finds the rarest row. Weights only grow, so a place may know an old one, and
// nothing needs to be moved when a call is counted: only when a row is to give way
// are those looked at again that seem to be rare.
type order struct {
	places []place
	sorted bool // it is a heap
}

// place is a row, and the weight that it had when it was last looked at.
type place struct {
	row    *row
	weight uint64
}

// append adds a row.
func (o *order) append(added *row) {
	o.places = append(o.places, place{added, added.data.weight()})
	o.sorted = false
}

// all lists the rows.
func (o *order) all() []*row {
	rows := make([]*row, 0, len(o.places))
	for _, p := range o.places {
		rows = append(rows, p.row)
	}
	return rows
}

// keep drops all other rows.
func (o *order) keep(keep func(*row) bool) {
	before := len(o.places)
	o.places = slices.DeleteFunc(o.places, func(p place) bool { return !keep(p.row) })
	o.sorted = o.sorted && len(o.places) == before
}

// rarest finds the row that has the least weight now.
func (o *order) rarest() *row {
	if !o.sorted {
		for i := len(o.places)/2 - 1; i >= 0; i-- {
			o.sink(i)
		}
		o.sorted = true
	}
	for {
		first := &o.places[0]
		weight := first.row.data.weight()
		if first.weight == weight {
			return first.row
		}
		first.weight = weight
		o.sink(0)
	}
}

// sink moves a place down behind those of less weight.
func (o *order) sink(i int) {
	for {
		child := 2*i + 1
		if child >= len(o.places) {
			return
		}
		if child+1 < len(o.places) && o.places[child+1].weight < o.places[child].weight {
			child++
		}
		if o.places[i].weight <= o.places[child].weight {
			return
		}
		o.places[i], o.places[child] = o.places[child], o.places[i]
		i = child
	}
}
