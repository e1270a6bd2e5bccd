package daemon

import "github.com/prometheus/client_golang/prometheus"

// Collector returns the metrics of the settings and their reloads, and of the log, for the registry of the assembly.
func (p *Process) Collector() prometheus.Collector { return configCollector{p} }

var (
	lastSuccessful = prometheus.NewDesc("piko_config_last_reload_successful",
		"Whether the last attempt to load the settings succeeded: 1 or 0.", nil, nil)
	lastSuccess = prometheus.NewDesc("piko_config_last_reload_success_timestamp_seconds",
		"When the settings in use were last found to be those of the files.", nil, nil)
	reloadsTotal = prometheus.NewDesc("piko_config_reloads_total",
		"Reloads of the settings, by whether they succeeded or were refused.", []string{"result"}, nil)
	droppedTotal = prometheus.NewDesc("piko_log_dropped_lines_total",
		"Lines of the log that were dropped, as nobody read them in time.", nil, nil)
)

// configCollector reads the outcome of the last reload at scrape time.
type configCollector struct{ p *Process }

// Describe implements prometheus.Collector.
func (configCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- lastSuccessful
	ch <- lastSuccess
	ch <- reloadsTotal
	ch <- droppedTotal
}

// Collect implements prometheus.Collector.
func (c configCollector) Collect(ch chan<- prometheus.Metric) {
	last := c.p.LastReload()
	good := 1.0
	if len(last.Problems) > 0 {
		good = 0
	}
	ch <- prometheus.MustNewConstMetric(lastSuccessful, prometheus.GaugeValue, good)
	ch <- prometheus.MustNewConstMetric(lastSuccess, prometheus.GaugeValue, float64(last.Succeeded.UnixMilli())/1000)
	ch <- prometheus.MustNewConstMetric(reloadsTotal, prometheus.CounterValue, float64(last.Count-last.Failures), "success")
	ch <- prometheus.MustNewConstMetric(reloadsTotal, prometheus.CounterValue, float64(last.Failures), "failure")
	var dropped uint64
	if c.p.dropped != nil {
		dropped = c.p.dropped()
	}
	ch <- prometheus.MustNewConstMetric(droppedTotal, prometheus.CounterValue, float64(dropped))
}
