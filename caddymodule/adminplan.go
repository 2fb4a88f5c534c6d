package caddymodule

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/td-postback/gateway/migration"
)

// This file is what an operator sees of the plan, and how it is changed, over the admin
// API. The td-migrate command is a client of it.

// maxPlanBody is the longest body of a change, in bytes: several times what the longest
// rule and the longest note take.
const maxPlanBody = 16 << 10

var errNoPlan = errors.New("there is no plan of the lanes, and everything goes to v2: write migrate into td_postback, and reload; then everything goes to the legacy host, or stays at v2 with start v2 in it")

// planAnswer is the plan, and what has become of the calls of the last hour.
type planAnswer struct {
	migration.Status
	Rules []migration.RuleStatus `json:"rules"` // the first is the default
	Start string                 `json:"start"` // the lane of all calls before the first change

	// LastChange is nil as long as nobody has made a plan.
	LastChange *migration.Change `json:"last_change"`
}

// outcomeAnswer is what became of a change.
type outcomeAnswer struct {
	migration.Outcome
	Message string    `json:"message,omitempty"` // says so, if nothing has changed
	Fit     *shownFit `json:"fit,omitempty"`     // of a share, what its rule is about
}

// movesAnswer is what a share would move.
type movesAnswer struct {
	Revision uint64           `json:"revision"` // of the plan, which has not changed
	DryRun   bool             `json:"dry_run"`
	Moves    *migration.Moves `json:"moves"`
	Fit      *shownFit        `json:"fit"` // what the rule is about
}

// conflictAnswer says what others have changed meanwhile. Its error stands where Caddy's
// own answers have it.
type conflictAnswer struct {
	Error    string             `json:"error"`
	Revision uint64             `json:"revision"`
	Changes  []migration.Change `json:"changes"` // since the revision of If-Match, as far as they are kept
}

// shownMigration is the plan and the report of the configuration that runs.
func shownMigration() (*planUse, *migration.Report, error) {
	plan, report := shownPlan.Load(), shownReport.Load()
	if plan == nil || report == nil {
		return nil, nil, caddy.APIError{HTTPStatus: http.StatusNotFound, Err: errNoPlan}
	}
	return plan, report.get(), nil
}

func servePlan(w http.ResponseWriter, _ *http.Request) error {
	plan, report, err := shownMigration()
	if err != nil {
		return err
	}
	answer, ok := within(plan.turns[askingPlan], diskPatience, func() (a planAnswer) {
		// The revision comes first: who changes the plan by an older one is told so.
		a.Status, a.Start = *plan.get().Status(), plan.config.Start.String()
		a.Rules = plan.get().Shares(report, time.Now())
		if history := plan.get().History(); len(history) > 0 {
			a.LastChange = &history[len(history)-1]
		}
		return a
	})
	if !ok {
		return errSlowDisk
	}
	return writePlan(w, http.StatusOK, answer.Revision, answer)
}

func serveHistory(w http.ResponseWriter, _ *http.Request) error {
	plan, _, err := shownMigration()
	if err != nil {
		return err
	}
	history, ok := within(plan.turns[askingPlan], diskPatience, func() []migration.Change { return plan.get().History() })
	if !ok {
		return errSlowDisk
	}
	return writeJSON(w, http.StatusOK, append([]migration.Change{}, history...))
}

// diskPatience is how long who asks for the plan, or changes it, waits for a change that
// is on its way to the disk.
const diskPatience = 5 * time.Second

var errSlowDisk error = caddy.APIError{
	HTTPStatus: http.StatusServiceUnavailable,
	Err:        errors.New("the plan's disk does not answer: a change is being written, and not in force yet. Calls go by the plan, and a rollback holds at once; see to the disk, and ask again"),
}

// errNotBegun is a change that was not tried, since one before it waits for the disk.
var errNotBegun error = caddy.APIError{
	HTTPStatus: http.StatusServiceUnavailable,
	Err:        errors.New("the plan's disk does not answer, and a change before this one waits for it: nothing has changed. A rollback holds at once; see to the disk, and then try again"),
}

// errUnsure is a change of which the disk has not said that it has it.
var errUnsure error = caddy.APIError{HTTPStatus: http.StatusServiceUnavailable, Err: errUnconfirmed}

var errUnconfirmed = errors.New("the plan's disk does not answer, so the change is not confirmed. It may hold as soon as the disk answers, and at other gateways that share the plan it may hold now: see to the disk, and look at the plan again before you do anything but roll back, which holds at once")

