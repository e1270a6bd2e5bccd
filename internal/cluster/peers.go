package cluster

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/sirupsen/logrus"

	"github.com/pikoproxy/piko/internal/guard"
	"github.com/pikoproxy/piko/internal/tunnel"
)

const (
	pingInterval     = time.Second
	deadAfter        = 3 * time.Second
	openTimeout      = 2 * time.Second         // for a peer to answer a stream
	localOpenTimeout = 1800 * time.Millisecond // for an agent to answer one that came from a peer: the peer still waits then
	handshakeTimeout = 3 * time.Second
	connectPatience  = time.Second // for a request that comes before the first session with a peer
	knownPatience    = 2 * time.Second
	redialMin        = 50 * time.Millisecond
	redialMax        = time.Second
	peerStreams      = 15 << 10
	unaccepted       = peerStreams

	headerBytes = 8 << 10

	headerCluster = "X-Piko-Cluster"
	stranger      = "?" // the id of a node that only asks; no node has it
)

// Conn is a stream to a service: a connection with both kinds of ending.
type Conn interface {
	net.Conn
	CloseWrite() error
	Reset() error
}

// Options are what [NewPeers] needs. All but Unread, Turns, Rejected, Registerer and ErrorLog must be set.
type Options struct {
	// Node is this node. Its state is the one that it starts with; see SetState.
	Node Node
	// Cluster is the name of the cluster: nodes of another one are sent away.
	Cluster string
	Local   *Local
	Table   *Table
	// Server and Client authenticate both ends of a session between two nodes. [Peers.Secure] replaces them.
	Server, Client *tls.Config
	// Open opens a stream for a peer, to an upstream on this node and to no other. Header.Endpoint holds the router's key.
	// An error that wraps a [*tunnel.RefusedError] is passed on to the peer.
	Open func(ctx context.Context, peer string, h tunnel.Header) (Conn, error)
	// Unread is the account that all sessions are on; nil: none.
	Unread *tunnel.Unread
	// Sessions counts the sessions of agents on this node.
	Sessions func() int
	// Turns are those of TLS handshakes, and Rejected is told of each that failed; both may be nil.
	Turns      guard.Turns
	Rejected   func()
	Log        logrus.FieldLogger
	ErrorLog   *log.Logger
	Registerer prometheus.Registerer
}

// Peers keeps a standing session to each other node of the table, and answers theirs. On the sessions that it dialed it
// opens streams and pushes what this node holds; on those that it accepted it opens upstreams of this node only, so that
// a request takes one hop between nodes and no more: there is nothing on that way that could open a second one.
//
//	this node ──dial──> peer      our streams, our deltas ──>   <── acks
//	this node <──dial── peer      its streams, its deltas <──   ──> acks
//
// A node is down when its session has ended, when nothing was heard from it for 3 s, or when it left a stream
// unanswered for 2 s; it is up again when it is heard.
type Peers struct {
	o       Options
	keeper  *tunnel.Keeper
	server  *http.Server
	metrics *metrics
	changed chan struct{} // to Run: the nodes of the table have changed; capacity 1, never closed
	known   known
	work    sync.WaitGroup
	state   atomic.Pointer[State]
	secure  atomic.Pointer[security]
	reach   sync.Map // identity -> address at which to dial that node instead of its own

	mu     sync.Mutex
	peers  map[*Remote]*Peer
	guests map[*guest]struct{}
	closed bool
}

// NewPeers checks the options and returns Peers that do nothing yet. The table must not have been filled.
func NewPeers(o Options) (*Peers, error) {
	if o.Server == nil || o.Client == nil {
		return nil, errors.New("peers have to authenticate each other: TLS is missing")
	}
	if !goodIdentity(o.Node.ID, o.Node.Incarnation) {
		return nil, fmt.Errorf("node id %q with incarnation %q: want letters, digits, and \"-._\"", o.Node.ID, o.Node.Incarnation)
	}
	p := &Peers{
		o:       o,
		keeper:  tunnel.NewKeeper(tunnel.KeeperOptions{Interval: pingInterval, Dead: deadAfter}),
		changed: make(chan struct{}, 1),
		peers:   map[*Remote]*Peer{},
		guests:  map[*guest]struct{}{},
	}
	p.known.kick = make(chan struct{}, 1)
	p.state.Store(&o.Node.State)
	p.Secure(o.Server, o.Client)
	p.metrics = newMetrics(p, o.Registerer)
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	p.server = &http.Server{
		Handler:           guard.Handler(http.HandlerFunc(p.welcome), malformed),
		ReadHeaderTimeout: handshakeTimeout,
		IdleTimeout:       handshakeTimeout,
		MaxHeaderBytes:    headerBytes,
		ConnContext:       guard.With,
		Protocols:         protocols,
		ErrorLog:          o.ErrorLog,
	}
	o.Table.OnNodes(func() { nudge(p.changed) })
	return p, nil
}

