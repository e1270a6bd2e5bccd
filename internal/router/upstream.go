package router

import (
	"sync/atomic"
	"time"

	"github.com/pikoproxy/piko/internal/cluster"
	"github.com/pikoproxy/piko/internal/tunnel"
)

// UpstreamOptions describe what a session offers for one endpoint.
type UpstreamOptions struct {
	Weight   int    // share of the traffic compared with other upstreams; below 1 means 1
	Protocol string // of the listener: tunnel.ProtocolHTTP or ProtocolTCP; "" when unknown, as for classic agents
	Anew     bool   // no stream opened before is to be used again: the service behind the session may have changed
}

// Upstream is one session seen as a target for one endpoint. It lives from [Router.Add] to its removal.
//
//	          eject_after consecutive faults                       period over: one request probes
//	healthy ────────────────────────────────────> ejected (10 s) ───────────────────────────────> half-open
//	   ^                                             ^                                               │  │
//	   │                                             └────────────── fault: twice as long ───────────┘  │
//	   └──────────────────────────────────────────────────────────── the service answers ───────────────┘
//
// An ejected upstream is used all the same when no other one is left. An answer brings it back then, too, and a fault
// changes nothing: otherwise a service that is away for a second under load would be left out for minutes.
type Upstream struct {
	router   *Router
	key      Key
	session  Session
	protocol string
	remote   *cluster.Remote // the node that it leads to; nil for a session of this node
	weight   atomic.Int64
	epoch    atomic.Int64 // of a remote one: counts the changes among the sessions behind it

	_        [64]byte // what follows is written by every request; keep it off the cache line of what is only read
	inFlight atomic.Int64
	relayed  relays       // streams that peers keep for HTTP: busy or idle, only they know
	faults   atomic.Int32 // consecutive
	ejected  atomic.Int32 // times in a row; doubles the period
	until    atomic.Int64 // router time when an ejection ends; 0: healthy
	halfOpen atomic.Bool  // a request probes after a period that is over; its fault doubles the next
	removed  atomic.Bool
	listed   atomic.Bool // the sweeper knows of it
	pools    [2]pool     // by poolOf
}

// Key is the endpoint, with its tenant, that this upstream serves.
func (u *Upstream) Key() Key { return u.key }

// Session is the session that streams are opened on.
func (u *Upstream) Session() Session { return u.session }

// Protocol is what the listener behind this upstream speaks; "" when unknown.
func (u *Upstream) Protocol() string { return u.protocol }

// Remote is the node that the upstream leads to; nil for a session of this node.
func (u *Upstream) Remote() *cluster.Remote { return u.remote }

func (u *Upstream) isRemote() bool { return u.remote != nil }

// standing says how much there is to be said for the upstream, apart from faults: sessions of this node stand like
// those of a good one.
func (u *Upstream) standing() cluster.Standing {
	if u.remote == nil {
		return cluster.Good
	}
	return u.remote.Standing()
}

// count counts a stream, apart from the load if a peer keeps it.
func (u *Upstream) count(peer string, n int64) {
	if peer != "" {
		u.relayed.add(peer, n)
		return
	}
	u.inFlight.Add(n)
}

// InFlight is the number of streams in use now, idle ones not counted.
func (u *Upstream) InFlight() int { return int(u.inFlight.Load()) }

// Weight is its share of the traffic compared with the others, at least 1.
func (u *Upstream) Weight() int { return int(u.weight.Load()) }

// serves reports whether a stream of the given protocol makes sense here. HTTP/1.1 may be spoken to a raw TCP listener,
// as with any TCP proxy; HTTP/2 needs a far side that is known to understand it.
func (u *Upstream) serves(protocol string) bool {
	if u.isRemote() {
		return true // only that node knows; it refuses what its agents do not speak
	}
	switch protocol {
	case tunnel.ProtocolH2:
		return u.protocol == tunnel.ProtocolHTTP
	case tunnel.ProtocolTCP:
		return u.protocol != tunnel.ProtocolHTTP
	default:
		return true
	}
}

// gone reports whether nothing new may be opened here.
func (u *Upstream) gone() bool {
	if u.removed.Load() || u.standing() == cluster.Useless {
		return true
	}
	select {
	case <-u.session.Closing():
		return true
	default:
		return false
	}
}

// healthy reports whether the upstream may be chosen before others: not ejected, or due for a probe.
func (u *Upstream) healthy(now time.Duration) bool {
	until := u.until.Load()
	return until == 0 || int64(now) >= until
}

// attempt is called with the upstream that was chosen. Its result says whether the request is a probe, whose outcome
// decides about an ejected upstream. ok is false when another request is the probe already and this one should look
// elsewhere.
func (u *Upstream) attempt(now time.Duration, lastResort bool) (probe, ok bool) {
	until := u.until.Load()
	switch {
	case until == 0:
		return false, true
	case int64(now) < until:
		return lastResort, lastResort
	}
	// Whoever moves the end of the ejection on is the probe; if it ends without a verdict, the next one comes a period
	// later.
	next := int64(now + ejectPeriod(u.ejected.Load()))
	if u.until.CompareAndSwap(until, next) {
		u.halfOpen.Store(true)
		return true, true
	}
	return lastResort, lastResort
}

// answered is called when the service has sent its first byte to a probe.
func (u *Upstream) answered() { u.until.Store(0) }

// succeeded is called when an exchange ended well.
func (u *Upstream) succeeded() {
	if u.faults.Load() != 0 {
		u.faults.Store(0)
	}
	if u.ejected.Load() != 0 {
		u.ejected.Store(0)
	}
}

// fault counts one failure that is the upstream's and ejects it when there were too many in a row.
func (u *Upstream) fault(probe bool) {
	limit := int32(min(u.router.settings.Load().EjectAfter, 1<<20)) //nolint:gosec // bounded by the min
	n := u.faults.Add(1)
	if limit <= 0 || n < limit {
		return
	}
	now := u.router.now()
	if u.until.Load() > int64(now) && !(probe && u.halfOpen.Swap(false)) {
		return // on its way when the upstream was ejected, or sent to it as the last resort
	}
	u.until.Store(int64(now + ejectPeriod(u.ejected.Add(1)-1)))
	u.router.metrics.ejections.Inc()
}

// ejectPeriod doubles with each ejection in a row.
func ejectPeriod(before int32) time.Duration {
	if before > 8 {
		return ejectMax
	}
	return min(ejectBase<<max(before, 0), ejectMax)
}
