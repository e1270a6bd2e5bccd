package piko

import (
	"errors"
	"net"
	"time"
)

const (
	zonePatience = 4                     // nodes that a place passes over before it takes one whatever its zone
	zonePause    = 20 * time.Millisecond // between two of them
	zonesKnown   = 16                    // more are not remembered
)

// errSameNode says that a new session led to a node with which there is one already.
var errSameNode = errors.New("another session leads to the same node")

// errSameZone says that a new session led to a zone that has more sessions than another one.
var errSameZone = errors.New("another session leads to the same zone")

// zones are those in which nodes were met.
type zones struct {
	seen   map[string]struct{}
	single bool // places have looked for another zone than the only one, in vain
}

// claim enters a new link, unless another live one leads to the same node. Links to draining nodes don't count: a node
// that restarts under its old id must be welcome. Nor do those that were made under other settings.
func (p *pool) claim(k *link, at *place) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.draining {
		return net.ErrClosed
	}
	for other := range p.links {
		if !other.leaving && other.nodeID == k.nodeID && other.settings == k.settings {
			return errSameNode
		}
	}
	if p.crowdedLocked(k, at) {
		return errSameZone
	}
	p.links[k] = struct{}{}
	for endpoint := range p.listeners {
		p.reconcileLocked(k, endpoint)
	}
	p.notifyLocked()
	return nil
}

// crowdedLocked reports whether a new link should be given up for one to another zone: one that has fewer links, or any
// other as long as it is not known whether there is one. A balancer decides where a session leads, so that all a place can
// do is to try again, which it does a few times in a row.
func (p *pool) crowdedLocked(k *link, at *place) bool {
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
	crowded := links[k.zone] > 0 && len(z.seen) == 1 && !z.single
	for zone := range z.seen {
		crowded = crowded || links[zone] < links[k.zone]
	}
	if crowded && at.passed < zonePatience {
		at.passed++
		return true
	}
	z.single = crowded && len(z.seen) == 1
	at.passed = 0
	return false
}
