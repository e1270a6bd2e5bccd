package tunnel

import (
	"errors"
	"io"
	"net"
	"os"
	"sync/atomic"
	"time"

	"github.com/hashicorp/yamux"
)

// State of a Stream, as far as this end is concerned.
const (
	stateClosed = 1 << iota // by Close
	stateReset              // by Reset
)

// Stream is one byte stream of a session. It is a [net.Conn] with half-close and reset. Reads by one goroutine, writes by
// one goroutine and everything else by any may go on at the same time.
//
// Whatever is not an orderly end by the far end's CloseWrite or Close is an error, never [io.EOF]: ErrReset, or an error
// that wraps ErrSessionClosed. Deadlines give [os.ErrDeadlineExceeded]; they bound waiting for the far end, not for the
// socket, which the session watches.
type Stream struct {
	ys        *yamux.Stream
	l         *link
	f         *flow
	session   string
	closeWait time.Duration
	read      atomic.Int64
	state     atomic.Uint32
}

// SessionID is the ID of the session that the stream belongs to.
func (s *Stream) SessionID() string { return s.session }

// LocalAddr is that of the session's connection.
func (s *Stream) LocalAddr() net.Addr { return s.l.LocalAddr() }

// RemoteAddr is that of the session's connection.
func (s *Stream) RemoteAddr() net.Addr { return s.l.RemoteAddr() }

// Read reads what the far end has written, and returns [io.EOF] once that has ended its direction.
func (s *Stream) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if err := s.usable(); err != nil {
		return 0, err
	}
	n, err := s.ys.Read(p)
	if n > 0 {
		s.read.Add(int64(n))
	}
	if err != nil {
		err = s.explain(err)
	}
	return n, err
}

// Write writes p in frames of at most 32 KiB. It returns before the bytes have reached the socket, and blocks while the
// far end's window is used up or the session has more to send than it may hold.
func (s *Stream) Write(p []byte) (int, error) {
	total := 0
	for total < len(p) {
		if err := s.usable(); err != nil {
			return total, err
		}
		n, err := s.ys.Write(p[total:min(total+maxFrame, len(p))])
		total += n
		if err != nil {
			return total, s.explain(err)
		}
	}
	return total, nil
}

// usable returns the error for what this end has closed or reset.
func (s *Stream) usable() error {
	switch state := s.state.Load(); {
	case state&stateReset != 0:
		return ErrReset
	case state&stateClosed != 0:
		return net.ErrClosed
	}
	return nil
}

// explain turns an error of yamux into ours.
func (s *Stream) explain(err error) error {
	if own := s.usable(); own != nil {
		return own
	}
	switch {
	case errors.Is(err, io.EOF):
		// yamux reports the end of the session as the end of the stream too.
		if !s.ys.Session().IsClosed() || s.l.ended(s.f) {
			return io.EOF
		}
		return s.l.reason()
	case errors.Is(err, yamux.ErrTimeout):
		return os.ErrDeadlineExceeded
	case errors.Is(err, yamux.ErrConnectionReset):
		return ErrReset
	case errors.Is(err, yamux.ErrConnectionWriteTimeout):
		// The frame may or may not be sent later, so nobody knows any more what the windows are.
		s.l.fail(err)
		return s.l.reason()
	case errors.Is(err, yamux.ErrStreamClosed) && !s.ys.Session().IsClosed():
		return net.ErrClosed // after CloseWrite
	}
	return s.l.reason()
}

// CloseWrite ends our direction; reading goes on for as long as the far end likes.
func (s *Stream) CloseWrite() error {
	if err := s.usable(); err != nil {
		return err
	}
	return s.ys.Close()
}

// Close ends our direction in order, after what was written, and discards what the far end still sends. If that does not end
// its own direction soon, the stream is reset.
func (s *Stream) Close() error {
	if s.state.Or(stateClosed)&(stateClosed|stateReset) != 0 {
		return nil
	}
	err := s.ys.Close()
	s.l.abandon(s.f, s.closeWait)
	s.interrupt()
	return err
}

// Reset ends the stream at once. Unsent data is dropped, the far end gets ErrReset.
func (s *Stream) Reset() error {
	if s.state.Or(stateReset)&stateReset != 0 {
		return nil
	}
	s.l.reset(s.f)
	s.interrupt()
	return nil
}

// interrupt wakes a Read or Write that waits for the far end.
func (s *Stream) interrupt() {
	// It never fails.
	_ = s.ys.SetDeadline(time.Unix(1, 0))
}

// SetDeadline sets both deadlines.
func (s *Stream) SetDeadline(t time.Time) error {
	if err := s.SetReadDeadline(t); err != nil {
		return err
	}
	return s.SetWriteDeadline(t)
}

// SetReadDeadline sets the deadline of Read, that of a blocked one too. A passed deadline does not keep Read from returning
// what has already arrived.
func (s *Stream) SetReadDeadline(t time.Time) error {
	if err := s.usable(); err != nil {
		return err
	}
	if err := s.ys.SetReadDeadline(t); err != nil {
		return err
	}
	s.uphold()
	return nil
}

// SetWriteDeadline sets the deadline of Write, that of a blocked one too. A passed deadline does not keep Write from filling
// the far end's window.
func (s *Stream) SetWriteDeadline(t time.Time) error {
	if err := s.usable(); err != nil {
		return err
	}
	if err := s.ys.SetWriteDeadline(t); err != nil {
		return err
	}
	s.uphold()
	return nil
}

// uphold repeats the interruption by a Close or Reset that came while a deadline was being set.
func (s *Stream) uphold() {
	if s.state.Load() != 0 {
		s.interrupt()
	}
}

// Idle reports whether the stream could carry the next exchange: open both ways, and everything received has been read. It
// is cheap.
func (s *Stream) Idle() bool { return s.state.Load() == 0 && s.l.quiet(s.f, s.read.Load()) }

// Shrink gives up the receive buffer if it is empty. Call it before a stream is put aside.
func (s *Stream) Shrink() { s.ys.Shrink() }
