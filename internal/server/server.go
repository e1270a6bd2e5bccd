// Package server assembles pikod: it is the only place that knows all the parts of a node.
//
//	clients ──> proxy listener ────> proxy ──> router ──> sessions ──> agents
//	agents ───> upstream listener ─> this package: authenticate, upgrade, keep the set of sessions, fill the router
//	operators ─> admin listener ───> admin, with the status functions of this package
//
// A [Server] is made by [New], which checks everything that can be checked without the network, opens its sockets in
// [Server.Listen], and lives in [Server.Run], which returns after the drain. Its methods are safe for concurrent use.
//
// It makes no choice of its own about a request: the router and the proxy do.
package server

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/sirupsen/logrus"

	"github.com/pikoproxy/piko/internal/admin"
	"github.com/pikoproxy/piko/internal/auth"
	"github.com/pikoproxy/piko/internal/config"
	"github.com/pikoproxy/piko/internal/proxy"
	"github.com/pikoproxy/piko/internal/router"
	"github.com/pikoproxy/piko/internal/tunnel"
)

// Options are what a [Server] needs from the process around it.
type Options struct {
	Log      *logrus.Logger
	ErrorLog *log.Logger // for HTTP servers; nil: their complaints are dropped
	Version  string
	// Listen opens the listener of a name at an address; nil: net.Listen. explicit tells that the operator chose the
	// address.
	Listen func(name, addr string, explicit bool) (net.Listener, error)
	// Ready is called once, when the node takes traffic; nil: nobody is told.
	Ready func()
	// Status is told in a few words what the node is doing; nil: nobody is told.
	Status func(string)
}

// The names of the listeners, as systemd's socket units know them.
const (
	proxyListener    = "proxy"
	upstreamListener = "upstream"
	adminListener    = "admin"
	clusterListener  = "cluster"
)

// state is a stage in the life of a node.
type state int32

const (
	starting state = iota
	up
	leaving  // not ready any more, and otherwise as before
	draining // takes nothing new
)

func (s state) String() string { return [...]string{"starting", "up", "draining", "draining"}[s] }

// Server is one node.
type Server struct {
	config   config.Pikod
	o        Options
	id       string
	started  time.Time
	registry *prometheus.Registry
	metrics  *metrics
	router   *router.Router
	keeper   *tunnel.Keeper
	agents   auth.Gate  // who may offer endpoints
	clients  clientGate // who may reach them
	operator *auth.Verifier
	proxy    *proxy.Server
	upstream *http.Server
	admin    *http.Server
	sessions *sessions
	refusals *refusalLog
	cluster  *membership // nil for a node that is alone

	state     atomic.Int32
	listeners listeners
}

// New checks the settings and puts the parts together. It opens no socket and starts nothing. An error can be healed by
// other settings only.
func New(c config.Pikod, o Options) (*Server, error) {
	id, err := nodeID(c.Cluster.NodeID)
	if err != nil {
		return nil, err
	}
	if o.ErrorLog == nil {
		o.ErrorLog = log.New(io.Discard, "", 0)
	}
	s := &Server{
		config: c, o: o, id: id, started: time.Now(), registry: prometheus.NewRegistry(),
		keeper: tunnel.NewKeeper(tunnel.KeeperOptions{}), refusals: newRefusalLog(o.Log),
	}
	s.sessions = newSessions(c.Upstream.MaxSessions)
	s.metrics = newMetrics(s)
	routing := router.Options{Registerer: s.registry, Settings: router.Settings{
		Policy:       router.Policy(c.Balance.Policy),
		EjectAfter:   c.Balance.EjectAfter,
		EndpointWait: time.Duration(c.Proxy.EndpointWait),
		RetryBudget:  c.Balance.RetryBudget,
	}}
	if len(c.Consul.Address) > 0 {
		if s.cluster, err = newMembership(s, &routing); err != nil {
			return nil, err
		}
	}
	s.router = router.New(routing)
	if s.cluster != nil {
		s.cluster.follow(s.router)
	}
	if err := s.authenticate(); err != nil {
		return nil, err
	}
	if err := s.secure(); err != nil {
		return nil, err
	}
	s.proxy, err = proxy.New(proxy.Options{
		Settings: proxy.SettingsOf(c.Proxy), Limits: proxy.LimitsOf(c.Proxy), Router: s.router, Auth: &s.clients,
		TLS: s.listeners.tls[proxyListener], Log: o.Log, ErrorLog: o.ErrorLog, Registerer: s.registry,
	})
	if err != nil {
		return nil, err
	}
	s.upstream = s.upstreamServer()
	s.admin = admin.Server(admin.New(admin.Options{
		Config: c.Admin, Gatherer: s.registry, Ready: s.Ready, Status: s.statusFuncs(), Guard: s.adminGuard(),
		Log: o.Log,
	}), o.ErrorLog)
	return s, nil
}

