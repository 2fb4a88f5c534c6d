package caddymodule

import (
	"cmp"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/td-postback/gateway/console"
	"github.com/td-postback/gateway/migration"
	"github.com/td-postback/gateway/postback"
	"github.com/td-postback/gateway/spool"
)

// This file makes what the console shows, of what the gateway knows.

// shownHost is a host to which a configuration's calls go.
type shownHost struct {
	lane migration.Lane
	name string
	url  string // its queue's name; empty with handoff
}

// shownHosts are those of the configuration that runs.
var shownHosts atomic.Pointer[[]shownHost]

// showHosts adds a handler's hosts to those that are shown.
func (a *App) showHosts(h *Handler) {
	add := func(lane migration.Lane, r *route) {
		one := shownHost{lane: lane, name: r.host}
		if r.url != nil {
			one.url = r.queueName()
		}
		if !slices.Contains(a.hosts, one) {
			a.hosts = append(a.hosts, one)
		}
	}
	for _, r := range h.routes() {
		add(migration.V2, r)
	}
	if h.legacy != nil {
		for _, r := range h.legacy.routes() {
			add(migration.Legacy, r)
		}
	}
	slices.SortFunc(a.hosts, func(a, b shownHost) int {
		return cmp.Or(cmp.Compare(a.lane, b.lane), strings.Compare(a.name, b.name))
	})
}

// page is what the console shows.
func (c *Console) page(view *console.View, notice *console.Notice, now time.Time) *console.Page {
	consoleLook.look()
	version, _ := ownVersion()
	reading := readCounters(now)
	p := &console.Page{
		Now: now, Gateway: c.gateway, Version: version, Started: processStart, Notice: notice,
		Recent: c.watch.history.Recent(reading), Books: consoleBooks(), Calls: sampled.newest(),
	}
	if c.Actions {
		p.Token = consoleToken
	}
	if p.Notice == nil {
		p.Notice = c.watch.said.find(view.Said, now)
	}
	spools := c.watch.seeSpools(spoolsTurn, consoleSpools)
	p.Spools, p.SpoolsOld = spools.list, spools.old
	p.Hosts = consoleHosts(p.Spools)
	plan, callers := shownPlan.Load(), c.watch.report(now)
	if callers != nil {
		p.Report, p.Caller = callers.report, callers.caller(view.Caller)
	}
	if plan != nil {
		p.Plan = consolePlan(plan, callers)
		p.Gateway = p.Plan.Self(p.Gateway)
		p.Audit = callers.auditOf()
		p.Trial = c.watch.trial(plan, view.Trial, now)
	}
	p.Refusals = consoleRefusals(p.Recent.Results, reading.Totals, callers)
	if view.Dead != nil {
		p.Letters = consoleLetters(view.Dead)
	}
	return p
}

func consoleBooks() (books []console.Book) {
	for _, b := range showBooks() {
		books = append(books, console.Book(b))
	}
	return books
}

// spoolsSeen is how the spools are, or, if they do not say it, how they were.
type spoolsSeen struct {
	list []console.Spool
	old  bool
}

// These are who may wait for the spools' disks, and their clusters.
var spoolsTurn, lettersTurn = newTurn(), newTurn()

// seeSpools asks the spools, and does not wait for long.
func (w *consoleWatch) seeSpools(of turn, ask func() []console.Spool) spoolsSeen {
	return w.spools.get(nil, spoolsMost, func() spoolsSeen {
		list, ok := within(of, planPatience, ask)
		if !ok {
			list = w.spools.value.list
		}
		return spoolsSeen{list, !ok}
	})
}

func consoleSpools() (spools []console.Spool) {
	for _, s := range spoolStatuses() {
		shown := console.Spool{
			Place: s.Spool, Health: console.Health(s.Health()), Available: s.Available, Full: s.Full, Stale: s.Stale,
			Bytes: s.Bytes, MaxBytes: s.MaxBytes, DeadBytes: s.Dead, MaxDead: s.MaxDead,
		}
		for _, q := range s.Queues {
			queue := console.Queue{Name: q.Name, Records: q.Records, Dead: q.Dead, Down: q.Down, Paused: q.Paused}
			if q.Oldest != nil {
				queue.Oldest = *q.Oldest
			}
			shown.Queues = append(shown.Queues, queue)
		}
		spools = append(spools, shown)
	}
	return spools
}

