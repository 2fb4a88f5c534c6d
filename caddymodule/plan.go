package caddymodule

import (
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/td-postback/gateway/migration"
	"github.com/td-postback/gateway/postback"
)

// This file has the plan that the handlers of a configuration share: it is opened, saved
// and closed here. What it decides is in package migration.

// planFile is the plan's file in its directory.
const planFile = "plan.db"

// planPause is how long it is between two tries to write a plan that could not be
// written.
const planPause = 2 * time.Second

// sharedPlans has the plans that configurations use, by their directories. They outlive
// configurations: a reload goes on with the same, and moves nothing.
var sharedPlans = caddy.NewUsagePool()

// sharedPlan is a plan that configurations share.
type sharedPlan struct {
	dir     string
	current atomic.Pointer[migration.Steering] // nil before it is opened
	trouble atomic.Bool                        // it could not be read or written, the last time
	turns   [askings]turn                      // to wait for its disk

	mu     sync.Mutex           // of what is below
	config migration.PlanConfig // of current, or that with which it is to be opened
	nats   []string             // the cluster that has it, too
	saver  *saver               // nil before it is opened
}

// planUse is a configuration's use of a plan.
type planUse struct {
	*sharedPlan
	options Migrate
	config  migration.PlanConfig
	nats    []string // the cluster that has the plan of all gateways; nil if it is this one's own
}

// usePlan takes part in the plan of a configuration. What it returns must be left, unless
// it is nil.
func (a *App) usePlan(options *Migrate) (*sharedPlan, error) {
	config, err := options.planConfig()
	if err != nil {
		return nil, err
	}
	if a.plan != nil && a.plan.config != config {
		return nil, fmt.Errorf("migrate: another td_postback block has other options for the plan (start %q, stick %q, dir %q): all blocks with migrate share one, so give them the same",
			a.plan.options.Start, a.plan.options.Stick, a.plan.options.Dir)
	}
	dir := filepath.Dir(config.Path)
	value, _, err := sharedPlans.LoadOrNew(dir, func() (caddy.Destructor, error) {
		shared := &sharedPlan{dir: dir, config: config}
		for i := range shared.turns {
			shared.turns[i] = newTurn()
		}
		return shared, nil
	})
	if err != nil {
		return nil, err
	}
	shared := value.(*sharedPlan) //nolint:forcetypeassert // it has nothing else
	var nats []string
	if a.plan != nil {
		nats = a.plan.nats
	}
	a.plan = &planUse{shared, *options, config, nats}
	return shared, nil
}

// planConfig is what package migration needs to know. Its path is that of a file, whether
// the plan is kept there or not.
func (m *Migrate) planConfig() (c migration.PlanConfig, err error) {
	dir, err := filepath.Abs(m.Dir)
	if err != nil {
		return c, fmt.Errorf("migrate dir %q: must be a directory: %w", m.Dir, err)
	}
	c.Path = filepath.Join(dir, planFile)
	if c.Start, err = migration.ParseLane(m.Start); err != nil {
		return c, fmt.Errorf("migrate start %q: must be %s%s", m.Start, allowedStart, didYouMean(nearest(m.Start, migration.LaneNames())))
	}
	if c.Stick, err = migration.ParseStick(m.Stick); err != nil {
		return c, fmt.Errorf("migrate stick %q: must be %s%s", m.Stick, allowedStick, didYouMean(nearest(m.Stick, migration.StickNames())))
	}
	return c, nil
}

// decide decides by which lane a call goes.
func (s *sharedPlan) decide(q laneQuery) migration.Lane {
	return s.get().Plan().Lane(&migration.Caller{Key: q.Key, Client: q.Client}, q.Destination)
}

// decideAtHead decides about a call with several events without its tables, unless they
// may matter.
func (s *sharedPlan) decideAtHead(q laneQuery) (lane migration.Lane, known bool) {
	p := s.get().Plan()
	if p.TablesMatter() {
		return migration.Legacy, false
	}
	return p.Lane(&migration.Caller{Key: q.Key, Client: q.Client}, q.Destination), true
}

// decideByTables decides about a call with records of these tables.
func (s *sharedPlan) decideByTables(q laneQuery, tables []postback.Destination) migration.Lane {
	return s.get().Plan().LaneOfAll(&migration.Caller{Key: q.Key, Client: q.Client}, tables)
}

// leave undoes usePlan.
func (s *sharedPlan) leave() { _, _ = sharedPlans.Delete(s.dir) }

// get is the plan. It is opened when Caddy starts the configuration, or when the first
// call comes, if that is before.
func (s *sharedPlan) get() *migration.Steering {
	if p := s.current.Load(); p != nil {
		return p
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.current.Load(); p != nil {
		return p
	}
	config := s.config
	if !stateStays {
		config.Path = ""
	}
	p, err := migration.OpenPlan(config)
	s.takeOver(p, shownPlan.Load())
	s.warn(errors.Join(err, s.join(p)))
	s.current.Store(p)
	s.saver = startSaver(planPause, func() { s.warn(p.Save()) })
	return p
}

// takeOver has a plan go on that is in force, but with another directory.
func (s *sharedPlan) takeOver(p *migration.Steering, before *planUse) (taken bool) {
	if before == nil || before.sharedPlan == s {
		return false
	}
	p.TakeOver(before.get().Plan())
	return true
}

// accept lets a configuration decide that has been accepted: what it says of the plan
// counts, and its plan is the one that is shown and changed.
func (u *planUse) accept() {
	p := u.get()
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.takeOver(p, shownPlan.Swap(u)) {
		p.Keep()
	}
	if u.sharedPlan.config != u.config {
		u.sharedPlan.config = u.config
		p.Configure(u.config.Start, u.config.Stick)
	}
	u.rejoin(p, u.nats)
}

// Destruct closes a plan that no configuration uses any more.
func (s *sharedPlan) Destruct() error {
	if shown := shownPlan.Load(); shown != nil && shown.sharedPlan == s {
		shownPlan.CompareAndSwap(shown, nil)
	}
	if s.saver == nil {
		return nil
	}
	return leaveDisk(func() error {
		s.saver.end()
		p := s.current.Load()
		return errors.Join(p.Save(), p.Close())
	})
}

var errDiskLeft = errors.New("the disk does not answer: what is not saved may be lost")

// leaveDisk ends the use of a file. Should its disk not answer, that goes on by itself: a
// stop does not wait for it, nor a reload, by which an operator goes to another disk.
func leaveDisk(end func() error) error {
	err, ok := within(newTurn(), diskPatience, end)
	if !ok {
		return errDiskLeft
	}
	return err
}

// warn tells of a plan that could not be read or written. Calls go by the plan that is in
// memory. Without an error, it could.
func (s *sharedPlan) warn(err error) {
	s.trouble.Store(err != nil)
	if err == nil {
		return
	}
	if e := planWarning.check(caddy.Log().Named(handlerID)); e != nil {
		e.Write(zap.String("dir", s.dir), zap.Error(err),
			zap.String("advice", "see to the directory and its disk, and give each gateway one of its own; with spool nats, see to the cluster; what caddy td-migrate status shows is in force, and nothing moves by itself"))
	}
}

// shownPlan is the plan that td-migrate shows and changes: that of the configuration that
// runs. It is nil without one.
var shownPlan atomic.Pointer[planUse]
