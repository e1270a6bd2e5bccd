package websocket

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"

	"golang.org/x/net/http/httpproxy"
	"golang.org/x/net/proxy"

	kernel "github.com/pikoproxy/piko/internal/socket"
)

// connect opens the connection to the server, with TLS if the URL says so, through a proxy if there is one.
func connect(ctx context.Context, u *url.URL, o DialOptions) (net.Conn, error) {
	choose := o.Proxy
	if choose == nil {
		choose = httpproxy.FromEnvironment().ProxyFunc()
	}
	via, err := choose(u)
	if err != nil {
		return nil, fmt.Errorf("choose proxy for %s: %w", u.Host, err)
	}
	var conn net.Conn
	if via == nil {
		conn, err = (&net.Dialer{}).DialContext(ctx, "tcp", withPort(u))
	} else if conn, err = connectVia(ctx, via, withPort(u), o); err != nil {
		err = fmt.Errorf("connect to %s through proxy %s://%s: %w", withPort(u), via.Scheme, via.Host, err)
	}
	if err != nil || u.Scheme != "https" {
		return conn, err
	}
	config := o.TLS.Clone()
	if config == nil {
		config = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	config.NextProtos = []string{"http/1.1"} // a server must not choose HTTP/2 here
	return secure(ctx, conn, config, u.Hostname())
}

// withPort returns the host and port that a URL leads to.
func withPort(u *url.URL) string {
	port := u.Port()
	if port == "" {
		switch u.Scheme {
		case "https":
			port = "443"
		case "socks5", "socks5h":
			port = "1080"
		default:
			port = "80"
		}
	}
	return net.JoinHostPort(u.Hostname(), port)
}

// secure makes a TLS connection to host of conn, which it closes on error. It takes over config.
func secure(ctx context.Context, conn net.Conn, config *tls.Config, host string) (net.Conn, error) {
	if config.ServerName == "" {
		config.ServerName = host
	}
	secured := tls.Client(kernel.Wrap(conn), config)
	if err := secured.HandshakeContext(ctx); err != nil {
		_ = conn.Close() // the first error is the one to tell
		return nil, fmt.Errorf("tls handshake with %s: %w", host, err)
	}
	return secured, nil
}

// connectVia opens a connection to address through a proxy.
func connectVia(ctx context.Context, via *url.URL, address string, o DialOptions) (net.Conn, error) {
	switch via.Scheme {
	case "http", "https", "socks5", "socks5h":
	default:
		return nil, fmt.Errorf("proxy scheme %q: want http, https, socks5 or socks5h", via.Scheme)
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", withPort(via))
	if err != nil {
		return nil, err
	}
	switch via.Scheme {
	case "socks5", "socks5h":
		err = socks(ctx, conn, via, address)
	case "https":
		config := &tls.Config{MinVersion: tls.VersionTLS12}
		if o.TLS != nil {
			config.RootCAs = o.TLS.RootCAs
		}
		if conn, err = secure(ctx, conn, config, via.Hostname()); err != nil {
			return nil, err
		}
		fallthrough
	default:
		err = within(ctx, conn, func() error { return tunnelThrough(conn, via, address) })
	}
	if err != nil {
		_ = conn.Close() // the first error is the one to tell
		return nil, err
	}
	return conn, nil
}

// socks asks a SOCKS5 proxy (RFC 1928, 1929) at the other end of conn to connect to address, whose name it resolves.
func socks(ctx context.Context, conn net.Conn, via *url.URL, address string) error {
	var auth *proxy.Auth
	if via.User != nil {
		password, _ := via.User.Password()
		auth = &proxy.Auth{User: via.User.Username(), Password: password}
	}
	dialer, err := proxy.SOCKS5("tcp", withPort(via), auth, proxy.Direct)
	if err != nil {
		return err
	}
	// With this method the connection stays ours, with its type, instead of being wrapped.
	type withConn interface {
		DialWithConn(ctx context.Context, c net.Conn, network, address string) (net.Addr, error)
	}
	d, ok := dialer.(withConn)
	if !ok {
		return errors.New("socks library cannot use a connection")
	}
	_, err = d.DialWithConn(ctx, conn, "tcp", address)
	return err
}

// tunnelThrough asks an HTTP proxy at the other end of conn to connect to address (RFC 9110, 9.3.6).
func tunnelThrough(conn net.Conn, via *url.URL, address string) error {
	var b strings.Builder
	b.WriteString("CONNECT " + address + " HTTP/1.1\r\nHost: " + address + "\r\n")
	if via.User != nil {
		password, _ := via.User.Password()
		b.WriteString("Proxy-Authorization: Basic " + basic(via.User.Username(), password) + "\r\n")
	}
	b.WriteString("\r\n")
	if _, err := io.WriteString(conn, b.String()); err != nil {
		return err
	}
	a, err := readAnswer(conn)
	if err != nil {
		return err
	}
	switch {
	case a.status == http.StatusProxyAuthRequired:
		return errors.New("proxy answered 407: it wants a user and password, which go into the proxy's URL")
	case a.status/100 != 2:
		return fmt.Errorf("proxy answered %d %s", a.status, http.StatusText(a.status))
	case a.br.Buffered() > 0:
		return errors.New("proxy sent data before we did")
	}
	return nil
}
