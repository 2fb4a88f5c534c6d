package postback

import (
	"net/url"
	"strings"
)

// This file decides where td_redirect may lead. An open redirect would lend
// the operator's name to anybody's link, so a target is parsed once, checked,
// and written anew from what was parsed: what is checked is what is sent.

// globalIDPlaceholder stands in a target for the global id.
const globalIDPlaceholder = "td_global_id"

// maxRedirect is the longest target, in bytes: browsers take little more, and
// a short query must not become a huge answer by repeating the placeholder.
const maxRedirect = 8 << 10

// RedirectTarget returns the Location for a decoded td_redirect value, or
// false if it may not be followed. hosts are lower-case names, or `*.` and a
// name for all of its subdomains.
func RedirectTarget(value string, hosts []string, globalID string) (location string, ok bool) {
	for i := 0; i < len(value); i++ {
		if c := value[i]; c < ' ' || c == 0x7f || c == '\\' {
			return "", false // browsers drop some of these and read `\` as `/`
		}
	}
	if len(value)+strings.Count(value, globalIDPlaceholder)*len(globalID) > maxRedirect {
		return "", false
	}
	u, err := url.Parse(value)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Opaque != "" || u.User != nil {
		return "", false
	}
	if host := strings.ToLower(u.Host); !allowedHost(strings.TrimSuffix(host, defaultPort(u.Scheme)), hosts) {
		return "", false
	}
	id := url.QueryEscape(globalID)
	location = u.Scheme + "://" + strings.ToLower(u.Host) + strings.ReplaceAll(u.EscapedPath(), globalIDPlaceholder, id)
	if u.RawQuery != "" || u.ForceQuery {
		location += "?" + strings.ReplaceAll(u.RawQuery, globalIDPlaceholder, id)
	}
	if u.Fragment != "" {
		location += "#" + strings.ReplaceAll(u.EscapedFragment(), globalIDPlaceholder, id)
	}
	return escapeLocation(location), true
}

func defaultPort(scheme string) string {
	if scheme == "https" {
		return ":443"
	}
	return ":80"
}

// allowedHost compares a host, which may not have a port left, with the list.
func allowedHost(host string, hosts []string) bool {
	for _, allowed := range hosts {
		suffix, wild := strings.CutPrefix(allowed, "*")
		if host == allowed && !wild || wild && len(host) > len(suffix) && strings.HasSuffix(host, suffix) && validHost(host) {
			return true
		}
	}
	return false
}

// escapeLocation percent-encodes what a header or a URL must not hold: legacy
// pages put unencoded text into their targets.
func escapeLocation(s string) string {
	escaped := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if c := s[i]; c <= ' ' || c >= 0x7f || c == '"' || c == '<' || c == '>' {
			escaped = appendPercent(escaped, c)
		} else {
			escaped = append(escaped, c)
		}
	}
	return string(escaped)
}

// ValidRedirectHost accepts an entry of redirect_hosts: a host name, with a
// leading `*.` for its subdomains; no scheme, port, path or address.
func ValidRedirectHost(host string) bool {
	name := strings.TrimPrefix(host, "*.")
	top := name[strings.LastIndexByte(name, '.')+1:]
	return validHost(name) && strings.Trim(top, "0123456789") != "" && (top != name || name == "localhost")
}

// validHost reports whether a name is made of labels of letters, digits and
// hyphens (RFC 1123 section 2.1).
func validHost(name string) bool {
	if len(name) > 253 {
		return false
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 {
			return false
		}
		for _, c := range label {
			if !(c == '-' || '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z') {
				return false
			}
		}
	}
	return true
}
