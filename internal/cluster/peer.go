package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"sync/atomic"
	"time"

	"github.com/pikoproxy/piko/internal/backoff"
	"github.com/pikoproxy/piko/internal/tunnel"
)

const (
	holdsEvery  = time.Second
	doubtEvery  = 200 * time.Millisecond
	steadyAfter = 5 * time.Second // a session that lasted this long was a good one
)

// Peer is another node as something to open streams on. It stands for one incarnation, over all sessions to it.
type Peer struct {
	peers   *Peers
	remote  *Remote
	session atomic.Pointer[tunnel.Session]
	asked   chan struct{} // closed, once, after the first attempt to connect
	started atomic.Bool
	acked   atomic.Uint64
	wanted  atomic.Bool
	suspect atomic.Int64  // when a stream was left unanswered, in nanoseconds after the epoch; 0: none
	tell    chan struct{} // to feed: there is something to send; capacity 1, never closed
}

func newPeer(p *Peers, r *Remote) *Peer {
	return &Peer{peers: p, remote: r, asked: make(chan struct{}), tell: make(chan struct{}, 1)}
}

// direct is the choice of a proxy that is none: nodes reach each other.
func direct(*url.URL) (*url.URL, error) { return nil, nil } //nolint:nilnil // how net/http says it too

// ID is that of the node.
func (p *Peer) ID() string { return p.remote.Node().ID }

// Remote is the node.
func (p *Peer) Remote() *Remote { return p.remote }

// Closing is closed when the table has forgotten the node.
func (p *Peer) Closing() <-chan struct{} { return p.remote.Gone() }

// Open opens a stream that the node leads to one of its own upstreams of the key in h.Endpoint. Errors are those of
// [tunnel.Session.Open]; without a session they wrap [tunnel.ErrSessionClosed].
func (p *Peer) Open(ctx context.Context, h tunnel.Header) (*tunnel.Stream, error) {
	s := p.session.Load()
	if s == nil {
		if s = p.await(ctx); s == nil {
			return nil, fmt.Errorf("no session with peer %s: %w", p.ID(), tunnel.ErrSessionClosed)
		}
	}
	st, err := s.Open(ctx, h)
	if err != nil {
		if errors.Is(err, tunnel.ErrOpenTimeout) {
			p.doubt(s)
		}
		return nil, fmt.Errorf("peer %s: %w", p.ID(), err)
	}
	return st, nil
}

// await waits for the first session, if there was no attempt to connect yet.
func (p *Peer) await(ctx context.Context) *tunnel.Session {
	patience := time.NewTimer(connectPatience)
	defer patience.Stop()
	select {
	case <-p.asked:
	case <-p.Closing():
	case <-patience.C:
	case <-ctx.Done():
	}
	return p.session.Load()
}

// doubt takes the node for down until it is heard again. It has left a stream unanswered.
func (p *Peer) doubt(s *tunnel.Session) {
	if p.session.Load() == s && s.Silence() >= pingInterval {
		p.remote.SetDown(true) // first: what ends a doubt looks for suspect, and then sets the node up
		p.suspect.CompareAndSwap(0, time.Now().UnixNano())
		nudge(p.tell)
	}
}

// alive reports whether there is a session on which something was heard just now.
func (p *Peer) alive() bool {
	s := p.session.Load()
	return s != nil && s.Silence() < deadAfter
}

// run keeps a session to the node until the table forgets it or ctx ends.
func (p *Peer) run(ctx context.Context) {
	defer p.peers.forget(p.remote)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p.peers.work.Go(func() { // ends with run
		select {
		case <-p.remote.Gone():
			cancel()
		case <-ctx.Done():
		}
	})
	wait := backoff.Backoff{Min: redialMin, Max: redialMax}
	for first := true; ctx.Err() == nil; first = false {
		began := time.Now()
		err := p.connect(ctx, first)
		if ctx.Err() != nil || p.peers.stopping() {
			return
		}
		if p.remote.Doubt() != Down {
			log := p.peers.o.Log.WithField("peer", p.ID())
			if p.remote.Standing() == Leaving {
				log.Info("peer has left") // as it said that it would
			} else {
				log.WithError(err).Warn("peer is down")
			}
		}
		p.remote.SetDown(true)
		nudge(p.peers.known.kick)
		if time.Since(began) > steadyAfter {
			wait.Reset()
		}
		if wait.Wait(ctx) != nil {
			return
		}
	}
}

