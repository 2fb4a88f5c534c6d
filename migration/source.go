package migration

import (
	"net/netip"
	"strings"

	"github.com/td-postback/gateway/postback"
)

// This file tells where calls come from: a page's site, or a client's network.

// The sizes of a client's network, in bits: small enough to find who it is, and no
// single person's address.
const (
	networkBits4 = 24
	networkBits6 = 48
)

const maxScheme = 24 // bytes; chrome-extension has 16

// appendSource appends where a call comes from: of a browser the site of its Origin,
// or else of its Referer; of others, and of a browser that tells neither, the network
// of its client. Without networks, that is nothing.
func appendSource(dst []byte, c *Call, browser, networks bool) []byte {
	if browser {
		for _, from := range [...]string{c.Origin, c.Referer} {
			if scheme, host := siteOf(from); host != "" {
				return appendSite(dst, scheme, host)
			}
		}
	}
	if !networks {
		return dst
	}
	return appendNetwork(dst, c.Client)
}

// siteOf is the scheme and the host of a URL, without its port. They are empty if its
// host has bytes that no host has, or may be a key: a name, a path or a query is never
// taken for one.
func siteOf(url string) (scheme, host string) {
	scheme, rest, ok := strings.Cut(url, "://")
	if !ok || len(scheme) > maxScheme || !hasOnlyBytes(scheme, isSchemeByte) {
		return "", ""
	}
	end := 0
	for end < len(rest) && !endsHost(rest[end]) {
		end++
	}
	rest = rest[:end]
	if address, ok := strings.CutPrefix(rest, "["); ok {
		address, _, ok = strings.Cut(address, "]")
		if _, err := netip.ParseAddr(address); !ok || err != nil || strings.Contains(address, "%") {
			return "", ""
		}
		return scheme, address
	}
	host, _, _ = strings.Cut(rest, ":")
	if !hasOnlyBytes(host, isHostByte) || strings.Contains(rest, "@") || postback.MayBeSecret(host) {
		return "", ""
	}
	return scheme, host
}

// appendSite appends a site in lower case. A scheme of an app's or a browser's own
// stays: without it, its host says nothing. Of a long host the end stays, which is
// whose it is.
func appendSite(dst []byte, scheme, host string) []byte {
	start := len(dst)
	if !strings.EqualFold(scheme, "https") && !strings.EqualFold(scheme, "http") {
		dst = append(dst, scheme...)
		dst = append(dst, "://"...)
	}
	if room := maxSource - (len(dst) - start); len(host) > room {
		dst = append(dst, cutMark...)
		host = host[len(host)-room+len(cutMark):]
	}
	dst = append(dst, host...)
	for i := start; i < len(dst); i++ {
		if c := dst[i]; 'A' <= c && c <= 'Z' {
			dst[i] = c | 0x20
		}
	}
	return dst
}

// appendNetwork appends the network of an address, as CIDR. Of what is no address it
// appends nothing.
func appendNetwork(dst []byte, address string) []byte {
	address, _, _ = strings.Cut(address, "%") // a zone is only the gateway's own
	addr, err := netip.ParseAddr(address)
	if err != nil {
		return dst
	}
	if addr.Is4() { // nearly all: its text is cut, to /24, and not written anew
		dst = append(dst, address[:strings.LastIndexByte(address, '.')]...)
		return append(dst, ".0/24"...)
	}
	addr = addr.Unmap()
	bits := networkBits6
	if addr.Is4() {
		bits = networkBits4
	}
	network, err := addr.Prefix(bits)
	if err != nil {
		return dst
	}
	return network.AppendTo(dst)
}

// hasOnlyBytes reports whether a text is not empty and has bytes of one kind only.
func hasOnlyBytes(text string, kind func(byte) bool) bool {
	for i := 0; i < len(text); i++ {
		if !kind(text[i]) {
			return false
		}
	}
	return text != ""
}

func endsHost(c byte) bool { return c == '/' || c == '?' || c == '#' || c == '\\' }

func isHostByte(c byte) bool { return isLetter(c) || isDigit(c) || c == '-' || c == '.' || c == '_' }

func isSchemeByte(c byte) bool { return isHostByte(c) && c != '_' || c == '+' }
