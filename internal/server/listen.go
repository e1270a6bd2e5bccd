package server

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"

	"github.com/pikoproxy/piko/internal/config"
	"github.com/pikoproxy/piko/internal/tlsconf"
)

// listeners are the open sockets by name, with TLS on top where it is configured.
type listeners struct {
	tls  map[string]*tls.Config
	open map[string]net.Listener
}

// listening is one listener of the settings.
type listening struct {
	name      string
	addr      config.Address
	tls       config.TLS
	protocols []string // offered by ALPN
}

func (s *Server) wanted() []listening {
	c := &s.config
	all := []listening{
		{proxyListener, c.Proxy.Listen, c.Proxy.TLS, []string{"h2", "http/1.1"}},
		{upstreamListener, c.Upstream.Listen, c.Upstream.TLS, []string{"http/1.1"}},
		{adminListener, c.Admin.Listen, c.Admin.TLS, []string{"h2", "http/1.1"}},
	}
	if s.cluster != nil {
		all = append(all, listening{name: clusterListener, addr: c.Cluster.Listen}) // TLS is put on it by the peers
	}
	return all
}

// secure reads the certificates.
func (s *Server) secure() error {
	s.listeners.tls = make(map[string]*tls.Config)
	var errs []error
	for _, w := range s.wanted() {
		c, err := tlsconf.Server(w.name+".tls", w.tls, w.protocols...)
		switch {
		case err != nil:
			errs = append(errs, err)
		case c != nil:
			s.listeners.tls[w.name] = c
		case w.tls.Enabled():
			// A listener must never fall back to plain text behind the operator's back.
			errs = append(errs, config.Problem{
				Key: w.name + ".tls", Want: "a certificate that can be served", Have: "none",
			})
		}
	}
	return errors.Join(errs...)
}

// Listen opens the sockets, all or none. Run does so too if it was not done before; a test does it first, to learn the
// addresses.
func (s *Server) Listen() error {
	if s.listeners.open != nil {
		return nil
	}
	listen := s.o.Listen
	if listen == nil {
		listen = func(_, addr string, _ bool) (net.Listener, error) {
			return net.Listen(config.Address(addr).Split())
		}
	}
	open := make(map[string]net.Listener)
	for _, w := range s.wanted() {
		if w.addr == "" {
			continue // switched off
		}
		l, err := listen(w.name, string(w.addr), s.config.IsSet(w.name+".listen"))
		if err != nil {
			for _, l := range open {
				_ = l.Close() // nothing was accepted
			}
			return fmt.Errorf("open the %s listener: %w", w.name, err)
		}
		if c := s.listeners.tls[w.name]; c != nil && w.name != proxyListener { // the proxy puts it on itself
			l = tls.NewListener(l, c)
		}
		open[w.name] = l
	}
	s.listeners.open = open
	return nil
}

// Addr returns the address of a listener, "proxy", "upstream", "admin" or "cluster", after Listen; nil if it is switched
// off.
func (s *Server) Addr(name string) net.Addr {
	l := s.listeners.open[name]
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
