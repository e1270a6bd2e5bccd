package cluster

import (
	"context"
	"math"
	"sync"
	"time"
)

// known calls back once the peers have taken in what was true at some moment.
type known struct {
	kick chan struct{} // capacity 1, never closed

	mu    sync.Mutex
	queue []waiting // oldest first
}

// waiting is one callback. Those behind it wait for the same number or a later one, and as long or longer.
type waiting struct {
	seq  uint64
	till time.Time
	f    func(known bool)
}

// WhenKnown calls f once all peers that are up have taken in what this node holds now, or after 2 s, and says which it was. f is
// called once, by a goroutine of Run, and must not block; it is not called any more after the end of Run.
func (p *Peers) WhenKnown(f func(known bool)) {
	k := &p.known
	k.mu.Lock()
	k.queue = append(k.queue, waiting{p.o.Local.Seq(), time.Now().Add(knownPatience), f})
	k.mu.Unlock()
	nudge(k.kick)
}

// settled returns up to which number all peers that are up have taken in the changes of this node.
func (p *Peers) settled() uint64 {
	low := uint64(math.MaxUint64)
	for _, r := range p.o.Table.Nodes() {
		if r.Standing() == Good {
			low = min(low, p.Peer(r).acked.Load())
		}
	}
	return low
}

func (k *known) run(ctx context.Context, settled func() uint64) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-k.kick:
		case <-timer.C:
		}
		low, now := settled(), time.Now()
		for _, w := range k.take(low, now) {
			w.f(w.seq <= low)
		}
		if next, ok := k.next(); ok {
			timer.Reset(time.Until(next))
		}
	}
}

// take returns those whose time has come.
func (k *known) take(low uint64, now time.Time) []waiting {
	k.mu.Lock()
	defer k.mu.Unlock()
	n := 0
	for n < len(k.queue) && (k.queue[n].seq <= low || !now.Before(k.queue[n].till)) {
		n++
	}
	ready := k.queue[:n:n]
	k.queue = k.queue[n:]
	if len(k.queue) == 0 {
		k.queue = nil
	}
	return ready
}

func (k *known) next() (time.Time, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.queue) == 0 {
		return time.Time{}, false
	}
	return k.queue[0].till, true
}
