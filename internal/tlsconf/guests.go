package tlsconf

import (
	"context"
	"crypto/tls"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

const (
	guestSweep = time.Second // between two looks at everybody
	// GuestGrace is for what runs on a connection whose client's certificate is good for nothing any more.
	GuestGrace = 3 * time.Second
)

// Guests are the open connections of a listener, with what their clients were let in for. Those that would not be let in any
// more, since a CA was taken away or a certificate has expired, have some time to finish what runs and are then closed.
type Guests struct {
	current func() *tls.Config
	told    func(why error, remote string)

	mu  sync.Mutex // guards the following
	all map[*guest]struct{}
}

// NewGuests returns an empty set. Current is what the listener speaks at the moment, a configuration of [Remembering] or nil;
// told hears of each connection that is about to end.
func NewGuests(current func() *tls.Config, told func(why error, remote string)) *Guests {
	return &Guests{current: current, told: told, all: make(map[*guest]struct{})}
}

// Listen returns a listener below TLS whose connections are known here, if clients have to show certificates.
func (g *Guests) Listen(l net.Listener) net.Listener { return &guestListener{l, g} }

// Run looks at all connections again and again until ctx ends.
func (g *Guests) Run(ctx context.Context) error {
	tick := time.NewTicker(guestSweep)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			g.Sweep(time.Now())
		}
	}
}

// Sweep begins the end of what has to end, and ends what has begun to long enough ago.
func (g *Guests) Sweep(now time.Time) {
	conf := g.current()
	for _, c := range g.list() {
		if since := c.ending.Load(); since != 0 {
			if now.Sub(time.Unix(0, since)) >= GuestGrace {
				_ = c.Reset() // has ended by itself, if it can't be closed
			}
			continue
		}
		v := c.vouched.Load()
		if v == nil {
			continue // the handshake is under way
		}
		if why := v.Judge(conf, now); why != nil {
			c.ending.Store(now.UnixNano())
			g.told(why, c.RemoteAddr().String())
		}
	}
}

func (g *Guests) list() []*guest {
	g.mu.Lock()
	defer g.mu.Unlock()
	all := make([]*guest, 0, len(g.all))
	for c := range g.all {
		all = append(all, c)
	}
	return all
}

// Remembering returns a server's configuration that tells the connections of [Guests] what their clients were let in for. C is
// not changed.
func Remembering(c *tls.Config) *tls.Config {
	if c == nil {
		return nil
	}
	out := c.Clone()
	out.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		below := guestBelow(hello.Conn)
		if below == nil {
			return nil, nil //nolint:nilnil // crypto/tls goes on with out then
		}
		one := c.Clone()
		one.VerifyConnection = func(s tls.ConnectionState) error {
			if c.VerifyConnection != nil {
				if err := c.VerifyConnection(s); err != nil {
					return err
				}
			}
			v := VouchedFor(&s)
			v.judged.Store(c.ClientCAs)
			below.vouched.Store(v)
			return nil
		}
		return one, nil
	}
	return out
}

// guestBelow finds the connection that is known here under the layers that others have put on it.
func guestBelow(c net.Conn) *guest {
	for c != nil {
		if g, ok := c.(*guest); ok {
			return g
		}
		layer, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			break
		}
		c = layer.NetConn()
	}
	return nil
}

type guestListener struct {
	net.Listener
	guests *Guests
}

// Accept returns the next connection.
func (l *guestListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	if l.guests.current() == nil {
		return c, nil // plain text
	}
	one := &guest{Conn: c, guests: l.guests}
	l.guests.mu.Lock()
	l.guests.all[one] = struct{}{}
	l.guests.mu.Unlock()
	return one, nil
}

// guest is a connection below TLS.
type guest struct {
	net.Conn
	guests  *Guests
	vouched atomic.Pointer[Vouched]
	ending  atomic.Int64 // since when, in nanoseconds after the epoch; 0: it is not
}

// Ending reports whether the connection is about to end: it shall carry no more requests.
func (c *guest) Ending() bool { return c.ending.Load() != 0 }

// NetConn returns the connection below.
func (c *guest) NetConn() net.Conn { return c.Conn }

// Close closes the connection.
func (c *guest) Close() error {
	c.forget()
	return c.Conn.Close()
}

// Reset closes the connection in a way that no end can take for a regular one.
func (c *guest) Reset() error {
	c.forget()
	switch below := c.Conn.(type) {
	case interface{ Reset() error }:
		return below.Reset()
	case *net.TCPConn:
		_ = below.SetLinger(0) // fails only on a closed socket
	}
	return c.Conn.Close()
}

// CloseWrite ends our direction.
func (c *guest) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

func (c *guest) forget() {
	c.guests.mu.Lock()
	defer c.guests.mu.Unlock()
	delete(c.guests.all, c)
}
