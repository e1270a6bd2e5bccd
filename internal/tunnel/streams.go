package tunnel

import (
	"context"
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
	case l.account.Full():
		return false, &RefusedError{Code: CodeOverloaded, Reason: "the node holds too much that nobody reads"}
	case l.nstreams+l.opening >= limit:
		return false, &RefusedError{Code: CodeOverloaded, Reason: "session has all the streams it may have", Full: true}
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

// patience is how long a caller waits: until its context ends, time is over, or the session has ended.
type patience struct {
	ctx  context.Context
	over <-chan time.Time
}

// wait blocks until one of two channels has something, or patience ends.
func (p patience) wait(l *link, one, other <-chan struct{}) error {
	select {
	case <-one:
		return nil
	case <-other:
		return nil
	case <-p.ctx.Done():
		return context.Cause(p.ctx)
	case <-p.over:
		return ErrOpenTimeout
	case <-l.done:
		return l.reason()
	}
}

// place takes one of the places of streams that are not acknowledged.
func (l *link) place(p patience) error {
	select {
	case l.syn <- struct{}{}:
		return nil
	default:
	}
	select {
	case l.syn <- struct{}{}:
		return nil
	case <-p.ctx.Done():
		return context.Cause(p.ctx)
	case <-p.over:
		return ErrOpenTimeout
	case <-l.done:
		return l.reason()
	}
}

// begin opens a stream that has been admitted and placed, and sends the first bytes on it.
func (l *link) begin(p patience, first []byte) (*Stream, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.fullLocked(2*frameSize + len(first)) {
		room := l.awaitRoomLocked()
		l.mu.Unlock()
		err := p.wait(l, room, nil)
		l.mu.Lock()
		if err != nil {
			return nil, err
		}
	}
	if l.closed || l.broken {
		return nil, l.causeLocked()
	}
	if l.lastLocal == 0 {
		l.lastLocal = 2
		if l.client {
			l.lastLocal = 1
		}
	} else {
		l.lastLocal += 2
	}
	s := l.addLocked(l.lastLocal, true)
	s.placed = true
	l.greetLocked(s)
	if len(first) > 0 {
		s.send -= int64(len(first))
		h := makeFrame(kindData, 0, s.id, uint32(len(first))) //nolint:gosec // at most the header of a stream
		l.appendLocked(h[:], first)
	}
	l.kickLocked(false)
	return s, nil
}

// number of streams there are, those that are being opened included.
func (l *link) number() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.nstreams + l.opening
}

// addLocked registers a stream. The caller holds mu.
func (l *link) addLocked(id uint32, local bool) *Stream {
	s := &Stream{
		l: l, id: id, local: local, recv: initialWindow, send: initialWindow, greet: flagACK,
		rwake: make(chan struct{}, 1), wwake: make(chan struct{}, 1),
	}
	if local {
		s.greet = flagSYN
	}
	if l.streams == nil {
		l.streams = make(map[uint32]*Stream)
	}
	l.streams[id] = s
	switch {
	case l.native && id == controlStream:
		l.control = s
	case local:
		l.opening--
		l.nstreams++
	default:
		l.nstreams++
	}
	return s
}

// forgetLocked forgets a stream that both ends have ended or one has reset. The caller holds mu.
func (l *link) forgetLocked(s *Stream) {
	if s.gone {
		return
	}
	s.gone = true
	delete(l.streams, s.id)
	if s.unread > 0 {
		if l.finished == nil {
			l.finished = make(map[*Stream]struct{})
		}
		l.finished[s] = struct{}{}
	}
	if s.timer != nil {
		s.timer.Stop()
	}
	l.unplaceLocked(s)
	if s != l.control {
		l.nstreams--
	}
	l.emptyLocked()
}

// unplaceLocked gives back the place of a stream among those that are not acknowledged. The caller holds mu.
func (l *link) unplaceLocked(s *Stream) {
	if s.placed {
		s.placed = false
		<-l.syn // never blocks: the stream has put one in
	}
}

