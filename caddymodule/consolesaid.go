package caddymodule

import (
	"crypto/rand"
	"slices"
	"sync"
	"time"

	"github.com/td-postback/gateway/console"
)

// This file keeps what the console's forms have done until the page has said it. The
// address of the page has only a name for it, which nobody can make up: a link cannot
// have the page say what was not done.

const (
	saidFor = time.Minute // a page that is opened again later does not say it again
	maxSaid = 100
)

// sayings are what forms have done lately. The zero one has none.
type sayings struct {
	mu   sync.Mutex
	list []saying // the oldest comes first
}

type saying struct {
	name   string
	at     time.Time
	notice *console.Notice
}

// keep keeps a notice, and names it.
func (s *sayings) keep(notice *console.Notice, now time.Time) (name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.list = slices.DeleteFunc(s.list, func(old saying) bool { return now.Sub(old.at) > saidFor })
	if len(s.list) == maxSaid {
		s.list = slices.Delete(s.list, 0, 1)
	}
	name = rand.Text()
	s.list = append(s.list, saying{name, now, notice})
	return name
}

// find is the notice of this name, unless its time has gone; nil without one.
func (s *sayings) find(name string, now time.Time) *console.Notice {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, one := range s.list {
		if one.name == name && now.Sub(one.at) <= saidFor {
			return one.notice
		}
	}
	return nil
}
