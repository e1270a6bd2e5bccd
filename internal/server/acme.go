package server

import (
	"crypto/tls"
	"net"
	"net/http"
	"time"

	"github.com/pikoproxy/piko/internal/acme"
	"github.com/pikoproxy/piko/internal/config"
	"github.com/pikoproxy/piko/internal/proxy"
	"github.com/pikoproxy/piko/internal/router"
)

// Limits of the acme listener: it answers an authority, and redirects browsers.
const (
	plainTimeout = 5 * time.Second
	plainHeader  = 8 << 10
)

// newACME makes what orders certificates; whether it does, the settings say.
func (s *Server) newACME() error {
	o := acme.Options{
		Offered: s.offered, Log: s.o.Log, Registerer: s.registry,
		Addr: func(name string) net.Addr { return s.Addr(name) },
	}
	if s.cluster != nil {
		o.Shared = func() acme.Shared { return s.cluster.directory.Common() }
		o.Secret = s.config.Cluster.Secret.Reveal()
	}
	var err error
	if s.acme, err = acme.New(o); err != nil {
		return err
	}
	s.plain = &http.Server{
		Handler: s.acme.Handler(), ReadTimeout: plainTimeout, WriteTimeout: plainTimeout, IdleTimeout: plainTimeout,
		MaxHeaderBytes: plainHeader, ErrorLog: s.o.ErrorLog,
	}
	return nil
}

// offered reports whether an agent offers the endpoint of a host.
func (s *Server) offered(host string) bool {
	c := &s.now().config
	names := proxy.SettingsOf(c.Proxy, c.Upstream.Tenants)
	tenant, name, err := names.Endpoint(host)
	if err != nil {
		return false
	}
	explained, known := s.router.Explain(router.KeyOf(tenant, name))
	return known && len(explained.Upstreams) > 0
}

// withACME returns a listener's configuration that serves the certificates of the authority too. Base is nil when the
// listener has no certificate from a file.
func (s *Server) withACME(settings *config.Pikod, w listening, base *tls.Config) *tls.Config {
	if !settings.ACME.Serves(w.name) {
		return base
	}
	if base == nil {
		base = &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: w.protocols}
		if w.tls.MinVersion == "1.3" {
			base.MinVersion = tls.VersionTLS13
		}
	}
	return s.acme.Config(base)
}
