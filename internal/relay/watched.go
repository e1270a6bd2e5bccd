package relay

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"syscall"

	"github.com/pikoproxy/piko/internal/socket"
)

// watched is a connection over TCP whose Read does not take a reset for an end.
//
// The kernel tells of a reset once. If it is told to who writes, who reads afterwards finds what looks like the end of all
// that was sent.
type watched struct {
	net.Conn
	tcp *net.TCPConn // what it goes over

	mu    sync.Mutex // held by each write, so that what it was told is known before the end is believed
	reset bool       // guarded by mu: a write was told that the peer has broken the connection off

	try *socketTrier // for TryWrite; guarded by mu; nil: there is none yet, or can't be
}

// Watch returns a connection to take in place of conn, whose end is one: a reset by the peer is an error also to who reads
// after somebody else's write has met it. A conn that does not go over TCP is returned as it is.
func Watch(conn net.Conn) net.Conn {
	if w := watch(conn); w != nil {
		return w
	}
	return conn
}

// watch returns nil when conn does not go over TCP.
func watch(conn net.Conn) *watched {
	if w, ok := conn.(*watched); ok {
		return w
	}
	if tcp := beneath(conn); tcp != nil {
		return &watched{Conn: socket.Wrap(conn), tcp: tcp}
	}
	return nil
}

// beneath returns the socket that conn goes over, or nil.
func beneath(conn net.Conn) *net.TCPConn {
	switch c := conn.(type) {
	case *net.TCPConn:
		return c
	case *tls.Conn:
		return beneath(c.NetConn())
	case interface{ Bare() net.Conn }:
		return beneath(c.Bare())
	}
	return nil
}

// Write notes what it is told.
func (w *watched) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n, err := w.Conn.Write(b)
	if errors.Is(err, syscall.ECONNRESET) {
		w.reset = true
	}
	return n, err
}

// TryWrite writes what it can of b without waiting, and returns how much that is. It notes what it is told.
func (w *watched) TryWrite(b []byte) int {
	if !w.mu.TryLock() {
		return 0
	}
	defer w.mu.Unlock()
	if w.try == nil {
		w.try = newSocketTrier(w.Conn)
	}
	if w.try == nil {
		return 0
	}
	n, err := w.try.write(b)
	if errors.Is(err, syscall.ECONNRESET) {
		w.reset = true
	}
	return n
}

// Read implements net.Conn.
func (w *watched) Read(b []byte) (int, error) {
	n, err := w.Conn.Read(b)
	if errors.Is(err, io.EOF) {
		err = w.end()
	}
	return n, err
}

// end returns what an end means that was read: io.EOF, or an error when it is none. A connection that only ended in the
// direction that was read is not dead, and a write to it, which may take long, is not waited for; on one that is dead no write
// waits.
func (w *watched) end() error {
	if !dead(w.tcp) {
		return io.EOF
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.reset {
		return &net.OpError{Op: "read", Net: "tcp", Source: w.LocalAddr(), Addr: w.RemoteAddr(), Err: syscall.ECONNRESET}
	}
	return io.EOF
}

// CloseWrite ends the own direction.
func (w *watched) CloseWrite() error { return endWrite(w.Conn) }

// Reset breaks the connection off.
func (w *watched) Reset() error {
	Abort(w.Conn)
	return nil
}

// Bare is what it watches.
func (w *watched) Bare() net.Conn { return w.Conn }
