package websocket

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// DialOptions is what a client decides about a connection. The zero value suits most.
type DialOptions struct {
	// Header is sent with the request. Headers of the handshake itself are left out; Host replaces the URL's host there.
	Header http.Header
	// Subprotocols are offered to the server, the preferred one first. It may choose none of them.
	Subprotocols []string
	// TLS is used for wss and https, and its root certificates for https proxies. Nil means the system's roots.
	TLS *tls.Config
	// Proxy chooses the proxy for the server, given as a URL with the scheme http or https; nil for none. The proxy's
	// scheme is http, https, socks5 or socks5h; a user and password in it are used. When Proxy itself is nil, the
	// environment decides by HTTPS_PROXY, HTTP_PROXY and NO_PROXY.
	Proxy func(*url.URL) (*url.URL, error)
	// HandshakeTimeout bounds Dial as a whole; zero means ten seconds.
	HandshakeTimeout time.Duration
	// MaxMessage is the longest message accepted, in bytes; zero means [DefaultMaxMessage]. Write sends none longer.
	MaxMessage int64
	// ZeroMask masks frames with the key 0, which costs nothing, where TLS hides them anyway from those that masking is
	// meant to protect. It has no effect without TLS.
	ZeroMask bool
}

// StatusError is returned by [Dial] when the server answered, but did not switch to WebSocket. Redirects are not
// followed.
type StatusError struct {
	Status int
	Header http.Header
	Body   string // its first 4 KiB
}

func (e *StatusError) Error() string {
	text := fmt.Sprintf("server answered %d %s", e.Status, http.StatusText(e.Status))
	if body := strings.TrimSpace(e.Body); body != "" {
		text += fmt.Sprintf(": %.200q", body)
	}
	return text
}

// Dial connects to a server: address is a URL with the scheme ws, wss, http or https. A user and password in it are
// sent as basic authentication unless Header has an Authorization. The header returned is that of the server's answer; a
// server that refuses is reported by a [*StatusError]. ctx bounds Dial only, not the connection.
func Dial(ctx context.Context, address string, o DialOptions) (*Conn, http.Header, error) {
	u, err := parseURL(address)
	if err != nil {
		return nil, nil, err
	}
	timeout := o.HandshakeTimeout
	if timeout <= 0 {
		timeout = handshakeTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	conn, err := connect(ctx, u, o)
	if err != nil {
		return nil, nil, err
	}
	var c *Conn
	var header http.Header
	err = within(ctx, conn, func() error {
		c, header, err = shake(conn, u, o)
		return err
	})
	if err != nil {
		_ = conn.Close() // the first error is the one to tell
		return nil, nil, fmt.Errorf("websocket handshake with %s: %w", u.Host, err)
	}
	return c, header, nil
}

// parseURL returns address with the scheme http or https.
func parseURL(address string) (*url.URL, error) {
	u, err := url.Parse(address)
	if err != nil {
		return nil, errors.New("server address is not a URL") // the parser's error may show a password
	}
	switch u.Scheme {
	case "ws":
		u.Scheme = "http"
	case "wss":
		u.Scheme = "https"
	case "http", "https":
	default:
		return nil, fmt.Errorf("server address %q: want the scheme ws, wss, http or https", u.Redacted())
	}
	if u.Hostname() == "" {
		return nil, fmt.Errorf("server address %q names no host", u.Redacted())
	}
	return u, nil
}

// within runs f, whose reads and writes on conn are broken off when ctx ends.
func within(ctx context.Context, conn net.Conn, f func() error) error {
	fired := make(chan struct{}) // closed by the function below when it has run
	stop := context.AfterFunc(ctx, func() {
		defer close(fired)
		_ = conn.SetDeadline(time.Unix(1, 0)) // fails only on a closed connection
	})
	err := f()
	if stop() {
		return err
	}
	<-fired
	if err == nil || errors.Is(err, context.Cause(ctx)) {
		return context.Cause(ctx)
	}
	return fmt.Errorf("%w: %w", context.Cause(ctx), err)
}

// shake sends the request and reads the answer.
func shake(conn net.Conn, u *url.URL, o DialOptions) (*Conn, http.Header, error) {
	nonce := make([]byte, 16)
	_, _ = rand.Read(nonce) // never fails
	key := base64.StdEncoding.EncodeToString(nonce)
	sent := time.Now()
	if _, err := conn.Write(request(u, key, o)); err != nil {
		return nil, nil, err
	}
	a, err := readAnswer(conn)
	if err != nil {
		return nil, nil, err
	}
	took := time.Since(sent)
	if a.status != http.StatusSwitchingProtocols {
		return nil, nil, &StatusError{Status: a.status, Header: a.header, Body: a.text(conn)}
	}
	if err := verify(a.header, key, o.Subprotocols); err != nil {
		return nil, nil, err
	}
	c := newConn(conn, true, o.MaxMessage)
	c.zeroMask = o.ZeroMask && u.Scheme == "https"
	c.subprotocol, c.handshake = a.header.Get("Sec-WebSocket-Protocol"), took
	if c.early, err = buffered(a.br); err != nil {
		return nil, nil, err
	}
	return c, a.header, nil
}

// request returns the handshake's request.
func request(u *url.URL, key string, o DialOptions) []byte {
	host := o.Header.Get("Host")
	if host == "" {
		host = u.Host
	}
	h := without(o.Header)
	if h == nil {
		h = http.Header{}
	}
	h.Set("Host", host)
	h.Set("Upgrade", "websocket")
	h.Set("Connection", "Upgrade")
	h.Set("Sec-WebSocket-Version", version)
	h.Set("Sec-WebSocket-Key", key)
	if len(o.Subprotocols) > 0 {
		h.Set("Sec-WebSocket-Protocol", strings.Join(o.Subprotocols, ", "))
	}
	if password, ok := u.User.Password(); ok && h.Get("Authorization") == "" {
		h.Set("Authorization", "Basic "+basic(u.User.Username(), password))
	}
	var b bytes.Buffer
	b.WriteString("GET " + u.RequestURI() + " HTTP/1.1\r\n")
	_ = h.Write(&b) // into memory
	b.WriteString("\r\n")
	return b.Bytes()
}

func basic(user, password string) string {
	return base64.StdEncoding.EncodeToString([]byte(user + ":" + password))
}

// verify checks a 101 answer by RFC 6455, 4.1.
func verify(h http.Header, key string, offered []string) error {
	chosen := h.Values("Sec-WebSocket-Protocol")
	switch {
	case !only(h, "Upgrade", "websocket") || !contains(h, "Connection", "upgrade"):
		return errors.New("answer switches to something other than websocket")
	case len(h.Values("Sec-WebSocket-Accept")) != 1 || h.Get("Sec-WebSocket-Accept") != acceptKey(key):
		return errors.New("answer is not to our request: wrong websocket accept key")
	case len(tokens(h, "Sec-WebSocket-Extensions")) > 0:
		return errors.New("server uses a websocket extension that was not offered")
	case len(chosen) > 1 || len(chosen) == 1 && !slices.Contains(offered, chosen[0]):
		return errors.New("server chose a websocket subprotocol that was not offered")
	}
	return nil
}
