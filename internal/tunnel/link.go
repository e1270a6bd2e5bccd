package tunnel

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pikoproxy/piko/internal/websocket"
)

const (
	drainTimeout  = time.Second // for the peer to take what is pending when a link is closed
	lingerTimeout = time.Second // for the peer to end its side after ours
)

// link is one end of a session: the streams on a WebSocket. It has one goroutine, which reads.
//
// Writing: frames gather in a batch while the socket is busy with the one before, and go out as one WebSocket message
// with one write. Answers to pings and window updates go first. See writer.
//
// Reading: each frame is judged, see guard, and its body goes straight to the Read that waits for it, or to the queue of its
// stream.
//
// One mutex guards all of it. It is never held during a socket operation or a call to anything outside.
type link struct {
	role
	limits
	id      string
	ws      *websocket.Conn
	onAbuse func(reason string)
	arrived func(*Stream) // is given the streams that the peer opens; must not block
	start   time.Time
	rtt     atomic.Int64 // nanoseconds; 0 when not known
	pinged  atomic.Int64 // when the last WebSocket ping was sent, after start
	syn     chan struct{}
	closing chan struct{} // closed by stopLocked
	done    chan struct{} // closed by Close at its end
	jobs    sync.WaitGroup

	mu sync.Mutex // guards the following
	guard
	writer

	window  int64           // of new streams, and to which old ones grow
	head    [frameSize]byte // the beginning of a header
	nhead   int
	body    int     // bytes to come of the body of a frame
	fin     bool    // the stream ends with that frame
	into    *Stream // whom that body is for; nil: nobody
	born    []*Stream
	fed     []*Stream // who got something from the bytes being read
	direct  []passage // of those bytes, what is for a WriteTo; see pass
	first   uint32    // the first stream that got something from them; 0: none yet
	mixed   int       // how often only one must get something until it is served directly
	held    int64     // bytes of all streams, without the control stream, that nobody has read yet
	cause   error     // why the session ended
	broken  bool      // end without draining
	closed  bool
	stopped bool   // nothing new
	onStop  func() // what is to run in a goroutine of its own when the session takes nothing new
	away    bool   // the peer sent GoAway
	over    bool   // with a code that ends the session
}

// role says which end of which kind of session this is.
type role struct {
	client  bool // the yamux client: it dialed, and its streams have odd numbers
	native  bool // stream 1 is the control stream
	accepts bool // the peer may open data streams
}

// limits are what sessions differ in, besides the role.
type limits struct {
	closeWait    time.Duration
	writeTimeout time.Duration
	account      *Unread // of all sessions; nil: none
}

func newLink(ws *websocket.Conn, r role, o limits, onAbuse func(string)) *link {
	l := &link{
		role:    r,
		limits:  o,
		id:      newID(),
		ws:      ws,
		onAbuse: onAbuse,
		start:   time.Now(),
		syn:     make(chan struct{}, maxUnacknowledged),
		closing: make(chan struct{}),
		done:    make(chan struct{}),
		window:  initialWindow,
	}
	ws.OnPong(l.pong)
	return l
}

// now is the time since the start of the session.
func (l *link) now() time.Duration { return time.Since(l.start) }

// run reads until the session ends.
func (l *link) run() {
	take := l.take // bound once
	for {
		if err := l.ws.Receive(take); err != nil {
			l.readFailed(err)
			break
		}
	}
	l.Close()
}

// take handles bytes from the peer.
func (l *link) take(p []byte) error {
	l.mu.Lock()
	abuse := l.takeLocked(p)
	if abuse != nil {
		l.blameLocked(abuse) // now: who is freed by what came before must not find another cause
	}
	for i, s := range l.fed {
		signal(s.rwake)
		l.fed[i] = nil
	}
	l.fed = l.fed[:0]
	born, over := l.born, l.over
	l.born = nil
	l.mu.Unlock()
	for _, s := range born {
		l.arrived(s)
	}
	l.pass()
	if abuse != nil {
		l.abuse(abuse)
		return abuse
	}
	if over {
		return errPeerClosed
	}
	return nil
}

// takeLocked cuts bytes from the peer into frames. The caller holds mu.
func (l *link) takeLocked(p []byte) *AbuseError {
	for len(p) > 0 {
		if l.body > 0 {
			n := min(l.body, len(p))
			l.deliverLocked(p[:n])
			if l.body -= n; l.body == 0 {
				l.bodyEndsLocked()
			}
			p = p[n:]
			continue
		}
		h := frame(p[:min(len(p), frameSize)])
		if l.nhead > 0 || len(h) < frameSize {
			n := copy(l.head[l.nhead:], p)
			l.nhead += n
			if l.nhead < frameSize {
				return nil
			}
			h, p = l.head[:], p[n:]
			l.nhead = 0
		} else {
			p = p[frameSize:]
		}
		if abuse := l.inboundLocked(h); abuse != nil {
			return abuse
		}
	}
	return nil
}

// deliverLocked takes a part of the body of a frame. The caller holds mu.
func (l *link) deliverLocked(p []byte) {
	s := l.into
	if s == nil || s.gone || s.closed {
		return // dropped
	}
	if l.directLocked(s, p) {
		return
	}
	if s.dst != nil && s.got == 0 && s.in.size == 0 {
		s.got = copy(s.dst, p)
		p = p[s.got:]
	}
	s.in.add(p)
	if n := len(l.fed); n == 0 || l.fed[n-1] != s {
		l.fed = append(l.fed, s)
	}
}

