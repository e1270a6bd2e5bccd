package cluster

import (
	"slices"
	"strings"
	"sync"
)

// Table is what the other nodes hold. Reading it takes no lock. It is safe for concurrent use.
type Table struct {
	holders sync.Map // key -> []Holder; a slice does not change once stored

	mu     sync.Mutex
	nodes  map[string]*record
	onHeld []func(key string)
}

// record is what one incarnation of a node holds.
type record struct {
	remote  *Remote
	seq     uint64
	loaded  bool // a snapshot has arrived: before, no delta applies
	weights map[string]int
}

// NewTable returns an empty table.
func NewTable() *Table { return &Table{nodes: map[string]*record{}} }

// OnHeld has f called with each key that gains a holder, after it can be looked up, so that a request waiting for it
// can go on. It must be called before the table is filled; f must not block and must not call the table's writers.
func (t *Table) OnHeld(f func(key string)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.onHeld = append(t.onHeld, f)
}

// Lookup returns the nodes that hold a key, in no order. The caller must not change the slice.
func (t *Table) Lookup(key string) []Holder {
	if v, ok := t.holders.Load(key); ok {
		return v.([]Holder)
	}
	return nil
}

// Nodes returns the other nodes, sorted by id.
func (t *Table) Nodes() []*Remote {
	t.mu.Lock()
	defer t.mu.Unlock()
	remotes := make([]*Remote, 0, len(t.nodes))
	for _, r := range t.nodes {
		remotes = append(remotes, r.remote)
	}
	slices.SortFunc(remotes, func(a, b *Remote) int { return strings.Compare(a.Node().ID, b.Node().ID) })
	return remotes
}

// Node returns one of the other nodes.
func (t *Table) Node(id string) (*Remote, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	r, ok := t.nodes[id]
	if !ok {
		return nil, false
	}
	return r.remote, true
}

// Weights returns a copy of what a node holds.
func (t *Table) Weights(id string) map[string]int {
	t.mu.Lock()
	defer t.mu.Unlock()
	held := map[string]int{}
	if r, ok := t.nodes[id]; ok {
		for key, weight := range r.weights {
			held[key] = weight
		}
	}
	return held
}

// Meet takes in what a node says of itself. Another incarnation than before replaces the node with all it held; a node
// that has left is forgotten. It returns the node, or nil for one that has left.
func (t *Table) Meet(n Node) *Remote {
	t.mu.Lock()
	defer t.mu.Unlock()
	r, known := t.nodes[n.ID]
	if known && (r.remote.Node().Incarnation != n.Incarnation || n.State == Left) {
		t.forgetLocked(n.ID, r)
		known = false
	}
	if n.State == Left {
		return nil
	}
	if !known {
		r = &record{remote: new(Remote), weights: map[string]int{}}
		t.nodes[n.ID] = r
	}
	r.remote.node.Store(&n)
	return r.remote
}

// Forget removes a node and all it held, if it still is of this incarnation.
func (t *Table) Forget(id, incarnation string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if r, ok := t.nodes[id]; ok && r.remote.Node().Incarnation == incarnation {
		t.forgetLocked(id, r)
	}
}

func (t *Table) forgetLocked(id string, r *record) {
	delete(t.nodes, id)
	for key := range r.weights {
		t.setLocked(key, r.remote, 0)
	}
}

// Seq returns the sequence number that the table has of a node; false if it needs a snapshot first.
func (t *Table) Seq(id, incarnation string) (uint64, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.currentLocked(id, incarnation)
	if r == nil || !r.loaded {
		return 0, false
	}
	return r.seq, true
}

// Apply takes in a delta. It reports false if the table does not know the state that the delta starts from, so that a
// snapshot is needed. A delta that leads nowhere new is taken as applied.
func (t *Table) Apply(id, incarnation string, d Delta) bool {
	t.mu.Lock()
	r := t.currentLocked(id, incarnation)
	if r == nil || !r.loaded || d.From > r.seq {
		t.mu.Unlock()
		return false
	}
	if d.To <= r.seq {
		t.mu.Unlock()
		return true
	}
	var gained []string
	for key, weight := range d.Weights {
		gained = r.set(t, key, weight, gained)
	}
	r.seq = d.To
	t.mu.Unlock()
	t.announce(gained)
	return true
}

// Replace takes in a snapshot, unless the table already has a later state. Weights below 1 are passed over.
func (t *Table) Replace(id, incarnation string, seq uint64, weights map[string]int) {
	t.mu.Lock()
	r := t.currentLocked(id, incarnation)
	if r == nil || r.loaded && seq < r.seq {
		t.mu.Unlock()
		return
	}
	for key := range r.weights {
		if weights[key] < 1 {
			r.set(t, key, 0, nil)
		}
	}
	var gained []string
	for key, weight := range weights {
		if weight > 0 {
			gained = r.set(t, key, weight, gained)
		}
	}
	r.seq, r.loaded = seq, true
	t.mu.Unlock()
	t.announce(gained)
}

// announce tells of new holders without the lock, since it calls out.
func (t *Table) announce(keys []string) {
	for _, key := range keys {
		for _, f := range t.onHeld {
			f(key)
		}
	}
}

func (t *Table) currentLocked(id, incarnation string) *record {
	if r, ok := t.nodes[id]; ok && r.remote.Node().Incarnation == incarnation {
		return r
	}
	return nil
}

// set notes one weight in the record and among the holders, under the table's lock. It appends a key that the node did
// not hold before to gained.
func (r *record) set(t *Table, key string, weight int, gained []string) []string {
	before, held := r.weights[key]
	switch {
	case weight < 1 && !held, before == weight:
		return gained
	case weight < 1:
		delete(r.weights, key)
	default:
		r.weights[key] = weight
	}
	t.setLocked(key, r.remote, max(weight, 0))
	if held {
		return gained
	}
	return append(gained, key)
}

// setLocked replaces the holders of a key by a copy in which remote has this weight; 0 removes it.
func (t *Table) setLocked(key string, remote *Remote, weight int) {
	old := t.Lookup(key)
	holders := make([]Holder, 0, len(old)+1)
	for _, h := range old {
		if h.Remote != remote {
			holders = append(holders, h)
		}
	}
	if weight > 0 {
		holders = append(holders, Holder{Remote: remote, Weight: weight})
	}
	if len(holders) == 0 {
		t.holders.Delete(key)
		return
	}
	t.holders.Store(key, holders)
}
