package server

import (
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"

	"github.com/pikoproxy/piko/internal/config"
	"github.com/pikoproxy/piko/internal/tlsconf"
)

// listeners are the open sockets by name.
type listeners struct {
	mu   sync.Mutex // guards the following
	open map[string]net.Listener
}

// get returns a socket, or nil.
func (ls *listeners) get(name string) net.Listener {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	return ls.open[name]
}

// set puts another socket in place of one, and returns the old one.
func (ls *listeners) set(name string, l net.Listener) (old net.Listener) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	old = ls.open[name]
	delete(ls.open, name)
	if l != nil {
		ls.open[name] = l
	}
	return old
}

func (ls *listeners) names() []string {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	return slices.Sorted(maps.Keys(ls.open))
}

// listening is one listener of the settings.
type listening struct {
	name      string
	addr      config.Address
	tls       config.TLS
	protocols []string // offered by ALPN
}

func (s *Server) wanted(c *config.Pikod) []listening {
	all := []listening{
		{proxyListener, c.Proxy.Listen, c.Proxy.TLS, []string{"h2", "http/1.1"}},
		{upstreamListener, c.Upstream.Listen, c.Upstream.TLS, []string{"http/1.1"}},
		{adminListener, c.Admin.Listen, c.Admin.TLS, []string{"h2", "http/1.1"}},
	}
	if addr := c.ACME.ListenHTTP(); addr != "" {
		all = append(all, listening{name: acmeListener, addr: addr})
	}
	if s.cluster != nil {
		all = append(all, listening{name: clusterListener, addr: c.Cluster.Listen}) // TLS is put on it by the peers
	}
	return all
}

// secure reads the certificates.
func (s *Server) secure(settings *config.Pikod) (map[string]*tls.Config, error) {
	all := make(map[string]*tls.Config)
	var errs []error
	for _, w := range s.wanted(settings) {
		c, err := tlsconf.Server(w.name+".tls", w.tls, w.protocols...)
		switch {
		case err != nil:
			errs = append(errs, err)
		case c != nil || settings.ACME.Serves(w.name):
			all[w.name] = tlsconf.Remembering(s.withACME(settings, w, c))
		case w.tls.Enabled():
			// A listener must never fall back to plain text behind the operator's back.
			errs = append(errs, config.Problem{
				Key: w.name + ".tls", Want: "a certificate that can be served", Have: "none",
			})
		}
	}
	return all, errors.Join(errs...)
}

// Listen opens the sockets, all or none. Run does so too if it was not done before; a test does it first, to learn the
// addresses.
func (s *Server) Listen() error {
	s.listeners.mu.Lock()
	defer s.listeners.mu.Unlock()
	if s.listeners.open != nil {
		return nil
	}
	open, err := s.bind(&s.config, s.wanted(&s.config))
	s.listeners.open = open
	return err
}

// bind opens sockets, all or none; those without an address are switched off.
func (s *Server) bind(c *config.Pikod, wanted []listening) (map[string]net.Listener, error) {
	open := make(map[string]net.Listener)
	for _, w := range wanted {
		if w.addr == "" {
			continue
		}
		l, err := s.o.Listen(w.name, string(w.addr), c.IsSet(w.name+".listen"))
		if err != nil {
			shut(open)
			return nil, fmt.Errorf("open the %s listener: %w", w.name, err)
		}
		open[w.name] = l
	}
	return open, nil
}

// shut closes sockets that will not be served.
func shut(open map[string]net.Listener) {
	for _, l := range open {
		_ = l.Close() // nothing was accepted
	}
}

// Addr returns the address of a listener, "proxy", "upstream", "admin" or "cluster", after Listen; nil if it is switched
// off.
func (s *Server) Addr(name string) net.Addr {
	l := s.listeners.get(name)
	if l == nil {
		return nil
	}
	return l.Addr()
}

func (s *Server) addrText(name string) string {
	if a := s.Addr(name); a != nil {
		return a.String()
	}
	return ""
}
