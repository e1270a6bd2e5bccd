package piko

import (
	"context"
	"fmt"
	"net"
	"net/http"

	"github.com/pikoproxy/piko/internal/endpoint"
	"github.com/pikoproxy/piko/internal/tunnel"
	"github.com/pikoproxy/piko/internal/websocket"
)

// dialPath is where a node's proxy listener opens byte streams; the endpoint follows.
const dialPath = "_piko/v1/tcp/"

// Dial opens a byte stream to an endpoint. An agent must offer the endpoint with [TCP].
//
// The context bounds the attempt, not the connection. When no agent listens or none reaches its service, the error matches
// [ErrNoUpstream]; when the token is not good for the endpoint, [ErrUnauthorized].
func (c *Client) Dial(ctx context.Context, name string) (*Conn, error) {
	canonical, err := endpoint.Parse(name)
	if err != nil {
		return nil, fmt.Errorf("dial: %w", err)
	}
	conn, err := c.dial(ctx, canonical)
	if err != nil {
		return nil, fmt.Errorf("dial %q: %w", canonical, err)
	}
	return conn, nil
}

func (c *Client) dial(ctx context.Context, name string) (*Conn, error) {
	c.mu.Lock()
	closed, base, token, source := c.closed, c.ProxyURL, c.Token, c.TokenSource
	tenantID, tls, proxy := c.TenantID, c.TLSConfig, c.Proxy
	c.mu.Unlock()
	if closed {
		return nil, net.ErrClosed
	}
	if base == "" {
		base = DefaultProxyURL
	}
	u, err := parseURL(base)
	if err != nil {
		return nil, fmt.Errorf("url of the proxy: %w", err)
	}
	if source != nil {
		if token, err = source(ctx); err != nil {
			return nil, fmt.Errorf("%w: %w", errToken, err)
		}
	}
	if err := checkToken(token); err != nil {
		return nil, fmt.Errorf("%w: %w", errToken, err)
	}
	header := http.Header{}
	if token != "" {
		header.Set("Authorization", "Bearer "+token)
	}
	if tenantID != "" {
		header.Set("X-Piko-Tenant-Id", tenantID)
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	ws, _, err := websocket.Dial(ctx, u.JoinPath(dialPath, name).String(), websocket.DialOptions{
		Header: header,
		TLS:    tls,
		Proxy:  proxy,
	})
	if err != nil {
		return nil, handshakeError(u.Redacted(), err)
	}
	return &Conn{stream: ws, local: ws.LocalAddr(), remote: addr(name), protocol: tunnel.ProtocolTCP}, nil
}
