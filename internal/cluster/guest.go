package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/pikoproxy/piko/internal/guard"
	"github.com/pikoproxy/piko/internal/relay"
	"github.com/pikoproxy/piko/internal/tunnel"
)

// strangerEvery is how often the table is asked again for a node that has connected before the directory told of it.
const strangerEvery = 100 * time.Millisecond

// guest is a session that another node has dialed.
type guest struct {
	peers           *Peers
	id, incarnation string
	session         atomic.Pointer[tunnel.AgentSession]
	kick            chan struct{} // to answer; capacity 1, never closed
	behind          atomic.Bool   // the table lacks some of what the node holds
	broken          atomic.Pointer[error]
	proof           *proof // of the goroutine that watches guests

	parts assembly // used by the control goroutine of the session only
}

// malformed answers a request that the guard has refused.
func malformed(w http.ResponseWriter, _ *http.Request, _ guard.Refusal) {
	http.Error(w, "malformed request", http.StatusBadRequest)
}

// welcome answers the request of a node for a session, and serves the session to its end. TLS has proven that the node
// belongs to the cluster.
func (p *Peers) welcome(w http.ResponseWriter, r *http.Request) {
	id, incarnation, _ := strings.Cut(r.Header.Get(tunnel.HeaderNode), "/")
	log := p.o.Log.WithFields(logrus.Fields{"remote": r.RemoteAddr})
	switch {
	case r.Method != http.MethodGet || r.URL.Path != tunnel.PathPeer:
		http.Error(w, "this is where nodes meet", http.StatusNotFound)
		return
	case r.Header.Get(headerCluster) != p.o.Cluster:
		log.Warn("peer refused: it belongs to another cluster")
		http.Error(w, "this is another cluster", http.StatusForbidden)
		return
	case !goodIdentity(id, incarnation):
		http.Error(w, "say who you are", http.StatusBadRequest)
		return
	case id == p.o.Node.ID && incarnation != p.o.Node.Incarnation:
		log.WithField("peer", id).Error("peer refused: it has the id of this node")
		http.Error(w, "this is my own id", http.StatusConflict)
		return
	}
	g := &guest{peers: p, id: id, incarnation: incarnation, kick: make(chan struct{}, 1), proof: &proof{}}
	if r.TLS != nil {
		g.proof.chain = r.TLS.PeerCertificates
	}
	if !p.enter(g) {
		http.Error(w, "the node is stopping", http.StatusServiceUnavailable)
		return
	}
	defer p.leave(g)
	s, err := tunnel.AcceptPeer(w, r, identity(p.o.Node), tunnel.DialOptions{
		HandshakeTimeout: handshakeTimeout, Heartbeat: pingInterval, Dead: deadAfter, MaxUnaccepted: unaccepted,
		OnMessage: g.hear, Unread: p.o.Unread,
	})
	if err != nil {
		log.WithError(err).Debug("handshake of a peer failed")
		return
	}
	g.serve(r.Context(), s)
}

// enter takes a guest into the set, unless this node is stopping.
func (p *Peers) enter(g *guest) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false
	}
	p.guests[g] = struct{}{}
	p.work.Add(1)
	return true
}

func (p *Peers) leave(g *guest) {
	p.mu.Lock()
	delete(p.guests, g)
	p.mu.Unlock()
	p.work.Done()
}

// serve accepts streams until the session ends.
func (g *guest) serve(ctx context.Context, s *tunnel.AgentSession) {
	p := g.peers
	g.session.Store(s)
	if p.stopping() {
		_ = s.CloseNow(errStopped)
	}
	p.work.Go(func() { g.answer(s) })
	for {
		in, err := s.Accept(ctx)
		if err != nil {
			break
		}
		p.work.Go(func() { p.relay(ctx, g.id, in) })
	}
	_ = s.CloseNow(errStopped) // has ended already, unless ctx has
	s.Wait()
}

// close ends the session at once.
func (g *guest) close(cause error) {
	if s := g.session.Load(); s != nil {
		_ = s.CloseNow(cause)
	}
}

