//go:build unix

package websocket

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"

	kernel "github.com/pikoproxy/piko/internal/socket"
)

// socket reads from a socket of the kernel, which tells when there is something to read: a buffer is borrowed only then.
type socket struct {
	raw syscall.RawConn
	try func(fd uintptr) bool // attempt, bound once
	buf *buffer
	n   int
	err error
}

// newSocket returns nil when conn is not a bare TCP socket. Types that wrap one are none: their Read may do more.
func newSocket(conn net.Conn) *socket {
	tcp := bare(conn)
	if tcp == nil {
		return nil
	}
	raw, err := tcp.SyscallConn()
	if err != nil { // closed already; an ordinary read will say so
		return nil
	}
	s := &socket{raw: raw}
	s.try = s.attempt
	return s
}

// attempt reads from fd, and reports false when there is nothing to read yet.
func (s *socket) attempt(fd uintptr) bool {
	buf := buffers.Get().(*buffer)
	if s.n, s.err = kernel.Read(fd, buf.bytes[:]); errors.Is(s.err, syscall.EAGAIN) {
		buffers.Put(buf)
		return false
	}
	s.buf = buf
	return true
}

// read waits for bytes and returns them in a buffer that the caller gives back; nil with an error.
func (s *socket) read() (*buffer, int, error) {
	err := s.raw.Read(s.try)
	buf := s.buf
	s.buf = nil
	switch {
	case err != nil:
	case s.err != nil:
		err = os.NewSyscallError("read", s.err)
	case s.n == 0:
		err = io.EOF
	default:
		return buf, s.n, nil
	}
	if buf != nil {
		buffers.Put(buf)
	}
	return nil, 0, err
}

// nudge writes to a socket of the kernel, but never waits for it.
type nudge struct {
	raw  syscall.RawConn
	try  func(fd uintptr) bool // attempt, bound once
	data []byte
	n    int
}

// newNudge returns nil when conn is not a bare TCP socket, or is closed.
func newNudge(conn net.Conn) *nudge {
	tcp := bare(conn)
	if tcp == nil {
		return nil
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return nil
	}
	w := &nudge{raw: raw}
	w.try = w.attempt
	return w
}

// attempt writes to fd once.
func (w *nudge) attempt(fd uintptr) bool {
	w.n, _ = kernel.Write(fd, w.data)
	return true
}

// write returns how much of p the socket has taken at once.
func (w *nudge) write(p []byte) int {
	w.data, w.n = p, 0
	_ = w.raw.Write(w.try) // what is wrong with the socket, an ordinary write will say
	w.data = nil
	return w.n
}
