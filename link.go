package piko

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pikoproxy/piko/internal/backoff"
	"github.com/pikoproxy/piko/internal/tunnel"
)

const (
	// dialTimeout bounds one attempt to make a session, from the name look-up to the node's hello.
	dialTimeout = 20 * time.Second

	// retireTimeout bounds how long a session to a draining node is kept when the node named no deadline.
	retireTimeout = time.Minute

	// retireSpread is the longest a link waits before it dials elsewhere because its node drains: all agents of the node
	// are told at the same moment.
	retireSpread = time.Second
)

// link is one session with a node and what is offered on it.
type link struct {
	*settings
	pool    *pool
	session *tunnel.AgentSession
	nodeID  string
	zone    string // of the node; "": it has not said
	since   time.Time
	first   string        // the token presented at the handshake
	fresh   chan struct{} // holds an item when the source has a new token; cap 1

	// Guarded by pool.mu.
	leaving bool                 // the node drains, or the session has ended
	on      map[string]*Listener // what the node has accepted
	busy    map[string]bool      // endpoints that a reconcile goroutine looks after
	again   map[string]bool      // endpoints whose listener has been replaced: the node has to hear of them once more
	back    map[string]error     // what the node has taken back and no such goroutine has seen yet
}

// connect makes one session and enters it as a link.
func (p *pool) connect(ctx context.Context, at *place) (*link, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	token, err := at.bearer(ctx)
	if err != nil {
		return nil, err
	}
	k := &link{
		settings: at.settings, pool: p, first: token, fresh: make(chan struct{}, 1),
		on: map[string]*Listener{}, busy: map[string]bool{}, again: map[string]bool{}, back: map[string]error{},
	}
	k.session, err = tunnel.Dial(ctx, tunnel.DialOptions{
		URL:       k.url,
		Token:     token,
		TenantID:  k.tenantID,
		Hello:     tunnel.Hello{AgentID: k.agentID, InstanceID: k.instanceID, Labels: k.labels},
		TLS:       k.tls,
		Proxy:     k.proxy,
		Heartbeat: k.heartbeat,
		OnRefused: func(endpoint string, err *tunnel.RefusedError) { p.takenBack(k, endpoint, err) },
	})
	if err != nil {
		return nil, handshakeError(redacted(k.url), err)
	}
	k.nodeID, k.zone, k.since = k.session.NodeID(), k.session.Zone(), time.Now()
	if err := p.claim(k, at); err != nil {
		_ = k.session.Shutdown(ctx) // there are no streams to cut
		return nil, err
	}
	return k, nil
}

// bearer asks for the token to present.
func (s *settings) bearer(ctx context.Context) (string, error) {
	token, err := s.token(ctx)
	if err == nil {
		err = checkToken(token)
	}
	if err != nil {
		return "", fmt.Errorf("%w: %w", errToken, err)
	}
	return token, nil
}

// hold looks after a link until its place should be filled anew, and returns how long that took. A link whose session
// has ended is gone by then; one whose node drains is left to retire.
func (p *pool) hold(ctx context.Context, k *link) time.Duration {
	p.mu.Lock()
	p.goLocked(k.accept)
	if k.renewable {
		p.goLocked(k.renew)
	}
	p.mu.Unlock()
	select {
	case <-k.session.Done():
	case <-k.session.Draining():
		if p.leave(ctx, k) {
			return time.Since(k.since)
		}
		<-k.session.Done()
	case <-ctx.Done():
		if p.dismiss(k) {
			return time.Since(k.since)
		}
		<-k.session.Done()
	}
	lived := time.Since(k.since)
	k.session.Wait()
	p.vacate(k, true)
	if !p.ending() {
		p.log.Warn("connection to a node lost", "node", k.nodeID, "err", k.session.Err())
	}
	return lived
}

// leave retires a link whose node drains, and returns when the slot should connect elsewhere. It reports false when the
// session takes nothing new for another reason: it has ended, or is ended by us.
func (p *pool) leave(ctx context.Context, k *link) bool {
	if k.ended() || p.ending() {
		return false
	}
	notice := k.session.DrainNotice()
	if notice == (tunnel.Drain{}) && k.endsWithin(time.Second) {
		return false // a session that breaks takes nothing new an instant before it has ended
	}
	p.log.Info("node takes nothing new, connecting elsewhere", "node", k.nodeID, "reason", notice.Reason)
	p.vacate(k, false)
	p.mu.Lock()
	p.goLocked(func(ctx context.Context) { k.retire(ctx, notice.Deadline) })
	p.mu.Unlock()
	spread := backoff.Backoff{Min: max(time.Millisecond, min(retireSpread, time.Until(notice.Deadline)/10))}
	p.pause(ctx, spread.Next(), nil)
	return true
}

