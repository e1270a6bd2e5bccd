//go:build unix

package socket

import (
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
)

// most is how many bytes a call copies at most: a read of 128 KiB with what frames it on its way.
const most = 144 << 10

// Read reads from a socket that does not block, as the functions do that [syscall.RawConn] calls. It is recv(2), but for
// signals: the error is never EINTR. It reads no more than 144 KiB.
func Read(fd uintptr, p []byte) (int, error) {
	n, errno := readFrom(fd, p)
	if errno != 0 {
		return 0, errno
	}
	return n, nil
}

// Write is likewise send(2). It writes no more than 144 KiB.
func Write(fd uintptr, p []byte) (int, error) {
	n, errno := writeTo(fd, p)
	if errno != 0 {
		return 0, errno
	}
	return n, nil
}

func readFrom(fd uintptr, p []byte) (n int, errno syscall.Errno) {
	for {
		if n, errno = read(fd, p); errno != syscall.EINTR {
			return n, errno
		}
	}
}

// writeBoth is writeTo for two pieces, of which some may be left to be written.
func (j *joint) writeBoth(fd uintptr, head, p []byte) (n int, errno syscall.Errno) {
	for {
		if n, errno = j.write(fd, head, p); errno != syscall.EINTR {
			return n, errno
		}
	}
}

func writeTo(fd uintptr, p []byte) (n int, errno syscall.Errno) {
	for {
		if n, errno = write(fd, p); errno != syscall.EINTR {
			return n, errno
		}
	}
}

// Conn is a connection whose socket is read and written by this package. It is made by [Wrap].
//
// As with any connection of package net, its methods may be called at any time from any goroutine; reads take turns, and so
// do writes.
type Conn struct {
	net.Conn // as it was given
	socket   net.Conn
	in, out  direction
	polite   atomic.Bool // see GiveWay
}

// direction is what there is to be read, or written.
type direction struct {
	raw  syscall.RawConn
	try  func(fd uintptr) bool // bound once
	turn sync.Mutex            // guards the following
	head []byte                // to be written before p
	p    []byte
	n    int
	err  syscall.Errno
	both *joint // for head and p; made by the first such write
}

func wrap(conn net.Conn) *Conn {
	var raw syscall.RawConn
	var err error
	below := conn
	for above, ok := below.(interface{ Bare() net.Conn }); ok; above, ok = below.(interface{ Bare() net.Conn }) {
		if _, done := below.(*Conn); done {
			return nil
		}
		below = above.Bare()
	}
	switch s := below.(type) {
	case *net.TCPConn:
		raw, err = s.SyscallConn()
	case *net.UnixConn:
		raw, err = s.SyscallConn()
	default:
		return nil
	}
	if err != nil { // closed already; an ordinary call will say so
		return nil
	}
	c := &Conn{Conn: conn, socket: below}
	c.in.raw, c.in.try = raw, c.in.read
	c.out.raw, c.out.try = raw, c.out.write
	return c
}

// read is called with the socket until it reports true: there was something to read.
func (d *direction) read(fd uintptr) bool {
	d.n, d.err = readFrom(fd, d.p)
	return d.err != syscall.EAGAIN
}

// write is likewise for writing: all was written, or that went wrong.
func (d *direction) write(fd uintptr) bool {
	for len(d.head) > 0 {
		n, errno := d.both.writeBoth(fd, d.head, d.p)
		if d.err = errno; errno != 0 {
			return errno != syscall.EAGAIN
		}
		ahead := min(n, len(d.head))
		d.head, d.n = d.head[ahead:], n-ahead
	}
	for d.n < len(d.p) {
		n, errno := writeTo(fd, d.p[d.n:])
		if d.err = errno; errno != 0 {
			return errno != syscall.EAGAIN
		}
		d.n += n
	}
	return true
}

// Waiting reports whether a read of conn would have something to return: bytes have come, or their end. It takes nothing of
// it, and asks the socket below all layers that tell what is below them by a method NetConn() [net.Conn]; what they
// hold themselves it does not know of. Deadlines do not matter. If there is no open socket to ask, it reports true.
func Waiting(conn net.Conn) bool {
	below := Bare(conn)
	for {
		layer, ok := below.(interface{ NetConn() net.Conn })
		if !ok {
			break
		}
		below = Bare(layer.NetConn())
	}
	s, ok := below.(syscall.Conn)
	if !ok {
		return true
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return true
	}
	var look error
	err = raw.Control(func(fd uintptr) {
		for look = syscall.EINTR; errors.Is(look, syscall.EINTR); {
			_, _, look = syscall.Recvfrom(int(fd), make([]byte, 1), syscall.MSG_PEEK)
		}
	})
	return err != nil || !errors.Is(look, syscall.EAGAIN)
}

// Read implements [net.Conn].
func (c *Conn) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	d := &c.in
	d.turn.Lock()
	defer d.turn.Unlock()
	d.p, d.n, d.err = p, 0, 0
	err := d.raw.Read(d.try)
	d.p = nil
	switch {
	case err != nil:
		return 0, c.failed("read", err)
	case d.err != 0:
		return 0, c.failed("read", os.NewSyscallError("read", d.err))
	case d.n == 0:
		return 0, io.EOF
	}
	return d.n, nil
}

// Write implements [net.Conn].
func (c *Conn) Write(p []byte) (int, error) { return c.WriteAfter(nil, p) }

// WriteAfter implements [Joiner].
func (c *Conn) WriteAfter(head, p []byte) (int, error) {
	if len(p) == 0 {
		head, p = nil, head
	}
	if len(p) == 0 {
		return 0, nil
	}
	if c.polite.Load() {
		runtime.Gosched()
	}
	d := &c.out
	d.turn.Lock()
	defer d.turn.Unlock()
	d.head, d.p, d.n, d.err = head, p, 0, 0
	if len(head) > 0 && d.both == nil {
		d.both = new(joint)
	}
	err := d.raw.Write(d.try)
	d.head, d.p = nil, nil
	switch {
	case err != nil:
		return d.n, c.failed("write", err)
	case d.err != 0:
		return d.n, c.failed("write", os.NewSyscallError("write", d.err))
	}
	return d.n, nil
}

func (c *Conn) giveWay() { c.polite.Store(true) }

// GivesWay reports whether [GiveWay] was called.
func (c *Conn) GivesWay() bool { return c.polite.Load() }

// failed is an error as package net words it.
func (c *Conn) failed(op string, err error) error {
	if e := (*net.OpError)(nil); errors.As(err, &e) { // of the raw connection
		err = e.Err
	}
	from, to := c.socket.LocalAddr(), c.socket.RemoteAddr()
	return &net.OpError{Op: op, Net: from.Network(), Source: from, Addr: to, Err: err}
}

// NetConn returns the connection as it was given.
func (c *Conn) NetConn() net.Conn { return c.Conn }

// Bare returns the socket, which may be read and written without this, but not closed.
func (c *Conn) Bare() net.Conn { return c.socket }

// CloseWrite ends our direction.
func (c *Conn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}

// Reset closes the connection in a way that no end can take for a regular one.
func (c *Conn) Reset() error {
	if own, ok := c.Conn.(interface{ Reset() error }); ok {
		return own.Reset()
	}
	if tcp, ok := c.socket.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // fails only on a closed socket
	}
	return c.Close()
}
