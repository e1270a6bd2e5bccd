package acme

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics count orders and tell when the next certificate ends.
type metrics struct {
	orders *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer, m *Manager) (*metrics, error) {
	out := &metrics{orders: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "piko_acme_orders_total", Help: "Orders of certificates, first ones and renewals, by outcome: ok or failed.",
	}, []string{"kind", "outcome"})}
	if r == nil {
		return out, nil
	}
	for _, c := range []prometheus.Collector{
		out.orders,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "piko_acme_missing_certificates", Help: "Names in acme.domains that there is no certificate for.",
		}, func() float64 { missing, _ := m.survey(); return float64(missing) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "piko_acme_expiry_timestamp_seconds",
			Help: "When the first of the certificates of acme.domains ends, in Unix seconds; 0 if there is none.",
		}, func() float64 {
			if _, first := m.survey(); !first.IsZero() {
				return float64(first.Unix())
			}
			return 0
		}),
	} {
		if err := r.Register(c); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// survey counts the names without a certificate, and finds the end of the certificate that ends first.
func (m *Manager) survey() (missing int, first time.Time) {
	m.mu.Lock()
	cache, p := m.cache, m.current.Load()
	m.mu.Unlock()
	for _, name := range p.settings.Domains {
		var last time.Time // of several for one name, the latest is served
		if cache != nil {
			for _, cert := range cache.AllMatchingCertificates(name) {
				if leaf := cert.Leaf; leaf != nil && leaf.NotAfter.After(last) {
					last = leaf.NotAfter
				}
			}
		}
		switch {
		case last.IsZero():
			missing++
		case first.IsZero() || last.Before(first):
			first = last
		}
	}
	return missing, first
}

// event counts what certmagic tells of.
func (m *metrics) event(_ context.Context, name string, data map[string]any) error {
	outcome := map[string]string{"cert_obtained": "ok", "cert_failed": "failed"}[name]
	if outcome == "" {
		return nil
	}
	kind := "new"
	if renewal, _ := data["renewal"].(bool); renewal {
		kind = "renewal"
	}
	m.orders.WithLabelValues(kind, outcome).Inc()
	return nil
}