// consoleHosts are the hosts, and what the spools know of them.
func consoleHosts(spools []console.Spool) (hosts []console.Host) {
	known := shownHosts.Load()
	if known == nil {
		return nil
	}
	for _, host := range *known {
		shown := console.Host{Name: host.name, Lane: host.lane.String(), Circuit: console.CircuitUnknown, Last: lastFailure(host.name)}
		for i := range spools {
			for _, q := range spools[i].Queues {
				switch {
				case q.Name != host.url:
				case q.Down:
					shown.Circuit = console.CircuitOpen
				case shown.Circuit == console.CircuitUnknown:
					shown.Circuit = console.CircuitClosed
				}
			}
		}
		hosts = append(hosts, shown)
	}
	return hosts
}

// consoleRefusals are the kinds of refusals that there were on each lane, the most first.
func consoleRefusals(recent, all []console.Total, callers *consoleCallers) (refusals []console.RefusalKind) {
	type kind struct{ lane, result string }
	lately := make(map[kind]uint64, len(recent))
	for _, t := range recent {
		lately[kind{t.Lane, t.Result}] = t.Count
	}
	for _, t := range all {
		if t.Count == 0 || t.Kind != console.Refused && t.Kind != console.Lost {
			continue
		}
		refusals = append(refusals, console.RefusalKind{
			Code: t.Result, Lane: t.Lane, Recent: lately[kind{t.Lane, t.Result}], Total: t.Count,
			Do: refusalDo(t.Result, t.Lane), Example: callers.example(findingOfResult(t.Result, t.Lane)),
		})
	}
	slices.SortFunc(refusals, func(a, b console.RefusalKind) int {
		return cmp.Or(cmp.Compare(b.Recent, a.Recent), cmp.Compare(b.Total, a.Total), strings.Compare(a.Code, b.Code), strings.Compare(a.Lane, b.Lane))
	})
	return refusals
}

// findingOfResult is the name of the finding about callers whose calls have a result.
func findingOfResult(result, lane string) string {
	switch {
	case result == upstream4xxResult && lane == migration.Legacy.String():
		return migration.LegacyRefused.String()
	case result == upstream4xxResult, result == someRefusedResult:
		return migration.RefusedByV2.String()
	default:
		return result
	}
}

// refusalDo is what to do about refusals of a kind.
func refusalDo(result, lane string) string {
	if finding, ok := migration.FindingOf(findingOfResult(result, lane)); ok {
		return finding.Advice()
	}
	switch result {
	case postback.Overloaded.Code:
		return "Raise max_buffered or max_conns, or add a gateway: see the log for which is used up."
	case postback.SpoolFull.Code, postback.SpoolUnavailable.Code:
		return "See to the spool's size and its disk, and see why v2 does not take records."
	case postback.LoopDetected.Code:
		return "Set resolve, in migrate, to the address where the legacy host really is."
	default:
		return "See above what the host says, and the log."
	}
}

// consoleLetters are some dead letters, without values.
func consoleLetters(of *console.DeadView) *console.Letters {
	s, ok := selectQueue(of.Spool, of.Queue)
	if !ok {
		return nil
	}
	s.dead, s.after, s.limit = true, spool.ID(of.After), lettersShown
	list, err := listWithin(lettersTurn, &s)
	shown := &console.Letters{Spool: of.Spool, Queue: of.Queue, After: of.After}
	if err != nil {
		shown.Problem = err.Error()
	}
	for i := range list {
		l := &list[i]
		body := []byte(l.Body)
		if l.Body == "" {
			body = l.BodyBase64
		}
		shown.List = append(shown.List, console.Letter{
			ID: uint64(l.ID), Path: l.Path, Key: l.Fingerprint, Arrived: l.Arrival, Died: *l.Died, Bytes: l.Bytes,
			Status: l.Status, Reason: l.Reason, Words: l.Words, Example: migration.Redact("POST", "", body),
		})
	}
	if len(list) == lettersShown {
		shown.Next = uint64(list[len(list)-1].ID)
	}
	return shown
}

// listWithin lists what is selected, and does not wait for long.
func listWithin(of turn, s *selected) ([]keptRecord, error) {
	type result struct {
		list []keptRecord
		err  error
	}
	got, ok := within(of, planPatience, func() (r result) {
		r.list, r.err = s.list()
		return r
	})
	if !ok {
		return nil, errors.New("the spool does not answer: see to its disk, or its cluster")
	}
	return got.list, got.err
}

// lettersShown is how many dead letters are shown at a time.
const lettersShown = 50

// selectQueue selects a queue by its name.
func selectQueue(place, queue string) (s selected, ok bool) {
	for _, open := range openSpools() {
		if log := open.Log(); open.Place() == place && log != nil && slices.Contains(log.Queues(), queue) {
			return selected{place: place, log: log, queue: queue}, true
		}
	}
	return s, false
}

// planPatience is how long the page waits for the plan, or for spools: a change may be on
// its way to a slow disk, and then the page says so.
const planPatience = time.Second