// use opens streams on a session from now on.
func (p *Peer) use(s *held) {
	p.peers.keeper.Add(s.Session)
	p.acked.Store(0)
	p.wanted.Store(false)
	p.suspect.Store(0)
	p.session.Store(s.Session)
	p.remote.SetDown(false)
}

// connect makes a session, and others in its place when certificates change, and keeps them fed. It returns why the last one
// ended.
func (p *Peer) connect(ctx context.Context, first bool) error {
	s, err := p.peers.dial(ctx, p.remote.Node(), p.hear)
	if err != nil {
		if first {
			close(p.asked)
		}
		return err
	}
	p.use(s)
	if first {
		close(p.asked)
	}
	p.peers.o.Log.WithField("peer", p.ID()).WithField("addr", s.RemoteAddr().String()).Info("peer connected")
	for next := p.feed(ctx, s); next != nil; next = p.feed(ctx, s) {
		old := s
		s = next
		p.use(s)
		p.peers.work.Go(func() { p.finish(ctx, old) })
	}
	p.session.CompareAndSwap(s.Session, nil)
	if ctx.Err() != nil {
		_ = s.CloseNow(errStopped)
	}
	s.Wait()
	return s.Err()
}

// feed sends what this node holds until the session ends, or returns the one that takes its place.
func (p *Peer) feed(ctx context.Context, s *held) *held {
	cursor := p.peers.o.Local.Follow()
	defer cursor.Close()
	tick := time.NewTicker(holdsEvery)
	defer tick.Stop()
	doubts := time.NewTicker(doubtEvery)
	defer doubts.Stop()
	// What it says it holds is what it has sent, so that the peer can tell a gap from what is still under way.
	holds := func() error { return s.Send(kindHolds, p.peers.holds(cursor.from)) }
	err := holds()
	for err == nil {
		select {
		case <-ctx.Done():
			return nil
		case <-s.Done():
			return nil
		case <-cursor.Changed():
			if d := cursor.Next(); d.From < d.To {
				p.peers.metrics.sent.Inc()
				err = send(s.Session, kindDelta, part{From: d.From, To: d.To, Weights: d.Weights})
			}
		case <-p.tell:
			err = holds()
			if err == nil && p.wanted.Swap(false) {
				seq, weights := p.peers.o.Local.Snapshot()
				p.peers.metrics.snapshots.Inc()
				err = send(s.Session, kindSnapshot, part{To: seq, Weights: weights})
			}
		case at := <-tick.C:
			if next := p.replaced(ctx, s, at); next != nil {
				return next
			}
			err = holds()
		case <-doubts.C:
			p.reconsider(s.Session)
		}
	}
	// What it can't be told it would miss: a new session starts from what it has.
	_ = s.CloseNow(err)
	return nil
}

// reconsider ends the doubt about a node that was heard since.
func (p *Peer) reconsider(s *tunnel.Session) {
	since := p.suspect.Load()
	if since != 0 && s.Silence() < time.Since(time.Unix(0, since)) {
		p.suspect.Store(0)
		p.remote.SetDown(false)
	}
}

func send(s *tunnel.Session, kind string, whole part) error {
	for _, piece := range pieces(whole) {
		if err := s.Send(kind, piece); err != nil {
			return err
		}
	}
	return nil
}

// hear takes what the node answers.
func (p *Peer) hear(_ *tunnel.Session, kind string, object []byte) {
	switch kind {
	case kindAck:
		var a ack
		if json.Unmarshal(object, &a) == nil {
			p.acked.Store(a.Seq)
			nudge(p.peers.known.kick)
		}
	case kindWant:
		p.wanted.Store(true)
		nudge(p.tell)
	}
}

// shutdown ends the session in order.
func (p *Peer) shutdown(ctx context.Context) {
	if s := p.session.Load(); s != nil {
		_ = s.Shutdown(ctx) // streams that are cut off were counted by those who use them
	}
}

// holds is what this node says of itself.
func (p *Peers) holds(seq uint64) holds {
	return holds{Seq: seq, State: *p.state.Load(), Sessions: p.o.Sessions()}
}

func (p *Peers) stopping() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.closed
}
