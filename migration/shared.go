package migration

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// This file has the plan that several gateways share. What all of them go by is at one
// place, in a cluster. Each gateway keeps what it read there last in its own file too,
// and goes on with that when it is cut off. What only it knows, a rollback of its own,
// is in its file alone, and nothing that the cluster says lifts it.
//
// The history says what came of what. A plan in the cluster that a gateway's own came
// of has lost changes, as a backup has that was put back: the gateway puts them there
// again. Of a plan that has nothing to do with its own, it takes up nothing but a hold.

// Shared is the place of a plan that several gateways share, and lets them hear of each
// other. Its methods may be called at the same time.
type Shared interface {
	// Read reads the newest plan, from who decides over it, and its number. There is
	// none if the text is nil. The error is ErrAway if there is no connection, for which
	// it may have waited a little.
	Read(ctx context.Context) (text []byte, number uint64, err error)

	// Write makes a plan the newest, if that has still the number; else the error is
	// ErrOutdated. After any other error, it may be the newest all the same.
	Write(ctx context.Context, text []byte, number uint64) error

	// Say tells all gateways something, this one too, if they can hear it. It does not
	// wait for them.
	Say(text []byte)

	// Hear has a function called, one call at a time, with what gateways say.
	Hear(hear func(text []byte)) error

	Close() error
}

// The errors of a Shared that say what to do.
var (
	ErrOutdated = errors.New("another change was made at the same time")
	ErrAway     = errors.New("there is no connection to the cluster that has the plan")
)

// SharingPatience is how long a change of a plan that gateways share may take: until the
// cluster has taken it, and then until they have followed.
const SharingPatience = changePatience + followFor

const (
	pollEvery      = 2 * time.Second        // a gateway looks for a new plan, and says that it is there
	joinPatience   = 5 * time.Second        // for the plan, at the start
	changePatience = 10 * time.Second       // for the cluster to take a change: another server may be about to lead
	retryPause     = 100 * time.Millisecond // before something is tried again that failed at once
)

// sharing is a gateway's part in a plan that several share.
type sharing struct {
	steering *Steering
	shared   Shared
	gateways

	ctx    context.Context //nolint:containedctx // ends with the sharing
	cancel context.CancelFunc
	tasks  sync.WaitGroup
	nudges chan struct{}

	ordering  chan struct{} // has room for one change at a time; it comes before the steering's mutex
	rollbacks atomic.Int32  // that are under way
}

// Join has the plan be that of all gateways at one place from now on. It puts this
// gateway's there if none is, and waits some seconds for the cluster. The name is by
// which people know this gateway. Without a place, the gateway has its plan for itself
// again. Join closes the place before. The error says why the plan may not be that of
// all; then Trouble says so, until it is.
func (s *Steering) Join(shared Shared, name string) error {
	s.leaveOthers()
	if shared == nil {
		return nil
	}
	j := &sharing{steering: s, shared: shared, gateways: newGateways(name, s.Plan().Signals().Revision), nudges: make(chan struct{}, 1), ordering: make(chan struct{}, 1)}
	j.ctx, j.cancel = context.WithCancel(context.Background())
	s.file.mu.Lock()
	s.joined = j
	s.file.mu.Unlock()
	err := shared.Hear(j.listen)
	err = errors.Join(err, j.follow(joinPatience))
	j.say(true)
	j.tasks.Go(j.keep)
	return err
}

// leaveOthers has the plan be this gateway's alone.
func (s *Steering) leaveOthers() {
	s.file.mu.Lock()
	defer s.file.mu.Unlock()
	before := s.joined
	s.joined, s.away, s.apart = nil, nil, nil
	if before == nil {
		return
	}
	s.file.mu.Unlock()
	before.leave()
	s.file.mu.Lock()
	s.takeUpSeen(nil)
	s.enforce(s.state)
}

// leave tells the others that this gateway is not one of them any more.
func (j *sharing) leave() {
	j.cancel()
	j.tasks.Wait()
	j.shared.Say(presence{ID: j.self, Name: j.name, Leaves: true}.encode())
	_ = j.shared.Close() // nothing is lost by it
}

// keep follows the plan, every two seconds and when another gateway has a newer one. If
// that is held up, as by a disk that hangs, it looks for a rollback all the same.
func (j *sharing) keep() {
	following := make(chan struct{}, 1)
	var missed atomic.Bool
	for {
		select {
		case <-j.ctx.Done():
			return
		case <-j.nudges:
		case <-time.After(pollEvery):
		}
		select {
		case following <- struct{}{}:
			j.tasks.Go(func() {
				_ = j.follow(pollEvery) // Trouble says it
				j.say(false)
				<-following
				if missed.Swap(false) {
					j.nudge()
				}
			})
		default:
			missed.Store(true)
			if len(following) == 0 { // it has just ended
				j.nudge()
			}
			j.peek()
		}
	}
}

