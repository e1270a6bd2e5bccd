// Package cluster knows the other nodes: who they are, what they hold, and how to reach them.
//
// [Local] is what this node holds, [Table] what the others hold. Both are kept in step by deltas: each change of a
// Local has a sequence number, and a [Delta] says from which number to which it leads and carries the values at its
// end. So a delta may be merged from several changes, may arrive twice or by two ways, and applies wherever its start
// is known; where it is not, a snapshot must be fetched.
//
//	Local --Delta--> Consul  --Delta or snapshot--> Table of another node
//	      --Delta--> peer session -------Delta----> (the same)
//
// Keys are those of the router: a canonical endpoint name, with its tenant before it if there is one.
package cluster

import (
	"sync/atomic"
	"time"
)

// State is what a node says of itself.
type State string

// The states of a node, in the order that it passes through them.
const (
	Up       State = "up"
	Draining State = "draining" // takes nothing new
	Left     State = "left"     // gone for good; its routes are void
)

// Node is what a node tells the others about itself. It does not change; a new state makes a new value.
type Node struct {
	// ID is the name of the node, unique in the cluster.
	ID string
	// Incarnation tells one life of a node from the next: sequence numbers count within one.
	Incarnation string
	// Addr is where peers reach its cluster listener; ProxyAddr and AdminAddr are shown to operators. All are host:port.
	Addr, ProxyAddr, AdminAddr string
	// Zone is where the node runs; Version is that of its pikod.
	Zone, Version string
	// Started is when this incarnation began.
	Started time.Time
	// State is what the node says of itself.
	State State
}

// Delta is a set of changes of what one incarnation of a node holds.
type Delta struct {
	// From and To are the sequence numbers before the first and after the last change.
	From, To uint64
	// Weights are the values at To of the keys that changed; 0 means that the node no longer holds the key. A weight is
	// the sum of the weights of the sessions that offer the key.
	Weights map[string]int
}

// Remote is another node as this one sees it. It stands for one incarnation and is safe for concurrent use.
type Remote struct {
	node     atomic.Pointer[Node]
	orphan   atomic.Bool
	down     atomic.Int64 // nanoseconds after the epoch when it went down; 0 while it answers
	sessions atomic.Int64
	gone     chan struct{} // closed, once, when the table forgets the node
}

// Doubt is why a node may not be what its record says.
type Doubt string

// The doubts that there can be about a node. Both are held by its neighbours only and end when it answers.
const (
	Orphan Doubt = "orphan" // its record has vanished, but it still answers
	Down   Doubt = "down"   // it does not answer
)

// Node returns what the node last said of itself.
func (r *Remote) Node() Node { return *r.node.Load() }

// Doubt returns why the node may not be what it says, or "".
func (r *Remote) Doubt() Doubt {
	switch {
	case r.down.Load() != 0:
		return Down
	case r.orphan.Load():
		return Orphan
	}
	return ""
}

// SetOrphan says whether the record of the node has vanished. That is for the directory to know.
func (r *Remote) SetOrphan(orphan bool) { r.orphan.Store(orphan) }

// SetDown says whether the node does not answer. That is for [Peers] to know.
func (r *Remote) SetDown(down bool) {
	if !down {
		r.down.Store(0)
		return
	}
	r.down.CompareAndSwap(0, time.Now().UnixNano())
}

// DownFor returns for how long the node has not answered; 0 while it answers.
func (r *Remote) DownFor() time.Duration {
	since := r.down.Load()
	if since == 0 {
		return 0
	}
	return max(time.Since(time.Unix(0, since)), 1)
}

// Gone is closed when the table has forgotten the node.
func (r *Remote) Gone() <-chan struct{} { return r.gone }

// Sessions returns how many sessions of agents the node last said that it has; -1 while it has not said.
func (r *Remote) Sessions() int { return int(r.sessions.Load()) }

// Standing orders nodes by how much there is to be said for sending them something.
type Standing int

// The standings, best first.
const (
	Good    Standing = iota // up, and nobody doubts it
	Leaving                 // draining
	Doubted                 // an orphan
	Useless                 // down
)

// String is the word that operators read.
func (s Standing) String() string {
	return [...]string{string(Up), string(Draining), string(Orphan), string(Down)}[s]
}

// Standing returns how much there is to be said for sending the node something. It is cheap.
func (r *Remote) Standing() Standing {
	switch {
	case r.down.Load() != 0:
		return Useless
	case r.orphan.Load():
		return Doubted
	case r.node.Load().State != Up:
		return Leaving
	}
	return Good
}

// Zone returns where the node runs. It is cheap.
func (r *Remote) Zone() string { return r.node.Load().Zone }

// Holder is a node that holds sessions for a key.
type Holder struct {
	Remote *Remote
	// Weight is the sum of the weights of those sessions; at least 1.
	Weight int
}
