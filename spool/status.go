package spool

import (
	"cmp"
	"errors"
	"maps"
	"slices"
	"time"
)

// Status is how a spool is.
type Status struct {
	Spool     string        `json:"spool"`           // its place
	Available bool          `json:"available"`       // false while the disk or the cluster refuses records
	Stale     bool          `json:"stale,omitempty"` // the cluster does not answer: figures are as they were before, or 0
	Full      bool          `json:"full"`            // there was no room for a record, and not much has gone since
	Bytes     int64         `json:"bytes"`
	MaxBytes  int64         `json:"max_bytes"`
	Dead      int64         `json:"dead_bytes"` // of dead letters, which are not in Bytes
	MaxDead   int64         `json:"max_dead_bytes"`
	Queues    []QueueStatus `json:"queues"`
}

// QueueStatus is how a queue is.
type QueueStatus struct {
	Name    string     `json:"name"`
	Records int        `json:"records"` // to be delivered
	Dead    int        `json:"dead"`
	Oldest  *time.Time `json:"oldest,omitempty"` // arrival of the oldest record to be delivered
	Down    bool       `json:"upstream_down"`
	Paused  int        `json:"accounts_paused"` // how many accounts v2 has answered 429 and that wait for it
}

// Health sums up how a spool is.
type Health string

// The states of a spool, the best one first.
const (
	HealthOK       Health = "ok"
	HealthDegraded Health = "degraded" // more than 80 % full, or it takes no records, or v2 is down
	HealthRefusing Health = "refusing" // v2 is down, and its records cannot be kept
)

// Health sums the status up. A spool that takes no records while v2 takes them
// keeps no caller waiting, so nobody should turn to another gateway.
func (s *Status) Health() Health {
	down := slices.ContainsFunc(s.Queues, func(q QueueStatus) bool { return q.Down })
	takes := s.Available && !s.Full
	switch {
	case down && !takes:
		return HealthRefusing
	case down || !takes || s.nearlyFull():
		return HealthDegraded
	}
	return HealthOK
}

func (s *Status) nearlyFull() bool { return s.Bytes > s.MaxBytes/10*8 }

// Status says how the spool is. It changes nothing.
func (k *Keeper) Status() Status {
	status := Status{Spool: k.setup.Place, Queues: []QueueStatus{}}
	down := k.down()
	if log := k.Log(); log != nil {
		status.look(log, k.full.Load(), down)
	}
	for _, name := range slices.Sorted(maps.Keys(down)) { // whatever the Log knows of it
		if down[name] && !slices.ContainsFunc(status.Queues, func(q QueueStatus) bool { return q.Name == name }) {
			status.Queues = append(status.Queues, QueueStatus{Name: name, Down: true})
		}
	}
	paused := k.paused()
	for i := range status.Queues {
		status.Queues[i].Paused = paused[status.Queues[i].Name]
	}
	slices.SortFunc(status.Queues, func(a, b QueueStatus) int { return cmp.Compare(a.Name, b.Name) })
	return status
}

// look adds what the Log says of its queues, and of those that are in use.
func (s *Status) look(log Log, full bool, down map[string]bool) {
	s.Available = true
	s.Bytes, s.MaxBytes = log.Size()
	s.Dead, s.MaxDead = log.DeadSize()
	s.Full = full && s.nearlyFull()
	names := log.Queues()
	listed := len(names)
	for name := range down { // those that have no record now: the metrics must show when their first one comes
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	for i, name := range names {
		if i >= listed && !s.Available {
			break // it need not be asked again
		}
		depth, takes, err := depthOf(log, name)
		s.Available = s.Available && takes
		s.Stale = s.Stale || err != nil
		if i >= listed && err != nil {
			continue // it may have records all the same
		}
		q := QueueStatus{Name: name, Records: depth.Records, Dead: depth.Dead, Down: down[name]}
		if !depth.Oldest.IsZero() {
			q.Oldest = &depth.Oldest
		}
		s.Queues = append(s.Queues, q)
	}
}

// depthOf says what is known of a queue, and whether it takes records: a cluster
// that answers does, whatever it has refused before.
func depthOf(log Log, queue string) (depth Depth, takes bool, err error) {
	depth, err = log.Depth(queue)
	return depth, !depth.Refusing && !errors.Is(err, ErrUnavailable), err
}

// down says of each queue that the configuration uses whether its host is down.
func (k *Keeper) down() map[string]bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	down := make(map[string]bool, len(k.outboxes))
	for name, o := range k.outboxes {
		down[name] = o.IsOpen()
	}
	return down
}

// paused says of each queue how many accounts wait for v2.
func (k *Keeper) paused() map[string]int {
	k.mu.Lock()
	defer k.mu.Unlock()
	paused := make(map[string]int, len(k.outboxes))
	for name, o := range k.outboxes {
		paused[name] = o.Paused()
	}
	return paused
}