// peek looks for a rollback, and for nothing else.
func (j *sharing) peek() {
	ctx, cancel := context.WithTimeout(j.ctx, pollEvery)
	defer cancel()
	if plan, _, err := j.read(ctx); err == nil && plan != nil { // follow has the error too
		j.brake(plan)
	}
}

// read reads the plan in the cluster, or nil if none is there.
func (j *sharing) read(ctx context.Context) (plan *planState, number uint64, err error) {
	text, number, err := j.shared.Read(ctx)
	if err != nil || text == nil {
		return nil, number, err
	}
	plan, err = decodeState(text)
	return plan, number, err
}

// brake has a rollback in a plan that is new hold at once, before the plan is taken up.
func (j *sharing) brake(plan *planState) {
	s := j.steering
	if plan.Hold == nil || j.ctx.Err() != nil {
		return
	}
	for seen := s.braked.Load(); plan.Revision > s.Plan().Signals().Revision && (seen == nil || seen.Revision < plan.Revision); seen = s.braked.Load() {
		if s.braked.CompareAndSwap(seen, plan) {
			s.layHold(plan.Revision)
		}
	}
}

func (j *sharing) nudge() {
	select {
	case j.nudges <- struct{}{}:
	default: // one is enough
	}
}

// follow takes up what is new in the cluster, and has it take a rollback that it has not
// taken.
func (j *sharing) follow(patience time.Duration) error {
	j.ordering <- struct{}{}
	defer func() { <-j.ordering }()
	ctx, cancel := context.WithTimeout(j.ctx, patience)
	defer cancel()
	_, _, err := j.catchUp(ctx)
	if wanted := j.wanted(); err == nil && wanted != nil {
		_, _, err = j.carryOut(ctx, wanted.order(), &wish{action: ActionRollback})
	}
	return err
}

// wanted is a rollback that the cluster has not taken, unless somebody waits for that.
func (j *sharing) wanted() *Hold {
	if j.rollbacks.Load() > 0 {
		return nil
	}
	j.steering.file.mu.Lock()
	defer j.steering.file.mu.Unlock()
	return j.steering.state.Wanted
}

// catchUp reads the plan in the cluster, and takes it up.
func (j *sharing) catchUp(ctx context.Context) (plan *planState, number uint64, err error) {
	for {
		if plan, number, err = j.read(ctx); err != nil {
			j.note(err)
			return nil, 0, err
		}
		if plan != nil {
			j.brake(plan)
		}
		plan, back := j.meet(plan)
		if !back {
			return plan, number, nil
		}
		if err = j.write(ctx, plan, number); !errors.Is(err, ErrOutdated) && err != nil {
			return nil, 0, err
		} // and read again, as the number is another one
	}
}

// write writes a plan into the cluster.
func (j *sharing) write(ctx context.Context, plan *planState, number uint64) error {
	text, err := plan.withOwn(nil, nil).encode()
	if err != nil {
		return err
	}
	err = j.shared.Write(ctx, text, number)
	if !errors.Is(err, ErrOutdated) {
		j.note(err)
	}
	return err
}

// note keeps why the cluster could not be asked, or that it could.
func (j *sharing) note(err error) {
	s := j.steering
	s.file.mu.Lock()
	defer s.file.mu.Unlock()
	if s.joined == j {
		s.away = err
	}
}

// meet compares the plan in the cluster, or nil if none is there, with this gateway's,
// which takes it up if it came of its own. It returns the plan of all, and whether that
// is to be put into the cluster.
func (j *sharing) meet(plan *planState) (all *planState, back bool) {
	s := j.steering
	s.file.mu.Lock()
	defer s.file.mu.Unlock()
	if s.joined != j {
		return plan, false // nor does it ask again
	}
	s.takeUpSeen(plan)
	own := s.state
	s.away, s.apart = nil, nil
	switch {
	case plan == nil && own.Revision == 0:
		return own, false
	case plan == nil || plan.Revision < own.Revision && plan.isBefore(own):
		return own, true
	case own.isBefore(plan):
		s.takeUp(plan)
	default:
		s.apart = plan
		s.holdApart(plan)
	}
	return plan, false
}

// isBefore reports whether another plan came of this one by changes, or is the same.
// Of one that is older than the other's history, that cannot be told: then it is.
func (s *planState) isBefore(other *planState) bool {
	if s.Revision == 0 || s.Revision > other.Revision {
		return s.Revision == 0
	}
	oldest := other.History[0].Revision
	if s.Revision < oldest {
		return true
	}
	a, errA := json.Marshal(s.last())
	b, errB := json.Marshal(other.History[s.Revision-oldest])
	return errA == nil && errB == nil && bytes.Equal(a, b)
}

