package caddymodule

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyevents"

	"github.com/td-postback/gateway/spool"
)

func init() {
	caddy.RegisterModule(new(App))
}

// App opens the spools, the report and the plan of a configuration when Caddy starts it, and lets the
// configuration decide over them once all of it has started. So a configuration
// that is only checked, or that fails, changes nothing. It warns of a directory
// that was a spool, and that still holds records, but is in the configuration no
// more. It also has the secret, in Caddy's storage, under which write keys get the names
// by which logs call them. It needs no place in a configuration and has no options:
// td_postback handlers and td_call matchers load it.
//
// Starting may wait for a NATS cluster, at most 10 seconds, and for Caddy's storage, at
// most 5.
type App struct {
	uses         []*spoolUse
	report       *reportUse // nil without one
	plan         *planUse   // nil without one
	hosts        []shownHost
	fingerprints *fingerprints
}

// appOf is the app of the configuration that is being made.
func appOf(ctx caddy.Context) (*App, error) {
	app, err := ctx.App("td_postback")
	if err != nil {
		return nil, err
	}
	return app.(*App), nil //nolint:forcetypeassert // it has this name
}

// spoolUse is a handler's use of a spool.
type spoolUse struct {
	*sharedSpool
	options *Spool
	block   *spool.Block
}

// sharedSpools has the spools that configurations use, by their places. They
// outlive configurations: a reload hands a spool over without closing it.
var sharedSpools = caddy.NewUsagePool()

// CaddyModule returns the Caddy module information.
func (*App) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "td_postback",
		New: func() caddy.Module { return new(App) },
	}
}

// Provision subscribes to the event that the whole configuration has started.
func (a *App) Provision(ctx caddy.Context) error {
	a.fingerprints = newFingerprints(ctx.Storage())
	events, err := ctx.App("events")
	if err != nil {
		return err
	}
	return events.(*caddyevents.App).On("started", a)
}

// use takes part in a spool. What it returns must be given to leave, also
// after an error, unless it is nil.
func (a *App) use(options *Spool, block *spool.Block) (*spoolUse, map[string]*spool.Outbox, error) {
	place, err := options.place()
	if err != nil {
		return nil, nil, err
	}
	key, err := options.key()
	if err != nil {
		return nil, nil, err
	}
	value, _, err := sharedSpools.LoadOrNew(place, func() (caddy.Destructor, error) {
		return options.shared(place, key), nil
	})
	if err != nil {
		return nil, nil, err
	}
	use := &spoolUse{sharedSpool: value.(*sharedSpool), options: options, block: block} //nolint:forcetypeassert // it has nothing else
	for _, other := range a.uses {
		if other.Place() == place && !other.options.agrees(options) {
			return use, nil, fmt.Errorf("spool %s: another td_postback block has other options for it: give both the same, or each a dir of its own", place)
		}
	}
	if use.fixed != options.fixed(key) {
		return use, nil, fmt.Errorf("spool %s: it is open with another key_file, or with another user in nats: restart the gateway to change that", place)
	}
	a.uses = append(a.uses, use)
	return use, use.Attach(block), nil
}

// leave undoes use.
func (a *App) leave(use *spoolUse) error {
	a.uses = slices.DeleteFunc(a.uses, func(other *spoolUse) bool { return other == use })
	use.Detach(use.block)
	_, err := sharedSpools.Delete(use.Place())
	return err
}

// Start opens the report, the plan, and the spools that are not open yet. A spool that
// another process has, or that has another key, fails the configuration; one whose disk
// or cluster is in trouble is tried again later. The plan may wait for that cluster too,
// and does so at the same time.
func (a *App) Start() error {
	var opening sync.WaitGroup
	defer opening.Wait()
	if a.plan != nil {
		opening.Go(func() { a.plan.get() })
	}
	_ = a.fingerprints.secret() // made now, and not when a caller waits
	naming.CompareAndSwap(nil, a.fingerprints)
	for _, use := range a.uses {
		if err := use.Open(); err != nil {
			return fmt.Errorf("spool: %w", err)
		}
	}
	if a.report != nil {
		a.report.get()
	}
	return nil
}

// Handle lets the configuration decide, now that it has been accepted.
func (a *App) Handle(_ context.Context, event caddy.Event) error {
	if event.Origin() != nil {
		return nil // another module's event of this name
	}
	naming.Store(a.fingerprints)
	shownHosts.Store(&a.hosts)
	var dirs []string
	for _, use := range a.uses {
		use.Accept(use.block) //nolint:contextcheck // the delivery lives longer than the event
		if len(use.options.NATS) == 0 {
			dirs = append(dirs, use.Place())
		}
	}
	noteSpoolDirs(dirs)
	if a.report != nil {
		a.report.accept()
	}
	if a.plan != nil {
		a.plan.accept() //nolint:contextcheck // the plan outlives the event
	}
	return nil
}

// Stop does nothing: the handlers leave the spools when they have served their
// last requests.
func (*App) Stop() error { return nil }

// Interface guards
var (
	_ caddy.Module        = (*App)(nil)
	_ caddy.Provisioner   = (*App)(nil)
	_ caddy.App           = (*App)(nil)
	_ caddyevents.Handler = (*App)(nil)
)
