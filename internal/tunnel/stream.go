package tunnel

import (
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// Stream is one byte stream of a session. It is a [net.Conn] with half-close and reset. Its methods may be called by any
// goroutine; reads take turns, and so do writes.
//
// Whatever is not an orderly end by the far end's CloseWrite or Close is an error, never [io.EOF]: ErrReset, or an error
// that wraps ErrSessionClosed. What had come before is read first, unless this end has reset the stream: the session does
// when the stream holds most of too much that nobody reads. Deadlines give
// [os.ErrDeadlineExceeded]; they bound waiting for the far end, not for the socket, which the session watches.
type Stream struct {
	l       *link
	id      uint32
	local   bool // opened here
	rmu     sync.Mutex
	wmu     sync.Mutex
	rwake   chan struct{} // has room for one; wakes a Read
	wwake   chan struct{} // likewise, for a Write
	clogged bool          // its sink has not taken everything; of the goroutine that reads

	// The link's mu guards the following.
	placed  bool // counted as not acknowledged
	acked   bool
	finIn   bool   // the far end has ended its direction
	finOut  bool   // we have ended ours
	gone    bool   // no frame of it is expected or sent any more
	closed  bool   // by Close: what comes is not wanted
	reset   bool   // by Reset
	rstIn   bool   // by the far end
	lost    bool   // what was unread, for want of memory
	cut     bool   // by the end of the session
	owing   bool   // in the link's list of those
	greet   uint16 // SYN or ACK, until it is sent
	recv    int64
	send    int64
	unread  int64 // of what was announced
	in      queue
	dst     []byte           // of a Read that waits
	got     int              // how much came into it
	sink    func([]byte) int // of a WriteTo that waits
	passing bool             // something is given to it
	flight  int              // how much
	rlimit  deadline
	wlimit  deadline
	timer   *time.Timer // resets a closed stream
}

// signal wakes who waits, or who will.
func signal(wake chan struct{}) {
	select {
	case wake <- struct{}{}:
	default: // there is one already
	}
}

// SessionID is the ID of the session that the stream belongs to.
func (s *Stream) SessionID() string { return s.l.id }

// LocalAddr is that of the session's connection.
func (s *Stream) LocalAddr() net.Addr { return s.l.ws.LocalAddr() }

// RemoteAddr is that of the session's connection.
func (s *Stream) RemoteAddr() net.Addr { return s.l.ws.RemoteAddr() }

// Read reads what the far end has written, and returns [io.EOF] once that has ended its direction.
func (s *Stream) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	s.rmu.Lock()
	defer s.rmu.Unlock()
	l := s.l
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		if err := s.usableLocked(); err != nil {
			return 0, err
		}
		if s.in.size > 0 {
			n := s.in.take(p)
			s.consumedLocked(n)
			return n, nil
		}
		if err := s.endLocked(); err != nil {
			return 0, err
		}
		if s.rlimit.passed() {
			return 0, os.ErrDeadlineExceeded
		}
		s.dst, s.got = p, 0
		l.mu.Unlock()
		<-s.rwake
		l.mu.Lock()
		s.dst = nil
		if n := s.got; n > 0 {
			s.got = 0
			n += s.in.take(p[n:])
			s.consumedLocked(n)
			return n, nil
		}
	}
}

// consumedLocked notes that n bytes were read. The caller holds mu.
func (s *Stream) consumedLocked(n int) {
	s.countLocked(n)
	if !s.gone && !s.finIn && s.greet == 0 && s.grantLocked() >= s.limitLocked()/2 {
		s.l.creditLocked(s)
		s.l.kickLocked(false)
	}
}

// countLocked notes that n bytes are no longer held. The caller holds mu.
func (s *Stream) countLocked(n int) {
	s.unread -= int64(n)
	if s != s.l.control {
		s.l.held -= int64(n)
		s.l.settleLocked()
	}
	if !s.gone || s.unread > 0 {
		return
	}
	if delete(s.l.finished, s); len(s.l.finished) == 0 {
		s.l.finished = nil // maps do not shrink
	}
}

// answer is what an opening end knows of the answer to a stream.
type answer int

const (
	undecided answer = iota
	accepted         // and the answer is read
	worded           // the answer is longer, or may be
	ended            // there was none
)

// answer looks for the answer to a stream that was opened here. That of a classic one is its acknowledgement.
func (s *Stream) answer(classic bool) answer {
	s.l.mu.Lock()
	defer s.l.mu.Unlock()
	switch c := s.in.head; {
	case classic && s.acked && !s.gone:
		return accepted
	case !classic && s.in.size >= 2:
		if c.w-c.r < 2 || c.b[c.r] != 0 || c.b[c.r+1] != 0 {
			return worded
		}
		var two [2]byte
		s.consumedLocked(s.in.take(two[:]))
		return accepted
	case s.gone || s.finIn:
		return ended
	}
	return undecided
}

// usableLocked returns the error for what this end has closed or reset. The caller holds the link's mu.
func (s *Stream) usableLocked() error {
	switch {
	case s.reset:
		return ErrReset
	case s.closed:
		return net.ErrClosed
	}
	return nil
}