func nudge(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// goodIdentity reports whether a node and its incarnation may be written as one text.
func goodIdentity(id, incarnation string) bool {
	good := func(s string) bool {
		return s != "" && len(s) <= 64 && strings.IndexFunc(s, func(r rune) bool {
			return r <= ' ' || r >= 0x7f || r == '/'
		}) < 0
	}
	return good(id) && good(incarnation)
}

// identity is how a node names itself to others: its id, a slash, and its incarnation.
func identity(n Node) string { return n.ID + "/" + n.Incarnation }

// Serve answers the other nodes until Shutdown or the end of Run. It returns [http.ErrServerClosed] then.
func (p *Peers) Serve(l net.Listener) error {
	return p.server.Serve(guard.NewListener(l, guard.Options{
		TLS: p.serverTLS(), Limits: func() guard.Limits { return guard.Limits{Bytes: headerBytes, Fields: 50, Target: 256} },
		HeaderTimeout: handshakeTimeout, HandshakeTimeout: handshakeTimeout, ErrorLog: p.o.ErrorLog,
		Turns: p.o.Turns, Rejected: p.o.Rejected,
	}))
}

// Run connects to the nodes of the table, as they come and go, until ctx ends. It then ends all sessions at once and
// returns when everything is gone; Shutdown, before that, ends them in order.
func (p *Peers) Run(ctx context.Context) error {
	p.work.Go(func() { _ = p.keeper.Run(ctx) }) // always nil
	p.work.Go(func() { p.known.run(ctx, p.settled) })
	p.work.Go(func() { p.watchGuests(ctx) })
	p.reconcile(ctx)
	for {
		select {
		case <-p.changed:
			p.reconcile(ctx)
			continue
		case <-ctx.Done():
		}
		break
	}
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	_ = p.server.Close() // what it closes is of no use any more
	for _, g := range p.allGuests() {
		g.close(errStopped)
	}
	p.work.Wait()
	return nil
}

var errStopped = errors.New("the node has stopped")

// reconcile starts a goroutine for each node that has none.
func (p *Peers) reconcile(ctx context.Context) {
	for _, r := range p.o.Table.Nodes() {
		peer := p.Peer(r)
		if !peer.started.Swap(true) {
			p.work.Go(func() { peer.run(ctx) })
		}
	}
}

// Peer returns what opens streams on a node of the table.
func (p *Peers) Peer(r *Remote) *Peer {
	p.mu.Lock()
	defer p.mu.Unlock()
	peer := p.peers[r]
	if peer == nil {
		peer = newPeer(p, r)
		p.peers[r] = peer
	}
	return peer
}

func (p *Peers) forget(r *Remote) {
	p.mu.Lock()
	delete(p.peers, r)
	p.mu.Unlock()
	nudge(p.known.kick)
}

func (p *Peers) all() []*Peer {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make([]*Peer, 0, len(p.peers))
	for _, peer := range p.peers {
		all = append(all, peer)
	}
	return all
}

// Reach says that a node is to be dialed at another address than its own, which it may share with another process.
func (p *Peers) Reach(id, incarnation, addr string) {
	p.reach.Store(identity(Node{ID: id, Incarnation: incarnation}), addr)
}

// SetState tells the peers of a new state of this node, sooner than the directory can.
func (p *Peers) SetState(s State) {
	p.state.Store(&s)
	for _, peer := range p.all() {
		nudge(peer.tell)
	}
}

// Shutdown takes no new streams from peers, waits until those that are there have ended or ctx has, and ends all
// sessions. It returns how many of them were ended with open streams. No streams may be opened any more by this node.
func (p *Peers) Shutdown(ctx context.Context) int {
	var cut atomic.Int64
	var ending sync.WaitGroup
	p.mu.Lock()
	p.closed = true
	for g := range p.guests {
		ending.Go(func() {
			if !g.shutdown(ctx) {
				cut.Add(1)
			}
		})
	}
	p.mu.Unlock()
	ending.Wait()
	for _, peer := range p.all() {
		ending.Go(func() { peer.shutdown(ctx) })
	}
	ending.Wait()
	_ = p.server.Close() // handshakes that came too late
	return int(cut.Load())
}

// Probe asks the node at an address who it is, and returns nil if it is of this incarnation.
func (p *Peers) Probe(ctx context.Context, addr, incarnation string) error {
	for _, peer := range p.all() {
		if n := peer.remote.Node(); n.Addr == addr && n.Incarnation == incarnation && peer.alive() {
			return nil
		}
	}
	s, err := p.dial(ctx, Node{Addr: addr, Incarnation: incarnation}, nil)
	if err != nil {
		return err
	}
	_ = s.CloseNow(errors.New("it was a question only"))
	s.Wait()
	return nil
}

// dial opens a session to a node and makes sure that it is the one that was meant. Without an id any node of the
// incarnation is.
func (p *Peers) dial(ctx context.Context, n Node, hear func(*tunnel.Session, string, []byte)) (*held, error) {
	self := p.o.Node
	if n.ID == "" {
		self.ID = stranger // a node that has our id would send us away, and so be taken for dead
	}
	h := &held{proof: &proof{}, under: p.secure.Load()}
	c := h.proof.noting(h.under.client)
	if host, _, err := net.SplitHostPort(n.Addr); err == nil && c.ServerName == "" {
		c.ServerName = host
	}
	addr := n.Addr
	if other, ok := p.reach.Load(identity(n)); ok {
		addr, _ = other.(string)
	}
	s, err := tunnel.DialPeer(ctx, tunnel.DialOptions{
		URL: "https://" + addr, TLS: c, HandshakeTimeout: handshakeTimeout, Proxy: direct,
		Header: http.Header{tunnel.HeaderNode: {identity(self)}, headerCluster: {p.o.Cluster}},
		Hello:  tunnel.Hello{AgentID: self.ID, InstanceID: self.Incarnation},
	}, tunnel.NodeOptions{
		NodeID: p.o.Node.ID, MaxStreams: peerStreams, OpenTimeout: openTimeout, OnMessage: hear, Unread: p.o.Unread,
	})
	if err != nil {
		return nil, err
	}
	if have := s.NodeID(); have != identity(n) && (n.ID != "" || !strings.HasSuffix(have, identity(n))) {
		_ = s.CloseNow(errors.New("another node than expected"))
		s.Wait()
		return nil, fmt.Errorf("at %s is the node %q, want %q", n.Addr, have, identity(n))
	}
	h.Session = s
	return h, nil
}
