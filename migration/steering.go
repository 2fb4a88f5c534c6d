package migration

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync/atomic"
	"time"
)

// PlanConfig says where a plan is kept, and what holds before anybody has made one.
type PlanConfig struct {
	// Start is the lane of everything before the first change.
	Start Lane

	// Stick says which calls of a share always go the same way.
	Stick Stick

	// Path is the file that keeps the plan, in a directory that is made if there is
	// none. A copy is beside it. Without one, the plan is gone with the process.
	Path string
}

// Steering has the plan that is in force. A change of it is checked, written, synced and
// put into force, in this order, and holds from the next call. All methods may be called
// at the same time.
type Steering struct {
	current atomic.Pointer[Plan]
	rolling atomic.Int32 // rollbacks that wait for the mutex

	// braked is the newest plan of all gateways that was seen rolled back, until it is
	// taken up, which a disk that hangs may put off. Its rollback holds before; else nil.
	braked atomic.Pointer[planState]

	file  planFile // its mutex is for what is below, too
	cfg   PlanConfig
	state *planState // what current was made of
	saved *planState // what a restart would begin with

	held      *Order // a rollback that is in force and could not be written; else nil
	loaded    bool   // the file was read, or cannot be
	unread    error  // why it could not be read, if it is not loaded
	lost      error  // why the plan is another one than was in force last, maybe; until somebody changes it
	unwritten error  // why the plan could not be written the last time
	uncopied  error  // why it could not be copied

	// Of a plan that several gateways share.
	joined *sharing   // nil as long as the plan is this gateway's alone
	away   error      // why the plan of all could not be read the last time
	apart  *planState // the plan of all, if this gateway's own did not come of it, nor it of that; else nil
}

// NotSavedError is a change that was refused, as it could not be written. Nothing has
// changed.
type NotSavedError struct {
	Err error

	// Unsure says that the cluster may have taken the change, and has not said so. It
	// holds when the cluster says that it has.
	Unsure bool
}

func (e *NotSavedError) Error() string {
	if e.Unsure {
		return fmt.Sprintf("the cluster has not confirmed the change, so it does not hold; if the cluster has taken it all the same, it will hold once the cluster answers: look at the plan again then (%v)", e.Err)
	}
	return fmt.Sprintf("the plan cannot be written, so nothing has changed: %v", e.Err)
}

// Unwrap is why.
func (e *NotSavedError) Unwrap() error { return e.Err }

var errClosed = errors.New("the plan is closed")

// Outcome is what became of an order.
type Outcome struct {
	Revision uint64  `json:"revision"` // of the plan that is in force now
	Change   *Change `json:"change"`   // nil if there was nothing to change

	// Unsaved is empty, or says that a rollback is in force but could not be written,
	// why, and what a restart would do.
	Unsaved string `json:"unsaved,omitempty"`

	// Followed and Lagging are the gateways that share the plan: those that have it in
	// force, this one too, and those of which that is not known, and why.
	Followed []string  `json:"followed,omitempty"`
	Lagging  []Gateway `json:"lagging,omitempty"`

	// Missing are those that were not heard of for more than a minute, and so are most
	// likely no more. A change does not fail for them. A rollback has them in Lagging, as
	// one that runs all the same, cut off, may go on towards v2.
	Missing []Gateway `json:"missing,omitempty"`
}

// OpenPlan reads a plan. It can always be used: the error says why it may not be the one
// that was in force last. Then Trouble says so too, until somebody changes the plan.
func OpenPlan(cfg PlanConfig) (*Steering, error) {
	s := &Steering{cfg: cfg, file: planFile{store: store{path: cfg.Path, buckets: [][]byte{planBucket}}}}
	s.file.mu.Lock()
	defer s.file.mu.Unlock()
	s.load()
	return s, s.trouble()
}

// Plan is the plan that is in force. It allocates nothing and waits for nothing.
func (s *Steering) Plan() *Plan { return s.current.Load() }

// Share gives a rule a share. A rule that there is not is made.
func (s *Steering) Share(o Order, rule Rule, share Share) (*Outcome, error) {
	return s.change(&o, &wish{action: ActionShare, rule: rule, share: share})
}