// endLocked returns how the far end's direction has ended, nil if it has not. The caller holds the link's mu.
func (s *Stream) endLocked() error {
	switch {
	case s.lost:
		return ErrUnread
	case s.finIn:
		return io.EOF
	case s.rstIn:
		return ErrReset
	case s.cut:
		return s.l.causeLocked()
	}
	return nil
}

// Write writes p in frames of at most 32 KiB. It may return before the bytes have reached the socket, and blocks while the
// far end's window is used up or the session has more to send than it may hold.
func (s *Stream) Write(p []byte) (int, error) {
	s.wmu.Lock()
	defer s.wmu.Unlock()
	total := 0
	for total < len(p) {
		n, d, err := s.writeSome(p[total:])
		total += n
		if d.turn != 0 {
			s.l.flushHere(d)
		}
		if err != nil {
			return total, err
		}
	}
	return total, nil
}

// writeSome queues frames with the beginning of p once there is room for one, and tells whether the caller is to send them.
func (s *Stream) writeSome(p []byte) (n int, d duty, err error) {
	l := s.l
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		if err := s.writableLocked(); err != nil {
			return 0, duty{}, err
		}
		n = min(len(p), maxFrame, int(s.send))
		full := l.fullLocked(n)
		if n > 0 && !full {
			break
		}
		if s.wlimit.passed() {
			return 0, duty{}, os.ErrDeadlineExceeded
		}
		var room <-chan struct{}
		if n > 0 {
			room = l.awaitRoomLocked()
		}
		l.mu.Unlock()
		select {
		case <-s.wwake:
		case <-room:
		}
		l.mu.Lock()
	}
	s.dataLocked(p[:n])
	for n < len(p) {
		more := min(len(p)-n, maxFrame, int(s.send))
		if more == 0 || l.fullLocked(more) {
			break
		}
		s.dataLocked(p[n : n+more])
		n += more
	}
	return n, l.kickLocked(true), nil
}

// dataLocked queues a frame with p, for which there is room. The caller holds the link's mu, and kicks.
func (s *Stream) dataLocked(p []byte) {
	s.send -= int64(len(p))
	s.l.greetLocked(s)
	h := makeFrame(kindData, 0, s.id, uint32(len(p))) //nolint:gosec // at most maxFrame
	s.l.appendLocked(h[:], p)
	s.l.frames++
}

// writableLocked returns why nothing can be written any more. The caller holds the link's mu.
func (s *Stream) writableLocked() error {
	if err := s.usableLocked(); err != nil {
		return err
	}
	switch {
	case s.finOut:
		return net.ErrClosed
	case s.lost:
		return ErrUnread
	case s.rstIn:
		return ErrReset
	case s.cut, s.l.closed, s.l.broken:
		return s.l.causeLocked()
	}
	return nil
}

// CloseWrite ends our direction; reading goes on for as long as the far end likes.
func (s *Stream) CloseWrite() error {
	s.l.mu.Lock()
	defer s.l.mu.Unlock()
	if err := s.usableLocked(); err != nil {
		return err
	}
	s.finishLocked()
	return nil
}

// finishLocked ends our direction. The caller holds the link's mu.
func (s *Stream) finishLocked() {
	if s.finOut || s.gone {
		return
	}
	s.finOut = true
	s.l.greetLocked(s)
	h := makeFrame(kindWindow, flagFIN, s.id, 0)
	s.l.queueLocked(h[:])
	signal(s.wwake)
	if s.finIn {
		s.l.forgetLocked(s)
	}
}

// Close ends our direction in order, after what was written, and discards what the far end still sends. If that does not end
// its own direction soon, the stream is reset.
func (s *Stream) Close() error {
	l := s.l
	l.mu.Lock()
	defer l.mu.Unlock()
	if s.closed || s.reset {
		return nil
	}
	s.finishLocked()
	s.closed = true
	s.abandonLocked()
	if !s.gone && !l.closed && !l.broken {
		s.timer = time.AfterFunc(l.closeWait, func() { l.reset(s) })
	}
	return nil
}

// Reset ends the stream at once. What is unread is dropped, the far end gets ErrReset.
func (s *Stream) Reset() error {
	l := s.l
	l.mu.Lock()
	defer l.mu.Unlock()
	if s.reset {
		return nil
	}
	s.reset = true
	l.resetLocked(s)
	s.abandonLocked()
	return nil
}

// abandonLocked drops what is unread and wakes who waits. The caller holds the link's mu.
func (s *Stream) abandonLocked() {
	s.dropLocked()
	s.rlimit.stop()
	s.wlimit.stop()
	s.wakeLocked()
}

// dropLocked drops what is unread, also what a Read that is being woken has got. The caller holds the link's mu.
func (s *Stream) dropLocked() {
	s.countLocked(int(s.unread))
	s.got, s.flight = 0, 0
	s.in.drop()
}

// wakeLocked wakes a Read and a Write. The caller holds the link's mu.
func (s *Stream) wakeLocked() {
	signal(s.rwake)
	signal(s.wwake)
}

// Idle reports whether the stream could carry the next exchange: open both ways, and everything received has been read. It
// is cheap.
func (s *Stream) Idle() bool {
	s.l.mu.Lock()
	defer s.l.mu.Unlock()
	return !s.gone && !s.finIn && !s.finOut && s.unread == 0 && !s.closed && !s.l.closed && !s.l.broken
}
