// Package gateway is the Postback migration gateway: a Caddy module that takes
// requests in the form of Treasure Data's legacy Postback API and forwards
// them to Postback API v2, so that the callers need no change.
//
// The module itself is in the package caddymodule. This package imports it, so
// that the repository's path is all that xcaddy needs:
//
//	xcaddy build --with github.com/td-postback/gateway
//
// The names of the Caddy modules, their options, the metrics and the commands are
// stable: CHANGELOG.md says when one changes. The Go packages are for the gateway
// itself, and may change at any time.
package gateway

import (
	_ "github.com/td-postback/gateway/caddymodule" // registers http.handlers.td_postback
)