func (k *link) ended() bool { return k.endsWithin(0) }

func (k *link) endsWithin(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-k.session.Done():
		return true
	default:
	}
	select {
	case <-k.session.Done():
		return true
	case <-timer.C:
		return false
	}
}

// accept brings what arrives on the session to the listeners.
func (k *link) accept(ctx context.Context) {
	for {
		in, err := k.session.Accept(ctx)
		if err != nil {
			// Without somebody who accepts, the node would take the session for a live one.
			_ = k.session.CloseNow(err)
			return
		}
		k.deliver(in)
	}
}

// deliver hands what arrived to the listener of its endpoint, or refuses it. A listener that was closed because another
// one has taken its place refuses nothing.
func (k *link) deliver(in *tunnel.Incoming) {
	l := k.pool.listener(in.Header().Endpoint)
	for l != nil {
		if l.deliver(newIncoming(in)) {
			return
		}
		full := l
		if l = k.pool.listener(in.Header().Endpoint); l == full {
			break
		}
	}
	_ = in.Refuse(k.pool.refusal(l), "") // fails only if nobody waits any more
}

// retire finishes a link whose node drains: it waits until another link carries its endpoints, then lets its streams end.
func (k *link) retire(ctx context.Context, deadline time.Time) {
	p := k.pool
	defer p.vacate(k, true)
	defer k.session.Wait()
	if deadline.IsZero() {
		deadline = time.Now().Add(retireTimeout)
	}
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	p.awaitCovered(ctx, k)
	if err := k.shutdown(ctx, "moved elsewhere", deadline); err != nil {
		p.log.Debug("streams cut when their node had to stop", "node", k.nodeID, "err", err)
	}
}

// awaitCovered blocks until the link has nothing that is not offered elsewhere too, or has ended, or ctx has.
func (p *pool) awaitCovered(ctx context.Context, k *link) {
	for {
		p.mu.Lock()
		covered, changed := p.coveredLocked(k), p.changed
		p.mu.Unlock()
		if covered {
			return
		}
		select {
		case <-changed:
		case <-k.session.Done():
			return
		case <-ctx.Done():
			return
		}
	}
}

// shutdown takes nothing new and lets streams end until ctx does.
func (k *link) shutdown(ctx context.Context, reason string, deadline time.Time) error {
	// A session that can't carry the notice is ending, which Shutdown finds out by itself.
	_ = k.session.SendDrain(reason, deadline)
	if err := k.session.Shutdown(ctx); err != nil {
		return fmt.Errorf("finish session with node %s: %w", k.nodeID, err)
	}
	return nil
}

// never is how long a token without an end is good for.
const never = 1 << 62 * time.Nanosecond

// renew hands the node a new token before the old one expires, or when the source is said to have one. The source is asked
// again after a pause when it has nothing new; an expired token ends the session at the node's discretion, and then the
// slot connects anew.
func (k *link) renew(ctx context.Context) {
	p := k.pool
	token := k.first
	wait, expires := renewIn(token, time.Now())
	var last string
	for {
		if !expires {
			wait = never
		}
		told := false
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-k.fresh:
			told = true
		case <-k.session.Done():
			timer.Stop()
			return
		}
		timer.Stop()
		fresh, err := k.freshToken(ctx, token)
		if told && errors.Is(err, errSameToken) {
			wait, expires = renewIn(token, time.Now())
			continue
		}
		if err == nil {
			err = k.session.SendToken(fresh)
		}
		if err != nil {
			if text := err.Error(); text != last {
				p.log.Warn("token could not be renewed, will retry", "node", k.nodeID, "err", err)
				last = text
			}
			wait, expires = renewPause, true
			continue
		}
		token, last = fresh, ""
		p.log.Debug("token renewed", "node", k.nodeID)
		wait, expires = renewIn(token, time.Now())
	}
}

var errSameToken = errors.New("the source still gives the token that is about to expire")

func (s *settings) freshToken(ctx context.Context, old string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	token, err := s.bearer(ctx)
	if err == nil && token == old {
		err = errSameToken
	}
	return token, err
}
