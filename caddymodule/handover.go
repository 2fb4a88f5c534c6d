package caddymodule

import (
	"context"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyevents"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

func init() {
	caddy.RegisterModule(new(Handover))
}

const (
	// handoverTime bounds how long a configuration waits for callers that have
	// connected and sent nothing yet.
	handoverTime = time.Second

	// turnTime is how long kept-alive callers have to send once more and learn
	// that their connection ends.
	turnTime = 200 * time.Millisecond
)

// Handover is a listener wrapper that ends a configuration without failing a
// request: at a reload, and when the process stops.
//
// Go's HTTP server, told to shut down, drops connections whose request it has
// not read yet. So before Caddy tells it, the wrapper stops accepting and waits
// until every connection has sent its request, at most a second. Meanwhile
// td_postback answers with `Connection: close`, so that callers that keep their
// connection come back on a new one.
//
// It also spares callers without TLS being watched while their records are on the
// way: see callerConn.
//
// It takes no options and goes into the server's `listener_wrappers`. What waits
// in the kernel for the closed socket is the kernel's to hand over: through a
// socket that outlives the configuration (`bind fd/3`), or with
// net.ipv4.tcp_migrate_req=1. It stands aside when Caddy's `shutdown_delay` is
// set: that asks for callers to be accepted until the end.
type Handover struct {
	server    *caddyhttp.Server
	mu        sync.Mutex
	listeners []net.Listener

	fresh   sync.Map     // connections that no request has come on
	waiting atomic.Int64 // how many
	leaving *atomic.Bool // shared with the server's handlers
}

// leavings says of each server that is provisioned whether its configuration
// ends. The wrapper sets it and the handlers read it; it does not matter which
// of them Caddy provisions first.
var leavings sync.Map // *caddyhttp.Server -> *atomic.Bool

// leavingOf finds what says whether a server's configuration ends. Both who
// sets and who reads it forget it in Cleanup: that is the end of all that the
// server has.
func leavingOf(server *caddyhttp.Server) *atomic.Bool {
	if server == nil {
		return new(atomic.Bool) // nobody tells
	}
	leaving, _ := leavings.LoadOrStore(server, new(atomic.Bool))
	return leaving.(*atomic.Bool) //nolint:forcetypeassert // it has nothing else
}

// CaddyModule returns the Caddy module information.
func (*Handover) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "caddy.listeners.td_handover",
		New: func() caddy.Module { return new(Handover) },
	}
}

// Provision subscribes to what happens to the connections and to the
// configuration.
func (h *Handover) Provision(ctx caddy.Context) error {
	if server, ok := ctx.Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server); ok {
		h.server = server
		server.RegisterConnState(h.observe)
		server.RegisterConnContext(withCallerConn)
	}
	h.leaving = leavingOf(h.server)
	events, err := ctx.App("events")
	if err != nil {
		return err
	}
	return events.(*caddyevents.App).On("stopping", h)
}

// Cleanup forgets the server.
func (h *Handover) Cleanup() error {
	leavings.Delete(h.server)
	return nil
}

// UnmarshalCaddyfile sets up the wrapper from Caddyfile tokens. Syntax:
//
//	td_handover
func (h *Handover) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	return parseNothing(d)
}

// WrapListener returns a listener that can be closed before its server is told
// to shut down.
func (h *Handover) WrapListener(listener net.Listener) net.Listener {
	once := &onceListener{Listener: listener}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.listeners = append(h.listeners, once)
	return once
}

// onceListener is closed twice: by the wrapper, and by the server.
type onceListener struct {
	net.Listener
	once sync.Once
	err  error
}

// Accept returns connections that can go unwatched, unless they are wrapped already.
func (l *onceListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if tcp, ok := conn.(*net.TCPConn); ok {
		return &callerConn{TCPConn: tcp}, err
	}
	return conn, err
}

func (l *onceListener) Close() error {
	l.once.Do(func() { l.err = l.Listener.Close() })
	return l.err
}

// observe follows the connections until their first request has come.
func (h *Handover) observe(conn net.Conn, state http.ConnState) {
	if state == http.StateNew {
		h.fresh.Store(conn, nil)
		h.waiting.Add(1)
	} else if _, found := h.fresh.LoadAndDelete(conn); found {
		h.waiting.Add(-1)
	}
}

// Handle ends the configuration's listening, when Caddy is about to stop it.
func (h *Handover) Handle(ctx context.Context, event caddy.Event) error {
	if event.Origin() != nil || hasShutdownDelay(ctx) {
		return nil // another module's event of this name, or as the operator wants it
	}
	h.leaving.Store(true)
	h.mu.Lock()
	for _, listener := range h.listeners {
		_ = listener.Close()
	}
	h.mu.Unlock()
	start := time.Now()
	for time.Since(start) < turnTime || h.waiting.Load() > 0 && time.Since(start) < handoverTime {
		time.Sleep(5 * time.Millisecond)
	}
	return nil
}

// hasShutdownDelay reports whether the configuration of an event has Caddy's
// shutdown_delay.
func hasShutdownDelay(ctx context.Context) bool {
	cfg, ok := ctx.(caddy.Context)
	if !ok {
		return false
	}
	app, err := cfg.AppIfConfigured("http")
	return err == nil && app.(*caddyhttp.App).ShutdownDelay > 0
}

// Interface guards
var (
	_ caddy.Module          = (*Handover)(nil)
	_ caddy.Provisioner     = (*Handover)(nil)
	_ caddy.CleanerUpper    = (*Handover)(nil)
	_ caddy.ListenerWrapper = (*Handover)(nil)
	_ caddyevents.Handler   = (*Handover)(nil)
	_ caddyfile.Unmarshaler = (*Handover)(nil)
)
