// Command caddy is Caddy with its standard modules and the Postback migration
// gateway, nothing else.
package main

import (
	_ "time/tzdata" // time zones for log rolling on machines without a zone database

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	_ "github.com/caddyserver/caddy/v2/modules/standard"

	_ "github.com/td-postback/gateway/caddymodule"
)

func main() {
	caddycmd.Main()
}
