package server

import (
	"cmp"
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/sirupsen/logrus"

	"github.com/pikoproxy/piko/internal/auth"
	"github.com/pikoproxy/piko/internal/config"
	"github.com/pikoproxy/piko/internal/fault"
	"github.com/pikoproxy/piko/internal/guard"
	"github.com/pikoproxy/piko/internal/limit"
	"github.com/pikoproxy/piko/internal/proxy"
	"github.com/pikoproxy/piko/internal/router"
	"github.com/pikoproxy/piko/internal/tunnel"
)

const (
	peerConnections  = 4096 // of the cluster listener: two for each node, and some in passing
	plainConnections = 1000 // of the acme listener, each of which lasts some seconds
	plainPerAddress  = 100
	maxTarget        = 16 << 10 // of requests of agents and operators
	maxFields        = 100      // likewise
)

// limits are those of the node, in every listener.
type limits struct {
	report   *limit.Reporter
	memory   *limit.Memory
	unread   *tunnel.Unread         // of all sessions
	gates    map[string]*limit.Gate // by listener
	clients  *limit.Requests
	turns    *limit.Turns   // of TLS handshakes
	attempts *limit.Buckets // of agents to open sessions
	strikes  *limit.Buckets // bad tokens of agents
}

func newLimits(c *config.Pikod, log logrus.FieldLogger, reg prometheus.Registerer) *limits {
	l := &limits{
		report: limit.NewReporter(log, reg), memory: limit.NewMemory(), unread: new(tunnel.Unread), gates: map[string]*limit.Gate{},
		clients: limit.NewRequests(proxy.RequestLimits(c.Proxy)), turns: limit.NewTurns(c.MaxTLSHandshakes),
		attempts: limit.NewBuckets(), strikes: limit.NewBuckets(),
	}
	for name, s := range gateSettings(c) {
		full := l.memory.Short // before that clients are told
		if name == adminListener || name == clusterListener {
			full = nil // operators must see what is going on, and without its peers a node would only do worse
		}
		l.gates[name] = limit.NewGate(name, s, l.report, full)
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "piko_server_connections", Help: "Open connections, by listener.",
			ConstLabels: prometheus.Labels{"listener": name},
		}, func() float64 { return float64(l.gates[name].Open()) }))
	}
	reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "piko_server_memory_limit_bytes", Help: "How much memory the process may hold; 0: no limit.",
	}, func() float64 { return float64(l.memory.Limit()) }), prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "piko_tunnel_unread_bytes", Help: "Bytes that have come over sessions and that nobody has read yet.",
	}, func() float64 { return float64(l.unread.Held()) }), prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "piko_server_waiting_handshakes", Help: "TLS handshakes that wait for their turn.",
	}, func() float64 { return float64(l.turns.Waiting()) }))
	return l
}

// apply puts other settings in use.
func (l *limits) apply(c *config.Pikod) {
	l.clients.Apply(proxy.RequestLimits(c.Proxy))
	l.bound(c)
	l.turns.Apply(c.MaxTLSHandshakes)
	for name, s := range gateSettings(c) {
		l.gates[name].Apply(s)
	}
}

// bound sets how much memory there is, and for what.
func (l *limits) bound(c *config.Pikod) {
	l.memory.Apply(int64(c.MemoryLimit))
	l.unread.Limit(cmp.Or(int64(c.Upstream.Limits.MaxUnreadBytes), l.memory.Limit()/2))
}

// watch looks after the memory until ctx ends. When it is short, connections of clients that rest are given up.
func (l *limits) watch(ctx context.Context, clients *proxy.Server) error {
	last := limit.Enough
	return l.memory.Run(ctx, func(p limit.Pressure) {
		if p == limit.Short {
			clients.Relieve()
		}
		if p != last {
			l.report.Warn("memory", p.String(), logrus.Fields{"limit": l.memory.Limit()})
			last = p
		}
	})
}

func gateSettings(c *config.Pikod) map[string]limit.GateSettings {
	access := func(allow, deny config.CIDRs) limit.Access {
		return limit.Access{Allow: limit.Networks(allow), Deny: limit.Networks(deny)}
	}
	p := limit.GateSettings{
		Access:      access(c.Proxy.Allow, c.Proxy.Deny),
		Connections: c.Proxy.Limits.MaxConnections, PerAddress: c.Proxy.Limits.MaxConnectionsPerAddress,
		Exempt: limit.Networks(c.Proxy.TrustedProxies), NoProgress: time.Duration(c.Proxy.Limits.WriteTimeout),
		LeastRate: int64(c.Proxy.Limits.MinReadRate),
	}
	if len(p.Allow) > 0 {
		// Requests that come by a trusted proxy are judged by their client.
		p.Allow = append(p.Allow[:len(p.Allow):len(p.Allow)], p.Exempt...)
	}
	return map[string]limit.GateSettings{
		proxyListener: p,
		upstreamListener: {
			Access:      access(c.Upstream.Allow, c.Upstream.Deny),
			Connections: c.Upstream.Limits.MaxConnections, PerAddress: c.Upstream.Limits.MaxConnectionsPerAddress,
		},
		adminListener:   {Access: access(c.Admin.Allow, c.Admin.Deny), Connections: c.Admin.MaxConnections},
		clusterListener: {Access: access(c.Cluster.Allow, c.Cluster.Deny), Connections: peerConnections},
		acmeListener:    {Connections: plainConnections, PerAddress: plainPerAddress}, // an authority asks from anywhere
	}
}

