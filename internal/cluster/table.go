package cluster

import (
	"slices"
	"strings"
	"sync"
)

// Table is what the other nodes hold. Reading it takes no lock. It is safe for concurrent use.
type Table struct {
	holders sync.Map // key -> []Holder; a slice does not change once stored

	mu        sync.Mutex
	nodes     map[string]*record
	onHeld    []func(key string)
	onLost    []func(key string)
	onTouched []func(r *Remote, key string)
	onNodes   []func()
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

// OnLost has f called with each key that loses its last holder. The rules are those of OnHeld.
func (t *Table) OnLost(f func(key string)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.onLost = append(t.onLost, f)
}

// OnTouched has f called with each key of which a node says that something has changed, even if the weight is the same
// as before: one session may have come and another gone. The rules are those of OnHeld.
func (t *Table) OnTouched(f func(r *Remote, key string)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.onTouched = append(t.onTouched, f)
}

// OnNodes has f called when a node was met for the first time, changed its state, or was forgotten. The rules are those of
// OnHeld.
func (t *Table) OnNodes(f func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.onNodes = append(t.onNodes, f)
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

// Size returns how many keys a node holds, and the sum of their weights.
func (t *Table) Size(id string) (keys, weight int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	r, ok := t.nodes[id]
	if !ok {
		return 0, 0
	}
	for _, w := range r.weights {
		weight += w
	}
	return len(r.weights), weight
}

// Meet takes in what a node says of itself. Another incarnation than before replaces the node with all it held; a node
// that has left is forgotten. Within an incarnation the state only moves on: what comes late by another way does not
// take it back; only the node itself does, by SetUp. Meet returns the node, or nil for one that has left.
func (t *Table) Meet(n Node) *Remote {
	var c changes
	remote := t.meet(n, &c)
	t.announce(&c)
	return remote
}

func (t *Table) meet(n Node, c *changes) *Remote {
	t.mu.Lock()
	defer t.mu.Unlock()
	r, known := t.nodes[n.ID]
	if known && (r.remote.Node().Incarnation != n.Incarnation || n.State == Left) {
		t.forgetLocked(n.ID, r, c)
		known = false
	}
	if n.State == Left {
		return nil
	}
	if !known {
		r = &record{remote: &Remote{gone: make(chan struct{})}, weights: map[string]int{}}
		r.remote.sessions.Store(-1)
		t.nodes[n.ID] = r
		c.nodes = true
	} else if r.remote.Node().State == Draining {
		n.State = Draining
	} else if n.State != r.remote.Node().State {
		c.nodes = true
	}
	r.remote.node.Store(&n)
	return r.remote
}

// SetDraining takes in that a node of this incarnation takes nothing new any more.
func (t *Table) SetDraining(id, incarnation string) { t.setState(id, incarnation, Up, Draining) }

// SetUp takes in that a node of this incarnation says itself that it is up. That counts for more than what a record has
// said of it, which may come from anybody.
func (t *Table) SetUp(id, incarnation string) { t.setState(id, incarnation, Draining, Up) }

func (t *Table) setState(id, incarnation string, from, to State) {
	var c changes
	t.mu.Lock()
	if r := t.currentLocked(id, incarnation); r != nil && r.remote.Node().State == from {
		n := r.remote.Node()
		n.State = to
		r.remote.node.Store(&n)
		c.nodes = true
	}
	t.mu.Unlock()
	t.announce(&c)
}

// Forget removes a node and all it held, if it still is of this incarnation.
func (t *Table) Forget(id, incarnation string) {
	var c changes
	t.mu.Lock()
	if r := t.currentLocked(id, incarnation); r != nil {
		t.forgetLocked(id, r, &c)
	}
	t.mu.Unlock()
	t.announce(&c)
}

func (t *Table) forgetLocked(id string, r *record, c *changes) {
	delete(t.nodes, id)
	for key := range r.weights {
		t.setLocked(key, r.remote, 0, c)
	}
	close(r.remote.gone)
	c.nodes = true
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
	c := changes{remote: r.remote}
	for key, weight := range d.Weights {
		r.set(t, key, weight, &c)
		c.touched = append(c.touched, key)
	}
	r.seq = d.To
	t.mu.Unlock()
	t.announce(&c)
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
	c := changes{remote: r.remote}
	for key := range r.weights {
		if weights[key] < 1 && r.set(t, key, 0, &c) {
			c.touched = append(c.touched, key)
		}
	}
	for key, weight := range weights {
		if weight > 0 && r.set(t, key, weight, &c) {
			c.touched = append(c.touched, key)
		}
	}
	r.seq, r.loaded = seq, true
	t.mu.Unlock()
	t.announce(&c)
}

// changes are what is to be told, once the lock is free.
type changes struct {
	remote              *Remote
	held, lost, touched []string
	nodes               bool
}

// announce tells of changes. It calls out, so it takes no lock.
func (t *Table) announce(c *changes) {
	for _, f := range t.onTouched {
		for _, key := range c.touched {
			f(c.remote, key)
		}
	}
	for _, f := range t.onLost {
		for _, key := range c.lost {
			f(key)
		}
	}
	for _, f := range t.onHeld {
		for _, key := range c.held {
			f(key)
		}
	}
	if c.nodes {
		for _, f := range t.onNodes {
			f()
		}
	}
}

func (t *Table) currentLocked(id, incarnation string) *record {
	if r, ok := t.nodes[id]; ok && r.remote.Node().Incarnation == incarnation {
		return r
	}
	return nil
}

// set notes one weight in the record and among the holders, under the table's lock. It reports whether that is a change.
func (r *record) set(t *Table, key string, weight int, c *changes) bool {
	before, held := r.weights[key]
	switch {
	case weight < 1 && !held, before == weight:
		return false
	case weight < 1:
		delete(r.weights, key)
	default:
		r.weights[key] = weight
	}
	t.setLocked(key, r.remote, max(weight, 0), c)
	if !held {
		c.held = append(c.held, key)
	}
	return true
}

// setLocked replaces the holders of a key by a copy in which remote has this weight; 0 removes it.
func (t *Table) setLocked(key string, remote *Remote, weight int, c *changes) {
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
		c.lost = append(c.lost, key)
		return
	}
	t.holders.Store(key, holders)
}
