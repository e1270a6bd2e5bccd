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
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/sirupsen/logrus"
	"golang.org/x/sync/errgroup"

	"github.com/pikoproxy/piko/internal/acme"
	"github.com/pikoproxy/piko/internal/admin"
	"github.com/pikoproxy/piko/internal/auth"
	"github.com/pikoproxy/piko/internal/config"
	"github.com/pikoproxy/piko/internal/daemon"
	"github.com/pikoproxy/piko/internal/proxy"
	"github.com/pikoproxy/piko/internal/router"
	"github.com/pikoproxy/piko/internal/tlsconf"
	"github.com/pikoproxy/piko/internal/tunnel"
)

// Options are what a [Server] needs from the process around it.
type Options struct {
	Log      *logrus.Logger
	ErrorLog *log.Logger // for HTTP servers; nil: their complaints are dropped
	Version  string
	// Listen opens the listener of a name at an address; nil: that of a process of its own. explicit tells that the
	// operator chose the address. See [daemon.Process.Listen].
	Listen func(name, addr string, explicit bool) (net.Listener, error)
	// Begun is called once, when the node serves and takes other settings, which may be before it is ready; nil: nobody is told.
	Begun func()
	// Ready is called once, when the node takes traffic; nil: nobody is told.
	Ready func()
	// Status is told in a few words what the node is doing; nil: nobody is told.
	Status func(string)
	// Collector has more metrics to show; may be nil.
	Collector prometheus.Collector
	// Reload reloads the settings for an operator; nil: that is not offered.
	Reload func(context.Context) error
	// Predecessor is what the process that this one takes over from offers; nil: there is none. Succeed answers it, and
	// returns when this node is to serve.
	Predecessor json.RawMessage
	Succeed     func(answer any) error
	// Reloaded tells what became of the last reload, for the status; nil: it is not shown.
	Reloaded func() any
}

// The names of the listeners, as systemd's socket units know them.
const (
	proxyListener    = "proxy"
	upstreamListener = "upstream"
	adminListener    = "admin"
	clusterListener  = "cluster"
	acmeListener     = "acme"
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
	config   config.Pikod // at the start: for what can't change, see now
	o        Options
	id       string
	started  time.Time
	registry *prometheus.Registry
	metrics  *metrics
	router   *router.Router
	keeper   *tunnel.Keeper
	live     atomic.Pointer[live] // what a reload replaces
	proxy    *proxy.Server
	upstream *http.Server
	admin    *http.Server
	console  atomic.Pointer[http.Handler] // of admin
	sessions *sessions
	leases   *auth.Leases // of clients
	guests   map[string]*tlsconf.Guests
	limits   *limits
	tally    *tally
	vigil    *vigil
	cluster  *membership // nil for a node that is alone
	alone    *membership // of such a node, for a handover; see others
	paired   atomic.Bool // alone is in use
	before   *kin        // the process to take over from; nil: there is none
	yielded  atomic.Bool // another process has taken over
	acme     *acme.Manager
	plain    *http.Server // of the acme listener

	state     atomic.Int32
	listeners listeners

	mu     sync.Mutex // guards the following
	life   context.Context
	group  *errgroup.Group // nil while nothing runs
	ending bool            // it takes nothing new; see PrepareLastly

	pairSecret, meetingAddr string // of a handover; set once, like paired
}

// New checks the settings and puts the parts together. It opens no socket and starts nothing. An error can be healed by
// other settings only.
func New(c config.Pikod, o Options) (*Server, error) {
	old, id, err := succession(&c, o.Predecessor)
	if err != nil {
		return nil, err
	}
	if o.ErrorLog == nil {
		o.ErrorLog = log.New(io.Discard, "", 0)
	}
	if o.Listen == nil {
		o.Listen = daemon.NewProcess("pikod", o.Version, o.Log).Listen
	}
	s := &Server{
		config: c, o: o, id: id, before: old, started: time.Now(), registry: prometheus.NewRegistry(),
		keeper: tunnel.NewKeeper(tunnel.KeeperOptions{Settled: debug.FreeOSMemory, Crowded: collectSooner}), tally: newTally(),
	}
	s.limits = newLimits(&c, o.Log, s.registry)
	s.sessions, s.vigil = newSessions(c.Upstream.MaxSessions), newVigil(s)
	s.leases = auth.NewLeases(func(id *auth.Identity) error { return s.now().clients.Judge(id) })
	s.guests = newGuests(s)
	s.metrics = newMetrics(s)
	options := router.Options{Registerer: s.registry, Settings: routing(&c)}
	if len(c.Consul.Address) > 0 {
		if s.cluster, err = newMembership(s, &options); err != nil {
			return nil, err
		}
	} else {
		s.alone = newAlone(s, &options)
	}
	s.router = router.New(options)
	if s.cluster != nil {
		s.cluster.follow(s.router)
	} else {
		s.alone.follow(s.router)
	}
	if err := s.newACME(); err != nil {
		return nil, err
	}
	first, err := s.newLive(c)
	if err != nil {
		return nil, err
	}
	s.live.Store(first)
	s.proxy, err = proxy.New(proxy.Options{
		Settings: proxy.SettingsOf(c.Proxy, c.Upstream.Tenants), Limits: proxy.LimitsOf(c.Proxy), Router: s.router, Auth: liveClients{s}, Leases: s.leases,
		TLS: s.proxyTLS(first), Log: o.Log, ErrorLog: o.ErrorLog, Registerer: s.registry,
		Limiter: s.limits, Report: s.limits.report, Turns: s.limits.turns,
	})
	if err != nil {
		return nil, err
	}
	s.upstream = s.upstreamServer()
	console := s.newConsole(c.Admin)
	s.console.Store(&console)
	s.admin = admin.Server(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		(*s.console.Load()).ServeHTTP(w, r)
	}), o.ErrorLog)
	s.behindGuard(upstreamListener, s.upstream)
	s.behindGuard(adminListener, s.admin)
	if o.Collector != nil {
		s.registry.MustRegister(o.Collector)
	}
	return s, nil
}

// newConsole is what the admin listener serves.
func (s *Server) newConsole(c config.Admin) http.Handler {
	return admin.New(admin.Options{
		Config: c, Gatherer: s.registry, Ready: s.Ready, Status: s.statusFuncs(), Guard: s.adminGuard(),
		Reload: s.o.Reload, Log: s.o.Log,
	})
}

// ID is the name of the node.
func (s *Server) ID() string { return s.id }

// Ready returns nil when the node takes traffic, else why it does not.
func (s *Server) Ready() error {
	if st := state(s.state.Load()); st != up {
		return errors.New(st.String())
	}
	if now := s.now(); now.agents.Ready() != nil || now.clients.Ready() != nil {
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
