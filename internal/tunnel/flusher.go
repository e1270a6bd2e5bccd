package tunnel

import (
	"runtime"
	"time"
)

// duty is what who has just written may have to do: to send what waits.
type duty struct {
	turn uint32 // 0: somebody else does
	wait bool   // for others who are about to write
}

// kickLocked makes sure that somebody sends what waits. With here that may be the caller, who then calls flushHere when it has
// released mu. The caller holds mu.
func (l *link) kickLocked(here bool) duty {
	if l.closed || l.broken || l.batch == nil && l.nurgent == 0 {
		return duty{}
	}
	switch {
	case !l.sending && here:
		l.sending = true
		l.yield = (l.alone < aloneAfter || l.flushes%probeEvery == 0) && !l.enoughLocked()
		l.waiting = l.yield
	case !l.sending:
		l.sending = true
		l.handOverLocked()
		return duty{}
	case here && l.waiting && l.enoughLocked():
		l.waiting = false
	default:
		return duty{}
	}
	l.turn = max(l.turn+1, 1)
	return duty{l.turn, l.waiting}
}

// enoughLocked reports whether what waits is not to wait for more. The caller holds mu.
func (l *link) enoughLocked() bool {
	return l.frames >= max(enough, l.nstreams/enoughOf) || l.batch != nil && len(l.batch.b) >= batchFront+maxFrame
}

// handOverLocked has the flusher send on. The caller holds mu, and was the one to send.
func (l *link) handOverLocked() {
	if l.running {
		l.handed = true
		if l.parked { // else it is about to end, and will see
			l.parked = false
			l.wake <- struct{}{} // never blocks: it has room for one, and parked is set once for each receive
		}
		return
	}
	l.running, l.retire = true, false
	if l.wake == nil {
		l.wake = make(chan struct{}, 1)
	}
	l.seen = l.flushes
	l.idle = time.AfterFunc(flusherIdle, l.checkIdle)
	go l.flush() // Close waits for it
}

// flushHere sends what waits, in the goroutine that has just written.
func (l *link) flushHere(d duty) {
	if d.wait { // it is dear when nobody comes: an idle thread is woken to look for work
		runtime.Gosched()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.turn != d.turn {
		return // another one did not want to wait
	}
	l.waiting = false
	if !l.sendLocked() {
		return
	}
	if l.batch != nil || l.nurgent > 0 {
		l.handOverLocked()
		return
	}
	l.sending = false
	l.roomLocked()
}

// flush sends batches until there is nothing to send for a while, or the session ends.
func (l *link) flush() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		for l.batch != nil || l.nurgent > 0 {
			if !l.sendLocked() {
				l.endFlusherLocked()
				return
			}
		}
		l.sending = false
		if l.closed || l.retire || l.broken {
			l.endFlusherLocked()
			return
		}
		l.parked = true
		l.roomLocked()
		l.mu.Unlock()
		<-l.wake
		l.mu.Lock()
		if !l.handed { // woken to end
			l.endFlusherLocked()
			return
		}
		l.handed = false
	}
}

// checkIdle ends the flusher when it had nothing to do since the last time. A timer that is armed once a second costs less
// than one that is armed for every flush.
func (l *link) checkIdle() {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case !l.running:
	case l.parked && !l.sending && l.flushes == l.seen:
		l.endParkedLocked()
	default:
		l.seen = l.flushes
		l.idle.Reset(flusherIdle)
	}
}

// endParkedLocked wakes a flusher that is parked, to end. The caller holds mu.
func (l *link) endParkedLocked() {
	l.retire, l.parked = true, false
	l.wake <- struct{}{} // never blocks: it has room for one, and parked is set once for each receive
}

// endFlusherLocked tidies up after the flusher. The caller holds mu.
func (l *link) endFlusherLocked() {
	l.running = false
	l.idle.Stop()
	l.idle = nil
	l.roomLocked()
}

// awaitFlusher waits until nobody sends and there is no flusher. The link is closed, broken or muted.
func (l *link) awaitFlusher() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.sending || l.running {
		l.retire = true
		if l.parked && !l.sending {
			l.endParkedLocked()
		}
		if l.room == nil {
			l.room = make(chan struct{})
		}
		room := l.room
		l.mu.Unlock()
		<-room
		l.mu.Lock()
	}
	if l.closed || l.broken {
		l.dropLocked()
	}
}
