package caddymodule

import (
	"cmp"
	"fmt"
	"net/http"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/td-postback/gateway/postback"
)

// This file shows over the admin API whether callers can be moved to v2. The td-migrate
// command is a client of it.

// auditTime is for how long callers are looked at, unless somebody says otherwise.
const auditTime = "24h"

// parseAuditTime reads for how long callers are looked at. The report has no more than 30
// days.
func parseAuditTime(since string) (time.Duration, error) {
	const longest = 30 * 24 * time.Hour
	within, err := caddy.ParseDuration(cmp.Or(since, auditTime))
	if err != nil || within <= 0 || within > longest {
		return 0, fmt.Errorf("since %q: must be a duration of more than 0, and at most 30d, such as 24h or 7d", postback.MaskKeys(since))
	}
	return within, nil
}

func serveAudit(w http.ResponseWriter, r *http.Request) error {
	within, err := parseAuditTime(r.URL.Query().Get("since"))
	if err != nil {
		return caddy.APIError{HTTPStatus: http.StatusBadRequest, Err: err}
	}
	shown := shownReport.Load()
	if shown == nil {
		return caddy.APIError{HTTPStatus: http.StatusNotFound, Err: errNoReport}
	}
	listing := shown.get().List(time.Now())
	listing.NotSaved, _ = shown.trouble.Load().(string)
	return writeJSON(w, http.StatusOK, listing.Audit(listing.Time.Add(-within)))
}