// Unset takes a rule away. The default stays.
func (s *Steering) Unset(o Order, rule Rule) (*Outcome, error) {
	return s.change(&o, &wish{action: ActionUnset, rule: rule})
}

// Undo makes the rules of a revision the newest, or takes back the last change of the
// rules if that is nil. It does not touch a hold.
func (s *Steering) Undo(o Order, revision *uint64) (*Outcome, error) {
	return s.change(&o, &wish{action: ActionUndo, revision: revision})
}

// Rollback sends everything to the legacy host, from the next call. If that cannot be
// written, it holds in memory all the same, and Save tries again. Without a Base, it
// does not even wait for a change that is being written to a slow disk.
func (s *Steering) Rollback(o Order) (*Outcome, error) {
	w := wish{action: ActionRollback, atOnce: o.Base == nil && len(o.Note) <= MaxNote}
	if w.atOnce {
		s.rolling.Add(1)
		s.layHold(math.MaxUint64)
	}
	return s.change(&o, &w)
}

// layHold rolls back at once, if the plan is older than a revision. It waits for no mutex.
// What is put into force later has to find a reason for it.
func (s *Steering) layHold(before uint64) {
	for p := s.Plan(); !p.held && p.signals.Revision < before && !s.current.CompareAndSwap(p, p.underHold()); p = s.Plan() {
	}
}

// Resume lifts what Rollback laid over the plan.
func (s *Steering) Resume(o Order) (*Outcome, error) {
	return s.change(&o, &wish{action: ActionResume})
}

// change carries an order out.
func (s *Steering) change(o *Order, w *wish) (*Outcome, error) {
	if err := o.makeFit(); err != nil {
		return nil, err
	}
	s.file.mu.Lock()
	if j := s.joined; j != nil && !o.Local {
		s.file.mu.Unlock()
		return j.change(o, w)
	}
	defer s.file.mu.Unlock()
	if o.Local {
		return s.changeHere(o, w)
	}
	return s.changeAlone(o, w)
}

// changeAlone carries an order out for a plan that is this gateway's alone.
func (s *Steering) changeAlone(o *Order, w *wish) (*Outcome, error) {
	s.tryAgain()
	if w.atOnce { // such an order can only be carried out
		s.rolling.Add(-1)
	}
	if err := o.check(s.state, w.action); err != nil {
		return nil, err
	}
	next, err := s.state.apply(o, w)
	if err != nil {
		return nil, err
	}
	if next == s.state {
		return s.outcome(nil), nil
	}
	made := &next.History[len(next.History)-1]
	if w.action == ActionRollback { // at once: the disk may be slow
		s.enforce(next)
		s.held = o
		_ = s.write(next) // Outcome says so, and Save tries again
		return s.outcome(made), nil
	}
	if err := s.write(next); err != nil {
		return nil, &NotSavedError{Err: err}
	}
	s.enforce(next)
	return s.outcome(made), nil
}

func (s *Steering) outcome(made *Change) *Outcome {
	return &Outcome{Revision: s.state.Revision, Change: made, Unsaved: s.unsaved()}
}

// unsaved says what a restart would do to a rollback that could not be written.
func (s *Steering) unsaved() string {
	if s.state.hasOwn() {
		return s.unsavedHere()
	}
	if s.held == nil {
		return ""
	}
	return fmt.Sprintf("the rollback is in force, but could not be written (%v), and is tried again every few seconds; until then a restart would lift it, and begin with %s",
		s.unwritten, s.saved.summary())
}

// enforce puts a plan into force.
func (s *Steering) enforce(next *planState) {
	s.state = next
	seen := s.braked.Load()
	p := newPlan(next.Rules, next.isHeld() || s.rolling.Load() > 0 || seen != nil && seen.Revision > next.Revision, s.cfg.Stick)
	p.state, p.signals.Revision = next, next.Revision
	if last := len(next.History) - 1; last >= 0 {
		p.signals.Changed = next.History[last].Time
	}
	s.current.Store(p)
}

