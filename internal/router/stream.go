package router

import (
	"bufio"
	"context"
	"errors"
	"net"
	"sync/atomic"
	"time"
)

// Stream is one exchange with an upstream: a [net.Conn] with a half-close, an abort, and a way back to the pool. It
// ends by exactly one of Release, Close and Reset; whichever comes first counts and the others then do nothing, so that
// deferring Close is right. Read and Write may be called from different goroutines, and Close and Reset from any.
type Stream struct {
	pooled *pooled
	reader *bufio.Reader
	reused bool
	probe  bool

	relayed string // the peer that keeps the stream for HTTP, if one does

	ended     atomic.Bool
	read      atomic.Bool // the service has sent something
	failed    atomic.Bool
	deadlines atomic.Bool // one was set and has to be cleared before the stream is kept
}

var _ net.Conn = (*Stream)(nil)

// Upstream tells whom the stream leads to.
func (s *Stream) Upstream() *Upstream { return s.pooled.upstream }

// Reused reports whether the stream has carried an exchange before. The service may have closed it meanwhile, so a
// reused stream that ends before the first byte of an answer says nothing about the health of the upstream.
func (s *Stream) Reused() bool { return s.reused }

// Reader returns the stream's buffered reader, made at the first call. Use it for all reading or for none. It must not
// be used after the stream has ended.
func (s *Stream) Reader() *bufio.Reader {
	if s.reader == nil {
		s.reader = s.router().readers.Get().(*bufio.Reader)
		s.reader.Reset(s)
	}
	return s.reader
}

// Conn is the connection below, which lives as long as the stream is kept. A protocol that keeps state between
// exchanges reads and writes here, and calls Attach.
func (s *Stream) Conn() Conn { return s.pooled.Conn }

// Attach keeps a value with the stream over all further exchanges. The router asks it whether the stream is usable
// instead of looking itself, and closes it before it closes the stream.
func (s *Stream) Attach(v State) { s.pooled.state = v }

// Attached is what Attach was given, in this exchange or an earlier one, or nil.
func (s *Stream) Attached() State { return s.pooled.state }

// Read reads from the service.
func (s *Stream) Read(p []byte) (int, error) {
	if s.ended.Load() {
		return 0, net.ErrClosed
	}
	n, err := s.pooled.Read(p)
	if n > 0 {
		s.heard()
	}
	return n, err
}

// heard notes that the service has sent something.
func (s *Stream) heard() {
	if s.read.Load() {
		return
	}
	s.read.Store(true)
	if s.probe {
		s.Upstream().answered()
	}
}

// Write writes to the service.
func (s *Stream) Write(p []byte) (int, error) {
	if s.ended.Load() {
		return 0, net.ErrClosed
	}
	return s.pooled.Write(p)
}

// CloseWrite says that no more bytes follow; reading goes on.
func (s *Stream) CloseWrite() error {
	if s.ended.Load() {
		return net.ErrClosed
	}
	s.pooled.pool = -1
	return s.pooled.CloseWrite()
}

// LocalAddr is this end of the session.
func (s *Stream) LocalAddr() net.Addr { return s.pooled.LocalAddr() }

// RemoteAddr is the far end of the session.
func (s *Stream) RemoteAddr() net.Addr { return s.pooled.RemoteAddr() }

// SetDeadline bounds reading and writing in this exchange.
func (s *Stream) SetDeadline(t time.Time) error {
	s.deadlines.Store(true)
	return s.pooled.SetDeadline(t)
}

// SetReadDeadline bounds reading in this exchange.
func (s *Stream) SetReadDeadline(t time.Time) error {
	s.deadlines.Store(true)
	return s.pooled.SetReadDeadline(t)
}

// SetWriteDeadline bounds writing in this exchange.
func (s *Stream) SetWriteDeadline(t time.Time) error {
	s.deadlines.Store(true)
	return s.pooled.SetWriteDeadline(t)
}

// Failed reports that the exchange failed through the upstream's fault: no answer, none in time, or one that can't be
// understood. It counts once, and not at all when the client has gone. The stream has to be ended all the same.
func (s *Stream) Failed(err error) {
	if errors.Is(err, context.Canceled) || s.failed.Swap(true) {
		return
	}
	s.Upstream().fault(s.probe)
}

// Release ends an exchange that both sides have finished cleanly: the request was written to its end, the answer read
// to its end, and nobody is reading or writing any more. An HTTP stream goes back to the pool, any other is closed.
func (s *Stream) Release() {
	if !s.end(true) {
		return
	}
	p := s.pooled
	clean := !s.failed.Load()
	if s.reader != nil {
		// Bytes after the end of the answer belong to no exchange; they must never reach another client.
		clean = clean && s.reader.Buffered() == 0
		s.reader.Reset(nil)
		s.router().readers.Put(s.reader)
	}
	if clean && s.deadlines.Load() {
		clean = p.SetDeadline(time.Time{}) == nil
	}
	if !clean {
		_ = p.abort() // the exchange itself ended well; there is nobody to tell
		return
	}
	u := p.upstream
	p.uses++
	if p.pool < 0 || u.gone() || p.worn() {
		p.drop()
		return
	}
	p.since = u.router.now()
	if !u.pools[p.pool].put(p) {
		p.drop()
		return
	}
	u.router.list(u)
}

// Close ends the exchange and the stream gracefully: what was written is still delivered.
func (s *Stream) Close() error {
	if !s.end(s.read.Load()) {
		return nil
	}
	return s.pooled.close()
}

// Reset aborts the stream: the far side sees it break.
func (s *Stream) Reset() error {
	if !s.end(false) {
		return nil
	}
	return s.pooled.abort()
}

// end settles the accounts of the exchange, once.
func (s *Stream) end(well bool) bool {
	if s.ended.Swap(true) {
		return false
	}
	u := s.Upstream()
	u.count(s.relayed, -1)
	if well && !s.failed.Load() {
		if s.probe {
			u.answered()
		}
		u.succeeded()
	}
	return true
}

func (s *Stream) router() *Router { return s.pooled.upstream.router }
