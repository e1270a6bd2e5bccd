package cluster

import "github.com/prometheus/client_golang/prometheus"

// metrics of the sessions between nodes. No label names a node: names come and go with the nodes.
type metrics struct {
	relayed, refused, sent, received, snapshots prometheus.Counter
}

func newMetrics(p *Peers, reg prometheus.Registerer) *metrics {
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
		if reg != nil {
			reg.MustRegister(c)
		}
		return c
	}
	m := &metrics{
		relayed:   counter("piko_cluster_streams_relayed_total", "Streams of peers led to agents of this node."),
		refused:   counter("piko_cluster_streams_refused_total", "Streams of peers that no agent of this node took."),
		sent:      counter("piko_cluster_deltas_sent_total", "Changes of the routes pushed to peers."),
		received:  counter("piko_cluster_deltas_received_total", "Changes and snapshots of routes taken from peers."),
		snapshots: counter("piko_cluster_snapshots_sent_total", "Times that a peer was sent all routes of this node."),
	}
	if reg != nil {
		reg.MustRegister(&nodeCollector{p, prometheus.NewDesc(
			"piko_cluster_peers", "Other nodes, by what this one thinks of them.", []string{"status"}, nil,
		)})
	}
	return m
}

// nodeCollector counts the nodes at scrape time.
type nodeCollector struct {
	peers *Peers
	desc  *prometheus.Desc
}

// Describe names the gauge.
func (c *nodeCollector) Describe(out chan<- *prometheus.Desc) { out <- c.desc }

// Collect counts.
func (c *nodeCollector) Collect(out chan<- prometheus.Metric) {
	var n [Useless + 1]int
	for _, r := range c.peers.o.Table.Nodes() {
		n[r.Standing()]++
	}
	for s, v := range n {
		out <- prometheus.MustNewConstMetric(c.desc, prometheus.GaugeValue, float64(v), Standing(s).String())
	}
}
