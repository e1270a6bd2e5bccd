package router

import (
	"fmt"
	"time"

	"github.com/pikoproxy/piko/internal/cluster"
)

// Explanation tells where a request for an endpoint would go now, and why.
type Explanation struct {
	Endpoint  Key              `json:"endpoint"`
	Policy    Policy           `json:"policy"`
	Upstreams []UpstreamStatus `json:"upstreams"`
	Verdict   string           `json:"verdict"`
}

// UpstreamStatus is the state of one upstream at one moment.
type UpstreamStatus struct {
	Session  string  `json:"session"`
	Remote   bool    `json:"remote"`
	Node     string  `json:"node,omitempty"` // that a remote one leads to
	Protocol string  `json:"protocol"`
	Weight   int     `json:"weight"`
	Share    float64 `json:"share"` // of the requests when all are equally loaded; 0 when not usable
	InFlight int     `json:"in_flight"`
	Idle     int     `json:"idle"`
	Faults   int     `json:"faults"` // consecutive
	State    string  `json:"state"`  // healthy, ejected, probing, closing; draining, orphan or down for a node
	For      string  `json:"for"`    // how much longer it stays ejected; empty otherwise
}

// Idle is the number of streams kept for the next request.
func (u *Upstream) Idle() int {
	n := 0
	for i := range u.pools {
		n += u.pools[i].len()
	}
	return n
}

// Explain describes the upstreams of an endpoint in the order of the table. It reports false for an endpoint that has
// none and would not be waited for.
func (r *Router) Explain(key Key) (Explanation, bool) {
	settings := r.settings.Load()
	x := Explanation{Endpoint: key, Policy: settings.Policy, Upstreams: []UpstreamStatus{}}
	now := r.now()
	_, snap := r.lookup(key)
	if snap != nil {
		for _, u := range snap.all {
			x.Upstreams = append(x.Upstreams, u.status(now))
		}
	}
	healthy := share(x.Upstreams, settings.Policy)
	switch waits := settings.EndpointWait > 0 && r.leftRecently(key, now); {
	case healthy > 0:
		x.Verdict = fmt.Sprintf("one of %d healthy upstreams takes the request", healthy)
	case len(x.Upstreams) > 0:
		x.Verdict = "no upstream is healthy; the request is tried on an ejected one rather than refused"
	case snap != nil && waits:
		x.Verdict = fmt.Sprintf("the endpoint left moments ago; a request waits for it up to %s", settings.EndpointWait)
	case waits:
		x.Verdict = fmt.Sprintf("not seen yet, but this node has just started; a request waits for it up to %s",
			settings.EndpointWait)
	default:
		x.Verdict = "nobody offers this endpoint here"
		return x, false
	}
	return x, true
}

func (u *Upstream) status(now time.Duration) UpstreamStatus {
	s := UpstreamStatus{
		Session: u.session.ID(), Remote: u.isRemote(), Protocol: u.protocol, Weight: u.Weight(), InFlight: u.InFlight(),
		Idle: u.Idle(), Faults: int(u.faults.Load()), State: "healthy",
	}
	if u.isRemote() {
		s.Node = u.remote.Node().ID
	}
	switch until := time.Duration(u.until.Load()); {
	case u.standing() != cluster.Good:
		s.State = u.standing().String()
	case u.gone():
		s.State = "closing"
	case until > now:
		s.State, s.For = "ejected", (until - now).Round(time.Second).String()
	case until != 0:
		s.State = "probing"
	}
	return s
}

// share fills in the shares of the healthy ones and returns their number.
func share(ups []UpstreamStatus, p Policy) int {
	local := false
	for _, u := range ups {
		local = local || p == PolicyLocalFirst && u.State == "healthy" && !u.Remote
	}
	takes := func(u UpstreamStatus) bool { return u.State == "healthy" && (!local || !u.Remote) }
	n, total := 0, 0
	for _, u := range ups {
		if takes(u) {
			n++
			total += u.Weight
		}
	}
	for i, u := range ups {
		if takes(u) {
			ups[i].Share = float64(u.Weight) / float64(total)
		}
	}
	return n
}