// takeUp puts a plan of all gateways into force. It does not lift what is this gateway's
// own, but for a rollback that all of them have heard of now.
func (s *Steering) takeUp(plan *planState) {
	wanted := s.state.Wanted
	if plan.Hold != nil {
		wanted = nil
	}
	if s.loaded { // the file counts no more
		s.lost = nil
	}
	if s.state.Revision == plan.Revision && s.state.Wanted == wanted {
		return
	}
	next := plan.withOwn(s.state.Local, wanted)
	s.enforce(next)
	_ = s.write(next) // Trouble says so, and Save tries again
}

// takeUpSeen takes up the plan that was seen rolled back last, unless the one that is in
// the cluster now, or nil, came of it. So what the cluster has lost of it is put there
// again, as any other change, and nothing holds that status does not show.
func (s *Steering) takeUpSeen(now *planState) {
	seen := s.braked.Swap(nil)
	switch {
	case seen == nil || now != nil && seen.isBefore(now) || seen.isBefore(s.state):
	case s.state.isBefore(seen):
		s.takeUp(seen)
	default:
		s.holdApart(seen)
	}
}

// holdApart rolls a gateway back that has a plan of its own when all others are. That is
// towards the legacy host, so it is safe whichever of the plans counts.
func (s *Steering) holdApart(plan *planState) {
	if plan.Hold == nil || s.state.Local != nil && s.state.Wanted == nil {
		return
	}
	next := s.state.withOwn(cmp.Or(s.state.Local, s.holdHere(plan.Hold.order())), nil)
	s.enforce(next)
	_ = s.write(next)
}

func (h *Hold) order() *Order { return &Order{Time: h.Time, Who: h.Who, Note: h.Note} }

// holdHere is a hold of this gateway alone.
func (s *Steering) holdHere(o *Order) *Hold {
	return &Hold{Revision: s.state.Revision, Time: o.Time, Who: o.Who, Note: o.Note}
}

// change carries an order out for all gateways, and waits until they have followed.
func (j *sharing) change(o *Order, w *wish) (*Outcome, error) {
	out, taken, err := j.order(o, w)
	j.nudge() // to say what has become of this gateway
	switch {
	case err != nil:
		return nil, err
	case taken:
		j.await(out, w.action)
	default:
		j.nobodyFollows(out)
	}
	return out, nil
}

// order carries an order out, and says whether the cluster has taken it: if not, it is a
// rollback, and holds here.
func (j *sharing) order(o *Order, w *wish) (out *Outcome, taken bool, err error) {
	var before *planState
	if w.action == ActionRollback { // here at once: the cluster may be slow, or away
		j.rollbacks.Add(1)
		defer j.rollbacks.Add(-1)
		before = j.steering.lay(o, w)
	}
	j.ordering <- struct{}{}
	defer func() { <-j.ordering }()
	ctx, cancel := context.WithTimeout(j.ctx, changePatience)
	defer cancel()
	plan, made, err := j.carryOut(ctx, o, w)
	s := j.steering
	s.file.mu.Lock()
	defer s.file.mu.Unlock()
	switch {
	case err == nil:
		return &Outcome{Revision: plan.Revision, Change: made, Unsaved: s.unsaved()}, true, nil
	case before == nil:
		return nil, false, err
	case !errors.As(err, new(*NotSavedError)): // somebody else has changed the plan
		s.enforce(s.state.withOwn(s.state.Local, before.Wanted))
		return nil, false, err
	}
	_ = s.write(s.state) // Outcome says so, and Save tries again
	return s.outcome(s.made(o, ActionRollback)), false, nil
}

// lay rolls this gateway back, until the cluster has taken the rollback. It returns the
// plan before, or nil if the order is for another one.
func (s *Steering) lay(o *Order, w *wish) *planState {
	s.file.mu.Lock()
	defer s.file.mu.Unlock()
	before := s.state
	err := o.check(before, w.action)
	if err == nil {
		s.enforce(before.withOwn(before.Local, cmp.Or(before.Wanted, s.holdHere(o))))
	}
	if w.atOnce { // such an order can only be carried out
		s.rolling.Add(-1)
	}
	if err != nil {
		return nil
	}
	return before
}

// made is a change that is in no history: one of this gateway alone.
func (s *Steering) made(o *Order, action Action) *Change {
	return &Change{Revision: s.state.Revision, Time: o.Time, Who: o.Who, Note: o.Note, Action: action}
}

