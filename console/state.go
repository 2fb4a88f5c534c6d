package console

import (
	"fmt"
	"slices"
	"time"
)

// Level is how bad something is.
type Level int

// The levels, the worst first. Each has a word: colour alone says nothing to some.
const (
	Bad Level = iota
	Look
	Good
)

// Word is the level's word.
func (l Level) Word() string { return [...]string{"Act now", "Take a look", "All is well"}[l] }

// Class is the level's name in the stylesheet.
func (l Level) Class() string { return [...]string{"bad", "look", "good"}[l] }

// Trouble is something that somebody should see to.
type Trouble struct {
	Level Level
	Text  string
	Do    string
}

// What makes an old record look bad: v2 ignores the time of one of 7 days.
const (
	lookAge = 24 * time.Hour
	badAge  = 5 * 24 * time.Hour
)

// State is the page in one sentence.
func (p *Page) State() Trouble {
	if all := p.Troubles(); len(all) > 0 {
		return all[0]
	}
	return Trouble{Level: Good, Text: p.calm()}
}

// calm is what there is to say if nothing is wrong.
func (p *Page) calm() string {
	where, lost := "all at v2", "nothing is lost"
	switch {
	case p.Recent.Minute[Kept] > 0:
		where = "each sent on, or kept in the spool"
	case p.Plan != nil:
		where = "each at the host that the plan says"
	}
	if slices.ContainsFunc(p.Books, func(b Book) bool { return b.Lost > 0 }) {
		lost = "nothing was lost in the last 5 minutes"
	}
	switch {
	case p.Recent.Rate() > 0:
		return fmt.Sprintf("%s calls a second come in, %s; %s.", rate(p.Recent.Rate()), where, lost)
	case p.Recent.All != [kinds]uint64{}:
		return "No call has come in the last minute; " + lost + "."
	case p.Recent.At.Sub(p.Recent.Since) < 2*time.Minute:
		return "No call has come in the last minute."
	default:
		return fmt.Sprintf("No call has come in the last %s.", span(p.Recent.At.Sub(p.Recent.Since)))
	}
}

// Troubles is what is wrong, the worst first.
func (p *Page) Troubles() (all []Trouble) {
	found := slices.Concat(p.lossTroubles(), p.spoolTroubles(), p.planTroubles(), p.callTroubles())
	for level := range Good {
		for _, trouble := range found {
			if trouble.Level == level {
				all = append(all, trouble)
			}
		}
	}
	return all
}

func (p *Page) lossTroubles() (all []Trouble) {
	if lost := p.Recent.Alarm[Lost]; lost > 0 {
		all = append(all, Trouble{Bad, fmt.Sprintf("Lost in the last 5 minutes: %s. Nobody has taken what was sent; the callers were told.", count(lost, "call")),
			"See below why the host does not take them. A spool keeps such records, and delivers them later."})
	}
	var difference int64
	for _, b := range p.Books {
		difference += b.Difference
	}
	if difference > 0 {
		all = append(all, Trouble{Bad, fmt.Sprintf("Missing in the books: %s. Nobody knows what became of that.", count(difference, "call")),
			"This is a fault of the gateway's: report it, with its log."})
	}
	return all
}

func (p *Page) spoolTroubles() (all []Trouble) {
	if p.SpoolsOld {
		all = append(all, Trouble{Look, "A spool does not answer: its figures are old, or missing.", "See to its disk, or its cluster."})
	}
	for i := range p.Spools {
		s := &p.Spools[i]
		all = append(all, s.troubles()...)
		for _, q := range s.Queues {
			all = append(all, q.troubles(p.Now)...)
		}
	}
	return all
}

func (s *Spool) troubles() (all []Trouble) {
	switch {
	case s.Health == HealthRefusing:
		all = append(all, Trouble{Bad, "v2 does not take records, and the spool cannot keep more: callers are turned away.",
			"Make room for the spool (a larger max_size, a larger disk), and see why v2 does not answer."})
	case !s.Available:
		all = append(all, Trouble{Look, "The spool takes no records: " + s.Place, "See the log for what its disk or its cluster says. As long as v2 takes records, none is lost."})
	case s.Full:
		all = append(all, Trouble{Look, "The spool is full.", "Give it a larger max_size. As long as v2 takes records, none is lost."})
	case s.Bytes > s.MaxBytes/10*8:
		all = append(all, Trouble{Look, "The spool is more than 80 % full.", "See why v2 does not take records, or give the spool a larger max_size."})
	}
	if s.Stale {
		all = append(all, Trouble{Look, "The spool's cluster does not answer: its figures are old.", "See to the cluster, and to the way there."})
	}
	return all
}

func (q *Queue) troubles(now time.Time) (all []Trouble) {
	if age := now.Sub(q.Oldest); !q.Oldest.IsZero() && age > lookAge {
		level := Look
		if age > badAge {
			level = Bad
		}
		all = append(all, Trouble{level, fmt.Sprintf("The oldest kept record waits for %s; after 7 days v2 ignores its time.", span(age)),
			"See why v2 does not take it, or raise drain_rate."})
	}
	if q.Down {
		all = append(all, Trouble{Look, "Down: " + q.Name + ". Its records are kept, and none is lost.", "Check that host's status, and the way there. They are delivered as soon as it is back."})
	}
	if q.Paused > 0 {
		all = append(all, Trouble{Look, fmt.Sprintf("Limited by v2: %s. What was kept for that waits.", count(q.Paused, "account")), "Ask Treasure Data for a higher limit. Other accounts go on."})
	}
	if q.Dead > 0 {
		all = append(all, Trouble{Look, fmt.Sprintf("Dead letters: %s. v2 has refused what was kept, or it was too old.", number(q.Dead)), "Look at them below; replay or drop them."})
	}
	return all
}

func (p *Page) planTroubles() (all []Trouble) {
	if p.Plan == nil {
		return nil
	}
	if p.Plan.Unsaved != "" {
		all = append(all, Trouble{Bad, "The rollback holds, but could not be written.", sentence(p.Plan.Unsaved)})
	}
	if p.Plan.Degraded != "" {
		all = append(all, Trouble{Look, "The plan on disk is not the one in force.", sentence(p.Plan.Degraded)})
	}
	if h := p.Plan.Hold; h != nil {
		text := "Rolled back: everything goes to the legacy host."
		if h.Local {
			text = "Rolled back, this gateway alone: everything that comes here goes to the legacy host."
		}
		all = append(all, Trouble{Look, text, "When all is well again, resume below: the shares are as they were."})
	}
	for _, g := range p.Plan.Gateways {
		if g.Why != "" {
			all = append(all, Trouble{Look, fmt.Sprintf("The gateway %s is not on the plan.", g.Name), sentence(g.Why)})
		}
	}
	return all
}

func (p *Page) callTroubles() (all []Trouble) {
	if refused := p.Recent.Alarm[Refused]; refused > 0 {
		all = append(all, Trouble{Look, fmt.Sprintf("Refused in the last 5 minutes: %s.", count(refused, "call")), "See the refusals below, with what their callers should change."})
	}
	if p.Report != nil && p.Report.NotSaved != "" {
		all = append(all, Trouble{Look, "The report of callers is in memory only.", sentence(p.Report.NotSaved)})
	}
	return all
}
