package server

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/pikoproxy/piko/internal/auth"
	"github.com/pikoproxy/piko/internal/endpoint"
	"github.com/pikoproxy/piko/internal/fault"
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
		s.sessions.release()
		s.refuse(w, r, fault.InvalidEndpoint, err)
		return
	}
	if !id.Permits(name) {
		s.sessions.release()
		s.refuse(w, r, fault.EndpointNotPermitted, auth.ErrNotPermitted)
		return
	}
	x := newSession(id)
	x.classic = name
	t, err := tunnel.AcceptClassic(w, r, s.nodeOptions(x, nil))
	if err != nil {
		s.sessions.release()
		s.o.Log.WithError(err).Debug("handshake failed")
		return
	}
	if !s.settle(r, x, t) {
		return
	}
	key := router.KeyOf(x.tenant, name)
	x.offer(name, key, 0)
	s.router.Add(key, x.route, router.UpstreamOptions{})
}

// native answers an agent of ours, which names its endpoints by messages.
func (s *Server) native(w http.ResponseWriter, r *http.Request) {
	id, ok := s.admit(w, r)
	if !ok {
		return
	}
	x := newSession(id)
	t, err := tunnel.AcceptNative(w, r, s.nodeOptions(x, &desk{s, x, context.WithoutCancel(r.Context())}))
	if err != nil {
		s.sessions.release()
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
	id, err := s.now().agents.Authenticate(r.Context(), r.Header)
	if err != nil {
		s.refuse(w, r, faultOf(err), err)
		return nil, false
	}
	if !s.sessions.reserve() {
		s.refuse(w, r, fault.TooManySessions, nil)
		return nil, false
	}
	return id, true
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
		MaxStreams: c.MaxStreamsPerSession, MaxEndpoints: c.MaxEndpointsPerSession,
	}
}

// abused hears that a session was closed because its agent broke the protocol or a limit.
func (s *Server) abused(reason string) {
	s.metrics.abuse(reason)
	s.refusals.warn("session closed for abuse", reason, nil)
}

// refuse answers an agent that gets no session.
func (s *Server) refuse(w http.ResponseWriter, r *http.Request, f fault.Fault, why error) {
	s.metrics.refused(f.Code)
	s.refusals.warn("agent refused", f.Code, map[string]any{"remote": r.RemoteAddr, "path": r.URL.Path, "err": why})
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
