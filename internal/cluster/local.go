package cluster

import (
	"maps"
	"sync"
)

// Local is what this node holds: for each key the sum of the weights of its sessions. It is safe for concurrent use.
type Local struct {
	mu      sync.Mutex
	seq     uint64
	weights map[string]int
	cursors map[*Cursor]struct{}
}

// NewLocal returns an empty Local.
func NewLocal() *Local {
	return &Local{weights: map[string]int{}, cursors: map[*Cursor]struct{}{}}
}

// Add adds weight, which may be negative, to a key and wakes those who follow. A sum below 1 removes the key.
func (l *Local) Add(key string, weight int) {
	if weight == 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	before := l.weights[key]
	after := max(before+weight, 0)
	if before == after {
		return
	}
	if after == 0 {
		delete(l.weights, key)
	} else {
		l.weights[key] = after
	}
	l.seq++
	for c := range l.cursors {
		c.dirty[key] = struct{}{}
		c.wake()
	}
}

// Weight returns the sum for one key.
func (l *Local) Weight(key string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.weights[key]
}

// Len returns how many keys there are.
func (l *Local) Len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.weights)
}

// Seq returns the sequence number of the last change.
func (l *Local) Seq() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.seq
}

// Snapshot returns a copy of all sums and the sequence number that they stand at.
func (l *Local) Snapshot() (uint64, map[string]int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.seq, maps.Clone(l.weights)
}

// Follow returns a cursor that sees every change from now on. The caller closes it.
func (l *Local) Follow() *Cursor {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := &Cursor{local: l, from: l.seq, dirty: map[string]struct{}{}, changed: make(chan struct{}, 1)}
	l.cursors[c] = struct{}{}
	return c
}

// Cursor is one follower's place in the changes of a Local. It holds only the keys that changed, so a slow follower
// costs no more than the table itself. One goroutine uses it.
type Cursor struct {
	local   *Local
	from    uint64
	dirty   map[string]struct{} // guarded by local.mu
	changed chan struct{}       // capacity 1; sent to under local.mu, never closed
}

// Changed receives after there were changes since the last [Cursor.Next].
func (c *Cursor) Changed() <-chan struct{} { return c.changed }

// Next returns all changes since the last call as one delta; its From equals its To if there were none.
func (c *Cursor) Next() Delta {
	l := c.local
	l.mu.Lock()
	defer l.mu.Unlock()
	d := Delta{From: c.from, To: l.seq, Weights: make(map[string]int, len(c.dirty))}
	for key := range c.dirty {
		d.Weights[key] = l.weights[key]
	}
	clear(c.dirty)
	c.from = l.seq
	return d
}

// Rewind takes back a delta that could not be delivered: its keys are part of the next one, with their values of then.
func (c *Cursor) Rewind(d Delta) {
	l := c.local
	l.mu.Lock()
	defer l.mu.Unlock()
	c.from = min(c.from, d.From)
	for key := range d.Weights {
		c.dirty[key] = struct{}{}
	}
	c.wake()
}

// Close ends the following.
func (c *Cursor) Close() {
	c.local.mu.Lock()
	defer c.local.mu.Unlock()
	delete(c.local.cursors, c)
}

func (c *Cursor) wake() {
	select {
	case c.changed <- struct{}{}:
	default:
	}
}
