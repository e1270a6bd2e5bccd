package limit

import (
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"
)

// GateSettings bound the connections of one listener.
type GateSettings struct {
	Access
	Connections int      // open at once; 0: no limit
	PerAddress  int      // of them from one address; 0: no limit
	Exempt      Networks // trusted proxies, whose connections are those of many clients
	// NoProgress is how long the other end may leave what was sent to it unread before the kernel gives the connection
	// up; 0: for ever. See [Patient].
	NoProgress time.Duration
	// LeastRate is how many bytes a second the other end must take of what was sent to it, on average over that time, as
	// long as there is more; 0: any number. See [Gate.Watch].
	LeastRate int64
}

// Gate decides about connections as they are accepted. One gate stands before all sockets of a listener, also those
// that a reload puts in each other's place.
type Gate struct {
	listener string
	report   *Reporter
	full     func() bool
	settings atomic.Pointer[GateSettings]
	open     atomic.Int64
	shards   [gateShards]gateShard

	mu    sync.Mutex // guards the following
	conns map[*conn]struct{}
}

const gateShards = 32

type gateShard struct {
	mu   sync.Mutex // guards the following
	open map[netip.Addr]int
}

// NewGate returns a gate. full tells that the process is at its limit of memory and takes no new connections; nil: it
// never is.
func NewGate(listener string, s GateSettings, report *Reporter, full func() bool) *Gate {
	if full == nil {
		full = func() bool { return false }
	}
	g := &Gate{listener: listener, report: report, full: full, conns: make(map[*conn]struct{})}
	for i := range g.shards {
		g.shards[i].open = make(map[netip.Addr]int)
	}
	g.Apply(s)
	return g
}

// Apply replaces the settings, for connections that are accepted from now on.
func (g *Gate) Apply(s GateSettings) { g.settings.Store(&s) }

// Open is the number of open connections.
func (g *Gate) Open() int { return int(g.open.Load()) }

// admit counts a connection of addr, or says why there shall be none.
func (g *Gate) admit(addr netip.Addr) (counted bool, reason Reason) {
	s := g.settings.Load()
	switch {
	case !s.Permits(addr):
		return false, AddressDenied
	case g.full():
		return false, OutOfMemory
	}
	if n := g.open.Add(1); s.Connections > 0 && n > int64(s.Connections) {
		g.open.Add(-1)
		return false, Connections
	}
	if !addr.IsValid() || addr.IsLoopback() {
		return false, ""
	}
	shard := g.shard(addr)
	shard.mu.Lock()
	n := shard.open[account(addr)]
	over := s.PerAddress > 0 && n >= s.PerAddress && !s.Exempt.Contains(addr)
	if !over {
		shard.open[account(addr)] = n + 1
	}
	shard.mu.Unlock()
	if over {
		g.open.Add(-1)
		return false, AddressConnections
	}
	return true, ""
}

// leave takes a connection out of the account.
func (g *Gate) leave(addr netip.Addr, counted bool) {
	g.open.Add(-1)
	if !counted {
		return
	}
	shard := g.shard(addr)
	shard.mu.Lock()
	defer shard.mu.Unlock()
	if n := shard.open[account(addr)]; n > 1 {
		shard.open[account(addr)] = n - 1
	} else {
		delete(shard.open, account(addr))
	}
}

func (g *Gate) shard(addr netip.Addr) *gateShard {
	raw := account(addr).As16()
	h := byte(0)
	for _, b := range raw {
		h = h*31 + b
	}
	return &g.shards[h%gateShards]
}

// Listen puts the gate before a socket.
func (g *Gate) Listen(l net.Listener) net.Listener { return &listener{l, g} }

type listener struct {
	net.Listener
	gate *Gate
}

// Accept returns the next connection that may come. The others are closed at once, without a byte: an answer would have
// to wait for TLS, and costs what the limit is there to save.
func (l *listener) Accept() (net.Conn, error) {
	for {
		raw, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		addr := AddressOf(raw.RemoteAddr())
		counted, reason := l.gate.admit(addr)
		if reason == "" {
			return l.gate.adopt(raw, addr, counted), nil
		}
		l.gate.report.Reject(l.gate.listener, reason, logrus.Fields{"remote": raw.RemoteAddr().String()})
		_ = raw.Close() // nothing was said
	}
}
