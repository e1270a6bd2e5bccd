package server

import (
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/pikoproxy/piko/internal/auth"
	"github.com/pikoproxy/piko/internal/endpoint"
	"github.com/pikoproxy/piko/internal/fault"
	"github.com/pikoproxy/piko/internal/limit"
	"github.com/pikoproxy/piko/internal/router"
	"github.com/pikoproxy/piko/internal/tunnel"
)

const (
	upstreamHeaderTimeout = 10 * time.Second
	upstreamIdleTimeout   = time.Minute // an agent upgrades at once; nobody keeps a connection here for later
	upstreamHeaderBytes   = 32 << 10
)

// upstreamServer answers agents. HTTP/2 has no upgrade that agents speak, so it is not offered.
func (s *Server) upstreamServer() *http.Server {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+tunnel.PathClassic+"/{endpoint}", s.classic)
	mux.HandleFunc("GET "+tunnel.PathTunnel, s.native)
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	return &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set(tunnel.HeaderNode, s.id)
			mux.ServeHTTP(w, r)
		}),
		ReadHeaderTimeout: upstreamHeaderTimeout,
		IdleTimeout:       upstreamIdleTimeout,
		MaxHeaderBytes:    upstreamHeaderBytes,
		Protocols:         protocols,
		ErrorLog:          s.o.ErrorLog,
	}
}

// classic answers an agent of Piko's own: one session offers one endpoint, named by the path.
func (s *Server) classic(w http.ResponseWriter, r *http.Request) {
	id, ok := s.admit(w, r)
	if !ok {
		return
	}
	name, err := endpoint.Parse(r.PathValue("endpoint"))
	if err != nil {
		s.release(id)
		s.refuse(w, r, fault.InvalidEndpoint, err)
		return
	}
	if !id.Permits(name) {
		s.release(id)
		s.refuse(w, r, fault.EndpointNotPermitted, auth.ErrNotPermitted)
		return
	}
	x := newSession(id, r.TLS)
	x.classic = name
	key := router.KeyOf(x.tenant, name)
	if why, _ := s.take(x, name, key, 0); why != "" {
		s.release(id)
		s.turnAway(w, r, fault.AtLimit, why, nil)
		return
	}
	t, err := tunnel.AcceptClassic(w, r, s.nodeOptions(x, nil))
	if err != nil {
		s.tally.withdraw(key, x.tenant)
		s.release(id)
		s.o.Log.WithError(err).Debug("handshake failed")
		return
	}
	if !s.settle(r, x, t) {
		return
	}
	s.router.Add(key, x.route, router.UpstreamOptions{})
}

// native answers an agent of ours, which names its endpoints by messages.
func (s *Server) native(w http.ResponseWriter, r *http.Request) {
	id, ok := s.admit(w, r)
	if !ok {
		return
	}
	x := newSession(id, r.TLS)
	t, err := tunnel.AcceptNative(w, r, s.nodeOptions(x, &desk{s, x, s.lasting()}))
	if err != nil {
		s.release(id)
		s.o.Log.WithError(err).Debug("handshake failed")
		return
	}
	s.settle(r, x, t)
}

// admit decides, before anything is upgraded, whether an agent may have a session. If so, room is reserved for it.
// Agents try again after a 503, and give up after any other refusal.
func (s *Server) admit(w http.ResponseWriter, r *http.Request) (*auth.Identity, bool) {
	if s.draining() {
		// Nobody's mistake, and every agent tries again at once: no line in the log.
		s.metrics.refused(fault.Draining.Code)
		fault.Write(w, r, fault.Draining, "")
		return nil, false
	}
	c := &s.now().config.Upstream.Limits
	if s.limits.memory.Full() {
		s.turnAway(w, r, fault.AtLimit, limit.OutOfMemory, nil)
		return nil, false
	}
	if !s.limits.attempt(r.RemoteAddr, c) {
		s.turnAway(w, r, overLimit(r), limit.RegistrationRate, nil)
		return nil, false
	}
	id, err := s.now().agents.Authenticate(r.Context(), r.Header)
	if err != nil {
		s.refuse(w, r, s.limits.badToken(r.RemoteAddr, faultOf(err), c), err)
		return nil, false
	}
	if why := s.tally.enter(holderOf(id), c); why != "" {
		s.turnAway(w, r, overLimit(r), why, nil)
		return nil, false
	}
	if !s.sessions.reserve() {
		s.tally.leave(holderOf(id))
		s.refuse(w, r, fault.TooManySessions, nil)
		return nil, false
	}
	return id, true
}