// bodyEndsLocked is called after the last byte of the body of a frame. The caller holds mu.
func (l *link) bodyEndsLocked() {
	s := l.into
	l.into = nil
	if l.fin && s != nil && !s.gone {
		l.peerEndsLocked(s)
	}
	l.fin = false
}

// readFailed notes why reading ended.
func (l *link) readFailed(err error) {
	if fault, ok := errors.AsType[*websocket.ProtocolError](err); ok {
		l.mu.Lock()
		l.blameLocked(&AbuseError{Reason: AbuseWebSocket, Detail: fault.Reason})
		l.mu.Unlock()
		l.report()
		return
	}
	if errors.Is(err, io.EOF) {
		err = errPeerClosed // must not be taken for the end of a stream
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cause == nil {
		l.cause = err
	}
}

// abuse ends the session because of what the peer did.
func (l *link) abuse(a *AbuseError) {
	l.mu.Lock()
	l.blameLocked(a)
	l.mu.Unlock()
	l.report()
	l.fail(a)
}

// blameLocked notes the fault of the peer, unless the session has ended already. The caller holds mu.
func (l *link) blameLocked(a *AbuseError) {
	if l.cause == nil {
		l.cause = a
		l.blamed = a.Reason
	}
}

// report calls onAbuse, once.
func (l *link) report() {
	l.mu.Lock()
	reason := l.blamed
	l.blamed = ""
	l.mu.Unlock()
	if reason != "" && l.onAbuse != nil {
		l.onAbuse(reason)
	}
}

// fail ends the session at once, by a reset of the connection.
func (l *link) fail(cause error) {
	l.mu.Lock()
	l.failLocked(cause)
	l.mu.Unlock()
	// An error says only that the socket is closed already.
	_ = l.ws.Reset()
}

// failLocked notes that the session is to end without draining. The caller holds mu, and resets the connection after.
func (l *link) failLocked(cause error) {
	if l.cause == nil {
		l.cause = cause
	}
	l.broken = true
	l.stopLocked()
	l.roomLocked()
}

// stopLocked makes the session take nothing new. The caller holds mu.
func (l *link) stopLocked() {
	if l.stopped {
		return
	}
	l.stopped = true
	close(l.closing)
	if l.onStop != nil {
		l.jobs.Go(l.onStop)
	}
}

// watch has f run in a goroutine of its own when the session takes nothing new, or now if that is so.
func (l *link) watch(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stopped {
		l.jobs.Go(f)
		return
	}
	l.onStop = f
}

// Close ends the session. What is pending is sent first, unless the session is broken or the peer takes too long. A classic
// session ends with a reset. It returns when the session has ended, but for its goroutine.
func (l *link) Close() {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		<-l.done
		return
	}
	l.closed = true
	l.stopLocked()
	if l.cause == nil {
		l.cause = errEnded
	}
	l.roomLocked()
	broken := l.broken
	l.mu.Unlock()

	if !broken {
		// It frees the flusher in time; an error says that the socket is closed already.
		_ = l.ws.SetWriteDeadline(time.Now().Add(drainTimeout))
		l.awaitFlusher()
	}
	if broken || !l.native {
		_ = l.ws.Reset()
	} else {
		_ = l.ws.Close()
	}
	l.awaitFlusher()
	l.endStreams()
	close(l.done)
}

// err is why the session ended; nil while it lives.
func (l *link) err() error {
	select {
	case <-l.done:
		return l.reason()
	default:
		return nil
	}
}

// reason is why the session ended or is about to end.
func (l *link) reason() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.causeLocked()
}

func (l *link) causeLocked() error {
	if l.cause == nil {
		return ErrSessionClosed
	}
	return &closedError{l.cause}
}

// ended reports whether the session has ended or is about to.
func (l *link) ended() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.closed || l.broken
}

// spawn runs f in a goroutine that Wait waits for, unless the session has ended.
func (l *link) spawn(f func()) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	l.jobs.Go(f)
	return true
}

// measure asks the peer for a sign of life, waits up to limit for it, and sets the window by how long it took. Without an
// answer the round-trip time stays unknown.
func (l *link) measure(limit time.Duration) error {
	answered := make(chan struct{})
	l.mu.Lock()
	l.pingID, l.pingSent, l.answered = 0x70696b6f, l.now(), answered
	ping := makeFrame(kindPing, flagSYN, 0, l.pingID)
	l.appendLocked(ping[:], nil)
	d := l.kickLocked(true)
	l.mu.Unlock()
	if d.turn != 0 {
		l.flushHere(d)
	}
	patience := time.NewTimer(limit)
	defer patience.Stop()
	select {
	case <-answered:
	case <-patience.C:
	case <-l.done:
		return l.reason()
	}
	l.widen()
	return nil
}

// widen sets the window by the round-trip time.
func (l *link) widen() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.window = window(time.Duration(l.rtt.Load()))
}

// writeFailed ends the session after a write to the socket.
func (l *link) writeFailed(err error) { l.fail(fmt.Errorf("write: %w", err)) }
