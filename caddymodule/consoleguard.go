package caddymodule

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// This file keeps the console from those who should not see it, or act through the
// browser of one who may. All of it holds for the page, its parts and its actions alike,
// whatever else the site does.

// consolePolicy lets the page have its own style, script and icon, and nothing else, and
// nobody frame it.
const consolePolicy = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; " +
	"form-action 'self'; base-uri 'none'; frame-ancestors 'none'"

// guardAnswer tells browsers what they may do with an answer, be it the page or a refusal.
func guardAnswer(header http.Header) {
	for name, value := range map[string]string{
		"Content-Security-Policy":      consolePolicy,
		"X-Frame-Options":              "DENY",
		"X-Content-Type-Options":       "nosniff",
		"Cache-Control":                "no-store",
		"Cross-Origin-Opener-Policy":   "same-origin",
		"Cross-Origin-Resource-Policy": "same-origin",
		"Permissions-Policy":           "clipboard-write=(self)",
		"Referrer-Policy":              "same-origin", // with none at all, a POST's Origin is null
		"X-Robots-Tag":                 "noindex",
	} {
		header.Set(name, value)
	}
}

// consoleRefusal is why the console does not answer.
type consoleRefusal struct {
	status int
	why    string
	allow  string // the methods that it answers, if it was another one
}

func (f *consoleRefusal) answer(w http.ResponseWriter) error {
	if f.allow != "" {
		w.Header().Set("Allow", f.allow)
	}
	return answerConsole(w, f.status, "text/plain; charset=utf-8", fmt.Appendf(nil, "%s: %s\n", consoleDirective, f.why))
}

func forbidden(why string) *consoleRefusal {
	return &consoleRefusal{status: http.StatusForbidden, why: why}
}

// wrongMethod refuses a method.
func (c *Console) wrongMethod() *consoleRefusal {
	allow := "GET, HEAD"
	if c.Actions {
		allow += ", POST"
	}
	return &consoleRefusal{http.StatusMethodNotAllowed, "use GET: to change something takes actions on, and the page's own forms", allow}
}

// guard says why a request is refused, or nothing.
func (c *Console) guard(r *http.Request) *consoleRefusal {
	switch {
	case !c.knows(r.Host):
		return forbidden("this is not the host by which the console is called: use localhost, or write the name into hosts")
	case !c.AllowRemote && !isLocal(r):
		return forbidden("only the gateway's own machine may look, and not through a proxy: use ssh -L, or write allow_remote and put authentication before it")
	case isForeign(r):
		return forbidden("another site asks for this, or shows it in a frame: open the page by itself")
	case r.Method == http.MethodGet || r.Method == http.MethodHead:
		return nil
	case r.Method != http.MethodPost || !c.Actions:
		return c.wrongMethod()
	case !isOwnForm(r):
		return forbidden("only the page's own forms may change something: open the page, and press its button. If that is what was done, a proxy ends TLS before this server: name it in trusted_proxies")
	}
	return nil
}

// knows reports whether the console is called by this Host. A page of somebody else's whose
// name leads to this address has that name as its Host.
func (c *Console) knows(host string) bool {
	name := hostOnly(host)
	if len(c.Hosts) == 0 {
		return isLocalName(name)
	}
	return slices.ContainsFunc(c.Hosts, func(allowed string) bool { return hostOnly(allowed) == name })
}

// proxyFields are the headers of what came through a proxy, besides X-Forwarded-For and the
// like: then its address says nothing.
var proxyFields = []string{
	"Forwarded", "Via", "X-Real-Ip", "X-Client-Ip", "X-Cluster-Client-Ip", "X-Original-Forwarded-For",
	"Cf-Connecting-Ip", "True-Client-Ip", "Fastly-Client-Ip", "Fly-Client-Ip", "X-Envoy-External-Address",
}

// isProxied reports whether a request came through a proxy, as far as that can be seen. No
// browser uses HTTP/1.0: a proxy does, such as nginx if nobody tells it otherwise, which
// adds no header and makes the Host its own.
func isProxied(r *http.Request) bool {
	for name := range r.Header {
		if slices.Contains(proxyFields, name) || strings.HasPrefix(name, "X-Forwarded-") {
			return true
		}
	}
	return !r.ProtoAtLeast(1, 1)
}

// isLocal reports whether a request comes from the gateway's own machine.
func isLocal(r *http.Request) bool {
	if isProxied(r) {
		return false
	}
	client, err := netip.ParseAddrPort(r.RemoteAddr)
	return err == nil && client.Addr().Unmap().IsLoopback()
}

// isForeign reports whether a browser says that another site has made a request, other
// than by a link that is opened by itself.
func isForeign(r *http.Request) bool {
	if slices.Contains([]string{"iframe", "frame", "embed", "object", "fencedframe"}, r.Header.Get("Sec-Fetch-Dest")) {
		return true
	}
	switch r.Header.Get("Sec-Fetch-Site") {
	case "", "same-origin", "none":
		return false
	default:
		return r.Header.Get("Sec-Fetch-Mode") != "navigate" || r.Method == http.MethodPost
	}
}

// isOwnForm reports whether a browser says that a POST comes from a page of this origin.
// Every browser says it, in one way or the other.
func isOwnForm(r *http.Request) bool {
	origin, site := r.Header.Get("Origin"), r.Header.Get("Sec-Fetch-Site")
	if origin == "" && site == "" || site != "" && site != "same-origin" {
		return false
	}
	if origin == "" {
		return true
	}
	scheme, host, _ := strings.Cut(origin, "://")
	return scheme == schemeOf(r) && strings.EqualFold(host, r.Host)
}

// schemeOf is the scheme by which the browser came, as far as a trusted proxy says it.
func schemeOf(r *http.Request) string {
	if trusted, _ := caddyhttp.GetVar(r.Context(), caddyhttp.TrustedProxyVarKey).(bool); trusted {
		if proto := r.Header.Get("X-Forwarded-Proto"); proto != "" {
			return strings.ToLower(proto)
		}
	}
	if r.TLS != nil {
		return "https"
	}
	return "http"
}

// consoleToken is in the forms of every page of this process, and nobody else knows it:
// no other origin can read the page.
var consoleToken = func() string {
	random := make([]byte, 32)
	_, _ = rand.Read(random) // which never fails
	return hex.EncodeToString(random)
}()

// hasToken reports whether a form has the token.
func hasToken(r *http.Request) bool {
	return subtle.ConstantTimeCompare([]byte(r.PostForm.Get("token")), []byte(consoleToken)) == 1
}
