package proxy

import (
	"sync"
	"time"

	"github.com/pikoproxy/piko/internal/router"
)

// watchAfter is how long an answer may take before somebody looks whether the client is still there; up to twice as long may
// pass. Most come sooner, and cost no goroutine. The timer is armed while requests come, and not for each of them.
const watchAfter = 50 * time.Millisecond

// watch sees a client leave that waits for an answer.
type watch struct {
	c     *plainConn
	timer *time.Timer // fires look; made by the first start

	mu          sync.Mutex // guards the following
	busy        bool       // the request was read, and is being answered
	turn, seen  int        // number of the request, and of the one that look has found last
	armed       bool       // the timer runs
	idle        bool       // the connection waits for a request
	since       time.Time  // when that wait began
	deciding    bool       // it has read something, and it is not known yet who answers
	used        bool       // a request has come
	settling    bool       // somebody waits until it answers or ends
	interrupted bool       // by us, so that it is not the client's doing when a read ends
	gone        bool
	stream      *router.Stream // reset when the client leaves
	reading     chan struct{}  // closed when the read of look has ended; nil: there is none
}

// start begins the watch. Nobody reads from the connection until it is stopped.
func (w *watch) start() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.busy = true
	w.turn++
	if w.armed {
		return
	}
	w.armed, w.seen = true, w.turn
	if w.timer == nil {
		w.timer = time.AfterFunc(watchAfter, w.look)
	} else {
		w.timer.Reset(watchAfter)
	}
}

// end lets go of the timer, when no request is being answered.
func (w *watch) end() {
	if w.timer != nil {
		w.timer.Stop()
	}
}

// look waits, in the goroutine of the timer, for the client to send more or to leave, if the answer takes that long.
func (w *watch) look() {
	w.mu.Lock()
	if w.busy && w.turn != w.seen {
		w.seen = w.turn
		w.timer.Reset(watchAfter)
		w.mu.Unlock()
		return
	}
	w.armed = false
	if !w.busy || w.reading != nil || w.c.guard.Ahead() {
		w.mu.Unlock()
		return
	}
	done := make(chan struct{})
	w.reading = done
	err := w.c.guard.SetReadDeadline(time.Time{})
	w.mu.Unlock()
	if err == nil {
		err = w.c.guard.Await()
	}
	w.mu.Lock()
	left := err != nil && !w.interrupted
	w.mu.Unlock()
	if left {
		w.c.leave()
	}
	close(done)
}

// stop ends the watch, and waits for it.
func (w *watch) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.busy {
		return
	}
	w.busy = false
	done := w.reading
	if done == nil {
		return
	}
	w.interrupted = true
	w.c.touched.Store(true)
	_ = w.c.guard.SetReadDeadline(past) // fails only on a closed connection
	w.mu.Unlock()
	<-done
	w.mu.Lock()
	w.interrupted, w.reading = false, nil
}

// hold lets the stream be reset when the client leaves, until drop.
func (w *watch) hold(s *router.Stream) {
	w.mu.Lock()
	w.stream = s
	gone := w.gone
	w.mu.Unlock()
	if gone {
		_ = s.Reset()
	}
}

func (w *watch) drop() {
	w.mu.Lock()
	w.stream = nil
	w.mu.Unlock()
}
