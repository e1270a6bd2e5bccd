// Package router turns the name of an endpoint into an open stream: it knows which sessions offer the endpoint, chooses
// one of them, keeps idle HTTP streams for the next request, and replaces an upstream that refuses by another one.
//
//	Open ── look up key ──> snapshot of upstreams ── pick ──> idle stream in the pool? ──yes──> Stream
//	          │ none                                   ^            │ no
//	          v                                        │            v
//	   hold the request while                     refused before  open on the session ──accepted──> Stream
//	   the endpoint is moving                     a byte was sent     │
//	                                                   └──────────────┘
//
// # Other nodes
//
// In a cluster the upstreams of this node are joined by one for each other node that holds the endpoint, with the weight
// of all that it holds. Those are made when a request first needs them and forgotten when no request has for a while. A
// stream that comes from another node is opened by [Router.OpenLocal], which knows the upstreams of this node only.
//
// # Concurrency
//
// Everything is safe for concurrent use. A request takes one read lock for the look-up and then works on an immutable
// snapshot; the lock of a shard, that of the session index and that of a pool are never held together, and none is held
// over a call of a session. The one lock taken under that of a shard is that of a [cluster.Local], so that the sums there
// follow the table in its order.
//
// # What it does not do
//
// It reads no HTTP and judges no answer: the proxy reports faults through [Stream.Failed]. It does not watch sessions:
// their owner calls [Router.RemoveSession] when one is closing. Until then a closing session is merely not chosen.
package router

import (
	"bufio"
	"context"
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/pikoproxy/piko/internal/cluster"
)

// Key names an endpoint inside this process: its canonical name, or tenant + "/" + name. See [KeyOf].
type Key = string

// KeyOf joins a tenant and the canonical name of an endpoint. No tenant gives the name itself; the '/' can't be part of
// a name, so no tenant can reach into another's namespace.
func KeyOf(tenant, endpoint string) Key {
	if tenant == "" {
		return endpoint
	}
	return tenant + "/" + endpoint
}

// Policy says how one of several upstreams is chosen.
type Policy string

const (
	// PolicyP2C takes the less loaded of two upstreams drawn at random by weight. The zero value means the same.
	PolicyP2C Policy = "p2c"
	// PolicyLocalFirst is PolicyP2C among the upstreams on this node, and among all when none of those can be used.
	PolicyLocalFirst Policy = "local-first"
	// PolicyRoundRobin takes the upstreams in turn, each as often as its weight says.
	PolicyRoundRobin Policy = "round-robin"
)

// Settings are the parts of the router's behaviour that may change while it runs.
type Settings struct {
	Policy       Policy
	EjectAfter   int           // consecutive faults that take an upstream out; 0: never
	EndpointWait time.Duration // longest hold of a request whose endpoint is moving; 0: none
	RetryBudget  float64       // retries allowed per request, over time; 0: none
}

// Options are what [New] needs.
type Options struct {
	Settings
	Registerer prometheus.Registerer // nil: metrics are counted but not published

	// Remotes are the other nodes; nil for a node that is alone.
	Remotes Remotes
	// Local is kept in step with the upstreams of this node; nil for a node that is alone.
	Local *cluster.Local
	// Zone is where this node runs. Upstreams in the same zone are preferred while they are not much busier than the
	// others; "" means that all are equally near.
	Zone string
}

const (
	shards         = 256
	idleLimit      = 256              // idle streams per upstream and protocol
	idleTimeout    = time.Minute      // an idle stream is closed after this
	idleTrim       = 10 * time.Second // after this only idleKeep of them are worth their memory
	idleKeep       = 4
	idleTrusted    = time.Second      // an idle stream younger than this is reused unchecked
	sweepInterval  = 5 * time.Second  // pools
	reapInterval   = 30 * time.Second // table
	ejectBase      = 10 * time.Second
	ejectMax       = 5 * time.Minute
	recentWindow   = 30 * time.Second // "the endpoint was here moments ago"
	startWindow    = 15 * time.Second // "this node has just started": the longest pause of a reconnecting agent
	waitersMax     = 4096             // requests held at once, over all endpoints
	maxWeight      = 1 << 20
	readBufferSize = 4 << 10
	remoteStreams  = 32                     // streams kept to a node for one endpoint before they are used in turn
	remoteUses     = 100                    // exchanges after which such a stream makes room for one to another agent
	remoteRetry    = 100 * time.Millisecond // between two attempts of a held request to reach a node
)

// Router is the table of endpoints and the way to their upstreams. Make one with [New]; Run sweeps it.
type Router struct {
	settings atomic.Pointer[Settings]
	started  time.Time
	seed     maphash.Seed
	shards   [shards]shard
	budget   budget
	metrics  *metrics
	waiting  atomic.Int64
	readers  sync.Pool // of *bufio.Reader
	remotes  Remotes
	local    *cluster.Local
	zone     string

	mu       sync.Mutex // guards sessions: what RemoveSession has to take away
	sessions map[Session]map[Key]*Upstream

	freed atomic.Int64 // streams that were ended to make room

	poolMu sync.Mutex          // guards the following
	pooled []*Upstream         // that the sweeper has to visit
	visits map[*visit]struct{} // that are under way, of those that are not in pooled meanwhile
}

// New returns an empty router. It starts nothing; see [Router.Run].
func New(o Options) *Router {
	r := &Router{
		started:  time.Now(),
		seed:     maphash.MakeSeed(),
		sessions: make(map[Session]map[Key]*Upstream),
		remotes:  o.Remotes,
		local:    o.Local,
		zone:     o.Zone,
		visits:   make(map[*visit]struct{}),
	}
	for i := range r.shards {
		r.shards[i].entries = make(map[Key]*entry)
	}
	r.readers.New = func() any { return bufio.NewReaderSize(nil, readBufferSize) }
	r.metrics = newMetrics(r, o.Registerer)
	r.Apply(o.Settings)
	return r
}

// Apply replaces the settings. Requests that are being routed finish under the old ones.
func (r *Router) Apply(s Settings) {
	r.budget.setRatio(s.RetryBudget)
	r.settings.Store(&s)
}

// Run closes idle streams that nobody wants any more and forgets endpoints that left, until ctx ends; it then closes
// all idle streams and returns.
func (r *Router) Run(ctx context.Context) error {
	sweep := time.NewTicker(sweepInterval)
	defer sweep.Stop()
	reap := time.NewTicker(reapInterval)
	defer reap.Stop()
	for {
		select {
		case <-ctx.Done():
			r.CloseIdle()
			return nil
		case <-sweep.C:
			r.sweepPools()
		case <-reap.C:
			r.reap()
		}
	}
}

// now is the time since the router was made: monotonic, and small enough for an atomic.
func (r *Router) now() time.Duration { return time.Since(r.started) }
