package migration

import (
	"cmp"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

// This file knows which gateways share a plan, and which revision each has. Every one
// says so every two seconds, and when it has followed a change.

const (
	aliveFor     = 3 * pollEvery          // a gateway that was heard of so lately is waited for
	missingAfter = time.Minute            // one that is silent for longer is missing, and not waited for at all
	knownFor     = time.Hour              // it is named for so long
	followFor    = 5 * time.Second        // a change waits so long for gateways that are alive
	answerFor    = 500 * time.Millisecond // and so long for others, which may just have come back
	maxKnown     = 1000                   // gateways
	maxSpeech    = 4 << 10                // bytes of what one says
	maxGateway   = 200                    // bytes of its name
)

// Gateway is one of those that share a plan.
type Gateway struct {
	Name     string    `json:"name"`
	Self     bool      `json:"self,omitempty"` // it is the one that says this
	Revision uint64    `json:"revision"`       // that it has in force, as far as is known
	Heard    time.Time `json:"heard"`          // when it was heard of last
	Why      string    `json:"why,omitempty"`  // it does not follow; empty if it does
}

// presence is what a gateway says.
type presence struct {
	ID       string `json:"id"` // of this run of its process
	Name     string `json:"name"`
	Revision uint64 `json:"revision"`
	Stick    string `json:"stick"`
	Local    bool   `json:"local,omitempty"`  // it is rolled back by itself
	Apart    bool   `json:"apart,omitempty"`  // it has a plan of its own
	Asks     bool   `json:"asks,omitempty"`   // it wants to hear of all others
	Leaves   bool   `json:"leaves,omitempty"` // it is not one of them any more
}

func (p presence) encode() []byte {
	text, err := json.Marshal(p)
	if err != nil {
		panic(err) // there is nothing in it that cannot be written
	}
	return text
}

// parsePresence reads what a gateway said, maybe one of a later version.
func parsePresence(text []byte) (p presence, ok bool) {
	if len(text) > maxSpeech || json.Unmarshal(text, &p) != nil || p.ID == "" {
		return presence{}, false
	}
	p.ID, p.Name, p.Stick = clean(p.ID, maxGateway), clean(p.Name, maxGateway), clean(p.Stick, maxGateway)
	return p, true
}

// gateways are those that were heard of.
type gateways struct {
	self, name string // of this gateway

	*hearing
}

type hearing struct {
	mu    sync.Mutex
	known map[string]*heard // by the ID
	news  chan struct{}     // closed when something is heard
}

type heard struct {
	presence
	last time.Time
}

func newGateways(name string, revision uint64) gateways {
	g := gateways{self: rand.Text(), name: clean(name, maxGateway), hearing: &hearing{known: map[string]*heard{}, news: make(chan struct{})}}
	g.hear(presence{ID: g.self, Name: g.name, Revision: revision}, time.Now())
	return g
}

// say tells all gateways what this one has in force.
func (j *sharing) say(asks bool) {
	s := j.steering
	s.file.mu.Lock()
	p := presence{ID: j.self, Name: j.name, Revision: s.state.Revision, Stick: s.cfg.Stick.String(), Local: s.state.hasOwn(), Apart: s.apart != nil, Asks: asks}
	s.file.mu.Unlock()
	j.shared.Say(p.encode())
}

// listen hears what a gateway says. If it has a newer plan, this one looks for it; if it
// asks, this one answers, as soon as it has looked.
func (j *sharing) listen(text []byte) {
	p, ok := parsePresence(text)
	if !ok {
		return
	}
	newest := j.hear(p, time.Now())
	if p.ID != j.self && (p.Asks || newest && !p.Apart) {
		j.nudge()
	}
}

// hear notes what a gateway says, and reports whether its plan is newer than what this
// gateway has said of its own.
func (g gateways) hear(p presence, now time.Time) (newer bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	own := g.known[g.self]
	newer = own != nil && p.Revision > own.Revision
	known := g.known[p.ID]
	switch {
	case p.Leaves:
		delete(g.known, p.ID)
	case known != nil:
		known.presence, known.last = p, now
	default:
		g.forgetRunsOf(p.Name)
		if len(g.known) < maxKnown {
			g.known[p.ID] = &heard{presence: p, last: now}
		}
	}
	close(g.news)
	g.news = make(chan struct{})
	return newer
}

// isDeaf reports whether this gateway has not heard itself for some time.
func (g gateways) isDeaf() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	own := g.known[g.self]
	return own == nil || time.Since(own.last) > aliveFor
}

