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
	raw      syscall.RawConn
	receiver socket.Receiver
	doubt    doubt
	class    int
	take     func(data []byte) bool
	err      error
}

// newSocketSource returns nil when conn is not a bare socket. Types that embed one are none: their Read may do more.
func newSocketSource(conn net.Conn) source {
	raw := rawSocket(conn)
	if raw == nil {
		return nil
	}
	return &socketSource{raw: raw, doubt: doubt{tcp: beneath(conn)}}
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

// each takes what it reads inside of the wait for the socket, and not between two waits: so it learns also of what comes
// meanwhile, and does not have to look. The socket is not closed as long as something is being taken, and who closes it waits.
func (s *socketSource) each(take func(data []byte) bool) error {
	s.take, s.err = take, nil
	defer s.doubt.end()
	for {
		err := s.raw.Read(s.drain)
		switch {
		case s.doubt.raised(err):
			continue // read once more
		case err != nil:
			return err
		case errors.Is(s.err, io.EOF):
			return nil
		}
		return s.err
	}
}

// drain takes what there is, and reports false when more is to be waited for.
func (s *socketSource) drain(fd uintptr) bool {
	for {
		buf := borrow(s.class)
		n, dry, err := s.receiver.Receive(fd, *buf)
		on := n > 0 && s.take((*buf)[:n])
		giveBack(s.class, buf)
		switch {
		case errors.Is(err, syscall.EAGAIN):
			return false
		case err != nil:
			s.err = os.NewSyscallError("read", err)
			return true
		case n == 0:
			s.err = io.EOF
			return true
		case !on:
			return true
		}
		s.class = grown(s.class, n)
		if dry {
			s.doubt.arise()
			return false
		}
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
