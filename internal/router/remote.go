package router

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"

	"github.com/pikoproxy/piko/internal/cluster"
	"github.com/pikoproxy/piko/internal/tunnel"
)

// Remotes are the other nodes of a cluster.
type Remotes interface {
	// Lookup returns the nodes that hold a key, as a slice that is replaced and never changed.
	Lookup(key Key) []cluster.Holder
	// Session returns what opens streams on a node: the same value each time.
	Session(r *cluster.Remote) Session
}

// lookupAll joins the upstreams of this node with those of the others. e is nil for an endpoint that is not in the table.
func (r *Router) lookupAll(key Key, e *entry) (*entry, *snapshot) {
	holders := r.remotes.Lookup(key)
	if e == nil {
		if len(holders) == 0 {
			return nil, nil
		}
		e = r.entry(key)
	}
	if !e.wanted.Load() {
		e.wanted.Store(true)
	}
	for {
		base, joined := e.upstreams.Load(), e.joined.Load()
		if joined == nil && len(holders) == 0 {
			return e, base
		}
		if joined != nil && joined.base == base && same(joined.holders, holders) {
			return e, joined
		}
		next := r.join(key, base, joined, holders)
		if !e.joined.CompareAndSwap(joined, next) {
			continue // another request was faster
		}
		if joined != nil {
			for _, u := range joined.all[joined.local:] {
				if !slices.Contains(next.all, u) {
					u.retire()
				}
			}
		}
		return e, next
	}
}

// same reports whether two slices of the table are one.
func same(a, b []cluster.Holder) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0])
}

// join makes a snapshot of the upstreams of this node and of the holders, taking over the remote ones that the old one had.
func (r *Router) join(key Key, base, old *snapshot, holders []cluster.Holder) *snapshot {
	all := slices.Clone(base.all)
	for _, h := range holders {
		var u *Upstream
		if old != nil {
			if i := slices.IndexFunc(old.all, func(u *Upstream) bool { return u.remote == h.Remote }); i >= 0 {
				u = old.all[i]
			}
		}
		if u == nil {
			u = &Upstream{router: r, key: key, session: r.remotes.Session(h.Remote), remote: h.Remote}
		}
		u.weight.Store(weightOf(h.Weight))
		all = append(all, u)
	}
	s := newSnapshot(all)
	s.base, s.holders = base, holders
	if r.zone != "" {
		for _, h := range holders {
			if h.Remote.Zone() != r.zone {
				s.distant++
			}
		}
	}
	return s
}

// entry returns the entry of a key, made if there is none.
func (r *Router) entry(key Key) *entry {
	sh := r.shardOf(key)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	return sh.entryLocked(key)
}

// elsewhere reports whether another node holds a key.
func (r *Router) elsewhere(key Key) bool { return r.remotes != nil && len(r.remotes.Lookup(key)) > 0 }

// Held tells that another node holds a key that none held before, so that requests that wait for it go on.
func (r *Router) Held(key Key) {
	sh := r.shardOf(key)
	sh.mu.Lock()
	if e := sh.entries[key]; e != nil && r.elsewhere(key) { // else it has been lost again, and Lost was faster
		e.left.Store(0)
	}
	wake := sh.takeWaiterLocked(key)
	sh.mu.Unlock()
	if wake != nil {
		close(wake.added)
	}
}

// Lost tells that no other node holds a key any more: it may be moving.
func (r *Router) Lost(key Key) {
	sh := r.shardOf(key)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	r.abandonedLocked(key, sh.entryLocked(key))
}

// abandonedLocked notes when an endpoint has left, unless it is still here or at another node: an agent may have come, or a
// node, since whoever calls was told to. The caller holds the shard's lock.
func (r *Router) abandonedLocked(key Key, e *entry) {
	if len(e.upstreams.Load().all) == 0 && !r.elsewhere(key) {
		e.left.Store(int64(max(r.now(), 1)))
	}
}

// Touched tells that something has changed among the sessions by which another node holds a key. Idle streams to it may
// lead to an agent that is leaving, which could not end while they are kept.
func (r *Router) Touched(remote *cluster.Remote, key Key) {
	sh := r.shardOf(key)
	sh.mu.RLock()
	e := sh.entries[key]
	sh.mu.RUnlock()
	if e == nil {
		return
	}
	joined := e.joined.Load()
	if joined == nil {
		return
	}
	for _, u := range joined.all[joined.local:] {
		if u.remote == remote {
			u.epoch.Add(1)
			u.flush()
		}
	}
}

