package tunnel

import (
	"time"
)

// maxUnacknowledged bounds the streams of which the peer has not heard or which it has not acknowledged. It is less than
// the backlog of every peer, which would reset what exceeds it.
const maxUnacknowledged = 128

// lastStream is after which number a session is given up: a margin before the end of all numbers.
const lastStream = 1<<32 - 1<<20

// admit reserves the place of one more stream of at most limit. It is given back by cancel, or by the stream's end. It also
// reports whether that was the last stream, for want of numbers.
func (l *link) admit(limit int) (last bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.closed || l.broken:
		return false, l.causeLocked()
	case l.stopped:
		return false, &RefusedError{Code: CodeDraining, Reason: "session takes no new streams"}
	case l.nflows+l.opening >= limit:
		return false, &RefusedError{Code: CodeOverloaded, Reason: "session has all the streams it may have"}
	}
	l.opening++
	last = l.lastLocal >= lastStream
	if last {
		l.stopLocked()
	}
	return last, nil
}

// cancel gives back what admit reserved, when no SYN was sent.
func (l *link) cancel() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.opening > 0 { // it is 0 once the session has ended
		l.opening--
	}
	l.emptyLocked()
}

// streams is how many there are, those that are being opened included.
func (l *link) streams() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.nflows + l.opening
}

// flow returns the state of a stream that yamux has just handed out. One that the peer has reset already is gone.
func (l *link) flow(id uint32) *flow {
	l.mu.Lock()
	defer l.mu.Unlock()
	if f := l.flows[id]; f != nil {
		return f
	}
	return &flow{id: id, gone: true}
}

// awaitAck blocks until the peer has acknowledged a stream, and reports false when it was reset instead or the session
// ended.
func (l *link) awaitAck(f *flow) bool {
	l.mu.Lock()
	if !f.acked && !f.gone {
		if f.acks == nil {
			f.acks = make(chan struct{})
		}
		acks := f.acks
		l.mu.Unlock()
		<-acks
		l.mu.Lock()
	}
	defer l.mu.Unlock()
	return f.acked && !f.gone
}

// refusal is what a stream that ended before it was answered is to be taken for.
func (l *link) refusal() *RefusedError {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.away {
		return &RefusedError{Code: CodeDraining, Reason: "far end takes no new streams"}
	}
	return &RefusedError{Code: CodeReset, Reason: "stream reset before it was answered"}
}

// reset ends a stream at once for both ends: it queues RST for the peer, and has one handed to our yamux between two
// frames, for which it wakes the reader if that waits for the socket.
func (l *link) reset(f *flow) {
	l.mu.Lock()
	if f.gone || l.closed || l.broken {
		l.mu.Unlock()
		return
	}
	rst := makeFrame(kindWindow, flagRST, f.id, 0)
	l.appendLocked(rst[:], nil)
	l.inject = append(l.inject, injection{f.id, f.local && !f.acked})
	l.rememberLocked(f.id)
	l.endLocked(f)
	wake := l.reading && (l.body == 0 || l.skip)
	l.mu.Unlock()
	if wake {
		// An error says that the socket is closed, which wakes the reader too.
		_ = l.ws.SetReadDeadline(time.Unix(1, 0))
	}
}

// rememberLocked notes a stream whose frames may still come. The caller holds mu.
func (l *link) rememberLocked(id uint32) {
	if l.resets == nil {
		l.resets = make(map[uint32]struct{})
	}
	l.resets[id] = struct{}{}
	l.resetOrder = append(l.resetOrder, id)
	if len(l.resetOrder) > rememberedMax {
		delete(l.resets, l.resetOrder[0])
		l.resetOrder = l.resetOrder[1:]
	}
}

// abandon drops what comes for a stream from now on, and resets it unless both ends have closed it within wait.
func (l *link) abandon(f *flow, wait time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f.discard = true
	if f.gone || l.closed || l.broken || f.timer != nil || f.finIn {
		return // after the peer's FIN, ours ends the stream
	}
	f.timer = time.AfterFunc(wait, func() { l.reset(f) })
}

