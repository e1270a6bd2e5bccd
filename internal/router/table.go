package router

import (
	"hash/maphash"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/pikoproxy/piko/internal/cluster"
	"github.com/pikoproxy/piko/internal/tunnel"
)

// shard is a part of the table, so that agents coming and going rarely meet each other at a lock.
type shard struct {
	mu      sync.RWMutex
	entries map[Key]*entry
	waiters map[Key]*waiter
}

// entry is what is known of one endpoint. It is changed under its shard's lock and read without.
type entry struct {
	upstreams atomic.Pointer[snapshot] // on this node; never nil
	joined    atomic.Pointer[snapshot] // with those on other nodes; nil until a request needed it
	wanted    atomic.Bool              // by a request, since the last reap
	left      atomic.Int64             // router time when the last upstream went; 0 while there is one, here or elsewhere
	turn      atomic.Int64
}

func newEntry() *entry {
	e := &entry{}
	e.upstreams.Store(&snapshot{})
	return e
}

// snapshot is an immutable picture of the upstreams of an endpoint, local ones first.
type snapshot struct {
	all   []*Upstream
	local int     // all[:local] are on this node
	sums  []int64 // running totals of the weights; nil when all are equal

	// Of a joined one: what it was made from, and how many lie in another zone.
	base    *snapshot
	holders []cluster.Holder
	distant int
}

// entryLocked returns the entry of a key, made if there is none. The caller holds the lock.
func (sh *shard) entryLocked(key Key) *entry {
	e := sh.entries[key]
	if e == nil {
		e = newEntry()
		sh.entries[key] = e
	}
	return e
}

func (r *Router) shardOf(key Key) *shard {
	return &r.shards[maphash.String(r.seed, key)%shards]
}

// lookup returns the upstreams of an endpoint and when the last of them left; nil for an endpoint never seen.
func (r *Router) lookup(key Key) (*entry, *snapshot) {
	sh := r.shardOf(key)
	sh.mu.RLock()
	e := sh.entries[key]
	sh.mu.RUnlock()
	if r.remotes != nil {
		return r.lookupAll(key, e)
	}
	if e == nil {
		return nil, nil
	}
	return e, e.upstreams.Load()
}

// Add makes the session an upstream of the endpoint and wakes the requests that wait for it. Added twice, the first
// upstream stays, with the new weight and protocol; streams in use and idle ones are not disturbed by a new weight,
// unless it is added anew: then idle ones are closed, and those in use when they are released.
// Adding a session that is closing has no effect that a request could notice.
func (r *Router) Add(key Key, s Session, o UpstreamOptions) *Upstream {
	sh := r.shardOf(key)
	sh.mu.Lock()
	e := sh.entryLocked(key)
	old := e.upstreams.Load().all
	var replaced *Upstream
	if i := slices.IndexFunc(old, func(u *Upstream) bool { return u.session == s }); i >= 0 {
		u := old[i]
		if u.protocol == o.Protocol && !o.Anew {
			r.held(key, weightOf(o.Weight)-u.weight.Swap(weightOf(o.Weight)))
			e.upstreams.Store(newSnapshot(slices.Clone(old)))
			sh.mu.Unlock()
			return u
		}
		// A listener that now speaks something else, or leads elsewhere, is another upstream: what is idle in the pool
		// can't serve it.
		replaced, old = u, slices.Concat(old[:i], old[i+1:])
		r.held(key, -u.weight.Load())
	}
	u := &Upstream{router: r, key: key, session: s, protocol: o.Protocol}
	u.weight.Store(weightOf(o.Weight))
	r.held(key, u.weight.Load())
	e.upstreams.Store(newSnapshot(append(slices.Clone(old), u)))
	e.left.Store(0)
	wake := sh.takeWaiterLocked(key)
	sh.mu.Unlock()

	if replaced != nil {
		replaced.retire()
	}
	r.index(u)
	if wake != nil {
		close(wake.added)
	}
	// The owner may have called RemoveSession between the two locks; only Closing, which came before that, tells.
	if u.gone() {
		r.Remove(u)
	}
	return u
}

// Remove takes the upstream out of the table. Streams in use go on; idle ones are closed. Removing twice does no harm.
func (r *Router) Remove(u *Upstream) {
	r.detach(u)
	r.mu.Lock()
	if keys := r.sessions[u.session]; keys[u.key] == u {
		delete(keys, u.key)
		if len(keys) == 0 {
			delete(r.sessions, u.session)
		}
	}
	r.mu.Unlock()
}

// RemoveKey removes the session's upstream for the endpoint, if there is one, and reports whether there was.
func (r *Router) RemoveKey(key Key, s Session) bool {
	r.mu.Lock()
	u := r.sessions[s][key]
	r.mu.Unlock()
	if u == nil {
		return false
	}
	r.Remove(u)
	return true
}

