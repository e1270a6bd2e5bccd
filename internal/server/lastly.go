package server

import (
	"github.com/pikoproxy/piko/internal/config"
	"github.com/pikoproxy/piko/internal/daemon"
	"github.com/pikoproxy/piko/internal/proxy"
)

// PrepareLastly builds what a node that is stopping takes over from other settings: who may do what, since a drain may last for
// hours, and a revocation can't wait for its end. Everything else stays as it is.
func (s *Server) PrepareLastly(next config.Pikod) (daemon.Change, error) {
	old := s.now()
	n, err := s.newLive(restricted(old.config, &next))
	if err != nil {
		return daemon.Change{}, err
	}
	return daemon.Change{
		Commit: func() { s.commitLastly(n) },
		Retire: func() {
			old.stop()
			s.endUseless()
		},
	}, nil
}

// restricted returns settings with what others say about who may do what.
func restricted(c config.Pikod, next *config.Pikod) config.Pikod {
	c.Proxy.Auth, c.Upstream.Auth, c.Admin.Auth = next.Proxy.Auth, next.Upstream.Auth, next.Admin.Auth
	c.Proxy.Allow, c.Upstream.Allow, c.Admin.Allow = next.Proxy.Allow, next.Upstream.Allow, next.Admin.Allow
	c.Proxy.Deny, c.Upstream.Deny, c.Admin.Deny = next.Proxy.Deny, next.Upstream.Deny, next.Admin.Deny
	c.Proxy.Endpoints, c.Upstream.Tenants = next.Proxy.Endpoints, next.Upstream.Tenants
	for _, t := range []struct{ have, want *config.TLS }{
		{&c.Proxy.TLS, &next.Proxy.TLS}, {&c.Upstream.TLS, &next.Upstream.TLS}, {&c.Admin.TLS, &next.Admin.TLS},
	} {
		if t.have.Enabled() && t.want.Enabled() { // what is open stays what it is, encrypted or not
			*t.have = *t.want
		}
	}
	return c
}

func (s *Server) commitLastly(n *live) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.live.Store(n)
	s.limits.apply(&n.config)
	s.proxy.Apply(proxy.SettingsOf(n.config.Proxy, n.config.Upstream.Tenants))
	console := s.newConsole(n.config.Admin)
	s.console.Store(&console)
	if s.group != nil {
		s.beginLocked(n)
	}
}