var errDeaf = errors.New("this gateway does not hear itself at the cluster, so neither the others: let the cluster's user publish and subscribe to the subject td_postback.gateways, or to that of the name that is configured")

// forget drops gateways that have been silent for long.
func (g gateways) forget(now time.Time) {
	maps.DeleteFunc(g.known, func(id string, h *heard) bool { return id != g.self && now.Sub(h.last) > knownFor })
}

// forgetRunsOf drops the runs of a gateway before the one that is heard of for the first
// time. If one of them is there all the same, as another gateway of that name, it is
// heard again soon.
func (g gateways) forgetRunsOf(name string) {
	maps.DeleteFunc(g.known, func(id string, h *heard) bool { return id != g.self && h.Name == name })
}

// list lists the gateways by their names. Of one that does not follow a revision, it
// says why. An action may ask for less: a rollback has come where all is held.
func (g gateways) list(action Action, revision uint64) []Gateway {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	g.forget(now)
	all := make([]Gateway, 0, len(g.known))
	for _, h := range g.known {
		all = append(all, Gateway{Name: h.Name, Self: h.ID == g.self, Revision: h.Revision, Heard: h.last, Why: g.why(h, action, revision)})
	}
	slices.SortFunc(all, func(a, b Gateway) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), a.Heard.Compare(b.Heard))
	})
	return all
}

// why says why a gateway does not follow a revision, or is empty if it does.
func (g gateways) why(h *heard, action Action, revision uint64) string {
	silent := time.Since(h.last)
	own := g.known[g.self]
	switch {
	case silent > aliveFor && h.ID == g.self:
		return errDeaf.Error()
	case silent > aliveFor:
		return fmt.Sprintf("not heard of for %s: if it runs, it is cut off, and goes on with revision %d until it is rolled back by itself", silent.Round(time.Second), h.Revision)
	case h.Local && action == ActionRollback:
		return ""
	case h.Apart:
		return "it has a plan of its own: see its status"
	case h.Revision < revision:
		return fmt.Sprintf("it has not followed yet, and has revision %d", h.Revision)
	case h.Local:
		return "it is rolled back by itself, until it is resumed by itself"
	case action == "" && own != nil && h.Stick != own.Stick && h.Stick != "" && own.Stick != "":
		return fmt.Sprintf("it has stick %s, and this gateway %s: give all the same, or callers change lanes between them", h.Stick, own.Stick)
	}
	return ""
}

// await waits until those gateways have followed a change of which that can be expected,
// and says which have.
func (j *sharing) await(out *Outcome, action Action) {
	j.say(true)
	late, silent := time.NewTimer(followFor), time.NewTimer(answerFor)
	defer late.Stop()
	defer silent.Stop()
	for waitsForSilent := true; ; {
		j.mu.Lock()
		news, expected := j.news, j.expected(action, out.Revision, waitsForSilent)
		j.mu.Unlock()
		if !expected {
			break
		}
		select {
		case <-news:
			continue
		case <-silent.C:
			waitsForSilent = false
			continue
		case <-late.C:
		case <-j.ctx.Done():
		}
		break
	}
	tells := action != ActionRollback && !j.isDeaf() // who is deaf knows of nobody
	for _, g := range j.list(action, out.Revision) {
		switch {
		case g.Why == "":
			out.Followed = append(out.Followed, g.Name)
		case tells && time.Since(g.Heard) > missingAfter:
			out.Missing = append(out.Missing, g)
		default:
			out.Lagging = append(out.Lagging, g)
		}
	}
}

// expected reports whether a gateway may still follow a revision.
func (g gateways) expected(action Action, revision uint64, silentToo bool) bool {
	for _, h := range g.known {
		switch {
		case h.Local && action == ActionRollback:
		case h.Apart && action != ActionRollback:
		case !silentToo && time.Since(h.last) > aliveFor || time.Since(h.last) > missingAfter:
		case h.Apart || h.Revision < revision:
			return true
		}
	}
	return false
}

// nobodyFollows says of a rollback that the cluster has not taken that only this gateway
// has it in force.
func (j *sharing) nobodyFollows(out *Outcome) {
	out.Followed = []string{j.name}
	for _, g := range j.list("", out.Revision) {
		if !g.Self {
			g.Why = cmp.Or(g.Why, fmt.Sprintf("it has not heard of the rollback, and goes on with revision %d", g.Revision))
			out.Lagging = append(out.Lagging, g)
		}
	}
}
