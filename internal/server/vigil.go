package server

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/pikoproxy/piko/internal/auth"
	"github.com/pikoproxy/piko/internal/config"
	"github.com/pikoproxy/piko/internal/tlsconf"
)

const (
	vigilEvery  = 5 * time.Minute
	vigilHourly = time.Hour           // between two lines about something that stays as it is
	expirySoon  = 14 * 24 * time.Hour // before a certificate expires; less for one that lives a short time
)

// vigil shows, by metrics and now and then in the log, what is not wrong yet or was chosen so, and may hurt one day: open
// listeners, certificates that expire, key servers that do not answer.
type vigil struct {
	server                    *Server
	insecure, expires, keyAge *prometheus.Desc
	told                      map[string]time.Time // by what was told; of Run's goroutine
}

func newVigil(s *Server) *vigil {
	desc := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, []string{"listener"}, nil)
	}
	v := &vigil{
		server: s, told: map[string]time.Time{},
		insecure: desc("piko_insecure", "1 for a listener that everybody on the network may use without authentication."),
		expires: desc("piko_tls_certificate_expiry_seconds",
			"Time until the first certificate file of a listener expires; negative after that."),
		keyAge: desc("piko_jwks_age_seconds", "Time since the oldest key set of a listener, its tenants included, was fetched."),
	}
	s.registry.MustRegister(v)
	return v
}

// Describe names the gauges.
func (v *vigil) Describe(out chan<- *prometheus.Desc) {
	out <- v.insecure
	out <- v.expires
	out <- v.keyAge
}

// Collect looks at the settings in use.
func (v *vigil) Collect(out chan<- prometheus.Metric) {
	now := v.server.now()
	gauge := func(desc *prometheus.Desc, value float64, listener string) {
		out <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, listener)
	}
	for name, open := range unguarded(&now.config) {
		value := 0.0
		if open {
			value = 1
		}
		gauge(v.insecure, value, name)
	}
	for name, conf := range now.tls {
		if at, _, ok := tlsconf.Expires(conf); ok {
			gauge(v.expires, time.Until(at).Seconds(), name)
		}
	}
	for name, age := range now.keysAges() {
		gauge(v.keyAge, age.Seconds(), name)
	}
}

// unguarded says of the listeners that should know who comes whether they let everybody in.
func unguarded(c *config.Pikod) map[string]bool {
	open := func(listen config.Address, t config.TLS, tokens bool) bool {
		return listen != "" && !listen.Local() && t.ClientCA == "" && !tokens
	}
	return map[string]bool{
		upstreamListener: open(c.Upstream.Listen, c.Upstream.TLS, c.Upstream.Auth.Enabled() || len(c.Upstream.Tenants) > 0),
		adminListener:    open(c.Admin.Listen, c.Admin.TLS, c.Admin.Auth.Enabled()),
	}
}

// keysAges returns the age of the oldest key set of each listener that has one which was fetched.
func (n *live) keysAges() map[string]time.Duration {
	ages := map[string]time.Duration{}
	look := func(listener string, v *auth.Verifier) {
		if age, ok := v.KeysAge(); ok {
			ages[listener] = max(ages[listener], age)
		}
	}
	look(adminListener, n.operator)
	for name, gate := range map[string]*auth.Gate{upstreamListener: &n.agents, proxyListener: &n.clients.Gate} {
		look(name, gate.Own)
		for _, v := range gate.Tenants {
			look(name, v)
		}
	}
	return ages
}

// run tells of what may hurt until ctx ends.
func (v *vigil) run(ctx context.Context) error {
	tick := time.NewTicker(vigilEvery)
	defer tick.Stop()
	for {
		v.look(time.Now())
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// look writes the lines that are due.
func (v *vigil) look(t time.Time) {
	now, log := v.server.now(), v.server.o.Log
	for name, open := range unguarded(&now.config) {
		if open && v.due("open "+name, t) {
			log.WithField("listener", name).Warn("everybody who reaches this listener is let in without authentication")
		}
	}
	for name, conf := range now.tls {
		at, life, ok := tlsconf.Expires(conf)
		entry := log.WithField("listener", name).WithField("expires", at.UTC().Format(time.RFC3339))
		switch {
		case !ok:
		case t.After(at):
			if v.due("expired "+name, t) {
				entry.Error("a certificate has expired")
			}
		case at.Sub(t) < min(expirySoon, life/4):
			if v.due("expires "+name, t) {
				entry.Warn("a certificate expires soon")
			}
		}
	}
	for _, k := range now.verifiers() {
		if err := k.Trouble(); err != nil {
			log.WithError(err).Warn("key set not fetched")
		}
	}
}

// due reports whether a line has not been written for so long that it should be again.
func (v *vigil) due(what string, t time.Time) bool {
	if last, ok := v.told[what]; ok && t.Sub(last) < vigilHourly {
		return false
	}
	v.told[what] = t
	return true
}