// Configure changes what Open was told of the start and the stick. The start counts only
// as long as nobody has made a plan.
func (s *Steering) Configure(start Lane, stick Stick) {
	s.file.mu.Lock()
	defer s.file.mu.Unlock()
	s.cfg.Start, s.cfg.Stick = start, stick
	for _, state := range []**planState{&s.saved, &s.state} {
		if (*state).Revision == 0 {
			*state = beginning(start).withOwn((*state).Local, (*state).Wanted)
		}
	}
	s.enforce(s.state)
}

// TakeOver has a plan go on that was in force until now with another file, and waits for no
// disk of that one. If this file has another plan, or a newer one, that counts, but a
// rollback goes on here too. Keep writes what was taken over.
func (s *Steering) TakeOver(from *Plan) {
	s.file.mu.Lock()
	defer s.file.mu.Unlock()
	before, next := from.state, s.state
	switch {
	case !next.isBefore(before):
		next = next.withOwn(cmp.Or(before.Local, next.Local), cmp.Or(before.Wanted, next.Wanted))
	case before.Revision > 0:
		next = before
	default: // nobody has made a plan, and the start is this file's
		next = next.withOwn(before.Local, before.Wanted)
	}
	lifted := before.isHeld() && before.isBefore(next) // by a later change, which this plan has
	if from.held && !lifted && !next.isHeld() {
		next = next.withOwn(s.holdHere(&Order{Time: time.Now().UTC().Truncate(time.Second), Who: "a reload", Note: takenOver}), nil)
	}
	if next.Revision != s.state.Revision || next.Local != s.state.Local || next.Wanted != s.state.Wanted {
		s.enforce(next)
	}
}

const takenOver = "it was rolled back with the dir that migrate had before"

// Keep writes a plan that was taken over. Trouble says so if it cannot be written.
func (s *Steering) Keep() {
	s.file.mu.Lock()
	defer s.file.mu.Unlock()
	if s.state != s.saved {
		_ = s.write(s.state)
	}
}

// Save tries again what could not be read or written, and says what still cannot. The
// caller calls it every few seconds.
func (s *Steering) Save() error {
	s.file.mu.Lock()
	defer s.file.mu.Unlock()
	s.tryAgain()
	return s.trouble()
}

// Trouble is why the health of the plan is degraded: it could not be read and is the
// last good copy, or the start; or it could not be written. It is nil if all is well.
func (s *Steering) Trouble() error {
	s.file.mu.Lock()
	defer s.file.mu.Unlock()
	return s.trouble()
}

func (s *Steering) trouble() error {
	return errors.Join(s.lost, s.unwritten, s.uncopied, s.troubleOfAll())
}

// Close closes the file, and leaves the other gateways. Nothing is written any more.
func (s *Steering) Close() error {
	_ = s.Join(nil, "")
	s.file.mu.Lock()
	defer s.file.mu.Unlock()
	s.cfg.Path, s.loaded, s.unread, s.lost = "", false, errClosed, errClosed
	return s.file.close()
}

// tryAgain reads what could not be read, and writes what could not be written.
func (s *Steering) tryAgain() {
	if s.cfg.Path == "" {
		return
	}
	if !s.loaded {
		s.load()
	}
	if !s.loaded {
		return
	}
	s.file.leaveLostFile()
	if s.unwritten != nil || s.file.db == nil && !s.file.damaged {
		lost, change := s.lost, s.held != nil
		if s.write(s.state) == nil && !change {
			s.lost = lost
		}
	}
	if s.uncopied != nil {
		s.copy()
	}
}

// write writes a plan. Should that fail, nobody knows what is in the file: the plan that
// is in force is written again, later.
func (s *Steering) write(next *planState) error {
	var err error
	switch {
	case !s.loaded:
		err = s.unread
	case s.cfg.Path != "":
		err = s.file.write(next)
	}
	if err != nil {
		s.unwritten = fmt.Errorf("the plan's file %s cannot be written: %w", s.cfg.Path, err)
		return err
	}
	s.saved, s.held, s.lost, s.unwritten = next, nil, nil, nil
	s.copy()
	return nil
}

// copy copies what is in the file.
func (s *Steering) copy() {
	s.uncopied = nil
	if s.cfg.Path == "" || s.saved.Revision == 0 && !s.saved.hasOwn() {
		return
	}
	if err := s.file.writeCopy(s.saved); err != nil {
		s.uncopied = fmt.Errorf("the plan's copy %s cannot be written: %w", s.cfg.Path+copySuffix, err)
	}
}

