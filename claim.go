package piko

import (
	"errors"
	"net"
	"time"
)

const (
	patience   = 4                     // nodes that a place passes over before it takes whatever it gets
	passPause  = 20 * time.Millisecond // between two of them
	sameMin    = time.Second           // the ceiling of the first pause when there seems to be one node only
	zonesKnown = 16                    // more are not remembered
)

// errSameNode says that a new session led to a node with which there is one already.
var errSameNode = errors.New("another session leads to the same node")

// errElsewhere says that a session to another node would be better than a new one to this.
var errElsewhere = errors.New("another node would be better")

// zones are those in which nodes were met, and whether there is more than one node.
type zones struct {
	seen   map[string]struct{}
	single bool // places have looked for another zone than the only one, in vain
	node   string
	spread bool // there is another node than that one
}

// met notes a node.
func (z *zones) met(node string) {
	if z.node == "" {
		z.node = node
	}
	z.spread = z.spread || node != z.node
}

// claim enters a new link, unless another live one leads to the same node. Links to draining nodes don't count: a node
// that restarts under its old id must be welcome. Nor do those that were made under other settings.
func (p *pool) claim(k *link, at *place) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.draining {
		return net.ErrClosed
	}
	p.zones.met(k.nodeID)
	for other := range p.links {
		if !other.leaving && other.nodeID == k.nodeID && other.settings == k.settings {
			if p.zones.spread && at.passed < patience {
				at.passed++
				return errElsewhere
			}
			return errSameNode
		}
	}
	if p.crowdedLocked(k, at) {
		return errElsewhere
	}
	p.links[k] = struct{}{}
	for endpoint := range p.listeners {
		p.reconcileLocked(k, endpoint)
	}
	p.notifyLocked()
	return nil
}

// impatient makes a place try a few times at once again.
func (p *pool) impatient(at *place) {
	p.mu.Lock()
	defer p.mu.Unlock()
	at.passed = 0
}

// crowdedLocked reports whether a new link should be given up for one to another node: to a zone with fewer links, or to any
// other zone as long as it is not known whether there is one, or because the node is sending a link away at this moment. A
// balancer decides where a session leads, so that all a place can do is to try again, which it does a few times in a row.
func (p *pool) crowdedLocked(k *link, at *place) bool {
	poor := p.poorZoneLocked(k) || p.sentAwayLocked(k)
	if poor && at.passed < patience {
		at.passed++
		return true
	}
	if poor && len(p.zones.seen) == 1 {
		p.zones.single = true
	}
	at.passed = 0
	return false
}

// sentAwayLocked reports whether the node of a link has another one that it wants to be rid of.
func (p *pool) sentAwayLocked(k *link) bool {
	for other := range p.links {
		if !other.leaving || other.nodeID != k.nodeID || other.settings != k.settings {
			continue
		}
		select {
		case <-other.session.Done(): // what sent it away is gone, too
		default:
			return true
		}
	}
	return false
}

// poorZoneLocked reports whether a link to another zone would be better.
func (p *pool) poorZoneLocked(k *link) bool {
	if k.zone == "" {
		return false
	}
	z := &p.zones
	if _, known := z.seen[k.zone]; !known && len(z.seen) < zonesKnown {
		if z.seen == nil {
			z.seen = map[string]struct{}{}
		}
		z.seen[k.zone] = struct{}{}
		z.single = false
	}
	links := map[string]int{}
	for other := range p.links {
		if !other.leaving && other.settings == k.settings {
			links[other.zone]++
		}
	}
	for zone := range z.seen {
		if links[zone] < links[k.zone] {
			return true
		}
	}
	return links[k.zone] > 0 && len(z.seen) == 1 && !z.single
}
