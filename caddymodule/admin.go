package caddymodule

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/td-postback/gateway/migration"
	"github.com/td-postback/gateway/spool"
)

func init() {
	caddy.RegisterModule(adminAPI{})
}

// adminAPI is the gateway's part of Caddy's admin endpoint: its health, its
// spools, its callers, its plan, and the metrics as soon as the endpoint exists. Caddy replaces the
// endpoint before it loads anything else of a new configuration: when that
// fails, the old handlers still serve, and without this their metrics would be
// gone.
type adminAPI struct{}

// CaddyModule returns the Caddy module information.
func (adminAPI) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "admin.api.td_postback",
		New: func() caddy.Module { return new(adminAPI) },
	}
}

// Provision registers the metrics.
func (adminAPI) Provision(ctx caddy.Context) error {
	return registerMetrics(ctx.GetMetricsRegistry())
}

// Routes returns what the admin API shows of spools, of callers and of the plan. The
// metrics are at Caddy's own /metrics.
func (adminAPI) Routes() []caddy.AdminRoute {
	route := func(pattern, method string, handle func(http.ResponseWriter, *http.Request) error) caddy.AdminRoute {
		return caddy.AdminRoute{Pattern: pattern, Handler: caddy.AdminHandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
			if r.Method != method {
				return caddy.APIError{HTTPStatus: http.StatusMethodNotAllowed, Err: fmt.Errorf("use %s", method)}
			}
			return handle(w, r)
		})}
	}
	return []caddy.AdminRoute{
		route("/td_postback/health", http.MethodGet, serveHealth),
		route("/td_postback/migration", http.MethodGet, servePlan),
		route("/td_postback/migration/callers", http.MethodGet, serveCallers),
		route("/td_postback/migration/history", http.MethodGet, serveHistory),
		route("/td_postback/migration/share", http.MethodPost, planChange(migration.ActionShare)),
		route("/td_postback/migration/unset", http.MethodPost, planChange(migration.ActionUnset)),
		route("/td_postback/migration/undo", http.MethodPost, planChange(migration.ActionUndo)),
		route("/td_postback/migration/rollback", http.MethodPost, planChange(migration.ActionRollback)),
		route("/td_postback/migration/resume", http.MethodPost, planChange(migration.ActionResume)),
		route("/td_postback/migration/audit", http.MethodGet, serveAudit),
		route("/td_postback/spool", http.MethodGet, serveSpools),
		route("/td_postback/spool/records", http.MethodGet, serveRecords),
		route("/td_postback/spool/record", http.MethodGet, serveRecord),
		route("/td_postback/spool/replay", http.MethodPost, serveReplay),
		route("/td_postback/spool/drop", http.MethodPost, serveDrop),
	}
}

// healthAnswer is how the gateway is: the worst of its parts.
type healthAnswer struct {
	Status spool.Health            `json:"status"`
	Spools map[string]spool.Health `json:"spools"`
	Plan   *planHealth             `json:"plan,omitempty"` // nil without migrate
}

// planHealth is how the plan of the lanes is. It refuses nothing: calls go by the plan
// that is in memory.
type planHealth struct {
	Status  spool.Health `json:"status"`            // ok or degraded
	Problem string       `json:"problem,omitempty"` // why it is degraded
}

// serveHealth answers 200 as long as the gateway can keep records, 503 when it
// cannot.
func serveHealth(w http.ResponseWriter, _ *http.Request) error {
	answer := healthAnswer{Status: spool.HealthOK, Spools: map[string]spool.Health{}, Plan: healthOfPlan()}
	if answer.Plan != nil {
		answer.Status = answer.Plan.Status
	}
	worst := []spool.Health{spool.HealthOK, spool.HealthDegraded, spool.HealthRefusing}
	for _, status := range spoolStatuses() {
		health := status.Health()
		answer.Spools[status.Spool] = health
		if slices.Index(worst, health) > slices.Index(worst, answer.Status) {
			answer.Status = health
		}
	}
	code := http.StatusOK
	if answer.Status == spool.HealthRefusing {
		code = http.StatusServiceUnavailable
	}
	return writeJSON(w, code, answer)
}

// healthOfPlan is nil without a plan.
func healthOfPlan() *planHealth {
	shown := shownPlan.Load()
	if shown == nil {
		return nil
	}
	trouble, ok := within(shown.turns[askingHealth], time.Second, func() error { return shown.get().Trouble() })
	switch {
	case !ok:
		return &planHealth{spool.HealthDegraded, "the plan's disk does not answer"}
	case trouble != nil:
		return &planHealth{spool.HealthDegraded, trouble.Error()}
	default:
		return &planHealth{Status: spool.HealthOK}
	}
}

func writeJSON(w http.ResponseWriter, status int, value any) error {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	return json.NewEncoder(w).Encode(value)
}

// Interface guards
var (
	_ caddy.Module      = adminAPI{}
	_ caddy.Provisioner = adminAPI{}
	_ caddy.AdminRouter = adminAPI{}
)
