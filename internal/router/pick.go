package router

import (
	"math"
	"math/rand/v2"
	"slices"
	"time"
)

// chooser holds what one request needs to choose among the upstreams of its endpoint. It lives on the stack.
type chooser struct {
	policy   Policy
	protocol string
	local    bool        // only upstreams on this node
	tried    []*Upstream // by this Open
	before   []*Upstream // by the caller
	failed   bool        // one of tried is broken rather than leaving
	now      time.Duration
}

// usable reports whether the upstream may be chosen at all.
func (c *chooser) usable(u *Upstream) bool {
	return u.serves(c.protocol) && !slices.Contains(c.tried, u) && !slices.Contains(c.before, u) && !u.gone()
}

// pick chooses an upstream, or none. lastResort tells that only ejected ones were left.
func (c *chooser) pick(e *entry, snap *snapshot) (u *Upstream, lastResort bool) {
	all := snap.all
	if c.local {
		all = all[:snap.local]
	}
	if c.policy == PolicyLocalFirst && snap.local > 0 && snap.local < len(all) {
		if u := c.pickFrom(e, all[:snap.local], snap.sums, false); u != nil {
			return u, false
		}
	}
	if u := c.pickFrom(e, all, snap.sums, false); u != nil {
		return u, false
	}
	u = c.pickFrom(e, all, snap.sums, true)
	return u, u != nil
}

// pickFrom chooses among the given upstreams, a prefix of the snapshot. ejected admits those that are ejected too.
func (c *chooser) pickFrom(e *entry, all []*Upstream, sums []int64, ejected bool) *Upstream {
	switch len(all) {
	case 0:
		return nil
	case 1:
		if u := all[0]; c.usable(u) && (ejected || u.healthy(c.now)) {
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
	aFits := c.usable(a) && (ejected || a.healthy(c.now))
	bFits := b != a && c.usable(b) && (ejected || b.healthy(c.now))
	switch {
	case aFits && bFits:
		return lighter(a, b)
	case aFits:
		return a
	case bFits:
		return b
	}
	return c.search(all, ejected)
}

// search is the slow way, for when what was drawn can't be used: it draws among the usable ones only.
func (c *chooser) search(all []*Upstream, ejected bool) *Upstream {
	var first, second *Upstream
	var total int64
	for _, u := range all {
		if !c.usable(u) || (!ejected && !u.healthy(c.now)) {
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
