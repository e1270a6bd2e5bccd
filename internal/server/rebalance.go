package server

import (
	"cmp"
	"context"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/pikoproxy/piko/internal/cluster"
	"github.com/pikoproxy/piko/internal/config"
)

const (
	rebalanceEvery = time.Second
	moveTimeout    = time.Hour // for what runs on a session that is handed over: nothing presses
)

// rebalance asks some agents each second to connect elsewhere, while this node has many more sessions than the others: a
// node that comes back from a restart would else stay empty until agents happen to reconnect.
func (m *membership) rebalance(ctx context.Context) error {
	tick := time.NewTicker(rebalanceEvery)
	defer tick.Stop()
	asked := map[*session]struct{}{} // and still here
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		s := m.server
		if state(s.state.Load()) != up {
			continue
		}
		all := s.sessions.list()
		asked = still(asked, all)
		counts, ok := m.counts()
		if !ok {
			continue
		}
		n := surplus(s.now().config.Upstream.Rebalance, len(all)-len(asked), counts)
		if n == 0 {
			continue
		}
		swap := func(i, j int) { all[i], all[j] = all[j], all[i] }
		rand.Shuffle(len(all), swap) //nolint:gosec // spreads load; who guesses it gains nothing
		byStreams(all)
		for _, x := range all {
			if n == 0 {
				break
			}
			if _, again := asked[x]; again || x.tunnel.Classic() && x.tunnel.Streams() > 0 {
				continue
			}
			asked[x] = struct{}{}
			n--
			m.send(ctx, x)
		}
	}
}

// send asks the agent of a session to connect elsewhere first and to leave then. A classic one can't be asked: its session
// is ended in the way that makes it connect again, when no stream would be cut.
func (m *membership) send(ctx context.Context, x *session) {
	s := m.server
	s.sessions.spawn(func() {
		m.shed.Inc()
		if !x.tunnel.Classic() {
			_ = x.tunnel.Drain("this node has more sessions than others", time.Now().Add(moveTimeout)) // else it has ended
			return
		}
		ctx, cancel := context.WithTimeout(ctx, time.Duration(s.now().config.DrainTimeout))
		defer cancel()
		_ = x.tunnel.Shutdown(ctx) // a stream that came in between and outlives the limit is cut
	})
}

// byStreams puts sessions first on which little runs, and leaves the order of equal ones.
func byStreams(all []*session) {
	streams := make(map[*session]int, len(all))
	for _, x := range all {
		streams[x] = x.tunnel.Streams()
	}
	slices.SortStableFunc(all, func(a, b *session) int { return cmp.Compare(streams[a], streams[b]) })
}

// still keeps those of asked that are in all.
func still(asked map[*session]struct{}, all []*session) map[*session]struct{} {
	kept := map[*session]struct{}{}
	for _, x := range all {
		if _, ok := asked[x]; ok {
			kept[x] = struct{}{}
		}
	}
	return kept
}

// counts returns how many sessions the other nodes have, those that take new ones; false if one of them has not said.
func (m *membership) counts() ([]int, bool) {
	var all []int
	for _, r := range m.table.Nodes() {
		if r.Standing() != cluster.Good {
			continue
		}
		n := r.Sessions()
		if n < 0 {
			return nil, false
		}
		all = append(all, n)
	}
	return all, true
}

// surplus returns how many of this node's sessions are to be handed over now.
func surplus(c config.Rebalance, own int, others []int) int {
	if c.Threshold <= 0 || c.ShedRate <= 0 || len(others) == 0 || own < c.MinSessions {
		return 0
	}
	sum := own
	for _, n := range others {
		sum += n
	}
	mean := float64(sum) / float64(len(others)+1)
	if float64(own) <= (1+c.Threshold)*mean {
		return 0
	}
	return int(min(math.Ceil(float64(own)*c.ShedRate), math.Floor(float64(own)-mean)))
}