// overLimit is how an agent is answered that may have no session now. Classic ones would give up for good at anything
// but 503.
func overLimit(r *http.Request) fault.Fault {
	if strings.HasPrefix(r.URL.Path, tunnel.PathClassic) {
		return fault.AtLimit
	}
	return fault.TooManyRegistrations
}

// release gives up what admit has reserved.
func (s *Server) release(id *auth.Identity) {
	s.sessions.release()
	s.tally.leave(holderOf(id))
}

// take notes that a session offers an endpoint, or says which limit that is over, and in words.
func (s *Server) take(x *session, name string, key router.Key, most int) (limit.Reason, string) {
	fresh, ok := x.offer(name, key, most)
	if !ok {
		return limit.SessionEndpoints, "the session offers as many endpoints as it may"
	}
	if !fresh {
		return "", ""
	}
	why := s.tally.offer(key, x.tenant, &s.now().config.Upstream.Limits)
	if why == "" {
		return "", ""
	}
	x.withdraw(name)
	if why == limit.TenantEndpoints {
		return why, "the tenant offers as many endpoints as it may"
	}
	return why, "the endpoint is offered by as many sessions as it may be"
}

// settle takes a session that was accepted into the set.
func (s *Server) settle(r *http.Request, x *session, t *tunnel.Session) bool {
	x.adopt(t)
	if !s.sessions.add(x) {
		// Too late: the node has shut its sessions down. An orderly end makes a classic agent look elsewhere.
		s.router.RemoveSession(x.route) // a native agent may have been quick
		_ = t.Shutdown(r.Context())     // it has no streams that could be cut off
		return false
	}
	s.keeper.Add(t)
	s.metrics.opened[kindOf(t)].Inc()
	if x.classic != "" {
		x.announce(s.o.Log)
	}
	return true
}

func (s *Server) nodeOptions(x *session, h tunnel.Handler) tunnel.NodeOptions {
	c := &s.now().config.Upstream
	return tunnel.NodeOptions{
		NodeID: s.id, Zone: s.config.Cluster.Zone, Handler: h, OnAbuse: s.abused,
		OnClosing: func(t *tunnel.Session) { s.closing(x, t) }, OnDone: func(*tunnel.Session) { s.done(x) },
		MaxStreams: c.MaxStreamsPerSession, MaxEndpoints: c.MaxEndpointsPerSession, Unread: s.limits.unread,
	}
}

// abused hears that a session was closed because its agent broke the protocol or a limit.
func (s *Server) abused(reason string) {
	s.metrics.abuse(reason)
	s.limits.report.Count(limit.Upstream, limit.Abuse)
	s.limits.report.Warn("session closed for abuse", reason, nil)
}

// refuse answers an agent that gets no session.
func (s *Server) refuse(w http.ResponseWriter, r *http.Request, f fault.Fault, why error) {
	s.turnAway(w, r, f, limit.ReasonOf(f.Code), why)
}

func (s *Server) turnAway(w http.ResponseWriter, r *http.Request, f fault.Fault, reason limit.Reason, why error) {
	s.metrics.refused(f.Code)
	if reason != "" {
		s.limits.report.Count(limit.Upstream, reason)
	}
	s.limits.report.Warn("agent refused", f.Code, logrus.Fields{
		"remote": r.RemoteAddr, "path": r.URL.Path, "limit": reason, "setting": settingOf(reason), "err": why,
	})
	fault.Write(w, r, f, "")
}

// faultOf says how a failed authentication is answered.
func faultOf(err error) fault.Fault {
	for _, c := range []struct {
		err   error
		fault fault.Fault
	}{
		{auth.ErrUnavailable, fault.AuthUnavailable},
		{auth.ErrMissing, fault.MissingAuthorization},
		{auth.ErrMalformed, fault.InvalidAuthorization},
		{auth.ErrScheme, fault.UnsupportedAuthType},
		{auth.ErrExpired, fault.ExpiredToken},
		{auth.ErrUnknownTenant, fault.UnknownTenant},
		{auth.ErrNotPermitted, fault.EndpointNotPermitted},
	} {
		if errors.Is(err, c.err) {
			return c.fault
		}
	}
	return fault.InvalidToken
}
