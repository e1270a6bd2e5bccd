package agent

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/pikoproxy/piko"
)

// labelled is how many listeners get their own endpoint label; the others share the label "other".
const labelled = 1000

// metrics are those of one agent.
type metrics struct {
	streams     *prometheus.CounterVec
	open        *prometheus.GaugeVec
	requests    *prometheus.CounterVec
	received    *prometheus.CounterVec
	sent        *prometheus.CounterVec
	unreachable *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer, a *Agent) *metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	m := &metrics{
		streams: counter("piko_agent_streams_total",
			"Streams that nodes have opened, by what became of them.", "endpoint", "outcome"),
		open: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "piko_agent_streams_open",
			Help: "Streams that were accepted and have not ended."}, []string{"endpoint"}),
		requests: counter("piko_agent_requests_total",
			"Requests on HTTP streams that the agent reads, by class of their status; none: broken off.",
			"endpoint", "status"),
		received: counter("piko_agent_received_bytes_total", "Bytes that came from clients.", "endpoint"),
		sent:     counter("piko_agent_sent_bytes_total", "Bytes that went to clients.", "endpoint"),
		unreachable: counter("piko_agent_service_failures_total",
			"Attempts to connect to a service that did not succeed.", "endpoint"),
	}
	reg.MustRegister(m.streams, m.open, m.requests, m.received, m.sent, m.unreachable,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "piko_agent_sessions",
			Help: "Sessions with nodes that are open."},
			func() float64 { return float64(len(a.client.Sessions())) }),
		&stateCollector{a: a, desc: prometheus.NewDesc("piko_agent_listeners",
			"Listeners by state: routable, waiting for a node, or withdrawn because the service is unhealthy.",
			[]string{"state"}, nil)},
	)
	return m
}

// stateCollector counts the listeners at scrape time.
type stateCollector struct {
	a    *Agent
	desc *prometheus.Desc
}

// Describe implements prometheus.Collector.
func (c *stateCollector) Describe(ch chan<- *prometheus.Desc) { ch <- c.desc }

// Collect implements prometheus.Collector.
func (c *stateCollector) Collect(ch chan<- prometheus.Metric) {
	counts := c.a.states()
	for _, state := range []string{stateRoutable, stateWaiting, stateUnhealthy} {
		ch <- prometheus.MustNewConstMetric(c.desc, prometheus.GaugeValue, float64(counts[state]), state)
	}
}

// listenerMetrics are those of one listener, looked up once.
type listenerMetrics struct {
	accepted, abandoned, overloaded, dead, undeclared prometheus.Counter
	received, sent, unreachable                       prometheus.Counter
	open                                              prometheus.Gauge
	requests                                          [6]prometheus.Counter // by first digit of the status
}

func (m *metrics) listener(endpoint string, index int) *listenerMetrics {
	if index >= labelled {
		endpoint = "other"
	}
	l := &listenerMetrics{
		accepted:    m.streams.WithLabelValues(endpoint, "accepted"),
		abandoned:   m.streams.WithLabelValues(endpoint, "abandoned"),
		overloaded:  m.streams.WithLabelValues(endpoint, piko.CodeOverloaded),
		dead:        m.streams.WithLabelValues(endpoint, piko.CodeServiceUnreachable),
		undeclared:  m.streams.WithLabelValues(endpoint, piko.CodeNotListening),
		received:    m.received.WithLabelValues(endpoint),
		sent:        m.sent.WithLabelValues(endpoint),
		unreachable: m.unreachable.WithLabelValues(endpoint),
		open:        m.open.WithLabelValues(endpoint),
	}
	l.requests[0] = m.requests.WithLabelValues(endpoint, "none")
	for class := 1; class < len(l.requests); class++ {
		l.requests[class] = m.requests.WithLabelValues(endpoint, strconv.Itoa(class)+"xx")
	}
	return l
}

// refuse counts a stream that was refused.
func (l *listenerMetrics) refuse(code string) {
	switch code {
	case piko.CodeOverloaded:
		l.overloaded.Inc()
	case piko.CodeNotListening:
		l.undeclared.Inc()
	default:
		l.dead.Inc()
	}
}

// request counts a request by its status; 0 is one that was broken off.
func (l *listenerMetrics) request(status int) {
	class := status / 100
	if class < 0 || class >= len(l.requests) {
		class = 0
	}
	l.requests[class].Inc()
}

// forget drops the series of an endpoint that is not offered any more.
func (m *metrics) forget(endpoint string) {
	label := prometheus.Labels{"endpoint": endpoint}
	for _, v := range []*prometheus.CounterVec{m.streams, m.requests, m.received, m.sent, m.unreachable} {
		v.DeletePartialMatch(label)
	}
	m.open.DeletePartialMatch(label)
}