// NodesChanged tells that a node has a new state. Idle streams to one that drains would keep it from ending.
func (r *Router) NodesChanged() {
	r.eachPooled(func(u *Upstream) bool {
		if u.standing() == cluster.Good {
			return true
		}
		u.flush()
		return false
	})
}

// flush closes the idle streams.
func (u *Upstream) flush() {
	n := 0
	for i := range u.pools {
		n += u.pools[i].flush()
	}
	u.router.metrics.dropped[dropRetired].Add(float64(n))
}

// reapRemotes forgets the remote upstreams that no request has needed for a while, and the entries that were made for
// them.
func (r *Router) reapRemotes() {
	if r.remotes == nil {
		return
	}
	var idle []*Upstream
	for i := range r.shards {
		sh := &r.shards[i]
		sh.mu.Lock()
		for key, e := range sh.entries {
			joined := e.joined.Load()
			if joined == nil || e.wanted.Swap(false) || !e.joined.CompareAndSwap(joined, nil) {
				continue
			}
			idle = append(idle, joined.all[joined.local:]...)
			if len(e.upstreams.Load().all) == 0 && e.left.Load() == 0 {
				delete(sh.entries, key)
			}
		}
		sh.mu.Unlock()
	}
	for _, u := range idle {
		u.retire() // streams in use go on
	}
}

// OpenLocal opens a stream for the peer of this name, to an upstream on this node and to no other. h.Endpoint holds the
// key. It does not wait for an endpoint that is moving: the node that the request came to does. The error is a
// [*tunnel.RefusedError] that says why, unless ctx has ended.
func (r *Router) OpenLocal(ctx context.Context, peer string, h tunnel.Header) (*Stream, error) {
	key := h.Endpoint
	h.Endpoint = key[strings.LastIndexByte(key, '/')+1:]
	s, err := r.Open(ctx, Request{Key: key, Header: h, Fresh: true, peer: peer})
	if err == nil {
		return s, nil
	}
	var refused *tunnel.RefusedError
	switch {
	case ctx.Err() != nil:
		return nil, err
	case errors.As(err, &refused):
		return nil, refused
	case errors.Is(err, ErrNoUpstream):
		return nil, &tunnel.RefusedError{Code: tunnel.CodeNotListening, Reason: "no agent of this node offers the endpoint"}
	case errors.Is(err, ErrProtocol):
		return nil, &tunnel.RefusedError{Code: tunnel.CodeInvalid, Reason: ErrProtocol.Error()}
	}
	return nil, &tunnel.RefusedError{Code: tunnel.CodeServiceUnreachable, Reason: err.Error()}
}

// worn reports whether a stream to another node should not be kept: the node is going, something has changed behind it,
// or it has been used so often that it is the turn of one of the many agents to which no stream leads.
func (p *pooled) worn() bool {
	u := p.upstream
	return u.isRemote() && (p.epoch != u.epoch.Load() || u.standing() != cluster.Good ||
		p.uses >= remoteUses && u.weight.Load() > remoteStreams)
}

// crowded reports whether a remote upstream has the streams that it should have before one is used again. The far node
// spreads them over its agents; one stream used for all requests would lead them all to one agent.
func (u *Upstream) crowded() bool {
	if !u.isRemote() {
		return true
	}
	return u.inFlight.Load()+int64(u.Idle()) > min(u.weight.Load(), remoteStreams)
}

// relays counts the streams that lead to an upstream for HTTP, by the peer that they come from.
type relays struct {
	mu sync.Mutex
	n  map[string]int64
}

func (r *relays) of(peer string) int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.n[peer]
}

func (r *relays) add(peer string, n int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.n == nil {
		r.n = map[string]int64{}
	}
	if r.n[peer] += n; r.n[peer] == 0 {
		delete(r.n, peer)
	}
}

// even chooses, for a peer, the upstream to which the fewest of its streams lead, by weight. Peers keep streams over many
// requests and use them in turn, so that their number and not the load of a moment is to be even.
func (c *chooser) even(all []*Upstream, ejected bool) *Upstream {
	var best *Upstream
	ties := int64(0)
	for _, u := range all {
		if !c.fits(u, ejected) {
			continue
		}
		if best != nil {
			a, b := u.relayed.of(c.peer)*best.weight.Load(), best.relayed.of(c.peer)*u.weight.Load()
			if a > b {
				continue
			}
			if a < b {
				ties = 0
			}
		}
		ties++
		if random(ties) == 0 {
			best = u
		}
	}
	return best
}
