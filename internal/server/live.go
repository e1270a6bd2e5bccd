package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"

	"github.com/pikoproxy/piko/internal/acme"
	"github.com/pikoproxy/piko/internal/auth"
	"github.com/pikoproxy/piko/internal/config"
)

// live is what a reload replaces as a whole: the settings and what was built of them. It is never changed, except that
// stop is set when it is begun.
type live struct {
	config   config.Pikod
	agents   auth.Gate  // who may offer endpoints
	clients  clientGate // who may reach them
	operator *auth.Verifier
	acme     acme.Change
	tls      map[string]*tls.Config // by listener; none: plain

	stop context.CancelFunc // ends the refreshing of key sets
}

// now returns what is in use.
func (s *Server) now() *live { return s.live.Load() }

// newLive reads keys and certificates.
func (s *Server) newLive(c config.Pikod) (*live, error) {
	n := &live{config: c, stop: func() {}}
	err := n.authenticate(s.o.Version, s.now())
	conf, problem := s.secure(&n.config)
	n.tls = conf
	change, order := s.acme.Prepare(c.ACME)
	n.acme = change
	return n, errors.Join(err, problem, order)
}

// authenticate builds what verifies tokens. What was used before, if anything, hands over the key sets it has fetched.
func (n *live) authenticate(version string, old *live) error {
	c := &n.config
	if old == nil {
		old = &live{}
	}
	var err error
	verifier := func(section string, a config.Auth, role auth.Role, previous *auth.Verifier) *auth.Verifier {
		v, e := auth.New(a, auth.Options{Section: section, Role: role, Version: version, Previous: previous})
		err = errors.Join(err, e)
		return v
	}
	n.agents.Own = verifier("upstream.auth", c.Upstream.Auth, auth.Agent, old.agents.Own)
	n.clients.Own = verifier("proxy.auth", c.Proxy.Auth, auth.Client, old.clients.Own)
	n.operator = verifier("admin.auth", c.Admin.Auth, auth.Operator, old.operator)
	for i, t := range c.Upstream.Tenants {
		if n.agents.Tenants == nil {
			n.agents.Tenants, n.clients.Tenants = map[string]*auth.Verifier{}, map[string]*auth.Verifier{}
		}
		section := fmt.Sprintf("upstream.tenants[%d].auth", i)
		n.agents.Tenants[t.ID] = verifier(section, t.Auth, auth.Agent, old.agents.Tenants[t.ID])
		if n.agents.Tenants[t.ID] != nil { // else it would only say the same again
			n.clients.Tenants[t.ID] = verifier(section, t.Auth, auth.Client, old.clients.Tenants[t.ID])
		}
	}
	return err
}

// verifiers returns all of them, for their key sets to be kept fresh.
func (n *live) verifiers() []*auth.Verifier {
	all := []*auth.Verifier{n.agents.Own, n.clients.Own, n.operator}
	for _, gate := range []*auth.Gate{&n.agents, &n.clients.Gate} {
		for _, v := range gate.Tenants {
			all = append(all, v)
		}
	}
	return all
}

// clientGate is the gate of the proxy listener. Without keys of its own that listener is open, to the endpoints that
// belong to no tenant and to those of the tenant in whose domain a request is. In any case a client may name a tenant,
// and needs a token under that one's keys then.
type clientGate struct{ auth.Gate }

// Authenticate returns who sent a request with this header to a domain of the tenant, or to nobody's.
func (g *clientGate) Authenticate(ctx context.Context, h http.Header, tenant string) (*auth.Identity, error) {
	named := h[auth.TenantID]
	switch {
	case g.Own == nil && len(named) == 0:
		return nil, nil //nolint:nilnil // a nil identity stands for a listener that asks for no tokens
	case tenant == "":
		return g.Gate.Authenticate(ctx, h)
	case len(named) > 1 || len(named) == 1 && named[0] != tenant:
		return nil, fmt.Errorf("%w: another one than the domain's is named", auth.ErrUnknownTenant)
	}
	return g.AuthenticateAs(ctx, tenant, h)
}

// liveClients is the gate of the proxy listener under the settings in use.
type liveClients struct{ s *Server }

// Authenticate implements [proxy.Authenticator].
func (l liveClients) Authenticate(ctx context.Context, h http.Header, tenant string) (*auth.Identity, error) {
	return l.s.now().clients.Authenticate(ctx, h, tenant)
}

// proxyTLS is the proxy's TLS under some settings: it asks for the certificates of the moment. Nil: plain.
func (s *Server) proxyTLS(n *live) *tls.Config {
	conf := n.tls[proxyListener]
	if conf == nil {
		return nil
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: conf.NextProtos,
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			current := s.now().tls[proxyListener]
			if current == nil {
				current = conf // TLS has been switched off, and this listener is about to be closed
			}
			if one, err := current.GetConfigForClient(hello); one != nil || err != nil {
				return one, err
			}
			return current, nil
		},
	}
}
