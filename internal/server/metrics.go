package server

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/pikoproxy/piko/internal/tunnel"
)

// kind tells native from classic sessions.
type kind int

const (
	native kind = iota
	classic
)

func (k kind) String() string { return [...]string{"native", "classic"}[k] }

func kindOf(t *tunnel.Session) kind {
	if t.Classic() {
		return classic
	}
	return native
}

// metrics are those of the upstream listener and of the node as a whole; the parts count for themselves.
type metrics struct {
	opened          [2]prometheus.Counter // by kind
	refusedAgents   *prometheus.CounterVec
	refusedEndpoint *prometheus.CounterVec
	abuses          *prometheus.CounterVec
}

func newMetrics(s *Server) *metrics {
	counter := func(name, help, label string) *prometheus.CounterVec {
		v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{label})
		s.registry.MustRegister(v)
		return v
	}
	m := &metrics{
		refusedAgents: counter("piko_server_refused_agents_total",
			"Agents that got no session, by error code.", "code"),
		refusedEndpoint: counter("piko_server_refused_endpoints_total",
			"Endpoints that were not accepted, by reason.", "reason"),
		abuses: counter("piko_server_abuses_total",
			"Sessions closed for breaking a rule, by the rule.", "reason"),
	}
	opened := counter("piko_server_sessions_opened_total", "Sessions that agents have opened.", "kind")
	m.opened = [2]prometheus.Counter{opened.WithLabelValues(native.String()), opened.WithLabelValues(classic.String())}
	build := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "piko_build_info", Help: "1, with the version of the program as a label.",
	}, []string{"version"})
	build.WithLabelValues(s.o.Version).Set(1)
	s.registry.MustRegister(build, collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "piko_server_ready", Help: "1 while the node takes traffic.",
		}, func() float64 {
			if s.Ready() != nil {
				return 0
			}
			return 1
		}),
		&sessionCollector{
			s.sessions, prometheus.NewDesc("piko_server_sessions", "Open sessions of agents.", []string{"kind"}, nil),
		},
	)
	return m
}

// Every label value below is a constant of ours, never something that an agent sent.

func (m *metrics) refused(code string)         { m.refusedAgents.WithLabelValues(code).Inc() }
func (m *metrics) endpointRefused(code string) { m.refusedEndpoint.WithLabelValues(code).Inc() }
func (m *metrics) abuse(reason string)         { m.abuses.WithLabelValues(reason).Inc() }

// sessionCollector counts the sessions at scrape time.
type sessionCollector struct {
	sessions *sessions
	desc     *prometheus.Desc
}

// Describe names the gauge.
func (c *sessionCollector) Describe(out chan<- *prometheus.Desc) { out <- c.desc }

// Collect counts.
func (c *sessionCollector) Collect(out chan<- prometheus.Metric) {
	var n [2]int
	for _, x := range c.sessions.list() {
		n[kindOf(x.tunnel)]++
	}
	for k, v := range n {
		out <- prometheus.MustNewConstMetric(c.desc, prometheus.GaugeValue, float64(v), kind(k).String())
	}
}
