package caddymodule

import (
	"errors"
	"net/http"
	"time"

	"github.com/caddyserver/caddy/v2"
)

// This file is what an operator sees of the migration over the admin API. The td-migrate
// command is a client of it.

var errNoReport = errors.New("there is no report of callers: write report into td_postback, and reload")

func serveCallers(w http.ResponseWriter, _ *http.Request) error {
	shown := shownReport.Load()
	if shown == nil {
		return caddy.APIError{HTTPStatus: http.StatusNotFound, Err: errNoReport}
	}
	listing := shown.get().List(time.Now())
	listing.AddInstead(shown.host)
	listing.NotSaved, _ = shown.trouble.Load().(string)
	return writeJSON(w, http.StatusOK, listing)
}
