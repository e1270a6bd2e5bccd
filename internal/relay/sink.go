package relay

import (
	"net"
	"sync/atomic"
)

// trier is a connection that can be asked not to wait. TryWrite writes what it can at once, and returns how much that is; the
// next Write tells what was wrong.
type trier interface {
	TryWrite(p []byte) int
}

// sink is where a source that writes itself puts its bytes. It counts them.
type sink struct {
	conn   net.Conn
	try    trier // nil: everything has to wait its turn
	count  *atomic.Int64
	failed error // of a Write
}

func newSink(conn net.Conn, count *atomic.Int64) *sink {
	s := &sink{conn: conn, count: count}
	if t, ok := conn.(trier); ok {
		s.try = t
	} else if t := newSocketTrier(conn); t != nil {
		s.try = t
	}
	return s
}

// TryWrite implements trier.
func (t *socketTrier) TryWrite(p []byte) int {
	n, _ := t.write(p)
	return n
}

// Write implements io.Writer.
func (s *sink) Write(p []byte) (int, error) {
	n, err := s.conn.Write(p)
	s.count.Add(int64(n))
	s.failed = err
	return n, err
}

// TryWrite writes what it can of p without waiting, and returns how much that is.
func (s *sink) TryWrite(p []byte) int {
	if s.try == nil {
		return 0
	}
	n := s.try.TryWrite(p)
	s.count.Add(int64(n))
	return n
}