// emptyLocked tells who waits for the end of all streams. The caller holds mu.
func (l *link) emptyLocked() {
	if l.nstreams+l.opening > 0 {
		return
	}
	if l.emptied != nil {
		close(l.emptied)
		l.emptied = nil
	}
	if len(l.streams) == 0 {
		l.streams = nil // maps do not shrink
	}
}

// limitLocked is how much the peer may send before we have read it. The caller holds the link's mu.
func (s *Stream) limitLocked() int64 {
	if s == s.l.control || s.l.held > maxHeld/2 || s.l.account.above(2) {
		return initialWindow
	}
	return s.l.window
}

// grantLocked is by how much the peer's window may grow. The caller holds the link's mu.
func (s *Stream) grantLocked() int64 { return max(s.limitLocked()-s.unread-s.recv, 0) }

// greetLocked tells the peer that a stream is opened or accepted, and how much it may send, unless it knows. The caller
// holds mu, and kicks.
func (l *link) greetLocked(s *Stream) {
	if s.greet == 0 {
		return
	}
	grant := s.grantLocked()
	s.recv += grant
	h := makeFrame(kindWindow, s.greet, s.id, uint32(grant)) //nolint:gosec // at most a window
	s.greet = 0
	l.appendLocked(h[:], nil)
}

// creditLocked tells the peer how much more it may send: now, or as soon as there is room. The caller holds mu, and kicks.
func (l *link) creditLocked(s *Stream) {
	if l.fullLocked(frameSize) {
		if !s.owing {
			s.owing = true
			l.owing = append(l.owing, s)
		}
		return
	}
	grant := s.grantLocked()
	s.recv += grant
	h := makeFrame(kindWindow, 0, s.id, uint32(grant)) //nolint:gosec // at most a window
	// It never depends on a frame before it, since the peer knows the stream: it has sent data on it.
	l.urgentLocked(h[:])
}

// payLocked credits those for whom there was no room. The caller holds mu.
func (l *link) payLocked() {
	owing := l.owing
	l.owing = nil
	for _, s := range owing {
		s.owing = false
		if !s.gone {
			l.creditLocked(s)
		}
	}
}

// reset ends a stream at once for both ends.
func (l *link) reset(s *Stream) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.resetLocked(s)
}

// resetLocked tells the peer of a reset and forgets the stream. The caller holds mu.
func (l *link) resetLocked(s *Stream) {
	if s.gone || l.closed || l.broken {
		return
	}
	rst := makeFrame(kindWindow, flagRST, s.id, 0)
	l.queueLocked(rst[:])
	l.belated.reset(s)
	l.forgetLocked(s)
}

// serve has f run in a goroutine of its own whenever something has come on the control stream and none runs already; f ends
// with heard reporting false, or with the session.
func (l *link) serve(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.onControl = f
	if s := l.control; s.unread > 0 || s.finIn || s.gone {
		l.controlLocked()
	}
}

// controlLocked starts the goroutine that reads the control stream. The caller holds mu.
func (l *link) controlLocked() {
	if l.onControl != nil && !l.hearing && !l.closed {
		l.hearing = true
		l.jobs.Go(l.onControl)
	}
}

// heard reports whether there is more on the control stream, or it has ended.
func (l *link) heard() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.control
	l.hearing = s.unread > 0 || s.finIn || s.gone
	if !l.hearing {
		s.rlimit.stop()
		s.rlimit = deadline{}
	}
	return l.hearing
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

// endStreams ends all streams with the session.
func (l *link) endStreams() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.streams {
		s.cut = true
		l.forgetLocked(s)
		s.wakeLocked()
	}
	l.opening, l.finished = 0, nil
	l.dischargeLocked()
	l.emptyLocked()
	if l.stuck != nil {
		l.stuck.Stop()
	}
}

// awaitEmpty blocks until there are no streams or the session has ended, and then reports true, or until stop is closed.
func (l *link) awaitEmpty(stop <-chan struct{}) bool {
	for {
		l.mu.Lock()
		if l.nstreams+l.opening == 0 || l.closed {
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
		l.queueLocked(bye[:])
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
	linger := time.NewTimer(lingerTimeout)
	defer linger.Stop()
	select {
	case <-l.done:
	case <-linger.C:
	}
}
