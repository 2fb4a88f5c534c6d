package caddymodule

import (
	"fmt"
	"strconv"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/dustin/go-humanize"

	"github.com/td-postback/gateway/postback"
)

const directive = "td_postback"

func init() {
	httpcaddyfile.RegisterHandlerDirective(directive, parseCaddyfile)
	// Where a proxy stands, so that a site's deny rules, health paths and
	// authentication work as everywhere in Caddy. shadow.go warns of a handler
	// that answers everything before it.
	httpcaddyfile.RegisterDirectiveOrder(directive, httpcaddyfile.Before, "reverse_proxy")
}

func parseCaddyfile(helper httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
	h := new(Handler)
	err := h.UnmarshalCaddyfile(helper.Dispenser)
	return h, err
}

// UnmarshalCaddyfile sets up the handler from Caddyfile tokens. Syntax:
//
//	td_postback [<matcher>] [<region>] {
//		region           us01|ap01|eu01|ap02|ap03|auto
//		upstream         <url>
//		max_body         <size>
//		redirect_hosts   <host...>
//		global_id        <cookie name>
//		dial_timeout     <duration>
//		response_timeout <duration>
//		max_conns        <n>
//		max_buffered     <size>
//		retries          <n>
//		tls_ca           <pem file...>
//		surfaces         postback|js|mobile ...
//		pass_thru
//		handoff
//		spool [nats <url...>] {
//			mode       on_failure|always
//			dir        <directory>
//			max_size   <size>
//			dead_size  <size>
//			max_age    <duration>
//			drain_rate <n>
//			bytes_rate <size>
//			batch      <n>
//			batch_wait <duration>
//			key_file   <file>
//		}
//		keys {
//			accounts  <number...>
//			file      <path>
//			databases <name...>
//			unknown   refuse|warn
//		}
//		report {
//			rows     <n>
//			dir      <directory>
//			networks cidr|none
//		}
//		migrate {
//			legacy  <host or url>
//			resolve <host:port>
//			start   legacy|v2
//			stick   client|key|table
//			dir     <directory>
//		}
//	}
//
// Every option may be given once. Sizes are bytes, or have a unit such as
// KB, KiB or MiB.
func (h *Handler) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // consume directive name
	seen := make(map[string]bool)
	if d.NextArg() {
		h.Region = d.Val()
		seen["region"] = true
		if h.Region == "" {
			return d.Errf("region \"\": must be %s", postback.AllowedRegions())
		}
		if d.NextArg() {
			return d.ArgErr()
		}
	}
	return eachOption(d, "", seen, h.unmarshalOption)
}

// eachOption reads a block in which every option may stand once. seen has those
// that stand before it, and errors begin with what the block is of.
func eachOption(d *caddyfile.Dispenser, of string, seen map[string]bool, read func(*caddyfile.Dispenser, string) error) error {
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		option := d.Val()
		if seen[option] {
			return d.Errf("%s%s is set already", of, option)
		}
		seen[option] = true
		if err := read(d, option); err != nil {
			return err
		}
	}
	return nil
}

func (h *Handler) unmarshalOption(d *caddyfile.Dispenser, option string) (err error) {
	switch option {
	case "region":
		h.Region, err = wordArg(d, postback.AllowedRegions())
	case "upstream":
		h.Upstream, err = wordArg(d, "http:// or https://, a host and maybe a port")
	case "max_body":
		h.MaxBody, err = sizeArg(d)
	case "redirect_hosts":
		h.RedirectHosts, err = someArgs(d)
	case "global_id":
		h.GlobalID, err = wordArg(d, "a cookie name")
	case "dial_timeout":
		h.DialTimeout, err = durationArg(d)
	case "response_timeout":
		h.ResponseTimeout, err = durationArg(d)
	case "max_conns":
		h.MaxConns, err = countArg(d, 1)
	case "max_buffered":
		h.MaxBuffered, err = sizeArg(d)
	case "retries":
		var retries int
		retries, err = countArg(d, 0)
		h.Retries = &retries
	case "tls_ca":
		h.TLSCA, err = someArgs(d)
	case "surfaces":
		h.Surfaces, err = someArgs(d)
	case "pass_thru":
		h.PassThru, err = true, noArg(d)
	case "handoff":
		h.Handoff, err = true, noArg(d)
	case "spool":
		h.Spool = new(Spool)
		err = h.Spool.unmarshal(d)
	case "keys":
		h.Keys = new(Keys)
		err = h.Keys.unmarshal(d)
	case "report":
		h.Report = new(Report)
		err = h.Report.unmarshal(d)
	case "migrate":
		h.Migrate = new(Migrate)
		err = h.Migrate.unmarshal(d)
	default:
		return d.Err(noOption(option, directive))
	}
	return err
}

