package server

import (
	"crypto/tls"
	"net"

	"github.com/sirupsen/logrus"

	"github.com/pikoproxy/piko/internal/tlsconf"
)

// newGuests returns who is to be asked again for certificates on the listeners where each connection carries many requests.
// Agents are judged with their sessions.
func newGuests(s *Server) map[string]*tlsconf.Guests {
	all := make(map[string]*tlsconf.Guests)
	for _, name := range []string{proxyListener, adminListener} {
		all[name] = tlsconf.NewGuests(func() *tls.Config { return s.now().tls[name] }, func(why error, remote string) {
			s.limits.report.Warn("connection ends", name, logrus.Fields{"remote": remote, "err": why})
		})
	}
	return all
}

// watched puts what asks again behind a listener.
func (s *Server) watched(name string, l net.Listener) net.Listener {
	if guests := s.guests[name]; guests != nil {
		return guests.Listen(l)
	}
	return l
}
