package proxy

import (
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/pikoproxy/piko/internal/fault"
)

// methods are those with a label of their own; all others count as "other", since clients can invent any.
var methods = [...]string{
	http.MethodGet, http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodHead, http.MethodPatch,
	http.MethodOptions, "other",
}

// metrics holds every child resolved, so that a request pays for a few atomic additions.
type metrics struct {
	requests [len(methods)][5]prometheus.Counter
	faults   map[string]prometheus.Counter
	gone     prometheus.Counter
	duration prometheus.Histogram
	inFlight prometheus.Gauge
	spliced  prometheus.Gauge
	received prometheus.Counter
	sent     prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{faults: make(map[string]prometheus.Counter)}
	requests := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "piko_proxy_requests_total", Help: "Requests of clients, by method and class of the answer's status.",
	}, []string{"method", "status"})
	for i, method := range methods {
		for class := range m.requests[i] {
			m.requests[i][class] = requests.WithLabelValues(method, classLabel(class))
		}
	}
	faults := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "piko_proxy_faults_total", Help: "Requests that failed with an error answer of Piko's own, by its code.",
	}, []string{"code"})
	for _, f := range fault.All() {
		m.faults[f.Code] = faults.WithLabelValues(f.Code)
	}
	m.gone = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "piko_proxy_clients_gone_total", Help: "Requests whose client left before the answer.",
	})
	m.duration = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "piko_proxy_request_duration_seconds", Help: "Time from a request's header to the end of its answer.",
		Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, 1, 2.5, 10, 60},
	})
	m.inFlight = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "piko_proxy_requests_in_flight", Help: "Requests being answered now.",
	})
	m.spliced = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "piko_proxy_spliced_connections", Help: "Client connections that switched protocol or carry TCP.",
	})
	m.received = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "piko_proxy_received_bytes_total", Help: "Bytes of request bodies and switched connections from clients.",
	})
	m.sent = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "piko_proxy_sent_bytes_total", Help: "Bytes of answers' bodies and switched connections to clients.",
	})
	if reg != nil {
		reg.MustRegister(requests, faults, m.gone, m.duration, m.inFlight, m.spliced, m.received, m.sent)
	}
	return m
}

// observe counts an exchange that is over.
func (m *metrics) observe(rec *record, took time.Duration) {
	m.requests[methodIndex(rec.method)][statusClass(rec.status)].Inc()
	if c, ok := m.faults[rec.code]; ok {
		c.Inc()
	}
	if rec.status == statusClientGone {
		m.gone.Inc()
	}
	if rec.status != http.StatusSwitchingProtocols {
		m.duration.Observe(took.Seconds())
	}
	if rec.received > 0 {
		m.received.Add(float64(rec.received))
	}
	if rec.sent > 0 {
		m.sent.Add(float64(rec.sent))
	}
}

func methodIndex(method string) int {
	for i, m := range methods {
		if m == method {
			return i
		}
	}
	return len(methods) - 1
}
