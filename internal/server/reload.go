package server

import (
	"context"
	"errors"
	"net"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/pikoproxy/piko/internal/config"
	"github.com/pikoproxy/piko/internal/daemon"
	"github.com/pikoproxy/piko/internal/proxy"
	"github.com/pikoproxy/piko/internal/router"
	"github.com/pikoproxy/piko/internal/tlsconf"
)

// Prepare builds what the node needs for other settings; see [daemon.Prepare].
//
//	certificates, CAs, keys     hold for handshakes and requests from then on
//	limits, timeouts, balance   likewise; limits of the proxy's connections for those accepted from then on
//	address of a listener       the new one is bound before the old one is closed; connections through that live on
//	key or tenant removed       what its tokens have begun ends as if they had expired
//	token on a deny list        what it has begun ends at once
//	client CA removed           likewise within some seconds, which is time to finish or to connect anew
func (s *Server) Prepare(next config.Pikod) (daemon.Change, error) {
	old := s.now()
	n, err := s.newLive(next)
	secure := func() {}
	if s.cluster != nil {
		_, problem := tlsconf.Client("consul.tls", next.Consul.TLS)
		err = errors.Join(err, problem)
		secure, problem = s.cluster.prepareTLS(&old.config.Cluster, &next.Cluster)
		err = errors.Join(err, problem)
	}
	if err != nil {
		return daemon.Change{}, err
	}
	var moved []listening
	before := map[string]config.Address{}
	for _, w := range s.wanted(&old.config) {
		before[w.name] = w.addr
	}
	if addr := before[acmeListener]; addr != "" && n.config.ACME.ListenHTTP() == "" {
		moved = append(moved, listening{name: acmeListener}) // switched off
	}
	for _, w := range s.wanted(&n.config) {
		if before[w.name] != w.addr {
			moved = append(moved, w)
		}
	}
	rearmed := proxy.LimitsOf(next.Proxy) != proxy.LimitsOf(old.config.Proxy) ||
		(n.tls[proxyListener] == nil) != (old.tls[proxyListener] == nil)
	if l := s.listeners.get(proxyListener); rearmed && l != nil && before[proxyListener] == next.Proxy.Listen {
		// Another listener on the same socket: the old one can be closed without a client that notices.
		moved = append(moved, listening{name: proxyListener, addr: addressOf(l.Addr())})
	}
	open, err := s.bind(&n.config, moved)
	if err != nil {
		return daemon.Change{}, err
	}
	var gone []net.Listener
	return daemon.Change{
		Commit: func() {
			secure()
			gone = s.commit(n, moved, open)
		},
		Retire: func() {
			old.stop()
			for _, l := range gone {
				_ = l.Close() // what came through it is not touched
			}
			s.endUseless()
		},
	}, nil
}

// commit puts prepared settings into use, and returns the sockets that have been replaced.
func (s *Server) commit(n *live, moved []listening, open map[string]net.Listener) (gone []net.Listener) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.now()
	c := &n.config
	s.live.Store(n)
	s.router.Apply(routing(c))
	s.sessions.setLimit(c.Upstream.MaxSessions)
	s.limits.apply(c)
	s.proxy.Apply(proxy.SettingsOf(c.Proxy, c.Upstream.Tenants))
	s.proxy.ApplyToListeners(proxy.LimitsOf(c.Proxy), s.proxyTLS(n))
	console := s.newConsole(c.Admin)
	s.console.Store(&console)
	if s.cluster != nil && len(config.Diff(config.Pikod{Consul: old.config.Consul}, config.Pikod{Consul: c.Consul})) > 0 {
		if err := s.cluster.directory.Apply(c.Consul); err != nil {
			s.o.Log.WithError(err).Error("consul settings not changed") // Prepare has read the same files
		}
	}
	if s.group == nil || s.ending {
		shut(open)
		return nil // the node is stopping
	}
	for _, w := range moved {
		if l := s.listeners.set(w.name, open[w.name]); l != nil {
			gone = append(gone, l)
		}
	}
	n.acme.Commit() // it asks for the addresses of the listeners
	s.beginLocked(n)
	for name, l := range open {
		s.serveLocked(name, l)
	}
	return gone
}

// begin runs what belongs to the settings in use, and lets Prepare add to it.
func (s *Server) begin(life context.Context, group *errgroup.Group) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.life, s.group = life, group
	s.now().acme.Commit()  //nolint:contextcheck // what it begins belongs to its own Run
	s.beginLocked(s.now()) //nolint:contextcheck // it takes the context of Run, which life is
	for _, name := range s.listeners.names() {
		if name != clusterListener { // the peers serve it
			s.serveLocked(name, s.listeners.get(name)) //nolint:contextcheck // likewise
		}
	}
}

// setEnding lets Prepare add nothing more.
func (s *Server) setEnding() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ending = true
}

// end lets PrepareLastly add nothing more either.
func (s *Server) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.group = nil
}

// beginLocked keeps key sets fresh.
func (s *Server) beginLocked(n *live) {
	var ctx context.Context
	ctx, n.stop = context.WithCancel(s.life)
	for _, v := range n.verifiers() {
		s.group.Go(func() error { return runVerifier(ctx, v) })
	}
}

func (s *Server) serveLocked(name string, l net.Listener) {
	life := s.life
	s.group.Go(func() error { return s.serve(life, name, l) })
}

// endUseless ends what tokens have begun that are good for nothing under the settings in use.
func (s *Server) endUseless() {
	s.mu.Lock()
	life := s.life
	s.mu.Unlock()
	s.sessions.judge(life, s)
	s.leases.Sweep()
	for _, guests := range s.guests {
		guests.Sweep(time.Now())
	}
}

// routing is what the settings say about the choice of upstreams.
func routing(c *config.Pikod) router.Settings {
	return router.Settings{
		Policy:       router.Policy(c.Balance.Policy),
		EjectAfter:   c.Balance.EjectAfter,
		EndpointWait: time.Duration(c.Proxy.EndpointWait),
		RetryBudget:  c.Balance.RetryBudget,
	}
}

// addressOf is how settings write an address.
func addressOf(a net.Addr) config.Address {
	if a.Network() == "unix" {
		return config.Address("unix:" + a.String())
	}
	return config.Address(a.String())
}

// prepareTLS reads the certificates of a cluster, and returns what puts them into use. From the secret to certificates or back
// there is no way while the other nodes go on: those that have changed and those that have not could not talk.
func (m *membership) prepareTLS(old, next *config.Cluster) (commit func(), err error) {
	if old.TLS.Enabled() != next.TLS.Enabled() {
		return nil, config.Problem{
			Key: "cluster.tls", Want: "certificates or the secret, as it was, until the process is restarted", Have: "the other",
			Hint: "restart to change it, or take the change back",
		}
	}
	server, client, err := peerTLS(next)
	if err != nil {
		return nil, err
	}
	return func() { m.peers.Secure(server, client) }, nil
}