// serve has f run in a goroutine of its own whenever something has come on the control stream and none runs already; f ends
// with heard reporting false, or with the session.
func (l *link) serve(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.onControl = f
	l.controlLocked(l.flows[controlStream])
}

// controlLocked starts the goroutine that reads the control stream. The caller holds mu.
func (l *link) controlLocked(f *flow) {
	if l.onControl != nil && !l.hearing && !l.closed {
		l.hearing = true
		l.control = f
		l.jobs.Go(l.onControl)
	}
}

// heard reports whether there is more on the control stream, of which read bytes are read, or it has ended.
func (l *link) heard(read int64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	f := l.control
	l.hearing = f == nil || f.in > read || f.finIn || f.gone
	return l.hearing
}

// ended reports whether the end of the data that yamux reported is the peer's FIN.
func (l *link) ended(f *flow) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return f.settled
}

// quiet reports whether a stream is open both ways and has received just read bytes.
func (l *link) quiet(f *flow, read int64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !f.gone && !f.finIn && !f.finOut && f.in == read && !l.closed && !l.broken
}

// endFlows ends all streams with the session: yamux ends its own.
func (l *link) endFlows() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, f := range l.flows {
		l.endLocked(f)
	}
	l.opening = 0
	l.emptyLocked()
}

// awaitEmpty blocks until there are no streams or the session has ended, and then reports true, or until stop is closed.
func (l *link) awaitEmpty(stop <-chan struct{}) bool {
	for {
		l.mu.Lock()
		if l.nflows+l.opening == 0 || l.closed {
			l.mu.Unlock()
			return true
		}
		if l.emptied == nil {
			l.emptied = make(chan struct{})
		}
		emptied := l.emptied
		l.mu.Unlock()
		select {
		case <-emptied:
		case <-l.done:
			return true
		case <-stop:
			return false
		}
	}
}

// stop makes the session take nothing new.
func (l *link) stop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stopLocked()
}

// farewell tells the peer that the session is over, and gives it time to end its side: a classic agent gets GoAway, a
// native one a Close frame.
func (l *link) farewell() {
	l.mu.Lock()
	if l.cause == nil {
		l.cause = errEnded
	}
	if !l.native {
		bye := makeFrame(kindGoAway, 0, 0, goAwayInternal)
		l.appendLocked(bye[:], nil)
	}
	l.muted = true
	l.mu.Unlock()
	// It frees the flusher in time; an error says that the socket is closed already.
	_ = l.ws.SetWriteDeadline(time.Now().Add(drainTimeout))
	l.awaitFlusher()
	if l.native {
		// What is wrong with the socket ends the session by itself.
		_ = l.ws.CloseWrite()
	}
	patience := time.NewTimer(lingerTimeout)
	defer patience.Stop()
	select {
	case <-l.done:
	case <-patience.C:
	}
}

// measure asks the peer for a sign of life before there is a yamux session, and waits up to limit for it. What else the peer
// sends meanwhile is kept for yamux. Without an answer the round-trip time stays unknown.
func (l *link) measure(limit time.Duration) error {
	l.mu.Lock()
	l.pingID, l.pingSent, l.pingPending = 0x70696b6f, l.now(), true
	ping := makeFrame(kindPing, flagSYN, 0, l.pingID)
	l.appendLocked(ping[:], nil)
	l.mu.Unlock()
	until := time.Now().Add(limit)
	var early []byte
	for l.rtt.Load() == 0 && len(early) < smallBatch && time.Now().Before(until) {
		if err := l.ws.SetReadDeadline(until); err != nil {
			return err
		}
		early = append(early, make([]byte, 512)...)
		n, err := l.readSome(early[len(early)-512:])
		early = early[:len(early)-512+n]
		if err != nil {
			return err
		}
	}
	if len(early) > 0 {
		l.mu.Lock()
		l.early = early
		l.mu.Unlock()
	}
	return l.ws.SetReadDeadline(time.Time{})
}
