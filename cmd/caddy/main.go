// Command caddy is Caddy with its standard modules and the Postback migration
// gateway, nothing else.
package main

import (
	"os"
	"runtime/debug"
	"strconv"
	_ "time/tzdata" // time zones for log rolling on machines without a zone database

	"github.com/KimMachineGun/automemlimit/memlimit"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	_ "github.com/caddyserver/caddy/v2/modules/standard"

	_ "github.com/td-postback/gateway/caddymodule"
)

const (
	// gcPercent is GOGC unless the environment sets it. What the gateway holds
	// on to is small, so that Go's default of 100 would collect garbage dozens
	// of times a second.
	gcPercent = 400

	// memoryLimit is GOMEMLIMIT in bytes unless the environment sets it: the
	// default max_buffered and 64 MiB for everything else. Near it, garbage is
	// collected as often as it takes.
	memoryLimit = (256 + 64) << 20
)

func main() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	// AUTOMEMLIMIT is how an operator tells Caddy what share of the machine to use.
	if os.Getenv("GOMEMLIMIT") == "" && os.Getenv("AUTOMEMLIMIT") == "" {
		limit := int64(memoryLimit)
		machine, err := memlimit.ApplyFallback(memlimit.FromCgroup, memlimit.FromSystem)()
		if err == nil && machine < memoryLimit/9*10 {
			limit = int64(machine / 10 * 9)
		}
		debug.SetMemoryLimit(limit)
		// Or Caddy would set 90 % of what the machine has.
		_ = os.Setenv("GOMEMLIMIT", strconv.FormatInt(limit, 10))
	}
	caddycmd.Main()
}
