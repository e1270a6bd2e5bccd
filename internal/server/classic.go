package server

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/pikoproxy/piko/internal/cluster"
	"github.com/pikoproxy/piko/internal/router"
)

const (
	classicTurn    = 2 // a session rests for the drain timeout divided by this
	classicReserve = 4 // the last part of the drain timeout, divided by this, in which nothing new is begun
)

// classicDrain moves classic agents away from a node that stops. They can't be asked to connect elsewhere first: each does
// so when its session has ended, and ending it would cut what runs on it. So a session that nothing runs on is ended, and
// one gets nothing new as soon as its endpoint is held by another node, too. Where several sessions here are all that an endpoint
// has, they take turns in getting nothing new, until one of them has nothing left to do: its agent then is the other holder.
//
// Shortly before the deadline none gets anything new. Requests are held then, as for any endpoint that moves, and what runs
// has the time that a request may be held.
type classicDrain struct {
	*membership
	drain context.Context
	turn  time.Duration // for which a session rests
	late  time.Time     // from when on nothing new is begun

	ending  map[*session]bool
	resting map[router.Key]rest
}

// rest is a session that gets nothing new for a while.
type rest struct {
	session *session
	since   time.Time
}

func newClassicDrain(ctx context.Context, m *membership) *classicDrain {
	deadline, _ := ctx.Deadline()
	c := m.server.now().config
	whole := time.Until(deadline)
	reserve := min(time.Duration(c.Proxy.EndpointWait)*4/5, whole/classicReserve)
	return &classicDrain{
		membership: m, drain: ctx, turn: max(whole/classicTurn, time.Second), late: deadline.Add(-reserve),
		ending: map[*session]bool{}, resting: map[router.Key]rest{},
	}
}

// run returns when all classic sessions are about to end, or the deadline has passed.
func (d *classicDrain) run() {
	tick := time.NewTicker(handOverLook)
	defer tick.Stop()
	for {
		groups := d.groups()
		if len(groups) == 0 {
			return
		}
		d.server.router.CloseIdle() // or it would count as running
		for key, all := range groups {
			for _, x := range d.look(key, all) {
				d.ending[x] = true
				// A stream that this cuts, by the deadline, is counted at the end of all sessions.
				d.server.sessions.spawn(func() { _ = x.tunnel.Shutdown(d.drain) })
			}
		}
		select {
		case <-tick.C:
		case <-d.drain.Done():
			return
		}
	}
}

// groups are the classic sessions that are not about to end, by the key that they offer.
func (d *classicDrain) groups() map[router.Key][]*session {
	groups := map[router.Key][]*session{}
	for _, x := range d.server.sessions.list() {
		if x.classic != "" && !d.ending[x] {
			key := router.KeyOf(x.tenant, x.classic)
			groups[key] = append(groups[key], x)
		}
	}
	return groups
}

// look decides about the sessions of one key, and returns those to be ended.
func (d *classicDrain) look(key router.Key, all []*session) []*session {
	now := time.Now()
	elsewhere := slices.ContainsFunc(d.table.Lookup(key), func(h cluster.Holder) bool {
		return h.Remote.Standing() == cluster.Good
	})
	if elsewhere || now.After(d.late) {
		return all
	}
	var ended, busy []*session
	for _, x := range all {
		if x.tunnel.Streams() == 0 {
			ended = append(ended, x)
		} else {
			busy = append(busy, x)
		}
	}
	d.rotate(key, busy, now)
	return ended
}

// rotate sees to it that one of several busy sessions rests, and none that is the only one.
func (d *classicDrain) rotate(key router.Key, busy []*session, now time.Time) {
	last, rests := d.resting[key]
	rests = rests && slices.Contains(busy, last.session)
	if rests && len(busy) > 1 && now.Sub(last.since) < d.turn {
		return
	}
	if rests {
		d.server.router.Add(key, last.session.route, router.UpstreamOptions{})
		delete(d.resting, key)
	}
	if len(busy) < 2 {
		return
	}
	slices.SortFunc(busy, func(a, b *session) int { return cmp.Compare(a.tunnel.Streams(), b.tunnel.Streams()) })
	next := busy[0]
	if next == last.session {
		next = busy[1]
	}
	d.resting[key] = rest{next, now}
	d.server.router.RemoveSession(next.route)
}
