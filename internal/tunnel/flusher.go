package tunnel

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