// Client implements proxy.Limiter.
func (l *limits) Client(addr netip.Addr) *fault.Fault {
	switch {
	case l.memory.Full():
		return &fault.AtLimit
	case l.unread.Full():
		return &fault.TooMuchUnread
	}
	return l.clients.Client(addr)
}

// Endpoint implements proxy.Limiter.
func (l *limits) Endpoint(addr netip.Addr, key router.Key) *fault.Fault {
	return l.clients.Endpoint(addr, key)
}

// BadToken implements proxy.Limiter.
func (l *limits) BadToken(addr netip.Addr) *fault.Fault { return l.clients.BadToken(addr) }

// attempt decides whether an agent at a remote address may ask for a session now.
func (l *limits) attempt(remote string, c *config.UpstreamLimits) bool {
	addr := remoteAddr(remote)
	return addr.IsLoopback() ||
		l.attempts.AllowAddress(addr, limit.Rate{PerSecond: c.SessionsPerAddress, Burst: c.SessionsPerAddressBurst})
}

// badToken says how an agent with a bad token is answered.
func (l *limits) badToken(remote string, f fault.Fault, c *config.UpstreamLimits) fault.Fault {
	strike := limit.Rate{PerSecond: c.FailedAuthPerAddress, Burst: c.FailedAuthPerAddressBurst}
	if f.Status == http.StatusUnauthorized && !l.strikes.AllowAddress(remoteAddr(remote), strike) {
		return fault.TooManyFailures
	}
	return f
}

// settingOf names the setting that an agent was over, for whoever reads the log to raise it; nil: there is none.
func settingOf(r limit.Reason) any {
	switch r {
	case limit.OutOfMemory:
		return "memory_limit"
	case limit.RegistrationRate:
		return "upstream.limits.sessions_per_address"
	case limit.AuthRate:
		return "upstream.limits.failed_auth_per_address"
	case limit.Sessions:
		return "upstream.max_sessions"
	case limit.TenantSessions:
		return "upstream.limits.max_sessions_per_tenant"
	case limit.SubjectSessions:
		return "upstream.limits.max_sessions_per_subject"
	case limit.EndpointSessions:
		return "upstream.limits.max_sessions_per_endpoint"
	}
	return nil
}

func remoteAddr(remote string) netip.Addr {
	ap, err := netip.ParseAddrPort(remote)
	if err != nil {
		return netip.Addr{} // a Unix socket
	}
	return ap.Addr().Unmap().WithZone("")
}

// guarded puts the guard before an HTTP server of ours that is not the proxy, with TLS as it is at the moment.
func (s *Server) guarded(name string, l net.Listener, srv *http.Server) net.Listener {
	return guard.NewListener(l, guard.Options{
		Current: func() *tls.Config { return s.now().tls[name] },
		Limits: func() guard.Limits {
			return guard.Limits{Bytes: srv.MaxHeaderBytes, Fields: maxFields, Target: maxTarget}
		},
		HeaderTimeout: srv.ReadHeaderTimeout, ErrorLog: srv.ErrorLog, Turns: s.limits.turns,
		Rejected: func() { s.limits.report.Count(name, limit.Handshake) },
	})
}

// behindGuard prepares an HTTP server for a listener of guarded.
func (s *Server) behindGuard(name string, srv *http.Server) {
	srv.ConnContext = guard.With
	srv.Handler = guard.Handler(srv.Handler, func(w http.ResponseWriter, r *http.Request, why guard.Refusal) {
		f := proxy.RefusedFault(why)
		s.limits.report.Reject(name, limit.ReasonOf(f.Code), logrus.Fields{"remote": r.RemoteAddr, "err": why})
		fault.Write(w, r, f, "")
	})
}

// holder is whose account a session is on.
type holder struct{ tenant, subject string }

func holderOf(id *auth.Identity) holder {
	if id == nil {
		return holder{}
	}
	return holder{id.Tenant, id.Subject}
}
