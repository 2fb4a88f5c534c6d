package upstream

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/http/httpproxy"
)

// proxyFor returns the proxy that the environment names for a URL; nil for
// none. It fails on what cannot be parsed: httpproxy then connects directly,
// without a word.
func proxyFor(u *url.URL) (*url.URL, error) {
	env := httpproxy.FromEnvironment()
	name, value := "HTTP_PROXY", env.HTTPProxy
	if u.Scheme == "https" {
		name, value = "HTTPS_PROXY", env.HTTPSProxy
	}
	if value == "" {
		return nil, nil //nolint:nilnil // there is no proxy, and that is no error
	}
	proxyURL := parseProxy(value)
	if proxyURL == nil {
		return nil, fmt.Errorf("the environment's %s or %s must be http://host:port or socks5://host:port, with user:password@ before the host if need be, both percent-encoded, and nothing behind the port (its value is not shown here: it may hold a password)",
			name, strings.ToLower(name))
	}
	for entry := range strings.SplitSeq(env.NoProxy, ",") {
		if entry = strings.TrimSpace(entry); !validNoProxy(entry) {
			return nil, fmt.Errorf("the environment's NO_PROXY or no_proxy has %q: between its commas must be host names, IP addresses, both with a port if need be, networks like 10.0.0.0/8, or *",
				entry[strings.LastIndexByte(entry, '@')+1:])
		}
	}
	switch used, err := env.ProxyFunc()(u); {
	case err != nil: // its text names the variable of Go's library only
		return nil, errors.New("the environment's HTTP_PROXY is not used beside REQUEST_METHOD, which a CGI server sets: unset one of them")
	case used == nil:
		return nil, nil //nolint:nilnil // NO_PROXY says so, or the host is this machine
	}
	return proxyURL, nil
}

// parseProxy reads a proxy's URL. Without a scheme it is http. It returns nil
// for what is none.
func parseProxy(value string) *url.URL {
	if !strings.Contains(value, "://") {
		value = "http://" + value
	}
	u, err := url.Parse(value)
	if err != nil || u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" {
		return nil
	}
	switch u.Scheme {
	case "http", "socks5", "socks5h":
	default:
		return nil
	}
	if !validHost(u.Hostname()) || u.Port() != "" && !validPort(u.Port()) {
		return nil
	}
	return u
}

// validNoProxy reports whether an entry of NO_PROXY, in lower or upper case, is
// one that httpproxy understands.
func validNoProxy(entry string) bool {
	if entry == "" || entry == "*" {
		return true
	}
	if strings.Contains(entry, "/") {
		_, _, err := net.ParseCIDR(entry)
		return err == nil
	}
	host := entry
	if name, port, err := net.SplitHostPort(entry); err == nil {
		if !validPort(port) {
			return false
		}
		host = name
	}
	name, below := strings.CutPrefix(host, "*.")
	if !below {
		name = strings.TrimPrefix(host, ".")
	}
	return validHost(name)
}

// validHost reports whether a host is an IP address, or could be a name: no name
// ends in a number (RFC 3696 section 2). One outside ASCII is international.
func validHost(host string) bool {
	if _, err := netip.ParseAddr(host); err == nil {
		return true
	}
	last := ""
	for label := range strings.SplitSeq(strings.TrimSuffix(host, "."), ".") {
		if label == "" || strings.IndexFunc(label, notInName) >= 0 {
			return false
		}
		last = label
	}
	return strings.Trim(last, "0123456789") != ""
}

func notInName(r rune) bool {
	return r < utf8.RuneSelf && r != '-' && r != '_' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
}

func validPort(port string) bool {
	n, err := strconv.ParseUint(port, 10, 16)
	return err == nil && n > 0
}
