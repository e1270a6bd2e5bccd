package auth

import (
	"context"
	"sync"
	"time"
)

// leaseSweep is how often leases are looked at: what a token has begun ends at most so long after the token.
const leaseSweep = time.Second

// leaseShards keep requests that begin at the same moment from waiting for each other.
const leaseShards = 16

// Leases end what tokens have begun, a request or a connection of a client, when its token is good for nothing any more.
// One sweep over all is cheaper than a timer for each. Use [NewLeases].
type Leases struct {
	judge  func(*Identity) error
	shards [leaseShards]leaseShard
}

type leaseShard struct {
	mu   sync.Mutex // guards the following, and the fields of the leases in the list
	head Lease      // of a ring
}

// Lease is held as long as something runs that a token has begun. The zero value is not held. It must not be copied
// while it is.
type Lease struct {
	prev, next *Lease
	shard      *leaseShard // nil: not held
	id         *Identity
	ender      Ender
	ending     chan struct{} // made when End is about to be called, closed when it has returned
}

// Ender is what a lease is held for.
type Ender interface {
	// End is told, once and from another goroutine, that the token is good for nothing any more, and why: [ErrExpired],
	// [ErrRevoked] or another error of this package. It must not block, and must not release the lease.
	End(why error)
}

// NewLeases returns leases without any. judge says why what a token has begun must end, or nil; it must not block. See
// [Gate.Judge].
func NewLeases(judge func(*Identity) error) *Leases {
	l := &Leases{judge: judge}
	for i := range l.shards {
		head := &l.shards[i].head
		head.prev, head.next = head, head
	}
	return l
}

// Hold lets e be ended when the identity is good for nothing any more. Nothing is held for a nil identity or by nil
// leases. A lease is held once at a time.
func (l *Leases) Hold(lease *Lease, id *Identity, e Ender) {
	if l == nil || id == nil {
		return
	}
	// An identity is shared by all requests of a token, so its address would put them all into one shard.
	shard := &l.shards[id.spread.Add(1)%leaseShards]
	lease.id, lease.ender, lease.ending = id, e, nil
	shard.mu.Lock()
	defer shard.mu.Unlock()
	lease.shard = shard
	last := shard.head.prev
	lease.prev, lease.next = last, &shard.head
	last.next, shard.head.prev = lease, lease
}

// Release gives the lease back. When it has returned, End does not run and will not be called. A lease that is not held is
// left alone.
func (l *Lease) Release() {
	if l.shard == nil {
		return
	}
	l.shard.mu.Lock()
	ending := l.ending
	if ending == nil {
		l.unlinkLocked()
	}
	l.shard.mu.Unlock()
	if ending != nil {
		<-ending
	}
	*l = Lease{}
}

func (l *Lease) unlinkLocked() {
	l.prev.next, l.next.prev = l.next, l.prev
}

// Run sweeps until ctx ends.
func (l *Leases) Run(ctx context.Context) error {
	tick := time.NewTicker(leaseSweep)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			l.Sweep()
		}
	}
}

// Sweep ends at once what has to end.
func (l *Leases) Sweep() {
	for i := range l.shards {
		for _, end := range l.shards[i].due(l.judge) {
			end()
		}
	}
}

// due takes out of the list what has to end, and returns what ends it.
func (s *leaseShard) due(judge func(*Identity) error) (ends []func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for lease := s.head.next; lease != &s.head; lease = lease.next {
		why := judge(lease.id)
		if why == nil {
			continue
		}
		lease.unlinkLocked() // its own next still leads on
		done, e := make(chan struct{}), lease.ender
		lease.ending = done
		ends = append(ends, func() {
			defer close(done)
			e.End(why)
		})
	}
	return ends
}