// load reads the file and its copy, and puts what is in them into force, or else the
// start. A rollback that could not be written stays.
func (s *Steering) load() {
	best := beginning(s.cfg.Start)
	s.loaded = true
	if s.cfg.Path != "" {
		best = s.readBest(best)
	}
	if best.Revision == 0 {
		best = beginning(s.cfg.Start).withOwn(best.Local, best.Wanted)
	}
	s.saved = best
	if s.state != nil { // only now could it be read
		best = s.merge(best)
	}
	if s.held != nil {
		best = best.hold(s.held, ActionRollback)
	}
	s.enforce(best)
}

// merge is a plan that could only be read now, with what holds already: that of all
// gateways, and what is this gateway's alone.
func (s *Steering) merge(read *planState) *planState {
	next := read
	if s.joined != nil && s.away == nil && s.state.Revision >= read.Revision {
		next = s.state
	}
	return next.withOwn(cmp.Or(s.state.Local, read.Local), cmp.Or(s.state.Wanted, read.Wanted))
}

// readBest is the newest plan: that of the file, of its copy, or what was read before. If
// there is none, it is the start.
func (s *Steering) readBest(start *planState) *planState {
	inFile, err := s.file.read()
	s.loaded, s.unread = err == nil || errors.Is(err, errNoPlan) || isDamage(err), err
	copied, copyErr := s.file.readCopy()
	best := start
	for _, one := range []*planState{s.saved, copied, inFile} { // of the same revision, the last
		if one != nil && one.Revision >= best.Revision {
			best = one
		}
	}
	s.lost = nil
	switch {
	case best == inFile:
		if copied == nil || copied.Revision < best.Revision {
			s.saved = best
			s.copy()
		}
	case best.Revision == 0 && errors.Is(err, errNoPlan) && errors.Is(copyErr, errNoPlan): // nobody has made one
	case best.Revision == 0:
		s.lost = fmt.Errorf("the plan's file %s cannot be read (%w), nor its copy (%w): the start counts, with %s", s.cfg.Path, err, copyErr, best.summary())
	case err == nil:
		s.lost = fmt.Errorf("the plan's file %s has revision %d, which is older than its copy: the copy counts, with %s", s.cfg.Path, inFile.Revision, best.summary())
	default:
		s.lost = fmt.Errorf("the plan's file %s cannot be read (%w): the last good copy counts, with %s", s.cfg.Path, err, best.summary())
	}
	return best
}

// Status is a plan for people and programs.
type Status struct {
	Revision uint64      `json:"revision"` // 0 as long as nobody has made a plan
	Hold     *Hold       `json:"hold"`     // nil unless it is rolled back
	Stick    string      `json:"stick"`
	Rules    []RuleShare `json:"rules"` // the first is the default

	// Local is a rollback of this gateway alone: it stays until a resume of this gateway
	// alone, or, if it is meant for all gateways, until the cluster takes it.
	Local *Hold `json:"local,omitempty"`

	// Gateways are those that share the plan, this one too. Of one that is not on it,
	// each says why.
	Gateways []Gateway `json:"gateways,omitempty"`

	Degraded string `json:"degraded,omitempty"` // what Trouble says
	Unsaved  string `json:"unsaved,omitempty"`  // as in Outcome
}

// Status is the plan that is in force.
func (s *Steering) Status() *Status {
	s.file.mu.Lock()
	defer s.file.mu.Unlock()
	status := &Status{Revision: s.state.Revision, Hold: s.state.Hold, Stick: s.cfg.Stick.String(), Rules: slices.Clone(s.state.Rules), Unsaved: s.unsaved()}
	status.Local = cmp.Or(s.state.Local, s.state.Wanted)
	if s.joined != nil {
		status.Gateways = s.joined.list("", s.state.Revision)
	}
	if err := s.trouble(); err != nil {
		status.Degraded = err.Error()
	}
	return status
}

// History is the changes of the plan, as far as they are kept: the oldest comes first.
func (s *Steering) History() []Change {
	s.file.mu.Lock()
	defer s.file.mu.Unlock()
	return slices.Clone(s.state.History)
}