// unmarshal reads the spool option.
func (s *Spool) unmarshal(d *caddyfile.Dispenser) (err error) {
	if d.NextArg() {
		if d.Val() != "nats" {
			return d.Errf("spool %q: must be nats and its URLs, or nothing for the local disk%s", d.Val(), didYouMean(nearest(d.Val(), []string{"nats"})))
		}
		if s.NATS, err = someArgs(d); err != nil {
			return err
		}
	}
	return eachOption(d, "spool ", make(map[string]bool), s.unmarshalOption)
}

func (s *Spool) unmarshalOption(d *caddyfile.Dispenser, option string) (err error) {
	switch option {
	case "mode":
		s.Mode, err = wordArg(d, spoolOnFailure+" or "+spoolAlways)
	case "dir":
		s.Dir, err = wordArg(d, "a directory")
	case "max_size":
		s.MaxSize, err = sizeArg(d)
	case "dead_size":
		s.DeadSize, err = sizeArg(d)
	case "max_age":
		if s.MaxAge, err = durationArg(d); time.Duration(s.MaxAge) > maxSpoolAge { // validate no longer knows how it was written
			err = d.Errf("spool max_age %q: must be %s", d.Val(), allowedSpoolAge)
		}
	case "drain_rate":
		s.DrainRate, err = countArg(d, 1)
	case "bytes_rate":
		s.BytesRate, err = sizeArg(d)
	case "batch":
		s.Batch, err = countArg(d, 1)
	case "batch_wait":
		s.BatchWait, err = durationArg(d)
	case "key_file":
		s.KeyFile, err = wordArg(d, "a file")
	default:
		return d.Err(noOption(option, "spool"))
	}
	return err
}

// parseNothing consumes the name of a module that takes no options.
func parseNothing(d *caddyfile.Dispenser) error {
	d.Next()
	name := d.Val()
	if d.NextArg() {
		return fmt.Errorf("%s has no options: %w", name, d.ArgErr())
	}
	if d.NextBlock(0) {
		return d.Errf("%s is no option of %s: %s has no options", d.Val(), name, name)
	}
	return nil
}

func noArg(d *caddyfile.Dispenser) error {
	if d.NextArg() {
		return d.ArgErr()
	}
	return nil
}

func oneArg(d *caddyfile.Dispenser) (string, error) {
	var value string
	if !d.AllArgs(&value) {
		return "", d.ArgErr()
	}
	return value, nil
}

func someArgs(d *caddyfile.Dispenser) ([]string, error) {
	values := d.RemainingArgs()
	if len(values) == 0 {
		return nil, d.ArgErr()
	}
	return values, nil
}

// An option's zero value in JSON means that it is not set, so a zero must not
// get through from a Caddyfile.

func wordArg(d *caddyfile.Dispenser, allowed string) (string, error) {
	option := d.Val()
	value, err := oneArg(d)
	if err == nil && value == "" {
		err = d.Errf("%s \"\": must be %s", option, allowed)
	}
	return value, err
}

func sizeArg(d *caddyfile.Dispenser) (int64, error) {
	option := d.Val()
	value, err := oneArg(d)
	if err != nil {
		return 0, err
	}
	size, err := humanize.ParseBytes(value)
	if err != nil || size == 0 || size > 1<<50 {
		return 0, d.Errf("%s %q: must be a size of more than 0, such as 1048064 or 512KiB", option, value)
	}
	return int64(size), nil
}

func durationArg(d *caddyfile.Dispenser) (caddy.Duration, error) {
	option := d.Val()
	value, err := oneArg(d)
	if err != nil {
		return 0, err
	}
	duration, err := caddy.ParseDuration(value)
	if err != nil || duration <= 0 {
		return 0, d.Errf("%s %q: must be a duration of more than 0, such as 5s or 500ms", option, value)
	}
	return caddy.Duration(duration), nil
}

func countArg(d *caddyfile.Dispenser, least int) (int, error) {
	option := d.Val()
	value, err := oneArg(d)
	if err != nil {
		return 0, err
	}
	count, err := strconv.Atoi(value)
	if err != nil || count < least {
		return 0, d.Errf("%s %q: must be a whole number, at least %d", option, value, least)
	}
	return count, nil
}