// shutdown ends the session in order. It reports whether no stream was cut off.
func (g *guest) shutdown(ctx context.Context) bool {
	s := g.session.Load()
	return s == nil || s.Shutdown(ctx) == nil
}

// relay leads one stream of a peer to an upstream of this node. The bytes are nothing to it.
func (p *Peers) relay(ctx context.Context, peer string, in *tunnel.Incoming) {
	h := in.Header()
	open, cancel := context.WithTimeout(ctx, localOpenTimeout)
	local, err := p.o.Open(open, peer, h)
	cancel()
	if err != nil {
		p.metrics.refused.Inc()
		refusal := &tunnel.RefusedError{Code: tunnel.CodeServiceUnreachable, Reason: err.Error()}
		if r, ok := errors.AsType[*tunnel.RefusedError](err); ok {
			refusal = r
		}
		_ = in.Refuse(refusal.Code, refusal.Reason) // a peer that can't be told has gone
		return
	}
	st, err := in.Accept()
	if err != nil {
		_ = local.Reset() // nobody is there to use it
		return
	}
	p.metrics.relayed.Inc()
	_, err = relay.Relay(ctx, st, local, relay.Options{})
	if err != nil {
		p.o.Log.WithField("endpoint", h.Endpoint).WithError(err).Debug("relayed stream broke off")
	}
}

// hear takes what the node says of itself. It does not block: answers are sent by another goroutine.
func (g *guest) hear(kind string, object []byte) {
	t := g.peers.o.Table
	var err error
	switch kind {
	case kindHolds:
		var h holds
		if err = json.Unmarshal(object, &h); err == nil {
			err = g.takeHolds(h)
		}
	case kindDelta, kindSnapshot:
		whole, complete, e := g.parts.add(object)
		switch {
		case e != nil:
			err = e
		case !complete:
			return
		case kind == kindSnapshot:
			t.Replace(g.id, g.incarnation, whole.To, whole.Weights)
		case !t.Apply(g.id, g.incarnation, Delta{From: whole.From, To: whole.To, Weights: whole.Weights}):
			g.behind.Store(true)
		}
		g.peers.metrics.received.Inc()
	default:
		return
	}
	if err != nil {
		err = fmt.Errorf("message %q of peer %s: %w", kind, g.id, err)
		g.broken.Store(&err)
	}
	nudge(g.kick)
}

func (g *guest) takeHolds(h holds) error {
	if h.Sessions < 0 || h.Sessions > maxWeight {
		return fmt.Errorf("%d sessions are out of bounds", h.Sessions)
	}
	t := g.peers.o.Table
	if r, ok := t.Node(g.id); ok && r.Node().Incarnation == g.incarnation {
		r.sessions.Store(int64(h.Sessions))
	}
	switch h.State {
	case Draining, Left:
		t.SetDraining(g.id, g.incarnation)
	case Up:
		t.SetUp(g.id, g.incarnation)
	}
	if seq, ok := t.Seq(g.id, g.incarnation); !ok || seq < h.Seq {
		g.behind.Store(true)
	}
	return nil
}

// answer tells the node how much of what it holds has arrived, until the session ends.
func (g *guest) answer(s *tunnel.AgentSession) {
	t := g.peers.o.Table
	for {
		var again <-chan time.Time
		if g.behind.Load() {
			again = time.After(strangerEvery)
		}
		select {
		case <-g.kick:
		case <-again:
		case <-s.Done():
			return
		}
		var err error
		if broken := g.broken.Load(); broken != nil {
			err = *broken
		}
		known := false
		if r, ok := t.Node(g.id); ok {
			known = r.Node().Incarnation == g.incarnation
		}
		switch {
		case err != nil:
		case g.behind.Load():
			// Whether there is such a node the directory says, and it may be a moment behind the node itself.
			if known && g.behind.Swap(false) {
				err = s.Send(kindWant, want{})
			}
		default:
			if seq, ok := t.Seq(g.id, g.incarnation); ok {
				err = s.Send(kindAck, ack{seq})
			}
		}
		if err != nil {
			_ = s.CloseNow(err)
			return
		}
	}
}