// asking is what is asked of a plan. While its disk does not answer, one of each kind waits
// for it, and no more: the next ones are told so when their time is over.
type asking int

const (
	askingHealth   asking = iota
	askingPlan            // without changing it
	askingChange          // for a change that must be on disk before it holds
	askingRollback        // for one that holds at once
	askingLocal           // for one of this gateway alone
	askingPage            // without changing it, for the console
	askings
)

// turn is who may wait for the disk.
type turn chan struct{}

func newTurn() turn { return make(turn, 1) }

// within is what do returns, unless that takes longer than the limit. Then do may still
// run, or, if somebody else has the turn, it was never called.
func within[T any](of turn, limit time.Duration, do func() T) (result T, ok bool) {
	result, _, ok = begin(of, limit, do)
	return result, ok
}

// begin is within, and reports also whether do was called.
func begin[T any](of turn, limit time.Duration, do func() T) (result T, begun, ok bool) {
	over := time.NewTimer(limit)
	defer over.Stop()
	select {
	case of <- struct{}{}:
	case <-over.C:
		return result, false, false
	}
	done := make(chan T, 1)
	go func() {
		defer func() { <-of }()
		done <- do()
	}()
	select {
	case result = <-done:
		return result, true, true
	case <-over.C:
		return result, true, false
	}
}

// writePlan answers with the plan's revision as ETag.
func writePlan(w http.ResponseWriter, status int, revision uint64, answer any) error {
	w.Header().Set("ETag", etagOf(revision))
	return writeJSON(w, status, answer)
}

// etagOf is a revision as If-Match names it.
func etagOf(revision uint64) string { return `"` + strconv.FormatUint(revision, 10) + `"` }

// planRequest is the body of a change.
type planRequest struct {
	Rule     string           `json:"rule,omitempty"`
	Account  string           `json:"account,omitempty"`
	Percent  *migration.Share `json:"percent,omitempty"`
	Revision *uint64          `json:"revision,omitempty"` // of undo
	Note     string           `json:"note,omitempty"`
	Who      string           `json:"who,omitempty"`
	DryRun   bool             `json:"dry_run,omitempty"`
	Local    bool             `json:"local,omitempty"` // of this gateway alone
}

// planField is a field of such a body.
type planField struct {
	into    any
	allowed string
}

// fields are those that a change has.
func (b *planRequest) fields(action migration.Action) map[string]planField {
	fields := map[string]planField{
		"note": {&b.Note, "a string"},
		"who":  {&b.Who, "a string, such as alice@host"},
	}
	if action == migration.ActionShare || action == migration.ActionUnset {
		fields["rule"] = planField{&b.Rule, `a string, such as "shop.orders"`}
		fields["account"] = planField{&b.Account, `a string, such as "1234"`}
	}
	if action == migration.ActionShare {
		fields["percent"] = planField{&b.Percent, allowedPercent}
		fields["dry_run"] = planField{&b.DryRun, "true or false"}
	}
	if action == migration.ActionRollback || action == migration.ActionResume {
		fields["local"] = planField{&b.Local, "true or false"}
	}
	if action == migration.ActionUndo {
		fields["revision"] = planField{&b.Revision, "a whole number"}
	}
	return fields
}

const allowedPercent = "a number from 0 to 100, with at most two digits behind the point, such as 25 or 12.34"

// readPlanRequest reads the body of a change. What does not need one may be without. An
// error shows nothing of the body: a key may be in it.
func readPlanRequest(body io.Reader, action migration.Action) (*planRequest, error) {
	b := new(planRequest)
	err := readObject(body, b.fields(action))
	ofRule := action == migration.ActionShare || action == migration.ActionUnset
	switch {
	case errors.Is(err, io.EOF) && ofRule:
		return nil, errNoObject
	case err != nil && !errors.Is(err, io.EOF):
		return nil, err
	case ofRule && b.Rule == "":
		return nil, errors.New("rule: is not set: it must be " + allowedRule)
	case action == migration.ActionShare && b.Percent == nil:
		return nil, errors.New("percent: is not set: it must be " + allowedPercent)
	}
	return b, nil
}

const allowedRule = "database.table, database.* or *.*"

var errNoObject = errors.New(`the body must be one JSON object, such as {"rule":"shop.orders","percent":25}`)

