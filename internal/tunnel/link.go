package tunnel

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pikoproxy/piko/internal/websocket"
)

const (
	drainTimeout  = time.Second // for the peer to take what is pending when a link is closed
	lingerTimeout = time.Second // for the peer to end its side after ours
)

// link is the connection that yamux runs on: a WebSocket whose traffic it watches, frame by frame, in both directions.
//
// Writing: frames gather in a batch while the socket is busy with the one before, and go out as one WebSocket message
// with one write. Pings' answers and plain window updates go first.
//
// Reading: yamux sees only whole headers, and only of frames that a correct peer may send; see guard. Frames can be put in
// between two frames, which is how a stream is reset: yamux offers no such call.
//
//	yamux --Write--> outbound --> batch --flusher--> WebSocket
//	yamux <--Read--- inbound  <-- own RST frames <-- WebSocket
//
// One mutex guards all of it. It is never held during a socket operation or a call to anything outside.
type link struct {
	role
	ws      *websocket.Conn
	onAbuse func(reason string)
	start   time.Time
	rtt     atomic.Int64 // nanoseconds; 0 when not known
	pinged  atomic.Int64 // when the last WebSocket ping was sent, after start
	syn     chan struct{}
	wake    chan struct{} // to the flusher, when it is parked
	closing chan struct{} // closed by stopLocked
	done    chan struct{} // closed by Close at its end
	jobs    sync.WaitGroup

	mu sync.Mutex // guards the following
	guard
	writer

	held    [frameSize]byte // the beginning of a header
	nheld   int
	body    int  // bytes to come of the body of a frame
	skip    bool // that body is not for yamux
	reading bool // in a socket read with nothing to hand over
	early   []byte
	inject  []injection
	cause   error // why the session ended
	broken  bool  // end without draining
	closed  bool
	stopped bool   // nothing new
	onStop  func() // what is to run in a goroutine of its own when the session takes nothing new
	away    bool   // the peer sent GoAway
}

// role says which end of which kind of session this is.
type role struct {
	client  bool // the yamux client: it dialed, and its streams have odd numbers
	native  bool // stream 1 is the control stream
	accepts bool // the peer may open data streams
}

// injection is the reset of a stream that yamux has yet to be told of.
type injection struct {
	stream uint32
	ack    bool // the stream was not acknowledged
}

func newLink(ws *websocket.Conn, r role, onAbuse func(string)) *link {
	l := &link{
		role:    r,
		ws:      ws,
		onAbuse: onAbuse,
		start:   time.Now(),
		syn:     make(chan struct{}, maxUnacknowledged),
		wake:    make(chan struct{}, 1),
		closing: make(chan struct{}),
		done:    make(chan struct{}),
	}
	l.room.L = &l.mu
	ws.OnPong(l.pong)
	return l
}

// now is the time since the start of the session.
func (l *link) now() time.Duration { return time.Since(l.start) }

// LocalAddr is used by yamux for the addresses of its streams.
func (l *link) LocalAddr() net.Addr { return l.ws.LocalAddr() }

// RemoteAddr is used by yamux for the addresses of its streams.
func (l *link) RemoteAddr() net.Addr { return l.ws.RemoteAddr() }

// Read hands frames of the peer to yamux. Only one goroutine calls it.
func (l *link) Read(p []byte) (int, error) {
	if len(p) < frameSize {
		return 0, io.ErrShortBuffer
	}
	for {
		n, err := l.readSome(p)
		if n > 0 || err != nil {
			return n, err
		}
	}
}

// readSome reads the socket at most once, and may return nothing.
func (l *link) readSome(p []byte) (int, error) {
	l.mu.Lock()
	l.settleLocked()
	if n := l.ownLocked(p); n > 0 || l.broken {
		err := l.cause
		l.mu.Unlock()
		if n > 0 {
			err = nil
		}
		return n, err
	}
	held := copy(p, l.held[:l.nheld])
	l.reading = true
	l.mu.Unlock()

	n, err := l.ws.Read(p[held:])

	l.mu.Lock()
	l.reading = false
	var abuse *AbuseError
	if n > 0 {
		n, abuse = l.filterLocked(p[:held+n])
	}
	l.mu.Unlock()
	switch {
	case abuse != nil:
		l.abuse(abuse)
		return 0, abuse
	case n > 0 || err == nil:
		return n, nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		return 0, l.ws.SetReadDeadline(time.Time{}) // woken by reset
	}
	return 0, l.readFailed(err)
}

// ownLocked copies to p what did not come from the socket just now. The caller holds mu.
func (l *link) ownLocked(p []byte) int {
	if len(l.early) > 0 {
		n := copy(p, l.early)
		if l.early = l.early[n:]; len(l.early) == 0 {
			l.early = nil
		}
		return n
	}
	if l.body > 0 && !l.skip {
		return 0 // within a frame of yamux
	}
	n := 0
	for len(l.inject) > 0 && len(p)-n >= frameSize {
		in := l.inject[0]
		l.inject = l.inject[1:]
		flags := uint16(flagRST)
		if in.ack {
			flags |= flagACK // else yamux keeps an entry for the stream for ever
			l.unsettled++
		}
		f := makeFrame(kindWindow, flags, in.stream, 0)
		n += copy(p[n:], f[:])
	}
	if len(l.inject) == 0 {
		l.inject = nil
	}
	return n
}

// filterLocked moves what yamux is to see to the front of p and returns how much that is. The caller holds mu.
func (l *link) filterLocked(p []byte) (int, *AbuseError) {
	l.nheld = 0
	w := 0
	for r := 0; r < len(p); {
		if l.body > 0 {
			n := min(l.body, len(p)-r)
			if !l.skip {
				if w != r {
					copy(p[w:], p[r:r+n])
				}
				w += n
			}
			l.body -= n
			r += n
			continue
		}
		if len(p)-r < frameSize {
			l.nheld = copy(l.held[:], p[r:])
			break
		}
		h := frame(p[r : r+frameSize])
		r += frameSize
		pass, abuse := l.inboundLocked(h)
		if abuse != nil {
			return 0, abuse
		}
		if pass {
			w += copy(p[w:], h)
		}
	}
	return w, nil
}

// readFailed notes why reading ended.
func (l *link) readFailed(err error) error {
	if fault, ok := errors.AsType[*websocket.ProtocolError](err); ok {
		l.mu.Lock()
		l.blameLocked(&AbuseError{Reason: AbuseWebSocket, Detail: fault.Reason})
		l.mu.Unlock()
		l.report()
		return err
	}
	if errors.Is(err, io.EOF) {
		err = errPeerClosed // must not be taken for the end of a stream
	}
	l.mu.Lock()
	if l.cause == nil {
		l.cause = err
	}
	l.mu.Unlock()
	return err
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
	if l.cause == nil {
		l.cause = cause
	}
	l.broken = true
	l.stopLocked()
	l.mu.Unlock()
	// An error says only that the socket is closed already.
	_ = l.ws.Reset()
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

// Close is called by yamux when its session ends, and by the handshake. What is pending is sent first, unless the
// session is broken or the peer takes too long. A classic session ends with a reset.
func (l *link) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		<-l.done
		return nil
	}
	l.closed = true
	l.stopLocked()
	if l.cause == nil {
		l.cause = errEnded
	}
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
	l.endFlows()
	close(l.done)
	return nil
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

// spawn runs f in a goroutine that wait waits for, unless the session has ended.
func (l *link) spawn(f func()) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	l.jobs.Go(f)
	return true
}
