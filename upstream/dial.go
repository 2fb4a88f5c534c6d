package upstream

import (
	"context"
	"crypto/tls"
	"net"
	"net/url"
	"strings"
	"time"

	"github.com/valyala/fasthttp"
	"github.com/valyala/fasthttp/fasthttpproxy"
	"golang.org/x/net/http/httpproxy"
	"golang.org/x/net/proxy"
)

// connection is a connection to v2, ready to use.
type connection struct {
	net.Conn // with TLS established, if the upstream is https
	socket   *watch
	one      [1]byte
}

// reuse makes an idle connection ready for one more request, with a deadline
// for it. It returns false if v2 has closed the connection, or has sent
// something on it: that would be taken for the answer to the request.
func (c *connection) reuse(deadline time.Time) bool {
	if over, ok := c.Conn.(*tls.Conn); ok {
		// What came together with the last answer is no longer in the socket.
		// After its deadline, a read finds that and nothing else.
		if over.SetReadDeadline(time.Unix(1, 0)) != nil {
			return false
		}
		if n, err := over.Read(c.one[:]); n > 0 || !IsTimeout(err) {
			return false
		}
	}
	return c.SetDeadline(deadline) == nil && c.socket.isQuiet()
}

// hangUp closes the connection at once. TLS's farewell, which closing otherwise
// sends, would wait for a v2 that reads nothing.
func (c *connection) hangUp() {
	if over, ok := c.Conn.(*tls.Conn); ok {
		_ = over.NetConn().Close()
	}
}

// hostPort is a URL's host with its port, or its scheme's.
func hostPort(u *url.URL) string {
	port := u.Port()
	switch {
	case port != "":
	case u.Scheme == "https":
		port = "443"
	case strings.HasPrefix(u.Scheme, "socks5"):
		port = "1080"
	default:
		port = "80"
	}
	return net.JoinHostPort(u.Hostname(), port)
}

// newDialer returns the function that makes a connection ready to use, with TLS
// established if the upstream is https, all within DialTimeout. What it returns
// is always a *connection.
func newDialer(cfg Config) (fasthttp.DialFuncWithTimeout, error) {
	dial, err := cfg.dialFunc()
	if err != nil {
		return nil, err
	}
	if cfg.URL.Scheme != "https" {
		return func(addr string, _ time.Duration) (net.Conn, error) {
			conn, err := dial(addr)
			if err != nil {
				return nil, err
			}
			return &connection{Conn: conn, socket: newWatch(conn)}, nil
		}, nil
	}

	tlsConfig := cfg.TLS.Clone()
	tlsConfig.ServerName = cfg.URL.Hostname()
	tlsConfig.NextProtos = []string{"http/1.1"}
	tlsConfig.ClientSessionCache = tls.NewLRUClientSessionCache(0)
	return func(addr string, _ time.Duration) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(context.Background(), cfg.DialTimeout)
		defer cancel()
		raw, err := dial(addr)
		if err != nil {
			return nil, err
		}
		conn := tls.Client(raw, tlsConfig)
		if err := conn.HandshakeContext(ctx); err != nil {
			_ = raw.Close()
			return nil, err
		}
		return &connection{Conn: conn, socket: newWatch(raw)}, nil
	}, nil
}

// dialFunc returns what makes a connection to host:port. Names are looked up at
// every dial, IPv4 and IPv6 are tried side by side (RFC 8305).
func (cfg *Config) dialFunc() (func(addr string) (net.Conn, error), error) {
	if cfg.Dial != nil {
		return cfg.Dial, nil
	}
	proxyURL, err := proxyFor(cfg.URL)
	if err != nil {
		return nil, err
	}
	if proxyURL == nil {
		direct := &net.Dialer{Timeout: cfg.DialTimeout}
		return func(addr string) (net.Conn, error) { return direct.Dial("tcp", addr) }, nil
	}
	return dialThrough(proxyURL, cfg.DialTimeout)
}

// dialThrough returns a function that dials through a proxy.
func dialThrough(proxyURL *url.URL, timeout time.Duration) (fasthttp.DialFunc, error) {
	// Only the scheme, the user and the address count: the usual trailing slash
	// would become a part of the address.
	at := &url.URL{Scheme: proxyURL.Scheme, User: proxyURL.User, Host: hostPort(proxyURL)}
	if strings.HasPrefix(at.Scheme, "socks5") {
		through, err := proxy.FromURL(at, &net.Dialer{})
		if err != nil {
			return nil, err
		}
		return func(addr string) (net.Conn, error) {
			ctx, cancel := context.WithTimeout(context.Background(), timeout)
			defer cancel()
			return through.(proxy.ContextDialer).DialContext(ctx, "tcp", addr)
		}, nil
	}
	through := &fasthttpproxy.Dialer{
		Config:         httpproxy.Config{HTTPProxy: at.String(), HTTPSProxy: at.String()},
		TCPDialer:      fasthttp.TCPDialer{DisableDNSResolution: true},
		DialDualStack:  true,
		Timeout:        timeout,
		ConnectTimeout: timeout,
	}
	return through.GetDialFunc(false)
}
