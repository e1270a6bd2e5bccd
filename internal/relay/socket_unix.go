//go:build unix

package relay

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"

	"github.com/pikoproxy/piko/internal/socket"
)

// socketSource reads from a socket of the kernel, which tells when there is something to read: it borrows a buffer only
// then, and none is held while it waits.
type socketSource struct {
	raw   syscall.RawConn
	try   func(fd uintptr) bool // attempt, bound once
	class int
	buf   *[]byte
	n     int
	err   error
}

// newSocketSource returns nil when conn is not a bare socket. Types that embed one are none: their Read may do more.
func newSocketSource(conn net.Conn) source {
	raw := rawSocket(conn)
	if raw == nil {
		return nil
	}
	s := &socketSource{raw: raw}
	s.try = s.attempt
	return s
}

// rawSocket returns nil when conn is not a bare socket, or is closed.
func rawSocket(conn net.Conn) syscall.RawConn {
	var raw syscall.RawConn
	var err error
	switch c := socket.Bare(conn).(type) {
	case *net.TCPConn:
		raw, err = c.SyscallConn()
	case *net.UnixConn:
		raw, err = c.SyscallConn()
	default:
		return nil
	}
	if err != nil { // closed already; an ordinary read or write will say so
		return nil
	}
	return raw
}

// attempt reads from fd, and reports false when there is nothing to read yet.
func (s *socketSource) attempt(fd uintptr) bool {
	s.buf = borrow(s.class)
	if s.n, s.err = socket.Read(fd, *s.buf); errors.Is(s.err, syscall.EAGAIN) {
		s.release()
		return false
	}
	return true
}

func (s *socketSource) next() ([]byte, error) {
	s.n, s.err = 0, nil
	if err := s.raw.Read(s.try); err != nil {
		return nil, err
	}
	switch {
	case s.err != nil:
		s.n = 0
		return nil, os.NewSyscallError("read", s.err)
	case s.n == 0:
		return nil, io.EOF
	}
	return (*s.buf)[:s.n], nil
}

func (s *socketSource) release() {
	if s.buf == nil {
		return
	}
	giveBack(s.class, s.buf)
	s.buf = nil
	if s.n > 0 {
		s.class = grown(s.class, s.n)
	}
}

// socketTrier writes to a socket of the kernel, but never waits for it.
type socketTrier struct {
	raw  syscall.RawConn
	try  func(fd uintptr) bool // attempt, bound once
	data []byte
	n    int
	err  error
}

// newSocketTrier returns nil when conn is not a bare socket. Types that embed one are none: their Write may do more.
func newSocketTrier(conn net.Conn) *socketTrier {
	raw := rawSocket(conn)
	if raw == nil {
		return nil
	}
	t := &socketTrier{raw: raw}
	t.try = t.attempt
	return t
}

// attempt writes to fd once.
func (t *socketTrier) attempt(fd uintptr) bool {
	t.n, t.err = socket.Write(fd, t.data)
	return true
}

// write returns how much of p the socket has taken at once, and what it was told.
func (t *socketTrier) write(p []byte) (int, error) {
	t.data, t.n, t.err = p, 0, nil
	err := t.raw.Write(t.try)
	t.data = nil
	if err == nil {
		err = t.err
	}
	return t.n, err
}
