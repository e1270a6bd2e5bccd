package router

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/pikoproxy/piko/internal/tunnel"
)

// Why an upstream did not take a stream. The values are indexes of refusalNames.
const (
	refusalUnreachable = iota
	refusalNotListening
	refusalNotPermitted
	refusalOverloaded
	refusalDraining
	refusalClosed
	refusalTimeout
	refusalReset
	refusalAbandoned
	refusalOther
)

const (
	dropIdle    = iota // nobody wanted it for a while
	dropUnfit          // closed by the service, or it sent what nobody asked for
	dropRetired        // its upstream left
	dropRoom           // the session was at its limit of streams
)

const (
	waitServed = iota
	waitExpired
	waitAbandoned
	waitFull
)

const (
	retryAllowed = iota
	retryDenied
)

// metrics holds every counter resolved, so that a request pays for an atomic addition and nothing else.
type metrics struct {
	opened, reused, ejections prometheus.Counter

	refusals [refusalOther + 1]prometheus.Counter
	dropped  [dropRoom + 1]prometheus.Counter
	waits    [waitFull + 1]prometheus.Counter
	retries  [retryDenied + 1]prometheus.Counter
}

func newMetrics(r *Router, reg prometheus.Registerer) *metrics {
	m := &metrics{ejections: prometheus.NewCounter(prometheus.CounterOpts{
		Name: "piko_router_ejections_total", Help: "Upstreams taken out after consecutive faults.",
	})}
	opens := vec("piko_router_streams_total", "Streams handed to requests, by where they came from.", "source")
	m.opened, m.reused = opens.WithLabelValues("session"), opens.WithLabelValues("pool")
	refusals := vec("piko_router_refusals_total", "Upstreams that did not take a stream, by reason.", "reason")
	resolve(refusals, m.refusals[:], "service_unreachable", "not_listening", "not_permitted", "overloaded", "draining",
		"session_closed", "open_timeout", "reset", "abandoned", "other")
	dropped := vec("piko_router_idle_streams_closed_total", "Idle streams closed, by reason.", "reason")
	resolve(dropped, m.dropped[:], "idle", "unfit", "retired", "room")
	waits := vec("piko_router_waits_total", "Requests held for an endpoint that is moving, by outcome.", "outcome")
	resolve(waits, m.waits[:], "served", "expired", "abandoned", "full")
	retries := vec("piko_router_retries_total", "Retries asked of the retry budget, by outcome.", "outcome")
	resolve(retries, m.retries[:], "allowed", "denied")
	if reg != nil {
		reg.MustRegister(m.ejections, opens, refusals, dropped, waits, retries, newGauges(r))
	}
	return m
}

func vec(name, help, label string) *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{label})
}

func resolve(v *prometheus.CounterVec, into []prometheus.Counter, names ...string) {
	for i := range into {
		into[i] = v.WithLabelValues(names[i])
	}
}

// reasonOf sorts the error of Session.Open.
func reasonOf(err error) int {
	var refused *tunnel.RefusedError
	switch {
	case errors.Is(err, tunnel.ErrOpenTimeout):
		return refusalTimeout
	case errors.Is(err, tunnel.ErrSessionClosed):
		return refusalClosed
	case !errors.As(err, &refused):
		return refusalOther
	}
	switch refused.Code {
	case tunnel.CodeServiceUnreachable:
		return refusalUnreachable
	case tunnel.CodeNotListening:
		return refusalNotListening
	case tunnel.CodeNotPermitted:
		return refusalNotPermitted
	case tunnel.CodeOverloaded:
		return refusalOverloaded
	case tunnel.CodeDraining:
		return refusalDraining
	case tunnel.CodeReset:
		return refusalReset
	}
	return refusalOther
}

// gauges counts at scrape time what would cost every request something to keep up to date.
type gauges struct {
	router *Router
	descs  [gaugeWaiting + 1]*prometheus.Desc
}

const (
	gaugeEndpoints = iota
	gaugeUpstreams
	gaugeEjected
	gaugeInFlight
	gaugeIdle
	gaugeWaiting
)

func newGauges(r *Router) *gauges {
	desc := func(name, help string) *prometheus.Desc { return prometheus.NewDesc(name, help, nil, nil) }
	return &gauges{r, [...]*prometheus.Desc{
		gaugeEndpoints: desc("piko_router_endpoints", "Endpoints that can be reached."),
		gaugeUpstreams: desc("piko_router_upstreams", "Upstreams of all endpoints."),
		gaugeEjected:   desc("piko_router_upstreams_ejected", "Upstreams taken out after consecutive faults."),
		gaugeInFlight:  desc("piko_router_streams_in_flight", "Streams in use now."),
		gaugeIdle:      desc("piko_router_streams_idle", "Streams kept for the next request."),
		gaugeWaiting:   desc("piko_router_requests_waiting", "Requests held for an endpoint that is moving."),
	}}
}

// Describe names the gauges.
func (g *gauges) Describe(out chan<- *prometheus.Desc) {
	for _, d := range g.descs {
		out <- d
	}
}

// Collect walks the table once.
func (g *gauges) Collect(out chan<- prometheus.Metric) {
	var values [gaugeWaiting + 1]int
	values[gaugeWaiting] = int(g.router.waiting.Load())
	now := g.router.now()
	g.router.each(func(_ Key, snap *snapshot) {
		values[gaugeEndpoints]++
		values[gaugeUpstreams] += len(snap.all)
		for _, u := range snap.all {
			values[gaugeInFlight] += u.InFlight()
			if u.until.Load() > int64(now) {
				values[gaugeEjected]++
			}
			if u.listed.Load() {
				values[gaugeIdle] += u.Idle()
			}
		}
	})
	for i, d := range g.descs {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(values[i]))
	}
}
