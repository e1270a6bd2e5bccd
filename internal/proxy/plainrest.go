package proxy

import (
	"time"

	"github.com/pikoproxy/piko/internal/socket"
)

// A connection rests while it waits for a request, decides from the moment in which something has come until it is known who
// answers that, and then answers, which the tracker counts. One that rests may be ended, one that answers is waited for, and
// one that decides has to be known too: it may have been deprived of the processor for long.

// past is a deadline that ends what is waiting.
var past = time.Unix(1, 0)

// rest prepares the wait for a request, and reports false when none is wanted.
func (c *plainConn) rest(timeout time.Duration) bool {
	// A deadline that is a little later than it has to be need not be set for each request.
	slack := min(time.Second, timeout/8)
	now := time.Now()
	if left := c.deadline.Sub(now); c.touched.Swap(false) || left < timeout || left > timeout+slack {
		c.deadline = now.Add(timeout + slack)
		if c.guard.SetReadDeadline(c.deadline) != nil {
			return false
		}
	}
	w := &c.watch
	w.mu.Lock()
	w.idle, w.since, w.deciding = true, now, false
	w.mu.Unlock()
	if c.front.closing.Load() {
		c.interrupt(now)
	}
	return true
}

// rested ends the wait for a request, and reports whether it was interrupted.
func (c *plainConn) rested() bool {
	w := &c.watch
	w.mu.Lock()
	defer w.mu.Unlock()
	w.idle, w.deciding = false, true
	if !w.interrupted {
		return false
	}
	w.interrupted = false
	c.touched.Store(true)
	_ = c.guard.SetReadDeadline(time.Time{}) // fails only on a closed connection
	return true
}

// hasMore reports whether something of a request has come to a connection whose wait was interrupted, and gives the rest of
// that a moment. It asks the socket, as the deadline hides what has come in the same moment, or shortly before if the
// process is behind.
func (c *plainConn) hasMore() bool {
	return (c.guard.Ahead() || socket.Waiting(c.below)) && c.guard.SetReadDeadline(time.Now().Add(lastCall)) == nil
}

// interrupt ends the connection if it waits for a request and nothing of one has come. One that was accepted just now has
// firstCall to send its first. Unless the connection answers, front.settling waits until it does, or has ended.
func (c *plainConn) interrupt(now time.Time) {
	w := &c.watch
	w.mu.Lock()
	defer w.mu.Unlock()
	if (w.idle || w.deciding) && !w.settling {
		w.settling = true
		c.front.settling.add()
	}
	if !w.idle {
		return
	}
	w.interrupted = true
	until := past
	if first := c.born.Add(firstCall); !w.used && now.Before(first) {
		until = first
	}
	_ = c.guard.SetReadDeadline(until) // fails only on a closed connection
}

// settle says that the connection answers, or is not served here any more.
func (c *plainConn) settle() {
	w := &c.watch
	w.mu.Lock()
	settling := w.settling
	w.deciding, w.settling, w.used = false, false, true
	w.mu.Unlock()
	if settling {
		c.front.settling.done()
	}
}