// readObject reads a JSON object, and nothing behind it. A field that is not known, is
// there twice or is null is an error: a change must not mean something else than it says,
// and an account that a script does not know is not all accounts. If there is nothing at
// all, the error is io.EOF.
func readObject(body io.Reader, fields map[string]planField) error {
	in := json.NewDecoder(body)
	begin, err := in.Token()
	if errors.Is(err, io.EOF) {
		return err
	}
	if begin != json.Delim('{') {
		return objectError(err)
	}
	seen := make(map[string]bool)
	for in.More() {
		token, err := in.Token()
		if err != nil {
			return objectError(err)
		}
		name, _ := token.(string)
		field, known := fields[name]
		if !known {
			return unknownField(name, slices.Sorted(maps.Keys(fields)))
		}
		if seen[name] {
			return fmt.Errorf("%s: must be given once", name)
		}
		seen[name] = true
		var value json.RawMessage
		if err = in.Decode(&value); err == nil {
			err = field.read(value)
		}
		if err != nil {
			return field.problem(name, err)
		}
	}
	if _, err := in.Token(); err != nil {
		return objectError(err)
	}
	if _, err := in.Token(); !errors.Is(err, io.EOF) {
		return objectError(err)
	}
	return nil
}

var errNull = errors.New("it is null")

func (f planField) read(value []byte) error {
	if string(value) == "null" {
		return errNull
	}
	return json.Unmarshal(value, f.into)
}

// objectError says what of a body is wrong that is not one object.
func objectError(err error) error {
	if long, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return fmt.Errorf("the body must have at most %d bytes", long.Limit)
	}
	return errNoObject
}

// problem says what of a field is wrong.
func (f planField) problem(name string, err error) error {
	_, malformed := errors.AsType[*json.SyntaxError](err)
	_, long := errors.AsType[*http.MaxBytesError](err)
	if malformed || long || errors.Is(err, io.ErrUnexpectedEOF) {
		return objectError(err)
	}
	return fmt.Errorf("%s: must be %s", name, f.allowed)
}

func unknownField(name string, known []string) error {
	return fmt.Errorf("the body has a field that is not known%s: it may have %s", didYouMean(nearest(name, known)), strings.Join(known, ", "))
}

// baseOf is the revision that a change is based on, or nil if it does not say so.
func baseOf(r *http.Request) (*uint64, error) {
	values := r.Header.Values("If-Match")
	if len(values) == 0 {
		return nil, nil //nolint:nilnil // there is none, and that is no error
	}
	revision, err := strconv.ParseUint(strings.Trim(values[0], `"`), 10, 64)
	if err != nil || len(values) > 1 || values[0] != etagOf(revision) {
		return nil, badRequest(`If-Match: must be one revision of the plan in quotes, such as "41", as GET /td_postback/migration has it`)
	}
	return &revision, nil
}

// whoOf is who makes a change: who says so, or else where the request comes from.
func whoOf(r *http.Request, said string) string {
	if said != "" {
		return said
	}
	const api = "admin API"
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil || host == "" {
		return api // it comes by a socket of this machine
	}
	return api + " from " + host
}

// planChange makes the admin API's route of a change.
func planChange(action migration.Action) func(http.ResponseWriter, *http.Request) error {
	return func(w http.ResponseWriter, r *http.Request) error {
		plan, report, err := shownMigration()
		if err != nil {
			return err
		}
		base, err := baseOf(r)
		if err != nil {
			return err
		}
		body, err := readPlanRequest(http.MaxBytesReader(w, r.Body, maxPlanBody), action)
		if err != nil {
			return badRequest("%w", err)
		}
		order := migration.Order{Time: time.Now(), Who: whoOf(r, body.Who), Note: body.Note, Base: base, Local: body.Local}
		if body.DryRun {
			return tryShare(w, plan, report, order, body)
		}
		outcome, err := body.apply(plan, order, action)
		if err != nil {
			return planError(w, err)
		}
		answer := outcomeAnswer{Outcome: *outcome}
		if outcome.Change == nil && outcome.Unsaved == "" {
			answer.Message = unchanged(action)
		}
		if action == migration.ActionShare {
			answer.Fit, _ = within(plan.turns[askingPlan], diskPatience, func() *shownFit { return fitOf(plan.get(), report, body.rule()) })
		}
		return writePlan(w, http.StatusOK, outcome.Revision, answer)
	}
}

// unchanged says why a change has changed nothing.
func unchanged(action migration.Action) string {
	if action == migration.ActionUnset {
		return "nothing has changed: there is no such rule"
	}
	return "nothing has changed: the plan is like that already"
}

