package limit

import (
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/pikoproxy/piko/internal/socket"
)

// conn is a connection that the gate knows of until it is closed. Package socket reads and writes it.
type conn struct {
	net.Conn
	gate    *Gate
	addr    netip.Addr
	counted bool
	gone    atomic.Bool
	patient atomic.Bool // the other end may rest

	// Of Gate.Watch: since when there was always something for the other end to take, and what it had taken then.
	since time.Time
	taken uint64
}

func (g *Gate) adopt(raw net.Conn, addr netip.Addr, counted bool) net.Conn {
	c := &conn{Conn: socket.Wrap(raw), gate: g, addr: addr, counted: counted}
	keepShort(raw)
	if d := g.settings.Load().NoProgress; d > 0 {
		giveUpAfter(raw, d)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.conns[c] = struct{}{}
	return c
}

// Close closes the connection.
func (c *conn) Close() error {
	if !c.gone.Swap(true) {
		c.gate.leave(c.addr, c.counted)
		c.gate.mu.Lock()
		delete(c.gate.conns, c)
		c.gate.mu.Unlock()
	}
	return c.Conn.Close()
}

// NetConn returns the connection below.
func (c *conn) NetConn() net.Conn { return c.Conn }

// Bare returns the connection below. Unlike with other layers, one may read and write there without this one: only
// closing must come by here.
func (c *conn) Bare() net.Conn { return c.Conn }

// CloseWrite ends our direction.
func (c *conn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

// Reset closes the connection in a way that no end can take for a regular one.
func (c *conn) Reset() error {
	if tcp, ok := socket.Bare(c.Conn).(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // fails only on a closed socket
	}
	return c.Close()
}

// Patient lifts the limits on how long the other end of a connection may read nothing, or little, as is usual for one
// that has become something else than HTTP: its ends may rest for as long as they like.
func Patient(c net.Conn) {
	for c != nil {
		layer, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			return
		}
		if own, ok := c.(*conn); ok {
			own.patient.Store(true)
			giveUpAfter(socket.Bare(own.Conn), time.Duration(0))
			return
		}
		c = layer.NetConn()
	}
}
