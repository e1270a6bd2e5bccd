package guard

import (
	"errors"
	"fmt"
	"net"
	"time"
)

// maxHandshakeBytes bounds what a client sends before it is known who it is: a chain of certificates of 64 KiB, and half as
// much for everything else.
const maxHandshakeBytes = 96 << 10

var (
	errNoTurn        = errors.New("too many handshakes at once: its turn did not come in time")
	errLongHandshake = fmt.Errorf("more than %d bytes before the end of the handshake", maxHandshakeBytes)
)

// Turns says how many TLS handshakes are worked on at once.
type Turns interface {
	// Take waits for a turn, until a time or until stop is closed, and reports whether it has come. A handshake that goes
	// on comes before one that begins: it has cost something already.
	Take(until time.Time, stop <-chan struct{}, goesOn bool) bool
	// Give gives a turn back.
	Give()
}

// shaking is a connection below TLS. During the handshake it has a turn from when something has come from the client until
// something is sent to it: while there is work to do, and never while it waits for the client. A client that is slow, or does
// not go on at all, so keeps nobody from anything. Afterwards it passes everything on.
type shaking struct {
	net.Conn
	turns  Turns // nil: no turns are needed
	until  time.Time
	stop   <-chan struct{}
	come   int  // bytes
	begun  bool // it has had a turn
	turn   bool // it has one
	lapsed bool // it should have one, and has not got it
	over   bool // set by the goroutine of the handshake, before others know the connection
}

// Read reads from the client, and waits for a turn to do something with it.
func (c *shaking) Read(p []byte) (int, error) {
	if c.over {
		return c.Conn.Read(p)
	}
	if c.lapsed {
		return 0, errNoTurn
	}
	c.give()
	n, err := c.Conn.Read(p)
	if c.come += n; c.come > maxHandshakeBytes {
		return 0, errLongHandshake
	}
	if n > 0 && !c.take() {
		return 0, errNoTurn
	}
	return n, err
}

// Write writes to the client, whose turn it then is.
func (c *shaking) Write(p []byte) (int, error) {
	if !c.over {
		if c.lapsed {
			return 0, errNoTurn
		}
		c.give()
	}
	return c.Conn.Write(p)
}

func (c *shaking) take() bool {
	if c.turns == nil || c.turn {
		return true
	}
	c.turn = c.turns.Take(c.until, c.stop, c.begun)
	c.begun, c.lapsed = true, !c.turn
	return c.turn
}

func (c *shaking) give() {
	if c.turn {
		c.turn = false
		c.turns.Give()
	}
}

// Rest gives the turn back while the handshake waits for something else than its client, as is a certificate that is only
// being ordered. It goes on when the function returned has returned. Only what crypto/tls calls during the handshake may call it.
func (c *shaking) Rest() (resume func()) {
	if c.over || !c.turn {
		return func() {}
	}
	c.give()
	return func() { c.take() } // without a turn the next read or write fails
}

// finish ends the handshake.
func (c *shaking) finish() {
	c.give()
	c.over = true
}

// NetConn returns the connection below.
func (c *shaking) NetConn() net.Conn { return c.Conn }

// Bare returns the connection below, which may be read and written without this one: nobody knows the connection before its
// handshake is over.
func (c *shaking) Bare() net.Conn { return c.Conn }

// CloseWrite ends our direction.
func (c *shaking) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

// Reset closes the connection in a way that no end can take for a regular one.
func (c *shaking) Reset() error {
	if own, ok := c.Conn.(interface{ Reset() error }); ok {
		return own.Reset()
	}
	if tcp, ok := c.Conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // fails only on a closed socket
	}
	return c.Conn.Close()
}