// authenticate builds what verifies tokens.
func (s *Server) authenticate() error {
	c := &s.config
	var err error
	verifier := func(key string, a config.Auth, role auth.Role) *auth.Verifier {
		v, e := auth.New(a, auth.Options{Role: role, Version: s.o.Version})
		if e != nil {
			err = errors.Join(err, fmt.Errorf("%s: %w", key, e))
		}
		return v
	}
	s.agents.Own = verifier("upstream.auth", c.Upstream.Auth, auth.Agent)
	s.clients.Own = verifier("proxy.auth", c.Proxy.Auth, auth.Client)
	s.operator = verifier("admin.auth", c.Admin.Auth, auth.Operator)
	for _, t := range c.Upstream.Tenants {
		if s.agents.Tenants == nil {
			s.agents.Tenants, s.clients.Tenants = map[string]*auth.Verifier{}, map[string]*auth.Verifier{}
		}
		key := fmt.Sprintf("upstream.tenants %q", t.ID)
		s.agents.Tenants[t.ID] = verifier(key, t.Auth, auth.Agent)
		s.clients.Tenants[t.ID] = verifier(key, t.Auth, auth.Client)
	}
	return err
}

// clientGate is the gate of the proxy listener. Without keys of its own that listener is open, but only to the
// endpoints that belong to no tenant: those of a tenant take a token under the tenant's keys.
type clientGate struct{ auth.Gate }

// Authenticate returns who sent a request with this header.
func (g *clientGate) Authenticate(ctx context.Context, h http.Header) (*auth.Identity, error) {
	if g.Own == nil && len(h[auth.TenantID]) == 0 {
		return nil, nil //nolint:nilnil // a nil identity stands for a listener that asks for no tokens
	}
	return g.Gate.Authenticate(ctx, h)
}

// verifiers returns all of them, for their key sets to be kept fresh.
func (s *Server) verifiers() []*auth.Verifier {
	all := []*auth.Verifier{s.agents.Own, s.clients.Own, s.operator}
	for _, gate := range []*auth.Gate{&s.agents, &s.clients.Gate} {
		for _, v := range gate.Tenants {
			all = append(all, v)
		}
	}
	return all
}

// ID is the name of the node.
func (s *Server) ID() string { return s.id }

// Ready returns nil when the node takes traffic, else why it does not.
func (s *Server) Ready() error {
	if st := state(s.state.Load()); st != up {
		return errors.New(st.String())
	}
	if s.agents.Ready() != nil || s.clients.Ready() != nil {
		return auth.ErrUnavailable // why is nothing for a stranger, who may ask too
	}
	return nil
}

func (s *Server) draining() bool { return state(s.state.Load()) == draining }

func (s *Server) tell(status string) {
	if s.o.Status != nil {
		s.o.Status(status)
	}
}

// nodeID returns the configured name, or that of the host with something random behind it: a node that comes back after
// a crash must not be taken for the one whose sessions are gone.
func nodeID(configured string) (string, error) {
	if configured != "" {
		return configured, nil
	}
	host, err := os.Hostname()
	if err != nil || host == "" {
		host = "node"
	}
	host, _, _ = strings.Cut(host, ".")
	var b [4]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "", fmt.Errorf("make a node id: %w", err)
	}
	return host + "-" + hex.EncodeToString(b[:]), nil
}
