package forward

import "github.com/prometheus/client_golang/prometheus"

// labelled is how many forwards get their own endpoint label; the others share the label "other".
const labelled = 1000

// metrics are those of one forwarder.
type metrics struct {
	connections *prometheus.CounterVec
	open        *prometheus.GaugeVec
	sent        *prometheus.CounterVec
	received    *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer) *metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	m := &metrics{
		connections: counter("piko_forward_connections_total",
			"Connections that were accepted, by whether the endpoint could be reached.", "endpoint", "outcome"),
		open: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "piko_forward_connections_open",
			Help: "Connections that are open."}, []string{"endpoint"}),
		sent:     counter("piko_forward_sent_bytes_total", "Bytes that went to endpoints.", "endpoint"),
		received: counter("piko_forward_received_bytes_total", "Bytes that came from endpoints.", "endpoint"),
	}
	reg.MustRegister(m.connections, m.open, m.sent, m.received)
	return m
}

// forwardMetrics are those of one forward, looked up once.
type forwardMetrics struct {
	forwarded, failed, sent, received prometheus.Counter
	open                              prometheus.Gauge
}

func (m *metrics) forward(endpoint string, index int) *forwardMetrics {
	if index >= labelled {
		endpoint = "other"
	}
	return &forwardMetrics{
		forwarded: m.connections.WithLabelValues(endpoint, "forwarded"),
		failed:    m.connections.WithLabelValues(endpoint, "failed"),
		sent:      m.sent.WithLabelValues(endpoint),
		received:  m.received.WithLabelValues(endpoint),
		open:      m.open.WithLabelValues(endpoint),
	}
}

// forget drops the series of an endpoint that no forward leads to any more.
func (m *metrics) forget(endpoint string) {
	label := prometheus.Labels{"endpoint": endpoint}
	for _, v := range []*prometheus.CounterVec{m.connections, m.sent, m.received} {
		v.DeletePartialMatch(label)
	}
	m.open.DeletePartialMatch(label)
}