// RemoveSession removes all upstreams of a session: it is closing, or about to be closed. Streams in use go on.
func (r *Router) RemoveSession(s Session) {
	r.mu.Lock()
	keys := r.sessions[s]
	delete(r.sessions, s)
	r.mu.Unlock()
	for _, u := range keys {
		r.detach(u)
	}
}

func (r *Router) index(u *Upstream) {
	r.mu.Lock()
	defer r.mu.Unlock()
	keys := r.sessions[u.session]
	if keys == nil {
		keys = make(map[Key]*Upstream, 1)
		r.sessions[u.session] = keys
	}
	keys[u.key] = u
}

// detach takes the upstream out of the snapshot of its endpoint.
func (r *Router) detach(u *Upstream) {
	sh := r.shardOf(u.key)
	sh.mu.Lock()
	if e := sh.entries[u.key]; e != nil {
		all := e.upstreams.Load().all
		if i := slices.Index(all, u); i >= 0 {
			rest := slices.Concat(all[:i], all[i+1:])
			r.held(u.key, -u.weight.Load())
			e.upstreams.Store(newSnapshot(rest))
			r.abandonedLocked(u.key, e)
		}
	}
	sh.mu.Unlock()
	u.retire()
}

// held keeps what this node tells the others in step with the table. The caller holds the shard's lock.
func (r *Router) held(key Key, change int64) {
	if r.local != nil {
		r.local.Add(key, int(change))
	}
}

// retire ends what the upstream holds apart from the table.
func (u *Upstream) retire() {
	u.removed.Store(true)
	for i := range u.pools {
		u.router.metrics.dropped[dropRetired].Add(float64(u.pools[i].close()))
	}
}

// Size returns how many endpoints have an upstream on this node, and how many upstreams that are.
func (r *Router) Size() (endpoints, upstreams int) {
	r.each(func(_ Key, snap *snapshot) {
		if n := snap.alive(); n > 0 {
			endpoints++
			upstreams += n
		}
	})
	return endpoints, upstreams
}

// Endpoints returns the number of upstreams on this node for each endpoint that has any.
func (r *Router) Endpoints() map[Key]int {
	out := make(map[Key]int)
	r.each(func(key Key, snap *snapshot) {
		if n := snap.alive(); n > 0 {
			out[key] = n
		}
	})
	return out
}

// alive counts the upstreams on this node that take something new.
func (s *snapshot) alive() int {
	n := 0
	for _, u := range s.all[:s.local] {
		if !u.gone() {
			n++
		}
	}
	return n
}

// each calls f for every endpoint with at least one upstream. f runs without a lock.
func (r *Router) each(f func(Key, *snapshot)) {
	type item struct {
		key  Key
		snap *snapshot
	}
	var items []item
	for i := range r.shards {
		sh := &r.shards[i]
		items = items[:0]
		sh.mu.RLock()
		for key, e := range sh.entries {
			snap := e.upstreams.Load()
			if j := e.joined.Load(); j != nil && j.base == snap {
				snap = j
			}
			if len(snap.all) > 0 {
				items = append(items, item{key, snap})
			}
		}
		sh.mu.RUnlock()
		for _, it := range items {
			f(it.key, it.snap)
		}
	}
}

// reap removes upstreams whose session is closing, should their owner have overlooked them, and forgets endpoints that
// left so long ago that no request waits for them any more.
func (r *Router) reap() {
	r.each(func(_ Key, snap *snapshot) {
		for _, u := range snap.all {
			if !u.isRemote() && u.gone() {
				r.Remove(u)
			}
		}
	})
	r.reapRemotes()
	horizon := int64(r.now() - recentWindow)
	for i := range r.shards {
		sh := &r.shards[i]
		sh.mu.Lock()
		for key, e := range sh.entries {
			if left := e.left.Load(); left != 0 && left < horizon && len(e.upstreams.Load().all) == 0 {
				delete(sh.entries, key)
			}
		}
		sh.mu.Unlock()
	}
}

// newSnapshot takes ownership of all.
func newSnapshot(all []*Upstream) *snapshot {
	slices.SortStableFunc(all, func(a, b *Upstream) int {
		switch {
		case a.isRemote() == b.isRemote():
			return 0
		case b.isRemote():
			return -1
		}
		return 1
	})
	s := &snapshot{all: all}
	equal := true
	for _, u := range all {
		if !u.isRemote() {
			s.local++
		}
		equal = equal && u.weight.Load() == all[0].weight.Load()
	}
	if !equal {
		var sum int64
		s.sums = make([]int64, len(all))
		for i, u := range all {
			sum += u.weight.Load()
			s.sums[i] = sum
		}
	}
	return s
}

func weightOf(w int) int64 { return int64(min(max(w, 1), maxWeight)) }

// poolOf says which pool of an upstream keeps idle streams of a protocol; -1 for none: raw TCP streams serve one
// client.
func poolOf(protocol string) int {
	switch protocol {
	case tunnel.ProtocolHTTP:
		return 0
	case tunnel.ProtocolH2:
		return 1
	}
	return -1
}
