package caddymodule

import (
	"context"
	"encoding/json"
	"fmt"
	"net"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// This file has the console of the command td-postback.

// sandboxConsole is where the sandbox's console is, if nobody else is there.
const sandboxConsole = "localhost:8181"

// consoleOff is the value of --console with which the sandbox has none.
const consoleOff = "off"

// consoleFromFlags is the server of the page, or nil if there is none. In the sandbox,
// where nothing is real, the page may change everything.
func consoleFromFlags(fs caddycmd.Flags) (*caddyhttp.Server, error) {
	listen, sandbox := fs.String("console"), fs.Bool("sandbox")
	switch {
	case listen == consoleOff, listen == "" && !sandbox:
		return nil, nil //nolint:nilnil // none is no error
	case listen == "":
		listen = freeNear(sandboxConsole)
	}
	address, err := caddy.ParseNetworkAddress(listen)
	if err != nil || address.Network != "tcp" || address.PortRangeSize() != 1 || address.StartPort == 0 {
		return nil, fmt.Errorf("--console %q: must be an address with one port, such as localhost:8181, or %s", listen, consoleOff)
	}
	if err := mustBeFree("--console", listen); err != nil {
		return nil, err
	}
	return &caddyhttp.Server{
		Listen:    []string{listen},
		AutoHTTPS: &caddyhttp.AutoHTTPSConfig{Disabled: true},
		Routes: caddyhttp.RouteList{{
			HandlersRaw: []json.RawMessage{caddyconfig.JSONModuleObject(&Console{Actions: sandbox}, "handler", consoleDirective, nil)},
		}},
	}, nil
}

// freeNear is an address, or, if it is in use, another port of its host.
func freeNear(listen string) string {
	if mustBeFree("", listen) == nil {
		return listen
	}
	host, _, _ := net.SplitHostPort(listen)
	listener, err := new(net.ListenConfig).Listen(context.Background(), "tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		return listen
	}
	defer func() { _ = listener.Close() }()
	_, port, _ := net.SplitHostPort(listener.Addr().String())
	return net.JoinHostPort(host, port)
}

// urlOf is where a browser on this machine finds what listens there.
func urlOf(listen string) string {
	host, port, _ := net.SplitHostPort(listen)
	if !isLocalName(hostOnly(host)) {
		host = "localhost"
	}
	return "http://" + net.JoinHostPort(host, port)
}