// rule is the rule that a change is about.
func (b *planRequest) rule() migration.Rule {
	return migration.Rule{Target: b.Rule, Account: b.Account}
}

// planResult is what became of an order.
type planResult struct {
	outcome *migration.Outcome
	err     error
}

// apply carries a change out. It does not wait without end for a disk that does not answer.
func (b *planRequest) apply(plan *planUse, order migration.Order, action migration.Action) (*migration.Outcome, error) {
	if action == migration.ActionRollback {
		return rollback(plan, order)
	}
	got, begun, ok := begin(plan.turns[askingChange], plan.patience(&order), func() (r planResult) {
		r.outcome, r.err = b.change(plan.get(), order, action)
		return r
	})
	switch {
	case ok:
		return got.outcome, got.err
	case begun:
		return nil, errUnsure
	default:
		return nil, errNotBegun
	}
}

// change makes a change that holds when it is written.
func (b *planRequest) change(plan *migration.Steering, order migration.Order, action migration.Action) (*migration.Outcome, error) {
	switch action {
	case migration.ActionShare:
		return plan.Share(order, b.rule(), *b.Percent)
	case migration.ActionUnset:
		return plan.Unset(order, b.rule())
	case migration.ActionUndo:
		return plan.Undo(order, b.Revision)
	default:
		return plan.Resume(order)
	}
}

// rollback rolls back. That is in force before it is on the disk, and a disk that does not
// answer holds up nobody. So it waits for no turn, unless a rollback is in force already: it
// is the same then.
func rollback(plan *planUse, order migration.Order) (*migration.Outcome, error) {
	kind := askingRollback
	switch {
	case order.Base != nil: // it is compared with the plan first
		kind = askingChange
	case order.Local:
		kind = askingLocal
	}
	of := plan.turns[kind]
	if order.Base == nil && !plan.get().Plan().Signals().Held {
		of = newTurn()
	}
	got, ok := within(of, plan.patience(&order), func() (r planResult) {
		r.outcome, r.err = plan.get().Rollback(order)
		return r
	})
	now := plan.get().Plan().Signals()
	switch {
	case ok:
		return got.outcome, got.err
	case now.Held:
		return &migration.Outcome{Revision: now.Revision, Unsaved: unsavedYet}, nil
	default:
		return nil, errSlowDisk // it names a revision, which cannot be compared now
	}
}

const unsavedYet = "the rollback is in force, but the plan's disk does not answer; until it does, a restart would lift it, and begin with the plan before"

// tryShare says what a share would move. It need not name a revision, since it changes
// nothing.
func tryShare(w http.ResponseWriter, use *planUse, report *migration.Report, order migration.Order, body *planRequest) error {
	type result struct {
		base  uint64
		moves *migration.Moves
		fit   *shownFit
		err   error
	}
	got, ok := within(use.turns[askingPlan], diskPatience, func() (r result) {
		plan := use.get()
		if order.Base == nil {
			revision := plan.Status().Revision
			order.Base = &revision
		}
		r.base = *order.Base
		if r.moves, r.err = plan.TryShare(order, body.rule(), *body.Percent, report); r.err == nil {
			r.fit = fitOf(plan, report, body.rule())
		}
		return r
	})
	switch {
	case !ok:
		return errSlowDisk
	case got.err != nil:
		return planError(w, got.err)
	default:
		return writePlan(w, http.StatusOK, got.base, movesAnswer{got.base, true, got.moves, got.fit})
	}
}

// planError answers to a change that is not made.
func planError(w http.ResponseWriter, err error) error {
	conflict, isConflict := errors.AsType[*migration.ConflictError](err)
	_, isInvalid := errors.AsType[*migration.InvalidError](err)
	_, notSaved := errors.AsType[*migration.NotSavedError](err)
	switch {
	case isConflict:
		return writePlan(w, http.StatusPreconditionFailed, conflict.Revision,
			conflictAnswer{err.Error(), conflict.Revision, append([]migration.Change{}, conflict.Changes...)})
	case errors.Is(err, migration.ErrNoBase):
		return caddy.APIError{HTTPStatus: http.StatusPreconditionRequired, Err: fmt.Errorf(`%w, as GET /td_postback/migration has it: If-Match: "41"`, err)}
	case isInvalid:
		return badRequest("%w", err)
	case notSaved:
		return caddy.APIError{HTTPStatus: http.StatusServiceUnavailable, Err: err}
	default:
		return err
	}
}
