package piko

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/url"
	"sync"
	"time"
)

// The addresses that a zero [Client] uses: a node on the same host with its default settings.
const (
	DefaultURL      = "http://localhost:8001"
	DefaultProxyURL = "http://localhost:8000"
)

const (
	defaultConnections = 2
	defaultHeartbeat   = 10 * time.Second
)

// Client connects to a Piko cluster. The zero value connects to a node on the same host.
//
// The fields must not change after the first call of a method, except by [Client.Reconfigure], and a Client must not be
// copied. All methods may be called from several goroutines at once. A Client that has listened holds sessions and
// goroutines until [Client.Shutdown] or [Client.Close].
type Client struct {
	// URL is where agents connect: the upstream listener of a node, or that of a balancer before several nodes. The scheme is
	// http, https, ws or wss; a path is kept as a prefix. Empty means DefaultURL.
	URL string

	// ProxyURL is where Dial connects: the proxy listener of a node, or that of a balancer. Empty means DefaultProxyURL.
	ProxyURL string

	// Token is the bearer token to present; empty presents none. TokenSource wins when both are set.
	Token string

	// TokenSource returns the bearer token to present. It is called for each new connection, and for an open session when
	// four fifths of the lifetime of a JSON Web Token have passed. It may be called from several goroutines at once and should
	// return soon; an error counts as a connection that could not be made.
	TokenSource func(ctx context.Context) (string, error)

	// TenantID names the tenant to which the token and the endpoints belong, in a cluster that has tenants.
	TenantID string

	// TLSConfig is used for https and wss addresses; nil verifies with the system's certificates. It is not changed.
	TLSConfig *tls.Config

	// Proxy returns the HTTP or SOCKS5 proxy through which to connect to a URL, or nil for a direct connection. A nil func
	// reads HTTPS_PROXY, HTTP_PROXY and NO_PROXY from the environment.
	Proxy func(*url.URL) (*url.URL, error)

	// Connections is the number of sessions to hold, each to another node. Zero means two. When the cluster has fewer nodes,
	// fewer sessions are held, and another node is looked for now and then.
	Connections int

	// Heartbeat is the pause after which a silent session is probed. Zero means ten seconds.
	Heartbeat time.Duration

	// AgentID names this process in the cluster's status and logs; it has no meaning for routing. Empty lets the node show
	// the session's own id only.
	AgentID string

	// Labels describe this process in the cluster's status. They have no meaning for routing.
	Labels map[string]string

	// Logger is told of connections, refusals and retries; nil is silent.
	Logger *slog.Logger

	mu     sync.Mutex
	pool   *pool // made by the first Listen
	closed bool
}

// Session describes one session of a [Client] with a node.
type Session struct {
	NodeID   string        // the node's id; empty when the node gave none
	RTT      time.Duration // the last measured round trip; zero before the first
	Since    time.Time     // when the session was made
	Draining bool          // the node has asked this process to go elsewhere
}

// Sessions returns the sessions that are open now, in no particular order.
func (c *Client) Sessions() []Session {
	p := c.current()
	if p == nil {
		return nil
	}
	return p.status()
}

// Shutdown tells the nodes to send nothing new, closes all listeners, and waits until the connections that were accepted
// have ended. When ctx ends first, what still runs is cut and the context's error is returned. Connections made by
// [Client.Dial] are left alone. The client can't be used afterwards.
func (c *Client) Shutdown(ctx context.Context) error {
	p := c.retire()
	if p == nil {
		return nil
	}
	return p.shutdown(ctx)
}

// Close closes all listeners and sessions and cuts the connections that were accepted. Connections made by [Client.Dial]
// are left alone. The client can't be used afterwards. Close always returns nil.
func (c *Client) Close() error {
	if p := c.retire(); p != nil {
		p.close()
	}
	return nil
}

func (c *Client) current() *pool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pool
}

// retire refuses further use and returns the pool, if there ever was one.
func (c *Client) retire() *pool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	return c.pool
}

// start returns the pool, made at first use. The pool outlives ctx: it belongs to the client, not to one call.
func (c *Client) start(ctx context.Context) (*pool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, net.ErrClosed
	}
	if c.pool != nil {
		return c.pool, nil
	}
	s, err := c.settings()
	if err != nil {
		return nil, err
	}
	c.pool = newPool(context.WithoutCancel(ctx), s)
	return c.pool, nil
}

// settings are the fields of a Client with the defaults filled in; they never change.
type settings struct {
	url         string
	token       func(ctx context.Context) (string, error)
	renewable   bool // token may give another answer later
	tenantID    string
	tls         *tls.Config
	proxy       func(*url.URL) (*url.URL, error)
	connections int
	heartbeat   time.Duration
	agentID     string
	instanceID  string // of this client, in this life of the process
	labels      map[string]string
	log         *slog.Logger
}

func (c *Client) settings() (settings, error) {
	s := settings{
		url:         c.URL,
		token:       c.TokenSource,
		renewable:   c.TokenSource != nil,
		tenantID:    c.TenantID,
		tls:         c.TLSConfig,
		proxy:       c.Proxy,
		connections: c.Connections,
		heartbeat:   c.Heartbeat,
		agentID:     c.AgentID,
		instanceID:  rand.Text(),
		labels:      maps.Clone(c.Labels),
		log:         c.logger(),
	}
	if s.url == "" {
		s.url = DefaultURL
	}
	if _, err := parseURL(s.url); err != nil {
		return settings{}, fmt.Errorf("url of the cluster: %w", err)
	}
	if s.token == nil {
		token := c.Token
		s.token = func(context.Context) (string, error) { return token, nil }
	}
	if s.connections == 0 {
		s.connections = defaultConnections
	}
	if s.heartbeat == 0 {
		s.heartbeat = defaultHeartbeat
	}
	if s.connections < 0 || s.heartbeat < 0 {
		return settings{}, fmt.Errorf("client: Connections is %d and Heartbeat %v; neither may be below zero",
			c.Connections, c.Heartbeat)
	}
	return s, nil
}

func (c *Client) logger() *slog.Logger {
	if c.Logger == nil {
		return slog.New(slog.DiscardHandler)
	}
	return c.Logger
}

// parseURL checks what all addresses of a cluster have in common.
func parseURL(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	if err != nil {
		return nil, err
	}
	switch u.Scheme {
	case "http", "https", "ws", "wss":
	default:
		return nil, fmt.Errorf("%q: want the scheme http, https, ws or wss", u.Redacted())
	}
	if u.Host == "" {
		return nil, fmt.Errorf("%q: names no host", u.Redacted())
	}
	if u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, errors.New("want no user, query or fragment; tokens belong in Token or TokenSource")
	}
	return u, nil
}
