package caddymodule

import (
	"errors"
	"net/http"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/td-postback/gateway/migration"
)

// This file is what an operator sees of the migration over the admin API. The td-migrate
// command is a client of it.

var errNoReport = errors.New("there is no report of callers: write report into td_postback, and reload")

// callersAnswer is the report, and the books of all calls.
type callersAnswer struct {
	migration.Listing
	Books []shownBooks `json:"books"` // of the surfaces that have received calls
}

func serveCallers(w http.ResponseWriter, _ *http.Request) error {
	shown := shownReport.Load()
	if shown == nil {
		return caddy.APIError{HTTPStatus: http.StatusNotFound, Err: errNoReport}
	}
	listing := shown.get().List(time.Now())
	listing.AddInstead(shown.host)
	listing.NotSaved, _ = shown.trouble.Load().(string)
	return writeJSON(w, http.StatusOK, callersAnswer{*listing, showBooks()})
}
