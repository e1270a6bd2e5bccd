package router

import (
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/pikoproxy/piko/internal/cluster"
)

// chooser holds what one request needs to choose among the upstreams of its endpoint. It lives on the stack.
type chooser struct {
	policy   Policy
	protocol string
	peer     string      // that the request came from: only upstreams on this node; "": none
	zone     string      // of this node
	tried    []*Upstream // by this Open
	before   []*Upstream // by the caller
	failed   bool        // one of tried is broken rather than leaving
	now      time.Duration

	speechless int              // how many of tried said that nobody there speaks the protocol
	worst      cluster.Standing // no worse than this
}

// again gives the nodes that were tried another chance, after the request was held for a while: a session may be back, or
// an agent there.
func (c *chooser) again(now time.Duration) {
	c.now, c.speechless = now, 0
	n := 0 // no slices.DeleteFunc: it would move the list to the heap, for every request
	for _, u := range c.tried {
		if !u.isRemote() {
			c.tried[n] = u
			n++
		}
	}
	c.tried = c.tried[:n]
}

// usable reports whether the upstream may be chosen at all.
func (c *chooser) usable(u *Upstream) bool {
	return u.serves(c.protocol) && !slices.Contains(c.tried, u) && !slices.Contains(c.before, u) && !u.gone()
}

// pick chooses an upstream, or none. lastResort tells that only ejected ones were left.
func (c *chooser) pick(e *entry, snap *snapshot) (u *Upstream, lastResort bool) {
	all := snap.all
	if c.peer != "" {
		if u := c.even(all[:snap.local], false); u != nil {
			return u, false
		}
		u = c.even(all[:snap.local], true)
		return u, u != nil
	}
	c.worst = cluster.Good
	if c.policy == PolicyLocalFirst && snap.local > 0 && snap.local < len(all) {
		if u := c.pickFrom(e, all[:snap.local], snap.sums, false); u != nil {
			return u, false
		}
	}
	if snap.distant > 0 && snap.distant < len(all) && c.policy != PolicyRoundRobin {
		if u := c.near(all); u != nil {
			return u, false
		}
	}
	if u := c.pickFrom(e, all, snap.sums, false); u != nil {
		return u, false
	}
	if snap.local < len(all) {
		// Nodes that are going come after those that stay, and those that are in doubt last.
		for c.worst++; c.worst <= cluster.Doubted; c.worst++ {
			if u := c.search(all[snap.local:], false, anywhere); u != nil {
				return u, false
			}
		}
	}
	u = c.pickFrom(e, all, snap.sums, true)
	return u, u != nil
}

// near chooses in this node's zone, unless what it finds there is half as busy again as what it finds elsewhere, and a
// stream more. It finds nothing where one of the two has nothing to offer.
func (c *chooser) near(all []*Upstream) *Upstream {
	here, there := c.search(all, false, inZone), c.search(all, false, outOfZone)
	if here == nil || there == nil {
		return nil
	}
	a := here.inFlight.Load() * there.weight.Load()
	b := there.inFlight.Load() * here.weight.Load()
	if 2*a > 3*b+2*there.weight.Load() {
		return there
	}
	return here
}

// Which upstreams a search looks at.
const (
	anywhere = iota
	inZone
	outOfZone
)

func (c *chooser) within(u *Upstream, where int) bool {
	return where == anywhere || (u.remote == nil || u.remote.Zone() == c.zone) == (where == inZone)
}

// fits reports whether the upstream may be chosen now.
func (c *chooser) fits(u *Upstream, ejected bool) bool {
	return c.usable(u) && (ejected || u.healthy(c.now)) && u.standing() <= c.worst
}

// pickFrom chooses among the given upstreams, a prefix of the snapshot. ejected admits those that are ejected too.
func (c *chooser) pickFrom(e *entry, all []*Upstream, sums []int64, ejected bool) *Upstream {
	switch len(all) {
	case 0:
		return nil
	case 1:
		if u := all[0]; c.fits(u, ejected) {
			return u
		}
		return nil
	}
	var a, b *Upstream
	if c.policy == PolicyRoundRobin {
		a = at(all, sums, (e.turn.Add(1)-1)&math.MaxInt64)
		b = a
	} else {
		a, b = draw(all, sums)
	}
	aFits := c.fits(a, ejected)
	bFits := b != a && c.fits(b, ejected)
	switch {
	case aFits && bFits:
		return lighter(a, b)
	case aFits:
		return a
	case bFits:
		return b
	}
	return c.search(all, ejected, anywhere)
}

// search is the slow way, for when what was drawn can't be used: it draws among the usable ones only.
func (c *chooser) search(all []*Upstream, ejected bool, where int) *Upstream {
	var first, second *Upstream
	var total int64
	for _, u := range all {
		if !c.fits(u, ejected) || !c.within(u, where) {
			continue
		}
		w := u.weight.Load()
		total += w
		// Each one replaces what was drawn with the probability of its weight: a fair draw in one pass without a list.
		if random(total) < w {
			first = u
		}
		if random(total) < w {
			second = u
		}
	}
	if first == nil {
		return nil
	}
	return lighter(first, second)
}

// draw returns two upstreams at random, by weight. Equal weights give two different ones; with unequal weights they may
// be the same, since a heavy one must not lose its share by always being compared with a light one.
func draw(all []*Upstream, sums []int64) (a, b *Upstream) {
	if sums == nil {
		n := int64(len(all))
		i, j := random(n), random(n-1)
		if j >= i {
			j++
		}
		return all[i], all[j]
	}
	total := sums[len(all)-1]
	return at(all, sums, random(total)), at(all, sums, random(total))
}

// random returns a number in [0, n).
func random(n int64) int64 {
	return rand.Int64N(n) //nolint:gosec // spreads load; who guesses it gains nothing
}

// at returns the upstream that covers position i of the weights laid end to end.
func at(all []*Upstream, sums []int64, i int64) *Upstream {
	if sums == nil {
		return all[i%int64(len(all))]
	}
	sums = sums[:len(all)]
	k, found := slices.BinarySearch(sums, i%sums[len(sums)-1])
	if found {
		k++ // sums[k] is the first position after the k-th
	}
	return all[k]
}

// lighter returns the one with less in flight for its weight; the first when they are equal, which keeps the shares of
// an idle system those of the draw.
func lighter(a, b *Upstream) *Upstream {
	if b.inFlight.Load()*a.weight.Load() < a.inFlight.Load()*b.weight.Load() {
		return b
	}
	return a
}