// consolePlan is the plan as it is now.
func consolePlan(plan *planUse, callers *consoleCallers) *console.Plan {
	shown, ok := within(plan.turns[askingPage], planPatience, func() *console.Plan { return wholePlan(plan.get(), callers) })
	if ok {
		return shown
	}
	now := plan.get().Plan().Signals()
	shown = &console.Plan{Revision: now.Revision, Degraded: "Its disk does not answer. Calls go by the plan all the same, and a rollback holds at once."}
	if now.Held {
		shown.Hold = &console.Hold{Time: now.Changed}
	}
	return shown
}

func wholePlan(plan *migration.Steering, callers *consoleCallers) *console.Plan {
	status, history := plan.Status(), plan.History()
	shown := &console.Plan{Revision: status.Revision, Stick: status.Stick, Degraded: status.Degraded, Unsaved: status.Unsaved}
	if h := cmp.Or(status.Hold, status.Local); h != nil {
		shown.Hold = &console.Hold{Time: h.Time, Who: h.Who, Note: h.Note, Local: status.Hold == nil}
	}
	for _, g := range status.Gateways {
		shown.Gateways = append(shown.Gateways, console.Gateway(g))
	}
	for _, r := range status.Rules {
		rule := console.Rule{Target: r.Target, Account: r.Account, Asked: console.Percent(r.Share)}
		if callers != nil {
			if real, ok := callers.rules[r.Rule]; ok {
				rule.Events, rule.Real = real.Events, percentOf(real.Real)
			}
		}
		shown.Rules = append(shown.Rules, rule)
	}
	for _, c := range slices.Backward(history[max(0, len(history)-historyShown):]) {
		shown.History = append(shown.History, console.Change{
			Revision: c.Revision, Time: c.Time, Who: c.Who, Note: c.Note, What: changeText(&c), Undoable: c.Revision != status.Revision,
		})
	}
	return shown
}

// historyShown is how many changes of the plan are shown.
const historyShown = 50

func percentOf(share *migration.Share) *console.Percent {
	if share == nil {
		return nil
	}
	percent := console.Percent(*share)
	return &percent
}

// triedOut is what a trial depends on.
type triedOut struct {
	console.TrialView
	plan     *planUse
	revision uint64
}

// trial says what a share would move: to all who look at the same one, as it looks at all
// callers.
func (w *consoleWatch) trial(plan *planUse, of *console.TrialView, now time.Time) *console.Trial {
	if of == nil {
		return nil
	}
	on := triedOut{*of, plan, plan.get().Plan().Signals().Revision}
	return w.trials.get(on, trialMost, func() *console.Trial { return consoleTrial(plan, of, now) })
}

// consoleTrial says what a share would move.
func consoleTrial(plan *planUse, of *console.TrialView, now time.Time) *console.Trial {
	trial := &console.Trial{ // a key may be in the wrong field
		Rule: postback.MaskKeys(of.Rule), Account: postback.MaskKeys(of.Account), Percent: postback.MaskKeys(of.Percent),
		Revision: plan.get().Plan().Signals().Revision,
	}
	moves, err := tryOut(plan, trial, now)
	if err != nil {
		trial.Problem = err.Error()
		return trial
	}
	trial.Callers, trial.OfCallers, trial.ToV2, trial.ToLegacy, trial.Of = moves.Callers, moves.OfCallers, moves.ToV2, moves.ToLegacy, moves.OfEvents
	trial.Exact, trial.Held = moves.Exact, moves.Held
	return trial
}

func tryOut(plan *planUse, of *console.Trial, now time.Time) (*migration.Moves, error) {
	rule, share, err := ruleAndShare(of.Rule, of.Account, of.Percent)
	if err != nil {
		return nil, err
	}
	report := shownReport.Load()
	if report == nil {
		return nil, errNoReport
	}
	type result struct {
		moves *migration.Moves
		err   error
	}
	got, ok := within(plan.turns[askingPage], planPatience, func() (r result) {
		r.moves, r.err = plan.get().TryShare(migration.Order{Time: now, Base: &of.Revision}, rule, share, report.get())
		return r
	})
	if !ok {
		return nil, errSlowDisk
	}
	return got.moves, got.err
}

// ruleAndShare reads what a form says.
func ruleAndShare(target, account, percent string) (rule migration.Rule, share migration.Share, err error) {
	if rule, err = migration.ParseRule(strings.TrimSpace(target), strings.TrimSpace(account)); err != nil {
		return rule, share, err
	}
	share, err = migration.ParseShare(strings.TrimSpace(percent))
	return rule, share, err
}
