package router

import (
	"context"
	"errors"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/pikoproxy/piko/internal/tunnel"
)

// pooled is an open stream with what is kept beside it between two exchanges.
type pooled struct {
	Conn
	upstream *Upstream
	state    State
	pool     int // index in upstream.pools; -1: not to be kept
	since    time.Duration
	uses     int
	epoch    int64 // of the upstream, when the stream was opened
}

// State is what a protocol keeps with a stream between two exchanges, such as an HTTP/2 connection. See
// [Stream.Attach].
type State interface {
	Usable() bool // asked before the stream is used again
	Close() error // called when the stream is dropped, before the stream is closed
}

// close ends a stream gracefully.
func (p *pooled) close() error {
	if p.state != nil {
		_ = p.state.Close() // the stream below is closed next, and its error is the one that counts
	}
	return p.Close()
}

// abort ends a stream whose state nobody can be sure of.
func (p *pooled) abort() error {
	if p.state != nil {
		_ = p.state.Close()
	}
	return p.Reset()
}

// drop closes a stream that nobody is using, so there is nobody to tell of an error.
func (p *pooled) drop() {
	_ = p.close()
}

// fit reports whether an idle stream can carry the next exchange. The service may have closed it or sent something
// nobody asked for while nobody looked; after such a byte nobody knows where an answer begins.
func (p *pooled) fit() bool {
	if p.state != nil {
		return p.state.Usable()
	}
	if c, ok := p.Conn.(interface{ Idle() bool }); ok {
		return c.Idle()
	}
	if p.upstream.router.now()-p.since < idleTrusted {
		return true
	}
	if p.SetReadDeadline(time.Unix(1, 0)) != nil {
		return false
	}
	var b [1]byte
	n, err := p.Read(b[:])
	if n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) && !isTimeout(err) {
		return false
	}
	return p.SetReadDeadline(time.Time{}) == nil
}

func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}

// pool keeps the idle streams of an upstream that speak one protocol. The stream used last is used next, so that a
// quiet hour needs few streams and the others grow old.
type pool struct {
	mu     sync.Mutex
	idle   []*pooled // oldest first
	closed bool
}

// put reports whether the pool has taken the stream.
func (p *pool) put(s *pooled) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || len(p.idle) >= idleLimit {
		return false
	}
	p.idle = append(p.idle, s)
	return true
}

// take returns the youngest stream, or nil. inTurn returns the oldest instead, as long as there are few enough that all
// stay in use. Neither has become idle before the given time.
func (p *pool) take(inTurn bool, after time.Duration) *pooled {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := len(p.idle)
	if n == 0 || p.idle[n-1].since < after {
		return nil
	}
	if inTurn && n <= remoteStreams && p.idle[0].since >= after {
		s := p.idle[0]
		copy(p.idle, p.idle[1:])
		p.idle[n-1] = nil
		p.idle = p.idle[:n-1]
		return s
	}
	s := p.idle[n-1]
	p.idle[n-1] = nil
	p.idle = p.idle[:n-1]
	return s
}

func (p *pool) len() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.idle)
}

// flush closes all idle streams and returns their number.
func (p *pool) flush() int { return p.empty(false) }

// close is flush, and the pool takes nothing any more.
func (p *pool) close() int { return p.empty(true) }

func (p *pool) empty(forGood bool) int {
	p.mu.Lock()
	idle := p.idle
	p.idle = nil
	p.closed = p.closed || forGood
	p.mu.Unlock()
	for _, s := range idle {
		s.drop()
	}
	return len(idle)
}

// sweep closes what has been idle for too long and returns how many streams it closed and how many are left.
func (p *pool) sweep(now time.Duration) (closed, left int) {
	p.mu.Lock()
	n := 0
	for n < len(p.idle) {
		limit := idleTimeout
		if len(p.idle)-n > idleKeep {
			limit = idleTrim
		}
		if now-p.idle[n].since < limit {
			break
		}
		n++
	}
	old := append([]*pooled(nil), p.idle[:n]...)
	rest := copy(p.idle, p.idle[n:])
	clear(p.idle[rest:])
	p.idle = p.idle[:rest]
	if rest == 0 {
		p.idle = nil
	}
	p.mu.Unlock()
	for _, s := range old {
		s.drop()
	}
	return len(old), rest
}