// carryOut carries an order out in the cluster, again and again until it is known what
// has become of it, or until ctx ends. It returns the plan of all, and the change that
// was made, or nil if there was nothing to change.
func (j *sharing) carryOut(ctx context.Context, o *Order, w *wish) (*planState, *Change, error) {
	var tried *planState
	for unsure := false; ; {
		plan, number, err := j.catchUp(ctx)
		if err == nil {
			if tried != nil && tried.isBefore(plan) {
				return plan, tried.last(), nil
			}
			next, refused := j.next(plan, o, w)
			if refused != nil || next == plan {
				return plan, nil, refused
			}
			tried = next
			if err = j.write(ctx, next, number); err == nil {
				j.meet(next)
				return next, next.last(), nil
			}
			unsure = unsure || !errors.Is(err, ErrOutdated) && !errors.Is(err, ErrAway)
		}
		if errors.Is(err, ErrAway) || !pauseFor(ctx, retryPause) {
			return nil, nil, &NotSavedError{Err: err, Unsure: unsure}
		}
	}
}

// pauseFor waits, and reports whether there is time left then.
func pauseFor(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// next is the plan of all after a change.
func (j *sharing) next(plan *planState, o *Order, w *wish) (*planState, error) {
	s := j.steering
	s.file.mu.Lock()
	defer s.file.mu.Unlock()
	if s.apart != nil && w.action != ActionRollback {
		return nil, invalid("%w", s.errApart())
	}
	if err := o.check(plan, w.action); err != nil {
		return nil, err
	}
	return plan.apply(o, w)
}

func (s *planState) last() *Change { return &s.History[len(s.History)-1] }

// changeHere carries an order out for this gateway alone.
func (s *Steering) changeHere(o *Order, w *wish) (*Outcome, error) {
	s.tryAgain()
	if w.atOnce { // such an order can only be carried out
		s.rolling.Add(-1)
	}
	if w.action != ActionRollback && w.action != ActionResume {
		return nil, invalid("only a rollback or a resume can be for one gateway alone")
	}
	if err := o.check(s.state, w.action); err != nil {
		return nil, err
	}
	if s.joined != nil {
		defer s.joined.nudge()
	}
	if w.action == ActionRollback {
		if s.state.Local != nil {
			return s.outcome(nil), nil
		}
		next := s.state.withOwn(s.holdHere(o), s.state.Wanted)
		s.enforce(next)
		_ = s.write(next) // Outcome says so, and Save tries again
		return s.outcome(s.made(o, w.action)), nil
	}
	return s.resumeHere(o)
}

// resumeHere lifts what holds at this gateway alone, and takes up the plan of all if it
// had another one.
func (s *Steering) resumeHere(o *Order) (*Outcome, error) {
	if !s.state.hasOwn() && s.apart == nil {
		return s.outcome(nil), nil
	}
	next := cmp.Or(s.apart, s.state).withOwn(nil, nil)
	if err := s.write(next); err != nil {
		return nil, &NotSavedError{Err: err}
	}
	if next.Revision == 0 {
		_ = s.file.removeCopy() // else it would hold after a restart, until the next resume
	}
	s.apart = nil
	s.enforce(next)
	return s.outcome(s.made(o, ActionResume)), nil
}

// unsavedHere says what becomes of a rollback that only this gateway knows of.
func (s *Steering) unsavedHere() string {
	restart := "a restart does not lift it"
	if s.unwritten != nil {
		restart = fmt.Sprintf("it could not be written (%v), so until then a restart would begin with %s", s.unwritten, s.saved.summary())
	}
	switch {
	case s.state.Wanted != nil && s.away != nil:
		return fmt.Sprintf("the rollback is in force at this gateway alone, as the cluster that has the plan has not taken it (%v); it is tried again every few seconds, and the other gateways go on until it has, or until each is rolled back by itself; %s", s.away, restart)
	case s.unwritten != nil:
		return "the rollback of this gateway is in force; " + restart
	}
	return ""
}

// troubleOfAll is why the plan may not be that of all gateways.
func (s *Steering) troubleOfAll() error {
	switch {
	case s.joined == nil:
		return nil
	case s.away != nil:
		return fmt.Errorf("the cluster that has the plan of all gateways cannot be used (%w): this one goes on with %s", s.away, s.state.summary())
	case s.apart != nil:
		return s.errApart()
	case s.joined.isDeaf():
		return errDeaf
	}
	return nil
}

func (s *Steering) errApart() error {
	return fmt.Errorf("the plan of this gateway, %s, has nothing to do with that of the others, %s: it goes on with its own until a resume of this gateway alone takes up theirs", s.state.summary(), s.apart.summary())
}
