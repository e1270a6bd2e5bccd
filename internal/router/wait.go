package router

import (
	"context"
	"time"
)

// waiter stands for all requests that wait for one endpoint.
type waiter struct {
	added chan struct{} // closed by Add, after it has taken the waiter out of the shard
	n     int           // requests; guarded by the shard's lock
}

// takeWaiterLocked removes and returns the waiter of an endpoint.
func (sh *shard) takeWaiterLocked(key Key) *waiter {
	w := sh.waiters[key]
	if w != nil {
		delete(sh.waiters, key)
	}
	return w
}

// wait holds the request until an upstream is added, for at most limit. It returns how long that took. With nodes that may
// come back it looks again before that.
func (r *Router) wait(ctx context.Context, c *chooser, key Key, limit time.Duration) (time.Duration, error) {
	if r.waiting.Add(1) > waitersMax {
		r.waiting.Add(-1)
		r.metrics.waits[waitFull].Inc()
		return limit, nil
	}
	defer r.waiting.Add(-1)
	start := time.Now()
	w := r.enlist(key)
	// Looked at again now that no Add can go unnoticed.
	if e, snap := r.lookup(key); snap != nil {
		if u, _ := c.pick(e, snap); u != nil {
			r.leave(key, w)
			return 0, nil
		}
	}
	pause := limit
	if r.remotes != nil && len(r.remotes.Lookup(key)) > 0 {
		pause = min(limit, remoteRetry)
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-w.added:
		r.metrics.waits[waitServed].Inc()
		return time.Since(start), nil
	case <-timer.C:
		r.leave(key, w)
		if pause == limit {
			r.metrics.waits[waitExpired].Inc()
		}
		return pause, nil
	case <-ctx.Done():
		r.leave(key, w)
		r.metrics.waits[waitAbandoned].Inc()
		return time.Since(start), ended(ctx, key)
	}
}

func (r *Router) enlist(key Key) *waiter {
	sh := r.shardOf(key)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	w := sh.waiters[key]
	if w == nil {
		w = &waiter{added: make(chan struct{})}
		if sh.waiters == nil {
			sh.waiters = make(map[Key]*waiter)
		}
		sh.waiters[key] = w
	}
	w.n++
	return w
}

func (r *Router) leave(key Key, w *waiter) {
	sh := r.shardOf(key)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	w.n--
	if w.n == 0 && sh.waiters[key] == w {
		delete(sh.waiters, key)
	}
}

// leftRecently reports whether the endpoint was here moments ago, or this node is too young to know.
func (r *Router) leftRecently(key Key, now time.Duration) bool {
	if now < startWindow {
		return true
	}
	e, _ := r.lookup(key)
	if e == nil {
		return false
	}
	left := time.Duration(e.left.Load())
	return left == 0 || now-left < recentWindow // 0: all its sessions are closing at this moment
}