// list makes the sweeper visit the upstream.
func (r *Router) list(u *Upstream) {
	if u.listed.Load() || !u.listed.CompareAndSwap(false, true) {
		return
	}
	r.poolMu.Lock()
	r.pooled = append(r.pooled, u)
	r.poolMu.Unlock()
}

// sweepPools visits the upstreams with idle streams and drops those from its list that have none any more.
func (r *Router) sweepPools() {
	now := r.now()
	r.eachPooled(func(u *Upstream) bool {
		left := 0
		for i := range u.pools {
			closed, rest := u.pools[i].sweep(now)
			r.metrics.dropped[dropIdle].Add(float64(closed))
			left += rest
		}
		return left > 0
	})
}

// CloseIdle closes every idle stream. New ones may become idle afterwards.
func (r *Router) CloseIdle() {
	r.eachPooled(func(u *Upstream) bool {
		for i := range u.pools {
			r.metrics.dropped[dropRetired].Add(float64(u.pools[i].flush()))
		}
		return false
	})
}

// visit is a walk over the upstreams that may have idle streams.
type visit struct{ list []*Upstream }

// eachPooled calls f for the upstreams that may have idle streams; f reports whether it still has.
func (r *Router) eachPooled(f func(*Upstream) bool) {
	r.poolMu.Lock()
	v := &visit{r.pooled}
	r.pooled = nil
	r.visits[v] = struct{}{}
	r.poolMu.Unlock()
	for _, u := range v.list {
		// Cleared first: a stream that becomes idle while f looks lists its upstream again, and none is forgotten.
		u.listed.Store(false)
		if f(u) {
			r.list(u)
		}
	}
	r.poolMu.Lock()
	delete(r.visits, v)
	r.poolMu.Unlock()
}

// pooledOf returns the upstreams of a session that may have idle streams.
func (r *Router) pooledOf(s Session) (found []*Upstream) {
	r.poolMu.Lock()
	defer r.poolMu.Unlock()
	of := func(list []*Upstream) {
		for _, u := range list {
			if u.session == s {
				found = append(found, u)
			}
		}
	}
	of(r.pooled)
	for v := range r.visits {
		of(v.list)
	}
	return found
}

// makeRoom ends half of the idle streams of a session that is at its limit of streams: those that have rested longest. Idle
// streams to one endpoint must not keep requests away from another. They are reset, since one that is closed counts until
// its far end has closed it too.
func (r *Router) makeRoom(s Session) bool {
	n := 0
	for _, u := range r.pooledOf(s) {
		for i := range u.pools {
			n += u.pools[i].halve()
		}
	}
	r.freed.Add(int64(n))
	r.metrics.dropped[dropRoom].Add(float64(n))
	return n > 0
}

// halve resets the older half of the idle streams, and returns their number.
func (p *pool) halve() int {
	p.mu.Lock()
	n := (len(p.idle) + 1) / 2
	old := slices.Clone(p.idle[:n])
	p.idle = slices.Delete(p.idle, 0, n)
	p.mu.Unlock()
	for _, s := range old {
		_ = s.abort() // it was whole, and nobody waits for it
	}
	return n
}

// roomTries is how often a stream is asked for again that a session had no room for. Many may ask at once, and take what one
// of them has made room for.
const roomTries = 4

// openOn opens a stream on the session of an upstream, and makes room for it if there is none.
func (r *Router) openOn(ctx context.Context, u *Upstream, h tunnel.Header) (Conn, error) {
	for try := 0; ; try++ {
		freed := r.freed.Load()
		conn, err := u.session.Open(ctx, h)
		if err == nil || try == roomTries || !u.lacksRoom(err) || !r.makeRoom(u.session) && r.freed.Load() == freed {
			return conn, err
		}
	}
}

// lacksRoom reports whether an upstream refused a stream because its session has all that it may have, and not because the agent
// has enough to do. Of another node only that can be told that it or its agents have too much of something.
func (u *Upstream) lacksRoom(err error) bool {
	refused, ok := errors.AsType[*tunnel.RefusedError](err)
	return ok && refused.Code == tunnel.CodeOverloaded && (refused.Full || u.isRemote())
}
