package consul

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	up, degraded                                 prometheus.Gauge
	sessions, watchErrors, resets, bad, swept    *prometheus.CounterVec
	txns                                         *prometheus.CounterVec
	renewFailures, returns, reloads, repairs     prometheus.Counter
	tooMany, readBytes                           prometheus.Counter
	renewTime, txnTime, txnOps, txnBytes         prometheus.Histogram
	budgetWait, loadTime, loadBytes, propagation prometheus.Histogram
	dirty, buckets, keys, budget                 prometheus.Gauge
	nodes, orphans, watches, current             prometheus.Gauge
}

// newMetrics registers the metrics. None has a label that grows with the cluster. The two ages are asked for when they
// are read.
func newMetrics(r prometheus.Registerer, renewed, dirty func() time.Duration) (*metrics, error) {
	b := &meters{registerer: r}
	fast := []float64{.001, .002, .005, .01, .02, .05, .1, .25, .5, 1, 2.5, 5, 10}
	sizes := prometheus.ExponentialBuckets(256, 4, 10)
	m := &metrics{
		up:            b.gauge("up", "Whether the last request to Consul was answered."),
		degraded:      b.gauge("degraded", "Whether writes or reads of the directory are held up."),
		sessions:      b.counters("sessions_created_total", "Consul sessions made, by what made one necessary.", "reason"),
		renewTime:     b.histogram("renew_duration_seconds", "How long renewals of the session took.", fast),
		renewFailures: b.counter("renew_failures_total", "Renewals of the session that were not answered."),
		txns:          b.counters("transactions_total", "Transactions, by how they ended.", "result"),
		txnTime:       b.histogram("transaction_duration_seconds", "How long transactions took.", fast),
		txnOps:        b.histogram("transaction_operations", "Operations in a transaction.", []float64{1, 2, 4, 8, 16, 32, 64}),
		txnBytes:      b.histogram("transaction_size_bytes", "Bytes of the values in a transaction.", sizes),
		budgetWait:    b.histogram("budget_wait_seconds", "How long writes waited for the write budget.", fast),
		budget:        b.gauge("write_budget_per_second", "Transactions that this node may send each second."),
		dirty:         b.gauge("dirty_keys", "Keys whose change Consul has not acknowledged."),
		buckets:       b.gauge("buckets", "Buckets that hold the keys of this node."),
		keys:          b.gauge("keys", "Keys that Consul has of this node."),
		returns:       b.counter("watch_returns_total", "Answers to blocking reads."),
		watchErrors:   b.counters("watch_errors_total", "Blocking reads that were not answered, by code.", "code"),
		resets:        b.counters("watch_resets_total", "Blocking reads that began anew, by reason.", "reason"),
		readBytes:     b.counter("watch_received_bytes_total", "Bytes of values that blocking reads brought."),
		reloads:       b.counter("gap_reloads_total", "Lists of a node because its last changes did not join on."),
		loadTime:      b.histogram("load_duration_seconds", "How long lists of a node took.", fast),
		loadBytes:     b.histogram("load_size_bytes", "Bytes of the values in a list of a node.", sizes),
		propagation:   b.histogram("propagation_seconds", "From a write of this node to its arrival at this node's own watch.", fast),
		nodes:         b.gauge("nodes", "Other nodes that are members."),
		orphans:       b.gauge("orphans", "Other nodes whose record has vanished but that still answer."),
		watches:       b.gauge("watches", "Heads of other nodes that are watched."),
		current:       b.gauge("watches_current", "Watches whose last read was answered."),
		bad:           b.counters("bad_entries_total", "Values in Consul that were passed over, by kind.", "kind"),
		swept:         b.counters("janitor_actions_total", "What was removed after dead nodes, by kind.", "kind"),
		repairs:       b.counter("repairs_total", "Times that this node's own keys were found changed and written again."),
		tooMany:       b.counter("http_429_total", "Requests that Consul refused as too many."),
	}
	b.age("last_renew_age_seconds", "How long ago the session was renewed.", renewed)
	b.age("dirty_oldest_seconds", "How long ago the oldest change was made that Consul has not acknowledged.", dirty)
	return m, b.err
}

// meters makes and registers metrics and keeps what went wrong.
type meters struct {
	registerer prometheus.Registerer
	err        error
}

func (b *meters) add(c prometheus.Collector) {
	if b.registerer != nil {
		b.err = errors.Join(b.err, b.registerer.Register(c))
	}
}

const (
	namespace = "piko"
	subsystem = "consul"
)

func (b *meters) gauge(name, help string) prometheus.Gauge {
	g := prometheus.NewGauge(prometheus.GaugeOpts{Namespace: namespace, Subsystem: subsystem, Name: name, Help: help})
	b.add(g)
	return g
}

func (b *meters) counter(name, help string) prometheus.Counter {
	c := prometheus.NewCounter(prometheus.CounterOpts{Namespace: namespace, Subsystem: subsystem, Name: name, Help: help})
	b.add(c)
	return c
}

func (b *meters) counters(name, help, label string) *prometheus.CounterVec {
	c := prometheus.NewCounterVec(
		prometheus.CounterOpts{Namespace: namespace, Subsystem: subsystem, Name: name, Help: help}, []string{label})
	b.add(c)
	return c
}

func (b *meters) histogram(name, help string, buckets []float64) prometheus.Histogram {
	h := prometheus.NewHistogram(prometheus.HistogramOpts{
		Namespace: namespace, Subsystem: subsystem, Name: name, Help: help, Buckets: buckets,
	})
	b.add(h)
	return h
}

func (b *meters) age(name, help string, age func() time.Duration) {
	b.add(prometheus.NewGaugeFunc(
		prometheus.GaugeOpts{Namespace: namespace, Subsystem: subsystem, Name: name, Help: help},
		func() float64 { return age().Seconds() }))
}
